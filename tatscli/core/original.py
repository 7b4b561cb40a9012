"""The published TATS checkpoint format, and only here.

A published file is a Lightning 1.x checkpoint: ``state_dict``, ``global_step`` and, in
``hyper_parameters``, the command line as an ``argparse.Namespace`` called ``args``. A GPT file also
holds its VQGAN (``first_stage_model.*``) and, where it is conditioned on sound, that of the sound
(``cond_stage_model.*``), but not their settings.

Files written here say in a further entry, ``tats``, what that layout has no place for, so that
reading them gives back all that was written.
"""

import argparse
import errno
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError, model_validator
from torch import Tensor, nn

from tatscli.config.data import SOUND_FRAME, ClipConfig
from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig
from tatscli.config.vqgan import SOUND_CHANNELS, VQGANConfig
from tatscli.core.data.text import TextTokenizer
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.gpt import GPT, infill_mask
from tatscli.core.models.receptive import pools_over_time
from tatscli.core.models.vqgan import VQGAN
from tatscli.errors import CheckpointError

State = dict[str, Tensor]
Factors = tuple[int, int, int]
_Facts = TypeVar("_Facts", bound=BaseModel)

_KEYS = (
    (r"(.+_discriminator)\.layers\.(\d+)\.(.+)", (r"\1.model\2.\3",)),
    (r"(.+\.attn)\.qkv\.(.+)", (r"\1.query.\2", r"\1.key.\2", r"\1.value.\2")),
)
"""Our key, and the published keys whose tensors are stacked to make it; all others are equal."""

_IGNORED = re.compile(r"(.+\.)?perceptual_model\..+|transformer\.blocks\.\d+\.attn\.mask")
"""Keys that may be there or not: LPIPS, which never changes, and causal masks."""

_DIMENSIONS: dict[str, Literal[2, 3]] = {"image_discriminator": 2, "video_discriminator": 3}
JUDGES = tuple(_DIMENSIONS)
"""Names of the discriminators, here as in published files."""

INPUT_RANGE = 0.5
"""Largest absolute value of frames, and of our patches of sound."""
PUBLISHED_TEXT_IDS = 49408
"""Ids of text in every published GPT that has any: those of CLIP's tokenizer."""
PUBLISHED_SOUND_RANGE = 1.0
"""That of the patches that published VQGANs of sound were trained on."""

_FIRST_STAGE = "first_stage_model."
_COND_STAGE = "cond_stage_model."
_TRANSFORMER = "transformer."
_FACTS = "tats"
_NOT_READ = "this version reads GPTs without condition, of class labels and of sound"
_LIGHTNING = "1.5.4"


class VQGANFacts(BaseModel):
    """What a file says about a VQGAN beside its tensors.

    Attributes:
        config: Its architecture.
        clip: The clips it was trained on; of sound, those of the video beside it.
        rate: Frames per second of these clips, as kept; 0 where it is not known.
        input_range: Largest absolute value of what it is trained on; where it is not said, as in
            published files and those made of them, that of the published code.
    """

    config: VQGANConfig
    clip: ClipConfig
    rate: float
    input_range: float = 0.0

    @model_validator(mode="after")
    def _published_range(self) -> "VQGANFacts":
        if not self.input_range:
            is_of_sound = self.config.image_channels == SOUND_CHANNELS
            self.input_range = PUBLISHED_SOUND_RANGE if is_of_sound else INPUT_RANGE
        return self


class GPTFacts(BaseModel):
    """What a file says about a GPT beside its tensors.

    Attributes:
        config: Its architecture.
        classes: Names of its classes.
        vqgan: The VQGAN it writes codes for.
        sound: The VQGAN of the sound it is conditioned on.
        text: The tokenizer of the text it is conditioned on.
    """

    config: GPTConfig
    classes: tuple[str, ...]
    vqgan: VQGANFacts
    sound: VQGANFacts | None = None
    text: TextTokenizer | None = None


