"""Models from and to the checkpoints of the published TATS code, with proof that nothing is lost.

Letters: B clips, C channels, T frames, H W pixels; t h w latent positions, L tokens, V vocabulary.
"""

import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tatscli import __version__
from tatscli.app.reporting import Reporter, Silent
from tatscli.app.run import RunFolder, write_atomically
from tatscli.config.data import ClipConfig
from tatscli.config.gpt import GPTConfig
from tatscli.config.port import ExportConfig, ImportConfig
from tatscli.config.vqgan import SOUND_CHANNELS, VIDEO_CHANNELS, VQGANConfig
from tatscli.config.words import counted
from tatscli.core.checkpoint import (
    HEADER,
    TrainedGPT,
    TrainedVQGAN,
    read_trained,
    save_gpt,
    save_original,
    save_vqgan,
)
from tatscli.core.data.clips import Address, ClipSource, grid_length
from tatscli.core.data.index import single_video
from tatscli.core.data.synth import SHAPES, shape_clip, sound_clip
from tatscli.core.data.video import to_float
from tatscli.core.files import claim_empty, unwritable
from tatscli.core.metrics.baselines import best_constant_image
from tatscli.core.metrics.reconstruction import psnr
from tatscli.core.models.gpt import condition_ids
from tatscli.core.models.receptive import pools_over_time
from tatscli.core.original import JUDGES, holds_gpt, is_original, read_original
from tatscli.core.paths import find_checkpoint, model_name
from tatscli.core.training.losses import token_loss
from tatscli.errors import CheckpointError, ConfigError, DataError, RunError

STILL_PSNR = 25.0
"""PSNR in dB up to which the best still image is something to surpass."""
GENERATED = "a generated clip"
"""What a clip is called that was made here."""


@dataclass(frozen=True)
class VQGANSummary:
    """A VQGAN in short.

    Attributes:
        downsample: Compression along time, height and width.
        norm: Normalisation.
        padding: Padding of the encoder's own convolutions.
        hidden_channels: Channels at full resolution.
        embedding_dim: Width of a code vector.
        codes: Entries of the codebook.
    """

    downsample: tuple[int, int, int]
    norm: str
    padding: str
    hidden_channels: int
    embedding_dim: int
    codes: int


@dataclass(frozen=True)
class GPTSummary:
    """A GPT in short.

    Attributes:
        layers: Transformer blocks.
        heads: Attention heads.
        width: Width of the residual stream.
        positions: Positions it has embeddings for.
        writes: Which latent frames it writes.
    """

    layers: int
    heads: int
    width: int
    positions: int
    writes: str


@dataclass(frozen=True)
class ImportResult:
    """An imported model.

    Attributes:
        run: Its folder.
        kind: vqgan, sound vqgan or gpt.
        source: The published file.
        sha256: Of the published file.
        step: Optimiser steps, as the published file counts them.
        parameters: Of the model, without discriminators and the VQGANs of a GPT.
        vqgan: The VQGAN, or that of a GPT.
        sound: The VQGAN of the sound that a GPT is conditioned on.
        gpt: The GPT.
        condition: What the GPT is conditioned on.
        discriminators: Which came along, to go on with the training of a VQGAN.
        resolution: Height and width in pixels of the training clips.
        frames: Frames of a training clip.
        grid: Latent grid (t, h, w) of one; of a GPT, what it writes at once.
        fingerprint: Of the VQGAN.
        checked_on: The clip that the rest is about.
        identical: Whether codes, reconstruction and logits are those of the published file, bit by
            bit; where they are not, importing is an error.
        codes_used: Different codes in the clip.
        psnr: Of the reconstruction, in dB.
        still_psnr: Of the best still image, in dB, which a reconstruction should surpass.
        loss: Nats a token of a GPT, where it needs no sound.
        loss_of_chance: The same where every code is as likely.
    """

    run: Path
    kind: str
    source: Path
    sha256: str
    step: int
    parameters: int
    vqgan: VQGANSummary
    sound: VQGANSummary | None
    gpt: GPTSummary | None
    condition: str
    discriminators: list[str]
    resolution: tuple[int, int]
    frames: int
    grid: tuple[int, int, int]
    fingerprint: str
    checked_on: str
    identical: bool
    codes_used: int
    psnr: float
    still_psnr: float
    loss: float | None
    loss_of_chance: float | None


@dataclass(frozen=True)
class ExportResult:
    """A checkpoint in the published layout.

    Attributes:
        file: Where it is.
        kind: vqgan, sound vqgan or gpt.
        step: Optimiser steps.
        missing: What published files hold and this one does not.
    """

    file: Path
    kind: str
    step: int
    missing: list[str]


