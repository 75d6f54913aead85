"""Does every value of the chart do something, is each wrong one refused with its path, and may each be left out?"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helm_python import Chart
from helm_python.errors import HelmError

from helm_help import CHART, Json, defaults, merged, nested, objects, only, presets, render, schema, texts

LOCAL: Json = {"agent": {"taintWriter": "local"}, "controller": {"enabled": False}}
MONITORED: Json = {
    "monitoring": {kind: {"enabled": True} for kind in ("podMonitor", "serviceMonitor", "prometheusRule")},
    "dashboards": {"enabled": True},
}  # fmt: skip
PEER = [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]
ENV = [{"name": "A", "value": "b"}]
VOLUME, MOUNT = [{"name": "x", "emptyDir": {}}], [{"name": "x", "mountPath": "/x"}]
TOLERATION = [{"key": "x", "operator": "Exists"}]
SPREAD = [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
NODE_AFFINITY: Json = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}


def _of_both(part: str) -> dict[str, tuple[object, Json]]:
    """The values that agent and controller both have."""
    otlp = {part: {"otlp": {"endpoint": "http://a:4318"}}}
    web = {part: {"webConfig": {"secretName": "web"}}}
    return {
        f"{part}.{path}": case
        for path, case in {
            "enabled": (False, {}),
            "port": (9500, {}),
            "otlp.endpoint": ("http://a:4318", {}),
            "otlp.protocol": ("grpc", otlp),
            "otlp.intervalSeconds": (7, otlp),
            "webConfig.secretName": ("web", {}),
            "webConfig.key": ("other.yml", web),
            "webConfig.tls": (False, web),
            "webConfig.clientCertificates": (True, web),
            "authorization.mode": ("kubernetes", {}),
            "authorization.audiences": (["claimscope"], {part: {"authorization": {"mode": "kubernetes"}}}),
            "nodeSelector": ({"pool": "gpu"}, {}),
            "affinity": (NODE_AFFINITY, {}),
            "tolerations": (TOLERATION, {}),
            "priorityClassName": ("mine", {}),
            "terminationGracePeriodSeconds": (9, {}),
            "resources.requests": ({"cpu": "1"}, {}),
            "resources.limits": ({"memory": "1Ti"}, {}),
            **{
                f"{probe}.{key}": (42, {})
                for probe in ("livenessProbe", "readinessProbe")
                for key in ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold")
            },
            "serviceAccount.create": (False, {}),
            "serviceAccount.name": ("mine", {}),
            "serviceAccount.annotations": ({"a/b": "c"}, {}),
            "service.enabled": (False, {}),
            "service.annotations": ({"a/b": "c"}, {}),
            "service.labels": ({"a/b": "c"}, {}),
            "podLabels": ({"a/b": "c"}, {}),
            "podAnnotations": ({"a/b": "c"}, {}),
            "extraArgs": (["--log-level=debug"], {}),
            "extraEnv": (ENV, {}),
            "extraVolumes": (VOLUME, {}),
            "extraVolumeMounts": (MOUNT, {}),
        }.items()
    }  # fmt: skip


def _of_monitors(kind: str) -> dict[str, tuple[object, Json]]:
    return {
        f"monitoring.{kind}.{path}": (value, MONITORED if path != "enabled" else {})
        for path, value in {
            "enabled": True, "interval": "1m", "scrapeTimeout": "3s", "labels": {"a": "b"}, "annotations": {"a": "b"},
            "namespace": "monitoring", "relabelings": [{"targetLabel": "a", "replacement": "b"}],
            "metricRelabelings": [{"regex": "a", "action": "labeldrop"}],
        }.items()
    }  # fmt: skip


# A value that changes what is rendered, and what must be set besides.
CASES: Mapping[str, tuple[object, Json]] = {
    "nameOverride": ("other", {}),
    "fullnameOverride": ("other", {}),
    "commonLabels": ({"team": "ml"}, {}),
    "commonAnnotations": ({"team": "ml"}, {}),
    "image.registry": ("registry.example", {}),
    "image.repository": ("mirror/claimscope", {}),
    "image.tag": ("1.2.3", {}),
    "image.digest": ("sha256:" + "a" * 64, {}),
    "image.pullPolicy": ("Always", {}),
    "imagePullSecrets": ([{"name": "key"}], {}),
    "global.imageRegistry": ("registry.example", {}),
    "global.imagePullSecrets": (["key"], {}),
    "namespace.create": (True, {}),
    "namespace.podSecurity": ("baseline", {"namespace": {"create": True}}),
    **_of_both("agent"),
    "agent.gpuAccess.mode": ("cdi", {}),
    "agent.gpuAccess.runtimeClassName": ("mine", {}),
    "agent.gpuAccess.cdiDevice": ("nvidia.com/gpu=all", {"agent": {"gpuAccess": {"mode": "cdi"}}}),
    "agent.gpuAccess.driverRoot": ("/", {"agent": {"gpuAccess": {"mode": "hostPath"}}}),
    "agent.gpuAccess.migMonitor": (True, {}),
    "agent.journal.type": ("emptyDir", {}),
    "agent.journal.path": ("/data", {}),
    "agent.podResourcesPath": ("/var/snap/kubelet/pod-resources", {}),
    "agent.startupJitterSeconds": (30, {}),
    "agent.kernelLog": (True, {}),
    "agent.hostPID": (True, {}),
    "agent.hostNetwork": (True, {}),
    "agent.healthThresholds": ({"startup_grace_seconds": 1}, {}),
    "agent.taintWriter": ("local", {"controller": {"enabled": False}}),
    "agent.taintMode": ("enforce", LOCAL),
    "agent.taintPolicy": ({"cap": 3}, LOCAL),
    "agent.compatDcgm.families": ("on", {}),
    "agent.compatDcgm.names": ("both", {"agent": {"compatDcgm": {"families": "on"}}}),
    "agent.compatDcgm.hostnameLabel": ("hostname", {"agent": {"compatDcgm": {"families": "on"}}}),
    "agent.gpuNodeLabels": ([{"key": "gpu", "value": True}], {}),
    "agent.extraTolerations": (TOLERATION, {}),
    "agent.updateStrategy.type": ("OnDelete", {}),
    "agent.updateStrategy.rollingUpdate.maxUnavailable": (3, {}),
    "agent.minReadySeconds": (60, {}),
    "agent.serviceAccount.automountToken": (False, {}),
    **_of_both("controller"),
    "controller.replicas": (3, {}),
    "controller.taintMode": ("enforce", {}),
    "controller.taintPolicy": ({"cap": 3}, {}),
    "controller.topologySpreadConstraints": (SPREAD, {}),
    "controller.podDisruptionBudget.enabled": (False, {}),
    "controller.podDisruptionBudget.maxUnavailable": ("50%", {}),
    "rbac.create": (False, {}),
    "rbac.fencing": (False, {"controller": {"taintMode": "observe"}}),
    "rbac.nodeTaints": (True, {}),
    "rbac.callerRoles": (True, {}),
    "admissionPolicy.enabled": (False, {}),
    "admissionPolicy.refuseNoExecute": (False, {}),
    "admissionPolicy.drivers": (["gpu.nvidia.com", "gpu.example.com"], {}),
    "networkPolicy.enabled": (True, {}),
    "networkPolicy.scrapers": (PEER, {"networkPolicy": {"enabled": True}}),
    "networkPolicy.egress": ([{"to": PEER}], {"networkPolicy": {"enabled": True}}),
    "flowControl.enabled": (False, {}),
    "flowControl.matchingPrecedence": (500, {}),
    "flowControl.nominalConcurrencyShares": (33, {}),
    "flowControl.queueLengthLimit": (99, {}),
    "priorityClass.create": (True, {}),
    "priorityClass.value": (7, {"priorityClass": {"create": True}}),
    "resourceQuota.create": (True, {}),
    "resourceQuota.pods": (7, {"resourceQuota": {"create": True}}),
    "uninstall.liftTaints": (False, {}),
    "uninstall.timeoutSeconds": (60, {}),
    "uninstall.nodeSelector": ({"pool": "cpu"}, {}),
    "uninstall.tolerations": (TOLERATION, {}),
    "uninstall.resources.requests": ({"cpu": "1"}, {}),
    "uninstall.resources.limits": ({"memory": "1Ti"}, {}),
    **_of_monitors("podMonitor"),
    "monitoring.podMonitor.asServiceMonitor": (True, MONITORED),
    **_of_monitors("serviceMonitor"),
    "monitoring.prometheusRule.enabled": (True, {}),
    "monitoring.prometheusRule.labels": ({"a": "b"}, MONITORED),
    "monitoring.prometheusRule.annotations": ({"a": "b"}, MONITORED),
    "monitoring.prometheusRule.namespace": ("monitoring", MONITORED),
    "monitoring.prometheusRule.runbookBaseUrl": ("https://wiki.example", MONITORED),
    "monitoring.prometheusRule.alertLabels": ({"a": "b"}, MONITORED),
    "dashboards.enabled": (True, {}),
    "dashboards.label": ("mine", MONITORED),
    "dashboards.labelValue": ("yes", MONITORED),
    "dashboards.folder": ("GPUs", MONITORED),
    "dashboards.annotations": ({"a": "b"}, MONITORED),
    "dashboards.namespace": ("monitoring", MONITORED),
    "extraObjects": ([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}], {}),
}
# Of these there is a row for each setting, alert or field; they are walked by tests of their own.
IN_PODS = ("podSecurityContext", "securityContext", "podSpec", "container")
TABLES = (
    "agent.config", "controller.config", "monitoring.prometheusRule.alerts",
    *(f"{part}.{table}" for part in ("agent", "controller") for table in IN_PODS),
    *(f"monitoring.{kind}.{part}" for kind in ("podMonitor", "serviceMonitor") for part in ("endpoint", "spec")),
)  # fmt: skip
NOTHING = ("enabled",)  # a parent chart's


def values_of(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Every value of a schema that has no parts, by path."""
    for key, each in found["properties"].items():
        path = f"{prefix}{key}"
        if path in (*TABLES, *NOTHING):
            continue
        if each.get("properties"):
            yield from values_of(each, f"{path}.")
        else:
            yield path, each


