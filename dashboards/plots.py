"""How do series over time look? Lines, bands, bars, states and heat maps as SVG, for previews."""

from __future__ import annotations

import math
import re
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dashboards.grafana import Panel
from dashboards.look import CLASSIC, SHADES, colour_at, colour_of, escaped, written
from dashboards.spelling import known_by_name
from dashboards.stage import Series, Times

_LEFT, _BOTTOM, _TOP, _RIGHT = 62, 18, 6, 10
_GRID: Final = "#2c2f36"
_FAINT: Final = "#8e8e99"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One series with its name and colour."""

    name: str
    colour: str
    series: Series


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """Where values lie in a picture of so many pixels."""

    width: int
    height: int
    times: Times
    low: float
    high: float

    def x(self, at: float) -> float:
        span = self.times.end - self.times.start
        return _LEFT + (at - self.times.start) / span * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        part = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.height - _BOTTOM - part * (self.height - _BOTTOM - _TOP)


def coloured(panel: Panel, named: Sequence[tuple[str, Series]]) -> list[Drawn]:
    """Series with the colours that the panel gives them, or Grafana's classic ones in order."""
    return [
        Drawn(name=name, colour=colour_of(given_colour(panel, name) or _colour(panel, name, index)), series=series)
        for index, (name, series) in enumerate(named)
    ]


def given_colour(panel: Panel, name: str) -> str:
    """The colour that the panel gives a series by its name or a pattern; none where it gives none."""
    fitting = (colour for pattern, colour in panel.patterns.items() if re.fullmatch(pattern, name))
    return panel.colours.get(name) or next(fitting, "")


def _colour(panel: Panel, name: str, index: int) -> str:
    if panel.shades:
        return SHADES[index % len(SHADES)]
    return CLASSIC[(zlib.crc32(name.encode()) if known_by_name(panel) else index) % len(CLASSIC)]


