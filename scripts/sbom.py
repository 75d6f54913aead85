"""Which packages are in the image, as CycloneDX? Rewrites deploy/sbom.cdx.json from uv.lock.

`uv export` says which packages and how they depend on each other. Of each, only those wheels are kept that the image
installs, one for each architecture or one for both, with their hashes; licences are what the packages declare. What the
base image brings is told by the attestation that the release attaches to the image.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "deploy/sbom.cdx.json"
EXTRAS = ("cel",)  # those of the Dockerfile
PYTHON = (3, 13)
MACHINES = ("x86_64", "aarch64")
NEWEST_GLIBC = 28  # as manylinux_2_28 in the Dockerfile
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}

Json = dict[str, Any]


class SbomError(Exception):
    """Why there is none."""


def main() -> int:
    """Writes it."""
    try:
        TARGET.write_text(text(), encoding="utf-8")
    except SbomError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    return 0


def text() -> str:
    """The whole file."""
    return json.dumps(narrowed(exported()), indent=1, ensure_ascii=False) + "\n"


def exported() -> Json:
    """What uv says of uv.lock."""
    uv = shutil.which("uv", path=str(ROOT / "build/uv/bin")) or shutil.which("uv")
    if uv is None:
        raise SbomError("no uv in build/uv/bin or on the PATH: run `make setup`")
    extras = [f"--extra={extra}" for extra in EXTRAS]
    line = [uv, "export", "--quiet", "--frozen", "--offline", "--no-dev", *extras, "--format=cyclonedx1.5"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SbomError(f"uv export failed: {done.stderr.strip()}")
    found: Json = json.loads(done.stdout)
    return found


def narrowed(bom: Json) -> Json:
    """The same, of the image alone, and without what differs at each run."""
    own = bom["metadata"]["component"]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": bom["bomFormat"],
        "specVersion": bom["specVersion"],
        "version": 1,
        "metadata": {
            "tools": bom["metadata"]["tools"],
            "component": {
                "type": "application",
                "bom-ref": own["bom-ref"],
                "name": own["name"],
                "version": own["version"],
                "licenses": licences(own["name"], own["version"]),
                "purl": f"pkg:pypi/{own['name']}@{own['version']}",
            },
        },
        "components": [_component(each) for each in bom["components"]],
        "dependencies": bom["dependencies"],
    }


def _component(component: Json) -> Json:
    wheels = _wheels(component)
    return {key: component[key] for key in ("type", "bom-ref", "name", "version", "purl")} | {
        "licenses": licences(component["name"], component["version"]),
        "externalReferences": wheels,
    }


def _wheels(component: Json) -> list[Json]:
    references = {_file_name(each["url"]): each for each in component["externalReferences"]}
    names = [name for name in references if name.endswith(".whl")]
    chosen: dict[str, None] = {}
    for machine in MACHINES:
        name = best(names, tags(machine))
        if name is None:
            raise SbomError(
                f"{component['name']} {component['version']} has no wheel for CPython {PYTHON[0]}.{PYTHON[1]} on "
                f"{machine} with glibc 2.{NEWEST_GLIBC}: choose another version, or leave it out of the image"
            )
        chosen[name] = None
    return [references[name] for name in chosen]


def _file_name(url: str) -> str:
    return unquote(urlparse(url).path.rpartition("/")[2])


def tags(machine: str) -> list[Tag]:
    """What the image's Python can install, the best first."""
    platforms: list[str] = []
    for minor in range(NEWEST_GLIBC, 4, -1):
        platforms.append(f"manylinux_2_{minor}_{machine}")
        if minor in _OLD_NAMES:
            platforms.append(f"{_OLD_NAMES[minor]}_{machine}")
    platforms.append(f"linux_{machine}")
    own = f"cp{PYTHON[0]}{PYTHON[1]}"
    return [*cpython_tags(PYTHON, [own], platforms), *compatible_tags(PYTHON, own, platforms)]


def best(names: Iterable[str], supported: Sequence[Tag]) -> str | None:
    """The file that an installer takes; None if none fits."""
    ranks = {tag: rank for rank, tag in enumerate(supported)}
    fitting = {
        name: min(ranks[tag] for tag in found if tag in ranks)
        for name in names
        if (found := parse_wheel_filename(name)[3]) & ranks.keys()
    }
    return min(fitting, key=fitting.__getitem__) if fitting else None


def licences(name: str, version: str) -> list[Json]:
    """What a package declares: an SPDX expression, else its classifiers, else the field of old."""
    try:
        declared = distribution(name).metadata.json
    except PackageNotFoundError:
        raise SbomError(f"{name} is not installed, so its licence is unknown: run `make setup`") from None
    if declared["version"] != version:
        raise SbomError(f"{name} {declared['version']} is installed, uv.lock has {version}: run `make setup`")
    if expression := declared.get("license_expression"):
        return [{"expression": expression}]
    known = [
        words.rpartition(" :: ")[2]
        for words in declared.get("classifier", ())
        if words.startswith("License :: OSI Approved :: ")
    ]
    if known:
        return [{"license": {"name": each}} for each in known]
    old = str(declared.get("license", "")).strip()
    if not old or "\n" in old:
        raise SbomError(f"{name} {version} declares no licence in one line: read its files before it is used")
    return [{"license": {"name": old}}]


if __name__ == "__main__":
    sys.exit(main())
