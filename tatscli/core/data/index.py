"""The index of a dataset: which videos it has, their frames' times, splits and classes.

An index is built once and kept in the user's cache, never in the dataset.
"""

import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from tatscli.core.data.video import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    VideoInfo,
    natural_key,
    probe,
)
from tatscli.core.files import written_whole
from tatscli.errors import DataError

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
Progress = Callable[[int, int], None]

HELD_OUT = 0.1
"""Part of the videos that is validated on where the folder has no split of its own."""

SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "test": "val"}
"""Folders right below a dataset that are its splits."""

_FORMAT = 1
_FIELDS = ("width", "height", "rotation", "rate", "ordered")


@dataclass(frozen=True, eq=False)
class VideoEntry:
    """A video, or the part of it that belongs to a split.

    Attributes:
        path: Path below the root of the dataset, with forward slashes.
        kind: A video file or a folder of frames.
        split: Training or validation.
        label: Class id, -1 where the dataset has no classes.
        info: Times and geometry.
        first: The first frame that belongs to the split, as a position in `info.times`.
        stop: The position behind the last one.
    """

    path: str
    kind: Literal["file", "frames"]
    split: Split
    label: int
    info: VideoInfo
    first: int
    stop: int


@dataclass(frozen=True)
class Problem:
    """A video that is left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """What a dataset holds.

    Attributes:
        root: The folder that the paths of the entries start from.
        entries: All videos of both splits, in natural order of their paths.
        problems: What was left out.
        classes: Names of the classes by id; empty where there are none.
    """

    root: Path
    entries: tuple[VideoEntry, ...]
    problems: tuple[Problem, ...]
    classes: tuple[str, ...]

    def split(self, name: Split) -> tuple[VideoEntry, ...]:
        """The entries of one split."""
        return tuple(entry for entry in self.entries if entry.split == name)


@dataclass(frozen=True)
class _Found:
    """A video in the listing; size and mtime change with its content."""

    path: str
    kind: Literal["file", "frames"]
    size: int
    mtime: int


def build_index(
    root: Path, *, strict: bool = False, progress: Progress | None = None
) -> VideoIndex:
    """Lists a dataset, reads every video's time stamps, and assigns splits and classes.

    Videos are files with a known suffix and folders that directly hold images. The folders `train`
    and `val` (or `test`) below the root are the splits. Without them, about a tenth of each class
    is validated on, chosen by a hash of the path; where no class has two videos, it is the last
    tenth of every video. The folder right below the split is the class.

    Args:
        root: The dataset.
        strict: Whether a video that cannot be read is an error rather than left out.
        progress: Called with the videos read and their total; not called for a cached index.

    Raises:
        DataError: The root is missing or unreadable, no video is left, a validation class is not
            in the training split, or, if strict, any video cannot be read.
    """
    root = root.expanduser().absolute()
    found = _listing(root)
    if not found:
        raise DataError(
            f"{root}: no videos and no folders of frames in it",
            "--data takes a folder of video files or of folders with png or jpg frames; "
            "'tats data synth' writes one to try",
        )
    infos = _load(root, found)
    if infos is None:
        infos = _probe_all(root, found, progress)
        _save(root, found, infos)
    problems = tuple(
        Problem(video.path, info)
        for video, info in zip(found, infos, strict=True)
        if isinstance(info, str)
    )
    if problems and strict:
        raise DataError(
            f"{root / problems[0].path}: {problems[0].reason}",
            "without --strict, files that cannot be read are named and left out",
        )
    videos = [
        (video, info)
        for video, info in zip(found, infos, strict=True)
        if isinstance(info, VideoInfo)
    ]
    if not videos:
        raise DataError(
            f"{root}: none of its {len(found)} videos can be read; the first is "
            f"{problems[0].path}: {problems[0].reason}"
        )
    entries, classes = _assign(root, videos)
    return VideoIndex(root, entries, problems, classes)


def cache_folder() -> Path:
    """Where indices are kept: $TATS_CACHE, else tats in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TATS_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tats"


def _listing(root: Path) -> list[_Found]:
    if not root.exists():
        raise DataError(f"{root}: no such folder", "--data names the folder of the videos")
    if not root.is_dir():
        raise DataError(f"{root}: a file, not a folder", "--data takes the folder that holds it")
    splits = [root / name for name in _split_folders(root)]
    found: list[_Found] = []
    for top in splits or [root]:
        seen: set[str] = set()
        for folder, folders, names in os.walk(top, followlinks=True, onerror=_unreadable):
            real = os.path.realpath(folder)
            if real in seen and Path(folder).is_symlink():  # a link back up would never end
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += _videos_in(root, Path(folder), names)
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


