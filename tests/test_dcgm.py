"""What dcgm-exporter would show: its lines letter by letter, and where nobody measured, nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from claimscope.config import Config, build, from_file
from claimscope.export.dcgm import document
from claimscope.export.dcgm.collect import DcgmCollector
from claimscope.export.dcgm.events import CHECKS
from claimscope.export.dcgm.rates import Rates
from claimscope.export.dcgm.recent import RecentEvents
from claimscope.export.dcgm.rows import rows
from claimscope.health.rules import RULES
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Event, Hold, Holder, PodRef, Recent, Sample, Snapshot, Window, XidCount
from claimscope.nvml.inventory import nvlink_peers
from dcgm_data import FULL_RATES, GPU_0, GPU_1, WALL, claim, device, full, lines, mig, page, snapshot, window

DOCS = Path(__file__).parent.parent / "docs"
PEER_0, PEER_1, PEER_2 = "0000:18:00.0", "0000:19:00.0", "0000:1a:00.0"


def labels(line: str) -> list[tuple[str, str]]:
    """The labels of a sample line, in its order."""
    return re.findall(r'(\w+)="([^"]*)"', line)


def without(line: str, *names: str) -> list[tuple[str, str]]:
    return [(name, value) for name, value in labels(line) if name not in names]


# ---- lines of dcgm-exporter ----------------------------------------------------------------------------------------


def test_a_gpu_of_a_device_plugin_pod_has_the_line_of_dcgm_exporter_issue_490() -> None:
    uuid = "GPU-8b2281de-6d3c-22ed-0ec8-d3b864870b8b"
    holder = Holder(source="pod", namespace="default", name="dcgmproftester2", container="dcgmproftester2")
    pod = PodRef(namespace="default", pod="dcgmproftester2", container="dcgmproftester2")
    node = snapshot(
        device(uuid, pci_bus_id="0000:8d:00.0"),
        windows=(window(uuid, {"utilization_gpu": 0.0}),),
        holds=(Hold(holder=holder, entity=uuid, device=uuid, resource="nvidia.com/gpu", pods=(pod,)),),
        driver="550.144.03", node="computeinstance-e00c1p6dpy98xytphp",
    )  # fmt: skip

    assert lines(node, "DCGM_FI_DEV_GPU_UTIL") == [
        'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-8b2281de-6d3c-22ed-0ec8-d3b864870b8b",pci_bus_id="00000000:8D:00.0",'
        'device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="computeinstance-e00c1p6dpy98xytphp",'
        'DCGM_FI_DRIVER_VERSION="550.144.03",container="dcgmproftester2",namespace="default",pod="dcgmproftester2"} 0'
    ]


def test_every_mig_instance_repeats_the_boards_watts_as_in_dcgm_exporter_issue_317() -> None:
    uuid = "GPU-265c9814-0000-0000-0000-000000000000"
    parts = mig("MIG-a", "1g.6gb", 3, parent=uuid), mig("MIG-b", "2g.12gb", 1, parent=uuid)
    node = snapshot(
        device(uuid, model="NVIDIA A30", mig_enabled=True), *parts,
        windows=(window(uuid, {"power_average": 52.636}), window("MIG-a"), window("MIG-b")), driver=None,
    )  # fmt: skip

    begin = f'DCGM_FI_DEV_POWER_USAGE{{gpu="0",UUID="{uuid}",pci_bus_id="00000000:18:00.0",device="nvidia0",'
    assert lines(node, "DCGM_FI_DEV_POWER_USAGE", hostname_label="hostname") == [
        begin + 'modelName="NVIDIA A30",GPU_I_PROFILE="2g.12gb",GPU_I_ID="1",hostname="n1"} 52.636',
        begin + 'modelName="NVIDIA A30",GPU_I_PROFILE="1g.6gb",GPU_I_ID="3",hostname="n1"} 52.636',
    ]


def test_a_claimed_mig_device_has_the_labels_of_dcgm_exporter_pull_532() -> None:
    uuid = "GPU-a4f34abc-7715-3560-dcea-7238b9611a45"
    part = "MIG-24c6a0e5-fe28-53ac-9537-c4e23104f30f"
    pod = PodRef(namespace="gpu-test4", pod="pod-56dbf5cf44-xnfk5", container="ctr0")
    node = snapshot(
        device(uuid, pci_bus_id="0009:01:00.0", model="NVIDIA GH200 96GB HBM3", mig_enabled=True),
        mig(part, "1g.12gb", 7, parent=uuid), windows=(window(uuid, {"vgpu_licensed": 0.0}), window(part)),
        holds=(Hold(
            holder=Holder(
                source="claim", namespace="gpu-test4", name="pod-56dbf5cf44-xnfk5-mig-devices-rxspm", uid="c0ffee"
            ), entity=part, driver="gpu.nvidia.com", pool="sc-starwars-mab9-b00", device="gpu-0-mig-19-6-1",
            pods=(pod,),
        ),), driver=None, node="sc-starwars-mab9-b00",
    )  # fmt: skip
    theirs = (
        'DCGM_FI_DEV_VGPU_LICENSE_STATUS{gpu="0",UUID="GPU-a4f34abc-7715-3560-dcea-7238b9611a45",'
        'pci_bus_id="00000009:01:00.0",device="nvidia0",modelName="NVIDIA GH200 96GB HBM3",'
        'Hostname="sc-starwars-mab9-b00",container="ctr0",dra_claim_name="pod-56dbf5cf44-xnfk5-mig-devices-rxspm",'
        'dra_claim_namespace="gpu-test4",dra_device_name="gpu-0-mig-19-6-1",dra_driver_name="gpu.nvidia.com",'
        'dra_mig_device_uuid="MIG-24c6a0e5-fe28-53ac-9537-c4e23104f30f",dra_mig_profile="1g.12gb",'
        'dra_pool_name="sc-starwars-mab9-b00",namespace="gpu-test4",pod="pod-56dbf5cf44-xnfk5"} 0'
    )

    (line,) = lines(node, "DCGM_FI_DEV_VGPU_LICENSE_STATUS")
    # That release shows the claim on the GPU's series; since 4.8.3 it is on the instance's, as here.
    assert without(line, "GPU_I_PROFILE", "GPU_I_ID", "resourceclaim") == labels(theirs)
    assert dict(labels(line))["resourceclaim"] == "pod-56dbf5cf44-xnfk5-mig-devices-rxspm"
    assert line.endswith("} 0")


def test_the_last_xid_is_a_gauge_with_its_code_and_words() -> None:
    xids = (
        XidCount(entity=GPU_0, xid=45, count=1, last_wall_ns=WALL),
        XidCount(entity=GPU_0, xid=31, count=9, last_wall_ns=WALL - 1),
        XidCount(entity=GPU_0, xid=79, count=0, last_wall_ns=WALL + 1),  # only named: it never happened
        XidCount(entity=GPU_1, xid=99_999, count=1, last_wall_ns=WALL),
    )
    node = snapshot(
        device(), device(GPU_1, 1), device("GPU-2", 2), windows=(window(GPU_0), window(GPU_1)), xids=xids, driver="580"
    )

    found = lines(node, "DCGM_FI_DEV_XID_ERRORS", hostname_label="hostname")
    assert found[0] == (
        f'DCGM_FI_DEV_XID_ERRORS{{gpu="0",UUID="{GPU_0}",pci_bus_id="00000000:18:00.0",device="nvidia0",'
        'modelName="NVIDIA H100 80GB HBM3",hostname="n1",DCGM_FI_DRIVER_VERSION="580",err_code="45",'
        'err_msg="a channel was taken down: its process ended, or an earlier event took it along"} 45'
    )
    assert [(labels(line)[-2:], line[line.index("} ") + 2 :]) for line in found[1:]] == [
        ([("err_code", "99999"), ("err_msg", "Unknown Error")], "99999"),
        ([("err_code", "0"), ("err_msg", "No Error")], "0"),
    ]


# ---- whose series --------------------------------------------------------------------------------------------------


def held(node: Snapshot) -> list[dict[str, str]]:
    names = ("gpu", "namespace", "pod", "container", "resourceclaim", "dra_claim_namespace", "dra_device_name")
    return [
        {name: value for name, value in labels(line) if name in names} for line in lines(node, "DCGM_FI_DEV_GPU_UTIL")
    ]


def test_a_gpu_has_a_series_per_container_and_one_while_nobody_holds_it() -> None:
    node = snapshot(
        device(), device(GPU_1, 1), device("GPU-2", 2),
        windows=tuple(window(uuid, {"utilization_gpu": 0.25}) for uuid in (GPU_0, GPU_1, "GPU-2")),
        holds=(claim("shared", GPU_0, "a", "b"), claim("waiting", GPU_1, device="gpu-1")),
    )  # fmt: skip

    def of(name: str, gpu: str) -> dict[str, str]:
        return {
            "gpu": gpu, "namespace": "team-a", "resourceclaim": name, "dra_claim_namespace": "team-a",
            "dra_device_name": f"gpu-{gpu}",
        }  # fmt: skip

    assert held(node) == [
        of("shared", "0") | {"pod": "a", "container": "main"},
        of("shared", "0") | {"pod": "b", "container": "main"},
        of("waiting", "1"),
        {"gpu": "2"},
    ]


def test_two_requests_of_a_claim_for_one_device_are_one_series() -> None:
    node = snapshot(
        device(), windows=(window(GPU_0, {"utilization_gpu": 1.0}),),
        holds=(claim("twice", GPU_0, "a"), claim("twice", GPU_0, "a")),
    )  # fmt: skip

    assert len(held(node)) == 1


def test_a_gpu_that_does_not_answer_has_no_series() -> None:
    node = snapshot(device(), device(GPU_1, 1), windows=(full(GPU_0), full(GPU_1)), up={GPU_0: False, GPU_1: True})

    assert {dict(labels(line))["gpu"] for line in page(node) if not line.startswith("#")} == {"1"}
    assert page(Snapshot(node="n1", wall_ns=0, monotonic_ns=0, inventory=None)) == []


def test_compute_instances_of_one_gpu_instance_share_a_series_and_only_what_is_true_of_both() -> None:
    parts = mig("MIG-a", "1c.3g.40gb", 2), mig("MIG-b", "2c.3g.40gb", 2, compute=1)
    readings = {"memory_used": 5 << 20, "utilization_graphics": 0.5}
    node = snapshot(
        device(mig_enabled=True), *parts,
        windows=(window(GPU_0), window("MIG-a", readings), window("MIG-b", readings)),
        holds=(claim("left", "MIG-a", "a"), claim("right", "MIG-b", "b")),
    )  # fmt: skip

    used = [dict(labels(line)) for line in lines(node, "DCGM_FI_DEV_FB_USED")]
    assert [(one["GPU_I_PROFILE"], one["GPU_I_ID"], one["pod"], one["dra_mig_device_uuid"]) for one in used] == [
        ("3g.40gb", "2", "a", "MIG-a"),
        ("3g.40gb", "2", "b", "MIG-b"),
    ]
    assert lines(node, "DCGM_FI_PROF_GR_ENGINE_ACTIVE") == []


def test_a_gpu_instance_is_served_while_any_of_its_compute_instances_answers() -> None:
    parts = mig("MIG-a", "1c.3g.40gb", 2), mig("MIG-b", "2c.3g.40gb", 2, compute=1)

    def used(**up: bool) -> list[str]:
        node = snapshot(
            device(mig_enabled=True), *parts, up={GPU_0: True, "MIG-a": up["a"], "MIG-b": up["b"]},
            windows=(window(GPU_0), window("MIG-b", {"memory_used": 5 << 20})),
        )  # fmt: skip
        return [line.rpartition(" ")[2] for line in lines(node, "DCGM_FI_DEV_FB_USED")]

    assert used(a=False, b=True) == ["5"]
    assert used(a=False, b=False) == []


def test_what_a_mig_device_measures_itself_is_not_taken_from_its_gpu() -> None:
    gpu = {"memory_used": 9 << 20, "utilization_graphics": 0.9, "clock_sm": 1.98e9}
    node = snapshot(
        device(mig_enabled=True), mig("MIG-a", "1g.10gb", 7),
        windows=(window(GPU_0, gpu), window("MIG-a", {"memory_used": 2 << 20})),
    )  # fmt: skip

    values = {line.split("{")[0]: line.rpartition(" ")[2] for line in page(node) if not line.startswith("#")}
    assert values == {"DCGM_FI_DEV_FB_USED": "2", "DCGM_FI_DEV_SM_CLOCK": "1980", "DCGM_FI_DEV_XID_ERRORS": "0"}


# ---- families ------------------------------------------------------------------------------------------------------

DEFAULTS = [
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_MEM_CLOCK",
    "DCGM_FI_DEV_MEMORY_TEMP",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_MEM_COPY_UTIL",
    "DCGM_FI_DEV_ENC_UTIL",
    "DCGM_FI_DEV_DEC_UTIL",
    "DCGM_FI_DEV_XID_ERRORS",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_RESERVED",
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE",
    "DCGM_FI_PROF_PCIE_TX_BYTES",
    "DCGM_FI_PROF_PCIE_RX_BYTES",
]
COUNTERS = {
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
}  # fmt: skip


def test_the_default_families_have_the_types_and_help_of_default_counters_csv() -> None:
    text = page(snapshot(device(), windows=(full(GPU_0),), rates={GPU_0: FULL_RATES}))

    types = dict(line.split(" ")[2:] for line in text if line.startswith("# TYPE"))
    assert list(types) == [*DEFAULTS, "DCGM_FI_PROF_NVLINK_TX_BYTES", "DCGM_FI_PROF_NVLINK_RX_BYTES"]
    assert {name for name, kind in types.items() if kind == "counter"} == COUNTERS
    assert set(types.values()) == {"gauge", "counter"}
    assert "# HELP DCGM_FI_DEV_FB_RESERVED Framebuffer memory reserved (in MiB)." in text
    assert "# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ)." in text


@pytest.mark.parametrize(
    ("family", "reading", "expected"),
    [
        ("DCGM_FI_DEV_GPU_UTIL", {"utilization_gpu": 0.29}, "29"),
        ("DCGM_FI_DEV_FB_USED", {"memory_used": 5.99 * (1 << 20)}, "5"),
        ("DCGM_FI_DEV_MEM_CLOCK", {"clock_memory": 2.619e9}, "2619"),
        ("DCGM_FI_DEV_POWER_USAGE", {"power_average": 412.5004999}, "412.5005"),
        ("DCGM_FI_PROF_DRAM_ACTIVE", {"utilization_dram": 0.1234567891}, "0.123457"),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", {"energy": 1234.567}, "1234567"),
        ("DCGM_FI_DEV_POWER_VIOLATION", {"throttle_sw_power_cap": 1.5}, "1500000000"),
        ("DCGM_FI_DEV_PSTATE", {"performance_state": 2.0}, "2"),
    ],
)
def test_numbers_are_in_dcgms_units_and_as_exact_as_there(
    family: str, reading: dict[str, float], expected: str
) -> None:
    node = snapshot(device(), windows=(window(GPU_0, reading, raw=reading),))

    assert [line.rpartition(" ")[2] for line in lines(node, family, families="all")] == [expected]


def test_nvlink_bandwidth_is_both_directions_in_thousands_of_kibibytes() -> None:
    def bandwidth(rates: dict[str, float]) -> list[str]:
        found = lines(snapshot(device(), rates={GPU_0: rates}), "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL")
        return [line.rpartition(" ")[2] for line in found]

    assert bandwidth({"nvlink_transmit_bytes": 1_024_000_000.0, "nvlink_receive_bytes": 2_048_000.0}) == ["1002"]
    assert bandwidth({"nvlink_transmit_bytes": 1_024_000_000.0}) == []


def test_every_field_of_the_metric_tables_is_served_once() -> None:
    made = rows(QUANTITIES)
    names = [name for row in made for name in dict.fromkeys((row.name, row.renamed))]

    assert len(made) > 100
    assert len(set(names)) == len(names)
    shown = page(_everything(), families="all", names="both")
    assert {line.split("{")[0] for line in shown if not line.startswith("#")} == set(names)


def _everything() -> Snapshot:
    made = full(GPU_0)
    links = {f"nvlink_link_{way}_bytes/1": 5.0 for way in ("transmit", "receive")}
    return snapshot(
        device(), windows=(dataclasses.replace(made, raw={**made.raw, **links}),), rates={GPU_0: FULL_RATES},
        recent={GPU_0: Recent(xids={42: 1}, clock_events={"gpu_idle": 3}, clock_events_begun={"gpu_idle": 1})},
        xids=(XidCount(entity=GPU_0, xid=42, count=7, last_wall_ns=WALL),), health=_judged(),
    )  # fmt: skip


def _judged(*findings: tuple[str, str]) -> tuple[Sample, ...]:
    identity = (("uuid", GPU_0), ("gpu", "0"))
    return (
        Sample(family="gpu_health", labels=(*identity, ("state", "ok")), value=0.0),
        *(
            Sample(
                family="gpu_health_finding_info", value=1.0,
                labels=(*identity, ("rule", rule), ("severity", severity), ("state", "active")),
            )
            for rule, severity in findings
        ),
    )  # fmt: skip


# ---- families of dcgm-exporter's own ------------------------------------------------------------------------------

IDENTITY = (
    'gpu="0",UUID="GPU-00000000-0000-0000-0000-000000000000",pci_bus_id="00000000:18:00.0",device="nvidia0",'
    'modelName="NVIDIA H100 80GB HBM3",hostname="n1",DCGM_FI_DRIVER_VERSION="580"'
)


def of_their_own(node: Snapshot, family: str) -> list[str]:
    return lines(node, family, families="all", hostname_label="hostname")


def test_xids_are_counted_in_a_window_and_in_all() -> None:
    xids = (
        XidCount(entity=GPU_0, xid=42, count=7, last_wall_ns=WALL),
        XidCount(entity=GPU_0, xid=79, count=0, last_wall_ns=0),  # never seen
    )
    node = snapshot(
        device(), windows=(window(GPU_0),), driver="580", xids=xids, recent={GPU_0: Recent(xids={42: 1})}
    )

    assert of_their_own(node, "DCGM_EXP_XID_ERRORS_COUNT") == [
        f'DCGM_EXP_XID_ERRORS_COUNT{{{IDENTITY},window_size_in_ms="300000",xid="42"}} 1'
    ]
    assert of_their_own(node, "DCGM_EXP_XID_ERRORS_TOTAL") == [f'DCGM_EXP_XID_ERRORS_TOTAL{{{IDENTITY},xid="42"}} 7']
    quiet = snapshot(device(), windows=(window(GPU_0),), driver="580")
    assert of_their_own(quiet, "DCGM_EXP_XID_ERRORS_COUNT") == [
        f'DCGM_EXP_XID_ERRORS_COUNT{{{IDENTITY},window_size_in_ms="300000"}} 0'
    ]
    assert of_their_own(quiet, "DCGM_EXP_XID_ERRORS_TOTAL") == []


def test_clock_events_have_dcgms_words() -> None:
    recent = Recent(clock_events={"power_cap": 20, "sw_thermal": 3}, clock_events_begun={"sw_thermal": 2})
    node = snapshot(device(), windows=(window(GPU_0),), driver="580", recent={GPU_0: recent})

    assert of_their_own(node, "DCGM_EXP_CLOCK_EVENTS_COUNT") == [
        f'DCGM_EXP_CLOCK_EVENTS_COUNT{{{IDENTITY},clock_event="power_cap",window_size_in_ms="300000"}} 20',
        f'DCGM_EXP_CLOCK_EVENTS_COUNT{{{IDENTITY},clock_event="sw_thermal",window_size_in_ms="300000"}} 3',
    ]
    assert of_their_own(node, "DCGM_EXP_CLOCK_EVENTS_TOTAL") == [
        f'DCGM_EXP_CLOCK_EVENTS_TOTAL{{{IDENTITY},clock_event="sw_thermal"}} 2'
    ]
    silent = snapshot(device(), windows=(window(GPU_0),))  # a GPU that does not say why its clocks are low
    assert of_their_own(silent, "DCGM_EXP_CLOCK_EVENTS_COUNT") == []


def test_health_has_the_worst_finding_of_each_watch_that_somebody_looks_at() -> None:
    found = (("row_remap_pending", "degraded"), ("row_remap_failure", "unhealthy"), ("xid_degraded", "degraded"))
    node = snapshot(device(), windows=(window(GPU_0),), driver="580", health=_judged(*found))

    passed = f'DCGM_EXP_GPU_HEALTH_STATUS{{{IDENTITY},health_error_code="DCGM_FR_OK",health_watch='
    assert of_their_own(node, "DCGM_EXP_GPU_HEALTH_STATUS") == [
        passed + '"PCIE"} 0',
        passed + '"NVLINK"} 0',
        f'DCGM_EXP_GPU_HEALTH_STATUS{{{IDENTITY},health_error_code="DCGM_FR_ROW_REMAP_FAILURE",health_watch="MEM"}} 20',
        passed + '"THERMAL"} 0',
        passed + '"POWER"} 0',
    ]
    unjudged = snapshot(device(), windows=(window(GPU_0),))
    assert of_their_own(unjudged, "DCGM_EXP_GPU_HEALTH_STATUS") == []


def test_every_rule_that_dcgm_has_a_code_for_is_one_of_ours() -> None:
    assert set(CHECKS) <= {rule.key for rule in RULES}


def test_a_line_of_a_link_is_spelled_as_there() -> None:
    node = snapshot(
        device(), windows=(window(GPU_0, raw={"nvlink_link_transmit_bytes/1": 1.0, "nvlink_transmit_bytes": 9.0}),),
        driver=None, holds=(claim("train", GPU_0, "a"),),
    )  # fmt: skip

    begin = (
        f'DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES{{nvlink="1",gpu="0",gpu_uuid="{GPU_0}",pci_bus_id="00000000:18:00.0",'
        'device="nvidia0",model_name="NVIDIA H100 80GB HBM3",hostname="n1"'
    )
    (line,) = of_their_own(node, "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES")
    assert line.startswith(begin + ",")
    assert line.endswith("} 1")
    assert dict(labels(line))["resourceclaim"] == "train"
    unheld = dataclasses.replace(node, holds=())
    assert of_their_own(unheld, "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES") == [begin + "} 1"]
    assert of_their_own(node, "DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES") == []


def test_the_window_slides_and_a_reason_that_held_at_the_first_look_did_not_begin() -> None:
    recent = RecentEvents()
    for second, thermal in ((1, 1.0), (2, 0.0), (3, 1.0), (4, 1.0)):
        recent.observe(window(GPU_0, {"clock_event_sw_thermal": thermal}, end=float(second)))
    recent.event(Event(entity=GPU_0, kind="xid", code=79, wall_ns=WALL), 2_000_000_000)
    recent.event(Event(entity=GPU_0, kind="mig_config_change", code=1, wall_ns=WALL), 2_000_000_000)

    def at(second: float) -> Recent:
        return recent.view({GPU_0}, round(second * 1e9))[GPU_0]

    assert at(4) == Recent(xids={79: 1}, clock_events={"sw_thermal": 3}, clock_events_begun={"sw_thermal": 1})
    assert at(303.5) == Recent(xids={}, clock_events={"sw_thermal": 1}, clock_events_begun={"sw_thermal": 1})
    assert at(305) == Recent(xids={}, clock_events={}, clock_events_begun={"sw_thermal": 1})
    assert recent.view((), 0) == {}


def test_names_of_dcgm_46_are_a_choice() -> None:
    node = snapshot(device(), windows=(window(GPU_0, {"utilization_gpu": 0.5, "memory_used": 1 << 20}),))

    def names(choice: str) -> list[str]:
        return [line.split("{")[0] for line in page(node, names=choice) if not line.startswith("#")]

    assert names("dcgm-exporter") == ["DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_FB_USED"]
    assert names("dcgm-4.6") == ["DCGM_FI_DEV_GPU_UTIL_RATIO", "DCGM_FI_DEV_XID_ERROR", "DCGM_FI_DEV_FB_USED"]
    assert names("both") == [
        "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_UTIL_RATIO", "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR",
        "DCGM_FI_DEV_FB_USED",
    ]  # fmt: skip


@pytest.mark.parametrize(("openmetrics", "parse"), [(False, parse_text), (True, parse_openmetrics)])
def test_both_formats_are_what_parsers_take(openmetrics: bool, parse: Callable[[str], object]) -> None:
    node = snapshot(device(), windows=(full(GPU_0),), rates={GPU_0: FULL_RATES}, holds=(claim("a", GPU_0, "b"),))
    text = "\n".join(page(node, openmetrics=openmetrics, families="all")) + "\n"

    kinds = {family.name: family.type for family in parse(text)}  # type: ignore[attr-defined]
    assert kinds["DCGM_FI_DEV_GPU_UTIL"] == "gauge"
    assert kinds["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] == ("unknown" if openmetrics else "counter")


def test_label_tuples_are_made_once_so_that_a_renderer_knows_them_again() -> None:
    collector = DcgmCollector(QUANTITIES)
    first = snapshot(
        device(), windows=(full(GPU_0),), rates={GPU_0: FULL_RATES}, holds=(claim("a", GPU_0, "b"),),
    )  # fmt: skip
    second = Snapshot(
        node="n1", wall_ns=WALL + 1, monotonic_ns=1, inventory=first.inventory, up=first.up, windows=first.windows,
        rates=first.rates, holds=first.holds,
    )  # fmt: skip
    third = snapshot(device(), windows=(full(GPU_0),))

    before, after = collector.collect(first), collector.collect(second)
    assert [id(sample.labels) for sample in before] == [id(sample.labels) for sample in after]
    assert all("pod" not in dict(sample.labels) for sample in collector.collect(third))


# ---- NVLink pairs --------------------------------------------------------------------------------------------------


def pairs(node: Snapshot) -> list[tuple[str | None, str]]:
    found = lines(node, "DCGM_FI_PROF_NVLINK_TX_BYTES")
    return [(dict(labels(line)).get("gpu_pair"), line.rpartition(" ")[2]) for line in found]


def up(uuid: str, *links: int, remote: Mapping[str, str] | None = None) -> Window:
    return window(uuid, {f"nvlink_up/{link}": 1.0 for link in links} | {"nvlink_up/17": 0.0}, text=remote)


def test_all_links_to_one_gpu_carry_the_pairs_traffic() -> None:
    node = snapshot(
        device(nvlink_peers={0: PEER_1, 1: PEER_1}), device(GPU_1, 1, nvlink_peers={0: PEER_0, 1: PEER_0}),
        rates={GPU_0: {"nvlink_transmit_bytes": 5e9}, GPU_1: {"nvlink_transmit_bytes": 1e9}},
        windows=(up(GPU_0, 0, 1), up(GPU_1, 0)),
    )  # fmt: skip

    assert pairs(node) == [("0-1", "5000000000"), ("1-0", "1000000000")]


def test_links_to_several_gpus_are_told_apart_when_each_is_read() -> None:
    gpus = device(nvlink_peers={0: PEER_1, 1: PEER_1, 2: PEER_2}), device(GPU_1, 1), device("GPU-2", 2)
    total = {"nvlink_transmit_bytes": 9e9}
    links = {f"nvlink_link_transmit_bytes/{link}": rate for link, rate in enumerate((1e9, 2e9, 4e9))}

    def shown(rates: dict[str, float], *active: int) -> list[tuple[str | None, str]]:
        return pairs(snapshot(*gpus, rates={GPU_0: rates}, windows=(up(GPU_0, *active),)))

    assert shown(total | links, 0, 1, 2) == [("0-1", "3000000000"), ("0-2", "4000000000")]
    assert shown(total | links, 0, 1) == [("0-1", "9000000000")]  # the link to the other is down
    assert shown(total | links, 0, 1, 2, 3) == [(None, "9000000000")]
    assert shown(total, 0, 1, 2) == [(None, "9000000000")]


@pytest.mark.parametrize("active", [(), tuple(range(12))])
def test_a_link_that_leads_nobody_knows_where_leaves_the_traffic_without_a_pair(active: tuple[int, ...]) -> None:
    gpus = device(nvlink_peers=dict.fromkeys(range(6), PEER_1)), device(GPU_1, 1)
    node = snapshot(*gpus, rates={GPU_0: {"nvlink_transmit_bytes": 12e9}}, windows=(up(GPU_0, *active),))

    assert pairs(node) == [(None, "12000000000")]


def test_behind_a_switch_and_to_an_unseen_gpu_the_pair_says_so() -> None:
    switched = up(GPU_0, 0, 1, remote={"nvlink_remote/0": "switch", "nvlink_remote/1": "switch"})
    rates = {GPU_0: {"nvlink_transmit_bytes": 9e9}}

    assert pairs(snapshot(device(), windows=(switched,), rates=rates)) == [("0-nvswitch", "9000000000")]
    hidden = device(nvlink_peers={0: PEER_2})
    assert pairs(snapshot(hidden, rates=rates, windows=(up(GPU_0, 0),))) == [(f"0-{PEER_2}", "9000000000")]


def test_the_gpu_behind_a_link_is_asked_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {0: pynvml.NVML_NVLINK_DEVICE_TYPE_GPU, 1: pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH}

    def kind(handle: object, link: int) -> int:
        if link not in kinds:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(kinds[link])

    def peer(handle: object, link: int) -> SimpleNamespace:
        assert link == 0
        return SimpleNamespace(busId=b"00000000:1A:00.0")

    monkeypatch.setattr(pynvml, "nvmlDeviceGetNvLinkRemoteDeviceType", kind)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetNvLinkRemotePciInfo", peer)

    assert nvlink_peers(None, (0, 1, 2)) == {0: PEER_2}


# ---- rates ---------------------------------------------------------------------------------------------------------


def test_a_rate_is_taken_over_one_window() -> None:
    rates = Rates({"bytes": 0.1})
    rates.observe(window(GPU_0, raw={"bytes": 1000.0, "other": 1.0}, end=1.0))
    assert rates.view({GPU_0}) == {}
    rates.observe(window(GPU_0, raw={"bytes": 4000.0, "other": 2.0}, end=2.0))
    assert rates.view({GPU_0}) == {GPU_0: {"bytes": 3000.0}}
    rates.observe(window(GPU_0, raw={"bytes": 4500.0}, end=4.0))  # one was lost
    assert rates.view({GPU_0}) == {GPU_0: {"bytes": 250.0}}


def test_a_counter_that_is_read_every_ten_seconds_keeps_its_rate_in_between() -> None:
    rates = Rates({"link_bytes": 10.0})
    seen = []
    for second in range(1, 32):
        rates.observe(window(GPU_0, raw={"link_bytes/3": 100.0 * (second // 10)}, end=float(second)))
        seen.append(rates.view({GPU_0}).get(GPU_0, {}).get("link_bytes/3"))
    assert seen == [None] * 10 + [10.0] * 21


def test_a_counter_that_begins_anew_has_no_rate_until_it_is_known() -> None:
    rates = Rates({"bytes": 0.1})
    for end, value, epoch in ((1.0, 10.0, 1), (2.0, 20.0, 1), (3.0, 30.0, 2)):
        rates.observe(window(GPU_0, raw={"bytes": value}, end=end, epoch=epoch))
    assert rates.view({GPU_0}) == {}
    rates.observe(window(GPU_0, raw={"bytes": 35.0}, end=4.0, epoch=2))
    assert rates.view({GPU_0}) == {GPU_0: {"bytes": 5.0}}
    rates.observe(window(GPU_0, raw={"bytes": 1.0}, end=5.0, epoch=2))
    assert rates.view({GPU_0}) == {}


def test_rates_of_what_is_gone_are_forgotten() -> None:
    rates = Rates({"bytes": 0.1})
    for end in (1.0, 2.0):
        rates.observe(window(GPU_0, raw={"bytes": end}, end=end))
        rates.observe(window(GPU_1, raw={"bytes": end}, end=end))
    assert rates.view({GPU_1}) == {GPU_1: {"bytes": 1.0}}
    rates.observe(window(GPU_0, raw={"bytes": 3.0}, end=3.0))
    assert rates.view({GPU_0, GPU_1}) == {GPU_1: {"bytes": 1.0}}
    rates.observe(window(GPU_1, end=3.0))
    assert rates.view({GPU_1}) == {}


def test_only_counters_that_are_shown_as_rates_are_followed() -> None:
    assert DcgmCollector(QUANTITIES).rate_periods == {
        "pcie_transmit_bytes": 0.1, "pcie_receive_bytes": 0.1, "nvlink_transmit_bytes": 0.1,
        "nvlink_receive_bytes": 0.1, "nvlink_link_transmit_bytes": 10.0, "nvlink_link_receive_bytes": 10.0,
    }  # fmt: skip


# ---- settings and page ---------------------------------------------------------------------------------------------


def test_a_bare_on_in_the_file_is_the_word() -> None:
    assert build(from_file("compat_dcgm: on\n", "claimscope.yaml")) == Config(compat_dcgm="on")


def test_page_under_docs_is_current() -> None:
    assert (DOCS / "dcgm.md").read_text(encoding="utf-8") == document.markdown(QUANTITIES), "run `make docs`"
