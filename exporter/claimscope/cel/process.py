"""How are CEL expressions evaluated where neither a leak, a crash nor an endless loop of the engine can do harm?

In a process of its own, claimscope.cel.worker, spoken to over its standard streams in frames: four bytes of
length, then JSON; its first one says that it is ready. It is replaced after some evaluations (each leaks up to 1 kB),
when it dies and when a batch takes too long; an expression that does that twice is not asked again.
"""

from __future__ import annotations

import logging
import os
import selectors as waiting
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import IO, Final

import msgspec

from claimscope.cel.evaluator import Answer, Content

log = logging.getLogger(__name__)

LENGTH: Final = struct.Struct(">I")
_COMMAND: Final = (sys.executable, "-P", "-m", "claimscope.cel.worker")


_START_SECONDS: Final = 60.0  # loading the engine takes 0.2 s on a free core, and much longer on a tenth of one
_CLOSE_SECONDS: Final = 1.0
_GIVEN_UP_KEPT: Final = 1000
_WORDS: Final = {"crashed": "ended", "timed_out": "did not answer"}


class Question(msgspec.Struct, frozen=True):
    """One batch: an expression and the devices it is evaluated on."""

    expression: str
    devices: list[Content] = []


class _LostError(Exception):
    """The worker did not answer; the argument is the reason as a label."""


class WorkerProcess:
    """Evaluates in a child process that is started when it is needed; blocks, so call it from a thread."""

    def __init__(
        self, *, command: Sequence[str] = _COMMAND, timeout_seconds: float = 5.0, recycle_after: int = 20_000
    ) -> None:
        """`timeout_seconds` is for one batch."""
        self._command = tuple(command)
        self._timeout_seconds = timeout_seconds
        self._recycle_after = recycle_after
        self._child: subprocess.Popen[bytes] | None = None
        self._left = 0  # evaluations until the child is replaced
        self._given_up: dict[str, str] = {}
        self._closed = False
        self._lock = threading.Lock()  # guards _child and _closed against close() from another thread
        self._asking = threading.Lock()  # held while the streams are in use
        self.up = True
        self.restarts: Counter[str] = Counter()

    @property
    def pid(self) -> int | None:
        """Of the running child; None where none runs."""
        child = self._child
        return child.pid if child is not None else None

    def evaluate(self, expression: str, devices: Sequence[Content]) -> Answer:
        """What `expression` says of each device."""
        with self._asking:
            if expression in self._given_up:
                return Answer(problem=self._given_up[expression])
            if not self.up and not self._usable():
                return _unusable()
            return self._attempt(Question(expression, list(devices)))

    def _attempt(self, question: Question) -> Answer:
        reason = ""
        for _ in range(2):
            try:
                return self._ask(question)
            except _LostError as error:
                reason = str(error)
                self._lose(reason)
        if self._closed or not self._usable():
            return _unusable()
        problem = f"cannot be evaluated here: the evaluating process {_WORDS[reason]} twice"
        if len(self._given_up) >= _GIVEN_UP_KEPT:
            self._given_up.clear()
        self._given_up[question.expression] = problem
        log.warning("The process that evaluates selectors %s twice on %.200r: it is not asked again",
                    _WORDS[reason], question.expression)
        return Answer(problem=problem)

    def close(self) -> None:
        """Kills the child: nothing waits for one that hangs."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
        # Whoever is asking sees the end of the stream at once; only then may the streams be closed.
        if self._asking.acquire(timeout=_CLOSE_SECONDS):
            self._end()
            self._asking.release()

    def _usable(self) -> bool:
        """Whether the process works at all, told by the simplest expression."""
        try:
            self._ask(Question("true"))
        except _LostError as error:
            self._lose(str(error))
            if self.up and not self._closed:
                log.error("Selectors cannot be evaluated: %s does not answer", " ".join(self._command))
            self.up = False
            return False
        if not self.up:
            log.info("Selectors can be evaluated again")
        self.up = True
        return True

    def _lose(self, reason: str) -> None:
        self.restarts[reason] += not self._closed
        self._end()

    def _ask(self, question: Question) -> Answer:
        if self._child is not None and self._left <= 0:
            self.restarts["recycled"] += 1
            self._end()
        child, fresh = self._start()
        if fresh:
            _exchange(child, b"", time.monotonic() + _START_SECONDS)
        self._left -= max(1, len(question.devices))
        body = msgspec.json.encode(question)
        deadline = time.monotonic() + self._timeout_seconds
        frame = _exchange(child, LENGTH.pack(len(body)) + body, deadline)
        try:
            answer = msgspec.json.decode(frame, type=Answer)
        except msgspec.MsgspecError as error:
            raise _LostError("crashed") from error
        if answer.uses is not None and len(answer.outcomes) != len(question.devices):
            raise _LostError("crashed")
        return answer

    def _start(self) -> tuple[subprocess.Popen[bytes], bool]:
        with self._lock:
            fresh = self._child is None
            if self._child is None:
                if self._closed:
                    raise _LostError("crashed")
                try:
                    self._child = subprocess.Popen(  # noqa: S603 - our own module, no shell
                        self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
                    )
                except OSError as error:
                    raise _LostError("crashed") from error
                for stream in (self._child.stdin, self._child.stdout):
                    if stream is not None:
                        os.set_blocking(stream.fileno(), False)
                self._left = self._recycle_after
            return self._child, fresh

    def _end(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.kill()
            try:
                child.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("Process %d does not end although it was killed", child.pid)
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()


def _unusable() -> Answer:
    return Answer(problem="cannot be evaluated here: the evaluating process does not start", passing=True)


def _exchange(child: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes:
    """Writes a frame and reads one, both until the deadline, whichever side the pipe is full on."""
    if child.stdin is None or child.stdout is None:
        raise _LostError("crashed")
    pending, answer = memoryview(request), bytearray()
    with waiting.DefaultSelector() as selector:
        selector.register(child.stdout, waiting.EVENT_READ)
        if pending:
            selector.register(child.stdin, waiting.EVENT_WRITE)
        while len(answer) < LENGTH.size or len(answer) < LENGTH.size + LENGTH.unpack_from(answer)[0]:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _LostError("timed_out")
            for key, _ in ready:
                if key.fileobj is child.stdout:
                    answer += _read(child.stdout)
                    continue
                pending = pending[_write(child.stdin, pending) :]
                if not pending:
                    selector.unregister(child.stdin)
    return bytes(answer[LENGTH.size :])


def _read(stream: IO[bytes]) -> bytes:
    try:
        data = os.read(stream.fileno(), 1 << 16)
    except (OSError, ValueError) as error:
        raise _LostError("crashed") from error
    if not data:
        raise _LostError("crashed")
    return data


def _write(stream: IO[bytes], data: memoryview) -> int:
    try:
        return os.write(stream.fileno(), data[: 1 << 16])
    except BlockingIOError:
        return 0
    except (OSError, ValueError) as error:
        raise _LostError("crashed") from error
