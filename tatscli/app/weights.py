"""Weight files from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tatscli.app.reporting import Reporter, Silent
from tatscli.core import weights


@dataclass(frozen=True)
class WeightStatus:
    """One file.

    Attributes:
        name: How commands call it.
        status: Whether it is there and is the right one.
        path: Where it belongs.
        used_for: What needs it.
        checked_by: The kind of checksum that was published for it.
        licence: Of the file.
    """

    name: str
    status: str
    path: Path
    used_for: str
    checked_by: str
    licence: str


@dataclass(frozen=True)
class WeightCheck:
    """What a second look at one file found.

    Attributes:
        name: How commands call it.
        status: Whether it is there and is the right one.
        path: Where it is or belongs.
        detail: How this was seen; of a wrong file, what it is instead if that is known.
    """

    name: str
    status: str
    path: Path
    detail: str


def list_weights() -> list[WeightStatus]:
    """All files that commands may need."""
    return [_status(name) for name in weights.FILES]


def fetch_weights(name: str, reporter: Reporter | None = None) -> WeightStatus:
    """Download a file, unless it is there already, and check it."""
    reporter = reporter or Silent()
    with reporter.task(f"fetching {name}", "bytes") as task:
        weights.fetch(name, lambda done, total: task.update(done, total))
    return _status(name)


def verify_weights(
    names: Sequence[str] = (), reporter: Reporter | None = None
) -> list[WeightCheck]:
    """Hash files again, whatever was found before; all files where none is named."""
    reporter = reporter or Silent()
    chosen = list(dict.fromkeys(names)) or list(weights.FILES)
    checks = []
    with reporter.task("verifying", "files", len(chosen)) as task:
        for done, name in enumerate(chosen, start=1):
            found = weights.verify(name)
            path = weights.FILES[name].path
            checks.append(WeightCheck(name, found.status, path, found.detail))
            task.update(done)
    return checks


def _status(name: str) -> WeightStatus:
    file = weights.FILES[name]
    return WeightStatus(
        name, weights.status(name), file.path, file.used_for, str(file.pin), file.licence
    )
