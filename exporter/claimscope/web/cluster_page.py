"""What does a person see who opens the controller in a browser?

What calls for action first: sick GPUs and the taints that stand, and claims that wait, with cause and cure; then what
is left of each class, what is held and not used, and how far the move to DRA has come. One self-contained page: no
script, no outside resource. Every text that comes from the cluster is escaped.
"""

from __future__ import annotations

import time
from collections import Counter
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from claimscope.claims.model import ClaimState, Doing, PendingReason, Phase
from claimscope.model import Histogram
from claimscope.web.health_part import health_part
from claimscope.web.html import STYLE, cell, content_security_policy, duration_text, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from claimscope.claims.model import ClaimView, ClusterSnapshot, Wait
    from claimscope.model import Sample

ROWS: Final = 50  # of each table; the JSON API has the rest
_TAINT_ROWS: Final = 8
_EVIDENCE: Final = 3

_DEVICE_STATES: Final = ("allocated", "reserved", "free", "tainted", "unhealthy")
_UNDER_WAY: Final = frozenset({PendingReason.SCHEDULING, PendingReason.PREPARING, PendingReason.CLAIM_NOT_CREATED})
_NORMAL: Final = frozenset({Doing.PREPARING, Doing.PULLING, Doing.INITIALIZING, Doing.UNKNOWN})
_KINDS: Final = ("device_plugin", "extended_resource", "claim")

_STYLE: Final = STYLE + """
:root { --allocated: #3b7dd8; --reserved: #8f6bd1; --free: #3da872; --tainted: #d99a1c; --unhealthy: #cf4438; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile { padding: 12px 16px; } .tile b { display: block; font-size: 26px; font-weight: 600; line-height: 1.2; }
.tile span { color: var(--soft); font-size: 13px; }
.name { font-weight: 600; overflow-wrap: break-word; } .small { font-size: 13px; }
td.who { min-width: 210px; } td.who a { color: inherit; } td.text { min-width: 260px; overflow-wrap: anywhere; }
.text p { margin: 0 0 3px; } .text .soft { font-size: 13px; overflow-wrap: anywhere; }
svg.stack { width: 260px; height: 14px; margin: 3px 0 0; }
.legend { margin: 8px 2px 0; color: var(--soft); font-size: 13px; display: flex; flex-wrap: wrap; gap: 4px 16px; }
.legend svg { width: 10px; height: 10px; margin-right: 5px; vertical-align: 0; }
.allocated { fill: var(--allocated); } .reserved { fill: var(--reserved); } .free { fill: var(--free); }
.tainted { fill: var(--tainted); } .unhealthy { fill: var(--unhealthy); }
.tag.soft { color: var(--soft); } .more { padding: 8px 12px; color: var(--soft); font-size: 13px; }
"""

CONTENT_SECURITY_POLICY = content_security_policy(_STYLE)


class _Index:
    """The shared samples by family."""

    def __init__(self, samples: Iterable[Sample | Histogram]) -> None:
        self._by_family: dict[str, list[Sample | Histogram]] = {}
        for each in samples:
            self._by_family.setdefault(each.family, []).append(each)

    def rows(self, family: str) -> Iterable[tuple[dict[str, str], float]]:
        return ((dict(each.labels), each.value) for each in self._by_family.get(family, ())
                if not isinstance(each, Histogram))  # fmt: skip

    def histograms(self, family: str) -> Iterable[tuple[dict[str, str], Histogram]]:
        return ((dict(each.labels), each) for each in self._by_family.get(family, ()) if isinstance(each, Histogram))


def _named(namespace: str, name: str) -> str:
    return f'<span class="name">{escape(namespace)}/{escape(name)}</span>'


def _claim(namespace: str, name: str) -> str:
    """A claim's name, with what `explain` tells of it behind it."""
    where = f"/api/v1/claims/{quote(namespace, safe='')}/{quote(name, safe='')}"
    return f'<a href="{where}">{_named(namespace, name)}</a>'


