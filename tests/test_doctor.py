"""What `claimscope doctor` finds on a node and at an API server."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import yaml
from aiohttp import web

from claimscope.config import Config, ControllerConfig
from claimscope.doctor import checks
from claimscope.doctor import facts as gathering
from claimscope.doctor.facts import ApiAccess, ControllerFacts, Facts, KernelLogFacts
from claimscope.doctor.findings import Verdict
from claimscope.doctor.gpu import GpuFacts
from claimscope.doctor.privileges import Privileges
from claimscope.health.sources import read_thresholds
from claimscope.kube import rights
from claimscope.kube.rights import Denied, Need
from claimscope.nvml.probe import Probe, ProbedDevice
from claimscope.sim.api.access import Asked, User
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES
from claimscope.sim.api.server import SimApiServer
from claimscope.taints import guard
from helm_help import nested, render
from serving_help import served as guarded
from test_security_page import allowed
from test_web import Agent, serving
from tls_files import Authority

MANIFESTS = Path(__file__).parent.parent / "deploy/manifests"


LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65"


def facts(**changes: object) -> Facts:
    """A node on which everything is as it should be, but for `changes`."""
    good: dict[str, object] = {
        "config": Config(lease_namespace="claimscope"),
        "nvml": Probe(
            driver_version="580.65", devices=(ProbedDevice(uuid="GPU-1", model="NVIDIA H100"),), library_file=LIBRARY
        ),
        "kubelet_error": None,
        "api": ApiAccess(source="service account", allowed=guard.allowed("v1.37.1", "v1"), denied=()),
        "state_error": None,
        "control_error": None,
        "port_error": None,
        "host_pids": False,
        "gpu": GpuFacts(
            environment={"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}, injected=True,
            kernel_driver="580.65", kernel_gpus=1, nodes={"/dev/nvidiactl": None, "/dev/nvidia0": None}, mig_monitor=2,
        ),
        "privileges": Privileges(),
    }
    return Facts(**(good | changes))  # type: ignore[arg-type]  # a test's shorthand


def test_doctor_on_a_good_node() -> None:
    assert [finding.line for finding in checks.examine(facts())] == [
        f"ok    gpu access    runtime class: {LIBRARY}, 1 device nodes",
        "ok    nvml          driver 580.65",
        "ok    devices       1 x NVIDIA H100",
        "ok    mig           no GPU has MIG switched on",
        "ok    privileges    uid 0, no capability",
        "ok    kernel log    not read: XIDs come from NVML alone",
        "ok    thresholds    the defaults",
        "ok    kubelet       /var/lib/kubelet/pod-resources/kubelet.sock answers",
        "ok    api server    reachable with the service account",
        "ok    lease         goes to namespace claimscope",
        "ok    journal       /var/lib/claimscope/agent.json can be written",
        "ok    control       /run/claimscope/agent.sock can be made",
        "ok    port          :19400 is free",
        "ok    web           plain HTTP, open to everybody",
        "ok    pids          a container's own; no collector needs the host's",
        "ok    rights        all that are needed",
    ]


@pytest.mark.parametrize(
    ("changes", "verdict", "expected"),
    [
        (
            {"kubelet_error": 2},
            Verdict.WARN,
            "kubelet       /var/lib/kubelet/pod-resources/kubelet.sock: no such file or directory: mount "
            "/var/lib/kubelet/pod-resources from the host, or set --attribution=off",
        ),
        (
            {"kubelet_error": 13},
            Verdict.WARN,
            "kubelet       /var/lib/kubelet/pod-resources/kubelet.sock: permission denied: run as uid 0, the socket "
            "is root's alone, or set --attribution=off",
        ),
        (
            {"port_error": 98},
            Verdict.WARN,
            "port          :19400 is taken: what answers there is not claimscope: end it, or choose another with "
            "--web-listen-address",
        ),
        (
            {"host_pids": True},
            Verdict.WARN,
            "pids          the host's, which no collector needs: set hostPID: false: with it the agent may end every "
            "process of root on the node",
        ),
        (
            {"nvml": Probe()},
            Verdict.FAIL,
            "devices       NVML shows no GPU: check `nvidia-smi -L` on the node, and NVIDIA_VISIBLE_DEVICES=all in a "
            "container",
        ),
        (
            {"nvml": Probe(lost={"GPU-1": "the GPU must be reset", "GPU-2": "as well"})},
            Verdict.FAIL,
            "devices       GPU-1 and 1 more: the GPU must be reset",
        ),
        (
            {"nvml": Probe(devices=(ProbedDevice(uuid="GPU-1", mig_enabled=True),))},
            Verdict.WARN,
            "mig           1 GPUs have MIG switched on, the capability mig/monitor may not be used: it is not there: "
            "use mode cdi, which needs no capability; here NVIDIA_MIG_MONITOR_DEVICES=all takes CAP_SYS_ADMIN, and "
            "without it the container does not start",
        ),
        (
            {"api": ApiAccess(source=None)},
            Verdict.WARN,
            "api server    no credentials: run in a pod with a service account token, name a --kubeconfig, or set "
            "--api-server=off",
        ),
        (
            {"config": Config(collectors=("processes",), lease_namespace="claimscope")},
            Verdict.WARN,
            "pids          the `processes` collector cannot match pids of another pid namespace: set hostPID: true, "
            "or leave the collector out",
        ),
    ],
)
def test_doctor_names_the_cure(changes: dict[str, object], verdict: Verdict, expected: str) -> None:
    bad = [finding for finding in checks.examine(facts(**changes)) if finding.verdict is not Verdict.OK]
    assert [(finding.verdict, finding.line[6:]) for finding in bad] == [(verdict, expected)]


def line_of(name: str, **changes: object) -> str:
    (found,) = (each for each in checks.examine(facts(**changes)) if each.name == name)
    return found.line


def test_a_running_agent_is_no_trouble_to_the_doctor_in_its_container() -> None:
    assert line_of("port", port_error=98, port_is_ours=True) == (
        "ok    port          :19400 is served by claimscope, which runs already"
    )


@contextlib.asynccontextmanager
async def served(server: str, status: int = 200) -> AsyncIterator[int]:
    """Something that answers every question, under this name."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="ok\n", status=status, headers={"Server": server})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("server", "status", "ours"), [("claimscope", 200, True), ("nginx", 200, False), ("claimscope", 500, False)]
)
@pytest.mark.parametrize("host", ["", "127.0.0.1", "0.0.0.0"])
async def test_who_holds_the_port_is_asked(server: str, status: int, ours: bool, host: str) -> None:
    async with served(server, status) as port:
        assert await gathering.serves_claimscope(host, port) is ours


