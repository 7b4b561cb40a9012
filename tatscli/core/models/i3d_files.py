"""The files in which I3D was published, read into one layout; and how its tensors are told.

One network, trained once on Kinetics-400, is found in three containers:

- `i3d_pretrained_400.pt`, a state dict in the names of `layout()`. State dicts in the names of
  hassony2's port to torch are read too.
- `i3d_torchscript.pt`, a program (TorchScript). A program can do anything when it is loaded, so it
  is opened only if it is the published one to the last byte; of it we take the tensors.
- `variables.data-00000-of-00001`, the variables of the TensorFlow Hub module
  `deepmind/i3d-kinetics-400/1`: float32, little-endian, one after the other in the order of their
  names. They are read without TensorFlow.

The module's index holds a masked CRC-32C of each of its 230 variables, listed in
`i3d_kinetics400.crc32c`. They tell this network from others of the same shape, above all from
`rgb_imagenet.pt` (the RGB network that was trained on ImageNet first), whose distances are not FVD.
"""

import hashlib
import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tatscli.config.evaluate import I3D_FRAMES
from tatscli.core.crc32c import crc32c, masked
from tatscli.core.models.i3d import I3D, SIDE, layout
from tatscli.core.weights import FILES, match_layout, read_state
from tatscli.errors import CheckpointError

# Of the official graph, and of the port that the TorchScript file was made of.
_OFFICIAL_EPS = 1e-3
_PROBE_TOLERANCE = 1e-4
# The official network has no gains: the files in torch's layout hold ones.
_GAINS = [name for name in layout() if name.endswith(".bn.weight")]
_RAW_SIZE = 4 * sum(math.prod(shape) for name, shape in layout().items() if name not in _GAINS)
# What differs, part by part, between our names in small letters and those of hassony2's port.
_HASSONY = {
    "logits": "conv3d_0c_1x1",
    "bn": "batch3d",
    "b0": "branch_0",
    "b1a": "branch_1.0",
    "b1b": "branch_1.1",
    "b2a": "branch_2.0",
    "b2b": "branch_2.1",
    "b3b": "branch_3.1",
}


def load_i3d(path: Path, eps: float) -> I3D:
    """Builds the network from any of its files.

    Args:
        path: See `read_i3d`.
        eps: Of the batch normalisations; see `I3D`.

    Raises:
        CheckpointError: The file cannot be read or holds other tensors.
    """
    return I3D(read_i3d(path), eps)


def read_i3d(path: Path) -> dict[str, Tensor]:
    """Reads the network's tensors; the content tells which container it is, not the name.

    Returns:
        The 287 tensors of `layout()`, float32.

    Raises:
        CheckpointError: The file cannot be read; it holds other tensors than expected (the first
            ten are named); it is TorchScript, but not the published file; its program computes
            something else than `I3D` does; or variables of TensorFlow have wrong checksums.
    """
    if _is_program(path):
        tensors = _read_program(path)
    elif path.is_file() and path.stat().st_size == _RAW_SIZE:
        tensors = _read_raw(path)
    else:
        tensors = _in_our_names(read_state(path))
        match_layout(path, tensors, layout())
    return {name: tensors[name].float() for name in layout()}


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Identifies a network by its values, whatever container it was read from.

    Args:
        tensors: Named as in `layout()`.

    Returns:
        The first 16 hexadecimal digits of a SHA-256 over names and float32 values.
    """
    digest = hashlib.sha256()
    for name in layout():
        digest.update(f"{name}\n".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()[:16]


def checksums() -> dict[str, int]:
    """Returns the masked CRC-32C of each tensor of the official network, in the file's order."""
    table = Path(__file__).with_name("i3d_kinetics400.crc32c").read_text(encoding="ascii")
    pairs = (line.split() for line in table.splitlines())
    return {name: int(checksum, 16) for checksum, name in pairs}