VALUES = dict(values_of(schema()))


def test_there_is_a_case_for_every_value() -> None:
    assert set(CASES) == set(VALUES)


@pytest.mark.parametrize("path", CASES)
def test_every_value_changes_what_is_rendered(path: str) -> None:
    value, besides = CASES[path]
    before, after = texts(besides), texts(merged(besides, nested(path, value)))
    assert {key: text for key, text in after.items() if before.get(key) != text} != {} or before.keys() != after.keys()


def wrong(said: Json) -> object:
    """A value that a schema does not allow."""
    kinds = said.get("type", "string")
    if "enum" in said:
        return "none-of-these"
    if kinds == "boolean":
        return "yes"
    if kinds in ("integer", "number"):
        return "three"
    return "text" if kinds in ("object", "array") else ["a", "list"]


@pytest.mark.parametrize("path", VALUES)
def test_a_value_of_a_wrong_type_is_refused_with_its_path(path: str) -> None:
    with pytest.raises(HelmError, match=re.escape(f"at '/{path.replace('.', '/')}'")):
        render(nested(path, wrong(VALUES[path])))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("agent.port", 0, "minimum: got 0, want 1"),
        ("agent.port", 70000, "maximum: got 70,000, want 65,535"),
        ("agent.prot", 1, "additional properties 'prot' not allowed"),
        ("agnet", {}, "additional properties 'agnet' not allowed"),
        ("agent.gpuAccess.mode", "privileged", "value must be one of 'runtimeClass', 'cdi', 'hostPath'"),
        ("agent.gpuAccess.driverRoot", "run", "does not match pattern"),
        ("agent.gpuAccess.cdiDevice", "gpu", "does not match pattern"),
        ("agent.config.sampling_hz", 50, "at '/agent/config/sampling_hz': maximum"),
        ("agent.config.samplng_hz", 5, "additional properties 'samplng_hz' not allowed"),
        ("agent.config.web_listen_address", ":1", "additional properties 'web_listen_address' not allowed"),
        ("controller.config.leader_election", "off", "additional properties 'leader_election' not allowed"),
        ("agent.otlp.endpoint", "collector:4317", "does not match pattern"),
        ("image.tag", 1.10, "got number, want string"),
        ("image.digest", "sha256:1", "does not match pattern"),
        ("uninstall.timeoutSeconds", 1, "minimum"),
        ("flowControl.matchingPrecedence", 9000, "maximum: got 9,000, want 8,999"),  # where service-accounts is
        ("agent.gpuNodeLabels", [{"value": "a"}], "missing property 'key'"),
        ("agent.updateStrategy.rollingUpdate.maxSurge", 1, "additional properties 'maxSurge' not allowed"),
        ("agent.securityContext.privileged", True, "additional properties 'privileged' not allowed"),
        ("controller.podSpec.containers", [], "additional properties 'containers' not allowed"),
        ("resourceQuota.pods", 0, "minimum: got 0, want 1"),
        ("global.imagePullSecrets", [5], "want string or object"),
        ("enabled", "yes", "at '/enabled'"),
        ("agent.authorization.mode", False, "want string"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_wrong(path: str, value: object, said: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(nested(path, value))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"agent": {"taintWriter": "local"}}, "set controller.enabled=false, or agent.taintWriter=controller"),
        ({"agent": {"taintMode": "enforce"}}, "set controller.taintMode"),
        ({"agent": {"taintPolicy": {"cap": 1}}}, "set controller.taintMode and controller.taintPolicy"),
        (
            merged(LOCAL, {"agent": {"serviceAccount": {"automountToken": False}}}),
            "agent.taintWriter=local writes to it",
        ),
        ({"rbac": {"fencing": False}}, "set controller.taintMode=observe"),
        ({"agent": {"webConfig": {"clientCertificates": True}}}, "set agent.webConfig.secretName and tls=true"),
        ({"controller": {"authorization": {"audiences": ["a"]}}}, "set controller.authorization.mode=kubernetes"),
        (
            {"agent": {"serviceAccount": {"automountToken": False}, "authorization": {"mode": "kubernetes"}}},
            "agent.authorization.mode=kubernetes asks it",
        ),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_refused_with_the_cure(values: Json, said: str) -> None:
    with pytest.raises(HelmError, match=re.escape(said)):
        render(values)


