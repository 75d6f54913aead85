"""What do the boards about machines share? Ways to other boards, thresholds, and short forms of PromQL and of tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from alerts.model import RUNBOOKS

from dashboards import palette
from dashboards.expressions import CONTROLLER_ANSWERS
from dashboards.grafana import Link, Panel, Query, Step, Variable

TO_NODE: Final = Link(title="This node", to="claimscope-node", variables={"node": "${__data.fields.Node}"})
TO_NODE_OF_SERIES: Final = Link(title="This node", to="claimscope-node", variables={"node": "${__field.labels.node}"})
TO_CLAIM: Final = Link(
    title="This claim", to="claimscope-claim",
    variables={"namespace": "${__data.fields.Namespace}", "resourceclaim": "${__data.fields.Claim}"},
)  # fmt: skip
TO_CLAIMS: Final = Link(title="Claims", to="claimscope-claims")
TO_CLAIMS_OF_NAMESPACE: Final = Link(
    title="Claims of this namespace", to="claimscope-claims", variables={"namespace": "${__data.fields.Namespace}"}
)
TO_HEALTH: Final = Link(title="Health and taints", to="claimscope-health")
TO_ITSELF: Final = Link(title="claimscope itself", to="claimscope-self")
TO_RUNBOOK: Final = Link(title="Runbook", page=f"{RUNBOOKS}/${{__data.fields.Alert}}.md")

ALARM: Final = (Step(colour=palette.GOOD), Step(colour=palette.BAD, value=1))
CARE: Final = (Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=1))
NOTE: Final = (Step(colour=palette.GOOD), Step(colour=palette.NOTICE, value=1))
LOST: Final = (Step(colour=palette.GOOD), Step(colour=palette.STATES["lost"], value=1))
WAITS: Final = (Step(colour=palette.GOOD), Step(colour=palette.STATES["pending"], value=1))
LEADS: Final = (Step(colour=palette.BAD), Step(colour=palette.GOOD, value=1), Step(colour=palette.WARNING, value=2))
PLAIN: Final = (Step(colour=palette.NEUTRAL),)
# In cells, what is as it should be has the colour of text.
CELL_ALARM: Final = (Step(colour="text"), Step(colour=palette.BAD, value=1))
CELL_CARE: Final = (Step(colour="text"), Step(colour=palette.WARNING, value=1))
CELL_WAITS: Final = (Step(colour="text"), Step(colour=palette.STATES["pending"], value=1))
USED_UP: Final = (
    Step(colour=palette.GOOD), Step(colour=palette.NOTICE, value=0.7), Step(colour=palette.WARNING, value=0.85),
    Step(colour=palette.BAD, value=1),
)  # fmt: skip
# Part of the held time in which a GPU worked; what hardly works has the colour of idle ones.
USED_WELL: Final = (
    Step(colour=palette.STATES["idle"]), Step(colour=palette.NOTICE, value=0.3), Step(colour=palette.GOOD, value=0.6),
)  # fmt: skip
# Below what GPUs slow down at: H100 and A100 at 87 to 92 degrees.
WARM_CELSIUS: Final = 80
HOT_CELSIUS: Final = 87

NODES_VARIABLE: Final = Variable(name="node", label="Node", query='label_values(gpu_up{cluster=~"$cluster"}, node)')


def silent_for(warning: float, bad: float) -> tuple[Step, ...]:
    """Seconds since something was last heard of."""
    return (Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=warning), Step(colour=palette.BAD, value=bad))


def counted(expr: str, answers: str = CONTROLLER_ANSWERS) -> str:
    """How many series there are; 0 where there is none, as long as whoever would know answers."""
    return f"count({expr}) or {answers}"


def tile(
    title: str,
    description: str,
    *queries: Query,
    thresholds: tuple[Step, ...],
    unit: str = "short",
    links: tuple[Link, ...] = (),
    words: Mapping[float, tuple[str, str]] | None = None,
    no_value: str = "unknown",
    no_value_colour: str = "",
    width: int = 4,
    height: int = 4,
    decimals: int | None = None,
) -> Panel:
    """A number that says by its colour whether somebody has to do something."""
    return Panel(
        kind="stat", title=title, description=description, queries=queries, width=width, height=height, unit=unit,
        thresholds=thresholds, links=links, words=words or {}, no_value=no_value, no_value_colour=no_value_colour,
        background=True, decimals=decimals,
    )  # fmt: skip


def now(expr: str, legend: str, may_be_empty: str = "") -> Query:
    """Only the newest value."""
    return Query(expr=expr, legend=legend, instant=True, may_be_empty=may_be_empty)
