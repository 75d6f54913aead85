"""Which rules does `claimscope demo` load? These, thirty times as quick: a few minutes show what takes hours.

`python -m alerts.shortened` writes them into the package, and the example of Alertmanager without its receivers'
addresses.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from alerts.model import Alert, Group, Recording, rule_file, to_yaml
from alerts.table import groups
from claimscope.sim.script import FACTOR

WHERE: Final = Path(__file__).parent.parent / "exporter" / "claimscope" / "sim"
_EXAMPLE: Final = Path(__file__).with_name("alertmanager.yml")
_SPAN: Final = re.compile(r"(\d+)(s|m|h|d)")
_RANGE: Final = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<=offset )\d+[smhd]\b")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Thresholds in seconds that nothing in the demo lasts long enough for, and numbers that suit three nodes.
THRESHOLDS: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "DRADeviceXid": {"seconds": 60},
        "DRASchedulingStalled": {"seconds": 20},
        "DRADriverAbsent": {"seconds": 10},
        "DRAPrepareFailing": {"seconds": 10},
        "DRADeviceClassBacklog": {"claims": 3},
    }
)
# The sampler gives up what it cannot do in time, and is late no more: for half a minute there are late samples.
HOLDS: Final[Mapping[str, str]] = MappingProxyType({"DRAAgentSamplesLate": "10s"})
KEEPS: Final = "50s"  # an agent or controller takes its time to start, in the demo as elsewhere


def shorter(span: str) -> str:
    """A thirtieth of a span, in whole seconds, and two at least: a rate needs that many scrapes."""
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in _SPAN.findall(span))
    return f"{max(2, round(seconds / FACTOR))}s"


def _rule(rule: Recording | Alert) -> Recording | Alert:
    expr = _RANGE.sub(lambda found: shorter(found[0]), rule.expr)
    if isinstance(rule, Recording):
        return dataclasses.replace(rule, expr=expr)
    return dataclasses.replace(
        rule,
        expr=expr,
        hold=HOLDS.get(rule.name, shorter(rule.hold)) if rule.hold else "",
        keep_firing=KEEPS if rule.keep_firing else "",
        thresholds={**rule.thresholds, **THRESHOLDS.get(rule.name, {})},
    )


def shortened(of: Iterable[Group]) -> tuple[Group, ...]:
    """The same rules, quicker."""
    return tuple(
        dataclasses.replace(
            group,
            rules=tuple(_rule(rule) for rule in group.rules),
            interval=shorter(group.interval) if group.interval else "",
        )
        for group in of
    )


def alertmanager(example: Mapping[str, Any]) -> dict[str, Any]:
    """The example, quicker, with receivers that tell nobody: what they would be told stands on Alertmanager's page."""

    def route(found: Mapping[str, Any]) -> dict[str, Any]:
        made = dict(found)
        made.update({key: shorter(found[key]) for key in ("group_wait", "group_interval") if key in found})
        made.update({"routes": [route(each) for each in found["routes"]]} if "routes" in found else {})
        return made

    return {
        "route": route(example["route"]),
        "inhibit_rules": example["inhibit_rules"],
        "receivers": [{"name": each["name"]} for each in example["receivers"]],
    }


def files() -> dict[Path, str]:
    """What is to stand where."""
    head = "# Made by `python -m alerts.shortened`, for the demo alone; change alerts/*.py instead.\n"
    example = yaml.safe_load(_EXAMPLE.read_text(encoding="utf-8"))
    return {
        WHERE / "demo_rules.yml": head + rule_file(shortened(groups())),
        WHERE / "demo_alertmanager.yml": head + to_yaml(alertmanager(example)),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
