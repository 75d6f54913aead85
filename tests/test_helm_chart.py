"""Is what the chart renders accepted by Kubernetes, whole, and understood by the parts that it starts?"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from claimscope import config
from claimscope.cli import cli
from claimscope.config import Config, ControllerConfig
from claimscope.health.sources import read_thresholds
from claimscope.taints.fences import KEYS as TAINT_KEYS
from claimscope.taints.policy import read_policy
from helm_help import CHART, Json, leaves, merged, objects, only, presets, render, texts

VERSIONS = ("1.34", "1.35", "1.36", "1.37")
OPERATED = ("PodMonitor", "ServiceMonitor", "PrometheusRule")  # held to the operator's own definitions elsewhere
LOCAL: Json = {"agent": {"taintWriter": "local"}, "controller": {"enabled": False}}
GUARDED: Json = {
    "webConfig": {"secretName": "web", "clientCertificates": True}, "authorization": {"mode": "kubernetes"},
}  # fmt: skip
ASKED: Json = {
    "tlsConfig": {
        "ca": {"secret": {"name": "web", "key": "ca.crt"}}, "serverName": "claimscope",
        "cert": {"secret": {"name": "client", "key": "tls.crt"}}, "keySecret": {"name": "client", "key": "tls.key"},
    },
    "authorization": {"credentials": {"name": "token", "key": "token"}},
}  # fmt: skip
INSTALLS: Mapping[str, Json] = {
    **presets(),
    "local": LOCAL,
    "guarded": {
        "agent": GUARDED, "controller": GUARDED, "rbac": {"callerRoles": True, "nodeTaints": True},
        "monitoring": {kind: {"enabled": True, "endpoint": ASKED} for kind in ("podMonitor", "serviceMonitor")},
    },
    "cdi": {"agent": {"gpuAccess": {"mode": "cdi"}, "journal": {"type": "emptyDir"}, "hostNetwork": True}},
    "hostPath": {"agent": {"gpuAccess": {"mode": "hostPath"}}},
    "extra": {
        "agent": {"extraArgs": ["--log-level=debug"], "extraEnv": [{"name": "A", "value": "b"}],
                  "extraVolumes": [{"name": "x", "emptyDir": {}}],
                  "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}]},
        "extraObjects": ["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-x'}\n"],
        "networkPolicy": {"enabled": True, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
    },
    "own pods": {
        "namespace": {"create": True}, "resourceQuota": {"create": True}, "global": {"imagePullSecrets": ["key"]},
        **{
            part: {
                "podSecurityContext": {"fsGroup": 7, "supplementalGroups": [7]},
                "securityContext": {"seLinuxOptions": {"type": "spc_t"}},
                "podSpec": {
                    "dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.10"]}, "schedulerName": "other",
                    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}],
                    "initContainers": [{"name": "first", "image": "busybox"}],
                },
                "container": {
                    "startupProbe": {"httpGet": {"path": "/livez", "port": "http"}, "failureThreshold": 30},
                    "envFrom": [{"secretRef": {"name": "proxy"}}], "terminationMessagePolicy": "FallbackToLogsOnError",
                    "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                },
            }
            for part in ("agent", "controller")
        },
    },
}  # fmt: skip
each_install = pytest.mark.parametrize("values", INSTALLS.values(), ids=INSTALLS.keys())


# --- Kubernetes' own schemas ---


def faults(made: Json, version: str) -> str:
    try:
        kubernetes_validate.validate(made, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


def shape(value: object) -> object:
    """Keys and types alone, which is what the schemas look at: one check does for all objects of a form."""
    match value:
        case dict():
            kept = value.keys() - {"labels", "annotations"}
            return tuple(sorted((key, shape(value[key])) for key in kept))
        case list():
            return tuple(sorted({repr(shape(each)) for each in value}))
        case _:
            return type(value).__name__


def kinds_and_shapes() -> dict[tuple[str, object], tuple[str, Json]]:
    """One object of each form that any installation has, and of which."""
    return {
        (each["kind"], shape(each)): (f"{install}: {each['kind']} {each['metadata']['name']}", each)
        for install, values in INSTALLS.items() for each in render(values) if each["kind"] not in OPERATED
    }  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_kubernetes(version: str) -> None:
    checked = kinds_and_shapes()
    assert {where: fault for where, made in checked.values() if (fault := faults(made, version))} == {}
    assert {kind for kind, _ in checked} == {
        "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "Deployment", "FlowSchema", "Job", "Namespace",
        "NetworkPolicy", "PodDisruptionBudget", "PriorityClass", "PriorityLevelConfiguration", "ResourceQuota", "Role",
        "RoleBinding", "Service", "ServiceAccount", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip


def test_a_misspelt_field_would_be_found() -> None:
    made = only(render(), "DaemonSet")
    made["spec"]["template"]["spec"]["hostPid"] = True
    assert "hostPid" in faults(made, "1.37")


def test_nothing_is_found_by_helms_linter() -> None:
    from helm_python import lint

    for values in (INSTALLS["defaults"], INSTALLS["everything"], INSTALLS["local"]):
        found = lint(str(CHART), values, strict=True, namespace="claimscope")
        messages = [each for each in found["messages"] if each["severity"] > 1]
        assert messages == [], messages


# --- whole in itself ---


def pods(found: list[Json]) -> Iterator[tuple[Json, Json]]:
    """Objects that make pods, and the pod's template."""
    for each in found:
        if each["kind"] in ("DaemonSet", "Deployment", "Job"):
            yield each, each["spec"]["template"]


