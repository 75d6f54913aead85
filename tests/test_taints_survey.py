"""Which GPUs the controller shows as sick, with their taint and what holds it back."""

from __future__ import annotations

from claimscope.claims.model import SickGpu
from claimscope.health.model import Severity
from claimscope.taints.survey import sick_gpus
from taints_help import START, World, a_finding, gpu

LOST, DEGRADED = Severity.LOST, Severity.DEGRADED


def sick(world: World) -> tuple[SickGpu, ...]:
    world.round()
    return sick_gpus(world.reports(), world.standing().values(), world.last.held)


def test_each_gpu_is_there_once_with_its_worst_and_the_strongest_taint() -> None:
    world = World("mode: enforce\nrules: {reset_required: {mode: announce}}", nodes=10)
    world.find(
        a_finding(gpu(1, 0), "pcie_width", DEGRADED, since=START - 9), a_finding(gpu(1, 0), "gpu_lost", LOST),
        a_finding(gpu(2, 0), "reset_required", since=START - 5), a_finding(gpu(3, 0), "pcie_width", DEGRADED),
    )
    found = sick(world)
    assert [(each.uuid, each.node, each.severity, each.rules, each.effect) for each in found] == [
        (gpu(1, 0), "n1", "lost", ("pcie_width", "gpu_lost"), "NoSchedule"),
        (gpu(2, 0), "n2", "unhealthy", ("reset_required",), "None"),
        (gpu(3, 0), "n3", "degraded", ("pcie_width",), "None"),
    ]
    assert [each.since_wall for each in found] == [START - 9, START - 5, START]
    assert [each.held for each in found] == ["", "mode: the mode is announce", ""]


def test_what_is_only_observed_is_shown_without_a_taint() -> None:
    world = World("mode: observe")
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST))
    assert sick(world) == (
        SickGpu(
            uuid=gpu(1, 0), node="n1", severity="lost", rules=("gpu_lost",), since_wall=START, effect="",
            held="mode: the mode is observe",
        ),
    )  # fmt: skip


def test_what_a_person_declared_is_shown_without_a_time() -> None:
    until = "2023-11-20T00:00:00Z"
    world = World(f"overrides: [{{do: pin_unhealthy, uuid: {gpu(1, 0)}, author: ann, until: {until}}}]")
    (found,) = sick(world)
    assert (found.uuid, found.severity, found.rules, found.since_wall, found.effect) == (
        gpu(1, 0), "unhealthy", ("pinned",), None, "NoSchedule",
    )  # fmt: skip


def test_a_healthy_fleet_has_none() -> None:
    assert sick(World()) == ()
