"""How large is a Kubernetes quantity, exactly?

Follows k8s.io/apimachinery/pkg/api/resource (suffixes, rounding up to nano, canonical form) and the CEL library
k8s.io/apiserver/pkg/cel/library/quantity.go. Values are fractions: nothing is lost between Ki, m and 1e3.
"""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

# Possessive: thousands of digits before a wrong suffix would else be tried in every division.
_PATTERN: Final = re.compile(r"([+-]?)([0-9]*+)(?:\.([0-9]*+))?([a-zA-Z]*+(?:[-+]?[0-9]++)?)", re.ASCII)
_EXPONENT: Final = re.compile(r"[eE]([-+]?[0-9]{1,3})", re.ASCII)
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL_SUFFIX: Final = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_BINARY_SUFFIX: Final = {exponent: suffix for suffix, exponent in _BINARY.items()}
_NANO: Final = 10**9
_INT64: Final = 2**63

# The words of apimachinery, which a CEL runtime error repeats.
_BAD_FORMAT: Final = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)
_BAD_SUFFIX: Final = "unable to parse quantity's suffix"
_BAD_NUMBER: Final = "unable to parse numeric part of quantity"
_DIGITS_MAX: Final = 3_000  # Python reads and writes no number of more than 4,300; an exponent adds up to 999


class QuantityError(ValueError):
    """The text is no quantity, or the quantity does not fit what was asked; worded as Kubernetes does."""


class Format(enum.Enum):
    """How a quantity was written, and is written again."""

    DECIMAL = "DecimalSI"
    BINARY = "BinarySI"
    EXPONENT = "DecimalExponent"


@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """An exact amount that remembers how it was written; equality and order look at the amount alone."""

    value: Fraction
    format: Format = Format.DECIMAL

    @staticmethod
    def parse(text: str) -> Quantity:
        """The quantity that `text` stands for, or QuantityError."""
        return _parse(text)

    def __eq__(self, other: object) -> bool:
        return self.value == other.value if isinstance(other, Quantity) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.value)

    def __lt__(self, other: Quantity) -> bool:
        return self.value < other.value

    def __le__(self, other: Quantity) -> bool:
        return self.value <= other.value

    def __gt__(self, other: Quantity) -> bool:
        return self.value > other.value

    def __ge__(self, other: Quantity) -> bool:
        return self.value >= other.value

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.value + other.value, self._format_with(other))

    def __sub__(self, other: Quantity) -> Quantity:
        return Quantity(self.value - other.value, self._format_with(other))

    def __str__(self) -> str:
        """The canonical form, as the API server stores it."""
        match self.format:
            case Format.BINARY if abs(self.value) >= 1024 and self.value.denominator == 1:
                return _binary(self.value.numerator)
            case Format.EXPONENT:
                mantissa, exponent = _by_thousands(self.value, math.inf)
                return f"{mantissa}e{exponent}" if exponent else str(mantissa)
            case _:
                mantissa, exponent = _by_thousands(self.value, 18)
                return f"{mantissa}{_DECIMAL_SUFFIX[exponent]}"

    def compare(self, other: Quantity) -> int:
        """-1, 0 or 1."""
        return (self.value > other.value) - (self.value < other.value)

    @property
    def sign(self) -> int:
        """-1, 0 or 1."""
        return (self.value > 0) - (self.value < 0)

    @property
    def is_integer(self) -> bool:
        """Whether as_integer() works: a whole number that an int64 holds."""
        return self.value.denominator == 1 and -_INT64 <= self.value.numerator < _INT64

    def as_integer(self) -> int:
        """The amount as int64, or QuantityError."""
        if not self.is_integer:
            raise QuantityError("cannot convert value to integer")
        return self.value.numerator

    def as_float(self) -> float:
        """The nearest double; beyond its range an infinity."""
        try:
            return float(self.value)
        except OverflowError:
            return math.inf * self.sign

    def _format_with(self, other: Quantity) -> Format:
        return self.format if self.value else other.format  # zero has no opinion


@lru_cache(maxsize=4096)
def _parse(text: str) -> Quantity:
    found = _PATTERN.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        raise QuantityError(_BAD_FORMAT)
    sign, whole, fraction, suffix = found[1], found[2] or "", found[3] or "", found[4]
    if len(whole) + len(fraction) > _DIGITS_MAX:
        raise QuantityError(_BAD_NUMBER)
    factor, written = _scale(suffix)
    amount = Fraction(int(whole + fraction or "0"), 10 ** len(fraction)) * factor
    amount = Fraction(math.ceil(amount * _NANO), _NANO)  # nothing is smaller than 1n
    if written is Format.BINARY and 0 < amount < 1:
        written = Format.DECIMAL
    return Quantity(-amount if sign == "-" else amount, written)


def _scale(suffix: str) -> tuple[Fraction, Format]:
    if suffix in _DECIMAL:
        return Fraction(10) ** _DECIMAL[suffix], Format.DECIMAL
    if suffix in _BINARY:
        return Fraction(2 ** _BINARY[suffix]), Format.BINARY
    exponent = _EXPONENT.fullmatch(suffix)
    if exponent is None:
        raise QuantityError(_BAD_SUFFIX)
    return Fraction(10) ** int(exponent[1]), Format.EXPONENT


def _by_thousands(value: Fraction, largest: float) -> tuple[int, int]:
    """The mantissa without fraction and the largest exponent, in steps of three, that allow it."""
    nano = value * _NANO
    mantissa, exponent = math.ceil(abs(nano)), -9
    if not mantissa:
        return 0, 0
    while mantissa % 1000 == 0 and exponent < largest:
        mantissa, exponent = mantissa // 1000, exponent + 3
    return (-mantissa if value < 0 else mantissa), exponent


def _binary(value: int) -> str:
    exponent = 0
    while value % 1024 == 0 and exponent < 60:
        value, exponent = value // 1024, exponent + 10
    return f"{value}{_BINARY_SUFFIX[exponent] if exponent else ''}"
