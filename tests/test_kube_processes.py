"""Processes to pods through /proc and the kubelet's log directory."""

from pathlib import Path

from claimscope.attribution import owners
from claimscope.kube.processes import ProcessPods, pod_names
from claimscope.model import Hold, Holder, PodRef

UID = "0f0b9a6e-7c39-4d3e-9a8b-1f2e3d4c5b6a"
SLICE = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
CGROUP = f"0::/kubepods.slice/kubepods-burstable.slice/{SLICE}/cri-containerd-{'a' * 64}.scope\n"


def test_pod_names_are_read_from_the_kubelets_log_directory() -> None:
    assert pod_names([f"ml-team_trainer-0_{UID}", "stray", "a_b", "_x_y"]) == {UID: ("ml-team", "trainer-0")}


def test_a_process_is_followed_to_its_pod(tmp_path: Path) -> None:
    proc, logs = tmp_path / "proc", tmp_path / "pods"
    for pid, text in ((7, CGROUP), (8, "0::/system.slice/sshd.service\n")):
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "cgroup").write_text(text)
    (logs / f"ml-team_trainer-0_{UID}").mkdir(parents=True)
    process_pods = ProcessPods(proc, logs)
    assert process_pods.pods([7, 8, 9]) == {7: ("ml-team", "trainer-0")}
    (proc / "7" / "cgroup").write_text("0::/system.slice/other.service\n")  # the pid was given to another process
    assert process_pods.pods([7]) == {}


def test_without_the_log_directory_no_pod_is_known(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(CGROUP)
    assert ProcessPods(tmp_path, tmp_path / "absent").pods([7]) == {}


def test_owners_leave_out_what_is_ambiguous() -> None:
    one = Holder(source="claim", namespace="ml-team", name="a", uid="1")
    two = Holder(source="claim", namespace="ml-team", name="b", uid="2")

    def hold(holder: Holder, *pods: str) -> Hold:
        return Hold(
            holder=holder,
            entity="GPU-1",
            share=0.5,
            basis="share",
            pods=tuple(PodRef(namespace="ml-team", pod=pod, container="c") for pod in pods),
        )

    holds = (hold(one, "x", "both"), hold(two, "both"))
    pods = {1: ("ml-team", "x"), 2: ("ml-team", "both"), 3: ("ml-team", "stranger")}
    assert owners(holds, "GPU-1", pods) == {1: one}
    assert owners(holds, "GPU-2", pods) == {}
