"""Settings that come with the package, to look at and to start from."""

from dataclasses import dataclass
from pathlib import Path

from tatscli.config.files import Preset, presets
from tatscli.core.files import write_whole
from tatscli.errors import ConfigError

_COMMANDS = {"vqgan": "vqgan train", "gpt": "gpt train", "sample": "sample short"}
"""The commands of each kind of run."""


@dataclass(frozen=True)
class PresetSummary:
    """A preset.

    Attributes:
        name: What ``copy_preset`` calls it.
        use: The command and the option that take it.
        what: What it is, one line.
    """

    name: str
    use: str
    what: str


@dataclass(frozen=True)
class CopiedPreset:
    """A preset that was written to a file.

    Attributes:
        preset: Its name.
        file: Where.
        use: The command and the option that take it.
    """

    preset: str
    file: Path
    use: str


def list_presets() -> list[PresetSummary]:
    """All presets."""
    return [
        PresetSummary(_name(item), f"tats {_command(item)} {item.option} {item.name}", item.what)
        for item in presets()
    ]


def copy_preset(name: str, file: Path, *, force: bool = False) -> CopiedPreset:
    """Write a preset to a file, with its comments, to be changed and used as a config file.

    Args:
        name: As listed.
        file: Where.
        force: Whether to replace a file that is there.

    Raises:
        ConfigError: There is no such preset, the file is there, or it cannot be written.
    """
    known = {_name(item): item for item in presets()}
    if name not in known:
        meant = [other for other, item in known.items() if item.name == name] or known
        raise ConfigError(f"{name} is no preset", f"presets are {', '.join(meant)}")
    if file.exists() and (file.is_dir() or not force):
        raise ConfigError(
            f"{file} {'is a folder' if file.is_dir() else 'exists'}; nothing was overwritten",
            "give the name of a file" if file.is_dir() else "--force replaces it",
        )
    write_whole(file, known[name].file.read_bytes(), ConfigError)
    return CopiedPreset(name, file, f"tats {_command(known[name])} --config {file}")


def _name(preset: Preset) -> str:
    return f"{preset.kind}-{preset.name}"


def _command(preset: Preset) -> str:
    return _COMMANDS[preset.kind]
