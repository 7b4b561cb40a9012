"""What happens around the steps: saving, stopping, remembering randomness, telling, looking.

All through Lightning's public hooks. Findings behind each are in the class that answers them.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.distributed.tensor import DTensor

from tatscli.config.train import LoopConfig
from tatscli.core.checkpoint import save_atomically
from tatscli.core.files import link_atomically, unwritable, written_whole
from tatscli.core.ranks import gathered
from tatscli.core.signals import STOPS, answered_by, heard
from tatscli.core.training.sharding import whole
from tatscli.errors import RunError

OnStep = Callable[[int, Mapping[str, float]], None]
"""Called with the step and the figures of the display."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames; Lightning's own writer can leave half a file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write one checkpoint."""
        save_atomically(checkpoint, Path(path))


class Checkpoints(Callback):
    """Keeps ``last.ckpt`` every N steps or M minutes and at the end, and the one before it.

    Beside them ``best.ckpt`` by a validation figure, and, of every K-th step, one for good.
    Lightning's ModelCheckpoint ignores time limits and re-links ``last`` non-atomically here.

    Args:
        folder: Of the checkpoints.
        loop: The intervals.
        monitor: Validation figure, smaller is better.
    """

    def __init__(self, folder: Path, loop: LoopConfig, monitor: str) -> None:
        self.last, self.best = folder / "last.ckpt", folder / "best.ckpt"
        self._previous = folder / "previous.ckpt"
        self._loop, self._monitor = loop, monitor
        self._best_value = float("inf")
        self._saved_step, self._saved_at = -1, time.monotonic()
        self._is_late, self._unvalidated = False, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for the validation in which a run was stopped."""
        self._saved_at = time.monotonic()
        if self._unvalidated:
            self._unvalidated = False
            epochs = trainer.fit_loop.epoch_loop
            epochs._batches_that_stepped = trainer.global_step - 1
            trainer.validating = True
            epochs.val_loop.restarting = False
            epochs.val_loop.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save ``last`` where it is due, and validate and save at the final step.

        Where the step is validated too, that is waited for: the file is to know the best value.
        """
        final = trainer.global_step == trainer.max_steps
        if final:
            # Lightning validates where it is asked to stop, not where the steps run out.
            trainer.should_stop = True
        if minutes := self._loop.checkpoint_minutes:
            late = time.monotonic() - self._saved_at >= 60 * minutes
            self._is_late = trainer.strategy.reduce_boolean_decision(late, all=False)
        if self._due(trainer) and not _validates(trainer):
            self._write(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save ``last`` at once; a run that goes on makes up for the validation of its step."""
        self._unvalidated = _validates(trainer)
        if self._unvalidated or trainer.global_step != self._saved_step:
            self._write(trainer)
        self._unvalidated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``best`` where the figure improved, and ``last`` where it is due."""
        value = float(trainer.callback_metrics[self._monitor])
        if value < self._best_value:
            self._best_value = value
            trainer.save_checkpoint(self.best)
        if self._due(trainer):
            self._write(trainer)

    def sound(self) -> str:
        """Which checkpoint a run that broke can go on from, in words."""
        if not self.last.is_file():
            return "it has saved no checkpoint yet"
        step = f" of step {self._saved_step}" if self._saved_step >= 0 else ""
        return f"the last good checkpoint is {self.last}{step}"

    def _write(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if trainer.is_global_zero and step != self._saved_step and self.last.is_file():
            link_atomically(self.last, self._previous)
        self._saved_step = step
        trainer.save_checkpoint(self.last)
        self._is_late, self._saved_at = False, time.monotonic()
        every = self._loop.keep_every
        if trainer.is_global_zero and every and step % every == 0:
            link_atomically(self.last, self.last.with_name(f"step-{step:07}.ckpt"))

    def _due(self, trainer: Trainer) -> bool:
        intervals = filter(None, (self._loop.checkpoint_every, self._loop.keep_every))
        step = trainer.global_step
        return self._is_late or step == trainer.max_steps or any(step % n == 0 for n in intervals)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the figures of this step, not those that were last logged at one before.

        They are logged right after the file is written: a run killed in between would lack them.
        """
        due = {
            "train": trainer.global_step % self._loop.log_steps == 0,
            "val": bool(trainer.validating) and not self._unvalidated,
        }
        checkpoint["figures"] = {
            name: float(value)
            for name, value in sorted(trainer.logged_metrics.items())
            if due[name.split("/")[0]]
        }

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and whether the step is still to be validated."""
        return {"best": self._best_value, "unvalidated": self._unvalidated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best value so far."""
        self._best_value = state_dict["best"]
        self._unvalidated = state_dict.get("unvalidated", False)


def _validates(trainer: Trainer) -> bool:
    """Whether the step that is done is validated."""
    step = trainer.global_step
    return step == trainer.max_steps or step % int(trainer.val_check_batch or 1) == 0


class WaitingTime(Profiler):
    """Seconds in which training waits for its data, by the times that Lightning takes itself."""

    ACTION = "[_TrainingEpochLoop].train_dataloader_next"

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self._began = 0.0, 0.0

    def start(self, action_name: str) -> None:
        """Look at the clock."""
        if action_name == self.ACTION:
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add up."""
        if action_name == self.ACTION:
            self.seconds += time.perf_counter() - self._began

    def teardown(self, stage: str | None) -> None:
        """Nothing is held."""

    def summary(self) -> str:
        """The figure is in the display."""
        return ""


class RandomState(Callback):
    """Saves the random state of every rank with each checkpoint; Lightning saves none."""

    def __init__(self) -> None:
        self._pending: list[dict[str, Tensor]] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the states of all ranks."""
        checkpoint["random_states"] = gathered(_random_state())

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states until the first step: Lightning draws numbers before it."""
        self._pending = checkpoint.get("random_states")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Restore this rank's state once."""
        if self._pending and trainer.global_rank < len(self._pending):
            _restore_random_state(self._pending[trainer.global_rank])
        self._pending = None


class StoppedError(Exception):
    """Leaves a validation that a signal came before or into, once the run is saved."""


class SameWeights(Callback):
    """Stops a run whose ranks have drifted apart, rather than save the weights of one of them.

    Statistics of batch norm are each rank's own, where they are not shared, as are its parts of
    weights that are sharded.
    """

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare the sums of all weights, and of the codebook with its statistics.

        Raises:
            RunError: They differ.
        """
        if trainer.world_size == 1:
            return
        state = pl_module.state_dict()
        names = [
            name
            for name, value in state.items()
            if value.is_floating_point() and ".running_" not in name
            if not isinstance(value, DTensor)
        ]
        of_all = pl_module.all_gather(torch.stack([state[n].double().sum() for n in names]))
        assert isinstance(of_all, Tensor)
        differ = (of_all != of_all[0]).any(dim=0)
        if not bool(differ.any()):
            return
        first = names[int(differ.int().argmax())]
        raise RunError(
            f"step {trainer.global_step}: {int(differ.sum())} of {len(names)} weights differ "
            f"between processes, the first is {first}",
            "continue from the last checkpoint; if it happens again, one of the devices is faulty",
        )


class GracefulStop(Callback):
    """Stops at the end of the step on Ctrl-C, SIGTERM and SIGUSR1, after saving.

    The handler only sets a flag and the ranks agree at the end of the step, or of the batch that is
    validated: Lightning 2.6 saves inside the handler, which hangs under several ranks. A second
    Ctrl-C stops at once.

    Args:
        checkpoints: Saves.

    Attributes:
        signal: Number of the signal that stopped the run, 0 if none did.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.signal = 0
        self._checkpoints = checkpoints
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()
        self._is_saved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals, after Lightning registered its own handlers."""
        for number in STOPS:
            self._previous[number] = answered_by(number, self._handle)
        heard()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save and stop if any rank was told to."""
        if self._is_told(trainer):
            self._checkpoints.save(trainer)
            self._is_saved = True
            # With should_stop, Lightning would validate first, at a step of no validation.
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    def on_validation_start(self, *_: Any) -> None:
        """Leave if the run is saved.

        Raises:
            StoppedError: It is.
        """
        if self._is_saved:
            raise StoppedError

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save and leave if any rank was told to.

        Raises:
            StoppedError: One was.
        """
        if self._is_told(trainer):
            self._checkpoints.save(trainer)
            raise StoppedError

    def _is_told(self, trainer: Trainer) -> bool:
        """Whether any rank got a signal; a run that has done its last step is not stopped."""
        if trainer.global_step == trainer.max_steps:
            return False
        told = trainer.strategy.reduce_boolean_decision(self.signal != 0, all=False)
        if told:  # any rank, which the others then name
            mine = torch.tensor(self.signal, device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(mine, reduce_op="max"))
        return told

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, before Lightning does; later it would keep SIGTERM for ever."""
        self._release()

    def on_exception(self, *_: Any) -> None:
        """Give the signals back after an error, too."""
        self._release()

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that inherited the handler
            return
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number


class Telling(Callback):
    """Tells the display where the run is, after its first step and then every N steps.

    Args:
        on_step: Told.
        every: Steps.
        figures: Metrics that are shown, by their names in the display.
        least_seconds: Time of a step at the measured peak of the device, for the figure MFU: the
            part of the peak that the model's own operations reach while steps are computed
            (model-FLOP utilisation, Chowdhery et al. 2022, appendix B, but of the attention only
            the pairs of positions that see each other). 0 shows none.
        waiting: Seconds spent on waiting for data, for the figure of that name: their part.
        timings: Gets seconds a step, and what the display is told about waiting and MFU.
    """

    def __init__(
        self,
        on_step: OnStep,
        every: int,
        figures: Mapping[str, str],
        least_seconds: float,
        waiting: WaitingTime,
        timings: "MetricsFile",
    ) -> None:
        self._on_step, self._every, self._figures = on_step, every, figures
        self._least_seconds, self._waiting, self._timings = least_seconds, waiting, timings
        self._steps, self._seconds, self._began = 0, 0.0, 0.0
        self._is_first = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Look at the clock."""
        self._began = time.perf_counter()

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Pass the figures on."""
        self._steps += 1
        self._seconds += time.perf_counter() - self._began
        step = trainer.global_step
        if step % self._every and step != trainer.max_steps and not self._is_first:
            return
        self._is_first = False
        metrics = trainer.callback_metrics
        shown = {name: float(metrics[key]) for name, key in self._figures.items() if key in metrics}
        whole = self._waiting.seconds + self._seconds
        timings = {"waiting": self._waiting.seconds / whole}
        if self._least_seconds:
            timings["MFU"] = self._least_seconds * self._steps / self._seconds
        seconds = {"seconds": whole / self._steps}
        self._timings.log_metrics(
            {f"train/{n}": v for n, v in (timings | seconds).items()}, step - 1
        )
        self._steps, self._seconds, self._waiting.seconds = 0, 0.0, 0.0
        self._on_step(step, shown | timings)


class Pictures(Callback):
    """Draws what the model makes, every N steps and at the end."""

    def __init__(self, draw: Callable[[LightningModule, int], None], every: int) -> None:
        self._draw, self._every = draw, every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Draw, leaving the random state of training untouched."""
        step = trainer.global_step
        if step % self._every and step != trainer.max_steps:
            return
        with whole(pl_module):  # which takes all ranks, where they share it
            if trainer.is_global_zero:
                self._picture(pl_module, step)

    def _picture(self, pl_module: LightningModule, step: int) -> None:
        state = _random_state()
        pl_module.eval()
        with torch.no_grad():
            self._draw(pl_module, step)
        pl_module.train()
        _restore_random_state(state)


class MetricsFile(Logger):
    """Appends ``step,metric,value`` lines to a CSV file.

    One line a value, so that metrics with different intervals share a file and a resumed run
    appends; Lightning's CSVLogger deletes the file of the run it resumes.

    Attributes:
        file: Where.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append the values of one step.

        Raises:
            RunError: The file cannot be written.
        """
        lines = _rows(step, metrics)
        try:
            if not self.file.exists():
                lines.insert(0, "step,metric,value\n")
            with self.file.open("a", encoding="utf-8") as stream:
                stream.writelines(lines)
        except OSError as error:
            raise unwritable(self.file, error, RunError) from error

    @rank_zero_only
    def continue_from(self, step: int, figures: Mapping[str, float]) -> None:
        """Make the file that of a run which was saved at a step.

        Drops what was logged beyond it, also a last line that was cut off when the run was killed.

        Args:
            step: Steps that were done.
            figures: Of the last of them, as saved; what the file lacks of them is added.
        """
        if not self.file.exists() and not figures:
            return
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        lines = text.splitlines(keepends=True)
        kept = [s for s in lines[1:] if s.endswith("\n") and int(s.split(",", 1)[0]) < step]
        there = {s.split(",")[1] for s in kept if int(s.split(",", 1)[0]) == step - 1}
        added = _rows(step - 1, {n: v for n, v in figures.items() if n not in there})
        with written_whole(self.file, RunError) as partial:
            partial.write_text("".join(["step,metric,value\n", *kept, *added]), encoding="utf-8")


def _rows(step: int | None, metrics: Mapping[str, float]) -> list[str]:
    return [f"{step},{n},{float(v):.8g}\n" for n, v in sorted(metrics.items()) if n != "epoch"]


def _random_state() -> dict[str, Tensor]:
    """Random state of this process as tensors, so that ``weights_only`` loads it."""
    version, keys, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    _, numpy_keys, position, has_gauss, cached = numpy_state
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *keys], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*numpy_keys.tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, *keys = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(keys), gauss[0] if gauss else None))
    *numpy_keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(
        (
            "MT19937",
            np.array(numpy_keys, np.uint32),
            position,
            has_gauss,
            float(state["numpy_gauss"]),
        )
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
