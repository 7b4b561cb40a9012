"""What samples are asked to show: class, text and sound, and the condition that makes of them.

Letters: B samples, T frames of a window, c condition tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatscli.app.fitting import check_sound_vqgan, check_tokenizer, read_sound_vqgan
from tatscli.app.given import GivenClips
from tatscli.app.reporting import Reporter
from tatscli.config.sample import ConditionConfig
from tatscli.config.words import counted
from tatscli.core.checkpoint import TrainedGPT
from tatscli.core.data.sound import Track, has_sound, read_sound, sound_patches, sound_span
from tatscli.core.data.text import read_tokenizer
from tatscli.core.models.gpt import condition_ids, drop_parts
from tatscli.core.paths import find_checkpoint
from tatscli.errors import ConfigError, DataError

OPTIONS = {"label": "--label NAME", "text": "--text TEXT", "sound": "--audio FILE"}
"""What asks for each part of a condition."""
FEW, CLOSE = 12, 3
"""Classes that are named where one is not known."""
_TEXTS = "--texts takes a text file, one text a line"
SHORT = 0.1
"""Seconds by which sound may end before its sample without a note."""
HEARD_RATE = 48000
"""Samples per second of the sound in the files that are written."""


@dataclass(frozen=True)
class SoundFile:
    """Where the sound of a sample is.

    Attributes:
        path: A file with sound.
        start: Seconds in it at which the sample begins.
    """

    path: Path
    start: float = 0.0

    def patches(self, first: int, frames: int, rate: float) -> Tensor:
        """The sound of frames from one on, float32 (1, T, 64, 16)."""
        edges = np.arange(first, first + frames + 1) / rate
        return sound_patches(self.path, edges, self.start)

    def track(self, seconds: float) -> Track:
        """The sound as it is heard, from the sample's beginning on."""
        samples = read_sound(self.path, self.start, self.start + seconds, HEARD_RATE, channels=2)
        return Track(samples, HEARD_RATE)


@dataclass(frozen=True)
class Asked:
    """What a sample is asked to show; None where nothing is asked.

    Attributes:
        label: Name of a class.
        text: A text.
        sound: What is heard.
    """

    label: str | None = None
    text: str | None = None
    sound: SoundFile | None = None

    @property
    def kinds(self) -> set[str]:
        """The parts of a condition that are asked for."""
        return {kind for kind in OPTIONS if getattr(self, kind) is not None}

    def listed(self) -> dict[str, Any]:
        """For the listing of the samples."""
        found: dict[str, Any] = {"label": self.label}
        if self.text is not None:
            found["text"] = self.text
        if self.sound is not None:
            found["audio"] = str(self.sound.path)
        return found


@dataclass(frozen=True)
class Wishes:
    """What each sample of a set is asked to show.

    Attributes:
        trained: The GPT that begins the samples.
        common: What all of them are asked for.
        texts: Texts that they take in turn.
        in_turn: Whether they take the classes of the model in turn, where nothing else says which.
        given: Videos that they go on from, or are to be like.
        from_given: The parts of the condition that are taken from these.
    """

    trained: TrainedGPT
    common: Asked
    texts: tuple[str, ...] = ()
    in_turn: bool = False
    given: GivenClips | None = None
    from_given: frozenset[str] = frozenset()

    def __call__(self, number: int) -> Asked:
        """What the sample of a number is asked to show."""
        asked = self.common
        if self.texts:
            asked = replace(asked, text=self.texts[number % len(self.texts)])
        if self.given:
            asked = self._like_video(asked, number)
        classes = self.trained.classes
        if self.in_turn and asked.label is None:
            asked = replace(asked, label=classes[number % len(classes)])
        return asked

    def _like_video(self, asked: Asked, number: int) -> Asked:
        assert self.given is not None
        video, taken = self.given, self.from_given
        name, place = video.class_name(number), video.sound(number)
        label = name if "label" in taken and name in self.trained.classes else None
        text = (video.caption(number) or None) if "text" in taken else None
        sound = SoundFile(*place) if "sound" in taken and place else None
        return Asked(asked.label or label, asked.text or text, asked.sound or sound)


