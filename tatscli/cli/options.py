"""Typer options generated from config models, so that no setting is declared twice."""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tatscli.cli import complete, console
from tatscli.config.base import FILE_ONLY, UNSET, Config, Obsolete, Published
from tatscli.config.files import (
    Key,
    Layer,
    compat_names,
    flag,
    preset_names,
    read_compat,
    read_layer,
    read_preset,
    resolve,
    sections,
)
from tatscli.errors import ConfigError

SCALARS = (bool, int, float, str, Path)
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file of settings; options override it."),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print the result as JSON.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        help="Run folder to continue exactly, its settings are the base; or auto: the run in --out "
        "if it has saved, else a new one.",
        autocompletion=complete.runs,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", metavar="", help="Print the resolved settings as YAML and stop; touch nothing."
    ),
]


class UsageError(ConfigError):
    """Settings that cannot be used, found before anything started."""

    exit_code = 2


class Setting(NamedTuple):
    """One leaf of a config tree.

    Attributes:
        key: Where it is in the tree.
        field: Its type, default, bounds and published names.
        text: Its help text.
        panel: Heading in the help page.
    """

    key: Key
    field: FieldInfo
    text: str
    panel: str | None

    @property
    def name(self) -> str:
        """Name of the leaf, unique in its command."""
        return self.key[-1]

    @property
    def aliases(self) -> list[Published]:
        """Hidden options that set this leaf too: the published ones, and the no of a switch."""
        no = [Published(f"no_{self.name}", value=False)] if self.field.annotation is bool else []
        return no + [item for item in self.field.metadata if isinstance(item, Published)]

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The option of this leaf, and its hidden ones."""
        kind = option_type(self.field.annotation, flag(self.key))
        option = typer.Option(
            flag(self.key),
            metavar=_metavar(kind),
            help=self._help(),
            show_default=False,
            rich_help_panel=self.panel,
            autocompletion=complete.BY_NAME.get(self.name),
        )
        default = None if self.field.is_required() else self.field.default
        yield _keyword(self.name, kind, option, default)
        for alias in self.aliases:
            hidden = typer.Option(flag((alias.name,)), hidden=True)
            if alias.is_flag:
                yield _keyword(f"alias_{alias.name}", bool, hidden, False)
            else:
                taken: Any = kind
                if alias.choices:
                    taken = Literal.__getitem__(tuple(alias.choices))
                yield _keyword(f"alias_{alias.name}", taken | None, hidden, None)

    def _help(self) -> str:
        """Help text, then default and range, dim, on the same line (Typer gives them their own)."""
        facts = ", ".join(self._facts())
        return rf"{self.text} [dim]\[{facts}][/dim]" if facts else self.text

    def _facts(self) -> Iterator[str]:
        default = self.field.default
        if self.field.is_required():
            yield "required"
        elif isinstance(default, bool):
            yield f"default: {'--' if default else '--no-'}{flag(self.key)[2:]}"
        elif isinstance(default, tuple):
            yield f"default: {' '.join(map(str, default))}"
        elif isinstance(default, float):
            yield f"default: {default:g}"
        elif default not in (None, ""):
            yield f"default: {default}"
        for name, sign in BOUNDS.items():
            for item in self.field.metadata:
                if hasattr(item, name):
                    yield f"{sign} {getattr(item, name):g}"


class Configured(NamedTuple):
    """What a command is configured by.

    Attributes:
        model: Its config.
        presets: Kind of its presets; empty where it has none.
        compat: Kind of its compatible settings; empty where it has none.
    """

    model: type[Config]
    presets: str
    compat: str

    def layers(self, preset: str | None, compat: str | None, file: Path | None) -> list[Layer]:
        """Settings from outside the command line, weakest first."""
        return [
            *([read_preset(self.presets, preset)] if preset else ()),
            *([read_compat(self.compat, compat)] if compat else ()),
            *([read_layer(file)] if file else ()),
        ]


def settings(model: type[Config], key: Key = (), panel: str | None = None) -> Iterator[Setting]:
    """Walk the leaves that options can set.

    Args:
        model: Config whose leaves are wanted.
        key: Where the config is in the whole tree.
        panel: Heading of its options in the help page.
    """
    texts, nested = model.help_texts(), dict(sections(model))
    for name, field in model.model_fields.items():
        if FILE_ONLY in field.metadata:
            continue
        if name in nested:
            heading = (inspect.getdoc(nested[name]) or "").splitlines()[0].rstrip(".")
            yield from settings(nested[name], (*key, name), heading)
        else:
            yield Setting((*key, name), field, texts[name], panel)


def obsolete(model: type[Config]) -> dict[str, Obsolete]:
    """Published options of a config tree that no longer mean anything."""
    found = dict(model.OBSOLETE)
    for _, section in sections(model):
        found |= obsolete(section)
    return found


def option_type(annotation: Any, switch: str) -> Any:
    """The part of an annotation that a command line can carry."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        kinds = [a for a in args if a is not type(None)]
        if len(kinds) == 1:
            return option_type(kinds[0], switch)
        if all(kind in (int, float) or get_origin(kind) is Literal for kind in kinds):
            return str  # a number or one of some words; the setting itself tells them apart
    elif (
        annotation in SCALARS
        or origin is Literal
        or (origin is tuple and all(a in SCALARS for a in args))
    ):
        return annotation
    raise TypeError(f"{switch}: no option can carry {annotation}; mark the field FILE_ONLY")


