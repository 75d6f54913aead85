"""The simulated world: the same answer for the same moment, counters that agree with gauges, pods and slices."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.sim import layout
from claimscope.sim.default_pods import default_pods
from claimscope.sim.profiles import PROFILES, profile_named
from claimscope.sim.scenario import (
    Scenario,
    ScenarioError,
    check_scenario,
    decode_scenario,
    load_scenario,
)
from claimscope.sim.workloads import WORKLOADS, Activity, combined
from claimscope.sim.world import World, make_world

TOTALS = [name for name in layout.VARIABLES if name.endswith("_total") or name == "energy_millijoules"]


def variable(world: World, t_seconds: float, name: str, entity: int = 0) -> float:
    return world.state(t_seconds).entities[entity].variables[layout.VARIABLE_INDEX[name]]


@pytest.mark.parametrize("profile", list(PROFILES))
def test_the_order_of_questions_does_not_matter(profile: str) -> None:
    forward, backward = make_world(profile), make_world(profile)
    moments = [0.0, 3.7, 29.95, 30.0, 61.0, 240.3]
    first = [forward.state(t) for t in moments]
    second = [backward.state(t) for t in reversed(moments)]
    assert first == list(reversed(second))


@pytest.mark.parametrize("profile", list(PROFILES))
@settings(max_examples=25)
@given(times=st.lists(st.floats(min_value=0, max_value=600, allow_nan=False), min_size=2, max_size=6).map(sorted))
def test_counters_never_go_back(profile: str, times: list[float]) -> None:
    world = _world(profile)
    states = [world.state(t) for t in times]
    for before, after in itertools.pairwise(states):
        for a, b in zip(before.entities, after.entities, strict=True):
            for name in TOTALS:
                index = layout.VARIABLE_INDEX[name]
                assert a.variables[index] <= b.variables[index] * (1 + 1e-12) + 1e-6


_WORLDS: dict[str, World] = {}


def _world(profile: str) -> World:
    if profile not in _WORLDS:
        _WORLDS[profile] = make_world(profile)
    return _WORLDS[profile]


@pytest.mark.parametrize(
    ("profile", "entity"), [("h100x8", 0), ("h100x8", 1), ("a100x8-mig", 0), ("b200x8", 4), ("l40sx4", 3)]
)
def test_energy_is_the_integral_of_power_through_a_whole_schedule(profile: str, entity: int) -> None:
    world = make_world(profile)
    joules = sum(variable(world, tick / 10 + 0.05, "power_milliwatts", entity) for tick in range(1500)) / 10_000
    assert variable(world, 150.0, "energy_millijoules", entity) / 1000 == pytest.approx(joules, rel=1e-5)


def test_an_idle_gpu_takes_its_idle_power() -> None:
    assert variable(make_world("h100x8"), 1000.0, "energy_millijoules", 7) == pytest.approx(70.0 * 1000 * 1000)


def test_the_state_of_a_far_moment_costs_no_walk_through_every_cell() -> None:
    world = make_world("h100x8")
    assert variable(world, 86_400.0, "energy_millijoules", 7) == pytest.approx(70.0 * 86_400 * 1000)


def names(world: World, t_seconds: float) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Pods with the devices of their claims and of the device plugin."""
    return [
        (
            f"{pod.namespace}/{pod.name}",
            tuple(device for c in pod.containers for claim in c.claims for device in claim.devices),
            tuple(i for c in pod.containers for _, ids in c.devices for i in ids),
        )
        for pod in world.pods(t_seconds)
    ]


def test_pods_come_and_go() -> None:
    world = make_world("h100x8")
    uuid: Callable[[int], str] = profile_named("h100x8").gpu_uuid
    always = [
        ("serving/chat-a", ("gpu-1",), ()),
        ("serving/chat-b", ("gpu-1",), ()),
        ("legacy/render-farm", (), (uuid(2),)),
        ("legacy/notebook-0", (), (f"{uuid(3)}::0",)),
        ("legacy/notebook-1", (), (f"{uuid(3)}::1",)),
        ("gpu-monitoring/gpu-observer", ("gpu-0", "gpu-1"), ()),
    ]
    held = ("ml-research/forgotten-notebook", ("gpu-6",), ())
    assert names(world, 0.0) == [*always, held]
    assert names(world, 30.0) == [
        ("ml-research/train-llm-0", ("gpu-0",), ()),
        *always,
        ("ml-research/finetune-0", ("gpu-4", "gpu-5"), ()),
        held,
    ]
    assert names(world, 130.0) == [
        ("ml-research/train-llm-1", ("gpu-0",), ()),
        *always,
        ("ml-research/finetune-1", ("gpu-4", "gpu-5"), ()),
        held,
    ]


def test_a_shared_claim_is_one_and_a_namesake_is_another() -> None:
    world = make_world("h100x8")
    uids = {
        f"{pod.name}": claim.uid
        for t in (30.0, 130.0)
        for pod in world.pods(t)
        for container in pod.containers
        for claim in container.claims
    }
    assert uids["chat-a"] == uids["chat-b"]
    assert uids["train-llm-0"] != uids["train-llm-1"]


