"""Passwords: who is let in, what a wrong one costs, and whom it costs."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from agent_process import Agent
from claimscope.web.serving import basic_auth
from claimscope.web.serving.basic_auth import CrowdedError, Passwords, credentials_of, hashes_to_try
from claimscope.web.serving.guard import RateLimits, TokenBucket
from claimscope.web.serving.webconfig import RateLimit
from serving_help import SECONDS, get, hashed, served, until

USERS = {b"alice": hashed("right").encode()}


def configured(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "web-config.yaml"
    path.write_text(f"basic_auth_users:\n  alice: {hashed('right')}\n{text}")
    return path


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], None),
        (["Bearer abc"], None),
        (["Basic YWxpY2U6cmlnaHQ="], (b"alice", b"right")),
        (["bAsIc   YWxpY2U6cmlnaHQ="], (b"alice", b"right")),
        (["Basic " + base64.b64encode(b"alice:a:b").decode()], (b"alice", b"a:b")),
        (["Basic !!"], (b"", b"")),
        (["Basic \xe9"], (b"", b"")),
        (["Basic YWxpY2U6cmlnaHQ=", "Bearer abc"], None),
        (["Basic " + "A" * 5000], None),
    ],
)
def test_what_a_header_says(lines: list[str], found: tuple[bytes, bytes] | None) -> None:
    assert credentials_of(lines) == found


async def test_only_the_right_password_of_the_right_user_is_let_in(tmp_path: Path) -> None:
    async with served(configured(tmp_path)) as site:
        assert (await get(site, user=("alice", "right")))[0] == 200
        for user in (("alice", "wrong"), ("bob", "right"), ("", ""), ("alice", "right\0"), ("alice", "x" * 200)):
            status, text = await get(site, user=user)
            assert (status, text) == (401, "this needs the name and password of one of basic_auth_users\n")
        assert site.counters.refused == {"password": 5}
        assert (await get(site, "/livez"))[0] == 200
        assert (await get(site, "/readyz"))[0] == 200
        assert (await get(site, "/nowhere"))[0] == 401
        assert (await get(site, "/api/v1/snapshot"))[1].startswith('{"error":"this needs')


async def test_a_refusal_says_how_to_ask_and_repeats_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(configured(tmp_path)) as site, aiohttp.ClientSession(site.running.url) as session:
        given = {"Authorization": f"Basic {base64.b64encode(b'alice:hunter2').decode()}"}
        async with session.get("/metrics", headers=given) as response:
            assert response.headers["WWW-Authenticate"] == 'Basic realm="claimscope", charset="UTF-8"'
            assert "hunter2" not in await response.text()
    assert not any(secret in caplog.text for secret in ("hunter2", "$2y$", "alice"))


async def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    passwords = Passwords(rest=0.0)
    answers = [
        await passwords.right(USERS, user, password, client="a")
        for user, password in [(b"alice", b"right"), (b"alice", b"wrong"), (b"bob", b"right")] * 3
    ]
    assert answers == [True, False, False] * 3
    assert passwords.checked == 3
    changed = {b"alice": hashed("new").encode()}
    assert not await passwords.right(changed, b"alice", b"right", client="a")  # of another hash nothing is known
    assert await passwords.right(changed, b"alice", b"new", client="a")


async def test_wrong_passwords_do_not_drive_out_right_ones() -> None:
    passwords = Passwords(rest=0.0)
    assert await passwords.right(USERS, b"alice", b"right", client="a")
    for number in range(basic_auth.REMEMBERED + 5):
        assert not await passwords.right(USERS, b"alice", b"%d" % number, client="b")
    before = passwords.checked
    assert await passwords.right(USERS, b"alice", b"right", client="a")
    assert passwords.checked == before


def test_an_unknown_user_costs_what_the_slowest_known_one_does() -> None:
    alice, bob = hashed("a", 4).encode(), hashed("b", 6).encode()
    users = {b"alice": alice, b"bob": bob}
    unknown = hashes_to_try(users, None)
    assert [each[:7] for each in unknown] == [b"$2b$06$"]
    assert not basic_auth._fits(b"anything", unknown)
    assert hashes_to_try(users, bob) == (bob,)
    first, *others = hashes_to_try(users, alice)
    # 2**4 + 2**4 + 2**5 rounds are 2**6.
    assert (first, [each[:7] for each in others]) == (alice, [b"$2b$04$", b"$2b$05$"])
    assert basic_auth._fits(b"a", (first, *others))
    assert not basic_auth._fits(b"b", (first, *others))


async def test_who_guesses_waits_for_itself(tmp_path: Path) -> None:
    """A flood of wrong passwords: two of one client wait, the rest is refused, and everybody else is let in."""
    passwords = Passwords()
    slow = {b"alice": hashed("right", 10).encode()}
    assert await passwords.right(slow, b"alice", b"right", client="prometheus")
    flood = [
        asyncio.ensure_future(passwords.right(slow, b"alice", b"guess %d" % number, client="guesser"))
        for number in range(50)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await passwords.right(slow, b"alice", b"right", client="prometheus")  # known: waits for nobody
    newcomer = asyncio.ensure_future(passwords.right(slow, b"alice", b"right", client="newcomer"))
    done = await asyncio.wait_for(asyncio.gather(*flood, return_exceptions=True), SECONDS)
    assert [each for each in done if not isinstance(each, CrowdedError)] == [False, False]
    assert await newcomer
    assert passwords.checked == 3


async def test_guessers_of_many_addresses_keep_nobody_out() -> None:
    """After a restart or a new password nothing is remembered: Prometheus comes right after what is looked at now."""
    passwords = Passwords(rest=100.0)
    slow = {b"alice": hashed("right", 8).encode()}
    for address in range(40):
        assert not await passwords.right(slow, b"alice", b"first %d" % address, client=f"guesser {address}")
    guesses = [(f"guesser {address}", b"%d %d" % (address, number)) for address in range(40) for number in range(2)]
    flood = [
        asyncio.ensure_future(passwords.right(slow, b"alice", guess, client=client)) for client, guess in guesses
    ]  # fmt: skip
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    crowded = [each for each in flood if each.done()]
    assert len(crowded) == 80 - basic_auth.QUEUE
    before = passwords.checked
    assert await passwords.right(slow, b"alice", b"right", client="prometheus")
    assert passwords.checked == before + 1
    turned_away = [each for each in flood if each.done() and each not in crowded]
    assert [str(type(each.exception())) for each in turned_away] == [str(CrowdedError)]  # the queue was full
    for each in flood:
        each.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def test_whose_passwords_come_first() -> None:
    passwords = Passwords(rest=0.01)
    slow = {b"alice": hashed("right", 8).encode()}
    for number in range(3):
        await passwords.right(slow, b"alice", b"%d" % number, client="guesser")
    await passwords.right(slow, b"alice", b"the old one", client="prometheus")
    await passwords.right(slow, b"alice", b"right", client="grafana")
    answered: list[str] = []

    async def ask(password: bytes, client: str) -> None:
        await passwords.right(slow, b"alice", password, client=client)
        answered.append(client)

    async with asyncio.TaskGroup() as tasks:
        for client in ("guesser", "prometheus", "newcomer", "grafana"):
            tasks.create_task(ask(f"guess of {client}".encode(), client))
    assert answered == ["grafana", "newcomer", "prometheus", "guesser"]


async def test_who_has_guessed_wrong_waits_until_the_thread_has_rested() -> None:
    passwords = Passwords(rest=3.0)
    slow = {b"alice": hashed("right", 8).encode()}
    loop = asyncio.get_running_loop()
    await passwords.right(slow, b"alice", b"0", client="guesser")
    began, spent = loop.time(), time.process_time()
    for number in range(1, 5):
        assert not await passwords.right(slow, b"alice", b"%d" % number, client="guesser")
    took, spent = loop.time() - began, time.process_time() - spent
    assert spent < 0.5 * took  # a quarter, and what the clocks of a busy machine add


async def test_hanging_up_makes_no_room_for_more_guesses() -> None:
    passwords = Passwords()
    slow = {b"alice": hashed("right", 9).encode()}
    refused = 0
    for number in range(40):
        guess = asyncio.ensure_future(passwords.right(slow, b"alice", b"guess %d" % number, client="guesser"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        guess.cancel()
        refused += isinstance((await asyncio.gather(guess, return_exceptions=True))[0], CrowdedError)
    assert refused == 38
    assert passwords.checked == 1


async def test_the_event_loop_goes_on_while_a_password_is_checked() -> None:
    passwords = Passwords(rest=0.0)
    slow = {b"alice": hashed("right", 10).encode()}
    check = asyncio.ensure_future(passwords.right(slow, b"alice", b"right", client="a"))
    turns = 0
    while not check.done():
        await asyncio.sleep(0)
        turns += 1
    assert await check
    assert turns > 10


async def test_a_crowd_is_told_to_come_again(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(f"basic_auth_users:\n  alice: {hashed('right', 9)}\n")
    async with served(path) as site:
        assert (await get(site, user=("alice", "right")))[0] == 200
        flood = [asyncio.ensure_future(get(site, user=("alice", f"guess {number}"))) for number in range(8)]
        await until(lambda: site.counters.refused["crowded"] == 6)
        assert (await get(site, user=("alice", "right")))[0] == 200
        statuses = sorted(status for status, _ in await asyncio.gather(*flood))
    assert statuses == [401] * 2 + [429] * 6


async def test_a_token_does_where_no_password_is_given(tmp_path: Path) -> None:
    async def token(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer good":
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    async with served(configured(tmp_path), token=token) as site:
        assert (await get(site, headers={"Authorization": "Bearer good"}))[0] == 200
        assert (await get(site, headers={"Authorization": "Bearer bad"}))[0] == 401
        assert (await get(site, user=("alice", "right")))[0] == 200
        assert (await get(site, user=("alice", "wrong")))[0] == 401
        assert (await get(site, "/livez"))[0] == 200


async def test_users_change_without_a_restart_and_a_broken_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = configured(tmp_path)
    async with served(path) as site:
        assert site.source is not None
        assert (await get(site, user=("alice", "right")))[0] == 200
        path.write_text("basic_auth_users:\n  alice: hunter2-in-plain\n")
        for _ in range(3):
            site.source.look()
        assert (await get(site, user=("alice", "right")))[0] == 200
        assert dict(site.source.samples())["web_config_last_reload_successful"] == 0
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
            f"the web configuration is not taken, what was in force before stays: {path}:2:10: no bcrypt hash, which "
            "begins with $2y$, $2b$ or $2a$: make one with `htpasswd -nBC 10 NAME`"
        ]
        path.write_text(f"basic_auth_users:\n  bob: {hashed('other')}\n")
        site.source.look()
        assert dict(site.source.samples())["web_config_last_reload_successful"] == 1
        assert (await get(site, user=("alice", "right")))[0] == 401
        assert (await get(site, user=("bob", "other")))[0] == 200


async def test_headers_of_the_file_are_in_every_answer(tmp_path: Path) -> None:
    path = configured(
        tmp_path, "http_server_config:\n  headers:\n    X-Frame-Options: deny\n    Content-Security-Policy: sandbox\n"
    )
    async with served(path) as site, aiohttp.ClientSession(site.running.url) as session:
        for where in ("/metrics", "/livez", "/nowhere"):
            async with session.get(where) as response:
                assert response.headers["X-Frame-Options"] == "deny"
                assert response.headers["Content-Security-Policy"] == "sandbox"


async def test_http2_is_said_once_not_to_be_offered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = configured(tmp_path, "http_server_config:\n  http2: true\n")
    async with served(path) as site:
        assert site.source is not None
        path.write_text(path.read_text() + "# changed\n")
        site.source.look()
    said = [message for message in caplog.messages if "not offered" in message]
    assert said == [f"{path}: http2 is not offered, HTTP/1.1 is"]


async def test_http2_that_comes_later_is_said_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = configured(tmp_path)
    async with served(path) as site:
        assert site.source is not None
        path.write_text(path.read_text() + "http_server_config:\n  http2: true\n")
        site.source.look()
        path.write_text(path.read_text() + "# changed\n")
        site.source.look()
    assert caplog.text.count("http2 is not offered, HTTP/1.1 is") == 1


async def test_more_requests_than_the_rate_limit_allows(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text("rate_limit:\n  interval: 1h\n  burst: 2\n")
    async with served(path) as site:
        assert [(await get(site))[0] for _ in range(4)] == [200, 200, 429, 429]
        assert (await get(site, "/livez"))[0] == 200
        assert site.counters.refused == {"rate": 2}


def test_nobody_uses_up_what_is_anothers() -> None:
    limits, limit = RateLimits(), RateLimit(interval_seconds=3600.0, burst=2)
    assert [limits.too_often(limit, "guesser") for _ in range(4)] == [False, False, True, True]
    assert [limits.too_often(limit, "prometheus") for _ in range(3)] == [False, False, True]
    other = RateLimit(interval_seconds=3600.0, burst=1)
    assert [limits.too_often(other, "guesser") for _ in range(2)] == [False, True]
    assert not limits.too_often(None, "guesser")


def test_the_bucket_fills_again() -> None:
    now = [100.0]
    bucket = TokenBucket(limit=RateLimit(interval_seconds=2.0, burst=2), monotonic=lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now[0] += 2.0
    assert [bucket.take() for _ in range(2)] == [True, False]
    now[0] += 1000.0
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_the_agent_is_guarded_by_its_file(cc: str, tmp_path: Path) -> None:
    del cc
    file = configured(tmp_path)
    with Agent(tmp_path / "agent", "--simulate", "h100x8", "--web-config-file", str(file)) as agent:
        agent.wait_served().until_ready()
        assert agent.get("/metrics").status == 401
        answer = agent.get("/metrics", Authorization="Basic YWxpY2U6cmlnaHQ=")
        assert answer.status == 200
        lines = answer.text.splitlines()
        assert "claimscope_agent_web_config_last_reload_successful 1" in lines
        assert 'claimscope_agent_web_requests_refused_total{reason="password"} 1' in lines
        assert "right" not in agent.log
