"""Sampling: new videos as tensors, and as folders of files.

T frames, H W pixels. Into a folder, videos are decoded and written in pieces, so they may be of any
length; only the first seconds of those in the grid are kept.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatscli.app.ahead import check_comparison, check_sampling, free_folder
from tatscli.app.asked import SoundFile, Wishes, read_texts, wishes
from tatscli.app.devices import choose_device
from tatscli.app.evaluate import FVDResult, evaluate_fvd
from tatscli.app.given import GivenClips, check_given, open_given
from tatscli.app.listing import read_listing, write_listing
from tatscli.app.pictures import DEFAULT_RATE, GRID_SAMPLES, STRIP_ROWS, enlarged, strip
from tatscli.app.reporting import ForCaller, Reporter, Silent
from tatscli.app.sampler import Cuts, Sampler, long_sampler, short_sampler
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import I3D_FRAMES, FVDConfig, FVDOptions
from tatscli.config.files import from_arguments
from tatscli.config.sample import (
    ContextConfig,
    RealDataConfig,
    SampleConfig,
    SampleLongConfig,
    SampleShortConfig,
)
from tatscli.config.words import counted
from tatscli.core import weights
from tatscli.core.data.sound import Track
from tatscli.core.data.video import (
    Frames,
    probe,
    read_frames,
    tile,
    to_float,
    to_uint8,
    video_writer,
    write_png,
)
from tatscli.core.failures import explained
from tatscli.core.files import held_alone, unwritable
from tatscli.core.models.shapes import check_shape
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.paths import find_checkpoint
from tatscli.core.sampling.decode import decode_stream
from tatscli.errors import ConfigError, DataError

GRID_FRAMES = 256
"""Frames of each of them, from its beginning."""
GRID_PIECE = 16
"""Frames of the grid that are made at once."""


_LESS_MEMORY = (
    "--batch-size auto takes as many samples at once as fit, a number below that needs less; so "
    "does --precision bf16"
)


@dataclass(frozen=True)
class SampleResult:
    """A folder of samples.

    Attributes:
        folder: Where they are.
        samples: How many.
        frames: Frames of each.
        size: Side of the frames in pixels.
        frame_rate: Frames per second of the files.
        grid: Video of the first 16 samples side by side, of 256 frames at most.
        picture: The same as a still: one row of frames a sample.
        fvd: Distance to real videos, where it was asked for.
    """

    folder: Path
    samples: int
    frames: int
    size: int
    frame_rate: float
    grid: Path
    picture: Path
    fvd: FVDResult | None = None


def sample_short(
    gpt: str | Path,
    samples: int = 16,
    *,
    label: str = "",
    text: str = "",
    audio: str | Path | None = None,
    guidance: float = 1.0,
    given: Tensor | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 2048,
    top_p: float = 0.92,
    batch_size: int | str = 16,
    device: str = "auto",
    precision: str = "float32",
    cuda_graphs: bool = False,
) -> Tensor:
    """Sample videos of the length of training.

    Args:
        gpt: GPT run folder, checkpoint or published file.
        samples: How many; classes, where the model has any and none is named, are taken in turn.
        label: Class of all samples.
        text: What all samples show.
        audio: File with sound that the samples follow from its beginning on.
        guidance: How far to go beyond the condition; 1 is off.
        given: First frames that the samples go on from, float32 (samples, C, T, H, W) in
            [-0.5, 0.5], T a multiple of the VQGAN's factor in time.
        seed: Sample i depends on it and on i alone.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Sample among the k likeliest tokens; 0 does not cut.
        top_p: Then among the likeliest that together reach this probability.
        batch_size: Samples at once; ``auto`` takes as many as fit into memory.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``float32`` or ``bf16``.
        cuda_graphs: Whether a CUDA device replays the steps of the GPT.

    Returns:
        float32 (samples, C, T, H, W) in [-0.5, 0.5], the given frames reconstructed.

    Raises:
        ConfigError: An argument is out of range.
        CheckpointError: There is no GPT.

    Warns:
        UserWarning: What was passed over, or may not be what was meant.
    """
    reporter = ForCaller()
    config = from_arguments(
        SampleShortConfig,
        sample={"gpt": gpt, "samples": samples, "seed": seed, "batch_size": batch_size},
        condition={"label": label, "text": text, "audio": audio, "guidance": guidance},
        filter={"temperature": temperature, "top_k": top_k, "top_p": top_p},
        compute={"device": device, "precision": precision, "cuda_graphs": cuda_graphs},
    )
    return _as_tensor(short_sampler(config, reporter), config, given, reporter)


def sample_long(
    gpt: str | Path,
    length: int,
    samples: int = 16,
    *,
    infill_gpt: str | Path | None = None,
    context: int = 1,
    label: str = "",
    text: str = "",
    audio: str | Path | None = None,
    guidance: float = 1.0,
    given: Tensor | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 2048,
    top_p: float = 0.92,
    batch_size: int | str = 16,
    device: str = "auto",
    precision: str = "float32",
    cuda_graphs: bool = False,
) -> Tensor:
    """Sample videos of any length, by a window that slides over latent frames, or by key frames.

    Args:
        gpt: GPT run folder, checkpoint or published file.
        length: Latent frames.
        samples: How many; classes, where the model has any and none is named, are taken in turn.
        infill_gpt: The GPT that fills in, where ``gpt`` writes key frames.
        context: Latent frames (key frames) that each new one is generated from.
        label: See ``sample_short``, as ``text``, ``audio`` and ``guidance``.
        text: See there.
        audio: See there; it goes on with the samples.
        guidance: See there.
        given: First frames that the samples go on from, see ``sample_short``.
        seed: Sample i depends on it and on i alone.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Sample among the k likeliest tokens; 0 does not cut.
        top_p: Then among the likeliest that together reach this probability.
        batch_size: Samples at once; ``auto`` takes as many as fit into memory.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``float32`` or ``bf16``.
        cuda_graphs: Whether a CUDA device replays the steps of the GPT.

    Returns:
        float32 (samples, C, T, H, W) in [-0.5, 0.5], the given frames reconstructed.

    Raises:
        ConfigError: An argument is out of range, or the context too long for the model.
        CheckpointError: There is no GPT.

    Warns:
        UserWarning: See ``sample_short``.
    """
    reporter = ForCaller()
    config = from_arguments(
        SampleLongConfig,
        {"temporal_sample_pos": "context"},
        sample={"gpt": gpt, "samples": samples, "seed": seed, "batch_size": batch_size},
        condition={"label": label, "text": text, "audio": audio, "guidance": guidance},
        window={"length": length, "temporal_sample_pos": context, "infill_gpt": infill_gpt},
        filter={"temperature": temperature, "top_k": top_k, "top_p": top_p},
        compute={"device": device, "precision": precision, "cuda_graphs": cuda_graphs},
    )
    return _as_tensor(long_sampler(config, reporter), config, given, reporter)


@explained(_LESS_MEMORY)
def short(config: SampleShortConfig, reporter: Reporter | None = None) -> SampleResult:
    """Sample videos of the length of training into a folder.

    Raises:
        ConfigError: The model cannot do what is asked.
    """
    reporter = reporter or Silent()
    check_sampling("short", config)
    _note_unused(config.real, reporter)
    return _write_folder("short", short_sampler(config, reporter), config, reporter)


@explained(_LESS_MEMORY)
def long(config: SampleLongConfig, reporter: Reporter | None = None) -> SampleResult:
    """Sample videos of any length into a folder.

    Raises:
        ConfigError: Length, context or latent side do not fit the model.
    """
    reporter = reporter or Silent()
    check_sampling("long", config)
    _note_unused(config.real, reporter)
    sampler = long_sampler(config, reporter)
    return _write_folder("long", sampler, config, reporter, frames=config.window.frames)


def read_samples(folder: Path) -> tuple[Tensor, list[str | None]]:
    """The samples of a folder and their classes.

    Returns:
        float32 (samples, C, T, H, W) in [-0.5, 0.5], and a name, or None, for each.
    """
    listed = read_listing(folder)
    videos = []
    for sample in listed:
        path = folder / sample.get("lossless", sample["file"])
        info = probe(path)
        videos.append(to_float(read_frames(path, info, range(len(info.times)))))
    return torch.stack(videos), [sample["label"] for sample in listed]


def _as_tensor(
    sampler: Sampler,
    config: SampleShortConfig | SampleLongConfig,
    given: Tensor | None,
    reporter: Reporter,
) -> Tensor:
    options = config.sample
    if given is not None:
        channels, side = sampler.vqgan.model.config.image_channels, sampler.vqgan.clip.resolution
        try:
            check_shape("given: a clip", given, options.samples, channels, "T", side, side)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        frames = sampler.length * sampler.factor
        check_given(given.shape[2], sampler.factor, frames, "given: T")
    seconds = sampler.length * sampler.factor / sampler.rate
    asked = _wishes(sampler, config, (), options.samples, seconds, None, reporter)
    sampler.to(choose_device(config.compute.device), config.compute, reporter)
    start = None if given is None else sampler.encode(given)
    made = []
    cuts, guidance = Cuts.of(config.filter), config.condition.guidance
    with reporter.task("", "") as task:
        for codes in sampler.batches(options, cuts, task, asked, guidance, start):
            # One by one, as files are written: decoding takes much more memory than sampling.
            for one in torch.split(codes, 1):
                pieces = [piece.cpu() for piece in decode_stream(sampler.vqgan.model, one)]
                made.append(torch.cat(pieces, 2))
    return torch.cat(made)


@dataclass(frozen=True)
class _Shown:
    """Beginnings of the first samples, for the grid; beside each the truth, where there is any."""

    samples: list[Frames]
    truths: list[Frames]

    def write(self, folder: Path, rate: float) -> None:
        """Write grid.mp4 and grid.png; truth is left of, or above, the sample."""
        pairs = [self.samples]
        if self.truths:
            pairs = [self.truths, self.samples]
        rows = [clip for some in zip(*pairs, strict=True) for clip in some]
        write_png(folder / "grid.png", strip(enlarged(np.stack(rows[:STRIP_ROWS]))))
        with video_writer(folder / "grid.mp4", rate) as write:
            for first in range(0, len(self.samples[0]), GRID_PIECE):
                part = slice(first, first + GRID_PIECE)
                moving = [enlarged(np.stack([clip[part] for clip in clips])) for clips in pairs]
                write(tile(np.concatenate(moving, axis=3)))


def _write_folder(
    kind: str,
    sampler: Sampler,
    config: SampleShortConfig | SampleLongConfig,
    reporter: Reporter,
    frames: int = 0,
) -> SampleResult:
    real, compute = config.real, config.compute
    frames = frames or sampler.length * sampler.factor
    if real.compute_fvd:
        _check_comparison(real, frames)
    options, given, asked = wanted_samples(sampler, config, frames, reporter)
    settings = _settings(kind, sampler, config)
    sampler.to(choose_device(compute.device), compute, reporter)
    start_codes = sampler.encode(given.videos()) if given and given.frames else None
    folder = _new_folder(config, kind, sampler.source)
    rate = sampler.rate
    if not sampler.vqgan.rate:
        reporter.note(
            "the checkpoint does not say at how many frames per second its clips were read; files "
            f"are written at {DEFAULT_RATE:g}"
        )
    heard = _Heard(frames / sampler.rate)
    listed: list[dict[str, Any]] = []
    shown = _Shown([], [])
    total = options.samples * sampler.tokens
    with (
        _kept(folder, rate, settings, listed, reporter),
        held_alone(folder, "choose another --name"),
        reporter.task(f"sampling {counted(options.samples, 'video')}", "tokens", total) as task,
    ):
        cuts, guidance = Cuts.of(config.filter), config.condition.guidance
        for codes in sampler.batches(options, cuts, task, asked, guidance, start_codes):
            for one in codes:
                number = len(listed)
                wish = asked(number)
                entry: dict[str, Any] = {"index": number, **wish.listed()}
                if given:
                    entry |= given.listed(number)
                entry |= settings
                video = decoded_pieces(sampler.vqgan.model, one, frames)
                track = heard.track(wish.sound)
                files, start = write_sample(folder, number, video, rate, options, entry, track)
                if given:
                    place = given.sound(number)
                    track = heard.track(SoundFile(*place) if place else None)
                    truth = _write_truth(folder, number, given, rate, files, track)
                    if number < GRID_SAMPLES:
                        shown.truths.append(_padded(truth, start))
                if number < GRID_SAMPLES:
                    shown.samples.append(start)
                listed.append(entry | files)
    write_listing(folder, rate, settings, listed)
    shown.write(folder, rate)
    side = start.shape[1]
    distance = None
    if real.compute_fvd:
        distance = _compare(
            real, folder, frames, side, sampler.vqgan.clip, compute.device, reporter
        )
    return SampleResult(
        folder=folder,
        samples=len(listed),
        frames=frames,
        size=side,
        frame_rate=rate,
        grid=folder / "grid.mp4",
        picture=folder / "grid.png",
        fvd=distance,
    )


@contextmanager
def _kept(
    folder: Path,
    rate: float,
    settings: dict[str, Any],
    listed: list[dict[str, Any]],
    reporter: Reporter,
) -> Iterator[None]:
    """Leave samples that are done usable, whatever ends the others."""
    try:
        yield
    except BaseException:
        if listed:
            write_listing(folder, rate, settings, listed)
            reporter.note(f"{folder} holds the {counted(len(listed), 'sample')} done so far")
        else:
            with suppress(OSError):
                folder.rmdir()
        raise


def wanted_samples(
    sampler: Sampler,
    config: SampleShortConfig | SampleLongConfig,
    frames: int,
    reporter: Reporter,
) -> tuple[SampleConfig, GivenClips | None, Wishes]:
    """How many samples of so many frames there will be, what they are given, and asked to show.

    Raises:
        ConfigError: The model cannot do what is asked.
        DataError: A file cannot be read.
    """
    options = config.sample
    texts = read_texts(config.condition.texts) if config.condition.texts else ()
    if texts and "samples" not in options.model_fields_set:
        options = options.model_copy(update={"samples": len(texts)})
    given = _open_given(sampler, config.given, options.samples, frames, reporter)
    seconds = frames / sampler.rate
    asked = _wishes(sampler, config, texts, options.samples, seconds, given, reporter)
    return options, given, asked


def _open_given(
    sampler: Sampler, config: ContextConfig, samples: int, frames: int, reporter: Reporter
) -> GivenClips | None:
    if config.context is None:
        return None
    if config.context_frames:
        check_given(config.context_frames, sampler.factor, frames)
    clip, known = sampler.vqgan.clip, sampler.trained.classes
    layout = sampler.trained.model.config.condition
    has_labels = layout.part("label") is not None
    if layout.part("start") and not config.context_frames:
        raise ConfigError(
            f"--context without frames, but {find_checkpoint(sampler.source)} has no condition "
            "that a video could give",
            f"add --context-frames N, a multiple of {sampler.factor}",
        )
    given = open_given(
        config.context,
        config.context_frames,
        frames,
        samples,
        clip,
        sampler.vqgan.rate,
        reporter,
    )
    if has_labels and (unknown := sorted(set(given.classes) - set(known))):
        reporter.warn(
            f"videos of {', '.join(unknown)} are of no class of the model ({', '.join(known[:10])}"
            f"{', ...' if len(known) > 10 else ''}); their samples take its classes in turn"
        )
    return given


def _settings(
    kind: str, sampler: Sampler, config: SampleShortConfig | SampleLongConfig
) -> dict[str, Any]:
    """What all samples of a folder share."""
    settings = {
        "kind": kind,
        "gpt": str(sampler.source),
        "step": sampler.trained.step,
        "vqgan": sampler.vqgan.model.fingerprint(),
        "seed": config.sample.seed,
        "precision": config.compute.precision,
        "latent_frames": sampler.length,
        "temporal_sample_pos": sampler.context,
        **config.filter.model_dump(),
    }
    if sampler.infill:
        assert isinstance(config, SampleLongConfig)  # only long samples have one
        settings["infill_gpt"] = str(config.window.infill_gpt)
        settings["infill_step"] = sampler.infill.step
    if config.given.context_frames:
        settings["context_frames"] = config.given.context_frames
    if config.condition.guidance != 1:
        settings["guidance"] = config.condition.guidance
    return settings


def _wishes(
    sampler: Sampler,
    config: SampleShortConfig | SampleLongConfig,
    texts: tuple[str, ...],
    samples: int,
    seconds: float,
    given: GivenClips | None,
    reporter: Reporter,
) -> Wishes:
    return wishes(
        config.condition,
        texts,
        sampler.gpts,
        sampler.source,
        samples,
        seconds,
        given,
        reporter,
    )


class _Heard:
    """What is heard with samples of some seconds; of one file, read once for those that follow."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: tuple[SoundFile, Track] | None = None

    def track(self, sound: SoundFile | None) -> Track | None:
        """The sound of a sample, where it has one."""
        if sound is None:
            return None
        if self._last is None or self._last[0] != sound:
            self._last = sound, sound.track(self._seconds)
        return self._last[1]


