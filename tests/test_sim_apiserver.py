"""The simulated API server lists and watches as a real one does: literal requests and answers over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.sim.api.kinds import (
    DEVICE_CLASSES,
    EVENTS,
    LEASES,
    NODES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    in_version,
)
from claimscope.sim.api.server import StreamingLists
from claimscope.sim.api.store import Selection, Store
from sim_api import (
    ALL_CLAIMS,
    CLAIMS,
    LEASE_PATH,
    MERGE,
    POD_PATH,
    Client,
    event,
    named,
    serving,
    short,
)


@pytest.fixture
async def sim() -> AsyncIterator[Client]:
    async with serving() as (_, client):
        yield client


# ---- List ------------------------------------------------------------------------------------------------------


async def names(client: Client, path: str, **query: str) -> list[str]:
    return [item["metadata"]["name"] for item in (await client.get(path, **query))["items"]]


async def test_list_is_in_the_order_of_keys_and_says_its_version(sim: Client) -> None:
    for namespace, name in (("b", "z"), ("b", "a"), ("a", "m")):
        await sim.server.put(RESOURCE_CLAIMS, named(name, namespace))
    assert await sim.get(ALL_CLAIMS) == {
        "kind": "ResourceClaimList",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"resourceVersion": "4"},
        "items": [
            {"metadata": {"name": "m", "namespace": "a", "resourceVersion": "4"}},
            {"metadata": {"name": "a", "namespace": "b", "resourceVersion": "3"}},
            {"metadata": {"name": "z", "namespace": "b", "resourceVersion": "2"}},
        ],
    }
    assert await names(sim, "/apis/resource.k8s.io/v1/namespaces/b/resourceclaims") == ["a", "z"]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app=x", ["a"]),
        ("app==x", ["a"]),
        ("app!=x", ["b", "c"]),
        ("app", ["a", "b"]),
        ("!app", ["c"]),
        ("app in (x, y)", ["a", "b"]),
        ("app notin (x),tier", ["b"]),
        ("app in (x,y),tier=2", ["b"]),
        ("app.kubernetes.io/component=agent", ["c"]),
    ],
)
async def test_label_selectors(sim: Client, selector: str, found: list[str]) -> None:
    labels = {"a": {"app": "x"}, "b": {"app": "y", "tier": "2"}, "c": {"app.kubernetes.io/component": "agent"}}
    for name, its in labels.items():
        await sim.server.put(LEASES, named(name, "ml", meta={"labels": its}))
    assert await names(sim, LEASE_PATH, labelSelector=selector) == found


async def test_label_selector_that_cannot_be_parsed(sim: Client) -> None:
    status, answer = await sim.ask("GET", LEASE_PATH, labelSelector="a in x")
    assert (status, answer["reason"]) == (400, "BadRequest")


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("reason=Failed", ["a", "b"]),
        ("reason=Failed,involvedObject.name=p", ["a"]),
        ("reason!=Failed", ["c"]),
        ("metadata.name=b", ["b"]),
        ("involvedObject.kind=Pod,metadata.namespace=ml", ["a", "b", "c"]),
    ],
)
async def test_field_selectors(sim: Client, selector: str, found: list[str]) -> None:
    for name, reason, pod in (("a", "Failed", "p"), ("b", "Failed", "q"), ("c", "Pulled", "p")):
        await sim.server.put(EVENTS, named(name, "ml", reason=reason, involvedObject={"kind": "Pod", "name": pod}))
    assert await names(sim, "/api/v1/events", fieldSelector=selector) == found


async def test_field_selector_that_is_not_supported(sim: Client) -> None:
    status, answer = await sim.ask("GET", ALL_CLAIMS, fieldSelector="spec.nodeName=n")
    assert (status, answer["message"]) == (
        400,
        'Unable to find "resource.k8s.io/v1, Resource=resourceclaims" that match label selector "", field selector '
        '"spec.nodeName=n": field label not supported: spec.nodeName',
    )


async def test_pages_show_the_state_of_the_first_one(sim: Client) -> None:
    for name in "abcde":
        await sim.server.put(NODES, named(name))
    first = await sim.get("/api/v1/nodes", limit="2")
    assert [item["metadata"]["name"] for item in first["items"]] == ["a", "b"]
    assert (first["metadata"]["resourceVersion"], first["metadata"]["remainingItemCount"]) == ("6", 3)
    await sim.server.delete(NODES, "d")
    await sim.server.put(NODES, named("bb"))
    second = await sim.get("/api/v1/nodes", limit="2", **{"continue": first["metadata"]["continue"]})
    assert [item["metadata"]["name"] for item in second["items"]] == ["c", "d"]
    third = await sim.get("/api/v1/nodes", limit="2", **{"continue": second["metadata"]["continue"]})
    assert ([item["metadata"]["name"] for item in third["items"]], third["metadata"]) == (
        ["e"],
        {"resourceVersion": "6"},
    )


async def test_continue_token_ends_with_a_compaction(sim: Client) -> None:
    for name in "abc":
        await sim.server.put(NODES, named(name))
    first = await sim.get("/api/v1/nodes", limit="2")
    sim.server.compact()
    status, answer = await sim.ask("GET", "/api/v1/nodes", limit="2", **{"continue": first["metadata"]["continue"]})
    assert (status, answer["reason"], answer["message"]) == (
        410,
        "Expired",
        "The provided continue parameter is too old to display a consistent list result. You must start a new list "
        "without the continue parameter.",
    )


async def test_long_list_is_streamed_whole(sim: Client) -> None:
    count = sim.server.load(NODES, (json.dumps(named(f"n{index:05d}")).encode() for index in range(2_345)))
    assert count == 2_345
    found = await names(sim, "/api/v1/nodes")
    assert (len(found), found[0], found[-1]) == (2_345, "n00000", "n02344")


async def test_list_that_must_not_be_older_than_the_future(sim: Client) -> None:
    status, answer = await sim.ask("GET", ALL_CLAIMS, resourceVersion="99")
    assert (status, answer["message"]) == (504, "Too large resource version: 99, current: 1")


async def test_the_same_objects_are_served_in_two_versions() -> None:
    async with serving(kinds=(DEVICE_CLASSES, in_version(DEVICE_CLASSES, "v1beta2"))) as (server, client):
        await server.put(in_version(DEVICE_CLASSES, "v1beta2"), named("gpu"))
        assert (await client.get("/apis/resource.k8s.io/v1/deviceclasses/gpu"))["apiVersion"] == "resource.k8s.io/v1"
        found = await client.get("/apis/resource.k8s.io/v1beta2/deviceclasses/gpu")
        assert found["apiVersion"] == "resource.k8s.io/v1beta2"
        listed = await client.get("/apis/resource.k8s.io/v1beta2/deviceclasses")
        assert listed["apiVersion"] == "resource.k8s.io/v1beta2"


# ---- Watch -----------------------------------------------------------------------------------------------------


async def test_watch_tells_each_change_after_its_version(sim: Client) -> None:
    await sim.server.put(NODES, named("a"))
    await sim.server.put(NODES, named("b"))
    async with sim.watch("/api/v1/nodes", resourceVersion="2") as stream:
        assert await event(stream) == (
            "ADDED",
            {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "b", "resourceVersion": "3"}},
        )
        await sim.ask("PATCH", "/api/v1/nodes/b", {"spec": {"x": 1}}, MERGE)
        await sim.ask("DELETE", "/api/v1/nodes/b")
        assert [await short(stream) for _ in range(2)] == [("MODIFIED", "b", "4"), ("DELETED", "b", "5")]


async def test_watch_without_a_version_begins_with_what_there_is(sim: Client) -> None:
    await sim.server.put(NODES, named("a"))
    async with sim.watch("/api/v1/nodes") as stream:
        await sim.server.until_watched()
        await sim.server.put(NODES, named("b"))
        assert [await short(stream) for _ in range(2)] == [("ADDED", "a", "2"), ("ADDED", "b", "3")]


async def test_object_that_leaves_a_selection_is_deleted_for_its_watch(sim: Client) -> None:
    async with sim.watch(POD_PATH, resourceVersion="1", fieldSelector="spec.nodeName=n", labelSelector="x") as stream:
        for node, labels in (
            ("", {"x": ""}),
            ("n", {"x": ""}),
            ("n", {"x": "2"}),
            ("n", {}),
            ("n", {}),
            ("n", {"x": ""}),
        ):
            await sim.server.put(PODS, named("p", "ml", meta={"labels": labels}, spec={"nodeName": node}))
        await sim.server.delete(PODS, "p", "ml")
        told = [await event(stream) for _ in range(5)]
    assert [(kind, found["metadata"]["resourceVersion"], found["metadata"]["labels"]) for kind, found in told] == [
        ("ADDED", "3", {"x": ""}),
        ("MODIFIED", "4", {"x": "2"}),
        ("DELETED", "5", {"x": "2"}),  # in its last state inside, with the version of the change
        ("ADDED", "7", {"x": ""}),
        ("DELETED", "8", {"x": ""}),
    ]


async def test_watch_of_a_namespace_hears_nothing_of_others(sim: Client) -> None:
    async with sim.watch(CLAIMS, resourceVersion="1") as stream:
        await sim.server.put(RESOURCE_CLAIMS, named("c", "other"))
        await sim.server.put(RESOURCE_CLAIMS, named("c", "ml"))
        assert await short(stream) == ("ADDED", "c", "3")


async def test_streaming_list(sim: Client) -> None:
    await sim.server.put(NODES, named("b"))
    await sim.server.put(NODES, named("a"))
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    async with sim.watch("/api/v1/nodes", **query) as stream:
        assert [await short(stream) for _ in range(2)] == [("ADDED", "a", "3"), ("ADDED", "b", "2")]
        assert await event(stream) == (
            "BOOKMARK",
            {
                "kind": "Node",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": "3", "annotations": {"k8s.io/initial-events-end": "true"}},
            },
        )
        await sim.server.put(NODES, named("c"))
        assert await short(stream) == ("ADDED", "c", "4")


async def test_streaming_list_of_an_older_server() -> None:
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    async with (
        serving(streaming_lists=StreamingLists.STORAGE_TOO_OLD) as (_, client),
        client.watch("/api/v1/nodes", **query) as stream,
    ):
        kind, status = await event(stream)
        assert (kind, status["code"]) == ("ERROR", 500)
        assert "required storage feature RequestWatchProgress is disabled" in status["message"]
        assert await stream.read() == b""
    async with serving(streaming_lists=StreamingLists.REFUSED) as (_, client):
        code, answer = await client.ask("GET", "/api/v1/nodes", watch="true", **query)
        assert (code, answer["message"]) == (
            422,
            'ListOptions.meta.k8s.io "" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for '
            "watch unless the WatchList feature gate is enabled",
        )


async def test_bookmarks_come_at_intervals_and_at_the_end() -> None:
    async with serving(bookmark_seconds=0.2) as (server, client):
        query = {"resourceVersion": "1", "allowWatchBookmarks": "true", "timeoutSeconds": "0.3"}
        async with client.watch("/api/v1/nodes", **query) as stream:
            await server.put(PODS, named("p", "ml"))
            bookmark = {"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": "2"}}
            assert [await event(stream) for _ in range(2)] == [("BOOKMARK", bookmark)] * 2
            assert await stream.read() == b""


async def test_watch_from_a_forgotten_version_is_expired() -> None:
    async with serving(max_history=2) as (server, client):
        for _ in range(5):
            await server.put(NODES, named("a"))
        for version, expected in (("3", ("MODIFIED", "a", "4")), ("2", ("ERROR", "", ""))):
            async with client.watch("/api/v1/nodes", resourceVersion=version) as stream:
                assert await short(stream) == expected
        server.compact()
        async with client.watch("/api/v1/nodes", resourceVersion="6") as stream:
            assert await event(stream) == (
                "ERROR",
                {
                    "kind": "Status",
                    "apiVersion": "v1",
                    "metadata": {},
                    "status": "Failure",
                    "message": "too old resource version: 6 (7)",
                    "reason": "Expired",
                    "code": 410,
                },
            )


async def test_loading_ends_open_watches_with_expired(sim: Client) -> None:
    async with sim.watch("/api/v1/nodes", resourceVersion="1") as stream:
        await sim.server.until_watched()
        sim.server.load(NODES, [named("a")])
        kind, status = await event(stream)
        assert (kind, status["code"]) == ("ERROR", 410)


# ---- List and watch agree ----------------------------------------------------------------------------------------

WRITES = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete"]), st.sampled_from("abc"), st.sampled_from(["ml", "x"]), st.sampled_from("01")
    ),
    max_size=40,
)
SELECTORS = st.sampled_from(["", "l=0", "l!=0", "l in (0,1)", "!l"])


@given(WRITES, st.integers(0, 40), SELECTORS, st.sampled_from(["", "ml"]), st.integers(1, 50))
@settings(max_examples=200)
def test_list_and_watch_from_any_version_end_in_the_same_state(
    writes: list[tuple[str, str, str, str]], cut: int, selector: str, namespace: str, history: int
) -> None:
    """What a client knows from a list, with the changes since, is what a list says at the end."""
    store = Store([PODS], on_change=lambda _: None, max_history=history)
    chosen = Selection(PODS, namespace, "", selector)
    table = store.table(PODS)

    def listed() -> dict[tuple[str, str], int]:
        return {stored.key: stored.version for stored in store.page(PODS, chosen, 0, "").items}

    known, version = listed(), store.version
    for index, (verb, name, where, label) in enumerate(writes):
        if index == cut:
            known, version = listed(), store.version
        if verb == "put":
            store.write(PODS, named(name, where, meta={"labels": {"l": label}}))
        elif (where, name) in table.objects:
            store.remove(PODS, (where, name))
    changes = table.since(table.position(version), 1_000)
    if version < table.forgotten:
        return  # answered with 410: the client lists again
    assert changes is not None
    for seen in filter(None, map(chosen.seen, changes)):
        kind, stored = seen
        assert (stored.key in known) == (kind != "ADDED")
        if kind == "DELETED":
            del known[stored.key]
        else:
            known[stored.key] = stored.version
    assert known == listed()


@given(st.sets(st.text("abc", min_size=1, max_size=3), max_size=12), st.integers(1, 5), SELECTORS)
@settings(max_examples=100)
def test_pages_add_up_to_the_list(objects: set[str], limit: int, selector: str) -> None:
    store = Store([RESOURCE_SLICES], on_change=lambda _: None)
    for name in objects:
        store.write(RESOURCE_SLICES, named(name, meta={"labels": {"l": str(len(name) % 3)}}))
    chosen = Selection(RESOURCE_SLICES, "", "", selector)
    whole = [stored.key for stored in store.page(RESOURCE_SLICES, chosen, 0, "").items]
    paged, token = [], ""
    while True:
        page = store.page(RESOURCE_SLICES, chosen, limit, token)
        paged += [stored.key for stored in page.items]
        assert len(page.items) == limit or not page.following
        token = page.following
        if not token:
            break
    assert paged == whole
