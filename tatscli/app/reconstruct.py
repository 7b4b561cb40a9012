"""Evaluation of a VQGAN: its reconstructions, and whether it is time-agnostic.

B clips, C channels, T frames, H W pixels, t h w latent grid.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tatscli.app.ahead import check_reconstruction
from tatscli.app.data import Split, VideoClips, name_problems, open_data
from tatscli.app.devices import choose_device
from tatscli.app.fitting import clips_for, noted_vqgan
from tatscli.app.reconstruct_files import ClipScores, Shown, write_files
from tatscli.app.reporting import Reporter, Silent
from tatscli.config.evaluate import I3D_FRAMES, VQGANEvalConfig, VQGANEvalOptions
from tatscli.config.words import counted
from tatscli.core import weights
from tatscli.core.checkpoint import TrainedVQGAN
from tatscli.core.data.bad import BAD_VIDEOS
from tatscli.core.data.clips import Address, Clip, FixedClips, Wanted
from tatscli.core.data.index import Problem
from tatscli.core.data.synth import SHAPES, shape_clip, sound_clip
from tatscli.core.data.video import to_float, to_uint8
from tatscli.core.failures import explained
from tatscli.core.files import unwritable
from tatscli.core.metrics.agnosticity import TimeAgnosticity, least_frames, time_agnosticity
from tatscli.core.metrics.baselines import best_constant_image
from tatscli.core.metrics.features import video_features
from tatscli.core.metrics.protocol import PROTOCOLS
from tatscli.core.metrics.reconstruction import (
    SSIM_WINDOW,
    clip_psnr,
    frame_psnr,
    l1,
    psnr,
    rounded,
    ssim,
    standard_error,
)
from tatscli.core.metrics.uncertainty import RECOMMENDED, distances
from tatscli.core.metrics.usage import ENOUGH, CodeUsage, UsageCounts
from tatscli.core.models.i3d import I3D, random_i3d
from tatscli.core.models.i3d_files import load_i3d
from tatscli.core.models.inference import vqgan_for_inference
from tatscli.core.models.perceptual import LEAST_SIDES, LPIPS, Network
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.precision import strict_float32
from tatscli.core.sampling.decode import decode_stream, encode_stream
from tatscli.core.signals import attached
from tatscli.core.training.placement import choose_workers
from tatscli.errors import CheckpointError, ConfigError, DataError

SCHEMA = 1
"""Version of what is written as JSON; it grows when a field changes its meaning or goes."""
TRIES = 8
"""Held-out clips of which one must be readable for the measurement over time."""
_READ_TOGETHER = 8
"""Clips that a worker reads at once where only means are kept."""
LPIPS_FILES: dict[Network, str] = {"vgg": "vgg16", "alex": "alexnet"}
"""For each network of LPIPS, the name of its weights."""


@dataclass(frozen=True)
class Measure:
    """A measure over the clips.

    Attributes:
        mean: Over clips.
        standard_error: Of the mean, clips of one video counted as dependent; None for one video.
        lowest: Of any clip.
        median: Of the clips.
        highest: Of any clip.
    """

    mean: float
    standard_error: float | None
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class ReconstructionDistance:
    """Distance between the set of clips and the set of their reconstructions.

    Attributes:
        measure: ``rfvd``, or ``random-feature distance``, which is not one.
        value: Fréchet distance of the features.
        standard_error: Of it, by a jackknife over videos; None for less than 4.
        debiased: What it would be for endless sets; None where there are too few clips to tell.
        kernel: Kernel distance of the same features, which has no bias.
        kernel_standard_error: Of it; None for less than 4 videos.
        protocol: Definition of the features.
        features: Network that computed them.
        clips: On each side.
    """

    measure: str
    value: float
    standard_error: float | None
    debiased: float | None
    kernel: float | None
    kernel_standard_error: float | None
    protocol: str
    features: str
    clips: int


@dataclass(frozen=True)
class ReconstructionScores:
    """How well clips are reconstructed, all values rounded to the 256 levels of a file (not sound).

    Attributes:
        data: The dataset.
        split: Of it.
        clips: Clips scored.
        videos: Videos that they are from.
        frames: Frames of each clip.
        size: Height and width of the frames in pixels; of sound, bands and columns of a patch.
        measures: ``psnr_db`` (of frames; one of a clip is the mean of its frames),
            ``clip_psnr_db`` (from the squared error of whole clips, as VideoGPT and PVDM),
            ``constant_image_db`` (``psnr_db`` of the best single image for all frames: what must be
            beaten), ``l1`` (black and white differ by 1), ``ssim``, ``lpips_vgg``, ``lpips_alex``.
        missing: Measures that could not be taken, with the reason.
        identical_frames: Frames that are reconstructed exactly; in the means they count as 100 dB.
        distance: rFVD, where it was asked for.
        usage: Of the codebook.
        skipped: What was left out, with the reason.
    """

    data: Path
    split: Split
    clips: int
    videos: int
    frames: int
    size: tuple[int, int]
    measures: dict[str, Measure]
    missing: dict[str, str]
    identical_frames: int
    distance: ReconstructionDistance | None
    usage: CodeUsage
    skipped: list[str]


@dataclass(frozen=True)
class VQGANEvalResult:
    """What was found out about a VQGAN.

    Attributes:
        schema: Version of these fields.
        vqgan: The checkpoint.
        step: Steps of training.
        reconstruction: Scores on clips, where there is data.
        time: What latents and frames depend on, where that was asked for.
        time_measured_on: The clip for that: held-out or generated.
        out: Where files were written, if anywhere.
    """

    schema: int
    vqgan: Path
    step: int
    reconstruction: ReconstructionScores | None
    time: TimeAgnosticity | None
    time_measured_on: str
    out: Path | None


@explained("a smaller --batch-size needs less; so do a smaller --resolution and --sequence-length")
def evaluate_vqgan(
    checkpoint: Path, config: VQGANEvalConfig, reporter: Reporter | None = None
) -> VQGANEvalResult:
    """Score reconstructions of clips, measure time-agnosticity, or both.

    Raises:
        CheckpointError: There is no VQGAN, or a network that was asked for is not there.
        ConfigError: The clips do not fit the VQGAN, or what was asked for does not fit the clips.
        DataError: There is no clip, too much is unreadable, or the folder for files is taken.
    """
    reporter = reporter or Silent()
    check_reconstruction(checkpoint, config)
    out = config.eval.out
    if out is not None:
        # An error now rather than when all is computed.
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(out, error, DataError) from error
    trained = noted_vqgan(checkpoint, reporter)
    device = choose_device(config.compute.device)
    model = vqgan_for_inference(trained.model, device)
    videos = scored = None
    if config.data.data is not None:
        clip, grid = clips_for(config.data, trained)
        judges = _judges(trained, clip.frames, clip.resolution, config.eval, device)
        wanted = Wanted(
            input="sound" if trained.is_of_sound else "video",
            needs_sound=config.data.missing_sound == "skip",
        )
        videos = open_data(config.data, clip, reporter, wanted, trained.model.config)
        scored = _score(trained, videos, grid, judges, config, reporter)
    found, source = None, ""
    if config.eval.time:
        found, source = _over_time(trained, model, videos, config, reporter)
    scores = scored.scores if scored else None
    result = VQGANEvalResult(SCHEMA, checkpoint, trained.step, scores, found, source, out)
    if out is not None:
        shown = _shown(trained, scored) if scored else []
        rows = scored.rows if scored else []
        counts = scored.counts if scored else None
        if videos:
            videos.bad.keep(out / BAD_VIDEOS)
        write_files(out, result, rows, counts, shown, videos.rate if videos else 0.0)
    return result


class _Scored(NamedTuple):
    """Scores, and what they were made from."""

    scores: ReconstructionScores
    clips: FixedClips
    rows: list[ClipScores]
    counts: Tensor


class _Judges(NamedTuple):
    """The networks that compare, and why others do not."""

    lpips: Mapping[Network, LPIPS]
    distance: "_Distance | None"
    missing: dict[str, str]
    pictures: bool


def _judges(
    trained: TrainedVQGAN, frames: int, side: int, options: VQGANEvalOptions, device: torch.device
) -> _Judges:
    """What can be measured on such clips; what was asked for and cannot be is an error."""
    missing: dict[str, str] = {}
    if trained.is_of_sound:
        if options.rfvd or options.lpips in ("vgg", "alex", "both"):
            raise ConfigError(
                "LPIPS and rFVD judge pictures; this is a VQGAN of sound",
                "leave out --lpips and --rfvd",
            )
        return _Judges({}, None, {}, pictures=False)
    if side < SSIM_WINDOW:
        missing["ssim"] = (
            f"frames of {side} x {side} are smaller than its window of "
            f"{SSIM_WINDOW} x {SSIM_WINDOW}"
        )
    lpips: dict[Network, LPIPS] = {}
    for network, file in LPIPS_FILES.items():
        asked = options.lpips in (network, "both")
        if not asked and options.lpips != "auto":
            continue
        least = LEAST_SIDES[network]
        if side < least and asked:
            raise ConfigError(
                f"--lpips {options.lpips}: frames of {side} x {side}, {network} needs at least "
                f"{least} x {least}",
                "--lpips none does without",
            )
        if side < least:
            missing[f"lpips_{network}"] = (
                f"frames of {side} x {side} are smaller than {least} x {least}"
            )
        elif asked or weights.status(file) is weights.Status.VERIFIED:
            path = weights.locate(file, "--lpips none")
            lpips[network] = LPIPS(path, network).to(device)
        else:
            missing[f"lpips_{network}"] = (
                f"its weights are not here; 'tats weights fetch {file}', then --lpips {network}"
            )
    if options.rfvd and frames < I3D_FRAMES:
        raise ConfigError(
            f"--rfvd: clips of {frames} frames, I3D needs at least {I3D_FRAMES}",
            f"--sequence-length {I3D_FRAMES} or more, or leave out --rfvd",
        )
    distance = _Distance(options.rfvd_features, device) if options.rfvd else None
    return _Judges(lpips, distance, missing, pictures=True)


class _Distance:
    """Features of clips and of their reconstructions, and the distance between the two sets."""

    PROTOCOL = PROTOCOLS["fvd"]

    def __init__(self, features: str, device: torch.device) -> None:
        self._network = _i3d(features, self.PROTOCOL.eps)
        self._features, self._device = features, device
        self._real: list[Tensor] = []
        self._made: list[Tensor] = []

    def add(self, real: Tensor, made: Tensor) -> None:
        """Takes clips, (B, 3, T, H, W) in [-0.5, 0.5], and their reconstructions."""
        for found, video in ((self._real, real), (self._made, made)):
            clips = to_uint8(video)
            features = video_features(self._network, self.PROTOCOL, clips, len(clips), self._device)
            found.append(features)

    def result(self, videos: Sequence[str], reporter: Reporter) -> ReconstructionDistance:
        """The distance, given for each clip the video that it is from."""
        if self._features == "random":
            reporter.warn("features of a random network: the distance is no rFVD, good for trying")
        elif len(videos) < RECOMMENDED:
            reporter.warn(
                f"{counted(len(videos), 'clip')}: below {RECOMMENDED} rFVD is mostly bias and "
                "compares only with the same count; --clips 0 takes all of the split"
            )
        _, number = np.unique(videos, return_inverse=True)
        of_video = torch.from_numpy(number)
        found = distances(
            torch.cat(self._real),
            torch.cat(self._made),
            self.PROTOCOL.covariance,
            (of_video, of_video),
        )
        return ReconstructionDistance(
            measure="rfvd" if self._features == "i3d" else "random-feature distance",
            value=found.frechet,
            standard_error=found.frechet_error,
            debiased=found.debiased,
            kernel=found.kernel,
            kernel_standard_error=found.kernel_error,
            protocol=self.PROTOCOL.name,
            features=self._features,
            clips=len(videos),
        )


def _i3d(features: str, eps: float) -> I3D:
    if features == "random":
        return random_i3d(0, eps)
    instead = "leave out --rfvd, or try it with --rfvd-features random"
    return load_i3d(weights.locate("i3d", instead), eps)


class _Read(Dataset[Tensor | Problem]):
    """The clips, or what is wrong with them; ``mean_frame``: only the mean of their frames."""

    def __init__(self, clips: FixedClips, *, mean_frame: bool) -> None:
        self._clips, self._mean_frame = clips, mean_frame

    def __len__(self) -> int:
        return len(self._clips)

    def __getitems__(self, numbers: list[int]) -> list[Tensor | Problem]:
        return [self._item(number, found) for number, found in self._clips.read(numbers)]

    def _item(self, number: int, found: Clip | DataError) -> Tensor | Problem:
        if isinstance(found, DataError):
            return self._clips.source.problem(self._clips.addresses[number], found)
        return best_constant_image(found.video[None]) if self._mean_frame else found.video


def _score(
    trained: TrainedVQGAN,
    videos: VideoClips,
    grid: tuple[int, int, int],
    judges: _Judges,
    config: VQGANEvalConfig,
    reporter: Reporter,
) -> _Scored:
    """Two passes over the clips, of which the first finds the best image, and what is unreadable.

    Neither keeps them.
    """
    options, split = config.eval, config.eval.split
    device = _device(trained.model)
    workers = choose_workers(device.type, options.workers)
    stride = videos.clip.sequence_length
    chosen = videos.spread(split, options.clips) if options.clips else videos.every(split, stride)
    clips, image, problems = _readable(chosen, videos, workers, config.data.strict, reporter)
    name_problems(problems, videos.check_command, reporter)
    usage = UsageCounts(trained.model.config.codes, grid)
    rows: list[ClipScores] = []
    batches: Iterable[list[Tensor | Problem]] = DataLoader(
        _Read(clips, mean_frame=False),
        batch_size=options.batch_size,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=attached,
    )
    with (
        reporter.task("reconstructing", "clips", len(clips)) as task,
        torch.no_grad(),
        strict_float32(device),
    ):
        for batch in batches:
            video = torch.stack([_decoded(item, videos) for item in batch]).to(device)
            codes, made = _reconstructed(trained, video)
            usage.add(codes)
            if judges.distance:
                judges.distance.add(video, made)
            for one, other in zip(video, made, strict=True):
                rows.append(_compared(one, other, image.to(device), judges, clips, len(rows)))
            task.update(len(rows))
    names = [row.video for row in rows]
    measures = {
        name: _measure([row.values[name] for row in rows], names) for name in rows[0].values
    }
    for name, reason in judges.missing.items():
        # One LPIPS is enough.
        if name == "ssim" or not judges.lpips:
            reporter.note(f"no {name.replace('_', ' ')}: {reason}")
    summary = usage.summary()
    if not summary.has_enough_tokens:
        reporter.warn(
            f"{summary.tokens:,} tokens of {summary.codes:,} codes: below {ENOUGH} tokens a code, "
            "codes may be unused only by chance; score more clips"
            + (" (--clips 0 takes all)" if options.clips else "")
        )
    scores = ReconstructionScores(
        data=videos.index.root,
        split=split,
        clips=len(rows),
        videos=len(set(names)),
        frames=videos.clip.frames,
        size=(image.shape[-2], image.shape[-1]),
        measures=measures,
        missing=judges.missing,
        identical_frames=sum(row.identical_frames for row in rows),
        distance=judges.distance.result(names, reporter) if judges.distance else None,
        usage=summary,
        skipped=[f"{p.path}: {p.reason}" for p in [*videos.problems, *problems]],
    )
    return _Scored(scores, clips, rows, usage.total)


def _reconstructed(trained: TrainedVQGAN, video: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, t, h, w) and reconstructions of clips; pictures as a file would show them."""
    codes = encode_stream(trained.model, video * trained.gain)
    made = torch.cat(list(decode_stream(trained.model, codes)), 2) / trained.gain
    if not made.isfinite().all():
        raise CheckpointError(
            "the VQGAN makes values that are not finite", "its weights are broken: give another"
        )
    return codes, made if trained.is_of_sound else rounded(made)


