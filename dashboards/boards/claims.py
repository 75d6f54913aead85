"""Claims: which ones do I have, do they use what they hold, what do they cost, and why do the others wait?"""

from __future__ import annotations

from typing import Final

from dashboards import expressions as by_account
from dashboards import palette
from dashboards.annotations import GRAVE, taints, xids
from dashboards.boards.common import TO_CLAIM, USED_WELL, WAITS, counted, now, tile
from dashboards.expressions import CLAIM, CLUSTER, IDLE_BELOW, OF_CLAIMS, RATE, SCOPE
from dashboards.grafana import (
    CLASS_VARIABLE,
    CLUSTER_VARIABLE,
    DATASOURCE_VARIABLE,
    NAMESPACE_VARIABLE,
    Column,
    Dashboard,
    Link,
    Panel,
    Query,
    Row,
    Step,
)
from dashboards.price import CURRENCY, PRICE_VARIABLE, cost

_WAIT: Final = "cluster, namespace, resourceclaim, pod, deviceclass"
_CLASS: Final = 'cluster=~"$cluster", deviceclass=~"$class"'
_WAITS: Final = f'{SCOPE}, deviceclass=~"$class"'
_OVERDUE: Final = by_account.overdue(_WAITS)
_WAITING: Final = f"max by ({_WAIT}) (dra_claim_pending_seconds{{{_WAITS}}})"
_CAUSE: Final = f"max by ({_WAIT}, reason) (dra_claim_pending_reason{{{_WAITS}}})"
_NOBODY_WAITS: Final = "no claim waits"
_NO_MIG: Final = "busy time cannot be measured on any device that is held"

# A table of 100,000 claims helps nobody, and no browser: those that hold most stand in it, in the namespaces chosen.
_ROWS: Final = 200
_STEPS: Final = 40  # over which it adds up each claim of the fleet: with 200 it takes 10,000 claims twenty seconds
# Which claims hold devices, of which class and for whom, as recorded.
_INFO: Final = f"claim_device:dra_claim_device_info:workload{{{_WAITS}}}"
_OF_CLASS: Final = f"max by ({CLAIM}) ({_INFO})"


_HOLDERS: Final = SCOPE + OF_CLAIMS
_LISTED: Final = (
    f"topk({_ROWS}, sum by ({CLAIM}) ({by_account.gpus('held', _HOLDERS, 'holder')}) and on ({CLAIM}) {_OF_CLASS})"
)
# Of a panel over time, chosen once: what is largest does not change from point to point.
_LARGEST, _LARGEST_NOW = (
    f"topk(10, sum by ({CLAIM}) ({by_account.gpus('held', _HOLDERS, 'holder', at)}) "
    f"and on ({CLAIM}) max by ({CLAIM}) ({_INFO}{at}))"
    for at in (" @ end()", "")
)
_RATIO: Final = by_account.busy_part(_HOLDERS, "holder", CLAIM)
_HOURS: Final = by_account.hours("held", _HOLDERS, "holder", CLAIM)
_HELD: Final = by_account.hours("held")
_WASTED: Final = by_account.wasted_hours()
_IDLE: Final = by_account.hours("idle")
_WATTS: Final = f"max by ({CLAIM}, claim_uid) (claim:dra_claim_gpu_energy_joules:rate5m{{{SCOPE}}})"
_ALLOCATED: Final = (
    f'max by ({CLAIM}, driver, pool, device, share_id) (dra_claim_device_info{{{SCOPE}, admin_access="false"}})'
)
_DEVICES: Final = f"max by ({CLAIM}, uuid) (dra_claim_gpu_memory_used_bytes{{{SCOPE}}})"


def _listed(expr: str) -> Query:
    """Of the claims in the table only."""
    return Query(expr=f"({expr}) and on ({CLAIM}) {_LISTED}", instant=True)


_TO_CLAIM_OF_SERIES: Final = Link(
    title="This claim", to="claimscope-claim",
    variables={
        "namespace": "${__field.labels.namespace}", "resourceclaim": "${__field.labels.resourceclaim}",
    },
)  # fmt: skip
_TO_CAPACITY: Final = Link(title="Capacity", to="claimscope-capacity")
_LONG: Final = (
    Step(colour=palette.NEUTRAL), Step(colour=palette.NOTICE, value=60), Step(colour=palette.WARNING, value=300),
)  # fmt: skip


def _hours(title: str, description: str, expr: str) -> Panel:
    return Panel(
        kind="stat", title=title, width=3, height=4, unit="short", description=description,
        queries=(now(expr, "hours"),), no_value="unknown",
    )  # fmt: skip


