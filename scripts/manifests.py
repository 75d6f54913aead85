"""Which plain manifests does the chart give, for those without Helm? And which files of it follow from others?

The manifests of deploy/manifests/ are rendered by Helm's own library (PyPI's helm-python-sdk), as release `claimscope`
in the namespace `claimscope`. What only Helm reads is left out, and so is what runs at `helm uninstall`. docs/install/
has what `helm template` prints of each preset, whole. In the chart, files/defaults.yaml follows from values.yaml, and a
part of values.schema.json from the settings of both parts.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from claimscope import config

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deploy" / "helm" / "claimscope"
MANIFESTS = ROOT / "deploy" / "manifests"
NAME = "claimscope"  # of the release and of its namespace
TEMPLATED = ROOT / "docs" / "install"
HEAD = "# Written by `make docs` from deploy/helm/claimscope: change the chart instead.\n"
PRINTED = """\
# Written by `make docs`: what
#   helm template claimscope deploy/helm/claimscope --namespace claimscope \\
#     --values deploy/helm/claimscope/presets/{name}.yaml
# prints. To read, not to apply: it has the uninstaller, which helm alone keeps until `helm uninstall`. To apply without
# Helm take deploy/manifests/presets/{name}.yaml.
"""

# One template each, with the values that make it whole.
SINGLE: Mapping[str, dict[str, Any]] = {
    "rbac-agent.yaml": {},
    "rbac-agent-local.yaml": {"agent": {"taintWriter": "local"}, "controller": {"enabled": False}},
    "rbac-controller.yaml": {},
    "rbac-controller-node-taints.yaml": {"rbac": {"nodeTaints": True}},
    "rbac-authorization.yaml": {
        "agent": {"authorization": {"mode": "kubernetes"}}, "controller": {"authorization": {"mode": "kubernetes"}},
    },
    "clusterroles-for-callers.yaml": {"rbac": {"callerRoles": True}},
    "admission-policy.yaml": {},
}

# Settings that the chart gives by values of its own, or by where it mounts things.
MANAGED: Mapping[str, frozenset[str]] = {
    "agent": frozenset({
        "web_listen_address", "web_config_file", "web_authorization", "web_authorization_audiences", "node_name",
        "driver_root", "simulate", "scenario", "simulation_start_monotonic_ns", "pod_resources_socket", "kubeconfig",
        "api_server_url", "lease_namespace", "health_thresholds", "kernel_log", "taint_writer", "taint_mode",
        "taint_policy", "state_file", "control_socket", "startup_jitter_seconds", "compat_dcgm", "compat_dcgm_names",
        "compat_dcgm_hostname_label", "otlp_endpoint", "otlp_protocol", "otlp_interval_seconds",
    }),
    "controller": frozenset({
        "web_listen_address", "web_config_file", "web_authorization", "web_authorization_audiences", "kubeconfig",
        "api_server_url", "namespace", "leader_election", "lease_name", "identity", "taint_mode", "taint_policy",
        "otlp_endpoint", "otlp_protocol", "otlp_interval_seconds",
    }),
}  # fmt: skip
PARTS: Mapping[str, type[config.AnyConfig]] = {"agent": config.Config, "controller": config.ControllerConfig}

_ONLY_HELMS = re.compile(
    r"^ +annotations:\n +helm\.sh/resource-policy: keep\n(?! {4})"
    r"|^ +(helm\.sh/(chart|resource-policy): .*|app\.kubernetes\.io/managed-by: Helm)\n",
    re.MULTILINE,
)
# In which Helm prints and installs what a chart has: pkg/releaseutil/kind_sorter.go, with custom kinds at the end.
_ORDER = (
    "PriorityClass", "Namespace", "NetworkPolicy", "ResourceQuota", "PodDisruptionBudget", "ServiceAccount",
    "ConfigMap", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Service", "DaemonSet", "Deployment",
    "Job",
)  # fmt: skip


def presets() -> dict[str, dict[str, Any]]:
    """The values files, by name."""
    paths = sorted(CHART.glob("presets/*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


def render(values: Mapping[str, Any]) -> dict[str, str]:
    """The text of each template, by its path below templates/, without those that give nothing."""
    from helm_python import Chart

    found = Chart.load(str(CHART)).render(dict(values), name=NAME, namespace=NAME)
    return {
        path.partition("/templates/")[2]: text
        for path, text in sorted(found.items()) if text.strip() and not path.endswith("NOTES.txt")
    }  # fmt: skip


def plain(text: str) -> str:
    """A manifest without what only Helm reads."""
    return _ONLY_HELMS.sub("", text).strip() + "\n"


def install(values: Mapping[str, Any]) -> str:
    """All objects of a preset in one file, in an order in which they can be applied."""
    parts = (plain(text) for path, text in render(values).items() if path != "uninstall.yaml")
    documents = [each.strip() for part in parts for each in re.split(r"^---\n", part, flags=re.MULTILINE)]
    kept = [each for each in documents if yaml.safe_load(each)]
    return "---\n".join(f"{each}\n" for each in sorted(kept, key=_order))


def _order(text: str) -> int:
    kind = yaml.safe_load(text)["kind"]
    return {"Namespace": 0, "PriorityClass": 1, "ServiceAccount": 2, "ConfigMap": 3}.get(kind, 4)


def template(values: Mapping[str, Any]) -> str:
    """What `helm template` prints: each object below the template that it comes from, hooks at the end."""
    found = [
        (_printed(document), path, text.strip())
        for path, rendered in render(values).items()
        for text in re.split(r"^---\n", rendered, flags=re.MULTILINE) if (document := yaml.safe_load(text))
    ]  # fmt: skip
    return "".join(
        f"---\n# Source: {NAME}/templates/{path}\n{text}\n"
        for _, path, text in sorted(found, key=lambda each: each[0])
    )  # fmt: skip


def _printed(document: Mapping[str, Any]) -> tuple[bool, int, str]:
    kind = document["kind"]
    hook = "helm.sh/hook" in document["metadata"].get("annotations", {})
    return (hook, _ORDER.index(kind), "") if kind in _ORDER else (hook, len(_ORDER), kind)


def settings(part: str) -> dict[str, Any]:
    """What the schema says of `agent.config` or `controller.config`, by the part's own settings."""
    return {
        field.key: _property(field) for field in config.fields(PARTS[part]) if field.key not in MANAGED[part]
    }  # fmt: skip


