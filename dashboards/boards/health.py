"""Health and taints: what is wrong with devices, what does claimscope do about it, and within which bounds?"""

from __future__ import annotations

from typing import Final

from dashboards import palette
from dashboards.annotations import taints, xids
from dashboards.boards.common import (
    ALARM,
    CARE,
    CELL_ALARM,
    CELL_CARE,
    LOST,
    NODES_VARIABLE,
    NOTE,
    TO_ITSELF,
    TO_NODE,
    TO_NODE_OF_SERIES,
    USED_UP,
    counted,
    now,
    tile,
)
from dashboards.expressions import (
    AGENTS_ANSWER,
    CLUSTER,
    CONTROLLER_ANSWERS,
    DEVICE,
    RANGE,
    RATE,
    errors,
    grown,
    number,
    words,
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

_NODES: Final = f'{CLUSTER}, node=~"$node"'
_HEALTHY: Final = "every device is healthy"
_NOT_TAINTED: Final = "no device is tainted"
_NO_MAINTENANCE: Final = "nobody asked for a maintenance"
_FINDING: Final = f"{DEVICE}, rule, state"
_BAD_STATES: Final = {state: row for state, row in reversed(palette.HEALTH.items()) if state != "ok"}
# From findings, which only devices have that are not well: the states of all others are many, and say nothing.
_STATES: Final = number(_BAD_STATES, "gpu_health_finding_info", _NODES, DEVICE, "severity")
_LONGEST: Final = (
    f"topk(50, max by ({DEVICE}) (count_over_time(gpu_health_finding_info{{{_NODES}}}[{RANGE}] @ end())))"
)
_TAINT: Final = "cluster, driver, pool, device, node, key, value, effect, rule"


def _in(state: str) -> str:
    return counted(f'max by (cluster, node, uuid) (gpu_health{{{_NODES}, state="{state}"}}) == 1', AGENTS_ANSWER)


_WRONG: Final = Row(title="What is wrong now?", panels=(
    tile(
        "Unhealthy", "Devices that should get no new work: the driver asks for a reset or a replacement, or an error "
        "was not contained.", now(_in("unhealthy"), "unhealthy"), thresholds=ALARM,
    ),
    tile("Lost", "Devices that do not answer, or that were there and are gone.", now(_in("lost"), "lost"),
         thresholds=LOST),
    tile(
        "Degraded", "Devices with a finding that does not keep work away: slowed by heat, errors that were corrected.",
        now(_in("degraded"), "degraded"), thresholds=CARE,
    ),
    tile(
        "Kept from work", "Devices that get no new claim because of a taint, whoever put it there.",
        now(
            counted(
                "max by (cluster, driver, pool, device) "
                f'(dra_device_taint_info{{{_NODES}, effect=~"NoSchedule|NoExecute"}})'
            ), "devices",
        ),
        thresholds=CARE,
    ),
    tile(
        "Taints held back", "Taints that claimscope wants and does not put up, or only as an announcement, for the "
        "reasons below.",
        now(f"sum(max by (cluster, reason) (dra_taint_held{{{CLUSTER}}}))", "held"), thresholds=NOTE,
    ),
    tile(
        "Nodes unmonitored", "Nodes with GPUs whose agent is silent or was never there. What was found before stands; "
        "nothing new is found.",
        now(f'sum(max by (cluster, agent) (dra_gpu_nodes{{{CLUSTER}, agent!="heard"}}))', "nodes"),
        thresholds=ALARM, links=(TO_ITSELF,),
    ),
    Panel(
        kind="table", title="Findings", width=10, height=10, sort_by="-Severity", no_value=_HEALTHY,
        description="Rules of health that stand against a device, the worst first. firing: it is so now. latched: it "
        "was so, and only a reset of the GPU or an acknowledgement clears it. The evidence is in `claimscope explain "
        "gpu UUID`.",
        queries=(
            Query(
                expr=f"max by ({_FINDING}) (gpu_health_finding_info{{{_NODES}}}) * on ({DEVICE}, rule) group_left () "
                f"(time() - max by ({DEVICE}, rule) (gpu_health_finding_since_timestamp_seconds{{{_NODES}}}))",
                may_be_empty=_HEALTHY,
            ),
            Query(
                expr=number(_BAD_STATES, "gpu_health_finding_info", _NODES, _FINDING, "severity"),
                may_be_empty=_HEALTHY,
            ),
        ),
        columns=(
            Column(source="B", title="Severity", width=90, colours={
                state: colour for state, (_, colour) in _BAD_STATES.items()
            }, words={float(value): state for state, (value, _) in _BAD_STATES.items()}),
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="gpu", title="GPU", width=50),
            Column(source="rule", title="Rule"),
            Column(source="state", title="State", width=80),
            Column(source="A", title="For", unit="s", width=90),
        ),
    ),
    Panel(
        kind="table", title="Taints on devices", width=14, height=10, sort_by="Effect", no_value=_NOT_TAINTED,
        description="Taints from DeviceTaintRules, and from drivers where there is no rule. None announces, NoSchedule "
        "keeps new claims away, NoExecute also evicts pods.",
        queries=(Query(
            expr=f"max by ({_TAINT}) (dra_device_taint_info{{{_NODES}}})", may_be_empty=_NOT_TAINTED,
        ),),
        columns=(
            Column(source="effect", title="Effect", width=100, colours={
                "None": palette.NEUTRAL, "NoSchedule": palette.STATES["tainted"], "NoExecute": palette.BAD,
            }),
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="device", title="Device", width=90),
            Column(source="key", title="Key"),
            Column(source="value", title="Value"),
            Column(source="rule", title="Rule"),
        ),
    ),
    Panel(
        kind="state-timeline", title="Devices that are not healthy, over time", width=24, height=9, no_value=_HEALTHY,
        description="The worst finding on each device that had one, of the 50 that had one longest. A gap is a time in "
        "which the device was ok.",
        queries=(Query(
            expr=f"({_STATES}) and on ({DEVICE}) {_LONGEST}", legend="{{node}} GPU {{gpu}}", may_be_empty=_HEALTHY,
        ),),
        words={value: word for value, word in words(palette.HEALTH).items() if value}, links=(TO_NODE_OF_SERIES,),
    ),
))  # fmt: skip

