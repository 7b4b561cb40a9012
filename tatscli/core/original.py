"""The published TATS checkpoint format, and only here.

A published file is a Lightning 1.x checkpoint: ``state_dict``, ``global_step`` and, in
``hyper_parameters``, the command line as an ``argparse.Namespace`` called ``args``. A GPT file also
holds its VQGAN (``first_stage_model.*``), but not that VQGAN's settings.
"""

import argparse
import errno
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tatscli.config.data import ClipConfig
from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.gpt import GPT
from tatscli.core.models.vqgan import VQGAN
from tatscli.errors import CheckpointError

State = dict[str, Tensor]

_KEYS = (
    (r"layers\.(\d+)\.(.+)", (r"model\1.\2",)),
    (r"(.+\.attn)\.qkv\.(.+)", (r"\1.query.\2", r"\1.key.\2", r"\1.value.\2")),
)
"""Our key, and the published keys whose tensors are stacked to make it; all others are equal."""

_IGNORED = re.compile(r"(.+\.)?perceptual_model\..+|transformer\.blocks\.\d+\.attn\.mask")
"""Keys that may be there or not: LPIPS, which never changes, and causal masks."""

_FIRST_STAGE = "first_stage_model."
_TRANSFORMER = "transformer."
_NOT_READ = "this version reads unconditional and class-conditional GPTs"


@dataclass(frozen=True)
class OriginalVQGAN:
    """A published VQGAN.

    Attributes:
        config: Its architecture.
        clip: The clips it was trained on.
        state: State dict of our ``VQGAN``.
        image_discriminator: State dict of our ``PatchDiscriminator`` in 2-D.
        video_discriminator: State dict of our ``PatchDiscriminator`` in 3-D.
        step: Optimiser steps, as the file counts them.
    """

    config: VQGANConfig
    clip: ClipConfig
    state: State
    image_discriminator: State
    video_discriminator: State
    step: int


@dataclass(frozen=True)
class OriginalGPT:
    """A published GPT.

    Attributes:
        config: Its architecture.
        state: State dict of our ``GPT``.
        vqgan: The VQGAN inside the file, with the clips the GPT was trained on.
        step: Optimiser steps.
    """

    config: GPTConfig
    state: State
    vqgan: OriginalVQGAN
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
        with torch.serialization.safe_globals(_SAFE):
            checkpoint = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: {_refused(path) or 'it is not a checkpoint of tensors'}",
            "a checkpoint needs only tensors and plain values; do not trust this file",
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch was sent to a place before the file's beginning
            raise CheckpointError(
                f"{path} is damaged or incomplete: {path.stat().st_size:,} bytes",
                "copy or download it again, or take another checkpoint of that run",
            ) from error
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {reason}", "copy or download it again"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, expected a checkpoint")
    return checkpoint


def is_original(checkpoint: Mapping[str, Any]) -> bool:
    """Whether this is a published TATS checkpoint, of either kind."""
    settings = checkpoint.get("hyper_parameters")
    return isinstance(settings, dict) and "args" in settings and "state_dict" in checkpoint


def original_vqgan(checkpoint: Mapping[str, Any]) -> OriginalVQGAN:
    """The VQGAN of a published VQGAN or GPT checkpoint.

    Raises:
        CheckpointError: Its settings do not hold, or its tensors are not those of its settings.
    """
    if _holds_gpt(checkpoint):
        return original_gpt(checkpoint).vqgan
    args = _arguments(checkpoint)
    norm_type = _argument(args, "norm_type")
    config = _checked(
        VQGANConfig,
        embedding_dim=_argument(args, "embedding_dim"),
        codes=_argument(args, "n_codes"),
        hidden_channels=_argument(args, "n_hiddens"),
        downsample=tuple(_argument(args, "downsample")),
        norm_type=norm_type,
        padding_type=args.get("padding_type", "replicate"),
        group_norm_over_time=norm_type == "group",
        image_channels=_argument(args, "image_channels"),
        random_restart=not _argument(args, "no_random_restart"),
        disc_channels=_argument(args, "disc_channels"),
        disc_layers=_argument(args, "disc_layers"),
    )
    states = _translate(checkpoint["state_dict"], _vqgan_modules(config, ""))
    return _vqgan_of(states, "", config, _clip(args), _step(checkpoint))


