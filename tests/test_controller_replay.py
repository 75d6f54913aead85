"""The recorded cluster, told to the controller's engine: what it says of each claim, literally."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.claims.engine import Engine
from claimscope.claims.model import ClusterSnapshot
from claimscope.claims.selectors import Selectors
from claimscope.kube.follow import WatchStatus, follow
from claimscope.model import Histogram, Sample
from claimscope.sim.api.kinds import ALL_KINDS
from claimscope.sim.api.server import SimApiServer
from kube_help import serving
from recorded_cluster import KINDS, START, Arrival, RawArrival, arrivals, lists, raw_arrivals, raw_lists, told

SIMULATED = {kind.plural: kind for kind in ALL_KINDS}


@dataclass(slots=True)
class RecordedClock:
    """Both clocks stand at the event that is being told."""

    seconds: float = 0.0

    def monotonic_ns(self) -> int:
        return round((self.seconds + 1000) * 1e9)

    def wall_ns(self) -> int:
        return round((START + self.seconds) * 1e9)


@dataclass(slots=True)
class Replay:
    """An engine that has been told the recording up to a moment."""

    clock: RecordedClock = field(default_factory=RecordedClock)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = Engine(clock=self.clock, selectors=Selectors.in_process(), count_since_wall=START)

    def listed(self, past: list[Arrival]) -> Replay:
        """Reads the lists as they were after `past`."""
        objects = {
            kind: {(obj.metadata.namespace, obj.metadata.name): obj for obj in listed}
            for kind, listed in lists().items()
        }
        for arrival in past:
            key = (arrival.obj.metadata.namespace, arrival.obj.metadata.name)
            if arrival.present:
                objects[arrival.kind][key] = arrival.obj
            else:
                objects[arrival.kind].pop(key, None)
        # The rules first: a claim seen beside a rule that has gone meanwhile would look like a violation.
        for kind, known in sorted(objects.items(), key=lambda item: item[0] != "devicetaintrules"):
            self.engine.on_sync(kind, known.values())
        return self

    def tell(self, stream: list[Arrival]) -> Replay:
        for arrival in stream:
            self.clock.seconds = max(self.clock.seconds, arrival.seconds)
            self.engine.on_change(arrival.kind, arrival.obj, arrival.present)
        return self

    async def at(self, seconds: float) -> ClusterSnapshot:
        self.clock.seconds = seconds
        return await self.engine.publish(complete=True)


def events(first: float = 0.0, last: float = 1e9) -> list[Arrival]:
    return [arrival for arrival in arrivals() if first < arrival.seconds <= last]


def whole() -> Replay:
    return Replay().listed([]).tell(events())


async def snapshot_at(seconds: float) -> ClusterSnapshot:
    return await Replay().listed([]).tell(events(last=seconds)).at(seconds)


def reasons(snapshot: ClusterSnapshot) -> dict[str, str]:
    return {wait.pod: wait.diagnosis.reason.value for wait in snapshot.waits}


def states(snapshot: ClusterSnapshot) -> dict[str, str]:
    return {f"{view.namespace}/{view.name}": view.state.value for view in snapshot.claims.values()}


def counters(snapshot: ClusterSnapshot, family: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(value for _, value in sample.labels): sample.value
        for sample in snapshot.samples
        if isinstance(sample, Sample) and sample.family == family and sample.value
    }


def histograms(snapshot: ClusterSnapshot, family: str) -> dict[tuple[str, ...], tuple[int, float]]:
    """Observations and their sum, by labels."""
    return {
        tuple(value for _, value in series.labels): (sum(series.counts), series.sum)
        for series in snapshot.samples
        if isinstance(series, Histogram) and series.family == family and any(series.counts)
    }


async def test_every_stuck_pod_has_its_cause() -> None:
    assert reasons(await snapshot_at(20)) == {
        "stuck-no-match": "no_matching_device",
        "stuck-missing-class": "class_missing",
        "stuck-missing-claim": "claim_missing",
        "stuck-all-in-use": "devices_in_use",
        "stuck-quota": "quota",
        "prioritized": "prepare_failed",
    }


async def test_a_driver_that_is_down_fails_to_prepare() -> None:
    assert reasons(await snapshot_at(60))["stuck-prepare"] == "prepare_failed"
    assert "stuck-prepare" not in reasons(await snapshot_at(138))


async def test_a_claim_that_nobody_wants_is_nobodys_fault() -> None:
    snapshot = await snapshot_at(20)
    (view,) = [view for view in snapshot.claims.values() if view.name == "unreferenced"]
    assert (view.state.value, view.referenced) == ("pending", False)
    assert "unreferenced" not in {wait.claim for wait in snapshot.waits}


async def test_a_prioritized_list_tells_its_alternative() -> None:
    snapshot = await snapshot_at(20)
    (view,) = [view for view in snapshot.claims.values() if view.name == "prefers-h200"]
    assert (view.alternative, [device.key.device for device in view.devices]) == ("gpu/any", ["gpu-1"])


async def test_two_claims_were_given_tainted_devices() -> None:
    snapshot = await whole().at(185)
    assert counters(snapshot, "dra_constraint_violations_total") == {("gpu.nvidia.com", "taint"): 2}


async def test_two_pods_were_evicted() -> None:
    snapshot = await whole().at(185)
    assert sum(counters(snapshot, "dra_claim_evictions_total").values()) == 2


async def test_states_at_the_end() -> None:
    assert states(await whole().at(185)) == {
        "ml-team/shared-inference": "released",
        "ai-production/vllm-gpu-claim": "released",
        "ml-team/wants-h200": "pending",
        "ml-team/wants-missing-class": "pending",
        "ml-team/wants-eight": "pending",
        "ml-team/unreferenced": "pending",
        "ml-team/prefers-h200": "running",
        "monitoring/observe-all": "released",
        "ml-team/only-tainted-left": "running",
        "ml-team/driver-down": "running",
        "ml-team/taint-test2": "released",
    }


async def test_phases_take_as_long_as_recorded() -> None:
    snapshot = await whole().at(185)
    phases = {
        labels: (count, round(total, 1))
        for labels, (count, total) in histograms(snapshot, "dra_allocation_duration_seconds").items()
    }
    assert phases == {
        ("gpu.nvidia.com", "scheduling"): (6, 0.1),
        ("gpu.nvidia.com", "binding"): (6, 0.0),
        ("gpu.nvidia.com", "prepare"): (6, 85.2),  # stuck-prepare waited for its driver from 51.9 to 136.8 s
        ("gpu.nvidia.com", "start"): (6, 0.0),
        ("high-memory-gpu", "scheduling"): (2, 0.1),
        ("high-memory-gpu", "binding"): (2, 0.0),
        ("high-memory-gpu", "prepare"): (2, 86.1),  # prioritized, class of the alternative it got: 6.7 to 92.8 s
        ("high-memory-gpu", "start"): (2, 0.0),
    }


COUNTERS = ("dra_claims_completed_total", "dra_claim_evictions_total", "dra_constraint_violations_total")
HISTOGRAMS = ("dra_allocation_duration_seconds", "dra_claim_ready_duration_seconds", "dra_claim_lifetime_seconds")


def counts(snapshot: ClusterSnapshot) -> dict[tuple[str, ...], float]:
    """Everything that was counted, by family and label values; of histograms the number of observations."""
    counted = {(family, *labels): value for family in COUNTERS for labels, value in counters(snapshot, family).items()}
    observed = {
        (family, *labels): float(count)
        for family in HISTOGRAMS
        for labels, (count, _) in histograms(snapshot, family).items()
    }
    return counted | observed


def without_outcomes(counted: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """The same where how an allocation ended is left out: behind a gap it may be unknown."""
    sums: dict[tuple[str, ...], float] = {}
    for (family, *labels), value in counted.items():
        ends = family in ("dra_claims_completed_total", "dra_claim_lifetime_seconds")
        key = (family, *(labels[:-1] if ends else labels))
        sums[key] = sums.get(key, 0.0) + value
    return sums


def exceeding(found: dict[tuple[str, ...], float], most: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """What was counted more often than it happened."""
    sums, limits = without_outcomes(found), without_outcomes(most)
    return {key: value for key, value in sums.items() if value > limits.get(key, 0.0)}


def without_violations(counted: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """The same without what depends on which taints stood when a claim was allocated: no order of kinds, no answer."""
    return {key: value for key, value in counted.items() if key[0] != "dra_constraint_violations_total"}


async def test_everything_that_is_counted() -> None:
    assert counts(await whole().at(185)) == {
        ("dra_allocation_duration_seconds", "gpu.nvidia.com", "scheduling"): 6,
        ("dra_allocation_duration_seconds", "gpu.nvidia.com", "binding"): 6,
        ("dra_allocation_duration_seconds", "gpu.nvidia.com", "prepare"): 6,
        ("dra_allocation_duration_seconds", "gpu.nvidia.com", "start"): 6,
        ("dra_allocation_duration_seconds", "high-memory-gpu", "scheduling"): 2,
        ("dra_allocation_duration_seconds", "high-memory-gpu", "binding"): 2,
        ("dra_allocation_duration_seconds", "high-memory-gpu", "prepare"): 2,
        ("dra_allocation_duration_seconds", "high-memory-gpu", "start"): 2,
        ("dra_claim_ready_duration_seconds", "gpu.nvidia.com"): 6,
        ("dra_claim_ready_duration_seconds", "high-memory-gpu"): 2,
        ("dra_claim_lifetime_seconds", "gpu.nvidia.com", "ran"): 2,
        ("dra_claims_completed_total", "ml-team", "gpu.nvidia.com", "ran"): 4,
        ("dra_claims_completed_total", "monitoring", "gpu.nvidia.com", "evicted"): 1,
        ("dra_claims_completed_total", "ai-production", "high-memory-gpu", "evicted"): 1,
        ("dra_claim_evictions_total", "monitoring", "gpu.nvidia.com"): 1,
        ("dra_claim_evictions_total", "ai-production", "high-memory-gpu"): 1,
        ("dra_constraint_violations_total", "gpu.nvidia.com", "taint"): 2,
    }


@pytest.mark.parametrize("cut", [0.65, 6.75, 15.0, 26.85, 33.0, 52.0, 90.0, 140.0, 179.2])
async def test_from_any_cut_the_end_is_the_same(cut: float) -> None:
    full = await whole().at(185)
    late = await Replay(clock=RecordedClock(cut)).listed(events(last=cut)).tell(events(first=cut)).at(185)
    assert reasons(late) == reasons(full)
    assert exceeding(counts(late), counts(full)) == {}
    # Nothing in an object tells that it was allocated once: from a later cut it is just pending.
    seen = {name: "pending" if state == "released" else state for name, state in states(full).items()}
    assert {name: "pending" if state == "released" else state for name, state in states(late).items()} == seen


@settings(max_examples=20)
@given(st.data())
async def test_order_across_kinds_and_repetition_change_nothing(data: st.DataObject) -> None:
    full = await whole().at(185)
    replay = Replay().listed([])
    left: dict[str, list[Arrival]] = {}
    for arrival in events():
        left.setdefault(arrival.kind, []).append(arrival)
    past: list[Arrival] = []
    while left:
        kind = data.draw(st.sampled_from(sorted(left)))
        run, left[kind] = left[kind][:7], left[kind][7:]
        if not left[kind]:
            del left[kind]
        replay.tell(run)
        past += run
        if data.draw(st.booleans()):
            replay.tell(run[-1:])  # once more
        if data.draw(st.integers(0, 5)) == 0:
            replay.listed(past)  # a list without a gap
    mixed = await replay.at(185)
    assert states(mixed) == states(full)
    assert reasons(mixed) == reasons(full)
    assert without_violations(counts(mixed)) == without_violations(counts(full))


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 3), st.booleans()), min_size=1, max_size=12))
async def test_repetition_and_lists_without_a_gap_change_nothing(steps: list[tuple[int, int, bool]]) -> None:
    full = await whole().at(185)
    stream, replay, done = events(), Replay().listed([]), 0
    for length, again, relist in steps:
        run = stream[done:done + length]
        replay.tell(run)
        done += len(run)
        replay.tell(run[-1:] * again)
        if relist:
            replay.listed(stream[:done])
    repeated = await replay.tell(stream[done:]).at(185)
    assert (states(repeated), reasons(repeated)) == (states(full), reasons(full))
    assert counts(repeated) == counts(full)


@settings(max_examples=30)
@given(st.lists(st.integers(0, len(arrivals())), min_size=2, max_size=8, unique=True))
async def test_gaps_count_nothing_twice(borders: list[int]) -> None:
    full = await whole().at(185)
    stream, borders = events(), sorted(borders)
    replay, done = Replay().listed([]), 0
    for begin, end in zip(borders[::2], borders[1::2], strict=False):
        replay.tell(stream[done:begin])  # what comes from here on is lost, until everything is listed again
        replay.clock.seconds = max([replay.clock.seconds, *(arrival.seconds for arrival in stream[begin:end])])
        replay.listed(stream[:end])
        done = end
    gapped = await replay.tell(stream[done:]).at(185)
    assert reasons(gapped) == reasons(full)
    assert exceeding(counts(gapped), counts(full)) == {}


@dataclass(slots=True)
class Heard:
    """An engine behind real watches; tells when it has heard so many changes."""

    engine: Engine
    changes: int = 0
    lists: set[str] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_sync(self, kind: str, objects: list[Any], unreadable: frozenset[str]) -> None:
        await self.engine.take_list(kind, objects, unreadable)
        self.lists.add(kind)
        self.news.set()

    def on_change(self, kind: str, obj: Any, present: bool) -> None:
        self.engine.on_change(kind, obj, present)
        self.changes += 1
        self.news.set()

    async def until(self, done: Callable[[], bool]) -> None:
        """Waits until that is so."""
        async with asyncio.timeout(20):
            while not done():
                self.news.clear()
                await self.news.wait()


def _send(server: SimApiServer, arrival: RawArrival) -> None:
    obj = msgspec.json.decode(arrival.raw)
    kind, meta = SIMULATED[arrival.plural], obj["metadata"]
    if arrival.type == "DELETED":
        server.store.remove(kind, (meta.get("namespace", ""), meta["name"]), obj)
    else:
        server.store.write(kind, obj)


def _name(kind: str, obj: Any) -> tuple[str, str, str]:
    return kind, obj.metadata.namespace, obj.metadata.name


async def test_lists_watches_and_compaction_tell_the_same() -> None:
    full = await whole().at(185)
    replay = Replay()
    heard = Heard(replay.engine)
    kept = {_name(kind, obj) for kind, objects in lists().items() for obj in objects}
    async with serving(None, *ALL_KINDS) as (server, client), asyncio.TaskGroup() as tasks:
        for plural, raws in raw_lists().items():
            server.load(SIMULATED[plural], raws)
        following = [
            tasks.create_task(follow(client, kind, clock=replay.clock, on_sync=heard.on_sync,
                                     on_change=heard.on_change, status=WatchStatus()))
            for kind in KINDS.values()
        ]
        await heard.until(lambda: heard.lists == set(KINDS))
        await server.until_watched(len(KINDS))
        changes = 0
        for raw in raw_arrivals():
            replay.clock.seconds = raw.seconds
            _send(server, raw)
            arrival = told(raw)
            if arrival is None:
                continue  # an event for a reason that nobody watches
            name = _name(arrival.kind, arrival.obj)
            changes += arrival.present or name in kept
            (kept.add if arrival.present else kept.discard)(name)
            await heard.until(lambda changes=changes: heard.changes == changes)  # type: ignore[misc]
        found = await replay.at(185)
        for task in following:
            task.cancel()
    assert (states(found), reasons(found), counts(found)) == (states(full), reasons(full), counts(full))
