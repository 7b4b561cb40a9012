"""What a run costs, measured on a few real steps of it."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tatscli.config.train import ComputeConfig, GPTComputeConfig, LoopConfig
from tatscli.core.limits import size_of, synchronize
from tatscli.core.memory import device_memory
from tatscli.core.training.callbacks import StoppedError
from tatscli.core.training.placement import Placement
from tatscli.core.training.stage import Stage

_GIB = 2**30


class FixedMemory(NamedTuple):
    """Bytes that training takes whatever the size of a batch, by count.

    Attributes:
        weights: Parameters and buffers, of networks that do not learn too.
        gradients: One number a parameter that learns.
        optimiser: Both moments of Adam.
    """

    weights: int
    gradients: int
    optimiser: int

    @classmethod
    def of(cls, stage: Stage, learning: Iterable[Tensor], shares: int = 1) -> "FixedMemory":
        """What a process takes for a stage of which these parameters learn.

        Args:
            stage: The stage.
            learning: Some of its parameters.
            shares: Processes that they are spread over.
        """
        whole = int(size_of(learning))
        gradients = whole // shares
        return cls(int(size_of(stage.held())) - whole + gradients, gradients, 2 * gradients)


class Watch(Callback):
    """Looks at the clock around all that a run does; the first of the callbacks of ``fit``.

    Args:
        device: Waited for before each look.
        leave_after: Steps after which the run is left, without validation and checkpoint; 0 stays.
        tell: Told the steps done.

    Attributes:
        called: The clock when the run was called for.
        ends: The clock at the end of each step.
        validation: The clock before validation, then after each batch of it.
        saving: The clock before the checkpoints at the end are written, and after.
        saved: Checkpoints that were written.
        batch_bytes: Of what the loader gives for one step.
        learning: The parameters that an optimiser has moved.
    """

    def __init__(
        self, device: torch.device, leave_after: int = 0, tell: Callable[[int], None] | None = None
    ) -> None:
        self._device, self._leave_after, self._tell = device, leave_after, tell
        self.called = time.perf_counter()
        self.ends: list[float] = []
        self.validation: list[float] = []
        self.saving: list[float] = []
        self.saved = self.batch_bytes = 0
        self.learning: list[Tensor] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """A step is done.

        Raises:
            StoppedError: It was the last that is wanted.
        """
        self.ends.append(self._now())
        self.batch_bytes = int(size_of(part for part in batch if isinstance(part, Tensor)))
        self.learning = [weight for optimizer in trainer.optimizers for weight in optimizer.state]
        if self._tell:
            self._tell(len(self.ends))
        if len(self.ends) == self._leave_after:
            raise StoppedError

    def on_validation_start(self, *_: Any) -> None:
        """Validation begins; its loader, too, where it is the first."""
        self.validation.append(self._now())

    def on_validation_batch_end(self, *_: Any) -> None:
        """A batch is validated."""
        self.validation.append(self._now())

    def on_validation_end(self, *_: Any) -> None:
        """What is due is saved from here on."""
        self.saved = 0
        self.saving.append(self._now())

    def on_save_checkpoint(self, *_: Any) -> None:
        """A checkpoint is written."""
        self.saved += 1

    def on_train_end(self, *_: Any) -> None:
        """All is done."""
        self.saving.append(self._now())

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


def less_memory(
    stage: Stage, loop: LoopConfig, compute: ComputeConfig, placement: Placement
) -> str:
    """What a run that ran out of memory could do, with its own numbers."""
    learning = [weight for weight in stage.parameters() if weight.requires_grad]
    is_whole = isinstance(compute, GPTComputeConfig) and not placement.sharded
    fixed = sum(FixedMemory.of(stage, learning, placement.world if placement.sharded else 1))
    taken = f"weights, gradients and optimiser take {fixed / _GIB:.2f} GiB whatever the batch"
    there = device_memory(torch.device(placement.accelerator))
    if there is not None:
        if fixed > there:
            few = f"{taken}, and the device has {there / _GIB:.2f}: only a smaller model fits"
            return f"{few}, or --fsdp, which spreads them over several devices" if is_whole else few
        taken += f", and leave {(there - fixed) / _GIB:.2f} GiB for activations"
    options, batch = [], loop.batch_size
    if batch > 1:
        parts = next(number for number in range(2, batch + 1) if batch % number == 0)
        share = "half" if parts == 2 else f"1/{parts}"
        options.append(
            f"--batch-size {batch // parts} --accumulate {loop.accumulate * parts} is the same "
            f"step with {share} of the activations"
        )
    if not compute.recompute:
        options.append("--recompute keeps few of them, for about a third more time")
    if placement.precision == "32-true":
        options.append("--precision bf16 halves most of them")
    if is_whole and placement.world > 1:
        options.append(f"--fsdp leaves a device 1/{placement.world} of what the GPT takes")
    options.append("clips of fewer frames or pixels have fewer")
    return f"{taken}; {'; '.join(options)}. 'tats plan' measures what fits"
