"""Videos in HDF5 files of the layout that VideoGPT and TATS published.

N frames of n videos. `train_data` is uint8 (N, H, W, 3) and `train_idx` integers (n,), the first
frame of each video; `test_data` and `test_idx` likewise, where there are any. A video ends where
the next begins, the last at the end of the data. `train_label` or `train_labels`, one integer or
string a video, is its class. A video is addressed by a path below the file: FILE.h5/train/12.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tatscli.errors import DataError

HDF5_SUFFIXES = frozenset({".h5", ".hdf5"})

Part = Literal["train", "test"]

_PARTS: tuple[Part, ...] = ("train", "test")
_LAYOUT = (
    "such a file has train_data, uint8 (frames, height, width, 3), and train_idx, the first frame "
    "of each video; test_data and test_idx likewise"
)


class Address(NamedTuple):
    """A video in a file: the part of the file, and its number there."""

    file: Path
    part: Part
    number: int


@dataclass(frozen=True)
class StoredVideo:
    """A video in a file.

    Attributes:
        path: Its path below the file, such as train/12.
        part: Which of the file's two parts it is in.
        label: Name of its class; empty where it has none.
        frames: Its length.
        height: Pixels down.
        width: Pixels across.
    """

    path: str
    part: Part
    label: str
    frames: int
    height: int
    width: int


def hdf5_address(path: Path) -> Address | None:
    """The video that a path below an HDF5 file means; None for every other path."""
    file = path.parent.parent
    number = path.name.isascii() and path.name.isdecimal()
    if not number or file.suffix.lower() not in HDF5_SUFFIXES or not file.is_file():
        return None
    for part in _PARTS:
        if path.parent.name == part:
            return Address(file, part, int(path.name))
    return None


def stored_videos(file: Path) -> list[StoredVideo]:
    """Lists the videos of a file.

    Raises:
        DataError: It cannot be read, or its datasets are missing or not of the layout.
    """
    with _opened(file) as stored:
        parts = [part for part in _PARTS if part == "train" or f"{part}_data" in stored]
        labels = {part: _labels(file, stored, part) for part in parts}
        with_labels = [part for part in parts if labels[part] is not None]
        if with_labels and with_labels != parts:
            raise DataError(
                f"{file}: its {with_labels[0]} videos have labels, the others none",
                "give both parts labels, or neither",
            )
        return [video for part in parts for video in _part_videos(file, stored, part, labels[part])]


def stored_video(address: Address) -> StoredVideo:
    """Finds one video, without its class.

    Raises:
        DataError: It is not there, or the file is not of the layout.
    """
    with _opened(address.file) as stored:
        data = _data(address.file, stored, address.part)
        first, stop = _span(address, stored, data)
        _, height, width, _ = data.shape
    path = f"{address.part}/{address.number}"
    return StoredVideo(path, address.part, "", stop - first, height, width)


def read_stored(address: Address, wanted: Sequence[int], frames: int) -> npt.NDArray[np.uint8]:
    """Reads frames of a video, and no others.

    The file is opened anew each time, since an open one does not survive in worker processes.

    Args:
        address: Which video.
        wanted: Numbers of its frames, increasing.
        frames: The length it is known to have.

    Returns:
        Frames, uint8 (len(wanted), H, W, 3).

    Raises:
        DataError: They cannot be read, or the file has changed.
    """
    with _opened(address.file) as stored:
        data = _data(address.file, stored, address.part)
        first, stop = _span(address, stored, data)
        if stop - first != frames:
            raise DataError(
                f"{_name(address)}: has {stop - first} frames now, and had {frames} when it was "
                "indexed"
            )
        places = first + np.array(wanted)
        # Neighbours are read at once: chunks that are compressed hold several frames.
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        return np.concatenate([data[int(run[0]) : int(run[-1]) + 1] for run in runs])


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"{file}: h5py, which reads HDF5 files, is not installed",
            'pip install "tatscli[hdf5]"',
        ) from error
    try:
        with h5py.File(file, "r") as stored:
            yield stored
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{file}: cannot be read: {reason}", _LAYOUT) from error


def _name(address: Address) -> str:
    return str(address.file / address.part / str(address.number))


def _dataset(file: Path, stored: Any, name: str) -> Any:
    if not hasattr(stored.get(name), "dtype"):  # a group, or nothing
        raise DataError(f"{file}: no dataset {name}; it has {', '.join(stored) or 'none'}", _LAYOUT)
    return stored[name]


def _data(file: Path, stored: Any, part: str) -> Any:
    """The frames of a part of the file."""
    data = _dataset(file, stored, f"{part}_data")
    good = data.dtype == np.uint8 and len(data.shape) == 4 and data.shape[3] == 3
    if not good or not all(data.shape):
        raise DataError(
            f"{file}: {part}_data is {data.dtype} {data.shape}, not uint8 (frames, height, width, "
            "3) with at least one frame",
            _LAYOUT,
        )
    return data


def _indices(file: Path, stored: Any, part: str) -> Any:
    """The first frames of a part's videos."""
    indices = _dataset(file, stored, f"{part}_idx")
    if indices.dtype.kind not in "iu" or len(indices.shape) != 1 or not indices.shape[0]:
        raise DataError(
            f"{file}: {part}_idx is {indices.dtype} {indices.shape}, not integers (videos,) with "
            "at least one video",
            _LAYOUT,
        )
    return indices


