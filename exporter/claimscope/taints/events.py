"""Which transitions are told as Events, on the Node and on the pods that hold the device?

An Event is for people who run `kubectl describe`: it says what changed and why, once. The same news about the same
device is not told again for ten minutes, those about one object and all together are held to a rate each, so that
neither a sick fleet drowns the API server nor one node all others; what is left out is counted, and the metrics still
tell it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from claimscope.kube.api import ApiClient
from claimscope.taints.apply import MANAGER, api_time, send
from claimscope.taints.model import Action, Do, Fence, Held, NodeAction

COMPONENT: Final = "claimscope-controller"
NODE_EVENTS_NAMESPACE: Final = "default"  # where kubelets and kubectl keep Events of objects without a namespace
AGAIN_SECONDS: Final = 600.0
BURST: Final = 50
PER_SECOND: Final = 1.0
BURST_OF_ONE: Final = 20  # about one object
PER_SECOND_OF_ONE: Final = 1 / 60
_REMEMBERED: Final = 5000
_MESSAGE_BYTES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The object that an Event is about."""

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    api_version: str = "v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One Event to be."""

    about: About
    reason: str
    message: str
    warning: bool = True
    subject: str = ""  # the device, for telling whether this was told already


def of_action(action: Action, before: Fence | None, abouts: Iterable[About]) -> list[Note]:
    """What is told of a write that was done; nothing of one that changes neither device nor effect."""
    fence = action.fence
    if action.do is Do.UPDATE and before is not None and (before.effect, before.device) == (fence.effect, fence.device):
        return []
    reason, warning = _REASONS[action.do], action.do is not Do.DELETE
    if warning and fence.effect == "None":
        reason = "GPUTaintAnnounced"
    text = f"{fence.device} ({fence.uuid}), {fence.key}={fence.value}, effect {fence.effect}: {action.reason}"
    return [
        Note(about=about, reason=reason, message=text, warning=warning, subject=f"{fence.uuid}/{fence.key}")
        for about in abouts
    ]


_REASONS: Final = {Do.CREATE: "GPUTainted", Do.UPDATE: "GPUTaintChanged", Do.DELETE: "GPUTaintLifted"}


def of_held(held: Held, about: About) -> Note:
    """What is told of a taint that is wanted and held back."""
    fence = held.fence
    if held.cause:  # the GPUs are many
        text = f"GPUs are held back from {fence.key} ({held.reason}): {held.text}"
        return Note(about=about, reason="GPUTaintHeld", subject=f"{held.cause}/{held.reason}", message=text)
    return Note(
        about=about, reason="GPUTaintHeld", subject=f"{fence.uuid}/{fence.key}/{held.reason}",
        message=f"{fence.device} ({fence.uuid}), {fence.key}={fence.value}, is held back ({held.reason}): {held.text}",
    )


def of_node(action: NodeAction, about: About) -> Note:
    """What is told of the taints of a Node."""
    shown = ", ".join(map(str, action.after))
    return Note(
        about=about, reason="GPUNodeTainted" if shown else "GPUNodeTaintsLifted", warning=bool(shown),
        subject=shown, message=f"{shown or 'no taints of claimscope any more'}: {action.reason}",
    )


def of_silence(about: About, days: int) -> Note:
    """What is told of an agent that is not heard of."""
    since = f" for {days} day{'s' if days > 1 else ''}" if days else ""
    text = f"claimscope's agent has not been heard of{since}: what it found stands, and new faults are not seen"
    return Note(about=about, reason="GPUUnmonitored", message=text, subject=str(days))


@dataclass(slots=True, kw_only=True)
class _Bucket:
    """What one rate allows at a time."""

    burst: float
    per_second: float
    tokens: float
    filled_wall: float

    def fill(self, wall: float) -> None:
        self.tokens += max(wall - self.filled_wall, 0.0) * self.per_second
        self.tokens, self.filled_wall = min(self.tokens, self.burst), wall


@dataclass(slots=True)
class Announcer:
    """Sends Events, not the same one again and not too many at once. Times are Unix seconds."""

    api: ApiClient
    instance: str
    component: str = COMPONENT
    dropped: int = 0
    _told: OrderedDict[tuple[About, str, str], float] = field(default_factory=OrderedDict)
    _buckets: OrderedDict[About | None, _Bucket] = field(default_factory=OrderedDict)  # None: all together

    def due(self, note: Note, wall: float) -> bool:
        """Whether a note is sent now; asking takes from the rate."""
        key = (note.about, note.reason, note.subject)
        told = self._told.get(key)
        if told is not None and 0 <= wall - told < AGAIN_SECONDS:
            return False
        rates = (self._bucket(note.about, wall, BURST_OF_ONE, PER_SECOND_OF_ONE),
                 self._bucket(None, wall, BURST, PER_SECOND))  # fmt: skip
        if any(each.tokens < 1 for each in rates):
            self.dropped += 1
            return False
        for each in rates:
            each.tokens -= 1
        self._told[key] = wall
        self._told.move_to_end(key)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        return True

    def _bucket(self, about: About | None, wall: float, burst: float, per_second: float) -> _Bucket:
        found = self._buckets.get(about)
        if found is None:
            found = _Bucket(burst=burst, per_second=per_second, tokens=burst, filled_wall=wall)
            self._buckets[about] = found
        found.fill(wall)
        self._buckets.move_to_end(about)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return found

    async def send(self, note: Note, wall: float) -> None:
        """Sends one. Raises ApiError."""
        namespace = note.about.namespace or NODE_EVENTS_NAMESPACE
        body = event_object(note, self.instance, wall, self.component)
        await send(
            self.api, "POST", f"/api/v1/namespaces/{namespace}/events", body, "application/json",
            {"fieldManager": MANAGER},
        )


def event_object(note: Note, instance: str, wall: float, component: str = COMPONENT) -> dict[str, Any]:
    """The core/v1 Event of a note."""
    about = note.about
    key = "\0".join((about.kind, about.namespace, about.name, about.uid, note.reason, note.subject, repr(wall)))
    reference = {
        "apiVersion": about.api_version, "kind": about.kind, "name": about.name, "namespace": about.namespace,
        "uid": about.uid,
    }
    stamp = api_time(wall)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{about.name[:200]}.{hashlib.sha256(key.encode()).hexdigest()[:16]}",
            "namespace": about.namespace or NODE_EVENTS_NAMESPACE,
        },
        "involvedObject": {name: value for name, value in reference.items() if value},
        "reason": note.reason,
        "message": note.message.encode()[:_MESSAGE_BYTES].decode("utf-8", "ignore"),
        "type": "Warning" if note.warning else "Normal",
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": instance,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
