"""How does a command tell what it found, and that it could not be done?"""

from __future__ import annotations

import click


class Failure(click.ClickException):
    """The one line that says why it could not be done."""

    exit_code = 1


def say(text: str) -> None:
    """Prints what anybody may have written: nothing in it may steer a terminal."""
    click.echo("".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text))
