"""How busy are the engines of a GPU?

`engine="gpu"` is NVML's plain utilization: the part of time in which any kernel ran. A MIG device has it only where GPM
exists (Hopper and newer), as the part of time in which its graphics and compute engine was active; on A100 MIG nothing
measures it and the series are absent. Busy seconds are the time integral of the ratio.
"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Split, Stat, Tier, Unit, Via, View

_RATIO_HELP = "Part of time in which the engine was busy, over the last sample period of the driver."
_BUSY_HELP = "Seconds in which the engine was busy, as the time integral of its utilization."
_PERCENT = 0.01

# OpenTelemetry knows these values of hw.gpu.task; the other engines have a metric of our own.
_TASKS = {"gpu": "general", "encoder": "encoder", "decoder": "decoder"}


def _quantity(engine: str, tier: Tier, reads: tuple[Read, ...], dcgm: str | None, dcgm_scale: float) -> Quantity:
    labels = {"engine": engine}
    task = _TASKS.get(engine)
    views: tuple[View, ...] = (
        View(
            stem="utilization",
            help=_RATIO_HELP,
            stat=Stat.LAST,
            unit=Unit.RATIO,
            labels=labels,
            otel="hw.gpu.utilization" if task is not None else "dra.device.utilization",
            otel_attributes={"hw.gpu.task": task} if task is not None else {"dra.device.engine": engine},
            dcgm=dcgm,
            dcgm_scale=dcgm_scale,
        ),
        View(
            stem="busy",
            help=_BUSY_HELP,
            stat=Stat.TOTAL,
            unit=Unit.SECONDS,
            labels=labels,
            split=Split.SHARE,
            otel="dra.device.busy.time",
            otel_attributes={"dra.device.engine": engine},
        ),
    )
    if engine == "gpu":
        views += tuple(
            View(
                stem="utilization",
                help=f"{word} utilization in the last full minute, cut by the clock.",
                stat=stat,
                unit=Unit.RATIO,
                labels=labels,
                otel=f"dra.device.utilization.{stat.value}",
                otel_attributes={"dra.device.engine": engine},
            )
            for stat, word in ((Stat.MIN, "Lowest"), (Stat.MAX, "Highest"))
        )
    return Quantity(key=f"utilization_{engine}", reads=reads, kind=Kind.GAUGE, tier=tier, scope=Scope.LEAF, views=views)


def _call(name: str, member: str = "value") -> Read:
    return Read(via=Via.CALL, name=name, member=member, scale=_PERCENT)


def _gpm(name: str) -> Read:
    return Read(via=Via.GPM, name=name, scale=_PERCENT)


_RATES = "UtilizationRates"

QUANTITIES: tuple[Quantity, ...] = (
    _quantity("gpu", Tier.TICK, (_call(_RATES, "gpu"), _gpm("GRAPHICS_UTIL")), "DCGM_FI_DEV_GPU_UTIL", 100.0),
    _quantity("memory", Tier.TICK, (_call(_RATES, "memory"),), "DCGM_FI_DEV_MEM_COPY_UTIL", 100.0),
    _quantity("encoder", Tier.SECOND, (_call("EncoderUtilization"),), "DCGM_FI_DEV_ENC_UTIL", 100.0),
    _quantity("decoder", Tier.SECOND, (_call("DecoderUtilization"),), "DCGM_FI_DEV_DEC_UTIL", 100.0),
    _quantity("jpeg", Tier.SECOND, (_call("JpgUtilization"),), None, 1.0),
    _quantity("ofa", Tier.SECOND, (_call("OfaUtilization"),), None, 1.0),
    # GPU performance monitoring.
    _quantity("graphics", Tier.GPM, (_gpm("GRAPHICS_UTIL"),), "DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1.0),
    _quantity("sm", Tier.GPM, (_gpm("SM_UTIL"),), "DCGM_FI_PROF_SM_ACTIVE", 1.0),
    _quantity("tensor", Tier.GPM, (_gpm("ANY_TENSOR_UTIL"),), "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 1.0),
    _quantity("dram", Tier.GPM, (_gpm("DRAM_BW_UTIL"),), "DCGM_FI_PROF_DRAM_ACTIVE", 1.0),
    _quantity("fp64", Tier.GPM, (_gpm("FP64_UTIL"),), "DCGM_FI_PROF_PIPE_FP64_ACTIVE", 1.0),
    _quantity("fp32", Tier.GPM, (_gpm("FP32_UTIL"),), "DCGM_FI_PROF_PIPE_FP32_ACTIVE", 1.0),
    _quantity("fp16", Tier.GPM, (_gpm("FP16_UTIL"),), "DCGM_FI_PROF_PIPE_FP16_ACTIVE", 1.0),
    # Resident warps against the most that fit: no engine and no busy time, hence a family of its own.
    Quantity(
        key="sm_occupancy",
        reads=(_gpm("SM_OCCUPANCY"),),
        kind=Kind.GAUGE,
        tier=Tier.GPM,
        scope=Scope.LEAF,
        views=(
            View(
                stem="sm_occupancy",
                help="Resident warps as a part of the most that the streaming multiprocessors can hold.",
                stat=Stat.LAST,
                unit=Unit.RATIO,
                otel="dra.device.sm.occupancy",
                dcgm="DCGM_FI_PROF_SM_OCCUPANCY",
            ),
        ),
    ),
)