def wishes(
    config: ConditionConfig,
    texts: tuple[str, ...],
    gpts: Sequence[TrainedGPT],
    file: Path,
    samples: int,
    seconds: float,
    given: GivenClips | None,
    reporter: Reporter,
) -> Wishes:
    """What the samples are asked to show, found to be what the models know.

    What is asked for by name goes before what given videos show, of which then only those parts
    are taken that the model cannot do without. Likewise classes are taken in turn where nothing
    says which, unless something else is asked for.

    Args:
        config: What is asked for.
        texts: Texts that the samples take in turn.
        gpts: The GPT that begins the samples, and the one that fills in.
        file: Where the former is.
        samples: How many there will be.
        seconds: How long each will be.
        given: Videos that the samples go on from, or are to be like.
        reporter: Told about texts that are cut, sound that ends early, and what is left open.

    Raises:
        ConfigError: The model has no such condition or class, or needs one that is not asked for.
        CheckpointError: A tokenizer or VQGAN of sound is not the one trained with.
        DataError: A file cannot be read.
    """
    trained = gpts[0]
    file = find_checkpoint(file)
    _check_parts(config, trained, file)
    _check_guidance(config, gpts, file)
    _check_checks(config, trained, file)
    sound = None
    if config.audio:
        sound = _open_sound(config.audio, seconds, reporter)
    common = Asked(config.label or None, config.text or None, sound)
    parts = {part.kind for part in trained.model.config.condition.parts}
    if common.kinds or texts:
        open_parts = {kind for kind in parts if not _learnt(gpts, kind)}
    else:
        open_parts = parts
    in_turn = "label" in parts and (config.class_cond or "label" in open_parts)
    found = Wishes(trained, common, texts, in_turn, given, frozenset(open_parts))
    asked = [found(number) for number in range(samples)]
    for number, wish in enumerate(asked):
        _check_enough(wish, gpts, file, given.file(number) if given else None)
    if given is None and (free := sorted(parts - {"start"} - asked[0].kinds)):
        reporter.note(f"nothing is asked for by {' and '.join(free)}; samples are free there")
    _note_cut(asked, gpts, reporter)
    return found


def _open_sound(path: Path, seconds: float, reporter: Reporter) -> SoundFile:
    """The sound that samples of so many seconds follow from its beginning on."""
    hint = "--audio takes a file with sound"
    if not path.is_file():
        raise DataError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}", hint)
    try:
        if not has_sound(path):
            raise DataError(f"{path} has no sound")
        start, end = sound_span(path)
    except DataError as error:
        raise DataError(error.message, hint) from None
    if end - start < seconds - SHORT:
        reporter.note(
            f"{path} lasts {end - start:.1f} s and a sample {seconds:.1f} s: silence follows it"
        )
    return SoundFile(path, start)


def window_condition(
    trained: TrainedGPT, asked: Sequence[Asked], rate: float
) -> Callable[[int], Tensor]:
    """The condition (B, c) of the window that starts at a latent frame, in the ids of a GPT.

    Label and text are the same in every window, sound advances with it; what is not asked for is
    null.

    Args:
        trained: The GPT.
        asked: What each sample is to show.
        rate: Frames per second of the samples.
    """
    layout, device = trained.model.config.condition, trained.model.pos_emb.device
    labels = text = None
    if layout.part("label"):
        names = [wish.label or trained.classes[0] for wish in asked]
        labels = torch.tensor([trained.classes.index(name) for name in names])
    if layout.part("text"):
        assert trained.text is not None, "a layout with text has its tokenizer"
        text = torch.stack([trained.text.encode(wish.text or "") for wish in asked])
    dropped = torch.tensor(
        [[part.kind not in wish.kinds for part in layout.parts] for wish in asked]
    )
    frames = trained.vqgan.clip.frames
    factor = trained.vqgan.model.config.downsample[0]

    @lru_cache(maxsize=1)  # some windows are opened twice
    def condition(start: int) -> Tensor:
        sound = _sound_codes(trained, asked, start * factor, frames, rate)
        ids = condition_ids(layout, len(asked), labels, sound, text)
        return drop_parts(layout, ids, dropped).to(device)

    return condition


@torch.no_grad()
def _sound_codes(
    trained: TrainedGPT, asked: Sequence[Asked], first: int, frames: int, rate: float
) -> Tensor | None:
    """Codes (B, tokens) of what is heard from a frame on; zeros where nothing is asked."""
    part, vqgan = trained.model.config.condition.part("sound"), trained.sound
    if part is None or vqgan is None:
        return None
    device = next(vqgan.model.parameters()).device
    known: dict[SoundFile | None, Tensor] = {None: torch.zeros(part.tokens, dtype=torch.long)}
    for wish in asked:
        if wish.sound and wish.sound not in known:
            patches = wish.sound.patches(first, frames, rate)[None]
            known[wish.sound] = vqgan.sound_codes(patches.to(device)).flatten().cpu()
    return torch.stack([known[wish.sound] for wish in asked])


