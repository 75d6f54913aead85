"""Where do a demo's processes run, so that nothing of them is left behind however the demo ends?

A demo that is told to stop clears up itself. One that is killed takes its children with it, and the next one clears
its directory away.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

_PREFIX = "claimscope-demo-"
_STOP_SECONDS = 10.0
# PR_SET_PDEATHSIG of linux/prctl.h: the kernel ends a child with its parent, whatever became of that. It survives
# execve; a parent that was gone before is noticed by its pid.
_WITH_PARENT = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(ctypes.c_ulong(1), ctypes.c_ulong(signal.SIGTERM))
if os.getppid() == int(sys.argv[1]):
    os.environ["TMPDIR"] = sys.argv[2]
    os.execv(sys.argv[3], sys.argv[3:])
"""


@contextlib.contextmanager
def work_directory(within: Path) -> Iterator[Path]:
    """A directory of one demo, held by a lock that ends with its process; those of dead demos are cleared away."""
    for left in within.glob(f"{_PREFIX}*"):
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=within))
        lock = _lock(made)
        if lock is not None and made.exists():  # else another demo was quick to take it for a dead one's
            break
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _lock(directory: Path) -> int | None:
    """A descriptor that holds a directory; None where somebody else does, or where it is somebody else's."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    os.close(descriptor)
    return None


@contextlib.asynccontextmanager
async def child(program: str, *arguments: str, directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process in a session of its own, so that Ctrl-C reaches it through us and in order; stopped at the end.

    It dies with us, and keeps its temporary files in `directory`.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid()), str(directory), program, *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