@dataclass(frozen=True)
class OriginalVQGAN:
    """A published VQGAN.

    Attributes:
        facts: Architecture and clips.
        state: State dict of our ``VQGAN``.
        judges: State dicts of our ``PatchDiscriminator`` in 2-D and in 3-D, in one: their keys
            start with their names. What a file lacks is not there.
        step: Optimiser steps, as the file counts them.
    """

    facts: VQGANFacts
    state: State
    judges: State
    step: int


@dataclass(frozen=True)
class OriginalGPT:
    """A published GPT.

    Attributes:
        facts: Architecture, and what the VQGANs inside are.
        state: State dict of our ``GPT``.
        vqgan: The VQGAN inside the file, with the clips the GPT was trained on.
        sound: The VQGAN of the sound, where the GPT is conditioned on it.
        step: Optimiser steps.
    """

    facts: GPTFacts
    state: State
    vqgan: OriginalVQGAN
    sound: OriginalVQGAN | None
    step: int


class _Stub:
    """Stands for a class of an old Lightning that a file names and nobody needs."""


_STUBS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    # The default of --gpus and --tpu_cores before Lightning 1.2.8, kept by the saved arguments.
    "pytorch_lightning.utilities.argparse._gpus_arg_default",
    "pytorch_lightning.utilities.argparse_utils._gpus_arg_default",
)

# What makes a numpy number, as callbacks store the best score; its module moved in numpy 2.
_SCALAR = np.float64(0).__reduce__()[0]
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

_SAFE: list[Any] = [
    argparse.Namespace,
    *((_Stub, name) for name in _STUBS),
    *((_SCALAR, name) for name in _SCALAR_NAMES),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
]


def read_original(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: tensors, plain values and a Namespace, never code.

    Reads our own checkpoints as well, which hold less.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or names anything else; the message
            lists what, and nothing of it is imported or run.
    """
    try:
        with torch.serialization.safe_globals(_SAFE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says it better
            checkpoint = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: {_refused(path) or 'it is no checkpoint of tensors, or damaged'}",
            "a checkpoint needs only tensors and plain values; do not trust this file",
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch was sent to a place before the file's beginning
            raise CheckpointError(
                f"{path} is damaged or incomplete: {path.stat().st_size:,} bytes",
                "copy or download it again, or take another checkpoint of that run",
            ) from error
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # what is no checkpoint fails in any way, if it is read as one
        if what := _no_checkpoint(path):
            raise CheckpointError(
                f"{path} is no checkpoint: {what}",
                "give a checkpoint that tats or the published code wrote",
            ) from error
        reason = str(error).split(". ")[0].splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {reason[0]}", "copy or download it again"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, expected a checkpoint")
    return checkpoint


def is_original(checkpoint: Mapping[str, Any]) -> bool:
    """Whether this is a published TATS checkpoint, of either kind."""
    settings = checkpoint.get("hyper_parameters")
    return (
        isinstance(settings, dict)
        and isinstance(settings.get("args"), (argparse.Namespace, Mapping))
        and is_state(checkpoint.get("state_dict"))
    )


def is_state(states: Any) -> bool:
    """Whether something read from a file is a state dict: tensors by name."""
    return isinstance(states, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in states.items()
    )


def first_ten(lines: Sequence[str]) -> list[str]:
    """The first ten lines of a list, and how many follow."""
    more = len(lines) - 10
    return [*lines[:10], f"... and {more} more"] if more > 0 else list(lines)


def part_of(states: Mapping[str, Tensor], prefix: str) -> State:
    """The state dict of one module among several: what starts with a prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in states.items() if key.startswith(prefix)
    }


