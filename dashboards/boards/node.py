"""One node: are its GPUs fit for work, who holds them, and what do the kubelet and the agent say?"""

from __future__ import annotations

from typing import Final

from dashboards import palette
from dashboards.annotations import taints, xids
from dashboards.boards.common import (
    ALARM,
    CARE,
    CELL_ALARM,
    CELL_CARE,
    HOT_CELSIUS,
    TO_CLAIM,
    TO_HEALTH,
    TO_ITSELF,
    WARM_CELSIUS,
    counted,
    now,
    silent_for,
    tile,
)
from dashboards.expressions import CONTROLLER_ANSWERS, DEVICE, RANGE, RATE, health, number, words
from dashboards.grafana import (
    CLUSTER_VARIABLE,
    DATASOURCE_VARIABLE,
    Column,
    Dashboard,
    Panel,
    Query,
    Row,
    Step,
    Variable,
)

_NODE: Final = 'cluster=~"$cluster", node="$node"'
_BOARDS: Final = f'{_NODE}, uuid=~"GPU-.*"'  # GPUs as they are plugged in
_KUBELET: Final = "the kubelet's own metrics are not scraped, or no claim was prepared in this time"
_ANSWERS: Final = f"0 * max(gpu_up{{{_NODE}}})"  # the agent of the node
_UNSUPPORTED: Final = "GPUs that do not report it"
_SM: Final = ', domain="sm"'
_NO_YES: Final = {0.0: "no", 1.0: "yes"}
_NAMES: Final = f"max by ({DEVICE}) (gpu_info{{{_NODE}}})"  # always 1; gpu_up is 0 of a GPU that is lost


def _newest(family: str, selector: str = "") -> str:
    return f"max by ({DEVICE}) ({family}{{{_NODE}{selector}}})"


def _per_second(family: str) -> str:
    return f"max by ({DEVICE}) (rate({family}{{{_NODE}}}[{RATE}]))"


def _grown(family: str, selector: str = "") -> str:
    """What a counter gained in the time of the board; of several types the one that gained most."""
    return f"round(max by ({DEVICE}) (increase({family}{{{_NODE}{selector}}}[{RANGE}])))"


def _gpu_column() -> Column:
    return Column(source="gpu", title="GPU", width=60)


