"""A node's agent as far as maintenance needs one: the real answers, a Lease on the simulated API server, no GPUs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from claimscope.kube.lease import micro_time
from claimscope.sim.api.kinds import DEVICE_TAINT_RULES, LEASES, NODES
from claimscope.taints.maintenance_ask import ANSWER, ASK, Responder, read_answer
from taints_bench import Bench

Json = dict[str, Any]


@dataclass(slots=True)
class FakeNvml:
    """Does at once what it is told, and writes it down."""

    did: list[str] = field(default_factory=list)
    released: bool = False

    def release(self) -> None:
        self.did.append("release")
        self.released = True

    def acquire(self) -> None:
        self.did.append("acquire")
        self.released = False

    def count_processes(self, on: bool) -> None:
        self.did.append(f"count {on}")


@dataclass(slots=True)
class NodeAgent:
    """One agent on the bench; each `beat` is one renewal of its Lease."""

    bench: Bench
    node: str = "node-1"
    processes: int | None = 0
    gpus: int | None = None  # that it says to see
    nvml: FakeNvml = field(default_factory=FakeNvml)
    responder: Responder = field(init=False)

    def __post_init__(self) -> None:
        self.responder = Responder(self.nvml)

    def notes(self) -> Json:
        found = self.bench.server.get(LEASES, f"claimscope-agent-{self.node}", "claimscope")
        assert found is not None
        return dict(found["metadata"].get("annotations") or {})

    def restart(self) -> None:
        """As the agent begins: NVML is not taken up before it is known what is asked, and what was answered."""
        self.nvml = FakeNvml()
        self.responder = Responder(self.nvml)
        notes = self.notes()
        self.responder.hear(notes.get(ASK, ""))
        self.responder.begin(read_answer(notes.get(ANSWER)))

    async def beat(self, *findings: Json) -> None:
        before, now_ns = self.notes(), self.bench.clock.monotonic_ns()
        self.responder.hear(before.get(ASK, ""))
        processes = None if self.nvml.released else self.processes
        answer = self.responder.look(processes=processes, released=self.nvml.released, now_ns=now_ns)
        notes = {
            "claimscope.io/node": self.node,
            "claimscope.io/findings": json.dumps({"boot_id": "boot-1", "findings": findings}),
            **({ASK: before[ASK]} if ASK in before else {}), **({ANSWER: answer} if answer is not None else {}),
        }  # fmt: skip
        if self.gpus is not None:
            notes["claimscope.io/devices"] = json.dumps([{"model": "H100", "count": self.gpus}])
        wall = self.bench.clock.wall_ns()
        await self.bench.server.put(
            LEASES,
            {
                "metadata": {
                    "name": f"claimscope-agent-{self.node}",
                    "namespace": "claimscope",
                    "labels": {"app.kubernetes.io/component": "agent"},
                    "annotations": notes,
                },
                "spec": {"holderIdentity": self.node, "renewTime": micro_time(wall)},
            },
        )


async def confirm(bench: Bench) -> None:
    """Says of each rule what it does, as the device taint eviction controller does within moments."""
    served = DEVICE_TAINT_RULES in bench.server.store.kinds
    for rule in bench.rules().values() if served else ():
        seen = {
            "type": "EvictionInProgress", "status": "False", "reason": "OtherEffect",
            "observedGeneration": rule["metadata"].get("generation", 0),
        }  # fmt: skip
        if rule.get("status", {}).get("conditions") != [seen]:
            await bench.server.put(DEVICE_TAINT_RULES, {**rule, "status": {"conditions": [seen]}})


async def annotate(bench: Bench, node: str, **notes: str | None) -> None:
    """Sets claimscope.io/ annotations of a Node, with "_" for "-"; None takes one away."""
    found = bench.server.get(NODES, node)
    assert found is not None
    kept = found["metadata"].setdefault("annotations", {})
    for name, text in notes.items():
        key = f"claimscope.io/{name.replace('_', '-')}"
        kept.pop(key, None)
        if text is not None:
            kept[key] = text
    await bench.server.put(NODES, found)


def message(bench: Bench, node: str) -> str:
    """Of the condition GPUMaintenanceReady."""
    found = bench.server.get(NODES, node) or {}
    conditions = found.get("status", {}).get("conditions", [])
    return next((str(each["message"]) for each in conditions if each["type"] == "GPUMaintenanceReady"), "")
