import gzip
import os
import subprocess
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.export.collect import Collector
from claimscope.export.process import ProcessSamples
from claimscope.export.text import Exposition, Renderer, UnknownFamilyError, format_value
from claimscope.metrics.spec import Family, Type, Unit
from claimscope.model import Histogram, Sample
from exposition import QUANTITIES, SNAPSHOT, parsed, series_of

GOLDEN = Path(__file__).parent / "golden"
GAUGE = Family(name="gpu_x_watts", help='Odd "help" \\ of\ntwo lines.', type=Type.GAUGE, unit=Unit.WATTS, labels=("a",))
COUNTER = Family(name="gpu_n_bytes_total", help="Bytes.", type=Type.COUNTER, unit=Unit.BYTES, labels=())
FACT = Family(name="gpu_fact_info", help="A fact.", type=Type.INFO, unit=Unit.ONE, labels=("a",))
FAMILIES = {family.name: family for family in (GAUGE, COUNTER, FACT)}

SAMPLES = [
    Sample(family="gpu_x_watts", labels=(("a", 'q"\\\n'),), value=1.5),
    Sample(family="gpu_n_bytes_total", labels=(), value=12345678901.0),
    Sample(family="gpu_fact_info", labels=(("a", ""),), value=1.0),
]


def test_text_literally() -> None:
    assert Renderer(FAMILIES).render(SAMPLES, openmetrics=False).decode() == (
        '# HELP gpu_x_watts Odd "help" \\\\ of\\ntwo lines.\n'
        "# TYPE gpu_x_watts gauge\n"
        'gpu_x_watts{a="q\\"\\\\\\n"} 1.5\n'
        "# HELP gpu_n_bytes_total Bytes.\n"
        "# TYPE gpu_n_bytes_total counter\n"
        "gpu_n_bytes_total 12345678901\n"
        "# HELP gpu_fact_info A fact.\n"
        "# TYPE gpu_fact_info gauge\n"
        'gpu_fact_info{a=""} 1\n'
    )


def test_openmetrics_literally() -> None:
    assert Renderer(FAMILIES).render(SAMPLES, openmetrics=True).decode() == (
        '# HELP gpu_x_watts Odd \\"help\\" \\\\ of\\ntwo lines.\n'
        "# TYPE gpu_x_watts gauge\n"
        "# UNIT gpu_x_watts watts\n"
        'gpu_x_watts{a="q\\"\\\\\\n"} 1.5\n'
        "# HELP gpu_n_bytes Bytes.\n"
        "# TYPE gpu_n_bytes counter\n"
        "# UNIT gpu_n_bytes bytes\n"
        "gpu_n_bytes_total 12345678901\n"
        "# HELP gpu_fact A fact.\n"
        "# TYPE gpu_fact info\n"
        'gpu_fact_info{a=""} 1\n'
        "# EOF\n"
    )


TIMES = Family(name="gpu_t_seconds", help="Times.", type=Type.HISTOGRAM, unit=Unit.SECONDS, labels=("a",))


def times(bounds: tuple[float, ...], counts: tuple[int, ...], total: float) -> Histogram:
    return Histogram(family="gpu_t_seconds", labels=(("a", 'q"'),), bounds=bounds, counts=counts, sum=total)


@pytest.mark.parametrize(
    ("openmetrics", "head", "tail"),
    [
        (False, "", ""),
        (True, "# UNIT gpu_t_seconds seconds\n", "# EOF\n"),
    ],
)
def test_histogram_literally_with_bounds_alike_in_both_formats(openmetrics: bool, head: str, tail: str) -> None:
    series = times((0.05, 1, 2592000), (2, 0, 3, 1), 4000001.5)

    assert Renderer({"gpu_t_seconds": TIMES}).render([series], openmetrics=openmetrics).decode() == (
        "# HELP gpu_t_seconds Times.\n"
        "# TYPE gpu_t_seconds histogram\n"
        f"{head}"
        'gpu_t_seconds_bucket{a="q\\"",le="0.05"} 2\n'
        'gpu_t_seconds_bucket{a="q\\"",le="1.0"} 2\n'
        'gpu_t_seconds_bucket{a="q\\"",le="2.592e+06"} 5\n'
        'gpu_t_seconds_bucket{a="q\\"",le="+Inf"} 6\n'
        'gpu_t_seconds_count{a="q\\""} 6\n'
        'gpu_t_seconds_sum{a="q\\""} 4000001.5\n'
        f"{tail}"
    )


@given(
    st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20, unique=True).map(sorted),
    st.data(),
    st.floats(0, 1e12),
    st.booleans(),
)
def test_every_histogram_comes_back_from_the_parser(
    bounds: list[float], data: st.DataObject, total: float, openmetrics: bool
) -> None:
    counts = data.draw(st.lists(st.integers(0, 10**6), min_size=len(bounds) + 1, max_size=len(bounds) + 1))

    text = Renderer({"gpu_t_seconds": TIMES}).render([times(tuple(bounds), tuple(counts), total)], openmetrics)
    series = parsed(text.decode(), openmetrics)

    found = {float(dict(labels)["le"]): value for (name, labels), value in series.items() if name.endswith("_bucket")}
    running = list(accumulate(counts))
    assert found == dict(zip([*bounds, float("inf")], running, strict=True))
    assert series[("gpu_t_seconds_count", (("a", 'q"'),))] == running[-1]
    assert series[("gpu_t_seconds_sum", (("a", 'q"'),))] == total


