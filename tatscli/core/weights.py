"""Files from elsewhere: what they are, where they lie, how they are verified, fetched and read.

A file is never used before its checksum was seen to be right. The verdict is kept in a small file
beside it (with the size and the time of change it holds for), so that half a gigabyte is hashed
once and not at each start. Torch is imported only to read a file: listing needs none of it.
"""

import contextlib
import fcntl
import hashlib
import http.client
import importlib.util
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from tatscli.core.files import require_room, unwritable
from tatscli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Layout = Mapping[str, tuple[int, ...]]
"""The tensors that a file must hold: their names and shapes."""

Progress = Callable[[int, int], None]
"""Called with the bytes so far and in all (0 = unknown)."""

CHUNK = 1 << 20
TIMEOUT = 30.0
WAIT = 0.2
"""Seconds between two looks at a file that another process is fetching."""


@dataclass(frozen=True)
class Pin:
    """The checksum that identifies a file.

    Attributes:
        kind: `sha256` of the bytes, or `git-blob`, the SHA-1 under which git stores them.
        digest: The expected value, lower-case hexadecimal; its beginning where no more was
            published.
    """

    kind: Literal["sha256", "git-blob"]
    digest: str

    def __str__(self) -> str:
        whole = 64 if self.kind == "sha256" else 40
        if len(self.digest) == whole:
            return self.kind
        return f"{self.kind}, first {len(self.digest)} of {whole} digits"

    def measure(self, path: Path) -> str:
        """Returns this kind of checksum of a file, in as many digits as the expected one has."""
        with path.open("rb") as file:
            if self.kind == "sha256":
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                header = b"blob %d\0" % path.stat().st_size
                digest = hashlib.file_digest(
                    file, lambda: hashlib.sha1(header, usedforsecurity=False)
                ).hexdigest()
        return digest[: len(self.digest)]


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        name: What the command line calls it.
        filename: Its name in the weights folder.
        urls: Where it can be fetched, tried in order; none where a package ships it.
        size: Bytes; None where it was never published.
        pin: Its checksum.
        licence: Under which it may be used.
        used_for: What needs it, one line.
        instead: Option that does without it.
        shipped_in: Folder of an installed package that ships it, the package's name first.
    """

    name: str
    filename: str
    urls: tuple[str, ...]
    size: int | None
    pin: Pin
    licence: str
    used_for: str
    instead: str
    shipped_in: str = ""

    @property
    def path(self) -> Path:
        """Where the file lies, or belongs."""
        return (_installed(self.shipped_in) or weights_folder()) / self.filename

    @property
    def remedy(self) -> str:
        """The command that brings it."""
        if self.shipped_in:
            return f"pip install --force-reinstall {self.shipped_in.split('/')[0]}"
        return f"tats weights fetch {self.name}"


I3D_FILES = ("i3d", "i3d-torchscript", "i3d-tf")
"""Three containers of one network, any of which serves; its tensors have checksums too."""

FILES: dict[str, WeightFile] = {
    file.name: file
    for file in (
        WeightFile(
            name="i3d",
            filename="i3d_pretrained_400.pt",
            urls=(
                "https://raw.githubusercontent.com/SongweiGe/TATS/"
                "1aa93e189080a7bfc070c355d2377b43474b520b/tats/fvd/i3d_pretrained_400.pt",
                "https://raw.githubusercontent.com/JunyaoHu/common_metrics_on_video_quality/"
                "5f751734ce9cef4cd2dddb235726b75dff62a387/fvd/videogpt/i3d_pretrained_400.pt",
            ),
            size=None,
            pin=Pin("git-blob", "a867b87ac3a9097d200598b1d48a1b890d8ec744"),
            licence="Apache-2.0",
            used_for="Fréchet video distance (I3D, Kinetics-400)",
            instead="--features random",
        ),
        WeightFile(
            name="i3d-torchscript",
            filename="i3d_torchscript.pt",
            urls=(
                "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/"
                "1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt",
                "https://raw.githubusercontent.com/JunyaoHu/common_metrics_on_video_quality/"
                "5f751734ce9cef4cd2dddb235726b75dff62a387/fvd/styleganv/i3d_torchscript.pt",
                "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            ),
            size=51_235_320,
            pin=Pin("sha256", "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"),
            licence="Apache-2.0 (of the script: not stated)",
            used_for="as i3d, in the file of StyleGAN-V",
            instead="--features random",
        ),
        WeightFile(
            name="i3d-tf",
            filename="variables.data-00000-of-00001",
            urls=(
                "https://raw.githubusercontent.com/JunyaoHu/common_metrics_on_video_quality/"
                "5f751734ce9cef4cd2dddb235726b75dff62a387/fvd/tensorflow/"
                "i3d-kinetics-tensorflow1-400-v1/variables/variables.data-00000-of-00001",
            ),
            size=50_818_176,
            pin=Pin("git-blob", "fa7df95674dbf3579e7fccd954e51e706b4734c1"),
            licence="Apache-2.0",
            used_for="as i3d, in the file of TensorFlow Hub",
            instead="--features random",
        ),
        WeightFile(
            name="i3d-torchscript",
            filename="i3d_torchscript.pt",
            urls=(
                "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/"
                "1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt",
                "https://raw.githubusercontent.com/JunyaoHu/common_metrics_on_video_quality/"
                "5f751734ce9cef4cd2dddb235726b75dff62a387/fvd/styleganv/i3d_torchscript.pt",
                "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            ),
            size=51_235_320,
            pin=Pin("sha256", "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"),
            licence="Apache-2.0 (weights; none is stated for the script)",
            used_for="the same as i3d, from StyleGAN-V's file",
            instead="--features random",
        ),
        WeightFile(
            name="i3d-tf",
            filename="variables.data-00000-of-00001",
            urls=(
                "https://raw.githubusercontent.com/JunyaoHu/common_metrics_on_video_quality/"
                "5f751734ce9cef4cd2dddb235726b75dff62a387/fvd/tensorflow/"
                "i3d-kinetics-tensorflow1-400-v1/variables/variables.data-00000-of-00001",
            ),
            size=50_818_176,
            pin=Pin("git-blob", "fa7df95674dbf3579e7fccd954e51e706b4734c1"),
            licence="Apache-2.0",
            used_for="the same as i3d, from the TensorFlow Hub module i3d-kinetics-400",
            instead="--features random",
        ),
        WeightFile(
            name="vgg16",
            filename="vgg16-397923af.pth",
            urls=("https://download.pytorch.org/models/vgg16-397923af.pth",),
            size=553_433_881,
            pin=Pin("sha256", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
            licence="BSD-3-Clause",
            used_for="perceptual loss, LPIPS (VGG16, ImageNet)",
            instead="--perceptual-weight 0",
        ),
        WeightFile(
            name="alexnet",
            filename="alexnet-owt-7be5be79.pth",
            urls=("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
            size=None,
            pin=Pin("sha256", "7be5be79"),
            licence="BSD-3-Clause",
            used_for="LPIPS (AlexNet, ImageNet)",
            instead="--lpips vgg",
        ),
        WeightFile(
            name="lpips-vgg",
            filename="vgg.pth",
            urls=(),
            size=7289,
            pin=Pin("sha256", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
            licence="BSD-2-Clause",
            used_for="with vgg16: weights of its channels",
            instead="--perceptual-weight 0",
            shipped_in="torchmetrics/functional/image/lpips_models",
        ),
        WeightFile(
            name="lpips-alex",
            filename="alex.pth",
            urls=(),
            size=6009,
            pin=Pin("sha256", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
            licence="BSD-2-Clause",
            used_for="with alexnet: weights of its channels",
            instead="--lpips vgg",
            shipped_in="torchmetrics/functional/image/lpips_models",
        ),
    )
}


class Status(StrEnum):
    """What is known of a weight file on this machine."""

    ABSENT = "absent"
    VERIFIED = "verified"
    WRONG = "wrong checksum"


@dataclass(frozen=True)
class Finding:
    """What a look at a weight file found.

    Attributes:
        status: Whether it is there and is the published one.
        detail: How this was seen, one line; of a wrong file, what it is instead if that is known.
    """

    status: Status
    detail: str


def weights_folder() -> Path:
    """Returns the folder of fetched files: in `$TATS_CACHE`, else in the user's cache."""
    if cache := os.environ.get("TATS_CACHE"):
        return Path(cache) / "weights"
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "tats" / "weights"


