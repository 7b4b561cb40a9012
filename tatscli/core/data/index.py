"""The index of a dataset: which videos it has, their frames' times, splits and classes.

An index is built once and kept in the user's cache, never in the dataset.
"""

import json
import logging
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG
from typing import Any, Literal, NamedTuple

import numpy as np

from tatscli.core.data.arrays import ARRAY_SUFFIXES, video_array
from tatscli.core.data.hdf5 import HDF5_SUFFIXES, hdf5_address, stored_videos
from tatscli.core.data.manifest import (
    MANIFEST_SUFFIXES,
    ManifestRow,
    clean_captions,
    read_rows,
)
from tatscli.core.data.video import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    VideoInfo,
    frame_files,
    natural_key,
    probe,
    untimed_info,
)
from tatscli.core.files import written_whole
from tatscli.core.paths import SOURCES, require_dataset
from tatscli.errors import DataError

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
Progress = Callable[[int, int], None]
_Beside = dict[tuple[str, str], str]

HELD_OUT = 0.1
"""Part of the videos that is validated on where the dataset has no split of its own."""

SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "test": "val"}
"""Folders right below a dataset that are its splits."""

_FORMAT = 3
_FIELDS = ("width", "height", "rotation", "rate", "ordered", "sound", "codec")
_CAPTIONS, _SOUND = ".txt", ".wav"  # files beside a video, of its name
_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True, eq=False)
class VideoEntry:
    """A video, or the part of it that belongs to a split.

    Attributes:
        path: Path below the root of the dataset, with forward slashes; a manifest may give an
            absolute one.
        kind: A video file, a folder of frames, or a video in an HDF5 file or an array.
        split: Training or validation.
        label: Class id, -1 where the dataset has no classes, or the video none that is trained on.
        info: Times and geometry.
        first: The first frame that belongs to the split, as a position in `info.times`.
        stop: The position behind the last one.
        captions: What the video is said to show, in one or several ways.
        sound: Path below the root of the file with its sound; empty where that is its own track.
    """

    path: str
    kind: Literal["file", "frames", "hdf5", "array"]
    split: Split
    label: int
    info: VideoInfo
    first: int
    stop: int
    captions: tuple[str, ...] = ()
    sound: str = ""

    @property
    def is_timed(self) -> bool:
        """Whether it says itself when its frames are shown; else a rate is assumed."""
        return self.kind == "file"

    @property
    def has_sound(self) -> bool:
        """Whether there is sound to it, beside it or in it."""
        return bool(self.sound) or self.info.sound


