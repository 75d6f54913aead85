"""What does somebody who sets up a Collector need to know? docs/otlp.md, made from the tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from claimscope.export.otlp.encode import MAX_BYTES, MAX_POINTS
from claimscope.export.otlp.parts import CONTROLLER_FAREWELL_SECONDS
from claimscope.export.otlp.push import IN_FLIGHT, LONGEST_WAIT_SECONDS, QUEUE_BYTES, RETRY_SECONDS
from claimscope.metrics.health import HEALTH
from claimscope.metrics.otel import SCHEMA_URL, STATUS, Instrument, OtelTable, Stream, prometheus_name
from claimscope.metrics.spec import Family, Quantity

_VARIABLES = (
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "Collector, `/v1/metrics` is added for HTTP; the flag `--otlp-endpoint` wins"),
    ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "the same, taken as it is"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "`http/protobuf` (default) or `grpc`; the flag `--otlp-protocol` wins"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "`key=value,...`, percent-encoded: from a Secret, never shown in logs"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "milliseconds for one attempt, 10000"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "`gzip` (default) or `none`"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "PEM file of authorities; unset: the system's"),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY", "PEM files of our own certificate"),
    ("OTEL_EXPORTER_OTLP_INSECURE", "`true`: gRPC to an endpoint without `http://` or `https://` is not encrypted"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "milliseconds between two pushes, 60000; the flag `--otlp-interval-seconds` wins"),
    ("OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME", "added to the resource, or in place of what is there"),
    ("OTEL_SDK_DISABLED", "`true`: nothing is pushed, which the log says where `--otlp-endpoint` is given"),
    ("OTEL_METRICS_EXPORTER", "without `otlp`: likewise; `none` for example"),
)

_COLLECTOR = """\
receivers:
  otlp:
    protocols:
      http: {endpoint: 0.0.0.0:4318}
      grpc: {endpoint: 0.0.0.0:4317}
processors:
  memory_limiter: {check_interval: 1s, limit_percentage: 80, spike_limit_percentage: 20}
  batch: {send_batch_size: 5000, send_batch_max_size: 5000, timeout: 5s}
