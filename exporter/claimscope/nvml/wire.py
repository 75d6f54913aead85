"""What the agent and its sampler process say to each other over one SEQPACKET socket.

Each packet is one MessagePack-encoded message. Windows are sent non-blocking and dropped whole if the parent
stalls: they carry totals, so a dropped one costs resolution and nothing else. Events and inventories are kept and
sent again at the next tick.
"""

from __future__ import annotations

import msgspec

from claimscope.model import Event, Inventory, Window

# Driver calls that are not rows of the table of calls; the heartbeat page numbers them from 1.
SPECIAL_CALLS = (
    "import", "nvmlInitWithFlags", "nvmlShutdown", "nvmlDeviceGetCount_v2", "enumerate", "nvmlEventSetCreate",
    "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2", "nvmlEventSetFree", "nvmlDeviceGetFieldValues",
    "nvmlGpmSampleGet", "nvmlGpmMigSampleGet", "nvmlGpmMetricsGet", "nvmlGpmSampleFree", "find_lost",
    "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetProcessUtilization", "nvmlGpmQueryDeviceSupport",
)
EVENT_WAIT_NUMBER = 1 + SPECIAL_CALLS.index("nvmlEventSetWait_v2")
_UNNAMED = "unnamed GPU "


def unnamed(index: int) -> str:
    """Stands for the uuid of a GPU that was never heard to say it: its calls hang since before anybody asked."""
    return f"{_UNNAMED}{index}"


def is_unnamed(uuid: str) -> bool:
    """Whether this stands for one."""
    return uuid.startswith(_UNNAMED)


class Settings(msgspec.Struct, frozen=True, kw_only=True, tag="settings"):
    """First message to the sampler: everything it needs to know."""

    library: str | None = None  # path of libnvidia-ml.so.1; None: under the driver root
    driver_root: str | None = None  # None: where the dynamic linker finds it
    sampling_hz: float = 10.0
    gpm_hz: float = 1.0
    window_seconds: float = 1.0
    driver_time_budget_ratio: float = 0.01  # driver time / wall time per GPU above which sampling is shed
    collectors: tuple[str, ...] = ()  # opt-in collectors that are on
    nvlink_peers: bool = False  # ask each NVLink where it leads; only the label gpu_pair of DCGM's names needs it
    quarantine: dict[str, int] = {}  # uuid -> NVML index of GPUs that must not be called: a call on them hung
    known: dict[str, int] = {}  # uuid -> NVML index of every GPU seen before: a lost one cannot say who it is
    shed_seconds: float = 5.0  # driver time is judged over this long
    recover_seconds: float = 60.0  # within budget for this long before sampling is raised again
    reprobe_seconds: float = 600.0  # what the driver did not answer is asked again this often
    retry_seconds: float = 1.0  # first wait before NVML is tried again; doubles up to 10 s


class Release(msgspec.Struct, frozen=True, kw_only=True, tag="release"):
    """To the sampler: let NVML go, so that a GPU can be reset."""


class Acquire(msgspec.Struct, frozen=True, kw_only=True, tag="acquire"):
    """To the sampler: take NVML up again."""


MAX_BURST_HZ = 100.0
MAX_BURST_SECONDS = 60.0


class Burst(msgspec.Struct, frozen=True, kw_only=True, tag="burst"):
    """To the sampler: sample the few fast quantities at `hz` for `seconds`."""

    hz: float = 100.0
    seconds: float = 10.0


class CountProcesses(msgspec.Struct, frozen=True, kw_only=True, tag="count_processes"):
    """To the sampler: tell the processes on each device, whatever the collectors say, or no more."""

    on: bool


class CallCost(msgspec.Struct, frozen=True, kw_only=True):
    """Driver time that one kind of call took since the session began."""

    calls: int
    seconds: float


LATENESS_BOUNDS_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1)


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """From the sampler, once a window: how it is doing. Counts run since the session began."""

    session: int
    wall_ns: int
    ticks: int
    late_ticks: int  # deadlines that were passed and not replayed
    lateness_max_seconds: float  # worst wake-up of the last window
    dropped_messages: int
    sampling_hz: float  # in force now, after shedding or in a burst
    shed: bool  # below the configured rate because the driver is slow
    driver_seconds: dict[str, float] = {}  # uuid of the GPU -> driver time
    calls: dict[str, CallCost] = {}  # name of the call -> cost
    cpu_seconds: float = 0.0
    lateness_buckets: tuple[int, ...] = ()  # ticks by lateness: LATENESS_BOUNDS_SECONDS, then more
    events_missed: int = 0  # events that could not be kept for a parent that does not listen


class WindowMessage(msgspec.Struct, frozen=True, tag="window"):
    """From the sampler: one window of one entity."""

    window: Window


class EventMessage(msgspec.Struct, frozen=True, tag="event"):
    """From the sampler: an event, at once."""

    event: Event


class InventoryMessage(msgspec.Struct, frozen=True, tag="inventory"):
    """From the sampler: the inventory, whenever it changed."""

    inventory: Inventory


ToSampler = Settings | Release | Acquire | Burst | CountProcesses
FromSampler = WindowMessage | EventMessage | InventoryMessage | Status
