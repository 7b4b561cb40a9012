"""Sampling: new videos as tensors, and as folders of files."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tatscli.app.devices import choose_device
from tatscli.app.evaluate import LEAST_FRAMES, LISTING, FVDResult, evaluate_fvd
from tatscli.app.pictures import DEFAULT_RATE, enlarged, strip
from tatscli.app.reporting import Reporter, Silent, Task
from tatscli.app.run import write_atomically
from tatscli.config.evaluate import FVDConfig, FVDOptions
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
    probe,
    read_frames,
    tile,
    to_float,
    to_uint8,
    write_png,
    write_video,
)
from tatscli.core.sampling.decode import decode_stream
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import Chances, class_condition, generate_long, generate_window
from tatscli.errors import CheckpointError, ConfigError, DataError

GRID_SAMPLES = 16
"""Samples in the video of many side by side."""
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
        grid: Video of the first samples side by side.
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
    """
    trained = read_gpt(Path(gpt))
    length = _Length(trained.model.config.grid[0], 1)
    return _as_tensor(
        trained, samples, length, seed, TokenFilter(temperature, top_k, top_p), batch_size, device
    )


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
    """
    trained = read_gpt(Path(gpt))
    wanted = _Length(length, _checked_context(trained, length, context))
    return _as_tensor(
        trained, samples, wanted, seed, TokenFilter(temperature, top_k, top_p), batch_size, device
    )


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


def newest_gpt(runs: Path = Path("runs")) -> Path:
    """The GPT run below a folder that saved last.

    Raises:
        CheckpointError: There is none.
    """
    found: list[tuple[float, Path]] = []
    for record in runs.glob("*/run.json"):
        last = record.parent / "checkpoints" / "last.ckpt"
        if json.loads(record.read_text(encoding="utf-8")).get("kind") == "gpt" and last.is_file():
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
    samples: int,
    length: _Length,
    seed: int,
    chosen_by: TokenFilter,
    batch_size: int,
    device: str,
) -> Tensor:
    _to(trained, choose_device(device))
    with Silent().task("", "") as task:
        codes = _codes(trained, samples, length, seed, chosen_by, batch_size, task)
        videos = [torch.cat(list(decode_stream(trained.vqgan.model, c)), 2).cpu() for c in codes]
    return torch.cat(videos)


def _open_model(config: SampleConfig, reporter: Reporter) -> TrainedGPT:
    path = config.gpt
    if path is None:
        path = newest_gpt()
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
    samples: int,
    length: _Length,
    seed: int,
    chosen_by: TokenFilter,
    batch_size: int,
    task: Task,
) -> Iterator[Tensor]:
    """Code grids, (B, t, h, w) a batch; tells the tokens done."""
    gpt = trained.model
    tokens = length.latent * gpt.config.grid[1] * gpt.config.grid[2]
    for first in range(0, samples, batch_size):
        numbers = range(first, min(first + batch_size, samples))
        condition = class_condition(gpt, len(trained.classes), numbers)
        chances = Chances(seed, numbers)

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
    folder = _new_folder(config, chosen, kind)
    _to(trained, choose_device(device))
    chosen_by = TokenFilter(chosen.temperature, chosen.top_k, chosen.top_p)
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
    shown: list[Tensor] = []
    grid = trained.model.config.grid
    total = config.samples * length.latent * grid[1] * grid[2]
    with reporter.task(f"sampling {config.samples} videos", "tokens", total) as task:
        batches = _codes(
            trained, config.samples, length, config.seed, chosen_by, config.batch_size, task
        )
        for codes in batches:
            for one in codes:
                number = len(listed)
                pieces = decode_stream(trained.vqgan.model, one[None])
                video = torch.cat([piece.cpu() for piece in pieces], 2)
                video = video[:, :, :frames] if frames else video
                entry = {"index": number, "label": _label(trained, number)} | settings
                listed.append(entry | _write_sample(folder, number, video[0], rate, config, entry))
                if len(shown) < GRID_SAMPLES:
                    shown.append(video)
    first = torch.cat(shown)
    clips = enlarged(first)
    write_video(folder / "grid.mp4", tile(clips), rate)
    write_png(folder / "grid.png", strip(clips[:STRIP_SAMPLES]))
    write_atomically(
        folder / LISTING,
        json.dumps({"frame_rate": rate, "settings": settings, "samples": listed}, indent=2) + "\n",
    )
    distance = _compare(real, folder, first, device, reporter) if real.compute_fvd else None
    return SampleResult(
        folder=folder,
        samples=len(listed),
        frames=first.shape[2],
        size=first.shape[-1],
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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} exists and is not empty; nothing was overwritten",
            "choose another --name, or remove it",
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} cannot be written", "choose another --out")
    return folder


def _write_sample(
    folder: Path,
    number: int,
    video: Tensor,
    rate: float,
    config: SampleConfig,
    entry: dict[str, Any],
) -> dict[str, str]:
    """Write the files of one sample; their names for the listing."""
    frames = to_uint8(video)
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
    real: RealDataConfig, folder: Path, shown: Tensor, device: str, reporter: Reporter
) -> FVDResult:
    assert real.data is not None
    options = FVDOptions(
        frames=min(16, shown.shape[2]), resolution=real.resolution or shown.shape[-1]
    )
    config = FVDConfig(fvd=options, compute={"device": device})
    return evaluate_fvd(
        real.data,
        folder,
        config,
        reporter,
        real_name=real.dataset,
        real_stride=real.sample_every_n_frames,
    )
