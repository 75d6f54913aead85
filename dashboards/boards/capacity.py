"""Capacity: what is left of each device class, how long will it last, and who takes it?"""

from __future__ import annotations

from typing import Final

from dashboards import expressions as by_account
from dashboards import palette
from dashboards.annotations import GRAVE, taints, xids
from dashboards.boards.common import (
    ALARM,
    CARE,
    CELL_CARE,
    CELL_WAITS,
    TO_CLAIMS,
    TO_CLAIMS_OF_NAMESPACE,
    TO_HEALTH,
    TO_NODE,
    USED_UP,
    WAITS,
    counted,
    now,
    tile,
)
from dashboards.expressions import CLUSTER, IDLE_BELOW, SCOPE
from dashboards.grafana import (
    CLUSTER_VARIABLE,
    DATASOURCE_VARIABLE,
    NAMESPACE_VARIABLE,
    Column,
    Dashboard,
    Link,
    Panel,
    Query,
    Row,
    Step,
    Variable,
)

_CLASS: Final = f'{CLUSTER}, deviceclass=~"$class"'
_BY_CLASS: Final = "cluster, deviceclass"
_OVERLAP: Final = "A device counts in every class that it matches, so classes are not to be added up."
_DAY: Final = 24 * 3600
_TREND: Final = "no class has become fuller"
_NO_SPACE: Final = "devices_in_use|fragmented|counters_exhausted|capacity_exhausted|tainted|no_matching_device"


def _pools(selector: str = "") -> str:
    return f"max by (cluster, driver, pool, deviceclass, state) (dra_pool_devices{{{_CLASS}{selector}}})"


def _devices(selector: str = "") -> str:
    by_state = f"deviceclass_state:dra_pool_devices:sum{{{_CLASS}{selector}}}"
    return f"sum by ({_BY_CLASS}) (max by ({_BY_CLASS}, state) ({by_state}))"


def _share(selector: str) -> str:
    return f"{_devices(selector)} / ({_devices()} > 0)"


_STATE_FREE: Final = ', state="free"'
_ALLOCATED: Final = ', state="allocated"'
_FREE: Final = _devices(_STATE_FREE)
_HELD_BAR: Final = (Step(colour=palette.STATES["allocated"]),)  # a class that is all held is no fault
_LARGEST: Final = f"max by ({_BY_CLASS}) (dra_class_largest_claim_devices{{{_CLASS}}})"
_WAITING: Final = f'max by ({_BY_CLASS}) (deviceclass:dra_claims_pending:count{{{_CLASS}, deviceclass!=""}})'
# Of what is recorded: of all pools, six hours would be read anew at each step of a graph.
_SLOPE: Final = f"max by ({_BY_CLASS}) (deriv(deviceclass:dra_pool_devices_free:sum{{{_CLASS}}}[6h]))"
_FULL_IN: Final = f"{_FREE} / -({_SLOPE} < 0)"
_TO_CLASS: Final = Link(
    title="This class alone", to="claimscope-capacity", variables={"class": "${__data.fields.Class}"}
)

