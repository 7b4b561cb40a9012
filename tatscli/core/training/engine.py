"""The training loop: Lightning's Trainer with what it needs to be trusted.

Data is read by a sampler that knows no state: sample i of the run is a function of the seed and i,
so that a run continues exactly where it stopped, whatever its workers and ranks.
"""

import logging
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import BatchSampler, DataLoader, Dataset

from tatscli.config.compute import Precision
from tatscli.config.train import ComputeConfig, LoopConfig
from tatscli.core.data.clips import ConsumedBatchSampler, Order
from tatscli.core.data.loading import Sheltered, checked, collate
from tatscli.core.failures import explained
from tatscli.core.limits import peak_at_a_glance
from tatscli.core.original import read_original
from tatscli.core.signals import until_asked
from tatscli.core.training.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    GracefulStop,
    MetricsFile,
    OnStep,
    Pictures,
    RandomState,
    SameWeights,
    StoppedError,
    Telling,
    WaitingTime,
)
from tatscli.core.training.measure import less_memory
from tatscli.core.training.others import together
from tatscli.core.training.placement import Placement, choose_workers
from tatscli.core.training.sharding import ShardedStrategy
from tatscli.core.training.stage import Stage
from tatscli.errors import NotFiniteError

COLLECTIVE_TIMEOUT = timedelta(minutes=10)

_ENVIRONMENTS: dict[str, Callable[[], ClusterEnvironment]] = {
    "tats": LightningEnvironment,
    "torchrun": TorchElasticEnvironment,
    # Lightning would save and requeue inside the handler of the signal, which hangs.
    "srun": partial(SLURMEnvironment, auto_requeue=False),
}