@dataclass(frozen=True)
class Problem:
    """A video that is left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """What a dataset holds.

    Attributes:
        root: What the paths of the entries start from: the folder, that of the manifest, or the
            HDF5 or array file.
        entries: All videos of both splits, in natural order of their paths.
        problems: What was left out.
        classes: Names of the classes by id, those of the training split; empty where there are
            none.
        untrained: Names of classes that only validation videos have; they have no id.
        divided: Videos whose last tenth is validated on, since none can be spared; 0 where whole
            ones are, or the dataset says which.
    """

    root: Path
    entries: tuple[VideoEntry, ...]
    problems: tuple[Problem, ...]
    classes: tuple[str, ...]
    untrained: tuple[str, ...] = ()
    divided: int = 0

    def split(self, name: Split) -> tuple[VideoEntry, ...]:
        """The entries of one split."""
        return tuple(entry for entry in self.entries if entry.split == name)


class _Labelled(NamedTuple):
    """Entries of an index with their class ids; see `VideoIndex`."""

    entries: tuple[VideoEntry, ...]
    classes: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    divided: int = 0


@dataclass(frozen=True)
class _Found:
    """A video in the listing; size and mtime change with its content.

    The files beside it are no part of what is cached. `identity` is the same for two paths to one
    video.
    """

    path: str
    kind: Literal["file", "frames"]
    size: int
    mtime: int
    captions: str = ""
    sound: str = ""
    identity: Hashable = field(default=None, compare=False)


def build_index(
    root: Path, *, strict: bool = False, progress: Progress | None = None
) -> VideoIndex:
    """Lists a dataset, reads every video's time stamps, and assigns splits and classes.

    In a folder, videos are files with a known suffix and folders that directly hold images. The
    folders `train` and `val` (or `test`) below the root are the splits. Without them, about a tenth
    of each class is validated on, chosen by a hash of the path; where no class has two videos, it
    is the last tenth of every video. The folder right below the split is the class. A `.txt` beside
    a video, of its name, holds captions, one a line; a `.wav` is its sound.

    A manifest names videos or parts of them with their splits, classes and captions; the captions
    of a row go before those beside its video. Rows without a split, or all if none is for
    validation, are divided as above, but all rows of one video stay together. Of rows for `val` and
    `test`, the latter are left out. An HDF5 file has splits of its own; see `hdf5`. For
    arrays, see `arrays`.

    Args:
        root: The dataset: a folder, a manifest (.csv, .tsv, .jsonl), a list of paths (.txt), an
            HDF5 file (.h5, .hdf5) or an array (.npy, .npz, .pt).
        strict: Whether a video that cannot be read is an error rather than left out.
        progress: Called with the videos read and their total; not called for a cached index.

    Raises:
        DataError: The root is missing or unreadable, no video is left, a manifest or a file of
            captions or sound is wrong, or, if strict, any video cannot be read.
    """
    require_dataset(root)
    root = root.expanduser()
    suffix = root.suffix.lower()
    if root.is_dir():
        index = _of_folder(root, strict, progress)
    elif suffix in HDF5_SUFFIXES:
        index = _of_hdf5(root)
    elif suffix in ARRAY_SUFFIXES:
        index = _of_array(root)
    else:
        index = _of_manifest(root, strict, progress)
    # Only here, since messages name paths as they were given.
    return replace(index, root=index.root.absolute())


def single_video(path: Path) -> tuple[Path, VideoEntry]:
    """A video, or a folder of frames, by itself and whole, with what lies beside it.

    Returns:
        The folder that its path starts from, above its own, whose name may be a class; the entry.

    Raises:
        DataError: It cannot be read.
    """
    path = path.absolute()
    root, info = path.parent.parent, probe(path)
    found = _named(root, [f"{path.parent.name}/{path.name}"])
    [entry] = _entries(root, [(video, info) for video in found])
    return root, replace(entry, split="val")


def is_dataset(path: Path) -> bool:
    """Whether a path is a source of many videos, rather than one video or folder of frames."""
    suffix = path.suffix.lower()
    if path.is_dir():
        seen = (file for file in path.iterdir() if not file.name.startswith("."))
        return any(f.suffix.lower() in VIDEO_SUFFIXES for f in seen) or not frame_files(path)
    arrays = HDF5_SUFFIXES | ARRAY_SUFFIXES
    return suffix in MANIFEST_SUFFIXES or (suffix in arrays and path.is_file())


def is_folder_name(label: str) -> bool:
    """Whether the name of a class, from whatever file, can be that of a folder of a dataset."""
    has_parts = bool(set(label) & set("/\\"))  # backslashes are separators elsewhere
    # Of what is not printable, some can be no file's name.
    if not label.isprintable() or has_parts or label.startswith("."):
        return False
    return 0 < len(label.encode()) <= 255


def cache_folder() -> Path:
    """Where indices are kept: $TATS_CACHE, else tats in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TATS_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tats"


