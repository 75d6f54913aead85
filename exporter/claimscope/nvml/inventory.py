"""What does NVML show on this node: which GPUs, which MIG devices, and who are they?

An error on one GPU costs that GPU only. Before each driver call the caller's `mark` hears which GPU index is about to
be asked, so that a watcher in another process can name the device of a call that never comes back.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pynvml

from claimscope.model import Device, Entity, MigInstance
from claimscope.nvml.library import (
    DRIVER_GONE,
    FUNCTION_NOT_FOUND,
    GONE_WORDS,
    GPU_GONE,
    INVALID_ARGUMENT,
    NO_PERMISSION,
    NOT_FOUND,
    NOT_SUPPORTED,
    Handle,
    LibraryError,
    error_name,
    explain,
)
from claimscope.nvml.wire import is_unnamed

Mark = Callable[[int, str], None]

NO_MIG = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND})  # answers of a GPU or driver that has no MIG
# A slot without a MIG device, or one whose device this container must not see: both are lasting answers.
EMPTY_SLOT = frozenset({NOT_FOUND, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION})

MAX_LINKS = 36  # NVML_NVLINK_MAX_LINKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One entity with the handle to ask it by; `pointer` is the handle as an integer."""

    device: Device
    pointer: int
    parent_pointer: int  # of the GPU; the same as `pointer` on a GPU
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enumeration:
    """Result of one walk over all GPUs."""

    found: tuple[Found, ...]
    lost: Mapping[str, str]  # uuid -> why
    unnamed: Mapping[int, str] = field(default_factory=dict)  # index of a GPU that never said its uuid -> why
    unsure: frozenset[str] = frozenset()  # GPUs that did not say which MIG devices they have


def pointer_of(handle: Handle) -> int:
    """The address behind a pynvml handle."""
    return int(ctypes.cast(handle, ctypes.c_void_p).value or 0)


def text_of(value: str | bytes) -> str:
    """pynvml answers some strings as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def short_bus_id(bus_id: str) -> str:
    """NVML's "00000000:18:00.0" as Linux spells it: "0000:18:00.0"."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:].rjust(4, '0')}:{rest}"


_ARCHITECTURES = {
    2: "kepler", 3: "maxwell", 4: "pascal", 5: "volta", 6: "turing", 7: "ampere", 8: "ada", 9: "hopper",
    10: "blackwell",
}  # nvml.h, nvmlDeviceArchitecture_t

_IDENTITY: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("serial", "nvmlDeviceGetSerial", ()),
    ("board_part_number", "nvmlDeviceGetBoardPartNumber", ()),
    ("vbios_version", "nvmlDeviceGetVbiosVersion", ()),
    ("inforom_version", "nvmlDeviceGetInforomImageVersion", ()),
    ("gsp_firmware_version", "nvmlDeviceGetGspFirmwareVersion", ()),
)


def _identity(handle: Handle) -> dict[str, str]:
    identity: dict[str, str] = {}
    for label, name, arguments in _IDENTITY:
        with contextlib.suppress(pynvml.NVMLError):
            value = text_of(getattr(pynvml, name)(handle, *arguments))
            if value:
                identity[label] = value
    with contextlib.suppress(pynvml.NVMLError):
        number = int(pynvml.nvmlDeviceGetArchitecture(handle))
        identity["architecture"] = _ARCHITECTURES.get(number, str(number))
    with contextlib.suppress(pynvml.NVMLError):
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        identity["compute_capability"] = f"{major}.{minor}"
    return identity


def _axes(handle: Handle) -> dict[str, tuple[int, ...]]:
    """The links and fans there are. NVLink getters say INVALID_ARGUMENT past the last link."""
    axes: dict[str, tuple[int, ...]] = {}
    links: list[int] = []
    for link in range(MAX_LINKS):
        try:
            pynvml.nvmlDeviceGetNvLinkState(handle, link)
        except pynvml.NVMLError:
            break
        links.append(link)
    axes["link"] = tuple(links)
    try:
        axes["fan"] = tuple(range(int(pynvml.nvmlDeviceGetNumFans(handle))))
    except pynvml.NVMLError:
        axes["fan"] = ()
    return axes


def nvlink_peers(handle: Handle, links: Iterable[int]) -> dict[int, str]:
    """PCI bus ids of the GPUs behind the links that lead to one, and not to a switch."""
    peers: dict[int, str] = {}
    for link in links:
        with contextlib.suppress(pynvml.NVMLError):
            if pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == pynvml.NVML_NVLINK_DEVICE_TYPE_GPU:
                peers[link] = short_bus_id(text_of(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId))
    return peers


