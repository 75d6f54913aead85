"""What does a person see who opens the agent in a browser?

One self-contained HTML page made from the same samples as /metrics: no script, no outside resource. Every text that
comes from a device, a pod or a claim is escaped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from claimscope.health.report import all_findings
from claimscope.health.rules import RULE_BY_KEY
from claimscope.web.html import STYLE, cell, content_security_policy, duration_text, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from claimscope.health.model import DeviceHealth, Finding
    from claimscope.health.watch import HealthView
    from claimscope.model import Hold, Holder, Sample, Snapshot

# Which engine stands for "how busy", best first.
_ENGINES = ("gpu", "sm", "graphics", "compute")

CONTENT_SECURITY_POLICY = content_security_policy(STYLE)


@dataclass(slots=True)
class _Holding:
    """One holder's row, summed over its devices."""

    allocated_seconds: float | None = None
    busy_seconds: float | None = None
    energy_joules: float | None = None
    memory_bytes: float | None = None
    uuids: dict[str, None] = field(default_factory=dict)
    attributions: dict[str, None] = field(default_factory=dict)
    pods: dict[str, None] = field(default_factory=dict)
    ended: bool = False


class _Index:
    """Samples by family and then by label."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_family: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for sample in samples:
            self._by_family.setdefault(sample.family, []).append((dict(sample.labels), sample.value))

    def rows(self, family: str) -> Sequence[tuple[Mapping[str, str], float]]:
        return self._by_family.get(family, ())

    def by_uuid(self, family: str, **fixed: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for labels, value in self.rows(family):
            if all(labels.get(name) == wanted for name, wanted in fixed.items()):
                found.setdefault(labels.get("uuid", ""), value)
        return found

    def engine(self, family: str) -> dict[str, str]:
        """For each uuid, the engine that tells best how busy it is."""
        best: dict[str, str] = {}
        for labels, _ in self.rows(family):
            uuid, engine = labels.get("uuid", ""), labels.get("engine", "")
            if engine in _ENGINES and (
                uuid not in best or _ENGINES.index(engine) < _ENGINES.index(best[uuid])
            ):
                best[uuid] = engine
        return best


def bytes_text(value: float | None) -> str:
    """Bytes for a person: `41.2 GiB`."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def joules_text(value: float | None) -> str:
    """Energy for a person: joules, then watt hours, then kilowatt hours."""
    if value is None:
        return "–"
    if value < 3600:
        return f"{value:.0f} J"
    return f"{value / 3600:.1f} Wh" if value < 3.6e6 else f"{value / 3.6e6:.2f} kWh"


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.0f} {unit}"


def _bar(ratio: float | None) -> str:
    if ratio is None:
        return '<span class="soft">–</span>'
    percent = min(100.0, max(0.0, ratio * 100))
    return (
        '<span class="bar"><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10" rx="3"/>'
        f'<rect class="fill" width="{percent:.0f}" height="10" rx="3"/></svg>{percent:.0f} %</span>'
    )


def _holder_name(holder: Holder) -> str:
    name = f"{holder.namespace}/{holder.name}"
    return f"{name} ({holder.container})" if holder.source != "claim" and holder.container else name


_COLOURS = {"ok": "good", "degraded": "warn", "unhealthy": "bad", "lost": "bad"}


def _badge(health: DeviceHealth | None) -> str:
    if health is None:
        return '<span class="soft">–</span>'
    word = health.severity.value
    return f'<span class="tag {_COLOURS[word]}">{word}</span>'


def _finding_row(finding: Finding, names: Mapping[str, str], now_wall_ns: int) -> str:
    rule = RULE_BY_KEY.get(finding.rule)
    title = escape(rule.title if rule is not None else finding.rule)
    if finding.systemic:
        title += ' <span class="soft">shared by many GPUs: one cause outside of them is likely</span>'
    evidence = "<br>".join(f"{escape(key)}: {escape(value)}" for key, value in finding.evidence.items())
    word = finding.severity.value
    return (
        "<tr>"
        + cell(f"{escape(names.get(finding.uuid, 'GPU'))}<br><code>{escape(finding.uuid)}</code>")
        + cell(f'<span class="tag {_COLOURS[word]}">{word}</span>')
        + cell(f"{title}<br><code>{escape(finding.rule)}</code> <br>{finding.state.value}")
        + cell(evidence or '<span class="soft">–</span>')
        + cell(duration_text(max(0.0, (now_wall_ns - finding.since_wall_ns) / 1e9)), numeric=True)
        + cell(escape(finding.clears))
        + "</tr>"
    )


def _findings_section(health: HealthView | None, names: Mapping[str, str], now_wall_ns: int) -> str:
    """What stands against devices; nothing where nothing does."""
    found = [] if health is None else all_findings(health)
    if not found:
        return ""
    rows = [_finding_row(finding, names, now_wall_ns) for finding in found]
    return f"<h2>Findings</h2>{table(_FINDING_COLUMNS, rows, '')}"


