"""When do the alerts on claims fire?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from alerts.cases.model import Case, Fired

_JOB: Final = {"namespace": "ml", "workload_kind": "Job", "workload": "train"}
_GIB: Final = 2**30


def _info(claim: str, kind: str = "Job", workload: str = "train") -> dict[str, str]:
    labels = f'namespace="ml",resourceclaim="{claim}",claim_uid="uid-{claim}",deviceclass="gpu.nvidia.com"'
    return {f'dra_claim_info{{{labels},workload_kind="{kind}",workload="{workload}"}}': "1x240"}


def _waits(
    claim: str, reason: str, values: str, *, pod: str = "train-x", deviceclass: str = "gpu.nvidia.com", since: int = 0
) -> dict[str, str]:
    uid = f"uid-{claim}" if claim else ""
    labels = f'namespace="ml",resourceclaim="{claim}",claim_uid="{uid}",pod="{pod}",deviceclass="{deviceclass}"'
    return {
        f"dra_claim_pending_seconds{{{labels}}}": values,
        f'dra_claim_pending_reason{{{labels},reason="{reason}"}}': f"_x{since} 1x60" if since else "1x60",
    }


def _waited_and(reason: str, turns: str, before: str = "devices_in_use") -> dict[str, str]:
    """A claim that has waited for two hours, and for this reason in these minutes alone."""
    labels = 'namespace="ml",resourceclaim="train-0",claim_uid="uid-train-0",pod="train-x",deviceclass="gpu.nvidia.com"'
    return {
        **_info("train-0"),
        **_held("train-0", "GPU-a"),
        f"dra_claim_pending_seconds{{{labels}}}": "7200+60x60",
        f'dra_claim_pending_reason{{{labels},reason="{before}"}}': "1x10 stale",
        f'dra_claim_pending_reason{{{labels},reason="{reason}"}}': turns,
    }


def _held(claim: str, uuid: str, node: str = "n1") -> dict[str, str]:
    labels = f'namespace="ml",resourceclaim="{claim}",claim_uid="uid-{claim}",uuid="{uuid}",node="{node}"'
    return {
        f'dra_claim_device_info{{{labels},request="gpu",driver="gpu.nvidia.com",admin_access="false"}}': "1x240"
    }


def _account(family: str, claim: str, uuid: str, more: str = "") -> str:
    labels = (
        f'node="n1",namespace="ml",resourceclaim="{claim}",claim_uid="uid-{claim}",uuid="{uuid}"'
        ',attribution="exclusive"'
    )
    return f"{family}{{{labels}{more}}}"


_PENDING: Final = (
    Case(
        alert="DRAClaimPendingTooLong",
        about="one for a job of many pods, whatever keeps its claims",
        series={
            **_info("train-0"), **_info("train-1"),
            **_waits("train-0", "devices_in_use", "0+60x30", pod="train-0"),
            **_waits("train-1", "fragmented", "30+60x30", pod="train-1"),
        },
        at="6m",
        fires=(
            Fired(
                labels=_JOB,
                says="Claims of Job ml/train have waited for 6m 30s. Longest: claim train-1 of class gpu.nvidia.com:"
                " fragmented (6m 30s). claim train-0 of class gpu.nvidia.com: devices_in_use (6m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRAClaimPendingTooLong",
        about="a claim that nothing stands behind is its own workload",
        series={**_info("alone", "", ""), **_waits("alone", "constraint", "0+60x30")},
        at="6m",
        fires=(
            Fired(
                labels={"namespace": "ml", "workload_kind": "ResourceClaim", "workload": "alone"},
                says="Claims of ResourceClaim ml/alone have waited for 6m 0s. Longest: claim alone of class"
                " gpu.nvidia.com: constraint (6m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRAClaimPendingTooLong",
        about="one for a namespace while no claim could be made from a template",
        series={
            **_waits("", "template_missing", "0+60x30", pod="web-0", deviceclass=""),
            **_waits("", "template_missing", "10+60x30", pod="web-1", deviceclass=""),
        },
        at="6m",
        fires=(
            Fired(
                labels={"namespace": "ml"},
                says="Claims of pods in namespace ml have waited for 6m 10s. Longest: a claim of pod web-1:"
                " template_missing (6m 10s). a claim of pod web-0: template_missing (6m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRAClaimPendingTooLong", about="what two controllers say of a claim stands side by side for a while",
        series={
            **_info("train-0"), **_info("train-0", "", ""),
            **dict.fromkeys(_info("train-0", "JobSet", "all"), "1x4"),
            **_waits("train-0", "devices_in_use", "0+60x30"),
        },
        at="6m",
        fires=(
            Fired(
                labels=_JOB,
                says="Claims of Job ml/train have waited for 6m 0s. Longest: claim train-0 of class gpu.nvidia.com:"
                " devices_in_use (6m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRAClaimPendingTooLong", about="not before five minutes",
        series={**_info("train-0"), **_waits("train-0", "devices_in_use", "0+60x30")}, at="5m",
    ),
    Case(
        alert="DRAClaimPendingTooLong", about="nobody is told that it is over while a controller is replaced",
        series={
            name: values if name.startswith("dra_claim_info") else f"{values[:-3]}x8 stale"
            for name, values in {**_info("train-0"), **_waits("train-0", "constraint", "0+60x30")}.items()
        },
        at="15m",
        fires=(
            Fired(
                labels=_JOB,
                says="Claims of Job ml/train have waited for 8m 0s. Longest: claim train-0 of class gpu.nvidia.com:"
                " constraint (8m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRAClaimPendingTooLong", about="resolved when it is allocated",
        series={
            **_info("train-0"),
            **{name: values.replace("x30", "x10").replace("x60", "x10")
               for name, values in _waits("train-0", "devices_in_use", "0+60x30").items()},
        },
        at="26m",
    ),
    Case(
        alert="DRAClaimPendingTooLong", about="a gate was held for two hours, and opened three minutes ago",
        series=_waited_and("devices_in_use", "_x11 1x60", "gated"), at="14m",
    ),
    Case(
        alert="DRAClaimPendingTooLong", about="five minutes after its gate was opened",
        series=_waited_and("devices_in_use", "_x11 1x60", "gated"), at="17m",
        fires=(
            Fired(
                labels=_JOB,
                says="Claims of Job ml/train have waited for 2h 17m 0s. Longest: claim train-0 of class gpu.nvidia.com:"
                " devices_in_use (2h 17m 0s).",
            ),
        ),
    ),
    *(
        Case(
            alert="DRAClaimPendingTooLong", about=f"silent about {reason}",
            series={**_info("train-0"), **_waits("train-0", reason, "0+60x30")}, at="20m",
        )
        for reason in ("quota", "gated")
    ),
    Case(
        alert="DRAClaimPendingTooLong", about="silent about claims that no pod wants",
        series={
            **_info("spare"),
            'dra_claim_unreferenced{namespace="ml",resourceclaim="spare",claim_uid="uid-spare"}': "1x30",
        },
        at="20m",
    ),
)  # fmt: skip


def _health(uuid: str, state: str) -> dict[str, str]:
    return {
        f'gpu_health{{node="n1",uuid="{uuid}",gpu="0",state="{each}"}}': f"{int(each == state)}x60"
        for each in ("ok", "degraded", "unhealthy", "lost")
    }


_UNHEALTHY: Final = (
    Case(
        alert="DRAClaimOnUnhealthyDevice",
        about="one for a workload with a lost GPU, and a MIG device on an unhealthy one",
        series={
            **_info("train-0"),
            **_info("train-1"),
            **_held("train-0", "GPU-a"),
            **_held("train-1", "MIG-b1"),
            **_health("GPU-a", "lost"),
            **_health("GPU-b", "unhealthy"),
            'gpu_info{node="n1",uuid="MIG-b1",gpu="1",parent_uuid="GPU-b"}': "1x60",
        },
        at="5m",
        fires=(Fired(labels=_JOB, says="Job ml/train holds 2 such devices."),),
    ),
    Case(
        alert="DRAClaimOnUnhealthyDevice",
        about="a degraded GPU still works",
        series={**_info("train-0"), **_held("train-0", "GPU-a"), **_health("GPU-a", "degraded")},
        at="5m",
    ),
    Case(
        alert="DRAClaimOnUnhealthyDevice",
        about="an unhealthy GPU that nobody holds",
        series={**_info("train-0"), **_held("train-0", "GPU-b"), **_health("GPU-a", "unhealthy")},
        at="5m",
    ),
)


def _load(uuid: str, busy: float, clock: float, power: float, model: str = "H100") -> dict[str, str]:
    """A GPU that is so busy, at this part of its clocks and of its power limit."""
    device = f'node="n1",uuid="{uuid}",gpu="0"'
    return {
        f'gpu_info{{{device},parent_uuid="",model="{model}"}}': "1x40",
        f'gpu_busy_seconds_total{{{device},engine="gpu"}}': f"0+{busy * 60:g}x40",
        f'gpu_clock_hertz{{{device},domain="sm"}}': f"{clock * 2e9:.0f}x40",
        f'gpu_clock_max_hertz{{{device},domain="sm"}}': "2000000000x40",
        f"gpu_energy_joules_total{{{device}}}": f"0+{power * 700 * 60:g}x40",
        f'gpu_power_limit_watts{{{device},kind="enforced"}}': "700x40",
    }


def _gang(
    loads: Mapping[str, tuple[float, float, float]], *, kind: str = "Job", models: Mapping[str, str] | None = None
) -> dict[str, str]:
    series: dict[str, str] = {}
    for number, (uuid, load) in enumerate(loads.items()):
        model = (models or {}).get(uuid, "H100")
        series |= {
            **_info(f"train-{number}", kind), **_held(f"train-{number}", uuid), **_load(uuid, *load, model=model),
        }  # fmt: skip
    return series


_USUAL: Final = (0.9, 0.95, 0.8)
_OTHERS: Final = {"GPU-a": _USUAL, "GPU-b": (0.88, 0.94, 0.78), "GPU-c": (0.92, 0.96, 0.82), "GPU-d": (0.9, 0.95, 0.8)}


def _apart(which: str, median: str) -> Fired:
    return Fired(
        labels=_JOB, says=f"1 GPUs of Job ml/train do not keep step with the others: GPU-x of node n1 ({which})."
        f" Median: {median}",
    )  # fmt: skip


def _straggler(about: str, load: tuple[float, float, float], which: str) -> Case:
    return Case(
        alert="DRAClaimStraggler",
        about=about,
        series=_gang({**_OTHERS, "GPU-x": load}),
        at="30m",
        fires=(_apart(which, "clock 95%. busy 90%. power 80%."),),
    )


def _slow_node() -> dict[str, tuple[float, float, float]]:
    """Eight of 64 GPUs at about half the clocks."""
    return {
        f"GPU-{number}": (0.9, 0.5 + number / 100 if number < 8 else 0.95, 0.5) for number in range(64)
    }  # fmt: skip


def _one_claim(kind: str) -> dict[str, str]:
    """Eight GPUs of one claim, the first at half the clocks."""
    series = _info("train-0", kind)
    for number in range(8):
        uuid = f"GPU-{number}"
        series |= {**_held("train-0", uuid), **_load(uuid, 0.9, 0.95 if number else 0.5, 0.5)}
    return series


def _slow_in_claim(kind: str) -> Case:
    return Case(
        alert="DRAClaimStraggler",
        about=f"lower clocks of one GPU of eight in a claim of a {kind}",
        series=_one_claim(kind),
        at="30m",
        fires=(
            Fired(
                labels={**_JOB, "workload_kind": kind},
                says=f"1 GPUs of {kind} ml/train do not keep step with the others: GPU-0 of node n1 (clock 50%)."
                " Median: clock 95%.",
            ),
        ),
    )


def _in_step(about: str, series: Mapping[str, str]) -> Case:
    return Case(alert="DRAClaimStraggler", about=about, series=series, at="30m")


def _split(first: int, one: float, second: int, other: float) -> dict[str, tuple[float, float, float]]:
    """So many GPUs that are so busy, and so many that are otherwise."""
    return {
        f"GPU-{number}": (one if number < first else other, 0.95, 0.8) for number in range(first + second)
    }  # fmt: skip


_STRAGGLERS: Final = (
    _straggler("lower clocks", (0.9, 0.6, 0.8), "clock 60%"),
    _straggler("less power, as of a GPU that is starved", (0.9, 0.95, 0.3), "power 30%"),
    _straggler("idle while the others work", (0.1, 0.95, 0.8), "busy 10%"),
    Case(
        alert="DRAClaimStraggler",
        about="the one that is busy while the others wait for it",
        series=_gang({**dict.fromkeys(_OTHERS, (0.2, 0.95, 0.3)), "GPU-x": (1, 0.95, 0.3)}),
        at="30m",
        fires=(_apart("busy 100%", "clock 95%. power 30%. busy 20%."),),
    ),
    Case(
        alert="DRAClaimStraggler",
        about="two of forty are one alert with both names",
        series=_gang({**_split(2, 0.1, 38, 0.9), "GPU-0": (0.2, 0.95, 0.8)}),
        at="30m",
        fires=(
            Fired(
                labels=_JOB,
                says="2 GPUs of Job ml/train do not keep step with the others: GPU-0 of node n1 (busy 20%). GPU-1 of"
                " node n1 (busy 10%). Median: clock 95%. busy 90%. power 80%.",
            ),
        ),
    ),
    Case(
        alert="DRAClaimStraggler",
        about="a whole node of a job of 64 GPUs at half the clocks",
        series=_gang(_slow_node()),
        at="30m",
        fires=(
            Fired(
                labels=_JOB,
                says="8 GPUs of Job ml/train do not keep step with the others:"
                + "".join(f" GPU-{number} of node n1 (clock 5{number}%)." for number in (7, 6, 5, 4, 3))
                + " Median: clock 95%. busy 90%. power 50%.",
            ),
        ),
    ),
    _slow_in_claim("Deployment"),
    _slow_in_claim("LeaderWorkerSet"),
    _in_step(
        "a GPU that does nothing lowers its clocks",
        _gang({f"GPU-{number}": (0.9 if number < 5 else 0.1, 0.95 if number < 5 else 0.2, 0.5) for number in range(8)}),
    ),
    _in_step("stages of a pipeline: half of the GPUs do other work", _gang(_split(9, 0.95, 7, 0.55))),
    _in_step("actors and learners", _gang(_split(5, 0.9, 3, 0.1))),
    _in_step(
        "replicas of a service get what comes in",
        _gang({**dict.fromkeys(_OTHERS, (0.2, 0.95, 0.3)), "GPU-x": (1, 0.95, 0.3)}, kind="Deployment"),
    ),
    _in_step(
        "a workload in which nobody is like another has none",
        _gang({f"GPU-{number}": (0.1 + 0.2 * number, 0.9, 0.3 + 0.15 * number) for number in range(5)}),
    ),
    _in_step("small differences are none", _gang({**_OTHERS, "GPU-x": (0.8, 0.89, 0.7)})),
    _in_step(
        "of three nobody can say which is odd", _gang({"GPU-a": _USUAL, "GPU-b": _USUAL, "GPU-x": (0.1, 0.5, 0.2)})
    ),
    _in_step(
        "clocks of a workload that does nothing",
        _gang({**dict.fromkeys(_OTHERS, (0.0, 0.9, 0.1)), "GPU-x": (0.0, 0.2, 0.1)}),
    ),
    _in_step(
        "a GPU of another model is not compared with these",
        _gang({**_OTHERS, "GPU-x": (0.1, 0.5, 0.3)}, models={"GPU-x": "A100"}),
    ),
)


def _memory(used: int) -> dict[str, str]:
    return {
        **_info("train-0"),
        **_held("train-0", "GPU-a"),
        _account("dra_claim_gpu_memory_used_bytes", "train-0", "GPU-a"): f"{used * _GIB}x30",
        'gpu_memory_used_bytes{node="n1",uuid="GPU-a",gpu="0"}': f"{used * _GIB}x30",
        'gpu_memory_free_bytes{node="n1",uuid="GPU-a",gpu="0"}': f"{(80 - used) * _GIB}x30",
    }


def _doing(doing: str, values: str) -> dict[str, str]:
    labels = f'namespace="ml",resourceclaim="train-0",claim_uid="uid-train-0",doing="{doing}"'
    return {
        **_info("train-0"),
        **_held("train-0", "GPU-a"),
        f"dra_claim_held_not_running_seconds{{{labels}}}": values,
    }


def _idle(busy_seconds: int, age: int = 7200) -> dict[str, str]:
    claim = 'namespace="ml",resourceclaim="train-0",claim_uid="uid-train-0"'
    return {
        **_info("train-0"),
        **_held("train-0", "GPU-a"),
        _account("dra_claim_gpu_busy_seconds_total", "train-0", "GPU-a", ',engine="gpu"'): f"0+{busy_seconds}x240",
        _account("dra_claim_gpu_allocated_seconds_total", "train-0", "GPU-a"): "0+60x240",
        'gpu_size_ratio{node="n1",uuid="GPU-a",gpu="0"}': "1x240",
        f"dra_claim_created_timestamp_seconds{{{claim}}}": f"{-age}x240",
    }


_USE: Final = (
    Case(
        alert="DRAClaimMemoryNearlyFull", about="78 of 80 GiB", series=_memory(78), at="20m",
        fires=(Fired(labels=_JOB, says="Job ml/train uses 97.5% of the memory of one of its devices."),),
    ),
    Case(alert="DRAClaimMemoryNearlyFull", about="70 of 80 GiB", series=_memory(70), at="20m"),
    Case(
        alert="DRAClaimHeldNotRunning", about="image pulled for more than half an hour",
        series=_doing("pulling", "0+60x60"), at="31m",
        fires=(Fired(labels=_JOB, says="Job ml/train has held devices for 31m 0s without a running container."),),
    ),
    Case(alert="DRAClaimHeldNotRunning", about="not at once", series=_doing("pulling", "0+60x60"), at="20m"),
    Case(alert="DRAClaimHeldNotRunning", about="work that is done", series=_doing("finished", "0+60x60"), at="50m"),
    Case(
        alert="DRAClaimIdle", about="not busy for an hour", series=_idle(0), at="70m",
        fires=(Fired(labels=_JOB, says="Job ml/train has 1 claims whose devices are idle."),),
    ),
    Case(alert="DRAClaimIdle", about="young claims may idle", series=_idle(0, age=0), at="70m"),
    Case(alert="DRAClaimIdle", about="half busy", series=_idle(30), at="70m"),
    Case(
        alert="DRAClaimIdle", about="only one of eight GPUs can be measured, and that one works",
        series={
            **_idle(18),
            **{_account("dra_claim_gpu_allocated_seconds_total", "train-0", f"GPU-{number}"): "0+60x240"
               for number in range(7)},
            **{f'gpu_size_ratio{{node="n1",uuid="GPU-{number}",gpu="0"}}': "1x240" for number in range(7)},
        },
        at="70m",
    ),
)  # fmt: skip


def _free(devices: int) -> dict[str, str]:
    labels = 'driver="gpu.nvidia.com",pool="n1",deviceclass="gpu.nvidia.com"'
    return {
        f'dra_pool_devices{{{labels},state="free"}}': f"{devices}x60",
        f'dra_pool_devices{{{labels},state="allocated"}}': f"{8 - devices}x60",
    }


_CLASS: Final = {"deviceclass": "gpu.nvidia.com"}

_STUCK: Final = (
    *(
        Case(
            alert="DRASchedulingStalled",
            about=f"the controller finds devices that fit, and the scheduler does nothing: {reason}",
            series={**_info("train-0"), **_waits("train-0", reason, "0+60x30"), **_free(3)},
            at="11m",
            fires=(
                Fired(
                    labels=_CLASS,
                    says="1 claims of class gpu.nvidia.com in cluster east wait although devices are free:"
                    " ml/train-0 (11m 0s).",
                ),
            ),
        )
        for reason in ("scheduling", "scheduler_silent", "not_retried", "scheduler_timeout")
    ),
    Case(
        alert="DRASchedulingStalled",
        about="a claim that waited for hours is handed out",
        series={**_waited_and("not_retried", "_x11 1x8 stale"), **_free(3)},
        at="19m",
    ),
    Case(
        alert="DRASchedulingStalled",
        about="how long it has been so, after hours of another cause",
        series={**_waited_and("not_retried", "_x11 1x60"), **_free(3)},
        at="22m",
        fires=(
            Fired(
                labels=_CLASS,
                says="1 claims of class gpu.nvidia.com in cluster east wait although devices are free:"
                " ml/train-0 (11m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRADriverAbsent",
        about="no slices for two minutes, as while a kubelet starts",
        series=_waited_and("no_driver", "_x11 1x2 stale"),
        at="13m",
    ),
    Case(
        alert="DRAPrepareFailing",
        about="one attempt of a claim that waited for hours fails",
        series=_waited_and("prepare_failed", "_x11 1x1 stale"),
        at="12m",
    ),
    Case(
        alert="DRAPrepareFailing",
        about="one page for a driver that is broken on two nodes",
        series={
            name: values
            for number in range(4)
            for made in (
                _info(f"train-{number}"),
                _held(f"train-{number}", f"GPU-{number}", f"n{number // 3}"),
                _waits(f"train-{number}", "prepare_failed", "0+60x30", since=number),
            )
            for name, values in made.items()
        },
        at="10m",
        fires=(
            Fired(
                labels={"driver": "gpu.nvidia.com"},
                says="Devices of driver gpu.nvidia.com in cluster east cannot be prepared for 4 claims. Nodes: n0 (3)."
                " n1 (1). Longest: ml/train-0 (10m 0s). ml/train-1 (9m 0s). ml/train-2 (8m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRASchedulingStalled",
        about="nobody is woken for what the controller does not know",
        series={**_info("train-0"), **_waits("train-0", "unknown", "0+60x30"), **_free(3)},
        at="20m",
    ),
    Case(
        alert="DRASchedulingStalled",
        about="it cannot tell which devices fit",
        series={
            **_info("train-0"),
            **_waits("train-0", "scheduling", "0+60x30"),
            **_free(3),
            "claimscope_controller_selector_engine_up": "0x60",
        },
        at="20m",
    ),
    Case(
        alert="DRASchedulingStalled",
        about="the devices are in use",
        series={**_info("train-0"), **_waits("train-0", "devices_in_use", "0+60x30"), **_free(3)},
        at="20m",
    ),
    Case(
        alert="DRADriverAbsent",
        about="nobody publishes the class",
        series={**_info("train-0"), **_waits("train-0", "no_driver", "0+60x30")},
        at="6m",
        fires=(
            Fired(
                labels=_CLASS,
                says="No driver publishes devices for 1 claims of class gpu.nvidia.com in cluster east:"
                " ml/train-0 (6m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRADriverAbsent",
        about="another cause",
        series={**_info("train-0"), **_waits("train-0", "no_matching_device", "0+60x30")},
        at="20m",
    ),
    Case(
        alert="DRAPrepareFailing",
        about="by driver, with its nodes",
        series={**_info("train-0"), **_held("train-0", "GPU-a"), **_waits("train-0", "prepare_failed", "0+60x30")},
        at="6m",
        fires=(
            Fired(
                labels={"driver": "gpu.nvidia.com"},
                says="Devices of driver gpu.nvidia.com in cluster east cannot be prepared for 1 claims. Nodes: n1 (1)."
                " Longest: ml/train-0 (6m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRAPrepareFailing",
        about="with --claim-series=off",
        series={**_info("train-0"), **_waits("train-0", "prepare_failed", "0+60x30")},
        at="6m",
        fires=(
            Fired(
                says="Devices in cluster east cannot be prepared for 1 claims. Nodes: Longest: ml/train-0 (6m 0s).",
            ),
        ),
    ),
    Case(
        alert="DRAPrepareFailing",
        about="still at it",
        series={**_info("train-0"), **_held("train-0", "GPU-a"), **_waits("train-0", "preparing", "0+60x30")},
        at="20m",
    ),
    Case(
        alert="DRAClaimLeaked",
        about="one for a namespace",
        series={
            'dra_claim_leaked{namespace="ml",resourceclaim="old-0",claim_uid="u0"}': "1x60",
            'dra_claim_leaked{namespace="ml",resourceclaim="old-1",claim_uid="u1"}': "1x60",
        },
        at="16m",
        fires=(
            Fired(labels={"namespace": "ml"}, says="2 claims of namespace ml hold devices that nothing has reserved."),
        ),
    ),
    Case(
        alert="DRAClaimLeaked",
        about="let go after a while",
        series={'dra_claim_leaked{namespace="ml",resourceclaim="old-0",claim_uid="u0"}': "1x5 _x50"},
        at="20m",
    ),
)

CASES: Final = (*_PENDING, *_UNHEALTHY, *_STRAGGLERS, *_USE, *_STUCK)
