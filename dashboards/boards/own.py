"""claimscope itself: can its figures be trusted, what does it cost, and does it keep its promises?"""

from __future__ import annotations

from typing import Final

from dashboards import palette
from dashboards.boards.common import (
    ALARM,
    CELL_ALARM,
    CELL_CARE,
    LEADS,
    NODES_VARIABLE,
    TO_CLAIMS,
    TO_HEALTH,
    TO_NODE,
    TO_NODE_OF_SERIES,
    counted,
    now,
    silent_for,
    tile,
)
from dashboards.boards.own_work import AGENTS, CONTROLLER, OTLP
from dashboards.expressions import CLUSTER, RANGE, RATE
from dashboards.grafana import (
    CLUSTER_VARIABLE,
    DATASOURCE_VARIABLE,
    Annotation,
    Column,
    Dashboard,
    Panel,
    Query,
    Row,
    Step,
)
from dashboards.own_series import (
    BEAT_AGE,
    CODE,
    FAILING,
    NODES,
    TARGET,
    agent,
    agent_rate,
    controller,
    controller_rate,
)

_AGENTS: Final = f'{NODES}, job=~".*claimscope-agent.*"'
_CONTROLLERS: Final = f'{CLUSTER}, job=~".*claimscope-controller.*"'
_OBJECTIVE: Final = 0.99  # of the allocations are bound within _BOUND_SECONDS
_BOUND_SECONDS: Final = 30


def _grown(name: str, by: str, selector: str = "") -> str:
    """How much a counter of the agents grew in the time of the board."""
    grown = f"max by (cluster, node, {by}) (increase(claimscope_agent_{name}{{{NODES}{selector}}}[{RANGE}]))"
    return f"round(sum by (cluster, node) ({grown})) > 0"


def _bound(part: str, window: str) -> str:
    """Allocations whose pod was bound, by class and per second: all of them (count), or those in time (bucket)."""
    in_time = f', le=~"{_BOUND_SECONDS}(\\\\.0)?"' if part == "bucket" else ""
    family = f'dra_allocation_duration_seconds_{part}{{{CLUSTER}, phase="binding"{in_time}}}'
    return f"sum by (cluster, deviceclass) (max by (cluster, deviceclass) (rate({family}[{window}])))"


_KUBELET_AGE: Final = (
    "time() - max by (cluster, node) (claimscope_agent_attribution_last_success_timestamp_seconds"
    f'{{{NODES}, source="pod-resources"}})'
)

_BEAT_LATE: Final = 90  # seconds; agents renew once a minute
_KUBELET_LATE: Final = 30  # seconds; agents ask once a second
_NO_TROUBLE: Final = "no agent is in trouble"

_TARGETS: Final = f'max by ({TARGET}) (up{{{CLUSTER}, job=~".*claimscope-agent.*"}})'

