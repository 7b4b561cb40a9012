"""Typer options generated from config models, so that no setting is declared twice."""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tatscli.cli import console
from tatscli.config.base import FILE_ONLY, UNSET, Config, Obsolete, Published
from tatscli.config.files import Key, Layer, flag, preset_names, read_layer, read_preset, resolve
from tatscli.errors import ConfigError

SCALARS = (bool, int, float, str, Path)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file of settings; options override it."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", help="Run folder to continue exactly; its settings are the base."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and stop; touch nothing.")
]


class Setting(NamedTuple):
    """One leaf of a config tree."""

    key: Key
    field: FieldInfo
    panel: str | None

    @property
    def name(self) -> str:
        """Name of the leaf, unique in its command."""
        return self.key[-1]

    @property
    def published(self) -> list[Published]:
        """Published options that set this leaf."""
        return [item for item in self.field.metadata if isinstance(item, Published)]

    @property
    def kind(self) -> Any:
        """The type an option of this leaf has."""
        return option_type(self.field.annotation, flag(self.key))

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The option of this leaf, and a hidden one for each published name."""
        switch, kind = flag(self.key), self.kind
        default = self.field.get_default(call_default_factory=True)
        option = typer.Option(
            f"{switch}/--no-{switch[2:]}" if kind is bool else switch,
            help=self.field.description,
            min=self._bound("ge"),
            max=self._bound("le"),
            rich_help_panel=self.panel,
        )
        required = default is PydanticUndefined
        yield _keyword(self.name, kind, option, None if required else default)
        for alias in self.published:
            hidden = typer.Option(flag((alias.name,)), hidden=True)
            if alias.is_flag:
                yield _keyword(f"published_{alias.name}", bool, hidden, False)
            else:
                yield _keyword(f"published_{alias.name}", kind | None, hidden, None)

    def _bound(self, name: str) -> float | None:
        return next((getattr(m, name) for m in self.field.metadata if hasattr(m, name)), None)


def settings(model: type[Config], key: Key = (), panel: str | None = None) -> Iterator[Setting]:
    """Walk the leaves that options can set."""
    for name, field in model.model_fields.items():
        if FILE_ONLY in field.metadata:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            doc = (inspect.getdoc(field.annotation) or "").splitlines()[0].rstrip(".")
            yield from settings(field.annotation, (*key, name), doc)
        else:
            yield Setting((*key, name), field, panel)


def obsolete(model: type[Config]) -> dict[str, Obsolete]:
    """Published options of a config tree that no longer mean anything."""
    found = dict(model.OBSOLETE)
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            found |= obsolete(field.annotation)
    return found


def option_type(annotation: Any, switch: str) -> Any:
    """The part of an annotation that a command line can carry."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        kinds = [a for a in args if a is not type(None)]
        if len(kinds) == 1:
            return option_type(kinds[0], switch)
    elif (
        annotation in SCALARS
        or origin is Literal
        or (origin is tuple and all(a in SCALARS for a in args))
    ):
        return annotation
    raise TypeError(f"{switch}: no option can carry {annotation}; mark the field FILE_ONLY")


def configured(
    presets: str = "",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the config parameter of a command by --config and one option per setting.

    Args:
        presets: Kind of the presets that ``--preset`` offers; empty for a command without.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        [(slot, model)] = [
            (p.name, p.annotation)
            for p in signature.parameters.values()
            if isinstance(p.annotation, type) and issubclass(p.annotation, Config)
        ]
        leaves = list(settings(model))
        names = [leaf.name for leaf in leaves]
        assert len(names) == len(set(names)), f"{model.__name__}: a leaf name is used twice"
        ignored = obsolete(model)
        own = {name for name in signature.parameters if name != slot}

        @functools.wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            layers = []
            if resume := values.get("resume"):
                layers.append(read_layer(resume / "config.yaml"))
            if preset := values.get("preset"):
                layers.append(read_preset(presets, preset))
            if file := values["config_file"]:
                layers.append(read_layer(file))
            layers.append(_typed_layer(context, leaves, values))
            for name, item in ignored.items():
                if _typed(context, f"published_{name}"):
                    console.note(f"{flag((name,))} has no effect: {item.note}")
            config = resolve(model, layers)
            command(**{name: values[name] for name in own}, **{slot: config})

        parameters = [
            *(p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()),
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            inspect.Parameter(
                "config_file", inspect.Parameter.KEYWORD_ONLY, annotation=ConfigFile, default=None
            ),
            *(parameter for leaf in leaves for parameter in leaf.parameters()),
            *(_obsolete_parameter(name, item) for name, item in ignored.items()),
        ]
        if presets:
            choice = Literal.__getitem__(preset_names(presets))
            option = typer.Option("--preset", help="Settings for a purpose; options override them.")
            parameters.append(_keyword("preset", choice, option, None))
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # Typer reads it
            [p for p in parameters if p.name != slot]
        )
        return run

    return decorate


def _typed_layer(context: typer.Context, leaves: list[Setting], values: dict[str, Any]) -> Layer:
    """What the user typed, by our names or the published ones; twice by two names is an error."""
    chosen: dict[str, Any] = {}
    flags: dict[Key, str] = {}
    for leaf in leaves:
        given: list[tuple[str, Any]] = []
        if _typed(context, leaf.name):
            given.append((flag(leaf.key), values[leaf.name]))
        for alias in leaf.published:
            if _typed(context, name := f"published_{alias.name}"):
                value = values[name] if alias.value is UNSET else alias.value
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


def _obsolete_parameter(name: str, item: Obsolete) -> inspect.Parameter:
    option = typer.Option(flag((name,)), hidden=True)
    if item.is_flag:
        return _keyword(f"published_{name}", bool, option, False)
    return _keyword(f"published_{name}", str | None, option, None)
