"""Videos to a token dataset, and tokens to videos."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tatscli.app.ahead import check_decoding, check_encoding
from tatscli.app.data import SPLITS, Split, VideoClips, open_data, problem_of, told_untrained
from tatscli.app.devices import choose_device, devices_notes, place
from tatscli.app.fitting import (
    clips_for,
    note_other_rate,
    noted_vqgan,
    of_videos,
    read_sound_vqgan,
    sound_grid,
)
from tatscli.app.launch import array_task, is_helper
from tatscli.app.pictures import DEFAULT_RATE
from tatscli.app.reporting import Reporter, Silent, Task
from tatscli.app.tokens import local_tokens, open_tokens
from tatscli.config.compute import Precision
from tatscli.config.encode import DecodeConfig, EncodeConfig
from tatscli.config.words import counted
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan, save_vqgan
from tatscli.core.data.bad import BadVideos
from tatscli.core.data.clips import Clip, FixedClips, Wanted
from tatscli.core.data.index import Problem, is_folder_name
from tatscli.core.data.tokens import (
    SOUND_FILE,
    VQGAN_FILE,
    Share,
    SoundTokens,
    TokenDataset,
    TokenHeader,
    TokenUnit,
    TokenWriter,
)
from tatscli.core.data.video import Frames, to_uint8, video_writer
from tatscli.core.failures import explained
from tatscli.core.files import write_whole
from tatscli.core.models.inference import vqgan_for_inference
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.ranks import Rank, each_batch, gathered
from tatscli.core.sampling.decode import WHOLE_FRAMES, decode_stream, encode_stream
from tatscli.core.signals import attached
from tatscli.core.training.placement import choose_workers
from tatscli.errors import DataError

COMPARED = 4
"""Clips that are encoded in float32 too, to say what another precision changes."""


@dataclass(frozen=True)
class EncodeResult:
    """A token dataset.

    Attributes:
        folder: Where it is.
        complete: Whether all of it is there, rather than in the hands of other processes.
        training_clips: Clips of the training split, as far as they are written; so are others.
        validation_clips: Clips of the validation split.
        grid: Latent grid (t, h, w) of a clip.
        codes_used: Codes that occur in the training split.
        codes: Codes of the codebook.
        vqgan: Fingerprint of the VQGAN.
        sound_grid: Latent grid (t, h, w) of the sound of a clip, where it was encoded.
        captioned_training_videos: Those that have a caption.
        skipped: What was left out, with the reason.
    """

    folder: Path
    complete: bool
    training_clips: int
    validation_clips: int
    grid: tuple[int, int, int]
    codes_used: int
    codes: int
    vqgan: str
    sound_grid: tuple[int, int, int] | None
    captioned_training_videos: int
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


@dataclass(frozen=True)
class Encoding:
    """What is to be encoded, by what.

    Attributes:
        vqgan: Of the videos.
        sound: The VQGAN of their sound, where that is wanted.
        videos: The dataset.
        clips: Of each split.
        header: Of the token dataset.
    """

    vqgan: TrainedVQGAN
    sound: TrainedVQGAN | None
    videos: VideoClips
    clips: dict[Split, FixedClips]
    header: TokenHeader


def open_encoding(config: EncodeConfig, reporter: Reporter) -> Encoding:
    """Open the dataset and the VQGANs that encode it.

    Raises:
        ConfigError: The clips do not fit the VQGAN's downsampling.
        DataError: Nothing can be encoded, or too much cannot be read.
    """
    vqgan = of_videos(noted_vqgan(config.encode.vqgan, reporter))
    clip, grid = clips_for(config.data, vqgan)
    sound = read_sound_vqgan(config.encode.sound_vqgan) if config.encode.sound_vqgan else None
    needs_sound = config.data.missing_sound == "skip"
    wanted = Wanted(sound=sound is not None, needs_sound=needs_sound)
    used = [found.model.config for found in (vqgan, sound) if found]
    videos = open_data(config.data, clip, reporter, wanted, *used)
    if untrained := told_untrained(videos.index, videos.dataset):
        reporter.warn(f"{untrained}; clips of it are encoded without a class")
    stride = config.encode.stride or clip.sequence_length
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
    header = _header(videos, clips, vqgan, grid, stride, heard, config.compute.precision)
    return Encoding(vqgan, sound, videos, clips, header)


def encode(config: EncodeConfig, reporter: Reporter | None = None) -> EncodeResult:
    """Encode a dataset; continues an encoding that was interrupted.

    Several processes share the work, those of one command or those of several: each takes shards
    that nobody else has.

    Raises:
        ConfigError: The clips do not fit the VQGAN's downsampling.
        DataError: Nothing can be encoded, too much cannot be read, or the folder holds other
            tokens.
    """
    reporter = reporter or Silent()
    check_encoding(config)
    options, precision = config.encode, config.compute.precision
    placement = place(config.compute)
    for text in devices_notes(config.compute, placement):
        reporter.note(text)
    work = open_encoding(config, reporter)
    vqgan, sound, videos, clips = work.vqgan, work.sound, work.videos, work.clips
    writer = TokenWriter(options.out, work.header)
    if not is_helper():
        kept = TrainedVQGAN(vqgan.model, videos.clip, videos.rate, vqgan.step)
        save_vqgan(kept, options.out / VQGAN_FILE)
        if sound:
            save_vqgan(replace(sound, judges={}), options.out / SOUND_FILE)
    missing = writer.missing()
    if not missing:
        reporter.note("all shards are there already")
    elif len(missing) < len(writer.units):
        done = len(writer.units) - len(missing)
        reporter.note(f"continuing after {done} of {len(writer.units)} shards")
    if precision != "float32" and missing and not is_helper():
        _note_changed(vqgan.model, clips, missing[0], config, reporter)
    with reporter.task("encoding", "clips", _clips_in(missing)) as task:
        encoder = Encoder(config, writer, clips, videos.bad, vqgan, sound, task)
        try:
            start = partial(encoder.start, placement.processes)
            each_batch(start, placement, _less_memory(options.batch_size))
        finally:
            writer.release()
        gathered(None)  # the others have written theirs, too
        task.update(_clips_in(missing) - _clips_in(writer.missing()))
    if left := len(writer.missing()):
        reporter.note(
            f"other processes have {left} of {counted(len(writer.units), 'shard')} in hand; the "
            "last one to end completes the dataset"
        )
    elif not is_helper():
        for problem in _undecodable(writer):
            videos.bad.add(problem)
        writer.finish()
    return _summary(writer)


@explained("a smaller --batch-size needs less")
def decode(tokens: Path, config: DecodeConfig, reporter: Reporter | None = None) -> DecodeResult:
    """Decode a token dataset, here or elsewhere, to one video a clip.

    The videos are a dataset again: those of a class in a folder of its name, captions beside them.

    Raises:
        DataError: There are no tokens, they are damaged or cannot be fetched, or another VQGAN is
            given than they were made with.
    """
    reporter = reporter or Silent()
    check_decoding(config)
    options = config.decode
    tokens = local_tokens(tokens, reporter)
    manifest = open_tokens(tokens, reporter)
    vqgan = read_vqgan(options.vqgan or tokens)
    check_fingerprint(manifest, vqgan, tokens, options.vqgan)
    device = choose_device(config.compute.device)
    vqgan_for_inference(vqgan.model, device, config.compute.precision)
    rate = vqgan.rate or DEFAULT_RATE
    chosen = [(split, TokenDataset(tokens, split)) for split in SPLITS if manifest.clips[split]]
    counts = {split: min(options.limit or len(held), len(held)) for split, held in chosen}
    size = manifest.grid[1] * vqgan.model.config.downsample[1]
    frames = manifest.grid[0] * vqgan.model.config.downsample[0]
    # Long clips are decoded one by one, in pieces.
    batch_size = options.batch_size if frames <= WHOLE_FRAMES else 1
    folders = _class_folders(chosen, counts, manifest.classes, reporter)
    written = 0
    with reporter.task("decoding", "clips", sum(counts.values())) as task:
        for split, held in chosen:
            for first in range(0, counts[split], batch_size):
                numbers = range(first, min(first + batch_size, counts[split]))
                codes = torch.stack([held[n].tokens for n in numbers]).to(device)
                for number, clip in zip(numbers, _clips(vqgan.model, codes), strict=True):
                    path, start = held.origin(number)
                    tags = {"comment": f"{path} from {start:.3f} s"}
                    stem = options.out / split / folders[held.labels[number]] / f"clip-{number:06}"
                    _write(stem, clip, rate, options.lossless, tags)
                    if captions := held.every_caption(number):
                        text = "\n".join(captions).encode("utf-8", "replace")
                        write_whole(stem.with_suffix(".txt"), text + b"\n", DataError)
                    written += 1
                    task.update(written)
    return DecodeResult(options.out, written, frames, size, rate)


def _class_folders(
    chosen: Sequence[tuple[Split, TokenDataset]],
    counts: Mapping[Split, int],
    classes: Sequence[str],
    reporter: Reporter,
) -> Sequence[str]:
    """The folder of each class, and of none the last; all empty where there are to be none.

    Names come from files and need not be safe as paths, and a video outside of any class would
    undo those of the others.
    """
    flat = [""] * (len(classes) + 1)
    bare = sum(int((held.labels[: counts[split]] < 0).sum()) for split, held in chosen)
    unfit = [name for name in classes if not is_folder_name(name)]
    if not classes:
        return flat
    if not bare and not unfit:
        return [*classes, ""]
    why = f"{bare} of {counted(sum(counts.values()), 'clip')} have none"
    if unfit:
        why = f"{unfit[0]!r} is no name of a folder"
    reporter.note(f"the videos are not in folders of their classes: {why}")
    return flat


def check_fingerprint(
    manifest: TokenHeader,
    vqgan: TrainedVQGAN,
    tokens: Path,
    given: Path | None,
    *,
    needed: bool = False,
) -> None:
    """Tokens mean something only to the VQGAN that wrote them.

    Args:
        manifest: What the tokens are.
        vqgan: What is to read them.
        tokens: Where they are.
        given: Where the VQGAN is; None for that of the tokens.
        needed: Whether it cannot be another, since a GPT was trained with it.

    Raises:
        DataError: It is another; the message has both fingerprints.
    """
    fingerprint = vqgan.model.fingerprint()
    if fingerprint != manifest.fingerprint:
        hint = "encode the videos with that one, or leave it out: the token dataset holds its own"
        if needed and given:
            hint = (
                "a GPT keeps its VQGAN; encode the videos with that: tats encode --data VIDEOS "
                f"--vqgan {quote(str(given))} --out NEW"
            )
        raise DataError(
            f"{tokens} holds tokens of VQGAN {manifest.fingerprint}, "
            f"but {given or tokens / VQGAN_FILE} is VQGAN {fingerprint}",
            hint,
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
    model: VQGAN,
    clips: Mapping[Split, FixedClips],
    unit: TokenUnit,
    config: EncodeConfig,
    reporter: Reporter,
) -> None:
    """Say how many codes of the first clips are others than in float32."""
    device, precision = choose_device(config.compute.device), config.compute.precision
    exact, used = (
        vqgan_for_inference(deepcopy(model), device, which) for which in ("float32", precision)
    )
    stop = min(unit.first + COMPARED, unit.stop)
    read = _Readable(clips)[_Stretch(unit, unit.first, stop)]
    changed = total = 0
    for clip in read.video:
        video = clip[None].to(device)
        codes, others = encode_stream(exact, video), encode_stream(used, video)
        changed, total = changed + int((codes != others).sum()), total + codes.numel()
    if total:
        reporter.note(
            f"in {precision} {changed / total:.1%} of the codes of the first {len(read.kept)} "
            "clips are others than in float32"
        )


class _Stretch(NamedTuple):
    """Clips of a shard that are read and encoded at once.

    Attributes:
        unit: The shard.
        first: The first clip, by its number in the split.
        stop: The one behind the last.
    """

    unit: TokenUnit
    first: int
    stop: int


class _Batch(NamedTuple):
    """What was read of a stretch.

    Attributes:
        stretch: Which.
        kept: Numbers of the clips that could be decoded.
        labels: Their class ids.
        video: Their frames, float32 (B, C, T, H, W).
        sound: Patches of their sound, float32 (B, 1, T, 64, 16), where it is wanted.
        problems: The other clips.
    """

    stretch: _Stretch
    kept: list[int]
    labels: list[int]
    video: Tensor
    sound: Tensor
    problems: list[Problem]


class _Readable(Dataset[_Batch]):
    """Clips by the stretch; one that cannot be decoded is a problem, not an error."""

    def __init__(self, clips: Mapping[Split, FixedClips]) -> None:
        self._clips = clips

    def __getitem__(self, stretch: _Stretch) -> _Batch:
        clips = self._clips[stretch.unit.split]
        read, problems = dict[int, Clip](), list[Problem]()
        for number, found in clips.read(range(stretch.first, stretch.stop)):
            if isinstance(found, DataError):
                path = clips.source.entries[clips.addresses[number].entry].path
                problems.append(problem_of(clips.source.root, path, found))
            else:
                read[number] = found
        video, sound = (
            torch.stack(parts) if parts else torch.empty(0)
            for parts in ([c.video for c in read.values()], [c.sound for c in read.values()])
        )
        labels = [clip.label for clip in read.values()]
        return _Batch(stretch, list(read), labels, video, sound, problems)


class _Stretches(Sampler[_Stretch]):
    """The stretches of the units that this process gets hold of, none of them across two units.

    So the content of a shard does not depend on who writes it, nor after what.
    """

    def __init__(self, units: Iterable[TokenUnit], size: int) -> None:
        self._units, self._size = units, size

    def __iter__(self) -> Iterator[_Stretch]:
        for unit in self._units:
            for first in range(unit.first, unit.stop, self._size):
                yield _Stretch(unit, first, min(first + self._size, unit.stop))


class _Shard:
    """What is known of a shard under way, clip by clip in order."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self.sound: list[Tensor] = []
        self.kept: list[int] = []
        self.labels: list[int] = []
        self.problems: list[Problem] = []