class _Answers(NamedTuple):
    """What a model makes of a clip.

    Attributes:
        codes: (1, t, h, w).
        video: The reconstruction, (1, C, T, H, W).
        tokens: (1, L), what a GPT is to predict; empty without one.
        hidden: (1, L, W), what the last layer of a GPT turns into logits; empty without one.
        logits: (1, L, V) of a GPT; empty without one.
    """

    codes: Tensor
    video: Tensor
    tokens: Tensor
    hidden: Tensor
    logits: Tensor


def import_published(
    path: Path, config: ImportConfig, reporter: Reporter | None = None
) -> ImportResult:
    """Turn a published checkpoint into a folder like that of a run, and check it.

    Args:
        path: The published file.
        config: Where to, and what to check on.
        reporter: Told what was assumed, and if the model looks untrained.

    Raises:
        CheckpointError: The file is no published checkpoint, is damaged, or does not say enough.
        DataError: The clip to check on cannot be read or is too short.
        RunError: The folder holds something, or cannot be written.
    """
    reporter = reporter or Silent()
    file = find_checkpoint(path)
    out = config.out or Path("runs") / file.stem
    claim_empty(out, "choose another --out", RunError)
    with reporter.task("importing", "steps", 4) as task:
        trained = _read_published(file, config.vqgan, reporter)
        task.update(1)
        vqgan = trained.vqgan if isinstance(trained, TrainedGPT) else trained
        video = _clip_for(vqgan, config.check)
        before = _answers(trained, video)
        task.update(2)
        result = _result(trained, file, out, video, before, str(config.check or GENERATED))
        task.update(3)
        _write(trained, result, video, before)
        task.update(4)
    # Nothing surpasses the still image of a clip that hardly moves.
    if result.psnr < min(result.still_psnr, STILL_PSNR):
        reporter.warn(
            f"the reconstruction of the clip ({result.psnr:.1f} dB) is worse than a still image "
            f"({result.still_psnr:.1f} dB): the model may be untrained, or the clip unlike those "
            "it knows; --check CLIP tries another"
        )
    return result


def export_published(
    path: Path, config: ExportConfig, reporter: Reporter | None = None
) -> ExportResult:
    """Write a model in the published layout, and read it again.

    Args:
        path: Run folder or checkpoint.
        config: Where to.
        reporter: Told how the published code loads the file.

    Raises:
        CheckpointError: There is no model, the published code would compute something else with
            it, or the file exists or cannot be written.
    """
    reporter = reporter or Silent()
    file = find_checkpoint(path)
    out = config.out or Path(f"{model_name(path)}-published.ckpt")
    if out.exists():
        raise CheckpointError(f"{out} exists; nothing was overwritten", "choose another --out")
    trained = read_trained(file)
    save_original(trained, out)
    if not _same(trained, read_trained(out)):
        out.unlink()
        raise CheckpointError(f"{out} was not written as {file} is; it was removed")
    _tell_how_to_load(trained, reporter)
    return ExportResult(out, _kind(trained), trained.step, _missing(trained))


def _read_published(
    file: Path, vqgan: Path | None, reporter: Reporter
) -> TrainedVQGAN | TrainedGPT:
    checkpoint = read_original(file)
    published = is_original(checkpoint)
    if HEADER in checkpoint and not published:
        raise CheckpointError(
            f"{file} is a checkpoint of tats already",
            "use it as it is: --vqgan, --gpt and --init take it; tats export goes the other way",
        )
    trained = read_trained(file, vqgan)
    if isinstance(trained, TrainedVQGAN):
        if vqgan:
            reporter.note("--vqgan has no effect: the file holds a VQGAN")
    elif HEADER not in checkpoint and not (vqgan and _says_padding(vqgan)):
        reporter.note(
            "a published GPT file does not say how its VQGAN pads: taken to be replicate, the "
            "published default; --vqgan FILE settles it"
        )
    return trained


def _says_padding(vqgan: Path) -> bool:
    """Whether a file says how its VQGAN pads; only that of a published GPT does not."""
    checkpoint = read_original(find_checkpoint(vqgan))
    return HEADER in checkpoint or not holds_gpt(checkpoint)


def _clip_for(vqgan: TrainedVQGAN, check: Path | None) -> Tensor:
    """The clip a model is checked on, (1, C, T, H, W) in [-0.5, 0.5]."""
    channels = vqgan.model.config.image_channels
    if channels == SOUND_CHANNELS:
        if check:
            raise ConfigError(
                "--check takes a video, but this is the VQGAN of sound", "leave --check out"
            )
        return _generated_sound(vqgan.clip.frames) * vqgan.gain
    if channels != VIDEO_CHANNELS:
        raise CheckpointError(
            f"the VQGAN is for frames of {channels} channels; videos have "
            f"{VIDEO_CHANNELS}, sound {SOUND_CHANNELS}"
        )
    if check:
        return _read_clip(check, vqgan.clip)
    return to_float(_generated(vqgan.clip.resolution, vqgan.clip.frames))[None]


