"""I3D, the video classifier whose outputs the Fréchet video distance compares.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", 2017: the RGB network trained on
Kinetics-400, in the tensor layout of the file `i3d_pretrained_400.pt`. For inference only: the
batch normalisations are folded (in float64) into the convolutions, activations are kept with
channels last, and each 3-D max-pool is one over space followed by one over time, which is exact.

All convolutions and pools pad as TensorFlow's "SAME", so that the padding depends on the size.

B clips, T frames, C channels, H W pixels.
"""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tatscli.config.evaluate import I3D_FRAMES
from tatscli.core.weights import Layout

SIDE = 224
CLASSES = 400

_BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
# Channels in, and out of each branch of the inception blocks.
_BLOCKS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


class I3DOutput(NamedTuple):
    """What the network says of B clips.

    Attributes:
        logits: float32, (B, 400), averaged over time, before any softmax.
        pooled: float32, (B, 1024), the features before the last layer, averaged over time.
    """

    logits: Tensor
    pooled: Tensor


class I3D(nn.Module):
    """The network, built from weights in the published layout.

    Args:
        weights: Tensors named and shaped as in `layout()`.
        eps: Of the batch normalisations: 1e-3 in the official graph, 1e-5 in the published TATS
            and VideoGPT code. It changes the outputs, so it is part of a metric's definition.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], eps: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _Convolution(weights, "Conv3d_1a_7x7", eps, stride=2),
            _MaxPool((1, 3, 3), (1, 2, 2)),
            _Convolution(weights, "Conv3d_2b_1x1", eps),
            _Convolution(weights, "Conv3d_2c_3x3", eps),
            _MaxPool((1, 3, 3), (1, 2, 2)),
        )
        blocks = {name: _Inception(weights, name, eps) for name in _BLOCKS}
        self.blocks = nn.Sequential(
            blocks["Mixed_3b"],
            blocks["Mixed_3c"],
            _MaxPool((3, 3, 3), (2, 2, 2)),
            *(blocks[f"Mixed_4{letter}"] for letter in "bcdef"),
            _MaxPool((2, 2, 2), (2, 2, 2)),
            blocks["Mixed_5b"],
            blocks["Mixed_5c"],
        )
        self.register_buffer("weight", weights["logits.conv3d.weight"].flatten(1).float())
        self.register_buffer("bias", weights["logits.conv3d.bias"].float())

    def forward(self, clips: Tensor) -> I3DOutput:
        """Classifies clips.

        Args:
            clips: float32, (B, 3, T, 224, 224), in [-1, 1], at least 9 frames.

        Raises:
            ValueError: Clips of another size.
        """
        if clips.ndim != 5 or clips.shape[1] != 3 or clips.shape[-2:] != (SIDE, SIDE):
            raise ValueError(f"clips of (B, 3, T, {SIDE}, {SIDE}) expected, got {(*clips.shape,)}")
        if clips.shape[2] < I3D_FRAMES:
            raise ValueError(f"at least {I3D_FRAMES} frames needed, got {clips.shape[2]}")
        features = clips.contiguous(memory_format=torch.channels_last_3d)
        features = self.blocks(self.stem(features.to(next(self.stem.buffers()).dtype)))
        # The last layer is linear: the mean over time may as well come before it.
        pooled = F.avg_pool3d(features.float(), (2, 7, 7), stride=1).mean((2, 3, 4))
        return I3DOutput(F.linear(pooled, self.weight, self.bias), pooled)


def random_i3d(seed: int, eps: float) -> I3D:
    """Builds the network with random weights, for trying the plumbing; they measure nothing."""
    return I3D(random_weights(seed), eps)


def random_weights(seed: int) -> dict[str, Tensor]:
    """Draws weights under which activations neither vanish nor explode.

    Each tensor has a generator of its own, so that its values depend on its name and the seed
    alone.
    """
    weights = {}
    for name, shape in layout().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), seed) + 7)
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            values = 0.5 + values.abs()
        elif name.endswith((".running_mean", ".bias")):
            values = 0.1 * values
        elif name.endswith("bn.weight"):
            values = 1 + 0.1 * values
        else:
            values = values * (2 / values[0].numel()) ** 0.5
        weights[name] = values
    return weights


def layout() -> Layout:
    """Returns the names and shapes of the published file's 287 tensors."""
    units = {
        "Conv3d_1a_7x7": (64, 3, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (192, 64, 3),
    }
    for block, (width, widths) in _BLOCKS.items():
        inputs = (width, width, widths[1], width, widths[3], width)
        kernels = (1, 1, 3, 1, 3, 1)
        for branch, outgoing, incoming, kernel in zip(
            _BRANCHES, widths, inputs, kernels, strict=True
        ):
            units[f"{block}.{branch}"] = (outgoing, incoming, kernel)
    shapes: dict[str, tuple[int, ...]] = {}
    for unit, (outgoing, incoming, kernel) in units.items():
        shapes[f"{unit}.conv3d.weight"] = (outgoing, incoming, kernel, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{unit}.bn.{part}"] = (outgoing,)
    shapes["logits.conv3d.weight"] = (CLASSES, 1024, 1, 1, 1)
    shapes["logits.conv3d.bias"] = (CLASSES,)
    return shapes


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns TensorFlow's "SAME" padding of an axis, in front and behind."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def max_pool(
    features: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> Tensor:
    """Max-pools (B, C, T, H, W) with SAME padding; exact, and fast with channels last.

    Windows hang over the end (`ceil_mode`) instead of meeting padding there; on features that are
    not negative this equals padding by zeros.
    """
    front = [
        same_padding(size, *window)[0]
        for size, *window in zip(features.shape[2:], kernel, stride, strict=True)
    ]
    batch, height = features.shape[0], features.shape[3]
    if kernel[1:] != (1, 1):
        pooled = F.max_pool2d(
            rearrange(features, "b c t h w -> (b t) c h w"),
            kernel[1:],
            stride[1:],
            (front[1], front[2]),
            ceil_mode=True,
        )
        features = rearrange(pooled, "(b t) c h w -> b c t h w", b=batch)
        height = features.shape[3]
    if kernel[0] > 1:
        pooled = F.max_pool2d(
            rearrange(features, "b c t h w -> b c t (h w)"),
            (kernel[0], 1),
            (stride[0], 1),
            (front[0], 0),
            ceil_mode=True,
        )
        features = rearrange(pooled, "b c t (h w) -> b c t h w", h=height)
    return features


class _MaxPool(nn.Module):
    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, features: Tensor) -> Tensor:
        return max_pool(features, self.kernel, self.stride)


class _Convolution(nn.Module):
    """Convolution, batch normalisation and ReLU in one."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], name: str, eps: float, stride: int = 1
    ) -> None:
        super().__init__()
        weight, bias = _folded(weights, name, eps)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        if kernel == 1:
            # As a matrix product: torch sends 1x1x1 convolutions down a slow path on a CPU.
            product = F.linear(features.movedim(1, -1), self.weight.flatten(1), self.bias)
            return product.movedim(-1, 1).relu_()
        padding = [same_padding(size, kernel, self.stride) for size in features.shape[2:]]
        if any(behind != front for front, behind in padding):
            features = F.pad(features, [side for pair in reversed(padding) for side in pair])
            padding = [(0, 0)] * 3
        fronts = [front for front, _ in padding]
        return F.conv3d(features, self.weight, self.bias, self.stride, fronts).relu_()


class _Inception(nn.Module):
    """Four branches side by side: 1x1x1; two 1x1x1 then 3x3x3; pool then 1x1x1."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, eps: float) -> None:
        super().__init__()
        self.b0, self.b1a, self.b1b, self.b2a, self.b2b, self.b3b = (
            _Convolution(weights, f"{name}.{branch}", eps) for branch in _BRANCHES
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat(
            [
                self.b0(features),
                self.b1b(self.b1a(features)),
                self.b2b(self.b2a(features)),
                self.b3b(max_pool(features, (3, 3, 3), (1, 1, 1))),
            ],
            dim=1,
        )


def _folded(weights: Mapping[str, Tensor], name: str, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the weight and bias of a convolution with its batch normalisation in them."""
    weight = weights[f"{name}.conv3d.weight"].double()
    gain, shift, mean, variance = (
        weights[f"{name}.bn.{part}"].double()
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / (variance + eps).sqrt()
    folded = (weight * scale[:, None, None, None, None]).float()
    return (
        folded.contiguous(memory_format=torch.channels_last_3d),
        (shift - mean * scale).float(),
    )
