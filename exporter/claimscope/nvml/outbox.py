"""What is on its way from the sampler to its parent, and what is dropped when the parent is slow?"""

from __future__ import annotations

import socket
from collections import deque

import msgspec

from claimscope.nvml.wire import FromSampler

MAX_KEPT_EVENTS = 4096


class ParentGoneError(Exception):
    """The socket is closed: nobody is there to sample for."""


class Outbox:
    """What is on its way to the parent. Windows are dropped, events and inventories are kept."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._encode = msgspec.msgpack.Encoder().encode
        self._kept: deque[bytes] = deque()
        self._windows: deque[bytes] = deque()
        self.dropped = 0
        self.events_missed = 0

    def keep(self, message: FromSampler) -> None:
        """Sends it now or at a later tick."""
        if len(self._kept) >= MAX_KEPT_EVENTS:
            self._kept.popleft()
            self.events_missed += 1
        self._kept.append(self._encode(message))
        self.flush()

    def windows(self, messages: list[FromSampler]) -> None:
        """Sends what it can until the next windows come; the older ones are then dropped."""
        self.dropped += len(self._windows)
        self._windows.clear()
        self._windows.extend(map(self._encode, messages))
        self.flush()

    def flush(self) -> None:
        """Sends as much as the parent takes without waiting."""
        for queue in (self._kept, self._windows):
            while queue:
                try:
                    self._channel.send(queue[0])
                except BlockingIOError:
                    return
                except OSError as error:
                    if isinstance(error, ConnectionError):
                        raise ParentGoneError from error
                    self.dropped += 1  # EMSGSIZE, ENOBUFS: this one will never fit
                queue.popleft()
