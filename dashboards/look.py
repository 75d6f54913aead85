"""How does Grafana write a value, and which colours does it mean? As far as previews need it."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from typing import Final

from dashboards.grafana import Step

COLOURS: Final = {
    "green": "#73bf69", "yellow": "#fade2a", "orange": "#ff9830", "red": "#f2495c", "purple": "#b877d9",
    "dark-red": "#c4162a", "dark-orange": "#fa6400", "dark-yellow": "#e0b400",
    "blue": "#5794f2", "light-blue": "#8ab8ff", "text": "#ccccdc", "transparent": "transparent",
}  # fmt: skip
CLASSIC: Final = (
    "#73bf69", "#5794f2", "#ff9830", "#b877d9", "#f2cc0c", "#8ab8ff", "#f2495c", "#ca95e5", "#96d98d", "#fade2a",
    "#ff780a", "#705da0", "#37872d", "#1f60c4", "#fa6400", "#8f3bb8", "#e0b400", "#c4162a", "#508642", "#a352cc",
)  # fmt: skip
SHADES: Final = ("#f2495c", "#ff7383", "#c4162a", "#ffa6b0", "#8f1020")  # of red
_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL: Final = ("", "k", "M", "G", "T", "P")
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0


def colour_of(name: str) -> str:
    """A colour as browsers know it."""
    return COLOURS.get(name, name)


def colour_at(value: float, steps: Iterable[Step], otherwise: str = "text") -> str:
    """The colour of the last step that the value reaches."""
    found = otherwise
    for step in steps:
        if step.value is None or value >= step.value:
            found = step.colour
    return colour_of(found)


def _short(number: float, decimals: int | None) -> str:
    digits = decimals if decimals is not None else 0 if abs(number) >= 100 or number == int(number) else 2
    text = f"{number:.{digits}f}"
    return text.rstrip("0").rstrip(".") if decimals is None and "." in text else text


def _scaled(value: float, base: float, names: tuple[str, ...], decimals: int | None) -> tuple[str, str]:
    place = 0
    while abs(value) >= base and place < len(names) - 1:
        value, place = value / base, place + 1
    return _short(value, 1 if decimals is None and place and abs(value) < 100 else decimals), names[place]


def _duration(seconds: float, decimals: int | None) -> str:
    size = abs(seconds)
    for bound, unit, name in ((0.001, 1e-6, "µs"), (1.0, 1e-3, "ms"), (_MINUTE, 1.0, "s"), (_HOUR, _MINUTE, "min"),
                              (_DAY, _HOUR, "hours"), (float("inf"), _DAY, "days")):
        if size < bound:
            return f"{_short(seconds / unit, 1 if decimals is None and size >= _MINUTE else decimals)} {name}"
    return ""


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit."""
    if value != value:
        return "NaN"
    match unit:
        case "percentunit":
            return f"{_short(value * 100, decimals if decimals is not None else 1 if 0 < abs(value) < 0.1 else 0)}%"
        case "s":
            return _duration(value, decimals) if value else "0 s"
        case "h":
            return f"{_short(value, decimals)} h"
        case "currencyUSD":
            return f"${_short(value, 2 if decimals is None else decimals)}"
        case "bytes" | "decbytes":
            return " ".join(_scaled(value, 1024, _BINARY, decimals))
        case "Bps" | "binBps":
            number, prefix = _scaled(value, 1000, _DECIMAL, decimals)
            return f"{number} {prefix}B/s"
        case "hertz":
            number, prefix = _scaled(value, 1000, _DECIMAL, decimals)
            return f"{number} {prefix}Hz"
        case "watt":
            number, prefix = _scaled(value, 1000, _DECIMAL, decimals)
            return f"{number} {prefix}W"
        case "kwatth" | "watth":
            number, prefix = _scaled(value * (1000 if unit == "kwatth" else 1), 1000, _DECIMAL, decimals)
            return f"{number} {prefix}Wh"
        case "celsius":
            return f"{_short(value, decimals)} °C"
        case "dateTimeAsIso":
            return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value / 1000))
        case "ops" | "cps" | "reqps":
            return f"{_short(value, decimals)} /s"
        case "dateTimeFromNow":
            return time.strftime("%H:%M:%S", time.gmtime(value / 1000))
    number, prefix = _scaled(value, 1000, _DECIMAL, decimals) if abs(value) >= 1000 else (_short(value, decimals), "")
    return f"{number}{' ' if prefix else ''}{prefix}"


def escaped(text: str) -> str:
    """Safe in HTML."""
    return html.escape(text)
