"""How does an operator on the node ask the agent to let NVML go, take it up, or sample faster for a while?

A Unix socket that only the agent's own user may open. One line of JSON in, one line of JSON out. A client that sends
nonsense is told so and costs only its own connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from claimscope.nvml.supervisor import SupervisorState
from claimscope.nvml.wire import MAX_BURST_HZ, MAX_BURST_SECONDS

logger = logging.getLogger(__name__)

MAX_LINE = 4096
IDLE_SECONDS = 30.0
MAX_CONNECTIONS = 8


class ControlError(Exception):
    """The request could not be carried out; the text says what, where, and what to do."""


class Controls(Protocol):
    """What can be asked; the supervisor is one."""

    @property
    def state(self) -> SupervisorState:
        """How the sampler is doing."""

    def release(self) -> None:
        """Lets NVML go."""

    def acquire(self) -> None:
        """Takes NVML up again."""

    def burst(self, hz: float, seconds: float) -> None:
        """Samples fast for a while."""


class HealthControls(Protocol):
    """What can be asked of the health of devices; the node is one."""

    def acknowledge(self, uuid: str, rule: str) -> str | None:
        """Ends a finding by a person's word; why it could not, None where it did."""

    def health_document(self) -> dict[str, object] | None:
        """All of it; None while nothing is known."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One line from a client."""

    command: str
    hz: float = MAX_BURST_HZ
    seconds: float = 10.0
    uuid: str = ""
    rule: str = ""


def _status(state: SupervisorState) -> dict[str, Any]:
    inventory, status = state.inventory, state.status
    return {
        "pid": state.pid,
        "released": state.released,
        "restarts": dict(state.restarts),
        "quarantined": [{"uuid": q.uuid, "gpu": q.index, "call": q.call, "times": q.times} for q in state.quarantined],
        "driver_version": inventory.driver_version if inventory else None,
        "devices": [device.entity.uuid for device in inventory.devices] if inventory else [],
        "lost": dict(inventory.lost) if inventory else {},
        "error": inventory.error if inventory else None,
        "sampling_hz": status.sampling_hz if status else None,
        "shed": status.shed if status else None,
        "late_ticks": status.late_ticks if status else None,
    }


