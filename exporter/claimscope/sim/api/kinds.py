"""Which kinds does the simulated API server know, and what is particular about each?"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from claimscope.sim.api.store import Kind

_RESOURCE: Final = "resource.k8s.io"

RESOURCE_CLAIMS: Final = Kind(
    group=_RESOURCE, version="v1", plural="resourceclaims", kind="ResourceClaim", namespaced=True,
    generation=False, immutable=True,
)
RESOURCE_SLICES: Final = Kind(
    group=_RESOURCE, version="v1", plural="resourceslices", kind="ResourceSlice", status=False,
    fields={"spec.nodeName": ("spec", "nodeName"), "spec.driver": ("spec", "driver")},
)
DEVICE_CLASSES: Final = Kind(
    group=_RESOURCE, version="v1", plural="deviceclasses", kind="DeviceClass", status=False
)
RESOURCE_CLAIM_TEMPLATES: Final = Kind(
    group=_RESOURCE, version="v1", plural="resourceclaimtemplates", kind="ResourceClaimTemplate", namespaced=True,
    status=False, generation=False, immutable=True,
)
DEVICE_TAINT_RULES: Final = Kind(group=_RESOURCE, version="v1", plural="devicetaintrules", kind="DeviceTaintRule")
PODS: Final = Kind(
    group="", version="v1", plural="pods", kind="Pod", namespaced=True, grace_seconds=30,
    fields={
        "spec.nodeName": ("spec", "nodeName"),
        "spec.schedulerName": ("spec", "schedulerName"),
        "status.phase": ("status", "phase"),
    },
)
NODES: Final = Kind(group="", version="v1", plural="nodes", kind="Node", generation=False, status_on_create=True)
RESOURCE_QUOTAS: Final = Kind(
    group="", version="v1", plural="resourcequotas", kind="ResourceQuota", namespaced=True, generation=False
)
EVENTS: Final = Kind(
    group="", version="v1", plural="events", kind="Event", namespaced=True, status=False, generation=False,
    put_creates=True,
    fields={
        "reason": ("reason",),
        "type": ("type",),
        "involvedObject.kind": ("involvedObject", "kind"),
        "involvedObject.namespace": ("involvedObject", "namespace"),
        "involvedObject.name": ("involvedObject", "name"),
        "involvedObject.uid": ("involvedObject", "uid"),
        "reportingComponent": ("reportingComponent",),
    },
)
NAMESPACES: Final = Kind(
    group="", version="v1", plural="namespaces", kind="Namespace", generation=False,
    fields={"status.phase": ("status", "phase")},
)
LEASES: Final = Kind(
    group="coordination.k8s.io", version="v1", plural="leases", kind="Lease", namespaced=True, status=False,
    generation=False, put_creates=True, unconditional=False,
)

ALL_KINDS: Final = (
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    DEVICE_CLASSES,
    RESOURCE_CLAIM_TEMPLATES,
    DEVICE_TAINT_RULES,
    PODS,
    NODES,
    RESOURCE_QUOTAS,
    EVENTS,
    NAMESPACES,
    LEASES,
)


def in_version(kind: Kind, version: str) -> Kind:
    """The same kind, and the same stored objects, served in another version of its group."""
    return replace(kind, version=version)
