"""How processes divide the validation clips: no clip twice, and no process ahead of another."""

from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import Codes
from torch.utils.data import Subset

from tatscli.config.train import LoopConfig
from tatscli.core.training.engine import ClipData, Clips
from tatscli.core.training.placement import Placement


def batches(rank: int, world: int, count: int, size: int) -> tuple[list[list[int]], int]:
    """Clips of each batch of a process, and how many of the batches count."""
    clips = Clips(Codes(), 7, Subset(Codes(), range(count)))
    placement = Placement("cpu", world, 1, "32-true")
    data: Any = ClipData(clips, LoopConfig(batch_size=size), placement, 0)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    loader = data.val_dataloader()
    assert len(list(loader)) == len(loader)
    return list(loader.batch_sampler), data.own_batches


@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_clip_counts_once_and_all_have_as_many_batches(
    count: int, size: int, world: int
) -> None:
    found = [batches(rank, world, count, size) for rank in range(world)]
    assert len({len(mine) for mine, _ in found}) == 1
    counted = [clip for mine, own in found for batch in mine[:own] for clip in batch]
    assert sorted(counted) == list(range(count))
