"""Which series does a Snapshot amount to?

`Collector.collect` is the only way from state to samples; text, page and documentation all start from its answer. It
decides nothing about devices: it applies the rows of the metric tables to what the Snapshot holds. Label tuples are
made once per series and handed out again with every Snapshot, so that a renderer can recognise them by identity.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claimscope.metrics import health, identity, own
from claimscope.metrics.spec import (
    CLAIM_LABELS,
    DEVICE_LABELS,
    WINDOW_LABEL,
    Family,
    Quantity,
    Scope,
    Split,
    Stat,
    View,
    family_name,
)
from claimscope.metrics.tables import merge, quantity_families
from claimscope.model import Account, Device, Entity, Hold, Holder, PodRef, Sample, Snapshot, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Labels = tuple[tuple[str, str], ...]

UP = "gpu_up"
INFO = "gpu_info"
SIZE = "gpu_size_ratio"
ALLOCATION = "gpu_allocation_info"
# Reading keys of what a Snapshot does not keep by reading key.
XID_ERRORS = "xid_errors"
PROCESS_MEMORY = "process_memory_used"

WINDOW_VALUE = "1m"  # what Snapshot.extremes covers

# Process ids come and go for ever; what is remembered about label values starts anew above these.
_MAX_KEYS = 20_000
_MAX_LABELS = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """One view of one reading key: the families it feeds, each with the labels behind the identity ones."""

    split: Split
    whole_gpu: bool  # measured on the GPU alone: a MIG device's holder gets the part of its compute slices
    text_label: str | None
    device: str | None  # None where there is no device family
    device_extra: Labels
    claim: str
    pod: str
    account_extra: Labels
    unattributed: str
    unattributed_extra: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slots:
    """All views of one reading key, by the part of a Snapshot that feeds them."""

    rank: tuple[int, int, str]
    last: tuple[_Slot, ...]
    low: tuple[_Slot, ...]
    high: tuple[_Slot, ...]
    total: tuple[_Slot, ...]
    split_last: tuple[_Slot, ...]
    split_total: tuple[_Slot, ...]


class _Series:
    """One series that follows from a mapping of readings, with the sample that was last made of it.

    Most readings do not change from one window to the next, and a sample is immutable: it can be handed out again.
    """

    __slots__ = ("family", "key", "labels", "sample")

    def __init__(self, key: str, family: str, labels: Labels) -> None:
        self.key = key  # of the reading
        self.family = family
        self.labels = labels
        self.sample = Sample(family=family, labels=labels, value=0.0)

    def at(self, value: float, start_ns: int | None = None, start_value: float = 0.0) -> Sample:
        sample = self.sample
        if sample.value != value or sample.start_ns != start_ns:
            sample = Sample(
                family=self.family, labels=self.labels, value=value, start_ns=start_ns, start_value=start_value
            )
            self.sample = sample
        return sample


Plan = tuple[_Series, ...]


class _Plans:
    """Plans by part of a Snapshot; a plan stands as long as the keys it was made for are the same."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made: dict[str, tuple[tuple[str, ...], Plan]] = {}

    def get(self, part: str, readings: Mapping[str, object], make: Callable[[str, Iterable[str]], Plan]) -> Plan:
        keys = tuple(readings)
        known = self.made.get(part)
        if known is None or known[0] != keys:
            known = self.made[part] = (keys, make(part, keys))
        return known[1]


class _LabelCache:
    """Label tuples that begin alike, by what stands behind the beginning."""

    __slots__ = ("base", "made", "plans")

    def __init__(self, base: Labels) -> None:
        self.base = base
        self.made: dict[Labels, Labels] = {(): base}
        self.plans = _Plans()

    def get(self, extra: Labels) -> Labels:
        found = self.made.get(extra)
        if found is None:
            found = self.made[extra] = self.base + extra
        return found