_FIT: Final = Row(title="Are its GPUs fit for work?", panels=(
    tile(
        "GPUs that do not answer", "GPUs of the node from which the agent has no fresh reading.",
        now(counted(f"max by ({DEVICE}) (gpu_up{{{_BOARDS}}}) == 0", _ANSWERS), "silent"), thresholds=ALARM,
    ),
    tile(
        "Worst health", "The worst state of any device of the node.",
        now(f"max({health(_NODE)})", "health"), thresholds=(Step(colour=palette.GOOD),), words=words(palette.HEALTH),
        links=(TO_HEALTH,),
    ),
    tile(
        "Findings", "Rules of health that stand against devices of the node.",
        now(counted(f"max by ({DEVICE}, rule) (gpu_health_finding_info{{{_NODE}}})", _ANSWERS), "findings"),
        thresholds=CARE, links=(TO_HEALTH,),
    ),
    tile(
        "Kept from work", "Devices that get no new claim because of a taint, whoever put it there.",
        now(
            counted(
                f"max by (cluster, driver, pool, device) "
                f'(dra_device_taint_info{{{_NODE}, effect=~"NoSchedule|NoExecute"}})'
            ), "devices",
        ),
        thresholds=CARE, links=(TO_HEALTH,),
    ),
    tile(
        "Maintenance", "How far a maintenance is that somebody asked for with `claimscope maintenance start`.",
        now(
            f"max({number(palette.MAINTENANCE, 'dra_node_maintenance_state', _NODE, 'cluster, node')}) "
            f"or {CONTROLLER_ANSWERS}", "maintenance",
        ),
        thresholds=(Step(colour=palette.NOTICE),), words={0.0: ("no", palette.GOOD), **words(palette.MAINTENANCE)},
    ),
    tile(
        "Agent's last heartbeat", "Since the agent last renewed its Lease. After two minutes the node is unmonitored: "
        "what stands stays, and nothing new is decided.",
        now(f"time() - max(claimscope_controller_agent_lease_renew_timestamp_seconds{{{_NODE}}})", "ago"),
        unit="s", thresholds=silent_for(90, 120), links=(TO_ITSELF,), decimals=0,
    ),
    Panel(
        kind="table", title="Devices", width=24, height=9, sort_by="GPU",
        description="GPUs and MIG devices of the node as they are now. A MIG device stands under the number of its "
        "GPU; power and temperature are measured on the GPU alone.",
        queries=(
            Query(expr=f"max by ({DEVICE}, model, mig_profile) (gpu_info{{{_NODE}}})"),
            Query(expr=health(_NODE)),
            Query(expr=f"count by ({DEVICE}) ("
                  f"max by (cluster, node, uuid, namespace, resourceclaim, claim_uid, pod) "
                  f"(gpu_allocation_info{{{_NODE}}}) * on (cluster, node, uuid) group_left (gpu) {_NAMES})",
                  may_be_empty="nobody holds a device of the node"),
            Query(expr=_newest("gpu_utilization_ratio", ', engine="gpu"')),
            Query(expr=f"{_newest('gpu_memory_used_bytes')} / {_newest('gpu_memory_total_bytes')}"),
            Query(expr=_newest("gpu_power_watts")),
            Query(expr=_newest("gpu_temperature_celsius", ', sensor="gpu"')),
        ),
        columns=(
            _gpu_column(),
            Column(source="uuid", title="UUID", width=330),
            Column(source="model", title="Model"),
            Column(source="mig_profile", title="MIG profile", width=110),
            Column(source="B", title="Health", width=100, colours={s: c for s, (_, c) in palette.HEALTH.items()},
                   words={float(n): s for s, (n, _) in palette.HEALTH.items()}),
            Column(source="C", title="Pods on it", width=100),
            Column(source="D", title="Busy", unit="percentunit", bar=True, thresholds=(Step(colour=palette.GOOD),)),
            Column(source="E", title="Memory", unit="percentunit", bar=True, thresholds=(
                Step(colour=palette.NEUTRAL), Step(colour=palette.WARNING, value=0.95),
            )),
            Column(source="F", title="Power", unit="watt", width=90),
            Column(source="G", title="Temperature", unit="celsius", width=110, thresholds=(
                Step(colour="text"), Step(colour=palette.WARNING, value=WARM_CELSIUS),
                Step(colour=palette.BAD, value=HOT_CELSIUS),
            )),
        ),
    ),
))  # fmt: skip

_HOLDERS_OF: Final = (
    f"count by (cluster, node, uuid) (max by (cluster, node, uuid, source, namespace, resourceclaim, pod) "
    f"(gpu_allocation_info{{{_NODE}}}))"
)

_WHO: Final = Row(title="Who holds what?", panels=(
    Panel(
        kind="state-timeline", title="Allocation of each device", width=12, height=10,
        description="Whether pods hold a device, and whether more than one does: pods of one claim, or shares of it. "
        "A GPU that is cut into MIG devices is free by itself; what is held are they.",
        queries=(Query(
            expr=f"label_replace(clamp_max({_HOLDERS_OF} * on (cluster, node, uuid) group_left (gpu) {_NAMES} "
            f'or 0 * {_NAMES}, 2), "short", "$1", "uuid", "(.{{12}}).*")',  # "GPU-5d35994b", "MIG-886f5027"
            legend="{{gpu}}: {{short}}",
        ),),
        words={
            0.0: ("free", palette.STATES["free"]), 1.0: ("held", palette.STATES["allocated"]),
            2.0: ("shared", palette.STATES["shared"]),
        },
    ),
    Panel(
        kind="table", title="Holders", width=12, height=10, sort_by="GPU", no_value="nobody holds a device",
        description="Containers on the node's devices, and the ResourceClaim through which they have them; without a "
        "claim it was the device plugin.",
        queries=(Query(
            expr="max by (cluster, node, uuid, namespace, resourceclaim, pod, container) "
            f"(gpu_allocation_info{{{_NODE}}}) * on (cluster, node, uuid) group_left (gpu) {_NAMES}",
        ),),
        columns=(
            _gpu_column(),
            Column(source="namespace", title="Namespace"),
            Column(source="resourceclaim", title="Claim", links=(TO_CLAIM,)),
            Column(source="pod", title="Pod"),
            Column(source="container", title="Container", width=100),
        ),
    ),
))  # fmt: skip

