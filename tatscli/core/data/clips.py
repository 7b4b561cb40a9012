"""Clips cut from videos, for training (random starts), validation and encoding (fixed ones).

C channels, T frames, H W pixels; clips are float32 (C, T, H, W) in [-0.5, 0.5], and so is the sound
of their frames, (1, T, 64, 16). A video is read on
its grid: its own frames, or the frames nearest in time to the ticks of a given rate. A clip spans
`sequence_length` frames of the grid, of which every `sample_every_n_frames`-th is kept.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tatscli.config.data import ClipConfig
from tatscli.config.words import counted
from tatscli.core.data.bad import BadVideos, Undecodable
from tatscli.core.data.index import Problem, VideoEntry
from tatscli.core.data.sound import silence, sound_patches
from tatscli.core.data.video import read_frames, to_float
from tatscli.errors import DataError

logger = logging.getLogger(__name__)

RETRIES = 10
"""Clips tried in place of one that cannot be decoded."""

Draw = tuple[int, int]
"""A slot, and the number of the sample in the whole run."""

Order = Callable[[int, int], Any]
"""Gives, for a seed and an epoch, what tells the slot at each place of it, such as an array."""


NOTHING = torch.empty(0)
"""Stands for text or sound that nobody wants."""


class Clip(NamedTuple):
    """A clip, or a batch of them once collated.

    Attributes:
        video: float32 (C, T, H, W) in [-0.5, 0.5]; of a source of sound, its patches.
        label: Class id, -1 without classes.
        text: Ids of its caption, int64 (tokens,), where they are wanted.
        sound: Patches of the sound of its frames, float32 (1, T, 64, 16), where they are wanted.
    """

    video: Tensor
    label: int
    text: Tensor = NOTHING
    sound: Tensor = NOTHING


class Wanted(NamedTuple):
    """What is read of a clip.

    Attributes:
        input: Whether ``Clip.video`` holds frames, or the sound of each.
        text: Turns its caption into ids, where they are wanted.
        sound: Whether the sound of its frames is wanted beside them.
        needs_sound: Whether, where sound is read, videos without it are left out rather than taken
            for silent ones.
    """

    input: Literal["video", "sound"] = "video"
    text: Callable[[str], Tensor] | None = None
    sound: bool = False
    needs_sound: bool = False

    @property
    def hears(self) -> bool:
        """Whether sound is read at all."""
        return self.sound or self.input == "sound"


FRAMES = Wanted()
"""Frames and nothing else."""


class Address(NamedTuple):
    """Where a clip is, and how it is described.

    Attributes:
        entry: Number of the entry in its source.
        start: The first frame on its grid.
        caption: Any number; modulo the captions of its video, the one that is taken.
    """

    entry: int
    start: int
    caption: int = 0


class ClipSource:
    """The clips that the videos of a split hold.

    Args:
        entries: Videos of one split.
        root: The folder their paths start from.
        clip: Size, length and rate of the clips.
        wanted: What is read of them.

    Attributes:
        entries: The videos that are long enough for a clip.
        problems: Those that are not, and those without sound where it is needed.
        starts: For each entry, on how many frames of its grid a clip can start; int64, at least 1.

    Raises:
        DataError: No video is long enough, or none has sound where it is needed.
    """

    def __init__(
        self,
        entries: Sequence[VideoEntry],
        root: Path,
        clip: ClipConfig,
        wanted: Wanted = FRAMES,
    ) -> None:
        self.root = root
        self.clip = clip
        self.wanted = wanted
        mute: tuple[Problem, ...] = ()
        if wanted.hears and wanted.needs_sound:
            mute = tuple(Problem(e.path, "has no sound") for e in entries if not e.has_sound)
            if entries and len(mute) == len(entries):
                raise DataError(
                    f"{root}: no {entries[0].split} video has sound",
                    "--missing-sound silence takes them for silent ones",
                )
            entries = [entry for entry in entries if entry.has_sound]
        lengths = [grid_length(entry, clip.frame_rate) for entry in entries]
        self.problems = too_short(entries, clip)
        if len(self.problems) == len(entries):
            if not entries:
                raise DataError(f"{root}: there is no video")
            name = root.name if entries[0].path == "." else entries[0].path
            first = f"the first, {name}, has {told_length(entries[0], clip.frame_rate)}"
            raise DataError(
                f"{root}: no {entries[0].split} video is long enough for a clip of "
                f"{clip.sequence_length} frames; {first}, the longest {max(lengths)}"
            )
        fitting = [
            (entry, length - clip.sequence_length + 1)
            for entry, length in zip(entries, lengths, strict=True)
            if length >= clip.sequence_length
        ]
        self.problems += mute
        self.entries = tuple(entry for entry, _ in fitting)
        self.starts: npt.NDArray[np.int64] = np.array([count for _, count in fitting], np.int64)

    def read(self, address: Address) -> Clip:
        """Reads one clip.

        Raises:
            DataError: It cannot be decoded.
        """
        return self.read_video([address])[0]

    def read_video(self, addresses: Sequence[Address]) -> list[Clip]:
        """Reads clips of one video, decoded once from the first of them to the last.

        Raises:
            DataError: One of them cannot be decoded.
        """
        entry, wanted = self.entries[addresses[0].entry], self.wanted
        if wanted.input == "sound":
            return [Clip(self.sound(address), entry.label) for address in addresses]
        indices = np.array([self.frames(address) for address in addresses])
        different, places = np.unique(indices, return_inverse=True)
        path, size = self.root / entry.path, self.clip.resolution
        frames = read_frames(path, entry.info, different.tolist(), size)
        return [
            Clip(
                to_float(frames[shown]),
                entry.label,
                wanted.text(self.caption(address)) if wanted.text else NOTHING,
                self.sound(address) if wanted.sound else NOTHING,
            )
            for address, shown in zip(addresses, places.reshape(indices.shape), strict=True)
        ]

    def caption(self, address: Address) -> str:
        """What is said about a clip; empty where its video has no caption."""
        captions = self.entries[address.entry].captions
        return captions[address.caption % len(captions)] if captions else ""

    def sound(self, address: Address) -> Tensor:
        """The sound of a clip's frames, float32 (1, T, 64, 16) in [-0.5, 0.5].

        Raises:
            DataError: It cannot be decoded.
        """
        entry = self.entries[address.entry]
        if not entry.has_sound:
            return silence(self.clip.frames)
        path, offset = sound_of(self.root, entry)
        return sound_patches(path, self._edges(address), offset)

    def frames(self, address: Address) -> list[int]:
        """Positions of a clip's frames in its video's times."""
        ticks = address.start + np.arange(
            0, self.clip.sequence_length, self.clip.sample_every_n_frames
        )
        positions: list[int] = self.positions(self.entries[address.entry], ticks).tolist()
        return positions

    def _edges(self, address: Address) -> npt.NDArray[np.float64]:
        """When each frame of a clip, and the one behind its last, begins; seconds, (T + 1,).

        On the grid of a rate, these are its ticks, whichever frames are nearest to them.
        """
        entry, every = self.entries[address.entry], self.clip.sample_every_n_frames
        ticks = address.start + np.arange(0, self.clip.sequence_length + 1, every)
        if self.clip.frame_rate:
            first: float = entry.info.times[entry.first]
            return first + ticks / self.clip.frame_rate
        times, places = entry.info.times, entry.first + ticks
        behind = places[-1] - len(times)
        if behind < 0:
            return times[places]
        # Behind the end of the video there are no times; its mean rate goes on.
        last = times[-1] + (behind + 1) / entry.info.rate
        return np.append(times[places[:-1]], last)

    def seconds(self, address: Address) -> float:
        """The presentation time of a clip's first frame."""
        entry = self.entries[address.entry]
        return float(entry.info.times[self.positions(entry, np.array([address.start]))[0]])

    def problem(self, address: Address, error: DataError) -> Undecodable:
        """What is wrong with the video of a clip, given what reading that met."""
        path = self.entries[address.entry].path
        reason = error.message.removeprefix(f"{self.root / path}: ")
        return Undecodable(path, reason, round(self.seconds(address), 3))

    def positions(self, entry: VideoEntry, ticks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions in a video's times of the frames nearest to ticks of its grid, int64."""
        if not self.clip.frame_rate:
            return entry.first + ticks
        times = entry.info.times[entry.first : entry.stop]
        wanted = times[0] + ticks / self.clip.frame_rate
        # Between two frames, the border is half-way; on it, the earlier frame is taken.
        borders = (times[1:] + times[:-1]) / 2
        nearest: npt.NDArray[np.int64] = np.searchsorted(borders, wanted - 1e-6)
        return entry.first + nearest


def sound_of(root: Path, entry: VideoEntry) -> tuple[Path, float]:
    """The file that holds the sound of a video, and what to add to the video's times in it."""
    if entry.sound:  # a file of its own begins with the first frame
        return root / entry.sound, -float(entry.info.times[0])
    return root / entry.path, 0.0


def grid_length(entry: VideoEntry, frame_rate: float) -> int:
    """Frames of a video, or of its part, on the grid of a rate; 0 is its own."""
    frames = entry.stop - entry.first
    if not frame_rate or not frames:
        return frames
    times = entry.info.times[entry.first : entry.stop]
    # A millionth of a tick for rounding: 8 frames at 8 fps are 8 ticks.
    return int((times[-1] - times[0]) * frame_rate + 1e-6) + 1


def told_length(entry: VideoEntry, frame_rate: float) -> str:
    """How many frames a video, or its part, has on the grid of a rate, and of which."""
    own, whole = entry.stop - entry.first, len(entry.info.times)
    if not own:
        return f"{counted(whole, 'frame')}, none of them in {entry.split}"
    length = grid_length(entry, frame_rate)
    rate = f" at {frame_rate:g} fps" if frame_rate else ""
    assumed = "" if entry.is_timed else "an assumed "
    of = f" of its {own} at {assumed}{entry.info.rate:.4g}" if own != length else ""
    part = f" ({entry.first} to {entry.stop - 1})" if own != whole else ""
    return f"{counted(length, 'frame')}{rate}{of}{part}"


def too_short(entries: Iterable[VideoEntry], clip: ClipConfig) -> tuple[Problem, ...]:
    """The videos that a clip does not fit into."""
    return tuple(
        Problem(
            entry.path,
            f"has {told_length(entry, clip.frame_rate)}, a clip needs {clip.sequence_length}",
        )
        for entry in entries
        if grid_length(entry, clip.frame_rate) < clip.sequence_length
    )


class _Slots:
    """Stretches about one clip long that tile the grids of a source's videos.

    The starts of each video are divided among its slots, so that drawing one start in each slot
    shows the content about once, and every valid start belongs to one slot.
    """

    def __init__(self, source: ClipSource) -> None:
        self.starts = source.starts
        span = source.clip.sequence_length
        self.counts = (source.starts + span - 1) // span
        self.ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def bounds(self, slot: int) -> tuple[int, int, int]:
        """The entry, the first start in the slot, and the one behind the last."""
        entry = int(np.searchsorted(self.ends, slot, side="right"))
        count, starts = int(self.counts[entry]), int(self.starts[entry])
        place = slot - int(self.ends[entry]) + count
        return entry, place * starts // count, (place + 1) * starts // count


def slots_of(source: ClipSource) -> int:
    """Slots of a source: its training clips in an epoch."""
    return len(_Slots(source))


class TrainClips(Dataset[Clip]):
    """Clips with random starts, each determined by the seed and its number in the run.

    Items are addressed by (slot, number), as `ConsumedBatchSampler` yields them, so they do not
    depend on workers and processes. A clip that cannot be decoded is named in the log, once for
    each file, and another takes its place, determined by seed, number and attempt.

    Args:
        source: The videos.
        seed: Determines the starts.
        bad: Told about videos that cannot be decoded.
        strict: Whether a clip that cannot be decoded is an error instead.
    """

    def __init__(self, source: ClipSource, seed: int, bad: BadVideos, strict: bool = False) -> None:
        self.source = source
        self.seed = seed
        self.bad = bad
        self.strict = strict
        self.slots = _Slots(source)

    def __len__(self) -> int:
        """Slots: the clips of an epoch."""
        return len(self.slots)

    def address(self, draw: Draw, attempt: int = 0) -> Address:
        """The clip that a draw stands for."""
        slot, number = draw
        key = [self.seed, number]
        if attempt:
            key.append(attempt)
            digest = blake2b(repr(key).encode(), digest_size=8).digest()
            slot = int.from_bytes(digest, "big") % len(self.slots)
        entry, first, stop = self.slots.bounds(slot)
        start = int(np.random.default_rng(key).integers(first, stop))
        # Epochs draw another caption each, in turn from a place that depends on the slot.
        return Address(entry, start, slot + number // len(self.slots))

    def __getitem__(self, draw: Draw) -> Clip:
        """Reads the clip of a draw.

        Raises:
            DataError: Neither it nor the ten that take its place can be decoded; too many videos
                turned out bad; if strict, it cannot be decoded.
        """
        for attempt in range(RETRIES + 1):
            address = self.address(draw, attempt)
            try:
                return self.source.read(address)
            except DataError as error:
                if self.strict:
                    raise DataError(error.message, "leave out --strict") from error
                last = error
                if self.bad.add(self.source.problem(address, error)):
                    logger.warning("%s; other clips take the place of its clips", error)
        raise DataError(
            f"{self.bad.dataset}: {RETRIES + 1} clips in a row cannot be decoded; the last: {last}",
            "'tats data check' names the files that cannot be read",
        )


class FixedClips(Dataset[Clip]):
    """Clips at given addresses; one that cannot be decoded is an error, never replaced."""

    def __init__(self, source: ClipSource, addresses: Sequence[Address]) -> None:
        self.source = source
        self.addresses = tuple(addresses)

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, number: int) -> Clip:
        """Reads a clip.

        Raises:
            DataError: It cannot be decoded.
        """
        return self.source.read(self.addresses[number])

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, Clip | DataError]]:
        """Clips, or why they cannot be decoded; neighbours in a video are read in one go."""
        for together in self._neighbours(numbers):
            try:
                clips = self.source.read_video([self.addresses[number] for number in together])
            except DataError as error:
                if len(together) > 1:  # which of them it is, each says by itself
                    yield from (found for number in together for found in self.read([number]))
                else:
                    yield together[0], error
            else:
                yield from zip(together, clips, strict=True)

    def _neighbours(self, numbers: Iterable[int]) -> Iterator[list[int]]:
        """Numbers whose clips follow each other in a video, at most a clip's length apart."""
        together: list[int] = []
        for number in numbers:
            here = self.addresses[number]
            if together:
                last = self.addresses[together[-1]]
                near = 0 <= here.start - last.start <= 2 * self.source.clip.sequence_length
                if here.entry != last.entry or not near:
                    yield together
                    together = []
            together.append(number)
        if together:
            yield together


