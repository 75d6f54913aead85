"""The journal: replaced as a whole or not at all; whatever is on the disk, the agent starts."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import msgspec
import pytest

from claimscope.model import Holder
from claimscope.state import AccountState, DeviceState, JournalError, JournalState, SumState, load, save

if TYPE_CHECKING:
    from pathlib import Path

STATE = JournalState(
    boot_id="b",
    saved_wall_ns=5,
    saved_ns=3,
    polled_ns=2,
    accounts=[
        AccountState(
            holder=Holder(source="claim", namespace="ml", name="a", uid="u"),
            entity="GPU-1",
            basis="exclusive",
            start_wall_ns=1,
            totals={"energy": 12.5},
        )
    ],
    devices={"GPU-1": DeviceState(totals={"energy": SumState(value=1e9, start_wall_ns=1)}, own=[(0, 1.0)])},
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"

    save(path, JournalState())
    save(path, STATE)

    loaded = load(path)
    assert (loaded.state, loaded.error) == (STATE, None)
    assert os.listdir(tmp_path) == ["journal.json"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_journal_yet_is_no_error(tmp_path: Path) -> None:
    loaded = load(tmp_path / "journal.json")

    assert (loaded.state, loaded.error) == (None, None)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "Input data was truncated"),
        (b'{"version":1,"accounts":[{"hol', "Input data was truncated"),
        (b"\x00\xff\xfe", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `version`"),
        (b'{"version":1,"unobserved_seconds":-4}', "Expected `float` >= 0"),
        (b'{"version":1,"boot_id":"\xff"}', "decode"),
        (b'{"version":2,"whatever":1}', "it has version 2 and this agent reads version 1"),
    ],
)
def test_a_journal_that_makes_no_sense_is_set_aside(tmp_path: Path, body: bytes, why: str) -> None:
    path = tmp_path / "journal.json"
    (tmp_path / "journal.json.corrupt-1").write_bytes(b"an older one")
    path.write_bytes(body)

    loaded = load(path)

    assert loaded.state is None
    assert why in str(loaded.error)
    assert f"the journal {path} is not usable" in str(loaded.error)
    assert (tmp_path / "journal.json.corrupt-1").read_bytes() == body
    assert os.listdir(tmp_path) == ["journal.json.corrupt-1"]
    save(path, STATE)
    assert load(path).state == STATE


def test_a_directory_in_its_place_is_an_error_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.mkdir()

    assert str(load(path).error) == (
        f"cannot read the journal {path}: Is a directory; make it a file that this process may read; "
        "accounts start from 0"
    )
    with pytest.raises(JournalError, match="Is a directory; free space"):
        save(path, STATE)
    assert os.listdir(tmp_path) == ["journal.json"]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "journal.json"

    with pytest.raises(JournalError) as caught:
        save(path, STATE)

    assert str(caught.value) == (
        f"cannot write the journal {path}: No such file or directory; make {path.parent} a directory that this "
        "process may write to, or give another state path; accounts restart from 0 with the agent until then"
    )


def test_a_full_disk_leaves_the_former_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    save(path, STATE)
    larger = msgspec.structs.replace(STATE, boot_id="b" * 100_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # Python ignores SIGXFSZ: write(2) answers EFBIG
    try:
        with pytest.raises(JournalError, match="File too large"):
            save(path, larger)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert load(path).state == STATE
    assert os.listdir(tmp_path) == ["journal.json"]


def test_a_link_laid_in_the_way_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "journal.json.tmp").symlink_to(victim)

    with pytest.raises(JournalError):
        save(path, STATE)

    assert victim.read_text() == "precious"