# --- the settings of both parts ---


def _value(said: Json) -> object:
    """A value that a schema allows."""
    match said.get("type", "string"):
        case "array":
            return [_value(said.get("items", {}))]
        case "object":
            return {}
        case "boolean":
            return True
        case "string":
            return said["enum"][-1] if "enum" in said else "text"
        case "integer":
            return int(said.get("minimum", 0)) + 1
    return said.get("maximum", said.get("minimum", 1.0))


def settings(part: str) -> Json:
    found: Json = schema()["properties"][part]["properties"]["config"]["properties"]
    return found


@pytest.mark.parametrize("part", ["agent", "controller"])
def test_each_setting_reaches_the_part_that_it_is_for(part: str) -> None:
    given = {key: _value(said) for key, said in settings(part).items()}
    data = only(render(nested(f"{part}.config", given)), "ConfigMap", f"claimscope-{part}")["data"]
    found = yaml.safe_load(data[f"{part}.yaml"])
    assert {key: found[key] for key in given} == given
    assert {key: isinstance(found[key], str) for key in given} == {key: isinstance(given[key], str) for key in given}


@pytest.mark.parametrize(("part", "key"), [(part, key) for part in ("agent", "controller") for key in settings(part)])
def test_a_setting_of_a_wrong_type_is_refused_with_its_path(part: str, key: str) -> None:
    with pytest.raises(HelmError, match=re.escape(f"at '/{part}/config/{key}")):
        render(nested(f"{part}.config.{key}", {"a": "b"}))


