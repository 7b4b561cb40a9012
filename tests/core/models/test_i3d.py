"""The video classifier: equal to its plain graph, exact at its edges, honest about bad files."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tatscli.core.models.i3d import (
    I3D,
    layout,
    max_pool,
    random_i3d,
    random_weights,
    same_padding,
)


def padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pads so that each output sees a window centred as TensorFlow centres it."""
    sides: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        outputs = -(-size // s)
        total = max((outputs - 1) * s + k - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


class Plain:
    """The graph as the paper draws it: nothing folded, nothing merged."""

    def __init__(self, weights: dict[str, Tensor], eps: float) -> None:
        self.weights, self.eps = weights, eps

    def unit(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.conv3d.weight"]
        x = F.conv3d(padded(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        mean, variance, gain, shift = (
            self.weights[f"{name}.bn.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, variance, gain, shift, eps=self.eps))

    def pool(self, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(padded(x, kernel, stride), kernel, stride)

    def block(self, name: str, x: Tensor) -> Tensor:
        branches = [
            self.unit(f"{name}.b0", x),
            self.unit(f"{name}.b1b", self.unit(f"{name}.b1a", x)),
            self.unit(f"{name}.b2b", self.unit(f"{name}.b2a", x)),
            self.unit(f"{name}.b3b", self.pool(x, (3, 3, 3), (1, 1, 1))),
        ]
        return torch.cat(branches, dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.pool(self.unit("Conv3d_1a_7x7", x, stride=2), (1, 3, 3), (1, 2, 2))
        x = self.unit("Conv3d_2c_3x3", self.unit("Conv3d_2b_1x1", x))
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        for name in ("3b", "3c", "pool 3", "4b", "4c", "4d", "4e", "4f", "pool 2", "5b", "5c"):
            if name.startswith("pool"):
                x = self.pool(x, (int(name[-1]),) * 3, (2, 2, 2))
            else:
                x = self.block(f"Mixed_{name}", x)
        weight, bias = self.weights["logits.conv3d.weight"], self.weights["logits.conv3d.bias"]
        return F.conv3d(F.avg_pool3d(x, (2, 7, 7), stride=1), weight, bias).mean((2, 3, 4))


@pytest.mark.parametrize(
    ("frames", "eps"),
    [(9, 1e-3), (17, 1e-5), *((frames, 1e-3) for frames in (10, 11, 13, 16, 20, 32))],
)
def test_folded_network_equals_plain_graph(frames: int, eps: float) -> None:
    weights = random_weights(0)
    clips = torch.rand(1, 3, frames, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        output = I3D(weights, eps)(clips)
        expected = Plain(weights, eps)(clips)
    assert output.pooled.shape == (1, 1024)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=2e-5)


def test_same_padding_centres_every_window() -> None:
    for size in range(3, 41):
        for kernel, stride in ((7, 2), (3, 1), (3, 2), (2, 2)):
            front, behind = same_padding(size, kernel, stride)
            outputs = -(-size // stride)
            assert (size + front + behind - kernel) // stride + 1 == outputs
            assert front + behind == max((outputs - 1) * stride + kernel - size, 0)
            assert 0 <= behind - front <= 1


@pytest.mark.parametrize(
    ("kernel", "stride", "side"),
    [
        ((1, 3, 3), (1, 2, 2), 12),
        ((3, 3, 3), (2, 2, 2), 12),
        ((2, 2, 2), (2, 2, 2), 14),
        ((3, 3, 3), (1, 1, 1), 7),
    ],
)
@pytest.mark.parametrize("frames", range(2, 11))
def test_fast_pool_is_the_padded_pool(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], side: int, frames: int
) -> None:
    x = torch.randn(2, 5, frames, side, side, generator=torch.Generator().manual_seed(1)).relu()
    x = x.contiguous(memory_format=torch.channels_last_3d)
    expected = F.max_pool3d(padded(x, kernel, stride), kernel, stride)
    assert torch.equal(max_pool(x, kernel, stride), expected)


def test_layout_is_that_of_the_published_file() -> None:
    shapes = layout()
    assert len(shapes) == 287
    # The official module has as many values, but no gains: those are all one.
    trained = [shape for name, shape in shapes.items() if not name.endswith("bn.weight")]
    assert len(trained) == 230
    assert sum(torch.Size(shape).numel() for shape in trained) == 12_704_544
    assert shapes["Mixed_4e.b1b.conv3d.weight"] == (288, 144, 3, 3, 3)
    assert shapes["Mixed_5c.b3b.bn.running_var"] == (128,)


def test_seed_changes_random_weights_and_nothing_else_does() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = random_weights(1), random_weights(1), random_weights(2)
    random_i3d(0, 1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("shape", [(1, 3, 8, 224, 224), (1, 3, 9, 225, 224), (1, 1, 9, 224, 224)])
def test_clips_of_another_size_are_refused_with_their_numbers(shape: tuple[int, ...]) -> None:
    number = "got 8" if shape[2] == 8 else f"got \\({', '.join(map(str, shape))}\\)"
    with pytest.raises(ValueError, match=number):
        random_i3d(0, 1e-3)(torch.zeros(shape))
