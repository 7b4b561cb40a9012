"""What the training of both stages shares.

One batch of the loader is one optimiser step of the model that is trained, and one ``global_step``
of Lightning: accumulation happens inside the step, over equal parts of the batch. Optimisation is
manual, so clipping, schedules and the count of steps are ours to keep right.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tatscli.config.train import LoopConfig, OptimConfig
from tatscli.core.ranks import gathered
from tatscli.errors import NotFiniteError

FINAL_RATE = 0.1
"""Part of the learning rate that is left at the last step of a decaying schedule."""


def rate_part(optim: OptimConfig, last: int, count: int, offset: int = 0) -> float:
    """The part of the learning rate that is used after so many steps.

    Args:
        optim: Warm-up and course.
        last: Steps of the whole run.
        count: Steps of the optimiser that are done.
        offset: Step of the run at which the optimiser starts to count.
    """
    warmup, course = optim.lr_warmup, optim.lr_schedule
    if count < warmup:
        return (count + 1) / (warmup + 1)
    done = min(1.0, (count + offset - warmup) / max(1, last - warmup))
    if course == "constant":
        return 1.0
    if course == "linear":
        return 1.0 - (1.0 - FINAL_RATE) * done
    return FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))


class Stage(LightningModule):
    """Base of the two training modules: schedule, clipping, guard against numbers that are none.

    Attributes:
        step_operations: Operations of the model in a step of one process; 0 where nobody counted.
        has_several_optimizers: Whether each has networks of its own.

    Args:
        optim: Schedule and clipping.
        loop: Steps and accumulation.
        learning_rate: Rate in use, after any published rule.
    """

    has_several_optimizers = False

    def __init__(self, optim: OptimConfig, loop: LoopConfig, learning_rate: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._optim, self._loop, self.learning_rate = optim, loop, learning_rate
        self._validated: dict[str, Tensor] = {}
        self._watched: list[tuple[str, Tensor]] = []
        self.step_operations = 0.0

    def schedule(self, optimizer: Optimizer, offset: int = 0) -> LambdaLR:
        """Warm-up, then the chosen course of the rate.

        Args:
            optimizer: Whose rate is scheduled.
            offset: Step of the run at which this optimiser starts to count.
        """
        last = self._loop.max_steps
        return LambdaLR(optimizer, lambda count: rate_part(self._optim, last, count, offset))

    def on_train_start(self) -> None:
        """Let a changed learning rate take effect on a run that goes on, and an older run fuse."""
        for optimizer in self.optimizer_list():
            fuse(optimizer.optimizer)
        for schedule in self.scheduler_list():
            schedule.base_lrs = [self.learning_rate] * len(schedule.base_lrs)
            rates = [self.learning_rate * f(schedule.last_epoch) for f in schedule.lr_lambdas]
            for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Label metrics with the step that they belong to.

        Lightning labels them by a count of its own, which lags behind the step after a run that
        ended between two validations is resumed.
        """
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, the sum of all parts, and let none through that is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip_grad_norm_(parameters, self._optim.grad_clip or math.inf)
        self._must_be_finite(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @property
    def is_logged(self) -> bool:
        """Whether the step under way is one whose figures are written, as the last one is too."""
        done = self.global_step + 1
        return done % self._loop.log_steps == 0 or done == self._loop.max_steps

    def held(self) -> Iterator[Tensor]:
        """All that the stage keeps on its device; optimisers have more."""
        yield from self.parameters()
        yield from self.buffers()

    def parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """The batch in as many equal parts as are accumulated."""
        return batch.chunk(self._loop.accumulate)

    def optimizer_list(self) -> list[LightningOptimizer]:
        """The optimisers, also where there is one."""
        found = self.optimizers()
        return cast(list[LightningOptimizer], found if isinstance(found, list) else [found])

    def scheduler_list(self) -> list[LambdaLR]:
        """The schedules, also where there is one."""
        found = self.lr_schedulers()
        return cast(list[LambdaLR], found if isinstance(found, list) else [found])

    def log_mean(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Log each figure of a step, averaged over the parts of its batch."""
        for name in parts[0]:
            mean = torch.stack([part[name].detach() for part in parts]).mean()
            self.log(f"train/{name}", mean)

    def counted(self, clips: int, batch_index: int) -> int:
        """So many clips of a validation batch count: none, if it only keeps ranks together."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # that of the engine
        return clips if batch_index < data.own_batches else 0

    def add_validated(self, figures: Mapping[str, Tensor], clips: int) -> None:
        """Count the mean figures of some validation clips into those of all."""
        for name, mean in {"clips": torch.ones((), device=self.device), **figures}.items():
            total = mean.detach().float() * clips
            self._validated[name] = self._validated.get(name, 0.0) + total

    def on_validation_epoch_end(self) -> None:
        """Log means over the clips of all processes.

        Lightning's own are wrong where processes have different numbers of clips: it averages the
        numbers as integers.
        """
        names, totals = zip(*self._validated.items(), strict=True)
        clips, *sums = self.trainer.strategy.reduce(torch.stack(totals), reduce_op="sum")
        for name, total in zip(names[1:], sums, strict=True):
            self.log(f"val/{name}", total / clips, sync_dist=True)
        self._validated = {}

    def watch(self, losses: Mapping[str, Tensor]) -> None:
        """Have losses looked at before the next step of an optimiser."""
        self._watched += [(name, loss.detach().float()) for name, loss in losses.items()]

    def _must_be_finite(self, norm: Tensor) -> None:
        """Stop the run where a number is none any more, before it reaches the weights.

        All ranks stop at the same step, by one look at all numbers, so that a GPU is waited for
        once.

        Raises:
            NotFiniteError: With the step and the terms.
        """
        names, values = zip(*self._watched, ("gradient norm", norm.float()), strict=True)
        self._watched = []
        numbers = torch.stack(values)
        finite = bool(torch.isfinite(numbers).all())
        if self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            return
        named = zip(names, numbers.tolist(), strict=True)
        bad = {name: value for name, value in named if not math.isfinite(value)}
        found = gathered(bad)
        if not self.trainer.is_global_zero:
            sys.exit(0)  # the first process says it
        terms = {name: value for each in reversed(found) for name, value in each.items()}
        raise NotFiniteError(
            f"step {self.global_step}: "
            + ", ".join(f"{name} = {value}" for name, value in terms.items()),
            "continue from it with a lower --learning-rate or a smaller --grad-clip",
        )


def fuse(optimizer: Optimizer) -> None:
    """Let an optimiser update each weight in one go, also with the state of one that did not.

    Fused optimisers take moments to lie in memory as their weights do.
    """
    for group in optimizer.param_groups:
        group["fused"] = True
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if name == "step":
                    state[name] = value.to(weight.device, torch.float32)
                elif value.shape == weight.shape and value.stride() != weight.stride():
                    state[name] = torch.empty_like(weight).copy_(value)
