"""Sampling: new videos as tensors, and as folders of files.

T frames, H W pixels. Into a folder, videos are decoded in pieces and kept as uint8, one at a time,
besides the first seconds of those in the grid.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatscli.app.devices import choose_device
from tatscli.app.evaluate import LEAST_FRAMES, LISTING, FVDResult, evaluate_fvd
from tatscli.app.pictures import DEFAULT_RATE, enlarged, strip
from tatscli.app.reporting import Reporter, Silent, Task
from tatscli.app.run import RunFolder, write_atomically
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import FVDConfig, FVDOptions
from tatscli.config.files import from_arguments
from tatscli.config.sample import (
    FilterConfig,
    RealDataConfig,
    SampleConfig,
    SampleLongConfig,
    SampleShortConfig,
)
from tatscli.core import weights
from tatscli.core.checkpoint import TrainedGPT, find_checkpoint, read_gpt
from tatscli.core.data.video import (
    Frames,
    probe,
    read_frames,
    tile,
    to_float,
    to_uint8,
    write_png,
    write_video,
)
from tatscli.core.files import claim_empty, unwritable
from tatscli.core.sampling.decode import decode_stream
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import Chances, class_condition, generate_long, generate_window
from tatscli.errors import CheckpointError, ConfigError, DataError

GRID_SAMPLES = 16
"""Samples in the video of many side by side."""
GRID_FRAMES = 256
"""Frames of each of them, from its beginning."""
STRIP_SAMPLES = 8
"""Samples in the still, one row of frames each."""


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


@dataclass(frozen=True)
class _Length:
    """How long samples are to be: latent frames, and the context of a sliding window."""

    latent: int
    context: int


def sample_short(
    gpt: str | Path,
    samples: int = 4,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 2048,
    top_p: float = 0.92,
    batch_size: int = 16,
    device: str = "auto",
) -> Tensor:
    """Sample videos of the length of training.

    Args:
        gpt: GPT run folder, checkpoint or published file.
        samples: How many; classes, where the model has any, are taken in turn.
        seed: Sample i depends on it and on i alone.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Sample among the k likeliest tokens; 0 does not cut.
        top_p: Then among the likeliest that together reach this probability.
        batch_size: Samples at once.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns:
        float32 (samples, C, T, H, W) in [-0.5, 0.5].

    Raises:
        ConfigError: An argument is out of range.
        CheckpointError: There is no GPT.
    """
    config = from_arguments(
        SampleShortConfig,
        sample={"gpt": gpt, "samples": samples, "seed": seed, "batch_size": batch_size},
        filter={"temperature": temperature, "top_k": top_k, "top_p": top_p},
        compute={"device": device},
    )
    trained = read_gpt(Path(gpt))
    length = _Length(trained.model.config.grid[0], 1)
    return _as_tensor(trained, length, config.sample, config.filter, device)


def sample_long(
    gpt: str | Path,
    length: int,
    samples: int = 4,
    *,
    context: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 2048,
    top_p: float = 0.92,
    batch_size: int = 16,
    device: str = "auto",
) -> Tensor:
    """Sample videos of any length by a window that slides over latent frames.

    Args:
        gpt: GPT run folder, checkpoint or published file.
        length: Latent frames.
        samples: How many; classes, where the model has any, are taken in turn.
        context: Latent frames that each new one is generated from.
        seed: Sample i depends on it and on i alone.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Sample among the k likeliest tokens; 0 does not cut.
        top_p: Then among the likeliest that together reach this probability.
        batch_size: Samples at once.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns:
        float32 (samples, C, T, H, W) in [-0.5, 0.5].

    Raises:
        ConfigError: An argument is out of range, or the context too long for the model.
        CheckpointError: There is no GPT.
    """
    config = from_arguments(
        SampleLongConfig,
        {"temporal_sample_pos": "context"},
        sample={"gpt": gpt, "samples": samples, "seed": seed, "batch_size": batch_size},
        window={"length": length, "temporal_sample_pos": context},
        filter={"temperature": temperature, "top_k": top_k, "top_p": top_p},
        compute={"device": device},
    )
    trained = read_gpt(Path(gpt))
    wanted = _Length(length, _checked_context(trained, length, context))
    return _as_tensor(trained, wanted, config.sample, config.filter, device)


def short(config: SampleShortConfig, reporter: Reporter | None = None) -> SampleResult:
    """Sample videos of the length of training into a folder."""
    reporter = reporter or Silent()
    _note_unused(config.real, reporter)
    trained = _open_model(config.sample, reporter)
    length = _Length(trained.model.config.grid[0], 1)
    return _write_folder(
        "short", trained, length, config.sample, config.filter, config.real, config.compute.device,
        reporter,
    )  # fmt: skip


def long(config: SampleLongConfig, reporter: Reporter | None = None) -> SampleResult:
    """Sample videos of any length into a folder.

    Raises:
        ConfigError: Length, context or latent side do not fit the model.
    """
    reporter = reporter or Silent()
    _note_unused(config.real, reporter)
    trained = _open_model(config.sample, reporter)
    window, side = config.window, trained.model.config.grid[1]
    if window.sample_resolution not in (0, side):
        raise ConfigError(
            f"--sample-resolution {window.sample_resolution}, but the model was trained on a "
            f"latent side of {side}",
            "leave the option out",
        )
    latent = window.length
    if window.frames:
        factor = trained.vqgan.model.config.downsample[0]
        latent = -(-window.frames // factor)
    length = _Length(latent, _checked_context(trained, latent, window.temporal_sample_pos))
    return _write_folder(
        "long", trained, length, config.sample, config.filter, config.real, config.compute.device,
        reporter, frames=window.frames,
    )  # fmt: skip


def read_samples(folder: Path) -> tuple[Tensor, list[str | None]]:
    """The samples of a folder and their classes.

    Returns:
        float32 (samples, C, T, H, W) in [-0.5, 0.5], and a name, or None, for each.
    """
    listed = json.loads((folder / LISTING).read_text(encoding="utf-8"))["samples"]
    videos = []
    for sample in listed:
        path = folder / sample.get("lossless", sample["file"])
        info = probe(path)
        videos.append(to_float(read_frames(path, info, range(len(info.times)))))
    return torch.stack(videos), [sample["label"] for sample in listed]


def newest_gpt(runs: Path = Path("runs"), reporter: Reporter | None = None) -> Path:
    """The GPT run below a folder that saved last.

    Args:
        runs: The folder.
        reporter: Told about runs whose record is damaged; they are passed over.

    Raises:
        CheckpointError: There is none.
    """
    found: list[tuple[float, Path]] = []
    for record in runs.glob("*/run.json"):
        last = RunFolder(record.parent).last
        try:
            kind = json.loads(record.read_text(encoding="utf-8"))["kind"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            (reporter or Silent()).warn(f"passed over {record.parent}: its run.json: {error!r}")
            continue
        if kind == "gpt" and last.is_file():
            found.append((last.stat().st_mtime, record.parent))
    if not found:
        raise CheckpointError(
            f"--gpt is not given, and there is no GPT run in {runs}",
            "give --gpt RUN, or train one: tats gpt train --data DIR --vqgan RUN",
        )
    return max(found)[1]


def _checked_context(trained: TrainedGPT, length: int, context: int) -> int:
    window = trained.model.config.grid[0]
    if length > window and not 1 <= context < window:
        raise ConfigError(
            f"--temporal-sample-pos {context} must be less than the window of {window} latent "
            "frames that the model was trained on",
            f"give a value from 1 to {window - 1}" if window > 1 else "train on longer clips",
        )
    return context


def _as_tensor(
    trained: TrainedGPT,
    length: _Length,
    config: SampleConfig,
    chosen: FilterConfig,
    device: str,
) -> Tensor:
    _to(trained, choose_device(device))
    with Silent().task("", "") as task:
        codes = _codes(trained, length, config, chosen, task)
        videos = [torch.cat(list(decode_stream(trained.vqgan.model, c)), 2).cpu() for c in codes]
    return torch.cat(videos)


def _open_model(config: SampleConfig, reporter: Reporter) -> TrainedGPT:
    path = config.gpt
    if path is None:
        path = newest_gpt(reporter=reporter)
        reporter.note(f"sampling from {path}, the newest GPT run")
    trained = read_gpt(path, config.vqgan)
    if config.class_cond and trained.model.config.condition.part("label") is None:
        kinds = ", ".join(part.kind for part in trained.model.config.condition.parts)
        held = "no condition" if kinds == "start" else f"as condition: {kinds}"
        raise ConfigError(
            f"--class-cond, but {find_checkpoint(path)} has {held}",
            "leave the option out, or train with --condition label",
        )
    return trained


def _to(trained: TrainedGPT, device: torch.device) -> None:
    trained.model.to(device)
    trained.vqgan.model.to(device)


def _codes(
    trained: TrainedGPT,
    length: _Length,
    config: SampleConfig,
    chosen: FilterConfig,
    task: Task,
) -> Iterator[Tensor]:
    """Code grids, (B, t, h, w) a batch; tells the tokens done."""
    gpt, samples, batch_size = trained.model, config.samples, config.batch_size
    chosen_by = TokenFilter(chosen.temperature, chosen.top_k, chosen.top_p)
    tokens = length.latent * gpt.config.grid[1] * gpt.config.grid[2]
    for first in range(0, samples, batch_size):
        numbers = range(first, min(first + batch_size, samples))
        condition = class_condition(gpt, len(trained.classes), numbers)
        chances = Chances(config.seed, numbers)

        def tell(done: int, first: int = first, count: int = len(numbers)) -> None:
            task.update(first * tokens + done * count, samples * tokens)

        if length.latent > gpt.config.grid[0]:
            yield generate_long(
                gpt, condition, chances, chosen_by,
                length=length.latent, context=length.context, progress=tell,
            )  # fmt: skip
        else:
            yield generate_window(
                gpt, condition, chances, chosen_by, frames=length.latent, progress=tell
            )


def _write_folder(
    kind: str,
    trained: TrainedGPT,
    length: _Length,
    config: SampleConfig,
    chosen: FilterConfig,
    real: RealDataConfig,
    device: str,
    reporter: Reporter,
    frames: int = 0,
) -> SampleResult:
    if real.compute_fvd:
        _check_comparison(real, frames or length.latent * trained.vqgan.model.config.downsample[0])
    _to(trained, choose_device(device))
    folder = _new_folder(config, chosen, kind)
    rate = trained.vqgan.rate or DEFAULT_RATE
    settings = {
        "kind": kind,
        "step": trained.step,
        "vqgan": trained.vqgan.model.fingerprint(),
        "seed": config.seed,
        "latent_frames": length.latent,
        "context": length.context,
        **chosen.model_dump(),
    }
    listed: list[dict[str, Any]] = []
    shown: list[Frames] = []
    grid = trained.model.config.grid
    total = config.samples * length.latent * grid[1] * grid[2]
    with reporter.task(f"sampling {config.samples} videos", "tokens", total) as task:
        for codes in _codes(trained, length, config, chosen, task):
            for one in codes:
                number = len(listed)
                pieces = decode_stream(trained.vqgan.model, one[None])
                video = np.concatenate([to_uint8(piece[0]) for piece in pieces])
                video = video[:frames] if frames else video
                entry = {"index": number, "label": _label(trained, number)} | settings
                listed.append(entry | _write_sample(folder, number, video, rate, config, entry))
                if len(shown) < GRID_SAMPLES:
                    shown.append(video[:GRID_FRAMES].copy())  # a view would keep the whole
    made, side = video.shape[:2]
    clips = enlarged(np.stack(shown))
    write_video(folder / "grid.mp4", tile(clips), rate)
    write_png(folder / "grid.png", strip(clips[:STRIP_SAMPLES]))
    write_atomically(
        folder / LISTING,
        json.dumps({"frame_rate": rate, "settings": settings, "samples": listed}, indent=2) + "\n",
    )
    distance = None
    if real.compute_fvd:
        distance = _compare(real, folder, made, side, trained.vqgan.clip, device, reporter)
    return SampleResult(
        folder=folder,
        samples=len(listed),
        frames=made,
        size=side,
        frame_rate=rate,
        grid=folder / "grid.mp4",
        picture=folder / "grid.png",
        fvd=distance,
    )


def _label(trained: TrainedGPT, number: int) -> str | None:
    """The class a sample was conditioned on."""
    if trained.model.config.condition.part("label") is None:
        return None
    return trained.classes[number % len(trained.classes)]


def _new_folder(config: SampleConfig, chosen: FilterConfig, kind: str) -> Path:
    default = f"{kind}-k{chosen.top_k}-p{chosen.top_p:g}-t{chosen.temperature:g}-s{config.seed}"
    folder = config.out / (config.name or default)
    claim_empty(folder, "choose another --name, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, DataError) from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} cannot be written", "choose another --out")
    return folder


def _write_sample(
    folder: Path,
    number: int,
    frames: Frames,
    rate: float,
    config: SampleConfig,
    entry: dict[str, Any],
) -> dict[str, str]:
    """Write the files of one sample; their names for the listing."""
    tags = {"title": f"tats sample {number}", "comment": json.dumps(entry)}
    files = {"file": f"sample-{number:04}.mp4"}
    write_video(folder / files["file"], frames, rate, metadata=tags)
    if config.lossless:
        files["lossless"] = f"lossless/sample-{number:04}.mkv"
        write_video(folder / files["lossless"], frames, rate, lossless=True, metadata=tags)
    return files


def _note_unused(real: RealDataConfig, reporter: Reporter) -> None:
    """Say which settings of the comparison mean nothing, because there is none."""
    unused = sorted(real.model_fields_set - {"compute_fvd"})
    if unused and not real.compute_fvd:
        options = ", ".join("--" + name.replace("_", "-") for name in unused)
        reporter.note(f"without --compute-fvd this has no effect: {options}")


def _check_comparison(real: RealDataConfig, frames: int) -> None:
    """Find out before sampling whether the comparison can be made."""
    if frames < LEAST_FRAMES:
        raise ConfigError(
            f"--compute-fvd needs samples of at least {LEAST_FRAMES} frames, these have {frames}",
            f"leave it out, or use tats sample long --frames {LEAST_FRAMES} or more",
        )
    if real.data is None:
        raise ConfigError("--compute-fvd needs real videos", "add --data DIR")
    if not real.data.is_dir():
        raise DataError(f"{real.data} is no folder", "give a folder of real videos with --data")
    weights.locate("i3d")


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
