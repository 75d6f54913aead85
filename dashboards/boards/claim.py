"""One claim: what is it, how far is it, what do its devices do, and are they well?"""

from __future__ import annotations

from typing import Final

from dashboards import expressions as by_account
from dashboards import palette
from dashboards.annotations import taints, xids
from dashboards.boards.common import USED_WELL
from dashboards.expressions import CLAIM, DEVICE, RANGE, RATE
from dashboards.grafana import (
    CLUSTER_VARIABLE,
    DATASOURCE_VARIABLE,
    Column,
    Dashboard,
    Link,
    Panel,
    Query,
    Row,
    Variable,
)
from dashboards.price import CURRENCY, PRICE_VARIABLE, cost

_THIS: Final = 'cluster=~"$cluster", namespace="$namespace", resourceclaim="$resourceclaim"'
_NODES: Final = 'cluster=~"$cluster", node=~"$node"'  # on which the claim has devices
_PER_DEVICE: Final = "cluster, node, uuid"
_EDGE: Final = f'max by (cluster, node, uuid) (gpu_allocation_info{{{_THIS}}})'
# Of a MIG device, the GPU that it is cut from: heat, clocks and links are the GPU's.
_BOARD: Final = (
    f'label_replace(max by (cluster, node, parent_uuid) (gpu_info{{{_NODES}, parent_uuid!=""}} '
    f'and on (cluster, node, uuid) {_EDGE}), "uuid", "$1", "parent_uuid", "(.+)")'
)
_NOT_HELD: Final = "the claim holds no device now"
_NO_LINKS: Final = "the devices have no NVLink"
_NOT_MEASURED: Final = "busy time cannot be measured on these devices"
_NOT_HELD_BACK: Final = "the devices are not held back"
_NO_WAIT: Final = "the claim does not wait"

_TO_NODE: Final = Link(title="This node", to="claimscope-node", variables={"node": "${__data.fields.Node}"})
_TO_NODE_OF_SERIES: Final = Link(title="This node", to="claimscope-node", variables={"node": "${__field.labels.node}"})
_TO_HEALTH: Final = Link(title="Health and taints", to="claimscope-health")
_TO_CLAIMS: Final = Link(
    title="Claims of this namespace", to="claimscope-claims", variables={"namespace": "$namespace"}
)


def _held(expr: str) -> str:
    """Of the devices that the claim holds, MIG devices as they are."""
    return f"{expr} and on (cluster, node, uuid) {_EDGE}"


def _boards(expr: str) -> str:
    """Of the GPUs that the claim holds or holds a part of."""
    return f"{expr} and on (cluster, node, uuid) ({_EDGE} or {_BOARD})"


def _named(expr: str) -> str:
    """By device, with what people call it: accounts know its UUID only."""
    return (
        f"{expr} * on ({_PER_DEVICE}) group_left (gpu, mig_profile) "
        f"max by ({_PER_DEVICE}, gpu, mig_profile) (gpu_info{{{_NODES}}})"
    )


def _rate(family: str, by: str = _PER_DEVICE, selector: str = "", split: str = "") -> str:
    return by_account.of_claim(family, _THIS, RATE, by, selector=selector, split=split)


_BUSY: Final = _rate("dra_claim_gpu_busy_seconds_total", selector=', engine="gpu"')
_DEVICE_NAME: Final = "{{node}} GPU {{gpu}} {{mig_profile}}"
_STATE: Final = by_account.number(
    palette.CLAIM, "kube_resourceclaim_status_allocation_state", _THIS, f"{CLAIM}, claim_uid"
)

