"""Where are metrics pushed, how, and in whose name? The settings of ours and the standard variables, read once.

Variables: https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. Those for metrics alone win over
those for all signals; an empty one counts as not set. As those pages want it, a word or number that means nothing here
is warned of and left out, while what would send to a wrong place or without credentials is an error. Nothing is looked
at before an endpoint is known. Nothing of a header that is not understood is ever shown, nor are credentials in a URL.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from claimscope.yamlfile import ConfigError

logger = logging.getLogger(__name__)

HTTP, GRPC = "http/protobuf", "grpc"
METRICS_PATH = "/v1/metrics"
TIMEOUT_SECONDS = 10.0
INTERVAL_SECONDS = 60.0
SHORTEST_INTERVAL_SECONDS = 0.1

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_GRPC_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")  # grpc- is gRPC's own, and values of -bin are bytes
_OWN_HEADERS = frozenset({  # that the request itself needs
    "connection", "content-encoding", "content-length", "content-type", "te", "transfer-encoding",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files; None stands for the system's authorities, and for no certificate of our own."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those that there are."""
        return tuple(path for path in (self.authorities, self.certificate, self.key) if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSettings:
    """Everything about a push but the metrics."""

    endpoint: str  # URL of the metrics for HTTP, host:port for gRPC
    protocol: str  # HTTP or GRPC
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout_seconds: float = TIMEOUT_SECONDS  # of one attempt
    gzip: bool = True
    tls: TlsFiles | None = None  # None: not encrypted
    interval_seconds: float = INTERVAL_SECONDS
    service_name: str | None = None
    resource: Mapping[str, str] = field(default_factory=dict)  # added to what is known here, or in its place


class _Variables:
    """The environment, with the place of each value for messages."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def get(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def otlp(self, name: str) -> tuple[str, str] | None:
        """Name and value of OTEL_EXPORTER_OTLP_METRICS_<name>, or of the one for all signals."""
        for variable in (f"OTEL_EXPORTER_OTLP_METRICS_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
            value = self.get(variable)
            if value is not None:
                return variable, value
        return None

    def path(self, name: str) -> Path | None:
        found = self.otlp(name)
        if found is None:
            return None
        variable, value = found
        if not Path(value).is_file():
            raise ConfigError(f"environment variable {variable}: there is no file {value}")
        return Path(value)

    def milliseconds(self, variable: str, value: str) -> float | None:
        """Seconds; None for what is no such number."""
        if not (value.isascii() and value.isdecimal()) or not 1 <= int(value) <= 86_400_000:
            self.ignored(variable, f"{value!a} is not a number of milliseconds above 0")
            return None
        return int(value) / 1000

    def word(self, variable: str, value: str, *known: str) -> str | None:
        """One of the known words, None for another."""
        if value.lower() in known:
            return value.lower()
        self.ignored(variable, f"unknown value {value!a}; known are {', '.join(known)}")
        return None

    def flag(self, variable: str, value: str) -> bool:
        """Only `true` is true."""
        return self.word(variable, value, "true", "false") == "true"

    def ignored(self, variable: str, why: str) -> None:
        logger.warning("environment variable %s is ignored: %s", variable, why)

    def pairs(self, variable: str, value: str) -> list[tuple[str, str, str]]:
        """`a=b,c=d` with values percent-encoded, as W3C baggage has it, each with its place for messages. Messages show
        no key either: `Authorization: Basic cGFzcw==` is all key up to its first `=`."""
        made: list[tuple[str, str, str]] = []
        for number, part in enumerate(value.split(","), 1):
            where = f"environment variable {variable}: entry {number}"
            key, equals, text = part.partition("=")
            key, text = unquote(key.strip()), unquote(text.strip())
            if not _is_utf8(key + text):
                raise ConfigError(f"{where} is not UTF-8")
            if not part.strip():
                continue
            if not equals or not key:
                raise ConfigError(f"{where} is not KEY=VALUE")
            if any(ord(char) < 32 or ord(char) == 127 for char in key + text):
                raise ConfigError(f"{where} has a control character, perhaps the line break at the end of a file")
            made.append((where, key, text))
        return made


def read(
    environ: Mapping[str, str], *, endpoint: str | None = None, protocol: str | None = None,
    interval_seconds: float = 0.0,
) -> OtlpSettings | None:
    """The settings of a push, None where nothing is to be pushed. What is given (an interval of 0 is none) wins over
    variables.

    An empty endpoint stands for no push, whatever the variables say. Raises ConfigError.
    """
    variables = _Variables(environ)
    where, given, whole = _endpoint(variables, endpoint)
    if not given:
        return None
    off = _off(variables)
    if off:
        if endpoint is not None:
            logger.warning("nothing is pushed to --otlp-endpoint: the environment has %s", off)
        return None
    chosen = protocol or _protocol(variables)
    _only_cumulative(variables)
    url, encrypted = _url(variables, where, given, grpc=chosen == GRPC)
    resource = _resource(variables)
    name = variables.get("OTEL_SERVICE_NAME")
    if name is not None and not _is_utf8(name):
        variables.ignored("OTEL_SERVICE_NAME", "it is not UTF-8")
        name = None
    return OtlpSettings(
        endpoint=_grpc_target(where, url) if chosen == GRPC else _http_url(url, whole=whole),
        protocol=chosen,
        headers=_headers(variables, grpc=chosen == GRPC),
        timeout_seconds=_timeout(variables),
        gzip=_gzip(variables),
        tls=_tls(variables) if encrypted else None,
        interval_seconds=_interval(variables, interval_seconds),
        service_name=name or resource.pop("service.name", None),
        resource=MappingProxyType(resource),
    )


def _is_utf8(text: str) -> bool:
    """False for what came from bytes of the environment that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _off(variables: _Variables) -> str:
    """The variable that turns the push off; empty where none does."""
    disabled = variables.get("OTEL_SDK_DISABLED")
    if disabled is not None and variables.flag("OTEL_SDK_DISABLED", disabled):
        return "OTEL_SDK_DISABLED=true"
    exporter = variables.get("OTEL_METRICS_EXPORTER")
    # `prometheus` and `console` are the business of other parts, and no reason not to start.
    if exporter is not None and "otlp" not in [word.strip() for word in exporter.split(",")]:
        return f"OTEL_METRICS_EXPORTER={exporter!a}"
    return ""


def _endpoint(variables: _Variables, endpoint: str | None) -> tuple[str, str | None, bool]:
    """Where it stands, what stands there, and whether it is the URL of the metrics and not that of all signals."""
    if endpoint is not None:
        return "--otlp-endpoint", endpoint.strip(), False
    found = variables.otlp("ENDPOINT")
    if found is None:
        return "", None, False
    variable, value = found
    return f"environment variable {variable}", value, "METRICS" in variable


def _protocol(variables: _Variables) -> str:
    found = variables.otlp("PROTOCOL")
    return HTTP if found is None else variables.word(*found, HTTP, GRPC) or HTTP


def _only_cumulative(variables: _Variables) -> None:
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    preferred = variables.get(name)
    if preferred is not None and preferred.lower() != "cumulative":
        variables.ignored(
            name, f"only `cumulative` is pushed, not {preferred!a}; the Collector's cumulativetodelta processor makes "
            "deltas of it"
        )  # fmt: skip


def _url(variables: _Variables, where: str, given: str, *, grpc: bool) -> tuple[SplitResult, bool]:
    """The endpoint in parts, and whether it is encrypted."""
    text = given
    if grpc and "://" not in given:
        insecure = variables.otlp("INSECURE")
        plain = insecure is not None and variables.flag(*insecure)
        text = ("http://" if plain else "https://") + given
    hint = "http://HOST:PORT, https://HOST:PORT" + (" or HOST:PORT" if grpc else "")
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise ConfigError(f"{where}: not {hint}") from None  # what it says may quote a password
    if url.username is not None or url.password is not None:
        raise ConfigError(f"{where}: credentials do not belong there: use OTEL_EXPORTER_OTLP_HEADERS")
    if url.scheme not in ("http", "https") or not url.hostname:
        # Before an @ stand credentials, and what follows a ? or # may be one.
        shown = "the value" if set(given) & set("@?#") else f"`{given}`"
        raise ConfigError(f"{where}: {shown} is not {hint}")
    return url, url.scheme == "https"


def _http_url(url: SplitResult, *, whole: bool) -> str:
    path = url.path
    if not whole and not path.rstrip("/").endswith(METRICS_PATH):
        path = path.rstrip("/") + METRICS_PATH
    return urlunsplit((url.scheme, url.netloc, path or "/", url.query, ""))


def _grpc_target(where: str, url: SplitResult) -> str:
    if url.path not in ("", "/") or url.query:
        raise ConfigError(
            f"{where}: gRPC has no path: leave what follows the port out, or use --otlp-protocol http/protobuf"
        )
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{host}:{url.port or (443 if url.scheme == 'https' else 80)}"


def _headers(variables: _Variables, *, grpc: bool) -> tuple[tuple[str, str], ...]:
    found = variables.otlp("HEADERS")
    if found is None:
        return ()
    made: list[tuple[str, str]] = []
    for where, given, value in variables.pairs(*found):
        key = given.lower()
        if (_GRPC_KEY if grpc else _TOKEN).fullmatch(key) is None:
            raise ConfigError(
                f"{where} does not begin with the name of a header that can be set; its form is NAME=VALUE, with an "
                "equals sign and not a colon between the two"
            )
        if key in _OWN_HEADERS:
            raise ConfigError(f"{where}: `{key}` is set by the push itself: leave it out")
        if not value.isascii():
            raise ConfigError(f"{where} has a value that is not ASCII")
        made.append((key, value))
    return tuple(made)


def _timeout(variables: _Variables) -> float:
    found = variables.otlp("TIMEOUT")
    return TIMEOUT_SECONDS if found is None else variables.milliseconds(*found) or TIMEOUT_SECONDS


def _interval(variables: _Variables, given_seconds: float) -> float:
    name = "OTEL_METRIC_EXPORT_INTERVAL"
    if given_seconds:
        if given_seconds < SHORTEST_INTERVAL_SECONDS:
            raise ConfigError(f"--otlp-interval-seconds: less than {SHORTEST_INTERVAL_SECONDS:g} s between two pushes")
        return given_seconds
    value = variables.get(name)
    seconds = None if value is None else variables.milliseconds(name, value)
    if seconds is not None and seconds < SHORTEST_INTERVAL_SECONDS:
        variables.ignored(name, f"less than {SHORTEST_INTERVAL_SECONDS:g} s between two pushes")
        seconds = None
    return seconds or INTERVAL_SECONDS


def _gzip(variables: _Variables) -> bool:
    found = variables.otlp("COMPRESSION")
    return found is None or variables.word(*found, "gzip", "none") != "none"


def _tls(variables: _Variables) -> TlsFiles:
    tls = TlsFiles(
        authorities=variables.path("CERTIFICATE"), certificate=variables.path("CLIENT_CERTIFICATE"),
        key=variables.path("CLIENT_KEY"),
    )  # fmt: skip
    if (tls.certificate is None) != (tls.key is None):
        raise ConfigError(
            "environment: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY belong together: "
            "set both or none"
        )
    return tls


def _resource(variables: _Variables) -> dict[str, str]:
    """The attributes; the whole variable is left out where one of them cannot be read, as its specification says."""
    name = "OTEL_RESOURCE_ATTRIBUTES"
    value = variables.get(name)
    try:
        return {} if value is None else {key: text for _, key, text in variables.pairs(name, value)}
    except ConfigError as error:
        logger.warning("%s; the whole variable is ignored", error)
        return {}
