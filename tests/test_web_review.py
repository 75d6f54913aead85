"""Agent and controller with callers reviewed by a simulated API server, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from admission import documents
from agent_process import command, environment
from claimscope import config
from claimscope.claims.explain import Explanation
from claimscope.claims.model import ClusterSnapshot, Diagnosis, PendingReason, Wait
from claimscope.clock import ManualClock
from claimscope.export.cluster import ClusterCollector
from claimscope.export.collect import Collector
from claimscope.health.model import DeviceHealth, Finding, RuleState, Severity
from claimscope.health.report import document
from claimscope.health.watch import HealthView
from claimscope.kube.api import ApiClient
from claimscope.kube.reviews import ACCESS_REVIEWS, TOKEN_REVIEWS, Caller, Deed
from claimscope.metrics import controller
from claimscope.metrics.tables import QUANTITIES as ALL_QUANTITIES
from claimscope.sim.api.access import API_AUDIENCE, Asked, Rule, User
from claimscope.sim.api.kinds import ALL_KINDS
from claimscope.sim.api.server import HttpFault, SimApiServer
from claimscope.web.application import make_application
from claimscope.web.cluster import make_cluster_application
from claimscope.web.review.guard import review_guard
from claimscope.web.review.reviewer import CrowdedError, Reviewer, ReviewFailedError
from claimscope.web.review.sight import EVERYTHING, Sight
from claimscope.web.review.visible import document_namespaces, visible_document, visible_evidence, visible_text
from claimscope.web.site import Check, Readiness, WebCounters, start_site
from claimscope.yamlfile import ConfigError
from cluster_data import CLUSTER, STUCK, TRAIN
from controller_process import Controller
from exposition import GPU_0, QUANTITIES, SNAPSHOT
from kube_help import Fixed
from rights import AGENT, CONTROLLER, warden, written

PROMETHEUS, ALICE, ROOT, STRANGER = "prom.etheus-token", "alice-token", "root-token", "stranger-token"
USERS = {
    "us": User(name="claimscope"),
    PROMETHEUS: User(name="prometheus"),
    ALICE: User(name="alice"),
    ROOT: User(name="root"),
    STRANGER: User(name="stranger"),
    "elsewhere": User(name="prometheus", audiences=("vault",)),
    "both": User(name="prometheus", audiences=("claimscope", API_AUDIENCE)),
}
READY = Readiness(checks=(Check(name="all", ok=True),))


def rule(user: User, asked: Asked) -> bool:
    """The cluster's RBAC: prometheus scrapes, alice reads team-a, root everything."""
    match user.name:
        case "claimscope":
            return asked.verb == "create" and asked.resource in ("tokenreviews", "subjectaccessreviews")
        case "prometheus":
            return (asked.verb, asked.path) == ("get", "/metrics")
        case "alice":
            return asked.path in ("/", "/api/v1/claims", "/api/v1/waits", "/api/v1/snapshot", "/api/v1/health",
                                  "/api/v1/capacity") or (asked.verb, asked.namespace) == ("get", "team-a")
        case "root":
            return True
        case _:
            return False


def explain(namespace: str, name: str) -> Explanation:
    exists = (namespace, name) in ((TRAIN.namespace, TRAIN.name), (STUCK.namespace, STUCK.name))
    return Explanation(
        namespace=namespace, name=name, exists=exists, verdict=f"claim {namespace}/{name}",
        evidence=("device gpu.nvidia.com/node-b/gpu-0 is held by claim team-b/infer (pod infer-5d4f)",),
        similar=("team-a/train", "team-c/train"),
    )


@dataclass
class Bench:
    """A part with its guard, the API server it asks, and the clock that both go by."""

    api: SimApiServer
    clock: ManualClock
    reviewer: Reviewer
    session: aiohttp.ClientSession
    url: str

    async def ask(self, path: str, token: str | None = None, **headers: str) -> tuple[int, str]:
        sent = {**headers, **({} if token is None else {"Authorization": f"Bearer {token}"})}
        async with self.session.get(self.url + path, headers=sent) as response:
            return response.status, await response.text()

    async def document(self, path: str, token: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path, headers={"Authorization": f"Bearer {token}"}) as response:
            return response.status, await response.json()

    def reviews(self) -> tuple[int, int]:
        """How many TokenReviews and SubjectAccessReviews there were."""
        written = self.api.write_requests
        return written.count(f"POST {TOKEN_REVIEWS}"), written.count(f"POST {ACCESS_REVIEWS}")


