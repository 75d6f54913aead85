"""By which rules and numbers is a GPU judged? The reference page of health, made from the tables."""

from __future__ import annotations

from collections.abc import Iterable

from claimscope.health.model import Survives
from claimscope.health.rules import NOT_JUDGED, RULES, First, Minutes, On, Rule, Steady
from claimscope.health.thresholds import BY_NAME, COUNTED, DAY, HOUR, MINUTE, ROWS, Threshold
from claimscope.health.xids import CATALOGUE, Repeat, Verdict, XidRow

_SURVIVES = {
    Survives.NOTHING: "nothing",
    Survives.TIME: "time; a GPU reset or driver reload ends it",
    Survives.RESET: "a reset; a reboot ends it",
    Survives.REBOOT: "a reboot; a repair or an acknowledgement ends it",
}
_VERDICTS = {
    Verdict.RECORD: "counted, no finding",
    Verdict.DEGRADED: "degraded",
    Verdict.UNHEALTHY: "unhealthy",
    Verdict.LOST: "lost",
    Verdict.DECODE: "as its registers say, else degraded",
    Verdict.RECOVERY_ACTION: "the recovery action that it names",
}
_HEAD = """\
<!-- Written by `make docs` from exporter/claimscope/health. -->
# Health

The agent judges each GPU and MIG device by the rules below. A rule that stands is a finding: it is shown in
`gpu_health` and `gpu_health_finding_info`, with its evidence in `/api/v1/health`, on the agent's page and by
`claimscope health list`. The worst finding is the state of the device: `ok`, `degraded` (worth a look), `unhealthy` (no
new work should come), `lost` (not there any more).

The driver's own recovery action is asked first, the catalogue of XIDs second; a code that is in no catalogue makes a
device degraded and never more. A figure that cannot be read makes a rule `unknown`, which neither raises a finding
nor ends one. Only the rise of a counter counts, never its lifetime total. Findings survive a restart of the agent.

Findings marked `systemic` are shared by many GPUs of the node at once, of one rule and equally bad, for which one cause
outside of them is likely: cooling, the power supply, a switch, firmware. They keep no work away. The first of them
stand alone until enough have followed within `systemic_window_seconds`, and may be fenced in between: waiting would
leave a single sick GPU open to new work for as long. Where `thermal_slowdown` is systemic, `thermal_slowdown_lasting`
of the same GPU is so from its beginning.

An XID counts from when it happened. One from before a GPU reset that ends it is no finding; one that came while nobody
watched, before or after a reset, ends after a minute of quiet if the driver wants nothing. A reset is proven by totals
of the driver that begin anew; what a log says of it counts only where there are none. Of an address at which no GPU is
known, what the kernel log tells is kept (`claimscope_agent_fault_events_unplaced`) until NVML answers or the log names
the GPU.

A finding that came and went `flapping_cycles` times within a day stays the next time until a GPU reset, a reboot or an
acknowledgement; one that it took a reset each time to end, until a reboot or an acknowledgement.

`claimscope health ack UUID RULE` on the node ends a finding that no reset proves repaired.

## Sources

NVML's readings and events are always used. The kernel log adds what NVML does not tell: the process and unit of an XID,
the registers of NVLink 5 errors, and everything while NVML does not answer. `--kernel-log /dev/kmsg` reads it, which
needs the device mounted from the host and the right to read it (root or CAP_SYSLOG). An event that both tell of is one
event.

Of a GPU that NVML does not list, the kernel's list of PCI devices (`/sys/bus/pci/devices`) decides where it can be read
and has all that NVML lists: one that another driver has (`vfio-pci`) is not lost; one that the NVIDIA driver has is
missing, also after a reboot; what stood against one that is not in the machine any more after a reboot is over. Without
that list, and in a simulation, a GPU that was there since boot is missing, and findings of others stay.
"""


def document() -> str:
    """docs/health.md, whole."""
    parts = [
        _HEAD,
        "## Rules\n",
        _table(("rule", "finding", "severity", "when", "survives", "ends", "scope"), map(_rule, RULES)),
        "## Thresholds\n",
        "`--health-thresholds FILE` names a YAML file with other numbers, `nvlink_down_seconds: 30`. It is read again"
        " when it changes; one with a mistake changes nothing and is said in the log and in"
        " `claimscope_agent_thresholds_up`. Sources: N NVIDIA's limits and defaults, G gpud's, E our choice.\n",
        _table(("threshold", "default", "from", "to", "source", "meaning"), map(_threshold, ROWS)),
        "## XIDs\n",
        "Verdicts are those without a recovery action: the driver's word that nothing needs to be done makes most of"
        " them `degraded`, and its word that something does confirms them. Codes in no row are `degraded`.\n",
        _table(
            ("XID", "meaning", "most likely fault", "verdict", "what comes again"),
            (_xid(CATALOGUE[code]) for code in sorted(CATALOGUE)),
        ),
        "## Not judged\n",
        _table(("what", "why"), ((f"`{name}`", why) for name, why in NOT_JUDGED)),
    ]
    return "\n".join(parts)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _rule(rule: Rule) -> tuple[str, ...]:
    scope = ["GPU and MIG device" if rule.on_mig else "GPU"]
    if rule.needs_load:
        scope.append("only while it works")
    if rule.correlated:
        scope.append("may be systemic")
    return (
        f"`{rule.key}`", rule.title, "shown only" if rule.severity.rank == 0 else rule.severity.value, _when(rule),
        _survives(rule), rule.clears, ", ".join(scope),
    )  # fmt: skip


def _survives(rule: Rule) -> str:
    """What is judged by readings again and again ends by them, unless it latches."""
    if not rule.latches and rule.on is not On.EVENT and not isinstance(rule.window, First):
        return "what its readings outlive"
    return _SURVIVES[rule.survives]


def _when(rule: Rule) -> str:
    if rule.on is On.EVENT:
        return "at once"
    match rule.window:
        case First():
            return "at once"
        case Steady(seconds):
            return f"for {_duration(BY_NAME[seconds].default)}"
        case Minutes(need, of):
            if rule.key in COUNTED:
                return f"{BY_NAME[need].default:g} times in {BY_NAME[of].default:g} minutes"
            return f"{BY_NAME[need].default:g} of {BY_NAME[of].default:g} minutes"


def _duration(seconds: float) -> str:
    for unit, word in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g} {word}"
    return f"{seconds:g} s"


def _threshold(row: Threshold) -> tuple[str, ...]:
    default = _duration(row.default) if row.unit == "seconds" else f"{row.default:g} {row.unit}"
    return f"`{row.name}`", default, f"{row.low:g}", f"{row.high:g}", row.source.value, row.help


def _xid(row: XidRow) -> tuple[str, ...]:
    meaning = row.meaning + (f" ({row.applies_to})" if row.applies_to else "")
    verdict = _VERDICTS[row.verdict]
    if row.stands_without_action:
        verdict += ", also where the driver asks for nothing"
    if row.cleared_by is not None:
        verdict += f"; {row.cleared_by} takes it back"
    if row.verdict is Verdict.UNHEALTHY:
        verdict += f"; survives {_SURVIVES[row.survives]}"
    return str(row.code), meaning, row.fault.value, verdict, "; ".join(map(_repeat, row.repeats))


def _repeat(repeat: Repeat) -> str:
    where = " on one unit" if repeat.same_unit else f" from {repeat.pods} pods" if repeat.pods > 1 else ""
    return f"{repeat.bursts} times a day{where}: {repeat.verdict.value}"
