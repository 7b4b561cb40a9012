"""Ranks that drifted apart are seen before their checkpoint is written (R10)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tatscli.core.training.callbacks import SameWeights
from tatscli.errors import RunError


class Net(torch.nn.Sequential):
    """Two layers; the other rank has the same, but for what it is told to change."""

    def __init__(self, changed: str = "") -> None:
        super().__init__(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        self.changed = changed

    def all_gather(self, mine: torch.Tensor) -> torch.Tensor:
        names = [n for n in self.state_dict() if "running" not in n and "num" not in n]
        change = torch.tensor([1e-9 * (name == self.changed) for name in names], dtype=mine.dtype)
        return torch.stack([mine, mine + change])


def save(net: Any, world: int = 2) -> None:
    SameWeights().on_save_checkpoint(SimpleNamespace(world_size=world, global_step=7), net, {})


def test_equal_ranks_save() -> None:
    save(Net())
    save(Net(changed="0.weight"), world=1)


def test_ranks_that_differ_in_the_last_digits_of_a_weight_do_not() -> None:
    with pytest.raises(RunError, match=r"step 7: 1 of 4 weights .* first is 1\.bias"):
        save(Net(changed="1.bias"))
