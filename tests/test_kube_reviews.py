"""Questions about callers against the simulated API server, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from claimscope.kube.api import ApiClient, ApiError, ApiReason
from claimscope.kube.reviews import TOKEN_REVIEWS, Caller, Deed, review_access, review_token
from claimscope.sim.api.access import API_AUDIENCE, Asked, User
from claimscope.sim.api.server import HttpFault, SimApiServer
from kube_help import Fixed

SECRET = "eyJhbGciOi.c2VjcmV0.dG9rZW4"
PROMETHEUS = User(
    name="system:serviceaccount:monitoring:prometheus", uid="u-1",
    groups=("system:serviceaccounts", "system:authenticated"),
    extra={"authentication.kubernetes.io/pod-name": ("prometheus-0",)},
)
FOUND = Caller(
    name="system:serviceaccount:monitoring:prometheus", uid="u-1",
    groups=("system:serviceaccounts", "system:authenticated"),
    extra=(("authentication.kubernetes.io/pod-name", ("prometheus-0",)),),
)
US = User(name="claimscope")


@asynccontextmanager
async def serving(**users: User) -> AsyncIterator[tuple[SimApiServer, ApiClient, list[tuple[User, Asked]]]]:
    asked: list[tuple[User, Asked]] = []

    def rule(user: User, what: Asked) -> bool:
        asked.append((user, what))
        return user.name == "claimscope" or what.path == "/metrics" or what.namespace == "team-a"

    server = SimApiServer(users={"us": US, SECRET: PROMETHEUS, **users}, rule=rule)
    client = ApiClient(Fixed(await server.start(), "Bearer us"))
    try:
        yield server, client, asked
    finally:
        await client.close()
        await server.stop()


async def test_whom_a_token_belongs_to() -> None:
    async with serving() as (_, client, _):
        assert await review_token(client, SECRET) == FOUND
        assert await review_token(client, "made-up") is None


async def test_a_token_for_another_audience_is_not_accepted() -> None:
    meant = User(name="prometheus", audiences=("claimscope", API_AUDIENCE))
    async with serving(meant=meant) as (_, client, _):
        assert await review_token(client, "meant", ("claimscope",)) == Caller(
            name="prometheus", groups=("system:authenticated",)
        )
        assert await review_token(client, SECRET, ("claimscope",)) is None


async def test_an_authenticator_that_knows_no_audiences_vouches_for_none() -> None:
    body = b'{"status":{"authenticated":true,"user":{"username":"prometheus"}}}'
    async with serving() as (server, client, _):
        server.fail(TOKEN_REVIEWS, HttpFault(status=201, body=body), HttpFault(status=201, body=body))
        assert await review_token(client, SECRET) == Caller(name="prometheus")
        assert await review_token(client, SECRET, ("claimscope",)) is None


@pytest.mark.parametrize("name", ["system:anonymous", ""])
async def test_nobody_in_particular_is_nobody(name: str) -> None:
    async with serving(none=User(name=name)) as (_, client, _):
        assert await review_token(client, "none") is None


@pytest.mark.parametrize(
    ("deed", "allowed", "asked"),
    [
        (Deed(verb="get", path="/metrics"), True, Asked(verb="get", path="/metrics")),
        (Deed(verb="get", path="/"), False, Asked(verb="get", path="/")),
        (
            Deed(verb="get", group="resource.k8s.io", resource="resourceclaims", namespace="team-a"), True,
            Asked(verb="get", group="resource.k8s.io", resource="resourceclaims", namespace="team-a"),
        ),
        (
            Deed(verb="get", group="resource.k8s.io", resource="resourceclaims"), False,
            Asked(verb="get", group="resource.k8s.io", resource="resourceclaims"),
        ),
    ],
)
async def test_what_a_caller_may_do(deed: Deed, allowed: bool, asked: Asked) -> None:
    async with serving() as (_, client, seen):
        assert await review_access(client, FOUND, deed) is allowed
        assert seen[-1] == (PROMETHEUS, asked)


async def test_a_denial_outweighs_a_leave() -> None:
    async with serving() as (server, client, _):
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        server.fail(path, HttpFault(status=201, body=b'{"status":{"allowed":true,"denied":true}}'))
        assert await review_access(client, FOUND, Deed(verb="get", path="/metrics")) is False


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (HttpFault(status=500, message=f"cannot review {SECRET}"), ApiReason.SERVER_ERROR),
        (HttpFault(status=400, body=f'{{"spec":{{"token":"{SECRET}"}}}}'.encode()), ApiReason.FAILED),
        (HttpFault(status=201, body=f'{{"status":{{"authenticated":"{SECRET}"}}}}'.encode()), ApiReason.MALFORMED),
        (HttpFault(status=201, body=b"[1,2"), ApiReason.MALFORMED),
    ],
)
async def test_no_error_names_the_token(fault: HttpFault, reason: ApiReason) -> None:
    async with serving() as (server, client, _):
        server.fail(TOKEN_REVIEWS, fault)
        with pytest.raises(ApiError) as caught:
            await review_token(client, SECRET)
        assert caught.value.reason is reason
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_without_the_right_to_review_the_error_says_which_is_missing() -> None:
    async with serving(poor=User(name="poor", denied=frozenset({("create", "*", "tokenreviews")}))) as (server, _, _):
        client = ApiClient(Fixed(server.url, "Bearer poor"))
        try:
            with pytest.raises(ApiError, match=r"cannot create resource \"tokenreviews\"") as caught:
                await review_token(client, SECRET)
        finally:
            await client.close()
        assert caught.value.reason is ApiReason.FORBIDDEN
