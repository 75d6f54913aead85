"""In which state does the driver say a GPU is: recovery action, performance state, modes, fabric?"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Stat, Tier, Unit, Via, View

# nvml.h, nvmlDeviceGpuRecoveryAction_t. 5 was a bus reset in headers of early 2025 and has been this since.
RECOVERY_ACTIONS: dict[int, str] = {
    0: "none",
    1: "gpu_reset",
    2: "node_reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}
COMPUTE_MODES: dict[int, str] = {  # nvmlComputeMode_t
    0: "default",
    1: "exclusive_thread",
    2: "prohibited",
    3: "exclusive_process",
}
FABRIC_STATES: dict[int, str] = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
FABRIC_HEALTH: dict[int, str] = {0: "not_supported", 1: "healthy", 2: "unhealthy", 3: "limited_capacity"}

# nvml.h, NVML_GPU_FABRIC_HEALTH_MASK_*: two bits per condition, 1 true, 2 false, 0 not supported; so the lower bit
# alone says true. The configuration has four bits: 1 is none wrong, from 2 on it names what is.
FABRIC_FAULTS: dict[str, int] = {
    "degraded_bandwidth": 1 << 0,
    "route_recovery": 1 << 2,
    "route_unhealthy": 1 << 4,
    "access_timeout_recovery": 1 << 6,
    "incorrect_configuration": 0b1110 << 8,
}


def _text(
    key: str,
    label: str,
    help_text: str,
    tier: Tier,
    reads: tuple[Read, ...],
    values: dict[int, str],
    dcgm: str | None = None,
    scope: Scope = Scope.GPU,
) -> Quantity:
    return Quantity(
        key=key,
        reads=reads,
        kind=Kind.TEXT,
        tier=tier,
        scope=scope,
        text_label=label,
        values=values,
        views=(
            View(
                stem=key,
                help=help_text,
                stat=Stat.LAST,
                unit=Unit.ONE,
                otel=f"dra.device.{key.replace('_', '.')}",
                dcgm=dcgm,
            ),
        ),
    )


def _gauge(
    key: str,
    stem: str,
    help_text: str,
    tier: Tier,
    read: Read,
    labels: dict[str, str] | None = None,
    dcgm: str | None = None,
) -> Quantity:
    return Quantity(
        key=key,
        reads=(read,),
        kind=Kind.GAUGE,
        tier=tier,
        scope=Scope.GPU,
        views=(
            View(
                stem=stem,
                help=help_text,
                stat=Stat.LAST,
                unit=Unit.ONE,
                labels=labels or {},
                otel=f"dra.device.{stem.replace('_', '.')}",
                otel_attributes={f"dra.{name}": value for name, value in (labels or {}).items()},
                dcgm=dcgm,
            ),
        ),
    )


def _fabric(member: str) -> tuple[Read, ...]:
    return (Read(via=Via.CALL, name="GpuFabricInfoV", member=member),)


def _call(name: str, member: str = "value") -> Read:
    return Read(via=Via.CALL, name=name, member=member)


QUANTITIES: tuple[Quantity, ...] = (
    _text(
        "recovery_action",
        "action",
        "What the driver says must be done to bring the device back to health; always 1.",
        Tier.SECOND,
        (Read(via=Via.FIELD, name="GET_GPU_RECOVERY_ACTION"),),
        RECOVERY_ACTIONS,
        "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION",
    ),
    _gauge(
        "performance_state",
        "performance_state",
        "Performance state: 0 is the fastest, 15 the slowest, 32 unknown to the driver.",
        Tier.SECOND,
        _call("PerformanceState"),
        dcgm="DCGM_FI_DEV_PSTATE",
    ),
    _gauge(
        "persistence_mode_enabled",
        "persistence_mode_enabled",
        "1 while the driver stays loaded when nothing uses the device.",
        Tier.RARE,
        _call("PersistenceMode"),
        dcgm="DCGM_FI_DEV_PERSISTENCE_MODE",
    ),
    Quantity(
        key="vgpu_licensed",
        # nvml.h: non-zero if the feature is licensed.
        reads=(Read(via=Via.CALL, name="GridLicensableFeatures_v4", member="value", bit=0xFFFFFFFF),),
        kind=Kind.GAUGE,
        tier=Tier.RARE,
        scope=Scope.GPU,
        views=(
            View(
                stem="vgpu_licensed",
                help="1 while the driver holds a licence for vGPU software; 0 where it has none, or needs none.",
                stat=Stat.LAST,
                unit=Unit.ONE,
                otel="dra.device.vgpu.licensed",
                dcgm="DCGM_FI_DEV_VGPU_LICENSE_STATUS",
            ),
        ),
    ),
    # While MIG is on the GPU does not answer and its MIG devices do.
    _text(
        "compute_mode",
        "mode",
        "How many processes may use the device at once; always 1.",
        Tier.RARE,
        (_call("ComputeMode"),),
        COMPUTE_MODES,
        "DCGM_FI_DEV_COMPUTE_MODE",
        Scope.LEAF,
    ),
    _gauge(
        "ecc_mode_enabled",
        "ecc_mode_enabled",
        "1 while error correction is on.",
        Tier.RARE,
        _call("EccMode", "current"),
        dcgm="DCGM_FI_DEV_ECC_CURRENT",
    ),
    _gauge(
        "ecc_mode_pending_enabled",
        "ecc_mode_pending_enabled",
        "1 when error correction will be on after the next reset.",
        Tier.RARE,
        _call("EccMode", "pending"),
        dcgm="DCGM_FI_DEV_ECC_PENDING",
    ),
    _gauge(
        "mig_mode_enabled",
        "mig_mode_enabled",
        "1 while the device is partitioned by MIG.",
        Tier.RARE,
        _call("MigMode", "current"),
        dcgm="DCGM_FI_DEV_MIG_MODE",
    ),
    _gauge(
        "mig_mode_pending_enabled",
        "mig_mode_pending_enabled",
        "1 when the device will be partitioned by MIG after the next reset.",
        Tier.RARE,
        _call("MigMode", "pending"),
    ),
    _text(
        "fabric_state",
        "state",
        "How far the device has come in joining the NVLink fabric; always 1.",
        Tier.SLOW,
        _fabric("state"),
        FABRIC_STATES,
        "DCGM_FI_DEV_FABRIC_MANAGER_STATUS",
    ),
    _text(
        "fabric_status",
        "status",
        "Result of joining the NVLink fabric, once that is completed: success, or an NVML return code; always 1.",
        Tier.SLOW,
        _fabric("status"),
        {0: "success"},
        "DCGM_FI_DEV_FABRIC_MANAGER_ERROR_CODE",
    ),
    _text(
        "fabric_clique",
        "clique_id",
        "Which clique of the NVLink fabric the device belongs to; always 1.",
        Tier.SLOW,
        _fabric("clique_id"),
        {},
        "DCGM_FI_DEV_FABRIC_CLIQUE_ID",
    ),
    _text(
        "fabric_health",
        "state",
        "Summary of the health of the device's connection to the NVLink fabric; always 1.",
        Tier.SLOW,
        _fabric("health_summary"),
        FABRIC_HEALTH,
    ),
    *(
        _gauge(
            f"fabric_fault_{fault}",
            "fabric_fault_active",
            "1 while the driver reports this fault of the NVLink fabric.",
            Tier.SLOW,
            Read(via=Via.CALL, name="GpuFabricInfoV", member="health_mask", bit=bit),
            labels={"fault": fault},
        )
        for fault, bit in FABRIC_FAULTS.items()
    ),
)