class Collector:
    """Applies the metric tables to Snapshots; remembers nothing but label tuples.

    Only entities that the Snapshot's inventory names are shown: an index that is not known is never invented.
    """

    def __init__(self, quantities: Sequence[Quantity]) -> None:
        self._quantities = {quantity.key: (rank, quantity) for rank, quantity in enumerate(quantities)}
        if len(self._quantities) != len(quantities):
            raise ValueError("two quantities have the same key; give each row of the metric tables its own")
        self.families: Mapping[str, Family] = merge(
            (
                *identity.FAMILIES.values(), *health.FAMILIES.values(), *quantity_families(quantities).values(),
                *own.FAMILIES.values(),
            )
        )
        self._slots: dict[str, _Slots | None] = {}
        self._entities: dict[str, _LabelCache] = {}
        self._devices: dict[str, Device] = {}
        self._infos: dict[Labels, Labels] = {}
        self._accounts: dict[Labels, _LabelCache] = {}
        self._account_plans: dict[tuple[Holder, str, str], _Plans] = {}
        self._edges: dict[tuple[Hold, PodRef | None], Labels] = {}

    @property
    def cached(self) -> int:
        """Label tuples held now."""
        caches = (*self._entities.values(), *self._accounts.values())
        return sum(len(cache.made) for cache in caches) + len(self._infos) + len(self._edges)

    def collect(self, snapshot: Snapshot) -> list[Sample]:
        """All samples of a Snapshot, grouped by family, in the order of the tables, no series twice."""
        out: dict[str, list[Sample]] = defaultdict(list)
        self._follow_entities(snapshot)
        self._collect_identity(snapshot, out)
        self._collect_devices(snapshot, out)
        self._collect_accounts(snapshot, out)
        self._collect_edges(snapshot, out)
        self._collect_xids(snapshot, out)
        for sample in (*snapshot.health, *snapshot.own):
            out[sample.family].append(sample)
        samples: list[Sample] = []
        for name in self.families:
            members = out.pop(name, None)
            if members:
                samples.extend(_distinct(members, interned=name not in own.FAMILIES))
        if out:
            raise ValueError(f"samples of families that are in no metric table: {sorted(out)}")
        return samples

    # Entities and identity

    def _follow_entities(self, snapshot: Snapshot) -> None:
        """Keeps one label cache per entity of the inventory, and drops those that left it."""
        inventory = snapshot.inventory
        named: dict[str, str] = {}
        devices: dict[str, Device] = {}
        if inventory is not None:
            for device in inventory.devices:
                named[device.entity.uuid] = str(device.entity.gpu)
                devices[device.entity.uuid] = device
            for uuid in sorted(inventory.lost):
                named.setdefault(uuid, "")
        entities: dict[str, _LabelCache] = {}
        for uuid, gpu in named.items():
            base = (("uuid", uuid), ("gpu", gpu))
            known = self._entities.get(uuid)
            kept = known is not None and known.base == base and len(known.made) < _MAX_LABELS
            entities[uuid] = known if known is not None and kept else _LabelCache(base)
        self._entities = entities
        self._devices = devices

    def _collect_identity(self, snapshot: Snapshot, out: dict[str, list[Sample]]) -> None:
        inventory = snapshot.inventory
        infos: dict[Labels, Labels] = {}
        if inventory is None:
            self._infos = infos
            return
        info_labels = self.families[INFO].labels
        for uuid, device in self._devices.items():
            facts: dict[str, str] = {
                "driver_version": inventory.driver_version or "",
                "nvml_version": inventory.nvml_version or "",
                "cuda_version": inventory.cuda_version or "",
                **device.identity,
                "uuid": uuid,
                "gpu": str(device.entity.gpu),
                "parent_uuid": device.entity.parent or "",
                "model": device.model or "",
                "pci_bus_id": device.pci_bus_id or "",
                "minor": "" if device.minor is None else str(device.minor),
                "mig_enabled": str(device.mig_enabled).lower(),
            }
            if device.mig is not None:
                facts["mig_profile"] = device.mig.profile
                facts["gpu_instance_id"] = str(device.mig.gpu_instance_id)
                facts["compute_instance_id"] = str(device.mig.compute_instance_id)
            facts.setdefault("mode", "mig" if device.mig is not None else "full")
            labels = tuple((name, facts.get(name, "")) for name in info_labels)
            labels = infos[labels] = self._infos.get(labels, labels)
            out[INFO].append(Sample(family=INFO, labels=labels, value=1.0))
            size = _size(device.entity)
            if size is not None:
                out[SIZE].append(Sample(family=SIZE, labels=self._entities[uuid].base, value=size))
        self._infos = infos
        # A device that nobody has judged yet, because its first window is still to come, is left out.
        judged = (device.entity.uuid for device in inventory.devices if device.entity.uuid in snapshot.up)
        for uuid in dict.fromkeys((*judged, *sorted(inventory.lost))):
            up = snapshot.up.get(uuid, False) and uuid not in inventory.lost
            out[UP].append(Sample(family=UP, labels=self._entities[uuid].base, value=1.0 if up else 0.0))

    # Device layer

    def _slots_of(self, key: str) -> _Slots | None:
        """The views of a reading key; None for a key that is in no table."""
        try:
            return self._slots[key]
        except KeyError:
            if len(self._slots) >= _MAX_KEYS:
                self._slots.clear()
            made = self._slots[key] = self._make_slots(key)
            return made

    def _make_slots(self, key: str) -> _Slots | None:
        name, slash, axis_value = key.partition("/")
        found = self._quantities.get(name)
        if found is None:
            return None
        rank, quantity = found
        if (quantity.axis is None) == bool(slash):
            return None
        slots = [(view, self._make_slot(quantity, view, axis_value)) for view in quantity.views]

        def pick(stat: Stat, split: bool = False) -> tuple[_Slot, ...]:
            return tuple(
                slot for view, slot in slots if view.stat is stat and (not split or view.split is not Split.NO)
            )

        number = int(axis_value) if axis_value.isdecimal() else -1
        return _Slots(
            rank=(rank, number, axis_value),
            last=pick(Stat.LAST),
            low=pick(Stat.MIN),
            high=pick(Stat.MAX),
            total=pick(Stat.TOTAL),
            split_last=pick(Stat.LAST, split=True),
            split_total=pick(Stat.TOTAL, split=True),
        )

    def _make_slot(self, quantity: Quantity, view: View, axis_value: str) -> _Slot:
        given = dict(view.labels)
        if quantity.axis is not None:
            given[quantity.axis] = axis_value
        if view.stat in (Stat.MIN, Stat.MAX):
            given[WINDOW_LABEL] = WINDOW_VALUE

        def extra(name: str, identity_labels: tuple[str, ...]) -> Labels:
            # Rows of one family may carry different labels; those that this one lacks are empty, never missing.
            family = self.families.get(name)
            labels = family.labels[len(identity_labels) :] if family is not None else ()
            return tuple((label, given.get(label, "")) for label in labels)

        device, claim = family_name("gpu", view), family_name("dra_claim_gpu", view)
        unattributed = family_name("gpu_unattributed", view)
        return _Slot(
            split=view.split,
            whole_gpu=quantity.scope is Scope.GPU and view.split is Split.SHARE and quantity.device_family,
            text_label=quantity.text_label,
            device=device if device in self.families else None,
            device_extra=extra(device, DEVICE_LABELS),
            claim=claim,
            pod=family_name("pod_gpu", view),
            account_extra=extra(claim, CLAIM_LABELS),
            unattributed=unattributed,
            unattributed_extra=extra(unattributed, DEVICE_LABELS),
        )

    def _known(self, keys: Iterable[str]) -> list[tuple[str, _Slots]]:
        """Reading keys of the tables, in the tables' order."""
        known = [(key, slots) for key in keys if (slots := self._slots_of(key)) is not None]
        known.sort(key=_by_rank)
        return known

    def _collect_devices(self, snapshot: Snapshot, out: dict[str, list[Sample]]) -> None:
        lost = snapshot.inventory.lost if snapshot.inventory is not None else {}
        for uuid, cache in self._entities.items():
            window = snapshot.windows.get(uuid)
            if window is not None and snapshot.up.get(uuid, False) and uuid not in lost:
                self._collect_window(window, cache, out)
                extremes = snapshot.extremes.get(uuid, {})
                for series in self._device_plan(cache, "low", extremes):
                    out[series.family].append(series.at(extremes[series.key][0]))
                for series in self._device_plan(cache, "high", extremes):
                    out[series.family].append(series.at(extremes[series.key][1]))
            totals = snapshot.totals.get(uuid, {})
            for series in self._device_plan(cache, "total", totals):
                total = totals[series.key]
                out[series.family].append(series.at(total.value, total.start_wall_ns, total.start_value))
            rest = snapshot.unattributed.get(uuid, {})
            for series in self._device_plan(cache, "unattributed", rest):
                total = rest[series.key]
                start_ns = total.start_wall_ns if series.family.endswith("_total") else None
                out[series.family].append(series.at(total.value, start_ns))

    def _device_plan(self, cache: _LabelCache, part: str, readings: Mapping[str, object]) -> Plan:
        """The device families, or those of the unattributed rest, that follow from a mapping of readings."""

        def make(part: str, keys: Iterable[str]) -> Plan:
            made: list[_Series] = []
            for key, slots in self._known(keys):
                if part == "unattributed":
                    made += [
                        _Series(key, slot.unattributed, cache.get(slot.unattributed_extra))
                        for slot in slots.split_total or slots.split_last
                    ]
                else:
                    made += [
                        _Series(key, slot.device, cache.get(slot.device_extra))
                        for slot in getattr(slots, part)
                        if slot.device is not None and slot.text_label is None
                    ]
            return tuple(made)

        return cache.plans.get(part, readings, make)

    def _collect_window(self, window: Window, cache: _LabelCache, out: dict[str, list[Sample]]) -> None:
        last = window.last
        for series in self._device_plan(cache, "last", last):
            out[series.family].append(series.at(last[series.key]))
        for key, slots in self._known(window.text):
            for slot in slots.last:
                if slot.device is not None and slot.text_label is not None:
                    word = window.text[key]
                    extra = tuple(
                        (name, word if name == slot.text_label else value) for name, value in slot.device_extra
                    )
                    out[slot.device].append(Sample(family=slot.device, labels=cache.get(extra), value=1.0))
        for use in sorted(window.processes or (), key=lambda use: use.pid):
            slots_of_use = self._slots_of(f"{PROCESS_MEMORY}/{use.pid}")
            if use.memory_used_bytes is not None and slots_of_use is not None:
                _put(out, slots_of_use.last, cache, float(use.memory_used_bytes))

    def _collect_xids(self, snapshot: Snapshot, out: dict[str, list[Sample]]) -> None:
        for count in sorted(snapshot.xids, key=lambda count: (count.entity, count.xid)):
            slots = self._slots_of(f"{XID_ERRORS}/{count.xid}")
            if slots is not None:
                cache = self._entities[count.entity]
                _put(out, slots.total, cache, float(count.count))
                if count.count:  # shown at 0 before it happens: there is no last time yet
                    _put(out, slots.last, cache, count.last_wall_ns / 1e9)

    # Accounts and edges

    def _collect_accounts(self, snapshot: Snapshot, out: dict[str, list[Sample]]) -> None:
        caches: dict[Labels, _LabelCache] = {}
        plans: dict[tuple[Holder, str, str], _Plans] = {}
        for account in sorted(snapshot.accounts, key=_account_order):

            def make(part: str, keys: Iterable[str], account: Account = account) -> Plan:
                return self._account_plan(account, part, keys)

            # Accounts whose labels are the same share their label tuples, also where they are not the same account.
            for attribution in ("process", account.basis):
                base = _account_labels(account, attribution)
                caches[base] = self._accounts.setdefault(base, _LabelCache(base))
            identity_of = (account.holder, account.entity, account.basis)
            known = plans[identity_of] = self._account_plans.get(identity_of) or _Plans()
            start_ns = account.start_wall_ns
            for series in known.get("total", account.totals, make):
                out[series.family].append(series.at(account.totals[series.key], start_ns))
            if account.ended_wall_ns is None:
                for series in known.get("last", account.gauges, make):
                    out[series.family].append(series.at(account.gauges[series.key]))
        self._accounts = caches
        self._account_plans = plans

    def _account_plan(self, account: Account, part: str, keys: Iterable[str]) -> Plan:
        claim = account.holder.source == "claim"
        made: list[_Series] = []
        for key, slots in self._known(keys):
            for slot in slots.split_total if part == "total" else slots.split_last:
                observed = slot.split is Split.OBSERVED and account.basis == "share"
                cache = self._accounts[_account_labels(account, "process" if observed else account.basis)]
                made.append(_Series(key, slot.claim if claim else slot.pod, cache.get(slot.account_extra)))
        return tuple(made)

    def _collect_edges(self, snapshot: Snapshot, out: dict[str, list[Sample]]) -> None:
        edges: dict[tuple[Hold, PodRef | None], Labels] = {}
        names = self.families[ALLOCATION].labels
        interned: dict[Labels, Labels] = {}
        for hold in snapshot.holds:
            # A hold without pods stays visible: the claim has the device although nothing uses it.
            for pod in hold.pods or (None,):
                labels = self._edges.get((hold, pod)) or _edge_labels(hold, pod, names)
                edges[(hold, pod)] = interned.setdefault(labels, labels)
        out[ALLOCATION].extend(Sample(family=ALLOCATION, labels=labels, value=1.0) for labels in sorted(interned))
        self._edges = edges