_HEAT: Final = Row(title="Heat, power and clocks", panels=(
    Panel(
        kind="timeseries", title="Temperature", width=12, unit="celsius",
        description="Of the GPUs, with the lowest temperature at which one of them slows itself down, where it says.",
        queries=(
            Query(expr=_newest("gpu_temperature_celsius", ', sensor="gpu"'), legend="GPU {{gpu}}"),
            Query(
                expr=f'min(gpu_temperature_limit_celsius{{{_NODE}, kind="slowdown"}})', legend="slows down",
                may_be_empty=_UNSUPPORTED,
            ),
        ),
        colours={**palette.of_gpus(), "slows down": palette.BAD}, dashed=("slows down",),
    ),
    Panel(
        kind="timeseries", title="Power", width=12, unit="watt", minimum=0,
        description="Of the GPUs, with the lowest limit in force. A limit below what others of the model have shows "
        "as drift on the migration board.",
        queries=(
            Query(expr=_newest("gpu_power_watts"), legend="GPU {{gpu}}"),
            Query(expr=f'min(gpu_power_limit_watts{{{_NODE}, kind="enforced"}})', legend="limit in force"),
        ),
        colours={**palette.of_gpus(), "limit in force": palette.BAD}, dashed=("limit in force",),
    ),
    Panel(
        kind="timeseries", title="What holds clocks back", width=12, unit="percentunit", minimum=0, maximum=1,
        no_value="nothing",
        description="Part of the time in which the driver held a GPU's clocks back, by its reason. Thermal reasons and "
        "the power brake are faults of the machine or the room; a software power cap is a choice.",
        queries=(Query(
            expr=f"max by ({DEVICE}, reason) (rate(gpu_throttle_seconds_total{{{_NODE}}}[{RATE}])) > 0",
            legend="GPU {{gpu}}: {{reason}}", may_be_empty="nothing holds the clocks back",
        ),),
        patterns=palette.by_reason(),
    ),
    Panel(
        kind="timeseries", title="Clock of the multiprocessors", width=12, unit="percentunit", minimum=0, maximum=1,
        description="As a part of the highest that the GPU supports. Idle GPUs clock down; a busy one that stays low "
        "beside the others keeps a whole training job waiting.",
        queries=(Query(
            expr=f"{_newest('gpu_clock_hertz', _SM)} / {_newest('gpu_clock_max_hertz', _SM)}", legend="GPU {{gpu}}",
        ),),
        colours=palette.of_gpus(),
    ),
))  # fmt: skip

