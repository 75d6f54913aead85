"""What is done with one quantity in the accounts?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from claimscope.metrics.spec import Kind, Quantity, Scope, Split, Stat, Unit

PROCESS_MEMORY_STEM = "memory_used"  # the only gauge that is known per process


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with one quantity."""

    counter: bool
    integral: bool
    split: Split  # of its total
    gauge: Split  # of its present value
    scope: Scope
    process_memory: bool


def _plan(quantity: Quantity) -> Plan:
    def split(stat: Stat) -> Split:
        return next(
            (view.split for view in quantity.views if view.stat is stat and view.split is not Split.NO), Split.NO
        )

    return Plan(
        counter=quantity.kind is Kind.COUNTER,
        integral=quantity.kind is Kind.GAUGE and any(view.stat is Stat.TOTAL for view in quantity.views),
        split=split(Stat.TOTAL),
        gauge=split(Stat.LAST) if quantity.kind is Kind.GAUGE else Split.NO,
        scope=quantity.scope,
        process_memory=any(
            view.stem == PROCESS_MEMORY_STEM and view.unit is Unit.BYTES and view.stat is Stat.LAST
            for view in quantity.views
        ),
    )


class Plans:
    """The plans of all quantities, found by the keys of their readings, such as "nvlink_bytes/3"."""

    def __init__(self, quantities: Iterable[Quantity]) -> None:
        self._quantities = {quantity.key: _plan(quantity) for quantity in quantities}
        self._known: dict[str, Plan | None] = {}

    def of(self, key: str) -> Plan | None:
        """The plan of a reading; None: of no quantity that is known."""
        try:
            return self._known[key]
        except KeyError:
            plan = self._known[key] = self._quantities.get(key.partition("/")[0])
            return plan