_LEFT: Final = Row(title="What is left?", panels=(
    tile(
        "Classes with nothing free", "Device classes of which every device is held or cannot be had.",
        now(counted(f"{_FREE} == 0"), "classes"), thresholds=CARE,
    ),
    tile(
        "Full within a day", "Device classes that run out of free devices within 24 hours, if the last 6 hours go on.",
        now(counted(f"{_FULL_IN} < {_DAY}"), "classes"), thresholds=CARE,
    ),
    tile(
        "Claims without devices", "Claims that pods need and that no node can satisfy now: devices in use, "
        "scattered, tainted, or none that match.",
        now(
            counted(
                "max by (cluster, namespace, resourceclaim, pod, deviceclass) "
                f'(dra_claim_pending_reason{{{_CLASS}, reason=~"{_NO_SPACE}"}})'
            ), "claims",
        ),
        thresholds=WAITS, links=(TO_CLAIMS,),
    ),
    tile(
        "Kept from work", "Devices of all classes that get no new claim because of a taint. Each counts once.",
        now(
            counted(
                "max by (cluster, driver, pool, device) "
                f'(dra_device_taint_info{{{CLUSTER}, effect=~"NoSchedule|NoExecute"}})'
            ), "devices",
        ),
        thresholds=CARE, links=(TO_HEALTH,),
    ),
    tile(
        "Held for nobody", "Claims that hold devices although nothing has reserved them for more than a minute. "
        "Deleting the claim frees the devices.",
        now(
            counted(f"max by (cluster, namespace, resourceclaim, claim_uid) (dra_claim_leaked{{{SCOPE}}}) == 1"),
            "claims",
        ),
        thresholds=CARE, links=(TO_CLAIMS,),
    ),
    tile(
        "Pools passed over", "Pools of which not all slices are published: the scheduler does not use them.",
        now(
            counted(
                f"max by (cluster, driver, pool) (dra_pool_complete{{{CLUSTER}}}) == 0 or "
                f"max by (cluster, driver, pool) (dra_pool_published{{{CLUSTER}}}) == 0"
            ), "pools",
        ),
        thresholds=ALARM,
    ),
    Panel(
        kind="table", title="Device classes", width=24, height=10, sort_by="-Held",
        description=f"{_OVERLAP} Out of order: tainted, or kept from work for their health. Not to be had: free, but "
        "partitions of the same GPU have taken what it needs. Largest claim: the most devices that a claim can still "
        "get, all on one node. Full in: if the last 6 hours go on.",
        queries=(
            Query(expr=_devices()),
            Query(expr=_share(_ALLOCATED)),
            Query(expr=_FREE),
            Query(expr=f"{_LARGEST} and on ({_BY_CLASS}) {_devices()}"),
            Query(expr=_devices(', state=~"tainted|unhealthy"'), may_be_empty="every device is in order"),
            Query(expr=_devices(', state="reserved"'), may_be_empty="no partitions overlap"),
            Query(expr=f"{_WAITING} and on ({_BY_CLASS}) {_devices()}", may_be_empty="no claim waits"),
            Query(expr=_FULL_IN, may_be_empty=_TREND),
        ),
        columns=(
            Column(source="deviceclass", title="Class", links=(_TO_CLASS,)),
            Column(source="A", title="Devices", width=90),
            Column(source="B", title="Held", unit="percentunit", bar=True, thresholds=_HELD_BAR),
            Column(source="C", title="Free", width=80, thresholds=(
                Step(colour=palette.WARNING), Step(colour=palette.GOOD, value=1),
            )),
            Column(source="D", title="Largest claim", width=120),
            Column(source="E", title="Out of order", width=110, thresholds=CELL_CARE),
            Column(source="F", title="Not to be had", width=120),
            Column(source="G", title="Claims waiting", width=120, thresholds=CELL_WAITS),
            Column(source="H", title="Full in", unit="s", width=110, thresholds=(
                Step(colour=palette.BAD), Step(colour=palette.WARNING, value=_DAY), Step(colour="text", value=7 * _DAY),
            )),
        ),
    ),
))  # fmt: skip

_LASTS: Final = Row(title="How long will it last?", panels=(
    Panel(
        kind="timeseries", title="Held part of each class", width=8, height=9, unit="percentunit", minimum=0, maximum=1,
        description=f"Devices that claims hold, of those published for the class. {_OVERLAP}",
        queries=(Query(expr=_share(_ALLOCATED), legend="{{deviceclass}}"),),
    ),
    Panel(
        kind="timeseries", title="Free devices, and in a day", width=8, height=9, unit="short", minimum=0,
        description="Free devices of each class; and of classes whose free devices become fewer, how many there will "
        "be 24 hours later if the 6 hours before go on.",
        queries=(
            Query(expr=_FREE, legend="{{deviceclass}}"),
            Query(
                expr=f"clamp_min({_FREE} + {_DAY} * ({_SLOPE} < 0), 0)", legend="{{deviceclass}}, in a day",
                may_be_empty=_TREND,
            ),
        ),
    ),
    Panel(
        kind="timeseries", title="Claims that wait, by class", width=8, height=9, unit="short", minimum=0, stacked=True,
        no_value="no claim waits",
        description="Claims that pods need and that are not ready, without those that wait for a quota or a scheduling "
        "gate. Where devices of the class are free, the cause lies elsewhere: the claims board tells.",
        queries=(Query(expr=_WAITING, legend="{{deviceclass}}", may_be_empty="no claim waits"),), links=(TO_CLAIMS,),
    ),
    Panel(
        kind="timeseries", title="How scattered the free devices are", width=12, height=8, unit="percentunit",
        minimum=0, maximum=1,
        description="Part of the free devices that one claim cannot have, since they lie on other nodes: 0 when all "
        "are on one node, near 1 when each node has a few. A claim gets 32 devices at most, so more than 32 count as "
        "32. High values beside large claims that wait mean: pack small claims onto fewer nodes.",
        queries=(Query(
            expr=f"clamp_min(1 - {_LARGEST} / clamp_max({_FREE} > 0, 32), 0)", legend="{{deviceclass}}",
            may_be_empty="nothing is free",
        ),),
    ),
    Panel(
        kind="table", title="Nodes by free devices", width=12, height=8, sort_by="Class",
        description="How many nodes have so many free devices of a class: where a claim for eight could land.",
        queries=(Query(
            expr=f'count_values by ({_BY_CLASS}) ("devices", sum by ({_BY_CLASS}, pool) ({_pools(_STATE_FREE)}))'
        ),),
        columns=(
            Column(source="deviceclass", title="Class"),
            Column(source="devices", title="Free devices on a node"),
            Column(source="A", title="Nodes"),
        ),
    ),
))  # fmt: skip

