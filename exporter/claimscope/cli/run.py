"""How are the agent, the controller and the demonstration started?"""

from __future__ import annotations

import asyncio
import os
import sys

import click

from claimscope import config, logs
from claimscope.cli.options import load_agent, load_controller, setting_options
from claimscope.cli.output import Failure
from claimscope.cli.signals import until_signal
from claimscope.yamlfile import did_you_mean


@click.command()
@setting_options(config.Config)
def agent(config_file: str | None, **flags: str | None) -> None:
    """Sample this node's GPUs and serve them, and who holds them, to Prometheus.

    Each flag is also an environment variable, CLAIMSCOPE_SAMPLING_HZ for --sampling-hz, and a key of the file.
    """
    settings = load_agent(config_file, flags)
    logs.configure(settings.log_level, settings.log_format, sys.stderr)
    from claimscope.agent import wiring
    from claimscope.agent.begin import AgentError
    from claimscope.sim.library import SimulatorError
    from claimscope.sim.scenario import ScenarioError
    from claimscope.web.serving.webconfig import WebConfigError

    try:
        asyncio.run(until_signal(wiring.run(settings, os.environ)))
    except (ScenarioError, WebConfigError) as error:
        raise click.UsageError(str(error)) from error
    except (AgentError, SimulatorError) as error:
        raise Failure(str(error)) from error


@click.command()
@setting_options(config.ControllerConfig)
def controller(config_file: str | None, **flags: str | None) -> None:
    """Watch the cluster's claims and serve how they live, why they wait and what is left.

    Each flag is also an environment variable, CLAIMSCOPE_LEASE_NAME for --lease-name, and a key of the file.
    """
    settings = load_controller(config_file, flags)
    logs.configure(settings.log_level, settings.log_format, sys.stderr)
    from claimscope import controller as wiring
    from claimscope.web.serving.webconfig import WebConfigError

    try:
        asyncio.run(until_signal(wiring.run(settings, os.environ)))
    except WebConfigError as error:
        raise click.UsageError(str(error)) from error
    except wiring.ControllerError as error:
        raise Failure(str(error)) from error


@click.command()
@click.option(
    "--profile", default="h100x8", show_default=True, metavar="|".join(config.PROFILES), help="First of three nodes."
)
@click.option("--scenario", metavar="FILE", help="YAML file of what happens to that node's GPUs.")
@click.option("--seconds", type=click.FloatRange(min=1), help="Stop by itself after so long.")
@click.option(
    "--listen-host", type=click.Choice(["127.0.0.1", "0.0.0.0"]), default="127.0.0.1", show_default=True,  # noqa: S104
    help="Where agents and controller listen; 0.0.0.0 in a container, so that others reach them.",
)
def demo(profile: str, scenario: str | None, seconds: float | None, listen_host: str) -> None:
    """Run a simulated cluster with agents and controller, and Prometheus where there is one, until Ctrl-C."""
    if profile not in config.PROFILES:
        raise click.UsageError(f"--profile: unknown value `{profile}`: {did_you_mean(profile, config.PROFILES)}")
    from claimscope import demo as driver

    program = sys.argv[0] if sys.argv[0].endswith("claimscope") else "claimscope"
    shown = driver.run(
        profile=profile, scenario=scenario, seconds=seconds, say=click.echo, program=program, listen_host=listen_host
    )
    try:
        asyncio.run(until_signal(shown))
    except driver.DemoError as error:
        raise Failure(str(error)) from error
