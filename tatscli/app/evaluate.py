"""Evaluation: Fréchet and kernel video distance between two sets of videos."""

import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import torch

from tatscli import __version__
from tatscli.app.ahead import check_sides
from tatscli.app.devices import devices_notes, place
from tatscli.app.fvd_features import OFFICIAL, OWN, RANDOM, Network, features_of
from tatscli.app.fvd_sides import About, Side, by_chance
from tatscli.app.reporting import ForCaller, Reporter, Silent
from tatscli.app.signature import signature_of
from tatscli.config.evaluate import FVDConfig
from tatscli.config.files import from_arguments
from tatscli.config.words import counted, span
from tatscli.core.data.video import FOLDER_RATE
from tatscli.core.metrics.feature_file import FeatureSet, read_moments, stored_kind
from tatscli.core.metrics.frechet import Gaussian, require_two
from tatscli.core.metrics.protocol import PROTOCOLS, Protocol
from tatscli.core.metrics.uncertainty import RECOMMENDED, Distances, against_moments, distances
from tatscli.errors import ConfigError, DataError

SAME_RATE = 0.05
"""Part by which frame rates may differ without a warning."""
MEASURES = {
    OFFICIAL: "fvd",
    OWN: "own-weights distance",
    RANDOM: "random-feature distance",
}
"""What a Fréchet distance is called, by the kind of its network."""
SCHEMA = "tats.fvd/1"
"""Of results as JSON."""


@dataclass(frozen=True)
class FVDResult:
    """Distances between two sets of videos, and what they were computed on.

    Attributes:
        measure: ``fvd``; ``own-weights distance`` and ``random-feature distance`` are none.
        value: Fréchet distance of the features: the number to compare, at equal counts.
        standard_error: Of it, by a jackknife over videos; None for less than 4 on a side.
        debiased: What it would be for endless sets; None where there are too few videos to tell.
        floor: What two sets of these counts of real videos would have; None for less than 4.
        floor_is_low: Whether the real set is so small that the true floor is above.
        kernel: Kernel distance (squared MMD, cubic, unbiased) of the same features.
        kernel_standard_error: Of it; None for less than 4 videos on a side.
        mean_term: Part of the value that the means make, such as colours.
        covariance_term: Part of the value that the covariances make, such as diversity.
        signature: All that a second person needs to get the same number.
        protocol: Definition: a named one, or custom.
        definition: What it says.
        features: Network that computed the features, with a digest of its weights.
        precision: Arithmetic of that network.
        device: Where.
        real: Folder, or name given to it.
        fake: Folder.
        real_videos: Videos used; 0 where a mean and covariance do not say of how many they are.
        fake_videos: Videos used.
        real_clips: Clips used.
        fake_clips: Clips used.
        frames: Frames of each clip.
        frame_rates: Median frames per second of the clips of both sides; 0 where unknown.
        frame_rate_ranges: The lowest and the highest of each side; empty where unknown.
        sizes: Width x height of both sides' videos, and how many have each.
        resolution: Side that both were brought to first; 0 where they were taken as they are.
        skipped: What was left out, with the reason.
        warnings: What speaks against taking the number at face value.
        seconds: What it took.
        versions: Of everything that computes.
        command: As given.
        schema: Of this record.
    """

    measure: str
    value: float
    standard_error: float | None
    debiased: float | None
    floor: float | None
    floor_is_low: bool
    kernel: float | None
    kernel_standard_error: float | None
    mean_term: float
    covariance_term: float
    signature: str
    protocol: str
    definition: dict[str, Any]
    features: str
    precision: str
    device: str
    real: str
    fake: str
    real_videos: int
    fake_videos: int
    real_clips: int
    fake_clips: int
    frames: int
    frame_rates: list[float]
    frame_rate_ranges: list[list[float]]
    sizes: list[dict[str, int]]
    resolution: int
    skipped: list[str]
    warnings: list[str]
    seconds: float
    versions: dict[str, str]
    command: str
    schema: str = SCHEMA