def test_mig_pods_and_slices() -> None:
    world = make_world("a100x8-mig", node_name="node-1")
    held = {name: (dra, plugin) for name, dra, plugin in names(world, 30.0)}
    devices = {device["name"]: device["attributes"] for device in world.slices("node-1")[0]["spec"]["devices"]}
    assert held["ml-research/notebook"] == (("gpu-0-mig-3g20gb-9-0",), ())
    assert held["serving/small-model-0"] == (("gpu-0-mig-1g5gb-19-4",), ())
    assert held["serving/embedder"] == ((), (devices["gpu-1-mig-2g10gb-14-0"]["uuid"]["string"],))
    assert list(devices) == [
        "gpu-0-mig-3g20gb-9-0",
        "gpu-0-mig-1g5gb-19-4",
        "gpu-0-mig-1g5gb-19-5",
        "gpu-1-mig-2g10gb-14-0",
        "gpu-1-mig-2g10gb-14-2",
        "gpu-1-mig-1g5gb-19-4",
        "gpu-1-mig-1g5gb-19-5",
        "gpu-1-mig-1g5gb-19-6",
        *(f"gpu-{gpu}" for gpu in range(2, 8)),
    ]
    mig = devices["gpu-0-mig-1g5gb-19-4"]
    assert mig["type"] == {"string": "mig"}
    assert mig["profile"] == {"string": "1g.5gb"}
    assert mig["parentUUID"] == {"string": world.profile.gpu_uuid(0)}


def test_claims_as_the_api_server_has_them() -> None:
    world = make_world("h100x8", node_name="n")
    claims = {claim["metadata"]["name"]: claim for claim in world.claims(30.0)}
    assert claims["chat-gpu"]["status"]["allocation"]["devices"]["results"] == [
        {"request": "gpu", "driver": "gpu.nvidia.com", "pool": "n", "device": "gpu-1"}
    ]
    assert [user["name"] for user in claims["chat-gpu"]["status"]["reservedFor"]] == ["chat-a", "chat-b"]
    results = claims["observe"]["status"]["allocation"]["devices"]["results"]
    assert [result["adminAccess"] for result in results] == [True, True]


def test_the_observer_does_no_work() -> None:
    assert make_world("h100x8").state(0.0).entities[0].processes == ()


@pytest.mark.parametrize("profile", list(PROFILES))
def test_default_pods_fit_their_profile(profile: str) -> None:
    chosen = profile_named(profile)
    check_scenario(Scenario(pods=default_pods(chosen)), chosen, layout.FUNCTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("faults: [{kind: quake, at: 1}]", "scenario: Invalid value 'quake' - at `$.faults[0].kind`"),
        (
            "faults: [{kind: xid, at: 1, gpu: 0, code: 31, colour: red}]",
            "scenario: Object contains unknown field `colour` - at `$.faults[0]`",
        ),
        (
            "faults: [{kind: xid, at: 1, gpu: 9, code: 31}]",
            "fault xid at 1.0 s: no GPU 9; h100x8 has 8, counted from 0",
        ),
        (
            "faults: [{kind: hang, at: 1, gpu: 0, function: nvmlMagic}]",
            "fault hang at 1.0 s: no simulated function 'nvmlMagic'",
        ),
        (
            "faults: [{kind: nvlink_down, at: 1, gpu: 0, link: 18}]",
            "fault nvlink_down at 1.0 s: no NVLink 18; h100x8 has 18 per GPU",
        ),
        (
            "faults: [{kind: mig_change, at: 1, gpu: 0, layout: [7g.80gb, 1g.10gb]}]",
            "fault mig_change at 1.0 s: MIG profiles 7g.80gb, 1g.10gb do not fit on one NVIDIA H100 80GB HBM3",
        ),
        (
            "pods: [{namespace: a, name: b, workload: sleeping}]",
            "pod a/b: no workload 'sleeping'; there are: training, inference, data_starved, crowded, idle",
        ),
        (
            "pods: [{namespace: a, name: b, workload: idle, plugin: {nvidia.com/gpu: ['gpu0']}}]",
            "'gpu0' is no device; write \"gpu:0\", \"mig:0/1\" or \"gpu:0::1\"",
        ),
    ],
)  # fmt: skip
def test_what_a_wrong_scenario_is_told(text: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        make_world("h100x8", decode_scenario(text))
    assert str(caught.value) == message


def test_a_missing_scenario_file(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(tmp_path / "none.yaml")
    assert str(caught.value) == f"cannot read the scenario file {tmp_path}/none.yaml: No such file or directory"


def test_an_unknown_profile() -> None:
    with pytest.raises(
        ValueError, match="no simulated profile 'h200x8'; there are: h100x8, a100x8-mig, b200x8, l40sx4, a100x4-bridge"
    ):
        make_world("h200x8")


def test_repeated_xids() -> None:
    world = make_world("h100x8", decode_scenario("faults: [{kind: xid, at: 5, gpu: 1, code: 94, every: 10}]"))
    assert [(event.at, event.data) for event in world.events(0.0, 30.0)] == [(5.0, 94), (15.0, 94), (25.0, 94)]
    assert [event.at for event in world.events(5.0, 15.0)] == [15.0]


@given(
    cell=st.integers(min_value=0, max_value=100_000),
    kinds=st.lists(st.sampled_from(sorted(WORKLOADS)), min_size=1, max_size=4),
)
def test_activity_is_a_part_of_the_whole(cell: int, kinds: list[str]) -> None:
    activity = combined([WORKLOADS[kind].activity(cell) for kind in kinds])
    assert all(0.0 <= getattr(activity, name) <= 1.0 for name in Activity.__slots__)


def test_power_stays_within_its_limit() -> None:
    scenario = "pods: [" + ", ".join(
        f"{{namespace: a, name: p{n}, workload: training, plugin: {{nvidia.com/gpu.shared: ['gpu:0::{n}']}}}}"
        for n in range(4)
    ) + "]"  # fmt: skip
    world = make_world("h100x8", decode_scenario(scenario))
    powers = {variable(world, tick / 10, "power_milliwatts") for tick in range(24)}
    assert max(powers) == 700_000
    assert variable(world, 10.0, "power_cap_total") > 1e9
    assert int(variable(world, 10.0, "event_reasons")) & 0x4
