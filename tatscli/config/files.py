"""Settings from several places, merged: defaults, preset, compat, file, options."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tatscli.config.base import Config
from tatscli.errors import ConfigError

C = TypeVar("C", bound=Config)
Key = tuple[str, ...]

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Layer:
    """Settings given in one place.

    Attributes:
        place: How messages call the place: a file name, or empty for options.
        values: Nested settings.
        flags: For options, the option that was typed for each key.
    """

    place: str
    values: Mapping[str, Any]
    flags: Mapping[Key, str] = field(default_factory=dict)


def resolve(model: type[C], layers: Sequence[Layer]) -> C:
    """Build a config from layers, weakest first.

    Raises:
        ConfigError: Something is missing, unknown, out of range or contradictory; the message
            names the option where it was typed, else the place and the key.
    """
    return _validated(model, _merged(model, layers)[0], layers)


@dataclass(frozen=True)
class Origin:
    """A setting as it was resolved, and the place that decided.

    Attributes:
        key: Where it is in the tree.
        value: As in a saved config; None where a required one is missing.
        place: How messages call the place, ``default``, or ``required`` where nobody set it.
    """

    key: Key
    value: Any
    place: str


def origins(model: type[Config], layers: Sequence[Layer]) -> list[Origin]:
    """Every setting that layers make, weakest first, and which of them decided.

    Unlike ``resolve`` it takes layers in which something required is missing.

    Raises:
        ConfigError: As of ``resolve``, but for what is missing.
    """
    merged, places = _merged(model, layers)
    missing = [key for key in _required(model) if key not in places]
    for *parents, name in missing:
        section = merged
        for parent in parents:
            section = section[parent]
        section[name] = "?"  # required settings are paths
    values = _validated(model, merged, layers).model_dump(mode="json")
    found = []
    for key in leaves(model):
        value = values
        for name in key:
            value = value[name]
        if key in missing:
            found.append(Origin(key, None, "required"))
        else:
            found.append(Origin(key, value, places.get(key, "default")))
    return found


def dump_origins(settings: Sequence[Origin]) -> str:
    """Settings as YAML that can be used as a config file, with their places as comments."""
    import yaml

    lines: list[tuple[str, str]] = []
    heads: Key = ()
    for setting in settings:
        *parents, name = setting.key
        for depth, head in enumerate(parents):
            if tuple(parents[: depth + 1]) != heads[: depth + 1]:
                lines.append((f"{'  ' * depth}{head}:", ""))
        heads = tuple(parents)
        indent = "  " * len(parents)
        if setting.place == "required":
            lines.append((f"{indent}# {name}:", f"required: {flag(setting.key)}"))
            continue
        # A list of one, since a scalar alone would be a document of two lines.
        value = yaml.safe_dump([setting.value], default_flow_style=True, width=2**16).strip()[1:-1]
        lines.append((f"{indent}{name}: {value}", setting.place))
    width = max((len(text) for text, place in lines if place), default=0)
    return "".join(
        f"{text:{width}}  # {place}\n" if place else f"{text}\n" for text, place in lines
    )


def from_arguments(
    model: type[C], names: Mapping[str, str] | None = None, **values: Mapping[str, Any]
) -> C:
    """Build a config from the arguments of a function, section by section.

    Args:
        model: The config.
        names: What the function calls a field, where that differs.
        values: Fields of each section.

    Raises:
        ConfigError: One is out of range or of the wrong type; the message names the argument.
    """
    names = names or {}
    flags: dict[Key, str] = {
        (part, name): names.get(name, name) for part in values for name in values[part]
    }
    return resolve(model, [Layer(place="", values=values, flags=flags)])


def read_layer(file: Path) -> Layer:
    """Settings of a YAML file, or of a run by its folder.

    Raises:
        ConfigError: The file cannot be read, is not a mapping, or gives a key twice.
    """
    import yaml  # here and below, since neither help nor completion needs it

    from tatscli.config.yaml_file import read_yaml

    hint = "tats config copy PRESET FILE writes a file of settings to start from"
    if (saved := file / "config.yaml").is_file():
        file = saved
    try:
        values = read_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", hint) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}," if mark else str(file)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where} is not valid YAML: {reason}", hint) from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} holds a {type(values).__name__}, expected a mapping of settings", hint
        )
    return Layer(place=str(file), values=values)


def preset_names(kind: str) -> tuple[str, ...]:
    """Presets of a kind of run, such as ``vqgan``."""
    return tuple(sorted(file.stem.removeprefix(f"{kind}-") for file in PRESETS.glob(f"{kind}-*")))


@dataclass(frozen=True)
class Preset:
    """Settings that come with the package.

    Attributes:
        kind: Of the runs that they are for, such as ``vqgan``.
        name: What the option takes.
        option: ``--preset``, or ``--compat``.
        file: Where they are.
    """

    kind: str
    name: str
    option: Literal["--preset", "--compat"]
    file: Path

    @property
    def what(self) -> str:
        """The first sentence of the comment at the top of the file."""
        lines = takewhile(lambda line: line.startswith("#"), self.file.read_text().splitlines())
        return " ".join(line.lstrip("# ") for line in lines).split(". ")[0].rstrip(".")


def presets() -> list[Preset]:
    """All settings that come with the package."""
    ready = (file.stem.partition("-") for file in sorted(PRESETS.glob("*.yaml")))
    return [
        *(Preset(k, n, "--preset", PRESETS / f"{k}-{n}.yaml") for k, _, n in ready),
        *(
            Preset(file.stem, file.parent.name, "--compat", file)
            for file in sorted(PRESETS.glob("compat/*/*.yaml"))
        ),
    ]


def read_preset(kind: str, name: str) -> Layer:
    """Settings of a preset that comes with the package."""
    layer = read_layer(PRESETS / f"{kind}-{name}.yaml")
    return Layer(place=f"preset {name}", values=layer.values)


def compat_names(kind: str) -> tuple[str, ...]:
    """Whose numerics a kind of run can repeat, such as ``tats`` for ``vqgan``."""
    return tuple(sorted(file.parent.name for file in PRESETS.glob(f"compat/*/{kind}.yaml")))


def read_compat(kind: str, name: str) -> Layer:
    """Settings that repeat somebody's published numerics in a kind of run."""
    layer = read_layer(PRESETS / "compat" / name / f"{kind}.yaml")
    return Layer(place=f"compat {name}", values=layer.values)


