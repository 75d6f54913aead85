"""What does the agent serve over HTTP, and whom does it let in?"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from claimscope.agent.begin import AgentError, api_source
from claimscope.config import Config
from claimscope.export.collect import Collector
from claimscope.export.dcgm.collect import DcgmCollector
from claimscope.kube.api import ApiClient
from claimscope.metrics.tables import QUANTITIES
from claimscope.node import Node
from claimscope.sim.node import SimulatedNode
from claimscope.web.application import ListenError, WebCounters, make_application, start_site
from claimscope.web.review.guard import review_guard
from claimscope.web.review.reviewer import REVIEW_SECONDS, Reviewer
from claimscope.web.serving.guard import make_guards
from claimscope.web.serving.source import ServingSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Who reviews the callers of the web server, over connections of its own."""

    api: ApiClient
    reviewer: Reviewer

    async def close(self) -> None:
        """Ends what is under review, and the connections."""
        await self.reviewer.close()
        await self.api.close()


def callers_of(
    config: Config, environ: Mapping[str, str], node: Node, simulated: SimulatedNode | None
) -> Callers | None:
    """None where everybody is let in. Raises AgentError where there is nobody to ask."""
    if config.web_authorization == "off":
        return None
    source = api_source(config, environ, node, simulated)
    if source is None:
        raise AgentError(
            "--web-authorization=kubernetes: there is no API server to ask who a caller is: run in a pod with a "
            "service account token, name a --kubeconfig, or leave it off"
        )
    api = ApiClient(source, timeout=REVIEW_SECONDS, body_limit_bytes=1 << 20)
    return Callers(api=api, reviewer=Reviewer(api, node.clock, audiences=config.web_authorization_audiences))


def dcgm_collector(config: Config) -> DcgmCollector | None:
    """What makes the families of dcgm-exporter; None where none are wanted."""
    if config.compat_dcgm == "off":
        return None
    return DcgmCollector(
        QUANTITIES, families=config.compat_dcgm, names=config.compat_dcgm_names,
        hostname_label=config.compat_dcgm_hostname_label,
    )


@contextlib.asynccontextmanager
async def served(
    config: Config, node: Node, collector: Collector, dcgm: DcgmCollector | None, serving: ServingSource | None,
    callers: Callers | None,
) -> AsyncIterator[None]:
    """Serves the node over HTTP while it is entered. Raises AgentError where it cannot listen."""
    counters = WebCounters(reviews=None if callers is None else callers.reviewer.results)
    application = make_application(
        snapshot=lambda: node.snapshot,
        collector=collector,
        readiness=node.readiness,
        health=lambda: node.health_view,
        health_document=node.health_document,
        dcgm=dcgm,
        counters=counters,
        middlewares=make_guards(serving, counters, token=None if callers is None else review_guard(callers.reviewer)),
        version=importlib.metadata.version("claimscope"),
    )
    async with contextlib.AsyncExitStack() as closing:
        if callers is not None:
            closing.push_async_callback(callers.close)
        try:
            site = await start_site(application, config.web_listen_address, serving=serving, counters=counters)
        except ListenError as error:
            raise AgentError(str(error)) from error
        closing.push_async_callback(site.close)
        yield
