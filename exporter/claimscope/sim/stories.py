"""What stands in a simulated cluster beside its NVIDIA nodes: other vendors' devices, and one pod for every cause of
waiting and every way to hold devices without using them.

Pure data. The devices live in pools of nodes without a simulated agent, so that NVIDIA's nodes stay as World says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from claimscope.claims.model import PendingReason
from claimscope.sim.objects import ClaimScript, EventScript, Object, PodScript, cel, device, owner, request

HOUR: Final = 3600.0
MAXIMUM_DEVICES: Final = 32  # of one claim; API resource/v1 types.go, AllocationResultsMaxSize

AMD, INTEL, TPU = "gpu.amd.com", "gpu.intel.com", "tpu.google.com"
EXAMPLE, PARTITIONED, SHARED = "gpu.example.com", "partition.example.com", "shared.example.com"
FABRIC, LATE, ABSENT = "fabric.example.com", "late.example.com", "absent.example.com"
NVIDIA: Final = "gpu.nvidia.com"

# Name, expression, name of the extended resource.
CLASSES: Final[tuple[tuple[str, str, str | None], ...]] = (
    (NVIDIA, f"device.driver == '{NVIDIA}' && device.attributes['{NVIDIA}'].type == 'gpu'", "nvidia.com/gpu"),
    ("mig.nvidia.com", f"device.driver == '{NVIDIA}' && device.attributes['{NVIDIA}'].type == 'mig'", None),
    (
        "high-memory-gpu",
        f"device.driver == '{NVIDIA}' && device.capacity['{NVIDIA}'].memory.compareTo(quantity('70Gi')) >= 0",
        None,
    ),
    (AMD, f"device.driver == '{AMD}'", "amd.com/gpu"),
    *((driver, f"device.driver == '{driver}'", None) for driver in (
        INTEL, TPU, EXAMPLE, PARTITIONED, SHARED, FABRIC, LATE, ABSENT
    )),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherPool:
    """A pool of a driver that has no simulated agent."""

    driver: str
    node: str
    devices: tuple[Object, ...]
    slices: int = 1  # that the pool says it has
    counters: tuple[Object, ...] = ()


def _partition(name: str, gibibytes: int) -> Object:
    kind = "whole" if gibibytes == 40 else "half"
    takes = [{"counterSet": "board", "counters": {"memory": {"value": f"{gibibytes}Gi"}}}]
    return device(name, attributes={"type": kind}, consumesCounters=takes)


POOLS: Final = (
    OtherPool(driver=AMD, node="amd-node-1", devices=tuple(
        device(f"gpu-{n}", attributes={"productName": "AMD Instinct MI300X", "type": "amdgpu"}) for n in (0, 1)
    )),
    OtherPool(driver=AMD, node="amd-node-2", devices=tuple(
        device(f"gpu-{n}", attributes={"productName": "AMD Instinct MI300X", "type": "amdgpu"}) for n in (0, 1)
    )),
    OtherPool(driver=INTEL, node="intel-node-1", devices=tuple(
        device(f"0000-{n}a-00-0-0x0bda", attributes={"model": "Intel Data Center GPU Max 1550"}) for n in range(4)
    )),
    OtherPool(driver=TPU, node="tpu-node-1", devices=tuple(
        device(f"tpu-{n}", attributes={"model": "v5e"}) for n in range(4)
    )),
    OtherPool(driver=EXAMPLE, node="example-node-1", devices=(
        *(device(f"pair-{n}", attributes={"model": "pair", "numa": str(n)}) for n in (0, 1)),
        *(device(f"small-{n}", attributes={"model": "small", "numa": "0"}) for n in range(4)),
    )),
    OtherPool(
        driver=PARTITIONED, node="example-node-1",
        devices=(_partition("whole", 40), _partition("half-0", 20), _partition("half-1", 20)),
        slices=2, counters=({"name": "board", "counters": {"memory": {"value": "40Gi"}}},),
    ),
    OtherPool(driver=SHARED, node="example-node-1", devices=(
        device(
            "card-0", attributes={"model": "shared"}, allowMultipleAllocations=True,
            capacity={"memory": {"value": "80Gi", "requestPolicy": {
                "default": "10Gi", "validRange": {"min": "10Gi", "step": "10Gi"}}}},
        ),
    )),
    OtherPool(driver=FABRIC, node="example-node-1", devices=(
        device(
            "fabric-0", attributes={"model": "fabric"}, bindingConditions=["example.com/attached"],
            bindingFailureConditions=["example.com/failed"], bindsToNode=True,
        ),
    )),
    OtherPool(driver=LATE, node="example-node-1", devices=(device("late-0"),), slices=2),
)

Rule = tuple[str, Mapping[str, str], str, str, str]  # name, selector, key, value, effect

RULES: Final[tuple[Rule, ...]] = (
    ("tpu-maintenance", {"driver": TPU, "pool": "tpu-node-1"}, "example.com/maintenance", "firmware", "NoSchedule"),
    ("watch-amd", {"driver": AMD, "pool": "amd-node-2", "device": "gpu-1"}, "example.com/degraded", "watch", "None"),
)

# Comes and goes, each time over the device that the nightly job is given in spite of it, as schedulers of 1.36.0 to
# 1.36.2 do (kubernetes/kubernetes #139651).
PASSING_RULE: Final[Rule] = (
    "overheated", {"driver": EXAMPLE, "pool": "example-node-1", "device": "small-2"}, "example.com/overheated", "",
    "NoSchedule",
)
PASSING_RULE_PERIOD_SECONDS: Final = 120.0
PASSING_RULE_SECONDS: Final = (30.0, 90.0)  # of each period: from, until

# Namespace, hard, used.
QUOTA: Final = ("limited", f"{AMD}.deviceclass.resource.k8s.io/devices", 1, 1)
ADMIN_NAMESPACES: Final = frozenset({"gpu-monitoring"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One pod as somebody wrote it, and what must be said of its claims."""

    pod: PodScript
    reason: PendingReason | None = None  # why its claim waits; None: it does not wait
    schedule: bool = True  # False: the scheduler never gets to see it, or has said what the pod shows
    runs: bool = True  # False: it stops before its container runs
    extra: tuple[ClaimScript, ...] = field(default=())  # claims that this pod does not name


