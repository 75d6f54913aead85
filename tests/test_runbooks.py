"""Can a runbook be pasted and believed? Commands, queries, labels and links of the pages, held against the code."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from alerts.runbooks import FOLDER, INDEX, by_name, pages

from claimscope.claims.model import PendingReason
from claimscope.cli import cli
from claimscope.health.rules import RULE_BY_KEY, RULES
from promql import Labels, read
from test_alerts import known_series

ALERTS = by_name()
PAGES = sorted(FOLDER.glob("*.md"))
OF_ALERTS = [path for path in PAGES if path.name != INDEX]
OURS = re.compile(r"(?:dra|gpu|pod_gpu|claimscope_agent|claimscope_controller)_[a-z0-9_]+")
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
every_alert = pytest.mark.parametrize("path", OF_ALERTS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def known() -> dict[str, Labels]:
    return known_series()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """What is there to paste."""
    return [block.replace("\\\n", " ") for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def inline(text: str) -> list[str]:
    """Code within sentences, each on one line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def headings(text: str, level: int) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(rf"^{'#' * level} (.*)$", prose, re.MULTILINE)


def queries(text: str) -> list[str]:
    """PromQL of a text's commands; what is to be filled in reads `x`."""
    pasted = "\n".join(blocks(text))
    found = re.findall(r'promtool query instant \$PROMETHEUS +"([^"]*)"', pasted)
    assert len(found) == pasted.count("promtool query"), "a query that is not read here"
    return [re.sub(r"\$[A-Z]+", "x", query) for query in found]


def words_of(code: str) -> list[str]:
    """The words of one shell command up to a pipe or a comment."""
    lexer = shlex.shlex(code, posix=True, punctuation_chars="|;)&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word.strip("|;)&") == "":
            break
        words.append(word)
    return words


def commands(code: str) -> Iterator[list[str]]:
    """The words after each call of `claimscope` in code."""
    for line in code.splitlines():
        for match in re.finditer(r"(?:^|-- )claimscope (?=[a-z])(.*)", line):
            yield words_of(match[1])


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name and what is left of them."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {path.stem for path in OF_ALERTS} == {*ALERTS}


def test_what_pages_take_from_the_table_is_current() -> None:
    made = pages()
    assert {path: text_of(path) for path in made} == made, "run `python -m alerts.runbooks`"


@every_alert
def test_pages_have_the_same_parts(path: Path) -> None:
    text = text_of(path)
    assert headings(text, 1) == [path.stem]
    assert headings(text, 2) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert len(blocks(text)) == 1, "one block to paste"
    assert re.match(r"# \w+\n\n.+\n\n\*\*(critical|warning|info|none)\*\* · told to .+\n\n## ", text)


@pytest.mark.parametrize(
    ("page", "severities"), [("DRADeviceFailed", {"unhealthy", "lost"}), ("DRADeviceDegraded", {"degraded"})]
)
def test_each_rule_of_health_has_a_cure(page: str, severities: set[str]) -> None:
    named = inline(text_of(FOLDER / f"{page}.md"))
    assert [
        rule.key for rule in RULES
        if rule.severity.value in severities and not any(fnmatch.fnmatch(rule.key, pattern) for pattern in named)
    ] == []  # fmt: skip


def test_pending_has_a_part_for_each_cause() -> None:
    parts = headings(text_of(FOLDER / "DRAClaimPendingTooLong.md"), 3)
    assert parts == [reason.value for reason in PendingReason]


@every_page
def test_commands_to_paste_are_taken_by_the_command_line(path: Path) -> None:
    for block in blocks(text_of(path)):
        for words in commands(block):
            command, rest = resolved(words)
            with command.make_context(command.name, rest):
                assert not isinstance(command, click.Group) or command.invoke_without_command, words


@every_page
def test_commands_in_sentences_exist(path: Path) -> None:
    for code in inline(text_of(path)):
        for words in commands(code):
            command, rest = resolved(words)
            assert command is not cli, code
            if rest:
                command.make_context(command.name, rest).close()


@every_page
def test_queries_read_metrics_and_labels_that_exist(path: Path, known: dict[str, Labels]) -> None:
    faults = {query: read(query, known)[0].faults for query in queries(text_of(path))}
    assert {query: found for query, found in faults.items() if found} == {}


@every_page
def test_metrics_in_sentences_exist(path: Path, known: dict[str, Labels]) -> None:
    named = {code.partition("{")[0] for code in inline(text_of(path)) if OURS.fullmatch(code.partition("{")[0])}
    assert named - {*known} - {*RULE_BY_KEY} == set()


@every_page
def test_rules_of_health_in_queries_exist(path: Path) -> None:
    named = re.findall(r"rule='([a-z0-9_]+)'|RULE=([a-z0-9_]+)", text_of(path))
    assert {one or other for one, other in named} <= {*RULE_BY_KEY}


@every_page
def test_what_commands_use_is_set_in_the_page(path: Path) -> None:
    text = text_of(path)
    pasted = "\n".join(blocks(text))
    for used in re.finditer(r"\$([A-Z][A-Z_]*)", pasted):
        given = used[1] == "HOME" or re.search(rf"\b{used[1]}=", pasted[: used.start()])
        assert given, f"{used[0]} is used before it is set"
    within = {name for code in inline(text) for name in re.findall(r"\$([A-Z][A-Z_]*)", code)}
    assert within <= {*re.findall(r"\b([A-Z][A-Z_]*)=", pasted)}


@every_alert
def test_silences_are_of_this_alert_and_by_its_labels(path: Path, known: dict[str, Labels]) -> None:
    rule = ALERTS[path.stem][0]
    labels = read(rule.bound(), known)[1] | {*rule.labels} | {"alertname", "severity", "owner", "component"}
    for code in inline(text_of(path)):
        if code.startswith("amtool silence add"):
            matchers = dict(word.split("=", 1) for word in shlex.split(code)[3:] if not word.startswith("--"))
            assert matchers["alertname"] == path.stem
            assert {*matchers} <= labels
            assert "--duration=" in code
            assert "--comment=" in code


@every_page
def test_links_and_their_anchors_lead_somewhere(path: Path) -> None:
    for page, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text_of(path)):
        target = path if not page else path.parent / page
        assert target.exists(), page
        titles = [each for level in (2, 3) for each in headings(text_of(target), level)]
        assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}, f"{page}#{anchor}"


def test_a_shell_can_read_all_that_is_to_be_pasted() -> None:
    pasted = "\n".join(f": {path.stem}\n{block}" for path in PAGES for block in blocks(text_of(path)))
    done = subprocess.run(["bash", "-n"], input=pasted, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
