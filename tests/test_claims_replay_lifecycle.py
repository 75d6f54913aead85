"""The recorded cluster's claims: their states, times and ends, from any start and in any order of the two watches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.claims.cluster import Cluster
from claimscope.claims.lifecycle import Lifecycle
from claimscope.claims.model import ClaimView
from lifecycle_data import figures_of
from recorded_cluster import START, Arrival, arrivals, lists

EXTENDED = "legacy-extended-extended-resources-2cr6w"
KINDS = ("resourceclaims", "pods", "events/FailedPrepareDynamicResources")
NEWS = tuple(arrival for arrival in arrivals() if arrival.kind in KINDS)



class Replay:
    def __init__(self, *, since: float = 0.0) -> None:
        self.cluster = Cluster()
        self.lifecycle = Lifecycle(count_since_wall=START + since)
        self.history: dict[str, list[str]] = {}
        self.sync("resourceslices", lists()["resourceslices"], since)

    def sync(self, kind: str, objects: Iterable[object], at: float) -> None:
        changes = self.cluster.sync(kind, objects)
        self.lifecycle.take(changes, self.cluster, arrival_ns=round(at * 1e9), wall=START + at)

    def feed(self, news: Sequence[Arrival]) -> Replay:
        for arrival in news:
            changes = self.cluster.apply(arrival.kind, arrival.obj, arrival.present)
            self.lifecycle.take(
                changes, self.cluster, arrival_ns=round(arrival.seconds * 1e9), wall=START + arrival.seconds
            )
            if changes and arrival.kind == "resourceclaims" and not arrival.present:
                self.history.setdefault(arrival.obj.metadata.name, []).append("deleted")
            for view in self.lifecycle.views.values():
                states = self.history.setdefault(view.name, [])
                if not states or states[-1] != view.state.value:
                    states.append(view.state.value)
        return self

    def states(self) -> dict[str, str]:
        return {view.name: view.state.value for view in self.lifecycle.views.values()}

    def figures(self) -> dict[tuple[str, ...], float]:
        return figures_of(self.lifecycle)

    def counts(self) -> dict[tuple[str, ...], float]:
        return {key: value for key, value in self.figures().items() if key[-1] != "sum"}

    def view(self, name: str) -> ClaimView:
        return next(view for view in self.lifecycle.views.values() if view.name == name)


@cache
def whole() -> Replay:
    return Replay().feed(NEWS)


def test_every_claims_states_over_time() -> None:
    assert whole().history == {
        "pytorch-training-0-gpus-hdz6r": ["pending", "reserved", "running", "reserved", "released", "deleted"],
        "shared-inference": ["pending", "reserved", "running", "reserved", "released"],
        "vllm-gpu-claim": ["pending", "reserved", "running", "reserved", "released"],
        EXTENDED: ["pending", "reserved", "running", "reserved", "released", "deleted"],
        "wants-h200": ["pending"],
        "wants-missing-class": ["pending"],
        "wants-eight": ["pending"],
        "unreferenced": ["pending"],
        "prefers-h200": ["pending", "reserved", "prepared", "running"],
        "observe-all": ["pending", "reserved", "prepared", "running", "reserved", "released"],
        "only-tainted-left": ["pending", "reserved", "prepared", "running"],
        "driver-down": ["pending", "reserved", "prepared", "running"],
        "taint-test2": ["pending", "reserved", "prepared", "running", "reserved", "released"],
    }


def test_figures_at_the_end() -> None:
    # The claim of the down driver is bound at 51.867 and prepared at 136.818; the one that was forbidden once at 6.738
    # and 92.816. The observer (adminAccess alone) is in none of the phases.
    assert whole().figures() == {
        ("phase", "gpu.nvidia.com", "scheduling", "count"): 6,
        ("phase", "gpu.nvidia.com", "scheduling", "sum"): 0.145,
        ("phase", "gpu.nvidia.com", "binding", "count"): 6,
        ("phase", "gpu.nvidia.com", "binding", "sum"): 0.044,
        ("phase", "gpu.nvidia.com", "prepare", "count"): 6,
        ("phase", "gpu.nvidia.com", "prepare", "sum"): 85.205,
        ("phase", "gpu.nvidia.com", "start", "count"): 6,
        ("phase", "gpu.nvidia.com", "start", "sum"): 0.021,
        ("phase", "high-memory-gpu", "scheduling", "count"): 2,
        ("phase", "high-memory-gpu", "scheduling", "sum"): 0.066,
        ("phase", "high-memory-gpu", "binding", "count"): 2,
        ("phase", "high-memory-gpu", "binding", "sum"): 0.019,
        ("phase", "high-memory-gpu", "prepare", "count"): 2,
        ("phase", "high-memory-gpu", "prepare", "sum"): 86.135,
        ("phase", "high-memory-gpu", "start", "count"): 2,
        ("phase", "high-memory-gpu", "start", "sum"): 0.004,
        ("ready", "gpu.nvidia.com", "count"): 6,
        ("ready", "gpu.nvidia.com", "sum"): 85.415,
        ("ready", "high-memory-gpu", "count"): 2,
        ("ready", "high-memory-gpu", "sum"): 86.224,
        ("lifetime", "gpu.nvidia.com", "ran", "count"): 2,
        ("lifetime", "gpu.nvidia.com", "ran", "sum"): 174.518,
        ("completed", "monitoring", "gpu.nvidia.com", "evicted"): 1,
        ("completed", "ai-production", "high-memory-gpu", "evicted"): 1,
        ("completed", "ml-team", "gpu.nvidia.com", "ran"): 4,
        ("evictions", "monitoring", "gpu.nvidia.com"): 1,
        ("evictions", "ai-production", "high-memory-gpu"): 1,
    }


def test_the_claim_of_the_down_driver_alone() -> None:
    pods = {"driver-down", "stuck-prepare"}
    replay = Replay().feed([arrival for arrival in NEWS if arrival.obj.metadata.name in pods])
    sums = {key[-2]: value for key, value in replay.figures().items() if key[-1] == "sum"}
    assert sums == {
        "scheduling": 0.024, "binding": 0.004, "prepare": 84.951, "start": 0.009, "gpu.nvidia.com": 84.988,
    }


def test_prioritized_takes_its_second_alternative() -> None:
    view = whole().view("prefers-h200")
    assert (view.alternative, view.deviceclass, view.requested_devices) == ("gpu/any", "high-memory-gpu", 1)
    [device] = view.devices
    assert (str(device.key), device.request) == ("gpu.nvidia.com/gpu-node-1/gpu-1", "gpu/any")
    assert device.uuid == "GPU-01000100-0000-0000-0000-000000000001"
    assert (device.node, device.health) == ("gpu-node-1", "")  # the driver has no health service


def test_what_is_done_while_held() -> None:
    replay = Replay().feed([arrival for arrival in NEWS if arrival.seconds < 60])
    doing = {
        view.name: (view.doing.value, (view.doing_since_wall or 0.0) - START)
        for view in replay.lifecycle.views.values()
        if view.doing is not None
    }
    assert doing == {"prefers-h200": ("prepare_failed", 6.0), "driver-down": ("prepare_failed", 51.0)}


def test_a_template_claim_and_an_extended_one() -> None:
    replay = Replay().feed([arrival for arrival in NEWS if arrival.seconds < 5])
    trained, extended = replay.view("pytorch-training-0-gpus-hdz6r"), replay.view(EXTENDED)
    assert (trained.source, trained.template, trained.requested_devices, trained.pods) == (
        "template", "training-gpu-claim", 2, ("pytorch-training-0",),
    )
    assert (extended.source, extended.template, extended.state.value) == ("extended_resource", "", "running")


def test_events_repeated_change_nothing() -> None:
    twice = [arrival for arrival in NEWS for _ in range(2)]
    replay = Replay().feed(twice)
    assert replay.history == whole().history
    assert replay.figures() == whole().figures()


def _like_after_restart(states: dict[str, str]) -> dict[str, str]:
    """Nothing in an object tells that it was allocated once."""
    return {name: "pending" if state == "released" else state for name, state in states.items()}


@settings(max_examples=60)
@given(cut=st.integers(0, len(NEWS) - 1))
def test_a_restart_at_any_moment_repeats_and_invents_nothing(cut: int) -> None:
    before = Replay().feed(NEWS[:cut])
    since = NEWS[cut - 1].seconds if cut else 0.0
    after = Replay(since=since)
    for kind, table in (("resourceclaims", before.cluster.claims), ("pods", before.cluster.pods)):
        after.sync(kind, table.values(), since)
    after.feed(NEWS[cut:])
    assert _like_after_restart(after.states()) == _like_after_restart(whole().states())
    timed = {key: value for key, value in whole().counts().items() if key[0] in ("phase", "ready", "evictions")}
    added = {key: before.counts().get(key, 0) + after.counts().get(key, 0) for key in timed}
    assert added == timed


@settings(max_examples=60)
@given(choices=st.lists(st.booleans(), max_size=len(NEWS)))
def test_the_two_watches_in_any_order(choices: list[bool]) -> None:
    claims = [arrival for arrival in NEWS if arrival.kind == "resourceclaims"]
    others = [arrival for arrival in NEWS if arrival.kind != "resourceclaims"]
    merged: list[Arrival] = []
    for claims_first in choices:
        queue = claims if claims_first else others
        if queue:
            merged.append(queue.pop(0))
    replay = Replay().feed([*merged, *claims, *others])
    assert replay.states() == whole().states()
    assert replay.counts() == whole().counts()


@settings(max_examples=60)
@given(gap=st.tuples(st.integers(0, len(NEWS)), st.integers(0, len(NEWS))))
def test_a_relist_after_any_gap_ends_in_the_same_states(gap: tuple[int, int]) -> None:
    begin, end = sorted(gap)
    replay = Replay().feed(NEWS[:begin])
    then = Replay().feed(NEWS[:end]).cluster
    at = NEWS[end - 1].seconds if end else 0.0
    replay.sync("resourceclaims", then.claims.values(), at)
    replay.sync("pods", then.pods.values(), at)
    replay.feed(NEWS[end:])
    assert _like_after_restart(replay.states()) == _like_after_restart(whole().states())
    most = whole().counts()
    timed = {key: value for key, value in replay.counts().items() if key[0] in ("phase", "ready", "evictions")}
    assert {key: value for key, value in timed.items() if value > most.get(key, 0)} == {}


def test_a_relist_tells_ends_that_carry_stamps() -> None:
    """The watches break at 60 and the lists are read at 100: two pods have gone, one has come to run."""
    replay = Replay().feed([arrival for arrival in NEWS if arrival.seconds < 60])
    known = replay.counts()
    then = Replay().feed([arrival for arrival in NEWS if arrival.seconds < 100]).cluster
    replay.sync("resourceclaims", then.claims.values(), 100.0)
    replay.sync("pods", then.pods.values(), 100.0)
    gained = {key: value - known.get(key, 0) for key, value in replay.counts().items() if value != known.get(key, 0)}
    assert gained == {
        ("phase", "high-memory-gpu", "prepare", "count"): 1,
        ("phase", "high-memory-gpu", "start", "count"): 1,
        ("ready", "high-memory-gpu", "count"): 1,
        ("completed", "ml-team", "gpu.nvidia.com", "ran"): 3,
    }
    assert replay.figures()["phase", "high-memory-gpu", "prepare", "sum"] == 86.057  # 0.057 witnessed, 86 by stamps
