"""When do the alerts on claimscope itself fire?"""

from __future__ import annotations

from typing import Final

from alerts.cases.model import Case, Fired

_NODE: Final = {"node": "n1"}
_JOB: Final = 'job="claimscope/claimscope-agent"'


def _nodes(heard: int, silent: int, absent: int) -> dict[str, str]:
    numbers = {"heard": heard, "silent": silent, "absent": absent}
    return {f'dra_gpu_nodes{{agent="{agent}"}}': f"{number}x60" for agent, number in numbers.items()}


def _agent(name: str, labels: str = "") -> str:
    return f'claimscope_agent_{name}{{node="n1"{labels}}}'


def _controller(name: str, labels: str = 'instance="c1"') -> str:
    return f"claimscope_controller_{name}{{{labels}}}"


_ATTRIBUTION: Final = _agent("attribution_last_success_timestamp_seconds", ',source="pod-resources"')
_UNRESOLVED: Final = _agent("attribution_unresolved_devices", ',reason="unknown_uuid",driver="gpu.nvidia.com"')
_WATCH: Final = _controller("watch_last_event_timestamp_seconds", 'resource="pods"')
_LEASE: Final = _controller("agent_lease_renew_timestamp_seconds", 'node="n1"')
_KNOWN: Final = {'dra_node_mode_info{node="n1",mode="dra"}': "1x60"}
_MAINTENANCE: Final = {'dra_node_maintenance_state{node="n1",state="ready"}': "1x60"}
_EXPIRY: Final = "web_certificate_expiry_timestamp_seconds"
_LOADED: Final = "web_config_last_reload_successful"
_AT: Final = ',instance="a1"'
_OTHER: Final = ',instance="a2"'
_SERVER: Final = {**_NODE, "instance": "a1"}
_NOT_LOADED: Final = (
    "The web server of {} in cluster east cannot use its web configuration file, or a certificate, key or authority"
    " that it names."
)
_EDGE: Final = 'gpu_allocation_info{node="n1",uuid="GPU-a",namespace="claimscope"'

