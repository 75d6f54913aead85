"""When do the alerts on capacity and on the speed of allocation fire?"""

from __future__ import annotations

from typing import Final

from alerts.cases.model import Case, Fired

_CLASS: Final = {"deviceclass": "gpu"}


def _pool(free: str, allocated: str) -> dict[str, str]:
    labels = 'driver="gpu.nvidia.com",pool="n1",deviceclass="gpu"'
    return {
        f'dra_pool_devices{{{labels},state="free"}}': free,
        f'dra_pool_devices{{{labels},state="allocated"}}': allocated,
    }


def _waiting(claims: int, reason: str = "devices_in_use") -> dict[str, str]:
    series: dict[str, str] = {}
    for number in range(claims):
        labels = f'namespace="ml",resourceclaim="c{number}",claim_uid="u{number}",pod="p{number}",deviceclass="gpu"'
        series[f"dra_claim_pending_seconds{{{labels}}}"] = "0+60x60"
        series[f'dra_claim_pending_reason{{{labels},reason="{reason}"}}'] = "1x60"
    return series


def _bindings(all_of_them: str, fast: str, le: str = "30.0") -> dict[str, str]:
    name, labels = "dra_allocation_duration_seconds", 'deviceclass="gpu",phase="binding"'
    return {
        f"{name}_count{{{labels}}}": all_of_them,
        f'{name}_bucket{{{labels},le="{le}"}}': fast,
        f'{name}_bucket{{{labels},le="+Inf"}}': all_of_them,
    }


def _burns(*windows: tuple[str, str], part: str = "50%") -> tuple[Fired, ...]:
    return tuple(
        Fired(
            labels={**_CLASS, "long": long, "short": short},
            says=f"{part} of the allocations of class gpu in the last {long} were bound later than after 30 s.",
        )
        for long, short in windows
    )


_SHRINKING: Final = _pool("100-1x120", "0+1x120")

CASES: Final = (
    Case(
        alert="DRADeviceClassExhausted", about="claims wait and nothing is free",
        series={**_pool("0x60", "8x60"), **_waiting(2)}, at="20m",
        fires=(
            Fired(labels=_CLASS, says="Class gpu in cluster east has no free devices, and 2 claims wait."),
        ),
    ),
    Case(
        alert="DRADeviceClassExhausted", about="nothing is free, and nobody waits", series=_pool("0x60", "8x60"),
        at="20m",
    ),
    Case(
        alert="DRADeviceClassExhausted", about="those that wait hold the last devices",
        series={**_pool("0x60", "8x60"), **_waiting(2, "preparing")}, at="20m",
    ),
    Case(
        alert="DRADeviceClassExhausted", about="one device is free, so they wait for something else",
        series={**_pool("1x60", "7x60"), **_waiting(2)}, at="20m",
    ),
    Case(
        alert="DRADeviceClassFillingUp", about="one device less every five minutes", step="5m",
        series=_SHRINKING, at="495m",
        fires=(
            Fired(
                labels=_CLASS,
                says="Class gpu in cluster east has 1% of its devices free, and none tomorrow if it goes on like this.",
            ),
        ),
    ),
    Case(
        alert="DRADeviceClassFillingUp", about="few are free, and it stays so", step="5m",
        series=_pool("5x120", "95x120"), at="485m",
    ),
    Case(
        alert="DRADeviceClassFillingUp", about="many are free yet", step="5m", series=_SHRINKING, at="300m",
    ),
    Case(
        alert="DRADeviceClassBacklog", about="21 claims", series=_waiting(21), at="15m",
        fires=(Fired(labels=_CLASS, says="21 claims of class gpu in cluster east wait."),),
    ),
    Case(alert="DRADeviceClassBacklog", about="20 claims", series=_waiting(20), at="15m"),
    Case(
        alert="DRAConstraintViolations", about="one a minute",
        series={'dra_constraint_violations_total{deviceclass="gpu",constraint="taint"}': "0+1x60"}, at="40m",
        fires=(
            Fired(
                labels={**_CLASS, "constraint": "taint"},
                says="15 times in 15 minutes a device of class gpu came to go against taint while it was allocated.",
            ),
        ),
    ),
    Case(
        alert="DRAConstraintViolations", about="the first ones ever, all at once",
        series={'dra_constraint_violations_total{deviceclass="gpu",constraint="temperature"}': "_x20 64x40"},
        at="28m",
        fires=(
            Fired(
                labels={**_CLASS, "constraint": "temperature"},
                says="64 times in 15 minutes a device of class gpu came to go against temperature while it was"
                " allocated.",
            ),
        ),
    ),
    Case(
        alert="DRAConstraintViolations", about="many, long ago",
        series={'dra_constraint_violations_total{deviceclass="gpu",constraint="taint"}': "50x60"}, at="40m",
    ),
    Case(
        alert="DRAPoolIncomplete", about="a slice is missing",
        series={'dra_pool_complete{driver="gpu.nvidia.com",pool="n1"}': "0x60"}, at="20m",
        fires=(
            Fired(
                labels={"driver": "gpu.nvidia.com", "pool": "n1"},
                says="Pool n1 of driver gpu.nvidia.com is incomplete.",
            ),
        ),
    ),
    Case(
        alert="DRAPoolIncomplete", about="rewritten for a moment",
        series={'dra_pool_complete{driver="gpu.nvidia.com",pool="n1"}': "1x5 0x5 1x50"}, at="20m",
    ),
    Case(
        alert="DRADevicesAdvertisedTwice", about="by device plugin and by DRA",
        series={'dra_node_devices_advertised_twice{node="n1",resource="nvidia.com/gpu"}': "8x60"}, at="15m",
        fires=(
            Fired(
                labels={"node": "n1", "resource": "nvidia.com/gpu"},
                says="Node n1 offers 8 devices both as nvidia.com/gpu and by claim: they can be handed out twice.",
            ),
        ),
    ),
    Case(
        alert="DRADevicesAdvertisedTwice", about="none",
        series={'dra_node_devices_advertised_twice{node="n1",resource="nvidia.com/gpu"}': "0x60"}, at="15m",
    ),
    # Prometheus 3 spells the bound 30.0, and 2 as it is exposed.
    Case(
        alert="DRAAllocationErrorBudgetBurn", about="half have been slow for a few minutes",
        series=_bindings("0+10x300", "0+5x300", "30"), at="10m", fires=_burns(("1h", "5m")),
    ),
    Case(
        alert="DRAAllocationErrorBudgetBurn", about="half have been slow for hours",
        series=_bindings("0+10x300", "0+5x300", "30.0"), at="185m",
        fires=_burns(("1h", "5m"), ("6h", "30m"), ("1d", "2h"), ("3d", "6h")),
    ),
    Case(
        alert="DRAAllocationErrorBudgetBurn", about="half were slow, and all are well again but for the longer windows",
        series=_bindings("0+10x300", "0+5x30 160+10x270"), at="45m",
        fires=_burns(("6h", "30m"), part="33.33%"),
    ),
    Case(
        alert="DRAAllocationErrorBudgetBurn", about="one of two was slow, and there were no more",
        series=_bindings("0x20 1x30 2x250", "0x20 1x280"), at="55m",
    ),
    Case(
        alert="DRAAllocationErrorBudgetBurn", about="all are fast",
        series=_bindings("0+10x300", "0+10x300"), at="185m",
    ),
)  # fmt: skip
