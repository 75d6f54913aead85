"""How far is the maintenance that somebody asked for on a node, and what has to happen next?

One pure function, a step: from what is seen now and what was remembered to what is remembered, fenced, asked of the
agent, and said. How far a maintenance is follows from what is seen; remembered is only what cannot be seen any more.

    asked for       waiting_for_budget -> announced -> waiting_for_taints -> waiting_for_claims
                    -> waiting_for_processes, waiting_for_agent -> ready
    taken back      verifying, verify_failed -> lifting -> over; at once where nobody can have touched the node yet
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from claimscope.taints.apply import api_time
from claimscope.taints.maintenance_ask import Answer, Ask
from claimscope.taints.memory import Maintained
from claimscope.taints.policy import MaintenancePolicy

SHOWN_MAX: Final = 5
_CAN_GO: Final = "No claim holds its GPUs and the agent has let NVML go: it can go offline."
_NOT_COUNTED: Final = "Its processes could not be counted: look on the node whether one uses a GPU."
_GIVE_UP_SECONDS: Final = 600.0  # for so long an agent or a device may take to come back before that is a failure


class Phase(enum.Enum):
    """How far it is."""

    NO_GPUS = "no_gpus"
    WAITING_FOR_BUDGET = "waiting_for_budget"
    ANNOUNCED = "announced"
    WAITING_FOR_TAINTS = "waiting_for_taints"
    WAITING_FOR_CLAIMS = "waiting_for_claims"
    WAITING_FOR_PROCESSES = "waiting_for_processes"
    WAITING_FOR_AGENT = "waiting_for_agent"
    READY = "ready"
    VERIFYING = "verifying"
    VERIFY_FAILED = "verify_failed"
    LIFTING = "lifting"

    @property
    def reason(self) -> str:
        """As the reason of a condition: WaitingForClaims."""
        return "".join(map(str.capitalize, self.value.split("_")))


_AFTER: Final = frozenset({Phase.VERIFYING, Phase.VERIFY_FAILED, Phase.LIFTING})
_RELEASING: Final = frozenset({Phase.WAITING_FOR_PROCESSES, Phase.WAITING_FOR_AGENT, Phase.READY})
_OUTSIDE: Final = frozenset({Phase.NO_GPUS, Phase.WAITING_FOR_BUDGET, Phase.LIFTING})
_PHASES: Final = frozenset(phase.value for phase in Phase)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks for, as annotations of the Node have it."""

    reason: str
    by: str = ""
    deadline_wall: float | None = None
    deadline_problem: str = ""  # a deadline that is no time


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What is seen of one node."""

    node: str
    node_uid: str = ""
    group: str = ""
    request: Request | None = None
    unverified: str = ""  # the annotation by which a person gives the node back without verification
    no_gpus: bool = False  # nothing tells of any
    gpus: int = 0  # boards that slices publish, or its device plugin gives out, now
    told_gpus: int = 0  # the most that its agent and its capacity tell of
    known_gpus: int = 0  # the most that anything tells of; 0: how many it has is not known
    published: bool = True  # wholly: what is not there is not there
    boot_id: str = ""
    highest: str | None = "NoSchedule"  # effect that a device's taint may have at most; None: there may be none
    unfenced: str = ""  # what a person must know of that, where it is not NoSchedule
    taints_node: bool = False  # taints of devices do not keep all new work away: the Node needs one
    node_tainted: bool = False  # it stands on the Node
    cordoned: bool = False
    devices: int = 0  # that a taint of maintenance is for
    announced: int = 0  # of them that carry one, of any effect; while none is published, all that stand
    fenced: int = 0  # of those that keep new work away
    confirmed: int = 0  # of those of which the cluster says that it honours them
    standing: int = 0  # boards with taints of maintenance, also such that are not published any more
    holders: tuple[str, ...] = ()  # claims that are reserved, and pods with GPUs of a device plugin
    heard_wall: float = 0.0  # 0: no agent was ever heard
    renewed_wall: float = 0.0  # when this leader saw the agent renew its Lease; 0: not yet
    stale: bool = False
    partial: bool = False  # the agent does not say all that it finds
    answer: Answer | None = None
    findings: tuple[str, ...] = ()  # those with which no node is given back


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One maintenance as it is said."""

    node: str
    phase: Phase
    message: str
    started_wall: float | None = None  # None: not yet
    missed: bool = False  # the deadline passed before the node was ready
    holders: int = 0
    effect: str | None = None  # of the devices' taints that it asks for; None: none
    kept_free: bool = False  # the node should get no new work
    ask: Ask | None = None  # of the agent
    problem: str = ""  # with what the person asked for

    @property
    def reason(self) -> str:
        """Of the condition."""
        return "DeadlineMissed" if self.missed else self.phase.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The answer of one step."""

    states: Mapping[str, Maintained] = field(default_factory=dict)
    statuses: Mapping[str, Status] = field(default_factory=dict)

    @property
    def nodes(self) -> frozenset[str]:
        """Nodes that no budget counts and on which findings put up nothing new."""
        return frozenset(name for name, each in self.statuses.items() if each.phase not in _OUTSIDE)

    @property
    def kept_free(self) -> frozenset[str]:
        """Nodes that should get no new work."""
        return frozenset(name for name, each in self.statuses.items() if each.kept_free)


def legible(state: Maintained, now_wall: float) -> Maintained | None:
    """What was remembered, with no time after now; None where this version does not know the phase."""
    if state.phase not in _PHASES:
        return None
    started, ended, quiet = (
        min(max(wall, 0.0), now_wall) for wall in (state.started_wall, state.ended_wall, state.quiet_wall)
    )
    return msgspec.structs.replace(state, started_wall=started, ended_wall=ended, quiet_wall=quiet)


def step(
    facts: Iterable[NodeFacts],
    remembered: Mapping[str, Maintained],
    policy: MaintenancePolicy,
    *,
    fleet: int,
    groups: Mapping[str, str],
    now_wall: float,
) -> Outcome:
    """One look at every node for which maintenance is asked for or was begun. `fleet` counts nodes with GPUs.

    What was remembered is `legible`.
    """
    begun = {node: state for node, state in remembered.items() if state.phase != Phase.NO_GPUS.value}
    places = _Places(policy, fleet, [groups.get(node, "") for node in begun])
    states: dict[str, Maintained] = {}
    statuses: dict[str, Status] = {}
    # Whoever has a place keeps it; the others in the order of their deadlines.
    for each in sorted(facts, key=lambda each: (each.node not in begun, _deadline(each), each.node)):
        state = _begun(each, begun.get(each.node), places, now_wall)
        uncounted = each.no_gpus or each.node in remembered.keys() - begun.keys()
        if state is None:
            if each.request is not None:
                statuses[each.node] = _not_begun(each, each.request, places, now_wall)
            if each.request is not None and uncounted:
                states[each.node] = Maintained(uid="", phase=Phase.NO_GPUS.value, started_wall=now_wall)
            continue
        if uncounted:
            state = msgspec.structs.replace(state, gpus=0)
        if each.request is not None:
            states[each.node], statuses[each.node] = _asked_for(each, each.request, state, now_wall)
        elif (back := _taken_back(each, state, policy, now_wall)) is not None:
            states[each.node], statuses[each.node] = back
    return Outcome(states=states, statuses=statuses)


def _deadline(facts: NodeFacts) -> float:
    request = facts.request
    return math.inf if request is None or request.deadline_wall is None else request.deadline_wall


class _Places:
    """How many more nodes may be begun with."""

    def __init__(self, policy: MaintenancePolicy, fleet: int, groups: Iterable[str]) -> None:
        self._per_group = policy.nodes_per_group
        self._in_all = max(1, math.floor(fleet * policy.fleet_share + 1e-9))
        self._by_group = Counter(groups)

    def refusal(self, group: str) -> str:
        """Why a node of a group has to wait; "" where it need not."""
        used = self._by_group.total()
        if used >= self._in_all:
            return f"Nodes of the fleet under maintenance: {used}, and at most {self._in_all} may be."
        if self._by_group[group] >= self._per_group:
            name = f"group {group}" if group else "the group without a label"
            return f"Nodes of {name} under maintenance: {self._by_group[group]}, and at most {self._per_group} may be."
        return ""

    def take(self, group: str) -> None:
        """One more."""
        self._by_group[group] += 1


def _begun(facts: NodeFacts, state: Maintained | None, places: _Places, now_wall: float) -> Maintained | None:
    """The maintenance as it was, or a new one where there is a place for it; None: there is none."""
    begins = Phase.WAITING_FOR_CLAIMS if facts.standing else Phase.ANNOUNCED  # what stands is not made weaker
    new = Maintained(
        uid=hashlib.sha256(f"{facts.node}/{facts.node_uid}/{now_wall!r}".encode()).hexdigest()[:12],
        phase=begins.value,
        started_wall=now_wall,
        gpus=facts.known_gpus,
        boot_id=facts.boot_id,
        unverified=facts.unverified,
    )
    if state is not None and facts.request is not None and Phase(state.phase) in _AFTER:
        # Asked for again before it was over: what was remembered of the node still holds.
        return msgspec.structs.replace(new, started_wall=state.started_wall, gpus=state.gpus, touched=state.touched)
    if state is not None:
        return state
    if facts.standing:  # begun by a leader whose memory is lost
        if facts.request is None:
            return msgspec.structs.replace(
                new, phase=Phase.VERIFYING.value, touched=True, ended_wall=now_wall, unverified=""
            )
    elif facts.request is None or facts.no_gpus or places.refusal(facts.group):
        return None
    places.take(facts.group)
    return new


def _not_begun(facts: NodeFacts, request: Request, places: _Places, now_wall: float) -> Status:
    if facts.no_gpus:
        text = "Neither slices, its capacity nor an agent tell of a GPU on this node: nothing is done until one does."
        return _said(facts, request, Phase.NO_GPUS, text, now_wall)
    return _said(facts, request, Phase.WAITING_FOR_BUDGET, places.refusal(facts.group), now_wall)


# --- while it is asked for ---


def _asked_for(facts: NodeFacts, request: Request, state: Maintained, now_wall: float) -> tuple[Maintained, Status]:
    before = Phase(state.phase)
    phase, text = (_ready_still if before is Phase.READY else _waits_for)(facts, state)
    releasing = phase in _RELEASING
    state = msgspec.structs.replace(
        state,
        phase=phase.value,
        touched=state.touched or releasing or facts.stale or _booted(facts, state),
        let_go=state.let_go or releasing,
        # What was not known at the beginning is not learned from what is published by and by.
        gpus=max(state.gpus, facts.known_gpus) if state.gpus else facts.told_gpus,
    )
    announcing = phase is Phase.ANNOUNCED
    effect = "None" if announcing and facts.highest is not None else facts.highest
    if facts.unfenced not in text:
        text = f"{text} {facts.unfenced}"
    status = _said(facts, request, phase, text, now_wall)
    # NVML that was let go is not taken up again because a taint is missing for a moment: somebody may be at work.
    release = releasing or (state.let_go and not facts.holders)
    ask = Ask(uid=state.uid, do="release" if release else "watch")
    return state, replace(status, started_wall=state.started_wall, effect=effect, kept_free=not announcing, ask=ask)


def _booted(facts: NodeFacts, state: Maintained) -> bool:
    return bool(state.boot_id and facts.boot_id) and state.boot_id != facts.boot_id


def _said(facts: NodeFacts, request: Request, phase: Phase, text: str, now_wall: float) -> Status:
    """What is said while it is asked for, with what there is to say of the deadline."""
    deadline = request.deadline_wall
    missed = deadline is not None and now_wall >= deadline and phase is not Phase.READY
    if deadline is not None and missed:
        text = f"The deadline {api_time(deadline)} has passed. {text}"
    elif deadline is not None and phase is not Phase.READY:
        text += f" The deadline is {api_time(deadline)}."
    if request.deadline_problem:
        text += f" {request.deadline_problem}"
    by = f" by {request.by}" if request.by else ""
    text += f" Maintenance{by}: {request.reason or 'no reason given'}"
    return Status(
        node=facts.node,
        phase=phase,
        message=text,
        missed=missed,
        holders=len(facts.holders),
        problem=request.deadline_problem,
    )


def _waits_for(facts: NodeFacts, state: Maintained) -> tuple[Phase, str]:
    if Phase(state.phase) is Phase.ANNOUNCED and facts.highest is not None and facts.announced < facts.devices:
        return Phase.ANNOUNCED, f"{facts.announced} of {facts.devices} devices are announced."
    if missing := _open_to_work(facts) or _unconfirmed(facts):
        return Phase.WAITING_FOR_TAINTS, missing
    if facts.holders:
        return Phase.WAITING_FOR_CLAIMS, f"Held by {shown(facts.holders)}."
    if not facts.published:
        return Phase.WAITING_FOR_CLAIMS, "Not all of its devices are published: whether a claim holds one is not known."
    if not facts.heard_wall:
        return Phase.WAITING_FOR_AGENT, "No agent of claimscope has been heard of on this node."
    if facts.stale:
        return Phase.WAITING_FOR_AGENT, f"The node's agent has not been heard of since {api_time(facts.heard_wall)}."
    if not facts.renewed_wall:
        return Phase.WAITING_FOR_AGENT, "The node's agent has not been heard of yet by the controller that leads now."
    answer = facts.answer
    if answer is None or answer.uid != state.uid:
        return Phase.WAITING_FOR_AGENT, "The node's agent is asked to let NVML go and has not answered yet."
    if answer.processes:
        return Phase.WAITING_FOR_PROCESSES, f"Processes that use its GPUs: {answer.processes}."
    return (
        (Phase.READY, _can_go(answer))
        if answer.released
        else (Phase.WAITING_FOR_AGENT, "The node's agent has not let NVML go yet.")
    )


def _can_go(answer: Answer | None) -> str:
    return _CAN_GO if answer is None or answer.processes is not None else f"{_CAN_GO} {_NOT_COUNTED}"


def _open_to_work(facts: NodeFacts) -> str:
    """Why new work may still come to the node; "" where something keeps it away."""
    if facts.cordoned or facts.node_tainted:
        return ""
    if facts.taints_node:
        return (
            "The Node does not carry the taint claimscope.io/maintenance: cordon the node, or let the controller write "
            "taints of Nodes (rbac-controller-node-taints.yaml)."
        )
    if facts.highest != "NoSchedule":
        return f"{facts.unfenced} Cordon the node."
    if facts.fenced < facts.devices:
        return f"{facts.fenced} of {facts.devices} devices are kept from new work."
    return "" if facts.fenced else "None of its devices is published, and none is kept from new work: cordon the node."


def _unconfirmed(facts: NodeFacts) -> str:
    """Whether nothing but taints of devices keeps new work away, and the cluster says of some nothing."""
    if facts.cordoned or facts.node_tainted or facts.confirmed >= facts.devices:
        return ""
    return (
        f"Kubernetes confirms the taints of {facts.confirmed} of {facts.devices} devices; if that stays so, cordon the "
        "node, and check the feature gate DRADeviceTaintRules."
    )


def _ready_still(facts: NodeFacts, state: Maintained) -> tuple[Phase, str]:
    """Once it is ready, an agent that is silent is none that holds NVML: the node may be off."""
    answer = facts.answer if facts.answer is not None and facts.answer.uid == state.uid else None
    used = answer is not None and (not answer.released or bool(answer.processes))
    if facts.holders or _open_to_work(facts) or (used and not facts.stale):
        return _waits_for(facts, state)
    return Phase.READY, _can_go(answer)


def shown(names: Iterable[str]) -> str:
    """Some of them, and how many more."""
    known = sorted(names)
    more = len(known) - SHOWN_MAX
    return "; ".join(known[:SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


# --- once it is taken back ---


def _taken_back(
    facts: NodeFacts, state: Maintained, policy: MaintenancePolicy, now_wall: float
) -> tuple[Maintained, Status] | None:
    """None once it is over."""
    phase = Phase(state.phase)
    if phase not in _AFTER:
        missing = not facts.published or facts.gpus < state.gpus
        touched = state.touched or facts.stale or _booted(facts, state) or missing
        phase = Phase.VERIFYING if touched else Phase.LIFTING
        state = msgspec.structs.replace(state, phase=phase.value, touched=touched, ended_wall=now_wall, quiet_wall=0.0)
    text = "It is over; the taints go."
    if phase is not Phase.LIFTING and facts.unverified not in ("", "false", state.unverified):
        phase, text = Phase.LIFTING, f"Given back without verification ({facts.unverified}); the taints go."
    if phase is not Phase.LIFTING:
        state, phase, text = _verified(facts, state, policy, now_wall)
    if phase is Phase.LIFTING and not facts.standing:
        return None
    state = msgspec.structs.replace(state, phase=phase.value)
    stays = phase is not Phase.LIFTING
    return state, Status(
        node=facts.node,
        phase=phase,
        message=text,
        started_wall=state.started_wall,
        effect=facts.highest if stays else None,
        kept_free=stays,
        holders=len(facts.holders),
    )


def _verified(
    facts: NodeFacts, state: Maintained, policy: MaintenancePolicy, now_wall: float
) -> tuple[Maintained, Phase, str]:
    problems = _unfinished(facts, state)
    if facts.findings:
        problems.append(f"Findings: {shown(facts.findings)}.")
    if problems:
        failed = bool(facts.findings) or not state.gpus or now_wall - state.ended_wall >= _GIVE_UP_SECONDS
        state = msgspec.structs.replace(state, quiet_wall=0.0)
        text = " ".join(problems)
        if not failed:
            return state, Phase.VERIFYING, text
        cure = "It goes on by itself once that is mended; " if state.gpus else ""
        cure += f"`claimscope maintenance finish --without-verification` gives {facts.node} back as it is."
        return state, Phase.VERIFY_FAILED, f"{text} {cure}"
    if not facts.renewed_wall:  # another leader heard it: that stands, and this one has to hear it, too
        return state, Phase.VERIFYING, "The node's agent has not been heard of yet by the controller that leads now."
    quiet_wall = state.quiet_wall or now_wall
    state = msgspec.structs.replace(state, quiet_wall=quiet_wall)
    if now_wall - quiet_wall >= policy.quiet_seconds:
        return state, Phase.LIFTING, "Verified; the taints go."
    until = api_time(quiet_wall + policy.quiet_seconds)
    return state, Phase.VERIFYING, f"Nothing is wrong with it; it is given back at {until} if that stays so."


def _unfinished(facts: NodeFacts, state: Maintained) -> list[str]:
    """What has to come back by itself."""
    found: list[str] = []
    silent = bool(facts.renewed_wall) and facts.renewed_wall <= state.ended_wall
    if facts.stale or silent or (not facts.renewed_wall and not state.quiet_wall):
        found.append("The node's agent has not been heard of since the maintenance ended.")
    elif facts.answer is not None and facts.answer.released:
        found.append("The node's agent has not taken NVML up again.")
    elif facts.partial:
        found.append("The node's agent does not say all that it finds.")
    if not facts.published:
        found.append("Not all of its devices are published.")
    elif not state.gpus:
        found.append("How many GPUs it had before is not known.")
    elif facts.gpus < state.gpus:
        found.append(f"{facts.gpus} of {state.gpus} GPUs are published.")
    return found
