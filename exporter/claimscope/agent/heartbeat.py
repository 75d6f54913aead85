"""How does the agent show the cluster by its Lease that it lives, and what is asked of it there?"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claimscope.claims.drift import DEVICES_ANNOTATION, devices_annotation
from claimscope.health.report import FINDINGS_ANNOTATION, findings_annotation
from claimscope.kube.api import AccessSource, ApiClient, ApiError
from claimscope.kube.lease import HeartbeatLease
from claimscope.node import Node, device_entries
from claimscope.nvml.supervisor import Supervisor
from claimscope.taints.maintenance_ask import ANSWER, ASK, Responder, read_answer

if TYPE_CHECKING:
    from claimscope.localfence import OwnNodePolicies

HEARTBEAT_LOOK_SECONDS = 2.0  # how often the GPUs' modes are compared with what the Lease says
ASKED_SECONDS = 1.0  # how long NVML is not taken up while the Lease is read
NODE_ANNOTATION = "claimscope.io/node"
LONGEST_QUIET_SECONDS = 60.0  # a heartbeat that comes later lets a node that works look silent


async def sample(supervisor: Supervisor, asked: asyncio.Event) -> None:
    """Takes NVML up as soon as it is known that nobody waits for it to be let go, or cannot be known."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ASKED_SECONDS):
            await asked.wait()
    await supervisor.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintenance:
    """What is asked of this agent before somebody works on the node."""

    responder: Responder
    known: asyncio.Event  # what is asked at the start

    async def begin(self, lease: HeartbeatLease) -> None:
        """Looks for it once, before NVML is taken up, and for what this agent said before it was restarted.

        All else that is asked of the API server comes a while later, at another moment on each node. This cannot wait:
        whoever works on the node must not find its GPUs in use again.
        """
        with contextlib.suppress(ApiError, TimeoutError):  # the first write meets the same, and says so
            async with asyncio.timeout(ASKED_SECONDS):
                await lease.look()
        self.responder.hear(lease.asked)
        self.responder.begin(read_answer(lease.note(ANSWER)))
        self.known.set()

    def look(self, lease: HeartbeatLease, node: Node) -> dict[str, str]:
        """Does what is asked; answers the annotation that says how far it is."""
        now_ns = node.clock.monotonic_ns()
        self.responder.hear(lease.asked)
        text = self.responder.look(processes=node.process_count(), released=node.released, now_ns=now_ns)
        return {} if text is None else {ANSWER: text}


def quiet_seconds(wait_seconds: float, asked: str) -> float:
    """How long an agent that starts does not write its Lease: no longer than a live one, and not while it is asked."""
    return 0.0 if asked else min(wait_seconds, LONGEST_QUIET_SECONDS)


async def beat(
    node: Node, source: AccessSource, namespace: str, policies: OwnNodePolicies | None, maintenance: Maintenance,
    wait_seconds: float,
) -> None:
    """Shows the controller by a Lease that this agent lives and what its GPUs are. Failure costs the Lease alone.

    With `policies` there is no controller: what the Lease says is acted on right here.
    """
    api, name = ApiClient(source), f"claimscope-agent-{node.name}"
    fencing, keeps = None, _is_ask
    if policies is not None:
        from claimscope.localfence import LocalFencing
        from claimscope.taints.notebook import is_note

        fencing = LocalFencing(
            api, node.clock, node=node.name, lease_namespace=namespace, lease_name=name, policies=policies
        )
        keeps, node.fencing = is_note, fencing
    lease = HeartbeatLease(
        api, namespace, name, node.name, {"app.kubernetes.io/name": "claimscope"}, node.clock, keeps=keeps, asks=ASK
    )
    node.heartbeat = lease
    work: list[asyncio.Task[None]] = []
    time = asyncio.get_running_loop().time
    try:
        await maintenance.begin(lease)
        begin = time() + quiet_seconds(wait_seconds, lease.asked)
        while True:
            snapshot = node.snapshot
            if snapshot is not None and snapshot.inventory is not None:
                devices = devices_annotation(device_entries(snapshot))
                annotations = {NODE_ANNOTATION: node.name, DEVICES_ANNOTATION: devices}
                annotations |= maintenance.look(lease, node)
                if node.health is not None:
                    annotations[FINDINGS_ANNOTATION] = findings_annotation(node.health.view())
                lease.set_annotations(annotations)
                if fencing is not None:
                    fencing.tell(annotations)
                if not work and time() >= begin:
                    work = [asyncio.create_task(each.run()) for each in (lease, fencing) if each is not None]
            for each in work:
                if each.done():
                    each.result()
            node.lease_due.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_LOOK_SECONDS):
                    await node.lease_due.wait()
    finally:
        for each in work:
            each.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await api.close()


def _is_ask(name: str) -> bool:
    return name == ASK
