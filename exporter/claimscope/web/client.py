"""How does the command line ask a running controller?"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from claimscope.claims.explain import Explanation

_SECONDS: Final = aiohttp.ClientTimeout(total=20)
_BYTES_MAX: Final = 4 << 20  # an explanation has some thousand


class ClientError(Exception):
    """The controller gave no answer that can be used: one line that says where, what and what to do."""


class _Refusal(msgspec.Struct, frozen=True):
    error: str


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


async def explanation(controller_url: str, namespace: str, name: str) -> Explanation:
    """What a controller explains of a claim; raises ClientError."""
    if not _is_base_url(controller_url):
        raise ClientError(f"--controller: `{controller_url}` is not http://HOST:PORT")
    url = f"{controller_url.rstrip('/')}/api/v1/claims/{quote(namespace, safe='')}/{quote(name, safe='')}"
    try:
        async with aiohttp.ClientSession(timeout=_SECONDS) as session, session.get(url) as response:
            status = response.status
            body = await response.content.read(_BYTES_MAX)
            while not response.content.at_eof() and len(body) < _BYTES_MAX:
                body += await response.content.read(_BYTES_MAX - len(body))
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise ClientError(f"no controller answers at {controller_url}: {reason}; check --controller") from error
    try:
        if status in (200, 404):  # of a name that no claim has there is something to say as well
            return msgspec.json.decode(body, type=Explanation)
        raise ClientError(msgspec.json.decode(body, type=_Refusal).error)
    except msgspec.DecodeError as error:
        raise ClientError(
            f"{url} answered {status} with something else than an explanation: {error}; is a claimscope controller of "
            "this version there?"
        ) from error
