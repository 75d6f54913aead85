"""How previews write values and draw panels, and how queries are filled in as Grafana fills them."""

from __future__ import annotations

import pytest
from dashboards.grafana import Column, Dashboard, Panel, Query, Row, Step, Variable
from dashboards.look import colour_at, written
from dashboards.picture import page
from dashboards.plots import coloured
from dashboards.stage import Series, Shown, Times, filled

TIMES = Times(start=1_700_000_000.0, end=1_700_000_060.0)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.256, "percentunit", "26%"), (0.0, "percentunit", "0%"), (0.043, "percentunit", "4.3%"),
        (8.0, "s", "8 s"), (0.05, "s", "50 ms"), (5400.0, "s", "1.5 hours"), (200_000.0, "s", "2.3 days"),
        (85_520_809_984.0, "bytes", "79.6 GiB"), (3_151_221_311.0, "Bps", "3.2 GB/s"), (1.98e9, "hertz", "2.0 GHz"),
        (4831.9, "watt", "4.8 kW"), (269.0, "watth", "269 Wh"), (91.0, "celsius", "91 °C"),
        (0.7749, "currencyUSD", "$0.77"), (24.0, "short", "24"), (1234.0, "short", "1.2 k"),
        (1_700_000_000_000.0, "dateTimeAsIso", "2023-11-14 22:13:20"), (float("nan"), "short", "NaN"),
    ],
)  # fmt: skip
def test_values_are_written_as_grafana_writes_them(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


def test_the_last_step_that_is_reached_gives_the_colour() -> None:
    steps = (Step(colour="green"), Step(colour="orange", value=1), Step(colour="red", value=5))
    assert [colour_at(value, steps) for value in (0, 1, 4.9, 5)] == ["#73bf69", "#ff9830", "#ff9830", "#f2495c"]


def test_variables_are_filled_in_and_references_of_patterns_are_kept() -> None:
    values = {"cluster": ".*", "__rate_interval": "10s"}
    assert filled('label_replace(rate(x{c=~"${cluster}"}[$__rate_interval]), "a", "$1", "b", "(.+)")', values) == (
        'label_replace(rate(x{c=~".*"}[10s]), "a", "$1", "b", "(.+)")'
    )


def test_a_variable_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        filled('up{job="$nobody"}', {})


def test_grafanas_own_variables_follow_the_time_range() -> None:
    assert TIMES.variables() == {
        "__rate_interval": "10s", "__rate_interval_ms": "10000", "__interval": "1s", "__interval_ms": "1000",
        "__range": "60s", "__range_s": "60",
    }  # fmt: skip


def _series(value: float, **labels: str) -> Series:
    return Series(labels=labels, points=((TIMES.start, value), (TIMES.end, value)))


def _page(panel: Panel, *answers: tuple[Series, ...]) -> str:
    board = Dashboard(
        uid="u", title="Board", description="d.", rows=(Row(title="$namespace", panels=(panel,)),),
        variables=(Variable(name="namespace", label="Namespace", query="label_values(up, namespace)"),),
    )  # fmt: skip
    shown = Shown(
        board=board, times=TIMES, values={"namespace": "<team>"}, choices={}, marks={},
        answers={(panel.title, index): answer for index, answer in enumerate(answers)},
    )  # fmt: skip
    return page(shown)[0]


def test_rows_of_a_table_are_joined_by_the_labels_they_share() -> None:
    table = Panel(
        kind="table", title="Claims", description="d.", queries=(Query(expr="a"), Query(expr="b")), sort_by="-Cost",
        columns=(
            Column(source="claim", title="Claim"), Column(source="class", title="Class"),
            Column(source="B", title="Cost", unit="currencyUSD"),
        ),
    )  # fmt: skip
    made = _page(
        table, (_series(1, claim="one", **{"class": "gpu"}), _series(1, claim="two", **{"class": "mig"})),
        (_series(2.5, claim="one"), _series(7, claim="two")),
    )  # fmt: skip
    assert "<tr><td>two</td><td>mig</td><td class=n>$7.00</td></tr><tr><td>one</td><td>gpu</td>" in made


def test_a_cell_without_a_value_does_not_say_what_an_empty_table_says() -> None:
    table = Panel(
        kind="table", title="Claims", description="d.", queries=(Query(expr="a"), Query(expr="b")),
        no_value="no claim waits", columns=(Column(source="claim", title="Claim"), Column(source="B", title="Age")),
    )  # fmt: skip
    made = _page(table, (_series(1, claim="one"), _series(1, claim="two")), (_series(2.5, claim="one"),))
    assert "<tr><td>two</td><td class=n>–</td></tr>" in made
    assert "no claim waits" not in made


@pytest.mark.parametrize(("colour", "painted"), [("", "#8e8e8e"), ("red", "#f2495c")])
def test_a_tile_without_data_is_grey_or_has_the_colour_it_was_given(colour: str, painted: str) -> None:
    tile = Panel(
        kind="stat", title="Leaders", description="d.", queries=(Query(expr="a"),), background=True,
        no_value="unknown", no_value_colour=colour, thresholds=(Step(colour="green"),),
    )  # fmt: skip
    made = _page(tile, ())
    assert f"background:{painted}" in made
    assert '<div class="empty">unknown</div>' in made


def test_series_may_have_the_colour_of_a_pattern() -> None:
    panel = Panel(
        kind="timeseries", title="t", description="d.", queries=(Query(expr="a"),), patterns={".*: hot": "red"},
        colours={"GPU 1: hot": "blue"},
    )  # fmt: skip
    drawn = coloured(panel, [(name, _series(1)) for name in ("GPU 0: hot", "GPU 1: hot", "GPU 2: hotter")])
    assert [each.colour for each in drawn] == ["#f2495c", "#5794f2", "#ff9830"]


def test_states_are_named_in_their_bars() -> None:
    panel = Panel(
        kind="state-timeline", title="t", description="d.", queries=(Query(expr="a", legend="{{uuid}}"),),
        words={1.0: ("lost", "purple")},
    )  # fmt: skip
    assert ">lost</text>" in _page(panel, (_series(1, uuid="GPU-0"),))


def test_a_page_says_that_it_is_a_preview_and_escapes_what_it_shows() -> None:
    made = _page(Panel(kind="stat", title="Held", description="d.", queries=(Query(expr="a"),)), (_series(3),))
    assert "preview, drawn from the demo's data" in made
    assert "&lt;team&gt;" in made
    assert "<team>" not in made


@pytest.mark.parametrize("kind", ["timeseries", "stat", "bargauge", "table", "state-timeline", "heatmap"])
def test_a_panel_without_data_says_what_that_means(kind: str) -> None:
    panel = Panel(kind=kind, title="t", description="d.", queries=(Query(expr="a"),), no_value="nobody waits")  # type: ignore[arg-type]
    assert '<div class="empty">nobody waits</div>' in _page(panel, ())


@pytest.mark.parametrize("kind", ["timeseries", "state-timeline", "heatmap"])
def test_panels_over_time_are_drawn(kind: str) -> None:
    panel = Panel(kind=kind, title="t", description="d.", queries=(Query(expr="a", legend="{{le}}"),))  # type: ignore[arg-type]
    made = _page(panel, (_series(1, le="1"), _series(4, le="+Inf")))
    assert made.count("<svg") == 1
    assert "22:13:" in made


def test_a_row_that_begins_closed_is_drawn_as_its_heading() -> None:
    inside = Panel(kind="stat", title="Inside", description="d.", queries=(Query(expr="a"),), height=8)
    after = Panel(kind="stat", title="After", description="d.", queries=(Query(expr="a"),))
    board = Dashboard(
        uid="u", title="Board", description="d.", variables=(),
        rows=(Row(title="Closed", panels=(inside,), collapsed=True), Row(title="Open", panels=(after,))),
    )  # fmt: skip
    answers = {("Inside", 0): (_series(1),), ("After", 0): (_series(2),)}
    made, height = page(Shown(board=board, times=TIMES, values={}, choices={}, marks={}, answers=answers))
    assert "› Closed <i>(1 panels)</i>" in made
    assert "<h3>Inside</h3>" not in made
    assert "<h3>After</h3>" in made
    assert height < 78 + (1 + 1 + 8 + 1) * 38  # without room for what is closed


@pytest.mark.parametrize(
    ("legend", "colours"), [("{{namespace}}", {"one": 1, "two": 2}), ("{{pod}}", {"one": 1, "two": 1})]
)
def test_a_namespace_has_the_colour_of_its_name_and_others_that_of_their_place(
    legend: str, colours: dict[str, int]
) -> None:
    panel = Panel(kind="timeseries", title="t", description="d.", queries=(Query(expr="a", legend=legend),))
    first = {name: coloured(panel, [(name, _series(1))])[0].colour for name in colours}
    assert len(set(first.values())) == len(set(colours.values()))
    alone, second = coloured(panel, [("one", _series(1)), ("two", _series(1))])
    assert (alone.colour, second.colour == first["two"]) == (first["one"], legend == "{{namespace}}")
