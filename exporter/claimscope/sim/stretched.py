"""What would the rules of health say of hours on a simulated node? Told in seconds.

Windows are read by the sampler's own readers from the simulated library and judged at once: nothing between the library
and the rules is replaced but the clock and the sampler's process. One at a time in a process, as NVML is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec

from claimscope.health.report import all_findings, findings_annotation
from claimscope.health.thresholds import Thresholds
from claimscope.health.watch import HealthJournal, HealthWatch, journal_of
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Event, Inventory, Window
from claimscope.nvml import inventory, library
from claimscope.nvml.calls import CALLS
from claimscope.nvml.driver_events import EVENT_KINDS
from claimscope.nvml.fields import field_ids
from claimscope.nvml.gpm_metrics import GPM_METRICS
from claimscope.nvml.reader import Catalog, EntityReader
from claimscope.sim.library import SimulatedNvml, SimulatorError
from claimscope.sim.scenario import Fault, PodPlan, Scenario
from claimscope.sim.world import make_world

BOOTED_NS = 3 * 86_400 * 10**9
UP_NS = 90 * 10**9  # after a reboot the agent starts so late
WALL_NS = 1_700_000_000 * 10**9
WINDOW_SECONDS = 5.0


class StretchedNode:
    """All GPUs of a profile, from second 60 of the simulation on."""

    def __init__(self, simulated: SimulatedNvml, loaded: library.Library, window_seconds: float) -> None:
        self.seconds = 60.0
        self.readers: list[EntityReader] = []
        self._simulated = simulated
        self._loaded = loaded
        self._length_ns = round(window_seconds * 1e9)
        self._heartbeat = memoryview(bytearray(64)).cast("Q")
        self._boots = self._session = 1
        self._epoch = self._driver = 0
        self._zero_ns = BOOTED_NS  # of the monotonic clock, when the simulation began
        self._gpus: dict[str, int] = {}
        self.watch = self._judge_anew(None)
        self._take_up()

    def _judge_anew(self, journal: HealthJournal | None) -> HealthWatch:
        return HealthWatch(
            boot_id=f"boot-{self._boots}", thresholds=Thresholds(), pod_of=lambda uuid, pid: None,
            now_ns=self._clock(), wall_ns=self.wall_ns, journal=journal,
        )  # fmt: skip

    def _take_up(self) -> None:
        """Finds all GPUs, as a sampler does when NVML answers."""
        _, driver, self._driver = self._simulated.world.driver(self.seconds)
        self._epoch += 1
        walk = inventory.enumerate_gpus(lambda index, call: None, {}, {}, str(self._simulated.library_path))
        catalog = Catalog(
            quantities=QUANTITIES, calls=CALLS, field_ids=field_ids(driver), gpm_metrics=GPM_METRICS,
            collectors=("processes",), reprobe_ns=10**18, found=walk.found,
        )  # fmt: skip
        self.readers = [
            EntityReader(self._loaded, one, catalog, has_mig=False, epoch=self._epoch) for one in walk.found
        ]
        for reader in self.readers:
            code = reader.probe(self._heartbeat, self._clock, gpm_period_ns=10**9, offset_ns=0)
            if code:
                raise SimulatorError(f"{reader.uuid} does not answer: NVML error {code}")
        known = Inventory(
            session=self._session, epoch=self._epoch, driver_version=driver, nvml_version=None, cuda_version=None,
            devices=tuple(one.device for one in walk.found),
        )  # fmt: skip
        self.watch.inventory(known, self._clock(), self.wall_ns)
        self._gpus = {one.device.entity.uuid: one.device.entity.gpu for one in walk.found}

    def let_go(self) -> None:
        """Shuts NVML down."""
        for reader in self.readers:
            reader.free()
        self.readers = []
        library.shut_down()

    def _answers(self) -> bool:
        """Whether NVML does; after the driver was loaded again it is taken up anew."""
        answer, _, driver = self._simulated.world.driver(self.seconds)
        if answer == 0 and driver == self._driver and self.readers:
            return True
        if self.readers:
            self.let_go()
        try:
            library.initialise(self._loaded)
        except library.LibraryError as error:
            gone = Inventory(
                session=self._session, epoch=self._epoch, driver_version=None, nvml_version=None, cuda_version=None,
                devices=(), error=str(error),
            )  # fmt: skip
            self.watch.inventory(gone, self._clock(), self.wall_ns)
            return False
        self._take_up()
        return True

    def restart_agent(self) -> None:
        """A new agent goes on from the journal of the one before."""
        journal = journal_of(msgspec.json.encode(self.watch.journal()))
        self.let_go()
        self._session += 1
        self._epoch = 0
        self.watch = self._judge_anew(journal)
        self._answers()

    def reboot(self, away_seconds: float) -> None:
        """The machine starts anew. That its counters do, too, is up to the scenario: a `driver_reload` at that time."""
        self.seconds += away_seconds
        self._simulated.step(self.seconds)
        self._zero_ns = UP_NS - round(self.seconds * 1e9)
        self._boots += 1
        self.restart_agent()

    def _clock(self) -> int:
        return self._zero_ns + round(self.seconds * 1e9)

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
        return [self._window(reader) for reader in self.readers] if self._answers() else []

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

    def annotation(self) -> str:
        """What the node's Lease would say to the controller."""
        return findings_annotation(self.watch.view())

    def _window(self, reader: EntityReader) -> Window:
        now_ns = self._clock()
        for group in reader.tick_groups:
            group.read(self._heartbeat, self._clock)
        if now_ns >= reader.due_ns:
            reader.read_slow(now_ns, self._heartbeat, self._clock)
        reader.fold(self._length_ns)
        totals = reader.totals
        made = Window(
            entity=reader.uuid, session=self._session, epoch=self._epoch, start_ns=now_ns - self._length_ns,
            end_ns=now_ns, end_wall_ns=self.wall_ns, ticks=1, last=totals.last.copy(), low=totals.low, high=totals.high,
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
                node.let_go()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
