"""Runs the real controller as a child process beside a simulated API server, asks it over HTTP, and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import aiohttp

from agent_process import Answer, Scrape, command, environment

T = TypeVar("T")
START_SECONDS = 20.0
WAIT_SECONDS = 15.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.05
_SERVING = re.compile(r"serving on (https?://\S+)")


class Controller:
    """One controller process on a free loopback port; a context that stops it and checks how it ended."""

    def __init__(self, directory: Path, *arguments: str, identity: str = "one", **variables: str) -> None:
        self._log = directory / f"{identity}.log"
        self._arguments = ("--identity", identity, "--web-listen-address", "127.0.0.1:0", *arguments)
        self._variables = variables
        self._process: asyncio.subprocess.Process | None = None
        self._web: aiohttp.ClientSession | None = None
        self._killed = False
        self.url = ""

    async def __aenter__(self) -> Controller:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command("controller", *self._arguments), env=environment(**self._variables),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )
        self._web = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
        try:
            self.url = (await until(lambda: _SERVING.search(self.log), START_SECONDS, lambda: self.log))[1]
        except BaseException:
            await self._web.close()
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._web is not None:
            await self._web.close()
        code = await self._end()
        if kind is None and not self._killed:
            assert code == 0, self.log
        if kind is None:
            assert "Traceback" not in self.log, self.log
            assert "never retrieved" not in self.log, self.log
            assert "was destroyed" not in self.log, self.log

    async def _end(self) -> int:
        process = self._process
        assert process is not None
        if process.returncode is not None:
            return process.returncode
        self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            await process.wait()
            raise

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; SIGKILL is then expected to be its end."""
        assert self._process is not None
        self._killed |= number is signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Waits for its end and gives the exit code."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), STOP_SECONDS)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it logged so far."""
        return self._log.read_text()

    def said(self, text: str) -> list[str]:
        """The lines of the log with this text."""
        return [line for line in self.log.splitlines() if text in line]

    async def get(self, path: str, **headers: str) -> Answer:
        """Asks for a path; header names with underscores."""
        assert self._web is not None
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._web.get(self.url + path, headers=sent) as reply:
            return Answer(
                status=reply.status,
                headers={name.lower(): value for name, value in reply.headers.items()},
                body=await reply.read(),
            )

    async def scrape(self) -> Scrape:
        """The present exposition; empty while there is none."""
        answer = await self.get("/metrics")
        return Scrape(answer.text if answer.status == 200 else "")

    async def until(self, condition: Callable[[Scrape], T | None], seconds: float = WAIT_SECONDS) -> T:
        """Scrapes until the condition gives something true, and gives that."""
        last = Scrape("")

        async def ask() -> T | None:
            nonlocal last
            last = await self.scrape()
            return condition(last)

        return await until_found(ask, seconds, lambda: "\n".join(map(str, last.samples[-400:])) + self.log[-4000:])

    async def until_said(self, text: str, seconds: float = WAIT_SECONDS) -> list[str]:
        """Waits for a line in the log."""
        return await until(lambda: self.said(text), seconds, lambda: self.log[-4000:])

    async def until_ready(self, status: int = 200, seconds: float = WAIT_SECONDS) -> str:
        """Waits for a status of /readyz and gives its text."""

        async def ask() -> str | None:
            answer = await self.get("/readyz")
            return answer.text if answer.status == status else None

        return await until_found(ask, seconds, lambda: self.log[-4000:])

    async def until_leading(self, seconds: float = WAIT_SECONDS) -> None:
        """Waits until it serves the cluster's series."""
        await self.until(lambda scrape: scrape.value("claimscope_controller_leader") == 1.0 and states(scrape), seconds)

    def children(self) -> list[int]:
        """The processes that it runs."""
        return children_of(self.pid)


def children_of(pid: int) -> list[int]:
    """The child processes of a process, of whichever of its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def alive(pid: int) -> bool:
    """False for a process that is gone, or only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def states(scrape: Scrape) -> dict[str, str]:
    """Claims by "namespace/name", and their states."""
    return {
        f"{each.labels['namespace']}/{each.labels['resourceclaim']}": each.labels["state"]
        for each in scrape.find("kube_resourceclaim_status_allocation_state")
    }


def reasons(scrape: Scrape) -> dict[str, str]:
    """Waiting claims (or, where there is none, pods) by name, and why they wait."""
    return {
        each.labels["resourceclaim"] or f"pod {each.labels['pod']}": each.labels["reason"]
        for each in scrape.find("dra_claim_pending_reason")
    }


def watch_errors(scrape: Scrape, resource: str) -> dict[str, float]:
    """The failures of one watch by reason; none before the first."""
    counts = scrape.by("reason", "claimscope_controller_watch_errors_total", resource=resource)
    return {reason: count for reason, count in counts.items() if count}


def durations(scrape: Scrape) -> dict[str, float]:
    """How many durations were counted, by phase; none before the first."""
    counts = scrape.by("phase", "dra_allocation_duration_seconds_count")
    return {phase: count for phase, count in counts.items() if count}


def outcomes(scrape: Scrape) -> dict[str, float]:
    """How many allocations ended, by outcome; none before the first."""
    counts = scrape.by("outcome", "dra_claims_completed_total")
    return {outcome: count for outcome, count in counts.items() if count}


async def until(ask: Callable[[], T | None], seconds: float, about: Callable[[], str]) -> T:
    """Asks until the answer is true; TimeoutError with what `about` says."""

    async def found() -> T | None:
        return ask()

    return await until_found(found, seconds, about)


async def until_found(ask: Callable[[], Awaitable[T | None]], seconds: float, about: Callable[[], str]) -> T:
    """The same for a question that is asked over the network."""
    end = asyncio.get_running_loop().time() + seconds
    while not (found := await ask()):
        if asyncio.get_running_loop().time() > end:
            raise TimeoutError(f"not within {seconds:g} s: {about()}")
        await asyncio.sleep(POLL_SECONDS)
    return found


async def claimscope(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Runs a command that ends by itself: exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), env=environment(**variables), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
