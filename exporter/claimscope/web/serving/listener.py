"""Which connections are taken, and what gives way where there are too many?

Each new connection is made with the TLS settings that hold at that moment. Where all places are taken, the oldest one
that nothing is being made for ends, of the client that has most of them: who opens a thousand loses its own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from claimscope.web.serving.connection import Connection
from claimscope.web.serving.limits import Limits

if TYPE_CHECKING:
    from aiohttp import web

    from claimscope.web.site import WebCounters

_log = logging.getLogger(__name__)

BACKLOG: Final = 128
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_ROOM_SECONDS: Final = 1.0
# What Linux passes on of a connection that failed before it was taken: accept(2).
_GONE: Final = frozenset(
    {
        errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET,
        errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM,
    }
)  # fmt: skip
_GONE_SECONDS: Final = 0.05


async def bind(host: str | None, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of a host, or of this machine. Raises OSError, UnicodeError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                made = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and host is None:
                    continue  # a machine without IPv6
                raise
            bound.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setblocking(False)
            made.bind(address)
            made.listen(BACKLOG)
    except OSError:
        for each in bound:
            each.close()
        raise
    return bound


class Listener:
    """Takes connections on sockets until it is closed."""

    def __init__(
        self, server: web.Server, sockets: list[socket.socket], *, context: Callable[[], ssl.SSLContext | None],
        limits: Limits, counters: WebCounters,
    ) -> None:
        """`context` answers what new connections are made with; None: no TLS."""
        self._server, self._sockets = server, sockets
        self._context, self._limits, self._counters = context, limits, counters
        self._making: dict[Connection, asyncio.Task[None]] = {}  # until the connection stands
        self._open: dict[Connection, None] = {}
        self._accepting = [asyncio.create_task(self._accept(each), name="accept") for each in sockets]

    async def stop(self) -> None:
        """Takes no more connections."""
        tasks = [*self._accepting, *self._making.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in self._sockets:
            each.close()

    def abort(self) -> None:
        """Ends what is still open."""
        for connection in list(self._open):
            connection.abort()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        said: int | None = None
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno not in _GONE and error.errno != said:
                    _log.error("no connection can be taken: %s", error.strerror)
                    said = error.errno
                # It fails at once: without a pause nothing else would ever run.
                await asyncio.sleep(_NO_ROOM_SECONDS if error.errno in _NO_ROOM else _GONE_SECONDS)
                continue
            said = None
            self._take(accepted, address)
            await asyncio.sleep(0)  # connections that come without end leave time for everything else

    def _take(self, accepted: socket.socket, address: Any) -> None:  # noqa: ANN401 - of any family
        client = str(address[0]) if isinstance(address, tuple) else ""
        if len(self._open) >= self._limits.connections and not self._make_room():
            self._counters.cut["full"] += 1
            accepted.close()
            return
        connection = Connection(
            self._server, client, self._limits, on_cut=self._count, on_end=self._forget
        )
        self._open[connection] = None
        self._counters.connections = len(self._open)
        making = asyncio.create_task(self._make(connection, accepted), name="connection")
        making.add_done_callback(lambda _: self._made(connection, accepted))
        self._making[connection] = making

    def _made(self, connection: Connection, accepted: socket.socket) -> None:
        del self._making[connection]
        if not connection.begun:  # ended before its turn came
            accepted.close()

    async def _make(self, connection: Connection, accepted: socket.socket) -> None:
        connection.begun = True
        context = self._context()
        limits = self._limits
        times = {} if context is None else {
            "ssl_handshake_timeout": limits.handshake_seconds, "ssl_shutdown_timeout": limits.linger_seconds,
        }  # fmt: skip
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, accepted, ssl=context, **times
            )
        except OSError:  # also of TLS, and of the time for it
            self._count("handshake")
            self._forget(connection)
        except asyncio.CancelledError:
            self._forget(connection)
            raise

    def _make_room(self) -> bool:
        """Ends one connection; False where something is being made for each."""
        expendable = [each for each in self._open if each.expendable]
        if not expendable:
            return False
        held = Counter(each.client for each in self._open)
        most = max(held[each.client] for each in expendable)
        oldest = min((each for each in expendable if held[each.client] == most), key=lambda each: each.since)
        self._count("evicted")
        making = self._making.get(oldest)
        if making is not None:
            making.cancel()
        oldest.abort()
        self._forget(oldest)
        return True

    def _count(self, reason: str) -> None:
        self._counters.cut[reason] += 1

    def _forget(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        self._counters.connections = len(self._open)