_TRUST: Final = Row(title="Can the figures be trusted?", panels=(
    tile(
        "Agents that do not answer", "Agents that Prometheus cannot scrape.",
        now(counted(f"{_TARGETS} == 0", f"0 * max({_TARGETS})"), "silent"),
        thresholds=ALARM,
    ),
    tile(
        "Nodes unmonitored", "Nodes with GPUs whose agent does not renew its Lease, or was never there.",
        now(f'sum(max by (cluster, agent) (dra_gpu_nodes{{{CLUSTER}, agent!="heard"}}))', "nodes"),
        thresholds=ALARM, links=(TO_HEALTH,),
    ),
    tile(
        "Leading controllers", "Exactly one replica of a cluster leads, watches the cluster and serves its series. "
        "Shown for the cluster that has the fewest.",
        now(f"min(sum by (cluster) ({controller('leader')}))", "leaders"), no_value="none",
        no_value_colour=palette.BAD, thresholds=LEADS,
    ),
    tile(
        "Watches that are not open", "Kinds of objects whose changes the leader does not see now.",
        now(counted(f"{controller('watch_up', ', resource')} == 0 and on ({TARGET}) {controller('leader')} == 1"),
            "watches"),
        thresholds=ALARM,
    ),
    tile(
        "Oldest answer of a kubelet", "The longest that any agent has not heard who holds its devices. Beyond five "
        "minutes an alert says so.",
        now(f"max({_KUBELET_AGE})", "ago"), unit="s", decimals=0, thresholds=silent_for(_KUBELET_LATE, 300),
    ),
    tile(
        "Allocations bound in time", f"Part of the allocations, over the chosen time, after which the pod was bound to "
        f"its node within {_BOUND_SECONDS} s. The objective is {_OBJECTIVE:.0%}.",
        now(
            f"sum({_bound('bucket', RANGE)}) / (sum({_bound('count', RANGE)}) > 0)", "in time",
            "nothing was allocated in this time",
        ),
        unit="percentunit", decimals=1, no_value="no allocation", links=(TO_CLAIMS,),
        thresholds=(Step(colour=palette.BAD), Step(colour=palette.WARNING, value=0.95),
                    Step(colour=palette.GOOD, value=_OBJECTIVE)),
    ),
    Panel(
        kind="table", title="Agents in trouble", width=14, height=9, sort_by="Node", no_value=_NO_TROUBLE,
        description="Agents with anything that should not be, and what it is; an empty cell is in order. Readings that "
        "fail are those that the driver should give. Restarts are counted over the chosen time.",
        queries=tuple(
            Query(expr=expr, may_be_empty=_NO_TROUBLE) for expr in (
                f"{BEAT_AGE} > {_BEAT_LATE}",
                f"{_KUBELET_AGE} > {_KUBELET_LATE}",
                f"{agent('nvml_up')} == 0",
                f"{agent('quarantined_devices')} > 0",
                f"sum by (cluster, node) ({agent('missing_readings', ', reason', FAILING)}) > 0",
                f"{agent('sampler_shed')} == 1",
                _grown("sampler_restarts_total", "reason"),
            )
        ),
        columns=(
            Column(source="node", title="Node", links=(TO_NODE,)),
            Column(source="A", title="Last heartbeat", unit="s", width=120, thresholds=silent_for(_BEAT_LATE, 120)),
            Column(source="B", title="Kubelet answered", unit="s", width=130,
                   thresholds=silent_for(_KUBELET_LATE, 300)),
            Column(source="C", title="NVML", width=80, words={0.0: "silent"}, colours={"silent": palette.BAD}),
            Column(source="D", title="GPUs left alone", width=120, thresholds=CELL_ALARM),
            Column(source="E", title="Failing readings", width=130, thresholds=CELL_CARE),
            Column(source="F", title="Sampling", width=100, words={1.0: "slowed"}, colours={"slowed": palette.WARNING}),
            Column(source="G", title="Restarts", width=80, thresholds=CELL_CARE),
        ),
    ),
    Panel(
        kind="timeseries", title="Allocation objective: how fast the error budget burns", width=10, height=9,
        unit="short", minimum=0, no_value="no allocation",
        description=f"Allocations of the last hour bound later than {_BOUND_SECONDS} s, as a multiple of the "
        f"{1 - _OBJECTIVE:.0%} that may be. At 1 the budget of a month lasts a month; at 14.4 for an hour somebody is "
        "called.",
        queries=(Query(
            expr=f"(1 - {_bound('bucket', '1h')} / ({_bound('count', '1h')} > 0)) / (1 - {_OBJECTIVE})",
            legend="{{deviceclass}}", may_be_empty="nothing was allocated in this time",
        ),),
        thresholds=(Step(colour="transparent"), Step(colour=palette.WARNING, value=1),
                    Step(colour=palette.BAD, value=14.4)),
    ),
))  # fmt: skip

