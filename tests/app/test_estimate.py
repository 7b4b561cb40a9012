"""The arithmetic of a plan: phases, counts, sums, batches."""

from pathlib import Path
from typing import Any

import pytest
from tiny_app import gpt_config, vqgan_config

from tatscli.app.estimate import (
    ACT,
    ALONE,
    LEARN,
    WHOLE,
    Costs,
    Part,
    Phase,
    kept_checkpoints,
    largest_batch,
    phases,
    saved_checkpoints,
    shortened,
    steady,
    time_parts,
    with_effective_batch,
)
from tatscli.config.train import LoopConfig, VQGANTrainConfig
from tatscli.errors import ConfigError

HERE = Path("here")


def adversarial(max_steps: int, start: int, warmup: int, **optim: Any) -> VQGANTrainConfig:
    loss = {"image_gan_weight": 1, "disc_start": start, "disc_warmup": warmup}
    return vqgan_config(HERE, HERE, loss=loss, train={"max_steps": max_steps}, optim=optim)


@pytest.mark.parametrize(
    ("steps", "start", "warmup", "expected"),
    [
        (500, 250, 100, [(ALONE, 0, 150), (LEARN, 150, 100), (ACT, 250, 250)]),
        (500, 250, 0, [(ALONE, 0, 250), (ACT, 250, 250)]),
        (500, 100, 1000, [(LEARN, 0, 100), (ACT, 100, 400)]),
        (200, 250, 100, [(ALONE, 0, 150), (LEARN, 150, 50)]),
        (150, 250, 100, [(ALONE, 0, 150)]),
        (9, 0, 0, [(ACT, 0, 9)]),
    ],
)
def test_a_run_has_the_phases_that_it_reaches(
    steps: int, start: int, warmup: int, expected: list[tuple[str, int, int]]
) -> None:
    config = adversarial(steps, start, warmup)
    reached = phases(config)
    assert reached == [Phase(*phase) for phase in expected]
    # The short run spends as many steps in each of them, and reaches no other.
    short = shortened(config.loss, reached, 4)
    length = 4 * len(reached)
    again = phases(adversarial(length, short.disc_start, short.disc_warmup))
    assert [phase.name for phase in again] == [phase.name for phase in reached]
    assert {phase.steps for phase in again} == {4}


def test_without_discriminators_all_steps_are_alike() -> None:
    assert phases(vqgan_config(HERE, HERE)) == [Phase(WHOLE, 0, 3)]
    assert phases(gpt_config(HERE, HERE)) == [Phase(WHOLE, 0, 3)]


def test_the_parts_of_the_time_are_counted_and_summed() -> None:
    loop = LoopConfig(
        max_steps=500, val_check_interval="200", grid_every=150, checkpoint_every=100,
        checkpoint_minutes=0,
    )  # fmt: skip
    reached = phases(adversarial(500, 250, 100))
    costs = Costs(9.0, (1.0, 2.0, 3.0), 0.5, 4.0, 0.25)
    parts = time_parts(loop, reached, costs, epoch_steps=10, validation_batches=8)
    assert parts == [
        Part("start", 1, 9.0, 9.0),
        Part(ALONE, 150, 1.0, 150.0),
        Part(LEARN, 100, 2.0, 200.0),
        Part(ACT, 250, 3.0, 750.0),
        Part("validation", 3, 4.0, 12.0),  # at 200, 400, 500
        Part("pictures", 4, 4.0, 16.0),  # at 150, 300, 450, 500
        Part("checkpoints", 8, 0.25, 2.0),  # 5 of the last, 3 of the best
    ]


@pytest.mark.parametrize(
    ("interval", "epoch", "validations"),
    [("0.5", 20, 5), ("1.0", 1000, 1), ("1.0", None, 1), ("30", None, 2), ("30", 5, 2)],
)
def test_validations_are_counted_in_steps_or_epochs(
    interval: str, epoch: int | None, validations: int
) -> None:
    loop = LoopConfig(max_steps=50, val_check_interval=interval)
    costs = Costs(0.0, (1.0,), 1.0, 0.0, 0.0)
    parts = time_parts(loop, [Phase(WHOLE, 0, 50)], costs, epoch, 1)
    assert next(part.times for part in parts if part.name == "validation") == validations


