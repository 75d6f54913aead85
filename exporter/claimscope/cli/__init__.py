"""Which commands are there, and how does each failure of one end?

The only reader of arguments and environment: it builds the configuration and runs one part.

Exit codes: 0 done, 1 it could not be done, 2 the command line or configuration is wrong. Each failure is one line
on standard error.
"""

from __future__ import annotations

import sys

import click

from claimscope.cli import doctor, explain, maintenance, metrics, node, run, taints


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    commands=(
        run.agent, run.controller, run.demo, doctor.doctor, metrics.metrics, explain.explain, taints.taints,
        maintenance.maintenance, node.nvml, node.health,
    ),
)
@click.version_option(package_name="claimscope", message="claimscope %(version)s")
def cli() -> None:
    """GPU telemetry and accounting by Kubernetes ResourceClaim."""


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
