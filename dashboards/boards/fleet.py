"""Fleet overview: does anything need somebody now, are the GPUs put to use, and what is the waste worth?"""

from __future__ import annotations

from typing import Final

from dashboards import expressions as by_account
from dashboards import palette
from dashboards.annotations import GRAVE, taints, xids
from dashboards.boards.common import (
    ALARM,
    CARE,
    HOT_CELSIUS,
    LEADS,
    LOST,
    TO_CLAIM,
    TO_CLAIMS,
    TO_HEALTH,
    TO_ITSELF,
    TO_NODE,
    TO_NODE_OF_SERIES,
    TO_RUNBOOK,
    USED_WELL,
    WAITS,
    WARM_CELSIUS,
    counted,
    now,
    tile,
)
from dashboards.expressions import (
    AGENTS_ANSWER,
    ALERTS_ARE_LOADED,
    CLUSTER,
    CONTROLLER_ANSWERS,
    DEVICE,
    HOLDER,
    IDLE_BELOW,
    RATE,
    RULES_RECORD,
    WHOLE,
    number,
    watt_hours,
)
from dashboards.grafana import (
    CLUSTER_VARIABLE,
    DATASOURCE_VARIABLE,
    Column,
    Dashboard,
    Panel,
    Query,
    Row,
    Step,
)
from dashboards.price import CURRENCY, PRICE_VARIABLE, cost

_WAIT: Final = "cluster, namespace, resourceclaim, pod, deviceclass"
_WAITING: Final = by_account.overdue(CLUSTER)
_AGENTS: Final = f'max by (cluster, instance) (up{{{CLUSTER}, job=~".*claimscope-agent.*"}})'
_BAD_STATES: Final = {state: row for state, row in palette.HEALTH.items() if state != "ok"}
_HELD: Final = f"(sum({by_account.gpus('held', CLUSTER, 'cluster')}) or {RULES_RECORD})"
_BUSY: Final = f"(sum({by_account.gpus('busy', CLUSTER, 'cluster')}) or {RULES_RECORD})"
_WASTED: Final = by_account.wasted_hours(CLUSTER, "cluster")
_IDLE: Final = by_account.hours("idle", CLUSTER, "cluster")
_MOST_WASTEFUL: Final = f"topk(10, {by_account.wasted_hours(CLUSTER, 'holder', HOLDER)})"
_WATTS: Final = (
    f"max by (cluster, namespace) (namespace:gpu_held_energy_joules:rate5m{{{{{CLUSTER}}}}}{{}})"  # and a moment
)
_HEALTHY: Final = "every GPU is healthy"
_NOBODY_WAITS: Final = "no claim waits"
_NOTHING_FIRES: Final = "no alert fires, or the rules are not loaded"


def _firing(severity: str) -> str:
    """What is only information pages and tells nobody; the watchdog, which always fires, has the severity "none"."""
    return f'ALERTS{{{CLUSTER}, component="dra", alertstate="firing", severity=~"{severity}"}}'


def _devices_in(state: str) -> str:
    return counted(f'max by (cluster, node, uuid) (gpu_health{{{CLUSTER}, state="{state}"}}) == 1', AGENTS_ANSWER)