def _of_folder(root: Path, strict: bool, progress: Progress | None) -> VideoIndex:
    splits = _split_folders(root)
    found = _listing(root, splits or [""])
    if not found:
        if splits and (outside := len(_listing(root, [""]))):
            names = " and ".join(f"{name}/" for name in splits)
            raise DataError(
                f"{root}: no videos in {names}, which it is split by, and {outside} outside",
                f"move them into {splits[0]}/, or remove {names}: a tenth of all is held out then",
            )
        raise DataError(
            f"{root}: no videos and no folders of frames in it",
            f"{SOURCES}; 'tats data synth' writes one to try",
        )
    infos = _infos(root, found, progress)
    problems = tuple(
        Problem(video.path, info)
        for video, info in zip(found, infos, strict=True)
        if isinstance(info, str)
    )
    _refuse_problems(root, root, problems, len(found), strict)
    entries = _entries(
        root,
        [
            (video, info)
            for video, info in zip(found, infos, strict=True)
            if isinstance(info, VideoInfo)
        ],
    )
    return VideoIndex(root, problems=problems, **_assign(root, entries)._asdict())


def _of_manifest(file: Path, strict: bool, progress: Progress | None) -> VideoIndex:
    root = file.parent
    rows = _without_tests(file, read_rows(file))
    for row in rows:
        if hdf5_address(root / row.path):
            raise DataError(
                f"{file}: {row.path} is a video in an HDF5 file, and rows name files of their own",
                "give the HDF5 file itself",
            )
    found = {video.path: video for video in _named(root, {row.path for row in rows})}
    infos = dict(zip(found, _infos(root, list(found.values()), progress), strict=True))
    problems = [Problem(path, info) for path, info in infos.items() if isinstance(info, str)]
    parts: list[tuple[ManifestRow, VideoInfo, int, int]] = []
    for row in rows:
        info = infos[row.path]
        if isinstance(info, str):
            continue
        first, stop = _span(row, info)
        if first < stop:
            parts.append((row, info, first, stop))
        else:
            problems.append(Problem(row.path, _empty_part(file, row, info)))
    _refuse_problems(file, root, problems, len(problems) + len(parts), strict)
    videos = _entries(root, [(found[row.path], info) for row, info, _, _ in parts])
    entries = [
        replace(video, first=first, stop=stop, captions=row.captions or video.captions)
        for video, (row, _, first, stop) in zip(videos, parts, strict=True)
    ]
    rows = [row for row, _, _, _ in parts]
    identities = [found[row.path].identity for row in rows]
    labelled = _assign_rows(file, entries, rows, identities)
    return VideoIndex(root, problems=tuple(problems), **labelled._asdict())


def _of_hdf5(file: Path) -> VideoIndex:
    stored = stored_videos(file)
    entries = [
        VideoEntry(
            video.path,
            "hdf5",
            SPLIT_FOLDERS[video.part],
            -1,
            untimed_info(video.frames, video.width, video.height),
            0,
            video.frames,
        )
        for video in stored
    ]
    names = [video.label for video in stored]
    divided = 0
    if all(entry.split == "train" for entry in entries):
        entries, names, divided = _hold_out(entries, names)
    # Labels are mostly numbers, whose order should be theirs.
    labelled = _label(entries, names, divided, sorting=natural_key)
    return VideoIndex(file, problems=(), **labelled._asdict())


def _of_array(file: Path) -> VideoIndex:
    videos, frames, height, width = video_array(file).shape
    info = untimed_info(frames, width, height)
    entries = [
        VideoEntry(str(number), "array", "train", -1, info, 0, frames) for number in range(videos)
    ]
    entries, _, divided = _hold_out(entries, [""] * videos)
    return VideoIndex(file, tuple(entries), (), (), divided=divided)


def _infos(root: Path, found: Sequence[_Found], progress: Progress | None) -> list[VideoInfo | str]:
    """What is known of each video, or why nothing is; from the cache where it is there."""
    infos = _load(root, found)
    if infos is None:
        infos = _probe_all(root, found, progress)
        _save(root, found, infos)
    return infos


def _refuse_problems(
    dataset: Path, root: Path, problems: Sequence[Problem], total: int, strict: bool
) -> None:
    if problems and strict:
        raise DataError(
            f"{root / problems[0].path}: {problems[0].reason}",
            "without --strict, files that cannot be read are named and left out",
        )
    if len(problems) == total:
        raise DataError(
            f"{dataset}: none of its {total} videos can be read; the first is "
            f"{problems[0].path}: {problems[0].reason}"
        )


