"""Fleet overview: does anything need somebody now, are the GPUs put to use, and what is the waste worth?"""

from __future__ import annotations

from typing import Final

from dashboards import expressions as by_account
from dashboards import palette
from dashboards.annotations import GRAVE, taints, xids
from dashboards.expressions import CLUSTER, DEVICE, HOLDER, IDLE_BELOW, RATE, WHOLE
from dashboards.grafana import (
    CLUSTER_VARIABLE,
    DATASOURCE_VARIABLE,
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
_WAITING: Final = by_account.overdue(CLUSTER)
# What is only information pages and tells nobody; the watchdog, which always fires, has the severity "none".
_FIRING: Final = f'ALERTS{{{CLUSTER}, component="dra", alertstate="firing", severity=~"critical|warning"}}'
_SICK: Final = f'max by ({DEVICE}, state) (gpu_health{{{CLUSTER}, state!="ok"}}) == 1'
_HELD: Final = f"(sum({by_account.gpus('held', CLUSTER, 'cluster')}) or vector(0))"
_BUSY: Final = f"(sum({by_account.gpus('busy', CLUSTER, 'cluster')}) or vector(0))"
_WASTED: Final = by_account.wasted_hours(CLUSTER, "cluster")
_IDLE: Final = by_account.hours("idle", CLUSTER, "cluster")
_MOST_WASTEFUL: Final = f"topk(10, {by_account.wasted_hours(CLUSTER, 'holder', HOLDER)} > 0)"
_WATTS: Final = (
    f"max by (cluster, namespace) (namespace:dra_claim_gpu_energy_joules:rate5m{{{{{CLUSTER}}}}}{{}})"  # and a moment
)
_HEALTHY: Final = "every GPU is healthy"
_NOBODY_WAITS: Final = "no claim waits"
_NOTHING_FIRES: Final = "no alert fires, or the rules are not loaded"

_TO_CLAIM: Final = Link(
    title="This claim", to="claimscope-claim",
    variables={"namespace": "${__data.fields.Namespace}", "resourceclaim": "${__data.fields.Claim}"},
)  # fmt: skip
_TO_CLAIMS: Final = Link(title="Claims", to="claimscope-claims")
_TO_NODE: Final = Link(title="This node", to="claimscope-node", variables={"node": "${__data.fields.Node}"})
_TO_NODE_OF_SERIES: Final = Link(
    title="This node", to="claimscope-node", variables={"node": "${__field.labels.node}"}
)
_TO_HEALTH: Final = Link(title="Health and taints", to="claimscope-health")
_TO_ITSELF: Final = Link(title="claimscope itself", to="claimscope-self")

_ALARM: Final = (Step(colour=palette.GOOD), Step(colour=palette.BAD, value=1))
_CARE: Final = (Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=1))
_NOTE: Final = (Step(colour=palette.GOOD), Step(colour=palette.NOTICE, value=1))
_USED_WELL: Final = (
    Step(colour=palette.BAD), Step(colour=palette.WARNING, value=0.3), Step(colour=palette.GOOD, value=0.6),
)  # fmt: skip


def _devices_in(state: str) -> str:
    return f'count(max by (cluster, node, uuid) (gpu_health{{{CLUSTER}, state="{state}"}}) == 1) or vector(0)'


