"""Do the boards keep the rules of grafana/dashboard-linter? Its seventeen rules, over the JSON that Grafana imports.

Written again here because the linter needs a newer Go than most machines have, and checks nothing but Prometheus and
Loki boards anyway. Rules as of its commit 4d0844b (lint/rules.go); `RULES` holds those that apply, `LEFT_OUT` the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import promql_parser as promql

from promql import nodes

Json = Mapping[str, Any]
Rule = Callable[[Json], Iterator[str]]

LEFT_OUT: Final = {
    "template-job-rule": "the boards select by cluster, node, namespace and claim; a job name is up to who scrapes",
    "template-instance-rule": "as above: a node is known by its name, not by the address it is scraped at",
    "target-job-rule": "as template-job-rule",
    "target-instance-rule": "as template-instance-rule",
    "target-logql-rule": "there is no Loki here",
    "target-logql-auto-rule": "there is no Loki here",
}

# What Grafana replaces, by something that PromQL can parse; the linter does the same with numbers of its own.
_PLACES: Final = (
    (re.compile(r"\$__(?:rate_interval|interval|range)\b"), "5m"),
    (re.compile(r"\$__(?:interval_ms|rate_interval_ms|range_s|range_ms)\b"), "1000"),
    (re.compile(r"\$price\b"), "1"),
    (re.compile(r"\$[a-z]\w*"), "x"),
)
# Units of Grafana 11's list (packages/grafana-data/src/valueFormats/categories.ts) that the boards use.
UNITS: Final = frozenset({
    "none", "short", "percentunit", "s", "h", "bytes", "Bps", "watt", "watth", "kwatth", "joule", "celsius", "hertz",
    "currencyUSD", "ops", "cps", "reqps", "dateTimeAsIso", "dateTimeFromNow", "decbytes", "binBps", "rotrpm",
})  # fmt: skip
_UNITLESS: Final = ("text", "row", "table", "state-timeline", "heatmap", "logs")


def plain(expr: str) -> str:
    """A query as PromQL, with Grafana's variables replaced."""
    for pattern, value in _PLACES:
        expr = pattern.sub(value, expr)
    return expr


def panels(board: Json) -> Iterator[Json]:
    """Panels, those of collapsed rows too, without the rows."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def targets(board: Json) -> Iterator[tuple[Json, Json]]:
    """Queries with their panels."""
    for panel in panels(board):
        for target in panel.get("targets", ()):
            yield panel, target


def variables(board: Json, kind: str) -> list[Json]:
    """Variables of a kind."""
    return [each for each in board["templating"]["list"] if each["type"] == kind]


def template_datasource(board: Json) -> Iterator[str]:
    """One data source, called `datasource` and labelled "Data source"."""
    found = [(each["name"], each["label"]) for each in variables(board, "datasource")]
    if found != [("datasource", "Data source")]:
        yield f"data source variables: {found}"


def template_label_promql(board: Json) -> Iterator[str]:
    """What stands in label_values can be parsed."""
    for each in variables(board, "query"):
        text = each["query"]["query"]
        found = re.fullmatch(r"label_values\((?:(.+),\s*)?\w+\)|query_result\((.+)\)", text, re.DOTALL)
        if found is None:
            yield f"variable {each['name']}: {text}"
        elif found[1] or found[2]:
            promql.parse(plain(found[1] or found[2]))


def template_on_time_change_reload(board: Json) -> Iterator[str]:
    """Choices follow the time range."""
    for each in variables(board, "query"):
        if each["refresh"] != 2:
            yield f"variable {each['name']}: refresh {each['refresh']}"


def panel_datasource(board: Json) -> Iterator[str]:
    """Panels and queries ask the chosen data source."""
    for panel in panels(board):
        for part in (panel, *panel.get("targets", ())):
            if panel["type"] != "text" and part["datasource"]["uid"] not in ("$datasource", "${datasource}"):
                yield f"{panel['title']}: {part['datasource']}"


def panel_title_description(board: Json) -> Iterator[str]:
    """Every panel has a title and says what it shows."""
    for panel in panels(board):
        if not panel["title"] or not panel["description"].endswith("."):
            yield f"{panel['title'] or panel['id']}: {panel['description']!r}"


def panel_units(board: Json) -> Iterator[str]:
    """Numbers have a unit of Grafana's list; values that are words need none."""
    for panel in panels(board):
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        if panel["type"] in _UNITLESS or defaults.get("mappings"):
            continue
        if defaults.get("unit") not in UNITS - {"none"}:
            yield f"{panel['title']}: unit {defaults.get('unit')}"