def _entries(root: Path, videos: Sequence[tuple[_Found, VideoInfo]]) -> list[VideoEntry]:
    """Whole videos for training without a class, with what lies beside them."""
    described = {video.path: root / video.captions for video, _ in videos if video.captions}
    with ThreadPoolExecutor(_threads()) as pool:
        captions = dict(zip(described, pool.map(_captions, described.values()), strict=True))
    return [
        VideoEntry(
            video.path,
            video.kind,
            "train",
            -1,
            info,
            0,
            len(info.times),
            captions.get(video.path, ()),
            video.sound,
        )
        for video, info in videos
    ]


def _captions(path: Path) -> tuple[str, ...]:
    """The captions of a file; none, with a warning, where it is no text."""
    try:
        if not S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
            raise ValueError("not a regular file")
        return clean_captions(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        logger.warning("%s holds no captions: %s", path, told)
        return ()


def _threads() -> int:
    return min(32, os.cpu_count() or 1)


def _listing(root: Path, tops: Sequence[str]) -> list[_Found]:
    """The videos below some folders of a dataset."""
    found: list[_Found] = []
    beside: dict[Path, _Beside] = {}
    for top in tops:
        seen: set[str] = set()
        for folder, folders, names in os.walk(root / top, followlinks=True, onerror=_unreadable):
            real = os.path.realpath(folder)
            if real in seen and Path(folder).is_symlink():  # a link back up would never end
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            beside[Path(folder)] = _files_beside(names)
            found += _videos_in(root, Path(folder), names, beside)
    return sorted(found, key=lambda video: (natural_key(video.path), video.path))


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: {error.strerror}", "give yourself the right to read it"
    ) from error


def _split_folders(root: Path) -> list[str]:
    try:
        present = [name for name in SPLIT_FOLDERS if (root / name).is_dir()]
    except OSError as error:
        raise DataError(f"{root}: {error.strerror}") from error
    if "val" in present and "test" in present:
        present.remove("test")
    return present


def _videos_in(
    root: Path, folder: Path, names: list[str], beside: Mapping[Path, _Beside]
) -> Iterable[_Found]:
    suffixes = {name: Path(name).suffix.lower() for name in names if not name.startswith(".")}
    videos = [name for name, suffix in suffixes.items() if suffix in VIDEO_SUFFIXES]
    for name in videos:
        path = folder / name
        try:
            stat = path.stat()
            size, mtime = stat.st_size, stat.st_mtime_ns
        except OSError:  # a dangling link; probing says so
            size, mtime = 0, 0
        video = _Found(path.relative_to(root).as_posix(), "file", size, mtime)
        yield _with_beside(video, path.stem, beside[folder])
    images = sum(suffix in IMAGE_SUFFIXES for suffix in suffixes.values())
    if images and not videos:  # beside videos, images are covers
        below = folder.relative_to(root).as_posix()
        video = _Found(below, "frames", images, folder.stat().st_mtime_ns)
        above = beside.get(folder.parent) if folder != root else None
        if above is None:  # the folder is where the walk began
            above = _files_beside(_names_in(folder.absolute().parent))
        yield _with_beside(video, folder.absolute().name, above)


def _named(root: Path, paths: Iterable[str]) -> list[_Found]:
    """The listing of single videos; those that are not there are left to probing."""
    found = []
    beside: dict[Path, _Beside] = {}
    for name in sorted(paths, key=lambda path: (natural_key(path), path)):
        path = root / name
        kind: Literal["file", "frames"] = "file"
        try:
            stat = path.stat()
            size, mtime, identity = stat.st_size, stat.st_mtime_ns, (stat.st_dev, stat.st_ino)
        except OSError:
            found.append(_Found(name, kind, 0, 0, identity=name))
            continue
        if S_ISDIR(stat.st_mode):
            kind = "frames"
            size = sum(Path(image).suffix.lower() in IMAGE_SUFFIXES for image in _names_in(path))
        if path.parent not in beside:
            beside[path.parent] = _files_beside(_names_in(path.parent))
        stem = path.name if kind == "frames" else path.stem
        video = _Found(name, kind, size, mtime, identity=identity)
        found.append(_with_beside(video, stem, beside[path.parent]))
    return found


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # names are all that is needed
    except OSError:  # it may be entered, but not listed
        return []


