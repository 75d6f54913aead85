"""What does the agent know about its node right now, and what of it is shown?

Sources push in (`on_...`), `publish` makes one immutable Snapshot out of everything. Single-threaded: every method
runs on the agent's event loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import logging
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, assert_never

import msgspec

from claimscope.attribution import Attribution, attribute, held_claims, owners
from claimscope.claims.drift import DevicesEntry
from claimscope.extremes import Extremes
from claimscope.health.report import HealthSamples, document, own_samples
from claimscope.kube.processes import ProcessPods
from claimscope.metrics.own import build_info, own
from claimscope.metrics.spec import Split
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Holder, Inventory, Missing, ProcessUse, Sample, Snapshot, Total, Window
from claimscope.nvml.wire import EventMessage, FromSampler, InventoryMessage, Status, WindowMessage
from claimscope.web.application import Check, Readiness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from claimscope.accounting.ledger import Ledger
    from claimscope.clock import Clock
    from claimscope.export.dcgm.rates import Rates
    from claimscope.export.dcgm.recent import RecentEvents
    from claimscope.export.otlp.push import Pusher
    from claimscope.health.sources import HealthSources
    from claimscope.health.watch import HealthView, HealthWatch
    from claimscope.kube.api import ApiError
    from claimscope.kube.claims import ClaimLookup
    from claimscope.kube.lease import HeartbeatLease
    from claimscope.kube.podresources import PodResourcesError
    from claimscope.kube.structs import Listing, SliceDevice
    from claimscope.localfence import LocalFencing
    from claimscope.nvml.supervisor import SupervisorState
    from claimscope.state import JournalState

logger = logging.getLogger(__name__)

RESTART_NS = 3_000_000_000  # what it takes to give a hung sampler up and have windows of its successor
SLICES_NS = 10_000_000_000  # how long the first slices are waited for
LOOKUP_SECONDS = 2.0

_BUSY_KEYS = frozenset(
    quantity.key
    for quantity in QUANTITIES
    for view in quantity.views
    if view.stem == "busy" and view.split is not Split.NO and view.labels == {"engine": "gpu"}
)


class Node:
    """The present state of one node and its newest Snapshot."""

    def __init__(
        self, *, name: str, clock: Clock, ledger: Ledger, attribution: bool, hang_seconds: float,
        observer_namespaces: frozenset[str] = frozenset(),
    ) -> None:
        self.clock = clock
        self.changed = asyncio.Event()
        self.expects_slices = False  # there is an API server to tell them
        self._started_ns = clock.monotonic_ns()
        self.snapshot: Snapshot | None = None
        self.name = name
        self._ledger = ledger
        self._extremes = Extremes(QUANTITIES)
        self._process_pods: defaultdict[str, ProcessPods] = defaultdict(ProcessPods)
        self._owners_known: dict[str, tuple[tuple[int, ...], Attribution, Mapping[int, Holder]]] = {}
        self._observer_namespaces = observer_namespaces
        # A window older than this is not the present any more. One hung GPU stalls the windows of all until its
        # sampler is replaced, which must not make the others look lost.
        self._fresh_ns = round(hang_seconds * 1e9) + RESTART_NS
        self._inventory: Inventory | None = None  # with the devices that are lost or out of reach, as last known
        self._appeared_ns: dict[str, int] = {}
        self._windows: dict[str, Window] = {}
        self._status: Status | None = None
        self.shows_processes = True  # else they are only counted
        self._processes: dict[str, tuple[ProcessUse, ...] | None] = {}
        self._listing: tuple[Listing, int] | None = None
        self._new_listing = asyncio.Event()
        self._slices: tuple[SliceDevice, ...] = ()
        self._attribution = Attribution()
        self._last_success_wall_ns: dict[str, int] = {}
        # What never works must get old as well, so what is asked counts as answered at the start.
        self._asked_since_wall_ns: dict[str, int] = {"pod-resources": clock.wall_ns()} if attribution else {}
        self._last_listing_ns: int | None = None
        self._errors: Counter[tuple[str, str]] = Counter()
        self._failing: dict[str, str] = {"pod-resources": "no answer from the kubelet yet"} if attribution else {}
        self._journal_writes: Counter[str] = Counter()
        self._journal_wall_ns = clock.wall_ns()
        self.health: HealthWatch | None = None  # None: not judged
        self.health_sources: HealthSources | None = None
        self.health_view: HealthView | None = None  # as of the Snapshot
        self.journal_due = asyncio.Event()  # something happened that must outlive this process
        self.lease_due = asyncio.Event()  # ... that the controller must hear of
        self._health_samples = HealthSamples()
        self._event_pods = ProcessPods()
        self.heartbeat: HeartbeatLease | None = None  # for what is shown of it; somebody else runs it
        self.otlp: Pusher | None = None  # likewise
        self.rates: Rates | None = None  # only DCGM's names want them
        self.recent: RecentEvents | None = None  # likewise
        self.fencing: LocalFencing | None = None  # likewise; None: the controller fences
        self._build = build_info(importlib.metadata.version("claimscope"), platform.python_version())

    # What the sampler says.

    def on_message(self, message: FromSampler) -> None:
        """Takes one message of the sampler."""
        match message:
            case WindowMessage(window=window):
                self._processes[window.entity] = window.processes
                if not self.shows_processes and window.processes is not None:
                    window = dataclasses.replace(window, processes=None)
                self._windows[window.entity] = window
                self._ledger.observe(window, self._owners(window))
                self._extremes.observe(window)
                if self.rates is not None:
                    self.rates.observe(window)
                if self.recent is not None:
                    self.recent.observe(window)
                if self.health is not None:
                    self.health.window(window, self.clock.monotonic_ns(), self.clock.wall_ns())
            case EventMessage(event=event):
                logger.info("%s %d on %s", event.kind, event.code, event.entity)
                self._ledger.event(event)
                if self.recent is not None:
                    self.recent.event(event, self.clock.monotonic_ns())
                if self.health is not None:
                    self.health.event(event, self.clock.monotonic_ns(), self.clock.wall_ns())
            case InventoryMessage(inventory=inventory):
                self._on_inventory(inventory)
            case Status():
                self._status = message
            case _:
                assert_never(message)
        self._tell_health()
        self.changed.set()

    def _owners(self, window: Window) -> Mapping[int, Holder] | None:
        """Asks /proc only when the processes or the holds have changed."""
        if not window.processes:
            return None
        pids = tuple(process.pid for process in window.processes)
        known = self._owners_known.get(window.entity)
        if known is None or known[0] != pids or known[1] is not self._attribution:
            pods = self._process_pods[window.entity].pods(pids)
            known = (pids, self._attribution, owners(self._attribution.holds, window.entity, pods))
            self._owners_known[window.entity] = known
        return known[2]

    def _on_inventory(self, inventory: Inventory) -> None:
        before = self._inventory
        if inventory.error is not None and (before is None or before.error != inventory.error):
            logger.error("NVML is not usable: %s", inventory.error)
        if inventory.error is None and not inventory.released and (before is None or before.error is not None):
            logger.info(
                "NVML %s with driver %s: %d devices",
                inventory.nvml_version,
                inventory.driver_version,
                len(inventory.devices),
            )
        self._inventory = inventory = with_known(inventory, before)
        self._ledger.inventory(inventory)
        known = {device.entity.uuid for device in inventory.devices}
        now_ns = self.clock.monotonic_ns()
        self._appeared_ns = {uuid: self._appeared_ns.get(uuid, now_ns) for uuid in known}
        self._windows = {uuid: window for uuid, window in self._windows.items() if uuid in known}
        self._processes = {uuid: processes for uuid, processes in self._processes.items() if uuid in known}
        for uuid in self._owners_known.keys() - known:
            del self._owners_known[uuid], self._process_pods[uuid]
        if self.health is not None:
            self.health.inventory(inventory, now_ns, self.clock.wall_ns())
        self._new_listing.set()

    def process_count(self) -> int | None:
        """How many processes use the devices of this node; None where NVML does not tell of every one."""
        inventory = self._inventory
        if inventory is None or inventory.released or inventory.error is not None:
            return None
        cut = {device.entity.parent for device in inventory.devices}  # GPUs with MIG devices, which have the processes
        told = [
            self._processes.get(device.entity.uuid)
            for device in inventory.devices
            if device.entity.uuid not in cut and not {device.entity.uuid, device.entity.parent} & inventory.lost.keys()
        ]
        known = [each for each in told if each is not None]
        return sum(map(len, known)) if known and len(known) == len(told) else None

    @property
    def released(self) -> bool:
        """Whether NVML has been let go on request."""
        return self._inventory is not None and self._inventory.released

    # What the kubelet and the API server say.

    def on_listing(self, listing: Listing, asked_ns: int) -> None:
        """Takes a good listing of the kubelet, as of monotonic time `asked_ns`."""
        self._listing = (listing, asked_ns)
        self._last_listing_ns = asked_ns
        self._succeeded("pod-resources")
        self._new_listing.set()

    def on_listing_error(self, error: PodResourcesError) -> None:
        """Takes a failed poll: what was known before stands."""
        self._failed("pod-resources", error.reason.value, str(error))

    def on_slices(self, devices: tuple[SliceDevice, ...]) -> None:
        """Takes the devices that drivers publish for this node."""
        self._slices = devices
        self._succeeded("resourceslices")
        self._new_listing.set()

    def on_slices_heard(self) -> None:
        """Takes a sign of life of the slices' watch: what is known is as good as ever."""
        self._succeeded("resourceslices")

    def on_slices_error(self, error: ApiError) -> None:
        """Takes a failure of the slices' watch: what was known before stands."""
        self._asked_since_wall_ns.setdefault("resourceslices", self.clock.wall_ns())
        self._failed("resourceslices", error.reason.value, str(error))

    def on_claims_error(self, error: ApiError) -> None:
        """Takes a failure to read a claim: it is then taken not to be admin access."""
        self._failed("resourceclaims", error.reason.value, str(error))

    @property
    def wants_api(self) -> bool:
        """True when a claim is held, of which the API server could tell more."""
        return self._listing is not None and bool(held_claims(self._listing[0]))

    async def news(self) -> None:
        """Waits for something that `attribute` has not joined yet."""
        await self._new_listing.wait()

    async def attribute(self, lookup: ClaimLookup | None) -> None:
        """Waits for something new and joins it."""
        await self._new_listing.wait()
        self._new_listing.clear()
        if self._listing is None or self._inventory is None:
            return
        listing, asked_ns = self._listing
        if lookup is not None:
            try:
                async with asyncio.timeout(LOOKUP_SECONDS):
                    await lookup.refresh(held_claims(listing))
            except TimeoutError:
                self._failed("resourceclaims", "timeout", "the API server is slow to tell of claims")
        found = attribute(
            self._inventory,
            listing,
            self._slices,
            node=self.name,
            claims=None if lookup is None else lookup.facts(),
            observer_namespaces=self._observer_namespaces,
        )
        if found.unresolved != self._attribution.unresolved:
            for item in found.unresolved:
                if item not in self._attribution.unresolved:
                    logger.warning("device %s of %s/%s (%s) has no certain holder or is not known to NVML: %s",
                                   item.device, item.namespace, item.name, item.driver, item.reason)
        if found != self._attribution:
            self._attribution = found
        if self._inventory.error is None and not self._inventory.released and not self._slices_awaited():
            self._ledger.hold(found.holds, asked_ns, self.clock.wall_ns())
        self.changed.set()

    def _slices_awaited(self) -> bool:
        """True right after the start, while devices may still be told by slices that are on their way.

        Holds that cannot be resolved without them would otherwise end accounts that the journal kept.
        """
        if not self.expects_slices or "resourceslices" in self._last_success_wall_ns:
            return False
        return self.clock.monotonic_ns() - self._started_ns < SLICES_NS

    def _succeeded(self, source: str) -> None:
        self._last_success_wall_ns[source] = self.clock.wall_ns()
        self._failing.pop(source, None)

    def _failed(self, source: str, reason: str, text: str) -> None:
        self._errors[source, reason] += 1
        self._failing[source] = text
        self.changed.set()

    # Health.

    def tick_health(self) -> None:
        """Lets time pass for the rules of health; called several times a second."""
        if self.health is None:
            return
        now_ns, wall_ns = self.clock.monotonic_ns(), self.clock.wall_ns()
        if self.health_sources is not None:
            self.health_sources.poll(self.health, now_ns, wall_ns)
        self.health.tick(now_ns, wall_ns)
        self._tell_health()

    def _tell_health(self) -> None:
        if self.health is not None and self.health.changed:
            self.health.changed = False
            for due in (self.changed, self.journal_due, self.lease_due):
                due.set()

    def pod_of(self, uuid: str, pid: str | None) -> str | None:
        """Who uses a device, as "namespace/pod": its only holder, or the pod of a process."""
        pods = {
            f"{pod.namespace}/{pod.pod}" for hold in self._attribution.holds if hold.entity == uuid for pod in hold.pods
        }
        if len(pods) == 1:
            return pods.pop()
        if pid is None or not pid.isdecimal():
            return None
        found = self._event_pods.pods((int(pid),)).get(int(pid))
        return None if found is None else "/".join(found)

    def acknowledge(self, uuid: str, rule: str) -> str | None:
        """Ends a finding by a person's word; why it could not, None where it did."""
        if self.health is None:
            return "health is not judged: the agent runs with --health off"
        refused = self.health.acknowledge(uuid, rule)
        if refused is None:
            logger.info("%s of %s was acknowledged", rule, uuid)
        self._tell_health()
        return refused

    def health_document(self) -> dict[str, object] | None:
        """What /api/v1/health answers; None while nothing is known, or judged."""
        if self.health is None or self._inventory is None:
            return None
        return {"node": self.name, **document(self.health.view(), self._indexes())}

    def _indexes(self) -> dict[str, str]:
        """NVML's index of each device that it names, "" where it is lost and was never seen."""
        if self._inventory is None:
            return {}
        lost = dict.fromkeys(self._inventory.lost, "")
        return lost | {device.entity.uuid: str(device.entity.gpu) for device in self._inventory.devices}

    def _judged(self) -> tuple[Sample, ...]:
        """Before the first inventory there is nothing to say: the journal knows no index."""
        self.health_view = None if self.health is None or self._inventory is None else self.health.view()
        if self.health_view is None:
            return ()
        return tuple(self._health_samples.of(self.health_view, self._indexes()))

    # The journal.

    def journal(self, boot_id: str) -> JournalState:
        """A copy of what must outlive this process."""
        state = self._ledger.to_state(boot_id, self.clock.monotonic_ns(), self.clock.wall_ns())
        if self.health is None:
            return state
        return msgspec.structs.replace(state, health=msgspec.Raw(msgspec.json.encode(self.health.journal())))

    def journal_saved(self) -> None:
        """Counts a journal that was written."""
        self._journal_writes["ok"] += 1
        self._journal_wall_ns = self.clock.wall_ns()

    def journal_failed(self) -> None:
        """Counts a journal that could not be written."""
        self._journal_writes["error"] += 1

    # What is shown.

    def publish(self, supervisor: SupervisorState) -> None:
        """Makes the Snapshot of this moment."""
        now_ns, wall_ns = self.clock.monotonic_ns(), self.clock.wall_ns()
        accounts = self._ledger.accounts(now_ns)
        unattributed = self._ledger.unattributed()
        for uuid, rests in self._ledger.unattributed_gauges(accounts, now_ns).items():
            present = {key: Total(value=rest, start_wall_ns=wall_ns) for key, rest in rests.items()}
            unattributed[uuid] = unattributed.get(uuid, {}) | present
        self.snapshot = Snapshot(
            node=self.name,
            wall_ns=wall_ns,
            monotonic_ns=now_ns,
            inventory=self._inventory,
            up=self._up(now_ns),
            windows=dict(self._windows),
            totals=self._known(self._ledger.totals()),
            extremes=self._extremes.view(wall_ns),
            rates={} if self.rates is None else self.rates.view(self._appeared_ns.keys()),
            recent={} if self.recent is None else self.recent.view(self._appeared_ns.keys(), now_ns),
            unattributed=self._known(unattributed),
            accounts=accounts,
            holds=self._attribution.holds,
            xids=tuple(count for count in self._ledger.xids() if count.entity in self._appeared_ns),
            health=self._judged(),
            own=tuple(self._own(now_ns, supervisor)),
        )

    def _known(self, totals: Mapping[str, Mapping[str, Total]]) -> dict[str, Mapping[str, Total]]:
        """Only of devices that the inventory names: after a restart the journal speaks before NVML does."""
        return {uuid: values for uuid, values in totals.items() if uuid in self._appeared_ns}

    def _up(self, now_ns: int) -> dict[str, bool]:
        inventory = self._inventory
        if inventory is None:
            return {}
        usable = inventory.error is None and not inventory.released
        up = dict.fromkeys(inventory.lost, False)
        for device in inventory.devices:
            uuid = device.entity.uuid
            if uuid in inventory.lost or device.entity.parent in inventory.lost or not usable:
                up[uuid] = False
                continue
            window = self._windows.get(uuid)
            since_ns = self._appeared_ns[uuid] if window is None else window.end_ns
            if now_ns - since_ns >= self._fresh_ns:
                up[uuid] = False
            elif window is not None:
                up[uuid] = True
        return up

    def readiness(self) -> Readiness:
        """Whether the figures are fresh. Missing attribution is said and does not fail it: devices are served."""
        now_ns = self.clock.monotonic_ns()
        inventory = self._inventory
        newest = max((window.end_ns for window in self._windows.values()), default=None)
        if inventory is None:
            sampler = Check(name="sampler", ok=False, reason="the sampler has not reported yet")
        elif inventory.error is not None:
            sampler = Check(name="sampler", ok=False, reason=inventory.error)
        elif inventory.released:
            sampler = Check(name="sampler", ok=False, reason="NVML is released on request; `claimscope nvml acquire`")
        elif newest is None or self.snapshot is None:
            sampler = Check(name="sampler", ok=False, reason="no window yet")
        else:
            age = (now_ns - newest) / 1e9
            fresh = now_ns - newest < self._fresh_ns
            sampler = Check(name="sampler", ok=fresh, reason=f"newest window is {age:.1f} s old")
        checks = [sampler]
        for source, text in sorted(self._failing.items()):
            checks.append(Check(name=source, ok=True, reason=f"degraded: {text}"))
        return Readiness(checks=tuple(checks))

    def _own(self, now_ns: int, supervisor: SupervisorState) -> Iterable[Sample]:
        yield self._build
        inventory, status = self._inventory, self._status
        newest = max((window.end_ns for window in self._windows.values()), default=None)
        yield own("sampler_up", float(newest is not None and now_ns - newest < self._fresh_ns))
        for reason, count in sorted(supervisor.restarts.items()):
            yield own("sampler_restarts_total", count, reason)
        yield own("quarantined_devices", len(supervisor.quarantined))
        if newest is not None:
            yield own(
                "sampler_last_window_timestamp_seconds",
                max(window.end_wall_ns for window in self._windows.values()) / 1e9,
            )
        if inventory is not None:
            yield own("nvml_up", float(inventory.error is None and not inventory.released))
            yield own("nvml_released", float(inventory.released))
        if status is not None:
            yield from _status_samples(status)
        missing = Counter(reason for window in self._windows.values() for reason in window.missing.values())
        for absent in Missing:
            yield own("missing_readings", missing[absent], absent.value)
        yield own("unmeasurable_devices", self._unmeasurable(), "busy_time")
        yield own("unobserved_seconds_total", self._ledger.unobserved_seconds)
        for source, wall_ns in sorted((self._asked_since_wall_ns | self._last_success_wall_ns).items()):
            yield own("attribution_last_success_timestamp_seconds", wall_ns / 1e9, source)
        for (source, reason), count in sorted(self._errors.items()):
            yield own("attribution_errors_total", count, source, reason)
        unresolved = Counter((item.reason, item.driver or "") for item in self._attribution.unresolved)
        for (reason, driver), count in sorted(unresolved.items()):
            yield own("attribution_unresolved_devices", count, reason, driver)
        if self.health_view is not None:
            yield from own_samples(self.health_view)
        if self.health_sources is not None:
            yield from self.health_sources.samples()
        for result in ("ok", "error"):
            yield own("journal_writes_total", self._journal_writes[result], result)
        if self.heartbeat is not None:
            if self.heartbeat.renewed_wall is not None:
                yield own("heartbeat_last_success_timestamp_seconds", self.heartbeat.renewed_wall)
            for why, count in sorted(self.heartbeat.errors.items(), key=lambda item: item[0].value):
                yield own("heartbeat_errors_total", count, why.value)
        if self.otlp is not None:
            yield from self.otlp.samples()
        if self.fencing is not None:
            yield from self.fencing.samples()
        if self._journal_writes:
            yield own("journal_last_success_timestamp_seconds", self._journal_wall_ns / 1e9)

    def _unmeasurable(self) -> int:
        """Devices that somebody holds and whose busy time nothing measures, such as MIG devices of an A100."""
        held = {hold.entity for hold in self._attribution.holds}
        return sum(
            1
            for uuid in held
            if (window := self._windows.get(uuid)) is not None and _BUSY_KEYS.isdisjoint(window.integral)
        )


