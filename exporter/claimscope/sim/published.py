"""What do the API objects of a simulated node look like, its claims and the devices of its slices?"""

from __future__ import annotations

import uuid
from typing import Any

from claimscope.sim.moment import NAMESPACE, SimClaim, SimPod
from claimscope.sim.profiles import MigPlace, Profile


def mig_device_name(gpu: int, place: MigPlace) -> str:
    """The name that NVIDIA's driver gives it."""
    profile = place.profile.name.replace(".", "").replace("+", "-")
    return f"gpu-{gpu}-mig-{profile}-{place.profile.profile_id}-{place.start}"


def slice_device(profile: Profile, gpu: int, name: str, device_uuid: str, place: MigPlace | None) -> dict[str, Any]:
    """A device of a ResourceSlice."""
    attributes: dict[str, Any] = {
        "type": {"string": "gpu" if place is None else "mig"},
        "uuid": {"string": device_uuid},
        "productName": {"string": profile.model},
        "brand": {"string": "Nvidia"},
        "architecture": {"string": profile.architecture},
        "cudaComputeCapability": {"version": f"{profile.compute_capability[0]}.{profile.compute_capability[1]}.0"},
        "driverVersion": {"version": ".".join(str(int(part)) for part in profile.driver_version.split("."))},
        "cudaDriverVersion": {"version": f"{profile.cuda_version // 1000}.{profile.cuda_version % 1000 // 10}.0"},
        "resource.kubernetes.io/pciBusID": {"string": f"0000:{profile.bus_ids[gpu]:02x}:00.0"},
    }
    if place is None:
        memory = f"{profile.memory_mebibytes}Mi"
    else:
        attributes["parentUUID"] = {"string": profile.gpu_uuid(gpu)}
        attributes["profile"] = {"string": place.profile.name}
        memory = f"{place.profile.memory_mebibytes}Mi"
    return {"name": name, "attributes": attributes, "capacity": {"memory": {"value": memory}}}


def claim_object(claim: SimClaim, users: list[SimPod]) -> dict[str, Any]:
    """A ResourceClaim, allocated and reserved for these pods."""
    results: list[dict[str, Any]] = []
    for index, device in enumerate(claim.devices):
        result: dict[str, Any] = {"request": "gpu", "driver": claim.driver, "pool": claim.pool, "device": device}
        if claim.admin_access:
            result["adminAccess"] = True
        if claim.share_ids:
            result["shareID"] = claim.share_ids[index]
        results.append(result)
    exactly: dict[str, Any] = {"deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount"}
    exactly["count"] = len(claim.devices)
    if claim.admin_access:
        exactly["adminAccess"] = True
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"namespace": claim.namespace, "name": claim.name, "uid": claim.uid},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}},
        "status": {
            "allocation": {"devices": {"results": results}},
            "reservedFor": [
                {
                    "resource": "pods",
                    "name": pod.name,
                    "uid": str(uuid.uuid5(NAMESPACE, f"{pod.namespace}/{pod.name}")),
                }
                for pod in users
            ],
        },
    }
