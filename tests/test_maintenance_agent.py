"""The agent's part in maintenance: it counts processes, lets NVML go when asked, and takes it up again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_process import Agent, until
from claimscope.accounting.ledger import Ledger
from claimscope.clock import ManualClock, SystemClock
from claimscope.kube.lease import HeartbeatLease
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Device, Entity, Inventory, ProcessUse, Window
from claimscope.node import Node
from claimscope.nvml.wire import InventoryMessage, WindowMessage
from claimscope.sim.api.kinds import ALL_KINDS, LEASES
from claimscope.sim.api.server import HttpFault, SimApiServer
from claimscope.sim.library import SimulatedNvml, build_library
from claimscope.sim.scenario import PodPlan, Scenario
from claimscope.sim.world import make_world
from claimscope.taints.maintenance_ask import (
    ANSWER,
    ASK,
    UNTOLD_SECONDS,
    Answer,
    Ask,
    Responder,
    answer_text,
    ask_text,
    read_answer,
    read_ask,
)
from kube_help import serving
from maintenance_help import FakeNvml
from sampler_help import quick, running

SECOND = 10**9
RELEASED = Answer(uid="a1", released=True, processes=0)

# --- what is asked and answered ---


@pytest.mark.parametrize(
    ("text", "ask"),
    [
        ("watch a1", Ask(uid="a1", do="watch")), ("release a1", Ask(uid="a1", do="release")), ("", None),
        ("release", None), ("release ", None), ("reboot a1", None),
    ],
)  # fmt: skip
def test_what_is_asked(text: str, ask: Ask | None) -> None:
    assert read_ask(text) == ask
    assert ask is None or ask_text(ask) == text


@pytest.mark.parametrize("text", [None, "", "no json", "[]", '{"uid":1}', '{"uid":"a","processes":"' + "9" * 2000])
def test_an_answer_that_cannot_be_read_is_none(text: str | None) -> None:
    assert read_answer(text) is None


def look(responder: Responder, nvml: FakeNvml, processes: int | None, seconds: float = 0.0) -> Answer | None:
    return read_answer(responder.look(processes=processes, released=nvml.released, now_ns=round(seconds * SECOND)))


def test_nvml_is_let_go_once_no_process_is_left_and_taken_up_afterwards() -> None:
    nvml = FakeNvml()
    responder = Responder(nvml)
    assert look(responder, nvml, None) is None
    responder.hear("watch a1")
    assert look(responder, nvml, 2) == Answer(uid="a1", processes=2)
    responder.hear("release a1")
    assert look(responder, nvml, 2) == Answer(uid="a1", processes=2)
    assert look(responder, nvml, 0) == Answer(uid="a1", processes=0)
    assert look(responder, nvml, None) == Answer(uid="a1", released=True, processes=0)
    responder.hear("release a1")
    responder.hear("")
    assert nvml.did == ["count True", "count True", "release", "acquire", "count False"]
    assert look(responder, nvml, 0) is None


def test_where_processes_cannot_be_counted_nvml_is_let_go_after_a_while() -> None:
    nvml = FakeNvml()
    responder = Responder(nvml)
    responder.hear("release a1")
    look(responder, nvml, None, 30)
    look(responder, nvml, None, 30 + UNTOLD_SECONDS - 1)
    assert not nvml.released
    look(responder, nvml, None, 30 + UNTOLD_SECONDS)
    assert nvml.released
    assert look(responder, nvml, None) == Answer(uid="a1", released=True)  # without a count


def test_one_count_that_is_missing_after_others_lets_nothing_go() -> None:
    nvml = FakeNvml()
    responder = Responder(nvml)
    responder.hear("release a1")
    look(responder, nvml, 3, 30)
    look(responder, nvml, None, 61)
    look(responder, nvml, None, 61 + 10 * UNTOLD_SECONDS)
    assert not nvml.released
    nvml.release()  # by hand
    assert look(responder, nvml, None, 700) == Answer(uid="a1", released=True, processes=3)
    nvml.acquire()
    look(responder, nvml, 0, 701)
    assert nvml.released


@pytest.mark.parametrize(
    ("said", "did"),
    [
        (Answer(uid="a1", released=True, processes=0), ["count True", "release"]),
        (Answer(uid="a1", processes=2), ["count True"]),
        (Answer(uid="earlier", released=True, processes=0), ["count True"]),
        (None, ["count True"]),
    ],
)
def test_an_agent_that_is_restarted_leaves_nvml_alone_only_if_it_had_let_it_go(
    said: Answer | None, did: list[str]
) -> None:
    nvml = FakeNvml()
    responder = Responder(nvml)
    responder.hear("release a1")
    responder.begin(said)
    assert nvml.did == did
    assert look(responder, nvml, None) == (said if nvml.released else Answer(uid="a1"))


def test_what_a_person_let_go_or_took_up_by_hand_is_left_so() -> None:
    nvml = FakeNvml(released=True)
    responder = Responder(nvml)
    responder.hear("release a1")
    assert look(responder, nvml, None) == Answer(uid="a1", released=True)
    responder.hear("")
    assert "acquire" not in nvml.did
    again = FakeNvml()
    responder = Responder(again)
    responder.hear("release a1")
    look(responder, again, 0)
    again.acquire()
    assert look(responder, again, 0) == Answer(uid="a1", processes=0)
    assert again.did.count("release") == 1


# --- counting ---


def test_processes_are_counted_over_all_devices_and_not_shown_unless_wanted() -> None:
    whole, cut = Entity(uuid="GPU-0", gpu=0), Entity(uuid="GPU-1", gpu=1)
    part = Entity(uuid="MIG-1", gpu=1, parent="GPU-1")
    node = Node(name="n", clock=ManualClock(), ledger=Ledger(QUANTITIES), attribution=False, hang_seconds=5.0)
    node.shows_processes = False
    devices = tuple(Device(entity=each, minor=0, pci_bus_id=None, model=None) for each in (whole, cut, part))
    inventory = Inventory(
        session=1, epoch=0, driver_version=None, nvml_version=None, cuda_version=None, devices=devices
    )
    assert node.process_count() is None
    node.on_message(InventoryMessage(inventory))
    node.on_message(WindowMessage(a_window("GPU-0", 2)))
    assert node.process_count() is None  # one has not been heard of
    node.on_message(WindowMessage(a_window("GPU-1", None)))
    node.on_message(WindowMessage(a_window("MIG-1", 1)))
    assert node.process_count() == 3
    node.on_message(InventoryMessage(replace(inventory, lost={"GPU-1": "GPU is lost"})))
    assert node.process_count() == 2
    assert not node.released
    node.on_message(InventoryMessage(replace(inventory, devices=(), released=True)))
    assert node.process_count() is None
    assert node.released


def a_window(uuid: str, processes: int | None) -> Window:
    found = None if processes is None else tuple(ProcessUse(pid=number) for number in range(processes))
    return Window(
        entity=uuid, session=1, epoch=0, start_ns=0, end_ns=SECOND, end_wall_ns=SECOND, ticks=1, processes=found
    )


async def test_the_sampler_counts_processes_only_while_asked(cc: str, tmp_path: Path) -> None:
    pod = PodPlan(namespace="t", name="p", workload="training", plugin={"nvidia.com/gpu": ("gpu:0",)})
    world = make_world("h100x8", Scenario(pods=(pod,)))
    library = build_library()
    with contextlib.closing(SimulatedNvml(world, directory=tmp_path, library_path=library)) as nvml:
        nvml.step(60.0)
        uuids = [each.uuid for each in world.state(60.0).entities]
        async with running(quick(str(library)), nvml.environment) as (supervisor, heard):
            await heard.until(lambda: all(heard.count(uuid) >= 1 for uuid in uuids))
            assert {heard.newest(uuid).processes for uuid in uuids} == {None}
            supervisor.count_processes(True)
            await heard.until(lambda: all(heard.newest(uuid).processes is not None for uuid in uuids))
            assert [len(heard.newest(uuid).processes or ()) for uuid in uuids] == [1, 0, 0, 0, 0, 0, 0, 0]
            supervisor.release()
            await heard.until(lambda: heard.inventories[-1].released)
            supervisor.acquire()
            before = heard.count(uuids[0])
            await heard.until(lambda: heard.count(uuids[0]) > before + 2)
            assert len(heard.newest(uuids[0]).processes or ()) == 1  # it holds
            supervisor.count_processes(False)
            await heard.until(lambda: all(heard.newest(uuid).processes is None for uuid in uuids))


# --- the Lease ---


async def test_what_is_asked_stays_in_the_lease_and_is_read_soon() -> None:
    async with serving(None, LEASES) as (server, client):
        lease = HeartbeatLease(
            client, "claimscope", "agent", "agent-x", {}, SystemClock(), beat_seconds=3600.0, change_seconds=0.001,
            first_wait_seconds=0.001, jitter=lambda: 0.5, keeps=lambda name: name == ASK, asks=ASK,
            asked_seconds=0.01,
        )  # fmt: skip
        await lease.look()
        assert lease.asked == lease.note("a") == ""
        lease.set_annotations({"a": "1"})
        task = asyncio.create_task(lease.run())
        await until_true(lambda: server.get(LEASES, "agent", "claimscope") is not None)
        found = server.get(LEASES, "agent", "claimscope") or {}
        found["metadata"]["annotations"] |= {ASK: "watch a1", "other": "1"}
        await server.put(LEASES, found)
        lease.set_annotations({"a": "2"})  # the next write meets a conflict, and learns of it
        await until_true(lambda: lease.asked == "watch a1")
        await until_true(lambda: notes(server) == {"a": "2", ASK: "watch a1"})
        found = server.get(LEASES, "agent", "claimscope") or {}
        found["metadata"]["annotations"][ASK] = "release a1"
        await server.put(LEASES, found)
        await until_true(lambda: lease.asked == "release a1")  # without any change of ours
        failures = dict(lease.errors)
        server.fail("/apis/coordination.k8s.io/v1/namespaces/claimscope/leases/agent", HttpFault(status=500))
        await until_true(lambda: lease.errors != failures)
        assert lease.asked == "release a1"  # what cannot be read is not over
        found = server.get(LEASES, "agent", "claimscope") or {}
        del found["metadata"]["annotations"][ASK]
        await server.put(LEASES, found)
        await until_true(lambda: lease.asked == "")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def notes(server: SimApiServer) -> dict[str, str]:
    found = server.get(LEASES, "agent", "claimscope") or {}
    return dict(found["metadata"].get("annotations") or {})


async def until_true(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells that a stored object changed
            await asyncio.sleep(0.001)


# --- the process ---


@pytest.fixture
def api_url() -> Iterator[str]:
    """A simulated API server in a thread, with a Lease in which NVML is asked to be let go, and was."""
    urls: list[str] = []
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = SimApiServer(ALL_KINDS)
        await server.put(
            LEASES,
            {
                "metadata": {
                    "name": "claimscope-agent-node-a",
                    "namespace": "monitoring",
                    "annotations": {ASK: "release a1", ANSWER: answer_text(RELEASED)},
                },
                "spec": {"holderIdentity": "node-a"},
            },
        )
        await server.start()
        urls.append(server.url)
        started.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    yield f"{urls[0]}/apis/coordination.k8s.io/v1/namespaces/monitoring/leases/claimscope-agent-node-a"
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def answered(url: str) -> Answer | None:
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(url, timeout=5) as reply:
        return read_answer((json.loads(reply.read())["metadata"].get("annotations") or {}).get(ANSWER))
    return None


def test_an_agent_restarted_in_between_leaves_nvml_alone_until_it_is_given_back(
    tmp_path: Path, cc: str, api_url: str
) -> None:
    with Agent(
        tmp_path / "agent", "--simulate", "l40sx4", "--api-server-url", api_url.partition("/apis")[0],
        "--lease-namespace", "monitoring",
    ) as agent:  # fmt: skip
        agent.wait_served()
        agent.until(lambda scrape: scrape.value("claimscope_agent_nvml_released") == 1, 15.0)
        assert answered(api_url) == RELEASED
        assert "NVML is let go" in agent.log
        assert "driver" not in agent.log.partition("NVML is let go")[0]  # it was never taken up

        body = msgspec.json.encode({"metadata": {"annotations": {ASK: "watch a2"}}})
        request = urllib.request.Request(
            api_url, data=body, method="PATCH", headers={"Content-Type": "application/merge-patch+json"}
        )
        with urllib.request.urlopen(request, timeout=5) as reply:
            assert reply.status == 200
        agent.until(lambda scrape: scrape.value("claimscope_agent_nvml_released") == 0, 20.0)

        def counted() -> bool:
            found = answered(api_url)
            return found is not None and found.uid == "a2" and found.processes is not None

        until(counted, 20.0, lambda: agent.log)
        assert agent.scrape().find("gpu_process_memory_used_bytes") == []  # counted, and not shown