def cluster_application(reviewer: Reviewer, snapshot: ClusterSnapshot) -> web.Application:
    return make_cluster_application(
        snapshot=lambda: snapshot, collector=ClusterCollector(), readiness=lambda: READY, explain=explain,
        version="0.1.0", counters=WebCounters(own=controller.own, reviews=reviewer.results),
        middlewares=(review_guard(reviewer),),
    )


EVIDENCE = {
    "xid": "13", "pod": "team-b/secret-pod", "process": "secret-train.py", "pid": "4711", "written_by": "a process",
    "line": "NVRM: Xid (PCI:0000:01:00): 13, pid=4711, name=secret-train.py", "unit": "GPC 3, TPC 1",
    "last_xid": "31", "last_pod": "team-a/mine", "last_line": "NVRM: Xid (PCI:0000:01:00): 31, name=mine.py",
}  # fmt: skip


def agent_application(reviewer: Reviewer) -> web.Application:
    finding = Finding(
        uuid=GPU_0, rule="xid_reset", severity=Severity.UNHEALTHY, state=RuleState.FIRING, since_wall_ns=1,
        evidence=EVIDENCE, clears="after a reset",
    )
    view = HealthView(
        boot_id="b", devices={GPU_0: DeviceHealth(uuid=GPU_0, severity=Severity.UNHEALTHY, findings=(finding,))}
    )
    return make_application(
        snapshot=lambda: SNAPSHOT, collector=Collector(QUANTITIES), readiness=lambda: READY, version="0.1.0",
        health=lambda: view, health_document=lambda: document(view, {GPU_0: "0"}),
        counters=WebCounters(reviews=reviewer.results), middlewares=(review_guard(reviewer),),
    )


@asynccontextmanager
async def bench(
    *, agent: bool = False, snapshot: ClusterSnapshot = CLUSTER, audiences: Sequence[str] = (),
    users: Mapping[str, User] = USERS, seconds: float = 10.0, rules: Rule = rule,
) -> AsyncIterator[Bench]:
    api = SimApiServer(users=users, rule=rules)
    client = ApiClient(Fixed(await api.start(), "Bearer us"))
    clock = ManualClock()
    reviewer = Reviewer(client, clock, audiences=audiences, pauses=(0.0, 0.0), seconds=seconds)
    application = agent_application(reviewer) if agent else cluster_application(reviewer, snapshot)
    site = await start_site(application, "127.0.0.1:0")
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            yield Bench(api, clock, reviewer, session, site.url)
    finally:
        await site.close()
        await reviewer.close()
        await client.close()
        await api.stop()


async def until_reviewed(b: Bench, tokens: int) -> None:
    """Waits until the API server has been sent so many TokenReviews."""
    async with asyncio.timeout(5):
        while b.reviews()[0] < tokens:  # noqa: ASYNC110 - the server counts, and tells nobody
            await asyncio.sleep(0)


both_parts = pytest.mark.parametrize("agent", [False, True], ids=["controller", "agent"])


# --- who is let in ---


@both_parts
async def test_a_scrape_needs_a_token_and_the_right(agent: bool) -> None:
    async with bench(agent=agent) as b:
        status, body = await b.ask("/metrics", PROMETHEUS)
        assert (status, "# TYPE" in body) == (200, True)
        part = "agent" if agent else "controller"
        assert f'claimscope_{part}_reviews_total{{review="token",result="shed"}} 0' in body
        assert await b.ask("/metrics") == (
            401,
            "this needs a token of this Kubernetes cluster that is still valid: send `Authorization: Bearer TOKEN`\n",
        )
        assert (await b.ask("/metrics", "made-up"))[0] == 401
        assert await b.ask("/metrics", STRANGER) == (
            403, "user stranger may not get /metrics: bind a ClusterRole to them with nonResourceURLs [/metrics] and "
            "verbs [get]\n",
        )
        assert (await b.ask("/", PROMETHEUS))[0] == 403


@both_parts
async def test_probes_are_open(agent: bool) -> None:
    async with bench(agent=agent) as b:
        b.api.pause()
        assert await b.ask("/livez") == (200, "ok\n")
        assert (await b.ask("/readyz"))[0] == 200
        assert b.reviews() == (0, 0)


@pytest.mark.parametrize(
    "header",
    ["Basic YTpi", "Bearer", "Bearer ", "Bearer a b", "Bearer \x80", "Bearer ä", "Bearer a\tb", "bearer=x", "", "x"],
)
async def test_what_is_no_bearer_token_costs_no_review(header: str) -> None:
    async with bench() as b:
        async with b.session.get(b.url + "/metrics", headers={"Authorization": header}) as response:
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, 'Bearer realm="claimscope"')
        assert b.reviews() == (0, 0)


