"""Which alerts are about GPUs? Tickets for the fleet, one per GPU; only what many share is a page.

What the driver counts (XIDs, ECC errors) only informs: the agent's verdict, which weighs it, is the ticket.
"""

from __future__ import annotations

from typing import Final

from alerts.model import Alert, Group
from alerts.recording import MISSING, SYSTEMIC
from alerts.words import DEVICE, FINDINGS, HOLDERS, IN_MAINTENANCE, NODE, THE_CLUSTER, THE_GPU, each
from claimscope.health.model import Severity
from claimscope.health.rules import RULES

# Of the rules that know outer causes those that say "no new work": the node is about to shut its GPUs down.
_GRAVE: Final = "|".join(rule.key for rule in RULES if rule.correlated and rule.severity is not Severity.DEGRADED)
# NVIDIA's catalogue: 48 and 94, 95 uncorrectable memory errors; 62, 119, 120 microcontrollers; 64 row remapping; 74
# NVLink; 79 off the bus.
_XIDS: Final = "48|62|64|74|79|94|95|119|120"
_RAW: Final = "This informs; the finding that follows from it, if any, is its own alert."


def _verdict(states: str) -> str:
    """GPUs in one of these states. What stands against their MIG devices stands against the GPU: one ticket."""
    bad = f'gpu_health{{state=~"{states}"'
    return f"""
max by ({DEVICE}) (
  {bad}, uuid!~"MIG-.*"}} == 1
  or
  label_replace(
    max by ({NODE}, parent_uuid) (
      max by ({DEVICE}) ({bad}, uuid=~"MIG-.*"}} == 1)
      * on ({DEVICE}) group_left (parent_uuid)
      topk by ({DEVICE}) (1, max by ({DEVICE}, parent_uuid) (gpu_info{{parent_uuid!=""}}))
    ),
    "uuid", "$1", "parent_uuid", "(.*)"
  )
)"""


VERDICTS: Final = Group(
    name="dra-devices",
    rules=(
        Alert(
            name="DRADeviceFailed",
            expr=_verdict("unhealthy|lost"),
            hold="1m",
            severity="warning",
            owner="fleet",
            summary="A GPU is unhealthy or lost.",
            description=f"{THE_GPU} is unhealthy or lost.{FINDINGS}{HOLDERS}",
        ),
        Alert(
            name="DRADeviceDegraded",
            expr=_verdict("degraded"),
            hold="5m",
            severity="warning",
            owner="fleet",
            summary="A GPU is degraded.",
            description=f"{THE_GPU} is degraded.{FINDINGS}{HOLDERS}",
        ),
        # Also where no finding says so: the node was booted without it.
        Alert(
            name="DRADeviceMissing",
            expr=f"""
max by ({DEVICE}) ({MISSING})
unless on ({DEVICE})
gpu_health_finding_info{{rule=~"gpu_missing|gpu_lost"}}
unless on ({NODE})
(max by ({NODE}) (claimscope_agent_nvml_up) == 0)
unless on ({NODE})
{IN_MAINTENANCE}""",
            hold="10m",
            severity="warning",
            not_in_demo="the simulated driver lists a GPU as long as the node has it; one that is lost has a finding",
            owner="fleet",
            summary="A GPU that a node had is gone.",
            description=f"{THE_GPU} was there, and the agent does not see it any more.",
        ),
        Alert(
            name="DRASystemicFinding",
            # Many GPUs of one node alone are held back as systemic_node: a ticket, DRASystemicFindingOnNode.
            expr='max by (cluster) (dra_taint_held{reason="systemic"}) > 0',
            not_in_demo="three nodes must have the same finding at once, and the demo has no more",
            hold="1m",
            severity="critical",
            owner="fleet",
            summary="One finding stands on so many nodes that fencing waits for a human.",
            description="{{ $value }} taints" + THE_CLUSTER + " are held back: one cause outside of the GPUs is likely."
            " Findings:"
            + each(
                "topk(3, sum by (rule) (node_rule:gpu_health_finding_info:count{cluster=%q}))",
                "cluster",
                text=" {{ .Labels.rule }} on {{ .Value }} GPUs.",
            ),
        ),
        Alert(
            name="DRASystemicFindingOnNode",
            expr=SYSTEMIC,
            hold="2m",
            severity="warning",
            owner="fleet",
            summary="Many GPUs of a node suffer from what is likely one cause outside of them.",
            description="Rule {{ $labels.rule }} stands against {{ $value }} GPUs of node {{ $labels.node }}. Look"
            ' first at{{ if match "thermal_.*" $labels.rule }} its cooling{{ else if match "power_.*" $labels.rule }}'
            ' its power supply{{ else if match "nvlink.*" $labels.rule }} its fabric manager and NVSwitches{{ else if'
            ' match "pcie_.*" $labels.rule }} the PCIe switch or riser that they share{{ else }} clock limits and power'
            " profiles that somebody set{{ end }}.",
        ),
        Alert(
            name="DRASystemicFindingGrave",
            expr=f"""
count by (cluster, rule) ({SYSTEMIC}{{rule=~"{_GRAVE}"}})
or
count by (cluster, rule) ({SYSTEMIC}) >= [[nodes]]""",
            thresholds={"nodes": 3},
            hold="2m",
            severity="critical",
            owner="fleet",
            summary="One cause outside of the GPUs is about to stop whole nodes, or is on several of them.",
            description="Rule {{ $labels.rule }} stands against half of the GPUs of {{ $value }} nodes"
            + THE_CLUSTER
            + ":"
            + each(
                f"topk(5, {SYSTEMIC}{{cluster=%q,rule=%q}})",
                "cluster",
                "rule",
                text=" {{ .Labels.node }} ({{ .Value }} GPUs).",
            ),
        ),
    ),
)

