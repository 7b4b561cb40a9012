"""Videos in array files: one array of N videos of T frames each.

`.npy` and `.npz` as numpy writes them (one array, or one called videos), `.pt` as torch saves a
tensor. Which axis holds the colours, 1 or 3 of them, is seen from the shape: (N, T, H, W, C),
(N, T, C, H, W) or (N, C, T, H, W). uint8 is taken as it is; floats must cover [0, 1] or [-1, 1],
and are rounded. A video is addressed by its number below the file: FILE.npy/12.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tatscli.errors import DataError

ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".pt"})

_NAME = "videos"
_AXES = {"NTHWC": 4, "NTCHW": 2, "NCTHW": 1}
_COLOURS = (3, 1)
_BLOCK = 1 << 24
_UNEQUAL = "videos of different lengths go into a folder of video files"
_SAVE = "save uint8 of shape (videos, frames, height, width, 3) instead"


class Number(NamedTuple):
    """A video in a file, by its number."""

    file: Path
    number: int


@dataclass(frozen=True)
class VideoArray:
    """The videos of a file.

    Attributes:
        stored: As they are in the file, which stays there if it can.
        axes: Which of the three layouts.
        low: What a float must be for black; 0 for uint8.
    """

    stored: Any
    axes: str
    low: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, T, H, W)."""
        n, t, h, w = (self.stored.shape[self.axes.index(axis)] for axis in "NTHW")
        return n, t, h, w

    def read(self, number: int, frames: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Frames of a video, uint8 (len(frames), H, W, 3)."""
        axes = self.axes[1:]
        taken = np.take(self.stored[number], list(frames), axis=axes.index("T"))
        pixels = np.moveaxis(taken, [axes.index(axis) for axis in "THWC"], range(4))
        if pixels.dtype != np.uint8:
            scaled = (pixels.astype(np.float64) - self.low) * (255 / (1 - self.low))
            pixels = np.rint(scaled).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))


def array_address(path: Path) -> Number | None:
    """The video that a path below an array file means; None for every other path."""
    file, name = path.parent, path.name
    if file.suffix.lower() not in ARRAY_SUFFIXES or not (name.isascii() and name.isdecimal()):
        return None
    return Number(file, int(name)) if file.is_file() else None


def video_array(file: Path) -> VideoArray:
    """Opens a file of videos; the same one is kept open until another is asked for.

    Raises:
        DataError: It cannot be read, or is no such array.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    if not stat.st_size:
        raise DataError(f"{file}: empty file", _SAVE)
    return _opened(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)  # both sides of a comparison
def _opened(file: Path, size: int, mtime: int) -> VideoArray:
    stored = _stored(file)
    if stored.ndim != 5:
        raise DataError(f"{file}: {stored.dtype} {(*stored.shape,)}, not 5 axes of videos", _SAVE)
    if not all(stored.shape):
        raise DataError(f"{file}: an array of shape {(*stored.shape,)} holds no frame", _SAVE)
    fitting = [
        axes
        for colours in _COLOURS
        for axes, axis in _AXES.items()
        if stored.shape[axis] == colours
    ]
    if not fitting or (len(fitting) > 1 and stored.shape[_AXES[fitting[1]]] == _COLOURS[0]):
        which = " or ".join(fitting) or "none"
        raise DataError(f"{file}: {(*stored.shape,)} has {which} of the known layouts", _SAVE)
    if stored.dtype == np.uint8:
        return VideoArray(stored, fitting[0], 0.0)
    if stored.dtype.kind != "f":
        raise DataError(f"{file}: {stored.dtype}, neither uint8 nor floats", _SAVE)
    return VideoArray(stored, fitting[0], _black(file, stored))


def _black(file: Path, stored: Any) -> float:
    """The value of black: 0 of floats in [0, 1], -1 of floats in [-1, 1]; never guessed."""
    each = max(1, _BLOCK // max(1, stored[0].size))
    blocks = [stored[first : first + each] for first in range(0, len(stored), each)]
    # Those of NumPy hand on what is no number, wherever it is.
    low, high = np.min([b.min() for b in blocks]), np.max([b.max() for b in blocks])
    if not np.isfinite((low, high)).all():
        bad = next(n for n, video in enumerate(stored) if not np.isfinite(video).all())
        raise DataError(f"{file}: video {bad} has values that are no finite numbers")
    if low >= 0 and high <= 1:
        return 0.0
    if -1 <= low < -0.5 and high <= 1:
        return -1.0
    raise DataError(f"{file}: values from {low:g} to {high:g}, not of [0, 1] or [-1, 1]", _SAVE)


def _stored(file: Path) -> Any:
    try:
        if file.suffix.lower() == ".pt":
            import torch  # takes seconds, for what few datasets need

            loaded = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
            if not isinstance(loaded, torch.Tensor):
                raise DataError(f"{file}: a {type(loaded).__name__}, not a tensor", _SAVE)
            return loaded.numpy()
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.lib.npyio.NpzFile):
            return mapped
        with mapped:
            names = mapped.files
            if not names:
                raise DataError(f"{file}: no array in it", _SAVE)
            name = _NAME if _NAME in names else names[0]
            if name != _NAME and len(names) > 1:
                raise DataError(
                    f"{file}: several arrays, {', '.join(names)}, none of them {_NAME}", _SAVE
                )
            return mapped[name]
    except DataError:
        raise
    except Exception as error:  # numpy and torch raise a dozen unrelated kinds for damaged files
        first = (str(error) or type(error).__name__).splitlines()[0]
        if "object" in first.lower():  # numpy takes what it does not know for pickled objects, too
            raise DataError(
                f"{file}: Python objects, or no file of NumPy at all", f"{_SAVE}; {_UNEQUAL}"
            ) from error
        raise DataError(f"{file}: cannot be read: {first}", _SAVE) from error
