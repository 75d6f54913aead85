"""Which node and which devices does a waiting pod get, and what does the scheduler say if none?

As plain as a scheduler can be: the first node on which all claims of the pod fit. The texts of refusals are those of
the DynamicResources plugin of Kubernetes 1.36 (pkg/scheduler/framework/plugins/dynamicresources).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.claims.demand import demand_of
from claimscope.claims.fitting import DEVICES_PER_CLAIM, Attempt, Chosen, Matching, Stage, allocate
from claimscope.kube.objects import ClaimDevices, ClaimSpec, Node, ResourceClaim
from claimscope.sim.objects import ClaimScript, Object, PodScript, claim_object

_SHARES: Final = uuid.UUID("3f1d4f0e-6c55-5a77-8b0a-2f5a6b7c8d03")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What became of a pod: a node with devices, or a refusal as PodScheduled=False tells it."""

    node: str | None = None
    claims: tuple[ClaimScript, ...] = ()
    refusal: tuple[str, str] | None = None  # reason, message


class SchedulerCannotDecideError(Exception):
    """A selector could not be evaluated, so that a choice would be a guess; the text says which and why."""


class Scheduler:
    """Decides about one pod after the other; keeps what it gave away in the mirror it works on."""

    def __init__(self, cluster: Cluster, matching: Matching) -> None:
        self._cluster = cluster
        self._matching = matching

    def decide(self, pod: PodScript) -> Decision:
        """Finds devices for every claim of a pod, and gives them away. Raises SchedulerCannotDecideError."""
        specs = [spec_of(claim) for claim in pod.claims]
        for claim, spec in zip(pod.claims, specs, strict=True):
            refusal = self._refused_early(claim, spec)
            if refusal is not None:
                return Decision(refusal=refusal)
        nodes = [node for node in self._cluster.nodes.values() if _selected(node, pod.node_selector)]
        for node in nodes:
            attempt = allocate(self._cluster, self._matching, specs, node.metadata.name)
            if attempt.unknown:
                device, why = attempt.unknown[0]
                raise SchedulerCannotDecideError(f"pod {pod.namespace}/{pod.name}: device {device}: {why}")
            if attempt.errors:
                # One device on which a selector fails ends the search on every node.
                return Decision(refusal=self._error(pod.claims[0], attempt))
            if attempt.stage is Stage.FITS and attempt.chosen is not None:
                return self._give(pod, node.metadata.name, attempt.chosen)
        total = len(self._cluster.nodes)
        return Decision(refusal=("Unschedulable", cannot_allocate(total)))

    def take(self, claim: ClaimScript) -> None:
        """Notes that a claim has its devices."""
        held = claim_object(dataclasses.replace(claim, allocated=0.0), (), 0.0, 0.0)
        self._cluster.apply("resourceclaims", msgspec.convert(held, ResourceClaim), present=True)

    def _refused_early(self, claim: ClaimScript, spec: ClaimSpec) -> tuple[str, str] | None:
        total = len(self._cluster.nodes)
        demand = demand_of([spec], self._cluster.classes)
        for option in demand.options:
            if option.selectors is None:
                text = f"request {option.request}: device class {option.device_class} does not exist"
                return "Unschedulable", (
                    f"0/{total} nodes are available: {text}. no new claims to deallocate, preemption: "
                    f"0/{total} nodes are available: {total} Preemption is not helpful for scheduling."
                )
        if demand.devices > DEVICES_PER_CLAIM:
            return "SchedulerError", (
                f'running "DynamicResources" filter plugin: claim {claim.namespace}/{claim.name}: number of requested '
                f"devices {demand.devices} exceeds the claim limit of {DEVICES_PER_CLAIM}"
            )
        return None

    def _error(self, claim: ClaimScript, attempt: Attempt) -> tuple[str, str]:
        _, why = attempt.errors[0]
        return "SchedulerError", (
            f'running "DynamicResources" filter plugin: claim {claim.namespace}/{claim.name}: selector #0: '
            f"CEL runtime error: {why}"
        )

    def _give(self, pod: PodScript, node: str, chosen: Sequence[Chosen]) -> Decision:
        claims = tuple(
            dataclasses.replace(
                claim, node=node,
                results=tuple(self._result(claim, each) for each in chosen if each.claim == place),
            )
            for place, claim in enumerate(pod.claims)
        )
        for claim in claims:
            self.take(claim)
        return Decision(node=node, claims=claims)

    def _result(self, claim: ClaimScript, chosen: Chosen) -> Object:
        key = chosen.device.key
        result: Object = {
            "request": chosen.request, "driver": key.driver, "pool": key.pool, "device": key.device
        }
        if chosen.admin:
            result["adminAccess"] = True
        if chosen.tolerations:
            result["tolerations"] = [msgspec.to_builtins(each) for each in chosen.tolerations]
        if chosen.device.binding_conditions:
            result["bindingConditions"] = list(chosen.device.binding_conditions)
        if chosen.consumed is not None:
            result["shareID"] = str(uuid.uuid5(_SHARES, f"{claim.namespace}/{claim.name}/{key}"))
            result["consumedCapacity"] = {name: str(amount) for name, amount in chosen.consumed.items()}
        return result



def cannot_allocate(nodes: int) -> str:
    """The one text for every lack of devices."""
    return (
        f"0/{nodes} nodes are available: {nodes} cannot allocate all claims. still not schedulable, preemption: "
        f"0/{nodes} nodes are available: {nodes} Preemption is not helpful for scheduling."
    )


def spec_of(claim: ClaimScript) -> ClaimSpec:
    """The spec as the API server would decode it."""
    devices = {"requests": list(claim.requests), "constraints": list(claim.constraints)}
    return ClaimSpec(devices=msgspec.convert(devices, ClaimDevices))


def _selected(node: Node, wanted: Mapping[str, str]) -> bool:
    labels = node.metadata.labels or {}
    return all(labels.get(key) == value for key, value in wanted.items())
