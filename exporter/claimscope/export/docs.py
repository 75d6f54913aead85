"""What does each metric mean, and where does it come from? The reference pages, made from the metric tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from claimscope.export.cluster import ClusterCollector
from claimscope.export.collect import Collector
from claimscope.metrics.otel import OtelTable
from claimscope.metrics.spec import Family, Kind, Quantity, Read, Split, Stat, Via, View, family_name
from claimscope.metrics.tables import QUANTITIES
from claimscope.nvml.calls import CALLS

__all__ = ["QUANTITIES", "Entry", "all_families", "entries", "json", "markdown"]

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Title, what the group is, and who serves it.
_GROUPS = (
    ("Devices", "One series per GPU or MIG device, and per value of the other labels.", "agent"),
    ("Health", "What the agent finds of each device; the rules are in health.md.", "agent"),
    ("Who holds what", "Joins devices to holders; always 1.", "agent"),
    ("Accounts of ResourceClaims", "What each claim used of each device.", "agent"),
    ("Accounts of device-plugin pods", "The same for containers that hold GPUs without a claim.", "agent"),
    ("Unattributed", "What no holder can be given. Holders and this add up to the device.", "agent"),
    ("The agent itself", "Whether the figures can be trusted, and what they cost.", "agent"),
    ("Claims", "One or a few series per ResourceClaim.", "controller"),
    ("Claims that wait", "Only for claims that a pod needs and that are not ready.", "controller"),
    ("Durations and outcomes",
     "Counted as claims go their way; a controller that restarts does not count twice. Series begin at zero once a "
     "claim of their class and namespace was seen, for up to 100 classes and 1,000 pairs of namespace and class.",
     "controller"),
    ("Capacity, taints and quota", "What drivers publish, less what claims hold.", "controller"),
    ("From device plugin to DRA", "How far the move is, and where nodes differ.", "controller"),
    ("The controller itself", "Whether the figures can be trusted, and what they cost.", "controller"),
)  # fmt: skip
_PREFIXES = (  # the first that fits
    ("gpu_allocation_info", 2),
    ("dra_claim_gpu_", 3),
    ("pod_gpu_", 4),
    ("gpu_unattributed_", 5),
    ("gpu_health", 1),
    ("gpu_", 0),
    ("dra_claim_pending_", 8),
    ("dra_claim_ready_", 9),
    ("dra_claim_lifetime_", 9),
    ("dra_claim_evictions_", 9),
    ("dra_claims_completed_", 9),
    ("dra_allocation_", 9),
    ("dra_claim_", 7),
    ("kube_resourceclaim_", 7),
    ("dra_pool_", 10),
    ("dra_device_", 10),
    ("dra_class_", 10),
    ("dra_taint_", 10),
    ("dra_constraint_", 10),
    ("dra_quota_", 10),
    ("dra_", 11),
    ("claimscope_controller_", 12),
)
_ACCOUNT_PREFIXES = ("gpu", "dra_claim_gpu", "pod_gpu", "gpu_unattributed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One family as documented."""

    group: str
    name: str
    type: str
    unit: str
    ucum: str
    labels: tuple[str, ...]
    help: str
    since: str
    sources: tuple[str, ...]  # NVML calls, fields and GPM metrics, with the fixed labels they feed
    tiers: tuple[str, ...]
    scopes: tuple[str, ...]
    opt_in: tuple[str, ...]
    otel: tuple[str, ...]
    dcgm: tuple[str, ...]


def _group_of(name: str) -> int:
    return next((group for prefix, group in _PREFIXES if name.startswith(prefix)), 6)


def all_families() -> Mapping[str, Family]:
    """Everything that the agent and the controller can serve."""
    return {**Collector(QUANTITIES).families, **ClusterCollector().families}


def _sources(quantity: Quantity, view: View) -> list[str]:
    fixed = ",".join(f"{name}={value}" for name, value in view.labels.items())
    how = ""
    if view.stat is Stat.TOTAL and quantity.kind is not Kind.COUNTER:
        how = "time integral of "
    elif view.stat in (Stat.MIN, Stat.MAX):
        how = f"{view.stat.value}imum over a minute of "
    return [f"{fixed + ': ' if fixed else ''}{how}{_spelled(read)}" for read in quantity.reads]


