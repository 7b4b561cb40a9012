"""Evaluation of a VQGAN: its reconstructions, and whether it is time-agnostic.

B clips, C channels, T frames, H W pixels.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor

from tatscli.app.data import VideoClips, name_problems, open_data, problem_of
from tatscli.app.devices import choose_device
from tatscli.app.fitting import clips_for
from tatscli.app.reporting import Reporter, Silent
from tatscli.config.evaluate import VQGANEvalConfig
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan
from tatscli.core.data.clips import FixedClips, Wanted
from tatscli.core.data.index import Problem
from tatscli.core.data.synth import SHAPES, shape_clip, sound_clip
from tatscli.core.data.video import to_float
from tatscli.core.failures import explained
from tatscli.core.metrics.agnosticity import TimeAgnosticity, least_frames, time_agnosticity
from tatscli.core.metrics.baselines import best_constant_image
from tatscli.core.metrics.reconstruction import psnr, usage_perplexity
from tatscli.core.models.inference import vqgan_for_inference
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.precision import strict_float32
from tatscli.core.sampling.decode import decode_stream, encode_stream
from tatscli.errors import DataError

TRIES = 8
"""Held-out clips of which one must be readable for the measurement over time."""


@dataclass(frozen=True)
class ReconstructionScores:
    """How well held-out clips are reconstructed.

    Attributes:
        clips: Clips scored.
        frames: Frames of each.
        size: Height and width of the frames in pixels; of sound, bands and columns of a patch.
        psnr_db: Peak signal-to-noise ratio, mean of the clips.
        psnr_standard_error_db: Of that mean; None for a single clip.
        constant_image_db: PSNR of the best single image for all frames: what must be beaten.
        codes_used: Codes that occur in the clips.
        codes: Codes of the codebook.
        perplexity: Codes that, used equally often, would carry as much.
        skipped: What was left out, with the reason.
    """

    clips: int
    frames: int
    size: tuple[int, int]
    psnr_db: float
    psnr_standard_error_db: float | None
    constant_image_db: float
    codes_used: int
    codes: int
    perplexity: float
    skipped: list[str]


@dataclass(frozen=True)
class VQGANEvalResult:
    """What was found out about a VQGAN.

    Attributes:
        vqgan: The checkpoint.
        step: Steps of training.
        reconstruction: Scores on held-out clips, where there is data.
        time: What latents and frames depend on, where that was asked for.
        time_measured_on: The clip for that: held-out or generated.
    """

    vqgan: Path
    step: int
    reconstruction: ReconstructionScores | None
    time: TimeAgnosticity | None
    time_measured_on: str


@explained("a smaller --batch-size needs less; so do a smaller --resolution and --sequence-length")
def evaluate_vqgan(
    checkpoint: Path, config: VQGANEvalConfig, reporter: Reporter | None = None
) -> VQGANEvalResult:
    """Score reconstructions of held-out clips, measure time-agnosticity, or both.

    Raises:
        CheckpointError: There is no VQGAN.
        ConfigError: The clips do not fit the VQGAN.
        DataError: There is no held-out clip.
    """
    reporter = reporter or Silent()
    trained = read_vqgan(checkpoint)
    device = choose_device(config.compute.device)
    model = vqgan_for_inference(trained.model, device)
    videos = scores = None
    if config.data.data is not None:
        clip, _ = clips_for(config.data, trained)
        wanted = Wanted(
            input="sound" if trained.is_of_sound else "video",
            needs_sound=config.data.missing_sound == "skip",
        )
        videos = open_data(config.data, clip, reporter, wanted)
        scores = _score(trained, videos, config, reporter)
    if not config.eval.time:
        return VQGANEvalResult(checkpoint, trained.step, scores, None, "")
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
    return VQGANEvalResult(checkpoint, trained.step, scores, found, source)


def _score(
    trained: TrainedVQGAN, videos: VideoClips, config: VQGANEvalConfig, reporter: Reporter
) -> ReconstructionScores:
    """Two passes over the clips, of which the first finds the best image, and what is unreadable.

    Neither keeps them.
    """
    chosen = videos.spread("val", config.eval.clips)
    clips, image, problems = _readable(chosen, config.data.strict, reporter)
    name_problems(problems, reporter)
    model, size = trained.model, config.eval.batch_size
    device = _device(model)
    decibels: list[float] = []
    floor: list[float] = []
    counts = torch.zeros(model.config.codes, dtype=torch.long)
    with (
        reporter.task("reconstructing", "clips", len(clips)) as task,
        torch.no_grad(),
        strict_float32(device),
    ):
        for first in range(0, len(clips), size):
            numbers = range(first, min(first + size, len(clips)))
            video = torch.stack([clips[number].video for number in numbers])
            codes = encode_stream(model, video.to(device) * trained.gain)
            made = torch.cat([piece.cpu() for piece in decode_stream(model, codes)], 2)
            made = made / trained.gain
            decibels += psnr(video, made).tolist()
            floor += psnr(video, image[:, None].expand_as(video)).tolist()
            counts += codes.cpu().flatten().bincount(minlength=len(counts))
            task.update(len(decibels))
    return ReconstructionScores(
        clips=len(decibels),
        frames=videos.clip.frames,
        size=(image.shape[-2], image.shape[-1]),
        psnr_db=mean(decibels),
        psnr_standard_error_db=stdev(decibels) / len(decibels) ** 0.5 if decibels[1:] else None,
        constant_image_db=mean(floor),
        codes_used=int((counts > 0).sum()),
        codes=len(counts),
        perplexity=usage_perplexity(counts),
        skipped=[f"{p.path}: {p.reason}" for p in [*videos.problems, *problems]],
    )


def _readable(
    clips: FixedClips, strict: bool, reporter: Reporter
) -> tuple[FixedClips, Tensor, list[Problem]]:
    """The clips that can be decoded, the best image for all of their frames, and the others."""
    images, addresses, problems = [], [], []
    with reporter.task("reading", "clips", len(clips)) as task:
        for number, address in enumerate(clips.addresses):
            try:
                images.append(best_constant_image(clips[number].video[None]))
                addresses.append(address)
            except DataError as error:
                if strict:
                    raise
                path = clips.source.entries[address.entry].path
                problems.append(problem_of(clips.source.root, path, error))
            task.update(number + 1)
    if not addresses:
        raise DataError(
            f"{clips.source.root}: none of {len(problems)} held-out clips can be decoded; "
            f"the first: {problems[0].path}: {problems[0].reason}",
            "'tats data check' names the files that cannot be read",
        )
    return FixedClips(clips.source, addresses), torch.stack(images).mean(0), problems


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