@pytest.mark.parametrize("name", ["gpu_t_count", "gpu_t_sum", "gpu_t_bucket", "gpu_t_total"])
def test_histogram_with_the_name_of_a_part_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must not end in"):
        Renderer({name: replace(TIMES, name=name)})


def test_nothing_renders_as_nothing() -> None:
    assert Renderer(FAMILIES).render([], openmetrics=False) == b""
    assert Renderer(FAMILIES).render([], openmetrics=True) == b"# EOF\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (0.93, "0.93"),
        (1700000000.25, "1700000000.25"),
        (2.0**53, "9007199254740992"),
        (1e16, "1e+16"),
        (1e300, "1e+300"),
        (-3.5, "-3.5"),
        (7, "7"),
        (True, "1"),
        (float("nan"), None),
        (float("inf"), None),
        (float("-inf"), None),
    ],
)
def test_values(value: float, text: str | None) -> None:
    sample = Sample(family="gpu_n_bytes_total", labels=(), value=value)
    rendered = Renderer(FAMILIES).render([sample], openmetrics=False)

    assert format_value(value) == text
    assert rendered.decode().splitlines()[2:] == ([] if text is None else [f"gpu_n_bytes_total {text}"])


def test_a_family_of_which_nothing_can_be_shown_is_left_out() -> None:
    sample = Sample(family="gpu_x_watts", labels=(("a", ""),), value=float("nan"))

    assert Renderer(FAMILIES).render([sample], openmetrics=False) == b""


def test_samples_of_a_family_are_brought_together() -> None:
    first, second = (Sample(family="gpu_x_watts", labels=(("a", name),), value=1.0) for name in "xy")

    text = Renderer(FAMILIES).render([first, SAMPLES[1], second], openmetrics=True).decode()

    assert len(parsed(text, openmetrics=True)) == 3


def test_unknown_family_is_named() -> None:
    with pytest.raises(UnknownFamilyError, match="gpu_y"):
        Renderer(FAMILIES).render([Sample(family="gpu_y", labels=(), value=1.0)], openmetrics=False)


@pytest.mark.parametrize("name", ["gpu_bytes", "gpu_total_bytes"])
def test_counter_without_total_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must end in _total"):
        Renderer({name: replace(COUNTER, name=name)})


def test_prefixes_that_are_no_longer_used_are_dropped() -> None:
    renderer = Renderer(FAMILIES, keep_renders=2)
    for turn in range(100):
        renderer.render([Sample(family="gpu_x_watts", labels=(("a", str(turn)),), value=1.0)], openmetrics=False)

    assert renderer.cached <= 4


def test_older_exposition_can_still_be_given_in_the_other_format() -> None:
    renderer = Renderer(FAMILIES, keep_renders=1)
    old = Exposition(SNAPSHOT, lambda _: SAMPLES, renderer)
    old.body(openmetrics=False, gzip=False)
    for _ in range(5):
        renderer.render([], openmetrics=False)

    assert old.body(openmetrics=True, gzip=False).endswith(b"# EOF\n")


text_without_line_ends = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(text_without_line_ends, max_size=5, unique=True), st.booleans())
def test_every_label_value_comes_back_from_the_parser(values: list[str], openmetrics: bool) -> None:
    samples = [Sample(family="gpu_x_watts", labels=(("a", value),), value=2.0) for value in values]

    text = Renderer(FAMILIES).render(samples, openmetrics=openmetrics).decode()

    assert parsed(text, openmetrics) == series_of(samples)


@given(st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_every_value_comes_back_from_the_parser(value: float, openmetrics: bool) -> None:
    sample = Sample(family="gpu_x_watts", labels=(("a", ""),), value=value)

    text = Renderer(FAMILIES).render([sample], openmetrics=openmetrics).decode()

    assert parsed(text, openmetrics) == {("gpu_x_watts", (("a", ""),)): value}


@pytest.mark.parametrize(("name", "openmetrics"), [("metrics.txt", False), ("metrics.openmetrics.txt", True)])
def test_whole_answer_is_the_golden_file(name: str, openmetrics: bool) -> None:
    collector = Collector(QUANTITIES)
    samples = collector.collect(SNAPSHOT)
    made = Renderer(collector.families).render(samples, openmetrics=openmetrics)
    path = GOLDEN / name
    if os.environ.get("CLAIMSCOPE_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(made)

    assert made.decode() == path.read_text(), "run `make golden` if this change is meant"
    assert parsed(made.decode(), openmetrics) == series_of(samples)


def test_promtool_finds_no_fault(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "metrics"], input=(GOLDEN / "metrics.txt").read_bytes(), capture_output=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_exposition_makes_each_form_once_and_gzip_of_the_same_bytes() -> None:
    calls = []

    def samples(_: object) -> list[Sample]:
        calls.append(1)
        return SAMPLES

    exposition = Exposition(SNAPSHOT, samples, Renderer(FAMILIES))
    forms = [exposition.body(openmetrics, False) for openmetrics in (False, True)]
    packed = [exposition.body(openmetrics, True) for openmetrics in (False, True)]

    assert [gzip.decompress(body) for body in packed] == forms
    assert exposition.body(True, True) is packed[1]
    assert len(calls) == 1
    assert exposition.plain_bytes == max(map(len, forms))


@pytest.mark.parametrize("openmetrics", [False, True])
def test_own_process_in_both_formats(openmetrics: bool) -> None:
    process = ProcessSamples()
    samples = process.samples()

    text = Renderer(process.families).render(samples, openmetrics=openmetrics).decode()

    assert parsed(text, openmetrics) == series_of(samples)
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "python_info"} <= {
        sample.family for sample in samples
    }
