"""Are sums over the chosen time right: of devices that are gone, of counters that begin again, of XIDs that repeat?"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from alerts.model import Recording
from alerts.recording import ERRORS, ERRORS_WINDOW
from dashboards.annotations import taints
from dashboards.expressions import CLUSTER, DEVICE, NEW_XIDS, errors, grown, held_part, hours, watt_hours
from dashboards.stage import filled

VALUES = {
    "cluster": ".*", "namespace": ".*", "__range": "1h", "__interval": "1m", "__interval_ms": "60000",
}  # fmt: skip
ECC = "device_type:gpu_ecc_device_errors:increase5m"
TAINT = 'driver="d", pool="n", device="gpu-0", key="k", effect="NoSchedule"'
DEVICE_0 = 'node="n", gpu="0", uuid="GPU-0"'
SERIES = {
    # Four GPUs for an hour, of which one was held for all of it, and two for the first half: their agent is gone since.
    'node:gpu_info:count{node="n"}': "4x120",
    'cluster:gpus_held:rate5m{cluster="c"}': "3x89 1x30",
    'namespace:gpus_held:rate5m{cluster="c", namespace="a"}': "1x120",
    'namespace:gpus_held:rate5m{cluster="c", namespace="b"}': "2x89 stale",
    # One that counts on, one that begins again, one that was not there an hour ago, and one that is gone.
    f'gpu_xid_errors_total{{{DEVICE_0}, xid="79"}}': "0+1x120",
    'gpu_xid_errors_total{node="n", gpu="1", uuid="GPU-1", xid="79"}': "500x100 7x20",
    'gpu_xid_errors_total{node="n", gpu="2", uuid="GPU-2", xid="79"}': "_x100 40x20",
    'gpu_xid_errors_total{node="n", gpu="3", uuid="GPU-3", xid="79"}': "9x60 stale",
    # What was recorded, every five minutes: all the time, once, and before the hour alone. 350 W for an hour.
    f'{ECC}{{{DEVICE_0}, type="corrected"}}': "1 _x4 " * 24,
    f'{ECC}{{node="n", gpu="1", uuid="GPU-1", type="corrected"}}': "_x100 3 stale",
    f'{ECC}{{node="n", gpu="2", uuid="GPU-2", type="corrected"}}': "5 stale",
    "cluster:gpu_energy_joules:rate5m": "350x120",
    # Put up at minute 40, by a controller that is away from minute 60 to 70.
    f'dra_device_taint_info{{{TAINT}}}': "_x40 1x19 stale _x9 1x50",
    'claimscope_controller_leader{instance="c"}': "1x59 stale _x9 1x50",
    # Reported at minutes 100 and 110, and scraped within the minute.
    f'gpu_xid_last_timestamp_seconds{{{DEVICE_0}, xid="79"}}': "_x100 5990x9 6590x20",
}


def asked(expr: str, *samples: dict[str, Any], minute: int = 120) -> dict[str, Any]:
    return {"expr": filled(expr, VALUES), "eval_time": f"{minute}m", "exp_samples": list(samples)}


def test_sums_over_the_chosen_time(promtool: str, tmp_path: Path) -> None:
    def of(gpu: int, value: float) -> dict[str, Any]:
        return {"labels": f'{{node="n", gpu="{gpu}", uuid="GPU-{gpu}"}}', "value": value}

    corrected = CLUSTER + ', type="corrected"'
    taint = {"labels": f"{{{TAINT}}}", "value": 1}
    xid = {"labels": '{xid="79"}', "value": 1}
    group = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in SERIES.items()],
        "promql_expr_test": [
            asked(
                f"round({hours('held', by='namespace')}, 0.5)",
                {"labels": '{namespace="a"}', "value": 1}, {"labels": '{namespace="b"}', "value": 1},
            ),
            asked(f"round({hours('held')}, 0.5)", {"labels": "{}", "value": 2}),
            asked(f"round({held_part()}, 0.05)", {"labels": "{}", "value": 0.5}),  # two of four hours
            asked(grown("gpu_xid_errors_total", CLUSTER, DEVICE), of(0, 60), of(1, 7), of(2, 40)),
            asked(errors(ECC, corrected), of(0, 12), of(1, 3)),
            asked(f"round({watt_hours('cluster:gpu_energy_joules:rate5m')}, 50)", {"labels": "{}", "value": 350}),
            *(
                asked(NEW_XIDS, *found, minute=minute)
                for minute, found in ((99, ()), (100, (xid,)), (101, ()), (109, ()), (110, (xid,)), (111, ()))
            ),
            *(
                asked(taints().expr, *found, minute=minute)
                for minute, found in ((39, ()), (40, (taint,)), (41, ()), (70, ()), (71, ()))
            ),
        ],
    }  # fmt: skip
    file = tmp_path / "sums.yml"
    file.write_text(json.dumps({"evaluation_interval": "1m", "tests": [group]}))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_each_error_is_recorded_once() -> None:
    # What is added up over the chosen time: windows that overlapped would count twice, gaps between them lose some.
    assert ERRORS.interval == ERRORS_WINDOW
    assert [
        (re.findall(r"offset (\w+)", rule.expr), rule.record.rpartition("increase")[2]) for rule in ERRORS.rules
        if isinstance(rule, Recording)
    ] == [([ERRORS_WINDOW] * 2, ERRORS_WINDOW)] * 3
