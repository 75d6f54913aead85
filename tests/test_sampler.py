"""The sampler process on the simulated library: a real child process, real pynvml, real failures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from claimscope.model import Missing
from claimscope.nvml.supervisor import import_paths, process_state
from claimscope.sim import layout
from claimscope.sim.library import SimulatedNvml, build_library
from claimscope.sim.scenario import (
    CrashFault,
    DriverReloadFault,
    Fault,
    HangFault,
    LostFault,
    MigChangeFault,
    ReturnCodeFault,
    Scenario,
    SlowFault,
    XidFault,
)
from claimscope.sim.world import make_world
from sampler_help import Heard, quick, running

LATER = 1000.0  # of the simulation: when a fault of a test begins


@pytest.fixture(scope="session")
def library_path(cc: str) -> Path:
    return build_library()


class Node:
    """A simulated node whose clock the test moves."""

    def __init__(self, library: Path, directory: Path, profile: str, faults: tuple[Fault, ...]) -> None:
        self.world = make_world(profile, Scenario(faults=faults))
        self.nvml = SimulatedNvml(self.world, directory=directory, library_path=library)
        self.library = str(library)
        self.now = 0.0
        self.to(60.0)

    def to(self, seconds: float) -> None:
        """Makes it that many seconds after the start."""
        self.nvml.step(seconds)
        self.now = seconds

    def let_run(self, seconds: float) -> None:
        """Lets the counters move on by themselves for so long."""
        self.nvml.step(self.now, monotonic_ns=time.monotonic_ns(), step_seconds=seconds)

    def uuid(self, gpu: int) -> str:
        return next(e.uuid for e in self.world.state(self.now).entities if e.gpu == gpu and e.mig is None)

    def value(self, gpu: int, name: str) -> float:
        state = self.world.state(self.now)
        entity = next(e for e in state.entities if e.gpu == gpu and e.mig is None)
        return entity.variables[layout.VARIABLE_INDEX[name]]


Make = Callable[..., Node]


@pytest.fixture
def made(library_path: Path, tmp_path: Path) -> Iterator[Make]:
    nodes: list[Node] = []

    def make(*faults: Fault, profile: str = "h100x8") -> Node:
        nodes.append(Node(library_path, tmp_path / f"node-{len(nodes)}", profile, faults))
        return nodes[-1]

    yield make
    for node in nodes:
        node.nvml.close()


async def all_there(heard: Heard, node: Node) -> None:
    """All GPUs have sent two windows."""
    await heard.until(lambda: heard.inventories and heard.inventories[-1].devices)
    uuids = [node.uuid(gpu) for gpu in range(node.world.profile.gpu_count)]
    await heard.until(lambda: all(heard.count(uuid) >= 2 for uuid in uuids))


async def more(heard: Heard, uuid: str, windows: int = 2) -> None:
    """That entity sends that many more windows."""
    before = heard.count(uuid)
    await heard.until(lambda: heard.count(uuid) >= before + windows)


async def test_values_are_those_of_the_driver(made: Make) -> None:
    node = made()
    async with running(quick(node.library), node.nvml.environment) as (_, heard):
        await all_there(heard, node)
        window = heard.newest(node.uuid(0))
        assert window.last["power_instant"] == pytest.approx(node.value(0, "power_milliwatts") / 1000, abs=0.002)
        assert window.last["utilization_gpu"] == pytest.approx(node.value(0, "gpu_percent") / 100, abs=0.02)
        assert window.raw["energy"] == pytest.approx(node.value(0, "energy_millijoules") / 1000, abs=0.01)
        assert window.last["memory_used"] == pytest.approx(node.value(0, "memory_used"), rel=1e-6)
        assert window.ticks in (1, 2, 3)
        assert window.low["power_instant"] <= window.last["power_instant"] <= window.high["power_instant"]
        inventory = heard.inventories[-1]
        assert len(inventory.devices) == 8
        assert inventory.error is None
        assert inventory.devices[0].identity["architecture"] == "hopper"
        assert inventory.devices[0].pci_bus_id is not None
        assert re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:00\.0", inventory.devices[0].pci_bus_id)


async def test_performance_counters_are_compared_over_time(made: Make) -> None:
    node = made()
    uuid = node.uuid(0)
    node.let_run(60.0)
    async with running(quick(node.library), node.nvml.environment) as (_, heard):
        await heard.until(lambda: heard.windows and "utilization_sm" in heard.newest(uuid).last)
        window = heard.newest(uuid)
        assert 0.0 <= window.last["utilization_sm"] <= 1.0
        await heard.until(lambda: heard.newest(uuid).integral["utilization_sm"] > window.integral["utilization_sm"])
        assert heard.newest(uuid).raw["energy"] > window.raw["energy"]


async def test_the_integral_of_a_constant_is_its_value_times_the_time(made: Make) -> None:
    node = made()
    uuid = node.uuid(0)
    async with running(quick(node.library), node.nvml.environment) as (_, heard):
        await heard.until(lambda: heard.count(uuid) >= 10)
    windows = [window for window in heard.windows if window.entity == uuid]
    first, last = windows[1], windows[-1]
    busy = last.integral["utilization_gpu"] - first.integral["utilization_gpu"]
    elapsed = (last.end_ns - first.end_ns) / 1e9
    # A tick may wake late, and a late one is left out beyond 2.5 periods.
    assert busy == pytest.approx(last.last["utilization_gpu"] * elapsed, abs=0.15 * elapsed)


async def test_windows_follow_each_other_without_a_gap_on_the_grid_of_the_clock(made: Make) -> None:
    node = made()
    uuid = node.uuid(3)
    async with running(quick(node.library), node.nvml.environment) as (_, heard):
        await heard.until(lambda: heard.count(uuid) >= 6)
    windows = [window for window in heard.windows if window.entity == uuid]
    assert [w.start_ns for w in windows[1:]] == [w.end_ns for w in windows[:-1]]
    off = [min(w.end_wall_ns % 100_000_000, -w.end_wall_ns % 100_000_000) for w in windows]
    assert max(off) < 20_000_000


async def test_a_lost_gpu_costs_only_itself_and_comes_back(made: Make) -> None:
    node = made(LostFault(at=LATER, gpu=3, duration=100.0, xid=79))
    lost, other = node.uuid(3), node.uuid(2)
    async with running(quick(node.library), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        node.to(LATER + 1)
        await heard.until(lambda: lost in heard.inventories[-1].lost)
        assert lost not in [device.entity.uuid for device in heard.inventories[-1].devices]
        assert "lost" in heard.inventories[-1].lost[lost]
        # The XID is attributed although the GPU can no longer say who it is.
        await heard.until(lambda: (lost, "xid", 79) in [(e.entity, e.kind, e.code) for e in heard.events])
        await more(heard, other)
        before = heard.count(lost)
        await more(heard, other)
        assert heard.count(lost) == before
        node.to(LATER + 101)
        await heard.until(lambda: not heard.inventories[-1].lost)
        await more(heard, lost)
        assert heard.newest(lost).epoch > heard.newest(other).epoch
        assert not any(supervisor.restarts.values())


async def test_an_xid_arrives_within_a_tick(made: Make) -> None:
    node = made(XidFault(at=LATER, gpu=5, code=48))
    async with running(quick(node.library), node.nvml.environment) as (_, heard):
        await all_there(heard, node)
        node.to(LATER + 1)
        begun = time.monotonic()
        await heard.until(lambda: heard.events)
        assert time.monotonic() - begun < 1.0  # a tick is 50 ms; the rest is for a busy machine
    assert [(e.entity, e.kind, e.code) for e in heard.events] == [(node.uuid(5), "xid", 48)]


async def test_a_hang_quarantines_one_gpu_and_replaces_the_sampler_once(made: Make) -> None:
    node = made(HangFault(at=LATER, gpu=4, duration=100.0))
    hung, other = node.uuid(4), node.uuid(1)
    settings = quick(node.library)
    environ = node.nvml.environment
    async with running(settings, environ, hang_seconds=0.4, quarantine_seconds=0.5) as (supervisor, heard):
        await all_there(heard, node)
        first = supervisor.state.pid
        node.to(LATER + 1)
        await heard.until(lambda: supervisor.restarts.get("hang"))
        await heard.until(lambda: hung in heard.inventories[-1].lost)
        assert "quarantined" in heard.inventories[-1].lost[hung]
        await more(heard, other, 3)
        assert supervisor.state.pid != first
        node.to(LATER + 101)  # over: after its quarantine the GPU is taken back
        await heard.until(lambda: not supervisor.quarantined and not heard.inventories[-1].lost, 20)
        await more(heard, hung)


async def test_a_gpu_that_hangs_since_before_the_start_costs_only_itself(made: Make) -> None:
    node = made(HangFault(at=0.0, gpu=0, duration=LATER))
    environ = node.nvml.environment
    async with running(quick(node.library), environ, hang_seconds=0.4, quarantine_seconds=60.0) as (supervisor, heard):
        await heard.until(lambda: heard.inventories and heard.inventories[-1].devices, 20)
        shown = heard.inventories[-1]
        assert [device.entity.uuid for device in shown.devices] == [node.uuid(gpu) for gpu in range(1, 8)]
        assert shown.lost == {}
        assert [each.uuid for each in supervisor.quarantined] == ["unnamed GPU 0"]
        assert supervisor.restarts["hang"] == 1
        await more(heard, node.uuid(7), 3)


async def test_a_crash_starts_another(made: Make) -> None:
    node = made(CrashFault(at=LATER, gpu=2, function="nvmlDeviceGetUtilizationRates", duration=1e6))
    other = node.uuid(0)
    async with running(quick(node.library), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        node.to(LATER + 1)
        await heard.until(lambda: supervisor.restarts.get("crash"))
        await heard.until(lambda: node.uuid(2) in heard.inventories[-1].lost)
        await more(heard, other)
        assert [(q.index, q.call) for q in supervisor.quarantined] == [(2, "UtilizationRates")]


async def test_a_lost_gpu_keeps_its_uuid_in_a_new_sampler(made: Make) -> None:
    node = made(
        LostFault(at=LATER, gpu=2, duration=300.0),
        CrashFault(at=LATER + 100, gpu=5, function="nvmlDeviceGetUtilizationRates", duration=1e6),
    )
    lost, crashing = node.uuid(2), node.uuid(5)
    async with running(quick(node.library), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        node.to(LATER + 1)
        await heard.until(lambda: lost in heard.inventories[-1].lost)
        node.to(LATER + 101)
        await heard.until(lambda: supervisor.restarts["crash"])
        await heard.until(lambda: crashing in heard.inventories[-1].lost)
        assert sorted(heard.inventories[-1].lost) == sorted([lost, crashing])
        node.to(LATER + 301)
        await heard.until(lambda: lost not in heard.inventories[-1].lost)
        await more(heard, lost)


async def test_an_error_of_the_mig_mode_is_no_mig_change(made: Make) -> None:
    node = made(
        ReturnCodeFault(at=LATER, function="nvmlDeviceGetMigMode", code=999, duration=100.0), profile="a100x8-mig"
    )
    async with running(quick(node.library), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        before = {device.entity.uuid for device in heard.inventories[-1].devices}
        node.to(LATER + 1)
        supervisor.release()
        await heard.until(lambda: heard.inventories[-1].released)
        supervisor.acquire()
        await heard.until(lambda: heard.inventories[-1].devices)
        assert {device.entity.uuid for device in heard.inventories[-1].devices} == before
        assert heard.inventories[-1].lost == {}


async def test_costs_are_by_the_symbol_of_the_driver(made: Make) -> None:
    node = made()
    async with running(quick(node.library), node.nvml.environment) as (_, heard):
        await all_there(heard, node)
        assert [name for name in heard.statuses[-1].calls if not name.startswith("nvml")] == []


async def test_a_stopped_sampler_is_replaced_without_blaming_a_gpu(made: Make) -> None:
    node = made()
    async with running(quick(node.library), node.nvml.environment, hang_seconds=0.3) as (supervisor, heard):
        await all_there(heard, node)
        pid = supervisor.state.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await heard.until(lambda: supervisor.restarts["stopped"] == 1)
        session = heard.windows[-1].session
        await heard.until(lambda: heard.windows[-1].session != session)
        assert supervisor.quarantined == ()
        await heard.until(lambda: not Path(f"/proc/{pid}").exists())


async def test_release_lets_the_driver_go_and_acquire_takes_it_up(made: Make) -> None:
    node = made()
    uuid = node.uuid(0)
    async with running(quick(node.library), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        epoch = heard.newest(uuid).epoch
        supervisor.release()
        await heard.until(lambda: heard.inventories[-1].released)
        assert heard.inventories[-1].devices == ()
        # It holds over a restart of the sampler.
        pid = supervisor.state.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        session = heard.inventories[-1].session
        await heard.until(lambda: heard.inventories[-1].session != session)
        assert heard.inventories[-1].released
        supervisor.acquire()
        await heard.until(lambda: len(heard.inventories[-1].devices) == 8)
        await more(heard, uuid)
        assert (heard.newest(uuid).session, heard.newest(uuid).epoch) > (session, epoch - 1)


async def test_a_burst_is_fast_and_ends(made: Make) -> None:
    node = made()
    uuid = node.uuid(0)
    async with running(quick(node.library, sampling_hz=10.0), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        supervisor.burst(100, 1.0)
        await heard.until(lambda: heard.statuses[-1].sampling_hz == 100.0)
        await heard.until(lambda: heard.newest(uuid).ticks >= 7)  # of a window of 0.1 s
        await heard.until(lambda: heard.statuses[-1].sampling_hz == 10.0)
        await more(heard, uuid, 3)
        assert heard.newest(uuid).ticks <= 2


async def test_a_driver_reload_is_taken_up(made: Make) -> None:
    node = made(DriverReloadFault(at=LATER, duration=10.0, version="590.44.01"))
    uuid = node.uuid(0)
    async with running(quick(node.library), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        epoch, session = heard.newest(uuid).epoch, heard.newest(uuid).session
        node.to(LATER + 1)
        await heard.until(lambda: heard.inventories[-1].error)
        assert "driver is not loaded" in str(heard.inventories[-1].error)
        assert heard.inventories[-1].devices == ()
        node.to(LATER + 11)
        await heard.until(lambda: heard.inventories[-1].driver_version == "590.44.01")
        await more(heard, uuid)
        window = heard.newest(uuid)
        assert (window.session, any(supervisor.restarts.values())) == (session, False)
        assert window.epoch > epoch


async def test_a_library_of_another_version_is_exchanged_by_a_new_process(made: Make) -> None:
    node = made(DriverReloadFault(at=LATER, duration=10.0, code=18))
    async with running(quick(node.library), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        node.to(LATER + 1)
        await heard.until(lambda: supervisor.restarts.get("library_changed"))
        assert "different versions" in str(heard.inventories[-1].error)
        node.to(LATER + 11)
        await heard.until(lambda: len(heard.inventories[-1].devices) == 8)


async def test_mig_devices_have_windows_of_their_own(made: Make) -> None:
    node = made(profile="a100x8-mig")
    async with running(quick(node.library), node.nvml.environment) as (_, heard):
        await heard.until(lambda: heard.inventories and any(d.mig for d in heard.inventories[-1].devices))
        device = next(d for d in heard.inventories[-1].devices if d.mig)
        assert device.mig is not None
        assert re.fullmatch(r"(\dc\.)?\dg\.\d+gb(\+\w+)?", device.mig.profile)
        assert device.mig.profile_id is not None
        assert device.entity.parent in [d.entity.uuid for d in heard.inventories[-1].devices]
        assert device.entity.total_slices == 7
        await heard.until(lambda: heard.count(device.entity.uuid) >= 2)
        window = heard.newest(device.entity.uuid)
        assert window.last["memory_total"] > 0
        assert "power_instant" not in window.last  # of the GPU only


async def test_a_mig_change_is_taken_up(made: Make) -> None:
    node = made(MigChangeFault(at=LATER, gpu=0, layout=("3g.40gb", "3g.40gb")), profile="h100x8")
    async with running(quick(node.library), node.nvml.environment) as (supervisor, heard):
        await all_there(heard, node)
        node.to(LATER + 1)
        await heard.until(lambda: sum(d.mig is not None for d in heard.inventories[-1].devices) == 2, 20)
        mig = next(d.entity.uuid for d in heard.inventories[-1].devices if d.mig)
        await more(heard, mig)
        assert not any(supervisor.restarts.values())


async def test_what_the_driver_refuses_is_missing_with_its_reason(made: Make) -> None:
    node = made(
        ReturnCodeFault(at=0.0, function="nvmlDeviceGetBAR1MemoryInfo", code=4),
        ReturnCodeFault(at=0.0, function="nvmlDeviceGetPerformanceState", code=3),
        ReturnCodeFault(at=0.0, field=83, code=999),
    )
    async with running(quick(node.library), node.nvml.environment) as (_, heard):
        await all_there(heard, node)
        missing = heard.newest(node.uuid(0)).missing
        assert missing["bar1_memory_used"] is Missing.DENIED
        assert missing["performance_state"] is Missing.UNSUPPORTED
        assert missing["energy"] is Missing.FAILED


async def test_a_slow_driver_is_asked_less_often(made: Make) -> None:
    node = made(
        SlowFault(at=LATER, gpu=0, function="nvmlDeviceGetUtilizationRates", milliseconds=5.0, duration=1e6)
    )
    settings = quick(node.library, shed_seconds=0.3, recover_seconds=3600.0)
    async with running(settings, node.nvml.environment) as (_, heard):
        await all_there(heard, node)
        node.to(LATER + 1)
        await heard.until(lambda: heard.statuses[-1].shed and heard.statuses[-1].sampling_hz == 1.0, 30)
        assert heard.statuses[-1].driver_seconds[node.uuid(0)] > heard.statuses[-1].driver_seconds[node.uuid(1)]


_AGENT = """
import asyncio, json, os, sys
sys.path[:0] = sys.argv[3:]
from claimscope.nvml.supervisor import Supervisor
from claimscope.nvml.wire import Settings, WindowMessage

