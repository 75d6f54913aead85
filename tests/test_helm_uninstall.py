"""Does what runs before `helm uninstall` lift all that is ours, with the rights that the chart gives it and no more?"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from claimscope.cli import cli
from claimscope.kube.api import ApiClient, OpenAccess
from claimscope.sim.api.faults import HttpFault
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES, NODES, PODS
from claimscope.sim.api.server import SimApiServer
from claimscope.sim.api.store import Kind
from claimscope.taints import stopping
from claimscope.taints.stopping import Workload, workload_of
from controller_process import until
from helm_help import Json, only, render
from rights import CONTROLLER, Warden, warden, warden_of, written
from taints_bench import Bench, finding, serving

UNINSTALL = "system:serviceaccount:claimscope:claimscope-uninstall"
DEPLOYMENTS = Kind(group="apps", version="v1", plural="deployments", kind="Deployment", namespaced=True, scale=True)
DAEMON_SETS = Kind(group="apps", version="v1", plural="daemonsets", kind="DaemonSet", namespaced=True)
ROLES = Kind(
    group="rbac.authorization.k8s.io", version="v1", plural="clusterroles", kind="ClusterRole", status=False
)
KINDS = (*ALL_KINDS, DEPLOYMENTS, DAEMON_SETS, ROLES)
CONTROLLER_PODS = Workload(kind="deployment", name="claimscope-controller")


class Sides:
    """Two clients of one server, each held to its rights: the leader until it is stopped, then the hook."""

    def __init__(self, leader: Warden, hook: Warden) -> None:
        self.now, self.hook = leader, hook

    def rule(self, *asked: Any) -> bool:
        return self.now.rule(*asked)

    def admit(self, *asked: Any) -> None:
        self.now.admit(*asked)


def sides(values: Json | None = None) -> Sides:
    return Sides(
        warden(CONTROLLER, "rbac-controller.yaml", "rbac-controller-node-taints.yaml"),
        warden_of(UNINSTALL, render(values or {})),
    )


def arguments(server: SimApiServer, values: Json | None = None) -> list[str]:
    """What the Job of the chart is started with, against this server."""
    (container,) = only(render(values or {}), "Job")["spec"]["template"]["spec"]["containers"]
    return [*container["args"], "--api-server-url", server.url]


async def invoked(given: list[str]) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, given)


SELECTED = only(render({}), "Deployment")["spec"]["selector"]["matchLabels"]


async def installed(server: SimApiServer, release: str = "claimscope", namespace: str = "claimscope") -> None:
    """What says which release fences; without a name it is there, and not Helm's."""
    notes = {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": namespace} if release else {}
    await server.put(ROLES, {"metadata": {"name": "claimscope-fencing", "annotations": notes}})


async def running(server: SimApiServer, *, pods: int = 2, wanted: int | None = None) -> None:
    """The controller with its pods, one that was evicted long ago, and one of somebody else."""
    meta = {"name": "claimscope-controller", "namespace": "claimscope"}
    spec = {"replicas": pods if wanted is None else wanted, "selector": {"matchLabels": SELECTED}}
    await installed(server)
    await server.put(DEPLOYMENTS, {"metadata": meta, "spec": spec})
    for name in range(pods):
        await a_pod(server, f"claimscope-controller-{name}", "Running", SELECTED)
    await a_pod(server, "claimscope-controller-evicted", "Failed", SELECTED)
    await a_pod(server, "claimscope-agent-x", "Running", {**SELECTED, "app.kubernetes.io/component": "agent"})


async def a_pod(server: SimApiServer, name: str, phase: str, labels: Json) -> None:
    meta = {"name": name, "namespace": "claimscope", "labels": labels}
    await server.put(PODS, {"metadata": meta, "spec": {}, "status": {"phase": phase}})


def replicas(server: SimApiServer) -> object:
    return (server.get(DEPLOYMENTS, "claimscope-controller", "claimscope") or {})["spec"]["replicas"]


async def ended(server: SimApiServer) -> None:
    for name in range(2):
        await server.delete(PODS, f"claimscope-controller-{name}", "claimscope")


@contextlib.asynccontextmanager
async def tainted(tmp_path: Path, both: Sides, kinds: tuple[Kind, ...] = KINDS) -> AsyncIterator[Bench]:
    """A cluster in which claimscope has a rule, a node taint and conditions, and somebody else has theirs."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("mode: enforce\nnode_taints: enforce\nbudgets: {group_share: 0.9, fleet_share: 0.9}\n")
    async with serving(policy=policy, kinds=kinds, rule=both.rule, admit=both.admit) as bench:
        other = {"key": "example.com/rack", "effect": "NoSchedule"}
        node = bench.server.get(NODES, "node-1") or {}
        await bench.server.put(NODES, {**node, "spec": {"taints": [other]}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
        }})  # fmt: skip
        await bench.says("node-1", finding("GPU-1-3", "gpu_lost", "lost"))
        await bench.leader.round()
        await bench.leader.round()
        yield bench


def of_node(bench: Bench) -> tuple[list[str], list[str]]:
    """Keys of the taints and types of the conditions of node-1."""
    node = bench.server.get(NODES, "node-1") or {}
    taints = [each["key"] for each in node.get("spec", {}).get("taints", [])]
    return taints, [each["type"] for each in node.get("status", {}).get("conditions", [])]


async def test_the_hook_stops_the_controller_before_it_lifts_anything(tmp_path: Path, kept_logging: None) -> None:
    both = sides()
    async with tainted(tmp_path, both) as bench:
        assert len(bench.rules()) == 1
        assert "GPUUnhealthy" in of_node(bench)[1]
        mine = {"metadata": {"name": "rack-7"}, "spec": {
            "deviceSelector": {"driver": "gpu.nvidia.com"}, "taint": {"key": "example.com/x", "effect": "NoSchedule"},
        }}  # fmt: skip
        await bench.server.put(DEVICE_TAINT_RULES, mine)
        await running(bench.server)
        both.now = both.hook
        job = asyncio.create_task(invoked(arguments(bench.server)))
        looks = "/api/v1/namespaces/claimscope/pods"
        await until(
            lambda: looks in [path for path, _ in bench.server.requests], 20.0, lambda: str(both.hook.troubles())
        )
        assert (replicas(bench.server), len(bench.rules())) == (0, 2)
        await ended(bench.server)
        result = await job
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.splitlines()[0] == "stopped deployment/claimscope-controller: scaled from 2 to 0"
        found = bench.server.get(DEPLOYMENTS, "claimscope-controller", "claimscope") or {}
        assert found["spec"] == {"replicas": 0, "selector": {"matchLabels": SELECTED}}
        assert list(bench.rules()) == ["rack-7"]
        assert of_node(bench) == (["example.com/rack"], ["Ready"])
        assert both.hook.troubles() == []


async def test_taints_of_nodes_go_where_there_are_no_rules(tmp_path: Path, kept_logging: None) -> None:
    both = sides()
    async with tainted(tmp_path, both, tuple(kind for kind in KINDS if kind is not DEVICE_TAINT_RULES)) as bench:
        assert of_node(bench)[0] == ["example.com/rack", "claimscope.io/lost"]
        both.now = both.hook
        result = await invoked(arguments(bench.server))
        assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "deployment/claimscope-controller is not there")
        assert of_node(bench) == (["example.com/rack"], ["Ready"])
        assert both.hook.troubles() == []


async def test_the_hook_has_no_right_that_it_does_not_use(tmp_path: Path, kept_logging: None) -> None:
    used = set()
    for kinds in (KINDS, tuple(kind for kind in KINDS if kind is not DEVICE_TAINT_RULES)):
        both = sides()
        async with tainted(tmp_path, both, kinds) as bench:
            await running(bench.server, pods=0)
            both.now = both.hook
            name = next(iter(bench.rules()), None) if DEVICE_TAINT_RULES in kinds else None
            if name is not None:  # somebody writes it meanwhile: it is looked at again
                bench.server.fail(f"/apis/resource.k8s.io/v1/devicetaintrules/{name}", HttpFault(status=409))
            assert (await invoked(arguments(bench.server))).exit_code == 0
            used |= both.hook.used
    assert written(sides().hook.given - used) == []


async def test_with_local_fencing_the_agents_are_stopped(kept_logging: None) -> None:
    values: Json = {"agent": {"taintWriter": "local"}, "controller": {"enabled": False}}
    hook = warden_of(UNINSTALL, render(values))
    async with serving(kinds=KINDS, rule=hook.rule, admit=hook.admit) as bench:
        await installed(bench.server)
        await bench.server.put(DAEMON_SETS, {"metadata": {"name": "claimscope-agent", "namespace": "claimscope"}})
        result = await invoked(arguments(bench.server, values))
        assert (result.exit_code, result.stdout.splitlines()) == (
            0, ["stopped daemonset/claimscope-agent: deleted", "there was nothing to lift"],
        )
        assert bench.server.get(DAEMON_SETS, "claimscope-agent", "claimscope") is None
        assert hook.troubles() == []


async def test_pods_that_never_end_are_not_waited_for_for_ever() -> None:
    async with serving(kinds=KINDS) as bench:
        await running(bench.server)
        api = ApiClient(OpenAccess(bench.server.url))
        try:
            said = await stopping.stop(api, "claimscope", CONTROLLER_PODS, seconds=0.05, look_seconds=0.01)
        finally:
            await api.close()
        assert said == (
            "deployment/claimscope-controller has pods after 0.05 s yet: what they write from now on is not lifted"
        )


async def test_what_may_not_be_stopped_is_an_error(kept_logging: None) -> None:
    async with serving(kinds=KINDS) as bench:
        await running(bench.server)
        bench.server.fail(f"{CONTROLLER_PODS.path('claimscope')}/scale", HttpFault(status=403, message="denied"))
        result = await invoked(arguments(bench.server))
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert "denied" in result.stderr


async def test_a_deployment_whose_pods_cannot_be_told_is_no_reason_to_lift(kept_logging: None) -> None:
    async with serving(kinds=KINDS) as bench:
        meta = {"name": "claimscope-controller", "namespace": "claimscope"}
        await bench.server.put(DEPLOYMENTS, {"metadata": meta, "spec": {"selector": {}}})
        given = ["taints", "lift", "--all", "--stop=deployment/claimscope-controller", "--namespace=claimscope"]
        result = await invoked([*given, "--api-server-url", bench.server.url])
        assert result.exit_code == 1
        assert "deployment/claimscope-controller selects its pods by no labels" in result.stderr


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        (("", ""), "nothing is lifted: Helm did not install the ClusterRole claimscope-fencing, so it is not Helm "),
        (("east", "gpu"), "nothing is lifted: the taints of this cluster are those of release `east` in namespace "),
        (("claimscope", "gpu"), "nothing is lifted: the taints of this cluster are those of release `claimscope` in "),
    ],
)
@pytest.mark.parametrize("values", [{}, {"controller": {"enabled": False}}])
async def test_the_hook_does_nothing_where_another_fences_or_not_helm_uninstalls(
    tmp_path: Path, kept_logging: None, owner: tuple[str, str], said: str, values: Json
) -> None:
    """The latter as after `helm template | kubectl apply`, which prints and applies hooks with all else."""
    both = sides(values)
    async with tainted(tmp_path, both) as bench:
        await running(bench.server)
        await installed(bench.server, *owner)
        before = bench.rules(), of_node(bench)
        both.now = both.hook
        result = await invoked(arguments(bench.server, values))
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith(said)
        assert (replicas(bench.server), bench.rules(), of_node(bench)) == (2, *before)
        assert both.hook.used == {("", "clusterroles.rbac.authorization.k8s.io", "get")}


async def test_what_an_earlier_version_of_the_release_put_up_is_lifted(tmp_path: Path, kept_logging: None) -> None:
    """An upgrade took the controller away, and with it the ClusterRole."""
    values: Json = {"controller": {"enabled": False}}
    both = sides(values)
    async with tainted(tmp_path, both) as bench:
        both.now = both.hook
        result = await invoked(arguments(bench.server, values))
        assert (result.exit_code, result.stderr, bench.rules()) == (0, "", {})
        assert of_node(bench) == (["example.com/rack"], ["Ready"])
        assert both.hook.troubles() == []


async def test_a_hook_that_fails_leaves_a_controller_that_can_be_scaled_up_again(
    tmp_path: Path, kept_logging: None
) -> None:
    both = sides()
    async with tainted(tmp_path, both) as bench:
        (name,) = bench.rules()
        await running(bench.server, pods=0, wanted=3)
        both.now = both.hook
        bench.server.fail(f"/apis/resource.k8s.io/v1/devicetaintrules/{name}", HttpFault(status=403, message="denied"))
        first = await invoked(arguments(bench.server))
        assert (first.exit_code, replicas(bench.server), list(bench.rules())) == (1, 0, [name])
        assert first.stdout.splitlines()[0] == "stopped deployment/claimscope-controller: scaled from 3 to 0"
        second = await invoked(arguments(bench.server))
        assert (second.exit_code, list(bench.rules())) == (0, [])


def test_nothing_that_the_hook_needs_outlives_it_when_it_worked() -> None:
    hooks = [each for each in render({}) if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    assert sorted(each["kind"] for each in hooks) == [
        "ClusterRole", "ClusterRoleBinding", "Job", "Role", "RoleBinding", "ServiceAccount",
    ]
    assert {each["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for each in hooks} == {
        "before-hook-creation,hook-succeeded",
    }
    assert only(hooks, "Job")["spec"]["ttlSecondsAfterFinished"] == 86_400


@pytest.mark.parametrize("text", ["controller", "pod/x", "deployment/", "deployment/a/b", ""])
def test_a_workload_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not deployment/NAME or daemonset/NAME"):
        workload_of(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--all", "--stop", "pod/x"], "--stop: `pod/x` is not deployment/NAME or daemonset/NAME"),
        (["GPU-1", "--only-of-release", "x"], "--only-of-release: what is named is lifted whoever wrote it"),
        (["GPU-1", "--stop", "deployment/x"], "--stop: what is named is left away by whoever writes taints"),
    ],
)
def test_the_command_refuses_what_it_cannot_stop(given: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["taints", "lift", *given])
    assert result.exit_code == 2
    assert said in result.stderr


def job(values: Json) -> list[str]:
    return [each["kind"] for each in render(values) if each["kind"] == "Job"]


def test_the_hook_is_there_unless_it_is_not_wanted_or_has_no_rights() -> None:
    """Also where nothing fences now: an earlier version of the release may have."""
    cases: list[Callable[[], list[str]]] = [
        lambda: job({}),
        lambda: job({"controller": {"enabled": False}}),
        lambda: job({"rbac": {"fencing": False}, "controller": {"taintMode": "observe"}}),
        lambda: job({"uninstall": {"liftTaints": False}}),
        lambda: job({"rbac": {"create": False}}),
    ]
    assert [case() for case in cases] == [["Job"], ["Job"], ["Job"], [], []]


def test_what_does_not_fence_is_not_stopped() -> None:
    def stopped(values: Json) -> list[str]:
        (container,) = only(render(values), "Job")["spec"]["template"]["spec"]["containers"]
        return [each for each in container["args"] if each.startswith("--stop=")]

    assert stopped({}) == ["--stop=deployment/claimscope-controller"]
    assert stopped({"rbac": {"fencing": False}, "controller": {"taintMode": "observe"}}) == []
    assert stopped({"controller": {"enabled": False}}) == []
    assert stopped({"controller": {"enabled": False}, "agent": {"taintWriter": "local"}}) == [
        "--stop=daemonset/claimscope-agent",
    ]
