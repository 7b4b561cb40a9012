"""Token datasets: clips encoded once, as shards of codes that are mapped into memory.

n clips of a shard, t h w latent positions. A shard `train-00000.safetensors` holds `tokens` uint16
(n, t, h, w), `label` int64 (n,), `video` int32 (n,) into the manifest's list of videos, `start`
float64 (n,) in seconds, and, where the sound was encoded too, `sound` uint16 (n, t', h', w'). It
counts once its record `train-00000.json` is there, which is written after it; `manifest.json` says
from the beginning what is being written and, at the end, that it is complete. Every file is written
under a temporary name, synced and renamed, so an interrupted one is never read, and several
processes may write shards of one dataset.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.utils.data import Dataset

from tatscli.config.data import ClipConfig
from tatscli.core.data.clips import FRAMES, NOTHING, Draw, Wanted
from tatscli.core.data.index import Problem, Split
from tatscli.core.files import UNFINISHED, unwritable, written_whole
from tatscli.errors import DataError

FORMAT = 2
"""Since 2, captions and sound."""
MANIFEST = "manifest.json"
VQGAN_FILE, SOUND_FILE = "vqgan.ckpt", "sound.ckpt"
"""The VQGANs that a token dataset holds."""
MOST_CODES = 65536
"""Codes that uint16 can number."""

_KIND = "tats tokens"
_REPAIR = "run the same 'tats encode' with a new --out folder"
_LEAST_CLIPS = 256  # of a shard: what an interruption may cost
_MOST_SHARDS = 1024  # of a split, beyond which shards grow


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SoundTokens(_Record):
    """The sound in a token dataset.

    Attributes:
        fingerprint: Identifies the VQGAN of the sound.
        codes: Codes of its codebook.
        grid: Codes of the sound of a clip: t', h', w'.
        missing: What became of videos without sound.
    """

    fingerprint: str
    codes: int
    grid: tuple[int, int, int]
    missing: Literal["silence", "skip"]


class TokenHeader(_Record):
    """What determines the content of a token dataset.

    Attributes:
        fingerprint: Identifies the VQGAN.
        codes: Codes of its codebook.
        grid: Codes of a clip: t, h, w.
        clip: How clips were cut.
        stride: Frames from the start of one clip to the next.
        classes: Names of the classes by id.
        videos: Paths of the videos of each split; shards refer to them by number.
        clips: Clips of each split.
        problems: Videos that were left out.
        captions: Captions of the videos of each split, in their order; empty where there are none.
        sound: What the sound was encoded with, if it was.
        precision: Arithmetic of the VQGANs that encoded: ``float32`` or ``bf16``.
    """

    fingerprint: str
    codes: int
    grid: tuple[int, int, int]
    clip: ClipConfig
    stride: int
    classes: tuple[str, ...]
    videos: dict[Split, tuple[str, ...]]
    clips: dict[Split, int]
    problems: tuple[Problem, ...] = ()
    captions: dict[Split, tuple[tuple[str, ...], ...]] = {}
    sound: SoundTokens | None = None
    precision: str = "float32"


class Shard(_Record):
    """The record of a shard that is complete.

    Attributes:
        n: Clips in it.
        bytes: Size of its file.
        sha256: Checksum of its file.
        problems: Clips of its range that could not be encoded.
    """

    n: int
    bytes: int
    sha256: str
    problems: tuple[Problem, ...] = ()


class TokenManifest(TokenHeader):
    """What a token dataset holds.

    Attributes:
        kind: Tells the file from other JSON.
        version: Of the format.
        complete: Whether all shards are there.
        shards: Records of the shards of each split, in order; none before it is complete.
    """

    kind: Literal["tats tokens"] = "tats tokens"
    version: int = FORMAT
    complete: bool = False
    shards: dict[Split, tuple[Shard, ...]] = {}


@dataclass(frozen=True)
class TokenUnit:
    """Work that makes one shard: clips `first` to `stop` (excluded) of a split, in order."""

    split: Split
    number: int
    first: int
    stop: int

    @property
    def name(self) -> str:
        """The shard's file, without suffix."""
        return _shard_name(self.split, self.number)


