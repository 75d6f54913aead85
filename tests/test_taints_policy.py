"""The policy file: defaults, errors with their place, and memory from leader to leader."""

from __future__ import annotations

from pathlib import Path

import pytest

from claimscope.health.model import Severity
from claimscope.health.rules import RULE_BY_KEY
from claimscope.taints import document
from claimscope.taints.memory import (
    HALF_OPEN,
    Blocked,
    Breaker,
    Ignore,
    Known,
    Memory,
    aged,
    decode,
    encode,
    ignoring,
    recent_onsets,
)
from claimscope.taints.model import Mode
from claimscope.taints.policy import VERDICT_RULES, Policy, RulePolicy, effect_of, read_policy
from claimscope.taints.tally import HELD_REASONS
from claimscope.yamlfile import ConfigError

NOW = 1_700_000_000.0


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_announces_within_the_default_budgets(text: str) -> None:
    policy = read_policy(text, "p.yaml", NOW)
    assert policy == Policy()
    assert (policy.mode, policy.cap, policy.stale_seconds) == (Mode.ANNOUNCE, 2000, 120.0)
    assert (policy.budgets.node_share, policy.budgets.group_share, policy.budgets.fleet_share) == (0.5, 0.2, 0.1)
    assert (policy.rate.least, policy.rate.share, policy.rate.seconds) == (3, 0.02, 600.0)