def _claim(namespace: str, name: str, *requests: Object, **more: object) -> ClaimScript:
    return ClaimScript(namespace=namespace, name=name, requests=requests, **more)  # type: ignore[arg-type]


def _pod(name: str, *claims: ClaimScript, namespace: str = "team-a", hours: float = 1.0, **more: object) -> PodScript:
    return PodScript(
        namespace=namespace, name=name, claims=claims, created=-hours * HOUR, **more  # type: ignore[arg-type]
    )


def _one(name: str, *requests: Object, namespace: str = "team-a", hours: float = 1.0, **more: object) -> PodScript:
    """A pod with one claim of its own."""
    claim = _claim(namespace, f"{name}-gpu", *requests, created=-hours * HOUR - 5)
    return _pod(name, claim, namespace=namespace, hours=hours, **more)


def _model(model: str) -> list[Object]:
    return cel(f"device.attributes['{EXAMPLE}'].model == '{model}'")


def _missing(name: str, reference: Mapping[str, str]) -> tuple[Object, ...]:
    return ({"name": name, **reference},)


def _creation_failed(text: str) -> tuple[EventScript, ...]:
    return (EventScript(reason="FailedResourceClaimCreation", message=text, component="resource_claim"),)


_TEMPLATE = {"resourceClaimTemplateName": "amd-gpu"}
_SMALL = request(EXAMPLE, selectors=_model("small"))