_FACTS: Final = Row(title="$namespace / $resourceclaim", panels=(
    Panel(
        kind="stat", title="State", width=4, height=4, background=True, no_value="gone",
        description="Where the claim is in its life: pending, allocated (devices are chosen), reserved (a pod may use "
        "them), prepared (the driver has made them ready), running, released.",
        queries=(Query(expr=f"max({_STATE})", legend="state", instant=True),),
        words=by_account.words(palette.CLAIM), links=(_TO_CLAIMS,),
    ),
    Panel(
        kind="stat", title="Devices", width=3, height=4, unit="short", no_value="none",
        description="GPUs and MIG devices that the claim is allocated. Those that it only looks at, by admin access, "
        "do not count.",
        queries=(Query(
            expr=f'count(max by (driver, pool, device) (dra_claim_device_info{{{_THIS}, admin_access="false"}}))',
            legend="devices", instant=True, may_be_empty=_NOT_HELD,
        ),),
    ),
    Panel(
        kind="stat", title="Worst health", width=4, height=4, background=True, no_value="holds nothing",
        description="The worst state of the devices that the claim holds, and of the GPUs of which it holds a part. "
        "Which ones they are stands below.",
        queries=(Query(
            expr=f"max({_boards(f'({by_account.health(_NODES)})')})", legend="health", instant=True,
            may_be_empty=_NOT_HELD,
        ),),
        words=by_account.words(palette.HEALTH), links=(_TO_HEALTH,),
    ),
    Panel(
        kind="stat", title="Busy while held", width=4, height=4, unit="percentunit", decimals=0,
        no_value="not measured",
        description="Part of the held time in which the devices worked, over the chosen time.",
        queries=(Query(
            expr=by_account.busy_part(_THIS, "holder", CLAIM), legend="busy", instant=True,
            may_be_empty=_NOT_MEASURED,
        ),),
        thresholds=USED_WELL,
    ),
    Panel(
        kind="stat", title="GPU-hours", width=3, height=4, unit="short",
        description="Held over the chosen time. A MIG device counts as its part of a GPU, a share as its share.",
        queries=(Query(
            expr=by_account.hours("held", _THIS, "holder"), legend="held", instant=True,
        ),),
    ),
    Panel(
        kind="stat", title="Cost", width=3, height=4, unit=CURRENCY, decimals=2,
        description="GPU-hours times the price of a GPU-hour, which is a variable of this board.",
        queries=(Query(
            expr=cost(by_account.hours("held", _THIS, "holder")), legend="cost", instant=True,
        ),),
    ),
    Panel(
        kind="stat", title="Energy", width=3, height=4, unit="watth",
        description="The claim's part of the energy that its devices used over the chosen time.",
        queries=(Query(
            expr=f"{by_account.of_claim('dra_claim_gpu_energy_joules_total', _THIS, RANGE)} / 3600", legend="energy",
            instant=True, may_be_empty=_NOT_HELD,
        ),),
    ),
    Panel(
        kind="table", title="What it is", width=24, height=3,
        description="Device class, where the claim comes from, and the workload behind it. A claim of a prioritized "
        "list shows which alternative it got.",
        queries=(
            Query(
                expr=f"max by ({CLAIM}, claim_uid, deviceclass, template, source, alternative, workload_kind, "
                f"workload, pod_group, queue) (dra_claim_info{{{_THIS}}})",
                instant=True,
            ),
            Query(
                expr=f"1000 * max by ({CLAIM}, claim_uid) (dra_claim_created_timestamp_seconds{{{_THIS}}})",
                instant=True,
            ),
        ),
        columns=(
            Column(source="deviceclass", title="Class"), Column(source="alternative", title="Alternative"),
            Column(source="source", title="Source"), Column(source="template", title="Template"),
            Column(source="workload_kind", title="Kind"), Column(source="workload", title="Workload"),
            Column(source="pod_group", title="Gang"), Column(source="queue", title="Queue"),
            Column(source="B", title="Created", unit="dateTimeAsIso"), Column(source="claim_uid", title="UID"),
        ),
    ),
))  # fmt: skip

