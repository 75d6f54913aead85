"""Kubernetes 1.34 to 1.37, with and without the API of DeviceTaintRules, and upgrades while rules stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES, NODES, in_version
from claimscope.sim.api.server import Kind
from taints_bench import Bench, finding, lift, serving

BROKEN = finding("GPU-1-3")
SLOW = finding("GPU-1-4", "pcie_width", "degraded")
BOTH = {"gpu-3": "unhealthy NoSchedule", "gpu-4": "degraded None"}
NONE: dict[str, str] = {}
NODE_TAINT = ["claimscope.io/unhealthy=xid_fatal:PreferNoSchedule"]


def kinds(*versions: str) -> tuple[Kind, ...]:
    """What a server serves, with DeviceTaintRules in these versions."""
    others = tuple(kind for kind in ALL_KINDS if kind is not DEVICE_TAINT_RULES)
    return (*others, *(in_version(DEVICE_TAINT_RULES, version) for version in versions))


def a_policy(folder: Path, *, alpha: bool = False, nodes: bool = True) -> Path:
    file = folder / "policy.yaml"
    file.write_text(
        f"mode: enforce\nalpha_api: {str(alpha).lower()}\nnode_taints: {'enforce' if nodes else 'none'}\n"
    )
    return file


def node_taints(bench: Bench) -> list[str]:
    node = bench.server.get(NODES, "node-1") or {}
    return [f"{each['key']}={each['value']}:{each['effect']}" for each in node["spec"].get("taints", [])]


def written_as(bench: Bench) -> set[str]:
    return {each.split("/")[3] for each in bench.rule_writes()}


def shown_mode(bench: Bench) -> tuple[str, str]:
    """The mode that is in force, and why it is no higher one."""
    for each in bench.leader.fencing.own_samples():
        if each.family == "claimscope_controller_taint_mode_info":
            labels = dict(each.labels)
            return labels["mode"], labels["reason"]
    raise AssertionError("no mode is shown")


async def see(bench: Bench, seconds: float = 61) -> None:
    """The leader asks the server anew what it is, and has another round."""
    bench.clock.advance(seconds)
    await bench.says("node-1", BROKEN, SLOW)
    await bench.says("node-2")
    await bench.leader.round()


ABSENT, BUG, ALPHA, UNKNOWN = "api_absent", "scheduler_bug", "alpha_api", "version_unknown"


@pytest.mark.parametrize(
    ("release", "served", "alpha", "mode", "effects"),
    [
        # By the default of each release.
        ("v1.34.2", (), False, ("observe", ABSENT), NONE),
        ("v1.35.0", (), False, ("observe", ABSENT), NONE),
        ("v1.36.3", (), False, ("observe", ABSENT), NONE),
        ("v1.37.0", ("v1", "v1beta2"), False, ("enforce", ""), BOTH),
        # With the API enabled by hand.
        ("v1.34.2", ("v1alpha3",), False, ("observe", ALPHA), NONE),
        ("v1.34.2", ("v1alpha3",), True, ("observe", ALPHA), NONE),
        ("v1.35.0", ("v1alpha3",), False, ("observe", ALPHA), NONE),
        ("v1.35.0", ("v1alpha3",), True, ("enforce", ""), BOTH),
        ("v1.36.0", ("v1beta2",), False, ("observe", BUG), NONE),
        ("v1.36.1", ("v1beta2", "v1alpha3"), True, ("observe", BUG), NONE),
        ("v1.36.2", ("v1beta2",), False, ("observe", BUG), NONE),
        ("v1.36.2", ("v1alpha3",), True, ("observe", ALPHA), NONE),
        ("v1.36.3", ("v1beta2",), False, ("enforce", ""), BOTH),
        ("v1.36.3", ("v1alpha3",), True, ("observe", ALPHA), NONE),
        ("v1.37.0-alpha.1", ("v1beta2",), False, ("observe", BUG), NONE),
        ("v1.37.0-beta.0", ("v1",), False, ("observe", BUG), NONE),
        ("v1.37.0-rc.0", ("v1",), False, ("enforce", ""), BOTH),
        # Taken away by hand.
        ("v1.37.0", (), False, ("observe", ABSENT), NONE),
        ("v1.37.0", ("v1beta2",), False, ("enforce", ""), BOTH),
        # A version that says nothing.
        ("custom", ("v1beta2",), False, ("observe", UNKNOWN), NONE),
        ("custom", ("v1",), False, ("announce", UNKNOWN), {"gpu-3": "unhealthy None", "gpu-4": "degraded None"}),
        ("custom", ("v1alpha3",), True, ("observe", ALPHA), NONE),
    ],
)
async def test_what_is_written_where(
    release: str, served: tuple[str, ...], alpha: bool, mode: tuple[str, str], effects: dict[str, str], tmp_path: Path
) -> None:
    policy = a_policy(tmp_path, alpha=alpha)
    async with serving(policy=policy, kinds=kinds(*served), git_version=release) as bench:
        for _ in range(2):
            await see(bench)
        assert shown_mode(bench) == mode
        assert (bench.effects() if served else NONE) == effects
        assert written_as(bench) == ({served[0]} if effects else set())
        # Where devices cannot be fenced one by one, the node can; conditions are there in any case.
        assert node_taints(bench) == (NODE_TAINT if mode[0] == "observe" else [])
        assert bench.conditions("node-1")["GPUUnhealthy"] == ("True", "GPUFindings")


async def test_an_upgrade_from_alpha_through_a_release_with_the_bug_to_the_stable_api(tmp_path: Path) -> None:
    policy = a_policy(tmp_path, alpha=True)
    async with serving(policy=policy, kinds=kinds("v1alpha3"), git_version="v1.35.4") as bench:
        await see(bench)
        assert (bench.effects(), node_taints(bench)) == (BOTH, [])
        for release, served, seconds, effects, tainted in (
            ("v1.36.1", ("v1beta2", "v1alpha3"), 0, NONE, NODE_TAINT),  # its scheduler exits while any rule stands
            ("v1.36.3", ("v1beta2", "v1alpha3"), 0, NONE, NODE_TAINT),  # the scheduler may be upgraded later
            ("v1.36.3", ("v1beta2", "v1alpha3"), 1800, BOTH, []),
            ("v1.37.0", ("v1", "v1beta2"), 0, BOTH, []),
        ):
            bench.server.upgrade(release, kinds(*served))
            bench.clock.advance(seconds)
            await see(bench)
            await see(bench)  # a taint of the node goes when the rules stand
            assert (bench.effects(), node_taints(bench)) == (effects, tainted), release
            before = bench.rule_writes()
            await see(bench)
            assert bench.rule_writes() == before, release
        assert written_as(bench) == {"v1alpha3", "v1beta2"}  # what stands is as good in v1


async def test_a_rollback_to_a_release_with_the_bug_lifts_what_stands(tmp_path: Path) -> None:
    policy = a_policy(tmp_path, nodes=False)
    async with serving(policy=policy, kinds=kinds("v1", "v1beta2"), git_version="v1.37.0") as bench:
        await see(bench)
        assert bench.effects() == BOTH
        bench.server.upgrade("v1.36.2", kinds("v1beta2"))
        await see(bench)
        assert bench.effects() == NONE
        assert bench.rule_writes()[-1].startswith("DELETE /apis/resource.k8s.io/v1beta2/")
        assert node_taints(bench) == []  # nobody asked for that


async def test_taking_the_opt_in_to_alpha_back_lifts_what_stands(tmp_path: Path) -> None:
    policy = a_policy(tmp_path, alpha=True, nodes=False)
    async with serving(policy=policy, kinds=kinds("v1alpha3"), git_version="v1.35.4") as bench:
        await see(bench)
        assert bench.effects() == BOTH
        a_policy(tmp_path, alpha=False, nodes=False)
        await see(bench)
        assert bench.effects() == NONE


async def test_rules_in_alpha_are_found_by_who_uninstalls(tmp_path: Path) -> None:
    policy = a_policy(tmp_path, alpha=True, nodes=False)
    async with serving(policy=policy, kinds=kinds("v1alpha3"), git_version="v1.35.4") as bench:
        await see(bench)
        await lift(bench, all_of_ours=True)
        assert bench.effects() == NONE


async def test_rules_that_select_by_class_as_they_could_once_are_not_taken_for_all_devices(tmp_path: Path) -> None:
    async with serving(kinds=kinds("v1alpha3"), git_version="v1.34.2") as bench:
        selectors = {"deviceClassName": "gpu.nvidia.com"}
        taint = {"key": "example.com/x", "value": "", "effect": "NoSchedule"}
        await bench.server.put(
            DEVICE_TAINT_RULES, {"metadata": {"name": "old"}, "spec": {"deviceSelector": selectors, "taint": taint}}
        )
        await bench.leader.round()
        assert bench.leader.value("dra_taint_budget_used", "fleet") == 0.0


async def test_the_next_leader_does_not_trust_an_upgraded_server_at_once_either() -> None:
    async with serving(kinds=kinds("v1beta2"), git_version="v1.36.2") as bench:
        await see(bench)
        bench.server.upgrade("v1.36.3", kinds("v1beta2"))
        two = bench.leader = bench.another("two")
        await see(bench)
        assert (bench.effects(), shown_mode(bench)) == (NONE, ("observe", BUG))
        bench.clock.advance(1740)
        await see(bench)
        assert (bench.effects(), two.fencing is bench.leader.fencing) == (BOTH, True)
