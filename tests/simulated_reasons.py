"""The cause that the simulated cluster sets up for each of its pods that wait."""

from __future__ import annotations

from claimscope.claims.model import PendingReason

REASONS = {
    "limited/over-quota": PendingReason.QUOTA,
    "team-a/admission-denied": PendingReason.ADMISSION,
    "team-a/allocated-elsewhere": PendingReason.ALLOCATED_ELSEWHERE,
    "team-a/capacity-exhausted": PendingReason.CAPACITY_EXHAUSTED,
    "team-a/claim-deleting": PendingReason.CLAIM_DELETING,
    "team-a/claim-missing": PendingReason.CLAIM_MISSING,
    "team-a/claim-not-created": PendingReason.CLAIM_NOT_CREATED,
    "team-a/class-missing": PendingReason.CLASS_MISSING,
    "team-a/constraint": PendingReason.CONSTRAINT,
    "team-a/counters-exhausted": PendingReason.COUNTERS_EXHAUSTED,
    "team-a/devices-in-use": PendingReason.DEVICES_IN_USE,
    "team-a/fabric": PendingReason.BINDING_CONDITIONS,
    "team-a/fragmented": PendingReason.FRAGMENTED,
    "team-a/gated": PendingReason.GATED,
    "team-a/no-driver": PendingReason.NO_DRIVER,
    "team-a/no-matching-device": PendingReason.NO_MATCHING_DEVICE,
    "team-a/other-scheduling": PendingReason.OTHER_SCHEDULING,
    "team-a/pool-incomplete": PendingReason.POOL_INCOMPLETE,
    "team-a/prepare-failed": PendingReason.PREPARE_FAILED,
    "team-a/scheduler-timeout": PendingReason.SCHEDULER_TIMEOUT,
    "team-a/selector-error": PendingReason.SELECTOR_ERROR,
    "team-a/tainted": PendingReason.TAINTED,
    "team-a/template-missing": PendingReason.TEMPLATE_MISSING,
    "team-a/too-many-devices": PendingReason.TOO_MANY_DEVICES,
    "team-a/wrong-owner": PendingReason.WRONG_OWNER,
}
