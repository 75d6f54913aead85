"""What do recording rules make of series?"""

from __future__ import annotations

from typing import Final

from alerts.cases.model import Recorded
from alerts.recording import BUSY_RATIO
from alerts.words import HELD, WAITS

_CLASSES: Final = ("gpu.nvidia.com", "h100.example.com")  # both match every GPU of the pools


def _pools(once: str = "1x10") -> dict[str, str]:
    """Two nodes of four GPUs, each counted in two classes, and one GPU of another driver that no class matches."""
    series: dict[str, str] = {}
    for pool in ("n1", "n2"):
        for deviceclass in _CLASSES:
            labels = f'driver="gpu.nvidia.com",pool="{pool}",deviceclass="{deviceclass}"'
            series |= {
                f'dra_pool_devices{{{labels},state="allocated"}}': once.replace("1", "3", 1),
                f'dra_pool_devices{{{labels},state="free"}}': once,
            }
    labels = 'driver="other.example.com",pool="n3",deviceclass=""'
    return {**series, f'dra_pool_devices{{{labels},state="free"}}': once}


def _busy(node: str, uuid: str, ratio: float) -> dict[str, str]:
    return {f'gpu_utilization_ratio{{node="{node}",uuid="{uuid}",engine="gpu"}}': f"{ratio}x10"}


def _attributed(node: str, uuid: str, driver: str = "gpu.nvidia.com") -> dict[str, str]:
    return {f'gpu_allocation_info{{node="{node}",uuid="{uuid}",driver="{driver}"}}': "1x10"}


def _claim(name: str, uuid: str, deviceclass: str, workload: str = "train") -> dict[str, str]:
    claim = f'namespace="ml",resourceclaim="{name}",claim_uid="uid-{name}"'
    kind = "Job" if workload else ""
    return {
        f'dra_claim_info{{{claim},deviceclass="{deviceclass}",workload_kind="{kind}",workload="{workload}"}}': "1x10",
        f'dra_claim_device_info{{{claim},request="gpu",uuid="{uuid}",node="n1",admin_access="false"}}': "1x10",
    }


def _account(family: str, uuid: str, attribution: str, values: str, more: str = "") -> dict[str, str]:
    claim = 'namespace="ml",resourceclaim="a",claim_uid="uid-a"'
    return {f'{family}{{node="n1",{claim},uuid="{uuid}",attribution="{attribution}"{more}}}': values}


_POD: Final = 'node="n1",namespace="ml",pod="p",container="c",uuid="GPU-d",attribution="exclusive"'


_IN_USE: Final = {
    # A claim on a whole GPU, on a seventh of one, and on one that cannot be measured; a pod on an idle GPU.
    **_account("dra_claim_gpu_allocated_seconds_total", "GPU-a", "exclusive", "0+60x10"),
    **_account("dra_claim_gpu_busy_seconds_total", "GPU-a", "exclusive", "0+30x10", ',engine="gpu"'),
    **_account("dra_claim_gpu_allocated_seconds_total", "MIG-b", "exclusive", "0+60x10"),
    **_account("dra_claim_gpu_busy_seconds_total", "MIG-b", "exclusive", "0+0x10", ',engine="gpu"'),
    **_account("dra_claim_gpu_allocated_seconds_total", "GPU-c", "exclusive", "0+60x10"),
    f"pod_gpu_allocated_seconds_total{{{_POD}}}": "0+60x10",
    f'pod_gpu_busy_seconds_total{{{_POD},engine="gpu"}}': "0+1.5x10",
    **{
        f'gpu_size_ratio{{node="n1",uuid="{uuid}"}}': f"{size}x10"
        for uuid, size in (("GPU-a", 1), ("MIG-b", 0.125), ("GPU-c", 1), ("GPU-d", 1))
    },
}
_OF_CLAIM: Final = 'namespace="ml",resourceclaim="a",claim_uid="uid-a"'
_OF_POD: Final = 'namespace="ml",pod="p"'


