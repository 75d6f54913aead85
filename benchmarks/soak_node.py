"""What does the agent of one healthy node say for so many days? `python -m benchmarks.soak_node KIND DAYS`.

Prints a JSON line whenever what it would write into its Lease changes (`null`: nobody is there to write), and the costs
at the end. Windows are read by the sampler's own readers from the simulated library, with the clock stretched, and
judged by all rules. Everything that happens is what healthy nodes go through.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from claimscope.health.model import RuleState
from claimscope.health.report import findings_annotation
from claimscope.sim.profiles import Profile, profile_named
from claimscope.sim.scenario import (
    AnswerFault,
    ClaimPlan,
    DriverReloadFault,
    EccFault,
    Fault,
    NvlinkErrorsFault,
    PodPlan,
    ThermalFault,
    XidFault,
)
from claimscope.sim.stretched import StretchedNode, stretched_node

DAY = 86_400.0
HOUR = 3_600.0
WINDOW_SECONDS = 60.0  # the agent's are a second long
UPGRADE_SECONDS = 300.0
REBOOT_SECONDS = 420.0
NEW_DRIVERS = {"580": "580.105.08", "550": "550.163.02", "590": "590.48.05", "570": "570.211.01"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One node of the fleet."""

    profile: str
    does: str
    pods: Callable[[Profile], tuple[PodPlan, ...]] | None = None  # None: the usual ones, which come and go
    oddities: Callable[[Profile], Iterator[Fault]] = lambda profile: iter(())


def on_each_gpu(workload: str, *, job_seconds: float | None = None) -> Callable[[Profile], tuple[PodPlan, ...]]:
    """A pod of a workload on each GPU; where jobs have an end, a new one follows on every other GPU."""

    def pods(profile: Profile) -> Iterator[PodPlan]:
        for gpu in range(profile.gpu_count):
            seconds = job_seconds if gpu % 2 == 0 else None
            yield PodPlan(
                namespace="ml", name=f"{workload}-{gpu}", workload=workload, start=5.0 * gpu, duration=seconds,
                period=None if seconds is None else seconds + 80.0,
                claims=(ClaimPlan(name=f"gpu-{gpu}", devices=(f"gpu:{gpu}",)),),
            )  # fmt: skip

    return lambda profile: tuple(pods(profile))


def slow_links(profile: Profile) -> Iterator[Fault]:
    """Idle links save power."""
    for gpu in range(profile.gpu_count):
        yield AnswerFault(at=1.0, gpu=gpu, function="nvmlDeviceGetCurrPcieLinkGeneration", value=1)


def long_life(profile: Profile) -> Iterator[Fault]:
    """Counters that count since the board was made."""
    for gpu in range(profile.gpu_count):
        yield EccFault(at=1.0, gpu=gpu, type="corrected", count=5_000)
        yield NvlinkErrorsFault(at=1.0, gpu=gpu, link=gpu, count=500)
        yield AnswerFault(at=1.0, gpu=gpu, field=94, value=30_000, per_second=0.01)  # NVML_FI_DEV_PCIE_REPLAY_COUNTER


KINDS: Mapping[str, Kind] = {
    "training": Kind(
        profile="h100x8", does="trains all the time, at its power limit", pods=on_each_gpu("training")
    ),
    "old": Kind(
        profile="h100x8", does="runs pods of all sorts that come and go, and has counted errors for years",
        oddities=long_life,
    ),
    "idle": Kind(
        profile="h100x8", does="is idle, with links in the lowest generation", pods=lambda profile: (),
        oddities=slow_links,
    ),
    "mig": Kind(profile="a100x8-mig", does="is cut into MIG devices"),
    "bursty": Kind(
        profile="b200x8", does="serves requests that come in bursts, from pods of which half do not stay long",
        pods=on_each_gpu("inference", job_seconds=400.0),
    ),
    "starved": Kind(
        profile="l40sx4", does="waits for data most of the time", pods=on_each_gpu("data_starved")
    ),
}

