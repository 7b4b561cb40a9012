"""``tats ckpt``: checkpoint files."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import complete, console
from tatscli.cli.options import Json

app = typer.Typer(
    name="ckpt", no_args_is_help=True, help="Checkpoint files: are they whole, what do they hold."
)


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats ckpt verify runs/vqgan")
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Checkpoints, and run folders: all of theirs.",
            autocompletion=complete.checkpoints,
        ),
    ],
    json: Json = False,
) -> None:
    """Read every byte of checkpoints, and say which are damaged.

    Nothing in a file is run. The exit code is 1 if any is damaged.
    """
    from tatscli.app.ckpt import verify_checkpoints

    verdicts = verify_checkpoints(paths, console.Terminal())
    console.rows(verdicts, as_json=json)
    if not all(verdict.intact for verdict in verdicts):
        raise typer.Exit(1)


@app.command(epilog="Example: tats ckpt info runs/gpt")
def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Run folder, checkpoint or published file.",
            autocompletion=complete.checkpoints,
        ),
    ],
    json: Json = False,
) -> None:
    """Say what a checkpoint holds, and whether a run can go on from it."""
    from tatscli.app.ckpt import describe_checkpoint

    console.result(describe_checkpoint(path), as_json=json)