def configured(
    presets: str = "", compat: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the config parameter of a command by --config and one option per setting.

    Args:
        presets: Kind of the presets that ``--preset`` offers; empty for a command without.
        compat: Kind of the settings that ``--compat`` offers; empty for a command without.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        [(slot, model)] = [
            (p.name, p.annotation)
            for p in signature.parameters.values()
            if isinstance(p.annotation, type) and issubclass(p.annotation, Config)
        ]
        leaves = sorted(settings(model), key=lambda leaf: not leaf.field.is_required())
        names = [leaf.name for leaf in leaves]
        assert len(names) == len(set(names)), f"{model.__name__}: a leaf name is used twice"
        ignored = obsolete(model)
        configured_by = Configured(model, presets, compat)
        own = {name for name in signature.parameters if name != slot}

        @functools.wraps(command)
        def run(invocation: typer.Context, **values: Any) -> None:
            from tatscli.config.train import AUTO  # among configs that few commands' help needs

            for name, item in ignored.items():
                if _typed(invocation, f"alias_{name}"):
                    console.note(f"{flag((name,))} has no effect: {item.note}")
            layers = []
            try:
                resume = values.get("resume")
                if resume and resume != AUTO:
                    if _typed(invocation, "init"):
                        raise ConfigError(
                            "--resume continues a run, --init starts a new one; give one of them"
                        )
                    layers.append(_run_layer(resume, presets))
                layers += configured_by.layers(
                    values.get("preset"), values.get("compat"), values["config_file"]
                )
                layers.append(_typed_layer(invocation, leaves, values))
                if resume == AUTO and (folder := _saved_folder(model, layers)):
                    layers.insert(0, _run_layer(folder, presets))
                config = resolve(model, layers)
            except ConfigError as error:
                raise UsageError(error.message, error.hint) from error
            command(**{name: values[name] for name in own}, **{slot: config})

        parameters = [
            *(p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()),
            inspect.Parameter(
                "invocation", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context
            ),
            inspect.Parameter(
                "config_file", inspect.Parameter.KEYWORD_ONLY, annotation=ConfigFile, default=None
            ),
            *(parameter for leaf in leaves for parameter in leaf.parameters()),
            *(_obsolete_parameter(name, item) for name, item in ignored.items()),
        ]
        if presets:
            choice = Literal.__getitem__(preset_names(presets))
            option = typer.Option(
                "--preset",
                help="Ready-made settings, tiny for a first try on a CPU; file and options win.",
            )
            parameters.append(_keyword("preset", choice, option, None))
        if compat:
            choice = Literal.__getitem__(compat_names(compat))
            option = typer.Option(
                "--compat",
                help="Numerics of the published code, flaws included; file and options win.",
            )
            parameters.append(_keyword("compat", choice, option, None))
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # Typer reads it
            [p for p in parameters if p.name != slot]
        )
        run.configured = configured_by  # type: ignore[attr-defined]  # tats config show reads it
        return run

    return decorate