_ERRORS: Final = Row(title="Memory, NVLink and PCIe. Counts over the chosen time", panels=(
    Panel(
        kind="table", title="Memory of each GPU", width=12, height=8, sort_by="GPU",
        description="Errors that were corrected cost little until there are many. One that was not corrected ends the "
        "process it hit, and the row is replaced by a spare one at the next reset of the GPU. Where a row cannot be "
        "replaced, the board has to be.",
        queries=(
            Query(expr=_grown("gpu_ecc_device_errors_total", ', type="corrected"')),
            Query(expr=_grown("gpu_ecc_device_errors_total", ', type="uncorrected"')),
            Query(
                expr=f"round(sum by ({DEVICE}) (max by ({DEVICE}, type) "
                f"(increase(gpu_remapped_rows_total{{{_NODE}}}[{RANGE}]))))",
            ),
            Query(expr=_newest("gpu_row_remap_pending")),
            Query(expr=_newest("gpu_row_remap_failure")),
        ),
        columns=(
            _gpu_column(),
            Column(source="A", title="Corrected"),
            Column(source="B", title="Uncorrected", thresholds=CELL_ALARM),
            Column(source="C", title="Rows replaced", thresholds=CELL_CARE),
            Column(source="D", title="Waits for reset", words=_NO_YES, colours={"yes": palette.WARNING}),
            Column(source="E", title="No spare row", words=_NO_YES, colours={"yes": palette.BAD}),
        ),
    ),
    Panel(
        kind="table", title="Links of each GPU", width=12, height=8, sort_by="GPU",
        description="NVLinks and the PCIe link. One NVLink that is down slows every collective of a job that spans the "
        "GPU. One error is often counted as a replay, a recovery and a CRC error: shown is the type with most. An idle "
        "GPU may lower its PCIe generation; fewer lanes than the slot has are a fault.",
        queries=(
            Query(expr=_newest("gpu_nvlink_links"), may_be_empty="GPUs without NVLink"),
            Query(
                expr=f"sum by ({DEVICE}) (1 - max by ({DEVICE}, link) (gpu_nvlink_up{{{_NODE}}}))",
                may_be_empty="GPUs without NVLink",
            ),
            Query(expr=_grown("gpu_nvlink_errors_total"), may_be_empty="GPUs without NVLink"),
            Query(expr=_newest("gpu_pcie_link_width")),
            Query(expr=f"{_newest('gpu_pcie_link_width_max')} - {_newest('gpu_pcie_link_width')}"),
            Query(expr=_newest("gpu_pcie_link_generation")),
            Query(expr=_grown("gpu_pcie_replays_total")),
        ),
        columns=(
            _gpu_column(),
            Column(source="A", title="NVLinks"),
            Column(source="B", title="Down", thresholds=CELL_ALARM),
            Column(source="C", title="NVLink errors", thresholds=CELL_CARE),
            Column(source="D", title="PCIe lanes"),
            Column(source="E", title="Lanes missing", thresholds=CELL_CARE),
            Column(source="F", title="Generation"),
            Column(source="G", title="Replays"),
        ),
    ),
    Panel(
        kind="timeseries", title="NVLink traffic", width=12, unit="Bps", minimum=0,
        description="Bytes sent and received over all NVLinks of each GPU.",
        queries=(Query(
            expr=f"{_per_second('gpu_nvlink_transmit_bytes_total')} + {_per_second('gpu_nvlink_receive_bytes_total')}",
            legend="GPU {{gpu}}", may_be_empty="GPUs without NVLink, or without a driver that counts its bytes",
        ),),
        colours=palette.of_gpus(),
    ),
    Panel(
        kind="timeseries", title="PCIe traffic", width=12, unit="Bps", minimum=0,
        description="Bytes sent and received over PCIe by each GPU: input data, checkpoints, and NVMe or network where "
        "they do not bypass it.",
        queries=(Query(
            expr=f"{_per_second('gpu_pcie_transmit_bytes_total')} + {_per_second('gpu_pcie_receive_bytes_total')}",
            legend="GPU {{gpu}}",
        ),),
        colours=palette.of_gpus(),
    ),
))  # fmt: skip


def _slowest(family: str, by: str) -> str:
    """What the slowest hundredth takes."""
    buckets = f"max by (cluster, node, le, {by}) (rate({family}_bucket{{{_NODE}}}[{RATE}]))"
    return f"histogram_quantile(0.99, sum by (le, {by}) ({buckets}))"