def spread_clips(source: ClipSource, count: int) -> list[Address]:
    """At most `count` clips spread evenly over a split: the centres of evenly spaced slots."""
    slots = _Slots(source)
    count = min(count, len(slots))
    addresses = []
    for number in range(count):
        entry, first, stop = slots.bounds((2 * number + 1) * len(slots) // (2 * count))
        addresses.append(Address(entry, (first + stop - 1) // 2))
    return addresses


def every_clip(source: ClipSource, stride: int) -> list[Address]:
    """All clips that start at multiples of `stride` frames and end within their video."""
    return [
        Address(entry, start)
        for entry, starts in enumerate(source.starts.tolist())
        for start in range(0, starts, stride)
    ]


class ConsumedBatchSampler(Sampler[list[Draw]]):
    """Batches of draws for the rest of a run, as a function of the clips consumed so far.

    The i-th clip of a run is the same however many processes share the batch, and whether or not
    the run was interrupted: it is entry i mod slots of the order for (seed, i div slots).

    Args:
        slots: Clips of an epoch.
        seed: Determines the order.
        batch_size: Clips that each process takes in a step.
        total_steps: Steps of the whole run.
        start_step: Steps already taken.
        rank: The number of this process.
        world: The number of processes.
        order: The order of an epoch; by default, a permutation of all.
    """

    def __init__(
        self,
        slots: int,
        seed: int,
        batch_size: int,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        order: Order | None = None,
    ) -> None:
        self.slots = slots
        self.seed = seed
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.start_step = start_step
        self.rank = rank
        self.world = world
        self.order = order or self._permutation

    def _permutation(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(self.slots)

    def __len__(self) -> int:
        """Steps that are left."""
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        current = -1
        order: Any = None
        for step in range(self.start_step, self.total_steps):
            first = (step * self.world + self.rank) * self.batch_size
            batch = []
            for number in range(first, first + self.batch_size):
                epoch, place = divmod(number, self.slots)
                if epoch != current:
                    current, order = epoch, self.order(self.seed, epoch)
                batch.append((int(order[place]), number))
            yield batch