def status(name: str) -> Status:
    """Says whether a file is there and is the published one; hashes it only if it changed."""
    return _finding(name).status


def verify(name: str) -> Finding:
    """Hashes a file, whatever was found before.

    An I3D file of another checksum is right all the same if each of its tensors has the checksum
    that was published for it: somebody read the network and saved it anew.
    """
    file = FILES[name]
    if not file.path.is_file():
        return Finding(Status.ABSENT, f"{file.remedy} brings it")
    digest = file.pin.measure(file.path)
    if digest == file.pin.digest:
        _remember(file)
        return Finding(Status.VERIFIED, f"{file.pin} as published")
    detail = f"its {file.pin.kind} is {digest}, expected {file.pin.digest}"
    if file.size not in (None, size := file.path.stat().st_size):
        detail = f"{size:,} bytes, expected {file.size:,}; {detail}"
    if name in I3D_FILES:
        from tatscli.core.models.i3d_files import explain

        genuine, explanation = explain(file.path)
        if genuine:
            _remember(file)
            return Finding(Status.VERIFIED, explanation)
        detail = f"{explanation}; {detail}"
    with contextlib.suppress(OSError):
        _record(file).unlink()
    return Finding(Status.WRONG, detail)


def locate(name: str, instead: str | None = "") -> Path:
    """Returns the verified file of a name; for `i3d`, any file of that network.

    Args:
        name: Which.
        instead: What does without it, where that is not the option of ``FILES``; None where nothing
            does.

    Raises:
        CheckpointError: It is not there, or its checksum is wrong.
    """
    file = FILES[name]
    without = "" if instead is None else f"; or do without it: {instead or file.instead}"
    for candidate in I3D_FILES if name == "i3d" else (name,):
        if status(candidate) is Status.VERIFIED:
            return FILES[candidate].path
    if file.path.is_file():
        raise CheckpointError(
            f"{file.path} is not the published {file.filename}: {verify(name).detail}",
            f"{file.remedy} replaces it{without}",
        )
    raise CheckpointError(
        f"{file.filename} is missing; needed for: {file.used_for}",
        f"run {file.remedy}; or put the file at {file.path}{without}",
    )