_LIFE: Final = Row(title="How did it go?", panels=(
    Panel(
        kind="state-timeline", title="Life of the claim", width=8, height=6,
        description="The claim's states over time.",
        queries=(Query(expr=_STATE, legend="{{resourceclaim}}"),), words=by_account.words(palette.CLAIM), legend=False,
    ),
    Panel(
        kind="state-timeline", title="Health of its devices", width=8, height=6, no_value=_NOT_HELD,
        description="The worst finding over time on each device that the claim holds, and on each GPU of which it "
        "holds a part.",
        queries=(Query(
            expr=_boards(f"({by_account.health(_NODES)})"), legend="{{node}} GPU {{gpu}}", may_be_empty=_NOT_HELD,
        ),),
        words=by_account.words(palette.HEALTH), legend=False, links=(_TO_HEALTH,),
    ),
    Panel(
        kind="timeseries", title="Why it waited", width=8, height=6, unit="s", minimum=0, no_value=_NO_WAIT,
        description="How long the claim had waited, by cause. Empty for a claim that did not have to wait.",
        queries=(Query(
            expr=f"max by (reason) (dra_claim_pending_reason{{{_THIS}}} * on ({CLAIM}, claim_uid, pod, deviceclass) "
            f"group_left () max by ({CLAIM}, claim_uid, pod, deviceclass) (dra_claim_pending_seconds{{{_THIS}}}))",
            legend="{{reason}}", may_be_empty=_NO_WAIT,
        ),),
    ),
    Panel(
        kind="table", title="Pods and devices", width=16, height=6, no_value=_NOT_HELD,
        description="Which container of which pod holds which device, now. Several pods may share a claim.",
        queries=(Query(
            expr=f"max by (pod, container, request, node, driver, device, uuid) (gpu_allocation_info{{{_THIS}}})",
            instant=True, may_be_empty=_NOT_HELD,
        ),),
        columns=(
            Column(source="pod", title="Pod"), Column(source="container", title="Container", width=100),
            Column(source="request", title="Request", width=90),
            Column(source="node", title="Node", links=(_TO_NODE,)), Column(source="device", title="Device"),
            Column(source="driver", title="Driver"), Column(source="uuid", title="UUID"),
        ),
    ),
    Panel(
        kind="table", title="How its part is known", width=8, height=6, no_value=_NOT_HELD,
        description="exclusive: the claim alone holds the device, and all of it is the claim's. share: several do, and "
        "it is split by declared share. process: it is split by what each process does.",
        queries=(Query(
            expr=f"count by (node, attribution) (max by (node, uuid, attribution) "
            f"(dra_claim_gpu_allocated_seconds_total{{{_THIS}}}))",
            instant=True, may_be_empty=_NOT_HELD,
        ),),
        columns=(
            Column(source="node", title="Node", links=(_TO_NODE,)),
            Column(source="attribution", title="Attribution", colours={
                "exclusive": palette.GOOD, "process": palette.NEUTRAL, "share": palette.NOTICE,
            }),
            Column(source="A", title="Devices", width=80),
        ),
    ),
))  # fmt: skip

