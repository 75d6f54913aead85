"""What is there on the simulated node at one moment, and what is reported? The words of the simulation."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

from claimscope.sim.profiles import MigPlace

DRIVER: Final = "gpu.nvidia.com"
WHOLE: Final = -1  # in place of a MIG place: the whole GPU
NAMESPACE: Final = uuid.UUID("0c8b4e44-4f5a-5b0c-9a3d-3f0f3d6f7a11")  # of made-up uuids

EVENT_DOUBLE_BIT = 0x2
EVENT_XID = 0x8
EVENT_MIG_CHANGE = 0x100
DRIVER_EVENTS = {
    "ecc_single_bit_storm": 0x200, "dram_retirement_failure": 0x800, "non_fatal_poison": 0x1000, "fatal_poison": 0x2000,
}  # fmt: skip
EVENT_GPU_UNAVAILABLE = 0x4000
EVENT_RECOVERY_ACTION = 0x8000
ATTRIBUTABLE_TO_NOBODY = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class SimClaim:
    """A ResourceClaim as a container holds it, in the words of the kubelet's pod-resources API."""

    namespace: str
    name: str
    uid: str
    driver: str
    pool: str
    devices: tuple[str, ...]  # DRA device names: "gpu-0", "gpu-0-mig-1g5gb-19-0"
    share_ids: tuple[str, ...] = ()  # one per device, or empty where devices are not shared by capacity
    admin_access: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SimContainer:
    """A container with what the device plugin and DRA gave it."""

    name: str
    devices: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (resource name, device ids)
    claims: tuple[SimClaim, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPod:
    """A pod that is active on the node."""

    namespace: str
    name: str
    containers: tuple[SimContainer, ...]
    workload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SimEvent:
    """Something the driver reports at a moment."""

    at: float
    gpu: int
    type: int
    data: int
    gpu_instance: int = ATTRIBUTABLE_TO_NOBODY
    compute_instance: int = ATTRIBUTABLE_TO_NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class SimProcess:
    """A process on a device."""

    pid: int
    gpu_instance: int
    compute_instance: int
    memory_bytes: int
    sm_percent: int
    memory_percent: int
    encoder_percent: int = 0
    decoder_percent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityState:
    """One GPU or MIG device at a moment; `variables` in the order of layout.VARIABLES."""

    gpu: int
    place: int  # WHOLE, or the place of the MIG device
    mig: MigPlace | None = None
    uuid: str
    variables: tuple[float, ...]
    processes: tuple[SimProcess, ...] = ()
    lost: int = 0  # return code of every call; 0: it answers
    hanging: bool = False
    facts: tuple[Any, ...] = ()  # what the constant answers follow from; equal facts, equal answers


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldState:
    """The node at a moment."""

    t_seconds: float
    init_return: int
    driver_version: str
    driver_generation: int
    entities: tuple[EntityState, ...]
