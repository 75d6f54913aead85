"""What does a GPU-hour cost? The variable that boards share, and how it is used."""

from __future__ import annotations

from typing import Final

from dashboards.grafana import Variable

CURRENCY: Final = "currencyUSD"

PRICE_VARIABLE: Final = Variable(
    name="price", label="Price of a GPU-hour", kind="textbox", default="2.50",
    description="In US dollars, one price for every model. Where there are several, look at a part at a "
    "time with its price: at a cluster, or on the claims board at a namespace.",
)  # fmt: skip


def cost(hours: str) -> str:
    """What so many GPU-hours cost."""
    return f"({hours}) * $price"
