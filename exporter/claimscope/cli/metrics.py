"""Which metric families can be served?"""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--format", "form", type=click.Choice(["md", "json"]), default="md", show_default=True, help="Output form."
)
def metrics(form: str) -> None:
    """List every metric family that the agent and the controller can serve."""
    from claimscope.export import docs

    write = docs.markdown if form == "md" else docs.json
    click.echo(write(docs.all_families(), docs.QUANTITIES), nl=False)
