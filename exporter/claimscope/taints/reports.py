"""What do the agents say in their Leases, and which of them still speak?

A Lease is written by one node's agent and is believed as far as it goes: what cannot be read is left out, counted, and
said once. Silence is measured by this process' own monotonic clock from the last change of renewTime: clocks of nodes
differ, and an old renewTime that is renewed is alive. Of a Lease that is seen for the first time only its renewTime
tells how long its agent has been silent: that is believed until it changes, so that a new leader takes no dead agent
for a living one. Should the clocks differ, the next heartbeat sets it right within a minute.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from claimscope.health.model import Severity
from claimscope.kube.objects import Lease, Node, unix_seconds
from claimscope.taints.inventory import Inventory
from claimscope.taints.machines import Machines
from claimscope.taints.model import KEY_DOMAIN, PINNED, NodeReport, ReportedFinding

log = logging.getLogger(__name__)

FINDINGS_ANNOTATION: Final = f"{KEY_DOMAIN}/findings"
NODE_ANNOTATION: Final = f"{KEY_DOMAIN}/node"
_BYTES_MAX: Final = 256 * 1024  # what Kubernetes allows all annotations of an object together
_FINDINGS_MAX: Final = 4096
_EVIDENCE_MAX: Final = 16
_TEXT_MAX: Final = 512
_RULE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")  # becomes the value of a taint: at most 63 characters
_UUID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")
_TIME_MAX: Final = 253402300799.0  # the end of the year 9999: a later one cannot be written as a date
_SEVERITIES: Final = {severity.value: severity for severity in Severity}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The content of one Lease."""

    findings: tuple[ReportedFinding, ...] = ()
    skipped: int = 0  # entries that cannot be read
    partial: bool = False  # not all findings of the node are here
    problem: str = ""  # the first thing that was wrong


def read_findings(node: str, text: str | None) -> Told:
    """The findings of an annotation: a list, or an object with the list, the boot id and a number left out."""
    if text is None:
        return Told(partial=True)  # the agent has not judged yet
    if len(text) > _BYTES_MAX:
        return Told(skipped=1, partial=True, problem=f"{len(text)} characters are too many")
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Told(skipped=1, partial=True, problem=f"not JSON: {error}")
    boot_id, omitted, entries = "", 0, document
    if isinstance(document, dict):
        boot_id, entries = _text(document.get("boot_id")), document.get("findings", [])
        omitted = document.get("omitted", 0)
    if not isinstance(entries, list):
        return Told(skipped=1, partial=True, problem="no list of findings")
    findings: dict[tuple[str, str], ReportedFinding] = {}
    problems: list[str] = []
    for entry in entries[:_FINDINGS_MAX]:
        try:
            finding = _finding(node, boot_id, entry)
        except ValueError as error:
            problems.append(str(error))
            continue
        before = findings.get((finding.uuid, finding.rule))
        if before is None or before.severity.rank < finding.severity.rank:
            findings[finding.uuid, finding.rule] = finding
    skipped = len(problems) + max(0, len(entries) - _FINDINGS_MAX)
    return Told(
        findings=tuple(findings.values()), skipped=skipped, partial=bool(skipped or omitted),
        problem=problems[0] if problems else "",
    )  # fmt: skip


def _finding(node: str, boot_id: str, entry: Any) -> ReportedFinding:  # noqa: ANN401 - whatever stands there
    if not isinstance(entry, dict):
        raise ValueError(f"`{str(entry)[:80]}` is no finding")
    uuid, rule, severity = (_text(entry.get(key)) for key in ("uuid", "rule", "severity"))
    if _UUID.fullmatch(uuid) is None:
        raise ValueError(f"`{uuid[:80]}` is no uuid")
    if _RULE.fullmatch(rule) is None:
        raise ValueError(f"`{rule[:80]}` is no name of a rule")
    if rule == PINNED:
        raise ValueError(f"`{rule}` is what people declare, and no rule of an agent")
    if severity not in _SEVERITIES:
        raise ValueError(f"`{severity[:80]}` is no severity")
    since, evidence = entry.get("since"), entry.get("evidence")
    if not isinstance(since, int | float) or isinstance(since, bool) or not math.isfinite(since):
        raise ValueError(f"`{str(since)[:80]}` is no time in Unix seconds")
    if evidence is not None and not isinstance(evidence, dict):
        raise ValueError(f"`{str(evidence)[:80]}` is no evidence")
    return ReportedFinding(
        node=node, uuid=uuid, serial=_text(entry.get("serial")), rule=rule, severity=_SEVERITIES[severity],
        since_wall=min(max(float(since), 0.0), _TIME_MAX), clears=_text(entry.get("clears")),
        systemic=entry.get("systemic") is True,
        evidence={key[:_TEXT_MAX]: _text(value) for key, value in list((evidence or {}).items())[:_EVIDENCE_MAX]},
        boot_id=_text(entry.get("boot_id")) or boot_id, parent=_text(entry.get("parent")),
    )  # fmt: skip


def _text(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, str):
        return value[:_TEXT_MAX]
    return "" if value is None else str(value)[:_TEXT_MAX]