def holders() -> tuple[Story, ...]:
    """Pods that hold devices for good; they come first, so that the others find them taken."""
    queue = {"kueue.x-k8s.io/queue-name": "research"}
    deployment = {"app": "vision", "pod-template-hash": "6d4cf56db6"}
    return (
        Story(pod=_one(
            "quota-holder", request(AMD), namespace="limited", hours=30, node_selector=_on("amd-node-1"),
            labels=queue, owners=(owner("Job", "quota-holder", "limited", api_version="batch/v1"),),
        )),
        Story(pod=_pod(
            "rendering",
            _claim(
                "team-b", "rendering-extended-resources-x7k2p", request(AMD, name="container-0-request-0"),
                extended=True, owner_pod="rendering", created=-20 * HOUR,
            ),
            namespace="team-b", hours=20, limits={"amd.com/gpu": "1"}, node_selector=_on("amd-node-2"),
        )),
        Story(
            pod=_one(
                "crash-looping", request(INTEL), hours=6, waiting="CrashLoopBackOff", restarts=71, health="Unhealthy",
                labels=deployment,
                owners=(owner("ReplicaSet", "vision-6d4cf56db6", "team-a", api_version="apps/v1"),),
            ),
            runs=False,
        ),
        Story(pod=_one("pulling", request(INTEL), hours=0.2), runs=False),
        Story(pod=_one("image-missing", request(INTEL), hours=2, waiting="ImagePullBackOff"), runs=False),
        Story(
            pod=_one("prepare-failed", request(INTEL), hours=0.5, events=(EventScript(
                reason="FailedPrepareDynamicResources", component="kubelet", after=2.0,
                message="Failed to prepare dynamic resources: prepare dynamic resources: "
                        f"DRA driver {INTEL} is not registered",
            ),)),
            reason=PendingReason.PREPARE_FAILED, runs=False,
        ),
        Story(pod=_pod(
            "prioritized",
            _claim("team-a", "prefers-large", {"name": "gpu", "firstAvailable": [
                {"name": "large", "deviceClassName": EXAMPLE, "selectors": _model("large")},
                {"name": "any", "deviceClassName": EXAMPLE, "selectors": _model("small")},
            ]}, created=-3 * HOUR),
            hours=3, labels={"serving.kserve.io/inferenceservice": "llama"},
        )),
        Story(pod=_one("half-board", request(PARTITIONED, selectors=cel(
            f"device.attributes['{PARTITIONED}'].type == 'half'")), hours=9)),
        *(
            Story(pod=_one(name, request(SHARED, capacity={"requests": {"memory": amount}}), hours=4,
                           namespace="serving", labels={"model": name, "app.kubernetes.io/managed-by": "kubeai"}))
            for name, amount in (("shares-40", "40Gi"), ("shares-30", "30Gi"))
        ),
        Story(
            pod=_one("fabric", request(FABRIC), hours=0.1, events=(EventScript(
                reason="BindingConditionsPending", component="default-scheduler", type="Normal",
                message="waiting for binding conditions for device on node example-node-1",
            ),)),
            reason=PendingReason.BINDING_CONDITIONS, runs=False,
        ),
    )


def _on(node: str) -> dict[str, str]:
    return {"kubernetes.io/hostname": node}


