"""Which boards are there? In the order in which somebody meets them."""

from __future__ import annotations

from typing import Final

from dashboards.boards import capacity, claim, claims, fleet, health, migration, node, own
from dashboards.grafana import Dashboard

BOARDS: Final[tuple[Dashboard, ...]] = tuple(
    module.BOARD for module in (fleet, claims, claim, node, capacity, health, migration, own)
)