def mig_profile(compute_slices: int, gpu_slices: int, memory_mib: int) -> str:
    """The profile as nvidia-smi writes it: "3g.40gb", "1c.3g.40gb"."""
    size = f"{gpu_slices}g.{(memory_mib + 1023) // 1024}gb"
    return size if compute_slices == gpu_slices else f"{compute_slices}c.{size}"


_PROFILE_IN_NAME = " MIG "  # "NVIDIA A100-SXM4-40GB MIG 3g.20gb"


def _mig_device(parent: Entity, parent_handle: Handle, handle: Handle, total_slices: int) -> Device:
    uuid = text_of(pynvml.nvmlDeviceGetUUID(handle))
    instance = int(pynvml.nvmlDeviceGetGpuInstanceId(handle))
    compute = int(pynvml.nvmlDeviceGetComputeInstanceId(handle))
    attributes = pynvml.nvmlDeviceGetAttributes_v2(handle)
    model: str | None = None
    with contextlib.suppress(pynvml.NVMLError):
        model = text_of(pynvml.nvmlDeviceGetName(handle))
    if model is not None and _PROFILE_IN_NAME in model:
        model, _, profile = model.partition(_PROFILE_IN_NAME)  # the driver's own word is right, also for "+me"
    else:
        profile = mig_profile(
            int(attributes.computeInstanceSliceCount), int(attributes.gpuInstanceSliceCount),
            int(attributes.memorySizeMB),
        )
    profile_id: int | None = None
    start: int | None = None
    with contextlib.suppress(pynvml.NVMLError):  # needs the right to administer MIG, or root outside a container
        info = pynvml.nvmlGpuInstanceGetInfo(pynvml.nvmlDeviceGetGpuInstanceById(parent_handle, instance))
        profile_id, start = int(info.profileId), int(info.placement.start)
    return Device(
        entity=Entity(
            uuid=uuid, parent=parent.uuid, gpu=parent.gpu, slices=int(attributes.computeInstanceSliceCount),
            total_slices=total_slices,
        ),
        minor=None,
        pci_bus_id=None,
        model=model,
        mig=MigInstance(
            gpu_instance_id=instance, compute_instance_id=compute, profile=profile, profile_id=profile_id,
            placement_start=start,
        ),
    )