def part_of(made: Json) -> str:
    return str(made["metadata"]["labels"]["app.kubernetes.io/component"])


def labelled(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return wanted.items() <= labels.items()


def selectors(made: Json) -> Iterator[Mapping[str, str]]:
    """Each selector of pods that an object has."""
    spec = made.get("spec", {})
    match made["kind"]:
        case "Service":
            yield spec["selector"]
        case "DaemonSet" | "Deployment" | "PodDisruptionBudget":
            yield spec["selector"]["matchLabels"]
        case "NetworkPolicy":
            yield spec["podSelector"]["matchLabels"]
    if made["kind"] == "Deployment":
        pod = spec["template"]["spec"]
        for term in pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]:
            yield term["podAffinityTerm"]["labelSelector"]["matchLabels"]
        for constraint in pod["topologySpreadConstraints"]:
            yield constraint["labelSelector"]["matchLabels"]


@each_install
def test_each_selector_selects_the_pods_of_one_part(values: Json) -> None:
    found = render(values)
    templates = {part_of(pod): pod["metadata"]["labels"] for _, pod in pods(found)}
    for made in found:
        for wanted in selectors(made):
            chosen = [part for part, labels in templates.items() if labelled(labels, wanted)]
            assert chosen == [part_of(made)], made["metadata"]["name"]


