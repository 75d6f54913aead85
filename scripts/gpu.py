"""`make gpu`: what does NVML answer on the GPUs of this machine, and do our counters agree with nvidia-smi?

Records every call's and field's answer, return code and cost to tests/recordings/nvml/<gpu>-<driver>.json, runs the
sampler for a minute (or for as many seconds as its argument says) and compares with nvidia-smi. Exit status 1: no GPU,
or they disagree. Identities (uuid, serial number) are not recorded.
"""

from __future__ import annotations

import asyncio
import csv
import ctypes
import io
import json
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pynvml

from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Window
from claimscope.nvml import library
from claimscope.nvml.calls import CALLS, Call
from claimscope.nvml.errors import missing
from claimscope.nvml.fields import field_ids
from claimscope.nvml.probe import probe
from claimscope.nvml.supervisor import Supervisor
from claimscope.nvml.wire import FromSampler, InventoryMessage, Settings, Status, WindowMessage

FOLDER = Path(__file__).parent.parent / "tests/recordings/nvml"
OPT_INS = tuple(sorted({quantity.opt_in for quantity in QUANTITIES if quantity.opt_in}))
ROUNDS = 20
VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

# nvidia-smi's column -> our reading, its unit in base units, and how far apart the means may be (part, absolute).
COMPARED = {
    "power.draw.instant": ("power_instant", 1.0, 0.10, 10.0),
    "power.draw.average": ("power_average", 1.0, 0.05, 5.0),
    "temperature.gpu": ("temperature_gpu", 1.0, 0.0, 2.0),
    "memory.used": ("memory_used", float(1 << 20), 0.05, float(64 << 20)),
    "memory.total": ("memory_total", float(1 << 20), 0.02, 0.0),
    "utilization.gpu": ("utilization_gpu", 0.01, 0.10, 0.05),
    "clocks.sm": ("clock_sm", 1e6, 0.05, 50e6),
    "clocks.mem": ("clock_memory", 1e6, 0.01, 1e6),
}


def member(value: Any, path: str | None) -> Any:  # noqa: ANN401 - a ctypes value
    """A member by its path: "used", "counts[2]"; None is the plain number."""
    if path is None:
        return value.value
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        value = getattr(value, name) if name else value[int(index)]
    return value


