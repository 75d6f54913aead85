"""How do the parts of a node's agent work together?

Each source runs as a task of its own and fails alone: without a kubelet, an API server, a journal or NVML itself the
rest is served, and the own metrics say what is missing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from pathlib import Path

from claimscope.agent.begin import (
    AgentError,
    api_source,
    local_policies,
    read_boot_id,
    read_journal,
    restored_node,
    simulated_node,
)
from claimscope.agent.heartbeat import Maintenance, beat, sample
from claimscope.agent.holders import attribute, poll_kubelet
from claimscope.agent.upkeep import control, keep_journal, publish, watch_health
from claimscope.agent.web import callers_of, dcgm_collector, served
from claimscope.clock import SystemClock
from claimscope.config import Config
from claimscope.export.collect import Collector
from claimscope.export.dcgm.rates import Rates
from claimscope.export.dcgm.recent import RecentEvents
from claimscope.export.otlp.parts import agent_pusher
from claimscope.metrics.tables import QUANTITIES
from claimscope.node import Node
from claimscope.nvml.supervisor import Supervisor
from claimscope.nvml.wire import Settings
from claimscope.sim.node import SimulatedNode
from claimscope.taints.maintenance_ask import Responder
from claimscope.web.serving.source import serving_of
from claimscope.yamlfile import ConfigError

logger = logging.getLogger(__name__)


async def run(config: Config, environ: Mapping[str, str]) -> None:
    """Runs the agent until it is cancelled; raises AgentError where it cannot start.

    A simulation that cannot be made raises ScenarioError or SimulatorError, a web configuration file that cannot be
    used WebConfigError.

    `environ` is read for what the platform sets: the API server's address, library paths, NVIDIA's variables.
    """
    clock = SystemClock()
    policies = local_policies(config, clock)
    serving = serving_of(config.web_config_file, clock)
    boot_id = read_boot_id()
    journal = read_journal(config)
    collector = Collector(QUANTITIES)
    async with simulated_node(config, clock) as simulated:
        node = restored_node(config, clock, journal, boot_id)
        supervisor = _supervisor(config, environ, node, simulated)
        try:
            node.otlp = agent_pusher(config, environ, lambda: node.snapshot, collector, clock)
        except ConfigError as error:
            raise AgentError(str(error)) from error
        dcgm = dcgm_collector(config)
        if dcgm is not None:
            node.rates = Rates(dcgm.rate_periods)
            if config.compat_dcgm == "all":
                node.recent = RecentEvents()
        callers = callers_of(config, environ, node, simulated)
        async with served(config, node, collector, dcgm, serving, callers), asyncio.TaskGroup() as tasks:
            asked = asyncio.Event()
            tasks.create_task(sample(supervisor, asked), name="sampler")
            tasks.create_task(publish(node, supervisor), name="publish")
            tasks.create_task(watch_health(node), name="health")
            if config.state_file:
                tasks.create_task(keep_journal(node, Path(config.state_file), boot_id), name="journal")
            if config.control_socket:
                tasks.create_task(control(supervisor, node, config.control_socket), name="control")
            if node.otlp is not None:
                tasks.create_task(node.otlp.run(), name="otlp")
            source = api_source(config, environ, node, simulated)
            wait_seconds = random.uniform(0.0, config.startup_jitter_seconds)  # noqa: S311
            if config.attribution != "off":
                path = _kubelet_socket(config, simulated)
                tasks.create_task(poll_kubelet(node, path, in_pod="KUBERNETES_SERVICE_HOST" in environ))
                tasks.create_task(attribute(node, source, wait_seconds))
            if source is not None and config.lease_namespace:
                maintenance = Maintenance(responder=Responder(supervisor), known=asked)
                told = beat(node, source, config.lease_namespace, policies, maintenance, wait_seconds)
                tasks.create_task(told, name="heartbeat")
            else:
                asked.set()
            if policies is not None and asked.is_set():
                logger.warning("--taint-writer=local: there is no API server, so nothing is fenced")


def _supervisor(
    config: Config, environ: Mapping[str, str], node: Node, simulated: SimulatedNode | None
) -> Supervisor:
    """What keeps a sampler of this node's NVML running, or of the simulated one."""
    return Supervisor(
        Settings(
            library=config.nvml_library if simulated is None else str(simulated.library_path),
            driver_root=config.driver_root,
            sampling_hz=config.sampling_hz,
            driver_time_budget_ratio=config.driver_time_budget_ratio,
            collectors=config.collectors,
            nvlink_peers=config.compat_dcgm != "off",
        ),
        node.on_message,
        clock=node.clock,
        environ={**environ, **({} if simulated is None else simulated.environment)},
        hang_seconds=config.hang_seconds,
    )


def _kubelet_socket(config: Config, simulated: SimulatedNode | None) -> str:
    if config.pod_resources_socket:
        return config.pod_resources_socket
    return config.kubelet_socket if simulated is None else str(simulated.socket_path)
