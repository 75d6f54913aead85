"""Performs a stage of the Dockerfile in a directory, where there is no container engine."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dockerfile_parse import DockerfileParser

REPOSITORY: Final = Path(__file__).parent.parent
IMAGE_PYTHON: Final = (3, 13)
STEP_SECONDS: Final = 300
# Of an interpreter's library, what the base image leaves out as well, or nothing here imports.
_LEFT_OUT: Final = (
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "config-*",
    "__pycache__",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """FROM and what follows, up to the next FROM."""

    name: str
    image: str
    platform: str
    steps: tuple[tuple[str, str], ...]  # instruction in capitals, and its words on one line

    def words_of(self, instruction: str) -> list[str]:
        """What every such instruction says."""
        return [value for name, value in self.steps if name == instruction]


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile, in order."""
    parser = DockerfileParser(fileobj=io.BytesIO(text.encode()))
    found: list[Stage] = []
    for entry in parser.structure:
        instruction, value = entry["instruction"], entry["value"]
        if instruction == "FROM":
            words = value.split()
            platform = words.pop(0).partition("=")[2] if words[0].startswith("--platform=") else ""
            assert words[1:2] in ([], ["AS"]), value
            found.append(Stage(name=words[2] if words[1:] else "", image=words[0], platform=platform, steps=()))
        elif instruction != "COMMENT":
            last = found.pop()
            found.append(
                Stage(
                    name=last.name, image=last.image, platform=last.platform, steps=(*last.steps, (instruction, value))
                )
            )
    return found


def variables(value: str) -> Iterator[tuple[str, str]]:
    """The pairs of one ENV or LABEL."""
    for word in shlex.split(value):
        name, _, text = word.partition("=")
        yield name, text


def exec_form(value: str) -> list[str]:
    """The words of a JSON array."""
    words = json.loads(value[value.index("[") :])
    assert all(isinstance(word, str) for word in words)
    return list(words)


def interpreter() -> Path:
    """A Python of the image's version where this machine has one that can make environments, or else this one."""
    candidates: list[str | Path] = [
        "python{}.{}".format(*IMAGE_PYTHON),
        *sorted(Path.home().glob(".pyenv/versions/{}.{}.*/bin/python3".format(*IMAGE_PYTHON))),
    ]
    question = f"import sys, ensurepip; sys.exit(sys.version_info[:2] != {IMAGE_PYTHON})"
    for candidate in candidates:
        path = shutil.which(candidate)
        if path and subprocess.run([path, "-c", question], capture_output=True, check=False).returncode == 0:
            return Path(path)
    return Path(sys._base_executable if hasattr(sys, "_base_executable") else sys.executable)


def version_of(python: Path) -> str:
    """Its major and minor version: 3.13."""
    line = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()


def lay_base(python: Path, root: Path) -> None:
    """What stands for the base image: an interpreter under /usr, its library as source only."""
    version = version_of(python)
    ask = (
        "import sys, sysconfig; print(sys.executable); print(sysconfig.get_path('stdlib')); "
        "print(sysconfig.get_config_var('LIBDIR'))"
    )
    answer = subprocess.run([str(python), "-I", "-c", ask], capture_output=True, text=True, check=True)
    executable, library, shared = answer.stdout.splitlines()
    (root / "usr/bin").mkdir(parents=True)
    # Debian's Python needs no library of its own. One built elsewhere may look for it by an absolute path, which the
    # other user may be unable to enter: it shall look beside itself.
    program = Path(executable).read_bytes()
    beside = b"$ORIGIN/../lib"
    own = f"{shared}\0".encode()
    if len(beside) < len(own):
        program = program.replace(own, beside.ljust(len(own), b"\0"))
    (root / "usr/bin/python3").write_bytes(program)
    (root / "usr/bin/python3").chmod(0o755)
    shutil.copytree(library, root / f"usr/lib/python{version}", ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for path in Path(shared).glob(f"libpython{version}.so*"):
        shutil.copy(path, root / "usr/lib")


def admitted(path: str) -> bool:
    """Whether .dockerignore lets this file of the repository through: nothing but what its `!` lines name."""
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in lines
    let = [line[1:] for line in lines if line.startswith("!")]
    return any(path == name or path.startswith(f"{name}/") for name in let) and "__pycache__" not in path.split("/")


class Built:
    """A stage's file system under `root`, and the variables that it set."""

    def __init__(self, root: Path, python: Path, machine: str, others: Mapping[str, Path]) -> None:
        self.root = root
        self.environment: dict[str, str] = {}
        self._python = python  # what `python3` is in its RUN lines
        self._machine = machine
        self._others = others  # the roots of the stages before
        self._library = "python{}.{}".format(*IMAGE_PYTHON), f"python{version_of(python)}"
        self._directory = root

    def at(self, path: str) -> Path:
        """Where a path of the image is: below the root, or below WORKDIR."""
        return (self.root if path.startswith("/") else self._directory) / path.replace(*self._library).lstrip("/")

    def perform(self, steps: Iterable[tuple[str, str]]) -> None:
        """Does what a stage's lines say; RUN sees /opt and /src below the root."""
        for instruction, value in steps:
            if instruction == "ENV":
                self.environment |= dict(variables(value))
            elif instruction == "WORKDIR":
                self._directory = self.at(value)
                self._directory.mkdir(parents=True, exist_ok=True)
            elif instruction == "COPY":
                self._copy(value.split())
            elif instruction == "RUN":
                self._run(value)

    def _run(self, value: str) -> None:
        tools = self.root / "python"
        tools.mkdir(exist_ok=True)
        if not (tools / "python3").exists():
            (tools / "python3").symlink_to(self._python)
        passed = {name: text for name, text in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "HOME"))}
        environment = (
            passed
            | self.environment
            | {
                "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
                "TARGETARCH": self._machine,
            }
        )
        command = re.sub(r"(?<![\w.)/-])/(opt|src)\b", rf"{self.root}/\1", value).replace(*self._library)
        ran = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self._directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
        assert ran.returncode == 0, f"RUN {value}\n{ran.stdout}{ran.stderr}"

    def _copy(self, words: list[str]) -> None:
        given = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
        assert set(given) <= {"from", "chmod"}, words
        stage, mode = given.get("from"), given.get("chmod")
        *sources, into = (word for word in words if not word.startswith("--"))
        for source in sources:
            if stage is None:
                assert admitted(source), f".dockerignore keeps {source} out"
                origin = REPOSITORY / source
            else:
                origin = self._others[stage] / source.replace(*self._library).lstrip("/")
            target = self.at(into)
            if origin.is_dir():
                ignore = _not_admitted if stage is None else None
                shutil.copytree(origin, target, dirs_exist_ok=True, symlinks=True, ignore=ignore)
            else:
                target = target / origin.name if into.endswith("/") else target
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(origin, target)
                if mode is not None:
                    target.chmod(int(mode, 8))


def _not_admitted(directory: str, names: list[str]) -> set[str]:
    relative = Path(directory).relative_to(REPOSITORY).as_posix()
    return {name for name in names if not admitted(f"{relative}/{name}")}