def _ticks(low: float, high: float, about: int) -> list[float]:
    span = high - low
    if span <= 0:
        return [low]
    raw = span / about
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(frame: _Frame, unit: str) -> str:
    made: list[str] = []
    for value in _ticks(frame.low, frame.high, max(2, frame.height // 40)):
        y = frame.y(value)
        made.append(f'<line x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>')
        made.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escaped(written(value, unit))}</text>')
    return "".join(made) + _clock(frame.times, frame.x, frame.width, frame.height)


def _clock(times: Times, x_of: Callable[[float], float], width: int, height: int) -> str:
    """The time of day under a picture."""
    made: list[str] = []
    span = times.end - times.start
    step = next(each for each in (5, 10, 15, 30, 60, 120, 300, 900, 3600) if span / each <= max(2, width / 90))
    at = math.ceil(times.start / step) * step
    while at <= times.end - step / 4:
        x = x_of(at)
        made.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" stroke="{_GRID}"/>')
        clock = time.strftime("%H:%M:%S", time.gmtime(at))
        made.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{clock}</text>')
        at += step
    return "".join(made)


def marks(frame_of: Callable[[float], float], top: float, bottom: float, moments: Iterable[tuple[float, str]]) -> str:
    """Annotations: a dashed line each."""
    return "".join(
        f'<line x1="{frame_of(at):.1f}" x2="{frame_of(at):.1f}" y1="{top}" y2="{bottom}" stroke="{colour}" '
        'stroke-dasharray="3 3" opacity="0.7"/>'
        for at, colour in moments
    )


def _svg(width: int, height: int, inside: str) -> str:
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{inside}</svg>'


def _path(frame: _Frame, points: Sequence[tuple[float, float]], gap: float) -> str:
    made: list[str] = []
    last: float | None = None
    for at, value in points:
        if not math.isfinite(value):
            continue
        move = last is None or at - last > gap
        made.append(f"{'M' if move else 'L'}{frame.x(at):.1f} {frame.y(value):.1f}")
        last = at
    return "".join(made)


def _stack(drawn: Sequence[Drawn]) -> tuple[list[Drawn], list[Mapping[float, float]]]:
    """Each series on top of those before it, and what lies below each."""
    below: dict[float, float] = {}
    made: list[Drawn] = []
    floors: list[Mapping[float, float]] = []
    for each in drawn:
        floors.append(dict(below))
        points = []
        for at, value in each.series.points:
            below[at] = below.get(at, 0.0) + (value if math.isfinite(value) else 0.0)
            points.append((at, below[at]))
        made.append(Drawn(name=each.name, colour=each.colour, series=Series(labels={}, points=tuple(points))))
    return made, floors


def _bounds(panel: Panel, drawn: Sequence[Drawn]) -> tuple[float, float]:
    values = [value for each in drawn for _, value in each.series.points if math.isfinite(value)] or [0.0, 1.0]
    low = panel.minimum if panel.minimum is not None else min(values)
    high = panel.maximum if panel.maximum is not None else max(values)
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    margin = (high - low) * 0.06
    return (
        low if panel.minimum is not None else low - margin, high if panel.maximum is not None else high + margin
    )


def lines(
    panel: Panel, drawn: Sequence[Drawn], times: Times, width: int, height: int, moments: Iterable[tuple[float, str]]
) -> str:
    """A timeseries panel."""
    shown, floors = _stack(drawn) if panel.stacked else (list(drawn), [])
    low, high = _bounds(panel, shown)
    frame = _Frame(width=width, height=height, times=times, low=low, high=high)
    made = [_axes(frame, panel.unit)]
    gap = times.step * 3.5
    by_name = {each.name: each for each in shown}
    for upper, lower in panel.bands.items():
        if upper in by_name and lower in by_name:
            back = list(reversed(by_name[lower].series.points))
            outline = " ".join(
                f"{frame.x(at):.1f},{frame.y(value):.1f}" for at, value in (*by_name[upper].series.points, *back)
            )
            made.append(f'<polygon points="{outline}" fill="{by_name[upper].colour}" opacity="0.25"/>')
    edges = {*panel.bands, *panel.bands.values()}
    for index, each in reversed(list(enumerate(shown))):
        if panel.bars:
            made.append(_bars(frame, each, floors[index] if floors else {}, times.step))
            continue
        if each.name in edges:
            continue
        path = _path(frame, each.series.points, gap)
        if path and (panel.stacked or len(drawn) <= 3):
            floor = floors[index] if floors else {}
            base = [(at, floor.get(at, max(low, 0.0))) for at, _ in reversed(each.series.points)]
            outline = " ".join(f"{frame.x(at):.1f},{frame.y(value):.1f}" for at, value in (*each.series.points, *base))
            opacity = 0.4 if panel.stacked else 0.08
            made.append(f'<polygon points="{outline}" fill="{each.colour}" opacity="{opacity}"/>')
        dash = ' stroke-dasharray="8 6"' if each.name in panel.dashed else ""
        made.append(f'<path d="{path}" fill="none" stroke="{each.colour}" stroke-width="1.4"{dash}/>')
    for step in panel.thresholds:
        if step.value is not None and low < step.value < high:
            y = frame.y(step.value)
            made.append(
                f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{colour_of(step.colour)}" stroke-dasharray="6 4"/>'
            )
    made.append(marks(frame.x, _TOP, height - _BOTTOM, moments))
    return _svg(width, height, "".join(made))


def _bars(frame: _Frame, each: Drawn, floor: Mapping[float, float], step: float) -> str:
    wide = max(2.0, frame.x(frame.times.start + step) - frame.x(frame.times.start) - 0.5)
    made = []
    for at, value in each.series.points:
        base = floor.get(at, 0.0)
        if value > base:
            top = frame.y(value)
            made.append(
                f'<rect x="{frame.x(at) - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" '
                f'height="{frame.y(base) - top:.1f}" fill="{each.colour}" opacity="0.85"/>'
            )
    return "".join(made)


def states(
    panel: Panel, drawn: Sequence[Drawn], times: Times, width: int, height: int, moments: Iterable[tuple[float, str]]
) -> str:
    """A state timeline: one bar a series, coloured by what its number means."""
    names = max((len(each.name) for each in drawn), default=0)
    left = min(220, 14 + names * 6)
    tall = (height - _BOTTOM - _TOP) / max(1, len(drawn))
    span = times.end - times.start

    def x(at: float) -> float:
        return left + (at - times.start) / span * (width - left - _RIGHT)

    made = [_clock(times, x, width, height)]
    for row, each in enumerate(drawn):
        y = _TOP + row * tall
        made.append(f'<text x="{left - 6}" y="{y + tall / 2 + 4:.1f}" text-anchor="end">{escaped(each.name)}</text>')
        points = each.series.points
        begin = 0
        for place in range(1, len(points) + 1):
            if place < len(points) and points[place][1] == points[begin][1]:
                continue
            end = points[place][0] if place < len(points) else points[-1][0] + times.step
            value = points[begin][1]
            colour = colour_of(panel.words[value][1]) if value in panel.words else colour_at(value, panel.thresholds)
            made.append(
                f'<rect x="{x(points[begin][0]):.1f}" y="{y + tall * 0.08:.1f}" '
                f'width="{max(1.0, x(min(end, times.end)) - x(points[begin][0])):.1f}" height="{tall * 0.84:.1f}" '
                f'fill="{colour}" opacity="0.8"/>'
            )
            made.append(_state_name(panel, value, (x(points[begin][0]), x(min(end, times.end))), y + tall / 2))
            begin = place
    made.append(marks(x, _TOP, height - _BOTTOM, moments))
    return _svg(width, height, "".join(made))


def _state_name(panel: Panel, value: float, place: tuple[float, float], y: float) -> str:
    """The name of a state in its bar, where it fits in."""
    text = panel.words[value][0] if value in panel.words else ""
    if len(text) * 7 + 8 > place[1] - place[0]:
        return ""
    return f'<text x="{place[0] + 5:.1f}" y="{y + 4:.1f}" style="fill:#111217">{escaped(text)}</text>'


def heat(series: Sequence[Series], times: Times, unit: str, width: int, height: int) -> str:
    """A heat map of a histogram's buckets."""
    def bound(each: Series) -> float:
        return math.inf if each.labels.get("le") == "+Inf" else float(each.labels.get("le", "nan"))

    ordered = sorted(series, key=bound)
    counts: list[list[tuple[float, float]]] = []
    below: dict[float, float] = {}
    for each in ordered:
        counts.append([(at, max(0.0, value - below.get(at, 0.0))) for at, value in each.points])
        below = dict(each.points)
    most = max((value for row in counts for _, value in row), default=0.0) or 1.0
    tall = (height - _BOTTOM - _TOP) / max(1, len(ordered))
    span = times.end - times.start
    wide = (width - _LEFT - _RIGHT) * times.step / span

    def x_of(at: float) -> float:
        return _LEFT + (at - times.start) / span * (width - _LEFT - _RIGHT)

    made = [_clock(times, x_of, width, height)]
    for row, (each, cells) in enumerate(zip(ordered, counts, strict=True)):
        y = height - _BOTTOM - (row + 1) * tall
        name = "+Inf" if math.isinf(bound(each)) else written(bound(each), unit)
        if row % 2 == 0:
            made.append(f'<text x="{_LEFT - 6}" y="{y + tall / 2 + 4:.1f}" text-anchor="end">{name}</text>')
        for at, value in cells:
            if value > 0:
                made.append(
                    f'<rect x="{x_of(at):.1f}" y="{y + 0.5:.1f}" width="{wide + 0.3:.2f}" height="{tall - 1:.1f}" '
                    f'fill="#ff9830" opacity="{0.2 + 0.8 * math.sqrt(value / most):.2f}"/>'
                )
    return _svg(width, height, "".join(made))