@each_install
def test_each_binding_names_a_role_and_an_account_that_are_there(values: Json) -> None:
    found = render(values)
    there = {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found}
    bindings = [each for each in found if each["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert bindings
    for each in bindings:
        role = each["roleRef"]
        namespace = each["metadata"].get("namespace", "") if role["kind"] == "Role" else ""
        assert (role["kind"], namespace, role["name"]) in there
        for subject in each["subjects"]:
            assert ("ServiceAccount", subject["namespace"], subject["name"]) in there
    for made, pod in pods(found):
        account = pod["spec"]["serviceAccountName"]
        assert ("ServiceAccount", made["metadata"]["namespace"], account) in there
        assert any(account == subject["name"] for each in bindings for subject in each["subjects"])


@each_install
def test_each_mount_has_its_volume_and_each_port_and_configuration_is_there(values: Json) -> None:
    found = render(values)
    configs = {each["metadata"]["name"] for each in found if each["kind"] == "ConfigMap"}
    for _, pod in pods(found):
        volumes = {each["name"]: each for each in pod["spec"].get("volumes", [])}
        (container,) = pod["spec"]["containers"]
        mounts = [each["name"] for each in container.get("volumeMounts", [])]
        assert sorted(mounts) == sorted(volumes)
        paths = [each["mountPath"] for each in container.get("volumeMounts", [])]
        assert not any(PurePosixPath(one).is_relative_to(other) for one in paths for other in paths if one != other)
        assert all(each["configMap"]["name"] in configs for each in volumes.values() if "configMap" in each)
        ports = {each["name"] for each in container.get("ports", [])}
        for probe in ("livenessProbe", "readinessProbe"):
            handler = container.get(probe, {})
            assert handler == {} or handler.get("httpGet", handler.get("tcpSocket"))["port"] in ports


@each_install
def test_policies_name_the_accounts_that_the_pods_run_as(values: Json) -> None:
    found = render(values)
    text = "".join(json.dumps(each) for each in found if each["kind"] == "ValidatingAdmissionPolicy")
    for made, pod in pods(found):
        assert f"system:serviceaccount:{made['metadata']['namespace']}:{pod['spec']['serviceAccountName']}'" in text


# --- the parts understand it ---


def decoded(found: list[Json], part: str) -> Config | ControllerConfig | None:
    """The configuration that a part would run with, by its own reader."""
    of: Any = {"agent": Config, "controller": ControllerConfig}[part]
    made = next((pod for _, pod in pods(found) if part_of(pod) == part), None)
    if made is None:
        return None
    (container,) = made["spec"]["containers"]
    data = only(found, "ConfigMap", f"claimscope-{part}")["data"]
    environment = {each["name"]: each.get("value", f"[{each['name']}]") for each in container["env"]}
    assert container["args"][:2] == [part, f"--config=/etc/claimscope/{part}.yaml"]
    context = cli.commands[part].make_context(part, container["args"][1:])
    flags = {key: value for key, value in context.params.items() if key != "config_file"}
    assert context.params["config_file"] == f"/etc/claimscope/{part}.yaml"
    result: Config | ControllerConfig = config.build(
        config.from_file(data[f"{part}.yaml"], f"{part}.yaml", of), config.from_environment(environment, of),
        config.from_flags(flags, of), of=of,
    )
    return result


@each_install
def test_both_parts_read_their_configuration(values: Json) -> None:
    found = render(values)
    for part in ("agent", "controller"):
        settings = decoded(found, part)
        if settings is None:
            continue
        made = next(pod for _, pod in pods(found) if part_of(pod) == part)
        (container,) = made["spec"]["containers"]
        (port,) = container["ports"]
        assert settings.listen == ("", port["containerPort"])
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        data = only(found, "ConfigMap", f"claimscope-{part}")["data"]
        for key in ("health_thresholds", "taint_policy", "web_config_file", "kernel_log", "driver_root", "state_file",
                    "control_socket", "pod_resources_socket"):
            path = getattr(settings, key, None)
            if path is None:
                continue
            above = [mount for mount in mounts if PurePosixPath(path).is_relative_to(mount)]
            assert above, (key, path)
            if above == ["/etc/claimscope"]:
                assert PurePosixPath(path).name in data
            assert bool(mounts[above[0]].get("readOnly")) == (key not in ("state_file", "control_socket"))
        if "taint-policy.yaml" in data:
            read_policy(data["taint-policy.yaml"], "taint-policy.yaml", 0.0)
        if "health.yaml" in data:
            read_thresholds(data["health.yaml"], "health.yaml")


def test_the_defaults_are_read_as_meant() -> None:
    agent, controller = decoded(render(), "agent"), decoded(render(), "controller")
    assert isinstance(agent, Config)
    assert isinstance(controller, ControllerConfig)
    assert (agent.node_name, agent.web_listen_address, agent.startup_jitter_seconds, agent.compat_dcgm) == (
        "[CLAIMSCOPE_NODE_NAME]", ":19400", 5.0, "off",
    )
    assert (controller.web_listen_address, controller.taint_mode, controller.lease_name) == (
        ":19401", "announce", "claimscope-controller",
    )


def test_everything_is_read_as_meant() -> None:
    found = render(presets()["everything"])
    agent = decoded(found, "agent")
    assert isinstance(agent, Config)
    assert (agent.collectors, agent.kernel_log, agent.compat_dcgm, agent.otlp_endpoint, agent.log_format) == (
        ("nvlink-per-link", "processes"), "/dev/kmsg", "all", "http://$(NODE_IP):4318", "json",
    )
    (container,) = only(found, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    names = [each["name"] for each in container["env"]]
    assert names.index("NODE_IP") < names.index("CLAIMSCOPE_OTLP_ENDPOINT")


def test_numbers_and_words_keep_their_types_in_the_configuration() -> None:
    values = {"agent": {"config": {"sampling_hz": 5, "hang_seconds": 2.5, "attribution": "off",
                                   "observer_namespaces": ["a", "b"]}}}
    agent = decoded(render(values), "agent")
    assert isinstance(agent, Config)
    assert (agent.sampling_hz, agent.hang_seconds, agent.attribution, agent.observer_namespaces) == (
        5.0, 2.5, "off", ("a", "b"),
    )


@pytest.mark.parametrize("values", [{}, LOCAL], ids=["controller", "local"])
def test_the_hooks_command_is_one_of_ours(values: Json) -> None:
    (container,) = only(render(values), "Job")["spec"]["template"]["spec"]["containers"]
    command: click.Command = cli
    arguments = list(container["args"])
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    given = command.make_context("lift", arguments).params
    stopped = "daemonset/claimscope-agent" if values else "deployment/claimscope-controller"
    assert (given["everything"], given["writers"], given["stop_seconds"], given["namespace"], given["lease_name"]) == (
        True, (stopped,), 80.0, "claimscope", "claimscope-controller",
    )
    kind, name = stopped.split("/")
    made = only(render(values), {"daemonset": "DaemonSet", "deployment": "Deployment"}[kind])
    assert made["metadata"]["name"] == name


def test_all_that_uninstalls_is_there_only_meanwhile() -> None:
    found = objects({"uninstall.yaml": texts()["uninstall.yaml"]})
    assert sorted(each["kind"] for each in found) == [
        "ClusterRole", "ClusterRoleBinding", "Job", "Role", "RoleBinding", "ServiceAccount",
    ]
    for each in found:
        notes = each["metadata"]["annotations"]
        assert notes["helm.sh/hook"] == "pre-delete"
        assert "hook-succeeded" in notes["helm.sh/hook-delete-policy"]
    assert only(found, "Job")["spec"]["activeDeadlineSeconds"] == 240  # helm itself waits for 300


# --- security ---


def security(values: Json, kind: str = "DaemonSet") -> Json:
    (container,) = only(render(values), kind)["spec"]["template"]["spec"]["containers"]
    found: Json = container["securityContext"]
    return found


def test_the_agent_has_uid_0_and_nothing_else() -> None:
    assert security({}) == {
        "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = only(render(), "DaemonSet")["spec"]["template"]["spec"]
    assert not {"hostPID", "hostNetwork", "hostIPC"} & pod.keys()


def test_the_controller_is_nobody() -> None:
    for kind in ("Deployment", "Job"):
        assert security({}, kind) == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }
        pod = only(render(), kind)["spec"]["template"]["spec"]["securityContext"]
        assert (pod["runAsNonRoot"], pod["runAsUser"]) == (True, 65532)
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("agent", [{"kernelLog": True}, {"gpuAccess": {"mode": "hostPath"}}])
def test_what_opens_device_files_without_a_runtime_is_privileged_and_says_so(agent: Json) -> None:
    # The API server refuses `privileged: true` beside `allowPrivilegeEscalation: false`.
    assert security({"agent": agent}) == {
        "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": True, "privileged": True,
    }


def access(mode: str, **more: Any) -> tuple[Json, Json, dict[str, str]]:
    """Pod, its annotations and the variables of NVIDIA's runtime."""
    template = only(render({"agent": {"gpuAccess": {"mode": mode, **more}}}), "DaemonSet")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"] if each["name"].startswith("NVIDIA_")}
    return template["spec"], template["metadata"]["annotations"], variables


def test_a_runtime_class_brings_the_gpus() -> None:
    pod, _, variables = access("runtimeClass")
    assert (pod["runtimeClassName"], variables) == (
        "nvidia", {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"},
    )
    pod, _, variables = access("runtimeClass", runtimeClassName="", migMonitor=True)
    assert "runtimeClassName" not in pod
    assert variables["NVIDIA_MIG_MONITOR_DEVICES"] == "all"
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN"]}


def test_a_cdi_device_brings_the_gpus() -> None:
    pod, notes, variables = access("cdi", migMonitor=True)
    assert pod["runtimeClassName"] == "nvidia"
    assert notes["nvidia.cdi.k8s.io/container.agent"] == "management.nvidia.com/gpu=all"
    assert pod["containers"][0]["name"] == "agent"  # which the annotation names
    assert variables == {"NVIDIA_VISIBLE_DEVICES": "management.nvidia.com/gpu=all"}
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """How a driver root gets into the container."""

    path: str  # of the node
    at: str
    read_only: bool
    propagation: str
    driver_root: str | None  # the agent's setting


def root_mount(root: str) -> Mounted:
    pod, _, variables = access("hostPath", driverRoot=root)
    (volume,) = (each["hostPath"] for each in pod["volumes"] if each["name"] == "driver-root")
    (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "driver-root")
    agent = decoded(render({"agent": {"gpuAccess": {"mode": "hostPath", "driverRoot": root}}}), "agent")
    assert isinstance(agent, Config)
    assert variables == {"NVIDIA_VISIBLE_DEVICES": "void"}
    return Mounted(path=volume["path"], at=mount["mountPath"], read_only=mount["readOnly"],
                   propagation=mount["mountPropagation"], driver_root=agent.driver_root)  # fmt: skip


@pytest.mark.parametrize(
    ("root", "path", "at", "driver_root"),
    [
        ("/run/nvidia/driver", "/run/nvidia", "/driver-root-parent", "/driver-root-parent/driver"),
        ("/run/nvidia/driver/", "/run/nvidia", "/driver-root-parent", "/driver-root-parent/driver"),
        ("/home/kubernetes/bin/nvidia", "/home/kubernetes/bin", "/driver-root-parent", "/driver-root-parent/nvidia"),
        ("/opt/nvidia", "/opt", "/driver-root-parent", "/driver-root-parent/nvidia"),
        ("/", "/", "/driver-root", "/driver-root"),
    ],
)
def test_a_drivers_root_is_mounted(root: str, path: str, at: str, driver_root: str) -> None:
    assert root_mount(root) == Mounted(
        path=path, at=at, read_only=True, propagation="HostToContainer", driver_root=driver_root
    )


REPLACED = """\
set -eu
node=$1 pod=$2 root=$3 path=$4 at=$5 seen=$6 propagation=$7
mount -t tmpfs node "$node" && mount --make-rshared "$node"
mkdir -p "$node$root" "$pod$at"
mount -t tmpfs one "$node$root" && echo one >"$node$root/libnvidia-ml.so.1"
mount --rbind "$node$path" "$pod$at" && mount "--make-r$propagation" "$pod$at"
cat "$pod$seen/libnvidia-ml.so.1"
umount "$node$root"
mount -t tmpfs two "$node$root" && echo two >"$node$root/libnvidia-ml.so.1"
cat "$pod$seen/libnvidia-ml.so.1"
"""


@pytest.mark.parametrize("whole", [True, False], ids=["as the chart mounts it", "the root itself"])
def test_a_driver_that_is_replaced_is_seen_by_a_running_pod(whole: bool, tmp_path: Path) -> None:
    """With real mounts: the GPU Operator's driver container mounts its root anew each time it starts."""
    mounted = root_mount("/run/nvidia/driver")
    if not whole:
        mounted = dataclasses.replace(mounted, path="/run/nvidia/driver", at="/driver-root", driver_root="/driver-root")
    (tmp_path / "node").mkdir()
    apart = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may make no mount namespace here")
    # What a container runtime makes of the two, k8s.io/api/core/v1 MountPropagationMode.
    propagation = {"HostToContainer": "slave", "None": "private"}[mounted.propagation]
    done = subprocess.run(
        [*apart, "sh", "-c", REPLACED, "sh", tmp_path / "node", tmp_path / "pod", "/run/nvidia/driver", mounted.path,
         mounted.at, mounted.driver_root or "", propagation],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("one\ntwo\n" if whole else "one\none\n", "")


def test_no_agent_holds_the_driver_while_the_gpu_operator_replaces_it() -> None:
    """A DaemonSet's pod goes from a node that its required affinity no longer fits."""
    affinity = only(render(), "DaemonSet")["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    def runs(labels: dict[str, str]) -> bool:
        return any(
            all(
                (labels.get(rule["key"]) in rule["values"]) is (rule["operator"] == "In")
                for rule in term["matchExpressions"]
            )
            for term in terms
        )

    gpu_node = {"nvidia.com/gpu.present": "true"}
    assert runs(gpu_node)
    assert not runs({})
    for name in ("client", "dcgm-exporter"):
        for value, there in (
            ("true", True), ("false", True), ("paused-for-driver-upgrade", False), ("paused-for-mig-change", False),
        ):  # fmt: skip
            assert runs({**gpu_node, f"nvidia.com/gpu.deploy.{name}": value}) is there


def test_agents_stay_on_nodes_that_we_taint() -> None:
    tolerated = only(render(), "DaemonSet")["spec"]["template"]["spec"]["tolerations"]
    keys = {each["key"] for each in tolerated if each["operator"] == "Exists" and "effect" not in each}
    assert keys >= {*TAINT_KEYS.values(), "nvidia.com/gpu"}


def test_labels_of_others_do_not_change_what_is_selected() -> None:
    other = {"app.kubernetes.io/component": "x", "app.kubernetes.io/name": "y", "team": "ml"}
    found = render({"commonLabels": other, "agent": {"podLabels": other}})
    made = only(found, "DaemonSet")
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert labelled(labels, made["spec"]["selector"]["matchLabels"])
    assert (labels["app.kubernetes.io/component"], labels["team"]) == ("agent", "ml")


# --- names ---


def names(found: list[Json]) -> set[tuple[str, str, str]]:
    return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found}


def test_a_node_in_trouble_holds_up_no_roll_out_of_agents() -> None:
    """/readyz stays at 503 for as long as NVML is missing, and what is not ready counts against maxUnavailable."""
    paths = {
        each["kind"]: each["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
        for each in render() if each["kind"] in ("DaemonSet", "Deployment")
    }  # fmt: skip
    assert paths == {"DaemonSet": "/livez", "Deployment": "/readyz"}


def test_a_second_release_that_would_fence_meets_the_first() -> None:
    """Helm refuses to install what another release has: both would take all rules of claimscope for theirs."""
    values = merged(presets()["everything"], {"namespace": {"create": False}, "rbac": {"nodeTaints": True}})
    local: Json = {"agent": {"taintWriter": "local"}, "controller": {"enabled": False}}
    one, other = (render(values, name=name, namespace=name) for name in ("east", "west"))
    mark = {("ClusterRole", "", "claimscope-fencing")}
    assert names(one) & names(other) == mark
    assert names(one) & names(render(local, name="south", namespace="south")) == mark


def test_releases_of_which_one_fences_do_not_collide() -> None:
    values = merged(presets()["everything"], {"namespace": {"create": False}, "rbac": {"nodeTaints": True}})
    agents = merged(values, {"controller": {"enabled": False}})
    one, other = render(values, name="east", namespace="gpu"), render(agents, name="west", namespace="gpu")
    assert names(one) & names(other) == set()
    observing: Json = {"controller": {"taintMode": "observe"}, "rbac": {"fencing": False}}
    assert names(one) & names(render(observing, name="north", namespace="north")) == set()
    assert "east-claimscope-agent" in {name for _, _, name in names(one)}

    def journal(found: list[Json]) -> str:
        volumes = only(found, "DaemonSet")["spec"]["template"]["spec"]["volumes"]
        return next(each["hostPath"]["path"] for each in volumes if each["name"] == "journal")  # type: ignore[no-any-return]

    assert (journal(one), journal(other)) == (
        "/var/lib/claimscope/gpu-east-claimscope", "/var/lib/claimscope/gpu-west-claimscope",
    )


@pytest.mark.parametrize("values", [{}, {"nameOverride": "n" * 63}, {"fullnameOverride": "f" * 63}])
def test_long_names_are_cut(values: Json) -> None:
    name = "r" * 53  # the longest that Helm takes
    for each in render(merged(presets()["everything"], values), name=name):
        meta = each["metadata"]
        assert len(meta["name"]) <= 63 or each["kind"] == "Namespace", (each["kind"], meta["name"])
        assert all(len(value) <= 63 for value in meta.get("labels", {}).values())


def test_a_release_is_not_named_twice() -> None:
    assert ("DaemonSet", "claimscope", "claimscope-agent") in names(render())
    assert ("DaemonSet", "gpu", "my-claimscope-agent") in names(render(name="my-claimscope", namespace="gpu"))
    assert ("DaemonSet", "gpu", "acme-agent") in names(render({"fullnameOverride": "acme"}, namespace="gpu"))


def test_nothing_names_the_namespace_or_release_of_the_manifests() -> None:
    found = render(merged(presets()["everything"], {"rbac": {"nodeTaints": True}}), name="acme", namespace="gpu")
    for each in found:
        for path, value in leaves(each):
            wrong = isinstance(value, str) and ("serviceaccount:claimscope" in value or value == "claimscope-agent")
            assert not wrong, (each["kind"], path, value)
        assert each["metadata"].get("namespace", "gpu") in ("gpu", "default")


# --- a change acts ---


def checksum(values: Json, kind: str) -> str:
    notes = only(render(values), kind)["spec"]["template"]["metadata"]["annotations"]
    return str(notes["checksum/config"])


def test_a_setting_restarts_the_pods_and_a_file_that_is_read_again_does_not() -> None:
    assert checksum({}, "DaemonSet") != checksum({"agent": {"config": {"sampling_hz": 5}}}, "DaemonSet")
    assert checksum({}, "Deployment") != checksum({"controller": {"taintMode": "enforce"}}, "Deployment")
    one, other = ({"controller": {"taintPolicy": {"cap": cap}}} for cap in (10, 20))
    assert checksum(one, "Deployment") == checksum(other, "Deployment")
    assert render(one) != render(other)


def test_a_new_version_of_the_chart_alone_replaces_no_pod() -> None:
    """Of what the image or a setting does not change, nothing in a pod's template names a version."""
    found = render({"commonLabels": {"team": "ml"}, "agent": {"podLabels": {"tier": "node"}}})
    for part, own in (("DaemonSet", {"tier": "node"}), ("Deployment", {})):
        made = only(found, part)
        meta = made["spec"]["template"]["metadata"]
        assert meta["labels"] == {**made["spec"]["selector"]["matchLabels"], "team": "ml", **own}
        assert meta["annotations"].keys() == {"checksum/config"}
        assert made["metadata"]["labels"]["helm.sh/chart"] == "claimscope-0.1.0"


# --- what the API server asks first, and what it admits ---


def test_the_agents_requests_are_theirs_in_every_namespace() -> None:
    """k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap: the lowest precedence that matches wins."""
    built_in = {"kube-system-service-accounts": 900, "service-accounts": 9000}
    assert only(render(), "FlowSchema")["spec"]["matchingPrecedence"] < min(built_in.values())


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ({}, ["system-node-critical", "system-cluster-critical"]),
        ({"controller": {"enabled": False}}, ["system-node-critical"]),
        ({"agent": {"priorityClassName": "mine"}, "controller": {"priorityClassName": "mine"}}, ["mine"]),
    ],
)
def test_a_quota_admits_the_priority_classes_of_the_pods(values: Json, classes: list[str]) -> None:
    found = render(merged(values, {"resourceQuota": {"create": True}}))
    assert only(found, "ResourceQuota")["spec"] == {
        "hard": {"pods": "10000"},
        "scopeSelector": {
            "matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": classes}],
        },
    }
    used = {pod["spec"].get("priorityClassName") for made, pod in pods(found) if made["kind"] != "Job"}
    assert used == set(classes)


def test_without_a_priority_class_there_is_nothing_to_admit() -> None:
    none = {"priorityClassName": ""}
    found = render({"agent": none, "controller": none, "resourceQuota": {"create": True}})
    assert [each for each in found if each["kind"] == "ResourceQuota"] == []


# --- what is rendered for those without Helm ---


def test_the_manifests_and_generated_files_are_current() -> None:
    """`make docs` writes them."""
    script = runpy.run_path(str(CHART.parent.parent.parent / "scripts" / "manifests.py"))
    stale = [str(path) for path, text in script["files"]() if path.read_text(encoding="utf-8") != text]
    assert stale == []


@pytest.mark.parametrize("name", [name for name in presets() if name != "defaults"])
def test_each_preset_is_rendered_for_those_without_helm(name: str) -> None:
    text = (CHART.parent.parent / "manifests" / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    found = [each for each in yaml.safe_load_all(text) if each]
    whole = render({**presets()[name], "namespace": {"create": True}})
    wanted = [each for each in whole if "helm.sh/hook" not in each["metadata"].get("annotations", {})]
    assert found[0]["kind"] == "Namespace"
    assert names(found) == names(wanted)
    assert "helm.sh/" not in text
    assert "managed-by: Helm" not in text
    kinds = [each["kind"] for each in found]
    assert kinds.index("ServiceAccount") < kinds.index("DaemonSet")


@pytest.mark.parametrize("name", [name for name in presets() if name != "defaults"])
def test_what_helm_prints_of_each_preset_is_among_the_docs(name: str) -> None:
    text = (CHART.parent.parent.parent / "docs" / "install" / f"{name}.yaml").read_text(encoding="utf-8")
    found = [each for each in yaml.safe_load_all(text) if each]
    assert sorted(found, key=json.dumps) == sorted(render(presets()[name]), key=json.dumps)
    hooks = ["helm.sh/hook" in each["metadata"].get("annotations", {}) for each in found]
    assert hooks == sorted(hooks)
    assert text.count("# Source: claimscope/templates/") == len(found)


# --- the notes ---


def notes(values: Json) -> str:
    return texts(values)["NOTES.txt"]


@each_install
def test_the_notes_name_what_is_there(values: Json) -> None:
    there = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in render(values)}
    for word in notes(values).split():
        kind, slash, _ = word.partition("/")
        if slash and kind in ("daemonset", "deployment", "job"):
            assert word in there
    assert "claimscope doctor" in notes(values)


@each_install
def test_the_notes_promise_the_uninstaller_where_it_is(values: Json) -> None:
    for more in ({}, {"rbac": {"create": False}}, {"uninstall": {"liftTaints": False}}):
        given = merged(values, more)
        there = any(each["kind"] == "Job" for each in render(given))
        assert ("first lifts every taint" in notes(given)) is there
        assert ("`helm uninstall` lifts no taint here" in notes(given)) is not there


@pytest.mark.parametrize(("values", "steps"), [({}, 4), ({"agent": {"enabled": False}}, 2)])
def test_the_notes_count_from_one(values: Json, steps: int) -> None:
    numbers = [line.split(".")[0] for line in notes(values).splitlines() if line[:2] in ("1.", "2.", "3.", "4.")]
    assert numbers == [str(number) for number in range(1, steps + 1)]


def test_the_notes_tell_why_no_pod_appears_and_only_what_may_be() -> None:
    found = notes({})
    assert "kubectl -n claimscope describe daemonset claimscope-agent" in found
    for said in ("violates PodSecurity", "insufficient quota to match these scopes", 'RuntimeClass "nvidia" not found'):
        assert said in found
    host = {"gpuAccess": {"mode": "hostPath"}, "priorityClassName": ""}
    assert "RuntimeClass" not in notes({"agent": host})
    assert "insufficient quota" not in notes({"agent": host})


def test_the_notes_say_who_may_scrape_and_what_prometheus_must_select() -> None:
    found = notes(presets()["standard"])
    assert '[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"monitoring"}}}]' in found
    assert "monitoring.prometheusRule has no label of yours" in found
    assert "Nothing of this chart scrapes" not in found
    policy = notes({"networkPolicy": {"enabled": True}})  # lets in, and scrapes nothing
    assert "Nothing of this chart scrapes the agents: set monitoring.podMonitor.enabled=true" in policy
    assert "Nothing of this chart scrapes the controller: set monitoring.serviceMonitor.enabled=true" in policy
    assert "lets anyone connect" in policy
    labels = {"monitoring": {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}}
    assert 'monitoring.podMonitor has the labels {"release":"prometheus"}' in notes(labels)


def test_the_notes_ask_for_as_long_a_wait_as_the_job_may_take() -> None:
    assert "--timeout" not in notes({"uninstall": {"timeoutSeconds": 270}})
    assert "--timeout 630s" in notes({"uninstall": {"timeoutSeconds": 600}})
