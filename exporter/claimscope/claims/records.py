"""What is remembered of pods and allocations, since their objects forget: when things happened, and that they did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from claimscope.claims.cluster import TERMINAL_PHASES, claims_of, is_active
from claimscope.claims.durations import READY, Moment, Skip, later, moment
from claimscope.claims.model import DeviceKey, Key, Phase, Workload
from claimscope.claims.state import Use, became_true, evicted_by_taint, use_of
from claimscope.kube.objects import Condition, Pod, ResourceClaim, unix_seconds

Ends = tuple[Moment | None, Moment | None]


@dataclass(slots=True)
class PodRecord:
    """One pod, by uid. Each moment is kept as it was first learned."""

    pod: Pod  # as it was last
    created: Moment
    uses: tuple[Use, ...] = ()
    bound: Moment | None = None
    prepared: Moment | None = None
    started: tuple[tuple[str, Moment], ...] = ()  # claim -> first start of a container that uses it
    evicted: Moment | None = None
    gone: bool = False
    workload: Workload | None = None  # what stands behind it, once somebody asked

    @property
    def ended(self) -> bool:
        """True when nothing more will run in it."""
        return self.gone or self.pod.status.phase in TERMINAL_PHASES

    @property
    def active(self) -> bool:
        """True while it wants its claims."""
        return not self.gone and is_active(self.pod)

    def claims(self) -> frozenset[Key]:
        """The claims it names, as far as they exist."""
        namespace = self.pod.metadata.namespace
        return frozenset(Key(namespace, use.entry.claim) for use in self.uses if use.entry.claim is not None)

    def use(self, claim: str) -> Use | None:
        """What it does with a claim."""
        return next((use for use in self.uses if use.entry.claim == claim), None)

    def first_start(self, claim: str) -> Moment | None:
        """When a container that uses a claim first ran."""
        return next((first for name, first in self.started if name == claim), None)

    def see(self, pod: Pod, arrival_ns: int | None) -> None:
        """Takes the pod as it is now."""
        if pod.metadata.labels != self.pod.metadata.labels:
            self.workload = None
        self.pod = pod
        self.uses = tuple(use_of(pod, entry) for entry in claims_of(pod))
        restarted = any(status.restart_count > 0 for status in pod.status.container_statuses or ())
        if self.bound is None:
            self.bound = _transition(became_true(pod, "PodScheduled"), arrival_ns)
        # A pod that had restarts when first seen may stand in its second sandbox.
        if self.prepared is None and not restarted:
            self.prepared = _transition(became_true(pod, "PodReadyToStartContainers"), arrival_ns)
        if self.evicted is None:
            self.evicted = _transition(evicted_by_taint(pod), arrival_ns)
        known = {name for name, _ in self.started}
        self.started += tuple(
            (use.entry.claim, moment(arrival_ns, use.started_wall))
            for use in self.uses
            if use.entry.claim is not None and use.entry.claim not in known and use.started_wall is not None
        )


def pod_record(pod: Pod, arrival_ns: int | None) -> PodRecord:
    """The record of a pod seen for the first time."""
    record = PodRecord(pod, moment(arrival_ns, unix_seconds(pod.metadata.creation_timestamp)))
    record.see(pod, arrival_ns)
    return record


def _transition(condition: Condition | None, arrival_ns: int | None) -> Moment | None:
    return moment(arrival_ns, unix_seconds(condition.last_transition_time)) if condition is not None else None


@cache
def _with(settled: frozenset[str], phase: str) -> frozenset[str]:
    """The few sets there are, each kept once for all allocations."""
    return settled | {phase}


@dataclass(slots=True)
class Allocation:
    """One allocation of one claim, from its writing to its release, and on until its outcome is known."""

    claim: Key
    created: Moment  # the claim
    deviceclass: str
    observes_only: bool
    extended: bool
    made: Moment
    consumers: tuple[str, ...] = ()  # uids of every pod that was entered in reservedFor
    by_group: bool = False  # reserved for a pod group, which names no pods
    settled: frozenset[str] = frozenset()  # phases that are counted, or shall not be
    ran: bool = False
    evicted_pods: tuple[str, ...] = ()
    closed_wall: float | None = None
    witnessed: bool = False  # its end was seen happening
    outcome: str | None = None
    lifetime: float | Skip | None = None  # the claim's, where it was deleted before the outcome was known

    def enter(self, uids: Iterable[str]) -> None:
        """Adds pods that may use the devices, in the order in which they came."""
        self.consumers += tuple(uid for uid in uids if uid not in self.consumers)

    def settle(self, phase: str) -> None:
        """Marks a phase as counted, or as one that shall not be."""
        self.settled = _with(self.settled, phase)

    def was_made_anew(self, stamp: float | None) -> bool:
        """True for another time than the one known. An absent one is filled in at a later reservation, no more."""
        return stamp is not None and self.made.stamp is not None and stamp != self.made.stamp

    def phases(self, pods: Mapping[str, PodRecord], namers: Iterable[PodRecord]) -> dict[str, Ends]:
        """Both ends of every phase. They follow the pod for which the allocation was made: the first one entered."""
        lead = pods.get(self.consumers[0]) if self.consumers else None
        if lead is None:
            return {}
        made = self.made
        bound_wall = lead.bound.stamp if lead.bound is not None else None
        if made.stamp is not None and bound_wall is not None and bound_wall < made.stamp - 1:
            # The scheduler fills an absent allocationTimestamp in at a later reservation (dynamicresources.go,
            # bindClaim), so one that is later than the binding it preceded does not tell of the allocation.
            made = moment(made.arrival_ns, None)
        if not _made_for(lead, made):
            return {Phase.SCHEDULING.value: (None, made)}
        needed, started = self._needed(lead, namers), lead.first_start(self.claim.name)
        return {
            Phase.SCHEDULING.value: (needed, made),
            Phase.BINDING.value: (made, lead.bound),
            Phase.PREPARE.value: (lead.bound, lead.prepared),
            Phase.START.value: (lead.prepared, started),
            READY: (needed, started),
        }

    def _needed(self, lead: PodRecord, namers: Iterable[PodRecord]) -> Moment:
        """The later of the claim's creation and that of the first pod that names it."""
        first = lead.created
        for pod in namers:
            if pod.active and (pod.created.stamp or 0.0, pod.created.arrival_ns or 0) < (
                first.stamp or 0.0, first.arrival_ns or 0,
            ):
                first = pod.created
        # A claim for an extended resource is made by the scheduler at the very end of its search.
        return first if self.extended else later(self.created, first)


def _made_for(lead: PodRecord, made: Moment) -> bool:
    """False for a pod younger than the allocation: it came after others, of whom nothing is known any more."""
    return made.stamp is None or lead.created.stamp is None or lead.created.stamp <= made.stamp + 1


def identity_of(claim: ResourceClaim) -> tuple[tuple[str, DeviceKey, str | None], ...]:
    """Which devices a claim is allocated: another answer is another allocation."""
    allocation = claim.status.allocation
    return tuple(
        (each.request, DeviceKey(each.driver, each.pool, each.device), each.share_id)
        for each in (allocation.devices.results if allocation is not None else None) or ()
    )

