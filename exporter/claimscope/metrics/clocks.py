"""How fast do the clocks run, and what holds them back, for how long?

Throttle seconds are counters of the driver and need no fast polling. The driver has the three slowdown counters from
R575 on; before, thermal slowdown by software is told by the thermal policy counter and the two others are absent.
"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Split, Stat, Tier, Unit, Via, View

_MEGA = 1e6
_NANO = 1e-9


def _clock(domain: str, tier: Tier, dcgm: str | None) -> Quantity:
    return Quantity(
        key=f"clock_{domain}",
        reads=(Read(via=Via.CALL, name=f"ClockInfo/{domain}", scale=_MEGA),),
        kind=Kind.GAUGE,
        tier=tier,
        scope=Scope.GPU,
        views=(
            View(
                stem="clock",
                help="Clock frequency now.",
                stat=Stat.LAST,
                unit=Unit.HERTZ,
                labels={"domain": domain},
                otel="dra.device.clock",
                otel_attributes={"dra.device.clock.domain": domain},
                dcgm=dcgm,
                dcgm_scale=1e-6,
            ),
        ),
    )


def _clock_max(domain: str, dcgm: str | None) -> Quantity:
    return Quantity(
        key=f"clock_max_{domain}",
        reads=(Read(via=Via.CALL, name=f"MaxClockInfo/{domain}", scale=_MEGA),),
        kind=Kind.GAUGE,
        tier=Tier.RARE,
        scope=Scope.GPU,
        views=(
            View(
                stem="clock_max",
                help="Highest clock frequency that the device supports.",
                stat=Stat.LAST,
                unit=Unit.HERTZ,
                labels={"domain": domain},
                otel="dra.device.clock.max",
                otel_attributes={"dra.device.clock.domain": domain},
                dcgm=dcgm,
                dcgm_scale=1e-6,
            ),
        ),
    )


def _event(reason: str, bit: int) -> Quantity:
    labels = {"reason": reason}
    attributes = {"dra.device.clock.reason": reason}
    return Quantity(
        key=f"clock_event_{reason}",
        reads=tuple(
            Read(via=Via.CALL, name=name, bit=bit)
            for name in ("CurrentClocksEventReasons", "CurrentClocksThrottleReasons")
        ),
        kind=Kind.GAUGE,
        tier=Tier.TICK,
        scope=Scope.GPU,
        views=(
            View(
                stem="clock_event_active",
                help="1 while the driver names this reason for the clocks not being higher.",
                stat=Stat.LAST,
                unit=Unit.ONE,
                labels=labels,
                otel="dra.device.clock.event.active",
                otel_attributes=attributes,
            ),
            View(
                stem="clock_event",
                help="Seconds in which samples showed this reason for the clocks not being higher.",
                stat=Stat.TOTAL,
                unit=Unit.SECONDS,
                labels=labels,
                otel="dra.device.clock.event.time",
                otel_attributes=attributes,
            ),
        ),
    )


def _throttle(reason: str, fields: tuple[str, ...], dcgm: str) -> Quantity:
    return Quantity(
        key=f"throttle_{reason}",
        reads=tuple(Read(via=Via.FIELD, name=name, scale=_NANO) for name in fields),
        kind=Kind.COUNTER,
        tier=Tier.TICK,
        scope=Scope.GPU,
        views=(
            View(
                stem="throttle",
                help="Seconds in which the clocks were held back for this reason, as the driver counts them;"
                " reasons can hold at the same time.",
                stat=Stat.TOTAL,
                unit=Unit.SECONDS,
                labels={"reason": reason},
                split=Split.SHARE,
                otel="dra.device.throttle.time",
                otel_attributes={"dra.device.clock.reason": reason},
                dcgm=dcgm,
                dcgm_scale=1e9,
            ),
        ),
    )


def _policy(policy: str, name: str, dcgm: str) -> Quantity:
    return Quantity(
        key=f"clock_policy_{policy}",
        reads=(Read(via=Via.FIELD, name=name, scale=_NANO),),
        kind=Kind.COUNTER,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        views=(
            View(
                stem="clock_policy",
                help="Seconds in which the clocks were below what could be, without being a throttle:"
                " for want of work, below the application clocks, below the base clocks.",
                stat=Stat.TOTAL,
                unit=Unit.SECONDS,
                labels={"policy": policy},
                otel="dra.device.clock.policy.time",
                otel_attributes={"dra.device.clock.policy": policy},
                dcgm=dcgm,
                dcgm_scale=1e9,
            ),
        ),
    )


# nvml.h, nvmlClocksEventReason*
EVENT_BITS: dict[str, int] = {
    "gpu_idle": 0x1,
    "application_clocks": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
    "display_clock": 0x100,
    "board_limit": 0x200,
    "reliability": 0x400,
}

QUANTITIES: tuple[Quantity, ...] = (
    _clock("sm", Tier.TICK, "DCGM_FI_DEV_SM_CLOCK"),
    _clock("memory", Tier.TICK, "DCGM_FI_DEV_MEM_CLOCK"),
    _clock("graphics", Tier.SECOND, None),
    _clock("video", Tier.SECOND, "DCGM_FI_DEV_VIDEO_CLOCK"),
    _clock_max("sm", "DCGM_FI_DEV_MAX_SM_CLOCK"),
    _clock_max("memory", "DCGM_FI_DEV_MAX_MEM_CLOCK"),
    _clock_max("graphics", None),
    _clock_max("video", "DCGM_FI_DEV_MAX_VIDEO_CLOCK"),
    *(_event(reason, bit) for reason, bit in EVENT_BITS.items()),
    _throttle("sw_power_cap", ("PERF_POLICY_POWER",), "DCGM_FI_DEV_POWER_VIOLATION"),
    _throttle("sync_boost", ("PERF_POLICY_SYNC_BOOST",), "DCGM_FI_DEV_SYNC_BOOST_VIOLATION"),
    _throttle(
        "sw_thermal",
        ("CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN", "PERF_POLICY_THERMAL"),
        "DCGM_FI_DEV_THERMAL_VIOLATION",
    ),
    _throttle(
        "hw_thermal",
        ("CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",),
        "DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS",
    ),
    _throttle(
        "hw_power_brake",
        ("CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",),
        "DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS",
    ),
    _throttle("board_limit", ("PERF_POLICY_BOARD_LIMIT",), "DCGM_FI_DEV_BOARD_LIMIT_VIOLATION"),
    _throttle("reliability", ("PERF_POLICY_RELIABILITY",), "DCGM_FI_DEV_RELIABILITY_VIOLATION"),
    _policy("low_utilization", "PERF_POLICY_LOW_UTILIZATION", "DCGM_FI_DEV_LOW_UTIL_VIOLATION"),
    _policy("application_clocks", "PERF_POLICY_TOTAL_APP_CLOCKS", "DCGM_FI_DEV_TOTAL_APP_CLOCKS_VIOLATION"),
    _policy("base_clocks", "PERF_POLICY_TOTAL_BASE_CLOCKS", "DCGM_FI_DEV_TOTAL_BASE_CLOCKS_VIOLATION"),
)
