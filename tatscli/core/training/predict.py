"""Work without gradients on several devices, by Lightning's ``Trainer.predict``.

Its own sampler for several processes is not used: it repeats items until all have the same number.
"""

import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import lightning.pytorch as lightning

from tatscli.core.ranks import AGAIN, Rank, Start
from tatscli.core.signals import heard, started
from tatscli.core.training.engine import environment, quieten, strategy
from tatscli.core.training.others import OTHERS, together
from tatscli.core.training.placement import Placement
from tatscli.errors import RunError

SLOWEST = timedelta(hours=6)
"""For how long those that are done wait for the last; one that dies is noticed at once."""


class _Work(lightning.LightningModule):
    """What each process does; the first one ends with those that it started, and they with it."""

    def __init__(self, start: Start, started_here: bool) -> None:
        super().__init__()
        self._start = start
        self._started_here = started_here
        self._parent = os.getppid()

    def predict_dataloader(self) -> Iterator[Any]:
        """The batches of this process."""
        trainer = self.trainer
        # Lightning's own handler of SIGTERM waits for what the others are told by it.
        signal.signal(signal.SIGTERM, _end)
        # Before loaders set theirs, which then call this one.
        signal.signal(signal.SIGCHLD, _look_after)
        heard()
        device = trainer.strategy.root_device
        batches, self._step = self._start(Rank(trainer.global_rank, trainer.world_size, device))
        # Without a length to count by. Lightning begins twice, which would lose what is read ahead.
        return started(batches)

    def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
        """Leave that to the step."""
        return batch

    def predict_step(self, batch: Any, batch_idx: int) -> int:
        """One batch; Lightning complains of steps that return nothing."""
        orphaned = self._started_here and self.trainer.local_rank and os.getppid() != self._parent
        if orphaned:
            raise RunError("the first process of this command is gone", AGAIN)
        self._step(batch)
        return batch_idx


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _look_after(number: int, frame: FrameType | None) -> None:
    OTHERS.look()


def predict(start: Start, placement: Placement) -> None:
    """Go through the batches of each process in it; see ``each_batch``."""
    quieten()
    try:
        # By which they let go of what they are writing.
        with together(placement, end_by=signal.SIGTERM):
            _predict(start, placement)
    except SystemExit as error:
        if error.code == 1:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from error
        raise


def _predict(start: Start, placement: Placement) -> None:
    trainer = lightning.Trainer(
        accelerator=placement.accelerator,
        devices=placement.processes,
        num_nodes=placement.nodes,
        strategy=strategy(placement, timeout=SLOWEST),
        plugins=[environment(placement)],
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    work = _Work(start, placement.started_by == "tats")
    trainer.predict(work, return_predictions=False)
