"""From what does an agent begin: which policies, which API server, what journal, and what to judge health by?"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from claimscope import state
from claimscope.accounting.ledger import Ledger
from claimscope.clock import Clock
from claimscope.config import Config
from claimscope.health.kmsg import start_after
from claimscope.health.pci import gpus_on_bus
from claimscope.health.sources import HealthSources, KernelLogSource, thresholds_file
from claimscope.health.thresholds import Thresholds
from claimscope.health.watch import HealthWatch, journal_of
from claimscope.kube.api import AccessSource, ApiError, access_source
from claimscope.metrics.tables import QUANTITIES
from claimscope.node import Node
from claimscope.sim.node import SimulatedNode
from claimscope.yamlfile import ConfigError

if TYPE_CHECKING:
    from claimscope.localfence import OwnNodePolicies

logger = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class AgentError(Exception):
    """The agent cannot start: one line that says what, where and what to do."""


def local_policies(config: Config, clock: Clock) -> OwnNodePolicies | None:
    """What bounds the agent's own fencing; None where the controller fences."""
    if config.taint_writer != "local":
        return None
    from claimscope import localfence  # code of the controller that other agents do without

    try:
        return localfence.read_policies(config, clock)
    except ConfigError as error:
        raise AgentError(str(error)) from error


@contextlib.asynccontextmanager
async def simulated_node(config: Config, clock: Clock) -> AsyncIterator[SimulatedNode | None]:
    """The simulated node of --simulate, with what it is asked over; None on a real one."""
    if config.simulate is None:
        yield None
        return
    async with SimulatedNode.open(
        config.simulate,
        node_name=config.node_name,
        scenario=config.scenario,
        clock=clock,
        api_server_url=config.api_server_url,
        start_monotonic_ns=config.simulation_start_monotonic_ns or None,
    ) as simulated:
        yield simulated


def api_source(
    config: Config, environ: Mapping[str, str], node: Node, simulated: SimulatedNode | None
) -> AccessSource | None:
    """The way to an API server, where there is one."""
    if config.api_server == "off":
        return None
    if simulated is not None and config.kubeconfig is None:
        return simulated.api
    try:
        return access_source(config.kubeconfig, config.api_server_url, environ, node.clock)
    except ApiError as error:
        logger.info("%s; devices, pods and most of claims are known without it", error)
        return None


def read_boot_id() -> str:
    """Which boot of the kernel this is; empty where it does not say."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError as error:
        logger.warning("no boot id (%s): driver counters are not followed across restarts of the agent", error)
        return ""


def read_journal(config: Config) -> state.JournalState | None:
    """What the journal says; None where there is none, or none that can be used."""
    if not config.state_file:
        return None
    loaded = state.load(Path(config.state_file))
    if loaded.error is not None:
        logger.error("%s", loaded.error)
    return loaded.state


def restored_node(config: Config, clock: Clock, journal: state.JournalState | None, boot_id: str) -> Node:
    """The node, from where the journal left off."""
    node = Node(
        name=config.node_name,
        clock=clock,
        ledger=_restored_ledger(journal, clock, boot_id),
        attribution=config.attribution != "off",
        hang_seconds=config.hang_seconds,
        observer_namespaces=frozenset(config.observer_namespaces),
    )
    node.shows_processes = "processes" in config.collectors
    if config.health == "on":
        _judge(node, config, journal, boot_id)
    return node


def _restored_ledger(journal: state.JournalState | None, clock: Clock, boot_id: str) -> Ledger:
    if journal is None:
        return Ledger(QUANTITIES)
    return Ledger.from_state(
        QUANTITIES, journal, boot_id=boot_id, now_ns=clock.monotonic_ns(), wall_ns=clock.wall_ns()
    )


def _judge(node: Node, config: Config, journal: state.JournalState | None, boot_id: str) -> None:
    """Lets the node judge its devices, from where the journal left off."""
    thresholds = thresholds_file(Path(config.health_thresholds)) if config.health_thresholds is not None else None
    known = journal_of(bytes(journal.health)) if journal is not None else None
    kernel_log = None
    if config.kernel_log is not None:
        seen = known.kernel_sequence if known is not None else None
        after = start_after(boot_id, known.engine.boot_id if known is not None else None, seen)
        kernel_log = KernelLogSource(Path(config.kernel_log), after=after)
    node.health = HealthWatch(
        boot_id=boot_id,
        thresholds=(thresholds.poll() if thresholds is not None else None) or Thresholds(),
        pod_of=node.pod_of,
        now_ns=node.clock.monotonic_ns(),
        wall_ns=node.clock.wall_ns(),
        kernel_log=kernel_log is not None,
        journal=known,
    )
    bus = gpus_on_bus if config.simulate is None else None  # simulated GPUs are on no bus
    node.health_sources = HealthSources(thresholds=thresholds, kernel_log=kernel_log, bus=bus)
    if bus is not None:
        node.health.bus(bus())  # before the first inventory: it decides what a reboot took away
