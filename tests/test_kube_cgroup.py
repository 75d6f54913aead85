"""Every shape of /proc/<pid>/cgroup that container runtimes make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.kube.cgroup import CgroupOwner, owner_of

UID = "bc2bfd43-bee6-4611-97bc-bd747926512a"
SLICE_UID = UID.replace("-", "_")
ID = "0123456789abcdef" * 4
STATIC = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice/"
            f"cri-containerd-{ID}.scope\n",
            CgroupOwner(pod_uid=UID, container_id=ID),
        ),
        (
            f"0::/kubepods.slice/kubepods-pod{SLICE_UID}.slice/crio-{ID}.scope/container\n",
            CgroupOwner(pod_uid=UID, container_id=ID),
        ),
        (
            f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICE_UID}.slice/docker-{ID}.scope\n",
            CgroupOwner(pod_uid=UID, container_id=ID),
        ),
        (
            f"12:pids:/kubepods/besteffort/pod{UID}/{ID}\n11:cpu,cpuacct:/kubepods/besteffort/pod{UID}/{ID}\n",
            CgroupOwner(pod_uid=UID, container_id=ID),
        ),
        (
            f"1:name=systemd:/system.slice/containerd.service/kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID}\n",
            CgroupOwner(pod_uid=UID, container_id=ID),
        ),
        (f"0::/kubepods/burstable/pod{STATIC}/{ID}\n", CgroupOwner(pod_uid=STATIC, container_id=ID)),
        (f"0::/kubepods/burstable/pod{UID}\n", CgroupOwner(pod_uid=UID, container_id=None)),
        ("0::/system.slice/sshd.service\n", None),
        (f"0::/docker/{ID}\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_owner(text: str, owner: CgroupOwner | None) -> None:
    assert owner_of(text) == owner


@given(st.text(max_size=100))
def test_any_text_is_survived(text: str) -> None:
    owner_of(text)
