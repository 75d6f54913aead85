"""Which fences stand that nothing asks for now, and is each of them lifted, changed or kept?"""

from __future__ import annotations

from dataclasses import replace

from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.fences import EFFECT_SINCE, FINDING_UUID, blocks, rules_of
from claimscope.taints.inputs import Inputs
from claimscope.taints.inventory import Site
from claimscope.taints.memory import Memory
from claimscope.taints.model import PINNED, Action, Do, Fence, Mode, NodeReport
from claimscope.taints.policy import effect_of
from claimscope.taints.wants import Silence, Wanted, moved, pool_of


class Lifting:
    """Fences that no finding asks for now: lifted, unless their agent is silent; their names are kept right."""

    def __init__(self, inputs: Inputs, memory: Memory, found: Wanted) -> None:
        self._inputs = inputs
        self._unplaced = found.standing
        self._silence = Silence(inputs.all_overrides(), memory.ignores)
        self.actions: list[Action] = []
        self.kept: list[Fence] = []
        self.let_go: set[str] = set()  # names of those that are lifted, or were and are not gone yet

    def delete(self, fence: Fence, reason: str) -> None:
        """Lifts; one that waits for somebody's finalizer stands, and is not deleted again."""
        self.let_go.add(fence.name)
        if fence.going:
            self.kept.append(fence)
        else:
            self.actions.append(Action(do=Do.DELETE, fence=fence, reason=reason))

    def judge(self, fence: Fence) -> None:
        """Keeps, changes or lifts."""
        reason = self._reason_to_lift(fence)
        if reason is not None:
            self.delete(fence, reason)
            return
        self.kept.append(fence if fence.going else self._lowered(self._named(fence)))

    def _reason_to_lift(self, fence: Fence) -> str | None:
        inputs = self._inputs
        if inputs.nodes_known and fence.node not in inputs.nodes:
            return f"node {fence.node} is gone"
        if rules_of(fence) == (PINNED,):
            return "nobody declares it unhealthy any more"
        if self._site_gone(fence):
            return f"{fence.uuid} is not published any more"
        said = [self._silence.of(fence.uuid, rule) for rule in rules_of(fence)]
        if all(said):
            return said[0]
        if self._mode(fence) is Mode.OBSERVE:
            return inputs.ceiling_text or "the mode is observe"
        report = inputs.reports.get(fence.node)
        if report is None or report.stale or report.partial:
            return None  # what an agent does not say is not over
        uuid = fence.annotations.get(FINDING_UUID, fence.uuid)
        if (fence.node, uuid, fence.severity) in self._unplaced:
            return None
        return self._why_over(report, uuid, fence)

    def _why_over(self, report: NodeReport, uuid: str, fence: Fence) -> str:
        same = [finding for finding in report.findings if finding.uuid == uuid]
        if any(finding.systemic for finding in same if finding.severity is fence.severity):
            return f"{fence.value} has one cause for many GPUs of node {fence.node}"
        worst = max((finding.severity for finding in same), key=lambda severity: severity.rank, default=Severity.OK)
        if worst is Severity.OK:
            return f"no finding of node {fence.node} is against {uuid} any more"
        return f"{fence.value} is over, or ignored; {uuid} is {worst.value}"

    def _mode(self, fence: Fence) -> Mode:
        report = self._inputs.reports.get(fence.node)
        group = report.group if report is not None else ""
        modes = [self._inputs.mode_of(group, rule) for rule in rules_of(fence)]
        return next((mode for mode in (Mode.ENFORCE, Mode.ANNOUNCE) if mode in modes), Mode.OBSERVE)

    def _site_gone(self, fence: Fence) -> bool:
        """Its name means another device now, or all of its pool is published and its uuid is not."""
        inventory = self._inputs.inventory
        if any(_is_about(fence, site) for site in inventory.sites(fence.uuid, fence.node)):
            return False
        there = inventory.at(fence.device)
        return there is not None or inventory.complete(pool_of(fence.device))

    def _named(self, fence: Fence) -> Fence:
        for site in self._inputs.inventory.sites(fence.uuid, fence.node):
            if _is_about(fence, site) and site.device != fence.device:
                renamed = moved(fence, site.device)
                reason = f"{fence.uuid} is {site.device} now, no more {fence.device}"
                self.actions.append(Action(do=Do.UPDATE, fence=renamed, reason=reason))
                return renamed
        return fence

    def _lowered(self, fence: Fence) -> Fence:
        """With no more effect than is allowed now, though its agent be silent."""
        mode = self._mode(fence)
        if not blocks(fence.effect):
            return fence
        if effect_of(mode, fence.severity) == "None":
            effect, reason = "None", f"the mode is {mode.value}"
        elif fence.effect == "NoExecute" and not any(map(self._inputs.policy.evicts, rules_of(fence))):
            effect, reason = "NoSchedule", "the policy asks for NoExecute no more"
        else:
            return fence
        annotations = {**fence.annotations, EFFECT_SINCE: f"{self._inputs.now_wall:.0f}"}
        lowered = fences.sealed(replace(fence, effect=effect, annotations=annotations))
        self.actions.append(Action(do=Do.UPDATE, fence=lowered, reason=reason))
        return lowered


def _is_about(fence: Fence, site: Site) -> bool:
    """Whether a fence is the one of a device, whatever that is called now."""
    return fences.base_of(fence.name) == fences.base_name(fence.node, site.identity, fence.severity)