async def test_the_scheme_is_no_matter_of_case_and_two_headers_are_none() -> None:
    async with bench() as b:
        assert (await b.ask("/metrics", Authorization=f"bEARER  {PROMETHEUS}"))[0] == 200
        headers = [("Authorization", f"Bearer {PROMETHEUS}"), ("Authorization", f"Bearer {ROOT}")]
        async with b.session.get(b.url + "/metrics", headers=headers) as response:
            assert response.status == 401


async def test_other_methods_and_paths() -> None:
    async with bench() as b:
        assert (await b.ask("/secret"))[0] == 401
        assert (await b.ask("/secret", STRANGER))[0] == 404  # there is nothing to keep from them
        async with b.session.head(b.url + "/metrics", headers={"Authorization": f"Bearer {PROMETHEUS}"}) as response:
            assert response.status == 403  # the verb is `head`, as the API server has it
        async with b.session.post(b.url + "/metrics", headers={"Authorization": f"Bearer {ROOT}"}) as response:
            assert response.status == 405
        async with b.session.post(b.url + "/metrics") as response:
            assert response.status == 401


async def test_refusals_of_the_json_api_are_json() -> None:
    async with bench() as b:
        status, found = await b.document("/api/v1/claims", STRANGER)
        assert (status, found["error"][:42]) == (403, "user stranger may not get /api/v1/claims: ")
        assert (await b.document("/api/v1/claims/team-a/x", "nobody"))[0] == 401


async def test_only_tokens_for_the_audience() -> None:
    async with bench(audiences=("claimscope",)) as b:
        assert [(await b.ask("/metrics", token))[0] for token in ("both", PROMETHEUS, "elsewhere")] == [200, 401, 401]
    async with bench() as b:
        assert [(await b.ask("/metrics", token))[0] for token in ("both", PROMETHEUS, "elsewhere")] == [200, 200, 401]


# --- how long it is remembered ---


async def test_answers_are_remembered_as_long_as_controller_runtime_does() -> None:
    users = dict(USERS)
    async with bench(users=users) as b:
        for _ in range(3):
            assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        assert b.reviews() == (1, 1)
        b.clock.advance(59.9)
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        assert b.reviews() == (1, 1)
        b.clock.advance(0.2)
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        assert b.reviews() == (2, 1)  # leave is remembered for five minutes
        for _ in range(5):
            b.clock.advance(60.0)
            assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        assert b.reviews() == (7, 2)


async def test_a_token_that_was_revoked_works_for_a_minute_at_most() -> None:
    async with bench() as b:
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        del b.api.access.users[PROMETHEUS]
        b.clock.advance(60.0)
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 401


async def test_refusals_are_remembered_shortly() -> None:
    async with bench() as b:
        assert [(await b.ask("/metrics", STRANGER))[0] for _ in range(2)] == [403, 403]
        assert [(await b.ask("/metrics", "new"))[0] for _ in range(2)] == [401, 401]
        assert b.reviews() == (2, 1)
        b.api.access.users["new"] = User(name="prometheus")
        b.clock.advance(10.0)
        assert (await b.ask("/metrics", "new"))[0] == 200
        assert (await b.ask("/metrics", STRANGER))[0] == 403
        b.clock.advance(20.0)
        assert (await b.ask("/metrics", STRANGER))[0] == 403
        assert b.reviews() == (3, 3)


async def test_requests_with_one_token_share_one_review() -> None:
    async with bench() as b:
        b.api.pause()
        asking = [asyncio.create_task(b.reviewer.caller(PROMETHEUS, f"10.0.0.{number}")) for number in range(20)]
        await until_reviewed(b, 1)
        asking[0].cancel()  # who asked first goes away, the others still get their answer
        b.api.resume()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert [found.name for found in answers if isinstance(found, Caller)] == ["prometheus"] * 19
        assert b.reviews() == (1, 0)


# --- when the API server fails ---


async def test_a_short_failure_is_waited_out() -> None:
    async with bench() as b:
        b.api.fail(TOKEN_REVIEWS, HttpFault(status=503), HttpFault(status=429))
        b.api.fail(ACCESS_REVIEWS, HttpFault(status=500))
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        assert b.reviews() == (3, 2)


