"""What a run is trained on: training and validation clips, from videos or from tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Subset

from tatscli.app.data import (
    SPLITS,
    VideoClips,
    decodable,
    name_problems,
    open_data,
    spread,
    told_untrained,
)
from tatscli.app.encode import check_fingerprint
from tatscli.app.fitting import (
    check_sound_vqgan,
    check_tokenizer,
    clips_for,
    note_other_rate,
    noted_vqgan,
    of_videos,
    read_sound_vqgan,
)
from tatscli.app.reporting import Reporter
from tatscli.app.stream import Stream, find_stream
from tatscli.app.tokens import local_tokens, open_tokens
from tatscli.config.train import GPTTrainConfig, LoopConfig, VQGANTrainConfig
from tatscli.config.words import counted
from tatscli.core.checkpoint import TrainedGPT, TrainedVQGAN, read_vqgan
from tatscli.core.data.bad import BadVideos
from tatscli.core.data.clips import Wanted
from tatscli.core.data.index import VideoEntry
from tatscli.core.data.stream import StreamManifest
from tatscli.core.data.text import TextTokenizer, read_tokenizer, train_tokenizer
from tatscli.core.data.tokens import (
    SOUND_FILE,
    TokenDataset,
    TokenHeader,
    TokenManifest,
    is_token_dataset,
)
from tatscli.core.paths import remote_url
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
        encoded: Whether it is tokens.
    """

    fingerprint: str
    holds: str
    encoded: bool = False


class GPTStart(NamedTuple):
    """Weights that a GPT run starts from, or goes on with.

    Attributes:
        source: Where they are.
        gpt: The GPT with its VQGAN.
        resumed: Whether the run goes on, with all that it was given at its start.
    """

    source: Path
    gpt: TrainedGPT
    resumed: bool = False


class GPTMaterial(NamedTuple):
    """What a GPT is trained on.

    Attributes:
        vqgan: Whose codes it writes, with the clips of the data.
        clips: Videos to encode, or tokens.
        content: To recognise the data.
        classes: Names of the classes, in the order of their ids.
        text: The tokenizer of the captions, where they are a condition.
        sound: The VQGAN of the sound, where it is a condition.
        bad: The videos that cannot be read, where there are videos.
    """

    vqgan: TrainedVQGAN
    clips: Clips
    content: Content
    classes: tuple[str, ...]
    text: TextTokenizer | None
    sound: TrainedVQGAN | None
    bad: BadVideos | None = None


def gpt_material(config: GPTTrainConfig, start: GPTStart | None, reporter: Reporter) -> GPTMaterial:
    """Open videos, a token dataset or a stream, with the VQGAN that makes codes of them.

    Args:
        config: Settled.
        start: Weights that the GPT starts from, whose VQGAN is kept.
        reporter: Told about problems.

    Raises:
        ConfigError: A VQGAN is missing, or the data lacks classes, captions or sound that are
            needed.
        DataError: The data cannot be read, or holds tokens of another VQGAN.
    """
    for option, given, kind in (
        ("--tokenizer", config.model.tokenizer, "text"),
        ("--sound-vqgan", config.sound_vqgan, "sound"),
    ):
        if given and kind not in config.model.conditions:
            reporter.note(f"{option} has no effect without --condition {kind}")
    if stream := find_stream(config.data.data, reporter):
        material = _tokens(config, start, reporter, stream)
    elif remote_url(config.data.data) or is_token_dataset(config.data.data):
        folder = local_tokens(config.data.data, reporter)
        encoded = _TokenFolder(folder, open_tokens(folder, reporter))
        material = _tokens(config, start, reporter, encoded)
    else:
        material = _videos(config, start, reporter)
    if "label" in config.model.conditions and not material.classes:
        raise ConfigError(
            f"--condition {config.model.condition}, but {config.data.data} has no classes",
            "put the videos into one folder a class, name classes in a manifest, or use another "
            "--condition",
        )
    return material


