"""Optimisers that were not fused go on as fused ones."""

from copy import deepcopy

import torch
from lightning.pytorch import seed_everything

from tatscli.core.limits import peak_at_a_glance
from tatscli.core.training.stage import fuse


def weight() -> torch.nn.Parameter:
    values = torch.randn(4, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    return torch.nn.Parameter(values.contiguous(memory_format=torch.channels_last_3d))


def gradient(step: int) -> torch.Tensor:
    values = torch.randn(4, 3, 2, 2, 2, generator=torch.Generator().manual_seed(9 + step))
    return values.contiguous(memory_format=torch.channels_last_3d)


def test_a_run_of_an_optimiser_that_was_not_fused_goes_on_the_same() -> None:
    old = weight()
    plain = torch.optim.Adam([old], lr=0.1)
    for step in range(2):
        old.grad = gradient(step)
        plain.step()
    new = torch.nn.Parameter(old.detach().clone())
    fused = torch.optim.Adam([new], lr=0.1, fused=True)
    fused.load_state_dict(deepcopy(plain.state_dict()))
    for name in ("exp_avg", "exp_avg_sq"):  # as a file of another layout would have them
        fused.state[new][name] = fused.state[new][name].contiguous()
    fuse(fused)
    assert fused.param_groups[0]["fused"]
    for step in range(2, 5):
        old.grad, new.grad = gradient(step), gradient(step)
        plain.step()
        fused.step()
    torch.testing.assert_close(new, old)


def test_a_look_at_the_peak_leaves_the_random_state_of_a_run() -> None:
    seed_everything(3, verbose=False)
    before = torch.get_rng_state()
    peak_at_a_glance.cache_clear()
    assert peak_at_a_glance(torch.device("cpu"), "float32") > 1e6
    assert torch.equal(torch.get_rng_state(), before)
