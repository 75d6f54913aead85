"""Which families tell about claims and devices cluster-wide? The controller serves them; pure data and two helpers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from claimscope.metrics.spec import Family, Type, Unit
from claimscope.model import Histogram, Sample

CLAIM_LABELS = ("namespace", "resourceclaim", "claim_uid")
WAIT_LABELS = (*CLAIM_LABELS, "pod", "deviceclass")
DEVICE_KEY_LABELS = ("driver", "pool", "device")


def _row(
    name: str, kind: Type, labels: tuple[str, ...], about: str, unit: Unit = Unit.ONE, otel: str | None = None
) -> Family:
    return Family(name=name, help=about, type=kind, unit=unit, labels=labels, otel=otel)


_GAUGE, _COUNTER, _INFO, _HISTOGRAM = Type.GAUGE, Type.COUNTER, Type.INFO, Type.HISTOGRAM
_SECONDS = Unit.SECONDS

_ROWS = (
    # One claim.
    _row(
        "dra_claim_info", _INFO,
        (*CLAIM_LABELS, "deviceclass", "template", "source", "alternative", "workload_kind", "workload", "pod_group",
         "queue"),
        "What a ResourceClaim is: its device class, its source, which alternative of a prioritized list it got, "
        "and the workload, gang and queue behind it.",
    ),
    _row(
        "kube_resourceclaim_status_allocation_state", _GAUGE, (*CLAIM_LABELS, "state"),
        "1 for the state that the claim is in; other states have no series.", otel="dra.claim.state",
    ),
    _row("dra_claim_created_timestamp_seconds", _GAUGE, CLAIM_LABELS, "Unix time at which the claim was created.",
         _SECONDS),
    _row("dra_claim_allocated_timestamp_seconds", _GAUGE, CLAIM_LABELS,
         "Unix time at which the present allocation was made, where it is known.", _SECONDS),
    _row("dra_claim_requested_devices", _GAUGE, CLAIM_LABELS,
         "Devices the claim asks for; absent where it asks for all that match."),
    _row(
        "dra_claim_device_info", _INFO,
        (*CLAIM_LABELS, "request", *DEVICE_KEY_LABELS, "uuid", "node", "share_id", "admin_access"),
        "A device that the claim is allocated.",
    ),
    _row("dra_claim_consumed_capacity", _GAUGE, (*CLAIM_LABELS, *DEVICE_KEY_LABELS, "share_id", "capacity"),
         "Part of a shared device's capacity that the claim takes, in the capacity's own unit."),
    _row("dra_claim_device_health", _GAUGE, (*CLAIM_LABELS, *DEVICE_KEY_LABELS, "health"),
         "1 for the health that the kubelet reports for a device of the claim: healthy or unhealthy. Drivers without a "
         "health service report nothing, and have no series."),
    _row("dra_claim_unreferenced", _GAUGE, CLAIM_LABELS,
         "1 for a pending claim that no pod wants: allocation waits for a pod, so this is no fault."),
    _row("dra_claim_leaked", _GAUGE, CLAIM_LABELS,
         "1 for a claim that holds devices although nothing has reserved it for more than a minute of the controller's "
         "own watching; since when it was so before, no object tells."),
    _row("dra_claim_held_not_running_seconds", _GAUGE, (*CLAIM_LABELS, "doing"),
         "How long the claim has held devices without a running container, and what its pod does instead.", _SECONDS),
    # Claims that wait.
    _row("dra_claim_pending_seconds", _GAUGE, WAIT_LABELS,
         "How long a claim that a pod needs has not been ready; the claim's name is empty while none could be made "
         "from its template.", _SECONDS),
    _row("dra_claim_pending_reason", _GAUGE, (*WAIT_LABELS, "reason"), "1 for the cause for which the claim waits."),
    # Durations and outcomes.
    _row("dra_allocation_duration_seconds", _HISTOGRAM, ("deviceclass", "phase"),
         "Time that a claim's way to a running container took, in disjoint phases. Of an allocation that was given up "
         "only the scheduling counts; that of the next one begins where it ended.", _SECONDS),
    _row("dra_claim_ready_duration_seconds", _HISTOGRAM, ("deviceclass",),
         "Time from when a claim was needed until a container that uses it ran.", _SECONDS),
    _row("dra_claim_lifetime_seconds", _HISTOGRAM, ("deviceclass", "outcome"),
         "Time from a claim's creation to its deletion.", _SECONDS),
    _row("dra_claims_completed_total", _COUNTER, ("namespace", "deviceclass", "outcome"),
         "Allocations that ended, and claims deleted without one, by how far they had come; evicted where all pods "
         "that ran on it were evicted for a taint."),
    _row("dra_claim_evictions_total", _COUNTER, ("namespace", "deviceclass"),
         "Pods evicted because of a NoExecute taint on a device of their claims; a pod counts once for each class that "
         "its claims ask for, since it does not tell which device it was."),
    # Capacity.
    _row("dra_pool_devices", _GAUGE, ("driver", "pool", "deviceclass", "state"),
         "Published devices by what can be done with them: the states exclude each other and add up to the devices of "
         "the class in the pool. States other than allocated and free are left out where they are zero."),
    _row("dra_pool_complete", _GAUGE, ("driver", "pool"),
         "1 where every slice of the pool's newest generation is published; at 0 the pool is being rewritten, its "
         "devices are those published before, and the scheduler passes it over."),
    _row("dra_pool_published", _GAUGE, ("driver", "pool"),
         "0 while all slices of the pool are gone, as for a moment after a kubelet's start: its devices are those "
         "published before. After ten minutes, or with its node, the pool is forgotten."),
    _row("dra_pool_shared_capacity", _GAUGE, ("driver", "pool", "counter_set", "counter"),
         "What a set of shared counters holds, in the counter's own unit."),
    _row("dra_pool_shared_capacity_consumed", _GAUGE, ("driver", "pool", "counter_set", "counter"),
         "What allocated devices take from a set of shared counters."),
    _row("dra_device_shared_capacity", _GAUGE, (*DEVICE_KEY_LABELS, "capacity"),
         "Capacity of a device that several claims may share, in the capacity's own unit."),
    _row("dra_device_shared_capacity_consumed", _GAUGE, (*DEVICE_KEY_LABELS, "capacity"),
         "Capacity of a shared device that claims take."),
    _row("dra_class_largest_claim_devices", _GAUGE, ("deviceclass",),
         "Devices of the largest claim of the class that would still fit on one node."),
    # Taints.
    _row("dra_device_taint_info", _INFO, (*DEVICE_KEY_LABELS, "node", "uuid", "key", "value", "effect", "rule"),
         "A taint on a device; `rule` is the DeviceTaintRule, empty where the driver's slice carries it."),
    _row("dra_taint_rule_devices", _GAUGE, ("rule", "key", "effect"),
         "Published devices that a DeviceTaintRule selects."),
    _row("dra_constraint_violations_total", _COUNTER, ("deviceclass", "constraint"),
         "Times that a device allocated to a claim came to go against a constraint: a taint that stood before, a "
         "selector that it no longer matches (a class whose selectors are narrowed counts each claim on it), or a "
         "finding about its temperature, power, ecc, nvlink, pcie, clocks or health."),
    _row("dra_device_taints_applied_total", _COUNTER, ("key", "effect"),
         "Taints that claimscope put on devices by a DeviceTaintRule."),
    _row("dra_taint_fences", _GAUGE, ("severity", "effect"), "DeviceTaintRules of claimscope that stand."),
    _row("dra_node_taints", _GAUGE, ("key", "effect"), "Taints of claimscope on Nodes, for GPUs that no rule reaches."),
    _row("dra_gpu_nodes", _GAUGE, ("agent",),
         "Nodes with GPUs or an agent: whose agent is heard, silent (what it found stands), or was never there. Nodes "
         "under maintenance are left out."),
    _row("dra_taint_held", _GAUGE, ("reason",),
         "Taints that are wanted, and held back or weakened for a budget or another reason."),
    _row("dra_taint_budget_used", _GAUGE, ("scope",),
         "What counts against a budget of fencing: GPUs that anything keeps from work, of the fleet, of group/NAME and "
         "of node/NAME; GPUs newly kept from work (rate); DeviceTaintRules of any effect (cap)."),
    _row("dra_taint_budget_limit", _GAUGE, ("scope",), "What a budget of fencing allows, in the same scopes."),
    _row("dra_taint_rule_ineffective", _GAUGE, ("rule",),
         "1 for a DeviceTaintRule of claimscope of which the cluster has said nothing in its status for a minute: the "
         "feature gate is off, or its controller does not run."),
    # Maintenance.
    _row("dra_node_maintenance_state", _GAUGE, ("node", "state"),
         "1 for how far the maintenance is that somebody asked for on the node: waiting_for_budget, announced, "
         "waiting_for_taints, waiting_for_claims, waiting_for_processes, waiting_for_agent, ready, verifying, "
         "verify_failed, lifting; no_gpus where it has none."),
    _row("dra_node_maintenance_deadline_missed", _GAUGE, ("node",),
         "1 where the deadline of a maintenance has passed and the node is not ready for it."),
    _row("dra_node_maintenance_holders", _GAUGE, ("node",),
         "Reserved claims, and pods with GPUs of a device plugin, that a maintenance of the node waits for."),
    _row("dra_node_maintenance_start_timestamp_seconds", _GAUGE, ("node",),
         "Unix time at which the maintenance of the node began.", _SECONDS),
    # Quota.
    _row("dra_quota_devices", _GAUGE, ("namespace", "resourcequota", "deviceclass", "type"),
         "Devices of a class that a quota allows (hard) and counts (used)."),
    _row("dra_quota_claims", _GAUGE, ("namespace", "resourcequota", "type"),
         "ResourceClaims that a quota allows (hard) and counts (used)."),
    # Migration from device plugin to DRA.
    _row("dra_migration_pods", _GAUGE, ("namespace", "kind"),
         "Active pods that use accelerators, by how they ask: device_plugin, extended_resource (by DRA), claim."),
    _row("dra_migration_devices", _GAUGE, ("namespace", "kind"),
         "Accelerators that active pods hold or ask for, by how they ask."),
    _row("dra_node_mode_info", _INFO, ("node", "mode"),
         "How a node hands out accelerators: device_plugin, dra, both, none."),
    _row("dra_node_devices_advertised_twice", _GAUGE, ("node", "resource"),
         "Devices that a node offers through a device plugin and through DRA at once."),
    _row("dra_node_drift_info", _INFO, ("node", "model", "fact", "value", "majority"),
         "A fact in which a node's devices differ from most devices of the same model."),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.name: row for row in _ROWS})


@lru_cache(maxsize=4096)
def _pair(name: str, value: str) -> tuple[str, str]:
    """One object for what neighbouring samples share: driver, class, pool and state of 10,000 pools."""
    return name, value


def _labels(family: Family, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple([_pair(name, value) for name, value in zip(family.labels, values, strict=True)])


def sample(name: str, value: float, *label_values: str, start_ns: int | None = None) -> Sample:
    """A sample of a cluster family; label values in the family's order, none left out."""
    return Sample(family=name, labels=_labels(FAMILIES[name], label_values), value=value, start_ns=start_ns)


def histogram(
    name: str,
    bounds: tuple[float, ...],
    counts: tuple[int, ...],
    total: float,
    *label_values: str,
    start_ns: int | None = None,
) -> Histogram:
    """One series of a histogram family; `counts` are per bucket, with the one above all bounds at the end."""
    return Histogram(
        family=name, labels=_labels(FAMILIES[name], label_values), bounds=bounds, counts=counts, sum=total,
        start_ns=start_ns,
    )
