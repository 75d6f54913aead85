"""Which alerts are about claimscope itself?"""

from __future__ import annotations

from typing import Final

from alerts.model import Alert, Group
from alerts.recording import AGENTS as AGENTS_COUNTED
from alerts.recording import CONTROLLERS, LOCAL_WRITERS
from alerts.words import IN_MAINTENANCE, NODE, THE_CLUSTER
from claimscope.kube.kinds import watched_kinds

_UNHEARD: Final = 'sum by (cluster) (max by (cluster, agent) (dra_gpu_nodes{agent=~"silent|absent"}))'
# All the time, and already then: a controller that has just begun has no past.
_UNHEARD_FOR_LONG: Final = """\
  sum by (cluster) (max by (cluster, agent) (min_over_time(dra_gpu_nodes{agent=~"silent|absent"}[15m]))) > 0
  and on (cluster)
  sum by (cluster) (max by (cluster, agent) (dra_gpu_nodes{agent=~"silent|absent"} offset 15m)) > 0"""
_REQUIRED: Final = "|".join(kind.name for kind in watched_kinds("") if kind.required)
_AWAY: Final = f"time() - max by ({NODE}) (claimscope_controller_agent_lease_renew_timestamp_seconds)"
_AGENT: Final = "The agent of node {{ $labels.node }}"
# As the chart's monitors call it; a PodMonitor of somebody else's is called NAMESPACE/claimscope-agent.
_AGENT_JOB: Final = 'job=~"(.*/)?claimscope-agent"'
_SERVER: Final = f"{NODE}, instance"  # of an agent or a controller; Prometheus may know no node of the latter
_THE_SERVER: Final = "{{ $labels.instance }}{{ with $labels.node }} on node {{ . }}{{ end }}" + THE_CLUSTER
_PLAIN: Final = "the demo serves plain HTTP, without a web configuration file"

