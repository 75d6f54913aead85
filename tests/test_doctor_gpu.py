"""How the agent gets at the GPU: the modes are told apart, and each missing piece is named with that mode's cure."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.config import Config, build, from_flags
from claimscope.doctor import checks, gpu, machine, privileges
from claimscope.doctor.facts import Facts, KernelLogFacts, probe_nvml
from claimscope.doctor.findings import Finding, Verdict
from claimscope.doctor.gpu import Access, GpuFacts
from claimscope.doctor.privileges import Privileges
from claimscope.nvml.driver_root import find_library, resolve
from claimscope.nvml.library import LIB_RM_VERSION_MISMATCH, LIBRARY_NOT_FOUND, NO_PERMISSION, UNKNOWN
from claimscope.nvml.probe import Probe, ProbedDevice
from claimscope.sim.library import SimulatedNvml, build_library
from claimscope.sim.world import make_world
from claimscope.yamlfile import ConfigError
from sampler_help import quick, running
from test_doctor import facts

NODES: dict[str, int | None] = {"/dev/nvidiactl": None, "/dev/nvidia0": None}
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65.06"
ENVIRONMENTS = {
    Access.RUNTIME_CLASS: {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"},
    Access.CDI: {"NVIDIA_VISIBLE_DEVICES": "void"},
    Access.HOST_PATH: {},
    Access.HOST: {},
}
NONE = Privileges()
PRIVILEGED = Privileges(effective=0x000001FFFFFFFFFF)
MODES = (Access.RUNTIME_CLASS, Access.CDI, Access.HOST_PATH)


def seen(access: Access, **changes: object) -> GpuFacts:
    """What a good container of that mode sees, but for `changes`."""
    good: dict[str, object] = {
        "driver_root": "/driver-root" if access is Access.HOST_PATH else None,
        "environment": ENVIRONMENTS[access],
        "injected": access in (Access.RUNTIME_CLASS, Access.CDI),
        "kernel_driver": "580.65.06",
        "kernel_gpus": 1,
        "nodes": NODES,
        "mig_monitor": None,
    }
    return GpuFacts(**(good | changes))  # type: ignore[arg-type]  # a test's shorthand


def failed(code: int, library: str | None = LIBRARY) -> Probe:
    return Probe(error="as NVML says it", code=code, library_file=library)


def row(found: GpuFacts, probe: Probe, held: Privileges = NONE) -> Finding:
    (finding,) = gpu.findings(found, probe, held)
    return finding


# --- the modes ---


@pytest.mark.parametrize(
    ("environment", "injected", "driver_root", "access"),
    [
        ({"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}, True, None, Access.RUNTIME_CLASS),
        # nvidia-container-toolkit 1.18 makes a CDI specification of the request by itself: it sets void.
        ({"NVIDIA_VISIBLE_DEVICES": "void", "NVIDIA_DRIVER_CAPABILITIES": "utility"}, True, None, Access.RUNTIME_CLASS),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, False, None, Access.RUNTIME_CLASS),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, True, None, Access.CDI),
        ({"NVIDIA_VISIBLE_DEVICES": "management.nvidia.com/gpu=all"}, False, None, Access.CDI),
        ({}, True, None, Access.CDI),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, False, "/driver-root", Access.HOST_PATH),
        ({}, False, None, Access.HOST),
    ],
)
def test_the_modes_are_told_apart(
    environment: dict[str, str], injected: bool, driver_root: str | None, access: Access
) -> None:
    found = GpuFacts(environment=environment, injected=injected, driver_root=driver_root, nodes=NODES)
    assert found.access is access


@pytest.mark.parametrize(
    ("access", "text"),
    [
        (Access.RUNTIME_CLASS, f"runtime class: {LIBRARY}, 1 device nodes"),
        (Access.CDI, f"CDI device: {LIBRARY}, 1 device nodes"),
        (Access.HOST_PATH, f"driver root: {LIBRARY}, 1 device nodes"),
        (Access.HOST, f"this system's own: {LIBRARY}, 1 device nodes"),
    ],
)
def test_what_works_is_named(access: Access, text: str) -> None:
    probe = Probe(driver_version="580.65.06", devices=(ProbedDevice(uuid="GPU-1"),), library_file=LIBRARY)
    assert row(seen(access), probe) == Finding(name="gpu access", verdict=Verdict.OK, found=text)


# --- each piece that may be missing, in each mode ---

PIECES: dict[str, tuple[dict[str, object], Probe, str, tuple[str, str, str]]] = {
    "the library": (
        {"injected": False}, failed(LIBRARY_NOT_FOUND, None), "libnvidia-ml.so.1 cannot be loaded",
        ("set runtimeClassName", "nvidia-ctk cdi list", "mount the root of the driver that runs"),
    ),
    "the kernel module": (
        {"kernel_driver": None, "nodes": {}}, failed(9), f"{LIBRARY} is there, the kernel driver is not loaded",
        ("modprobe nvidia", "modprobe nvidia", "modprobe nvidia"),
    ),
    "the device nodes": (
        {"nodes": {}}, failed(UNKNOWN), f"{LIBRARY} is there, the device node /dev/nvidiactl is not",
        ("set NVIDIA_VISIBLE_DEVICES=all", "nvidia-ctk cdi generate --mode=management", "set privileged: true"),
    ),
    "the nodes of the GPUs": (
        {"nodes": {"/dev/nvidiactl": None}}, failed(UNKNOWN),
        f"{LIBRARY} is there, the device node /dev/nvidia0 is not",
        ("set NVIDIA_VISIBLE_DEVICES=all", "nvidia-ctk cdi generate --mode=management", "set privileged: true"),
    ),
    "leave of the devices cgroup": (
        {"nodes": {"/dev/nvidiactl": errno.EPERM, "/dev/nvidia0": errno.EPERM}}, failed(UNKNOWN),
        "/dev/nvidiactl is there, the devices cgroup of the container denies it",
        ("systemd cgroup driver", "only the nodes of its CDI specification", "a mounted device is not an allowed one"),
    ),
    "leave of the file mode": (
        {"nodes": {"/dev/nvidiactl": None, "/dev/nvidia0": errno.EACCES}}, failed(NO_PERMISSION),
        "/dev/nvidia0 is there, its file mode keeps this user out",
        ("run as uid 0", "run as uid 0", "run as uid 0"),
    ),
    "the library of this driver": (
        {"kernel_driver": "575.57.08"}, failed(LIB_RM_VERSION_MISMATCH),
        f"{LIBRARY} is not of the kernel driver's version 575.57.08",
        ("start the pod anew", "make the specification anew", "mount the directory above its root"),
    ),
    "an answer": (
        {}, failed(UNKNOWN), f"{LIBRARY} and the device nodes are there, NVML does not answer",
        ("see the row `nvml`",) * 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("access", MODES)
def test_a_missing_piece_is_named_with_the_cure_of_its_mode(piece: str, access: Access) -> None:
    changes, probe, found, cures = PIECES[piece]
    finding = row(seen(access, **changes), probe)
    assert finding.verdict is Verdict.FAIL
    assert finding.found.partition(": ")[2].startswith(found)
    assert cures[MODES.index(access)] in finding.cure


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"nodes": {}}, "the nodes did not exist when the container started: "),
        ({"nodes": {"/dev/nvidiactl": None}}, "the nodes did not exist when the container started: "),
        ({"nodes": {"/dev/nvidiactl": errno.EPERM, "/dev/nvidia0": None}}, "start the pod anew; "),
    ],
)
def test_a_privileged_container_is_not_told_to_be_privileged(changes: dict[str, object], cure: str) -> None:
    finding = row(seen(Access.HOST_PATH, **changes), failed(UNKNOWN), PRIVILEGED)
    assert finding.cure.startswith(cure)
    assert "privileged: true" not in finding.cure


@pytest.mark.parametrize(
    ("in_pod", "cure"),
    [
        (True, "choose how the agent gets at the GPU: agent.gpuAccess.mode runtimeClass, cdi or hostPath"),
        (False, "install the NVIDIA driver, or name its library with --nvml-library"),
    ],
)
def test_a_container_that_nobody_gave_a_gpu_to(in_pod: bool, cure: str) -> None:
    finding = row(seen(Access.HOST, in_pod=in_pod), failed(LIBRARY_NOT_FOUND, None))
    assert finding.line == f"fail  gpu access    this system's own: libnvidia-ml.so.1 cannot be loaded: {cure}"


def test_a_runtime_that_is_asked_for_no_library() -> None:
    environment = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,video"}
    finding = row(seen(Access.RUNTIME_CLASS, environment=environment), failed(LIBRARY_NOT_FOUND, None))
    assert finding.line == (
        "fail  gpu access    runtime class: NVIDIA_DRIVER_CAPABILITIES=compute,video leaves out libnvidia-ml.so.1: set "
        "NVIDIA_DRIVER_CAPABILITIES=utility"
    )


def test_gpus_that_were_not_handed_in() -> None:
    probe = Probe(devices=(ProbedDevice(uuid="GPU-1"),), lost={"GPU-2": "lost"}, library_file=LIBRARY)
    finding = row(seen(Access.RUNTIME_CLASS, kernel_gpus=8), probe)
    assert finding.line == (
        "warn  gpu access    runtime class: NVML shows 2 of the 8 GPUs that the kernel driver has: set "
        "NVIDIA_VISIBLE_DEVICES=all, and start the pod anew: nodes are made when it starts"
    )


@pytest.mark.parametrize(
    ("access", "cure"),
    [
        (Access.RUNTIME_CLASS, "NVIDIA_MIG_MONITOR_DEVICES=all takes CAP_SYS_ADMIN"),
        (Access.CDI, "so that it has /dev/nvidia-caps"),
        (Access.HOST_PATH, "set privileged: true"),
    ],
)
@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOENT, "it is not there"), (errno.EPERM, "the devices cgroup denies it"),
     (errno.EACCES, "its file mode keeps this user out")],
)  # fmt: skip
def test_mig_devices_of_others(access: Access, cure: str, number: int, why: str) -> None:
    probe = Probe(devices=(ProbedDevice(uuid="GPU-1", mig_enabled=True),), library_file=LIBRARY)
    finding = gpu.mig(seen(access, mig_monitor=number), probe, NONE)
    assert (finding.verdict, finding.found) == (
        Verdict.WARN, f"1 GPUs have MIG switched on, the capability mig/monitor may not be used: {why}"
    )
    assert cure in finding.cure
    assert gpu.mig(seen(access), probe, NONE).verdict is Verdict.OK
    may = gpu.mig(seen(access, mig_monitor=number), probe, Privileges(effective=privileges.SYS_ADMIN))
    assert may.line == "ok    mig           1 GPUs have MIG switched on and may be read, with CAP_SYS_ADMIN"


# --- privileges ---

DEFAULT_CONTAINER = 0x00000000A80425FB  # CapEff of a container that drops nothing, containerd
EVERYTHING = 0x000001FFFFFFFFFF


@pytest.mark.parametrize(
    ("effective", "expected"),
    [
        (0, ()),
        (1 << 34, ("SYSLOG",)),
        (DEFAULT_CONTAINER,
         ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE",
          "NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP")),
        (1 << 45 | 1 << 21, ("SYS_ADMIN", "45")),
    ],
)  # fmt: skip
def test_capabilities_by_name(effective: int, expected: tuple[str, ...]) -> None:
    assert privileges.names(effective) == expected


@pytest.mark.parametrize(
    ("found", "needed", "privileged", "line"),
    [
        (Privileges(), 0, False, "ok    privileges    uid 0, no capability"),
        (Privileges(effective=EVERYTHING), 0, True,
         "ok    privileges    uid 0, privileged, as the driver root or the kernel log needs"),
        (Privileges(), 0, True,
         "warn  privileges    uid 0, not privileged, which the driver root or the kernel log needs: set privileged: "
         "true (agent.gpuAccess.mode hostPath and agent.kernelLog do): the devices cgroup denies device nodes that no "
         "runtime handed in"),
        (Privileges(uid=1000, in_pod=False), 0, True, "ok    privileges    uid 1000, in no pod"),
        (Privileges(effective=EVERYTHING), 0, False,
         "warn  privileges    uid 0 with every capability: nothing that is switched on needs that: set privileged: "
         "false and capabilities.drop: [ALL]"),
        (Privileges(effective=1 << 21 | 1 << 13), 1 << 21, False,
         "warn  privileges    uid 0 with CAP_NET_RAW: nothing that is switched on needs that: set privileged: false "
         "and capabilities.drop: [ALL]"),
        (Privileges(), 1 << 21, False,
         "warn  privileges    uid 0 without CAP_SYS_ADMIN: add it to securityContext.capabilities.add: SYS_ADMIN"),
        (Privileges(uid=65534), 0, False,
         "warn  privileges    uid 65534: set runAsUser: 0 with every capability dropped: the kubelet's socket is "
         "root's alone"),
        (Privileges(uid=1000, in_pod=False), 0, False, "ok    privileges    uid 1000, in no pod"),
    ],
)  # fmt: skip
def test_needless_and_missing_privileges(found: Privileges, needed: int, privileged: bool, line: str) -> None:
    assert privileges.finding(found, needed=needed, privileged_is_needed=privileged).line == line


@pytest.mark.parametrize(
    ("number", "found", "expected"),
    [
        (errno.EPERM, Privileges(dmesg_restricted=True), "kernel.dmesg_restrict is 1 and CAP_SYSLOG is missing"),
        (errno.EPERM, Privileges(dmesg_restricted=True, effective=privileges.SYSLOG),
         "the devices cgroup of the container denies it"),
        (errno.EPERM, Privileges(), "the devices cgroup of the container denies it"),
        (errno.EACCES, Privileges(uid=1000), "its file mode keeps this user out"),
    ],
)  # fmt: skip
def test_why_the_kernel_log_may_not_be_read(number: int, found: Privileges, expected: str) -> None:
    assert privileges.kernel_log_cure(number, found)[0] == expected


# --- every optional mount and permission, taken away ---

WITH_LOG = Config(lease_namespace="claimscope", kernel_log="/dev/kmsg", collectors=("processes",))
WITHOUT_PROCESSES = Config(lease_namespace="claimscope", kernel_log="/dev/kmsg")
WITHOUT_LOG = Config(lease_namespace="claimscope", collectors=("processes",))
TAKEN_AWAY: dict[str, tuple[dict[str, object], str]] = {
    "the pod-resources mount": ({"kubelet_error": errno.ENOENT}, "kubelet"),
    "uid 0": ({"kubelet_error": errno.EACCES, "privileges": Privileges(uid=65534)}, "kubelet privileges"),
    "the journal's mount": ({"state_error": errno.EROFS}, "journal"),
    "the control socket's directory": ({"control_error": errno.EROFS}, "control"),
    "/dev/kmsg": ({"kernel_log": KernelLogFacts(error="/dev/kmsg is not there: mount it")}, "kernel log"),
    "privileged, for /dev/kmsg": (
        {"kernel_log": KernelLogFacts(error="?", denied=errno.EPERM), "privileges": Privileges()},
        "kernel log privileges",
    ),
    "hostPID": ({"host_pids": False}, "pids"),
    "the RuntimeClass": (
        {"gpu": seen(Access.RUNTIME_CLASS, injected=False, nodes={}), "nvml": failed(LIBRARY_NOT_FOUND, None)},
        "gpu access nvml devices mig",
    ),
    "the driver root": (
        {"gpu": seen(Access.HOST_PATH), "nvml": failed(LIBRARY_NOT_FOUND, None)}, "gpu access nvml devices mig",
    ),
    "privileged, with a driver root": (
        {"gpu": seen(Access.HOST_PATH, nodes={}), "nvml": failed(UNKNOWN), "privileges": Privileges()},
        "gpu access nvml devices mig privileges",
    ),
    "the MIG capability": (
        {"gpu": seen(Access.RUNTIME_CLASS, mig_monitor=errno.ENOENT),
         "nvml": Probe(devices=(ProbedDevice(uuid="GPU-1", mig_enabled=True),), library_file=LIBRARY),
         "privileges": Privileges()}, "mig",
    ),
    "the dropping of capabilities": ({"privileges": Privileges(effective=DEFAULT_CONTAINER)}, "privileges"),
    "what hostPID is for": ({"config": WITHOUT_PROCESSES}, "pids"),
    "what privileged is for": ({"config": WITHOUT_LOG, "kernel_log": None}, "privileges"),
}  # fmt: skip


def granted(**changes: object) -> Facts:
    """Everything that can be granted is."""
    log = {"config": WITH_LOG, "kernel_log": KernelLogFacts(), "host_pids": True, "privileges": PRIVILEGED}
    return facts(**({**log, **changes}))


@pytest.mark.parametrize("held", [PRIVILEGED, NONE], ids=["privileged", "devices that somebody handed in"])
def test_nothing_is_said_where_everything_is_granted(held: Privileges) -> None:
    found = checks.examine(granted(privileges=held))
    assert [each.line for each in found if each.verdict is not Verdict.OK] == []


@pytest.mark.parametrize("what", TAKEN_AWAY)
def test_what_is_taken_away_is_named_with_its_cure(what: str) -> None:
    changes, names = TAKEN_AWAY[what]
    bad = [each for each in checks.examine(granted(**changes)) if each.verdict is not Verdict.OK]
    assert {each.name for each in bad} == set(re.split(r" (?!access|log)", names))
    assert any(each.cure or ": mount" in each.found for each in bad)


# --- the machine is looked at without opening anything ---


def test_the_driver_is_seen_in_proc_and_dev(tmp_path: Path) -> None:
    kernel = tmp_path / "proc/driver/nvidia"
    (kernel / "gpus/0000:18:00.0").mkdir(parents=True)
    (kernel / "gpus/0000:3b:00.0").mkdir()
    (kernel / "capabilities/mig").mkdir(parents=True)
    (kernel / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
    )
    (kernel / "capabilities/mig/monitor").write_text("DeviceFileMinor: 2\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text(
        "612 590 259:1 /lib/libnvidia-ml.so.580.65.06 /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65.06 ro - ext4\n"
    )
    (tmp_path / "dev/nvidia-caps").mkdir(parents=True)
    for name in ("ctl", "0", "10", "2", "-uvm", "-modeset", "-caps/nvidia-cap2"):
        (tmp_path / f"dev/nvidia{name}").touch()
    found = machine.gpu_facts(
        None, {"NVIDIA_VISIBLE_DEVICES": "all", "HOME": "/", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path
    )
    assert found == GpuFacts(
        in_pod=True, environment={"NVIDIA_VISIBLE_DEVICES": "all"}, injected=True, kernel_driver="580.65.06",
        kernel_gpus=2, nodes=dict.fromkeys(("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia2", "/dev/nvidia10")),
        mig_monitor=None,
    )
    (tmp_path / "dev/nvidia-caps/nvidia-cap2").unlink()
    assert machine.gpu_facts(None, {}, tmp_path).mig_monitor == errno.ENOENT


def test_a_system_without_a_driver(tmp_path: Path) -> None:
    assert machine.gpu_facts("/r", {}, tmp_path) == GpuFacts(
        driver_root="/r", in_pod=False, environment={}, nodes={}, mig_monitor=errno.ENOENT
    )


def test_privileges_are_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t0000000400000000\n")
    (tmp_path / "proc/sys/kernel/dmesg_restrict").write_text("1\n")
    assert machine.privileges({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path) == Privileges(
        uid=os.geteuid(), effective=1 << 34, in_pod=True, dmesg_restricted=True
    )


def test_access_is_asked_of_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert machine.access_error(file, os.R_OK | os.W_OK) is None
    assert machine.access_error(tmp_path / "none", os.R_OK) == errno.ENOENT
    file.chmod(stat.S_IRUSR)
    assert machine.access_error(file, os.X_OK) == errno.EACCES  # to root, too: nobody may execute it


# --- the driver root ---


def driver_root(directory: Path, library: Path) -> Path:
    """As the GPU Operator's driver container leaves it: links, absolute ones too, that mean the root as `/`."""
    root = directory / "driver"
    real = root / "usr/lib/x86_64-linux-gnu"
    real.mkdir(parents=True)
    (root / "usr/lib64").symlink_to("/usr/lib/x86_64-linux-gnu")
    (real / "libnvidia-ml.so.580.65.06").write_bytes(library.read_bytes())
    (real / "libnvidia-ml.so.1").symlink_to("/usr/lib64/libnvidia-ml.so.580.65.06")
    return root