def _files_beside(names: Iterable[str]) -> _Beside:
    """Files of captions and of sound in a folder, by suffix and by the name they share."""
    found: _Beside = {}
    for name in sorted(names):  # of a.TXT and a.txt, the latter
        stem, suffix = os.path.splitext(name)  # noqa: PTH122  # each name of a large dataset
        if suffix.lower() in (_CAPTIONS, _SOUND):
            found[stem, suffix.lower()] = name
    return found


def _with_beside(video: _Found, stem: str, beside: _Beside) -> _Found:
    def path(suffix: str) -> str:
        name = beside.get((stem, suffix), "")
        if not name or video.path == ".":  # a folder of frames that is itself the dataset
            return name and f"../{name}"
        return (PurePosixPath(video.path).parent / name).as_posix()

    return replace(video, captions=path(_CAPTIONS), sound=path(_SOUND)) if beside else video


def _probe_all(
    root: Path, found: Sequence[_Found], progress: Progress | None
) -> list[VideoInfo | str]:
    def attempt(video: _Found) -> VideoInfo | str:
        path = root / video.path
        try:
            return probe(path)
        except DataError as error:
            return error.message.removeprefix(f"{path}: ")

    infos: list[VideoInfo | str] = []
    # Threads, since libavformat works without the interpreter's lock.
    with ThreadPoolExecutor(_threads()) as pool:
        for info in pool.map(attempt, found):
            infos.append(info)
            if progress is not None:
                progress(len(infos), len(found))
    return infos


def _cache_file(root: Path, found: Sequence[_Found]) -> Path:
    key = blake2b(digest_size=16)
    key.update(json.dumps([_FORMAT, str(root.absolute())]).encode())
    for video in found:
        row = [os.fsencode(video.path).hex(), video.kind, video.size, video.mtime]
        key.update(json.dumps(row).encode())
    return cache_folder() / "index" / f"{key.hexdigest()}.npz"


def _load(root: Path, found: Sequence[_Found]) -> list[VideoInfo | str] | None:
    path = _cache_file(root, found)
    try:
        with np.load(path, allow_pickle=False) as stored:
            rows = json.loads(stored["rows"].item())
            times = np.split(stored["times"], np.cumsum(stored["frames"])[:-1])
            keys = np.split(stored["keys"], np.cumsum(stored["key_frames"])[:-1])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.info("the cached index %s is damaged and made anew: %s", path, error)
        return None
    return [
        row if isinstance(row, str) else VideoInfo(times[n], keys[n], **row)
        for n, row in enumerate(rows)
    ]


def _save(root: Path, found: Sequence[_Found], infos: Sequence[VideoInfo | str]) -> None:
    empty = np.empty(0)
    times = [empty if isinstance(info, str) else info.times for info in infos]
    keys = [empty if isinstance(info, str) else info.keys for info in infos]
    rows = [
        info if isinstance(info, str) else {name: getattr(info, name) for name in _FIELDS}
        for info in infos
    ]
    path = _cache_file(root, found)
    try:
        with written_whole(path, DataError) as partial, partial.open("wb") as file:
            np.savez(
                file,
                rows=np.array(json.dumps(rows)),
                times=np.concatenate(times),
                frames=np.array([len(part) for part in times]),
                keys=np.concatenate(keys),
                key_frames=np.array([len(part) for part in keys]),
            )
    except DataError as error:
        logger.warning(
            "the index is made anew each time: %s; TATS_CACHE names another folder for it", error
        )


