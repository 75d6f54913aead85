"""Writes alerts/rules/*.yml, and the tests of promtool in alerts/tests/*.yml, from the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from alerts.cases import capacity, claims, devices, fencing, own, recording
from alerts.cases.model import Case, Recorded, tests_file
from alerts.model import rule_file, to_yaml
from alerts.table import FILES

HERE: Final = Path(__file__).parent
CASES: Final[Mapping[str, tuple[Case, ...]]] = MappingProxyType(
    {
        "claims": claims.CASES,
        "devices": devices.CASES,
        "fencing": fencing.CASES,
        "capacity": capacity.CASES,
        "own": own.CASES,
    }
)
RECORDED: Final[tuple[Recorded, ...]] = recording.CASES
_RECORDING: Final = "recording"


def _tests() -> Iterator[tuple[str, str]]:
    """One file for the cases of each file of rules, and of each step."""
    by_file: dict[str, tuple[Case | Recorded, ...]] = {_RECORDING: RECORDED, **CASES}
    for name, cases in by_file.items():
        read = dict.fromkeys((_RECORDING, name))
        for step in dict.fromkeys(case.step for case in cases):
            made = tests_file(
                [f"../rules/{each}.yml" for each in read],
                [group for each in read for group in FILES[each]],
                [case for case in cases if case.step == step],
            )
            yield f"{name}_{step}_test.yml", to_yaml(made)


def files() -> dict[Path, str]:
    """What is to stand where."""
    rules = {HERE / "rules" / f"{name}.yml": rule_file(groups) for name, groups in FILES.items()}
    tests = {HERE / "tests" / name: text for name, text in _tests()}
    return {
        path: f"# Made by `python -m alerts`; change {made_of} instead.\n{text}"
        for found, made_of in ((rules, "alerts/*.py"), (tests, "alerts/cases/*.py"))
        for path, text in found.items()
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