_NOW: Final = Row(title="Does anything need somebody now?", panels=(
    Panel(
        kind="stat", title="Firing alerts", width=4, height=4, unit="short", background=True,
        description="Alerts of claimscope's rules that fire now, critical ones and warnings.",
        queries=(Query(expr=f"count({_FIRING}) or vector(0)", legend="firing", instant=True),), thresholds=_CARE,
    ),
    Panel(
        kind="stat", title="Unhealthy and lost", width=4, height=4, unit="short", background=True,
        description="Devices that should get no new work: the driver or the hardware says so (unhealthy), or they do "
        "not answer (lost).",
        queries=(
            Query(expr=_devices_in("unhealthy"), legend="unhealthy", instant=True),
            Query(expr=_devices_in("lost"), legend="lost", instant=True),
        ),
        thresholds=_ALARM, links=(_TO_HEALTH,),
    ),
    Panel(
        kind="stat", title="Degraded", width=4, height=4, unit="short", background=True,
        description="Devices with a finding that does not keep work away: slowed by heat, errors that were corrected.",
        queries=(Query(expr=_devices_in("degraded"), legend="degraded", instant=True),),
        thresholds=_CARE, links=(_TO_HEALTH,),
    ),
    Panel(
        kind="stat", title="Agents that do not answer", width=4, height=4, unit="short", background=True,
        description="Agents that Prometheus cannot scrape: nobody watches their GPUs.",
        queries=(Query(
            expr=f'count(max by (cluster, instance) (up{{{CLUSTER}, job=~".*claimscope-agent.*"}}) == 0) or vector(0)',
            legend="silent", instant=True,
        ),),
        thresholds=_ALARM, links=(_TO_ITSELF,),
    ),
    Panel(
        kind="stat", title="Claims that wait", width=4, height=4, unit="short", background=True,
        description="ResourceClaims that a pod needs and that are not ready yet. Those that wait for a quota or a "
        "scheduling gate do not count, nor do claims that no pod wants.",
        queries=(Query(expr=f"count({_WAITING}) or vector(0)", legend="waiting", instant=True),),
        thresholds=_NOTE, links=(_TO_CLAIMS,),
    ),
    Panel(
        kind="stat", title="Longest wait", width=4, height=4, unit="s", background=True, no_value="none",
        description="Age of the oldest of these waits. Beyond 5 minutes the owner of the claim is told.",
        queries=(Query(
            expr=f"max({_WAITING})", legend="longest wait", instant=True, may_be_empty=_NOBODY_WAITS,
        ),),
        thresholds=(
            Step(colour=palette.GOOD), Step(colour=palette.NOTICE, value=60), Step(colour=palette.WARNING, value=300),
        ),
        links=(_TO_CLAIMS,),
    ),
    Panel(
        kind="table", title="Alerts", width=8, height=8, sort_by="Severity", no_value="no alert fires",
        description="What fires, and on how many things, critical ones first. Each alert has a runbook.",
        queries=(Query(
            expr=f"count by (severity, alertname) ({_FIRING})", instant=True, may_be_empty=_NOTHING_FIRES,
        ),),
        columns=(
            Column(source="severity", title="Severity", width=90, colours={
                "critical": palette.BAD, "warning": palette.WARNING,
            }),
            Column(source="alertname", title="Alert"),
            Column(source="A", title="Firing", width=70),
        ),
    ),
    Panel(
        kind="table", title="GPUs that are not healthy", width=8, height=8, sort_by="State", no_value=_HEALTHY,
        description="The worst state of each device. The evidence stands on the node's own page and in "
        "`claimscope explain gpu UUID`.",
        queries=(Query(expr=_SICK, instant=True, may_be_empty=_HEALTHY),),
        columns=(
            Column(source="state", title="State", width=90, colours={
                state: colour for state, (_, colour) in palette.HEALTH.items() if state != "ok"
            }),
            Column(source="node", title="Node", links=(_TO_NODE,)),
            Column(source="gpu", title="GPU", width=50),
            Column(source="uuid", title="UUID"),
        ),
    ),
    Panel(
        kind="bargauge", title="Why claims wait", width=8, height=8, unit="short", minimum=0,
        description="Claims that pods need and that are not ready, by the cause that the controller found; here with "
        "those that wait for a quota or a scheduling gate. The claims board names them.",
        queries=(Query(
            expr=f"topk(10, count by (reason) (max by ({_WAIT}, reason) (dra_claim_pending_reason{{{CLUSTER}}})))",
            legend="{{reason}}", instant=True, may_be_empty=_NOBODY_WAITS,
        ),),
        thresholds=(Step(colour=palette.STATES["pending"]),), links=(_TO_CLAIMS,),
    ),
))  # fmt: skip

