"""Is the Dockerfile, and what builds and publishes it, as it should be? Linters of others, and rules of our own."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import sbom
from scripts.release_version import main as release_version
from scripts.release_version import problems

from image_build import IMAGE_PYTHON, REPOSITORY, Stage, admitted, exec_form, stages, variables

TEXT = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
STAGES = stages(TEXT)
NAMED = {stage.name: stage for stage in STAGES}
PRODUCT = STAGES[-1]
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
TOOLS = Path(sys.executable).parent  # where hadolint, zizmor and check-jsonschema are installed


def tool(*line: str | Path) -> tuple[int, str]:
    """Exit code and everything said."""
    done = subprocess.run(
        [TOOLS / line[0], *line[1:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def lineage(stage: Stage) -> list[Stage]:
    """A stage and those whose layers are in it."""
    return [stage, *(lineage(NAMED[stage.image]) if stage.image in NAMED else ())]


# ---- The image ---------------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing() -> None:
    assert tool("hadolint", "--failure-threshold=style", "Dockerfile") == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nADD . /app\nCMD claimscope\n")
    code, said = tool("hadolint", bad)
    assert code == 1
    assert re.findall(r"(DL\d+)", said) == ["DL3006", "DL3020", "DL3025"]


def test_every_image_from_outside_has_tag_and_digest() -> None:
    foreign = {stage.image for stage in STAGES if stage.image not in NAMED}
    assert len(foreign) == 2
    for image in foreign:
        assert re.fullmatch(r"[a-z0-9.]+\.[a-z]+/[a-z0-9/-]+:[a-z0-9.-]+@sha256:[0-9a-f]{64}", image), image
        assert ":latest" not in image


def test_the_label_of_the_base_is_the_base() -> None:
    labels = dict(pair for value in PRODUCT.words_of("LABEL") for pair in variables(value))
    name, _, digest = NAMED["base"].image.partition("@")
    assert labels["org.opencontainers.image.base.name"] == name
    assert TEXT.count(digest) == 1  # Dependabot moves it in its one place
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"VERSION={project['version']}" in PRODUCT.words_of("ARG")


def test_what_a_build_makes_without_a_target_is_the_product() -> None:
    assert PRODUCT.name == "product"
    assert lineage(PRODUCT) == [PRODUCT, NAMED["base"]]


def test_the_product_runs_nothing_while_it_is_built_and_has_no_package_manager() -> None:
    for stage in lineage(PRODUCT):
        assert stage.words_of("RUN") == []
        assert stage.words_of("ADD") == []
        assert all(value.startswith("--from=build /opt/") for value in stage.words_of("COPY"))
    assert NAMED["base"].image.startswith("gcr.io/distroless/")
    assert "NVIDIA_" not in " ".join(PRODUCT.words_of("ENV"))  # the controller, of the same image, asks for no GPU


@pytest.mark.parametrize("name", ["product", "demo"])
def test_it_runs_as_nobody_by_number_and_starts_without_a_shell(name: str) -> None:
    stage = NAMED[name]
    assert stage.words_of("USER") == ["65532:65532"]
    assert exec_form(stage.words_of("ENTRYPOINT")[0]) == ["/opt/claimscope/bin/claimscope"]


def test_only_the_demo_has_a_compiler() -> None:
    with_apt = [stage.name for stage in STAGES if "apt-get" in " ".join(stage.words_of("RUN"))]
    assert with_apt == ["demo"]


def test_the_build_s_python_is_that_of_the_base() -> None:
    dotted = "{}.{}".format(*IMAGE_PYTHON)
    assert NAMED["build"].image.startswith(f"docker.io/library/python:{dotted}.")
    assert NAMED["build"].image == NAMED["demo"].image
    assert NAMED["base"].image.startswith("gcr.io/distroless/python3-debian13:")  # its test says Python 3.13.5
    assert f"--from=base /usr/lib/python{dotted} /opt/base/usr/lib/python{dotted}" in NAMED["build"].words_of("COPY")


def test_everything_installed_has_its_hash() -> None:
    installs = [line for value in NAMED["build"].words_of("RUN") for line in value.split("&&") if " install " in line]
    assert len(installs) == 3
    assert [("--require-hashes" in line, "--offline" in line and "--no-index" in line) for line in installs] == [
        (True, False),
        (True, False),
        (False, True),  # the last is the wheel that was built a line before
    ]
    listed = (REPOSITORY / "scripts/uv.txt").read_text(encoding="utf-8")
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", listed)) == 2


def test_the_sbom_is_of_what_the_dockerfile_installs() -> None:
    (run,) = [value for value in NAMED["build"].words_of("RUN") if "uv export" in value]
    assert tuple(re.findall(r"--extra=(\w+)", run)) == sbom.EXTRAS
    assert re.findall(r"manylinux_2_(\d+)", run) == [str(sbom.NEWEST_GLIBC)]
    assert tuple(re.findall(r"machine=(\w+)", run)) == sbom.MACHINES
    assert sbom.PYTHON == IMAGE_PYTHON


def test_uv_is_of_one_version() -> None:
    setup = (REPOSITORY / "scripts/setup.sh").read_text(encoding="utf-8")
    listed = (REPOSITORY / "scripts/uv.txt").read_text(encoding="utf-8")
    wanted = re.findall(r"^uv_version=(.+)$", setup, re.MULTILINE)
    assert len(wanted) == 1
    assert re.findall(r"^uv==(\S+)", listed, re.MULTILINE) == wanted


def test_the_context_is_what_is_copied() -> None:
    copied = {
        word.rstrip("/")
        for stage in STAGES
        for value in stage.words_of("COPY")
        if not value.startswith("--from")
        for word in value.split()[:-1]
        if not word.startswith("--")
    }
    ignore = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert [admitted(path) for path in ("tests/conftest.py", ".git/config", "exporter/x/__pycache__/y.pyc")] == [
        False,
        False,
        False,
    ]


# ---- The workflows -----------------------------------------------------------------------------------------------


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def test_workflows_are_of_github_s_schema() -> None:
    assert WORKFLOWS
    schema = "vendor.github-workflows"
    assert tool("check-jsonschema", "--builtin-schema", schema, *WORKFLOWS) == (0, "ok -- validation done\n")
    dependabot = tool("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")
    assert dependabot == (0, "ok -- validation done\n")


def test_zizmor_finds_nothing() -> None:
    code, said = tool("zizmor", "--offline", "--no-progress", "--persona=pedantic", "--color=never", ".github")
    assert code == 0, said
    assert "No findings to report" in said


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit_and_say_their_release(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.+)", text)
    assert uses
    assert [line for line in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_what_builds_and_scans_the_published_image_is_pinned() -> None:
    """These images run in the job that may write packages and sign."""
    publish = jobs(REPOSITORY / ".github/workflows/release.yml")["publish"]
    (build,) = (step["run"] for step in publish["steps"] if "docker buildx build" in step.get("run", ""))
    assert '--driver-opt="image=$BUILDKIT"' in build
    assert '--sbom="generator=$SCANNER"' in build
    for name in ("BUILDKIT", "SCANNER"):
        assert re.fullmatch(r"docker\.io/[\w/-]+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", publish["env"][name])


def test_uv_is_installed_by_its_hashes() -> None:
    setup = (REPOSITORY / "scripts/setup.sh").read_text(encoding="utf-8")
    assert "uv=(--require-hashes --only-binary=:all: --requirement=scripts/uv.txt)" in setup


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Found 8 known vulnerabilities in 1 package\njinja2 2.4.1 PYSEC-2014-8 2.7.2", 0),
        ("ERROR: connection to pypi.org for jinja2 2.4.1 failed", 1),
    ],
)
def test_an_advisory_source_is_believed_only_where_it_names_an_advisory(tmp_path: Path, said: str, code: int) -> None:
    """With a `uv` that says what pip-audit would of the old package, and finds nothing in the image's."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "build/uv/bin").mkdir(parents=True)
    script = tmp_path / "scripts/advisories.sh"
    script.write_text((REPOSITORY / "scripts/advisories.sh").read_text(encoding="utf-8"))
    uv = tmp_path / "build/uv/bin/uv"
    uv.write_text(f"#!/bin/sh\ncase \"$*\" in *canary.txt) printf '{said}\\n'; exit 1;; esac\n")
    uv.chmod(0o755)
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, "could not ask" in done.stderr) == (code, code == 1)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_workflows_run_exists(path: Path) -> None:
    lines = "\n".join(step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step)
    named = set(re.findall(r"(?<![\w/.])((?:scripts|deploy|\.ci)/[\w./-]+)", lines))
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    for name in named:
        if name.startswith(("scripts/", ".ci/")):
            assert (REPOSITORY / name).stat().st_mode & 0o111, f"{name} is not executable"
    targets = re.findall(r"--target[= ](\w+)", lines)
    assert set(targets) <= set(NAMED)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_has_only_the_rights_that_it_names(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {}
    for name, job in jobs(path).items():
        writes = {right for right, level in job["permissions"].items() if level == "write"}
        assert writes == ({"contents", "packages", "id-token"} if name == "publish" else set())


def test_ci_tests_the_oldest_python_and_that_of_the_image() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = jobs(REPOSITORY / ".github/workflows/ci.yml")["check"]["strategy"]["matrix"]["python"]
    assert tested == [project["requires-python"].removeprefix(">="), "{}.{}".format(*IMAGE_PYTHON)]


def test_nothing_is_published_before_the_checks_and_the_advisories() -> None:
    release = jobs(REPOSITORY / ".github/workflows/release.yml")
    assert release["publish"]["needs"] == "check"
    ran = [step["run"] for step in release["check"]["steps"] if "run" in step]
    assert [line.split()[0] for line in ran] == ["scripts/release_version.py", ".ci/run", "scripts/advisories.sh"]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).stderr == b""


