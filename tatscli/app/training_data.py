"""What a run is trained on: training and validation clips, from videos or from tokens."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from torch.utils.data import Subset

from tatscli.app.architecture import GPTStart
from tatscli.app.data import VideoClips, decodable, name_problems, open_videos, spread
from tatscli.app.encode import check_fingerprint, clips_for, open_tokens
from tatscli.app.reporting import Reporter
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan
from tatscli.core.data.tokens import TokenDataset, TokenManifest, is_token_dataset
from tatscli.core.training.engine import Clips
from tatscli.errors import ConfigError, DataError

StageConfig = VQGANTrainConfig | GPTTrainConfig
"""Settings of a run of either stage."""


@dataclass(frozen=True)
class Content:
    """What a run is trained on, to be recognised when it goes on.

    Attributes:
        fingerprint: Of the training videos' names and lengths, or of the training shards.
        holds: Counts, for people.
    """

    fingerprint: str
    holds: str


class GPTMaterial(NamedTuple):
    """What a GPT is trained on.

    Attributes:
        vqgan: Whose codes it writes, with the clips of the data.
        clips: Videos to encode, or tokens.
        classes: Names of the classes, in the order of their ids.
        content: To recognise the data.
    """

    vqgan: TrainedVQGAN
    clips: Clips
    classes: tuple[str, ...]
    content: Content


def gpt_material(config: GPTTrainConfig, start: GPTStart | None, reporter: Reporter) -> GPTMaterial:
    """Open videos or a token dataset, with the VQGAN that makes codes of them.

    Args:
        config: Settled.
        start: Weights that the GPT starts from, whose VQGAN is kept.
        reporter: Told about problems.

    Raises:
        ConfigError: There is no VQGAN, or there are no classes where they are needed.
        DataError: The data cannot be read, or holds tokens of another VQGAN.
    """
    if is_token_dataset(config.data.data):
        material = _tokens(config, start)
    else:
        material = _videos(config, start, reporter)
    if config.model.condition == "label" and not material.classes:
        raise ConfigError(
            f"--condition label, but {config.data.data} has no classes",
            "put the videos into one folder a class, or use --condition none",
        )
    return material


def _videos(config: GPTTrainConfig, start: GPTStart | None, reporter: Reporter) -> GPTMaterial:
    if start:
        vqgan = start.gpt.vqgan
    elif config.vqgan:
        vqgan = read_vqgan(config.vqgan)
    else:
        raise ConfigError(
            f"{config.data.data} holds videos, and --vqgan is not given",
            "add --vqgan RUN, or give a token dataset that tats encode wrote",
        )
    clip, _ = clips_for(config.data, vqgan)
    videos = open_videos(config.data.data, clip, config.data.strict, reporter)
    clips = video_clips(videos, config, reporter)
    vqgan = replace(vqgan, clip=clip, rate=videos.rate)
    return GPTMaterial(vqgan, clips, videos.index.classes, videos_content(videos))


def _tokens(config: GPTTrainConfig, start: GPTStart | None) -> GPTMaterial:
    folder = config.data.data
    manifest = open_tokens(folder)
    _check_geometry(config, manifest)
    source = start.source if start else config.vqgan
    vqgan = start.gpt.vqgan if start else read_vqgan(source or folder)
    check_fingerprint(manifest, vqgan, folder, source)
    # Published files do not know the rate of their clips.
    rate = vqgan.rate or read_vqgan(folder).rate
    vqgan = replace(vqgan, clip=manifest.clip, rate=rate)
    train, held = TokenDataset(folder, "train"), TokenDataset(folder, "val")
    chosen = spread(len(held), config.train.val_clips)
    clips = Clips(train, len(train), Subset(held, chosen))
    return GPTMaterial(vqgan, clips, manifest.classes, _tokens_content(manifest))


def _check_geometry(config: GPTTrainConfig, manifest: TokenManifest) -> None:
    """Geometry options must agree with the tokens, which are cut already."""
    for name in ("resolution", "sequence_length", "frame_rate", "sample_every_n_frames"):
        asked, held = getattr(config.data, name), getattr(manifest.clip, name)
        if asked and asked != held:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} {asked:g}, but {config.data.data} was encoded with {held:g}",
                f"leave out {option}, or encode again",
            )


def video_clips(videos: VideoClips, config: StageConfig, reporter: Reporter) -> Clips:
    """Training clips, and those validation clips that can be decoded.

    Raises:
        DataError: None can be, or one cannot and that is an error by the settings.
    """
    train = videos.training(config.train.seed, config.data.strict)
    # Validation has no clips to spare: one that breaks hours into the run would end it.
    held, problems = decodable(videos.spread("val", config.train.val_clips))
    if problems and config.data.strict:
        first = problems[0]
        raise DataError(f"{videos.index.root}/{first.path}: {first.reason}", "leave out --strict")
    name_problems(problems, reporter)
    return Clips(train, len(train), held)


def held_out(clips: Clips, count: int) -> list[Any]:
    """So many validation clips, evenly over all."""
    held = len(clips.validation)  # type: ignore[arg-type]  # every dataset here has a length
    return [clips.validation[place] for place in spread(held, count)]


def videos_content(videos: VideoClips) -> Content:
    """Names and lengths of the training videos."""
    entries = videos.train.entries
    frames = sum(entry.stop - entry.first for entry in entries)
    names = sorted(f"{entry.path} {entry.first} {entry.stop}" for entry in entries)
    return Content(_digest(names), f"{len(entries)} videos of {frames} frames in all")


def _tokens_content(manifest: TokenManifest) -> Content:
    shards = manifest.shards["train"]
    clips = sum(shard.n for shard in shards)
    return Content(_digest(s.sha256 for s in shards), f"{clips} clips in {len(shards)} shards")


def _digest(lines: Iterable[str]) -> str:
    return blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
