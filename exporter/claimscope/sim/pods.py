"""Which pods hold which devices at time t, and how does the cluster show the devices?"""

from __future__ import annotations

import uuid
from typing import Any

from claimscope.sim.moment import DRIVER, NAMESPACE, SimClaim, SimContainer, SimPod
from claimscope.sim.published import mig_device_name, slice_device
from claimscope.sim.scenario import ClaimPlan, PodPlan, parse_device
from claimscope.sim.timeline import Timeline


def pod_of(timeline: Timeline, node_name: str, plan: PodPlan, run: int, t_seconds: float) -> SimPod:
    """The pod number `run` of a plan, with the devices that there are at `t_seconds`."""
    suffix = "" if plan.period is None else f"-{run}"
    claims = []
    for claim in plan.claims:
        devices = tuple(
            name for name in (_dra_name(timeline, text, t_seconds) for text in claim.devices) if name is not None
        )
        if devices:
            claims.append(_claim(timeline, node_name, plan, claim, devices, "" if claim.shared else suffix))
    plugin = tuple(
        (resource, ids)
        for resource, texts in plan.plugin.items()
        if (ids := tuple(i for i in (_plugin_id(timeline, text, t_seconds) for text in texts) if i is not None))
    )
    container = SimContainer(name=plan.container, devices=plugin, claims=tuple(claims))
    return SimPod(namespace=plan.namespace, name=plan.name + suffix, containers=(container,), workload=plan.workload)


def _claim(
    timeline: Timeline, node_name: str, plan: PodPlan, claim: ClaimPlan, devices: tuple[str, ...], suffix: str
) -> SimClaim:
    name = claim.name + suffix
    key = f"{timeline.profile.name}/{plan.namespace}/{name}"
    shares = tuple(str(uuid.uuid5(NAMESPACE, f"{key}/{device}")) for device in devices if claim.capacity_share)
    return SimClaim(
        namespace=plan.namespace,
        name=name,
        uid=str(uuid.uuid5(NAMESPACE, key)),
        driver=claim.driver,
        pool=node_name,
        devices=devices,
        share_ids=shares,
        admin_access=claim.admin_access,
    )


def _dra_name(timeline: Timeline, text: str, t_seconds: float) -> str | None:
    gpu, place, _ = parse_device(text)
    if place is None:
        return f"gpu-{gpu}"
    places = timeline.places(gpu, t_seconds)
    return mig_device_name(gpu, places[place]) if place < len(places) else None


def _plugin_id(timeline: Timeline, text: str, t_seconds: float) -> str | None:
    gpu, place, replica = parse_device(text)
    suffix = "" if replica is None else f"::{replica}"
    if place is None:
        return timeline.profile.gpu_uuid(gpu) + suffix
    places = timeline.places(gpu, t_seconds)
    if place >= len(places):
        return None
    return timeline.profile.mig_uuid(gpu, timeline.layout_number(gpu, t_seconds), places[place]) + suffix


def slices_of(timeline: Timeline, node: str, t_seconds: float) -> tuple[dict[str, Any], ...]:
    """The node's ResourceSlices as NVIDIA's driver publishes them, resource.k8s.io/v1.

    A GPU that is cut into MIG devices is represented by these alone.
    """
    devices: list[dict[str, Any]] = []
    for gpu in range(timeline.profile.gpu_count):
        places = timeline.places(gpu, t_seconds)
        if not places:
            devices.append(slice_device(timeline.profile, gpu, f"gpu-{gpu}", timeline.profile.gpu_uuid(gpu), None))
        number = timeline.layout_number(gpu, t_seconds)
        for place in places:
            part = timeline.profile.mig_uuid(gpu, number, place)
            devices.append(slice_device(timeline.profile, gpu, mig_device_name(gpu, place), part, place))
    return (
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": f"00000-{DRIVER}-{node}-sim"},
            "spec": {
                "driver": DRIVER,
                "nodeName": node,
                "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
                "devices": devices,
            },
        },
    )
