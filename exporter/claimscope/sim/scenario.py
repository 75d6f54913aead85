"""What happens on the simulated node, and when? Pods that come and go, and faults, read from a YAML file.

Times are seconds since the simulation began. A file names only what differs from the default: `pods` replaces the
default pods, `faults` adds faults.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from claimscope.sim.profiles import Profile
from claimscope.sim.workloads import WORKLOADS
from claimscope.yamlfile import ConfigError, read_values

_VERSION = re.compile(r"_v[0-9]+$")
_OWN_VERSIONS = frozenset({"nvmlDeviceGetFanSpeed_v2", "nvmlDeviceGetAttributes_v2"})


class ClaimPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ResourceClaim of a pod."""

    name: str
    devices: tuple[str, ...]  # "gpu:0" a GPU, "mig:0/1" the second MIG device of GPU 0
    shared: bool = False  # one claim for all pods that name it; else every pod has its own
    admin_access: bool = False  # looks without holding: it does no work
    capacity_share: bool = False  # held by a share of its capacity: has a share id
    driver: str = "gpu.nvidia.com"


class PodPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pod, once or again and again."""

    namespace: str
    name: str
    workload: str
    container: str = "main"
    start: float = 0.0
    duration: float | None = None  # None: it stays
    period: float | None = None  # a new pod each period
    claims: tuple[ClaimPlan, ...] = ()
    plugin: dict[str, tuple[str, ...]] = {}  # resource name -> devices; "gpu:5::1" is a time-slicing replica


class XidFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="xid"):
    """The driver reports an XID."""

    at: float
    gpu: int
    code: int
    mig: int | None = None  # place of the MIG device it is attributed to
    every: float | None = None  # again and again


class EccFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="ecc"):
    """Memory errors are counted; an uncorrected one remaps a row."""

    at: float
    gpu: int
    type: Literal["corrected", "uncorrected"] = "uncorrected"
    location: Literal["l1_cache", "l2_cache", "dram", "register_file", "texture_memory", "sram"] = "dram"
    count: int = 1
    remap_failure: bool = False


class ThermalFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="thermal_throttle"
):
    """The GPU is too hot and slows down."""

    at: float
    gpu: int
    duration: float = 60.0
    hardware: bool = False
    celsius: float | None = None  # how hot it gets; None: two degrees above the slowdown


class PowerBrakeFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="power_brake"
):
    """The power supply asserts the brake."""

    at: float
    gpu: int
    duration: float = 60.0


class ClocksLowFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="clocks_low"
):
    """Clocks stay low under load, and the driver names no reason."""

    at: float
    gpu: int
    ratio: float = 0.5  # of the clocks that it would have
    duration: float | None = None


class StalledFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="stalled"
):
    """The programs on the GPU wait for ever: it is busy all the time, moves no memory and uses little power."""

    at: float
    gpu: int
    duration: float | None = None


class NvlinkDownFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="nvlink_down"
):
    """A link goes down; its traffic moves to the others."""

    at: float
    gpu: int
    link: int
    duration: float | None = None


class NvlinkErrorsFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="nvlink_errors"
):
    """A link counts errors and recovers."""

    at: float
    gpu: int
    link: int
    count: int = 1


class NvlinkRecoveryFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="nvlink_recovery"
):
    """A link goes into recovery; from Blackwell on the driver counts how that ends, before, only that it happens."""

    at: float
    gpu: int
    link: int
    count: int = 1
    failed: bool = False


class FabricFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="fabric"
):
    """The GPU has not joined the NVLink fabric, or the fabric is not as it should be; Hopper and later."""

    at: float
    gpu: int
    state: Literal["not_started", "in_progress", "completed"] = "completed"
    status: int = 0  # NVML return code of joining it
    fault: Literal["degraded_bandwidth", "route_unhealthy", "incorrect_configuration"] | None = None
    duration: float | None = None


class LostFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="lost"):
    """The GPU falls off the bus; if it comes back, it was reset and its counters begin anew."""

    at: float
    gpu: int
    duration: float | None = None
    xid: int | None = 79
    code: int = 15  # GPU_IS_LOST; 16: RESET_REQUIRED


class HangFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="hang"):
    """Calls do not return until it is over."""

    at: float
    gpu: int
    duration: float | None = None
    function: str | None = None  # None: every call for this GPU


class CrashFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="crash"):
    """The library aborts the process that calls."""

    at: float
    gpu: int
    function: str
    duration: float = 1.0


class SlowFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="slow"):
    """Calls take their time."""

    at: float
    gpu: int
    function: str
    milliseconds: float
    duration: float | None = None


class ReturnCodeFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="return_code"
):
    """A function, or one field of nvmlDeviceGetFieldValues, answers with an error."""

    at: float
    code: int
    function: str | None = None
    field: int | None = None
    gpu: int | None = None  # None: all
    duration: float | None = None


class AnswerFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="answer"
):
    """A function, or a field of nvmlDeviceGetFieldValues, gives another number: a narrow link, a rising counter.

    Only what the GPU answers otherwise is replaced.
    """

    at: float
    gpu: int
    value: float
    function: str | None = None
    field: int | None = None
    place: int | None = None  # member of a structure, argument of a function, scope of a field; None: all there are
    per_second: float = 0.0  # what the value rises by
    duration: float | None = None


class DriverEventFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="driver_event"
):
    """The driver reports something that is no XID."""

    at: float
    gpu: int
    event: Literal["ecc_single_bit_storm", "dram_retirement_failure", "non_fatal_poison", "fatal_poison"]


class RecoveryActionFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="recovery_action"
):
    """The driver asks for a recovery action (field 230)."""

    at: float
    gpu: int
    action: int
    duration: float | None = None


class DriverReloadFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="driver_reload"
):
    """The driver is unloaded and loaded again; counters begin anew and old handles are dead."""

    at: float
    duration: float = 5.0
    version: str | None = None
    code: int = 9  # what nvmlInit answers meanwhile


class MigChangeFault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="mig_change"
):
    """A GPU is cut anew; no profiles: MIG off."""

    at: float
    gpu: int
    layout: tuple[str, ...]


Fault = (
    XidFault
    | EccFault
    | ThermalFault
    | PowerBrakeFault
    | ClocksLowFault
    | StalledFault
    | NvlinkDownFault
    | NvlinkErrorsFault
    | NvlinkRecoveryFault
    | FabricFault
    | LostFault
    | HangFault
    | CrashFault
    | SlowFault
    | ReturnCodeFault
    | AnswerFault
    | DriverEventFault
    | RecoveryActionFault
    | DriverReloadFault
    | MigChangeFault
)


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that happens."""

    pods: tuple[PodPlan, ...] | None = None  # None: the default pods of the profile
    faults: tuple[Fault, ...] = ()