def _videos(config: GPTTrainConfig, start: GPTStart | None, reporter: Reporter) -> GPTMaterial:
    if start:
        vqgan = start.gpt.vqgan
    elif config.vqgan:
        vqgan = of_videos(noted_vqgan(config.vqgan, reporter))
    else:
        raise ConfigError(
            f"{config.data.data} holds videos, and --vqgan is not given",
            "add --vqgan RUN, or give a token dataset that tats encode wrote",
        )
    clip, _ = clips_for(config.data, vqgan)
    sound = None
    if "sound" in config.model.conditions:
        sound = _sound_vqgan(config, start)
    needs_sound = config.data.missing_sound == "skip"
    wanted = Wanted(sound=sound is not None, needs_sound=needs_sound)
    used = [found.model.config for found in (vqgan, sound) if found]
    videos = open_data(config.data, clip, reporter, wanted, *used)
    untrained = told_untrained(videos.index, videos.dataset)
    if untrained and "label" in config.model.conditions:
        raise ConfigError(
            f"--condition {config.model.condition}, but {untrained}",
            "add some to the training split, take this class out of the validation split, or use "
            "another --condition",
        )
    if sound:
        must_be_heard(videos, f"--condition {config.model.condition}")
        note_other_rate(sound, videos.rate, reporter)
    trained, classes = videos.train.entries, videos.index.classes
    labels = [entry.label for entry in videos.index.entries]
    bare = sum(label < 0 for label in labels)
    _note_unlabelled(bare, len(labels), classes, config, start, reporter)
    text = _tokenizer(config, start, [entry.captions for entry in trained], reporter)
    if text:
        videos = replace(videos, wanted=wanted._replace(text=text.encode))
    clips = video_clips(videos, config, reporter)
    vqgan = replace(vqgan, clip=clip, rate=videos.rate)
    return GPTMaterial(vqgan, clips, videos_content(videos), classes, text, sound, videos.bad)


class _TokenFolder(NamedTuple):
    """A token dataset, as ``Stream`` is one."""

    folder: Path
    manifest: TokenManifest

    def clips(self, wanted: Wanted, loop: LoopConfig) -> tuple[Clips, int]:
        train, held = (TokenDataset(self.folder, split, wanted) for split in SPLITS)
        clips = Clips(train, len(train), Subset(held, spread(len(held), loop.val_clips)))
        return clips, sum(int((split.labels < 0).sum()) for split in (train, held))


def _tokens(
    config: GPTTrainConfig,
    start: GPTStart | None,
    reporter: Reporter,
    encoded: _TokenFolder | Stream,
) -> GPTMaterial:
    folder, manifest = encoded.folder, encoded.manifest
    _check_geometry(config, manifest)
    source = start.source if start else config.vqgan
    vqgan = start.gpt.vqgan if start else read_vqgan(source or folder)
    check_fingerprint(manifest, vqgan, folder, source, needed=start is not None)
    # Published files do not know the rate of their clips.
    rate = vqgan.rate or read_vqgan(folder).rate
    vqgan = replace(vqgan, clip=manifest.clip, rate=rate)
    sound = None
    if "sound" in config.model.conditions:
        sound = _sound_of_tokens(config, start, encoded)
    text = _tokenizer(config, start, manifest.captions.get("train", ()), reporter)
    wanted = Wanted(text=text.encode if text else None, sound=sound is not None)
    clips, bare = encoded.clips(wanted, config.train)
    entries = sum(shard.n for shards in manifest.shards.values() for shard in shards)
    _note_unlabelled(bare, entries, manifest.classes, config, start, reporter)
    content = _tokens_content(manifest, text is not None)
    return GPTMaterial(vqgan, clips, content, manifest.classes, text, sound)


