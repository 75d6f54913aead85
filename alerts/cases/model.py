"""What is a case of an alert, and how does promtool spell it?

Each case is run as if two Prometheus jobs scraped the same target, in a cluster that has a name: an alert must fire
once all the same, and say which cluster it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from alerts.model import RUNBOOKS, Alert, Group

CLUSTER: Final = "east"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """A notification."""

    says: str  # the description
    labels: Mapping[str, str] = field(default_factory=dict)  # all but the cluster and what every alert has


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One story of series."""

    alert: str
    about: str
    series: Mapping[str, str]  # series -> values from minute 0 on, as promtool writes them
    at: str  # when it is looked at
    fires: tuple[Fired, ...] = ()  # none: it stays quiet
    step: str = "1m"  # between two values, and between two evaluations


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One story of series, and what is recorded of it."""

    record: str
    about: str
    series: Mapping[str, str]
    at: str
    values: Mapping[str, float]  # labels but the cluster, as PromQL writes them -> value
    step: str = "1m"


def _scraped_twice(series: Mapping[str, str]) -> list[dict[str, str]]:
    made = []
    for name, values in series.items():
        bare, _, labels = name.partition("{")
        more = f",{labels}" if labels else "}"
        made += [
            {"series": f'{bare}{{cluster="{CLUSTER}",scraped_by="{by}"{more}', "values": values} for by in ("a", "b")
        ]
    return made


def row_of(name: str, fired: Fired, alerts: Iterable[Alert]) -> Alert:
    """The row that makes a notification; raises LookupError where there is none."""
    for alert in alerts:
        if alert.name == name and alert.labels.items() <= fired.labels.items():
            return alert
    raise LookupError(f"no alert {name} with labels of {dict(fired.labels)} in this file's groups: correct the case")


def _notification(alert: Alert, fired: Fired) -> dict[str, Any]:
    labels = {"cluster": CLUSTER, **alert.to_json()["labels"], **fired.labels}
    return {
        "exp_labels": {name: value for name, value in labels.items() if value},
        "exp_annotations": {
            "summary": alert.summary,
            "description": fired.says,
            "runbook_url": f"{RUNBOOKS}/{alert.name}.md",
        },
    }


def _test(case: Case | Recorded, alerts: tuple[Alert, ...]) -> dict[str, Any]:
    if isinstance(case, Recorded):
        return {
            "name": f"{case.record}: {case.about}",
            "interval": case.step,
            "input_series": _scraped_twice(case.series),
            "promql_expr_test": [
                {
                    "expr": case.record,
                    "eval_time": case.at,
                    "exp_samples": [
                        {"labels": f'{case.record}{{cluster="{CLUSTER}",{labels}}}', "value": value}
                        for labels, value in case.values.items()
                    ],
                }
            ],
        }
    expected = [_notification(row_of(case.alert, fired, alerts), fired) for fired in case.fires]
    return {
        "name": f"{case.alert}: {case.about}",
        "interval": case.step,
        "input_series": _scraped_twice(case.series),
        "alert_rule_test": [
            {"eval_time": case.at, "alertname": case.alert, **({"exp_alerts": expected} if expected else {})}
        ],
    }


def tests_file(rule_files: Iterable[str], groups: Iterable[Group], cases: Sequence[Case | Recorded]) -> dict[str, Any]:
    """The document for `promtool test rules`; groups in the order in which they are evaluated, cases of one step."""
    ordered = tuple(groups)
    alerts = tuple(rule for group in ordered for rule in group.rules if isinstance(rule, Alert))
    return {
        "rule_files": list(rule_files),
        "evaluation_interval": cases[0].step,
        "group_eval_order": [group.name for group in ordered],
        "tests": [_test(case, alerts) for case in cases],
    }