MONITORS = [
    (kind, part, key)
    for kind in ("podMonitor", "serviceMonitor")
    for part in ("endpoint", "spec")
    for key in schema()["properties"]["monitoring"]["properties"][kind]["properties"][part]["properties"]
]  # fmt: skip


@pytest.mark.parametrize(("kind", "part", "key"), MONITORS)
def test_each_field_of_a_monitor_reaches_it(kind: str, part: str, key: str) -> None:
    said = schema()["properties"]["monitoring"]["properties"][kind]["properties"][part]["properties"][key]
    value = _value(said)
    found = render(merged(MONITORED, nested(f"monitoring.{kind}.{part}.{key}", value)))
    spec = only(found, kind[0].upper() + kind[1:])["spec"]
    (endpoint,) = spec.get("podMetricsEndpoints", spec.get("endpoints"))
    assert (endpoint if part == "endpoint" else spec)[key] == value
    with pytest.raises(HelmError, match=re.escape(f"at '/monitoring/{kind}/{part}/{key}'")):
        render(nested(f"monitoring.{kind}.{part}.{key}", wrong(said)))


def pod_of(found: list[Json], part: str) -> Json:
    pod: Json = only(found, {"agent": "DaemonSet", "controller": "Deployment"}[part])["spec"]["template"]["spec"]
    return pod