def _note_unlabelled(
    bare: int,
    entries: int,
    classes: tuple[str, ...],
    config: GPTTrainConfig,
    start: GPTStart | None,
    reporter: Reporter,
) -> None:
    """Count what has no class where others have one.

    Raises:
        ConfigError: The weights that the GPT starts from have no id for that.
    """
    if "label" not in config.model.conditions or not classes or not bare:
        return
    part = start.gpt.model.config.condition.part("label") if start else None
    if start and part and part.null_id < 0:
        raise ConfigError(
            f"{bare} of {entries} entries of {config.data.data} have no class, and "
            f"{start.source} has no id for none",
            "give every video a class, or train a new GPT without --init",
        )
    reporter.note(f"{bare} of {entries} entries have no class and are learnt without")


def _tokenizer(
    config: GPTTrainConfig,
    start: GPTStart | None,
    captions: Sequence[Sequence[str]],
    reporter: Reporter,
) -> TextTokenizer | None:
    """What turns captions into tokens, where they are a condition.

    Args:
        config: Settled.
        start: Weights that the GPT starts from, whose tokenizer is kept.
        captions: Of each training video.
        reporter: Told about captions that are missing or cut.

    Raises:
        ConfigError: There are no captions, or another tokenizer is given than that of the weights.
        DataError: The tokenizer cannot be read.
    """
    options = config.model
    if "text" not in options.conditions:
        return None
    texts = [text for some in captions for text in some]
    if not texts:
        raise ConfigError(
            f"--condition {options.condition}, but {config.data.data} has no captions",
            "write a .txt beside each video, or captions into a manifest; tokens take over those "
            "of their videos",
        )
    if bare := sum(not some for some in captions):
        reporter.note(f"{bare} of {len(captions)} training videos have no caption")
    text = start.gpt.text if start else None
    if options.tokenizer and not (start and start.resumed):
        given = read_tokenizer(options.tokenizer, texts, options.text_tokens)
        if start and text:
            check_tokenizer(text, given, start.source, options.tokenizer)
        text = text or given
    text = text or train_tokenizer(texts, options.text_vocabulary, options.text_tokens)
    if long := sum(length > text.tokens for length in text.lengths(texts)):
        reporter.note(
            f"{long} of {len(texts)} captions are longer than {text.tokens} tokens and are cut; "
            "--text-tokens sets their length"
        )
    return text


def _sound_vqgan(config: GPTTrainConfig, start: GPTStart | None) -> TrainedVQGAN:
    """The VQGAN of the sound: that of the weights, else the one that is given."""
    held = start.gpt.sound if start else None
    if held is None:
        if config.sound_vqgan is None:
            raise ConfigError(
                f"--condition {config.model.condition} needs a VQGAN of sound",
                "train one with tats vqgan train --input sound --data DIR, and add --sound-vqgan "
                "RUN",
            )
        return read_sound_vqgan(config.sound_vqgan)
    assert start is not None
    if config.sound_vqgan and not start.resumed:
        given = read_sound_vqgan(config.sound_vqgan)
        check_sound_vqgan(held, given, start.source, config.sound_vqgan)
    return held


def _sound_of_tokens(
    config: GPTTrainConfig, start: GPTStart | None, encoded: _TokenFolder | Stream
) -> TrainedVQGAN:
    """The VQGAN that the sound of a token dataset was encoded with."""
    folder, manifest = encoded.folder, encoded.manifest
    if manifest.sound is None:
        raise ConfigError(
            f"--condition {config.model.condition}, but {folder} holds no sound",
            "encode again: tats encode --sound-vqgan RUN --out NEW",
        )
    file = folder / SOUND_FILE
    sound = read_sound_vqgan(file)
    if (fingerprint := sound.model.fingerprint()) != manifest.sound.fingerprint:
        raise DataError(
            f"{folder} holds sound of VQGAN {manifest.sound.fingerprint}, but {file} is VQGAN "
            f"{fingerprint}",
            "encode again with a new --out folder",
        )
    if config.sound_vqgan and not (start and start.resumed):
        given = read_sound_vqgan(config.sound_vqgan)
        check_sound_vqgan(sound, given, folder, config.sound_vqgan)
    if start and start.gpt.sound:
        check_sound_vqgan(start.gpt.sound, sound, start.source, file)
        return start.gpt.sound
    return sound


