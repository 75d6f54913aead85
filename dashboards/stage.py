"""What do the boards show? The demo with faults on, and every query of a board asked of its Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from dashboards.grafana import Annotation, Dashboard, Panel, Query, Variable

FAULTS: Final = Path(__file__).with_name("faults.yaml")
_START_SECONDS: Final = 90.0  # three agents, a controller and Prometheus, perhaps on one busy core
_STOP_SECONDS: Final = 20.0
_AT_ONCE: Final = 4
RATE_SECONDS: Final = 10  # what rates look back, at a scrape a second
_API_SERVER: Final = re.compile(r"^api server\s+(http://[^/\s]+)")
_PROMETHEUS: Final = re.compile(r"^prometheus\s+(http://[^/\s]+)")
_MAINTAINED: Final = "demo-node-3"  # where no fault of the scenario is
_DEADLINE: Final = "5s"  # so soon that it is missed while somebody looks
_LABEL_VALUES: Final = re.compile(r"label_values\((?:(?P<series>.+),\s*)?(?P<label>\w+)\)")
_QUERY_RESULT: Final = re.compile(r"query_result\((?P<expr>.+)\)", re.DOTALL)
_PLACE: Final = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|([A-Za-z_]\w*))")

EVERYTHING: Final = ".*"


class StageError(Exception):
    """The demo or its Prometheus does not do what it should; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of an answer."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]  # Unix time, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What Grafana's time picker would say."""

    start: float
    end: float
    step: int = 1
    rate_seconds: int = RATE_SECONDS

    def variables(self) -> dict[str, str]:
        """Grafana's own variables."""
        return {
            "__rate_interval": f"{self.rate_seconds}s", "__interval": f"{self.step}s",
            "__interval_ms": str(self.step * 1000), "__rate_interval_ms": str(self.rate_seconds * 1000),
            "__range": f"{round(self.end - self.start)}s", "__range_s": str(round(self.end - self.start)),
        }  # fmt: skip


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its variables replaced; raises KeyError for one that has no value."""
    return _PLACE.sub(lambda found: values[found[1] or found[2]], text)


class Prometheus:
    """A Prometheus server as Grafana's data source asks it."""

    def __init__(self, web: aiohttp.ClientSession, url: str) -> None:
        self._web = web
        self._url = url
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def _get(self, path: str, parameters: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON
        async with self._places, self._web.post(f"{self._url}/api/v1/{path}", data=parameters) as response:
            answer = await response.json()
        if answer["status"] != "success":
            raise StageError(f"{answer.get('errorType')}: {answer.get('error')}: {dict(parameters)}")
        return answer["data"]

    async def now(self, expr: str, at: float | None = None) -> tuple[Series, ...]:
        """An instant query."""
        data = await self._get("query", {"query": expr, **({} if at is None else {"time": f"{at:.3f}"})})
        if data["resultType"] == "scalar":
            return (Series(labels={}, points=((data["result"][0], float(data["result"][1])),)),)
        return tuple(
            Series(labels=each["metric"], points=((each["value"][0], float(each["value"][1])),))
            for each in data["result"]
        )

    async def over(self, expr: str, times: Times) -> tuple[Series, ...]:
        """A range query."""
        data = await self._get("query_range", {
            "query": expr, "start": f"{times.start:.3f}", "end": f"{times.end:.3f}", "step": str(times.step),
        })  # fmt: skip
        return tuple(
            Series(labels=each["metric"], points=tuple((at, float(value)) for at, value in each["values"]))
            for each in data["result"]
        )

    async def values(self, variable: Variable, values: Mapping[str, str]) -> list[str]:
        """The choices of a query variable, sorted as the boards have them."""
        text = filled(variable.query, values)
        found: list[str] = []
        if (result := _QUERY_RESULT.fullmatch(text)) is not None:
            # Grafana spells a result as `{label="value"} 1 1700000000000` before it applies the pattern.
            pattern = re.compile(variable.regex.strip("/"))
            for series in await self.now(result["expr"]):
                spelled = "{" + ",".join(f'{name}="{value}"' for name, value in series.labels.items()) + "} 1"
                found += [match[1] for match in [pattern.search(spelled)] if match is not None]
        elif (label := _LABEL_VALUES.fullmatch(text)) is not None:
            matching = {} if label["series"] is None else {"match[]": label["series"]}
            async with self._web.get(
                f"{self._url}/api/v1/label/{label['label']}/values", params=matching
            ) as response:
                found = (await response.json())["data"]
        else:
            raise StageError(f"variable {variable.name}: neither label_values nor query_result: {text}")
        return sorted(set(found) - {""})


@contextlib.asynccontextmanager
async def demo(scenario: Path = FAULTS) -> AsyncIterator[str]:
    """Runs `claimscope demo` until the context ends; the address of its Prometheus. Raises StageError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "claimscope", "demo", "--scenario", str(scenario),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )
    stdout = process.stdout
    if stdout is None:  # for the type checker: it was asked for
        raise StageError("the demo has no output")
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(_START_SECONDS):
            api, url = await _addresses(stdout)
        reading = asyncio.create_task(_drain(stdout))
        await _start_maintenance(api)
        yield url
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        if reading is not None:
            await reading


async def _addresses(stdout: asyncio.StreamReader) -> tuple[str, str]:
    """Of the API server and of Prometheus."""
    said = []
    api = ""
    while line := (await stdout.readline()).decode():
        said.append(line)
        if (found := _API_SERVER.match(line)) is not None:
            api = found[1]
        if (found := _PROMETHEUS.match(line)) is not None:
            if "left out" in line:
                break
            return api, found[1]
    raise StageError("the demo ended or runs without Prometheus:\n" + "".join(said))


async def _start_maintenance(api: str) -> None:
    """Asks for a maintenance, as no scenario of GPUs can."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "claimscope", "maintenance", "start", _MAINTAINED, "--reason", "new firmware",
        "--deadline", _DEADLINE, "--api-server-url", api,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise StageError(f"maintenance of {_MAINTAINED} was refused: {said.decode()}")


async def _drain(stdout: asyncio.StreamReader) -> None:
    while await stdout.read(65536):
        pass


async def until_seen(prometheus: Prometheus, seconds: int, deadline_seconds: float = 60.0) -> Times:
    """Waits until every target has been scraped for so long, and for as long as a rate looks back; the time range."""
    enough = seconds + RATE_SECONDS
    async with asyncio.timeout(deadline_seconds + enough):
        while True:
            seen = await prometheus.now(f"min(count_over_time(up[{enough + 30}s]))")
            if seen and seen[0].points[0][1] >= enough:
                break
            await asyncio.sleep(0.5)
    end = seen[0].points[0][0]
    return Times(start=end - seconds, end=end)


Place = tuple[str, int]  # title of a panel, number of the query


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One board with everything it was answered."""

    board: Dashboard
    times: Times
    values: Mapping[str, str]  # of its variables
    choices: Mapping[str, tuple[str, ...]]  # of its query variables
    answers: Mapping[Place, tuple[Series, ...]]
    marks: Mapping[str, tuple[Series, ...]]  # annotations by name


async def choose(
    prometheus: Prometheus, board: Dashboard, times: Times, *, everything: bool
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Values of the board's variables, and what there was to choose from.

    With `everything` those that allow it are "All"; else each has its first value, or the board's example.
    """
    values = times.variables()
    choices: dict[str, tuple[str, ...]] = {}
    for variable in board.variables:
        match variable.kind:
            case "datasource":
                continue
            case "query":
                found = choices[variable.name] = tuple(await prometheus.values(variable, values))
                values[variable.name] = _chosen(board, variable, found, everything)
            case "textbox" | "custom":
                values[variable.name] = variable.default
    return values, choices


def _chosen(board: Dashboard, variable: Variable, found: tuple[str, ...], everything: bool) -> str:
    if not found or (everything and variable.multiple):
        return EVERYTHING
    chosen = board.example.get(variable.name, found[0])
    if chosen not in found:
        raise StageError(f"{board.uid}: the example {variable.name}={chosen} is none of {', '.join(found)}")
    # Of a variable that allows several, Grafana makes a pattern, and escapes that for a string of PromQL.
    return re.escape(chosen).replace("\\", "\\\\") if variable.multiple else chosen


async def show(prometheus: Prometheus, board: Dashboard, times: Times, *, everything: bool = True) -> Shown:
    """Asks everything that a board asks."""
    values, choices = await choose(prometheus, board, times, everything=everything)

    async def ask(panel: Panel, index: int, query: Query) -> tuple[Place, tuple[Series, ...]]:
        expr = filled(query.expr, values)
        try:
            if query.instant or panel.kind == "table":
                return (panel.title, index), await prometheus.now(expr, times.end)
            return (panel.title, index), await prometheus.over(expr, times)
        except StageError as error:
            raise StageError(f"{board.uid}, {panel.title}, query {index}: {error}") from error

    async def mark(annotation: Annotation) -> tuple[str, tuple[Series, ...]]:
        return annotation.name, await prometheus.over(filled(annotation.expr, values), times)

    answers = await asyncio.gather(*(
        ask(panel, index, query) for panel in board.panels() for index, query in enumerate(panel.queries)
    ))
    marks = await asyncio.gather(*(mark(each) for each in board.annotations))
    return Shown(
        board=board, times=times, values=values, choices=choices, answers=dict(answers), marks=dict(marks)
    )


@contextlib.asynccontextmanager
async def stage(seconds: int) -> AsyncIterator[tuple[Prometheus, Times]]:
    """The demo, watched for so long."""
    async with (
        demo() as url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as web,
    ):
        prometheus = Prometheus(web, url)
        yield prometheus, await until_seen(prometheus, seconds)


def without_data(shown: Shown) -> Iterator[tuple[Panel, Query]]:
    """Queries that found nothing."""
    for panel in shown.board.panels():
        for index, query in enumerate(panel.queries):
            if not shown.answers[panel.title, index]:
                yield panel, query