@dataclass(frozen=True)
class Clips:
    """Training items addressed by (slot, number of the sample), and fixed validation items.

    Attributes:
        train: Items by address.
        slots: Places that the sampler draws from; an epoch visits each once.
        validation: Fixed items.
        order: The order in which an epoch takes the places; by default, that of the sampler.
    """

    train: Dataset[Any]
    slots: int
    validation: Dataset[Any]
    order: Order | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: Last step done.
        signal: Signal that stopped it early, 0 if none.
        figures: Last value of each metric.
    """

    step: int
    signal: int
    figures: dict[str, float]


class _RunSampler(ConsumedBatchSampler):
    """Tells the length of the whole run: Lightning counts the batches before a resumption too."""

    def __len__(self) -> int:
        return self.total_steps


class ClipData(lightning.LightningDataModule):
    """Loaders of a run; built after the step to continue from is known.

    Attributes:
        own_batches: Validation batches that count, of those of this rank.
    """

    own_batches: int

    def __init__(self, clips: Clips, loop: LoopConfig, placement: Placement, workers: int) -> None:
        super().__init__()
        self._clips, self._loop, self._placement = clips, loop, placement
        self._workers = workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of one optimiser step each, for the rest of the run."""
        assert self.trainer is not None
        sampler = _RunSampler(
            slots=self._clips.slots,
            seed=self._loop.seed,
            batch_size=self._loop.batch_size * self._loop.accumulate,
            total_steps=self._loop.max_steps,
            start_step=self.trainer.global_step,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            order=self._clips.order,
        )
        return DataLoader(
            Sheltered(self._clips.train), batch_sampler=sampler, **self._reading(self._workers)
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the validation clips, in as many batches as the first rank has.

        Where its own are fewer, one that is not counted follows: ranks that share a model, or the
        answer to a signal, would wait for each other for ever.
        """
        assert self.trainer is not None
        count, world = len(self._clips.validation), self.trainer.world_size  # type: ignore[arg-type]
        own, first = (
            list(BatchSampler(range(rank, count, world), self._loop.batch_size, drop_last=False))
            for rank in (self.trainer.global_rank, 0)
        )
        self.own_batches = len(own)
        return DataLoader(
            Sheltered(self._clips.validation),
            batch_sampler=[*own, *first[len(own) :]],
            **self._reading(min(self._workers, 2)),
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise what went wrong in reading a batch."""
        return checked(batch)

    def _reading(self, workers: int) -> dict[str, Any]:
        return {
            "num_workers": workers,
            "collate_fn": collate,
            "worker_init_fn": until_asked,
            # Else each new iterator, that of validation too, would draw a number of training's.
            "generator": torch.Generator().manual_seed(self._loop.seed),
            "persistent_workers": workers > 0,
            "pin_memory": self._placement.accelerator == "cuda",
        }


def epoch_steps(clips: Clips, loop: LoopConfig, placement: Placement) -> int:
    """Optimiser steps in which the sampler visits every slot once."""
    return max(1, clips.slots // (loop.batch_size * loop.accumulate * placement.world))


def fit(
    module: Stage,
    clips: Clips,
    *,
    loop: LoopConfig,
    compute: ComputeConfig,
    placement: Placement,
    folder: Path,
    monitor: str,
    figures: dict[str, str],
    draw: Callable[[Any, int], None],
    on_step: OnStep,
    resume: Path | None = None,
    tell_every: int = 0,
    callbacks: Sequence[lightning.Callback] = (),
) -> Outcome:
    """Train until the last step or a signal.

    Args:
        module: What is trained.
        clips: Data.
        loop: Steps, batches, intervals.
        compute: Workers and batch norm.
        placement: Devices.
        folder: Run folder; gets checkpoints, metrics, timings and TensorBoard events.
        monitor: Validation figure, smaller is better, by which ``best`` is kept.
        figures: Names in the display, and the metrics they show.
        draw: Draws pictures of the module at a step.
        on_step: Told about progress.
        resume: Checkpoint to continue from.
        tell_every: Steps between calls of ``on_step``; 0 takes those of the log.
        callbacks: Called before the run's own.
    """
    less = less_memory(module, loop, compute, placement)
    with explained(less):
        least_seconds = _least_seconds(module, placement) or 0.0
    checkpoints = Checkpoints(folder / "checkpoints", loop, monitor)
    stop = GracefulStop(checkpoints)
    waiting = WaitingTime()
    metrics = MetricsFile(folder / "metrics.csv")
    # Apart, since they differ between two runs that are the same.
    timings = MetricsFile(folder / "timings.csv")
    quieten()
    trainer = lightning.Trainer(
        accelerator=placement.accelerator,
        devices=placement.processes,
        num_nodes=placement.nodes,
        strategy=strategy(placement, module.has_several_optimizers),
        precision=placement.precision,
        max_steps=loop.max_steps,
        max_epochs=-1,
        # A run shorter than the interval is validated at its end.
        val_check_interval=min(loop.val_steps(epoch_steps(clips, loop, placement)), loop.max_steps),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=loop.log_steps,
        use_distributed_sampler=False,
        sync_batchnorm=compute.sync_batchnorm and placement.accelerator == "cuda",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        logger=[
            TensorBoardLogger(folder, name="", version="", sub_dir="events"),
            metrics,
        ],
        profiler=waiting,
        plugins=[AtomicCheckpointIO(), environment(placement)],
        callbacks=[
            *callbacks,
            RandomState(),
            SameWeights(),
            # Before the pictures, which take time of their own.
            Telling(
                on_step,
                tell_every or loop.log_every,
                figures,
                least_seconds,
                waiting,
                timings,
            ),
            Pictures(draw, loop.grid_every),
            checkpoints,
            stop,
        ],
    )
    if resume:
        saved = read_original(resume)
        metrics.continue_from(saved["global_step"], saved.get("figures", {}))
        timings.continue_from(saved["global_step"], {})
        del saved
    workers = choose_workers(placement.accelerator, compute.workers, placement.processes)
    data = ClipData(clips, loop, placement, workers)
    try:
        again = f"continue with --resume {folder}"
        with (
            explained(less, again, bounded=True),
            # They have nothing to write, and would answer others only after the step.
            together(placement, end_by=signal.SIGKILL),
            suppress(StoppedError),
        ):
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except NotFiniteError as error:
        raise NotFiniteError(f"{error.message}; {checkpoints.sound()}", error.hint) from error
    except SystemExit as error:  # what Lightning makes of a second Ctrl-C
        if trainer.received_sigterm or error.code != 1:
            raise
        raise KeyboardInterrupt from error
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return Outcome(trainer.global_step, stop.signal, values)


@rank_zero_only
def _least_seconds(module: Stage, placement: Placement) -> float:
    """Time of a step at the peak of the device; 0 where the stage does not say what it costs."""
    if not module.step_operations:
        return 0.0
    precision: Precision = "float32" if placement.precision == "32-true" else "bf16"
    peak = peak_at_a_glance(torch.device(placement.accelerator), precision)
    # Processes of a GPU have one each, those of a CPU share it.
    share = placement.processes if placement.accelerator == "cpu" else 1
    return module.step_operations * share / peak


def environment(placement: Placement) -> ClusterEnvironment:
    """Who tells a process which one it is."""
    return _ENVIRONMENTS[placement.started_by]()


def strategy(
    placement: Placement,
    has_several_optimizers: bool = False,
    timeout: timedelta = COLLECTIVE_TIMEOUT,
) -> Any:
    """How the processes work together."""
    if placement.world == 1:
        return "auto"
    backend = "nccl" if placement.accelerator == "cuda" else "gloo"
    if placement.sharded:
        return ShardedStrategy(placement.world, backend, timeout)
    return DDPStrategy(
        # Of several optimisers, each one's backward reaches its own networks only.
        find_unused_parameters=has_several_optimizers,
        # All ranks compute the same codebook from summed statistics; sending it would hide a fault.
        broadcast_buffers=False,
        process_group_backend=backend,
        timeout=timeout,
    )


def quieten() -> None:
    """Silence what Lightning says about choices that are made on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*GPU available but not used.*",
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*your dataloader is not resumable.*",
        ".*in eval mode at the start of training.*",
        ".*`broadcast_buffers` is deprecated.*",
        ".*Grad strides do not match bucket view strides.*",
        ".*returned a view tensor. An in-place op on this view.*",
        ".*all_gather is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=text)
