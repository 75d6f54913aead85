"""What the API server, the kubelet and agents may send: it is read, left out or refused, and nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import zlib
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from claimscope.claims.drift import devices_of
from claimscope.clock import ManualClock
from claimscope.kube.api import ApiClient, ApiError, ApiReason, decode
from claimscope.kube.depth import LEVELS, shallow
from claimscope.kube.kinds import WatchedKind, extended_resources_of, watched_kinds
from claimscope.kube.listwatch import FirstList, ListWatch
from claimscope.kube.objects import Container, Lease, Pod, PodMeta, PodSpec, Resources, WatchLine
from claimscope.kube.podresources import decode_allocatable, decode_listing
from claimscope.taints import memory
from claimscope.taints.maintenance_ask import read_answer, read_ask
from claimscope.taints.notebook import ACKNOWLEDGE, IGNORE, LIFTED, asked_of, paused_by
from claimscope.taints.reports import read_findings
from fuzzing import JSON_WORDS, QUICK, SLOW, deep, mutated
from kube_help import Fixed

RECORDINGS = Path(__file__).parent / "recordings"
KINDS = {kind.plural: kind for kind in watched_kinds("claimscope")}
LINES = {
    path.name.split(".")[0]: tuple(
        json.dumps({"type": event["type"], "object": event["object"]}, separators=(",", ":")).encode()
        for event in map(json.loads, path.read_text().splitlines()[:25])
    )
    for path in sorted((RECORDINGS / "kubernetes-1.36").glob("*.watch.jsonl"))
}
LISTS = {
    path.name.split(".")[0]: path.read_bytes() for path in sorted((RECORDINGS / "kubernetes-1.36").glob("*.list.json"))
}
PODS = tuple(path.read_bytes() for path in sorted((RECORDINGS / "pod-resources").glob("*.bin")))
OVER = 10_000  # of a text that is logged or told


class Over(Exception):  # noqa: N818 - no error
    """The feed has been taken in."""


class Feed:
    """Stands for the API server: one list, then the lines of one watch."""

    def __init__(self, listed: bytes, lines: list[bytes]) -> None:
        self.listed = listed
        self.lines = lines

    async def get(self, _path: str, _params: object = None) -> bytes:
        return self.listed

    async def batches(self, _path: str, _params: object, _quiet: float) -> AsyncGenerator[list[bytes], None]:
        yield []
        for line in self.lines:
            yield [line]
        raise Over


async def follow(kind: WatchedKind, listed: bytes, lines: list[bytes]) -> tuple[list[Any], list[str]]:
    """What one kind's follower makes of it: objects, and texts of what went wrong."""
    seen: list[Any] = []
    told: list[str] = []

    def failed(error: ApiError) -> None:
        told.append(str(error))
        raise Over

    def synced(objects: list[Any], _unreadable: frozenset[str]) -> None:
        seen.extend(objects)

    watch: ListWatch[Any] = ListWatch(
        cast("ApiClient", Feed(listed, lines)), f"/{kind.plural}", kind.kind, clock=ManualClock(), on_sync=synced,
        on_change=lambda obj, _present: seen.append(obj), on_error=failed, on_undecodable=told.append,
        keep=kind.keep, compact=None if kind.compact is None else kind.compact(), first_list=FirstList.CACHED,
        jitter=lambda: 0.0,
    )
    with suppress(Over):
        await watch.run()
    return seen, told


def followed(plural: str, listed: bytes, *lines: bytes) -> tuple[list[Any], list[str]]:
    return asyncio.run(follow(KINDS[plural], listed, list(lines)))


EMPTY = b'{"metadata":{"resourceVersion":"1"},"items":[]}'


@pytest.mark.parametrize("plural", sorted(LINES))
def test_the_recordings_as_they_are(plural: str) -> None:
    seen, told = followed(plural, LISTS.get(plural, EMPTY), *LINES[plural])
    assert told == []
    assert all(isinstance(each, KINDS[plural].kind) for each in seen)


@QUICK
@given(st.data())
def test_a_watch_line_with_mistakes_is_taken_left_out_or_refused(data: st.DataObject) -> None:
    plural = data.draw(st.sampled_from(sorted(LINES)))
    line = data.draw(mutated(LINES[plural], JSON_WORDS))
    seen, told = followed(plural, EMPTY, line.replace(b"\n", b" "), LINES[plural][0])
    assert all(isinstance(each, KINDS[plural].kind) for each in seen)
    assert all(len(text) < OVER for text in told)


