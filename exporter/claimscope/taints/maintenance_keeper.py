"""How does a leader carry out maintenance: what does it decide each round, ask the agents, and tell people?"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from claimscope.claims.cluster import Cluster
from claimscope.clock import Clock
from claimscope.kube.api import MERGE_PATCH, ApiClient, ApiError
from claimscope.kube.objects import Lease
from claimscope.metrics.cluster import sample
from claimscope.model import Sample
from claimscope.taints.apply import MANAGER, api_time, send
from claimscope.taints.conditions import MAINTENANCE_READY, NodeCondition, cut, present_on
from claimscope.taints.events import About, Note
from claimscope.taints.inputs import Inputs
from claimscope.taints.maintenance import Outcome, Phase, Request, Status, legible, step
from claimscope.taints.maintenance_ask import ASK, ask_text
from claimscope.taints.maintenance_facts import Renewals, Sight, concerned, leases_of
from claimscope.taints.maintenance_fences import sites_of, wanted
from claimscope.taints.memory import Maintained
from claimscope.taints.model import NodeReport

log = logging.getLogger(__name__)

ASKS_PER_ROUND: Final = 50
ASKED_SECONDS: Final = 30.0  # within which a Lease need not have come back with what was written
PODS_PER_NODE: Final = 20  # that are told
_WARNINGS: Final = frozenset({Phase.VERIFY_FAILED})


@dataclass(slots=True)
class Keeper:
    """The maintenance of one leadership; one event loop owns it."""

    api: ApiClient
    cluster: Cluster
    clock: Clock
    outcome: Outcome = field(default_factory=Outcome)
    _renewals: Renewals = field(default_factory=Renewals)
    _sight: Sight | None = None
    _requests: Mapping[str, Request | None] = field(default_factory=dict)
    _leases: Mapping[str, Lease] = field(default_factory=dict)
    _asked: dict[str, tuple[str | None, int]] = field(default_factory=dict)  # what was last written, and when
    _told: dict[str, Status] = field(default_factory=dict)

    def decide(
        self, inputs: Inputs, states: Mapping[str, Maintained], *, readable: bool
    ) -> tuple[Inputs, dict[str, Maintained]]:
        """One step; answers what the plan needs to know of it, and what the next round must."""
        remembered = _legible(states, inputs.now_wall)
        requests = concerned(self.cluster, inputs, remembered)
        leases = leases_of(self.cluster, requests)
        self._renewals.follow(leases, inputs.now_wall)
        sight = Sight(self.cluster, inputs, leases, requests, readable=readable, renewals=self._renewals)
        facts = [sight.of(node, request) for node, request in requests.items()]
        groups = {node: report.group for node, report in inputs.reports.items() if node in remembered}
        self.outcome = step(
            facts, {node: state for node, state in remembered.items() if node in requests}, inputs.policy.maintenance,
            fleet=sum(1 for report in inputs.reports.values() if report.devices), groups=groups,
            now_wall=inputs.now_wall,
        )  # fmt: skip
        self._sight, self._requests, self._leases = sight, requests, leases
        statuses = self.outcome.statuses
        kept_free = {
            node: wanted(status, sites_of(inputs.inventory, node), inputs.nodes.get(node, ""), requests[node])
            for node, status in statuses.items() if status.effect is not None
        }  # fmt: skip
        after = replace(
            inputs, maintenance=self.outcome.nodes, fenced_nodes=self.outcome.kept_free, kept_free=kept_free
        )
        return after, dict(self.outcome.states)

    def all_of(self, reports: Mapping[str, NodeReport]) -> list[NodeReport]:
        """The reports, with one of each node under maintenance that has neither an agent nor GPUs."""
        more = [
            NodeReport(node=node, node_uid="", group="", heard_wall=0.0, stale=True)
            for node in self.outcome.statuses if node not in reports
        ]  # fmt: skip
        return [*reports.values(), *more]

    @property
    def unfinished(self) -> bool:
        """Whether there is anything of maintenance to be written: in mode observe nothing else is."""
        return (
            bool(self.outcome.statuses or self._told)
            or any(ASK in (lease.metadata.annotations or {}) for lease in self._leases.values())
            or any(MAINTENANCE_READY in present_on(node) for node in self.cluster.nodes.values())
        )

    def conditions(self) -> dict[str, NodeCondition]:
        """GPUMaintenanceReady of each node under maintenance."""
        return {
            node: NodeCondition(
                type=MAINTENANCE_READY, status="True" if status.phase is Phase.READY else "False",
                reason=status.reason, message=cut(status.message),
            )
            for node, status in self.outcome.statuses.items()
        }  # fmt: skip

    # --- asking agents ---

    async def ask(self) -> AsyncIterator[tuple[str, ApiError | None]]:
        """Writes into agents' Leases what they are asked, some at a time, and takes away what is over."""
        now_ns, left = self.clock.monotonic_ns(), ASKS_PER_ROUND
        for node, lease in self._leases.items():
            status = self.outcome.statuses.get(node)
            text = None if status is None else ask_text(status.ask)
            if (lease.metadata.annotations or {}).get(ASK) == text:
                self._asked.pop(node, None)
                continue
            asked = self._asked.get(node)
            if left == 0 or (asked is not None and asked[0] == text and now_ns - asked[1] < ASKED_SECONDS * 1e9):
                continue
            left -= 1
            self._asked[node] = (text, now_ns)
            path = f"/apis/coordination.k8s.io/v1/namespaces/{lease.metadata.namespace}/leases/{lease.metadata.name}"
            try:
                await send(
                    self.api,
                    "PATCH",
                    path,
                    {"metadata": {"annotations": {ASK: text}}},
                    MERGE_PATCH,
                    {"fieldManager": MANAGER},
                )
            except ApiError as error:
                yield "agent", error
            else:
                yield "agent", None

    # --- telling people ---

    def news(self) -> list[Note]:
        """What is new since the last round; what another leader has put on the Node is no news."""
        notes: list[Note] = []
        statuses = self.outcome.statuses
        for node, status in statuses.items():
            notes += self._news(status, self._told.get(node))
        for node in self._told.keys() - statuses.keys():
            log.info("maintenance of node %s is over", node)
            notes += self._notes(self._told[node], "GPUMaintenanceOver", "The node is given back.")
        self._told = dict(statuses)
        return notes

    def _news(self, status: Status, before: Status | None) -> list[Note]:
        notes: list[Note] = []
        said = self._said_on(status.node) if before is None else before.reason
        if status.problem and (before is None or before.problem != status.problem):
            notes += self._notes(status, "GPUMaintenanceDeadlineUnreadable", status.problem, warning=True)
        if status.reason == said:
            return notes
        log.info("maintenance of node %s: %s: %s", status.node, status.reason, status.message)
        if status.missed and (before is None or not before.missed):
            return notes + self._notes(status, "GPUMaintenanceDeadlineMissed", status.message, warning=True)
        if status.phase is Phase.LIFTING or (before is not None and before.phase is status.phase):
            return notes  # that it is over is told once the taints are gone
        reason = f"GPUMaintenance{status.phase.reason}"
        notes += self._notes(status, reason, status.message, warning=status.phase in _WARNINGS)
        if before is None or before.phase is Phase.WAITING_FOR_BUDGET:
            notes += self._notes_for_pods(status)
        return notes

    def _said_on(self, node: str) -> str:
        """The reason that the Node's condition has: a leader before this one told it."""
        found = self.cluster.nodes.get(node)
        condition = present_on(found).get(MAINTENANCE_READY) if found is not None else None
        return "" if condition is None else condition.reason

    def _notes(self, status: Status, reason: str, message: str, *, warning: bool = False) -> list[Note]:
        node = self.cluster.nodes.get(status.node)
        if node is None:
            return []
        about = About(kind="Node", name=status.node, uid=node.metadata.uid)
        return [Note(about=about, reason=reason, message=message, warning=warning, subject=_subject(status))]

    def _notes_for_pods(self, status: Status) -> list[Note]:
        sight, request = self._sight, self._requests.get(status.node)
        if sight is None or request is None or status.started_wall is None:
            return []
        until = f" until {api_time(request.deadline_wall)}" if request.deadline_wall is not None else ""
        text = f"Node {status.node} is wanted for maintenance of its GPUs{until}: {request.reason}"
        abouts = [
            About(kind="Pod", namespace=namespace, name=name, uid=uid)
            for namespace, name, uid in sight.users(status.node)
        ]
        return [
            Note(about=about, reason="GPUMaintenancePlanned", message=text, subject=_subject(status))
            for about in abouts[:PODS_PER_NODE]
        ]

    # --- metrics ---

    def samples(self) -> list[Sample]:
        """Series of the nodes under maintenance."""
        made: list[Sample] = []
        for node, status in sorted(self.outcome.statuses.items()):
            made.append(sample("dra_node_maintenance_state", 1.0, node, status.phase.value))
            made.append(sample("dra_node_maintenance_deadline_missed", float(status.missed), node))
            made.append(sample("dra_node_maintenance_holders", float(status.holders), node))
            if status.started_wall is not None:
                made.append(sample("dra_node_maintenance_start_timestamp_seconds", status.started_wall, node))
        return made


def _legible(states: Mapping[str, Maintained], now_wall: float) -> dict[str, Maintained]:
    found: dict[str, Maintained] = {}
    for node, state in states.items():
        known = legible(state, now_wall)
        if known is None:
            log.warning(
                "what was remembered of the maintenance of node %s is of another version of claimscope (phase %s): it "
                "goes on as if nothing were remembered", node, state.phase,
            )  # fmt: skip
        else:
            found[node] = known
    return found


def _subject(status: Status) -> str:
    return f"maintenance/{status.started_wall or 0:.0f}"
