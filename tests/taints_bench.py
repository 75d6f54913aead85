"""A leader that fences, beside a simulated API server: rounds are run one by one, on a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from claim_objects import device, pool
from claimscope.claims.cluster import Cluster
from claimscope.clock import ManualClock
from claimscope.kube.api import ApiClient, OpenAccess
from claimscope.kube.kinds import watched_kinds
from claimscope.kube.lease import micro_time
from claimscope.sim.api.kinds import (
    ALL_KINDS,
    DEVICE_TAINT_RULES,
    EVENTS,
    LEASES,
    NODES,
    RESOURCE_SLICES,
)
from claimscope.sim.api.server import Kind, SimApiServer
from claimscope.taints import command
from claimscope.taints.command import Lifting
from claimscope.taints.model import Mode
from claimscope.taints.notebook import Notebook
from claimscope.taints.sources import PolicySource
from claimscope.taints.worker import Fencing

Json = dict[str, Any]

START = 1795260212.0
RULES = "/apis/resource.k8s.io/v1/devicetaintrules"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/claimscope/leases/claimscope-controller"
MIRRORED = ("leases", "nodes", "resourceslices", "resourceclaims", "deviceclasses", "devicetaintrules")
_STRUCTS = {kind.name: kind.kind for kind in watched_kinds("claimscope")}
_KEEP = {kind.name: kind.keep for kind in watched_kinds("claimscope")}



def finding(
    uuid: str, rule: str = "xid_fatal", severity: str = "unhealthy", since: float = START - 60, **more: Any
) -> Json:
    """One entry of an agent's Lease."""
    return {
        "uuid": uuid, "serial": "S1", "rule": rule, "severity": severity, "since": since,
        "evidence": {"xid": "95"}, "clears": "A reset.", **more,
    }


class Leader:
    """One replica's fencing and its own mirror of the cluster."""

    def __init__(
        self, server: SimApiServer, clock: ManualClock, mode: Mode, *, identity: str = "one",
        policy: Path | None = None, api: ApiClient | None = None,
    ) -> None:
        self.server = server
        self.api = ApiClient(OpenAccess(server.url)) if api is None else api
        self.cluster = Cluster()
        self.leads = True
        self.readable = True  # False: claims cannot be seen
        self.policies = PolicySource(policy, mode)
        self.notebook = Notebook(self.api, "claimscope", "claimscope-controller", apart=True)
        self.fencing = Fencing(
            self.api, clock, self.cluster, self.policies, self.notebook, identity=identity,
            leads=lambda: self.leads, readable=lambda: self.readable, liftable=lambda: True,
            count_since_wall=START - 3600,
            notes_seconds=0.0,
        )

    def see(self, *, without: str = "") -> None:
        """What the watches bring; one kind may not have been read yet."""
        kinds = {kind.plural: kind for kind in self.server.store.kinds}
        for name in MIRRORED:
            kind = kinds.get(name)
            if kind is None or name == without:
                continue
            stored = self.server.store.table(kind).objects.values()
            found = [msgspec.json.decode(each.body(kind), type=_STRUCTS[name]) for each in stored]
            if name == "leases":
                found = [lease for lease in found if "app.kubernetes.io/component" in (lease.metadata.labels or {})]
            self.cluster.sync(name, [each for each in found if _KEEP[name](each)])

    async def round(self) -> None:
        """Looks, and does one round."""
        self.see()
        await self.fencing.round()

    def value(self, family: str, *labels: str) -> float | None:
        """A sample of fencing, by its label values."""
        for each in (*self.fencing.samples(), *self.fencing.own_samples()):
            if each.family == family and tuple(value for _, value in each.labels) == labels:
                return each.value
        return None


