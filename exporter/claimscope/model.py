"""The few types that every layer shares: devices, readings, holders and samples.

Nothing here reads a clock, a file or a device. Times are integers in nanoseconds: names ending in
`_ns` are CLOCK_MONOTONIC, names ending in `wall_ns` are Unix time and only ever stamp.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Missing(enum.Enum):
    """Why there is no number. The series is then absent and a counter carries this reason."""

    UNSUPPORTED = "unsupported"  # this device or driver never answers it; probed again on a slow clock
    DENIED = "denied"  # needs a right the process lacks
    LOST = "lost"  # the device or the driver is gone
    FAILED = "failed"  # anything else, expected to pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """One thing NVML measures: a GPU, or one MIG device on it."""

    uuid: str  # "GPU-..." or "MIG-..."
    parent: str | None = None  # uuid of the GPU that a MIG device is cut from
    gpu: int  # NVML index of the GPU, the `gpu` label; it may move at a reboot, the uuid does not
    slices: int | None = None  # compute slices of a MIG device
    total_slices: int | None = None  # compute slices of its GPU: slices / total_slices is its declared share


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """Where a MIG device sits on its GPU; names of dynamic DRA devices are built from these."""

    gpu_instance_id: int
    compute_instance_id: int
    profile: str  # "1g.10gb"
    profile_id: int | None = None  # GPU instance profile id; None where NVML denies it
    placement_start: int | None = None  # first memory slice; None where NVML denies it


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What an entity is: facts that change only with the inventory."""

    entity: Entity
    minor: int | None  # /dev/nvidia<minor>
    pci_bus_id: str | None  # "0000:18:00.0": lower case, four-digit domain
    model: str | None  # "NVIDIA H100 80GB HBM3"
    mig: MigInstance | None = None  # set on MIG devices
    mig_enabled: bool = False  # set on a GPU whose MIG mode is on
    nvlink_peers: Mapping[int, str] = field(default_factory=dict)  # NVLink -> PCI bus id of the GPU that it leads to
    identity: Mapping[str, str] = field(default_factory=dict)  # label -> value for gpu_info: serial, vbios_version...


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Everything NVML shows on this node; sent whole whenever it changes."""

    session: int  # start of the sampler process, CLOCK_MONOTONIC ns: names one run of it
    epoch: int  # counts (re)initialisations of NVML within the session
    driver_version: str | None
    nvml_version: str | None
    cuda_version: str | None
    devices: tuple[Device, ...]
    lost: Mapping[str, str] = field(default_factory=dict)  # uuid of a GPU that was there -> why it is not answering
    error: str | None = None  # why NVML itself is not usable: what, where, what to do; devices is then empty
    released: bool = False  # NVML was let go on request, so that a GPU can be reset


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """One process on one entity, by its pid in the agent's pid namespace."""

    pid: int
    memory_used_bytes: int | None = None
    busy_ratio: float | None = None  # SM time of this process / window, where NVML tells


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one entity did in one window, cut by the clock and never by a scrape.

    Keys are reading keys: a quantity's key, with "/<axis value>" behind it where the quantity has an axis
    ("nvlink_link_receive_bytes/3"). Values are in base units. `integral` and `raw` are running totals, never
    increments: who misses a window takes the difference over the gap.
    """

    entity: str  # uuid
    session: int
    epoch: int  # per entity; rises when its handles were taken anew (GPU reset, driver reload)
    start_ns: int
    end_ns: int
    end_wall_ns: int
    ticks: int  # samples of the fast tier in this window
    last: Mapping[str, float] = field(default_factory=dict)  # gauges: last value
    low: Mapping[str, float] = field(default_factory=dict)  # gauges of the fast tiers: minimum in the window
    high: Mapping[str, float] = field(default_factory=dict)
    integral: Mapping[str, float] = field(default_factory=dict)  # gauges: value x seconds since (session, epoch) began
    raw: Mapping[str, float] = field(default_factory=dict)  # driver counters in base units, followed by decrease
    missing: Mapping[str, Missing] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)  # enumerations: performance state, fabric state...
    processes: tuple[ProcessUse, ...] | None = None  # None: not asked or not told


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something NVML said at a moment: an XID, a MIG change, a recovery action."""

    entity: str  # uuid of the GPU, or of the MIG device where NVML attributes it
    kind: str  # "xid", "mig_config_change", "gpu_unavailable", "gpu_recovery_action", ...
    code: int  # the XID; 999 where the driver says unknown
    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a device: the key of an account."""

    source: str  # "claim" (DRA) or "pod" (device plugin)
    namespace: str
    name: str  # of the ResourceClaim, or of the pod
    uid: str | None = None  # of the ResourceClaim; pod-resources tells no pod uid
    container: str | None = None  # only for source "pod"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRef:
    """One container that uses a hold."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One holder on one entity, as of one poll of the kubelet."""

    holder: Holder
    entity: str  # uuid
    driver: str | None = None  # DRA
    pool: str | None = None
    device: str | None = None  # DRA device name, or the device plugin's id as the kubelet spells it
    resource: str | None = None  # extended resource name of the device plugin, "nvidia.com/gpu"
    share_id: str | None = None
    request: str | None = None  # request of the claim, where a source tells it; pod-resources does not
    share: float = 1.0  # part of the entity, > 0; the shares of all holds on an entity add up to at most 1
    basis: str = "exclusive"  # "exclusive" or "share"
    pods: tuple[PodRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One number of one family, the only input of every exporter."""

    family: str
    labels: tuple[tuple[str, str], ...]
    value: float
    start_ns: int | None = None  # Unix time at which a counter began; None for gauges and where it is not known
    start_value: float = 0.0  # what a counter showed at start_ns: above 0 where it had counted before, unseen


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """One series of a histogram family, as cumulative as Prometheus wants it."""

    family: str
    labels: tuple[tuple[str, str], ...]
    bounds: tuple[float, ...]  # upper bounds without +Inf, rising
    counts: tuple[int, ...]  # observations per bucket, not cumulative; one more than bounds, the last is +Inf
    sum: float
    start_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A monotone sum and when it began."""

    value: float
    start_wall_ns: int
    start_value: float = 0.0  # at start_wall_ns: above 0 for a driver's counter that was there before it was followed


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one holder used of one entity on one basis; monotone totals and present gauges, by reading key."""

    holder: Holder
    entity: str
    basis: str  # "exclusive" or "share": of the hold; a change of basis is another account of the same holder
    start_wall_ns: int
    ended_wall_ns: int | None = None  # set when the hold ended; the account is kept a while with its final totals
    totals: Mapping[str, float] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class XidCount:
    """How often one XID was seen on one entity, and when last."""

    entity: str
    xid: int
    count: int
    last_wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """What befell one entity in the last minutes, and since the agent began; for DCGM's names only."""

    xids: Mapping[int, int] = field(default_factory=dict)  # XID -> times
    clock_events: Mapping[str, int] = field(default_factory=dict)  # reason -> windows at whose end it held
    clock_events_begun: Mapping[str, int] = field(default_factory=dict)  # reason -> times, since the agent began


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything an exporter shows, at one moment; immutable, published by one reference assignment."""

    node: str
    wall_ns: int
    monotonic_ns: int
    inventory: Inventory | None  # None until the sampler has spoken
    up: Mapping[str, bool] = field(default_factory=dict)  # entity -> answers and is fresh
    windows: Mapping[str, Window] = field(default_factory=dict)  # entity -> newest window
    totals: Mapping[str, Mapping[str, Total]] = field(default_factory=dict)  # entity -> reading key -> device total
    extremes: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)  # last full minute
    rates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # counters per second, for DCGM's names only
    recent: Mapping[str, Recent] = field(default_factory=dict)  # by entity, for DCGM's names only
    unattributed: Mapping[str, Mapping[str, Total]] = field(default_factory=dict)
    accounts: tuple[Account, ...] = ()
    holds: tuple[Hold, ...] = ()
    xids: tuple[XidCount, ...] = ()
    health: tuple[Sample, ...] = ()  # families of metrics/health.py
    own: tuple[Sample, ...] = ()  # claimscope_agent_*, families of metrics/own.py
