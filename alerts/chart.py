"""What does the Helm chart take from the tables? The rules with their places for thresholds, and which values it has.

`python -m alerts.chart` writes the chart's files/rules.yaml, and the part of values.schema.json that names each alert.
A template fills the places, so a threshold is changed by a value and never by an edited expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from alerts.model import Alert, Group, Recording, to_yaml
from alerts.runbooks import by_name
from alerts.table import groups

CHART: Final = Path(__file__).parent.parent / "deploy" / "helm" / "claimscope"
RULES: Final = CHART / "files" / "rules.yaml"
SCHEMA: Final = CHART / "values.schema.json"
# Prometheus' own spelling of durations, as prometheus-operator checks it.
_DURATION: Final = (
    "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$"
)
_PLACE: Final = '"alerts": '


def _rule(rule: Recording | Alert) -> dict[str, Any]:
    made = rule.to_json()
    if isinstance(rule, Recording):
        return made
    made["expr"] = rule.expr.strip()
    if rule.thresholds:
        made["thresholds"] = dict(rule.thresholds)
    del made["annotations"]["runbook_url"]  # the template adds it, by a value
    return made


def _group(group: Group) -> dict[str, Any]:
    return {**group.to_json(), "rules": [_rule(rule) for rule in group.rules]}


def rules() -> str:
    """What stands in files/rules.yaml."""
    head = "# Made by `python -m alerts.chart`; change alerts/*.py instead. `[[name]]` is a threshold.\n"
    return head + to_yaml({"groups": [_group(group) for group in groups()]})


def _alike(rules: list[Alert]) -> dict[str, float]:
    """The thresholds that all rules of one name share: of those that differ, one value could not stand for all."""
    return {
        name: value for name, value in rules[0].thresholds.items()
        if all(rule.thresholds[name] == value for rule in rules)
    }  # fmt: skip


def _number(rules: list[Alert], name: str) -> dict[str, Any]:
    """Which numbers a threshold may be: Prometheus has no range of `0s` or `1.5s`."""
    range_of_it = f"[[[{name}]]s"
    if any(range_of_it in rule.expr for rule in rules):
        return {"type": "integer", "minimum": 1}
    return {"type": "number", "minimum": 0}


def _values_of(rules: list[Alert]) -> dict[str, Any]:
    """The schema of one alert's values."""
    words: dict[str, Any] = {
        "enabled": {"type": "boolean"},
        "severity": {"type": "string", "minLength": 1},
        "labels": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
    }
    if len({rule.hold for rule in rules}) == 1:
        words["for"] = {"type": "string", "minLength": 1, "pattern": _DURATION}
    if alike := _alike(rules):
        words["thresholds"] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {**_number(rules, name), "description": f"{value:g} unless said otherwise"}
                for name, value in alike.items()
            },
        }
    return {
        "type": "object", "additionalProperties": False, "description": rules[0].summary, "properties": words,
    }  # fmt: skip


def schema() -> dict[str, Any]:
    """What values.schema.json says of monitoring.prometheusRule.alerts."""
    return {
        "type": "object",
        "description": "By the alert's name: whether it is made, and with which severity, labels and thresholds.",
        "additionalProperties": False,
        "properties": {name: _values_of(rules) for name, rules in by_name().items()},
    }


def _spelled(made: Mapping[str, Any], indent: str) -> str:
    """One alert a line."""
    head = {key: value for key, value in made.items() if key != "properties"}
    lines = ",\n".join(
        f"{indent}    {json.dumps(name)}: {json.dumps(values)}" for name, values in made["properties"].items()
    )
    return f'{json.dumps(head)[:-1]}, "properties": {{\n{lines}\n{indent}}}}}'


def with_alerts(text: str) -> str:
    """The text of values.schema.json with its part on alerts as the tables have it; all else stays as it is."""
    places = [found.end() for found in re.finditer(re.escape(_PLACE), text)]
    if len(places) != 1:
        raise ValueError(f'{SCHEMA.name}: {len(places)} places `"alerts": `, there must be one to write the alerts to')
    _, end = json.JSONDecoder().raw_decode(text, places[0])
    line = text[text.rfind("\n", 0, places[0]) + 1 :]
    indent = line[: len(line) - len(line.lstrip())]
    return text[: places[0]] + _spelled(schema(), indent) + text[end:]


def files() -> dict[Path, str]:
    """What is to stand where."""
    return {RULES: rules(), SCHEMA: with_alerts(SCHEMA.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
