"""How does work that goes on for ever end at a signal?"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


async def until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end, or cancels it at the first SIGTERM or SIGINT; a second one kills at once."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    stopped_by: list[int] = []

    def stop(number: int) -> None:
        stopped_by.append(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        logger.info("stopping on %s", signal.Signals(number).name)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped_by:
            raise
    finally:
        for number in () if stopped_by else (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
