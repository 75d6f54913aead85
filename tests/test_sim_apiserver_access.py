"""The simulated API server says what it serves and who may ask, and fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from claimscope.sim.api.access import Asked, User
from claimscope.sim.api.kinds import (
    DEVICE_TAINT_RULES,
    NODES,
    PODS,
    in_version,
)
from claimscope.sim.api.server import HttpFault
from sim_api import (
    ALL_CLAIMS,
    MERGE,
    POD_PATH,
    Client,
    event,
    named,
    serving,
)


@pytest.fixture
async def sim() -> AsyncIterator[Client]:
    async with serving() as (_, client):
        yield client


# ---- Discovery, health, access -----------------------------------------------------------------------------------


async def test_discovery() -> None:
    async with serving(kinds=(DEVICE_TAINT_RULES, in_version(DEVICE_TAINT_RULES, "v1beta2"), NODES)) as (_, client):
        assert (await client.get("/version"))["gitVersion"] == "v1.36.3"
        assert (await client.get("/api"))["versions"] == ["v1"]
        group = {
            "name": "resource.k8s.io",
            "versions": [
                {"groupVersion": "resource.k8s.io/v1", "version": "v1"},
                {"groupVersion": "resource.k8s.io/v1beta2", "version": "v1beta2"},
            ],
            "preferredVersion": {"groupVersion": "resource.k8s.io/v1", "version": "v1"},
        }
        listed = await client.get("/apis")
        assert [found["name"] for found in listed["groups"]] == [
            "resource.k8s.io",
            "authentication.k8s.io",
            "authorization.k8s.io",
        ]
        assert listed["groups"][0] == group
        assert await client.get("/apis/resource.k8s.io") == {"kind": "APIGroup", "apiVersion": "v1", **group}
        resources = await client.get("/apis/resource.k8s.io/v1beta2")
        assert [(found["name"], found["verbs"]) for found in resources["resources"]] == [
            ("devicetaintrules", ["create", "delete", "get", "list", "patch", "update", "watch"]),
            ("devicetaintrules/status", ["get", "patch", "update"]),
        ]
        assert [found["name"] for found in (await client.get("/api/v1"))["resources"]] == ["nodes", "nodes/status"]
        assert (await client.ask("GET", "/apis/coordination.k8s.io"))[0] == 404
        assert (await client.ask("GET", "/apis/resource.k8s.io/v1alpha3"))[0] == 404


async def test_health(sim: Client) -> None:
    assert await sim.ask("GET", "/readyz") == (200, {"text": "ok"})
    sim.server.ready = False
    assert ((await sim.ask("GET", "/readyz"))[0], (await sim.ask("GET", "/livez"))[0]) == (500, 200)


async def test_rights_of_a_token() -> None:
    reader = User(
        name="reader", uid="7", denied=frozenset({("list", "resource.k8s.io", "resourceclaims"), ("*", "", "*")})
    )
    operator = User(name="operator", audiences=("claimscope",), extra={"example.com/role": ("a", "b")})
    async with serving(users={"t": reader, "o": operator}) as (_, client):
        status, answer = await client.ask("GET", ALL_CLAIMS, token="t")
        assert (status, answer["message"], answer["details"]) == (
            403,
            'resourceclaims.resource.k8s.io is forbidden: User "reader" cannot list resource "resourceclaims" in API '
            'group "resource.k8s.io" at the cluster scope',
            {"group": "resource.k8s.io", "kind": "resourceclaims"},
        )
        status, answer = await client.ask("PATCH", f"{POD_PATH}/p/status", {}, MERGE, token="t")
        assert (status, answer["message"]) == (
            403,
            'pods "p" is forbidden: User "reader" cannot patch resource "pods/status" in API group "" in the namespace '
            '"ml"',
        )
        assert (await client.ask("GET", "/apis/resource.k8s.io/v1/resourceslices", token="t"))[0] == 200
        status, answer = await client.ask("GET", "/api/v1/nodes", token="wrong")
        assert (status, answer["message"]) == (401, "Unauthorized")
        review = "/apis/authentication.k8s.io/v1/tokenreviews"
        status, answer = await client.ask("POST", review, {"spec": {"token": "t"}}, token="t")
        assert (status, answer["status"]) == (
            201,
            {
                "authenticated": True,
                "user": {"username": "reader", "groups": ["system:authenticated"], "uid": "7"},
                "audiences": ["https://kubernetes.default.svc.cluster.local"],
            },
        )
        asked = {"token": "o", "audiences": ["other", "claimscope"]}
        _, answer = await client.ask("POST", review, {"spec": asked}, token="t")
        assert answer["status"] == {
            "authenticated": True,
            "user": {
                "username": "operator", "groups": ["system:authenticated"], "extra": {"example.com/role": ["a", "b"]},
            },
            "audiences": ["claimscope"],
        }
        _, answer = await client.ask("POST", review, {"spec": {"token": "o"}}, token="t")
        assert answer["status"]["error"] == (
            "[invalid bearer token, token audiences [claimscope] is invalid for the target audiences "
            "[https://kubernetes.default.svc.cluster.local]]"
        )
        assert (await client.ask("GET", "/version", token="o"))[0] == 401  # such a token is not for the API server
        who = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        status, answer = await client.ask("POST", who, {}, token="t")
        assert (status, answer["status"]["userInfo"]["username"]) == (201, "reader")
        _, answer = await client.ask("POST", review, {"spec": {"token": "x"}}, token="t")
        assert answer["status"] == {"user": {}, "error": "[invalid bearer token, token lookup failed]"}


async def test_who_reviews_others_needs_the_right_to() -> None:
    user = User(name="me", denied=frozenset({("create", "*", "*")}))
    async with serving(users={"t": user}) as (_, client):
        for group, plural in (("authentication", "tokenreviews"), ("authorization", "subjectaccessreviews")):
            path = f"/apis/{group}.k8s.io/v1/{plural}"
            status, answer = await client.ask("POST", path, {"spec": {"token": "t"}}, token="t")
            assert (status, answer["message"]) == (
                403,
                f'{plural}.{group}.k8s.io is forbidden: User "me" cannot create resource "{plural}" in API group '
                f'"{group}.k8s.io" at the cluster scope',
            )


async def test_access_reviews() -> None:
    def rule(user: User, asked: Asked) -> bool:
        reviews = user.name == "me" and asked.verb == "create" and asked.resource == "subjectaccessreviews"
        return reviews or (user.name == "prometheus" and asked.path == "/metrics") or asked.resource == "pods"

    async with serving(users={"t": User(name="me")}, rule=rule) as (_, client):
        answers = []
        for plural, spec in (
            (
                "subjectaccessreviews",
                {"user": "prometheus", "nonResourceAttributes": {"path": "/metrics", "verb": "get"}},
            ),
            ("subjectaccessreviews", {"user": "other", "nonResourceAttributes": {"path": "/metrics", "verb": "get"}}),
            ("selfsubjectaccessreviews", {"resourceAttributes": {"verb": "list", "resource": "pods"}}),
            ("selfsubjectaccessreviews", {"resourceAttributes": {"verb": "list", "resource": "nodes"}}),
        ):
            status, answer = await client.ask(
                "POST", f"/apis/authorization.k8s.io/v1/{plural}", {"spec": spec}, token="t"
            )
            answers.append((status, answer["kind"], answer["status"]["allowed"]))
    assert answers == [
        (201, "SubjectAccessReview", True),
        (201, "SubjectAccessReview", False),
        (201, "SelfSubjectAccessReview", True),
        (201, "SelfSubjectAccessReview", False),
    ]


# ---- Faults ----------------------------------------------------------------------------------------------------


async def test_faults_come_in_order_then_the_truth(sim: Client) -> None:
    sim.server.fail("/version", *[HttpFault(status=500)] * 2, HttpFault(status=200, body=b"x" * 50, slow_seconds=0.05))
    codes = [(await sim.ask("GET", "/version"))[0] for _ in range(4)]
    assert codes == [500, 500, 200, 200]


async def test_body_that_is_cut(sim: Client) -> None:
    sim.server.fail("/version", HttpFault(status=200, body=b"0123456789", cut_bytes=4))
    with pytest.raises(aiohttp.ClientPayloadError):
        await sim.ask("GET", "/version")


async def test_watch_that_is_cut_in_a_line(sim: Client) -> None:
    await sim.server.put(NODES, named("a"))
    async with sim.watch("/api/v1/nodes", resourceVersion="2") as stream:
        await sim.server.until_watched()
        await sim.server.cut_watches()
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.read()


async def test_garbage_and_the_end_of_watches(sim: Client) -> None:
    async with sim.watch("/api/v1/nodes", resourceVersion="1") as stream:
        await sim.server.until_watched()
        await sim.server.inject_line(b"<html>\n")
        assert await stream.readline() == b"<html>\n"
        await sim.server.drop_watches()
        assert await stream.read() == b""


async def test_pause_and_delay(sim: Client) -> None:
    sim.server.pause()
    waiting = asyncio.ensure_future(sim.get("/version"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.05)
    sim.server.resume()
    assert (await waiting)["major"] == "1"
    sim.server.delay("/version", 60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sim.get("/version"), 0.05)
    sim.server.delay("/version", 0)
    assert (await sim.get("/version"))["minor"] == "36"


async def test_gone_client_is_no_longer_a_watcher(sim: Client) -> None:
    async with sim.watch("/api/v1/nodes", resourceVersion="1"):
        await sim.server.until_watched()
    async with sim.watch("/api/v1/pods", resourceVersion="1") as stream:
        await sim.server.put(PODS, named("p", "ml"))
        await event(stream)
        assert sim.server.watchers == 1


async def test_requests_are_kept_in_order(sim: Client) -> None:
    await sim.get("/version")
    await sim.get(ALL_CLAIMS, limit="1")
    assert sim.server.requests == [("/version", {}), (ALL_CLAIMS, {"limit": "1"})]
