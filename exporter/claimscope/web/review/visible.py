"""What is left of an answer for somebody who may not see every namespace? Pure functions of snapshots and texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from claimscope.claims.explain import Explanation
from claimscope.metrics.tables import QUANTITIES

if TYPE_CHECKING:
    from claimscope.claims.model import ClaimView, ClusterSnapshot, Diagnosis
    from claimscope.health.watch import HealthView
    from claimscope.model import Histogram, Holder, Sample, Snapshot
    from claimscope.web.review.sight import Sight

_ELSEWHERE: Final = "a claim of a namespace that is not shown here"
_NAME: Final = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
_HOLDER: Final = re.compile(rf"\bclaim ([a-z0-9][-a-z0-9]*)/{_NAME}( \([^()]*\))?")
_NAMED: Final = re.compile(rf"(?<![\w./-])([a-z0-9][-a-z0-9]*)/{_NAME}(?![\w/-])")

# Evidence of a finding: `last_xid`, `last_pod` and `last_line` are of the newest event, the others of the first.
_LAST: Final = "last_"
_OF_HOLDER: Final = frozenset({"pod", "process", "pid", "line", "written_by"})
_OF_DEVICE: Final = frozenset(
    {
        "xid", "xids", "meaning", "decoded", "caused_by_xid", "event", "reason", "unit", "sm", "part", "fatal", "link",
        "injected", "registers", "reset", "success", "recovery_action", "recovery_action_before",
        "banks_without_spare_rows", "remapped_rows_uncorrected", "retired_pages", "fabric_state", "fabric_status",
        "per_minute", "limit_per_minute", "power_watts", "limit_watts", "utilization", "mig_mode", "pending",
        *(quantity.key for quantity in QUANTITIES),
        "celsius_to_slowdown", "celsius_to_shutdown",
    }
)  # fmt: skip


def hidden_words(count: int, what: str = "claims") -> str:
    """What is said of that which is left out; "" where nothing is."""
    return f"{count} {what} in namespaces that you may not read" if count else ""


class ClusterIndex:
    """A snapshot by namespace: walked once, for everybody who may see a part of it."""

    def __init__(self, snapshot: ClusterSnapshot) -> None:
        self.snapshot = snapshot
        self.claims: dict[str, dict[str, ClaimView]] = {}
        self.samples: dict[str, list[Sample | Histogram]] = {}  # "": what is of no namespace
        for uid, view in snapshot.claims.items():
            self.claims.setdefault(view.namespace, {})[uid] = view
        for each in snapshot.samples:
            self.samples.setdefault(_namespace(each), []).append(each)
        # Every namespace that the controller's answers name claims of.
        self.namespaces = frozenset(
            {*self.claims, *(wait.namespace for wait in snapshot.waits), *self.samples} - {""}
        )

    def visible(self, sight: Sight) -> ClusterSnapshot:
        """The snapshot as somebody may see it."""
        if sight.everything:
            return self.snapshot
        hidden = self.namespaces - sight.namespaces
        waits = tuple(
            replace(wait, diagnosis=visible_diagnosis(wait.diagnosis, sight, hidden))
            for wait in self.snapshot.waits if sight.shows(wait.namespace)
        )  # fmt: skip
        shown = [namespace for namespace in self.claims if sight.shows(namespace)]
        claims = {uid: view for namespace in shown for uid, view in self.claims[namespace].items()}
        samples = tuple(
            each for namespace, some in self.samples.items() if sight.shows(namespace) for each in some
        )  # fmt: skip
        return replace(self.snapshot, claims=claims, waits=waits, samples=samples)


def visible_diagnosis(diagnosis: Diagnosis, sight: Sight, hidden: Iterable[str]) -> Diagnosis:
    """A diagnosis that names no claim of namespaces that are not shown."""
    known = frozenset(hidden)
    return replace(
        diagnosis,
        summary=visible_text(diagnosis.summary, sight, known),
        evidence=tuple(visible_text(line, sight, known) for line in diagnosis.evidence),
        cure=visible_text(diagnosis.cure, sight, known),
    )


def visible_explanation(found: Explanation, sight: Sight, hidden: Iterable[str]) -> Explanation:
    """An explanation likewise; claims of the same name elsewhere are not offered."""
    if sight.everything:
        return found
    known = frozenset(hidden)
    return replace(
        found,
        summary=visible_text(found.summary, sight, known),
        evidence=tuple(visible_text(line, sight, known) for line in found.evidence),
        cure=visible_text(found.cure, sight, known),
        similar=tuple(each for each in found.similar if sight.shows(each.partition("/")[0])),
    )


def visible_text(text: str, sight: Sight, hidden: frozenset[str]) -> str:
    """A text without namespace/name of what is not shown; `hidden` are namespaces known to have claims."""
    if sight.everything:
        return text

    def holder(found: re.Match[str]) -> str:
        return found[0] if sight.shows(found[1]) else _ELSEWHERE

    def named(found: re.Match[str]) -> str:
        return _ELSEWHERE if found[1] in hidden and not sight.shows(found[1]) else found[0]

    return _NAMED.sub(named, _HOLDER.sub(holder, text))


def holder_namespaces(snapshot: Snapshot) -> set[str]:
    """Every namespace that the agent's answers name holders of."""
    found = {holder.namespace for holder in _holders(snapshot)}
    return found | {pod.namespace for hold in snapshot.holds for pod in hold.pods}


