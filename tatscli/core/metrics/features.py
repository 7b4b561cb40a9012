"""Features of videos, as the Fréchet video distance defines them.

Unterthiner et al., "Towards Accurate Generative Models of Video: A New Metric & Challenges", 2018:
the 400 logits of I3D on clips squashed to 224 x 224. Two implementations that share the weights
still differ in the resize and in an epsilon, so both belong to a named protocol, and numbers of
different protocols are never compared.

N clips, B clips at once, T frames, C channels, H W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tatscli.config.compute import Precision
from tatscli.core.data.video import Frames
from tatscli.core.models.i3d import CLASSES, I3D, SIDE
from tatscli.core.models.inference import i3d_for_inference
from tatscli.core.precision import strict_float32

Resize = Literal["tf1", "bilinear"]


@dataclass(frozen=True)
class Protocol:
    """A definition of the features.

    Attributes:
        name: Printed and stored with every result.
        eps: Of the network's batch normalisations.
        resize: Which bilinear resize brings frames to 224 x 224.
    """

    name: str
    eps: float
    resize: Resize


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="fvd", eps=1e-3, resize="tf1"),
        Protocol(name="tats", eps=1e-5, resize="bilinear"),
    )
}


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
                [prepare(torch.from_numpy(clip).to(device), protocol.resize) for clip in batch]
            )
            features.append(model(inputs).logits.cpu())
    return torch.cat(features)


def prepare(clip: Tensor, rule: Resize) -> Tensor:
    """Turns a clip into the network's input.

    Args:
        clip: uint8, (T, H, W, 3).
        rule: Which resize.

    Returns:
        float32, (3, T, 224, 224), in [-1, 1].
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        raise ValueError(f"uint8 (T, H, W, 3) expected, got {clip.dtype} {(*clip.shape,)}")
    frames = resize(rearrange(clip, "t h w c -> t c h w").float(), SIDE, rule)
    return rearrange(frames / 127.5 - 1, "t c h w -> c t h w")


def resize(frames: Tensor, side: int, rule: Resize) -> Tensor:
    """Squashes frames to a square, without antialiasing.

    Args:
        frames: float32, (T, C, H, W).
        side: Of the square.
        rule: `bilinear` takes pixels as areas (half-pixel centres); `tf1` takes them as points on
            a grid that starts at the first one, as TensorFlow 1 did.

    Returns:
        float32, (T, C, side, side).
    """
    if rule == "bilinear":
        return F.interpolate(frames, (side, side), mode="bilinear", align_corners=False)
    return _interpolate_tf1(_interpolate_tf1(frames, side, dim=-1), side, dim=-2)


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
