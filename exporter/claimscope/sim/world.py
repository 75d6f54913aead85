"""What does the simulated node look like at time t? One pure function of profile, scenario and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SimClaim:
    """A ResourceClaim as a container holds it, in the words of the kubelet's pod-resources API."""

    namespace: str
    name: str
    uid: str
    driver: str
    pool: str
    devices: tuple[str, ...]  # DRA device names: "gpu-0", "gpu-0-mig-1g5gb-19-0"
    share_ids: tuple[str, ...] = ()  # one per device, or empty where devices are not shared by capacity
    admin_access: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SimContainer:
    """A container with what the device plugin and DRA gave it."""

    name: str
    devices: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (resource name, device ids)
    claims: tuple[SimClaim, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPod:
    """A pod that is active on the node."""

    namespace: str
    name: str
    containers: tuple[SimContainer, ...]
    workload: str


class World:
    """A node under a scenario."""

    def pods(self, t_seconds: float) -> tuple[SimPod, ...]:
        """The pods that are active at `t_seconds`."""
        raise NotImplementedError

    def slices(self, node_name: str) -> tuple[dict[str, Any], ...]:
        """The node's ResourceSlices, resource.k8s.io/v1."""
        raise NotImplementedError


def make_world(profile_name: str, scenario: object = None) -> World:
    """A node of the named profile."""
    raise NotImplementedError
