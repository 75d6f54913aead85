"""Does what speaks against a device become a finding at once, or is the driver asked first?

The driver's recovery action goes before the tables of codes: an error is held back for a while until it is read. An
action confirms the finding at once, none at the end of the wait makes it milder, silence confirms it.
"""

from __future__ import annotations

from claimscope.health import track as tracks
from claimscope.health.events import Charge
from claimscope.health.ledger import Ledger
from claimscope.health.model import Holds, Judgement, RuleState, Severity
from claimscope.health.rules import Rule
from claimscope.health.slot import Slot
from claimscope.health.track import Track, Waiting
from claimscope.model import Missing, Window


def charge(ledger: Ledger, slot: Slot, charged: Charge, code: int | None) -> None:
    """Something speaks for a rule: an XID where there is a code, else another event."""
    track, rule = slot.tracks.get(charged.rule), ledger.rules.get(charged.rule)
    if track is None or rule is None:
        return
    slot.shown = None
    if track.stands:
        ledger.again(slot, rule, track, charged.judgement, code)
    elif charged.judgement.provisional and _readable(slot):
        wait(ledger, slot, rule, track, charged.judgement)
        if code is not None:
            tracks.with_code(track, code)
    else:
        slot.waiting.discard(charged.rule)
        ledger.fire(slot, rule, track, charged.judgement, (code,) if code is not None else ())


def wait(ledger: Ledger, slot: Slot, rule: Rule, track: Track, judged: Judgement) -> None:
    """Holds a finding back until the driver has said what it wants, or its time is over."""
    if track.waiting is not None:
        return
    wait_ns = round(ledger.thresholds["verdict_wait_seconds"] * 1e9)
    track.waiting = Waiting(
        since_ns=ledger.now_ns, until_ns=ledger.now_ns + wait_ns, evidence=dict(judged.evidence),
        severity=judged.severity or rule.severity,
    )  # fmt: skip
    track.state = RuleState.PENDING
    track.codes = []
    slot.waiting.add(rule.key)


def hear(ledger: Ledger, slot: Slot, window: Window | None) -> None:
    """Decides what is held back, as far as it can be: by a new window, or by time alone."""
    for key in sorted(slot.waiting):
        track, rule = slot.tracks[key], ledger.rules[key]
        waiting = track.waiting
        if waiting is None:
            slot.waiting.discard(key)
            continue
        if window is not None and window.end_ns > waiting.since_ns:
            action = window.text.get("recovery_action")
            if action is None:
                waiting.said_none = False
                if window.missing.get("recovery_action") is Missing.UNSUPPORTED:
                    _decide(ledger, slot, rule, track, waiting, milder=False)
                    continue
            elif action != "none":
                waiting.evidence = {**waiting.evidence, "recovery_action": action}
                _decide(ledger, slot, rule, track, waiting, milder=False)
                continue
            else:
                waiting.said_none = True
        if ledger.now_ns >= waiting.until_ns:
            _decide(ledger, slot, rule, track, waiting, milder=waiting.said_none)


def _decide(ledger: Ledger, slot: Slot, rule: Rule, track: Track, waiting: Waiting, *, milder: bool) -> None:
    slot.waiting.discard(rule.key)
    codes, track.waiting = track.codes, None
    if not milder:
        judged = Judgement(holds=Holds.YES, evidence=waiting.evidence, severity=waiting.severity)
        ledger.fire(slot, rule, track, judged, codes)
        return
    evidence = {**waiting.evidence, "recovery_action": "none"}
    judged = Judgement(holds=Holds.YES, evidence=evidence, severity=Severity.DEGRADED)
    if rule.milder is None:
        ledger.fire(slot, rule, track, judged, codes)
        return
    track.state, track.codes = RuleState.OK, []
    charge(ledger, slot, Charge(rule=rule.milder, judgement=judged), codes[0] if codes else None)


def _readable(slot: Slot) -> bool:
    window = slot.window
    return window is None or window.missing.get("recovery_action") is not Missing.UNSUPPORTED