async def test_a_port_on_which_nobody_speaks_http_is_not_ours() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        assert await gathering.serves_claimscope("", server.sockets[0].getsockname()[1]) is False


async def test_the_agents_own_answer_says_whose_it_is() -> None:
    """What `serves_claimscope` looks for is what the web server of the agent says."""
    async with serving(Agent()) as (site, _):
        port = int(site.url.rpartition(":")[2])
        assert await gathering.serves_claimscope("", port) is True


async def test_who_holds_the_port_is_asked_by_tls_too(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    pair = authority.sign("agent")
    file = tmp_path / "web.yaml"
    file.write_text(f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}}}\n")
    async with guarded(file) as site:
        assert await gathering.serves_claimscope("127.0.0.1", site.port) is True


def test_the_pids_of_a_host_without_a_pod_are_its_own() -> None:
    line = line_of("pids", host_pids=True, privileges=Privileges(in_pod=False))
    assert line == "ok    pids          the host's"


def warnings_of(**changes: object) -> list[str]:
    return [each.line for each in checks.examine(facts(**changes)) if each.verdict is not Verdict.OK]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (KernelLogFacts(error="/dev/kmsg may not be read: it needs root or CAP_SYSLOG"),
         "warn  kernel log    /dev/kmsg may not be read: it needs root or CAP_SYSLOG"),
        (KernelLogFacts(is_device=False),
         "warn  kernel log    /dev/kmsg is a recording: mount /dev/kmsg of the host there to see this machine's "
         "faults"),
        (KernelLogFacts(has_records=False),
         "warn  kernel log    /dev/kmsg holds no record of a kernel log: check what is mounted there"),
        (KernelLogFacts(), None),
    ],
)
def test_the_kernel_log(found: KernelLogFacts, line: str | None) -> None:
    config = Config(lease_namespace="claimscope", kernel_log="/dev/kmsg")
    assert warnings_of(config=config, kernel_log=found) == ([] if line is None else [line])