def _below(text: str) -> str:
    return f'<br><span class="soft small">{escape(text)}</span>' if text else ""


def _words(value: str) -> str:
    return escape(value.replace("_", " "))


def _tag(text: str, tone: str) -> str:
    return f'<span class="tag {tone}">{_words(text)}</span>'


def _since(wall: float, since: float | None) -> float | None:
    return None if since is None else max(0.0, wall - since)


def _more(shown: int, total: int, where: str) -> str:
    if total <= shown:
        return ""
    return f'<div class="more">{total - shown} more: <a href="{where}">{where}</a></div>'


def _wait_row(wait: Wait, wall: float) -> str:
    diagnosis = wait.diagnosis
    title = _claim(wait.namespace, wait.claim) if wait.claim else _named(wait.namespace, wait.pod)
    below = f"pod {wait.pod}" if wait.claim and wait.pod else f"its claim {wait.pod_claim}" if wait.pod_claim else ""
    evidence = "".join(f'<p class="soft">{escape(line)}</p>' for line in diagnosis.evidence[:_EVIDENCE])
    if len(diagnosis.evidence) > _EVIDENCE:
        evidence += f'<p class="soft">and {len(diagnosis.evidence) - _EVIDENCE} more</p>'
    return (
        "<tr>"
        + f'<td class="who">{title}{_below(below)}</td>'
        + cell(_tag(diagnosis.reason.value, "soft" if diagnosis.reason in _UNDER_WAY else "bad")
               + _below(wait.deviceclass))
        + cell(duration_text(_since(wall, wait.since_wall)), numeric=True)
        + f'<td class="text"><p>{escape(diagnosis.summary)}</p>{evidence}</td>'
        + f'<td class="text">{escape(diagnosis.cure) or "–"}</td>'
        + "</tr>"
    )  # fmt: skip


def _waiting(snapshot: ClusterSnapshot, wall: float) -> str:
    # What the cluster is at work on comes after what stands still; then the longest first.
    waits = sorted(
        snapshot.waits,
        key=lambda wait: (
            wait.diagnosis.reason in _UNDER_WAY, wait.since_wall if wait.since_wall is not None else wall
        ),
    )
    columns = (("Claim", False), ("Cause", False), ("Waits for", True), ("What was found", False),
               ("What to do", False))  # fmt: skip
    rows = [_wait_row(wait, wall) for wait in waits[:ROWS]]
    reasons = Counter(wait.diagnosis.reason.value for wait in waits)
    counts = " · ".join(f"{count} {_words(reason)}" for reason, count in reasons.most_common())
    return (
        f"<h2>Waiting <small>{counts}</small></h2>"
        + table(columns, rows, "No claim that a pod needs is waiting.")
        + _more(ROWS, len(waits), "/api/v1/waits")
    )


def _idle_rows(views: Sequence[ClaimView], wall: float) -> list[str]:
    rows = []
    for view in views[:ROWS]:
        doing = "leaked" if view.leaked else view.doing.value if view.doing is not None else ""
        normal = not view.leaked and view.doing in _NORMAL
        workload = f"{view.workload.kind} {view.workload.name}".strip()
        rows.append(
            "<tr>"
            + f'<td class="who">{_claim(view.namespace, view.name)}{_below(view.deviceclass)}</td>'
            + cell(_tag(doing, "soft" if normal else "warn"))
            + cell(duration_text(_since(wall, view.doing_since_wall or view.allocated_wall)), numeric=True)
            + cell(str(len(view.devices)), numeric=True)
            + cell(escape(", ".join(view.pods[:3])) or "–")
            + cell(escape(workload) or "–")
            + "</tr>"
        )
    return rows


