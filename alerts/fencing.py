"""Which alerts are about taints, their budgets, and maintenance?"""

from __future__ import annotations

from typing import Final

from alerts.model import Alert, Group
from alerts.words import NODE, THE_CLUSTER

GROUPS: Final = (
    Group(
        name="dra-fencing",
        rules=(
            Alert(
                name="DRATaintBreakerOpen",
                expr='max by (cluster) (claimscope_controller_taint_breaker_state{state="open"}) == 1',
                severity="critical",
                not_in_demo="the controller only announces, so that nothing it does can open the breaker",
                owner="fleet",
                summary="Too many GPUs were to be fenced at once, and fencing has stopped.",
                description="The breaker" + THE_CLUSTER + " is open: nothing new is fenced until it closes.",
            ),
            # With --taint-writer=local each agent fences its own node, and has a breaker for it.
            Alert(
                name="DRANodeTaintBreakerOpen",
                expr=f'max by ({NODE}) (claimscope_agent_taint_breaker_state{{state="open"}}) == 1',
                severity="warning",
                not_in_demo="the agents of the demo leave fencing to the controller",
                owner="fleet",
                summary="Too many GPUs of a node were to be fenced at once, and its agent has stopped fencing.",
                description="The breaker of node {{ $labels.node }} is open: its agent fences nothing new until it"
                " closes.",
            ),
            Alert(
                name="DRATaintBudgetExhausted",
                expr='max by (cluster, reason) (dra_taint_held{reason=~"budget_.*|rate|cap"}) > 0',
                hold="5m",
                severity="warning",
                not_in_demo="the controller only announces, which needs no budget",
                owner="fleet",
                summary="A budget of fencing is used up, and GPUs that should be fenced are not.",
                description="{{ $value }} taints" + THE_CLUSTER + " are held back or weakened: {{ $labels.reason }}.",
            ),
            Alert(
                name="DRATaintRuleIneffective",
                expr="count by (cluster) (max by (cluster, rule) (dra_taint_rule_ineffective) == 1)",
                hold="2m",
                severity="warning",
                not_in_demo="the simulated cluster acts on every DeviceTaintRule",
                owner="platform",
                summary="The cluster does nothing about DeviceTaintRules.",
                description="{{ $value }} DeviceTaintRules" + THE_CLUSTER + " have no effect.",
            ),
            Alert(
                name="DRATaintModeLowered",
                expr="""
max by (cluster, mode, configured, reason) (claimscope_controller_taint_mode_info{reason!=""}) == 1""",
                hold="15m",
                severity="info",
                not_in_demo="announcing is the least that can be configured and still writes",
                owner="platform",
                summary="Fencing goes less far than it is configured to.",
                description="Fencing is configured as {{ $labels.configured }} and goes as far as {{ $labels.mode }}:"
                " {{ $labels.reason }}.",
            ),
            Alert(
                name="DRATaintsPaused",
                expr="max by (cluster) (claimscope_controller_taint_paused) == 1",
                hold="1d",
                severity="info",
                not_in_demo="fires after a day, in the demo's time after 48 minutes",
                owner="fleet",
                summary="Fencing has been paused for a day.",
                description="Somebody has paused fencing" + THE_CLUSTER + ": see `claimscope taints list`.",
            ),
            Alert(
                name="DRAMaintenanceDeadlineMissed",
                expr="max by (cluster, node) (dra_node_maintenance_deadline_missed) == 1",
                severity="warning",
                owner="fleet",
                summary="A node is not ready for maintenance, and the deadline has passed.",
                description="Node {{ $labels.node }} is still in use.",
            ),
            Alert(
                name="DRAMaintenanceVerifyFailed",
                expr='max by (cluster, node) (dra_node_maintenance_state{state="verify_failed"}) == 1',
                hold="5m",
                severity="warning",
                not_in_demo="pods of the simulated nodes never leave, so that no maintenance gets as far",
                owner="fleet",
                summary="A node came back from maintenance with GPUs that are not well.",
                description="Node {{ $labels.node }} stays fenced: its GPUs did not pass the check after maintenance.",
            ),
        ),
    ),
)
