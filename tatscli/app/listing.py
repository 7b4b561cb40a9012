"""The listing of a folder of samples, which says what in it is one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tatscli.core.files import write_whole
from tatscli.errors import DataError

LISTING = "samples.json"
"""What tats sample writes beside its samples, so that nothing else is taken for one."""


def write_listing(
    folder: Path, rate: float, settings: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> None:
    """Say which files of a folder are samples, and how they were made.

    Args:
        folder: Of the samples.
        rate: Frames per second.
        settings: How they were drawn.
        samples: What is known about each, its ``file`` at least.
    """
    content = {"frame_rate": rate, "settings": settings, "samples": samples}
    write_whole(folder / LISTING, f"{json.dumps(content, indent=2)}\n".encode(), DataError)


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


@dataclass(frozen=True)
class Listed:
    """Which files below a folder are samples, where tats sample wrote it, or folders in it.

    Attributes:
        folders: Of each folder with a listing, relative to the root, the paths of its samples:
            lossless where there are.
    """

    folders: Mapping[PurePosixPath, frozenset[str]]

    @classmethod
    def among(cls, root: Path, files: Iterable[str]) -> "Listed":
        """Read the listings of the folders that some files are in, and of those above.

        Args:
            root: What the paths start from.
            files: Paths, with forward slashes.

        Raises:
            DataError: That of the root itself is damaged.
        """
        top, folders = PurePosixPath("."), dict[PurePosixPath, frozenset[str]]()
        for folder in {top, *(above for file in files for above in PurePosixPath(file).parents)}:
            if not (root / folder / LISTING).is_file():
                continue
            try:
                samples = read_listing(root / folder)
            except DataError:
                if folder == top:
                    raise
                continue  # further down, a file of that name may be anything
            names = (sample.get("lossless", sample["file"]) for sample in samples)
            folders[folder] = frozenset(str(folder / name) for name in names)
        return cls(folders)

    @property
    def paths(self) -> set[str]:
        """Of all samples."""
        return set().union(*self.folders.values())

    def takes(self, path: str) -> bool:
        """Whether a file is a sample, or in no folder that lists what is."""
        lists = (self.folders.get(folder) for folder in PurePosixPath(path).parents)
        nearest = next((names for names in lists if names is not None), None)
        return nearest is None or path in nearest
