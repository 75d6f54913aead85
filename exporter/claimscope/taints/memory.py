"""What must the one who fences remember from round to round, and leave to the next leader?

Plain data, written as JSON where the leader keeps its own. Wall times are this controller's own Unix seconds.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
_BYTES_MAX: Final = 192 * 1024  # all annotations of an object may have 256 KiB together
_PLAIN_BYTES: Final = 16 * 1024  # so much is written as people can read it
_DECODED_BYTES_MAX: Final = 16 * 1024 * 1024


class Blocked(msgspec.Struct, frozen=True, array_like=True):
    """One GPU that was newly kept from work, for the rate."""

    gpu: str
    wall: float


class Ignore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Findings that put up no fence until then: somebody took the fence away, or said so."""

    uuid: str
    rule: str  # "" is every rule
    until_wall: float
    author: str = ""
    reason: str = ""
    taint: str = ""  # name of the rule that was deleted
    since_wall: float = 0.0  # when that was seen


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """Whether new blocking fences are put up at all. It never keeps a fence from being lifted."""

    state: str = CLOSED
    since_wall: float = 0.0
    demand: int = 0  # GPUs to be fenced when it opened: more of them open it again


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A fence of ours that was seen standing: without it, one that a human took away looks like one not yet made."""

    uuid: str
    rules: tuple[str, ...]
    node: str
    node_uid: str


class Maintained(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node under maintenance."""

    uid: str  # tells this maintenance from an earlier one of the node
    phase: str
    started_wall: float
    gpus: int = 0  # the most that were known of, from the beginning on; 0: that was not known
    boot_id: str = ""
    touched: bool = False  # somebody may have done something to the node: it is verified before it is given back
    ended_wall: float = 0.0  # when whoever asked for it took that back
    quiet_wall: float = 0.0  # since when nothing has been wrong, while it is verified
    unverified: str = ""  # the annotation as it was at the beginning, which is about an earlier one
    let_go: bool = False  # the node's agent was asked to let NVML go


class KnownNode(msgspec.Struct, frozen=True, array_like=True):
    """Taints of ours that were seen on a Node, for the same reason."""

    keys: tuple[str, ...]
    node_uid: str


