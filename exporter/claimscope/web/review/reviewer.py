"""Who is a caller and what may they do, without asking the API server each time?

The times are controller-runtime's (pkg/metrics/filters/filters.go): whom a token belongs to holds for a minute, leave
for five minutes, a refusal for 30 s. Requests about the same share one review, and made-up tokens use up an allowance
of their own. While the API server is away a failure is remembered, and answers hold longer: monitoring must outlive it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError, ApiReason
from claimscope.kube.reviews import Caller, Deed, review_access, review_token
from claimscope.web.review.memory import Allowances, Recent, Standing, UnknownTokens

_log = logging.getLogger(__name__)

TOKEN_SECONDS: Final = 60.0
REFUSED_TOKEN_SECONDS: Final = 10.0
ALLOWED_SECONDS: Final = 300.0
DENIED_SECONDS: Final = 30.0
REVIEW_SECONDS: Final = 10.0  # for one review with its repetitions
PAUSES_SECONDS: Final = (0.5, 0.75, 1.125, 1.6875)  # between five attempts
TOKENS_KEPT: Final = 4_096  # accepted ones, and as many refused ones
DEEDS_KEPT: Final = 16_384
AWAY_SECONDS: Final = 600.0  # for which an answer holds beyond its time while the API server gives none
FAILED_SECONDS: Final = 5.0  # after a review that failed nothing is asked
_AT_ONCE: Final = {Standing.KNOWN: 8, Standing.NEW: 8, Standing.DOUBTFUL: 4}
_WAITING: Final = {Standing.KNOWN: TOKENS_KEPT, Standing.NEW: 32, Standing.DOUBTFUL: 8}  # those under review among them
PATHS_AT_ONCE: Final = 8
OBJECTS_AT_ONCE: Final = 16
_OBJECTS_OF_ONE: Final = (1_200.0, 40.0)  # at once, a second: an answer that names the claims of a thousand namespaces
_AWAY_NS: Final = round(AWAY_SECONDS * 1e9)
_PASSING: Final = frozenset(
    {
        ApiReason.UNREACHABLE, ApiReason.SERVER_ERROR, ApiReason.RATE_LIMITED, ApiReason.TIMEOUT,
        ApiReason.UNAUTHORIZED,  # our own token has just been replaced: the next attempt reads it anew
    }
)  # fmt: skip
_AWAY: Final = _PASSING - {ApiReason.UNAUTHORIZED}
_CROWDED_TOKENS: Final = "too many unknown tokens are under review already; ask again in a moment"
_CROWDED_LANE: Final = "the API server answers too slowly for all who ask; ask again in a moment"
_CROWDED_DEEDS: Final = "you ask about more namespaces than are reviewed for one user; ask again in a moment"
RESULTS: Final = (
    ("token", "accepted"), ("token", "refused"), ("token", "failed"), ("token", "shed"),
    ("access", "allowed"), ("access", "denied"), ("access", "failed"), ("access", "shed"),
)  # fmt: skip

T = TypeVar("T")


class ReviewFailedError(Exception):
    """The API server gave no answer; the log says why."""


class CrowdedError(Exception):
    """Somebody asks for more reviews than they may; it says of what."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Lane:
    """Reviews that wait for each other, and for no others."""

    slots: asyncio.Semaphore
    waiting_max: int
    waiting: int = 0  # those under review among them
    answered: int = 0  # how often the API server gave an answer
    away: bool = False  # the API server gave no answer to the last one
    ask_at_ns: int = 0