def device_entries(snapshot: Snapshot) -> list[DevicesEntry]:
    """The GPUs of a node by what should be alike among nodes; what NVML does not tell is left out."""
    if snapshot.inventory is None:
        return []
    kinds: Counter[tuple[str, str | None, str | None, str | None, float | None]] = Counter()
    for device in snapshot.inventory.devices:
        if device.entity.parent is not None or device.model is None:
            continue
        window = snapshot.windows.get(device.entity.uuid)
        last: Mapping[str, float] = {} if window is None else window.last
        kinds[
            device.model,
            device.identity.get("vbios_version"),
            _switch(last.get("mig_mode_enabled")),
            _switch(last.get("ecc_mode_enabled")),
            last.get("power_limit_enforced"),
        ] += 1
    return [
        DevicesEntry(
            model=model, count=count, driver_version=snapshot.inventory.driver_version, vbios_version=vbios,
            mig_mode=mig, ecc_mode=ecc, power_limit_watts=watts,
        )
        for (model, vbios, mig, ecc, watts), count in kinds.items()
    ]


def _switch(value: float | None) -> str | None:
    return None if value is None else "enabled" if value else "disabled"


def with_known(inventory: Inventory, before: Inventory | None) -> Inventory:
    """The inventory with devices of before that are lost now, or all of them while NVML is out of reach."""
    if before is None:
        return inventory
    if inventory.error is not None or inventory.released:
        return dataclasses.replace(inventory, devices=before.devices, lost=before.lost)
    present = {device.entity.uuid for device in inventory.devices}
    lost = tuple(
        device
        for device in before.devices
        if device.entity.uuid not in present
        and (device.entity.uuid in inventory.lost or device.entity.parent in inventory.lost)
    )
    return dataclasses.replace(inventory, devices=inventory.devices + lost)


def _status_samples(status: Status) -> Iterable[Sample]:
    yield own("sampler_ticks_total", status.ticks)
    yield own("sampler_late_ticks_total", status.late_ticks)
    yield own("sampler_lateness_seconds", status.lateness_max_seconds)
    yield own("sampler_hz", status.sampling_hz)
    yield own("sampler_shed", float(status.shed))
    yield own("sampler_dropped_messages_total", status.dropped_messages)
    yield own("sampler_cpu_seconds_total", status.cpu_seconds)
    for uuid, seconds in sorted(status.driver_seconds.items()):
        yield own("driver_seconds_total", seconds, uuid)
    for call, cost in sorted(status.calls.items()):
        yield own("driver_calls_total", cost.calls, call)
        yield own("driver_call_seconds_total", cost.seconds, call)
