"""What is worked out once for alerts, dashboards and long storage? Recording rules, named level:metric:operations."""

from __future__ import annotations

from typing import Final

from alerts.model import Group, Recording
from alerts.words import CLAIM, DEVICE, HELD, HOLDING, MEMBER, NODE, STUCK, WAITS, WORKLOAD, WORKLOAD_OF_CLAIM
from claimscope.health.rules import RULES

_PART: Final = f"{CLAIM}, uuid, attribution"  # one account: a claim's part of a device
_PART_OF_POD: Final = "cluster, node, namespace, pod, container, uuid, attribution"
_WAIT: Final = f"{CLAIM}, pod, deviceclass"
# Causes for which the scheduler must answer: devices that fit are free, or it gave up looking.
STALLED: Final = "scheduling|scheduler_silent|not_retried|scheduler_timeout"
_STUCK_BY: Final = f"{STALLED}|no_driver|prepare_failed"


def _of_claims(family: str, selector: str = "") -> str:
    """Rate of an account, by claim. The inner `max by` keeps a second scrape of the same agent from counting."""
    return f"sum by ({CLAIM}) (max by ({_PART}) (rate({family}{selector}[5m])))"


CLAIMS: Final = Group(
    name="dra-claims-recorded",
    rules=(
        Recording(
            record=HELD,
            expr=f"""
max by ({CLAIM}, uuid, node) (dra_claim_device_info{{admin_access="false", uuid!=""}})
* on ({CLAIM}) group_left (deviceclass, workload_kind, workload)
{WORKLOAD_OF_CLAIM}""",
        ),
        Recording(record=HOLDING, expr=f"max by ({CLAIM}, workload_kind, workload) ({HELD})"),
        Recording(record=MEMBER, expr=f"max by ({WORKLOAD}, node, uuid) ({HELD})"),
        # Not those that wait for what they are meant to wait for: a quota, or whoever set a scheduling gate. Claims
        # that no pod wants have no dra_claim_pending_seconds. While a claim has not been made from its template there
        # is no dra_claim_info that would name the workload, so those of a namespace count as one.
        Recording(
            record=WAITS,
            expr=f"""
(
  max by ({_WAIT}, reason) (dra_claim_pending_reason{{reason!~"quota|gated"}})
  * on ({_WAIT}) group_left ()
  max by ({_WAIT}) (dra_claim_pending_seconds)
)
* on ({CLAIM}) group_left (workload_kind, workload)
{WORKLOAD_OF_CLAIM}
or on ({_WAIT}, reason)
(
  max by ({_WAIT}, reason) (dra_claim_pending_reason{{reason!~"quota|gated"}})
  * on ({_WAIT}) group_left ()
  max by ({_WAIT}) (dra_claim_pending_seconds)
)""",
        ),
        # Since when it is so, for the causes that page: a claim that waited for hours has them in passing, too. A rule
        # that reads what it wrote before, and bears to miss a minute or two of it.
        Recording(
            record=STUCK,
            expr=f"""
last_over_time({STUCK}[3m]) and on ({_WAIT}, reason) {WAITS}{{reason=~"{_STUCK_BY}"}}
or on ({_WAIT}, reason)
0 * {WAITS}{{reason=~"{_STUCK_BY}"}} + time()""",
        ),
        Recording(
            record="claim:dra_claim_gpu_energy_joules:rate5m",
            expr=_of_claims("dra_claim_gpu_energy_joules_total"),
        ),
        Recording(
            record="namespace:dra_claim_gpu_energy_joules:rate5m",
            expr="sum by (cluster, namespace) (claim:dra_claim_gpu_energy_joules:rate5m)",
        ),
        # What claims and pods of the device plugin draw together, in watts.
        Recording(
            record="namespace:gpu_held_energy_joules:rate5m",
            expr=f"""
sum by (cluster, namespace) (
  claim:dra_claim_gpu_energy_joules:rate5m
  or
  max by ({_PART_OF_POD}) (rate(pod_gpu_energy_joules_total[5m]))
)""",
        ),
    ),
)

