"""Our checkpoint format, and one way in for every kind of checkpoint file.

A checkpoint is one file that both continues a run and stands for the model: Lightning's own, with
plain values and tensors only, and beside its ``state_dict`` a ``tats`` entry that says what it is:
``{format, kind, version, config, clip, step, ...}``. A GPT checkpoint holds its VQGAN, so that
sampling needs no second file. Published TATS checkpoints enter through ``core.original``.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from tatscli import __version__
from tatscli.config.data import ClipConfig
from tatscli.config.gpt import GPTConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.files import written_whole
from tatscli.core.models.gpt import GPT
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.original import is_original, original_gpt, original_vqgan, read_original
from tatscli.errors import CheckpointError

FORMAT = 1
HEADER = "tats"


class _HeldVQGAN(BaseModel):
    config: VQGANConfig
    clip: ClipConfig
    rate: float


class _VQGANHeader(_HeldVQGAN):
    format: int
    kind: Literal["vqgan"]
    step: int


class _GPTHeader(BaseModel):
    format: int
    kind: Literal["gpt"]
    step: int
    config: GPTConfig
    classes: tuple[str, ...]
    vqgan: _HeldVQGAN


@dataclass(frozen=True)
class TrainedVQGAN:
    """A VQGAN and the clips it was trained on.

    Attributes:
        model: In eval mode.
        clip: Geometry of the training clips.
        rate: Frames per second of the training clips, as kept; 0 where it is not known.
        step: Steps of training.
    """

    model: VQGAN
    clip: ClipConfig
    rate: float
    step: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of one training clip."""
        side = self.clip.resolution
        return self.model.config.grid(self.clip.frames, side, side)


@dataclass(frozen=True)
class TrainedGPT:
    """A GPT, the VQGAN it writes codes for, and the names of its classes."""

    model: GPT
    vqgan: TrainedVQGAN
    classes: tuple[str, ...]
    step: int


def load_vqgan(path: str | Path) -> VQGAN:
    """Load a VQGAN in eval mode, on the CPU.

    Args:
        path: Run folder (its best checkpoint, else its last), checkpoint file, or published file.
            A GPT checkpoint gives the VQGAN inside it.

    Raises:
        CheckpointError: There is no such file, or it holds no VQGAN.
    """
    return read_vqgan(Path(path)).model


def load_gpt(path: str | Path) -> GPT:
    """Load a GPT in eval mode, on the CPU; call it with (condition, tokens) for logits.

    Args:
        path: Run folder (its best checkpoint, else its last), checkpoint file, or published file.

    Raises:
        CheckpointError: There is no such file, or it holds no GPT.
    """
    return read_gpt(Path(path)).model


def read_vqgan(path: Path) -> TrainedVQGAN:
    """Load a VQGAN with what was recorded about it; see ``load_vqgan``."""
    file = find_checkpoint(path)
    checkpoint = read_original(file)
    if is_original(checkpoint):
        with _naming(file):
            found = original_vqgan(checkpoint)
        return _trained_vqgan(found.config, found.clip, 0.0, found.state, found.step, file)
    header = _header(checkpoint, file)
    held = header.vqgan if isinstance(header, _GPTHeader) else header
    state = _part(checkpoint["state_dict"], "vqgan.")
    return _trained_vqgan(held.config, held.clip, held.rate, state, header.step, file)


def read_gpt(path: Path, vqgan: Path | None = None) -> TrainedGPT:
    """Load a GPT with its VQGAN; see ``load_gpt``.

    Args:
        path: Where the GPT is.
        vqgan: A VQGAN that must be the one inside the checkpoint; also settles the downsampling
            where a published GPT file leaves it open.
    """
    file = find_checkpoint(path)
    checkpoint = read_original(file)
    given = read_vqgan(vqgan) if vqgan else None
    if is_original(checkpoint):
        with _naming(file):
            found = original_gpt(checkpoint, given.model.config if given else None)
        inside = _trained_vqgan(
            found.vqgan.config, found.vqgan.clip, 0.0, found.vqgan.state, found.step, file
        )
        config, state, step = found.config, found.state, found.step
        classes = tuple(str(i) for i in range(_classes(config)))
    else:
        header = _header(checkpoint, file)
        if not isinstance(header, _GPTHeader):
            raise CheckpointError(
                f"{file} holds a {header.kind}, expected a gpt",
                "train one with: tats gpt train --data DIR --vqgan RUN",
            )
        states, held = checkpoint["state_dict"], header.vqgan
        inside = _trained_vqgan(
            held.config, held.clip, held.rate, _part(states, "vqgan."), header.step, file
        )
        config, state, step = header.config, _part(states, "gpt."), header.step
        classes = header.classes
    if given and given.model.fingerprint() != inside.model.fingerprint():
        raise CheckpointError(
            f"{file} writes codes of VQGAN {inside.model.fingerprint()}, "
            f"but {vqgan} is VQGAN {given.model.fingerprint()}",
            "leave out --vqgan: the GPT's checkpoint holds its own",
        )
    model = GPT(config)
    _fill(model, state, file)
    return TrainedGPT(model.eval(), inside, classes, step)


