"""What does the demo say of the alerts of its Prometheus? Which fire and which are over, and for what each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Final

Firing = tuple[str, str]  # an alert's name, and what it is about
_THINGS_MAX: Final = 4


def about(labels: Mapping[str, str], gpus: Mapping[str, str]) -> str:
    """What an alert is about, in few words; `gpus` are the numbers of GPUs by UUID."""
    node, uuid = labels.get("node", ""), labels.get("uuid", "")
    if uuid:
        which = f"GPU {gpus[uuid]}" if uuid in gpus else uuid
        return f"{which} of {node}" + (f", XID {labels['xid']}" if "xid" in labels else "")
    if labels.get("workload"):
        return f"{labels['namespace']}/{labels['workload']}"
    rule = labels.get("rule", "")
    if node:
        return f"{node} {rule}".strip()
    names = ("namespace", "pool", "deviceclass", "resource", "driver", "reason")
    return rule or next((labels[name] for name in names if labels.get(name)), "")


def news(after_seconds: float, before: Collection[Firing], now: Collection[Firing]) -> list[str]:
    """A line for each alert that has come to fire or is over, with the things that it is about."""
    return [
        f"+{after_seconds:3.0f} s  {words:8}  {name}{_of(things)}"
        for words, found in (("fires", set(now) - set(before)), ("resolved", set(before) - set(now)))
        for name, things in sorted(_by_name(found).items())
    ]


def _by_name(found: Iterable[Firing]) -> dict[str, list[str]]:
    things: dict[str, list[str]] = defaultdict(list)
    for name, thing in sorted(found):
        things[name].append(thing)
    return things


def _of(things: list[str]) -> str:
    shown = [thing for thing in things if thing]
    if not shown:
        return ""
    more = f"; and {len(shown) - _THINGS_MAX} more" if len(shown) > _THINGS_MAX else ""
    return f": {'; '.join(shown[:_THINGS_MAX])}{more}"