# --- how many GPUs are held, and how busy are they? ---
#
# In whole GPUs: a MIG device counts by its size. Read these where a fleet is shown; over 10,000 GPUs the accounts
# themselves take a query more than ten seconds. An integral over time is a subquery with a step, such as
# sum_over_time(cluster:gpus_held:rate5m[1d:1m]) / 60 for the GPU-hours of a day, whatever the rules' interval is.
#
#   held      what is held
#   busy      the part of it that works
#   measured  held, where it can be measured how busy it is: the denominator of busy. held - measured is unknown
#   idle      measured, of devices whose holder used them for less than a twentieth of the time; 0 where there are none
#   wasted    measured and not busy; of holders alone, and only of those that waste anything
#
# Each at four levels. account: a holder's part of a device. holder: a claim, or a pod of the device plugin; of
# resourceclaim and pod one is absent. namespace, cluster: both kinds of holders together.
HELD_GPUS: Final = "gpus_held:rate5m"
BUSY_GPUS: Final = "gpus_busy:rate5m"
MEASURED_GPUS: Final = "gpus_measured:rate5m"
IDLE_GPUS: Final = "gpus_idle:rate5m"
WASTED_GPUS: Final = "gpus_wasted:rate5m"
BUSY_RATIO: Final = "claim:dra_claim_gpu_busy_per_allocated:ratio_rate5m"
IDLE_BELOW: Final = 0.05
_DEVICE_PART: Final = "cluster, node, namespace, uuid, attribution"
_ACCOUNTS: Final = {
    "dra_claim": f"{_DEVICE_PART}, resourceclaim, claim_uid",
    "pod": f"{_DEVICE_PART}, pod, container",
}
_HOLDER: Final = f"{CLAIM}, pod"
_SOURCES: Final = {"claim": 'resourceclaim!=""', "device_plugin": 'pod!=""'}  # of holders


def _gpus(family: str, selector: str = "") -> str:
    """Accounts of claims and of pods as rates in whole GPUs. `max by`: a target scraped twice counts once."""
    return "\nor\n".join(
        f"max by ({key}) (rate({kind}_{family}{selector}[5m]))\n"
        "* on (cluster, node, uuid) group_left () max by (cluster, node, uuid) (gpu_size_ratio)"
        for kind, key in _ACCOUNTS.items()
    )


def _levels(name: str, by_account: str) -> tuple[Recording, ...]:
    return (
        Recording(record=f"holder:{name}", expr=f"sum by ({_HOLDER}) ({by_account})"),
        Recording(record=f"namespace:{name}", expr=f"sum by (cluster, namespace) (holder:{name})"),
        Recording(record=f"cluster:{name}", expr=f"sum by (cluster) (namespace:{name})"),
    )


def _by_source(name: str) -> Recording:
    """By how the holders came by their GPUs."""
    parts = " or ".join(
        f'label_replace(holder:{name}{{{holders}}}, "source", "{source}", "", "")'
        for source, holders in _SOURCES.items()
    )
    return Recording(record=f"namespace_source:{name}", expr=f"sum by (cluster, namespace, source) ({parts})")


USE: Final = Group(
    name="dra-use-recorded",
    interval="1m",
    rules=(
        Recording(record=f"account:{HELD_GPUS}", expr=_gpus("gpu_allocated_seconds_total")),
        Recording(record=f"account:{BUSY_GPUS}", expr=_gpus("gpu_busy_seconds_total", '{engine="gpu"}')),
        *_levels(HELD_GPUS, f"account:{HELD_GPUS}"),
        *_levels(BUSY_GPUS, f"account:{BUSY_GPUS} and account:{HELD_GPUS}"),
        *_levels(MEASURED_GPUS, f"account:{HELD_GPUS} and account:{BUSY_GPUS}"),
        *_levels(IDLE_GPUS, f"account:{HELD_GPUS} * (account:{BUSY_GPUS} < bool {IDLE_BELOW} * account:{HELD_GPUS})"),
        # Of what is measured, and not of a claim that holds nothing now. Ratios must not be averaged: divide the sums
        # of a namespace or cluster instead.
        Recording(
            record=BUSY_RATIO,
            expr=f"""
sum by ({CLAIM}) (holder:{BUSY_GPUS}{{resourceclaim!=""}})
/ (sum by ({CLAIM}) (holder:{MEASURED_GPUS}{{resourceclaim!=""}}) > 0)""",
        ),
        *(
            Recording(
                record=f"cluster:dra_claim_gpu_busy_per_allocated:p{share}",
                expr=f"quantile by (cluster) ({share / 100}, {BUSY_RATIO})",
            )
            for share in (10, 50, 90)
        ),
        Recording(
            record=f"holder:{WASTED_GPUS}",
            expr=f"clamp_min(holder:{MEASURED_GPUS} - holder:{BUSY_GPUS}, 0) > 0",
        ),
        *(_by_source(name) for name in (HELD_GPUS, BUSY_GPUS, MEASURED_GPUS)),
        # What GPUs draw, and the part of it that no holder can be given, in watts. MIG devices are parts of GPUs.
        Recording(
            record="cluster:gpu_energy_joules:rate5m",
            expr=f"""
sum by (cluster) (max by ({DEVICE}) (rate(gpu_energy_joules_total{{uuid=~"GPU-.*"}}[5m])))""",
        ),
        Recording(
            record="cluster:gpu_unattributed_energy_joules:rate5m",
            expr=f"""
sum by (cluster) (max by ({DEVICE}) (rate(gpu_unattributed_energy_joules_total[5m])))""",
        ),
    ),
)

