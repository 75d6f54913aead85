#!/usr/bin/env python3
"""Does a tag fit what is in the repository? Prints `version=1.2.3`, or says what differs and fails."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems(version: str, files: dict[str, str]) -> list[str]:
    """What is not of this version; `files` are those that say it."""
    project = tomllib.loads(files["pyproject.toml"])["project"]["version"]
    image = re.search(r"^ARG VERSION=(.*)$", files["Dockerfile"], re.MULTILINE)
    found = []
    if project != version:
        found.append(f"pyproject.toml says version {project}: set it to {version}, then run `uv lock` and `make docs`")
    chart = re.search(r"^appVersion: *(.*)$", files["deploy/helm/claimscope/Chart.yaml"], re.MULTILINE)
    if chart is None or chart[1].strip('"') != project:
        found.append(f"Chart.yaml says `appVersion: {chart[1] if chart else ''}`: set it to {project}")
    if image is None or image[1] != project:
        found.append(f"Dockerfile says `ARG VERSION={image[1] if image else ''}`: set it to {project}")
    heading = re.search(rf"^## {re.escape(version)}\b.*$", files["CHANGELOG.md"], re.MULTILINE)
    if heading is None:
        found.append(f"CHANGELOG.md has no heading `## {version}`: name what changed below it")
    elif "unreleased" in heading[0]:
        found.append(f"CHANGELOG.md says `{heading[0]}`: put the day in place of `unreleased`")
    return found


def main(tag: str) -> int:
    """0 if the tag fits."""
    if re.fullmatch(r"v\d+\.\d+\.\d+", tag) is None:
        print(f"release: the tag `{tag}` is not vMAJOR.MINOR.PATCH, such as v0.2.0", file=sys.stderr)
        return 1
    names = ("pyproject.toml", "Dockerfile", "CHANGELOG.md", "deploy/helm/claimscope/Chart.yaml")
    found = problems(tag[1:], {name: (ROOT / name).read_text(encoding="utf-8") for name in names})
    for each in found:
        print(f"release: {each}", file=sys.stderr)
    if not found:
        print(f"version={tag[1:]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else ""))
