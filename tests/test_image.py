"""Does what the Dockerfile builds run: from a read-only tree, as another user, with nothing else in sight?

The build and product stages are performed line by line in a directory; the interpreter stands for the base image.
"""

from __future__ import annotations

import asyncio
import contextlib
import email
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from packaging.tags import parse_tag
from packaging.utils import canonicalize_name, parse_wheel_filename

from claimscope.clock import SystemClock
from claimscope.sim.cluster import SimulatedCluster
from image_build import IMAGE_PYTHON, REPOSITORY, Built, exec_form, interpreter, lay_base, stages, version_of

pytestmark = pytest.mark.timeout(240)  # whichever test comes first builds the image
USER = 65532
_OTHER_USER: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
SERVING = re.compile(r"serving on (http://\S+)")
DOCKERFILE = stages((REPOSITORY / "Dockerfile").read_text(encoding="utf-8"))
BUILD = next(stage for stage in DOCKERFILE if stage.name == "build")
PRODUCT = DOCKERFILE[-1]
X86_64, AARCH64 = 62, 183  # e_machine of an ELF file
# What the base image brings beside Python: its packages libc6, libgcc-s1, libstdc++6 and zlib1g.
BASE_LIBRARIES = {
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "libz.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The product as it would lie in a container."""

    product: Built
    build: Built
    scratch: Path  # the one place that the user may write to, as an emptyDir is
    version: str  # of its Python

    @property
    def library(self) -> Path:
        return self.product.root / "opt/claimscope/lib"

    def command(self, words: list[str]) -> list[str]:
        """Words of the image as words here: Python by its place, a script by the Python that its first line names."""
        program = self.product.root / words[0].lstrip("/")
        python = str(self.product.root / "usr/bin/python3")
        rest = [str(self.product.root / word.lstrip("/")) if word.startswith("/opt/") else word for word in words[1:]]
        if words[0] == "/usr/bin/python3":
            return [python, *rest]
        assert program.read_text(encoding="utf-8").startswith("#!/usr/bin/python3\n")
        return [python, str(program), *rest]

    @property
    def environment(self) -> dict[str, str]:
        """The image's variables, and no HOME."""
        return {
            name: re.sub(r"(^|:)/opt/", rf"\1{self.product.root}/opt/", text)
            for name, text in self.product.environment.items()
        }

    @property
    def claimscope(self) -> list[str]:
        return self.command(exec_form(PRODUCT.words_of("ENTRYPOINT")[-1]))

    def run(self, line: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            line,
            env=self.environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **_OTHER_USER,
        )
        return done


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Both stages, performed for this machine. Not below pytest's directory, which only its user may enter."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    python = interpreter()
    place = Path(tempfile.mkdtemp(prefix="claimscope-image-"))
    try:
        place.chmod(0o755)
        lay_base(python, place / "base")
        build = Built(place / "build", python, machine, {"base": place / "base"})
        build.perform(BUILD.steps)
        lay_base(python, place / "product")
        product = Built(place / "product", python, machine, {"build": place / "build"})
        product.perform(PRODUCT.steps)
        scratch = place / "scratch"
        scratch.mkdir()
        if os.geteuid() == 0:
            os.chown(scratch, USER, USER)
        _set_writable(product.root, writable=False)
        yield Image(product=product, build=build, scratch=scratch, version=version_of(python))
        _set_writable(product.root, writable=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _set_writable(root: Path, *, writable: bool) -> None:
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | stat.S_IWUSR if writable else mode & ~0o222)


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@contextlib.asynccontextmanager
async def part(image: Image, *arguments: str, **variables: str) -> AsyncIterator[tuple[str, Path]]:
    """Runs the agent or the controller; gives its address and its log. What it leaves of the tree is as it was."""
    before = _digests(image.product.root)
    log = image.scratch.parent / f"{arguments[0]}.log"
    line = [*image.claimscope, *arguments, "--web-listen-address", "127.0.0.1:0"]
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *line,
            env=image.environment | variables,
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            **_OTHER_USER,
        )
    try:
        async with asyncio.timeout(30):
            while not (found := SERVING.search(log.read_text())):
                assert process.returncode is None, log.read_text()
                await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.05)
        yield found[1], log
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert "ended with code" not in log.read_text()  # its own child processes started from the image, too
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert _digests(image.product.root) == before


