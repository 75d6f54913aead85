"""What do the boards about machines share? Ways to other boards, thresholds, and short forms of PromQL and of tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dashboards import palette
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

ALARM: Final = (Step(colour=palette.GOOD), Step(colour=palette.BAD, value=1))
CARE: Final = (Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=1))
NOTE: Final = (Step(colour=palette.GOOD), Step(colour=palette.NOTICE, value=1))
PLAIN: Final = (Step(colour=palette.NEUTRAL),)
# In cells, what is as it should be has the colour of text.
CELL_ALARM: Final = (Step(colour="text"), Step(colour=palette.BAD, value=1))
CELL_CARE: Final = (Step(colour="text"), Step(colour=palette.WARNING, value=1))
USED_UP: Final = (
    Step(colour=palette.GOOD), Step(colour=palette.NOTICE, value=0.7), Step(colour=palette.WARNING, value=0.85),
    Step(colour=palette.BAD, value=1),
)  # fmt: skip

NODES_VARIABLE: Final = Variable(name="node", label="Node", query='label_values(gpu_up{cluster=~"$cluster"}, node)')


def silent_for(warning: float, bad: float) -> tuple[Step, ...]:
    """Seconds since something was last heard of."""
    return (Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=warning), Step(colour=palette.BAD, value=bad))


def counted(expr: str) -> str:
    """How many series there are; 0 where there is none."""
    return f"count({expr}) or vector(0)"


def tile(
    title: str,
    description: str,
    *queries: Query,
    thresholds: tuple[Step, ...],
    unit: str = "short",
    links: tuple[Link, ...] = (),
    words: Mapping[float, tuple[str, str]] | None = None,
    no_value: str = "",
    width: int = 4,
    decimals: int | None = None,
) -> Panel:
    """A number that says by its colour whether somebody has to do something."""
    return Panel(
        kind="stat", title=title, description=description, queries=queries, width=width, height=4, unit=unit,
        thresholds=thresholds, links=links, words=words or {}, no_value=no_value, background=True, decimals=decimals,
    )  # fmt: skip


def now(expr: str, legend: str, may_be_empty: str = "") -> Query:
    """Only the newest value."""
    return Query(expr=expr, legend=legend, instant=True, may_be_empty=may_be_empty)