def _use(name: str, claim: float, pod: float) -> tuple[Recorded, ...]:
    levels = {
        "holder": {_OF_CLAIM: claim, _OF_POD: pod},
        "namespace": {'namespace="ml"': claim + pod},
        "cluster": {"": claim + pod},
    }
    return tuple(
        Recorded(
            record=f"{level}:{name}",
            about="in whole GPUs, of claims and of pods",
            series=_IN_USE,
            at="10m",
            values=values,
        )
        for level, values in levels.items()
    )


# Errors of GPU 0 that come, of GPU 1 that began anew at minute 8, and of GPU 2 that is long over.
def _errors(family: str, kind: str) -> dict[str, str]:
    return {
        f'{family}{{node="n1",gpu="{gpu}",uuid="GPU-{gpu}",type="{kind}"}}': values
        for gpu, values in (("0", "0+2x20"), ("1", "90x7 3x13"), ("2", "5x20"))
    }


_GPU_0: Final = 'node="n1",gpu="0",uuid="GPU-0"'
_GPU_1: Final = 'node="n1",gpu="1",uuid="GPU-1"'
_ENERGY: Final = "dra_claim_gpu_energy_joules_total"
_ACCOUNTED: Final = {
    **_account(_ENERGY, "GPU-a", "exclusive", "0+6000x10"),
    f"pod_gpu_energy_joules_total{{{_POD}}}": "0+1200x10",
    'gpu_energy_joules_total{node="n1",uuid="GPU-a",gpu="0"}': "0+6000x10",
    'gpu_energy_joules_total{node="n1",uuid="GPU-d",gpu="1"}': "0+1800x10",
    'gpu_energy_joules_total{node="n1",uuid="MIG-e",gpu="1"}': "0+600x10",  # a part of GPU-d
    'gpu_unattributed_energy_joules_total{node="n1",uuid="GPU-d",gpu="1"}': "0+600x10",
}
_UTILIZATION: Final = {
    **_busy("n1", "GPU-a", 0.9), **_busy("n1", "GPU-b", 0.05), **_busy("n2", "GPU-c", 0.5), **_busy("n2", "GPU-d", 0.2),
    **_busy("plugin", "GPU-e", 0.9),
    **_attributed("n1", "GPU-a"), **_attributed("n1", "GPU-b"), **_attributed("n2", "GPU-c"),
    **_attributed("n2", "GPU-d"), **_attributed("plugin", "GPU-e", driver=""),
}  # fmt: skip
_HELD_LABELS: Final = 'namespace="ml",resourceclaim="{0}",claim_uid="uid-{0}",deviceclass="gpu",node="n1",uuid="{1}"'
_WAIT: Final = 'namespace="ml",pod="p",deviceclass="gpu"'

