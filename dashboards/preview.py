"""Draws docs/images/<uid>.png from what the demo's Prometheus answers; a browser without Grafana is enough."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageColor

from dashboards.grafana import Dashboard
from dashboards.look import CLASSIC, COLOURS, SHADES
from dashboards.picture import WIDTH, page
from dashboards.stage import Shown, StageError, show, stage

IMAGES: Final = Path(__file__).parent.parent / "docs" / "images"
_SECONDS: Final = 180  # of data: three minutes show pods that come and go, and the full minutes of rolling extremes
_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
_COLOURS: Final = 256  # of a picture in the repository: a third of the bytes, and nobody sees it
_KEPT: Final = sorted({code for code in (*COLOURS.values(), *CLASSIC, *SHADES) if code.startswith("#")})


def preview(boards: Sequence[Dashboard]) -> None:
    """Runs the demo for some minutes, and draws these boards."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(_BROWSERS)} is on PATH: apt-get install chromium")
    try:
        seen = asyncio.run(_look(boards))
    except StageError as error:
        sys.exit(str(error))
    draw(seen, browser)


async def _look(boards: Sequence[Dashboard]) -> list[Shown]:
    async with stage(_SECONDS) as (prometheus, times):
        return [await show(prometheus, board, times) for board in boards]


def draw(seen: Sequence[Shown], browser: str) -> None:
    """Writes the pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="claimscope-preview-") as directory:
        for shown in seen:
            text, height = page(shown)
            source = Path(directory, f"{shown.board.uid}.html")
            source.write_text(text, encoding="utf-8")
            subprocess.run(  # noqa: S603 - a browser from PATH, with arguments of ours
                [
                    browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-lcd-text",
                    "--force-device-scale-factor=1",
                    f"--user-data-dir={directory}/profile", f"--window-size={WIDTH},{height}",
                    f"--screenshot={IMAGES / f'{shown.board.uid}.png'}", source.as_uri(),
                ],
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
            _shrink(IMAGES / f"{shown.board.uid}.png")


def _shrink(path: Path) -> None:
    """Keeps few colours of a picture."""
    with Image.open(path) as picture:
        full = picture.convert("RGB")
    # Those of series and states whatever their share, and for all else those that the picture has most of.
    kept = [ImageColor.getrgb(code)[:3] for code in _KEPT]
    most = full.quantize(_COLOURS - len(kept), dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(part for colour in kept for part in colour), *most[: 3 * (_COLOURS - len(kept))]])
    few = full.quantize(palette=palette, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
