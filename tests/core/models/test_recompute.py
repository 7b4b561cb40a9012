"""Activations computed again: less is kept, and nothing else changes."""

import pytest
import torch
from torch import Tensor, nn

from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.gpt import GPT
from tatscli.core.models.vqgan import VQGAN


def vqgan(norm_type: str) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(
        VQGANConfig(
            embedding_dim=16, codes=32, hidden_channels=16, downsample=(2, 4, 4),
            norm_type=norm_type,
        )
    )  # fmt: skip


def gpt() -> GPT:
    torch.manual_seed(0)
    layout = ConditionLayout.unconditional()
    return GPT(
        GPTConfig(
            layers=2, heads=2, width=16, codes=20, grid=(2, 2, 2), condition=layout, block_size=8,
            dropout=0.3,
        )
    )  # fmt: skip


def step(model: nn.Module, loss: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("norm_type", ["batch", "group"])
def test_a_vqgan_learns_the_same(norm_type: str) -> None:
    video = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1)) - 0.5
    found: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    counted: list[Tensor | None] = []
    for recompute in (False, True):
        model = vqgan(norm_type).train()
        model.encoder.recompute = model.decoder.recompute = recompute
        torch.manual_seed(2)  # the codebook draws its first codes
        counters = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d)]
        for norm in counters:  # what SyncBatchNorm asks for
            norm.register_forward_pre_hook(lambda m, _: counted.append(m.num_batches_tracked))
        found.append(step(model, (model(video).video - video).square().mean()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert found[0][0]
    assert all(count is not None for count in counted)
    assert bool(counted) == (norm_type == "batch")


def test_a_gpt_learns_the_same_with_dropout() -> None:
    found = []
    for recompute in (False, True):
        model = gpt().train()
        model.recompute = recompute
        torch.manual_seed(3)
        hidden = model.hidden(torch.zeros(3, 1, dtype=torch.long), torch.arange(24).view(3, 8) % 20)
        found.append(step(model, hidden.square().mean()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert found[0][0]


@pytest.mark.parametrize("make", [lambda: vqgan("batch"), gpt], ids=["vqgan", "gpt"])
def test_less_is_kept_for_the_gradient(make) -> None:
    def kept(recompute: bool) -> int:
        model, total = make().train(), 0
        for part in model.modules():
            if hasattr(part, "recompute"):
                part.recompute = recompute

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if isinstance(model, GPT):
                model.hidden(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 8).long())
            else:
                model(torch.rand(2, 3, 4, 16, 16) - 0.5)
        return total

    assert kept(True) < 0.6 * kept(False)
