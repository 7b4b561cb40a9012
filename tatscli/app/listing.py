"""The listing of a folder of samples, which says what in it is one."""

import json
from pathlib import Path
from typing import Any

from tatscli.errors import DataError

LISTING = "samples.json"
"""What tats sample writes beside its samples, so that nothing else is taken for one."""


def read_listing(folder: Path) -> list[dict[str, Any]]:
    """What is known about each sample of a folder.

    Raises:
        DataError: The folder holds no samples, or its listing is damaged.
    """
    file = folder / LISTING
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["samples"]
        found = [dict(sample) for sample in listed if sample["file"]]
        names = [sample[key] for sample in found for key in ("file", "lossless") if key in sample]
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror}", "give a folder that tats sample wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error!r}", "sample again, or remove it") from None
    if not found:
        raise DataError(f"{file} lists no samples", "sample again, or remove it")
    for path in (Path(str(name)) for name in names):
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{file} lists {path}, which is outside its folder", "sample again")
    return found


def listed(root: Path) -> set[str] | None:
    """Paths of the samples in a folder that tats sample wrote, lossless where there are.

    Returns:
        None for any other folder.

    Raises:
        DataError: The listing is damaged.
    """
    if not (root / LISTING).is_file():
        return None
    return {sample.get("lossless", sample["file"]) for sample in read_listing(root)}
