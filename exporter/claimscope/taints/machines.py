"""What does a Node itself say: which GPUs its device plugin gives out, which taints are ours, is it settled?"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from claimscope.kube.kinds import IMPLICIT_PREFIX, is_accelerator
from claimscope.kube.objects import Node, unix_seconds
from claimscope.taints.model import KEY_DOMAIN, NodeTaint

# The one record of which taints are ours: entries of spec.taints have no owner. It is written with them, in one patch.
NOTE: Final = f"{KEY_DOMAIN}/node-taints"
BOOT_SETTLES_SECONDS: Final = 600.0

_GPU_COUNT: Final = "nvidia.com/gpu.count"  # by GPU Feature Discovery: boards, however they are shared or cut
_UPGRADE_STATE: Final = "nvidia.com/gpu-driver-upgrade-state"
# States in which the driver is not touched (k8s-operator-libs pkg/upgrade/consts.go): one waits for its turn, perhaps
# for days, one is over, and one stays until a person looks after it.
_DRIVER_UNTOUCHED: Final = frozenset({"", "upgrade-required", "upgrade-done", "upgrade-failed"})
_TAINT: Final = re.compile(r"([^=:,\s]+)=([^=:,\s]*):([A-Za-z]+)")


# --- our taints ---


@dataclass(frozen=True, slots=True, kw_only=True)
class OnNode:
    """Taints of a Node with our keys."""

    ours: tuple[NodeTaint, ...] = ()
    theirs: frozenset[tuple[str, str]] = frozenset()  # key and effect of those that a person put there
    removed: tuple[NodeTaint, ...] = ()  # recorded as ours, and taken away by somebody else


def recorded(text: str | None) -> tuple[NodeTaint, ...]:
    """The taints that the annotation names; what cannot be read is nobody's."""
    found = (_TAINT.fullmatch(each) for each in (text or "").split(","))
    return tuple(NodeTaint(key=each[1], value=each[2], effect=each[3]) for each in found if each is not None)


def on_node(node: Node) -> OnNode | None:
    """The taints of a Node that have to do with us; None for nearly every Node."""
    note = node.metadata.annotations.taints if node.metadata.annotations is not None else None
    present = tuple(
        NodeTaint(key=each.key, value=each.value, effect=each.effect)
        for each in node.spec.taints or () if each.key.startswith(f"{KEY_DOMAIN}/")
    )  # fmt: skip
    if note is None and not present:
        return None
    ours = recorded(note)
    return OnNode(
        ours=tuple(each for each in present if each in ours),
        theirs=frozenset((each.key, each.effect) for each in present if each not in ours),
        removed=tuple(each for each in ours if each not in present),
    )


# --- GPUs of the device plugin ---


def plugin_gpus(node: Node) -> tuple[int, int]:
    """How many GPUs the device plugin of a Node offers, and of how many it has withdrawn the offer.

    A board that is shared or cut is offered several times; without the label of GPU Feature Discovery each counts.
    """
    offered, left = _amount(node.status.capacity), _amount(node.status.allocatable)
    if not offered:
        return 0, 0
    label = (node.metadata.labels or {}).get(_GPU_COUNT, "")
    boards = int(label) if label.isdecimal() and 0 < int(label) <= offered else offered
    return boards, max(0, math.floor(boards * (1 - left / offered) + 1e-9))


def _amount(resources: dict[str, str] | None) -> int:
    return sum(
        int(text)
        for name, text in (resources or {}).items()
        if text.isdecimal() and is_accelerator(name) and not name.startswith(IMPLICIT_PREFIX)
    )


# --- settled or not ---


@dataclass(slots=True)
class Boots:
    """When each machine booted: as this process has seen it, or since when its kubelet is as ready as it is."""

    _seen: dict[str, tuple[str, int | None]] = field(default_factory=dict)  # node -> boot id, and since when

    def just_now(self, node: Node, now_ns: int, now_wall: float) -> bool:
        """Whether another boot id than before came up within ten minutes.

        Of the first one seen nobody knows since when it is: no longer ago than the condition Ready changed last, which
        it does with each boot. A new leader so does not forget what the one before it saw.
        """
        name, boot_id = node.metadata.name, node.status.node_info.boot_id
        before = self._seen.get(name)
        if before is None or (boot_id and before[0] != boot_id):
            since_ns = _ready_since_ns(node, now_ns, now_wall) if before is None or not before[0] else now_ns
            before = self._seen[name] = (boot_id, since_ns)
        since_ns = before[1]
        return since_ns is not None and now_ns - since_ns < BOOT_SETTLES_SECONDS * 1e9

    def forget(self, nodes: Collection[str]) -> None:
        """Keeps those nodes alone."""
        for name in [name for name in self._seen if name not in nodes]:
            del self._seen[name]


def _ready_since_ns(node: Node, now_ns: int, now_wall: float) -> int | None:
    """Since when, by our own clock, a Node is ready, or not ready, as it is; None where it does not say."""
    for condition in node.status.conditions or ():
        if condition.type == "Ready":
            wall = unix_seconds(condition.last_transition_time)
            return None if wall is None else now_ns - round(max(now_wall - wall, 0.0) * 1e9)
    return None


def driver_changes(node: Node, *, booted_just_now: bool) -> str:
    """Why the driver of a Node may look as if GPUs were missing; "" where it must not."""
    name, state = node.metadata.name, (node.metadata.labels or {}).get(_UPGRADE_STATE, "")
    if state not in _DRIVER_UNTOUCHED:
        return f"the GPU driver of node {name} is being upgraded ({state})"
    return f"node {name} booted less than {BOOT_SETTLES_SECONDS / 60:.0f} minutes ago" if booted_just_now else ""


# --- all of them ---


class Machines:
    """What is known of every Node; one that has not changed is not looked at again."""

    def __init__(self) -> None:
        self._boots = Boots()
        self._offers: dict[str, tuple[Node, tuple[int, int]]] = {}
        self._groups: dict[str, tuple[str, str]] = {}  # node -> label, and the group that it named

    def follow(self, nodes: Mapping[str, Node]) -> None:
        """Takes all Nodes as they stand now."""
        self._boots.forget(nodes)
        for name in self._groups.keys() - nodes.keys():
            del self._groups[name]
        self._offers = {
            name: seen if (seen := self._offers.get(name)) is not None and seen[0] is node
            else (node, plugin_gpus(node))
            for name, node in nodes.items()
        }  # fmt: skip

    def with_plugin(self) -> Iterator[str]:
        """Nodes whose device plugin gives out GPUs."""
        return (name for name, (_, (offered, _)) in self._offers.items() if offered)

    def offers(self, node: str) -> tuple[int, int]:
        """How many GPUs its device plugin offers, and how many it has withdrawn."""
        seen = self._offers.get(node)
        return (0, 0) if seen is None else seen[1]

    def driver_changes(self, node: Node, now_ns: int, now_wall: float) -> str:
        """Why its driver may look as if GPUs were missing."""
        return driver_changes(node, booted_just_now=self._boots.just_now(node, now_ns, now_wall))

    def group(self, node: Node, label: str) -> str:
        """Its node group; where somebody took the label away, the one that it had, as long as the Node is there."""
        said = (node.metadata.labels or {}).get(label, "")
        if said:
            self._groups[node.metadata.name] = (label, said)
        known_label, known = self._groups.get(node.metadata.name, ("", ""))
        return said or (known if known_label == label else "")