async def test_the_library_is_found_behind_absolute_links_of_a_driver_root(cc: str, tmp_path: Path) -> None:
    del cc
    root = driver_root(tmp_path, build_library())
    real = root / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65.06"
    assert find_library(root) == real
    with SimulatedNvml(make_world("l40sx4"), directory=tmp_path / "state") as simulated:
        simulated.step(0.0)
        settings = quick(None, driver_root=str(root))
        async with running(settings, simulated.environment) as (_, heard):
            await heard.until(lambda: heard.inventories and heard.inventories[-1].devices)
    assert len(heard.inventories[-1].devices) == 4


async def test_a_driver_that_comes_later_is_found_then(cc: str, tmp_path: Path) -> None:
    """The GPU Operator may still be building the driver when the agent starts."""
    del cc
    (tmp_path / "driver").mkdir()
    library = build_library()
    with SimulatedNvml(make_world("l40sx4"), directory=tmp_path / "state") as simulated:
        simulated.step(0.0)
        async with running(quick(None, driver_root=str(tmp_path / "driver")), simulated.environment) as (_, heard):
            await heard.until(lambda: heard.inventories and heard.inventories[-1].error)
            assert "no libnvidia-ml.so.1 in usr/lib64, " in (heard.inventories[-1].error or "")
            (tmp_path / "driver").rmdir()
            driver_root(tmp_path, library)
            await heard.until(lambda: heard.inventories[-1].devices)


