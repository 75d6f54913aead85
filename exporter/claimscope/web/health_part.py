"""Which GPUs are sick, what is done about them and why is more not done? A part of the controller's page."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Final

from claimscope.model import Histogram
from claimscope.web.html import cell, duration_text, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claimscope.claims.model import ClusterSnapshot, SickGpu

SEVERITIES: Final = ("lost", "unhealthy", "degraded")
_ROWS: Final = 8
_WHERE: Final = "/api/v1/health"
_TONES: Final = {"lost": "bad", "unhealthy": "bad"}
_COLUMNS: Final = (
    ("GPU", False), ("State", False), ("Found", False), ("For", True), ("Taint", False), ("Held back", False),
)  # fmt: skip


def health_part(snapshot: ClusterSnapshot) -> str:
    """The heading with counts, and the worst GPUs."""
    wall = snapshot.wall_ns / 1e9
    rows = [_row(gpu, wall) for gpu in snapshot.sick[:_ROWS]]
    left = len(snapshot.sick) - len(rows)
    more = f'<div class="more">{left} more: <a href="{_WHERE}">{_WHERE}</a></div>' if left else ""
    return (
        f"<h2>Health and taints <small>{' · '.join(_counts(snapshot))}</small></h2>"
        + table(_COLUMNS, rows, "No agent has found anything against a GPU.")
        + more
    )


def _counts(snapshot: ClusterSnapshot) -> Iterator[str]:
    """GPUs by state, what is held back by reason, and what keeps all of fencing back."""
    states = Counter(gpu.severity for gpu in snapshot.sick)
    yield from (f"{states[each]} {each}" for each in SEVERITIES if states[each] or each != "degraded")
    held = [(label, count) for label, count in _values(snapshot, "dra_taint_held", "reason") if count]
    if held:
        yield "held back: " + ", ".join(f"{count:.0f} {_words(reason)}" for reason, count in held)
    for state, count in _values(snapshot, "dra_gpu_nodes", "agent"):
        if state != "heard" and count:
            yield f"{count:.0f} agent{'s' if count > 1 else ''} {escape(state)}"
    for state, value in _values(snapshot, "claimscope_controller_taint_breaker_state", "state"):
        if value and state != "closed":
            yield f"breaker {_words(state)}"
    for mode, _ in _values(snapshot, "claimscope_controller_taint_mode_info", "mode"):
        yield f"mode {escape(mode)}"
    if any(value for _, value in _values(snapshot, "claimscope_controller_taint_paused", "")):
        yield "paused"


def _values(snapshot: ClusterSnapshot, family: str, label: str) -> Iterator[tuple[str, float]]:
    for each in (*snapshot.samples, *snapshot.own):
        if each.family == family and not isinstance(each, Histogram):
            yield dict(each.labels).get(label, ""), each.value


def _words(value: str) -> str:
    return escape(value.replace("_", " "))


def _row(gpu: SickGpu, wall: float) -> str:
    since = None if gpu.since_wall is None else max(0.0, wall - gpu.since_wall)
    tone = "soft" if gpu.effect in ("", "None") else "warn"
    return (
        "<tr>"
        + f'<td class="who"><span class="name small">{escape(gpu.uuid)}</span>'
        + f'<br><span class="soft small">{escape(gpu.node)}</span></td>'
        + cell(f'<span class="tag {_TONES.get(gpu.severity, "warn")}">{escape(gpu.severity)}</span>')
        + cell(", ".join(map(_words, gpu.rules[:4])) + (" …" if len(gpu.rules) > 4 else ""))
        + cell(duration_text(since), numeric=True)
        + cell(f'<span class="tag {tone}">{escape(gpu.effect)}</span>' if gpu.effect else "–")
        + f'<td class="text">{escape(gpu.held) or "–"}</td>'
        + "</tr>"
    )  # fmt: skip
