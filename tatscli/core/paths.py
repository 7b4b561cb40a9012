"""What paths that are given mean, as far as their names tell; free of torch.

So a path that is wrong is an error at once, rather than once torch is there. Messages name a path
as it was given.
"""

import re
from pathlib import Path

from tatscli.core.data.arrays import ARRAY_SUFFIXES
from tatscli.core.data.hdf5 import HDF5_SUFFIXES
from tatscli.core.data.manifest import MANIFEST_SUFFIXES
from tatscli.errors import CheckpointError, DataError

SOURCES = (
    "give a folder of videos or of folders of frames, a manifest (.csv, .tsv, .jsonl), a list of "
    "paths (.txt), an HDF5 file (.h5, .hdf5) or an array of videos (.npy, .npz, .pt)"
)
"""What a dataset can be, for hints."""

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.IGNORECASE)
_FILES = HDF5_SUFFIXES | ARRAY_SUFFIXES | MANIFEST_SUFFIXES


def remote_url(path: Path) -> str | None:
    """The address that a path stands for, if it is one rather than a place on this machine."""
    # Settings hold paths, and a path has no empty parts: of s3://bucket it keeps s3:/bucket. One
    # letter before the colon is a drive.
    found = _ADDRESS.fullmatch(str(path))
    if not found:
        return None
    scheme, rest = found.groups()
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}"


def require_dataset(path: Path) -> None:
    """Make sure that a path can be a dataset of videos: a folder, or a file of a known kind.

    Raises:
        DataError: It is not there, or a file of another kind.
    """
    place, is_named_so = path.expanduser(), path.suffix.lower() in _FILES
    if not place.exists():
        raise DataError(f"{path}: no such {'file' if is_named_so else 'folder'}", SOURCES)
    if not (place.is_dir() or (is_named_so and place.is_file())):
        raise DataError(
            f"{path}: a single file, not a folder",
            f"its folder is {path.parent}; {SOURCES}",
        )


def model_name(path: Path) -> str:
    """What is made from a model is called after it: its run, or its file where it has none."""
    place = path.resolve()
    if not path.is_dir() and place.parent.name == "checkpoints":
        return f"{place.parent.parent.name}-{place.stem}"
    return place.name if path.is_dir() else place.stem


def find_checkpoint(path: Path) -> Path:
    """The file a checkpoint argument means: a file itself, or a run folder's best, else last.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "give a run folder or a checkpoint file")
    names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "vqgan.ckpt")
    for name in names:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} holds no checkpoint (looked for {', '.join(names)})",
        "give a run folder that has saved at least once, or a checkpoint file",
    )
