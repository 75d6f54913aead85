"""The types that the parts of the controller share: devices as published, claims as they live, causes of waiting.

Nothing here reads a clock or a connection. `wall` seconds are Unix time as an object states it (1 s resolution, the
clock of whoever wrote it); `arrival` nanoseconds are this process' monotonic clock when a watch brought the news.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from claimscope.kube.objects import (
    AttributeValue,
    Capacity,
    CounterConsumption,
    NodeSelector,
    Taint,
    Toleration,
)
from claimscope.model import Histogram, Sample


class Key(NamedTuple):
    """A namespaced object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class DeviceKey(NamedTuple):
    """A device, as the API names it."""

    driver: str
    pool: str
    device: str

    def __str__(self) -> str:
        return f"{self.driver}/{self.pool}/{self.device}"


class PoolKey(NamedTuple):
    """A pool of one driver."""

    driver: str
    pool: str


class Version(str):
    """The value of a version attribute; comparing it with a string is an error in CEL, so the two stay apart."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One published device of the pool's newest generation."""

    key: DeviceKey
    node: str | None = None  # the one node it is on; None: node_selector or all_nodes tells
    node_selector: NodeSelector | None = None
    all_nodes: bool = False
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)  # names as published, values may be Version
    capacity: Mapping[str, Capacity] = field(default_factory=dict)
    consumes: tuple[CounterConsumption, ...] = ()
    taints: tuple[Taint, ...] = ()  # of the slice alone; Cluster.taints() adds the rules
    binding_conditions: tuple[str, ...] = ()
    shared: bool = False  # allowMultipleAllocations

    def attribute(self, name: str) -> AttributeValue | None:
        """An attribute by its name without the driver's own domain; a qualified name is looked up as it stands."""
        found = self.attributes.get(name)
        return found if found is not None else self.attributes.get(f"{self.key.driver}/{name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The newest generation of a pool; what is not yet published is unknown, not absent."""

    key: PoolKey
    generation: int
    slices_seen: int
    slices_expected: int
    devices: tuple[DeviceFacts, ...]
    counters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # counter set -> counter -> quantity
    problem: str | None = None  # why the scheduler refuses the pool: two devices of one name, ...
    published: bool = True  # False while all its slices are gone, as when a kubelet starts: devices are the last known

    @property
    def complete(self) -> bool:
        """True when every slice of this generation has been seen; until then devices may be those known before."""
        return self.published and self.slices_seen >= self.slices_expected


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingTaint:
    """One taint on one device, wherever it came from."""

    device: DeviceKey
    key: str
    value: str
    effect: str  # "None", "NoSchedule", "NoExecute"; an unknown effect is shown as "None", as Kubernetes treats it
    rule: str | None = None  # the DeviceTaintRule; None: the driver put it into its slice
    since_wall: float | None = None

    @property
    def blocks(self) -> bool:
        """True where a claim must tolerate it to be given the device."""
        return self.effect in ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One claim's allocation of one device."""

    claim: Key
    claim_uid: str
    request: str
    device: DeviceKey
    admin: bool = False  # looks without holding; takes nothing from anybody
    share_id: str | None = None
    consumed: Mapping[str, str] = field(default_factory=dict)  # capacity -> quantity
    tolerations: tuple[Toleration, ...] = ()


class ClaimState(enum.Enum):
    """Where a claim is in its life."""

    PENDING = "pending"
    ALLOCATED = "allocated"  # devices chosen, no pod entered in reservedFor
    RESERVED = "reserved"  # a pod may use it
    PREPARED = "prepared"  # a using pod's sandbox is ready, so the driver has prepared the devices
    RUNNING = "running"  # a container that uses it runs
    RELEASED = "released"  # was allocated, is not any more, and still exists; known only to who saw it
    DELETED = "deleted"


class Doing(enum.Enum):
    """What a pod does that holds devices without running on them."""

    PREPARING = "preparing"  # between binding and sandbox: devices, volumes, network
    NOT_RETRIED = "not_retried"  # the scheduler refused it earlier; its devices are free now
    PREPARE_FAILED = "prepare_failed"
    PULLING = "pulling"  # image
    IMAGE_FAILED = "image_failed"  # ImagePullBackOff, ErrImagePull, InvalidImageName
    INITIALIZING = "initializing"  # init containers
    CRASH_LOOPING = "crash_looping"
    CREATE_FAILED = "create_failed"  # CreateContainerError and the like
    PENDING_OTHER = "pending_other"  # reserved and not bound: something else keeps the pod from its node
    FINISHED = "finished"  # every container that used it has ended
    TERMINATING = "terminating"
    UNKNOWN = "unknown"


class PendingReason(enum.Enum):
    """Why a claim that is needed is not ready, in the order in which causes are looked for."""

    CLAIM_MISSING = "claim_missing"
    TEMPLATE_MISSING = "template_missing"
    QUOTA = "quota"
    ADMISSION = "admission"
    CLAIM_NOT_CREATED = "claim_not_created"  # the claim controller has not come to it yet, and says nothing
    CLAIM_DELETING = "claim_deleting"
    WRONG_OWNER = "wrong_owner"
    GATED = "gated"
    CLASS_MISSING = "class_missing"
    TOO_MANY_DEVICES = "too_many_devices"  # more than 32 in one claim
    NO_DRIVER = "no_driver"
    POOL_INCOMPLETE = "pool_incomplete"
    SELECTOR_ERROR = "selector_error"
    NO_MATCHING_DEVICE = "no_matching_device"
    DEVICES_IN_USE = "devices_in_use"
    FRAGMENTED = "fragmented"  # enough are free in all, on no one node
    TAINTED = "tainted"
    CONSTRAINT = "constraint"
    COUNTERS_EXHAUSTED = "counters_exhausted"
    CAPACITY_EXHAUSTED = "capacity_exhausted"
    BINDING_CONDITIONS = "binding_conditions"
    ALLOCATED_ELSEWHERE = "allocated_elsewhere"  # shared claim, pinned to a node the pod cannot go to
    SCHEDULER_TIMEOUT = "scheduler_timeout"
    OTHER_SCHEDULING = "other_scheduling"  # devices there are; cpu, memory, node taints or affinity keep the pod
    SCHEDULER_SILENT = "scheduler_silent"  # devices there are, and no scheduler has looked at the pod
    SCHEDULING = "scheduling"  # in progress: the scheduler has not said no
    NOT_RETRIED = "not_retried"  # the scheduler refused it earlier; its devices are free now
    PREPARE_FAILED = "prepare_failed"
    PREPARING = "preparing"  # in progress on the node
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why a claim waits: what metrics, explain, the JSON API and doctor all print."""

    reason: PendingReason
    summary: str  # one sentence with the numbers: "needs 2 devices of gpu.nvidia.com on one node; 8 match, 7 in use"
    evidence: tuple[str, ...] = ()  # one fact a line: who holds the devices, which rule taints them, the event's text
    cure: str = ""  # what to do, one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A need that is not met: a pending claim that a pod wants, or a pod's claim that does not exist yet."""

    namespace: str
    claim: str  # name of the claim; "" where none has been made from the template yet
    claim_uid: str
    pod: str  # the pod that has waited longest; "" only for extended claims whose pod is unknown
    pod_claim: str  # the pod's own name of the claim
    deviceclass: str  # of the first request; several classes are joined with "+"
    since_wall: float | None
    diagnosis: Diagnosis


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What stands behind a claim; an unknown part is empty."""

    kind: str = ""  # "Job", "RayJob", "Deployment", "LeaderWorkerSet", "InferenceService", "Model", "Pod"...
    name: str = ""
    group: str = ""  # pod group of gang scheduling
    queue: str = ""  # Kueue local queue, or KAI queue


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDevice:
    """One device of a claim, as far as the API tells it."""

    key: DeviceKey
    request: str  # "gpu", or "gpu/any" where firstAvailable chose
    uuid: str = ""  # of the slice's attributes, where the driver tells it
    node: str = ""
    admin: bool = False
    share_id: str = ""
    consumed: Mapping[str, str] = field(default_factory=dict)  # capacity -> quantity as text
    health: str = ""  # Healthy, Unhealthy, Unknown as the kubelet reports; "" where it reports nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """Everything that is shown of one claim; a new object whenever any of it changes."""

    namespace: str
    name: str
    uid: str
    state: ClaimState
    referenced: bool | None  # a pod wants it; None: pods cannot be read
    deviceclass: str  # as in Wait
    template: str = ""  # template it was made from, where the pod tells
    source: str = ""  # "claim", "template", "extended_resource"
    workload: Workload = field(default_factory=Workload)
    devices: tuple[HeldDevice, ...] = ()
    pods: tuple[str, ...] = ()  # names of the pods entered in reservedFor
    alternative: str = ""  # the subrequest that firstAvailable took: "gpu/any"; several are joined with ","
    requested_devices: int | None = None  # None: allocationMode All
    created_wall: float | None = None
    deleting_wall: float | None = None
    allocated_wall: float | None = None
    leaked: bool = False  # allocated, and nothing has reserved it for longer than the grace time
    doing: Doing | None = None  # held, not running: what the pod does instead
    doing_since_wall: float | None = None


# Buckets of every duration, in seconds: from one poll of the scheduler to what people wait for overnight.
DURATION_BOUNDS: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600)
LIFETIME_BOUNDS: tuple[float, ...] = (10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 3 * 86400, 7 * 86400,
                                      30 * 86400)


class Phase(enum.Enum):
    """Disjoint stretches of a claim's way to a running container."""

    SCHEDULING = "scheduling"  # needed (claim and a pod exist) -> allocated
    BINDING = "binding"  # allocated -> pod bound to its node
    PREPARE = "prepare"  # bound -> sandbox ready (driver, volumes, network)
    START = "start"  # sandbox ready -> first container that uses it runs


@dataclass(frozen=True, slots=True, kw_only=True)
class SickGpu:
    """A GPU, or a MIG device, against which its node's agent has found something."""

    uuid: str
    node: str
    severity: str  # "lost", "unhealthy", "degraded"
    rules: tuple[str, ...]  # of health
    since_wall: float | None  # None: no agent says so, a person does
    effect: str  # of the taint that claimscope has put up for it; "": none
    held: str  # why the taint is not put up, or is weaker than wanted; "": it is as wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSnapshot:
    """Everything the controller shows at one moment; immutable, published by one reference assignment."""

    wall_ns: int
    leading: bool  # a standby has only `own`
    complete: bool = False  # every kind that can be read has been read once
    claims: Mapping[str, ClaimView] = field(default_factory=dict)  # by uid
    waits: tuple[Wait, ...] = ()
    sick: tuple[SickGpu, ...] = ()  # the worst and longest first
    samples: tuple[Sample | Histogram, ...] = ()  # capacity, taints, quota, migration, drift, histograms, counters
    own: tuple[Sample, ...] = ()  # claimscope_controller_*