def panel_no_targets(board: Json) -> Iterator[str]:
    """A panel asks something."""
    for panel in panels(board):
        if panel["type"] != "text" and not panel["targets"]:
            yield f"{panel['title']}"


def target_promql(board: Json) -> Iterator[str]:
    """Every query is PromQL."""
    for panel, target in targets(board):
        try:
            promql.parse(plain(target["expr"]))
        except ValueError as error:
            yield f"{panel['title']}: {error}"


# The linter lets a board exclude a panel from a rule, with a reason.
FIXED_WINDOWS: Final = {
    "Allocation objective: how fast the error budget burns": "the alerts' own windows, so that lines and alerts agree",
}
_RATES: Final = ("rate", "irate", "increase")


def target_rate_interval(board: Json) -> Iterator[str]:
    """Rates over time take `$__rate_interval`; only what is asked once for the whole range may take `$__range`."""
    for panel, target in targets(board):
        if panel["title"] in FIXED_WINDOWS:
            continue
        ranges = re.findall(r"\[([^\]:]+)\]", target["expr"])
        once = target["instant"] or "[$__range] @ end()" in target["expr"]
        allowed = {"$__rate_interval", "$__range"} if once else {"$__rate_interval"}
        for node, _ in nodes(plain(target["expr"])):
            if isinstance(node, promql.Call) and node.func.name in _RATES and not set(ranges) <= allowed:
                yield f"{panel['title']}: {ranges}"
                break


def target_counter_agg(board: Json) -> Iterator[str]:
    """A counter's value means nothing; its growth does."""
    for panel, target in targets(board):
        for node, parents in nodes(plain(target["expr"])):
            if not isinstance(node, promql.VectorSelector) or not (node.name or "").endswith("_total"):
                continue
            calls = [parent.func.name for parent in parents if isinstance(parent, promql.Call)]
            known = set(calls) & {*_RATES, *_FOR_NAMES_ONLY}
            if not known and not _sets_only(node, parents) and not _is_compared_with_itself(node, target["expr"]):
                yield f"{panel['title']}: {node.name}"


_FOR_NAMES_ONLY: Final = {"absent", "timestamp"}


def _sets_only(node: promql.Expr, parents: tuple[promql.Expr, ...]) -> bool:
    """`count by (attribution) (max by (...) (x_total))` asks which series there are, not for their values."""
    return any(isinstance(parent, promql.AggregateExpr) and str(parent.op) in ("count", "group") for parent in parents)


def _is_compared_with_itself(node: promql.VectorSelector, expr: str) -> bool:
    """`x - x offset $__range` is a growth, from two samples; of many counters it is the only cheap one."""
    return re.search(rf"{node.name}\{{[^}}]*\}} offset \$__range\b", expr) is not None


def uneditable_dashboard(board: Json) -> Iterator[str]:
    """Boards are changed here, and not by hand where nobody finds it again."""
    if board["editable"]:
        yield "editable"


RULES: Final[Mapping[str, Rule]] = {
    "template-datasource-rule": template_datasource,
    "template-label-promql-rule": template_label_promql,
    "template-on-time-change-reload-rule": template_on_time_change_reload,
    "panel-datasource-rule": panel_datasource,
    "panel-title-description-rule": panel_title_description,
    "panel-units-rule": panel_units,
    "panel-no-targets-rule": panel_no_targets,
    "target-promql-rule": target_promql,
    "target-rate-interval-rule": target_rate_interval,
    "target-counter-agg-rule": target_counter_agg,
    "uneditable-dashboard-rule": uneditable_dashboard,
}
