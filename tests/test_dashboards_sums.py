"""Are sums over the chosen time right: of devices that are gone, of counters that begin again, of XIDs that repeat?"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from dashboards.expressions import CLUSTER, DEVICE, NEW_XIDS, grown, held_part, hours
from dashboards.stage import filled

VALUES = {
    "cluster": ".*", "namespace": ".*", "__range": "1h", "__interval": "1m", "__interval_ms": "60000",
}  # fmt: skip
DEVICE_0 = 'node="n", gpu="0", uuid="GPU-0"'
SERIES = {
    # Four GPUs for an hour, of which one was held for all of it, and two for the first half: their agent is gone since.
    'node:gpu_info:count{node="n"}': "4x120",
    'cluster:gpus_held:rate5m{cluster="c"}': "3x89 1x30",
    'namespace:gpus_held:rate5m{cluster="c", namespace="a"}': "1x120",
    'namespace:gpus_held:rate5m{cluster="c", namespace="b"}': "2x89 stale",
    # One that counts on, one that begins again, one that was not there an hour ago, and one that is gone.
    f'gpu_ecc_device_errors_total{{{DEVICE_0}, type="corrected"}}': "0+1x120",
    'gpu_ecc_device_errors_total{node="n", gpu="1", uuid="GPU-1", type="corrected"}': "500x100 7x20",
    'gpu_ecc_device_errors_total{node="n", gpu="2", uuid="GPU-2", type="corrected"}': "_x100 40x20",
    'gpu_ecc_device_errors_total{node="n", gpu="3", uuid="GPU-3", type="corrected"}': "9x60 stale",
    # Reported at minutes 100 and 110, and scraped within the minute.
    f'gpu_xid_last_timestamp_seconds{{{DEVICE_0}, xid="79"}}': "_x100 5990x9 6590x20",
}


def asked(expr: str, *samples: dict[str, Any], minute: int = 120) -> dict[str, Any]:
    return {"expr": filled(expr, VALUES), "eval_time": f"{minute}m", "exp_samples": list(samples)}


def test_sums_over_the_chosen_time(promtool: str, tmp_path: Path) -> None:
    def of(gpu: int, value: float) -> dict[str, Any]:
        return {"labels": f'{{node="n", gpu="{gpu}", uuid="GPU-{gpu}"}}', "value": value}

    corrected = CLUSTER + ', type="corrected"'
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
            asked(grown("gpu_ecc_device_errors_total", corrected, DEVICE), of(0, 60), of(1, 7), of(2, 0)),
            asked(
                grown("gpu_ecc_device_errors_total", corrected, DEVICE, from_nothing=True), of(0, 60), of(1, 7),
                of(2, 40),
            ),
            *(
                asked(NEW_XIDS, *found, minute=minute)
                for minute, found in ((99, ()), (100, (xid,)), (101, ()), (109, ()), (110, (xid,)), (111, ()))
            ),
        ],
    }  # fmt: skip
    file = tmp_path / "sums.yml"
    file.write_text(json.dumps({"evaluation_interval": "1m", "tests": [group]}))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