async def test_a_longer_failure_lets_nobody_in_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as b:
        b.api.fail(TOKEN_REVIEWS, *[HttpFault(status=500)] * 9)
        with caplog.at_level(logging.INFO, "claimscope.web.review"):
            for _ in range(3):
                for _ in range(2):
                    assert await b.ask("/metrics", PROMETHEUS) == (
                        500, "the API server did not say who asks or what they may do; the log of claimscope has the "
                        "reason\n",
                    )  # fmt: skip
                b.clock.advance(5.0)  # for which a failure is remembered, and nothing is asked
            assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
            assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
        assert "answered 500: injected" in caplog.records[0].getMessage()
        assert b.reviewer.results["token", "failed"] == 3
        assert b.reviews() == (10, 1)


async def test_who_is_known_is_served_while_the_api_server_is_away() -> None:
    async with bench() as b:
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        await b.api.stop()
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        assert (await b.ask("/metrics", ROOT))[0] == 500
        b.clock.advance(300)  # neither the token nor leave holds any more
        assert [(await b.ask("/metrics", PROMETHEUS))[0] for _ in range(2)] == [200, 200]
        b.clock.advance(359)
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        b.clock.advance(1)  # ten minutes after its time
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 500


async def test_what_is_known_is_given_at_once_while_the_api_server_hangs_and_asked_again_when_it_is_back() -> None:
    async with bench(seconds=0.2) as b:
        tokens = {f"prometheus-{number}": User(name="prometheus") for number in range(12)}
        b.api.access.users.update(tokens)
        for number, token in enumerate(tokens):
            assert await b.reviewer.caller(token, f"10.0.0.{number}") is not None
        assert (await b.ask("/metrics", "prometheus-0"))[0] == 200
        b.clock.advance(60)
        b.api.pause()
        for _ in range(2):
            found = await asyncio.gather(*(b.reviewer.caller(token, "10.0.0.1") for token in tokens))
            assert [each.name for each in found if each is not None] == ["prometheus"] * 12
        assert b.reviews()[0] <= 12 + 12  # the second time nothing was asked
        before = b.reviews()
        assert (await b.ask("/metrics", "prometheus-0"))[0] == 200
        assert b.reviews() == before
        del b.api.access.users["prometheus-3"]
        b.api.resume()
        b.clock.advance(5)
        assert (await b.ask("/metrics", "prometheus-3"))[0] == 200  # and is reviewed beside it
        await until_reviewed(b, before[0] + 1)
        async with asyncio.timeout(5):
            while (await b.ask("/metrics", "prometheus-3"))[0] != 401:  # noqa: ASYNC110 - it asks each time
                await asyncio.sleep(0)
        assert (await b.ask("/metrics", "prometheus-4"))[0] == 200


async def test_a_refusal_of_the_api_server_is_no_reason_to_go_on_with_what_is_known() -> None:
    async with bench() as b:
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        b.clock.advance(60)
        b.api.fail(TOKEN_REVIEWS, HttpFault(status=403))
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 500


async def test_an_api_server_that_never_answers_costs_a_bounded_time() -> None:
    async with bench(seconds=0.05) as b:
        b.api.pause()
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 500
        b.api.resume()
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 500  # remembered
        b.clock.advance(5)
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200


async def test_claimscope_without_the_right_to_review_says_so_at_once(caplog: pytest.LogCaptureFixture) -> None:
    poor = {**USERS, "us": User(name="claimscope", denied=frozenset({("create", "*", "*")}))}
    async with bench(users=poor) as b:
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 500
        assert b.reviews() == (1, 0)  # waiting does not help
    assert "grant the right in the ClusterRole" in caplog.text


@pytest.mark.parametrize("account", [AGENT, CONTROLLER])
async def test_the_manifest_gives_the_rights_to_review_and_no_others(account: str) -> None:
    guard = warden(account, "rbac-authorization.yaml")

    def held(user: User, asked: Asked) -> bool:
        return guard.rule(user, asked) if user.name == "claimscope" else rule(user, asked)

    async with bench(rules=held) as b:
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        assert (await b.document("/api/v1/claims", ALICE))[0] == 200
    assert (guard.troubles(), written(guard.unused())) == ([], [])