def _cost(title: str, description: str, expr: str) -> Panel:
    return Panel(
        kind="stat", title=title, width=3, height=4, unit=CURRENCY, decimals=2, description=description,
        queries=(now(cost(expr), "cost"),), no_value="unknown",
    )  # fmt: skip


_SUMMARY: Final = Row(title="What do we hold, and what does it cost? Over the chosen time", panels=(
    Panel(
        kind="stat", title="Claims in use", width=3, height=4, unit="short", no_value="unknown",
        description="ResourceClaims that hold devices now.",
        queries=(now(
            counted(
                f"max by ({CLAIM}) (kube_resourceclaim_status_allocation_state{{{SCOPE}, "
                f'state!~"pending|released"}}) and on ({CLAIM}) max by ({CLAIM}) (dra_claim_info{{{_WAITS}}})'
            ), "claims",
        ),),
    ),
    tile(
        "Claims that wait", "ResourceClaims that a pod needs and that are not ready, without those that wait for a "
        "quota or a scheduling gate. The causes of all stand below.",
        now(counted(_OVERDUE), "waiting"), thresholds=WAITS, width=3,
    ),
    _hours(
        "GPU-hours held", "By claims and by device-plugin pods of the chosen namespaces, of every class. MIG devices "
        "count as their part of a GPU, shared GPUs once.", _HELD,
    ),
    _cost("Their cost", "GPU-hours held times the price of a GPU-hour, which is a variable of this board.", _HELD),
    _hours(
        "Wasted GPU-hours", "The part of them in which the GPU did not work. Devices whose busy time cannot be "
        "measured are left out.", _WASTED,
    ),
    _cost("Cost of the waste", "Wasted GPU-hours times the price of a GPU-hour.", _WASTED),
    _hours(
        "Idle GPU-hours", f"The part of them in which a holder used its device less than {IDLE_BELOW:.0%} of five "
        "minutes: what giving back would save.", _IDLE,
    ),
    _cost("Cost of idle GPUs", "Idle GPU-hours times the price of a GPU-hour.", _IDLE),
))  # fmt: skip

_TABLE: Final = Row(title="Claims", panels=(
    Panel(
        kind="table", title="Claims that hold GPUs", width=24, height=10, sort_by="-Cost", steps=_STEPS,
        description=f"The {_ROWS} claims that hold most now, and what they did in the chosen time. Busy and wasted "
        "are empty where no driver measures it, as on MIG devices of an A100. Click a claim for all about it.",
        queries=(
            _listed(f"max by ({CLAIM}, deviceclass, workload_kind, workload) ({_INFO})"),
            _listed(f"count by ({CLAIM}) ({_ALLOCATED})"),
            _listed(f"time() - max by ({CLAIM}) (dra_claim_created_timestamp_seconds{{{SCOPE}}})"),
            _listed(_RATIO),
            _listed(by_account.wasted_hours(_HOLDERS, "holder", CLAIM)),
            _listed(f"sum by ({CLAIM}) ({_DEVICES})"),
            _listed(f"sum by ({CLAIM}) ({by_account.over_time(_WATTS)}) / 3600"),
            _listed(cost(_HOURS)),
        ),
        columns=(
            Column(source="namespace", title="Namespace", width=130),
            Column(source="resourceclaim", title="Claim", links=(TO_CLAIM,)),
            Column(source="deviceclass", title="Class"),
            Column(source="workload_kind", title="Kind", width=100),
            Column(source="workload", title="Workload"),
            Column(source="B", title="Devices", unit="short", width=80),
            Column(source="C", title="Age", unit="s", width=90),
            Column(source="D", title="Busy", unit="percentunit", width=140, bar=True, thresholds=USED_WELL),
            Column(source="E", title="Wasted GPU-hours", unit="short", width=140),
            Column(source="F", title="Memory", unit="bytes", width=100),
            Column(source="G", title="Energy", unit="watth", width=100),
            Column(source="H", title="Cost", unit=CURRENCY, width=90),
        ),
    ),
))  # fmt: skip

