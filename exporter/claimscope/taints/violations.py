"""Which claims hold a device that has a finding, and about what?

One count for each claim, device and constraint that enters this state: the finding came while the claim held the
device, or the claim was given a device that had it.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final, NamedTuple

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceKey, Holding
from claimscope.claims.taints import request_of
from claimscope.health.rules import RULE_BY_KEY
from claimscope.kube.objects import unix_seconds
from claimscope.metrics.cluster import sample
from claimscope.model import Sample
from claimscope.taints.model import ReportedFinding

HEALTH: Final = "health"  # whatever concerns no one part of a device
_BY_PREFIX: Final = (
    ("thermal_", "temperature"),
    ("power_", "power"),
    ("ecc_", "ecc"),
    ("sram_ecc_", "ecc"),
    ("row_remap_", "ecc"),
    ("remapped_rows_", "ecc"),
    ("retired_pages_", "ecc"),
    ("nvlink", "nvlink"),
    ("fabric_", "nvlink"),
    ("pcie_", "pcie"),
    ("clocks_", "clocks"),
)
CONSTRAINTS: Final = ("temperature", "power", "ecc", "nvlink", "pcie", "clocks", HEALTH)


def _constraint(rule: str) -> str:
    return next((constraint for prefix, constraint in _BY_PREFIX if rule.startswith(prefix)), HEALTH)


CONSTRAINT_OF_RULE: Final = MappingProxyType({rule: _constraint(rule) for rule in RULE_BY_KEY})


class _Entry(NamedTuple):
    claim_uid: str
    device: DeviceKey
    constraint: str


class HealthViolations:
    """Counts; one event loop owns it."""

    def __init__(self, count_since_wall: float) -> None:
        self._since = count_since_wall  # what began before was counted by the leader before
        self._standing: set[_Entry] = set()
        self._counts: dict[tuple[str, str], int] = {}

    def take(self, findings: Iterable[tuple[DeviceKey, ReportedFinding]], cluster: Cluster) -> None:
        """Takes all findings there are now, each with the device that it is about."""
        for name in cluster.classes:
            for constraint in CONSTRAINTS:
                self._counts.setdefault((name, constraint), 0)
        standing: set[_Entry] = set()
        for device, finding in findings:
            constraint = CONSTRAINT_OF_RULE.get(finding.rule, HEALTH)
            for held in cluster.holdings(device):
                entry = _Entry(held.claim_uid, device, constraint)
                if not held.admin and entry not in standing:
                    standing.add(entry)
                    if entry not in self._standing:
                        self._enter(entry, held, finding, cluster)
        self._standing = standing

    def _enter(self, entry: _Entry, held: Holding, finding: ReportedFinding, cluster: Cluster) -> None:
        claim = cluster.claims.get(held.claim)
        if claim is None or claim.metadata.uid != held.claim_uid:
            return
        allocation = claim.status.allocation
        allocated = unix_seconds(allocation.allocation_timestamp) if allocation is not None else None
        request = request_of(claim, held.request)
        labels = (request.device_class_name if request is not None else "", entry.constraint)
        counts = max(finding.since_wall, allocated or 0.0) >= self._since
        self._counts[labels] = self._counts.get(labels, 0) + (1 if counts else 0)

    def samples(self) -> list[Sample]:
        """The counter's series."""
        return [
            sample("dra_constraint_violations_total", count, *labels) for labels, count in sorted(self._counts.items())
        ]