_POOL: Final = "cluster, driver, pool, deviceclass, state"

_ATTRIBUTED: Final = "cluster_driver:gpu_allocation_info:group"

CAPACITY: Final = Group(
    name="dra-capacity-recorded",
    rules=(
        Recording(
            record="deviceclass_state:dra_pool_devices:sum",
            expr=f"sum by (cluster, deviceclass, state) (max by ({_POOL}) (dra_pool_devices))",
        ),
        Recording(
            record="deviceclass:dra_pool_devices:sum",
            expr="sum by (cluster, deviceclass) (deviceclass_state:dra_pool_devices:sum)",
        ),
        Recording(
            record="deviceclass:dra_pool_devices_free:sum",
            expr='sum by (cluster, deviceclass) (deviceclass_state:dra_pool_devices:sum{state="free"})',
        ),
        Recording(
            record="deviceclass:dra_claims_pending:count",
            expr=f"count by (cluster, deviceclass) (max by ({CLAIM}, pod, deviceclass) ({WAITS}))",
        ),
        # A device counts in each class that it matches, and classes overlap: "gpu.nvidia.com" and "h100.example.com"
        # both match an H100. The sum over classes counts it twice, so each pool counts with its largest class. That is
        # exact where one class covers the pool, and too few where classes share it out; where partitions of a GPU are
        # published beside it, ask by class instead (the next rule).
        Recording(
            record="cluster:dra_pool_devices:distinct",
            expr=f"""
sum by (cluster) (
  max by (cluster, driver, pool) (
    sum by (cluster, driver, pool, deviceclass) (max by ({_POOL}) (dra_pool_devices))
  )
)""",
        ),
        # Drivers whose devices the agents know as GPUs, once they have seen one held. A rule that reads what it wrote
        # before: a driver stays known while nothing of it is held.
        Recording(
            record=_ATTRIBUTED,
            expr=f"""
group by (cluster, driver) (gpu_allocation_info{{driver!=""}})
or
last_over_time({_ATTRIBUTED}[1d])""",
        ),
        # The part of the devices that does work: how many are held by claims and more than 10 % busy, of all that these
        # drivers publish. Devices of other drivers (NICs, say) and of device plugins are in neither number.
        Recording(
            record="cluster:dra_devices_busy:ratio",
            expr=f"""
(
  sum by (cluster) (
    max by ({DEVICE}) (gpu_utilization_ratio{{engine="gpu"}} > bool 0.1)
    and on ({DEVICE})
    gpu_allocation_info{{driver!=""}}
  )
  or
  0 * sum by (cluster) ({_ATTRIBUTED})
)
/ on (cluster)
(
  sum by (cluster) (
    max by (cluster, driver, pool) (
      sum by (cluster, driver, pool, deviceclass) (max by ({_POOL}) (dra_pool_devices))
    )
    and on (cluster, driver)
    {_ATTRIBUTED}
  ) > 0
)""",
        ),
        # The same by class, without the question which class a device counts for: of the class's devices those that a
        # claim of the class holds and keeps busy. Absent where none is held, or none of them can be measured.
        Recording(
            record="deviceclass:dra_devices_busy:ratio",
            expr=f"""
sum by (cluster, deviceclass) (
  max by (cluster, deviceclass, uuid) ({HELD})
  * on (cluster, uuid) group_left ()
  max by (cluster, uuid) (gpu_utilization_ratio{{engine="gpu"}} > bool 0.1)
)
/ on (cluster, deviceclass)
deviceclass:dra_pool_devices:sum""",
        ),
        # The query of many a dashboard for dcgm-exporter, so that it can be compared. It adds up percents instead of
        # counting GPUs, and a node without device plugin has no allocatable nvidia.com/gpu: only the two ratios above
        # are right on DRA nodes.
        Recording(
            record="cluster:dcgm_gpu_utilization_per_allocatable:percent",
            expr="""
sum by (cluster) (DCGM_FI_DEV_GPU_UTIL > 10)
/ on (cluster)
sum by (cluster) (kube_node_status_allocatable{resource="nvidia_com_gpu"})
* 100""",
        ),
    ),
)

