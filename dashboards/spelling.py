"""How does Grafana spell a dashboard? Dataclasses in, the JSON of schema version 39 out.

Panels flow from left to right into rows of 24 columns, so that none overlap; ids come from titles, so that a panel
that is put in moves no other panel's links.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from dashboards import palette
from dashboards.grafana import (
    COLUMNS,
    TAG,
    Annotation,
    Column,
    Dashboard,
    Json,
    Panel,
    Query,
    Row,
    Step,
    Variable,
)

SCHEMA_VERSION: Final = 39
EMPTY_CELL: Final = "–"
# Series that stand for the same thing on several panels and boards, and so have the colour of their name.
_KNOWN_BY_NAME: Final = ("deviceclass", "namespace", "reason", "resourceclaim")
DATASOURCE: Final[dict[str, str]] = {"type": "prometheus", "uid": "${datasource}"}


def to_json(board: Dashboard) -> Json:
    """What Grafana imports."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "refresh": board.refresh,
        "time": {"from": board.time_from, "to": "now"},
        "timepicker": {},
        "links": [_boards_link()],
        "templating": {"list": [_variable(each) for each in board.variables]},
        "annotations": {"list": [_grafana_annotations(), *(_annotation(each) for each in board.annotations)]},
        "panels": list(_laid_out(board.rows)),
    }


# --- layout ---


def _laid_out(rows: Iterable[Row]) -> Iterator[Json]:
    y = 0
    used: set[int] = set()
    for row in rows:
        heading = {
            "id": _identity(f"row: {row.title}", used), "type": "row", "title": row.title, "collapsed": row.collapsed,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y}, "panels": [],
        }
        y += 1
        inside: list[Json] = []
        # `left` and `depth`: where the last column of panels begins, and how far down it goes.
        x = left = depth = height = 0
        for panel in row.panels:
            if panel.under:
                at = y + depth
                depth += panel.height
            else:
                if x + panel.width > COLUMNS:
                    x, y, height = 0, y + height, 0
                left, at, depth, x = x, y, panel.height, x + panel.width
            place = {"h": panel.height, "w": panel.width, "x": left, "y": at}
            inside.append({"id": _identity(panel.title, used), "gridPos": place, **_panel(panel)})
            height = max(height, depth)
        y += height
        if row.collapsed:
            yield {**heading, "panels": inside}
        else:
            yield heading
            yield from inside


def _identity(title: str, used: set[int]) -> int:
    """A number from the title; raises ValueError for a title that a board has twice."""
    identity = zlib.crc32(title.encode()) % 1_000_000 + 1
    if identity in used:
        raise ValueError(f"two panels are called `{title}`, or their titles collide: rename one")
    used.add(identity)
    return identity


# --- panels ---


def _panel(panel: Panel) -> Json:
    made: Json = {"type": panel.kind, "title": panel.title, "description": panel.description}
    if panel.kind == "text":
        return made | {"options": {"mode": "markdown", "content": panel.content}}
    made["datasource"] = DATASOURCE
    made["targets"] = [_target(panel, index, query) for index, query in enumerate(panel.queries)]
    made["fieldConfig"] = {"defaults": _defaults(panel), "overrides": list(_overrides(panel))}
    made["options"] = _options(panel)
    if panel.kind == "table":
        made["transformations"] = _transformations(panel)
    if any("$__interval" in query.expr for query in panel.queries if query.instant or panel.kind == "table"):
        made["maxDataPoints"] = panel.steps
    if panel.repeat:
        made |= {"repeat": panel.repeat, "repeatDirection": "h", "maxPerRow": max(1, COLUMNS // panel.width)}
    return made


def _target(panel: Panel, index: int, query: Query) -> Json:
    form = "table" if panel.kind == "table" else "heatmap" if query.heatmap else "time_series"
    instant = query.instant or panel.kind == "table"
    return {
        "refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": query.expr, "legendFormat": query.legend,
        "format": form, "instant": instant, "range": not instant, "editorMode": "code",
    }


def _steps(steps: Iterable[Step]) -> Json:
    made = [{"color": step.colour, "value": step.value} for step in steps]
    return {"mode": "absolute", "steps": made or [{"color": palette.PLAIN, "value": None}]}


def _defaults(panel: Panel) -> Json:
    by_threshold = panel.kind not in ("timeseries", "heatmap", "barchart") and not panel.colours
    words = _words(panel.words)
    if panel.kind == "stat" and panel.no_value:
        # Without it Grafana takes the first threshold's colour, which often is green.
        words.append(_word_for_nothing(panel))
    made: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds"} if by_threshold else _colouring(panel),
        "thresholds": _steps(panel.thresholds),
        "mappings": words,
        "links": [link.to_json() for link in panel.links],
    }
    for name, value in (("min", panel.minimum), ("max", panel.maximum), ("decimals", panel.decimals)):
        if value is not None:
            made[name] = value
    if panel.no_value:
        made["noValue"] = panel.no_value
    if panel.kind == "timeseries":
        made["custom"] = {
            "drawStyle": "bars" if panel.bars else "line", "lineInterpolation": "linear", "lineWidth": 1,
            "fillOpacity": 80 if panel.bars else 40 if panel.stacked else 8,
            "gradientMode": "none", "showPoints": "never", "spanNulls": False, "insertNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
        }  # fmt: skip
    elif panel.kind == "state-timeline":
        made["custom"] = {"fillOpacity": 80, "lineWidth": 0}
        # With the mode "thresholds" Grafana merges all values between two thresholds, and never asks the mappings.
        made["color"] = {"mode": "fixed", "fixedColor": palette.PLAIN}
    elif panel.kind == "table":
        made["custom"] = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True, "inspect": False}
    elif panel.kind == "barchart":
        made["custom"] = {"fillOpacity": 80, "lineWidth": 0}
    return made


