"""How much of its ResourceQuotas has a namespace used, in devices of a class and in claims?

One quota can limit the devices of one class in up to three ways: by the class itself, by the extended resource that
every class stands for, and by the extended resource that the class maps. Claims count against all of them (Kubernetes
pkg/quota/v1/evaluator/core/resource_claims.go), so only one is shown: the one with the fewest devices left, in this
order where that does not decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from claimscope.cel.quantity import Quantity, QuantityError
from claimscope.claims.cluster import Cluster
from claimscope.kube.objects import DeviceClass, ResourceQuota, unix_seconds
from claimscope.metrics.cluster import sample
from claimscope.model import Sample

CLAIMS: Final = "count/resourceclaims.resource.k8s.io"

_OF_CLASS: Final = ".deviceclass.resource.k8s.io/devices"
_OF_IMPLICIT_RESOURCE: Final = "requests.deviceclass.resource.kubernetes.io/"
_OF_RESOURCE: Final = "requests."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """One key of one quota."""

    deviceclass: str
    order: int
    hard: float
    used: float | None  # None until the quota controller has counted

    @property
    def rank(self) -> tuple[float, int]:
        return self.hard - (self.used or 0), self.order


def quota_samples(cluster: Cluster) -> list[Sample]:
    """dra_quota_devices and dra_quota_claims."""
    classes = class_of_resource(cluster)
    samples: list[Sample] = []
    for key in sorted(cluster.quotas):
        quota = cluster.quotas[key]
        binding: dict[str, _Limit] = {}
        for limit in sorted(_limits(quota, classes), key=lambda each: each.rank):
            binding.setdefault(limit.deviceclass, limit)
        for name in sorted(binding):
            hard, used = binding[name].hard, binding[name].used
            samples.append(sample("dra_quota_devices", hard, *key, name, "hard"))
            if used is not None:
                samples.append(sample("dra_quota_devices", used, *key, name, "used"))
        for kind, texts in (("hard", quota.status.hard), ("used", quota.status.used)):
            amount = _amount((texts or {}).get(CLAIMS))
            if amount is not None:
                samples.append(sample("dra_quota_claims", amount, *key, kind))
    return samples


def class_of_resource(cluster: Cluster) -> dict[str, str]:
    """Extended resource -> the class that serves it: the newest of those that map it, the first by name among equals.

    Source: extendedResourceName in resource/v1 types.go.
    """
    chosen: dict[str, DeviceClass] = {}
    for name in sorted(cluster.classes):
        candidate = cluster.classes[name]
        resource = candidate.spec.extended_resource_name
        if resource and (resource not in chosen or _created(candidate) > _created(chosen[resource])):
            chosen[resource] = candidate
    return {resource: each.metadata.name for resource, each in chosen.items()}


def _created(device_class: DeviceClass) -> float:
    return unix_seconds(device_class.metadata.creation_timestamp) or 0.0


def _limits(quota: ResourceQuota, classes: dict[str, str]) -> Iterator[_Limit]:
    for key, text in (quota.status.hard or {}).items():
        found = _class_of(key, classes)
        hard = _amount(text)
        if found is not None and hard is not None:
            used = _amount((quota.status.used or {}).get(key))
            yield _Limit(deviceclass=found[0], order=found[1], hard=hard, used=used)


def _class_of(key: str, classes: dict[str, str]) -> tuple[str, int] | None:
    """The class whose devices a key limits, and the place of that way among the three; None for every other key."""
    if key.endswith(_OF_CLASS):
        return key.removesuffix(_OF_CLASS), 0
    if key.startswith(_OF_IMPLICIT_RESOURCE):
        return key.removeprefix(_OF_IMPLICIT_RESOURCE), 1
    if key.startswith(_OF_RESOURCE):
        name = classes.get(key.removeprefix(_OF_RESOURCE))
        return (name, 2) if name is not None else None
    return None


def _amount(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return Quantity.parse(text).as_float()
    except QuantityError:
        return None
