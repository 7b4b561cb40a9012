"""Whether clips, VQGANs and tokenizers fit each other."""

from pathlib import Path

from pydantic import ValidationError

from tatscli.app.reporting import Reporter
from tatscli.config.data import SOUND_FRAME, ClipConfig, GPTDataConfig
from tatscli.config.files import flag
from tatscli.config.vqgan import SOUND_CHANNELS, VIDEO_CHANNELS
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan
from tatscli.core.data.text import TextTokenizer
from tatscli.core.paths import find_checkpoint
from tatscli.errors import CheckpointError, ConfigError


def clips_for(data: GPTDataConfig, vqgan: TrainedVQGAN) -> tuple[ClipConfig, tuple[int, int, int]]:
    """The clips that options and a VQGAN ask for, and the latent grid of one, or of its sound.

    Raises:
        ConfigError: There are no such clips, or the VQGAN cannot downsample them.
    """
    try:
        clip = data.clip(vqgan.clip)
        sides = SOUND_FRAME if vqgan.is_of_sound else (clip.resolution, clip.resolution)
        return clip, vqgan.model.config.grid(clip.frames, *sides)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "".join(f"{flag((str(name),))}: " for name in problem["loc"])
        raise ConfigError(option + problem["msg"].removeprefix("Value error, ")) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def noted_vqgan(path: Path, reporter: Reporter) -> TrainedVQGAN:
    """A VQGAN; that it is the one inside a GPT is said.

    Raises:
        CheckpointError: There is none.
    """
    found = read_vqgan(path)
    if found.is_inside:
        reporter.note(f"{find_checkpoint(path)} is a GPT: the VQGAN inside it is used")
    return found


def of_videos(vqgan: TrainedVQGAN) -> TrainedVQGAN:
    """The same VQGAN, if it encodes videos.

    Raises:
        ConfigError: It does not; the message has both numbers of channels.
    """
    channels = vqgan.model.config.image_channels
    if channels != VIDEO_CHANNELS:
        raise ConfigError(
            f"the VQGAN is for frames of {channels} channels, as of sound; videos have "
            f"{VIDEO_CHANNELS}",
            "give a VQGAN of videos",
        )
    return vqgan


def read_sound_vqgan(path: Path) -> TrainedVQGAN:
    """A VQGAN of sound.

    Raises:
        ConfigError: It is one of videos.
    """
    sound = read_vqgan(path)
    if not sound.is_of_sound:
        raise ConfigError(
            f"--sound-vqgan: {find_checkpoint(path)} is a VQGAN of "
            f"{sound.model.config.image_channels} channels; sound has {SOUND_CHANNELS}",
            "train one with: tats vqgan train --input sound --data DIR",
        )
    return sound


def check_sound_vqgan(held: TrainedVQGAN, given: TrainedVQGAN, source: Path, path: Path) -> None:
    """Sound means to a GPT what its own VQGAN of sound made of it.

    Args:
        held: The VQGAN of sound that was trained with.
        given: The one that was given.
        source: Where the former is.
        path: Where the latter is.

    Raises:
        CheckpointError: They differ; the message has both fingerprints.
    """
    ours, other = held.model.fingerprint(), given.model.fingerprint()
    if ours != other:
        raise CheckpointError(
            f"{source} knows sound of VQGAN {ours}, but {path} is VQGAN {other}",
            "give that one, or leave --sound-vqgan out: the checkpoint holds its own",
        )


def check_tokenizer(held: TextTokenizer, given: TextTokenizer, source: Path, path: Path) -> None:
    """Texts mean to a GPT what its own tokenizer made of them; see ``check_sound_vqgan``.

    Raises:
        CheckpointError: The tokenizers differ; the message has both fingerprints.
    """
    if held.fingerprint != given.fingerprint:
        raise CheckpointError(
            f"{source} reads texts by tokenizer {held.fingerprint}, but {path} is tokenizer "
            f"{given.fingerprint}",
            "give that one, or leave --tokenizer out: the checkpoint holds its own",
        )


def sound_grid(sound: TrainedVQGAN, frames: int) -> tuple[int, int, int]:
    """Latent grid (t, h, w) of the sound of a clip.

    Raises:
        ConfigError: The VQGAN of the sound cannot downsample so many frames.
    """
    try:
        return sound.model.config.grid(frames, *SOUND_FRAME)
    except ValueError as error:
        raise ConfigError(f"the VQGAN of the sound does not fit: {error}") from None


def note_other_rate(sound: TrainedVQGAN, rate: float, reporter: Reporter) -> None:
    """Say where patches of sound last longer or shorter than those their VQGAN learnt."""
    if sound.rate and abs(sound.rate / rate - 1) > 0.01:
        reporter.warn(
            f"the VQGAN of the sound was trained at {sound.rate:g} frames a second, these clips "
            f"have {rate:g}: the sound of a frame lasts {sound.rate / rate:.2g} times as long"
        )
