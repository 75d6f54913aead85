"""What the node remembers of devices that NVML does not show at the moment."""

from claimscope.model import Device, Entity, Inventory
from claimscope.node import with_known


def device(uuid: str, gpu: int, parent: str | None = None) -> Device:
    return Device(entity=Entity(uuid=uuid, gpu=gpu, parent=parent), minor=gpu, pci_bus_id=None, model=None)


def inventory(*devices: Device, **other: object) -> Inventory:
    known = {"session": 1, "epoch": 0, "driver_version": None, "nvml_version": None, "cuda_version": None}
    return Inventory(**{**known, "devices": devices, **other})  # type: ignore[arg-type]


BOTH = inventory(device("GPU-0", 0), device("GPU-1", 1), device("MIG-1", 1, "GPU-1"))


def uuids(shown: Inventory) -> list[str]:
    return [each.entity.uuid for each in shown.devices]


def test_a_lost_gpu_keeps_its_identity_and_its_mig_devices() -> None:
    left = inventory(device("GPU-0", 0), lost={"GPU-1": "GPU is lost"})
    assert uuids(with_known(left, BOTH)) == ["GPU-0", "GPU-1", "MIG-1"]


def test_a_device_that_was_taken_away_is_forgotten() -> None:
    assert uuids(with_known(inventory(device("GPU-0", 0)), BOTH)) == ["GPU-0"]


def test_while_nvml_is_out_of_reach_everything_is_remembered() -> None:
    assert uuids(with_known(inventory(error="driver not loaded"), BOTH)) == ["GPU-0", "GPU-1", "MIG-1"]
    assert uuids(with_known(inventory(released=True), BOTH)) == ["GPU-0", "GPU-1", "MIG-1"]


def test_nothing_is_remembered_at_the_start() -> None:
    assert uuids(with_known(inventory(error="no library"), None)) == []
