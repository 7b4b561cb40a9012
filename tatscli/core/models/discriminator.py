"""Patch discriminators of single frames and of whole clips (Isola et al. 2017, in 2-D and 3-D).

Letters: B clips or frames, C channels, T frames, H W pixels.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_CHANNELS = 512


class Judgement(NamedTuple):
    """What a discriminator says.

    Attributes:
        logits: One logit a patch, (B, 1, ...); high where the input looks real.
        features: The output of every layer, the logits included as the last.
    """

    logits: Tensor
    features: tuple[Tensor, ...]


class _Conv3d(nn.Conv3d):
    """Convolution that pads before it convolves, in bf16 on a CPU.

    oneDNN 3.12 gets the gradient of the weights wrong in bf16 where it pads by itself and there
    are fewer frames than the kernel is long, as in the last layers of a clip of 16 frames.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T, H, W) to its convolution."""
        rough = torch.is_autocast_enabled("cpu") or input.dtype == torch.bfloat16
        if input.device.type != "cpu" or not rough:
            return super().forward(input)
        padded = F.pad(input, self._reversed_padding_repeated_twice)
        return F.conv3d(padded, self.weight, self.bias, self.stride)


class PatchDiscriminator(nn.Module):
    """Strided convolutions down to one logit a patch.

    Args:
        dims: 2 judges frames (B, C, H, W), 3 judges clips (B, C, T, H, W).
        in_channels: Channels of the input.
        channels: Channels of the first layer, doubled by each further one up to 512.
        layers: Layers that halve every side; two more follow that do not.
    """

    def __init__(
        self, dims: Literal[2, 3], in_channels: int, channels: int = 64, layers: int = 3
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else _Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        widths = [min(channels * 2**i, _MOST_CHANNELS) for i in range(layers + 1)]
        first = conv(in_channels, widths[0], 4, stride=2, padding=2)
        stages = [nn.Sequential(first, nn.LeakyReLU(0.2))]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            layer = conv(widths[i - 1], widths[i], 4, stride=stride, padding=2)
            stages.append(nn.Sequential(layer, norm(widths[i]), nn.LeakyReLU(0.2)))
        stages.append(nn.Sequential(conv(widths[-1], 1, 4, padding=2)))
        self.layers = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Judgement:
        """Judge frames (B, C, H, W) or clips (B, C, T, H, W) in [-0.5, 0.5]."""
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return Judgement(x, tuple(features))
