from collections.abc import Callable
from typing import Any

import pytest
import torch

from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.core.models.gpt import GPT

FAVOURED = 3
"""The code that ``favouring`` makes the likeliest, after all ids of the condition."""


@pytest.fixture
def favouring() -> Callable[[GPT], GPT]:
    """Makes ids of the condition likelier than all codes, and one code than all others.

    An id of the condition that is drawn would become code 0.
    """

    def change(model: GPT) -> GPT:
        ids = model.config.condition.ids
        with torch.no_grad():
            model.ln_f.bias.fill_(1.0)
            model.head.weight[ids + FAVOURED] = 50.0
            model.head.weight[:ids] = 100.0
        return model

    return change


@pytest.fixture
def gpt() -> Callable[..., GPT]:
    """Makes a small GPT with distinct logits."""

    def make(
        grid: tuple[int, int, int] = (3, 2, 2), codes: int = 7, classes: int = 0, **purpose: Any
    ) -> GPT:
        layout = ConditionLayout.labels(classes) if classes else ConditionLayout.unconditional()
        tokens = layout.tokens + grid[0] * grid[1] * grid[2]
        config = GPTConfig(
            layers=2, heads=2, width=16, codes=codes, grid=grid, condition=layout,
            block_size=tokens, **purpose,
        )  # fmt: skip
        torch.manual_seed(4)  # one whose greedy samples vary
        model = GPT(config).eval()
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
            model.pos_emb.mul_(4)  # else a greedy sample is one code throughout
        return model

    return make
