"""Which families does the controller expose about itself?"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from claimscope.metrics.spec import Family, Type, Unit
from claimscope.model import Sample

PREFIX = "claimscope_controller_"


def _row(name: str, kind: Type, about: str, *labels: str, unit: Unit = Unit.ONE) -> Family:
    return Family(name=PREFIX + name, help=about, type=kind, unit=unit, labels=labels)


_GAUGE, _COUNTER, _SECONDS = Type.GAUGE, Type.COUNTER, Unit.SECONDS

_ROWS = (
    _row("build_info", Type.INFO, "Which claimscope this is.", "version", "revision", "python"),
    _row("leader", _GAUGE, "1 while this replica leads: it alone watches and serves the cluster's series."),
    _row("leader_changes_total", _COUNTER, "Times that this replica began to lead."),
    _row("lease_errors_total", _COUNTER, "Failed attempts to take or renew the lease.", "reason"),
    # Watches.
    _row("watch_up", _GAUGE, "1 while a kind is listed and its watch is open.", "resource"),
    _row("watch_served", _GAUGE, "0 for a kind that the API server does not serve or may not be read.", "resource"),
    _row("watch_last_event_timestamp_seconds", _GAUGE,
         "Unix time at which a watch last brought an event, a bookmark or an orderly end.", "resource", unit=_SECONDS),
    _row("watch_lists_total", _COUNTER, "Lists read: the first one, and one after each gap.", "resource"),
    _row("watch_events_total", _COUNTER, "Events that watches brought, bookmarks left out.", "resource"),
    _row("watch_errors_total", _COUNTER, "Failed lists and watches.", "resource", "reason"),
    _row("watch_undecodable_total", _COUNTER, "Objects that could not be decoded and were left out.", "resource"),
    _row("objects", _GAUGE, "Objects known now, after dropping those that have to do with no device.", "resource"),
    # Work.
    _row("publish_seconds_total", _COUNTER, "Time spent making what is served.", unit=_SECONDS),
    _row("publishes_total", _COUNTER, "Snapshots made."),
    _row("publish_lag_seconds", _GAUGE, "Age of the oldest event that the newest snapshot was made of.",
         unit=_SECONDS),
    _row("event_loop_lag_seconds", _GAUGE,
         "Longest time in the last one to two minutes for which work kept all else waiting, the lease's renewal too.",
         unit=_SECONDS),
    _row("skipped_durations_total", _COUNTER,
         "Durations that were not counted, since an end was not seen or clocks disagree.", "phase", "reason"),
    _row("selector_evaluations_total", _COUNTER, "CEL selectors evaluated, by what came out.", "result"),
    _row("selector_worker_restarts_total", _COUNTER, "Processes evaluating CEL that had to be replaced.", "reason"),
    _row("selector_engine_up", _GAUGE, "1 while CEL selectors can be evaluated."),
    # Fencing.
    _row("taint_mode_info", Type.INFO,
         "How far fencing goes now, how far it is configured to go, and why it goes less far.",
         "mode", "configured", "reason"),
    _row("taint_paused", _GAUGE, "1 while somebody has paused fencing: nothing new is put up."),
    _row("taint_breaker_state", _GAUGE, "1 for the state of the breaker: closed, open or half_open.", "state"),
    _row("taint_writes_total", _COUNTER, "Writes of fencing, by what they do and what came of them.", "verb", "result"),
    _row("taint_events_dropped_total", _COUNTER, "Events on nodes and pods that were left out to hold the rate."),
    _row("taint_last_round_timestamp_seconds", _GAUGE, "Unix time at which it was last decided what to fence.",
         unit=_SECONDS),
    # Agents.
    _row("agent_lease_renew_timestamp_seconds", _GAUGE, "Unix time of an agent's last heartbeat.", "node",
         unit=_SECONDS),
    # Push to an OpenTelemetry Collector, where one is configured.
    _row("otlp_points_total", _COUNTER,
         "Points of OTLP requests by what became of them: accepted; rejected in a request that was taken in part; lost "
         "with one that was refused or tried too long (expired).",
         "result"),
    _row("otlp_requests_total", _COUNTER, "Attempts to send an OTLP request, by what came of them.", "result"),
    _row("otlp_request_seconds_total", _COUNTER, "Time that attempts to send an OTLP request took.", unit=_SECONDS),
    _row("otlp_encode_seconds_total", _COUNTER, "CPU time spent making and compressing OTLP requests.",
         unit=_SECONDS),
    _row("otlp_restarts_total", _COUNTER, "Times that the OTLP push began anew after a fault of claimscope's own."),
    _row("otlp_queue_bytes", _GAUGE, "Size of the OTLP requests that wait to be sent.", unit=Unit.BYTES),
    _row("otlp_last_success_timestamp_seconds", _GAUGE, "Unix time at which an OTLP request was last taken.",
         unit=_SECONDS),
    # The web side.
    _row("scrapes_total", _COUNTER, "Answers to /metrics, by HTTP status.", "code"),
    _row("scrape_seconds_total", _COUNTER, "Time between a scrape's arrival and its last byte.", unit=_SECONDS),
    _row("render_seconds_total", _COUNTER, "Time spent making expositions.", unit=_SECONDS),
    _row("scrape_response_bytes", _GAUGE, "Size of the newest exposition before compression.", unit=Unit.BYTES),
    _row("reviews_total", _COUNTER,
         "Questions to the API server who a caller is (token) and what they may do (access), by what came of them; "
         "shed: unknown tokens, or namespaces of one user, that were too many to ask about, or waited "
         "too long for their turn. Only with --web-authorization=kubernetes.",
         "review", "result"),
    _row("web_connections", _GAUGE, "Connections to the web server that are open now."),
    _row("web_connections_cut_total", _COUNTER,
         "Connections that the web server ended: TLS that was not agreed on (handshake), a request's head or an answer "
         "that took too long (head, answer), too many bytes (size), or one of too many: the oldest idle or unread "
         "(evicted), or the new one (full).", "reason"),
    _row("web_requests_refused_total", _COUNTER,
         "Requests that the web configuration file refuses: no or a wrong certificate or password, too many passwords "
         "to check (crowded), or above rate_limit (rate).", "reason"),
    _row("web_config_last_reload_successful", _GAUGE,
         "1 while the web configuration in force is what its file and the files that it names say now."),
    _row("web_config_last_reload_success_timestamp_seconds", _GAUGE,
         "Unix time at which the web configuration in force was taken.", unit=_SECONDS),
    _row("web_certificate_expiry_timestamp_seconds", _GAUGE,
         "Unix time until which the web server's certificate is valid.", unit=_SECONDS),
    _row("series", _GAUGE, "Series in this answer, by layer.", "layer"),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.name: row for row in _ROWS})


def own(name: str, value: float, *label_values: str) -> Sample:
    """A sample of `claimscope_controller_<name>`; label values in the family's order, none left out."""
    family = FAMILIES[PREFIX + name]
    return Sample(family=family.name, labels=tuple(zip(family.labels, label_values, strict=True)), value=value)
