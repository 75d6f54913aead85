"""Which families does the agent expose about itself?

Pure data and two helpers. The names say who is responsible: the sampler, the driver, attribution, the journal, the
web side.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import TYPE_CHECKING

from claimscope.metrics import controller
from claimscope.metrics.spec import Family, Type, Unit
from claimscope.model import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "claimscope_agent_"


def _gauge(name: str, help_text: str, *labels: str, unit: Unit = Unit.ONE) -> Family:
    return Family(name=PREFIX + name, help=help_text, type=Type.GAUGE, unit=unit, labels=labels)


def _counter(name: str, help_text: str, *labels: str, unit: Unit = Unit.ONE) -> Family:
    return Family(name=PREFIX + name, help=help_text, type=Type.COUNTER, unit=unit, labels=labels)


def _info(name: str, help_text: str, *labels: str) -> Family:
    return Family(name=PREFIX + name, help=help_text, type=Type.INFO, unit=Unit.ONE, labels=labels)


_ROWS = (
    _info("build_info", "Which claimscope this is.", "version", "revision", "python"),
    # Sampler process.
    _gauge("sampler_up", "1 while the sampler process runs and sends windows in time."),
    _counter("sampler_restarts_total", "Sampler processes that had to be replaced.", "reason"),
    _counter("sampler_ticks_total", "Samples taken of the fast tier."),
    _counter("sampler_late_ticks_total", "Deadlines that passed unserved and were not replayed."),
    _gauge("sampler_lateness_seconds", "Worst wake-up of the last window.", unit=Unit.SECONDS),
    _gauge("sampler_hz", "Samples per second in force now, after shedding or in a burst."),
    _gauge("sampler_shed", "1 while sampling is below the configured rate because the driver is slow."),
    _gauge(
        "sampler_last_window_timestamp_seconds", "Unix time of the newest window received.", unit=Unit.SECONDS
    ),
    _counter("sampler_dropped_messages_total", "Windows the sampler could not hand over; no totals are lost."),
    _counter("sampler_cpu_seconds_total", "CPU time of the sampler process.", unit=Unit.SECONDS),
    _gauge("nvml_up", "1 while NVML is loaded and answers."),
    _gauge("nvml_released", "1 while NVML is let go on request, so that a GPU can be reset."),
    # Driver.
    _counter("driver_seconds_total", "Time spent inside NVML for a GPU.", "uuid", unit=Unit.SECONDS),
    _counter("driver_calls_total", "NVML calls made, by function.", "call"),
    _counter("driver_call_seconds_total", "Time spent inside NVML, by function.", "call", unit=Unit.SECONDS),
    _gauge("missing_readings", "Readings that have no number now, by the reason for it.", "reason"),
    _gauge(
        "unmeasurable_devices",
        "Devices on which a quantity that accounts are made of cannot be measured.",
        "reason",
    ),
    _gauge("quarantined_devices", "GPUs left alone because a call to them hung or crashed the sampler."),
    _counter(
        "unobserved_seconds_total",
        "Device time in which nobody was watching, such as across an agent restart.",
        unit=Unit.SECONDS,
    ),
    # Attribution.
    _gauge(
        "attribution_last_success_timestamp_seconds",
        "Unix time of the last good answer of a source of attribution; before the first, of the first question.",
        "source",
        unit=Unit.SECONDS,
    ),
    _counter("attribution_errors_total", "Failed questions to a source of attribution.", "source", "reason"),
    _gauge(
        "attribution_unresolved_devices",
        "Devices that the kubelet reports and that match nothing NVML shows.",
        "reason",
        "driver",
    ),
    # Heartbeat: the Lease by which the controller knows this agent.
    _gauge(
        "heartbeat_last_success_timestamp_seconds", "Unix time at which the API server last took the agent's Lease.",
        unit=Unit.SECONDS,
    ),
    _counter("heartbeat_errors_total", "Writes of the agent's Lease that failed.", "reason"),
    # Health.
    _gauge("rule_state", "Devices on which a rule of health is in a state; 0 is left out except for ok.", "rule",
           "state"),
    _gauge("thresholds_up", "1 while the thresholds in force are those of the configured file as it is."),
    _counter(
        "fault_events_left_out_total", "Events that add nothing: too late, of other devices, or too many.", "reason"
    ),
    _gauge("fault_events_unplaced", "Faults that the kernel log told of addresses at which no GPU is known."),
    _gauge("kernel_log_up", "1 while the configured kernel log is read."),
    _counter("kernel_log_records_total", "Records read of the kernel log."),
    _counter("kernel_log_overruns_total", "Times that the kernel log was written faster than it was read."),
    _counter("kernel_log_lost_records_total", "Records of the kernel log that were overwritten before they were read."),
    _counter(
        "kernel_log_ignored_total", "Lines about GPUs that a process wrote into the kernel log and nobody trusts."
    ),
    # Fencing with --taint-writer=local, in the controller's words.
    *(
        dataclasses.replace(family, name=PREFIX + family.name.removeprefix(controller.PREFIX))
        for family in controller.FAMILIES.values()
        if family.name.startswith(f"{controller.PREFIX}taint_")
    ),
    # Journal.
    _counter("journal_writes_total", "Attempts to write the journal of accounts.", "result"),
    _gauge(
        "journal_last_success_timestamp_seconds",
        "Unix time of the last journal write that succeeded; before the first, of the start.",
        unit=Unit.SECONDS,
    ),
    # Push to an OpenTelemetry Collector, where one is configured.
    _counter("otlp_points_total", "Points of OTLP requests by what became of them: accepted; rejected in a request that"
             " was taken in part; lost with one that was refused or tried too long (expired).", "result"),
    _counter("otlp_requests_total", "Attempts to send an OTLP request, by what came of them.", "result"),
    _counter("otlp_request_seconds_total", "Time that attempts to send an OTLP request took.", unit=Unit.SECONDS),
    _counter("otlp_encode_seconds_total", "CPU time spent making and compressing OTLP requests.", unit=Unit.SECONDS),
    _counter("otlp_restarts_total", "Times that the OTLP push began anew after a fault of claimscope's own."),
    _gauge("otlp_queue_bytes", "Size of the OTLP requests that wait to be sent.", unit=Unit.BYTES),
    _gauge("otlp_last_success_timestamp_seconds", "Unix time at which an OTLP request was last taken.",
           unit=Unit.SECONDS),
    # Collectors, the web side and the answer itself.
    _counter("scrapes_total", "Answers to /metrics, by HTTP status.", "code"),
    _counter("scrape_seconds_total", "Time between a scrape's arrival and its last byte.", unit=Unit.SECONDS),
    _counter("render_seconds_total", "Time spent making expositions.", unit=Unit.SECONDS),
    _gauge("scrape_response_bytes", "Size of the newest exposition before compression.", unit=Unit.BYTES),
    _counter(
        "reviews_total",
        "Questions to the API server who a caller is (token) and what they may do (access), by what came of them; "
        "shed: unknown tokens, or namespaces of one user, that were too many to ask about, or waited "
        "too long for their turn. Only with --web-authorization=kubernetes.",
        "review", "result",
    ),
    _gauge("web_connections", "Connections to the web server that are open now."),
    _counter(
        "web_connections_cut_total",
        "Connections that the web server ended: TLS that was not agreed on (handshake), a request's head or an answer "
        "that took too long (head, answer), too many bytes (size), or one of too many: the oldest idle or unread "
        "(evicted), or the new one (full).",
        "reason",
    ),
    _counter(
        "web_requests_refused_total",
        "Requests that the web configuration file refuses: no or a wrong certificate or password, too many passwords "
        "to check (crowded), or above rate_limit (rate).",
        "reason",
    ),
    _gauge("web_config_last_reload_successful", "1 while the web configuration in force is what its file and the files"
           " that it names say now."),
    _gauge("web_config_last_reload_success_timestamp_seconds", "Unix time at which the web configuration in force was"
           " taken.", unit=Unit.SECONDS),
    _gauge("web_certificate_expiry_timestamp_seconds", "Unix time until which the web server's certificate is valid.",
           unit=Unit.SECONDS),
    _gauge("series", "Series in this answer, by layer.", "layer"),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ROWS})


def own(name: str, value: float, *label_values: str, start_ns: int | None = None) -> Sample:
    """A sample of `claimscope_agent_<name>`; label values in the family's order, "" for those left out at the end."""
    family = FAMILIES[PREFIX + name]
    if len(label_values) > len(family.labels):
        raise ValueError(f"{family.name} takes labels {family.labels}, got {len(label_values)} values")
    padded = label_values + ("",) * (len(family.labels) - len(label_values))
    return Sample(
        family=family.name, labels=tuple(zip(family.labels, padded, strict=True)), value=value, start_ns=start_ns
    )


def build_info(version: str, python: str, revision: str = "") -> Sample:
    """The one sample of claimscope_agent_build_info."""
    return own("build_info", 1, version, revision, python)
