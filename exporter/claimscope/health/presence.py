"""Which devices are there, which are lost or back, and which have been replaced by another?

A device is its uuid and its serial number, not its minor number or its place in a list. Where the kernel's list of PCI
devices can be read, it decides about what NVML does not list: what another driver has is not lost, what is not in the
machine any more since a reboot has gone, what the NVIDIA driver has is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from claimscope.health import slot as slots
from claimscope.health.conditions import NOT_LISTED
from claimscope.health.ledger import Ledger
from claimscope.health.pci import NVIDIA_DRIVER
from claimscope.health.slot import Slot
from claimscope.model import Device, Entity, Inventory


class Presence:
    """Follows the inventories."""

    def __init__(self) -> None:
        self.usable = False  # NVML answers, so that what it does not name is not there
        self.bus: Mapping[str, str] | None = None  # address of each GPU -> its driver; None: not known
        self._replaced: set[str] = set()  # GPUs whose slot another has now, though NVML may still name them as lost

    def take(self, ledger: Ledger, inventory: Inventory) -> None:
        """Takes what NVML shows: devices that are lost, came back, were replaced, or are not listed any more."""
        self.usable = inventory.error is None and not inventory.released
        if not self.usable:
            for slot in ledger.slots.values():
                slot.lost = slot.lost_ns = None
            return
        self._close_replaced(ledger, inventory)
        for device in inventory.devices:
            if device.entity.uuid not in self._replaced:
                slot_of(ledger, device).present = True
        for uuid in inventory.lost.keys() - ledger.slots.keys() - self._replaced:
            slot_named(ledger, uuid)  # lost before anybody here saw it
        listed = {device.entity.uuid for device in inventory.devices}
        bus = self._bus_of(inventory)
        for slot in list(ledger.slots.values()):
            _follow(ledger, slot, inventory, listed, bus)

    def _bus_of(self, inventory: Inventory) -> Mapping[str, str] | None:
        """The kernel's list, unless it lacks what NVML has: then it is not of the same machine."""
        bus = self.bus
        there = {
            device.pci_bus_id
            for device in inventory.devices
            if device.pci_bus_id is not None and device.entity.uuid not in inventory.lost
        }
        return bus if bus is not None and there and there <= bus.keys() else None

    def _close_replaced(self, ledger: Ledger, inventory: Inventory) -> None:
        for device in inventory.devices:
            if device.entity.uuid not in inventory.lost:  # what is lost takes nobody's place
                self._replaced.discard(device.entity.uuid)
                self._replaced.update(_close_former(ledger, device))


def _follow(
    ledger: Ledger, slot: Slot, inventory: Inventory, listed: set[str], bus: Mapping[str, str] | None
) -> None:
    """What the inventory means for one device."""
    uuid, parent, lost = slot.uuid, slot.device.entity.parent, inventory.lost
    if uuid in lost and (parent is None or parent in lost):
        _lose(ledger, slot, lost[uuid])
    elif uuid in listed:
        slot.lost = slot.lost_ns = None
    elif parent is not None:
        if uuid not in lost and parent not in lost:
            ledger.close(slot, "the partition is gone")
    elif bus is not None and slot.device.pci_bus_id is not None:
        _follow_bus(ledger, slot, bus.get(slot.device.pci_bus_id))
    elif slot.present:
        _lose(ledger, slot, NOT_LISTED)
    elif not any(track.stands for track in slot.tracks.values()):
        del ledger.slots[uuid]  # of another boot, and nothing stands against it


def _follow_bus(ledger: Ledger, slot: Slot, driver: str | None) -> None:
    """What the kernel says of a GPU that NVML does not list: the driver that has it, None where it is not there."""
    if driver is None and not slot.present:
        ledger.close(slot, "it is not in this machine any more since a reboot")
    elif driver not in (None, "", NVIDIA_DRIVER):
        slot.lost = slot.lost_ns = None
        track = slot.tracks["gpu_missing"]
        if track.stands:
            ledger.finish(slot, ledger.rules["gpu_missing"], track, f"the driver {driver} has it")
    elif slot.present or driver == NVIDIA_DRIVER:
        _lose(ledger, slot, NOT_LISTED)


def _lose(ledger: Ledger, slot: Slot, reason: str) -> None:
    if slot.lost != reason:
        slot.lost, slot.lost_ns = reason, ledger.now_ns
    slot.shown = None


def _close_former(ledger: Ledger, device: Device) -> list[str]:
    """Another board in the slot: what stood against the former one is over. Gives the uuids that left the slot."""
    entity, serial = device.entity, device.identity.get("serial", "")
    known = ledger.slots.get(entity.uuid)
    if known is not None and serial and known.serial and serial != known.serial:
        ledger.close(known, f"replaced: serial {serial} instead of {known.serial}")
    if entity.parent is not None or device.pci_bus_id is None:
        return []
    former = [
        slot
        for slot in ledger.slots.values()
        if slot.uuid != entity.uuid and not slot.is_mig and slot.device.pci_bus_id == device.pci_bus_id
    ]
    for slot in former:
        ledger.close(slot, f"replaced by {entity.uuid}")
    return [slot.uuid for slot in former]


def slot_named(ledger: Ledger, uuid: str) -> Slot | None:
    """What is remembered of a device that something tells of by name; a GPU need not be in the inventory for that."""
    if uuid not in ledger.slots and uuid.startswith("GPU-"):
        return slot_of(ledger, Device(entity=Entity(uuid=uuid, gpu=-1), minor=None, pci_bus_id=None, model=None))
    return ledger.slots.get(uuid)


def slot_of(ledger: Ledger, device: Device) -> Slot:
    """What is remembered of a device, as the inventory describes it now."""
    slot = ledger.slots.get(device.entity.uuid)
    if slot is None:
        slot = ledger.slots[device.entity.uuid] = slots.new_slot(device, ledger.rules.values())
    elif slot.device is not device:
        slot.device = device
        slot.serial = device.identity.get("serial", slot.serial)
    return slot