_COST: Final = Row(title="What does it cost?", panels=(
    Panel(
        kind="timeseries", title="How long a scrape takes", width=8, unit="s", minimum=0,
        description="From a scrape's arrival to its last byte: the mean over the agents, the slowest agent, and the "
        "controller.",
        queries=(
            Query(
                expr=f"sum({agent_rate('scrape_seconds_total')}) / (sum({agent_rate('scrapes_total', CODE)}) > 0)",
                legend="agents, mean",
            ),
            Query(
                expr=f"max({agent_rate('scrape_seconds_total')} / "
                f"(sum by (cluster, node) ({agent_rate('scrapes_total', CODE)}) > 0))",
                legend="agents, slowest",
            ),
            Query(
                expr=f"max({controller_rate('scrape_seconds_total')} / "
                f"(sum by ({TARGET}) ({controller_rate('scrapes_total', CODE)}) > 0))",
                legend="controller",
            ),
        ),
    ),
    Panel(
        kind="timeseries", title="Time spent making expositions", width=8, unit="percentunit", minimum=0,
        description="Part of one CPU core that goes into rendering. An exposition is made once for all scrapers.",
        queries=(
            Query(expr=f"avg({agent_rate('render_seconds_total')})", legend="agents, mean"),
            Query(expr=f"max({agent_rate('render_seconds_total')})", legend="agents, highest"),
            Query(expr=f"max({controller_rate('render_seconds_total')})", legend="controller"),
        ),
    ),
    Panel(
        kind="timeseries", title="Series by layer", width=8, unit="short", minimum=0, stacked=True,
        description="What Prometheus has to store. Series of devices stay; series of accounts, edges and claims come "
        "and go with claims.",
        queries=(
            Query(expr=f"sum by (layer) ({agent('series', ', layer')})", legend="agents, {{layer}}"),
            Query(expr=f"sum by (layer) ({controller('series', ', layer')})", legend="controller, {{layer}}"),
        ),
    ),
    Panel(
        kind="timeseries", title="CPU", width=8, unit="percentunit", minimum=0,
        description="Part of one CPU core: the agent's two processes, its sampler by itself, and the controller.",
        queries=(
            Query(
                expr=f"avg(max by (cluster, node) (rate(process_cpu_seconds_total{{{_AGENTS}}}[{RATE}]))"
                f" + {agent_rate('sampler_cpu_seconds_total')})",
                legend="agents, mean",
            ),
            Query(expr=f"avg({agent_rate('sampler_cpu_seconds_total')})", legend="their samplers, mean"),
            Query(
                expr=f"max(max by ({TARGET}) (rate(process_cpu_seconds_total{{{_CONTROLLERS}}}[{RATE}])))",
                legend="controller",
            ),
        ),
    ),
    Panel(
        kind="timeseries", title="Memory", width=8, unit="bytes", minimum=0,
        description="Resident memory. The sampler's process is not in the agents' figure.",
        queries=(
            Query(
                expr=f"max(max by ({TARGET}) (process_resident_memory_bytes{{{_AGENTS}}}))", legend="agents, highest",
            ),
            Query(
                expr=f"max(max by ({TARGET}) (process_resident_memory_bytes{{{_CONTROLLERS}}}))", legend="controller",
            ),
        ),
    ),
    Panel(
        kind="bargauge", title="Driver time", width=8, unit="percentunit", minimum=0, decimals=2,
        links=(TO_NODE_OF_SERIES,),
        description="The ten GPUs on which the sampler spends most of its time inside the driver, now. Above 1 % it "
        "samples more rarely by itself.",
        queries=(Query(
            expr=f"topk(10, {agent_rate('driver_seconds_total', ', uuid')})", legend="{{node}} {{uuid}}", instant=True,
        ),),
        thresholds=(Step(colour=palette.GOOD), Step(colour=palette.WARNING, value=0.01)),
    ),
))  # fmt: skip

_RESTARTS: Final = Annotation(
    name="Restarts of agents",
    expr=f"time() - max by (cluster, node) (process_start_time_seconds{{{_AGENTS}}}) < 60",
    title="Agent started",
    text="{{node}}",
    colour=palette.NEUTRAL,
    may_be_empty="no agent started",
)

BOARD: Final = Dashboard(
    uid="claimscope-self",
    title="claimscope / claimscope itself",
    description="Whether its figures can be trusted, what it costs, and whether it keeps its promises.",
    variables=(
        DATASOURCE_VARIABLE, CLUSTER_VARIABLE, NODES_VARIABLE,
    ),
    annotations=(_RESTARTS,),
    rows=(_TRUST, _COST, AGENTS, CONTROLLER, OTLP),
)  # fmt: skip