FIELDS = [
    (part, table, key)
    for part in ("agent", "controller")
    for table in IN_PODS
    for key in schema()["properties"][part]["properties"][table]["properties"]
]  # fmt: skip


@pytest.mark.parametrize(("part", "table", "key"), FIELDS)
def test_each_field_of_a_pod_reaches_it(part: str, table: str, key: str) -> None:
    said = schema()["properties"][part]["properties"][table]["properties"][key]
    value = _value(said)
    pod = pod_of(render(nested(f"{part}.{table}.{key}", value)), part)
    (container,) = pod["containers"]
    where = {
        "podSpec": pod, "container": container, "podSecurityContext": pod.get("securityContext", {}),
        "securityContext": container["securityContext"],
    }[table]  # fmt: skip
    assert (where[key] | value if isinstance(value, dict) else where[key]) == (
        where[key] if isinstance(value, dict) else value
    )
    with pytest.raises(HelmError, match=re.escape(f"at '/{part}/{table}/{key}'")):
        render(nested(f"{part}.{table}.{key}", wrong(said)))


# --- left out ---


def paths(found: Mapping[str, Any], depth: int, prefix: str = "") -> Iterator[str]:
    """Keys of values.yaml down to a depth."""
    for key, value in found.items():
        yield f"{prefix}{key}"
        if depth > 1 and isinstance(value, dict):
            yield from paths(value, depth - 1, f"{prefix}{key}.")


def of_free(found: Mapping[str, Any]) -> Json:
    """What a null takes away, of values.yaml: an older chart had it."""
    made: Json = {}
    for key, value in found.items():
        if key in FREE:
            made[key] = value
        elif isinstance(value, dict) and (inner := of_free(value)):
            made[key] = inner
    return made


FREE = ("resources", "nodeSelector", "livenessProbe", "readinessProbe", "updateStrategy")
ALL_ON = merged(presets()["everything"], {"namespace": {"create": False}})


def with_values(tmp_path: Path, values: Mapping[str, Any]) -> Chart:
    """The chart with other values: `helm upgrade --reuse-values` takes those of the chart that is installed."""
    copied = tmp_path / "claimscope"
    shutil.copytree(CHART, copied, ignore=shutil.ignore_patterns("values.schema.json"))  # which takes most of the time
    (copied / "values.yaml").write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return Chart.load(str(copied))


def as_upgrade(chart: Chart, values: Mapping[str, Any]) -> dict[str, str]:
    found = chart.render(dict(values), name="claimscope", namespace="claimscope", is_upgrade=True, is_install=False)
    return {path.partition("/templates/")[2]: text for path, text in found.items()}


@pytest.fixture(scope="module")
def unchecked(tmp_path_factory: pytest.TempPathFactory) -> Chart:
    return with_values(tmp_path_factory.mktemp("chart"), defaults())


@pytest.mark.parametrize(
    ("own", "values"), [({}, {}), (of_free(defaults()), ALL_ON)], ids=["no values", "values of an older chart"]
)
def test_the_chart_renders_the_same_with_hardly_any_values_of_its_own(tmp_path: Path, own: Json, values: Json) -> None:
    assert as_upgrade(with_values(tmp_path, own), values) == texts(values, upgrade=True)


@pytest.mark.parametrize("path", list(paths(defaults(), 2)))
def test_values_of_an_older_chart_render(path: str, unchecked: Chart) -> None:
    """A null takes the key away, also from the chart's own values, as if it had never been there."""
    found = as_upgrade(unchecked, nested(path, None))
    if path.rpartition(".")[2] not in FREE:
        assert found == texts(upgrade=True)


