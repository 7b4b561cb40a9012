"""LPIPS: how different two frames look to a classifier.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018: the
squared difference of unit-length VGG16 features at five depths, weighted by channel (the learned
weights v0.1), averaged over space and summed over the depths.

B frames, C channels, H W pixels.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from tatscli.config.train import LPIPS_SIDE
from tatscli.core.weights import Pin, read_tensors
from tatscli.errors import CheckpointError

HEADS_PIN = Pin("sha256", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868")
"""The learned channel weights v0.1 for VGG16, as torchmetrics ships them."""

Features = tuple[Tensor, ...]
"""Unit-length features of B frames at the five depths, float32, each (B, channels, h, w)."""

# Widths of the convolutions at each depth; a pooling between two depths.
_DEPTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HEAD_WIDTHS = [widths[-1] for widths in _DEPTHS]
# Mean and deviation of ImageNet for pixels in [-1, 1], rounded as when the weights were learned.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-8


class LPIPS(nn.Module):
    """The distance, frozen; gradients pass through it to the frames.

    It has no state of its own to train or save: hold it outside of the trained module's tree (in
    a tuple, say), so that checkpoints and optimisers do not see it.

    Args:
        vgg16_file: torchvision's `vgg16-397923af.pth`.

    Raises:
        CheckpointError: A weight file cannot be read or is not the expected one.
    """

    shift: Tensor
    scale: Tensor
    heads: Tensor

    def __init__(self, vgg16_file: Path) -> None:
        super().__init__()
        self.depths = _vgg16(vgg16_file)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1))
        self.register_buffer("heads", _read_heads())
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
            frames: float, (B, C, H, W), in [-0.5, 0.5]; sides of at least 16.
        """
        if min(frames.shape[-2:]) < LPIPS_SIDE:
            raise ValueError(f"sides of at least {LPIPS_SIDE} needed, got {(*frames.shape[-2:],)}")
        outputs = (2 * frames - self.shift) / self.scale
        found = []
        for depth in self.depths:
            outputs = depth(outputs)
            found.append(_unit_length(outputs.float()))
        return tuple(found)

    def distance(self, a: Features, b: Features) -> Tensor:
        """Measures the distance of features: float32, (B,)."""
        heads = torch.split(self.heads, _HEAD_WIDTHS)
        distances = [
            ((at_a - at_b).square() * head.view(-1, 1, 1)).sum(1).mean((1, 2))
            for at_a, at_b, head in zip(a, b, heads, strict=True)
        ]
        return torch.stack(distances).sum(0)


def _unit_length(features: Tensor) -> Tensor:
    # The constant inside of the root keeps the gradient finite where all channels are zero.
    return features / (features.square().sum(1, keepdim=True) + _EPS).sqrt()


def _vgg16(path: Path) -> nn.ModuleList:
    """Reads the convolutions of torchvision's VGG16, one sequence for each depth."""
    depths = nn.ModuleList()
    names = {}
    incoming, place = 3, 0
    for depth, widths in enumerate(_DEPTHS):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if depth else []
        place += len(layers)
        for width in widths:
            for part in ("weight", "bias"):
                names[f"{depth}.{len(layers)}.{part}"] = f"features.{place}.{part}"
            layers += [nn.Conv2d(incoming, width, 3, padding=1, device="meta"), nn.ReLU()]
            incoming, place = width, place + 2
        depths.append(nn.Sequential(*layers))
    layout = {names[ours]: tuple(value.shape) for ours, value in depths.state_dict().items()}
    tensors = read_tensors(path, layout, only="features.")
    depths.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()}, assign=True)
    return depths


def _read_heads() -> Tensor:
    """Reads the learned weights of all channels at all depths, one after the other."""
    # Found without importing the package, which takes seconds.
    package = importlib.util.find_spec("torchmetrics")
    if package is None or package.origin is None:
        raise CheckpointError(
            "torchmetrics is not installed; its package holds the LPIPS weights",
            "pip install torchmetrics; or train with --perceptual-weight 0",
        )
    path = Path(package.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
    names = [f"lin{depth}.model.1.weight" for depth in range(len(_DEPTHS))]
    layout = {name: (1, width, 1, 1) for name, width in zip(names, _HEAD_WIDTHS, strict=True)}
    tensors = read_tensors(path, layout)
    digest = HEADS_PIN.measure(path)
    if digest != HEADS_PIN.digest:
        raise CheckpointError(
            f"{path} is not version 0.1 of the LPIPS weights: its sha256 is {digest}, "
            f"expected {HEADS_PIN.digest}",
            "pip install --force-reinstall torchmetrics; or train with --perceptual-weight 0",
        )
    return torch.cat([tensors[name].flatten() for name in names])