def test_a_kernel_log_is_told_from_a_recording_and_from_anything_else(tmp_path: Path) -> None:
    recording, other = tmp_path / "recording", tmp_path / "other"
    recording.write_text("4,7,1000000,-;NVRM: Xid (PCI:0000:10:00): 79\n")
    other.write_text("nothing\n")
    assert gathering.kernel_log_facts(recording) == KernelLogFacts(is_device=False)
    assert gathering.kernel_log_facts(other) == KernelLogFacts(is_device=False, has_records=False)
    assert gathering.kernel_log_facts(tmp_path / "none").error == (
        f"{tmp_path / 'none'} is not there: mount it from the host to see faults that NVML does not tell"
    )


async def test_files_of_settings_are_read_as_the_parts_read_them(tmp_path: Path) -> None:
    thresholds, policy = tmp_path / "thresholds.yaml", tmp_path / "policy.yaml"
    thresholds.write_text("stale_secnds: 5\n")
    policy.write_text("mode: enforce\nbudgets: {fleet_share: 7}\n")
    found = await gathering.gather_controller(ControllerConfig(taint_policy=str(policy)), {})
    assert found.policy_error == f"{policy}:2:24: `7`: Expected `float` <= 1.0"
    config = Config(lease_namespace="claimscope", health_thresholds=str(thresholds))
    assert gathering.file_error(str(thresholds), read_thresholds) == (
        f"{thresholds}:1:1: health thresholds: stale_secnds: there is no such threshold; did you mean stale_seconds?"
    )
    assert gathering.file_error(str(tmp_path / "none"), read_thresholds) == (
        f"{tmp_path / 'none'}: no such file or directory"
    )
    assert warnings_of(config=config, thresholds_error="t.yaml:1:1: wrong") == [
        "warn  thresholds    t.yaml:1:1: wrong: correct it; until then the defaults are in force"
    ]


def test_an_agent_without_a_lease_is_not_heard() -> None:
    assert warnings_of(config=Config()) == [
        "warn  lease         not written: the controller hears nothing of this node; name claimscope's namespace with "
        "--lease-namespace"
    ]


@pytest.mark.parametrize(
    ("allowed", "line"),
    [
        (guard.allowed("v1.36.2", "v1beta2"),
         "warn  taints        no further than observe: kube-scheduler of Kubernetes v1.36.2 exits while any "
         "DeviceTaintRule exists, so none is written (https://github.com/kubernetes/kubernetes/issues/139651); upgrade "
         "to 1.36.3 or newer"),
        (guard.allowed(None, "v1"),
         "warn  taints        no further than announce: the Kubernetes version cannot be read: devices are announced "
         "and none is kept from work"),
        (guard.allowed("v1.34.1", None),
         "ok    taints        the API server serves devicetaintrules neither as v1 nor as v1beta2: no device is "
         "tainted; findings become conditions and Events"),
        (guard.allowed("v1.36.3", "v1beta2"),
         "ok    taints        devicetaintrules are served as v1beta2, and every mode is safe"),
    ],
)
def test_how_far_fencing_may_go_on_this_cluster(allowed: guard.Allowed, line: str) -> None:
    api = ApiAccess(source="kubeconfig k", allowed=allowed, denied=())
    found = checks.examine_controller(ControllerFacts(config=ControllerConfig(), api=api))
    assert [each.line for each in found] == [
        "ok    api server    reachable with the kubeconfig k",
        "ok    taint policy  the defaults, mode announce",
        line,
        "ok    web           plain HTTP, open to everybody",
        "ok    rights        all that are needed",
    ]