_HELD_BY: Final = (
    f'max by (cluster, namespace, driver, pool, device) (dra_claim_device_info{{{SCOPE}, admin_access="false"}})'
)
_CLAIMS_OF: Final = f"max by (cluster, namespace, resourceclaim, claim_uid) (dra_claim_info{{{SCOPE}}})"
_QUOTA: Final = "cluster, namespace, resourcequota, deviceclass"


def _quota(kind: str) -> str:
    return f'max by ({_QUOTA}) (dra_quota_devices{{{SCOPE}, type="{kind}"}})'


_WHO: Final = Row(title="Who takes it?", panels=(
    Panel(
        kind="timeseries", title="GPUs held by namespace", width=12, height=9, unit="short", minimum=0, stacked=True,
        description="GPUs that claims and device-plugin pods hold, used or not, of the twelve namespaces with "
        "most of them at the end of the chosen time. MIG devices count as their part of a GPU, shared GPUs once.",
        queries=(Query(
            expr=f"sum by (namespace) ({by_account.gpus('held')}) and "
            f"topk(12, sum by (namespace) ({by_account.gpus('held', at=' @ end()')}))",
            legend="{{namespace}}",
        ),),
    ),
    Panel(
        kind="table", title="Namespaces", width=12, height=9, sort_by="-Devices",
        description="Claims and their devices now; claims of which a pod waits, without those that wait for a quota or "
        "a scheduling gate; and over the chosen time the GPU-hours in which a holder used its device less than "
        f"{IDLE_BELOW:.0%}: what could be given back.",
        queries=(
            Query(expr=f"count by (cluster, namespace) ({_CLAIMS_OF})"),
            Query(expr=f"count by (cluster, namespace) ({_HELD_BY})"),
            Query(
                expr=f"count by (cluster, namespace) ({by_account.overdue(SCOPE)})", may_be_empty="no claim waits",
            ),
            Query(
                expr=by_account.hours("idle", by="cluster, namespace"),
                may_be_empty="every holder uses its devices",
            ),
        ),
        columns=(
            Column(source="namespace", title="Namespace", links=(TO_CLAIMS_OF_NAMESPACE,)),
            Column(source="A", title="Claims", width=90),
            Column(source="B", title="Devices", width=90),
            Column(source="C", title="Waiting", width=90, thresholds=CELL_WAITS),
            Column(source="D", title="Held for nothing", unit="h", width=140),
        ),
    ),
    Panel(
        kind="table", title="Quotas", width=24, height=5, sort_by="-Used", no_value="no quota limits devices",
        description="ResourceQuotas that limit devices of a class. A claim above one is not created; the pod waits "
        "with the cause quota.",
        queries=(
            Query(expr=_quota("hard"), may_be_empty="no quota limits devices"),
            Query(expr=_quota("used"), may_be_empty="no quota limits devices"),
            Query(expr=f"{_quota('used')} / ({_quota('hard')} > 0)", may_be_empty="no quota limits devices"),
        ),
        columns=(
            Column(source="namespace", title="Namespace"),
            Column(source="resourcequota", title="Quota"),
            Column(source="deviceclass", title="Class"),
            Column(source="A", title="Devices allowed"),
            Column(source="B", title="Devices counted"),
            Column(source="C", title="Used", unit="percentunit", bar=True, thresholds=USED_UP),
        ),
    ),
))  # fmt: skip

