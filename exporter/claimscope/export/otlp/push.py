"""When is what pushed, and what happens while the Collector does not take it?

One task makes requests at fixed times, others send them. Between the two is a queue that is bounded by its bytes: while
it is full no more are made, and the next push then takes the figures of its own moment. Two requests are sent at once,
but never of two pushes, so that a series' points arrive in order. A request that cannot be sent is tried again for
minutes and then left out. Nothing else ever waits for any of it, and no fault of it ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from claimscope.clock import Clock
from claimscope.export.otlp.encode import Batch
from claimscope.export.otlp.transport import Outcome, Transport, Verdict
from claimscope.model import Sample

logger = logging.getLogger(__name__)

QUEUE_BYTES = 32 << 20
IN_FLIGHT = 2
RETRY_SECONDS = 300.0  # as the Collector's own exporters do
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
FAREWELL_SECONDS = 2.0  # what the last push may hold up the end of the process

POINT_RESULTS = ("accepted", "rejected", "refused", "expired")
REQUEST_RESULTS = ("ok", "retried", "refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A request in the queue."""

    body: bytes
    points: int
    push: int  # number of the push that it is a part of
    made_ns: int  # when that began


class Pusher:
    """Pushes what `requests` gives, over and over."""

    def __init__(
        self, *, requests: Callable[[], Iterator[Batch] | None], transport: Transport, interval_seconds: float,
        clock: Clock, own: Callable[..., Sample], destination: str, jitter: Callable[[], float] = random.random,
        queue_bytes: int = QUEUE_BYTES, retry_seconds: float = RETRY_SECONDS,
        first_wait_seconds: float = FIRST_WAIT_SECONDS, farewell_seconds: float = FAREWELL_SECONDS,
    ) -> None:
        """`requests` gives those of this moment, None while there is nothing new; they are made in a thread as they
        are taken. `own` makes samples of the part's own families, `destination` is what a log calls the Collector."""
        self._requests = requests
        self._transport = transport
        self._interval = interval_seconds
        self._clock = clock
        self._own = own
        self._destination = destination
        self._jitter = jitter
        self._queue_bytes = queue_bytes
        self._retry_ns = round(retry_seconds * 1e9)
        self._first_wait = first_wait_seconds
        self._farewell_seconds = farewell_seconds
        self._encoding = threading.Lock()  # a push that was cancelled goes on in its thread, to the end of a request
        self._changed = asyncio.Condition()  # the queue, or what is being sent
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._pushes = 0
        self._sending = 0  # requests, all of push `_sending_push`
        self._sending_push = 0
        self._wait = first_wait_seconds
        self._quiet_until = 0.0  # in the loop's time: nothing is sent before
        self._points: Counter[str] = Counter(dict.fromkeys(POINT_RESULTS, 0))
        self._attempts: Counter[str] = Counter(dict.fromkeys(REQUEST_RESULTS, 0))
        self._attempt_seconds = 0.0
        self._encode_seconds = 0.0
        self._restarts = 0
        self._success_wall_ns: int | None = None
        self._trouble = ""  # of which kind, as it was logged last
        self._refused_push = 0
        self._rejecting = False

    async def run(self) -> None:
        """Pushes until it is cancelled, and then once more, for a moment. Begins anew after any fault of its own."""
        try:
            while True:
                work = asyncio.create_task(self._work(), name="otlp push")
                try:
                    await asyncio.wait((work,))
                finally:
                    work.cancel()
                    await asyncio.wait((work,))
                    self._inspect(work)
                await asyncio.sleep(min(self._interval, LONGEST_WAIT_SECONDS))
        finally:
            await self._transport.close()

    def _inspect(self, work: asyncio.Task[None]) -> None:
        """What is pushed besides is more important than the push: its faults are said and counted."""
        fault = None if work.cancelled() else work.exception()
        if fault is not None:
            self._restarts += 1
            self._sending = 0
            logger.error("OTLP to %s: a fault of claimscope's own: what was being sent is lost, the push begins anew",
                         self._destination, exc_info=fault)  # fmt: skip

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            sending = [tasks.create_task(self._send(), name="otlp send") for _ in range(IN_FLIGHT)]
            try:
                await self._make()
            except asyncio.CancelledError:
                if not self._trouble and not any(task.done() for task in sending):
                    await self._say_farewell()
                raise
            finally:
                for task in sending:
                    task.cancel()

    async def _say_farewell(self) -> None:
        """The totals as they are at the end, where the Collector takes them at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._farewell_seconds):
                await self._push()
                async with self._changed:
                    await self._changed.wait_for(lambda: not self._queue and not self._sending)

    def samples(self) -> list[Sample]:
        """What there is to say about the push itself."""
        own = self._own
        made = [own("otlp_points_total", count, result) for result, count in self._points.items()]
        made += [own("otlp_requests_total", count, result) for result, count in self._attempts.items()]
        made.append(own("otlp_request_seconds_total", self._attempt_seconds))
        made.append(own("otlp_encode_seconds_total", self._encode_seconds))
        made.append(own("otlp_restarts_total", self._restarts))
        made.append(own("otlp_queue_bytes", self._queued_bytes))
        if self._success_wall_ns is not None:
            made.append(own("otlp_last_success_timestamp_seconds", self._success_wall_ns / 1e9))
        return made

    # Making.

    async def _make(self) -> None:
        """At fixed times, and not later for what making takes; the first once there is something to say."""
        due_ns = self._clock.monotonic_ns()
        while True:
            pushed = await self._push()
            due_ns += round((self._interval if pushed else min(1.0, self._interval)) * 1e9)
            now_ns = self._clock.monotonic_ns()
            due_ns = max(due_ns, now_ns)
            await asyncio.sleep((due_ns - now_ns) / 1e9)

    async def _push(self) -> bool:
        """Queues the requests of this moment; False where there is nothing new to say."""
        requests = self._requests()
        if requests is None:
            return False
        self._pushes += 1
        made_ns = self._clock.monotonic_ns()
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._queued_bytes < self._queue_bytes)
            batch = await asyncio.to_thread(self._next, requests)
            if batch is None:
                return True
            async with self._changed:
                self._queue.append(
                    _Waiting(body=batch.body, points=batch.points, push=self._pushes, made_ns=made_ns)
                )
                self._queued_bytes += len(batch.body)
                self._changed.notify_all()

    def _next(self, requests: Iterator[Batch]) -> Batch | None:
        """In a thread: the next request, packed."""
        with self._encoding:
            began = time.thread_time()
            batch = next(requests, None)
            packed = None if batch is None else Batch(body=self._transport.pack(batch.body), points=batch.points)
            self._encode_seconds += time.thread_time() - began
        return packed

    # Sending.

    async def _send(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(self._may_send)
                waiting = self._queue.popleft()
                self._queued_bytes -= len(waiting.body)
                self._sending += 1
                self._sending_push = waiting.push
                self._changed.notify_all()
            await self._deliver(waiting)
            async with self._changed:
                self._sending -= 1
                self._changed.notify_all()

    def _may_send(self) -> bool:
        return bool(self._queue) and (not self._sending or self._queue[0].push == self._sending_push)

    async def _deliver(self, waiting: _Waiting) -> None:
        """Sends one request until it is taken, refused or too old."""
        loop = asyncio.get_running_loop()
        while True:
            pause = self._quiet_until - loop.time()
            if pause > 0:
                age_ns = self._clock.monotonic_ns() - waiting.made_ns
                if age_ns + pause * 1e9 > self._retry_ns:
                    self._points["expired"] += waiting.points
                    return
                await asyncio.sleep(pause)
                continue  # the Collector may have asked for more time meanwhile
            began = time.monotonic()
            outcome = await self._transport.send(waiting.body)
            self._attempt_seconds += time.monotonic() - began
            match outcome.verdict:
                case Verdict.TAKEN:
                    self._accept(waiting, outcome)
                    return
                case Verdict.REFUSED:
                    self._attempts["refused"] += 1
                    self._points["refused"] += waiting.points
                    self._refused_push = waiting.push
                    self._fails("refused, its points are lost", outcome)
                    return
                case Verdict.RETRY:
                    self._attempts["retried"] += 1
                    self._fails("not taken, tried again", outcome)
                    self._back_off(outcome.wait_seconds, loop.time())

    def _back_off(self, asked_seconds: float | None, now: float) -> None:
        """Nothing is sent for a while, and for as long as the Collector asks: neither this request nor another."""
        if now >= self._quiet_until:  # else another request failed just before
            self._quiet_until = now + self._wait * (0.5 + self._jitter())
            self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS)
        if asked_seconds is not None:
            self._quiet_until = max(self._quiet_until, now + asked_seconds)

    def _accept(self, waiting: _Waiting, outcome: Outcome) -> None:
        rejected, text = min(outcome.rejected_points, waiting.points), outcome.text
        self._attempts["ok"] += 1
        self._points["accepted"] += waiting.points - rejected
        self._points["rejected"] += rejected
        self._success_wall_ns = self._clock.wall_ns()
        self._wait = self._first_wait
        if self._trouble and self._refused_push != waiting.push:  # where each push has its refused request, it goes on
            logger.info("OTLP to %s: requests are taken again", self._destination)
            self._trouble = ""
        if rejected and not self._rejecting:
            logger.warning("OTLP to %s: %d of %d points of a request were rejected: %s",
                           self._destination, rejected, waiting.points, text)
        elif text and not rejected and not self._rejecting:
            logger.warning("OTLP to %s: a request was taken with a warning: %s", self._destination, text)
        self._rejecting = bool(rejected or text)

    def _fails(self, what: str, outcome: Outcome) -> None:
        """Says so where the kind of trouble is another than before: what is done, and the code at the answer's head."""
        kind = f"{what} {outcome.text.partition(' ')[0]}"
        if kind != self._trouble:
            logger.warning("OTLP to %s: a request was %s: %s", self._destination, what, outcome.text)
        self._trouble = kind
