"""How much may be fenced at once and how fast: budgets, rate, cap, one cause for many nodes, and the breaker."""

from __future__ import annotations

import msgspec
import pytest

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.kube.objects import Node, ResourceClaim
from claimscope.taints import budget
from claimscope.taints.budget import Rate
from claimscope.taints.memory import CLOSED, HALF_OPEN, OPEN, Blocked, Breaker, Memory, acknowledged, half_opened
from claimscope.taints.plan import gather
from claimscope.taints.policy import BreakerPolicy, Systemic, read_policy
from inventory_objects import a_rule, make
from taints_help import DRIVER, START, World, a_finding, gpu

LOST, UNHEALTHY, DEGRADED = Severity.LOST, Severity.UNHEALTHY, Severity.DEGRADED
LONG_AGO = START - 86400
FREE = "mode: enforce\nrate: {share: 1}\nbreaker: {share: 1}\n"  # only what a test is about bounds anything


def reasons(world: World) -> list[str]:
    return sorted(each.reason for each in world.last.held)


@pytest.mark.parametrize(
    ("total", "share", "expected"), [(0, 0.5, 0), (1, 0.1, 1), (8, 0.5, 4), (80, 0.1, 8), (10, 0.3, 3), (8, 0.0, 1)]
)
def test_a_budget_is_one_gpu_at_least_where_there_are_any(total: int, share: float, expected: int) -> None:
    assert budget.allowed(total, share) == expected


def test_rules_that_infer_take_half_a_node_and_the_drivers_word_is_not_bounded() -> None:
    world = World(FREE + "budgets: {fleet_share: 1, group_share: 1}")
    world.find(*(a_finding(gpu(1, index), "thermal_shutdown", since=LONG_AGO + index) for index in range(6)))
    world.round()
    assert world.blocked() == {gpu(1, index) for index in range(4)}
    assert [(each.fence.uuid, each.reason) for each in world.last.held] == [
        (gpu(1, 4), "budget_node"), (gpu(1, 5), "budget_node"),
    ]
    assert world.last.held[0].text == "4 of at most 4 GPUs of node n1 are kept from work"
    assert "gpu-5@n1 unhealthy=thermal_shutdown:None" in world.taints()
    world.find(a_finding(gpu(1, 7), "recovery_action", since=LONG_AGO))
    assert world.round(5) == ["create gpu-7@n1 unhealthy=recovery_action:NoSchedule"]


def test_what_a_budget_refused_is_served_as_soon_as_there_is_room_worst_first() -> None:
    world = World(FREE + "budgets: {fleet_share: 0.02}", nodes=10)  # one GPU of 80
    world.find(a_finding(gpu(1, 0), since=LONG_AGO))
    world.round()
    world.find(
        a_finding(gpu(2, 0), since=LONG_AGO - 9), a_finding(gpu(3, 0), "reset_failed", since=LONG_AGO),
        a_finding(gpu(4, 0), "gpu_lost", LOST, since=LONG_AGO),
    )
    assert world.round(5) == [
        "create gpu-0@n4 lost=gpu_lost:None", "create gpu-0@n2 unhealthy=xid_fatal:None",
        "create gpu-0@n3 unhealthy=reset_failed:None",
    ]
    assert reasons(world) == ["budget_fleet"] * 3
    world.clear(gpu(1, 0))
    assert world.round(5) == [
        "delete gpu-0@n1 unhealthy=xid_fatal:NoSchedule", "update gpu-0@n4 lost=gpu_lost:NoSchedule",
    ]
    assert world.last.budgets["fleet"] == (1.0, 1.0)


def test_the_group_has_a_budget_of_its_own() -> None:
    world = World(FREE + "budgets: {group_share: 0.125, fleet_share: 1}", nodes=4)
    world.groups = {"n0": "h100", "n1": "h100"}
    rules = ("reset_failed", "reset_required", "reset_failed", "reset_required")
    world.find(*(a_finding(gpu(node, 0), rules[node], since=START + node) for node in range(4)))
    world.find(a_finding(gpu(1, 1), "gpu_lost", LOST))
    world.round()
    assert world.blocked() == {gpu(0, 0), gpu(1, 1), gpu(2, 0), gpu(3, 0)}
    assert reasons(world) == ["budget_group"]
    assert world.last.budgets["group/h100"] == (2.0, 2.0)


