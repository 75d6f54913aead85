"""How hot is a GPU, how far is it from its limits, and how fast do its fans turn?

Ada and newer state limits as margins (T.Limit): degrees left until the limit, and the margin at which it acts.
"""

from __future__ import annotations

from collections.abc import Mapping

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Stat, Tier, Unit, Via, View

_GPU_TYPE = {"hw.type": "gpu"}
_HARDWARE_LIMIT = "hw.temperature.limit"


def _temperature(sensor: str, tier: Tier, reads: tuple[Read, ...], dcgm: str) -> Quantity:
    return Quantity(
        key=f"temperature_{sensor}",
        reads=reads,
        kind=Kind.GAUGE,
        tier=tier,
        scope=Scope.GPU,
        views=(
            View(
                stem="temperature",
                help="Temperature now.",
                stat=Stat.LAST,
                unit=Unit.CELSIUS,
                labels={"sensor": sensor},
                otel="hw.temperature",
                otel_attributes={"hw.sensor_location": sensor, **_GPU_TYPE},
                dcgm=dcgm,
            ),
        ),
    )


def _at(sensor: str, limit: str) -> dict[str, str]:
    """Attributes of a limit in OpenTelemetry's words."""
    return {"hw.limit_type": limit, "hw.sensor_location": sensor, **_GPU_TYPE}


def _limit(kind: str, dcgm: str, otel: str, attributes: Mapping[str, str]) -> Quantity:
    return Quantity(
        key=f"temperature_limit_{kind}",
        reads=(Read(via=Via.CALL, name=f"TemperatureThreshold/{kind}"),),
        kind=Kind.GAUGE,
        tier=Tier.RARE,
        scope=Scope.GPU,
        views=(
            View(
                stem="temperature_limit",
                help="Temperature at which the device shuts down or slows down, or the highest it may run at.",
                stat=Stat.LAST,
                unit=Unit.CELSIUS,
                labels={"kind": kind},
                otel=otel,
                otel_attributes=attributes,
                dcgm=dcgm,
            ),
        ),
    )


def _margin_limit(kind: str, field: str) -> Quantity:
    return Quantity(
        key=f"temperature_margin_limit_{kind}",
        reads=(Read(via=Via.FIELD, name=field),),
        kind=Kind.GAUGE,
        tier=Tier.RARE,
        scope=Scope.GPU,
        views=(
            View(
                stem="temperature_margin_limit",
                help="Margin at which the device shuts down or slows down; negative beyond its highest temperature.",
                stat=Stat.LAST,
                unit=Unit.CELSIUS,
                labels={"kind": kind},
                otel="dra.device.temperature.margin.limit",
                otel_attributes={"dra.limit_kind": kind},
            ),
        ),
    )


def _fan(key: str, help_text: str, call: str, scale: float, unit: Unit, otel: str, dcgm: str | None) -> Quantity:
    return Quantity(
        key=key,
        reads=(Read(via=Via.CALL, name=call, scale=scale),),
        kind=Kind.GAUGE,
        tier=Tier.SLOW,
        scope=Scope.GPU,
        axis="fan",
        views=(
            View(
                stem=key,
                help=help_text,
                stat=Stat.LAST,
                unit=unit,
                otel=otel,
                dcgm=dcgm,
                dcgm_scale=1.0 / scale,
            ),
        ),
    )


QUANTITIES: tuple[Quantity, ...] = (
    _temperature(
        "gpu",
        Tier.SECOND,
        (Read(via=Via.CALL, name="TemperatureV"), Read(via=Via.CALL, name="Temperature")),
        "DCGM_FI_DEV_GPU_TEMP",
    ),
    _temperature("memory", Tier.TICK, (Read(via=Via.FIELD, name="MEMORY_TEMP"),), "DCGM_FI_DEV_MEMORY_TEMP"),
    Quantity(
        key="temperature_margin",
        reads=(Read(via=Via.CALL, name="MarginTemperature"),),
        kind=Kind.GAUGE,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        views=(
            View(
                stem="temperature_margin",
                help="Degrees left until the device slows down.",
                stat=Stat.LAST,
                unit=Unit.CELSIUS,
                otel="dra.device.temperature.margin",
                dcgm="DCGM_FI_DEV_GPU_TEMP_LIMIT",
            ),
        ),
    ),
    _limit("shutdown", "DCGM_FI_DEV_SHUTDOWN_TEMP", _HARDWARE_LIMIT, _at("gpu", "high.critical")),
    _limit("slowdown", "DCGM_FI_DEV_SLOWDOWN_TEMP", _HARDWARE_LIMIT, _at("gpu", "high.degraded")),
    _limit("memory_max", "DCGM_FI_DEV_MEM_MAX_OP_TEMP", _HARDWARE_LIMIT, _at("memory", "high.degraded")),
    # OpenTelemetry has one degraded limit for a place, and the GPU's is where it slows down.
    _limit("gpu_max", "DCGM_FI_DEV_GPU_MAX_OP_TEMP", "dra.device.temperature.limit", {"dra.limit_kind": "gpu_max"}),
    _margin_limit("shutdown", "TEMPERATURE_SHUTDOWN_TLIMIT"),
    _margin_limit("slowdown", "TEMPERATURE_SLOWDOWN_TLIMIT"),
    _margin_limit("memory_max", "TEMPERATURE_MEM_MAX_TLIMIT"),
    _margin_limit("gpu_max", "TEMPERATURE_GPU_MAX_TLIMIT"),
    _fan(
        "fan_speed",
        "Intended fan speed as a part of the highest.",
        "FanSpeed_v2",
        0.01,
        Unit.RATIO,
        "hw.fan.speed_ratio",
        "DCGM_FI_DEV_FAN_SPEED",
    ),
    _fan("fan_speed_rpm", "Fan speed in revolutions per minute.", "FanSpeedRPM", 1.0, Unit.ONE, "hw.fan.speed", None),
)
