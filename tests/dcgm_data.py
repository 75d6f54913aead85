"""Nodes made by hand for the tests of dcgm-exporter's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claimscope.export.dcgm.collect import DcgmCollector
from claimscope.export.text import Renderer
from claimscope.metrics.spec import Kind
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Device, Entity, Hold, Holder, Inventory, MigInstance, PodRef, Snapshot, Window

GPU_0 = "GPU-00000000-0000-0000-0000-000000000000"
GPU_1 = "GPU-11111111-1111-1111-1111-111111111111"
WALL = 1_700_000_000_000_000_000


def device(uuid: str = GPU_0, index: int = 0, **more: Any) -> Device:
    facts: dict[str, Any] = {
        "minor": index, "pci_bus_id": f"0000:{index + 0x18:02x}:00.0", "model": "NVIDIA H100 80GB HBM3", **more,
    }  # fmt: skip
    return Device(entity=Entity(uuid=uuid, gpu=index), **facts)


def mig(uuid: str, profile: str, instance: int, compute: int = 0, parent: str = GPU_0, index: int = 0) -> Device:
    return Device(
        entity=Entity(uuid=uuid, parent=parent, gpu=index), minor=None, pci_bus_id=None, model="NVIDIA H100 80GB HBM3",
        mig=MigInstance(gpu_instance_id=instance, compute_instance_id=compute, profile=profile),
    )  # fmt: skip


def claim(name: str, entity: str, *pods: str, namespace: str = "team-a", device: str = "gpu-0") -> Hold:
    return Hold(
        holder=Holder(source="claim", namespace=namespace, name=name, uid=f"uid-of-{name}"), entity=entity,
        driver="gpu.nvidia.com", pool="n1", device=device,
        pods=tuple(PodRef(namespace=namespace, pod=pod, container="main") for pod in pods),
    )  # fmt: skip


def window(
    entity: str, last: Mapping[str, float] | None = None, *, raw: Mapping[str, float] | None = None,
    text: Mapping[str, str] | None = None, end: float = 1.0, epoch: int = 1,
) -> Window:  # fmt: skip
    return Window(
        entity=entity, session=1, epoch=epoch, start_ns=round((end - 1) * 1e9), end_ns=round(end * 1e9),
        end_wall_ns=WALL, ticks=10, last=last or {}, raw=raw or {}, text=text or {},
    )  # fmt: skip


def snapshot(
    *devices: Device, windows: tuple[Window, ...] = (), holds: tuple[Hold, ...] = (), driver: str | None = "580.95.05",
    **more: Any,
) -> Snapshot:  # fmt: skip
    facts: dict[str, Any] = {"node": "n1", "up": {one.entity.uuid: True for one in devices}, **more}
    return Snapshot(
        wall_ns=WALL, monotonic_ns=10_000_000_000, windows={one.entity: one for one in windows}, holds=holds,
        inventory=Inventory(
            session=1, epoch=1, driver_version=driver, nvml_version="13", cuda_version="13.0", devices=devices
        ), **facts,
    )  # fmt: skip


def full(uuid: str) -> Window:
    """A window with a number for every quantity that has no axis, as a GPU that supports everything."""
    plain = [quantity for quantity in QUANTITIES if quantity.axis is None]
    return window(
        uuid, {quantity.key: 0.5 for quantity in plain if quantity.kind is Kind.GAUGE},
        raw={quantity.key: 7.0 for quantity in plain if quantity.kind is Kind.COUNTER},
    )  # fmt: skip


FULL_RATES = {
    "pcie_transmit_bytes": 3e9, "pcie_receive_bytes": 2e9, "nvlink_transmit_bytes": 1e9, "nvlink_receive_bytes": 4e9,
}  # fmt: skip


def page(of: Snapshot, *, openmetrics: bool = False, **settings: Any) -> list[str]:
    """The exposition, line by line."""
    collector = DcgmCollector(QUANTITIES, **settings)
    return Renderer(collector.families).render(collector.collect(of), openmetrics).decode().splitlines()


def lines(of: Snapshot, family: str, **settings: Any) -> list[str]:
    """The sample lines of one family."""
    return [line for line in page(of, **settings) if line.startswith(family + "{")]