def _videos_in(root: Path, folder: Path, names: list[str]) -> Iterable[_Found]:
    suffixes = {name: Path(name).suffix.lower() for name in names if not name.startswith(".")}
    videos = [name for name, suffix in suffixes.items() if suffix in VIDEO_SUFFIXES]
    for name in videos:
        path = folder / name
        try:
            stat = path.stat()
            size, mtime = stat.st_size, stat.st_mtime_ns
        except OSError:  # a dangling link; probing says so
            size, mtime = 0, 0
        yield _Found(path.relative_to(root).as_posix(), "file", size, mtime)
    images = sum(suffix in IMAGE_SUFFIXES for suffix in suffixes.values())
    if images and not videos:  # beside videos, images are covers
        name = folder.relative_to(root).as_posix()
        yield _Found(name, "frames", images, folder.stat().st_mtime_ns)


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
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for info in pool.map(attempt, found):
            infos.append(info)
            if progress is not None:
                progress(len(infos), len(found))
    return infos


def _cache_file(root: Path, found: Sequence[_Found]) -> Path:
    key = blake2b(digest_size=16)
    key.update(json.dumps([_FORMAT, str(root)]).encode())
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
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("the cached index %s is damaged and made anew: %s", path, error)
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
        logger.warning("the index is made anew each time: %s", error)


def _assign(
    root: Path, videos: Sequence[tuple[_Found, VideoInfo]]
) -> tuple[tuple[VideoEntry, ...], tuple[str, ...]]:
    folders = _split_folders(root)
    entries = [
        VideoEntry(video.path, video.kind, "train", -1, info, 0, len(info.times))
        for video, info in videos
    ]
    names = [_class_name(video.path, bool(folders)) for video, _ in videos]
    if "val" in folders or "test" in folders:
        entries = [
            replace(entry, split=SPLIT_FOLDERS[entry.path.split("/", 1)[0]]) for entry in entries
        ]
    else:
        if not all(names):  # no classes, so none has to stay complete
            names = [""] * len(names)
        entries, names = _hold_out(entries, names)
    if not all(names):  # videos outside of any class: the folders mean something else
        return tuple(entries), ()
    trained = {name for entry, name in zip(entries, names, strict=True) if entry.split == "train"}
    known = sorted(trained or set(names))
    unseen = sorted(set(names) - set(known))
    if unseen:
        raise DataError(
            f"{root}: classes in the validation split without a training video: "
            f"{', '.join(unseen)}; the training split has {', '.join(known)}",
            "add training videos of these classes, or take the folders out of the validation split",
        )
    labels = {name: label for label, name in enumerate(known)}
    return (
        tuple(
            replace(entry, label=labels[name]) for entry, name in zip(entries, names, strict=True)
        ),
        tuple(known),
    )


def _class_name(path: str, has_splits: bool) -> str:
    parts = path.split("/")[1 if has_splits else 0 :]
    return parts[0] if len(parts) > 1 else ""


def _hold_out(entries: list[VideoEntry], names: list[str]) -> tuple[list[VideoEntry], list[str]]:
    """Puts a tenth of every class into the validation split.

    Within a class, videos are ordered by a hash of their paths and spread evenly over [0, 1), with
    a random offset for each class; those below 0.1 are held out. So small classes are not all
    held out from, and together they still give a tenth.
    """
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(name, []).append(number)
    places = {
        number: (rank + _fraction(f"class {name}")) / len(group)
        for name, group in members.items()
        if len(group) > 1
        for rank, number in enumerate(sorted(group, key=lambda n: _fraction(entries[n].path)))
    }
    if not places:
        pairs = [part for entry in entries for part in _last_tenth(entry)]
        return pairs, [name for name in names for _ in range(2)]
    held = {number for number, place in places.items() if place < HELD_OUT}
    held = held or {min(places, key=lambda number: places[number])}
    return [
        replace(entry, split="val") if number in held else entry
        for number, entry in enumerate(entries)
    ], names


def _last_tenth(entry: VideoEntry) -> tuple[VideoEntry, VideoEntry]:
    border = entry.stop - round(entry.stop * HELD_OUT)
    return replace(entry, stop=border), replace(entry, split="val", first=border)


def _fraction(text: str) -> float:
    digest = blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