_USE: Final = Row(title="Are the GPUs put to use?", panels=(
    Panel(
        kind="timeseries", title="GPUs held and busy", width=12, height=8, unit="short", minimum=0,
        description="GPUs that claims and device-plugin pods hold, and how many of them worked, by time. MIG devices "
        "count as their part of a GPU, shared GPUs once. What lies between the lines was paid for and not used.",
        queries=(
            Query(expr=by_account.gpus_there(), legend="fleet"), Query(expr=_HELD, legend="held"),
            Query(expr=_BUSY, legend="busy"),
        ),
        colours={"fleet": palette.QUIET, "held": palette.STATES["allocated"], "busy": palette.STATES["busy"]},
    ),
    Panel(
        kind="timeseries", title="How busy claims keep their GPUs", width=12, height=8, unit="percentunit", minimum=0,
        maximum=1,
        description="Busy part of the held time, over the claims: half of them lie below the median, a tenth below "
        "the lowest line.",
        queries=tuple(
            Query(
                expr=f"quantile({share}, max by (cluster, namespace, resourceclaim, claim_uid) "
                f"(claim:dra_claim_gpu_busy_per_allocated:ratio_rate5m{{{CLUSTER}}}))",
                legend=name,
            )
            for share, name in ((0.9, "busiest tenth"), (0.5, "median"), (0.1, "idlest tenth"))
        ),
        colours={
            "busiest tenth": palette.STATES["busy"], "median": palette.NEUTRAL, "idlest tenth": palette.STATES["idle"],
        },
    ),
))  # fmt: skip

_WASTE: Final = Row(title="What is held and not used, and what does it cost? Over the chosen time", panels=(
    Panel(
        kind="stat", title="Held", width=4, height=4, unit="percentunit", decimals=0,
        description="Part of the fleet's GPU-hours in which somebody held the GPU.",
        queries=(Query(expr=by_account.held_part(), legend="held", instant=True),),
    ),
    Panel(
        kind="stat", title="Busy while held", width=4, height=4, unit="percentunit", decimals=0,
        description="Part of the held time in which the GPU worked, of the GPUs on which that can be measured.",
        queries=(Query(expr=by_account.busy_part(CLUSTER, "cluster"), legend="busy", instant=True),),
        thresholds=_USED_WELL,
    ),
    Panel(
        kind="stat", title="Wasted GPU-hours", width=4, height=4, unit="short",
        description="GPU-hours that were held and in which the GPU did not work.",
        queries=(Query(expr=_WASTED, legend="wasted", instant=True),),
    ),
    Panel(
        kind="stat", title="Cost of the waste", width=4, height=4, unit=CURRENCY, decimals=2,
        description="Wasted GPU-hours times the price of a GPU-hour, which is a variable of this board.",
        queries=(Query(expr=cost(_WASTED), legend="cost", instant=True),),
    ),
    Panel(
        kind="stat", title="Idle GPU-hours", width=4, height=4, unit="short",
        description=f"GPU-hours in which a holder used its device less than {IDLE_BELOW:.0%} of five minutes: the part "
        "of the waste that giving back would save.",
        queries=(Query(expr=_IDLE, legend="idle", instant=True),),
    ),
    Panel(
        kind="stat", title="Cost of idle GPUs", width=4, height=4, unit=CURRENCY, decimals=2,
        description="Idle GPU-hours times the price of a GPU-hour.",
        queries=(Query(expr=cost(_IDLE), legend="cost", instant=True),),
    ),
    Panel(
        kind="bargauge", title="Wasted GPU-hours by namespace", width=9, height=8, unit="short", minimum=0,
        description="GPU-hours that were held and not used, in the ten namespaces with most of them.",
        queries=(Query(
            expr=f"topk(10, {by_account.wasted_hours(CLUSTER, by='namespace')})", legend="{{namespace}}",
            instant=True,
        ),),
        thresholds=(Step(colour=palette.STATES["idle"]),),
    ),
    Panel(
        kind="table", title="Who wastes most", width=15, height=8, sort_by="-Wasted GPU-hours",
        description="The ten holders with most GPU-hours that were held and not used. A holder is a ResourceClaim, or "
        "a pod of the device plugin.",
        queries=(Query(expr=_MOST_WASTEFUL, instant=True), Query(expr=cost(_MOST_WASTEFUL), instant=True)),
        columns=(
            Column(source="namespace", title="Namespace"),
            Column(source="resourceclaim", title="Claim", links=(_TO_CLAIM,)),
            Column(source="pod", title="Pod"),
            Column(source="A", title="Wasted GPU-hours", unit="short", width=150),
            Column(source="B", title="Cost", unit=CURRENCY, width=90),
        ),
    ),
))  # fmt: skip

