"""In which words is health told: to Prometheus, to programs that ask the agent, and to the controller by the Lease?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from claimscope.health.model import DeviceHealth, Finding, RuleState, Severity
from claimscope.health.rules import NOT_JUDGED, RULE_BY_KEY
from claimscope.health.watch import HealthView
from claimscope.metrics.health import FINDING, FINDINGS, HEALTH, SINCE
from claimscope.metrics.own import own
from claimscope.model import Sample

FINDINGS_ANNOTATION = "claimscope.io/findings"
ANNOTATION_BYTES = 32 * 1024  # all annotations of an object may have 256 KiB between them
_EVIDENCE_KEYS = 6
_EVIDENCE_CHARACTERS = 160

Labels = tuple[tuple[str, str], ...]


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The order in which people want them, the same each time."""
    return sorted(
        findings, key=lambda finding: (-finding.severity.rank, finding.since_wall_ns, finding.uuid, finding.rule)
    )


def all_findings(view: HealthView) -> list[Finding]:
    """Of all devices, worst first."""
    return worst_first(finding for health in view.devices.values() for finding in health.findings)


# Metrics


class HealthSamples:
    """Samples of one view after the other. The same series has the same label tuple each time."""

    def __init__(self) -> None:
        self._known: dict[Labels, Labels] = {}

    def of(self, view: HealthView, gpus: Mapping[str, str]) -> list[Sample]:
        """The device families; `gpus` has the index of each device that NVML names, "" for those without.

        A device that NVML does not name any more is shown while something stands against it.
        """
        known, self._known = self._known, {}

        def sample(family: str, value: float, *labels: tuple[str, str], start_ns: int | None = None) -> Sample:
            made = self._known[labels] = known.get(labels, labels)
            return Sample(family=family, labels=made, value=value, start_ns=start_ns)

        samples: list[Sample] = []
        for uuid, health in view.devices.items():
            if uuid not in gpus and not health.findings:
                continue
            device = (("uuid", uuid), ("gpu", gpus.get(uuid, "")))
            samples += [
                sample(HEALTH, float(state is health.severity), *device, ("state", state.value)) for state in Severity
            ]
            for finding in health.findings:
                rule = ("rule", finding.rule)
                words = (("severity", finding.severity.value), ("state", finding.state.value))
                samples.append(sample(FINDING, 1.0, *device, rule, *words))
                samples.append(sample(SINCE, finding.since_wall_ns / 1e9, *device, rule))
            samples += [
                sample(
                    FINDINGS, view.began.get((uuid, severity), 0), *device, ("severity", severity.value),
                    start_ns=view.started_wall_ns,
                )
                for severity in Severity if severity is not Severity.OK
            ]  # fmt: skip
        return samples


def own_samples(view: HealthView) -> list[Sample]:
    """What the agent says of its rules: on how many devices each is in which state; 0 is left out except for ok."""
    counts: Counter[tuple[str, RuleState]] = Counter()
    for health in view.devices.values():
        counts.update(health.states.items())
    samples = [
        own("rule_state", counts[key, state], key, state.value)
        for key in RULE_BY_KEY
        for state in RuleState
        if state is RuleState.OK or counts[key, state]
    ]
    reasons = (("late", view.late), ("foreign", view.foreign), ("too_many", view.dropped))
    samples.append(own("fault_events_unplaced", sum(one.count for one in view.unplaced)))
    return samples + [own("fault_events_left_out_total", count, reason) for reason, count in reasons]


# JSON


def finding_document(finding: Finding) -> dict[str, object]:
    """One finding for programs and people."""
    rule = RULE_BY_KEY.get(finding.rule)
    return {
        "rule": finding.rule,
        "title": rule.title if rule is not None else "",
        "severity": finding.severity.value,
        "state": finding.state.value,
        "since_unix_seconds": finding.since_wall_ns / 1e9,
        "evidence": dict(finding.evidence),
        "clears": finding.clears,
        "systemic": finding.systemic,
    }