@pytest.mark.parametrize(
    ("role", "paths"),
    [
        ("claimscope-metrics-reader", {"/metrics"}),
        ("claimscope-viewer", {"/", "/api/v1/claims", "/api/v1/waits", "/api/v1/health", "/api/v1/capacity",
                               "/api/v1/snapshot"}),
    ],
)  # fmt: skip
def test_the_roles_for_callers_cover_the_paths_that_are_asked_about(role: str, paths: set[str]) -> None:
    (found,) = (each for each in documents("clusterroles-for-callers.yaml") if each["metadata"]["name"] == role)
    (given,) = found["rules"]
    assert given["verbs"] == ["get"]
    for path in paths:  # as nonResourceURLMatches in Kubernetes pkg/apis/rbac/v1/evaluation_helpers.go
        assert any(
            path == each or (each.endswith("*") and path.startswith(each.rstrip("*")))
            for each in given["nonResourceURLs"]
        ), path


# --- floods ---


async def test_a_flood_of_made_up_tokens_costs_only_itself() -> None:
    async with bench() as b:
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        answers = [(await b.ask("/metrics", f"made-up-{number}"))[0] for number in range(200)]
        assert answers == [401] * 9 + [503] * 191  # ten tokens nobody knew, the first was good
        assert b.reviews()[0] == 10
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        b.clock.advance(60)
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200  # renewed beside the flood's allowance
        assert b.reviewer.results["token", "shed"] == 191


async def test_what_hangs_under_review_is_bounded() -> None:
    async with bench() as b:
        b.api.pause()
        asking = [asyncio.create_task(b.reviewer.caller(f"made-up-{n}", f"10.0.0.{n}")) for n in range(60)]
        await until_reviewed(b, 8)
        waiting = [task for task in asking if not task.done()]
        assert (len(waiting), b.reviews()[0]) == (32, 8)  # under review at once, the others wait for their turn
        b.api.resume()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(answer).__name__ for answer in answers] == ["NoneType"] * 32 + ["CrowdedError"] * 28


async def test_made_up_tokens_of_many_addresses_keep_no_new_token_out() -> None:
    """Prometheus' projected token is another one each hour."""
    async with bench() as b:
        for second in range(30):
            for address in range(40):
                for number in range(4):
                    with contextlib.suppress(CrowdedError):
                        await b.reviewer.caller(f"made-up-{second}-{address}-{number}", f"10.0.0.{address}")
            b.clock.advance(1)
            if second >= 8:
                b.api.access.users[f"renewed-{second}"] = User(name="prometheus")
                assert await b.reviewer.caller(f"renewed-{second}", "10.0.1.1") is not None
        assert 200 < b.reviews()[0] < 400  # of 4,800


async def test_one_user_causes_a_bounded_number_of_reviews() -> None:
    async with bench() as b:
        ask = [b.document(f"/api/v1/claims/ns-{number}/x", ALICE) for number in range(3)]
        assert [status for status, _ in await asyncio.gather(*ask)] == [403] * 3
        alice = Caller(name="alice")

        def deeds(many: int) -> list[Deed]:
            return [
                Deed(verb="get", group="resource.k8s.io", resource="resourceclaims", namespace=f"n-{number}")
                for number in range(many)
            ]

        found = await asyncio.gather(*(b.reviewer.may(alice, deed) for deed in deeds(1_500)), return_exceptions=True)
        crowded = [each for each in found if isinstance(each, CrowdedError)]
        assert (len(crowded), b.reviewer.results["access", "shed"]) == (1_500 - 1_200 + 4, 304)
        assert await b.document("/api/v1/claims/other/x", ALICE) == (
            503,
            {"error": "you ask about more namespaces than are reviewed for one user; ask again in a moment"},
        )
        assert (await b.document("/api/v1/claims?namespace=other", ALICE))[0] == 503
        assert (await b.document("/api/v1/claims/team-c/x", ROOT))[0] == 404
        assert (await b.ask("/metrics", PROMETHEUS))[0] == 200
        b.clock.advance(1)
        assert (await b.document("/api/v1/claims/other/x", ALICE))[0] == 403


async def test_who_waits_for_others_waits_no_longer_than_for_the_api_server() -> None:
    async with bench(seconds=0.1) as b:
        b.api.pause()
        caller = Caller(name="alice")
        asking = [b.reviewer.may(caller, Deed(verb="get", resource="r", namespace=f"n-{n}")) for n in range(60)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(each) for each in found} == {ReviewFailedError}
        assert b.reviews()[1] < 48  # 16 at once; whoever waited for those was given up with them


