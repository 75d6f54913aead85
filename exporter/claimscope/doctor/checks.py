"""Which needs of the agent or of the controller are met, and how is each of the others cured?

Pure functions over facts, one row each.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from claimscope.doctor.facts import MIG_MONITOR, ApiAccess, ControllerFacts, Facts
from claimscope.taints.model import Mode


class Verdict(enum.Enum):
    """How bad it is: a warning costs one ability, a failure the device layer."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


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
        found = f"{cut} GPUs have MIG switched on, {MIG_MONITOR} may not be read"
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


def _kernel_log(facts: Facts) -> Finding:
    path, found = facts.config.kernel_log, facts.kernel_log
    if found is None:
        return _ok("kernel log", "not read: XIDs come from NVML alone")
    if found.error is not None:
        return Finding(name="kernel log", verdict=Verdict.WARN, found=found.error)
    if not found.is_device:
        cure = "mount /dev/kmsg of the host there to see this machine's faults"
        return Finding(name="kernel log", verdict=Verdict.WARN, found=f"{path} is a recording", cure=cure)
    if not found.has_records:
        found_text = f"{path} holds no record of a kernel log"
        return Finding(name="kernel log", verdict=Verdict.WARN, found=found_text, cure="check what is mounted there")
    return _ok("kernel log", f"{path} is read")


def _thresholds(facts: Facts) -> Finding:
    path = facts.config.health_thresholds
    if path is None:
        return _ok("thresholds", "the defaults")
    if facts.thresholds_error is not None:
        cure = "correct it; until then the defaults are in force"
        return Finding(name="thresholds", verdict=Verdict.WARN, found=facts.thresholds_error, cure=cure)
    return _ok("thresholds", f"{path} can be used")


def _policy(facts: Facts | ControllerFacts) -> Finding:
    path = facts.config.taint_policy
    if path is None:
        return _ok("taint policy", f"the defaults, mode {facts.config.taint_mode}")
    if facts.policy_error is not None:
        cure = "correct it; nothing starts with a policy that cannot be used"
        return Finding(name="taint policy", verdict=Verdict.FAIL, found=facts.policy_error, cure=cure)
    return _ok("taint policy", f"{path} can be used")


def _taints(facts: Facts | ControllerFacts) -> Finding:
    allowed = facts.api.allowed
    if allowed is None:
        return Finding(name="taints", verdict=Verdict.WARN, found="not known without the API server")
    if allowed.mode is Mode.ENFORCE:
        return _ok("taints", f"devicetaintrules are served as {allowed.version}, and every mode is safe")
    if allowed.version is None:
        return _ok("taints", f"{allowed.text}; findings become conditions and Events")
    found = f"no further than {allowed.mode.value}: {allowed.text}"
    return Finding(name="taints", verdict=Verdict.WARN, found=found)


def _lease(facts: Facts) -> Finding:
    namespace = facts.config.lease_namespace
    if facts.api.source is None:
        return _ok("lease", "not written without an API server")
    if not namespace:
        cure = "the controller hears nothing of this node; name claimscope's namespace with --lease-namespace"
        return Finding(name="lease", verdict=Verdict.WARN, found="not written", cure=cure)
    return _ok("lease", f"goes to namespace {namespace}")


def _rights(api: ApiAccess, manifests: str) -> Iterable[Finding]:
    """One for each kind of object that may not be dealt with as needed."""
    if api.denied is None:
        return
    for denied in api.denied:
        found = f"may not {', '.join(denied.verbs)} {denied.need.title}"
        verdict = Verdict.FAIL if denied.need.required else Verdict.WARN
        cure = f"{denied.need.without}; kubectl apply -f {manifests}"
        yield Finding(name="rights", verdict=verdict, found=found, cure=cure)
    if not api.denied:
        yield _ok("rights", "all that are needed")


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


def _cluster(facts: ControllerFacts) -> Finding:
    if facts.api.error is not None:
        return Finding(name="api server", verdict=Verdict.FAIL, found=facts.api.error)
    return _ok("api server", f"reachable with the {facts.api.source}")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    _nvml, _devices, _mig, _kernel_log, _thresholds, _kubelet, _api, _lease, _state, _control, _port, _pids,
)  # fmt: skip
_LOCAL_CHECKS: tuple[Callable[[Facts], Finding], ...] = (_policy, _taints)
_CONTROLLER_CHECKS: tuple[Callable[[ControllerFacts], Finding], ...] = (_cluster, _policy, _taints)


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Every finding about an agent, in order."""
    local = facts.config.taint_writer == "local"
    checks = (*CHECKS, *(_LOCAL_CHECKS if local else ()))
    return (*(check(facts) for check in checks), *_rights(facts.api, "deploy/manifests/"))


def examine_controller(facts: ControllerFacts) -> tuple[Finding, ...]:
    """Every finding about a controller, in order."""
    found = (check(facts) for check in _CONTROLLER_CHECKS)
    return (*found, *_rights(facts.api, "deploy/manifests/"))
