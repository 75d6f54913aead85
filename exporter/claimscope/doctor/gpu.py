"""How did the node's GPUs come into this container, which piece is missing, and how is it cured in that mode?

The three modes are those of docs/install.md. What tells them apart: nvidia-container-runtime is asked by the variables
NVIDIA_VISIBLE_DEVICES and NVIDIA_DRIVER_CAPABILITIES; a CDI specification sets NVIDIA_VISIBLE_DEVICES=void and no more
(as the runtime itself does since it makes such specifications, nvidia-container-toolkit 1.18); a driver root is ours.
"""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from claimscope.doctor.findings import Finding, Verdict, ok
from claimscope.doctor.privileges import SYS_ADMIN, Privileges
from claimscope.nvml.library import LIB_RM_VERSION_MISMATCH, LIBRARY_NOT_FOUND
from claimscope.nvml.probe import Probe

VISIBLE, DRIVER, MIG_MONITOR = "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_MIG_MONITOR_DEVICES"
_CONTROL: Final = "/dev/nvidiactl"
_NOTHING: Final = frozenset({"", "void", "none"})
_VERSION: Final = re.compile(r"libnvidia-ml\.so\.(\d+\.\d+(?:\.\d+)?)$")


class Access(enum.Enum):
    """How the library and the device nodes get in; the values are those of the chart's agent.gpuAccess.mode."""

    RUNTIME_CLASS = "runtimeClass"
    CDI = "cdi"
    HOST_PATH = "hostPath"
    HOST = "host"  # no container, or one that nobody gave a GPU to


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What this process can see of the driver."""

    driver_root: str | None = None  # as configured
    in_pod: bool = True
    environment: Mapping[str, str]  # of the process, NVIDIA's variables are looked at
    injected: bool = False  # libnvidia-ml is a mount of its own
    kernel_driver: str | None = None  # version of the loaded kernel module; None: none is loaded
    kernel_gpus: int | None = None  # GPUs that the kernel module has; None: not known
    nodes: Mapping[str, int | None]  # /dev/nvidiactl, /dev/nvidia0 and following -> errno of read and write access
    mig_monitor: int | None = None  # errno of reading what the capability to see all MIG devices needs

    @property
    def access(self) -> Access:
        """The mode, by what stands in the container."""
        if self.driver_root is not None:
            return Access.HOST_PATH
        visible = self.environment.get(VISIBLE, "")
        if "=" in visible:
            return Access.CDI  # a CDI device by its full name, which the NVIDIA runtime takes as well
        if visible not in _NOTHING or self.environment.get(DRIVER):
            return Access.RUNTIME_CLASS
        return Access.CDI if self.injected or visible == "void" else Access.HOST


_NAMES: Final = {
    Access.RUNTIME_CLASS: "runtime class", Access.CDI: "CDI device", Access.HOST_PATH: "driver root",
    Access.HOST: "this system's own",
}  # fmt: skip

_NO_LIBRARY: Final = {
    Access.RUNTIME_CLASS:
        "the container runtime injected nothing: set runtimeClassName to the NVIDIA runtime's (`kubectl get "
        "runtimeclass`); where its configuration has accept-nvidia-visible-devices-envvar-when-unprivileged = false, "
        "use mode cdi or hostPath",
    Access.CDI:
        "the CDI device injected no library: on the node `nvidia-ctk cdi list` must show "
        "management.nvidia.com/gpu=all, and the toolkit's NRI plugin or the NVIDIA runtime class must be there to read "
        "the request",
    Access.HOST_PATH:
        "mount the root of the driver that runs on the node there: /run/nvidia/driver with the GPU Operator's driver, "
        "/ with one on the host, /home/kubernetes/bin/nvidia on GKE",
    Access.HOST: "choose how the agent gets at the GPU: agent.gpuAccess.mode runtimeClass, cdi or hostPath",
}  # fmt: skip

_NO_NODES: Final = {
    Access.RUNTIME_CLASS: f"set {VISIBLE}=all, and start the pod anew: nodes are made when it starts",
    Access.CDI:
        "the specification was made before the driver had its device nodes: run `nvidia-ctk cdi generate "
        "--mode=management` on the node again (the GPU Operator does), and start the pod anew",
    Access.HOST_PATH: "set privileged: true, which brings the node's devices; a mounted driver root alone does not",
    Access.HOST: "run `nvidia-modprobe -c 0` or `nvidia-smi` as root, which make them",
}

_CGROUP: Final = {
    Access.RUNTIME_CLASS:
        "start the pod anew; where it comes again after a `systemctl daemon-reload`, let the runtime use the systemd "
        "cgroup driver, or use mode cdi",
    Access.CDI: "start the pod anew; the runtime allows only the nodes of its CDI specification",
    Access.HOST_PATH:
        "a mounted device is not an allowed one: set privileged: true (NVIDIA's DRA driver does), or use mode "
        "runtimeClass or cdi",
    Access.HOST: "run outside of the cgroup that denies it, or in a pod with a mode of agent.gpuAccess",
}  # fmt: skip

# Of a privileged container with a driver root: it lacks no privilege, so what it sees is as old as itself.
_NO_NODES_PRIVILEGED: Final = (
    "the nodes did not exist when the container started: run `nvidia-modprobe -c 0` or `nvidia-smi` as root on the "
    "node, and start the pod anew"
)
_CGROUP_PRIVILEGED: Final = (
    "start the pod anew; where it comes again, something takes devices from running containers on this node: a "
    "privileged container starts with every one allowed"
)

_MISMATCH: Final = {
    Access.RUNTIME_CLASS: "start the pod anew: it has the library of the driver that ran when it started",
    Access.CDI: "make the specification anew (`nvidia-ctk cdi generate`) and start the pod anew",
    Access.HOST_PATH:
        "start the pod anew; so that a new driver is seen, mount the directory above its root, with mountPropagation: "
        "HostToContainer (the chart does), and not the root itself: that mount stays with the driver that ran then",
    Access.HOST: "reload the kernel modules or reboot",
}

_NO_MIG: Final = {
    Access.RUNTIME_CLASS:
        f"use mode cdi, which needs no capability; here {MIG_MONITOR}=all takes CAP_SYS_ADMIN, and without it the "
        "container does not start",
    Access.CDI:
        "make the specification anew (`nvidia-ctk cdi generate --mode=management`) so that it has /dev/nvidia-caps, "
        "and run as uid 0",
    Access.HOST_PATH: "set privileged: true, and mount nothing over /proc/driver/nvidia",
    Access.HOST:
        "run as root, and make the node with `nvidia-modprobe -f /proc/driver/nvidia/capabilities/mig/monitor`",
}  # fmt: skip


def findings(facts: GpuFacts, probe: Probe, privileges: Privileges) -> Iterator[Finding]:
    """How the GPUs are reached, and how much of them."""
    trouble = _trouble(facts, probe, privileges.privileged)
    name = _NAMES[facts.access]
    if trouble is None:
        yield ok("gpu access", f"{name}: {probe.library_file or 'the library is loaded'}{_seen(facts)}")
    else:
        found, cure = trouble
        verdict = Verdict.FAIL if probe.error is not None or not probe.devices else Verdict.WARN
        yield Finding(name="gpu access", verdict=verdict, found=f"{name}: {found}", cure=cure)


def mig(facts: GpuFacts, probe: Probe, privileges: Privileges) -> Finding:
    """Whether MIG devices that others hold may be seen."""
    if probe.error is not None:
        return Finding(name="mig", verdict=Verdict.WARN, found="not known without NVML")
    cut = sum(device.mig_enabled for device in probe.devices)
    if cut == 0:
        return ok("mig", "no GPU has MIG switched on")
    if privileges.effective & SYS_ADMIN:
        # Whoever is an administrator to the driver needs none of its nodes (rmclientIsCapableOrAdminByHandle of
        # NVIDIA's open kernel modules, asked for NV_RM_CAP_SYS_SMC_MONITOR).
        return ok("mig", f"{cut} GPUs have MIG switched on and may be read, with CAP_SYS_ADMIN")
    if facts.mig_monitor is not None:
        why = _word(facts.mig_monitor)
        found = f"{cut} GPUs have MIG switched on, the capability mig/monitor may not be used: {why}"
        return Finding(name="mig", verdict=Verdict.WARN, found=found, cure=_NO_MIG[facts.access])
    return ok("mig", f"{cut} GPUs have MIG switched on and may be read")


def _seen(facts: GpuFacts) -> str:
    gpus = sum(path != _CONTROL for path in facts.nodes)
    return f", {gpus} device nodes" if gpus else ""


def _trouble(facts: GpuFacts, probe: Probe, privileged: bool) -> tuple[str, str] | None:
    """What is wrong first, and its cure: each piece is of use only with those before it."""
    access = facts.access
    if probe.code == LIBRARY_NOT_FOUND:
        return _library_missing(facts, probe)
    library = probe.library_file or "the library"
    if probe.error is not None and facts.kernel_driver is None:
        cure = "load the kernel module on the node (`modprobe nvidia`), or let the GPU Operator's driver pod finish"
        return f"{library} is there, the kernel driver is not loaded", cure
    for path, number in facts.nodes.items():
        if number in (errno.EPERM, errno.EACCES):
            return _denied(access, path, number, privileged)
    version = _VERSION.search(library)
    differs = version is not None and facts.kernel_driver is not None and version[1] != facts.kernel_driver
    if probe.code == LIB_RM_VERSION_MISMATCH or (probe.error is not None and differs):
        return f"{library} is not of the kernel driver's version {facts.kernel_driver}", _MISMATCH[access]
    if probe.error is not None and (_CONTROL not in facts.nodes or len(facts.nodes) < 2):
        missing = _CONTROL if _CONTROL not in facts.nodes else "/dev/nvidia0"
        return f"{library} is there, the device node {missing} is not", _no_nodes(access, privileged)
    if probe.error is not None:
        return f"{library} and the device nodes are there, NVML does not answer", "see the row `nvml`"
    shown = len(probe.devices) + len(probe.lost)
    if facts.kernel_gpus is not None and 0 < shown < facts.kernel_gpus:
        found = f"NVML shows {shown} of the {facts.kernel_gpus} GPUs that the kernel driver has"
        return found, _no_nodes(access, privileged)
    return None


def _no_nodes(access: Access, privileged: bool) -> str:
    return _NO_NODES_PRIVILEGED if privileged and access is Access.HOST_PATH else _NO_NODES[access]


def _library_missing(facts: GpuFacts, probe: Probe) -> tuple[str, str]:
    asked = facts.environment.get(DRIVER, "")
    if facts.access is Access.RUNTIME_CLASS and asked and not {"utility", "all"} & set(asked.split(",")):
        return f"{DRIVER}={asked} leaves out libnvidia-ml.so.1", f"set {DRIVER}=utility"
    if facts.access is Access.HOST and not facts.in_pod:
        cure = "install the NVIDIA driver, or name its library with --nvml-library"
        return "libnvidia-ml.so.1 cannot be loaded", cure
    where = f" under {facts.driver_root}" if facts.driver_root else ""
    return f"libnvidia-ml.so.1 cannot be loaded{where}", _NO_LIBRARY[facts.access]


def _denied(access: Access, path: str, number: int, privileged: bool) -> tuple[str, str]:
    """EPERM is the devices cgroup's answer, EACCES that of the file mode (fs/namei.c, inode_permission)."""
    if number == errno.EPERM:
        cure = _CGROUP_PRIVILEGED if privileged and access is Access.HOST_PATH else _CGROUP[access]
        return f"{path} is there, the devices cgroup of the container denies it", cure
    return (
        f"{path} is there, its file mode keeps this user out",
        "run as uid 0, or load the kernel module with NVreg_DeviceFileMode=0666",
    )


def _word(number: int) -> str:
    words = {
        errno.ENOENT: "it is not there",
        errno.EPERM: "the devices cgroup denies it",
        errno.EACCES: "its file mode keeps this user out",
    }
    return words.get(number, errno.errorcode.get(number, str(number)))
