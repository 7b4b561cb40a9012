"""The architecture of a run's model: what options, data and the weights it starts from decide."""

from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tatscli.app.fitting import clips_for, sound_grid
from tatscli.app.plan import TrainConfig
from tatscli.app.training_data import GPTMaterial, GPTStart
from tatscli.config.base import FILE_ONLY, Config
from tatscli.config.data import ClipConfig
from tatscli.config.files import Layer, flag, resolve
from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig, GPTOptions
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.config.vqgan import SOUND_CHANNELS, VIDEO_CHANNELS, VQGANConfig
from tatscli.core.checkpoint import TrainedVQGAN
from tatscli.errors import ConfigError

CODEBOOK_TRAINING = (
    "codebook_decay",
    "codebook_update",
    "random_restart",
    "restart_threshold",
    "restart_statistics",
)
"""Settings of the VQGAN model that decide how it is trained, not what it is."""


def settle_vqgan(config: VQGANTrainConfig, source: Path, start: TrainedVQGAN) -> VQGANTrainConfig:
    """Take architecture and clips from the weights a run starts from, where they are left open.

    Args:
        config: As given.
        source: Where the weights are.
        start: The weights.

    Raises:
        ConfigError: An architecture was asked for that is not theirs, or does not fit the clips.
    """
    held = start.model.config
    wanted = SOUND_CHANNELS if config.data.input == "sound" else VIDEO_CHANNELS
    if held.image_channels != wanted:
        raise ConfigError(
            f"{source} is a VQGAN of {held.image_channels} channels, and {config.data.input} has "
            f"{wanted}",
            f"start from a VQGAN of {config.data.input}, or change --input",
        )
    free = {*CODEBOOK_TRAINING}
    if not start.judges:
        free |= {"disc_channels", "disc_layers"}
    if held.norm_type == "batch":
        free |= {"group_norm_over_time"}
    values = {name: getattr(held, name) for name in VQGANConfig.model_fields if name not in free}
    _refuse_another(config.model, values, source)
    clip = {name: getattr(start.clip, name) for name in ClipConfig.model_fields}
    return _over(config, source, {"model": values, "data": clip})


def settle_gpt(config: GPTTrainConfig, start: GPTStart) -> GPTTrainConfig:
    """Take the architecture from the weights a run starts from, where it is left open.

    Raises:
        ConfigError: An architecture was asked for that is not theirs.
    """
    held = start.gpt.model.config
    text = held.condition.part("text")
    values = {
        "layers": held.layers,
        "heads": held.heads,
        "width": held.width,
        "dropout": held.dropout,
        "block_size": held.block_size,
        "condition": held.condition.name,
        "text_tokens": text.tokens if text else 0,
        "latent_stride": held.latent_stride,
        "infill": held.infill,
    }
    asked = config.model
    if asked.n_unmasked:
        asked = asked.model_copy(update={"infill": True})
    free = {"dropout"} if asked.block_size else {"dropout", "block_size"}
    _refuse_another(asked, values, start.source, free)
    return _over(config, start.source, {"model": values})


def keep_dropout(config: GPTTrainConfig, start: GPTStart) -> GPTTrainConfig:
    """The settings of a run that goes on, which may be older than this one of them."""
    if not config.model.conditions:
        return config
    held = max(part.dropout for part in start.gpt.model.config.condition.parts)
    model = config.model.model_copy(update={"condition_dropout": held})
    return config.model_copy(update={"model": model})


