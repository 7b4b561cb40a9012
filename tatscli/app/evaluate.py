"""Evaluation: Fréchet and kernel video distance between two folders of videos."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any

from tatscli.app.data import name_problems, problem_of
from tatscli.app.devices import choose_device
from tatscli.app.reporting import Reporter, Silent, Task
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import FVDConfig, FVDOptions
from tatscli.config.files import from_arguments
from tatscli.core import weights
from tatscli.core.data.clips import Address, ClipSource
from tatscli.core.data.index import Problem, VideoEntry, build_index
from tatscli.core.data.video import Frames, read_frames
from tatscli.core.metrics.features import PROTOCOLS, video_features
from tatscli.core.metrics.frechet import frechet_distance, kernel_distance
from tatscli.core.models.i3d import I3D, load_i3d, random_i3d
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
        fvd={"protocol": protocol, "frames": frames, "resolution": resolution},
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

    Args:
        real: Folder of real videos or frame folders.
        fake: Folder of samples; where it holds a listing of them, nothing else in it is read.
        config: Settings.
        reporter: Told about progress and about what is left out.
        real_name: Name of the real videos in the result.
        real_stride: Keep every n-th frame of the real videos.
        real_rate: Frames per second at which they are read, before that, where the settings have
            no rate for both sides; 0 keeps their own.
    """
    reporter = reporter or Silent()
    options = config.fvd
    device = choose_device(config.compute.device)
    model = _network(options)
    sides = [
        _Side(real, options, real_stride, options.frame_rate or real_rate, reporter),
        _Side(fake, options, 1, options.frame_rate, reporter),
    ]
    if not options.frame_rate:
        _compare_rates(sides, reporter)
    if not options.resolution:
        _check_sizes(sides)
    features = []
    for side in sides:
        with reporter.task(f"features of {side.root}", "videos", len(side)) as task:
            found = video_features(
                model,
                PROTOCOLS[options.protocol],
                side.clips(task),
                options.batch_size,
                device,
                config.compute.precision,
            )
        features.append(found)
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
        self._source = ClipSource(whole, index.root, clip)
        self.left_out = [*unread, *self._source.problems]
        if options.strict and self.left_out:
            first = self.left_out[0]
            raise DataError(f"{root}/{first.path}: {first.reason}", "leave out --strict")
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

    def clips(self, task: Task) -> Iterator[Frames]:
        """One clip of each video; what cannot be decoded is left out and kept by name."""
        for done, number in enumerate(self._chosen, 1):
            entry = self._source.entries[number]
            start = int(self._chance(number, "start") * self._source.starts[number])
            indices = self._source.frames(Address(number, start))
            path = self._source.root / entry.path
            try:
                yield read_frames(path, entry.info, indices, self._options.resolution or None)
            except DataError as error:
                if self._options.strict:
                    raise
                problem = problem_of(self._source.root, entry.path, error)
                self.undecodable.append(problem)
                self.left_out.append(problem)
            task.update(done)

    def _chance(self, number: int, purpose: str) -> float:
        """A number in [0, 1) fixed by seed and path, whatever the order of the listing."""
        path = self._source.entries[number].path
        key = f"{self._options.seed}\0{purpose}\0{path}".encode()
        return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") / 2**64


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
