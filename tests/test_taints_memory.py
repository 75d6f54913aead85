"""What must outlive a leader fits, stands in a Lease of its own, and loses the least important first."""

from __future__ import annotations

import hashlib
import random
import uuid

import msgspec

from claimscope.sim.api.kinds import DEVICE_TAINT_RULES, LEASES
from claimscope.taints.memory import Ignore, Known, Memory, decode, encode, lifted_by
from claimscope.taints.notebook import MEMORY, PAUSE, SHOWN
from taints_bench import Bench, Json, finding, serving

NOW = 1_700_000_000.0
BROKEN = finding("GPU-1-3")
BYTES_MAX = 192 * 1024


def lease(bench: Bench, name: str) -> Json:
    return bench.server.get(LEASES, name, "claimscope") or {}


def notes(bench: Bench, name: str = "claimscope-controller") -> list[str]:
    return sorted(lease(bench, name).get("metadata", {}).get("annotations") or {})


def names(count: int, word: str = "unhealthy") -> list[str]:
    """Rules of as many GPUs, eight to a node."""
    hashes = (hashlib.sha256(str(index).encode()).hexdigest()[:12] for index in range(count))
    return [f"claimscope.gpu-node-{index // 8:04d}.{part}.{word}" for index, part in enumerate(hashes)]


def known(count: int, word: str = "unhealthy") -> dict[str, Known]:
    made = random.Random(1)
    return {
        name: Known(
            uuid=f"GPU-{uuid.UUID(int=made.getrandbits(128))}", rules=("xid_fatal",), node=name.split(".")[1],
            node_uid=str(uuid.UUID(int=made.getrandbits(128))),
        )
        for name in names(count, word)
    }  # fmt: skip


# --- what fits ---


def test_two_thousand_rules_and_two_thousand_deletions_at_once_fit() -> None:
    standing = Memory(known=known(2000))
    assert len(encode(standing)) < BYTES_MAX
    assert decode(encode(standing), NOW) == (standing, "")
    deleted = Memory(ignores=tuple(
        Ignore(uuid=each.uuid, rule="xid_fatal", until_wall=NOW + 3600, taint=name, since_wall=NOW)
        for name, each in known(2000).items()
    ))  # fmt: skip
    assert len(encode(deleted)) < BYTES_MAX
    assert decode(encode(deleted), NOW) == (deleted, "")


def test_what_is_short_can_be_read_by_people() -> None:
    assert encode(Memory(known=known(1))).startswith('{"known":{"claimscope.gpu-node-0000.5feceb66ffc8.unhealthy":[')


def test_what_only_announces_is_forgotten_before_what_blocks() -> None:
    memory = Memory(known={**known(3, "degraded"), **known(3)}, ignores=(Ignore(uuid="G", rule="", until_wall=NOW),))
    limit = len(encode(memory)) - 1
    assert decode(encode(memory, limit), NOW)[0] == msgspec.structs.replace(memory, known=known(3))


def test_what_ends_soonest_is_ignored_no_more_where_nothing_else_is_left_to_forget() -> None:
    ignores = tuple(Ignore(uuid=f"G{index}", rule="", until_wall=NOW + index) for index in range(4))
    memory = Memory(ignores=ignores, onsets={"xid_fatal": {"n1": NOW, "n2": NOW + 1}}, known=known(2))
    assert decode(encode(memory, 130), NOW)[0] == Memory(ignores=(ignores[3], ignores[2]))


def test_text_that_is_no_memory_starts_with_a_quarter_of_the_rate() -> None:
    for text in ("no base64!", "AAAA", "é"):
        memory, problem = decode(text, NOW)
        assert (memory.breaker.state, problem != "") == ("half_open", True)


def test_who_lifted_is_told_of_what_was_deleted_since_then_and_named() -> None:
    def deleted(name: str, since: float, author: str = "") -> Ignore:
        return Ignore(uuid=name, rule="r", until_wall=NOW + 60, taint=name, since_wall=since, author=author)

    memory = Memory(ignores=(
        deleted("a", NOW), deleted("b", NOW), deleted("old", NOW - 1), deleted("said", NOW, "bob"),
        Ignore(uuid="acknowledged", rule="", until_wall=NOW + 60),
    ))  # fmt: skip

    def by_ann(*names: str) -> list[str]:
        return [each.uuid for each in lifted_by(memory, "ann", "", names, NOW).ignores if each.author == "ann"]

    assert by_ann() == ["a", "b"]
    assert by_ann("b", "old") == ["b"]


# --- where it stands ---


async def test_it_is_kept_beside_the_lease_that_the_election_writes_all_the_time() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert notes(bench) == []
        assert notes(bench, "claimscope-controller-memory") == [MEMORY, SHOWN]
        version = lease(bench, "claimscope-controller-memory")["metadata"]["resourceVersion"]
        bench.clock.advance(4)
        await bench.leader.round()
        await bench.leader.round()
        after_known = lease(bench, "claimscope-controller-memory")["metadata"]["resourceVersion"]
        bench.clock.advance(4)
        await bench.leader.round()
        assert lease(bench, "claimscope-controller-memory")["metadata"]["resourceVersion"] == after_known != version


async def test_what_an_earlier_version_kept_is_read_and_taken_from_there() -> None:
    async with serving() as bench:
        ignored = Memory(ignores=(Ignore(uuid="GPU-1-3", rule="xid_fatal", until_wall=NOW + 10**9, author="ann"),))
        await bench.leader.notebook.write({MEMORY: encode(ignored), SHOWN: "{}", PAUSE: "bob"})
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.effects() == {}
        assert notes(bench) == [PAUSE]
        assert decode((await bench.leader.notebook.recall())[MEMORY], NOW)[0].ignores == ignored.ignores


async def test_a_deletion_is_respected_by_the_next_leader_with_many_rules() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        kept = decode((await bench.leader.notebook.recall())[MEMORY], NOW)[0]
        many = msgspec.structs.replace(kept, known={**known(1100), **kept.known})
        await bench.leader.notebook.keep({MEMORY: encode(many)})
        (rule,) = bench.rules()
        await bench.server.delete(DEVICE_TAINT_RULES, rule)
        await bench.another("two").round()
        assert bench.effects() == {}
