"""What is shown of one claim? Its request in a few words, and its devices as slices and the kubelet describe them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from claimscope.claims.cluster import holdings_of
from claimscope.claims.model import DeviceFacts, DeviceKey, HeldDevice
from claimscope.kube.objects import ClaimRequest, DeviceRequest, ResourceClaim, unix_seconds

ALL_DEVICES = "All"
EXTENDED_RESOURCE = "extended_resource"
_NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What follows from a claim object alone; made anew only when the object changes."""

    deviceclass: str
    alternative: str
    requested_devices: int | None
    source: str
    observes_only: bool  # every request is for adminAccess
    created_wall: float | None
    deleting_wall: float | None
    allocated_wall: float | None


def shape_of(claim: ResourceClaim) -> Shape:
    """The few words."""
    allocation = claim.status.allocation
    taken = _alternatives(claim)
    asked = [asked_of(request, taken) for request in claim.spec.devices.requests or ()]
    return Shape(
        # The same few words on thousands of claims: kept once.
        deviceclass=sys.intern("+".join(dict.fromkeys(each.device_class_name for each in asked if each is not None))),
        alternative=",".join(taken),
        requested_devices=_count(asked),
        source=_source(claim),
        observes_only=bool(asked) and all(each is not None and bool(each.admin_access) for each in asked),
        created_wall=unix_seconds(claim.metadata.creation_timestamp),
        deleting_wall=unix_seconds(claim.metadata.deletion_timestamp),
        allocated_wall=unix_seconds(allocation.allocation_timestamp) if allocation is not None else None,
    )


def deviceclass_of(claim: ResourceClaim) -> str:
    """The distinct classes that a claim asks for, joined with "+"; of a prioritized list what it got or the first."""
    return shape_of(claim).deviceclass


def asked_of(request: ClaimRequest, taken: Iterable[str] = ()) -> DeviceRequest | None:
    """What a request comes down to: of a prioritized list the alternative taken, or the first while none is."""
    if request.exactly is not None:
        return request.exactly
    alternatives = request.first_available or ()
    chosen = (each for each in alternatives if f"{request.name}/{each.name}" in taken)
    return next(chosen, alternatives[0] if alternatives else None)


def _alternatives(claim: ResourceClaim) -> tuple[str, ...]:
    allocation = claim.status.allocation
    results = (allocation.devices.results if allocation is not None else None) or ()
    return tuple(dict.fromkeys([each.request for each in results if "/" in each.request]))


def _count(asked: list[DeviceRequest | None]) -> int | None:
    total = 0
    for each in asked:
        if each is None or each.allocation_mode == ALL_DEVICES:
            return None
        total += 1 if each.count is None else each.count
    return total


def _source(claim: ResourceClaim) -> str:
    annotations = claim.metadata.annotations
    if annotations is not None and annotations.extended_resource == "true":
        return EXTENDED_RESOURCE
    return "template" if annotations is not None and annotations.pod_claim_name else "claim"


def devices_of(
    claim: ResourceClaim,
    facts: Mapping[DeviceKey, DeviceFacts],
    healths: Mapping[DeviceKey, str],
    before: tuple[HeldDevice, ...],
) -> tuple[HeldDevice, ...]:
    """The devices of a claim. What slices told once is kept while they are gone: a kubelet deletes all slices of its
    node when it starts, and the devices are in use all the same."""
    known = {device.key: device for device in before}
    return tuple(
        HeldDevice(
            key=holding.device,
            request=holding.request,
            uuid=_uuid(facts.get(holding.device), known.get(holding.device)),
            node=_node(facts.get(holding.device), known.get(holding.device)),
            admin=holding.admin,
            share_id=holding.share_id or "",
            consumed=holding.consumed or _NOTHING,
            health=healths.get(holding.device, ""),
        )
        for holding in holdings_of(claim)
    )


def _uuid(facts: DeviceFacts | None, known: HeldDevice | None) -> str:
    if facts is None:
        return known.uuid if known is not None else ""
    value = facts.attribute("uuid")
    return value if isinstance(value, str) else ""


def _node(facts: DeviceFacts | None, known: HeldDevice | None) -> str:
    if facts is None:
        return known.node if known is not None else ""
    return facts.node or ""