class Bench:
    """The cluster and its leaders."""

    def __init__(self, server: SimApiServer, clock: ManualClock, mode: Mode, policy: Path | None = None) -> None:
        self.server = server
        self.clock = clock
        self.mode = mode
        self.policy = policy
        self.leaders: list[Leader] = []
        self.leader = self.another("one")

    def another(self, identity: str, api: ApiClient | None = None) -> Leader:
        made = Leader(self.server, self.clock, self.mode, identity=identity, policy=self.policy, api=api)
        self.leaders.append(made)
        return made

    async def says(self, node: str, *findings: Json) -> None:
        """A node's agent writes its Lease."""
        wall = self.clock.wall_ns() / 1e9
        await self.server.put(LEASES, {
            "metadata": {
                "name": f"claimscope-agent-{node}", "namespace": "claimscope",
                "labels": {"app.kubernetes.io/component": "agent"},
                "annotations": {
                    "claimscope.io/node": node,
                    "claimscope.io/findings": json.dumps({"boot_id": "boot-1", "findings": list(findings)}),
                },
            },
            "spec": {"holderIdentity": node, "renewTime": micro_time(round(wall * 1e9))},
        })

    async def all_say(self, findings: Mapping[str, Iterable[Json]] | None = None) -> None:
        """Every node's agent writes its Lease: these findings, and none where a node is not named."""
        for node in self.nodes():
            await self.says(node, *(findings or {}).get(node, ()))

    def nodes(self) -> list[str]:
        """The names of all Nodes."""
        return [name for _, name in self.server.store.table(NODES).objects]

    def objects(self, kind: Kind) -> list[Json]:
        """All objects of a kind."""
        return [json.loads(each.body(kind)) for each in self.server.store.table(kind).objects.values()]

    def rules(self) -> dict[str, Json]:
        """All rules there are, by name."""
        return {each["metadata"]["name"]: each for each in self.objects(DEVICE_TAINT_RULES)}

    def rule(self, device: str, node: str = "node-1") -> Json:
        """The one rule about a device."""
        (found,) = (
            each for each in self.objects(DEVICE_TAINT_RULES)
            if (each["spec"]["deviceSelector"]["pool"], each["spec"]["deviceSelector"]["device"]) == (node, device)
        )
        return found

    def effects(self) -> dict[str, str]:
        """Device, with its node where that is not the first one -> key without our domain, and effect."""
        return {
            "/".join((rule["spec"]["deviceSelector"]["pool"], rule["spec"]["deviceSelector"]["device"])).removeprefix(
                "node-1/"
            ):
                f"{rule['spec']['taint']['key'].removeprefix('claimscope.io/')} {rule['spec']['taint']['effect']}"
            for rule in self.rules().values()
        }

    def events(self) -> list[tuple[str, str, str]]:
        """Kind, name and reason of every Event."""
        stored = self.server.store.table(EVENTS).objects.values()
        abouts = [(event["involvedObject"], event) for event in (json.loads(each.body(EVENTS)) for each in stored)]
        return sorted((about["kind"], about["name"], event["reason"]) for about, event in abouts)

    def conditions(self, node: str) -> dict[str, tuple[str, str]]:
        """Type -> status and reason of a Node's conditions."""
        found = self.server.get(NODES, node) or {}
        return {
            each["type"]: (each["status"], each.get("reason", ""))
            for each in found.get("status", {}).get("conditions", [])
        }

    def rule_writes(self) -> list[str]:
        """What was asked of rules, by method."""
        return [each for each in self.server.write_requests if "/devicetaintrules" in each]


def fleet(nodes: int = 2, gpus: int = 8) -> list[Json]:
    """Slices of nodes with GPUs; `GPU-1-3` is gpu-3 of node-1."""
    return [
        pool(f"node-{node}", *(
            device(f"gpu-{gpu}", attributes={"uuid": f"GPU-{node}-{gpu}", "type": "gpu"}) for gpu in range(gpus)
        ))
        for node in range(1, nodes + 1)
    ]


@asynccontextmanager
async def serving(
    mode: Mode = Mode.ENFORCE, *, policy: Path | None = None, kinds: tuple[Kind, ...] = ALL_KINDS, nodes: int = 2,
    **options: Any,
) -> AsyncIterator[Bench]:
    """A cluster of nodes with eight GPUs each, an agent on each, and one leader."""
    clock = ManualClock(monotonic=10**12, wall=round(START * 1e9))
    options.setdefault("git_version", "v1.37.0")
    server = SimApiServer(kinds, wall=lambda: clock.wall_ns() / 1e9, **options)
    await server.start()
    bench = Bench(server, clock, mode, policy)
    try:
        for node in range(1, nodes + 1):
            ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
            await server.put(NODES, {
                "metadata": {"name": f"node-{node}", "uid": f"uid-node-{node}"}, "spec": {},
                "status": {"conditions": [ready]},
            })
            await bench.says(f"node-{node}")
        for each in fleet(nodes):
            await server.put(RESOURCE_SLICES, each)
        await server.put(LEASES, {
            "metadata": {"name": "claimscope-controller", "namespace": "claimscope"}, "spec": {"holderIdentity": "one"},
        })
        yield bench
    finally:
        for leader in bench.leaders:
            await leader.api.close()
        await server.stop()


async def lift(bench: Bench, *, api: ApiClient | None = None, **options: Any) -> Lifting:
    """`claimscope taints lift` by ann."""
    wall = bench.clock.wall_ns() / 1e9
    return await command.lift(api or bench.leader.api, bench.leader.notebook, author="ann", wall=wall, **options)