async def ask(address: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as web, web.get(address) as answer:
        return answer.status, await answer.text()


async def ask_until(address: str, said: str, seconds: float = 20.0) -> tuple[int, str]:
    """Asks until the answer has these words."""
    tick = asyncio.Event()
    async with asyncio.timeout(seconds):
        while said not in (found := await ask(address))[1]:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(tick.wait(), 0.1)
    return found


def test_the_entry_point_tells_its_version(image: Image) -> None:
    done = image.run([*image.claimscope, "--version"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "claimscope 0.1.0\n", "")


def test_it_runs_as_another_user_and_imports_from_the_image_alone(image: Image) -> None:
    done = image.run(
        [
            *image.command(["/usr/bin/python3"]),
            "-c",
            "import os, sys, claimscope, aiohttp, asyncio, cel_expr_python\n"
            "print(os.getuid(), 'HOME' in os.environ)\n"
            "for module in (claimscope, aiohttp, asyncio, cel_expr_python): print(module.__path__[0])\n"
            "print(*sys.path)",
        ]
    )
    assert done.stderr == ""
    who, *files, paths = done.stdout.splitlines()
    assert who == f"{USER if os.geteuid() == 0 else os.getuid()} False"
    assert all(name.startswith(f"{image.product.root}/") for name in files)
    assert all(path.startswith(f"{image.product.root}/") for path in paths.split())


async def test_the_agent_starts_without_nvml_and_says_so(image: Image) -> None:
    started = part(
        image,
        "agent",
        "--nvml-library",
        "/nonexistent/libnvidia-ml.so.1",
        "--attribution",
        "off",
        "--state-file",
        str(image.scratch / "agent.json"),
        "--control-socket",
        str(image.scratch / "control.sock"),
        "--node-name",
        "node-a",
    )
    async with started as (address, _):
        assert await ask(f"{address}/livez") == (200, "ok\n")
        status, text = await ask_until(f"{address}/readyz", "/nonexistent/libnvidia-ml.so.1")
        assert status == 503
        assert text.startswith("[-] sampler: no usable NVML library at /nonexistent/libnvidia-ml.so.1: ")
        check = [*image.command(exec_form(PRODUCT.words_of("HEALTHCHECK")[-1])), f"{address}/livez"]
        done = await asyncio.to_thread(image.run, check)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_with_a_compiler_it_simulates_gpus_as_the_demo_s_image_does(image: Image, cc: str) -> None:
    del cc
    started = part(
        image,
        "agent",
        "--simulate",
        "l40sx4",
        "--state-file",
        str(image.scratch / "simulated.json"),
        "--control-socket",
        str(image.scratch / "simulated.sock"),
        XDG_CACHE_HOME=str(image.scratch),
    )
    async with started as (address, _):
        status, text = await ask_until(f"{address}/metrics", "\ngpu_power_watts{")
        assert status == 200
        assert "NVIDIA L40S" in text
    assert list(image.scratch.rglob("libnvidia-ml.so.1"))


async def test_the_controller_serves_the_claims_of_a_cluster(image: Image) -> None:
    async with SimulatedCluster.open(clock=SystemClock()) as cluster:
        started = part(image, "controller", "--api-server-url", cluster.url, "--leader-election", "off")
        async with started as (address, log):
            status, text = await ask_until(f"{address}/metrics", "kube_resourceclaim_status_allocation_state{")
            assert status == 200
            assert "dra_claim_pending_reason{" in text
            assert (await ask_until(f"{address}/readyz", "\nready"))[0] == 200
            assert "cel" not in log.read_text().lower()  # its engine's absence would be said


def test_the_health_check_fails_where_nothing_answers(image: Image) -> None:
    check = image.command(exec_form(PRODUCT.words_of("HEALTHCHECK")[-1]))
    done = image.run([*check, "http://127.0.0.1:1/livez"])
    assert done.returncode == 1
    assert done.stderr == "http://127.0.0.1:1/livez: <urlopen error [Errno 111] Connection refused>\n"


def test_it_brings_what_it_needs_at_run_time_and_nothing_else(image: Image) -> None:
    names = {path.relative_to(image.library).as_posix() for path in image.library.rglob("*") if path.is_file()}
    ours = {name for name in names if name.startswith("claimscope/")}
    copied = image.build.root / "src/exporter"
    source = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert source <= ours
    assert {"claimscope/sim/nvml.c", "claimscope/sim/demo_rules.yml", "claimscope/py.typed"} <= source
    assert {name for name in ours - source if not re.search(r"/__pycache__/\w+\.cpython-\d+\.pyc$", name)} == set()
    assert "claimscope-0.1.0.dist-info/licenses/LICENSE" in names
    tops = {name.split("/")[0] for name in names}
    assert not tops & {"bin", "tests", "bazel-project", "kubernetes", "pip", "uv", ".lock"}
    assert {name for name in names if "libnvidia-ml" in name} == set()
    assert sorted(path.name for path in (image.product.root / "opt/claimscope").iterdir()) == ["bin", "lib"]
    assert sorted(path.name for path in (image.product.root / "opt").iterdir()) == ["claimscope"]


def test_what_is_installed_is_what_the_sbom_names(image: Image) -> None:
    if image.version != "{}.{}".format(*IMAGE_PYTHON):
        pytest.skip("no Python of the image's version on this machine: another one gets other wheels")
    bom = json.loads((REPOSITORY / "deploy/sbom.cdx.json").read_text(encoding="utf-8"))
    wheels = {}
    for component in bom["components"]:
        files = [each["url"].rpartition("/")[2] for each in component["externalReferences"]]
        (file,) = [name for name in files if name.endswith("-none-any.whl") or os.uname().machine in name]
        wheels[component["name"]] = component["version"], parse_wheel_filename(file)[3]
    installed = {}
    for directory in image.library.glob("*.dist-info"):
        said = email.message_from_bytes((directory / "METADATA").read_bytes())
        wheel = email.message_from_bytes((directory / "WHEEL").read_bytes())
        tags = frozenset().union(*(parse_tag(tag) for tag in wheel.get_all("Tag", [])))
        installed[canonicalize_name(said["Name"])] = said["Version"], tags
    assert installed.pop(canonicalize_name("claimscope"))[0] == bom["metadata"]["component"]["version"]
    assert {name: version for name, (version, _) in installed.items()} == {
        name: version for name, (version, _) in wheels.items()
    }
    # Some files carry more tags in their name than inside, or fewer: one in common is enough.
    assert [name for name, (_, tags) in installed.items() if not tags & wheels[name][1]] == []


def test_every_module_is_compiled_and_says_nothing_of_the_machine_that_built_it(image: Image) -> None:
    tag = "cpython-" + image.version.replace(".", "")
    for root in (image.library, image.product.root / f"usr/lib/python{image.version}"):
        sources = [path for path in root.rglob("*.py") if "lib2to3" not in path.parts]
        lacking = [path for path in sources if not (path.parent / f"__pycache__/{path.stem}.{tag}.pyc").is_file()]
        assert len(sources) > 300
        assert lacking == []
        # PEP 552: flags 1 is a file with the hash of its source that is never compared.
        flags = {struct.unpack("<4xI", path.read_bytes()[:8])[0] for path in root.rglob("*.pyc")}
        assert flags == {1}
    assert not list((image.build.root / "opt/base").rglob("*.py"))
    metadata = {path.name for path in image.library.glob("claimscope-*.dist-info/*")}
    assert metadata == {"INSTALLER", "METADATA", "RECORD", "REQUESTED", "WHEEL", "entry_points.txt", "licenses"}


def test_everybody_may_read_all_of_it(image: Image) -> None:
    for path in (image.product.root / "opt").rglob("*"):
        wanted = 0o555 if path.is_dir() or path.name == "claimscope" else 0o444
        assert path.stat().st_mode & wanted == wanted, path
        assert not path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID), path


def _machine_of(path: Path) -> int:
    head = path.read_bytes()[:20]
    assert head[:4] == b"\x7fELF", path
    return int(struct.unpack_from("<H", head, 18)[0])


def _shared_objects(root: Path) -> list[Path]:
    return [path for path in root.rglob("*.so*") if path.is_file()]


def test_its_extension_modules_need_no_library_that_the_base_lacks(image: Image, cc: str) -> None:
    del cc  # readelf comes with the compiler
    found = _shared_objects(image.library)
    said = subprocess.run(["readelf", "--dynamic", *found], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\) +Shared library: \[(.+)\]", said))
    own = {path.name for path in found}
    assert len(found) > 20
    assert needed - own <= BASE_LIBRARIES


@pytest.mark.parametrize(("machine", "code"), [("amd64", X86_64), ("arm64", AARCH64)])
def test_either_machine_builds_the_other_s_image(image: Image, tmp_path: Path, machine: str, code: int) -> None:
    built = Built(tmp_path, interpreter(), machine, {})
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/uv").symlink_to(image.build.root / "opt/uv")
    last = next(number for number, step in enumerate(BUILD.steps) if "--extra=cel" in step[1])
    first = next(number for number, step in enumerate(BUILD.steps) if step[1].startswith("pyproject.toml"))
    built.perform([("WORKDIR", "/src"), *BUILD.steps[first : last + 1]])
    found = _shared_objects(tmp_path / "opt/claimscope/lib")
    assert len(found) > 20
    assert {_machine_of(path) for path in found} == {code}


def test_another_architecture_is_refused(image: Image, tmp_path: Path) -> None:
    del image
    built = Built(tmp_path, interpreter(), "riscv64", {})
    (run,) = [step for step in BUILD.steps if "--extra=cel" in step[1]]
    with pytest.raises(AssertionError, match="TARGETARCH is 'riscv64': the image is built for amd64 and arm64"):
        built.perform([run])


def test_the_wheel_is_the_same_bytes_whenever_it_is_built(image: Image, tmp_path: Path) -> None:
    (first,) = (image.build.root / "opt/dist").glob("*.whl")
    again = tmp_path / "src"
    shutil.copytree(image.build.root / "src", again, copy_function=shutil.copyfile)  # of now, not of then
    uv = image.build.root / "opt/uv/bin/uv"
    subprocess.run(
        [uv, "build", "--quiet", "--offline", "--wheel", f"--out-dir={tmp_path}/dist"],
        cwd=again,
        check=True,
        timeout=60,
    )
    (second,) = (tmp_path / "dist").glob("*.whl")
    assert first.name == second.name == "claimscope-0.1.0-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()