def vqgan_header(config: VQGANConfig, clip: ClipConfig, rate: float, step: int) -> dict[str, Any]:
    """What a VQGAN checkpoint says about itself."""
    return _new_header("vqgan", step) | {
        "config": config.model_dump(mode="json"),
        "clip": _geometry(clip),
        "rate": rate,
    }


def gpt_header(
    config: GPTConfig, classes: tuple[str, ...], vqgan: TrainedVQGAN, step: int
) -> dict[str, Any]:
    """What a GPT checkpoint says about itself."""
    return _new_header("gpt", step) | {
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
        "vqgan": {
            "config": vqgan.model.config.model_dump(mode="json"),
            "clip": _geometry(vqgan.clip),
            "rate": vqgan.rate,
            "fingerprint": vqgan.model.fingerprint(),
        },
    }


def save_vqgan(vqgan: TrainedVQGAN, file: Path) -> None:
    """Write a VQGAN alone, without what continues its training."""
    state = {f"vqgan.{key}": value for key, value in vqgan.model.state_dict().items()}
    header = vqgan_header(vqgan.model.config, vqgan.clip, vqgan.rate, vqgan.step)
    save_atomically({HEADER: header, "state_dict": state}, file)


def save_atomically(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Write beside the target, sync, rename: a reader finds the old file or the new, whole.

    Raises:
        CheckpointError: The disk is full or cannot be written; the message has the path.
    """
    with written_whole(file, CheckpointError, sync=True) as partial, partial.open("wb") as stream:
        try:
            torch.save(dict(checkpoint), stream)
        except RuntimeError as error:
            # So torch reports a write that failed, with positions in the file.
            raise OSError(errno.ENOSPC, f"no room, or a broken disk: {error}") from error


def find_checkpoint(path: Path) -> Path:
    """The file a checkpoint argument means: a file itself, or a run folder's best, else last.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "give a run folder or a checkpoint file")
    names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "vqgan.ckpt")
    for name in names:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} holds no checkpoint (looked for {', '.join(names)})",
        "give a run folder that has saved at least once, or a checkpoint file",
    )


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name the file in errors that know its content only."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error.message}", error.hint) from error


def _header(checkpoint: Mapping[str, Any], file: Path) -> _VQGANHeader | _GPTHeader:
    """What a checkpoint of ours says about itself, checked as a whole."""
    header, states = checkpoint.get(HEADER), checkpoint.get("state_dict")
    if not isinstance(header, dict) or not _is_state(states):
        keys = ", ".join(sorted(map(str, checkpoint))[:10])
        raise CheckpointError(
            f"{file} is neither a tats checkpoint nor a published TATS file; it holds: {keys}"
        )
    number = header.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(
            f"{file} has format {number}, this version reads up to {FORMAT}",
            "update tats: pip install --upgrade tatscli",
        )
    model = _GPTHeader if header.get("kind") == "gpt" else _VQGANHeader
    try:
        return model.model_validate(header)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'all'}: {e['msg']}" for e in error.errors()]
        raise CheckpointError(
            f"{file}: its settings do not hold: {'; '.join(wrong)}",
            "take another checkpoint of that run, or train again",
        ) from None


def _is_state(states: Any) -> bool:
    return isinstance(states, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in states.items()
    )


def _new_header(kind: str, step: int) -> dict[str, Any]:
    return {"format": FORMAT, "kind": kind, "version": __version__, "step": step}


def _geometry(clip: ClipConfig) -> dict[str, Any]:
    """The clip's own fields, also where the config has more (where the data is)."""
    return {name: getattr(clip, name) for name in ClipConfig.model_fields}


def _trained_vqgan(
    config: VQGANConfig,
    clip: ClipConfig,
    rate: float,
    state: dict[str, Tensor],
    step: int,
    file: Path,
) -> TrainedVQGAN:
    model = VQGAN(config)
    _fill(model, state, file)
    return TrainedVQGAN(model.eval(), clip, rate, step)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def _fill(model: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load strictly; a mismatch lists the first ten differing keys."""
    own = model.state_dict()
    differing = [f"missing {key}" for key in own if key not in state]
    differing += [f"unexpected {key}" for key in state if key not in own]
    differing += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if differing:
        shown = "\n  ".join(differing[:10])
        raise CheckpointError(f"{file} does not fit its own settings:\n  {shown}")
    model.load_state_dict(state)


def _classes(config: GPTConfig) -> int:
    part = config.condition.part("label")
    return part.ids if part else 0
