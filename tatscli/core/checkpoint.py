"""Our checkpoint format, and one way in for every kind of checkpoint file.

A checkpoint is one file that both continues a run and stands for the model: Lightning's own, with
plain values and tensors only, and beside its ``state_dict`` a ``tats`` entry that says what it is:
``{format, kind, version, config, clip, step, ...}``. A GPT checkpoint holds its VQGAN, so that
sampling needs no second file. Published TATS checkpoints enter through ``core.original``.
"""

import errno
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tatscli import __version__
from tatscli.config.data import SOUND_FRAME, ClipConfig
from tatscli.config.gpt import GPTConfig
from tatscli.config.vqgan import SOUND_CHANNELS, VQGANConfig
from tatscli.core.data.text import TextTokenizer
from tatscli.core.files import written_whole
from tatscli.core.models.gpt import GPT
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.original import (
    INPUT_RANGE,
    JUDGES,
    GPTFacts,
    OriginalGPT,
    OriginalVQGAN,
    VQGANFacts,
    first_ten,
    holds_gpt,
    is_original,
    is_state,
    original_gpt,
    original_vqgan,
    part_of,
    published_gpt,
    published_vqgan,
    read_original,
)
from tatscli.core.paths import find_checkpoint
from tatscli.errors import CheckpointError

FORMAT = 1
HEADER = "tats"

_CONTINUES = {
    "global_step": int,
    "state_dict": Mapping,
    "optimizer_states": list,
    "random_states": list,
    "loops": Mapping,
}
"""What continues a run, and what each of it is."""

_NUMBERS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""What weights may be made of; a module would take others, and change them or fail."""

_IS_FOLDER = 0x10
"""Attribute of a record in an archive that torch takes for a folder, which has no content."""

_ANOTHER = "copy it again, or take another checkpoint of that run"


class _VQGANHeader(VQGANFacts):
    format: int
    kind: Literal["vqgan"]
    step: int


class _GPTHeader(GPTFacts):
    format: int
    kind: Literal["gpt"]
    step: int


@dataclass(frozen=True)
class TrainedVQGAN:
    """A VQGAN and the clips it was trained on.

    Attributes:
        model: In eval mode.
        clip: Geometry of the training clips.
        rate: Frames per second of the training clips, as kept; 0 where it is not known.
        step: Steps of training.
        judges: State dicts of its discriminators in one, as far as its file holds them: keys start
            with ``image_discriminator.`` and ``video_discriminator.``.
        input_range: Largest absolute value of what it was trained on: 0.5, but for published
            VQGANs of sound.
        is_inside: Whether its file is that of a GPT.
    """

    model: VQGAN
    clip: ClipConfig
    rate: float
    step: int
    judges: Mapping[str, Tensor] = field(default_factory=dict)
    input_range: float = INPUT_RANGE
    is_inside: bool = False

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of one training clip."""
        side = self.clip.resolution
        sides = SOUND_FRAME if self.is_of_sound else (side, side)
        return self.model.config.grid(self.clip.frames, *sides)

    @property
    def is_of_sound(self) -> bool:
        """Whether what it encodes is the sound of the frames."""
        return self.model.config.image_channels == SOUND_CHANNELS

    @property
    def gain(self) -> float:
        """What our values are multiplied by before they are encoded, and divided by after."""
        return self.input_range / INPUT_RANGE

    def sound_codes(self, patches: Tensor) -> Tensor:
        """Codes of sound: (B, 1, T, 64, 16) in [-0.5, 0.5] to (B, t, h, w)."""
        return self.model.encode(patches * self.gain)


@dataclass(frozen=True)
class TrainedGPT:
    """A GPT with what it needs.

    Attributes:
        model: In eval mode.
        vqgan: The VQGAN it writes codes for.
        classes: Names of its classes.
        step: Steps of training.
        sound: The VQGAN of the sound it is conditioned on.
        text: The tokenizer of the text it is conditioned on.
    """

    model: GPT
    vqgan: TrainedVQGAN
    classes: tuple[str, ...]
    step: int
    sound: TrainedVQGAN | None = None
    text: TextTokenizer | None = None


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
    checkpoint = _read(file)
    if is_original(checkpoint):
        with _naming(file):
            found = _from_original(original_vqgan(checkpoint), file)
        return replace(found, is_inside=holds_gpt(checkpoint))
    header, states = _header(checkpoint, file), checkpoint["state_dict"]
    facts = header.vqgan if isinstance(header, _GPTHeader) else header
    found = _trained_vqgan(facts, part_of(states, "vqgan."), header.step, file, _judges(states))
    return replace(found, is_inside=facts is not header)


