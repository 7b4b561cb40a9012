"""The commands by name; a module is imported when one of its commands is asked for.

Importing them all takes longer than all else that help, completion and the error of a mistyped
name do, and these need nothing but the names and the first lines of help, which are here.
"""

import functools
import inspect
import re
from collections import UserDict
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer._click.exceptions import UsageError  # what Typer raises, which has no public name
from typer.core import TyperCommand, TyperGroup

Quiet = Annotated[
    bool,
    typer.Option("--quiet", metavar="", help="No progress and no notes; warnings and errors stay."),
]


class Listed(NamedTuple):
    """A command, or a group of commands, as the help page lists it.

    Attributes:
        name: What is typed.
        panel: Heading in the help page.
        line: What it is for: the first paragraph of its help.
        module: Where it is defined, if that is called otherwise.
    """

    name: str
    panel: str
    line: str
    module: str = ""


START, PIPELINE, HOUSEKEEPING = "Start here", "Pipeline", "Housekeeping"

COMMANDS = (
    Listed("demo", START, "Run the whole pipeline on generated videos, on a CPU, in minutes."),
    Listed("doctor", START, "Look for what is wrong with this machine, before a run finds out."),
    Listed("data", PIPELINE, "Make and check datasets."),
    Listed("vqgan", PIPELINE, "Stage one: clips to a small grid of codes."),
    Listed(
        "encode",
        PIPELINE,
        "Turn a dataset of videos into tokens, once, so that GPT training reads no video.",
    ),
    Listed("decode", PIPELINE, "Turn tokens back into videos.", "encode"),
    Listed("tokens", PIPELINE, "Token datasets: look into, check, merge and convert them."),
    Listed("gpt", PIPELINE, "Stage two: learn to write grids of codes."),
    Listed("sample", PIPELINE, "New videos, of training length or of any length."),
    Listed("eval", PIPELINE, "How good samples are.", "evaluate"),
    Listed("report", PIPELINE, "Show runs and samples on one page that needs nothing beside it."),
    Listed(
        "import",
        HOUSEKEEPING,
        "Turn a checkpoint of the published TATS code into one of tats, and check it.",
        "port",
    ),
    Listed(
        "export",
        HOUSEKEEPING,
        "Write a model as a checkpoint that the published TATS code loads.",
        "port",
    ),
    Listed("plan", HOUSEKEEPING, "What a command will need, before it runs."),
    Listed(
        "bench",
        HOUSEKEEPING,
        "Measure how fast each stage is on this machine, against the machine's own limits.",
    ),
    Listed("config", HOUSEKEEPING, "Presets, and what settings come to."),
    Listed("ckpt", HOUSEKEEPING, "Checkpoint files: are they whole, what do they hold."),
    Listed("weights", HOUSEKEEPING, "Weights from elsewhere, pinned by checksum."),
)
"""All of them, in the order of the help page."""


class Commands(TyperGroup):
    """The group of all commands: shows them as listed, and imports the one that is meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Imported({command.name: command for command in COMMANDS})
        self._shown = {
            name: TyperCommand(name, help=line, rich_help_panel=panel)
            for name, panel, line, _ in COMMANDS
        }

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of the help page."""
        return list(self._shown)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """What help and completion show of a command."""
        return self._shown.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Name of the command that is meant, the command itself, and its arguments."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else self.commands[name], rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is meant; a usage error says what may have been meant instead."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            error.message = _advised(error)
            raise


def _advised(error: UsageError) -> str:
    """The message of a usage error, and the choice, command or option that is near to it."""
    message = error.message.removeprefix("Value error, ")
    if wrong := re.fullmatch(r"'(.*?)' is not one of (.*)\.", message):
        near = get_close_matches(wrong[1], re.findall("'(.*?)'", wrong[2]), 1)
        return f"{message} Did you mean '{near[0]}'?" if near else message
    if (context := error.ctx) is None:
        return message
    group = context.command
    if isinstance(group, TyperGroup) and re.fullmatch("No such command '.*'[.]", message):
        return f"{message} There are {', '.join(group.list_commands(context))}."
    extra = re.fullmatch(r"Got unexpected extra argument\(s\) \((.*)\)", message)
    if extra and "data" in context.params and context.params["data"] is None:
        return f"{message}. Did you mean --data {extra[1]}?"
    return message


class _Imported(UserDict[str, Any]):
    """Listed commands by name; one that is looked at is imported."""

    def __getitem__(self, name: str) -> Any:
        return defined_in(super().__getitem__(name).module or name)[name]


@functools.cache
def defined_in(module: str) -> Mapping[str, Any]:
    """The commands and groups of a module by name, each command with the option to be quiet."""
    app = typer.Typer(rich_markup_mode="rich")
    # The commands of an app without a name stand by themselves.
    app.add_typer(import_module(f"tatscli.cli.{module}").app)
    _prepare(app)
    return typer.main.get_group(app).commands


def _prepare(app: typer.Typer) -> None:
    """Give every command of an app, and of the apps in it, what all commands have."""
    for command in app.registered_commands:
        assert command.callback is not None
        command.callback = _prepared(command.callback)
        # Typer keeps the line breaks of all paragraphs but the first.
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.callback.__doc__ = "\n\n".join(" ".join(text.split()) for text in paragraphs)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        _prepare(group.typer_instance)


def _prepared(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the option to be quiet, which takes no empty path."""
    from tatscli.cli import console
    from tatscli.cli.options import refuse_empty_paths

    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(quiet: bool, **values: Any) -> None:
        if quiet:
            console.be_quiet(True)
        refuse_empty_paths(signature)
        command(**values)

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    last = inspect.Parameter(
        "quiet", inspect.Parameter.KEYWORD_ONLY, annotation=Quiet, default=False
    )
    run.__signature__ = inspect.Signature([*parameters, last])  # type: ignore[attr-defined]
    return run