_AGENTS: Final = (
    Case(
        alert="DRAWatchdog", about="always", series={}, at="1m",
        fires=(
            Fired(
                labels={"cluster": ""},
                says="Route it to a service that raises an alarm when it is not heard of.",
            ),
        ),
    ),
    Case(
        alert="DRANodesBlind", about="6 of 100 nodes", series=_nodes(94, 4, 2), at="6m",
        fires=(
            Fired(
                says="6% of the GPU nodes in cluster east have no agent that is heard: nobody sees their GPUs fail.",
            ),
        ),
    ),
    Case(alert="DRANodesBlind", about="5 of 100 nodes", series=_nodes(95, 5, 0), at="6m"),
    Case(
        alert="DRANodesBlind", about="2 of 10 nodes", series=_nodes(8, 2, 0), at="6m",
        fires=(
            Fired(
                says="20% of the GPU nodes in cluster east have no agent that is heard: nobody sees their GPUs fail.",
            ),
        ),
    ),
    Case(
        alert="DRANodesBlind", about="one of ten, for twenty minutes", series=_nodes(9, 1, 0), at="21m",
        fires=(
            Fired(
                says="10% of the GPU nodes in cluster east have no agent that is heard: nobody sees their GPUs fail.",
            ),
        ),
    ),
    Case(alert="DRANodesBlind", about="one of ten boots", series=_nodes(9, 1, 0), at="16m"),
    Case(alert="DRANodesBlind", about="one of twenty is a ticket", series=_nodes(19, 1, 0), at="40m"),
    Case(
        alert="DRAAgentDown", about="it does not answer", series={f'up{{{_JOB},node="n1"}}': "0x60"}, at="21m",
        fires=(Fired(labels=_NODE, says="The agent of node n1 has not answered for 20 minutes."),),
    ),
    Case(
        alert="DRAAgentDown", about="somebody works on the node",
        series={f'up{{{_JOB},node="n1"}}': "0x60", **_MAINTENANCE}, at="30m",
    ),
    Case(
        alert="DRAAgentDown", about="one of two jobs reaches it",
        series={f'up{{{_JOB},node="n1"}}': "0x60", 'up{job="claimscope-agent",node="n1"}': "1x60"}, at="21m",
    ),
    Case(
        alert="DRAAgentSilent", about="no heartbeat for 21 minutes", series={_LEASE: "0x60", **_KNOWN}, at="21m",
        fires=(Fired(labels=_NODE, says="The agent of node n1 was last heard by the controller 21m 0s ago."),),
    ),
    Case(alert="DRAAgentSilent", about="heard a minute ago", series={_LEASE: "0+60x60", **_KNOWN}, at="21m"),
    Case(alert="DRAAgentSilent", about="the node was deleted, its Lease was not", series={_LEASE: "0x60"}, at="40m"),
    Case(
        alert="DRAAgentSilent", about="somebody works on the node",
        series={_LEASE: "0x60", **_KNOWN, **_MAINTENANCE}, at="40m",
    ),
    Case(
        alert="DRANodesWithoutAgent", about="two nodes", series=_nodes(98, 0, 2), at="31m",
        fires=(
            Fired(says="2 nodes in cluster east publish GPUs, and no agent was ever heard from them."),
        ),
    ),
    Case(alert="DRANodesWithoutAgent", about="silent ones had one", series=_nodes(98, 2, 0), at="31m"),
    Case(
        alert="DRASamplerDown", about="no sampler", series={_agent("sampler_up"): "0x60"}, at="6m",
        fires=(Fired(labels=_NODE, says="The agent of node n1 has no fresh readings."),),
    ),
    Case(alert="DRASamplerDown", about="it was replaced", series={_agent("sampler_up"): "0x2 1x60"}, at="6m"),
    Case(
        alert="DRANvmlDown", about="no driver",
        series={_agent("nvml_up"): "0x60", _agent("nvml_released"): "0x60"}, at="6m",
        fires=(Fired(labels=_NODE, says="The agent of node n1 cannot use NVML: is the driver loaded?"),),
    ),
    Case(
        alert="DRANvmlDown", about="let go on request",
        series={_agent("nvml_up"): "0x60", _agent("nvml_released"): "1x60"}, at="6m",
    ),
    Case(
        alert="DRAAttributionStale", about="25 minutes old", series={_ATTRIBUTION: "0x60"}, at="25m",
        fires=(
            Fired(
                labels={**_NODE, "source": "pod-resources"},
                says="The agent of node n1 last heard from pod-resources 25m 0s ago.",
            ),
        ),
    ),
    Case(
        alert="DRAAttributionStale", about="a watch that is quiet for a quarter of an hour",
        series={_agent("attribution_last_success_timestamp_seconds", ',source="resourceslices"'): "0x15 900+0x45"},
        at="17m",
    ),
    Case(
        alert="DRAAttributionStale", about="somebody works on the node", series={_ATTRIBUTION: "0x60", **_MAINTENANCE},
        at="40m",
    ),
    Case(alert="DRAAttributionStale", about="fresh", series={_ATTRIBUTION: "0+60x60"}, at="10m"),
    Case(
        alert="DRAAttributionUnresolved", about="two devices", series={_UNRESOLVED: "2x60"}, at="16m",
        fires=(
            Fired(
                labels={**_NODE, "reason": "unknown_uuid", "driver": "gpu.nvidia.com"},
                says="The agent of node n1 cannot match 2 devices of driver gpu.nvidia.com to a GPU: unknown_uuid.",
            ),
        ),
    ),
    Case(alert="DRAAttributionUnresolved", about="all match", series={_UNRESOLVED: "0x60"}, at="16m"),
    Case(
        alert="DRAAgentSamplesLate", about="one of ten",
        series={_agent("sampler_late_ticks_total"): "0+60x60", _agent("sampler_ticks_total"): "0+540x60"}, at="25m",
        fires=(Fired(labels=_NODE, says="The agent of node n1 takes 10% of its samples too late."),),
    ),
    Case(
        alert="DRAAgentSamplesLate", about="one of a hundred",
        series={_agent("sampler_late_ticks_total"): "0+6x60", _agent("sampler_ticks_total"): "0+594x60"}, at="25m",
    ),
    Case(
        alert="DRAJournalStale", about="a full disk",
        series={_agent("journal_last_success_timestamp_seconds"): "0x60"}, at="16m",
        fires=(
            Fired(
                labels=_NODE,
                says="The agent of node n1 wrote its accounts 16m 0s ago; a restart now would lose what came since.",
            ),
        ),
    ),
    Case(
        alert="DRAJournalStale", about="written each minute",
        series={_agent("journal_last_success_timestamp_seconds"): "0+60x60"}, at="16m",
    ),
    Case(
        alert="DRALabelsOverwritten", about="honor_labels is off",
        series={f'{_EDGE},exported_namespace="ml"}}': "1x60"}, at="16m",
        fires=(
            Fired(
                says="The scrape configuration needs `honor_labels: true`; without it claims stand under the agent's"
                " own namespace.",
            ),
        ),
    ),
    Case(alert="DRALabelsOverwritten", about="honor_labels is on", series={f"{_EDGE}}}": "1x60"}, at="16m"),
    Case(
        alert="DRANodeLabelMissing", about="two agents of one job",
        series={
            f'claimscope_agent_build_info{{instance="{instance}",version="1"}}': "1x60" for instance in ("a", "b")
        },
        at="16m",
        fires=(
            Fired(
                says="4 agents in cluster east are scraped without the label `node`: one that answers hides those that"
                " do not.",
            ),
        ),
    ),
    Case(
        alert="DRANodeLabelMissing", about="all have it", series={_agent("build_info", ',version="1"'): "1x60"},
        at="16m",
    ),
    Case(
        alert="DRAOtlpPointsLost", about="the Collector refuses them",
        series={_agent("otlp_points_total", ',result="refused"'): "0+600x60"}, at="35m",
        fires=(
            Fired(labels={**_NODE, "result": "refused"}, says="10 points a second do not arrive: refused."),
        ),
    ),
    Case(
        alert="DRAOtlpPointsLost", about="all are accepted",
        series={
            _agent("otlp_points_total", ',result="accepted"'): "0+600x60",
            _agent("otlp_points_total", ',result="refused"'): "0x60",
        },
        at="35m",
    ),
    Case(
        alert="DRAWebCertificateExpiring", about="an agent's, in less than seven days, scraped by two jobs",
        series={_agent(_EXPIRY, f',instance="a1",job="{job}"'): "600000x70" for job in ("a", "b")}, at="61m",
        fires=(
            Fired(
                labels=_SERVER,
                says="The certificate of a1 on node n1 in cluster east ends in 6d 21h 39m 0s.",
            ),
        ),
    ),
    Case(
        alert="DRAWebCertificateExpiring", about="a controller's, an hour ago",
        series={_controller(_EXPIRY): "60x130"}, at="2h",
        fires=(
            Fired(labels={"instance": "c1"}, says="The certificate of c1 in cluster east has expired."),
        ),
    ),
    Case(
        alert="DRAWebCertificateExpiring", about="three months left",
        series={_agent(_EXPIRY, _AT): "7776000x70", _controller(_EXPIRY): "7776000x70"}, at="61m",
    ),
    Case(
        alert="DRAWebCertificateExpiring", about="renewed within the hour",
        series={_agent(_EXPIRY, _AT): "600000x50 7776000x40"}, at="70m",
    ),
    Case(
        alert="DRAWebConfigurationNotLoaded", about="an agent's and a controller's",
        series={_agent(_LOADED, _AT): "1x3 0x60", _controller(_LOADED): "0x60", _agent(_LOADED, _OTHER): "1x60"},
        at="20m",
        fires=(
            Fired(labels=_SERVER, says=_NOT_LOADED.format("a1 on node n1")),
            Fired(labels={"instance": "c1"}, says=_NOT_LOADED.format("c1")),
        ),
    ),
    Case(
        alert="DRAWebConfigurationNotLoaded", about="a key that came a minute after its certificate",
        series={_agent(_LOADED, _AT): "1x5 0x1 1x60", _controller(_LOADED): "1x60"}, at="25m",
    ),
)  # fmt: skip

