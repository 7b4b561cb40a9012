"""Token datasets as streams: chunks that are fetched as training reaches them.

n clips of a chunk, t h w latent positions. A stream is a folder, or a copy of it at an address such
as s3://BUCKET/NAME. Below its `train` and `val` lies one litdata dataset each: `index.json`, and
chunks `chunk-0-NUMBER.bin` of clips with `tokens` uint16 (t, h, w), `label`, the number of their
`video` in the manifest's list, `start` in seconds and, where the sound was encoded, `sound` uint16
(t', h', w'). Each clip takes the same bytes, so that a chunk is read as an array. The clips of a
split lie in an order drawn once: clips of one video are far apart, and the first ones stand for all
of them. `manifest.json` says from the beginning what is being written and, at the end, that it is
complete, with a checksum of every file.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import time
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.utils.data import Dataset

from tatscli.core.data.clips import FRAMES, NOTHING, Draw, Wanted
from tatscli.core.data.container import reason
from tatscli.core.data.index import Split
from tatscli.core.data.tokens import (
    MANIFEST,
    SOUND_FILE,
    STREAM_KIND,
    VQGAN_FILE,
    TokenClip,
    TokenDataset,
    TokenHeader,
    TokenManifest,
    as_json,
    checksum_of,
)
from tatscli.core.files import UNFINISHED, unwritable, write_whole
from tatscli.errors import DataError

FORMAT = 1
WINDOW = 8
"""Chunks whose clips training mixes."""
SHARE = 0.5
"""Part of the disk's free space that fetched chunks may take."""

_AGAIN = "run the same 'tats tokens convert' with a new --out folder"
_COPY = "copy the stream there again: what is there differs from its manifest"
_CACHE = "free some space, or name another folder for what is fetched with TATS_CACHE"
_SCHEMES = ("s3", "gs", "azure")  # what litdata fetches
_FILE = "file"  # a folder, such as one of a slow disk, whose chunks are to be copied to a fast one
_ASIDE = ".fetching-"
_STALE = 86400.0  # seconds

Row = np.dtype[np.void]
Rows = npt.NDArray[np.void]
Fetcher = Callable[[str, BinaryIO], None]


