"""Which PromQL do several boards share? Time and energy of GPUs, counted so that nothing counts twice.

What is shown of a fleet is read from recorded series: over 10,000 GPUs the accounts themselves take a query more than
ten seconds. They count in whole GPUs, a MIG device by its size, and devices that are gone by now count for the time in
which they were there. A device on which busy time cannot be measured is in "held" and not in "measured": what was
wasted there is not known, and not all of it.

A target that two jobs scrape, or that two servers store, is one target: `max by` before `sum`.
"""

from __future__ import annotations

from typing import Final, Literal

from dashboards import palette

CLUSTER: Final = 'cluster=~"$cluster"'
SCOPE: Final = 'cluster=~"$cluster", namespace=~"$namespace"'
WHOLE: Final = 'cluster=~"$cluster", uuid=~"GPU-.*"'  # GPUs as they are plugged in; MIG devices are parts of them
OF_CLAIMS: Final = ', resourceclaim!=""'  # holders that are claims

DEVICE: Final = "cluster, node, gpu, uuid"
CLAIM: Final = "cluster, namespace, resourceclaim"
CLAIM_ACCOUNT: Final = "cluster, node, namespace, resourceclaim, claim_uid, uuid, attribution"
HOLDER: Final = "cluster, namespace, resourceclaim, pod"  # one of the two names is empty

RATE: Final = "$__rate_interval"
RANGE: Final = "$__range"
IDLE_BELOW: Final = 0.05  # part of the held time; a GPU used less than this is held for nothing

# 0 where somebody would say if there were something, and nothing where nobody can: a count of nothing is no 0 then.
CONTROLLER_ANSWERS: Final = f"0 * max(claimscope_controller_leader{{{CLUSTER}}} == 1)"
AGENTS_ANSWER: Final = f"0 * max(gpu_up{{{CLUSTER}}})"
RULES_RECORD: Final = f"0 * max(node:gpu_info:count{{{CLUSTER}}})"
# The watchdog fires always, where the alerts are loaded; it is of no cluster.
ALERTS_ARE_LOADED: Final = '0 * max(ALERTS{alertname="DRAWatchdog", alertstate="firing"} == 1)'

Quantity = Literal["held", "busy", "measured", "idle", "wasted"]
Level = Literal["holder", "namespace", "namespace_source", "cluster"]
_LABELS: Final[dict[Level, str]] = {
    "holder": "cluster, namespace, resourceclaim, claim_uid, pod", "namespace": "cluster, namespace",
    "namespace_source": "cluster, namespace, source", "cluster": "cluster",
}  # fmt: skip
_FLEET: Final = f"sum(max by (cluster, node) (node:gpu_info:count{{{CLUSTER}}}))"


def gpus(quantity: Quantity, where: str = SCOPE, level: Level = "namespace", at: str = "") -> str:
    """GPUs that are held, busy and so on, as recorded."""
    return f"max by ({_LABELS[level]}) ({level}:gpus_{quantity}:rate5m{{{where}}}{at})"


def gpus_there() -> str:
    """GPUs that the fleet has."""
    return _FLEET


def over_time(expr: str) -> str:
    """A rate as what it comes to in the chosen time, for units per second. Steps, not samples: how often rules are
    evaluated does not matter, and what was there for a part of the time counts for that part."""
    return f"sum_over_time(({expr})[$__range:$__interval]) * $__interval_ms / 1000"


def hours(quantity: Quantity, where: str = SCOPE, level: Level = "namespace", by: str = "") -> str:
    """GPU-hours in the chosen time; 0 where there are none but the rules record, unless asked by label."""
    spent = over_time(gpus(quantity, where, level))
    return f"sum by ({by}) ({spent}) / 3600" if by else f"(sum({spent}) or {RULES_RECORD}) / 3600"


