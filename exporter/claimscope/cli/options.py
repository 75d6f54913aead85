"""How do settings become flags, and what do file, environment and flags together say?"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from claimscope import config
from claimscope.yamlfile import ConfigError, read_file

Command = TypeVar("Command", bound=Callable[..., Any])

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def setting_options(of: type[config.AnyConfig], *keys: str) -> Callable[[Command], Command]:
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


def load_agent(config_file: str | None, flags: dict[str, str | None]) -> config.Config:
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
        text = "" if name is None else read_file(Path(name)).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise click.UsageError(f"configuration file {name}: {reason}") from error
    except ConfigError as error:
        raise click.UsageError(f"configuration file {error}") from error
    try:
        return config.build(
            config.from_file(text, name or "", of),
            config.from_environment(os.environ, of),
            config.from_flags(flags, of),
            of=of,
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