def waiters() -> tuple[Story, ...]:
    """Pods that wait, one a cause."""
    reason = PendingReason
    forbidden = 'create ResourceClaim : resourceclaims.resource.k8s.io "{0}" is forbidden: {1}'
    quota = f"{QUOTA[1]}="
    return (
        Story(pod=_pod("claim-missing", missing=_missing("gpu", {"resourceClaimName": "nobody-made-it"})),
              reason=reason.CLAIM_MISSING, schedule=False),
        Story(
            pod=_pod(
                "template-missing", missing=_missing("gpu", {"resourceClaimTemplateName": "no-such-template"}),
                events=_creation_failed(
                    'PodResourceClaim gpu: resource claim template "no-such-template": '
                    'resourceclaimtemplate.resource.k8s.io "no-such-template" not found'
                ),
            ),
            reason=reason.TEMPLATE_MISSING, schedule=False,
        ),
        Story(
            pod=_pod(
                "over-quota", namespace="limited", missing=_missing("gpu", _TEMPLATE),
                events=_creation_failed("PodResourceClaim gpu: " + forbidden.format(
                    "over-quota-gpu-qmhnk",
                    f"exceeded quota: gpu-quota, requested: {quota}1, used: {quota}1, limited: {quota}1",
                )),
            ),
            reason=reason.QUOTA, schedule=False,
        ),
        Story(
            pod=_pod(
                "admission-denied", missing=_missing("gpu", _TEMPLATE),
                events=_creation_failed("PodResourceClaim gpu: " + forbidden.format(
                    "admission-denied-gpu-5kx9z",
                    "ValidatingAdmissionPolicy 'gpu-requests' with binding 'gpu-requests' denied request: "
                    "claims need a cost centre",
                )),
            ),
            reason=reason.ADMISSION, schedule=False,
        ),
        Story(pod=_pod("claim-not-created", missing=_missing("gpu", _TEMPLATE)),
              reason=reason.CLAIM_NOT_CREATED, schedule=False),
        Story(pod=_pod("claim-deleting", _claim(
            "team-a", "claim-deleting-gpu", request(AMD), created=-2 * HOUR, deleting=-HOUR)),
              reason=reason.CLAIM_DELETING, schedule=False),
        Story(pod=_pod("wrong-owner", _claim(
            "team-a", "wrong-owner-gpu-7mz4t", request(AMD), created=-2 * HOUR, template="amd-gpu",
            owner_pod="wrong-owner", owner_uid="00000000-0000-4000-8000-000000000001")),
              reason=reason.WRONG_OWNER, schedule=False),
        Story(pod=_one("gated", request(AMD), gates=("kueue.x-k8s.io/admission",),
                       labels={"kueue.x-k8s.io/queue-name": "research"}),
              reason=reason.GATED, schedule=False),
        Story(pod=_one("class-missing", request("no-such-class")), reason=reason.CLASS_MISSING),
        Story(pod=_one("too-many-devices", request(AMD, count=MAXIMUM_DEVICES + 1)), reason=reason.TOO_MANY_DEVICES),
        Story(pod=_one("no-driver", request(ABSENT)), reason=reason.NO_DRIVER),
        Story(pod=_one("pool-incomplete", request(LATE)), reason=reason.POOL_INCOMPLETE),
        Story(pod=_one("selector-error", request(EXAMPLE, selectors=cel(
            f"device.attributes['{EXAMPLE}'].firmware == '2'"))), reason=reason.SELECTOR_ERROR),
        Story(pod=_one("no-matching-device", request(NVIDIA, selectors=cel(
            f"device.attributes['{NVIDIA}'].productName.contains('H200')"))), reason=reason.NO_MATCHING_DEVICE),
        Story(pod=_one("devices-in-use", request(INTEL)), reason=reason.DEVICES_IN_USE),
        Story(pod=_one("fragmented", request(AMD, count=2)), reason=reason.FRAGMENTED),
        Story(pod=_one("tainted", request(TPU)), reason=reason.TAINTED),
        Story(
            pod=_pod("constraint", _claim(
                "team-a", "constraint-gpu", request(EXAMPLE, count=2, selectors=_model("pair")), created=-HOUR,
                constraints=({"requests": ["gpu"], "matchAttribute": f"{EXAMPLE}/numa"},),
            )),
            reason=reason.CONSTRAINT,
        ),
        Story(pod=_one("counters-exhausted", request(PARTITIONED, selectors=cel(
            f"device.attributes['{PARTITIONED}'].type == 'whole'"))), reason=reason.COUNTERS_EXHAUSTED),
        Story(pod=_one("capacity-exhausted", request(SHARED, capacity={"requests": {"memory": "20Gi"}})),
              reason=reason.CAPACITY_EXHAUSTED),
        Story(
            pod=_one("scheduler-timeout", request(AMD), refusal=(
                "SchedulerError",
                'running "DynamicResources" filter plugin: node amd-node-1: timed out trying to allocate devices',
            )),
            reason=reason.SCHEDULER_TIMEOUT, schedule=False,
        ),
        Story(
            pod=_one("other-scheduling", request(AMD), refusal=(
                "Unschedulable",
                "0/{nodes} nodes are available: {nodes} Insufficient cpu. no new claims to deallocate, preemption: "
                "0/{nodes} nodes are available: {nodes} No preemption victims found for incoming pod.",
            )),
            reason=reason.OTHER_SCHEDULING, schedule=False,
        ),
    )


def left_over() -> tuple[Story, ...]:
    """Claims that no pod uses: never asked for, or kept after use. They are allocated as if for a pod of that name."""
    return (
        Story(pod=_pod("leaked", _claim("team-b", "leaked-gpu", _SMALL, created=-50 * HOUR), namespace="team-b",
                       hours=50)),
        Story(pod=_pod("nightly", _claim("team-b", "nightly-gpu", _SMALL, created=-40 * HOUR), namespace="team-b",
                       hours=40)),
    )


def unreferenced() -> ClaimScript:
    """A claim that no pod names; it waits, and nobody is to blame."""
    return _claim("team-b", "unreferenced", request(AMD), created=-12 * HOUR)
