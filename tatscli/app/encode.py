"""Videos to a token dataset, and tokens to videos."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tatscli.app.data import Split, VideoClips, open_videos, problem_of
from tatscli.app.devices import choose_device
from tatscli.app.fitting import (
    clips_for,
    note_other_rate,
    of_videos,
    read_sound_vqgan,
    sound_grid,
)
from tatscli.app.pictures import DEFAULT_RATE
from tatscli.app.reporting import Reporter, Silent, Task
from tatscli.config.encode import DecodeConfig, EncodeConfig
from tatscli.config.sample import Precision
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan, save_vqgan
from tatscli.core.data.clips import Clip, FixedClips, Wanted
from tatscli.core.data.index import Problem
from tatscli.core.data.tokens import (
    SOUND_FILE,
    VQGAN_FILE,
    SoundTokens,
    TokenDataset,
    TokenHeader,
    TokenManifest,
    TokenUnit,
    TokenWriter,
    read_manifest,
    verify,
)
from tatscli.core.data.video import Frames, to_uint8, video_writer
from tatscli.core.files import claim_empty
from tatscli.core.models.inference import vqgan_for_inference
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.sampling.decode import WHOLE_FRAMES, decode_stream, encode_stream
from tatscli.core.training.placement import choose_workers
from tatscli.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "val")
COMPARED = 4
"""Clips that are encoded in float32 too, to say what another precision changes."""


@dataclass(frozen=True)
class EncodeResult:
    """A token dataset.

    Attributes:
        folder: Where it is.
        training_clips: Clips of the training split.
        validation_clips: Clips of the validation split.
        grid: Latent grid (t, h, w) of a clip.
        codes_used: Codes that occur in the training split.
        codes: Codes of the codebook.
        vqgan: Fingerprint of the VQGAN.
        sound_grid: Latent grid (t, h, w) of the sound of a clip, where it was encoded.
        captioned: Training videos that have a caption.
        skipped: What was left out, with the reason.
    """

    folder: Path
    training_clips: int
    validation_clips: int
    grid: tuple[int, int, int]
    codes_used: int
    codes: int
    vqgan: str
    sound_grid: tuple[int, int, int] | None
    captioned: int
    skipped: list[str]


@dataclass(frozen=True)
class DecodeResult:
    """Videos decoded from tokens.

    Attributes:
        folder: Where they are.
        videos: How many.
        frames: Frames of each.
        size: Side in pixels.
        frame_rate: Frames per second of the files.
    """

    folder: Path
    videos: int
    frames: int
    size: int
    frame_rate: float


def encode(config: EncodeConfig, reporter: Reporter | None = None) -> EncodeResult:
    """Encode a dataset; continues an encoding that was interrupted.

    Raises:
        ConfigError: The clips do not fit the VQGAN's downsampling.
        DataError: Nothing can be encoded, or the folder holds other tokens.
    """
    reporter = reporter or Silent()
    options = config.encode
    device = choose_device(config.compute.device)
    vqgan = of_videos(read_vqgan(options.vqgan))
    clip, grid = clips_for(config.data, vqgan)
    sound = read_sound_vqgan(options.sound_vqgan) if options.sound_vqgan else None
    needs_sound = config.data.missing_sound == "skip"
    wanted = Wanted(sound=sound is not None, needs_sound=needs_sound)
    videos = open_videos(config.data.data, clip, config.data.strict, reporter, wanted)
    stride = options.stride or clip.sequence_length
    clips = {split: videos.every(split, stride) for split in SPLITS}
    heard = None
    if sound:
        note_other_rate(sound, videos.rate, reporter)
        heard = SoundTokens(
            fingerprint=sound.model.fingerprint(),
            codes=sound.model.config.codes,
            grid=sound_grid(sound, clip.frames),
            missing=config.data.missing_sound,
        )
    precision = config.compute.precision
    header = _header(videos, clips, vqgan, grid, stride, heard, precision)
    writer = TokenWriter(options.out, header)
    save_vqgan(TrainedVQGAN(vqgan.model, clip, videos.rate, vqgan.step), options.out / VQGAN_FILE)
    if sound:
        save_vqgan(replace(sound, judges={}), options.out / SOUND_FILE)
        vqgan_for_inference(sound.model, device, precision)
    missing = writer.missing()
    total = sum(unit.stop - unit.first for unit in missing)
    if len(missing) < len(writer.units):
        reporter.note(f"continuing: {len(writer.units) - len(missing)} shards are there already")
    exact = deepcopy(vqgan.model) if precision != "float32" and missing else None
    vqgan_for_inference(vqgan.model, device, precision)
    if exact:
        first = missing[0]
        _note_changed(exact, vqgan.model, clips[first.split], first, precision, reporter)
        del exact
    with reporter.task("encoding", "clips", total) as task:
        done = 0
        for unit in missing:
            done = _encode_unit(writer, unit, clips[unit.split], vqgan, sound, config, task, done)
    manifest = writer.finish()
    return _summary(options.out, manifest)


def decode(tokens: Path, config: DecodeConfig, reporter: Reporter | None = None) -> DecodeResult:
    """Decode a token dataset to one video a clip.

    Raises:
        DataError: There are no tokens, or another VQGAN is given than they were made with.
    """
    reporter = reporter or Silent()
    options = config.decode
    manifest = open_tokens(tokens)
    vqgan = read_vqgan(options.vqgan or tokens)
    check_fingerprint(manifest, vqgan, tokens, options.vqgan)
    claim_empty(options.out, "choose another --out")
    device = choose_device(config.compute.device)
    vqgan_for_inference(vqgan.model, device, config.compute.precision)
    rate = vqgan.rate or DEFAULT_RATE
    chosen = [(split, TokenDataset(tokens, split)) for split in SPLITS if manifest.clips[split]]
    counts = {split: min(options.limit or len(held), len(held)) for split, held in chosen}
    size = manifest.grid[1] * vqgan.model.config.downsample[1]
    frames = manifest.grid[0] * vqgan.model.config.downsample[0]
    # Long clips are decoded one by one, in pieces.
    batch_size = options.batch_size if frames <= WHOLE_FRAMES else 1
    written = 0
    with reporter.task("decoding", "clips", sum(counts.values())) as task:
        for split, held in chosen:
            for first in range(0, counts[split], batch_size):
                numbers = range(first, min(first + batch_size, counts[split]))
                codes = torch.stack([held[n].tokens for n in numbers]).to(device)
                for number, clip in zip(numbers, _clips(vqgan.model, codes), strict=True):
                    path, start = held.origin(number)
                    tags = {"comment": f"{path} from {start:.3f} s"}
                    stem = options.out / split / f"clip-{number:06}"
                    _write(stem, clip, rate, options.lossless, tags)
                    written += 1
                    task.update(written)
    return DecodeResult(options.out, written, frames, size, rate)


def open_tokens(folder: Path) -> TokenManifest:
    """What a token dataset holds, once its shards are found to be as they were written.

    Raises:
        DataError: It is absent, incomplete or damaged; the message names the first bad shard.
    """
    manifest = read_manifest(folder)
    if damaged := verify(folder):
        raise DataError(
            f"{folder}/{damaged[0].path}: {damaged[0].reason}",
            "run the same 'tats encode' with a new --out folder",
        )
    return manifest


def check_fingerprint(
    manifest: TokenManifest, vqgan: TrainedVQGAN, tokens: Path, given: Path | None
) -> None:
    """Tokens mean something only to the VQGAN that wrote them.

    Raises:
        DataError: It is another; the message has both fingerprints.
    """
    fingerprint = vqgan.model.fingerprint()
    if fingerprint != manifest.fingerprint:
        raise DataError(
            f"{tokens} holds tokens of VQGAN {manifest.fingerprint}, "
            f"but {given or tokens / VQGAN_FILE} is VQGAN {fingerprint}",
            "encode the videos with that one, or leave it out: the token dataset holds its own",
        )


def _clips(model: VQGAN, codes: Tensor) -> Iterator[Iterable[Frames]]:
    """The pieces of each clip: of many clips one each, of a single one as many as it takes."""
    if len(codes) == 1:
        yield (to_uint8(piece[0]) for piece in decode_stream(model, codes))
    else:
        yield from ([clip] for clip in to_uint8(model.decode(codes)))


def _write(
    stem: Path, pieces: Iterable[Frames], rate: float, lossless: bool, tags: dict[str, str]
) -> None:
    with ExitStack() as files:
        plain = video_writer(stem.with_suffix(".mp4"), rate, metadata=tags)
        writers = [files.enter_context(plain)]
        if lossless:
            exact = video_writer(stem.with_suffix(".mkv"), rate, lossless=True, metadata=tags)
            writers.append(files.enter_context(exact))
        for piece in pieces:
            for write in writers:
                write(piece)


def _header(
    videos: VideoClips,
    clips: dict[Split, FixedClips],
    vqgan: TrainedVQGAN,
    grid: tuple[int, int, int],
    stride: int,
    sound: SoundTokens | None,
    precision: Precision,
) -> TokenHeader:
    return TokenHeader(
        fingerprint=vqgan.model.fingerprint(),
        codes=vqgan.model.config.codes,
        grid=grid,
        clip=videos.clip,
        stride=stride,
        classes=videos.index.classes,
        videos={split: tuple(e.path for e in clips[split].source.entries) for split in SPLITS},
        clips={split: len(clips[split]) for split in SPLITS},
        problems=tuple(videos.problems),
        captions={split: tuple(e.captions for e in clips[split].source.entries) for split in SPLITS}
        if any(entry.captions for entry in videos.index.entries)
        else {},
        sound=sound,
        precision=precision,
    )


def _note_changed(
    exact: VQGAN,
    used: VQGAN,
    clips: FixedClips,
    unit: TokenUnit,
    precision: Precision,
    reporter: Reporter,
) -> None:
    """Say how many codes of the first clips are others than in float32."""
    device = next(used.parameters()).device
    vqgan_for_inference(exact, device)
    readable = _Readable(clips, unit)
    items = [readable[place] for place in range(min(COMPARED, len(readable)))]
    found = [item for item in items if isinstance(item, Clip)]
    changed = total = 0
    for clip in found:
        video = clip.video[None].to(device)
        codes, others = encode_stream(exact, video), encode_stream(used, video)
        changed, total = changed + int((codes != others).sum()), total + codes.numel()
    if total:
        reporter.note(
            f"in {precision} {changed / total:.1%} of the codes of the first {len(found)} clips "
            "are others than in float32"
        )


class _Readable(Dataset[Clip | Problem]):
    """Clips of a unit; one that cannot be decoded is its problem, in its place."""

    def __init__(self, clips: FixedClips, unit: TokenUnit) -> None:
        self._clips, self._unit = clips, unit

    def __len__(self) -> int:
        return self._unit.stop - self._unit.first

    def __getitem__(self, place: int) -> Clip | Problem:
        number = self._unit.first + place
        try:
            return self._clips[number]
        except DataError as error:
            path = self._clips.source.entries[self._clips.addresses[number].entry].path
            return problem_of(self._clips.source.root, path, error)


def _as_list(items: list[Any]) -> list[Any]:
    return items


def _encode_unit(
    writer: TokenWriter,
    unit: TokenUnit,
    clips: FixedClips,
    vqgan: TrainedVQGAN,
    sound: TrainedVQGAN | None,
    config: EncodeConfig,
    task: Task,
    done: int,
) -> int:
    """Encode and write one shard; the number of clips done in all."""
    device = next(vqgan.model.parameters()).device
    tokens: list[Tensor] = []
    heard: list[Tensor] = []
    kept, labels, problems = [], [], []
    number = unit.first
    for batch in _batches(_Readable(clips, unit), config, device):
        read: list[Clip] = []
        for item in batch:
            if isinstance(item, Problem):
                if config.data.strict:
                    raise DataError(f"{item.path}: {item.reason}", "leave out --strict")
                problems.append(item)
            else:
                read.append(item)
                labels.append(item.label)
                kept.append(number)
            number += 1
        if read:
            videos = torch.stack([clip.video for clip in read])
            tokens.append(encode_stream(vqgan.model, videos.to(device)).cpu())
            if sound:
                patches = torch.stack([clip.sound for clip in read])
                heard.append(sound.sound_codes(patches.to(device)).cpu())
        done += len(batch)
        task.update(done)
    addresses = [clips.addresses[n] for n in kept]
    writer.write(
        unit,
        _joined(tokens, writer.header.grid),
        labels,
        [address.entry for address in addresses],
        [clips.source.seconds(address) for address in addresses],
        problems,
        _joined(heard, writer.header.sound.grid) if writer.header.sound else None,
    )
    return done


def _joined(parts: list[Tensor], grid: tuple[int, int, int]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty((0, *grid), dtype=torch.long)


def _batches(
    clips: _Readable, config: EncodeConfig, device: torch.device
) -> Iterator[list[Clip | Problem]]:
    loader: DataLoader[Clip | Problem] = DataLoader(
        clips,
        batch_size=config.encode.batch_size,
        num_workers=choose_workers(device.type, config.encode.workers),
        collate_fn=_as_list,
    )
    return iter(loader)


def _summary(folder: Path, manifest: TokenManifest) -> EncodeResult:
    counts = {s: sum(shard.n for shard in manifest.shards[s]) for s in SPLITS}
    if not counts["train"]:
        raise DataError(f"{folder}: no training clip could be encoded")
    held = TokenDataset(folder, "train")
    used = torch.zeros(manifest.codes, dtype=torch.bool)
    for number in range(len(held)):
        used[held[number].tokens.flatten()] = True
    problems = [
        *manifest.problems,
        *(p for s in SPLITS for x in manifest.shards[s] for p in x.problems),
    ]
    return EncodeResult(
        folder=folder,
        training_clips=counts["train"],
        validation_clips=counts["val"],
        grid=manifest.grid,
        codes_used=int(used.sum()),
        codes=manifest.codes,
        vqgan=manifest.fingerprint,
        sound_grid=manifest.sound.grid if manifest.sound else None,
        captioned=sum(bool(captions) for captions in manifest.captions.get("train", ())),
        skipped=[f"{p.path}: {p.reason}" for p in problems],
    )