# ---- The release -------------------------------------------------------------------------------------------------

FILES = {
    "pyproject.toml": '[project]\nversion = "1.2.3"\n',
    "Dockerfile": "FROM x\nARG VERSION=1.2.3\n",
    "CHANGELOG.md": "# Changes\n\n## 1.2.3, 2026-12-01\n",
    "deploy/helm/claimscope/Chart.yaml": 'name: claimscope\nappVersion: "1.2.3"\n',
}


def test_a_tag_that_fits() -> None:
    assert problems("1.2.3", FILES) == []


@pytest.mark.parametrize(
    ("version", "files", "told"),
    [
        (
            "1.2.4",
            {},
            [
                "pyproject.toml says version 1.2.3: set it to 1.2.4, then run `uv lock` and `make docs`",
                "CHANGELOG.md has no heading `## 1.2.4`: name what changed below it",
            ],
        ),
        ("1.2.3", {"Dockerfile": "FROM x\n"}, ["Dockerfile says `ARG VERSION=`: set it to 1.2.3"]),
        (
            "1.2.3",
            {"deploy/helm/claimscope/Chart.yaml": "appVersion: 1.2.2\n"},
            ["Chart.yaml says `appVersion: 1.2.2`: set it to 1.2.3"],
        ),
        (
            "1.2.3",
            {"CHANGELOG.md": "## 1.2.3, unreleased\n"},
            ["CHANGELOG.md says `## 1.2.3, unreleased`: put the day in place of `unreleased`"],
        ),
    ],
    ids=["another version", "no version in the image", "another in the chart", "unreleased"],
)
def test_a_tag_that_does_not_fit(version: str, files: dict[str, str], told: list[str]) -> None:
    assert problems(version, FILES | files) == told


@pytest.mark.parametrize("tag", ["", "1.2.3", "v1.2", "v1.2.3\nevil=1", "v1.2.3;id", "v1.2.3-rc.1"])
def test_a_tag_that_is_none(tag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert release_version(tag) == 1
    assert capsys.readouterr() == ("", f"release: the tag `{tag}` is not vMAJOR.MINOR.PATCH, such as v0.2.0\n")


def test_the_health_check_needs_nothing_but_python() -> None:
    tree = ast.parse((REPOSITORY / "scripts/healthcheck.py").read_text(encoding="utf-8"))
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.split(".")[0] for name in names} <= {"__future__", *sys.stdlib_module_names}
