"""Processes and files of a demo that ends in whichever way."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from claimscope.sim.sandbox import child, work_directory

DEMO = """
import asyncio, sys
from pathlib import Path
from claimscope.cli.signals import until_signal
from claimscope.sim.sandbox import child, work_directory

async def main():
    with work_directory(Path(sys.argv[1])) as directory:
        async with child(sys.executable, "-c", "import time; time.sleep(60)", directory=directory) as process:
            print(process.pid, directory, flush=True)
            await asyncio.sleep(60)

asyncio.run(until_signal(main()))
"""


def started(within: Path) -> tuple[subprocess.Popen[str], int, Path]:
    """A demo with one child: the demo, a descriptor that tells of the child's end, and its directory."""
    demo = subprocess.Popen([sys.executable, "-c", DEMO, str(within)], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    pid, directory = demo.stdout.readline().split()
    demo.stdout.close()
    return demo, os.pidfd_open(int(pid)), Path(directory)


def ended(descriptor: int) -> bool:
    """Whether the process ends soon."""
    try:
        return bool(select.select([descriptor], [], [], 10.0)[0])
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("signals", [(signal.SIGKILL,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT)])
def test_children_die_with_their_demo_and_the_next_clears_up(
    tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    demo, of_child, directory = started(tmp_path)
    for number in signals:
        demo.send_signal(number)
    demo.wait(10)
    assert ended(of_child)
    with work_directory(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert list(tmp_path.iterdir()) == []
    assert not directory.exists()


def test_what_a_living_demo_uses_and_what_is_nobodys_stays(tmp_path: Path) -> None:
    other = tmp_path / "claimscope-demo"
    other.mkdir()
    with work_directory(tmp_path) as one, work_directory(tmp_path) as two:
        assert sorted(tmp_path.iterdir()) == sorted([other, one, two])
    assert list(tmp_path.iterdir()) == [other]


def test_a_child_keeps_its_temporary_files_in_the_directory_and_is_stopped(tmp_path: Path) -> None:
    assert asyncio.run(ran(tmp_path)) == -signal.SIGTERM
    assert len(list(tmp_path.iterdir())) == 2


async def ran(directory: Path) -> int | None:
    """The status of a child that was stopped once it had made a file and a directory."""
    program = "import sys, tempfile, time; tempfile.mkdtemp(); open(sys.argv[1], 'w').close(); time.sleep(60)"
    async with child(sys.executable, "-c", program, str(directory / "ready"), directory=directory) as process:
        async with asyncio.timeout(10):
            while not (directory / "ready").exists():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
    return process.returncode
