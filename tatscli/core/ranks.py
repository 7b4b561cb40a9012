"""Work that several processes share: each goes through batches of its own, then they gather.

The first process starts the others, as for training. A single one does without Lightning, and saves
the seconds that importing it takes.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch

from tatscli.core.failures import explained
from tatscli.core.signals import started
from tatscli.core.training.placement import Placement

LESS_MEMORY = "a smaller --batch-size needs less"
AGAIN = "run the same command again"
"""What helps when a process ran out of memory, and when one was lost."""

Value = TypeVar("Value")


class Rank(NamedTuple):
    """One of the processes.

    Attributes:
        number: From 0.
        world: Processes in all.
        device: Where it computes.
    """

    number: int
    world: int
    device: torch.device


Start = Callable[[Rank], tuple[Iterable[Any], Callable[[Any], None]]]
"""Called in each process once it knows which one it is: its batches, and what it does with each."""


def each_batch(start: Start, placement: Placement, less_memory: str = LESS_MEMORY) -> None:
    """Go through the batches of all processes, each in its own.

    Args:
        start: Gives the batches.
        placement: Where the processes are.
        less_memory: The options that need less memory.

    Raises:
        DeviceError: Memory ran out.
        DataError: A process that read for one of them died.
        RunError: One of several was lost.
        KeyboardInterrupt: A user interrupted one of several.
    """
    with explained(less_memory, AGAIN, bounded=placement.world == 1):
        if placement.world > 1:
            from tatscli.core.training.predict import predict

            predict(start, placement)
            return
        batches, step = start(Rank(0, 1, torch.device(placement.accelerator)))
        for batch in started(batches):
            step(batch)


def gathered(value: Value) -> list[Value]:
    """What each process has, in their order; all of them must ask.

    Raises:
        RunError: One of them was lost.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    with explained(LESS_MEMORY, AGAIN):
        torch.distributed.all_gather_object(found, value)
    return found