def read_gpt(path: Path, vqgan: Path | None = None) -> TrainedGPT:
    """Load a GPT with its VQGANs; see ``load_gpt``.

    Args:
        path: Where the GPT is.
        vqgan: A VQGAN that must be the one inside the checkpoint; also settles the downsampling
            where a published GPT file leaves it open.
    """
    file = find_checkpoint(path)
    checkpoint = _read(file)
    given = read_vqgan(vqgan) if vqgan else None
    facts: GPTFacts
    sound = text = None
    if is_original(checkpoint):
        hint = f"is {vqgan} the VQGAN it was trained with? leave out --vqgan to do without"
        with _naming(file, hint if given else ""):
            found = original_gpt(checkpoint, given.model.config if given else None)
        facts, state, step = found.facts, found.state, found.step
        inside = _from_original(found.vqgan, file)
        if found.sound:
            sound = _from_original(found.sound, file)
    else:
        header = _header(checkpoint, file)
        if not isinstance(header, _GPTHeader):
            raise CheckpointError(
                f"{file} holds a {header.kind}, expected a gpt",
                "train one with: tats gpt train --data DIR --vqgan RUN",
            )
        states = checkpoint["state_dict"]
        facts, state, step = header, part_of(states, "gpt."), header.step
        text = header.text
        held = part_of(states, "vqgan.")
        inside = _trained_vqgan(header.vqgan, held, step, file, _judges(states))
        if header.sound:
            held, judges = part_of(states, "sound."), _judges(part_of(states, "sound_"))
            sound = _trained_vqgan(header.sound, held, step, file, judges)
    if given and given.model.fingerprint() != inside.model.fingerprint():
        raise CheckpointError(
            f"{file} writes codes of VQGAN {inside.model.fingerprint()}, "
            f"but {vqgan} is VQGAN {given.model.fingerprint()}",
            "leave out --vqgan: the GPT's checkpoint holds its own",
        )
    model = GPT(facts.config)
    _fill(model, state, file)
    return TrainedGPT(model.eval(), inside, facts.classes, step, sound, text)


def read_trained(path: Path, vqgan: Path | None = None) -> TrainedVQGAN | TrainedGPT:
    """Load whatever a checkpoint holds; see ``load_vqgan`` and ``read_gpt``."""
    file = find_checkpoint(path)
    checkpoint = _read(file)
    published = is_original(checkpoint)
    gpt = holds_gpt(checkpoint) if published else _header(checkpoint, file).kind == "gpt"
    return read_gpt(file, vqgan) if gpt else read_vqgan(file)


def vqgan_header(
    config: VQGANConfig,
    clip: ClipConfig,
    rate: float,
    step: int,
    input_range: float = INPUT_RANGE,
) -> dict[str, Any]:
    """What a VQGAN checkpoint says about itself."""
    return _new_header("vqgan", step) | {
        "config": config.model_dump(mode="json"),
        "clip": _geometry(clip),
        "rate": rate,
        "input_range": input_range,
    }


def gpt_header(
    config: GPTConfig,
    classes: tuple[str, ...],
    vqgan: TrainedVQGAN,
    step: int,
    sound: TrainedVQGAN | None = None,
    text: TextTokenizer | None = None,
) -> dict[str, Any]:
    """What a GPT checkpoint says about itself."""
    return _new_header("gpt", step) | {
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
        "vqgan": _held(vqgan),
        "sound": _held(sound) if sound else None,
        "text": text.model_dump() if text else None,
    }


def save_vqgan(vqgan: TrainedVQGAN, file: Path) -> None:
    """Write a VQGAN alone, with its discriminators but without what continues its training."""
    state = {f"vqgan.{key}": value for key, value in vqgan.model.state_dict().items()}
    header = vqgan_header(vqgan.model.config, vqgan.clip, vqgan.rate, vqgan.step, vqgan.input_range)
    save_atomically({HEADER: header, "state_dict": state | dict(vqgan.judges)}, file)


