"""In which namespaces may a caller see the names of claims?

Where they may get ResourceClaims, as the API server says: one question for all namespaces at once, and only where that
is refused one for each namespace that an answer would show.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from claimscope.kube.reviews import Caller, Deed
from claimscope.web.review.reviewer import CrowdedError, Reviewer, ReviewFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACES_MAX: Final = 1_000  # reviewed for one answer; the claims of further ones are left out
_AT_ONCE: Final = 8
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 label
_DRA: Final = "resource.k8s.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The namespaces of an answer that somebody may see."""

    everything: bool = False
    namespaces: frozenset[str] = frozenset()

    def shows(self, namespace: str) -> bool:
        """Whether the names of claims there may be shown. What is in no namespace is no secret of one."""
        return self.everything or not namespace or namespace in self.namespaces


EVERYTHING: Final = Sight(everything=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """A caller who was let in."""

    reviewer: Reviewer
    caller: Caller

    async def sight(self, namespaces: Callable[[], Iterable[str]]) -> Sight:
        """What of these namespaces may be shown. Raises CrowdedError, ReviewFailedError."""
        if await self._may_read(""):
            return EVERYTHING
        wanted = sorted({name for name in namespaces() if _NAMESPACE.fullmatch(name)})[:NAMESPACES_MAX]
        left, seen = iter(wanted), set[str]()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(_AT_ONCE, len(wanted))):
                    tasks.create_task(self._look(left, seen))
        except ExceptionGroup as group:
            failed, others = group.split((CrowdedError, ReviewFailedError))
            if failed is None or others is not None:
                raise
            raise failed.exceptions[0] from None
        return Sight(namespaces=frozenset(seen))

    async def _look(self, left: Iterator[str], seen: set[str]) -> None:
        for namespace in left:
            if await self._may_read(namespace):
                seen.add(namespace)

    async def _may_read(self, namespace: str) -> bool:
        deed = Deed(verb="get", group=_DRA, resource="resourceclaims", namespace=namespace)
        return await self.reviewer.may(self.caller, deed)


VIEWER: Final = web.RequestKey("claimscope.viewer", Viewer)


async def sight_of(request: web.Request, namespaces: Callable[[], Iterable[str]]) -> Sight:
    """What the sender of a request may see of the namespaces that are named when they are asked for.

    Everything where callers are not reviewed. Raises CrowdedError, ReviewFailedError.
    """
    viewer = request.get(VIEWER)
    return EVERYTHING if viewer is None else await viewer.sight(namespaces)
