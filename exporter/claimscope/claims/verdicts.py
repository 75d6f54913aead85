"""What do selectors say of a pool's devices? One byte a device and option, kept while the pool is the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from claimscope.claims.demand import Option
from claimscope.claims.fitting import Matching, capacity_taken
from claimscope.claims.model import DeviceFacts, Pool, PoolKey
from claimscope.claims.selectors import Verdict

MATCH, NO_MATCH, ERROR, UNKNOWN = range(4)
_CODES: Final = {
    Verdict.MATCH: MATCH, Verdict.NO_MATCH: NO_MATCH, Verdict.ERROR: ERROR, Verdict.UNKNOWN: UNKNOWN,
}
_NOT_YET: Final = "not evaluated yet"  # the text of a verdict that will come


class Trouble(NamedTuple):
    """A selector without an answer, and what it said of which device."""

    expression: str
    text: str
    device: DeviceFacts


@dataclass(frozen=True, slots=True)
class Column:
    """The verdicts of one option on a pool's devices, with one example of what went wrong."""

    codes: bytes
    error: Trouble | None = None
    unknown: Trouble | None = None


class Columns:
    """The verdicts, kept by expression and pool."""

    def __init__(self) -> None:
        self._known: dict[str, dict[PoolKey, tuple[Pool, Column]]] = {}

    def forget_all_but(self, expressions: Iterable[str]) -> None:
        """Drops the verdicts of expressions that nobody asks for any more."""
        used = set(expressions)
        self._known = {text: known for text, known in self._known.items() if text in used}

    def of(self, matching: Matching, option: Option, pool: Pool) -> Column:
        """What an option's selectors say in their order: the first that is not MATCH decides."""
        if option.selectors is None:
            return Column(bytes([NO_MATCH]) * len(pool.devices))
        found = Column(bytes(len(pool.devices)))
        for expression in option.selectors:
            if not any(found.codes):  # every device got as far, mostly
                found = self._evaluated(matching, expression, pool)
            elif MATCH in found.codes:
                found = _and(found, self._evaluated(matching, expression, pool))
        if not option.capacity:
            return found
        codes = bytes([
            NO_MATCH if code == MATCH and capacity_taken(option, facts) is None else code
            for code, facts in zip(found.codes, pool.devices, strict=True)
        ])
        return Column(codes, found.error, found.unknown)

    def _evaluated(self, matching: Matching, expression: str, pool: Pool) -> Column:
        known = self._known.setdefault(expression, {})
        found = known.get(pool.key)
        if found is not None and found[0] is pool:
            return found[1]
        error = unknown = None
        codes = bytearray()
        for facts in pool.devices:
            match = matching.match(expression, facts)
            codes.append(_CODES[match.verdict])
            if match.verdict is Verdict.ERROR:
                error = Trouble(expression, match.text, facts)
            elif match.verdict is Verdict.UNKNOWN and (unknown is None or match.text.startswith(_NOT_YET)):
                unknown = Trouble(expression, match.text, facts)
        column = Column(bytes(codes), error, unknown)
        if unknown is None:
            known[pool.key] = (pool, column)
        return column


def may_be_known(matching: Matching, trouble: Trouble) -> bool:
    """Whether a verdict that was unknown may be known by now."""
    if trouble.text.startswith(_NOT_YET):
        return True
    return matching.match(trouble.expression, trouble.device).text != trouble.text


def _and(one: Column, other: Column) -> Column:
    codes = bytes([right if left == MATCH else left for left, right in zip(one.codes, other.codes, strict=True)])
    return Column(codes, one.error or other.error, one.unknown or other.unknown)
