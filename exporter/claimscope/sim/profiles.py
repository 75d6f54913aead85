"""Which machines can be simulated? Identities and limits of real boards, as their drivers report them.

Memory, power and clock figures are those nvidia-smi shows on such boards; MIG profiles follow NVIDIA's MIG user
guide. UUIDs and serial numbers are made up, and the same in every run; so are the part number, VBIOS and temperatures
of a100x4-bridge, of which no board was at hand.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MEBIBYTE = 1 << 20
_NAMESPACE = uuid.UUID("5f2f4f0e-9d53-5a4e-8d3c-0c1a15c09e00")


@dataclass(frozen=True, slots=True, kw_only=True)
class MigProfile:
    """One kind of GPU instance."""

    name: str
    index: int  # NVML_GPU_INSTANCE_PROFILE_*
    profile_id: int  # what nvidia-smi mig -lgip calls ID
    slices: int  # compute slices
    size: int  # memory slices
    multiprocessors: int
    memory_mebibytes: int
    copy_engines: int = 1
    decoders: int = 0
    starts: tuple[int, ...] = ()
    first_instance_id: int = 0  # the driver numbers instances of a size from here


@dataclass(frozen=True, slots=True, kw_only=True)
class MigPlace:
    """One MIG device of a layout."""

    profile: MigProfile
    gpu_instance_id: int
    compute_instance_id: int
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A node with GPUs of one model."""

    name: str
    model: str
    architecture: str
    architecture_code: int  # NVML_DEVICE_ARCH_*
    compute_capability: tuple[int, int]
    driver_version: str
    cuda_version: int
    bus_ids: tuple[int, ...]  # PCI bus numbers; one per GPU
    device_id: int
    subsystem_id: int
    part_number: str
    vbios_version: str
    inforom_image_version: str
    multiprocessors: int
    memory_mebibytes: int
    reserved_mebibytes: int
    bar1_mebibytes: int
    memory_bus_width: int
    idle_watts: float
    power_limit_watts: int
    power_minimum_watts: int
    clock_maximum: tuple[int, int, int, int]  # graphics, SM, memory, video in MHz
    clock_idle: tuple[int, int, int, int]
    pcie_generation: int
    temperature_idle: float
    temperature_full: float  # at the power limit
    temperature_shutdown: int
    temperature_slowdown: int
    temperature_gpu_maximum: int
    temperature_memory_maximum: int
    has_memory_temperature: bool = True
    has_gpm: bool = False
    has_average_power: bool = True
    nvlink_links: int = 0
    nvlink_version: int = 0  # NVML_NVLINK_VERSION_*
    nvlink_megabytes_per_second: int = 0  # per link and direction
    nvlink_bridged: bool = False  # all links lead to the next GPU of a pair, 0-1 and 2-3; else to NVSwitches
    decoders: int = 1
    mig_maximum: int = 0  # MIG devices per GPU; 0: no MIG
    mig_profiles: tuple[MigProfile, ...] = ()
    mig_layout: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # GPU -> names of MIG profiles
    identity: str = ""  # tells the GPUs of two nodes of one profile apart

    @property
    def gpu_count(self) -> int:
        """GPUs of the node."""
        return len(self.bus_ids)

    @property
    def branch(self) -> int:
        """Driver branch: 580 for 580.95.05."""
        return int(self.driver_version.split(".", 1)[0])

    def bridged_to(self, gpu: int) -> int | None:
        """The other GPU of its NVLink bridge."""
        return gpu ^ 1 if self.nvlink_bridged else None

    def gpu_uuid(self, gpu: int) -> str:
        """The UUID of a GPU."""
        return f"GPU-{uuid.uuid5(_NAMESPACE, f'{self.identity or self.name}/{gpu}')}"

    def mig_uuid(self, gpu: int, layout: int, place: MigPlace) -> str:
        """The UUID of a MIG device; another layout brings other devices."""
        key = f"{self.identity or self.name}/{gpu}/{layout}/{place.gpu_instance_id}/{place.compute_instance_id}"
        return f"MIG-{uuid.uuid5(_NAMESPACE, key)}"

    def places(self, names: tuple[str, ...]) -> tuple[MigPlace, ...]:
        """Puts MIG devices on a GPU, first fit. Raises ValueError where they do not fit."""
        by_name = {profile.name: profile for profile in self.mig_profiles}
        taken: set[int] = set()
        instances: dict[str, int] = {}
        places: list[MigPlace] = []
        for name in names:
            if name not in by_name:
                known = ", ".join(sorted(by_name)) or "none"
                raise ValueError(f"{self.model} has no MIG profile {name!r} (it has: {known})")
            profile = by_name[name]
            free = (s for s in profile.starts if taken.isdisjoint(range(s, s + profile.size)))
            start = next(free, None)
            if start is None:
                raise ValueError(f"MIG profiles {', '.join(names)} do not fit on one {self.model}")
            taken.update(range(start, start + profile.size))
            count = instances.get(name, 0)
            instances[name] = count + 1
            places.append(
                MigPlace(
                    profile=profile,
                    gpu_instance_id=profile.first_instance_id + count,
                    compute_instance_id=0,
                    start=start,
                )
            )
        return tuple(places)


