"""What do the registers in an NVLink 5 error line (XID 144 to 150) say?

The table is the sheet "XID 144-150 Decode" of NVIDIA's catalogue
(https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html). The first register (IntrInfo) names the unit,
in bits 9:0 before driver 575 and in bits 6:0 since, and in bits 25:20 the cause; the second (ErrorStatus) has to be
equal to that of a row. What no row says is degraded until the driver's recovery action is read: never silent as an
unknown error is elsewhere, and never a fence.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from claimscope.health.xids import Verdict

XIDS: Final = range(144, 151)
_NETIR_XID, _MSE_XID = 149, 150
NEW_LAYOUT_SINCE: Final = 575  # driver branch


class Action(enum.Enum):
    """What the catalogue answers."""

    IGNORE = "ignore"
    RESET = "reset the GPU"
    EVALUATE = "as the recovery action says"
    UNKNOWN = "no row of the catalogue fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvlinkReport:
    """The part of such a line that is the same for all of them."""

    unit: str  # "NETIR_LINK_EVT", as printed
    fatal: bool | None  # None where the line says neither
    injected: bool  # a test did it, not the hardware
    link: int | None  # None where no single link is meant, printed as -1
    registers: tuple[int, ...]  # IntrInfo, ErrorStatus, then debug data; may be cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """What the registers mean."""

    action: Action
    verdict: Verdict  # RECORD, DEGRADED or UNHEALTHY
    unit: str | None = None  # as the catalogue names it
    cause: int | None = None  # IntrInfo bits 25:20; the reason of a link that went down
    peer: bool = False  # the other end of the link did it: look there
    text: str = ""  # for people


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    xid: int
    name: str
    old: int  # IntrInfo bits 9:0, before driver 575
    new: int  # IntrInfo bits 6:0, since driver 575
    ignore: frozenset[int] = frozenset()  # values of ErrorStatus
    reset: frozenset[int] = frozenset()
    evaluate: frozenset[int] = frozenset()
    watch: frozenset[int] = frozenset()  # "ignore", but look at the cable: degraded
    reset_if_marked: frozenset[int] = frozenset()  # reset if the bit above the unit's bits is set, else ignore


_PIPE = {
    "ignore": frozenset({0x1, 0x2, 0x80000000}),
    "reset": frozenset({0x4}),
}
_UNITS: Final[tuple[_Unit, ...]] = (
    _Unit(
        xid=144, name="SAW_MVB", old=0b00001_00001, new=0x01,
        ignore=frozenset({0x1, 0x4, 0x8, 0x20}), reset=frozenset({0x2, 0x10}),
    ),
    _Unit(xid=145, name="RLW_CTRL", old=0b00011_00010, new=0x03, ignore=frozenset({0x80000000})),
    _Unit(
        xid=145, name="RLW_REMAP", old=0b00100_00010, new=0x04,
        ignore=frozenset({0x100, 0x200, 0x80000000}), reset=frozenset({0x40, 0x80}),
        evaluate=frozenset({0x1, 0x2, 0x4, 0x8, 0x10, 0x20}),
    ),
    _Unit(
        xid=145, name="RLW_RSPCOL", old=0b00101_00010, new=0x05,
        ignore=frozenset({0x1, 0x80000000}), reset=frozenset({0x2}),
    ),
    _Unit(
        xid=145, name="RLW_RXPIPE", old=0b00110_00010, new=0x06,
        ignore=frozenset({0x8, 0x80000000}), reset_if_marked=frozenset({0x1, 0x2, 0x4}),
    ),
    _Unit(
        xid=145, name="RLW_SRC_TRACK", old=0b00111_00010, new=0x07,
        ignore=frozenset({0x2, 0x80000000}), reset=frozenset({0x1, 0x10, 0x20}), evaluate=frozenset({0x4, 0x8}),
    ),
    _Unit(
        xid=145, name="RLW_TAGSTATE", old=0b01000_00010, new=0x08,
        ignore=frozenset({0x1, 0x10000, 0x80000000}), reset=frozenset({0x2, 0x20000, 0x100000}),
    ),
    _Unit(xid=146, name="TLW_CTRL", old=0b01001_00011, new=0x09, **_PIPE),
    _Unit(xid=146, name="TLW_RX_PIPE0", old=0b01010_00011, new=0x0A, **_PIPE),
    _Unit(xid=146, name="TLW_RX_PIPE1", old=0b01010_00011, new=0x0B, **_PIPE),
    _Unit(xid=146, name="TLW_TX_PIPE0", old=0b01011_00011, new=0x0C, **_PIPE),
    _Unit(xid=146, name="TLW_TX_PIPE1", old=0b01011_00011, new=0x0D, **_PIPE),
    _Unit(xid=147, name="TREX", old=0b01100_00100, new=0x0E, ignore=frozenset({0x1, 0x80000000})),
    _Unit(xid=148, name="NVLPW", old=0b00000_00101, new=0x0F, ignore=frozenset({0x80000000})),
    _Unit(
        xid=149, name="NETIR_BER_EVENT", old=0b10001_00110, new=0x13, watch=frozenset({0x0, 0x1, 0x2, 0x3}),
    ),
    _Unit(
        xid=149, name="NETIR_MFDE_EVENT", old=0b10010_00110, new=0x14,
        ignore=frozenset({0x3}), reset=frozenset({0x1, 0x4, 0x5, 0x7}),
    ),
)

# Units of XID 149 whose rows name no ErrorStatus.
_NETIR_INTERRUPT: Final = _Unit(xid=149, name="NETIR_INT", old=0b00000_00110, new=0x18)
_LINK_DOWN: Final = _Unit(xid=149, name="NETIR_LINK_DOWN", old=0b01110_00110, new=0x11)
_DOWN_RESET: Final = frozenset({0, 1, 2, 4, 10, 15, 16, 17, 18, 22, 42, 43})  # this end: reset the GPU
_DOWN_PEER: Final = frozenset({21, 32, 33, 34, 35, 36, 37})  # reset, and look at the other end
_DOWN_IGNORE: Final = frozenset({38, 40})  # taken down by software or by the host

_MARKED_OLD, _MARKED_NEW = 1 << 10, 1 << 7

_VERDICTS: Final[Mapping[Action, Verdict]] = {
    Action.IGNORE: Verdict.RECORD,
    Action.RESET: Verdict.UNHEALTHY,
    Action.EVALUATE: Verdict.DEGRADED,
    Action.UNKNOWN: Verdict.DEGRADED,
}


def decode(xid: int, report: NvlinkReport | None, driver_version: str | None) -> Decode:
    """What the registers of a line say; without registers, or without a row that fits, degraded."""
    if xid == _MSE_XID:  # every row of it says the same, so the registers do not matter
        return _decoded(Action.RESET, "MSE", None)
    if report is None:
        return _unknown("no kernel log line with the registers of this event")
    if not report.registers:
        return _unknown("the line has no registers, or was cut off")
    old = _old_layout(driver_version)
    info = report.registers[0]
    status = report.registers[1] if len(report.registers) > 1 else None
    found = {
        answer
        for layout in ((old,) if old is not None else (True, False))
        if (answer := _decode(xid, info, status, old=layout)) is not None
    }
    if len(found) != 1:
        return _unknown(f"no row for {report.unit} {info:#010x} with driver {driver_version or 'of unknown version'}")
    return found.pop()


def _old_layout(driver_version: str | None) -> bool | None:
    branch = (driver_version or "").partition(".")[0]
    return int(branch) < NEW_LAYOUT_SINCE if branch.isascii() and branch.isdigit() else None


def _decode(xid: int, info: int, status: int | None, *, old: bool) -> Decode | None:
    cause = info >> 20 & 0x3F
    if xid == _NETIR_XID:
        if _matches(_LINK_DOWN, info, old=old):
            return _link_down(cause)
        if cause == 0 and _matches(_NETIR_INTERRUPT, info, old=old):
            return _decoded(Action.RESET, _NETIR_INTERRUPT.name, cause)
    if cause or status is None:
        return None
    for unit in _UNITS:
        if unit.xid != xid or not _matches(unit, info, old=old):
            continue
        if status in unit.reset_if_marked:
            marked = info & (_MARKED_OLD if old else _MARKED_NEW)
            return _decoded(Action.RESET if marked else Action.IGNORE, unit.name, cause)
        if status in unit.watch:
            return Decode(
                action=Action.IGNORE, verdict=Verdict.DEGRADED, unit=unit.name, cause=cause,
                text=f"{unit.name}: too many bit errors on the link, look at its cable",
            )
        rows = ((Action.IGNORE, unit.ignore), (Action.RESET, unit.reset), (Action.EVALUATE, unit.evaluate))
        # Two units may share the old bits; they then have the same rows, so the first stands for both.
        return next((_decoded(action, unit.name, cause) for action, values in rows if status in values), None)
    return None


def _matches(unit: _Unit, info: int, *, old: bool) -> bool:
    return info & 0x3FF == unit.old if old else info & 0x7F == unit.new


def _link_down(cause: int) -> Decode | None:
    if cause in _DOWN_PEER:
        return Decode(
            action=Action.RESET, verdict=Verdict.DEGRADED, unit=_LINK_DOWN.name, cause=cause, peer=True,
            text=f"{_LINK_DOWN.name}: taken down by the other end of the link, cause {cause}",
        )
    if cause in _DOWN_RESET:
        return _decoded(Action.RESET, _LINK_DOWN.name, cause)
    return _decoded(Action.IGNORE, _LINK_DOWN.name, cause) if cause in _DOWN_IGNORE else None


def _decoded(action: Action, unit: str, cause: int | None) -> Decode:
    why = f", cause {cause}" if cause else ""
    return Decode(
        action=action, verdict=_VERDICTS[action], unit=unit, cause=cause, text=f"{unit}{why}: {action.value}"
    )


def _unknown(why: str) -> Decode:
    return Decode(action=Action.UNKNOWN, verdict=Verdict.DEGRADED, text=why)
