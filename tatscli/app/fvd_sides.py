"""The two sides of a comparison: which videos, and which clips of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b, file_digest
from pathlib import Path, PurePosixPath
from statistics import median

import numpy as np
import numpy.typing as npt

from tatscli.app.data import name_problems, problem_of
from tatscli.app.listing import LISTING, Listed
from tatscli.app.reporting import Reporter
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import I3D_FRAMES, FVDOptions
from tatscli.core.data.bad import BadVideos
from tatscli.core.data.clips import ClipSource, told_length
from tatscli.core.data.index import Problem, VideoEntry, build_index
from tatscli.core.data.manifest import MANIFEST_SUFFIXES
from tatscli.core.data.video import FOLDER_RATE, Frames, frame_files, natural_key, read_frames
from tatscli.core.metrics.protocol import Placing
from tatscli.errors import DataError

HASHING_THREADS = 4
LEFT_OUT = "'skipped' of --json"
"""What names all that is left out."""


@dataclass(frozen=True)
class About:
    """What is known of the videos of a side.

    Attributes:
        rate: Median frames per second of the clips; 0 where folders of frames do not tell.
        rates: The lowest and the highest of them; empty where folders of frames do not tell.
        sizes: Width and height of the frames, and how many videos have them.
        lossy: Videos stored by a codec that changes pixels.
        lossless: Videos stored by one that does not.
        unsteady: Videos whose frames are shown for different times.
        padded: Videos that are too short, and repeat their last frame.
        skipped: What was left out, with the reason.
    """

    rate: float
    rates: list[float]
    sizes: dict[str, int]
    lossy: int
    lossless: int
    unsteady: int
    padded: int
    skipped: list[str]


class Side:
    """One of the two sets of videos, and its clips.

    Clips start at a number that is fixed by seed and path, however videos are listed and whoever
    reads them.

    Args:
        root: Folder, manifest, HDF5 file or array.
        is_real: Whether these are the real videos.
        options: Settings.
        placings: Where clips start, in all ways that are wanted.
        stride: Keep every n-th frame.
        rate: Frames per second at which videos are read, before that; 0 keeps their own.
        reporter: Told about progress and about what is left out.

    Attributes:
        undecodable: What turned out unreadable since.
    """

    def __init__(
        self,
        root: Path,
        is_real: bool,
        options: FVDOptions,
        placings: Sequence[Placing],
        stride: int,
        rate: float,
        reporter: Reporter,
    ) -> None:
        self.root, self.is_real, self.stride, self.frame_rate = root, is_real, stride, rate
        self._options, self._placings = options, tuple(dict.fromkeys(placings))
        self.undecodable: list[Problem] = []
        with reporter.task(f"indexing {root}", "videos") as task:
            index = build_index(
                root, strict=options.strict, progress=lambda done, of: task.update(done, of)
            )
        self._root = index.root
        known = {entry.path for entry in index.entries} | {p.path for p in index.problems}
        # A manifest says itself which are meant.
        samples = Listed.among(root, known) if root.is_dir() else Listed({})
        # The parts that a manifest names, or a split has of each video, are videos of their own.
        in_parts = root.suffix.lower() in MANIFEST_SUFFIXES or (is_real and options.split != "all")
        entries = {
            (entry.path, entry.first if in_parts else 0): entry if in_parts else _whole(entry)
            for entry in index.entries
            if samples.takes(entry.path) and self._is_wanted(entry)
        }
        unread = [p for p in index.problems if samples.takes(p.path)]
        gone = sorted(samples.paths - known)
        unread += [Problem(path, f"in {LISTING}, but not there") for path in gone]
        if not entries:
            raise DataError(
                f"{root}: none of its {len(index.entries)} videos is wanted",
                self._unwanted([e for e in index.entries if samples.takes(e.path)]),
            )
        clip = ClipConfig(resolution=8, sequence_length=1, frame_rate=rate)
        self._source = ClipSource(list(entries.values()), index.root, clip)
        self._span = (options.frames - 1) * stride + 1
        short = self._short()
        self.left_out = [*unread, *(short.values() if options.short != "pad" else ())]
        self._bad = BadVideos(root, len(entries) + len(unread), options.max_bad, unread)
        if self.left_out and (options.strict or (short and options.short == "error")):
            first = self.left_out[0]
            way = "leave out --strict" if options.strict else "--short skip leaves it out"
            raise DataError(f"{root}/{first.path}: {first.reason}", way)
        self._bad.check()
        fitting = [n for n in range(len(entries)) if options.short == "pad" or n not in short]
        if not fitting:
            longest = self._source.entries[int(self._source.starts.argmax())]
            raise DataError(
                f"{root}: none of its {len(entries)} videos is long enough for a clip of "
                f"{self._span} frames; the longest has {told_length(longest, rate)}",
                self._longer(int(self._source.starts.max())),
            )
        name_problems(self.left_out, LEFT_OUT, reporter)
        self._all = sorted(fitting, key=lambda n: (natural_key(self._name(n)), self._name(n)))
        self._chosen = self._all
        self.choose(options.limit)

    def choose(self, count: int) -> None:
        """Use so many of the videos, the same ones whatever others there are; 0 = all."""
        if count:
            chosen = by_chance(map(self._name, self._all), self._options.seed, count)
            self._chosen = [n for n in self._all if self._name(n) in chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def entries(self) -> list[VideoEntry]:
        """The videos in use, in the order of their names."""
        return [self._source.entries[n] for n in self._chosen]

    @property
    def about(self) -> About:
        """What is known of the videos in use."""
        infos = [entry.info for entry in self.entries]
        files = [entry.info for entry in self.entries if entry.is_timed]
        rates = [info.rate for info in files]
        if self.frame_rate:
            rates = [self.frame_rate]
        sizes = Counter(f"{info.width}x{info.height}" for info in infos)
        return About(
            rate=median(rates or [0.0]) / self.stride,
            rates=[end / self.stride for end in (min(rates), max(rates))] if rates else [],
            sizes=dict(sorted(sizes.items())),
            lossy=sum(info.is_lossless is False for info in infos),
            lossless=sum(info.is_lossless is True for info in infos),
            unsteady=sum(not info.is_steady for info in files),
            padded=sum(int(self._source.starts[n]) < self._span for n in self._chosen),
            skipped=[f"{p.path}: {p.reason}" for p in self.left_out],
        )

    def name(self, place: int) -> str:
        """The video at a place among those in use: its path below the root, without suffix."""
        return self._name(self._chosen[place])

    def read(self, place: int) -> dict[Placing, list[Frames]] | Problem:
        """The clips of one video in use, in each way to place them, or why it cannot be decoded."""
        number = self._chosen[place]
        entry = self._source.entries[number]
        positions = {
            placing: [self._positions(number, start) for start in self._starts(number, placing)]
            for placing in self._placings
        }
        wanted = np.unique(np.concatenate([p for each in positions.values() for p in each]))
        try:
            frames = read_frames(self._root / entry.path, entry.info, wanted.tolist())
        except DataError as error:
            return problem_of(self._root, entry.path, error)
        return {
            placing: [frames[np.searchsorted(wanted, clip)] for clip in each]
            for placing, each in positions.items()
        }

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

    def contents(self) -> list[tuple[str, list[str]]]:
        """For each video in use, its name and what changes with its content."""
        files = {entry.path: self._files(entry) for entry in self.entries}
        unique = list({file for each in files.values() for file in each})
        identify = _stamp if self._options.cache_by_mtime else _hash
        try:
            with ThreadPoolExecutor(HASHING_THREADS) as pool:
                found = dict(zip(unique, pool.map(identify, unique), strict=True))
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}") from error
        return [
            (self.name(place), [found[file] for file in files[entry.path]])
            for place, entry in enumerate(self.entries)
        ]

    def _files(self, entry: VideoEntry) -> list[Path]:
        if entry.kind in ("hdf5", "array"):
            return [self._root]
        path = self._root / entry.path
        return frame_files(path) if entry.kind == "frames" else [path]

    def _is_wanted(self, entry: VideoEntry) -> bool:
        if not self.is_real:
            return True
        pattern = self._options.match
        return self._is_in_split(entry) and (not pattern or fnmatchcase(entry.path, pattern))

    def _is_in_split(self, entry: VideoEntry) -> bool:
        return self._options.split in ("all", entry.split)

    def _unwanted(self, entries: Sequence[VideoEntry]) -> str:
        """What helps where none of the videos is wanted."""
        if not (self.is_real and entries):
            return f"its {LISTING} lists none of them"
        in_split = [entry.path for entry in entries if self._is_in_split(entry)]
        if not in_split:
            return "leave out --split, or name the other"
        return f"--match is compared with whole paths below the folder, such as {in_split[0]}"

    def _longer(self, longest: int) -> str:
        """What helps where the longest video, on the grid of its frames, is too short."""
        ways = []
        fits = (longest - 1) // self.stride + 1
        if fits >= I3D_FRAMES:
            ways.append(f"--frames {fits} takes shorter clips")
        if longest < max(entry.stop - entry.first for entry in self._source.entries):
            assumed = f" (of the {FOLDER_RATE:g} a second that images and arrays are taken to have)"
            untimed = not all(entry.is_timed for entry in self._source.entries)
            ways.append(f"--frame-rate 0 takes every frame{assumed * untimed}")
        if self._options.stride > 1 and longest >= self._options.frames:
            ways.append("--stride 1 takes every frame")
        ways = ways or [f"give longer videos (I3D needs {I3D_FRAMES} frames)"]
        return "; or ".join([*ways, "--short pad repeats last frames"])

    def _short(self) -> dict[int, Problem]:
        """The videos that a clip does not fit into, by number."""
        return {
            number: Problem(
                entry.path,
                f"has {told_length(entry, self.frame_rate)}, a clip needs {self._span}",
            )
            for number, (entry, length) in enumerate(
                zip(self._source.entries, self._source.starts.tolist(), strict=True)
            )
            if length < self._span
        }

    def _starts(self, number: int, placing: Placing) -> list[int]:
        """Where the clips of a video start, on the grid of its frames."""
        count = self._options.clips_per_video
        spare = max(0, int(self._source.starts[number]) - self._span)
        match placing:
            case "start":
                return [0]
            case "center":
                return [spare // 2]
            case "uniform":
                return [(2 * k + 1) * spare // (2 * count) for k in range(count)]
            case "random":
                purposes = ["start", *(f"start {k}" for k in range(1, count))]
                return [int(self._chance(number, purpose) * (spare + 1)) for purpose in purposes]

    def _positions(self, number: int, start: int) -> npt.NDArray[np.int64]:
        """Positions of a clip's frames in its video's times."""
        ticks = np.arange(start, start + self._span, self.stride)
        last = int(self._source.starts[number]) - 1
        return self._source.positions(self._source.entries[number], ticks.clip(max=last))

    def _name(self, number: int) -> str:
        entry = self._source.entries[number]
        # So that a file and a folder of its frames have clips at the same places.
        path = PurePosixPath(entry.path).with_suffix("") if entry.kind == "file" else entry.path
        return f"{path}#{entry.first}" if entry.first else str(path)

    def _chance(self, number: int, purpose: str) -> float:
        return _chance(self._options.seed, purpose, self._name(number))


def by_chance(names: Iterable[str], seed: int, count: int) -> set[str]:
    """So many of the names, the same ones whatever others there are."""
    return set(sorted(set(names), key=lambda name: _chance(seed, "which", name))[:count])


def _chance(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) fixed by seed and name, whatever the order of the listing."""
    key = f"{seed}\0{purpose}\0{name}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") / 2**64


def _whole(entry: VideoEntry) -> VideoEntry:
    """The whole video, where only a part of it belongs to a split."""
    return VideoEntry(
        entry.path, entry.kind, entry.split, -1, entry.info, first=0, stop=len(entry.info.times)
    )


def _stamp(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