def _starts(file: Path, stored: Any, part: str, frames: int) -> npt.NDArray[np.int64]:
    """First frames of a part's videos, checked; int64 (videos,)."""
    starts: npt.NDArray[np.int64] = _indices(file, stored, part)[:].astype(np.int64)
    if len(starts) > 1 and starts[-1] == frames:  # some writers add the end of the last video
        starts = starts[:-1]
    outside = np.flatnonzero((starts < 0) | (starts >= frames))
    if len(outside):
        raise DataError(
            f"{file}: {part}_idx[{outside[0]}] is {starts[outside[0]]}, outside of the {frames} "
            f"frames of {part}_data",
            _LAYOUT,
        )
    back = np.flatnonzero(np.diff(starts) <= 0)
    if len(back):
        raise DataError(
            f"{file}: {part}_idx does not increase: {starts[back[0] + 1]} at {back[0] + 1} comes "
            f"after {starts[back[0]]}",
            _LAYOUT,
        )
    return starts


def _span(address: Address, stored: Any, data: Any) -> tuple[int, int]:
    """The first frame of a video in the data, and the one behind its last."""
    file, part, number = address
    indices = _indices(file, stored, part)
    count, frames = len(indices), len(data)
    first = int(indices[number]) if number < count else frames
    stop = int(indices[number + 1]) if number + 1 < count else frames
    if number >= count or (number and first == frames):  # the latter is the end of the last video
        raise DataError(f"{_name(address)}: no such video; {part}_idx has {count} entries")
    if not 0 <= first < stop <= frames:
        raise DataError(
            f"{_name(address)}: frames {first} to {stop} of {part}_data, which has {frames}",
            _LAYOUT,
        )
    return first, stop


def _part_videos(
    file: Path, stored: Any, part: Part, labels: list[str] | None
) -> list[StoredVideo]:
    data = _data(file, stored, part)
    starts = _starts(file, stored, part, len(data))
    if labels is not None and len(labels) != len(starts):
        raise DataError(
            f"{file}: {len(labels)} {part} labels for {len(starts)} videos",
            "labels are one integer or string a video",
        )
    _, height, width, _ = data.shape
    lengths = np.diff(starts, append=len(data)).tolist()
    return [
        StoredVideo(f"{part}/{n}", part, labels[n] if labels else "", length, height, width)
        for n, length in enumerate(lengths)
    ]


def _labels(file: Path, stored: Any, part: str) -> list[str] | None:
    """Names of the classes of a part's videos, a negative number being none."""
    name = next((n for n in (f"{part}_label", f"{part}_labels") if n in stored), None)
    if name is None:
        return None
    labels = _dataset(file, stored, name)
    kind = labels.dtype.kind
    if kind not in "iuSO" or len(labels.shape) != 1:
        raise DataError(
            f"{file}: {name} is {labels.dtype} {labels.shape}, not integers or strings (videos,)"
        )
    if kind in "iu":
        return ["" if value < 0 else str(value) for value in labels[:].tolist()]
    values = labels[:].tolist()
    return [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]