@SLOW
@given(st.data())
def test_a_list_with_mistakes_is_taken_in_part_or_refused(data: st.DataObject) -> None:
    plural = data.draw(st.sampled_from(sorted(LISTS)))
    seen, told = followed(plural, data.draw(mutated((LISTS[plural],), JSON_WORDS)))
    assert all(isinstance(each, KINDS[plural].kind) for each in seen)
    assert all(len(text) < OVER for text in told)


def test_one_claim_that_is_nested_too_deep_hides_no_other() -> None:
    """Opaque parameters may be nested as deep as the API server reads, 10,000 levels; msgspec stops at a thousand."""
    first = json.loads(LINES["resourceclaims"][0])
    first["object"]["spec"]["devices"]["config"] = [{"opaque": {"driver": "d", "parameters": "HERE"}}]
    hostile = json.dumps(first).encode().replace(b'"HERE"', deep(9_000))
    listed = b'{"metadata":{"resourceVersion":"1"},"items":[' + json.dumps(first["object"]).encode().replace(
        b'"HERE"', deep(9_000)
    ) + b"]}"
    seen, told = followed("resourceclaims", listed, hostile, *LINES["resourceclaims"])
    assert told == []
    assert [each.metadata.name for each in seen[:2]] == [first["object"]["metadata"]["name"]] * 2
    assert len(seen) == 2 + len(LINES["resourceclaims"])


def test_a_hundred_thousand_levels_take_no_time_and_no_stack() -> None:
    began = time.perf_counter()
    line = b'{"type":"ADDED","object":{"metadata":{"name":"a"},"more":' + deep(100_000) + b"}}"
    assert decode(line, WatchLine, "x").type == "ADDED"
    with pytest.raises(ApiError, match="is not what the API server sends"):
        decode(b"[" * 100_000, WatchLine, "x")
    assert time.perf_counter() - began < 5


@QUICK
@given(st.binary(max_size=300) | mutated(tuple(line for lines in LINES.values() for line in lines[:3]), JSON_WORDS))
def test_json_that_is_not_deep_stays_as_it_is(data: bytes) -> None:
    made = shallow(data)
    assert made == data or data.count(b"[") + data.count(b"{") > LEVELS or _unbalanced(data)