def _mig_devices(parent: Entity, handle: Handle) -> tuple[list[tuple[Device, Handle]], bool]:
    """The MIG devices, and whether these are all for sure."""
    try:
        count = int(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    except pynvml.NVMLError as error:
        return [], error.value in NO_MIG
    sure = True
    made: list[tuple[Device, Handle]] = []
    for index in range(count):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            made.append((_mig_device(parent, handle, mig, count), mig))
        except pynvml.NVMLError as error:
            if error.value in DRIVER_GONE:
                raise
            sure = sure and error.value in EMPTY_SLOT  # a device that cannot say who it is cannot be measured
    return made, sure


def read_gpu(
    index: int, handle: Handle, uuid: str, mig_before: bool | None = None, *, peers: bool = False
) -> tuple[list[Found], bool]:
    """One GPU and the MIG devices on it, and whether these are all for sure; raises NVMLError only where the driver
    or the GPU is gone. `mig_before` stands where the driver does not say now whether MIG is on, and `peers` asks each
    NVLink where it leads."""
    pci: str | None = None
    minor: int | None = None
    model: str | None = None
    mig = False
    sure = True
    pci = short_bus_id(text_of(pynvml.nvmlDeviceGetPciInfo_v3(handle).busId))
    with contextlib.suppress(pynvml.NVMLError):
        minor = int(pynvml.nvmlDeviceGetMinorNumber(handle))
    with contextlib.suppress(pynvml.NVMLError):
        model = text_of(pynvml.nvmlDeviceGetName(handle))
    entity = Entity(uuid=uuid, gpu=index)
    children: list[tuple[Device, Handle]] = []
    try:
        mig = bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
        if mig:
            children, sure = _mig_devices(entity, handle)
    except pynvml.NVMLError as error:
        if error.value in DRIVER_GONE or error.value in GPU_GONE:
            raise
        if error.value not in NO_MIG:
            sure = False
            if mig_before is not False:
                children, _ = _mig_devices(entity, handle)
            mig = bool(mig_before) or bool(children)
    address = pointer_of(handle)
    axes = _axes(handle)
    found = [
        Found(
            device=Device(
                entity=entity, minor=minor, pci_bus_id=pci, model=model, mig_enabled=mig, identity=_identity(handle),
                nvlink_peers=nvlink_peers(handle, axes["link"]) if peers else {},
            ),
            pointer=address,
            parent_pointer=address,
            axes=axes,
        )
    ]
    found += [
        Found(device=device, pointer=pointer_of(child), parent_pointer=address) for device, child in children
    ]
    return found, sure


def gone(code: int) -> str:
    """Why a GPU is not answering."""
    return GONE_WORDS.get(code) or f"the driver cannot identify the GPU: {error_name(code)}; see the kernel log"


def enumerate_gpus(
    mark: Mark, quarantine: Mapping[str, int], known: Mapping[str, int], path: str,
    mig_before: Mapping[str, bool] | None = None, *, peers: bool = False,
) -> Enumeration:
    """Walks over all GPUs. `quarantine` is uuid -> NVML index of GPUs that must not be called at all. `known` is the
    same of all GPUs seen before, the newest last: a GPU that cannot say its uuid any more is still named, and one
    that the driver does not list any more is lost."""
    mark(-1, "nvmlDeviceGetCount_v2")
    try:
        count = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        raise LibraryError(int(error.value), explain(int(error.value), path)) from error
    found: list[Found] = []
    lost: dict[str, str] = {}
    failed: dict[int, str] = {}
    unsure: set[str] = set()
    skipped = {index: uuid for uuid, index in quarantine.items()}
    for uuid, index in quarantine.items():
        reason = "quarantined: a driver call on it did not come back; it is tried again later"
        if is_unnamed(uuid):
            failed[index] = reason
        else:
            lost[uuid] = reason
    for index in range(count):
        if index in skipped:
            continue
        uuid = ""
        mark(index, "enumerate")
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = text_of(pynvml.nvmlDeviceGetUUID(handle))
            if uuid in quarantine:
                continue
            made, sure = read_gpu(index, handle, uuid, (mig_before or {}).get(uuid), peers=peers)
            found += made
            if not sure:
                unsure.add(uuid)
        except pynvml.NVMLError as error:
            if error.value in DRIVER_GONE:
                raise LibraryError(int(error.value), explain(int(error.value), path)) from error
            if uuid:
                lost[uuid] = gone(int(error.value))
            else:
                failed[index] = gone(int(error.value))
    if count == 0:
        raise LibraryError(6, explain(6, path))
    seen = {one.device.entity.uuid for one in found}
    absent = {uuid: index for uuid, index in known.items() if uuid not in seen and uuid not in lost}
    for uuid, index in reversed(absent.items()):
        lost[uuid] = failed.pop(index, GONE_WORDS[NOT_FOUND])
    return Enumeration(found=tuple(found), lost=lost, unnamed=failed, unsure=frozenset(unsure))


def find_gpu(uuid: str, path: str) -> tuple[int, Handle] | None:
    """(NVML index, handle) of a GPU that was lost, once it answers again; None while it does not.

    Raises LibraryError where the driver itself is gone.
    """
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        if text_of(pynvml.nvmlDeviceGetUUID(handle)) != uuid:
            return None
        pynvml.nvmlDeviceGetPciInfo_v3(handle)
        pynvml.nvmlDeviceGetMemoryInfo(handle)
        return int(pynvml.nvmlDeviceGetIndex(handle)), handle
    except pynvml.NVMLError as error:
        if error.value in DRIVER_GONE:
            raise LibraryError(int(error.value), explain(int(error.value), path)) from error
        return None


def mig_uuids(handle: Handle) -> tuple[str, ...] | None:
    """The uuids of the MIG devices on a GPU now; None where the driver does not say, which may be a passing error."""
    found: list[str] = []
    try:
        if not pynvml.nvmlDeviceGetMigMode(handle)[0]:
            return ()
        count = int(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    except pynvml.NVMLError as error:
        return () if error.value in NO_MIG else None
    for index in range(count):
        try:
            child = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            found.append(text_of(pynvml.nvmlDeviceGetUUID(child)))
        except pynvml.NVMLError as error:
            if error.value not in EMPTY_SLOT:
                return None
    return tuple(found)