@pytest.mark.parametrize("whose", ["driver", "cordon", "human"])
def test_what_others_keep_from_work_counts(whose: str) -> None:
    world = World(FREE + "budgets: {fleet_share: 0.1}", nodes=10)  # 8 of 80
    names = {f"gpu-{index}": gpu(9, index) for index in range(8)}
    if whose == "driver":
        taint = [{"key": "gpu.nvidia.com/xid", "effect": "NoSchedule"}]
        world.publish(9, names, taints=dict.fromkeys(names, taint))
    elif whose == "cordon":
        world.cordoned = {"n9"}
    else:
        world.put(a_rule("mine", {"driver": DRIVER, "pool": "n9"}, effect="NoExecute"))
    world.find(a_finding(gpu(1, 0)), a_finding(gpu(9, 0)))
    world.round()
    assert world.blocked() == {gpu(9, 0)}  # it is kept from work already: one fence more costs nothing
    assert reasons(world) == ["budget_fleet"]
    assert world.last.budgets["fleet"] == (8.0, 8.0)


def test_a_taint_that_blocks_nobody_does_not_count() -> None:
    world = World(FREE + "budgets: {fleet_share: 0.1}", nodes=1)
    world.publish(0, {f"gpu-{index}": gpu(0, index) for index in range(8)},
                  taints={"gpu-1": [{"key": "gpu.nvidia.com/xid", "effect": "None"}]})
    world.find(a_finding(gpu(0, 0)))
    world.round()
    assert world.blocked() == {gpu(0, 0)}


def test_nodes_under_maintenance_leave_the_budgets_and_get_no_new_fences() -> None:
    world = World(FREE + "budgets: {fleet_share: 0.1}", nodes=10)
    world.cordoned = {"n9"}
    world.options = {"maintenance": frozenset({"n9"})}
    world.find(a_finding(gpu(1, 0)), a_finding(gpu(9, 0)))
    world.round()
    assert world.blocked() == {gpu(1, 0)}
    assert world.held() == [(gpu(9, 0), "paused")] * 2  # neither blocking nor announced
    assert world.last.budgets["fleet"] == (1.0, 7.0)


def test_standing_fences_stay_when_a_budget_shrinks() -> None:
    world = World(FREE + "budgets: {fleet_share: 1, group_share: 1}", nodes=2)
    world.find(*(a_finding(gpu(0, index)) for index in range(3)))
    world.round()
    smaller = World("mode: enforce\nbudgets: {fleet_share: 0}")
    world.policy = smaller.policy
    assert world.round(5) == []
    assert len(world.blocked()) == 3


def test_the_rate_lets_three_through_in_ten_minutes_and_a_failed_write_costs_nothing_more() -> None:
    world = World("mode: enforce\nbudgets: {fleet_share: 1, group_share: 1}")
    world.find(*(a_finding(gpu(1, index), since=LONG_AGO + index) for index in range(5)))
    world.think()
    world.round(5)
    assert world.blocked() == {gpu(1, 0), gpu(1, 1), gpu(1, 2)}
    assert world.memory.blocked == tuple(Blocked(gpu=gpu(1, index), wall=START) for index in range(3))
    assert reasons(world) == ["rate", "rate"]
    assert world.last.budgets["rate"] == (3.0, 3.0)
    assert world.round(590) == []
    assert world.round(10) == [
        "update gpu-3@n1 unhealthy=xid_fatal:NoSchedule", "update gpu-4@n1 unhealthy=xid_fatal:NoSchedule",
    ]


def test_the_cap_bounds_rules_of_any_effect() -> None:
    world = World("mode: enforce\ncap: 2")
    world.find(a_finding(gpu(1, 0)), *(
        a_finding(gpu(2, index), "pcie_width", DEGRADED, since=START + index) for index in range(2)
    ))
    world.round()
    assert world.taints() == ["gpu-0@n1 unhealthy=xid_fatal:NoSchedule", "gpu-0@n2 degraded=pcie_width:None"]
    assert world.held() == [(gpu(2, 1), "cap")]
    world.clear(gpu(1, 0))
    assert world.round(5) == [
        "delete gpu-0@n1 unhealthy=xid_fatal:NoSchedule", "create gpu-1@n2 degraded=pcie_width:None",
    ]