def known_by_name(panel: Panel) -> bool:
    """Whether series take their colours from their names, and not from their order."""
    return any(f"{{{{{label}}}}}" in query.legend for query in panel.queries for label in _KNOWN_BY_NAME)


def _colouring(panel: Panel) -> Json:
    if panel.shades:
        return {"mode": "shades", "fixedColor": panel.shades}
    return {"mode": "palette-classic-by-name" if known_by_name(panel) else "palette-classic"}


def _words(words: Mapping[float, tuple[str, str]]) -> list[Json]:
    if not words:
        return []
    options = {
        f"{value:g}": {"text": text, "color": colour, "index": index}
        for index, (value, (text, colour)) in enumerate(words.items())
    }
    return [{"type": "value", "options": options}]


def _word_for_nothing(panel: Panel) -> Json:
    result = {"text": panel.no_value, "color": panel.no_value_colour or palette.QUIET, "index": len(panel.words)}
    return {"type": "special", "options": {"match": "null", "result": result}}


def _overrides(panel: Panel) -> Iterator[Json]:
    if panel.kind == "table":
        # The panel's own noValue is for the whole table, and Grafana would write it into each empty cell.
        yield _override(".*", [{"id": "noValue", "value": EMPTY_CELL}], by="byRegexp")
    for pattern, colour in panel.patterns.items():
        yield _override(pattern, [_fixed(colour)], by="byRegexp")
    for name, colour in panel.colours.items():
        yield _override(name, [_fixed(colour)])
    for name in panel.dashed:
        yield _override(name, [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}}])
    for upper, lower in panel.bands.items():
        edge = {"id": "custom.lineWidth", "value": 0}
        yield _override(upper, [{"id": "custom.fillBelowTo", "value": lower}, edge])
        yield _override(lower, [edge, {"id": "custom.fillOpacity", "value": 0}])
    for column in panel.columns:
        properties = list(_column_properties(column))
        if properties:
            yield _override(column.title, properties)


def _fixed(colour: str) -> Json:
    return {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}


def _override(name: str, properties: list[Json], by: str = "byName") -> Json:
    return {"matcher": {"id": by, "options": name}, "properties": properties}


def _column_properties(column: Column) -> Iterator[Json]:
    if column.unit:
        yield {"id": "unit", "value": column.unit}
    if column.width:
        yield {"id": "custom.width", "value": column.width}
    if column.links:
        yield {"id": "links", "value": [link.to_json() for link in column.links]}
    if column.bar:
        yield {"id": "custom.cellOptions", "value": {"type": "gauge", "mode": "basic"}}
        yield {"id": "min", "value": 0}
        yield {"id": "max", "value": 1}
    if column.thresholds:
        yield {"id": "thresholds", "value": _steps(column.thresholds)}
        yield {"id": "color", "value": {"mode": "thresholds"}}
        if not column.bar:
            yield {"id": "custom.cellOptions", "value": {"type": "color-text"}}
    if column.colours or column.words:
        yield {"id": "mappings", "value": [{"type": "value", "options": _cell_words(column)}]}
        yield {"id": "custom.cellOptions", "value": {"type": "color-text"}}


def _cell_words(column: Column) -> Json:
    """What stands in a cell for its value, and in which colour."""
    words = {**{text: text for text in column.colours}, **{f"{value:g}": text for value, text in column.words.items()}}
    return {
        value: {"text": text, "index": index, **({"color": column.colours[text]} if text in column.colours else {})}
        for index, (value, text) in enumerate(words.items())
    }


def _field_of(panel: Panel, column: Column) -> str:
    """What Grafana calls a column: a query's letter stands for its value."""
    if len(column.source) == 1 and column.source.isupper():
        return f"Value #{column.source}" if len(panel.queries) > 1 else "Value"
    return column.source