UNHEALTHY: Final = "device:gpu_health_unhealthy:max"
SYSTEMIC: Final = "node_rule:gpu_health_finding_info:systemic"
# Rules that many GPUs break together when one cause outside of them does it: cooling, power supply, firmware.
_CORRELATED: Final = "|".join(rule.key for rule in RULES if rule.correlated)
_BAD: Final = 'max by (cluster, uuid) (gpu_health{state=~"unhealthy|lost"} == 1)'

_GPU: Final = "cluster, node, gpu, uuid"

DEVICES: Final = Group(
    name="dra-devices-recorded",
    rules=(
        # 1 for GPUs that are unhealthy or lost, and for the MIG devices on them.
        Recording(
            record=UNHEALTHY,
            expr=f"""
max by (cluster, uuid) (
  {_BAD}
  or
  max by (cluster, uuid, parent_uuid) (gpu_info{{parent_uuid!=""}})
  * on (cluster, parent_uuid) group_left ()
  label_replace({_BAD}, "parent_uuid", "$1", "uuid", "(.*)")
)""",
        ),
        Recording(
            record="node:gpu_info:count",
            expr='count by (cluster, node) (max by (cluster, node, uuid) (gpu_info{parent_uuid=""}))',
        ),
        # Links that are down, of GPUs that have any.
        Recording(
            record="device:gpu_nvlink_down:count",
            expr=f"count by ({_GPU}) (max by ({_GPU}, link) (gpu_nvlink_up) == 0)",
        ),
        # How many GPUs of a node one rule of health stands against.
        Recording(
            record="node_rule:gpu_health_finding_info:count",
            expr="count by (cluster, node, rule) (max by (cluster, node, uuid, rule) (gpu_health_finding_info))",
        ),
        # The same, where it is two GPUs and half of the node's at least, and a rule that knows outer causes.
        Recording(
            record=SYSTEMIC,
            expr=f"""
node_rule:gpu_health_finding_info:count{{rule=~"{_CORRELATED}"}} >= 2
and
node_rule:gpu_health_finding_info:count / on ({NODE}) group_left () node:gpu_info:count >= 0.5""",
        ),
    ),
)

# --- which GPUs counted errors? ---
#
# Only those that did: few series in a fleet of many. Each is what came since the evaluation before, so that
# sum_over_time(...[1d]) is what came in a day; a GPU that nobody saw then has none. It is the difference of two looks
# and no increase(), which leaves out what lies between the last scrape of one window and the first of the next.
ERRORS_WINDOW: Final = "5m"  # the interval of the group, too


def _counted(family: str, by: str) -> str:
    """What counters gained; all of it where one began anew."""
    now, before = (f"max by ({by}) ({family}{moment})" for moment in ("", f" offset {ERRORS_WINDOW}"))
    return f"({now} - {before} >= 0 or {now} and {before})"


ERRORS: Final = Group(
    name="dra-device-errors-recorded",
    interval=ERRORS_WINDOW,
    rules=(
        Recording(
            record="device_type:gpu_ecc_device_errors:increase5m",
            expr=f"{_counted('gpu_ecc_device_errors_total', f'{_GPU}, type')} > 0",
        ),
        Recording(
            record="device:gpu_remapped_rows:increase5m",
            expr=f"sum by ({_GPU}) ({_counted('gpu_remapped_rows_total', f'{_GPU}, type')}) > 0",
        ),
        # One error shows as a replay, a recovery and a CRC error, so that types are not to be added up.
        Recording(
            record="device:gpu_nvlink_errors:increase5m",
            expr=f"max by ({_GPU}) ({_counted('gpu_nvlink_errors_total', f'{_GPU}, type')}) > 0",
        ),
    ),
)

