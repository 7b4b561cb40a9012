"""Results of evaluations, kept as JSON: what is one, and which command writes it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatscli.errors import DataError

FVD = "tats eval fvd REAL FAKE"
COMMANDS = {
    FVD: {"measure", "value", "standard_error", "signature"},
    "tats eval classes REAL FAKE": {"probe_on_real", "right", "right_by_class"},
    "tats vqgan eval CKPT --data DIR": {"vqgan", "reconstruction", "time"},
}
"""What writes results, and the fields that tell each of them."""


@dataclass(frozen=True)
class Evaluation:
    """A result of an evaluation, as ``--json`` prints it.

    Attributes:
        file: Where it was kept.
        command: What writes such.
        values: The result.
    """

    file: Path
    command: str
    values: Mapping[str, Any]


def read_results(file: Path, commands: Sequence[str] = tuple(COMMANDS)) -> list[Evaluation]:
    """The results in a file; there are several with ``--all-protocols``.

    Args:
        file: What ``--json`` printed.
        commands: Those whose results are wanted.

    Raises:
        DataError: It holds something else.
    """
    # A file that is something else is not to be written over.
    target = "RESULT.json" if file.exists() else file
    hint = f"{', or '.join(commands)} writes one: add --json > {target}"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", hint) from None
    except ValueError as error:
        raise DataError(f"{file} is no JSON: {error}", hint) from None
    each = stored if isinstance(stored, list) else [stored]
    # That of samples has a distance in it.
    each = [one["fvd"] if isinstance(one, dict) and one.get("fvd") else one for one in each]
    found = [Evaluation(file, _written_by(values), values) for values in each]
    for other in (result.command for result in found if result.command not in commands):
        written = f"a result of {other}" if other else "no result of an evaluation"
        raise DataError(f"{file} holds {written}", hint)
    if not found:
        raise DataError(f"{file} holds no result of an evaluation", hint)
    return found


def _written_by(values: Any) -> str:
    """The command whose result this is; empty for what is none."""
    names = values.keys() if isinstance(values, dict) else set()
    return next((command for command, marks in COMMANDS.items() if marks <= names), "")
