"""Which alerts are about claims? Those for their owners, one per workload, and those for whoever runs the cluster.

The one alert on pending claims is a warning to the owner. It pages only where there is capacity and still nothing
happens.
"""

from __future__ import annotations

from typing import Final

from alerts.model import Alert, Group
from alerts.recording import APART, LOAD, MEDIAN, STALLED, UNHEALTHY
from alerts.words import (
    CLAIM,
    HOLDING,
    MEMBER,
    STUCK,
    THE_CLUSTER,
    THE_WORKLOAD,
    WAITS,
    WORKLOAD,
    WORKLOAD_OF_CLAIM,
    each,
)

_WORKLOAD_LABELS: Final = ("cluster", "namespace", "workload_kind", "workload")
_OF_WORKLOAD: Final = "cluster=%q,namespace=%q,workload_kind=%q,workload=%q"


def _stuck(reason: str) -> str:
    """How long claims have waited for a reason, in seconds; not how long they have waited in all."""
    return f'time() - {STUCK}{{reason=~"{reason}"}}'


def _waiting(reason: str, *labels: str) -> str:
    """The three claims that have waited longest for a reason, in words."""
    matchers = ",".join([*(f"{label}=%q" for label in labels), f'reason=~"{reason}"'])
    return each(
        f"topk(3, time() - {STUCK}{{{matchers}}})",
        *labels,
        text=" {{ .Labels.namespace }}/{{ or .Labels.resourceclaim .Labels.pod }} ({{ humanizeDuration .Value }}).",
    )


OWNERS: Final = Group(
    name="dra-claims",
    rules=(
        Alert(
            name="DRAClaimPendingTooLong",
            # The wait began with the pod: what a queue has just let go may have been kept back for hours on purpose.
            expr=f"""
max by ({WORKLOAD}) (
  {WAITS}
  unless on ({CLAIM}, pod, deviceclass)
  max_over_time(dra_claim_pending_reason{{reason="gated"}}[[[seconds]]s])
) > [[seconds]]""",
            thresholds={"seconds": 300},
            severity="warning",
            owner="workload",
            summary="Pods wait for ResourceClaims.",
            description=f"Claims of {{{{ if $labels.workload }}}}{THE_WORKLOAD}{{{{ else }}}}"
            "pods in namespace {{ $labels.namespace }}{{ end }} have waited for {{ humanizeDuration $value }}. Longest:"
            + each(
                f"topk(3, {WAITS}{{{_OF_WORKLOAD}}})",
                *_WORKLOAD_LABELS,
                text=" {{ with .Labels.resourceclaim }}claim {{ . }}{{ else }}a claim of pod {{ .Labels.pod }}{{ end }}"
                "{{ with .Labels.deviceclass }} of class {{ . }}{{ end }}: {{ .Labels.reason }}"
                " ({{ humanizeDuration .Value }}).",
            ),
        ),
        Alert(
            name="DRAClaimOnUnhealthyDevice",
            expr=f"""
count by ({WORKLOAD}) (
  max by ({WORKLOAD}, uuid) ({MEMBER})
  and on (cluster, uuid)
  {UNHEALTHY}
)""",
            hold="2m",
            severity="warning",
            owner="workload",
            summary="A workload holds devices that are unhealthy or lost.",
            description=f"{THE_WORKLOAD} holds {{{{ $value }}}} such devices.",
        ),
        Alert(
            name="DRAClaimStraggler",
            expr=f"""
count by ({WORKLOAD}) (max by ({WORKLOAD}, node, uuid) ({APART}))
and on ({WORKLOAD})
(
  max by ({WORKLOAD}) ({LOAD}{{quantity="busy"}}) > [[working]]
  or
  max by ({WORKLOAD}) ({LOAD}{{resourceclaim!=""}})
)""",
            thresholds={"working": 0.3},
            hold="15m",
            severity="warning",
            owner="workload",
            summary="A few GPUs stand apart from the others of their workload.",
            description=f"{{{{ $value }}}} GPUs of {THE_WORKLOAD} do not keep step with the others:"
            + each(
                f"topk(5, {APART}{{{_OF_WORKLOAD}}})",
                *_WORKLOAD_LABELS,
                text=" {{ .Labels.uuid }} of node {{ .Labels.node }} ({{ .Labels.quantity }}"
                " {{ humanizePercentage .Value }}).",
            )
            + " Median:"
            + each(
                f"sort_desc({MEDIAN}{{{_OF_WORKLOAD}}})",
                *_WORKLOAD_LABELS,
                text=" {{ .Labels.quantity }} {{ humanizePercentage .Value }}.",
            ),
        ),
        Alert(
            name="DRAClaimMemoryNearlyFull",
            expr=f"""
max by ({WORKLOAD}) (
  (
    dra_claim_gpu_memory_used_bytes
    / on (cluster, uuid) group_left ()
    max by (cluster, uuid) (gpu_memory_used_bytes + gpu_memory_free_bytes)
    > [[ratio]]
  )
  * on ({CLAIM}) group_left (workload_kind, workload)
  {HOLDING}
)""",
            thresholds={"ratio": 0.95},
            hold="15m",
            severity="warning",
            owner="workload",
            summary="A workload has nearly filled the memory of a device.",
            description=f"{THE_WORKLOAD} uses {{{{ humanizePercentage $value }}}} of the memory of one of its devices.",
        ),
        Alert(
            name="DRAClaimHeldNotRunning",
            expr=f"""
max by ({WORKLOAD}) (
  (dra_claim_held_not_running_seconds{{doing!="finished"}} > [[seconds]])
  * on ({CLAIM}) group_left (workload_kind, workload)
  {WORKLOAD_OF_CLAIM}
)""",
            thresholds={"seconds": 1800},
            severity="warning",
            owner="workload",
            summary="A workload holds devices and runs no container on them.",
            description=f"{THE_WORKLOAD} has held devices for {{{{ humanizeDuration $value }}}} without a running"
            " container.",
        ),
        Alert(
            name="DRAClaimIdle",
            expr=f"""
count by ({WORKLOAD}) (
  (
    claim:dra_claim_gpu_busy_per_allocated:ratio_rate5m < [[ratio]]
    unless on ({CLAIM})
    (time() - max by ({CLAIM}) (dra_claim_created_timestamp_seconds) <= [[age_seconds]])
  )
  * on ({CLAIM}) group_left (workload_kind, workload)
  {HOLDING}
)""",
            thresholds={"ratio": 0.05, "age_seconds": 7200},
            hold="1h",
            severity="info",
            owner="workload",
            summary="A workload holds devices that do nothing.",
            description=f"{THE_WORKLOAD} has {{{{ $value }}}} claims whose devices are idle.",
        ),
    ),
)

