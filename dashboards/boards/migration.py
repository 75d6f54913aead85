"""Migration: how far is the move from device plugin to DRA, what is left to do, and do both count the same?"""

from __future__ import annotations

from typing import Final

from dashboards import palette
from dashboards.boards.common import (
    CARE,
    PLAIN,
    TO_CLAIMS_OF_NAMESPACE,
    TO_NODE,
    counted,
    now,
    tile,
)
from dashboards.expressions import AGENTS_ANSWER, CLUSTER, CONTROLLER_ANSWERS, SCOPE, Quantity, gpus
from dashboards.grafana import (
    CLUSTER_VARIABLE,
    DATASOURCE_VARIABLE,
    NAMESPACE_VARIABLE,
    Annotation,
    Column,
    Dashboard,
    Panel,
    Query,
    Row,
    Step,
)

_KINDS: Final = ("claim", "extended_resource", "device_plugin")
_MODES: Final = ("dra", "both", "device_plugin", "none")
_COLOURS: Final = {name: palette.STATES[name] for name in (*_KINDS, *_MODES)}
_DCGM: Final = "neither dcgm-exporter is scraped nor does the agent run with --compat-dcgm"
_STATE: Final = "kube-state-metrics is not scraped, or no node runs the device plugin"
_MANAGER: Final = "kube-controller-manager is not scraped"


def _asked(family: str, selector: str = "") -> str:
    return f"max by (cluster, namespace, kind) ({family}{{{SCOPE}{selector}}})"


def _of_kind(family: str, by: str, kind: str) -> str:
    selector = f', kind="{kind}"'
    return f"sum by ({by}) ({_asked(family, selector)})"


def _held(selector: str = "") -> str:
    """Devices that somebody holds now."""
    return f"count(max by (cluster, node, uuid) (gpu_allocation_info{{{SCOPE}{selector}}}))"


_BY_CLAIM: Final = ', source="claim"'
_NODE_MODES: Final = f"max by (cluster, node, mode) (dra_node_mode_info{{{CLUSTER}}})"
_NOT_MOVED: Final = f'max by (cluster, node) (dra_node_mode_info{{{CLUSTER}, mode="device_plugin"}})'
_TWICE: Final = f"max by (cluster, node, resource) (dra_node_devices_advertised_twice{{{CLUSTER}}})"
_DRIFT: Final = f"max by (cluster, node, model, fact, value, majority) (dra_node_drift_info{{{CLUSTER}}})"
_WINDOW: Final = "5m"  # of figures that are compared: each exporter samples at moments of its own
_NO_TWICE: Final = "no device is offered twice"
_NO_DRIFT: Final = "the nodes of each model are alike"

_FAR: Final = Row(title="How far is the move?", panels=(
    tile(
        "Devices handed out by DRA", "Part of the devices that pods hold now, by the nodes' agents, that they have by "
        "DRA: through a claim, or through an extended resource that a device class backs.",
        now(f"({_held(_BY_CLAIM)} or {AGENTS_ANSWER}) / {_held()}", "by DRA", "nobody holds a device"),
        unit="percentunit", decimals=0, no_value="none held, or unknown", thresholds=(
            Step(colour=palette.STATES["device_plugin"]), Step(colour=palette.STATES["both"], value=0.01),
            Step(colour=palette.STATES["dra"], value=1),
        ),
    ),
    tile(
        "Pods on the device plugin", "Active pods that ask for accelerators the old way: they have to move before the "
        "plugin can go.",
        now(f"{_of_kind('dra_migration_pods', '', 'device_plugin')} or {CONTROLLER_ANSWERS}", "pods"),
        thresholds=(Step(colour=palette.GOOD), Step(colour=palette.STATES["device_plugin"], value=1)),
    ),
    tile(
        "Pods, extended resource", "Active pods that still write nvidia.com/gpu and get it by DRA "
        "(KEP-5004). They need no change.",
        now(f"{_of_kind('dra_migration_pods', '', 'extended_resource')} or {CONTROLLER_ANSWERS}", "pods"),
        thresholds=PLAIN,
    ),
    tile(
        "Nodes without DRA", "Nodes that only a device plugin serves.",
        now(counted(_NOT_MOVED), "nodes"),
        thresholds=(Step(colour=palette.GOOD), Step(colour=palette.STATES["device_plugin"], value=1)),
    ),
    tile(
        "Devices offered twice", "Devices that a node offers through the device plugin and through DRA at once. Both "
        "can give the same GPU to different pods.",
        now(f"sum({_TWICE}) or {CONTROLLER_ANSWERS}", "devices"),
        thresholds=(Step(colour=palette.GOOD), Step(colour=palette.BAD, value=1)),
    ),
    tile(
        "Nodes that differ", "Nodes of which some fact differs from most nodes of the same GPU model: driver, VBIOS, "
        "MIG mode, power limit.",
        now(counted(f"count by (cluster, node) ({_DRIFT})"), "nodes"), thresholds=CARE,
    ),
    Panel(
        kind="timeseries", title="Nodes by how they hand out devices", width=8, height=8, unit="short", minimum=0,
        stacked=True,
        description="dra: by DRA alone. both: a device plugin and a DRA driver side by side. device_plugin: not moved "
        "yet. none: a label says GPU, and nothing offers one.",
        queries=(Query(expr=f"count by (mode) ({_NODE_MODES})", legend="{{mode}}"),), colours=_COLOURS,
    ),
    Panel(
        kind="timeseries", title="Devices by how pods ask", width=8, height=8, unit="short", minimum=0, stacked=True,
        description="Accelerators that active pods hold or ask for: through a claim, through an extended resource that "
        "DRA backs, or through the device plugin.",
        queries=(Query(expr=f"sum by (kind) ({_asked('dra_migration_devices')})", legend="{{kind}}"),),
        colours=_COLOURS,
    ),
    Panel(
        kind="timeseries", title="Pods by how they ask", width=8, height=8, unit="short", minimum=0, stacked=True,
        description="Active pods that use accelerators.",
        queries=(Query(expr=f"sum by (kind) ({_asked('dra_migration_pods')})", legend="{{kind}}"),), colours=_COLOURS,
    ),
))  # fmt: skip

