"""One network from three containers; files that are refused, and why; what tells the network."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.core import weights
from tatscli.core.crc32c import crc32c, masked
from tatscli.core.models import i3d_files
from tatscli.core.models.i3d import I3D, layout, random_weights
from tatscli.core.models.i3d_files import load_i3d, read_i3d, unofficial, weights_digest
from tatscli.core.weights import FILES, Pin, Status, locate, verify
from tatscli.errors import CheckpointError

Tensors = dict[str, Tensor]
WIDTHS = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


def lacking(size: int, kernel: int, stride: int) -> int:
    """What TensorFlow's "SAME" adds to an axis."""
    rest = size % stride
    return max(kernel - (rest if rest > 0 else stride), 0)


def padded(x: Tensor, kernel: int, stride: int, over_time: bool) -> Tensor:
    h, w = lacking(x.shape[3], kernel, stride), lacking(x.shape[4], kernel, stride)
    t = lacking(x.shape[2], kernel, stride) if over_time else 0
    return F.pad(x, [w // 2, w - w // 2, h // 2, h - h // 2, t // 2, t - t // 2])


class Unit(nn.Module):
    def __init__(self, incoming: int, outgoing: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(incoming, outgoing, kernel, stride=stride, bias=False)
        self.batch3d = nn.BatchNorm3d(outgoing, eps=1e-3)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.batch3d(self.conv3d(padded(x, self.kernel, self.stride, True))))


class Pool(nn.Module):
    def __init__(self, kernel: int, stride: int, over_time: bool = True) -> None:
        super().__init__()
        self.kernel, self.stride, self.over_time = kernel, stride, over_time

    def forward(self, x: Tensor) -> Tensor:
        x = padded(x, self.kernel, self.stride, self.over_time)
        if self.over_time:
            return F.max_pool3d(x, [self.kernel] * 3, [self.stride] * 3)
        return F.max_pool3d(x, [1, self.kernel, self.kernel], [1, self.stride, self.stride])


class Mixed(nn.Module):
    def __init__(self, width: int, a: int, b: int, c: int, d: int, e: int, f: int) -> None:
        super().__init__()
        self.branch_0 = Unit(width, a)
        self.branch_1 = nn.Sequential(Unit(width, b), Unit(b, c, 3))
        self.branch_2 = nn.Sequential(Unit(width, d), Unit(d, e, 3))
        self.branch_3 = nn.Sequential(Pool(3, 1), Unit(width, f))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], 1
        )


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, 400, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class Port(nn.Module):
    """The network in the names of hassony2's port, with the signature of StyleGAN-V's script."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.conv3d_2b_1x1, self.conv3d_2c_3x3 = Unit(64, 64), Unit(64, 192, 3)
        self.mixed_3b, self.mixed_3c = Mixed(*WIDTHS["3b"]), Mixed(*WIDTHS["3c"])
        self.mixed_4b, self.mixed_4c = Mixed(*WIDTHS["4b"]), Mixed(*WIDTHS["4c"])
        self.mixed_4d, self.mixed_4e = Mixed(*WIDTHS["4d"]), Mixed(*WIDTHS["4e"])
        self.mixed_4f = Mixed(*WIDTHS["4f"])
        self.mixed_5b, self.mixed_5c = Mixed(*WIDTHS["5b"]), Mixed(*WIDTHS["5c"])
        self.conv3d_0c_1x1 = Last()
        self.wide, self.pool_3, self.pool_2 = Pool(3, 2, False), Pool(3, 2), Pool(2, 2)

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        x = self.wide(self.conv3d_1a_7x7(x))
        x = self.wide(self.conv3d_2c_3x3(self.conv3d_2b_1x1(x)))
        x = self.pool_3(self.mixed_3c(self.mixed_3b(x)))
        x = self.mixed_4e(self.mixed_4d(self.mixed_4c(self.mixed_4b(x))))
        x = self.mixed_5c(self.mixed_5b(self.pool_2(self.mixed_4f(x))))
        x = self.conv3d_0c_1x1(F.avg_pool3d(x, [2, 7, 7], stride=1)).mean((2, 3, 4))
        return x if return_features else x.softmax(1)


class Wrapped(nn.Module):
    """The same under other names, and with another factor of the outputs."""

    def __init__(self, inner: Port, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        return self.factor * self.inner(x, rescale, resize, return_features)


@pytest.fixture(scope="module")
def network() -> Tensors:
    """Random weights; like the official network, they have no gains."""
    return {
        name: torch.ones_like(tensor) if name.endswith("bn.weight") else tensor
        for name, tensor in random_weights(0).items()
    }


@pytest.fixture(scope="module")
def port(network: Tensors) -> Port:
    """The network as the port: modules of both follow one another in the same order."""
    made = Port().eval()
    order = [name for name in made.state_dict() if not name.endswith("num_batches_tracked")]
    made.load_state_dict(dict(zip(order, network.values(), strict=True)), strict=False)
    return made


def stored(tensor: Tensor) -> bytes:
    """A tensor as TensorFlow stores it: kernels as (t, h, w, in, out)."""
    return (tensor.movedim((0, 1), (4, 3)) if tensor.ndim == 5 else tensor).numpy().tobytes()


def in_file_order(network: Tensors) -> list[str]:
    # The names that TensorFlow sorted begin and end as ours do, but for capitals.
    return sorted((n for n in network if not n.endswith("bn.weight")), key=str.lower)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch, network: Tensors) -> None:
    """Makes the random network the official one."""
    table = {name: masked(crc32c(stored(network[name]))) for name in in_file_order(network)}
    monkeypatch.setattr(i3d_files, "checksums", lambda: table)


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], Path]:
    """Writes a module as the published TorchScript file."""

    def save(module: nn.Module) -> Path:
        path = tmp_path / "any_name"
        torch.jit.script(module).save(path)
        pin = Pin("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
        monkeypatch.setitem(FILES, "i3d-torchscript", replace(FILES["i3d-torchscript"], pin=pin))
        return path

    return save


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `i3d` belongs, in an empty cache."""
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    path = FILES["i3d"].path
    path.parent.mkdir(parents=True)
    return path