def test_a_null_takes_away_what_people_may_not_want() -> None:
    values = {"agent": {"resources": {"limits": None}, "nodeSelector": None, "updateStrategy": None}}
    spec = only(render(values), "DaemonSet")["spec"]
    assert "updateStrategy" not in spec
    assert "nodeSelector" not in spec["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "128Mi"}}


def test_a_security_context_loses_keys_by_null_and_is_never_lost_as_a_whole() -> None:
    """What OpenShift needs, which gives out user ids of its own."""
    nobody = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
    pod = pod_of(render({"controller": {"podSecurityContext": nobody, "securityContext": None}}), "controller")
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"] == defaults()["controller"]["securityContext"]
    spc = {"seccompProfile": None, "seLinuxOptions": {"type": "spc_t"}}
    (container,) = pod_of(render({"agent": {"securityContext": spc}}), "agent")["containers"]
    assert container["securityContext"] == {
        "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]}, "seLinuxOptions": {"type": "spc_t"},
    }


@pytest.mark.parametrize("agent", [{"kernelLog": True}, {"gpuAccess": {"migMonitor": True}}])
def test_what_a_privilege_adds_stands_beside_ones_own(agent: Json) -> None:
    own = {"securityContext": {"seLinuxOptions": {"type": "spc_t"}, "capabilities": {"add": ["SYSLOG"]}}}
    (container,) = pod_of(render({"agent": merged(agent, own)}), "agent")["containers"]
    found = container["securityContext"]
    assert found["seLinuxOptions"] == {"type": "spc_t"}
    assert (found.get("privileged"), found.get("capabilities")) == (
        (True, None) if "kernelLog" in agent else (None, {"drop": ["ALL"], "add": ["SYSLOG", "SYS_ADMIN"]})
    )


def test_names_are_resolved_by_the_cluster_unless_it_is_said_otherwise() -> None:
    host = {"hostNetwork": True}
    assert pod_of(render({"agent": host}), "agent")["dnsPolicy"] == "ClusterFirstWithHostNet"
    given = {**host, "podSpec": {"dnsPolicy": "None"}}
    assert pod_of(render({"agent": given}), "agent")["dnsPolicy"] == "None"


def test_a_node_label_without_a_value_is_enough() -> None:
    labels = [{"key": "cloud.google.com/gke-accelerator"}, {"key": "gpus", "value": 1_000_000}]
    affinity = pod_of(render({"agent": {"gpuNodeLabels": labels}}), "agent")["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [term["matchExpressions"][0] for term in terms] == [
        {"key": "cloud.google.com/gke-accelerator", "operator": "Exists"},
        {"key": "gpus", "operator": "In", "values": ["1000000"]},
    ]


@pytest.mark.parametrize("key", ["nvidia.com/gpu", "dedicated", "sku"])
def test_agents_and_the_uninstaller_go_where_gpu_nodes_are_dedicated(key: str) -> None:
    found = render({"agent": {"extraTolerations": TOLERATION}})
    for kind in ("DaemonSet", "Job"):
        tolerated = only(found, kind)["spec"]["template"]["spec"]["tolerations"]
        assert key in {each["key"] for each in tolerated}
    assert pod_of(found, "agent")["tolerations"][-1] == TOLERATION[0]


def test_what_is_tainted_keeps_neither_controller_nor_uninstaller_away() -> None:
    for kind in ("Deployment", "Job"):
        tolerated = only(render(), kind)["spec"]["template"]["spec"]["tolerations"]
        assert {each["key"] for each in tolerated} >= {
            "claimscope.io/degraded", "claimscope.io/unhealthy", "claimscope.io/lost", "claimscope.io/maintenance",
        }


def test_large_whole_numbers_stay_whole() -> None:
    """A values file's numbers are floats to Helm, whose templates print them as 1e+06."""
    large = 1_000_000
    values: Json = {
        "commonLabels": {"number": large}, "commonAnnotations": {"number": large},
        "agent": {"minReadySeconds": large, "terminationGracePeriodSeconds": large, "nodeSelector": {"pool": large}},
        "controller": {
            "replicas": large, "terminationGracePeriodSeconds": large, "nodeSelector": {"pool": large},
            "podDisruptionBudget": {"maxUnavailable": large},
        },
        "flowControl": {"queueLengthLimit": large, "nominalConcurrencyShares": large},
        "priorityClass": {"create": True, "value": large}, "resourceQuota": {"create": True, "pods": large},
    }  # fmt: skip
    found = texts(values)
    assert [path for path, text in found.items() if "1e+06" in text] == []
    made = render(values)
    assert only(made, "DaemonSet")["spec"]["minReadySeconds"] == large
    assert only(made, "ResourceQuota")["spec"]["hard"] == {"pods": "1000000"}
    assert only(made, "PodDisruptionBudget")["spec"]["maxUnavailable"] == large
    for kind in ("DaemonSet", "Deployment"):
        assert only(made, kind)["spec"]["template"]["spec"]["nodeSelector"]["pool"] == "1000000"
        assert only(made, kind)["metadata"]["labels"]["number"] == "1000000"


# --- as a part of another chart ---


def test_a_parent_chart_takes_it_with_a_condition_and_what_is_global(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    shutil.copytree(CHART, parent / "charts" / "claimscope")
    (parent / "Chart.yaml").write_text(yaml.safe_dump({
        "apiVersion": "v2", "name": "parent", "version": "1.0.0",
        "dependencies": [
            {"name": "claimscope", "version": "0.1.0", "condition": "claimscope.enabled", "tags": ["telemetry"]},
        ],
    }))  # fmt: skip
    values: Json = {
        "tags": {"telemetry": True},
        "global": {"imageRegistry": "registry.example", "imagePullSecrets": ["one", {"name": "two"}], "other": 1},
        "claimscope": {"enabled": True, "imagePullSecrets": [{"name": "two"}, {"name": "three"}]},
    }
    found = Chart.load(str(parent)).render(values, name="fleet", namespace="gpu")
    made = objects({path.partition("/templates/")[2]: text for path, text in found.items()})
    pods = [only(made, kind)["spec"]["template"]["spec"] for kind in ("DaemonSet", "Deployment", "Job")]
    assert {pod["containers"][0]["image"] for pod in pods} == {"registry.example/claimscope/claimscope:0.1.0"}
    for pod in pods:
        assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}, {"name": "three"}]
    off = Chart.load(str(parent)).render({"claimscope": {"enabled": False}}, name="fleet", namespace="gpu")
    assert objects(off) == []


