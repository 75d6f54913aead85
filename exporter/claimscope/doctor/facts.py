"""What is there on this machine, and what does the API server answer? Looking changes nothing.

Rights are those of whoever runs it: in a pod its service account's, with a kubeconfig that user's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec

from claimscope.clock import SystemClock
from claimscope.config import Config, ControllerConfig
from claimscope.doctor import machine
from claimscope.doctor.gpu import GpuFacts
from claimscope.doctor.privileges import Privileges
from claimscope.doctor.web import WebFacts, web_facts
from claimscope.health.kmsg import KernelLogError, open_kernel_log, parse_record
from claimscope.health.sources import read_thresholds
from claimscope.kube import rights
from claimscope.kube.api import ApiClient, ApiError, access_source
from claimscope.kube.rights import Denied, Need
from claimscope.nvml.probe import Probe
from claimscope.taints import guard
from claimscope.taints.guard import Allowed
from claimscope.taints.model import Mode
from claimscope.taints.policy import NodeTaints, Policy, read_policy
from claimscope.taints.sources import PolicySource
from claimscope.yamlfile import ConfigError, read_file

_PROBE_SECONDS = 20.0  # longer than a slow nvmlInit without persistence mode; a hung driver answers never
_CONNECT_SECONDS = 3.0
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h
_KMSG_DEVICE = os.makedev(1, 11)  # Documentation/admin-guide/devices.txt of Linux
_RECORD_BYTES = 8192  # of a kernel log at most, CONSOLE_EXT_LOG_MAX of Linux
_API_SECONDS = 10.0
_SERVER = "claimscope"  # how claimscope.web calls itself in each answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAccess:
    """How the API server would be reached."""

    source: str | None  # "kubeconfig PATH", "service account"; None: there is nothing to reach it with
    error: str | None = None
    allowed: Allowed | None = None  # how far fencing may go there; None: not asked
    denied: tuple[Denied, ...] | None = None  # what may not be done there; None: not asked


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLogFacts:
    """What the configured kernel log is."""

    error: str | None = None  # why it cannot be read, and the cure
    denied: int | None = None  # EPERM or EACCES of opening it
    is_device: bool = True  # the kernel's own, and no file
    has_records: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything the checks look at."""

    config: Config
    nvml: Probe
    kubelet_error: int | None  # errno of connecting to the socket; None: it answered
    api: ApiAccess
    state_error: int | None  # errno of writing beside the journal
    control_error: int | None
    port_error: int | None  # errno of binding the address
    port_is_ours: bool = False  # claimscope itself serves there
    web: WebFacts = field(default_factory=WebFacts)
    host_pids: bool
    gpu: GpuFacts
    privileges: Privileges
    kernel_log: KernelLogFacts | None = None  # None: none is configured
    thresholds_error: str | None = None
    policy_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerFacts:
    """What the controller's checks look at."""

    config: ControllerConfig
    api: ApiAccess
    policy_error: str | None = None
    web: WebFacts = field(default_factory=WebFacts)