# --- one cause for many nodes ---


def test_one_rule_on_five_nodes_within_ten_minutes_fences_no_more_until_acknowledged() -> None:
    world = World(FREE, nodes=100)
    for node in range(4):
        world.find(a_finding(gpu(node, 0), since=START))
    world.round()
    assert len(world.blocked()) == 4
    world.find(a_finding(gpu(4, 0), since=START + 300), a_finding(gpu(9, 0), "reset_failed"))
    assert world.round(300) == [
        "create gpu-0@n9 unhealthy=reset_failed:NoSchedule", "create gpu-0@n4 unhealthy=xid_fatal:None",
    ]
    assert [(each.fence.uuid, each.reason, each.text) for each in world.last.held] == [
        (gpu(4, 0), "systemic", "xid_fatal stands on 5 nodes: one cause outside of them; acknowledge to go on"),
    ]
    assert world.round(86400) == []  # time alone ends no hold
    world.memory = acknowledged(world.memory, ["xid_fatal"])
    assert world.round(5) == ["update gpu-0@n4 unhealthy=xid_fatal:NoSchedule"]


def test_a_hold_is_about_the_rules_that_would_block() -> None:
    world = World(FREE + "rules: {reset_failed: {mode: announce}}", nodes=100)
    world.find(*(a_finding(gpu(node, 0)) for node in range(5)), a_finding(gpu(0, 0), "reset_failed"))
    world.find(a_finding(gpu(1, 0), "gpu_missing"))
    world.round()
    assert world.blocked() == {gpu(1, 0)}  # the same severity, for a reason that is not held


def test_a_hold_ends_when_the_rule_stands_on_few_nodes() -> None:
    world = World(FREE, nodes=100)
    world.find(*(a_finding(gpu(node, 0)) for node in range(5)))
    world.round()
    assert world.blocked() == set()
    world.clear(gpu(0, 0))
    world.round(5)
    assert world.blocked() == {gpu(node, 0) for node in range(1, 5)}


def test_slow_accumulation_is_no_common_cause() -> None:
    world = World(FREE, nodes=100)
    for node in range(8):
        world.find(a_finding(gpu(node, 0), since=world.now))
        world.round(200)
    assert len(world.blocked()) == 8


def test_findings_that_stood_before_this_controller_are_no_news() -> None:
    world = World(FREE, nodes=100)
    world.find(*(a_finding(gpu(node, 0), since=START - 900) for node in range(6)))
    world.round()
    assert len(world.blocked()) == 6


def test_findings_that_the_agent_calls_systemic_fence_nothing_and_lift_what_stood() -> None:
    world = World(FREE)
    world.find(a_finding(gpu(1, 0), "thermal_shutdown"))
    world.round()
    world.clear(gpu(1, 0))
    world.find(a_finding(gpu(1, 0), "thermal_shutdown", systemic=True))
    assert world.round(5) == ["delete gpu-0@n1 unhealthy=thermal_shutdown:NoSchedule"]
    assert world.held() == [(gpu(1, 0), "systemic_node")]


def test_nodes_with_few_hot_gpus_are_held_with_those_that_are_hot_all_over() -> None:
    world = World(FREE, nodes=20)
    for node in range(2):
        world.find(*(a_finding(gpu(node, index), "thermal_shutdown", systemic=True) for index in range(8)))
    world.find(*(a_finding(gpu(2, index), "thermal_shutdown") for index in range(3)))
    world.find(a_finding(gpu(3, 0), "xid_fatal"))
    world.round()
    assert world.taints() == [
        "gpu-0@n2 unhealthy=thermal_shutdown:None", "gpu-0@n3 unhealthy=xid_fatal:NoSchedule",
        "gpu-1@n2 unhealthy=thermal_shutdown:None", "gpu-2@n2 unhealthy=thermal_shutdown:None",
    ]
    causes = {(each.fence.node, each.cause) for each in world.last.held}
    assert causes == {
        ("n0", "n0/thermal_shutdown"), ("n1", "n1/thermal_shutdown"), ("n2", "thermal_shutdown"),
    }
    world.memory = acknowledged(world.memory, ["thermal_shutdown"])
    assert sorted(world.round(5)) == [
        f"update gpu-{index}@n2 unhealthy=thermal_shutdown:NoSchedule" for index in range(3)
    ]