_SERVICES: Final = Row(title="Kubelet and agent", collapsed=True, panels=(
    Panel(
        kind="timeseries", title="How long the kubelet takes for claims", width=8, unit="s", minimum=0,
        no_value="not scraped",
        description="Slowest hundredth of the kubelet's operations on claims. Preparing is what a pod waits for "
        "between its binding and its first container.",
        queries=(
            Query(
                expr=_slowest("dra_operations_duration_seconds", "operation_name"),
                legend="{{operation_name}}", may_be_empty=_KUBELET,
            ),
            Query(
                expr=_slowest("dra_grpc_operations_duration_seconds", "driver_name, method_name"),
                legend="{{driver_name}} {{method_name}}", may_be_empty=_KUBELET,
            ),
        ),
    ),
    Panel(
        kind="timeseries", title="Operations on claims that failed", width=8, unit="ops", minimum=0,
        no_value="none, or not scraped",
        description="Operations of the kubelet that failed, and calls to a driver that did not answer OK. The kubelet "
        "tries again; the pod stays in ContainerCreating.",
        queries=(
            Query(
                expr="sum by (operation_name) (max by (cluster, node, operation_name) "
                f'(rate(dra_operations_duration_seconds_count{{{_NODE}, is_error="true"}}[{RATE}])))',
                legend="{{operation_name}}", may_be_empty=_KUBELET,
            ),
            Query(
                expr="sum by (driver_name, method_name, grpc_status_code) "
                "(max by (cluster, node, driver_name, method_name, grpc_status_code) "
                f'(rate(dra_grpc_operations_duration_seconds_count{{{_NODE}, grpc_status_code!="OK"}}[{RATE}])))',
                legend="{{driver_name}} {{method_name}}: {{grpc_status_code}}", may_be_empty=_KUBELET,
            ),
        ),
        colours={"PrepareResources": palette.BAD, "UnprepareResources": palette.WARNING},
    ),
    Panel(
        kind="timeseries", title="Claims in use on the node", width=8, unit="short", minimum=0, no_value="not scraped",
        description="Claims that the kubelet has prepared, by driver, beside the claims that the agent finds in the "
        "kubelet's pod-resources API. A claim of two drivers counts for both.",
        queries=(
            Query(
                expr="max by (cluster, node, driver_name) "
                f'(dra_resource_claims_in_use{{{_NODE}, driver_name!="<any>"}})',
                legend="kubelet, {{driver_name}}", may_be_empty="the kubelet's own metrics are not scraped",
            ),
            Query(
                expr="count by (driver) (max by (cluster, node, driver, claim_uid) "
                f'(gpu_allocation_info{{{_NODE}, source="claim"}}))',
                legend="agent, {{driver}}", may_be_empty="no claim is in use on the node",
            ),
        ),
    ),
    tile(
        "Samples per second", "How often the sampler reads the quantities that change fast; less than configured "
        "while the driver is slow.",
        now(f"max(claimscope_agent_sampler_hz{{{_NODE}}})", "Hz"), unit="hertz",
        thresholds=(Step(colour=palette.BAD), Step(colour=palette.GOOD, value=1)), links=(TO_ITSELF,),
    ),
    tile(
        "Driver time", "Part of the time that the sampler spends inside the driver for its slowest GPU. Above 1 % it "
        "samples more rarely by itself.",
        Query(
            expr=f"max(max by (cluster, node, uuid) (rate(claimscope_agent_driver_seconds_total{{{_NODE}}}[{RATE}])))",
            legend="of the time",
        ),
        unit="percentunit", decimals=2,
        thresholds=(Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=0.01)),
    ),
    tile(
        "GPUs left alone", "GPUs that the agent does not touch because a call to them hung or crashed the sampler.",
        now(f"max(claimscope_agent_quarantined_devices{{{_NODE}}})", "GPUs"), thresholds=ALARM,
    ),
    tile(
        "Readings that fail", "Quantities that the driver should give and does not; those it does not support do not "
        "count.",
        now(
            "sum(max by (cluster, node, reason) "
            f'(claimscope_agent_missing_readings{{{_NODE}, reason!="unsupported"}}))', "readings",
        ),
        thresholds=CARE,
    ),
    tile(
        "Kubelet last answered", "Since the kubelet's pod-resources API last said who holds the devices. It is asked "
        "once a second.",
        now(
            "time() - max(claimscope_agent_attribution_last_success_timestamp_seconds"
            f'{{{_NODE}, source="pod-resources"}})', "ago",
        ),
        unit="s", decimals=0, thresholds=silent_for(30, 300), links=(TO_ITSELF,),
    ),
    tile(
        "NVML", "Whether the agent has the driver's library loaded and it answers.",
        now(f"max(claimscope_agent_nvml_up{{{_NODE}}})", "NVML"), thresholds=(Step(colour=palette.NEUTRAL),),
        words={0.0: ("silent", palette.BAD), 1.0: ("answers", palette.GOOD)},
    ),
))  # fmt: skip

BOARD: Final = Dashboard(
    uid="claimscope-node",
    title="claimscope / Node",
    description="One node: are its GPUs fit for work, who holds them, and what do the kubelet and the agent say?",
    variables=(
        DATASOURCE_VARIABLE, CLUSTER_VARIABLE,
        Variable(
            name="node", label="Node", query='label_values(gpu_up{cluster=~"$cluster"}, node)', multiple=False,
        ),
    ),
    annotations=(taints(_NODE), xids(_NODE)),
    example={"node": "demo-node-1"},
    rows=(_FIT, _WHO, _HEAT, _ERRORS, _SERVICES),
)  # fmt: skip
