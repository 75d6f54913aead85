"""What do the pages of the agent and of the controller have in common: looks, tables, durations for people."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5c6b7d; --line: #dfe5ec; --paper: #f6f8fa; --card: #fff;
  --fill: #3b7dd8; --track: #e6ebf1; --good: #1a7f4b; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #97a5b5; --line: #2c3642; --paper: #12171d;
  --card: #1a2129; --fill: #5a9bf0; --track: #2a333e; --good: #4cc38a; --bad: #ff8a80; --warn: #e6b450; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 24px 20px 48px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; margin-bottom: 14px; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 17px; margin: 28px 0 10px; }
h2 small, .soft { color: var(--soft); font-weight: normal; }
nav { margin-left: auto; display: flex; flex-wrap: wrap; gap: 14px; }
a { color: var(--fill); text-decoration: none; } a:hover, a:focus { text-decoration: underline; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow-x: auto; }
.note { padding: 12px 16px; margin-bottom: 14px; border-left: 4px solid var(--bad); }
.note ul { margin: 6px 0 0; padding-left: 18px; } .empty { padding: 18px 16px; color: var(--soft); }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-size: 12px; font-weight: 600; color: var(--soft); padding: 10px 12px 8px;
  white-space: nowrap; border-bottom: 1px solid var(--line); }
td { padding: 9px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: 11.5px ui-monospace, "DejaVu Sans Mono", monospace; color: var(--soft); white-space: nowrap; }
.bar { white-space: nowrap; } .why { display: block; max-width: 190px; }
.part td:first-child { padding-left: 28px; }
.tag { font-size: 12px; border: 1px solid currentColor; border-radius: 9px; padding: 0 8px; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
svg { display: inline-block; width: 84px; height: 8px; margin-right: 8px; vertical-align: 1px; }
svg .track { fill: var(--track); } svg .fill { fill: var(--fill); }
footer { margin-top: 26px; color: var(--soft); font-size: 13px; }
"""


def content_security_policy(style: str) -> str:
    """Nothing but this very style sheet may run or load, should an escape ever be missed."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def duration_text(seconds: float | None) -> str:
    """A duration for a person: its two largest units."""
    if seconds is None:
        return "–"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def cell(text: str, numeric: bool = False) -> str:
    """One cell of a table; the text is HTML already."""
    return f'<td class="n">{text}</td>' if numeric else f"<td>{text}</td>"


def table(columns: Sequence[tuple[str, bool]], rows: Sequence[str], empty: str) -> str:
    """A table of titles (and whether they stand over numbers) and rows, or a line that says why there is none."""
    if not rows:
        return f'<div class="card empty">{escape(empty)}</div>'
    head = "".join(f'<th scope="col"{" class=n" if numeric else ""}>{escape(name)}</th>' for name, numeric in columns)
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
