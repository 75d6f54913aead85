"""What has become of every claim? The books: each claim's state now, how long each phase took, how it ended.

Two watches tell of one life, and either may run ahead of the other. So moments are written down as they are learned,
per pod and per allocation, and a duration or an outcome is counted when all that it needs is known: once, whatever the
order. What ended before our time (`count_since_wall`) has been counted by whoever watched then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any

from claimscope.claims.cluster import Change, Cluster, PodClaim, key_of
from claimscope.claims.durations import PHASES, Figures, Moment, Skip, duration, moment
from claimscope.claims.model import ClaimState, ClaimView, DeviceKey, Doing, Key, Workload
from claimscope.claims.published import PublishedSlice
from claimscope.claims.records import Allocation, PodRecord, identity_of, pod_record
from claimscope.claims.state import Use, doing_of, healths_of, state_of, stopped_wall_of, worse_health
from claimscope.claims.views import EXTENDED_RESOURCE, Shape, devices_of, shape_of
from claimscope.claims.workloads import workload_of
from claimscope.kube.objects import Event, Pod, ResourceClaim
from claimscope.model import Histogram, Sample

LEAK_GRACE_SECONDS = 60.0
# How long the other watch may lag before an ended allocation is judged by what is known.
OUTCOME_GRACE_SECONDS = 10.0
CLOCK_TOLERANCE_SECONDS = 5.0  # what is stamped to end later than this from now is no end but a wrong clock
MOST_GONE_PODS = 20_000
_PREPARE_FAILED = "FailedPrepareDynamicResources"
_PREPARE_EVENTS = f"events/{_PREPARE_FAILED}"
_HELD = (ClaimState.RESERVED, ClaimState.PREPARED)
_ALL_PHASES = frozenset(PHASES)


@dataclass(slots=True)
class _Book:
    """One claim, by uid."""

    key: Key
    claim: ResourceClaim
    shape: Shape
    created: Moment
    whole: bool  # seen from its creation on
    allocation: Allocation | None = None
    last: Allocation | None = None  # the one before, when released
    unreserved_since_wall: float | None = None
    idle_since_wall: float | None = None  # since when it is held and nothing runs


@dataclass(slots=True)
class _Pods:
    """Every pod that names a claim, and those lately gone: the claims' watch may come to them later."""

    by_uid: dict[str, PodRecord] = field(default_factory=dict)
    _of_claim: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    _gone: dict[str, float] = field(default_factory=dict)  # uid -> when, oldest first

    def see(self, pod: Pod, arrival_ns: int | None) -> frozenset[Key]:
        """Takes a pod; answers the claims that it touches."""
        record = self.by_uid.get(pod.metadata.uid)
        if record is None:
            record = self.by_uid[pod.metadata.uid] = pod_record(pod, arrival_ns)
            before: frozenset[Key] = frozenset()
        else:
            before = record.claims()
            record.see(pod, arrival_ns)
            if record.gone:  # it had to do with no device for a while
                record.gone = False
                del self._gone[pod.metadata.uid]
        after = record.claims()
        for key in after - before:
            self._of_claim[key] = (*self._of_claim.get(key, ()), pod.metadata.uid)
        for key in before - after:
            self._unlink(key, pod.metadata.uid)
        return before | after

    def gone(self, pod: Pod, arrival_ns: int | None, wall: float) -> frozenset[Key]:
        """Takes a pod's last words."""
        touched = self.see(pod, arrival_ns)
        self.by_uid[pod.metadata.uid].gone = True
        self._gone[pod.metadata.uid] = wall
        while len(self._gone) > MOST_GONE_PODS:
            self._forget(next(iter(self._gone)))
        return touched

    def forget_before(self, wall: float) -> None:
        """Drops pods that went before `wall`."""
        for uid in [uid for uid, gone in self._gone.items() if gone < wall]:
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        del self._gone[uid]
        for key in self.by_uid.pop(uid).claims():
            self._unlink(key, uid)

    def _unlink(self, key: Key, uid: str) -> None:
        left = tuple(each for each in self._of_claim[key] if each != uid)
        if left:
            self._of_claim[key] = left
        else:
            del self._of_claim[key]

    def naming(self, key: Key) -> list[PodRecord]:
        """Every known pod that names a claim, oldest first."""
        found = [self.by_uid[uid] for uid in self._of_claim.get(key, ())]
        if len(found) > 1:
            found.sort(key=lambda record: (record.created.stamp or 0.0, record.pod.metadata.name))
        return found


