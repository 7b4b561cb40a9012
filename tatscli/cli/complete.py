"""What the shell offers for arguments that name runs, checkpoints, samples and classes.

A function here answers while somebody types: it looks at names two folders deep, opens nothing but
small JSON files, and loads no torch. Where it finds nothing, the shell offers files.
"""

import glob
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

RUN, SAMPLES = "config.yaml", "samples.json"
"""What is in a run folder, and in a folder of samples."""


def runs(incomplete: str) -> list[str]:
    """Run folders."""
    return _folders(incomplete, RUN)


def samples(incomplete: str) -> list[str]:
    """Folders that tats sample wrote."""
    return _folders(incomplete, SAMPLES)


def shown(incomplete: str) -> list[str]:
    """What a report can show."""
    return sorted({*runs(incomplete), *samples(incomplete)})


def checkpoints(incomplete: str) -> list[str]:
    """Run folders, and checkpoints of what has been typed already."""
    return sorted({*runs(incomplete), *_matches(incomplete, "*.ckpt", "*/*.ckpt")})


def labels(context: typer.Context, incomplete: str) -> list[str]:
    """The classes of the GPT that has been named, else of the newest run that has any."""
    if gpt := context.params.get("gpt"):
        records = [Path(gpt) / "run.json", Path(gpt).parent.parent / "run.json"]
    else:
        records = sorted(Path("runs").glob("*/run.json"), key=lambda f: f.stat().st_mtime)[::-1]
    for record in records:
        if classes := _classes(record):
            return [name for name in classes if name.startswith(incomplete)]
    return []


BY_NAME: dict[str, Callable[..., list[str]]] = {
    **dict.fromkeys(("gpt", "infill_gpt", "vqgan", "sound_vqgan", "init"), checkpoints),
    "label": labels,
}
"""For settings, which have the same meaning in every command."""


def _folders(incomplete: str, mark: str) -> list[str]:
    found = _matches(incomplete, f"*/{mark}", f"*/*/{mark}")
    return sorted(file.removesuffix(f"/{mark}") for file in found)


def _matches(start: str, *patterns: str) -> list[str]:
    """Files whose path begins as was typed, and goes on by a pattern."""
    # Path.glob takes no absolute pattern, and does not give a path back as it was begun.
    begun = glob.escape(start)
    return [file for pattern in patterns for file in glob.glob(begun + pattern)]  # noqa: PTH207


def _classes(record: Path) -> list[str]:
    try:
        content: Any = json.loads(record.read_text(encoding="utf-8"))
        return [str(name) for name in content["classes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
