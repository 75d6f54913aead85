"""What does a board look like? One HTML page drawn from its answers; Grafana itself is not asked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from dashboards import palette, plots
from dashboards.grafana import Column, Panel
from dashboards.look import CLASSIC, colour_at, colour_of, escaped, written
from dashboards.spelling import EMPTY_CELL, to_json
from dashboards.stage import Series, Shown, filled

WIDTH: Final = 1500  # as the style says
_UNIT, _GAP, _HEAD = 30, 8, 78
_STYLE: Final = Path(__file__).with_name("preview.css")


def page(shown: Shown) -> tuple[str, int]:
    """The page of a board, and its height."""
    made = to_json(shown.board)
    by_title = {panel.title: panel for panel in shown.board.panels()}
    wide = (WIDTH - 16) / 24
    body: list[str] = []
    bottom = 0
    closed = 0  # lines of the grid that rows which begin closed do not take
    for each in made["panels"]:
        place = each["gridPos"]
        left, top = 8 + place["x"] * wide, _HEAD + (place["y"] - closed) * (_UNIT + _GAP)
        width, height = int(place["w"] * wide - _GAP), place["h"] * (_UNIT + _GAP) - _GAP
        bottom = max(bottom, int(top + height))
        title = escaped(filled(each["title"], shown.values) if "$" in each["title"] else each["title"])
        if each["type"] == "row":
            inside = each["panels"]
            if inside:
                closed += max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in inside) - place["y"] - 1
            note = f" <i>({len(inside)} panels)</i>" if inside else ""
            body.append(f'<h2 style="left:{left:.0f}px;top:{top}px">{"›" if inside else "⌄"} {title}{note}</h2>')
            continue
        panel = by_title[each["title"]]
        content, background = _panel(panel, shown, width - 18, height - 36)
        paint = f";background:{background};color:#111217" if background else ""
        body.append(
            f'<section style="left:{left:.0f}px;top:{top}px;width:{width}px;height:{height}px{paint}">'
            f'<h3>{title}</h3><div class="in">{content}</div></section>'
        )
    choices = "".join(
        f"<span><em>{escaped(variable.label)}</em>"
        f"{escaped(_choice(shown.values.get(variable.name, 'Prometheus')))}</span>"
        for variable in shown.board.variables
    )
    head = (
        f"<header><b>{escaped(shown.board.title)}</b><i>preview, drawn from the demo's data</i>"
        f"<div>{choices}</div></header>"
    )
    style = _STYLE.read_text(encoding="utf-8")
    text = f'<!doctype html><meta charset="utf-8"><style>{style}</style><body>{head}{"".join(body)}</body>'
    return text, bottom + 10


def _choice(value: str) -> str:
    return "All" if value == ".*" else value


def _panel(panel: Panel, shown: Shown, width: int, height: int) -> tuple[str, str]:
    """What is inside, and the background if it has a colour."""
    if panel.kind == "text":
        return f"<div style='line-height:19px'>{_markdown(panel.content)}</div>", ""
    named = list(_named(panel, shown))
    if not named:
        background = colour_of(panel.no_value_colour or palette.QUIET) if panel.background else ""
        return f'<div class="empty">{escaped(panel.no_value or "No data")}</div>', background
    match panel.kind:
        case "stat" | "gauge":
            return _stat(panel, named, width, height)
        case "bargauge" | "barchart":
            return _bars(panel, named, height), ""
        case "table":
            return _table(panel, shown), ""
        case "state-timeline":
            return plots.states(panel, plots.coloured(panel, named), shown.times, width, height, _moments(shown)), ""
        case "heatmap":
            return plots.heat([series for _, series in named], shown.times, panel.unit, width, height), ""
    return _lines(panel, shown, named, width, height), ""


def _markdown(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escaped(text))
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return re.sub(r"\[(.+?)\]\(.+?\)", r"<a>\1</a>", text).replace("\n\n", "<br><br>").replace("\n- ", "<br>• ")


def _named(panel: Panel, shown: Shown) -> Iterator[tuple[str, Series]]:
    for index, query in enumerate(panel.queries):
        for series in shown.answers[panel.title, index]:
            yield _legend(query.legend, series), series


def _legend(template: str, series: Series) -> str:
    name = re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: series.labels.get(found[1], ""), template).strip()
    return name or ", ".join(f"{label}={value}" for label, value in series.labels.items())


def _moments(shown: Shown) -> list[tuple[float, str]]:
    """When annotations begin."""
    return [
        (series.points[0][0], colour_of(annotation.colour))
        for annotation in shown.board.annotations
        if annotation.enabled
        for series in shown.marks[annotation.name]
        if series.points[0][0] > shown.times.start
    ]


def _stat(panel: Panel, named: Sequence[tuple[str, Series]], width: int, height: int) -> tuple[str, str]:
    values = [(name, series.points[-1][1]) for name, series in named]
    texts = [
        (name, panel.words[value][0], colour_of(panel.words[value][1])) if value in panel.words
        else (name, written(value, panel.unit, panel.decimals), colour_at(value, panel.thresholds))
        for name, value in values
    ]  # fmt: skip
    room = width / max(1, sum(len(text) + 1 for _, text, _ in texts))  # a digit is some 0.65 of its height wide
    size = int(min(40, room / 0.65, height / (2 if len(texts) == 1 else 3)))
    worst = max(values, key=lambda each: each[1])
    background = ""
    if panel.background:
        background = colour_of(panel.words[worst[1]][1]) if worst[1] in panel.words else (
            colour_at(worst[1], panel.thresholds)
        )
    cells = "".join(
        f'<div style="font-size:{size}px;color:{"#111217" if background else colour}">{escaped(text)}'
        f"{f'<small>{escaped(name)}</small>' if len(texts) > 1 else ''}</div>"
        for name, text, colour in texts
    )
    return f'<div class="stat">{cells}</div>', background


def _bars(panel: Panel, named: Sequence[tuple[str, Series]], height: int) -> str:
    values = [(name, series.points[-1][1]) for name, series in named]
    low = panel.minimum or 0.0
    high = panel.maximum if panel.maximum is not None else max((value for _, value in values), default=1.0)
    tall = min(30, max(13, (height - 4) // max(1, len(values)) - 6))
    made = []
    for index, (name, value) in enumerate(values):
        part = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
        colour = (
            colour_of(given) if (given := plots.given_colour(panel, name))
            else colour_at(value, panel.thresholds) if panel.thresholds else CLASSIC[index % len(CLASSIC)]
        )  # fmt: skip
        made.append(
            f'<div class="bar" style="height:{tall}px"><b>{escaped(name)}</b><u><s style="width:{part:.1%};'
            f'background:{colour}"></s></u><em style="color:{colour}">'
            f"{escaped(written(value, panel.unit, panel.decimals))}</em></div>"
        )
    return "".join(made)


def _lines(panel: Panel, shown: Shown, named: Sequence[tuple[str, Series]], width: int, height: int) -> str:
    drawn = plots.coloured(panel, named)
    side = panel.legend_table
    beside = int(width * 0.36) if side else 0
    below = 0 if side or not panel.legend else 20 if sum(len(each.name) + 4 for each in drawn) * 7 < width else 37
    entries = "".join(
        f'<span><i style="background:{each.colour}"></i>{escaped(each.name)}</span>' for each in drawn
    )
    legend = f'<div class="legend{" side" if side else ""}">{entries}</div>' if panel.legend else ""
    return plots.lines(panel, drawn, shown.times, width - beside, height - below, _moments(shown)) + legend


def _rows(panel: Panel, shown: Shown) -> list[dict[str, str | float]]:
    """As Grafana's "merge" joins answers: rows become one where the labels that both have are the same."""
    rows: list[dict[str, str | float]] = []
    for index in range(len(panel.queries)):
        letter = chr(ord("A") + index)
        for series in shown.answers[panel.title, index]:
            labels = {name: value for name, value in series.labels.items() if name != "__name__"}
            fitting = [
                row for row in rows if letter not in row
                and all(row[name] == value for name, value in labels.items() if name in row)
                and any(name in row for name in labels)
            ]  # fmt: skip
            for row in fitting or [{}]:
                row.update({**labels, letter: series.points[-1][1]})
                if not fitting:
                    rows.append(row)
    return rows


