"""The ``tats`` program: where it starts, and the one place where errors become messages."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from tatscli import __version__
from tatscli.cli.commands import Commands, Quiet
from tatscli.errors import DISK_HINTS, TatsError

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    # Published options are written with underscores, ours with dashes; both are the same option.
    "token_normalize_func": lambda token: token.replace("_", "-"),
    # Typer's own switches; off, where it would have pydantic read None on every completion.
    "default_map": dict.fromkeys(("help", "install_completion", "show_completion"), False),
}

app = typer.Typer(
    name="tats",
    cls=Commands,
    no_args_is_help=True,
    context_settings=SETTINGS,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, sample and judge video generators built from a video VQGAN and a GPT.",
    epilog="Start with: tats demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tats {__version__}")
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
    from tatscli.cli import console

    console.be_quiet(quiet)
    console.tell_logged()


def main() -> None:
    """Run the program; errors a person can act on become a message and an exit code.

    The code is 2 where options or settings cannot be used, 1 for all other errors, 130 after Ctrl-C
    and 143 after SIGTERM, which clean up in the same way. With ``TATS_DEBUG`` in the environment,
    errors show their traceback.
    """
    debug = bool(os.environ.get("TATS_DEBUG"))
    signal.signal(signal.SIGTERM, _end)
    try:
        app(prog_name="tats")
    except TatsError as error:
        if debug:
            raise
        _stop(error.message, error.hint, error.exit_code)
    except OSError as error:
        if debug or error.errno not in DISK_HINTS:
            raise
        # A write that fails, unlike an open, does not say of which file.
        where = f"{error.filename}: " if error.filename else ""
        _stop(f"{where}{error.strerror}", DISK_HINTS[error.errno], 1)
    finally:
        # What comes while Python ends would show where.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _stop(message: str, hint: str, exit_code: int) -> NoReturn:
    from tatscli.cli import console

    console.error(message, hint)
    sys.exit(exit_code)