def _idle(snapshot: ClusterSnapshot, wall: float) -> str:
    views = [view for view in snapshot.claims.values() if view.leaked or view.doing is not None]
    views.sort(key=lambda view: (not view.leaked and view.doing in _NORMAL,
                                 view.doing_since_wall or view.allocated_wall or wall))  # fmt: skip
    columns = (("Claim", False), ("Instead", False), ("For", True), ("Devices", True), ("Pods", False),
               ("Workload", False))  # fmt: skip
    return (
        "<h2>Held, not running <small>devices that are taken and do no work</small></h2>"
        + table(columns, _idle_rows(views, wall), "Every claim that holds devices runs.")
        + _more(ROWS, len(views), "/api/v1/claims")
    )


def _stack(states: Mapping[str, float]) -> str:
    total = sum(states.values())
    at, parts = 0.0, []
    for state in _DEVICE_STATES:
        width = 1000 * states.get(state, 0.0) / total if total else 0.0
        if width:
            title = f"<title>{states[state]:.0f} {state}</title>"
            parts.append(f'<rect class="{state}" x="{at:.1f}" width="{width:.1f}" height="10">{title}</rect>')
            at += width
    return f'<svg class="stack" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img">{"".join(parts)}</svg>'


def _quantile(histogram: Histogram, ratio: float) -> str:
    """The bucket that a quantile falls into, as an upper bound."""
    wanted, seen = ratio * sum(histogram.counts), 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        seen += count
        if seen >= wanted:
            return f"≤ {bound:g} s" if bound < 60 else f"≤ {duration_text(bound)}"
    return f"> {duration_text(histogram.bounds[-1])}" if histogram.bounds else "–"


def classes_of(index: _Index) -> dict[str, dict[str, float]]:
    """Devices by class and state, over all pools."""
    classes: dict[str, dict[str, float]] = {}
    for labels, value in index.rows("dra_pool_devices"):
        states = classes.setdefault(labels["deviceclass"], {})
        states[labels["state"]] = states.get(labels["state"], 0.0) + value
    return classes


def _capacity(index: _Index) -> str:
    largest = {labels["deviceclass"]: value for labels, value in index.rows("dra_class_largest_claim_devices")}
    ready = {labels["deviceclass"]: made
             for labels, made in index.histograms("dra_claim_ready_duration_seconds") if sum(made.counts)}  # fmt: skip
    rows = []
    for name, states in sorted(classes_of(index).items()):
        out = sum(states.get(state, 0.0) for state in ("tainted", "unhealthy"))
        waited = ready.get(name)
        rows.append(
            "<tr>"
            + cell(f'<span class="name">{escape(name) or "no class matches"}</span>')
            + cell(_stack(states))
            + cell(f"{sum(states.values()):.0f}", numeric=True)
            + cell(f"{states.get('allocated', 0.0):.0f}", numeric=True)
            + cell(f"{states.get('free', 0.0):.0f}", numeric=True)
            + cell(f'<span class="bad">{out:.0f}</span>' if out else "0", numeric=True)
            + cell(f"{largest[name]:.0f}" if name in largest else "–", numeric=True)
            + cell(f"{_quantile(waited, 0.5)} · {_quantile(waited, 0.95)}" if waited else "–", numeric=True)
            + "</tr>"
        )
    columns = (("Device class", False), ("Devices", False), ("All", True), ("Allocated", True), ("Free", True),
               ("Out of use", True), ("Largest claim that fits", True), ("Ready within: half · 95 %", True))
    legend = "".join(
        f'<span><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{state}" width="10" height="10" rx="2"/>'
        f"</svg>{state}</span>" for state in _DEVICE_STATES
    )  # fmt: skip
    return (
        "<h2>Capacity <small>published devices by class; a device counts in every class that it matches</small></h2>"
        + table(columns, rows, "No driver publishes devices (there are no ResourceSlices).")
        + (f'<div class="legend">{legend}</div>' if rows else "")
    )