_NOW: Final = Row(title="Does anything need somebody now?", panels=(
    tile(
        "Critical alerts", "Critical alerts of claimscope's rules that fire now: somebody has to act.",
        now(counted(_firing("critical"), ALERTS_ARE_LOADED), "firing"), thresholds=ALARM, width=3,
    ),
    tile(
        "Warnings", "Alerts that fire now and can wait until somebody has time.",
        now(counted(_firing("warning"), ALERTS_ARE_LOADED), "firing"), thresholds=CARE, width=3,
    ),
    tile(
        "Unhealthy", "Devices that should get no new work: the driver or the hardware says so.",
        now(_devices_in("unhealthy"), "unhealthy"), thresholds=ALARM, links=(TO_HEALTH,), width=3,
    ),
    tile(
        "Lost", "Devices that do not answer, or that were there and are gone.",
        now(_devices_in("lost"), "lost"), thresholds=LOST, links=(TO_HEALTH,), width=3,
    ),
    tile(
        "Degraded", "Devices with a finding that does not keep work away: slowed by heat, errors that were corrected.",
        now(_devices_in("degraded"), "degraded"), thresholds=CARE, links=(TO_HEALTH,), width=3,
    ),
    tile(
        "Silent agents", "Agents that Prometheus cannot scrape: nobody watches their GPUs.",
        now(counted(f"{_AGENTS} == 0", f"0 * max({_AGENTS})"), "silent"), thresholds=ALARM, links=(TO_ITSELF,), width=3,
    ),
    tile(
        "Leading controllers", "Exactly one replica of a cluster leads and serves what is known of claims, taints and "
        "pools; shown for the cluster that has the fewest. While none does, what rests on it is unknown.",
        now(
            f"min(sum by (cluster) (max by (cluster, instance) (claimscope_controller_leader{{{CLUSTER}}})))",
            "leaders",
        ),
        thresholds=LEADS, links=(TO_ITSELF,), no_value="none", no_value_colour=palette.BAD, width=3,
    ),
    tile(
        "Claims that wait", "ResourceClaims that a pod needs and that are not ready yet. Those that wait for a quota "
        "or a scheduling gate do not count, nor do claims that no pod wants.",
        now(counted(_WAITING), "waiting"), thresholds=WAITS, links=(TO_CLAIMS,), width=3,
    ),
    Panel(
        kind="table", title="Alerts", width=8, height=9, sort_by="Severity", no_value="no alert fires",
        description="What fires, and on how many things, critical ones first. The name leads to the alert's runbook.",
        queries=(Query(
            expr=f"count by (severity, alertname) ({_firing('critical|warning')})", instant=True,
            may_be_empty=_NOTHING_FIRES,
        ),),
        columns=(
            Column(source="severity", title="Severity", width=90, colours={
                "critical": palette.BAD, "warning": palette.WARNING,
            }),
            Column(source="alertname", title="Alert", links=(TO_RUNBOOK,)),
            Column(source="A", title="Firing", width=70),
        ),
    ),
    Panel(
        kind="table", title="GPUs that are not healthy", width=8, height=9, sort_by="-State", no_value=_HEALTHY,
        description="The worst state of each device, the worst first. The evidence stands on the node's own page and "
        "in `claimscope explain gpu UUID`.",
        queries=(Query(
            expr=number(_BAD_STATES, "gpu_health", CLUSTER, DEVICE), instant=True, may_be_empty=_HEALTHY,
        ),),
        columns=(
            Column(source="A", title="State", width=90, colours={
                state: colour for state, (_, colour) in _BAD_STATES.items()
            }, words={float(value): state for state, (value, _) in _BAD_STATES.items()}),
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="gpu", title="GPU", width=50),
            Column(source="uuid", title="UUID"),
        ),
    ),
    tile(
        "Longest wait", "Age of the oldest of the claims that wait. Beyond 5 minutes the owner of the claim is told.",
        now(f"max({_WAITING}) or {CONTROLLER_ANSWERS}", "longest wait"), unit="s", width=8, height=3,
        thresholds=(
            Step(colour=palette.GOOD), Step(colour=palette.NOTICE, value=60), Step(colour=palette.WARNING, value=300),
        ),
        links=(TO_CLAIMS,),
    ),
    Panel(
        kind="bargauge", title="Why claims wait", width=8, height=6, unit="short", minimum=0, under=True,
        no_value=_NOBODY_WAITS,
        description="Claims that pods need and that are not ready, by the cause that the controller found; here with "
        "those that wait for a quota or a scheduling gate. The claims board names them.",
        queries=(Query(
            expr=f"topk(8, count by (reason) (max by ({_WAIT}, reason) (dra_claim_pending_reason{{{CLUSTER}}})))",
            legend="{{reason}}", instant=True, may_be_empty=_NOBODY_WAITS,
        ),),
        thresholds=(Step(colour=palette.STATES["pending"]),), links=(TO_CLAIMS,),
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
        description="Busy part of the held time, over the claims of each cluster: half of them lie below the median, "
        "a tenth below the lowest line.",
        queries=tuple(
            Query(
                expr=f"max by (cluster) (cluster:dra_claim_gpu_busy_per_allocated:p{share}{{{CLUSTER}}})",
                legend=f"{name} {{{{cluster}}}}",
            )
            for share, name in ((90, "busiest tenth"), (50, "median"), (10, "idlest tenth"))
        ),
        patterns={
            "busiest tenth.*": palette.STATES["busy"], "median.*": palette.NEUTRAL,
            "idlest tenth.*": palette.STATES["idle"],
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
        thresholds=USED_WELL,
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
        kind="table", title="Who wastes most", width=15, height=8, sort_by="-Wasted GPU-hours", steps=40,
        description="The ten holders with most GPU-hours that were held and not used. A holder is a ResourceClaim, or "
        "a pod of the device plugin.",
        queries=(Query(expr=_MOST_WASTEFUL, instant=True), Query(expr=cost(_MOST_WASTEFUL), instant=True)),
        columns=(
            Column(source="namespace", title="Namespace"),
            Column(source="resourceclaim", title="Claim", links=(TO_CLAIM,)),
            Column(source="pod", title="Pod"),
            Column(source="A", title="Wasted GPU-hours", unit="short", width=150),
            Column(source="B", title="Cost", unit=CURRENCY, width=90),
        ),
    ),
))  # fmt: skip

_HEAT: Final = Row(title="Power, heat and errors", panels=(
    Panel(
        kind="timeseries", title="Power by namespace", width=12, height=8, unit="watt", minimum=0, stacked=True,
        description="What claims and device-plugin pods draw, in the twelve namespaces with most of it at the end of "
        "the chosen time. What nobody holds costs power too: the numbers beside it say how much.",
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
            expr=watt_hours(f"max by (cluster) (cluster:gpu_energy_joules:rate5m{{{CLUSTER}}})"), legend="energy",
            instant=True,
        ),),
    ),
    Panel(
        kind="stat", title="Energy that nobody used", width=4, height=4, under=True, unit="watth",
        description="The part of it that no claim and no pod of the device plugin can be given: GPUs that nobody held.",
        queries=(Query(
            expr=watt_hours(f"max by (cluster) (cluster:gpu_unattributed_energy_joules:rate5m{{{CLUSTER}}})"),
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
            Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=WARM_CELSIUS),
            Step(colour=palette.BAD, value=HOT_CELSIUS),
        ),
        links=(TO_NODE_OF_SERIES,),
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
        patterns=palette.by_reason(), links=(TO_NODE_OF_SERIES,),
    ),
    Panel(
        kind="timeseries", title="XID errors", width=12, height=7, unit="short", minimum=0, bars=True, stacked=True,
        no_value="no XID was reported", shades=palette.BAD,
        description="Devices whose driver reported an XID, by code: one bar for each report, at the step in which it "
        "was scraped. The health board has more.",
        queries=(Query(expr=by_account.NEW_XIDS, legend="XID {{xid}}", may_be_empty="no XID was reported"),),
        links=(TO_HEALTH,),
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