def wasted_hours(where: str = SCOPE, level: Level = "namespace", by: str = "") -> str:
    """GPU-hours held and not busy, of those on which that can be measured."""
    if level == "holder":  # recorded, since there are many
        return hours("wasted", where, level, by)
    return f"clamp_min({hours('measured', where, level, by)} - {hours('busy', where, level, by)}, 0)"


def busy_part(where: str = SCOPE, level: Level = "namespace", by: str = "") -> str:
    """Part of the held time in which GPUs were busy, over the chosen time."""
    return f"{hours('busy', where, level, by)} / ({hours('measured', where, level, by)} > 0)"


def held_part(where: str = CLUSTER) -> str:
    """Part of the fleet's time in which somebody held its GPUs, over the chosen time."""
    return f"{hours('held', where, 'cluster')} / (({over_time(_FLEET)}) / 3600)"


def watt_hours(watts: str) -> str:
    """Energy in the chosen time, from what is recorded in watts."""
    return f"sum({over_time(watts)}) / 3600"


def errors(counted: str, where: str) -> str:
    """What is recorded of errors in the chosen time, by device. The rules write down each error once."""
    return f"topk(100, max by ({DEVICE}) (sum_over_time({counted}{{{where}}}[$__range]))) > 0"


def grown(family: str, where: str, by: str) -> str:
    """What counters that begin with their first event gained in the chosen time, from two looks at them. After a reset
    it is what came since; one that was not there before has gained all of it."""
    now = f"max by ({by}) ({family}{{{where}}})"
    before = f"max by ({by}) ({family}{{{where}}} offset $__range)"
    return f"({now} - {before} >= 0 or {now})"


def of_claim(family: str, where: str, over: str, by: str = CLAIM, *, selector: str = "", split: str = "") -> str:
    """Rate of a counter of one claim; `split` names the label behind the account's, where the counter has one."""
    key = f"{CLAIM_ACCOUNT}, {split}" if split else CLAIM_ACCOUNT
    growth = "increase" if over == RANGE else "rate"
    return f"sum by ({by}) (max by ({key}) ({growth}({family}{{{where}{selector}}}[{over}])))"


# Claims that should have their devices by now: those that wait for a quota or a scheduling gate are not among them.
_WAIT: Final = "cluster, namespace, resourceclaim, pod, deviceclass"


def overdue(where: str) -> str:
    """Seconds for which claims wait that wait for nothing they are meant to wait for."""
    return f"max by ({_WAIT}) (claim:dra_claim_pending_seconds:workload{{{where}}})"


def number(states: dict[str, tuple[int, str]], family: str, where: str, by: str, label: str = "state") -> str:
    """The state that holds as its number in the palette, one series per thing."""
    return " or ".join(
        f'{value} * (max by ({by}) ({family}{{{where}, {label}="{state}"}}) == 1)'
        for state, (value, _) in states.items()
    )


def words(states: dict[str, tuple[int, str]]) -> dict[float, tuple[str, str]]:
    """What a state timeline writes for these numbers, and in which colour."""
    return {float(value): (state, colour) for state, (value, colour) in states.items()}


def health(where: str = CLUSTER, by: str = DEVICE) -> str:
    """The health of devices as numbers of the palette."""
    return number(palette.HEALTH, "gpu_health", where, by)


LAST_XIDS: Final = "max by (cluster, node, gpu, uuid, xid) (gpu_xid_last_timestamp_seconds{{{}}})"  # where
_LAST_XIDS: Final = LAST_XIDS.format(CLUSTER)
# A bar for each report: the last one is another than a step before. It must also be new, or a GPU that is scraped again
# after a gap would report all of its past.
NEW_XIDS: Final = (
    f"count by (xid) ((time() - {_LAST_XIDS} < $__interval_ms / 1000 + 120) unless ({_LAST_XIDS} == "
    f"max by (cluster, node, gpu, uuid, xid) (gpu_xid_last_timestamp_seconds{{{CLUSTER}}} offset $__interval)))"
)
