"""Features of a set of videos in a file, so that they need be computed only once.

A `.npz` without pickles: `features` float32 (N, D), `videos` and `clips` strings (N,), and `meta`,
one JSON text. N clips, D width of the features.
"""

import json
import zipfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tatscli.core.data.video import Frames
from tatscli.core.files import written_whole
from tatscli.core.metrics.frechet import Gaussian
from tatscli.errors import DataError

_ARRAYS = ("features", "videos", "clips", "meta")


@dataclass(frozen=True)
class FeatureSet:
    """Features of clips, and what they are of.

    Attributes:
        features: float32, (N, D).
        videos: The video that each clip is from.
        clips: A digest of the pixels of each clip.
        recipe: What the features depend on besides the videos.
        about: What is known of the videos.
    """

    features: Tensor
    videos: tuple[str, ...]
    clips: tuple[str, ...]
    recipe: dict[str, Any]
    about: dict[str, Any]

    @property
    def content(self) -> str:
        """A digest of all pixels, whatever files they are in and in whatever order."""
        return blake2b("".join(sorted(self.clips)).encode(), digest_size=6).hexdigest()

    @property
    def video_numbers(self) -> Tensor:
        """For each clip, the number of its video, int64 (N,)."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.videos))}
        return torch.tensor([numbers[name] for name in self.videos], dtype=torch.long)

    def of_videos(self, names: set[str]) -> "FeatureSet":
        """Those of some videos."""
        kept = [place for place, name in enumerate(self.videos) if name in names]
        return FeatureSet(
            self.features[kept],
            tuple(self.videos[place] for place in kept),
            tuple(self.clips[place] for place in kept),
            self.recipe,
            self.about,
        )

    def write(self, file: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            DataError: It cannot be written.
        """
        meta = json.dumps({"recipe": self.recipe, "about": self.about})
        with written_whole(file, DataError) as partial, partial.open("wb") as stream:
            np.savez(
                stream,
                features=self.features.numpy(),
                videos=np.array(self.videos, dtype=np.str_),
                clips=np.array(self.clips, dtype=np.str_),
                meta=np.array(meta),
            )

    @classmethod
    def read(cls, file: Path) -> "FeatureSet":
        """Reads a file.

        Raises:
            DataError: It is not there, damaged, or another one.
        """
        stored = _arrays(file, _ARRAYS, "features, as tats eval features writes them")
        try:
            meta = json.loads(str(stored["meta"]))
            features = torch.from_numpy(stored["features"]).float()
            videos, clips = (tuple(map(str, stored[name])) for name in ("videos", "clips"))
            if features.ndim != 2 or not len(features) == len(videos) == len(clips):
                raise ValueError(f"{(*features.shape,)} features of {len(videos)} clips")
            return cls(features, videos, clips, dict(meta["recipe"]), dict(meta["about"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged: {error}", "compute the features again") from error


def digest(clip: Frames) -> str:
    """A digest of a clip's pixels and shape."""
    found = blake2b(repr(clip.shape).encode(), digest_size=8)
    found.update(np.ascontiguousarray(clip).data)
    return found.hexdigest()


def stored_kind(file: Path) -> str:
    """What a `.npz` holds: `features`, `moments` (mu and sigma), or neither: an empty string."""
    if file.suffix.lower() != ".npz" or not file.is_file():
        return ""
    try:
        with np.load(file, allow_pickle=False) as stored:
            names = set(stored.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return ""
    if "features" in names:
        return "features"
    return "moments" if {"mu", "sigma"} <= names else ""


def read_moments(file: Path) -> tuple[Gaussian, int]:
    """Reads `mu` (D,) and `sigma` (D, D).

    Returns:
        What they make, and the number `n` of videos; 0 where the file does not say.

    Raises:
        DataError: It is damaged, or no such file.
    """
    stored = _arrays(file, ("mu", "sigma"), "mu and sigma")
    try:
        mean, covariance = (torch.from_numpy(stored[name]).double() for name in ("mu", "sigma"))
        count = int(stored.get("n", 0))
    except (TypeError, ValueError) as error:
        raise DataError(f"{file} is damaged: {error}") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(f"{file}: mu {(*mean.shape,)} and sigma {(*covariance.shape,)} do not fit")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise DataError(f"{file}: mu and sigma are not finite")
    # The covariance is taken as it is, whatever it was divided by.
    return Gaussian(2, mean, covariance), count


def _arrays(file: Path, needed: tuple[str, ...], what: str) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            found = dict(stored)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if missing := [name for name in needed if name not in found]:
        raise DataError(f"{file} holds no {missing[0]}: it is no file of {what}")
    return found
