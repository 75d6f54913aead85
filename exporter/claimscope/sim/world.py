"""What does the simulated node look like at time t? One pure function of profile, scenario and time.

Devices do what the pods that hold them do (workloads.py), bent by the faults of the scenario. A World remembers what it
has already worked out, which changes how fast it answers and never what.
"""

from __future__ import annotations

from typing import Any

from claimscope.sim import layout
from claimscope.sim.device_states import gpu_states
from claimscope.sim.driver_events import events_of
from claimscope.sim.history import History
from claimscope.sim.moment import EntityState, SimClaim, SimEvent, SimPod, WorldState
from claimscope.sim.pods import pod_of, slices_of
from claimscope.sim.profiles import MigPlace, Profile, profile_named
from claimscope.sim.published import claim_object
from claimscope.sim.scenario import Fault, Scenario, check_scenario
from claimscope.sim.timeline import Timeline, cell_of


class World:
    """A node under a scenario."""

    def __init__(self, *, profile: Profile, scenario: Scenario, node_name: str = "claimscope-node") -> None:
        self.profile = profile
        self.scenario = scenario
        self.node_name = node_name
        self._timeline = Timeline(profile, scenario)
        self._history = History(self._timeline)
        self._pods: tuple[tuple[int | None, ...], tuple[SimPod, ...]] | None = None  # the newest, and what they rest on

    # ---- what the cluster shows

    def pods(self, t_seconds: float) -> tuple[SimPod, ...]:
        """The pods that are active at `t_seconds`."""
        timeline = self._timeline
        runs = timeline.runs(cell_of(t_seconds))
        key = (*runs, *(timeline.layout_number(gpu, t_seconds) for gpu in range(self.profile.gpu_count)))
        if self._pods is None or self._pods[0] != key:
            made = tuple(
                pod_of(timeline, self.node_name, plan, run, t_seconds)
                for plan, run in zip(timeline.plans, runs, strict=True)
                if run is not None
            )
            self._pods = (key, made)
        return self._pods[1]

    def claims(self, t_seconds: float) -> tuple[dict[str, Any], ...]:
        """The ResourceClaims behind the pods, as allocated and reserved; resource.k8s.io/v1."""
        found: dict[str, tuple[SimClaim, list[SimPod]]] = {}
        for pod in self.pods(t_seconds):
            for container in pod.containers:
                for claim in container.claims:
                    found.setdefault(claim.uid, (claim, []))[1].append(pod)
        return tuple(claim_object(claim, users) for claim, users in found.values())

    def slices(self, node_name: str | None = None, t_seconds: float = 0.0) -> tuple[dict[str, Any], ...]:
        """The node's ResourceSlices as NVIDIA's driver publishes them, resource.k8s.io/v1."""
        return slices_of(self._timeline, node_name or self.node_name, t_seconds)

    # ---- what the driver shows

    def mig_places(self, gpu: int, t_seconds: float) -> tuple[MigPlace, ...]:
        """The MIG devices that a GPU is cut into; none: MIG is off."""
        return self._timeline.places(gpu, t_seconds)

    def driver(self, t_seconds: float) -> tuple[int, str, int]:
        """(what nvmlInit answers, driver version, generation of the driver)."""
        return self._timeline.driver(t_seconds)

    def last_reset(self, gpu: int, t_seconds: float) -> float:
        """When the counters of a GPU last began anew: 0, a GPU that came back, or a driver that was loaded."""
        return self._timeline.last_reset(gpu, t_seconds)

    def faults_of(self, gpu: int, t_seconds: float) -> tuple[Fault, ...]:
        """The faults of one GPU that have begun, over or not; what counts them decides."""
        return self._timeline.faults_of(gpu, t_seconds)

    def events(self, after: float, until: float) -> tuple[SimEvent, ...]:
        """What the driver reports in the span (after, until]."""
        return events_of(self._timeline, after, until)

    def state(self, t_seconds: float) -> WorldState:
        """Everything at `t_seconds`."""
        answer, version, generation = self._timeline.driver(t_seconds)
        entities: list[EntityState] = []
        for gpu in range(self.profile.gpu_count):
            entities.extend(gpu_states(self._history, gpu, t_seconds))
        return WorldState(
            t_seconds=t_seconds,
            init_return=answer,
            driver_version=version,
            driver_generation=generation,
            entities=tuple(entities),
        )


def make_world(profile_name: str, scenario: Scenario | None = None, *, node_name: str = "claimscope-node") -> World:
    """A node of the named profile. Raises ValueError where the name or the scenario is wrong."""
    profile = profile_named(profile_name)
    chosen = scenario if scenario is not None else Scenario()
    check_scenario(chosen, profile, layout.FUNCTIONS)
    return World(profile=profile, scenario=chosen, node_name=node_name)
