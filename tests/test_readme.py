"""What the pages promise exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from claimscope.export.docs import all_families

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def targets() -> dict[str, str]:
    """What `make` alone lists: target -> description."""
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout
    return {line.split()[1]: line.split(maxsplit=2)[2] for line in listed.splitlines() if line.startswith("make ")}


def test_make_alone_lists_every_target() -> None:
    declared = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert list(targets()) == declared
    assert {"setup", "demo", "test", "check", "bench", "golden", "docs", "gpu"} <= set(declared)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_pages_name_exist(page: Path) -> None:
    named = re.findall(r"(?:^\$ |`)make ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(named) <= set(targets())


def test_the_metrics_of_the_readme_exist() -> None:
    sample = re.findall(r"^([a-z_]+)\{", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(sample) == 8
    assert set(sample) <= set(all_families())