def unofficial(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names the tensors that are not those of the I3D that defines FVD.

    Args:
        tensors: Named as in `layout()`.

    Returns:
        Those whose checksum is another, and gains that are not all one.
    """
    wrong = [
        name
        for name, checksum in checksums().items()
        if masked(crc32c(_stored(tensors[name]))) != checksum
    ]
    return wrong + [name for name in _GAINS if not bool((tensors[name] == 1).all())]


def explain(path: Path) -> tuple[bool, str]:
    """Says whether a file holds the I3D that defines FVD, and how this was seen."""
    try:
        differing = unofficial(read_i3d(path))
    except CheckpointError as error:
        return False, error.message
    total = len(checksums())
    gains = sum(name in _GAINS for name in differing)
    matching = total + gains - len(differing)
    if not differing:
        return True, f"another file, but all {total} tensors have their published checksums"
    problem = f"not the Kinetics-400 I3D of FVD: {matching} of {total} tensors match"
    if gains:
        problem += f", and {gains} gains of batch normalisation are not one"
    if matching:
        problem += f"; {_named(differing)} differ"
    else:
        problem += " (rgb_imagenet.pt, for one, is another network of the same shape)"
    return False, problem


def _is_program(path: Path) -> bool:
    """Whether a file is an archive with TorchScript code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False  # what it is instead, or why it cannot be read, shows when it is read


def _in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of hassony2's port; drops the counts of steps that torch adds."""
    ours = {_hassony(name): name for name in layout()}
    return {
        ours.get(name, name): tensor
        for name, tensor in state.items()
        if not name.endswith(".num_batches_tracked")
    }


def _hassony(name: str) -> str:
    """Returns the name that a tensor of ours has in hassony2's port."""
    return ".".join(_HASSONY.get(part, part) for part in name.lower().split("."))


def _read_program(path: Path) -> dict[str, Tensor]:
    """Takes the tensors of the published program, having seen that it computes what `I3D` does."""
    pin = FILES["i3d-torchscript"].pin
    # Read once, so that what was verified is what is opened.
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != pin.digest:
        raise CheckpointError(
            f"{path} is TorchScript, which is code: it is opened only if it is the published "
            f"i3d_torchscript.pt, of sha256 {pin.digest}; its sha256 is {digest}",
            "tats weights fetch i3d-torchscript; or use a file that holds tensors alone",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that programs will be of another kind
            program = _open_program(content)
        tensors = _in_our_names(program.state_dict())
        if tensors.keys() != layout().keys() and len(tensors) == len(layout()):
            # Of other names only the order tells; the probe shows whether it told right.
            tensors = dict(zip(layout(), tensors.values(), strict=True))
        match_layout(path, tensors, layout())
        difference = _probe(program, I3D(tensors, _OFFICIAL_EPS))
    except RuntimeError as error:
        raise CheckpointError(
            f"this version of torch ({torch.__version__}) cannot run {path}: {error}",
            "use another of its files: tats weights fetch i3d",
        ) from error
    if not difference < _PROBE_TOLERANCE:
        raise CheckpointError(
            f"{path}: its program and our network with its tensors differ by {difference:.2g} of "
            f"the outputs' size; at most {_PROBE_TOLERANCE:g} expected",
            "use another of its files: tats weights fetch i3d",
        )
    return tensors


def _open_program(content: bytes) -> torch.nn.Module:
    program = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
    evaluated: torch.nn.Module = program.eval()
    return evaluated


def _probe(program: torch.nn.Module, network: I3D) -> float:
    """Returns how far two networks are apart on noise, as a part of the outputs' size."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 3, I3D_FRAMES, SIDE, SIDE, generator=generator) * 2 - 1
    with torch.inference_mode():
        expected = program(clip, rescale=False, resize=False, return_features=True)
        found = network(clip).logits
    return float((found - expected).norm() / expected.norm())


def _read_raw(path: Path) -> dict[str, Tensor]:
    """Reads the variables of the TensorFlow Hub module, each held to its checksum."""
    content = path.read_bytes()
    shapes = layout()
    tensors = {name: torch.ones(shapes[name]) for name in _GAINS}
    damaged = []
    start = 0
    for name, checksum in checksums().items():
        size = math.prod(shapes[name])
        stored = content[start : start + 4 * size]
        start += 4 * size
        if masked(crc32c(stored)) != checksum:
            damaged.append(name)
        values = torch.from_numpy(np.frombuffer(stored, "<f4").copy())
        if len(shapes[name]) == 5:
            outgoing, incoming, *kernel = shapes[name]
            values = values.view(*kernel, incoming, outgoing).permute(4, 3, 0, 1, 2).contiguous()
        tensors[name] = values
    if damaged:
        raise CheckpointError(
            f"{path} is as large as the TensorFlow variables of I3D, but of {len(damaged)} of "
            f"{len(checksums())} the checksum is wrong: {_named(damaged)}",
            "tats weights fetch i3d-tf replaces it",
        )
    return tensors


def _stored(tensor: Tensor) -> bytes:
    """Returns a tensor as TensorFlow stores it: the kernel's axes first, then in, then out."""
    return _bytes(tensor.permute(2, 3, 4, 1, 0) if tensor.ndim == 5 else tensor)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + rest
