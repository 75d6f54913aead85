"""What is a dashboard? Panels with questions to Prometheus, in rows, under variables. Only what the boards here use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

COLUMNS: Final = 24
TAG: Final = "claimscope"

Kind = Literal["timeseries", "stat", "gauge", "bargauge", "table", "state-timeline", "heatmap", "text", "barchart"]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression of a panel."""

    expr: str
    legend: str = ""  # "{{uuid}}"; of a table: unused
    instant: bool = False  # tables and most stats: only the newest value
    heatmap: bool = False  # buckets by le
    may_be_empty: str = ""  # why it may have no data on a healthy, complete installation; "": it must have some


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Another board, with what it shows taken from here: `{"resourceclaim": "${__data.fields.resourceclaim}"}`."""

    title: str
    to: str = ""  # uid
    variables: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ("datasource", "cluster")  # variables carried over as they are
    page: str = ""  # instead of a board: the address of a page, with what it is about taken from here

    @property
    def url(self) -> str:
        """With the time range of this board, where it leads to another."""
        if self.page:
            return self.page
        kept = "&".join(f"${{{name}:queryparam}}" for name in self.keep)
        own = "".join(f"&var-{name}={value}" for name, value in self.variables.items())
        return f"/d/{self.to}?{kept}{own}&${{__url_time_range}}"

    def to_json(self) -> Json:
        """As a data link."""
        return {"title": self.title, "url": self.url, "targetBlank": bool(self.page)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From this value on, this colour."""

    colour: str
    value: float | None = None  # None: from the beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table: a label, or the value of a query ("A", "B", ... in the order of the queries)."""

    source: str
    title: str
    unit: str = ""
    width: int = 0
    links: tuple[Link, ...] = ()
    thresholds: tuple[Step, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)  # text of a cell -> its colour
    words: Mapping[float, str] = field(default_factory=dict)  # number of a cell -> what is written
    bar: bool = False  # a bar from 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel."""

    kind: Kind
    title: str
    description: str
    queries: tuple[Query, ...] = ()
    width: int = 8
    height: int = 8
    under: bool = False  # below the panel before it, not beside it
    unit: str = "none"
    minimum: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    thresholds: tuple[Step, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)  # series name -> colour
    patterns: Mapping[str, str] = field(default_factory=dict)  # pattern of whole series names -> colour
    dashed: tuple[str, ...] = ()  # names of series that are limits
    shades: str = ""  # one colour in shades, where none of the series is good or bad by itself
    words: Mapping[float, tuple[str, str]] = field(default_factory=dict)  # value -> (text, colour)
    stacked: bool = False
    bars: bool = False  # of a timeseries: bars instead of lines
    bands: Mapping[str, str] = field(default_factory=dict)  # upper series -> lower one: the space between is filled
    legend: bool = True
    columns: tuple[Column, ...] = ()  # of a table
    sort_by: str = ""  # a column's title
    links: tuple[Link, ...] = ()
    repeat: str = ""  # a variable: one panel for each of its values
    no_value: str = ""  # what stands there without data, and means that nothing is known, or that there is none
    no_value_colour: str = ""  # of a stat; grey where it does not say
    content: str = ""  # of a text panel, Markdown
    steps: int = 200  # at most, of what an instant query adds up over the chosen time
    legend_table: bool = False  # mean and maximum beside the names
    background: bool = False  # a stat whose background has the colour of its value


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A heading and the panels under it."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One choice at the top of a board."""

    name: str
    label: str
    query: str = ""  # label_values(...) or query_result(...)
    kind: Literal["query", "datasource", "textbox", "custom"] = "query"
    multiple: bool = True
    default: str = ""  # of a text box or of fixed choices; of a query: all of them, or the first one without `multiple`
    choices: tuple[str, ...] = ()
    description: str = ""
    regex: str = ""
    may_be_empty: str = ""  # why it may have no values
    listed: bool = False  # "All" means all that are listed; else everything, whatever it is called


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Moments that are marked in every panel over time."""

    name: str
    expr: str
    title: str
    text: str
    colour: str
    may_be_empty: str = ""
    enabled: bool = True  # from the start; else a switch at the top shows them


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One board."""

    uid: str  # "claimscope-fleet": links rest on it
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...] = ()
    refresh: str = "30s"
    time_from: str = "now-1h"
    example: Mapping[str, str] = field(default_factory=dict)  # what the demo has, for variables without "all"

    def panels(self) -> Iterator[Panel]:
        """All panels, in reading order."""
        for row in self.rows:
            yield from row.panels


# --- what most boards share ---

DATASOURCE_VARIABLE: Final = Variable(name="datasource", label="Data source", kind="datasource", multiple=False)
CLUSTER_VARIABLE: Final = Variable(
    name="cluster", label="Cluster", query="label_values(gpu_info, cluster)",
    may_be_empty="one Prometheus per cluster needs no cluster label",
)


# Claims, pods of the device plugin, and pods that wait for a claim that could not be made.
NAMESPACE_VARIABLE: Final = Variable(
    name="namespace", label="Namespace",
    query="query_result(" + " or ".join(
        f'count by (namespace) ({family}{{cluster=~"$cluster"}})'
        for family in ("dra_claim_info", "gpu_allocation_info", "dra_claim_pending_seconds")
    ) + ")",
    regex='/namespace="([^"]+)"/',
)  # fmt: skip
CLASS_VARIABLE: Final = Variable(
    name="class", label="Device class", query='label_values(dra_claim_info{cluster=~"$cluster"}, deviceclass)',
    description="Of the claims that are listed, drawn and waiting. Hours, cost and energy of all classes are counted "
    "together: a claim may hold devices of several.",
)  # fmt: skip
