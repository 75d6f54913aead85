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
from collections.abc import AsyncIterator, Iterator, Sequence
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


class Parts:
    """Processes by name that may be stopped and started again; `ended` is the first that ends by itself."""

    def __init__(self, directory: Path) -> None:
        self.ended: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self._directory = directory
        self._running: dict[str, contextlib.AsyncExitStack] = {}
        self._watching: set[asyncio.Task[None]] = set()

    async def start(self, name: str, command: Sequence[str]) -> asyncio.subprocess.Process:
        """Starts a process that does not run."""
        stack = contextlib.AsyncExitStack()
        process = await stack.enter_async_context(child(*command, directory=self._directory))
        self._running[name] = stack
        watching = asyncio.create_task(self._watch(name, stack, process))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return process

    async def stop(self, name: str) -> None:
        """Stops a process that runs."""
        await self._running.pop(name).aclose()

    async def stop_all(self) -> None:
        """Stops whatever runs, the last one first."""
        for name in reversed(tuple(self._running)):
            await self.stop(name)
        await asyncio.gather(*self._watching)

    async def _watch(
        self, name: str, stack: contextlib.AsyncExitStack, process: asyncio.subprocess.Process
    ) -> None:
        status = await process.wait()
        if self._running.get(name) is stack and not self.ended.done():
            self.ended.set_result((name, status))
