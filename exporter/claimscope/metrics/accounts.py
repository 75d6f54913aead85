"""What is counted by us and not read from NVML: XIDs as they come in, and the time for which devices were held.

These rows have no reads; they are here so that names, help texts and documentation know the families.
"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Scope, Split, Stat, Tier, Unit, View

QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        key="xid_errors",
        reads=(),
        kind=Kind.COUNTER,
        tier=Tier.EVENT,
        scope=Scope.PART,
        axis="xid",
        views=(
            View(
                stem="xid_errors",
                help="XID errors that the driver has reported since the agent first saw the device; 999 is unknown.",
                stat=Stat.TOTAL,
                unit=Unit.ONE,
                split=Split.OBSERVED,
                otel="hw.errors",
                otel_attributes={"hw.type": "gpu"},
            ),
            View(
                stem="xid_last_timestamp",
                help="Unix time at which the XID was reported last.",
                stat=Stat.LAST,
                unit=Unit.SECONDS,
                otel="dra.device.xid.last_timestamp",
            ),
        ),
    ),
    Quantity(
        key="allocated_seconds",
        reads=(),
        kind=Kind.COUNTER,
        tier=Tier.EVENT,
        scope=Scope.LEAF,
        device_family=False,
        views=(
            View(
                stem="allocated",
                help="Seconds for which the device was held, times the share of it that was.",
                stat=Stat.TOTAL,
                unit=Unit.SECONDS,
                split=Split.SHARE,
                otel="dra.claim.device.allocated.time",
            ),
        ),
    ),
)
