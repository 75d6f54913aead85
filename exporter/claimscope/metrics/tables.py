"""All quantities in one table, and the families that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from claimscope.metrics import (
    accounts,
    clocks,
    ecc,
    health,
    identity,
    memory,
    nvlink,
    own,
    pcie,
    power,
    state,
    thermal,
    utilization,
)
from claimscope.metrics.spec import Family, Quantity, families

QUANTITIES: tuple[Quantity, ...] = (
    *utilization.QUANTITIES,
    *memory.QUANTITIES,
    *power.QUANTITIES,
    *clocks.QUANTITIES,
    *thermal.QUANTITIES,
    *pcie.QUANTITIES,
    *nvlink.QUANTITIES,
    *ecc.QUANTITIES,
    *state.QUANTITIES,
    *accounts.QUANTITIES,
)

by_key: Mapping[str, Quantity] = MappingProxyType({quantity.key: quantity for quantity in QUANTITIES})


class ConflictError(ValueError):
    """Two rows describe one family differently."""


def merge(rows: Iterable[Family]) -> dict[str, Family]:
    """Families by name, in order of first mention, each with every label that any of its rows carries.

    Raises ConflictError where rows of one name disagree about help, type, unit or version.
    """
    merged: dict[str, Family] = {}
    for row in rows:
        known = merged.setdefault(row.name, row)
        if known == row:
            continue
        labels = known.labels + tuple(label for label in row.labels if label not in known.labels)
        if dataclasses.replace(row, labels=known.labels) != known:
            raise ConflictError(
                f"family {row.name} is described twice and differently: {known} and {row}; "
                "rows that share a stem must agree on help, type, unit and since"
            )
        merged[row.name] = dataclasses.replace(known, labels=labels)
    return merged


def quantity_families(quantities: Iterable[Quantity] = QUANTITIES) -> dict[str, Family]:
    """The families that follow from quantities, by name."""
    return merge(family for quantity in quantities for family in families(quantity))


def all_families() -> dict[str, Family]:
    """Every family that the agent can serve, by name: identity, quantities, and its own."""
    return merge((
        *identity.FAMILIES.values(), *health.FAMILIES.values(), *quantity_families().values(), *own.FAMILIES.values(),
    ))