async def test_a_controller_that_may_not_do_something_is_told_what_is_lost() -> None:
    def rule(_: User, asked: Asked) -> bool:
        if asked.resource == "devicetaintrules":
            return asked.verb in ("get", "list", "watch")
        return asked.resource != "pods" and (asked.resource, asked.subresource) != ("nodes", "status")

    server = SimApiServer(ALL_KINDS, rule=rule, git_version="v1.36.1")
    await server.start()
    try:
        found = await gathering.gather_controller(ControllerConfig(api_server_url=server.url, namespace="gpu"), {})
    finally:
        await server.stop()
    lines = [finding.line for finding in checks.examine_controller(found)]
    assert lines[0] == f"ok    api server    reachable with the URL {server.url}"
    assert lines[2].startswith("warn  taints        no further than observe: kube-scheduler of Kubernetes v1.36.1 ")
    assert lines[3:] == [
        "ok    web           plain HTTP, open to everybody",
        "fail  rights        may not list, watch pods: phases after allocation and what pods wait for are unknown; "
        "the chart's rbac.create=true grants it, deploy/manifests/rbac-controller.yaml to the accounts of a release "
        "`claimscope`",
        "warn  rights        may not create, patch, delete devicetaintrules.resource.k8s.io: no GPU is tainted; "
        "the chart's rbac.fencing=true grants it, deploy/manifests/rbac-controller.yaml to the accounts of a release "
        "`claimscope`",
        "warn  rights        may not patch nodes/status: the conditions GPUDegraded and GPUUnhealthy are not written; "
        "the chart's rbac.fencing=true grants it, deploy/manifests/rbac-controller.yaml to the accounts of a release "
        "`claimscope`",
    ]


AGENTS_NEEDS = (*rights.AGENT, *rights.AGENT_LOCAL, *rights.REVIEWS)
CONTROLLERS_NEEDS = (
    *rights.CONTROLLER, *rights.CONTROLLER_FENCING, *rights.CONTROLLER_NODE_TAINTS, *rights.REVIEWS,
)  # fmt: skip


@pytest.mark.parametrize(
    ("part", "need"),
    [*(("agent", need) for need in AGENTS_NEEDS), *(("controller", need) for need in CONTROLLERS_NEEDS)],
)
def test_the_cure_for_a_missing_right_names_what_grants_that_one(part: str, need: Need) -> None:
    """The manifest has a rule for it, and the chart with that value renders one."""
    api = ApiAccess(source="k", allowed=guard.allowed("v1.37.1", "v1"), denied=(Denied(need=need, verbs=need.verbs),))
    found = (
        checks.examine(facts(api=api)) if part == "agent"
        else checks.examine_controller(ControllerFacts(config=ControllerConfig(), api=api))
    )  # fmt: skip
    (cure,) = (each.cure for each in found if each.name == "rights")
    named = re.search(r"the chart's ([\w.]+)=(\w+) grants it, deploy/manifests/(\S+\.yaml) ", cure)
    assert named is not None, cure
    path, value, manifest = named.groups()
    granted = granted_by(manifest)
    assert set(need.verbs) <= granted[need.group, need.resource, need.namespace]
    values = nested(path, yaml.safe_load(value))
    if value == "local":  # the schema wants one writer
        values["controller"] = {"enabled": False}
    name = f"{need.resource}.{need.group}" if need.group else need.resource
    verbs = {
        verb for who, permission in allowed(render(values)) if who == part and permission.endswith(f" {name}")
        for verb in permission.removesuffix(f" {name}").split(", ")
    }  # fmt: skip
    assert set(need.verbs) <= verbs


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("mode: observe", set()),
        ("mode: announce", {("patch", "nodes/status"), ("create", "devicetaintrules")}),
        ("mode: observe\nrules: {gpu_lost: {mode: enforce}}",
         {("patch", "nodes/status"), ("create", "devicetaintrules")}),
        ("node_taints: prefer", {("patch", "nodes"), ("patch", "nodes/status"), ("create", "devicetaintrules")}),
    ],
)
async def test_a_controller_is_asked_for_the_rights_that_its_policy_takes(
    tmp_path: Path, policy: str, expected: set[tuple[str, str]]
) -> None:
    asked_for: set[tuple[str, str]] = set()

    def rule(_: User, asked: Asked) -> bool:
        asked_for.add((asked.verb, f"{asked.resource}/{asked.subresource}".rstrip("/")))
        return True

    (tmp_path / "policy.yaml").write_text(policy)
    server = SimApiServer(ALL_KINDS, rule=rule)
    await server.start()
    try:
        policy_file = str(tmp_path / "policy.yaml")
        config = ControllerConfig(api_server_url=server.url, namespace="gpu", taint_policy=policy_file)
        await gathering.gather_controller(config, {})
    finally:
        await server.stop()
    writes = {("patch", "nodes"), ("patch", "nodes/status"), ("create", "devicetaintrules")}
    assert asked_for & writes == expected


