"""Hostile input for the parsers that face the outside: recordings with mistakes in them, and what is far too much."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# A few seconds at most for a test, and no single input may take long. FUZZ=20 looks twenty times as long.
TIMES = int(os.environ.get("FUZZ", "1"))
QUICK = settings(
    max_examples=150 * TIMES, deadline=timedelta(milliseconds=1_000),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SLOW = settings(QUICK, max_examples=40 * TIMES)
SECRET = "hunter2-secret-value"


@st.composite
def mutated(draw: st.DrawFn, recorded: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """One of the recordings with a few mistakes: bytes changed, lost, doubled, cut off, or of another recording."""
    data = bytearray(draw(st.sampled_from(recorded)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(("change", "insert", "lose", "double", "cut", "splice", "word"))):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "lose":
                del data[at : at + length]
            case "double":
                data[at:at] = data[at : at + length]
            case "cut":
                del data[at:]
            case "splice":
                other = draw(st.sampled_from(recorded))
                start = draw(st.integers(0, max(len(other) - 1, 0)))
                data[at : at + length] = other[start : start + length]
            case "word" if words:
                data[at:at] = draw(st.sampled_from(words))
    return bytes(data)


JSON_WORDS = (
    b"null", b"true", b"-1", b"1e999", b"99999999999999999999", b'""', b'"\\ud800"', b"{}", b"[]", b"[[[[", b'"', b"\\",
    b'"\\u0000\\u001b[31m"', b"\xff", b"\xed\xa0\x80",
)  # fmt: skip
YAML_WORDS = (
    b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ", b"!!binary ", b"? ", b"- ", b": ", b"|\n", b"\t", b"---\n",
    b"%YAML 9.9\n", b"\x00", b"\xff", b"{", b"[", b"2026-13-45", b".nan", b"0o9", b"1:60:60",
)  # fmt: skip


def deep(levels: int) -> bytes:
    """JSON that is nested so deep."""
    return b'[{"a":' * (levels // 2) + b"1" + b"}]" * (levels // 2)


def laughs(levels: int, key: str) -> str:
    """YAML of a few lines that stands for 9^levels values, under one key."""
    lists = "".join(f" - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, levels))
    return f"{key}:\n - &a0 [x, x, x, x, x, x, x, x, x]\n{lists}"


def merging_laughs(levels: int) -> str:
    """The same by merged mappings, which no alias is left of."""
    return "a0: &a0 {k: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, levels)
    )
