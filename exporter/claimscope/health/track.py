"""Where does one rule stand on one device, and what does one more judgement change about that?

Time is what was observed: a look adds the length of its window, and a gap adds nothing, neither dirty nor clean.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from claimscope.health.model import Holds, Judgement, RuleState, Severity
from claimscope.health.rules import Minutes, Rule, Steady
from claimscope.health.thresholds import Thresholds

STANDING = frozenset({RuleState.FIRING, RuleState.CLEARING, RuleState.LATCHED})
_NEITHER = {Holds.UNKNOWN: RuleState.UNKNOWN, Holds.NOT_APPLICABLE: RuleState.NOT_APPLICABLE}
_CODES_SHOWN = 8
_CONCERNED = ("xid", "pod")  # by which events of one finding are told apart


class Waiting(msgspec.Struct, kw_only=True):
    """A finding to be, while the driver's own verdict is waited for."""

    since_ns: int
    until_ns: int
    severity: Severity
    evidence: dict[str, str]
    since_wall_ns: int = 0  # when it happened
    said_none: bool = False  # the driver was asked since, and wants nothing


class Track(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One rule on one device; also what the journal keeps of it. Monotonic times are of the machine's present boot."""

    state: RuleState = RuleState.OK
    severity: Severity = Severity.OK  # of the finding; it rises and never falls while the finding stands
    since_wall_ns: int = 0
    fired_ns: int = 0
    evidence: dict[str, str] = {}
    seen: bool = False  # Steady: it held in the last look
    dirty_seconds: float = 0.0
    worse_seconds: float = 0.0  # for how long it was worse than the finding says
    minutes: list[float] = []  # weights of the last observed minutes
    age_seconds: float = 0.0
    clean_seconds: float = 0.0
    ended_ns: list[int] = []  # when findings of the last day ended
    freed: bool = False  # what it does not survive has happened: it ends after a while of quiet
    flapping: bool = False
    systemic: bool = False
    codes: list[int] = []  # XIDs that it is about
    waiting: Waiting | None = None
    acknowledged: dict[str, str] | None = None  # evidence that somebody has taken note of

    @property
    def stands(self) -> bool:
        """It is a finding."""
        return self.state in STANDING

    @property
    def idle(self) -> bool:
        """There is nothing to remember."""
        return not (
            self.stands or self.seen or self.minutes or self.ended_ns or self.waiting or self.acknowledged is not None
        )


class Change(enum.Enum):
    """What people should hear of."""

    FIRED = "fired"
    LATCHED = "latched: it came and went too often"
    WORSE = "became worse"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The numbers of one rule, looked up once."""

    need: float  # seconds for Steady, minutes for Minutes, 0 for First
    of_minutes: int
    hold: float
    clean: float | None
    after_reset: float
    flapping_cycles: int
    flapping_ns: int
    clear_delay_max: float


def times_of(rule: Rule, thresholds: Thresholds) -> Times:
    """The numbers of a rule under these thresholds."""
    need, of_minutes = 0.0, 0
    match rule.window:
        case Steady(seconds):
            need = thresholds[seconds]
        case Minutes(name, of):
            need, of_minutes = thresholds[name], int(thresholds[of])
    return Times(
        need=need,
        of_minutes=of_minutes,
        hold=0.0 if rule.hold is None else thresholds[rule.hold],
        clean=None if rule.clean is None else thresholds[rule.clean],
        after_reset=thresholds["after_reset_clean_seconds"],
        flapping_cycles=int(thresholds["flapping_cycles"]),
        flapping_ns=round(thresholds["flapping_window_seconds"] * 1e9),
        clear_delay_max=thresholds["clear_delay_max_seconds"],
    )


def advance(
    track: Track, rule: Rule, times: Times, judged: Judgement, *, span: float, now_ns: int, wall_ns: int
) -> Change | None:
    """Takes one judgement about `span` seconds."""
    holds = judged.holds
    cannot_have = holds is Holds.NOT_APPLICABLE and judged.clean
    if holds in _NEITHER and not (track.stands and cannot_have):
        if not track.stands:
            track.state = _NEITHER[holds]
            if holds is Holds.NOT_APPLICABLE:
                _forget(track)
        return None
    if track.stands:
        track.age_seconds += span
        if holds is Holds.YES:
            return _dirty_again(track, rule, times, judged, span, now_ns)
        return _clean(track, times, judged, span, now_ns)
    if holds is Holds.NO:
        track.acknowledged = None
        track.seen, track.dirty_seconds = False, 0.0
        _minute(track, times, 0.0)
        track.state = RuleState.PENDING if any(track.minutes) else RuleState.OK
        if track.state is RuleState.OK:
            track.minutes = []
        return None
    if track.acknowledged is not None:
        if track.acknowledged == judged.evidence:
            track.state = RuleState.OK
            return None
        track.acknowledged = None
    if _enough(track, times, judged, span):
        return fire(track, rule, times, judged, now_ns=now_ns, wall_ns=wall_ns)
    track.state = RuleState.PENDING
    return None


def _minute(track: Track, times: Times, weight: float) -> None:
    if times.of_minutes and (weight or track.minutes):
        track.minutes = [*track.minutes, weight][-times.of_minutes :]


def _enough(track: Track, times: Times, judged: Judgement, span: float) -> bool:
    if times.of_minutes:
        _minute(track, times, judged.weight)
        return sum(track.minutes) >= times.need - 1e-9
    if times.need <= 0.0:
        return True
    if not track.seen:
        track.seen, track.dirty_seconds = True, 0.0
        return False
    track.dirty_seconds += span
    return track.dirty_seconds >= times.need


def _forget(track: Track) -> None:
    track.seen, track.dirty_seconds, track.worse_seconds, track.minutes = False, 0.0, 0.0, []


def fire(track: Track, rule: Rule, times: Times, judged: Judgement, *, now_ns: int, wall_ns: int) -> Change:
    """Makes it a finding."""
    track.ended_ns = [at for at in track.ended_ns if now_ns - at < times.flapping_ns]
    track.severity = judged.severity or rule.severity
    track.flapping = track.severity is not Severity.OK and len(track.ended_ns) >= times.flapping_cycles
    track.state = RuleState.LATCHED if rule.latches or track.flapping else RuleState.FIRING
    track.since_wall_ns, track.fired_ns = wall_ns, now_ns
    track.evidence = dict(judged.evidence)
    track.age_seconds = track.clean_seconds = 0.0
    track.freed = track.systemic = False
    track.codes = []
    track.waiting = None
    _forget(track)
    return Change.LATCHED if track.flapping else Change.FIRED


def _dirty_again(
    track: Track, rule: Rule, times: Times, judged: Judgement, span: float, now_ns: int
) -> Change | None:
    track.clean_seconds = 0.0
    track.freed = False
    track.state = RuleState.LATCHED if rule.latches or track.flapping else RuleState.FIRING
    severity = judged.severity or rule.severity
    if severity.rank <= track.severity.rank:
        track.worse_seconds = 0.0
        return None
    track.worse_seconds += span
    if track.worse_seconds < times.need * (60.0 if times.of_minutes else 1.0):
        return None
    track.worse_seconds = 0.0
    return _worsen(track, severity, judged, now_ns)


def _worsen(track: Track, severity: Severity, judged: Judgement, now_ns: int) -> Change:
    """What became worse may have another cause than what it shared with other devices."""
    track.severity, track.evidence = severity, dict(judged.evidence)
    track.fired_ns, track.systemic = now_ns, False
    return Change.WORSE


def _clean(track: Track, times: Times, judged: Judgement, span: float, now_ns: int) -> Change | None:
    track.worse_seconds = 0.0
    if track.state is RuleState.LATCHED:
        return None
    if not judged.clean:
        track.clean_seconds = 0.0
        return None
    if track.state is RuleState.FIRING:  # the first clean look: from here on time counts
        track.state = RuleState.CLEARING
        return None
    track.clean_seconds += span
    need = times.after_reset if track.freed else clear_delay(track, times, now_ns)
    if need is None or track.clean_seconds < need or (not track.freed and track.age_seconds < times.hold):
        return None
    end(track, now_ns)
    return Change.CLEARED


def clear_delay(track: Track, times: Times, now_ns: int) -> float | None:
    """How long all must be well: twice as long with each finding of the last day."""
    if times.clean is None:
        return None
    cycles = sum(1 for at in track.ended_ns if now_ns - at < times.flapping_ns)
    return min(times.clean * 2.0**cycles, max(times.clean, times.clear_delay_max))


def end(track: Track, now_ns: int) -> None:
    """It is no finding any more."""
    track.state = RuleState.OK
    track.ended_ns = [*track.ended_ns, now_ns][-100:]
    track.severity = Severity.OK
    track.evidence, track.codes, track.waiting = {}, [], None
    track.freed = track.flapping = track.systemic = False
    track.age_seconds = track.clean_seconds = 0.0
    _forget(track)


def free(track: Track) -> None:
    """What it does not survive has happened: from here on quiet ends it."""
    if track.stands:
        track.state, track.freed, track.flapping, track.clean_seconds = RuleState.CLEARING, True, False, 0.0


def again(track: Track, rule: Rule, judged: Judgement, code: int | None, *, now_ns: int) -> Change | None:
    """One more event speaks for a finding that stands."""
    track.clean_seconds = 0.0
    track.freed = False
    track.state = RuleState.LATCHED if rule.latches or track.flapping else RuleState.FIRING
    if code is not None:
        with_code(track, code)
    severity = judged.severity or rule.severity
    if severity.rank <= track.severity.rank:
        _note_newest(track, judged)
        return None
    return _worsen(track, severity, judged, now_ns)


def _note_newest(track: Track, judged: Judgement) -> None:
    """Beside the first event also the last one, as soon as another code or another pod is concerned."""
    known, told = track.evidence, judged.evidence
    if all(known.get(f"last_{key}", known.get(key)) == told.get(key) for key in _CONCERNED):
        return
    newest = {f"last_{key}": told[key] for key in (*_CONCERNED, "line") if key in told}
    track.evidence = {key: value for key, value in known.items() if not key.startswith("last_")} | newest


def with_code(track: Track, code: int) -> None:
    """Notes which XIDs a finding is about."""
    if code not in track.codes and len(track.codes) < _CODES_SHOWN:
        track.codes = [*track.codes, code]
        if len(track.codes) > 1:
            track.evidence = {**track.evidence, "xids": ", ".join(map(str, track.codes))}