def dump(config: Config, left_out: Mapping[str, Collection[str]] | None = None) -> str:
    """Every setting as YAML, defaults included, so that the text alone repeats the run.

    Args:
        config: The settings.
        left_out: Fields to leave out, by section.
    """
    import yaml

    exclude = {section: set(names) for section, names in (left_out or {}).items()}
    return yaml.safe_dump(config.model_dump(mode="json", exclude=exclude), sort_keys=False)


def sections(model: type[Config]) -> Iterator[tuple[str, type[Config]]]:
    """The fields of a config that are configs themselves."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Config):
            yield name, info.annotation


def leaves(model: type[Config], prefix: Key = ()) -> Iterator[Key]:
    """The keys of all settings of a config, section by section."""
    nested = dict(sections(model))
    for name in model.model_fields:
        if name in nested:
            yield from leaves(nested[name], (*prefix, name))
        else:
            yield (*prefix, name)


def flag(key: Key) -> str:
    """The option that sets a key: ("optim", "grad_clip") is --grad-clip."""
    return "--" + key[-1].replace("_", "-")


def _merged(model: type[Config], layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[Key, str]]:
    """What layers make together, and the place of each setting in it."""
    merged: dict[str, Any] = {name: {} for name, _ in sections(model)}
    places: dict[Key, str] = {}
    for layer in layers:
        _merge(model, merged, places, layer, ())
    return merged, places


def _validated(model: type[C], merged: Mapping[str, Any], layers: Sequence[Layer]) -> C:
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        problems = [_explain(model, problem, layers) for problem in error.errors()]
        raise ConfigError("\n".join(problems), _hint(model, error)) from None


def _required(model: type[Config], prefix: Key = ()) -> Iterator[Key]:
    nested = dict(sections(model))
    for name, info in model.model_fields.items():
        if name in nested:
            yield from _required(nested[name], (*prefix, name))
        elif info.is_required():
            yield (*prefix, name)


def _merge(
    model: type[Config], into: dict[str, Any], places: dict[Key, str], layer: Layer, prefix: Key
) -> None:
    values: Any = layer.values
    for name in prefix:
        values = values.get(name, {})
    nested = dict(sections(model))
    for group in model.ALTERNATIVES:
        # An off value (0, empty) is what a saved config holds for the forms that were not used.
        given = [name for name in group if values.get(name)]
        if len(given) > 1:
            names = " and ".join(layer.flags.get((*prefix, name), name) for name in given)
            place = f"{layer.place}: " if layer.place else ""
            raise ConfigError(f"{place}{names} set the same thing; give one of them")
        if given:
            for name in group:
                into.pop(name, None)
                places.pop((*prefix, name), None)
    for name, value in values.items():
        if name not in nested:
            into[str(name)] = value
            places[*prefix, str(name)] = layer.flags.get((*prefix, name)) or layer.place
        elif isinstance(value, Mapping):
            _merge(nested[name], into.setdefault(name, {}), places, layer, (*prefix, name))
        elif value is not None:
            raise ConfigError(f"{layer.place}: {name} is a section of settings, got {value!r}")


def _explain(model: type[Config], problem: ErrorDetails, layers: Sequence[Layer]) -> str:
    key = tuple(str(part) for part in problem["loc"])
    kind = problem["type"]
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return f"{flag(key)} is required"
    place = _place(key, layers)
    if kind == "extra_forbidden":
        near = _nearest(model, key)
        return f"{place or '.'.join(key)} is not a setting{near and f'; did you mean {near}?'}"
    got = "" if kind == "value_error" else f", got {problem['input']!r}"
    return f"{place}: {message}{got}" if place else f"{message}{got}"


def _place(key: Key, layers: Sequence[Layer]) -> str:
    """Where a key was set: the option typed, else file and key; empty for whole sections."""
    for layer in reversed(layers):
        for given, typed in layer.flags.items():
            if given == key[: len(given)]:
                return typed
        values: Any = layer.values
        for name in key:
            # Inside a list, such as the third of a triple, the whole list is the place.
            values = values.get(name) if isinstance(values, Mapping) else values
        if values is not None and layer.place and not isinstance(values, Mapping):
            return f"{layer.place}: {'.'.join(key)}"
    return ""


def _nearest(model: type[Config], key: Key) -> str:
    """The setting that was probably meant: the same name elsewhere, else a similar one."""
    known = {leaf[-1]: ".".join(leaf) for leaf in leaves(model)}
    near = [key[-1]] if key[-1] in known else get_close_matches(key[-1], known, 1)
    return known[near[0]] if near else ""


def _hint(model: type[Config], error: ValidationError) -> str:
    wrong: dict[str, list[Key]] = {}
    for problem in error.errors():
        wrong.setdefault(problem["type"], []).append(tuple(str(part) for part in problem["loc"]))
    if unknown := set(wrong.get("extra_forbidden", ())):
        from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig  # slow to load

        for command, other in (("vqgan train", VQGANTrainConfig), ("gpt train", GPTTrainConfig)):
            if not issubclass(model, other) and unknown <= set(leaves(other)):
                return f"these are settings of tats {command}"
    missing = [flag(key) for key in wrong.get("missing", ())]
    return f"add {' and '.join(missing)}, or --config FILE" if missing else ""
