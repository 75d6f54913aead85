"""Runs the real agent as a child process, asks it over HTTP, and stops it as a kubelet would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

T = TypeVar("T")
START_SECONDS = 30.0  # a first start compiles the simulated library
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05
_SERVING = re.compile(r"serving on (https?://\S+)")
_WORLD = re.compile(
    rb"(?m)^(?:gpu_up|gpu_health|gpu_info|gpu_allocation_info|gpu_power_watts|[a-z_]*xid_|claimscope_).*\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back for one request."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Scrape:
    """The samples of one exposition."""

    def __init__(self, text: str) -> None:
        self.samples: list[Sample] = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def find(self, name: str, **labels: str) -> list[Sample]:
        """Samples of this name that carry these labels."""
        return [
            sample
            for sample in self.samples
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
        ]

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the one series that fits; None where there is none."""
        found = self.find(name, **labels)
        assert len(found) < 2, found
        return found[0].value if found else None

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Sums by one label."""
        sums: dict[str, float] = {}
        for sample in self.find(name, **labels):
            sums[sample.labels[label]] = sums.get(sample.labels[label], 0.0) + sample.value
        return sums


def command(*arguments: str) -> list[str]:
    """The command line of claimscope in this Python."""
    return [sys.executable, "-m", "claimscope", *arguments]


def environment(**more: str) -> dict[str, str]:
    """Our environment without settings of claimscope and without a cluster."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLAIMSCOPE_", "KUBERNETES_"))
    }
    return kept | more


def claimscope(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that ends by itself."""
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=30, check=False
    )


class Agent:
    """One agent process on a free loopback port; a context that stops it and checks how it ended."""

    def __init__(self, directory: Path, *arguments: str, state_file: Path | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.control_socket = directory / "control.sock"
        self.state_file = state_file or directory / "agent.json"
        self._log = directory / "log"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.spawned = self.served = 0.0  # monotonic: just before the simulation began, just after

    def __enter__(self) -> Agent:
        line = command(
            "agent", "--web-listen-address", "127.0.0.1:0", "--node-name", "node-a",
            "--state-file", str(self.state_file), "--control-socket", str(self.control_socket), *self._arguments,
        )
        self.spawned = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(line, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def wait_served(self) -> Agent:
        """Waits until it answers."""
        found = until(lambda: _SERVING.search(self.log), START_SECONDS, lambda: self.log)
        self.served = time.monotonic()
        self.url = found[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        if kind is None:
            assert code == 0, self.log
            assert "Traceback" not in self.log, self.log
            assert "never retrieved" not in self.log, self.log

    @property
    def log(self) -> str:
        """What it logged so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def get(self, path: str, **headers: str) -> Answer:
        """Asks for a path; header names with underscores."""
        request = urllib.request.Request(
            self.url + path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return Answer(
                    status=reply.status,
                    headers={name.lower(): value for name, value in reply.headers.items()},
                    body=reply.read(),
                )
        except urllib.error.HTTPError as error:
            with error:
                return Answer(
                    status=error.code,
                    headers={name.lower(): value for name, value in error.headers.items()},
                    body=error.read(),
                )

    def scrape(self) -> Scrape:
        """The present exposition; empty while there is none."""
        answer = self.get("/metrics")
        return Scrape(answer.text if answer.status == 200 else "")

    def until(self, condition: Callable[[Scrape], T], seconds: float = 15.0) -> T:
        """Scrapes until the condition gives something true, and gives that."""
        return until(lambda: condition(self.scrape()), seconds, lambda: self.log[-3000:])

    def until_ready(self, status: int = 200, seconds: float = 15.0) -> str:
        """Waits for a status of /readyz and gives its text."""

        def ready() -> str | None:
            answer = self.get("/readyz")
            return answer.text if answer.status == status else None

        return until(ready, seconds, lambda: self.get("/readyz").text + self.log[-3000:])

    def nvml(self, *arguments: str) -> str:
        """Runs `claimscope nvml` against it."""
        done = claimscope("nvml", *arguments, "--control-socket", str(self.control_socket))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sampler_pid(self, other_than: int = 0) -> int:
        """Which process samples now; waits while there is none, or still that one."""

        def find() -> int | None:
            pid: int | None = json.loads(self.nvml("status"))["pid"]
            return None if pid == other_than else pid

        return until(find, 10.0, lambda: self.log[-3000:])


def until(ask: Callable[[], T | None], seconds: float, about: Callable[[], str]) -> T:
    """Asks until the answer is true; TimeoutError with what `about` says."""
    end = time.monotonic() + seconds
    tick = threading.Event()
    while not (found := ask()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {about()}")
        tick.wait(POLL_SECONDS)
    return found


class Recorder:
    """Scrapes in a thread and keeps what changes slowly, so that tests can ask what was seen and when."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._seen: list[tuple[float, bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failures: list[str] = []  # scrapes that were not answered well
        self.longest_seconds = 0.0

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        served = False
        while not self._stop.wait(0.1):
            began = time.monotonic()
            try:
                answer = self.agent.get("/metrics")
            except OSError as error:
                self.failures.append(str(error))
                continue
            now = time.monotonic()
            if answer.status == 200:
                served = True
                self._seen.append((now, b"".join(_WORLD.findall(answer.body))))
                self.longest_seconds = max(self.longest_seconds, now - began)
            elif served:
                self.failures.append(answer.text)

    def scrapes(self) -> Iterator[tuple[float, Scrape]]:
        """What was seen so far, with the monotonic time of each."""
        for at, body in tuple(self._seen):
            yield at, Scrape(body.decode())

    def first(self, condition: Callable[[Scrape], object], seconds: float = 25.0, after: float = 0.0) -> float:
        """When the condition first held (monotonic); waits for it. Looks at each scrape once."""
        looked = 0

        def look() -> float | None:
            nonlocal looked
            while looked < len(self._seen):
                at, body = self._seen[looked]
                looked += 1
                if at > after and condition(Scrape(body.decode())):
                    return at
            return None

        return until(look, seconds, lambda: self._seen[-1][1].decode() + self.agent.log[-3000:])