_BUDGET: Final = "max by (cluster, scope) (dra_taint_budget_{}{{{}}})"
_USED: Final = _BUDGET.format("used", CLUSTER)
_LIMIT: Final = _BUDGET.format("limit", CLUSTER)

_DOES: Final = Row(title="What does claimscope do about it?", panels=(
    tile(
        "Mode", "How far fencing goes: observe shows metrics only, announce taints without effect, enforce keeps work "
        "away. It goes less far than configured where the cluster cannot do it safely.",
        now(
            f"max({number(palette.MODE, 'claimscope_controller_taint_mode_info', CLUSTER, 'cluster', 'mode')})", "mode",
        ),
        thresholds=(Step(colour=palette.QUIET),), words=words(palette.MODE),
    ),
    tile(
        "Less far than configured", "Whether fencing goes less far than it is configured to. `claimscope taints list` "
        "says why.",
        now(
            counted(f'max by (cluster, reason) (claimscope_controller_taint_mode_info{{{CLUSTER}, reason!=""}})'),
            "lowered",
        ),
        thresholds=CARE, words={0.0: ("no", palette.GOOD), 1.0: ("yes", palette.WARNING)},
    ),
    tile(
        "Breaker", "Opens where too many devices were to be fenced at once: nothing new is put up, and what stands can "
        "still be lifted.",
        now(
            f"max({number(palette.BREAKER, 'claimscope_controller_taint_breaker_state', CLUSTER, 'cluster')})",
            "breaker",
        ),
        thresholds=(Step(colour=palette.GOOD),), words=words(palette.BREAKER),
    ),
    tile(
        "Paused", "Whether somebody has paused fencing with `claimscope taints pause`.",
        now(f"max(claimscope_controller_taint_paused{{{CLUSTER}}})", "paused"), thresholds=NOTE,
        words={0.0: ("no", palette.GOOD), 1.0: ("yes", palette.NOTICE)},
    ),
    tile(
        "Rules without effect", "DeviceTaintRules of claimscope of which the cluster has said nothing for a minute: a "
        "feature gate is off, or the controller for them does not run.",
        now(
            f"sum(max by (cluster, rule) (dra_taint_rule_ineffective{{{CLUSTER}}})) or {CONTROLLER_ANSWERS}", "rules",
        ),
        thresholds=ALARM,
    ),
    tile(
        "Pods evicted", "Over the chosen time, pods that a NoExecute taint on a device of theirs evicted.",
        now(
            "round(sum(max by (cluster, namespace, deviceclass) "
            f"(increase(dra_claim_evictions_total{{{CLUSTER}}}[{RANGE}]))))", "pods",
        ),
        thresholds=CARE,
    ),
    Panel(
        kind="table", title="Budgets", width=8, height=9, sort_by="-Used",
        description="What keeps fencing from taking too much. fleet, group and node count GPUs that anything keeps "
        "from work; rate those newly kept from it; cap the rules that stand. At its limit nothing more is fenced in "
        "that scope: somebody has to repair or to decide.",
        queries=(
            Query(expr=_USED), Query(expr=_LIMIT), Query(expr=f"{_USED} / ({_LIMIT} > 0)"),
        ),
        columns=(
            Column(source="scope", title="Scope"),
            Column(source="A", title="Count", width=70),
            Column(source="B", title="Limit", width=70),
            Column(source="C", title="Used", unit="percentunit", bar=True, thresholds=USED_UP),
        ),
    ),
    Panel(
        kind="timeseries", title="Why taints are held back", width=8, height=9, unit="short", minimum=0, stacked=True,
        no_value="none is held back",
        description="Taints that are wanted and not put up, by reason: a budget, the rate, a cap, a finding on many "
        "nodes at once (systemic), the breaker, a pause, the mode, or agents that are silent (stale).",
        queries=(Query(
            expr=f"sum by (reason) (max by (cluster, reason) (dra_taint_held{{{CLUSTER}}})) > 0", legend="{{reason}}",
            may_be_empty="no taint is held back",
        ),),
    ),
    Panel(
        kind="timeseries", title="Fences that stand", width=8, height=9, unit="short", minimum=0, stacked=True,
        description="DeviceTaintRules of claimscope that keep work away, by what was found; those that only announce; "
        "and taints on Nodes, for GPUs that no rule reaches.",
        queries=(
            Query(
                expr="sum by (severity) (max by (cluster, severity, effect) "
                f'(dra_taint_fences{{{CLUSTER}, effect!="None"}}))',
                legend="{{severity}}",
            ),
            Query(
                expr=f'sum(max by (cluster, severity, effect) (dra_taint_fences{{{CLUSTER}, effect="None"}}))',
                legend="announced only",
            ),
            Query(
                expr=f"sum(max by (cluster, key, effect) (dra_node_taints{{{CLUSTER}}}))", legend="on Nodes",
            ),
        ),
        colours={
            **{state: colour for state, (_, colour) in palette.HEALTH.items() if state != "ok"},
            "maintenance": palette.NOTICE, "announced only": palette.SOON, "on Nodes": palette.NEUTRAL,
        },
    ),
))  # fmt: skip

