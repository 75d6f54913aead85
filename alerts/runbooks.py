"""What do the pages of docs/runbooks/ take from the table? The line of facts of each page, and the index.

`python -m alerts.runbooks` writes both into the pages; all else in them is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from alerts.model import Alert
from alerts.table import alerts

FOLDER: Final = Path(__file__).parent.parent / "docs" / "runbooks"
INDEX: Final = "README.md"
_SEVERITIES: Final = {
    "critical": "Critical: act now",
    "warning": "Warning: a ticket, for working hours",
    "info": "Info: nobody is told, dashboards show it",
    "none": "Always firing",
}
_OWNERS: Final = {
    "workload": "the owner of the workload",
    "fleet": "whoever runs the GPUs",
    "platform": "whoever runs the cluster",
}
_FACTS: Final = re.compile(r"^\*\*.*\*\* · .*$", re.MULTILINE)
_LISTS: Final = re.compile(r"(?<=<!-- index -->\n).*(?=<!-- end of index -->)", re.DOTALL)


def by_name() -> dict[str, list[Alert]]:
    """All alerts; one of several burn rates is a list of several."""
    found: dict[str, list[Alert]] = {}
    for alert in alerts():
        found.setdefault(alert.name, []).append(alert)
    return found


def facts(rules: list[Alert]) -> str:
    """Who is told, after which time, and the thresholds by their names in the chart's values."""
    words = [f"**{rules[0].severity}**", f"told to {_OWNERS[rules[0].owner]}"]
    holds = list(dict.fromkeys(rule.hold for rule in rules if rule.hold))
    if holds:
        words.append(f"after {', '.join(holds)}")
    elif "seconds" not in rules[0].thresholds:  # else that is how long it takes
        words.append("at once")
    values: dict[str, dict[str, None]] = {}
    for rule in rules:
        for name, value in rule.thresholds.items():
            values.setdefault(name, {})[f"{value:g}"] = None
    words += [f"`{name}` {', '.join(found)}" for name, found in values.items()]
    return " · ".join(words)


def index() -> str:
    """The lists of the index, by severity and owner."""
    lines: list[str] = []
    for severity, title in _SEVERITIES.items():
        lines += ["", f"### {title}", "", "| alert | told to | says |", "|---|---|---|"]
        lines += [
            f"| [{name}]({name}.md) | {_OWNERS[owner]} | {rules[0].summary} |"
            for owner in _OWNERS
            for name, rules in by_name().items()
            if (rules[0].severity, rules[0].owner) == (severity, owner)
        ]
    return "\n".join([*lines, ""])


def pages() -> dict[Path, str]:
    """What is to stand in each page that is there."""
    made: dict[Path, str] = {}
    for name, rules in by_name().items():
        path = FOLDER / f"{name}.md"
        if path.exists():
            made[path] = _FACTS.sub(facts(rules), path.read_text(encoding="utf-8"), count=1)
    path = FOLDER / INDEX
    made[path] = _LISTS.sub(index(), path.read_text(encoding="utf-8"))
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