def _table(panel: Panel, shown: Shown) -> str:
    rows = _rows(panel, shown)
    by_title = {column.title: column for column in panel.columns}
    if panel.sort_by:
        source = by_title[panel.sort_by.removeprefix("-")].source
        down = panel.sort_by.startswith("-")

        def rank(row: dict[str, str | float]) -> tuple[float, str]:
            value = row.get(source, -math.inf if down else "")
            return (0.0, value) if isinstance(value, str) else (value, "")

        rows.sort(key=rank, reverse=down)
    head = "".join(
        f'<th class="{"n" if _is_number(column) else ""}"{f" style=width:{column.width}px" if column.width else ""}>'
        f"{escaped(column.title)}</th>"
        for column in panel.columns
    )
    lines = "".join("<tr>" + "".join(_cell(column, row.get(column.source)) for column in panel.columns) + "</tr>"
                    for row in rows[:40])  # fmt: skip
    return f"<table><tr>{head}</tr>{lines}</table>"


def _is_number(column: Column) -> bool:
    return len(column.source) == 1 and column.source.isupper() and not column.words


def _cell(column: Column, value: str | float | None) -> str:
    if value is None:
        return f'<td{" class=n" if _is_number(column) else ""}>{EMPTY_CELL}</td>'
    if isinstance(value, str):
        colour = colour_of(column.colours[value]) if value in column.colours else ""
        text = escaped(value)
    else:
        word = column.words.get(value, "")
        colour = colour_of(column.colours[word]) if word in column.colours else (
            colour_at(value, column.thresholds) if column.thresholds else ""
        )
        text = escaped(word or written(value, column.unit))
        if column.bar:
            text = (
                f'<div class="bar" style="height:12px;margin:0"><u><s style="width:{min(1.0, max(0.0, value)):.0%};'
                f'background:{colour}"></s></u><em style="width:44px">{text}</em></div>'
            )
    if column.links:
        text = f"<a>{text}</a>"
    kind = " class=n" if _is_number(column) else ""
    return f'<td{kind}{f" style=color:{colour}" if colour else ""}>{text}</td>'
