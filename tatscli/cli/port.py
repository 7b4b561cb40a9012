"""``tats import`` and ``tats export``: checkpoints of the published TATS code."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import complete, console
from tatscli.cli.options import Json, configured
from tatscli.config.port import ExportConfig, ImportConfig

app = typer.Typer()


@app.command("import", epilog="Example: tats import ucf101_gpt.ckpt --vqgan ucf101_vqgan.ckpt")
@configured()
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="CKPT", help="Checkpoint that the published TATS code wrote.")
    ],
    config: ImportConfig,
    json: Json = False,
) -> None:
    """Turn a checkpoint of the published TATS code into one of tats, and check it.

    The folder written can be given to --vqgan, --gpt and --init, as can the published file itself.
    Nothing in the file is run, and no old version of anything is needed.
    """
    from tatscli.app.port import import_published

    console.result(import_published(file, config, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats export runs/vqgan --out vqgan.ckpt")
@configured()
def export(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT",
            help="Run folder or checkpoint of tats.",
            autocompletion=complete.checkpoints,
        ),
    ],
    config: ExportConfig,
    json: Json = False,
) -> None:
    """Write a model as a checkpoint that the published TATS code loads.

    What that layout has no place for is kept in the file, so tats import gives the same model back.
    """
    from tatscli.app.port import export_published

    console.result(export_published(model, config, console.Terminal()), as_json=json)
