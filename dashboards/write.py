"""Where do the boards go? dashboards/json, one file each, as Grafana imports them, and on one line each the chart.

A chart can read no file outside of it. On one line its ConfigMaps are small, and so is the Secret that Helm keeps a
release in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dashboards.grafana import Dashboard
from dashboards.spelling import to_json

JSON: Final = Path(__file__).with_name("json")
CHART: Final = Path(__file__).parent.parent / "deploy" / "helm" / "claimscope" / "files" / "dashboards"


def as_text(board: Dashboard) -> str:
    """What stands in the file of a board."""
    return json.dumps(to_json(board), indent=1, ensure_ascii=False) + "\n"


def as_line(board: Dashboard) -> str:
    """The same on one line, for the chart."""
    return json.dumps(to_json(board), separators=(",", ":"), ensure_ascii=False) + "\n"


def write_json(boards: Iterable[Dashboard]) -> None:
    """Writes the files, and removes those of boards that are no more."""
    made = tuple(boards)
    for folder, spelled in ((JSON, as_text), (CHART, as_line)):
        folder.mkdir(parents=True, exist_ok=True)
        texts = {f"{board.uid}.json": spelled(board) for board in made}
        for path in folder.glob("*.json"):
            if path.name not in texts:
                path.unlink()
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
