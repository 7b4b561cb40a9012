import math

import pytest
import torch

from tatscli.core.metrics.baselines import best_constant_image, bigram_loss
from tatscli.core.metrics.reconstruction import psnr


def test_no_constant_image_beats_the_best_one():
    videos = torch.rand(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    best = best_constant_image(videos)
    assert best.shape == (3, 8, 8)

    def error(image):
        return float((videos - image[None, :, None]).square().mean())

    for seed in range(5):
        other = best + 0.01 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed))
        assert error(best) < error(other)
    shown = best[None, :, None].expand_as(videos)
    assert psnr(videos, shown).mean() > psnr(videos, torch.zeros_like(videos)).mean()


def test_copying_predicts_still_codes_and_nothing_predicts_chance():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(8, (400, 1, 2, 2), generator=generator)
    still = first.expand(-1, 4, -1, -1)
    # The first of four frames is chance among 8 codes, the others follow from it.
    assert bigram_loss(still[:300], still[300:], 8) == pytest.approx(math.log(8) / 4, abs=0.05)
    chance = torch.randint(8, (400, 4, 2, 2), generator=generator)
    assert bigram_loss(chance[:300], chance[300:], 8) == pytest.approx(math.log(8), abs=0.05)


def test_codes_that_were_never_seen_cost_a_finite_loss():
    train = torch.zeros(10, 3, 1, 1, dtype=torch.long)
    held = torch.full((2, 3, 1, 1), 3)
    assert math.log(4) / 2 < bigram_loss(train, held, 4) < 20
