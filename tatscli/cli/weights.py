"""``tats weights``: files from elsewhere."""

from typing import Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json
from tatscli.config.weights import WeightName

app = typer.Typer(no_args_is_help=True, help="Weights from elsewhere, pinned by checksum.")

Name = Annotated[
    WeightName,
    typer.Argument(metavar="NAME", help="Name of the file, as tats weights list shows it."),
]


@app.callback()
def _group() -> None:
    pass


@app.command("list")
def list_(json: Json = False) -> None:
    """Show which files there are, what needs them, and where they belong."""
    from tatscli.app.weights import list_weights

    console.rows(list_weights(), as_json=json)


@app.command()
def fetch(name: Name, json: Json = False) -> None:
    """Download a file and check it."""
    from tatscli.app.weights import fetch_weights

    console.result(fetch_weights(name, console.Terminal()), as_json=json)