async def test_a_queue_of_our_own_is_no_api_server_that_is_away() -> None:
    """Else who asks much would keep alive what was allowed once and is not any more."""
    allowed = {"kept"}

    def rules(user: User, asked: Asked) -> bool:
        return user.name == "claimscope" or asked.namespace in allowed

    async with bench(seconds=0.5, rules=rules) as b:
        caller = Caller(name="alice")
        kept = Deed(verb="get", resource="r", namespace="kept")
        assert await b.reviewer.may(caller, kept)
        allowed.clear()
        b.clock.advance(301)
        b.api.pause()
        asking = [
            asyncio.create_task(b.reviewer.may(caller, Deed(verb="get", resource="r", namespace=f"n-{n}")))
            for n in range(200)
        ]
        while b.reviews()[1] < 17:  # noqa: ASYNC110 - the server counts, and tells nobody
            await asyncio.sleep(0)
        b.api.resume()
        while b.reviewer.results["access", "denied"] == 0:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0)
        b.api.pause()
        found = await asyncio.gather(*asking, return_exceptions=True)
        crowded = [each for each in found if isinstance(each, CrowdedError)]
        assert len(crowded) >= 100
        assert len(crowded) == b.reviewer.results["access", "shed"] == 200 - found.count(False)
        b.api.resume()
        assert not await b.reviewer.may(caller, kept)


async def test_no_token_is_ever_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with bench() as b:
        for token in (PROMETHEUS, STRANGER, "made-up-secret"):
            await b.ask("/metrics", token)
        b.api.fail(TOKEN_REVIEWS, HttpFault(status=400, message=f"bad token {ROOT}"))
        assert ROOT not in (await b.ask("/metrics", ROOT))[1]
    assert caplog.records
    for token in (PROMETHEUS, STRANGER, "made-up-secret", ROOT):
        assert token not in caplog.text


# --- what is seen ---


async def test_claims_are_named_only_where_they_may_be_read() -> None:
    async with bench() as b:
        status, found = await b.document("/api/v1/claims", ALICE)
        assert (status, {claim["namespace"] for claim in found["claims"]}) == (200, {"team-a"})
        left = sum(view.namespace != "team-a" for view in CLUSTER.claims.values())
        assert found["total"] == len(found["claims"]) == len(CLUSTER.claims) - left
        assert found["hidden"] == f"{left} claims in namespaces that you may not read"
        status, found = await b.document("/api/v1/claims", ROOT)
        assert (status, found["total"], "hidden" in found) == (200, len(CLUSTER.claims), False)


async def test_a_namespace_that_is_asked_for_by_name() -> None:
    async with bench() as b:
        status, found = await b.document("/api/v1/claims?namespace=team-a", ALICE)
        assert (status, found["total"], "hidden" in found) == (200, 3, False)
        there = await b.document("/api/v1/claims?namespace=team-b", ALICE)
        nowhere = await b.document("/api/v1/claims?namespace=team-x", ALICE)
        assert there[0] == nowhere[0] == 403
        assert there[1]["error"].replace("team-b", "team-x") == nowhere[1]["error"]
        before = b.reviews()
        assert (await b.document("/api/v1/claims?namespace=../Odd%20one", ALICE))[0] == 403
        assert (await b.document("/api/v1/claims?state=nonsense", ALICE))[0] == 400
        assert b.reviews() == before


async def test_explain_does_not_tell_whether_a_claim_exists_elsewhere() -> None:
    async with bench() as b:
        there = await b.document(f"/api/v1/claims/team-c/{STUCK.name}", ALICE)
        nowhere = await b.document("/api/v1/claims/team-c/nothing", ALICE)
        assert there == nowhere
        assert there[0] == 403
        status, found = await b.document(f"/api/v1/claims/team-a/{TRAIN.name}", ALICE)
        assert (status, found["evidence"], found["similar"]) == (
            200,
            ["device gpu.nvidia.com/node-b/gpu-0 is held by a claim of a namespace that is not shown here"],
            ["team-a/train"],
        )
        _, found = await b.document(f"/api/v1/claims/team-a/{TRAIN.name}", ROOT)
        assert found["evidence"][0].endswith("is held by claim team-b/infer (pod infer-5d4f)")
        assert found["similar"] == ["team-a/train", "team-c/train"]


async def test_the_page_names_nothing_that_may_not_be_read() -> None:
    async with bench() as b:
        status, page = await b.ask("/", ALICE)
        assert (status, TRAIN.name in page, STUCK.name in page) == (200, False, False)  # a claim that runs is no news
        assert "eval-gpu" in page
        assert "claims in namespaces that you may not read are left out." in page
        for other in ("team-b", "team-c", "monitoring", "all-gpus"):
            assert other not in page
        _, page = await b.ask("/", ROOT)
        assert (STUCK.name in page, "may not read" in page) == (True, False)