class StoredFile(BaseModel):
    """A file of a stream.

    Attributes:
        bytes: Its size.
        sha256: Its checksum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Chunk(StoredFile):
    """A file of clips.

    Attributes:
        n: Clips in it.
    """

    n: int


class StreamManifest(TokenHeader):
    """What a stream holds.

    Attributes:
        kind: Tells the file from other JSON.
        version: Of the format.
        source: Checksum of the checksums of the shards it was made from.
        chunk_clips: Clips of a chunk; the last one of a split may have fewer.
        complete: Whether all of it is there.
        shards: The chunks of each split, in order; none before it is complete.
        unlabelled: Clips of each split that have no class.
        files: The VQGANs, by name.
        checksum: SHA-256 of all else in the file.
    """

    kind: Literal["tats stream"] = "tats stream"
    version: int = FORMAT
    source: str
    chunk_clips: int
    complete: bool = False
    shards: dict[Split, tuple[Chunk, ...]] = {}
    unlabelled: dict[Split, int] = {}
    files: dict[str, StoredFile] = {}
    checksum: str = ""


def clip_layout(header: TokenHeader) -> Row:
    """The bytes of a clip: the sizes of its parts, then each part; an array tells its shape first.

    Args:
        header: Whose grids are taken.
    """
    grids = {"tokens": header.grid}
    if header.sound:
        grids["sound"] = header.sound.grid
    parts: list[tuple[Any, ...]] = [("sizes", "<u4", (3 + len(grids),))]
    for name, grid in grids.items():
        parts += [(f"{name}_shape", "<u4", (2 + len(grid),)), (name, "<u2", grid)]
    return np.dtype([*parts, ("label", "<i8"), ("video", "<i8"), ("start", "<f8")])


def write_stream(
    tokens: Path,
    held: TokenManifest,
    out: Path,
    chunk_bytes: int,
    progress: Callable[[int], None],
) -> StreamManifest:
    """Write a token dataset as a stream; goes on where the same conversion was interrupted.

    Args:
        tokens: The token dataset, found to be intact.
        held: What it holds.
        out: Folder of the stream: new, empty, or one begun with the same settings.
        chunk_bytes: Size of a chunk.
        progress: Told how many clips are done.

    Returns:
        The manifest of the complete stream.

    Raises:
        DataError: The folder holds something else or cannot be written, or litdata is missing.
    """
    layout = clip_layout(held)
    shards = [shard.sha256 for records in held.shards.values() for shard in records]
    manifest = StreamManifest(
        **{name: getattr(held, name) for name in TokenHeader.model_fields},
        source=sha256("\n".join(shards).encode()).hexdigest(),
        chunk_clips=max(1, chunk_bytes // layout.itemsize),
    )
    begun = _begin(out, manifest)
    if begun.complete:
        return begun
    done = 0
    chunks, unlabelled = dict[Split, tuple[Chunk, ...]](), dict[Split, int]()
    for split, records in held.shards.items():
        if not sum(record.n for record in records):
            continue
        clips = TokenDataset(tokens, split, Wanted(sound=held.sound is not None))
        unlabelled[split] = int((clips.labels < 0).sum())
        order = np.random.default_rng(0).permutation(len(clips))
        written = list[Chunk]()
        for first in range(0, len(order), manifest.chunk_clips):
            numbers = order[first : first + manifest.chunk_clips]
            path = out / chunk_name(split, len(written))
            # A file under its name is whole.
            if not path.exists():
                write_whole(
                    path, _packed(path.parent, _columns(clips, numbers), layout)[0], DataError
                )
            written.append(Chunk(n=len(numbers), **_measured(path)))
            progress(done := done + len(numbers))
        chunks[split] = tuple(written)
        _, config = _packed(out / split, _columns(clips, order[:1]), layout)
        config["chunk_size"] = manifest.chunk_clips
        index = {
            "chunks": [
                {
                    "chunk_bytes": chunk.bytes,
                    "chunk_size": chunk.n,
                    "dim": None,
                    "filename": Path(chunk_name(split, number)).name,
                }
                for number, chunk in enumerate(written)
            ],
            "config": config,
            "updated_at": manifest.source,
        }
        write_whole(
            out / split / "index.json", json.dumps(index, sort_keys=True).encode(), DataError
        )
    files = {}
    for name in (VQGAN_FILE, *([SOUND_FILE] if held.sound else [])):
        write_whole(out / name, (tokens / name).read_bytes(), DataError)
        files[name] = StoredFile(**_measured(out / name))
    manifest = manifest.model_copy(
        update={"complete": True, "shards": chunks, "unlabelled": unlabelled, "files": files}
    )
    for leftover in out.rglob(UNFINISHED):
        leftover.unlink(missing_ok=True)
    write_whole(out / MANIFEST, _sealed(manifest), DataError)
    return manifest


def _columns(held: TokenDataset, numbers: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """The parts of some clips, each part of all in one array."""
    clips = held.__getitems__(numbers.tolist())
    codes = {"tokens": [clip.tokens for clip in clips]}
    if held.wanted.sound:
        codes["sound"] = [clip.sound for clip in clips]
    return {
        **{name: torch.stack(parts).numpy().astype(np.uint16) for name, parts in codes.items()},
        "label": held.labels[numbers],
        "video": held.numbers[numbers],
        "start": held.starts[numbers],
    }


def _packed(
    folder: Path, columns: Mapping[str, npt.NDArray[Any]], layout: Row
) -> tuple[bytes, dict[str, Any]]:
    """A chunk as litdata writes it, and how its index describes such chunks.

    Raises:
        DataError: litdata is missing, or writes in another way than it did.
    """
    with _litdata("writes streams"):
        import litdata
        from litdata.streaming.writer import BinaryWriter

    class InMemory(BinaryWriter):  # type: ignore[misc]  # litdata has no types
        content = b""

        def write_chunk_to_file(
            self, raw_data: bytes, filename: str, compress: bool | None = None
        ) -> None:
            self.content = raw_data

    count = len(columns["label"])
    try:
        writer = InMemory(str(folder), chunk_size=count)
    except OSError as error:
        raise unwritable(folder, error, DataError) from error
    parts = [name for name in layout.names or () if name in columns]
    for row in range(count):
        clip = {name: columns[name][row] for name in parts}
        writer.add_item(row, {k: v if v.ndim else v.item() for k, v in clip.items()})
    writer.write_chunk(on_done=True)
    head = _head(count)
    if len(writer.content) == head + count * layout.itemsize:
        rows = np.frombuffer(writer.content, layout, offset=head)
        if all(np.array_equal(rows[name], columns[name]) for name in parts):
            return writer.content, writer.get_config()
    raise DataError(
        f"litdata {litdata.__version__} writes chunks in another way than tats reads them",
        'pip install "tatscli[stream]"',
    )


def _head(clips: int) -> int:
    """Bytes of a chunk before its clips: their number, and where each begins and the last ends."""
    return 4 + 4 * (clips + 1)


def chunk_name(split: Split, number: int) -> str:
    """The path of a chunk in its stream."""
    return f"{split}/chunk-0-{number}.bin"


def can_stream(url: str) -> bool:
    """Whether there is what fetches files from an address."""
    scheme = url.partition("://")[0]
    return scheme == _FILE or (scheme in _SCHEMES and find_spec("litdata") is not None)


class Store:
    """The files of a stream, as a machine sees them: in its folder, or in a cache of an address.

    A file is compared with its checksum each time it is opened, since neither disks nor litdata
    notice a bit that flipped. The processes of a machine share a cache: what one has fetched is
    there for all, and where they take too much of the disk, what was not opened for longest gives
    way.

    Args:
        source: A folder or an address.
        cache: Where the files of an address are kept.

    Attributes:
        source: The folder or address.
        folder: Where files are on this machine.
    """

    def __init__(self, source: str, cache: Path | None = None) -> None:
        self.source = source
        self.folder = cache or Path(source)
        self._is_remote = cache is not None
        self._least = 0
        self._fetcher: Fetcher = _copy
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        # Connections do not travel to worker processes; each makes its own.
        return {**self.__dict__, "_fetcher": _copy, "_process": 0}

    def manifest(self) -> StreamManifest | None:
        """What the stream holds; None if it is none.

        Raises:
            DataError: It is incomplete, damaged or of a newer format, or cannot be fetched.
        """
        if self._is_remote:
            with self._fetched(MANIFEST) as copy:
                content = copy.read_bytes()
        else:
            try:
                content = (self.folder / MANIFEST).read_bytes()
            except OSError:
                return None
        manifest = _parsed(content, f"{self.source}/{MANIFEST}")
        if manifest and not manifest.complete:
            raise DataError(
                f"{self.source}: incomplete",
                "run the same 'tats tokens convert' again; it goes on where it stopped",
            )
        if manifest:
            chunks = [chunk for some in manifest.shards.values() for chunk in some]
            # Those that are read, and those that come next.
            self._least = 2 * WINDOW * max((chunk.bytes for chunk in chunks), default=0)
        return manifest

    def open(self, name: str, expected: StoredFile) -> BinaryIO:
        """Opens a file for reading, fetched if need be.

        Raises:
            DataError: It is absent or damaged, or cannot be fetched.
        """
        path = self.folder / name
        if not self._is_remote:
            return _checked(path, expected, str(path), _AGAIN)
        with suppress(DataError):
            return self._cached(path, expected)
        with self._alone(path):
            with suppress(DataError):  # another process has fetched it meanwhile
                return self._cached(path, expected)
            return self._fetch(name, expected)

    def prefetch(self, files: Iterable[tuple[str, StoredFile]]) -> None:
        """Fetches what is neither there nor being fetched by another process."""
        for name, expected in files if self._is_remote else ():
            path = self.folder / name
            with suppress(DataError), self._alone(path, waits=False) as is_alone:
                # Whoever needs the file meets the error again.
                if is_alone and not path.exists():
                    self._fetch(name, expected).close()

    def _cached(self, path: Path, expected: StoredFile) -> BinaryIO:
        file = _checked(path, expected, str(path), _AGAIN)
        with suppress(OSError):  # it has just given way, or is another user's
            path.touch()
        return file

    def _fetch(self, name: str, expected: StoredFile) -> BinaryIO:
        path = self.folder / name
        with self._fetched(name) as copy:
            file = _checked(copy, expected, f"{self.source}/{name}", _COPY)
            with _cache_writable(path):
                copy.replace(path)
        self._make_room(path)
        return file

    @contextmanager
    def _fetched(self, name: str) -> Iterator[Path]:
        """A copy of a file at the address, until it is moved elsewhere or no longer needed."""
        address = f"{self.source}/{name}"
        with _cache_writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            aside = TemporaryDirectory(dir=self.folder, prefix=_ASIDE)
        with aside as own:
            copy = Path(own) / Path(name).name
            try:
                if self._process != os.getpid():
                    self._fetcher, self._process = _fetcher(self.source), os.getpid()
                with copy.open("wb") as file:
                    self._fetcher(address, file)
            except DataError:  # litdata is missing
                raise
            except Exception as error:  # each provider has kinds of its own
                is_full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)
                raise DataError(
                    f"{address}: cannot be fetched into {self.folder}: {reason(error)}",
                    _CACHE if is_full else "check the address, the network and your rights there",
                ) from error
            yield copy

    @contextmanager
    def _alone(self, path: Path, waits: bool = True) -> Iterator[bool]:
        """Keep other processes of the machine from fetching a file; whether none was doing so."""
        with _cache_writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name}.lock").open("a")
        with lock:
            is_alone = True
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                is_alone = False
            except OSError:  # no locks here: two may fetch the same
                pass
            yield is_alone

    def _make_room(self, newest: Path) -> None:
        """Remove the chunks that were not opened for longest, where they take too much.

        Whoever has opened one keeps it until it moves on.
        """
        ages = list[tuple[float, int, Path]]()
        chunks = (path for split in get_args(Split) for path in (self.folder / split).glob("*.bin"))
        for path in chunks:
            with suppress(OSError):
                status = path.stat()
                ages.append((status.st_mtime, status.st_size, path))
        used = sum(size for _, size, _ in ages)
        free = shutil.disk_usage(self.folder).free
        excess = used - max(self._least, int(SHARE * (used + free)))
        for _, size, path in sorted(ages):
            if excess <= 0:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                excess -= size
        for folder in self.folder.glob(f"{_ASIDE}*"):  # of processes that were killed
            with suppress(OSError):
                if time() - folder.stat().st_mtime > _STALE:
                    shutil.rmtree(folder)


class WindowOrder:
    """The order of training that stays within a few chunks at a time.

    An epoch takes the chunks in a drawn order, a window of them after the other, and the clips of
    a window in a drawn order. So it is a function of seed and epoch alone, like that of
    ``ConsumedBatchSampler``, whose ``order`` it can be.

    Args:
        sizes: Clips of each chunk.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = np.array(sizes, np.int64)

    def __call__(self, seed: int, epoch: int) -> "EpochOrder":
        """The slots of an epoch by their places in it."""
        return EpochOrder(self._sizes, seed, epoch)


