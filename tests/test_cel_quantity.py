"""Quantities: the forms Kubernetes accepts, their order, their arithmetic, and how they are written again."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.cel.quantity import Quantity, QuantityError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", Fraction(0)),
        ("40Gi", Fraction(42949672960)),
        ("1.5Ti", Fraction(1649267441664)),
        ("200k", Fraction(200000)),
        ("1.3G", Fraction(1300000000)),
        ("100m", Fraction(1, 10)),
        ("5n", Fraction(5, 10**9)),
        ("7u", Fraction(7, 10**6)),
        ("1e3", Fraction(1000)),
        ("1E-3", Fraction(1, 1000)),
        ("2E", Fraction(2 * 10**18)),
        ("1Ei", Fraction(2**60)),
        ("-3Ki", Fraction(-3072)),
        ("+3", Fraction(3)),
        ("1.", Fraction(1)),
        (".5", Fraction(1, 2)),
        ("1.G", Fraction(10**9)),
        ("007", Fraction(7)),
        ("0.1n", Fraction(1, 10**9)),  # nothing is smaller than a nano
    ],
)
def test_a_quantity_is_read_exactly(text: str, value: Fraction) -> None:
    assert Quantity.parse(text).value == value


@pytest.mark.parametrize("text", ["200K", "40GiB", "Three1", "1KiB", "1ei", "1e", "1.5x"])
def test_an_unknown_suffix_is_refused_in_the_words_of_kubernetes(text: str) -> None:
    with pytest.raises(QuantityError, match=r"unable to parse quantity's suffix|quantities must match"):
        Quantity.parse(text)


@pytest.mark.parametrize("text", ["", "Mi", "1,3G", " 1", "1 ", "--1", ".", "+", "1.2.3", "١"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(QuantityError, match="quantities must match the regular expression"):
        Quantity.parse(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1.5Ti", "1536Gi"),
        ("40960Mi", "40Gi"),
        ("1024Ki", "1Mi"),
        ("512Mi", "512Mi"),
        ("0.5Gi", "512Mi"),
        ("1Ki", "1Ki"),
        ("1000", "1k"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        ("1.25G", "1250M"),
        ("1e3", "1e3"),
        ("12e6", "12e6"),
        ("1e4", "10e3"),
        ("0.5Ki", "512"),
        ("0", "0"),
        ("-2048Ki", "-2Mi"),
        ("0.3Ki", "307200m"),
    ],
)
def test_the_canonical_form_is_the_one_the_api_server_stores(text: str, canonical: str) -> None:
    assert str(Quantity.parse(text)) == canonical


def test_equal_amounts_are_equal_however_they_are_written() -> None:
    assert Quantity.parse("200M") == Quantity.parse("0.2G")
    assert hash(Quantity.parse("200M")) == hash(Quantity.parse("0.2G"))
    assert Quantity.parse("50M") < Quantity.parse("50Mi")
    assert Quantity.parse("50Mi").compare(Quantity.parse("50M")) == 1


def test_arithmetic_keeps_the_way_the_first_one_was_written() -> None:
    assert str(Quantity.parse("40Gi") - Quantity.parse("10Gi")) == "30Gi"
    assert str(Quantity.parse("50k") + Quantity.parse("20")) == "50020"
    assert str(Quantity.parse("0") + Quantity.parse("1Gi")) == "1Gi"
    assert str(Quantity.parse("1Gi") - Quantity.parse("2Gi")) == "-1Gi"
    assert (Quantity.parse("1Gi") - Quantity.parse("2Gi")).sign == -1


def test_an_integer_is_what_an_int64_holds() -> None:
    assert Quantity.parse("50k").as_integer() == 50000
    assert Quantity.parse("1.5Ti").is_integer
    assert not Quantity.parse("1500m").is_integer
    huge = Quantity.parse("9999999999999999999999999999999999999G")
    assert not huge.is_integer
    with pytest.raises(QuantityError, match="cannot convert value to integer"):
        huge.as_integer()


def test_a_float_beyond_its_range_is_an_infinity() -> None:
    assert Quantity.parse("1500m").as_float() == 1.5
    assert Quantity.parse("1e400").as_float() == math.inf


amounts = st.integers(-(2**62), 2**62).map(lambda nano: Fraction(nano, 10**9))
written = st.builds(
    lambda sign, whole, fraction, suffix: f"{sign}{whole}{fraction}{suffix}",
    st.sampled_from(["", "-", "+"]),
    st.integers(0, 10**12),
    st.sampled_from(["", ".", ".5", ".125", ".000000001"]),
    st.sampled_from(["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "E-6"]),
)


@given(written)
def test_writing_and_reading_again_loses_nothing(text: str) -> None:
    quantity = Quantity.parse(text)
    assert Quantity.parse(str(quantity)) == quantity


@given(amounts, amounts)
def test_order_and_arithmetic_are_those_of_fractions(one: Fraction, other: Fraction) -> None:
    left, right = Quantity(one), Quantity(other)
    assert (left < right, left <= right, left == right) == (one < other, one <= other, one == other)
    assert (left + right).value == one + other
    assert (left - right).value == one - other
    assert left.compare(right) == (one > other) - (one < other)