_ASIDE: Final = Row(title="Maintenance, constraints and evictions", collapsed=True, panels=(
    Panel(
        kind="table", title="Maintenance", width=12, height=7, sort_by="-For", no_value=_NO_MAINTENANCE,
        description="Nodes under `claimscope maintenance`, how far it is, and what it waits for. Nothing is evicted: "
        "whoever asked drains the node, or waits.",
        queries=(
            Query(
                expr=f"max by (cluster, node, state) (dra_node_maintenance_state{{{_NODES}}})",
                may_be_empty=_NO_MAINTENANCE,
            ),
            Query(
                expr=f"time() - max by (cluster, node) (dra_node_maintenance_start_timestamp_seconds{{{_NODES}}})",
                may_be_empty=_NO_MAINTENANCE,
            ),
            Query(
                expr=f"max by (cluster, node) (dra_node_maintenance_holders{{{_NODES}}})", may_be_empty=_NO_MAINTENANCE,
            ),
            Query(
                expr=f"max by (cluster, node) (dra_node_maintenance_deadline_missed{{{_NODES}}})",
                may_be_empty=_NO_MAINTENANCE,
            ),
        ),
        columns=(
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="state", title="Stage", colours={s: c for s, (_, c) in palette.MAINTENANCE.items()}),
            Column(source="B", title="For", unit="s", width=90),
            Column(source="C", title="Still holding", width=110, thresholds=CELL_CARE),
            Column(source="D", title="Deadline", width=90, words={0.0: "–", 1.0: "missed"},
                   colours={"missed": palette.BAD}),
        ),
    ),
    Panel(
        kind="timeseries", title="Constraints broken", width=6, height=7, unit="short",
        minimum=0, bars=True, no_value="none",
        description="Times that a device came to violate a constraint while a claim held it: a taint, a selector it no "
        "longer matches, or a finding about its heat, power, memory, links or clocks.",
        queries=(Query(
            expr="sum by (constraint) (max by (cluster, deviceclass, constraint) "
            f"(increase(dra_constraint_violations_total{{{CLUSTER}}}[{RATE}]))) > 0",
            legend="{{constraint}}", may_be_empty="no device violates a constraint in this time",
        ),),
    ),
    Panel(
        kind="timeseries", title="Pods deleted for taints", width=6, height=7, unit="short", minimum=0, bars=True,
        no_value="none",
        description="Evictions that claimscope saw, and pods that Kubernetes' own taint eviction controller says it "
        "deleted.",
        queries=(
            Query(
                expr="sum(max by (cluster, namespace, deviceclass) "
                f"(increase(dra_claim_evictions_total{{{CLUSTER}}}[{RATE}])))",
                legend="seen by claimscope",
            ),
            Query(
                expr="sum(max by (cluster, instance) "
                f"(increase(device_taint_eviction_controller_pod_deletions_total{{{CLUSTER}}}[{RATE}])))",
                legend="by kube-controller-manager", may_be_empty="kube-controller-manager is not scraped",
            ),
        ),
    ),
))  # fmt: skip


