"""The boards as Grafana gets them: current, valid, tidy, and asking only for what exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from alerts.table import recordings
from alerts.upstream import NODE_TARGET_LABELS, TARGET_LABELS, UPSTREAM
from dashboards import palette
from dashboards.catalogue import BOARDS
from dashboards.grafana import COLUMNS, Dashboard, Link, Panel, Query, Row
from dashboards.look import colour_of
from dashboards.page import PAGE, text
from dashboards.spelling import to_json
from dashboards.write import JSON, as_text
from jsonschema import Draft202012Validator

from dashboard_lint import LEFT_OUT, RULES, panels, plain
from dashboard_schema import SCHEMA
from promql import Labels, own_series, read

MADE = {board.uid: to_json(board) for board in BOARDS}
EVERY_BOARD = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
_PLACE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|([A-Za-z_]\w*))")


def known_series() -> dict[str, Labels]:
    """Ours, those of others, and what is recorded of them."""
    known = own_series(TARGET_LABELS)
    known |= {row.name: frozenset(row.labels) | NODE_TARGET_LABELS for row in UPSTREAM.values()}
    for rule in recordings():
        known[rule.record] = read(rule.expr, known)[1]
    return known


KNOWN = known_series()


def links_of(panel: Panel) -> tuple[Link, ...]:
    return (*panel.links, *(link for column in panel.columns for link in column.links))


def labels_of(query: Query) -> Labels:
    return read(plain(query.expr), KNOWN)[1]


def test_files_are_current() -> None:
    # Write them with `python -m dashboards`.
    assert {path.name: path.read_text() for path in JSON.glob("*.json")} == {
        f"{board.uid}.json": as_text(board) for board in BOARDS
    }


def test_page_is_current() -> None:
    assert PAGE.read_text() == text(BOARDS)


def test_every_rule_of_the_linter_is_kept_or_left_out_with_a_reason() -> None:
    assert len(RULES) + len(LEFT_OUT) == 17
    assert not RULES.keys() & LEFT_OUT.keys()


@EVERY_BOARD
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_linter_has_nothing_to_say(board: Dashboard, rule: Any) -> None:
    assert list(rule(MADE[board.uid])) == []


@EVERY_BOARD
def test_schema_is_kept(board: Dashboard) -> None:
    found = Draft202012Validator(SCHEMA).iter_errors(json.loads(as_text(board)))
    assert [f"{error.json_path}: {error.message[:200]}" for error in found] == []


@EVERY_BOARD
def test_panels_do_not_overlap_and_stay_in_the_grid(board: Dashboard) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels(MADE[board.uid]):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


@EVERY_BOARD
def test_ids_are_unique_and_titles_too(board: Dashboard) -> None:
    made = MADE[board.uid]
    ids = [each["id"] for each in (*made["panels"], *panels(made))]
    assert len(set(ids)) == len({each["id"]: each["title"] for each in (*made["panels"], *panels(made))}.values())
    titles = [each["title"] for each in panels(made)]
    assert len(titles) == len(set(titles))


def test_boards_are_known_by_uids_that_stay() -> None:
    assert list(MADE) == [f"claimscope-{name}" for name in (
        "fleet", "claims", "claim", "node", "capacity", "health", "migration", "self"
    )]  # fmt: skip


@EVERY_BOARD
def test_links_lead_to_boards_and_variables_that_exist(board: Dashboard) -> None:
    boards = {each.uid: {variable.name for variable in each.variables} for each in BOARDS}
    wrong = [
        f"{panel.title}: {link.title} -> {link.to} {sorted(link.variables)}"
        for panel in board.panels()
        for link in links_of(panel)
        if not link.page
        if link.to not in boards or not link.variables.keys() <= boards[link.to]
        or not set(link.keep) <= {each.name for each in board.variables}
    ]  # fmt: skip
    assert wrong == []


@EVERY_BOARD
def test_links_take_values_that_the_panel_has(board: Dashboard) -> None:
    wrong: list[str] = []
    for panel in board.panels():
        titles = {column.title for column in panel.columns}
        labels = frozenset().union(*map(labels_of, panel.queries))
        for link in links_of(panel):
            for value in (*link.variables.values(), *re.findall(r"\$\{__.*?\}", link.page)):
                field = re.fullmatch(r"\$\{__data\.fields\.(.+)\}", value)
                label = re.fullmatch(r"\$\{__field\.labels\.(.+)\}", value)
                own = re.fullmatch(r"\$(\w+)", value)
                if (field is not None and field[1] in titles) or (label is not None and label[1] in labels):
                    continue
                if own is not None and own[1] in {each.name for each in board.variables}:
                    continue
                wrong.append(f"{panel.title}: {link.title}: {value}")
    assert wrong == []


def expressions(board: Dashboard) -> Iterator[tuple[str, str]]:
    """Where each query stands, and the query; those of variables without their function."""
    for panel in board.panels():
        for query in panel.queries:
            yield panel.title, query.expr
    for annotation in board.annotations:
        yield f"annotation {annotation.name}", annotation.expr
    for variable in board.variables:
        found = re.fullmatch(r"label_values\((.+), \w+\)|query_result\((.+)\)", variable.query, re.DOTALL)
        if found is not None:
            yield f"variable {variable.name}", found[1] or found[2]


@EVERY_BOARD
def test_metrics_and_labels_exist(board: Dashboard) -> None:
    faults = [f"{where}: {fault}" for where, expr in expressions(board) for fault in read(plain(expr), KNOWN)[0].faults]
    assert faults == []


@EVERY_BOARD
def test_variables_are_of_labels_that_exist(board: Dashboard) -> None:
    for variable in board.variables:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable.query)
        if found is not None:
            assert found[2] in read(plain(found[1]), KNOWN)[1], variable.name


@EVERY_BOARD
def test_legends_and_columns_name_labels_of_their_queries(board: Dashboard) -> None:
    wrong: list[str] = []
    for panel in board.panels():
        for query in panel.queries:
            missing = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", query.legend)) - labels_of(query)
            wrong += [f"{panel.title}: legend {label}" for label in sorted(missing)]
        letters = {chr(ord("A") + index) for index in range(len(panel.queries))}
        labels = frozenset().union(*map(labels_of, panel.queries))
        wrong += [
            f"{panel.title}: column {column.source}" for column in panel.columns
            if column.source not in labels | letters | {"Time"}
        ]  # fmt: skip
        titles = {column.title for column in panel.columns}
        if panel.sort_by and panel.sort_by.removeprefix("-") not in titles:
            wrong.append(f"{panel.title}: sorted by {panel.sort_by}")
    assert wrong == []


@EVERY_BOARD
def test_annotations_name_labels_of_their_queries(board: Dashboard) -> None:
    for each in board.annotations:
        labels = read(plain(each.expr), KNOWN)[1]
        assert set(re.findall(r"\{\{(\w+)\}\}", each.title + each.text)) <= labels, each.name


@EVERY_BOARD
def test_variables_are_defined_and_used(board: Dashboard) -> None:
    used = {found[1] or found[2] for found in _PLACE.finditer(as_text(board))}
    own = {name for name in used if not name.startswith("__")}
    assert own == {variable.name for variable in board.variables}


@EVERY_BOARD
def test_every_board_has_what_readers_expect_of_each(board: Dashboard) -> None:
    names = [variable.name for variable in board.variables]
    assert names[:2] == ["datasource", "cluster"]
    assert board.annotations
    assert board.description.endswith((".", "?"))
    assert sum(1 for _ in board.panels()) <= 30, "a wall of graphs"


# Tiles that count what is in a state: from the first one on they have its colour.
_COUNTED = {
    "Unhealthy": "unhealthy", "Lost": "lost", "Degraded": "degraded", "Claims that wait": "pending",
    "Kept from work": "tainted", "Claims without devices": "pending",
}  # fmt: skip


def _of_title(panel: Panel) -> Iterator[tuple[str, str]]:
    if panel.kind == "stat" and panel.title in _COUNTED:
        yield _COUNTED[panel.title], panel.thresholds[-1].colour


@EVERY_BOARD
def test_a_state_has_the_same_colour_everywhere(board: Dashboard) -> None:
    other = [
        f"{panel.title}: {word} is {colour}, elsewhere {palette.STATES[word]}"
        for panel in board.panels()
        for word, colour in (
            *panel.colours.items(),
            *((pattern.removeprefix(".*: ").removesuffix(".*"), colour) for pattern, colour in panel.patterns.items()),
            *panel.words.values(),
            *_of_title(panel),
            *(pair for column in panel.columns for pair in column.colours.items()),
        )
        if word in palette.STATES and colour != palette.STATES[word]
    ]
    assert other == []


@EVERY_BOARD
def test_colours_are_those_of_the_palette(board: Dashboard) -> None:
    allowed = {
        palette.GOOD, palette.NOTICE, palette.WARNING, palette.BAD, palette.GONE, palette.NEUTRAL, palette.SOON,
        palette.QUIET, palette.ALMOST, "text", "transparent", *palette.MEMBERS, *palette.THROTTLE.values(),
    }  # fmt: skip
    used = {
        step.colour for panel in board.panels()
        for steps in (panel.thresholds, *(column.thresholds for column in panel.columns)) for step in steps
    }  # fmt: skip
    used |= {
        colour for panel in board.panels() for colour in (*panel.colours.values(), *panel.patterns.values())
    }  # fmt: skip
    assert used <= allowed


def test_gpus_beside_each_other_have_no_colour_of_a_state() -> None:
    ours = {palette.GOOD, palette.NOTICE, palette.WARNING, palette.BAD, palette.GONE, *palette.THROTTLE.values()}
    known = {colour_of(colour) for colour in ours} - {colour_of(palette.NEUTRAL), colour_of(palette.SOON)}
    assert not {colour_of(colour) for colour in palette.MEMBERS} & known


@pytest.mark.parametrize("scale", [palette.HEALTH, palette.CLAIM, palette.MODE, palette.BREAKER])
def test_states_of_one_scale_can_be_told_apart(scale: dict[str, tuple[int, str]]) -> None:
    assert len({colour for _, colour in scale.values()}) == len(scale)


@EVERY_BOARD
def test_state_timelines_show_their_states(board: Dashboard) -> None:
    # With the colour mode "thresholds" Grafana merges values between two thresholds, and mappings are never asked.
    wrong = [
        panel["title"] for panel in panels(MADE[board.uid]) if panel["type"] == "state-timeline"
        and (
            panel["fieldConfig"]["defaults"]["color"]["mode"] == "thresholds"
            or panel["options"]["showValue"] != "auto" or not panel["fieldConfig"]["defaults"]["mappings"]
        )
    ]  # fmt: skip
    assert wrong == []


@EVERY_BOARD
def test_what_an_empty_table_says_is_not_said_in_its_empty_cells(board: Dashboard) -> None:
    # Of overrides Grafana applies each in turn, so that this one holds for all columns.
    first = {
        panel["title"]: panel["fieldConfig"]["overrides"][0]
        for panel in panels(MADE[board.uid]) if panel["type"] == "table"
    }  # fmt: skip
    assert {
        title: override for title, override in first.items() if override != {
            "matcher": {"id": "byRegexp", "options": ".*"}, "properties": [{"id": "noValue", "value": "–"}],
        }
    } == {}  # fmt: skip


@EVERY_BOARD
def test_nothing_is_a_zero_only_because_nobody_says_anything(board: Dashboard) -> None:
    # vector(0) is there while the controller and all agents are gone.
    assert [where for where, expr in expressions(board) if "vector(" in expr] == []


@EVERY_BOARD
def test_tiles_of_which_nothing_is_known_are_not_green(board: Dashboard) -> None:
    wrong = [
        panel["title"] for panel in panels(MADE[board.uid])
        if panel["type"] == "stat" and panel["options"]["colorMode"] == "background"
        and not any(
            each["type"] == "special" and each["options"]["match"] == "null"
            and each["options"]["result"]["color"] in (palette.QUIET, palette.BAD)
            for each in panel["fieldConfig"]["defaults"]["mappings"]
        )
    ]  # fmt: skip
    assert wrong == []


@EVERY_BOARD
def test_thresholds_rise(board: Dashboard) -> None:
    for panel in board.panels():
        for steps in (panel.thresholds, *(column.thresholds for column in panel.columns)):
            assert not steps or steps[0].value is None, panel.title
            values = [step.value for step in steps[1:]]
            assert all(a is not None and b is not None and a < b for a, b in pairwise(values)), panel.title


def _one(*panels_: Panel) -> Dashboard:
    return Dashboard(uid="u", title="t", description="d.", variables=(), rows=(Row(title="r", panels=panels_),))


def _panel(title: str, width: int, height: int, *, under: bool = False) -> Panel:
    return Panel(kind="stat", title=title, description="d.", width=width, height=height, under=under)


def test_panels_flow_into_rows_and_may_stand_under_another() -> None:
    board = _one(_panel("a", 16, 8), _panel("b", 8, 4), _panel("c", 8, 4, under=True), _panel("d", 12, 6))
    made = to_json(board)["panels"]
    assert [(each["title"], *each["gridPos"].values()) for each in made] == [
        ("r", 1, 24, 0, 0), ("a", 8, 16, 0, 1), ("b", 4, 8, 16, 1), ("c", 4, 8, 16, 5), ("d", 6, 12, 0, 9),
    ]  # fmt: skip


def test_two_panels_of_one_title_are_refused() -> None:
    with pytest.raises(ValueError, match="two panels are called `a`"):
        to_json(_one(_panel("a", 4, 4), _panel("a", 4, 4)))


def test_a_link_keeps_time_and_variables() -> None:
    link = Link(title="This node", to="claimscope-node", variables={"node": "${__data.fields.Node}"})
    assert link.url == (
        "/d/claimscope-node?${datasource:queryparam}&${cluster:queryparam}"
        "&var-node=${__data.fields.Node}&${__url_time_range}"
    )