async def test_doctor_looks_under_the_driver_root(cc: str, tmp_path: Path) -> None:
    del cc
    root = driver_root(tmp_path, build_library())
    probe = await probe_nvml(None, str(root), seconds=20)
    assert probe.library_file == str(root / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65.06")
    assert "driver not loaded" in (probe.error or "")
    (root / "usr/lib64").unlink()
    missing = await probe_nvml(None, str(root), seconds=20)
    assert missing.code == LIBRARY_NOT_FOUND
    assert (missing.error or "").startswith(f"--driver-root {root}: no libnvidia-ml.so.1 in usr/lib64, ")
    gone = await probe_nvml(None, str(tmp_path / "none"), seconds=20)
    assert (gone.error or "").startswith(f"--driver-root {tmp_path / 'none'}: no such directory. Mount there ")


@pytest.mark.parametrize(
    "directory",
    ["", "usr/lib64", "lib64", "usr/lib/aarch64-linux-gnu", "usr/local/glibc/usr/lib",
     "x86_64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia/tesla",
     "aarch64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia/tesla"],
)  # fmt: skip
def test_layouts_of_distributions(tmp_path: Path, directory: str) -> None:
    (tmp_path / directory).mkdir(parents=True, exist_ok=True)
    (tmp_path / directory / "libnvidia-ml.so.1").touch()
    assert find_library(tmp_path) == tmp_path / directory / "libnvidia-ml.so.1"


def test_links_lead_nowhere_out_of_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "secret"
    (root / "usr/lib64").mkdir(parents=True)
    outside.write_text("not ours")
    link = root / "usr/lib64/libnvidia-ml.so.1"
    for target in (str(outside), "../../../secret", "/../../secret", "../../../../../../../../etc/passwd"):
        link.symlink_to(target)
        assert find_library(root) is None
        link.unlink()
    link.symlink_to("libnvidia-ml.so.1")
    with pytest.raises(OSError, match="Too many levels"):
        resolve(root, "usr/lib64/libnvidia-ml.so.1")
    assert find_library(root) is None


@given(
    links=st.dictionaries(
        st.sampled_from(("a", "b", "d/c", "d/e")),
        st.lists(st.sampled_from(("a", "b", "c", "d", "e", "..", ".", "file")), max_size=6).map("/".join),
        max_size=4,
    ),
    absolute=st.booleans(),
    path=st.lists(st.sampled_from(("a", "b", "c", "d", "e", "..", "file")), max_size=6).map("/".join),
)
def test_whatever_the_links_are_the_root_is_not_left(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], absolute: bool, path: str
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "d").mkdir()
    (root / "file").touch()
    for name, target in links.items():
        (root / name).symlink_to(f"/{target}" if absolute else target or ".")
    try:
        found = resolve(root, path)
    except OSError:
        return
    assert found.resolve().is_relative_to(root.resolve())
    assert found.exists()
    assert found == found.resolve()


# --- the setting ---


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"driver_root": "driver"},
         "--driver-root: `driver` is no absolute path: write where it is mounted, such as /driver-root"),
        ({"driver_root": "/driver-root", "nvml_library": "/x.so"},
         "--driver-root: --nvml-library /x.so names a library as well: leave one of them out"),
        ({"driver_root": "/driver-root", "simulate": "h100x8"},
         "--driver-root: --simulate h100x8 names a library as well: leave one of them out"),
    ],
)  # fmt: skip
def test_a_driver_root_that_cannot_be_meant(settings: dict[str, str | None], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(from_flags(settings))
    assert str(caught.value) == problem