def assert_is(found: Tensors, network: Tensors) -> None:
    assert list(found) == list(layout())
    for name, tensor in network.items():
        assert torch.equal(found[name], tensor), name
    assert weights_digest(found) == weights_digest(network)


def test_the_published_layout_is_read(tmp_path: Path, network: Tensors) -> None:
    torch.save(dict(reversed(network.items())), tmp_path / "i3d.bin")
    assert_is(read_i3d(tmp_path / "i3d.bin"), network)
    loaded, direct = load_i3d(tmp_path / "i3d.bin", 1e-5), I3D(network, 1e-5)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_state_dict_in_the_names_of_the_port_is_read(
    tmp_path: Path, network: Tensors, port: Port
) -> None:
    torch.save(port.state_dict(), tmp_path / "model.pth")
    assert_is(read_i3d(tmp_path / "model.pth"), network)


def test_variables_of_tensorflow_are_read_and_each_is_checked(
    tmp_path: Path, network: Tensors, official: None
) -> None:
    content = bytearray(b"".join(stored(network[name]) for name in in_file_order(network)))
    path = tmp_path / "variables"
    path.write_bytes(content)
    assert_is(read_i3d(path), network)
    content[-1] ^= 1
    path.write_bytes(content)
    last = "Mixed_5c.b3b.conv3d.weight"
    with pytest.raises(CheckpointError, match=f"of 1 of 230 the checksum is wrong: {last}"):
        read_i3d(path)


def test_the_published_program_gives_its_tensors(
    network: Tensors, port: Port, scripted: Callable[[nn.Module], Path]
) -> None:
    assert_is(read_i3d(scripted(port)), network)


def test_a_program_of_other_names_is_read_by_order_and_shape(
    network: Tensors, port: Port, scripted: Callable[[nn.Module], Path]
) -> None:
    assert_is(read_i3d(scripted(Wrapped(port, 1.0))), network)


def test_a_program_that_computes_something_else_is_refused(
    port: Port, scripted: Callable[[nn.Module], Path]
) -> None:
    with pytest.raises(CheckpointError, match="differ by 0.00[01].* at most 0.0001 expected"):
        read_i3d(scripted(Wrapped(port, 1.001)))


def test_a_program_of_other_tensors_is_refused(scripted: Callable[[nn.Module], Path]) -> None:
    with pytest.raises(CheckpointError, match="other tensors than expected"):
        read_i3d(scripted(Last()))


