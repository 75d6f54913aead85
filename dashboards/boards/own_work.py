"""claimscope at work: the rows of its own board that one opens when something is wrong with it."""

from __future__ import annotations

from typing import Final

from dashboards import palette
from dashboards.boards.common import TO_NODE_OF_SERIES
from dashboards.expressions import CLUSTER, CONTROLLER_ANSWERS, RANGE
from dashboards.grafana import Panel, Query, Row, Step
from dashboards.own_series import (
    BEAT_AGE,
    FAILING,
    NODES,
    NOT_OK,
    agent,
    agent_rate,
    controller,
    controller_rate,
)

_PUSH: Final = "no OTLP endpoint is configured"

AGENTS: Final = Row(title="Agents at work", collapsed=True, panels=(
    Panel(
        kind="timeseries", title="Sampling: ticks missed", width=8, unit="percentunit", minimum=0,
        description="Deadlines that passed unserved, as a part of all. They are not replayed; totals come from the "
        "driver's own counters and stay right.",
        queries=(
            Query(
                expr=f"sum({agent_rate('sampler_late_ticks_total')}) / "
                f"(sum({agent_rate('sampler_ticks_total')}) + sum({agent_rate('sampler_late_ticks_total')}) > 0)",
                legend="all agents",
            ),
            Query(
                expr=f"max({agent_rate('sampler_late_ticks_total')} / "
                f"({agent_rate('sampler_ticks_total')} + {agent_rate('sampler_late_ticks_total')} > 0))",
                legend="worst agent",
            ),
        ),
    ),
    Panel(
        kind="timeseries", title="Sampling: worst wake-up", width=8, unit="s", minimum=0, links=(TO_NODE_OF_SERIES,),
        description="How late the sampler woke at worst in its last window, for the ten nodes on which it was latest "
        "in the chosen time. A node short of CPU shows here first.",
        queries=(Query(
            expr=f"{agent('sampler_lateness_seconds')} and topk(10, max by (cluster, node) "
            f"(max_over_time(claimscope_agent_sampler_lateness_seconds{{{NODES}}}[{RANGE}] @ end())))",
            legend="{{node}}",
        ),),
    ),
    Panel(
        kind="timeseries", title="Heartbeats: the longest silent", width=8, unit="s", minimum=0,
        links=(TO_NODE_OF_SERIES,),
        description="Since each agent renewed its Lease, for the ten that are silent longest at the end. After two "
        "minutes a node counts as unmonitored.",
        queries=(Query(
            expr=f"{BEAT_AGE} and bottomk(10, max by (cluster, node) "
            f"(claimscope_controller_agent_lease_renew_timestamp_seconds{{{NODES}}} @ end()))",
            legend="{{node}}",
        ),),
        thresholds=(Step(colour="transparent"), Step(colour=palette.BAD, value=120)),
    ),
    Panel(
        kind="timeseries", title="Attribution: errors", width=8, unit="ops", minimum=0, no_value="none",
        description="Questions about who holds devices that failed, by source and reason. Until one succeeds the last "
        "answer stands.",
        queries=(Query(
            expr=f"sum by (source, reason) ({agent_rate('attribution_errors_total', ', source, reason')}) > 0",
            legend="{{source}}: {{reason}}", may_be_empty="every question was answered",
        ),),
    ),
    Panel(
        kind="timeseries", title="What cannot be measured", width=8, unit="short", minimum=0,
        description="Readings that have no number now, by the reason, without those that the driver does not support; "
        "devices on which accounts lack a quantity; and devices that the kubelet reports and NVML does not show.",
        queries=(
            Query(
                expr=f"sum by (reason) ({agent('missing_readings', ', reason', FAILING)})",
                legend="readings, {{reason}}",
            ),
            Query(
                expr=f"sum by (reason) ({agent('unmeasurable_devices', ', reason')})",
                legend="devices without {{reason}}",
            ),
            Query(
                expr="sum by (reason) "
                f"({agent('attribution_unresolved_devices', ', reason, driver')})",
                legend="unresolved, {{reason}}", may_be_empty="every device that the kubelet reports is known",
            ),
        ),
    ),
    Panel(
        kind="timeseries", title="What was lost", width=8, unit="short", minimum=0,
        description="Devices that nobody watched for a while, such as across an agent's restart; and per second: "
        "windows that the sampler could not hand over, journal writes that failed, and records of the kernel log that "
        "were overwritten unread.",
        queries=(
            Query(expr=f"sum({agent_rate('unobserved_seconds_total')})", legend="devices unwatched"),
            Query(expr=f"sum({agent_rate('sampler_dropped_messages_total')})", legend="windows"),
            Query(
                expr=f"sum({agent_rate('journal_writes_total', ', result', NOT_OK)}) or 0 * max({agent('nvml_up')})",
                legend="journal writes",
            ),
            Query(
                expr=f"sum({agent_rate('kernel_log_lost_records_total')})", legend="kernel log records",
                may_be_empty="reading the kernel log is off",
            ),
        ),
    ),
))  # fmt: skip