def _spelled(read: Read) -> str:
    """A read in the words of NVIDIA's documentation."""
    member = f".{read.member}" if read.member and read.member != "value" else ""
    match read.via:
        case Via.CALL:
            return (CALLS[read.name].symbol if read.name in CALLS else read.name) + member
        case Via.FIELD:
            return f"NVML_FI_DEV_{read.name}"
        case Via.GPM:
            return f"NVML_GPM_METRIC_{read.name}"


def entries(families: Mapping[str, Family], quantities: Sequence[Quantity]) -> list[Entry]:
    """Every family with its sources, by group and in the order of the tables."""
    feeds: dict[str, list[tuple[Quantity, View]]] = {}
    for quantity in quantities:
        for view in quantity.views:
            for prefix in _ACCOUNT_PREFIXES if view.split is not Split.NO else ("gpu",):
                feeds.setdefault(family_name(prefix, view), []).append((quantity, view))
    otel = OtelTable(families, quantities)
    made: list[Entry] = []
    for family in families.values():
        rows = feeds.get(family.name, [])
        made.append(
            Entry(
                group=_GROUPS[_group_of(family.name)][0],
                name=family.name,
                type=family.type.value,
                unit=family.unit.suffix,
                ucum=family.unit.ucum,
                labels=family.labels,
                help=family.help,
                since=family.since,
                sources=_once(source for row in rows for source in _sources(*row)),
                tiers=_once(quantity.tier.name.lower() for quantity, _ in rows),
                scopes=_once(quantity.scope.value for quantity, _ in rows),
                opt_in=_once(quantity.opt_in for quantity, _ in rows if quantity.opt_in),
                otel=otel.names(family.name),
                dcgm=_once(view.dcgm for _, view in rows if view.dcgm),
            )
        )
    order = [title for title, _, _ in _GROUPS]
    made.sort(key=lambda entry: order.index(entry.group))
    return made


def _once(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _codes(values: Iterable[str], separator: str = ", ") -> str:
    return separator.join(f"`{_cell(value)}`" for value in values)


def markdown(families: Mapping[str, Family], quantities: Sequence[Quantity]) -> str:
    """docs/metrics.md: one table per group."""
    documented = entries(families, quantities)
    lines = [
        "# Metrics",
        "",
        "Made from the metric tables by `claimscope metrics --format md`; change those, then run `make docs`.",
        "",
        "Units are base units and stand in the names. A number that cannot be read has no series, and"
        " `claimscope_agent_missing_readings{reason}` counts it. An optional label without a value is empty. Tiers:"
        " tick 10 times a second by default, gpm and second once a second, slow every 10 s, rare every minute, event"
        " when it happens. Histograms have `_bucket` with the label `le`, `_sum` and `_count`.",
        "",
        "The agent serves the figures of its node's devices and of their holders, the controller those of the cluster.",
    ]
    for title, about, server in _GROUPS:
        members = [entry for entry in documented if entry.group == title]
        if not members:
            continue
        lines += ["", f"## {title}", "", f"{about} Served by the {server}.", ""]
        derived = any(entry.sources for entry in members)
        if derived:
            lines += [
                "| metric | type | unit | labels | meaning | source | tier | OpenTelemetry | DCGM |",
                "|---|---|---|---|---|---|---|---|---|",
            ]
        else:
            lines += [
                "| metric | type | unit | labels | meaning | OpenTelemetry |",
                "|---|---|---|---|---|---|",
            ]
        for entry in members:
            meaning = entry.help + (f" Needs collector {_codes(entry.opt_in)}." if entry.opt_in else "")
            cells = [f"`{entry.name}`", entry.type, entry.unit or "–", _codes(entry.labels), _cell(meaning)]
            if derived:
                cells += [_codes(entry.sources, "<br>") or "–", ", ".join(entry.tiers) or "–"]
            cells.append(_codes(entry.otel) or "–")
            if derived:
                cells.append(_codes(entry.dcgm) or "–")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def json(families: Mapping[str, Family], quantities: Sequence[Quantity]) -> str:
    """The same as one JSON array, for programs."""
    return msgspec.json.format(msgspec.json.encode(entries(families, quantities)), indent=2).decode() + "\n"