def _device_document(health: DeviceHealth, gpus: Mapping[str, str]) -> dict[str, object]:
    gpu = gpus.get(health.uuid, "")
    return {
        "uuid": health.uuid,
        "gpu": int(gpu) if gpu else None,
        "parent_uuid": health.parent,
        "serial": health.serial or None,
        "severity": health.severity.value,
        "recovery_action": health.action or None,
        "findings": [finding_document(finding) for finding in worst_first(health.findings)],
        "rules": {rule: state.value for rule, state in health.states.items()},
    }


def document(view: HealthView, gpus: Mapping[str, str]) -> dict[str, object]:
    """What /api/v1/health answers."""
    return {
        "boot_id": view.boot_id,
        "devices": [
            _device_document(health, gpus)
            for uuid, health in view.devices.items()
            if uuid in gpus or health.findings
        ],
        "shared": [
            {"rule": one.rule, "uuids": list(one.uuids), "since_unix_seconds": one.since_wall_ns / 1e9}
            for one in view.shared
        ],
        "unplaced": [
            {"pci_bus_id": one.line.bdf, "kind": one.line.kind.value, "code": one.line.code, "count": one.count,
             "evidence": dict(one.line.evidence)}
            for one in view.unplaced
        ],
        "not_judged": dict(NOT_JUDGED),
    }


def words(found: Mapping[str, Any]) -> str:
    """The answer of /api/v1/health for people, a line for each finding, worst first."""
    lines = [
        (-Severity(finding["severity"]).rank, _line(device["uuid"], finding))
        for device in found["devices"]
        for finding in device["findings"]
    ]
    said = [line for _, line in sorted(lines)]
    if not said:
        said = [f"{len(found['devices'])} devices, nothing stands against any of them"]
    said += [
        f"told of {one['pci_bus_id']}, where no GPU is known: {one['evidence'].get('line') or one['kind']}"
        for one in found.get("unplaced", ())
    ]
    text = "\n".join(said)
    # Lines of the kernel log may hold anybody's text: nothing in it may steer a terminal.
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _line(uuid: str, finding: Mapping[str, Any]) -> str:
    shared = ", shared by many GPUs" if finding["systemic"] else ""
    evidence = "".join(f"{key}={value}, " for key, value in finding["evidence"].items())
    return (
        f"{uuid} {finding['severity']}: {finding['title']} ({finding['rule']}, {finding['state']}{shared}); {evidence}"
        f"clears: {finding['clears']}"
    )


# The Lease


class LeaseFinding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finding as the controller reads it."""

    uuid: str
    rule: str
    severity: str
    state: str
    since: int  # Unix seconds
    serial: str = ""
    parent: str | None = None  # uuid of the GPU that a MIG device is cut from
    evidence: dict[str, str] = {}
    clears: str = ""
    systemic: bool = False


class LeaseFindings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole annotation."""

    boot_id: str
    findings: tuple[LeaseFinding, ...] = ()
    omitted: int = 0  # milder findings that there was no room for


def findings_annotation(view: HealthView, limit_bytes: int = ANNOTATION_BYTES) -> str:
    """The text of the annotation, worst first and bounded; it changes only with what it says."""
    told: list[LeaseFinding] = []
    room = limit_bytes - len(view.boot_id.encode()) - 64
    candidates = [finding for finding in all_findings(view) if finding.severity is not Severity.OK]
    for finding in candidates:
        made = _lease_finding(finding, view.devices[finding.uuid])
        room -= len(msgspec.json.encode(made)) + 1
        if room < 0:
            break
        told.append(made)
    found = LeaseFindings(boot_id=view.boot_id, findings=tuple(told), omitted=len(candidates) - len(told))
    return msgspec.json.encode(found).decode()


def _lease_finding(finding: Finding, health: DeviceHealth) -> LeaseFinding:
    return LeaseFinding(
        uuid=finding.uuid, rule=finding.rule, severity=finding.severity.value, state=finding.state.value,
        since=finding.since_wall_ns // 10**9, serial=health.serial, parent=health.parent,
        evidence={
            key: value[:_EVIDENCE_CHARACTERS] for key, value in list(finding.evidence.items())[:_EVIDENCE_KEYS]
        },
        clears=finding.clears, systemic=finding.systemic,
    )  # fmt: skip