def _mig(memory: int, multiprocessors: int, usable: tuple[int, ...]) -> tuple[MigProfile, ...]:
    """The seven-slice family: memory in GB per memory slice, multiprocessors per compute slice."""
    rows = (
        # slices, size, index, profile id, first instance id, starts, decoders
        (1, 1, 0, 19, 7, (0, 1, 2, 3, 4, 5, 6), 0),
        (2, 2, 1, 14, 3, (0, 2, 4), 1),
        (3, 4, 2, 9, 1, (0, 4), 2),
        (4, 4, 3, 5, 1, (0,), 2),
        (7, 8, 4, 0, 0, (0,), 5),
    )
    return tuple(
        MigProfile(
            name=f"{slices}g.{memory * size}gb",
            index=index,
            profile_id=profile_id,
            slices=slices,
            size=size,
            multiprocessors=slices * multiprocessors,
            memory_mebibytes=usable[place],
            copy_engines=slices,
            decoders=decoders,
            starts=starts,
            first_instance_id=first,
        )
        for place, (slices, size, index, profile_id, first, starts, decoders) in enumerate(rows)
    )


_H100X8 = Profile(
    name="h100x8",
    model="NVIDIA H100 80GB HBM3",
    architecture="Hopper",
    architecture_code=9,
    compute_capability=(9, 0),
    driver_version="580.95.05",
    cuda_version=13000,
    bus_ids=(0x18, 0x2A, 0x3A, 0x5D, 0x9A, 0xAB, 0xBA, 0xDB),
    device_id=0x233010DE,
    subsystem_id=0x16C110DE,
    part_number="692-2G520-0200-000",
    vbios_version="96.00.A5.00.01",
    inforom_image_version="G520.0200.00.05",
    multiprocessors=132,
    memory_mebibytes=81559,
    reserved_mebibytes=551,
    bar1_mebibytes=131072,
    memory_bus_width=5120,
    idle_watts=70.0,
    power_limit_watts=700,
    power_minimum_watts=200,
    clock_maximum=(1980, 1980, 2619, 1545),
    clock_idle=(345, 345, 2619, 765),
    pcie_generation=5,
    temperature_idle=28.0,
    temperature_full=72.0,
    temperature_shutdown=92,
    temperature_slowdown=89,
    temperature_gpu_maximum=87,
    temperature_memory_maximum=95,
    has_gpm=True,
    nvlink_links=18,
    nvlink_version=6,
    nvlink_megabytes_per_second=26562,
    decoders=7,
    mig_maximum=7,
    mig_profiles=_mig(10, 16, (9984, 20096, 40448, 40448, 81152)),
)

_A100X8_MIG = Profile(
    name="a100x8-mig",
    model="NVIDIA A100-SXM4-40GB",
    architecture="Ampere",
    architecture_code=7,
    compute_capability=(8, 0),
    driver_version="550.163.01",
    cuda_version=12040,
    bus_ids=(0x07, 0x0F, 0x47, 0x4E, 0x87, 0x90, 0xB7, 0xBD),
    device_id=0x20B010DE,
    subsystem_id=0x134F10DE,
    part_number="692-2G506-0200-002",
    vbios_version="92.00.45.00.03",
    inforom_image_version="G506.0200.00.04",
    multiprocessors=108,
    memory_mebibytes=40960,
    reserved_mebibytes=570,
    bar1_mebibytes=65536,
    memory_bus_width=5120,
    idle_watts=52.0,
    power_limit_watts=400,
    power_minimum_watts=100,
    clock_maximum=(1410, 1410, 1215, 1290),
    clock_idle=(210, 210, 1215, 585),
    pcie_generation=4,
    temperature_idle=27.0,
    temperature_full=67.0,
    temperature_shutdown=92,
    temperature_slowdown=89,
    temperature_gpu_maximum=85,
    temperature_memory_maximum=95,
    has_average_power=False,
    nvlink_links=12,
    nvlink_version=4,
    nvlink_megabytes_per_second=25781,
    decoders=5,
    mig_maximum=7,
    mig_profiles=_mig(5, 14, (4864, 9856, 19968, 19968, 40192)),
    mig_layout=MappingProxyType(
        {0: ("3g.20gb", "1g.5gb", "1g.5gb"), 1: ("2g.10gb", "2g.10gb", "1g.5gb", "1g.5gb", "1g.5gb")}
    ),
)

