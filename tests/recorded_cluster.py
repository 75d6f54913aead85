"""The recording of a real Kubernetes 1.36 as watches would have brought it: lists at the start, then events.

Objects are compacted as the controller's are; `compact=False` leaves them as they were decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RawArrival:
    """One event of a watch as the server sent it."""

    seconds: float
    plural: str
    type: str
    raw: bytes


class _Timed(msgspec.Struct):
    t: float


def _names(plural: str, obj: Any) -> str | None:
    name = f"events/{obj.reason}" if plural == "events" else plural
    return name if name in KINDS else None


def _plurals() -> dict[str, WatchedKind]:
    return {kind.plural: kind for kind in KINDS.values()}


def _compactors(compact: bool) -> dict[str, Callable[[Any], Any]]:
    return {name: kind.compact() for name, kind in KINDS.items() if compact and kind.compact is not None}


@cache
def raw_lists() -> dict[str, tuple[bytes, ...]]:
    """Every kind's list at the start, by plural."""
    paths = {plural: RECORDING / f"{plural}.list.json" for plural in _plurals()}
    return {
        plural: tuple(bytes(raw) for raw in msgspec.json.decode(path.read_bytes(), type=RawList).items or ())
        for plural, path in paths.items()
        if path.exists()
    }


@cache
def raw_arrivals() -> tuple[RawArrival, ...]:
    """Every event of every watch in the order of arrival; no bookmarks."""
    found: list[RawArrival] = []
    for plural in _plurals():
        path = RECORDING / f"{plural}.watch.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else ():
            event = msgspec.json.decode(line, type=WatchLine)
            if event.type != "BOOKMARK":
                at = msgspec.json.decode(line, type=_Timed).t - START
                found.append(RawArrival(seconds=at, plural=plural, type=event.type, raw=bytes(event.object)))
    return tuple(sorted(found, key=lambda arrival: arrival.seconds))


def told(arrival: RawArrival) -> Arrival | None:
    """What a watcher of its kind hears; None where nobody watches it. A pod that is not kept comes as gone."""
    kind = _plurals()[arrival.plural]
    obj = msgspec.json.decode(arrival.raw, type=kind.kind)
    name = _names(arrival.plural, obj)
    if name is None:
        return None
    return Arrival(
        seconds=arrival.seconds, kind=name, obj=obj, present=arrival.type != "DELETED" and kind.keep(obj)
    )


@cache
def lists(*, compact: bool = True) -> dict[str, list[Any]]:
    """Every kind's list at the start, by WatchedKind.name; kinds without a recording are empty."""
    compactors = _compactors(compact)
    found: dict[str, list[Any]] = {name: [] for name in KINDS}
    for plural, raws in raw_lists().items():
        for raw in raws:
            obj = msgspec.json.decode(raw, type=_plurals()[plural].kind)
            name = _names(plural, obj)
            if name is not None and KINDS[name].keep(obj):
                found[name].append(compactors[name](obj) if name in compactors else obj)
    return found


@cache
def arrivals(*, compact: bool = True) -> tuple[Arrival, ...]:
    """Every event of every watch that is heard, in the order of arrival."""
    compactors = _compactors(compact)
    found: list[Arrival] = []
    for raw in raw_arrivals():
        arrival = told(raw)
        if arrival is None:
            continue
        if arrival.present and arrival.kind in compactors:
            obj = compactors[arrival.kind](arrival.obj)
            arrival = Arrival(seconds=arrival.seconds, kind=arrival.kind, obj=obj, present=True)
        found.append(arrival)
    return tuple(found)


def until(seconds: float) -> Iterator[Arrival]:
    """The events up to a moment."""
    return (arrival for arrival in arrivals() if arrival.seconds <= seconds)