def _compared(
    video: Tensor, made: Tensor, image: Tensor, judges: _Judges, clips: FixedClips, number: int
) -> ClipScores:
    """The scores of one clip (C, T, H, W)."""
    real, fake = video[None], made[None]
    still = image[:, None].expand_as(video)[None]
    of_frames = frame_psnr(real, fake)
    values = {
        "psnr_db": psnr(real, fake),
        "clip_psnr_db": clip_psnr(real, fake),
        "constant_image_db": psnr(real, rounded(still) if judges.pictures else still),
        "l1": l1(real, fake),
    }
    if judges.pictures and "ssim" not in judges.missing:
        values["ssim"] = ssim(real, fake)
    frames = [rearrange(clip, "c t h w -> t c h w") for clip in (video, made)]
    for network, distance in judges.lpips.items():
        values[f"lpips_{network}"] = distance(*frames).mean()
    address = clips.addresses[number]
    return ClipScores(
        video=clips.source.entries[address.entry].path,
        start=clips.source.seconds(address),
        values={name: float(value) for name, value in values.items()},
        identical_frames=int(of_frames.isinf().sum()),
    )


def _measure(values: Sequence[float], videos: Sequence[str]) -> Measure:
    return Measure(
        mean=mean(values),
        standard_error=standard_error(values, videos),
        lowest=min(values),
        median=median(values),
        highest=max(values),
    )