SIGNS: Final = Group(
    name="dra-device-signs",
    rules=(
        Alert(
            name="DRADeviceXid",
            expr=f'time() - max by ({DEVICE}, xid) (gpu_xid_last_timestamp_seconds{{xid=~"{_XIDS}"}}) < [[seconds]]',
            thresholds={"seconds": 600},
            keep_firing="",  # the time is in the expression
            severity="info",
            owner="fleet",
            summary="The driver reported a grave XID error.",
            description=f"{THE_GPU} had XID {{{{ $labels.xid }}}} {{{{ humanizeDuration $value }}}} ago. {_RAW}",
        ),
        Alert(
            name="DRADeviceEccUncorrected",
            expr=f'max by ({DEVICE}) (increase(gpu_ecc_device_errors_total{{type="uncorrected"}}[15m]) > 0)',
            keep_firing="30m",
            severity="info",
            owner="fleet",
            summary="A GPU had uncorrectable ECC errors.",
            description=f"{THE_GPU} had uncorrectable memory errors. {_RAW}",
        ),
        Alert(
            name="DRADeviceRowRemapFailure",
            expr=f"max by ({DEVICE}) (gpu_row_remap_failure == 1)",
            severity="warning",
            owner="fleet",
            summary="A GPU has no spare memory rows left to remap to.",
            description=f"{THE_GPU} could not remap a broken memory row: it needs repair.{HOLDERS}",
        ),
        Alert(
            name="DRADeviceRowRemapPending",
            expr=f"max by ({DEVICE}) (gpu_row_remap_pending == 1)",
            severity="info",
            owner="fleet",
            summary="A GPU waits for a reset to remap a broken memory row.",
            description=f"{THE_GPU} remaps a broken memory row when it is next reset.",
        ),
        Alert(
            name="DRADeviceNVLinkDown",
            # Links that were up, or a finding that says so: one that was never connected has nothing to lose.
            expr=f"""
count by ({DEVICE}) (
  max by ({DEVICE}, link) (gpu_nvlink_up) == 0
  and on ({DEVICE}, link)
  max by ({DEVICE}, link) (max_over_time(gpu_nvlink_up[1h])) == 1
  or
  max by ({DEVICE}, link) (gpu_nvlink_up) == 0
  and on ({DEVICE})
  gpu_health_finding_info{{rule="nvlink_down"}}
)""",
            hold="2m",
            severity="warning",
            owner="fleet",
            summary="NVLinks of a GPU are down.",
            description=f"{{{{ $value }}}} NVLinks are down: {THE_GPU}.{HOLDERS}",
        ),
        Alert(
            name="DRADeviceNVLinkErrors",
            expr=f"max by ({DEVICE}, type) (rate(gpu_nvlink_errors_total[5m]) > [[per_second]])",
            thresholds={"per_second": 0.1},
            hold="10m",
            severity="warning",
            owner="fleet",
            summary="NVLinks of a GPU have errors.",
            description=f"{THE_GPU} has {{{{ humanize $value }}}} NVLink errors of type {{{{ $labels.type }}}} a"
            f" second.{HOLDERS}",
        ),
        Alert(
            name="DRADeviceThermalThrottling",
            expr=f"""
max by ({DEVICE}) (rate(gpu_throttle_seconds_total{{reason=~"hw_thermal|sw_thermal"}}[5m]) > [[ratio]])""",
            thresholds={"ratio": 0.1},
            hold="10m",
            severity="warning",
            owner="fleet",
            summary="A GPU slows down because it is too hot.",
            description=f"{THE_GPU} is slowed down by heat {{{{ humanizePercentage $value }}}} of the time.{HOLDERS}",
        ),
        Alert(
            name="DRADevicePowerBrake",
            expr=f'max by ({DEVICE}) (rate(gpu_throttle_seconds_total{{reason="hw_power_brake"}}[5m]) > [[ratio]])',
            thresholds={"ratio": 0.05},
            hold="5m",
            severity="warning",
            owner="fleet",
            summary="The power supply slows a GPU down.",
            description=f"{THE_GPU} is slowed down by the power brake {{{{ humanizePercentage $value }}}} of the"
            f" time.{HOLDERS}",
        ),
        # A roll-out is one ticket, and none while it takes a day. The MIG mode is whatever the node is meant for.
        Alert(
            name="DRANodeConfigDrift",
            expr="""
count by (cluster, model, fact, value) (
  max by (cluster, node, model, fact, value) (dra_node_drift_info{fact!="mig_mode"})
)""",
            hold="1d",
            severity="warning",
            not_in_demo="fires after a day, in the demo's time after 48 minutes",
            owner="fleet",
            summary="Nodes' GPUs are set up otherwise than most of the same model.",
            description="{{ $labels.fact }} of {{ $labels.model }} is {{ $labels.value }} on {{ $value }} nodes"
            + THE_CLUSTER
            + "."
            + each(
                "max by (majority) (dra_node_drift_info{cluster=%q,model=%q,fact=%q,value=%q})",
                "cluster",
                "model",
                "fact",
                "value",
                text=" Most have {{ .Labels.majority }}.",
            ),
        ),
    ),
)

GROUPS: Final = (VERDICTS, SIGNS)