def _generated(size: int, frames: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return shape_clip(SHAPES[0], size, frames, np.random.default_rng(0))


def _generated_sound(frames: int) -> Tensor:
    """What a moving shape sounds like, (1, 1, T, 64, 16)."""
    return sound_clip(SHAPES[0], frames, np.random.default_rng(0))[None]


def _read_clip(path: Path, clip: ClipConfig) -> Tensor:
    """The beginning of a video as a model would be trained on it, (1, 3, T, H, W)."""
    root, entry = single_video(path)
    length = grid_length(entry, clip.frame_rate)
    if length < clip.sequence_length:
        raise DataError(
            f"{path} has {counted(length, 'frame')}, a clip of this model {clip.sequence_length}",
            "give a longer one to --check, or leave it out",
        )
    return ClipSource([entry], root, clip).read(Address(0, 0)).video[None]


@torch.no_grad()
def _answers(trained: TrainedVQGAN | TrainedGPT, video: Tensor) -> _Answers:
    """Run a model on a clip; class 0, no text and a generated sound are its condition.

    Raises:
        CheckpointError: Its weights give values that are not finite.
    """
    nothing = torch.empty(0)
    if isinstance(trained, TrainedVQGAN):
        codes = trained.model.encode(video)
        found = _Answers(codes, trained.model.decode(codes), nothing, nothing, nothing)
    else:
        codes = trained.vqgan.model.encode(video)
        config = trained.model.config
        label = torch.zeros(1, dtype=torch.long) if config.condition.part("label") else None
        sound = None
        if trained.sound:
            clip = _generated_sound(trained.vqgan.clip.frames)
            sound = trained.sound.sound_codes(clip).flatten(1)
        text = None
        if part := config.condition.part("text"):
            text = torch.full((1, part.tokens), part.null_id)
        condition = condition_ids(config.condition, 1, label, sound, text)
        tokens = codes[:, :: config.latent_stride].flatten(1)
        hidden = trained.model.hidden(condition, tokens)
        logits = trained.model.head(hidden)
        found = _Answers(codes, trained.vqgan.model.decode(codes), tokens, hidden, logits)
    for name, values in (("a reconstruction", found.video), ("logits", found.logits)):
        if not values.isfinite().all():
            raise CheckpointError(
                f"the model gives {name} with values that are not finite: its weights are damaged",
                "take an earlier checkpoint of that training",
            )
    return found


def _write(
    trained: TrainedVQGAN | TrainedGPT, result: ImportResult, video: Tensor, before: _Answers
) -> None:
    """Write the folder and read it again, all of it or nothing.

    Raises:
        CheckpointError: What is read answers differently.
        RunError: The folder cannot be written.
    """
    out = result.run.absolute()  # "." has no name of its own
    partial = RunFolder(out.with_name(f".{out.name}.{os.getpid()}.part"))
    ended = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"status": "imported", "tats": __version__, "ended": ended, **asdict(result)}
    if isinstance(trained, TrainedGPT):
        config = trained.model.config
        record["model"] = {
            "infill": config.infill,
            "latent_stride": config.latent_stride,
            "condition": config.condition.name,
        }
        record["classes"] = trained.classes
    text = json.dumps(record, indent=2, default=str) + "\n"
    try:
        if isinstance(trained, TrainedGPT):
            save_gpt(trained, partial.last)
        else:
            save_vqgan(trained, partial.last)
        after = _answers(read_trained(partial.last), video)
        if not all(map(torch.equal, before, after)):
            raise CheckpointError(
                f"{result.source} answers differently once it is imported; nothing was written"
            )
        write_atomically(partial.path / "run.json", text)
        partial.path.replace(out)
    except OSError as error:
        raise unwritable(out, error, RunError) from error
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)


