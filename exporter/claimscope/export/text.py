"""How do samples become the bytes of a scrape, and what keeps a scrape from costing the agent anything?

Prometheus text 0.0.4 and OpenMetrics 1.0.0 differ only in their comment lines here, so the sample lines are made
once for both. Everything in front of a value (name, escaped labels) is cached per family and label tuple; between two
snapshots only the numbers are formatted anew. Histograms are few and written out each time.
"""

from __future__ import annotations

import time
import zlib
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, TypeVar

from prometheus_client.utils import floatToGoString

from claimscope.metrics.spec import Family, Type
from claimscope.model import Histogram, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

S = TypeVar("S")
Labels = tuple[tuple[str, str], ...]
Block = tuple[str, list[str]]  # name of a family, and its sample lines in pieces

# How many renders a cached label prefix survives unused, at the least; twice that at the most.
KEEP_RENDERS = 60

_NOT_FINITE = ("nf", "an")  # how repr ends for infinities and NaN, and for no other float

_TEXT_TYPES = {Type.INFO: "gauge", Type.BARE_COUNTER: "counter"}  # others have their own name there

_HISTOGRAM_SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_created")

_LABEL_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n"})


class UnknownFamilyError(LookupError):
    """A sample names a family that the metric tables do not have."""


def format_value(value: float) -> str | None:
    """A number as both formats write it; None for NaN and infinities, which are never exposed."""
    text = repr(value + 0.0)  # the sum makes floats of integers, and 0.0 of -0.0
    tail = text[-2:]
    if tail == ".0":
        return text[:-2]
    return None if tail in _NOT_FINITE else text


def sample_prefix(name: str, labels: Labels) -> str:
    """Line break, name and labels, up to and with the space in front of the value."""
    return f"\n{name}{{{label_pairs(labels)}}} " if labels else f"\n{name} "


def label_pairs(labels: Labels) -> str:
    """What stands between the braces."""
    values = "".join([value for _, value in labels])
    if "\\" in values or '"' in values or "\n" in values:
        labels = tuple((key, value.translate(_LABEL_ESCAPES)) for key, value in labels)
    return ",".join([f'{key}="{value}"' for key, value in labels])


def text_header(family: Family) -> str:
    """Comment lines of text 0.0.4, each with the line break in front."""
    kind = _TEXT_TYPES.get(family.type, family.type.value)
    return f"\n# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}\n# TYPE {family.name} {kind}"


def openmetrics_header(family: Family) -> str:
    """Comment lines of OpenMetrics 1.0.0, each with the line break in front."""
    name = family.name
    if family.type is Type.COUNTER:
        name = name.removesuffix("_total")
    elif family.type is Type.INFO:
        name = name.removesuffix("_info")
    kind = "unknown" if family.type is Type.BARE_COUNTER else family.type.value  # a counter's samples end in _total
    lines = f"\n# HELP {name} {family.help.translate(_LABEL_ESCAPES)}\n# TYPE {name} {kind}"
    # The standard wants the unit to be the end of the name, and none on info.
    if family.unit.suffix and family.type is not Type.INFO and name.endswith("_" + family.unit.suffix):
        lines += f"\n# UNIT {name} {family.unit.suffix}"
    return lines


def check_family(family: Family) -> None:
    """Raises ValueError where a family's name would not be valid in both formats."""
    if family.type is Type.COUNTER and not family.name.endswith("_total"):
        raise ValueError(f"family {family.name}: a counter's name must end in _total")
    if family.type is Type.INFO and not family.name.endswith("_info"):
        raise ValueError(f"family {family.name}: an info's name must end in _info")
    if family.type is Type.HISTOGRAM and family.name.endswith(_HISTOGRAM_SUFFIXES):
        raise ValueError(f"family {family.name}: a histogram's name must not end in _bucket, _count, _sum or _total")


def _bound_text(bound: float) -> str:
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]  # prometheus_client does not annotate it
    return text


def histogram_lines(histogram: Histogram) -> list[str]:
    """Cumulative buckets, count and sum of one series, as prefixes and values in turn.

    Bounds are written as Go does in OpenMetrics ("1.0", "2.592e+06"), in text 0.0.4 as well: Prometheus before 3.0
    stores `le` as it finds it, so a series would change its name with the negotiated format.
    """
    name, labels = histogram.family, histogram.labels
    bounds = [*(_bound_text(bound) for bound in histogram.bounds), "+Inf"]
    cumulative = list(accumulate(histogram.counts))
    parts: list[str] = []
    for bound, count in zip(bounds, cumulative, strict=True):
        parts += (sample_prefix(name + "_bucket", (*labels, ("le", bound))), str(count))
    parts += (sample_prefix(name + "_count", labels), str(cumulative[-1]))
    total = format_value(histogram.sum)
    if total is not None:
        parts += (sample_prefix(name + "_sum", labels), total)
    return parts


class _Line:
    """One series: what stands in front of its value, and the value that it was last written with."""

    __slots__ = ("labels", "prefix", "text", "value")

    def __init__(self, labels: Labels, prefix: str) -> None:
        self.labels = labels
        self.prefix = prefix
        self.value: float | None = None
        self.text = ""


class _FamilyCache:
    """Comment lines and label prefixes of one family, in two generations."""

    __slots__ = ("old", "openmetrics", "prefixes", "text")

    def __init__(self, family: Family) -> None:
        self.text = text_header(family)
        self.openmetrics = openmetrics_header(family)
        # By identity of the label tuple: hashing twelve pairs costs more than everything else about a line. The tuple
        # is kept beside its prefix, so that its identity cannot be given to another one.
        self.prefixes: dict[int, _Line] = {}
        self.old: dict[int, _Line] = {}


