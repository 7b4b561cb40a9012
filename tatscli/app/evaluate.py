"""Evaluation: Fréchet and kernel video distance between two folders of videos."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tatscli.app.data import name_problems, problem_of
from tatscli.app.devices import devices_notes, place
from tatscli.app.reporting import Reporter, Silent, Task
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import FVDConfig, FVDOptions
from tatscli.config.files import from_arguments
from tatscli.core import weights
from tatscli.core.data.bad import BadVideos
from tatscli.core.data.clips import Address, ClipSource
from tatscli.core.data.index import Problem, VideoEntry, build_index
from tatscli.core.data.video import Frames, read_frames
from tatscli.core.metrics.features import PROTOCOLS, video_features
from tatscli.core.metrics.frechet import frechet_distance, kernel_distance
from tatscli.core.models.i3d import CLASSES, I3D, load_i3d, random_i3d
from tatscli.core.ranks import Rank, each_batch, gathered
from tatscli.core.training.placement import choose_workers
from tatscli.errors import DataError

LISTING = "samples.json"
"""What tats sample writes beside its samples, so that nothing else is taken for one."""
LEAST_FRAMES = 9
"""Frames that I3D needs."""
SAME_RATE = 0.05
"""Part by which frame rates may differ without a warning."""
RECOMMENDED = 2048
"""Videos on each side below which the Fréchet distance is dominated by its bias."""


@dataclass(frozen=True)
class FVDResult:
    """Distances between two sets of videos, and what they were computed on.

    Attributes:
        measure: ``fvd``, or ``random-feature distance``, which is not one.
        value: Fréchet distance of the features.
        kernel: Kernel distance (squared MMD, cubic, unbiased) of the same features.
        protocol: Definition of the features.
        features: Network that computed them.
        precision: Arithmetic of that network; figures of different ones do not compare.
        real: Folder, or name given to it.
        fake: Folder.
        real_videos: Videos used.
        fake_videos: Videos used.
        frames: Frames of each clip.
        resolution: Side that both were brought to first; 0 where they were taken as they are.
        skipped: What was left out, with the reason.
    """

    measure: str
    value: float
    kernel: float
    protocol: str
    features: str
    precision: str
    real: str
    fake: str
    real_videos: int
    fake_videos: int
    frames: int
    resolution: int
    skipped: list[str]


def fvd(
    real: str | Path,
    fake: str | Path,
    *,
    protocol: str = "fvd",
    frames: int = 16,
    resolution: int = 0,
    device: str = "auto",
) -> float:
    """Fréchet video distance between two folders.

    Args:
        real: Folder of real videos or frame folders.
        fake: Folder of samples.
        protocol: ``fvd`` (official graph) or ``tats`` (as the published code).
        frames: Frames of each clip, at least 9.
        resolution: Bring both to this side first; 0 needs equal sizes.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: An argument is out of range.
        CheckpointError: The I3D file is not there; ``tats weights fetch i3d`` gets it.
    """
    config = from_arguments(
        FVDConfig,
        # Where processes are spawned, those that read would import the calling script.
        fvd={"protocol": protocol, "frames": frames, "resolution": resolution, "workers": 0},
        compute={"device": device},
    )
    return evaluate_fvd(Path(real), Path(fake), config).value


def evaluate_fvd(
    real: Path,
    fake: Path,
    config: FVDConfig,
    reporter: Reporter | None = None,
    *,
    real_name: str = "",
    real_stride: int = 1,
    real_rate: float = 0.0,
) -> FVDResult:
    """Compare two folders.

    Several processes, where there are, share the videos; the result is that of one.

    Args:
        real: Folder of real videos or frame folders.
        fake: Folder of samples; where it holds a listing of them, nothing else in it is read.
        config: Settings.
        reporter: Told about progress and about what is left out.
        real_name: Name of the real videos in the result.
        real_stride: Keep every n-th frame of the real videos.
        real_rate: Frames per second at which they are read, before that, where the settings have
            no rate for both sides; 0 keeps their own.

    Raises:
        CheckpointError: The file of the network is not there.
        DataError: The sides do not compare, or too few videos can be read.
    """
    reporter = reporter or Silent()
    options = config.fvd
    placement = place(config.compute)
    for text in devices_notes(config.compute, placement):
        reporter.note(text)
    for folder in (real, fake):
        if not folder.exists():
            raise DataError(f"{folder} does not exist", "give two folders of videos: REAL and FAKE")
    model = _network(options)
    sides = [
        _Side(real, options, real_stride, options.frame_rate or real_rate, reporter),
        _Side(fake, options, 1, options.frame_rate, reporter),
    ]
    if not options.frame_rate:
        _compare_rates(sides, reporter)
    if not options.resolution:
        _check_sizes(sides)
    with reporter.task("features", "videos", sum(map(len, sides))) as task:
        extractor = _Extractor(model, config, sides, task)
        each_batch(partial(extractor.start, placement.processes), placement)
        features = extractor.features()
    for side in sides:
        name_problems(side.undecodable, reporter)
    counts = [len(found) for found in features]
    if options.features == "random":
        reporter.warn("features of a random network: the value is good for trying, not an FVD")
    elif min(counts) < RECOMMENDED:
        reporter.warn(
            f"{counts[0]} and {counts[1]} videos: below {RECOMMENDED} on each side the value is "
            "mostly bias and compares only with the same counts"
        )
    return FVDResult(
        measure="fvd" if options.features == "i3d" else "random-feature distance",
        value=frechet_distance(*features),
        kernel=kernel_distance(*features),
        protocol=options.protocol,
        features=options.features,
        precision=config.compute.precision,
        real=real_name or str(real),
        fake=str(fake),
        real_videos=counts[0],
        fake_videos=counts[1],
        frames=options.frames,
        resolution=options.resolution,
        skipped=[f"{p.path}: {p.reason}" for side in sides for p in side.left_out],
    )


class _Side:
    """One of the two sets: its videos, one clip of each at a start fixed by seed and path."""

    def __init__(
        self, root: Path, options: FVDOptions, stride: int, rate: float, reporter: Reporter
    ) -> None:
        self.root, self._options = root, options
        self.undecodable: list[Problem] = []
        listed = _listed(root)
        with reporter.task(f"indexing {root}", "videos") as task:
            index = build_index(
                root, strict=options.strict, progress=lambda done, of: task.update(done, of)
            )
        videos = {e.path: e for e in index.entries if listed is None or e.path in listed}
        unread = [p for p in index.problems if listed is None or p.path in listed]
        known = {entry.path for entry in index.entries} | {p.path for p in index.problems}
        gone = sorted((listed or set()) - known)
        unread += [Problem(path, f"in {LISTING}, but not there") for path in gone]
        whole = [_whole(entry) for entry in videos.values()]
        clip = ClipConfig(
            resolution=options.resolution or 8,
            sequence_length=options.frames * stride,
            sample_every_n_frames=stride,
            frame_rate=rate,
        )
        try:
            self._source = ClipSource(whole, index.root, clip)
        except DataError as error:
            hint = f"a smaller --frames, from {LEAST_FRAMES} on, or longer videos"
            raise DataError(error.message, error.hint or hint) from error
        self.left_out = [*unread, *self._source.problems]
        self._bad = BadVideos(index.root, len(videos) + len(unread), options.max_bad, unread)
        if options.strict and self.left_out:
            first = self.left_out[0]
            raise DataError(f"{root}/{first.path}: {first.reason}", "leave out --strict")
        self._bad.check()
        name_problems(self.left_out, reporter)
        order = sorted(range(len(self._source.entries)), key=lambda i: self._chance(i, "which"))
        chosen = order[: options.limit] if options.limit else order
        self._chosen = sorted(chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def entries(self) -> list[VideoEntry]:
        """The videos in use."""
        return [self._source.entries[i] for i in self._chosen]

    @property
    def rate(self) -> float:
        """Median frames per second of the clips; 0 where folders of frames do not tell."""
        clip = self._source.clip
        own = [entry.info.rate for entry in self.entries if entry.kind == "file"]
        return (clip.frame_rate or (median(own) if own else 0.0)) / clip.sample_every_n_frames

    def read(self, place: int) -> Frames | Problem:
        """The clip of one video in use, or why it cannot be decoded."""
        number = self._chosen[place]
        entry, root = self._source.entries[number], self._source.root
        start = int(self._chance(number, "start") * self._source.starts[number])
        indices = self._source.frames(Address(number, start))
        try:
            resolution = self._options.resolution or None
            return read_frames(root / entry.path, entry.info, indices, resolution)
        except DataError as error:
            return problem_of(root, entry.path, error)

    def tolerate(self, problem: Problem) -> None:
        """Go on without a video that cannot be decoded.

        Raises:
            DataError: Nothing may be left out, or not so much.
        """
        if self._options.strict:
            raise DataError(f"{self.root}/{problem.path}: {problem.reason}", "leave out --strict")
        self._bad.add(problem)

    def leave_out(self, problem: Problem) -> None:
        """Keep the name of a video that cannot be decoded; see ``tolerate``."""
        self.tolerate(problem)
        self.undecodable.append(problem)
        self.left_out.append(problem)

    def _chance(self, number: int, purpose: str) -> float:
        """A number in [0, 1) fixed by seed and path, whatever the order of the listing."""
        path = self._source.entries[number].path
        key = f"{self._options.seed}\0{purpose}\0{path}".encode()
        return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") / 2**64


class _Stretch(NamedTuple):
    """Videos that are read and computed at once: places `first` to `stop` (excluded) of a side.

    They are the same whatever the number of processes, so that features are, to the last bit.
    """

    side: int
    first: int
    stop: int


class _Batch(NamedTuple):
    """What was read of a stretch: clips uint8 (B, T, H, W, 3), and the videos it lacks."""

    stretch: _Stretch
    clips: Tensor
    problems: list[Problem]


class _Found(NamedTuple):
    """What is known of a stretch: features float32 (B, 400), and the videos it lacks."""

    stretch: _Stretch
    features: Tensor
    problems: list[Problem]


class _Readable(Dataset[_Batch]):
    """The clips of both sides, by the stretch."""

    def __init__(self, sides: Sequence[_Side], stretches: Sequence[_Stretch]) -> None:
        self._sides, self._stretches = sides, stretches

    def __len__(self) -> int:
        return len(self._stretches)

    def __getitem__(self, number: int) -> _Batch:
        stretch = self._stretches[number]
        side = self._sides[stretch.side]
        read = [side.read(place) for place in range(stretch.first, stretch.stop)]
        problems = [item for item in read if isinstance(item, Problem)]
        clips = [item for item in read if not isinstance(item, Problem)]
        stacked = torch.from_numpy(np.stack(clips)) if clips else torch.empty(0)
        return _Batch(stretch, stacked, problems)


class _Extractor:
    """Computes features in one process while others read for it."""

    def __init__(self, model: I3D, config: FVDConfig, sides: Sequence[_Side], task: Task) -> None:
        self._model, self._config, self._sides, self._task = model, config, sides, task
        size = config.fvd.batch_size
        self._stretches = [
            _Stretch(number, first, min(first + size, len(side)))
            for number, side in enumerate(sides)
            for first in range(0, len(side), size)
        ]
        self._found: list[_Found] = []
        self._done, self._total = 0, sum(map(len, sides))

    def start(
        self, processes: int, rank: Rank
    ) -> tuple[Iterable[_Batch], Callable[[_Batch], None]]:
        """The batches of one of so many processes of a machine, and what it does with each."""
        self._rank = rank
        batches: DataLoader[_Batch] = DataLoader(
            _Readable(self._sides, self._stretches[rank.number :: rank.world]),
            batch_size=None,
            num_workers=choose_workers(rank.device.type, self._config.fvd.workers, processes),
            pin_memory=rank.device.type == "cuda",
        )
        return batches, self._compute

    def features(self) -> list[Tensor]:
        """Features of each side, (N, 400) in the order of its videos, from all processes."""
        found = sorted(found for part in gathered(self._found) for found in part)
        for stretch, _, problems in found:
            for problem in problems:
                self._sides[stretch.side].leave_out(problem)
        return [
            torch.cat([torch.empty(0, CLASSES), *(f for s, f, _ in found if s.side == number)])
            for number in range(len(self._sides))
        ]

    def _compute(self, batch: _Batch) -> None:
        config, stretch = self._config, batch.stretch
        for problem in batch.problems:
            self._sides[stretch.side].tolerate(problem)
        features = video_features(
            self._model,
            PROTOCOLS[config.fvd.protocol],
            batch.clips.numpy(),
            config.fvd.batch_size,
            self._rank.device,
            config.compute.precision,
        )
        self._found.append(_Found(stretch, features, batch.problems))
        # The others are about as far.
        self._done += (stretch.stop - stretch.first) * self._rank.world
        self._task.update(min(self._done, self._total))


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


def _listed(root: Path) -> set[str] | None:
    """Paths of the samples in a folder that tats sample wrote, lossless where there are."""
    if not (root / LISTING).is_file():
        return None
    return {sample.get("lossless", sample["file"]) for sample in read_listing(root)}


def _whole(entry: VideoEntry) -> VideoEntry:
    """The whole video, where only a part of it belongs to a split."""
    return VideoEntry(
        entry.path, entry.kind, "train", -1, entry.info, first=0, stop=len(entry.info.times)
    )


def _check_sizes(sides: list[_Side]) -> None:
    sizes = {(e.info.width, e.info.height): e.path for side in sides for e in side.entries}
    if len(sizes) > 1:
        (first, path), (second, other) = list(sizes.items())[:2]
        raise DataError(
            f"videos of different sizes: {path} is {first[0]}x{first[1]}, "
            f"{other} is {second[0]}x{second[1]}",
            "bring both sides to one size with --resolution N",
        )


def _compare_rates(sides: list[_Side], reporter: Reporter) -> None:
    """Motion at another speed is another motion to the network."""
    real, fake = (side.rate for side in sides)
    if real and fake and abs(real - fake) > SAME_RATE * max(real, fake):
        reporter.warn(
            f"real videos of {real:.4g} frames per second, samples of {fake:.4g}: different "
            "speeds raise the distance; --frame-rate reads both sides at one"
        )


def _network(options: FVDOptions) -> I3D:
    eps = PROTOCOLS[options.protocol].eps
    if options.features == "random":
        return random_i3d(options.seed, eps)
    return load_i3d(options.weights or weights.locate("i3d"), eps)
