"""The recording of a real Kubernetes 1.36 as watches would have brought it: lists at the start, then events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from claimscope.kube.kinds import WatchedKind, watched_kinds
from claimscope.kube.objects import RawList, WatchLine

RECORDING = Path(__file__).parent / "recordings" / "kubernetes-1.36"
START = 1795260212.0  # Unix seconds of the recording's table of times

KINDS: dict[str, WatchedKind] = {kind.name: kind for kind in watched_kinds("claimscope")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One event of a watch."""

    seconds: float  # since START
    kind: str  # WatchedKind.name
    obj: Any
    present: bool


class _Timed(msgspec.Struct):
    t: float


def _names(plural: str, obj: Any) -> str | None:
    name = f"events/{obj.reason}" if plural == "events" else plural
    return name if name in KINDS else None


def _plurals() -> dict[str, WatchedKind]:
    return {kind.plural: kind for kind in KINDS.values()}


@cache
def lists() -> dict[str, list[Any]]:
    """Every kind's list at the start, by WatchedKind.name; kinds without a recording are empty."""
    found: dict[str, list[Any]] = {name: [] for name in KINDS}
    for plural, kind in _plurals().items():
        path = RECORDING / f"{plural}.list.json"
        if not path.exists():
            continue
        for raw in msgspec.json.decode(path.read_bytes(), type=RawList).items or ():
            obj = msgspec.json.decode(raw, type=kind.kind)
            name = _names(plural, obj)
            if name is not None and KINDS[name].keep(obj):
                found[name].append(obj)
    return found


@cache
def arrivals() -> tuple[Arrival, ...]:
    """Every event of every watch in the order of arrival; pods that are not kept come as gone."""
    found: list[Arrival] = []
    for plural, kind in _plurals().items():
        path = RECORDING / f"{plural}.watch.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else ():
            event = msgspec.json.decode(line, type=WatchLine)
            if event.type == "BOOKMARK":
                continue
            obj = msgspec.json.decode(event.object, type=kind.kind)
            name = _names(plural, obj)
            if name is None:
                continue
            at = msgspec.json.decode(line, type=_Timed).t - START
            found.append(Arrival(seconds=at, kind=name, obj=obj, present=event.type != "DELETED" and kind.keep(obj)))
    return tuple(sorted(found, key=lambda arrival: arrival.seconds))


def until(seconds: float) -> Iterator[Arrival]:
    """The events up to a moment."""
    return (arrival for arrival in arrivals() if arrival.seconds <= seconds)