async def main():
    spoke = asyncio.Event()
    def hear(message):
        if isinstance(message, WindowMessage):
            spoke.set()
    settings = Settings(library=sys.argv[1], window_seconds=0.1)
    supervisor = Supervisor(settings, hear, environ=json.loads(sys.argv[2]), hang_seconds=60.0)
    task = asyncio.create_task(supervisor.run())
    await spoke.wait()
    print(supervisor.state.pid, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

asyncio.run(main())
"""


async def test_the_parent_ends_at_once_while_its_sampler_hangs(made: Make) -> None:
    node = made(HangFault(at=LATER, gpu=4))
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "dev", "-c", _AGENT, node.library, json.dumps(node.nvml.environment), *import_paths(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    pid = int(await agent.stdout.readline())
    node.to(LATER + 1)
    begun = time.monotonic()
    _, errors = await asyncio.wait_for(agent.communicate(b"go\n"), 10)
    assert time.monotonic() - begun < 5
    assert agent.returncode == 0
    assert "Warning" not in errors.decode()
    await Heard().until(lambda: process_state(pid) in ("", "Z"))


async def test_the_sampler_ends_when_its_parent_is_killed(made: Make) -> None:
    node = made()
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _AGENT, node.library, json.dumps(node.nvml.environment), *import_paths(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    assert agent.stdout is not None
    pid = int(await agent.stdout.readline())
    agent.kill()
    await agent.wait()
    await Heard().until(lambda: process_state(pid) in ("", "Z"))
