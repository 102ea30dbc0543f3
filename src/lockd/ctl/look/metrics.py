"""`lockctl metrics`: what the daemon counts."""

import click

from lockd.client.blocking import connect


@click.command(short_help="Print what the daemon counts, for Prometheus.")
@click.pass_obj
def metrics(socket: str | None, /) -> None:
    """Print what the daemon counts, in the text format of OpenMetrics."""
    with connect(socket) as client:
        click.echo(client.metrics(), nl=False)