def _put(
    out: dict[str, list[Sample]],
    slots: tuple[_Slot, ...],
    cache: _LabelCache,
    value: float,
    start_ns: int | None = None,
) -> None:
    """A value into the device families of some slots."""
    for slot in slots:
        if slot.device is not None and slot.text_label is None:
            labels = cache.get(slot.device_extra)
            out[slot.device].append(Sample(family=slot.device, labels=labels, value=value, start_ns=start_ns))


def _by_rank(item: tuple[str, _Slots]) -> tuple[int, int, str]:
    return item[1].rank


def _account_order(account: Account) -> tuple[bool, str, str, str, str, str, str, str]:
    holder = account.holder
    # Running accounts first, so that an ended namesake of the same labels gives way to them.
    return (
        account.ended_wall_ns is not None,
        holder.source,
        holder.namespace,
        holder.name,
        holder.uid or "",
        holder.container or "",
        account.entity,
        account.basis,
    )


def _attribution(account: Account, slot: _Slot) -> str:
    """How the figure came to be: alone on the device, by equal share, by MIG slices of the GPU, or by process."""
    if account.basis == "share":
        return "process" if slot.split is Split.OBSERVED else "share"
    return "slices" if slot.whole_gpu and account.entity.startswith("MIG-") else account.basis