def _unbalanced(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return True
    return False


@pytest.mark.parametrize(("levels", "kept"), [(LEVELS, True), (LEVELS + 1, False), (5_000, False)])
def test_what_is_deeper_becomes_null(levels: int, kept: bool) -> None:
    data = b'"x]"'.join((b"[" * levels, b"]" * levels))
    made = shallow(data)
    assert (made == data) is kept
    rest = made.replace(b'"x]"', b"")
    assert rest.count(b"[") == rest.count(b"]") == min(levels, LEVELS)
    assert kept or b"null" in made


@QUICK
@given(mutated(PODS) | st.binary(max_size=400))
def test_an_answer_of_the_kubelet_with_mistakes_is_read_or_refused(data: bytes) -> None:
    with suppress(DecodeError):
        listing = decode_listing(data)
        assert sum(len(pod.name) for pod in listing.pods) <= len(data)
    with suppress(DecodeError):
        decode_allocatable(data)


@QUICK
@given(st.dictionaries(
    st.sampled_from(["nvidia.com/gpu", "example.com/x", "cpu", "nvidia.com/mig-1g.5gb", "/"]),
    st.text(max_size=12) | st.sampled_from(["9" * 5_000, "٣", "²", "1e3", "-1", "0x1", "1Ki"]),
))  # fmt: skip
def test_quantities_of_extended_resources(limits: dict[str, str]) -> None:
    pod = Pod(
        metadata=PodMeta(name="p"),
        spec=PodSpec(containers=[Container(name="c", resources=Resources(limits=dict(limits)))]),
    )
    assert all(0 < count < 10**19 for count in extended_resources_of(pod).values())


# --- annotations of a Lease, as whoever holds an agent's token may write them ---

_TEXTS = st.one_of(
    st.text(max_size=60),
    mutated(
        (
            b'[{"count":8,"model":"NVIDIA H100","memory_bytes":85899345920,"mig":false}]',
            b'{"findings":[{"uuid":"GPU-1","rule":"xid_79","severity":"lost","since":1.5,"evidence":{"a":"b"}}],"boot_id":"b"}',
            b'{"uid":"u","released":true,"processes":0}',
            b'{"rule":"","hours":24.0,"author":"ann","reason":"fan"}',
            b'{"author":"ann","reason":"r","names":["a"],"wall":1700000000.0}',
            b'{"breaker":{"state":"half_open","since_wall":1.0},"ignores":[{"uuid":"GPU-1","until_wall":9e99}]}',
            b"release u-1", b"eJyrVkrKSC3KVbJSqgUAHYkEUQ==",
        ),
        JSON_WORDS,
    ).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.integers(900, 3_000).map(lambda levels: deep(levels).decode()),
)  # fmt: skip


@QUICK
@given(_TEXTS)
def test_no_annotation_of_an_agent_or_of_a_person_stops_the_controller(text: str) -> None:
    told = read_findings("n1", text)
    assert told.partial or not told.skipped
    devices_of(text)
    read_answer(text)
    read_ask(text)
    found, problem = memory.decode(text, 1_700_000_000.0)
    assert isinstance(found, memory.Memory)
    assert len(problem) < OVER
    asked = asked_of({LIFTED: text, IGNORE + text[:50]: text, ACKNOWLEDGE + text[:50]: text}, 1_700_000_000.0)
    assert len(asked.annotations) <= 3
    assert paused_by({"claimscope.io/paused": text}) is None or text


@QUICK
@given(mutated((b'{"metadata":{"name":"n","annotations":{"a":"b"}},"spec":{"holderIdentity":"x","renewTime":"y"}}',),
               JSON_WORDS))  # fmt: skip
def test_a_lease_with_mistakes_is_read_or_refused(data: bytes) -> None:
    with suppress(ApiError):
        assert isinstance(decode(data, Lease, "/leases/x"), Lease)


def test_a_memory_that_unpacks_to_gigabytes_is_refused() -> None:
    import base64

    packer = zlib.compressobj(9)
    zeros = b"0" * (1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    found, problem = memory.decode(base64.b64encode(bomb).decode(), 1.0)
    assert (found.breaker.state, bool(problem)) == ("half_open", True)


# --- what is far too much, over a real socket ---


async def served(*bodies: bytes, encoding: str = "") -> tuple[web.AppRunner, str]:
    headers = {"Content-Type": "application/json", **({"Content-Encoding": encoding} if encoding else {})}

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with suppress(ConnectionError):
            for body in bodies:
                await response.write(body)
            await response.write_eof()
        return response

    application = web.Application()
    application.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def test_a_watch_line_of_fifty_megabytes_is_refused() -> None:
    piece = b"x" * (1 << 20)
    runner, url = await served(b'{"type":"', *[piece] * 50)
    client = ApiClient(Fixed(url))
    try:
        with pytest.raises(ApiError, match=r"a line of the watch on /w exceeds 16777216 bytes") as caught:
            async for _ in client.lines("/w", {}, 10):
                pass
        assert caught.value.reason is ApiReason.MALFORMED
    finally:
        await client.close()
        await runner.cleanup()


async def test_an_answer_that_unpacks_to_gigabytes_is_refused() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = b"0" * (1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    assert len(bomb) < 1 << 17
    runner, url = await served(bomb, encoding="gzip")
    client = ApiClient(Fixed(url), body_limit_bytes=4 << 20)
    try:
        with pytest.raises(ApiError, match=r"GET /big answers more than 4 MiB; check that the address"):
            await client.get("/big")
        with pytest.raises(ApiError, match=r"a line of the watch on /big exceeds 16777216 bytes"):
            async for _ in client.lines("/big", {}, 10):
                pass
    finally:
        await client.close()
        await runner.cleanup()


@pytest.mark.parametrize("body", [deep(4_000)[:4_096], b"\xff" * 4_096, b'{"message":7}', b"<html>" * 900])
async def test_a_refusal_of_any_form_has_a_short_text(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=500, body=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/x", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = ApiClient(Fixed(f"http://127.0.0.1:{runner.addresses[0][1]}", "Bearer s3cret"))
    try:
        with caplog.at_level(logging.DEBUG), pytest.raises(ApiError) as caught:
            await client.get("/x")
    finally:
        await client.close()
        await runner.cleanup()
    assert len(str(caught.value)) < 600
    assert not re.search("s3cret", str(caught.value) + caplog.text)