class EpochOrder:
    """The slots of an epoch by their places; drawn window by window, since there may be many.

    Args:
        sizes: Clips of each chunk, int64 (chunks,).
        seed: Determines the order.
        epoch: From 0.

    Attributes:
        windows: The chunks of each window, int64 (at most WINDOW,).
    """

    def __init__(self, sizes: npt.NDArray[np.int64], seed: int, epoch: int) -> None:
        self._key = (seed, epoch)
        self._sizes, self._firsts = sizes, np.cumsum(sizes) - sizes
        chunks = np.random.default_rng(self._key).permutation(len(sizes))
        self.windows = np.array_split(chunks, -(-len(chunks) // WINDOW))
        self._ends = np.cumsum([sizes[window].sum() for window in self.windows])
        self._drawn = -1
        self._slots: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def window(self, place: int) -> int:
        """The number of the window that a place is in."""
        return int(np.searchsorted(self._ends, place, side="right"))

    def __getitem__(self, place: int) -> int:
        """The slot at a place."""
        number = self.window(place)
        if number != self._drawn:
            slots = [
                np.arange(first, first + size)
                for first, size in (
                    (self._firsts[chunk], self._sizes[chunk]) for chunk in self.windows[number]
                )
            ]
            # Numbered from 1: to numpy, a 0 at the end of a key is none.
            drawn = np.random.default_rng((*self._key, number + 1))
            self._slots, self._drawn = drawn.permutation(np.concatenate(slots)), number
        return int(self._slots[place - self._ends[number] + len(self._slots)])


class StreamDataset(Dataset[TokenClip]):
    """The clips of one split of a stream.

    Items are addressed by number, or by the (slot, number in the run) of `ConsumedBatchSampler`,
    where the slot is the clip's number. Draws announce the chunks that come next, which are
    fetched meanwhile.

    Args:
        store: The files.
        manifest: What they hold.
        split: Training or validation.
        wanted: What is read beside the codes.
        seed: That of the sampler.

    Attributes:
        order: In which a sampler should draw the clips.

    Raises:
        DataError: The split is empty, or has no sound where that is wanted.
    """

    def __init__(
        self,
        store: Store,
        manifest: StreamManifest,
        split: Split,
        wanted: Wanted = FRAMES,
        seed: int = 0,
    ) -> None:
        if wanted.sound and manifest.sound is None:
            raise DataError(f"{store.source}: it holds no sound", "encode with --sound-vqgan RUN")
        self.wanted = wanted
        self.chunks = [
            (chunk_name(split, number), chunk)
            for number, chunk in enumerate(manifest.shards.get(split, ()))
        ]
        if not self.chunks:
            raise DataError(f"{store.source}: no clips in its {split} split")
        sizes = [chunk.n for _, chunk in self.chunks]
        self.order = WindowOrder(sizes)
        self._store, self._seed, self._split = store, seed, split
        self._ends = np.cumsum(sizes)
        self._layout = clip_layout(manifest)
        self._captions = manifest.captions.get(split, ())
        self._epoch, self._current = -1, self.order(seed, 0)
        self._announced: npt.NDArray[np.int64] | None = None
        self._open: dict[int, Rows] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps do not travel to worker processes; each opens its own.
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: int | Draw) -> TokenClip:
        """Reads one clip.

        Raises:
            DataError: Its chunk is damaged or cannot be fetched.
        """
        if isinstance(item, int):
            return self._clip(item, 0)
        number, draw = item
        self._announce(draw)
        return self._clip(number, draw)

    def _clip(self, number: int, draw: int) -> TokenClip:
        chunk = int(np.searchsorted(self._ends, number, side="right"))
        row = self._rows(chunk)[number - int(self._ends[chunk])]  # counted from its end
        text = self.wanted.text
        return TokenClip(
            _codes(row["tokens"]),
            int(row["label"]),
            text(self._caption(row, number + draw // len(self))) if text else NOTHING,
            _codes(row["sound"]) if self.wanted.sound else NOTHING,
        )

    def _caption(self, row: Any, which: int) -> str:
        """What is said about a clip; of several captions, each epoch takes another."""
        captions = self._captions[row["video"]] if self._captions else ()
        return captions[which % len(captions)] if captions else ""

    def _rows(self, chunk: int) -> Rows:
        """The clips of a chunk; as many chunks are open as a window has."""
        if chunk not in self._open:
            name, expected = self.chunks[chunk]
            if len(self._open) == WINDOW:
                del self._open[next(iter(self._open))]
            with self._store.open(name, expected) as file:
                self._open[chunk] = np.memmap(file, self._layout, "r", _head(expected.n))
        return self._open[chunk]

    def _announce(self, draw: int) -> None:
        """Have the chunks of this window and the next one fetched, once a window."""
        epoch, place = divmod(draw, len(self))
        if epoch != self._epoch:
            self._epoch, self._current = epoch, self.order(self._seed, epoch)
        windows, number = self._current.windows, self._current.window(place)
        if windows[number] is self._announced:
            return
        self._announced = windows[number]
        if number + 1 == len(windows):
            windows, number = self.order(self._seed, epoch + 1).windows, -1
        chunks = [*self._announced, *windows[number + 1]]
        files = [self.chunks[chunk] for chunk in chunks]
        Thread(target=self._store.prefetch, args=(files,), daemon=True).start()


def _codes(stored: npt.NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(stored.astype(np.int64))


def _begin(out: Path, manifest: StreamManifest) -> StreamManifest:
    """The manifest in the folder of a stream, found to be of the same, or now written there.

    Raises:
        DataError: The folder holds something else or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise unwritable(out, error, DataError) from error
    if not present:
        write_whole(out / MANIFEST, _sealed(manifest), DataError)
        return manifest
    begun = None
    if MANIFEST in present:
        begun = _parsed((out / MANIFEST).read_bytes(), f"{out}/{MANIFEST}")
    if begun is None:
        raise DataError(f"{out} is not empty and no stream", "choose another folder with --out")
    for field in (*TokenHeader.model_fields, "source", "chunk_clips"):
        if getattr(begun, field) != getattr(manifest, field):
            raise DataError(
                f"{out} holds a stream of other tokens or of other chunks: it differs in {field}",
                "choose another folder with --out",
            )
    return begun


def _parsed(content: bytes, place: str) -> StreamManifest | None:
    """What a manifest says, or None if it is not of a stream."""
    try:
        found = json.loads(content)
        if not isinstance(found, dict) or found.get("kind") != STREAM_KIND:
            return None
        if found.get("version", 0) > FORMAT:
            raise DataError(
                f"{place}: format {found['version']}, this version of tats reads up to {FORMAT}",
                "update tats",
            )
        if found.get("checksum") != checksum_of(found):
            raise ValueError("its checksum is not that of its content")
        return StreamManifest.model_validate(found)
    except ValueError as error:
        raise DataError(f"{place}: damaged: {error}", _AGAIN) from error


def _checked(path: Path, expected: StoredFile, place: str, hint: str) -> BinaryIO:
    """The file, open for reading, its content found to be as it was written.

    Raises:
        DataError: It is not, or cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {reason(error)}", hint) from error
    try:
        if (size := os.fstat(file.fileno()).st_size) != expected.bytes:
            raise DataError(f"{place}: damaged: {size} bytes, not {expected.bytes}", hint)
        if (found := file_digest(file, "sha256").hexdigest()) != expected.sha256:
            raise DataError(
                f"{place}: damaged: its sha256 is {found[:12]}..., not {expected.sha256[:12]}...",
                hint,
            )
    except OSError as error:
        file.close()
        raise DataError(f"{place}: cannot be read: {reason(error)}", hint) from error
    except DataError:
        file.close()
        raise
    return file


def _measured(path: Path) -> dict[str, Any]:
    """Size and checksum of a file that was written."""
    with path.open("rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": file_digest(file, "sha256").hexdigest(),
        }


@contextmanager
def _litdata(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"litdata, which {what}, is not installed", 'pip install "tatscli[stream]"'
        ) from error


@contextmanager
def _cache_writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written: {reason(error)}", _CACHE) from error


def _fetcher(source: str) -> Fetcher:
    """What writes a file of a stream at an address into an open one.

    Raises:
        DataError: litdata is missing.
    """
    if source.startswith(f"{_FILE}://"):
        return _copy
    with _litdata(f"reads {source}"):
        from litdata.streaming.downloader import get_downloader
    options = {}
    if source.startswith("s3://"):
        from botocore.config import Config

        # By itself, litdata asks a thousand times before it says that there is no network.
        retries = {"max_attempts": 4, "mode": "standard"}
        options["config"] = Config(connect_timeout=10, retries=retries)
    fetcher: Fetcher = get_downloader(source, "", [], options).download_fileobj
    return fetcher


def _copy(address: str, into: BinaryIO) -> None:
    with Path(address.removeprefix(f"{_FILE}://")).open("rb") as file:
        shutil.copyfileobj(file, into)


def _sealed(manifest: StreamManifest) -> bytes:
    """A manifest with its checksum, as it is written."""
    checksum = checksum_of(manifest.model_dump(mode="json"))
    return as_json(manifest.model_copy(update={"checksum": checksum}))
