"""The recorded cluster, told to the controller's engine: what it says of each claim, literally."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.claims.engine import Engine
from claimscope.claims.model import ClusterSnapshot
from claimscope.claims.selectors import Selectors
from claimscope.model import Histogram, Sample
from recorded_cluster import START, Arrival, arrivals, lists


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
        for kind, known in objects.items():
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


@pytest.mark.parametrize("cut", [0.65, 6.75, 15.0, 26.85, 33.0, 52.0, 90.0, 140.0, 179.2])
async def test_from_any_cut_the_end_is_the_same(cut: float) -> None:
    full = await whole().at(185)
    late = await Replay(clock=RecordedClock(cut)).listed(events(last=cut)).tell(events(first=cut)).at(185)
    assert reasons(late) == reasons(full)
    # Nothing in an object tells that it was allocated once: from a later cut it is just pending.
    seen = {name: "pending" if state == "released" else state for name, state in states(full).items()}
    assert {name: "pending" if state == "released" else state for name, state in states(late).items()} == seen


@settings(max_examples=20, deadline=None)
@given(st.data())
async def test_order_across_kinds_repetition_and_relists_change_nothing(data: st.DataObject) -> None:
    full = await whole().at(185)
    replay = Replay().listed([])
    left: dict[str, list[Arrival]] = {}
    for arrival in events():
        left.setdefault(arrival.kind, []).append(arrival)
    told: list[Arrival] = []
    while left:
        kind = data.draw(st.sampled_from(sorted(left)))
        run, left[kind] = left[kind][:7], left[kind][7:]
        if not left[kind]:
            del left[kind]
        replay.tell(run)
        told += run
        if data.draw(st.booleans()):
            replay.tell(run[-1:])  # once more
        if data.draw(st.integers(0, 5)) == 0:
            replay.listed(told)
    mixed = await replay.at(185)
    assert states(mixed) == states(full)
    assert reasons(mixed) == reasons(full)
