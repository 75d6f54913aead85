"""A cluster made by hand for the tests of the controller's export and web side."""

from __future__ import annotations

from claimscope.claims.model import (
    DURATION_BOUNDS,
    ClaimState,
    ClaimView,
    ClusterSnapshot,
    DeviceKey,
    Diagnosis,
    Doing,
    HeldDevice,
    PendingReason,
    SickGpu,
    Wait,
    Workload,
)
from claimscope.metrics.cluster import histogram, sample
from claimscope.metrics.controller import own

WALL = 1_700_000_000
NVIDIA = "gpu.nvidia.com"


def held(node: str, device: str, **more: object) -> HeldDevice:
    return HeldDevice(key=DeviceKey(NVIDIA, node, device), request="gpu", node=node, **more)  # type: ignore[arg-type]


TRAIN = ClaimView(
    namespace="team-a",
    name="train-0-gpus-x7k2p",
    uid="c0ffee00-0000-0000-0000-000000000001",
    state=ClaimState.RUNNING,
    referenced=True,
    deviceclass=NVIDIA,
    template="training",
    source="template",
    workload=Workload(kind="RayJob", name="train", group="train-pg", queue="research"),
    devices=(
        held("node-a", "gpu-0", uuid="GPU-1", health="Healthy"),
        held("node-a", "gpu-1", uuid="GPU-2", health="Unhealthy"),
    ),
    pods=("train-0",),
    alternative="gpu/h100",
    requested_devices=2,
    created_wall=WALL - 3600.0,
    allocated_wall=WALL - 3590.0,
)
SHARED = ClaimView(
    namespace="team-b",
    name="infer",
    uid="c0ffee00-0000-0000-0000-000000000002",
    state=ClaimState.RESERVED,
    referenced=True,
    deviceclass=NVIDIA,
    source="claim",
    workload=Workload(kind="Deployment", name="infer"),
    devices=(held("node-b", "gpu-0", share_id="s1", consumed={"memory": "40Gi", "odd": "x"}),),
    pods=("infer-5d4f", "infer-8c2b"),
    requested_devices=1,
    created_wall=WALL - 700.0,
    allocated_wall=WALL - 650.0,
    doing=Doing.CRASH_LOOPING,
    doing_since_wall=WALL - 600.0,
)
WATCHER = ClaimView(
    namespace="monitoring",
    name="all-gpus",
    uid="c0ffee00-0000-0000-0000-000000000003",
    state=ClaimState.ALLOCATED,
    referenced=False,
    deviceclass=NVIDIA,
    source="claim",
    devices=(held("node-a", "gpu-0", admin=True),),
    leaked=True,
    allocated_wall=WALL - 7200.0,
)
UNWANTED = ClaimView(
    namespace="team-b",
    name='odd"\\name',
    uid="c0ffee00-0000-0000-0000-000000000004",
    state=ClaimState.PENDING,
    referenced=False,
    deviceclass="mig.nvidia.com",
    requested_devices=1,
    created_wall=WALL - 60.0,
)
STUCK = ClaimView(
    namespace="team-c",
    name="finetune-gpu",
    uid="c0ffee00-0000-0000-0000-000000000005",
    state=ClaimState.PENDING,
    referenced=True,
    deviceclass=NVIDIA,
    requested_devices=8,
    created_wall=WALL - 5400.0,
)
PULLING = ClaimView(
    namespace="team-a",
    name="eval-gpu",
    uid="c0ffee00-0000-0000-0000-000000000006",
    state=ClaimState.PREPARED,
    referenced=True,
    deviceclass=NVIDIA,
    workload=Workload(kind="Job", name="eval"),
    devices=(held("node-c", "gpu-3"),),
    pods=("eval-zk4xq",),
    requested_devices=1,
    created_wall=WALL - 45.0,
    allocated_wall=WALL - 42.0,
    doing=Doing.PULLING,
    doing_since_wall=WALL - 40.0,
)
GONE = ClaimView(
    namespace="team-a", name="gone", uid="c0ffee00-0000-0000-0000-000000000007", state=ClaimState.DELETED,
    referenced=False, deviceclass=NVIDIA,
)  # fmt: skip