def _transformations(panel: Panel) -> list[Json]:
    names = [_field_of(panel, column) for column in panel.columns]
    return [
        {"id": "merge", "options": {}},
        {"id": "filterFieldsByName", "options": {"include": {"names": names}}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {},
                "indexByName": {name: index for index, name in enumerate(names)},
                "renameByName": {_field_of(panel, column): column.title for column in panel.columns},
            },
        },
    ]


_REDUCE: Final[Json] = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def _options(panel: Panel) -> Json:
    legend: Json = {"displayMode": "list", "placement": "bottom", "showLegend": panel.legend, "calcs": []}
    if panel.legend_table:
        legend |= {"displayMode": "table", "placement": "right", "calcs": ["mean", "max"]}
    tooltip = {"mode": "multi", "sort": "desc"}
    match panel.kind:
        case "timeseries":
            return {"legend": legend, "tooltip": tooltip}
        case "stat":
            return {
                "reduceOptions": _REDUCE, "colorMode": "background" if panel.background else "value",
                "graphMode": "none" if all(query.instant for query in panel.queries) else "area",
                "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
            }  # fmt: skip
        case "gauge":
            return {"reduceOptions": _REDUCE, "showThresholdLabels": False, "showThresholdMarkers": True}
        case "bargauge":
            return {
                "reduceOptions": _REDUCE, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": True,
                "valueMode": "color",
            }  # fmt: skip
        case "table":
            sorting = [{"displayName": panel.sort_by.removeprefix("-"), "desc": panel.sort_by.startswith("-")}]
            return {"showHeader": True, "cellHeight": "sm", "sortBy": sorting if panel.sort_by else []}
        case "state-timeline":
            return {
                "mergeValues": True, "showValue": "auto", "alignValue": "left", "rowHeight": 0.85, "legend": legend,
                "tooltip": {"mode": "single", "sort": "none"},
            }  # fmt: skip
        case "heatmap":
            return {
                "calculate": False, "cellGap": 1, "legend": {"show": True}, "rowsFrame": {"layout": "auto"},
                "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "steps": 64, "reverse": False},
                "yAxis": {"unit": panel.unit, "axisPlacement": "left"}, "showValue": "never",
                "tooltip": {"mode": "single", "yHistogram": True},
            }  # fmt: skip
        case "barchart":
            return {
                "legend": legend, "tooltip": tooltip, "orientation": "horizontal", "showValue": "auto",
                "stacking": "normal" if panel.stacked else "none", "xTickLabelRotation": 0,
            }  # fmt: skip
        case "text":
            raise AssertionError("text panels have options of their own")


# --- around the panels ---


def _boards_link() -> Json:
    return {
        "title": "claimscope", "type": "dashboards", "tags": [TAG], "asDropdown": True, "includeVars": True,
        "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": "",
    }


def _variable(variable: Variable) -> Json:
    made: Json = {
        "name": variable.name, "label": variable.label, "description": variable.description, "type": variable.kind,
        "hide": 0, "skipUrlSync": False,
    }
    match variable.kind:
        case "datasource":
            return made | {
                "query": "prometheus", "refresh": 1, "regex": "", "multi": False, "includeAll": False, "options": [],
                "current": {},
            }  # fmt: skip
        case "textbox":
            only = {"selected": True, "text": variable.default, "value": variable.default}
            return made | {"query": variable.default, "current": only, "options": [only]}
        case "custom":
            options = [
                {"selected": choice == variable.default, "text": choice, "value": choice} for choice in variable.choices
            ]
            current = {"selected": True, "text": variable.default, "value": variable.default}
            return made | {
                "query": ",".join(variable.choices), "options": options, "current": current, "multi": False,
                "includeAll": False,
            }  # fmt: skip
        case "query":
            every = {"selected": True, "text": ["All"], "value": ["$__all"]}
            return made | {
                "datasource": DATASOURCE, "query": {"query": variable.query, "refId": f"variable-{variable.name}"},
                "definition": variable.query, "refresh": 2, "regex": variable.regex, "sort": 1, "options": [],
                "multi": variable.multiple, "includeAll": variable.multiple,
                "allValue": ".*" if variable.multiple and not variable.listed else None,
                "current": every if variable.multiple else {},
            }  # fmt: skip


def _grafana_annotations() -> Json:
    return {
        "name": "Annotations & Alerts", "builtIn": 1, "enable": True, "hide": True, "iconColor": "rgba(0, 211, 255, 1)",
        "type": "dashboard", "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    }


def _annotation(annotation: Annotation) -> Json:
    return {
        "name": annotation.name, "enable": annotation.enabled, "hide": False, "iconColor": annotation.colour,
        "datasource": DATASOURCE, "expr": annotation.expr, "step": "60s", "titleFormat": annotation.title,
        "textFormat": annotation.text, "tagKeys": "", "useValueForTime": False,
    }
