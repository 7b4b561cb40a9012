"""Features of both sides of a comparison: from the cache, or computed, by several processes."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tatscli.app.data import name_problems
from tatscli.app.fvd_sides import LEFT_OUT, Side
from tatscli.app.launch import is_helper
from tatscli.app.reporting import Reporter, Task
from tatscli.config.evaluate import FVDConfig
from tatscli.core import weights
from tatscli.core.data.index import Problem, cache_folder
from tatscli.core.data.video import Frames
from tatscli.core.metrics.feature_file import FeatureSet, digest
from tatscli.core.metrics.features import video_features
from tatscli.core.metrics.protocol import Placing, Protocol
from tatscli.core.models.i3d import CLASSES, I3D, random_weights
from tatscli.core.models.i3d_files import read_i3d, unofficial, weights_digest
from tatscli.core.ranks import Rank, each_batch, gathered
from tatscli.core.signals import attached
from tatscli.core.training.placement import Placement, choose_workers
from tatscli.errors import DataError

SCHEMA = 1
"""Of the cache: raised with every change of what features are."""


OFFICIAL, OWN, RANDOM = "i3d", "own", "random"
"""Kinds of networks: that of FVD, one of the user's weights, one that measures nothing."""


class Network:
    """The network of a comparison, built for the protocols as they need it.

    Attributes:
        name: Its kind, and a digest of its weights.
    """

    def __init__(self, config: FVDConfig) -> None:
        options = config.fvd
        if options.features == "random":
            kind, self._weights = RANDOM, random_weights(options.seed)
        else:
            self._weights = read_i3d(options.weights or weights.locate("i3d"))
            # What was found without being named has been verified.
            kind = OWN if options.weights and unofficial(self._weights) else OFFICIAL
        self.name = f"{kind}-{weights_digest(self._weights)}"
        self._built: dict[float, I3D] = {}

    def of(self, protocol: Protocol) -> I3D:
        """The network with a protocol's epsilon."""
        if protocol.eps not in self._built:
            self._built[protocol.eps] = I3D(self._weights, protocol.eps)
        return self._built[protocol.eps]


class Wanted(NamedTuple):
    """Features that are asked for: of a side, by a protocol."""

    side: int
    protocol: Protocol


def features_of(
    sides: Sequence[Side],
    protocols: Sequence[Protocol],
    network: Network,
    config: FVDConfig,
    placement: Placement,
    reporter: Reporter,
) -> list[dict[str, FeatureSet]]:
    """Features of the clips of each side, for each protocol by its name.

    Several processes share the videos; the result is that of one, to the last bit.

    Raises:
        DataError: Too few videos can be read; the cache cannot be written is only a warning.
    """
    wanted = [Wanted(number, p) for number in range(len(sides)) for p in protocols]
    files: dict[Wanted, Path] = {}
    found: dict[Wanted, FeatureSet] = {}

    def finish(computed: Mapping[Wanted, _Rows]) -> None:
        for side in sides:
            name_problems(side.undecodable, LEFT_OUT, reporter)
        for asked, (rows, videos, clips) in computed.items():
            recipe = _recipe(sides[asked.side], asked.protocol, network, config, placement)
            about = asdict(sides[asked.side].about)
            found[asked] = FeatureSet(rows, videos, clips, recipe, about)
            if asked in files:
                _keep(found[asked], files[asked], reporter)

    if config.fvd.cache and not is_helper():
        files = _cache_files(sides, wanted, network, config, placement)
        for asked, file in files.items():
            if (stored := _cached(file)) and _is_allowed(stored, config):
                found[asked] = stored
        _name_skipped(sides, found, reporter)
    missing = [asked for asked in wanted if asked not in found]
    # Processes that something else started wait for this one.
    if missing or placement.started_by != "tats":
        with reporter.task("features", "videos", sum(map(len, sides))) as task:
            extractor = _Extractor(network, config, sides, missing, task)
            try:
                each_batch(partial(extractor.start, placement.processes), placement)
            except KeyboardInterrupt:
                if placement.world == 1:  # several processes cannot gather any more
                    finish(extractor.whole_sides())
                lacking = {asked.side for asked in wanted if asked not in found}
                kept = [str(side.root) for n, side in enumerate(sides) if n not in lacking]
                reporter.note(_stopped(kept) if config.fvd.cache else "stopped, nothing is kept")
                raise
            computed = extractor.features()
        finish(computed)
        # The first process has more, where some were kept.
        [found, *_] = gathered(found)
    return [
        {protocol.name: found[Wanted(number, protocol)] for protocol in protocols}
        for number in range(len(sides))
    ]


