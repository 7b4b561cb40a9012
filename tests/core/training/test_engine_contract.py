"""What the engine takes for granted of Lightning, beyond its documented interface.

Each of these is a place where another version may differ without an error; the version is pinned,
and one that breaks a test here must be looked at before the pin moves.
"""

import inspect
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from tatscli.core.training.callbacks import WaitingTime


class Two(lightning.LightningModule):
    """Two optimisers; records what it is called with."""

    def __init__(self, count_both: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(2))
        self.count_both = count_both
        self.validated: list[int] = []

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), 0.1) for layer in self.layers]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for number, optimizer in enumerate(self.optimizers()):
            if number and not self.count_both:
                optimizer._on_before_step = optimizer._on_after_step = lambda: None
            self.manual_backward(self.layers[number](batch).sum())
            optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.global_step)


class Watch(lightning.Callback):
    """Keeps the order of hooks, and what holds in them."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.handlers: list[Any] = []

    def on_train_start(self, *_: Any) -> None:
        self.handlers.append(signal.getsignal(signal.SIGTERM))
        self.seen.append("start")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append(f"end {trainer.global_step}")

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append(f"validated {trainer.global_step}")

    def on_train_end(self, *_: Any) -> None:
        self.seen.append("done")


def fit(tmp_path: Path, module: Any, *callbacks: Any, **settings: Any) -> lightning.Trainer:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **settings,
    )
    trainer.fit(module, DataLoader(torch.ones(50, 1)), DataLoader(torch.ones(2, 1)))
    return trainer


def test_all_optimisers_count_unless_their_hooks_are_replaced_in_every_batch(
    tmp_path: Path,
) -> None:
    both, one = Two(), Two(count_both=False)
    assert fit(tmp_path, both, max_steps=6).fit_loop.total_batch_idx + 1 == 3
    assert fit(tmp_path, one, max_steps=6).fit_loop.total_batch_idx + 1 == 6


def test_hooks_come_in_the_order_that_saving_and_stopping_count_on(tmp_path: Path) -> None:
    watch = Watch()
    loop = {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer = fit(tmp_path, Two(count_both=False), watch, **loop)
    # The steps run out without a validation of their own, but for that of the interval.
    assert watch.seen == [
        "start", "end 1", "end 2", "validated 2", "end 3", "end 4", "validated 4", "done",
    ]  # fmt: skip
    assert trainer.val_check_batch == 2
    # Lightning's handlers are there before on_train_start, where ours take over.
    assert watch.handlers[0] is not signal.SIG_DFL


def test_a_lowered_number_of_steps_ends_the_run_after_the_step(tmp_path: Path) -> None:
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.fit_loop.epoch_loop.max_steps = 3

    trainer = fit(tmp_path, Two(count_both=False), Stop(), max_steps=10, limit_val_batches=0)
    assert trainer.global_step == 3


def test_a_validation_can_be_run_at_the_start_of_training(tmp_path: Path) -> None:
    class Validate(lightning.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.restarting = False
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    module = Two(count_both=False)
    loop = {"max_steps": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}
    fit(tmp_path, module, Validate(), **loop)
    assert module.validated == [0, 0, 2, 2]


def test_waiting_for_data_is_timed_under_the_name_that_is_listened_for(tmp_path: Path) -> None:
    waiting = WaitingTime()
    fit(tmp_path, Two(count_both=False), max_steps=3, limit_val_batches=0, profiler=waiting)
    assert waiting.seconds > 0
    assert WaitingTime.ACTION.split("]")[0] == f"[{_TrainingEpochLoop.__name__}"


def test_a_single_process_decides_alone_and_metrics_have_their_step(tmp_path: Path) -> None:
    strategy = SingleDeviceStrategy()
    assert strategy.reduce_boolean_decision(True, all=False) is True
    assert strategy.reduce_boolean_decision(False, all=True) is False
    assert "_batches_that_stepped" in inspect.getsource(_TrainingEpochLoop.on_advance_end)


def test_tensors_and_plain_values_are_all_that_is_loaded(tmp_path: Path) -> None:
    parameters = inspect.signature(lightning.Trainer.fit).parameters
    assert "weights_only" in parameters and "ckpt_path" in parameters
    trainer = fit(tmp_path, Two(count_both=False), max_steps=1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    held = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for name in ("global_step", "state_dict", "optimizer_states", "loops", "callbacks"):
        assert name in held


@pytest.mark.parametrize("name", ["saved_models", "layer"])
def test_no_module_has_an_attribute_by_which_lightning_would_swap_its_weights(name: str) -> None:
    from tatscli.core.training.gpt import GPTTraining
    from tatscli.core.training.vqgan import VQGANTraining

    for kind in (GPTTraining, VQGANTraining):
        assert not hasattr(kind, name)
