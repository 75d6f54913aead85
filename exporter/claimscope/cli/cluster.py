"""How does a command put one question to the API server?

With the rights of whoever runs it: in a pod its service account's, with a kubeconfig that user's.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from claimscope import config, logs
from claimscope.cli.options import load_controller, setting_options
from claimscope.cli.output import Failure

if TYPE_CHECKING:
    from claimscope.kube.api import ApiClient
    from claimscope.taints.notebook import Notebook

OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123 subdomain

cluster_options = setting_options(config.ControllerConfig, "kubeconfig", "api_server_url", "namespace", "lease_name")
author_option = click.option("--author", default=getpass.getuser, metavar="NAME", help="Who does so.")
reason_option = click.option("--reason", default="", metavar="TEXT", help="Why, for others to read.")


def asking(
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
        raise Failure(str(error)) from error