# Fails, in two ways.
CONTROL = Kind(
    profile="h100x8", does="fails",
    oddities=lambda profile: iter((XidFault(at=300.0, gpu=2, code=79), XidFault(at=450.0, gpu=5, code=95))),
)


def usual(profile: Profile, days: float) -> Iterator[Fault]:
    """What happens everywhere: programs that fail, jobs that are torn down, warm afternoons, upgrades."""
    for gpu in range(profile.gpu_count):
        for code, first, every in ((43, 600.0, 1700.0), (31, 3 * HOUR, 30 * HOUR), (13, 5 * HOUR, 31 * HOUR)):
            yield XidFault(at=first + 97.0 * gpu, gpu=gpu, code=code, every=every)
        yield XidFault(at=2 * HOUR, gpu=gpu, code=45, every=6 * HOUR)  # all at once: a job is torn down
        yield XidFault(at=2 * HOUR + 1, gpu=gpu, code=45, every=6 * HOUR)
    for day in range(round(days)):
        yield ThermalFault(
            at=day * DAY + 14 * HOUR, gpu=day % profile.gpu_count, duration=200.0,
            celsius=profile.temperature_slowdown - 4.0,
        )
        yield EccFault(at=day * DAY + 9 * HOUR, gpu=(day + 1) % profile.gpu_count, type="corrected", count=3)
    version = NEW_DRIVERS[profile.driver_version.partition(".")[0]]
    yield DriverReloadFault(at=upgrade_at(days), duration=UPGRADE_SECONDS, version=version)
    yield DriverReloadFault(at=reboot_at(days), duration=REBOOT_SECONDS - 60.0)


def upgrade_at(days: float) -> float:
    """When the driver is exchanged, with the agent beside it."""
    return round(days * 0.3 * 24 * 60) * 60.0


def reboot_at(days: float) -> float:
    """When the node reboots."""
    return round(days * 0.6 * 24 * 60) * 60.0


@dataclass(slots=True)
class Voice:
    """Says each change once."""

    said: str | None = None

    def says(self, at: float, text: str | None) -> None:
        """The text of the annotation, None where nobody writes."""
        if text != self.said:
            self.said = text
            tell(at=at, findings=text)


def tell(**what: object) -> None:
    """One line."""
    sys.stdout.write(json.dumps(what) + "\n")


def live(node: StretchedNode, days: float) -> dict[str, object]:
    """Goes through the days; gives the costs."""
    voice, judging, windows = Voice(), 0.0, 0
    restarts = iter([day * DAY for day in range(1, round(days) + 1)])
    restart = next(restarts, days * DAY)
    rebooted = False
    while node.seconds < days * DAY:
        if not rebooted and node.seconds >= reboot_at(days):
            rebooted = True
            voice.says(node.seconds, None)
            node.reboot(REBOOT_SECONDS)
        if node.seconds >= restart:
            restart = next(restarts, days * DAY)
            node.restart_agent()
        read = node.windows()
        began = time.process_time()
        node.judge(read)
        judging += time.process_time() - began
        windows += len(read)
        voice.says(node.seconds, findings_annotation(node.watch.view()))
    devices = node.watch.view().devices.values()
    unknown = {rule for health in devices for rule, state in health.states.items() if state is RuleState.UNKNOWN}
    gpus = sum(health.parent is None for health in devices)
    return {"gpus": gpus, "days": days, "judging_seconds": judging, "windows": windows, "unknown": sorted(unknown)}


def main(name: str, days: float) -> None:
    """Plays one node."""
    kind = CONTROL if name == "sick" else KINDS[name]
    profile = profile_named(kind.profile)
    faults = (*usual(profile, days), *kind.oddities(profile))
    pods = None if kind.pods is None else kind.pods(profile)
    with stretched_node(kind.profile, *faults, pods=pods, window_seconds=WINDOW_SECONDS) as node:
        tell(**live(node, days))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)  # a finding is told in words
    main(sys.argv[1], float(sys.argv[2]))
