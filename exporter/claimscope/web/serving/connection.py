"""How long may a connection take for what it does, and how many bytes may it send for it?

aiohttp bounds the size of a line and the time between requests. It leaves unbounded the time in which a request's head
arrives, that in which an answer is read, and the bytes behind a request that is being answered.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from claimscope.web.serving.limits import Limits

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 22\r\n\r\nthe request is too big"
)
_NO_REQUEST: Final = "this is no HTTP request that can be understood\n"


class Phase(enum.Enum):
    """What a connection is at."""

    HANDSHAKE = "handshake"
    HEAD = "head"  # the head of a request is awaited, or arrives
    ANSWER = "answer"
    IDLE = "idle"
    CLOSING = "closing"


class Connection(web.RequestHandler):
    """One connection, ended by a timer where it takes too long."""

    __slots__ = ("_limits", "_on_cut", "_on_end", "_timer", "_unanswered", "_wire", "begun", "client", "phase",
                 "since", "stalled_since")  # fmt: skip

    def __init__(
        self, server: web.Server, client: str, limits: Limits, *, on_cut: Callable[[str], None],
        on_end: Callable[[Connection], None],
    ) -> None:
        """`on_cut` hears why a connection was ended, `on_end` when it is gone."""
        loop = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle_seconds,
            access_log=cast("Any", None),
            max_line_size=limits.line_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.headers,
            lingering_time=0.0,  # nobody reads a body, so nobody waits for the end of one
        )
        self.client = client
        self.begun = False  # a transport is being made for it
        self.phase, self.since = Phase.HANDSHAKE, loop.time()
        self._limits, self._on_cut, self._on_end = limits, on_cut, on_end
        self._wire: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unanswered = 0
        self.stalled_since: float | None = None  # the client does not read what is written

    @property
    def expendable(self) -> bool:
        """Nothing is being made for it now: it is idle, or does not read what was made."""
        return self.phase is not Phase.ANSWER or self.stalled_since is not None

    def abort(self) -> None:
        """Ends it at once."""
        if self._wire is not None:
            self._wire.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands: a head is awaited."""
        self._wire = cast("asyncio.Transport", transport)
        self._enter(Phase.HEAD, self._limits.head_seconds)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._wire = None
        self.phase = Phase.CLOSING
        super().connection_lost(exc)
        self._on_end(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: at the first of them its time begins, with the end of the head that of the answer."""
        if self.phase is Phase.CLOSING:
            return
        if self.phase is Phase.IDLE:
            self._enter(Phase.HEAD, self._limits.head_seconds)
        too_large = self._unanswered > self._limits.request_bytes  # one piece more is let through, for a good refusal
        self._unanswered += len(data)
        if too_large:
            self._too_large()
            return
        before = self._request_count
        super().data_received(data)
        if self._request_count > before and self.phase is Phase.HEAD:
            self._enter(Phase.ANSWER, self._limits.answer_seconds)

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """An answer is written: what comes next has its own time."""
        finished = await super().finish_response(request, resp, start_time)
        if self.phase is Phase.ANSWER:
            if not finished[0].keep_alive:
                self._enter(Phase.CLOSING, self._limits.linger_seconds)
            elif self._messages:
                self._enter(Phase.ANSWER, self._limits.answer_seconds)
            else:
                self._unanswered = 0
                self._enter(Phase.IDLE, self._limits.idle_seconds)
        return finished

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """A request that is none is refused in a line, and nothing is logged; nor where the client has gone.

        Anybody can send any number of them, and what aiohttp logs and answers repeats what was sent: a token, perhaps.
        """
        if isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            status = HTTPStatus.EXPECTATION_FAILED  # aiohttp repeats the header in its refusal, and here it cannot
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(exc, ConnectionError):
            return super().handle_error(request, status, exc, message)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        refusal = web.Response(status=status, text=_NO_REQUEST, headers={"Server": "claimscope"})
        refusal.force_close()
        return refusal

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self.stalled_since = asyncio.get_running_loop().time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.stalled_since = None
        super().resume_writing()

    def force_close(self) -> None:
        """Ends it, with a moment for the last bytes."""
        super().force_close()
        if self._wire is not None and self.phase is not Phase.CLOSING:
            self._enter(Phase.CLOSING, self._limits.linger_seconds)

    def _enter(self, phase: Phase, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self.phase, self.since = phase, loop.time()
        self._timer = loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self.phase in (Phase.HEAD, Phase.ANSWER):
            self._on_cut(self.phase.value)
        if self.phase in (Phase.ANSWER, Phase.CLOSING):
            self.abort()
        else:
            self.force_close()

    def _too_large(self) -> None:
        self._on_cut("size")
        if self.phase is Phase.HEAD and self._wire is not None:
            self._wire.write(_TOO_LARGE)  # best effort: who still sends may never see it
            self.force_close()
        else:
            self.abort()
