"""SECURITY.md names every permission that the chart can give, none that it does not, and tests that exist."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from claimscope.kube import rights
from helm_help import defaults, merged, nested, presets, render

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
INSTALL = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
MIGRATING = (REPOSITORY / "docs" / "migrating.md").read_text(encoding="utf-8")
Json = dict[str, Any]

LOCAL = {"controller": {"enabled": False}, "agent": {"taintWriter": "local"}}
RENDERED: dict[str, Json] = {
    **presets(),
    "cdi": nested("agent.gpuAccess.mode", "cdi"),
    "hostPath": nested("agent.gpuAccess.mode", "hostPath"),
    "migMonitor": nested("agent.gpuAccess.migMonitor", True),
    "hostNetwork": nested("agent.hostNetwork", True),
    "local": LOCAL,
    "authorization": {part: {"authorization": {"mode": "kubernetes"}} for part in ("agent", "controller")},
    "web": {part: {"webConfig": {"secretName": "web"}} for part in ("agent", "controller")},
    "callers": nested("rbac.callerRoles", True),
}


def table() -> list[tuple[str, str, str, str]]:
    """Who, which permission, why, and what fails without it, of SECURITY.md."""
    section = PAGE.partition("\n## Permissions\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    found = [tuple(cell.strip() for cell in row) for row in rows[1:]]
    assert all(len(row) == 4 for row in found), found
    return found  # type: ignore[return-value]  # of four each


def allowed(found: list[Json]) -> Iterator[tuple[str, str]]:
    """(who, `VERBS RESOURCE`) of each rule of a role, by the account that it is bound to."""
    bound = {
        (each["roleRef"]["kind"], each["roleRef"]["name"]): {subject["name"] for subject in each["subjects"]}
        for each in found if each["kind"] in ("ClusterRoleBinding", "RoleBinding")
    }  # fmt: skip
    for role in found:
        if role["kind"] not in ("ClusterRole", "Role"):
            continue
        accounts = bound.get((role["kind"], role["metadata"]["name"]), {"callers"})
        for rule in role["rules"]:
            verbs = ", ".join(rule["verbs"])
            names = rule.get("nonResourceURLs") or [
                f"{resource}.{group}" if group else resource
                for group in rule["apiGroups"] for resource in rule["resources"]
            ]  # fmt: skip
            for name in names:
                for account in accounts:
                    yield account.removeprefix("claimscope-"), f"{verbs} {name}"


def held(found: list[Json]) -> Iterator[tuple[str, str]]:
    """(who, permission on the node) of each pod."""
    for each in found:
        if each["kind"] not in ("DaemonSet", "Deployment", "Job"):
            continue
        who = each["metadata"]["name"].removeprefix("claimscope-")
        pod = each["spec"]["template"]["spec"]
        yield from ((who, f"{name}: true") for name in ("hostPID", "hostNetwork", "hostIPC") if pod.get(name))
        if "runtimeClassName" in pod:
            yield who, f"runtimeClassName {pod['runtimeClassName']}"
        if "priorityClassName" in pod:
            yield who, "priorityClassName"
        notes = each["spec"]["template"]["metadata"].get("annotations", {})
        yield from ((who, f"annotation {name}") for name in notes if "cdi.k8s.io/" in name)
        if pod["automountServiceAccountToken"]:
            yield who, "automountServiceAccountToken: true"
        for volume in pod.get("volumes", ()):
            if "hostPath" in volume:
                mounts = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
                read_only = all(mount.get("readOnly") for mount in mounts)
                yield who, f"hostPath {volume['name']}" + ("" if read_only else ", writable")
            if "secret" in volume:
                yield who, f"secret {volume['name']}"
        (container,) = pod["containers"]
        given = {each["name"]: each.get("value") for each in container.get("env", ())}
        if given.get("NVIDIA_VISIBLE_DEVICES", "void") != "void":
            yield who, f"NVIDIA_VISIBLE_DEVICES={given['NVIDIA_VISIBLE_DEVICES']}"
        security = {**pod.get("securityContext", {}), **container["securityContext"]}
        yield from ((who, f"capability {name}") for name in security.get("capabilities", {}).get("add", ()))
        if security.get("privileged"):
            yield who, "privileged: true"
        if security["runAsUser"] == 0:
            yield who, "runAsUser: 0"


def permissions() -> set[tuple[str, str]]:
    """Everything that any of the values gives to anybody."""
    return {each for found in map(render, RENDERED.values()) for each in [*allowed(found), *held(found)]}


def test_every_permission_is_named_with_its_reason() -> None:
    named = [(who, re.sub(r"`", "", permission)) for who, permission, _, _ in table()]
    assert sorted(named) == sorted(set(named)), "named twice"
    assert set(named) == permissions()
    for row in table():
        assert all(row), row


def test_every_need_of_the_code_is_a_permission_of_the_page() -> None:
    """The rights that doctor asks about: none is missing from the page, and each is one that something gives."""
    granted: dict[str, set[str]] = {}
    for who, permission in permissions():
        verbs, _, name = permission.rpartition(" ")
        granted.setdefault(f"{who} {name}", set()).update(verbs.split(", "))
    needs = {
        "agent": rights.AGENT + rights.AGENT_LOCAL + rights.REVIEWS,
        "controller": rights.CONTROLLER + rights.CONTROLLER_FENCING + rights.CONTROLLER_NODE_TAINTS + rights.REVIEWS,
    }
    for who, wanted in needs.items():
        for need in wanted:
            name, slash, part = need.resource.partition("/")
            resource = f"{name}{slash}{part}" + (f".{need.group}" if need.group else "")
            assert set(need.verbs) <= granted[f"{who} {resource}"], (who, need)


def test_nothing_is_privileged_unless_it_is_asked_for() -> None:
    for name in ("defaults", "minimal", "standard", "replace-dcgm-exporter", "cdi"):
        found = {permission for who, permission in held(render(RENDERED[name])) if who == "agent"}
        cdi = "NVIDIA_VISIBLE_DEVICES=management.nvidia.com/gpu=all", "annotation nvidia.cdi.k8s.io/container.agent"
        assert found == {
            "runAsUser: 0", "hostPath pod-resources", "hostPath journal, writable", "runtimeClassName nvidia",
            "automountServiceAccountToken: true", "priorityClassName",
            *(cdi if name == "cdi" else ["NVIDIA_VISIBLE_DEVICES=all"]),
        }, name  # fmt: skip


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_the_controller_runs_at_the_level_restricted(kind: str) -> None:
    """What the Pod Security Standard `restricted` asks for, k8s.io/pod-security-admission/policy."""
    (found,) = (each for each in render() if each["kind"] == kind)
    pod = found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    security = {**pod["securityContext"], **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {next(key for key in each if key != "name") for each in pod.get("volumes", ())} <= {
        "configMap", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
    }


# --- what the pages point at ---


@pytest.mark.parametrize("test", sorted(set(re.findall(r"`(test_\w+\.py::test_\w+)`", PAGE))))
def test_the_tests_that_it_names_are_there(test: str) -> None:
    file, _, name = test.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (REPOSITORY / "tests" / file).read_text(), re.MULTILINE)


def test_each_attack_names_what_stops_it_and_what_remains() -> None:
    section = PAGE.partition("\n## Who could do what\n")[2].partition("\n## ")[0]
    actors = section.split("\n### ")[1:]
    assert [actor.partition("\n")[0] for actor in actors] == [
        "A compromised agent", "A hostile pod", "A hostile scraper", "A hostile tenant",
        "A compromised controller", "A compromised release or registry", "Whoever may write in our namespace",
    ]
    for actor in actors:
        assert "**Stopped by**" in actor
        assert "**Remains**" in actor
        assert re.search(r"`test_\w+\.py::", actor), actor


def test_values_that_the_pages_and_doctor_name_are_values_of_the_chart() -> None:
    known = defaults()
    doctor = "".join(path.read_text() for path in (REPOSITORY / "exporter/claimscope/doctor").glob("*.py"))
    cures = "".join(f"`{path}`" for path in re.findall(r"\b(agent\.(?:gpuAccess|kernelLog)[\w.]*)", doctor))
    assert "`agent.kernelLog`" in cures
    for page in (PAGE, INSTALL, MIGRATING, cures):
        for path in re.findall(r"`((?:agent|controller|rbac|monitoring|networkPolicy|admissionPolicy)\.[\w.]+)", page):
            value: Any = known
            for part in path.rstrip(".").split("."):
                assert isinstance(value, dict), path
                assert part in value, path
                value = value[part]


def steps_of_the_migration() -> Iterator[Json]:
    """The values that each step's command leaves, as Helm reads its flags."""
    section = MIGRATING.partition("\n# From dcgm-exporter\n")[2].partition("\n## What changes")[0]
    held: Json = {}
    for line in re.findall(r"^helm (?:install|upgrade) .+$", section.replace("\\\n", ""), re.MULTILINE):
        held = held if "--reuse-values" in line else {}
        for path in re.findall(r"--values (\S+)", line):
            held = merged(held, yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8")))
        for path, value in re.findall(r"--set ([\w.]+)=(\S+)", line):
            held = merged(held, nested(path, value))
        yield held


def test_no_step_of_the_migration_takes_away_what_one_before_it_gave() -> None:
    steps = [render(values) for values in steps_of_the_migration()]
    names = [{(each["kind"], each["metadata"]["name"]) for each in found} for found in steps]
    assert len(names) == 3
    assert {kind for kind, _ in names[0]} >= {"PrometheusRule", "NetworkPolicy", "PodMonitor", "ServiceMonitor"}
    assert [before - after for before, after in itertools.pairwise(names)] == [set(), set()]
    (ports,) = (
        each["spec"]["template"]["spec"]["containers"][0]["ports"] for each in steps[-1] if each["kind"] == "DaemonSet"
    )
    assert [port["containerPort"] for port in ports] == [9400]


def test_alerts_and_metrics_of_the_migration_exist() -> None:
    from claimscope.export.dcgm.rows import rows
    from claimscope.metrics.tables import QUANTITIES
    from test_alerts import known_series

    known = known_series()
    section = MIGRATING.partition("## Alerts and panels")[2].partition("\n## ")[0]
    for line in (line for line in section.splitlines() if line.startswith("| `")):
        _, theirs, ours, _, _ = line.split("|")
        assert set(re.findall(r"DCGM_\w+", theirs)) <= {row.name for row in rows(QUANTITIES)}, line
        for alert in re.findall(r"`(DRA\w+)`", ours):
            assert (REPOSITORY / f"docs/runbooks/{alert}.md").exists(), alert
        for metric in re.findall(r"`(\w+)`", ours):
            assert metric.startswith("DRA") or metric in known, metric
    for metric in re.findall(r"`((?:dra|gpu|pod_gpu)_[a-z_]+[a-z])[`{]", MIGRATING):
        assert metric in known or metric in ("dra_claim_name", "dra_claim_namespace"), metric