class Heartbeats:
    """When each agent was last heard, by our own clock."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[str, int | None]] = {}  # node -> (renewTime as it says, when it came to be so)
        self._met: dict[str, int] = {}  # node -> when it was first seen; until it is heard

    def hear(self, node: str, renew_time: str | None, now_ns: int, now_wall: float) -> None:
        """Takes a Lease as it stands; whoever is seen for the first time was heard when the Lease says so."""
        before = self._heard.get(node)
        if before is None:
            wall = unix_seconds(renew_time)
            heard_ns = None if wall is None else now_ns - round(max(now_wall - wall, 0.0) * 1e9)
            self._heard[node] = (renew_time or "", heard_ns)
            self._met[node] = now_ns
        elif before[0] != (renew_time or ""):
            self._heard[node] = (renew_time or "", now_ns)
            self._met.pop(node, None)

    def forget(self, node: str) -> None:
        """Its Lease is gone: from now on it is silent."""
        self._heard.pop(node, None)
        self._met.pop(node, None)

    def unheard(self, node: str, now_ns: int, seconds: float) -> bool:
        """Whether it has been looked at for less than this time, and has not spoken since: its clock may be wrong."""
        met_ns = self._met.get(node)
        return met_ns is not None and now_ns - met_ns <= seconds * 1e9

    def silence_seconds(self, node: str, now_ns: int) -> float | None:
        """How long nothing was heard; None where there is no Lease, or one that was never renewed."""
        heard_ns = self._heard.get(node, ("", None))[1]
        return None if heard_ns is None else (now_ns - heard_ns) / 1e9


class Reports:
    """All agents' Leases, decoded once per change."""

    def __init__(self) -> None:
        self.heartbeats = Heartbeats()
        self.skipped_total = 0  # entries that could not be read
        self._leases: dict[str, Lease] = {}  # by node
        self._told: dict[str, Told] = {}
        self._said: dict[str, str] = {}  # node -> what was wrong, once it has been logged
        self._machines = Machines()

    def follow(self, leases: Iterable[Lease], now_ns: int, now_wall: float) -> None:
        """Takes all Leases as they stand now. Where two name one node, the one renewed last is believed."""
        newest: dict[str, Lease] = {}
        for lease in leases:
            node = (lease.metadata.annotations or {}).get(NODE_ANNOTATION, "")
            if node and (node not in newest or _renewed(newest[node]) < _renewed(lease)):
                newest[node] = lease
        for node in self._leases.keys() - newest.keys():
            self.heartbeats.forget(node)
            del self._leases[node], self._told[node], self._said[node]
        for node, lease in newest.items():
            before = self._leases.get(node)
            if before is lease:
                continue
            self._leases[node] = lease
            self.heartbeats.hear(node, lease.spec.renew_time, now_ns, now_wall)
            text = (lease.metadata.annotations or {}).get(FINDINGS_ANNOTATION)
            if before is None or text != (before.metadata.annotations or {}).get(FINDINGS_ANNOTATION):
                self._told[node] = self._read(node, text)

    def _read(self, node: str, text: str | None) -> Told:
        told = read_findings(node, text)
        self.skipped_total += told.skipped
        if told.problem and self._said.get(node) != told.problem:
            log.warning(
                "findings of node %s: %d cannot be read, the first for this: %s; its fences stay until all can be read",
                node, told.skipped, told.problem,
            )  # fmt: skip
        self._said[node] = told.problem
        return told

    def by_node(
        self, nodes: Mapping[str, Node], inventory: Inventory, *, group_label: str, stale_seconds: float, now_ns: int,
        now_wall: float,
    ) -> dict[str, NodeReport]:
        """A report of every node that has an agent or GPUs."""
        machines = self._machines
        machines.follow(nodes)
        made: dict[str, NodeReport] = {}
        for name in dict.fromkeys((*self._leases, *inventory.nodes(), *machines.with_plugin())):
            silence = self.heartbeats.silence_seconds(name, now_ns)
            told = self._told.get(name)
            node = nodes.get(name)
            offered, withdrawn = machines.offers(name)
            cordoned = node is not None and bool(node.spec.unschedulable)
            changes = "" if node is None else machines.driver_changes(node, now_ns, now_wall)
            stale = silence is None or silence > stale_seconds
            made[name] = NodeReport(
                node=name,
                node_uid=node.metadata.uid if node is not None else "",
                group="" if node is None else machines.group(node, group_label),
                heard_wall=0.0 if silence is None else now_wall - silence,
                stale=stale,
                unheard=stale and self.heartbeats.unheard(name, now_ns, stale_seconds),
                cordoned=cordoned,
                devices=max(inventory.gpus_of(name), offered),
                plugin_devices=offered,
                plugin_withdrawn=withdrawn,
                unsettled=changes or (f"node {name} is cordoned, and gets no new work anyway" if cordoned else ""),
                driver_changes=bool(changes),
                findings=told.findings if told is not None else (),
                partial=told is None or told.partial,
            )  # fmt: skip
        return made


def _renewed(lease: Lease) -> tuple[str, str]:
    return (lease.spec.renew_time or "", lease.metadata.name)