def test_a_weakness_of_many_nodes_at_once_is_not_announced_gpu_by_gpu() -> None:
    world = World(FREE, nodes=20)
    world.find(*(a_finding(gpu(node, 0), "power_brake", DEGRADED) for node in range(2)))
    before = ["create gpu-0@n0 degraded=power_brake:None", "create gpu-0@n1 degraded=power_brake:None"]
    assert world.round() == before
    world.find(*(a_finding(gpu(node, 0), "power_brake", DEGRADED) for node in range(2, 9)))
    world.find(a_finding(gpu(9, 0), "row_remap_pending", DEGRADED))
    assert world.round(5) == ["create gpu-0@n9 degraded=row_remap_pending:None"]  # what stood before stays
    assert world.held() == [(gpu(node, 0), "systemic") for node in range(2, 9)]
    assert {(each.cause, each.text) for each in world.last.held} == {
        ("power_brake", "power_brake stands on 9 nodes: one cause outside of them; acknowledge to go on"),
    }
    world.clear(gpu(0, 0))
    assert world.round(700) == ["delete gpu-0@n0 degraded=power_brake:None"]
    for node in range(3, 9):
        world.clear(gpu(node, 0))
    assert world.round(5) == ["create gpu-0@n2 degraded=power_brake:None"]  # few are left: each is its own
    assert world.held() == []


def test_a_weakness_of_many_nodes_is_announced_gpu_by_gpu_once_it_is_acknowledged() -> None:
    world = World(FREE, nodes=20)
    world.find(*(a_finding(gpu(node, 0), "nvlink_errors", DEGRADED) for node in range(3)))
    assert world.round() == []
    world.memory = acknowledged(world.memory, ["nvlink_errors"])
    assert world.round(5) == [f"create gpu-0@n{node} degraded=nvlink_errors:None" for node in range(3)]
    assert world.round(5) == []


def test_a_weakness_that_each_gpu_has_for_itself_is_announced_however_many_have_it() -> None:
    world = World(FREE, nodes=20)
    world.find(*(a_finding(gpu(node, 0), "row_remap_pending", DEGRADED) for node in range(15)))
    assert len(world.round()) == 15
    assert world.held() == []


def test_a_gpu_with_another_weakness_besides_is_announced() -> None:
    world = World(FREE, nodes=20)
    world.find(*(a_finding(gpu(node, 0), "power_brake", DEGRADED) for node in range(5)))
    world.find(a_finding(gpu(3, 0), "xid_degraded", DEGRADED, since=LONG_AGO))
    assert world.round() == ["create gpu-0@n3 degraded=xid_degraded:None"]


def test_when_a_weakness_came_up_is_counted_from_when_its_agents_found_it() -> None:
    world = World(FREE, nodes=20)
    world.find(*(a_finding(gpu(node, 0), "power_brake", DEGRADED, since=START - 600) for node in range(15)))
    assert len(world.round()) == 15


@pytest.mark.parametrize(("nodes", "lately", "expected"), [
    (10, 2, False), (10, 3, True), (80, 3, False), (80, 4, True), (5000, 4, False), (5000, 5, True),
])  # fmt: skip
def test_five_nodes_or_five_percent_but_three_at_least(nodes: int, lately: int, expected: bool) -> None:
    seen = {"xid_fatal": {f"n{node}": START for node in range(lately)}}
    held = budget.systemic_holds(Memory(), seen, seen, Systemic(), nodes=nodes, now_wall=START + 10)
    assert (held == {"xid_fatal": START + 10}) is expected


# --- the breaker ---