class TokenWriter:
    """Writes a token dataset shard by shard; started anew, it goes on where it was interrupted.

    Args:
        folder: The dataset: new, empty, or one begun with the same header.
        header: What is written.

    Raises:
        DataError: The folder holds something else, in particular tokens of another VQGAN or of
            other clips, or there are more codes than uint16 can number.
    """

    def __init__(self, folder: Path, header: TokenHeader) -> None:
        if header.codes > MOST_CODES:
            raise DataError(
                f"{folder}: a codebook of {header.codes} codes, token files number {MOST_CODES}",
                "train the VQGAN with a smaller --n-codes",
            )
        self.folder = folder
        self.header = header
        self.units = tuple(
            unit for split, clips in header.clips.items() for unit in _units(split, clips)
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        except OSError as error:
            raise unwritable(folder, error, DataError) from error
        if MANIFEST in present:
            _refuse_other(folder, _parse_manifest(folder), header)
        elif present - {VQGAN_FILE, SOUND_FILE}:
            raise DataError(
                f"{folder} is not empty and no token dataset", "choose another folder with --out"
            )
        else:
            _write(folder / MANIFEST, _json(TokenManifest(**dict(header))))

    def missing(self) -> list[TokenUnit]:
        """The units that are still to be written; processes may divide them among themselves."""
        return [unit for unit in self.units if _shard(self.folder, unit.name) is None]

    def write(
        self,
        unit: TokenUnit,
        tokens: Tensor,
        labels: Sequence[int],
        videos: Sequence[int],
        starts: Sequence[float],
        problems: Sequence[Problem] = (),
        sound: Tensor | None = None,
    ) -> None:
        """Writes one shard and its record.

        Args:
            unit: Which; its clips in order, without those in `problems`.
            tokens: Codes, integers (n, t, h, w).
            labels: Class ids.
            videos: Numbers of the clips' videos in the header's list for the split.
            starts: Presentation times of the clips' first frames in seconds.
            problems: Clips that could not be encoded.
            sound: Codes of the sound, integers (n, t', h', w'), where the header has any.

        Raises:
            DataError: The disk is full or cannot be written.
        """
        if {len(tokens), len(labels), len(videos)} != {len(starts)}:
            raise ValueError(f"{len(tokens)} clips, {len(labels)} labels, {len(videos)} videos")
        columns: dict[str, npt.NDArray[Any]] = {
            "tokens": _as_stored(tokens, len(tokens), self.header.grid, self.header.codes),
            "label": np.array(labels, np.int64),
            "video": np.array(videos, np.int32),
            "start": np.array(starts, np.float64),
        }
        if (heard := self.header.sound) is not None:
            assert sound is not None, "the header announces sound"
            columns["sound"] = _as_stored(sound, len(tokens), heard.grid, heard.codes)
        content = save(columns)
        record = Shard(
            n=len(tokens),
            bytes=len(content),
            sha256=sha256(content).hexdigest(),
            problems=tuple(problems),
        )
        path = self.folder / unit.name
        _write(path.with_suffix(".safetensors"), content)
        _write(path.with_suffix(".json"), _json(record))

    def finish(self) -> TokenManifest:
        """Declares the dataset complete; all units must have been written.

        Raises:
            DataError: The manifest cannot be written.
        """
        shards: dict[Split, tuple[Shard, ...]] = dict.fromkeys(self.header.clips, ())
        for unit in self.units:
            record = _shard(self.folder, unit.name)
            if record is None:
                raise ValueError(f"shard {unit.name} is not written")
            shards[unit.split] += (record,)
        manifest = TokenManifest(**dict(self.header), complete=True, shards=shards)
        _write(self.folder / MANIFEST, _json(manifest))
        for path in self.folder.glob(UNFINISHED):
            path.unlink(missing_ok=True)
        return manifest


class TokenClip(NamedTuple):
    """A clip's codes, or a batch of them once collated.

    Attributes:
        tokens: int64 (t, h, w).
        label: Class id, -1 without classes.
        text: Ids of its caption, int64 (tokens,), where they are wanted.
        sound: Codes of its sound, int64 (t', h', w'), where they are wanted.
    """

    tokens: Tensor
    label: int
    text: Tensor = NOTHING
    sound: Tensor = NOTHING


class TokenDataset(Dataset[TokenClip]):
    """The encoded clips of one split.

    Items are addressed by number, or by the (slot, number in the run) of `ConsumedBatchSampler`,
    where the slot is the clip's number.

    Args:
        folder: A complete token dataset.
        split: Training or validation.
        wanted: What is read beside the codes.

    Attributes:
        manifest: What the dataset holds.
        labels: Class ids of the clips, int64 (clips,).

    Raises:
        DataError: The dataset is incomplete or damaged, or the split is empty.
    """

    def __init__(self, folder: Path, split: Split, wanted: Wanted = FRAMES) -> None:
        self.manifest = read_manifest(folder)
        self.wanted = wanted
        if wanted.sound and self.manifest.sound is None:
            raise DataError(
                f"{folder}: its sound was not encoded", "encode again with --sound-vqgan RUN"
            )
        self.captions = self.manifest.captions.get(split, ())
        self.videos = self.manifest.videos.get(split, ())
        records = self.manifest.shards.get(split, ())
        self.paths = [
            folder / f"{_shard_name(split, number)}.safetensors" for number in range(len(records))
        ]
        self.ends = np.cumsum([record.n for record in records], dtype=np.int64)
        if not records or not self.ends[-1]:
            raise DataError(f"{folder}: no clips in its {split} split")
        columns = [
            _columns(path, record, self.manifest)
            for path, record in zip(self.paths, records, strict=True)
        ]
        self.labels, self._video, self._start = (
            np.concatenate(parts) for parts in zip(*columns, strict=True)
        )
        self._slices: dict[tuple[str, int], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps do not travel to worker processes; each opens its own.
        return {**self.__dict__, "_slices": {}}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, item: int | Draw) -> TokenClip:
        """Reads one clip."""
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | Draw]) -> list[TokenClip]:
        """Reads a batch of clips."""
        return [self._clip(*((item, 0) if isinstance(item, int) else item)) for item in items]

    def origin(self, number: int) -> tuple[str, float]:
        """The path of a clip's video and the presentation time of its first frame in seconds."""
        return self.videos[self._video[number]], float(self._start[number])

    def caption(self, number: int, draw: int = 0) -> str:
        """What is said about a clip; of several captions, each epoch takes another."""
        captions = self.captions[self._video[number]] if self.captions else ()
        return captions[(number + draw // len(self)) % len(captions)] if captions else ""

    def _clip(self, number: int, draw: int) -> TokenClip:
        shard = int(np.searchsorted(self.ends, number, side="right"))
        place = number - (int(self.ends[shard - 1]) if shard else 0)
        text = self.wanted.text
        return TokenClip(
            self._codes("tokens", shard, place),
            int(self.labels[number]),
            text(self.caption(number, draw)) if text else NOTHING,
            self._codes("sound", shard, place) if self.wanted.sound else NOTHING,
        )

    def _codes(self, column: str, shard: int, place: int) -> Tensor:
        if (column, shard) not in self._slices:
            file: Any = safe_open(self.paths[shard], "numpy")
            self._slices[column, shard] = file.get_slice(column)
        codes = self._slices[column, shard][place : place + 1][0]
        return torch.from_numpy(codes.astype(np.int64))


def is_token_dataset(path: Path) -> bool:
    """Whether a folder is a token dataset, complete or not."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == _KIND


def read_manifest(path: Path) -> TokenManifest:
    """Reads what a token dataset holds.

    Raises:
        DataError: It is absent, damaged, incomplete, or of a newer format.
    """
    manifest = _parse_manifest(path)
    if not manifest.complete:
        units = [unit for split, clips in manifest.clips.items() for unit in _units(split, clips)]
        done = sum(_shard(path, unit.name) is not None for unit in units)
        raise DataError(
            f"{path}: incomplete, {done} of {len(units)} shards are written",
            "run the same 'tats encode' again; it goes on where it stopped",
        )
    return manifest


def verify(folder: Path) -> tuple[Problem, ...]:
    """Compares every shard of a complete token dataset with its checksum.

    Returns:
        The shards that differ; none if all is well.

    Raises:
        DataError: There is no complete token dataset.
    """
    problems = []
    for split, records in read_manifest(folder).shards.items():
        for number, record in enumerate(records):
            name = f"{_shard_name(split, number)}.safetensors"
            try:
                with (folder / name).open("rb") as file:
                    found = file_digest(file, "sha256").hexdigest()
            except OSError as error:
                problems.append(Problem(name, error.strerror or str(error)))
                continue
            if found != record.sha256:
                reason = f"damaged: its sha256 is {found[:12]}..., not {record.sha256[:12]}..."
                problems.append(Problem(name, reason))
    return tuple(problems)


def _shard_name(split: Split, number: int) -> str:
    return f"{split}-{number:05d}"


def _units(split: Split, clips: int) -> list[TokenUnit]:
    size = max(_LEAST_CLIPS, -(-clips // _MOST_SHARDS))
    return [
        TokenUnit(split, number, first, min(first + size, clips))
        for number, first in enumerate(range(0, clips, size))
    ]


def _shard(folder: Path, name: str) -> Shard | None:
    """The record of a shard, if both are there."""
    path = folder / name
    try:
        record = Shard.model_validate_json(path.with_suffix(".json").read_bytes())
        size = path.with_suffix(".safetensors").stat().st_size
    except (FileNotFoundError, ValidationError):
        return None
    return record if size == record.bytes else None


def _as_stored(
    codes: Tensor, clips: int, grid: tuple[int, int, int], limit: int
) -> npt.NDArray[np.uint16]:
    """Codes of so many clips as they are written, once they are found to be codes."""
    found = codes.cpu().numpy()
    if found.shape != (clips, *grid):
        raise ValueError(f"tokens {found.shape}, expected {(clips, *grid)}")
    if found.size and (found.min() < 0 or found.max() >= limit):
        raise ValueError(f"codes {found.min()}..{found.max()} of {limit}")
    return np.ascontiguousarray(found, np.uint16)


def _columns(
    path: Path, record: Shard, manifest: TokenManifest
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    grids = {"tokens": manifest.grid}
    if manifest.sound:
        grids["sound"] = manifest.sound.grid
    try:
        with safe_open(path, "numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in grids}
            columns = tuple(file.get_tensor(name) for name in ("label", "video", "start"))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}", _REPAIR) from error
    for name, grid in grids.items():
        if shapes[name] != (record.n, *grid):
            raise DataError(
                f"{path}: {name} of shape {shapes[name]}, not {(record.n, *grid)}", _REPAIR
            )
    return columns[0], columns[1], columns[2]


def _parse_manifest(folder: Path) -> TokenManifest:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("kind") != _KIND:
            raise DataError(f"{path}: not the manifest of a token dataset")
        if content.get("version", 0) > FORMAT:
            raise DataError(
                f"{path}: format {content['version']}, this version of tats reads up to {FORMAT}",
                "update tats",
            )
        return TokenManifest.model_validate(content)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no token dataset, {MANIFEST} is not there", "'tats encode' writes one"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {error}", _REPAIR) from error


def _refuse_other(folder: Path, present: TokenManifest, header: TokenHeader) -> None:
    for field in TokenHeader.model_fields:
        was, now = getattr(present, field), getattr(header, field)
        if was != now:
            if field == "sound":
                was, now = (
                    f"VQGAN {held.fingerprint}, missing sound: {held.missing}" if held else "none"
                    for held in (was, now)
                )
            named = "VQGAN" if field == "fingerprint" else field
            raise DataError(
                f"{folder} holds tokens of another {named}: {_brief(was)}, this is {_brief(now)}",
                "choose another folder with --out",
            )


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _json(record: BaseModel) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    with written_whole(path, DataError, sync=True) as partial:
        partial.write_bytes(content)
