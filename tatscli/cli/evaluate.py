"""``tats eval``: judging samples."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.evaluate import FVDConfig

app = typer.Typer(no_args_is_help=True, help="Distances between sets of videos.")


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats eval fvd DIR samples/short")
@configured()
def fvd(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Folder of real videos or frame folders.")
    ],
    fake: Annotated[
        Path, typer.Argument(metavar="FAKE", help="Folder of samples, as tats sample wrote it.")
    ],
    config: FVDConfig,
    json: Json = False,
) -> None:
    """Fréchet and kernel video distance between two folders."""
    from tatscli.app.evaluate import evaluate_fvd

    console.result(evaluate_fvd(real, fake, config, console.Terminal()), as_json=json)
