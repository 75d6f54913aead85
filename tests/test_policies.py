"""The example policies: valid objects, CEL that lets pass and refuses what it should, queries on metrics that exist."""

from __future__ import annotations

import copy
import functools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from alerts.__main__ import HERE as ALERTS

from claim_objects import claim
from promql import Labels, read
from test_alerts import known_series

POLICIES = Path(__file__).parent.parent / "deploy" / "policies"
FILES = sorted(POLICIES.glob("*.yaml"))
NATIVE = {
    "ConfigMap", "HorizontalPodAutoscaler", "ResourceQuota", "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}  # fmt: skip
OTHERS = {"ValidatingPolicy": "policies.kyverno.io/v1", "ScaledObject": "keda.sh/v1alpha1"}
Json = dict[str, Any]


def documents(name: str) -> list[Json]:
    return list(yaml.safe_load_all((POLICIES / name).read_text()))


def only(name: str, kind: str) -> Json:
    (found,) = (each for each in documents(name) if each["kind"] == kind)
    return found


# --- the objects ---


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("version", ["1.34", "1.35", "1.36", "1.37"])
def test_objects_are_as_kubernetes_has_them(path: Path, version: str) -> None:
    for found in documents(path.name):
        if found["kind"] in NATIVE:
            kubernetes_validate.validate(found, version, strict=True)
        else:
            assert found["apiVersion"] == OTHERS[found["kind"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_says_what_it_does_and_how_to_try_it(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert re.search(r"^# Try it: (kubectl|helm) ", text, re.MULTILINE)
    assert f"[`{path.name}`]({path.name})" in (POLICIES / "README.md").read_text()


def test_every_policy_is_bound_and_denies() -> None:
    for path in FILES:
        found = documents(path.name)
        policies = {each["metadata"]["name"] for each in found if each["kind"] == "ValidatingAdmissionPolicy"}
        bindings = [each["spec"] for each in found if each["kind"] == "ValidatingAdmissionPolicyBinding"]
        assert {each["policyName"] for each in bindings} == policies
        assert all(each["validationActions"] == ["Deny"] for each in bindings)


def test_the_quota_bounds_device_classes_in_the_words_of_kubernetes() -> None:
    hard = only("quota.yaml", "ResourceQuota")["spec"]["hard"]
    classes = [name for name in hard if name.endswith(".deviceclass.resource.k8s.io/devices")]
    assert [name.removesuffix(".deviceclass.resource.k8s.io/devices") for name in classes] == [
        "gpu.nvidia.com", "mig.nvidia.com", "vfio.gpu.nvidia.com",
    ]
    assert set(hard) - set(classes) == {"count/resourceclaims.resource.k8s.io", "requests.nvidia.com/gpu"}


# --- the expressions ---

_VARIABLE = re.compile(r"\bvariables\.(\w+)")


@functools.cache
def compiled(expression: str) -> Any:
    from cel_expr_python import cel

    extensions = "".join(f"- name: {name}\n" for name in ("optional", "strings", "sets", "lists"))
    config = cel.NewEnvConfigFromYaml(f"name: policies\nextensions:\n{extensions}")
    names = dict.fromkeys(("object", "oldObject", "request", "params", "namespaceObject"), cel.Type.DYN)
    return cel.NewEnv(config=config, variables=names).compile(expression)


def refusal(spec: Json, **data: object) -> str | None:
    """The message of the first validation that does not hold. One that cannot be evaluated refuses, too."""
    known = {each["name"]: each["expression"] for each in spec["variables"]}

    def evaluate(expression: str) -> tuple[str, object]:
        while _VARIABLE.search(expression):
            expression = _VARIABLE.sub(lambda found: f"({known[found[1]]})", expression)
        given = {"object": None, "oldObject": None, "params": None, "namespaceObject": None, **data}
        result = compiled(expression).eval(data=given)
        return result.type().name(), result.value()

    for each in spec["validations"]:
        kind, value = evaluate(each["expression"])
        assert kind == "BOOL", (each, value)
        if not value:
            if "messageExpression" not in each:
                return str(each["message"])
            kind, value = evaluate(each["messageExpression"])
            assert kind == "STRING", (each, value)
            return str(value)
    return None


def asking(*names: str, alternatives: tuple[str, ...] = (), template: bool = False) -> Json:
    """A claim, or a template, with a request for each class and one for a device of any of the alternatives."""
    requests: list[Json] = [{"name": f"r{i}", "exactly": {"deviceClassName": each}} for i, each in enumerate(names)]
    if alternatives:
        several = [{"name": f"a{i}", "deviceClassName": each} for i, each in enumerate(alternatives)]
        requests.append({"name": "some", "firstAvailable": several})
    made = copy.deepcopy(claim("training", namespace="team-a"))
    made["kind"] = "ResourceClaim"
    made["spec"] = {"devices": {"requests": requests}}
    if template:
        made |= {"kind": "ResourceClaimTemplate", "spec": {"spec": made["spec"]}}
    return made


GPU, MIG, OTHER = "gpu.nvidia.com", "mig.nvidia.com", "gpu.amd.com"
CLAIMS = [
    # object, namespaces in which it is let in, of team-a (both classes), team-b (GPUs) and team-c (MIG)
    (asking(GPU), "ab"),
    (asking(MIG), "ac"),
    (asking(GPU, MIG), "a"),
    (asking(OTHER), ""),
    (asking(GPU, OTHER), ""),
    (asking(alternatives=(GPU, MIG)), "a"),
    (asking(MIG, alternatives=(MIG,)), "ac"),
    (asking(GPU, template=True), "ab"),
    (asking(MIG, alternatives=(OTHER,), template=True), ""),
    ({"kind": "ResourceClaim", "spec": {}}, "abc"),
]


@pytest.mark.parametrize(("asked", "let_in"), CLAIMS)
@pytest.mark.parametrize("team", "abc")
def test_who_may_claim(asked: Json, let_in: str, team: str) -> None:
    params = {"data": {GPU: "team-a team-b", MIG: "team-a team-c"}}
    spec = only("who-may-claim.yaml", "ValidatingAdmissionPolicy")["spec"]
    said = refusal(spec, object=asked, params=params, request={"namespace": f"team-{team}"})
    assert (said is None) == (team in let_in)

    labels = {"a": (GPU, MIG), "b": (GPU,), "c": (MIG,)}[team]
    namespace = {"metadata": {"labels": {f"device-class.example.com/{name}": "allowed" for name in labels}}}
    spec = only("who-may-claim-kyverno.yaml", "ValidatingPolicy")["spec"]
    said = refusal(spec, object=asked, namespaceObject=namespace, request={"namespace": f"team-{team}"})
    assert (said is None) == (team in let_in)


def test_who_may_claim_as_it_is_shipped() -> None:
    config = only("who-may-claim.yaml", "ConfigMap")
    policy, binding = (
        only("who-may-claim.yaml", f"ValidatingAdmissionPolicy{kind}")["spec"] for kind in ("", "Binding")
    )
    assert binding["paramRef"] == {**{key: config["metadata"][key] for key in ("name", "namespace")},
                                   "parameterNotFoundAction": "Deny"}
    asked = {"object": asking(GPU), "params": config}
    assert refusal(policy, **asked, request={"namespace": "team-b"}) is None
    assert refusal(policy, **asked, request={"namespace": "team-c"}) == (
        "namespace team-c may not claim every class that is asked for here; ConfigMap device-classes in namespace "
        "gpu-policy allows it [mig.nvidia.com]"
    )
    assert refusal(policy, object=asking(MIG), params=config, request={"namespace": "anywhere"}) is None
    assert refusal(policy, object=asking(MIG), params={}, request={"namespace": "team-a"}) is not None
    metadata: list[Json] = [{}, {"labels": {}}, {"labels": {f"device-class.example.com/{GPU}": "no"}}]
    for each in metadata:
        said = refusal(
            only("who-may-claim-kyverno.yaml", "ValidatingPolicy")["spec"], object=asking(GPU),
            namespaceObject={"metadata": each}, request={"namespace": "team-a"},
        )
        assert said == (
            "namespace team-a has no label device-class.example.com/CLASS=allowed for every class that is asked for "
            "here"
        )


ADMIN = {"resource.kubernetes.io/admin-access": "true"}


def test_every_way_to_write_a_namespaces_labels_is_covered() -> None:
    """Both subresources take metadata as well: strategies of pkg/registry/core/namespace keep only the spec."""
    (rule,) = only("admin-access.yaml", "ValidatingAdmissionPolicy")["spec"]["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["namespaces", "namespaces/status", "namespaces/finalize"]
    assert rule["operations"] == ["CREATE", "UPDATE"]


@pytest.mark.parametrize(
    ("before", "after", "groups", "let_in"),
    [
        (None, ADMIN, ["system:authenticated"], False),
        (None, {}, ["system:authenticated"], True),
        (None, None, ["system:authenticated"], True),
        ({}, ADMIN, ["system:authenticated"], False),
        ({}, ADMIN, ["system:authenticated", "gpu-admins"], True),
        ({}, ADMIN, ["system:masters"], True),
        (ADMIN, {**ADMIN, "team": "a"}, ["system:authenticated"], True),
        (ADMIN, {}, ["system:authenticated"], True),
        ({"resource.kubernetes.io/admin-access": "false"}, ADMIN, ["system:authenticated"], False),
    ],
)
def test_who_may_let_a_namespace_look_at_the_devices_of_others(
    before: Json | None, after: Json | None, groups: list[str], let_in: bool
) -> None:
    def namespace(labels: Json | None) -> Json:
        return {"metadata": {"name": "team-a"} | ({} if labels is None else {"labels": labels})}

    created = before is None
    said = refusal(
        only("admin-access.yaml", "ValidatingAdmissionPolicy")["spec"], object=namespace(after),
        oldObject=None if created else namespace(before),
        request={"operation": "CREATE" if created else "UPDATE", "userInfo": {"groups": groups}},
    )
    assert (said is None) == let_in


# --- the queries ---


def adapter() -> Json:
    config = yaml.safe_load(only("prometheus-adapter.yaml", "ConfigMap")["data"]["config.yaml"])
    (rule,) = config["rules"]
    return dict(rule)


def asked_by_the_adapter() -> str:
    """The query for one Deployment, as prometheus-adapter makes it of its template."""
    rule = adapter()
    query = str(rule["metricsQuery"])
    series = re.match(r"[\w:]+", rule["seriesQuery"])
    assert series is not None
    for word, text in (("Series", series[0]), ("LabelMatchers", 'namespace="team-a",workload="inference"'),
                       ("GroupBy", "workload")):
        query = query.replace(f"<<.{word}>>", text)
    assert "<<" not in query
    return query


def keda() -> Json:
    (trigger,) = only("keda.yaml", "ScaledObject")["spec"]["triggers"]
    return dict(trigger)


QUERIES: dict[str, Callable[[], str]] = {
    "adapter": asked_by_the_adapter,
    "keda": lambda: str(keda()["metadata"]["query"]),
}


@pytest.mark.parametrize("name", QUERIES)
def test_queries_read_series_that_exist(name: str) -> None:
    reading, labels = read(QUERIES[name](), known_series())
    assert reading.faults == []
    assert set(reading.metrics) == {
        "claim:dra_claim_device_info:workload", "holder:gpus_busy:rate5m", "holder:gpus_measured:rate5m",
    }
    assert labels == ({"workload"} if name == "adapter" else Labels())


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes() -> None:
    rule = adapter()
    found = only("prometheus-adapter.yaml", "HorizontalPodAutoscaler")["spec"]
    (metric,) = found["metrics"]
    assert metric["object"]["metric"]["name"] == rule["name"]["as"]
    assert metric["object"]["describedObject"] == found["scaleTargetRef"]
    assert rule["resources"]["overrides"]["workload"] == {"group": "apps", "resource": "deployment"}
    reading, _ = read(rule["seriesQuery"], known_series())
    assert reading.faults == []
    assert keda()["metadata"]["ignoreNullValues"] == "false"
    assert float(keda()["metadata"]["threshold"]) == 0.7
    assert metric["object"]["target"] == {"type": "Value", "value": "700m"}


def series(name: str, values: str, **labels: str) -> Json:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


def test_queries_give_the_share_of_held_time_that_was_busy(promtool: str, tmp_path: Path) -> None:
    """Two claims of the workload, 60 % and 90 % busy, a third that only waits, and somebody else's idle one."""
    given: list[Json] = []
    for name, workload, busy in (("a", "inference", 36), ("b", "inference", 54), ("c", "other", 0)):
        one = {"namespace": "team-a", "resourceclaim": name, "claim_uid": f"uid-{name}"}
        device = {**one, "uuid": f"GPU-{name}", "node": "n1"}
        account = {**device, "attribution": "exclusive"}
        given += [
            series("dra_claim_info", "1x20", **one, deviceclass=GPU, workload_kind="Deployment", workload=workload),
            series("dra_claim_device_info", "1x20", **device, admin_access="false"),
            series("gpu_size_ratio", "1x20", uuid=f"GPU-{name}", node="n1"),
            series("dra_claim_gpu_allocated_seconds_total", "0+60x20", **account),
            series("dra_claim_gpu_busy_seconds_total", f"0+{busy}x20", **account, engine="gpu"),
        ]
    waiting = {"namespace": "team-a", "resourceclaim": "d", "claim_uid": "uid-d"}
    given.append(
        series("dra_claim_info", "1x20", **waiting, deviceclass=GPU, workload_kind="Deployment", workload="inference")
    )
    expected = {"adapter": '{workload="inference"}', "keda": "{}"}
    test = {
        "rule_files": [str(ALERTS / "rules" / "recording.yml")],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": given,
            "promql_expr_test": [
                {"expr": query(), "eval_time": "15m", "exp_samples": [{"labels": expected[name], "value": 0.75}]}
                for name, query in QUERIES.items()
            ],
        }],
    }  # fmt: skip
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
