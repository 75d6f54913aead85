"""The command line: the only reader of arguments and environment; it builds the configuration and runs one part.

Exit codes: 0 done, 1 it could not be done, 2 the command line or configuration is wrong. Each failure is one line
on standard error.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from claimscope import config, logs
from claimscope.clock import SystemClock
from claimscope.yamlfile import ConfigError, did_you_mean

if TYPE_CHECKING:
    from claimscope.claims.explain import Explanation
    from claimscope.doctor.checks import Finding
    from claimscope.kube.api import ApiClient
    from claimscope.taints.notebook import Notebook

Command = TypeVar("Command", bound=Callable[..., Any])
logger = logging.getLogger(__name__)

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class _Failure(click.ClickException):
    """The one line that says why it could not be done."""

    exit_code = 1


def _setting_options(of: type[config.AnyConfig], *keys: str) -> Callable[[Command], Command]:
    """One option per setting, or per one of `keys`; all text: `config.py` converts, wherever a value comes from."""
    wanted = [field for field in config.fields(of) if not keys or field.key in keys]
    return lambda command: _with_options(wanted, command)


def _with_options(wanted: Sequence[config.Field], command: Command) -> Command:
    for field in reversed(wanted):
        words = "|".join(field.choices) if field.choices else None
        default = field.default if field.default not in (None, "", ()) else None
        about = field.description.replace("`", "")
        if default is not None:
            about += f"  [default: {default:g}]" if isinstance(default, float) else f"  [default: {default}]"
        command = click.option(field.flag, field.key, metavar=words or _metavar(field), help=about)(command)
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        help="YAML file with the same settings as keys, log_level: debug.",
    )(command)


def _metavar(field: config.Field) -> str:
    return "NUMBER" if isinstance(field.default, float | int) else "TEXT"


def load(config_file: str | None, flags: dict[str, str | None]) -> config.Config:
    """The agent's configuration from file, environment and flags; raises click.UsageError."""
    return config.complete(_load(config.Config, config_file, flags), socket.gethostname(), _own_namespace())


def load_controller(config_file: str | None, flags: dict[str, str | None]) -> config.ControllerConfig:
    """The controller's configuration likewise."""
    return config.complete_controller(
        _load(config.ControllerConfig, config_file, flags), socket.gethostname(), _own_namespace()
    )


