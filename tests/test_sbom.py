"""Does the SBOM name what the image installs, no more and no less? uv.lock is read independently."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from scripts import sbom
from scripts.sbom import SbomError, best, licences, tags

from image_build import REPOSITORY

Json = dict[str, Any]

TEXT = (REPOSITORY / "deploy/sbom.cdx.json").read_text(encoding="utf-8")
BOM: Json = json.loads(TEXT)
LOCK: Json = tomllib.loads((REPOSITORY / "uv.lock").read_text(encoding="utf-8"))
PACKAGES: dict[str, Json] = {package["name"]: package for package in LOCK["package"]}


def reached() -> set[str]:
    """The packages that claimscope[cel] needs on Linux with Python 3.13, by following the lock."""
    own = PACKAGES["claimscope"]
    waiting = [*own["dependencies"], *own["optional-dependencies"]["cel"]]
    found: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        if wanted.get("marker", "") in ("sys_platform == 'win32'", "python_full_version < '3.13'"):
            continue
        assert "marker" not in wanted, f"does this hold for the image? {wanted}"
        if wanted["name"] not in found:
            found.add(wanted["name"])
            package = PACKAGES[wanted["name"]]
            waiting += package.get("dependencies", [])
            for extra in wanted.get("extra", []):
                waiting += package["optional-dependencies"][extra]
    return found


def test_it_is_current() -> None:
    assert sbom.text() == TEXT, "run `make docs`"


def test_it_is_cyclonedx() -> None:
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(TEXT) is None


def test_it_names_every_package_of_the_image_and_no_other() -> None:
    listed = {component["name"]: component["version"] for component in BOM["components"]}
    assert listed == {name: PACKAGES[name]["version"] for name in reached()}
    assert {"aiohttp", "bcrypt", "cel-expr-python", "grpcio", "nvidia-ml-py", "typing-extensions"} <= listed.keys()
    assert not {"kubernetes", "pytest", "ruff"} & listed.keys()


def test_every_package_has_its_purl_licence_and_the_hashes_of_uv_lock() -> None:
    for component in BOM["components"]:
        name, version = component["name"], component["version"]
        assert component["purl"] == f"pkg:pypi/{name}@{version}"
        assert component["licenses"]
        locked = {wheel["url"]: wheel["hash"] for wheel in PACKAGES[name]["wheels"]}
        listed = {
            reference["url"]: f"sha256:{reference['hashes'][0]['content']}"
            for reference in component["externalReferences"]
        }
        assert listed
        assert listed.items() <= locked.items()


def test_each_package_has_a_wheel_for_either_architecture() -> None:
    for component in BOM["components"]:
        files = [reference["url"].rpartition("/")[2] for reference in component["externalReferences"]]
        if len(files) == 1:
            assert files[0].endswith("-none-any.whl")
        else:
            assert ["x86_64" in files[0], "aarch64" in files[1], len(files)] == [True, True, 2]
        for file in files:
            abi = file.removesuffix(".whl").split("-")[-2]
            assert abi in ("none", "abi3", "cp313"), file
            assert "musllinux" not in file


def test_dependencies_refer_to_what_is_listed() -> None:
    known = {component["bom-ref"] for component in [BOM["metadata"]["component"], *BOM["components"]]}
    (own,) = [each for each in BOM["dependencies"] if each["ref"] == BOM["metadata"]["component"]["bom-ref"]]
    assert {each["ref"] for each in BOM["dependencies"]} == known
    assert {ref for each in BOM["dependencies"] for ref in each.get("dependsOn", [])} == known - {own["ref"]}


def test_nothing_in_it_changes_from_run_to_run() -> None:
    assert "serialNumber" not in BOM
    assert "timestamp" not in BOM["metadata"]


WHEELS = [
    "a-1-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "a-1-cp313-cp313-manylinux_2_28_x86_64.whl",
    "a-1-cp313-cp313-manylinux_2_31_x86_64.whl",
    "a-1-cp313-cp313-musllinux_1_2_x86_64.whl",
    "a-1-cp312-cp312-manylinux_2_28_x86_64.whl",
    "a-1-cp38-abi3-manylinux_2_28_x86_64.whl",
    "a-1-cp313-cp313t-manylinux_2_28_x86_64.whl",
    "a-1-py3-none-any.whl",
]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (WHEELS, "a-1-cp313-cp313-manylinux_2_28_x86_64.whl"),
        (WHEELS[:1] + WHEELS[2:], "a-1-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"),
        (WHEELS[2:], "a-1-cp38-abi3-manylinux_2_28_x86_64.whl"),
        (WHEELS[6:], "a-1-py3-none-any.whl"),
        (WHEELS[2:5] + WHEELS[6:7], None),
    ],
    ids=["the newest glibc that fits", "an older one", "the stable ABI", "pure Python", "none fits"],
)
def test_the_wheel_is_the_one_that_an_installer_takes(names: list[str], chosen: str | None) -> None:
    assert best(names, tags("x86_64")) == chosen


def test_a_package_without_a_wheel_for_one_architecture_is_refused() -> None:
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "dependencies": [],
        "metadata": {"tools": [], "component": BOM["metadata"]["component"]},
        "components": [
            {
                "type": "library",
                "bom-ref": "a",
                "name": "a",
                "version": "1",
                "purl": "pkg:pypi/a@1",
                "externalReferences": [{"url": f"https://example.org/{WHEELS[1]}"}],
            }
        ],
    }
    with pytest.raises(SbomError, match=r"^a 1 has no wheel for CPython 3\.13 on aarch64 with glibc 2\.28: choose"):
        sbom.narrowed(bom)


def test_licences_are_those_of_the_locked_version() -> None:
    assert licences("aiohttp", PACKAGES["aiohttp"]["version"]) == [{"expression": "Apache-2.0 AND MIT"}]
    with pytest.raises(SbomError, match=r"^aiohttp \S+ is installed, uv\.lock has 0\.1: run `make setup`$"):
        licences("aiohttp", "0.1")
    with pytest.raises(SbomError, match=r"^nowhere is not installed, so its licence is unknown: run `make setup`$"):
        licences("nowhere", "1")
