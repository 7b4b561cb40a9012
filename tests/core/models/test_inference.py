"""Models made ready for use: the same numbers, in another layout."""

import pytest
import torch

from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.metrics.protocol import PROTOCOLS
from tatscli.core.models.gpt import GPT, KVCache
from tatscli.core.models.i3d import random_i3d
from tatscli.core.models.inference import (
    PackedLinear,
    gpt_for_inference,
    i3d_for_inference,
    vqgan_for_inference,
)
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.sampling.decode import decode_stream, encode_stream
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import Chances, generate_window

CPU = torch.device("cpu")
packs = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)


def gpt() -> GPT:
    torch.manual_seed(0)
    layout = ConditionLayout.unconditional()
    return GPT(
        GPTConfig(
            layers=2, heads=2, width=64, codes=50, grid=(2, 3, 3), condition=layout, block_size=18
        )
    ).eval()


def vqgan() -> VQGAN:
    torch.manual_seed(1)
    config = VQGANConfig(embedding_dim=16, codes=64, hidden_channels=8, downsample=(4, 4, 4))
    return VQGAN(config).eval()


def close(found: torch.Tensor, expected: torch.Tensor, part: float) -> None:
    """Equal up to a part of the largest value."""
    limit = part * float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected, atol=limit, rtol=0)


@packs
@pytest.mark.parametrize("rows", [(1,), (3,), (5, 1), (2, 70)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_what_the_layer_does(rows: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(2)
    linear = torch.nn.Linear(48, 80, bias=bias)
    x = torch.randn(*rows, 48)
    with torch.no_grad():
        expected, found = linear(x), PackedLinear(linear)(x)
    assert found.shape == expected.shape
    close(found, expected, 1e-6)


@packs
def test_a_packed_layer_applies_the_exact_gelu() -> None:
    torch.manual_seed(3)
    linear, x = torch.nn.Linear(48, 80), 4 * torch.randn(70, 48)
    with torch.no_grad():
        expected = torch.nn.functional.gelu(linear(x))
        found = PackedLinear(linear, gelu=True)(x)
    close(found, expected, 1e-6)  # the tanh form differs by 3e-4


@packs
def test_all_linear_layers_of_a_gpt_are_packed_and_its_logits_stay():
    plain, ready = gpt(), gpt_for_inference(gpt(), CPU)
    assert not [m for m in ready.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(isinstance(m, PackedLinear) for m in ready.modules()) == 2 * 4 + 1
    ids = torch.arange(18).reshape(2, 9)
    with torch.no_grad():
        expected = plain.step(ids, KVCache(plain, 2))
        found = ready.step(ids, KVCache(ready, 2))
    close(found, expected, 1e-5)


def test_a_gpt_ready_for_use_writes_the_same_samples():
    condition, chosen_by = torch.zeros(3, 1, dtype=torch.long), TokenFilter(top_k=20, top_p=0.9)
    plain, ready = gpt(), gpt_for_inference(gpt(), CPU)
    expected = generate_window(plain, condition, Chances(0, range(3)), chosen_by)
    assert torch.equal(generate_window(ready, condition, Chances(0, range(3)), chosen_by), expected)


def test_in_bf16_logits_are_near_and_so_are_keys_and_values():
    plain, ready = gpt(), gpt_for_inference(gpt(), CPU, "bf16")
    cache = KVCache(ready, 2)
    ids = torch.arange(18).reshape(2, 9)
    with torch.no_grad():
        exact_cache = KVCache(plain, 2)
        for start, stop in ((0, 5), (5, 8), (8, 9)):
            expected = plain.step(ids[:, start:stop], exact_cache)
            found = ready.step(ids[:, start:stop], cache)
            assert found.dtype == torch.bfloat16
            close(found, expected, 0.03)
    for found, expected in zip(cache.read(0, 9), exact_cache.read(0, 9), strict=True):
        assert found.dtype == torch.bfloat16
        close(found, expected, 0.03)


def test_a_vqgan_ready_for_use_gives_the_same_codes_and_frames():
    video = torch.rand(2, 3, 8, 16, 16, generator=torch.Generator().manual_seed(3)) - 0.5
    plain, ready = vqgan(), vqgan_for_inference(vqgan(), CPU)
    codes = plain.encode(video)
    assert torch.equal(ready.encode(video), codes)
    close(ready.decode(codes), plain.decode(codes), 1e-5)


def test_a_vqgan_in_bf16_keeps_its_codebook_and_gives_float32_frames():
    plain, ready = vqgan(), vqgan_for_inference(vqgan(), CPU, "bf16")
    assert torch.equal(ready.codebook.embeddings, plain.codebook.embeddings)
    video = torch.rand(1, 3, 40, 16, 16, generator=torch.Generator().manual_seed(4)) - 0.5
    codes = encode_stream(ready, video)
    assert (codes == plain.encode(video)).float().mean() > 0.9
    pieces = list(decode_stream(ready, codes))
    assert len(pieces) > 1
    assert {piece.dtype for piece in pieces} == {torch.float32}
    close(torch.cat(pieces, 2), plain.decode(codes).clamp(-0.5, 0.5), 0.05)


def test_i3d_in_bf16_is_near_and_not_the_same():
    eps = PROTOCOLS["fvd"].eps
    clips = torch.rand(1, 3, 9, 224, 224, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.inference_mode():
        expected = i3d_for_inference(random_i3d(0, eps), CPU)(clips).logits
        found = i3d_for_inference(random_i3d(0, eps), CPU, "bf16")(clips).logits
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    close(found, expected, 0.1)
