"""What the demo says of alerts that fire and that are over."""

from __future__ import annotations

import pytest

from claimscope.sim.told_alerts import about, news

GPUS = {"GPU-a": "6"}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"node": "n2", "uuid": "GPU-a"}, "GPU 6 of n2"),
        ({"node": "n2", "uuid": "GPU-a", "xid": "79"}, "GPU 6 of n2, XID 79"),
        ({"node": "n2", "uuid": "GPU-gone"}, "GPU-gone of n2"),
        ({"namespace": "batch", "workload_kind": "Job", "workload": "train"}, "batch/train"),
        ({"node": "n3", "rule": "thermal_margin"}, "n3 thermal_margin"),
        ({"rule": "thermal_shutdown"}, "thermal_shutdown"),
        ({"namespace": "team-a"}, "team-a"),
        ({"deviceclass": "gpu.nvidia.com"}, "gpu.nvidia.com"),
        ({"alertname": "DRAWatchdog"}, ""),
    ],
)
def test_what_an_alert_is_about(labels: dict[str, str], words: str) -> None:
    assert about(labels, GPUS) == words


def test_a_second_gpu_is_news_though_the_alert_fires_already() -> None:
    before = {("DRADeviceFailed", "GPU 7 of n1")}
    now = before | {("DRADeviceFailed", "GPU 6 of n2"), ("DRAWatchdog", "")}
    assert news(131.4, before, now) == [
        "+131 s  fires     DRADeviceFailed: GPU 6 of n2", "+131 s  fires     DRAWatchdog",
    ]
    assert news(190, now, before) == [
        "+190 s  resolved  DRADeviceFailed: GPU 6 of n2", "+190 s  resolved  DRAWatchdog",
    ]


def test_many_are_not_all_named() -> None:
    now = {("DRAClaimPendingTooLong", f"team/w{number}") for number in range(7)}
    assert news(5, (), now) == [
        "+  5 s  fires     DRAClaimPendingTooLong: team/w0; team/w1; team/w2; team/w3; and 3 more"
    ]
