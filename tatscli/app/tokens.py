"""Token datasets as a whole: what they hold, whether they are intact, several as one."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel

from tatscli.app.reporting import Reporter, Silent
from tatscli.config.tokens import MergeConfig, VerifyConfig
from tatscli.config.words import counted
from tatscli.core.data.clips import Wanted
from tatscli.core.data.index import Problem, Split, cache_folder
from tatscli.core.data.remote import fetch_tokens, remote_manifest
from tatscli.core.data.tokens import (
    REWRITING,
    SoundTokens,
    TokenDataset,
    TokenHeader,
    TokenManifest,
    TokenUnit,
    TokenWriter,
    describe,
    mending,
    read_manifest,
    repair,
    shard_count,
    shards_of,
    verify,
    verify_vqgan,
    vqgans_of,
)
from tatscli.core.files import written_whole
from tatscli.core.paths import remote_url
from tatscli.errors import ConfigError, DataError

_ALIKE = {
    "fingerprint": "--vqgan",
    "codes": "--vqgan",
    "grid": "--resolution and --sequence-length",
    "clip": "--resolution, --sequence-length, --frame-rate and --sample-every-n-frames",
    "stride": "--stride",
    "sound": "--sound-vqgan and --missing-sound",
    "precision": "--precision",
}
"""What datasets that are merged must agree in, and the options of tats encode that decide it."""
_WORDS = {"fingerprint": "VQGAN", "missing": "--missing-sound"}
"""How a field is called where its name is not what users know."""


@dataclass(frozen=True)
class TokenInfo:
    """What a token dataset holds.

    Attributes:
        tokens: Its folder or address.
        complete: Whether all of it is written.
        shards: Files of clips once it is complete.
        shards_written: Those that are there.
        bytes: Their size.
        clips: Clips of each split, as far as they are written.
        videos: Videos of each split.
        captioned: Those of each split that have a caption.
        classes: Names of the classes.
        frames: Frames of a clip.
        resolution: Side of the frames in pixels.
        frame_rate: Frames per second at which the videos were read; None for their own.
        stride: Frames from the start of one clip to the next.
        grid: Codes of a clip: t, h, w.
        codes: Codes of the codebook.
        vqgan: Fingerprint of the VQGAN.
        precision: Arithmetic of the VQGAN when it encoded.
        sound: Codes of the sound of a clip and what they were made with, where there are any.
        sources: Checksum of the list of videos, with their captions.
        format: Version of the format.
        tats: Version of tats that wrote it, where that is known.
        problems: What was left out.
    """

    tokens: str
    complete: bool
    shards: int
    shards_written: int
    bytes: int
    clips: dict[Split, int]
    videos: dict[Split, int]
    captioned: dict[Split, int]
    classes: tuple[str, ...]
    frames: int
    resolution: int
    frame_rate: float | None
    stride: int
    grid: tuple[int, int, int]
    codes: int
    vqgan: str
    precision: str
    sound: dict[str, object] | None
    sources: str
    format: int
    tats: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class VerifyResult:
    """Whether a token dataset is intact.

    Attributes:
        folder: Where it is.
        complete: Whether all of it is written.
        shards: Files of clips that were compared with their checksums.
        bytes: Their size.
        intact: Whether all that is written is as it was written.
        damaged: The files that are missing or damaged.
        repaired: Whether these were dropped, to be written again.
    """

    folder: Path
    complete: bool
    shards: int
    bytes: int
    intact: bool
    damaged: tuple[Problem, ...]
    repaired: bool


@dataclass(frozen=True)
class MergeResult:
    """A token dataset made of several.

    Attributes:
        folder: Where it is.
        training_clips: Clips of the training split.
        validation_clips: Clips of the validation split.
        videos: Videos of both splits.
        classes: Names of the classes.
        written: Shards that were written; none where it was complete already.
    """

    folder: Path
    training_clips: int
    validation_clips: int
    videos: int
    classes: tuple[str, ...]
    written: int


def local_tokens(tokens: Path, reporter: Reporter) -> Path:
    """The folder of a token dataset on this machine; one that is elsewhere is fetched.

    Raises:
        DataError: It cannot be fetched.
    """
    url = remote_url(tokens)
    if url is None:
        return tokens
    with reporter.task("fetching tokens", "bytes") as task:
        return fetch_tokens(url, cache_folder(), task.update)


def open_tokens(folder: Path, reporter: Reporter | None = None) -> TokenManifest:
    """What a token dataset holds, once all its files are found to be as they were written.

    Raises:
        DataError: It is absent, incomplete or damaged; the message names the first bad file.
    """
    manifest = read_manifest(folder)
    if damaged := _damaged(folder, manifest, reporter or Silent()):
        raise DataError(f"{folder / damaged[0].path}: {damaged[0].reason}", mending(folder))
    return manifest


def token_info(tokens: Path) -> TokenInfo:
    """What a token dataset holds; of one that is elsewhere, only the manifest is fetched.

    Raises:
        DataError: It is absent, or its manifest is damaged.
    """
    if url := remote_url(tokens):
        manifest = remote_manifest(url)
        shards = shards_of(tokens, manifest)
    else:
        manifest, shards = describe(tokens)
    clip, sound = manifest.clip, manifest.sound
    sources = str([manifest.videos, manifest.captions]).encode("utf-8", "surrogateescape")
    return TokenInfo(
        tokens=url or str(tokens),
        complete=manifest.complete,
        shards=shard_count(manifest),
        shards_written=len(shards),
        bytes=sum(shard.bytes for shard in shards.values()),
        clips={
            split: sum(s.n for name, s in shards.items() if name.startswith(f"{split}-"))
            for split in manifest.clips
        },
        videos={split: len(videos) for split, videos in manifest.videos.items()},
        captioned={split: sum(map(bool, held)) for split, held in manifest.captions.items()},
        classes=manifest.classes,
        frames=clip.frames,
        resolution=clip.resolution,
        frame_rate=clip.frame_rate or None,
        stride=manifest.stride,
        grid=manifest.grid,
        codes=manifest.codes,
        vqgan=manifest.fingerprint,
        precision=manifest.precision,
        sound=sound.model_dump() if sound else None,
        sources=sha256(sources).hexdigest()[:16],
        format=manifest.version,
        tats=manifest.tats,
        problems=(*manifest.problems, *(p for s in shards.values() for p in s.problems)),
    )


def verify_tokens(
    tokens: Path, config: VerifyConfig, reporter: Reporter | None = None
) -> VerifyResult:
    """Compare every file of a token dataset with its checksum, as far as it is written.

    Raises:
        DataError: It is absent or cannot be fetched, its manifest is damaged, or it is to be
            repaired and cannot be written.
    """
    reporter = reporter or Silent()
    folder = local_tokens(tokens, reporter)
    manifest, shards = describe(folder)
    damaged = _damaged(folder, manifest, reporter)
    if repairs := config.verify.repair and bool(damaged):
        repair(folder, damaged)
    return VerifyResult(
        folder=folder,
        complete=manifest.complete and not repairs,
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards.values()),
        intact=not damaged,
        damaged=damaged,
        repaired=repairs,
    )


def require_usable(found: VerifyResult) -> None:
    """Say what mends a token dataset that is not complete and intact.

    Raises:
        DataError: It is not.
    """
    if found.damaged:
        first, more = found.damaged[0], len(found.damaged) - 1
        others = f", and {counted(more, 'other file')}" if more else ""
        raise DataError(
            f"{found.folder / first.path}: {first.reason}{others}",
            REWRITING if found.repaired else mending(found.folder),
        )
    read_manifest(found.folder)


def merge_tokens(
    sources: Sequence[Path], config: MergeConfig, reporter: Reporter | None = None
) -> MergeResult:
    """Write several token datasets as one: their clips in order, their classes united by name.

    Goes on where the same merging was interrupted.

    Args:
        sources: Token datasets of the same VQGAN, geometry and precision.
        config: Settings.
        reporter: Told about progress.

    Raises:
        ConfigError: There are fewer than two datasets, or one twice.
        DataError: One is absent, incomplete, damaged or of another kind than the first; or the
            folder holds other tokens, or cannot be written.
    """
    reporter, out = reporter or Silent(), config.merge.out
    if len(sources) < 2:
        raise ConfigError(
            f"{len(sources)} token dataset given, merging takes two or more",
            "name two or more: tats tokens merge TOKENS TOKENS --out NEW",
        )
    folders = [local_tokens(path, reporter) for path in sources]
    places = [folder.resolve() for folder in folders]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise ConfigError(f"{twice} is given twice", "its clips would be there twice")
    manifests = [open_tokens(folder, reporter) for folder in folders]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        _refuse_another_kind(folders[0], manifests[0], folder, manifest)
    header = _united(manifests)
    parts = {split: _Parts(split, folders, manifests, header) for split in header.videos}
    _warn_of_both_splits(parts, reporter)
    writer = TokenWriter(out, header)
    for name in vqgans_of(header):
        if not (out / name).is_file():
            with written_whole(out / name, DataError, sync=True) as partial:
                shutil.copyfile(folders[0] / name, partial)
    missing = writer.missing()
    with reporter.task("merging", "clips", sum(u.stop - u.first for u in missing)) as task:
        done = 0
        for unit in missing:
            parts[unit.split].copy(writer, unit)
            task.update(done := done + unit.stop - unit.first)
    writer.finish()
    return MergeResult(
        folder=out,
        training_clips=header.clips.get("train", 0),
        validation_clips=header.clips.get("val", 0),
        videos=sum(map(len, header.videos.values())),
        classes=header.classes,
        written=len(missing),
    )


def _damaged(folder: Path, manifest: TokenManifest, reporter: Reporter) -> tuple[Problem, ...]:
    with reporter.task("checking tokens", "bytes") as task:
        shards = verify(folder, task.update)
    vqgans = (verify_vqgan(folder / name, found) for name, found in vqgans_of(manifest).items())
    return (*shards, *filter(None, vqgans))


def _refuse_another_kind(
    first: Path, model: TokenManifest, folder: Path, manifest: TokenManifest
) -> None:
    for field, options in _ALIKE.items():
        wanted, found = getattr(model, field), getattr(manifest, field)
        if wanted != found:
            raise DataError(
                f"{first} and {folder} differ in {_WORDS.get(field, field)}: "
                f"{_said(wanted, found)} and {_said(found, wanted)}",
                f"tats encode the videos of one again, with the {options} of the other",
            )


def _said(value: object, other: object) -> str:
    """A value; of a record, what the other one has otherwise."""
    if isinstance(value, BaseModel) and isinstance(other, BaseModel):
        unlike = [(name, own) for name, own in value if own != getattr(other, name)]
        return ", ".join(
            f"{_WORDS.get(name, name.replace('_', ' '))} {own}" for name, own in unlike
        )
    return f"VQGAN {value.fingerprint}" if isinstance(value, SoundTokens) else str(value)


def _united(manifests: Sequence[TokenManifest]) -> TokenHeader:
    """What the clips of several datasets are, as one."""
    splits = dict.fromkeys(split for manifest in manifests for split in manifest.clips)
    shards = [shard for m in manifests for held in m.shards.values() for shard in held]
    captions: dict[Split, tuple[tuple[str, ...], ...]] = {
        split: tuple(
            some
            for m in manifests
            for some in m.captions.get(split, ((),) * len(m.videos.get(split, ())))
        )
        for split in splits
    }
    return TokenHeader(
        **{field: getattr(manifests[0], field) for field in _ALIKE},
        classes=tuple(dict.fromkeys(name for m in manifests for name in m.classes)),
        videos={s: tuple(v for m in manifests for v in m.videos.get(s, ())) for s in splits},
        clips={s: sum(x.n for m in manifests for x in m.shards.get(s, ())) for s in splits},
        problems=(
            *(problem for m in manifests for problem in m.problems),
            *(problem for shard in shards for problem in shard.problems),
        ),
        captions=captions if any(m.captions for m in manifests) else {},
    )


def _warn_of_both_splits(parts: Mapping[Split, "_Parts"], reporter: Reporter) -> None:
    """Name the videos of which the same stretch is in both splits, as far as their clips say."""
    if len(parts) < 2:
        return
    trained: dict[str, list[tuple[float, float]]] = {}
    for path, first, last in parts["train"].stretches():
        trained.setdefault(path, []).append((first, last))
    both = sorted(
        {
            path
            for path, first, last in parts["val"].stretches()
            if any(first <= other[1] and other[0] <= last for other in trained.get(path, ()))
        }
    )
    if both:
        reporter.warn(
            f"{counted(len(both), 'video')} in both the training and the validation split, "
            f"{both[0]} first; if they are the same, validation says too little"
        )


class _Parts:
    """A split of several datasets, read as one."""

    def __init__(
        self,
        split: Split,
        folders: Sequence[Path],
        manifests: Sequence[TokenManifest],
        header: TokenHeader,
    ) -> None:
        wanted = Wanted(sound=header.sound is not None)
        self._parts: list[TokenDataset] = []
        self._classes: list[npt.NDArray[np.int64]] = []
        self._videos: list[int] = []
        videos = 0
        for folder, manifest in zip(folders, manifests, strict=True):
            if sum(shard.n for shard in manifest.shards.get(split, ())):
                self._parts.append(TokenDataset(folder, split, wanted))
                # What has no class, -1, finds the last one.
                labels = [*map(header.classes.index, manifest.classes), -1]
                self._classes.append(np.array(labels, np.int64))
                self._videos.append(videos)
            videos += len(manifest.videos.get(split, ()))

    def stretches(self) -> Iterator[tuple[str, float, float]]:
        """The videos, or parts of videos, and when the first and the last clip of each start."""
        for part in self._parts:
            first, last = np.full((2, len(part.videos)), [[np.inf], [-np.inf]])
            np.minimum.at(first, part.numbers, part.starts)
            np.maximum.at(last, part.numbers, part.starts)
            yield from zip(part.videos, first.tolist(), last.tolist(), strict=True)

    def copy(self, writer: TokenWriter, unit: TokenUnit) -> None:
        """Write one shard."""
        clips, labels, videos, starts = [], [], [], []
        for part, classes, before, numbers in self._overlaps(unit):
            clips += part.__getitems__(numbers)
            labels += classes[part.labels[numbers]].tolist()
            videos += (part.numbers[numbers] + before).tolist()
            starts += part.starts[numbers].tolist()
        sound = torch.stack([clip.sound for clip in clips]) if writer.header.sound else None
        tokens = torch.stack([clip.tokens for clip in clips])
        writer.write(unit, tokens, labels, videos, starts, sound=sound)

    def _overlaps(
        self, unit: TokenUnit
    ) -> Iterator[tuple[TokenDataset, npt.NDArray[np.int64], int, range]]:
        """The clips of a unit, by dataset, with its classes and the videos before its own."""
        start = 0
        for part, classes, before in zip(self._parts, self._classes, self._videos, strict=True):
            numbers = range(max(unit.first - start, 0), min(unit.stop - start, len(part)))
            if numbers:
                yield part, classes, before, numbers
            start += len(part)