async def test_waits_say_nothing_of_claims_elsewhere() -> None:
    wait = Wait(
        namespace="team-a", claim="wants", claim_uid="u", pod="p", pod_claim="g", deviceclass="c", since_wall=None,
        diagnosis=Diagnosis(
            reason=PendingReason.DEVICES_IN_USE, summary="needs 1 device", cure="ask the owner of team-b/infer",
            evidence=("device gpu.nvidia.com/node-b/gpu-0 is held by claim team-b/infer (pod infer-5d4f)",),
        ),
    )  # fmt: skip
    async with bench(snapshot=replace(CLUSTER, waits=(wait, *CLUSTER.waits))) as b:
        status, found = await b.document("/api/v1/waits", ALICE)
        assert status == 200
        assert {each["namespace"] for each in found["waits"]} <= {"team-a"}
        (shown,) = (each for each in found["waits"] if each["claim"] == "wants")
        assert "infer" not in str(shown)
        assert shown["cure"] == "ask the owner of a claim of a namespace that is not shown here"


async def test_a_thousand_namespaces_are_asked_about_once() -> None:
    claims = {
        f"uid-{number}": replace(TRAIN, namespace=f"ns-{number:04}", uid=f"uid-{number}") for number in range(1_200)
    }
    claims["uid-a"] = replace(TRAIN, namespace="team-a", uid="uid-a")
    snapshot = replace(CLUSTER, claims=claims, waits=(), samples=())
    async with bench(snapshot=snapshot) as b:
        status, found = await b.document("/api/v1/claims?limit=10", ROOT)
        assert (status, found["total"], b.reviews()[1]) == (200, 1_201, 2)  # the path, and all namespaces at once
        status, found = await b.document("/api/v1/claims?limit=10", ALICE)
        # Beyond a thousand names nothing is asked and nothing is shown: those can be asked for by name.
        assert (status, found["total"], b.reviews()[1]) == (200, 0, 1_004)
        assert found["hidden"] == "1201 claims in namespaces that you may not read"
        assert (await b.document("/api/v1/claims?namespace=team-a", ALICE))[1]["total"] == 1
        before = b.reviews()
        await b.document("/api/v1/claims?limit=10", ALICE)
        assert b.reviews() == before


async def test_the_agent_shows_holders_only_where_claims_may_be_read() -> None:
    async with bench(agent=True) as b:
        _, whole = await b.document("/api/v1/snapshot", ROOT)
        assert {hold["holder"]["namespace"] for hold in whole["holds"]} > {"team-a"}
        status, found = await b.document("/api/v1/snapshot", ALICE)
        assert status == 200
        assert {each["holder"]["namespace"] for each in (*found["holds"], *found["accounts"])} == {"team-a"}
        assert found["devices"] == whole["devices"]
        assert found["hidden"].endswith(" holders of devices in namespaces that you may not read")
        _, page = await b.ask("/", ALICE)
        assert ("team-a" in page, "team-b" in page, "team-c" in page) == (True, False, False)
        assert "holders of devices in namespaces that you may not read are left out." in page
        assert "team-c" in (await b.ask("/", ROOT))[1]


async def test_findings_name_no_pod_of_another_namespace() -> None:
    async with bench(agent=True) as b:
        _, found = await b.document("/api/v1/health", ALICE)
        assert found["devices"][0]["findings"][0]["evidence"] == {
            "xid": "13", "unit": "GPC 3, TPC 1", "last_xid": "31", "last_pod": "team-a/mine",
            "last_line": "NVRM: Xid (PCI:0000:01:00): 31, name=mine.py",
        }  # fmt: skip
        page = (await b.ask("/", ALICE))[1]
        assert ("team-a/mine" in page, "secret" in page, "4711" in page) == (True, False, False)
        _, found = await b.document("/api/v1/health", ROOT)
        assert found["devices"][0]["findings"][0]["evidence"] == EVIDENCE


XID = {"xid": "13", "meaning": "a program's mistake", "unit": "GPC 3, TPC 1"}