_HEAT: Final = Row(title="Power, heat and errors", panels=(
    Panel(
        kind="timeseries", title="Power of claims", width=12, height=8, unit="watt", minimum=0, stacked=True,
        description="What claims draw, in the twelve namespaces with most of it at the end of the chosen time. What "
        "nobody holds costs power too: the numbers beside it say how much.",
        queries=(Query(
            expr=f"sum by (namespace) ({_WATTS.format('')}) and "
            f"topk(12, sum by (namespace) ({_WATTS.format(' @ end()')}))",
            legend="{{namespace}}",
        ),),
    ),
    Panel(
        kind="stat", title="Energy", width=4, height=4, unit="watth",
        description="Energy that the GPUs used in the chosen time, as their drivers count it.",
        queries=(Query(
            expr=f"sum({by_account.grown('gpu_energy_joules_total', WHOLE, DEVICE)}) / 3600",
            legend="energy", instant=True,
        ),),
    ),
    Panel(
        kind="stat", title="Energy that nobody used", width=4, height=4, under=True, unit="watth",
        description="The part of it that GPUs used while nobody held them.",
        queries=(Query(
            expr=f"sum({by_account.grown('gpu_unattributed_energy_joules_total', CLUSTER, DEVICE)}) / 3600",
            legend="energy", instant=True,
        ),),
    ),
    Panel(
        kind="bargauge", title="Hottest GPUs", width=8, height=8, unit="celsius", minimum=20, maximum=100,
        description="The ten highest GPU temperatures. Each model has a limit of its own; the node's board shows it.",
        queries=(Query(
            expr=f'topk(10, max by (cluster, node, gpu) (gpu_temperature_celsius{{{WHOLE}, sensor="gpu"}}))',
            legend="{{node}} GPU {{gpu}}", instant=True,
        ),),
        thresholds=(
            Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=80), Step(colour=palette.BAD, value=87),
        ),
        links=(_TO_NODE_OF_SERIES,),
    ),
    Panel(
        kind="bargauge", title="GPUs held back by heat or power", width=12, height=7, unit="percentunit", minimum=0,
        maximum=1, no_value="no GPU is held back",
        description="The ten GPUs that lose most of their time to a slowdown now, as their drivers count it. A "
        "software power cap is left out: under load it is normal. The node's board shows it over time.",
        queries=(Query(
            expr=f"topk(10, max by (cluster, node, gpu, reason) (rate(gpu_throttle_seconds_total{{{WHOLE}, "
            f'reason=~"hw_thermal|sw_thermal|hw_power_brake|reliability"}}[{RATE}])) > 0)',
            legend="{{node}} GPU {{gpu}}: {{reason}}", instant=True, may_be_empty="no GPU is held back",
        ),),
        thresholds=(Step(colour=palette.WARNING),), links=(_TO_NODE_OF_SERIES,),
    ),
    Panel(
        kind="timeseries", title="XID errors", width=12, height=7, unit="short", minimum=0, bars=True, stacked=True,
        no_value="no XID was reported", shades=palette.BAD,
        description="Devices whose driver reported an XID, by code: one bar for each report, at the step in which it "
        "was scraped. The health board has more.",
        queries=(Query(expr=by_account.NEW_XIDS, legend="XID {{xid}}", may_be_empty="no XID was reported"),),
        links=(_TO_HEALTH,),
    ),
))  # fmt: skip

BOARD: Final = Dashboard(
    uid="claimscope-fleet",
    title="claimscope / Fleet overview",
    description="What needs somebody now, whether the GPUs are put to use, and what it costs where they are not. "
    "It reads the recording rules of claimscope.",
    variables=(DATASOURCE_VARIABLE, CLUSTER_VARIABLE, PRICE_VARIABLE),
    annotations=(xids(CLUSTER + GRAVE, enabled=False), taints(enabled=False)),
    rows=(_NOW, _USE, _WASTE, _HEAT),
)  # fmt: skip
