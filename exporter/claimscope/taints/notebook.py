"""What does fencing keep from one leader to the next, and where do people tell it to stop?

In annotations of Leases: whoever leads has to be able to read and write those anyway. What people ask stands in the
controller's own. What fencing keeps may be long, and the election writes that one whole every two seconds, so it
stands in another one beside it; an agent that fences for itself has its one Lease for both. Each write names only its
own annotations, so that the election, people and fencing do not overwrite each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from claimscope.kube.api import JSON, MERGE_PATCH, ApiClient, ApiError, ApiReason, decode
from claimscope.kube.objects import Lease
from claimscope.taints.apply import MANAGER, send
from claimscope.taints.fences import word_of
from claimscope.taints.memory import Ignore, Memory, acknowledged, half_opened, ignoring, lifted_by
from claimscope.taints.model import KEY_DOMAIN, Held, Mode, Plan

PAUSE: Final = f"{KEY_DOMAIN}/pause"  # whoever paused, and why; any value but "" and "false" pauses
MEMORY: Final = f"{KEY_DOMAIN}/taint-memory"
SHOWN: Final = f"{KEY_DOMAIN}/taint-state"  # mode and what is held, for `claimscope taints list`
ACKNOWLEDGE: Final = f"ack.{KEY_DOMAIN}/"  # + a health rule or "breaker": who did so
IGNORE: Final = f"ignore.{KEY_DOMAIN}/"  # + uuid: an Ask
LIFTED: Final = f"{KEY_DOMAIN}/lifted"  # a Lifted
BREAKER: Final = "breaker"

# All annotations of an object may have 256 KiB together (ValidateAnnotations in k8s.io/apimachinery).
MEMORY_BYTES: Final = 192 * 1024
_LIFTED_SECONDS: Final = 600.0  # for which a word about lifting is kept; clocks may differ by a minute
_CLOCKS_SECONDS: Final = 60.0


def is_note(name: str) -> bool:
    """Whether an annotation is fencing's, or people's word to it; whoever else writes the Lease keeps it."""
    return name in (PAUSE, MEMORY, SHOWN, LIFTED) or name.startswith((ACKNOWLEDGE, IGNORE))


class Notebook:
    """The annotations of the Leases. Every call raises ApiError."""

    def __init__(
        self, api: ApiClient, namespace: str, name: str, *, makes: bool = False, apart: bool = False
    ) -> None:
        """`makes`: without an election nobody else makes the Lease. `apart`: what is kept has a Lease of its own."""
        self._api = api
        self._all = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self.namespace = namespace
        self._name = name
        self._makes = makes
        self._apart = apart
        self._kept_name = f"{name}-memory" if apart else name

    async def read(self) -> Mapping[str, str]:
        """All annotations; none where there is no Lease yet."""
        return await self._read(self._name)

    async def recall(self) -> Mapping[str, str]:
        """What is kept; earlier versions kept it where people ask, as agents do."""
        kept = await self._read(self._kept_name)
        return kept if MEMORY in kept or not self._apart else await self.read()

    async def write(self, annotations: Mapping[str, str | None]) -> None:
        """Sets some annotations, and takes those away that are None."""
        await self._write(self._name, annotations, makes=self._makes)

    async def keep(self, annotations: Mapping[str, str]) -> None:
        """The same of what is kept."""
        await self._write(self._kept_name, annotations, makes=self._apart or self._makes)

    def outdated(self, annotations: Mapping[str, str]) -> list[str]:
        """Which annotations stand where an earlier version kept them."""
        return [name for name in (MEMORY, SHOWN) if self._apart and name in annotations]

    async def _read(self, name: str) -> Mapping[str, str]:
        path = f"{self._all}/{name}"
        try:
            body = await self._api.get(path)
        except ApiError as error:
            if error.reason is ApiReason.NOT_FOUND:
                return {}
            raise
        return decode(body, Lease, path).metadata.annotations or {}

    async def _write(self, name: str, annotations: Mapping[str, str | None], *, makes: bool) -> None:
        patch = {"metadata": {"annotations": dict(annotations)}}
        params = {"fieldManager": MANAGER}
        try:
            await send(self._api, "PATCH", f"{self._all}/{name}", patch, MERGE_PATCH, params)
        except ApiError as error:
            if error.reason is not ApiReason.NOT_FOUND or not makes:
                raise
            await send(self._api, "POST", self._all, self._object(name, annotations), JSON, params)

    def _object(self, name: str, annotations: Mapping[str, str | None]) -> dict[str, Any]:
        kept = {key: text for key, text in annotations.items() if text is not None}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self.namespace, "name": name, "annotations": kept},
            "spec": {},
        }


class Ask(msgspec.Struct, frozen=True):
    """What somebody asks for on the command line."""

    author: str
    rule: str = ""  # "": every one
    hours: float = 24.0
    reason: str = ""


class Lifted(msgspec.Struct, frozen=True):
    """Who lifts rules on the command line; the leader sees them go and would not know."""

    author: str
    wall: float
    reason: str = ""
    names: tuple[str, ...] = ()  # none: all of them


_SECONDS_MAX: Final = 30 * 86400.0
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def annotation_of(prefix: str, name: str) -> str:
    """Where something is asked for; raises ValueError for what cannot be the name of an annotation."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"`{name}` is no uuid or rule")
    return prefix + name


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What people have asked for since the last round; the annotations go once it is done."""

    annotations: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    breaker: bool = False
    ignores: tuple[Ignore, ...] = ()
    lifted: Lifted | None = None

    def on(self, memory: Memory, now_wall: float) -> Memory:
        """The memory with all of it."""
        after = acknowledged(memory, self.rules) if self.rules else memory
        after = half_opened(after, now_wall) if self.breaker else after
        after = ignoring(after, self.ignores) if self.ignores else after
        said = self.lifted
        if said is None:
            return after
        return lifted_by(after, said.author, said.reason, said.names, said.wall - _CLOCKS_SECONDS)


def asked_of(annotations: Mapping[str, str], now_wall: float) -> Asked:
    """Everything that is asked for; what cannot be read is taken away as well."""
    names: list[str] = []
    rules: list[str] = []
    ignores: list[Ignore] = []
    lifted = _lifted(annotations.get(LIFTED), now_wall)
    if lifted is None and LIFTED in annotations:
        names.append(LIFTED)
    for name, text in sorted(annotations.items()):
        if name.startswith(ACKNOWLEDGE):
            names.append(name)
            rules.append(name.removeprefix(ACKNOWLEDGE))
        elif name.startswith(IGNORE):
            names.append(name)
            try:
                ask = msgspec.json.decode(text, type=Ask)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                continue
            until = now_wall + min(max(ask.hours, 0.0) * 3600, _SECONDS_MAX)
            ignores.append(Ignore(
                uuid=name.removeprefix(IGNORE), rule=ask.rule, until_wall=until, author=ask.author, reason=ask.reason,
            ))
    return Asked(
        annotations=tuple(names), rules=tuple(rule for rule in rules if rule != BREAKER), breaker=BREAKER in rules,
        ignores=tuple(ignores), lifted=lifted,
    )


def _lifted(text: str | None, now_wall: float) -> Lifted | None:
    """The word about lifting; None for one that is too old or cannot be read."""
    try:
        found = msgspec.json.decode(text, type=Lifted) if text else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return found if found is not None and abs(now_wall - found.wall) < _LIFTED_SECONDS else None


class HeldShown(msgspec.Struct, frozen=True):
    """One taint that is held back."""

    device: str
    node: str
    uuid: str
    severity: str
    rule: str
    reason: str
    text: str


class Shown(msgspec.Struct, frozen=True):
    """What the command line shows beside the rules themselves."""

    mode: str
    configured: str
    why: str = ""
    breaker: str = "closed"
    held: tuple[HeldShown, ...] = ()
    held_more: int = 0
    nodes: dict[str, str] = {}  # taints of ours on Nodes


_HELD_MAX: Final = 50
_HELD_PER_NODE: Final = 8  # of one node before those of others


def shown(mode: Mode, configured: Mode, why: str, plan: Plan) -> str:
    """As text for the Lease."""
    held = _in_order({(each.fence.name, each.reason): each for each in plan.held}.values())
    return msgspec.json.encode(Shown(
        mode=mode.value, configured=configured.value, why=why if mode is not configured else "",
        breaker=plan.breaker, held=tuple(_held(each) for each in held[:_HELD_MAX]),
        held_more=max(len(held) - _HELD_MAX, 0),
        nodes={node: ", ".join(map(str, taints)) for node, taints in sorted(plan.node_taints.items())[:_HELD_MAX]},
    )).decode()


def _in_order(held: Iterable[Held]) -> list[Held]:
    """Worst first, and no node before all others."""
    before: Counter[str] = Counter()
    placed: list[tuple[bool, Held]] = []
    for each in sorted(held, key=lambda each: -each.fence.severity.rank):
        placed.append((before[each.fence.node] >= _HELD_PER_NODE, each))
        before[each.fence.node] += 1
    return [each for _, each in sorted(placed, key=lambda place: place[0])]


def _held(held: Held) -> HeldShown:
    fence = held.fence
    return HeldShown(
        device=str(fence.device), node=fence.node, uuid=fence.uuid, severity=word_of(fence), rule=fence.value,
        reason=held.reason, text=held.text[:300],
    )


def paused_by(annotations: Mapping[str, str]) -> str | None:
    """Who paused fencing, and why; None while nobody has."""
    text = annotations.get(PAUSE, "")
    return None if text in ("", "false") else text
