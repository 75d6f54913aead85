"""Which pieces do expressions and texts of several rules share?

Three habits keep rules right when Prometheus scrapes a target twice, or asks several clusters at once: the one side of
a join is aggregated with `max by`, every alert is aggregated to what it is about, and `cluster` stands in every `by`.
"""

from __future__ import annotations

from typing import Final

CLAIM: Final = "cluster, namespace, resourceclaim, claim_uid"
WORKLOAD: Final = "cluster, namespace, workload_kind, workload"
DEVICE: Final = "cluster, node, uuid"
NODE: Final = "cluster, node"
# Nodes that somebody works on: what is away there is away on purpose.
IN_MAINTENANCE: Final = f"max by ({NODE}) (dra_node_maintenance_state == 1)"

# Who wants a claim. A claim that nothing stands behind is its own workload, so that its alerts are grouped, too.
# One per claim, always, and that is the newest: where two controllers take turns, what the one said stands beside what
# the other says for some minutes, and two series on the one side of a join would break it for all claims.
_WHOSE: Final = f"{CLAIM}, deviceclass, workload_kind, workload"
_NEWEST: Final = f"max by ({_WHOSE}) (timestamp"
WORKLOAD_OF_CLAIM: Final = f"""
group by ({_WHOSE}) (topk by ({CLAIM}) (1,
  {_NEWEST} (dra_claim_info{{workload!=""}}))
  or on ({CLAIM})
  label_replace(
    label_replace({_NEWEST} (dra_claim_info{{workload=""}})), "workload", "$1", "resourceclaim", "(.*)"),
    "workload_kind", "ResourceClaim", "", ""
  )
))""".strip()

# Recorded: a claim's devices with the workload behind it; the same by claim, and by device; a claim that waits, with
# cause and workload.
HELD: Final = "claim_device:dra_claim_device_info:workload"
HOLDING: Final = "claim:dra_claim_device_info:workload"
MEMBER: Final = "workload_device:dra_claim_device_info:max"
WAITS: Final = "claim:dra_claim_pending_seconds:workload"
STUCK: Final = "claim:dra_claim_pending_reason:since"  # of causes that page: the Unix time from which on it is so

# --- pieces of texts ---

THE_WORKLOAD: Final = "{{ $labels.workload_kind }} {{ $labels.namespace }}/{{ $labels.workload }}"
THE_GPU: Final = "{{ $labels.uuid }} of node {{ $labels.node }}"
THE_CLUSTER: Final = "{{ with $labels.cluster }} in cluster {{ . }}{{ end }}"


def each(query: str, *labels: str, text: str) -> str:
    """Text for each series that a query finds; `%q` in it stand for these labels of the alert, quoted."""
    values = " ".join(f"$labels.{label}" for label in labels)
    return f"{{{{ range printf `{query}` {values} | query }}}}{text}{{{{ end }}}}"


# An alert about a device is about the device, whoever holds it: a holder that leaves must not make a second ticket.
# So the holder stands in the text and not in the labels.
HOLDERS: Final = each(
    f"max by (namespace, workload_kind, workload) ({HELD}{{cluster=%q,uuid=%q}})",
    "cluster",
    "uuid",
    text=" It is held by {{ .Labels.workload_kind }} {{ .Labels.namespace }}/{{ .Labels.workload }}.",
)
FINDINGS: Final = each(
    "max by (rule) (gpu_health_finding_info{cluster=%q,uuid=%q})",
    "cluster",
    "uuid",
    text=" Finding: {{ .Labels.rule }}.",
)
