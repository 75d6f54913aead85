"""Where do the boards go? dashboards/json, one file each, as Grafana imports them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dashboards.grafana import Dashboard
from dashboards.spelling import to_json

JSON: Final = Path(__file__).with_name("json")


def as_text(board: Dashboard) -> str:
    """What stands in the file of a board."""
    return json.dumps(to_json(board), indent=1, ensure_ascii=False) + "\n"


def write_json(boards: Iterable[Dashboard]) -> None:
    """Writes the files, and removes those of boards that are no more."""
    JSON.mkdir(exist_ok=True)
    texts = {f"{board.uid}.json": as_text(board) for board in boards}
    for path in JSON.glob("*.json"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (JSON / name).write_text(text, encoding="utf-8")
