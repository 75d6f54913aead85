"""What is fenced, and what do people say to that?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from claimscope.cli.cluster import asking, author_option, cluster_options, reason_option
from claimscope.cli.output import Failure, say

if TYPE_CHECKING:
    from claimscope.kube.api import ApiClient
    from claimscope.taints.notebook import Notebook


@click.group()
def taints() -> None:
    """Show and steer the taints that claimscope puts on degraded GPUs."""


@taints.command("list")
@cluster_options
def list_taints(config_file: str | None, **flags: str | None) -> None:
    """List claimscope's taints, and those that are wanted and held back."""
    from claimscope.taints import command

    async def ask(api: ApiClient, notebook: Notebook) -> str:
        return command.table(await command.overview(api, notebook))

    say(asking(config_file, flags, ask))


@taints.command()
@author_option
@reason_option
@cluster_options
def pause(author: str, reason: str, config_file: str | None, **flags: str | None) -> None:
    """Put up nothing new, from ten seconds on, until it is resumed. What is over is still lifted."""
    from claimscope.taints.notebook import PAUSE

    async def ask(_: ApiClient, notebook: Notebook) -> str:
        await notebook.write({PAUSE: f"{author}: {reason}" if reason else author})
        return "paused: nothing new is put up until `claimscope taints resume`"

    say(asking(config_file, flags, ask))


@taints.command()
@cluster_options
def resume(config_file: str | None, **flags: str | None) -> None:
    """Go on after a pause."""
    from claimscope.taints.notebook import PAUSE

    async def ask(_: ApiClient, notebook: Notebook) -> str:
        await notebook.write({PAUSE: None})
        return "resumed"

    say(asking(config_file, flags, ask))


@taints.command()
@click.argument("names", nargs=-1, metavar="[RULE|UUID]...")
@click.option("--all", "everything", is_flag=True, help="All of them, and the conditions on nodes: to uninstall.")
@click.option(
    "--stop", "writers", multiple=True, metavar="deployment/NAME|daemonset/NAME",
    help="With --all: what writes taints. It is stopped first, and waited for: a Deployment is scaled to none, a "
    "DaemonSet deleted.",
)
@click.option(
    "--stop-seconds", type=click.FloatRange(0, 3600), default=60.0, show_default=True,
    help="With --stop: how long its pods are waited for.",
)
@click.option(
    "--only-of-release", default="", metavar="NAME",
    help="With --all: do nothing, and end well, where another release of Helm than this fences, or what Helm did not "
    "install.",
)
@author_option
@reason_option
@cluster_options
def lift(
    names: tuple[str, ...], everything: bool, writers: tuple[str, ...], stop_seconds: float, only_of_release: str,
    author: str, reason: str, config_file: str | None, **flags: str | None,
) -> None:
    """Delete taints of claimscope. A running controller leaves them away for an hour.

    Nothing that is not claimscope's is touched. With --all stop the controller first, by --stop deployment/NAME, or
    pause it.
    """
    from claimscope.taints import command, stopping

    if bool(names) == everything:
        raise click.UsageError("name what to lift (`claimscope taints list` shows it), or --all")
    if writers and not everything:
        raise click.UsageError("--stop: what is named is left away by whoever writes taints: only --all needs it")
    if only_of_release and not everything:
        raise click.UsageError("--only-of-release: what is named is lifted whoever wrote it: only --all needs it")
    try:
        workloads = [stopping.workload_of(text) for text in writers]
    except ValueError as error:
        raise click.UsageError(f"--stop: {error}") from error

    async def ask(api: ApiClient, notebook: Notebook) -> str:
        if only_of_release:
            other = await stopping.not_of_release(api, notebook.namespace, only_of_release)
            if other is not None:
                return other
        for workload in workloads:
            say(await stopping.stop(api, notebook.namespace, workload, seconds=stop_seconds))
        try:
            found = await command.lift(
                api, notebook, names=names, all_of_ours=everything, author=author, reason=reason, wall=time.time()
            )
        except KeyError as error:
            raise Failure(f"no taint of claimscope is named {error.args[0]} or about such a GPU") from error
        if found.left:
            say("\n".join(found.done) or "nothing is lifted")
            raise Failure("\n".join(["not everything is lifted; left are:", *found.left]))
        return "\n".join(found.done) or "there was nothing to lift"

    say(asking(config_file, flags, ask))


@taints.command()
@click.argument("what", metavar="UUID|RULE|breaker")
@click.option("--rule", default="", metavar="RULE", help="With a UUID: this health rule alone.")
@click.option(
    "--hours", type=click.FloatRange(0, 720, min_open=True), default=24.0, show_default=True,
    help="With a UUID: for so long.",
)
@author_option
@reason_option
@cluster_options
def ack(
    what: str, rule: str, hours: float, author: str, reason: str, config_file: str | None, **flags: str | None
) -> None:
    """Take note of what is found: leave a GPU untainted for a while, or let a held rule or the breaker go on."""
    from claimscope.taints import command

    try:
        name, text = command.acknowledgement(what, rule=rule, hours=hours, author=author, reason=reason)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    async def ask(_: ApiClient, notebook: Notebook) -> str:
        await notebook.write({name: text})
        return "noted; the leading controller takes it up within ten seconds"

    say(asking(config_file, flags, ask))
