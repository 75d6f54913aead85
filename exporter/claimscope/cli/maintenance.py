"""Which nodes are taken out of work, and how far are they?"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from claimscope.cli.cluster import OBJECT_NAME, asking, author_option, cluster_options
from claimscope.cli.output import Failure, say
from claimscope.clock import SystemClock

if TYPE_CHECKING:
    from claimscope.kube.api import ApiClient
    from claimscope.taints.notebook import Notebook


@click.group()
def maintenance() -> None:
    """Take a node's GPUs out of work for maintenance, and give them back."""


@maintenance.command()
@click.argument("node")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for others to read.")
@click.option("--deadline", metavar="2h|TIME", help="When it is to be said that the node is not ready yet.")
@author_option
@cluster_options
def start(
    node: str, reason: str, deadline: str | None, author: str, config_file: str | None, **flags: str | None
) -> None:
    """Keep new work off a node's GPUs, wait for what runs, let NVML go, and say when it can go offline.

    Nothing is evicted. The Node's condition GPUMaintenanceReady tells how far it is.
    """
    from claimscope.taints import maintenance_command

    try:
        until = None if deadline is None else maintenance_command.deadline_of(deadline, _wall())
    except ValueError as error:
        raise click.UsageError(f"--deadline: {error}") from error
    name = _node_name(node)

    async def ask(api: ApiClient) -> str:
        return await maintenance_command.start(api, name, reason=reason, author=author, deadline=until)

    _maintaining(config_file, flags, ask)


@maintenance.command()
@click.argument("node")
@click.option("--without-verification", "unverified", is_flag=True, help="Give it back as it is.")
@author_option
@cluster_options
def finish(node: str, unverified: bool, author: str, config_file: str | None, **flags: str | None) -> None:
    """End the maintenance of a node: its GPUs are verified, and then given back."""
    from claimscope.taints import maintenance_command

    name = _node_name(node)

    async def ask(api: ApiClient) -> str:
        return await maintenance_command.finish(
            api, name, author=author, verified=not unverified, now_wall=_wall()
        )

    _maintaining(config_file, flags, ask)


@maintenance.command("list")
@cluster_options
def list_maintenance(config_file: str | None, **flags: str | None) -> None:
    """List the nodes under maintenance, and what each waits for."""
    from claimscope.taints import maintenance_command

    _maintaining(config_file, flags, maintenance_command.listed)


def _maintaining(
    config_file: str | None, flags: dict[str, str | None], ask: Callable[[ApiClient], Coroutine[Any, Any, str]]
) -> None:
    from claimscope.taints.maintenance_command import MaintenanceError

    async def answer(api: ApiClient, _: Notebook) -> str:
        try:
            return await ask(api)
        except MaintenanceError as error:
            raise Failure(str(error)) from error

    say(asking(config_file, flags, answer))


def _wall() -> float:
    return SystemClock().wall_ns() / 1e9


def _node_name(text: str) -> str:
    if OBJECT_NAME.fullmatch(text) is None:
        raise click.UsageError(f"`{text}` is no name of a Node")
    return text
