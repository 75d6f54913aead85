"""What does a line of the kernel log say of a GPU?

Only lines that begin the way the driver or the PCIe code prints them are looked at, so that text which merely holds
such words (the name of a USB stick, of a process) says nothing. A code that may be cut off is no code.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from claimscope.health.nvlink5 import XIDS as NVLINK5_XIDS
from claimscope.health.nvlink5 import NvlinkReport
from claimscope.health.xids import FALLEN_OFF_BUS, RECOVERY_ACTION_CHANGED

MAX_TEXT_CHARACTERS: Final = 4096
MAX_LINE_CHARACTERS: Final = 400  # of a line that is kept as evidence


class LineKind(enum.Enum):
    """What a line is about."""

    XID = "xid"
    FALLEN_OFF_BUS = "fallen_off_bus"  # said in words, with or without XID 79 beside it
    GPU_RESET = "gpu_reset"  # a tool wrote that it has reset a GPU
    GPU_IDENTITY = "gpu_identity"  # which UUID is at which address; the driver says it before the first XID
    PCIE_FATAL = "pcie_fatal"
    PCIE_NON_FATAL = "pcie_non_fatal"
    PCIE_CORRECTED = "pcie_corrected"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLine:
    """One line that is about one GPU, or one PCIe device that may be a GPU."""

    kind: LineKind
    bdf: str | None  # "0000:65:00.0", as the inventory spells it; None where the line names only a UUID
    code: int = 0  # the XID; 79 for FALLEN_OFF_BUS
    uuid: str | None = None
    gpu_instance: int | None = None  # of a MIG device
    compute_instance: int | None = None
    recovery_action: int | None = None  # what XID 154 changed it to
    nvlink: NvlinkReport | None = None  # of XIDs 144 to 150
    evidence: Mapping[str, str] = field(default_factory=dict)  # "line", "pid", "process", "unit", "link", ...


_BDF = r"(?P<domain>[0-9a-fA-F]{4,8}):(?P<bus>[0-9a-fA-F]{2}):(?P<device>[0-9a-fA-F]{2})(?:\.(?P<function>[0-7]))?"
_UUID = r"(?P<uuid>GPU-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"

# nvErrorLog_va in NVIDIA/open-gpu-kernel-modules: "Xid (PCI:%04x:%02x:%02x GPU-I:%02u GPU-CI:%02u): %d, pid=%s,
# name=%s, %s"; the instances only for MIG, pid and name only where they are known. Old drivers print no "PCI:".
_XID = re.compile(
    rf"NVRM: Xid \((?:PCI:)?{_BDF}(?: GPU-I:(?P<gi>\d{{1,3}}))?(?: GPU-CI:(?P<ci>\d{{1,3}}))?\): (?P<code>\d{{1,4}}),"
    r"(?: pid='?(?P<pid>[^',]{0,20})'?,?)?(?: name=(?P<name>[^\n]{0,64}?)(?:,|$))?\s*(?P<rest>.*)",
    re.ASCII | re.DOTALL,
)
_FALLEN = re.compile(
    rf"NVRM: (?:The NVIDIA )?GPU (?:at )?(?:PCI:)?{_BDF}(?![0-9a-fA-F.:]*[0-9a-fA-F])"
    r".{0,400}?\bfallen off the bus\b",
    re.ASCII | re.DOTALL,
)
_IDENTITY = re.compile(rf"NVRM: GPU at PCI:{_BDF}: {_UUID}(?![0-9a-fA-F-])", re.ASCII)
# What NVIDIA/NVSentinel's reset job logs, scripts/gpu-reset; older ones of it without the success.
_RESET = re.compile(
    rf"(?:[\w.-]{{1,40}}(?:\[\d+\])?: )?GPU reset executed: {_UUID}(?:, success: (?P<success>true|false)\b)?",
    re.ASCII,
)

# drivers/pci/pcie/aer.c and err.c: the port reports the device that sent the message, then the device its error.
_AER_RECEIVED = re.compile(
    r"pcieport [0-9a-f:.]{8,20}: AER: (?:Multiple )?(?P<severity>Correct|Uncorrect)(?:ed|able)"
    rf"(?: \((?P<fatal>Fatal|Non-Fatal)\))? error (?:message )?received(?::| from) {_BDF}",
    re.ASCII,
)
_AER_ERROR = re.compile(
    rf"[\w-]{{1,32}} {_BDF}: (?:AER: )?PCIe Bus Error: severity=(?P<severity>Correct|Uncorrect)(?:ed|able)"
    r"(?: \((?P<fatal>Fatal|Non-Fatal)\))?",
    re.ASCII,
)

_NVLINK = re.compile(
    r"(?P<unit>\w{1,40})\s+(?P<fatal>Fatal|Nonfatal)\s+XC\s*\d{1,2}\s+i\s*(?P<injected>\d{1,2})\s+"
    r"Link\s+(?P<link>-?\d{1,3})(?:\s*[(\[](?P<registers>[0-9a-fA-Fx\s]{1,200}))?",
    re.ASCII,
)
_REGISTER = re.compile(r"0x([0-9a-fA-F]{8})\b", re.ASCII)
_NVLINK4 = re.compile(
    r"\blink (?P<link>\d{1,3})\s?\((?P<registers>0x[0-9a-fA-F]{1,8}(?:, 0x[0-9a-fA-F]{1,8}){0,6})\)", re.ASCII
)
_SM = re.compile(r"\(GPC (?P<gpc>\d{1,3}), TPC (?P<tpc>\d{1,3}), SM (?P<sm>\d{1,3})\)", re.ASCII)
_CAUSED_BY = re.compile(r"\bcaused by previous Xid (\d{1,4})\b", re.ASCII)
_RECOVERY = re.compile(
    r"GPU recovery action changed from 0x(?P<old>[0-9a-fA-F]{1,8}) \((?P<old_name>[^)]{0,60})\)"
    r" to 0x(?P<new>[0-9a-fA-F]{1,8}) \((?P<new_name>[^)]{0,60})\)"
)


def parse_line(text: str) -> GpuLine | None:
    """What the line says of a GPU; None for every other line. Never raises."""
    text = text[:MAX_TEXT_CHARACTERS].strip()
    if text.startswith("NVRM:"):
        if match := _XID.match(text):
            return _xid(text, match)
        if match := _IDENTITY.match(text):
            return GpuLine(kind=LineKind.GPU_IDENTITY, bdf=_bdf(match), uuid=match["uuid"])
        if match := _FALLEN.match(text):
            return GpuLine(
                kind=LineKind.FALLEN_OFF_BUS, bdf=_bdf(match), code=FALLEN_OFF_BUS, evidence={"line": shown(text)}
            )
        return None
    if match := _RESET.match(text):
        success = {"success": match["success"]} if match["success"] else {}
        return GpuLine(
            kind=LineKind.GPU_RESET, bdf=None, uuid=match["uuid"], evidence={"line": shown(text), **success}
        )
    match = _AER_RECEIVED.match(text) or _AER_ERROR.match(text)
    return _pcie(text, match) if match else None


def shown(text: str) -> str:
    """The text as it is kept for people: one printable line of bounded length."""
    cut = text[: MAX_LINE_CHARACTERS + 1]
    line = cut if cut.isprintable() else "".join(each if each.isprintable() else " " for each in cut)
    return line if len(cut) <= MAX_LINE_CHARACTERS else line[: MAX_LINE_CHARACTERS - 3] + "..."


def normal_bdf(domain: str, bus: str, device: str, function: str | None) -> str:
    """The address as the inventory spells it: lower case, at least four digits of domain, with a function."""
    return f"{int(domain, 16):04x}:{bus}:{device}.{function or '0'}".lower()


def _bdf(match: re.Match[str]) -> str:
    return normal_bdf(match["domain"], match["bus"], match["device"], match["function"])


def _xid(text: str, match: re.Match[str]) -> GpuLine:
    code, rest = int(match["code"]), match["rest"]
    evidence = {"line": shown(text)}
    if re.fullmatch(r"[0-9]+", match["pid"] or ""):
        evidence["pid"] = match["pid"]
    if match["name"] and match["name"] != "<unknown>":
        evidence["process"] = shown(match["name"])
    if cause := _CAUSED_BY.search(rest):
        evidence["caused_by_xid"] = cause[1]
    if code == 13 and (unit := _SM.search(rest)):
        evidence.update(unit=f"GPC {unit['gpc']}, TPC {unit['tpc']}", sm=unit["sm"])
    if code == 74 and (link := _NVLINK4.search(rest)):
        evidence.update(link.groupdict())
    nvlink = _nvlink(rest) if code in NVLINK5_XIDS else None
    if nvlink is not None:
        evidence.update(_nvlink_evidence(nvlink))
    recovery = _RECOVERY.match(rest) if code == RECOVERY_ACTION_CHANGED else None
    if recovery:
        evidence["recovery_action"] = recovery["new_name"]
        evidence["recovery_action_before"] = recovery["old_name"]
    return GpuLine(
        kind=LineKind.XID,
        bdf=_bdf(match),
        code=code,
        gpu_instance=int(match["gi"]) if match["gi"] else None,
        compute_instance=int(match["ci"]) if match["ci"] else None,
        recovery_action=int(recovery["new"], 16) if recovery else None,
        nvlink=nvlink,
        evidence=evidence,
    )


def _nvlink(rest: str) -> NvlinkReport | None:
    match = _NVLINK.match(rest)
    if match is None:
        return None
    link = int(match["link"])
    return NvlinkReport(
        unit=match["unit"],
        fatal=match["fatal"] == "Fatal",
        injected=int(match["injected"]) != 0,
        link=link if link >= 0 else None,
        registers=tuple(int(register, 16) for register in _REGISTER.findall(match["registers"] or "")),
    )


def _nvlink_evidence(report: NvlinkReport) -> dict[str, str]:
    evidence = {"part": report.unit, "fatal": "yes" if report.fatal else "no"}
    if report.link is not None:
        evidence["link"] = str(report.link)
    if report.injected:
        evidence["injected"] = "yes"
    return evidence


def _pcie(text: str, match: re.Match[str]) -> GpuLine:
    if match["severity"] == "Correct":
        kind = LineKind.PCIE_CORRECTED
    else:
        kind = LineKind.PCIE_FATAL if match["fatal"] == "Fatal" else LineKind.PCIE_NON_FATAL
    return GpuLine(kind=kind, bdf=_bdf(match), evidence={"line": shown(text)})
