"""What is missing on this node, or in the cluster, and how is it cured?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from claimscope import config
from claimscope.cli.options import load_agent, load_controller, setting_options
from claimscope.cli.output import say

if TYPE_CHECKING:
    from claimscope.doctor.findings import Finding


@click.group(invoke_without_command=True)
@setting_options(config.Config)
@click.pass_context
def doctor(context: click.Context, /, config_file: str | None, **flags: str | None) -> None:
    """Check what the agent needs on this node, and say how to cure what is missing.

    `claimscope doctor controller` checks what the controller needs of the cluster.
    """
    if context.invoked_subcommand is not None:
        return
    settings = load_agent(config_file, flags)
    from claimscope.doctor import checks, facts

    _tell_findings(checks.examine(asyncio.run(facts.gather(settings, os.environ))))


@doctor.command("controller")
@setting_options(config.ControllerConfig)
def doctor_controller(config_file: str | None, **flags: str | None) -> None:
    """Check what the controller needs of the cluster: the API, its rights, its taint policy.

    Rights are those of whoever asks: run it in the controller's pod, or with a kubeconfig of its service account.
    """
    settings = load_controller(config_file, flags)
    from claimscope.doctor import checks, facts

    _tell_findings(checks.examine_controller(asyncio.run(facts.gather_controller(settings, os.environ))))


def _tell_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        say(finding.line)
    if any(finding.verdict.value == "fail" for finding in findings):
        raise click.exceptions.Exit(1)
