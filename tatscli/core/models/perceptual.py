"""LPIPS: how different two frames look to a classifier.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018: the
squared difference of unit-length features of VGG16 or AlexNet at five depths, weighted by channel
(the learned weights v0.1), averaged over space and summed over the depths.

B frames, C channels, H W pixels.
"""

import importlib.util
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tatscli.config.train import LPIPS_SIDE
from tatscli.core.weights import Pin, read_tensors
from tatscli.errors import CheckpointError

Network = Literal["vgg", "alex"]
"""Whose features are compared: VGG16, as the loss of training does, or AlexNet, as papers report
it. Distances of the two do not compare."""

Features = tuple[Tensor, ...]
"""Unit-length features of B frames at the five depths, float32, each (B, channels, h, w)."""

HEADS_PINS = {
    "vgg": Pin("sha256", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    "alex": Pin("sha256", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
}
"""The learned channel weights v0.1, as torchmetrics ships them."""

LEAST_SIDES: dict[Network, int] = {"vgg": LPIPS_SIDE, "alex": 31}
"""Sides of the smallest frames, in pixels, that have a feature at every depth."""

# Mean and deviation of ImageNet for pixels in [-1, 1], rounded as when the weights were learned.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-8


class LPIPS(nn.Module):
    """The distance, frozen; gradients pass through it to the frames.

    It has no state of its own to train or save: hold it outside of the trained module's tree (in
    a tuple, say), so that checkpoints and optimisers do not see it.

    Args:
        file: torchvision's weights: `vgg16-397923af.pth`, `alexnet-owt-7be5be79.pth`.
        network: Whose features are compared.

    Raises:
        CheckpointError: A weight file cannot be read or is not the expected one.
    """

    shift: Tensor
    scale: Tensor
    heads: Tensor

    def __init__(self, file: Path, network: Network = "vgg") -> None:
        super().__init__()
        self.least_side = LEAST_SIDES[network]
        layers = _vgg16() if network == "vgg" else _alexnet()
        self.depths = nn.ModuleList(nn.Sequential(*depth) for depth in layers)
        _load(self.depths, file)
        self.widths = [_width(depth) for depth in layers]
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1))
        self.register_buffer("heads", _read_heads(network, self.widths))
        self.requires_grad_(False)
        # Some 6 % faster on a CPU.
        self.to(memory_format=torch.channels_last)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Measures the distance of frames, pair by pair.

        Args:
            a: float, (B, C, H, W), in [-0.5, 0.5]; C is 3, or 1 for grey.
            b: The same shape.

        Returns:
            float32, (B,), at least 0.
        """
        return self.distance(self.features(a), self.features(b))

    def features(self, frames: Tensor) -> Features:
        """Computes what `distance` compares, so that a target's need be computed only once.

        Args:
            frames: float, (B, C, H, W), in [-0.5, 0.5]; sides of at least 16 for VGG16, 31
                for AlexNet.
        """
        if min(frames.shape[-2:]) < self.least_side:
            raise ValueError(
                f"sides of at least {self.least_side} needed, got {(*frames.shape[-2:],)}"
            )
        outputs = (2 * frames - self.shift) / self.scale
        found = []
        for depth in self.depths:
            outputs = depth(outputs)
            found.append(_unit_length(outputs.float()))
        return tuple(found)

    def distance(self, a: Features, b: Features) -> Tensor:
        """Measures the distance of features: float32, (B,)."""
        heads = torch.split(self.heads, self.widths)
        distances = [
            ((at_a - at_b).square() * head.view(-1, 1, 1)).sum(1).mean((1, 2))
            for at_a, at_b, head in zip(a, b, heads, strict=True)
        ]
        return torch.stack(distances).sum(0)


def _unit_length(features: Tensor) -> Tensor:
    # The constant inside of the root keeps the gradient finite where all channels are zero.
    return features / (features.square().sum(1, keepdim=True) + _EPS).sqrt()


def _vgg16() -> list[list[nn.Module]]:
    """The layers of torchvision's VGG16 down to each depth, without weights."""
    depths: list[list[nn.Module]] = []
    incoming = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if depths else []
        for _ in range(convolutions):
            layers += _convolution(incoming, width, 3)
            incoming = width
        depths.append(layers)
    return depths


def _alexnet() -> list[list[nn.Module]]:
    """The layers of torchvision's AlexNet down to each depth, without weights."""
    return [
        _convolution(3, 64, 11, stride=4, padding=2),
        [nn.MaxPool2d(3, 2), *_convolution(64, 192, 5, padding=2)],
        [nn.MaxPool2d(3, 2), *_convolution(192, 384, 3)],
        _convolution(384, 256, 3),
        _convolution(256, 256, 3),
    ]


def _convolution(
    incoming: int, outgoing: int, size: int, stride: int = 1, padding: int = 1
) -> list[nn.Module]:
    return [nn.Conv2d(incoming, outgoing, size, stride, padding, device="meta"), nn.ReLU()]


def _width(depth: list[nn.Module]) -> int:
    """Channels behind the layers of a depth."""
    return [layer.out_channels for layer in depth if isinstance(layer, nn.Conv2d)][-1]


def _load(depths: nn.ModuleList, path: Path) -> None:
    """Fills the layers from a file of torchvision, which numbers them throughout."""
    names, place = {}, 0
    for depth, layers in depths.named_children():
        for number, layer in layers.named_children():
            for part, _ in layer.named_parameters():
                names[f"{depth}.{number}.{part}"] = f"features.{place}.{part}"
            place += 1
    layout = {names[ours]: tuple(value.shape) for ours, value in depths.state_dict().items()}
    tensors = read_tensors(path, layout, only="features.")
    depths.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()}, assign=True)


def _read_heads(network: Network, widths: list[int]) -> Tensor:
    """Reads the learned weights of all channels at all depths, one after the other."""
    # Found without importing the package, which takes seconds.
    package = importlib.util.find_spec("torchmetrics")
    if package is None or package.origin is None:
        raise CheckpointError(
            "torchmetrics is not installed; its package holds the LPIPS weights",
            "pip install torchmetrics; or do without: --perceptual-weight 0, --lpips none",
        )
    path = Path(package.origin).parent / "functional" / "image" / "lpips_models" / f"{network}.pth"
    names = [f"lin{depth}.model.1.weight" for depth in range(len(widths))]
    layout = {name: (1, width, 1, 1) for name, width in zip(names, widths, strict=True)}
    tensors = read_tensors(path, layout)
    pin = HEADS_PINS[network]
    digest = pin.measure(path)
    if digest != pin.digest:
        raise CheckpointError(
            f"{path} is not version 0.1 of the LPIPS weights: its sha256 is {digest}, "
            f"expected {pin.digest}",
            "pip install --force-reinstall torchmetrics; or do without: --perceptual-weight 0, "
            "--lpips none",
        )
    return torch.cat([tensors[name].flatten() for name in names])
