"""Which of the agent's needs are met on this node, and how is each of the others cured?

`gather` looks at the machine and returns `Facts`; the checks are pure functions over them, one row each.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from claimscope.config import Config
from claimscope.nvml.probe import Probe

_PROBE_SECONDS = 20.0  # longer than a slow nvmlInit without persistence mode; a hung driver answers never
_CONNECT_SECONDS = 3.0
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h
_MIG_MONITOR = Path("/proc/driver/nvidia/capabilities/mig/monitor")


class Verdict(enum.Enum):
    """How bad it is: a warning costs one ability, a failure the device layer."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAccess:
    """How the API server would be reached."""

    source: str | None  # "kubeconfig PATH", "service account"; None: there is nothing to reach it with
    error: str | None = None


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
    host_pids: bool
    mig_monitor: bool  # the right to read MIG devices that were not handed to this container


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's answer."""

    name: str
    verdict: Verdict
    found: str
    cure: str = ""

    @property
    def line(self) -> str:
        """As a person reads it."""
        cure = f": {self.cure}" if self.cure else ""
        return f"{self.verdict.value:4}  {self.name:12}  {self.found}{cure}"


def _ok(name: str, found: str) -> Finding:
    return Finding(name=name, verdict=Verdict.OK, found=found)


def _reason(number: int) -> str:
    return os.strerror(number).lower()


def _nvml(facts: Facts) -> Finding:
    if facts.nvml.error is not None:
        return Finding(name="nvml", verdict=Verdict.FAIL, found=facts.nvml.error)
    return _ok("nvml", f"driver {facts.nvml.driver_version or 'of unknown version'}")


def _devices(facts: Facts) -> Finding:
    if facts.nvml.error is not None:
        return Finding(name="devices", verdict=Verdict.FAIL, found="not known without NVML")
    if not facts.nvml.devices and not facts.nvml.lost:
        cure = "check `nvidia-smi -L` on the node, and NVIDIA_VISIBLE_DEVICES=all in a container"
        return Finding(name="devices", verdict=Verdict.FAIL, found="NVML shows no GPU", cure=cure)
    models = sorted({device.model or "a GPU without a name" for device in facts.nvml.devices})
    if facts.nvml.lost:
        uuid, why = next(iter(facts.nvml.lost.items()))
        more = f" and {len(facts.nvml.lost) - 1} more" if len(facts.nvml.lost) > 1 else ""
        return Finding(name="devices", verdict=Verdict.FAIL, found=f"{uuid}{more}: {why}")
    return _ok("devices", f"{len(facts.nvml.devices)} x {', '.join(models)}")


def _mig(facts: Facts) -> Finding:
    if facts.nvml.error is not None:
        return Finding(name="mig", verdict=Verdict.WARN, found="not known without NVML")
    cut = sum(device.mig_enabled for device in facts.nvml.devices)
    if cut == 0:
        return _ok("mig", "no GPU has MIG switched on")
    if not facts.mig_monitor:
        cure = "set NVIDIA_MIG_MONITOR_DEVICES=all and run the container as uid 0"
        found = f"{cut} GPUs have MIG switched on, {_MIG_MONITOR} may not be read"
        return Finding(name="mig", verdict=Verdict.WARN, found=found, cure=cure)
    return _ok("mig", f"{cut} GPUs have MIG switched on and may be read")


def _kubelet(facts: Facts) -> Finding:
    path = facts.config.kubelet_socket
    if facts.config.attribution == "off":
        return _ok("kubelet", "attribution is off")
    match facts.kubelet_error:
        case None:
            return _ok("kubelet", f"{path} answers")
        case errno.ENOENT:
            cure = "mount /var/lib/kubelet/pod-resources from the host, or set --attribution=off"
        case errno.EACCES | errno.EPERM:
            cure = "run as uid 0, the socket is root's alone, or set --attribution=off"
        case errno.ENOTSOCK:
            cure = "name the socket itself with --pod-resources-socket"
        case _:
            cure = "check that the kubelet runs"
    found = f"{path}: {_reason(facts.kubelet_error)}"
    return Finding(name="kubelet", verdict=Verdict.WARN, found=found, cure=cure)