def _assign(root: Path, entries: list[VideoEntry]) -> _Labelled:
    folders = _split_folders(root)
    names = [_class_name(entry.path, bool(folders)) for entry in entries]
    divided = 0
    if "val" in folders or "test" in folders:
        entries = [
            replace(entry, split=SPLIT_FOLDERS[entry.path.split("/", 1)[0]]) for entry in entries
        ]
    else:
        if not all(names):  # no classes, so none has to stay complete
            names = [""] * len(names)
        entries, names, divided = _hold_out(entries, names)
    if not all(names):  # videos outside of any class: the folders mean something else
        return _Labelled(tuple(entries), divided=divided)
    return _label(entries, names, divided)


def _without_tests(file: Path, rows: list[ManifestRow]) -> list[ManifestRow]:
    """The rows; as with folders, those for testing are set aside if others are for validation."""
    tests = sum(row.split == "test" for row in rows)
    if not tests or all(row.split != "val" for row in rows):
        return rows
    logger.warning("%s: it has a split val, so the %s rows of test are left out", file, tests)
    return [row for row in rows if row.split != "test"]


def _span(row: ManifestRow, info: VideoInfo) -> tuple[int, int]:
    """Positions of the first frame of a row's part, and of the one behind its last."""
    seconds = info.times - info.times[0]
    first, stop = np.searchsorted(seconds, [row.start - _ROUNDING, row.end - _ROUNDING])
    return int(first), int(stop)


def _empty_part(file: Path, row: ManifestRow, info: VideoInfo) -> str:
    last = info.times[-1] - info.times[0]
    end = f"before {row.end:g} s" if row.end < math.inf else "later"
    return (
        f"no frame at {row.start:g} s or {end}, as line {row.line} of {file.name} wants; "
        f"its last is at {last:g} s"
    )


def _assign_rows(
    file: Path,
    entries: list[VideoEntry],
    rows: Sequence[ManifestRow],
    identities: Sequence[Hashable],
) -> _Labelled:
    said: dict[Hashable, set[Split]] = {}
    for row, identity in zip(rows, identities, strict=True):
        if row.split:
            said.setdefault(identity, set()).add(SPLIT_FOLDERS[row.split])
    splits: list[Split | None] = []
    for row, identity in zip(rows, identities, strict=True):
        of_video = said.get(identity, set())
        if not row.split and len(of_video) > 1:
            raise DataError(
                f"{file}, line {row.line}: split is empty, and other rows of {row.path} are of "
                "both splits",
                "say which split this part belongs to",
            )
        splits.append(SPLIT_FOLDERS[row.split] if row.split else next(iter(of_video), None))
    needed = "val" not in splits
    undecided = [n for n, split in enumerate(splits) if split is None]
    undecided = undecided or (list(range(len(splits))) if needed else [])
    decided = sorted(set(range(len(splits))) - set(undecided))
    held, names, divided = _hold_out(
        [entries[n] for n in undecided],
        [rows[n].label for n in undecided],
        [identities[n] for n in undecided],
        trained={rows[n].label for n in decided if splits[n] == "train"},
        needed=needed,
    )
    held += [replace(entries[n], split=splits[n] or "train") for n in decided]
    return _label(held, names + [rows[n].label for n in decided], divided)


def _label(
    entries: Sequence[VideoEntry],
    names: Sequence[str],
    divided: int,
    sorting: Callable[[str], Any] | None = None,
) -> _Labelled:
    """Numbers the classes by those of the training split, and orders the entries."""
    pairs = list(zip(entries, names, strict=True))
    named = {name for name in names if name}
    known = {name for entry, name in pairs if name and entry.split == "train"} or named
    classes = tuple(sorted(known, key=sorting))
    labels = {name: label for label, name in enumerate(classes)}
    labelled = [replace(entry, label=labels.get(name, -1)) for entry, name in pairs]
    labelled.sort(key=lambda entry: (natural_key(entry.path), entry.path, entry.first))
    untrained = tuple(sorted(named - known, key=sorting))
    return _Labelled(tuple(labelled), classes, untrained, divided)