class Memory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything."""

    blocked: tuple[Blocked, ...] = ()
    onsets: dict[str, dict[str, float]] = {}  # rule -> node -> when it was first seen to stand there; recent ones only
    holds: dict[str, float] = {}  # rules that came up on many nodes at once -> when
    acknowledged: dict[str, float] = {}  # rules whose onsets until then count no more; 0: until the next round
    breaker: Breaker = Breaker()
    ignores: tuple[Ignore, ...] = ()
    known: dict[str, Known] = {}  # by name of the rule
    known_nodes: dict[str, KnownNode] = {}
    maintenance: dict[str, Maintained] = {}  # by node
    harmed_wall: float = 0.0  # when the API server was last seen to be of a release whose scheduler rules stop


def encode(memory: Memory, bytes_max: int = _BYTES_MAX) -> str:
    """As text: JSON, and compressed where it is long, about 70 bytes a fence that stands.

    What is too long even so is kept in part: first goes, half by half, what tells a deletion by hand, then what tells
    one cause for many, then what ends soonest of what is ignored. Rate, breaker, holds and maintenance stay.
    """
    text = _packed(memory)
    for part in _LEAST_FIRST:
        while len(text) > bytes_max and getattr(memory, part):
            memory = _halved(memory, part)
            text = _packed(memory)
    return text


_LEAST_FIRST: Final = ("known", "known_nodes", "onsets", "ignores")


def _packed(memory: Memory) -> str:
    text = msgspec.json.encode(memory)
    return text.decode() if len(text) <= _PLAIN_BYTES else base64.b64encode(zlib.compress(text)).decode()


def _halved(memory: Memory, part: str) -> Memory:
    """The same with the more important half of one part."""
    if part == "known":  # what only announces goes first
        known = sorted(memory.known.items(), key=lambda each: (".degraded" in each[0], each[0]))
        return msgspec.structs.replace(memory, known=dict(known[: len(known) // 2]))
    if part == "known_nodes":
        nodes = sorted(memory.known_nodes.items())
        return msgspec.structs.replace(memory, known_nodes=dict(nodes[: len(nodes) // 2]))
    if part == "onsets":
        latest = sorted((-wall, rule, node) for rule, nodes in memory.onsets.items() for node, wall in nodes.items())
        onsets: dict[str, dict[str, float]] = {}
        for wall, rule, node in latest[: len(latest) // 2]:
            onsets.setdefault(rule, {})[node] = -wall
        return msgspec.structs.replace(memory, onsets=onsets)
    ignores = sorted(memory.ignores, key=lambda each: -each.until_wall)
    return msgspec.structs.replace(memory, ignores=tuple(ignores[: len(ignores) // 2]))


def decode(text: str | None, now_wall: float) -> tuple[Memory, str]:
    """The memory, and what was wrong with the text ("": nothing).

    Where there is none, this is the first leader. Where it cannot be read, what was fenced lately is unknown, and the
    breaker starts half open.
    """
    if not text:
        return Memory(), ""
    try:
        return msgspec.json.decode(text if text.startswith("{") else _unpacked(text), type=Memory), ""
    except (msgspec.MsgspecError, ValueError, RecursionError, zlib.error) as error:
        return Memory(breaker=Breaker(state=HALF_OPEN, since_wall=now_wall)), str(error)


def _unpacked(text: str) -> bytes:
    return zlib.decompressobj().decompress(base64.b64decode(text, validate=True), _DECODED_BYTES_MAX)


def aged(memory: Memory, now_wall: float, *, rate_seconds: float, systemic_seconds: float) -> Memory:
    """The same without what has passed; a clock that was set back makes nothing last longer than its time."""
    breaker = memory.breaker
    return msgspec.structs.replace(
        memory,
        breaker=msgspec.structs.replace(breaker, since_wall=min(breaker.since_wall, now_wall)),
        blocked=tuple(
            Blocked(gpu=each.gpu, wall=min(each.wall, now_wall))
            for each in memory.blocked
            if now_wall - each.wall < rate_seconds
        ),
        ignores=tuple(each for each in memory.ignores if now_wall < each.until_wall),
        acknowledged={
            rule: min(wall or now_wall, now_wall)
            for rule, wall in memory.acknowledged.items()
            if not wall or now_wall - wall < systemic_seconds
        },
    )


def ignoring(memory: Memory, ignores: Iterable[Ignore]) -> Memory:
    """The same with more to ignore; of two alike the one that lasts longer stays."""
    found: dict[tuple[str, str], Ignore] = {}
    for each in (*memory.ignores, *ignores):
        before = found.get((each.uuid, each.rule))
        if before is None or before.until_wall < each.until_wall:
            found[each.uuid, each.rule] = each
    return msgspec.structs.replace(memory, ignores=tuple(found.values()))


def lifted_by(memory: Memory, author: str, reason: str, names: Collection[str], since_wall: float) -> Memory:
    """The same with the name of who deleted rules since then; no names are all of them."""
    ignores = tuple(
        msgspec.structs.replace(each, author=author, reason=reason)
        if each.taint and not each.author and each.since_wall >= since_wall and (not names or each.taint in names)
        else each
        for each in memory.ignores
    )
    return msgspec.structs.replace(memory, ignores=ignores)


def acknowledged(memory: Memory, rules: Iterable[str]) -> Memory:
    """The same with systemic holds lifted by a human: their rules fence again, within budgets and rate.

    Nodes on which they stand already count no more; a hold comes again only with new ones.
    """
    lifted = dict.fromkeys(rules, 0.0)
    return msgspec.structs.replace(
        memory,
        holds={rule: wall for rule, wall in memory.holds.items() if rule not in lifted},
        acknowledged={**memory.acknowledged, **lifted},
    )


def half_opened(memory: Memory, now_wall: float) -> Memory:
    """The same with an open breaker half open, as a human asks for before its time."""
    if memory.breaker.state != OPEN:
        return memory
    opened = Breaker(state=HALF_OPEN, since_wall=now_wall, demand=memory.breaker.demand)
    return msgspec.structs.replace(memory, breaker=opened)


def recent_onsets(
    onsets: Mapping[str, Mapping[str, float]], standing: Mapping[str, Mapping[str, float]], now_wall: float,
    seconds: float,
) -> dict[str, dict[str, float]]:
    """On which nodes each rule that stands came up, and when, where the agent says that it was lately.

    `standing` has what the agents say; their clocks may be wrong, and can make a finding older, never newer than when
    it was first seen here.
    """
    found: dict[str, dict[str, float]] = {}
    for rule, nodes in standing.items():
        before = onsets.get(rule, {})
        for node, since_wall in nodes.items():
            onset = min(before.get(node, now_wall), since_wall, now_wall)
            if now_wall - since_wall < seconds:  # without being remembered it would look like news, or look so again
                found.setdefault(rule, {})[node] = onset
    return found
