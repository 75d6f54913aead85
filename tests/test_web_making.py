"""Answers that take long: shared, one of each client at a time, and refused beyond some."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from claimscope.web.making import ANSWER_BYTES_KEPT, ANSWERS_KEPT, Answers, CrowdedError, Makers
from serving_help import until


class Work:
    """Something that is made as soon as a test lets it, and counts how often."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._go_on = threading.Semaphore(0)

    def of(self, name: str) -> Callable[[], str]:
        def make() -> str:
            self.begun.append(name)
            assert self._go_on.acquire(timeout=20)
            return name.upper()

        return make

    def finish(self, number: int = 1) -> None:
        self._go_on.release(number)


async def test_who_asks_for_the_same_shares_it() -> None:
    work, makers = Work(), Makers()
    asking = [asyncio.ensure_future(makers.made("key", f"client-{at}", work.of("page"))) for at in range(50)]
    await until(lambda: work.begun == ["page"])
    asking[0].cancel()  # who asked first goes away
    work.finish()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert (answers[1:], work.begun) == (["PAGE"] * 49, ["page"])


async def test_a_client_waits_for_itself_and_not_before_others() -> None:
    work, makers = Work(), Makers()
    asking = [
        asyncio.ensure_future(makers.made((client, at), client, work.of(f"{client}{at}")))
        for client, at in (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0))
    ]
    await until(lambda: sorted(work.begun) == ["a0", "b0"])  # two at once, one of each
    work.finish(5)
    assert await asyncio.gather(*asking) == ["A0", "A1", "A2", "B0", "C0"]
    assert sorted(work.begun) == ["a0", "a1", "a2", "b0", "c0"]


async def test_beyond_some_that_wait_they_are_refused() -> None:
    work, makers = Work(), Makers(waiting=6, waiting_of_client=4)
    asking = [asyncio.ensure_future(makers.made(("a", at), "a", work.of(f"a{at}"))) for at in range(6)]
    asking += [asyncio.ensure_future(makers.made(("b", at), "b", work.of(f"b{at}"))) for at in range(5)]
    await until(lambda: sorted(work.begun) == ["a0", "b0"])
    work.finish(20)
    answers = await asyncio.gather(*asking, return_exceptions=True)
    refused = [number for number, answer in enumerate(answers) if isinstance(answer, CrowdedError)]
    assert refused == [5, 9, 10]  # a sixth of one client, and what is more than six in all
    assert await makers.made("later", "a", work.of("later")) == "LATER"


async def test_what_fails_fails_for_all_and_gives_its_place_back() -> None:
    def fail() -> str:
        raise LookupError("no such thing")

    makers = Makers(at_once=1)
    asking = [makers.made("key", client, fail) for client in "ab"]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["no such thing"] * 2
    assert await makers.made("key", "a", lambda: 7) == 7


async def test_an_answer_is_made_once_and_few_are_kept() -> None:
    made: list[int] = []

    def make(number: int, size: int = 1) -> Callable[[], bytes]:
        return lambda: made.append(number) or bytes(size)  # type: ignore[func-returns-value]

    answers, makers = Answers("snapshot"), Makers()
    for number in (0, 0, *range(ANSWERS_KEPT), 0, 1):
        await answers.get(makers, number, "a", make(number))
    assert made == [*range(ANSWERS_KEPT)]
    await answers.get(makers, "one more", "a", make(100))
    await answers.get(makers, 2, "a", make(2))  # the longest unused is made anew
    assert made == [*range(ANSWERS_KEPT), 100, 2]
    for _ in range(2):
        await answers.get(makers, "large", "a", make(200, ANSWER_BYTES_KEPT + 1))
    assert made[-2:] == [200, 200]


@pytest.mark.parametrize(
    ("seconds", "held_until"),
    [(0.01, 0.0), (0.4, 2.0), (30.0, 10.0)],
    ids=["quick", "five times as long", "ten seconds at most"],
)
async def test_what_took_long_is_held(seconds: float, held_until: float) -> None:
    now, worked = 100.0, iter((1.0, 1.0 + seconds))
    answers = Answers("snapshot", monotonic=lambda: now, worked=lambda: next(worked))
    assert not answers.hold()
    await answers.get(Makers(), "key", "a", lambda: b"answer")
    assert answers.hold() == (held_until > 0)
    now = 100.0 + held_until
    assert not answers.hold()
    now -= 0.01
    assert answers.hold() == (held_until > 0)