def decoded_pieces(vqgan: VQGAN, codes: Tensor, frames: int) -> Iterator[Frames]:
    """A video in pieces, uint8 (T, H, W, 3), so many frames in all; codes (t, h, w)."""
    done = 0
    for piece in decode_stream(vqgan, codes[None]):
        video = to_uint8(piece[0])[: frames - done]
        done += len(video)
        if len(video):
            yield video


def _new_folder(config: SampleShortConfig | SampleLongConfig, kind: str, gpt: Path) -> Path:
    folder = free_folder(config, kind, gpt)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, DataError) from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} cannot be written", "choose another --out")
    return folder


def write_sample(
    folder: Path,
    number: int,
    pieces: Iterator[Frames],
    rate: float,
    config: SampleConfig,
    entry: dict[str, Any],
    sound: Track | None,
) -> tuple[dict[str, str], Frames]:
    """Write the files of one sample; their names for the listing, and its first frames."""
    tags = {"title": f"tats sample {number}", "comment": json.dumps(entry)}
    files = {"file": f"sample-{number:04}.mp4"}
    if config.lossless:
        files["lossless"] = f"lossless/sample-{number:04}.mkv"
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                video_writer(
                    folder / name, rate, lossless=form == "lossless", metadata=tags, sound=sound
                )
            )
            for form, name in files.items()
        ]
        return files, _written(pieces, writers)


