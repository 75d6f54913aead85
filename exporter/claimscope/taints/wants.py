"""Which fences do the findings ask for, before budgets have their say?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import msgspec

from claimscope.claims.model import DeviceKey, PoolKey
from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.fences import KEYS, base_name
from claimscope.taints.inputs import Inputs
from claimscope.taints.inventory import Site
from claimscope.taints.memory import Ignore, Memory
from claimscope.taints.model import PINNED, Fence, Held, Mode, NodeReport, ReportedFinding
from claimscope.taints.policy import VERDICT_RULES, NodeTaints, Override, effect_of

_NOWHERE: Final = DeviceKey("", "", "")
_EVIDENCE_BYTES_MAX: Final = 4096
_RULES_MAX: Final = 32  # of one fence that are named, the leading ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One fence that findings ask for."""

    fence: Fence  # with the effect that the mode allows; its name is the plain one
    site: Site
    report: NodeReport
    rules: tuple[str, ...]
    since_wall: float
    blocking_rules: tuple[str, ...]  # those of them whose mode lets them keep work away
    evicts: bool  # a human opted in to NoExecute
    verdict: bool  # the driver itself says so: no budget of the node bounds it

    @property
    def blocking(self) -> bool:
        """Whether it would keep work away."""
        return bool(self.blocking_rules)

    @property
    def order(self) -> tuple[int, float, str]:
        """Worst first, then oldest."""
        return (-self.fence.severity.rank, self.since_wall, self.fence.name)


class Silence:
    """Which findings put up no fence because a human said so."""

    def __init__(self, overrides: Iterable[Override], ignores: Iterable[Ignore]) -> None:
        self._said: dict[tuple[str, str], str] = {}
        for override in overrides:
            if override.do == "ignore":
                text = f"{override.author} ignores it until {override.until.isoformat(timespec='seconds')}"
                self._said[override.uuid, override.rule] = f"{text}: {override.reason}" if override.reason else text
        for ignore in ignores:
            text = _about(ignore)
            self._said[ignore.uuid, ignore.rule] = f"{text}: {ignore.reason}" if ignore.reason else text

    def of(self, uuid: str, rule: str) -> str | None:
        """Why nothing is put up for this rule on this device; None: nobody said so."""
        if not self._said:
            return None
        for key in ((uuid, rule), (uuid, ""), ("", rule)):
            if key in self._said:
                return self._said[key]
        return None


def _about(ignore: Ignore) -> str:
    until = f"until {datetime.fromtimestamp(int(ignore.until_wall), UTC).isoformat()}"
    if ignore.taint:
        return f"{ignore.author or 'somebody else'} lifted its taint {ignore.taint}, so that it has none {until}"
    return f"{ignore.author} ignores it {until}" if ignore.author else f"ignored {until}"


@dataclass(slots=True)
class Wanted:
    """The answer."""

    wants: list[Want] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    standing: set[tuple[str, str, Severity]] = field(default_factory=set)  # (node, uuid, severity) that still stand and
    # whose device cannot be found now


def wanted(inputs: Inputs, memory: Memory) -> Wanted:
    """From findings to fences."""
    silence = Silence(inputs.all_overrides(), memory.ignores)
    result = Wanted()
    pins = _pins(inputs)
    for report in inputs.reports.values():
        findings = () if report.stale else report.findings
        pinned = pins.get(report.node, ())
        if report.stale and pinned:  # what stands for what was last said of the device must not be lost over the pin
            uuids = {finding.uuid for finding in pinned}
            findings = tuple(finding for finding in report.findings if finding.uuid in uuids)
        if (findings or pinned) and not (inputs.nodes_known and report.node not in inputs.nodes):
            _of_node(inputs, report, (*findings, *pinned), silence, result)
    result.wants.sort(key=lambda want: want.order)
    return result


def _pins(inputs: Inputs) -> dict[str, list[ReportedFinding]]:
    """What humans declared unhealthy, by node."""
    found: dict[str, list[ReportedFinding]] = {}
    for override in inputs.all_overrides():
        if override.do != "pin_unhealthy":
            continue
        evidence = {"author": override.author, "until": override.until.isoformat(timespec="seconds")}
        if override.reason:
            evidence["reason"] = override.reason
        for node in inputs.inventory.nodes_of(override.uuid):
            pin = ReportedFinding(
                node=node, uuid=override.uuid, serial="", rule=PINNED, severity=Severity.UNHEALTHY, since_wall=0.0,
                evidence=evidence, clears="It ends by itself, or by removing the override.", pinned=True,
            )  # fmt: skip
            found.setdefault(node, []).append(pin)
    return found


def _of_node(
    inputs: Inputs, report: NodeReport, findings: Iterable[ReportedFinding], silence: Silence, result: Wanted
) -> None:
    found: dict[tuple[str, Severity], list[ReportedFinding]] = {}
    sites: dict[str, Site] = {}
    for finding in findings:
        if finding.severity is Severity.OK:
            continue
        refusal = _refusal(inputs, report, finding, silence)
        if refusal is not None:
            result.held.append(refusal)
            continue
        places = inputs.inventory.sites(finding.uuid, report.node)
        if not places:
            result.standing.add((report.node, finding.uuid, finding.severity))
            if (absent := _absent(inputs, report, finding)) is not None:
                result.held.append(absent)
        for site in places:
            said = silence.of(site.uuid, finding.rule)
            if said is not None and site.uuid != finding.uuid:
                result.held.append(Held(fence=_at(site, report, (finding,), "None"), reason="ignored", text=said))
                continue
            sites[site.identity] = site
            found.setdefault((site.identity, finding.severity), []).append(finding)
    for (identity, _), ours in found.items():
        result.wants.append(_want(inputs, report, sites[identity], ours))