@pytest.mark.parametrize(
    ("evidence", "shown"),
    [
        ({**XID, "pod": "team-a/mine", "pid": "7"}, {**XID, "pod": "team-a/mine", "pid": "7"}),
        ({"pod": "team-a/mine", "last_pod": "team-b/secret-pod", "last_line": "x"}, {"pod": "team-a/mine"}),
        ({"pod": "team-b/secret-pod", "line": "x", "last_pod": "team-a/mine"}, {"last_pod": "team-a/mine"}),
        ({**XID, "process": "secret.py", "pid": "7", "line": "name=secret.py"}, XID),  # whose process it was is unknown
        ({"pod": "team-a/mine", "last_xid": "31", "last_line": "name=secret.py"},
         {"pod": "team-a/mine", "last_xid": "31"}),
        ({"pod": "", "line": "x", "something_new": "team-b/secret-pod"}, {}),
        ({"temperature_gpu": "91", "celsius_to_slowdown": "3"}, {"temperature_gpu": "91", "celsius_to_slowdown": "3"}),
        ({"pod": "/x", "line": "x"}, {}),
    ],
    ids=["own", "last of others", "first of others", "nobody's", "last of nobody", "unknown key", "reading", "no pod"],
)  # fmt: skip
def test_evidence_is_of_the_device_or_of_a_pod_that_is_shown(evidence: dict[str, str], shown: dict[str, str]) -> None:
    sight = Sight(namespaces=frozenset({"team-a"}))
    assert visible_evidence(evidence, sight) == shown
    document = {"devices": [{"findings": [{"evidence": evidence}]}], "unplaced": ({"evidence": evidence},)}
    assert visible_document(document, sight) == {
        "devices": [{"findings": [{"evidence": shown}]}], "unplaced": [{"evidence": shown}]
    }  # fmt: skip
    assert visible_evidence(evidence, EVERYTHING) == evidence
    pods = " ".join(evidence.get(key, "") for key in ("pod", "last_pod"))
    assert document_namespaces(document) == {name for name in ("team-a", "team-b") if name in pods}


def test_every_reading_is_of_the_device() -> None:
    readings = {quantity.key: "1" for quantity in ALL_QUANTITIES}
    assert visible_evidence(readings, Sight()) == readings


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("held by claim team-a/x (pod p)", "held by claim team-a/x (pod p)"),
        ("held by claim other/x (pod p, q and 3 more)", "held by a claim of a namespace that is not shown here"),
        ("gpu.nvidia.com/team-b/gpu-0, 3/4, nodes/status", "gpu.nvidia.com/team-b/gpu-0, 3/4, nodes/status"),
        ("waits behind team-b/y.", "waits behind a claim of a namespace that is not shown here."),
    ],
)
def test_names_in_texts(text: str, shown: str) -> None:
    assert visible_text(text, Sight(namespaces=frozenset({"team-a"})), frozenset({"team-b"})) == shown


# --- the processes ---


async def refused(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode().splitlines()[-1]


async def test_an_agent_without_an_api_server_does_not_start_with_it() -> None:
    off = ("--state-file", "", "--control-socket", "", "--web-listen-address", "127.0.0.1:0")
    assert await refused("agent", "--web-authorization", "kubernetes", *off) == (
        1,
        "claimscope: --web-authorization=kubernetes: there is no API server to ask who a caller is: run in a pod with "
        "a service account token, name a --kubeconfig, or leave it off",
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--web-authorization", "kubernetes", "--api-server", "off"),
            "--web-authorization: there is no API server to ask with --api-server off: leave one of them out",
        ),
        (
            ("--web-authorization-audiences", "claimscope"),
            "--web-authorization-audiences: nobody's token is looked at: add --web-authorization=kubernetes",
        ),
    ],
)
def test_settings_that_make_no_sense(flags: tuple[str, ...], said: str) -> None:
    keys = {flag[2:].replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    with pytest.raises(ConfigError) as caught:
        config.build(config.from_flags(keys))
    assert str(caught.value) == said


async def test_the_controller_runs_with_it(tmp_path: Path) -> None:
    server = SimApiServer(ALL_KINDS, users={}, rule=rule_of_processes)
    await server.start()
    token = tmp_path / "token"
    token.write_text("alice\n")
    try:
        arguments = ("--api-server-url", server.url, "--web-authorization", "kubernetes", "--leader-election", "off")
        async with Controller(tmp_path, *arguments) as process:
            await process.until_ready()
            assert (await process.get("/metrics")).status == 401
            asked = ("explain", "claim", "team-b/x", "--controller", process.url, "--token-file", str(token))
            code, said = await refused(*asked)
            assert (code, said) == (
                1,
                "claimscope: you may not read ResourceClaims in namespace team-b: bind a Role to you with get "
                "resourceclaims there",
            )
            assert "alice" not in process.log
    finally:
        await server.stop()


def rule_of_processes(user: User, asked: Asked) -> bool:
    """The controller comes without a token and may do everything."""
    return user.name == "system:anonymous" or asked.path.startswith("/api/")
