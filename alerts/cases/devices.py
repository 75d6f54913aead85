"""When do the alerts on GPUs fire?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from alerts.cases.model import Case, Fired

_GPU: Final = {"node": "n1", "uuid": "GPU-a"}
_ON_GPU: Final = 'node="n1",uuid="GPU-a",gpu="0"'
_CLAIM: Final = 'namespace="ml",resourceclaim="c",claim_uid="u"'
_HOLDER: Final = {
    f'dra_claim_info{{{_CLAIM},deviceclass="gpu",workload_kind="Job",workload="train"}}': "1x60",
    f'dra_claim_device_info{{{_CLAIM},uuid="GPU-a",node="n1",admin_access="false"}}': "1x60",
}


def _health(state: str) -> dict[str, str]:
    return {
        f'gpu_health{{{_ON_GPU},state="{each}"}}': f"{int(each == state)}x60"
        for each in ("ok", "degraded", "unhealthy", "lost")
    }


def _finding(rule: str, gpus: Iterable[str], values: str = "1x60") -> dict[str, str]:
    labels = f'gpu="0",rule="{rule}",severity="degraded",state="firing"'
    return {f'gpu_health_finding_info{{node="n1",uuid="GPU-{gpu}",{labels}}}': values for gpu in gpus}


def _gpus(gpus: Iterable[str], values: str = "1x60") -> dict[str, str]:
    return {f'gpu_info{{node="n1",uuid="GPU-{gpu}",gpu="0",parent_uuid=""}}': values for gpu in gpus}


def _missing(gpu: str) -> Fired:
    return Fired(
        labels={"node": "n1", "uuid": f"GPU-{gpu}"},
        says=f"GPU-{gpu} of node n1 was there, and the agent does not see it any more.",
    )


_VERDICTS: Final = (
    Case(
        alert="DRADeviceFailed", about="a ticket that names the finding and who holds the GPU",
        series={**_health("unhealthy"), **_finding("xid_fatal", "a"), **_HOLDER}, at="5m",
        fires=(
            Fired(
                labels=_GPU,
                says="GPU-a of node n1 is unhealthy or lost. Finding: xid_fatal. It is held by Job ml/train.",
            ),
        ),
    ),
    Case(
        alert="DRADeviceFailed", about="the same ticket when it gets worse and its holder goes",
        series={
            f'gpu_health{{{_ON_GPU},state="unhealthy"}}': "1x3 0x10",
            f'gpu_health{{{_ON_GPU},state="lost"}}': "0x3 1x10",
            **dict.fromkeys(_HOLDER, "1x2 stale"),
        },
        at="4m",
        fires=(Fired(labels=_GPU, says="GPU-a of node n1 is unhealthy or lost."),),
    ),
    Case(alert="DRADeviceFailed", about="a degraded one has not failed", series=_health("degraded"), at="10m"),
    Case(
        alert="DRADeviceDegraded", about="for five minutes",
        series={**_health("degraded"), **_finding("pcie_width", "a")}, at="6m",
        fires=(Fired(labels=_GPU, says="GPU-a of node n1 is degraded. Finding: pcie_width."),),
    ),
    Case(alert="DRADeviceDegraded", about="not at once", series=_health("degraded"), at="4m"),
    Case(
        alert="DRADeviceFailed", about="a GPU cut into MIG devices is one ticket, whatever stands against its parts",
        series={
            **{f'gpu_health{{node="n1",uuid="MIG-{part}",gpu="0",state="unhealthy"}}': "1x60" for part in range(7)},
            **{f'gpu_info{{node="n1",uuid="MIG-{part}",gpu="0",parent_uuid="GPU-a"}}': "1x60" for part in range(7)},
        },
        at="5m", fires=(Fired(labels=_GPU, says="GPU-a of node n1 is unhealthy or lost."),),
    ),
    Case(
        alert="DRADeviceMissing", about="one of two is gone, and no finding says so",
        series={**_gpus("a"), **_gpus("b", "1x10 _x50")}, at="40m",
        fires=(_missing("b"),),
    ),
    Case(
        alert="DRADeviceMissing", about="it does not resolve while the GPU is gone",
        series={**_gpus("a", "1x1000"), **_gpus("b", "1x10 _x990")}, at="900m", fires=(_missing("b"),),
    ),
    Case(
        alert="DRADeviceMissing", about="all are gone, and the driver answers",
        series={**_gpus("ab", "1x10 _x50"), 'claimscope_agent_nvml_up{node="n1"}': "1x60"}, at="40m",
        fires=(_missing("a"), _missing("b")),
    ),
    Case(
        alert="DRADeviceMissing", about="the node was booted without it",
        series={**_gpus("a", "1x10 _x30 1x60"), **_gpus("b", "1x10 _x90")}, at="70m", fires=(_missing("b"),),
    ),
    Case(
        alert="DRADeviceMissing", about="a finding tells of another GPU",
        series={**_gpus("a"), **_gpus("bc", "1x10 _x50"), **_finding("gpu_lost", "b")}, at="40m",
        fires=(_missing("c"),),
    ),
    Case(
        alert="DRADeviceMissing", about="the verdict says so",
        series={**_gpus("a"), **_gpus("b", "1x10 _x50"), **_finding("gpu_missing", "b")}, at="40m",
    ),
    Case(
        alert="DRADeviceMissing", about="the agent restarts",
        series={**_gpus("ab", "1x10 _x3 1x40")}, at="40m",
    ),
    Case(alert="DRADeviceMissing", about="the agent is away", series=_gpus("ab", "1x10 _x50"), at="40m"),
    Case(
        alert="DRADeviceMissing", about="the driver is unloaded",
        series={**_gpus("a"), **_gpus("b", "1x10 _x50"), 'claimscope_agent_nvml_up{node="n1"}': "0x60"}, at="40m",
    ),
    Case(
        alert="DRADeviceMissing", about="another board sits in its slot",
        series={
            **_gpus("a"),
            'gpu_info{node="n1",uuid="GPU-b",gpu="1",parent_uuid="",pci_bus_id="0000:1b:00.0"}': "1x10 _x50",
            'gpu_info{node="n1",uuid="GPU-c",gpu="1",parent_uuid="",pci_bus_id="0000:1b:00.0"}': "_x20 1x40",
        },
        at="50m",
    ),
    Case(
        alert="DRASystemicFinding", about="held back, with the findings behind it",
        series={'dra_taint_held{reason="systemic"}': "6x60", **_finding("xid_fatal", "abc")}, at="5m",
        fires=(
            Fired(
                says="6 taints in cluster east are held back: one cause outside of the GPUs is likely. Findings:"
                " xid_fatal on 3 GPUs.",
            ),
        ),
    ),
    Case(
        alert="DRASystemicFinding", about="held back for another reason",
        series={
            'dra_taint_held{reason="systemic"}': "0x60", 'dra_taint_held{reason="systemic_node"}': "2x60",
            'dra_taint_held{reason="mode"}': "6x60",
        }, at="5m",
    ),
    Case(
        alert="DRASystemicFindingOnNode", about="half of the node is slow",
        series={**_gpus("abcd"), **_finding("thermal_margin", "ab")}, at="5m",
        fires=(
            Fired(
                labels={"node": "n1", "rule": "thermal_margin"},
                says="Rule thermal_margin stands against 2 GPUs of node n1. Look first at its cooling.",
            ),
        ),
    ),
    Case(
        alert="DRASystemicFindingOnNode", about="another rule, another place to look",
        series={**_gpus("ab"), **_finding("pcie_replays", "ab")}, at="5m",
        fires=(
            Fired(
                labels={"node": "n1", "rule": "pcie_replays"},
                says="Rule pcie_replays stands against 2 GPUs of node n1. Look first at the PCIe switch or riser that"
                " they share.",
            ),
        ),
    ),
    Case(
        alert="DRASystemicFindingGrave", about="half of a node is about to shut down",
        series={**_gpus("abcd"), **_finding("thermal_shutdown", "ab")}, at="5m",
        fires=(
            Fired(
                labels={"rule": "thermal_shutdown"},
                says="Rule thermal_shutdown stands against half of the GPUs of 1 nodes in cluster east: n1 (2 GPUs).",
            ),
        ),
    ),
    Case(
        alert="DRASystemicFindingGrave", about="three nodes are a little too hot",
        series={
            labels.replace('"n1"', f'"{node}"').replace("GPU-", f"GPU-{node}"): values
            for node, gpus in (("n1", "abcd"), ("n2", "abc"), ("n3", "ab"))
            for labels, values in {**_gpus(gpus), **_finding("thermal_margin", gpus)}.items()
        },
        at="5m",
        fires=(
            Fired(
                labels={"rule": "thermal_margin"},
                says="Rule thermal_margin stands against half of the GPUs of 3 nodes in cluster east: n1 (4 GPUs). n2"
                " (3 GPUs). n3 (2 GPUs).",
            ),
        ),
    ),
    Case(
        alert="DRASystemicFindingGrave", about="one node is a little too hot",
        series={**_gpus("ab"), **_finding("thermal_margin", "ab")}, at="10m",
    ),
    Case(
        alert="DRASystemicFindingOnNode", about="one of four",
        series={**_gpus("abcd"), **_finding("thermal_slowdown_lasting", "a")}, at="5m",
    ),
    Case(
        alert="DRASystemicFindingOnNode", about="the only GPU of a node",
        series={**_gpus("a"), **_finding("thermal_slowdown_lasting", "a")}, at="5m",
    ),
    Case(
        alert="DRASystemicFindingOnNode", about="a rule that knows no outer cause",
        series={**_gpus("abcd"), **_finding("row_remap_failure", "abcd")}, at="5m",
    ),
)  # fmt: skip


def _drift(values: str) -> dict[str, str]:
    labels = 'model="H100",fact="driver_version",value="570.1",majority="580.2"'
    return {f'dra_node_drift_info{{node="{node}",{labels}}}': values for node in ("n1", "n2")}


_SIGNS: Final = (
    Case(
        alert="DRADeviceXid", about="79, a minute ago",
        series={f'gpu_xid_last_timestamp_seconds{{{_ON_GPU},xid="79"}}': "_x4 240x60"}, at="5m",
        fires=(
            Fired(
                labels={**_GPU, "xid": "79"},
                says="GPU-a of node n1 had XID 79 1m 0s ago. This informs; the finding that follows from it, if"
                " any, is its own alert.",
            ),
        ),
    ),
    Case(
        alert="DRADeviceXid", about="long ago",
        series={f'gpu_xid_last_timestamp_seconds{{{_ON_GPU},xid="79"}}': "0x60"}, at="20m",
    ),
    Case(
        alert="DRADeviceXid", about="13, which a program causes",
        series={f'gpu_xid_last_timestamp_seconds{{{_ON_GPU},xid="13"}}': "0x60"}, at="2m",
    ),
    Case(
        alert="DRADeviceEccUncorrected", about="the first ever, on a counter born at 0",
        series={f'gpu_ecc_device_errors_total{{{_ON_GPU},type="uncorrected"}}': "0x10 1x50"}, at="12m",
        fires=(
            Fired(
                labels=_GPU,
                says="GPU-a of node n1 had uncorrectable memory errors. This informs; the finding that follows"
                " from it, if any, is its own alert.",
            ),
        ),
    ),
    Case(
        alert="DRADeviceEccUncorrected", about="corrected ones, and old ones",
        series={
            f'gpu_ecc_device_errors_total{{{_ON_GPU},type="corrected"}}': "0+5x60",
            f'gpu_ecc_device_errors_total{{{_ON_GPU},type="uncorrected"}}': "7x60",
        },
        at="20m",
    ),
    Case(
        alert="DRADeviceRowRemapFailure", about="no row left",
        series={f"gpu_row_remap_failure{{{_ON_GPU}}}": "1x60", **_HOLDER}, at="5m",
        fires=(
            Fired(
                labels=_GPU,
                says="GPU-a of node n1 could not remap a broken memory row: it needs repair. It is held by Job"
                " ml/train.",
            ),
        ),
    ),
    Case(
        alert="DRADeviceRowRemapFailure", about="none failed",
        series={f"gpu_row_remap_failure{{{_ON_GPU}}}": "0x60"}, at="5m",
    ),
    Case(
        alert="DRADeviceRowRemapPending", about="until the next reset",
        series={f"gpu_row_remap_pending{{{_ON_GPU}}}": "1x60"}, at="5m",
        fires=(Fired(labels=_GPU, says="GPU-a of node n1 remaps a broken memory row when it is next reset."),),
    ),
    Case(
        alert="DRADeviceRowRemapPending", about="nothing to remap",
        series={f"gpu_row_remap_pending{{{_ON_GPU}}}": "0x60"}, at="5m",
    ),
    Case(
        alert="DRADeviceNVLinkDown", about="two links",
        series={
            f'gpu_nvlink_up{{{_ON_GPU},link="{link}"}}': "1x60" if link > 1 else "1x10 0x50" for link in range(4)
        },
        at="15m", fires=(Fired(labels=_GPU, says="2 NVLinks are down: GPU-a of node n1."),),
    ),
    Case(
        alert="DRADeviceNVLinkDown", about="as long as the finding stands",
        series={f'gpu_nvlink_up{{{_ON_GPU},link="0"}}': "1x10 0x200", **_finding("nvlink_down", "a", "1x200")},
        at="150m", fires=(Fired(labels=_GPU, says="1 NVLinks are down: GPU-a of node n1."),),
    ),
    Case(
        alert="DRADeviceNVLinkDown", about="links that nobody ever connected",
        series={f'gpu_nvlink_up{{{_ON_GPU},link="{link}"}}': f"{int(link > 1)}x60" for link in range(4)}, at="15m",
    ),
    Case(
        alert="DRADeviceNVLinkDown", about="all are up",
        series={f'gpu_nvlink_up{{{_ON_GPU},link="{link}"}}': "1x60" for link in range(4)}, at="5m",
    ),
    Case(
        alert="DRADeviceNVLinkErrors", about="one a second",
        series={f'gpu_nvlink_errors_total{{{_ON_GPU},type="replay"}}': "0+60x60"}, at="20m",
        fires=(
            Fired(
                labels={**_GPU, "type": "replay"},
                says="GPU-a of node n1 has 1 NVLink errors of type replay a second.",
            ),
        ),
    ),
    Case(
        alert="DRADeviceNVLinkErrors", about="one in five minutes",
        series={f'gpu_nvlink_errors_total{{{_ON_GPU},type="replay"}}': "0x4 1x4 2x4 3x4 4x4 5x20"}, at="20m",
    ),
    Case(
        alert="DRADeviceThermalThrottling", about="half of the time",
        series={f'gpu_throttle_seconds_total{{{_ON_GPU},reason="hw_thermal"}}': "0+30x60"}, at="20m",
        fires=(Fired(labels=_GPU, says="GPU-a of node n1 is slowed down by heat 50% of the time."),),
    ),
    Case(
        alert="DRADeviceThermalThrottling", about="for another reason",
        series={f'gpu_throttle_seconds_total{{{_ON_GPU},reason="sw_power_cap"}}': "0+30x60"}, at="20m",
    ),
    Case(
        alert="DRADevicePowerBrake", about="a quarter of the time",
        series={f'gpu_throttle_seconds_total{{{_ON_GPU},reason="hw_power_brake"}}': "0+15x60"}, at="20m",
        fires=(Fired(labels=_GPU, says="GPU-a of node n1 is slowed down by the power brake 25% of the time."),),
    ),
    Case(
        alert="DRADevicePowerBrake", about="never",
        series={f'gpu_throttle_seconds_total{{{_ON_GPU},reason="hw_power_brake"}}': "15x60"}, at="20m",
    ),
    Case(
        alert="DRANodeConfigDrift", about="one for all nodes with this driver", step="30m", series=_drift("1x90"),
        at="25h",
        fires=(
            Fired(
                labels={"model": "H100", "fact": "driver_version", "value": "570.1"},
                says="driver_version of H100 is 570.1 on 2 nodes in cluster east. Most have 580.2.",
            ),
        ),
    ),
    Case(
        alert="DRANodeConfigDrift", about="a roll-out that takes a day", step="30m", series=_drift("1x40 _x60"),
        at="30h",
    ),
    Case(
        alert="DRANodeConfigDrift", about="a node is cut as its work needs it", step="30m",
        series={
            'dra_node_drift_info{node="n1",model="H100",fact="mig_mode",value="enabled",majority="disabled"}': "1x90",
        },
        at="30h",
    ),
)  # fmt: skip

CASES: Final = (*_VERDICTS, *_SIGNS)