def visible_node(snapshot: Snapshot, sight: Sight) -> tuple[Snapshot, int]:
    """The agent's snapshot as somebody may see it, and how many holders they may not."""
    if sight.everything:
        return snapshot, 0
    hidden = {holder for holder in _holders(snapshot) if not sight.shows(holder.namespace)}
    left = replace(
        snapshot,
        holds=tuple(hold for hold in snapshot.holds if hold.holder not in hidden),
        accounts=tuple(account for account in snapshot.accounts if account.holder not in hidden),
    )
    return left, len(hidden)


def _holders(snapshot: Snapshot) -> set[Holder]:
    return {hold.holder for hold in snapshot.holds} | {account.holder for account in snapshot.accounts}


def evidence_namespaces(view: HealthView | None) -> set[str]:
    """The namespaces of the pods that findings name."""
    if view is None:
        return set()
    found = (_pod_namespaces(each.evidence) for health in view.devices.values() for each in health.findings)
    return set().union(*found)


def visible_health(view: HealthView | None, sight: Sight) -> HealthView | None:
    """What was found of the devices, without the pods of namespaces that are not shown."""
    if view is None or sight.everything:
        return view
    devices = {
        uuid: replace(health, findings=tuple(
            replace(each, evidence=visible_evidence(each.evidence, sight)) for each in health.findings
        ))
        for uuid, health in view.devices.items()
    }  # fmt: skip
    return replace(view, devices=devices)


def visible_document(document: object, sight: Sight) -> object:
    """The same of a document for programs, wherever `evidence` stands in it."""
    if sight.everything:
        return document
    if isinstance(document, Mapping):
        return {
            key: visible_evidence(value, sight) if key == "evidence" and isinstance(value, Mapping)
            else visible_document(value, sight)
            for key, value in document.items()
        }  # fmt: skip
    return [visible_document(each, sight) for each in document] if isinstance(document, list | tuple) else document


def document_namespaces(document: object) -> set[str]:
    """The namespaces of the pods that such a document names."""
    if isinstance(document, Mapping):
        evidence = document.get("evidence")
        here = _pod_namespaces(evidence) if isinstance(evidence, Mapping) else set()
        return here.union(*(document_namespaces(value) for value in document.values()))
    if isinstance(document, list | tuple):
        return set().union(*(document_namespaces(each) for each in document))
    return set()


def visible_evidence(evidence: Mapping[str, str], sight: Sight) -> dict[str, str]:
    """Evidence without a word about who held the device, unless that is a pod of a namespace that is shown.

    A line of the kernel log names the process, and a process may be named after what it trains. What is neither known
    to be of the device alone nor of such a pod is left out.
    """
    if sight.everything:
        return dict(evidence)
    return {key: value for key, value in evidence.items() if _evidence_shown(key, evidence, sight)}


def _evidence_shown(key: str, evidence: Mapping[str, str], sight: Sight) -> bool:
    about = key.removeprefix(_LAST)
    if about in _OF_DEVICE:
        return True
    namespace = _namespace_of_pod(evidence, "pod" if about == key else f"{_LAST}pod")
    return about in _OF_HOLDER and namespace != "" and sight.shows(namespace)


def _pod_namespaces(evidence: Mapping[str, str]) -> set[str]:
    return {_namespace_of_pod(evidence, key) for key in ("pod", f"{_LAST}pod")} - {""}


def _namespace_of_pod(evidence: Mapping[str, str], key: str) -> str:
    namespace, _, pod = evidence.get(key, "").partition("/")
    return namespace if pod else ""


def _namespace(each: Sample | Histogram) -> str:
    for name, value in each.labels:
        if name == "namespace":
            return value
    return ""


def visible_samples(samples: Iterable[Sample], sight: Sight) -> list[Sample]:
    """The samples that are of no namespace, or of one that is shown."""
    return [each for each in samples if sight.everything or sight.shows(_namespace(each))]