def save_gpt(gpt: TrainedGPT, file: Path) -> None:
    """Write a GPT and its VQGANs, with discriminators but without what continues its training."""
    modules = {"gpt": gpt.model, "vqgan": gpt.vqgan.model}
    if gpt.sound:
        modules["sound"] = gpt.sound.model
    state = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    state |= gpt.vqgan.judges
    if gpt.sound:
        state |= {f"sound_{key}": value for key, value in gpt.sound.judges.items()}
    header = gpt_header(gpt.model.config, gpt.classes, gpt.vqgan, gpt.step, gpt.sound, gpt.text)
    save_atomically({HEADER: header, "state_dict": state}, file)


def save_original(trained: TrainedVQGAN | TrainedGPT, file: Path) -> None:
    """Write in the published layout; see ``published_vqgan`` for what it lacks.

    Raises:
        CheckpointError: The published code would compute something else, or the file cannot be
            written.
    """
    if isinstance(trained, TrainedGPT):
        sound = _to_original(trained.sound) if trained.sound else None
        vqgan = _to_original(trained.vqgan)
        facts = GPTFacts(
            config=trained.model.config,
            classes=trained.classes,
            vqgan=vqgan.facts,
            sound=sound.facts if sound else None,
            text=trained.text,
        )
        state = trained.model.state_dict()
        checkpoint = published_gpt(OriginalGPT(facts, state, vqgan, sound, trained.step))
    else:
        checkpoint = published_vqgan(_to_original(trained))
    save_atomically(checkpoint, file)