def must_be_heard(videos: VideoClips, asked: str) -> None:
    """Where sound is asked for, some video must have it.

    Raises:
        DataError: None has.
    """
    entries = videos.index.entries
    if not any(entry.has_sound for entry in entries):
        raise DataError(
            f"{asked}, but none of the {len(entries)} videos of {videos.dataset} has sound",
            "sound is a video's own track, or a .wav beside it",
        )


def _check_geometry(config: GPTTrainConfig, manifest: TokenHeader) -> None:
    """Geometry options must agree with the tokens, which are cut already."""
    for name in ("resolution", "sequence_length", "frame_rate", "sample_every_n_frames"):
        asked, held = getattr(config.data, name), getattr(manifest.clip, name)
        if asked and asked != held:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} {asked:g}, but {config.data.data} was encoded with {held:g}",
                f"leave out {option}, or encode again",
            )
    asked, heard = config.data.missing_sound, manifest.sound
    # The default asks for nothing: the saved settings of a run that goes on have it, too.
    if asked == "skip" and heard and heard.missing != asked:
        raise ConfigError(
            f"--missing-sound {asked}, but {config.data.data} was encoded with {heard.missing}",
            "leave out --missing-sound, or encode again",
        )


def video_clips(videos: VideoClips, config: StageConfig, reporter: Reporter) -> Clips:
    """Training clips, and those validation clips that can be decoded.

    Raises:
        DataError: None can be, or more cannot than the settings allow.
    """
    train = videos.training(config.train.seed, config.data.strict)
    # Validation has no clips to spare: one that breaks hours into the run would end it.
    held, problems = decodable(videos.spread("val", config.train.val_clips), videos.dataset)
    if problems and config.data.strict:
        first = problems[0]
        raise DataError(f"{videos.index.root}/{first.path}: {first.reason}", "leave out --strict")
    name_problems(problems, videos.check_command, reporter)
    for problem in problems:
        videos.bad.add(problem)
    return Clips(train, len(train), held)


def held_out(clips: Clips, count: int) -> list[Any]:
    """So many validation clips, evenly over all."""
    held = len(clips.validation)  # type: ignore[arg-type]  # every dataset here has a length
    return [clips.validation[place] for place in spread(held, count)]


def videos_content(videos: VideoClips) -> Content:
    """Names and lengths of the training videos, with what else of them is learnt."""
    entries, wanted = videos.train.entries, videos.wanted
    frames = sum(entry.stop - entry.first for entry in entries)

    def named(entry: VideoEntry) -> str:
        captions = f" {entry.captions}" if wanted.text else ""
        heard = f" {entry.sound or entry.info.sound}" if wanted.hears else ""
        return f"{entry.path} {entry.first} {entry.stop}{captions}{heard}"

    names = sorted(map(named, entries))
    return Content(
        _digest(names), f"{counted(len(entries), 'video')} of {counted(frames, 'frame')} in all"
    )


def _tokens_content(manifest: TokenManifest | StreamManifest, reads: bool) -> Content:
    """Checksums of the training shards, and the captions where they are learnt."""
    shards = manifest.shards["train"]
    clips = sum(shard.n for shard in shards)
    captions = [str(manifest.captions.get("train"))] if reads else []
    digest = _digest([*(shard.sha256 for shard in shards), *captions])
    holds = f"{counted(clips, 'clip')} in {counted(len(shards), 'shard')}"
    return Content(digest, holds, encoded=True)


def _digest(lines: Iterable[str]) -> str:
    return blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
