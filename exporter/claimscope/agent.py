"""Wires one node's agent together: sampler and kubelet in, accounts in the middle, Snapshots out.

Only wiring and the node's present state live here. Each source runs as a task of its own and fails alone: without a
kubelet, an API server, a journal or NVML itself the rest is served, and the own metrics say what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from claimscope import state
from claimscope.accounting.ledger import Ledger
from claimscope.claims.drift import DEVICES_ANNOTATION, devices_annotation
from claimscope.clock import Clock, SystemClock
from claimscope.config import Config
from claimscope.export.collect import Collector
from claimscope.export.dcgm.collect import DcgmCollector
from claimscope.export.dcgm.rates import Rates
from claimscope.export.dcgm.recent import RecentEvents
from claimscope.export.otlp.parts import agent_pusher
from claimscope.health.kmsg import start_after
from claimscope.health.pci import gpus_on_bus
from claimscope.health.report import FINDINGS_ANNOTATION, findings_annotation
from claimscope.health.sources import HealthSources, KernelLogSource, thresholds_file
from claimscope.health.thresholds import Thresholds
from claimscope.health.watch import HealthWatch, journal_of
from claimscope.kube.api import (
    AccessSource,
    ApiClient,
    ApiError,
    access_source,
    discover,
)
from claimscope.kube.claims import ClaimLookup
from claimscope.kube.lease import HeartbeatLease
from claimscope.kube.podresources import PodResourcesClient, poll
from claimscope.kube.slices import GROUP, VERSIONS, watch_slices
from claimscope.metrics.tables import QUANTITIES
from claimscope.node import Node, device_entries
from claimscope.nvml.control import ControlError, ControlServer
from claimscope.nvml.supervisor import Supervisor
from claimscope.nvml.wire import Settings
from claimscope.sim.node import SimulatedNode
from claimscope.taints.maintenance_ask import ANSWER, ASK, Responder, read_answer
from claimscope.web.application import ListenError, make_application, start_site
from claimscope.yamlfile import ConfigError

if TYPE_CHECKING:
    from claimscope.localfence import OwnNodePolicies

logger = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
JOURNAL_SECONDS = 10.0
JOURNAL_PAUSE_SECONDS = 1.0  # between two writes, also where something must be written at once
PUBLISH_SECONDS = 1.0
HEALTH_SECONDS = 0.25
HEARTBEAT_LOOK_SECONDS = 2.0  # how often the GPUs' modes are compared with what the Lease says
ASKED_SECONDS = 1.0  # how long NVML is not taken up while the Lease is read
NODE_ANNOTATION = "claimscope.io/node"
LOOKUP_SECONDS = 2.0  # what reading new claims may delay one attribution


class AgentError(Exception):
    """The agent cannot start: one line that says what, where and what to do."""


async def run(config: Config, environ: Mapping[str, str]) -> None:
    """Runs the agent until it is cancelled; raises AgentError where it cannot start.

    A simulation that cannot be made raises ScenarioError or SimulatorError.

    `environ` is read for what the platform sets: the API server's address, library paths, NVIDIA's variables.
    """
    clock = SystemClock()
    policies = _local_policies(config, clock)
    boot_id = _boot_id()
    journal = _journal(config)
    collector = Collector(QUANTITIES)
    async with _simulated(config, clock) as simulated:
        library, socket_path = config.nvml_library, config.pod_resources_socket
        child_environ = dict(environ)
        if simulated is not None:
            library = str(simulated.library_path)
            child_environ |= simulated.environment
            socket_path = socket_path or str(simulated.socket_path)
        node = Node(
            name=config.node_name,
            clock=clock,
            ledger=_restore(journal, clock, boot_id),
            attribution=config.attribution != "off",
            hang_seconds=config.hang_seconds,
            observer_namespaces=frozenset(config.observer_namespaces),
        )
        node.shows_processes = "processes" in config.collectors
        if config.health == "on":
            _judge(node, config, journal, boot_id)
        supervisor = Supervisor(
            Settings(
                library=library,
                sampling_hz=config.sampling_hz,
                driver_time_budget_ratio=config.driver_time_budget_ratio,
                collectors=config.collectors,
                nvlink_peers=config.compat_dcgm != "off",
            ),
            node.on_message,
            clock=clock,
            environ=child_environ,
            hang_seconds=config.hang_seconds,
        )
        try:
            node.otlp = agent_pusher(config, environ, lambda: node.snapshot, collector, clock)
        except ConfigError as error:
            raise AgentError(str(error)) from error
        dcgm = _dcgm(config)
        if dcgm is not None:
            node.rates = Rates(dcgm.rate_periods)
            if config.compat_dcgm == "all":
                node.recent = RecentEvents()
        application = make_application(
            snapshot=lambda: node.snapshot,
            collector=collector,
            readiness=node.readiness,
            health=lambda: node.health_view,
            health_document=node.health_document,
            dcgm=dcgm,
            version=importlib.metadata.version("claimscope"),
        )
        try:
            site = await start_site(application, config.web_listen_address)
        except ListenError as error:
            raise AgentError(str(error)) from error
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = asyncio.Event()
                tasks.create_task(_sample(supervisor, asked), name="sampler")
                tasks.create_task(_publish(node, supervisor), name="publish")
                tasks.create_task(_watch_health(node), name="health")
                if config.state_file:
                    tasks.create_task(_keep_journal(node, Path(config.state_file), boot_id), name="journal")
                if config.control_socket:
                    tasks.create_task(_control(supervisor, node, config.control_socket), name="control")
                if node.otlp is not None:
                    tasks.create_task(node.otlp.run(), name="otlp")
                source = _api_source(config, environ, node, simulated)
                if config.attribution != "off":
                    path = socket_path or config.kubelet_socket
                    tasks.create_task(_poll_kubelet(node, path, in_pod="KUBERNETES_SERVICE_HOST" in environ))
                    tasks.create_task(_attribute(node, source))
                if source is not None and config.lease_namespace:
                    maintenance = _Maintenance(responder=Responder(supervisor), known=asked)
                    tasks.create_task(
                        _beat(node, source, config.lease_namespace, policies, maintenance), name="heartbeat"
                    )
                else:
                    asked.set()
                if policies is not None and asked.is_set():
                    logger.warning("--taint-writer=local: there is no API server, so nothing is fenced")
        finally:
            await site.close()


def _local_policies(config: Config, clock: Clock) -> OwnNodePolicies | None:
    """What bounds the agent's own fencing; None where the controller fences."""
    if config.taint_writer != "local":
        return None
    from claimscope import localfence  # code of the controller that other agents do without

    try:
        return localfence.read_policies(config, clock)
    except ConfigError as error:
        raise AgentError(str(error)) from error


