"""``tats data``: datasets."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.check import CheckConfig
from tatscli.config.synth import SynthConfig
from tatscli.errors import DataError

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
    from tatscli.app.data import check_data, length_hint

    found = check_data(folder, config, console.Terminal())
    console.result(found, as_json=json)
    if not found.training_clips:
        raise DataError(
            f"{folder}: no training video is long enough for a clip of "
            f"{config.sequence_length} frames",
            length_hint(found.longest_clip_in_both_splits),
        )
