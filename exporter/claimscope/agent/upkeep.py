"""What does an agent do again and again with what is known of the node?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from pathlib import Path

from claimscope import state
from claimscope.node import Node
from claimscope.nvml.control import ControlError, ControlServer
from claimscope.nvml.supervisor import Supervisor

logger = logging.getLogger(__name__)

JOURNAL_SECONDS = 10.0
JOURNAL_PAUSE_SECONDS = 1.0  # between two writes, also where something must be written at once
PUBLISH_SECONDS = 1.0
HEALTH_SECONDS = 0.25


async def publish(node: Node, supervisor: Supervisor) -> None:
    """A new Snapshot whenever something arrived, and each second so that ages grow when nothing does."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_SECONDS):
                await node.changed.wait()
        await asyncio.sleep(0.05)  # the windows of all entities come in one bunch
        node.changed.clear()
        node.publish(supervisor.state)


async def watch_health(node: Node) -> None:
    """Lets the node look after its devices' health again and again."""
    try:
        while True:
            node.tick_health()
            await asyncio.sleep(HEALTH_SECONDS)
    finally:
        if node.health_sources is not None:
            node.health_sources.close()


async def keep_journal(node: Node, path: Path, boot_id: str) -> None:
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


async def control(supervisor: Supervisor, node: Node, path: str) -> None:
    """Answers at the control socket; what cannot listen there is logged, and the rest goes on."""
    try:
        async with ControlServer(path, supervisor, node):
            await asyncio.Event().wait()
    except ControlError as error:
        logger.error("%s", error)
