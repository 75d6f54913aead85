"""Holds from recordings of a real kubelet and from every form of id."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.attribution import Attribution, Unresolved, attribute, held_claims
from claimscope.kube.objects import AttributeValue, RawList, ResourceSlice
from claimscope.kube.podresources import decode_listing
from claimscope.kube.slices import SliceStore
from claimscope.kube.structs import (
    ClaimDevice,
    ClaimEntry,
    ClaimFacts,
    ClaimResult,
    ContainerEntry,
    Listing,
    PodEntry,
    SliceDevice,
)
from claimscope.model import Device, Entity, Hold, Holder, Inventory, MigInstance, PodRef

RECORDINGS = Path(__file__).parent / "recordings"
UID = "3938471c-1e40-496b-b35c-528e73abd27b"
OTHER_UID = "bc2bfd43-bee6-4611-97bc-bd747926512a"
SHARE = "1c9a4f0e-6d5d-4b6f-9c0e-0d8d6b1a2f33"


def gpu_uuid(n: int) -> str:
    return f"GPU-01000100-0000-0000-0000-{n:012d}"


def mig_uuid(n: int) -> str:
    return f"MIG-02000200-0000-0000-0000-{n:012d}"


def gpu(n: int, *, minor: int | None = None, mig_enabled: bool = False) -> Device:
    return Device(
        entity=Entity(uuid=gpu_uuid(n), gpu=n),
        minor=n if minor is None else minor,
        pci_bus_id=None,
        model=None,
        mig_enabled=mig_enabled,
    )


def mig(
    n: int,
    parent: int,
    gi: int,
    *,
    ci: int = 0,
    profile: str = "1g.10gb",
    profile_id: int | None = 19,
    start: int | None = None,
) -> Device:
    return Device(
        entity=Entity(uuid=mig_uuid(n), parent=gpu_uuid(parent), gpu=parent, slices=1, total_slices=7),
        minor=None,
        pci_bus_id=None,
        model=None,
        mig=MigInstance(
            gpu_instance_id=gi, compute_instance_id=ci, profile=profile, profile_id=profile_id, placement_start=start
        ),
    )


def inventory(*devices: Device, lost: Mapping[str, str] | None = None) -> Inventory:
    return Inventory(
        session=1,
        epoch=1,
        driver_version=None,
        nvml_version=None,
        cuda_version=None,
        devices=devices,
        lost=lost or {},
    )


EIGHT = inventory(*(gpu(n) for n in range(8)))
MIGS = inventory(
    gpu(0, mig_enabled=True),
    mig(1, 0, 7, start=0),
    mig(2, 0, 8, start=1),
    mig(3, 0, 2, profile="3g.40gb", profile_id=9, start=4),
    gpu(1),
)


def plugin_pod(name: str, *ids: str, resource: str = "nvidia.com/gpu", container: str = "main") -> PodEntry:
    return PodEntry(
        namespace="ml",
        name=name,
        containers=(ContainerEntry(name=container, devices=((resource, ids),)),),
    )


def claim_pod(
    name: str,
    device: str,
    *,
    claim: str = "c",
    uid: str | None = UID,
    driver: str = "gpu.nvidia.com",
    pool: str = "node-1",
    share_id: str | None = None,
    namespace: str = "ml",
) -> PodEntry:
    cdi = (f"k8s.{driver}/claim={uid}-{device}",) if uid else ()
    return PodEntry(
        namespace=namespace,
        name=name,
        containers=(
            ContainerEntry(
                name="main",
                claims=(
                    ClaimEntry(
                        namespace=namespace,
                        name=claim,
                        resources=(ClaimDevice(driver=driver, pool=pool, device=device, cdi=cdi, share_id=share_id),),
                    ),
                ),
            ),
        ),
    )


def listing(*pods: PodEntry) -> Listing:
    return Listing(pods=pods)


def published(
    device: str,
    *,
    driver: str = "gpu.nvidia.com",
    pool: str = "node-1",
    present: bool = True,
    **attributes: AttributeValue,
) -> SliceDevice:
    return SliceDevice(driver=driver, pool=pool, device=device, attributes=attributes, present=present)


def entities(found: Attribution) -> list[str]:
    return [hold.entity for hold in found.holds]


def reasons(found: Attribution) -> list[str]:
    return [entry.reason for entry in found.unresolved]


def recorded_slices() -> tuple[SliceDevice, ...]:
    data = (RECORDINGS / "kubernetes-1.36" / "resourceslices.list.json").read_bytes()
    store = SliceStore()
    store.sync(
        msgspec.json.decode(raw, type=ResourceSlice) for raw in msgspec.json.decode(data, type=RawList).items or ()
    )
    return store.devices()


def recorded(name: str) -> Listing:
    return decode_listing((RECORDINGS / "pod-resources" / name).read_bytes())


def dra_hold(n: int, claim: str, uid: str, *pods: tuple[str, str]) -> Hold:
    return Hold(
        holder=Holder(source="claim", namespace="ml-team", name=claim, uid=uid),
        entity=gpu_uuid(n),
        driver="gpu.nvidia.com",
        pool="gpu-node-1",
        device=f"gpu-{n}",
        pods=tuple(PodRef(namespace="ml-team", pod=pod, container=container) for pod, container in pods),
    )


def plugin_hold(n: int, replica: int, pod: str) -> Hold:
    return Hold(
        holder=Holder(source="pod", namespace="ml-team", name=pod, container="main"),
        entity=gpu_uuid(n),
        device=f"{gpu_uuid(n)}::{replica}",
        resource="nvidia.com/gpu",
        pods=(PodRef(namespace="ml-team", pod=pod, container="main"),),
    )


DRA_HOLDS = (
    dra_hold(1, "shared-inference", UID, ("infer-a", "server"), ("infer-b", "server")),
    dra_hold(
        2,
        "legacy-extended-extended-resources-6rnqt",
        "d6d11261-2aaf-4502-bf64-0ab3f57f6c80",
        ("legacy-extended", "c"),
    ),
    dra_hold(3, "pytorch-training-0-gpus-fvjd5", OTHER_UID, ("pytorch-training-0", "trainer")),
    dra_hold(4, "pytorch-training-0-gpus-fvjd5", OTHER_UID, ("pytorch-training-0", "trainer")),
)


def test_recorded_dra_listing() -> None:
    found = attribute(EIGHT, recorded("list-dra.bin"), recorded_slices(), node="gpu-node-1")
    assert found == Attribution(holds=DRA_HOLDS)


def test_recorded_dra_listing_without_api_server() -> None:
    found = attribute(EIGHT, recorded("list-dra.bin"), node="gpu-node-1")
    assert found == Attribution(holds=DRA_HOLDS)


def test_recorded_listing_with_device_plugin_and_dra_side_by_side() -> None:
    found = attribute(EIGHT, recorded("list-mixed-timeslicing.bin"), recorded_slices(), node="gpu-node-1")
    # GPU 2 is held by a claim and by a replica of the device plugin: two drivers that know nothing of each other.
    by_entity: dict[str, list[tuple[str, str, float, str]]] = {}
    for hold in found.holds:
        by_entity.setdefault(hold.entity, []).append((hold.holder.name, str(hold.device), hold.share, hold.basis))
    assert by_entity == {
        gpu_uuid(1): [("prefers-h200", "gpu-1", 1.0, "exclusive")],
        gpu_uuid(2): [
            ("only-tainted-left", "gpu-2", 0.5, "share"),
            ("legacy-dp-b", f"{gpu_uuid(2)}::1", 0.5, "share"),
        ],
        gpu_uuid(3): [("legacy-dp-b", f"{gpu_uuid(3)}::0", 1.0, "exclusive")],
        gpu_uuid(4): [("legacy-dp-a", f"{gpu_uuid(4)}::1", 1.0, "exclusive")],
        gpu_uuid(7): [("driver-down", "gpu-7", 1.0, "exclusive")],
    }
    assert plugin_hold(4, 1, "legacy-dp-a") in found.holds
    assert found.unresolved == ()


def test_claims_that_a_lookup_is_asked_for() -> None:
    assert held_claims(recorded("list-dra.bin")) == {
        ("ml-team", "shared-inference", UID),
        ("ml-team", "pytorch-training-0-gpus-fvjd5", OTHER_UID),
        ("ml-team", "legacy-extended-extended-resources-6rnqt", "d6d11261-2aaf-4502-bf64-0ab3f57f6c80"),
    }


@pytest.mark.parametrize(
    ("device_id", "resource", "entity"),
    [
        (gpu_uuid(1), "nvidia.com/gpu", gpu_uuid(1)),
        (gpu_uuid(1), "example.com/renamed", gpu_uuid(1)),
        (gpu_uuid(0), "nvidia.com/gpu", gpu_uuid(0)),  # MIG mode on: the parent is held whole
        (mig_uuid(2), "nvidia.com/mig-1g.10gb", mig_uuid(2)),
        (f"{gpu_uuid(1)}::3", "nvidia.com/gpu.shared", gpu_uuid(1)),
        (f"{mig_uuid(3)}::7", "nvidia.com/mig-3g.40gb", mig_uuid(3)),
        (f"MIG-{gpu_uuid(0)}/8/0", "nvidia.com/mig-1g.10gb", mig_uuid(2)),
        (f"MIG-{gpu_uuid(0)}/8/0::1", "nvidia.com/mig-1g.10gb", mig_uuid(2)),
        ("nvidia1", "nvidia.com/gpu", gpu_uuid(1)),
        ("nvidia0/gi7", "nvidia.com/gpu", mig_uuid(1)),
        ("nvidia0/gi8/vgpu2", "nvidia.com/gpu", mig_uuid(2)),
        ("nvidia1/vgpu3", "nvidia.com/gpu", gpu_uuid(1)),
    ],
)
def test_device_plugin_id(device_id: str, resource: str, entity: str) -> None:
    found = attribute(MIGS, listing(plugin_pod("p", device_id, resource=resource)))
    assert found == Attribution(
        holds=(
            Hold(
                holder=Holder(source="pod", namespace="ml", name="p", container="main"),
                entity=entity,
                device=device_id,
                resource=resource,
                pods=(PodRef(namespace="ml", pod="p", container="main"),),
            ),
        )
    )


@pytest.mark.parametrize(
    ("device_id", "resource", "reason"),
    [
        (gpu_uuid(9), "nvidia.com/gpu", "not_in_nvml"),
        (gpu_uuid(9), "example.com/renamed", "not_in_nvml"),
        (mig_uuid(9), "nvidia.com/mig-1g.10gb", "not_in_nvml"),
        (f"MIG-{gpu_uuid(0)}/99/0", "nvidia.com/mig-1g.10gb", "not_in_nvml"),
        ("nvidia9", "nvidia.com/gpu", "not_in_nvml"),
        ("nvidia0/gi99", "nvidia.com/gpu", "not_in_nvml"),
        ("banana", "nvidia.com/gpu", "unknown_id"),
        ("nvidia0/gi1/ci0", "nvidia.com/gpu", "unknown_id"),
    ],
)
def test_device_plugin_id_without_a_device(device_id: str, resource: str, reason: str) -> None:
    found = attribute(MIGS, listing(plugin_pod("p", device_id, resource=resource)))
    assert found == Attribution(
        unresolved=(
            Unresolved(
                source="pod", namespace="ml", name="p", driver=resource, pool=None, device=device_id, reason=reason
            ),
        )
    )


@pytest.mark.parametrize(
    ("device_id", "resource"),
    [("0000:03:00.2", "nvidia.com/mlnxnics"), ("nvidia0", "example.com/fpga"), ("1", "intel.com/qat")],
)
def test_devices_that_are_no_gpus_are_left_alone(device_id: str, resource: str) -> None:
    assert attribute(MIGS, listing(plugin_pod("p", device_id, resource=resource))) == Attribution()


def test_gke_number_is_the_minor_and_not_the_index() -> None:
    found = attribute(inventory(gpu(0, minor=1), gpu(1, minor=0)), listing(plugin_pod("p", "nvidia0")))
    assert entities(found) == [gpu_uuid(1)]


def test_gke_instance_with_two_compute_instances_is_both() -> None:
    found = attribute(
        inventory(gpu(0), mig(1, 0, 3, ci=0), mig(2, 0, 3, ci=1)), listing(plugin_pod("p", "nvidia0/gi3"))
    )
    assert entities(found) == [mig_uuid(1), mig_uuid(2)]


def test_two_replicas_of_one_container_are_one_holder() -> None:
    found = attribute(EIGHT, listing(plugin_pod("p", f"{gpu_uuid(0)}::1", f"{gpu_uuid(0)}::0")))
    assert [(hold.device, hold.share, hold.basis) for hold in found.holds] == [(f"{gpu_uuid(0)}::0", 1.0, "exclusive")]


def test_three_pods_on_replicas_share_by_thirds() -> None:
    found = attribute(EIGHT, listing(*(plugin_pod(f"p{n}", f"{gpu_uuid(0)}::{n}") for n in range(3))))
    assert [(hold.holder.name, hold.share, hold.basis) for hold in found.holds] == [
        ("p0", 1 / 3, "share"),
        ("p1", 1 / 3, "share"),
        ("p2", 1 / 3, "share"),
    ]


def test_two_containers_of_one_pod_are_two_holders() -> None:
    pod = PodEntry(
        namespace="ml",
        name="p",
        containers=tuple(
            ContainerEntry(name=name, devices=(("nvidia.com/gpu", (f"{gpu_uuid(0)}::{n}",)),))
            for n, name in enumerate(("a", "b"))
        ),
    )
    found = attribute(EIGHT, listing(pod))
    assert [(hold.holder.container, hold.share) for hold in found.holds] == [("a", 0.5), ("b", 0.5)]


def test_lost_gpu_is_still_held() -> None:
    found = attribute(inventory(gpu(0), lost={gpu_uuid(1): "fell off the bus"}), listing(plugin_pod("p", gpu_uuid(1))))
    assert entities(found) == [gpu_uuid(1)]


@pytest.mark.parametrize(
    ("device", "slices", "entity"),
    [
        ("gpu-1", [published("gpu-1", type="gpu", uuid=gpu_uuid(1))], gpu_uuid(1)),
        ("gpu-1", [published("gpu-1", type="gpu", uuid=gpu_uuid(0))], gpu_uuid(0)),  # the slice knows best
        ("gpu-0-mig-1g10gb-19-1", [published("gpu-0-mig-1g10gb-19-1", type="mig", uuid=mig_uuid(2))], mig_uuid(2)),
        ("gpu-1", [], gpu_uuid(1)),
        (
            "gpu-0-mig-1g10gb-19-0",
            [published("gpu-0-mig-1g10gb-19-0", type="mig", parentUUID=gpu_uuid(0))],
            mig_uuid(1),
        ),
        ("gpu-0-mig-1g10gb-19-1", [], mig_uuid(2)),
        ("gpu-0-mig-3g40gb-9-4", [], mig_uuid(3)),
        # The slice is gone and what it said is out of date: the name is all there is.
        ("gpu-1", [published("gpu-1", present=False, uuid=gpu_uuid(9))], gpu_uuid(1)),
    ],
)
def test_nvidia_dra_device(device: str, slices: list[SliceDevice], entity: str) -> None:
    found = attribute(MIGS, listing(claim_pod("p", device)), slices, node="node-1")
    assert found == Attribution(
        holds=(
            Hold(
                holder=Holder(source="claim", namespace="ml", name="c", uid=UID),
                entity=entity,
                driver="gpu.nvidia.com",
                pool="node-1",
                device=device,
                pods=(PodRef(namespace="ml", pod="p", container="main"),),
            ),
        )
    )


@pytest.mark.parametrize(
    ("device", "pool", "slices", "reason"),
    [
        ("gpu-9", "node-1", [], "not_in_nvml"),
        ("gpu-1", "node-1", [published("gpu-1", type="gpu", uuid=gpu_uuid(9))], "not_in_nvml"),
        ("gpu-1", "node-2", [], "other_node"),
        ("gpu-9-mig-1g10gb-19-0", "node-1", [], "not_in_nvml"),
        ("gpu-0-mig-1g10gb-19-6", "node-1", [], "not_in_nvml"),
        ("gpu-vfio-0", "node-1", [], "vfio"),
        ("gpu-vfio-0", "node-1", [published("gpu-vfio-0", type="vfio", uuid="GPU-x")], "vfio"),
        ("gpu-0-mig-1g.10gb-0", "node-1", [], "unknown_device_name"),
        ("", "node-1", [], "unknown_device_name"),
    ],
)
def test_nvidia_dra_device_that_is_not_resolved(device: str, pool: str, slices: list[SliceDevice], reason: str) -> None:
    found = attribute(MIGS, listing(claim_pod("p", device, pool=pool)), slices, node="node-1")
    assert found == Attribution(
        unresolved=(
            Unresolved(
                source="claim",
                namespace="ml",
                name="c",
                driver="gpu.nvidia.com",
                pool=pool,
                device=device,
                reason=reason,
            ),
        )
    )


def test_dynamic_mig_with_denied_placement_takes_the_only_one_of_its_profile() -> None:
    devices = inventory(gpu(0), mig(1, 0, 7, profile="1g.10gb+me", profile_id=None), mig(2, 0, 8, profile_id=None))
    found = attribute(devices, listing(claim_pod("p", "gpu-0-mig-1g10gb-me-20-3")))
    assert entities(found) == [mig_uuid(1)]


def test_dynamic_mig_with_denied_placement_and_two_of_its_profile_is_not_guessed() -> None:
    devices = inventory(gpu(0), mig(1, 0, 7), mig(2, 0, 8))
    found = attribute(devices, listing(claim_pod("p", "gpu-0-mig-1g10gb-19-3")))
    assert (entities(found), reasons(found)) == ([], ["mig_placement_denied"])


def test_compute_domain_devices_are_no_gpus() -> None:
    pods = [
        claim_pod("p", "channel-0", driver="compute-domain.nvidia.com"),
        claim_pod("q", "daemon-0", driver="compute-domain.nvidia.com", claim="d"),
    ]
    assert attribute(EIGHT, listing(*pods), node="node-1") == Attribution()


def test_unknown_driver_is_named_and_not_guessed() -> None:
    found = attribute(EIGHT, listing(claim_pod("p", "gpu-0", driver="gpu.example.com")), node="node-1")
    assert found == Attribution(
        unresolved=(
            Unresolved(
                source="claim",
                namespace="ml",
                name="c",
                driver="gpu.example.com",
                pool="node-1",
                device="gpu-0",
                reason="unknown_driver",
            ),
        )
    )


def test_unknown_driver_is_resolved_by_a_uuid_that_nvml_knows() -> None:
    slices = [published("card-a", driver="gpu.example.com", uuid=gpu_uuid(5))]
    found = attribute(EIGHT, listing(claim_pod("p", "card-a", driver="gpu.example.com")), slices)
    assert entities(found) == [gpu_uuid(5)]


def test_several_claims_in_one_container() -> None:
    container = ContainerEntry(
        name="main",
        claims=(
            claim_pod("p", "gpu-0", claim="a").containers[0].claims[0],
            claim_pod("p", "gpu-1", claim="b", uid=OTHER_UID).containers[0].claims[0],
        ),
    )
    found = attribute(EIGHT, listing(PodEntry(namespace="ml", name="p", containers=(container,))))
    assert [(hold.holder.name, hold.entity, hold.share) for hold in found.holds] == [
        ("a", gpu_uuid(0), 1.0),
        ("b", gpu_uuid(1), 1.0),
    ]


def test_consumable_shares_of_one_device() -> None:
    found = attribute(
        EIGHT,
        listing(
            claim_pod("p", "gpu-0", claim="a", share_id=SHARE),
            claim_pod("q", "gpu-0", claim="b", uid=OTHER_UID, share_id="2" + SHARE[1:]),
        ),
    )
    assert [(h.holder.name, h.share_id, h.share, h.basis) for h in found.holds] == [
        ("a", SHARE, 0.5, "share"),
        ("b", "2" + SHARE[1:], 0.5, "share"),
    ]
    assert found.unresolved == ()


def test_claim_not_prepared_yet() -> None:
    pod = PodEntry(
        namespace="ml",
        name="p",
        containers=(ContainerEntry(name="main", claims=(ClaimEntry(namespace="ml", name="c"),)),),
    )
    assert reasons(attribute(EIGHT, listing(pod))) == ["not_prepared"]


def test_uid_from_the_entry_of_the_device_although_cdi_names_pile_up() -> None:
    entry = ClaimDevice(
        driver="gpu.nvidia.com",
        pool="node-1",
        device="gpu-1",
        cdi=(
            "vendor.example/other=x",
            f"k8s.gpu.nvidia.com/claim={OTHER_UID}-gpu-11",
            f"k8s.gpu.nvidia.com/claim={UID}-gpu-1",
        ),
    )
    pod = PodEntry(
        namespace="ml",
        name="p",
        containers=(ContainerEntry(name="main", claims=(ClaimEntry(namespace="ml", name="c", resources=(entry,)),)),),
    )
    assert [hold.holder.uid for hold in attribute(EIGHT, listing(pod)).holds] == [UID]


def test_uid_that_only_one_pod_of_a_claim_is_told_serves_both() -> None:
    found = attribute(EIGHT, listing(claim_pod("p", "gpu-0"), claim_pod("q", "gpu-0", uid=None)))
    assert [(hold.holder.uid, len(hold.pods), hold.share) for hold in found.holds] == [(UID, 2, 1.0)]


def test_no_uid_without_cdi_names() -> None:
    assert [h.holder.uid for h in attribute(EIGHT, listing(claim_pod("p", "gpu-0", uid=None))).holds] == [None]


def test_order_of_the_kubelet_does_not_matter() -> None:
    pods = [claim_pod("p", "gpu-0"), plugin_pod("q", gpu_uuid(0)), plugin_pod("r", gpu_uuid(3))]
    assert attribute(EIGHT, listing(*pods)) == attribute(EIGHT, listing(*reversed(pods)))


OBSERVED = listing(
    claim_pod("trainer", "gpu-0", claim="train"),
    claim_pod("observer", "gpu-0", claim="watch", uid=OTHER_UID, namespace="monitoring"),
)


def test_admin_access_that_the_claim_tells_is_no_holder() -> None:
    facts = {
        OTHER_UID: ClaimFacts(
            uid=OTHER_UID,
            results=(
                ClaimResult(request="all", driver="gpu.nvidia.com", pool="node-1", device="gpu-0", admin_access=True),
            ),
        ),
        UID: ClaimFacts(
            uid=UID,
            results=(ClaimResult(request="main/h100", driver="gpu.nvidia.com", pool="node-1", device="gpu-0"),),
        ),
    }
    found = attribute(EIGHT, OBSERVED, claims=facts)
    assert [(h.holder.name, h.request, h.share, h.basis) for h in found.holds] == [
        ("train", "main/h100", 1.0, "exclusive")
    ]
    assert found.unresolved == ()


def test_claims_of_an_observer_namespace_are_no_holders() -> None:
    found = attribute(EIGHT, OBSERVED, observer_namespaces=frozenset({"monitoring"}))
    assert [(h.holder.name, h.share) for h in found.holds] == [("train", 1.0)]


def test_two_claims_on_one_device_are_named_as_suspect() -> None:
    found = attribute(EIGHT, OBSERVED)
    assert [(h.holder.name, h.share) for h in found.holds] == [("train", 0.5), ("watch", 0.5)]
    assert [(u.namespace, u.name, u.reason) for u in found.unresolved] == [
        ("ml", "train", "admin_access_suspected"),
        ("monitoring", "watch", "admin_access_suspected"),
    ]


NAMES = st.sampled_from(["a", "b", "c"]) | st.text(max_size=8)
IDS = (
    st.sampled_from([gpu_uuid(0), gpu_uuid(1), mig_uuid(1), "nvidia0", "nvidia0/gi7", f"MIG-{gpu_uuid(0)}/7/0", "::"])
    | st.builds(lambda n: f"{gpu_uuid(0)}::{n}", st.integers(0, 99))
    | st.from_regex(r"nvidia[0-9]{1,3}(/gi[0-9]+)?(/vgpu[0-9]+)?", fullmatch=True)
    | st.text(max_size=20)
)
DEVICES = (
    st.sampled_from(["gpu-0", "gpu-1", "gpu-0-mig-1g10gb-19-0", "gpu-0-mig-3g40gb-9-4", "gpu-vfio-1", "channel-0"])
    | st.from_regex(r"gpu-[0-9]+-mig-[0-9a-z-]+-[0-9]+-[0-9]+", fullmatch=True)
    | st.text(max_size=20)
)
DRIVERS = st.sampled_from(["gpu.nvidia.com", "compute-domain.nvidia.com", "gpu.example.com"]) | st.text(max_size=5)
CDI = st.builds(lambda device: f"k8s.gpu.nvidia.com/claim={UID}-{device}", DEVICES) | st.text(max_size=20)
CLAIM_DEVICES = st.builds(
    ClaimDevice,
    driver=DRIVERS,
    pool=st.sampled_from(["node-1", "node-2"]),
    device=DEVICES,
    cdi=st.lists(CDI, max_size=3).map(tuple),
    share_id=st.none() | st.sampled_from([SHARE, "other"]),
)
CLAIMS = st.builds(ClaimEntry, namespace=NAMES, name=NAMES, resources=st.lists(CLAIM_DEVICES, max_size=3).map(tuple))
CONTAINERS = st.builds(
    ContainerEntry,
    name=NAMES,
    devices=st.lists(
        st.tuples(st.sampled_from(["nvidia.com/gpu", "nvidia.com/nic", "x"]), st.lists(IDS, max_size=4).map(tuple)),
        max_size=3,
    ).map(tuple),
    claims=st.lists(CLAIMS, max_size=3).map(tuple),
)
LISTINGS = st.builds(
    Listing,
    pods=st.lists(
        st.builds(PodEntry, namespace=NAMES, name=NAMES, containers=st.lists(CONTAINERS, max_size=3).map(tuple)),
        max_size=5,
    ).map(tuple),
)
SLICES = st.lists(
    st.builds(
        SliceDevice,
        driver=DRIVERS,
        pool=st.sampled_from(["node-1", "node-2"]),
        device=DEVICES,
        attributes=st.dictionaries(
            st.sampled_from(["uuid", "type"]),
            st.sampled_from([gpu_uuid(0), gpu_uuid(7), mig_uuid(3), "vfio"]) | st.integers() | st.booleans(),
            max_size=2,
        ),
        present=st.booleans(),
    ),
    max_size=4,
)


@given(listed=LISTINGS, slices=SLICES, node=st.none() | st.just("node-1"))
def test_whatever_is_listed_no_entity_is_held_more_than_once(
    listed: Listing, slices: list[SliceDevice], node: str | None
) -> None:
    found = attribute(MIGS, listed, slices, node=node)
    held: dict[str, list[Hold]] = {}
    for hold in found.holds:
        held.setdefault(hold.entity, []).append(hold)
    assert held.keys() <= {device.entity.uuid for device in MIGS.devices}
    for holds in held.values():
        assert all(hold.share > 0 for hold in holds)
        assert math.fsum(hold.share for hold in holds) <= 1.0
        assert len({hold.holder for hold in holds}) == len(holds)
        assert {hold.basis for hold in holds} == ({"exclusive"} if len(holds) == 1 else {"share"})
    assert len(set(found.unresolved)) == len(found.unresolved)


@given(holders=st.integers(1, 120))
def test_many_holders_never_sum_above_the_device(holders: int) -> None:
    pods = (plugin_pod(f"p{n}", f"{gpu_uuid(0)}::{n}") for n in range(holders))
    assert math.fsum(hold.share for hold in attribute(EIGHT, listing(*pods)).holds) <= 1.0