def _device_rows(
    snapshot: Snapshot, index: _Index, names: Mapping[str, str], health: Mapping[str, DeviceHealth]
) -> list[str]:
    inventory = snapshot.inventory
    if inventory is None:
        return []
    holds: dict[str, dict[str, None]] = {}
    for hold in snapshot.holds:
        holds.setdefault(hold.entity, {})[_holder_name(hold.holder)] = None
    engines = index.engine("gpu_utilization_ratio")
    utilization = {
        labels["uuid"]: value
        for labels, value in index.rows("gpu_utilization_ratio")
        if engines.get(labels.get("uuid", "")) == labels.get("engine")
    }
    used, total = index.by_uuid("gpu_memory_used_bytes"), index.by_uuid("gpu_memory_total_bytes")
    power = index.by_uuid("gpu_power_watts")
    temperature = index.by_uuid("gpu_temperature_celsius", sensor="gpu")
    rows: list[str] = []
    shown: set[str] = set()
    for device in inventory.devices:
        uuid = device.entity.uuid
        shown.add(uuid)
        if uuid in inventory.lost:
            status = f'<span class="tag bad">lost</span> <span class="soft why">{escape(inventory.lost[uuid])}</span>'
        elif snapshot.up.get(uuid, False):
            status = '<span class="tag good">up</span>'
        else:
            status = '<span class="tag warn">no fresh data</span>'
        model = device.mig.profile if device.mig is not None else (device.model or "")
        memory = bytes_text(used.get(uuid))
        if uuid in total:
            memory += f' <span class="soft">of {bytes_text(total[uuid])}</span>'
        held = "<br>".join(escape(name) for name in holds.get(uuid, ())) or '<span class="soft">–</span>'
        rows.append(
            f'<tr{" class=part" if device.mig is not None else ""}>'
            + cell(f"{escape(names[uuid])} {escape(model)}<br><code>{escape(uuid)}</code>")
            + cell(status)
            + cell(_badge(health.get(uuid)))
            + cell(_bar(utilization.get(uuid)))
            + cell(memory, numeric=True)
            + cell(_number(power.get(uuid), "W"), numeric=True)
            + cell(_number(temperature.get(uuid), "°C"), numeric=True)
            + cell(held)
            + "</tr>"
        )
    rows.extend(
        "<tr>"
        + cell(f"<code>{escape(uuid)}</code>")
        + cell(f'<span class="tag bad">lost</span> <span class="soft why">{escape(why)}</span>')
        + cell(_badge(health.get(uuid)))
        + cell("–") * 5
        + "</tr>"
        for uuid, why in sorted(inventory.lost.items())
        if uuid not in shown
    )
    return rows


def _add(known: float | None, value: float) -> float:
    return value if known is None else known + value


def _holdings(snapshot: Snapshot, index: _Index) -> dict[tuple[str, ...], _Holding]:
    made: dict[tuple[str, ...], _Holding] = {}

    def of(holder: Holder) -> _Holding:
        key = (holder.source, holder.namespace, holder.name, holder.uid or "", holder.container or "")
        return made.setdefault(key, _Holding())

    def note(hold: Hold) -> None:
        row = of(hold.holder)
        row.uuids[hold.entity] = None
        row.pods.update(dict.fromkeys(f"{pod.pod} ({pod.container})" for pod in hold.pods))

    for hold in snapshot.holds:
        note(hold)
    running: set[tuple[str, ...]] = set(made)
    for account in snapshot.accounts:
        of(account.holder).uuids[account.entity] = None
    for source, prefix in (("claim", "dra_claim_gpu_"), ("pod", "pod_gpu_")):
        engines = index.engine(prefix + "busy_seconds_total")

        def row_of(labels: Mapping[str, str], source: str = source) -> _Holding | None:
            name = labels.get("resourceclaim") if source == "claim" else labels.get("pod")
            key = (source, labels["namespace"], name or "", labels.get("claim_uid", ""), labels.get("container", ""))
            row = made.get(key)
            if row is not None:
                row.attributions[labels["attribution"]] = None
            return row

        for labels, value in index.rows(prefix + "allocated_seconds_total"):
            if (row := row_of(labels)) is not None:
                row.allocated_seconds = _add(row.allocated_seconds, value)
        for labels, value in index.rows(prefix + "busy_seconds_total"):
            if engines.get(labels["uuid"]) == labels.get("engine") and (row := row_of(labels)) is not None:
                row.busy_seconds = _add(row.busy_seconds, value)
        for labels, value in index.rows(prefix + "energy_joules_total"):
            if (row := row_of(labels)) is not None:
                row.energy_joules = _add(row.energy_joules, value)
        for labels, value in index.rows(prefix + "memory_used_bytes"):
            if (row := row_of(labels)) is not None:
                row.memory_bytes = _add(row.memory_bytes, value)
    for key, row in made.items():
        row.ended = key not in running
    return made


