"""Which Linux capabilities does the agent have, which of them does nothing here need, and which is missing?

The agent runs as uid 0 with none: the kubelet's socket and directories are root's, and owning files is no capability.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from claimscope.doctor.findings import Finding, Verdict, ok

# linux/capability.h, by number
_NAMES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
SYSLOG: Final = 1 << _NAMES.index("SYSLOG")
SYS_ADMIN: Final = 1 << _NAMES.index("SYS_ADMIN")
MKNOD: Final = 1 << _NAMES.index("MKNOD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """Of this process."""

    uid: int = 0
    effective: int = 0  # CapEff of /proc/self/status
    in_pod: bool = True
    dmesg_restricted: bool = False  # the sysctl kernel.dmesg_restrict

    @property
    def privileged(self) -> bool:
        """Whether it has what `privileged: true` gives: by default no container may do these two."""
        return bool(self.effective & SYS_ADMIN) and bool(self.effective & MKNOD)


def names(effective: int) -> tuple[str, ...]:
    """The capabilities of a set; one that is newer than this table is called by its number."""
    known = tuple(name for number, name in enumerate(_NAMES) if effective >> number & 1)
    return known + tuple(str(bit) for bit in range(len(_NAMES), effective.bit_length()) if effective >> bit & 1)


def finding(found: Privileges, *, needed: int, privileged_is_needed: bool) -> Finding:
    """The row `privileges`. `needed` are the capabilities that what is switched on takes."""
    who = f"uid {found.uid}"
    if found.in_pod and found.uid != 0:
        cure = "set runAsUser: 0 with every capability dropped: the kubelet's socket is root's alone"
        return Finding(name="privileges", verdict=Verdict.WARN, found=who, cure=cure)
    if not found.in_pod:
        return ok("privileges", f"{who}, in no pod")
    if found.privileged and privileged_is_needed:
        return ok("privileges", f"{who}, privileged, as the driver root or the kernel log needs")
    if privileged_is_needed:
        cure = (
            "set privileged: true (agent.gpuAccess.mode hostPath and agent.kernelLog do): the devices cgroup denies "
            "device nodes that no runtime handed in"
        )
        return Finding(
            name="privileges", verdict=Verdict.WARN,
            found=f"{who}, not privileged, which the driver root or the kernel log needs", cure=cure,
        )  # fmt: skip
    lacking = names(needed & ~found.effective)
    if lacking:
        cure = f"add it to securityContext.capabilities.add: {', '.join(lacking)}"
        return Finding(name="privileges", verdict=Verdict.WARN, found=f"{who} without CAP_{lacking[0]}", cure=cure)
    needless = names(found.effective & ~needed)
    if needless:
        text = "every capability" if found.privileged else f"CAP_{', CAP_'.join(needless)}"
        cure = "nothing that is switched on needs that: set privileged: false and capabilities.drop: [ALL]"
        return Finding(name="privileges", verdict=Verdict.WARN, found=f"{who} with {text}", cure=cure)
    return ok("privileges", f"{who}, {'CAP_' + ', CAP_'.join(names(needed)) if needed else 'no capability'}")


def kernel_log_cure(number: int, found: Privileges) -> tuple[str, str]:
    """Why /dev/kmsg may not be opened, and what to do: devkmsg_open of kernel/printk/printk.c, or before it."""
    if number == errno.EACCES:
        return "its file mode keeps this user out", "run as uid 0"
    if found.dmesg_restricted and not found.effective & (SYSLOG | SYS_ADMIN):
        return "kernel.dmesg_restrict is 1 and CAP_SYSLOG is missing", "set privileged: true (agent.kernelLog does)"
    return (
        "the devices cgroup of the container denies it",
        "a mounted device is not an allowed one: set privileged: true (agent.kernelLog does)",
    )
