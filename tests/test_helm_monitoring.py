"""Are the chart's monitors, rules and boards what the operator, Prometheus and Grafana take, and the tables say?"""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from alerts import chart
from alerts.model import RUNBOOKS
from alerts.runbooks import by_name
from alerts.table import FILES, alerts
from dashboards.catalogue import BOARDS
from dashboards.write import CHART as BOARD_FILES
from dashboards.write import as_line
from helm_python.errors import HelmError

from claimscope.metrics import cluster, controller
from helm_help import CHART, only, render, schema
from operator_help import relabeling

CRDS = json.loads((Path(__file__).parent / "crds" / "prometheus-operator-0.80.1.json").read_text(encoding="utf-8"))
OPERATED = ("PodMonitor", "ServiceMonitor", "PrometheusRule")
MONITORS: Mapping[str, Any] = {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}
KIB = 1024


def rules_of(alerting: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of the PrometheusRule with these values."""
    rule = only(render({"monitoring": {"prometheusRule": {"enabled": True, **alerting}}}), "PrometheusRule")
    groups: list[dict[str, Any]] = rule["spec"]["groups"]
    return groups


def alert_of(groups: Iterable[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    return [rule for group in groups for rule in group["rules"] if rule.get("alert") == name]


def faults(made: Mapping[str, Any]) -> list[str]:
    """What the operator's definitions find wrong."""
    schema = {"$ref": f"#/$defs/{made['kind']}", **CRDS}
    found = jsonschema.Draft202012Validator(schema).iter_errors(made)
    return sorted(f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in found)


EVERYTHING: Mapping[str, Any] = {
    "agent": {"webConfig": {"secretName": "web"}},
    "controller": {"webConfig": {"secretName": "web"}},
    "monitoring": {
        kind: {
            "enabled": True, "interval": "1m", "scrapeTimeout": "30s", "namespace": "monitoring",
            "labels": {"release": "kube-prometheus-stack"}, "annotations": {"who": "us"},
            "relabelings": [{"targetLabel": "cluster", "replacement": "east"}],
            "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "gpu_pcie_.*"}],
            "endpoint": {
                "tlsConfig": {
                    "ca": {"secret": {"name": "ca", "key": "ca.crt"}}, "serverName": "claimscope",
                    "cert": {"secret": {"name": "client", "key": "tls.crt"}},
                    "keySecret": {"name": "client", "key": "tls.key"},
                },
                "basicAuth": {"username": {"name": "a", "key": "user"}, "password": {"name": "a", "key": "password"}},
                "authorization": {"type": "Bearer", "credentials": {"name": "token", "key": "token"}},
                "honorTimestamps": True, "enableHttp2": False, "followRedirects": False,
                "params": {"a": ["b"]}, "proxyUrl": "http://proxy:3128", "filterRunning": True,
            },
            "spec": {
                "scrapeClass": "istio-mtls", "sampleLimit": 50_000, "targetLimit": 2_000, "labelLimit": 64,
                "labelNameLengthLimit": 128, "labelValueLengthLimit": 1_024, "keepDroppedTargets": 10,
                "bodySizeLimit": "64MB", "attachMetadata": {"node": True}, "scrapeProtocols": ["OpenMetricsText1.0.0"],
            },
        }
        for kind in ("podMonitor", "serviceMonitor")
    } | {"prometheusRule": {"enabled": True, "labels": {"role": "alerts"}, "annotations": {"who": "us"}}},
}  # fmt: skip


def agents(**of: object) -> dict[str, Any]:
    """Values of the agents' monitor."""
    return {"monitoring": {**MONITORS, "podMonitor": {"enabled": True, **of}}}


def alerting(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of one alert."""
    return {"monitoring": {"prometheusRule": {"enabled": True, "alerts": {name: values}}}}


@pytest.mark.parametrize("by_service", [False, True])
@pytest.mark.parametrize(
    "values", [{"monitoring": {**MONITORS, "prometheusRule": {"enabled": True}}}, EVERYTHING], ids=["least", "most"]
)
def test_the_operator_takes_every_object(values: Mapping[str, Any], by_service: bool) -> None:
    monitoring = values["monitoring"]
    given = {**monitoring, "podMonitor": {**monitoring["podMonitor"], "asServiceMonitor": by_service}}
    made = [each for each in render({**values, "monitoring": given}) if each["kind"] in OPERATED]
    kinds = ["PrometheusRule", "ServiceMonitor", "ServiceMonitor" if by_service else "PodMonitor"]
    assert sorted(each["kind"] for each in made) == sorted(kinds)
    assert [fault for each in made for fault in faults(each)] == []


def test_the_operators_definitions_refuse_what_they_do_not_know() -> None:
    monitor = only(render({"monitoring": MONITORS}), "PodMonitor")
    monitor["spec"]["podMetricsEndpoints"][0] |= {"honourLabels": True, "interval": "15"}
    monitor["spec"]["podMetricsEndpoints"][0]["relabelings"][0]["action"] = "dropLabel"
    assert [fault.split(": ")[0] for fault in faults(monitor)] == [
        "spec.podMetricsEndpoints.0.interval",
        "spec.podMetricsEndpoints.0.relabelings.0.action",
        "spec.podMetricsEndpoints.0",
    ]


def test_every_field_that_may_be_added_is_the_operators() -> None:
    for kind, endpoint, spec in (
        ("podMonitor", "PodMetricsEndpoint", "PodMonitorSpec"), ("serviceMonitor", "Endpoint", "ServiceMonitorSpec"),
    ):  # fmt: skip
        values = schema()["properties"]["monitoring"]["properties"][kind]["properties"]
        assert {*values["endpoint"]["properties"]} - {*CRDS["$defs"][endpoint]["properties"]} == set()
        assert {*values["spec"]["properties"]} - {*CRDS["$defs"][spec]["properties"]} == set()


def test_nothing_is_made_unless_asked_for() -> None:
    kinds = {each["kind"] for each in render({})}
    assert kinds & {*OPERATED} == set()
    boards = [each for each in render({}) if "grafana_dashboard" in each["metadata"].get("labels", {})]
    assert boards == []


def test_no_monitor_of_a_part_that_is_off() -> None:
    made = render({"monitoring": MONITORS, "agent": {"enabled": False}})
    assert [each["kind"] for each in made if each["kind"] in OPERATED] == ["ServiceMonitor"]
    made = render({"monitoring": MONITORS, "controller": {"enabled": False}})
    assert [each["kind"] for each in made if each["kind"] in OPERATED] == ["PodMonitor"]


def test_relabelings_of_ones_own_come_last() -> None:
    monitor = only(render(EVERYTHING), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["relabelings"] == [
        {"action": "labeldrop", "regex": "pod|container|namespace|endpoint|service"},
        {"targetLabel": "job", "replacement": "claimscope-agent"},
        {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"},
        {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"},
        {"targetLabel": "cluster", "replacement": "east"},
    ]
    assert endpoint["metricRelabelings"] == [
        {"action": "drop", "sourceLabels": ["__name__"], "regex": "gpu_pcie_.*"}
    ]
    assert (endpoint["scheme"], endpoint["honorLabels"]) == ("https", True)


def test_those_without_the_operator_are_told_the_same(promtool: str, tmp_path: Path) -> None:
    page = (CHART.parent.parent.parent / "docs" / "install.md").read_text(encoding="utf-8")
    (text,) = [each for each in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if each.startswith("scrape_configs:")]
    made, configuration = render({"monitoring": MONITORS}), yaml.safe_load(text)
    for job, kind, endpoints in zip(
        configuration["scrape_configs"], ("PodMonitor", "ServiceMonitor"), ("podMetricsEndpoints", "endpoints"),
        strict=True,
    ):  # fmt: skip
        (endpoint,) = only(made, kind)["spec"][endpoints]
        told = [each for each in job["relabel_configs"] if "target_label" in each]
        assert told == [relabeling(each) for each in endpoint["relabelings"] if "sourceLabels" in each]
        told = job.get("metric_relabel_configs", [])
        assert told == [relabeling(each) for each in endpoint.get("metricRelabelings", [])]
        assert {"targetLabel": "job", "replacement": job["job_name"]} in endpoint["relabelings"]
        assert job["honor_labels"] is True
        del job["kubernetes_sd_configs"]  # Debian builds Prometheus without it
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_controllers_own_series_keep_their_instance_and_all_others_lose_it() -> None:
    monitor = only(render({"monitoring": MONITORS}), "ServiceMonitor")
    (rule,) = monitor["spec"]["endpoints"][0]["metricRelabelings"]
    pattern = re.compile(rule["regex"])
    assert {name for name in cluster.FAMILIES if pattern.fullmatch(name) is None} == set()
    assert {name for name in controller.FAMILIES if pattern.fullmatch(name) is not None} == set()
    found = pattern.fullmatch("dra_claim_info")
    assert found is not None
    assert found[1] == ""  # $1, which `replacement` is where it is not given; an empty label is none


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"agent": {"webConfig": {"secretName": "web"}}}, r"monitoring\.podMonitor\.endpoint\.tlsConfig: agent\.webC"),
        ({"controller": {"webConfig": {"secretName": "web"}}}, r"monitoring\.serviceMonitor\.endpoint\.tlsConfig: co"),
        ({"agent": {"webConfig": {"secretName": "web", "clientCertificates": True}},
          **agents(endpoint={"tlsConfig": {"insecureSkipVerify": True}})}, r"agent\.webConfig requires client certif"),
        ({"agent": {"authorization": {"mode": "kubernetes"}}}, r"podMonitor\.endpoint: agent\.authorization\.mode is"),
        (agents(interval="5s"), r"monitoring\.podMonitor\.scrapeTimeout: 10s is longer than the interval, 5s"),
        ({**agents(asServiceMonitor=True), "agent": {"service": {"enabled": False}}},
         r"there is no Service of the agents: set agent\.service\.enabled"),
        ({"controller": {"service": {"enabled": False}}}, r"no Service of the controller: set controller\.service\.en"),
        (alerting("DRAClaimIdel", {}), "DRAClaimIdel"),
        (alerting("DRAClaimIdle", {"thresholds": {"hours": 1}}), "hours"),
        (alerting("DRAClaimIdle", {"for": "an hour"}), "for"),
        # Four rules of one name, each with a span and a factor of its own.
        (alerting("DRAAllocationErrorBudgetBurn", {"thresholds": {"factor": 2}}), "factor"),
        (agents(endpoint={"honorLabels": False}), "honorLabels"),
        (agents(spec={"sampelLimit": 1}), "sampelLimit"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_cure(values: Mapping[str, Any], said: str) -> None:
    with pytest.raises(HelmError, match=said):
        render({"monitoring": MONITORS, **values})


def test_certificates_and_tokens_may_come_by_a_scrape_class() -> None:
    agent = {
        "webConfig": {"secretName": "web", "clientCertificates": True}, "authorization": {"mode": "kubernetes"},
    }  # fmt: skip
    made = only(render({**agents(spec={"scrapeClass": "tls"}), "agent": agent}), "PodMonitor")
    assert (made["spec"]["scrapeClass"], made["spec"]["podMetricsEndpoints"][0]["scheme"]) == ("tls", "https")


def test_the_controller_may_be_asked_with_prometheus_own_token() -> None:
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    made = only(
        render({
            "controller": {"authorization": {"mode": "kubernetes"}},
            "monitoring": {"serviceMonitor": {"enabled": True, "endpoint": {"bearerTokenFile": token}}},
        }),
        "ServiceMonitor",
    )  # fmt: skip
    assert made["spec"]["endpoints"][0]["bearerTokenFile"] == token
    assert faults(made) == []


# --- rules ---


def test_files_of_the_chart_are_those_of_the_tables() -> None:
    made = chart.files()
    assert {path: path.read_text(encoding="utf-8") for path in made} == made, "run `python -m alerts.chart`"


def test_with_default_values_the_rules_are_the_committed_ones() -> None:
    committed = [
        group for name in FILES
        for group in yaml.safe_load((Path(chart.__file__).parent / "rules" / f"{name}.yml").read_text())["groups"]
    ]  # fmt: skip
    assert rules_of({}) == committed


def test_every_threshold_can_be_changed_and_promtool_takes_the_result(promtool: str, tmp_path: Path) -> None:
    changed: dict[str, Any] = {}
    number = 0.125
    for name, properties in chart.schema()["properties"].items():
        for threshold, said in properties["properties"].get("thresholds", {"properties": {}})["properties"].items():
            number += 1
            value = 1_000_000 if said["type"] == "integer" else number
            changed.setdefault(name, {}).setdefault("thresholds", {})[threshold] = value
    groups = rules_of({"alerts": changed})
    written = "\n".join(rule["expr"] for group in groups for rule in group["rules"])
    numbers = [value for each in changed.values() for value in each["thresholds"].values()]
    assert len(numbers) > 20
    assert [value for value in numbers if f" {value}" not in written] == []
    assert "[[" not in written
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
    # Not its linter: two rules of one name and labels are fine where no series is in both.
    done = subprocess.run(
        [promtool, "check", "rules", "--lint=none", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(len(group["rules"]) for group in groups)
    assert f"SUCCESS: {count} rules found" in done.stdout


@pytest.mark.parametrize("seconds", [0, 1.5])
def test_a_threshold_that_is_a_range_too_is_a_whole_number(seconds: float) -> None:
    """Prometheus has no `[0s]` and no `[1.5s]`."""
    with pytest.raises(HelmError, match="at '/monitoring/prometheusRule/alerts/DRAClaimPendingTooLong/thresholds"):
        rules_of({"alerts": {"DRAClaimPendingTooLong": {"thresholds": {"seconds": seconds}}}})


def test_an_alert_as_somebody_wants_it() -> None:
    groups = rules_of({
        "alertLabels": {"team": "infra", "tier": 1},
        "runbookBaseUrl": "https://wiki.example.com/gpu/",
        "alerts": {
            "DRAClaimIdle": {"enabled": False},
            "DRAClaimPendingTooLong": {
                "for": "5m", "severity": "critical", "labels": {"team": "ml"}, "thresholds": {"seconds": 900},
            },
        },
    })  # fmt: skip
    assert alert_of(groups, "DRAClaimIdle") == []
    (pending,) = alert_of(groups, "DRAClaimPendingTooLong")
    assert pending["expr"].endswith(" > 900")
    assert pending["for"] == "5m"
    assert pending["labels"] == {
        "component": "dra", "owner": "workload", "severity": "critical", "team": "ml", "tier": "1",
    }  # fmt: skip
    assert pending["annotations"]["runbook_url"] == "https://wiki.example.com/gpu/DRAClaimPendingTooLong.md"
    assert "{{ humanizeDuration $value }}" in pending["annotations"]["description"]
    (straggler,) = alert_of(groups, "DRAClaimStraggler")
    assert (straggler["labels"]["team"], straggler["for"]) == ("infra", "15m")


def test_without_a_base_url_there_are_no_links() -> None:
    rules = [rule for group in rules_of({"runbookBaseUrl": ""}) for rule in group["rules"]]
    assert [rule for rule in rules if "runbook_url" in rule.get("annotations", {})] == []


def test_a_group_whose_alerts_are_all_off_is_left_out() -> None:
    burn = {"DRAAllocationErrorBudgetBurn": {"enabled": False}}
    assert "dra-allocation" in {group["name"] for group in rules_of({})}
    assert "dra-allocation" not in {group["name"] for group in rules_of({"alerts": burn})}


def test_the_default_of_the_links_is_that_of_the_committed_rules() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["monitoring"]["prometheusRule"]["runbookBaseUrl"] == RUNBOOKS


def test_of_rules_with_one_name_only_what_they_share_can_be_set() -> None:
    properties = chart.schema()["properties"]
    assert [*properties] == [*by_name()]
    burn = properties["DRAAllocationErrorBudgetBurn"]["properties"]
    assert ("for" in burn, [*burn["thresholds"]["properties"]]) == (False, ["objective", "allocations"])
    assert "for" in properties["DRAClaimIdle"]["properties"]


def test_a_place_for_the_alerts_must_be_there_once() -> None:
    with pytest.raises(ValueError, match="2 places"):
        chart.with_alerts('{"alerts": {}, "x": {"alerts": {}}}')
    assert json.loads(chart.with_alerts('{\n  "alerts": {}, "b": 1\n}'))["b"] == 1


def test_jobs_have_the_names_that_alerts_and_boards_ask_for() -> None:
    monitors = render({"monitoring": MONITORS})
    jobs = {
        rule["replacement"]
        for kind, endpoints in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints"))
        for rule in only(monitors, kind)["spec"][endpoints][0]["relabelings"]
        if rule.get("targetLabel") == "job"
    }
    assert jobs == {"claimscope-agent", "claimscope-controller"}
    asked = {
        found for text in (*(alert.expr for alert in alerts()), *map(as_line, BOARDS))
        for found in re.findall(r'job=~\\?"([^"\\]+)', text)
    }  # fmt: skip
    assert asked != set()
    assert [pattern for pattern in asked if not any(re.fullmatch(pattern, job) for job in jobs)] == []


# --- boards ---


def boards(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    label = values.get("label", "grafana_dashboard")
    made: Sequence[dict[str, Any]] = render({"dashboards": {"enabled": True, **values}})
    return [each for each in made if label in each["metadata"].get("labels", {})]


def test_the_chart_has_the_boards_of_the_tables() -> None:
    made = {f"{board.uid}.json": as_line(board) for board in BOARDS}
    assert {path.name: path.read_text(encoding="utf-8") for path in BOARD_FILES.iterdir()} == made, (
        "run `python -m dashboards`"
    )


def test_each_board_is_a_config_map_that_grafana_finds() -> None:
    made = boards({})
    assert sorted(key for each in made for key in each["data"]) == sorted(f"{board.uid}.json" for board in BOARDS)
    assert len({each["metadata"]["name"] for each in made}) == len(BOARDS)
    assert {
        (each["metadata"]["labels"]["grafana_dashboard"], each["metadata"]["annotations"]["grafana_folder"])
        for each in made
    } == {("1", "claimscope")}
    texts = {key: text for each in made for key, text in each["data"].items()}
    assert {f"{board.uid}.json": json.loads(as_line(board)) for board in BOARDS} == {
        key: json.loads(text) for key, text in texts.items()
    }


def test_a_board_is_found_as_somebodys_sidecar_looks() -> None:
    made = boards({
        "label": "dashboards", "labelValue": "yes", "folder": "", "namespace": "grafana", "annotations": {"a": "b"},
    })  # fmt: skip
    assert {
        (each["metadata"]["labels"]["dashboards"], each["metadata"]["namespace"], *each["metadata"]["annotations"])
        for each in made
    } == {("yes", "grafana", "a")}


def test_objects_are_small_enough() -> None:
    """A ConfigMap's limit is 1 MiB, and kubectl apply keeps 256 KiB of an object in an annotation of it."""
    made = render({"monitoring": {**MONITORS, "prometheusRule": {"enabled": True}}, "dashboards": {"enabled": True}})
    sizes = {each["metadata"]["name"]: len(json.dumps(each, ensure_ascii=False).encode()) for each in made}
    assert {name: size for name, size in sizes.items() if size > 200 * KIB} == {}


def test_helm_can_keep_the_release() -> None:
    """In one Secret, of 1 MiB at most: the chart's files and what was rendered, as JSON, packed, twice base64."""
    made = render({"monitoring": {**MONITORS, "prometheusRule": {"enabled": True}}, "dashboards": {"enabled": True}})
    files = {str(path): path.read_text(encoding="utf-8") for path in CHART.rglob("*") if path.is_file()}
    release = {
        "manifest": "---\n".join(map(yaml.safe_dump, made)),
        "chart": {name: base64.b64encode(text.encode()).decode() for name, text in files.items()},
    }
    packed = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(release).encode())))
    assert len(packed) < 600 * KIB
