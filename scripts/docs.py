"""Rewrites the pages under docs/ that are generated from the code."""

from __future__ import annotations

from pathlib import Path

import permissions

from claimscope import config
from claimscope.export import docs
from claimscope.export.dcgm import document as dcgm
from claimscope.export.otlp import document as otlp
from claimscope.health import document as health
from claimscope.sim import drills
from claimscope.taints import document as policy


def _metrics() -> str:
    return docs.markdown(docs.all_families(), docs.QUANTITIES)


def _dcgm() -> str:
    return dcgm.markdown(docs.QUANTITIES)


def _otlp() -> str:
    return otlp.markdown(docs.all_families(), docs.QUANTITIES)


PAGES = {
    "configuration.md": config.document,
    "dcgm.md": _dcgm,
    "health.md": health.document,
    "metrics.md": _metrics,
    "otlp.md": _otlp,
    "permissions.md": permissions.document,
    "simulator.md": drills.document,
    "taint-policy.md": policy.document,
}


def main() -> None:
    """Writes what changed and names it."""
    folder = Path(__file__).parent.parent / "docs"
    for name, make in PAGES.items():
        path, text = folder / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
