"""``tats weights``: files from elsewhere."""

from typing import Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json
from tatscli.config.weights import FetchedName, WeightName
from tatscli.errors import CheckpointError

app = typer.Typer(
    name="weights", no_args_is_help=True, help="Weights from elsewhere, pinned by checksum."
)


@app.callback()
def _group() -> None:
    pass


@app.command("list", epilog="Example: tats weights list")
def list_(json: Json = False) -> None:
    """Show which files there are, what needs them, and what they are checked by."""
    from tatscli.app.weights import list_weights

    found = list_weights()
    console.rows(found, as_json=json, only_json=["path"])
    console.note(f"fetched files lie in {found[0].path.parent}")


@app.command(epilog="Example: tats weights fetch i3d")
def fetch(
    name: Annotated[
        FetchedName,
        typer.Argument(metavar="NAME", help="Name of the file, as tats weights list shows it."),
    ],
    json: Json = False,
) -> None:
    """Download a file and check it; a download that was interrupted is continued."""
    from tatscli.app.weights import fetch_weights

    console.result(fetch_weights(name, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats weights verify i3d")
def verify(
    names: Annotated[
        list[WeightName] | None,
        typer.Argument(metavar="[NAME]...", help="Files to look at; all if none is named."),
    ] = None,
    json: Json = False,
) -> None:
    """Hash files again; of I3D, say what a file holds that is not the published one.

    An I3D file that was saved anew is right if each of its 230 tensors has the published checksum.
    """
    from tatscli.app.weights import verify_weights

    found = verify_weights(names or (), console.Terminal())
    console.rows(found, as_json=json)
    wrong = [check.name for check in found if check.status == "wrong checksum"]
    absent = [check.name for check in found if names and check.status == "absent"]
    if wrong or absent:
        parts = {"wrong": wrong, "absent": absent}
        raise CheckpointError(
            "; ".join(f"{what}: {', '.join(which)}" for what, which in parts.items() if which),
            "tats weights fetch NAME brings or replaces a file",
        )
