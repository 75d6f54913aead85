"""`claimscope taints lift`: one rule that cannot be deleted keeps none of the others, and who did it is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner

from claimscope.cli import cli
from claimscope.kube.api import ApiClient, OpenAccess
from claimscope.sim.api.faults import HttpFault
from claimscope.sim.api.kinds import DEVICE_TAINT_RULES, LEASES
from claimscope.taints import command
from claimscope.taints.notebook import LIFTED, Lifted, asked_of
from taints_bench import RULES, Bench, Json, finding, lift, serving

BROKEN = finding("GPU-1-3")
SLOW = finding("GPU-1-4", "pcie_width", "degraded")
ALSO_SLOW = finding("GPU-1-5", "pcie_width", "degraded")


async def standing(bench: Bench) -> list[str]:
    """Names of the rules of gpu-3, gpu-4 and gpu-5, which the leader has seen to stand."""
    await bench.says("node-1", BROKEN, SLOW, ALSO_SLOW)
    await bench.leader.round()
    await bench.leader.round()
    assert bench.effects() == {"gpu-3": "unhealthy NoSchedule", "gpu-4": "degraded None", "gpu-5": "degraded None"}
    return [bench.rule(device)["metadata"]["name"] for device in ("gpu-3", "gpu-4", "gpu-5")]


async def story(bench: Bench, uuid: str) -> list[str]:
    found = await command.gpu_story(bench.leader.api, bench.leader.notebook, uuid)
    return command.story_words(found).splitlines()


class Meddled(ApiClient):
    """Somebody writes a rule before each of the first deletions of it reaches the server."""

    def __init__(self, bench: Bench, name: str, change: Callable[[Json], None], times: int) -> None:
        super().__init__(OpenAccess(bench.server.url))
        self.bench, self.name, self.change, self.left = bench, name, change, times

    async def send(self, method: str, path: str, **more: Any) -> bytes:
        if method == "DELETE" and path.endswith(self.name) and self.left:
            self.left -= 1
            rule = self.bench.rules()[self.name]
            self.change(rule)
            await self.bench.server.put(DEVICE_TAINT_RULES, rule)
        return await super().send(method, path, **more)


async def lift_all(bench: Bench, name: str, change: Callable[[Json], None], times: int) -> command.Lifting:
    api = Meddled(bench, name, change, times)
    try:
        return await lift(bench, api=api, all_of_ours=True)
    finally:
        await api.close()


def annotated(rule: Json) -> None:
    notes = rule["metadata"]["annotations"]
    notes["x/y"] = notes.get("x/y", "") + "z"


async def test_a_rule_that_somebody_writes_meanwhile_is_looked_at_again() -> None:
    async with serving() as bench:
        names = await standing(bench)
        found = await lift_all(bench, names[0], annotated, 4)
        assert (sorted(line.split(":")[0] for line in found.done[:3]), found.left) == (
            sorted(f"lifted {each}" for each in names), [],
        )
        assert bench.rules() == {}


async def test_one_rule_that_stays_keeps_none_of_the_others_and_is_named() -> None:
    async with serving() as bench:
        names = await standing(bench)
        found = await lift_all(bench, names[0], annotated, 99)
        assert list(bench.rules()) == names[:1]
        assert [line.split(":")[0] for line in found.left] == [f"not lifted {names[0]}"]


async def test_a_rule_that_somebody_takes_over_meanwhile_is_left_to_them() -> None:
    async with serving() as bench:
        names = await standing(bench)
        found = await lift_all(bench, names[1], lambda rule: rule["metadata"]["labels"].clear(), 1)
        assert list(bench.rules()) == [names[1]]
        assert found.left == [f"not lifted {names[1]}: somebody took its label app.kubernetes.io/managed-by away"]


async def test_list_and_explain_say_who_lifted_until_when_and_what_device_it_is() -> None:
    async with serving() as bench:
        names = await standing(bench)
        await lift(bench, all_of_ours=True, reason="new rack")
        for _ in range(2):
            bench.clock.advance(2)
            await bench.leader.round()
        assert bench.effects() == {}
        said = f"ann lifted its taint {names[0]}, so that it has none until 2026-11-21T12:23:34+00:00: new rack"
        assert f"not fenced: {said} (xid_fatal, ignored)" in await story(bench, "GPU-1-3")
        table = command.table(await command.overview(bench.leader.api, bench.leader.notebook))
        (line,) = (" ".join(line.split()) for line in table.splitlines() if "GPU-1-3" in line)
        assert line == (
            f"gpu.nvidia.com/node-1/gpu-3 node-1 GPU-1-3 unhealthy - - xid_fatal held (ignored): {said}"
        )


async def test_a_taint_that_nobody_says_to_have_lifted_was_somebody_elses_doing() -> None:
    async with serving() as bench:
        names = await standing(bench)
        await lift(bench, names=["GPU-1-4"])
        await bench.server.delete(DEVICE_TAINT_RULES, names[0])
        for _ in range(2):
            bench.clock.advance(2)
            await bench.leader.round()
        assert f"somebody else lifted its taint {names[0]}" in (await story(bench, "GPU-1-3"))[2]
        assert "ann lifted its taint" in (await story(bench, "GPU-1-4"))[2]


async def test_the_word_about_lifting_is_taken_away_after_ten_minutes() -> None:
    async with serving() as bench:
        await standing(bench)
        await lift(bench, names=["GPU-1-4"])
        assert LIFTED in await bench.leader.notebook.read()
        for _ in range(3):
            bench.clock.advance(301)
            await bench.all_say({"node-1": [BROKEN]})
            await bench.leader.round()
        assert LIFTED not in await bench.leader.notebook.read()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('["ann",1700000000,"",["a"]]', None),
        ('{"author":"ann","wall":1700000000}', Lifted(author="ann", wall=1.7e9)),
        ('{"author":"ann","wall":1700000601}', None),
        ("no", None),
    ],
)
def test_a_word_about_lifting_that_is_old_or_none_is_taken_away(text: str, found: Lifted | None) -> None:
    asked = asked_of({LIFTED: text}, 1.7e9)
    assert (asked.lifted, asked.annotations) == (found, () if found is not None else (LIFTED,))


async def test_without_a_controller_no_lease_is_made_to_tell_who_lifted() -> None:
    async with serving() as bench:
        names = await standing(bench)
        for name in ("claimscope-controller", "claimscope-controller-memory"):
            await bench.server.delete(LEASES, name, "claimscope")
        assert len((await lift(bench, all_of_ours=True)).done) >= len(names)
        assert bench.server.get(LEASES, "claimscope-controller", "claimscope") is None


async def test_the_command_says_what_is_left_and_exits_with_1(kept_logging: None) -> None:
    async with serving() as bench:
        names = await standing(bench)
        bench.server.fail(f"{RULES}/{names[1]}", HttpFault(status=403, message="denied"))
        arguments = ["taints", "lift", "--all", "--author", "ann", "--api-server-url", bench.server.url]
        invoke = partial(CliRunner().invoke, cli, [*arguments, "--namespace", "claimscope"])
        first = await asyncio.to_thread(invoke)
        assert first.exit_code == 1
        assert first.stdout.count("lifted claimscope.node-1.") == 2
        assert first.stderr.splitlines()[:1] == ["Error: not everything is lifted; left are:"]
        assert first.stderr.splitlines()[1].startswith(f"not lifted {names[1]}: ")
        assert list(bench.rules()) == [names[1]]
        second = await asyncio.to_thread(invoke)
        assert (second.exit_code, bench.rules()) == (0, {})


# --- what explain can say ---


async def test_what_is_held_back_and_not_named_is_said_to_be_so() -> None:
    async with serving(nodes=10) as bench:
        await bench.all_say({
            f"node-{node}": [finding(f"GPU-{node}-{gpu}", "gpu_lost", "lost") for gpu in range(8)]
            for node in range(1, 11)
        })
        await bench.leader.round()
        without = [
            uuid for node in range(1, 11) for gpu in range(8) for uuid in [f"GPU-{node}-{gpu}"]
            if not any("not fenced: " in line or "why it is not fenced" in line for line in await story(bench, uuid))
        ]
        assert len(without) == len([each for each in bench.effects().values() if each.endswith("NoSchedule")])
        unnamed = (
            "why it is not fenced is not known here: the controller names the first that it holds back, and not the "
            "30 others; `dra_taint_held` counts all by reason"
        )
        stories = [await story(bench, f"GPU-{node}-{gpu}") for node in range(1, 11) for gpu in range(8)]
        assert sum(unnamed in each for each in stories) == 30


async def test_a_time_that_no_calendar_has_is_told_as_its_last() -> None:
    async with serving() as bench:
        await bench.says("node-1", finding("GPU-1-0", since=1e15), finding("GPU-1-1", since=-1e15))
        await bench.leader.round()
        assert "finding xid_fatal (unhealthy) since 9999-12-31T23:59:59Z" in await story(bench, "GPU-1-0")
        assert "finding xid_fatal (unhealthy) since 1970-01-01T00:00:00Z" in await story(bench, "GPU-1-1")