AGENTS: Final = Group(
    name="dra-agents",
    rules=(
        Alert(
            name="DRAWatchdog",
            expr="vector(1)",
            keep_firing="",
            severity="none",
            owner="platform",
            summary="This alert always fires: if it stops, alerts do not arrive.",
            description="Route it to a service that raises an alarm when it is not heard of.",
        ),
        Alert(
            name="DRANodesBlind",
            # The controller leaves out nodes that were deleted, and nodes in maintenance. Of fewer than twenty nodes
            # one is more than a twentieth, and one that boots is no outage: it counts after a quarter of an hour.
            expr=f"""
{_UNHEARD} / on (cluster) sum by (cluster) (max by (cluster, agent) (dra_gpu_nodes)) > [[ratio]]
and on (cluster)
(
  {_UNHEARD} >= [[nodes]]
  or
{_UNHEARD_FOR_LONG}
)""",
            thresholds={"nodes": 2, "ratio": 0.05},
            hold="5m",
            severity="critical",
            owner="platform",
            summary="Too many nodes have no agent that is heard.",
            description="{{ humanizePercentage $value }} of the GPU nodes" + THE_CLUSTER + " have no agent that is"
            " heard: nobody sees their GPUs fail.",
            not_in_demo="a node must be silent for twenty minutes, in the demo's time longer than its agent is away",
        ),
        Alert(
            name="DRAAgentDown",
            expr=f"max by ({NODE}) (up{{{_AGENT_JOB}}}) == 0\nunless on ({NODE})\n{IN_MAINTENANCE}",
            keep_firing="",  # it is Prometheus' own word
            hold="20m",
            severity="warning",
            owner="platform",
            summary="An agent does not answer Prometheus.",
            description=f"{_AGENT} has not answered for 20 minutes.",
        ),
        Alert(
            name="DRAAgentSilent",
            # dra_node_mode_info: a node that is still there, and has GPUs.
            expr=f"""
{_AWAY} > [[seconds]]
and on ({NODE})
dra_node_mode_info
unless on ({NODE})
{IN_MAINTENANCE}""",
            thresholds={"seconds": 1200},
            severity="warning",
            owner="platform",
            not_in_demo="agents are heard of once a minute, and none is away in the demo for long enough to tell",
            summary="An agent has stopped its heartbeat.",
            description=f"{_AGENT} was last heard by the controller {{{{ humanizeDuration $value }}}} ago.",
        ),
        Alert(
            name="DRANodesWithoutAgent",
            expr='max by (cluster) (dra_gpu_nodes{agent="absent"}) > 0',
            hold="30m",
            severity="warning",
            not_in_demo="every simulated node has an agent",
            owner="platform",
            summary="Nodes with GPUs have never had an agent.",
            description="{{ $value }} nodes" + THE_CLUSTER + " publish GPUs, and no agent was ever heard from them.",
        ),
        Alert(
            name="DRASamplerDown",
            expr=f"max by ({NODE}) (claimscope_agent_sampler_up) == 0",
            hold="5m",
            severity="warning",
            owner="platform",
            summary="An agent's sampler does not run.",
            description=f"{_AGENT} has no fresh readings.",
        ),
        Alert(
            name="DRANvmlDown",
            expr=f"""
max by ({NODE}) (claimscope_agent_nvml_up) == 0
unless on ({NODE})
max by ({NODE}) (claimscope_agent_nvml_released) == 1""",
            hold="5m",
            severity="warning",
            owner="platform",
            summary="The driver's library does not answer an agent.",
            description=f"{_AGENT} cannot use NVML: is the driver loaded?",
        ),
        Alert(
            name="DRAAttributionStale",
            expr=f"""
time() - max by ({NODE}, source) (claimscope_agent_attribution_last_success_timestamp_seconds) > [[seconds]]
unless on ({NODE})
{IN_MAINTENANCE}""",
            thresholds={"seconds": 600},
            hold="10m",
            severity="warning",
            not_in_demo="the simulated kubelet is part of the agent and always answers",
            owner="platform",
            summary="An agent no longer knows who holds the GPUs.",
            description=f"{_AGENT} last heard from {{{{ $labels.source }}}} {{{{ humanizeDuration $value }}}} ago.",
        ),
        Alert(
            name="DRAAttributionUnresolved",
            expr=f"max by ({NODE}, reason, driver) (claimscope_agent_attribution_unresolved_devices) > 0",
            hold="15m",
            severity="warning",
            not_in_demo="the simulated kubelet names no device that its node does not have",
            owner="platform",
            summary="Devices that pods hold match no GPU.",
            description=f"{_AGENT} cannot match {{{{ $value }}}} devices of driver {{{{ $labels.driver }}}} to a GPU:"
            " {{ $labels.reason }}.",
        ),
        Alert(
            name="DRAAgentSamplesLate",
            expr=f"""
max by ({NODE}) (
  rate(claimscope_agent_sampler_late_ticks_total[5m])
  / (rate(claimscope_agent_sampler_ticks_total[5m]) + rate(claimscope_agent_sampler_late_ticks_total[5m]))
) > [[ratio]]""",
            thresholds={"ratio": 0.05},
            hold="15m",
            severity="info",
            owner="platform",
            summary="An agent misses samples.",
            description=f"{_AGENT} takes {{{{ humanizePercentage $value }}}} of its samples too late.",
        ),
        Alert(
            name="DRAJournalStale",
            expr=f"time() - max by ({NODE}) (claimscope_agent_journal_last_success_timestamp_seconds) > [[seconds]]",
            thresholds={"seconds": 900},
            severity="warning",
            owner="platform",
            not_in_demo="needs a disk that takes no writes",
            summary="An agent cannot write its journal.",
            description=f"{_AGENT} wrote its accounts {{{{ humanizeDuration $value }}}} ago; a restart now would lose"
            " what came since.",
        ),
        Alert(
            name="DRALabelsOverwritten",
            expr='count by (cluster) (gpu_allocation_info{exported_namespace!=""}) > 0',
            hold="15m",
            severity="warning",
            owner="platform",
            not_in_demo="the demo's Prometheus keeps the labels",
            summary="Prometheus overwrites the namespace and pod that agents tell.",
            description="The scrape configuration needs `honor_labels: true`; without it claims stand under the"
            " agent's own namespace.",
        ),
        # Without it one agent that answers hides all others: the alerts above are by node.
        Alert(
            name="DRANodeLabelMissing",
            expr='count by (cluster) (claimscope_agent_build_info{node=""}) > 0',
            hold="15m",
            severity="warning",
            owner="platform",
            not_in_demo="the demo's Prometheus knows the node of each agent",
            summary="Prometheus does not say which node an agent is on.",
            description="{{ $value }} agents" + THE_CLUSTER + " are scraped without the label `node`: one that answers"
            " hides those that do not.",
        ),
        Alert(
            name="DRAOtlpPointsLost",
            expr="""
max by (cluster, node, result) (
  rate(claimscope_agent_otlp_points_total{result!="accepted"}[15m])
  or
  rate(claimscope_controller_otlp_points_total{result!="accepted"}[15m])
) > 0""",
            hold="15m",
            severity="warning",
            owner="platform",
            not_in_demo="the demo pushes to no Collector",
            summary="Points pushed to the OpenTelemetry Collector get lost.",
            description="{{ humanize $value }} points a second do not arrive: {{ $labels.result }}.",
        ),
        Alert(
            name="DRAWebCertificateExpiring",
            # Below zero it has expired, and goes on being told.
            expr=f"""
min by ({_SERVER}) (
  claimscope_agent_web_certificate_expiry_timestamp_seconds
  or
  claimscope_controller_web_certificate_expiry_timestamp_seconds
) - time() < [[seconds]]""",
            thresholds={"seconds": 604800},
            hold="1h",
            severity="warning",
            owner="platform",
            not_in_demo=_PLAIN,
            summary="The certificate of an agent's or controller's web server ends soon, or has ended.",
            description=f"The certificate of {_THE_SERVER} "
            "{{ if gt $value 0.0 }}ends in {{ humanizeDuration $value }}{{ else }}has expired{{ end }}.",
        ),
        Alert(
            name="DRAWebConfigurationNotLoaded",
            expr=f"""
min by ({_SERVER}) (
  claimscope_agent_web_config_last_reload_successful
  or
  claimscope_controller_web_config_last_reload_successful
) == 0""",
            hold="15m",
            severity="warning",
            owner="platform",
            not_in_demo=_PLAIN,
            summary="A changed web configuration is not taken: the version before it stays in force.",
            description=f"The web server of {_THE_SERVER} cannot use its web configuration file, or a certificate, key"
            " or authority that it names.",
        ),
    ),
)

