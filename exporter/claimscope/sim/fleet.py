"""What does one node of a simulated cluster play? The same for its agent and for the cluster that shows its objects.

Nodes of one profile differ in the names of their pods and claims and in the UUIDs of their GPUs, and each gives its
idle devices to a stream of short jobs.
"""

from __future__ import annotations

import dataclasses

import msgspec

from claimscope.sim import layout
from claimscope.sim.default_pods import default_pods
from claimscope.sim.profiles import Profile, profile_named
from claimscope.sim.scenario import ClaimPlan, PodPlan, Scenario, check_scenario
from claimscope.sim.world import World

JOB_SECONDS = 11.0
JOB_PERIOD_SECONDS = 20.0
JOB_STREAMS = 2  # at most, a node
JOB_NAMESPACE = "batch"


def node_world(profile_name: str, node_name: str, scenario: Scenario | None = None) -> World:
    """The world of a node in a cluster. Raises ValueError where the profile or the scenario is wrong."""
    profile = dataclasses.replace(profile_named(profile_name), identity=f"{profile_name}/{node_name}")
    chosen = Scenario() if scenario is None else scenario
    check_scenario(chosen, profile, layout.FUNCTIONS)
    return World(profile=profile, scenario=_of_node(chosen, profile, node_name), node_name=node_name)


def _of_node(scenario: Scenario, profile: Profile, node_name: str) -> Scenario:
    plans = default_pods(profile) if scenario.pods is None else scenario.pods
    named = tuple(
        msgspec.structs.replace(
            plan,
            name=f"{plan.name}-{node_name}",
            claims=tuple(msgspec.structs.replace(claim, name=f"{claim.name}-{node_name}") for claim in plan.claims),
        )
        for plan in plans
    )
    return msgspec.structs.replace(scenario, pods=named + _jobs(plans, profile, node_name))


def _jobs(plans: tuple[PodPlan, ...], profile: Profile, node_name: str) -> tuple[PodPlan, ...]:
    """Short jobs, each with a claim of its own, on devices that no plan ever takes."""
    taken = {text.partition("::")[0] for plan in plans for claim in plan.claims for text in claim.devices}
    taken |= {text.partition("::")[0] for plan in plans for texts in plan.plugin.values() for text in texts}
    devices: list[str] = []
    for gpu in range(profile.gpu_count):
        cut = profile.mig_layout.get(gpu, ())
        devices += [f"mig:{gpu}/{place}" for place in range(len(cut))] if cut else [f"gpu:{gpu}"]
    idle = [device for device in devices if device not in taken][:JOB_STREAMS]
    phase = sum(node_name.encode()) % 10  # nodes take turns
    return tuple(
        PodPlan(
            namespace=JOB_NAMESPACE,
            name=f"job-{number}-{node_name}",
            workload="training",
            start=3.0 + phase + JOB_PERIOD_SECONDS / 2 * number,
            duration=JOB_SECONDS,
            period=JOB_PERIOD_SECONDS,
            claims=(ClaimPlan(name=f"job-{number}-gpu-{node_name}", devices=(device,)),),
        )
        for number, device in enumerate(idle)
    )
