"""Which JSON does Grafana 11 take for what the boards use? A schema of that part; what is not in it is refused.

After the kinds of Grafana 11 (kinds/dashboard/dashboard_kind.cue and public/app/plugins/panel/*/panelcfg.cue).
"""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]


def _object(required: str, optional: str = "", /, **properties: Json) -> Json:
    names = [*required.split(), *optional.split()]
    return {
        "type": "object", "required": required.split(), "additionalProperties": False,
        "properties": {name: properties.get(name, {}) for name in names} | properties,
    }  # fmt: skip


TEXT: Final[Json] = {"type": "string"}
FLAG: Final[Json] = {"type": "boolean"}
NUMBER: Final[Json] = {"type": "number"}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
ANY: Final[Json] = {}


def _one_of(*values: object) -> Json:
    return {"enum": list(values)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


DATASOURCE: Final = _object("type uid", type=_one_of("prometheus", "grafana"), uid=TEXT)
GRID: Final = _object(
    "h w x y", h={"type": "integer", "minimum": 1}, w={"type": "integer", "minimum": 1, "maximum": 24},
    x={"type": "integer", "minimum": 0, "maximum": 23}, y=COUNT,
)  # fmt: skip
LINK: Final = _object(
    "title url targetBlank", title=TEXT, url={"type": "string", "pattern": "^(/d/|https://)"}, targetBlank=FLAG,
)  # fmt: skip
STEP: Final = _object("color value", color=TEXT, value={"type": ["number", "null"]})
THRESHOLDS: Final = _object(
    "mode steps", mode=_one_of("absolute", "percentage"), steps={"type": "array", "minItems": 1, "items": STEP},
)  # fmt: skip
_RESULT: Final = _object("text index", "color", text=TEXT, index=COUNT, color=TEXT)
MAPPING: Final[Json] = {
    "if": {"properties": {"type": {"const": "special"}}},
    "then": _object(
        "type options", type={"const": "special"},
        options=_object("match result", match=_one_of("null", "nan", "null+nan", "true", "false", "empty"),
                        result=_RESULT),
    ),
    "else": _object(
        "type options", type={"const": "value"}, options={"type": "object", "additionalProperties": _RESULT},
    ),
}  # fmt: skip
COLOUR_MODES: Final = _one_of("fixed", "thresholds", "palette-classic", "palette-classic-by-name", "shades")
STACKING: Final = _object("mode group", mode=_one_of("none", "normal", "percent"), group=TEXT)
CUSTOM: Final[Json] = {
    "type": "object", "additionalProperties": False,
    "properties": {
        "drawStyle": _one_of("line", "bars", "points"), "lineInterpolation": _one_of("linear", "stepAfter"),
        "lineWidth": COUNT, "fillOpacity": {"type": "integer", "minimum": 0, "maximum": 100},
        "gradientMode": _one_of("none"), "showPoints": _one_of("never", "auto"), "spanNulls": FLAG,
        "insertNulls": FLAG, "stacking": STACKING,
        "thresholdsStyle": _object("mode", mode=_one_of("off", "line", "dashed")),
        "align": _one_of("auto", "left", "right"), "filterable": FLAG, "inspect": FLAG,
        "cellOptions": _object("type", "mode", type=_one_of("auto", "gauge", "color-text"), mode=_one_of("basic")),
    },
}  # fmt: skip
DEFAULTS: Final = _object(
    "unit color thresholds mappings links", "min max decimals noValue custom",
    unit=TEXT, color=_object("mode", "fixedColor", mode=COLOUR_MODES, fixedColor=TEXT), thresholds=THRESHOLDS,
    mappings=_list(MAPPING), links=_list(LINK), min=NUMBER, max=NUMBER, decimals=COUNT, noValue=TEXT, custom=CUSTOM,
)  # fmt: skip
PROPERTY_IDS: Final = _one_of(
    "color", "unit", "links", "min", "max", "noValue", "thresholds", "mappings", "custom.width", "custom.cellOptions",
    "custom.fillBelowTo", "custom.fillOpacity", "custom.lineStyle", "custom.lineWidth",
)  # fmt: skip
OVERRIDE: Final = _object(
    "matcher properties", matcher=_object("id options", id=_one_of("byName", "byRegexp"), options=TEXT),
    properties=_list(_object("id value", id=PROPERTY_IDS, value=ANY)),
)  # fmt: skip
TARGET: Final = _object(
    "refId datasource expr legendFormat format instant range editorMode",
    refId={"type": "string", "pattern": "^[A-Z]$"}, datasource=DATASOURCE, expr={"type": "string", "minLength": 1},
    legendFormat=TEXT, format=_one_of("time_series", "table", "heatmap"), instant=FLAG, range=FLAG,
    editorMode=_one_of("code"),
)  # fmt: skip
LEGEND: Final = _object(
    "displayMode placement showLegend calcs", displayMode=_one_of("list", "table", "hidden"),
    placement=_one_of("bottom", "right"), showLegend=FLAG, calcs=_list(_one_of("mean", "max", "min", "lastNotNull")),
)  # fmt: skip
TOOLTIP: Final = _object(
    "mode", "sort yHistogram", mode=_one_of("single", "multi", "none"), sort=_one_of("none", "asc", "desc"),
    yHistogram=FLAG,
)  # fmt: skip
REDUCE: Final = _object("calcs fields values", calcs=_list(_one_of("lastNotNull")), fields=TEXT, values=FLAG)
TRANSFORMATIONS: Final = _list(_object(
    "id options", id=_one_of("merge", "filterFieldsByName", "organize"), options={"type": "object"},
))  # fmt: skip

OPTIONS: Final[dict[str, Json]] = {
    "timeseries": _object("legend tooltip", legend=LEGEND, tooltip=TOOLTIP),
    "stat": _object(
        "reduceOptions colorMode graphMode justifyMode orientation textMode", reduceOptions=REDUCE,
        colorMode=_one_of("value", "background", "none"), graphMode=_one_of("none", "area"),
        justifyMode=_one_of("auto", "center"), orientation=_one_of("auto", "horizontal", "vertical"),
        textMode=_one_of("auto", "value", "value_and_name", "name", "none"),
    ),
    "gauge": _object(
        "reduceOptions showThresholdLabels showThresholdMarkers", reduceOptions=REDUCE, showThresholdLabels=FLAG,
        showThresholdMarkers=FLAG,
    ),
    "bargauge": _object(
        "reduceOptions displayMode orientation showUnfilled valueMode", reduceOptions=REDUCE,
        displayMode=_one_of("basic", "gradient", "lcd"), orientation=_one_of("horizontal", "vertical", "auto"),
        showUnfilled=FLAG, valueMode=_one_of("color", "text", "hidden"),
    ),
    "table": _object(
        "showHeader cellHeight sortBy", showHeader=FLAG, cellHeight=_one_of("sm", "md", "lg"),
        sortBy=_list(_object("displayName desc", displayName=TEXT, desc=FLAG)),
    ),
    "state-timeline": _object(
        "mergeValues showValue alignValue rowHeight legend tooltip", mergeValues=FLAG,
        showValue=_one_of("never", "auto", "always"), alignValue=_one_of("left", "center", "right"),
        rowHeight={"type": "number", "minimum": 0, "maximum": 1}, legend=LEGEND, tooltip=TOOLTIP,
    ),
    "heatmap": _object(
        "calculate cellGap legend rowsFrame color yAxis showValue tooltip", calculate=FLAG, cellGap=COUNT,
        legend=_object("show", show=FLAG), rowsFrame=_object("layout", layout=_one_of("auto", "le")),
        color=_object("mode scheme exponent steps reverse", mode=_one_of("scheme"), scheme=TEXT, exponent=NUMBER,
                      steps=COUNT, reverse=FLAG),
        yAxis=_object("unit axisPlacement", unit=TEXT, axisPlacement=_one_of("left", "right")),
        showValue=_one_of("never", "auto"), tooltip=TOOLTIP,
    ),
    "barchart": _object(
        "legend tooltip orientation showValue stacking xTickLabelRotation", legend=LEGEND, tooltip=TOOLTIP,
        orientation=_one_of("horizontal", "vertical", "auto"), showValue=_one_of("auto", "never", "always"),
        stacking=_one_of("none", "normal"), xTickLabelRotation=NUMBER,
    ),
    "text": _object("mode content", mode=_one_of("markdown"), content=TEXT),
}  # fmt: skip

_COMMON: Final[Json] = {
    "id": {"type": "integer", "minimum": 1}, "gridPos": GRID, "title": {"type": "string", "minLength": 1},
    "description": TEXT,
}  # fmt: skip
_DATA: Final[Json] = {
    "datasource": DATASOURCE, "targets": {"type": "array", "minItems": 1, "items": TARGET},
    "fieldConfig": _object("defaults overrides", defaults=DEFAULTS, overrides=_list(OVERRIDE)),
}  # fmt: skip
_REPEAT: Final[Json] = {"repeat": TEXT, "repeatDirection": _one_of("h", "v"), "maxPerRow": COUNT}


def _panel(kind: str) -> Json:
    properties = {**_COMMON, "type": {"const": kind}, "options": OPTIONS[kind]} | ({} if kind == "text" else _DATA)
    if kind == "table":
        properties["transformations"] = TRANSFORMATIONS
    return {
        "type": "object", "required": list(properties), "additionalProperties": False,
        "properties": properties | _REPEAT | {"maxDataPoints": {"type": "integer", "minimum": 1}},
    }  # fmt: skip


def _by_type(kinds: list[str], of: Any) -> list[Json]:
    """One branch a kind, so that an error names the field and not the branches."""
    return [
        {"if": {"properties": {"type": {"const": kind}}}, "then": of(kind)} for kind in kinds
    ] + [{"properties": {"type": {"enum": kinds}}}]


PANEL: Final[Json] = {"type": "object", "required": ["type"], "allOf": _by_type(list(OPTIONS), _panel)}
ROW: Final = _object(
    "id type title collapsed gridPos panels", type={"const": "row"}, id={"type": "integer", "minimum": 1},
    title={"type": "string", "minLength": 1}, collapsed=FLAG, gridPos=GRID, panels=_list(PANEL),
)  # fmt: skip
_ROW_OR_PANEL: Final[Json] = {
    "if": {"properties": {"type": {"const": "row"}}}, "then": ROW, "else": PANEL,
}  # fmt: skip

_VARIABLE_COMMON: Final = "name label description type hide skipUrlSync query current"
_CHOICE: Final = _object("selected text value", selected=FLAG, text=ANY, value=ANY)


def _variable(kind: str) -> Json:
    common: dict[str, Json] = {
        "name": {"type": "string", "pattern": "^[a-z_]+$"}, "label": {"type": "string", "minLength": 1},
        "description": TEXT, "type": {"const": kind}, "hide": _one_of(0, 1, 2), "skipUrlSync": FLAG,
        "options": _list(_CHOICE),
    }  # fmt: skip
    match kind:
        case "query":
            return _object(
                f"{_VARIABLE_COMMON} datasource definition refresh regex sort options multi includeAll allValue",
                **common, datasource=DATASOURCE, query=_object("query refId", query=TEXT, refId=TEXT), definition=TEXT,
                refresh=_one_of(2), regex=TEXT, sort=_one_of(*range(9)), multi=FLAG, includeAll=FLAG,
                allValue={"type": ["string", "null"]}, current={"type": "object"},
            )
        case "textbox":
            return _object(f"{_VARIABLE_COMMON} options", **common, query=TEXT, current=_CHOICE)
        case "custom":
            return _object(
                f"{_VARIABLE_COMMON} options multi includeAll", **common, query=TEXT, current=_CHOICE, multi=FLAG,
                includeAll=FLAG,
            )
    return _object(
        f"{_VARIABLE_COMMON} refresh regex multi includeAll options", **common, query={"const": "prometheus"},
        refresh=_one_of(1), regex=TEXT, multi=FLAG, includeAll=FLAG, current={"type": "object"},
    )


VARIABLE: Final[Json] = {
    "type": "object", "required": ["type"],
    "allOf": _by_type(["datasource", "query", "textbox", "custom"], _variable),
}  # fmt: skip
ANNOTATION: Final[Json] = {
    "if": {"required": ["builtIn"]},
    "then": _object(
        "name builtIn enable hide iconColor type datasource", builtIn={"const": 1}, datasource=DATASOURCE, name=TEXT,
        enable=FLAG, hide=FLAG, iconColor=TEXT, type={"const": "dashboard"},
    ),
    "else": _object(
        "name enable hide iconColor datasource expr step titleFormat textFormat tagKeys useValueForTime",
        name=TEXT, enable=FLAG, hide=FLAG, iconColor=TEXT, datasource=DATASOURCE, expr=TEXT, step=TEXT,
        titleFormat=TEXT, textFormat=TEXT, tagKeys=TEXT, useValueForTime=FLAG,
    ),
}  # fmt: skip
BOARDS_LINK: Final = _object(
    "title type tags asDropdown includeVars keepTime targetBlank icon tooltip url", type={"const": "dashboards"},
    tags=_list(TEXT), asDropdown=FLAG, includeVars=FLAG, keepTime=FLAG, targetBlank=FLAG, title=TEXT, icon=TEXT,
    tooltip=TEXT, url=TEXT,
)  # fmt: skip

SCHEMA: Final = _object(
    "uid title description tags schemaVersion version editable graphTooltip timezone weekStart fiscalYearStartMonth "
    "refresh time timepicker links templating annotations panels",
    uid={"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"}, title=TEXT, description=TEXT,
    tags={"type": "array", "contains": {"const": "claimscope"}}, schemaVersion={"type": "integer", "minimum": 39},
    version=COUNT, editable=FLAG, graphTooltip=_one_of(0, 1, 2), timezone=_one_of("browser", "utc"), weekStart=TEXT,
    fiscalYearStartMonth=COUNT, refresh={"type": "string", "pattern": "^([0-9]+[smh])?$"},
    time=_object("from to"), timepicker={"type": "object"}, links=_list(BOARDS_LINK),
    templating=_object("list", list=_list(VARIABLE)), annotations=_object("list", list=_list(ANNOTATION)),
    panels={"type": "array", "minItems": 1, "items": _ROW_OR_PANEL},
)  # fmt: skip
