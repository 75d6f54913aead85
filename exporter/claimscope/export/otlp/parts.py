"""What does each part push, and in whose name? The pushers of the agent and of the controller."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from claimscope.claims.model import ClusterSnapshot
from claimscope.clock import Clock
from claimscope.config import Config, ControllerConfig
from claimscope.export.cluster import ClusterCollector
from claimscope.export.collect import Collector
from claimscope.export.otlp.cluster import ClusterEncoder
from claimscope.export.otlp.encode import Batch, Encoder
from claimscope.export.otlp.push import FAREWELL_SECONDS, Pusher
from claimscope.export.otlp.settings import OtlpSettings, read
from claimscope.export.otlp.transport import TlsError, open_transport
from claimscope.export.otlp.wire import Envelope
from claimscope.metrics import controller, own
from claimscope.metrics.otel import SCHEMA_URL, OtelTable, hardware_status
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Sample, Snapshot
from claimscope.yamlfile import ConfigError

# Counted on from the journal of a process before, which does not tell when it began.
CARRIED_OVER = frozenset({"gpu_xid_errors_total"})
# A replica that goes ends the series of 100,000 claims, which the next one shows under its own name. A pod has 30 s.
CONTROLLER_FAREWELL_SECONDS = 15.0

T = TypeVar("T")


def agent_pusher(
    config: Config, environ: Mapping[str, str], snapshot: Callable[[], Snapshot | None], collector: Collector,
    clock: Clock,
) -> Pusher | None:
    """The agent's pusher; None where nothing is to be pushed. Raises ConfigError."""
    settings = _settings(config, environ)
    if settings is None:
        return None
    who = {"service.instance.id": config.node_name, "host.name": config.node_name, "k8s.node.name": config.node_name}
    encoder = Encoder(
        OtelTable(collector.families, QUANTITIES), _envelope(settings, "claimscope-agent", who),
        began_ns=clock.wall_ns(), carried_over=CARRIED_OVER,
    )  # fmt: skip

    def requests(present: Snapshot) -> Iterator[Batch]:
        samples = collector.collect(present)
        return encoder.requests([*samples, *hardware_status(samples)], present.wall_ns)

    return _pusher(settings, of_new(snapshot, requests), clock, own.own)


def controller_pusher(
    config: ControllerConfig, environ: Mapping[str, str], snapshot: Callable[[], ClusterSnapshot | None],
    collector: ClusterCollector, clock: Clock,
) -> Pusher | None:
    """The controller's pusher likewise."""
    settings = _settings(config, environ)
    if settings is None:
        return None
    table = OtelTable(collector.families)
    envelope = _envelope(settings, "claimscope-controller", controller_resource(config, environ))
    encoder = ClusterEncoder(collector, table, Encoder(table, envelope, began_ns=clock.wall_ns()))
    return _pusher(
        settings, of_new(snapshot, encoder.requests), clock, controller.own, CONTROLLER_FAREWELL_SECONDS
    )


def controller_resource(config: ControllerConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Who the controller is; its pod only inside of one, whose name is the host name unless POD_NAME says it."""
    found = {"service.instance.id": environ.get("POD_UID") or config.identity}
    if "KUBERNETES_SERVICE_HOST" in environ:
        names = {"k8s.namespace.name": environ.get("POD_NAMESPACE") or config.namespace,
                 "k8s.pod.name": environ.get("POD_NAME") or environ.get("HOSTNAME"),
                 "k8s.pod.uid": environ.get("POD_UID")}  # fmt: skip
        found |= {key: value for key, value in names.items() if value}
    return found


def of_new(snapshot: Callable[[], T | None], requests: Callable[[T], Iterator[Batch]]
            ) -> Callable[[], Iterator[Batch] | None]:  # fmt: skip
    """The requests of snapshots that were not pushed yet: points may not be there twice."""
    pushed: T | None = None

    def of_newest() -> Iterator[Batch] | None:
        nonlocal pushed
        present = snapshot()
        if present is None or present is pushed:
            return None
        pushed = present
        return requests(present)

    return of_newest


def _settings(config: Config | ControllerConfig, environ: Mapping[str, str]) -> OtlpSettings | None:
    return read(
        environ, endpoint=config.otlp_endpoint, protocol=config.otlp_protocol,
        interval_seconds=config.otlp_interval_seconds,
    )  # fmt: skip


def _envelope(settings: OtlpSettings, name: str, who: Mapping[str, str]) -> Envelope:
    """The resource; what the variables say wins over what is known here."""
    version = importlib.metadata.version("claimscope")
    resource = {"service.name": name, "service.version": version, **who, **settings.resource}
    if settings.service_name is not None:
        resource["service.name"] = settings.service_name
    return Envelope(resource, scope="claimscope", version=version, schema_url=SCHEMA_URL)


def _pusher(
    settings: OtlpSettings, requests: Callable[[], Iterator[Batch] | None], clock: Clock, own: Callable[..., Sample],
    farewell_seconds: float = FAREWELL_SECONDS,
) -> Pusher:
    try:
        transport = open_transport(settings)
    except TlsError as error:
        raise ConfigError(f"environment: OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE, _CLIENT_KEY: {error}"
                          ) from error
    return Pusher(
        requests=requests, transport=transport, interval_seconds=settings.interval_seconds, clock=clock, own=own,
        destination=settings.endpoint.partition("?")[0],  # a query may be a secret
        farewell_seconds=farewell_seconds,
    )  # fmt: skip
