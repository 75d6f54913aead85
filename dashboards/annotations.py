"""Which moments are worth marking in every panel over time? Of what the board is about, and of nothing else."""

from __future__ import annotations

from typing import Final

from dashboards import palette
from dashboards.expressions import CLUSTER, LAST_XIDS
from dashboards.grafana import Annotation

_STEP_SECONDS: Final = 60  # of annotations: Grafana asks once a minute
# Of the hardware or fatal to the GPU; an application alone causes most others. Those of the alert on XIDs.
GRAVE: Final = ', xid=~"48|62|64|74|79|94|95|119|120"'


def xids(where: str = CLUSTER, devices: str = "", *, enabled: bool = True) -> Annotation:
    """XIDs by the time that the driver's report carries: a counter that is born at 1 has no increase."""
    # Twice the step: an XID that is scraped late must not fall between two questions.
    recent = f"(time() - {LAST_XIDS.format(where)}) < {2 * _STEP_SECONDS}"
    return Annotation(
        name="XIDs",
        expr=f"{recent} and on (cluster, node, uuid) {devices}" if devices else recent,
        title="XID {{xid}}",
        text="GPU {{gpu}} of {{node}}",
        colour=palette.BAD,
        may_be_empty="no XID was reported",
        enabled=enabled,
    )


def taints(where: str = CLUSTER, devices: str = "", *, enabled: bool = True) -> Annotation:
    """Taints that were not there a minute before, while the controller was: what it says again after a gap is old."""
    taint = f"max by (cluster, driver, pool, device, key, effect) (dra_device_taint_info{{{where}}}"
    earlier = f"max by (cluster) (claimscope_controller_leader{{{CLUSTER}}} offset {_STEP_SECONDS}s) == 1"
    new = f"({taint}) unless {taint} offset {_STEP_SECONDS}s)) and on (cluster) ({earlier})"
    return Annotation(
        name="Taints",
        expr=f"({new}) and on (cluster, driver, pool, device) {devices}" if devices else new,
        title="{{key}}: {{effect}}",
        text="{{device}} of {{pool}} was tainted",
        colour=palette.GONE,
        may_be_empty="nothing was tainted",
        enabled=enabled,
    )