def _result(
    trained: TrainedVQGAN | TrainedGPT,
    file: Path,
    out: Path,
    video: Tensor,
    found: _Answers,
    checked_on: str,
) -> ImportResult:
    vqgan = trained.vqgan if isinstance(trained, TrainedGPT) else trained
    frames, height, width = video.shape[2:]
    gpt = sound = loss = chance = None
    condition = ""
    grid = vqgan.model.config.grid(frames, height, width)
    if isinstance(trained, TrainedGPT):
        config = trained.model.config
        gpt, grid, condition = _describe_gpt(config), config.grid, _condition(config)
        if trained.sound:
            sound = _describe(trained.sound.model.config)
        else:
            head = trained.model.head.weight.detach()
            loss = float(token_loss(found.hidden, head, found.tokens, config))
            chance = math.log(config.codes)
    still = best_constant_image(video)[None, :, None].expand_as(video)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return ImportResult(
        run=out,
        kind=_kind(trained),
        source=file.resolve(),
        sha256=digest,
        step=trained.step,
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        vqgan=_describe(vqgan.model.config),
        sound=sound,
        gpt=gpt,
        condition=condition,
        discriminators=_discriminators(trained) if isinstance(trained, TrainedVQGAN) else [],
        resolution=(height, width),
        frames=frames,
        grid=grid,
        fingerprint=vqgan.model.fingerprint(),
        checked_on=checked_on,
        identical=True,
        codes_used=len(set(found.codes.flatten().tolist())),
        psnr=float(psnr(video, found.video.clamp(-0.5, 0.5))),
        still_psnr=float(psnr(video, still)),
        loss=loss,
        loss_of_chance=chance,
    )


def _describe(config: VQGANConfig) -> VQGANSummary:
    return VQGANSummary(
        downsample=config.downsample,
        norm=f"{config.norm_type}, over time" if pools_over_time(config) else config.norm_type,
        padding=config.padding_type,
        hidden_channels=config.hidden_channels,
        embedding_dim=config.embedding_dim,
        codes=config.codes,
    )


def _describe_gpt(config: GPTConfig) -> GPTSummary:
    writes = "all latent frames"
    if config.infill:
        writes = "the latent frames between the first and the last"
    elif config.latent_stride > 1:
        writes = f"one latent frame in {config.latent_stride}"
    return GPTSummary(config.layers, config.heads, config.width, config.block_size, writes)


def _condition(config: GPTConfig) -> str:
    names = {
        "start": "nothing",
        "label": "the class, {ids} ids",
        "text": "text, {tokens} tokens",
        "sound": "sound, {tokens} tokens",
    }
    return " and ".join(
        names[part.kind].format(ids=part.ids, tokens=part.tokens) for part in config.condition.parts
    )


def _kind(trained: TrainedVQGAN | TrainedGPT) -> str:
    if isinstance(trained, TrainedGPT):
        return "gpt"
    return "sound vqgan" if trained.is_of_sound else "vqgan"


def _discriminators(vqgan: TrainedVQGAN) -> list[str]:
    return [
        name.replace("_", " ") for name in JUDGES if any(k.startswith(name) for k in vqgan.judges)
    ]


def _missing(trained: TrainedVQGAN | TrainedGPT) -> list[str]:
    held = _discriminators(trained.vqgan if isinstance(trained, TrainedGPT) else trained)
    names = [name.replace("_", " ") for name in JUDGES]
    return ["perceptual network", *(name for name in names if name not in held)]


def _tell_how_to_load(trained: TrainedVQGAN | TrainedGPT, reporter: Reporter) -> None:
    if isinstance(trained, TrainedVQGAN):
        reporter.note("the published code loads it with load_from_checkpoint(FILE, strict=False)")
        return
    reporter.note(
        "the published code loads it with _load_model_state(CHECKPOINT, strict=False), and wants "
        "its VQGAN as a file too (args.vqvae): tats export VQGAN_RUN"
    )
    part = trained.model.config.condition.part("label")
    if part and part.null_id >= 0:
        reporter.note(f"of its {part.ids} classes there, class {part.null_id} stands for none")


def _same(one: TrainedVQGAN | TrainedGPT, other: TrainedVQGAN | TrainedGPT) -> bool:
    """Whether two models are equal in all that checkpoints keep."""
    (settings, tensors), (settings_there, there) = _content(one), _content(other)
    return (
        settings == settings_there
        and tensors.keys() == there.keys()
        and all(torch.equal(tensor, there[key]) for key, tensor in tensors.items())
    )


def _content(trained: TrainedVQGAN | TrainedGPT) -> tuple[list[Any], dict[str, Tensor]]:
    """Settings of a model and of those it holds, and their tensors by name."""
    state = trained.model.state_dict()
    if isinstance(trained, TrainedVQGAN):
        model, clip = trained.model.config, trained.clip
        settings = [model, clip, trained.rate, trained.step, trained.input_range]
        return settings, state | dict(trained.judges)
    settings = [trained.model.config, trained.classes, trained.step, trained.text]
    for name, held in (("vqgan", trained.vqgan), ("sound", trained.sound)):
        if held:
            its_settings, its_state = _content(held)
            settings += its_settings
            state |= {f"{name}.{key}": tensor for key, tensor in its_state.items()}
    return settings, state