@pytest.mark.parametrize(
    ("before", "demand", "seconds", "expected"),
    [
        (Breaker(), 8, 0, Breaker()),
        (Breaker(), 9, 0, Breaker(state=OPEN, since_wall=START, demand=9)),
        (Breaker(state=OPEN, since_wall=START, demand=9), 0, 1799, Breaker(state=OPEN, since_wall=START, demand=9)),
        (Breaker(state=OPEN, since_wall=START, demand=9), 7, 1800,
         Breaker(state=HALF_OPEN, since_wall=START + 1800, demand=7)),
        (Breaker(state=HALF_OPEN, since_wall=START, demand=20), 20, 60,
         Breaker(state=HALF_OPEN, since_wall=START, demand=20)),
        (Breaker(state=HALF_OPEN, since_wall=START, demand=20), 21, 60,
         Breaker(state=OPEN, since_wall=START + 60, demand=21)),
        (Breaker(state=HALF_OPEN, since_wall=START, demand=20), 8, 599,
         Breaker(state=HALF_OPEN, since_wall=START, demand=20)),
        (Breaker(state=HALF_OPEN, since_wall=START, demand=20), 8, 600, Breaker(since_wall=START + 600)),
    ],
)  # fmt: skip
def test_the_breaker(before: Breaker, demand: int, seconds: float, expected: Breaker) -> None:
    after = budget.step(
        before, BreakerPolicy(), demand=demand, fleet=80, window=600, now_wall=START + seconds
    )
    assert after == expected


def test_an_open_breaker_lifts_announces_and_opens_a_quarter_after_half_an_hour() -> None:
    world = World("mode: enforce\nbudgets: {fleet_share: 1, group_share: 1}\nrate: {least: 8, share: 0}", nodes=10)
    world.find(a_finding(gpu(0, 0), "gpu_lost", LOST))
    world.round()
    world.clear(gpu(0, 0))
    rules = ("xid_fatal", "reset_failed", "gpu_missing")
    world.find(*(a_finding(gpu(1, index), rules[index % 3], since=START + index) for index in range(8)))
    assert world.last.breaker == CLOSED
    actions = world.round(5)
    assert actions[0] == "delete gpu-0@n0 lost=gpu_lost:NoSchedule"
    assert world.last.breaker == OPEN  # 8 and the one fenced lately
    assert world.blocked() == set()
    assert set(reasons(world)) == {"breaker"}
    assert len(world.taints()) == 8
    assert world.round(1799) == []
    world.round(1)
    assert world.last.breaker == HALF_OPEN
    assert world.blocked() == {gpu(1, 0), gpu(1, 1)}
    world.clear(gpu(1, 0))
    assert world.round(601)[0] == "delete gpu-0@n1 unhealthy=xid_fatal:NoSchedule"
    assert world.last.breaker == CLOSED


def test_a_human_may_half_open_the_breaker() -> None:
    world = World("mode: enforce\nbudgets: {fleet_share: 1, group_share: 1}\nbreaker: {least: 1, share: 0}", nodes=3)
    world.find(a_finding(gpu(1, 0)), a_finding(gpu(1, 1)))
    world.round()
    assert world.blocked() == set()
    world.memory = half_opened(world.memory, world.now)
    world.round(1)
    assert world.blocked() == {gpu(1, 0)}


def test_a_fleet_of_unknown_size_is_an_open_breaker() -> None:
    world = World(FREE)
    world.cluster.synced.discard("resourceslices")
    world.find(a_finding(gpu(1, 0)))
    world.round()
    assert world.blocked() == set()
    assert (world.last.breaker, reasons(world)) == (OPEN, ["breaker"])
    world.cluster.synced.add("resourceslices")
    assert world.round(5) == ["update gpu-0@n1 unhealthy=xid_fatal:NoSchedule"]


@pytest.mark.parametrize(("tolerations", "expected"), [([], 2), ([{"operator": "Exists"}], 0)])
def test_pods_are_counted_that_would_be_deleted(tolerations: list[dict[str, str]], expected: int) -> None:
    world = World("mode: enforce\nrules: {gpu_lost: {no_execute: true}}")
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST), a_finding(gpu(2, 0)))
    world.round()
    result = {"request": "gpu", "driver": DRIVER, "pool": "n1", "device": "gpu-0", "tolerations": tolerations}
    pods = [{"resource": "pods", "name": name, "uid": f"uid-{name}"} for name in ("a", "b")]
    claim = make(
        ResourceClaim, metadata={"namespace": "a", "name": "c", "uid": "u"}, spec={"devices": {"requests": []}},
        status={"allocation": {"devices": {"results": [result]}}, "reservedFor": pods},
    )
    world.cluster.apply("resourceclaims", claim, True)
    inputs = gather(
        cluster=world.cluster, inventory=world.inventory, reports=world.reports(),
        standing=world.standing().values(), policy=world.policy, now_wall=world.now,
    )
    assert inputs.holders == {DeviceKey(DRIVER, "n1", "gpu-0"): expected}


