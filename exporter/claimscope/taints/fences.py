"""How does a fence look as a DeviceTaintRule, and how is one of ours told from everybody else's?"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Final

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.kube.objects import DeviceTaintRule, unix_seconds
from claimscope.taints.model import KEY_DOMAIN, MANAGED_BY, Fence

MANAGED_LABEL: Final = "app.kubernetes.io/managed-by"
NODE: Final = f"{KEY_DOMAIN}/node"  # a label where it fits into one, an annotation always
SEVERITY_LABEL: Final = f"{KEY_DOMAIN}/severity"
UUID: Final = f"{KEY_DOMAIN}/uuid"
FINDING_UUID: Final = f"{KEY_DOMAIN}/finding-uuid"  # the GPU, where the fenced device is a part of it
SERIAL: Final = f"{KEY_DOMAIN}/serial"
RULES: Final = f"{KEY_DOMAIN}/rules"
SINCE: Final = f"{KEY_DOMAIN}/since"
EVIDENCE: Final = f"{KEY_DOMAIN}/evidence"  # as it was when the fence was last written
CLEARS: Final = f"{KEY_DOMAIN}/clears"
BOOT_ID: Final = f"{KEY_DOMAIN}/boot-id"
EFFECT_SINCE: Final = f"{KEY_DOMAIN}/effect-since"
SPEC_HASH: Final = f"{KEY_DOMAIN}/spec-hash"

KEYS: Final[dict[Severity, str]] = {
    severity: f"{KEY_DOMAIN}/{severity.value}" for severity in Severity if severity is not Severity.OK
}
_SEVERITIES: Final[dict[str, Severity]] = {key: severity for severity, key in KEYS.items()}
MAINTENANCE: Final = f"{KEY_DOMAIN}/maintenance"
NO_FINDING: Final = Severity.OK  # of a fence for maintenance
_SUFFIX: Final = re.compile(r"-\d+$")
_NODE_CHARACTERS: Final = 200  # of the 253 of a name
_LABEL: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def base_name(node: str, identity: str, severity: Severity) -> str:
    """The name of the fence of a device and a severity: the same each time, whatever the device is called.

    It says the node, since an admission policy cannot see into a hash. A node's name that leaves no room is cut.
    """
    return _name(node, identity, severity.value)


def maintenance_name(node: str, identity: str) -> str:
    """The same of the fence that keeps a device free for maintenance."""
    return _name(node, identity, "maintenance")


def _name(node: str, identity: str, word: str) -> str:
    place = node[:_NODE_CHARACTERS].rstrip("-.")
    return f"claimscope.{place}.{hashlib.sha256(identity.encode()).hexdigest()[:12]}.{word}"


def for_maintenance(fence: Fence) -> bool:
    """Whether a fence is about maintenance, and no finding."""
    return fence.severity is NO_FINDING


def word_of(fence: Fence) -> str:
    """In a word what a fence is about: a severity, or maintenance."""
    return "maintenance" if for_maintenance(fence) else fence.severity.value


def base_of(name: str) -> str:
    """The name without the number that was appended where the plain one was taken."""
    return _SUFFIX.sub("", name)


def blocks(effect: str) -> bool:
    """Whether a taint of this effect keeps work away."""
    return effect in ("NoSchedule", "NoExecute")


def spec_hash(fence: Fence) -> str:
    """Of everything in the spec: one that differs from the annotation tells of somebody else's hand."""
    spec = "\n".join((*fence.device, fence.key, fence.value, fence.effect))
    return hashlib.sha256(spec.encode()).hexdigest()[:16]


def sealed(fence: Fence) -> Fence:
    """The same with the hash of its spec."""
    return dataclasses.replace(fence, annotations={**fence.annotations, SPEC_HASH: spec_hash(fence)})


def labels(fence: Fence) -> dict[str, str]:
    """The labels that a fence is written with."""
    found = {MANAGED_LABEL: MANAGED_BY, SEVERITY_LABEL: word_of(fence)}
    return {**found, NODE: fence.node} if _LABEL.fullmatch(fence.node) else found


def rules_of(fence: Fence) -> tuple[str, ...]:
    """The health rules that a standing fence is about, the leading one first."""
    return tuple(rule for rule in fence.annotations.get(RULES, "").split(",") if rule) or (fence.value,)


def _eviction(rule: DeviceTaintRule) -> str:
    """The reason that the device taint eviction controller gives for the rule as it is now: a word of the API.

    Source: DeviceTaintConditionEvictionInProgress in k8s.io/api/resource/v1 types.go.
    """
    for condition in rule.status.conditions or ():
        if condition.type == "EvictionInProgress" and condition.observed_generation in (0, rule.metadata.generation):
            return condition.reason
    return ""


def standing(rule: DeviceTaintRule) -> Fence | None:
    """A fence of ours as it stands; None for everybody else's rules, and for ours that are no matter of health."""
    metadata, spec = rule.metadata, rule.spec
    if (metadata.labels or {}).get(MANAGED_LABEL) != MANAGED_BY:
        return None
    annotations = metadata.annotations or {}
    said = (metadata.labels or {}).get(SEVERITY_LABEL, "")
    severity = _SEVERITIES.get(spec.taint.key) or _SEVERITIES.get(f"{KEY_DOMAIN}/{said}")
    if severity is None and MAINTENANCE in (spec.taint.key, f"{KEY_DOMAIN}/{said}"):
        severity = NO_FINDING
    if severity is None:
        return None
    selector = spec.device_selector
    device = DeviceKey("", "", "")
    if selector is not None:
        device = DeviceKey(selector.driver or "", selector.pool or "", selector.device or "")
    owners = [owner for owner in metadata.owner_references or () if owner.kind == "Node"]
    fence = Fence(
        name=metadata.name, device=device, key=spec.taint.key, value=spec.taint.value, effect=spec.taint.effect,
        uuid=annotations.get(UUID, ""), node=annotations.get(NODE, ""), node_uid=owners[0].uid if owners else "",
        severity=severity, annotations=annotations, created_wall=unix_seconds(metadata.creation_timestamp),
        eviction=_eviction(rule), going=metadata.deletion_timestamp is not None,
    )  # fmt: skip
    edited = not all(device) or not fence.uuid or not fence.node or annotations.get(SPEC_HASH) != spec_hash(fence)
    return dataclasses.replace(fence, edited=edited)
