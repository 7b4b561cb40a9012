"""``tats config``: presets, and what settings come to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tatscli.cli import console
from tatscli.cli.options import ConfigFile, Configured, Json, UsageError
from tatscli.config.files import compat_names, dump_origins, origins, preset_names, presets
from tatscli.errors import ConfigError

app = typer.Typer(name="config", no_args_is_help=True, help="Presets, and what settings come to.")


@app.callback()
def _group() -> None:
    pass


@app.command("list", epilog="Example: tats config list")
def list_(json: Json = False) -> None:
    """Show which presets there are, and which command takes each."""
    from tatscli.app.presets import list_presets

    console.rows(list_presets(), as_json=json)


def _named(incomplete: str) -> list[str]:
    names = [f"{preset.kind}-{preset.name}" for preset in presets()]
    return [name for name in names if name.startswith(incomplete)]


@app.command(epilog="Example: tats config copy vqgan-tiny my.yaml")
def copy(
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET", help="As tats config list shows it.", autocompletion=_named
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file to write.")],
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Replace a file that is there.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a preset to a file, to be changed and given back by --config."""
    from tatscli.app.presets import copy_preset

    console.result(copy_preset(preset, file, force=force), as_json=json)


def _next_word(invocation: typer.Context, incomplete: str) -> list[str]:
    typed = tuple(invocation.params.get("command") or ())
    known = dict(_commands(invocation.find_root().command, ()))
    words = {path[len(typed)] for path in known if path[: len(typed)] == typed != path}
    return sorted(word for word in words if word.startswith(incomplete))


@app.command(epilog="Example: tats config show vqgan --preset tiny")
def show(
    invocation: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help="Such as vqgan train, or sample long; of vqgan alone, train.",
            autocompletion=_next_word,
        ),
    ],
    preset: Annotated[
        str | None, typer.Option("--preset", help="Ready-made settings of that command.")
    ] = None,
    compat: Annotated[
        str | None, typer.Option("--compat", help="Numerics of published code of that command.")
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show every setting of a command, and whether preset, file or default decided it.

    What is printed can be used as a config file. To see what further options of a training do, add
    --dry-run to it.
    """
    words, target = _target(invocation, command)
    try:
        layers = target.layers(
            _known(preset, "--preset", preset_names(target.presets), words),
            _known(compat, "--compat", compat_names(target.compat), words),
            config,
        )
        settings = origins(target.model, layers)
    except ConfigError as error:
        raise UsageError(error.message, error.hint) from error
    if json:
        plain = [
            {"setting": ".".join(item.key), "value": item.value, "from": item.place}
            for item in settings
        ]
        console.rows(plain, as_json=True)
    else:
        console.text(dump_origins(settings))


def _target(invocation: typer.Context, words: list[str]) -> tuple[str, Configured]:
    """The command that is meant, and what it is configured by."""
    known = dict(_commands(invocation.find_root().command, ()))
    for path in (tuple(words), (*words, "train")):
        if path in known:
            return " ".join(path), known[path]
    names = ", ".join(" ".join(path) for path in known)
    raise UsageError(f"'{' '.join(words)}' is no command with settings", f"these have: {names}")


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Configured]]:
    for name, sub in getattr(command, "commands", {}).items():
        if found := getattr(sub.callback, "configured", None):
            yield (*path, name), found
        yield from _commands(sub, (*path, name))


def _known(name: str | None, option: str, names: tuple[str, ...], words: str) -> str | None:
    if name is not None and name not in names:
        offered = f"it takes {', '.join(names)}" if names else "leave it out"
        raise UsageError(f"{option} {name}, but tats {words} has no such one", offered)
    return name