def test_a_whole_file() -> None:
    policy = read_policy(
        """
mode: enforce
groups: {prod: {mode: announce}}
rules: {gpu_lost: {no_execute: true}}
budgets: {fleet_share: 0.05}
overrides:
  - {do: ignore, uuid: GPU-1, rule: xid_fatal, until: 2023-11-20T00:00:00Z, author: ann, reason: known}
pause:
  - {author: ann, node: n1}
""",
        "p.yaml",
        NOW,
    )
    assert policy.mode_of("prod", "xid_fatal") is Mode.ANNOUNCE
    assert policy.mode_of("lab", "xid_fatal") is Mode.ENFORCE
    assert policy.mode_of("", "xid_fatal") is Mode.ANNOUNCE  # such a node may be of any group
    assert (policy.evicts("gpu_lost"), policy.evicts("xid_fatal")) == (True, False)
    assert policy.overrides[0].until.isoformat() == "2023-11-20T00:00:00+00:00"
    assert policy.rules["gpu_lost"] == RulePolicy(no_execute=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mod: enforce", "p.yaml:1:1: unknown key `mod`: did you mean `mode`?"),
        ("mode: enforced", "p.yaml:1:7: unknown value `enforced`: did you mean `enforce`?"),
        ("mode: off", "p.yaml:1:7: unknown value `off`: known are `observe`, `announce`, `enforce`"),
        ("budgets: {fleet_share: 2}", "p.yaml:1:24: `2`: Expected `float` <= 1.0"),
        ("budgets: {flet_share: 0.2}", "p.yaml:1:11: unknown key `flet_share`: did you mean `fleet_share`?"),
        ("budgets: 7", "p.yaml:1:10: expected `key: value` lines"),
        ("rules: {xid_fatl: {mode: enforce}}", "p.yaml:1:9: unknown rule `xid_fatl`: did you mean `xid_fatal`?"),
        ("rules: {xid_fatal: {mode: bserve}}", "p.yaml:1:27: unknown value `bserve`: did you mean `observe`?"),
        ("cap: 1\ncap: 2", "p.yaml:2:1: key `cap` stands here a second time: remove one"),
        ("7: 8", "p.yaml:1:1: a key must be a word: put it into quotes"),
        ("- a", "p.yaml:1:1: expected `key: value` lines"),
        ("mode: [", "p.yaml:1:8: not YAML: expected the node content, but found '<stream end>'"),
        ("overrides: [{do: ignore, uuid: G, until: 2023-11-20T00:00:00Z}]", "p.yaml:1:13: `author` is missing"),
        ("overrides: [{do: ignore, author: a, until: 2023-11-20T00:00:00Z}]",
         "p.yaml:1:13: `uuid` is missing: this would be about every device"),
        ("overrides: [{do: ignore, uuid: G, author: a, until: 2023-11-20T00:00:00}]",
         "p.yaml:1:53: `2023-11-20T00:00:00`: Expected `datetime` with a timezone component"),
        ("overrides: [{do: ignore, uuid: G, author: a, until: 2024-11-20T00:00:00Z}]",
         "p.yaml:1:53: `2024-11-20T00:00:00+00:00` is more than 30 days ahead: an override must end; renew it when it "
         "does"),
        ("overrides: [{do: ignor, uuid: G, author: a, until: 2023-11-20T00:00:00Z}]",
         "p.yaml:1:18: unknown value `ignor`: did you mean `ignore`?"),
        ("pause: [{node: n1}]", "p.yaml:1:9: `author` is missing"),
        ("stale_seconds: 5", "p.yaml:1:16: `5`: Expected `float` >= 90.0"),
    ],
)  # fmt: skip
def test_errors_name_the_place_and_what_to_write(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_policy(text, "p.yaml", NOW)
    assert str(caught.value) == expected


def test_the_documentation_is_current_and_its_example_can_be_used() -> None:
    page = Path(__file__).parent.parent / "docs/taint-policy.md"
    assert page.read_text(encoding="utf-8") == document.document()
    assert read_policy(document.EXAMPLE, "example.yaml", NOW).mode is Mode.ENFORCE
    keys = [line.split("`")[1].split(".")[0] for line in document.document().splitlines() if line.startswith("| `")]
    assert set(Policy.__struct_fields__) <= set(keys)


def test_the_page_about_fencing_tells_of_every_reason_to_hold_back() -> None:
    page = (Path(__file__).parent.parent / "docs/fencing.md").read_text(encoding="utf-8")
    assert [reason for reason in HELD_REASONS if f"\n| `{reason}` |" not in page] == []


def test_every_verdict_of_the_driver_is_a_rule() -> None:
    assert RULE_BY_KEY.keys() >= VERDICT_RULES
    assert not any(RULE_BY_KEY[rule].correlated for rule in VERDICT_RULES)


@pytest.mark.parametrize(
    ("mode", "severity", "expected"),
    [
        (Mode.OBSERVE, Severity.LOST, None), (Mode.ANNOUNCE, Severity.LOST, "None"),
        (Mode.ENFORCE, Severity.DEGRADED, "None"), (Mode.ENFORCE, Severity.UNHEALTHY, "NoSchedule"),
        (Mode.ENFORCE, Severity.LOST, "NoSchedule"), (Mode.ENFORCE, Severity.OK, None),
    ],
)  # fmt: skip
def test_effects(mode: Mode, severity: Severity, expected: str | None) -> None:
    assert effect_of(mode, severity) == expected


def test_memory_goes_from_leader_to_leader() -> None:
    memory = Memory(
        blocked=(Blocked(gpu="G", wall=NOW),), onsets={"xid_fatal": {"n1": NOW}}, holds={"xid_fatal": NOW},
        breaker=Breaker(state=HALF_OPEN, since_wall=NOW, demand=3),
        ignores=(Ignore(uuid="G", rule="xid_fatal", until_wall=NOW + 1),),
        known={"r": Known(uuid="G", rules=("xid_fatal",), node="n1", node_uid="u")},
    )  # fmt: skip
    assert decode(encode(memory), NOW) == (memory, "")
    assert decode(None, NOW) == (Memory(), "")


def test_memory_that_cannot_be_read_starts_with_a_quarter_of_the_rate() -> None:
    memory, problem = decode("{", NOW)
    assert memory == Memory(breaker=Breaker(state=HALF_OPEN, since_wall=NOW))
    assert problem == "Input data was truncated"


def test_what_has_passed_is_forgotten_and_a_clock_set_back_makes_nothing_longer() -> None:
    memory = Memory(
        blocked=tuple(Blocked(gpu=gpu, wall=NOW + at) for gpu, at in (("old", -600), ("new", -599), ("f", 9))),
        ignores=(Ignore(uuid="old", rule="", until_wall=NOW), Ignore(uuid="new", rule="", until_wall=NOW + 1)),
        breaker=Breaker(state="open", since_wall=NOW + 9),
        acknowledged={"old": NOW - 600, "new": NOW - 599, "just": 0.0},
    )
    after = aged(memory, NOW, rate_seconds=600, systemic_seconds=600)
    assert after.blocked == (Blocked(gpu="new", wall=NOW - 599), Blocked(gpu="f", wall=NOW))
    assert [each.uuid for each in after.ignores] == ["new"]
    assert after.breaker.since_wall == NOW
    assert after.acknowledged == {"new": NOW - 599, "just": NOW}


def test_memory_that_is_too_long_keeps_what_bounds_the_next_leader() -> None:
    known = {f"r{index}": Known(uuid="G", rules=("xid_fatal",), node="n1", node_uid="u") for index in range(100)}
    memory = Memory(blocked=(Blocked(gpu="G", wall=NOW),), onsets={"xid_fatal": {"n1": NOW}}, known=known)
    bounds = Memory(blocked=memory.blocked)
    with_onsets = Memory(blocked=memory.blocked, onsets=memory.onsets)
    assert decode(encode(memory, len(encode(with_onsets))), NOW)[0] == with_onsets
    assert decode(encode(memory, 60), NOW)[0] == bounds


def test_a_wrong_clock_makes_an_onset_older_and_never_newer() -> None:
    standing = {"xid_fatal": {"ahead": NOW + 500, "behind": NOW - 500, "old": NOW - 601}}
    first = recent_onsets({}, standing, NOW, 600)
    assert first == {"xid_fatal": {"ahead": NOW, "behind": NOW - 500}}
    assert recent_onsets(first, standing, NOW + 900, 600) == {"xid_fatal": {"ahead": NOW}}
    assert recent_onsets(first, standing, NOW + 1100, 600) == {}


def test_of_two_ignores_the_longer_one_stays() -> None:
    short, long = (Ignore(uuid="G", rule="r", until_wall=NOW + seconds) for seconds in (1, 9))
    assert ignoring(Memory(ignores=(long,)), [short]).ignores == (long,)
    assert ignoring(Memory(ignores=(short,)), [long]).ignores == (long,)