def _recipe(
    side: Side, protocol: Protocol, network: Network, config: FVDConfig, placement: Placement
) -> dict[str, Any]:
    """What features depend on besides the videos."""
    options = config.fvd
    return {
        "network": network.name,
        "eps": protocol.eps,
        "resize": protocol.resize,
        "fit": protocol.fit,
        "resolution": protocol.resolution,
        "frames": options.frames,
        "stride": side.stride,
        "frame_rate": side.frame_rate,
        "clip": protocol.placing(side.is_real),
        "clips_per_video": options.clips_per_video,
        "short": options.short,
        "seed": options.seed,
        "precision": config.compute.precision,
        "device": placement.accelerator,
    }


def _cache_files(
    sides: Sequence[Side],
    wanted: Sequence[Wanted],
    network: Network,
    config: FVDConfig,
    placement: Placement,
) -> dict[Wanted, Path]:
    """Where features are kept: a name that changes with anything that they depend on."""
    contents = [side.contents() for side in sides]
    decoders = {"av": av.__version__, **{k: list(v) for k, v in av.library_versions.items()}}
    files = {}
    for asked in wanted:
        recipe = _recipe(sides[asked.side], asked.protocol, network, config, placement)
        everything = [SCHEMA, recipe, decoders, contents[asked.side]]
        key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        files[asked] = cache_folder() / "features" / f"{key[:32]}.npz"
    return files


def _cached(file: Path) -> FeatureSet | None:
    if not file.is_file():
        return None
    try:
        return FeatureSet.read(file)
    except DataError:
        return None  # damaged: computed and written again


def _is_allowed(features: FeatureSet, config: FVDConfig) -> bool:
    """Whether no more videos were left out than may be; else they are looked at again."""
    skipped, kept = len(features.about["skipped"]), len(set(features.videos))
    limit = 0 if config.fvd.strict else config.fvd.max_bad * (skipped + kept)
    return skipped <= limit


def _name_skipped(
    sides: Sequence[Side], found: Mapping[Wanted, FeatureSet], reporter: Reporter
) -> None:
    """Name what could not be decoded when features were computed."""
    for number, side in enumerate(sides):
        known = set(side.about.skipped)
        lines = {
            line: None
            for asked, features in found.items()
            for line in features.about["skipped"]
            if asked.side == number and line not in known
        }
        problems = (Problem(*line.split(": ", 1)) for line in lines)
        name_problems(problems, LEFT_OUT, reporter)


def _stopped(kept: Sequence[str]) -> str:
    """What an interruption leaves in the cache."""
    if kept:
        return f"stopped; features of {' and '.join(kept)} are kept, the same command goes on there"
    return "stopped, nothing is kept: features are once there are those of all videos of a side"


def _keep(features: FeatureSet, file: Path, reporter: Reporter) -> None:
    try:
        features.write(file)
    except DataError as error:
        reporter.warn(f"features are computed again each time: {error.message}")


class _Stretch(NamedTuple):
    """Videos that are read and computed at once: places `first` to `stop` (excluded) of a side.

    They are the same whatever the number of processes, so that features are, to the last bit.
    """

    side: int
    first: int
    stop: int


class _Video(NamedTuple):
    """What was read of a video: clips uint8, each (T, H, W, 3), and a digest of each."""

    name: str
    clips: dict[Placing, list[Frames]]
    digests: dict[Placing, list[str]]


class _Batch(NamedTuple):
    """What was read of a stretch, and the videos it lacks."""

    stretch: _Stretch
    videos: list[_Video]
    problems: list[Problem]


class _Rows(NamedTuple):
    """Features of some clips float32 (N, 400), their videos, and digests of them."""

    rows: Tensor
    videos: tuple[str, ...]
    clips: tuple[str, ...]


class _Found(NamedTuple):
    """What is known of a stretch: features by protocol, and the videos it lacks."""

    stretch: _Stretch
    features: dict[Wanted, _Rows]
    problems: list[Problem]


