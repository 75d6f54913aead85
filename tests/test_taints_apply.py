"""From findings in agents' Leases to DeviceTaintRules, conditions and Events on a real (simulated) API server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from claim_objects import allocated, device_class
from claimscope.sim.api.kinds import (
    ALL_KINDS,
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    NODES,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    in_version,
)
from claimscope.sim.api.server import HttpFault
from claimscope.taints import command
from claimscope.taints.model import Mode
from claimscope.taints.notebook import MEMORY, PAUSE
from taints_bench import LEASE, RULES, START, Json, finding, fleet, lift, serving

WITHOUT_RULES = tuple(kind for kind in ALL_KINDS if kind is not DEVICE_TAINT_RULES)
NAME = "claimscope.node-1.5f9a1aafdd6a.unhealthy"  # of GPU-1-3: sha256 of the uuid
BROKEN = finding("GPU-1-3")
SLOW = finding("GPU-1-4", "pcie_width", "degraded")


def foreign(name: str, device: str = "gpu-3", **labels: str) -> Json:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "deviceSelector": {"driver": "gpu.nvidia.com", "pool": "node-1", "device": device},
            "taint": {"key": "maintenance", "value": "now", "effect": "NoSchedule"},
        },
    }


# ---- what is written -----------------------------------------------------------------------------------------------


async def test_a_finding_becomes_exactly_this_rule() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        (rule,) = bench.rules().values()
        assert rule["metadata"]["name"] == NAME
        assert rule["metadata"]["labels"] == {
            "app.kubernetes.io/managed-by": "claimscope", "claimscope.io/node": "node-1",
            "claimscope.io/severity": "unhealthy",
        }
        assert rule["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "uid-node-1"}
        ]
        annotations = dict(rule["metadata"]["annotations"])
        assert len(annotations.pop("claimscope.io/spec-hash")) == 16
        assert annotations == {
            "claimscope.io/uuid": "GPU-1-3", "claimscope.io/finding-uuid": "GPU-1-3", "claimscope.io/node": "node-1",
            "claimscope.io/rules": "xid_fatal", "claimscope.io/since": "1795260152", "claimscope.io/serial": "S1",
            "claimscope.io/evidence": '{"xid_fatal":{"xid":"95"}}', "claimscope.io/clears": "A reset.",
            "claimscope.io/boot-id": "boot-1", "claimscope.io/effect-since": "1795260212",
        }
        assert rule["spec"] == {
            "deviceSelector": {"driver": "gpu.nvidia.com", "pool": "node-1", "device": "gpu-3"},
            "taint": {"key": "claimscope.io/unhealthy", "value": "xid_fatal", "effect": "NoSchedule"},
        }


async def test_before_the_first_rule_the_server_is_asked_whether_it_would_take_it() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        asked = [query for path, query in bench.server.requests if path == RULES]
        assert asked == [
            {"dryRun": "All", "fieldManager": "claimscope"}, {"fieldManager": "claimscope"},
            {"fieldManager": "claimscope"},
        ]


@pytest.mark.parametrize(
    ("mode", "effects"),
    [
        (Mode.ENFORCE, {"gpu-3": "unhealthy NoSchedule", "gpu-4": "degraded None"}),
        (Mode.ANNOUNCE, {"gpu-3": "unhealthy None", "gpu-4": "degraded None"}),
        (Mode.OBSERVE, {}),
    ],
)
async def test_modes(mode: Mode, effects: dict[str, str]) -> None:
    async with serving(mode) as bench:
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        assert bench.effects() == effects


async def test_observing_writes_nothing_at_all_and_still_counts() -> None:
    async with serving(Mode.OBSERVE) as bench:
        await bench.server.put(DEVICE_CLASSES, device_class())
        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3"), user="worker"))
        await bench.says("node-1", BROKEN)
        for _ in range(3):
            await bench.leader.round()
        assert bench.server.write_requests == []
        assert bench.leader.value("dra_constraint_violations_total", "gpu.nvidia.com", "health") == 1.0
        assert bench.leader.value("dra_taint_held", "mode") == 1.0


async def test_without_news_a_second_round_writes_nothing_more() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()  # what stands is remembered
        before = bench.server.write_requests
        for _ in range(5):
            bench.clock.advance(5)
            await bench.leader.round()
        assert bench.server.write_requests == before


async def test_a_rule_that_was_made_while_its_node_could_not_be_read_gets_its_owner_once() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        rule = bench.rule("gpu-3")
        owners = rule["metadata"].pop("ownerReferences")
        await bench.server.put(DEVICE_TAINT_RULES, rule)
        before = len(bench.rule_writes())
        for _ in range(3):
            await bench.leader.round()
        assert bench.rule("gpu-3")["metadata"]["ownerReferences"] == owners
        assert [each.split()[0] for each in bench.rule_writes()[before:]] == ["PATCH"]


async def test_while_the_watch_lags_behind_nothing_is_written_twice() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        bench.leader.cluster.sync("devicetaintrules", [])
        await bench.leader.fencing.round()
        assert bench.rule_writes() == [f"POST {RULES}", f"POST {RULES}"]  # the trial and the rule
        bench.leader.see()
        await bench.says("node-1")
        await bench.leader.round()
        assert bench.effects() == {}
        assert bench.rule_writes()[2:] == [f"DELETE {RULES}/{NAME}"]


async def test_a_clear_takes_the_rule_away() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        await bench.says("node-1", SLOW)
        await bench.leader.round()
        assert bench.effects() == {"gpu-4": "degraded None"}
        assert bench.leader.value("dra_taint_fences", "unhealthy", "NoSchedule") == 0.0
        assert bench.leader.value("dra_device_taints_applied_total", "claimscope.io/unhealthy", "NoSchedule") == 1.0


async def test_a_device_that_has_another_name_now_is_followed() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        moved, _ = fleet()
        for device in moved["spec"]["devices"]:
            if device["name"] in ("gpu-3", "gpu-5"):
                device["attributes"]["uuid"]["string"] = {"gpu-3": "GPU-1-5", "gpu-5": "GPU-1-3"}[device["name"]]
        await bench.server.put(RESOURCE_SLICES, moved)
        await bench.leader.round()
        assert bench.effects() == {"gpu-5": "unhealthy NoSchedule"}
        assert bench.rule_writes()[-1] == f"PATCH {RULES}/{NAME}"
        assert bench.rules()[NAME]["metadata"]["annotations"]["claimscope.io/uuid"] == "GPU-1-3"


async def test_what_others_put_beside_our_fields_stays_over_an_update() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        rule = bench.rules()[NAME]
        rule["metadata"]["annotations"]["example.com/ticket"] = "OPS-7"
        rule["spec"]["taint"]["timeAdded"] = "2026-11-21T11:00:00Z"
        await bench.server.put(DEVICE_TAINT_RULES, rule)
        await bench.says("node-1", BROKEN, finding("GPU-1-3", "recovery_action", since=START - 90))
        await bench.leader.round()
        after = bench.rules()[NAME]
        assert after["spec"]["taint"] == {
            "key": "claimscope.io/unhealthy", "value": "recovery_action", "effect": "NoSchedule",
            "timeAdded": "2026-11-21T11:00:00Z",
        }
        assert after["metadata"]["annotations"]["example.com/ticket"] == "OPS-7"
        assert after["metadata"]["annotations"]["claimscope.io/rules"] == "recovery_action,xid_fatal"


# ---- people --------------------------------------------------------------------------------------------------------


async def test_a_rule_that_somebody_edited_is_left_alone() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        rule = bench.rules()[NAME]
        rule["spec"]["taint"]["effect"] = "None"
        await bench.server.put(DEVICE_TAINT_RULES, rule)
        writes = bench.rule_writes()
        await bench.leader.round()
        await bench.says("node-1")
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}
        assert bench.rule_writes() == writes
        assert bench.leader.value("dra_taint_held", "edited") == 1.0


async def test_an_edit_that_the_watch_has_not_brought_yet_is_not_overwritten() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.says("node-1", BROKEN, finding("GPU-1-3", "recovery_action", since=START - 90))
        bench.leader.see()
        rule = bench.rules()[NAME]
        rule["spec"]["taint"]["effect"] = "None"
        await bench.server.put(DEVICE_TAINT_RULES, rule)
        await bench.leader.fencing.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}
        assert bench.leader.value("claimscope_controller_taint_writes_total", "update", "conflict") == 1.0
        await bench.says("node-1")
        bench.leader.cluster.sync("leases", [])
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}


async def test_a_rule_that_somebody_deleted_stays_away_for_an_hour() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        await bench.server.delete(DEVICE_TAINT_RULES, NAME)
        await bench.leader.round()
        bench.clock.advance(3500)
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.effects() == {}
        assert bench.leader.value("dra_taint_held", "ignored") == 1.0
        bench.clock.advance(120)
        await bench.says("node-1", BROKEN)
        await bench.says("node-2")
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule"}


async def test_the_next_leader_respects_the_deletion_too() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        await bench.server.delete(DEVICE_TAINT_RULES, NAME)
        await bench.another("two").round()
        assert bench.effects() == {}


async def test_others_rules_are_never_touched() -> None:
    async with serving() as bench:
        theirs = foreign("theirs")
        taken = foreign(NAME, "gpu-7")  # by chance our name
        await bench.server.put(DEVICE_TAINT_RULES, theirs)
        await bench.server.put(DEVICE_TAINT_RULES, taken)
        versions = {name: rule["metadata"]["resourceVersion"] for name, rule in bench.rules().items()}
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.says("node-1")
        await bench.leader.round()
        assert {name: rule["metadata"]["resourceVersion"] for name, rule in bench.rules().items()} == versions


async def test_pausing_keeps_new_taints_away_and_lets_go_of_old_ones() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.notebook.write({PAUSE: "ann: rack work"})
        await bench.says("node-1")
        await bench.says("node-2", finding("GPU-2-0"))
        await bench.leader.round()
        assert bench.effects() == {}
        assert bench.leader.value("dra_taint_held", "paused") == 1.0
        assert bench.leader.value("claimscope_controller_taint_paused") == 1.0
        await bench.leader.notebook.write({PAUSE: None})
        await bench.leader.round()
        assert bench.effects() == {"node-2/gpu-0": "unhealthy NoSchedule"}


async def test_an_acknowledged_device_is_left_in_work_for_its_time() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        asked = {"ignore.claimscope.io/GPU-1-3": '{"author":"ann","rule":"xid_fatal","hours":2,"reason":"known"}'}
        await bench.leader.notebook.write(asked)
        await bench.leader.round()
        assert bench.effects() == {}
        notes = await bench.leader.notebook.read()
        assert "ignore.claimscope.io/GPU-1-3" not in notes
        assert '"author":"ann"' in (await bench.leader.notebook.recall())[MEMORY]
        bench.clock.advance(7300)
        await bench.says("node-1", BROKEN)
        await bench.says("node-2")
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule"}


# ---- clusters on which not everything is safe ----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1.36.0", "v1.36.1", "v1.36.2"])
async def test_where_rules_stop_the_scheduler_none_is_written(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(git_version=version) as bench:
        for _ in range(3):
            bench.clock.advance(61)
            await bench.says("node-1", BROKEN)
            await bench.leader.round()
        assert bench.rule_writes() == []
        assert bench.leader.value(
            "claimscope_controller_taint_mode_info", "observe", "enforce", "scheduler_bug"
        ) == 1.0
        assert sum("kubernetes/kubernetes/issues/139651" in line for line in caplog.messages) == 1
        assert bench.conditions("node-1")["GPUUnhealthy"] == ("True", "GPUFindings")


async def test_where_rules_came_to_stop_the_scheduler_ours_are_lifted() -> None:
    async with serving(git_version="v1.36.3") as bench:
        await bench.server.put(DEVICE_TAINT_RULES, foreign("theirs"))
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        bench.server.git_version = "v1.36.2"
        bench.clock.advance(61)
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert sorted(bench.rules()) == ["theirs"]


async def test_what_stands_stays_while_the_version_cannot_be_read() -> None:
    kinds = (*WITHOUT_RULES, in_version(DEVICE_TAINT_RULES, "v1beta2"))
    async with serving(kinds=kinds, git_version="v1.36.3") as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        bench.server.git_version = "unknown"
        bench.clock.advance(61)
        await bench.says("node-1")
        await bench.leader.round()
        assert bench.leader.value(
            "claimscope_controller_taint_mode_info", "observe", "enforce", "version_unknown"
        ) == 1.0
        assert bench.rule_writes() == ["POST /apis/resource.k8s.io/v1beta2/devicetaintrules"] * 2


async def test_without_the_api_conditions_and_events_remain() -> None:
    async with serving(kinds=WITHOUT_RULES) as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.rule_writes() == []
        assert bench.conditions("node-1")["GPUUnhealthy"] == ("True", "GPUFindings")
        assert bench.leader.value("claimscope_controller_taint_mode_info", "observe", "enforce", "api_absent") == 1.0


async def test_the_beta_is_written_where_it_alone_is_served() -> None:
    kinds = (*WITHOUT_RULES, in_version(DEVICE_TAINT_RULES, "v1beta2"))
    async with serving(kinds=kinds, git_version="v1.36.3") as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.rule_writes() == ["POST /apis/resource.k8s.io/v1beta2/devicetaintrules"] * 2


async def test_a_rule_of_which_the_cluster_says_nothing_is_ineffective(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        bench.clock.advance(59)
        await bench.leader.round()
        assert bench.leader.value("dra_taint_rule_ineffective", NAME) == 0.0
        for _ in range(2):
            bench.clock.advance(1)
            await bench.leader.round()
        assert bench.leader.value("dra_taint_rule_ineffective", NAME) == 1.0
        assert sum("says nothing of DeviceTaintRule" in line for line in caplog.messages) == 1
        rule = bench.rules()[NAME]
        rule["status"] = {"conditions": [{"type": "EvictionInProgress", "status": "False", "reason": "OtherEffect"}]}
        await bench.server.put(DEVICE_TAINT_RULES, rule)
        await bench.leader.round()
        assert bench.leader.value("dra_taint_rule_ineffective", NAME) == 0.0


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "result"), [(403, "forbidden"), (409, "conflict"), (422, "invalid"), (500, "server_error")]
)
async def test_a_refused_write_costs_only_itself_and_is_tried_again(status: int, result: str) -> None:
    async with serving() as bench:
        await bench.says("node-1", SLOW)
        await bench.leader.round()  # the trial is over
        bench.server.fail(RULES, HttpFault(status=status))
        await bench.says("node-1", SLOW, BROKEN, finding("GPU-1-5", "nvlink_down", "degraded"))
        await bench.leader.round()
        assert bench.effects() == {"gpu-4": "degraded None", "gpu-5": "degraded None"}
        assert bench.leader.value("claimscope_controller_taint_writes_total", "create", result) == 1.0
        await bench.leader.round()
        assert bench.effects()["gpu-3"] == "unhealthy NoSchedule"


async def test_a_server_that_asks_to_wait_is_not_pressed() -> None:
    async with serving() as bench:
        await bench.says("node-1", SLOW)
        await bench.leader.round()
        writes = len(bench.rule_writes())
        bench.server.fail(RULES, HttpFault(status=429, headers={"Retry-After": "0"}))
        await bench.says("node-1", SLOW, *(finding(f"GPU-1-{gpu}", "nvlink_down", "degraded") for gpu in range(3)))
        await bench.leader.round()
        assert len(bench.rule_writes()) == writes + 1
        await bench.leader.round()
        assert len(bench.effects()) == 4


async def test_each_kind_of_failure_is_said_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "claimscope.taints.outcomes")
    async with serving() as bench:
        await bench.says("node-1", BROKEN, SLOW)
        bench.server.fail(RULES, *[HttpFault(status=403)] * 3)
        for _ in range(3):
            await bench.leader.round()
        assert bench.effects() == {}
        assert bench.leader.value("claimscope_controller_taint_writes_total", "dry_run", "forbidden") == 3.0
        assert sum("dry_run failed" in line for line in caplog.messages) == 1
        await bench.leader.round()
        assert sum("dry_run works again" in line for line in caplog.messages) == 1
        assert len(bench.effects()) == 2


async def test_where_nothing_can_be_remembered_nothing_is_written() -> None:
    async with serving() as bench:
        await bench.leader.round()
        await bench.says("node-1", BROKEN)
        bench.leader.see()
        read = bench.server.requests[-1:]
        assert read
        bench.server.fail(LEASE, HttpFault(status=503))
        await bench.leader.fencing.round()  # the Lease cannot be read
        assert bench.rule_writes() == []
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule"}


# ---- leaders -------------------------------------------------------------------------------------------------------


async def test_who_leads_no_more_writes_no_more() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        bench.leader.leads = False
        await bench.leader.round()
        assert bench.server.write_requests == []


async def test_the_next_leader_goes_on_where_one_stopped_in_the_middle() -> None:
    async with serving() as bench:
        await bench.says("node-1", SLOW)
        await bench.leader.round()
        await bench.leader.round()
        broken = [finding(f"GPU-{node}-{gpu}") for node in (1, 2) for gpu in (0, 1)]
        await bench.says("node-1", *broken[:2])
        await bench.says("node-2", *broken[2:])
        bench.server.fail(f"{RULES}/claimscope.node-1.f53bcecd943d.degraded", HttpFault(status=503))
        bench.server.fail(RULES, HttpFault(status=429))  # stops the round in its middle
        await bench.leader.round()
        bench.leader.leads = False
        two = bench.another("two")
        for _ in range(3):
            await two.round()
        # GPU-1-4 is lifted. Of sixteen GPUs the fleet's budget allows one to be kept from work.
        assert bench.effects() == {
            "gpu-0": "unhealthy NoSchedule", "gpu-1": "unhealthy None", "node-2/gpu-0": "unhealthy None",
            "node-2/gpu-1": "unhealthy None",
        }


async def test_a_rule_that_was_lifted_just_before_a_crash_is_no_persons_doing() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        await bench.says("node-1")
        await bench.leader.round()  # lifts, and is not heard of again
        await bench.says("node-1", BROKEN)
        await bench.another("two").round()
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule"}


async def test_two_who_both_believe_to_lead_write_each_rule_once() -> None:
    async with serving() as bench:
        two = bench.another("two")
        await bench.says("node-1", BROKEN)
        bench.leader.see()
        two.see()
        await bench.leader.fencing.round()
        await two.fencing.round()
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule"}
        assert two.value("claimscope_controller_taint_writes_total", "create", "conflict") == 1.0
        await bench.says("node-1")
        bench.leader.see()
        two.see()
        await two.fencing.round()
        await bench.leader.fencing.round()
        assert bench.effects() == {}


# ---- uninstalling --------------------------------------------------------------------------------------------------


async def test_lifting_all_takes_everything_that_is_ours_and_nothing_else() -> None:
    async with serving() as bench:
        await bench.server.put(DEVICE_TAINT_RULES, foreign("theirs"))
        await bench.server.put(
            DEVICE_TAINT_RULES, foreign("looks-like-ours", **{"claimscope.io/severity": "unhealthy"})
        )
        upkeep = foreign("upkeep", "gpu-6", **{"app.kubernetes.io/managed-by": "claimscope"})
        await bench.server.put(DEVICE_TAINT_RULES, upkeep)
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        done = (await lift(bench, all_of_ours=True)).done
        assert sorted(done) == [
            "lifted claimscope.node-1.5f9a1aafdd6a.unhealthy: claimscope.io/unhealthy of effect NoSchedule on "
            "gpu.nvidia.com/node-1/gpu-3",
            "lifted claimscope.node-1.f53bcecd943d.degraded: claimscope.io/degraded of effect None on "
            "gpu.nvidia.com/node-1/gpu-4",
            "lifted upkeep: maintenance of effect NoSchedule on gpu.nvidia.com/node-1/gpu-6",
            "took the conditions from node node-1",
        ]
        assert sorted(bench.rules()) == ["looks-like-ours", "theirs"]
        assert bench.conditions("node-1") == {"Ready": ("True", "KubeletReady")}
        assert not [each for each in bench.server.write_requests if each == f"DELETE {RULES}"]


async def test_lifting_one_leaves_the_others() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        await lift(bench, names=["GPU-1-3"])
        assert bench.effects() == {"gpu-4": "degraded None"}
        with pytest.raises(KeyError, match="GPU-9-9"):
            await lift(bench, names=["GPU-9-9"])


# ---- what people are told ------------------------------------------------------------------------------------------


async def test_conditions_follow_the_findings_and_leave_the_kubelets_alone() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.conditions("node-1") == {
            "Ready": ("True", "KubeletReady"), "GPUDegraded": ("False", "NoFindings"),
            "GPUUnhealthy": ("True", "GPUFindings"),
        }
        assert bench.conditions("node-2") == {"Ready": ("True", "KubeletReady")}
        (node,) = [json.loads(each.body(NODES)) for key, each in bench.server.store.table(NODES).objects.items()
                   if key[1] == "node-1"]
        since = node["status"]["conditions"][2]["lastTransitionTime"]
        assert node["status"]["conditions"][2]["message"] == "1 GPU: GPU-1-3 (xid_fatal)"
        bench.clock.advance(60)
        await bench.says("node-1", BROKEN, finding("GPU-1-0", "row_remap_failure"))
        await bench.leader.round()
        found = (bench.server.get(NODES, "node-1") or {})["status"]["conditions"][2]
        assert (found["lastTransitionTime"], found["message"]) == (
            since, "2 GPUs: GPU-1-0 (row_remap_failure); GPU-1-3 (xid_fatal)"
        )


async def test_a_node_whose_agent_is_silent_is_unknown_and_keeps_its_taint() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        bench.clock.advance(121)
        await bench.says("node-2")
        await bench.leader.round()
        assert bench.conditions("node-1")["GPUUnhealthy"] == ("Unknown", "AgentSilent")
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule"}


async def test_events_go_to_the_node_and_to_the_pods_that_hold_the_device() -> None:
    async with serving() as bench:
        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3"), user="worker"))
        await bench.says("node-1", BROKEN, SLOW)
        for _ in range(3):
            await bench.leader.round()
        assert bench.events() == [
            ("Node", "node-1", "GPUTaintAnnounced"), ("Node", "node-1", "GPUTainted"), ("Pod", "worker", "GPUTainted"),
        ]
        await bench.says("node-1", SLOW)
        await bench.leader.round()
        assert ("Pod", "worker", "GPUTaintLifted") in bench.events()


async def test_a_taint_that_is_held_back_is_told_once() -> None:
    async with serving() as bench:
        await bench.says("node-1", *(finding(f"GPU-1-{gpu}") for gpu in range(3)))
        for _ in range(3):
            bench.clock.advance(5)
            await bench.leader.round()
        assert bench.events().count(("Node", "node-1", "GPUTaintHeld")) == 2


# ---- files and words -----------------------------------------------------------------------------------------------


async def test_the_policy_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules: {xid_fatal: {mode: announce}}\n")
    async with serving(policy=file) as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}
        file.write_text("mode: nonsense\n")
        await bench.leader.round()
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}
        assert sum("the taint policy is not taken" in line for line in caplog.messages) == 1
        file.write_text("{}\n")
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule"}


async def test_a_claim_that_holds_a_device_with_a_finding_counts_once_by_what_it_is_about() -> None:
    async with serving() as bench:
        await bench.server.put(DEVICE_CLASSES, device_class())
        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3"), user="worker"))
        await bench.says("node-1", finding("GPU-1-3", "thermal_slowdown", "degraded"))
        for _ in range(3):
            await bench.leader.round()
        await bench.says("node-1", finding("GPU-1-3", "thermal_slowdown", "degraded"),
                         finding("GPU-1-3", "ecc_uncorrected_dram"), finding("GPU-1-0", "nvlink_down", "degraded"))
        await bench.leader.round()
        counts = {
            constraint: bench.leader.value("dra_constraint_violations_total", "gpu.nvidia.com", constraint)
            for constraint in ("temperature", "power", "ecc", "nvlink", "pcie", "clocks", "health")
        }
        assert counts == {
            "temperature": 1.0, "power": 0.0, "ecc": 1.0, "nvlink": 0.0, "pcie": 0.0, "clocks": 0.0, "health": 0.0,
        }


async def test_the_list_shows_what_stands_and_what_is_held_back() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN, finding("GPU-1-5", since=START - 30))
        await bench.leader.round()
        text = command.table(await command.overview(bench.leader.api, bench.leader.notebook))
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert lines[:2] == [
            "mode: enforce, configured: enforce", "DEVICE NODE UUID SEVERITY EFFECT SINCE RULE STATE",
        ]
        assert lines[2] == (
            "gpu.nvidia.com/node-1/gpu-3 node-1 GPU-1-3 unhealthy NoSchedule 2026-11-21T11:22:32Z xid_fatal stands, "
            "not confirmed by Kubernetes yet"
        )
        assert any("GPU-1-5 unhealthy - - xid_fatal held (budget_fleet)" in line for line in lines)


async def test_the_story_of_a_gpu() -> None:
    async with serving() as bench:
        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3"), user="worker"))
        await bench.server.put(DEVICE_TAINT_RULES, foreign("theirs"))
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        story = await command.gpu_story(bench.leader.api, bench.leader.notebook, "GPU-1-3")
        assert command.story_words(story) == (
            "GPU-1-3 on node node-1: gpu.nvidia.com/node-1/gpu-3\n"
            "tainted claimscope.io/unhealthy=xid_fatal, effect NoSchedule: keeps new work away\n"
            "  by DeviceTaintRule claimscope.node-1.5f9a1aafdd6a.unhealthy since 2026-11-21T11:22:32Z\n"
            "  Kubernetes has not confirmed it yet: the status of the rule is empty\n"
            "finding xid_fatal (unhealthy) since 2026-11-21T11:22:32Z\n"
            "  xid: 95\n"
            "  cleared by: A reset.\n"
            "other taint: maintenance=now, effect NoSchedule, on gpu.nvidia.com/node-1/gpu-3, by DeviceTaintRule "
            "theirs\n"
            "team/train holds gpu.nvidia.com/node-1/gpu-3"
        )
        healthy = await command.gpu_story(bench.leader.api, bench.leader.notebook, "GPU-1-4")
        unknown = await command.gpu_story(bench.leader.api, bench.leader.notebook, "GPU-9-9")
        assert command.story_words(healthy) == (
            "GPU-1-4 on node node-1: gpu.nvidia.com/node-1/gpu-4\n"
            "not tainted by claimscope\n"
            f"nothing is found against it by the agent of node node-1, heard last at {healthy.heard}\n"
            "no claim holds it"
        )
        assert command.story_words(replace(healthy, heard=None)).splitlines()[2] == (
            "its health is not known: no agent reports for node node-1"
        )
        assert command.story_words(unknown) == (
            "GPU-9-9 is not known: no ResourceSlice publishes it and no agent has a finding about it; compare it with "
            "`nvidia-smi -L` on its node (a GPU of the device plugin is known while something is found)"
        )


