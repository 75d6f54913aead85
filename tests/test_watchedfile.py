"""A file that changes while somebody relies on it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import pytest

from claimscope.watchedfile import WatchedFile
from claimscope.yamlfile import ConfigError, YamlMapping, read_mapping


def number(content: bytes) -> int:
    if not content.strip().isdigit():
        raise ConfigError(f"`{content.decode()}` is no number")
    return int(content)


def watched(path: Path) -> WatchedFile[int]:
    return WatchedFile(path, number, about="the number")


def test_it_answers_what_is_new_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    file = watched(path)
    assert (file.poll(), file.poll()) == (1, None)
    path.write_text("22")
    assert (file.poll(), file.poll()) == (22, None)


def test_a_mounted_configmap_is_exchanged_by_one_link(tmp_path: Path) -> None:
    """As kubelet's atomic writer does: number -> ..data/number, ..data -> ..2026_1."""
    for version, text in (("..2026_1", "1"), ("..2026_2", "2")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "number").write_text(text)
        os.utime(tmp_path / version / "number", (1, 1))  # nothing but the inode tells them apart
    (tmp_path / "..data").symlink_to("..2026_1")
    (tmp_path / "number").symlink_to("..data/number")
    file = watched(tmp_path / "number")
    assert (file.poll(), file.poll()) == (1, None)
    (tmp_path / "..data_tmp").symlink_to("..2026_2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert (file.poll(), file.poll()) == (2, None)


def test_what_cannot_be_used_is_said_once_and_so_is_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "number"
    file = watched(path)
    path.write_text("1")
    assert file.poll() == 1
    path.write_text("one")
    assert [file.poll() for _ in range(3)] == [None] * 3
    assert not file.up
    path.unlink()
    assert [file.poll() for _ in range(3)] == [None] * 3
    path.write_text("2")
    assert (file.poll(), file.up) == (2, True)
    assert [record.getMessage() for record in caplog.records] == [
        f"the number is in force as {path} says",
        "the number is not taken, what was in force before stays: `one` is no number",
        f"the number is not taken, what was in force before stays: {path}: No such file or directory",
        f"the number is in force as {path} says",
    ]


def test_a_file_that_comes_back_as_it_was_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path, aside = tmp_path / "number", tmp_path / "aside"
    path.write_text("1")
    file = watched(path)
    file.poll()
    path.rename(aside)
    file.poll()
    aside.rename(path)
    assert (file.poll(), file.up) == (None, True)
    assert caplog.messages[-1] == f"the number can be read again: {path}"


def test_reading_at_once_says_why_it_cannot_be_done(tmp_path: Path) -> None:
    file = watched(tmp_path / "none")
    with pytest.raises(ConfigError, match=f"^{tmp_path}/none: No such file or directory$"):
        file.read()


class Part(msgspec.Struct):
    words: dict[str, int] = {}


class Whole(msgspec.Struct):
    parts: tuple[Part, ...] = ()


def whole(text: str | bytes) -> Whole:
    found = read_mapping(text, "f.yaml")
    return Whole() if found is None else found.convert(Whole)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xff", "f.yaml: not UTF-8 text"),
        (" - a", "f.yaml:1:2: expected `key: value` lines"),
        ("parts:\n- words: {a: x}\n", "f.yaml:2:14: `x`: Expected `int`, got `str`"),
        ("parts:\n- words: {a: 1, a: 2}\n", "f.yaml:2:17: key `a` stands here a second time: remove one"),
        ("parts: 7\n", "f.yaml:1:8: `7`: Expected `array`, got `int`"),
        ("parts: [1]\n", "f.yaml:1:9: expected `key: value` lines"),
        ("x: &a [1]\n<<: *a\n", "f.yaml:1:8: not YAML: expected a mapping for merging, but found scalar"),
    ],
)
def test_a_mistake_anywhere_in_a_file_has_a_place(text: str | bytes, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        whole(text)
    assert str(caught.value) == expected


def test_places_of_values() -> None:
    found = read_mapping("a: {b: [1, {c: 2}]}\n", "f.yaml")
    assert isinstance(found, YamlMapping)
    assert [found.at(found.node(*path)) for path in (("a",), ("a", "b", 1, "c"), ("a", "x"))] == [
        "f.yaml:1:4", "f.yaml:1:16", "f.yaml:1:4",
    ]
