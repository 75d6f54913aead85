"""Which needs of the agent or of the controller are met, and how is each of the others cured?

Pure functions over facts, one row each.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from claimscope.doctor import gpu, privileges, web
from claimscope.doctor.facts import ApiAccess, ControllerFacts, Facts
from claimscope.doctor.findings import Finding, Verdict, ok
from claimscope.kube import rights
from claimscope.kube.rights import Need
from claimscope.taints.model import Mode


def _reason(number: int) -> str:
    return os.strerror(number).lower()


def _nvml(facts: Facts) -> Finding:
    if facts.nvml.error is not None:
        return Finding(name="nvml", verdict=Verdict.FAIL, found=facts.nvml.error)
    return ok("nvml", f"driver {facts.nvml.driver_version or 'of unknown version'}")


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
    return ok("devices", f"{len(facts.nvml.devices)} x {', '.join(models)}")


def _mig(facts: Facts) -> Finding:
    return gpu.mig(facts.gpu, facts.nvml, facts.privileges)


def _privileges(facts: Facts) -> Finding:
    access = facts.gpu.access
    asks_mig = access is gpu.Access.RUNTIME_CLASS and facts.gpu.environment.get(gpu.MIG_MONITOR, "") != ""
    needed = privileges.SYS_ADMIN if asks_mig else 0
    log, nodes = facts.kernel_log, facts.gpu.nodes
    if facts.privileges.privileged:
        used = (log is not None and log.is_device) or access is gpu.Access.HOST_PATH
    else:  # what can be opened nevertheless was handed in by somebody
        opened = bool(nodes) and all(number is None for number in nodes.values())
        used = (log is not None and log.denied is not None) or (access is gpu.Access.HOST_PATH and not opened)
    return privileges.finding(facts.privileges, needed=needed, privileged_is_needed=used)


def _kubelet(facts: Facts) -> Finding:
    path = facts.config.kubelet_socket
    if facts.config.attribution == "off":
        return ok("kubelet", "attribution is off")
    match facts.kubelet_error:
        case None:
            return ok("kubelet", f"{path} answers")
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
        return ok("kernel log", "not read: XIDs come from NVML alone")
    if found.denied is not None:
        why, cure = privileges.kernel_log_cure(found.denied, facts.privileges)
        return Finding(name="kernel log", verdict=Verdict.WARN, found=f"{path} may not be read: {why}", cure=cure)
    if found.error is not None:
        return Finding(name="kernel log", verdict=Verdict.WARN, found=found.error)
    if not found.is_device:
        cure = "mount /dev/kmsg of the host there to see this machine's faults"
        return Finding(name="kernel log", verdict=Verdict.WARN, found=f"{path} is a recording", cure=cure)
    if not found.has_records:
        found_text = f"{path} holds no record of a kernel log"
        return Finding(name="kernel log", verdict=Verdict.WARN, found=found_text, cure="check what is mounted there")
    return ok("kernel log", f"{path} is read")


def _thresholds(facts: Facts) -> Finding:
    path = facts.config.health_thresholds
    if path is None:
        return ok("thresholds", "the defaults")
    if facts.thresholds_error is not None:
        cure = "correct it; until then the defaults are in force"
        return Finding(name="thresholds", verdict=Verdict.WARN, found=facts.thresholds_error, cure=cure)
    return ok("thresholds", f"{path} can be used")


def _policy(facts: Facts | ControllerFacts) -> Finding:
    path = facts.config.taint_policy
    if path is None:
        return ok("taint policy", f"the defaults, mode {facts.config.taint_mode}")
    if facts.policy_error is not None:
        cure = "correct it; nothing starts with a policy that cannot be used"
        return Finding(name="taint policy", verdict=Verdict.FAIL, found=facts.policy_error, cure=cure)
    return ok("taint policy", f"{path} can be used")


def _taints(facts: Facts | ControllerFacts) -> Finding:
    allowed = facts.api.allowed
    if allowed is None:
        return Finding(name="taints", verdict=Verdict.WARN, found="not known without the API server")
    if allowed.mode is Mode.ENFORCE:
        return ok("taints", f"devicetaintrules are served as {allowed.version}, and every mode is safe")
    if allowed.version is None:
        return ok("taints", f"{allowed.text}; findings become conditions and Events")
    found = f"no further than {allowed.mode.value}: {allowed.text}"
    return Finding(name="taints", verdict=Verdict.WARN, found=found)


def _lease(facts: Facts) -> Finding:
    namespace = facts.config.lease_namespace
    if facts.api.source is None:
        return ok("lease", "not written without an API server")
    if not namespace:
        cure = "the controller hears nothing of this node; name claimscope's namespace with --lease-namespace"
        return Finding(name="lease", verdict=Verdict.WARN, found="not written", cure=cure)
    return ok("lease", f"goes to namespace {namespace}")


# What grants each of the needs: the chart's value, and what deploy/manifests/ has for those without Helm.
_AGENT_GRANTS: Final = (
    (rights.AGENT, "rbac.create=true", "rbac-agent.yaml"),
    (rights.AGENT_LOCAL, "agent.taintWriter=local", "rbac-agent-local.yaml"),
    (rights.REVIEWS, "agent.authorization.mode=kubernetes", "rbac-authorization.yaml"),
)
_CONTROLLER_GRANTS: Final = (
    (rights.CONTROLLER, "rbac.create=true", "rbac-controller.yaml"),
    (rights.CONTROLLER_FENCING, "rbac.fencing=true", "rbac-controller.yaml"),
    (rights.CONTROLLER_NODE_TAINTS, "rbac.nodeTaints=true", "rbac-controller-node-taints.yaml"),
    (rights.REVIEWS, "controller.authorization.mode=kubernetes", "rbac-authorization.yaml"),
)
_Grants: TypeAlias = tuple[tuple[tuple[Need, ...], str, str], ...]


def _grant(need: Need, grants: _Grants) -> str:
    """How a need is granted. It may have got its namespace since, so it is told by what it does."""
    for needs, value, manifest in grants:
        if any((each.verbs, each.group, each.resource) == (need.verbs, need.group, need.resource) for each in needs):
            plain = f"deploy/manifests/{manifest} to the accounts of a release `claimscope`"
            return f"the chart's {value} grants it, {plain}"
    raise AssertionError(need)  # a test holds that each need has a grant


def _rights(api: ApiAccess, grants: _Grants) -> Iterable[Finding]:
    """One for each kind of object that may not be dealt with as needed."""
    if api.denied is None:
        return
    for denied in api.denied:
        found = f"may not {', '.join(denied.verbs)} {denied.need.title}"
        verdict = Verdict.FAIL if denied.need.required else Verdict.WARN
        cure = f"{denied.need.without}; {_grant(denied.need, grants)}"
        yield Finding(name="rights", verdict=verdict, found=found, cure=cure)
    if not api.denied:
        yield ok("rights", "all that are needed")


def _api(facts: Facts) -> Finding:
    if facts.config.api_server == "off":
        return ok("api server", "switched off")
    if facts.api.source is None:
        cure = "run in a pod with a service account token, name a --kubeconfig, or set --api-server=off"
        return Finding(name="api server", verdict=Verdict.WARN, found="no credentials", cure=cure)
    if facts.api.error is not None:
        found = f"{facts.api.source}: {facts.api.error}"
        cure = "without it, DRA devices with names of a driver's own stay unattributed"
        return Finding(name="api server", verdict=Verdict.WARN, found=found, cure=cure)
    return ok("api server", f"reachable with the {facts.api.source}")


def _state(facts: Facts) -> Finding:
    path = facts.config.state_file
    if not path:
        return Finding(name="journal", verdict=Verdict.WARN, found="off", cure="accounts start at 0 after a restart")
    if facts.state_error is not None:
        cure = "mount a writable directory there, or name another with --state-file"
        found = f"{path}: {_reason(facts.state_error)}"
        return Finding(name="journal", verdict=Verdict.WARN, found=found, cure=cure)
    return ok("journal", f"{path} can be written")


def _control(facts: Facts) -> Finding:
    path = facts.config.control_socket
    if not path:
        return ok("control", "off")
    if facts.control_error is not None:
        cure = "mount a writable directory there, or name another with --control-socket"
        found = f"{path}: {_reason(facts.control_error)}"
        return Finding(name="control", verdict=Verdict.WARN, found=found, cure=cure)
    return ok("control", f"{path} can be made")


def _port(facts: Facts) -> Finding:
    address = facts.config.web_listen_address
    if facts.port_error == errno.EADDRINUSE and facts.port_is_ours:
        return ok("port", f"{address} is served by claimscope, which runs already")
    if facts.port_error == errno.EADDRINUSE:
        cure = "what answers there is not claimscope: end it, or choose another with --web-listen-address"
        return Finding(name="port", verdict=Verdict.WARN, found=f"{address} is taken", cure=cure)
    if facts.port_error is not None:
        found = f"{address}: {_reason(facts.port_error)}"
        return Finding(name="port", verdict=Verdict.FAIL, found=found, cure="choose another with --web-listen-address")
    return ok("port", f"{address} is free")


def _web(facts: Facts | ControllerFacts) -> Finding:
    return web.finding(facts.web)


def _pids(facts: Facts) -> Finding:
    needed = "processes" in facts.config.collectors
    if facts.host_pids and not needed and facts.privileges.in_pod:
        cure = "set hostPID: false: with it the agent may end every process of root on the node"
        return Finding(name="pids", verdict=Verdict.WARN, found="the host's, which no collector needs", cure=cure)
    if facts.host_pids or not needed:
        return ok("pids", "the host's" if facts.host_pids else "a container's own; no collector needs the host's")
    found = "the `processes` collector cannot match pids of another pid namespace"
    return Finding(name="pids", verdict=Verdict.WARN, found=found, cure="set hostPID: true, or leave the collector out")


def _cluster(facts: ControllerFacts) -> Finding:
    if facts.api.error is not None:
        return Finding(name="api server", verdict=Verdict.FAIL, found=facts.api.error)
    return ok("api server", f"reachable with the {facts.api.source}")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    _nvml, _devices, _mig, _privileges, _kernel_log, _thresholds, _kubelet, _api, _lease, _state, _control, _port, _web,
    _pids,
)  # fmt: skip
_LOCAL_CHECKS: tuple[Callable[[Facts], Finding], ...] = (_policy, _taints)
_CONTROLLER_CHECKS: tuple[Callable[[ControllerFacts], Finding], ...] = (_cluster, _policy, _taints, _web)


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Every finding about an agent, in order."""
    local = facts.config.taint_writer == "local"
    checks = (*CHECKS, *(_LOCAL_CHECKS if local else ()))
    return (
        *gpu.findings(facts.gpu, facts.nvml, facts.privileges), *(check(facts) for check in checks),
        *_rights(facts.api, _AGENT_GRANTS),
    )  # fmt: skip


def examine_controller(facts: ControllerFacts) -> tuple[Finding, ...]:
    """Every finding about a controller, in order."""
    found = (check(facts) for check in _CONTROLLER_CHECKS)
    return (*found, *_rights(facts.api, _CONTROLLER_GRANTS))
