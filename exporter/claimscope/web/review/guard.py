"""Which requests does the web server answer where Kubernetes reviews its callers?

Probes are open to everybody. Everything else needs a token that the API server accepts, and its user the right to
`get` the path (`nonResourceURLs` of a ClusterRole).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiohttp import web

from claimscope.kube.reviews import Deed
from claimscope.web.review.reviewer import CrowdedError, Reviewer, ReviewFailedError
from claimscope.web.review.sight import VIEWER, Viewer
from claimscope.web.site import in_json, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.typedefs import Handler, Middleware

PROBES: Final = frozenset({"/livez", "/readyz"})
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE | re.ASCII)  # RFC 6750 2.1
_WHO: Final = (
    "this needs a token of this Kubernetes cluster that is still valid: send `Authorization: Bearer TOKEN`"
)
_FAILED: Final = "the API server did not say who asks or what they may do; the log of claimscope has the reason"


def review_guard(reviewer: Reviewer) -> Middleware:
    """A middleware that lets in whom the reviewer knows and allows."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in PROBES:
            return await handler(request)
        token = _token(request)
        if token is None:
            return _refusal(request, 401, _WHO, {"WWW-Authenticate": 'Bearer realm="claimscope"'})
        try:
            caller = await reviewer.caller(token, request.remote or "")
            if caller is None:
                challenge = 'Bearer realm="claimscope", error="invalid_token"'
                return _refusal(request, 401, _WHO, {"WWW-Authenticate": challenge})
            path = _path(request)
            verb = request.method.lower()
            if path is not None and not await reviewer.may(caller, Deed(verb=verb, path=path)):
                return _refusal(
                    request, 403, f"user {_shown(caller.name)} may not {verb} {path}: bind a ClusterRole to them with "
                    f"nonResourceURLs [{path}] and verbs [{verb}]",
                )
            request[VIEWER] = Viewer(reviewer=reviewer, caller=caller)
            return await handler(request)
        except CrowdedError as error:
            return _refusal(request, 503, str(error), {"Retry-After": "1"})
        except ReviewFailedError:
            return _refusal(request, 500, _FAILED)

    return guard


def _token(request: web.Request) -> str | None:
    lines = request.headers.getall("Authorization", [])
    found = _BEARER.fullmatch(lines[0]) if len(lines) == 1 else None
    return None if found is None else found[1]


def _path(request: web.Request) -> str | None:
    """The path as rules name it, "/api/v1/claims" for a claim below it; None where nothing is served."""
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical.partition("/{")[0] or "/"


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name[:300])


def _refusal(
    request: web.Request, status: int, text: str, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    if not request.path.startswith("/api/"):
        return plain(f"{text}\n", status=status, headers=headers)
    answer = in_json({"error": text}, status=status)
    answer.headers.update(headers or {})
    return answer