def original_gpt(
    checkpoint: Mapping[str, Any], vqgan_config: VQGANConfig | None = None
) -> OriginalGPT:
    """The GPT of a published checkpoint, and the VQGAN inside it.

    Args:
        checkpoint: As ``read_original`` gives it.
        vqgan_config: Settings of the VQGAN inside. Without them they are read off its tensors;
            the downsampling, which leaves no trace there, off the clip and the length of the
            sequence, taking height and width to be downsampled alike; and the padding is taken
            to be the published default.

    Raises:
        CheckpointError: The file holds no GPT, or one of a kind that is not read; its settings do
            not hold or leave the downsampling open; its tensors are not those of its settings.
    """
    if not _holds_gpt(checkpoint):
        raise CheckpointError(
            "the published file holds a VQGAN, expected a GPT",
            "train one with: tats gpt train --data DIR --vqgan FILE",
        )
    args = _arguments(checkpoint)
    condition = _condition(checkpoint["hyper_parameters"], args)
    clip = _clip(args)
    positions = _argument(args, "block_size")
    tokens = positions - condition.tokens + 1
    state = checkpoint["state_dict"]
    inside = _vqgan_config(state, vqgan_config, clip, tokens)
    side = clip.resolution
    try:
        grid = inside.grid(clip.frames, side, side)
    except ValueError as error:
        raise CheckpointError(f"the VQGAN does not fit the GPT's clips: {error}") from None
    config = _checked(
        GPTConfig,
        layers=_argument(args, "n_layer"),
        heads=_argument(args, "n_head"),
        width=_argument(args, "n_embd"),
        codes=inside.codes,
        grid=grid,
        condition=condition,
        block_size=positions,
    )
    modules = _vqgan_modules(inside, _FIRST_STAGE)
    with torch.device("meta"):
        modules[_TRANSFORMER] = GPT(config)
    states = _translate(state, modules)
    step = _step(checkpoint)
    vqgan = _vqgan_of(states, _FIRST_STAGE, inside, clip, step)
    return OriginalGPT(config, states[_TRANSFORMER], vqgan, step)


def _refused(path: Path) -> str:
    """What a file names beyond tensors and plain values; found without running anything."""
    if not zipfile.is_zipfile(path):
        return ""
    with torch.serialization.safe_globals(_SAFE):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return f"it wants to load {', '.join(sorted(names)[:10])}" if names else ""


def _holds_gpt(checkpoint: Mapping[str, Any]) -> bool:
    return any(key.startswith(_TRANSFORMER) for key in checkpoint["state_dict"])


def _arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    args = checkpoint["hyper_parameters"]["args"]
    return dict(args) if isinstance(args, Mapping) else vars(args)


def _argument(args: Mapping[str, Any], name: str) -> Any:
    if name not in args:
        raise CheckpointError(f"the published file lacks its setting {name}")
    return args[name]


def _step(checkpoint: Mapping[str, Any]) -> int:
    return int(checkpoint.get("global_step", 0))


def _clip(args: Mapping[str, Any]) -> ClipConfig:
    clip: ClipConfig = _checked(
        ClipConfig,
        resolution=_argument(args, "resolution"),
        sequence_length=_argument(args, "sequence_length"),
        sample_every_n_frames=args.get("sample_every_n_frames", 1),
    )
    return clip


def _condition(settings: Mapping[str, Any], args: Mapping[str, Any]) -> ConditionLayout:
    """Layout of the condition, in the order of precedence of the published code."""
    key = settings.get("cond_stage_key", args.get("cond_stage_key", "label"))
    unreadable = {
        f"it is conditioned on {key}": key in ("stft", "text"),
        "it interpolates (n_unmasked)": args.get("n_unmasked", 0) > 0,
        "it writes key frames (sample_every_n_latent_frames)": (
            (args.get("sample_every_n_latent_frames") or 0) > 1
        ),
        "it was trained on stored tokens and holds no VQGAN (vtokens)": args.get("vtokens", False),
    }
    for reason, applies in unreadable.items():
        if applies:
            raise CheckpointError(
                f"this version does not read this published GPT yet: {reason}", _NOT_READ
            )
    if _argument(args, "unconditional"):
        return ConditionLayout.unconditional()
    part = ConditionPart(kind="label", tokens=1, ids=_argument(args, "class_cond_dim"), offset=0)
    return ConditionLayout(parts=(part,))


