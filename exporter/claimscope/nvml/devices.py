"""Which GPUs and MIG devices are read now, and what became of the others?

Takes NVML up and lets it go, leaves out a GPU that is lost, looks whether it came back and whether MIG devices came or
went.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence

import pynvml

from claimscope.metrics.spec import Quantity
from claimscope.model import Device, Inventory
from claimscope.nvml import inventory, library
from claimscope.nvml.calls import CALLS
from claimscope.nvml.costs import Costs
from claimscope.nvml.driver_events import EventReader
from claimscope.nvml.fields import field_ids
from claimscope.nvml.gpm_metrics import GPM_METRICS
from claimscope.nvml.heartbeat import Heartbeat, Marker
from claimscope.nvml.inventory import Found
from claimscope.nvml.library import DRIVER_GONE, Library
from claimscope.nvml.reader import Catalog, EntityReader
from claimscope.nvml.wire import Settings, is_unnamed

LOST_CHECK_NS = 1_000_000_000
MIG_CHECK_NS = 10_000_000_000
REOPEN_FIRST_NS, REOPEN_MAX_NS = 60_000_000_000, 1_800_000_000_000
FOLD_AT = 20


class DriverGoneError(Exception):
    """NVML must be taken up anew."""

    def __init__(self, code: int, path: str) -> None:
        super().__init__(library.explain(code, path))
        self.code = code


class Devices:
    """The devices of one node, over every time that NVML is taken up.

    `changed` is called when what `as_inventory` shows may have changed.
    """

    def __init__(
        self,
        settings: Settings,
        heartbeat: Heartbeat,
        *,
        mark: Marker,
        clock: Callable[[], int],
        quantities: Sequence[Quantity],
        costs: Costs,
        events: EventReader,
        changed: Callable[[], None],
    ) -> None:
        self.entities: list[EntityReader] = []
        self.open = False
        self.error: str | None = None  # why NVML is not usable
        self._settings = settings
        self._heartbeat = heartbeat
        self._mark = mark
        self._clock = clock
        self._quantities = quantities
        self._costs = costs
        self._events = events
        self._changed = changed
        self._epoch = 0
        self._library: Library | None = None
        self._catalog: Catalog | None = None
        self._versions: tuple[str | None, str | None, str | None] = (None, None, None)
        self._counts_processes = False
        self._devices: dict[str, Device] = {}
        self._lost: dict[str, str] = {}
        self._lost_with: dict[str, str] = {}  # MIG device -> its lost GPU
        self._lost_check_ns = 0
        self._reopen_ns = 0
        self._reopen_wait_ns = REOPEN_FIRST_NS
        self._mig_check_ns = 0
        self._mig_signature: dict[str, tuple[str, ...]] = {}
        self._mig_unsure: set[str] = set()  # GPUs whose MIG devices the driver did not tell
        self._known: dict[str, int] = dict(settings.known)  # uuid -> NVML index, the newest last
        self._unnamed: dict[int, str] = {}

    @property
    def path(self) -> str:
        """Of the library, as errors name it: always the same, so that one trouble is one message."""
        return self._library.path if self._library is not None else self._settings.library or library.DEFAULT_NAME

    def count_processes(self, on: bool) -> None:
        """Has the processes of every device read, or no more."""
        self._counts_processes = on
        for entity in self.entities:
            entity.count_processes(on)

    def change(self, settings: Settings) -> None:
        """Takes over other settings; most act when NVML is taken up the next time."""
        self._settings = settings
        for uuid, index in settings.known.items():
            self._known.setdefault(uuid, index)

    def release_from_quarantine(self, freed: set[str]) -> None:
        """Looks for these GPUs again."""
        self._lost_check_ns = 0
        for uuid in freed & set(self._lost):
            self._lost[uuid] = "was quarantined and has not answered yet"

    def as_inventory(self, session: int, *, released: bool) -> Inventory:
        """What there is now."""
        usable = self.open and self.error is None
        driver, nvml, cuda = self._versions
        return Inventory(
            session=session, epoch=self._epoch, driver_version=driver, nvml_version=nvml, cuda_version=cuda,
            devices=tuple(
                sorted(self._devices.values(), key=lambda one: (one.entity.gpu, one.mig is not None))
            )
            if usable
            else (),
            lost=dict(self._lost) if usable else {}, error=None if released else self.error, released=released,
        )

    # Taking NVML up and letting it go

    def take_up(self) -> None:
        """Loads and initialises NVML and begins to read every device. Raises what says why it cannot."""
        settings = self._settings
        self._mark(-1, "import")
        if self._library is None:
            self._library = library.load(settings.library, settings.driver_root)
        path = self._library.path
        self._mark(-1, "nvmlInitWithFlags")
        library.initialise(self._library)
        self.open = True
        self._epoch += 1
        self.error = None
        driver = library.version(pynvml.nvmlSystemGetDriverVersion)
        self._versions = (driver, library.version(pynvml.nvmlSystemGetNVMLVersion), library.cuda_version())
        self._known.update(
            (uuid, index) for uuid, index in settings.quarantine.items() if not is_unnamed(uuid)
        )
        mig_before = {uuid: device.mig_enabled for uuid, device in self._devices.items()}
        walk = inventory.enumerate_gpus(
            self._mark, settings.quarantine, self._known, path, mig_before, peers=settings.nvlink_peers
        )
        self._lost = dict(walk.lost)
        for index, reason in walk.unnamed.items():
            if index not in self._unnamed:
                sys.stderr.write(f"claimscope sampler: GPU {index} cannot say its UUID and is left out: {reason}\n")
        self._unnamed = dict(walk.unnamed)
        self._mig_unsure = set(walk.unsure)
        self._lost_with = {}
        for uuid in self._devices.keys() - {one.device.entity.uuid for one in walk.found}:
            parent = self._devices[uuid].entity.parent
            if parent is not None and parent in walk.unsure:
                self._lost[uuid] = "the driver does not say now which MIG devices the GPU has"
                self._lost_with[uuid] = parent
        self._devices = {}
        self.entities = []
        self._catalog = Catalog(
            quantities=self._quantities, calls=CALLS, field_ids=field_ids(driver or ""), gpm_metrics=GPM_METRICS,
            collectors=settings.collectors, reprobe_ns=round(settings.reprobe_seconds * 1e9), found=walk.found,
        )
        self._events.open(self._library)
        self._take(self._library, self._catalog, walk.found)
        self._mig_signature = self._read_mig_signature()
        self._mig_check_ns = self._clock() + MIG_CHECK_NS
        self._reopen_ns = self._clock() + self._reopen_wait_ns
        self._heartbeat[1] = 0
        if not self._lost:
            self._reopen_wait_ns = REOPEN_FIRST_NS

    def _take(self, loaded: Library, catalog: Catalog, found: Sequence[Found]) -> None:
        """Starts to read these entities; their GPUs register for events."""
        parents = {one.device.entity.parent for one in found if one.device.entity.parent is not None}
        gone: list[tuple[EntityReader, int]] = []
        for place, one in enumerate(found):
            device = one.device
            uuid = device.entity.uuid
            if device.mig is None:
                self._known.pop(uuid, None)
                self._known[uuid] = device.entity.gpu
            self._events.add(one)
            self._mark(device.entity.gpu, "nvmlGpmQueryDeviceSupport")
            entity = EntityReader(loaded, one, catalog, has_mig=uuid in parents, epoch=self._epoch)
            self._devices[uuid] = device
            entity.count_processes(self._counts_processes)
            entity.fold_at = FOLD_AT + 2 * (place % 8)  # at high rates, in turns
            self.entities.append(entity)
            # Entities take turns within the second, so that their slow readings do not fall on one tick.
            code = entity.probe(
                self._heartbeat, self._clock, gpm_period_ns=round(1e9 / self._settings.gpm_hz),
                offset_ns=place * 1_000_000_000 // max(1, len(found)),
            )
            if code:
                gone.append((entity, code))
        for entity, code in gone:
            self.lose(entity, code)

    def let_go(self) -> None:
        """GPM samples, event set, NVML: in this order, to a reference count of 0."""
        if not self.open:
            return
        self._mark(-1, "nvmlGpmSampleFree")
        self._costs.collect(self.entities, self._events)
        for entity in self.entities:
            entity.free()
        self.entities = []
        self._events.close()
        self._mark(-1, "nvmlShutdown")
        library.shut_down()
        self.open = False
        self._heartbeat[1] = 0

    # Lost GPUs, MIG

    def lose(self, entity: EntityReader, code: int) -> None:
        """Reads a GPU and its MIG devices no more; raises DriverGoneError where it is not the GPU alone."""
        if code in DRIVER_GONE:
            raise DriverGoneError(code, self.path)
        reason = inventory.gone(code)
        gpu = entity.gpu_uuid
        if gpu in self._lost:
            return
        self._costs.collect(self.entities, self._events)
        for one in [e for e in self.entities if e.gpu_uuid == gpu]:
            self._mark(one.gpu, "nvmlGpmSampleFree")
            one.free()
            self.entities.remove(one)
            self._devices.pop(one.uuid, None)
            self._lost[one.uuid] = reason
            if one.uuid != gpu:
                self._lost_with[one.uuid] = gpu
        self._lost[gpu] = reason
        self._lost_check_ns = self._clock() + LOST_CHECK_NS
        self._reopen_ns = self._clock() + self._reopen_wait_ns
        self._changed()

    def need_anew(self, now: int) -> bool:
        """Looks for lost GPUs and for changes of MIG where that is due; whether NVML must be taken up anew."""
        if self._lost and now >= self._lost_check_ns:
            self._lost_check_ns = now + LOST_CHECK_NS
            self._find_lost()
        if now >= self._mig_check_ns:
            self._mig_check_ns = now + MIG_CHECK_NS
            self._events.mig_changed = self._events.mig_changed or self._mig_differs()
        if self._events.mig_changed:
            self._events.mig_changed = False
            return True
        if (self._lost or self._unnamed) and now >= self._reopen_ns:
            self._reopen_wait_ns = min(2 * self._reopen_wait_ns, REOPEN_MAX_NS)
            return True
        return False

    def _find_lost(self) -> None:
        if self._library is None or self._catalog is None:
            return
        for uuid in list(self._lost):
            if uuid in self._settings.quarantine or not uuid.startswith("GPU-"):
                continue
            self._mark(self._known.get(uuid, -1), "find_lost")
            answer = inventory.find_gpu(uuid, self.path)
            if answer is None:
                continue
            gpu, handle = answer
            self._mark(gpu, "enumerate")
            try:
                found, sure = inventory.read_gpu(gpu, handle, uuid, peers=self._settings.nvlink_peers)
            except pynvml.NVMLError as error:
                if error.value in DRIVER_GONE:
                    raise DriverGoneError(int(error.value), self.path) from error
                continue
            del self._lost[uuid]
            (self._mig_unsure.discard if sure else self._mig_unsure.add)(uuid)
            back = {one.device.entity.uuid for one in found}
            for child in [one for one, parent in self._lost_with.items() if parent == uuid]:
                if sure or child in back:
                    del self._lost_with[child]
                    self._lost.pop(child, None)
            self._epoch += 1
            self._take(self._library, self._catalog, found)
            self.entities.sort(key=lambda one: one.gpu)
            self._mig_signature = self._read_mig_signature()
            self._changed()

    def _read_mig_signature(self) -> dict[str, tuple[str, ...]]:
        signature: dict[str, tuple[str, ...]] = {}
        for one in self.entities:
            if one.uuid == one.gpu_uuid:
                self._mark(one.gpu, "enumerate")
                found = inventory.mig_uuids(ctypes.cast(one.found.pointer, pynvml.c_nvmlDevice_t))
                if found is not None:
                    signature[one.uuid] = found
        return signature

    def _mig_differs(self) -> bool:
        """Whether MIG devices came or went without an event: those need a right we may lack."""
        now = self._read_mig_signature()
        known = {**now, **self._mig_signature}  # the first answer after an error at the start is no change
        return any(known[uuid] != found or uuid in self._mig_unsure for uuid, found in now.items())