def fetch(name: str, progress: Progress) -> Path:
    """Fetches a file, unless the right one is there; a wrong one is replaced.

    The bytes go to a file of the same name and `.part`, which takes the final name once its
    checksum is right and is removed where that is wrong. If the connection or the process ends
    before, the next call asks for the rest only. Of several processes one fetches, the others wait.

    Args:
        name: Of `FILES`.
        progress: Called with the bytes so far and in all (0 = unknown).

    Raises:
        CheckpointError: No address gave the file, it cannot be written, or a package ships it.
    """
    file = FILES[name]
    if not file.urls:
        raise CheckpointError(
            f"{file.filename} is not fetched: {file.shipped_in.split('/')[0]} ships it", file.remedy
        )
    while status(name) is not Status.VERIFIED:
        with _opened(_part(file)) as part:
            if _is_ours(part):
                _bring(file, part, progress)
            else:
                progress(os.fstat(part.fileno()).st_size, file.size or 0)
                time.sleep(WAIT)
    return file.path


def read_tensors(path: Path, layout: Layout, *, only: str = "") -> dict[str, "Tensor"]:
    """Reads the tensors of a weight file and holds them to a layout.

    Args:
        path: A file written by torch; read without running anything it contains.
        layout: Names and shapes; every tensor must be in it and every entry in the file.
        only: Look only at names with this beginning, e.g. `features.`.

    Raises:
        CheckpointError: The file cannot be read, or differs from the layout.
    """
    state = read_state(path)
    found = {name: tensor for name, tensor in state.items() if name.startswith(only)}
    match_layout(path, found, layout)
    return found


def read_state(path: Path) -> dict[str, "Tensor"]:
    """Reads the named tensors of a file written by torch, without running what it contains.

    Raises:
        CheckpointError: It cannot be read, or holds something else.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch raises a dozen unrelated kinds, with advice not to follow
        raise CheckpointError(
            f"cannot read weights from {path}: its {path.stat().st_size:,} bytes are damaged, "
            "or no tensors that torch wrote",
            "copy or download it again; tats weights list shows which files are used",
        ) from error
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise CheckpointError(
            f"{path} holds something else than named tensors",
            "tats weights list shows which files are used",
        )
    return dict(state)


def match_layout(path: Path, tensors: Mapping[str, "Tensor"], layout: Layout) -> None:
    """Makes sure that the tensors of a file are those of a layout.

    Raises:
        CheckpointError: They are not; the first ten differences are named.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(
        name for name in shapes.keys() | layout.keys() if shapes.get(name) != layout.get(name)
    )
    if differing:
        lines = [
            f"{name}: {shapes.get(name, 'missing')}, expected {layout.get(name, 'nothing')}"
            for name in differing[:10]
        ]
        raise CheckpointError(
            f"{path} holds other tensors than expected; {len(differing)} differ: "
            + "; ".join(lines),
            "tats weights list shows which files are used",
        )


def _installed(folder: str) -> Path | None:
    """Returns a folder of an installed package, without importing it, which may take seconds."""
    if not folder:
        return None
    package, _, below = folder.partition("/")
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent / below if found and found.origin else Path(folder)


