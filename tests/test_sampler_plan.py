"""What is read for an entity, and what samples add up to."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Stat, Tier, Unit, Via, View
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Missing
from claimscope.nvml.calls import CALLS
from claimscope.nvml.folding import trapezoid_weights
from claimscope.nvml.group import locate
from claimscope.nvml.plan import Plan, Source, applies, build_plan, call_names, sources
from claimscope.nvml.supervisor import call_name


def quantity(
    key: str,
    *reads: Read,
    tier: Tier = Tier.TICK,
    scope: Scope = Scope.GPU,
    axis: str | None = None,
    unit: Unit = Unit.ONE,
    opt_in: str | None = None,
) -> Quantity:
    return Quantity(
        key=key, reads=reads, kind=Kind.GAUGE, tier=tier, scope=scope, axis=axis, opt_in=opt_in,
        views=(View(stem=key, help="Something.", stat=Stat.LAST, unit=unit),),
    )


POWER = Read(via=Via.FIELD, name="POWER_INSTANT", scale=1e-3)
OLD_POWER = Read(via=Via.CALL, name="PowerUsage", scale=1e-3)
TABLE = (
    quantity("power_instant", POWER, OLD_POWER, unit=Unit.WATTS),
    quantity("busy", Read(via=Via.CALL, name="UtilizationRates", member="gpu"), scope=Scope.LEAF),
    quantity("memory_busy", Read(via=Via.CALL, name="UtilizationRates", member="memory")),
    quantity("link_state", Read(via=Via.CALL, name="NvLinkState"), axis="link", tier=Tier.SLOW),
    quantity("secret", Read(via=Via.CALL, name="PowerUsage"), opt_in="secrets"),
    quantity("tensor", Read(via=Via.GPM, name="ANY_TENSOR_UTIL"), tier=Tier.GPM),
)


def plan(refused: dict[Source, Missing] | None = None, *, mig: bool = False, has_mig: bool = False) -> Plan:
    return build_plan(
        TABLE, mig=mig, has_mig=has_mig, axes={"link": (0, 1)}, refused=refused or {},
        field_ids={"POWER_INSTANT": 186}, calls=CALLS, gpm_metrics={"ANY_TENSOR_UTIL": 5}, gpm=False, collectors=(),
    )


def test_readings_share_a_call_and_axes_are_expanded() -> None:
    made = plan()
    assert [reading.key for reading in made.readings] == [
        "power_instant", "busy", "memory_busy", "link_state/0", "link_state/1",
    ]
    assert sources(made.of_tier(Tier.TICK), Via.CALL) == (Source(Via.CALL, "UtilizationRates"),)
    assert made.missing == {"tensor": Missing.UNSUPPORTED}
    assert [reading.key for reading in made.readings if reading.fast] == ["power_instant"]


def test_a_refused_read_falls_back_to_the_next() -> None:
    source = Source(Via.FIELD, "POWER_INSTANT")
    made = plan({source: Missing.UNSUPPORTED})
    assert made.readings[0].source == Source(Via.CALL, "PowerUsage")


def test_a_denied_read_without_another_is_denied() -> None:
    refused = {Source(Via.FIELD, "POWER_INSTANT"): Missing.DENIED, Source(Via.CALL, "PowerUsage"): Missing.UNSUPPORTED}
    assert plan(refused).missing["power_instant"] is Missing.DENIED


@pytest.mark.parametrize(
    ("scope", "mig", "has_mig", "expected"),
    [
        (Scope.GPU, False, True, True),
        (Scope.GPU, True, False, False),
        (Scope.LEAF, False, True, False),
        (Scope.LEAF, False, False, True),
        (Scope.LEAF, True, False, True),
        (Scope.PART, True, False, True),
        (Scope.PART, False, True, True),
    ],
)
def test_scopes(scope: Scope, mig: bool, has_mig: bool, expected: bool) -> None:
    assert applies(scope, mig=mig, has_mig=has_mig) is expected


def test_every_call_of_the_tables_can_be_located_in_its_answer() -> None:
    for row in QUANTITIES:
        for read in row.reads:
            if read.via is Via.CALL:
                index, path = CALLS[read.name].members[read.member or "value"]
                locate(CALLS[read.name].outs[index], path)


def test_locate_follows_members_and_array_places() -> None:
    class Inner(ctypes.Structure):
        _fields_ = [("a", ctypes.c_uint), ("b", ctypes.c_ulonglong)]

    class Outer(ctypes.Structure):
        _fields_ = [("x", ctypes.c_int), ("inner", Inner), ("counts", ctypes.c_ushort * 4)]

    assert locate(ctypes.c_double, None) == (0, "d")
    assert locate(Outer, "x") == (0, "i")
    assert locate(Outer, "inner.b") == (16, "Q")
    assert locate(Outer, "counts[2]") == (28, "H")


def test_call_numbers_mean_the_same_on_both_sides() -> None:
    assert call_names(CALLS)[0] == ""
    assert call_name(call_names(CALLS).index("UtilizationRates")) == "UtilizationRates"
    assert call_name(1_000_000) == "unknown"


def test_trapezoid_of_a_ramp() -> None:
    seconds = [0, 1, 3]
    weights = trapezoid_weights([s * 1_000_000_000 for s in seconds], 2_000_000_000)
    assert sum(w * v for w, v in zip(weights, [0.0, 10.0, 30.0], strict=True)) == pytest.approx(45.0)


def test_a_gap_is_left_out() -> None:
    assert trapezoid_weights([0, 1_000_000_000, 9_000_000_000], 2_000_000_000) == pytest.approx([0.5, 0.5, 0.0])


@given(st.lists(st.integers(min_value=0, max_value=10_000_000_000), min_size=1, max_size=50))
def test_weights_add_up_to_the_time_that_was_watched(gaps: list[int]) -> None:
    times = [sum(gaps[:place]) for place in range(len(gaps))]
    expected = sum(gap for gap in gaps[: len(times) - 1] if gap <= 3_000_000_000) * 1e-9
    assert sum(trapezoid_weights(times, 3_000_000_000)) == pytest.approx(expected)
