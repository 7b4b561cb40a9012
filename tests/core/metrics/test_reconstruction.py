"""PSNR, SSIM, L1 and their standard errors: definitions, on numbers one can check by hand."""

import random
from math import sqrt
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from einops import rearrange
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tatscli.core.data.video import to_float, to_uint8
from tatscli.core.metrics.reconstruction import (
    clip_psnr,
    frame_psnr,
    l1,
    psnr,
    rounded,
    ssim,
    standard_error,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def test_a_constant_error_gives_its_decibels() -> None:
    real = noise(2, 3, 4, 8, 8)
    fake = real + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(psnr(real, fake), torch.tensor([20.0, 40.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(l1(real, fake), torch.tensor([0.1, 0.01]), rtol=1e-4, atol=0)


def test_a_clip_has_the_mean_of_its_frames_or_that_of_its_squared_error() -> None:
    real = torch.zeros(1, 3, 2, 8, 8)
    fake = torch.tensor([0.1, 0.001]).view(1, 1, 2, 1, 1).expand_as(real)
    torch.testing.assert_close(frame_psnr(real, fake), torch.tensor([[20.0, 60.0]]))
    torch.testing.assert_close(psnr(real, fake), torch.tensor([40.0]))
    # The mean of 1e-2 and 1e-6 is half of the former: 3 dB above 20.
    expected = torch.tensor([20 + 10 * np.log10(2 / 1.0001)], dtype=torch.float32)
    torch.testing.assert_close(clip_psnr(real, fake), expected)


def test_equal_frames_have_no_psnr_and_count_as_one_hundred_in_the_mean() -> None:
    real = noise(1, 3, 2, 8, 8)
    fake = real.clone()
    fake[:, :, 1] += 0.1
    assert frame_psnr(real, fake).isinf().tolist() == [[True, False]]
    torch.testing.assert_close(psnr(real, fake), torch.tensor([60.0]), rtol=1e-4, atol=0)
    assert clip_psnr(real, real).tolist() == [100.0]


def test_half_precision_is_measured_in_full() -> None:
    real = torch.zeros(1, 3, 1, 64, 64, dtype=torch.float16)
    fake = torch.full_like(real, 2**-9)
    expected = torch.tensor([20 * 9 * torch.log10(torch.tensor(2.0))])
    torch.testing.assert_close(psnr(real, fake), expected)


@pytest.mark.parametrize("measure", [psnr, clip_psnr, l1, ssim])
def test_other_shapes_and_bytes_are_refused(measure) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 12, 12\).*\(1, 3, 2, 12, 16\)"):
        measure(torch.zeros(1, 3, 2, 12, 12), torch.zeros(1, 3, 2, 12, 16))
    with pytest.raises(ValueError, match="uint8"):
        measure(torch.zeros(1, 3, 2, 12, 12), torch.zeros(1, 3, 2, 12, 12, dtype=torch.uint8))


def test_all_256_levels_are_their_own_rounding() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    video = to_float(levels)
    assert torch.equal(rounded(video), video)
    assert np.array_equal(to_uint8(rounded(video)), levels)
    # Up to half a level away on either side, and beyond both ends.
    for shift in (-0.49, 0.49):
        assert torch.equal(rounded(video + shift / 255), video)
    assert rounded(torch.tensor([-3.0, 3.0])).tolist() == [-0.5, 0.5]
    values = noise(1, 3, 2, 9, 9) * 1.2
    assert torch.equal(rounded(values), to_float(to_uint8(values)))


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Of two planes in [0, 1], in float64, with SciPy's Gaussian; borders cut off."""

    def blurred(plane: np.ndarray) -> np.ndarray:
        return gaussian_filter(plane, 1.5, radius=5)[5:-5, 5:-5]

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    product = blurred(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + 0.01**2) * (2 * product + 0.03**2)
    below = (mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2)
    return float((above / below).mean())


def test_ssim_is_the_mean_of_frames_and_channels_by_themselves() -> None:
    real = noise(2, 3, 4, 20, 17)
    fake = real + 0.3 * noise(2, 3, 4, 20, 17, seed=1)
    planes = [rearrange(v + 0.5, "b c t h w -> b (c t) h w").double().numpy() for v in (real, fake)]
    expected = [mean(map(reference_ssim, x, y)) for x, y in zip(*planes, strict=True)]
    found = ssim(real, fake)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=0)
    frames = [rearrange(video, "b c t h w -> (b t) c 1 h w") for video in (real, fake)]
    each = ssim(frames[0], frames[1])
    torch.testing.assert_close(each.view(2, 4).mean(1), found)


def test_ssim_does_not_reach_over_frames() -> None:
    """Black and white frames in turn: over time, all would be grey and alike."""
    real = (torch.arange(12) % 2 - 0.5).view(1, 1, 12, 1, 1).expand(1, 3, 12, 16, 16)
    torch.testing.assert_close(ssim(real, real), torch.ones(1))
    # Flat frames leave the luminance: 2 * 0 * 1 + C1 over 0 + 1 + C1.
    expected = torch.tensor([1e-4 / (1 + 1e-4)])
    torch.testing.assert_close(ssim(real, real.flip(2)), expected, rtol=1e-3, atol=0)


def test_frames_smaller_than_the_window_are_refused() -> None:
    small = noise(1, 3, 2, 16, 10)
    with pytest.raises(ValueError, match="sides of at least 11 needed, got 16 x 10"):
        ssim(small, small)


def sandwich(values: list[float], clusters: list[str]) -> float:
    """The variance by the sum over all pairs of one cluster."""
    centre, count = mean(values), len(set(clusters))
    meat = 0.0
    for value, cluster in zip(values, clusters, strict=True):
        for other, same in zip(values, clusters, strict=True):
            if cluster == same:
                meat += (value - centre) * (other - centre)
    return sqrt(meat * count / (count - 1)) / len(values)


def test_a_standard_error_counts_clips_of_one_video_as_dependent() -> None:
    rng = random.Random(0)
    values = [rng.gauss(0, 1) for _ in range(40)]
    assert standard_error(values, range(40)) == pytest.approx(stdev(values) / sqrt(40))
    clusters = [str(int(rng.random() ** 2 * 7)) for _ in values]
    assert standard_error(values, clusters) == pytest.approx(sandwich(values, clusters))
    # Clips that are all alike within a video tell no more than one clip of each.
    videos = values[:5]
    alike = [value for value in videos for _ in range(8)]
    of_videos = stdev(videos) / sqrt(5)
    assert standard_error(alike, [n // 8 for n in range(40)]) == pytest.approx(of_videos)


def test_clips_of_one_video_have_no_standard_error() -> None:
    assert standard_error([1.0, 2.0, 3.0], ["a", "a", "a"]) is None