def _phases(index: _Index) -> str:
    found: dict[str, dict[str, Histogram]] = {}
    for labels, made in index.histograms("dra_allocation_duration_seconds"):
        if sum(made.counts):
            found.setdefault(labels["deviceclass"], {})[labels["phase"]] = made
    if not found:
        return ""
    rows = [
        f'<tr>{cell(f"<span class=name>{escape(name)}</span>")}'
        + "".join(
            cell(f"{_quantile(phases[phase.value], 0.5)} · {_quantile(phases[phase.value], 0.95)}"
                 if phase.value in phases else "–", numeric=True)
            for phase in Phase
        )
        + "</tr>"
        for name, phases in sorted(found.items())
    ]  # fmt: skip
    columns = (("Device class", False), *((phase.value.capitalize(), True) for phase in Phase))
    return "<h2>Phases of allocation <small>half within · 95 % within</small></h2>" + table(columns, rows, "")


def _taints(index: _Index) -> str:
    devices: Counter[tuple[str, str, str, str]] = Counter()
    nodes: dict[tuple[str, str, str, str], set[str]] = {}
    for labels, _ in index.rows("dra_device_taint_info"):
        key = (labels["key"], labels["value"], labels["effect"], labels["rule"])
        devices[key] += 1
        nodes.setdefault(key, set()).add(labels["node"])
    rows = []
    for key, count in islice(devices.most_common(), _TAINT_ROWS):
        name, value, effect, rule = key
        some = sorted(node for node in nodes[key] if node)
        shown = ", ".join(some[:4]) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
        rows.append(
            "<tr>"
            + cell(f'<span class="name">{escape(name)}</span>' + _below(value))
            + cell(_tag(effect, "soft" if effect == "None" else "warn"))
            + cell(f"rule {escape(rule)}" if rule else "the driver")
            + cell(str(count), numeric=True)
            + cell(escape(shown) or "–")
            + "</tr>"
        )
    columns = (("Taint", False), ("Effect", False), ("Set by", False), ("Devices", True), ("Nodes", False))
    more = f'<div class="more">{len(devices) - _TAINT_ROWS} more</div>' if len(devices) > _TAINT_ROWS else ""
    return (
        "<h2>Taints of devices <small>everybody's</small></h2>" + table(columns, rows, "No device is tainted.") + more
    )


def _migration(index: _Index) -> str:
    pods: dict[str, Counter[str]] = {}
    devices: dict[str, Counter[str]] = {}
    for family, into in (("dra_migration_pods", pods), ("dra_migration_devices", devices)):
        for labels, value in index.rows(family):
            into.setdefault(labels["namespace"], Counter())[labels["kind"]] += int(value)
    ordered = sorted(pods, key=lambda name: -sum(pods[name].values()))
    rows = [
        f'<tr>{cell(f"<span class=name>{escape(name)}</span>")}'
        + "".join(
            cell(f"{pods[name][kind]} <span class=soft>({devices.get(name, Counter())[kind]})</span>"
                 if pods[name][kind] else "–", numeric=True)
            for kind in _KINDS
        )
        + "</tr>"
        for name in ordered[:ROWS]
    ]  # fmt: skip
    twice = [(labels["node"], value) for labels, value in index.rows("dra_node_devices_advertised_twice") if value]
    note = ""
    if twice:
        some = ", ".join(f"{escape(node)} ({value:.0f})" for node, value in sorted(twice)[:8])
        note = (
            '<div class="card note"><strong class="bad">Devices offered twice</strong>, by a device plugin and by '
            f"DRA: {some}</div>"
        )
    columns = (("Namespace", False), *((_words(kind), True) for kind in _KINDS))
    return (
        "<h2>From device plugin to DRA <small>pods (devices) by how they ask</small></h2>" + note
        + table(columns, rows, "No pod uses an accelerator.")
        + (f'<div class="more">{len(ordered) - ROWS} more namespaces</div>' if len(ordered) > ROWS else "")
    )  # fmt: skip


def _tile(figure: str, about: str, tone: str = "") -> str:
    return f'<div class="card tile"><b class="{tone}">{figure}</b><span>{about}</span></div>'


