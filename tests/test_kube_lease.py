"""Never two leaders, whatever clocks and networks do; and heartbeats that say what an agent found."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest

from claimscope.clock import Clock, ManualClock, SystemClock
from claimscope.kube.api import ApiClient, ApiReason
from claimscope.kube.lease import HeartbeatLease, LeaderElection, LeaseSeen, micro_time
from claimscope.sim.api.kinds import LEASES
from claimscope.sim.api.server import HttpFault, SimApiServer
from kube_help import Fixed, serving

ALL = "/apis/coordination.k8s.io/v1/namespaces/claimscope/leases"
PATH = f"{ALL}/controller"
START = 1_700_000_000.0  # of a ManualClock


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells that an election or a stored object changed
            await asyncio.sleep(0.001)


async def some_tries(server: SimApiServer) -> None:
    """Waits until every candidate has asked the server several times."""
    asked = len(server.requests)
    await until(lambda: len(server.requests) >= asked + 12)


class Candidate:
    """An election with work that runs until it is stopped."""

    def __init__(self, client: ApiClient, identity: str, clock: Clock, **settings: Any) -> None:
        self.election = LeaderElection(
            client, "claimscope", "controller", identity, clock, **{"retry_seconds": 0.002, **settings}
        )
        self.working = False
        self.begun: list[LeaseSeen] = []
        self.task = asyncio.create_task(self.election.run(self.work))

    async def work(self, before: LeaseSeen) -> None:
        self.begun.append(before)
        self.working = True
        try:
            await asyncio.Event().wait()
        finally:
            self.working = False

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@asynccontextmanager
async def candidates(
    client: ApiClient, clock: Clock, *identities: str, **settings: Any
) -> AsyncIterator[list[Candidate]]:
    standing = [Candidate(client, identity, clock, **settings) for identity in identities]
    try:
        yield standing
    finally:
        for candidate in standing:
            await candidate.stop()


def lease(holder: str, renewed: str | None, **more: Any) -> dict[str, Any]:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 4, **more}
    return {
        "metadata": {"namespace": "claimscope", "name": "controller", "labels": {"team": "gpu"}},
        "spec": {**spec, **({"renewTime": renewed} if renewed else {})},
    }


def spec_of(server: SimApiServer, name: str = "controller") -> dict[str, Any]:
    found = server.get(LEASES, name, "claimscope")
    assert found is not None
    spec: dict[str, Any] = found["spec"]
    return spec


def holder_of(server: SimApiServer) -> str:
    found = server.get(LEASES, "controller", "claimscope")
    return found["spec"].get("holderIdentity", "") if found else ""


# --- the election ---


def test_micro_time() -> None:
    assert micro_time(1_700_000_000_012_345_678) == "2023-11-14T22:13:20.012345Z"


async def test_first_candidate_makes_the_lease() -> None:
    async with serving(None, LEASES) as (server, client), candidates(client, ManualClock(), "a") as [a]:
        await until(lambda: a.working)
        assert (a.election.is_leader, a.election.holder, a.begun) == (True, "a", [LeaseSeen()])
        assert spec_of(server) == {
            "holderIdentity": "a",
            "leaseDurationSeconds": 15,
            "acquireTime": "2023-11-14T22:13:20.000000Z",
            "renewTime": "2023-11-14T22:13:20.000000Z",
            "leaseTransitions": 0,
        }
        await a.stop()
        assert not a.election.is_leader
        assert spec_of(server) == {
            "holderIdentity": "",
            "leaseDurationSeconds": 1,
            "acquireTime": "2023-11-14T22:13:20.000000Z",
            "renewTime": "2023-11-14T22:13:20.000000Z",
            "leaseTransitions": 0,
        }


async def test_one_of_two_leads_and_the_other_follows_at_once() -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client), candidates(client, clock, "a", "b") as both:
        await until(lambda: any(each.working for each in both))
        await some_tries(server)
        [leader] = [each for each in both if each.working]
        [standby] = [each for each in both if not each.working]
        assert (standby.election.is_leader, standby.election.holder) == (False, leader.election.holder)
        clock.advance(3)
        await leader.stop()
        await until(lambda: standby.working)
        assert standby.begun == [LeaseSeen(holder=None, renew_wall=START + 3)]
        assert spec_of(server)["leaseTransitions"] == 1


async def test_renewals_keep_the_lease() -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client), candidates(client, clock, "a") as [a]:
        await until(lambda: a.working)
        for _ in range(10):
            clock.advance(5)
            await until(lambda: spec_of(server)["renewTime"] == micro_time(clock.wall_ns()))
            assert a.election.is_leader
        assert len(a.begun) == 1
        assert spec_of(server)["acquireTime"] == micro_time(round(START * 1e9))


@pytest.mark.parametrize("renewed", ["1999-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000000Z", None])
async def test_lease_of_the_dead_is_taken_after_its_time_on_our_own_clock(renewed: str | None) -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client):
        await server.put(LEASES, lease("dead", renewed))
        async with candidates(client, clock, "a") as [a]:
            await until(lambda: a.election.holder == "dead")
            clock.advance(14.9)
            await some_tries(server)
            assert not a.working
            clock.advance(0.2)
            await until(lambda: a.working)
            assert a.begun[0].holder == "dead"
            assert spec_of(server)["leaseTransitions"] == 5
            found = server.get(LEASES, "controller", "claimscope")
            assert found is not None
            assert found["metadata"]["labels"] == {"team": "gpu"}
    assert [seen.renew_wall for seen in a.begun] == [
        {"1999-01-01T00:00:00.000000Z": 915148800.0, "2099-01-01T00:00:00.000000Z": 4070908800.0, None: None}[renewed]
    ]


async def test_lease_that_lives_is_not_taken() -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client):
        await server.put(LEASES, lease("other", "1999-01-01T00:00:00.000000Z"))
        async with candidates(client, clock, "a") as [a]:
            for second in range(1, 6):
                await some_tries(server)
                clock.advance(10)
                await server.put(LEASES, lease("other", f"1999-01-01T00:00:0{second}.000000Z"))
            await some_tries(server)
            assert (a.working, a.election.holder) == (False, "other")


async def test_released_lease_is_taken_at_once() -> None:
    async with serving(None, LEASES) as (server, client):
        await server.put(LEASES, lease("", "2023-11-14T22:00:00.000000Z"))
        async with candidates(client, ManualClock(), "a") as [a]:
            await until(lambda: a.working)
            assert a.begun == [LeaseSeen(holder=None, renew_wall=1_699_999_200.0)]


async def test_leader_that_was_stopped_for_a_while_knows_it_at_once() -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (_, client), candidates(client, clock, "a") as [a]:
        await until(lambda: a.working)
        clock.advance(10)
        assert not a.election.is_leader
        await until(lambda: len(a.begun) == 2 and a.working)
        assert a.begun[1] == LeaseSeen(holder="a", renew_wall=START)


@pytest.mark.parametrize("jump_seconds", [-86_400, 86_400])
async def test_jumps_of_the_wall_clock_change_nothing(jump_seconds: int) -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client), candidates(client, clock, "a", "b") as both:
        await until(lambda: any(each.working for each in both))
        clock.wall += jump_seconds * 1_000_000_000
        await some_tries(server)
        await until(lambda: spec_of(server)["renewTime"] == micro_time(clock.wall_ns()))
        assert sorted(len(each.begun) for each in both) == [0, 1]


async def test_leader_stops_before_its_lease_ends_when_the_server_is_silent() -> None:
    async with serving(None, LEASES) as (server, client):
        settings = {"lease_seconds": 2, "renew_deadline_seconds": 0.2, "retry_seconds": 0.02}
        async with candidates(client, SystemClock(), "a", **settings) as [a]:
            await until(lambda: a.working)
            server.pause()
            began = asyncio.get_running_loop().time()
            await until(lambda: not a.election.is_leader)
            await until(lambda: not a.working)
            assert asyncio.get_running_loop().time() - began < 1.5
            server.resume()
            await until(lambda: a.working)
            assert errors(a).keys() == {"timeout"}


async def test_one_failed_renewal_costs_nothing() -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client), candidates(client, clock, "a") as [a]:
        await until(lambda: a.working)
        server.fail(PATH, HttpFault(status=500), HttpFault(status=409), HttpFault(status=503))
        clock.advance(5)
        await until(lambda: spec_of(server)["renewTime"] == micro_time(clock.wall_ns()))
        assert (a.election.is_leader, len(a.begun)) == (True, 1)


async def test_annotations_of_others_cost_no_renewal(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(None, LEASES) as (server, client), candidates(client, SystemClock(), "one") as (one,):
        await until(lambda: one.working)
        for number in range(5):
            found = server.get(LEASES, "controller", "claimscope") or {}
            found["metadata"].setdefault("annotations", {})["claimscope.io/pause"] = str(number)
            await server.put(LEASES, found)
            await some_tries(server)
        kept = server.get(LEASES, "controller", "claimscope") or {}
        assert kept["metadata"]["annotations"] == {"claimscope.io/pause": "4"}
        counted = [each for each in one.election.samples() if each.family.endswith("lease_errors_total")]
        assert {each.value for each in counted} == {0}
        assert [line for line in caplog.messages if "cannot write" in line] == []


async def test_server_away_at_start() -> None:
    async with serving(None, LEASES) as (server, client):
        port = int(server.url.rsplit(":", 1)[1])
        await server.stop()
        async with candidates(client, ManualClock(), "a") as [a]:
            await until(lambda: errors(a) != {})
            assert (a.election.is_leader, a.election.holder) == (False, None)
            await server.start(port)
            await until(lambda: a.working)
            assert errors(a).keys() == {"unreachable"}


async def test_forbidden_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "claimscope.kube.lease")
    async with serving(None, LEASES) as (server, client):
        server.fail(PATH, *(HttpFault(status=403, message="leases is forbidden") for _ in range(5)))
        async with candidates(client, ManualClock(), "a") as [a]:
            await until(lambda: a.working)
            assert errors(a) == {"forbidden": 5}
            assert [(sample.family, sample.value) for sample in a.election.samples()[:2]] == [
                ("claimscope_controller_leader", 1),
                ("claimscope_controller_leader_changes_total", 1),
            ]
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write the lease claimscope/controller: {server.url}{PATH} answered 403: leases is forbidden; grant "
        "the right in the ClusterRole (claimscope doctor lists what is needed)"
    ]


async def test_lost_race_for_a_new_lease() -> None:
    async with serving(None, LEASES) as (server, client):
        server.fail(ALL, HttpFault(status=409, message="already exists"))
        async with candidates(client, ManualClock(), "a") as [a]:
            await until(lambda: a.working)
            assert errors(a) == {"conflict": 1}


async def test_deleted_lease_is_made_again() -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client), candidates(client, clock, "a") as [a]:
        await until(lambda: a.working)
        await server.delete(LEASES, "controller", "claimscope")
        await until(lambda: holder_of(server) == "a")
        await some_tries(server)
        assert (a.working, len(a.begun)) == (True, 1)


@pytest.mark.parametrize("other", ["b", ""])
async def test_lease_that_was_given_away_is_given_up(other: str) -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client), candidates(client, clock, "a") as [a]:
        await until(lambda: a.working)
        await server.put(LEASES, lease(other, "2023-11-14T22:13:25.000000Z"))
        if other:
            await until(lambda: not a.working and a.election.holder == other)
            clock.advance(16)
        await until(lambda: len(a.begun) == 2)
        assert a.begun[1] == LeaseSeen(holder=other or None, renew_wall=START + 5)


async def test_a_server_that_is_silent_at_the_end_does_not_keep_the_process(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(None, LEASES) as (server, client), candidates(client, SystemClock(), "a") as [a]:
        await until(lambda: a.working)
        server.pause()
        async with asyncio.timeout(10):  # a request alone may take 30 s
            await a.stop()
        server.resume()
        assert not a.working
        assert holder_of(server) == "a"  # others wait until it has ended
    assert "no answer in time" in caplog.text


async def test_work_that_ends_lets_the_lease_go() -> None:
    async def work(_: LeaseSeen) -> None:
        return

    async with serving(None, LEASES) as (server, client):
        election = LeaderElection(client, "claimscope", "controller", "a", ManualClock(), retry_seconds=0.002)
        await election.run(work)
        assert (election.is_leader, holder_of(server)) == (False, "")


async def test_work_that_fails_is_not_hidden() -> None:
    async def work(_: LeaseSeen) -> None:
        raise RuntimeError("broken")

    async with serving(None, LEASES) as (server, client):
        election = LeaderElection(client, "claimscope", "controller", "a", ManualClock(), retry_seconds=0.002)
        with pytest.raises(RuntimeError, match="broken"):
            await election.run(work)
        assert holder_of(server) == ""


def test_times_that_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"retry \(2\.0 s\) must be shorter than the renew deadline \(20\.0 s\)"):
        LeaderElection(
            ApiClient(Fixed("http://127.0.0.1:1")), "n", "l", "a", ManualClock(), renew_deadline_seconds=20.0
        )


@pytest.mark.parametrize("seed", range(8))
async def test_never_two_leaders(seed: int) -> None:
    """Three candidates, each with a clock of its own, a server that fails at random, and a lease that gets deleted."""
    chance = random.Random(seed)
    clocks = [ManualClock(monotonic=1_000_000_000_000 * number, wall=3_600 * number) for number in range(3)]
    async with serving(None, LEASES) as (server, client):
        standing = [Candidate(client, f"c{number}", clock) for number, clock in enumerate(clocks)]
        try:
            await until(lambda: holder_of(server) != "" and agreed(server, standing))
            led = await watch_leaders(server, standing, clocks, chance)
        finally:
            for each in standing:
                await each.stop()
    assert led


def agreed(server: SimApiServer, standing: list[Candidate]) -> bool:
    return all(each.election.holder == holder_of(server) for each in standing)


async def watch_leaders(
    server: SimApiServer, standing: list[Candidate], clocks: list[ManualClock], chance: random.Random
) -> set[int]:
    led: set[int] = set()
    for step in range(100):
        seconds = chance.choice((0.5, 1.0, 2.0))
        for clock in clocks:
            clock.advance(seconds)
        if chance.random() < 0.2:
            server.fail(PATH, *(HttpFault(status=chance.choice((409, 500))) for _ in range(chance.randrange(12))))
        if step in (30, 70) and agreed(server, standing):
            await server.delete(LEASES, "controller", "claimscope")
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0.002)
            leading = [number for number, each in enumerate(standing) if each.election.is_leader]
            assert len(leading) <= 1, leading
            led.update(leading)
    return led


async def test_lease_deleted_while_its_holder_is_away_is_made_anew_in_due_time() -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client):
        await server.put(LEASES, lease("other", "2023-11-14T22:13:19.000000Z"))
        async with candidates(client, clock, "a") as [a]:
            await until(lambda: a.election.holder == "other")
            clock.advance(14)
            await server.delete(LEASES, "controller", "claimscope")
            await some_tries(server)
            clock.advance(14)
            await some_tries(server)
            assert not a.working
            clock.advance(2)
            await until(lambda: a.working)
            assert a.begun == [LeaseSeen(holder="other", renew_wall=START - 1)]


async def test_errors_that_happen_everywhere_start_at_zero() -> None:
    async with serving(None, LEASES) as (_, client), candidates(client, ManualClock(), "a") as [a]:
        assert [dict(sample.labels) for sample in a.election.samples() if "errors_total" in sample.family] == [
            {"reason": reason} for reason in (
                "unreachable", "forbidden", "gone", "rate_limited", "server_error", "malformed", "timeout",
            )
        ]


def errors(candidate: Candidate) -> dict[str, float]:
    return {
        dict(sample.labels)["reason"]: sample.value
        for sample in candidate.election.samples()
        if sample.family == "claimscope_controller_lease_errors_total" and sample.value
    }


# --- heartbeats ---

NODE = f"{ALL}/gpu-node-1"


@asynccontextmanager
async def beating(client: ApiClient, clock: Clock, **settings: Any) -> AsyncIterator[HeartbeatLease]:
    heartbeat = HeartbeatLease(
        client,
        "claimscope",
        "gpu-node-1",
        "agent-x",
        {"claimscope.io/node": "gpu-node-1"},
        clock,
        **{
            "beat_seconds": 0.01,
            "change_seconds": 0.001,
            "first_wait_seconds": 0.001,
            "jitter": lambda: 0.5,
            **settings,
        },
    )
    task = asyncio.create_task(heartbeat.run())
    try:
        yield heartbeat
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def annotations_of(server: SimApiServer) -> dict[str, str]:
    found = server.get(LEASES, "gpu-node-1", "claimscope")
    return dict(found["metadata"].get("annotations") or {}) if found else {}


def _says(server: SimApiServer, annotations: dict[str, str]) -> bool:
    return annotations_of(server) == annotations


async def test_heartbeat_is_made_and_renewed() -> None:
    clock = ManualClock()
    async with serving(None, LEASES) as (server, client), beating(client, clock) as heartbeat:
        await until(lambda: server.get(LEASES, "gpu-node-1", "claimscope") is not None)
        found = server.get(LEASES, "gpu-node-1", "claimscope")
        assert found is not None
        assert found["metadata"]["labels"] == {
            "app.kubernetes.io/component": "agent",
            "claimscope.io/node": "gpu-node-1",
        }
        clock.advance(60)
        await until(lambda: spec_of(server, "gpu-node-1")["renewTime"] == "2023-11-14T22:14:20.000000Z")
        assert spec_of(server, "gpu-node-1")["holderIdentity"] == "agent-x"
        await until(lambda: heartbeat.renewed_wall == START + 60)
        assert heartbeat.errors == {}


async def test_findings_are_written_soon_and_whole() -> None:
    settings = {"beat_seconds": 3600.0}
    async with serving(None, LEASES) as (server, client), beating(client, ManualClock(), **settings) as heartbeat:
        heartbeat.set_annotations({"claimscope.io/findings": "one", "claimscope.io/boot": "1"})
        await until(lambda: annotations_of(server) == {"claimscope.io/findings": "one", "claimscope.io/boot": "1"})
        heartbeat.set_annotations({"claimscope.io/findings": "two"})
        await until(lambda: annotations_of(server) == {"claimscope.io/findings": "two"})
        heartbeat.set_annotations({})
        await until(lambda: annotations_of(server) == {})


async def test_flapping_findings_are_not_written_each_time() -> None:
    settings = {"beat_seconds": 3600.0, "change_seconds": 0.2, "changes_at_once": 1}
    async with serving(None, LEASES) as (server, client), beating(client, ManualClock(), **settings) as heartbeat:
        await until(lambda: server.get(LEASES, "gpu-node-1", "claimscope") is not None)
        began = asyncio.get_running_loop().time()
        for number in range(50):
            heartbeat.set_annotations({"claimscope.io/findings": str(number)})
            await asyncio.sleep(0)
        await until(lambda: annotations_of(server) == {"claimscope.io/findings": "49"})
        assert asyncio.get_running_loop().time() - began >= 0.15
        assert [path for path, _ in server.requests] == [NODE, ALL, NODE, NODE]


async def test_a_few_findings_after_a_quiet_time_are_written_at_once() -> None:
    settings = {"beat_seconds": 3600.0, "change_seconds": 3600.0, "changes_at_once": 3}
    async with serving(None, LEASES) as (server, client), beating(client, ManualClock(), **settings) as heartbeat:
        await until(lambda: server.get(LEASES, "gpu-node-1", "claimscope") is not None)
        for number in range(3):
            told = {"claimscope.io/findings": str(number)}
            heartbeat.set_annotations(told)
            await until(partial(lambda wanted: annotations_of(server) == wanted, told))
        assert [path for path, _ in server.requests] == [NODE, ALL, NODE, NODE, NODE]


async def test_what_was_written_by_others_is_read_again() -> None:
    async with serving(None, LEASES) as (server, client), beating(client, ManualClock()) as heartbeat:
        await until(lambda: heartbeat.renewed_wall is not None)
        await server.put(
            LEASES,
            {"metadata": {"namespace": "claimscope", "name": "gpu-node-1", "labels": {"zone": "a"}}, "spec": {}},
        )
        await until(lambda: spec_of(server, "gpu-node-1").get("holderIdentity") == "agent-x")
        found = server.get(LEASES, "gpu-node-1", "claimscope")
        assert found is not None
        assert found["metadata"]["labels"] == {
            "app.kubernetes.io/component": "agent",
            "claimscope.io/node": "gpu-node-1",
            "zone": "a",
        }
        assert heartbeat.errors == {ApiReason.CONFLICT: 1}


async def test_deleted_heartbeat_is_made_again() -> None:
    async with serving(None, LEASES) as (server, client), beating(client, ManualClock()) as heartbeat:
        await until(lambda: heartbeat.renewed_wall is not None)
        await server.delete(LEASES, "gpu-node-1", "claimscope")
        await until(lambda: server.get(LEASES, "gpu-node-1", "claimscope") is not None)


async def test_refused_heartbeat_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "claimscope.kube.lease")
    async with serving(None, LEASES) as (server, client):
        server.fail(NODE, *(HttpFault(status=500) for _ in range(3)))
        async with beating(client, ManualClock()) as heartbeat:
            await until(lambda: heartbeat.renewed_wall is not None)
        assert heartbeat.errors == {ApiReason.SERVER_ERROR: 3}
    assert [(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records] == [
        ("WARNING", "cannot write the heartbeat claimscope/gpu-node-1"),
        ("INFO", "the heartbeat claimscope/gpu-node-1 can be written again"),
    ]