def _account_labels(account: Account, attribution: str) -> Labels:
    holder = account.holder
    if holder.source == "claim":
        return (
            ("namespace", holder.namespace),
            ("resourceclaim", holder.name),
            ("claim_uid", holder.uid or ""),
            ("uuid", account.entity),
            ("attribution", attribution),
        )
    return (
        ("namespace", holder.namespace),
        ("pod", holder.name),
        ("container", holder.container or ""),
        ("uuid", account.entity),
        ("attribution", attribution),
    )


def _edge_labels(hold: Hold, pod: PodRef | None, names: Sequence[str]) -> Labels:
    holder = hold.holder
    claim = holder.source == "claim"
    facts = {
        "uuid": hold.entity,
        "source": holder.source,
        "namespace": holder.namespace,
        "resourceclaim": holder.name if claim else "",
        "claim_uid": holder.uid or "",
        "pod": pod.pod if pod is not None else ("" if claim else holder.name),
        "container": pod.container if pod is not None else (holder.container or ""),
        "driver": hold.driver or "",
        "pool": hold.pool or "",
        "device": hold.device or "",
        "resource": hold.resource or "",
        "request": hold.request or "",
        "share_id": hold.share_id or "",
    }
    return tuple((name, facts.get(name, "")) for name in names)


def _size(entity: Entity) -> float | None:
    """Part of a whole GPU that the device is; None for a MIG device whose slices are not known."""
    if entity.parent is None:
        return 1.0
    return entity.slices / entity.total_slices if entity.slices and entity.total_slices else None


def _distinct(samples: list[Sample], interned: bool) -> list[Sample]:
    """The samples of one family without repeated series; the first of each stays."""
    # The tuples made here are the same object for the same series, and identity is far cheaper to compare than
    # a dozen strings; those of `Snapshot.own` were made by others.
    if interned and len({id(sample.labels) for sample in samples}) == len(samples):
        return samples
    first: dict[Labels, Sample] = {}
    for sample in samples:
        first.setdefault(sample.labels, sample)
    return list(first.values())