@contextlib.asynccontextmanager
async def _simulated(config: Config, clock: Clock) -> AsyncIterator[SimulatedNode | None]:
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


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError as error:
        logger.warning("no boot id (%s): driver counters are not followed across restarts of the agent", error)
        return ""


def _journal(config: Config) -> state.JournalState | None:
    if not config.state_file:
        return None
    loaded = state.load(Path(config.state_file))
    if loaded.error is not None:
        logger.error("%s", loaded.error)
    return loaded.state


def _restore(journal: state.JournalState | None, clock: Clock, boot_id: str) -> Ledger:
    if journal is None:
        return Ledger(QUANTITIES)
    return Ledger.from_state(
        QUANTITIES, journal, boot_id=boot_id, now_ns=clock.monotonic_ns(), wall_ns=clock.wall_ns()
    )


def _dcgm(config: Config) -> DcgmCollector | None:
    if config.compat_dcgm == "off":
        return None
    return DcgmCollector(
        QUANTITIES, families=config.compat_dcgm, names=config.compat_dcgm_names,
        hostname_label=config.compat_dcgm_hostname_label,
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


async def _watch_health(node: Node) -> None:
    try:
        while True:
            node.tick_health()
            await asyncio.sleep(HEALTH_SECONDS)
    finally:
        if node.health_sources is not None:
            node.health_sources.close()


async def _publish(node: Node, supervisor: Supervisor) -> None:
    """A new Snapshot whenever something arrived, and each second so that ages grow when nothing does."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_SECONDS):
                await node.changed.wait()
        await asyncio.sleep(0.05)  # the windows of all entities come in one bunch
        node.changed.clear()
        node.publish(supervisor.state)


async def _keep_journal(node: Node, path: Path, boot_id: str) -> None:
    """Writes the journal every few seconds, soon after what must not be lost, and once more at the end."""
    one_at_a_time = threading.Lock()  # a write that was cancelled goes on in its thread
    failed = False

    def write(journal: state.JournalState) -> None:
        with one_at_a_time:
            state.save(path, journal)

    async def save() -> None:
        nonlocal failed
        try:
            await asyncio.to_thread(write, node.journal(boot_id))
        except state.JournalError as error:
            node.journal_failed()
            if not failed:
                logger.error("%s", error)
            failed = True
        else:
            node.journal_saved()
            if failed:
                logger.info("the journal %s is written again", path)
            failed = False

    try:
        while True:
            await asyncio.sleep(JOURNAL_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JOURNAL_SECONDS - JOURNAL_PAUSE_SECONDS):
                    await node.journal_due.wait()
            node.journal_due.clear()
            await save()
    finally:
        await save()


async def _control(supervisor: Supervisor, node: Node, path: str) -> None:
    try:
        async with ControlServer(path, supervisor, node):
            await asyncio.Event().wait()
    except ControlError as error:
        logger.error("%s", error)


async def _poll_kubelet(node: Node, path: str, *, in_pod: bool) -> None:
    client = PodResourcesClient(path)
    try:
        await poll(client, node.clock, node.on_listing, node.on_listing_error, expect_pods=in_pod)
    finally:
        await client.close()


def _api_source(
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


async def _attribute(node: Node, source: AccessSource | None) -> None:
    """Joins every new listing, with what the API server adds where there is one."""
    if source is None:
        while True:
            await node.attribute(None)
    node.expects_slices = True
    api = ApiClient(source)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                watch_slices(api, node.name, node.clock, node.on_slices, node.on_slices_error, node.on_slices_heard),
                name="slices",
            )
            tasks.create_task(_attribute_with_claims(node, api), name="claims")
    finally:
        await api.close()


async def _attribute_with_claims(node: Node, api: ApiClient) -> None:
    lookup: ClaimLookup | None = None
    while True:
        await node.news()  # before the look for an API: the first listing is joined with what claims say, too
        if lookup is None and node.wants_api:
            with contextlib.suppress(ApiError, TimeoutError):  # the slices' watch asks the same and reports it
                async with asyncio.timeout(LOOKUP_SECONDS):
                    version = await discover(api, GROUP, VERSIONS, "resourceclaims")
                    lookup = ClaimLookup(api, version, node.clock, node.on_claims_error)
        await node.attribute(lookup)


def _is_ask(name: str) -> bool:
    return name == ASK


async def _sample(supervisor: Supervisor, asked: asyncio.Event) -> None:
    """Takes NVML up as soon as it is known that nobody waits for it to be let go, or cannot be known."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ASKED_SECONDS):
            await asked.wait()
    await supervisor.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maintenance:
    """What is asked of this agent before somebody works on the node."""

    responder: Responder
    known: asyncio.Event  # what is asked at the start

    async def begin(self, lease: HeartbeatLease) -> None:
        """Looks for it once, before NVML is taken up, and for what this agent said before it was restarted."""
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


async def _beat(
    node: Node, source: AccessSource, namespace: str, policies: OwnNodePolicies | None, maintenance: _Maintenance
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
    try:
        await maintenance.begin(lease)
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
                work = work or [asyncio.create_task(each.run()) for each in (lease, fencing) if each is not None]
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