def _absent(inputs: Inputs, report: NodeReport, finding: ReportedFinding) -> Held | None:
    """Why a device that no slice publishes gets no fence; None where its node gets one (node_taints.py)."""
    reason, text = "unresolved", f"no complete pool of node {report.node} publishes {finding.uuid}"
    if report.plugin_devices:
        if inputs.policy.node_taints is not NodeTaints.NONE:
            return None
        reason, text = "mode", f"a device plugin gives {finding.uuid} out, and `node_taints` of the policy is `none`"
    return Held(fence=_unplaced(report, finding), reason=reason, text=text)


def _refusal(inputs: Inputs, report: NodeReport, finding: ReportedFinding, silence: Silence) -> Held | None:
    fence = _unplaced(report, finding)
    for site in inputs.inventory.sites(finding.uuid, report.node):
        if site.uuid == finding.uuid:
            fence = replace(fence, device=site.device)
            break
    said = silence.of(finding.uuid, finding.rule)
    if said is not None:
        return Held(fence=fence, reason="ignored", text=said)
    if finding.systemic:
        text = f"many GPUs of node {report.node} have {finding.rule} at once: one cause outside of them"
        return Held(fence=fence, reason="systemic_node", text=text, cause=f"{report.node}/{finding.rule}")
    if inputs.mode_for(report, finding) is Mode.OBSERVE:
        text = inputs.ceiling_text if inputs.ceiling is Mode.OBSERVE and inputs.ceiling_text else "the mode is observe"
        return Held(fence=fence, reason="mode", text=text)
    return None


def by_weight(finding: ReportedFinding) -> tuple[bool, float, str]:
    """The driver's own word leads, then the oldest: news seldom change the value of a taint."""
    return finding.rule not in VERDICT_RULES, finding.since_wall, finding.rule


def _want(inputs: Inputs, report: NodeReport, site: Site, findings: list[ReportedFinding]) -> Want:
    findings.sort(key=by_weight)
    rules = tuple(dict.fromkeys(finding.rule for finding in findings))
    keeping_away = [
        finding for finding in findings if effect_of(inputs.mode_for(report, finding), finding.severity) == "NoSchedule"
    ]
    blocking = tuple(dict.fromkeys(finding.rule for finding in keeping_away))
    return Want(
        fence=_at(site, report, findings, "NoSchedule" if blocking else "None"),
        site=site, report=report, rules=rules, blocking_rules=blocking,
        since_wall=min(finding.since_wall for finding in findings),
        evicts=any(inputs.policy.evicts(rule) for rule in blocking),
        verdict=any(finding.pinned or finding.rule in VERDICT_RULES for finding in keeping_away),
    )  # fmt: skip


def _unplaced(report: NodeReport, finding: ReportedFinding) -> Fence:
    return Fence(
        name=base_name(report.node, finding.uuid, finding.severity), device=_NOWHERE, key=KEYS[finding.severity],
        value=finding.rule, effect="None", uuid=finding.uuid, node=report.node, node_uid=report.node_uid,
        severity=finding.severity,
    )  # fmt: skip


def _at(site: Site, report: NodeReport, findings: Iterable[ReportedFinding], effect: str) -> Fence:
    findings = tuple(findings)
    leading = findings[0]
    annotations = {
        fences.UUID: site.uuid,
        fences.FINDING_UUID: leading.uuid,
        fences.NODE: report.node,
        fences.RULES: ",".join(list(dict.fromkeys(finding.rule for finding in findings))[:_RULES_MAX]),
        fences.SINCE: f"{min(finding.since_wall for finding in findings):.0f}",
        fences.EVIDENCE: _evidence(findings),
        fences.CLEARS: leading.clears,
        fences.SERIAL: leading.serial,
        fences.BOOT_ID: leading.boot_id,
    }
    return Fence(
        name=base_name(report.node, site.identity, leading.severity), device=site.device, key=KEYS[leading.severity],
        value=leading.rule, effect=effect, uuid=site.uuid, node=report.node, node_uid=report.node_uid,
        severity=leading.severity, annotations={key: text for key, text in annotations.items() if text},
    )  # fmt: skip


def _evidence(findings: Iterable[ReportedFinding]) -> str:
    """What was found, by rule, as JSON; where it is too long, the leading rules' alone."""
    told: dict[str, dict[str, str]] = {}
    text = "{}"
    for finding in findings:
        told[finding.rule] = dict(finding.evidence)
        longer = msgspec.json.encode(told).decode()
        if len(longer) > _EVIDENCE_BYTES_MAX:
            break
        text = longer
    return text


def pool_of(device: DeviceKey) -> PoolKey:
    """The pool that a device is named in."""
    return PoolKey(device.driver, device.pool)


def moved(fence: Fence, device: DeviceKey) -> Fence:
    """The same fence at the device's present name."""
    return fences.sealed(replace(fence, device=device))
