"""Who is let in to the pages, and in which order is that decided?

The probes stay open: the kubelet has neither password nor certificate. Then, each where it is configured: the rate
limit, the client's certificate, and who the caller is, by password or by token.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from claimscope.web.review.guard import PROBES
from claimscope.web.serving.basic_auth import CrowdedError, Passwords, credentials_of
from claimscope.web.serving.webconfig import ClientAuth, RateLimit, TlsSettings
from claimscope.web.site import EXTRA_HEADERS, WebCounters, in_json, plain

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from claimscope.web.serving.source import Serving, ServingSource

_CLIENTS: Final = 1_024
CHALLENGE: Final = 'Basic realm="claimscope", charset="UTF-8"'
_NO_CERTIFICATE: Final = "this needs a client certificate; present one of an authority in client_ca"
_WRONG_CERTIFICATE: Final = "no name in this client certificate is one of client_allowed_sans"
_WHO: Final = "this needs the name and password of one of basic_auth_users"
_CROWDED: Final = "too many passwords wait to be checked; come again in a moment"
_TOO_OFTEN: Final = "requests come faster than rate_limit allows; come again in a moment"


@dataclass(slots=True, kw_only=True)
class TokenBucket:
    """Lets `burst` requests through at once, and then one an interval: Go's rate.Limiter, as the toolkit uses it."""

    limit: RateLimit
    monotonic: Callable[[], float] = time.monotonic
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at = float(self.limit.burst), self.monotonic()

    def take(self) -> bool:
        """Whether one more may go through now."""
        now = self.monotonic()
        self._left = min(float(self.limit.burst), self._left + (now - self._at) / self.limit.interval_seconds)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RateLimits:
    """A bucket for each client, so that nobody uses up what is another's; those longest unused are forgotten."""

    def __init__(self) -> None:
        self._limit: RateLimit | None = None
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def too_often(self, limit: RateLimit | None, client: str) -> bool:
        """Whether this request of a client is one too many."""
        if limit != self._limit:
            self._limit = limit
            self._buckets.clear()
        if limit is None:
            return False
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = TokenBucket(limit=limit)
            if len(self._buckets) > _CLIENTS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(client)
        return not bucket.take()


def client_names(certificate: dict[str, Any]) -> set[str]:
    """The alternative names of a verified certificate, as Go writes them."""
    names: set[str] = set()
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in ("DNS", "email", "URI"):
            names.add(value)
        elif kind == "IP Address":
            try:
                names.add(str(ipaddress.ip_address(value.strip())))
            except ValueError:
                continue  # a form that names no address names none that is allowed
    return names


def certificate_trouble(tls: TlsSettings, certificate: dict[str, Any] | None) -> tuple[int, str] | None:
    """Status and words of the refusal of a client's certificate, or of there being none."""
    if tls.client_auth is not ClientAuth.REQUIRE_AND_VERIFY:
        return None
    if not certificate:
        return 401, _NO_CERTIFICATE
    if tls.client_allowed_sans and not client_names(certificate) & tls.client_allowed_sans:
        return 403, _WRONG_CERTIFICATE
    return None


def make_guards(
    serving: ServingSource | None, counters: WebCounters, token: Middleware | None = None
) -> tuple[Middleware, ...]:
    """The guards of a site, outermost first.

    `serving` is the web configuration file; None: there is none. `token` is the guard that knows callers by their
    token; who has shown a password of the file needs none.
    """
    if serving is None:
        return () if token is None else (token,)
    return (_configured(serving.now, counters, Passwords(), token),)


def _configured(
    serving: Callable[[], Serving], counters: WebCounters, passwords: Passwords, token: Middleware | None
) -> Middleware:
    rates = RateLimits()

    def refused(
        request: web.Request, reason: str, status: int, text: str, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        counters.refused[reason] += 1
        if not request.path.startswith("/api/"):
            return plain(f"{text}\n", status=status, headers=headers)
        answer = in_json({"error": text}, status=status)
        answer.headers.update(headers or {})
        return answer

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        now = serving()
        request[EXTRA_HEADERS] = _headers(now, request)
        if request.path in PROBES:
            return await handler(request)
        config = now.config
        if rates.too_often(config.rate_limit, request.remote or ""):
            return refused(request, "rate", 429, _TOO_OFTEN, {"Retry-After": "1"})
        if config.tls is not None:
            trouble = certificate_trouble(config.tls, request.get_extra_info("peercert"))
            if trouble is not None:
                return refused(request, "certificate", *trouble)
        given = credentials_of(request.headers.getall("Authorization", []))
        if config.users and given is not None:
            try:
                known = await passwords.right(config.users, *given, client=request.remote or "")
            except CrowdedError:
                return refused(request, "crowded", 429, _CROWDED, {"Retry-After": "1"})
            if known:
                return await handler(request)
            return refused(request, "password", 401, _WHO, {"WWW-Authenticate": CHALLENGE})
        if token is not None:
            return await token(request, handler)
        if config.users:
            return refused(request, "password", 401, _WHO, {"WWW-Authenticate": CHALLENGE})
        return await handler(request)

    return guard


def _headers(now: Serving, request: web.Request) -> dict[str, str]:
    """What the file adds to an answer; a connection made before TLS changed ends with it, so that none stays on it."""
    if request.get_extra_info("sslcontext") is now.context:
        return dict(now.config.headers)
    return {**now.config.headers, "Connection": "close"}
