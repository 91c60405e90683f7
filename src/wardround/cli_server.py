"""`wardround server`: a thin, lazy table of the commands that run a consortium's server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

server_app = typer.Typer(help="The consortium's server.", no_args_is_help=True)


@server_app.callback()
def _group() -> None:
    """Keep `start` a command of its own, however few there are."""


@server_app.command("start")
def server_start(
    folder: Annotated[Path, typer.Argument(help="The server's folder, as consortium init made it.")],
    listen: Annotated[
        Optional[str],  # noqa: UP045 - typer reads Optional
        typer.Option(help="HOST:PORT to listen on, where it is not the address that sites know."),
    ] = None,
    metrics: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(
            envvar="WARDROUND_METRICS",
            help="Port of this machine's loopback for Prometheus, or off; 9445 where it is free.",
        ),
    ] = None,
) -> None:
    """Run the server: its listener, the queue of runs, the operator's socket. Ends on SIGTERM."""
    from wardround.server.start_command import start_server

    start_server(folder, listen, metrics)


@server_app.command("aggregator-key")
def server_aggregator_key(
    folder: Annotated[Path, typer.Argument(help="The server's folder, on the server's machine.")],
    new: Annotated[
        bool,
        typer.Option("--new", help="Destroy the key that is there: nothing sealed to it opens any more."),
    ] = False,
) -> None:
    """Make the server the trusted aggregator, once; then show the key that plan and sites have to name."""
    from wardround.server.consortium.aggregator import show_aggregator_key

    show_aggregator_key(folder, new=new)