_PENDING: Final = Row(title="What waits, and why?", panels=(
    Panel(
        kind="table", title="Waiting claims", width=14, height=9, sort_by="-Waits for", no_value=_NOBODY_WAITS,
        description="Claims that pods need and that are not ready, with the cause that the controller found. "
        "`claimscope explain claim NAMESPACE/NAME` gives evidence, numbers and cure. A claim that could not be made "
        "has no name yet; its pod has one.",
        queries=(Query(
            expr=f"topk({_ROWS}, {_CAUSE} * on ({_WAIT}) group_left () {_WAITING})",
            instant=True, may_be_empty=_NOBODY_WAITS,
        ),),
        columns=(
            Column(source="namespace", title="Namespace", width=110),
            Column(source="resourceclaim", title="Claim", links=(TO_CLAIM,)),
            Column(source="pod", title="Pod"),
            Column(source="deviceclass", title="Class"),
            Column(source="reason", title="Cause"),
            Column(source="A", title="Waits for", unit="s", width=100, thresholds=_LONG),
        ),
    ),
    Panel(
        kind="timeseries", title="Waiting claims by cause", width=10, height=9, unit="short", minimum=0, stacked=True,
        no_value=_NOBODY_WAITS,
        description="How many claims wait, over time, for the eight causes that most of them waited for. One cause "
        "that grows is a shortage; many that grow together are a fault of the cluster.",
        queries=(Query(
            expr=f"count by (reason) ({_CAUSE}) and on (reason) "
            f"topk(8, sum_over_time(count by (reason) ({_CAUSE})[$__range:$__interval] @ end()))",
            legend="{{reason}}", may_be_empty=_NOBODY_WAITS,
        ),),
        links=(_TO_CAPACITY,),
    ),
))  # fmt: skip

_BUCKETS: Final = "cluster, deviceclass, phase, le"

_LATENCY: Final = Row(title="How long does a claim take to be ready?", panels=(
    Panel(
        kind="heatmap", title="From wanted to running", width=12, height=8, unit="s",
        description="Time from when a pod needed a claim until a container that uses it ran; the stronger the "
        "colour, the more claims.",
        queries=(Query(
            expr=f"sum by (le) (max by (cluster, deviceclass, le) "
            f"(increase(dra_claim_ready_duration_seconds_bucket{{{_CLASS}}}[{RATE}])))",
            legend="{{le}}", heatmap=True,
        ),),
    ),
    Panel(
        kind="timeseries", title="Nine tenths are through a phase in", width=12, height=8, unit="s", minimum=0,
        description="90th percentile by phase: waiting for the scheduler, binding, preparing the devices, starting the "
        "container. Phases do not overlap.",
        queries=(Query(
            expr=f"histogram_quantile(0.9, sum by (phase, le) (max by ({_BUCKETS}) "
            f"(rate(dra_allocation_duration_seconds_bucket{{{_CLASS}}}[{RATE}]))))",
            legend="{{phase}}",
        ),),
    ),
))  # fmt: skip

_UTILISATION: Final = Row(title="How well is it used?", panels=(
    Panel(
        kind="timeseries", title="Busy ratio of the largest claims", width=12, height=9, unit="percentunit", minimum=0,
        maximum=1, legend_table=True,
        description="Part of the held time in which the GPUs worked, of the ten claims that hold most.",
        queries=(Query(
            expr=f"max by ({CLAIM}) (claim:dra_claim_gpu_busy_per_allocated:ratio_rate5m{{{SCOPE}}}) "
            f"and on ({CLAIM}) {_LARGEST}",
            legend="{{namespace}}/{{resourceclaim}}", may_be_empty=_NO_MIG,
        ),),
        links=(_TO_CLAIM_OF_SERIES,),
    ),
    Panel(
        kind="bargauge", title="GPU memory of the largest claims", width=12, height=9, unit="bytes", minimum=0,
        description="Memory in use now, of the ten claims that hold most GPUs. On a shared GPU only what their own "
        "processes use.",
        queries=(Query(
            expr=f"sum by ({CLAIM}) ({_DEVICES}) and on ({CLAIM}) {_LARGEST_NOW}",
            legend="{{namespace}}/{{resourceclaim}}", instant=True,
        ),),
        thresholds=(Step(colour=palette.NEUTRAL),),
        links=(_TO_CLAIM_OF_SERIES,),
    ),
))  # fmt: skip

BOARD: Final = Dashboard(
    uid="claimscope-claims",
    title="claimscope / Claims",
    description="The ResourceClaims of a team: what they hold, use and cost, and why some wait. "
    "It reads the recording rules of claimscope.",
    variables=(
        DATASOURCE_VARIABLE, CLUSTER_VARIABLE, NAMESPACE_VARIABLE, CLASS_VARIABLE, PRICE_VARIABLE,
    ),
    annotations=(taints(enabled=False), xids(CLUSTER + GRAVE, enabled=False)),
    rows=(_SUMMARY, _TABLE, _PENDING, _LATENCY, _UTILISATION),
)  # fmt: skip
