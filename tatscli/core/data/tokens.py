"""Token datasets: clips encoded once, as shards of codes that are mapped into memory.

n clips of a shard, t h w latent positions. A shard `train-00000.safetensors` holds `tokens` uint16
(n, t, h, w), `label` int64 (n,), `video` int32 (n,) into the manifest's list of videos, `start`
float64 (n,) in seconds, and, where the sound was encoded too, `sound` uint16 (n, t', h', w'). It
counts once its record `train-00000.json` is there, which is written after it; `manifest.json` says
from the beginning what is being written and, at the end, that it is complete. Every file is written
under a temporary name, synced and renamed, so an interrupted one is never read, and several
processes may write shards of one dataset. Records hold checksums of the shards, and so does the
manifest, with one of itself.
"""

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.utils.data import Dataset

from tatscli import __version__
from tatscli.config.data import ClipConfig
from tatscli.config.words import counted
from tatscli.core.checkpoint import read_vqgan, require_intact
from tatscli.core.data.clips import FRAMES, NOTHING, Draw, Wanted
from tatscli.core.data.index import Problem, Progress, Split
from tatscli.core.files import UNFINISHED, unwritable, write_whole
from tatscli.errors import CheckpointError, DataError

FORMAT = 3
"""Since 2, captions and sound; since 3, a checksum of the manifest, and who wrote it."""
MANIFEST = "manifest.json"
VQGAN_FILE, SOUND_FILE = "vqgan.ckpt", "sound.ckpt"
"""The VQGANs that a token dataset holds."""
MOST_CODES = 65536
"""Codes that uint16 can number."""
REWRITING = (
    "run the command that wrote or fetched the dataset again, such as 'tats encode'; it writes "
    "what is missing"
)
"""What completes a dataset that files are missing from."""

Unit = TypeVar("Unit")