class _Readable(Dataset[_Batch]):
    """The clips of the sides, by the stretch."""

    def __init__(self, sides: Sequence[Side], stretches: Sequence[_Stretch]) -> None:
        self._sides, self._stretches = sides, stretches

    def __len__(self) -> int:
        return len(self._stretches)

    def __getitem__(self, number: int) -> _Batch:
        stretch = self._stretches[number]
        side = self._sides[stretch.side]
        videos, problems = [], []
        for place in range(stretch.first, stretch.stop):
            clips = side.read(place)
            if isinstance(clips, Problem):
                problems.append(clips)
                continue
            digests = {placing: [digest(clip) for clip in each] for placing, each in clips.items()}
            videos.append(_Video(side.name(place), clips, digests))
        return _Batch(stretch, videos, problems)


class _Extractor:
    """Computes features in one process while others read for it."""

    def __init__(
        self,
        network: Network,
        config: FVDConfig,
        sides: Sequence[Side],
        missing: Sequence[Wanted],
        task: Task,
    ) -> None:
        self._network, self._config, self._sides = network, config, sides
        self._missing, self._task = list(missing), task
        self._found: list[_Found] = []
        self._done = self._total = 0

    def start(
        self, processes: int, rank: Rank
    ) -> tuple[Iterable[_Batch], Callable[[_Batch], None]]:
        """The batches of one of so many processes of a machine, and what it does with each."""
        self._rank = rank
        # Only the first process has looked into the cache; all go by what it found.
        [self._missing, *_] = gathered(self._missing)
        size = self._config.fvd.batch_size
        needed = sorted({asked.side for asked in self._missing})
        stretches = [
            _Stretch(number, first, min(first + size, len(self._sides[number])))
            for number in needed
            for first in range(0, len(self._sides[number]), size)
        ]
        self._total = sum(stop - first for _, first, stop in stretches)
        batches: DataLoader[_Batch] = DataLoader(
            _Readable(self._sides, stretches[rank.number :: rank.world]),
            batch_size=None,
            # Clips as they are: a copy into a tensor of each would be all that is gained.
            collate_fn=_as_it_is,
            num_workers=choose_workers(rank.device.type, self._config.fvd.workers, processes),
            worker_init_fn=attached,
        )
        return batches, self._compute

    def features(self) -> dict[Wanted, _Rows]:
        """What was computed by all processes, in the order of the videos."""
        return self._together(chain(*gathered(self._found)))

    def whole_sides(self) -> dict[Wanted, _Rows]:
        """What was computed of the sides of which nothing is missing, by a single process."""
        done = Counter[int]()
        for (side, first, stop), _, _ in self._found:
            done[side] += stop - first
        whole = {number for number, side in enumerate(self._sides) if done[number] == len(side)}
        self._missing = [asked for asked in self._missing if asked.side in whole]
        return self._together(part for part in self._found if part.stretch.side in whole)

    def _together(self, found: Iterable[_Found]) -> dict[Wanted, _Rows]:
        found = sorted(found, key=lambda part: part.stretch)
        for stretch, _, problems in found:
            for problem in problems:
                self._sides[stretch.side].leave_out(problem)
        empty = _Rows(torch.empty(0, CLASSES), (), ())
        together: dict[Wanted, _Rows] = {}
        for asked in self._missing:
            parts = [empty, *(part.features[asked] for part in found if asked in part.features)]
            together[asked] = _Rows(
                torch.cat([part.rows for part in parts]),
                tuple(chain(*(part.videos for part in parts))),
                tuple(chain(*(part.clips for part in parts))),
            )
        return together

    def _compute(self, batch: _Batch) -> None:
        config, stretch = self._config, batch.stretch
        for problem in batch.problems:
            self._sides[stretch.side].tolerate(problem)
        computed = {}
        for asked in (asked for asked in self._missing if asked.side == stretch.side):
            protocol = asked.protocol
            placing = protocol.placing(self._sides[stretch.side].is_real)
            rows = video_features(
                self._network.of(protocol),
                protocol,
                chain(*(video.clips[placing] for video in batch.videos)),
                config.fvd.batch_size,
                self._rank.device,
                config.compute.precision,
            )
            names = [video.name for video in batch.videos for _ in video.clips[placing]]
            digests = tuple(chain(*(video.digests[placing] for video in batch.videos)))
            computed[asked] = _Rows(rows, tuple(names), digests)
        self._found.append(_Found(stretch, computed, batch.problems))
        # The others are about as far.
        self._done += (stretch.stop - stretch.first) * self._rank.world
        self._task.update(min(self._done, self._total), self._total)


def _as_it_is(batch: Any) -> Any:
    return batch
