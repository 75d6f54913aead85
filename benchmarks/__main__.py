"""`python -m benchmarks [NAME...]`: runs the benchmarks, each in a process of its own, and writes docs/performance.md.

Each prints lines of `name value unit [bound]`, where a bound is `<=X` or `>=X`. The exit status is 1 if a bound was not
held, a benchmark failed, or the code changed meanwhile. With names given, only those run and the page is left alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NAMES = (
    "sampler_cpu", "tick_lateness", "render", "otlp", "scrape", "memory", "controller_scale", "fence_latency",
    "fence_scale", "health_soak", "rules",
)  # fmt: skip
ROOT = Path(__file__).parent.parent
LINE = re.compile(r"(?P<name>[a-z][a-z0-9_]*) (?P<value>[-+0-9.e]+) (?P<unit>\S*) ?(?P<bound>[<>]=[0-9.e-]+)?\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of one benchmark."""

    benchmark: str
    name: str
    value: str
    unit: str
    bound: str

    @property
    def held(self) -> bool:
        """Whether the value is within its bound; without one it is."""
        if not self.bound:
            return True
        limit = float(self.bound[2:])
        return float(self.value) <= limit if self.bound.startswith("<") else float(self.value) >= limit


def figures(benchmark: str, text: str) -> list[Figure]:
    """The figures in a benchmark's output; other lines are for people."""
    return [
        Figure(
            benchmark=benchmark, name=found["name"], value=found["value"], unit=found["unit"],
            bound=found["bound"] or "",
        )
        for found in (LINE.fullmatch(line) for line in text.splitlines())
        if found is not None
    ]


def machine() -> str:
    """What it was measured on, in one line."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def sources() -> str:
    """A digest of all code that is measured or measures."""
    digest = hashlib.sha256()
    for folder in ("exporter", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".c"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _questions() -> dict[str, str]:
    """The first line of each benchmark's module: the question it answers."""
    return {
        name: (ROOT / f"benchmarks/{name}.py").read_text(encoding="utf-8").split('"""')[1].strip().split("\n\n")[0]
        for name in NAMES
        if (ROOT / f"benchmarks/{name}.py").exists()
    }


def page(found: list[Figure], questions: dict[str, str], measured_on: str) -> str:
    """docs/performance.md, whole."""
    lines = [
        "<!-- Written by `make bench`. -->",
        "# Performance",
        "",
        "Measured by the scripts in `benchmarks/`, on the simulated libnvidia-ml and API server; ratios compare two",
        f"ways within one run. Measured on: {measured_on}.",
    ]
    for benchmark, question in questions.items():
        rows = [figure for figure in found if figure.benchmark == benchmark]
        if rows:
            lines += ["", f"## {benchmark}", "", " ".join(question.split()), ""]
            lines += ["| figure | value | unit | bound | held |", "|---|---:|---|---|---|"]
        for row in rows:
            verdict = "" if not row.bound else "yes" if row.held else "**no**"
            lines.append(f"| {row.name} | {row.value} | {row.unit} | {row.bound} | {verdict} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Runs what was asked for; returns the exit status."""
    unknown = set(arguments) - set(NAMES)
    if unknown:
        sys.stderr.write(f"benchmarks: no {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}\n")
        return 2
    found: list[Figure] = []
    failed: list[str] = []
    before = sources()
    for name in arguments or NAMES:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
        )
        sys.stdout.write(done.stdout)
        sys.stdout.flush()
        if done.returncode != 0:
            failed.append(f"{name} ended with status {done.returncode}")
        found += figures(name, done.stdout)
    failed += [f"{figure.name} is {figure.value}, bound {figure.bound}" for figure in found if not figure.held]
    if sources() != before:
        # Figures of two versions side by side would say nothing about either.
        failed.append("the code changed while it was measured: docs/performance.md is left as it was, run again")
    elif not arguments:
        text = page(found, _questions(), f"{machine()}; code {before}")
        (ROOT / "docs/performance.md").write_text(text, encoding="utf-8")
    for line in failed:
        sys.stderr.write(f"benchmarks: {line}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
