"""The devices that drivers publish: shapes of all versions, generations, wipes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import msgspec

from claimscope.attribution import held_claims
from claimscope.clock import ManualClock, SystemClock
from claimscope.kube.api import Access, ApiClient, ApiError, ApiReason
from claimscope.kube.claims import ClaimLookup
from claimscope.kube.objects import RawList, ResourceSlice
from claimscope.kube.podresources import decode_listing
from claimscope.kube.slices import SliceStore, watch_slices
from claimscope.kube.structs import ClaimFacts, ClaimResult, SliceDevice
from claimscope.sim.api.server import RESOURCE_CLAIMS, RESOURCE_SLICES, HttpFault, Kind, SimApiServer

RECORDINGS = Path(__file__).parent / "recordings"
UID = "3938471c-1e40-496b-b35c-528e73abd27b"


class Fixed:
    def __init__(self, url: str) -> None:
        self.found = Access(base_url=url)

    async def access(self, *, renew: bool = False) -> Access:
        return self.found


def slice_object(
    name: str, *devices: str, generation: int = 1, count: int = 1, node: str = "node-1"
) -> dict[str, object]:
    return {
        "metadata": {"name": name},
        "spec": {
            "driver": "gpu.nvidia.com",
            "pool": {"name": node, "generation": generation, "resourceSliceCount": count},
            "nodeName": node,
            "devices": [{"name": device, "attributes": {"uuid": {"string": f"GPU-{device}"}}} for device in devices],
        },
    }


def struct(value: object) -> ResourceSlice:
    return msgspec.convert(value, ResourceSlice)


def names(devices: tuple[SliceDevice, ...]) -> list[tuple[str, bool]]:
    return [(device.device, device.present) for device in devices]


def test_recorded_list() -> None:
    data = (RECORDINGS / "kubernetes-1.36" / "resourceslices.list.json").read_bytes()
    store = SliceStore()
    store.sync(
        msgspec.json.decode(raw, type=ResourceSlice) for raw in msgspec.json.decode(data, type=RawList).items or ()
    )
    devices = store.devices()
    assert [(d.driver, d.pool, d.device, d.attributes["uuid"], d.attributes["type"]) for d in devices] == [
        ("gpu.nvidia.com", "gpu-node-1", f"gpu-{n}", f"GPU-01000100-0000-0000-0000-{n:012d}", "gpu") for n in range(8)
    ]
    assert devices[0].attributes["driverVersion"] == "550.163.1"
    assert "resource.kubernetes.io/pciBusID" in devices[0].attributes


def test_shapes_of_attributes() -> None:
    attributes = {
        "gpu.nvidia.com/uuid": {"string": "GPU-1"},
        "other.example/uuid": {"string": "not ours"},
        "index": {"int": 0},
        "shared": {"bool": False},
        "driverVersion": {"version": "580.1.0"},
        "links": {"strings": ["a", "b"]},
    }
    store = SliceStore()
    for version, device in (
        ("flat", {"name": "flat", "attributes": attributes}),
        ("basic", {"name": "basic", "basic": {"attributes": attributes, "capacity": {}}}),
    ):
        value = slice_object(version, generation=1, count=2)
        value["spec"] = {**value["spec"], "devices": [device]}  # type: ignore[dict-item]
        store.change(struct(value), True)
    expected = {
        "uuid": "GPU-1",
        "other.example/uuid": "not ours",
        "index": 0,
        "shared": False,
        "driverVersion": "580.1.0",
    }
    assert [dict(device.attributes) for device in store.devices()] == [expected, expected]


def test_only_the_newest_generation_counts() -> None:
    store = SliceStore()
    store.sync([struct(slice_object("old", "gpu-0", "gpu-1")), struct(slice_object("new", "gpu-1", generation=2))])
    assert names(store.devices()) == [("gpu-1", True)]


def test_generation_that_is_still_being_written_keeps_what_it_lacks() -> None:
    store = SliceStore()
    store.sync([struct(slice_object("a", "gpu-0", "gpu-1"))])
    store.change(struct(slice_object("a", "gpu-0", generation=2, count=2)), True)
    during = names(store.devices())
    store.change(struct(slice_object("b", "gpu-2", generation=2, count=2)), True)
    assert during == [("gpu-0", True), ("gpu-1", False)]
    assert names(store.devices()) == [("gpu-0", True), ("gpu-2", True)]


def test_wiped_slices_leave_the_last_known_devices() -> None:
    store = SliceStore()
    entry = struct(slice_object("a", "gpu-0"))
    store.sync([entry])
    store.change(entry, False)
    after_event = names(store.devices())
    store.sync([])
    after_list = names(store.devices())
    store.sync([entry])
    assert (after_event, after_list, names(store.devices())) == (
        [("gpu-0", False)],
        [("gpu-0", False)],
        [("gpu-0", True)],
    )


async def test_watch_of_this_node() -> None:
    server = SimApiServer()
    client = ApiClient(Fixed(await server.start()))
    await server.put(RESOURCE_SLICES, slice_object("mine", "gpu-0"))
    await server.put(RESOURCE_SLICES, slice_object("foreign", "gpu-9", node="node-2"))
    states: asyncio.Queue[tuple[SliceDevice, ...]] = asyncio.Queue()
    errors: list[ApiError] = []
    heard = asyncio.Event()
    task = asyncio.create_task(
        watch_slices(
            client, "node-1", SystemClock(), states.put_nowait, errors.append, heard.set, first_wait_seconds=0.01
        )
    )
    async with asyncio.timeout(20):
        first = await states.get()
        heard.clear()
        await server.put(RESOURCE_SLICES, slice_object("mine", "gpu-0") | {"status": {}})
        await heard.wait()  # a sign of life that changes nothing
        assert states.empty()
        await server.put(RESOURCE_SLICES, slice_object("mine", "gpu-0", "gpu-1"))
        second = await states.get()
        await server.delete(RESOURCE_SLICES, "mine")
        third = await states.get()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await client.close()
    await server.stop()
    assert [names(state) for state in (first, second, third)] == [
        [("gpu-0", True)],
        [("gpu-0", True), ("gpu-1", True)],
        [("gpu-0", False), ("gpu-1", False)],
    ]
    assert errors == []
    assert ("/apis/resource.k8s.io/v1/resourceslices", "spec.nodeName=node-1") in [
        (path, query.get("fieldSelector")) for path, query in server.requests
    ]


async def test_watch_waits_for_an_api_that_is_not_there_yet() -> None:
    server = SimApiServer(
        (
            Kind(
                group="resource.k8s.io",
                version="v1beta1",
                plural="resourceslices",
                kind="ResourceSlice",
                fields=RESOURCE_SLICES.fields,
            ),
        )
    )
    client = ApiClient(Fixed(await server.start()))
    server.fail("/apis/resource.k8s.io", HttpFault(status=403), HttpFault(status=404))
    states: asyncio.Queue[tuple[SliceDevice, ...]] = asyncio.Queue()
    errors: list[ApiError] = []
    task = asyncio.create_task(
        watch_slices(client, "node-1", SystemClock(), states.put_nowait, errors.append, first_wait_seconds=0.01)
    )
    async with asyncio.timeout(20):
        empty = await states.get()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await client.close()
    await server.stop()
    assert (empty, [error.reason for error in errors]) == ((), [ApiReason.FORBIDDEN, ApiReason.NOT_FOUND])


def claim_object(name: str, uid: str, *, admin: bool = False) -> dict[str, object]:
    result = {"request": "main", "driver": "gpu.nvidia.com", "pool": "gpu-node-1", "device": "gpu-1"}
    return {
        "metadata": {"namespace": "ml-team", "name": name, "uid": uid},
        "status": {"allocation": {"devices": {"results": [{**result, **({"adminAccess": True} if admin else {})}]}}},
    }


async def test_claim_lookup_reads_each_claim_once() -> None:
    server = SimApiServer()
    client = ApiClient(Fixed(await server.start()))
    await server.put(RESOURCE_CLAIMS, claim_object("shared-inference", UID, admin=True))
    await server.put(RESOURCE_CLAIMS, claim_object("pytorch-training-0-gpus-fvjd5", "another-uid"))
    errors: list[ApiError] = []
    lookup = ClaimLookup(client, "v1", ManualClock(), errors.append)
    held = held_claims(decode_listing((RECORDINGS / "pod-resources" / "list-dra.bin").read_bytes()))
    await lookup.refresh(held)
    await lookup.refresh(held)
    known, asked = lookup.facts(), len(server.requests)
    await lookup.refresh([])
    await client.close()
    await server.stop()
    assert known == {
        UID: ClaimFacts(
            uid=UID,
            results=(
                ClaimResult(
                    request="main", driver="gpu.nvidia.com", pool="gpu-node-1", device="gpu-1", admin_access=True
                ),
            ),
        )
    }
    assert (asked, errors, dict(lookup.facts())) == (3, [], {})


async def test_claim_lookup_that_is_denied_rests_a_minute() -> None:
    server = SimApiServer()
    client = ApiClient(Fixed(await server.start()))
    await server.put(RESOURCE_CLAIMS, claim_object("c", UID))
    server.fail("/apis/resource.k8s.io/v1/namespaces/ml-team/resourceclaims/c", HttpFault(status=403))
    errors: list[ApiError] = []
    clock = ManualClock()
    lookup = ClaimLookup(client, "v1", clock, errors.append)
    await lookup.refresh([("ml-team", "c", UID)])
    clock.advance(59)
    await lookup.refresh([("ml-team", "c", UID)])
    denied, asked = dict(lookup.facts()), len(server.requests)
    clock.advance(1)
    await lookup.refresh([("ml-team", "c", UID)])
    await client.close()
    await server.stop()
    assert ([error.reason for error in errors], denied, asked) == ([ApiReason.FORBIDDEN], {}, 1)
    assert list(lookup.facts()) == [UID]