def holds_gpt(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a published checkpoint is that of a GPT."""
    return any(key.startswith(_TRANSFORMER) for key in checkpoint["state_dict"])


def original_vqgan(checkpoint: Mapping[str, Any]) -> OriginalVQGAN:
    """The VQGAN of a published VQGAN or GPT checkpoint.

    Raises:
        CheckpointError: Its settings do not hold, or its tensors are not those of its settings.
    """
    if holds_gpt(checkpoint):
        return original_gpt(checkpoint).vqgan
    facts = _own_facts(checkpoint, VQGANFacts) or _vqgan_facts(_arguments(checkpoint))
    state = checkpoint["state_dict"]
    vqgan, judges = _translate(state, _vqgan_modules(facts.config, "", state))
    return OriginalVQGAN(facts, vqgan, judges, _step(checkpoint))


def original_gpt(
    checkpoint: Mapping[str, Any], vqgan_config: VQGANConfig | None = None
) -> OriginalGPT:
    """The GPT of a published checkpoint, and the VQGANs inside it.

    Args:
        checkpoint: As ``read_original`` gives it.
        vqgan_config: Settings of the VQGAN inside. Without them they are read off its tensors;
            the downsampling, which leaves no trace there, off the clip and the length of the
            sequence, taking height and width to be downsampled alike; and the padding is taken
            to be the published default. The VQGAN of the sound is always read so.

    Raises:
        CheckpointError: The file holds no GPT, or one of a kind that is not read; its settings do
            not hold or leave the downsampling open; its tensors are not those of its settings.
    """
    if not holds_gpt(checkpoint):
        raise CheckpointError(
            "the published file holds a VQGAN, expected a GPT",
            "train one with: tats gpt train --data DIR --vqgan FILE",
        )
    facts = _own_facts(checkpoint, GPTFacts) or _gpt_facts(checkpoint, vqgan_config)
    state, step = checkpoint["state_dict"], _step(checkpoint)
    with torch.device("meta"):
        modules: list[tuple[str, nn.Module]] = [(_TRANSFORMER, GPT(facts.config))]
    modules += _vqgan_modules(facts.vqgan.config, _FIRST_STAGE, state)
    if facts.sound:
        modules += _vqgan_modules(facts.sound.config, _COND_STAGE, state)
    gpt, *inside = _translate(state, modules)
    vqgan = OriginalVQGAN(facts.vqgan, inside[0], inside[1], step)
    sound = OriginalVQGAN(facts.sound, inside[2], inside[3], step) if facts.sound else None
    return OriginalGPT(facts, gpt, vqgan, sound, step)


def published_vqgan(vqgan: OriginalVQGAN) -> dict[str, Any]:
    """A VQGAN as a published checkpoint.

    It lacks the tensors of the perceptual network, which the published code fetches anyway, and
    those of discriminators that are not given; the published code, which is strict, loads it with
    ``strict=False``. Settings of training are those of the published recipe.

    Raises:
        CheckpointError: The published code would compute something else.
    """
    config = vqgan.facts.config
    _check_published(vqgan.facts)
    args = _clip_arguments(vqgan.facts.clip) | {
        "embedding_dim": config.embedding_dim,
        "n_codes": config.codes,
        "n_hiddens": config.hidden_channels,
        "downsample": list(config.downsample),
        "image_channels": config.image_channels,
        "norm_type": config.norm_type,
        "padding_type": config.padding_type,
        "no_random_restart": not config.random_restart,
        "restart_thres": 1.0,
        "disc_channels": config.disc_channels,
        "disc_layers": config.disc_layers,
        "disc_loss_type": "hinge",
        "discriminator_iter_start": 10000,
        "gan_feat_weight": 4.0,
        "image_gan_weight": 1.0,
        "video_gan_weight": 1.0,
        "l1_weight": 4.0,
        "perceptual_weight": 4.0,
        "i3d_feat": False,
        "lr": 3e-5,
    }
    return _published(_vqgan_state(vqgan, ""), args, {}, vqgan.facts, vqgan.step)


def published_gpt(gpt: OriginalGPT) -> dict[str, Any]:
    """A GPT with its VQGANs as a published checkpoint; see ``published_vqgan``.

    The published code also wants each VQGAN as a file of its own.

    Raises:
        CheckpointError: The published code would compute something else.
    """
    config, clip = gpt.facts.config, gpt.facts.vqgan.clip
    if len(config.condition.parts) > 1:
        kinds = " and ".join(part.kind for part in config.condition.parts)
        raise CheckpointError(f"a published GPT has one condition, this one has {kinds}")
    [part] = config.condition.parts
    _check_condition(part)
    if config.infill:
        _check_infill(config)
    for vqgan in filter(None, (gpt.vqgan, gpt.sound)):
        _check_published(vqgan.facts)
    cond_stage_key = {"sound": "stft", "text": "text"}.get(part.kind, "label")
    args = _clip_arguments(clip) | {
        "vqvae": "",
        "stft_vqvae": "",
        "unconditional": part.kind == "start",
        "first_stage_key": "video",
        "cond_stage_key": cond_stage_key,
        "class_cond_dim": part.ids if part.kind == "label" else None,
        "vocab_size": config.codes,
        "first_stage_vocab_size": config.codes,
        "block_size": config.block_size,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_embd": config.width,
        "n_unmasked": config.frame_tokens if config.infill else 0,
        "sample_every_n_latent_frames": config.latent_stride if config.latent_stride > 1 else 0,
        "base_lr": 4.5e-6,
    }
    state = dict(_published_keys(_TRANSFORMER, gpt.state)) | _vqgan_state(gpt.vqgan, _FIRST_STAGE)
    if gpt.sound:
        state |= _vqgan_state(gpt.sound, _COND_STAGE)
    mask = _published_mask(config)
    for layer in range(config.layers):
        state[f"{_TRANSFORMER}blocks.{layer}.attn.mask"] = mask
    settings: dict[str, Any] = {
        "ckpt_path": None,
        "ignore_keys": [],
        "first_stage_key": "video",
        "cond_stage_key": cond_stage_key,
        "pkeep": 1.0,
        "sos_token": 0,
    }
    return _published(state, args, settings, gpt.facts, gpt.step)


def _no_checkpoint(path: Path) -> str:
    """What a file is that cannot be a checkpoint, as far as its first bytes tell."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    printable = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
    return "it is a text" if printable else ""


def _refused(path: Path) -> str:
    """What a file names beyond tensors and plain values; found without running anything."""
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with torch.serialization.safe_globals(_SAFE):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the names are written in what is damaged
        return ""
    return f"it wants to load {', '.join(sorted(names)[:10])}" if names else ""


def _arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    args = checkpoint["hyper_parameters"]["args"]
    return dict(args) if isinstance(args, Mapping) else vars(args)


def _argument(args: Mapping[str, Any], name: str) -> Any:
    if name not in args:
        raise CheckpointError(f"the published file lacks its setting {name}")
    return args[name]


def _whole(settings: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number, which may be missing or None where there is a default."""
    value = _argument(settings, name) if default is None else settings.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int):
        raise CheckpointError(f"the published file's {name} is {value!r}, expected a whole number")
    return value


def _step(checkpoint: Mapping[str, Any]) -> int:
    return _whole(checkpoint, "global_step", 0)


def _clip(args: Mapping[str, Any]) -> ClipConfig:
    clip: ClipConfig = _checked(
        ClipConfig,
        {
            "resolution": _argument(args, "resolution"),
            "sequence_length": _argument(args, "sequence_length"),
            "sample_every_n_frames": args.get("sample_every_n_frames", 1),
        },
    )
    return clip


def _own_facts(checkpoint: Mapping[str, Any], kind: type[_Facts]) -> _Facts | None:
    """What was written beside the published layout, if it was written here."""
    said = checkpoint.get(_FACTS)
    if said is None:
        return None
    facts: _Facts = _checked(kind, said)
    return facts


def _vqgan_facts(args: Mapping[str, Any]) -> VQGANFacts:
    """What the settings of a VQGAN file say."""
    norm_type = _argument(args, "norm_type")
    config = _checked(
        VQGANConfig,
        {
            "embedding_dim": _argument(args, "embedding_dim"),
            "codes": _argument(args, "n_codes"),
            "hidden_channels": _argument(args, "n_hiddens"),
            "downsample": _argument(args, "downsample"),
            "norm_type": norm_type,
            "padding_type": args.get("padding_type", "replicate"),
            "group_norm_over_time": norm_type == "group",
            "image_channels": _argument(args, "image_channels"),
            "random_restart": not _argument(args, "no_random_restart"),
            "disc_channels": _argument(args, "disc_channels"),
            "disc_layers": _argument(args, "disc_layers"),
        },
    )
    return VQGANFacts(config=config, clip=_clip(args), rate=0.0)


def _gpt_facts(checkpoint: Mapping[str, Any], given: VQGANConfig | None) -> GPTFacts:
    """What the settings of a GPT file say, and what its tensors and its length give away."""
    args, state = _arguments(checkpoint), checkpoint["state_dict"]
    kind = _condition_kind(checkpoint["hyper_parameters"], args)
    clip, block_size = _clip(args), _whole(args, "block_size")
    stride = max(1, _whole(args, "sample_every_n_latent_frames", 0))
    video = _Inside(state, _FIRST_STAGE, clip.frames, (clip.resolution, clip.resolution), stride)
    inside = [video]
    if kind == "sound":
        inside.append(_Inside(state, _COND_STAGE, clip.frames, SOUND_FRAME))
    known = {} if given is None else {video.prefix: given}
    configs = _inside_configs(inside, known, block_size, 0 if kind == "sound" else 1)
    grids = [held.grid(config) for held, config in zip(inside, configs, strict=True)]
    classes: tuple[str, ...] = ()
    condition = ConditionLayout.unconditional()
    if kind == "label":
        labels = _whole(args, "class_cond_dim", 0)
        classes = tuple(str(number) for number in range(labels))
        part = _checked(ConditionPart, {"kind": "label", "tokens": 1, "ids": labels, "offset": 0})
        condition = ConditionLayout(parts=(part,))
    elif kind == "sound":
        part = ConditionPart(kind="sound", tokens=prod(grids[1]), ids=configs[1].codes, offset=0)
        condition = ConditionLayout(parts=(part,))
    unmasked, frame = _whole(args, "n_unmasked", 0), prod(grids[0][1:])
    config: GPTConfig = _checked(
        GPTConfig,
        {
            "layers": _argument(args, "n_layer"),
            "heads": _argument(args, "n_head"),
            "width": _argument(args, "n_embd"),
            "codes": configs[0].codes,
            "grid": grids[0],
            "condition": condition,
            "block_size": block_size,
            "latent_stride": stride,
            "infill": unmasked > 0,
        },
    )
    if config.infill:
        if unmasked != frame:
            raise CheckpointError(
                f"the published GPT is given {unmasked} tokens (n_unmasked) at each end, but one "
                f"latent frame has {frame} ({grids[0][1]} x {grids[0][2]})"
            )
        _check_infill(config)
    facts = [VQGANFacts(config=config, clip=clip, rate=0.0) for config in configs]
    return GPTFacts(
        config=config,
        classes=classes,
        vqgan=facts[0],
        sound=facts[1] if kind == "sound" else None,
    )


def _condition_kind(
    settings: Mapping[str, Any], args: Mapping[str, Any]
) -> Literal["start", "label", "sound"]:
    """What a GPT is conditioned on, in the order of precedence of the published code."""
    key = settings.get("cond_stage_key", args.get("cond_stage_key", "label"))
    unconditional = bool(_argument(args, "unconditional"))
    unreadable = {
        "it is conditioned on text, whose tokenizer is not in the file": key == "text",
        f"it is conditioned on {key}": key not in ("label", "stft", "text") and not unconditional,
        "it was trained on stored tokens and holds no VQGAN (vtokens)": args.get("vtokens"),
        "its tokens have positions in space (vtokens_pos)": args.get("vtokens_pos"),
        "its start token is not 0 (sos_token)": unconditional and settings.get("sos_token"),
    }
    for reason, applies in unreadable.items():
        if applies:
            raise CheckpointError(
                f"this version does not read this published GPT: {reason}", _NOT_READ
            )
    if key == "stft":
        return "sound"
    return "start" if unconditional else "label"


@dataclass(frozen=True)
class _Inside:
    """A VQGAN inside a GPT file.

    Attributes:
        all_states: State dict of the file.
        prefix: Of its keys there.
        frames: Frames of a clip.
        sides: Their height and width.
        stride: Latent frames from one that is kept to the next.
    """

    all_states: Mapping[str, Tensor]
    prefix: str
    frames: int
    sides: tuple[int, int]
    stride: int = 1

    def grid(self, config: VQGANConfig) -> Factors:
        """Latent grid (t, h, w) of what is kept of a clip."""
        try:
            t, h, w = config.grid(self.frames, *self.sides)
        except ValueError as error:
            raise CheckpointError(f"the VQGAN does not fit the GPT's clips: {error}") from None
        return -(-t // self.stride), h, w

    @cached_property
    def state(self) -> State:
        """Its own part of the state dict."""
        return part_of(self.all_states, self.prefix)

    def downsamplings(self) -> list[Factors]:
        """All that its stages may do to a clip, height and width alike."""
        stages = self._blocks(r"encoder\.conv_blocks\.(\d+)\.")
        factors = [2**i for i in range(stages + 1)]
        return [
            (time, side, side)
            for time, side in product(factors, repeat=2)
            if max(time, side) == factors[-1]
            and not (self.frames % time or self.sides[0] % side or self.sides[1] % side)
        ]

    def config(self, downsample: Factors) -> VQGANConfig:
        """Its settings, read off its tensors."""
        try:
            codes, width = self.state["codebook.embeddings"].shape
            hidden, image_channels = self.state["encoder.conv_first.conv.weight"].shape[:2]
        except KeyError as error:
            raise CheckpointError(
                f"the published GPT file lacks the tensor {self.prefix}{error.args[0]}"
            ) from None
        except ValueError:
            raise CheckpointError(
                f"{self.prefix}codebook.embeddings or {self.prefix}encoder.conv_first.conv.weight "
                "of the published GPT file has too few dimensions"
            ) from None
        batch_norm = "encoder.final_block.0.running_mean" in self.state
        settings: dict[str, Any] = {
            "embedding_dim": width,
            "codes": codes,
            "hidden_channels": hidden,
            "downsample": downsample,
            "norm_type": "batch" if batch_norm else "group",
            "group_norm_over_time": not batch_norm,
            "image_channels": image_channels,
        }
        config: VQGANConfig = _checked(VQGANConfig, settings | self.discriminators())
        return config

    def discriminators(self) -> dict[str, int]:
        """Settings of its discriminators, where it has any."""
        first = self.state.get("image_discriminator.model0.0.weight")
        if first is None or not first.ndim:
            return {}
        # One layer before those that are counted, and one after.
        layers = self._blocks(r"image_discriminator\.model(\d+)\.") - 2
        return {"disc_channels": len(first), "disc_layers": layers}

    def _blocks(self, pattern: str) -> int:
        return len({found[1] for key in self.state if (found := re.match(pattern, key))})


def _inside_configs(
    inside: Sequence[_Inside], known: Mapping[str, VQGANConfig], block_size: int, fixed: int
) -> list[VQGANConfig]:
    """Settings of the VQGANs in a GPT file: those known, else read off tensors and length.

    Args:
        inside: The VQGANs.
        known: Settings by prefix. Those of the discriminators are read off the tensors all the
            same, since a VQGAN is the same one with any.
        block_size: Positions of the GPT: all tokens, or all but the last, which is never an input.
        fixed: Tokens of the sequence that come from no VQGAN.
    """
    choices = [
        [_checked(VQGANConfig, known[held.prefix].model_dump() | held.discriminators())]
        if held.prefix in known
        else [held.config(factors) for factors in held.downsamplings()]
        for held in inside
    ]
    if len(known) == len(inside):
        return [configs[0] for configs in choices]
    fitting = [
        list(configs)
        for configs in product(*choices)
        if fixed + sum(prod(h.grid(c)) for h, c in zip(inside, configs, strict=True)) - block_size
        in (0, 1)
    ]
    if len(fitting) != 1:
        clip, side = inside[0].frames, inside[0].sides[0]
        raise CheckpointError(
            "the published GPT file does not say how its VQGAN downsamples: "
            f"{len(fitting)} ways turn {clip} frames of {side} pixels"
            f"{' and their sound' if len(inside) > 1 else ''} into {block_size} positions",
            "" if known else "give the VQGAN it was trained with: --vqgan FILE",
        )
    return fitting[0]


def _check_infill(config: GPTConfig) -> None:
    """The published mask is right for one shape of sequence alone."""
    found = (config.condition.tokens, config.block_size)
    if found != (1, config.positions) or config.frame_tokens < 2:
        raise CheckpointError(
            "a published GPT that infills has one condition token, "
            f"{config.video_tokens} positions for {config.video_tokens} video tokens and more "
            f"than one token a latent frame; this one has {found[0]}, {found[1]} and "
            f"{config.frame_tokens}"
        )


def _vqgan_modules(
    config: VQGANConfig, prefix: str, state: Mapping[str, Tensor]
) -> list[tuple[str, nn.Module]]:
    """A VQGAN and the discriminators that a file holds, on no device, each with its prefix."""
    shape = (config.image_channels, config.disc_channels, config.disc_layers)
    held = [name for name in JUDGES if part_of(state, f"{prefix}{name}.")]
    with torch.device("meta"):
        judges = {name: PatchDiscriminator(_DIMENSIONS[name], *shape) for name in held}
        return [(prefix, VQGAN(config)), (prefix, nn.ModuleDict(judges))]


def _translate(
    state: Mapping[str, Tensor], modules: Sequence[tuple[str, nn.Module]]
) -> list[State]:
    """State dicts of our modules, each given with the prefix of its published keys.

    Raises:
        CheckpointError: Keys or shapes differ in either direction.
    """
    expected = {
        theirs: tuple(shape)
        for prefix, module in modules
        for key, tensor in module.state_dict().items()
        for theirs, shape in _sources(prefix, key, tensor)
    }
    differing = list(_differences(state, expected))
    if differing:
        found = sum(1 for key in state if not _IGNORED.fullmatch(key))
        shown = "\n  ".join(first_ten(differing))
        raise CheckpointError(
            f"the tensors of the published file are not those of its settings: expected "
            f"{len(expected)}, found {found}, {len(differing)} differ:\n  {shown}"
        )
    return [
        {
            key: _stack([state[theirs] for theirs, _ in _sources(prefix, key, tensor)])
            for key, tensor in module.state_dict().items()
        }
        for prefix, module in modules
    ]


def _sources(prefix: str, key: str, tensor: Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Published keys that make one of ours, with the shape of each."""
    templates: tuple[str, ...] = (key,)
    for pattern, theirs in _KEYS:
        if found := re.fullmatch(pattern, key):
            templates = tuple(found.expand(template) for template in theirs)
    parts = len(templates)
    shape = tuple(tensor.shape) if parts == 1 else (len(tensor) // parts, *tensor.shape[1:])
    for template in templates:
        yield prefix + template, shape


def _stack(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _differences(
    state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    for key in expected:
        if key not in state:
            yield f"missing {key}"
    for key in state:
        if key not in expected and not _IGNORED.fullmatch(key):
            yield f"unexpected {key}"
    for key, shape in expected.items():
        if key in state and tuple(state[key].shape) != shape:
            yield f"{key} has shape {tuple(state[key].shape)}, expected {shape}"


def _checked(model: type[Any], values: Any) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise CheckpointError(
            f"the settings of the published file do not hold: {problems}"
        ) from None


def _check_condition(part: ConditionPart) -> None:
    """The published code has as many ids of text and of sound as their codes are."""
    if part.kind == "sound" and part.null_id >= 0:
        raise CheckpointError(
            f"this GPT has {part.ids} ids of sound, of which {part.null_id} stands for none; the "
            "published code has no such id",
            "what can be exported is a GPT of sound that was imported",
        )
    if part.kind == "text" and part.ids != PUBLISHED_TEXT_IDS:
        raise CheckpointError(
            f"this GPT has {part.ids} ids of text, the published code {PUBLISHED_TEXT_IDS}",
            "what can be exported was trained with CLIP's list of merges as --tokenizer",
        )


def _check_published(facts: VQGANFacts) -> None:
    """The published code knows one of our two group norms, and one range of sound."""
    config = facts.config
    is_of_sound = config.image_channels == SOUND_CHANNELS
    if is_of_sound and facts.input_range != PUBLISHED_SOUND_RANGE:
        raise CheckpointError(
            f"this VQGAN knows patches of sound up to {facts.input_range:g}, the published code "
            f"shows it up to {PUBLISHED_SOUND_RANGE:g}",
            "what can be exported is a VQGAN of sound that was imported",
        )
    if config.norm_type == "group" and not pools_over_time(config):
        raise CheckpointError(
            "this VQGAN normalises each frame by itself, the published group norm whole clips: "
            "the published code would compute something else with these weights",
            "what can be exported was trained with --norm-type batch, or with --compat tats",
        )


def _vqgan_state(vqgan: OriginalVQGAN, prefix: str) -> State:
    return dict(_published_keys(prefix, vqgan.state | vqgan.judges))


def _published_keys(prefix: str, state: State) -> Iterator[tuple[str, Tensor]]:
    """The inverse of ``_translate``."""
    for key, tensor in state.items():
        names = [theirs for theirs, _ in _sources(prefix, key, tensor)]
        parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor]
        # Parts share their memory, all of which would be written with each.
        yield from zip(names, (part.clone() for part in parts), strict=True)


def _published_mask(config: GPTConfig) -> Tensor:
    """Which position sees which, float (1, 1, n, n), as each published block keeps it."""
    if config.infill:
        return infill_mask(config).float()[None, None]
    return torch.ones(1, 1, config.block_size, config.block_size).tril()


def _clip_arguments(clip: ClipConfig) -> dict[str, Any]:
    """What the published code wants to know of data, with its own defaults."""
    return {
        "resolution": clip.resolution,
        "sequence_length": clip.sequence_length,
        "sample_every_n_frames": clip.sample_every_n_frames,
        "data_path": "",
        "batch_size": 32,
        "num_workers": 8,
        "smap_cond": 0,
        "smap_only": False,
        "text_cond": False,
        "vtokens": False,
        "vtokens_pos": False,
        "spatial_length": 15,
        "image_folder": False,
        "stft_data": False,
    }


def _published(
    state: State,
    args: Mapping[str, Any],
    settings: Mapping[str, Any],
    facts: BaseModel,
    step: int,
) -> dict[str, Any]:
    return {
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": _LIGHTNING,
        "state_dict": state,
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"args": argparse.Namespace(**args), **settings},
        _FACTS: facts.model_dump(mode="json"),
    }
