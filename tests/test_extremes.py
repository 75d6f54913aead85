"""Rolling extremes: the last completed minute of the wall clock, the same for every scraper."""

from __future__ import annotations

from accounting_data import QUANTITIES
from claimscope.extremes import Extremes
from claimscope.model import Window

S = 1_000_000_000
MINUTE = 60 * S
START = 28_000_000 * MINUTE


def window(end: float, low: float, high: float, entity: str = "GPU-1", key: str = "power") -> Window:
    end_ns = int(end * S)
    return Window(
        entity=entity, session=0, epoch=0, start_ns=end_ns - S, end_ns=end_ns, end_wall_ns=START + end_ns, ticks=10,
        low={key: low}, high={key: high},
    )


def filled(*windows: Window) -> Extremes:
    extremes = Extremes(QUANTITIES)
    for one in windows:
        extremes.observe(one)
    return extremes


def test_a_minute_is_answered_once_it_is_complete() -> None:
    extremes = filled(window(1, 90, 110), window(30, 50, 100), window(60, 95, 400), window(61, 1, 999))

    assert extremes.view(START + 59 * S) == {}
    assert extremes.view(START + 61 * S) == {}  # its last windows may still be under way
    assert extremes.view(START + 62 * S) == {"GPU-1": {"power": (50, 400)}}
    assert extremes.view(START + 62 * S) == {"GPU-1": {"power": (50, 400)}}  # a second scraper
    assert extremes.view(START + 121 * S) == {"GPU-1": {"power": (50, 400)}}
    assert extremes.view(START + 122 * S) == {"GPU-1": {"power": (1, 999)}}


def test_a_minute_that_was_joined_late_is_not_a_full_one() -> None:
    extremes = filled(window(31, 10, 20), window(60, 10, 20), window(70, 5, 6))

    assert extremes.view(START + 62 * S) == {}
    assert extremes.view(START + 122 * S) == {"GPU-1": {"power": (5, 6)}}


def test_quantities_without_such_a_view_are_left_out_and_axis_values_are_kept() -> None:
    extremes = filled(window(1, 1, 2, key="memory"), window(2, 3, 4, key="busy/3"))

    assert extremes.view(START + 62 * S) == {"GPU-1": {"busy/3": (3, 4)}}


def test_a_silent_device_is_forgotten_and_comes_back() -> None:
    extremes = filled(window(1, 1, 2), window(1, 1, 2, entity="GPU-2"), window(70, 3, 4))

    assert extremes.view(START + 62 * S).keys() == {"GPU-1", "GPU-2"}
    assert extremes.view(START + 122 * S).keys() == {"GPU-1"}
    extremes.observe(window(181, 7, 8, entity="GPU-2"))
    assert extremes.view(START + 242 * S) == {"GPU-2": {"power": (7, 8)}}


def test_memory_is_bounded_when_the_clock_jumps() -> None:
    extremes = Extremes(QUANTITIES)
    for minute in (0, 1, 2, 3, 4, 500, 2, 3, 4, 5, 6):
        extremes.observe(window(minute * 60 + 1, minute, minute))

    assert extremes.view(START + 5 * MINUTE + 62 * S)["GPU-1"] == {"power": (5, 5)}
    assert [extremes.view(START + minute * MINUTE + 62 * S) for minute in (9, 10)] == [{}, {}]


def test_a_clock_that_was_set_back_costs_the_running_minute_and_no_more() -> None:
    extremes = Extremes(QUANTITIES)
    for end in range(1000, 1200):
        extremes.observe(window(end, 50, 100))
    for end in range(300, 430):  # from minute 19 to minute 4
        extremes.observe(window(end, 60, 90))

    assert extremes.view(START + 302 * S) == {}
    assert extremes.view(START + 362 * S) == {"GPU-1": {"power": (60, 90)}}
    assert extremes.view(START + 422 * S) == {"GPU-1": {"power": (60, 90)}}
