"""What does the node's part of the program get from the kubelet and the API server?

Importing this module loads neither gRPC nor HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from claimscope.kube.objects import AttributeValue


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimDevice:
    """One device of a claim, as pod-resources lists it."""

    driver: str
    pool: str
    device: str
    cdi: tuple[str, ...] = ()  # CDI names; kubelets accumulate them over the devices of a claim: never a key
    share_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimEntry:
    """One ResourceClaim of one container. `resources` is empty until the driver has prepared the claim."""

    namespace: str
    name: str
    resources: tuple[ClaimDevice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEntry:
    """One container with what it holds."""

    name: str
    devices: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (resource name, device ids), each id once
    claims: tuple[ClaimEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodEntry:
    """One active pod of this node. The kubelet tells no pod UID here."""

    namespace: str
    name: str
    containers: tuple[ContainerEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One answer of the kubelet's List."""

    pods: tuple[PodEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceDevice:
    """One device that a driver published for this node."""

    driver: str
    pool: str
    device: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)  # the driver's own prefix is cut off
    present: bool = True  # False: no slice lists it any more (the kubelet wipes slices when it or a driver restarts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimResult:
    """One allocated device of a claim, as its status tells it."""

    request: str
    driver: str
    pool: str
    device: str
    admin_access: bool = False
    share_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFacts:
    """What only the claim object itself tells."""

    uid: str
    results: tuple[ClaimResult, ...] = ()
