"""Which kinds does the controller follow, in which API versions, and what of them is kept?

One row a kind. `name` is the label `resource` of the controller's own metrics and the key under which the cluster's
state keeps the objects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from claimscope.kube import objects
from claimscope.kube.compact import Sharing

# Extended resources that stand for accelerators. The names are each vendor's device plugin's.
_ACCELERATORS: Final = re.compile(
    r"^(nvidia\.com/(gpu|mig-|pgpu|vgpu)|amd\.com/gpu|gpu\.intel\.com/|intel\.com/gpu|google\.com/tpu|habana\.ai/|"
    r"aws\.amazon\.com/neuron|deviceclass\.resource\.kubernetes\.io/|metax-tech\.com/gpu|huawei\.com/Ascend)"
)
_DIGITS: Final = 19  # of an int64; Python refuses to read more than 4,300
IMPLICIT_PREFIX: Final = "deviceclass.resource.kubernetes.io/"  # every class stands for such a resource of its name

EVENT_REASONS: Final = (
    "FailedResourceClaimCreation",
    "FailedPrepareDynamicResources",
    "BindingConditionsPending",
    "DeviceTaintManagerEviction",
)


def is_accelerator(resource: str) -> bool:
    """True for extended resources that are known to stand for GPUs and their like; device classes may map others."""
    return _ACCELERATORS.match(resource) is not None


def is_extended_resource(resource: str) -> bool:
    """True for what device plugins offer and device classes map: any name with a domain that is not Kubernetes' own.

    Source: IsExtendedResourceName in Kubernetes pkg/apis/core/v1/helper.
    """
    return resource.startswith(IMPLICIT_PREFIX) or ("/" in resource and "kubernetes.io/" not in resource)


def extended_resources_of(pod: objects.Pod) -> dict[str, int]:
    """How much of each extended resource a pod needs at once, without zeros.

    Init containers run before the others, one after the other; those that go on (sidecars) add to all that come later.
    """
    if not _asks_for_any(pod):  # counting takes long for those many that ask by claim
        return {}
    asked: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for container in pod.spec.init_containers or ():
        limits = _limits(container)
        if container.restart_policy == "Always":
            asked.update(limits)
            most |= asked
        else:
            most |= asked + Counter(limits)
    for container in pod.spec.containers or ():
        asked.update(_limits(container))
    return dict(most | asked)


def _asks_for_any(pod: objects.Pod) -> bool:
    for container in (*(pod.spec.containers or ()), *(pod.spec.init_containers or ())):
        if container.resources is not None and container.resources.limits and _limits(container):
            return True
    return False


def _limits(container: objects.Container) -> dict[str, int]:
    limits = (container.resources.limits if container.resources is not None else None) or {}
    return {
        name: number
        for name, text in limits.items()
        if is_extended_resource(name) and (number := _count(str(text))) > 0
    }


def _count(text: str) -> int:
    """A quantity that is a whole number, as those of extended resources are; 0 for others."""
    return int(text) if len(text) <= _DIGITS and text.isdecimal() else 0


def pod_matters(pod: objects.Pod) -> bool:
    """False for pods that have to do with no device; they are dropped as soon as they are decoded.

    Which extended resources stand for devices is a matter of the device classes, which are not known here: pods that
    ask for any of them are kept.
    """
    return bool(
        pod.spec.resource_claims
        or pod.status.extended_resource_claim_status is not None
        or _asks_for_any(pod)
    )


def _names_devices(rule: objects.DeviceTaintRule) -> bool:
    """False for rules that select by class or expression, as they could in v1alpha3 until Kubernetes 1.34.

    What they taint is not known here; without those fields they would look as if they tainted every device.
    """
    selector = rule.spec.device_selector
    return selector is None or not (selector.device_class_name or selector.selectors)


def _anything(_: Any) -> bool:  # noqa: ANN401 - of whatever kind the row is
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedKind:
    """One row."""

    name: str
    group: str  # "" is the core group
    versions: tuple[str, ...]  # best first; the first one served is taken
    plural: str
    kind: type[Any]  # the struct it is decoded to
    keep: Callable[[Any], bool] = _anything
    compact: Callable[[], Callable[[Any], Any]] | None = None  # makes what keeps an object in less memory
    params: dict[str, str] = field(default_factory=dict)  # field and label selectors
    namespace: str | None = None  # only this namespace
    required: bool = True  # False: its absence (not served, 403) does not keep the controller from being ready
    about: str = ""  # what is missing without it, for logs and doctor

    @property
    def keeps_everything(self) -> bool:
        """True where no object is dropped."""
        return self.keep is _anything


RESOURCE_VERSIONS: Final = ("v1", "v1beta2")


def watched_kinds(own_namespace: str) -> tuple[WatchedKind, ...]:
    """Every row. Agents' Leases are looked for in `own_namespace` alone."""
    resource = objects.RESOURCE_GROUP
    return (
        WatchedKind(
            name="resourceclaims", group=resource, versions=RESOURCE_VERSIONS, plural="resourceclaims",
            kind=objects.ResourceClaim, compact=lambda: Sharing().claim,
            about="without claims there is nothing to show",
        ),
        WatchedKind(
            name="resourceslices", group=resource, versions=RESOURCE_VERSIONS, plural="resourceslices",
            kind=objects.ResourceSlice, about="capacity and most causes of pending claims are unknown",
        ),
        WatchedKind(
            name="deviceclasses", group=resource, versions=RESOURCE_VERSIONS, plural="deviceclasses",
            kind=objects.DeviceClass, about="capacity per class and most causes of pending claims are unknown",
        ),
        WatchedKind(
            name="resourceclaimtemplates", group=resource, versions=RESOURCE_VERSIONS,
            plural="resourceclaimtemplates", kind=objects.ResourceClaimTemplate, required=False,
            about="a missing template is not recognised as a cause",
        ),
        WatchedKind(
            name="devicetaintrules", group=resource, versions=(*RESOURCE_VERSIONS, "v1alpha3"),
            plural="devicetaintrules", kind=objects.DeviceTaintRule, keep=_names_devices, required=False,
            about="taints by rule are unknown (the API is on by default from Kubernetes 1.37)",
        ),
        WatchedKind(
            name="pods", group="", versions=("v1",), plural="pods", kind=objects.Pod, keep=pod_matters,
            compact=lambda: Sharing().pod,
            about="phases after allocation and what pods wait for are unknown",
        ),
        WatchedKind(
            name="nodes", group="", versions=("v1",), plural="nodes", kind=objects.Node, required=False,
            compact=lambda: Sharing().node,
            about="migration, drift and node selectors are unknown",
        ),
        WatchedKind(
            name="resourcequotas", group="", versions=("v1",), plural="resourcequotas",
            kind=objects.ResourceQuota, required=False, about="quota use is unknown",
        ),
        WatchedKind(
            name="leases", group="coordination.k8s.io", versions=("v1",), plural="leases", kind=objects.Lease,
            namespace=own_namespace, required=False, params={"labelSelector": "app.kubernetes.io/component=agent"},
            about="the agents' heartbeats are unknown",
        ),
        *(
            WatchedKind(
                name=f"events/{reason}", group="", versions=("v1",), plural="events", kind=objects.Event,
                params={"fieldSelector": f"reason={reason}"}, required=False,
                about="what the claim controller, the scheduler and kubelets say about pods is unknown",
            )
            for reason in EVENT_REASONS
        ),
    )
