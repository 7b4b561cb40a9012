"""How near a reconstruction is to its video.

B clips, C channels, T frames, H W pixels. Videos are float in [-0.5, 0.5].
"""

import math
from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

DATA_RANGE = 1.0
"""Largest difference of two values of a video in [-0.5, 0.5]."""

CEILING = 100.0
"""PSNR, in dB, that counts for equal frames, which have none."""

SSIM_WINDOW = 11
"""Side of the window of SSIM in pixels."""

_SIGMA = 1.5
# Of a difference of 1; they keep quotients of dark and of flat places finite.
_LUMINANCE, _CONTRAST = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2


def rounded(video: Tensor) -> Tensor:
    """Brings every value to the nearest of the 256 levels of a file, which stay as they are.

    Args:
        video: float, any shape; what exceeds [-0.5, 0.5] is clamped.

    Returns:
        float32, the same shape.
    """
    return ((video.float() + 0.5) * 255).round().clamp(0, 255) / 255 - 0.5


def frame_psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Computes the peak signal-to-noise ratio of each frame, in dB.

    It is 10 log10(1 / mean squared error), over all channels and pixels of the frame; infinite for
    equal frames. Values are taken as they are: for what a file would show, round them first.

    Args:
        real: float, (B, C, T, H, W), in [-0.5, 0.5].
        fake: The same shape.

    Returns:
        float32, (B, T).
    """
    return _decibels(_difference(real, fake).square().mean((1, 3, 4)))


def psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Computes the peak signal-to-noise ratio of each clip: the mean of its frames, in dB.

    A frame counts as 100 dB at most, one that is equal too.

    Args:
        real: float, (B, C, T, H, W), in [-0.5, 0.5].
        fake: The same shape.

    Returns:
        float32, (B,).
    """
    return frame_psnr(real, fake).clamp(max=CEILING).mean(1)


def clip_psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Computes it from the squared error of the whole clip, as VideoGPT and PVDM report it, in dB.

    Never above `psnr`, up to the ceiling of 100 dB: a logarithm is concave.

    Args:
        real: float, (B, C, T, H, W), in [-0.5, 0.5].
        fake: The same shape.

    Returns:
        float32, (B,).
    """
    error = _difference(real, fake).square().mean((1, 2, 3, 4))
    return _decibels(error).clamp(max=CEILING)


def l1(real: Tensor, fake: Tensor) -> Tensor:
    """Computes the mean absolute difference of each clip; black and white differ by 1.

    Args:
        real: float, (B, C, T, H, W), in [-0.5, 0.5].
        fake: The same shape.

    Returns:
        float32, (B,).
    """
    return _difference(real, fake).abs().mean((1, 2, 3, 4))


def ssim(real: Tensor, fake: Tensor) -> Tensor:
    """Computes the structural similarity of each clip: the mean of its frames.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004:
    a Gaussian window of 11 x 11 with deviation 1.5, K1 = 0.01, K2 = 0.03, each channel by itself,
    only where the window is inside the frame, as in their code, scikit-image and TensorFlow;
    torchmetrics reflects frames at their borders, which moves it by about 0.001. The window never
    reaches over frames.

    Args:
        real: float, (B, C, T, H, W), in [-0.5, 0.5]; sides of at least 11.
        fake: The same shape.

    Returns:
        float32, (B,), at most 1.
    """
    _difference(real, fake)
    if min(real.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"sides of at least {SSIM_WINDOW} needed, got {real.shape[-2]} x {real.shape[-1]}"
        )
    x, y = (rearrange(v.float() + 0.5, "b c t h w -> b (c t) h w") for v in (real, fake))
    mean_x, mean_y, square_x, square_y, product = map(_blurred, (x, y, x * x, y * y, x * y))
    covariance = product - mean_x * mean_y
    variance = (square_x - mean_x**2).clamp(min=0) + (square_y - mean_y**2).clamp(min=0)
    luminance = (2 * mean_x * mean_y + _LUMINANCE) / (mean_x**2 + mean_y**2 + _LUMINANCE)
    structure = (2 * covariance + _CONTRAST) / (variance + _CONTRAST)
    return (luminance * structure).mean((1, 2, 3))


def standard_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Computes the standard error of a mean whose values are independent only between clusters.

    The sandwich estimator with G / (G - 1) for G clusters (Liang and Zeger, 1986): that of the
    textbook where every cluster has one value.

    Args:
        values: Numbers.
        clusters: For each, the cluster it belongs to, such as the video of a clip.

    Returns:
        None for a single cluster, which tells nothing about others.
    """
    mean = sum(values) / len(values)
    deviations: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        deviations[cluster] = deviations.get(cluster, 0.0) + value - mean
    count = len(deviations)
    if count < 2:
        return None
    squares = sum(deviation * deviation for deviation in deviations.values())
    return math.sqrt(squares * count / (count - 1)) / len(values)


def _decibels(error: Tensor) -> Tensor:
    return 10 * torch.log10(DATA_RANGE**2 / error)


def _difference(real: Tensor, fake: Tensor) -> Tensor:
    if real.shape != fake.shape or not (real.is_floating_point() and fake.is_floating_point()):
        raise ValueError(
            f"two float videos of one shape expected, got {real.dtype} {(*real.shape,)} "
            f"and {fake.dtype} {(*fake.shape,)}"
        )
    return real.float() - fake.float()


def _blurred(planes: Tensor) -> Tensor:
    """Weighted means over the window, (B, N, H, W) to (B, N, H - 10, W - 10)."""
    places = torch.arange(SSIM_WINDOW, device=planes.device) - SSIM_WINDOW // 2
    count = planes.shape[1]
    weights = torch.softmax(-(places**2) / (2 * _SIGMA**2), 0).expand(count, 1, 1, -1)
    columns = F.conv2d(planes, weights.mT, groups=count)
    return F.conv2d(columns, weights, groups=count)
