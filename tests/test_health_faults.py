"""Every rule that a reading or an event can speak for is caused by a fault of the simulation, on its GPU alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from claimscope.health.rules import RULES
from claimscope.sim import drills
from claimscope.sim.drills import AT, DRILLS, GPU, MINUTES, OTHERWISE, Drill
from claimscope.sim.scenario import ScenarioError, XidFault, decode_scenario
from claimscope.sim.stretched import stretched_node
from claimscope.sim.world import make_world


@pytest.mark.parametrize("drill", DRILLS, ids=[drill.rule for drill in DRILLS])
def test_a_fault_of_the_simulation_is_found_on_its_gpu_alone(drill: Drill, cc: str) -> None:
    with stretched_node(drill.profile, *drill.faults, pods=drill.pods) as node:
        node.run(AT - 60.0 - 5.0)
        assert node.findings() == set()
        node.run(drill.seconds + 5.0)
        found = node.findings()
    assert (GPU, drill.rule) in found
    assert {gpu for gpu, _ in found} == {GPU}


def test_the_page_of_simulated_faults_is_current() -> None:
    page = Path(__file__).parent.parent / "docs" / "simulator.md"
    assert page.read_text(encoding="utf-8") == drills.document(), "run `make docs`"


def test_of_every_rule_it_is_said_how_it_can_be_played() -> None:
    said = [drill.rule for drill in DRILLS] + [rule for rule, _ in OTHERWISE]
    assert sorted(said) == sorted(rule.key for rule in RULES)


@pytest.mark.parametrize("code", [13, 31, 43, 45])
def test_xids_of_an_application_raise_nothing(code: int, cc: str) -> None:
    with stretched_node("h100x8", XidFault(at=AT, gpu=GPU, code=code, every=60.0)) as node:
        assert node.run(20 * MINUTES).findings() == set()


@pytest.mark.parametrize("profile", ["h100x8", "a100x8-mig", "b200x8", "l40sx4", "a100x4-bridge"])
def test_hours_of_a_healthy_node_raise_nothing(profile: str, cc: str) -> None:
    with stretched_node(profile, window_seconds=15.0) as node:
        assert node.run(2 * 3600.0).findings() == set()
        assert dict(node.watch.view().began) == {}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("{kind: answer, at: 1, gpu: 0, value: 1}", "give either function or field"),
        ("{kind: answer, at: 1, gpu: 0, value: 1, function: nvmlDeviceGetIndex, field: 3}", "give either function or"),
        ("{kind: answer, at: 1, gpu: 0, value: 1, function: nvmlNothing}", "no simulated function 'nvmlNothing'"),
        ("{kind: answer, at: 1, gpu: 9, value: 1, field: 3}", "no GPU 9"),
        ("{kind: driver_event, at: 1, gpu: 0, event: bad_luck}", "Invalid enum value 'bad_luck'"),
        ("{kind: clocks_low, at: 1, gpu: 0, ratio: 0}", "found ratio 0, expected more than 0 and at most 1"),
    ],
)
def test_a_fault_that_cannot_be_played_is_refused(fault: str, why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        make_world("h100x8", decode_scenario(f"faults:\n  - {fault}\n"))


def test_a_card_without_nvlink_has_no_fabric_to_break() -> None:
    fault = decode_scenario("faults:\n  - {kind: fabric, at: 1, gpu: 0, state: not_started}\n")
    with pytest.raises(ScenarioError, match="the GPUs of l40sx4 have no NVLink fabric"):
        make_world("l40sx4", fault)