@pytest.mark.parametrize(
    ("settings", "seconds", "saved", "kept"),
    [
        ({"checkpoint_every": 100}, 9.0, 5, 3),
        ({"checkpoint_every": 1000}, 9.0, 1, 2),
        ({"checkpoint_every": 200}, 9.0, 3, 3),
        ({"checkpoint_every": 200, "keep_every": 150}, 9.0, 6, 6),
        ({"checkpoint_every": 200, "keep_every": 100}, 9.0, 5, 8),
        ({"checkpoint_every": 100, "checkpoint_minutes": 30}, 36000.0, 20, 3),
    ],
)
def test_checkpoints_are_counted_by_steps_and_by_time(
    settings: dict[str, Any], seconds: float, saved: int, kept: int
) -> None:
    loop = LoopConfig(**{"max_steps": 500, "checkpoint_minutes": 0} | settings)
    assert saved_checkpoints(loop, seconds) == saved
    assert kept_checkpoints(loop, saved) == kept


def test_a_step_is_no_faster_than_its_readers() -> None:
    assert steady(1.0, 6.0, workers=2) == 3.0
    assert steady(4.0, 6.0, workers=2) == 4.0
    assert steady(1.0, 6.0, workers=0) == 1.0  # read within the step


def test_the_largest_batch_follows_the_line_through_two() -> None:
    # 100 fixed, 10 a clip beside its 2 of data; nine tenths of the memory is used.
    assert largest_batch([(2, 120.0), (4, 140.0)], 2.0, 50.0, 1000.0) == (900 - 100) // 12
    # One point: all beyond what is known to be fixed grows.
    assert largest_batch([(2, 150.0)], 0.0, 50.0, 1000.0) == (900 - 50) // 50
    # A measurement that says that more clips take less says nothing.
    assert largest_batch([(2, 150.0), (4, 140.0)], 0.0, 50.0, 1000.0) == (900 - 50) // 50
    assert largest_batch([(2, 150.0)], 0.0, 950.0, 1000.0) == 0


@pytest.mark.parametrize(
    ("wanted", "processes", "batch", "accumulate"),
    [(64, 1, 2, 32), (64, 4, 2, 8), (6, 2, 1, 3), (1, 1, 1, 1), (2, 1, 2, 1)],
)
def test_an_effective_batch_is_shared_by_processes_and_batches(
    wanted: int, processes: int, batch: int, accumulate: int
) -> None:
    config, _ = with_effective_batch(vqgan_config(HERE, HERE), processes, wanted)
    assert (config.train.batch_size, config.train.accumulate) == (batch, accumulate)
    assert batch * accumulate * processes == wanted


def test_the_learning_rate_grows_with_the_clips_of_a_step() -> None:
    before = vqgan_config(HERE, HERE)  # 1e-3 for 2 clips
    config, notes = with_effective_batch(before, 1, 64)
    assert config.optim.learning_rate == pytest.approx(0.032)
    assert "0.001 for 2 clips a step becomes 0.032 for 64" in notes[-1]
    assert with_effective_batch(before, 1, 0) == (before, [])
    # A base rate follows its own rule, later.
    based = vqgan_config(HERE, HERE, optim={"base_learning_rate": 0.5})
    config, notes = with_effective_batch(based, 1, 64)
    assert (config.optim.base_learning_rate, notes) == (0.5, [])


def test_clips_that_processes_cannot_share_are_an_error_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="10 cannot be shared evenly by 4") as caught:
        with_effective_batch(vqgan_config(HERE, HERE), 4, 10)
    assert "multiple of 4" in caught.value.hint
