"""Features of videos, as the Fréchet video distance defines them.

Unterthiner et al., "Towards Accurate Generative Models of Video: A New Metric & Challenges", 2018:
the 400 logits of I3D on clips brought to 224 x 224. How they are brought there is part of a
protocol, and numbers of different protocols are never compared.

N clips, B clips at once, T frames, C channels, H W pixels.
"""

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tatscli.config.compute import Precision
from tatscli.core.data.video import Frames
from tatscli.core.metrics.protocol import Fit, Protocol, Resize
from tatscli.core.models.i3d import CLASSES, I3D, SIDE
from tatscli.core.models.inference import i3d_for_inference
from tatscli.core.precision import strict_float32


def video_features(
    model: I3D,
    protocol: Protocol,
    clips: Iterable[Frames],
    batch_size: int,
    device: torch.device,
    precision: Precision = "float32",
) -> Tensor:
    """Computes the features of clips, in their order.

    Float32 is without TF32, which would move a distance in the fourth digit.

    Args:
        model: The network, built with the protocol's epsilon.
        protocol: How clips become its input.
        clips: uint8, each (T, H, W, 3), of one length; an array (N, T, H, W, 3) is
            such a sequence too.
        batch_size: Clips at once; the last batch may be smaller.
        device: Where to compute; the model is moved there.
        precision: Of the convolutions; bf16 moves logits by about 3 %.

    Returns:
        float32, (N, 400), on the CPU.
    """
    model = i3d_for_inference(model, device, precision)
    remaining = iter(clips)
    features = [torch.empty(0, CLASSES)]
    with torch.inference_mode(), strict_float32(device):
        while batch := list(islice(remaining, batch_size)):
            inputs = torch.stack(
                [prepare(torch.from_numpy(clip).to(device), protocol) for clip in batch]
            )
            features.append(model(inputs).logits.cpu())
    return torch.cat(features)


def prepare(clip: Tensor, protocol: Protocol) -> Tensor:
    """Turns a clip into the network's input.

    Args:
        clip: uint8, (T, H, W, 3).
        protocol: How.

    Returns:
        float32, (3, T, 224, 224), in [-1, 1].
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        raise ValueError(f"uint8 (T, H, W, 3) expected, got {clip.dtype} {(*clip.shape,)}")
    frames = rearrange(clip, "t h w c -> t c h w").float()
    if protocol.resolution:
        frames = crop(frames, protocol.resolution)
    frames = resize(frames, SIDE, protocol.resize, protocol.fit)
    return rearrange(frames / 127.5 - 1, "t c h w -> c t h w")


def crop(frames: Tensor, side: int) -> Tensor:
    """Brings the shorter side to a length, with antialiasing, and cuts the centre out.

    Pixels are whole numbers afterwards, as those of a file of that size would be.

    Args:
        frames: float32, (T, C, H, W), of pixels from 0 to 255.
        side: Of the square.

    Returns:
        float32, (T, C, side, side).
    """
    size = _covering(frames, side)
    if size != [*frames.shape[-2:]]:
        frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
    return _centre(frames, side).round().clamp(0, 255)


def resize(frames: Tensor, side: int, rule: Resize, fit: Fit = "squash") -> Tensor:
    """Brings frames to a square, without antialiasing.

    Args:
        frames: float32, (T, C, H, W).
        side: Of the square.
        rule: See `Protocol`.
        fit: See `Protocol`.

    Returns:
        float32, (T, C, side, side).
    """
    size = [side, side] if fit == "squash" else _covering(frames, side)
    if rule == "half-pixel":
        frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
    else:
        frames = _interpolate_tf1(_interpolate_tf1(frames, size[1], dim=-1), size[0], dim=-2)
    return _centre(frames, side)


def _covering(frames: Tensor, side: int) -> list[int]:
    """Height and width whose shorter one is `side`; the other is rounded up."""
    shorter = min(frames.shape[-2:])
    return [-(-length * side // shorter) for length in frames.shape[-2:]]


def _centre(frames: Tensor, side: int) -> Tensor:
    top, left = ((length - side) // 2 for length in frames.shape[-2:])
    return frames[..., top : top + side, left : left + side]


def _interpolate_tf1(frames: Tensor, size: int, dim: int) -> Tensor:
    """Samples an axis at i * old / new; past the last pixel its value is repeated."""
    last = frames.shape[dim] - 1
    position = torch.arange(size, dtype=torch.float32, device=frames.device)
    position = position * ((last + 1) / size)
    lower = position.long()
    weight = position - lower
    if dim == -2:
        weight = weight[:, None]
    return torch.lerp(
        frames.index_select(dim, lower),
        frames.index_select(dim, (lower + 1).clamp(max=last)),
        weight,
    )