class Renderer:
    """Writes samples of known families; not thread-safe, one event loop owns it."""

    def __init__(self, families: Mapping[str, Family], *, keep_renders: int = KEEP_RENDERS) -> None:
        for family in families.values():
            check_family(family)
        self._families = dict(families)
        self._caches: dict[str, _FamilyCache] = {}
        self._keep_renders = keep_renders
        self._renders = 0

    @property
    def families(self) -> Mapping[str, Family]:
        """What this renderer can write."""
        return self._families

    @property
    def cached(self) -> int:
        """Label prefixes held now."""
        return sum(len(cache.prefixes) + len(cache.old) for cache in self._caches.values())

    def render(self, samples: Iterable[Sample | Histogram], openmetrics: bool) -> bytes:
        """One whole exposition."""
        return self.assemble(self.blocks(samples), openmetrics)

    def blocks(self, samples: Iterable[Sample | Histogram]) -> list[Block]:
        """Sample lines by family, in the order in which the families first appear; the same for both formats."""
        self._renders += 1
        if self._renders % self._keep_renders == 0:
            self._age()
        groups: dict[str, list[Sample | Histogram]] = {}
        current: str | None = None
        group: list[Sample | Histogram] = []
        for sample in samples:
            if sample.family != current:
                current = sample.family
                group = groups.setdefault(current, [])
            group.append(sample)
        return [(name, self._lines(name, members)) for name, members in groups.items()]

    def assemble(self, blocks: Sequence[Block], openmetrics: bool) -> bytes:
        """Comment lines and sample lines of one format as bytes."""
        parts: list[str] = []
        for name, lines in blocks:
            if lines:
                cache = self._cache(name)
                parts.append(cache.openmetrics if openmetrics else cache.text)
                parts += lines
        if openmetrics:
            parts.append("\n# EOF")
        if not parts:
            return b""
        parts[0] = parts[0][1:]
        parts.append("\n")
        return "".join(parts).encode("utf-8", "replace")

    def header(self, name: str, openmetrics: bool) -> str:
        """Comment lines of a family, each with the line break in front."""
        cache = self._cache(name)
        return cache.openmetrics if openmetrics else cache.text

    def _lines(self, name: str, members: Sequence[Sample | Histogram]) -> list[str]:
        cache = self._cache(name)
        prefixes, old = cache.prefixes, cache.old
        parts: list[str] = []
        for sample in members:
            if isinstance(sample, Histogram):
                parts += histogram_lines(sample)
                continue
            labels, value = sample.labels, sample.value
            line = prefixes.get(id(labels))
            if line is None:
                line = old.pop(id(labels), None) or _Line(labels, sample_prefix(name, labels))
                prefixes[id(labels)] = line
            if value != line.value:
                # format_value, written out: the call would be a fifth of this loop.
                text = repr(value + 0.0)
                tail = text[-2:]
                if tail == ".0":
                    text = text[:-2]
                elif tail in _NOT_FINITE:
                    continue
                line.value, line.text = value, text
            parts.append(line.prefix)
            parts.append(line.text)
        return parts

    def _cache(self, name: str) -> _FamilyCache:
        cache = self._caches.get(name)
        if cache is None:
            family = self._families.get(name)
            if family is None:
                raise UnknownFamilyError(f"sample of family {name!r}, which is in no metric table; add its row there")
            cache = self._caches[name] = _FamilyCache(family)
        return cache

    def _age(self) -> None:
        for name, cache in list(self._caches.items()):
            if cache.prefixes:
                cache.old, cache.prefixes = cache.prefixes, {}
            else:
                del self._caches[name]


class Exposition(Generic[S]):
    """One Snapshot in every form a scraper may ask for, each made when first asked for and then kept."""

    def __init__(self, snapshot: S, samples: Callable[[S], Sequence[Sample | Histogram]], renderer: Renderer) -> None:
        self.snapshot = snapshot
        self.render_seconds = 0.0  # what making the forms so far has cost
        self._samples = samples
        self._renderer = renderer
        self._blocks: list[Block] | None = None
        self._bodies: dict[tuple[bool, bool], bytes] = {}

    @property
    def plain_bytes(self) -> int:
        """Size before compression of a form made so far; 0 before the first."""
        return max((len(body) for (_, gzip), body in self._bodies.items() if not gzip), default=0)

    def body(self, openmetrics: bool, gzip: bool) -> bytes:
        """The bytes of one scrape."""
        found = self._bodies.get((openmetrics, gzip))
        if found is not None:
            return found
        plain = self.body(openmetrics, False) if gzip else None
        began = time.perf_counter()
        if plain is not None:
            made = _gzip(plain)
        else:
            if self._blocks is None:
                self._blocks = self._renderer.blocks(self._samples(self.snapshot))
            made = self._renderer.assemble(self._blocks, openmetrics)
        self._bodies[(openmetrics, gzip)] = made
        self.render_seconds += time.perf_counter() - began
        return made


def _gzip(plain: bytes) -> bytes:
    # Level 1: a sixth of the time of level 9 for a body a few per cent larger. 31: a gzip header and trailer, whose
    # time stamp zlib leaves at 0, so that equal bodies stay equal bytes.
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(plain) + compressor.flush()