def fvd(
    real: str | Path,
    fake: str | Path,
    *,
    protocol: str = "fvd",
    frames: int = 16,
    resolution: int = 0,
    frame_rate: float = 0.0,
    features: str = "i3d",
    device: str = "auto",
) -> float:
    """Fréchet video distance between two sets of videos.

    Args:
        real: Folder of real videos or frame folders, array file, or file of features.
        fake: Folder of samples.
        protocol: ``fvd`` (official graph), ``tats``, ``stylegan-v``, ``videogpt`` or
            ``cd-fvd-i3d``.
        frames: Frames of each clip, at least 9.
        resolution: Bring both to this side first; 0 needs equal sizes.
        frame_rate: Read both at so many frames per second; 0 keeps their own.
        features: ``i3d``; ``random`` tries the plumbing without its file, and is no FVD.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: An argument is out of range.
        CheckpointError: The I3D file is not there; ``tats weights fetch i3d`` gets it.

    Warns:
        UserWarning: What speaks against taking the number at face value, and what was left out.
    """
    reporter = ForCaller()
    config = from_arguments(
        FVDConfig,
        # Where processes are spawned, those that read would import the calling script.
        fvd={
            "frames": frames,
            "resolution": resolution,
            "frame_rate": frame_rate,
            "features": features,
            "workers": 0,
        },
        definition={"protocol": protocol},
        compute={"device": device},
    )
    return evaluate_fvd(Path(real), Path(fake), config, reporter).value


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
    """Compare two sets by one definition.

    Several processes, where there are, share the videos; the result is that of one.

    Args:
        real: Folder of real videos or frame folders, manifest, HDF5 file, array file, file of
            features, or file of their mean and covariance.
        fake: The same of samples; where a folder holds a listing of them, nothing else in it is
            read.
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
    protocol = _protocol(config)
    comparing = _Comparing(config, reporter or Silent(), real_name)
    [result] = comparing.compare(real, fake, [protocol], real_stride, real_rate)
    return result


def evaluate_all(
    real: Path, fake: Path, config: FVDConfig, reporter: Reporter | None = None
) -> list[FVDResult]:
    """Compare two sets by every named definition; each video is decoded once.

    Args and errors are those of ``evaluate_fvd``.
    """
    resolution = config.fvd.resolution
    protocols = [p.changed(resolution=resolution or None) for p in PROTOCOLS.values()]
    return _Comparing(config, reporter or Silent()).compare(real, fake, protocols)


def write_features(
    videos: Path, out: Path, config: FVDConfig, reporter: Reporter | None = None
) -> FeatureSet:
    """Compute the features of real videos and keep them in a file, to compare with.

    Raises:
        CheckpointError: The file of the network is not there.
        DataError: Too few videos can be read, or the file cannot be written.
    """
    if out.suffix != ".npz":
        raise ConfigError(f"--out {out} is no .npz file", f"--out {out.with_suffix('.npz')}")
    if out.exists():
        raise DataError(
            f"{out} exists; nothing was overwritten", "choose another --out, or remove it"
        )
    comparing = _Comparing(config, reporter or Silent())
    protocol = _protocol(config)
    found = comparing.features([(videos, True)], [protocol])[0][protocol.name]
    found.write(out)
    return found


class _Comparing:
    """One comparison: settings, network, warnings."""

    def __init__(self, config: FVDConfig, reporter: Reporter, real_name: str = "") -> None:
        self._config, self._reporter, self._real_name = config, reporter, real_name
        self._placement = place(config.compute)
        for text in devices_notes(config.compute, self._placement):
            reporter.note(text)
        self._start = time.monotonic()
        self._warnings: list[str] = []

    def compare(
        self,
        real: Path,
        fake: Path,
        protocols: Sequence[Protocol],
        real_stride: int = 1,
        real_rate: float = 0.0,
    ) -> list[FVDResult]:
        """The result for each protocol."""
        check_sides(real, fake)
        if stored_kind(fake) == "moments":
            raise DataError(f"{fake}: only the real side may be a mean and covariance")
        if stored_kind(real) == "moments":
            [made] = self.features([(fake, False)], protocols)
            known = read_moments(real)
            return [self._against_moments(real, fake, *known, made[p.name], p) for p in protocols]
        sides = self.features([(real, True), (fake, False)], protocols, real_stride, real_rate)
        return [
            self._result(real, fake, [side[protocol.name] for side in sides], protocol)
            for protocol in protocols
        ]

    def features(
        self,
        sources: Sequence[tuple[Path, bool]],
        protocols: Sequence[Protocol],
        real_stride: int = 1,
        real_rate: float = 0.0,
    ) -> list[dict[str, FeatureSet]]:
        """Features of each source, which is the real one or not, for each protocol by its name."""
        options, reporter = self._config.fvd, self._reporter
        found: list[dict[str, FeatureSet] | Side] = []
        for source, is_real in sources:
            if stored_kind(source) == "features":
                stored = _from_file(source, is_real, protocols, self._config)
                found.append(_limited(stored, options.limit, options.seed))
                continue
            placings = [protocol.placing(is_real) for protocol in protocols]
            stride = options.stride * (real_stride if is_real else 1)
            rate = options.frame_rate or (real_rate if is_real else 0.0)
            found.append(Side(source, is_real, options, placings, stride, rate, reporter))
        sides = [side for side in found if isinstance(side, Side)]
        names = [str(source) for source, _ in sources]
        counts = [_count(side) for side in found]
        if len(counts) == 2:
            require_two(*counts)
        if options.match_n:
            for side in sides:
                side.choose(min(counts))
        for side in sides:
            self._warn_of_reading(side)
        for protocol in protocols:
            _check_sizes(names, found, protocol)
        network = Network(self._config) if sides else None
        _check_networks(names, found, network.name if network else "")
        computed = iter(
            features_of(sides, protocols, network, self._config, self._placement, reporter)
            if network
            else ()
        )
        sets = [next(computed) if isinstance(side, Side) else side for side in found]
        if options.match_n:
            # Some of those that were chosen may have turned out unreadable.
            sets = [_limited(side, min(map(_count, sets)), options.seed) for side in sets]
        return sets

    def _result(
        self, real: Path, fake: Path, sets: list[FeatureSet], protocol: Protocol
    ) -> FVDResult:
        numbers = (sets[0].video_numbers, sets[1].video_numbers)
        found = distances(
            sets[0].features, sets[1].features, protocol.covariance, numbers, self._config.fvd.seed
        )
        counts = [len(set(features.videos)) for features in sets]
        self._warn(sets, counts)
        return self._record(real, fake, sets, counts, protocol, found, sets[0].content)

    def _against_moments(
        self,
        real: Path,
        fake: Path,
        gaussian: Gaussian,
        count: int,
        made: FeatureSet,
        protocol: Protocol,
    ) -> FVDResult:
        """The plain value, which is all that a mean and a covariance allow."""
        width = made.features.shape[1]
        if len(gaussian.mean) != width:
            raise DataError(
                f"{real}: a mean of {len(gaussian.mean)} figures, I3D gives {width}: it is of "
                "another network, or of another layer of it"
            )
        found = against_moments(gaussian, made.features, protocol.covariance)
        self._say(f"{real} does not say how its mean and covariance were computed")
        nothing = asdict(About(0.0, [], {}, lossy=0, lossless=0, unsteady=0, padded=0, skipped=[]))
        known = FeatureSet(made.features[:0], (), (), made.recipe, nothing)
        sets, counts = [known, made], [count, len(set(made.videos))]
        self._warn(sets, counts)
        return self._record(real, fake, sets, counts, protocol, found, gaussian.digest)

    def _warn(self, sets: Sequence[FeatureSet], counts: list[int]) -> None:
        """Everything that speaks against taking the numbers at face value."""
        config, (real, fake) = self._config, sets
        if _kind(real) == RANDOM:
            self._say("features of a random network: the value is good for trying, not an FVD")
        elif _kind(real) == OWN:
            self._say("these weights are not those of the I3D that defines FVD")
        stated = [count for count in counts if count]
        if min(stated) < RECOMMENDED:
            width = real.features.shape[1]
            least = f", and below {width + 1} covariances are singular" * (min(stated) <= width)
            self._say(
                f"{' and '.join(str(count or 'unknown') for count in counts)} videos: below "
                f"{RECOMMENDED} on each side the value is mostly bias and compares only with the "
                f"same counts{least}"
            )
        if min(stated) < config.fvd.limit:
            self._say(f"there are fewer videos than --limit {config.fvd.limit}: all are taken")
        if stated[0] != stated[-1]:
            self._say(
                f"{counted(counts[0], 'real video')} and {counted(counts[1], 'sample')}: the bias "
                "depends on both; --match-n takes as many of each"
            )
        self._warn_of_rates([features.about for features in sets])
        if bool(real.about["lossy"]) != bool(fake.about["lossy"]) and (
            real.about["lossless"] or fake.about["lossless"]
        ):
            lossy, way = "samples", "tats sample --lossless keeps every bit"
            if real.about["lossy"]:
                lossy, way = "real videos", "samples without --lossless have losses, too"
            self._say(
                f"{lossy} are stored with losses, the others without: a codec alone raises the "
                f"distance by a third and more; {way}"
            )
        for features, one in zip(sets, ("real video", "sample"), strict=True):
            if again := len(features.clips) - len(set(features.clips)):
                self._say(f"{again} of {len(features.clips)} clips of {one}s are there twice")
            more = len(features.clips) - len(set(features.videos)) * config.fvd.clips_per_video
            if more > 0:
                self._say(
                    f"{counted(more, one)} with the name of another, but for the suffix: taken for "
                    "clips of one video"
                )
            if padded := features.about["padded"]:
                self._say(f"{counted(padded, one)} too short, with the last frame repeated")
        if shared := len(set(real.clips) & set(fake.clips)):
            self._say(f"{counted(shared, 'clip')} both among the real videos and the samples")
        if config.fvd.clips_per_video > 1:
            self._say(
                f"{config.fvd.clips_per_video} clips of each video are not independent: the value "
                f"is that of fewer than {len(fake.clips)} samples"
            )

    def _warn_of_reading(self, side: Side) -> None:
        """Where a rate is asked for, frames are repeated, or chosen by a rate that is assumed."""
        rate = side.frame_rate
        if not rate:
            return
        # tats sample asks for that of the clips that were trained on.
        option = "--frame-rate" if self._config.fvd.frame_rate else "tats eval fvd --frame-rate"
        untimed = sum(not entry.is_timed for entry in side.entries)
        if untimed:
            self._say(
                f"{side.root}: the frame rate of {counted(untimed, 'video')} is not known; "
                f"{FOLDER_RATE:g} is assumed, and frames are chosen by that to have {rate:g} a "
                f"second; {option} 0 takes every frame"
            )
        slower = [entry.info.rate for entry in side.entries if entry.is_timed]
        slower = [own for own in slower if own < rate * (1 - SAME_RATE)]
        if slower:
            self._say(
                f"{side.root}: {counted(len(slower), 'video')} of {span(slower)} frames per second "
                f"read at {rate:g}: frames are repeated; {option} {min(slower):.4g} repeats none"
            )

    def _warn_of_rates(self, abouts: list[dict[str, Any]]) -> None:
        """Motion at another speed is another motion to the network."""
        real, fake = map(_rates, abouts)
        # Two sets of the same mixture do not differ.
        if (
            real
            and fake
            and any(abs(a - b) > SAME_RATE * max(a, b) for a, b in zip(real, fake, strict=True))
        ):
            lowest = min(*real, *fake) * self._config.fvd.stride  # every n-th is taken afterwards
            self._say(
                f"real videos of {span(real)} frames per second, samples of {span(fake)}: "
                f"different speeds raise the distance; --frame-rate {lowest:.4g} reads both sides "
                "at that"
            )
        unsteady = sum(about["unsteady"] for about in abouts)
        if unsteady and not self._config.fvd.frame_rate:
            self._say(
                f"frames of {counted(unsteady, 'video')} are shown for different times: "
                "--frame-rate takes them evenly"
            )

    def _say(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            self._reporter.warn(text)

    def _record(
        self,
        real: Path,
        fake: Path,
        sets: Sequence[FeatureSet],
        counts: list[int],
        protocol: Protocol,
        found: Distances,
        content: str,
    ) -> FVDResult:
        recipes, abouts = ([getattr(s, name) for s in sets] for name in ("recipe", "about"))
        return FVDResult(
            measure=MEASURES[_kind(sets[0])],
            value=found.frechet,
            standard_error=found.frechet_error,
            debiased=found.debiased,
            floor=found.floor,
            floor_is_low=found.floor_is_low,
            kernel=found.kernel,
            kernel_standard_error=found.kernel_error,
            mean_term=found.mean_term,
            covariance_term=found.covariance_term,
            signature=signature_of(protocol, recipes, abouts, counts, content),
            protocol=protocol.name,
            definition=asdict(protocol),
            features=recipes[0]["network"],
            precision=recipes[0]["precision"],
            device=self._placement.accelerator,
            real=self._real_name or str(real),
            fake=str(fake),
            real_videos=counts[0],
            fake_videos=counts[1],
            real_clips=len(sets[0].clips),
            fake_clips=len(sets[1].clips),
            frames=recipes[0]["frames"],
            frame_rates=[about["rate"] for about in abouts],
            frame_rate_ranges=[about.get("rates", []) for about in abouts],
            sizes=[about["sizes"] for about in abouts],
            resolution=protocol.resolution,
            skipped=[line for about in abouts for line in about["skipped"]],
            warnings=list(self._warnings),
            seconds=round(time.monotonic() - self._start, 3),
            versions={
                "tats": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "av": av.__version__,
            },
            command=shlex.join(["tats", *sys.argv[1:]]),
        )


def _rates(about: dict[str, Any]) -> list[float]:
    """The lowest, median and highest frame rate of a side; nothing where unknown."""
    if not about["rate"]:
        return []
    # Features that were kept by an older version know the median alone.
    low, high = about.get("rates") or [about["rate"]] * 2
    return [low, about["rate"], high]


def _kind(features: FeatureSet) -> str:
    """The kind of network that features are of."""
    return str(features.recipe["network"]).partition("-")[0]


def _protocol(config: FVDConfig) -> Protocol:
    """The definition that the settings ask for."""
    named = PROTOCOLS[config.definition.protocol]
    resolution = config.fvd.resolution or None
    return named.changed(**config.definition.choices, resolution=resolution)


def _from_file(
    file: Path, is_real: bool, protocols: Sequence[Protocol], config: FVDConfig
) -> dict[str, FeatureSet]:
    """Features that were computed before, if they are those of the one protocol."""
    features = FeatureSet.read(file)
    [protocol, *others] = protocols
    options, precision = config.fvd, config.compute.precision
    asked = {name: getattr(protocol, name) for name in ("eps", "resize", "fit", "resolution")}
    asked |= {"clip": protocol.placing(is_real), "frames": options.frames}
    asked |= {"precision": precision, "clips_per_video": options.clips_per_video}
    differing = [
        f"{name} {features.recipe.get(name)}, asked for {value}"
        for name, value in asked.items()
        if features.recipe.get(name) != value
    ]
    if others or differing:
        raise DataError(
            f"{file} holds features of another definition: "
            f"{'; '.join(differing) or 'one, and all are asked for'}",
            "give the videos, or compute features of this definition with tats eval features",
        )
    return {protocol.name: features}


def _count(side: Side | dict[str, FeatureSet]) -> int:
    """Videos of a side."""
    if isinstance(side, Side):
        return len(side)
    return min(len(set(features.videos)) for features in side.values())


def _limited(side: dict[str, FeatureSet], count: int, seed: int) -> dict[str, FeatureSet]:
    """Features of the videos that would have been chosen of so many; 0 = all."""
    if not count:
        return side
    return {
        name: features.of_videos(by_chance(features.videos, seed, count))
        for name, features in side.items()
    }


def _check_sizes(
    names: Sequence[str], found: Sequence[Side | dict[str, FeatureSet]], protocol: Protocol
) -> None:
    """Frames that are brought to 224 x 224 from different sizes differ by that alone."""
    if protocol.resolution:
        return
    sizes: dict[str, str] = {}
    for name, side in zip(names, found, strict=True):
        if isinstance(side, Side):
            for entry in side.entries:
                size = f"{entry.info.width}x{entry.info.height}"
                sizes.setdefault(size, f"{entry.path} of {name} is {size}")
        else:
            for size in side[protocol.name].about["sizes"]:
                sizes.setdefault(size, f"{name} is of {size}")
    if len(sizes) > 1:
        raise DataError(
            f"videos of {len(sizes)} different sizes: {', '.join([*sizes.values()][:3])}",
            "bring both sides to one size with --resolution N",
        )


def _check_networks(
    names: Sequence[str], found: Sequence[Side | dict[str, FeatureSet]], computing: str
) -> None:
    """Features of different networks have no distance."""
    networks = [
        computing if isinstance(side, Side) else next(iter(side.values())).recipe["network"]
        for side in found
    ]
    if len(set(networks)) > 1:
        (first, one), (second, other) = zip(names, networks, strict=True)
        raise DataError(
            f"{first} has features of {one}, {second} of {other}: networks of different weights",
            "compute the features again with tats eval features",
        )
