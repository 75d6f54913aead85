"""What does only the claim object tell of an allocated device: its request, and whether it is admin access?

pod-resources shows a device held with adminAccess exactly like any other, and drivers prepare it alike. Where the
agent is granted `get` on resourceclaims (collector `claim-lookup`, off by default) each claim is read once, when it
is first seen; nothing is listed or watched. Without it attribution goes on without these facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError, ApiReason, decode
from claimscope.kube.objects import ResourceClaim
from claimscope.kube.structs import ClaimFacts, ClaimResult

ClaimKey = tuple[str, str, str]  # namespace, name, uid
_REFUSED_SECONDS: Final = 60.0  # how long to leave the API server alone after it refused
_AT_ONCE: Final = 32  # claims read in one round; the rest waits for the next one


class ClaimLookup:
    """Reads claims by name and keeps what it read for as long as they are held."""

    def __init__(self, api: ApiClient, version: str, clock: Clock, on_error: Callable[[ApiError], None]) -> None:
        self._api = api
        self._base = f"/apis/resource.k8s.io/{version}/namespaces"
        self._clock = clock
        self._on_error = on_error
        self._known: dict[str, ClaimFacts | None] = {}  # None: the claim under that name is another one, or gone
        self._not_before_ns = 0

    def facts(self) -> Mapping[str, ClaimFacts]:
        """What is known, by claim UID; a copy that never changes."""
        return MappingProxyType({uid: facts for uid, facts in self._known.items() if facts is not None})

    async def refresh(self, held: Iterable[ClaimKey]) -> None:
        """Reads the claims that are held and not known yet; forgets those that are not held any more."""
        wanted = {uid: (namespace, name) for namespace, name, uid in held}
        self._known = {uid: facts for uid, facts in self._known.items() if uid in wanted}
        if self._clock.monotonic_ns() < self._not_before_ns:
            return
        for uid in [uid for uid in wanted if uid not in self._known][:_AT_ONCE]:
            namespace, name = wanted[uid]
            path = f"{self._base}/{namespace}/resourceclaims/{name}"
            # Stands where this is cancelled, too: a server that is too slow is left alone like one that refuses.
            self._not_before_ns = self._clock.monotonic_ns() + round(_REFUSED_SECONDS * 1e9)
            try:
                claim = decode(await self._api.get(path), ResourceClaim, path)
            except ApiError as error:
                if error.reason is not ApiReason.NOT_FOUND:
                    self._on_error(error)
                    return
                self._known[uid] = None
            else:
                self._known[uid] = facts_of(claim) if claim.metadata.uid == uid else None
            self._not_before_ns = 0


def facts_of(claim: ResourceClaim) -> ClaimFacts:
    """The facts in one claim."""
    allocation = claim.status.allocation
    results = allocation.devices.results if allocation is not None else None
    return ClaimFacts(
        uid=claim.metadata.uid,
        results=tuple(
            ClaimResult(
                request=result.request,
                driver=result.driver,
                pool=result.pool,
                device=result.device,
                admin_access=bool(result.admin_access),
                share_id=result.share_id,
            )
            for result in results or ()
        ),
    )
