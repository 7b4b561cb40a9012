"""Given videos, whose beginnings samples go on from or whose class, caption and sound they share.

What a video really shows is written beside its sample.

Letters: B samples, C channels, T frames, H W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from tatscli.app.ahead import GIVEN, require_given
from tatscli.app.data import name_problems, spread
from tatscli.app.reporting import Reporter
from tatscli.config.data import ClipConfig
from tatscli.config.words import counted
from tatscli.core.data.clips import Address, ClipSource, grid_length, sound_of
from tatscli.core.data.index import (
    SPLIT_FOLDERS,
    VideoEntry,
    build_index,
    is_dataset,
    single_video,
)
from tatscli.core.data.video import Frames, read_frames, to_float
from tatscli.errors import ConfigError, DataError

TRUTH_PIECE = 64
"""Frames of a real video held at once while it is copied."""


@dataclass(frozen=True)
class GivenClips:
    """Videos that are given; sample i goes with video i, in turn.

    Attributes:
        sources: Of each video, the one clip at its beginning, as long as a sample where the video
            is as long.
        classes: Of each video, the class that its folder names; empty where there is none.
        frames: Frames that are given of each; 0 gives what they are about alone.
    """

    sources: Sequence[ClipSource]
    classes: Sequence[str]
    frames: int

    def videos(self) -> Iterator[Tensor]:
        """The given frames alone, video by video: float32 (C, T, H, W) in [-0.5, 0.5]."""
        for number in range(len(self.sources)):
            yield to_float(self._read(number, slice(self.frames)))

    def class_name(self, number: int) -> str:
        """The class of the video that a sample goes on from."""
        return self.classes[number % len(self.classes)]

    def caption(self, number: int) -> str:
        """The first caption of the video of a sample; empty where it has none."""
        source = self._source(number)
        return source.caption(Address(0, 0))

    def sound(self, number: int) -> tuple[Path, float] | None:
        """The file that the video of a sample is heard in, and the second at which it begins."""
        source = self._source(number)
        entry = source.entries[0]
        if not entry.has_sound:
            return None
        path, offset = sound_of(source.root, entry)
        return path, offset + float(entry.info.times[entry.first])

    def truth(self, number: int) -> Iterator[Frames]:
        """What the video really shows, in pieces: uint8 (T, H, W, 3), at most a sample's frames."""
        for first in range(0, self._source(number).clip.frames, TRUTH_PIECE):
            yield self._read(number, slice(first, first + TRUTH_PIECE))

    def file(self, number: int) -> Path:
        """The video that a sample goes on from."""
        source = self._source(number)
        return source.root / source.entries[0].path

    def listed(self, number: int) -> dict[str, Any]:
        """For the listing of the samples; of a part of a video, the second at which it begins."""
        entry = self._source(number).entries[0]
        times = entry.info.times
        found: dict[str, Any] = {"given": str(self.file(number)), "class": self.class_name(number)}
        if (entry.first, entry.stop) != (0, len(times)):
            found["given_start"] = round(float(times[entry.first] - times[0]), 3)
        return found

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
    rate: float,
    reporter: Reporter,
) -> GivenClips:
    """Open the videos that samples go on from, each from its beginning.

    Of a folder with folders of splits, these are the validation videos, else all; if there are
    more than samples, some spread over them. They are read at the rate of the training clips.

    Args:
        path: A video, a folder of frames, or a dataset.
        given: Frames that are given, as the model counts them.
        wanted: Frames of a sample.
        samples: How many samples there will be.
        clip: Geometry of the model's clips.
        rate: Frames per second of these, as kept; 0 where it is not known.
        reporter: Told about videos that are left out, or read at another rate than theirs.

    Raises:
        DataError: There is no video of so many frames.
    """
    require_given(path)
    root, entries, classes = _entries(path, reporter)
    stride = clip.sample_every_n_frames
    rates = [_grid_rate(entry, clip, rate, wanted) for entry in entries]
    lengths = [grid_length(*pair) // stride for pair in zip(entries, rates, strict=True)]
    fitting = [video for video in zip(entries, rates, lengths, strict=True) if video[2] >= given]
    if not fitting:
        length, at = max(zip(lengths, rates, strict=True), default=(0, 0.0))
        raise DataError(
            f"{path}: --context-frames {given} needs a video of "
            f"{counted(given * stride, 'frame')}; the longest has {length * stride}"
            f"{f' at {at:.4g} fps' if at else ''}",
            "give fewer frames, or a longer video",
        )
    if short := len(entries) - len(fitting):
        reporter.note(
            f"passed over {counted(short, 'video')} of less than {counted(given, 'frame')}"
        )
    chosen = [fitting[place] for place in spread(len(fitting), samples)]
    if not clip.frame_rate:
        _note_other_rates(root, [(entry, at) for entry, at, _ in chosen if at], reporter)
    sources = [
        ClipSource(
            [entry],
            root,
            clip.model_copy(
                update={"sequence_length": min(wanted, length) * stride, "frame_rate": at}
            ),
        )
        for entry, at, length in chosen
    ]
    names = [classes[entry.label] if entry.label >= 0 else _folder(entry) for entry, *_ in chosen]
    return GivenClips(sources, names, given)


def check_given(frames: int, factor: int, wanted: int, name: str = "--context-frames") -> None:
    """Given frames must be whole latent frames, and leave some to sample.

    Args:
        frames: Frames that are given.
        factor: Frames of a latent frame.
        wanted: Frames of a sample.
        name: What the user calls them.

    Raises:
        ConfigError: They are not, or do not; the message has both numbers.
    """
    if not frames or frames % factor:
        below = frames - frames % factor
        near = " or ".join(str(n) for n in (below, below + factor) if n)
        raise ConfigError(
            f"{name} {frames} is not a multiple of {factor}, the frames that this "
            "VQGAN turns into one latent frame",
            f"give {near}",
        )
    if frames >= wanted:
        most = (wanted - 1) // factor * factor
        raise ConfigError(
            f"{name} {frames} leaves nothing to sample: samples have {wanted} frames",
            f"{f'give {most} or less, or ' if most else ''}sample longer: tats sample long "
            "--frames N",
        )


def _grid_rate(entry: VideoEntry, clip: ClipConfig, rate: float, wanted: int) -> float:
    """Frames per second at which a given video is read; 0 for its own, which takes every frame.

    Its own where that of training is not known, where it is no file, so that its rate is assumed,
    or where a sample is too short for the two to come to different frames.
    """
    stride = clip.sample_every_n_frames
    grid = rate * stride
    if clip.frame_rate or not grid or entry.kind != "file":
        return clip.frame_rate
    is_same = abs(entry.info.rate / grid - 1) * wanted * stride < 0.5
    return 0.0 if is_same else grid


def _note_other_rates(
    root: Path, read: Sequence[tuple[VideoEntry, float]], reporter: Reporter
) -> None:
    """Say which videos are read at another rate than their own."""
    if not read:
        return
    entry, rate = read[0]
    which = f"it and {counted(len(read) - 1, 'other')} are" if len(read) > 1 else "it is"
    reporter.note(
        f"{root / entry.path} has {entry.info.rate:.4g} frames per second: {which} read at "
        f"{rate:.4g}, the rate of the model"
    )


def _folder(entry: VideoEntry) -> str:
    return Path(entry.path).parent.name


def _entries(path: Path, reporter: Reporter) -> tuple[Path, list[VideoEntry], tuple[str, ...]]:
    """The folder where paths start, the videos that are meant, whole, and names of classes."""
    if not is_dataset(path):
        try:
            root, entry = single_video(path)
        except DataError as error:
            raise DataError(error.message, error.hint or GIVEN) from error
        return root, [entry], ()
    with reporter.task("indexing", "videos") as task:
        index = build_index(path, progress=lambda done, of: task.update(done, of))
    name_problems(index.problems, f"'tats data check {quote(str(path))}'", reporter)
    if path.is_file():  # its rows, or the videos in it, are what is meant
        return index.root, list(index.split("val") or index.entries), index.classes
    has_splits = any(entry.path.split("/")[0] in SPLIT_FOLDERS for entry in index.entries)
    chosen = index.split("val") if has_splits else index.entries
    # Without folders of splits, two parts of one video may be in both.
    distinct = {entry.path: entry for entry in chosen}.values()
    whole = [replace(entry, first=0, stop=len(entry.info.times)) for entry in distinct]
    return index.root, whole, index.classes
