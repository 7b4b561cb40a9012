"""Datasets: opening, checking and making them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Literal

import numpy as np
import numpy.typing as npt

from tatscli.app.ahead import made_by_tats, require_data
from tatscli.app.reporting import Reporter, Silent
from tatscli.config.check import CheckConfig
from tatscli.config.data import ClipConfig, DataConfig, GPTDataConfig
from tatscli.config.synth import SynthConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.config.words import counted
from tatscli.core.data.bad import BadVideos
from tatscli.core.data.clips import (
    FRAMES,
    Address,
    ClipSource,
    FixedClips,
    TrainClips,
    Wanted,
    every_clip,
    grid_length,
    slots_of,
    sound_of,
    spread_clips,
    too_short,
)
from tatscli.core.data.index import Problem, VideoEntry, VideoIndex, build_index
from tatscli.core.data.manifest import MANIFEST_SUFFIXES
from tatscli.core.data.sound import read_sound
from tatscli.core.data.synth import SynthResult, write_dataset
from tatscli.core.data.tokens import is_token_dataset
from tatscli.core.data.video import FOLDER_RATE, read_frames
from tatscli.errors import DataError

SOUND_PIECE = 30.0
"""Seconds of sound that are held at once while it is checked."""
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
NAMED_PROBLEMS = 10
"""Files that are named one by one; of more, the count."""


@dataclass(frozen=True)
class VideoClips:
    """The clips of a dataset of videos.

    Attributes:
        index: The videos.
        clip: How clips are cut.
        wanted: What is read of them.
        max_bad: Largest part of the videos that may be unreadable.
        dataset: The folder, manifest or file that was given.
        factor: Frames of a clip that become one latent frame.
    """

    index: VideoIndex
    clip: ClipConfig
    wanted: Wanted
    max_bad: float
    dataset: Path
    factor: int = 1

    @cached_property
    def train(self) -> ClipSource:
        """Clips of the training split."""
        return self._source("train")

    @cached_property
    def val(self) -> ClipSource:
        """Clips of the validation split."""
        return self._source("val")

    @property
    def rate(self) -> float:
        """Frames per second of the clips, as kept; that of the first video where none is set."""
        rate = self.clip.frame_rate or self.index.entries[0].info.rate
        return rate / self.clip.sample_every_n_frames

    @property
    def check_command(self) -> str:
        """The command that names all videos that are left out."""
        rate = f" --frame-rate {self.clip.frame_rate:g}" if self.clip.frame_rate else ""
        span = f"--sequence-length {self.clip.sequence_length}{rate}"
        return f"'tats data check {quote(str(self.dataset))} {span}'"

    @property
    def problems(self) -> list[Problem]:
        """Videos that are left out; what is wrong with several parts of one, once."""
        every = [*self.index.problems, *self.train.problems, *self.val.problems]
        return list(dict.fromkeys(every))

    @cached_property
    def bad(self) -> BadVideos:
        """The videos that cannot be read, to which those that cannot be decoded are added."""
        readable = {entry.path for entry in self.index.entries}
        # A row of a manifest may be wrong about a video that is not.
        unreadable = {p.path: p for p in self.index.problems if p.path not in readable}
        videos = len(readable) + len(unreadable)
        return BadVideos(self.dataset, videos, self.max_bad, unreadable.values())

    def training(self, seed: int, strict: bool) -> TrainClips:
        """Clips with random starts; ``strict``: one that cannot be decoded is an error."""
        return TrainClips(self.train, seed, self.bad, strict)

    def spread(self, split: Split, count: int) -> FixedClips:
        """At most so many fixed clips, spread evenly over a split."""
        source = self.source(split)
        return FixedClips(source, spread_clips(source, count))

    def every(self, split: Split, stride: int) -> FixedClips:
        """All clips of a split at a fixed stride."""
        source = self.source(split)
        return FixedClips(source, every_clip(source, stride))

    def source(self, split: Split) -> ClipSource:
        """Clips of a split."""
        return self.train if split == "train" else self.val

    def _source(self, split: Split) -> ClipSource:
        entries = self.index.split(split)
        if not entries:
            raise _no_video(self.dataset, split, len(self.index.problems))
        try:
            return ClipSource(entries, self.index.root, self.clip, self.wanted)
        except DataError as error:
            said = error.message.removeprefix(f"{self.index.root}: ")
            hint = error.hint or length_hint(self.index, self.clip, self.factor, self.dataset)
            raise DataError(f"{self.dataset}: {said}", hint) from None


def open_videos(
    root: Path,
    clip: ClipConfig,
    reporter: Reporter,
    wanted: Wanted = FRAMES,
    *,
    strict: bool = False,
    max_bad: float = 1.0,
    factor: int = 1,
) -> VideoClips:
    """Index a dataset, naming what is left out.

    Args:
        root: The dataset.
        clip: How clips are cut.
        reporter: Told about progress and about what is left out.
        wanted: What is read of the clips.
        strict: Whether anything left out is an error.
        max_bad: Largest part of the videos that may be unreadable.
        factor: Frames of a clip that become one latent frame.

    Raises:
        DataError: Nothing usable is left, too much is unreadable, or ``strict`` and anything would
            be left out.
    """
    require_data(root)
    if is_token_dataset(root):
        raise DataError(
            f"{root} holds tokens, and videos are needed",
            f"tats gpt train --data {root} trains on them; tats decode {root} makes videos of them",
        )
    with reporter.task("indexing", "videos") as task:
        index = build_index(root, strict=strict, progress=lambda n, of: task.update(n, of))
    _warn_of_outputs(index, root, reporter)
    clips = VideoClips(index, clip, wanted, max_bad, root, factor)
    clips.bad.check()
    if clips.problems and strict:
        first = clips.problems[0]
        raise DataError(f"{index.root / first.path}: {first.reason}", "leave out --strict")
    name_problems(clips.problems, clips.check_command, reporter)
    _note_silent(clips, reporter)
    return clips


def open_data(
    data: DataConfig | GPTDataConfig,
    clip: ClipConfig,
    reporter: Reporter,
    wanted: Wanted,
    *vqgans: VQGANConfig,
) -> VideoClips:
    """``open_videos`` of the dataset, and with the tolerance, that the settings name.

    Args:
        data: The settings.
        clip: How clips are cut.
        reporter: Told about progress and about what is left out.
        wanted: What is read of the clips.
        vqgans: What encodes the clips and their sound.
    """
    return open_videos(
        data.data,
        clip,
        reporter,
        wanted,
        strict=data.strict,
        max_bad=data.max_bad,
        factor=max(vqgan.downsample[0] for vqgan in vqgans),  # powers of two
    )


def told_untrained(index: VideoIndex, dataset: Path) -> str:
    """Which classes only validation videos have; empty where there are none."""
    names = ", ".join(index.untrained)
    return names and f"no training video of {dataset} is of class {names}"


def _no_video(dataset: Path, split: Split, unreadable: int) -> DataError:
    """The error for a dataset with nothing in a split."""
    missing = f"{dataset}: no {'training' if split == 'train' else 'validation'} video"
    if unreadable:
        return DataError(
            f"{missing} is left; of those that cannot be read there are {unreadable}",
            "mend or remove what cannot be read ('tats data check' names it), or add videos",
        )
    return DataError(missing, _put(dataset, "some", split) or "add some")


def _put(dataset: Path, which: str, split: Split) -> str:
    """How videos come into a split; empty where a dataset of this kind has no place for that."""
    if dataset.is_dir():
        return f"put {which} into {split}/"
    is_list = dataset.suffix.lower() == ".txt"  # a manifest of paths alone
    is_table = dataset.suffix.lower() in MANIFEST_SUFFIXES and not is_list
    return f"name {which} in it, with the split {split}" if is_table else ""


def _warn_of_outputs(index: VideoIndex, dataset: Path, reporter: Reporter) -> None:
    """Say which folders of a dataset are runs and samples; a manifest names what it means."""
    if not dataset.is_dir():
        return
    above = {entry.path: PurePosixPath(entry.path).parents[:-1] for entry in index.entries}
    folders = {folder for parents in above.values() for folder in parents}
    made = {folder for folder in folders if made_by_tats(index.root / folder)}
    if count := sum(bool(made & {*parents}) for parents in above.values()):
        reporter.warn(
            f"{count} of the {len(above)} videos of {dataset} are what tats wrote: they are in "
            f"{', '.join(sorted(map(str, made))[:NAMED_PROBLEMS])}; give the folder of the real "
            "ones alone"
        )


def _note_silent(clips: VideoClips, reporter: Reporter) -> None:
    """Count the videos that lack the sound that is wanted of them."""
    entries, wanted = clips.index.entries, clips.wanted
    mute = sum(not entry.has_sound for entry in entries)
    if wanted.hears and mute and not wanted.needs_sound:
        reporter.note(
            f"{mute} of {len(entries)} videos have no sound and are taken for silent ones"
        )


def longest_clip(entries: Iterable[VideoEntry], clip: ClipConfig, factor: int = 1) -> int:
    """Frames that clips can span in both splits; 0 where one has no video.

    Args:
        entries: The videos.
        clip: How clips are cut.
        factor: Frames of a clip that become one latent frame.
    """
    lengths: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for entry in entries:
        own = grid_length(entry, clip.frame_rate)
        lengths[entry.split] = max(lengths[entry.split], own)
    fits = min(lengths.values())
    return fits - fits % (clip.sample_every_n_frames * factor)


def length_hint(index: VideoIndex, clip: ClipConfig, factor: int, dataset: Path) -> str:
    """What helps where all videos of a split are too short for a clip."""
    entries, rate = index.entries, clip.frame_rate
    untimed = not all(entry.is_timed for entry in entries)
    slowed = rate if any(entry.info.rate > rate > 0 for entry in entries) else 0.0
    fits = longest_clip(entries, clip, factor)
    return _longer(fits, index.divided, dataset, slowed, untimed=untimed)


def _longer(fits: int, divided: int, dataset: Path, slowed: float, *, untimed: bool) -> str:
    """What helps where videos are too short.

    Args:
        fits: The ``longest_clip``.
        divided: Videos, where the last tenth of each is held out, else 0.
        dataset: What holds them.
        slowed: Frames per second at which some are read that have more, else 0.
        untimed: Whether the rate of some is assumed.
    """
    ways = []
    if fits > 1:
        ways.append(f"--sequence-length {fits} is the longest that fits both splits")
    if untimed and 0 < slowed < FOLDER_RATE:
        ways.append(
            f"--frame-rate {FOLDER_RATE:g} takes every frame (a folder of images is one video, and "
            f"like an array it is taken to have {FOLDER_RATE:g} frames per second)"
        )
    elif slowed:
        ways.append(f"--frame-rate 0 takes every frame, not {slowed:g} a second")
    if divided:
        which = "the only video" if divided == 1 else f"each of the {divided} videos"
        others = _put(dataset, "others", "val")
        ways.append(
            f"add videos{f', or {others}' if others else ''} (by default, the last tenth of "
            f"{which} is held out)"
        )
    else:
        ways.append("add longer videos, or more of them")
    return "; or ".join(ways)


def spread(length: int, count: int) -> list[int]:
    """At most so many places, evenly over a length."""
    count = min(count, length)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def name_problems(problems: Iterable[Problem], whole: str, reporter: Reporter) -> None:
    """Name what is left out, the first ones one by one.

    Args:
        problems: Videos, with the reasons.
        whole: What names all of them.
        reporter: Told.
    """
    left_out = list(problems)
    for problem in left_out[:NAMED_PROBLEMS]:
        reporter.warn(f"left out {problem.path}: {problem.reason}")
    if len(left_out) > NAMED_PROBLEMS:
        more = len(left_out) - NAMED_PROBLEMS
        reporter.warn(f"left out {counted(more, 'more video')}; {whole} names them all")


def problem_of(root: Path, path: str, error: DataError) -> Problem:
    """What is wrong with a video, without the path that the message starts with."""
    return Problem(path, error.message.removeprefix(f"{root / path}: "))


def synthesise(folder: Path, config: SynthConfig, reporter: Reporter | None = None) -> SynthResult:
    """Write a synthetic dataset."""
    reporter = reporter or Silent()
    with reporter.task("writing videos", "videos") as task:
        return write_dataset(folder, config, lambda done, total: task.update(done, total))


def decodable(clips: FixedClips, dataset: Path) -> tuple[FixedClips, list[Problem]]:
    """The clips of a dataset that can be decoded, and what is wrong with the others.

    Raises:
        DataError: None can.
    """
    addresses: list[Address] = []
    problems: list[Problem] = []
    for number, address in enumerate(clips.addresses):
        try:
            clips[number]
        except DataError as error:
            problems.append(clips.source.problem(address, error))
        else:
            addresses.append(address)
    if not addresses:
        raise DataError(
            f"{dataset}: none of {len(problems)} validation clips can be decoded; "
            f"the first: {problems[0].path}: {problems[0].reason}",
            "'tats data check' names the files that cannot be read",
        )
    return FixedClips(clips.source, addresses), problems


@dataclass(frozen=True)
class CheckResult:
    """What a dataset holds, decoded to the last frame.

    Attributes:
        folder: The dataset, also where it is a manifest or an HDF5 file.
        training_videos: Usable videos of the training split.
        validation_videos: Usable videos of the validation split.
        divided_videos: Videos whose last tenth is validated on, since none can be spared.
        captioned: Usable videos with a caption.
        with_sound: Usable videos with sound, of their own or beside them.
        classes: Names of the classes.
        untrained_classes: Names of those that only validation videos have.
        frames: Frames of the usable videos; of files, only what a manifest names, and that once.
        hours: Their playing time.
        sizes: Videos of each size as displayed.
        rates: Videos of each frame rate.
        rates_assumed: Videos that do not say theirs, and are taken to have 25 frames per second.
        training_clips: Places of training clips in an epoch.
        longest_clip_in_both_splits: Frames that clips can span in both splits.
        unreadable: What cannot be opened or decoded, with the reason.
        too_short: What is shorter than a clip.
        double: Groups of files with the same content.
        in_both_splits: Files whose content is in both splits, and parts of a file that overlap.
    """

    folder: Path
    training_videos: int
    validation_videos: int
    divided_videos: int
    captioned: int
    with_sound: int
    classes: list[str]
    untrained_classes: list[str]
    frames: int
    hours: float
    sizes: dict[str, int]
    rates: dict[str, int]
    rates_assumed: int
    training_clips: int
    longest_clip_in_both_splits: int
    unreadable: list[str]
    too_short: list[str]
    double: list[str]
    in_both_splits: list[str]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        wrong = (self.unreadable, self.too_short, self.double, self.in_both_splits)
        return not (any(wrong) or self.untrained_classes)


def check_data(folder: Path, config: CheckConfig, reporter: Reporter | None = None) -> CheckResult:
    """Decode every frame of a dataset and say what is wrong with it.

    Raises:
        DataError: No video can be decoded, or ``config.strict`` and anything is wrong.
    """
    reporter = reporter or Silent()
    require_data(folder)
    with reporter.task("indexing", "videos") as task:
        index = build_index(folder, progress=lambda n, of: task.update(n, of))
    _warn_of_outputs(index, folder, reporter)
    files = {entry.path: entry for entry in index.entries}
    unreadable = [_told(p, index.root) for p in index.problems]
    decoded: set[str] = set()
    with (
        reporter.task("decoding", "videos", len(files)) as task,
        ThreadPoolExecutor() as pool,
    ):
        found = pool.map(lambda entry: _decode_all(index.root, entry), files.values())
        for done, (entry, reason) in enumerate(zip(files.values(), found, strict=True), 1):
            if reason:
                unreadable.append(_told(Problem(entry.path, reason), index.root))
            else:
                decoded.add(entry.path)
            task.update(done, len(files))
    usable = [entry for entry in index.entries if entry.path in decoded]
    if not usable:
        raise DataError(f"{folder}: none of {len(files)} videos can be decoded", unreadable[0])
    # Pixels do not matter here; the least resolution is accepted for every video.
    clip = ClipConfig(
        resolution=8, sequence_length=config.sequence_length, frame_rate=config.frame_rate
    )
    videos = VideoClips(replace(index, entries=tuple(usable)), clip, FRAMES, 1.0, folder)
    short = {split: too_short(videos.index.split(split), clip) for split in SPLITS}
    trains = len(short["train"]) < len(videos.index.split("train"))
    double, in_both = _doubles(index.root, usable)
    frames = _frames_in_use(usable)
    once = [files[path] for path in sorted(decoded)]
    result = CheckResult(
        folder=folder,
        training_videos=sum(entry.split == "train" for entry in usable),
        validation_videos=sum(entry.split == "val" for entry in usable),
        divided_videos=index.divided,
        captioned=sum(bool(entry.captions) for entry in usable),
        with_sound=sum(entry.has_sound for entry in usable),
        classes=list(index.classes),
        untrained_classes=list(index.untrained),
        frames=sum(frames.values()),
        hours=sum(frames[e.path] / e.info.rate for e in once if e.info.rate) / 3600,
        sizes=_counts(f"{entry.info.width}x{entry.info.height}" for entry in once),
        rates=_counts(f"{entry.info.rate:.4g}" for entry in once),
        rates_assumed=sum(not entry.is_timed for entry in once),
        training_clips=slots_of(videos.train) if trains else 0,
        longest_clip_in_both_splits=longest_clip(usable, clip),
        unreadable=unreadable,
        too_short=[_told(problem, index.root) for split in SPLITS for problem in short[split]],
        double=double,
        in_both_splits=in_both,
    )
    untrained = told_untrained(index, folder)
    if config.strict and not result.sound:
        wrong = [*unreadable, *result.too_short, *double, *in_both, *filter(None, [untrained])]
        raise DataError(f"{folder}: {len(wrong)} problems; the first: {wrong[0]}")
    if result.sound:
        reporter.note("nothing is wrong")
    if unreadable:
        reporter.warn(
            f"{len(unreadable)} of {len(index.problems) + len(files)} videos of {folder} cannot be "
            "read; training leaves them out, and with --strict refuses them"
        )
    if untrained:
        reporter.warn(f"{untrained}; tats gpt train --condition label refuses that")
    return result


def require_clips(found: CheckResult, config: CheckConfig) -> None:
    """There must be something to train on, and to validate with.

    Raises:
        DataError: There is not.
    """
    counts = (found.training_videos, found.validation_videos)
    for split, count in zip(SPLITS, counts, strict=True):
        if not count:
            raise _no_video(found.folder, split, len(found.unreadable))
    if (fits := found.longest_clip_in_both_splits) < config.sequence_length:
        rate = config.frame_rate
        slowed = rate if any(float(own) > rate > 0 for own in found.rates) else 0.0
        raise DataError(
            f"{found.folder}: no {'validation' if found.training_clips else 'training'} video is "
            f"long enough for a clip of {config.sequence_length} frames",
            _longer(
                fits,
                found.divided_videos,
                found.folder,
                slowed,
                untimed=found.rates_assumed > 0,
            ),
        )


def _told(problem: Problem, root: Path) -> str:
    """A line about a video, which may be the whole dataset."""
    return f"{root.name if problem.path == '.' else problem.path}: {problem.reason}"


def _decode_all(root: Path, entry: VideoEntry) -> str:
    """The reason why a video, or its sound, cannot be decoded to its end; empty where they can."""
    count = len(entry.info.times)
    step = 64
    try:
        for first in range(0, count, step):
            read_frames(root / entry.path, entry.info, range(first, min(first + step, count)), 8)
        if entry.has_sound:
            path, offset = sound_of(root, entry)
            start, end = (float(entry.info.times[place]) + offset for place in (0, -1))
            for second in np.arange(start, end + SOUND_PIECE, SOUND_PIECE):
                read_sound(path, second, second + SOUND_PIECE)
    except DataError as error:
        return problem_of(root, entry.path, error).reason
    return ""


def _frames_in_use(entries: Iterable[VideoEntry]) -> dict[str, int]:
    """How many frames of each file belong to the dataset; its parts may overlap."""
    used: dict[str, npt.NDArray[np.bool_]] = {}
    for entry in entries:
        of_file = used.setdefault(entry.path, np.zeros(len(entry.info.times), bool))
        of_file[entry.first : entry.stop] = True
    return {path: int(of_file.sum()) for path, of_file in used.items()}


def _doubles(root: Path, entries: list[VideoEntry]) -> tuple[list[str], list[str]]:
    """Groups of equal files, and those of them that are in both splits."""
    splits: dict[str, set[str]] = {}
    for entry in entries:
        if entry.kind == "file":
            splits.setdefault(entry.path, set()).add(entry.split)
    groups: dict[bytes, dict[str, set[str]]] = {}
    for name, own in splits.items():
        path = root / name
        digest = blake2b(digest_size=16)
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        groups.setdefault(digest.digest(), {})[name] = own
    same = [paths for paths in groups.values() if len(paths) > 1]
    double = [" = ".join(sorted(paths)) for paths in same]
    both = [" = ".join(sorted(p)) for p in same if len(set.union(*p.values())) > 1]
    return double, both + _overlaps(entries)


def _overlaps(entries: list[VideoEntry]) -> list[str]:
    """Parts of one video, of which a manifest puts the same frames into both splits."""
    trained: dict[str, list[VideoEntry]] = {}
    for entry in entries:
        if entry.split == "train":
            trained.setdefault(entry.path, []).append(entry)
    return [
        f"{held.path}: frames {max(own.first, held.first)} to {min(own.stop, held.stop)}"
        for held in entries
        if held.split == "val"
        for own in trained.get(held.path, [])
        if max(own.first, held.first) < min(own.stop, held.stop)
    ]


def _counts(names: Iterable[str]) -> dict[str, int]:
    values, counts = np.unique(list(names), return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}