def _finding(name: str) -> Finding:
    """Recalls that a file was verified since it last changed, or verifies it."""
    file = FILES[name]
    with contextlib.suppress(OSError):
        if _record(file).read_bytes() == _verdict(file):
            return Finding(Status.VERIFIED, "")
    return verify(name)


def _record(file: WeightFile) -> Path:
    return file.path.with_name(file.filename + ".verified")


def _verdict(file: WeightFile) -> bytes:
    stat = file.path.stat()
    return f"{file.pin.kind} {file.pin.digest} {stat.st_size} {stat.st_mtime_ns}".encode()


def _remember(file: WeightFile) -> None:
    if file.shipped_in:
        return  # a few kilobytes, in a folder that is not ours
    # In a shared folder that this user cannot write, the file is hashed again next time.
    with contextlib.suppress(OSError):
        _record(file).write_bytes(_verdict(file))


def _part(file: WeightFile) -> Path:
    return file.path.with_name(file.filename + ".part")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a partial file to go on with it; removes it where it is empty in the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.open("a+b")
    except OSError as error:
        raise _not_written(path, error) from error
    with part:
        try:
            yield part
        finally:
            with contextlib.suppress(OSError):
                part.flush()
                if _is_at(part, path) and not path.stat().st_size and _is_ours(part):
                    path.unlink()


def _is_ours(part: IO[bytes]) -> bool:
    """Whether nobody else writes a partial file: this process does from now on."""
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks; the checksum finds out if two wrote at once
    # Whoever had it until now may have renamed or removed it.
    return _is_at(part, Path(part.name))


def _is_at(part: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(part.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _bring(file: WeightFile, part: IO[bytes], progress: Progress) -> None:
    """Completes a partial file and gives it its final name."""
    # Connections break: a round through the addresses that brought something is not the last.
    arrived = -1
    while _size(part) > arrived:
        arrived = _size(part)
        failures = []
        for url in file.urls:
            try:
                _download(url, file, part, progress)
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {_reason(error)}")
            else:
                _finish(file, part)
                return
    kept = f"{_size(part):,} bytes arrived and are kept; " if _size(part) else ""
    raise CheckpointError(
        "\n  ".join([f"cannot fetch {file.filename} to {file.path.parent}", *failures]),
        f"{kept}run {file.remedy} again when there is network; or download the file elsewhere and "
        f"put it at {file.path} (TATS_CACHE names another folder)",
    )


def _download(url: str, file: WeightFile, part: IO[bytes], progress: Progress) -> None:
    """Asks one address for what is missing, and makes sure that the whole is the file."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            _append(response, file, part, progress)
    except urllib.error.HTTPError as error:
        if not (start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        # Nothing comes after the bytes that are here: they are the whole, or not of this file.
    digest = file.pin.measure(Path(part.name))
    if digest != file.pin.digest:
        part.truncate(0)
        if not start:
            raise OSError(f"wrong checksum: {file.pin.kind} {digest}, expected {file.pin.digest}")
        # The bytes of an earlier call may be to blame.
        _download(url, file, part, progress)


def _append(
    response: http.client.HTTPResponse, file: WeightFile, part: IO[bytes], progress: Progress
) -> None:
    """Adds an answer to a partial file, or replaces it where the server knows no parts."""
    is_rest = response.status == http.HTTPStatus.PARTIAL_CONTENT
    done = _size(part) if is_rest else 0
    answered = response.headers.get("Content-Range", "")
    if is_rest and not answered.startswith(f"bytes {done}-"):
        raise OSError(f"asked for the bytes from {done:,}, the answer is {answered or 'unnamed'}")
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else file.size or 0
    if file.size and total != file.size:
        raise OSError(f"{total:,} bytes offered, {file.size:,} expected")
    if not is_rest:
        part.truncate(0)
    path = Path(part.name)
    try:
        require_room(path, total - done)
    except OSError as error:
        raise _not_written(path, error, total - done) from error
    while chunk := response.read1(CHUNK):
        try:
            part.write(chunk)
            part.flush()
        except OSError as error:
            raise _not_written(path, error, total - done) from error
        done += len(chunk)
        progress(done, total)
    if total and done != total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _finish(file: WeightFile, part: IO[bytes]) -> None:
    """Gives a complete file its name, once its bytes are on the disk."""
    try:
        os.fsync(part.fileno())
        Path(part.name).replace(file.path)
    except OSError as error:
        raise _not_written(file.path, error) from error
    _remember(file)


def _size(part: IO[bytes]) -> int:
    return os.fstat(part.fileno()).st_size


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _not_written(path: Path, error: OSError, needs: int = 0) -> CheckpointError:
    message = unwritable(path, error, CheckpointError, needs).message
    return CheckpointError(message, "TATS_CACHE names another folder")