STREAM_KIND = "tats stream"
"""What the manifest of a stream says it is."""
_KIND = "tats tokens"
_SEALED = 3  # the format since which manifests have checksums
_ANEW = "run the same 'tats encode' with a new --out folder"
_THREADS = 8  # that read shards to check them
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
        tats: Version of tats that wrote it; empty where that is not known.
        complete: Whether all shards are there.
        shards: Records of the shards of each split, in order; none before it is complete.
        checksum: SHA-256 of all else in the file; empty in older formats.
    """

    kind: Literal["tats tokens"] = "tats tokens"
    version: int = FORMAT
    tats: str = ""
    complete: bool = False
    shards: dict[Split, tuple[Shard, ...]] = {}
    checksum: str = ""


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


class Share(NamedTuple):
    """Which part of some work is this process's own.

    Attributes:
        number: Of this process among those that share the work.
        world: How many these are.
    """

    number: int = 0
    world: int = 1

    def first(self, units: Sequence[Unit]) -> list[Unit]:
        """The work in the order of this process: its own part, then the others' from their ends."""
        start, stop = (len(units) * n // self.world for n in (self.number, self.number + 1))
        return [*units[start:stop], *reversed([*units[:start], *units[stop:]])]


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
        self._locks: dict[TokenUnit, IO[str]] = {}
        self._written: dict[TokenUnit, Shard] = {}
        self.units = tuple(_all_units(header))
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
            _write_manifest(folder, TokenManifest(**dict(header), tats=__version__))

    def missing(self) -> list[TokenUnit]:
        """The units that are still to be written."""
        written = self.written()
        return [unit for unit in self.units if unit not in written]

    def written(self) -> dict[TokenUnit, Shard]:
        """The units that are written, by whomever, in order, with their records."""
        # One look at the folder for all; on shared disks, each file asked for takes its time.
        names = {path.name for path in self.folder.glob("*.json")}
        for unit in self.units:
            is_new = unit not in self._written and f"{unit.name}.json" in names
            if is_new and (record := written_shard(self.folder, unit.name)):
                self._written[unit] = record
        return {unit: self._written[unit] for unit in self.units if unit in self._written}

    def claims(self, share: Share) -> Iterator[TokenUnit]:
        """Units to write, one by one, until all are written or in the hands of other processes.

        Any number of processes may do this at once, on any machines that see the folder. A claim
        is a lock on a file, so that a process that dies gives it up. Where the disk has no locks,
        two processes may write the same unit, which comes to the same.

        Args:
            share: Where among the units this process begins.
        """
        waiting = share.first(self.missing())
        while waiting:
            taken = []
            for unit in waiting:
                if self._claim(unit):
                    yield unit
                elif written_shard(self.folder, unit.name) is None:
                    taken.append(unit)
            if len(taken) == len(waiting):
                return
            waiting = taken

    def release(self) -> None:
        """Give up all claims."""
        while self._locks:
            self._locks.popitem()[1].close()

    def _claim(self, unit: TokenUnit) -> bool:
        """Take a unit that is not written and that nobody has; kept until it is written."""
        if written_shard(self.folder, unit.name) is not None:
            return False
        try:
            lock = self._lock_file(unit).open("a")
        except OSError as error:
            raise unwritable(self.folder, error, DataError) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        except OSError:  # no locks here
            pass
        if written_shard(self.folder, unit.name) is not None:  # until just now, somebody had it
            lock.close()
            return False
        self._locks[unit] = lock
        return True

    def _lock_file(self, unit: TokenUnit) -> Path:
        return self.folder / f".{unit.name}.lock"

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
        file, note = _files(self.folder / unit.name)
        with _unless(lambda: written_shard(self.folder, unit.name) is not None):
            write_whole(file, content, DataError)
            write_whole(note, as_json(record), DataError)
        if lock := self._locks.pop(unit, None):
            lock.close()

    def finish(self) -> TokenManifest:
        """Declares the dataset complete; all units must have been written.

        Raises:
            DataError: The manifest cannot be written.
        """
        if missing := self.missing():
            raise ValueError(f"shard {missing[0].name} is not written")
        written = self.written().items()
        shards = {
            split: tuple(record for unit, record in written if unit.split == split)
            for split in self.header.clips
        }
        manifest = TokenManifest(
            **dict(self.header), tats=__version__, complete=True, shards=shards
        )
        with _unless(lambda: _parse_manifest(self.folder).complete):
            manifest = _write_manifest(self.folder, manifest)
        for path in (*self.folder.glob(UNFINISHED), *map(self._lock_file, self.units)):
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
        numbers: Numbers of the clips' videos in the manifest's list, int32 (clips,).
        starts: Presentation times of the clips' first frames in seconds, float64 (clips,).

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
        counts = np.array([record.n for record in records], np.int64)
        self.ends = np.cumsum(counts)
        self._firsts = self.ends - counts
        if not records or not self.ends[-1]:
            raise DataError(f"{folder}: no clips in its {split} split")
        columns = [
            _columns(path, record, self.manifest)
            for path, record in zip(self.paths, records, strict=True)
        ]
        self.labels, self.numbers, self.starts = (
            np.concatenate(parts) for parts in zip(*columns, strict=True)
        )
        self._maps: dict[int, dict[str, npt.NDArray[np.uint16]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps do not travel to worker processes; each opens its own.
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, item: int | Draw) -> TokenClip:
        """Reads one clip."""
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | Draw]) -> list[TokenClip]:
        """Reads a batch of clips."""
        draws = [(item, 0) if isinstance(item, int) else item for item in items]
        numbers = np.array([number for number, _ in draws], np.int64)
        shards = np.searchsorted(self.ends, numbers, side="right")
        places = list(zip(shards.tolist(), (numbers - self._firsts[shards]).tolist(), strict=True))
        text, count, heard = self.wanted.text, len(draws), self.manifest.sound
        return [
            TokenClip(*clip)
            for clip in zip(
                self._codes("tokens", places, self.manifest.grid),
                self.labels[numbers].tolist(),
                [text(self.caption(*draw)) for draw in draws] if text else [NOTHING] * count,
                self._codes("sound", places, heard.grid)
                if self.wanted.sound and heard
                else [NOTHING] * count,
                strict=True,
            )
        ]

    def origin(self, number: int) -> tuple[str, float]:
        """The path of a clip's video and the presentation time of its first frame in seconds."""
        return self.videos[self.numbers[number]], float(self.starts[number])

    def every_caption(self, number: int) -> tuple[str, ...]:
        """All that is said about a clip."""
        return self.captions[self.numbers[number]] if self.captions else ()

    def caption(self, number: int, draw: int = 0) -> str:
        """What is said about a clip; of several captions, each epoch takes another."""
        captions = self.every_caption(number)
        return captions[(number + draw // len(self)) % len(captions)] if captions else ""

    def _codes(
        self, column: str, places: Sequence[tuple[int, int]], grid: tuple[int, int, int]
    ) -> Sequence[Tensor]:
        """Codes of the clips at places in shards: views of one int64 tensor."""
        codes = np.empty((len(places), *grid), np.uint16)
        for row, (shard, place) in enumerate(places):
            codes[row] = self._map(shard)[column][place]
        return torch.from_numpy(codes.astype(np.int64)).unbind()

    def _map(self, shard: int) -> dict[str, npt.NDArray[np.uint16]]:
        """The codes of a shard, mapped into memory."""
        if shard not in self._maps:
            # As tensors, since these share the map of the file; it holds no descriptor, of which
            # there are fewer than a dataset may have shards.
            with _opened(self.paths[shard], "pt") as file:
                self._maps[shard] = {
                    column: file.get_tensor(column).numpy()
                    for column in ("tokens", "sound")[: 1 + self.wanted.sound]
                }
        return self._maps[shard]


def is_token_dataset(path: Path) -> bool:
    """Whether a folder is a token dataset, complete or not, or what is left of one."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        content = None
    if isinstance(content, dict) and content.get("kind") == _KIND:
        return True
    return any(path.glob("train-[0-9]*.safetensors"))


def read_manifest(path: Path) -> TokenManifest:
    """Reads what a token dataset holds.

    Raises:
        DataError: It is absent, damaged, incomplete, or of a newer format.
    """
    manifest = _parse_manifest(path)
    if not manifest.complete:
        done, units = len(shards_of(path, manifest)), len(_all_units(manifest))
        raise DataError(
            f"{path}: incomplete, {done} of {counted(units, 'shard')} written",
            "run the same 'tats encode' or 'tats tokens merge' again; it goes on where it stopped",
        )
    return manifest


def describe(path: Path) -> tuple[TokenManifest, dict[str, Shard]]:
    """What a token dataset holds or will hold, and the shards that are written, by name.

    Raises:
        DataError: It is absent, damaged, or of a newer format.
    """
    manifest = _parse_manifest(path)
    return manifest, shards_of(path, manifest)


def parse_manifest(content: bytes, path: Path | str, hint: str = _ANEW) -> TokenManifest:
    """What a manifest says.

    Args:
        content: The file.
        path: Where it is, for messages.
        hint: What helps where it is damaged.

    Raises:
        DataError: It is damaged, of a newer format, or no manifest of a token dataset.
    """
    try:
        plain = json.loads(content)
        kind = plain.get("kind") if isinstance(plain, dict) else None
        if kind == STREAM_KIND:
            raise DataError(
                f"{path}: of a stream, not of a token dataset",
                "only tats gpt train reads streams; those at an address with "
                'pip install "tatscli[stream]"',
            )
        if kind != _KIND:
            raise DataError(
                f"{path}: not the manifest of a token dataset", "'tats encode' writes one"
            )
        version = plain.get("version", 0)
        if version > FORMAT:
            raise DataError(
                f"{path}: format {version}, this version of tats reads up to {FORMAT}",
                "update tats",
            )
        if version >= _SEALED and plain.get("checksum") != checksum_of(plain):
            raise ValueError("its checksum is not that of its content")
        return TokenManifest.model_validate(plain)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged: {error}", hint) from error


def verify(folder: Path, progress: Progress | None = None) -> tuple[Problem, ...]:
    """Compares every shard of a token dataset, as far as it is written, with its checksum.

    Args:
        folder: The token dataset.
        progress: Called with the bytes compared and their total.

    Returns:
        The files that are missing or damaged, shards or their records; none if all is well.

    Raises:
        DataError: There is no token dataset, or its manifest is damaged.
    """
    manifest, shards = describe(folder)
    total, done = sum(shard.bytes for shard in shards.values()), 0
    problems = []
    with threads(_THREADS) as pool:
        found = pool.map(partial(_problem, folder, manifest), shards, shards.values())
        for shard, problem in zip(shards.values(), found, strict=True):
            problems += [problem] if problem else []
            done += shard.bytes
            if progress:
                progress(done, total)
    return tuple(problems)


def verify_shard(file: Path, shard: Shard) -> Problem | None:
    """What is wrong with the file of a shard, if anything is.

    Raises:
        OSError: It cannot be read.
    """
    with file.open("rb") as content:
        found = file_digest(content, "sha256").hexdigest()
    if found == shard.sha256:
        return None
    reason = f"damaged: its sha256 is {found[:12]}..., not {shard.sha256[:12]}..."
    return Problem(file.name, reason)


def vqgans_of(header: TokenHeader) -> dict[str, str]:
    """The files of the VQGANs that a token dataset holds, with their fingerprints."""
    sound = {SOUND_FILE: header.sound.fingerprint} if header.sound else {}
    return {VQGAN_FILE: header.fingerprint, **sound}


def verify_vqgan(file: Path, fingerprint: str) -> Problem | None:
    """What is wrong with the VQGAN of a token dataset, if anything is.

    Args:
        file: Where it is.
        fingerprint: Which one it must be.
    """
    try:
        require_intact(file)
        found = read_vqgan(file).model.fingerprint()
    except CheckpointError as error:
        return Problem(file.name, error.message.replace(str(file), "it"))
    if found != fingerprint:
        return Problem(file.name, f"is VQGAN {found}, but {MANIFEST} names {fingerprint}")
    return None


def repair(folder: Path, problems: Sequence[Problem]) -> None:
    """Drops what is damaged; whatever wrote the dataset, run again, writes it anew.

    Args:
        folder: The token dataset.
        problems: Its damaged files: shards, their records, or VQGANs.

    Raises:
        DataError: The folder cannot be written, or its manifest is damaged.
    """
    manifest = _parse_manifest(folder)
    try:
        for problem in problems:
            path = folder / problem.path
            held = (path,) if path.name in vqgans_of(manifest) else _files(path)
            for file in held:
                file.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder, error, DataError) from error
    _write_manifest(folder, manifest.model_copy(update={"complete": False, "shards": {}}))


def shards_of(folder: Path, manifest: TokenManifest) -> dict[str, Shard]:
    """The records of the shards by name: all of a complete dataset, else those that are written."""
    if manifest.complete:
        return {
            _shard_name(split, number): shard
            for split, shards in manifest.shards.items()
            for number, shard in enumerate(shards)
        }
    found = {unit.name: written_shard(folder, unit.name) for unit in _all_units(manifest)}
    return {name: shard for name, shard in found.items() if shard}


def shard_count(header: TokenHeader) -> int:
    """How many shards a dataset has once it is complete."""
    return len(_all_units(header))


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that, on an error or Ctrl-C, end with what they are at."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _unless(is_done: Callable[[], bool]) -> Iterator[None]:
    """Pass over what cannot be written where another process has written the same.

    Whoever finds a dataset complete clears away what others may have under the pen.
    """
    try:
        yield
    except DataError:
        if not is_done():
            raise


def _problem(folder: Path, manifest: TokenManifest, name: str, shard: Shard) -> Problem | None:
    """What is wrong with a shard or its record, if anything is."""
    file, record = _files(folder / name)
    try:
        if Shard.model_validate_json(record.read_bytes()) != shard:
            return Problem(record.name, f"damaged: it is not what {MANIFEST} has of its shard")
        if problem := verify_shard(file, shard):
            return problem
        _columns(file, shard, manifest)
    except ValidationError:
        return Problem(record.name, "damaged: it is no record of a shard")
    except OSError as error:
        return Problem(Path(error.filename or file).name, error.strerror or str(error))
    except DataError as error:
        return Problem(file.name, error.message.removeprefix(f"{file}: "))
    return None


def _shard_name(split: Split, number: int) -> str:
    return f"{split}-{number:05d}"


def _units(split: Split, clips: int) -> list[TokenUnit]:
    size = max(_LEAST_CLIPS, -(-clips // _MOST_SHARDS))
    return [
        TokenUnit(split, number, first, min(first + size, clips))
        for number, first in enumerate(range(0, clips, size))
    ]


def _all_units(header: TokenHeader) -> list[TokenUnit]:
    return [unit for split, clips in header.clips.items() for unit in _units(split, clips)]


def _files(path: Path) -> tuple[Path, Path]:
    """A shard and its record."""
    return path.with_suffix(".safetensors"), path.with_suffix(".json")


def written_shard(folder: Path, name: str) -> Shard | None:
    """The record of a shard, if both are there."""
    file, note = _files(folder / name)
    try:
        record = Shard.model_validate_json(note.read_bytes())
        size = file.stat().st_size
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


@contextmanager
def _opened(path: Path, framework: Literal["numpy", "pt"]) -> Iterator[Any]:
    try:
        with safe_open(path, framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}", mending(path.parent)) from error


def _columns(
    path: Path, record: Shard, manifest: TokenManifest
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    grids = {"tokens": manifest.grid}
    if manifest.sound:
        grids["sound"] = manifest.sound.grid
    with _opened(path, "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in grids}
        columns = tuple(file.get_tensor(name) for name in ("label", "video", "start"))
    for name, grid in grids.items():
        if shapes[name] != (record.n, *grid):
            raise DataError(
                f"{path}: {name} of shape {shapes[name]}, not {(record.n, *grid)}",
                mending(path.parent),
            )
    return columns[0], columns[1], columns[2]


def _parse_manifest(folder: Path) -> TokenManifest:
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{folder}: no token dataset, {MANIFEST} is not there", "'tats encode' writes one"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", _ANEW) from error
    return parse_manifest(content, path)


def _write_manifest(folder: Path, manifest: TokenManifest) -> TokenManifest:
    """Write a manifest with its checksum, and give it back with that."""
    plain = manifest.model_copy(update={"version": FORMAT})
    sealed = plain.model_copy(update={"checksum": checksum_of(plain.model_dump(mode="json"))})
    write_whole(folder / MANIFEST, as_json(sealed), DataError)
    return sealed


def checksum_of(content: Mapping[str, Any]) -> str:
    """Of a manifest as plain values; its own checksum does not count."""
    plain = {name: value for name, value in content.items() if name != "checksum"}
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


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
                f"{folder} holds other tokens; {named} there: {_brief(was)}, here: {_brief(now)}",
                "choose another folder with --out",
            )


def mending(folder: Path) -> str:
    """What helps where files of a dataset are missing or damaged."""
    return f"tats tokens verify {folder} --repair drops what is damaged; then {REWRITING}"


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def as_json(record: BaseModel) -> bytes:
    """A record or manifest as it is written."""
    return record.model_dump_json(indent=1).encode() + b"\n"
