"""What is a rule, and how does Prometheus spell it? Dataclasses in, a rule file out.

Thresholds stand in expressions as `[[name]]`, so that the same table fills a plain rule file and the values of a chart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import yaml

Severity = Literal["critical", "warning", "info", "none"]
RUNBOOKS: Final = "https://github.com/claimscope/claimscope/blob/main/docs/runbooks"
_PLACE: Final = re.compile(r"\[\[([a-z_]+)\]\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording rule, named level:metric:operations."""

    record: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a rule file has it."""
        made: dict[str, Any] = {"record": self.record, "expr": self.expr.strip()}
        return {**made, "labels": dict(self.labels)} if self.labels else made


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert."""

    name: str
    expr: str
    severity: Severity
    owner: Literal["workload", "fleet", "platform"]  # who is told: the claim's owner, the GPU fleet, the cluster
    summary: str  # a whole sentence, the same for each of its notifications
    description: str  # with labels and value
    hold: str = ""  # how long it must be so: Prometheus' `for`
    # Prometheus' `keep_firing_for`. Series are absent while an agent or controller is replaced: nothing was cured then,
    # and nobody is to be told so, and of the same thing again.
    keep_firing: str = "10m"
    thresholds: Mapping[str, float] = field(default_factory=dict)  # [[name]] in the expression
    labels: Mapping[str, str] = field(default_factory=dict)
    not_in_demo: str = ""  # why the simulator cannot cause it; "": it can

    def bound(self, thresholds: Mapping[str, float] | None = None) -> str:
        """The expression with its thresholds; raises KeyError for a place that has none."""
        values = {**self.thresholds, **(thresholds or {})}
        return _PLACE.sub(lambda found: f"{values[found[1]]:g}", self.expr.strip())

    def to_json(self) -> dict[str, Any]:
        """As a rule file has it."""
        made: dict[str, Any] = {"alert": self.name, "expr": self.bound()}
        if self.hold:
            made["for"] = self.hold
        if self.keep_firing:
            made["keep_firing_for"] = self.keep_firing
        made["labels"] = {"severity": self.severity, "component": "dra", "owner": self.owner, **self.labels}
        made["annotations"] = {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{RUNBOOKS}/{self.name}.md",
        }
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rules that are evaluated together, in order."""

    name: str
    rules: tuple[Recording | Alert, ...]
    interval: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a rule file has it."""
        return {
            "name": self.name,
            **({"interval": self.interval} if self.interval else {}),
            "rules": [rule.to_json() for rule in self.rules],
        }


def rule_file(groups: Iterable[Group]) -> str:
    """The YAML that Prometheus loads."""
    return to_yaml({"groups": [group.to_json() for group in groups]})


class _Dumper(yaml.SafeDumper):
    """Spells texts of several lines as blocks, and nothing as a reference to what stands above."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401 - whatever is dumped
        """Always."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(made: Any) -> str:  # noqa: ANN401 - whatever YAML can spell
    """As people would write it."""
    return yaml.dump(made, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