async def gather(config: Config, environment: Mapping[str, str]) -> Facts:
    """Looks at this machine; changes nothing."""
    local = config.taint_writer == "local"
    port_error = _bind_error(*config.listen)
    return Facts(
        config=config,
        nvml=await probe_nvml(config.nvml_library, config.driver_root, seconds=_PROBE_SECONDS),
        kubelet_error=await _connect_error(config.kubelet_socket),
        api=await api_access(config, environment),
        state_error=_write_error(config.state_file),
        control_error=_write_error(config.control_socket),
        port_error=port_error,
        port_is_ours=port_error == errno.EADDRINUSE and await serves_claimscope(*config.listen),
        web=_web(config),
        host_pids=_read_link("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE,
        gpu=machine.gpu_facts(config.driver_root, environment),
        privileges=machine.privileges(environment),
        kernel_log=None if config.kernel_log is None else kernel_log_facts(Path(config.kernel_log)),
        thresholds_error=file_error(config.health_thresholds, read_thresholds),
        policy_error=_policy_error(config.taint_policy) if local else None,
    )


async def gather_controller(config: ControllerConfig, environment: Mapping[str, str]) -> ControllerFacts:
    """Looks at the cluster as the controller would; changes nothing."""
    error = _policy_error(config.taint_policy)
    policy = Policy(mode=Mode(config.taint_mode))
    if error is None:
        policy = PolicySource(_path(config.taint_policy), policy.mode).current(SystemClock().wall_ns() / 1e9)
    return ControllerFacts(
        config=config, api=await _ask_cluster(
            config, environment, _needs(policy, config.web_authorization), config.namespace, config.lease_name
        ),
        policy_error=error,
        web=_web(config),
    )


def _web(config: Config | ControllerConfig) -> WebFacts:
    return web_facts(config.web_config_file, config.web_authorization, SystemClock().wall_ns() / 1e9)


def _needs(policy: Policy, authorization: str = "off") -> Iterator[Need]:
    """What a controller with this policy must be allowed to do."""
    yield from rights.CONTROLLER
    if policy.mode is not Mode.OBSERVE or policy.groups or policy.rules:
        yield from rights.CONTROLLER_FENCING
    if policy.node_taints is not NodeTaints.NONE:
        yield from rights.CONTROLLER_NODE_TAINTS
    if authorization == "kubernetes":
        yield from rights.REVIEWS


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _read_policy(text: bytes, name: str) -> Policy:
    return read_policy(text, name, SystemClock().wall_ns() / 1e9)


def _policy_error(path: str | None) -> str | None:
    return file_error(path, _read_policy)


def file_error(path: str | None, read: Callable[[bytes, str], object]) -> str | None:
    """Why a file of settings cannot be used."""
    if path is None:
        return None
    try:
        read(read_file(Path(path)), path)
    except OSError as error:
        return f"{path}: {os.strerror(error.errno or errno.EIO).lower()}"
    except ConfigError as error:
        return str(error)
    return None


def kernel_log_facts(path: Path) -> KernelLogFacts:
    """What stands at a path that is said to be a kernel log."""
    try:
        descriptor = open_kernel_log(path, from_start=True)
    except KernelLogError as error:
        denied = error.errno if error.errno in (errno.EPERM, errno.EACCES) else None
        return KernelLogFacts(error=error.strerror, denied=denied)
    try:
        found = os.fstat(descriptor)
        is_device = stat.S_ISCHR(found.st_mode) and found.st_rdev == _KMSG_DEVICE
        record = parse_record(os.read(descriptor, _RECORD_BYTES))
    except BlockingIOError:
        return KernelLogFacts(is_device=is_device)  # it is empty
    except BrokenPipeError:
        return KernelLogFacts(is_device=is_device)  # the ring overtook us: it is one
    except OSError as error:
        return KernelLogFacts(error=f"{path} cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)
    return KernelLogFacts(is_device=is_device, has_records=record is not None)


async def probe_nvml(library: str | None, driver_root: str | None = None, *, seconds: float) -> Probe:
    """Asks NVML in a child process, because a broken driver can hang or crash whoever calls it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "claimscope.nvml.probe",
        library or "",
        driver_root or "",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(), seconds)
    except TimeoutError:
        child.kill()
        # Not awaited for long: a child inside a hung driver call cannot die before the call returns.
        return Probe(error=f"the driver did not answer within {seconds:g} s: look for XID 119 or 120 in dmesg")
    if child.returncode != 0:
        last = err.decode(errors="replace").strip().splitlines()
        said = f" ({last[-1]})" if last else ""
        return Probe(error=f"the NVML library ended its process with status {child.returncode}{said}")
    try:
        return msgspec.json.decode(out, type=Probe)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        return Probe(error=f"the NVML probe said something else than expected: {error}")


def _read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


async def _connect_error(path: str) -> int | None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return errno.ENOTSOCK
        _, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), _CONNECT_SECONDS)
    except TimeoutError:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno or errno.EIO
    writer.close()
    return None


async def api_access(config: Config, environment: Mapping[str, str]) -> ApiAccess:
    """What the API server answers to this agent."""
    if config.api_server == "off":
        return ApiAccess(source=None)
    if config.kubeconfig is None and config.api_server_url is None and "KUBERNETES_SERVICE_HOST" not in environment:
        return ApiAccess(source=None)
    needs = rights.AGENT + (rights.AGENT_LOCAL if config.taint_writer == "local" else ())
    if not config.lease_namespace:
        needs = tuple(need for need in needs if need.namespace != rights.OWN)
    if config.web_authorization == "kubernetes":
        needs += rights.REVIEWS
    return await _ask_cluster(config, environment, needs, config.lease_namespace or "")


async def _ask_cluster(
    config: Config | ControllerConfig, environment: Mapping[str, str], needs: Iterable[Need], namespace: str,
    election: str = "",
) -> ApiAccess:
    """What the API server answers to whoever the settings make us."""
    source = "service account"
    if config.api_server_url is not None:
        source = f"URL {config.api_server_url}"
    elif config.kubeconfig is not None:
        source = f"kubeconfig {config.kubeconfig}"
    try:
        api = ApiClient(
            access_source(config.kubeconfig, config.api_server_url, environment, SystemClock()), timeout=_API_SECONDS
        )
    except ApiError as error:
        return ApiAccess(source=source, error=str(error))
    try:
        allowed = await guard.examine(api)
        denied = await rights.missing(api, needs, namespace, election)
    except ApiError as error:
        return ApiAccess(source=source, error=str(error))
    finally:
        await api.close()
    return ApiAccess(source=source, allowed=allowed, denied=denied)


def _write_error(path: str) -> int | None:
    """The errno of making a file at `path`, found without making one."""
    if not path:
        return None
    directory = Path(path).absolute().parent
    while not directory.exists():
        directory = directory.parent
    if not directory.is_dir():
        return errno.ENOTDIR
    if not os.access(directory, os.W_OK | os.X_OK):
        return errno.EROFS if os.statvfs(directory).f_flag & os.ST_RDONLY else errno.EACCES
    return None


async def serves_claimscope(host: str, port: int) -> bool:
    """Whether what listens there is claimscope: `/livez` is open to everybody, and the answer names its server.

    Where client certificates are asked for nobody can tell.
    """
    unverified = ssl.create_default_context()
    unverified.check_hostname = False  # the certificate is of the name that scrapers use, not of this address
    unverified.verify_mode = ssl.CERT_NONE
    where = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # nothing is bound
    authority = f"[{where}]:{port}" if ":" in where else f"{where}:{port}"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CONNECT_SECONDS)) as asker:
        for scheme in ("http", "https"):
            try:
                async with asker.get(f"{scheme}://{authority}/livez", ssl=unverified) as answer:
                    return answer.status == 200 and answer.headers.get("Server") == _SERVER
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue  # speaks the other, or neither
    return False


def _bind_error(host: str, port: int) -> int | None:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
    except OSError as error:
        return errno.EADDRNOTAVAIL if isinstance(error, socket.gaierror) else error.errno
    return None