class Lifecycle:
    """The books of all claims. It reads no clock: arrivals and wall time are told."""

    def __init__(self, *, count_since_wall: float, start_ns: int | None = None) -> None:
        self._since = count_since_wall
        self._figures = Figures(start_ns=start_ns)
        self._books: dict[str, _Book] = {}
        self._uid_of: dict[Key, str] = {}
        self._pods = _Pods()
        self._open_ends: dict[Key, list[Allocation]] = {}  # released, outcome not yet known
        self._unreserved: dict[str, None] = {}  # uids of claims that hold devices for nobody
        self._views: dict[str, ClaimView] = {}
        self._stale: dict[Key, None] = {}  # claims whose views are to be made anew before they are read
        self._last_told: tuple[Cluster, float] | None = None
        self._pods_read = False  # whether who wants a claim is known
        self._wall = count_since_wall  # as it was told last

    @property
    def views(self) -> Mapping[str, ClaimView]:
        """Every claim that exists, by uid. Live: copy it to keep it."""
        self._show_stale()
        return MappingProxyType(self._views)

    def samples(self) -> list[Sample | Histogram]:
        """Durations, lifetimes, outcomes, evictions."""
        return self._figures.samples()

    def take(self, changes: Sequence[Change], cluster: Cluster, *, arrival_ns: int, wall: float) -> None:
        """Takes what has changed, in order."""
        self._wall = wall
        touched: dict[Key, None] = {}
        if not self._pods_read and "pods" in cluster.synced:
            self._pods_read = True
            self._stale.update(dict.fromkeys(self._uid_of))
        for change in changes:
            arrival = None if change.listed else arrival_ns
            if _tells_nothing(change):
                continue
            if change.kind == "resourceclaims":
                touched[self._take_claim(change, arrival, wall)] = None
            elif change.kind == "pods":
                touched.update(dict.fromkeys(self._take_pod(change, arrival, wall)))
            elif change.kind == "resourceslices":
                touched.update(dict.fromkeys(_claims_on(change.after, cluster)))
            elif change.kind == _PREPARE_EVENTS and isinstance(change.after, Event):
                about = self._pods.by_uid.get(change.after.involved_object.uid)
                touched.update(dict.fromkeys(about.claims() if about is not None else ()))
        for key in touched:
            self._settle(key)
        self._stale.update(touched)
        self._last_told = (cluster, wall)

    def tick(self, cluster: Cluster, wall: float) -> None:
        """Lets time pass: leaks come of age, and what no watch explains is judged by what is known."""
        self._last_told = (cluster, wall)
        self._show_stale()
        for uid in self._unreserved:
            view = self._views.get(uid)
            if view is not None and not view.leaked:
                self._show(self._books[uid], cluster, wall)
        for key in list(self._open_ends):
            for ended in list(self._open_ends[key]):
                if ended.closed_wall is not None and wall - ended.closed_wall > OUTCOME_GRACE_SECONDS:
                    self._finish(ended)
        self._pods.forget_before(wall - 2 * OUTCOME_GRACE_SECONDS)

    # --- taking news in ---

    def _take_pod(self, change: Change, arrival_ns: int | None, wall: float) -> frozenset[Key]:
        pod: Pod = _subject(change)
        return self._pods.gone(pod, arrival_ns, wall) if change.after is None else self._pods.see(pod, arrival_ns)

    def _take_claim(self, change: Change, arrival_ns: int | None, wall: float) -> Key:
        claim: ResourceClaim = _subject(change)
        key, uid = key_of(claim), claim.metadata.uid
        book = self._books.get(uid)
        if book is None:
            shape = shape_of(claim)
            # A name is a new claim's as soon as it is seen, even before the old one's end is told.
            book = self._books[uid] = _Book(
                key, claim, shape, moment(arrival_ns, shape.created_wall), whole=arrival_ns is not None
            )
            self._uid_of[key] = uid
        else:
            if book.allocation is not None and identity_of(claim) != identity_of(book.claim):
                self._close(book, arrival_ns is not None and claim.status.allocation is None, wall)
            book.claim, book.shape = claim, shape_of(claim)
            book.whole = book.whole and arrival_ns is not None  # what happened behind a gap is not known
        self._take_allocation(book, arrival_ns, wall)
        if change.after is None:
            self._delete(book, arrival_ns, wall)
        return key

    def _take_allocation(self, book: _Book, arrival_ns: int | None, wall: float) -> None:
        claim, held = book.claim, book.allocation
        if claim.status.allocation is None:
            self._close(book, arrival_ns is not None, wall)
            return
        stamp = book.shape.allocated_wall
        if held is not None and held.was_made_anew(stamp):
            self._close(book, False, wall)  # released and allocated again behind a gap
            held = None
        if held is None:
            held = book.allocation = Allocation(
                claim=book.key, created=book.created, deviceclass=book.shape.deviceclass,
                observes_only=book.shape.observes_only, extended=book.shape.source == EXTENDED_RESOURCE,
                made=moment(arrival_ns, stamp),
            )
        consumers = claim.status.reserved_for or ()
        held.by_group = held.by_group or any(each.resource != "pods" for each in consumers)
        held.enter(each.uid for each in consumers if each.resource == "pods")
        self._time_without_reservation(book, arrival_ns, wall)

    def _time_without_reservation(self, book: _Book, arrival_ns: int | None, wall: float) -> None:
        uid = book.claim.metadata.uid
        if book.claim.status.reserved_for:
            book.unreserved_since_wall = None
            self._unreserved.pop(uid, None)
        elif book.unreserved_since_wall is None:
            told = book.shape.allocated_wall if arrival_ns is None else None
            book.unreserved_since_wall = told if told is not None else wall
            self._unreserved[uid] = None

    def _close(self, book: _Book, witnessed: bool, wall: float) -> None:
        """An allocation has gone; its outcome is told when its pods' ends are known."""
        ended = book.allocation
        book.unreserved_since_wall = None
        self._unreserved.pop(book.claim.metadata.uid, None)
        if ended is None:
            return
        self._observe(ended)
        ended.closed_wall, ended.witnessed = wall, witnessed
        book.allocation, book.last, book.idle_since_wall = None, ended, None
        self._open_ends.setdefault(book.key, []).append(ended)

    def _delete(self, book: _Book, arrival_ns: int | None, wall: float) -> None:
        uid = book.claim.metadata.uid
        self._close(book, arrival_ns is not None, wall)
        # Our own clock stamps the end, for claims older than we are; nothing else does.
        lived: float | Skip | None = None
        if arrival_ns is not None:
            arrived = book.created.arrival_ns is not None
            end = Moment(arrival_ns, None) if arrived else Moment(None, wall)
            lived = duration(book.created, end)
        if book.last is None:
            outcome = "never_allocated" if book.whole and arrival_ns is not None else "unknown"
            self._figures.completed(book.key.namespace, book.shape.deviceclass, outcome)
            self._lived(book.shape.deviceclass, outcome, lived)
        elif book.last.outcome is None:
            book.last.lifetime = lived
        else:
            self._lived(book.last.deviceclass, book.last.outcome, lived)
        del self._books[uid]
        self._views.pop(uid, None)
        if self._uid_of.get(book.key) == uid:
            del self._uid_of[book.key]

    def _lived(self, deviceclass: str, outcome: str, seconds: float | Skip | None) -> None:
        if seconds is not None:
            self._figures.lifetime(deviceclass, outcome, seconds)

    # --- judging ---

    def _settle(self, key: Key) -> None:
        """Counts what has become known of the claims of one name."""
        book = self._books.get(self._uid_of.get(key, ""))
        if book is not None and book.allocation is not None:
            self._observe(book.allocation)
        for ended in list(self._open_ends.get(key, ())):
            self._observe(ended)
            pods = [self._pods.by_uid.get(uid) for uid in ended.consumers]
            if (pods or not ended.by_group) and all(pod is not None and pod.ended for pod in pods):
                self._finish(ended)

    def _observe(self, allocation: Allocation) -> None:
        """Counts the phases and evictions of an allocation that can be told by now."""
        if allocation.by_group:  # reserved for a pod group: whichever of its pods want the claim use it
            named = self._pods.naming(allocation.claim)
            allocation.enter(record.pod.metadata.uid for record in named if record.active)
        for uid in allocation.consumers:
            pod = self._pods.by_uid.get(uid)
            if pod is None:
                continue
            use = pod.use(allocation.claim.name)
            allocation.ran = allocation.ran or (use is not None and use.ran)
            if pod.evicted is not None and uid not in allocation.evicted_pods:
                allocation.evicted_pods += (uid,)
                if pod.evicted.counts_after(self._since):
                    self._figures.evicted(allocation.claim.namespace, allocation.deviceclass)
        # Observers (adminAccess alone) wait for no device and keep none from anybody: they would only flatter the
        # figures of the class.
        if allocation.observes_only or allocation.settled == _ALL_PHASES:
            return
        for phase, (begin, end) in self._phases(allocation).items():
            if phase in allocation.settled or end is None:
                continue
            if not end.counts_after(self._since):
                allocation.settle(phase)  # before our time: counted by whoever watched
            elif begin is not None:
                allocation.settle(phase)
                ahead = end.stamp is not None and end.stamp > self._wall + CLOCK_TOLERANCE_SECONDS
                self._figures.phase(allocation.deviceclass, phase, Skip.CLOCK if ahead else duration(begin, end))

    def _phases(self, allocation: Allocation) -> Mapping[str, tuple[Moment | None, Moment | None]]:
        return allocation.phases(self._pods.by_uid, self._pods.naming(allocation.claim))

    def _finish(self, ended: Allocation) -> None:
        """Gives an ended allocation its outcome, once."""
        waiting = self._open_ends[ended.claim]
        waiting.remove(ended)
        if not waiting:
            del self._open_ends[ended.claim]
        if not ended.observes_only:
            for phase, (begin, end) in self._phases(ended).items():
                if begin is None and end is not None and phase not in ended.settled:
                    self._figures.skip(phase, Skip.UNSEEN)
        known = ended.witnessed and not ended.by_group and all(uid in self._pods.by_uid for uid in ended.consumers)
        if ended.evicted_pods:
            ended.outcome = "evicted"
        elif ended.ran:
            ended.outcome = "ran"
        else:
            ended.outcome = "never_ran" if known else "unknown"
        self._figures.completed(ended.claim.namespace, ended.deviceclass, ended.outcome)
        self._lived(ended.deviceclass, ended.outcome, ended.lifetime)

    # --- showing ---

    @property
    def stale(self) -> int:
        """Claims of which there was news since their views were made."""
        return len(self._stale)

    def show(self, at_most: int) -> None:
        """Makes some of these views ahead of `views` and `tick()`, for callers that cannot wait for all at once."""
        self._show_stale(at_most)

    def _show_stale(self, at_most: int | None = None) -> None:
        """Makes the views of claims of which there was news: once, however often it came."""
        if self._last_told is None:
            return
        cluster, wall = self._last_told
        for key in list(islice(self._stale, at_most)):
            del self._stale[key]
            book = self._books.get(self._uid_of.get(key, ""))
            if book is not None:
                self._show(book, cluster, wall)

    def _show(self, book: _Book, cluster: Cluster, wall: float) -> None:
        uid, claim, shape = book.claim.metadata.uid, book.claim, book.shape
        before = self._views.get(uid)
        named = self._pods.naming(book.key)
        users = self._users(book, named)
        wanted = any(record.active for record in (*named, *(record for record, _ in users)))
        referenced = None if not wanted and "pods" not in cluster.synced else wanted
        state = state_of(claim, ((pod.pod, use) for pod, use in users), released=book.last is not None,
                         referenced=wanted)
        doing = self._doing(book, state, users, cluster, wall)
        since = book.unreserved_since_wall
        behind = _face(users, named)
        view = ClaimView(
            namespace=book.key.namespace,
            name=book.key.name,
            uid=uid,
            state=state,
            referenced=referenced,
            deviceclass=shape.deviceclass,
            template=_template(named, book.key.name) or (before.template if before is not None else ""),
            source=shape.source,
            workload=_workload(behind, claim, before),
            devices=devices_of(claim, cluster.devices, _healths(users, claim), before.devices if before else ()),
            pods=tuple(each.name for each in claim.status.reserved_for or () if each.resource == "pods"),
            alternative=shape.alternative,
            requested_devices=shape.requested_devices,
            created_wall=shape.created_wall,
            deleting_wall=shape.deleting_wall,
            allocated_wall=shape.allocated_wall,
            leaked=since is not None and wall - since > LEAK_GRACE_SECONDS,
            doing=doing,
            doing_since_wall=book.idle_since_wall if doing is not None else None,
        )
        if view != before:
            self._views[uid] = view

    def _users(self, book: _Book, named: list[PodRecord]) -> list[tuple[PodRecord, Use]]:
        """The pods that a claim is reserved for, in its order."""
        consumers = book.claim.status.reserved_for or ()
        if any(each.resource != "pods" for each in consumers):
            records = [record for record in named if record.active]  # reserved for a pod group: for all its pods
        else:
            found = (self._pods.by_uid.get(each.uid) for each in consumers)
            records = [record for record in found if record is not None and not record.gone]
        # The scheduler writes an extended resource's claim before it tells the pod of it.
        untold = Use(entry=PodClaim(pod_claim="", claim=book.key.name, extended=True))
        extended = book.shape.source == EXTENDED_RESOURCE
        uses = ((record, record.use(book.key.name) or (untold if extended else None)) for record in records)
        return [(record, use) for record, use in uses if use is not None]

    def _doing(
        self, book: _Book, state: ClaimState, users: list[tuple[PodRecord, Use]], cluster: Cluster, wall: float
    ) -> Doing | None:
        """What is done instead of running, and since when: kept in the book, since no object tells it."""
        unknown = not users and "pods" not in cluster.synced  # nothing is said of pods that cannot be read
        if state not in _HELD or unknown:
            book.idle_since_wall = None
            return None
        if book.idle_since_wall is None:
            stops = [stopped for record, use in users if (stopped := stopped_wall_of(record.pod, use)) is not None]
            book.idle_since_wall = max(stops) if stops else self._held_since(book, users, wall)
        if not users:  # the entries in reservedFor are taken out a moment after their pods
            allocation = book.allocation
            seen = allocation is not None and any(uid in self._pods.by_uid for uid in allocation.consumers)
            return Doing.FINISHED if seen else Doing.UNKNOWN
        record, use = next(((record, use) for record, use in users if not record.ended), users[0])
        return doing_of(record.pod, use, cluster.event(record.pod, _PREPARE_FAILED))

    def _held_since(self, book: _Book, users: list[tuple[PodRecord, Use]], wall: float) -> float:
        """Since when devices are held for pods none of which has run yet."""
        has_run = any(use.ran for _, use in users) or (book.allocation is not None and book.allocation.ran)
        if has_run or book.shape.allocated_wall is None:
            return wall
        # A pod that joined later holds nothing from before its time.
        wanted = min((record.created.stamp or 0.0 for record, _ in users), default=0.0)
        return max(book.shape.allocated_wall, wanted)


