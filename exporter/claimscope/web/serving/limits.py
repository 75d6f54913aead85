"""What may one client cost the web server?

Rows of numbers; `connection.py` and `listener.py` hold them, docs/serving.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes. Times are of the whole thing named, and not between two bytes."""

    connections: int = 100  # one more ends the oldest idle one of the client that has most
    handshake_seconds: float = 5.0  # to agree on TLS
    head_seconds: float = 10.0  # for a request's line and headers to arrive
    answer_seconds: float = 60.0  # from there until the answer is written
    idle_seconds: float = 150.0  # between two requests: longer than scrape intervals in use
    linger_seconds: float = 2.0  # for the last bytes of a connection that is closed
    line_bytes: int = 8190  # of a request line
    header_bytes: int = 8190  # of one header
    headers: int = 64
    request_bytes: int = 64 * 1024  # sent and not answered yet: head, body, and requests behind it

    def rows(self) -> list[tuple[str, float]]:
        """Names and numbers."""
        return [(each.name, getattr(self, each.name)) for each in fields(self)]
