"""What is remade when, and how lists are taken without keeping all else waiting."""

from __future__ import annotations

import asyncio

from claimscope.claims.engine import Engine, _Part
from claimscope.claims.model import Key
from claimscope.claims.selectors import Selectors
from claimscope.model import Sample
from inventory_objects import a_claim, a_node, a_pod, values


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.ns = 0

    def monotonic_ns(self) -> int:
        return self.ns

    def wall_ns(self) -> int:
        return self.ns


class Costly:
    """A part whose makings take what they are told to."""

    def __init__(self, *seconds: float) -> None:
        self.clock = Clock()
        self.seconds = list(seconds)
        self.part = _Part(make=self._make, result=0)
        self.made_at: list[float] = []

    def _make(self) -> int:
        self.made_at.append(self.clock.ns / 1e9)
        self.clock.ns += round(self.seconds.pop(0) * 1e9)
        return len(self.made_at)

    def news_each_second(self, until: int) -> list[float]:
        for generation in range(until):
            self.clock.ns = max(self.clock.ns, generation * 1_000_000_000)
            self.part.refresh(generation, self.clock)
        return self.made_at


def test_the_cost_of_the_first_making_delays_nothing() -> None:
    assert Costly(1.5, *[0.01] * 20).news_each_second(6) == [0, 1.5, 2, 3, 4, 5]  # not 30 s later


def test_what_costs_much_again_and_again_is_made_seldom() -> None:
    assert Costly(*[1.0] * 20).news_each_second(50) == [0, 1, 22, 43]


def test_one_long_making_in_between_delays_nothing() -> None:
    assert Costly(0.01, 0.01, 0.7, *[0.01] * 20).news_each_second(6) == [0, 1, 2, 3, 4, 5]


def engine() -> Engine:
    return Engine(clock=Clock(), selectors=Selectors.in_process(), count_since_wall=0.0)


async def test_a_long_list_lets_others_work() -> None:
    made, turns = engine(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await made.take_list("resourceclaims", [a_claim(f"c{number}") for number in range(10_000)])
    task.cancel()
    assert turns >= 5
    assert (len(made.cluster.claims), len(made.lifecycle.views)) == (10_000, 10_000)


async def test_what_a_list_holds_undecodable_stays() -> None:
    made = engine()
    await made.take_list("resourceclaims", [a_claim("c")])
    await made.take_list("resourceclaims", [], frozenset({"a/c"}))
    assert list(made.cluster.claims) == [Key("a", "c")]
    await made.take_list("resourceclaims", [])
    assert list(made.cluster.claims) == []


async def test_kinds_that_are_not_served_hold_nothing_back() -> None:
    made = engine()
    plugin = [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]
    await made.take_list("pods", [a_pod("p", containers=plugin, nodeName="n1")])
    await made.take_list("nodes", [a_node("n1", nvidia_com__gpu="8")])

    async def modes() -> dict[tuple[str, ...], float]:
        snapshot = await made.publish(complete=True)
        return values([each for each in snapshot.samples if isinstance(each, Sample)], "dra_node_mode_info")

    assert await modes() == {}
    made.set_unserved({"resourceclaims", "resourceslices", "deviceclasses"})
    assert await modes() == {("n1", "device_plugin"): 1}
