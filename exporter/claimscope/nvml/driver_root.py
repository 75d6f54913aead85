"""Where under a driver's root directory is libnvidia-ml.so.1?

The root is a directory of the node that is mounted into the container: the driver container of the GPU Operator, the
whole host, or a directory into which a cloud installed the driver. Links in it were written for a process that has it
as its root, so they are followed as chroot would: an absolute one starts at the root, and none leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from pathlib import Path
from typing import Final

LIBRARY: Final = "libnvidia-ml.so.1"
_MOST_LINKS: Final = 40  # MAXSYMLINKS of linux/namei.h

# The first seven as in NVIDIA's DRA driver (cmd/gpu-kubelet-plugin/root.go); GKE's /home/kubernetes/bin/nvidia and
# /opt/nvidia are roots with a lib64. Then distributions without such a link, Talos' and Bottlerocket's
# (`%{_cross_libdir}/nvidia/tesla` of kmod-6.1-nvidia-r570.spec in its kernel kit), where the host is the root.
DIRECTORIES: Final = (
    ".", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib64", "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu", "usr/lib", "usr/local/glibc/usr/lib",
    "x86_64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia/tesla",
    "aarch64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia/tesla",
)  # fmt: skip


def resolve(root: Path, inside: str) -> Path:
    """The path, as this process sees it, of a path within the root. Raises OSError where there is none."""
    waiting = deque(_parts(inside))
    found: list[str] = []
    links = 0
    while waiting:
        part = waiting.popleft()
        if part == "..":
            found = found[:-1]  # above the root is the root
            continue
        here = root.joinpath(*found, part)
        if not stat.S_ISLNK(os.lstat(here).st_mode):
            found.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(here))
        target = os.readlink(here)
        if target.startswith("/"):
            found = []
        waiting.extendleft(reversed(_parts(target)))
    return root.joinpath(*found)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def find_library(root: Path) -> Path | None:
    """The first libnvidia-ml.so.1 under the root, with its links followed; None where there is none."""
    for directory in DIRECTORIES:
        try:
            found = resolve(root, f"{directory}/{LIBRARY}")
        except OSError:
            continue  # not there, or not readable: the next one
        if found.is_file():
            return found
    return None
