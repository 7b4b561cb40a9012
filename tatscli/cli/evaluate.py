"""``tats eval``: judging samples."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import complete, console
from tatscli.cli.options import Json, configured
from tatscli.config.evaluate import ClassesConfig, FVDConfig

app = typer.Typer(no_args_is_help=True, help="How good samples are.")


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
        Path,
        typer.Argument(
            metavar="FAKE",
            help="Folder of samples, as tats sample wrote it.",
            autocompletion=complete.samples,
        ),
    ],
    config: FVDConfig,
    json: Json = False,
) -> None:
    """Fréchet and kernel video distance between two folders."""
    from tatscli.app.evaluate import evaluate_fvd

    console.result(evaluate_fvd(real, fake, config, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats eval classes DIR samples/short")
@configured()
def classes(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Dataset of real videos with classes.")
    ],
    fake: Annotated[
        Path,
        typer.Argument(
            metavar="FAKE",
            help="Folder of samples, as tats sample wrote it.",
            autocompletion=complete.samples,
        ),
    ],
    config: ClassesConfig,
    json: Json = False,
) -> None:
    """How often samples show the class they were asked for, as a small probe reads them.

    The probe learns from training videos and is tried on held-out ones: its share there says how
    far it can be trusted. What was asked for is --label, else the one class that the text names,
    else the class of the video that was given with --context.
    """
    from tatscli.app.recognise import judge_classes

    console.result(judge_classes(real, fake, config, console.Terminal()), as_json=json)
