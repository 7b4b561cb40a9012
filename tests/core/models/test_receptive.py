"""The stated receptive fields are those that gradients show."""

import pytest
import torch
from torch import Tensor

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.receptive import decoder_reach, encoder_reach, pools_over_time
from tatscli.core.models.vqgan import VQGAN

DOWNSAMPLES = [
    (1, 4, 4), (2, 4, 4), (4, 4, 4), (4, 8, 8), (1, 4, 2), (8, 2, 2), (2, 16, 16), (1, 8, 8),
]  # fmt: skip
GROUPS = {"norm_type": "group", "hidden_channels": 16}
CASES = [(factors, {}) for factors in DOWNSAMPLES] + [
    (factors, GROUPS) for factors in DOWNSAMPLES[:3]
]


def vqgan(downsample: tuple[int, int, int], **settings: object) -> VQGAN:
    config = {"embedding_dim": 4, "codes": 16, "hidden_channels": 2, "downsample": downsample}
    return VQGAN(VQGANConfig.model_validate(config | settings)).eval().double()


def seen_by_latent(model: VQGAN, latent: int, latents: int) -> list[int]:
    """Frames that a latent depends on."""
    factor, height, width = model.config.downsample
    video = torch.randn(1, 3, latents * factor, height, width, dtype=torch.double)
    video.requires_grad_()
    return _used(model.latents(video)[:, :, latent], video)


def seen_by_frames(model: VQGAN, latent: int, latents: int) -> list[int]:
    """Latent frames that the frames of one of them depend on."""
    factor = model.config.downsample[0]
    grid = torch.randn(1, 4, latents, 1, 1, dtype=torch.double, requires_grad=True)
    video = model.decoder(model.post_vq_conv(grid))
    return _used(video[:, :, latent * factor : (latent + 1) * factor], grid)


def _used(output: Tensor, source: Tensor) -> list[int]:
    (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), source)
    return gradient.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()


@pytest.mark.parametrize(("downsample", "settings"), CASES)
def test_a_latent_depends_on_the_frames_within_reach_and_no_others(
    downsample: tuple[int, int, int], settings: dict[str, object]
) -> None:
    model = vqgan(downsample, **settings)
    before, after = encoder_reach(model)
    factor = downsample[0]
    latent = before // factor + 2
    first, last = latent * factor - before, (latent + 1) * factor - 1 + after
    latents = last // factor + 3
    assert seen_by_latent(model, latent, latents) == list(range(first, last + 1))


@pytest.mark.parametrize(("downsample", "settings"), CASES)
def test_the_frames_of_a_latent_depend_on_latents_within_reach_and_no_others(
    downsample: tuple[int, int, int], settings: dict[str, object]
) -> None:
    model = vqgan(downsample, **settings)
    before, after = decoder_reach(model)
    latent, latents = before + 2, before + after + 5
    expected = list(range(latent - before, latent + after + 1))
    assert seen_by_frames(model, latent, latents) == expected


@pytest.mark.parametrize("padding_type", ["replicate", "constant"])
@pytest.mark.parametrize("downsample", [(1, 4, 4), (2, 4, 4), (4, 4, 4)])
def test_the_ends_of_a_clip_reach_no_farther(
    downsample: tuple[int, int, int], padding_type: str
) -> None:
    model = vqgan(downsample, padding_type=padding_type)
    factor = downsample[0]
    before, after = encoder_reach(model)
    latents = (before + after) // factor + 4
    assert seen_by_latent(model, 0, latents)[-1] == factor - 1 + after
    assert seen_by_latent(model, latents - 1, latents)[0] == (latents - 1) * factor - before
    before, after = decoder_reach(model)
    latents = before + after + 4
    assert seen_by_frames(model, 0, latents)[-1] == after
    assert seen_by_frames(model, latents - 1, latents)[0] == latents - 1 - before


def test_the_published_model_sees_64_frames_a_latent_and_13_latents_for_its_frames() -> None:
    model = vqgan((4, 8, 8))
    assert (encoder_reach(model), decoder_reach(model)) == ((32, 28), (6, 6))
    assert 32 + 4 + 28 == 64


def test_group_norm_over_time_reaches_all_frames() -> None:
    model = vqgan((2, 2, 2), **GROUPS, group_norm_over_time=True)
    assert pools_over_time(model.config)
    assert seen_by_latent(model, 6, 40) == list(range(80))
    assert seen_by_frames(model, 6, 40) == list(range(40))
    for settings in ({}, GROUPS, {"group_norm_over_time": True}):  # it says nothing of batch norm
        assert not pools_over_time(vqgan((2, 2, 2), **settings).config)
