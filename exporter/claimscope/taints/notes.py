"""What has the leader noted, and what do people ask it now? The annotations of its Lease, as they were last read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from claimscope.clock import Clock
from claimscope.kube.api import ApiError, ApiReason
from claimscope.taints import memory
from claimscope.taints.memory import Memory
from claimscope.taints.notebook import MEMORY, MEMORY_BYTES, SHOWN, Asked, Notebook, asked_of, paused_by
from claimscope.taints.outcomes import Outcomes

log = logging.getLogger(__name__)


class Notes:
    """Of one leadership; one event loop owns it."""

    def __init__(self, notebook: Notebook, clock: Clock, outcomes: Outcomes, *, seconds: float) -> None:
        """`seconds`: how often the Lease is read at most."""
        self._notebook = notebook
        self._clock = clock
        self._outcomes = outcomes
        self._seconds = seconds
        self._annotations: Mapping[str, str] = {}
        self._kept: Mapping[str, str] = {}  # as it was written last
        self._read_ns: int | None = None
        self.memory: Memory | None = None  # None: not read yet

    async def look(self) -> None:
        """Reads the Lease from time to time. Raises ApiError."""
        now_ns, wall = self._clock.monotonic_ns(), self._clock.wall_ns() / 1e9
        if self._read_ns is None or now_ns - self._read_ns >= self._seconds * 1e9:
            self._annotations = await self._notebook.read()
            self._read_ns = now_ns
        if self.memory is None:
            kept = await self._notebook.recall()
            self.memory, problem = memory.decode(kept.get(MEMORY), wall)
            if problem:
                log.warning("what was fenced lately is not known, so the breaker starts half open: %s", problem)

    def paused_by(self) -> str | None:
        """Who paused fencing, and why."""
        return paused_by(self._annotations)

    def asked(self, wall: float) -> Asked:
        """What people have asked for since the last round."""
        return asked_of(self._annotations, wall)

    async def may_raise(self) -> bool:
        """Whether nobody has paused; also within a long round. What cannot be read is a no."""
        try:
            await self.look()
        except ApiError as error:
            self._outcomes.failed("read", error)
            return False
        return self.paused_by() is None

    async def keep(self, shown: str, asked: Iterable[str]) -> bool:
        """Writes what the next leader must know, and takes away what people asked for; False where that failed."""
        if self.memory is None:
            return False
        text = memory.encode(self.memory)
        if len(text) > MEMORY_BYTES:
            error = ApiError(ApiReason.INVALID, f"{len(text)} bytes are too many for the Lease")
            self._outcomes.failed("memory", error)
            text = self._kept.get(MEMORY, "")
        wanted = {MEMORY: text, SHOWN: shown}
        done = dict.fromkeys((*asked, *self._notebook.outdated(self._annotations)))
        if wanted == self._kept and not done:
            return True
        try:
            if wanted != self._kept:
                await self._notebook.keep(wanted)
                self._kept = wanted
            if done:  # only now: what was asked for must not be lost
                await self._notebook.write(done)
        except ApiError as error:
            self._outcomes.failed("memory", error)
            return False
        self._outcomes.succeeded("memory")
        self._annotations = {name: value for name, value in self._annotations.items() if name not in done}
        return True