# --- what others keep from work ---


def others(policy: str = "mode: enforce") -> World:
    return World(policy, nodes=10)


@pytest.mark.parametrize(
    ("taint", "used"),
    [
        ("node.kubernetes.io/unreachable=:NoExecute", 8),
        ("node.kubernetes.io/not-ready=:NoSchedule", 8),
        ("nvsentinel.nvidia.com/quarantine=x:NoSchedule", 8),
        ("nvsentinel.nvidia.com/quarantine=x:PreferNoSchedule", 0),
        ("nvidia.com/gpu=present:NoSchedule", 0),
    ],
)
def test_taints_of_a_node_count_all_its_gpus_but_for_those_that_dedicate_it(taint: str, used: int) -> None:
    world = others()
    world.tainted("n1", taint)
    world.round()
    assert world.last.budgets["fleet"] == (used, 8)


def test_which_taints_dedicate_nodes_is_a_matter_of_the_policy() -> None:
    world = others("mode: enforce\nbudgets: {dedicating_taints: [example.com/gpu]}")
    world.tainted("n1", "example.com/gpu=:NoSchedule")
    world.tainted("n2", "nvidia.com/gpu=present:NoSchedule")
    world.round()
    assert world.last.budgets["fleet"] == (8, 8)


def test_a_node_that_is_not_ready_counts_though_nothing_has_tainted_it_yet() -> None:
    world = others()
    for name, status in (("n1", "Unknown"), ("n2", "False"), ("n3", "True")):
        world.machines[name]["status"] = {"conditions": [{"type": "Ready", "status": status}]}
        world.cluster.apply("nodes", make(Node, **world.machines[name]), True)
    world.round()
    assert world.last.budgets["fleet"] == (16, 8)


def test_a_node_under_maintenance_counts_nowhere() -> None:
    world = others()
    world.options = {"maintenance": frozenset({"n1"})}
    world.tainted("n1", "node.kubernetes.io/unreachable=:NoExecute")
    world.round()
    assert world.last.budgets["fleet"] == (0, 7)


def test_half_a_fleet_that_others_keep_from_work_leaves_no_room() -> None:
    world = others()
    for node in range(2, 7):
        world.tainted(f"n{node}", "node.kubernetes.io/unreachable=:NoExecute")
    world.find(a_finding(gpu(1, 0)))
    world.round()
    assert world.taints() == ["gpu-0@n1 unhealthy=xid_fatal:None"]
    assert [each.text for each in world.last.held] == ["40 of at most 16 GPUs of group `` are kept from work"]


def test_a_rule_of_ours_that_a_person_made_wider_counts_as_wide_as_it_is() -> None:
    world = others()
    world.find(a_finding(gpu(1, 0)))
    world.round()
    ((name, rule),) = world.cluster.rules.items()
    assert rule.spec.device_selector is not None
    whole_pool = msgspec.structs.replace(rule.spec.device_selector, device=None)
    world.put(msgspec.structs.replace(rule, spec=msgspec.structs.replace(rule.spec, device_selector=whole_pool)))
    world.find(a_finding(gpu(2, 0)))
    world.round()
    assert world.standing()[name].edited
    assert world.last.budgets["fleet"] == (8, 8)
    assert ("GPU-2-0", "budget_fleet") in world.held()


def test_a_rate_of_nothing_lets_nothing_through_when_half_open() -> None:
    policy = read_policy("rate: {least: 0, share: 0}", "p.yaml", START)
    rate = Rate(policy, Memory(), 1000, Breaker(state=HALF_OPEN))
    assert rate.limit == 0
    assert rate.refusal(frozenset({"GPU-1"})) is not None
