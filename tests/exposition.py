"""A node made by hand for the tests of export and web: two GPUs, a MIG device, claims of every kind, losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from claimscope.metrics import accounts, own
from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Split, Stat, Tier, Unit, Via, View
from claimscope.model import (
    Account,
    Device,
    Entity,
    Hold,
    Holder,
    Inventory,
    MigInstance,
    PodRef,
    Snapshot,
    Total,
    Window,
    XidCount,
)

if TYPE_CHECKING:
    from claimscope.model import Sample

GPU_0 = "GPU-00000000-0000-0000-0000-000000000000"
GPU_1 = "GPU-11111111-1111-1111-1111-111111111111"
GPU_2 = "GPU-22222222-2222-2222-2222-222222222222"
MIG = "MIG-33333333-3333-3333-3333-333333333333"
WALL = 1_700_000_000_000_000_000
BEGAN = WALL - 3_600_000_000_000


def _call(name: str) -> tuple[Read, ...]:
    return (Read(via=Via.CALL, name=name),)


QUANTITIES = (
    *accounts.QUANTITIES,
    Quantity(
        key="utilization",
        reads=_call("nvmlDeviceGetUtilizationRates"),
        kind=Kind.GAUGE,
        tier=Tier.TICK,
        scope=Scope.LEAF,
        views=(
            View(
                stem="utilization",
                help="How busy an engine is.",
                stat=Stat.LAST,
                unit=Unit.RATIO,
                labels={"engine": "gpu"},
                otel="hw.gpu.utilization",
                dcgm="DCGM_FI_DEV_GPU_UTIL",
            ),
            View(
                stem="utilization",
                help="Lowest of the last full minute.",
                stat=Stat.MIN,
                unit=Unit.RATIO,
                labels={"engine": "gpu"},
            ),
            View(
                stem="utilization",
                help="Highest of the last full minute.",
                stat=Stat.MAX,
                unit=Unit.RATIO,
                labels={"engine": "gpu"},
            ),
            View(
                stem="busy",
                help="Time an engine was busy.",
                stat=Stat.TOTAL,
                unit=Unit.SECONDS,
                labels={"engine": "gpu"},
                split=Split.OBSERVED,
            ),
        ),
    ),
    Quantity(
        key="memory_used",
        reads=_call("nvmlDeviceGetMemoryInfo_v2"),
        kind=Kind.GAUGE,
        tier=Tier.SECOND,
        scope=Scope.PART,
        views=(View(stem="memory_used", help="Memory in use.", stat=Stat.LAST, unit=Unit.BYTES, split=Split.OBSERVED),),
    ),
    Quantity(
        key="power",
        reads=(Read(via=Via.FIELD, name="POWER_INSTANT", scale=0.001),),
        kind=Kind.GAUGE,
        tier=Tier.TICK,
        scope=Scope.GPU,
        views=(View(stem="power", help="Power drawn.", stat=Stat.LAST, unit=Unit.WATTS),),
    ),
    Quantity(
        key="energy",
        reads=(Read(via=Via.FIELD, name="TOTAL_ENERGY_CONSUMPTION", scale=0.001),),
        kind=Kind.COUNTER,
        tier=Tier.TICK,
        scope=Scope.GPU,
        views=(View(stem="energy", help="Energy used.", stat=Stat.TOTAL, unit=Unit.JOULES, split=Split.SHARE),),
    ),
    Quantity(
        key="link_receive",
        reads=(Read(via=Via.FIELD, name="NVLINK_THROUGHPUT_DATA_RX"),),
        kind=Kind.COUNTER,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        axis="link",
        views=(View(stem="nvlink_link_receive", help="Received.", stat=Stat.TOTAL, unit=Unit.BYTES),),
    ),
    Quantity(
        key="state",
        reads=_call("nvmlDeviceGetPerformanceState"),
        kind=Kind.TEXT,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        text_label="state",
        views=(View(stem="performance_state", help="The P-state.", stat=Stat.LAST, unit=Unit.ONE),),
    ),
)


def window(entity: str, **more: object) -> Window:
    return Window(
        entity=entity,
        session=1,
        epoch=1,
        start_ns=0,
        end_ns=1_000_000_000,
        end_wall_ns=WALL,
        ticks=10,
        **more,  # type: ignore[arg-type]
    )


def total(value: float) -> Total:
    return Total(value=value, start_wall_ns=BEGAN)


def gpu(uuid: str, index: int) -> Device:
    return Device(
        entity=Entity(uuid=uuid, gpu=index),
        minor=index,
        pci_bus_id=f"0000:{index + 0x18:02x}:00.0",
        model="NVIDIA H100 80GB HBM3",
        identity={"serial": f"165{index}"},
    )


INVENTORY = Inventory(
    session=1,
    epoch=1,
    driver_version="580.95.05",
    nvml_version="13.580.95.05",
    cuda_version="13.0",
    devices=(
        gpu(GPU_0, 0),
        gpu(GPU_1, 1),
        Device(
            entity=Entity(uuid=MIG, parent=GPU_1, gpu=1, slices=1, total_slices=7),
            minor=1,
            pci_bus_id="0000:19:00.0",
            model="NVIDIA H100 80GB HBM3 MIG 1g.10gb",
            mig=MigInstance(gpu_instance_id=7, compute_instance_id=0, profile="1g.10gb"),
        ),
        gpu(GPU_2, 2),
    ),
    lost={GPU_2: "GPU is lost"},
)

TRAIN = Holder(source="claim", namespace="team-a", name="train", uid="c0ffee00-0000-0000-0000-000000000001")
SHARED = Holder(source="claim", namespace="team-b", name="shared", uid="c0ffee00-0000-0000-0000-000000000002")
NAMELESS = Holder(source="claim", namespace="team-b", name="no-uid")
ENDED = Holder(source="claim", namespace="team-a", name="ended", uid="c0ffee00-0000-0000-0000-000000000003")
PLUGIN = Holder(source="pod", namespace="team-c", name="old-0", container="main")

SNAPSHOT = Snapshot(
    node="node-a",
    wall_ns=WALL,
    monotonic_ns=5_000_000_000,
    inventory=INVENTORY,
    up={GPU_0: True, GPU_1: True, MIG: True, GPU_2: False},
    windows={
        GPU_0: window(
            GPU_0,
            last={"power": 412.5, "utilization": 0.93, "memory_used": 42949672960.0, "unheard_of": 1.0},
            text={"state": "P0"},
        ),
        GPU_1: window(GPU_1, last={"power": 98.0, "memory_used": 11811160064.0}, text={"state": "P2"}),
        MIG: window(MIG, last={"memory_used": 10737418240.0}),
        GPU_2: window(GPU_2, last={"power": 71.0, "utilization": 0.0}),
    },
    totals={
        GPU_0: {
            "link_receive/10": total(10.0),
            "link_receive/2": total(2.0),
            "utilization": total(3348.25),
            "energy": total(1480000.5),
        },
        GPU_2: {"energy": total(70000.0)},
    },
    extremes={GPU_0: {"utilization": (0.5, 1.0)}},
    unattributed={GPU_0: {"energy": total(0.5), "utilization": total(48.25), "xid_errors/31": total(0.0)}},
    accounts=(
        Account(
            holder=TRAIN,
            entity=GPU_0,
            basis="exclusive",
            start_wall_ns=BEGAN,
            totals={"utilization": 3000.0, "energy": 1000000.0, "allocated_seconds": 3600.0, "xid_errors/31": 2.0},
            gauges={"memory_used": 42949672960.0},
        ),
        Account(
            holder=SHARED,
            entity=MIG,
            basis="share",
            start_wall_ns=BEGAN,
            totals={"utilization": 150.0, "energy": 240000.0},
            gauges={"memory_used": 5368709120.0},
        ),
        Account(
            holder=NAMELESS, entity=MIG, basis="share", start_wall_ns=BEGAN, totals={"energy": 120000.0, "odd": 1.0}
        ),
        Account(
            holder=ENDED,
            entity=GPU_0,
            basis="exclusive",
            start_wall_ns=BEGAN,
            ended_wall_ns=WALL - 60_000_000_000,
            totals={"utilization": 300.0, "energy": 120000.0},
            gauges={"memory_used": 1.0},
        ),
        Account(holder=PLUGIN, entity=GPU_1, basis="exclusive", start_wall_ns=BEGAN, totals={"energy": 5000.0}),
    ),
    holds=(
        Hold(
            holder=TRAIN,
            entity=GPU_0,
            driver="gpu.nvidia.com",
            pool="node-a",
            device="gpu-0",
            pods=(
                PodRef(namespace="team-a", pod="train-0", container="main"),
                PodRef(namespace="team-a", pod="train-0", container="main"),
                PodRef(namespace="team-a", pod="train-0", container='odd"\\name'),
            ),
        ),
        Hold(
            holder=SHARED,
            entity=MIG,
            driver="gpu.nvidia.com",
            pool="node-a",
            device="gpu-1-mig-1g10gb-19-0",
            share_id="s1",
            share=0.5,
            basis="share",
            pods=(PodRef(namespace="team-b", pod="infer-0", container="server"),),
        ),
        Hold(holder=NAMELESS, entity=MIG, driver="gpu.nvidia.com", pool="node-a", share=0.5, basis="share"),
        Hold(
            holder=PLUGIN,
            entity=GPU_1,
            device=GPU_1,
            resource="nvidia.com/gpu",
            pods=(PodRef(namespace="team-c", pod="old-0", container="main"),),
        ),
    ),
    xids=(
        XidCount(entity=GPU_2, xid=79, count=1, last_wall_ns=WALL - 5_500_000_000),
        XidCount(entity=GPU_0, xid=31, count=2, last_wall_ns=WALL - 60_000_000_000),
    ),
    own=(
        own.build_info("0.1.0", "3.11.7"),
        own.own("sampler_up", 1),
        own.own("missing_readings", 3, "unsupported"),
        own.own("attribution_errors_total", 0, "kubelet", "unavailable"),
        own.own("attribution_errors_total", 0, "kubelet", "unavailable"),
    ),
)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def series_of(samples: list[Sample]) -> Series:
    """Samples by name and sorted labels; fails on a series that stands twice."""
    made = {(sample.family, tuple(sorted(sample.labels))): sample.value for sample in samples}
    assert len(made) == len(samples), "a series stands twice"
    return made


def parsed(text: str, openmetrics: bool) -> Series:
    """The same from an exposition, by prometheus_client's parsers; every sample line must have come through."""
    parse = parse_openmetrics if openmetrics else parse_text
    made: Series = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in made, f"{key} stands twice"
            made[key] = sample.value
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    assert len(lines) == len(made), "the parser dropped lines"
    return made
