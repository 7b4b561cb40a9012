"""Weight files from elsewhere."""

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
        licence: Of the file.
    """

    name: str
    status: str
    path: Path
    used_for: str
    licence: str


def list_weights() -> list[WeightStatus]:
    """All files that commands may need."""
    return [_status(name) for name in weights.FILES]


def fetch_weights(name: str, reporter: Reporter | None = None) -> WeightStatus:
    """Download a file, unless it is there already, and check it."""
    reporter = reporter or Silent()
    with reporter.task(f"fetching {name}", "bytes") as task:
        weights.fetch(name, lambda done, total: task.update(done, total))
    return _status(name)


def _status(name: str) -> WeightStatus:
    file = weights.FILES[name]
    path = weights.weights_folder() / file.filename
    return WeightStatus(name, weights.status(name), path, file.used_for, file.licence)
