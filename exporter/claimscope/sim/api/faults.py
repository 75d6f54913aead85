"""What does the simulated API server answer when a test wants it to fail?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from aiohttp import web

from claimscope.sim.api.errors import Refused

_SLOW_PARTS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFault:
    """One answer instead of the real one."""

    status: int
    message: str = "injected"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    slow_seconds: float = 0.0  # the body takes so long
    cut_bytes: int | None = None  # the connection ends after so many bytes of the body


async def faulty(request: web.Request, fault: HttpFault) -> web.StreamResponse:
    """Answers with a fault."""
    body = fault.body
    headers = dict(fault.headers)
    if body is None:
        body = msgspec.json.encode(Refused(fault.status, "", fault.message).status)
        headers["Content-Type"] = "application/json"
    if not fault.slow_seconds and fault.cut_bytes is None:
        return web.Response(status=fault.status, body=body, headers=headers)
    response = web.StreamResponse(status=fault.status, headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    body = body[: fault.cut_bytes]
    step = max(1, -(-len(body) // _SLOW_PARTS)) if fault.slow_seconds else max(1, len(body))
    for start in range(0, len(body), step):
        await response.write(body[start : start + step])
        await asyncio.sleep(fault.slow_seconds / _SLOW_PARTS)
    if fault.cut_bytes is not None and request.transport is not None:
        request.transport.close()
    return response
