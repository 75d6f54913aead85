"""How are answers made that walk a whole cluster, while leases are renewed and watches go on?

In worker threads, few at a time and one of each client, whose next one waits its turn. Whoever asks for what is being
made shares it, and what was made of a snapshot is kept with it. A large cluster's answers are made of one snapshot for
a few seconds, so that those that many ask for take a part of one core at most.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, Generic, TypeVar

AT_ONCE: Final = 2
WAITING: Final = 32
WAITING_OF_CLIENT: Final = 4
SHARE_OF_TIME: Final = 0.2  # of one core, for the same answers of snapshots that follow each other
QUICK_SECONDS: Final = 0.05  # what takes less is made of the newest snapshot
OLDEST_SECONDS: Final = 10.0  # no answer is made of a snapshot that was first asked about longer ago
ANSWERS_KEPT: Final = 8
ANSWER_BYTES_KEPT: Final = 3 << 20  # larger ones are not; devices of 10,000 nodes by pool are 2.4 MB of JSON

S = TypeVar("S")
T = TypeVar("T")


class CrowdedError(Exception):
    """Too many answers are being made already."""


async def on_the_loop(make: Callable[[], T | Awaitable[T]]) -> T:
    """Runs what must not be in a thread, since it reads what watches change; between two of them the loop turns."""
    await asyncio.sleep(0)
    made = make()
    return await made if inspect.isawaitable(made) else made


class Makers:
    """Runs what takes long, in worker threads unless told otherwise, for one client after the other."""

    def __init__(
        self, *, at_once: int = AT_ONCE, waiting: int = WAITING, waiting_of_client: int = WAITING_OF_CLIENT,
        run: Callable[[Callable[[], Any]], Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        self._at_once, self._waiting, self._waiting_of_client = at_once, waiting, waiting_of_client
        self._run = run
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}
        self._busy: set[str] = set()  # clients
        self._line: deque[tuple[str, asyncio.Future[None]]] = deque()

    async def made(self, key: Hashable, client: str, make: Callable[[], T | Awaitable[T]]) -> T:
        """What `make` returns, once for all who ask for this key meanwhile. Raises CrowdedError."""
        task: asyncio.Task[T] | None = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._make(client, self._place(client), make), name="make an answer")
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task)  # who asked first may go away

    def _done(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen by those who still wait for it

    def _place(self, client: str) -> asyncio.Future[None]:
        """A turn, which may have come already."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if client not in self._busy and len(self._busy) < self._at_once:
            self._busy.add(client)
            turn.set_result(None)
            return turn
        in_line = Counter(each for each, _ in self._line)
        if in_line.total() >= self._waiting or in_line[client] >= self._waiting_of_client:
            raise CrowdedError
        self._line.append((client, turn))
        return turn

    async def _make(self, client: str, turn: asyncio.Future[None], make: Callable[[], Any]) -> Any:  # noqa: ANN401
        await turn
        try:
            return await self._run(make)
        finally:
            self._leave(client)

    def _leave(self, client: str) -> None:
        self._busy.discard(client)
        for place in list(self._line):
            waiting, turn = place
            if turn.done():
                self._line.remove(place)  # given up, as everything is at the end
            elif waiting not in self._busy:
                self._line.remove(place)
                self._busy.add(waiting)
                turn.set_result(None)
                return


class Answers(Generic[S]):
    """What was made of one snapshot."""

    def __init__(
        self, snapshot: S, *, monotonic: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        """`worked` are the seconds that this thread has worked."""
        self.snapshot = snapshot
        self._monotonic, self._worked = monotonic, worked
        self._began = monotonic()
        self._spent = 0.0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()

    def hold(self) -> bool:
        """Whether they are still given although there is a newer snapshot: they took long to make."""
        if self._spent < QUICK_SECONDS:
            return False
        return self._monotonic() - self._began < min(self._spent / SHARE_OF_TIME, OLDEST_SECONDS)

    async def get(self, makers: Makers, key: Hashable, client: str, make: Callable[[], bytes]) -> bytes:
        """The answer that was made, or is made now. Raises CrowdedError."""
        found = self._kept.get(key)
        if found is None:
            found = await self.made(makers, key, client, make)
            if len(found) <= ANSWER_BYTES_KEPT:
                self._kept[key] = found
                if len(self._kept) > ANSWERS_KEPT:
                    self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return found

    async def made(self, makers: Makers, key: Hashable, client: str, make: Callable[[], T]) -> T:
        """Makes something that is not kept here. Raises CrowdedError."""
        return await makers.made((self, key), client, lambda: self._timed(make))

    def _timed(self, make: Callable[[], T]) -> T:
        began = self._worked()
        try:
            return make()
        finally:
            self._spent += self._worked() - began