CASES: Final = (
    Recorded(
        record="deviceclass:dra_allocation_slow:ratio_rate1h",
        about="the controller that follows counts from nothing, and all that it sees is slow",
        series={
            f'dra_allocation_duration_seconds_{name}deviceclass="g",phase="binding"}}': values
            for name, values in (
                ('bucket{le="30",instance="a",', "0+10x60 stale"), ('count{instance="a",', "0+10x60 stale"),
                ('bucket{le="30",instance="b",', "_x61 0x60"), ('count{instance="b",', "_x61 0+10x60"),
            )
        },
        at="91m", values={'deviceclass="g"': 60 / 119},  # 1 minute in 60 lies between the two
    ),
    Recorded(
        record="cluster:dra_pool_devices:distinct", about="devices of overlapping classes count once", series=_pools(),
        at="5m", values={"": 9},
    ),
    Recorded(
        record="deviceclass:dra_pool_devices:sum", about="by class a device counts in each", series=_pools(), at="5m",
        values={'deviceclass="gpu.nvidia.com"': 8, 'deviceclass="h100.example.com"': 8, "": 1},
    ),
    Recorded(
        record="cluster:dra_devices_busy:ratio",
        about="three of eight GPUs do work; other drivers' devices and the device plugin's are in neither number",
        series={**_pools(), **_UTILIZATION}, at="5m", values={"": 3 / 8},
    ),
    Recorded(
        record="cluster:dra_devices_busy:ratio", about="0 is a number",
        series={**_pools(), **_busy("n1", "GPU-a", 0.0), **_attributed("n1", "GPU-a")}, at="5m", values={"": 0},
    ),
    Recorded(
        record="cluster:dra_devices_busy:ratio", about="a driver stays known when nothing of it is held any more",
        series={
            **_pools("1x60"),
            **dict.fromkeys(_attributed("n1", "GPU-a"), "1x10 _x50"),
            **dict.fromkeys(_busy("n1", "GPU-a", 0.0), "0x60"),
        },
        at="40m", values={"": 0},
    ),
    Recorded(
        record="deviceclass:dra_devices_busy:ratio", about="of eight devices one is held by the class and does work",
        series={
            **_pools(), **_UTILIZATION,
            **_claim("a", "GPU-a", "gpu.nvidia.com"), **_claim("b", "GPU-b", "gpu.nvidia.com"),
        },
        at="5m", values={'deviceclass="gpu.nvidia.com"': 1 / 8},
    ),
    Recorded(
        record="cluster:dcgm_gpu_utilization_per_allocatable:percent",
        about="what the query of many dashboards answers: percents added up, of which each counts as a GPU",
        series={
            'DCGM_FI_DEV_GPU_UTIL{gpu="0"}': "90x10", 'DCGM_FI_DEV_GPU_UTIL{gpu="1"}': "5x10",
            'kube_node_status_allocatable{node="plugin",resource="nvidia_com_gpu"}': "2x10",
        },
        # Two jobs scrape both series, so both sums are twice what they should be.
        at="5m", values={"": 4500},
    ),
    Recorded(
        record=HELD, about="a GPU that two claims share, one of them with nothing behind it; an observer holds nothing",
        series={
            **_claim("a", "GPU-a", "gpu"), **_claim("b", "GPU-a", "gpu", workload=""),
            'dra_claim_device_info{namespace="ml",resourceclaim="a",claim_uid="uid-a",uuid="GPU-z",admin_access="true"}':
                "1x10",
        },
        at="5m",
        values={
            f'{_HELD_LABELS.format("a", "GPU-a")},workload_kind="Job",workload="train"': 1,
            f'{_HELD_LABELS.format("b", "GPU-a")},workload_kind="ResourceClaim",workload="b"': 1,
        },
    ),
    Recorded(
        record=WAITS, about="two claims of a pod that could not be made for two reasons; the quota's is left out",
        series={
            f"dra_claim_pending_seconds{{{_WAIT}}}": "400x10",
            **{
                f'dra_claim_pending_reason{{{_WAIT},reason="{reason}"}}': "1x10"
                for reason in ("template_missing", "claim_missing", "quota")
            },
        },
        at="5m",
        values={f'{_WAIT},reason="{reason}"': 400 for reason in ("template_missing", "claim_missing")},
    ),
    *_use("gpus_held:rate5m", 2.125, 1),
    *_use("gpus_busy:rate5m", 0.5, 0.025),
    *_use("gpus_measured:rate5m", 1.125, 1),
    *_use("gpus_idle:rate5m", 0.125, 1),
    Recorded(
        record=BUSY_RATIO, about="of what can be measured", series=_IN_USE, at="10m",
        values={_OF_CLAIM: 0.5 / 1.125},
    ),
    Recorded(
        record=BUSY_RATIO, about="nothing is held, so there is no part of it",
        series={name: "60x10" if "seconds_total" in name else values for name, values in _IN_USE.items()}, at="10m",
        values={},
    ),
    Recorded(
        record="claim:dra_claim_gpu_energy_joules:rate5m",
        about="parts of several devices add up, also where the way of attribution changed; scrapes do not",
        series={
            **_account(_ENERGY, "GPU-a", "exclusive", "0+6000x10"), **_account(_ENERGY, "GPU-a", "share", "0+600x10"),
            **_account(_ENERGY, "GPU-b", "exclusive", "0+12000x10"),
        },
        at="10m", values={'namespace="ml",resourceclaim="a",claim_uid="uid-a"': 310},
    ),
    Recorded(
        record="deviceclass:dra_allocation_slow:ratio_rate5m", about="either spelling of le",
        series={
            'dra_allocation_duration_seconds_count{deviceclass="a",phase="binding"}': "0+8x10",
            'dra_allocation_duration_seconds_bucket{deviceclass="a",phase="binding",le="30"}': "0+6x10",
            'dra_allocation_duration_seconds_count{deviceclass="b",phase="binding"}': "0+10x10",
            'dra_allocation_duration_seconds_bucket{deviceclass="b",phase="binding",le="30.0"}': "0+5x10",
            'dra_allocation_duration_seconds_bucket{deviceclass="b",phase="binding",le="60.0"}': "0+9x10",
        },
        at="10m", values={'deviceclass="a"': 0.25, 'deviceclass="b"': 0.5},
    ),
    Recorded(
        record="holder:gpus_wasted:rate5m", about="held and not busy, of what can be measured", series=_IN_USE,
        at="10m", values={_OF_CLAIM: 0.625, _OF_POD: 0.975},
    ),
    *(
        Recorded(
            record=f"namespace_source:{name}", about="by how holders came by their GPUs", series=_IN_USE, at="10m",
            values={'namespace="ml",source="claim"': claim, 'namespace="ml",source="device_plugin"': pod},
        )
        for name, claim, pod in (
            ("gpus_held:rate5m", 2.125, 1), ("gpus_busy:rate5m", 0.5, 0.025), ("gpus_measured:rate5m", 1.125, 1),
        )
    ),
    *(
        Recorded(
            record=f"cluster:dra_claim_gpu_busy_per_allocated:p{share}", about="of claims", series=_IN_USE, at="10m",
            values={"": 0.5 / 1.125},
        )
        for share in (10, 50, 90)
    ),
    Recorded(
        record="namespace:gpu_held_energy_joules:rate5m", about="watts of claims and of pods", series=_ACCOUNTED,
        at="10m", values={'namespace="ml"': 120},
    ),
    Recorded(
        record="cluster:gpu_energy_joules:rate5m", about="MIG devices are parts of GPUs", series=_ACCOUNTED, at="10m",
        values={"": 130},
    ),
    Recorded(
        record="cluster:gpu_unattributed_energy_joules:rate5m", about="what no holder can be given",
        series=_ACCOUNTED, at="10m", values={"": 10},
    ),
    Recorded(
        record="device_type:gpu_ecc_device_errors:increase5m", about="only those that counted any",
        series=_errors("gpu_ecc_device_errors_total", "corrected"), at="10m",
        values={f'{_GPU_0},type="corrected"': 10, f'{_GPU_1},type="corrected"': 3},
    ),
    Recorded(
        record="device:gpu_remapped_rows:increase5m", about="of all types together",
        series=_errors("gpu_remapped_rows_total", "corrected") | _errors("gpu_remapped_rows_total", "uncorrected"),
        at="10m", values={_GPU_0: 20, _GPU_1: 6},
    ),
    Recorded(
        record="device:gpu_nvlink_errors:increase5m", about="an error that counts under several types is one",
        series=_errors("gpu_nvlink_errors_total", "replay") | _errors("gpu_nvlink_errors_total", "recovery"),
        at="10m", values={_GPU_0: 10, _GPU_1: 3},
    ),
    Recorded(
        record="device:gpu_nvlink_down:count", about="GPUs without a link that is down are left out",
        series={
            f"gpu_nvlink_up{{{gpu},link=\"{link}\"}}": f"{up}x10"
            for gpu, link, up in ((_GPU_0, 0, 0), (_GPU_0, 1, 0), (_GPU_0, 2, 1), (_GPU_1, 0, 1))
        },
        at="5m", values={_GPU_0: 2},
    ),
)  # fmt: skip