def _api(facts: Facts) -> Finding:
    if facts.config.api_server == "off":
        return _ok("api server", "switched off")
    if facts.api.source is None:
        cure = "run in a pod with a service account token, name a --kubeconfig, or set --api-server=off"
        return Finding(name="api server", verdict=Verdict.WARN, found="no credentials", cure=cure)
    if facts.api.error is not None:
        found = f"{facts.api.source}: {facts.api.error}"
        cure = "without it, DRA devices with names of a driver's own stay unattributed"
        return Finding(name="api server", verdict=Verdict.WARN, found=found, cure=cure)
    return _ok("api server", f"reachable with the {facts.api.source}")


def _state(facts: Facts) -> Finding:
    path = facts.config.state_file
    if not path:
        return Finding(name="journal", verdict=Verdict.WARN, found="off", cure="accounts start at 0 after a restart")
    if facts.state_error is not None:
        cure = "mount a writable directory there, or name another with --state-file"
        found = f"{path}: {_reason(facts.state_error)}"
        return Finding(name="journal", verdict=Verdict.WARN, found=found, cure=cure)
    return _ok("journal", f"{path} can be written")


def _control(facts: Facts) -> Finding:
    path = facts.config.control_socket
    if not path:
        return _ok("control", "off")
    if facts.control_error is not None:
        cure = "mount a writable directory there, or name another with --control-socket"
        found = f"{path}: {_reason(facts.control_error)}"
        return Finding(name="control", verdict=Verdict.WARN, found=found, cure=cure)
    return _ok("control", f"{path} can be made")


def _port(facts: Facts) -> Finding:
    address = facts.config.web_listen_address
    if facts.port_error == errno.EADDRINUSE:
        cure = "an agent runs already, or choose another with --web-listen-address"
        return Finding(name="port", verdict=Verdict.WARN, found=f"{address} is taken", cure=cure)
    if facts.port_error is not None:
        found = f"{address}: {_reason(facts.port_error)}"
        return Finding(name="port", verdict=Verdict.FAIL, found=found, cure="choose another with --web-listen-address")
    return _ok("port", f"{address} is free")


def _pids(facts: Facts) -> Finding:
    if facts.host_pids or "processes" not in facts.config.collectors:
        return _ok("pids", "the host's" if facts.host_pids else "a container's own; no collector needs the host's")
    found = "the `processes` collector cannot match pids of another pid namespace"
    return Finding(name="pids", verdict=Verdict.WARN, found=found, cure="set hostPID: true, or leave the collector out")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    _nvml, _devices, _mig, _kubelet, _api, _state, _control, _port, _pids,
)  # fmt: skip


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Every check's finding, in order."""
    return tuple(check(facts) for check in CHECKS)


async def gather(config: Config, environment: Mapping[str, str]) -> Facts:
    """Looks at this machine; changes nothing."""
    return Facts(
        config=config,
        nvml=await probe_nvml(config.nvml_library, seconds=_PROBE_SECONDS),
        kubelet_error=await _connect_error(config.kubelet_socket),
        api=await _api_access(config, environment),
        state_error=_write_error(config.state_file),
        control_error=_write_error(config.control_socket),
        port_error=_bind_error(*config.listen),
        host_pids=_read_link("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE,
        mig_monitor=os.access(_MIG_MONITOR, os.R_OK),
    )


async def probe_nvml(library: str | None, *, seconds: float) -> Probe:
    """Asks NVML in a child process, because a broken driver can hang or crash whoever calls it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "claimscope.nvml.probe",
        *([] if library is None else [library]),
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


async def _api_access(config: Config, environment: Mapping[str, str]) -> ApiAccess:
    if config.api_server == "off":
        return ApiAccess(source=None)
    if config.kubeconfig is not None:
        source = f"kubeconfig {config.kubeconfig}"
        readable = os.access(config.kubeconfig, os.R_OK)
        return ApiAccess(source=source, error=None if readable else "cannot be read")
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not os.access(_SERVICE_ACCOUNT / "token", os.R_OK):
        return ApiAccess(source=None)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), _CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        return ApiAccess(source="service account", error=f"{host}:{port}: {error or 'no answer'}")
    writer.close()
    return ApiAccess(source="service account")


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
