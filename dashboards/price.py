"""What does a GPU-hour cost? The variable that boards share, and how it is used."""

from __future__ import annotations

from typing import Final

from dashboards.grafana import Variable

CURRENCY: Final = "currencyUSD"

PRICE_VARIABLE: Final = Variable(
    name="price", label="Price of a GPU-hour", kind="textbox", default="2.50",
    description="In US dollars. The same for every model; choose a class or namespace to work with another.",
)  # fmt: skip


def cost(hours: str) -> str:
    """What so many GPU-hours cost."""
    return f"({hours}) * $price"