_LEFT: Final = Row(title="What is left to do?", panels=(
    Panel(
        kind="table", title="Namespaces", width=7, height=10, sort_by="-Device plugin",
        description="Devices that pods of the namespace hold or ask for, by how they ask: whom to talk to next.",
        queries=tuple(
            Query(expr=_of_kind("dra_migration_devices", "cluster, namespace", kind), may_be_empty=f"no pod: {kind}")
            for kind in _KINDS
        ),
        columns=(
            Column(source="namespace", title="Namespace", links=(TO_CLAIMS_OF_NAMESPACE,)),
            Column(source="A", title="Claims", width=80),
            Column(source="B", title="Extended", width=90),
            Column(source="C", title="Device plugin", width=110, thresholds=(
                Step(colour="text"), Step(colour=palette.STATES["device_plugin"], value=1),
            )),
        ),
    ),
    Panel(
        kind="table", title="Offered twice", width=7, height=10, sort_by="-Devices", no_value=_NO_TWICE,
        description="Take the node out of the device plugin (its DaemonSet's node selector) before its DRA driver gets "
        "work, or keep the plugin and take the node's DRA driver away.",
        queries=(Query(expr=f"{_TWICE} > 0", may_be_empty=_NO_TWICE),),
        columns=(
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="resource", title="Resource"),
            Column(source="A", title="Devices", width=80),
        ),
    ),
    Panel(
        kind="table", title="Nodes that differ from the others of their model", width=10, height=10, sort_by="Node",
        no_value=_NO_DRIFT,
        description="What the node has, and what most have. Selectors of claims see these facts, so a claim may match "
        "some nodes of a model and not others.",
        queries=(Query(expr=_DRIFT, may_be_empty=_NO_DRIFT),),
        columns=(
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="model", title="Model"),
            Column(source="fact", title="Fact"),
            Column(source="value", title="Here"),
            Column(source="majority", title="Elsewhere"),
        ),
    ),
))  # fmt: skip


def _sum(quantity: Quantity) -> str:
    return f"sum by (source) ({gpus(quantity, SCOPE, 'namespace_source')})"


def _of_dcgm(family: str) -> str:
    """dcgm-exporter's series with our label for the device."""
    # Rows of MIG devices carry the UUID of their GPU.
    whole = f'{family}{{{CLUSTER}, GPU_I_ID=""}}[{_WINDOW}]'
    # A series of a GPU ends with its pod, so the mean of the GPU is that of all its series together.
    total, count = (
        f"sum by (cluster, UUID) (max without (instance, job) ({what}_over_time({whole})))" for what in ("sum", "count")
    )
    return f'max by (cluster, uuid) (label_replace({total} / {count}, "uuid", "$1", "UUID", "(.+)"))'


def _ours(family: str, selector: str = "") -> str:
    return f"max by (cluster, uuid) (avg_over_time({family}{{{CLUSTER}{selector}}}[{_WINDOW}]))"


_PARITY: Final = (
    ("GPU utilization", f"{_of_dcgm('DCGM_FI_DEV_GPU_UTIL')} / 100",
     _ours("gpu_utilization_ratio", ', engine="gpu"'), "1"),
    ("memory used", f"{_of_dcgm('DCGM_FI_DEV_FB_USED')} * 1048576", _ours("gpu_memory_used_bytes"),
     _ours("gpu_memory_total_bytes")),
    ("power", _of_dcgm("DCGM_FI_DEV_POWER_USAGE"), _ours("gpu_power_average_watts"),
     _ours("gpu_power_limit_watts", ', kind="enforced"')),
)  # fmt: skip

