"""What can be configured, within which bounds, and where a setting came from.

One table per part, the fields of `Config` (the agent) and of `ControllerConfig`: flags, environment variables, keys of
the YAML file, validation and docs/configuration.md all follow from them. Nothing here reads a file or the environment;
`claimscope.cli` hands both in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints, overload
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from claimscope.yamlfile import ConfigError, choices, did_you_mean, read_mapping

ENVIRONMENT_PREFIX = "CLAIMSCOPE_"
KUBELET_SOCKET = "/var/lib/kubelet/pod-resources/kubelet.sock"
SAMPLING_HZ_MAX = 20.0

Profile = Literal["h100x8", "a100x8-mig", "b200x8", "l40sx4", "a100x4-bridge"]
Collector = Literal["nvlink-per-link", "processes"]
Attribution = Literal["kubelet", "off"]
ApiServer = Literal["auto", "off"]
LeaderElection = Literal["on", "off"]
ClaimSeries = Literal["all", "essential", "off"]
Health = Literal["on", "off"]
TaintMode = Literal["observe", "announce", "enforce"]
DcgmFamilies = Literal["off", "on", "all"]
DcgmNames = Literal["dcgm-exporter", "dcgm-4.6", "both"]
DcgmHostnameLabel = Literal["Hostname", "hostname"]
OtlpProtocol = Literal["http/protobuf", "grpc"]
TaintWriter = Literal["controller", "local"]
WebAuthorization = Literal["off", "kubernetes"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

PROFILES: tuple[str, ...] = get_args(Profile)

_API_SERVER_URL = (
    "Base URL of an API server on this machine that wants no credentials, such as `kubectl proxy`: "
    "`http://127.0.0.1:8001`. Unset: as the kubeconfig or the pod says."
)

# Settings that the agent and the controller have alike.
WebConfigFile = Annotated[
    str | None,
    Meta(description="exporter-toolkit's web configuration file: TLS, client certificates, basic auth, headers, "
         "rate limit, as docs/serving.md says; read again when it changes. Unset: plain HTTP, open to everybody."),
]
Authorization = Annotated[
    WebAuthorization,
    Meta(description="Who may see the pages: `off`, whoever reaches them; `kubernetes`, bearers of tokens that the "
         "API server accepts, with rights as docs/authorization.md says."),
]
Audiences = Annotated[
    tuple[str, ...],
    Meta(description="With `--web-authorization=kubernetes`: only tokens meant for one of these audiences. Unset: "
         "those meant for the API server."),
]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent's settings. Every field is a flag, an environment variable and a key of the file."""

    web_listen_address: Annotated[
        str,
        Meta(description="Address that /metrics is served on: `:19400`, `127.0.0.1:19400` or `[::1]:19400`."),
    ] = ":19400"
    web_config_file: WebConfigFile = None
    web_authorization: Authorization = "off"
    web_authorization_audiences: Audiences = ()
    node_name: Annotated[
        str, Meta(description="Name of this Kubernetes node. Empty: the host name of the machine.")
    ] = ""
    sampling_hz: Annotated[
        float,
        Meta(ge=1, le=SAMPLING_HZ_MAX, description="Samples a second of power, utilization and the like."),
    ] = 10.0
    driver_time_budget_ratio: Annotated[
        float,
        Meta(gt=0, le=1, description="Time spent in driver calls per GPU above which sampling slows down by itself."),
    ] = 0.01
    hang_seconds: Annotated[
        float,
        Meta(ge=1, le=600, description="Seconds that one driver call may take before its sampler is given up."),
    ] = 3.0
    collectors: Annotated[
        tuple[Collector, ...],
        Meta(description="Collectors that are off unless named here; `processes` needs the host's pid namespace."),
    ] = ()
    nvml_library: Annotated[
        str | None,
        Meta(description="Path of libnvidia-ml.so.1. Unset: under --driver-root, else where the dynamic linker finds "
             "it."),
    ] = None
    driver_root: Annotated[
        str | None,
        Meta(description="Directory in which the root of the node's driver is mounted (/run/nvidia/driver, / or "
             "/home/kubernetes/bin/nvidia of the node): libnvidia-ml.so.1 is searched in it, and links are followed "
             "within it. Unset: the container runtime brings the library. See docs/install.md."),
    ] = None
    simulate: Annotated[
        Profile | None,
        Meta(description="Simulate a node with these GPUs, its kubelet and API server, instead of using real ones."),
    ] = None
    scenario: Annotated[
        str | None, Meta(description="YAML file of what happens in the simulation: XIDs, ECC errors, a lost GPU.")
    ] = None
    simulation_start_monotonic_ns: Annotated[
        int,
        Meta(ge=0, description="CLOCK_MONOTONIC in nanoseconds at which the simulation began, for several simulated "
             "nodes that share it. 0: when the agent started."),
    ] = 0
    attribution: Annotated[
        Attribution, Meta(description="Where holders of devices are learnt from; `off` serves devices only.")
    ] = "kubelet"
    pod_resources_socket: Annotated[
        str | None,
        Meta(description=f"The kubelet's pod-resources socket. Unset: `{KUBELET_SOCKET}`, or the simulated kubelet."),
    ] = None
    api_server: Annotated[
        ApiServer, Meta(description="Whether ResourceSlices are read from the API server; `auto`: where there is one.")
    ] = "auto"
    observer_namespaces: Annotated[
        tuple[str, ...],
        Meta(description="Namespaces whose claims only observe (adminAccess) and never hold a device; also known from "
             "the claims themselves where the agent may read them."),
    ] = ()
    kubeconfig: Annotated[
        str | None, Meta(description="Credentials for the API server outside a cluster. Unset: the pod's own.")
    ] = None
    api_server_url: Annotated[str | None, Meta(description=_API_SERVER_URL)] = None
    startup_jitter_seconds: Annotated[
        float,
        Meta(ge=0, le=600, description="Up to so many seconds, by chance, before the API server is first asked, since "
             "a thousand agents may start at once. Sampling, and one read of the agent's own Lease, do not wait; the "
             "Lease is first written after 60 s at the latest."),
    ] = 0.0
    lease_namespace: Annotated[
        str | None,
        Meta(description="Namespace of the Lease by which this agent shows that it is alive. Unset: the pod's own; "
             "empty: no Lease is written.", extra={"keeps_empty": True}),
    ] = None
    health: Annotated[Health, Meta(description="Whether the health of devices is judged.")] = "on"
    health_thresholds: Annotated[
        str | None,
        Meta(description="YAML file of thresholds, `startup_grace_seconds: 60`, in place of the defaults of "
             "docs/health.md; read again when it changes. Unset: the defaults."),
    ] = None
    kernel_log: Annotated[
        str | None,
        Meta(description="Kernel log to read beside NVML's events, `/dev/kmsg` as mounted from the host; a "
             "regular file is read as a recording, a record a line. Unset: none."),
    ] = None
    taint_writer: Annotated[
        TaintWriter,
        Meta(description="Who fences degraded GPUs of this node; `local`, for clusters without the controller: the "
             "agent itself, with the rights of deploy/manifests/rbac-agent-local.yaml and budgets of the node alone."),
    ] = "controller"
    taint_mode: Annotated[
        TaintMode, Meta(description="With `--taint-writer=local`: how far, as the controller's setting.")
    ] = "announce"
    taint_policy: Annotated[
        str | None,
        Meta(description="With `--taint-writer=local`: YAML file of modes and budgets, as the controller's setting."),
    ] = None
    state_file: Annotated[
        str, Meta(description="Journal that accounts survive a restart in. Empty: they do not.")
    ] = "/var/lib/claimscope/agent.json"
    control_socket: Annotated[
        str, Meta(description="Unix socket for `claimscope nvml` and `claimscope health`. Empty: none.")
    ] = "/run/claimscope/agent.sock"
    compat_dcgm: Annotated[
        DcgmFamilies,
        Meta(description="Whether /metrics also shows dcgm-exporter's families, as docs/dcgm.md says: `on` those that "
             "it has by default, `all` every one that there is a number for."),
    ] = "off"
    compat_dcgm_names: Annotated[
        DcgmNames,
        Meta(description="Names of those families: dcgm-exporter's own, those that DCGM 4.6 gave them, or both."),
    ] = "dcgm-exporter"
    compat_dcgm_hostname_label: Annotated[
        DcgmHostnameLabel,
        Meta(description="How the node's name is labelled in them: `Hostname` as up to dcgm-exporter 4.8.1 and in its "
             "dashboard, or `hostname` as since 4.8.2."),
    ] = "Hostname"
    otlp_endpoint: Annotated[
        str | None,
        Meta(description="OpenTelemetry Collector that metrics are pushed to: `http://HOST:4318`, with gRPC "
             "`http://HOST:4317`. Unset: as OTEL_EXPORTER_OTLP_ENDPOINT and the other standard variables say; empty: "
             "nothing is pushed.", extra={"keeps_empty": True}),
    ] = None
    otlp_protocol: Annotated[
        OtlpProtocol | None,
        Meta(description="How metrics are pushed. Unset: as OTEL_EXPORTER_OTLP_PROTOCOL says, else `http/protobuf`."),
    ] = None
    otlp_interval_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="Seconds between two pushes. 0: as OTEL_METRIC_EXPORT_INTERVAL says, else 60."),
    ] = 0.0
    log_level: Annotated[LogLevel, Meta(description="Least severe messages that are logged.")] = "info"
    log_format: Annotated[LogFormat, Meta(description="Form of log lines on standard error.")] = "text"

    @property
    def kubelet_socket(self) -> str:
        """The pod-resources socket of a real kubelet: as configured, else where every kubelet puts it."""
        return KUBELET_SOCKET if self.pod_resources_socket is None else self.pod_resources_socket

    @property
    def listen(self) -> tuple[str, int]:
        """Host (empty: every address) and port of the web server."""
        return split_address(self.web_listen_address)


class ControllerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The controller's settings, written as the agent's are."""

    web_listen_address: Annotated[
        str,
        Meta(description="Address that /metrics is served on: `:19401`, `127.0.0.1:19401` or `[::1]:19401`."),
    ] = ":19401"
    web_config_file: WebConfigFile = None
    web_authorization: Authorization = "off"
    web_authorization_audiences: Audiences = ()
    kubeconfig: Annotated[
        str | None, Meta(description="Credentials for the API server outside a cluster. Unset: the pod's own.")
    ] = None
    api_server_url: Annotated[str | None, Meta(description=_API_SERVER_URL)] = None
    namespace: Annotated[
        str,
        Meta(description="Namespace that holds the controller's Lease and those of the agents. Empty: the pod's own, "
             "outside a cluster `claimscope`."),
    ] = ""
    leader_election: Annotated[
        LeaderElection,
        Meta(description="Whether replicas agree by Lease on one that watches; `off` where there is only ever one."),
    ] = "on"
    lease_name: Annotated[str, Meta(description="Name of the Lease that the leader holds.")] = "claimscope-controller"
    identity: Annotated[
        str, Meta(description="Name of this replica in the Lease. Empty: the host name, in a pod the pod's name.")
    ] = ""
    lease_seconds: Annotated[
        int,
        Meta(ge=3, le=600, description="Whole seconds after which a leader that does not renew its Lease is replaced."),
    ] = 15
    claim_series: Annotated[
        ClaimSeries,
        Meta(description="Series per claim: `essential` leaves out all but info, state, devices and what calls for "
             "action; `off` leaves only claims that wait, or hold devices without running."),
    ] = "all"
    taint_mode: Annotated[
        TaintMode,
        Meta(description="How far degraded GPUs are fenced: `observe` writes nothing, `announce` writes taints that "
             "keep nobody away, conditions and Events, `enforce` keeps new work off unhealthy and lost GPUs. Lowered "
             "by itself where the cluster's version is not safe."),
    ] = "announce"
    taint_policy: Annotated[
        str | None,
        Meta(description="YAML file of budgets, and of modes per node group and rule; read again when it changes."),
    ] = None
    otlp_endpoint: Annotated[
        str | None,
        Meta(description="OpenTelemetry Collector that metrics are pushed to: `http://HOST:4318`, with gRPC "
             "`http://HOST:4317`. Unset: as OTEL_EXPORTER_OTLP_ENDPOINT and the other standard variables say; empty: "
             "nothing is pushed.", extra={"keeps_empty": True}),
    ] = None
    otlp_protocol: Annotated[
        OtlpProtocol | None,
        Meta(description="How metrics are pushed. Unset: as OTEL_EXPORTER_OTLP_PROTOCOL says, else `http/protobuf`."),
    ] = None
    otlp_interval_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="Seconds between two pushes. 0: as OTEL_METRIC_EXPORT_INTERVAL says, else 60."),
    ] = 0.0
    log_level: Annotated[LogLevel, Meta(description="Least severe messages that are logged.")] = "info"
    log_format: Annotated[LogFormat, Meta(description="Form of log lines on standard error.")] = "text"

    @property
    def listen(self) -> tuple[str, int]:
        """Host (empty: every address) and port of the web server."""
        return split_address(self.web_listen_address)


AnyConfig = Config | ControllerConfig
Built = TypeVar("Built", Config, ControllerConfig)


def check_loopback_url(text: str) -> str:
    """The base URL of an API server without credentials; raises ValueError where it is none, or on another machine."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"`{text}` is not http://HOST:PORT")
    if parts.hostname != "localhost" and parts.hostname != "::1" and not parts.hostname.startswith("127."):
        raise ValueError(
            f"`{parts.hostname}` is another machine, and this way carries no credentials: use --kubeconfig for it"
        )
    return text


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[v6]:port` or `:port`; raises ValueError with what is wrong."""
    host, colon, port_text = address.rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError(f"`{address}` is not host:port, [v6 address]:port or :port")
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
        raise ValueError(f"port `{port_text}` of `{address}` is not a number from 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One setting, as flags, environment, file and documentation show it."""

    key: str
    type: Any  # an annotated type, for msgspec
    default: Any
    description: str
    choices: tuple[str, ...]
    is_list: bool
    keeps_empty: bool  # an empty text is a value of its own; elsewhere it unsets what has no default
    lowest: str  # lower bound for people: "1", "just above 0"; empty: none
    highest: str

    @property
    def flag(self) -> str:
        """The command line's spelling."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment's spelling."""
        return ENVIRONMENT_PREFIX + self.key.upper()


def fields(of: type[AnyConfig] = Config) -> tuple[Field, ...]:
    """Every setting of a part, in the order of the documentation."""
    hints = get_type_hints(of, include_extras=True)
    made: list[Field] = []
    for info in msgspec.structs.fields(of):
        annotated = hints[info.name]
        bare, meta = get_args(annotated)
        lowest = "" if meta.ge is None else f"{meta.ge:g}"
        made.append(
            Field(
                key=info.name,
                type=annotated,
                default=info.default,
                description=meta.description,
                choices=choices(bare),
                is_list=get_origin(bare) is tuple,
                keeps_empty=bool((meta.extra or {}).get("keeps_empty")),
                lowest=lowest if meta.gt is None else f"just above {meta.gt:g}",
                highest=f"{meta.le:g}" if meta.le is not None else "",
            )
        )
    return tuple(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value as somebody wrote it, and where."""

    key: str
    value: object
    where: str  # "claimscope.yaml:3:1", "environment variable CLAIMSCOPE_SIMULATE", "--simulate"
    strict: bool  # values of the file have types of their own; elsewhere everything is text


def from_file(text: str, name: str, of: type[AnyConfig] = Config) -> Iterator[Setting]:
    """The settings of a YAML file; raises ConfigError with file, line and column."""
    found = read_mapping(text, name)
    if found is None:
        return
    known = {field.key: field for field in fields(of)}
    for key_node, value_node in found.pairs():
        key = key_node.value
        if key not in known:
            raise ConfigError(f"{found.at(key_node)}: unknown key `{key}`: {did_you_mean(key, tuple(known))}")
        value = found.values[key]
        if isinstance(value, bool) and known[key].choices and isinstance(value_node.value, str):
            value = value_node.value  # YAML 1.1 reads a bare `off` as false; here it is one of the words
        yield Setting(key=key, value=value, where=found.at(value_node), strict=True)


def from_environment(environment: Mapping[str, str], of: type[AnyConfig] = Config) -> Iterator[Setting]:
    """The settings of the environment. Other CLAIMSCOPE_ variables are left alone: a Service makes some."""
    for field in fields(of):
        value = environment.get(field.variable)
        if value is not None:
            yield Setting(
                key=field.key, value=value, where=f"environment variable {field.variable}", strict=False
            )


def from_flags(flags: Mapping[str, str | None], of: type[AnyConfig] = Config) -> Iterator[Setting]:
    """The settings of the command line; None stands for a flag that was not given."""
    for field in fields(of):
        value = flags.get(field.key)
        if value is not None:
            yield Setting(key=field.key, value=value, where=field.flag, strict=False)


def _bounds(field: Field) -> str:
    if field.lowest and field.highest:
        return f"{field.lowest} to {field.highest}"
    return field.lowest or field.highest


def _convert(setting: Setting, field: Field) -> object:
    value = setting.value
    if isinstance(value, str) and not setting.strict:
        if field.is_list:
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif value == "" and field.default is None and not field.keeps_empty:
            return None
    if field.choices:
        for word in value if isinstance(value, list) else [value]:
            if word not in field.choices and not (word is None and field.default is None):
                hint = did_you_mean(str(word), field.choices)
                raise ConfigError(f"{setting.where}: unknown value `{word}`: {hint}")
    try:
        converted: object = msgspec.convert(value, field.type, strict=setting.strict)
    except msgspec.ValidationError as error:
        if field.key == "sampling_hz" and _number(value) > SAMPLING_HZ_MAX:
            raise ConfigError(
                f"{setting.where}: {value} samples a second is above {SAMPLING_HZ_MAX:g}: "
                "for up to 100 for a while use `claimscope nvml burst`"
            ) from error
        if _bounds(field):
            raise ConfigError(f"{setting.where}: `{value}` is not a number from {_bounds(field)}") from error
        raise ConfigError(f"{setting.where}: `{value}`: {error}") from error
    if isinstance(converted, float) and converted != converted:
        raise ConfigError(f"{setting.where}: `{value}` is not a number from {_bounds(field)}")
    check = _CHECKS.get(field.key)
    if check is not None and isinstance(converted, str):
        try:
            check(converted)
        except ValueError as error:
            raise ConfigError(f"{setting.where}: {error}") from error
    return converted


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, str | int | float) else 0.0
    except ValueError:
        return 0.0


_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 label
_OBJECT_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def _check_namespace(text: str) -> None:
    if text and _NAMESPACE.fullmatch(text) is None:
        raise ValueError(f"`{text}` is no name of a namespace: up to 63 lower-case letters, digits and `-`")


def _check_object_name(text: str) -> None:
    if _OBJECT_NAME.fullmatch(text) is None:
        raise ValueError(f"`{text}` is no name of an object: up to 253 lower-case letters, digits, `-` and `.`")


def _check_absolute(text: str) -> None:
    if not text.startswith("/"):
        raise ValueError(f"`{text}` is no absolute path: write where it is mounted, such as /driver-root")


_CHECKS: Mapping[str, Callable[[str], object]] = {
    "driver_root": _check_absolute,
    "web_listen_address": split_address,
    "api_server_url": check_loopback_url,
    "namespace": _check_namespace,
    "lease_namespace": _check_namespace,
    "lease_name": _check_object_name,
}


@overload
def build(*layers: Iterator[Setting]) -> Config: ...
@overload
def build(*layers: Iterator[Setting], of: type[Built]) -> Built: ...
def build(*layers: Iterator[Setting], of: type[Any] = Config) -> AnyConfig:
    """The configuration that the layers add up to; a later layer wins. Raises ConfigError."""
    known = {field.key: field for field in fields(of)}
    where: dict[str, str] = {}
    values: dict[str, Any] = {}
    for layer in layers:
        for setting in layer:
            values[setting.key] = _convert(setting, known[setting.key])
            where[setting.key] = setting.where
    config: AnyConfig = of(**values)
    if config.api_server_url is not None and config.kubeconfig is not None:
        raise ConfigError(
            f"{where['api_server_url']}: --kubeconfig {config.kubeconfig} names an API server as well: leave one of "
            "them out"
        )
    if config.web_authorization_audiences and config.web_authorization == "off":
        raise ConfigError(
            f"{where['web_authorization_audiences']}: nobody's token is looked at: add --web-authorization=kubernetes"
        )
    if isinstance(config, Config):
        _check_agent(config, where)
    return config


def _check_agent(config: Config, where: Mapping[str, str]) -> None:
    if config.scenario is not None and config.simulate is None:
        raise ConfigError(f"{where['scenario']}: a scenario needs a simulated node: add --simulate PROFILE")
    if config.simulate is not None and config.nvml_library is not None:
        raise ConfigError(
            f"{where['nvml_library']}: --simulate {config.simulate} brings its own library: leave one of them out"
        )
    for other in ("simulate", "nvml_library"):
        if config.driver_root is not None and getattr(config, other) is not None:
            flag = f"--{other.replace('_', '-')} {getattr(config, other)}"
            raise ConfigError(f"{where['driver_root']}: {flag} names a library as well: leave one of them out")
    if config.web_authorization == "kubernetes" and config.api_server == "off":
        raise ConfigError(
            f"{where['web_authorization']}: there is no API server to ask with --api-server off: leave one of them out"
        )
    if config.taint_writer == "local":
        _check_local_writer(config, where)
        return
    for key in ("taint_mode", "taint_policy"):
        if key in where:
            raise ConfigError(
                f"{where[key]}: the agent fences nothing here: give it to the controller, or add --taint-writer=local"
            )


def _check_local_writer(config: Config, where: Mapping[str, str]) -> None:
    for off, flag in ((config.health, "--health"), (config.api_server, "--api-server")):
        if off == "off":
            raise ConfigError(f"{where['taint_writer']}: nothing can be fenced with {flag} off: leave one of them out")


def complete(config: Config, host_name: str, own_namespace: str) -> Config:
    """The same configuration with what was left to the surroundings; `own_namespace` is empty outside of a pod."""
    lease_namespace = own_namespace if config.lease_namespace is None else config.lease_namespace
    return msgspec.structs.replace(config, node_name=config.node_name or host_name, lease_namespace=lease_namespace)


def complete_controller(config: ControllerConfig, host_name: str, own_namespace: str) -> ControllerConfig:
    """The same for the controller; a pod's host name is the pod's name."""
    return msgspec.structs.replace(
        config, identity=config.identity or host_name, namespace=config.namespace or own_namespace or "claimscope"
    )


def _default_text(field: Field) -> str:
    match field.default:
        case None | ():
            return "unset"
        case "":
            return "empty"
        case float() as number:
            return f"`{number:g}`"
        case other:
            return f"`{other}`"


def _values_text(field: Field) -> str:
    if field.choices:
        words = ", ".join(f"`{choice}`" for choice in field.choices)
        return f"any of {words}" if field.is_list else words
    return _bounds(field)


def _table(of: type[AnyConfig]) -> str:
    rows = "\n".join(
        f"| `{field.flag}` | {_default_text(field)} | {_values_text(field)} | {field.description} |"
        for field in fields(of)
    )
    return f"| flag | default | values | meaning |\n|---|---|---|---|\n{rows}\n"


def document() -> str:
    """docs/configuration.md, whole."""
    return f"""\
<!-- Written by `make docs` from exporter/claimscope/config.py. -->
# Configuration

Every setting is a flag (`--sampling-hz 5`), an environment variable (`CLAIMSCOPE_SAMPLING_HZ=5`) and a key of the
YAML file that `--config FILE` or `CLAIMSCOPE_CONFIG` names (`sampling_hz: 5`). A flag wins over the environment, the
environment over the file. A list is written with commas in flags and variables. An unknown flag, key or value is an
error that names its place; the exit code is then 2.

## Agent

`claimscope agent` and `claimscope doctor` take these.

{_table(Config)}
## Controller

`claimscope controller` and `claimscope doctor controller` take these.

{_table(ControllerConfig)}"""