class Encoder:
    """Encodes and writes in one process what others read beside it."""

    def __init__(
        self,
        config: EncodeConfig,
        writer: TokenWriter,
        clips: Mapping[Split, FixedClips],
        bad: BadVideos,
        vqgan: TrainedVQGAN,
        sound: TrainedVQGAN | None,
        task: Task,
    ) -> None:
        self._config, self._writer, self._clips, self._bad = config, writer, clips, bad
        self._vqgan, self._sound, self._task = vqgan, sound, task
        self._shard = _Shard()
        self._to_write = _clips_in(writer.missing())
        self._written = 0

    def start(
        self, processes: int, rank: Rank
    ) -> tuple[Iterable[_Batch], Callable[[_Batch], None]]:
        """The batches of one of so many processes of a machine, and what it does with each."""
        self._device, precision = rank.device, self._config.compute.precision
        for trained in filter(None, (self._vqgan, self._sound)):
            vqgan_for_inference(trained.model, rank.device, precision)
        options, (task, tasks) = self._config.encode, array_task()
        share = Share(task * rank.world + rank.number, tasks * rank.world)
        batches: DataLoader[_Batch] = DataLoader(
            _Readable(self._clips),
            sampler=_Stretches(self._writer.claims(share), options.batch_size),
            batch_size=None,
            num_workers=choose_workers(rank.device.type, options.workers, processes),
            worker_init_fn=attached,
            pin_memory=rank.device.type == "cuda",
        )
        return batches, self._encode

    def _encode(self, batch: _Batch) -> None:
        shard, (unit, _, stop) = self._shard, batch.stretch
        for problem in batch.problems:
            if self._config.data.strict:
                raise DataError(f"{problem.path}: {problem.reason}", "leave out --strict")
            self._bad.add(problem)
        shard.problems += batch.problems
        shard.kept += batch.kept
        shard.labels += batch.labels
        if batch.kept:
            video = batch.video.to(self._device, non_blocking=True)
            shard.tokens.append(encode_stream(self._vqgan.model, video))
            if self._sound:
                patches = batch.sound.to(self._device, non_blocking=True)
                shard.sound.append(self._sound.sound_codes(patches))
        self._task.update(self._written + stop - unit.first)
        if stop == unit.stop:
            self._write(unit)
            # What others wrote counts, too.
            self._written = self._to_write - _clips_in(self._writer.missing())
            self._task.update(self._written)

    def _write(self, unit: TokenUnit) -> None:
        shard, header, clips = self._shard, self._writer.header, self._clips[unit.split]
        addresses = [clips.addresses[number] for number in shard.kept]
        self._writer.write(
            unit,
            _joined(shard.tokens, header.grid),
            shard.labels,
            [address.entry for address in addresses],
            [clips.source.seconds(address) for address in addresses],
            shard.problems,
            _joined(shard.sound, header.sound.grid) if header.sound else None,
        )
        self._shard = _Shard()