CLUSTER: Final = Group(
    name="dra-claims-stuck",
    rules=(
        # By these reasons the controller itself has found free devices that fit, or the scheduler said that it did not
        # get to the end. The controller must be able to look: what it cannot know (reason unknown) is no reason to wake
        # anybody.
        Alert(
            name="DRASchedulingStalled",
            expr=f"""
count by (cluster, deviceclass) ({_stuck(STALLED)} >= [[seconds]])
unless on (cluster)
max by (cluster) (claimscope_controller_selector_engine_up) == 0""",
            thresholds={"seconds": 600},
            severity="critical",
            owner="platform",
            summary="Claims wait although devices that match are free.",
            description="{{ $value }} claims of class {{ $labels.deviceclass }}"
            + THE_CLUSTER
            + " wait although devices are free:"
            + _waiting(STALLED, "cluster", "deviceclass"),
        ),
        Alert(
            name="DRADriverAbsent",
            expr=f"count by (cluster, deviceclass) ({_stuck('no_driver')} >= [[seconds]])",
            thresholds={"seconds": 300},
            severity="critical",
            owner="platform",
            summary="Claims wait for a driver that publishes no devices.",
            description="No driver publishes devices for {{ $value }} claims of class {{ $labels.deviceclass }}"
            + THE_CLUSTER
            + ":"
            + _waiting("no_driver", "cluster", "deviceclass"),
        ),
        # One page for a driver that is broken everywhere: one hand mends it, on however many nodes a job has devices.
        # With --claim-series=off nobody says which driver it is.
        Alert(
            name="DRAPrepareFailing",
            expr=f"""
count by (cluster, driver) (
  max by ({CLAIM}, driver) (dra_claim_device_info)
  and on ({CLAIM})
  ({_stuck("prepare_failed")} >= [[seconds]])
)
or
count by (cluster) ({_stuck("prepare_failed")} >= [[seconds]] unless on ({CLAIM}) dra_claim_device_info)""",
            thresholds={"seconds": 300},
            severity="critical",
            owner="platform",
            summary="Nodes cannot prepare allocated devices.",
            description="Devices{{ with $labels.driver }} of driver {{ . }}{{ end }}"
            + THE_CLUSTER
            + " cannot be prepared for {{ $value }} claims. Nodes:"
            + each(
                f"topk(5, count by (node) (max by ({CLAIM}, node) (dra_claim_device_info{{cluster=%q,driver=%q}})"
                f' and on ({CLAIM}) {STUCK}{{reason="prepare_failed"}}))',
                "cluster",
                "driver",
                text=" {{ .Labels.node }} ({{ .Value }}).",
            )
            + " Longest:"
            + _waiting("prepare_failed", "cluster"),
        ),
        Alert(
            name="DRAClaimLeaked",
            expr="count by (cluster, namespace) (max by (cluster, namespace, resourceclaim) (dra_claim_leaked) == 1)",
            hold="15m",
            severity="warning",
            owner="platform",
            summary="Claims hold devices and nobody uses them.",
            description="{{ $value }} claims of namespace {{ $labels.namespace }} hold devices that nothing has"
            " reserved.",
        ),
    ),
)

GROUPS: Final = (OWNERS, CLUSTER)
