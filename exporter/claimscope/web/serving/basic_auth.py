"""Is this the password of that user?

bcrypt is slow on purpose: 44 ms of CPU at cost 10. It runs in one thread beside the event loop, and what was found is
remembered, so that a scraper costs it once. Each client has at most two passwords in the queue. Those come first whose
last one was right, then those that have sent the fewest wrong ones lately. Who has sent one waits after each wrong one
until the thread has rested three times as long as it worked: guessing costs the guesser time, and the machine a quarter
of a core.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import secrets
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import bcrypt

QUEUE_PER_CLIENT: Final = 2
QUEUE: Final = 64
REMEMBERED: Final = 100  # as many as exporter-toolkit, of right and of wrong ones each
REST: Final = 3.0  # times the time that a wrong password took
REMEMBERED_SECONDS: Final = 600.0  # for which a right or wrong password tells something of who sent it
_CLIENTS: Final = 1_024  # of which that is known
PASSWORD_BYTES: Final = 72  # what bcrypt looks at; Go's passes over the rest, Python's refuses it
_HEADER_MAX: Final = 4096
# Of nothing that anybody knows: 22 characters of salt and 31 of digest.
_DUMMY_REST: Final = b"abcdefghijklmnopqrstuu" + b"." * 31


class CrowdedError(Exception):
    """More passwords wait to be checked than may."""


def credentials_of(lines: Sequence[str]) -> tuple[bytes, bytes] | None:
    """User and password of an Authorization header; None where it is of another scheme, or says none."""
    if len(lines) != 1 or len(lines[0]) > _HEADER_MAX:
        return None
    scheme, _, encoded = lines[0].partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip().encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return b"", b""  # somebody who knows no name and no password
    user, _, password = decoded.partition(b":")
    return user, password


def hashes_to_try(users: Mapping[bytes, bytes], hashed: bytes | None) -> tuple[bytes, ...]:
    """A user's hash, and hashes of no password that make it take as long as the slowest of the file.

    A hash of cost n takes 2**n rounds, so that one of each cost from n to the highest but one adds up to the highest.
    """
    highest = max(_cost(each) for each in users.values())
    if hashed is None:
        return (_dummy(highest),)
    return hashed, *(_dummy(cost) for cost in range(_cost(hashed), highest))


def _cost(hashed: bytes) -> int:
    return int(hashed[4:6])


def _dummy(cost: int) -> bytes:
    return b"$2b$%02d$" % cost + _DUMMY_REST


def _fits(password: bytes, hashes: Sequence[bytes]) -> bool:
    """Whether it is the password of the first of these; all of them are tried."""
    found = []
    for hashed in hashes:
        try:
            found.append(bcrypt.checkpw(password[:PASSWORD_BYTES], hashed))
        except ValueError:  # a password that bcrypt does not take is nobody's
            found.append(False)
    return found[0]


@dataclass(slots=True, kw_only=True, eq=False)
class _Check:
    """A password that waits, or is looked at."""

    client: str
    users: Mapping[bytes, bytes] = field(repr=False)
    hashed: bytes | None = field(repr=False)
    password: bytes = field(repr=False)
    key: bytes = field(repr=False)
    answer: asyncio.Future[bool]


class Passwords:
    """What was found of passwords, and the thread that finds more."""

    def __init__(self, *, rest: float = REST) -> None:
        self._rest = rest
        self._secret = secrets.token_bytes(32)  # what is remembered is of no use elsewhere
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bcrypt")
        self._queue: list[_Check] = []
        self._held: Counter[str] = Counter()  # passwords of a client that wait or are looked at
        # Wrong ones of a client lately, and when the last was; -1 where the last was right.
        self._clients: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._rested_at = 0.0
        self._news = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self.checked = 0  # passwords that bcrypt was asked of

    async def right(self, users: Mapping[bytes, bytes], user: bytes, password: bytes, *, client: str) -> bool:
        """Whether it is. Raises CrowdedError."""
        hashed = users.get(user)
        key = self._key(user, hashed or b"", password)
        known = self._known(key)
        if known:
            self._note(client, -1)
        if known is not None:
            return known
        if self._held[client] >= QUEUE_PER_CLIENT or (len(self._queue) >= QUEUE and not self._make_room(client)):
            raise CrowdedError
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        check = _Check(client=client, users=users, hashed=hashed, password=password, key=key, answer=answer)
        self._held[client] += 1
        self._queue.append(check)
        self._news.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="passwords")
        # It goes on where the client hangs up: the thread would anyway, and hanging up must not make room for more.
        return await asyncio.shield(answer)

    def _failures(self, client: str) -> int:
        count, last = self._clients.get(client, (0, 0.0))
        return count if asyncio.get_running_loop().time() < last + REMEMBERED_SECONDS else 0

    def _note(self, client: str, failures: int) -> None:
        self._clients[client] = (failures, asyncio.get_running_loop().time())
        self._clients.move_to_end(client)
        if len(self._clients) > _CLIENTS:
            self._clients.popitem(last=False)

    def _make_room(self, client: str) -> bool:
        """Turns away the one that came last of those with the most wrong passwords, where that are more than ours."""
        worst = max(reversed(self._queue), key=lambda each: self._failures(each.client))
        if self._failures(worst.client) <= self._failures(client):
            return False
        self._queue.remove(worst)
        self._end(worst)
        worst.answer.set_exception(CrowdedError())
        worst.answer.exception()  # who asked may be gone
        return True

    def _end(self, check: _Check) -> None:
        self._held[check.client] -= 1
        if not self._held[check.client]:
            del self._held[check.client]

    async def _work(self) -> None:
        """Answers one after the other until none is left."""
        try:
            while self._queue:
                check = min(self._queue, key=lambda each: self._failures(each.client))
                known = self._known(check.key)  # whoever was before may have asked the same
                if known is None and self._failures(check.client) > 0 and not await self._rested():
                    continue  # somebody new has come meanwhile
                self._queue.remove(check)
                try:
                    check.answer.set_result(await self._ask(check) if known is None else known)
                finally:
                    check.answer.cancel()  # where there is none: whoever asked must not wait for ever
                    self._end(check)
        finally:
            self._worker = None

    async def _rested(self) -> bool:
        """Waits until the thread has rested; False where another password came in before."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._rested_at):
                return not await self._news.wait()
        return True

    async def _ask(self, check: _Check) -> bool:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.checked += 1
        hashes = hashes_to_try(check.users, check.hashed)
        found = await loop.run_in_executor(self._thread, _fits, check.password, hashes) and check.hashed is not None
        _remember(self._right if found else self._wrong, check.key)
        self._note(check.client, -1 if found else max(0, self._failures(check.client)) + 1)
        if not found:
            now = loop.time()
            self._rested_at = now + (now - began) * self._rest
        return found

    def _key(self, user: bytes, hashed: bytes, password: bytes) -> bytes:
        parts = b"".join(len(part).to_bytes(4, "big") + part for part in (user, hashed, password))
        return hmac.digest(self._secret, parts, hashlib.sha256)

    def _known(self, key: bytes) -> bool | None:
        for found, memory in ((True, self._right), (False, self._wrong)):
            if key in memory:
                memory.move_to_end(key)
                return found
        return None


def _remember(memory: OrderedDict[bytes, None], key: bytes) -> None:
    memory[key] = None
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
