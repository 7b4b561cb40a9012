"""Files that appear whole: written beside their place, then renamed; and folders that are free."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from tatscli.errors import DISK_HINTS, DataError, TatsError

UNFINISHED = ".*.part"
"""What a process that was killed may leave behind."""

_LOCK = ".lock"
"""Of a folder that a process writes into, while it does."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def aside(file: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary sibling that takes the file's name at the end, or is removed on any failure.

    Args:
        file: What is to be written; its folder is made where it is missing.
        sync: Whether the content must be on the disk before the name is, and the name after.
    """
    # Processes on several machines, or in containers, may have the same number.
    partial = file.with_name(f".{file.name}.{os.getpid()}-{token_hex(4)}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if sync:
            _sync(partial)
        partial.replace(file)
        if sync:
            _sync(file.parent)
    except OSError as error:
        if error.filename == str(partial):  # a name that nobody gave
            error.filename = str(file)
        raise
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def written_whole(
    file: Path, kind: type[TatsError], *, needs: int = 0, sync: bool = False
) -> Iterator[Path]:
    """``aside``, where what the system says becomes an error with path and reason.

    Args:
        file: What is to be written.
        kind: Of the error.
        needs: Bytes that will be written at least, where they are known: where there is no room
            for them, nothing is written.
        sync: See ``aside``.

    Raises:
        TatsError: Of the given kind; the file cannot be written.
    """
    try:
        require_room(file, needs)
        with aside(file, sync=sync) as partial:
            yield partial
    except OSError as error:
        raise unwritable(file, error, kind, needs) from error


def write_whole(file: Path, content: bytes, kind: type[TatsError]) -> None:
    """Write a file so that, whatever happens, a reader finds the old content or the new.

    Raises:
        TatsError: Of the given kind; it cannot be written.
    """
    with written_whole(file, kind, needs=len(content), sync=True) as partial:
        partial.write_bytes(content)


def link_atomically(file: Path, name: Path) -> None:
    """Give a file a second name, in place of what had it; a copy where the disk has no links.

    Raises:
        OSError: Neither can be made.
    """
    with aside(name) as partial:
        try:
            partial.hardlink_to(file)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
                raise
            shutil.copyfile(file, partial)


def unwritable(path: Path, error: OSError, kind: type[TatsError], needs: int = 0) -> TatsError:
    """The error for a path that cannot be written; on a full disk, with needed and free bytes."""
    reason = error.strerror or str(error) or type(error).__name__
    facts = [f"{needs:,} bytes needed"] if needs and error.errno in _NO_ROOM else []
    if error.errno == errno.ENOSPC and (free := _free(path)) is not None:
        facts.append(f"{free:,} bytes free")
    if facts:
        reason += f" ({', '.join(facts)})"
    return kind(f"{path} cannot be written: {reason}", DISK_HINTS.get(error.errno or 0, ""))


def require_room(file: Path, needs: int) -> None:
    """Make sure that so many bytes are free where a file is to be.

    Raises:
        OSError: They are not.
    """
    free = _free(file)
    if free is not None and needs > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _free(path: Path) -> int | None:
    """Bytes that are free where a file is to be; some file systems do not count."""
    usage = shutil.disk_usage(next(f for f in path.absolute().parents if f.exists()))
    return usage.free if usage.total else None


def claim_empty(path: Path, hint: str, kind: type[TatsError] = DataError) -> None:
    """Make sure that a folder to be written is new or empty.

    Raises:
        TatsError: Of the given kind; it is a file, holds something, or cannot be looked into.
    """
    try:
        is_file = path.exists() and not path.is_dir()
        # Whether somebody still has the lock, ``held_alone`` finds out.
        taken = not is_file and path.exists() and any(f.name != _LOCK for f in path.iterdir())
    except OSError as error:
        raise unwritable(path, error, kind) from error
    if is_file:
        raise kind(f"{path} is a file, and a folder is to be written", "choose another name")
    if taken:
        raise kind(f"{path} exists and is not empty; nothing was overwritten", hint)


@contextmanager
def held_alone(folder: Path, hint: str, kind: type[TatsError] = DataError) -> Iterator[None]:
    """Keep other processes of the machine, unless it has no locks, from writing into a folder.

    Raises:
        TatsError: Of the given kind; another process holds it, or it cannot be written.
    """
    file = folder / _LOCK
    try:
        lock = file.open("a")
    except OSError as error:
        raise unwritable(folder, error, kind) from error
    with lock:
        try:
            # Unlike those of flock, a lock that readers who are forked meanwhile do not have, too.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise kind(f"{folder}: another process is writing into it", hint) from None
        except OSError:  # no locks here
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