def _readable(
    clips: FixedClips, videos: VideoClips, workers: int, strict: bool, reporter: Reporter
) -> tuple[FixedClips, Tensor, list[Problem]]:
    """The clips that can be decoded, the best image for all of their frames, and the others."""
    total: Tensor | None = None
    addresses: list[Address] = []
    problems: list[Problem] = []
    found: Iterable[list[Tensor | Problem]] = DataLoader(
        _Read(clips, mean_frame=True),
        batch_size=_READ_TOGETHER,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=attached,
    )
    with reporter.task("reading", "clips", len(clips)) as task:
        for number, item in enumerate(chain.from_iterable(found)):
            if isinstance(item, Problem):
                if strict:
                    _decoded(item, videos)
                videos.bad.add(item)
                problems.append(item)
            else:
                total = item.double() if total is None else total + item
                addresses.append(clips.addresses[number])
            task.update(number + 1)
    if total is None:
        raise DataError(
            f"{videos.dataset}: none of {len(problems)} clips can be decoded; "
            f"the first: {problems[0].path}: {problems[0].reason}",
            "'tats data check' names the files that cannot be read",
        )
    return FixedClips(clips.source, addresses), (total / len(addresses)).float(), problems


def _decoded(item: Tensor | Problem, videos: VideoClips) -> Tensor:
    """A clip that must be there."""
    if isinstance(item, Problem):
        raise DataError(f"{videos.index.root / item.path}: {item.reason}", "leave out --strict")
    return item