# --- which GPUs are gone? ---
#
# What nobody sees any more has no series, so what was seen is written down, and missing GPUs stay missing by reading
# the rule's own last answer. It ends when the GPU is seen again (on whatever node), when another sits in its slot, or
# when the node has had no agent for a day.
SEEN: Final = "device:gpu_info:seen"
MISSING: Final = "device:gpu_info:missing"
_SLOT: Final = f"{DEVICE}, pci_bus_id"

MISSING_DEVICES: Final = Group(
    name="dra-devices-missing-recorded",
    interval="2m",
    rules=(
        Recording(record=SEEN, expr=f'max by ({_SLOT}) (gpu_info{{parent_uuid=""}})'),
        Recording(
            record=MISSING,
            expr=f"""
(last_over_time({SEEN}[6h]) or last_over_time({MISSING}[1d]))
unless on (cluster, uuid)
gpu_info{{parent_uuid=""}}
unless on ({NODE}, pci_bus_id)
gpu_info{{parent_uuid="", pci_bus_id!=""}}
and on ({NODE})
(max by ({NODE}) (gpu_info) or max by ({NODE}) (claimscope_agent_nvml_up == 1))""",
        ),
    ),
)

# --- what is left of a cluster whose agents have all gone, and was there ever a controller? ---
AGENTS: Final = "cluster:claimscope_agent_build_info:count"
LOCAL_WRITERS: Final = "cluster:claimscope_agent_taint_mode_info:count"  # agents that fence their own nodes
CONTROLLERS: Final = "cluster:claimscope_controller_leader:max"
OWN: Final = Group(
    name="dra-own-recorded",
    rules=(
        Recording(record=AGENTS, expr=f"count by (cluster) (max by ({NODE}) (claimscope_agent_build_info))"),
        Recording(
            record=LOCAL_WRITERS, expr=f"count by (cluster) (max by ({NODE}) (claimscope_agent_taint_mode_info))"
        ),
        Recording(record=CONTROLLERS, expr="max by (cluster) (claimscope_controller_leader)"),
    ),
)

WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
SLOW: Final = "deviceclass:dra_allocation_slow:ratio_rate"  # and the window


def _slow(window: str) -> Recording:
    """Part of the allocations whose binding took more than 30 s. `le` is 30 or 30.0, as the version of Prometheus has
    it."""
    name = "dra_allocation_duration_seconds"
    # Plain sums: a second scrape counts in both, and so do both controllers where one has followed the other.
    by = "sum by (cluster, deviceclass)"
    return Recording(
        record=f"{SLOW}{window}",
        expr=f"""
1 - (
  {by} (rate({name}_bucket{{phase="binding", le=~"30(\\\\.0)?"}}[{window}]))
  /
  {by} (rate({name}_count{{phase="binding"}}[{window}]))
)""",
    )


ALLOCATION: Final = Group(name="dra-allocation-recorded", rules=tuple(_slow(window) for window in WINDOWS))