def _check_parts(config: ConditionConfig, trained: TrainedGPT, file: Path) -> None:
    """The model has the parts of the condition that are asked for, and knows the class."""
    layout = trained.model.config.condition
    kinds = [part.kind for part in layout.parts]
    held = "no condition" if kinds == ["start"] else f"as condition: {', '.join(kinds)}"
    for option, kind in config.needed.items():
        if kind not in kinds:
            raise ConfigError(
                f"{option}, but {file} has {held}",
                f"leave the option out, or train with --condition {kind}",
            )
    if config.label and config.label not in trained.classes:
        known = trained.classes
        hint = f"it knows {', '.join(known)}"
        if len(known) > FEW:
            near = get_close_matches(config.label, known, CLOSE, cutoff=0.0)
            hint = f"the closest: {', '.join(near)}"
        raise ConfigError(
            f"--label {config.label}: {file} knows {counted(len(known), 'class')}, and not this "
            "one",
            hint,
        )


def _check_guidance(config: ConditionConfig, gpts: Sequence[TrainedGPT], file: Path) -> None:
    """All models have learnt what comes without their conditions, and the first one has any."""
    if config.guidance == 1:
        return
    asked = f"--guidance {config.guidance:g}, but"
    if gpts[0].model.config.condition.part("start"):
        raise ConfigError(
            f"{asked} {file} has no condition to go beyond",
            "leave the option out, or train with --condition",
        )
    for gpt, name in zip(gpts, (str(file), "the GPT of --infill-gpt"), strict=False):
        parts = gpt.model.config.condition.parts
        fixed = [part.kind for part in parts if part.kind != "start" and not part.dropout]
        if fixed:
            raise ConfigError(
                f"{asked} {name} never learnt what comes without its condition "
                f"({', '.join(fixed)})",
                "train with --condition-dropout 0.1",
            )


def _check_checks(config: ConditionConfig, trained: TrainedGPT, file: Path) -> None:
    """A tokenizer or a VQGAN of sound that is given must be the one trained with."""
    if config.tokenizer:
        assert trained.text is not None
        check_tokenizer(trained.text, read_tokenizer(config.tokenizer, ()), file, config.tokenizer)
    if config.sound_vqgan:
        assert trained.sound is not None
        given = read_sound_vqgan(config.sound_vqgan)
        check_sound_vqgan(trained.sound, given, file, config.sound_vqgan)


def _learnt(gpts: Sequence[TrainedGPT], kind: str) -> bool:
    """Whether all models have learnt to do without a part of their condition."""
    held = [gpt.model.config.condition.part(kind) for gpt in gpts]
    return all(part is None or part.dropout > 0 for part in held)


def _check_enough(asked: Asked, gpts: Sequence[TrainedGPT], file: Path, video: Path | None) -> None:
    """Something is asked for, and all that a model cannot do without."""
    parts = {part.kind for gpt in gpts for part in gpt.model.config.condition.parts} - {"start"}
    missing = sorted(parts - asked.kinds)
    where = "or --context VIDEO to take it from a video"
    if video:
        where = f"since {video} has none"
    if parts and not asked.kinds:
        options = " or ".join(OPTIONS[kind] for kind in missing)
        raise ConfigError(
            f"{file} is conditioned on {', '.join(sorted(parts))}, and nothing says what to show",
            f"add {options}, {where}",
        )
    if needed := [kind for kind in missing if not _learnt(gpts, kind)]:
        options = " and ".join(OPTIONS[kind] for kind in needed)
        raise ConfigError(
            f"{file} never learnt to do without {' and '.join(needed)}, and nothing says which",
            f"add {options}, {where}",
        )


def read_texts(path: Path) -> tuple[str, ...]:
    """The texts of a file, one a line; blank lines are left out.

    Raises:
        DataError: It cannot be read, or holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: {reason}", _TEXTS) from error
    texts = tuple(" ".join(line.split()) for line in lines if line.strip())
    if not texts:
        raise DataError(f"{path}: no text in it", _TEXTS)
    return texts


def _note_cut(asked: Sequence[Asked], gpts: Sequence[TrainedGPT], reporter: Reporter) -> None:
    """Say which texts are longer than a model takes."""
    texts = dict.fromkeys(wish.text for wish in asked if wish.text)
    for tokenizer in dict.fromkeys(gpt.text for gpt in gpts if gpt.text):
        for text in texts:
            if (length := tokenizer.length(text)) > tokenizer.tokens:
                reporter.warn(
                    f"a text of {length} tokens is cut to the {tokenizer.tokens} that the model "
                    f"takes: {tokenizer.kept(text)!r}"
                )