WAITS = (
    Wait(
        namespace="team-c",
        claim="finetune-gpu",
        claim_uid=STUCK.uid,
        pod="finetune-0",
        pod_claim="gpu",
        deviceclass=NVIDIA,
        since_wall=WALL - 5400.0,
        diagnosis=Diagnosis(
            reason=PendingReason.DEVICES_IN_USE,
            summary="needs 8 devices of gpu.nvidia.com on one node; 24 exist, 24 match, 21 are in use, 1 is tainted",
            evidence=(
                "team-a/train-0-gpus-x7k2p holds 2 on node-a",
                "team-b/infer holds 1 on node-b",
                "team-d/batch-17 holds 8 on node-c",
                "1 more claim holds 10",
            ),
            cure="wait for a node to become free, or ask for fewer devices on one node",
        ),
    ),
    Wait(
        namespace="team-e",
        claim="",
        claim_uid="",
        pod="notebook-ada",
        pod_claim="gpu",
        deviceclass="mig.nvidia.com",
        since_wall=WALL - 300.0,
        diagnosis=Diagnosis(
            reason=PendingReason.TEMPLATE_MISSING,
            summary='ResourceClaimTemplate team-e/"mig-1g" does not exist',
            evidence=("FailedResourceClaimCreation: template not found <script>",),
            cure="create the template, or correct resourceClaimTemplateName in the pod",
        ),
    ),
    # The same pod lacks a second claim of the same class: no series of its own.
    Wait(
        namespace="team-e",
        claim="",
        claim_uid="",
        pod="notebook-ada",
        pod_claim="spare",
        deviceclass="mig.nvidia.com",
        since_wall=WALL - 200.0,
        diagnosis=Diagnosis(reason=PendingReason.TEMPLATE_MISSING, summary="as above"),
    ),
    Wait(
        namespace="team-a",
        claim="eval-gpu",
        claim_uid=PULLING.uid,
        pod="eval-zk4xq",
        pod_claim="gpu",
        deviceclass=NVIDIA,
        since_wall=None,
        diagnosis=Diagnosis(reason=PendingReason.PREPARING, summary="the kubelet is preparing it on node-c"),
    ),
)


def _pool(node: str, deviceclass: str, **states: int) -> list[object]:
    return [sample("dra_pool_devices", count, NVIDIA, node, deviceclass, state) for state, count in states.items()]


SAMPLES = (
    histogram("dra_allocation_duration_seconds", DURATION_BOUNDS, (0, 3, 40, 20, 8, 2, 1, *[0] * 9, 1), 121.5, NVIDIA,
              "scheduling"),
    histogram("dra_allocation_duration_seconds", DURATION_BOUNDS, (*[0] * 4, 10, 20, 30, 10, 5, *[0] * 8), 311.0,
              NVIDIA, "prepare"),
    histogram("dra_claim_ready_duration_seconds", DURATION_BOUNDS, (*[0] * 6, 20, 40, 12, 1, *[0] * 7), 600.25, NVIDIA),
    *_pool("node-a", NVIDIA, allocated=6, free=1, tainted=1, unhealthy=0, reserved=0),
    *_pool("node-b", NVIDIA, allocated=7, free=0, tainted=0, unhealthy=1, reserved=0),
    *_pool("node-c", NVIDIA, allocated=8, free=0, tainted=0, unhealthy=0, reserved=0),
    *_pool("node-d", "mig.nvidia.com", allocated=9, free=31, tainted=0, unhealthy=0, reserved=16),
    sample("dra_class_largest_claim_devices", 1, NVIDIA),
    sample("dra_class_largest_claim_devices", 7, "mig.nvidia.com"),
    sample("dra_device_taint_info", 1, NVIDIA, "node-a", "gpu-7", "node-a", "GPU-8", "example.com/maintenance", "soon",
           "NoSchedule", "fan-swap"),
    sample("dra_device_taint_info", 1, NVIDIA, "node-b", "gpu-3", "node-b", "GPU-9", "gpu.nvidia.com/xid", "79",
           "NoExecute", ""),
    sample("dra_constraint_violations_total", 1, NVIDIA, "taint"),
    sample("dra_migration_pods", 12, "team-a", "claim"),
    sample("dra_migration_pods", 30, "team-f", "device_plugin"),
    sample("dra_migration_pods", 2, "team-f", "extended_resource"),
    sample("dra_migration_devices", 21, "team-a", "claim"),
    sample("dra_migration_devices", 36, "team-f", "device_plugin"),
    sample("dra_migration_devices", 2, "team-f", "extended_resource"),
    sample("dra_node_devices_advertised_twice", 4, "node-f", "nvidia.com/gpu"),
)  # fmt: skip

CLAIMS = (TRAIN, SHARED, WATCHER, UNWANTED, STUCK, PULLING, GONE)
SICK = (
    SickGpu(
        uuid="GPU-8f6a", node="node-4", severity="lost", rules=("gpu_lost", "xid_lost"), since_wall=WALL - 7300.0,
        effect="NoSchedule", held="",
    ),
    SickGpu(
        uuid="GPU-<b>", node="node-2", severity="unhealthy", rules=("xid_fatal",), since_wall=WALL - 90.0,
        effect="None", held="budget_fleet: 8 of at most 8 GPUs of the fleet are kept from work",
    ),
    SickGpu(
        uuid="GPU-11aa", node="node-2", severity="degraded", rules=("pcie_width",), since_wall=None, effect="", held="",
    ),
)  # fmt: skip
CLUSTER = ClusterSnapshot(
    wall_ns=WALL * 1_000_000_000,
    leading=True,
    complete=True,
    claims={view.uid: view for view in CLAIMS},
    waits=WAITS,
    sick=SICK,
    samples=SAMPLES,  # type: ignore[arg-type]  # the pools are samples
    own=(own("leader", 1), own("objects", 6, "resourceclaims")),
)
STANDBY = ClusterSnapshot(wall_ns=WALL * 1_000_000_000, leading=False, own=(own("leader", 0),))