def _vqgan_config(
    state: Mapping[str, Tensor], given: VQGANConfig | None, clip: ClipConfig, tokens: int
) -> VQGANConfig:
    """Settings of a VQGAN inside a GPT file: those given, else read off its tensors.

    Those of the discriminators are always read, since a VQGAN is the same one with any.
    """
    vqgan = {
        key.removeprefix(_FIRST_STAGE): tensor
        for key, tensor in state.items()
        if key.startswith(_FIRST_STAGE)
    }
    try:
        codes, width = vqgan["codebook.embeddings"].shape
        hidden, image_channels = vqgan["encoder.conv_first.conv.weight"].shape[:2]
        disc_channels = vqgan["image_discriminator.model0.0.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(
            f"the published GPT file lacks the tensor {_FIRST_STAGE}{error.args[0]}"
        ) from None
    # One layer before those that are counted, and one after.
    disc_layers = _blocks(vqgan, r"image_discriminator\.model(\d+)\.") - 2
    if given:
        return given.model_copy(update={"disc_channels": disc_channels, "disc_layers": disc_layers})
    batch_norm = "encoder.final_block.0.running_mean" in vqgan
    config: VQGANConfig = _checked(
        VQGANConfig,
        embedding_dim=width,
        codes=codes,
        hidden_channels=hidden,
        downsample=_downsample(_blocks(vqgan, r"encoder\.conv_blocks\.(\d+)\."), clip, tokens),
        norm_type="batch" if batch_norm else "group",
        group_norm_over_time=not batch_norm,
        image_channels=image_channels,
        disc_channels=disc_channels,
        disc_layers=disc_layers,
    )
    return config


def _blocks(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for key in state if (found := re.match(pattern, key))})


def _downsample(stages: int, clip: ClipConfig, tokens: int) -> tuple[int, int, int]:
    """The one downsampling by 2^stages at most that turns the clip into so many tokens."""
    factors = [2**i for i in range(stages + 1)]
    pixels = clip.frames * clip.resolution**2
    fitting = [
        (time, side, side)
        for time in factors
        for side in factors
        if max(time, side) == factors[-1]
        and not clip.frames % time
        and not clip.resolution % side
        and tokens * time * side * side == pixels
    ]
    if len(fitting) != 1:
        raise CheckpointError(
            "the published GPT file does not say how its VQGAN downsamples: "
            f"{len(fitting)} ways turn {clip.frames} frames of {clip.resolution} pixels into "
            f"{tokens} tokens in {stages} stages",
            "give the VQGAN it was trained with: --vqgan FILE",
        )
    return fitting[0]


def _vqgan_modules(config: VQGANConfig, prefix: str) -> dict[str, nn.Module]:
    """Modules of a published VQGAN by the prefix of their keys, on no device."""
    channels, width, layers = config.image_channels, config.disc_channels, config.disc_layers
    with torch.device("meta"):
        return {
            prefix: VQGAN(config),
            f"{prefix}image_discriminator.": PatchDiscriminator(2, channels, width, layers),
            f"{prefix}video_discriminator.": PatchDiscriminator(3, channels, width, layers),
        }


def _vqgan_of(
    states: Mapping[str, State], prefix: str, config: VQGANConfig, clip: ClipConfig, step: int
) -> OriginalVQGAN:
    return OriginalVQGAN(
        config,
        clip,
        states[prefix],
        states[f"{prefix}image_discriminator."],
        states[f"{prefix}video_discriminator."],
        step,
    )


def _translate(state: Mapping[str, Tensor], modules: Mapping[str, nn.Module]) -> dict[str, State]:
    """State dicts of our modules, by the prefix of their published keys.

    Raises:
        CheckpointError: Keys or shapes differ in either direction.
    """
    expected = {
        theirs: tuple(shape)
        for prefix, module in modules.items()
        for key, tensor in module.state_dict().items()
        for theirs, shape in _sources(prefix, key, tensor)
    }
    differing = list(_differences(state, expected))
    if differing:
        found = sum(1 for key in state if not _IGNORED.fullmatch(key))
        shown = "\n  ".join(differing[:10])
        raise CheckpointError(
            f"the tensors of the published file are not those of its settings: expected "
            f"{len(expected)}, found {found}, {len(differing)} differ:\n  {shown}"
        )
    return {
        prefix: {
            key: _stack([state[theirs] for theirs, _ in _sources(prefix, key, tensor)])
            for key, tensor in module.state_dict().items()
        }
        for prefix, module in modules.items()
    }


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


def _checked(model: type[Any], **values: Any) -> Any:
    try:
        return model(**values)
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise CheckpointError(
            f"the settings of the published file do not hold: {problems}"
        ) from None