def timed(function: Any, arguments: tuple[Any, ...]) -> tuple[int, dict[str, float]]:  # noqa: ANN401
    """The last return code, and the cost in microseconds."""
    costs = []
    code = 0
    for _ in range(ROUNDS):
        begun = time.perf_counter_ns()
        code = int(function(*arguments))
        costs.append((time.perf_counter_ns() - begun) / 1000)
    return code, {"first_us": round(costs[0], 1), "median_us": round(sorted(costs)[ROUNDS // 2], 1)}


def support(code: int) -> str:
    """What we make of a return code."""
    reason = missing(code)
    return "supported" if reason is None else reason.value


def ask_call(loaded: library.Library, handle: Any, call: Call, axis: int) -> dict[str, Any]:  # noqa: ANN401
    """One row of the table of calls."""
    function = loaded.function(call.symbol)
    if function is None:
        return {"symbol": call.symbol, "support": "function not found"}
    outs: list[Any] = [kind() for kind in call.outs]
    if call.version is not None:
        outs[0].version = call.version
    numbers = [*call.args, *([axis] if call.axis else [])]
    pointers = [ctypes.byref(out) for out in outs]
    code, cost = timed(function, (handle, *map(ctypes.c_uint, numbers), *pointers))
    answer: dict[str, Any] = {"symbol": call.symbol, "code": code, "support": support(code), **cost}
    if code == 0:
        answer["members"] = {name: member(outs[index], path) for name, (index, path) in call.members.items()}
    return answer


def ask_field(loaded: library.Library, handle: Any, number: int, scope: int) -> dict[str, Any]:  # noqa: ANN401
    """One field by itself."""
    function = loaded.function("nvmlDeviceGetFieldValues")
    if function is None:
        return {"support": "function not found"}
    entry = (pynvml.c_nvmlFieldValue_t * 1)()
    entry[0].fieldId, entry[0].scopeId = number, scope
    code, cost = timed(function, (handle, ctypes.c_int(1), entry))
    code = code or int(entry[0].nvmlReturn)
    answer: dict[str, Any] = {"id": number, "scope": scope, "code": code, "support": support(code), **cost}
    if code == 0:
        answer["value"] = getattr(entry[0].value, VALUES[entry[0].valueType])
        answer["type"] = entry[0].valueType
    return answer


def ask_everything(driver: str) -> dict[str, Any]:
    """Every call and field of our tables on the first GPU."""
    loaded = library.load(None)
    library.initialise(loaded)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    pointer = ctypes.cast(handle, ctypes.c_void_p)
    scopes: dict[str, set[int]] = defaultdict(set)
    for quantity in QUANTITIES:
        for read in quantity.reads:
            scopes[read.name].add(read.scope or 0)
    try:
        return {
            "calls": {name: ask_call(loaded, pointer, call, 0) for name, call in CALLS.items()},
            "fields": {
                f"{symbol}/{scope}" if scope else symbol: ask_field(loaded, pointer, number, scope)
                for symbol, number in field_ids(driver).items()
                for scope in sorted(scopes[symbol]) or [0]
            },
        }
    finally:
        library.shut_down()


async def sample(seconds: float) -> tuple[dict[str, list[Window]], Status | None, str, list[dict[str, str]]]:
    """Runs our sampler and nvidia-smi side by side: windows by GPU, status, versions, nvidia-smi's rows."""
    windows: dict[str, list[Window]] = defaultdict(list)
    last: list[Status] = []
    nvml: list[str] = []

    def take(message: FromSampler) -> None:
        match message:
            case WindowMessage(window=window):
                windows[window.entity].append(window)
            case Status():
                last[:] = [message]
            case InventoryMessage(inventory=inventory):
                nvml[:] = [inventory.nvml_version or ""]
            case _:
                pass

    supervisor = Supervisor(Settings(collectors=OPT_INS), take, environ=os.environ)
    running = asyncio.create_task(supervisor.run())
    rows: list[dict[str, str]] = []
    try:
        await asyncio.sleep(5)  # the sampler's own probing is not part of the comparison
        windows.clear()
        if shutil.which("nvidia-smi") is None:
            print("gpu: no nvidia-smi on PATH: nothing to compare with", file=sys.stderr)
            await asyncio.sleep(seconds)
        else:
            rows = await nvidia_smi(seconds)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return windows, last[0] if last else None, "".join(nvml), rows


async def nvidia_smi(seconds: float) -> list[dict[str, str]]:
    """Its columns, once a second."""
    columns = ["uuid", *COMPARED]
    smi = await asyncio.create_subprocess_exec(
        "nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits", "--loop-ms=1000",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await asyncio.sleep(seconds)
    smi.terminate()
    out, _ = await smi.communicate()
    lines = csv.reader(io.StringIO(out.decode()), skipinitialspace=True)
    return [dict(zip(columns, line, strict=True)) for line in lines if len(line) == len(columns)]


def compare(windows: list[Window], rows: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Our mean against nvidia-smi's, and the energy counter against the integral of power."""
    found: dict[str, dict[str, Any]] = {}
    for column, (key, unit, part, absolute) in COMPARED.items():
        theirs = [float(row[column]) * unit for row in rows if re.fullmatch(r"[\d.]+", row[column])]
        ours = [window.last[key] for window in windows if key in window.last]
        if theirs and ours:
            gap = abs(fmean(ours) - fmean(theirs))
            found[column] = {
                "ours": fmean(ours), "nvidia_smi": fmean(theirs), "agree": gap <= part * fmean(theirs) + absolute,
            }  # fmt: skip
    if len(windows) > 1:
        first, last = windows[0], windows[-1]
        for energy, power in (("energy", "power_instant"),):
            if energy in first.raw and energy in last.raw and power in first.integral:
                joules = last.raw[energy] - first.raw[energy]
                integral = last.integral[power] - first.integral[power]
                found["energy counter"] = {
                    "ours": integral, "counter": joules, "agree": abs(integral - joules) <= 0.1 * joules + 20,
                }  # fmt: skip
    return found


def readings(window: Window) -> dict[str, float | str]:
    """What the sampler made of everything, or why there is no number."""
    shown: Mapping[str, float | str] = {
        **window.last, **window.raw, **window.text, **{key: why.value for key, why in window.missing.items()},
    }  # fmt: skip
    return dict(sorted(shown.items()))


def main() -> int:
    """Returns the exit status."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seen = probe(None)
    if seen.error is not None or not seen.devices:
        print(f"gpu: {seen.error or 'NVML shows no GPU here'}", file=sys.stderr)
        return 1
    driver, model = seen.driver_version or "unknown", seen.devices[0].model or "gpu"
    recording: dict[str, Any] = {"gpu": model, "driver": driver, "gpus": len(seen.devices)}
    recording |= ask_everything(driver)
    windows, status, nvml, rows = asyncio.run(sample(seconds))
    recording["nvml"] = nvml
    recording["sampler"] = None if status is None else sampler(status)
    mine = windows.get(seen.devices[0].uuid, [])
    recording["readings"] = readings(mine[-1]) if mine else None
    agreed = bool(mine)
    recording["compared"] = []
    for device in seen.devices:
        result = compare(windows.get(device.uuid, []), [row for row in rows if row["uuid"] == device.uuid])
        recording["compared"].append(result)
        for name, row in result.items():
            agreed = agreed and row["agree"]
            print(f"{name:20} {json.dumps(row)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9.]+", "-", f"{model}-{driver}".lower())
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(recording, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"recorded to {path}")
    if not agreed:
        print("gpu: our figures and nvidia-smi's differ by more than they may", file=sys.stderr)
    return 0 if agreed else 1


def sampler(status: Status) -> dict[str, Any]:
    """The sampler's own account of the minute, without uuids."""
    return {
        "ticks": status.ticks,
        "late_ticks": status.late_ticks,
        "cpu_seconds": status.cpu_seconds,
        "shed": status.shed,
        "driver_seconds": list(status.driver_seconds.values()),
        "calls": {name: {"calls": cost.calls, "seconds": cost.seconds} for name, cost in status.calls.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