def answer(line: bytes, controls: Controls, health: HealthControls | None = None) -> dict[str, Any]:
    """Carries out one line and says what came of it."""
    try:
        request = msgspec.json.decode(line, type=Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return {"ok": False, "error": f'not a request: {error}; send one line such as {{"command": "status"}}'}
    match request.command:
        case "release":
            controls.release()
            return {"ok": True, "message": "NVML is being let go; `claimscope nvml acquire` takes it up again"}
        case "acquire":
            controls.acquire()
            return {"ok": True, "message": "NVML is being taken up again"}
        case "burst":
            if not (0 < request.hz <= MAX_BURST_HZ and 0 < request.seconds <= MAX_BURST_SECONDS):
                return {
                    "ok": False,
                    "error": f"a burst of {request.hz:g} Hz for {request.seconds:g} s is out of bounds: above 0 and "
                    f"at most {MAX_BURST_HZ:g} Hz and {MAX_BURST_SECONDS:g} s",
                }
            controls.burst(request.hz, request.seconds)
            return {"ok": True, "message": f"sampling at {request.hz:g} Hz for {request.seconds:g} s"}
        case "status":
            return {"ok": True, **_status(controls.state)}
        case "health" if health is not None:
            document = health.health_document()
            if document is None:
                return {"ok": False, "error": "nothing is known of health: it is off, or NVML has not answered yet"}
            return {"ok": True, **document}
        case "acknowledge" if health is not None:
            refused = health.acknowledge(request.uuid, request.rule)
            if refused is not None:
                return {"ok": False, "error": refused}
            said = f"{request.rule} of {request.uuid} is over; new evidence brings it back"
            return {"ok": True, "message": said + _still_wanted(health.health_document(), request.uuid)}
        case other:
            known = "release, acquire, burst and status" + (", health and acknowledge" if health is not None else "")
            return {"ok": False, "error": f"unknown command {other!r}: there are {known}"}


def _still_wanted(document: Mapping[str, Any] | None, uuid: str) -> str:
    """What an acknowledgement does not do."""
    for device in document["devices"] if document is not None else ():
        action = device["recovery_action"]
        if device["uuid"] == uuid and action not in (None, "none"):
            return f". The driver still asks for {action}: as long as it does, the device is not fit for work"
    return ""


def _bind(path: str) -> socket.socket:
    """A socket at `path`, mode 0600 from its first moment."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise ControlError(f"{path} exists and is no socket: remove it or choose another --control-socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                other.settimeout(1.0)
                try:
                    other.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)  # left by an agent that was killed
                else:
                    raise ControlError(f"another agent listens on {path}: stop it or choose another --control-socket")
        mask = os.umask(0o177)
        try:
            server.bind(path)
        finally:
            os.umask(mask)
    except OSError as error:
        server.close()
        raise ControlError(
            f"cannot listen on {path}: {error.strerror or error}; its directory must exist and be writable"
        ) from error
    except ControlError:
        server.close()
        raise
    return server


class ControlServer:
    """Listens on a path while its context is open; entering raises ControlError where it cannot."""

    def __init__(self, path: str, controls: Controls, health: HealthControls | None = None) -> None:
        self._path = path
        self._controls = controls
        self._health = health
        self._clients: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> ControlServer:
        bound = _bind(self._path)
        self._server = await asyncio.start_unix_server(self._client, sock=bound, limit=MAX_LINE)
        return self

    async def __aexit__(self, *unused: object) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._clients):
            writer.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(reply: dict[str, Any]) -> None:
            writer.write(msgspec.json.encode(reply) + b"\n")

        try:
            if len(self._clients) >= MAX_CONNECTIONS:
                say({"ok": False, "error": "too many connections: try again"})
                return
            self._clients.add(writer)
            while True:
                try:
                    line = await asyncio.wait_for(reader.readline(), IDLE_SECONDS)
                except ValueError:
                    say({"ok": False, "error": f"the line is longer than {MAX_LINE} bytes"})
                    return
                if not line:
                    return
                say(answer(line, self._controls, self._health))
                await asyncio.wait_for(writer.drain(), IDLE_SECONDS)
        except (OSError, TimeoutError):
            return  # it went away or fell asleep
        finally:
            self._clients.discard(writer)
            writer.close()


async def ask(path: str, request: dict[str, object]) -> str:
    """Sends one request to the agent at `path`; returns its answer for people, raises ControlError."""
    reply = await ask_document(path, request)
    if set(reply) == {"message"}:
        return str(reply["message"])
    return msgspec.json.format(msgspec.json.encode(reply), indent=2).decode()


async def ask_document(path: str, request: dict[str, object]) -> dict[str, Any]:
    """The same with the answer for programs."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(path, limit=1 << 20), 5.0)
    except FileNotFoundError as error:
        raise ControlError(f"no agent listens on {path}: start it, or name its --control-socket") from error
    except PermissionError as error:
        raise ControlError(f"no permission on {path}: run this as the agent's user (root in its container)") from error
    except (OSError, TimeoutError) as error:
        raise ControlError(f"the agent on {path} does not answer: {error}") from error
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        line = await asyncio.wait_for(reader.readline(), 5.0)
    except (OSError, TimeoutError, ValueError) as error:
        raise ControlError(f"the agent on {path} did not answer within 5 s; see its log") from error
    finally:
        writer.close()
    try:
        reply = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ControlError(f"what listens on {path} is no claimscope agent: {line[:80]!r}") from error
    if not reply.pop("ok", False):
        raise ControlError(str(reply.get("error", "the agent refused without saying why")))
    return reply
