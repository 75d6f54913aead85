"""How does an agent fence the GPUs of its own node, in a cluster without the controller?

The controller's code over a mirror of one node: its slices, its rules, itself. What the agent judges comes straight
from it; what must be remembered, and what people ask for, stands in the agent's own Lease. The API server holds it to
its node by deploy/manifests/admission-policy.yaml. Since it sees one node only, the budgets of groups and of the fleet
bound nothing, nor do systemic holds and the share of silent agents; the budget of the node, rate and breaker do, over
this node's GPUs. Claims are not read: pods get no Events, NoExecute is never written, no violations are counted, and
no maintenance is carried out.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.clock import Clock
from claimscope.config import Config
from claimscope.health.report import FINDINGS_ANNOTATION
from claimscope.kube.api import ApiClient
from claimscope.kube.follow import WatchStatus, follow
from claimscope.kube.kinds import WatchedKind, watched_kinds
from claimscope.kube.lease import micro_time
from claimscope.kube.objects import LabelledMeta, Lease, LeaseSpec
from claimscope.metrics import controller, own
from claimscope.model import Sample
from claimscope.taints.fences import NODE
from claimscope.taints.model import Mode
from claimscope.taints.notebook import Notebook
from claimscope.taints.policy import Policy
from claimscope.taints.sources import PolicySource
from claimscope.taints.worker import Fencing
from claimscope.yamlfile import ConfigError

COMPONENT: Final = "claimscope-agent"  # in Events
NODE_CHARACTERS_MAX: Final = 63  # of a label's value
NOTES_SECONDS: Final = 5.0  # every agent reads its Lease so often; with the pause of a round, pausing acts in 10 s


class OwnNodePolicies(PolicySource):
    """The policy as far as it can bound a single node: its group and its fleet are itself."""

    def current(self, now_wall: float) -> Policy:
        """The policy now."""
        policy = super().current(now_wall)
        budgets = msgspec.structs.replace(policy.budgets, group_share=1.0, fleet_share=1.0)
        return msgspec.structs.replace(policy, budgets=budgets)


def own_kinds(node: str) -> tuple[WatchedKind, ...]:
    """What is followed: the rows of the controller's table that fencing reads, of one node."""
    selectors = {
        "resourceslices": {"fieldSelector": f"spec.nodeName={node}"},
        "devicetaintrules": {"labelSelector": f"{NODE}={node}"},
        "nodes": {"fieldSelector": f"metadata.name={node}"},
    }
    return tuple(
        dataclasses.replace(kind, params=selectors[kind.name])
        for kind in watched_kinds("") if kind.name in selectors
    )  # fmt: skip


class LocalFencing:
    """The agent's own fencing. One event loop owns it."""

    def __init__(
        self, api: ApiClient, clock: Clock, *, node: str, lease_namespace: str, lease_name: str,
        policies: OwnNodePolicies,
    ) -> None:
        self._api = api
        self._clock = clock
        self._node = node
        self._meta = LabelledMeta(namespace=lease_namespace, name=lease_name)
        self._findings: str | None = None
        self._cluster = Cluster()
        self._kinds = own_kinds(node)
        self._statuses = {kind.name: WatchStatus(name=kind.name) for kind in self._kinds}
        self.fencing = Fencing(
            api, clock, self._cluster, policies, Notebook(api, lease_namespace, lease_name), identity=node,
            leads=lambda: True, readable=self._readable, count_since_wall=clock.wall_ns() / 1e9,
            notes_seconds=NOTES_SECONDS, only_node=node, component=COMPONENT,
        )

    def tell(self, annotations: Mapping[str, str]) -> None:
        """Takes what the agent's Lease says from now on."""
        findings = annotations.get(FINDINGS_ANNOTATION)
        news = findings != self._findings
        self._findings = findings
        metadata = msgspec.structs.replace(self._meta, annotations=dict(annotations))
        spec = LeaseSpec(holder_identity=self._node, renew_time=micro_time(self._clock.wall_ns()))
        self._cluster.sync("leases", [Lease(metadata=metadata, spec=spec)])
        if news:
            self.fencing.news()

    def samples(self) -> list[Sample]:
        """How fencing goes, as families of the agent itself."""
        return [
            dataclasses.replace(each, family=own.PREFIX + each.family.removeprefix(controller.PREFIX))
            for each in self.fencing.own_samples() if each.family.startswith(f"{controller.PREFIX}taint_")
        ]  # fmt: skip

    async def run(self) -> None:
        """Works until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for kind in self._kinds:
                tasks.create_task(self._follow(kind), name=f"follow {kind.name}")
            tasks.create_task(self.fencing.run(), name="fencing")

    async def _follow(self, kind: WatchedKind) -> None:
        def on_sync(name: str, objects: list[Any], unreadable: frozenset[str]) -> None:
            self._cluster.sync(name, objects, unreadable)
            self.fencing.news()

        def on_change(name: str, obj: Any, present: bool) -> None:  # noqa: ANN401 - of the kind's struct
            self._cluster.apply(name, obj, present)
            if name != "nodes":  # a kubelet writes its Node every few minutes, and conditions are written by us
                self.fencing.news()

        await follow(
            self._api, kind, clock=self._clock, on_sync=on_sync, on_change=on_change, status=self._statuses[kind.name]
        )

    def _readable(self) -> bool:
        """Everything that is decided on is known as it is now; where no rules are served there are none."""
        rules = self._statuses["devicetaintrules"]
        return (
            bool(self._cluster.leases)
            and self._statuses["resourceslices"].up
            and self._statuses["nodes"].up
            and (rules.up or (rules.absent and not rules.synced))
        )


def read_policies(config: Config, clock: Clock) -> OwnNodePolicies:
    """The policies that an agent's settings name. Raises ConfigError where the settings cannot be followed."""
    node = config.node_name
    if not config.lease_namespace:
        raise ConfigError(
            "--taint-writer=local: what must be remembered is kept in the agent's Lease, and it writes none: add "
            "--lease-namespace"
        )
    if len(node) > NODE_CHARACTERS_MAX:
        raise ConfigError(
            f"--taint-writer=local: the node's name `{node}` has {len(node)} characters, and the label that its taints "
            f"are known by takes {NODE_CHARACTERS_MAX}: run the controller instead"
        )
    path = None if config.taint_policy is None else Path(config.taint_policy)
    policies = OwnNodePolicies(path, Mode(config.taint_mode))
    policies.read(clock.wall_ns() / 1e9)
    return policies
