"""When do the alerts on taints, budgets and maintenance fire?"""

from __future__ import annotations

from typing import Final

from alerts.cases.model import Case, Fired


def _mode(reason: str) -> dict[str, str]:
    mode = "announce" if reason else "enforce"
    return {f'claimscope_controller_taint_mode_info{{mode="{mode}",configured="enforce",reason="{reason}"}}': "1x60"}


CASES: Final = (
    Case(
        alert="DRATaintBreakerOpen", about="of the controller",
        series={
            'claimscope_controller_taint_breaker_state{state="open"}': "0x3 1x60",
            'claimscope_controller_taint_breaker_state{state="closed"}': "1x3 0x60",
        },
        at="5m",
        fires=(Fired(says="The breaker in cluster east is open: nothing new is fenced until it closes."),),
    ),
    Case(
        alert="DRATaintBreakerOpen", about="that of one node wakes nobody",
        series={'claimscope_agent_taint_breaker_state{node="n1",state="open"}': "1x60"}, at="5m",
    ),
    Case(
        alert="DRANodeTaintBreakerOpen", about="of an agent that fences its own node",
        series={'claimscope_agent_taint_breaker_state{node="n1",state="open"}': "1x60"}, at="5m",
        fires=(
            Fired(
                labels={"node": "n1"},
                says="The breaker of node n1 is open: its agent fences nothing new until it closes.",
            ),
        ),
    ),
    Case(
        alert="DRANodeTaintBreakerOpen", about="closed",
        series={'claimscope_agent_taint_breaker_state{node="n1",state="open"}': "0x60"}, at="5m",
    ),
    Case(
        alert="DRATaintBreakerOpen", about="half open",
        series={
            'claimscope_controller_taint_breaker_state{state="open"}': "0x60",
            'claimscope_controller_taint_breaker_state{state="half_open"}': "1x60",
        },
        at="5m",
    ),
    Case(
        alert="DRATaintBudgetExhausted", about="GPUs that should be fenced are not",
        series={'dra_taint_held{reason="budget_fleet"}': "3x60"}, at="6m",
        fires=(
            Fired(
                labels={"reason": "budget_fleet"},
                says="3 taints in cluster east are held back or weakened: budget_fleet.",
            ),
        ),
    ),
    Case(
        alert="DRATaintBudgetExhausted", about="used up, and nothing waits",
        series={
            'dra_taint_budget_used{scope="fleet"}': "5x60", 'dra_taint_budget_limit{scope="fleet"}': "5x60",
            'dra_taint_held{reason="budget_fleet"}': "0x60", 'dra_taint_held{reason="mode"}': "3x60",
        },
        at="20m",
    ),
    Case(
        alert="DRATaintRuleIneffective", about="one for all rules",
        series={f'dra_taint_rule_ineffective{{rule="r{rule}"}}': "1x60" for rule in range(3)}, at="5m",
        fires=(Fired(says="3 DeviceTaintRules in cluster east have no effect."),),
    ),
    Case(
        alert="DRATaintRuleIneffective", about="they work",
        series={'dra_taint_rule_ineffective{rule="r"}': "0x60"}, at="5m",
    ),
    Case(
        alert="DRATaintModeLowered", about="a scheduler that does not bear rules", series=_mode("scheduler_bug"),
        at="20m",
        fires=(
            Fired(
                labels={"mode": "announce", "configured": "enforce", "reason": "scheduler_bug"},
                says="Fencing is configured as enforce and goes as far as announce: scheduler_bug.",
            ),
        ),
    ),
    Case(alert="DRATaintModeLowered", about="as configured", series=_mode(""), at="20m"),
    Case(
        alert="DRATaintsPaused", about="since yesterday", step="30m",
        series={"claimscope_controller_taint_paused": "1x60"}, at="25h",
        fires=(
            Fired(says="Somebody has paused fencing in cluster east: see `claimscope taints list`."),
        ),
    ),
    Case(
        alert="DRATaintsPaused", about="since this morning", step="30m",
        series={"claimscope_controller_taint_paused": "1x60"}, at="10h",
    ),
    Case(
        alert="DRAMaintenanceDeadlineMissed", about="still in use",
        series={'dra_node_maintenance_deadline_missed{node="n1"}': "0x3 1x60"}, at="5m",
        fires=(Fired(labels={"node": "n1"}, says="Node n1 is still in use."),),
    ),
    Case(
        alert="DRAMaintenanceDeadlineMissed", about="in time",
        series={'dra_node_maintenance_deadline_missed{node="n1"}': "0x60"}, at="5m",
    ),
    Case(
        alert="DRAMaintenanceVerifyFailed", about="not well after maintenance",
        series={'dra_node_maintenance_state{node="n1",state="verify_failed"}': "1x60"}, at="6m",
        fires=(
            Fired(
                labels={"node": "n1"},
                says="Node n1 stays fenced: its GPUs did not pass the check after maintenance.",
            ),
        ),
    ),
    Case(
        alert="DRAMaintenanceVerifyFailed", about="being checked",
        series={'dra_node_maintenance_state{node="n1",state="verifying"}': "1x60"}, at="10m",
    ),
)  # fmt: skip
