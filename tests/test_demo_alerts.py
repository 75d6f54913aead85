"""The demo with its script sped up, and a real Prometheus: does every alert fire that the simulator can cause?"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re

import aiohttp
import pytest
import yaml
from alerts import shortened
from alerts.model import Alert
from alerts.table import alerts, groups

from claimscope import demo
from claimscope.sim import demo_files, layout, script
from claimscope.sim.profiles import profile_named
from claimscope.sim.scenario import check_scenario

SECONDS = 110.0
# Three agents, a controller and Prometheus share the cores with the other tests.
pytestmark = [pytest.mark.timeout(150), pytest.mark.xdist_group("dashboards")]
SHOWN = frozenset(name for act in script.SCRIPT for name in act.alerts)
# Said after a claim was seen for a minute; `python -m benchmarks.alerts_live` waits for it, and for all to resolve.
TAKES_LONGER = frozenset({"DRAClaimLeaked"})
STARTS = 14.0  # seconds until Prometheus looks
HASTE = 10.0


def hurried(act: script.Act) -> script.Act:
    """The act a tenth as late, a third as long; the controller goes last, when all that it must say has been said."""
    if act.stops == script.CONTROLLER:
        return dataclasses.replace(act, at=STARTS + 62, lasts=SECONDS)
    if act.stops:
        return dataclasses.replace(act, at=STARTS - 8)  # an agent is called silent after a minute
    return dataclasses.replace(act, at=act.at and STARTS + act.at / HASTE, lasts=act.lasts and act.lasts / 3)


def test_every_alert_fires_in_the_demo_or_says_why_not() -> None:
    reasons = {alert.name: alert.not_in_demo for alert in alerts()}
    assert {name for name, reason in reasons.items() if not reason} == SHOWN


async def test_alerts_of_the_script_fire(prometheus: str, cc: str) -> None:
    del prometheus, cc  # the demo finds them itself
    lines: list[str] = []
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def say(line: str) -> None:
        lines.append(line)
        if (found := re.match(r"prometheus\s+(http://[^/\s]+)", line)) is not None:
            address.set_result(found[1])

    acts = [hurried(act) for act in script.SCRIPT]
    playing = asyncio.create_task(
        demo.run(profile="h100x8", scenario=None, seconds=SECONDS, say=say, acts=acts, haste=HASTE)
    )
    try:
        waiting: set[asyncio.Future[str] | asyncio.Task[None]] = {playing, address}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert address.done(), "\n".join(lines)
        async with aiohttp.ClientSession() as web:
            fired = await _fired(web, await address, playing)
    finally:
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing
    assert SHOWN - TAKES_LONGER - fired == set(), "\n".join(lines)
    assert fired & {alert.name for alert in alerts() if alert.not_in_demo} == set(), "fires in spite of its reason"


async def _fired(web: aiohttp.ClientSession, address: str, playing: asyncio.Task[None]) -> set[str]:
    """Alerts that have fired, once all have that should, or the demo is over."""
    fired: set[str] = set()
    query = 'count by (alertname) (last_over_time(ALERTS{alertstate="firing"}[5m]))'
    while not playing.done() and SHOWN - TAKES_LONGER - fired:
        done, _ = await asyncio.wait({playing}, timeout=1.0)
        with contextlib.suppress(aiohttp.ClientError):
            async with web.get(f"{address}/api/v1/query", params={"query": query}) as response:
                found = (await response.json())["data"]["result"]
            fired |= {each["metric"]["alertname"] for each in found}
        if done:
            break
    return fired


def test_committed_files_are_made_of_the_tables() -> None:
    made = shortened.files()
    assert {path: path.read_text() for path in made} == made, "run `python -m alerts.shortened`"


@pytest.mark.parametrize(
    ("span", "shorter"), [("15m", "30s"), ("5m", "10s"), ("1h", "120s"), ("30s", "2s"), ("1h30m", "180s")]
)
def test_spans_are_a_thirtieth(span: str, shorter: str) -> None:
    assert shortened.shorter(span) == shorter


def test_offsets_are_shortened_as_ranges_are() -> None:
    rule = next(
        rule for group in shortened.shortened(groups()) for rule in group.rules
        if isinstance(rule, Alert) and rule.name == "DRAConstraintViolations"
    )
    assert "offset 30s" in rule.expr
    assert "[30s]" in rule.expr
    assert "15m" not in rule.expr


def test_samples_are_late_for_less_than_the_hold_of_other_alerts() -> None:
    rules = (rule for group in shortened.shortened(groups()) for rule in group.rules)
    made = {rule.name: rule for rule in rules if isinstance(rule, Alert)}
    late = next(alert for alert in alerts() if alert.name == "DRAAgentSamplesLate")
    assert (made[late.name].hold, shortened.shorter(late.hold)) == ("10s", "30s")


def test_no_range_of_the_demo_is_as_long_as_elsewhere() -> None:
    left = [
        found for group in shortened.shortened(groups()) for rule in group.rules
        for found in re.findall(r"\[\d+[mhd]|offset \d+[mhd]", rule.expr)
    ]  # fmt: skip
    assert left == []


def test_haste_shortens_holds_and_nothing_else() -> None:
    plain, hasty = (yaml.safe_load(demo_files.rules(haste))["groups"] for haste in (1.0, 10.0))
    holds = [
        (before["for"], after["for"])
        for old, new in zip(plain, hasty, strict=True)
        for before, after in zip(old["rules"], new["rules"], strict=True)
        if "for" in before
    ]
    assert ("30s", "3s") in holds
    assert [{**rule, "for": ""} for group in plain for rule in group["rules"]] == [
        {**rule, "for": ""} for group in hasty for rule in group["rules"]
    ]


@pytest.mark.parametrize("node", [script.SECOND, script.THIRD])
def test_the_script_can_be_played(node: str) -> None:
    profile = profile_named(dict(demo.nodes_of("h100x8"))[node])
    check_scenario(script.scenarios(script.SCRIPT)[node], profile, layout.FUNCTIONS)


def test_alerts_fire_after_their_acts_begin() -> None:
    assert [
        (act.words, name) for act in script.SCRIPT for name, seconds in act.alerts.items() if seconds < act.at
    ] == []


def test_the_timetable_fits_on_a_screen() -> None:
    lines = script.timetable(script.SCRIPT)
    assert len(lines) <= 32
    assert "+ 30 s  demo-node-2: NVLink 5 of GPU 3 goes down, until +150 s: DRADeviceNVLinkDown +39 s" in lines
