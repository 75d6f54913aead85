"""How much CPU does a full tick on 8 GPUs cost, against a loop that does the same calls through plain pynvml?

The whole way is counted for the sampler: reading, folding, building and encoding the windows, ten ticks a window. The
plain loop calls the same getters, asks for the same fields in one nvmlDeviceGetFieldValues per GPU, and looks at each
value once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import msgspec
import pynvml

from claimscope.metrics.spec import Tier, Via
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Window
from claimscope.nvml import inventory, library
from claimscope.nvml.calls import CALLS
from claimscope.nvml.fields import field_ids
from claimscope.nvml.gpm_metrics import GPM_METRICS
from claimscope.nvml.reader import Catalog, EntityReader
from claimscope.nvml.wire import WindowMessage
from claimscope.sim.library import SimulatedNvml
from claimscope.sim.world import make_world

BOUND_RATIO = 0.35
WINDOWS = 60
TICKS = 10

_VALUE = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


def _best(run: Callable[[], None], rounds: int = 5) -> float:
    """CPU seconds of the least disturbed round."""
    times: list[float] = []
    for _ in range(rounds):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times)


def measure(path: str) -> dict[str, float | str]:
    """Compares both on the library at `path`."""
    loaded = library.load(path)
    library.initialise(loaded)
    driver = library.version(pynvml.nvmlSystemGetDriverVersion) or ""
    ids = field_ids(driver)
    walk = inventory.enumerate_gpus(lambda index, call: None, {}, {}, path)
    catalog = Catalog(
        quantities=[quantity for quantity in QUANTITIES if quantity.tier is Tier.TICK], calls=CALLS, field_ids=ids,
        gpm_metrics=GPM_METRICS, collectors=(), reprobe_ns=10**18, found=walk.found,
    )
    heartbeat = memoryview(bytearray(64)).cast("Q")
    clock = time.monotonic_ns
    entities = [EntityReader(loaded, one, catalog, has_mig=False, epoch=1) for one in walk.found]
    for entity in entities:
        if entity.probe(heartbeat, clock, gpm_period_ns=10**9, offset_ns=0):
            raise SystemExit(f"{entity.uuid} does not answer")
    encode = msgspec.msgpack.Encoder().encode

    def ours() -> None:
        for _ in range(WINDOWS):
            for _ in range(TICKS):
                now = clock()
                heartbeat[3] = now
                for entity in entities:
                    for group in entity.tick_groups:
                        group.read(heartbeat, clock)
                    if now >= entity.due_ns:
                        entity.read_slow(now, heartbeat, clock)
                heartbeat[1] = 0
            for entity in entities:
                entity.fold(10**9)
                totals = entity.totals
                encode(WindowMessage(Window(
                    entity=entity.uuid, session=1, epoch=1, start_ns=0, end_ns=1, end_wall_ns=1, ticks=TICKS,
                    last=totals.last.copy(), low=totals.low, high=totals.high, integral=totals.integral.copy(),
                    raw=totals.raw.copy(), missing=totals.missing.copy(), text=totals.text.copy(),
                )))
                totals.low, totals.high = {}, {}

    work: list[tuple[object, list[tuple[Callable[..., object], tuple[int, ...]]], list[tuple[int, int]]]] = []
    for one, entity in zip(walk.found, entities, strict=True):
        handle = pynvml.nvmlDeviceGetHandleByIndex(one.device.entity.gpu)
        calls = [
            (getattr(pynvml, CALLS[source.name].symbol), CALLS[source.name].args)
            for group in entity.tick_groups
            for source in group.call_sources
        ]
        fields = [
            (ids[source.name], source.argument) for group in entity.tick_groups for source in group.field_sources
        ]
        work.append((handle, calls, fields))

    def plain() -> None:
        for _ in range(WINDOWS * TICKS):
            for handle, calls, fields in work:
                for function, arguments in calls:
                    function(handle, *arguments)
                for answer in pynvml.nvmlDeviceGetFieldValues(handle, fields):
                    if answer.nvmlReturn == 0:
                        getattr(answer.value, _VALUE[answer.valueType])

    ticks = WINDOWS * TICKS
    ours()
    plain()
    mine, theirs = _best(ours) / ticks, _best(plain) / ticks
    for entity in entities:
        entity.free()
    library.shut_down()
    kinds = {via: sum(reading.source.via is via for group in entities[0].tick_groups for reading in group.readings)
             for via in (Via.CALL, Via.FIELD)}
    return {
        "sampler_cpu_gpus": float(len(entities)),
        "sampler_cpu_readings_per_gpu": float(sum(kinds.values())),
        "sampler_cpu_tick_us": mine * 1e6,
        "sampler_cpu_plain_pynvml_tick_us": theirs * 1e6,
        "sampler_cpu_ratio": mine / theirs,
    }


def run() -> dict[str, float | str]:
    """On 8 GPUs of the simulated library."""
    with SimulatedNvml(make_world("h100x8")) as simulated:
        simulated.step(60.0, monotonic_ns=time.monotonic_ns(), step_seconds=600.0)
        os.environ.update(simulated.environment)
        return measure(str(simulated.library_path))


UNITS = {
    "sampler_cpu_gpus": ("GPUs", ""),
    "sampler_cpu_readings_per_gpu": ("readings", ""),
    "sampler_cpu_tick_us": ("us", ""),
    "sampler_cpu_plain_pynvml_tick_us": ("us", ""),
    "sampler_cpu_ratio": ("x", f"<={BOUND_RATIO}"),
}

if __name__ == "__main__":
    for name, value in (measure(sys.argv[1]) if len(sys.argv) > 1 else run()).items():
        unit, bound = UNITS[name]
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}\n")
