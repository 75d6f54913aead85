"""Which series of dcgm-exporter's own families, DCGM_EXP_*, does a Snapshot amount to?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from claimscope.export.dcgm.recent import WINDOW_MILLISECONDS
from claimscope.metrics.health import FINDING, HEALTH

if TYPE_CHECKING:
    from claimscope.export.dcgm.subjects import Labels, Subject
    from claimscope.model import Snapshot

_WINDOW: Final = ("window_size_in_ms", str(WINDOW_MILLISECONDS))

# dcgm_structs.h, dcgmHealthWatchResults_t.
_PASS, _WARN, _FAIL = 0.0, 10.0, 20.0
_RESULTS: Final[Mapping[str, float]] = MappingProxyType({"degraded": _WARN, "unhealthy": _FAIL, "lost": _FAIL})
_PASSED: Final = "DCGM_FR_OK"

# Rule of health.md -> DCGM's health watch and the code of dcgm_errors.h that says the same. A rule without one is not
# shown, and a watch that no rule stands for (PMU, MCU, SM, INFOROM, DRIVER) has no series: nobody looked there.
CHECKS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType({
    "pcie_replays": ("PCIE", "DCGM_FR_PCI_REPLAY_RATE"),
    "pcie_generation": ("PCIE", "DCGM_FR_PCIE_GENERATION"),
    "pcie_width": ("PCIE", "DCGM_FR_PCIE_WIDTH"),
    "nvlink_down": ("NVLINK", "DCGM_FR_NVLINK_DOWN"),
    "nvlink_errors": ("NVLINK", "DCGM_FR_NVLINK_ERROR_THRESHOLD"),
    "nvlink5_errors": ("NVLINK", "DCGM_FR_NVLINK_ERROR_THRESHOLD"),
    "nvlink_crc": ("NVLINK", "DCGM_FR_NVLINK_CRC_ERROR_THRESHOLD"),
    "nvlink_recovery_failed": ("NVLINK", "DCGM_FR_NVLINK_ERROR_CRITICAL"),
    "ecc_uncorrected_dram": ("MEM", "DCGM_FR_VOLATILE_DBE_DETECTED"),
    "ecc_uncorrected_sram": ("MEM", "DCGM_FR_VOLATILE_DBE_DETECTED"),
    "ecc_corrected_storm": ("MEM", "DCGM_FR_VOLATILE_SBE_DETECTED"),
    "row_remap_pending": ("MEM", "DCGM_FR_PENDING_ROW_REMAP"),
    "row_remap_failure": ("MEM", "DCGM_FR_ROW_REMAP_FAILURE"),
    "remapped_rows_many": ("MEM", "DCGM_FR_UNCORRECTABLE_ROW_REMAP"),
    "retired_pages_pending": ("MEM", "DCGM_FR_PENDING_PAGE_RETIREMENTS"),
    "retired_pages_many": ("MEM", "DCGM_FR_RETIRED_PAGES_LIMIT"),
    "thermal_slowdown": ("THERMAL", "DCGM_FR_CLOCK_THROTTLE_THERMAL"),
    "thermal_slowdown_lasting": ("THERMAL", "DCGM_FR_CLOCK_THROTTLE_THERMAL"),
    "power_brake": ("POWER", "DCGM_FR_CLOCK_THROTTLE_POWER"),
})  # fmt: skip
_WATCHES: Final = tuple(dict.fromkeys(watch for watch, _ in CHECKS.values()))


def xids_in_window(subject: Subject, snapshot: Snapshot) -> Iterator[tuple[Labels, float]]:
    """DCGM_EXP_XID_ERRORS_COUNT."""
    found: Counter[int] = Counter()
    for entity in subject.entities:
        if entity in snapshot.recent:
            found.update(snapshot.recent[entity].xids)
    yield from _in_window("xid", {str(xid): times for xid, times in sorted(found.items())})


def xids_in_all(subject: Subject, snapshot: Snapshot) -> Iterator[tuple[Labels, float]]:
    """DCGM_EXP_XID_ERRORS_TOTAL."""
    found: Counter[int] = Counter()
    for count in snapshot.xids:
        if count.count and count.entity in subject.entities:
            found[count.xid] += count.count
    for xid, times in sorted(found.items()):
        yield (("xid", str(xid)),), float(times)


def clock_events_in_window(subject: Subject, snapshot: Snapshot) -> Iterator[tuple[Labels, float]]:
    """DCGM_EXP_CLOCK_EVENTS_COUNT."""
    recent = snapshot.recent.get(subject.gpu.entity.uuid)
    if recent is not None:
        yield from _in_window("clock_event", recent.clock_events)


def clock_events_in_all(subject: Subject, snapshot: Snapshot) -> Iterator[tuple[Labels, float]]:
    """DCGM_EXP_CLOCK_EVENTS_TOTAL."""
    recent = snapshot.recent.get(subject.gpu.entity.uuid)
    for word, times in recent.clock_events_begun.items() if recent is not None else ():
        yield (("clock_event", word),), float(times)


def _in_window(label: str, found: Mapping[str, int]) -> Iterator[tuple[Labels, float]]:
    """As there, 0 without the label where there was nothing."""
    if not found:
        yield (_WINDOW,), 0.0
    for word, times in found.items():
        yield ((label, word), _WINDOW), float(times)


def health(subject: Subject, snapshot: Snapshot) -> Iterator[tuple[Labels, float]]:
    """DCGM_EXP_GPU_HEALTH_STATUS: of each watch the worst; nothing where devices are not judged."""
    uuid = subject.gpu.entity.uuid
    if subject.instance or not any(_of(sample.labels, uuid) for sample in snapshot.health if sample.family == HEALTH):
        return
    standing = dict.fromkeys(_WATCHES, (_PASS, _PASSED))
    for sample in snapshot.health:
        if sample.family != FINDING or not _of(sample.labels, uuid):
            continue
        labels = dict(sample.labels)
        watch, code = CHECKS.get(labels["rule"], ("", ""))
        result = _RESULTS.get(labels["severity"], _PASS)
        if watch and result > standing[watch][0]:
            standing[watch] = result, code
    for watch, (result, code) in standing.items():
        yield (("health_error_code", code), ("health_watch", watch)), result


def _of(labels: Iterable[tuple[str, str]], uuid: str) -> bool:
    return ("uuid", uuid) in labels
