"""What do the kubelet and the API server say, in types that name only the fields that are read.

Frozen dataclasses are what the rest of the program gets; `msgspec.Struct`s decode the API server's JSON. Importing
this module loads neither gRPC nor HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

AttributeValue = str | int | bool


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


# --- JSON of the API server. Go writes absent lists as null, so every list may be None. ---


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """metadata of an object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    """metadata of a list."""

    resource_version: str = ""


class RawList(msgspec.Struct, frozen=True):
    """A list of any kind, items still undecoded."""

    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None


class WatchLine(msgspec.Struct, frozen=True):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class Versioned(msgspec.Struct, frozen=True):
    """Any object, for its metadata alone (bookmarks)."""

    metadata: Meta = Meta()


class Status(msgspec.Struct, frozen=True):
    """metav1.Status: the body of a refusal and the object of an ERROR line."""

    code: int = 0
    reason: str = ""
    message: str = ""


class GroupVersion(msgspec.Struct, frozen=True):
    """One served version of an API group."""

    version: str


class ApiGroup(msgspec.Struct, frozen=True):
    """The answer of /apis/<group>."""

    versions: list[GroupVersion] | None = None


class ApiResource(msgspec.Struct, frozen=True):
    """One kind in a served version."""

    name: str


class ApiResourceList(msgspec.Struct, frozen=True):
    """The answer of /apis/<group>/<version>."""

    resources: list[ApiResource] | None = None


class Attribute(msgspec.Struct, frozen=True):
    """One attribute: one of the members is set (lists, alpha in 1.36, are not read)."""

    string: str | None = None
    version: str | None = None
    int_: int | None = msgspec.field(name="int", default=None)
    bool_: bool | None = msgspec.field(name="bool", default=None)

    def value(self) -> AttributeValue | None:
        """The value, or None where it has a shape that is not read."""
        for value in (self.string, self.version, self.int_, self.bool_):
            if value is not None:
                return value
        return None


class BasicDevice(msgspec.Struct, frozen=True):
    """`basic` of a v1beta1 device."""

    attributes: dict[str, Attribute] | None = None


class DeviceSpec(msgspec.Struct, frozen=True):
    """One device of a slice, in the shapes of v1, v1beta2 (flat) and v1beta1 (basic)."""

    name: str
    attributes: dict[str, Attribute] | None = None
    basic: BasicDevice | None = None


class PoolSpec(msgspec.Struct, frozen=True, rename="camel"):
    """spec.pool of a slice."""

    name: str
    generation: int = 0
    resource_slice_count: int = 1


class SliceSpec(msgspec.Struct, frozen=True, rename="camel"):
    """spec of a slice."""

    driver: str
    pool: PoolSpec
    node_name: str | None = None
    devices: list[DeviceSpec] | None = None


class ResourceSlice(msgspec.Struct, frozen=True):
    """A ResourceSlice."""

    metadata: Meta
    spec: SliceSpec


class DeviceResult(msgspec.Struct, frozen=True, rename="camel"):
    """status.allocation.devices.results[] of a claim; the same in all versions."""

    request: str
    driver: str
    pool: str
    device: str
    admin_access: bool | None = None
    share_id: str | None = msgspec.field(name="shareID", default=None)


class DeviceAllocation(msgspec.Struct, frozen=True):
    """status.allocation.devices of a claim."""

    results: list[DeviceResult] | None = None


class Allocation(msgspec.Struct, frozen=True):
    """status.allocation of a claim."""

    devices: DeviceAllocation = DeviceAllocation()


class ClaimStatus(msgspec.Struct, frozen=True):
    """status of a claim."""

    allocation: Allocation | None = None


class ResourceClaim(msgspec.Struct, frozen=True):
    """A ResourceClaim."""

    metadata: Meta
    status: ClaimStatus = ClaimStatus()