_SAME: Final = Row(title="Do both ways count the same?", panels=(
    Panel(
        kind="timeseries", title="GPUs held", width=8, height=8, unit="short", minimum=0,
        description="GPUs that claims hold and that pods of the device plugin hold, as the agents account for them; "
        "MIG devices count as their part of a GPU. While work moves, one line rises as the other falls.",
        queries=(Query(expr=_sum("held"), legend="{{source}}"),),
        colours=_COLOURS,
    ),
    Panel(
        kind="timeseries", title="Busy while held", width=8, height=8, unit="percentunit", minimum=0, maximum=1,
        description="Part of the held time in which the GPUs worked, both ways. MIG devices on which that cannot be "
        "measured are left out.",
        queries=(Query(expr=f"{_sum('busy')} / ({_sum('measured')} > 0)", legend="{{source}}"),),
        colours=_COLOURS,
    ),
    Panel(
        kind="bargauge", title="Greatest difference to dcgm-exporter", width=8, height=8, unit="percentunit",
        minimum=0, no_value="no DCGM_* series",
        thresholds=PLAIN,
        description="Of any GPU, between dcgm-exporter's figure and ours, as a part of the whole GPU, each averaged "
        "over the last five minutes. Both sample at moments of their own, so a little is usual where work comes and "
        "goes; more than that is an error.",
        queries=tuple(
            Query(
                expr=f"max(abs({theirs} - on (cluster, uuid) {ours}))" if whole == "1" else
                f"max(abs({theirs} - on (cluster, uuid) {ours}) / on (cluster, uuid) {whole})",
                legend=name, instant=True, may_be_empty=_DCGM,
            )
            for name, theirs, ours, whole in _PARITY
        ),
    ),
    Panel(
        kind="bargauge", title="Devices that nodes offer", width=12, height=8, unit="short", minimum=0,
        thresholds=PLAIN,
        description="What kube-state-metrics says nodes offer now through device plugins, and what drivers publish for "
        "DRA, by pool. A pool counts with its largest class, since classes overlap.",
        queries=(
            Query(
                expr="sum by (resource) (max by (cluster, node, resource) "
                f'(kube_node_status_allocatable{{{CLUSTER}, resource=~"nvidia_com_.*"}}))',
                legend="device plugin, {{resource}}", instant=True, may_be_empty=_STATE,
            ),
            Query(
                expr="sum by (driver) (max by (cluster, driver, pool) (sum by (cluster, driver, pool, deviceclass) "
                f"(max by (cluster, driver, pool, deviceclass, state) (dra_pool_devices{{{CLUSTER}}}))))",
                legend="DRA, {{driver}}", instant=True,
            ),
        ),
    ),
    Panel(
        kind="bargauge", title="Claims by where they come from", width=12, height=8, unit="short", minimum=0,
        thresholds=PLAIN,
        description="Claims made by hand, from a template, or by the scheduler for an extended resource; beside them "
        "the number that kube-controller-manager counts, under the name that its version uses.",
        queries=(
            Query(
                expr="count by (source) (max by (cluster, namespace, resourceclaim, claim_uid, source) "
                f"(dra_claim_info{{{CLUSTER}}}))", legend="{{source}}", instant=True,
            ),
            Query(
                expr="sum(max by (cluster, allocated, admin_access, source) "
                f"(resourceclaim_controller_resource_claims{{{CLUSTER}}})) or "
                "sum(max by (cluster, allocated, admin_access, source) "
                f"(dynamic_resource_allocation_resource_claims{{{CLUSTER}}}))",
                legend="all, by kube-controller-manager", instant=True, may_be_empty=_MANAGER,
            ),
        ),
    ),
))  # fmt: skip

_EARLIER: Final = f"max by (cluster, node) (dra_node_mode_info{{{CLUSTER}}} offset 60s)"
_MOVES: Final = Annotation(
    name="Nodes that moved",
    expr=f"({_NODE_MODES} unless max by (cluster, node, mode) (dra_node_mode_info{{{CLUSTER}}} offset 60s)) "
    f"and on (cluster, node) {_EARLIER}",
    title="{{node}}: {{mode}}",
    text="the node hands out devices in another way",
    colour=palette.NEUTRAL,
    may_be_empty="no node moved",
)

BOARD: Final = Dashboard(
    uid="claimscope-migration",
    title="claimscope / Migration to DRA",
    description="How far the move from device plugin to DRA is, what is left to do, and whether both count the same. "
    "It reads the recording rules of claimscope.",
    variables=(
        DATASOURCE_VARIABLE, CLUSTER_VARIABLE, NAMESPACE_VARIABLE,
    ),
    annotations=(_MOVES,),
    time_from="now-7d",
    refresh="1m",
    rows=(_FAR, _LEFT, _SAME),
)  # fmt: skip
