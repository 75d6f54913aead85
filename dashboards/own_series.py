"""What do agents and controller say of themselves? PromQL for it, one series for each of them."""

from __future__ import annotations

from typing import Final

from dashboards.expressions import CLUSTER, RATE

NODES: Final = f'{CLUSTER}, node=~"$node"'
TARGET: Final = "cluster, instance"
CODE: Final = ", code"
FAILING: Final = ', reason!="unsupported"'
NOT_OK: Final = ', result!="ok"'


def agent(name: str, by: str = "", selector: str = "") -> str:
    """The newest value, by node and further labels: `by` begins with a comma, as `selector` does."""
    return f"max by (cluster, node{by}) (claimscope_agent_{name}{{{NODES}{selector}}})"


def agent_rate(name: str, by: str = "", selector: str = "") -> str:
    """The growth per second of a counter."""
    return f"max by (cluster, node{by}) (rate(claimscope_agent_{name}{{{NODES}{selector}}}[{RATE}]))"


def controller(name: str, by: str = "", selector: str = "") -> str:
    """The newest value, by replica."""
    return f"max by ({TARGET}{by}) (claimscope_controller_{name}{{{CLUSTER}{selector}}})"


def controller_rate(name: str, by: str = "", selector: str = "") -> str:
    """The growth per second of a counter, by replica."""
    return f"max by ({TARGET}{by}) (rate(claimscope_controller_{name}{{{CLUSTER}{selector}}}[{RATE}]))"


BEAT_AGE: Final = (
    f"time() - max by (cluster, node) (claimscope_controller_agent_lease_renew_timestamp_seconds{{{NODES}}})"
)