def _set(family: str) -> str:
    return f"max by ({DEVICE}) ({family}{{{_NODES}}}) == 1"


_YES: Final = {1.0: "yes"}
_CLEAN: Final = "no memory error in this time, and none that waits for a reset"
_LINKS_GOOD: Final = "every NVLink works, or there is none"
_DOWN: Final = f"max by ({DEVICE}) (device:gpu_nvlink_down:count{{{_NODES}}})"
_ECC: Final = "device_type:gpu_ecc_device_errors:increase5m"
_XIDS: Final = f"max by ({DEVICE}, xid) (gpu_xid_last_timestamp_seconds{{{_NODES}}})"
_SLOWED: Final = "hw_thermal|sw_thermal|hw_power_brake"

_HARDWARE: Final = Row(title="What does the hardware say? Over the chosen time", panels=(
    Panel(
        kind="table", title="XIDs", width=12, height=9, sort_by="Last", no_value="no XID was reported",
        description="Errors that the driver reported, by code, the newest first. What a code means is in NVIDIA's XID "
        "catalogue; which of them count as a fault is decided by the rules of health, so look at findings first.",
        queries=(
            Query(expr=f"time() - {_XIDS}", may_be_empty="no XID was reported"),
            Query(
                expr=f"{grown('gpu_xid_errors_total', _NODES, f'{DEVICE}, xid')} > 0",
                may_be_empty="no XID was reported in this time",
            ),
        ),
        columns=(
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="gpu", title="GPU", width=50),
            Column(source="xid", title="XID", width=70),
            Column(source="A", title="Last", unit="s", width=110),
            Column(source="B", title="In this time", width=110, thresholds=CELL_CARE),
        ),
    ),
    Panel(
        kind="table", title="Memory", width=12, height=9, sort_by="-Uncorrected", no_value=_CLEAN,
        description="Devices with errors in their memory, counted up to five minutes ago, or with rows that wait to be "
        "replaced. A row without a spare one is a case for the manufacturer.",
        queries=(
            Query(expr=errors(_ECC, f'{_NODES}, type="uncorrected"'), may_be_empty=_CLEAN),
            Query(expr=errors(_ECC, f'{_NODES}, type="corrected"'), may_be_empty=_CLEAN),
            Query(expr=errors("device:gpu_remapped_rows:increase5m", _NODES), may_be_empty=_CLEAN),
            Query(expr=_set("gpu_row_remap_pending"), may_be_empty=_CLEAN),
            Query(expr=_set("gpu_row_remap_failure"), may_be_empty=_CLEAN),
        ),
        columns=(
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="gpu", title="GPU", width=50),
            Column(source="A", title="Uncorrected", width=110, thresholds=CELL_ALARM),
            Column(source="B", title="Corrected", width=100),
            Column(source="C", title="Rows replaced", width=120, thresholds=CELL_CARE),
            Column(source="D", title="Waits for reset", width=120, words=_YES, colours={"yes": palette.WARNING}),
            Column(source="E", title="No spare row", width=110, words=_YES, colours={"yes": palette.BAD}),
        ),
    ),
    Panel(
        kind="table", title="NVLink", width=8, height=8, sort_by="-Down", no_value=_LINKS_GOOD,
        description="GPUs with NVLinks that are down, or with errors on them, counted up to five minutes ago. One "
        "error is often counted as a replay, a recovery and a CRC error: shown is the type with most.",
        queries=(
            Query(expr=_DOWN, may_be_empty=_LINKS_GOOD),
            Query(expr=errors("device:gpu_nvlink_errors:increase5m", _NODES), may_be_empty=_LINKS_GOOD),
        ),
        columns=(
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="gpu", title="GPU", width=50),
            Column(source="A", title="Down", width=70, thresholds=CELL_ALARM),
            Column(source="B", title="Errors", width=90, thresholds=CELL_CARE),
        ),
    ),
    Panel(
        kind="bargauge", title="GPUs slowed by heat or power brake", width=8, height=8, unit="percentunit", minimum=0,
        maximum=1, no_value="none is slowed", links=(TO_NODE_OF_SERIES,),
        description="The ten GPUs whose clocks are held back most by heat or by the power brake, now, as a part of the "
        "time. Several on one node point at its fans or its power supply, several nodes of one rack at the room.",
        queries=(Query(
            expr=f"topk(10, max by ({DEVICE}, reason) "
            f'(rate(gpu_throttle_seconds_total{{{_NODES}, reason=~"{_SLOWED}"}}[{RATE}]))) > 0',
            legend="{{node}} GPU {{gpu}}: {{reason}}", instant=True, may_be_empty="no GPU is slowed by heat or power",
        ),),
        patterns=palette.by_reason(),
    ),
    Panel(
        kind="bargauge", title="Which rules find something", width=8, height=8, unit="short", minimum=0,
        no_value=_HEALTHY,
        description="Devices by the rule that stands against them. One rule on many nodes at once is rather a driver, "
        "an image or the room than so many GPUs.",
        queries=(Query(
            expr="topk(12, count by (rule) "
            f"(max by (cluster, node, uuid, rule) (gpu_health_finding_info{{{_NODES}}})))",
            legend="{{rule}}", instant=True, may_be_empty=_HEALTHY,
        ),),
        thresholds=(Step(colour=palette.WARNING),),
    ),
))  # fmt: skip

BOARD: Final = Dashboard(
    uid="claimscope-health",
    title="claimscope / Health and taints",
    description="What is wrong with devices, what claimscope does about it, and within which bounds. "
    "It reads the recording rules of claimscope.",
    variables=(
        DATASOURCE_VARIABLE, CLUSTER_VARIABLE, NODES_VARIABLE,
    ),
    annotations=(taints(_NODES), xids(_NODES)),
    time_from="now-6h",
    rows=(_WRONG, _DOES, _HARDWARE, _ASIDE),
)  # fmt: skip