def gpt_architecture(
    config: GPTTrainConfig,
    material: GPTMaterial,
    start: GPTStart | None = None,
) -> GPTConfig:
    """The GPT that fits its VQGANs and the clips it will write.

    Args:
        config: Settled.
        material: What it is trained on.
        start: Weights that the GPT starts from.

    Raises:
        ConfigError: Vocabulary, classes, grid or block size do not fit; the message has both sides.
    """
    options, vqgan = config.model, material.vqgan
    codes = vqgan.model.config.codes
    if options.vocab_size not in (0, codes):
        raise ConfigError(
            f"--vocab-size {options.vocab_size}, but the VQGAN has {codes} codes",
            f"leave the option out, or give {codes}",
        )
    clip, (frames, height, width) = clips_for(config.data, vqgan)
    if options.n_unmasked not in (0, height * width):
        raise ConfigError(
            f"--n-unmasked {options.n_unmasked}, but a latent frame has {height} x {width} = "
            f"{height * width} tokens",
            "use --infill, which needs no number",
        )
    stride = options.latent_stride
    grid = (-(-frames // stride), height, width)
    layout, block_size = _layout(options, material, clip.frames), options.block_size
    if start:
        held = start.gpt.model.config
        _check_fits(start, layout, material.classes, grid)
        layout, block_size = held.condition, held.block_size
        if not start.resumed:
            layout = ConditionLayout.in_order(layout.parts, options.condition_dropout)
    positions = layout.tokens + prod(grid) - 1
    if options.infills and block_size not in (0, positions):
        raise ConfigError(
            f"block size {block_size}, but infilling of {' x '.join(map(str, grid))} tokens needs "
            f"{positions} positions exactly",
            _other_clips(start) if start else "leave --block-size out",
        )
    try:
        return GPTConfig(
            layers=options.layers,
            heads=options.heads,
            width=options.width,
            dropout=options.dropout,
            codes=codes,
            grid=grid,
            condition=layout,
            block_size=block_size or positions,
            latent_stride=stride,
            infill=options.infills,
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        if "block size" in reason:
            hint = _other_clips(start) if start else "leave --block-size out"
        else:
            hint = _longer_clips(options, vqgan)
        raise ConfigError(reason, hint) from None


def _longer_clips(options: GPTOptions, vqgan: TrainedVQGAN) -> str:
    """The shortest clips that infilling, or key frames, can be learnt from."""
    latent = 3 if options.infills else options.latent_stride + 1
    frames = latent * vqgan.model.config.downsample[0] * vqgan.clip.sample_every_n_frames
    return f"--sequence-length {frames} or more (of tats encode, for tokens)"


def _layout(options: GPTOptions, material: GPTMaterial, frames: int) -> ConditionLayout:
    """The condition: the parts that are asked for, in their fixed order."""
    parts = []
    if "label" in options.conditions:
        parts.append(ConditionPart.label(len(material.classes)))
    if text := material.text:
        parts.append(ConditionPart.text(text.tokens, text.vocabulary, text.pad_id))
    if sound := material.sound:
        codes = sound.model.config.codes
        parts.append(ConditionPart.sound(prod(sound_grid(sound, frames)), codes))
    return ConditionLayout.in_order(parts, options.condition_dropout)


def _check_fits(
    start: GPTStart,
    layout: ConditionLayout,
    classes: tuple[str, ...],
    grid: tuple[int, int, int],
) -> None:
    """Condition and latent frames of the data must be those that the weights know."""
    held = start.gpt.model.config
    ours, theirs = layout.part("sound"), held.condition.part("sound")
    if ours and theirs and ours.tokens != theirs.tokens:
        raise ConfigError(
            f"clips with {ours.tokens} tokens of sound, but {start.source} reads {theirs.tokens}",
            _other_clips(start),
        )
    # Published files know the number of classes only.
    unnamed = start.gpt.classes == tuple(str(number) for number in range(len(classes)))
    if held.condition.part("label") and classes != start.gpt.classes and not unnamed:
        raise ConfigError(
            f"the data has the classes {_listed(classes)}, but {start.source} knows "
            f"{_listed(start.gpt.classes)}",
            "bring the same class folders, or train a new GPT without --init",
        )
    if grid[1:] != held.grid[1:]:
        raise ConfigError(
            f"latent frames of {grid[1]} x {grid[2]}, but {start.source} writes "
            f"{held.grid[1]} x {held.grid[2]}",
            _other_clips(start),
        )


def _other_clips(start: GPTStart) -> str:
    clip = start.gpt.vqgan.clip
    return (
        f"give it clips like its own: --resolution {clip.resolution} "
        f"--sequence-length {clip.sequence_length} "
        f"--sample-every-n-frames {clip.sample_every_n_frames}"
    )


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5])
    return f"{shown}, ... ({len(classes)})" if len(classes) > 5 else shown or "(none)"


def _over(config: TrainConfig, source: Path, held: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """A checkpoint as the weakest layer of settings, below all that was given."""
    given = config.model_dump(exclude_unset=True)
    return resolve(type(config), [Layer(str(source), held), Layer("", given)])


def _refuse_another(
    asked: Config, held: Mapping[str, Any], source: Path, free: Collection[str] = ()
) -> None:
    """An architecture that was asked for must be that of the weights."""
    differing = [
        f"{_named(asked, name)} {_shown(getattr(asked, name))}, not {_shown(value)}"
        for name, value in held.items()
        if name in asked.model_fields_set and name not in free and getattr(asked, name) != value
    ]
    if differing:
        raise ConfigError(
            f"{source} is of another architecture than asked for: {'; '.join(differing)}",
            "leave these settings out, or train a new model without --init",
        )


def _named(section: Config, name: str) -> str:
    """How a user sets a field of the model: an option, or a key in a file."""
    is_file_only = FILE_ONLY in type(section).model_fields[name].metadata
    return f"model.{name}" if is_file_only else flag((name,))


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
