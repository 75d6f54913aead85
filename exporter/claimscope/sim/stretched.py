"""What would the rules of health say of hours on a simulated node? Told in seconds.

Windows are read by the sampler's own readers from the simulated library and judged at once: nothing between the library
and the rules is replaced but the clock and the sampler's process. One at a time in a process, as NVML is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from claimscope.health.report import all_findings
from claimscope.health.thresholds import Thresholds
from claimscope.health.watch import HealthWatch
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Event, Inventory, Window
from claimscope.nvml import inventory, library
from claimscope.nvml.calls import CALLS
from claimscope.nvml.fields import field_ids
from claimscope.nvml.gpm_metrics import GPM_METRICS
from claimscope.nvml.reader import Catalog, EntityReader
from claimscope.nvml.sampler import EVENT_KINDS
from claimscope.sim.library import SimulatedNvml, SimulatorError
from claimscope.sim.scenario import Fault, PodPlan, Scenario
from claimscope.sim.world import make_world

BOOTED_NS = 3 * 86_400 * 10**9
WALL_NS = 1_700_000_000 * 10**9
WINDOW_SECONDS = 5.0


class StretchedNode:
    """All GPUs of a profile, from second 60 of the simulation on."""

    def __init__(self, simulated: SimulatedNvml, loaded: library.Library, window_seconds: float) -> None:
        self.seconds = 60.0
        self._simulated = simulated
        self._length_ns = round(window_seconds * 1e9)
        driver = simulated.world.driver(self.seconds)[1]
        walk = inventory.enumerate_gpus(lambda index, call: None, {}, {}, str(simulated.library_path))
        catalog = Catalog(
            quantities=QUANTITIES, calls=CALLS, field_ids=field_ids(driver), gpm_metrics=GPM_METRICS, collectors=(),
            reprobe_ns=10**18, found=walk.found,
        )  # fmt: skip
        self._heartbeat = memoryview(bytearray(64)).cast("Q")
        self.readers = [EntityReader(loaded, one, catalog, has_mig=False, epoch=1) for one in walk.found]
        for reader in self.readers:
            code = reader.probe(self._heartbeat, self._clock, gpm_period_ns=10**9, offset_ns=0)
            if code:
                raise SimulatorError(f"{reader.uuid} does not answer: NVML error {code}")
        self.watch = HealthWatch(
            boot_id="boot-1", thresholds=Thresholds(), pod_of=lambda uuid, pid: None, now_ns=self._clock(),
            wall_ns=self.wall_ns,
        )  # fmt: skip
        known = Inventory(
            session=1, epoch=1, driver_version=driver, nvml_version=None, cuda_version=None,
            devices=tuple(one.device for one in walk.found),
        )  # fmt: skip
        self.watch.inventory(known, self._clock(), self.wall_ns)
        self._gpus = {one.device.entity.uuid: one.device.entity.gpu for one in walk.found}

    def _clock(self) -> int:
        return BOOTED_NS + round(self.seconds * 1e9)

    @property
    def wall_ns(self) -> int:
        """Unix time of the simulation."""
        return WALL_NS + round(self.seconds * 1e9)

    def windows(self) -> list[Window]:
        """Moves on by one window and reads everything."""
        before = self.seconds
        self.seconds += self._length_ns / 1e9
        self._simulated.step(self.seconds)
        for event in self._simulated.world.events(before, self.seconds):
            uuid = next(uuid for uuid, gpu in self._gpus.items() if gpu == event.gpu)
            told = Event(entity=uuid, kind=EVENT_KINDS[event.type], code=event.data, wall_ns=self.wall_ns)
            self.watch.event(told, self._clock(), self.wall_ns)
        return [self._window(reader) for reader in self.readers]

    def judge(self, windows: list[Window]) -> None:
        """Hands them to the rules."""
        for window in windows:
            self.watch.window(window, self._clock(), self.wall_ns)
        self.watch.tick(self._clock(), self.wall_ns)

    def run(self, seconds: float) -> StretchedNode:
        """Lets so much time pass, and gives itself."""
        end = self.seconds + seconds
        while self.seconds < end - 1e-9:
            self.judge(self.windows())
        return self

    def findings(self) -> set[tuple[int, str]]:
        """(GPU, rule) of all that stands."""
        return {(self._gpus[finding.uuid], finding.rule) for finding in all_findings(self.watch.view())}

    def _window(self, reader: EntityReader) -> Window:
        now_ns = self._clock()
        for group in reader.tick_groups:
            group.read(self._heartbeat, self._clock)
        if now_ns >= reader.due_ns:
            reader.read_slow(now_ns, self._heartbeat, self._clock)
        reader.fold(self._length_ns)
        totals = reader.totals
        made = Window(
            entity=reader.uuid, session=1, epoch=1, start_ns=now_ns - self._length_ns, end_ns=now_ns,
            end_wall_ns=self.wall_ns, ticks=1, last=totals.last.copy(), low=totals.low, high=totals.high,
            integral=totals.integral.copy(), raw=totals.raw.copy(), missing=totals.missing.copy(),
            text=totals.text.copy(), processes=reader.processes,
        )  # fmt: skip
        totals.low, totals.high = {}, {}
        return made


@contextlib.contextmanager
def stretched_node(
    profile: str, *faults: Fault, pods: tuple[PodPlan, ...] | None = None, window_seconds: float = WINDOW_SECONDS
) -> Iterator[StretchedNode]:
    """A node with these faults, and the usual pods unless others are given."""
    world = make_world(profile, Scenario(pods=pods, faults=faults))
    with SimulatedNvml(world) as simulated:
        simulated.step(60.0)
        before = {name: os.environ.get(name) for name in simulated.environment}
        os.environ.update(simulated.environment)
        try:
            loaded = library.load(str(simulated.library_path))
            library.initialise(loaded)
            node = StretchedNode(simulated, loaded, window_seconds)
            try:
                yield node
            finally:
                for reader in node.readers:
                    reader.free()
                library.shut_down()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