def _property(field: config.Field) -> dict[str, Any]:
    said = {"description": field.description}
    word: dict[str, Any] = {"type": "string", "enum": list(field.choices)} if field.choices else {"type": "string"}
    if field.is_list:
        return {**said, "type": "array", "items": word}
    if not isinstance(field.default, int | float):
        return {**said, **word}
    bounds = {"exclusiveMinimum" if field.lowest.startswith("just above") else "minimum": field.lowest.split()[-1:],
              "maximum": field.highest.split()}  # fmt: skip
    kind = "integer" if isinstance(field.default, int) else "number"
    return {**said, "type": kind, **{name: float(text[0]) for name, text in bounds.items() if text}}


def schema(text: str) -> str:
    """The text of values.schema.json with the settings as they are now; all else stays as it is."""
    places = [found.end() for found in re.finditer(r'"config": (?=\{)', text)]
    for place, part in sorted(zip(places, PARTS, strict=True), reverse=True):
        given, end = json.JSONDecoder().raw_decode(text, place)
        line = text[text.rfind("\n", 0, place) + 1 :]
        spelled = json.dumps({**given, "properties": settings(part)}, indent=2)
        indented = spelled.replace("\n", "\n" + line[: len(line) - len(line.lstrip())])
        text = text[:place] + indented + text[end:]
    return text


README = """\
<!-- Written by `make docs` from values.yaml, values.schema.json and scripts/manifests.py. -->
# Helm chart of claimscope

GPU telemetry, accounting and health by Kubernetes ResourceClaim: an agent on each GPU node, and a controller.

```console
$ helm install claimscope deploy/helm/claimscope -n claimscope --create-namespace
$ kubectl label namespace claimscope pod-security.kubernetes.io/enforce=privileged   # for the agents' hostPath volumes
```

`helm template` prints the uninstaller, too: `helm template --no-hooks ... | kubectl apply`, and `skipHooks: true` in
Kustomize's helmCharts.

Needs Kubernetes 1.30; nothing else by default. [install.md](../../../docs/install.md) has the ways to the GPU, sizing,
upgrade and uninstall. Values files for common cases, `-f presets/NAME.yaml`, and what each renders to:

| preset | | `helm template` | to apply without Helm |
|---|---|---|---|
"""
TABLES = (
    ".config", ".alerts", ".endpoint", ".spec", ".podSpec", ".container", ".securityContext", ".podSecurityContext",
)  # fmt: skip
VALUES = """
## Values

Every one may be left out, also whole blocks and also on `helm upgrade --reuse-values` from an older chart. What is
misspelt, of a wrong type or out of bounds is refused with its path. [values.yaml](values.yaml) says more of each.

| value | default | meaning |
|---|---|---|
"""


def readme(values: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """The chart's README.md."""
    rows = (
        f"| [{name}](presets/{name}.yaml) | {_preset_words(name)} | [yaml](../../../docs/install/{name}.yaml) "
        f"| [yaml](../../manifests/presets/{name}.yaml) |\n"
        for name in presets()
    )
    return README + "".join(rows) + VALUES + "".join(_rows(values, said))


def _preset_words(name: str) -> str:
    lines = (CHART / "presets" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    words = " ".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("# "), lines))
    return words.replace("docs/", "../../../docs/")


def _rows(values: Mapping[str, Any], said: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        path, about = f"{prefix}{key}", said["properties"][key]
        table = path.endswith(TABLES)
        if isinstance(value, dict) and about.get("properties") and not table:
            yield from _rows(value, about, f"{path}.")
        else:
            default = json.dumps(value)
            shown = f"`{default}`" if len(default) < 60 else "see values.yaml"
            words = about["description"].replace("|", "\\|")
            yield f"| `{path}` | {shown} | {words} |\n"


def files() -> Iterator[tuple[Path, str]]:
    """Every file that follows from the chart, and its text."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    yield CHART / "files" / "defaults.yaml", (
        "# Written by `make docs` from values.yaml; see claimscope.fill in templates/_helpers.tpl.\n"
        + yaml.safe_dump(values, sort_keys=False, width=120)
    )  # fmt: skip
    yield CHART / "values.schema.json", schema((CHART / "values.schema.json").read_text(encoding="utf-8"))
    said = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    yield CHART / "README.md", readme(values, said)
    for name, given in SINGLE.items():
        yield MANIFESTS / name, HEAD + plain(render(given)[name])
    for name, given in presets().items():
        whole = {**given, "namespace": {"create": True}}  # nobody else makes it
        yield MANIFESTS / "presets" / f"{name}.yaml", HEAD + install(whole)
        yield TEMPLATED / f"{name}.yaml", PRINTED.format(name=name) + template(given)


def main() -> None:
    """Writes what changed and names it. Twice: what is filled in comes before what is rendered with it."""
    for _ in range(2):
        for path, text in files():
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