def _own_namespace() -> str:
    """The namespace of the pod that this runs in; empty where it is none."""
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _load(of: type[config.Built], config_file: str | None, flags: dict[str, str | None]) -> config.Built:
    name = config_file or os.environ.get("CLAIMSCOPE_CONFIG") or None
    try:
        text = "" if name is None else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise click.UsageError(f"configuration file {name}: {reason}") from error
    try:
        return config.build(
            config.from_file(text, name or "", of),
            config.from_environment(os.environ, of),
            config.from_flags(flags, of),
            of=of,
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


async def until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end, or cancels it at the first SIGTERM or SIGINT; a second one kills at once."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    stopped_by: list[int] = []

    def stop(number: int) -> None:
        stopped_by.append(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        logger.info("stopping on %s", signal.Signals(number).name)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped_by:
            raise
    finally:
        for number in () if stopped_by else (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="claimscope", message="claimscope %(version)s")
def cli() -> None:
    """GPU telemetry and accounting by Kubernetes ResourceClaim."""


@cli.command()
@_setting_options(config.Config)
def agent(config_file: str | None, **flags: str | None) -> None:
    """Sample this node's GPUs and serve them, and who holds them, to Prometheus.

    Each flag is also an environment variable, CLAIMSCOPE_SAMPLING_HZ for --sampling-hz, and a key of the file.
    """
    settings = load(config_file, flags)
    logs.configure(settings.log_level, settings.log_format, sys.stderr)
    from claimscope import agent as wiring
    from claimscope.sim.library import SimulatorError
    from claimscope.sim.scenario import ScenarioError

    try:
        asyncio.run(until_signal(wiring.run(settings, os.environ)))
    except ScenarioError as error:
        raise click.UsageError(str(error)) from error
    except (wiring.AgentError, SimulatorError) as error:
        raise _Failure(str(error)) from error


@cli.command()
@_setting_options(config.ControllerConfig)
def controller(config_file: str | None, **flags: str | None) -> None:
    """Watch the cluster's claims and serve how they live, why they wait and what is left.

    Each flag is also an environment variable, CLAIMSCOPE_LEASE_NAME for --lease-name, and a key of the file.
    """
    settings = load_controller(config_file, flags)
    logs.configure(settings.log_level, settings.log_format, sys.stderr)
    from claimscope import controller as wiring

    try:
        asyncio.run(until_signal(wiring.run(settings, os.environ)))
    except wiring.ControllerError as error:
        raise _Failure(str(error)) from error


@cli.command()
@click.option(
    "--profile", default="h100x8", show_default=True, metavar="|".join(config.PROFILES), help="First of three nodes."
)
@click.option("--scenario", metavar="FILE", help="YAML file of what happens to that node's GPUs.")
@click.option("--seconds", type=click.FloatRange(min=1), help="Stop by itself after so long.")
def demo(profile: str, scenario: str | None, seconds: float | None) -> None:
    """Run a simulated cluster with agents and controller, and Prometheus where there is one, until Ctrl-C."""
    if profile not in config.PROFILES:
        raise click.UsageError(f"--profile: unknown value `{profile}`: {did_you_mean(profile, config.PROFILES)}")
    from claimscope import demo as driver

    program = sys.argv[0] if sys.argv[0].endswith("claimscope") else "claimscope"
    shown = driver.run(profile=profile, scenario=scenario, seconds=seconds, say=click.echo, program=program)
    try:
        asyncio.run(until_signal(shown))
    except driver.DemoError as error:
        raise _Failure(str(error)) from error


@cli.group(invoke_without_command=True)
@_setting_options(config.Config)
@click.pass_context
def doctor(context: click.Context, /, config_file: str | None, **flags: str | None) -> None:
    """Check what the agent needs on this node, and say how to cure what is missing.

    `claimscope doctor controller` checks what the controller needs of the cluster.
    """
    if context.invoked_subcommand is not None:
        return
    settings = load(config_file, flags)
    from claimscope.doctor import checks, facts

    _tell_findings(checks.examine(asyncio.run(facts.gather(settings, os.environ))))


@doctor.command("controller")
@_setting_options(config.ControllerConfig)
def doctor_controller(config_file: str | None, **flags: str | None) -> None:
    """Check what the controller needs of the cluster: the API, its rights, its taint policy.

    Rights are those of whoever asks: run it in the controller's pod, or with a kubeconfig of its service account.
    """
    settings = load_controller(config_file, flags)
    from claimscope.doctor import checks, facts

    _tell_findings(checks.examine_controller(asyncio.run(facts.gather_controller(settings, os.environ))))


def _tell_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        _say(finding.line)
    if any(finding.verdict.value == "fail" for finding in findings):
        raise click.exceptions.Exit(1)


@cli.command()
@click.option(
    "--format", "form", type=click.Choice(["md", "json"]), default="md", show_default=True, help="Output form."
)
def metrics(form: str) -> None:
    """List every metric family that the agent and the controller can serve."""
    from claimscope.export import docs

    write = docs.markdown if form == "md" else docs.json
    click.echo(write(docs.all_families(), docs.QUANTITIES), nl=False)


@cli.group()
def explain() -> None:
    """Say in words what the metrics say of one thing."""


_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123 subdomain


def _claim_name(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not slash or _OBJECT_NAME.fullmatch(namespace) is None or _OBJECT_NAME.fullmatch(name) is None:
        raise click.UsageError(f"`{text}` is not NAMESPACE/NAME of a ResourceClaim, such as team-a/train-gpus")
    return namespace, name


def _tell(found: Explanation) -> None:
    """Prints an explanation; a name that no claim has, and for which no pod waits, is a failure."""
    from claimscope.claims.explain import words

    if not found.exists and found.reason is None:
        hint = f": did you mean {' or '.join(found.similar[:3])}?" if found.similar else f"; {found.cure}"
        raise _Failure(found.verdict + hint)
    _say(words(found).rstrip("\n"))


def _say(text: str) -> None:
    """Prints what anybody may have written: nothing in it may steer a terminal."""
    click.echo("".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text))


@explain.command("claim")
@click.argument("claim", metavar="NS/NAME")
@click.option("--controller", "controller_url", metavar="URL", help="Ask this controller, http://127.0.0.1:19401.")
@_setting_options(config.ControllerConfig, "kubeconfig", "api_server_url")
def explain_claim(claim: str, controller_url: str | None, config_file: str | None, **flags: str | None) -> None:
    """Say what a ResourceClaim asks for, what it got, and why it waits.

    Asks a running controller, or without --controller reads the cluster once from the API server.
    """
    namespace, name = _claim_name(claim)
    settings = load_controller(config_file, flags)
    if controller_url is not None:
        from claimscope.web import client

        try:
            found = asyncio.run(client.explanation(controller_url, namespace, name))
        except client.ClientError as error:
            raise _Failure(str(error)) from error
    else:
        logs.configure("error", "text", sys.stderr)
        from claimscope import controller as wiring

        try:
            found = asyncio.run(wiring.explain_once(settings, os.environ, namespace, name))
        except wiring.ControllerError as error:
            raise _Failure(str(error)) from error
    _tell(found)


def _asking(
    config_file: str | None,
    flags: dict[str, str | None],
    ask: Callable[[ApiClient, Notebook], Coroutine[Any, Any, str]],
) -> str:
    """The answer of one question to the API server."""
    settings = load_controller(config_file, flags)
    logs.configure("error", "text", sys.stderr)
    from claimscope import controller as wiring

    async def answer() -> str:
        async with wiring.connected(settings, os.environ) as (api, notebook):
            return await ask(api, notebook)

    try:
        return asyncio.run(answer())
    except wiring.ControllerError as error:
        raise _Failure(str(error)) from error


_CLUSTER = ("kubeconfig", "api_server_url", "namespace", "lease_name")


@explain.command("gpu")
@click.argument("uuid")
@_setting_options(config.ControllerConfig, *_CLUSTER)
def explain_gpu(uuid: str, config_file: str | None, **flags: str | None) -> None:
    """Say why a GPU is tainted, since when, on what evidence, what would clear it, and who holds it."""
    from claimscope.taints import command

    async def ask(api: ApiClient, notebook: Notebook) -> str:
        story = await command.gpu_story(api, notebook, uuid)
        if not story.known:
            raise _Failure(command.story_words(story))
        return command.story_words(story)

    _say(_asking(config_file, flags, ask))


@cli.group()
def taints() -> None:
    """Show and steer the taints that claimscope puts on degraded GPUs."""


@taints.command("list")
@_setting_options(config.ControllerConfig, *_CLUSTER)
def list_taints(config_file: str | None, **flags: str | None) -> None:
    """List claimscope's taints, and those that are wanted and held back."""
    from claimscope.taints import command

    async def ask(api: ApiClient, notebook: Notebook) -> str:
        return command.table(await command.overview(api, notebook))

    _say(_asking(config_file, flags, ask))


_author_option = click.option("--author", default=getpass.getuser, metavar="NAME", help="Who does so.")
_reason_option = click.option("--reason", default="", metavar="TEXT", help="Why, for others to read.")


@taints.command()
@_author_option
@_reason_option
@_setting_options(config.ControllerConfig, *_CLUSTER)
def pause(author: str, reason: str, config_file: str | None, **flags: str | None) -> None:
    """Put up nothing new, from ten seconds on, until it is resumed. What is over is still lifted."""
    from claimscope.taints.notebook import PAUSE

    async def ask(_: ApiClient, notebook: Notebook) -> str:
        await notebook.write({PAUSE: f"{author}: {reason}" if reason else author})
        return "paused: nothing new is put up until `claimscope taints resume`"

    _say(_asking(config_file, flags, ask))


@taints.command()
@_setting_options(config.ControllerConfig, *_CLUSTER)
def resume(config_file: str | None, **flags: str | None) -> None:
    """Go on after a pause."""
    from claimscope.taints.notebook import PAUSE

    async def ask(_: ApiClient, notebook: Notebook) -> str:
        await notebook.write({PAUSE: None})
        return "resumed"

    _say(_asking(config_file, flags, ask))


@taints.command()
@click.argument("names", nargs=-1, metavar="[RULE|UUID]...")
@click.option("--all", "everything", is_flag=True, help="All of them, and the conditions on nodes: to uninstall.")
@_author_option
@_reason_option
@_setting_options(config.ControllerConfig, *_CLUSTER)
def lift(
    names: tuple[str, ...], everything: bool, author: str, reason: str, config_file: str | None, **flags: str | None
) -> None:
    """Delete taints of claimscope. A running controller leaves them away for an hour.

    Nothing that is not claimscope's is touched. With --all stop the controller first, or pause it.
    """
    from claimscope.taints import command

    if bool(names) == everything:
        raise click.UsageError("name what to lift (`claimscope taints list` shows it), or --all")

    async def ask(api: ApiClient, notebook: Notebook) -> str:
        try:
            found = await command.lift(
                api, notebook, names=names, all_of_ours=everything, author=author, reason=reason, wall=time.time()
            )
        except KeyError as error:
            raise _Failure(f"no taint of claimscope is named {error.args[0]} or about such a GPU") from error
        if found.left:
            _say("\n".join(found.done) or "nothing is lifted")
            raise _Failure("\n".join(["not everything is lifted; left are:", *found.left]))
        return "\n".join(found.done) or "there was nothing to lift"

    _say(_asking(config_file, flags, ask))


@taints.command()
@click.argument("what", metavar="UUID|RULE|breaker")
@click.option("--rule", default="", metavar="RULE", help="With a UUID: this health rule alone.")
@click.option(
    "--hours", type=click.FloatRange(0, 720, min_open=True), default=24.0, show_default=True,
    help="With a UUID: for so long.",
)
@_author_option
@_reason_option
@_setting_options(config.ControllerConfig, *_CLUSTER)
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

    _say(_asking(config_file, flags, ask))


@cli.group()
def maintenance() -> None:
    """Take a node's GPUs out of work for maintenance, and give them back."""


def _wall() -> float:
    return SystemClock().wall_ns() / 1e9


def _node_name(text: str) -> str:
    if _OBJECT_NAME.fullmatch(text) is None:
        raise click.UsageError(f"`{text}` is no name of a Node")
    return text


def _maintaining(
    config_file: str | None, flags: dict[str, str | None], ask: Callable[[ApiClient], Coroutine[Any, Any, str]]
) -> None:
    from claimscope.taints.maintenance_command import MaintenanceError

    async def answer(api: ApiClient, _: Notebook) -> str:
        try:
            return await ask(api)
        except MaintenanceError as error:
            raise _Failure(str(error)) from error

    _say(_asking(config_file, flags, answer))


@maintenance.command()
@click.argument("node")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for others to read.")
@click.option("--deadline", metavar="2h|TIME", help="When it is to be said that the node is not ready yet.")
@_author_option
@_setting_options(config.ControllerConfig, *_CLUSTER)
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
@_author_option
@_setting_options(config.ControllerConfig, *_CLUSTER)
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
@_setting_options(config.ControllerConfig, *_CLUSTER)
def list_maintenance(config_file: str | None, **flags: str | None) -> None:
    """List the nodes under maintenance, and what each waits for."""
    from claimscope.taints import maintenance_command

    _maintaining(config_file, flags, maintenance_command.listed)


@cli.group()
def nvml() -> None:
    """Talk to the agent on this node: let NVML go, take it up again, sample faster for a while."""


def _control(socket_path: str | None, request: dict[str, object]) -> None:
    flags = {"control_socket": socket_path}
    path = load(None, flags).control_socket
    from claimscope.nvml import control

    try:
        answer = asyncio.run(control.ask(path, request))
    except control.ControlError as error:
        raise _Failure(str(error)) from error
    click.echo(answer)


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


@cli.group()
def health() -> None:
    """See what the agent on this node finds of its GPUs, and acknowledge what was looked after."""


@health.command("list")
@_socket_option
def list_findings(control_socket: str | None) -> None:
    """List what stands against the devices of this node, worst first, and what would clear it."""
    path = load(None, {"control_socket": control_socket}).control_socket
    from claimscope.health.report import words
    from claimscope.nvml import control

    try:
        found = asyncio.run(control.ask_document(path, {"command": "health"}))
    except control.ControlError as error:
        raise _Failure(str(error)) from error
    click.echo(words(found))


@health.command("ack")
@click.argument("uuid")
@click.argument("rule")
@_socket_option
def acknowledge(uuid: str, rule: str, control_socket: str | None) -> None:
    """End a finding that no reset proves repaired; it comes back only with new evidence."""
    _control(control_socket, {"command": "acknowledge", "uuid": uuid, "rule": rule})


def main() -> None:
    """Entry point: one line and an exit code for every failure, never a traceback for a user's mistake."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"claimscope: {' '.join(error.format_message().split())}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