_WORK: Final = Row(title="What do its devices do?", panels=(
    Panel(
        kind="timeseries", title="Busy", width=8, height=8, unit="percentunit", minimum=0, maximum=1,
        description="Part of the time in which each device worked for this claim.",
        queries=(Query(
            expr=_named(_BUSY), legend=_DEVICE_NAME, may_be_empty=_NOT_MEASURED,
        ),),
        links=(_TO_NODE_OF_SERIES,),
    ),
    Panel(
        kind="timeseries", title="Lowest and highest use within a minute", width=8, height=8, unit="percentunit",
        minimum=0, maximum=1,
        description="Over the devices: the lowest and the highest sample of the last full minute, of ten samples a "
        "second. A job that swings between the two waits for something: data, or another device.",
        queries=(
            Query(
                expr="max(" + _held(f'max by ({DEVICE}) (gpu_utilization_max_ratio{{{_NODES}, engine="gpu"}})') + ")",
                legend="highest", may_be_empty=_NOT_MEASURED,
            ),
            Query(
                expr=f"avg({_BUSY})", legend="mean", may_be_empty=_NOT_MEASURED,
            ),
            Query(
                expr="min(" + _held(f'max by ({DEVICE}) (gpu_utilization_min_ratio{{{_NODES}, engine="gpu"}})') + ")",
                legend="lowest", may_be_empty=_NOT_MEASURED,
            ),
        ),
        colours={"highest": palette.NEUTRAL, "mean": palette.STATES["busy"], "lowest": palette.NEUTRAL},
        bands={"highest": "lowest"},
    ),
    Panel(
        kind="timeseries", title="Memory", width=8, height=8, unit="bytes", minimum=0,
        description="GPU memory that the claim's processes use, by device, and what the devices have.",
        queries=(
            Query(
                expr=_named(f"max by ({_PER_DEVICE}) (dra_claim_gpu_memory_used_bytes{{{_THIS}}})"),
                legend=_DEVICE_NAME, may_be_empty=_NOT_HELD,
            ),
            Query(
                expr="max(" + _held(f"max by ({DEVICE}) (gpu_memory_total_bytes{{{_NODES}}})") + ")", legend="size",
                may_be_empty=_NOT_HELD,
            ),
        ),
        colours={"size": palette.QUIET}, dashed=("size",), links=(_TO_NODE_OF_SERIES,),
    ),
    Panel(
        kind="timeseries", title="Power", width=8, height=8, unit="watt", minimum=0, stacked=True,
        description="The claim's part of the power of its devices.",
        queries=(Query(
            expr=_named(_rate("dra_claim_gpu_energy_joules_total")), legend=_DEVICE_NAME, may_be_empty=_NOT_HELD,
        ),),
        links=(_TO_NODE_OF_SERIES,),
    ),
    Panel(
        kind="timeseries", title="Clock", width=8, height=8, unit="hertz", minimum=0,
        description="Clock of the streaming multiprocessors of the GPUs behind the claim. One that stays below the "
        "others slows the whole job down.",
        queries=(Query(
            expr=_boards(f'max by ({DEVICE}) (gpu_clock_hertz{{{_NODES}, domain="sm"}})'),
            legend="{{node}} GPU {{gpu}}", may_be_empty=_NOT_HELD,
        ),),
        links=(_TO_NODE_OF_SERIES,),
    ),
    Panel(
        kind="timeseries", title="Time held back", width=8, height=8, unit="percentunit", minimum=0,
        description="Part of the time in which clocks were held back, of the device that it was worst on, by reason. "
        "A power cap under full load is normal; heat and the power brake are not.",
        queries=(Query(
            expr=f"max by (reason) ({_rate('dra_claim_gpu_throttle_seconds_total', 'uuid, reason', split='reason')}) "
            "> 0",
            legend="{{reason}}", may_be_empty=_NOT_HELD_BACK,
        ),),
        colours=palette.THROTTLE,
    ),
    Panel(
        kind="timeseries", title="Temperature", width=8, height=8, unit="celsius",
        description="GPU temperature of the devices behind the claim.",
        queries=(Query(
            expr=_boards(f'max by ({DEVICE}) (gpu_temperature_celsius{{{_NODES}, sensor="gpu"}})'),
            legend="{{node}} GPU {{gpu}}", may_be_empty=_NOT_HELD,
        ),),
        links=(_TO_NODE_OF_SERIES,),
    ),
    *(
        Panel(
            kind="timeseries", title=name, width=8, height=8, unit="Bps",
            description=f"Bytes that the devices send and receive over {name}, of all devices together; received bytes "
            "stand below zero.",
            queries=(
                Query(
                    expr=_rate(f"dra_claim_gpu_{link}_transmit_bytes_total", by="namespace"), legend="sent",
                    may_be_empty=reason,
                ),
                Query(
                    expr=f"-1 * {_rate(f'dra_claim_gpu_{link}_receive_bytes_total', by='namespace')}",
                    legend="received", may_be_empty=reason,
                ),
            ),
            colours={"sent": palette.NEUTRAL, "received": palette.GOOD},
        )
        for name, link, reason in (("NVLink", "nvlink", _NO_LINKS), ("PCIe", "pcie", _NOT_HELD))
    ),
))  # fmt: skip

BOARD: Final = Dashboard(
    uid="claimscope-claim",
    title="claimscope / One claim",
    description="Everything about one ResourceClaim: facts, life, devices, what they do, and whether they are well. "
    "It reads the recording rules of claimscope.",
    variables=(
        DATASOURCE_VARIABLE, CLUSTER_VARIABLE,
        Variable(
            name="namespace", label="Namespace", multiple=False,
            query='label_values(dra_claim_info{cluster=~"$cluster"}, namespace)',
        ),
        Variable(
            name="resourceclaim", label="Claim", multiple=False,
            query='label_values(dra_claim_info{cluster=~"$cluster", namespace="$namespace"}, resourceclaim)',
        ),
        Variable(
            name="node", label="Node", listed=True,
            query='label_values(dra_claim_device_info{cluster=~"$cluster", namespace="$namespace", '
            'resourceclaim="$resourceclaim"}, node)',
            may_be_empty=_NOT_HELD,
        ),
        PRICE_VARIABLE,
    ),
    annotations=(
        taints(
            _NODES, f"max by (cluster, driver, pool, device) (dra_claim_device_info{{{_THIS}}})"
        ),
        xids(_NODES, f"({_EDGE} or {_BOARD})"),
    ),
    example={"namespace": "ml-research", "resourceclaim": "pretrain-gpus-demo-node-1"},
    rows=(_FACTS, _LIFE, _WORK),
)  # fmt: skip
