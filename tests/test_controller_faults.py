"""What does the running controller make of an API server that is away, slow, refuses, or says nonsense?"""

from __future__ import annotations

import json
from pathlib import Path

from claim_objects import allocated, claim, device, pool
from claimscope.sim.api.kinds import (
    DEVICE_TAINT_RULES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
)
from claimscope.sim.api.server import HttpFault, SimApiServer, User, in_version
from claimscope.sim.cluster import KINDS
from controller_process import Controller, durations, outcomes, reasons, states, watch_errors
from controller_story import (
    BIG_WAITS,
    FURNISHED,
    PHASES,
    RESOURCES,
    free_port,
    goes,
    living_claim,
    living_pod,
    runs,
    runs_backwards,
    serving,
    wants,
)

CLAIMS = f"{RESOURCES}/resourceclaims"
OWN = "claimscope_controller_"


def alone(directory: Path, server: SimApiServer, **more: str) -> Controller:
    """A controller that needs no lease."""
    return Controller(directory, "--api-server-url", server.url, "--leader-election", "off", **more)


async def test_an_api_server_that_is_away_at_the_start_and_later(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with Controller(tmp_path, "--api-server-url", url, "--lease-seconds", "3") as controller:
        early = await controller.until(lambda scrape: scrape if scrape.samples else None)
        assert early.value(OWN + "leader") == 0.0
        assert early.find("kube_resourceclaim_status_allocation_state") == []
        assert "not ready" in await controller.until_ready(503)
        assert json.loads((await controller.get("/api/v1/claims")).body) == {
            "error": "this replica stands by, and no other leads yet: ask again in a moment"
        }
        async with serving(port) as server:
            assert await controller.until(lambda scrape: reasons(scrape)) == BIG_WAITS
            await wants(server, "job")
            await controller.until(lambda scrape: states(scrape).get("team/job") == "pending")
            await runs(server, "job")
            await controller.until(lambda scrape: durations(scrape) == PHASES)
            await server.stop()
            # The lease cannot be renewed: nothing is served of the cluster until that is possible again.
            await controller.until(lambda scrape: scrape.value(OWN + "leader") == 0.0)
            gone = await controller.until_ready(503)
            assert gone == "[-] election: the lease cannot be read or written (unreachable)\nnot ready\n"
            assert states(await controller.scrape()) == {}
            await server.start(port)
            after = await controller.until(lambda scrape: scrape if states(scrape) else None)
            # The same process leads again with nobody between: what it had counted is not lost, nor counted again.
            assert durations(after) == PHASES
            assert after.value(OWN + "leader_changes_total") == 2.0
            assert await controller.until_ready()
        assert len(controller.said("leading as one; before: nobody")) == 1
        assert len(controller.said("leading as one; before: one")) == 1
        assert len(controller.said("not leading any more: the lease could not be renewed in 2 s")) == 1
        assert len(controller.said("cannot follow /api/v1/pods:")) == 1
        assert len(controller.log.splitlines()) < 30


async def test_lost_history_costs_a_list_and_no_account(tmp_path: Path) -> None:
    async with serving() as server, alone(tmp_path, server) as controller:
        await controller.until(states)
        await wants(server, "job")
        await controller.until(lambda scrape: states(scrape).get("team/job") == "pending")
        await runs(server, "job")
        await controller.until(lambda scrape: durations(scrape) == PHASES)
        server.pause()
        await server.drop_watches()
        await goes(server, "job")
        await server.put(RESOURCE_CLAIMS, claim("new"))
        server.compact()
        server.resume()
        after = await controller.until(lambda scrape: scrape if "team/new" in states(scrape) else None)
        assert states(after) == FURNISHED | {"team/new": "pending"}
        assert durations(after) == PHASES
        assert outcomes(after) == {"ran": 1.0}
        assert watch_errors(after, "resourceclaims") == {"gone": 1.0}
        assert after.value(OWN + "watch_lists_total", resource="resourceclaims") == 2.0
        assert controller.said("WARNING") == []


async def test_a_refused_kind_costs_only_itself(tmp_path: Path) -> None:
    user = User(name="controller", denied=frozenset({("*", "", "resourcequotas"), ("*", "", "pods")}))
    kubeconfig = tmp_path / "kubeconfig"
    async with serving(users={"secret": user}) as server:
        kubeconfig.write_text(kubeconfig_text(server.url, "secret"))
        async with Controller(
            tmp_path, "--kubeconfig", str(kubeconfig), "--leader-election", "off"
        ) as controller:
            found = await controller.until(lambda scrape: scrape if states(scrape) else None)
            # Without pods nothing can be said of who waits, and nothing is.
            assert (states(found), reasons(found)) == (FURNISHED, {})
            assert found.find("dra_claim_unreferenced") == []
            assert found.find("dra_claim_held_not_running_seconds") == []
            assert found.by("state", "dra_pool_devices") == {"allocated": 1.0, "free": 1.0}
            for resource in ("resourcequotas", "pods"):
                assert found.value(OWN + "watch_served", resource=resource) == 0.0
                assert watch_errors(found, resource) == {"forbidden": 1.0}
                assert len(controller.said(f"cannot follow /api/v1/{resource}:")) == 1
            assert found.value(OWN + "watch_served", resource="resourceclaims") == 1.0
            assert "[-] pods: not read yet (forbidden x1)" in await controller.until_ready(503)
            assert len(controller.said("WARNING")) == 2


async def test_a_renewed_token_is_taken_up(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    users = {"old": User(name="controller")}
    async with serving(users=users) as server:
        kubeconfig.write_text(kubeconfig_text(server.url, "old"))
        async with Controller(
            tmp_path, "--kubeconfig", str(kubeconfig), "--leader-election", "off"
        ) as controller:
            await controller.until(states)
            server.access.users.clear()
            server.access.users["new"] = User(name="controller")
            await server.drop_watches()
            await controller.until(lambda scrape: watch_errors(scrape, "resourceclaims").get("unauthorized"))
            kubeconfig.write_text(kubeconfig_text(server.url, "new"))
            await server.put(RESOURCE_CLAIMS, claim("later"))
            await controller.until(lambda scrape: states(scrape).get("team/later"))
            assert len(controller.said(f"cannot follow {CLAIMS}:")) == 1
            assert len(controller.said(f"{CLAIMS} is readable again")) == 1


async def test_a_kind_that_is_not_served_is_no_fault(tmp_path: Path) -> None:
    kinds = [kind for kind in KINDS if kind.plural != "devicetaintrules"]
    async with serving(kinds=kinds) as server, alone(tmp_path, server) as controller:
        found = await controller.until(lambda scrape: scrape if states(scrape) else None)
        assert reasons(found) == BIG_WAITS
        assert found.value(OWN + "watch_served", resource="devicetaintrules") == 0.0
        assert watch_errors(found, "devicetaintrules") == {}
        assert await controller.until_ready()
        assert len(controller.said("devicetaintrules cannot be followed")) == 1
        assert controller.said("WARNING") == []


async def test_errors_of_the_server_are_waited_out(tmp_path: Path) -> None:
    async with serving() as server:
        server.fail(CLAIMS, HttpFault(status=500), HttpFault(status=429, headers={"Retry-After": "4"}))
        server.fail("/api/v1/pods", HttpFault(status=200, body=b'{"type":"ADDED","object":{"metad'))
        server.delay("/api/v1/nodes", 0.5)
        async with alone(tmp_path, server) as controller:
            early = await controller.until(
                lambda scrape: scrape if watch_errors(scrape, "resourceclaims").get("rate_limited") else None
            )
            assert states(early) == {}  # what is not read yet is not shown in part
            assert early.value("claimscope_controller_series", layer="claim") == 0.0
            assert (await controller.get("/api/v1/waits")).status == 503
            found = await controller.until(lambda scrape: scrape if states(scrape) else None)
            assert (states(found), reasons(found)) == (FURNISHED, BIG_WAITS)
            assert watch_errors(found, "resourceclaims") == {"server_error": 1.0, "rate_limited": 1.0}
            assert watch_errors(found, "pods") == {"malformed": 1.0}
            assert len(controller.said(f"cannot follow {CLAIMS}:")) == 2  # one for each of the two
            assert len(controller.said(f"{CLAIMS} is readable again")) == 1


async def test_half_lines_and_garbage_cost_a_connection_and_no_event(tmp_path: Path) -> None:
    async with serving() as server, alone(tmp_path, server) as controller:
        await controller.until(states)
        await server.until_watched(13)
        for _ in (1, 2):
            await server.cut_watches()
            await server.put(RESOURCE_CLAIMS, claim("while-cut"))
            await controller.until(lambda scrape: states(scrape).get("team/while-cut"))
            await server.delete(RESOURCE_CLAIMS, "while-cut", "team")
            await controller.until(lambda scrape: "team/while-cut" not in states(scrape))
            await server.until_watched(13)
        await server.inject_line(b"\x00\xff} not json\n")
        await server.put(RESOURCE_CLAIMS, claim("after-garbage"))
        found = await controller.until(lambda scrape: scrape if "team/after-garbage" in states(scrape) else None)
        assert found.value(OWN + "watch_lists_total", resource="resourceclaims") == 1.0
        assert watch_errors(found, "resourceclaims")["malformed"] >= 1.0
        assert reasons(found) == BIG_WAITS


async def test_an_odd_object_costs_only_itself(tmp_path: Path) -> None:
    async with serving() as server, alone(tmp_path, server) as controller:
        await controller.until(states)
        bare = {"metadata": {"name": "bare", "namespace": "team", "uid": "uid-bare"}}
        await server.put(RESOURCE_CLAIMS, bare)  # neither spec nor status, no time of creation
        strange = claim("strange")
        strange["spec"]["devices"]["requests"][0]["exactly"]["allocationMode"] = "Sometimes"
        strange["spec"]["devices"]["constraints"] = [{"matchMood": "happy"}]
        strange["status"] = {"future": {"field": [1, 2]}, "allocation": None}
        strange["later"] = {"than": "we"}
        await server.put(RESOURCE_CLAIMS, strange)
        await server.put(RESOURCE_CLAIMS, {**claim("undecodable"), "spec": {"devices": {"requests": "none"}}})
        await server.put(RESOURCE_CLAIMS, {**claim("undecodable-2"), "spec": 7})
        await server.put(RESOURCE_SLICES, {"metadata": {"name": "bare"}})
        await server.put(PODS, {"metadata": {"name": "bare", "namespace": "team"}})
        phase = allocated("odd", ("no-such-node", "no-such-device"), user="nobody")
        await server.put(RESOURCE_CLAIMS, phase)
        await server.put(RESOURCE_CLAIMS, claim("good"))
        found = await controller.until(lambda scrape: scrape if "team/good" in states(scrape) else None)
        assert states(found) == FURNISHED | {
            "team/bare": "pending", "team/strange": "pending", "team/odd": "reserved", "team/good": "pending"
        }
        assert found.value(OWN + "watch_undecodable_total", resource="resourceclaims") == 2.0
        assert len(controller.said(f"of {CLAIMS} is left out, since it cannot be decoded")) == 1
        assert watch_errors(found, "resourceclaims") == {}
        await server.delete(RESOURCE_CLAIMS, "undecodable", "team")
        await server.delete(RESOURCE_CLAIMS, "bare", "team")
        after = await controller.until(lambda scrape: scrape if "team/bare" not in states(scrape) else None)
        assert "team/strange" in states(after)


async def test_clocks_that_disagree_invent_no_duration(tmp_path: Path) -> None:
    async with serving() as server, alone(tmp_path, server) as controller:
        await controller.until(states)
        for name, at in (("ahead", 7200.0), ("behind", -7200.0), ("backwards", 0.0)):
            await wants(server, name, at=at)
        waiting = await controller.until(lambda scrape: scrape if len(reasons(scrape)) == 4 else None)
        seconds = waiting.by("resourceclaim", "dra_claim_pending_seconds")
        assert 0.0 <= seconds["ahead"] < 10.0
        assert 7200.0 <= seconds["behind"] < 7300.0
        await runs_backwards(server, "backwards")
        found = await controller.until(lambda scrape: scrape if durations(scrape) else None)
        assert durations(found) == {"scheduling": 1.0, "start": 1.0}
        assert found.by("deviceclass", "dra_claim_ready_duration_seconds_count") == {"gpu.nvidia.com": 1.0}
        assert found.by("deviceclass", "dra_claim_ready_duration_seconds_sum")["gpu.nvidia.com"] < 60.0
        assert found.by("phase", OWN + "skipped_durations_total", reason="clock") == {"binding": 1.0, "prepare": 1.0}
        assert min(each.value for each in found.samples if each.name.endswith(("_seconds", "_seconds_sum"))) >= 0.0


async def test_a_claim_made_again_under_its_name_is_another(tmp_path: Path) -> None:
    async with serving() as server, alone(tmp_path, server) as controller:
        await controller.until(states)
        await wants(server, "job", uid="uid-first")
        await controller.until(lambda scrape: states(scrape).get("team/job"))
        await runs(server, "job", uid="uid-first")
        await controller.until(lambda scrape: durations(scrape) == PHASES)
        server.pause()
        await goes(server, "job")
        await wants(server, "job", uid="uid-second")
        server.resume()
        second = await controller.until(
            lambda scrape: scrape if scrape.find("dra_claim_info", claim_uid="uid-second") else None
        )
        assert second.find("dra_claim_info", claim_uid="uid-first") == []
        assert states(second)["team/job"] == "pending"
        assert durations(second) == PHASES
        assert outcomes(second) == {"ran": 1.0}
        await server.drop_watches()
        server.compact()
        await controller.until(lambda scrape: scrape.value(OWN + "watch_lists_total", resource="pods") == 2.0)
        await runs(server, "job", uid="uid-second")
        twice = dict.fromkeys(PHASES, 2.0)
        await controller.until(lambda scrape: durations(scrape) == twice)


async def test_events_out_of_order_and_long_names(tmp_path: Path) -> None:
    async with serving() as server, alone(tmp_path, server) as controller:
        await controller.until(states)
        name = "n" * 63 + "." + "c" * 189  # 253, the most that an object's name may have
        namespace = "t" * 63
        long = claim(name)
        long["metadata"]["namespace"] = namespace
        await server.put(RESOURCE_CLAIMS, long)
        # The pod is there and runs before its claim is, and the slice of its device comes last.
        await server.put(PODS, living_pod("job", running=True))
        await server.put(RESOURCE_CLAIMS, living_claim("job", dev="gpu-9"))
        await server.put(RESOURCE_SLICES, pool("node-1", device("gpu-9")))
        found = await controller.until(lambda scrape: scrape if states(scrape).get("team/job") == "running" else None)
        assert states(found)[f"{namespace}/{name}"] == "pending"
        answer = await controller.get(f"/api/v1/claims/{namespace}/{name}")
        assert (answer.status, json.loads(answer.body)["exists"]) == (200, True)


async def test_taint_rules_move_to_another_version(tmp_path: Path) -> None:
    kinds = [in_version(kind, "v1") if kind.plural == "devicetaintrules" else kind for kind in KINDS]
    async with serving(kinds=kinds) as server, alone(tmp_path, server) as controller:
        await controller.until(states)
        await server.put(DEVICE_TAINT_RULES, {
            "metadata": {"name": "r", "uid": "u"},
            "spec": {"deviceSelector": {"pool": "node-1"}, "taint": {"key": "k", "effect": "NoSchedule"}},
        })
        await controller.until(lambda scrape: scrape.by("state", "dra_pool_devices").get("tainted") == 1.0)


def kubeconfig_text(url: str, token: str) -> str:
    return json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
    })

