"""What does an XID mean for the GPU that reported it?

One row per code, each with exactly one verdict. The meanings follow NVIDIA's catalogue
(https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html) in other words; the verdicts are ours. Two
things rule them: the driver's own recovery action is asked first and this table second, and a code that nobody
documents is worth a look, never a fence. An application can cause most of the codes below 48, so those are recorded
and become a finding only if they keep coming from different pods.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from claimscope.health.model import Survives

FALLEN_OFF_BUS: Final = 79
RECOVERY_ACTION_CHANGED: Final = 154


class Verdict(enum.Enum):
    """What follows from one event of a code, before the recovery action is asked."""

    RECORD = "record"  # counted and shown, no finding
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    LOST = "lost"
    DECODE = "decode"  # NVLink 5: the registers in the line decide, see nvlink5.py
    RECOVERY_ACTION = "recovery_action"  # the line itself is the driver's verdict


class FaultKind(enum.Enum):
    """Whose fault it most likely is."""

    APPLICATION = "application"
    APPLICATION_OR_DRIVER = "application or driver"
    DRIVER = "driver"
    DRIVER_OR_HARDWARE = "driver or hardware"
    HARDWARE = "hardware"
    LINK = "link"  # NVLink or C2C: this end, the cable, the switch or the other end
    CONFIDENTIAL_COMPUTING = "confidential computing"
    OPERATOR = "operator"
    FOLLOWER = "follower"  # said because of another event
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """How often a code must come within a day to mean more than it does alone. A burst counts once."""

    bursts: int
    pods: int = 1  # from at least so many different pods: one pod that fails again and again is a pod that fails
    same_unit: bool = False  # on the same GPC and TPC
    verdict: Verdict = Verdict.DEGRADED


@dataclass(frozen=True, slots=True, kw_only=True)
class XidRow:
    """All we hold of one code."""

    code: int
    meaning: str
    fault: FaultKind
    verdict: Verdict
    stands_without_action: bool = False  # a recovery action "none" does not take the verdict down to degraded
    repeats: tuple[Repeat, ...] = ()  # any of them is enough
    survives: Survives = Survives.NOTHING
    applies_to: str = ""  # architectures, where not all
    cleared_by: int | None = None  # another code that takes it back
    known: bool = True  # False: not documented, or of GPUs and drivers long gone


_OFTEN_FROM_TWO_PODS = Repeat(bursts=3, pods=2)
_TWICE_FROM_TWO_PODS = Repeat(bursts=2, pods=2)

_APP = FaultKind.APPLICATION
_APP_DRIVER = FaultKind.APPLICATION_OR_DRIVER
_DRIVER = FaultKind.DRIVER
_DRIVER_HW = FaultKind.DRIVER_OR_HARDWARE
_HW = FaultKind.HARDWARE
_LINK = FaultKind.LINK
_CC = FaultKind.CONFIDENTIAL_COMPUTING


def _record(code: int, meaning: str, fault: FaultKind, *repeats: Repeat) -> XidRow:
    return XidRow(
        code=code, meaning=meaning, fault=fault, verdict=Verdict.RECORD, repeats=repeats
    )


def _degraded(
    code: int, meaning: str, fault: FaultKind, *, only: str = "", cleared_by: int | None = None
) -> XidRow:
    return XidRow(
        code=code, meaning=meaning, fault=fault, verdict=Verdict.DEGRADED,
        applies_to=only, cleared_by=cleared_by,
    )


def _unhealthy(
    code: int,
    meaning: str,
    fault: FaultKind,
    *,
    stands: bool = False,
    only: str = "",
    survives: Survives = Survives.TIME,
) -> XidRow:
    return XidRow(
        code=code, meaning=meaning, fault=fault, verdict=Verdict.UNHEALTHY,
        stands_without_action=stands, applies_to=only, survives=survives,
    )


def _each(codes: Iterable[int], meaning: str, fault: FaultKind) -> tuple[XidRow, ...]:
    return tuple(_record(code, meaning, fault) for code in codes)


def _nvlink5(code: int, part: str) -> XidRow:
    return XidRow(
        code=code, meaning=f"NVLink 5 error in {part}", fault=_LINK, verdict=Verdict.DECODE,
        applies_to="B100, B200, GB200 and later",
    )


def _undocumented(code: int, meaning: str) -> XidRow:
    return XidRow(code=code, meaning=meaning, fault=FaultKind.UNKNOWN, verdict=Verdict.DEGRADED, known=False)


# Listed by NVIDIA as "Unused". (14, 108, 152 and 153 are as well or say little, but with "ignore" as the answer.)
_UNUSED: Final = (
    *range(1, 8), 9, 10, 12, *range(15, 25), *range(26, 31), *range(33, 37), 42, 47, *range(49, 54), *range(55, 60),
    61, 65, 73, 81, 87, 90, 91, *range(111, 119), *range(122, 126), 138,
)

_ROWS: Final[tuple[XidRow, ...]] = (
    _record(8, "a channel stood still for too long", _APP_DRIVER, _OFTEN_FROM_TWO_PODS),
    _record(11, "the command stream of the application is broken", _APP),
    _record(
        13, "an SM raised an exception, most often an access out of bounds or an illegal instruction", _APP,
        Repeat(bursts=2, same_unit=True), _OFTEN_FROM_TWO_PODS,
    ),
    _record(14, "a test code", _DRIVER),
    _record(25, "the command stream of the application is not valid", _APP),
    _record(31, "the application touched memory that is not mapped for it", _APP, _TWICE_FROM_TWO_PODS),
    _record(32, "the DMA controller of the host interface met a broken command stream; seldom the bus", _APP),
    _record(37, "firmware of an engine was given a method it does not have", _DRIVER),
    _record(38, "the watchdog of an engine's firmware ran out", _DRIVER),
    *_each((39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)), "a copy engine failed", _APP_DRIVER),
    _record(43, "a channel of the application was stopped; the GPU itself goes on", _APP),
    _record(44, "a fault while the graphics engine changed context", _DRIVER_HW, _TWICE_FROM_TWO_PODS),
    _record(45, "a channel was taken down: its process ended, or an earlier event took it along", FaultKind.FOLLOWER),
    _unhealthy(46, "the GPU stopped processing", _DRIVER_HW),
    _unhealthy(48, "a memory error that could not be corrected", _HW, stands=True),
    _unhealthy(
        54, "the auxiliary power cable is not connected", _HW,
        stands=True, only="A100, H100, B100", survives=Survives.REBOOT,
    ),
    _record(60, "a video processor raised an exception", _APP_DRIVER),
    _unhealthy(62, "a micro-controller inside the GPU halted", _DRIVER_HW, stands=True),
    _degraded(63, "a memory row was remapped or a page retired; it takes effect at the next reset", _HW),
    _unhealthy(
        64, "a memory row could not be remapped, or a page not be retired", _HW, stands=True, survives=Survives.REBOOT
    ),
    *_each((66, 67), "the driver made an access that the GPU forbids", _DRIVER),
    _record(68, "the first video decoder raised an exception", _APP),
    _record(69, "a method is not valid for its graphics class", _APP),
    _degraded(74, "an NVLink error; its registers tell this end from the other", _LINK, only="A100, H100"),
    _degraded(78, "a vGPU did not start, most often for its versions", _DRIVER),
    XidRow(
        code=FALLEN_OFF_BUS, meaning="the GPU no longer answers on PCIe: power, heat, seat or the bus", fault=_HW,
        verdict=Verdict.LOST, stands_without_action=True, survives=Survives.RESET,
    ),
    _record(80, "data was damaged on its way to the GPU", _APP, _TWICE_FROM_TWO_PODS),
    *_each((82, *range(99, 106)), "a JPEG engine failed", _APP_DRIVER),
    *_each((83, 84, 88, 89, 96, 97, 98), "a video decoder failed", _APP_DRIVER),
    *_each((86, 139), "the optical flow engine failed", _APP_DRIVER),
    _degraded(92, "memory errors are corrected at a high rate", _HW),
    _degraded(93, "the InfoROM was written more often than planned", _HW, only="A100"),
    _degraded(94, "an uncorrectable memory error, contained to the application that met it", _HW),
    _unhealthy(95, "an uncorrectable memory error, not contained", _HW, stands=True),
    *_each((106, 107), "a test message of the management bus", _DRIVER),
    _record(108, "an access over NVLink could not be translated at the other end", _APP),
    XidRow(
        code=109, meaning="the change from one context to another took too long", fault=_DRIVER_HW,
        verdict=Verdict.DEGRADED, repeats=(Repeat(bursts=2, verdict=Verdict.UNHEALTHY),),
    ),
    _unhealthy(110, "a security fault", _HW, only="H100, B100 and later"),
    _unhealthy(119, "the GPU's system processor did not answer the driver in time", _DRIVER_HW, stands=True),
    _unhealthy(120, "the GPU's system processor failed", _DRIVER_HW, stands=True),
    _degraded(121, "errors on the chip-to-chip link, corrected", _LINK, only="GH200, GB200"),
    _unhealthy(136, "the training of an NVLink failed", _LINK, only="H100"),
    _record(137, "an access over NVLink that the other end forbids", _APP),
    _unhealthy(140, "a memory error that could not be recovered", _HW, stands=True),
    _record(141, "an error on the fast path of CUDA", _APP_DRIVER),
    _degraded(142, "the fourth video encoder failed", _DRIVER, only="GB200"),
    _unhealthy(143, "the GPU could not be initialised", _DRIVER_HW, only="H100, B100 and later"),
    _nvlink5(144, "the system address window (SAW)"),
    _nvlink5(145, "the request layer (RLW)"),
    _nvlink5(146, "the transaction layer (TLW)"),
    _nvlink5(147, "TREX"),
    _nvlink5(148, "the NVLink wrapper (NVLPW)"),
    _nvlink5(149, "the network interface (NETIR): link down, bit errors"),
    _nvlink5(150, "the management engine (MSE)"),
    _unhealthy(151, "the change of an encryption key failed", _CC, survives=Survives.RESET),
    *_each((152, 153), "the deep learning accelerator failed", _DRIVER),
    XidRow(
        code=RECOVERY_ACTION_CHANGED, meaning="the driver says what would recover the GPU", fault=FaultKind.FOLLOWER,
        verdict=Verdict.RECOVERY_ACTION,
    ),
    _degraded(155, "software took an NVLink down on purpose", FaultKind.OPERATOR),
    _unhealthy(156, "a part of the GPU was retired", _HW),
    _degraded(157, "a part of the GPU could not be retired; it still works, the fault may come again", _HW),
    _unhealthy(158, "the GPU ran into a fatal time-out", _HW),
    _degraded(159, "an error without data on the coherent link to the CPU", _LINK, only="GH200, GB200"),
    _record(160, "a memory channel was marked for retirement", _DRIVER),
    _record(161, "a memory channel could not be marked for retirement", _DRIVER),
    _record(162, "power smoothing works again", _HW),
    _degraded(163, "power smoothing is off", _HW, only="GB200, GB300", cleared_by=162),
    _degraded(164, "the part that smooths power is near the end of its life", _HW, only="GB200, GB300"),
    _degraded(165, "the part that smooths power is at the end of its life", _HW, only="GB200, GB300"),
    _degraded(166, "traffic over NVLink before it was set up for encryption", _CC),
    _unhealthy(167, "a fatal time-out on PCIe", _HW),
    _degraded(168, "memory errors in the protected region while ECC is off: turn ECC on, or reboot", _HW),
    _unhealthy(169, "the security processor halted", _HW),
    _degraded(170, "an interrupt that confidential computing does not allow", _CC),
    _record(171, "where in DRAM an uncorrectable error was", _HW),
    _record(172, "where in SRAM an uncorrectable error was", _HW),
    _unhealthy(173, "the chip-to-chip link failed", _LINK, only="GH200, GB200"),
    *(_undocumented(code, "not used by present drivers") for code in _UNUSED),
)


def _by_code(rows: Iterable[XidRow]) -> Mapping[int, XidRow]:
    by_code: dict[int, XidRow] = {}
    for row in rows:
        if by_code.setdefault(row.code, row) is not row:
            raise ValueError(f"XID {row.code} has two rows in the catalogue: one code has one verdict")
    return MappingProxyType(by_code)


CATALOGUE: Final[Mapping[int, XidRow]] = _by_code(_ROWS)


def verdict_of(code: int) -> XidRow:
    """The row of a code; one that is in no catalogue is degraded, whatever it is."""
    return CATALOGUE.get(code) or _undocumented(code, "not in the catalogue")
