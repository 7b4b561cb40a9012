"""Files from elsewhere: what they are, where they lie, how they are verified, fetched and read.

A file is never used before its checksum was seen to be right. The verdict is kept in a small file
beside it (with the size and the time of change it holds for), so that half a gigabyte is hashed
once and not at each start. Torch is imported only to read a file: listing needs none of it.
"""

import contextlib
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from tatscli.core.files import aside
from tatscli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Layout = Mapping[str, tuple[int, ...]]
"""The tensors that a file must hold: their names and shapes."""

CHUNK = 1 << 20
TIMEOUT = 30.0


@dataclass(frozen=True)
class Pin:
    """The checksum that identifies a file.

    Attributes:
        kind: `sha256` of the bytes, or `git-blob`, the SHA-1 under which git stores them.
        digest: The expected value, lower-case hexadecimal.
    """

    kind: Literal["sha256", "git-blob"]
    digest: str

    def measure(self, path: Path) -> str:
        """Returns this kind of checksum of a file."""
        with path.open("rb") as file:
            if self.kind == "sha256":
                return hashlib.file_digest(file, "sha256").hexdigest()
            header = b"blob %d\0" % path.stat().st_size
            return hashlib.file_digest(
                file, lambda: hashlib.sha1(header, usedforsecurity=False)
            ).hexdigest()


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        name: What the command line calls it.
        filename: Its name in the weights folder.
        urls: Where it can be fetched, tried in order.
        size: Bytes; None where it was never published.
        pin: Its checksum.
        licence: Under which it may be used.
        used_for: What needs it, one line.
        instead: Option that does without it.
    """

    name: str
    filename: str
    urls: tuple[str, ...]
    size: int | None
    pin: Pin
    licence: str
    used_for: str
    instead: str

    @property
    def path(self) -> Path:
        """Where the file lies, or belongs."""
        return weights_folder() / self.filename


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
            used_for="Fréchet video distance (I3D trained on Kinetics-400)",
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
            used_for="perceptual loss of stage one, and LPIPS (VGG16 trained on ImageNet)",
            instead="--perceptual-weight 0",
        ),
    )
}


class Status(StrEnum):
    """What is known of a weight file on this machine."""

    ABSENT = "absent"
    VERIFIED = "verified"
    WRONG = "wrong checksum"


def weights_folder() -> Path:
    """Returns the folder of fetched files: in `$TATS_CACHE`, else in the user's cache."""
    if cache := os.environ.get("TATS_CACHE"):
        return Path(cache) / "weights"
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "tats" / "weights"


def status(name: str) -> Status:
    """Says whether a file is there and is the published one; hashes it only if it changed."""
    file = FILES[name]
    if not file.path.is_file():
        return Status.ABSENT
    return Status.VERIFIED if _is_verified(file) else Status.WRONG


def locate(name: str) -> Path:
    """Returns the verified file of a name.

    Raises:
        CheckpointError: It is not there, or its checksum is wrong.
    """
    file = FILES[name]
    match status(name):
        case Status.VERIFIED:
            return file.path
        case Status.WRONG:
            raise CheckpointError(
                f"{file.path} is not the published {file.filename}: its {file.pin.kind} is "
                f"{file.pin.measure(file.path)}, expected {file.pin.digest}",
                f"tats weights fetch {name} replaces it; or do without it: {file.instead}",
            )
        case Status.ABSENT:
            raise CheckpointError(
                f"{file.filename} is missing; needed for: {file.used_for}",
                f"run tats weights fetch {name}; or put the file at {file.path}; "
                f"or do without it: {file.instead}",
            )


def fetch(name: str, progress: Callable[[int, int], None]) -> Path:
    """Fetches a file, unless the right one is there; a wrong one is replaced.

    The bytes go to a temporary file, which takes the final name once its checksum is right and is
    removed otherwise.

    Args:
        name: Of `FILES`.
        progress: Called with the bytes so far and in all (0 = unknown).

    Raises:
        CheckpointError: No address gave the file.
    """
    file = FILES[name]
    if status(name) is Status.VERIFIED:
        return file.path
    failures = []
    for url in file.urls:
        try:
            _download(url, file, progress)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
        else:
            return file.path
    raise CheckpointError(
        f"cannot fetch {file.filename} to {file.path}: " + "; ".join(failures),
        "fetch it on a machine with network access and put it there; "
        "TATS_CACHE names another folder",
    )


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
    except Exception as error:  # torch raises a dozen unrelated kinds for a damaged file
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error
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


def _is_verified(file: WeightFile) -> bool:
    """Checks the pin, or finds that this was done since the file last changed."""
    stat = file.path.stat()
    verdict = f"{file.pin.kind} {file.pin.digest} {stat.st_size} {stat.st_mtime_ns}"
    record = file.path.with_name(file.filename + ".verified")
    if record.is_file() and record.read_text() == verdict:
        return True
    if file.pin.measure(file.path) != file.pin.digest:
        return False
    # In a shared folder that this user cannot write, the file is hashed again next time.
    with contextlib.suppress(OSError):
        record.write_text(verdict)
    return True


def _download(url: str, file: WeightFile, progress: Callable[[int, int], None]) -> None:
    """Brings one address to the file's place; any failure leaves nothing behind."""
    with aside(file.path) as partial:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, partial.open("wb") as target:
            _copy(response, target, file.size or 0, progress)
        digest = file.pin.measure(partial)
        if digest != file.pin.digest:
            raise OSError(f"wrong checksum: {file.pin.kind} {digest}, expected {file.pin.digest}")


def _copy(
    source: http.client.HTTPResponse,
    target: IO[bytes],
    size: int,
    progress: Callable[[int, int], None],
) -> None:
    total = int(source.headers.get("Content-Length") or size)
    done = 0
    while chunk := source.read(CHUNK):
        target.write(chunk)
        done += len(chunk)
        progress(done, total)
    if total and done != total:
        raise OSError(f"the connection ended after {done} of {total} bytes")