def test_code_that_is_not_the_published_program_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.jit.script(Last()).save(tmp_path / "i3d_torchscript.pt")
    opened: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: opened.append(a))
    monkeypatch.setattr(torch, "load", lambda *a, **k: opened.append(a))
    with pytest.raises(CheckpointError, match="TorchScript, which is code") as caught:
        read_i3d(tmp_path / "i3d_torchscript.pt")
    assert FILES["i3d-torchscript"].pin.digest in caught.value.message
    assert not opened


def test_file_of_another_layout_is_refused_with_ten_differences(
    tmp_path: Path, network: Tensors
) -> None:
    kept = dict(list(network.items())[11:])
    kept |= {"logits.conv3d.bias": torch.zeros(600), "more": torch.zeros(1)}
    torch.save(kept, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="other.pt") as caught:
        read_i3d(tmp_path / "other.pt")
    assert "13 differ" in caught.value.message
    assert caught.value.message.count("expected") == 10 + 1


@pytest.mark.parametrize("content", [b"PK\x03\x04 and then nothing", b"", b"text", b"\x80\x02"])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "torn.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="torn.pt"):
        read_i3d(tmp_path / "torn.pt")


def test_objects_instead_of_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.pt")
    with pytest.raises(CheckpointError, match="something else than named tensors"):
        read_i3d(tmp_path / "nested.pt")


def test_the_digest_follows_every_value_and_nothing_else(network: Tensors) -> None:
    digest = weights_digest(network)
    assert len(digest) == 16
    # Another layout in memory, order or type is the same network.
    same = {name: tensor.double() for name, tensor in reversed(network.items())}
    name = "Mixed_4c.b2b.conv3d.weight"
    same[name] = same[name].contiguous(memory_format=torch.channels_last_3d)
    assert weights_digest(same) == digest
    for name in ("Conv3d_1a_7x7.bn.weight", "logits.conv3d.bias"):
        assert weights_digest(network | {name: network[name] + 1e-6}) != digest


def test_the_table_of_checksums_covers_the_trained_tensors_in_the_order_of_the_file() -> None:
    table = i3d_files.checksums()
    assert list(table) == in_file_order(dict.fromkeys(layout()))
    assert len(set(table.values())) == len(table) == 230
    assert table["Conv3d_1a_7x7.bn.bias"] == 0x8504FB7B


def test_gains_that_are_not_one_are_not_the_official_network(
    network: Tensors, official: None
) -> None:
    assert unofficial(network) == []
    name = "Mixed_3b.b0.bn.weight"
    assert unofficial(network | {name: network[name] * 1.5}) == [name]


def test_a_file_saved_anew_is_genuine_by_its_tensors(
    place: Path, network: Tensors, port: Port, official: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(port.state_dict(), place)
    found = verify("i3d")
    assert found.status is Status.VERIFIED
    assert "all 230 tensors" in found.detail
    monkeypatch.setattr(weights, "verify", lambda name: pytest.fail("this was seen before"))
    assert locate("i3d") == place


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["Mixed_3b.b0.bn.bias"], "229 of 230 tensors match; Mixed_3b.b0.bn.bias differ"),
        (
            ["Mixed_3b.b0.bn.weight"],
            "230 of 230 tensors match, and 1 gains of batch normalisation are not one",
        ),
        ([n for n in layout() if "bn.weight" not in n], "0 of 230 tensors match (rgb_imagenet.pt"),
    ],
)
def test_another_network_of_the_same_shape_is_named(
    place: Path, network: Tensors, official: None, changed: list[str], said: str
) -> None:
    torch.save(network | {name: network[name] + 0.1 for name in changed}, place)
    found = verify("i3d")
    assert found.status is Status.WRONG
    assert f"not the Kinetics-400 I3D of FVD: {said}" in found.detail
    assert FILES["i3d"].pin.digest in found.detail


def test_any_file_of_the_network_serves(place: Path, network: Tensors, official: None) -> None:
    other = FILES["i3d-tf"].path
    other.write_bytes(b"".join(stored(network[name]) for name in in_file_order(network)))
    assert locate("i3d") == other
    place.write_bytes(b"damaged")
    assert locate("i3d") == other
    torch.save(network, place)
    assert locate("i3d") == place