class ScenarioError(ValueError):
    """The scenario cannot be played; the text says where it is wrong."""


def decode_scenario(text: str | bytes, where: str = "scenario") -> Scenario:
    """Reads a scenario from YAML."""
    try:
        return msgspec.convert(read_values(text, where), type=Scenario)
    except ConfigError as error:
        raise ScenarioError(str(error)) from error
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{where}: {error}") from error


def load_scenario(path: Path) -> Scenario:
    """Reads a scenario file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ScenarioError(f"cannot read the scenario file {path}: {error.strerror}") from error
    return decode_scenario(text, str(path))


def parse_device(text: str) -> tuple[int, int | None, int | None]:
    """A device of a plan: (GPU, place of the MIG device, replica)."""
    body, separator, replica_text = text.partition("::")
    kind, _, rest = body.partition(":")
    gpu_text, slash, place_text = rest.partition("/")
    try:
        gpu = int(gpu_text)
        place = int(place_text) if slash else None
        replica = int(replica_text) if separator else None
    except ValueError:
        gpu, place, replica = -1, None, None
    if gpu < 0 or kind not in {"gpu", "mig"} or (kind == "mig") != (place is not None):
        raise ScenarioError(f'{text!r} is no device; write "gpu:0", "mig:0/1" or "gpu:0::1"')
    return gpu, place, replica


def without_version(function: str) -> str:
    """All versions of a function answer and fail as one: nvmlDeviceGetMemoryInfo_v2 as nvmlDeviceGetMemoryInfo."""
    return _VERSION.sub("", function) if function not in _OWN_VERSIONS else function


def check_scenario(scenario: Scenario, profile: Profile, functions: tuple[str, ...]) -> None:
    """Raises ScenarioError where a plan names what the profile does not have."""
    for pod in scenario.pods or ():
        where = f"pod {pod.namespace}/{pod.name}"
        if pod.workload not in WORKLOADS:
            raise ScenarioError(f"{where}: no workload {pod.workload!r}; there are: {', '.join(WORKLOADS)}")
        if pod.period is not None and (pod.duration is None or not 0 < pod.duration <= pod.period):
            raise ScenarioError(f"{where}: a pod with a period needs a duration of at most that period")
        names = [device for claim in pod.claims for device in claim.devices]
        names += [device for devices in pod.plugin.values() for device in devices]
        for name in names:
            if parse_device(name)[0] >= profile.gpu_count:
                raise ScenarioError(f"{where}: {name!r}: {profile.name} has {profile.gpu_count} GPUs, counted from 0")
    for fault in scenario.faults:
        where = f"fault {type(fault).__struct_config__.tag} at {fault.at} s"
        gpu: Any = getattr(fault, "gpu", None)
        if gpu is not None and not 0 <= gpu < profile.gpu_count:
            raise ScenarioError(f"{where}: no GPU {gpu}; {profile.name} has {profile.gpu_count}, counted from 0")
        link: Any = getattr(fault, "link", None)
        if link is not None and not 0 <= link < profile.nvlink_links:
            raise ScenarioError(f"{where}: no NVLink {link}; {profile.name} has {profile.nvlink_links} per GPU")
        function: Any = getattr(fault, "function", None)
        if function is not None and without_version(function) not in functions:
            raise ScenarioError(f"{where}: no simulated function {function!r}")
        if isinstance(fault, ReturnCodeFault | AnswerFault) and (fault.function is None) == (fault.field is None):
            raise ScenarioError(f"{where}: give either function or field")
        if isinstance(fault, ClocksLowFault) and not 0 < fault.ratio <= 1:
            raise ScenarioError(f"{where}: found ratio {fault.ratio:g}, expected more than 0 and at most 1")
        if isinstance(fault, FabricFault) and not (profile.nvlink_links and profile.architecture_code >= 9):
            raise ScenarioError(f"{where}: the GPUs of {profile.name} have no NVLink fabric")
        if isinstance(fault, MigChangeFault):
            try:
                profile.places(fault.layout)
            except ValueError as error:
                raise ScenarioError(f"{where}: {error}") from error
