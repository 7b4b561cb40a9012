"""The condition of samples of a GPT with classes, or with none."""

from collections.abc import Sequence

import torch

from tatscli.core.models.gpt import GPT, condition_ids


def class_condition(gpt: GPT, classes: int, numbers: Sequence[int]) -> torch.Tensor:
    """The classes in turn, by the numbers of the samples; the start token without classes."""
    layout = gpt.config.condition
    labels = torch.tensor([i % classes for i in numbers]) if layout.part("label") else None
    return condition_ids(layout, len(numbers), labels)
