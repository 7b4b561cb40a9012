"""How near a reconstruction is to its video, and how many codes it takes.

B clips, C channels, T frames, H W pixels, K codes.
"""

import torch
from torch import Tensor

DATA_RANGE = 1.0
"""Largest difference of two values of a video in [-0.5, 0.5]."""

CEILING = 100.0
"""PSNR, in dB, that counts for equal frames, which have none."""


def psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Computes the peak signal-to-noise ratio of each clip, in dB.

    A frame has 10 log10(1 / mean squared error), over all its channels and pixels, at most 100; a
    clip has the mean of its frames, a dataset the mean of its clips. Values are taken as they are:
    clamp first for what a file would show.

    Args:
        real: float, (B, C, T, H, W), in [-0.5, 0.5].
        fake: The same shape.

    Returns:
        float32, (B,).
    """
    if real.shape != fake.shape or not (real.is_floating_point() and fake.is_floating_point()):
        raise ValueError(
            f"two float videos of one shape expected, got {real.dtype} {(*real.shape,)} "
            f"and {fake.dtype} {(*fake.shape,)}"
        )
    error = (real.float() - fake.float()).square().mean((1, 3, 4))
    decibels = 10 * torch.log10(DATA_RANGE**2 / error)
    return decibels.clamp(max=CEILING).mean(1)


def usage_perplexity(counts: Tensor) -> float:
    """The number of codes that, used equally often, would be as hard to guess.

    Args:
        counts: How often each code occurs, (K,), not all 0.
    """
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum().exp())