exporters:
  otlphttp/prometheus: {endpoint: http://prometheus:9090/api/v1/otlp}
service:
  pipelines:
    metrics:
      receivers: [otlp]
      processors: [memory_limiter, batch]
      exporters: [otlphttp/prometheus]
"""

_UNKNOWN_START = (
    "https://opentelemetry.io/docs/specs/otel/metrics/data-model/#cumulative-streams-handling-unknown-start-time"
)

_PROMETHEUS = """\
storage:
  tsdb:
    out_of_order_time_window: 30m
otlp:
  promote_resource_attributes: [k8s.node.name, k8s.cluster.name, service.instance.id]
"""


def markdown(families: Mapping[str, Family], quantities: Sequence[Quantity]) -> str:
    """The page."""
    table = OtelTable(families, quantities)
    variables = "\n".join(f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {about} |"
                          for names, about in _VARIABLES)  # fmt: skip
    return f"""\
<!-- Written by `make docs` from exporter/claimscope/export/otlp/document.py. -->
# OTLP

Agent and controller push their metrics to an OpenTelemetry Collector, or to anything else that takes OTLP, where an
endpoint is configured:

```sh
claimscope agent --otlp-endpoint http://collector:4318
claimscope agent --otlp-endpoint http://collector:4317 --otlp-protocol grpc
```

The standard variables work, and are enough by themselves. Of each, the one for metrics alone
(`OTEL_EXPORTER_OTLP_METRICS_TIMEOUT`) wins over the one for all signals. An endpoint, a header or a certificate that
cannot be used is an error at the start, which names the variable; any other value that means nothing is warned of and
left out, as the specification wants it. Nothing is looked at where there is no endpoint.

| variable | meaning |
|---|---|
{variables}

Certificates are read again when their files change.

## What is pushed

All that is scraped, but for what is only known when a scrape is answered (`process_*`, `python_*`, and the figures
about scrapes) and the families of `--compat-dcgm`, which would say the same once more. Devices follow the [hardware conventions](https://opentelemetry.io/docs/specs/semconv/hardware/)
(`{SCHEMA_URL}`), with `hw.id`, the UUID of the GPU or MIG device, and `hw.name`, `hw.model`, `hw.vendor`,
`hw.serial_number`, `hw.driver_version`, `hw.firmware_version` (of the VBIOS) and, on a MIG device, `hw.parent`. Claims
and all that the conventions do not know have names and attributes of our own, `dra.*`. The resource is the node:
`service.name` (`claimscope-agent` or `claimscope-controller`), `service.instance.id`, `service.version`, and on an
agent `host.name` and `k8s.node.name`, on a controller `k8s.namespace.name` and `k8s.pod.name`; claims and their pods
are attributes of points, never of the resource. `service.instance.id` is the node's name, or for a controller the uid
of its pod where the variable `POD_UID` gives it and else the pod's name: unique in a cluster. Where several clusters
push to one place set `OTEL_RESOURCE_ATTRIBUTES=k8s.cluster.name=...,service.namespace=...`.

**Dashboards and alerts of claimscope need the scrape.** They ask for scraped names and labels, and what comes by OTLP
has others. Prometheus' OTLP receiver writes dots as underscores and adds unit and `_total`: so
{_same(table, families)} get their scraped name back (`dra.claim.pending` of unit `s` is stored as
`dra_claim_pending_seconds`). All others do not, among them every `hw.*` metric and all accounts of claims, and
attributes become labels of other names everywhere (`dra.claim.name` is `dra_claim_name`, not `resourceclaim`).
Recording rules of your own have to translate where only OTLP arrives.

`hw.status` has OpenTelemetry's words: `failed` is 1 where our state is `unhealthy` or `lost`, which
`dra.device.health.state` tells apart. `hw.gpu.utilization` has the tasks that the conventions know; the other engines
are in `dra.device.utilization`.

- Sums are cumulative, with the time at which they truly began: an account with its claim, what a leader counts with
  its leadership. One that does not say when, and was not there in the push before, began with that. A sum that falls
  began anew. No start is later than its point, even where the wall clock is set back.
- A driver's counter (`hw.energy`, `hw.errors`) has counted since the driver was loaded, or for the board's whole life,
  and NVML does not say since when. Its value is pushed as it is, and its stream begins where the agent first saw it,
  with one point whose start is its time, which is [OpenTelemetry's rule]({_UNKNOWN_START}) for that: the value of this
  point counts as no rise. `cumulativetodelta` keeps to it, so that an agent that is installed does not send years of
  energy as one delta.
- A series that ends gets one point with the flag NO_RECORDED_VALUE, which Prometheus stores as a stale marker; without
  it a claim that is gone would be shown for five more minutes. It is sent once: where its request is lost, it is so.
- A controller that is stopped ends the series of its claims before it goes, since its successor shows them under
  another `service.instance.id`; it takes up to {CONTROLLER_FAREWELL_SECONDS:g} s for that, of its pod's grace period.
  One that is killed (SIGKILL, out of memory, a lost node) cannot: for five minutes each claim is there twice. Take
  `max by (...)` over what comes from controllers before you sum.
- Each snapshot is pushed once, so that no point is there twice.
- A request holds at most {MAX_POINTS:,} points and {MAX_BYTES >> 20} MiB before compression, since gRPC servers take
  4 MiB.
- There is no limit on series, and none is remembered longer than until the next push.

## When the Collector does not take it

429, 502, 503, 504 and lost connections, over gRPC CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE,
DATA_LOSS, and RESOURCE_EXHAUSTED where it comes with RetryInfo, are tried again: after a second, then twice as long
each time up to {LONGEST_WAIT_SECONDS:g} s, or as long as the Collector asks (Retry-After, RetryInfo): until then
nothing is sent at all. What was not answered in time is tried again on a new connection, since the old one may be dead
without anybody having said so. After {RETRY_SECONDS:g} s a request is left out. Anything else is final for that
request, also a 2xx whose body is not `application/x-protobuf`: that is somebody else's page. Requests wait in a queue
of {QUEUE_BYTES >> 20} MiB and are sent {IN_FLIGHT} at a time; while the queue is full no more are made, and the next
push has the figures of its own moment. No scrape, sample or taint waits for any of it, and no fault of it ends the
process: the push begins anew (`..._otlp_restarts_total`).

`claimscope_agent_otlp_points_total{{result}}` (and `claimscope_controller_...`) says what became of every point:
`accepted`; `rejected` in a request that was taken in part (the Collector's reason is in the log); `refused` and
`expired` are lost. Alert on `rate(...{{result!="accepted"}}[15m]) > 0` and on the age of
`..._otlp_last_success_timestamp_seconds`.

## A Collector

```yaml
{_COLLECTOR}```

`k8sattributes` is not needed: claim and pod are on the points. Prometheus as the receiver needs
`--web.enable-otlp-receiver` and

```yaml
{_PROMETHEUS}```

Do not scrape and push into one backend without telling the two apart (`job`): every series would be there twice.

## Metrics and attributes

{_tables(table, families)}"""


def _same(table: OtelTable, families: Mapping[str, Family]) -> str:
    """How many families Prometheus' receiver gives their scraped name back."""
    same = sum(all(prometheus_name(table.metrics[name]) == family for name in table.names(family))
               for family in families)  # fmt: skip
    return f"{same} of {len(families)} families"


def _tables(table: OtelTable, families: Mapping[str, Family]) -> str:
    fed: dict[str, list[str]] = {}
    streams: dict[str, list[Stream]] = {}
    for family in (*families, STATUS):
        for name in table.names(family):
            fed.setdefault(name, []).append(HEALTH if family == STATUS else family)
            streams.setdefault(name, []).extend(table.streams(family))
    parts: list[str] = []
    for title, chosen in (
        ("Hardware conventions", [name for name in fed if name.startswith("hw.")]),
        ("Devices, claims and the cluster", [name for name in fed if name.startswith("dra.")]),
        ("claimscope itself", [name for name in fed if name.startswith("claimscope.")]),
    ):
        rows = "\n".join(_row(table, name, fed[name], streams[name]) for name in chosen)
        parts.append(f"### {title}\n\n| metric | instrument | unit | attributes | scraped as |\n"
                     f"|---|---|---|---|---|\n{rows}\n")  # fmt: skip
    return "\n".join(parts)


def _row(table: OtelTable, name: str, fed: Iterable[str], streams: Iterable[Stream]) -> str:
    metric = table.metrics[name]
    attributes = dict.fromkeys(
        attribute for stream in streams for attribute in (*stream.names.values(), *dict(stream.fixed))
    )
    monotonic = {Instrument.COUNTER: "sum", Instrument.UPDOWN: "sum, not monotonic"}
    kind = monotonic.get(metric.instrument, metric.instrument.value)
    return f"| `{name}` | {kind} | {metric.unit or '–'} | {_codes(attributes)} | {_codes(fed)} |"


def _codes(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values) or "–"
