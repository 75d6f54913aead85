"""What has gone wrong in a GPU's memories, and what has been done about it?

Volatile counters begin at each driver load, aggregate ones live as long as the board. Totals are read once a second;
counts by location cost a call each and are read every ten.
"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Stat, Tier, Unit, Via, View

# Location label -> (suffix of the field id's name, suffix of DCGM's name); None: there is none.
_LOCATIONS: dict[str, tuple[str | None, str]] = {
    "l1_cache": ("L1", "L1"),
    "l2_cache": ("L2", "L2"),
    "dram": ("DEV", "DEV"),
    "register_file": ("REG", "REG"),
    "texture_memory": ("TEX", "TEX"),
    "texture_shared": (None, "SHM"),
    "cbu": ("CBU", "CBU"),
    "sram": (None, "SRM"),
}
_TYPES = {"corrected": "SBE", "uncorrected": "DBE"}
_COUNTERS = {"volatile": "VOL", "aggregate": "AGG"}

_TOTAL_STEMS = {"volatile": "ecc_device_errors", "aggregate": "ecc_device_aggregate_errors"}
_TOTAL_HELPS = {
    "volatile": "ECC errors in all memories of the device since the driver was loaded.",
    "aggregate": "ECC errors in all memories of the device since it was made.",
}
_LOCATION_STEMS = {"volatile": "ecc_errors", "aggregate": "ecc_aggregate_errors"}
_LOCATION_HELPS = {
    "volatile": "ECC errors by the memory they were in since the driver was loaded.",
    "aggregate": "ECC errors by the memory they were in since the device was made.",
}


def _view(
    stem: str, help_text: str, labels: dict[str, str], otel: str, attributes: dict[str, str], dcgm: str | None
) -> View:
    return View(
        stem=stem,
        help=help_text,
        stat=Stat.TOTAL,
        unit=Unit.ONE,
        labels=labels,
        otel=otel,
        otel_attributes=attributes,
        dcgm=dcgm,
    )


def _total(counter: str, error: str) -> Quantity:
    name = f"ECC_{_TYPES[error]}_{_COUNTERS[counter]}_TOTAL"
    standard = counter == "volatile"
    return Quantity(
        key=f"ecc_{counter}_{error}",
        reads=(
            Read(via=Via.FIELD, name=name),
            Read(via=Via.CALL, name=f"TotalEccErrors/{error}/{counter}"),
        ),
        kind=Kind.COUNTER,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        views=(
            _view(
                _TOTAL_STEMS[counter],
                _TOTAL_HELPS[counter],
                {"type": error},
                "hw.errors" if standard else "dra.device.ecc.aggregate.errors",
                {"error.type": error, "hw.type": "gpu"} if standard else {"error.type": error},
                f"DCGM_FI_DEV_{name}",
            ),
        ),
    )


def _location(counter: str, error: str, location: str) -> Quantity:
    field, dcgm = _LOCATIONS[location]
    kind = f"{_TYPES[error]}_{_COUNTERS[counter]}"
    reads = [Read(via=Via.CALL, name=f"MemoryErrorCounter/{error}/{counter}/{location}")]
    # There is no field for corrected CBU errors.
    if field is not None and not (location == "cbu" and error == "corrected"):
        reads.insert(0, Read(via=Via.FIELD, name=f"ECC_{kind}_{field}"))
    return Quantity(
        key=f"ecc_{counter}_{error}_{location}",
        reads=tuple(reads),
        kind=Kind.COUNTER,
        tier=Tier.SLOW,
        # A MIG device has its own uncorrected volatile counts of everything but DRAM.
        scope=Scope.PART if counter == "volatile" and error == "uncorrected" and location != "dram" else Scope.GPU,
        views=(
            _view(
                _LOCATION_STEMS[counter],
                _LOCATION_HELPS[counter],
                {"type": error, "location": location},
                f"dra.device.ecc.{counter}.location.errors",
                {"error.type": error, "dra.device.memory.location": location},
                f"DCGM_FI_DEV_ECC_{kind}_{dcgm}",
            ),
        ),
    )


def _sram(counter: str, error: str) -> Quantity:
    stem = "sram_ecc_errors" if counter == "volatile" else "sram_ecc_aggregate_errors"
    since = "the driver was loaded" if counter == "volatile" else "the device was made"
    return Quantity(
        key=f"sram_ecc_{counter}_{error}",
        reads=(Read(via=Via.CALL, name="SramEccErrorStatus", member=f"{counter}_{error}"),),
        kind=Kind.COUNTER,
        tier=Tier.SLOW,
        scope=Scope.GPU,
        views=(
            _view(
                stem,
                f"SRAM errors since {since}, by the code that found them: corrected, or uncorrected by parity"
                " or SEC-DED.",
                {"type": error},
                f"dra.device.sram.{counter}.errors",
                {"error.type": error},
                None,
            ),
        ),
    )


def _sram_unit(unit: str) -> Quantity:
    return Quantity(
        key=f"sram_ecc_unit_{unit}",
        reads=(Read(via=Via.CALL, name="SramEccErrorStatus", member=unit),),
        kind=Kind.COUNTER,
        tier=Tier.SLOW,
        scope=Scope.GPU,
        views=(
            _view(
                "sram_ecc_uncorrected_errors",
                "Uncorrected SRAM errors since the device was made, by the unit they were in.",
                {"unit": unit},
                "dra.device.sram.unit.errors",
                {"dra.device.unit": unit},
                None,
            ),
        ),
    )


def _gauge(
    key: str,
    stem: str,
    help_text: str,
    tier: Tier,
    reads: tuple[Read, ...],
    *,
    labels: dict[str, str] | None = None,
    dcgm: str | None = None,
) -> Quantity:
    return Quantity(
        key=key,
        reads=reads,
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


def _remapped(error: str, field: str, dcgm: str) -> Quantity:
    return Quantity(
        key=f"remapped_rows_{error}",
        reads=(
            Read(via=Via.FIELD, name=field),
            Read(via=Via.CALL, name="RemappedRows", member=error),
        ),
        kind=Kind.COUNTER,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        views=(
            _view(
                "remapped_rows",
                "Memory rows replaced by spare ones since the device was made, by the type of error.",
                {"type": error},
                "dra.device.remapped.rows",
                {"error.type": error},
                dcgm,
            ),
        ),
    )


def _retired(cause: str, field: str, dcgm: str) -> Quantity:
    return Quantity(
        key=f"retired_pages_{cause}",
        reads=(Read(via=Via.FIELD, name=field),),
        kind=Kind.COUNTER,
        tier=Tier.SLOW,
        scope=Scope.GPU,
        views=(
            _view(
                "retired_pages",
                "Memory pages taken out of use since the device was made, by cause.",
                {"cause": cause},
                "dra.device.retired.pages",
                {"dra.cause": cause},
                dcgm,
            ),
        ),
    )


_HISTOGRAM_HELP = "Memory banks by how many of their spare rows are left: max all, none no more."
_REPAIR_HELP = "1 while a repair waits for the next reset of the device."

QUANTITIES: tuple[Quantity, ...] = (
    *(_total(counter, error) for counter in _COUNTERS for error in _TYPES),
    *(_location(counter, error, location) for counter in _COUNTERS for error in _TYPES for location in _LOCATIONS),
    *(_sram(counter, error) for counter in _COUNTERS for error in ("corrected", "parity", "secded")),
    *(_sram_unit(unit) for unit in ("l2", "sm", "pcie", "mcu", "other")),
    _gauge(
        "sram_ecc_threshold_exceeded",
        "sram_ecc_threshold_exceeded",
        "1 when uncorrected SRAM errors have passed the number at which the board should be replaced.",
        Tier.SLOW,
        (Read(via=Via.CALL, name="SramEccErrorStatus", member="threshold_exceeded"),),
        dcgm="DCGM_FI_DEV_THRESHOLD_SRM",
    ),
    _remapped("corrected", "REMAPPED_COR", "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS"),
    _remapped("uncorrected", "REMAPPED_UNC", "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS"),
    _gauge(
        "row_remap_pending",
        "row_remap_pending",
        "1 while a memory row waits for the next reset of the device to be replaced.",
        Tier.SECOND,
        (
            Read(via=Via.FIELD, name="REMAPPED_PENDING"),
            Read(via=Via.CALL, name="RemappedRows", member="pending"),
        ),
        dcgm="DCGM_FI_DEV_ROW_REMAP_PENDING",
    ),
    _gauge(
        "row_remap_failure",
        "row_remap_failure",
        "1 when a memory row could not be replaced.",
        Tier.SECOND,
        (
            Read(via=Via.FIELD, name="REMAPPED_FAILURE"),
            Read(via=Via.CALL, name="RemappedRows", member="failure"),
        ),
        dcgm="DCGM_FI_DEV_ROW_REMAP_FAILURE",
    ),
    *(
        _gauge(
            f"row_remap_banks_{remaining}",
            "row_remap_banks",
            _HISTOGRAM_HELP,
            Tier.SLOW,
            (Read(via=Via.CALL, name="RowRemapperHistogram", member=remaining),),
            labels={"remaining": remaining},
            dcgm=f"DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_{remaining.upper()}",
        )
        for remaining in ("max", "high", "partial", "low", "none")
    ),
    *(
        _gauge(
            f"repair_pending_{unit}",
            "repair_pending",
            _REPAIR_HELP,
            Tier.SLOW,
            (Read(via=Via.CALL, name="RepairStatus", member=unit),),
            labels={"unit": unit},
        )
        for unit in ("channel", "tpc")
    ),
    _retired("single_bit", "RETIRED_SBE", "DCGM_FI_DEV_RETIRED_SBE"),
    _retired("double_bit", "RETIRED_DBE", "DCGM_FI_DEV_RETIRED_DBE"),
    _gauge(
        "retired_pages_pending",
        "retired_pages_pending",
        "1 while a memory page waits for the next reboot to be taken out of use.",
        Tier.SLOW,
        (
            Read(via=Via.FIELD, name="RETIRED_PENDING"),
            Read(via=Via.CALL, name="RetiredPagesPendingStatus"),
        ),
        dcgm="DCGM_FI_DEV_RETIRED_PENDING",
    ),
)
