"""How much power does a GPU draw, how much energy has it used, and what limits it?

Energy is the driver's own counter: on A100 and H100 the power sensor sees only a quarter of the run time
(arXiv 2312.02741), so that power readings added up would be wrong.
"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Split, Stat, Tier, Unit, Via, View

_MILLI = 1e-3
_MODULE = 1  # scopeId NVML_POWER_SCOPE_MODULE: GPU, CPU and memory of a superchip

_GPU_TYPE = {"hw.type": "gpu"}


def _field(name: str, scope: int | None = None) -> Read:
    return Read(via=Via.FIELD, name=name, scale=_MILLI, scope=scope)


def _call(name: str, member: str = "value") -> Read:
    return Read(via=Via.CALL, name=name, member=member, scale=_MILLI)


def _power(
    key: str, stem: str, help_text: str, tier: Tier, reads: tuple[Read, ...], otel: str, dcgm: str | None = None
) -> Quantity:
    views: tuple[View, ...] = (
        View(
            stem=stem,
            help=help_text,
            stat=Stat.LAST,
            unit=Unit.WATTS,
            otel=otel,
            otel_attributes=_GPU_TYPE if otel.startswith("hw.") else {},
            dcgm=dcgm,
        ),
    )
    if stem == "power":
        views += tuple(
            View(
                stem=stem,
                help=f"{word} power draw in the last full minute, cut by the clock.",
                stat=stat,
                unit=Unit.WATTS,
                otel=f"dra.device.power.{stat.value}",
            )
            for stat, word in ((Stat.MIN, "Lowest"), (Stat.MAX, "Highest"))
        )
    return Quantity(key=key, reads=reads, kind=Kind.GAUGE, tier=tier, scope=Scope.GPU, views=views)


def _energy(key: str, stem: str, help_text: str, reads: tuple[Read, ...], split: Split, dcgm: str | None) -> Quantity:
    return Quantity(
        key=key,
        reads=reads,
        kind=Kind.COUNTER,
        tier=Tier.TICK,
        scope=Scope.GPU,
        views=(
            View(
                stem=stem,
                help=help_text,
                stat=Stat.TOTAL,
                unit=Unit.JOULES,
                split=split,
                otel="hw.energy" if stem == "energy" else "dra.device.module.energy",
                otel_attributes=_GPU_TYPE if stem == "energy" else {},
                dcgm=dcgm,
                dcgm_scale=1000.0,
            ),
        ),
    )


def _limit(kind: str, reads: tuple[Read, ...], dcgm: str | None) -> Quantity:
    return Quantity(
        key=f"power_limit_{kind}",
        reads=reads,
        kind=Kind.GAUGE,
        tier=Tier.RARE,
        scope=Scope.GPU,
        views=(
            View(
                stem="power_limit",
                help="Power limit: lowest and highest that can be set, default, requested, and the one in force.",
                stat=Stat.LAST,
                unit=Unit.WATTS,
                labels={"kind": kind},
                otel="dra.device.power.limit",  # hw.power has no limit of its own in the conventions
                otel_attributes={"dra.limit_kind": kind},
                dcgm=dcgm,
            ),
        ),
    )


QUANTITIES: tuple[Quantity, ...] = (
    _power(
        "power_instant",
        "power",
        "Power draw at the last sample.",
        Tier.TICK,
        (_field("POWER_INSTANT"), _call("PowerUsage")),
        "hw.power",
        "DCGM_FI_DEV_POWER_USAGE_INSTANT",
    ),
    _power(
        "power_average",
        "power_average",
        "Power draw averaged by the driver over a second, where it does that.",
        Tier.SECOND,
        (_field("POWER_AVERAGE"), _call("PowerUsage")),
        "dra.device.power.average",
        "DCGM_FI_DEV_POWER_USAGE",
    ),
    _power(
        "module_power",
        "module_power",
        "Power draw of the whole module of a superchip.",
        Tier.SECOND,
        (_field("POWER_INSTANT", _MODULE),),
        "dra.device.module.power",
    ),
    _energy(
        "energy",
        "energy",
        "Energy used, as the driver counts it.",
        (_field("TOTAL_ENERGY_CONSUMPTION"), _call("TotalEnergyConsumption")),
        Split.SHARE,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
    ),
    _energy(
        "module_energy",
        "module_energy",
        "Energy used by the whole module of a superchip, as the driver counts it.",
        (_field("ENERGY", _MODULE),),
        Split.NO,
        None,
    ),
    _limit(
        "min",
        (_field("POWER_MIN_LIMIT"), _call("PowerManagementLimitConstraints", "min")),
        "DCGM_FI_DEV_POWER_MGMT_LIMIT_MIN",
    ),
    _limit(
        "max",
        (_field("POWER_MAX_LIMIT"), _call("PowerManagementLimitConstraints", "max")),
        "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX",
    ),
    _limit(
        "default",
        (_field("POWER_DEFAULT_LIMIT"), _call("PowerManagementDefaultLimit")),
        "DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF",
    ),
    _limit(
        "enforced",
        (_field("POWER_CURRENT_LIMIT"), _call("EnforcedPowerLimit")),
        "DCGM_FI_DEV_ENFORCED_POWER_LIMIT",
    ),
    _limit(
        "requested",
        (_field("POWER_REQUESTED_LIMIT"), _call("PowerManagementLimit")),
        "DCGM_FI_DEV_POWER_MGMT_LIMIT",
    ),
)
