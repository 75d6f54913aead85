"""Hours of a healthy fleet, and of a node that fails, through agents' rules and the controller's decisions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DAYS = 0.03


def test_hours_of_a_healthy_fleet_raise_no_fence(cc: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.health_soak", str(DAYS), "old", "starved"],
        cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    assert found["health_soak_gpu_days"] == pytest.approx(12 * DAYS)
    assert found["health_soak_findings"] == 0, done.stdout
    assert found["health_soak_blocking_fences"] == found["health_soak_announced_fences"] == 0, done.stdout
    assert found["health_soak_control_blocking_fences"] == 1, done.stdout
