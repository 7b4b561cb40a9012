"""Token datasets that lie elsewhere, brought into the user's cache shard by shard.

Whatever fsspec opens is read: `s3://`, `gs://`, `hf://`, `https://` and more. What arrives is
compared with the checksums of the manifest before it gets its name, and the manifest is written
last, so that a fetch that was interrupted goes on where it stopped.
"""

import errno
import fcntl
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from tatscli.core.data.index import Problem, Progress
from tatscli.core.data.tokens import (
    MANIFEST,
    TokenManifest,
    as_json,
    parse_manifest,
    shards_of,
    threads,
    verify_shard,
    verify_vqgan,
    vqgans_of,
    written_shard,
)
from tatscli.core.files import UNFINISHED, unwritable, write_whole, written_whole
from tatscli.errors import DataError

_NO_RIGHTS = re.compile(r"credential|denied|forbidden|unauthori[sz]ed|\b40[13]\b", re.IGNORECASE)
_CONNECTIONS = 8
_AGAIN = "run the same command again; what has arrived is kept"
_COPY = "copy the token dataset there again: what is there differs from its manifest"


def remote_manifest(url: str) -> TokenManifest:
    """What a token dataset elsewhere holds; nothing but its manifest is fetched.

    Raises:
        DataError: It cannot be reached, is no token dataset, or is incomplete or damaged.
    """
    return _manifest(url, _Store(url).read(MANIFEST))


def fetch_tokens(url: str, cache: Path, progress: Progress | None = None) -> Path:
    """Brings a token dataset to this machine; what is there already is kept.

    One process of a machine fetches a dataset at a time; the others wait for it.

    Args:
        url: Its folder, in a form that fsspec understands.
        cache: The user's cache. Where the manifest at the source changes, this is another dataset,
            with a folder of its own.
        progress: Called with the bytes that are there and their total.

    Returns:
        Its folder on this machine.

    Raises:
        DataError: It cannot be reached, is incomplete or damaged, or does not fit on the disk.
    """
    store = _Store(url)
    content = store.read(MANIFEST)
    manifest = _manifest(url, content)
    folder = cache / "tokens" / f"{_digest(url.encode())}-{_digest(content)}"
    with _alone(folder):
        _fetch(store, manifest, folder, progress or (lambda done, total: None))
        if not _holds(folder / MANIFEST, content):
            write_whole(folder / MANIFEST, content, DataError)
        for path in folder.glob(UNFINISHED):
            path.unlink(missing_ok=True)
    return folder


class _Store:
    """The files of a folder elsewhere."""

    def __init__(self, url: str) -> None:
        import fsspec  # takes a tenth of a second, for what few commands need

        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise DataError(
                f"{url}: {error}", 'pip install "tatscli[remote]" reads s3://, gs:// and hf://'
            ) from error
        except Exception as error:  # of whatever kind the file system has, as below
            raise self._failed("", error) from error

    def read(self, name: str) -> bytes:
        try:
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
        except Exception as error:
            raise self._failed(name, error) from error
        return content

    def size(self, name: str) -> int:
        try:
            return int(self._files.size(f"{self._root}/{name}") or 0)
        except Exception as error:
            raise self._failed(name, error) from error

    def fetch(self, file: Path, check: Callable[[Path], Problem | None]) -> None:
        """Bring the file of a name to its place, once nothing is found to be wrong with it."""
        name = file.name
        with written_whole(file, DataError, sync=True) as partial:
            try:
                self._files.get_file(f"{self._root}/{name}", str(partial))
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise self._failed(name, error) from error
            if problem := check(partial):
                raise DataError(f"{self.url}/{name}: {problem.reason}", _COPY)

    def _failed(self, name: str, error: Exception) -> DataError:
        where = f"{self.url}/{name}" if name else self.url
        if isinstance(error, FileNotFoundError):
            hint = "give the address of a folder that tats encode wrote"
            return DataError(f"{where}: is not there", hint)
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, PermissionError) or _NO_RIGHTS.search(reason):
            hint = "log in with the tools of that store, or ask for the right to read there"
        else:
            hint = f"check the address and the network, then {_AGAIN}"
        return DataError(f"{where}: cannot be read: {reason}", hint)


def _manifest(url: str, content: bytes) -> TokenManifest:
    manifest = parse_manifest(content, f"{url}/{MANIFEST}", _COPY)
    if not manifest.complete:
        raise DataError(
            f"{url}: incomplete", "complete it with the same 'tats encode', and copy it there again"
        )
    return manifest


def _fetch(store: _Store, manifest: TokenManifest, folder: Path, progress: Progress) -> None:
    shards, vqgans = shards_of(folder, manifest), vqgans_of(manifest)
    present = {name for name, shard in shards.items() if written_shard(folder, name) == shard}
    present |= {name for name in vqgans if (folder / name).is_file()}
    missing = {name: shard.bytes for name, shard in shards.items() if name not in present}
    missing |= {name: store.size(name) for name in vqgans if name not in present}
    needed, free = sum(missing.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{store.url}: {needed:,} bytes are to be fetched, {free:,} are free in {folder}",
            "free some space; TATS_CACHE names another folder",
        )

    def bring(name: str) -> int:
        if name in vqgans:
            store.fetch(folder / name, lambda file: verify_vqgan(file, vqgans[name]))
        else:
            shard = shards[name]
            store.fetch(folder / f"{name}.safetensors", lambda file: verify_shard(file, shard))
            write_whole(folder / f"{name}.json", as_json(shard), DataError)
        return missing[name]

    done = sum(shard.bytes for name, shard in shards.items() if name in present)
    total = done + needed
    with threads(_CONNECTIONS) as pool:
        for arrived in as_completed([pool.submit(bring, name) for name in missing]):
            progress(done := done + arrived.result(), total)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder, and let one process at a time into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock").open("a")
    except OSError as error:
        raise unwritable(folder, error, DataError) from error
    with lock:
        with suppress(OSError):  # where the disk has no locks, a file may be fetched twice
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _holds(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except OSError:
        return False


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=8).hexdigest()