_MIG: Final = "cluster, node, uuid, model, mig_profile"
_PARTITIONS: Final = f'max by ({_MIG}) (gpu_info{{{CLUSTER}, mode="mig"}})'
_TAKEN: Final = (
    f"{_PARTITIONS} and on (cluster, node, uuid) max by (cluster, node, uuid) (gpu_allocation_info{{{CLUSTER}}})"
)
_BY_PROFILE: Final = "count by (cluster, model, mig_profile)"
_NO_MIG: Final = "no GPU is cut into MIG devices"
_SET: Final = "cluster, driver, pool, counter_set, counter"
_SHARED: Final = "cluster, driver, pool, device, capacity"


def _consumed(family: str, by: str) -> str:
    return f"max by ({by}) ({family}_consumed{{{CLUSTER}}}) / (max by ({by}) ({family}{{{CLUSTER}}}) > 0)"


_PARTS: Final = Row(title="Partitions and shares", panels=(
    Panel(
        kind="table", title="MIG profiles", width=8, height=8, sort_by="Profile", no_value=_NO_MIG,
        description="MIG devices that exist, by profile, and how many of them somebody holds. A profile that nobody "
        "holds beside one that is full is a reason to cut anew.",
        queries=(
            Query(expr=f"{_BY_PROFILE} ({_PARTITIONS})", may_be_empty=_NO_MIG),
            Query(expr=f"{_BY_PROFILE} ({_TAKEN})", may_be_empty=_NO_MIG),
            Query(expr=f"{_BY_PROFILE} ({_TAKEN}) / {_BY_PROFILE} ({_PARTITIONS})", may_be_empty=_NO_MIG),
        ),
        columns=(
            Column(source="model", title="Model"),
            Column(source="mig_profile", title="Profile", width=90),
            Column(source="A", title="Devices", width=80),
            Column(source="B", title="Held", width=60),
            Column(source="C", title="Part", unit="percentunit", bar=True, thresholds=_HELD_BAR),
        ),
    ),
    Panel(
        kind="table", title="Devices that several claims may share", width=8, height=8, sort_by="-Taken",
        no_value="no driver publishes shareable devices",
        description="Part of a device's capacity that claims have taken, for devices whose driver allows several "
        "claims on one.",
        queries=(Query(
            expr=_consumed("dra_device_shared_capacity", _SHARED), may_be_empty="no driver publishes shareable devices",
        ),),
        columns=(
            Column(source="pool", title="Node", links=(TO_NODE,)),
            Column(source="device", title="Device"),
            Column(source="capacity", title="Capacity"),
            Column(source="A", title="Taken", unit="percentunit", bar=True, thresholds=USED_UP),
        ),
    ),
    Panel(
        kind="table", title="Counters that partitions share", width=8, height=8, sort_by="-Taken",
        no_value="no driver publishes partitions",
        description="What allocated partitions have taken of the counters they share, such as the memory slices of one "
        "GPU. Where it is used up, the other partitions stay free and cannot be had.",
        queries=(Query(
            expr=_consumed("dra_pool_shared_capacity", _SET), may_be_empty="no driver publishes partitions",
        ),),
        columns=(
            Column(source="pool", title="Node", links=(TO_NODE,)),
            Column(source="counter_set", title="Set"),
            Column(source="counter", title="Counter"),
            Column(source="A", title="Taken", unit="percentunit", bar=True, thresholds=USED_UP),
        ),
    ),
))  # fmt: skip

BOARD: Final = Dashboard(
    uid="claimscope-capacity",
    title="claimscope / Capacity",
    description="What is left of each device class, how long it will last, and who takes it. "
    "It reads the recording rules of claimscope.",
    variables=(
        DATASOURCE_VARIABLE, CLUSTER_VARIABLE,
        Variable(
            name="class", label="Device class",
            query='label_values(dra_pool_devices{cluster=~"$cluster", deviceclass!=""}, deviceclass)',
        ),
        NAMESPACE_VARIABLE,
    ),
    annotations=(taints(), xids(CLUSTER + GRAVE, enabled=False)),
    time_from="now-24h",
    refresh="1m",
    rows=(_LEFT, _LASTS, _WHO, _PARTS),
)  # fmt: skip
