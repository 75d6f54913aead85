"""What does the agent on this node answer and do when asked at its socket?"""

from __future__ import annotations

import asyncio

import click

from claimscope.cli.options import load_agent
from claimscope.cli.output import Failure


@click.group()
def nvml() -> None:
    """Talk to the agent on this node: let NVML go, take it up again, sample faster for a while."""


_socket_option = click.option("--control-socket", metavar="PATH", help="The agent's --control-socket.")


@nvml.command()
@_socket_option
def release(control_socket: str | None) -> None:
    """Let NVML go, so that a GPU can be reset or its MIG mode changed."""
    _control(control_socket, {"command": "release"})


@nvml.command()
@_socket_option
def acquire(control_socket: str | None) -> None:
    """Take NVML up again."""
    _control(control_socket, {"command": "acquire"})


@nvml.command()
@_socket_option
@click.option("--hz", type=click.FloatRange(1, 100), default=100.0, show_default=True, help="Samples a second.")
@click.option("--seconds", type=click.FloatRange(1, 60), default=10.0, show_default=True, help="For how long.")
def burst(control_socket: str | None, hz: float, seconds: float) -> None:
    """Sample energy, byte counters and power faster for a while."""
    _control(control_socket, {"command": "burst", "hz": hz, "seconds": seconds})


@nvml.command()
@_socket_option
def status(control_socket: str | None) -> None:
    """Say how the sampler is doing."""
    _control(control_socket, {"command": "status"})


def _control(socket_path: str | None, request: dict[str, object]) -> None:
    flags = {"control_socket": socket_path}
    path = load_agent(None, flags).control_socket
    from claimscope.nvml import control

    try:
        answer = asyncio.run(control.ask(path, request))
    except control.ControlError as error:
        raise Failure(str(error)) from error
    click.echo(answer)


@click.group()
def health() -> None:
    """See what the agent on this node finds of its GPUs, and acknowledge what was looked after."""


@health.command("list")
@_socket_option
def list_findings(control_socket: str | None) -> None:
    """List what stands against the devices of this node, worst first, and what would clear it."""
    path = load_agent(None, {"control_socket": control_socket}).control_socket
    from claimscope.health.report import words
    from claimscope.nvml import control

    try:
        found = asyncio.run(control.ask_document(path, {"command": "health"}))
    except control.ControlError as error:
        raise Failure(str(error)) from error
    click.echo(words(found))


@health.command("ack")
@click.argument("uuid")
@click.argument("rule")
@_socket_option
def acknowledge(uuid: str, rule: str, control_socket: str | None) -> None:
    """End a finding that no reset proves repaired; it comes back only with new evidence."""
    _control(control_socket, {"command": "acknowledge", "uuid": uuid, "rule": rule})
