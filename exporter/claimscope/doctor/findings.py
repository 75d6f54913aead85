"""What is one row of `claimscope doctor`?"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """How bad it is: a warning costs one ability, a failure the device layer."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's answer."""

    name: str
    verdict: Verdict
    found: str
    cure: str = ""

    @property
    def line(self) -> str:
        """As a person reads it."""
        cure = f": {self.cure}" if self.cure else ""
        return f"{self.verdict.value:4}  {self.name:12}  {self.found}{cure}"


def ok(name: str, found: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(name=name, verdict=Verdict.OK, found=found)