_CONTROLLERS: Final = (
    Case(
        alert="DRAControllerDown", about="agents run, and nobody leads",
        series={
            _agent("build_info", ',version="1"'): "1x60", _controller("leader"): "0x60",
            _controller("leader", 'instance="c2"'): "0x60",
        },
        at="6m",
        fires=(
            Fired(says="Nobody watches claims in cluster east, and GPUs that fail are not fenced."),
        ),
    ),
    Case(
        alert="DRAControllerDown", about="a cluster of which nothing is left, told by its name",
        series={_agent("build_info", ',version="1"'): "1x10 _x50", _controller("leader"): "1x10 _x50"}, at="40m",
        fires=(
            Fired(says="Nobody watches claims in cluster east, and GPUs that fail are not fenced."),
        ),
    ),
    Case(
        alert="DRAControllerDown", about="nothing of claimscope is scraped", series={}, at="6m",
        fires=(
            Fired(labels={"cluster": ""}, says="Nobody watches claims, and GPUs that fail are not fenced."),
        ),
    ),
    Case(
        alert="DRAControllerDown", about="one of two leads",
        series={
            _agent("build_info", ',version="1"'): "1x60", _controller("leader"): "0x60",
            _controller("leader", 'instance="c2"'): "1x60",
        },
        at="6m",
    ),
    Case(
        alert="DRAControllerDown", about="agents fence their own nodes, and there never was a controller",
        series={
            _agent("build_info", ',version="1"'): "1x200",
            _agent("taint_mode_info", ',mode="enforce",configured="enforce",reason=""'): "1x200",
        },
        at="3h",
    ),
    Case(
        alert="DRAControllerDown", about="agents fence their own nodes, and the controller that there was is gone",
        series={
            _agent("build_info", ',version="1"'): "1x200",
            _agent("taint_mode_info", ',mode="enforce",configured="enforce",reason=""'): "1x200",
            _controller("leader"): "1x10 _x190",
        },
        at="40m",
        fires=(
            Fired(says="Nobody watches claims in cluster east, and GPUs that fail are not fenced."),
        ),
    ),
    Case(
        alert="DRAControllerWatchDown", about="the right to read claims was never given",
        series={
            _controller("watch_up", 'resource="resourceclaims"'): "0x60",
            _controller("watch_served", 'resource="resourceclaims"'): "0x60",
            _controller("watch_up", 'resource="pods"'): "1x60",
        },
        at="16m",
        fires=(
            Fired(
                labels={"resource": "resourceclaims"},
                says="resourceclaims in cluster east cannot be listed and watched.",
            ),
        ),
    ),
    Case(
        alert="DRAControllerWatchDown", about="Kubernetes 1.35 has no DeviceTaintRules",
        series={
            _controller("watch_up", 'resource="devicetaintrules"'): "0x60",
            _controller("watch_served", 'resource="devicetaintrules"'): "0x60",
        },
        at="40m",
    ),
    Case(
        alert="DRAControllerWatchDown", about="a watch that is opened anew",
        series={_controller("watch_up", 'resource="pods"'): "0x5 1x60"}, at="16m",
    ),
    Case(
        alert="DRAControllerWatchStale", about="nothing of pods", series={_WATCH: "0x60"}, at="21m",
        fires=(Fired(labels={"resource": "pods"}, says="Nothing was heard of pods for 21m 0s."),),
    ),
    Case(alert="DRAControllerWatchStale", about="bookmarks come", series={_WATCH: "0+60x60"}, at="21m"),
    Case(
        alert="DRAControllerLagging", about="two minutes", series={_controller("publish_lag_seconds"): "120x60"},
        at="11m", fires=(Fired(says="What the controller in cluster east serves is 2m 0s old."),),
    ),
    Case(
        alert="DRAControllerLagging", about="two seconds", series={_controller("publish_lag_seconds"): "2x60"},
        at="11m",
    ),
    Case(
        alert="DRAFencingStale", about="eleven minutes",
        series={_controller("taint_last_round_timestamp_seconds"): "0x60"}, at="11m",
        fires=(Fired(says="The last look in cluster east was 11m 0s ago."),),
    ),
    Case(
        alert="DRAFencingStale", about="each minute",
        series={_controller("taint_last_round_timestamp_seconds"): "0+60x60"}, at="11m",
    ),
    Case(
        alert="DRASelectorEngineDown", about="not installed", series={_controller("selector_engine_up"): "0x60"},
        at="11m",
        fires=(
            Fired(
                says="Why claims wait is often unknown in cluster east: is claimscope installed with the extra `cel`?",
            ),
        ),
    ),
    Case(
        alert="DRASelectorEngineDown", about="it works", series={_controller("selector_engine_up"): "1x60"}, at="11m",
    ),
)  # fmt: skip

CASES: Final = (*_AGENTS, *_CONTROLLERS)
