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


def charge(ledger: Ledger, slot: Slot, charged: Charge, code: int | None, since_wall_ns: int) -> None:
    """Something speaks for a rule, since it happened: an XID where there is a code, else another event."""
    track, rule = slot.tracks.get(charged.rule), ledger.rules.get(charged.rule)
    if track is None or rule is None:
        return
    slot.shown = None
    if track.stands:
        ledger.again(slot, rule, track, charged.judgement, code)
    elif charged.judgement.provisional and _readable(ledger, slot):
        wait(ledger, slot, rule, track, charged.judgement, since_wall_ns)
        if code is not None:
            tracks.with_code(track, code)
    else:
        slot.waiting.discard(charged.rule)
        ledger.fire(slot, rule, track, charged.judgement, (code,) if code is not None else (), since_wall_ns)


def confirmed(rule: Rule, track: Track, judged: Judgement) -> bool:
    """A finding as bad as this one stands already, so that there is nothing to ask the driver."""
    return track.stands and (judged.severity or rule.severity).rank <= track.severity.rank


def speaker(ledger: Ledger, slot: Slot) -> Window | None:
    """The newest window in which the driver says what it wants: of a MIG device, that of its GPU."""
    parent = slot.device.entity.parent
    if parent is None:
        return slot.window
    whole = ledger.slots.get(parent)
    return whole.window if whole is not None else None


def wait(
    ledger: Ledger, slot: Slot, rule: Rule, track: Track, judged: Judgement, since_wall_ns: int
) -> None:
    """Holds a finding, or that it became worse, back until the driver has said what it wants or its time is over."""
    if track.waiting is not None:
        return
    wait_ns = round(ledger.thresholds["verdict_wait_seconds"] * 1e9)
    track.waiting = Waiting(
        since_ns=ledger.now_ns, until_ns=ledger.now_ns + wait_ns, since_wall_ns=since_wall_ns,
        evidence=dict(judged.evidence), severity=judged.severity or rule.severity,
    )  # fmt: skip
    if not track.stands:
        track.state, track.codes = RuleState.PENDING, []
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
    evidence = {**waiting.evidence, "recovery_action": "none"} if milder else waiting.evidence
    severity = Severity.DEGRADED if milder else waiting.severity
    judged = Judgement(holds=Holds.YES, evidence=evidence, severity=severity)
    if track.stands:
        ledger.again(slot, rule, track, judged, None)
    elif rule.milder is None or not milder:
        ledger.fire(slot, rule, track, judged, codes, waiting.since_wall_ns)
    else:
        track.state, track.codes = RuleState.OK, []
        charged = Charge(rule=rule.milder, judgement=judged)
        charge(ledger, slot, charged, codes[0] if codes else None, waiting.since_wall_ns)


def _readable(ledger: Ledger, slot: Slot) -> bool:
    window = speaker(ledger, slot)
    return window is None or window.missing.get("recovery_action") is not Missing.UNSUPPORTED