def _shown(trained: TrainedVQGAN, scored: _Scored) -> list[Shown]:
    """The worst, the median and the best clip by PSNR, computed once more."""
    order = sorted(range(len(scored.rows)), key=lambda n: scored.rows[n].values["psnr_db"])
    places = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    names = {number: name for name, number in places.items()}
    shown = []
    with torch.no_grad(), strict_float32(device := _device(trained.model)):
        for number in sorted(names, key=order.index):
            video = scored.clips[number].video
            _, made = _reconstructed(trained, video[None].to(device))
            shown.append(Shown(names[number], scored.rows[number], video, made[0].cpu()))
    return shown


def _over_time(
    trained: TrainedVQGAN,
    model: VQGAN,
    videos: VideoClips | None,
    config: VQGANEvalConfig,
    reporter: Reporter,
) -> tuple[TimeAgnosticity, str]:
    """What latents and frames depend on, and the clip that was looked at."""
    frames = least_frames(model)
    video = _held_out(videos, frames) if videos else None
    source = f"a {'generated' if video is None else 'held-out'} clip of {frames} frames"
    if video is None:
        if videos:
            reporter.note(f"no held-out clip of {frames} frames: --time measures {source}")
        if trained.is_of_sound:
            video = sound_clip(SHAPES[0], frames, np.random.default_rng(0))
        else:
            side = config.data.resolution or trained.clip.resolution
            video = to_float(shape_clip(SHAPES[0], side, frames, np.random.default_rng(0)))
    with reporter.task("measuring over time", "clips", 1) as task:
        found = time_agnosticity(model, video.to(_device(model)) * trained.gain)
        task.update(1)
    return found, source


def _held_out(videos: VideoClips, frames: int) -> Tensor | None:
    """A held-out clip of so many frames, where there is one that can be read."""
    sequence_length = frames * videos.clip.sample_every_n_frames
    longer = videos.clip.model_copy(update={"sequence_length": sequence_length})
    with suppress(DataError):
        clips = replace(videos, clip=longer).spread("val", TRIES)
        for number in range(len(clips)):
            with suppress(DataError):
                return clips[number].video
    return None


def _device(model: VQGAN) -> torch.device:
    return next(model.parameters()).device