def _class_name(path: str, has_splits: bool) -> str:
    parts = path.split("/")[1 if has_splits else 0 :]
    return parts[0] if len(parts) > 1 else ""


def _hold_out(
    entries: list[VideoEntry],
    names: list[str],
    identities: Sequence[Hashable] | None = None,
    trained: Iterable[str] = (),
    needed: bool = True,
) -> tuple[list[VideoEntry], list[str], int]:
    """Puts a tenth of the videos of every class into the validation split.

    Within a class, videos are ordered by a hash of their paths and spread evenly over [0, 1), with
    a random offset for each class; those below 0.1 are held out. So small classes are not all
    held out from, and together they still give a tenth. A class keeps a training video.

    Args:
        entries: Videos or parts of videos, all for training.
        names: Their classes.
        identities: Tells which are of one video, and stay together; by default, none are.
        trained: Classes that have other training videos.
        needed: Whether something must be held out; else there are other videos for validation.

    Returns:
        The entries, their classes, and how many videos are divided. Where something must be held
        out and no class can spare a video, all are, into the first nine tenths and the last tenth.
    """
    videos: dict[Hashable, list[int]] = {}
    for number in range(len(entries)):
        videos.setdefault(identities[number] if identities else number, []).append(number)
    shown = {video: {names[n] for n in numbers} for video, numbers in videos.items()}
    places = _places(
        {video: (entries[numbers[0]].path, names[numbers[0]]) for video, numbers in videos.items()}
    )
    left = Counter(set(trained))
    for own in shown.values():
        left.update(own)
    held: set[int] = set()
    for video in sorted(places, key=lambda video: places[video]):
        if places[video] >= HELD_OUT and (held or not needed):
            break
        if all(left[name] > 1 for name in shown[video]):
            left.subtract(shown[video])
            held.update(videos[video])
    if needed and not held:
        pairs = [part for numbers in videos.values() for part in _last_tenths(entries, numbers)]
        return [entry for entry, _ in pairs], [names[number] for _, number in pairs], len(videos)
    whole = [
        replace(entry, split="val") if number in held else entry
        for number, entry in enumerate(entries)
    ]
    return whole, names, 0


def _places(videos: Mapping[Hashable, tuple[str, str]]) -> dict[Hashable, float]:
    """Where in [0, 1) each video lies among those of its class; of each, path and class."""
    members: dict[str, list[Hashable]] = {}
    for video, (_, name) in videos.items():
        members.setdefault(name, []).append(video)
    return {
        video: (rank + _fraction(f"class {name}")) / len(group)
        for name, group in members.items()
        for rank, video in enumerate(sorted(group, key=lambda v: _fraction(videos[v][0])))
    }


def _last_tenths(
    entries: Sequence[VideoEntry], numbers: Sequence[int]
) -> list[tuple[VideoEntry, int]]:
    """The parts of a video, cut so that its last tenth is in none that is trained on.

    Parts that overlap are cut at one place, others each at its own.
    """
    pairs: list[tuple[VideoEntry, int]] = []
    waiting = sorted(numbers, key=lambda number: entries[number].first)
    while waiting:
        together = [waiting.pop(0)]
        stop = entries[together[0]].stop
        while waiting and entries[waiting[0]].first < stop:
            together.append(waiting.pop(0))
            stop = max(stop, entries[together[-1]].stop)
        border = stop - round((stop - entries[together[0]].first) * HELD_OUT)
        for number in together:
            entry = entries[number]
            parts = (
                replace(entry, stop=min(entry.stop, border)),
                replace(entry, split="val", first=max(entry.first, border)),
            )
            # A video that is too short for a tenth is named as such later.
            pairs += [
                (part, number) for part in parts if part.first < part.stop or len(together) == 1
            ]
    return pairs


def _fraction(text: str) -> float:
    digest = blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
