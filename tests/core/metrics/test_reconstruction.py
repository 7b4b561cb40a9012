"""PSNR: its definition, on numbers one can check by hand."""

import pytest
import torch

from tatscli.core.metrics.reconstruction import psnr, usage_perplexity


def test_a_constant_error_gives_its_decibels() -> None:
    real = torch.rand(2, 3, 4, 8, 8) - 0.5
    fake = real + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(psnr(real, fake), torch.tensor([20.0, 40.0]), rtol=1e-4, atol=0)


def test_a_clip_has_the_mean_of_its_frames() -> None:
    real = torch.zeros(1, 3, 2, 8, 8)
    fake = torch.tensor([0.1, 0.001]).view(1, 1, 2, 1, 1).expand_as(real)
    torch.testing.assert_close(psnr(real, fake), torch.tensor([40.0]))


def test_equal_frames_count_as_one_hundred() -> None:
    real = torch.rand(1, 3, 2, 8, 8) - 0.5
    fake = real.clone()
    fake[:, :, 1] += 0.1
    torch.testing.assert_close(psnr(real, fake), torch.tensor([60.0]), rtol=1e-4, atol=0)


def test_half_precision_is_measured_in_full() -> None:
    real = torch.zeros(1, 3, 1, 64, 64, dtype=torch.float16)
    fake = torch.full_like(real, 2**-9)
    expected = torch.tensor([20 * 9 * torch.log10(torch.tensor(2.0))])
    torch.testing.assert_close(psnr(real, fake), expected)


def test_other_shapes_and_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 8, 8\).*\(1, 3, 2, 8, 4\)"):
        psnr(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 2, 8, 4))
    with pytest.raises(ValueError, match="uint8"):
        psnr(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8))


def test_perplexity_counts_codes_that_are_used_equally_often() -> None:
    assert usage_perplexity(torch.tensor([5, 0, 5, 5, 0])) == pytest.approx(3)
    assert usage_perplexity(torch.tensor([0, 7, 0])) == pytest.approx(1)
    assert 1 < usage_perplexity(torch.tensor([9, 1])) < 2
