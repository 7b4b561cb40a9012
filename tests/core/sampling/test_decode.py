"""Decoding in pieces equals decoding the whole."""

import pytest
import torch
from torch import Tensor

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.sampling.decode import decode_stream, decoder_reach

DOWNSAMPLES = [(4, 8, 8), (1, 4, 2), (2, 4, 4), (8, 2, 2), (2, 16, 16)]


def vqgan(downsample: tuple[int, int, int], **settings: object) -> VQGAN:
    config = VQGANConfig.model_validate(
        {"embedding_dim": 4, "codes": 16, "hidden_channels": 2, "downsample": downsample} | settings
    )
    model = VQGAN(config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def codes(length: int, side: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(16, (1, length, side, side), generator=generator)


@pytest.mark.parametrize("downsample", DOWNSAMPLES)
def test_pieces_together_are_the_whole(downsample: tuple[int, int, int]) -> None:
    model = vqgan(downsample)
    length = 2 * decoder_reach(model.config) + 12
    tokens = codes(length)
    pieces = list(decode_stream(model, tokens, piece=5))
    frames = [piece.shape[2] for piece in pieces]
    assert frames[:-1] == [5 * downsample[0]] * (len(frames) - 1)
    whole = model.decode(tokens).clamp(-0.5, 0.5)
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.01


def test_pieces_of_frame_wise_group_norm_are_the_whole() -> None:
    model = vqgan((2, 2, 2), hidden_channels=16, norm_type="group")
    tokens = codes(2 * decoder_reach(model.config) + 10, side=4)
    pieces = list(decode_stream(model, tokens, piece=4))
    assert len(pieces) > 2
    whole = model.decode(tokens).clamp(-0.5, 0.5)
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-5, rtol=0)


def test_group_norm_over_time_is_decoded_whole() -> None:
    model = vqgan((2, 2, 2), hidden_channels=16, norm_type="group", group_norm_over_time=True)
    tokens = codes(2 * decoder_reach(model.config) + 10)
    [video] = decode_stream(model, tokens, piece=4)
    assert torch.equal(video, model.decode(tokens).clamp(-0.5, 0.5))


@pytest.mark.parametrize("downsample", [*DOWNSAMPLES, (4, 2, 2), (1, 8, 8)])
def test_nothing_beyond_the_reach_changes_a_frame(downsample: tuple[int, int, int]) -> None:
    model = vqgan(downsample).double()
    reach = decoder_reach(model.config)
    middle, factor = reach + 3, downsample[0]
    latents = torch.randn(1, 4, 2 * middle + 1, 1, 1, dtype=torch.double, requires_grad=True)
    video = model.decoder(model.post_vq_conv(latents))
    part = video[:, :, middle * factor : (middle + 1) * factor]
    (gradient,) = torch.autograd.grad(part.square().sum(), latents)
    used = gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten() - middle
    assert -reach <= int(used.min()) < 0 < int(used.max()) <= reach
    assert reach <= int(used.abs().max()) + 3  # and it is no wasteful guess


def test_frames_are_clamped() -> None:
    model = vqgan((2, 2, 2))
    with torch.no_grad():
        model.decoder.conv_last.conv.bias.fill_(9.0)
    [video] = decode_stream(model, codes(2))
    assert torch.equal(video, torch.full_like(video, 0.5))