class Reviewer:
    """Reviews callers and what they want to do, and remembers the answers."""

    def __init__(
        self,
        api: ApiClient,
        clock: Clock,
        *,
        audiences: Sequence[str] = (),
        pauses: Sequence[float] = PAUSES_SECONDS,
        seconds: float = REVIEW_SECONDS,
    ) -> None:
        self.results: Counter[tuple[str, str]] = Counter(dict.fromkeys(RESULTS, 0))
        self._api = api
        self._clock = clock
        self._audiences = tuple(audiences)
        self._pauses = tuple(pauses)
        self._seconds = seconds
        # Tokens are remembered by a keyed hash: what this process knows is of no use to who reads its memory later.
        self._key = secrets.token_bytes(32)
        self._accepted: Recent[bytes, Caller] = Recent(TOKENS_KEPT)
        self._refused: Recent[bytes, bool] = Recent(TOKENS_KEPT)
        self._deeds: Recent[tuple[Caller, Deed], bool] = Recent(DEEDS_KEPT)
        self._unknown = UnknownTokens(clock.monotonic_ns())
        self._objects: Allowances[str] = Allowances(*_OBJECTS_OF_ONE)  # by the name of a caller
        self._under_review: dict[Hashable, asyncio.Task[Any]] = {}
        self._of_tokens = {
            standing: _Lane(slots=asyncio.Semaphore(at_once), waiting_max=_WAITING[standing])
            for standing, at_once in _AT_ONCE.items()
        }  # fmt: skip
        self._of_paths = _Lane(slots=asyncio.Semaphore(PATHS_AT_ONCE), waiting_max=DEEDS_KEPT)
        self._of_objects = _Lane(slots=asyncio.Semaphore(OBJECTS_AT_ONCE), waiting_max=DEEDS_KEPT)
        self._trouble: dict[str, ApiReason] = {}

    async def close(self) -> None:
        """Gives up what is under review."""
        tasks = list(self._under_review.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def caller(self, token: str, address: str) -> Caller | None:
        """Whom a token belongs to; None where it is not accepted. Raises CrowdedError, ReviewFailedError."""
        key = hashlib.blake2b(token.encode(), key=self._key, digest_size=32).digest()
        now = self._clock.monotonic_ns()
        known = self._accepted.get(key, now)
        if known is not None:
            return known
        if self._refused.get(key, now) is not None:
            return None
        if key in self._accepted:
            lane, address_of_new = self._of_tokens[Standing.KNOWN], None
        elif key in self._under_review:
            found: Caller | None = await asyncio.shield(self._under_review[key])
            return found
        else:
            lane, address_of_new = self._lane_of_new(address, now), address
        last = self._accepted.get(key, now - _AWAY_NS)
        return await self._asked(lane, key, last, lambda: self._review_token(lane, token, key, address_of_new))

    def _lane_of_new(self, address: str, now_ns: int) -> _Lane:
        standing = self._unknown.take(address, now_ns)
        lane = None if standing is None else self._of_tokens[standing]
        if lane is None or lane.waiting >= lane.waiting_max:
            self.results["token", "shed"] += 1
            raise CrowdedError(_CROWDED_TOKENS)
        if now_ns < lane.ask_at_ns:
            self._unknown.not_refused(address)
        return lane

    async def may(self, caller: Caller, deed: Deed) -> bool:
        """Whether somebody may do something. Raises CrowdedError, ReviewFailedError."""
        key = (caller, deed)
        now = self._clock.monotonic_ns()
        known = self._deeds.get(key, now)
        if known is not None:
            return known
        lane = self._of_paths if deed.path else self._of_objects  # there are few paths, and any number of namespaces
        counted = not deed.path and not lane.away and key not in self._under_review
        if counted and not self._objects.take(caller.name, now):
            self.results["access", "shed"] += 1
            raise CrowdedError(_CROWDED_DEEDS)
        last = self._deeds.get(key, now - _AWAY_NS)
        return await self._asked(lane, key, last, lambda: self._review_deed(lane, caller, deed))

    async def _asked(self, lane: _Lane, key: Hashable, last: T | None, review: Callable[[], Awaitable[T]]) -> T:
        """The answer of a review, or the last one there was while the API server gives none."""
        ask = self._clock.monotonic_ns() >= lane.ask_at_ns
        if last is not None and self._is_away():
            if ask:
                self._shared(lane, key, review)  # which finds out whether it is back
            return last
        if not ask and key not in self._under_review:
            raise ReviewFailedError
        try:
            return await asyncio.shield(self._shared(lane, key, review))
        except ReviewFailedError:
            if last is not None and self._is_away():
                return last
            raise

    def _is_away(self) -> bool:
        return any(each.away for each in (self._of_tokens[Standing.KNOWN], self._of_paths, self._of_objects))

    def _shared(self, lane: _Lane, key: Hashable, review: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """One review for all who ask meanwhile; it goes on when the one who asked first goes away."""
        task: asyncio.Task[T] | None = self._under_review.get(key)
        if task is None:
            task = asyncio.create_task(_finished(review))
            self._under_review[key] = task
            lane.waiting += 1
            task.add_done_callback(lambda done: self._done(lane, key, done))
        return task

    def _done(self, lane: _Lane, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._under_review[key]
        lane.waiting -= 1
        if not task.cancelled():
            task.exception()  # who asked may be gone; it is logged already

    async def _review_token(self, lane: _Lane, token: str, key: bytes, address_of_new: str | None) -> Caller | None:
        refused = False
        try:
            found = await self._answer("token", lane, lambda: review_token(self._api, token, self._audiences))
            refused = found is None
        finally:
            if address_of_new is not None and not refused:
                self._unknown.not_refused(address_of_new)
        now = self._clock.monotonic_ns()
        if found is None:
            self._accepted.forget(key)
            self._refused.put(key, True, now + round(REFUSED_TOKEN_SECONDS * 1e9))
        else:
            self._accepted.put(key, found, now + round(TOKEN_SECONDS * 1e9))
        self.results["token", "refused" if found is None else "accepted"] += 1
        return found

    async def _review_deed(self, lane: _Lane, caller: Caller, deed: Deed) -> bool:
        allowed = await self._answer("access", lane, lambda: review_access(self._api, caller, deed))
        seconds = ALLOWED_SECONDS if allowed else DENIED_SECONDS
        self._deeds.put((caller, deed), allowed, self._clock.monotonic_ns() + round(seconds * 1e9))
        self.results["access", "allowed" if allowed else "denied"] += 1
        return allowed

    async def _answer(self, review: str, lane: _Lane, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            found = await self._patiently(lane, ask)
        except CrowdedError:
            self.results[review, "shed"] += 1
            raise
        except ApiError as error:
            self.results[review, "failed"] += 1
            lane.away = error.reason in _AWAY
            if error.reason in _PASSING:
                lane.ask_at_ns = self._clock.monotonic_ns() + round(FAILED_SECONDS * 1e9)
            if error.reason is not self._trouble.get(review):
                _log.error("nobody new is let in, callers cannot be reviewed: %s", error)
            self._trouble[review] = error.reason
            raise ReviewFailedError from error
        lane.away, lane.ask_at_ns = False, 0
        if self._trouble.pop(review, None) is not None:
            _log.info("callers are reviewed again")
        return found

    async def _patiently(self, lane: _Lane, ask: Callable[[], Awaitable[T]]) -> T:
        async def counted() -> T:
            found = await ask()
            lane.answered += 1
            return found

        before = lane.answered
        try:
            async with asyncio.timeout(self._seconds), lane.slots:
                for pause in self._pauses:
                    try:
                        return await counted()
                    except ApiError as error:
                        if error.reason not in _PASSING:
                            raise
                    await asyncio.sleep(pause)
                return await counted()
        except TimeoutError as error:
            # Its time went by in our own queue, if others were answered meanwhile: the API server is there. To hold it
            # for away would let who asks much prolong what anybody was once allowed.
            if lane.answered > before:
                raise CrowdedError(_CROWDED_LANE) from error
            raise ApiError(
                ApiReason.TIMEOUT,
                f"the API server answered no review within {self._seconds:g} s; check the network and its load",
            ) from error


async def _finished(review: Callable[[], Awaitable[T]]) -> T:
    return await review()