# --- which GPU stands apart from the others of its workload? ---
#
# In synchronous training all wait for the slowest. It shows as the one GPU that is busy while others idle, or as the
# one whose clocks are lower, or by its power: those that wait for it in a collective spin, and draw less (or, where it
# is starved, more). So a GPU is compared with the median of its workload in all three, each as a part of what the GPU
# can do, and with GPUs of its own model alone.
#
# How busy GPUs are tells only where all do the same: replicas of a service get as much as comes in. So workloads of
# other kinds are compared within each claim, and by clocks alone. And of those that are busier, or draw less power,
# only few of many stand apart; where many do, the work itself is of two kinds (pipeline stages, actors and learners).
# Clocks of GPUs that work are the same whatever the work is: there, a whole node may stand apart.
LOAD: Final = "workload_device:gpu_load:ratio5m"
MEDIAN: Final = "workload_model:gpu_load:median5m"
SPREAD: Final = "workload_model:gpu_load:deviation5m"
MEMBERS: Final = "workload_model:gpu_load:count"
OUTLIER: Final = "workload_device:gpu_load:outlier5m"
APART: Final = "workload_device:gpu_load:apart5m"
_GANG: Final = ".*Job|JobSet|PodGroup|Pod|ResourceClaim"  # one pod, or claim: several GPUs of one program
_GROUP: Final = f"{WORKLOAD}, resourceclaim, model, quantity"  # resourceclaim: where a claim alone is compared
_DEVIATIONS: Final = 6  # of what is usual in the workload
_FLOORS: Final = {"busy": 0.3, "clock": 0.1, "power": 0.2}  # less is no difference
_FEWEST_MEMBERS: Final = 4
_FEW: Final = 0.05  # of the members, and one always
_MODEL: Final = 'topk by (cluster, uuid) (1, max by (cluster, uuid, model) (gpu_info{model!=""}))'
_BUSY: Final = 'max by (cluster, uuid) (rate(gpu_busy_seconds_total{engine="gpu"}[5m]))'
_WORKS: Final = 0.3  # a GPU that is less busy lowers its clocks for that
_LOADS: Final = {
    "busy": f"  {_BUSY}",
    "clock": f"""\
  max by (cluster, uuid) (avg_over_time(gpu_clock_hertz{{domain="sm"}}[5m]))
  / max by (cluster, uuid) (gpu_clock_max_hertz{{domain="sm"}})
  and on (cluster, uuid)
  {_BUSY} > {_WORKS}""",
    "power": """\
  max by (cluster, uuid) (rate(gpu_energy_joules_total[5m]))
  / max by (cluster, uuid) (gpu_power_limit_watts{kind="enforced"})""",
}


def _outlier(quantity: str) -> str:
    """How far from the median, where that is far; clocks only matter where they are lower."""
    distance = f'{LOAD}{{quantity="{quantity}"}} - on ({_GROUP}) group_left () {MEDIAN}'
    distance = f"-({distance})" if quantity == "clock" else f"abs({distance})"
    return f"""
{distance}
> on ({_GROUP}) group_left ()
clamp_min({_DEVIATIONS} * {SPREAD}, {_FLOORS[quantity]})
and on ({_GROUP})
{MEMBERS} >= {_FEWEST_MEMBERS}"""


def _load(quantity: str, members: str) -> Recording:
    """One quantity of all GPUs of these workloads, or claims."""
    return Recording(
        record=LOAD,
        labels={"quantity": quantity},
        expr=f"""
{members}
* on (cluster, uuid) group_left (model)
{_MODEL}
* on (cluster, uuid) group_left ()
(
{_LOADS[quantity]}
)""",
    )


STRAGGLERS: Final = Group(
    name="dra-stragglers-recorded",
    interval="1m",
    rules=(
        *(_load(quantity, f'{MEMBER}{{workload_kind=~"{_GANG}"}}') for quantity in _LOADS),
        _load("clock", f'max by ({WORKLOAD}, resourceclaim, node, uuid) ({HELD}{{workload_kind!~"{_GANG}"}})'),
        Recording(record=MEDIAN, expr=f"quantile by ({_GROUP}) (0.5, {LOAD})"),
        Recording(record=MEMBERS, expr=f"count by ({_GROUP}) ({LOAD})"),
        # The median distance from the median: what is usual in this workload, whatever a few members do.
        Recording(
            record=SPREAD,
            expr=f"quantile by ({_GROUP}) (0.5, abs({LOAD} - on ({_GROUP}) group_left () {MEDIAN}))",
        ),
        *(Recording(record=OUTLIER, labels={"quantity": quantity}, expr=_outlier(quantity)) for quantity in _FLOORS),
        # What the odd ones read, where they are few, or their clocks are low.
        Recording(
            record=APART,
            expr=f"""
{LOAD}{{quantity="clock"}}
and {OUTLIER}
or
{LOAD}
and {OUTLIER}
and on ({_GROUP})
(count by ({_GROUP}) ({OUTLIER}) <= on ({_GROUP}) clamp_min({_FEW} * {MEMBERS}, 1))""",
        ),
    ),
)

GROUPS: Final = (CLAIMS, USE, CAPACITY, DEVICES, ERRORS, MISSING_DEVICES, OWN, ALLOCATION, STRAGGLERS)
