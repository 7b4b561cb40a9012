"""Work without gradients on several devices, by Lightning's ``Trainer.predict``.

Its own sampler for several processes is not used: it repeats items until all have the same number.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import lightning.pytorch as lightning

from tatscli.core.ranks import AGAIN, Rank, Start
from tatscli.core.training.engine import environment, quieten, strategy
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
        # Lightning's own handler of SIGTERM waits for processes that it has just ended.
        signal.signal(signal.SIGTERM, self._end)
        if self._started_here and not trainer.local_rank:
            # Before loaders set theirs, which then call this one.
            signal.signal(signal.SIGCHLD, self._look_after)
        device = trainer.strategy.root_device
        batches, self._step = self._start(Rank(trainer.global_rank, trainer.world_size, device))
        # Without a length to count by. Lightning begins twice, which would lose what is read ahead.
        return (batch for batch in batches)

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

    def _end(self, number: int, frame: FrameType | None) -> None:
        _end_others(self.trainer)
        sys.exit(128 + number)

    def _look_after(self, number: int, frame: FrameType | None) -> None:
        """End where one that was started has ended early, in the way in which it did."""
        code = next(filter(None, (process.poll() for process in _started(self.trainer))), 0)
        if not code:
            return
        _end_others(self.trainer)
        if code == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        if code == 128 + signal.SIGTERM:
            sys.exit(code)
        raise RunError(f"another process of this command ended with code {code}", AGAIN)


def _started(trainer: lightning.Trainer) -> "list[subprocess.Popen[bytes]]":
    """The processes that this one started."""
    return getattr(trainer.strategy.launcher, "procs", [])


def _end_others(trainer: lightning.Trainer) -> None:
    """End the processes that this one started, and have it end by itself."""
    started = _started(trainer)
    for process in started:
        process.terminate()
    # Lightning watches them and, once one has failed, would kill this one as it is ending.
    started.clear()


def predict(start: Start, placement: Placement) -> None:
    """Go through the batches of each process in it; see ``each_batch``."""
    quieten()
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
    try:
        trainer.predict(work, return_predictions=False)
    except BaseException as error:
        _end_others(trainer)
        if isinstance(error, SystemExit) and error.code == 1:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from error
        raise