CONTROLLER: Final = Row(title="The controller at work", collapsed=True, panels=(
    Panel(
        kind="timeseries", title="Watches: time since news", width=8, unit="s", minimum=0,
        description="Since each watch of the leader last brought an event, a bookmark or an orderly end. API servers "
        "send bookmarks about once a minute, so minutes of silence are a fault.",
        queries=(Query(
            expr="time() - max by (cluster, resource) "
            f"(claimscope_controller_watch_last_event_timestamp_seconds{{{CLUSTER}}})", legend="{{resource}}",
        ),),
        thresholds=(Step(colour="transparent"), Step(colour=palette.WARNING, value=900)), legend=False,
    ),
    Panel(
        kind="timeseries", title="Watches: errors", width=8, unit="ops", minimum=0, no_value="none",
        description="Lists and watches that failed, by kind and reason. After a gap the kind is listed again, and "
        "nothing is missed.",
        queries=(Query(
            expr=f"sum by (resource, reason) ({controller_rate('watch_errors_total', ', resource, reason')}) > 0",
            legend="{{resource}}: {{reason}}", may_be_empty="no list and no watch failed",
        ),),
    ),
    Panel(
        kind="timeseries", title="Lag", width=8, unit="s", minimum=0,
        description="Age of the oldest event in what is served, and the longest time for which work kept all else "
        "waiting, the lease's renewal too.",
        queries=(
            Query(expr=f"max({controller('publish_lag_seconds')})", legend="events until served"),
            Query(expr=f"max({controller('event_loop_lag_seconds')})", legend="longest work"),
        ),
    ),
    Panel(
        kind="timeseries", title="Objects known", width=8, unit="short", minimum=0,
        description="Objects that the leader knows, by kind.",
        queries=(Query(
            expr=f"max by (resource) ({controller('objects', ', resource')})", legend="{{resource}}",
        ),),
    ),
    Panel(
        kind="timeseries", title="CEL selectors evaluated", width=8, unit="ops", minimum=0,
        description="By result. unknown: the selector uses what cannot be evaluated here, and what it would match is "
        "not guessed. error: it fails on a device, which in Kubernetes can stop a pod.",
        queries=(
            Query(
                expr=f"sum by (result) ({controller_rate('selector_evaluations_total', ', result')})",
                legend="{{result}}",
            ),
            Query(
                expr=f"sum({controller_rate('selector_worker_restarts_total', ', reason')})",
                legend="workers replaced",
            ),
        ),
        colours={"match": palette.GOOD, "no_match": palette.QUIET, "unknown": palette.WARNING, "error": palette.BAD},
    ),
    Panel(
        kind="timeseries", title="Fencing: rounds and writes", width=8, unit="short", minimum=0,
        description="Seconds since it was last decided what to fence, which happens every few seconds, and writes per "
        "second that failed.",
        queries=(
            Query(
                expr="time() - max by (cluster) "
                f"(claimscope_controller_taint_last_round_timestamp_seconds{{{CLUSTER}}})",
                legend="seconds since the last round",
            ),
            Query(
                expr=f"sum({controller_rate('taint_writes_total', ', verb, result', NOT_OK)}) "
                f"or {CONTROLLER_ANSWERS}",
                legend="failed writes",
            ),
            Query(
                expr=f"sum({controller_rate('lease_errors_total', ', reason')}) or {CONTROLLER_ANSWERS}",
                legend="failed renewals of the lease",
            ),
        ),
        colours={"failed writes": palette.BAD, "failed renewals of the lease": palette.BAD},
    ),
))  # fmt: skip

OTLP: Final = Row(title="Push to an OpenTelemetry Collector", collapsed=True, panels=(
    Panel(
        kind="timeseries", title="OTLP points", width=8, unit="cps", minimum=0, no_value="not configured",
        description="Points by what became of them. Rejected by the collector, refused, expired after too many "
        "attempts, or dropped from a full queue: those are lost.",
        queries=(
            Query(
                expr=f"sum by (result) ({agent_rate('otlp_points_total', ', result')})", legend="agents, {{result}}",
                may_be_empty=_PUSH,
            ),
            Query(
                expr=f"sum by (result) ({controller_rate('otlp_points_total', ', result')})",
                legend="controller, {{result}}", may_be_empty=_PUSH,
            ),
        ),
    ),
    Panel(
        kind="timeseries", title="OTLP queue", width=8, unit="bytes", minimum=0, no_value="not configured",
        description="Requests that wait to be sent: the largest of any agent, and the controller's. The queue is "
        "bounded; a dead collector costs points and blocks nothing.",
        queries=(
            Query(expr=f"max({agent('otlp_queue_bytes')})", legend="agents, largest", may_be_empty=_PUSH),
            Query(expr=f"max({controller('otlp_queue_bytes')})", legend="controller", may_be_empty=_PUSH),
        ),
    ),
    Panel(
        kind="timeseries", title="OTLP: time since a request was taken", width=8, unit="s", minimum=0,
        no_value="not configured", links=(TO_NODE_OF_SERIES,),
        description="For the ten agents that wait longest, and for the controller.",
        queries=(
            Query(
                expr=f"time() - {agent('otlp_last_success_timestamp_seconds')} and bottomk(10, max by (cluster, node) "
                f"(claimscope_agent_otlp_last_success_timestamp_seconds{{{NODES}}} @ end()))",
                legend="{{node}}", may_be_empty=_PUSH,
            ),
            Query(
                expr=f"time() - max({controller('otlp_last_success_timestamp_seconds')})", legend="controller",
                may_be_empty=_PUSH,
            ),
        ),
    ),
))  # fmt: skip
