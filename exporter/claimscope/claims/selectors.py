"""Which devices does a CEL selector choose, and what does it fail on?

`Selectors` remembers every answer by the expression and by what the expression looks at on a device, so that thousands
of alike devices cost one evaluation. What is not known yet is UNKNOWN until `settle()` has asked a worker process;
`Selectors.in_process()` asks at once.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from claimscope.cel.evaluator import INSTALL, Answer, Content, Evaluator, Outcome, Verdict, available, content
from claimscope.cel.process import WorkerProcess
from claimscope.cel.tree import Uses
from claimscope.claims.model import DeviceFacts, DeviceKey
from claimscope.metrics.controller import own
from claimscope.model import Sample

__all__ = ["Engine", "Match", "Selectors", "Verdict", "cure"]

_BATCH: Final = 500  # evaluations, so that a batch takes milliseconds
_KEPT_ROUNDS: Final = 3600  # settlements, about an hour, after which what nobody asked for is forgotten
_KEPT_ANSWERS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Match:
    """What a selector says of a device; text says why where it is ERROR or UNKNOWN."""

    verdict: Verdict
    text: str = ""


_MATCH: Final = Match(Verdict.MATCH)
_NO_MATCH: Final = Match(Verdict.NO_MATCH)
_NOT_YET: Final = Match(Verdict.UNKNOWN, "not evaluated yet")


class Engine(Protocol):
    """Whoever evaluates: this process, the worker process, or nobody."""

    @property
    def up(self) -> bool:
        """Whether expressions can be evaluated at all."""

    @property
    def restarts(self) -> Counter[str]:
        """How often the evaluating process was replaced, by reason."""

    def evaluate(self, expression: str, devices: Sequence[Content]) -> Answer:
        """What `expression` says of each device; may block for seconds."""

    def close(self) -> None:
        """Ends what runs, at once."""


class _InProcess:
    def __init__(self) -> None:
        self._evaluator = Evaluator()
        self.up = True
        self.restarts: Counter[str] = Counter()

    def evaluate(self, expression: str, devices: Sequence[Content]) -> Answer:
        return self._evaluator.evaluate(expression, devices)

    def close(self) -> None:
        pass


class Absent:
    """Stands in where the engine is not installed."""

    def __init__(self) -> None:
        self.up = False
        self.restarts: Counter[str] = Counter()

    def evaluate(self, expression: str, devices: Sequence[Content]) -> Answer:
        """Nothing but what to install."""
        return Answer(problem=INSTALL)

    def close(self) -> None:
        """Nothing runs."""


@dataclass(slots=True)
class _Entry:
    """What is known of one expression."""

    asked: int
    uses: Uses | None = None
    look: tuple[tuple[str, str, str], ...] = ()  # as published, domain, bare name of each attribute
    look_capacity: tuple[tuple[str, str, str], ...] = ()
    problem: Match | None = None  # no answer for any device
    passing: bool = False  # the problem may be gone when asked again
    young: dict[Hashable, Match] = field(default_factory=dict)
    old: dict[Hashable, Match] = field(default_factory=dict)
    open: dict[Hashable, DeviceFacts] = field(default_factory=dict)  # asked for, by projection
    unread: dict[DeviceKey, DeviceFacts] = field(default_factory=dict)  # asked for before `uses` was known

    def learn(self, answer: Answer) -> None:
        if answer.uses is None:
            self.problem = Match(Verdict.UNKNOWN, answer.problem)
            self.passing = answer.passing
            self.open.clear()
            self.unread.clear()
            return
        self.uses = answer.uses
        self.look = tuple((f"{domain}/{name}", domain, name) for domain, name in answer.uses.attributes)
        self.look_capacity = tuple((f"{domain}/{name}", domain, name) for domain, name in answer.uses.capacity)
        for device in self.unread.values():
            self.open.setdefault(self.projection(device), device)
        self.unread.clear()

    def projection(self, device: DeviceFacts) -> Hashable:
        """What the expression can see of a device: the same for devices that get the same answer."""
        driver = device.key.driver
        shared = device.shared
        attributes, capacity = device.attributes, device.capacity
        if self.uses is None or self.uses.whole:
            values = attributes.values()
            amounts = tuple(amount.value for amount in capacity.values())
            return driver, shared, tuple(attributes), tuple(values), tuple(map(type, values)), tuple(capacity), amounts
        seen: list[Hashable] = [driver, shared if self.uses.shared else None]
        for published, domain, name in self.look:
            value = attributes.get(published)
            if value is None and domain == driver:
                value = attributes.get(name)
            # A version equals the text that it is written as, and True equals 1: the type keeps them apart.
            seen.append(value)
            seen.append(type(value).__name__)
        for published, domain, name in self.look_capacity:
            amount = capacity.get(published)
            if amount is None and domain == driver:
                amount = capacity.get(name)
            seen.append(amount.value if amount is not None else None)
        return tuple(seen)


class Selectors:
    """Answers whether devices match; see the module. Not for use from several threads at once."""

    def __init__(
        self, engine: Engine | None = None, *, direct: bool = False, kept_rounds: int = _KEPT_ROUNDS
    ) -> None:
        self._engine: Engine = engine if engine is not None else (WorkerProcess() if available() else Absent())
        self._direct = direct
        self._kept_rounds = kept_rounds
        self._entries: dict[str, _Entry] = {}
        self._round = 0
        self._answers = 0
        self._news = 0
        self._settling = asyncio.Lock()
        self._results: Counter[Verdict] = Counter()

    @classmethod
    def in_process(cls) -> Selectors:
        """Evaluates in match(), in this process; for short-lived programs, since the engine leaks."""
        return cls(_InProcess() if available() else Absent(), direct=True)

    def match(self, expression: str, device: DeviceFacts) -> Match:
        """What `expression` says of `device`, as far as it is known."""
        entry = self._entries.get(expression)
        if entry is None:
            entry = self._entries[expression] = _Entry(self._round)
            if self._direct:
                self._learn(entry, self._engine.evaluate(expression, ()))
        entry.asked = self._round
        if entry.problem is not None and not entry.passing:
            return entry.problem
        if entry.uses is None:
            entry.unread[device.key] = device
            return entry.problem or _NOT_YET
        key = entry.projection(device)
        known = entry.young.get(key)
        if known is not None:
            return known
        known = entry.old.pop(key, None)
        if known is not None:
            entry.young[key] = known
            return known
        if self._direct:
            self._take(entry, (key,), self._engine.evaluate(expression, (content(device),)))
            return entry.young.get(key) or entry.problem or _NOT_YET
        entry.open[key] = device
        return entry.problem or _NOT_YET

    def matches_all(self, expressions: Iterable[str], device: DeviceFacts) -> Match:
        """The first verdict that is not MATCH, or MATCH: selectors are ANDed in their order."""
        result = _MATCH
        for expression in expressions:
            found = self.match(expression, device)
            if result is not _MATCH:
                continue  # the first is not known yet: the others are asked for only to be settled with it
            if found is _NOT_YET:
                result = found
            elif found.verdict is not Verdict.MATCH:
                return found
        return result

    async def settle(self) -> bool:
        """Has what match() left open evaluated; True where there are answers that were not there when it was called.

        Call it once a publish. A second caller waits for the first, and then for what is still open.
        """
        before = self._news
        async with self._settling:
            for expression, entry in list(self._entries.items()):
                if entry.unread or entry.open:
                    await self._evaluate(expression, entry)
                if entry.passing and not self._engine.up:
                    break  # one attempt a round is enough to see that the engine is back
            self._forget()
        return self._news != before

    async def _evaluate(self, expression: str, entry: _Entry) -> None:
        before, entry.problem, entry.passing = entry.problem, None, False
        if entry.uses is None:
            self._learn(entry, await asyncio.to_thread(self._engine.evaluate, expression, ()))
        while entry.open and entry.problem is None:
            batch = dict(list(entry.open.items())[:_BATCH])
            answer = await asyncio.to_thread(
                self._engine.evaluate, expression, [content(device) for device in batch.values()]
            )
            for key in batch:
                entry.open.pop(key, None)
            self._take(entry, tuple(batch), answer)
            self._news += entry.problem is None
        self._news += entry.problem != before

    def _learn(self, entry: _Entry, answer: Answer) -> None:
        entry.learn(answer)
        self._results[Verdict.UNKNOWN] += answer.uses is None

    def _take(self, entry: _Entry, keys: Sequence[Hashable], answer: Answer) -> None:
        if answer.uses is None:
            self._learn(entry, answer)
            return
        if self._answers >= _KEPT_ANSWERS:
            self._age()
        self._answers += len(keys)
        for key, outcome in zip(keys, answer.outcomes, strict=True):
            self._results[outcome.verdict] += 1
            entry.young[key] = _interned(outcome)

    def _forget(self) -> None:
        self._round += 1
        if self._round % self._kept_rounds == 0:
            self._age()

    def _age(self) -> None:
        """Forgets what was not asked for since the last time."""
        self._answers = 0
        for expression, entry in list(self._entries.items()):
            if entry.asked < self._round - self._kept_rounds:
                del self._entries[expression]
                continue
            entry.old, entry.young = entry.young, {}

    def close(self) -> None:
        """Ends the worker process, at once."""
        self._engine.close()

    def counters(self) -> list[Sample]:
        """The families selector_*."""
        return [
            own("selector_engine_up", float(self._engine.up)),
            *(own("selector_evaluations_total", float(self._results[verdict]), verdict.value) for verdict in Verdict),
            *(
                own("selector_worker_restarts_total", float(self._engine.restarts[reason]), reason)
                for reason in ("crashed", "recycled", "timed_out")
            ),
        ]


def _interned(outcome: Outcome) -> Match:
    match outcome.verdict:
        case Verdict.MATCH:
            return _MATCH
        case Verdict.NO_MATCH:
            return _NO_MATCH
        case verdict:
            return Match(verdict, outcome.text)


_ATTRIBUTE: Final = (
    r"""device\s*\.\s*(?P<kind>attributes|capacity)\s*\[\s*(?P<quote>["'])(?P<domain>[^"']+)(?P=quote)\s*\]"""
)
_VERSION_IS_TEXT: Final = re.compile(
    rf"(?P<version>{_ATTRIBUTE}\s*\.\s*\w+|\w+\s*\.\s*\w+)\s*==\s*"
    r"""(?P<mark>["'])(?P<text>v?\d+(?:\.\d+)*[^"']*)(?P=mark)"""
)


def cure(expression: str, error_text: str) -> str:
    """What to write instead of an expression that failed so; "" where nothing is known that helps."""
    missing = re.search(r"no such key: (\S+)", error_text)
    if missing is not None:
        return _cure_missing(expression, missing[1])
    if "no such overload" in error_text:
        return _cure_overload(expression)
    if "could not be converted to bool" in error_text:
        return "compare the attribute with a value: the expression must give true or false"
    return ""


def _cure_missing(expression: str, name: str) -> str:
    direct = re.search(rf"{_ATTRIBUTE}\s*\.\s*{re.escape(name)}\b", expression)
    found = direct or re.search(_ATTRIBUTE, expression)
    kind, domain = (found["kind"], found["domain"]) if found is not None else ("attributes", "<domain>")
    return f'some devices have no {name}; write has(device.{kind}["{domain}"].{name}) && {expression.strip()}'


def _cure_overload(expression: str) -> str:
    found = _VERSION_IS_TEXT.search(expression)
    if found is not None:
        text = found["text"]
        exact = re.fullmatch(r"\d+\.\d+\.\d+(?:[-+].*)?", text) is not None
        wanted = f'semver("{text}")' if exact else f'semver("{text}", true)'
        return f"a version cannot be compared with a string; write {found['version']} == {wanted}"
    return 'compare values of one type; a version is compared with semver("1.2.3"), a capacity with quantity("1Gi")'
