"""Which rules are there? All groups, by the file that they are written to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from alerts import capacity, claims, devices, fencing, own, recording
from alerts.model import Alert, Group, Recording

FILES: Final[Mapping[str, tuple[Group, ...]]] = MappingProxyType(
    {
        "recording": recording.GROUPS,
        "claims": claims.GROUPS,
        "devices": devices.GROUPS,
        "fencing": fencing.GROUPS,
        "capacity": capacity.GROUPS,
        "own": own.GROUPS,
    }
)


def groups() -> tuple[Group, ...]:
    """All groups."""
    return tuple(group for made in FILES.values() for group in made)


def alerts(of: Iterable[Group] | None = None) -> tuple[Alert, ...]:
    """All alerts, in order; an alert of several burn rates stands once for each."""
    chosen = groups() if of is None else of
    return tuple(rule for group in chosen for rule in group.rules if isinstance(rule, Alert))


def recordings() -> tuple[Recording, ...]:
    """All recording rules, in order."""
    return tuple(rule for group in groups() for rule in group.rules if isinstance(rule, Recording))
