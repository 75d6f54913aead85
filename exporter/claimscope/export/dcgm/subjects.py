"""Whom does dcgm-exporter give a series, and with which labels?

A GPU, or in its place each GPU instance on it; once for every container that holds it, as dcgm-exporter does with
KUBERNETES_ENABLE_DRA. The labels stand in its order: the template's, then the driver's version and what a family has
alone, then those of Kubernetes by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from claimscope.model import Device, Hold, Inventory, PodRef

Labels = tuple[tuple[str, str], ...]

_LINK_SPELLING = {"UUID": "gpu_uuid", "modelName": "model_name"}
_COMPUTE_INSTANCE = re.compile(r"^\d+c\.")  # "1c.3g.40gb" is one compute instance of a "3g.40gb"


class Series:
    """The labels of one series, and what stands beside them for single families; each tuple is made once."""

    __slots__ = ("_attributes", "_identity", "_made", "labels")

    def __init__(self, identity: Labels, attributes: Labels) -> None:
        self._identity = identity
        self._attributes = attributes
        self._made: dict[Labels, Labels] = {}
        self.labels = identity + tuple(sorted(attributes))

    def with_(self, more: Labels) -> Labels:
        """The labels with some more."""
        if not more:
            return self.labels
        made = self._made.get(more)
        if made is None:
            made = self._made[more] = (*self._identity, *sorted(more), *sorted(self._attributes))
        return made

    def of_link(self, link: str) -> Labels:
        """The labels of one of its NVLinks, which dcgm-exporter spells otherwise."""
        key = (("nvlink", link),)
        made = self._made.get(key)
        if made is None:
            identity = tuple((_LINK_SPELLING.get(name, name), value) for name, value in self._identity)
            made = self._made[key] = (*key, *identity, *sorted(self._attributes))
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A GPU or a GPU instance."""

    gpu: Device
    members: tuple[str, ...]  # who has its readings: the GPU, or every MIG device in the instance
    series: tuple[Series, ...]
    pairs: Mapping[str, tuple[int, ...]]  # "0-1" -> links of the GPU that are known to lead there

    @property
    def instance(self) -> bool:
        """Whether it is a part of a GPU."""
        return self.members != (self.gpu.entity.uuid,)

    @property
    def entities(self) -> frozenset[str]:
        """Whose XIDs it shows."""
        return frozenset((self.gpu.entity.uuid, *self.members))

    @property
    def whole(self) -> bool:
        """A member's readings are those of the subject: no other compute instance is beside it."""
        return len(self.members) == 1


def long_bus_id(bus_id: str) -> str:
    """Linux' "0000:8d:00.0" as NVML spells it: "00000000:8D:00.0"."""
    domain, _, rest = bus_id.upper().partition(":")
    return f"{domain.rjust(8, '0')}:{rest}"


def subjects(
    inventory: Inventory, holds: Sequence[Hold], switched: Mapping[str, frozenset[int]], node: str, hostname_label: str
) -> tuple[Subject, ...]:
    """Every subject of a node; `switched` is, by GPU, the links that lead to an NVSwitch."""
    instances: defaultdict[str, dict[int, list[Device]]] = defaultdict(dict)
    for device in inventory.devices:
        if device.mig is not None and device.entity.parent is not None:
            instances[device.entity.parent].setdefault(device.mig.gpu_instance_id, []).append(device)
    held: defaultdict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        held[hold.entity].append(hold)
    index_of = {device.pci_bus_id: device.entity.gpu for device in inventory.devices if device.pci_bus_id is not None}
    version = (("DCGM_FI_DRIVER_VERSION", inventory.driver_version),) if inventory.driver_version else ()
    made: list[Subject] = []
    for gpu in inventory.devices:
        if gpu.entity.parent is not None:
            continue
        uuid = gpu.entity.uuid
        pairs = _pairs(gpu, switched.get(uuid, frozenset()), index_of)
        parts = [members for _, members in sorted(instances[uuid].items())]
        for members in parts or [[gpu]]:
            identity = (*_identity(gpu, members[0]), (hostname_label, node), *version)
            made.append(
                Subject(
                    gpu=gpu,
                    members=tuple(member.entity.uuid for member in members),
                    series=tuple(Series(identity, attributes) for attributes in _holders(members, held)),
                    pairs=pairs,
                )
            )
    return tuple(made)


def _identity(gpu: Device, member: Device) -> Iterator[tuple[str, str]]:
    number = str(gpu.entity.gpu)
    yield "gpu", number
    yield "UUID", gpu.entity.uuid
    yield "pci_bus_id", long_bus_id(gpu.pci_bus_id) if gpu.pci_bus_id is not None else ""
    yield "device", f"nvidia{number}"
    yield "modelName", gpu.model or ""
    if member.mig is not None:
        yield "GPU_I_PROFILE", _COMPUTE_INSTANCE.sub("", member.mig.profile)
        yield "GPU_I_ID", str(member.mig.gpu_instance_id)


def _holders(members: Iterable[Device], held: Mapping[str, Sequence[Hold]]) -> tuple[Labels, ...]:
    """Labels for each container that holds one of the devices; one empty set where nobody does."""
    found: dict[Labels, None] = {}
    for device in members:
        for hold in held.get(device.entity.uuid, ()):
            for pod in hold.pods or (None,):
                found[_attributes(device, hold, pod)] = None
    return tuple(found) or ((),)


def _attributes(device: Device, hold: Hold, pod: PodRef | None) -> Labels:
    holder = hold.holder
    labels = {"namespace": holder.namespace}
    if pod is not None:
        labels = {"namespace": pod.namespace, "pod": pod.pod, "container": pod.container}
    elif holder.source == "pod":
        labels |= {"pod": holder.name, "container": holder.container or ""}
    if holder.source == "claim":
        labels |= {
            "resourceclaim": holder.name,
            "dra_claim_name": holder.name,
            "dra_claim_namespace": holder.namespace,
            "dra_driver_name": hold.driver or "",
            "dra_pool_name": hold.pool or "",
            "dra_device_name": hold.device or "",
        }
        if device.mig is not None:
            labels |= {"dra_mig_profile": device.mig.profile, "dra_mig_device_uuid": device.entity.uuid}
    return tuple((name, value) for name, value in sorted(labels.items()) if value)


def _pairs(gpu: Device, switched: frozenset[int], index_of: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The links of a GPU by where they lead: to another GPU, which is named by its index, or to an NVSwitch."""
    links: defaultdict[str, list[int]] = defaultdict(list)
    for link, bus_id in sorted(gpu.nvlink_peers.items()):
        peer = index_of.get(bus_id)
        links[f"{gpu.entity.gpu}-{bus_id if peer is None else peer}"].append(link)
    for link in sorted(switched):
        links[f"{gpu.entity.gpu}-nvswitch"].append(link)
    return {pair: tuple(members) for pair, members in links.items()}
