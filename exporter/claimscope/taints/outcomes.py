"""What came of reads and writes: how many of each, which failures are news, and is the server to be left alone?"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from claimscope.clock import Clock
from claimscope.kube.api import ApiError, ApiReason

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS_MAX: Final = 60.0  # of what a server asks for; what stands stays meanwhile


@dataclass(slots=True)
class Outcomes:
    """Of one leadership. Each kind of failure is said once, and when it is over."""

    clock: Clock
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (verb, result)
    _present: set[tuple[str, ApiReason]] = field(default_factory=set)
    _round: set[tuple[str, ApiReason]] = field(default_factory=set)
    _tried: set[str] = field(default_factory=set)
    _wait_until_ns: int = 0

    def succeeded(self, verb: str) -> None:
        """Notes a success."""
        self.counts[verb, "ok"] += 1
        self._tried.add(verb)

    def failed(self, verb: str, error: ApiError) -> None:
        """Notes a failure."""
        if error.retry_after_seconds:
            seconds = min(error.retry_after_seconds, RETRY_AFTER_SECONDS_MAX)
            self._wait_until_ns = self.clock.monotonic_ns() + round(seconds * 1e9)
        self.counts[verb, error.reason.value] += 1
        self._tried.add(verb)
        if (verb, error.reason) not in self._present | self._round:
            log.warning("fencing: %s failed, and is tried again: %s", verb, error)
        self._round.add((verb, error.reason))

    def waits(self) -> bool:
        """Whether the server asked to be left alone for now."""
        return self.clock.monotonic_ns() < self._wait_until_ns

    def round_over(self) -> None:
        """Says what works again."""
        untried = {each for each in self._present if each[0] not in self._tried}
        over = {each for each in self._present - self._round if each[0] in self._tried}
        for verb in {verb for verb, _ in over} - {verb for verb, _ in self._round}:
            log.info("fencing: %s works again", verb)
        self._present, self._round, self._tried = untried | self._round, set(), set()