_B200X8 = Profile(
    name="b200x8",
    model="NVIDIA B200",
    architecture="Blackwell",
    architecture_code=10,
    compute_capability=(10, 0),
    driver_version="590.48.01",
    cuda_version=13010,
    bus_ids=(0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF),
    device_id=0x290110DE,
    subsystem_id=0x199910DE,
    part_number="692-2G525-0220-000",
    vbios_version="97.00.88.00.0F",
    inforom_image_version="G525.0220.00.03",
    multiprocessors=148,
    memory_mebibytes=183359,
    reserved_mebibytes=719,
    bar1_mebibytes=262144,
    memory_bus_width=7680,
    idle_watts=140.0,
    power_limit_watts=1000,
    power_minimum_watts=200,
    clock_maximum=(1965, 1965, 3996, 1965),
    clock_idle=(120, 120, 3996, 600),
    pcie_generation=6,
    temperature_idle=30.0,
    temperature_full=70.0,
    temperature_shutdown=92,
    temperature_slowdown=90,
    temperature_gpu_maximum=87,
    temperature_memory_maximum=95,
    has_gpm=True,
    nvlink_links=18,
    nvlink_version=7,
    nvlink_megabytes_per_second=53125,
    decoders=7,
    mig_maximum=7,
    mig_profiles=_mig(23, 20, (22784, 45824, 91648, 91648, 182272)),
)

_L40SX4 = Profile(
    name="l40sx4",
    model="NVIDIA L40S",
    architecture="Ada Lovelace",
    architecture_code=8,
    compute_capability=(8, 9),
    driver_version="570.195.03",
    cuda_version=12080,
    bus_ids=(0x16, 0x38, 0x98, 0xB8),
    device_id=0x26B910DE,
    subsystem_id=0x185110DE,
    part_number="900-2G133-0080-000",
    vbios_version="95.02.66.00.02",
    inforom_image_version="G133.0242.00.03",
    multiprocessors=142,
    memory_mebibytes=46068,
    reserved_mebibytes=609,
    bar1_mebibytes=65536,
    memory_bus_width=384,
    idle_watts=33.0,
    power_limit_watts=350,
    power_minimum_watts=100,
    clock_maximum=(2520, 2520, 9001, 1965),
    clock_idle=(210, 210, 405, 1185),
    pcie_generation=4,
    temperature_idle=30.0,
    temperature_full=74.0,
    temperature_shutdown=94,
    temperature_slowdown=91,
    temperature_gpu_maximum=88,
    temperature_memory_maximum=0,
    has_memory_temperature=False,
    decoders=3,
)

_A100X4_BRIDGE = Profile(
    name="a100x4-bridge",
    model="NVIDIA A100 80GB PCIe",
    architecture="Ampere",
    architecture_code=7,
    compute_capability=(8, 0),
    driver_version="570.195.03",
    cuda_version=12080,
    bus_ids=(0x17, 0x31, 0xB1, 0xCA),
    device_id=0x20B510DE,
    subsystem_id=0x153310DE,
    part_number="900-21001-0020-100",
    vbios_version="92.00.68.00.01",
    inforom_image_version="1001.0230.00.03",
    multiprocessors=108,
    memory_mebibytes=81920,
    reserved_mebibytes=570,
    bar1_mebibytes=131072,
    memory_bus_width=5120,
    idle_watts=44.0,
    power_limit_watts=300,
    power_minimum_watts=150,
    clock_maximum=(1410, 1410, 1512, 1290),
    clock_idle=(210, 210, 1512, 585),
    pcie_generation=4,
    temperature_idle=32.0,
    temperature_full=66.0,
    temperature_shutdown=92,
    temperature_slowdown=89,
    temperature_gpu_maximum=85,
    temperature_memory_maximum=95,
    has_average_power=False,
    nvlink_links=12,
    nvlink_version=4,
    nvlink_megabytes_per_second=25781,
    nvlink_bridged=True,
    decoders=5,
    mig_maximum=7,
    mig_profiles=_mig(10, 14, (9728, 19968, 40192, 40192, 80640)),
)

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {profile.name: profile for profile in (_H100X8, _A100X8_MIG, _B200X8, _L40SX4, _A100X4_BRIDGE)}
)


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises ValueError that lists what there is."""
    if name not in PROFILES:
        raise ValueError(f"no simulated profile {name!r}; there are: {', '.join(PROFILES)}")
    return PROFILES[name]
