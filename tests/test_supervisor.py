"""The parent's side of the sampler, where no simulated driver is needed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from claimscope.nvml import control
from claimscope.nvml.supervisor import (
    Quarantine,
    SupervisorState,
    child_environment,
    hang_of,
    import_paths,
    process_state,
)
from claimscope.nvml.wire import EVENT_WAIT_NUMBER
from sampler_help import quick, running

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("beat", "now", "stuck"),
    [
        ((0, 0, 0, 0), 59 * SECOND, False),  # starting
        ((0, 0, 0, 0), 61 * SECOND, True),
        ((9, 0, 0, 10 * SECOND), 15 * SECOND, False),  # between calls
        ((9, 0, 0, 10 * SECOND), 17 * SECOND, True),
        ((9, 3 << 32 | 7, 10 * SECOND, 10 * SECOND), 14 * SECOND, False),  # in a call on GPU 2
        ((9, 3 << 32 | 7, 10 * SECOND, 10 * SECOND), 16 * SECOND, True),
        ((9, 2, 10 * SECOND, 10 * SECOND), 60 * SECOND, False),  # in nvmlInit
        ((9, 2, 10 * SECOND, 10 * SECOND), 71 * SECOND, True),
        ((9, EVENT_WAIT_NUMBER, 10 * SECOND, 10 * SECOND), 16 * SECOND, True),
    ],
)
def test_what_counts_as_stuck(beat: tuple[int, int, int, int], now: int, stuck: bool) -> None:
    assert hang_of(beat, now_ns=now, started_ns=0, hang_ns=5 * SECOND, start_ns=60 * SECOND) is stuck


def test_the_sampler_gets_only_what_it_needs_of_the_environment() -> None:
    given = {
        "LD_LIBRARY_PATH": "/x", "NVIDIA_VISIBLE_DEVICES": "all", "CLAIMSCOPE_SIM_STATE": "/s", "AWS_SECRET": "no",
        "PYTHONPATH": "/evil",
    }
    assert child_environment(given) == {
        "LD_LIBRARY_PATH": "/x", "NVIDIA_VISIBLE_DEVICES": "all", "CLAIMSCOPE_SIM_STATE": "/s",
    }


def test_process_state_of_ourselves_and_of_nobody() -> None:
    assert process_state(os.getpid()) == "R"
    assert process_state(2**22 + 1) == ""


def test_the_sampler_imports_little() -> None:
    program = (
        "import sys\nsys.path[:0] = sys.argv[1:]\nimport claimscope.nvml.sampler\n"
        "tops = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(' '.join(sorted(tops)))\n"
        "print(' '.join(name for name in ('asyncio', 'subprocess', 'logging', 'threading') if name in sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, *import_paths()], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    # typing_extensions comes with msgspec, where it is installed.
    assert set(printed[0].split()) - {"typing_extensions"} == {"__main__", "claimscope", "msgspec", "pynvml"}
    assert "asyncio" not in printed[1:]


def test_the_parent_does_not_import_pynvml() -> None:
    program = "import sys, claimscope.nvml.supervisor, claimscope.nvml.control; print('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout == b"False\n"


async def test_no_library(tmp_path: Path) -> None:
    path = str(tmp_path / "libnvidia-ml.so.1")
    async with running(quick(path)) as (supervisor, heard):
        await heard.until(lambda: heard.inventories)
        inventory = heard.inventories[0]
        assert inventory.devices == ()
        assert inventory.error is not None
        assert inventory.error.startswith(f"no usable NVML library at {path}: ")
        assert "--nvml-library" in inventory.error
        await heard.until(lambda: len(heard.statuses) > 1)
        assert supervisor.state.restarts == {"hang": 0, "stopped": 0, "crash": 0, "library_changed": 0}


async def test_a_library_that_is_no_nvml() -> None:
    async with running(quick("libc.so.6")) as (_, heard):
        await heard.until(lambda: heard.inventories)
        assert heard.inventories[0].error is not None
        assert heard.inventories[0].error.startswith("libc.so.6 is a library, but not an NVML")


async def test_a_sampler_that_cannot_start_is_tried_again() -> None:
    async with running(quick(None), {"LD_LIBRARY_PATH": "/nonexistent"}) as (supervisor, heard):
        await heard.until(lambda: supervisor.state.pid)
        pid = supervisor.state.pid
        assert pid is not None
        os.kill(pid, 9)
        await heard.until(lambda: supervisor.state.restarts["crash"] == 1)
        await heard.until(lambda: supervisor.state.pid not in (None, pid))


async def test_a_full_socket_delays_a_release_and_drops_none(tmp_path: Path) -> None:
    async with running(quick(str(tmp_path / "none.so"))) as (supervisor, heard):
        await heard.until(lambda: heard.inventories)
        pid = supervisor.state.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        for _ in range(2000):
            supervisor.burst(1.0, 0.0)
        supervisor.release()
        os.kill(pid, signal.SIGCONT)
        await heard.until(lambda: heard.inventories[-1].released)
        assert supervisor.state.pid == pid


class Recorder:
    """Controls that only write down."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @property
    def state(self) -> SupervisorState:
        return SupervisorState(
            pid=7, restarts={"hang": 1},
            quarantined=(Quarantine(uuid="GPU-a", index=3, call="GetX", until_ns=0, times=1),), unreaped=False,
            last_message_ns=None, last_window_ns=None, malformed_messages=0, released=False, status=None,
            inventory=None,
        )

    def release(self) -> None:
        self.asked.append("release")

    def acquire(self) -> None:
        self.asked.append("acquire")

    def burst(self, hz: float, seconds: float) -> None:
        self.asked.append(f"burst {hz:g} {seconds:g}")


async def test_control_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    controls = Recorder()
    async with control.ControlServer(path, controls):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert (await control.ask(path, {"command": "release"})).startswith("NVML is being let go")
        await control.ask(path, {"command": "acquire"})
        assert await control.ask(path, {"command": "burst", "hz": 50, "seconds": 2}) == "sampling at 50 Hz for 2 s"
        status = json.loads(await control.ask(path, {"command": "status"}))
        assert (status["pid"], status["restarts"], status["quarantined"][0]["uuid"]) == (7, {"hang": 1}, "GPU-a")
        with pytest.raises(control.ControlError, match="another agent listens"):
            async with control.ControlServer(path, controls):
                pass
    assert controls.asked == ["release", "acquire", "burst 50 2"]
    with pytest.raises(control.ControlError, match="no agent listens"):
        await control.ask(path, {"command": "status"})


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"\xff\xfe\n", "not a request: "),
        (b"[1]\n", "not a request: "),
        (b'{"command": "format disk"}\n', "unknown command 'format disk'"),
        (b'{"command": "burst", "hz": 1000}\n', "a burst of 1000 Hz for 10 s is out of bounds"),
        (b'{"command": "burst", "hz": "fast"}\n', "not a request: "),
        (b"x" * 100_000 + b"\n", "the line is longer than 4096 bytes"),
    ],
)
async def test_malformed_lines_cost_only_their_connection(tmp_path: Path, line: bytes, error: str) -> None:
    path = str(tmp_path / "control.sock")
    async with control.ControlServer(path, Recorder()):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        reply = json.loads(await reader.readline())
        assert reply["ok"] is False
        assert reply["error"].startswith(error)
        writer.close()
        assert await control.ask(path, {"command": "acquire"}) == "NVML is being taken up again"


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with control.ControlServer(path, Recorder()):
        await control.ask(path, {"command": "status"})


async def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(control.ControlError, match="is no socket"):
        async with control.ControlServer(str(path), Recorder()):
            pass
    assert path.read_text() == "precious"