def _subject(change: Change) -> Any:  # noqa: ANN401 - of the change's kind
    return change.before if change.after is None else change.after


def _tells_nothing(change: Change) -> bool:
    """True for an object as it was: a new list repeats all that has not changed."""
    if change.before is None or change.after is None or change.kind not in ("resourceclaims", "pods"):
        return False
    version: str = change.after.metadata.resource_version
    return version != "" and version == change.before.metadata.resource_version


def _claims_on(published: PublishedSlice | None, cluster: Cluster) -> Iterable[Key]:
    """Claims whose devices a slice describes. A slice that has gone changes nothing: what it said is kept."""
    if published is None:
        return
    for device in published.devices:
        for holding in cluster.holdings(device.key):
            yield holding.claim


def _face(users: list[tuple[PodRecord, Use]], named: list[PodRecord]) -> PodRecord | None:
    """The pod that stands for all of a claim's."""
    for record in (*(record for record, _ in users), *(record for record in named if record.active), *named):
        return record
    return None


def _workload(record: PodRecord | None, claim: ResourceClaim, before: ClaimView | None) -> Workload:
    if record is None:
        # Its pods have gone; it is theirs all the same.
        return before.workload if before is not None and before.workload.kind else workload_of(None, claim)
    if record.workload is None:
        record.workload = workload_of(record.pod, claim)
    return record.workload


def _template(named: list[PodRecord], claim: str) -> str:
    uses = (record.use(claim) for record in named)
    return next((use.entry.template for use in uses if use is not None and use.entry.template), "")


def _healths(users: list[tuple[PodRecord, Use]], claim: ResourceClaim) -> dict[DeviceKey, str]:
    healths: dict[DeviceKey, str] = {}
    for record, use in users:
        for device, health in healths_of(record.pod, use.entry, claim).items():
            healths[device] = worse_health(healths.get(device, ""), health)
    return healths
