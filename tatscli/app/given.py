"""Given frames: the beginnings of real videos that samples go on from, and the truth beside them.

Letters: B samples, C channels, T frames, H W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tatscli.app.data import name_problems
from tatscli.app.reporting import Reporter
from tatscli.config.data import ClipConfig
from tatscli.core.data.clips import Address, ClipSource, grid_length
from tatscli.core.data.index import SPLIT_FOLDERS, VideoEntry, build_index
from tatscli.core.data.video import Frames, frame_files, probe, read_frames, to_float
from tatscli.errors import ConfigError, DataError

TRUTH_PIECE = 64
"""Frames of a real video held at once while it is copied."""


@dataclass(frozen=True)
class GivenClips:
    """Videos whose first frames are given; sample i goes on from video i, in turn.

    Attributes:
        sources: Of each video, the one clip at its beginning, as long as a sample where the video
            is as long.
        frames: Frames that are given of each.
    """

    sources: Sequence[ClipSource]
    frames: int

    def videos(self, numbers: Sequence[int]) -> Tensor:
        """The given frames alone, of samples by number: float32 (B, C, T, H, W) in [-0.5, 0.5]."""
        return torch.stack([to_float(self._read(n, slice(self.frames))) for n in numbers])

    def truth(self, number: int) -> Iterator[Frames]:
        """What the video really shows, in pieces: uint8 (T, H, W, 3), at most a sample's frames."""
        for first in range(0, self._source(number).clip.frames, TRUTH_PIECE):
            yield self._read(number, slice(first, first + TRUTH_PIECE))

    def file(self, number: int) -> Path:
        """The video that a sample goes on from."""
        source = self._source(number)
        return source.root / source.entries[0].path

    def _source(self, number: int) -> ClipSource:
        return self.sources[number % len(self.sources)]

    def _read(self, number: int, part: slice) -> Frames:
        source = self._source(number)
        info, indices = source.entries[0].info, source.frames(Address(0, 0))[part]
        return read_frames(self.file(number), info, indices, source.clip.resolution)


def open_given(
    path: Path,
    given: int,
    wanted: int,
    samples: int,
    clip: ClipConfig,
    reporter: Reporter,
) -> GivenClips:
    """Open the videos that samples go on from, each from its beginning.

    Of a folder with folders of splits, these are the validation videos, else all; if there are
    more than samples, some spread over them.

    Args:
        path: A video, a folder of frames, or a folder of videos.
        given: Frames that are given, as the model counts them.
        wanted: Frames of a sample.
        samples: How many samples there will be.
        clip: Geometry of the model's clips.
        reporter: Told about videos that are left out.

    Raises:
        DataError: There is no video of so many frames.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist", "give a video or a folder with --context")
    root, entries = _entries(path, reporter)
    stride = clip.sample_every_n_frames
    lengths = [grid_length(entry, clip.frame_rate) // stride for entry in entries]
    fitting = [pair for pair in zip(entries, lengths, strict=True) if pair[1] >= given]
    if not fitting:
        raise DataError(
            f"{path}: --context-frames {given} needs a video of {given * stride} frames; the "
            f"longest has {max(lengths, default=0) * stride}",
            "give fewer frames, or a longer video",
        )
    if short := len(entries) - len(fitting):
        reporter.note(f"{short} videos have less than {given} frames and are passed over")
    count = min(samples, len(fitting))
    spread = [fitting[(2 * i + 1) * len(fitting) // (2 * count)] for i in range(count)]
    sources = [
        ClipSource(
            [entry],
            root,
            clip.model_copy(update={"sequence_length": min(wanted, length) * stride}),
        )
        for entry, length in spread
    ]
    return GivenClips(sources, given)


def check_given(frames: int, factor: int, wanted: int) -> int:
    """Latent frames that given frames make.

    Args:
        frames: Frames that are given.
        factor: Frames of a latent frame.
        wanted: Frames of a sample.

    Raises:
        ConfigError: They are no whole latent frames, or leave nothing to sample.
    """
    if frames % factor:
        below = frames - frames % factor
        near = " or ".join(str(n) for n in (below, below + factor) if n)
        raise ConfigError(
            f"--context-frames {frames} is not a multiple of {factor}, the frames that this "
            "VQGAN turns into one latent frame",
            f"give {near}",
        )
    if frames >= wanted:
        raise ConfigError(
            f"--context-frames {frames} leaves nothing to sample: samples have {wanted} frames",
            f"give {wanted - factor} or less, or sample longer: tats sample long --frames N"
            if wanted > factor
            else "sample longer: tats sample long --frames N",
        )
    return frames // factor


def _entries(path: Path, reporter: Reporter) -> tuple[Path, list[VideoEntry]]:
    """The videos that a path means, whole, and the folder that their paths start from."""
    if path.is_file() or frame_files(path):
        info = probe(path)
        kind: Literal["file", "frames"] = "file" if path.is_file() else "frames"
        return path.parent, [VideoEntry(path.name, kind, "val", -1, info, 0, len(info.times))]
    with reporter.task("indexing", "videos") as task:
        index = build_index(path, progress=lambda done, of: task.update(done, of))
    name_problems(index.problems, reporter)
    has_splits = any(entry.path.split("/")[0] in SPLIT_FOLDERS for entry in index.entries)
    chosen = index.split("val") if has_splits else index.entries
    # Without folders of splits, two parts of one video may be in both.
    distinct = {entry.path: entry for entry in chosen}.values()
    return path, [replace(entry, first=0, stop=len(entry.info.times)) for entry in distinct]