def _write_truth(
    folder: Path,
    number: int,
    given: GivenClips,
    rate: float,
    files: dict[str, str],
    sound: Track | None,
) -> Frames:
    """Write what the video of a sample really shows; its first frames."""
    files["truth"] = f"truth/sample-{number:04}.mp4"
    tags = {"title": f"what {given.file(number)} shows"}
    with video_writer(folder / files["truth"], rate, metadata=tags, sound=sound) as write:
        return _written(given.truth(number), [write])


def _written(pieces: Iterator[Frames], writers: list[Callable[[Frames], None]]) -> Frames:
    """Write pieces of a video as they come; its first frames, as many as the grid shows."""
    kept: list[Frames] = []
    for piece in pieces:
        for write in writers:
            write(piece)
        room = GRID_FRAMES - sum(map(len, kept))
        if room > 0:
            kept.append(piece[:room].copy())  # a view would keep the whole
    return np.concatenate(kept)


def _padded(video: Frames, like: Frames) -> Frames:
    """A video as long as another, grey behind its end."""
    grey = np.full((len(like) - len(video), *like.shape[1:]), 127, np.uint8)
    return np.concatenate([video, grey])


def _note_unused(real: RealDataConfig, reporter: Reporter) -> None:
    """Say which settings of the comparison mean nothing, because there is none."""
    # A saved config gives every setting, most of them as they are by default.
    unused = sorted(real.model_dump(exclude_defaults=True).keys() - {"compute_fvd"})
    if unused and not real.compute_fvd:
        options = ", ".join("--" + name.replace("_", "-") for name in unused)
        reporter.note(f"without --compute-fvd this has no effect: {options}")


def _check_comparison(real: RealDataConfig, frames: int) -> None:
    """Find out before sampling whether the comparison can be made."""
    if frames < I3D_FRAMES:
        raise ConfigError(
            f"--compute-fvd needs samples of at least {I3D_FRAMES} frames, these have {frames}",
            f"leave it out, or use tats sample long --frames {I3D_FRAMES} or more",
        )
    check_comparison(real)
    weights.locate("i3d", "leave out --compute-fvd")


def _compare(
    real: RealDataConfig,
    folder: Path,
    frames: int,
    side: int,
    clip: ClipConfig,
    device: str,
    reporter: Reporter,
) -> FVDResult:
    """The distance to real videos, read at the speed of the clips that were trained on."""
    assert real.data is not None
    options = FVDOptions(frames=min(16, frames), resolution=real.resolution or side)
    config = FVDConfig(fvd=options, compute={"device": device})
    return evaluate_fvd(
        real.data,
        folder,
        config,
        reporter,
        real_name=real.dataset,
        real_stride=real.sample_every_n_frames or clip.sample_every_n_frames,
        real_rate=clip.frame_rate,
    )