CONTROLLER: Final = Group(
    name="dra-controller",
    rules=(
        # Also where nothing of claimscope is scraped any more, and no cluster is known to ask about.
        Alert(
            name="DRAControllerDown",
            # A cluster of which nothing is left is known by what was there within a day. One whose agents fence their
            # own nodes needs no controller: it is asked for where there was one within a day.
            expr=f"""
group by (cluster) (last_over_time({AGENTS_COUNTED}[1d]))
unless on (cluster)
(max by (cluster) (claimscope_controller_leader) == 1)
unless on (cluster)
(last_over_time({LOCAL_WRITERS}[1d]) unless on (cluster) last_over_time({CONTROLLERS}[1d]))
or
absent(last_over_time({AGENTS_COUNTED}[1d])) and on () absent(claimscope_controller_leader == 1)""",
            keep_firing="",
            hold="5m",
            severity="critical",
            owner="platform",
            summary="No controller leads.",
            description="Nobody watches claims" + THE_CLUSTER + ", and GPUs that fail are not fenced.",
        ),
        Alert(
            name="DRAControllerWatchStale",
            expr="""
time() - max by (cluster, resource) (claimscope_controller_watch_last_event_timestamp_seconds) > [[seconds]]""",
            thresholds={"seconds": 900},
            hold="5m",
            severity="warning",
            owner="platform",
            not_in_demo="needs an API server that is silent and keeps connections open",
            summary="The controller hears nothing of a kind of object.",
            description="Nothing was heard of {{ $labels.resource }} for {{ humanizeDuration $value }}.",
        ),
        # What never worked has no last event. Kinds that the API server does not have, or that are withheld on purpose,
        # are left out, unless nothing works without them.
        Alert(
            name="DRAControllerWatchDown",
            expr=f"""
max by (cluster, resource) (claimscope_controller_watch_up) == 0
unless on (cluster, resource)
(max by (cluster, resource) (claimscope_controller_watch_served{{resource!~"{_REQUIRED}"}}) == 0)""",
            hold="15m",
            severity="warning",
            owner="platform",
            not_in_demo="the simulated API server lets the controller read all that it needs",
            summary="The controller cannot follow a kind of object.",
            description="{{ $labels.resource }}" + THE_CLUSTER + " cannot be listed and watched.",
        ),
        Alert(
            name="DRAControllerLagging",
            expr="max by (cluster) (claimscope_controller_publish_lag_seconds) > [[seconds]]",
            thresholds={"seconds": 60},
            hold="10m",
            severity="warning",
            owner="platform",
            not_in_demo="needs a machine that is too busy",
            summary="The controller does not keep up with the cluster.",
            description="What the controller" + THE_CLUSTER + " serves is {{ humanizeDuration $value }} old.",
        ),
        Alert(
            name="DRAFencingStale",
            expr="time() - max by (cluster) (claimscope_controller_taint_last_round_timestamp_seconds) > [[seconds]]",
            thresholds={"seconds": 300},
            hold="5m",
            severity="warning",
            not_in_demo="nothing in the demo stops the fencing of a controller that leads",
            owner="platform",
            summary="The controller has not looked at what to fence for a while.",
            description="The last look" + THE_CLUSTER + " was {{ humanizeDuration $value }} ago.",
        ),
        Alert(
            name="DRASelectorEngineDown",
            expr="max by (cluster) (claimscope_controller_selector_engine_up) == 0",
            hold="10m",
            severity="warning",
            owner="platform",
            not_in_demo="the demo is installed with the engine",
            summary="The controller cannot evaluate CEL selectors.",
            description="Why claims wait is often unknown" + THE_CLUSTER + ": is claimscope installed with the extra"
            " `cel`?",
        ),
    ),
)

GROUPS: Final = (AGENTS, CONTROLLER)