def _tiles(snapshot: ClusterSnapshot, index: _Index, wall: float) -> str:
    states = Counter(view.state for view in snapshot.claims.values())
    stuck = [wait for wait in snapshot.waits if wait.diagnosis.reason not in _UNDER_WAY]
    longest = max((_since(wall, wait.since_wall) or 0.0 for wait in stuck), default=None)
    idle = sum(1 for view in snapshot.claims.values()
               if view.leaked or (view.doing is not None and view.doing not in _NORMAL))  # fmt: skip
    unreferenced = sum(
        1 for view in snapshot.claims.values() if view.state is ClaimState.PENDING and view.referenced is False
    )
    sick = sum(1 for gpu in snapshot.sick if gpu.severity != "degraded")
    violations = sum(value for _, value in index.rows("dra_constraint_violations_total"))
    return (
        '<div class="tiles">'
        + _tile(str(len(stuck)), f"stuck, longest {duration_text(longest)}" if stuck else "stuck",
                "bad" if stuck else "good")
        + _tile(str(len(snapshot.waits) - len(stuck)), "on their way")
        + _tile(str(states[ClaimState.RUNNING]), f"running, of {states.total() - states[ClaimState.DELETED]} claims")
        + _tile(str(idle), "hold devices and do no work", "warn" if idle else "good")
        + _tile(str(unreferenced), "pending, wanted by no pod")
        + _tile(str(sick), "GPUs lost or unhealthy", "bad" if sick else "good")
        + _tile(f"{violations:.0f}", "constraint violations since the start", "warn" if violations else "good")
        + "</div>"
    )  # fmt: skip


def page_body(snapshot: ClusterSnapshot, hidden: str) -> str:
    """What the page tells of a cluster that has been read; `hidden` says what is left out."""
    wall = snapshot.wall_ns / 1e9
    index = _Index(snapshot.samples)
    return (
        (f'<div class="card note">{escape(hidden)} are left out.</div>' if hidden else "")
        + _tiles(snapshot, index, wall) + health_part(snapshot) + _taints(index) + _waiting(snapshot, wall)
        + _capacity(index) + _idle(snapshot, wall) + _phases(index) + _migration(index)
    )  # fmt: skip


def render_page(
    *, snapshot: ClusterSnapshot | None, body: str, leader: str | None, version: str, failing: Sequence[str],
    refresh: bool,
) -> str:
    """The whole page around a `page_body`; `failing` are the readiness checks that do not hold."""
    facts = []
    if snapshot is None:
        facts.append("The controller has only just started and has nothing to show yet.")
    else:
        facts.append("as of " + time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(snapshot.wall_ns / 1e9)))
        if not snapshot.leading:
            facts.append(f"this replica stands by; {leader} leads" if leader else "this replica stands by")
        elif not snapshot.complete:
            facts.append("the cluster is still being read")
    note = ""
    if failing:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in failing)
        note = f'<div class="card note"><strong class="bad">Not ready</strong><ul>{items}</ul></div>'
    toggle = '<a href="/">stop refreshing</a>' if refresh else '<a href="/?refresh=on">refresh every 5 s</a>'
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        + ('<meta http-equiv="refresh" content="5">' if refresh else "")
        + f"<title>claimscope controller</title><style>{_STYLE}</style></head><body><main><header><h1>claimscope</h1>"
        f'<span>cluster</span><span class="soft">{escape(" · ".join(facts))}</span><nav><a href="/metrics">metrics</a>'
        '<a href="/readyz">readiness</a><a href="/livez">liveness</a><a href="/api/v1/claims">claims (JSON)</a>'
        '<a href="/api/v1/waits">waits (JSON)</a><a href="/api/v1/health">health (JSON)</a>'
        f'<a href="/api/v1/capacity">capacity (JSON)</a>{toggle}</nav></header>'
        f"{note}{body}<footer>claimscope controller {escape(version)} · "
        "<code>claimscope explain claim NS/NAME</code> tells more of one claim; /metrics has every figure."
        "</footer></main></body></html>\n"
    )
