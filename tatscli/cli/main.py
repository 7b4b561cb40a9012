"""The ``tats`` program: its commands, and the one place where errors become messages."""

import os
import sys
from typing import Annotated

import typer

from tatscli import __version__
from tatscli.cli import (
    bench,
    ckpt,
    config,
    console,
    data,
    demo,
    doctor,
    encode,
    evaluate,
    gpt,
    plan,
    port,
    report,
    sample,
    tokens,
    vqgan,
    weights,
)
from tatscli.cli.options import Quiet, UsageError, with_quiet
from tatscli.errors import DISK_HINTS, TatsError

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    # Published options are written with underscores, ours with dashes; both are the same option.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}

app = typer.Typer(
    name="tats",
    no_args_is_help=True,
    context_settings=SETTINGS,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, sample and judge video generators built from a video VQGAN and a GPT.",
    epilog="Start with: tats demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        console.text(f"tats {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_version, is_eager=True, help="Show the version."
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    console.be_quiet(quiet)


# Apps without a name add their commands to this one, in the order of the help page.
app.add_typer(demo.app)
app.add_typer(doctor.app)
app.add_typer(data.app, name="data", rich_help_panel="Pipeline")
app.add_typer(vqgan.app, name="vqgan", rich_help_panel="Pipeline")
app.add_typer(encode.app)
app.add_typer(tokens.app, name="tokens", rich_help_panel="Pipeline")
app.add_typer(gpt.app, name="gpt", rich_help_panel="Pipeline")
app.add_typer(sample.app, name="sample", rich_help_panel="Pipeline")
app.add_typer(evaluate.app, name="eval", rich_help_panel="Pipeline")
app.add_typer(report.app)
app.add_typer(port.app)
app.add_typer(plan.app, name="plan", rich_help_panel="Housekeeping")
app.add_typer(bench.app)
app.add_typer(config.app, name="config", rich_help_panel="Housekeeping")
app.add_typer(ckpt.app, name="ckpt", rich_help_panel="Housekeeping")
app.add_typer(weights.app, name="weights", rich_help_panel="Housekeeping")
with_quiet(app)


def main() -> None:
    """Run the program; errors a person can act on become a message and an exit code.

    The code is 2 where options or settings cannot be used, 1 for all other errors, and 130 after
    Ctrl-C. With ``TATS_DEBUG`` in the environment, errors show their traceback.
    """
    debug = bool(os.environ.get("TATS_DEBUG"))
    try:
        app(prog_name="tats")
    except TatsError as error:
        if debug:
            raise
        console.error(error.message, error.hint)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        if debug or error.errno not in DISK_HINTS:
            raise
        # A write that fails, unlike an open, does not say of which file.
        where = f"{error.filename}: " if error.filename else ""
        console.error(f"{where}{error.strerror}", DISK_HINTS[error.errno])
        sys.exit(1)