def _less_memory(batch: int) -> str:
    """The options with which encoding so many clips at once would need less."""
    if batch == 1:
        return "--precision bf16 needs about half, and a smaller --sequence-length less"
    return f"--batch-size {batch // 2} needs about half, and gives the same tokens"


def _clips_in(units: Iterable[TokenUnit]) -> int:
    return sum(unit.stop - unit.first for unit in units)


def _joined(parts: list[Tensor], grid: tuple[int, int, int]) -> Tensor:
    # Only now from the device, which each batch would have been waited for on.
    return torch.cat(parts).cpu() if parts else torch.empty((0, *grid), dtype=torch.long)


def _undecodable(writer: TokenWriter) -> list[Problem]:
    """The clips that could not be decoded, of all shards that are written."""
    return [problem for shard in writer.written().values() for problem in shard.problems]


def _summary(writer: TokenWriter) -> EncodeResult:
    header, written = writer.header, writer.written()
    counts = {s: sum(shard.n for u, shard in written.items() if u.split == s) for s in SPLITS}
    complete = len(written) == len(writer.units)
    if complete and not counts["train"]:
        raise DataError(f"{writer.folder}: no training clip could be encoded")
    used = np.zeros(header.codes, bool)
    for unit in () if is_helper() else written:
        if unit.split == "train":
            with safe_open(writer.folder / f"{unit.name}.safetensors", "numpy") as shard:
                used[shard.get_tensor("tokens").ravel()] = True
    problems = [*header.problems, *_undecodable(writer)]
    return EncodeResult(
        folder=writer.folder,
        complete=complete,
        training_clips=counts["train"],
        validation_clips=counts["val"],
        grid=header.grid,
        codes_used=int(used.sum()),
        codes=header.codes,
        vqgan=header.fingerprint,
        sound_grid=header.sound.grid if header.sound else None,
        captioned_training_videos=sum(map(bool, header.captions.get("train", ()))),
        skipped=[f"{p.path}: {p.reason}" for p in problems],
    )