def save_atomically(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Write beside the target, sync, rename: a reader finds the old file or the new, whole.

    Raises:
        CheckpointError: The disk is full, which is seen before a byte is written where it is clear,
            or cannot be written; the message has the path, the bytes needed and those that are
            free.
    """
    needed = sum(dict(_storages(checkpoint)).values())
    whole = written_whole(file, CheckpointError, needs=needed, sync=True)
    with whole as partial, partial.open("wb") as stream:
        try:
            torch.save(dict(checkpoint), stream)
        except RuntimeError as error:
            # torch tells positions in the file; what the system said is behind that.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(errno.ENOSPC, f"no room, or a broken disk: {error}") from error


def step_of(file: Path) -> int:
    """The step at which a run saved a checkpoint; its tensors are not read.

    Raises:
        CheckpointError: It cannot be read, or does not hold what continues a run.
    """
    checkpoint = _read(file)
    _require_continuing(checkpoint, file)
    return int(checkpoint["global_step"])


def continues_a_run(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds what goes on with training, rather than a model alone."""
    return not _lacking(checkpoint)


def require_intact(file: Path) -> None:
    """Read every byte of a checkpoint.

    Files of the format before that of torch 1.6 have no checksums: of theirs, what can be read is
    taken to be as it was written.

    Raises:
        CheckpointError: It is damaged, cut, no checkpoint of ours or a published one, or holds
            weights that are no numbers, a codebook that is not float32, or a part only of what
            continues a run.
    """
    checkpoint = _read(file)
    if not is_original(checkpoint):
        _header(checkpoint, file)
    _require_bytes(file)
    if "random_states" in checkpoint:  # which only runs of ours save
        _require_continuing(checkpoint, file)
    for name, value in checkpoint["state_dict"].items():
        if not value.is_floating_point():
            continue
        if not _is_finite(value):
            raise CheckpointError(f"{file}: {name} holds what is no number", _ANOTHER)
        if "codebook." in name and value.dtype != torch.float32:
            raise CheckpointError(
                f"{file}: {name} is {value.dtype}, expected torch.float32: in less, codes change",
                _ANOTHER,
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all are numbers; seventy times as fast as to look at each on a CPU."""
    return not tensor.numel() or all(map(math.isfinite, torch.aminmax(tensor)))


def _storages(value: Any) -> Iterator[tuple[int, int]]:
    """Address and bytes of what holds the tensors in plain values; tensors may share it."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _storages(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _storages(item)


def _read(file: Path) -> dict[str, Any]:
    """Any checkpoint; its weights are dense tensors of numbers."""
    checkpoint = read_original(file)
    states = checkpoint.get("state_dict")
    for name, value in states.items() if isinstance(states, Mapping) else ():
        if isinstance(value, Tensor) and (
            value.layout != torch.strided or value.is_meta or value.dtype not in _NUMBERS
        ):
            what = "without content" if value.is_meta else f"{value.dtype}, {value.layout}"
            raise CheckpointError(f"{file}: {name} is no dense tensor of numbers ({what})")
    return checkpoint


def _lacking(checkpoint: Mapping[str, Any]) -> list[str]:
    return [n for n, kind in _CONTINUES.items() if not isinstance(checkpoint.get(n), kind)]


def _require_continuing(checkpoint: Mapping[str, Any], file: Path) -> None:
    if lacking := _lacking(checkpoint):
        raise CheckpointError(
            f"{file} cannot continue a run: it lacks {', '.join(lacking)}",
            "--init starts a new run from its weights",
        )


def _require_bytes(file: Path) -> None:
    """Compare each record of an archive with its CRC-32, which torch itself does not look at."""
    with file.open("rb") as stream:
        if stream.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(file) as archive:
            changed = [
                record.filename
                for record in archive.infolist()
                if record.compress_type != zipfile.ZIP_STORED or record.external_attr & _IS_FOLDER
            ]
            damaged = changed[0] if changed else archive.testzip()
    except Exception as error:  # names, sizes and flags that are damaged fail in any way
        raise CheckpointError(f"{file} is damaged: {error}", _ANOTHER) from error
    if damaged:
        raise CheckpointError(f"{file} is damaged: its record {damaged}", _ANOTHER)


@contextmanager
def _naming(file: Path, hint: str = "") -> Iterator[None]:
    """Name the file in errors that know its content only; the hint is for those without."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error.message}", error.hint or hint) from error


def _header(checkpoint: Mapping[str, Any], file: Path) -> _VQGANHeader | _GPTHeader:
    """What a checkpoint of ours says about itself, checked as a whole."""
    header, states = checkpoint.get(HEADER), checkpoint.get("state_dict")
    if not isinstance(header, dict) or not is_state(states):
        keys = ", ".join(sorted(map(str, checkpoint))[:10])
        raise CheckpointError(
            f"{file} is neither a tats checkpoint nor a published TATS file, which has state_dict "
            f"and hyper_parameters with args; it holds: {keys}",
            "give a checkpoint that tats or the published code wrote",
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


def _new_header(kind: str, step: int) -> dict[str, Any]:
    return {"format": FORMAT, "kind": kind, "version": __version__, "step": step}


def _geometry(clip: ClipConfig) -> dict[str, Any]:
    """The clip's own fields, also where the config has more (where the data is)."""
    return {name: getattr(clip, name) for name in ClipConfig.model_fields}


def _held(vqgan: TrainedVQGAN) -> dict[str, Any]:
    return {
        "config": vqgan.model.config.model_dump(mode="json"),
        "clip": _geometry(vqgan.clip),
        "rate": vqgan.rate,
        "input_range": vqgan.input_range,
        "fingerprint": vqgan.model.fingerprint(),
    }


def _trained_vqgan(
    facts: VQGANFacts,
    state: dict[str, Tensor],
    step: int,
    file: Path,
    judges: Mapping[str, Tensor] | None = None,
) -> TrainedVQGAN:
    model = VQGAN(facts.config)
    _fill(model, state, file)
    return TrainedVQGAN(model.eval(), facts.clip, facts.rate, step, judges or {}, facts.input_range)


def _from_original(found: OriginalVQGAN, file: Path) -> TrainedVQGAN:
    return _trained_vqgan(found.facts, found.state, found.step, file, found.judges)


def _to_original(vqgan: TrainedVQGAN) -> OriginalVQGAN:
    clip = ClipConfig(**_geometry(vqgan.clip))
    facts = VQGANFacts(
        config=vqgan.model.config, clip=clip, rate=vqgan.rate, input_range=vqgan.input_range
    )
    return OriginalVQGAN(facts, vqgan.model.state_dict(), dict(vqgan.judges), vqgan.step)


def _judges(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in states.items() if key.startswith(JUDGES)}


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
    differing += [
        f"{key} is {state[key].dtype}, expected {own[key].dtype}"
        for key in own
        if key in state and state[key].is_floating_point() != own[key].is_floating_point()
    ]
    if differing:
        shown = "\n  ".join(first_ten(differing))
        raise CheckpointError(f"{file} does not fit its own settings:\n  {shown}")
    model.load_state_dict(state)