async def test_the_right_to_one_lease_is_asked_for_by_its_name() -> None:
    """RBAC lets nobody who may update one object by its name update any."""

    def rule(_: User, asked: Asked) -> bool:
        return asked.verb != "update" or asked.name == "leader"

    server = SimApiServer(ALL_KINDS, rule=rule)
    await server.start()
    try:
        config = ControllerConfig(api_server_url=server.url, namespace="gpu", lease_name="leader")
        found = await gathering.gather_controller(config, {})
        other = await gathering.gather_controller(msgspec.structs.replace(config, lease_name="other"), {})
    finally:
        await server.stop()
    assert found.api.denied == ()
    assert [denied.need.title for denied in other.api.denied or ()] == [
        "leases.coordination.k8s.io other in namespace gpu"
    ]


async def test_an_agent_is_asked_for_its_own_rights_in_its_own_namespace() -> None:
    asked_for: list[Asked] = []

    def rule(_: User, asked: Asked) -> bool:
        asked_for.append(asked)
        return asked.resource != "leases"

    server = SimApiServer([kind for kind in ALL_KINDS if kind is not DEVICE_TAINT_RULES], rule=rule)
    await server.start()
    config = Config(api_server_url=server.url, lease_namespace="gpu")
    try:
        found = await gathering.api_access(config, {})
    finally:
        await server.stop()
    assert found.allowed == guard.allowed("v1.36.3", None)
    assert [(denied.verbs, denied.need.title) for denied in found.denied or ()] == [
        (("get", "create", "update"), "leases.coordination.k8s.io in namespace gpu")
    ]
    assert {asked.resource for asked in asked_for} == {"resourceslices", "resourceclaims", "leases"}


async def test_an_api_server_that_does_not_answer_is_a_failure_for_the_controller() -> None:
    found = await gathering.gather_controller(ControllerConfig(), {})
    assert [(finding.verdict, finding.name) for finding in checks.examine_controller(found)] == [
        (Verdict.FAIL, "api server"), (Verdict.OK, "taint policy"), (Verdict.WARN, "taints"),
        (Verdict.OK, "web"),
    ]
    assert found.api.error is not None
    assert found.api.error.startswith("no API server: KUBERNETES_SERVICE_HOST is not set")


Granted = dict[tuple[str, str, str], set[str]]  # (group, resource, namespace, "" for everywhere) -> verbs


def granted_by(*names: str) -> Granted:
    """What manifests grant; namespace `claimscope` is the own one."""
    found: Granted = defaultdict(set)
    for name in names:
        for document in yaml.safe_load_all((MANIFESTS / name).read_text()):
            if document["kind"] in ("Role", "ClusterRole"):
                namespace = document["metadata"].get("namespace", "").replace("claimscope", rights.OWN)
                for rule in document["rules"]:
                    for group in rule["apiGroups"]:
                        for resource in rule["resources"]:
                            found[group, resource, namespace] |= set(rule["verbs"])
    return dict(found)


@pytest.mark.parametrize(
    ("needs", "manifest"),
    [
        (rights.AGENT, "rbac-agent.yaml"),
        (rights.AGENT_LOCAL, "rbac-agent-local.yaml"),
        (rights.CONTROLLER + rights.CONTROLLER_FENCING, "rbac-controller.yaml"),
        (rights.CONTROLLER_NODE_TAINTS, "rbac-controller-node-taints.yaml"),
        (rights.REVIEWS, "rbac-authorization.yaml"),
    ],
)
def test_the_rights_asked_for_are_those_that_the_manifests_grant(needs: tuple[Need, ...], manifest: str) -> None:
    asked: Granted = defaultdict(set)
    for need in needs:
        asked[need.group, need.resource, need.namespace] |= set(need.verbs)
    assert asked == granted_by(manifest)


def test_a_denied_right_names_its_object_as_kubectl_does() -> None:
    need = Need(verbs=("patch",), group="g", resource="things/status", namespace="ns", without="it is blind")
    assert Denied(need=need, verbs=("patch",)).need.title == "things.g/status in namespace ns"
