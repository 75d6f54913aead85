"""In which format and encoding does a client want its answer?

RFC 9110 12.5 for the syntax, Prometheus' content negotiation for the meaning. A scrape is never refused for an odd
header: what is malformed is passed over, and what is left without a match gets text 0.0.4, uncompressed.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Format(enum.Enum):
    """What /metrics can answer with; the value is the Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """One element of an Accept or Accept-Encoding header."""

    name: str  # "text/plain", "*/*", "gzip"; lower case
    quality: float
    parameters: Mapping[str, str] = field(default_factory=dict)  # keys in lower case, without q


_MAX_HEADER = 4096  # what lies behind is passed over; a scraper's header has some 200 characters
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+(/[!#$%&'*+\-.^_`|~0-9a-z]+)?", re.ASCII)
_QUALITY = re.compile(r"(0(\.\d{0,3})?|1(\.0{0,3})?|\.\d{1,3})", re.ASCII)
_OPENMETRICS_VERSIONS = frozenset({"1.0.0"})
_TEXT_VERSIONS = frozenset({"0.0.4"})


def _split(text: str, separator: str) -> list[str]:
    """Splits outside of quoted strings."""
    parts: list[str] = []
    start = 0
    quoted = escaped = False
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return parts


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def parse(header: str | None) -> tuple[Range, ...]:
    """The well-formed elements of a header, in their order."""
    ranges: list[Range] = []
    for element in _split((header or "")[:_MAX_HEADER], ","):
        name, *rest = (part.strip() for part in _split(element, ";"))
        name = name.lower()
        if not _TOKEN.fullmatch(name):
            continue
        quality = 1.0
        parameters: dict[str, str] = {}
        good = True
        for part in rest:
            key, equals, value = part.partition("=")
            key, value = key.strip().lower(), _unquote(value.strip())
            if key == "q":
                good = _QUALITY.fullmatch(value) is not None
                if not good:
                    break
                quality = float(value)
            elif equals and key:
                parameters[key] = value
        if good:
            ranges.append(Range(name=name, quality=quality, parameters=parameters))
    return tuple(ranges)


def _match(made: Range, kind: str, versions: frozenset[str]) -> int:
    """How closely an element names a media type: 0 not at all, 3 exactly."""
    if made.name == kind:
        version = made.parameters.get("version")
        return 3 if version is None or version in versions else 0
    if made.name == kind.partition("/")[0] + "/*":
        return 2
    return 1 if made.name == "*/*" else 0


def _best(ranges: tuple[Range, ...], kind: str, versions: frozenset[str]) -> tuple[float, int]:
    """Quality and closeness of a media type: the closest element decides; among equals the kindest does."""
    closeness, quality = max(
        ((_match(made, kind, versions), made.quality) for made in ranges), default=(0, 0.0)
    )
    return (quality, closeness) if closeness else (0.0, 0)


def choose_format(accept: str | None) -> Format:
    """The format for an Accept header; text 0.0.4 where nothing else was asked for by name."""
    ranges = parse(accept)
    text_quality, _ = _best(ranges, "text/plain", _TEXT_VERSIONS)
    open_quality, open_closeness = _best(ranges, "application/openmetrics-text", _OPENMETRICS_VERSIONS)
    # Only a client that names OpenMetrics can be taken to read it: browsers and curl send wildcards.
    if open_closeness < 3 or open_quality <= 0 or text_quality > open_quality:
        return Format.TEXT
    return Format.OPENMETRICS


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether an Accept-Encoding header allows gzip."""
    qualities = {made.name: made.quality for made in parse(accept_encoding)}
    for name in ("gzip", "x-gzip", "*"):
        if name in qualities:
            return qualities[name] > 0 and qualities[name] >= qualities.get("identity", 0.0)
    return False


def wants_json(accept: str | None) -> bool:
    """Whether a client names JSON and does not like plain text better."""
    ranges = parse(accept)
    json_quality, closeness = _best(ranges, "application/json", frozenset())
    return closeness == 3 and json_quality > 0 and json_quality >= _best(ranges, "text/plain", frozenset())[0]
