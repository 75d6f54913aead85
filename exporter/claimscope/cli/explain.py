"""Why does a claim wait, and why is a GPU tainted?"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from claimscope import config, logs
from claimscope.cli.cluster import OBJECT_NAME, asking, cluster_options
from claimscope.cli.options import load_controller, setting_options
from claimscope.cli.output import Failure, say

if TYPE_CHECKING:
    from claimscope.claims.explain import Explanation
    from claimscope.kube.api import ApiClient
    from claimscope.taints.notebook import Notebook

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750 2.1


@click.group()
def explain() -> None:
    """Say in words what the metrics say of one thing."""


@explain.command("claim")
@click.argument("claim", metavar="NS/NAME")
@click.option("--controller", "controller_url", metavar="URL", help="Ask this controller, http://127.0.0.1:19401.")
@click.option(
    "--token-file", metavar="FILE",
    help="With --controller: a Kubernetes token for one that reviews its callers, as `kubectl create token` makes it.",
)
@click.option("--ca-file", metavar="FILE", help="With --controller https://...: whom to trust, PEM.")
@click.option("--cert-file", metavar="FILE", help="With --controller https://...: a client certificate, PEM.")
@click.option("--key-file", metavar="FILE", help="The key of --cert-file, where it is not in the same file.")
@click.option("--user", metavar="NAME", help="With --controller: one of its basic_auth_users.")
@click.option("--password-file", metavar="FILE", help="The password of --user; without it, it is asked for.")
@setting_options(config.ControllerConfig, "kubeconfig", "api_server_url")
def explain_claim(
    claim: str, controller_url: str | None, token_file: str | None, ca_file: str | None, cert_file: str | None,
    key_file: str | None, user: str | None, password_file: str | None, config_file: str | None, **flags: str | None,
) -> None:
    """Say what a ResourceClaim asks for, what it got, and why it waits.

    Asks a running controller, or without --controller reads the cluster once from the API server.
    """
    namespace, name = _claim_name(claim)
    settings = load_controller(config_file, flags)
    named = {
        "--token-file": token_file, "--ca-file": ca_file, "--cert-file": cert_file, "--key-file": key_file,
        "--user": user, "--password-file": password_file,
    }  # fmt: skip
    flag = next((flag for flag, value in named.items() if value is not None), None)
    if flag is not None and controller_url is None:
        raise click.UsageError(f"{flag} is for --controller; the API server is asked as --kubeconfig says")
    for flag, other in (("--key-file", "--cert-file"), ("--password-file", "--user")):
        if named[flag] is not None and named[other] is None:
            raise click.UsageError(f"{flag} is of no use without {other}")
    if token_file is not None and user is not None:
        raise click.UsageError("--token-file and --user are two ways to say who you are: leave one of them out")
    if controller_url is not None:
        from claimscope.web import client

        token = None if token_file is None else _token(token_file)
        password_of = None if user is None else (user, _password(password_file))
        try:
            tls = client.tls_context(ca_file, cert_file, key_file) if controller_url.startswith("https:") else None
            asked = client.explanation(controller_url, namespace, name, token, tls=tls, password_of=password_of)
            found = asyncio.run(asked)
        except client.ClientError as error:
            raise Failure(str(error)) from error
    else:
        logs.configure("error", "text", sys.stderr)
        from claimscope import controller as wiring

        try:
            found = asyncio.run(wiring.explain_once(settings, os.environ, namespace, name))
        except wiring.ControllerError as error:
            raise Failure(str(error)) from error
    _tell(found)


def _claim_name(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not slash or OBJECT_NAME.fullmatch(namespace) is None or OBJECT_NAME.fullmatch(name) is None:
        raise click.UsageError(f"`{text}` is not NAMESPACE/NAME of a ResourceClaim, such as team-a/train-gpus")
    return namespace, name


def _token(path: str) -> str:
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII text"
        raise click.UsageError(f"--token-file {path}: {reason}") from error
    if _TOKEN.fullmatch(token) is None:
        raise click.UsageError(f"--token-file {path}: holds no token, a line as `kubectl create token` prints it")
    return token


def _password(path: str | None) -> str:
    if path is None:
        asked: str = click.prompt("Password", hide_input=True, err=True)
        return asked
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise click.UsageError(f"--password-file {path}: {reason}") from error


def _tell(found: Explanation) -> None:
    """Prints an explanation; a name that no claim has, and for which no pod waits, is a failure."""
    from claimscope.claims.explain import words

    if not found.exists and found.reason is None:
        hint = f": did you mean {' or '.join(found.similar[:3])}?" if found.similar else f"; {found.cure}"
        raise Failure(found.verdict + hint)
    say(words(found).rstrip("\n"))


@explain.command("gpu")
@click.argument("uuid")
@cluster_options
def explain_gpu(uuid: str, config_file: str | None, **flags: str | None) -> None:
    """Say why a GPU is tainted, since when, on what evidence, what would clear it, and who holds it."""
    from claimscope.taints import command

    async def ask(api: ApiClient, notebook: Notebook) -> str:
        story = await command.gpu_story(api, notebook, uuid)
        if not story.known:
            raise Failure(command.story_words(story))
        return command.story_words(story)

    say(asking(config_file, flags, ask))
