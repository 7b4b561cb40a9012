"""``tats data``: datasets."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.check import CheckConfig
from tatscli.config.synth import SynthConfig

app = typer.Typer(name="data", no_args_is_help=True, help="Make and check datasets.")


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats data synth shapes --size 64")
@configured()
def synth(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; must be empty or new.")
    ],
    config: SynthConfig,
    json: Json = False,
) -> None:
    """Write a synthetic dataset: real video files of moving shapes in class folders.

    Captions lie beside the videos, and each has a tone that follows the height of its shape.
    """
    from tatscli.app.data import synthesise

    console.result(synthesise(folder, config, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats data check DIR")
@configured()
def check(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder of videos or frame folders, manifest, or HDF5 file."
        ),
    ],
    config: CheckConfig,
    json: Json = False,
) -> None:
    """Decode and count everything; name what is corrupt, too short, double or in both splits."""
    from tatscli.app.ahead import require_data

    require_data(folder)
    from tatscli.app.data import check_data, require_clips

    found = check_data(folder, config, console.Terminal())
    console.result(found, as_json=json)
    require_clips(found, config)
