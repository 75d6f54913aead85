"""Which alerts are about what is left, and how fast it is handed out?"""

from __future__ import annotations

from typing import Final

from alerts.model import Alert, Group
from alerts.recording import SLOW
from alerts.words import THE_CLUSTER, WAITS

_VIOLATION: Final = "cluster, deviceclass, constraint"
_SHORTAGE: Final = "devices_in_use|fragmented|tainted|counters_exhausted|capacity_exhausted"
_OBJECTIVE: Final = 0.01  # 99 % of the allocations are bound within 30 s


def _burn(long: str, short: str, factor: float, hold: str) -> Alert:
    """Windows and factors of the SRE workbook, as kubernetes-mixin has them. None pages: what does is in claims.py."""
    return Alert(
        name="DRAAllocationErrorBudgetBurn",
        # A part of next to nothing says nothing: so many slow ones there must be.
        expr=f"""
{SLOW}{long} > [[factor]] * [[objective]]
and
{SLOW}{short} > [[factor]] * [[objective]]
and on (cluster, deviceclass)
(
  {SLOW}{long}
  * on (cluster, deviceclass)
  sum by (cluster, deviceclass) (
    max by (cluster, deviceclass, instance) (increase(dra_allocation_duration_seconds_count{{phase="binding"}}[{long}]))
  )
) >= [[allocations]]""",
        thresholds={"factor": factor, "objective": _OBJECTIVE, "allocations": 5},
        hold=hold,
        severity="warning",
        not_in_demo="the simulated cluster binds within seconds",
        owner="platform",
        labels={"long": long, "short": short},
        summary="Allocated claims are bound to nodes too slowly.",
        description="{{ humanizePercentage $value }} of the allocations of class {{ $labels.deviceclass }} in the last"
        f" {long} were bound later than after 30 s.",
    )


GROUPS: Final = (
    Group(
        name="dra-capacity",
        rules=(
            Alert(
                name="DRADeviceClassExhausted",
                expr=f"""
count by (cluster, deviceclass) ({WAITS}{{reason=~"{_SHORTAGE}"}})
and on (cluster, deviceclass)
deviceclass:dra_pool_devices_free:sum == 0""",
                hold="15m",
                severity="warning",
                owner="platform",
                summary="Claims wait for a class that has no free devices.",
                description="Class {{ $labels.deviceclass }}" + THE_CLUSTER + " has no free devices, and"
                " {{ $value }} claims wait.",
            ),
            Alert(
                name="DRADeviceClassFillingUp",
                expr="""
deviceclass:dra_pool_devices_free:sum / on (cluster, deviceclass) deviceclass:dra_pool_devices:sum < [[ratio]]
and on (cluster, deviceclass)
predict_linear(deviceclass:dra_pool_devices_free:sum[6h], 24 * 3600) < 0
and on (cluster, deviceclass)
deviceclass:dra_pool_devices_free:sum > 0""",
                thresholds={"ratio": 0.15},
                hold="1h",
                severity="warning",
                owner="platform",
                not_in_demo="needs a class that shrinks for hours",
                summary="A class runs out of free devices within a day.",
                description="Class {{ $labels.deviceclass }}" + THE_CLUSTER + " has {{ humanizePercentage $value }} of"
                " its devices free, and none tomorrow if it goes on like this.",
            ),
            Alert(
                name="DRADeviceClassBacklog",
                expr="deviceclass:dra_claims_pending:count > [[claims]]",
                thresholds={"claims": 20},
                hold="10m",
                severity="info",
                owner="platform",
                summary="Many claims of a class wait.",
                description="{{ $value }} claims of class {{ $labels.deviceclass }}" + THE_CLUSTER + " wait.",
            ),
            # A series is born with its first violation, and many at once may be the first: increase() sees none of
            # them, so what was not there a quarter of an hour ago counts whole.
            Alert(
                name="DRAConstraintViolations",
                expr=f"""
max by ({_VIOLATION}) (increase(dra_constraint_violations_total[15m])) > [[times]]
or
max by ({_VIOLATION}) (dra_constraint_violations_total) > [[times]]
unless on ({_VIOLATION})
dra_constraint_violations_total offset 15m""",
                thresholds={"times": 10},
                hold="5m",
                severity="info",
                not_in_demo="one device goes against its taint now and then, not ten times in a quarter of an hour",
                owner="platform",
                summary="Allocated devices go against what was asked of them.",
                description="{{ humanize $value }} times in 15 minutes a device of class {{ $labels.deviceclass }} came"
                " to go against {{ $labels.constraint }} while it was allocated.",
            ),
            Alert(
                name="DRAPoolIncomplete",
                expr="max by (cluster, driver, pool) (dra_pool_complete) == 0",
                hold="15m",
                severity="warning",
                owner="platform",
                summary="The scheduler passes a pool over whose slices are not all published.",
                description="Pool {{ $labels.pool }} of driver {{ $labels.driver }} is incomplete.",
            ),
            Alert(
                name="DRADevicesAdvertisedTwice",
                expr="max by (cluster, node, resource) (dra_node_devices_advertised_twice) > 0",
                hold="10m",
                severity="warning",
                owner="platform",
                summary="A node offers the same GPUs through a device plugin and through DRA.",
                description="Node {{ $labels.node }} offers {{ $value }} devices both as {{ $labels.resource }} and by"
                " claim: they can be handed out twice.",
            ),
        ),
    ),
    Group(
        name="dra-allocation",
        rules=(
            _burn("1h", "5m", 14.4, "2m"),
            _burn("6h", "30m", 6, "15m"),
            _burn("1d", "2h", 3, "1h"),
            _burn("3d", "6h", 1, "3h"),
        ),
    ),
)
