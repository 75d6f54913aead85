"""How do two semantic versions compare, as Kubernetes' CEL library does it?

Follows github.com/blang/semver/v4 (Parse, Compare) and k8s.io/apiserver/pkg/cel/library/semverlib.go
(normalizeAndParse). Build metadata is checked and then plays no part, neither in order nor in equality.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z-]+", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]+", re.ASCII)
_UINT64: Final = 2**64
_PARTS: Final = ("Major", "Minor", "Patch")


class SemverError(ValueError):
    """The text is no semantic version; worded as Kubernetes does."""


# Numeric identifiers come before words, and a release after all of its pre-releases.
_Rank = tuple[int, int, str]


@dataclass(frozen=True, slots=True, order=True)
class Semver:
    """A version in the order of semver.org."""

    major: int
    minor: int
    patch: int
    _released: bool
    _prerelease: tuple[_Rank, ...]

    @staticmethod
    def parse(text: str, *, normalize: bool = False) -> Semver:
        """The version that `text` stands for; `normalize` allows a leading v, missing parts and leading zeros."""
        return _parse(normalized(text) if normalize else text)

    def __str__(self) -> str:
        """Canonical text without build metadata: equal versions have equal texts."""
        words = ".".join(word if kind else str(number) for kind, number, word in self._prerelease)
        return f"{self.major}.{self.minor}.{self.patch}{'-' if words else ''}{words}"

    def compare(self, other: Semver) -> int:
        """-1, 0 or 1."""
        return (self > other) - (self < other)


def normalized(text: str) -> str:
    """The text with its leading v and leading zeros removed and missing parts added."""
    parts = text.removeprefix("v").split(".", 2)
    for index, part in enumerate(parts):
        if len(part) > 1:
            bare = part.lstrip("0")
            parts[index] = bare if bare[:1] in set("0123456789") else "0" + bare
    if len(parts) < 3 and any(mark in parts[-1] for mark in "+-"):
        raise SemverError("short version cannot contain PreRelease/Build meta data")
    return ".".join(parts + ["0"] * (3 - len(parts)))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Semver:
    if not text:
        raise SemverError("Version string empty")
    parts = text.split(".", 2)
    if len(parts) != 3:
        raise SemverError("No Major.Minor.Patch elements found")
    patch, plus, build = parts[2].partition("+")
    patch, minus, prerelease = patch.partition("-")
    numbers = [_number(name, part) for name, part in zip(_PARTS, (*parts[:2], patch), strict=True)]
    ranks = tuple(_rank(word) for word in prerelease.split(".")) if minus else ()
    for word in build.split(".") if plus else ():
        if not word:
            raise SemverError("Build meta data is empty")
        if not _IDENTIFIER.fullmatch(word):
            raise SemverError(f'Invalid character(s) found in build meta data "{word}"')
    return Semver(numbers[0], numbers[1], numbers[2], not ranks, ranks)


def _number(name: str, text: str) -> int:
    if not _DIGITS.fullmatch(text):
        raise SemverError(f'Invalid character(s) found in {name.lower()} number "{text}"')
    if len(text) > 1 and text.startswith("0"):
        raise SemverError(f'{name} number must not contain leading zeroes "{text}"')
    return _uint64(text)


def _rank(word: str) -> _Rank:
    if not word:
        raise SemverError("Prerelease is empty")
    if _DIGITS.fullmatch(word):
        if len(word) > 1 and word.startswith("0"):
            raise SemverError(f'Numeric PreRelease version must not contain leading zeroes "{word}"')
        return 0, _uint64(word), ""
    if not _IDENTIFIER.fullmatch(word):
        raise SemverError(f'Invalid character(s) found in prerelease "{word}"')
    return 1, 0, word


def _uint64(text: str) -> int:
    number = int(text) if len(text) <= 20 else _UINT64
    if number >= _UINT64:
        raise SemverError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return number