def _holding_rows(snapshot: Snapshot, index: _Index, names: Mapping[str, str]) -> list[str]:
    rows: list[str] = []
    holdings = _holdings(snapshot, index)
    for key in sorted(holdings, key=lambda key: (holdings[key].ended, key)):
        source, namespace, name, uid, container = key
        row = holdings[key]
        kind = "claim" if source == "claim" else "pod"
        title = f"{escape(namespace)}/{escape(name)}" + (f" ({escape(container)})" if container else "")
        if row.ended:
            title += ' <span class="tag">ended</span>'
        if uid:
            title += f"<br><code>{escape(uid)}</code>"
        ratio = (
            row.busy_seconds / row.allocated_seconds if row.busy_seconds is not None and row.allocated_seconds else None
        )
        rows.append(
            "<tr>"
            + cell(title)
            + cell(kind)
            + cell("<br>".join(escape(pod) for pod in row.pods) or '<span class="soft">–</span>')
            + cell("<br>".join(escape(name) for name in sorted(names.get(uuid, uuid) for uuid in row.uuids)))
            + cell(escape(", ".join(row.attributions)) or '<span class="soft">–</span>')
            + cell(duration_text(row.allocated_seconds), numeric=True)
            + cell(_bar(ratio))
            + cell(joules_text(row.energy_joules), numeric=True)
            + cell(bytes_text(row.memory_bytes), numeric=True)
            + "</tr>"
        )
    return rows


_DEVICE_COLUMNS = (
    ("Device", False), ("Status", False), ("Health", False), ("Utilization", False), ("Memory used", True),
    ("Power", True), ("Temperature", True), ("Held by", False),
)
_FINDING_COLUMNS = (
    ("Device", False), ("Severity", False), ("Finding", False), ("Evidence", False), ("For", True), ("Clears", False),
)
_HOLDER_COLUMNS = (
    ("Holder", False), ("Kind", False), ("Used by", False), ("Devices", False), ("Attribution", False),
    ("GPU time held", True), ("Busy of that", False), ("Energy", True), ("Memory used", True),
)


def device_names(snapshot: Snapshot) -> dict[str, str]:
    """Short names of devices for people: `GPU 0`, `GPU 0 MIG 3/0`."""
    names: dict[str, str] = {}
    for device in snapshot.inventory.devices if snapshot.inventory is not None else ():
        name = f"GPU {device.entity.gpu}"
        if device.mig is not None:
            name += f" MIG {device.mig.gpu_instance_id}/{device.mig.compute_instance_id}"
        names[device.entity.uuid] = name
    return names


def render_page(
    *, snapshot: Snapshot | None, samples: Iterable[Sample], version: str, failing: Sequence[str], refresh: bool,
    health: HealthView | None = None, hidden: str = "",
) -> str:
    """The whole page; `failing` are the readiness checks that do not hold, `hidden` says what is left out."""
    index = _Index(samples)
    problems = list(failing)
    if snapshot is None:
        node, facts = "", ["The agent has only just started and has nothing to show yet."]
        devices = holders = findings = ""
    else:
        node = snapshot.node
        inventory = snapshot.inventory
        names = device_names(snapshot)
        judged = health.devices if health is not None else {}
        findings = _findings_section(health, names, snapshot.wall_ns)
        facts = ["as of " + time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(snapshot.wall_ns / 1e9))]
        if inventory is not None and inventory.driver_version:
            facts.insert(0, f"driver {inventory.driver_version}")
        if inventory is not None and inventory.error:
            problems.append(inventory.error)
        if inventory is not None and inventory.released:
            problems.append("NVML is released on request; no GPU is read until it is taken up again.")
        rows = _device_rows(snapshot, index, names, judged)
        devices = table(_DEVICE_COLUMNS, rows, "NVML shows no GPU on this node.")
        holders = table(
            _HOLDER_COLUMNS,
            _holding_rows(snapshot, index, names),
            "No claim and no device-plugin pod holds a GPU of this node.",
        )
    note = ""
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
        note = f'<div class="card note"><strong class="bad">Not ready</strong><ul>{items}</ul></div>'
    note += f'<div class="card note">{escape(hidden)} are left out.</div>' if hidden else ""
    toggle = '<a href="/">stop refreshing</a>' if refresh else '<a href="/?refresh=on">refresh every 5 s</a>'
    body = "" if snapshot is None else (
        f"{findings}<h2>Devices</h2>{devices}"
        f"<h2>Claims and pods <small>this node's part, since each began</small></h2>{holders}"
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        + ('<meta http-equiv="refresh" content="5">' if refresh else "")
        + f"<title>claimscope{' on ' + escape(node) if node else ''}</title>"
        f'<style>{STYLE}</style></head><body><main><header><h1>claimscope</h1><span>{escape(node)}</span>'
        f'<span class="soft">{escape(" · ".join(facts))}</span><nav><a href="/metrics">metrics</a>'
        '<a href="/readyz">readiness</a><a href="/livez">liveness</a><a href="/api/v1/health">health (JSON)</a>'
        '<a href="/api/v1/snapshot">snapshot (JSON)</a>'
        f"{toggle}</nav></header>{note}{body}"
        f"<footer>claimscope agent {escape(version)} · one row per device and per holder of a device; /metrics has "
        "every figure.</footer></main></body></html>\n"
    )