def test_false_nought_and_nothing_stand() -> None:
    values = {"agent": {"startupJitterSeconds": 0, "tolerations": [], "priorityClassName": "", "gpuNodeLabels": []}}
    pod = only(render(values), "DaemonSet")["spec"]["template"]["spec"]
    assert not {"tolerations", "priorityClassName", "affinity"} & pod.keys()
    assert "startup_jitter_seconds: 0\n" in only(render(values), "ConfigMap", "claimscope-agent")["data"]["agent.yaml"]
    assert [each for each in render({"flowControl": {"enabled": False}}) if each["kind"] == "FlowSchema"] == []


# --- the schema itself ---


def parts_of(said: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    yield path, said
    for key, each in said.get("properties", {}).items():
        yield from parts_of(each, f"{path}/{key}")
    if isinstance(said.get("items"), dict):
        yield from parts_of(said["items"], f"{path}/*")
    if isinstance(said.get("additionalProperties"), dict):
        yield from parts_of(said["additionalProperties"], f"{path}/*")


def test_the_schema_is_one_describes_every_value_and_closes_every_block() -> None:
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    for path, said in parts_of(whole):
        words = said.get("description") or path.endswith("*") or path.startswith("/monitoring/prometheusRule/alerts/")
        assert words, path
        if "properties" in said and path != "/global":  # which other charts share
            assert said["additionalProperties"] is False, path


def test_values_yaml_and_the_schema_have_the_same_keys() -> None:
    unset = {f"{part}.readinessProbe.initialDelaySeconds" for part in ("agent", "controller")}
    known = defaults()

    def there(path: str) -> bool:
        here: object = known
        for part in path.split("."):
            if not isinstance(here, dict) or part not in here:
                return False
            here = here[part]
        return True

    assert {path for path in (*VALUES, *TABLES) if not there(path)} == unset
    jsonschema.validate(known, schema())