def refuse_empty_paths(command: inspect.Signature) -> None:
    """An empty path would be the current folder, where it stands for a variable that is not set.

    Raises:
        UsageError: One was typed.
    """
    takes_path = False
    paths: set[str] = set()
    others: set[str] = set()
    for parameter in command.parameters.values():
        if get_origin(parameter.annotation) is not Annotated:
            continue
        kind, typed, *_ = get_args(parameter.annotation)
        if isinstance(typed, typer.models.ArgumentInfo):
            takes_path |= _holds_path(kind)
        elif kind is not bool:
            names = [typed.default, *(typed.param_decls or ())]
            (paths if _holds_path(kind) else others).update(map(str, names))
    for before, value in pairwise(sys.argv):
        option = value.removesuffix("=") if value else before
        if option == value:
            continue
        name = option.replace("_", "-")
        if name in paths:
            empty = option
        elif not value and takes_path and name not in others:
            empty = f"the argument after {before}"
        else:
            continue
        raise UsageError(
            f"{empty} is empty",
            'is the variable that was to stand there set? The current folder is "."',
        )


def _holds_path(kind: Any) -> bool:
    return kind is Path or any(map(_holds_path, get_args(kind)))


def _saved_folder(model: type[Config], layers: list[Layer]) -> Path | None:
    """The folder that settings mean, if a run has saved there."""
    outs = [layer.values.get("train", {}).get("out") for layer in reversed(layers)]
    given = next(filter(None, outs), None)
    folder = Path(given) if given else resolve(model, layers).folder  # type: ignore[attr-defined]
    from tatscli.app.run import RunFolder

    return folder if RunFolder(folder).has_saved else None


def _run_layer(run: Path, kind: str) -> Layer:
    """The settings of a run that is to be continued, which must be of the command's kind."""
    if not (run / "config.yaml").is_file():
        raise ConfigError(
            f"{run} is no run folder: it has no config.yaml",
            "--resume takes the folder that an earlier training wrote, its --out",
        )
    layer = read_layer(run / "config.yaml")
    # Only runs of the GPT name a VQGAN.
    if (found := "gpt" if "vqgan" in layer.values else "vqgan") != kind:
        raise ConfigError(
            f"{run} is a run of tats {found} train", f"tats {found} train --resume {run}"
        )
    return layer


def _typed_layer(context: typer.Context, leaves: list[Setting], values: dict[str, Any]) -> Layer:
    """What the user typed, by our names or the published ones; twice by two names is an error."""
    chosen: dict[str, Any] = {}
    flags: dict[Key, str] = {}
    for leaf in leaves:
        given: list[tuple[str, Any]] = []
        if _typed(context, leaf.name):
            given.append((flag(leaf.key), values[leaf.name]))
        for alias in leaf.aliases:
            if _typed(context, name := f"alias_{alias.name}"):
                value = values[name] if alias.value is UNSET else alias.value
                value = alias.choices[value] if alias.choices else value
                given.append((flag((alias.name,)), value))
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(f for f, _ in given)} are the same setting; give one")
        for switch, value in given:
            section = chosen
            for part in leaf.key[:-1]:
                section = section.setdefault(part, {})
            section[leaf.name] = value
            flags[leaf.key] = switch
    return Layer(place="", values=chosen, flags=flags)


def _typed(context: typer.Context, name: str) -> bool:
    """Whether the user set an option, rather than its default doing so."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _keyword(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option], default=default
    )


def _metavar(kind: Any) -> str | None:
    """What stands beside an option in the help page: nothing for a switch, else its type."""
    if kind is bool:
        return ""
    if get_origin(kind) is tuple:
        return f"<{' '.join(part.__name__ for part in get_args(kind))}>"
    return None


def _obsolete_parameter(name: str, item: Obsolete) -> inspect.Parameter:
    option = typer.Option(flag((name,)), hidden=True)
    if item.is_flag:
        return _keyword(f"alias_{name}", bool, option, False)
    return _keyword(f"alias_{name}", str | None, option, None)
