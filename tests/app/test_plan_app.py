"""Plans: what they predict on a clock of known costs, what they find, what they leave behind."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_app import Notes, encode_config, gpt_config, long_config, vqgan_config

from tatscli.app import plan_train, plan_use
from tatscli.app import train as train_module
from tatscli.app.encode import encode
from tatscli.app.estimate import ACT, ALONE, LEARN
from tatscli.app.plan_train import plan_gpt, plan_vqgan, program_seconds
from tatscli.app.plan_use import batch_seconds, plan_encode, plan_sample, steady_part
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.config.files import read_layer, resolve
from tatscli.config.plan import GPTPlanConfig, VQGANPlanConfig
from tatscli.config.sample import SampleLongConfig, SampleShortConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.core.training import callbacks, measure
from tatscli.core.training.gpt import GPTTraining
from tatscli.core.training.vqgan import VQGANTraining
from tatscli.errors import ConfigError, DeviceError

PROGRAM = 7.0
"""Seconds in which the program is said to load."""
JUDGED = {"image_gan_weight": 1, "disc_start": 25, "disc_warmup": 10, "disc_ramp": 5}
SMALL = {"disc_channels": 4, "disc_layers": 1}
LONG = {
    "max_steps": 50, "val_check_interval": "20", "checkpoint_every": 20, "grid_every": 20,
    "val_clips": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_train, "program_seconds", lambda module: PROGRAM)
    monkeypatch.setattr(plan_use, "program_seconds", lambda module: PROGRAM)


def vqgan_plan(
    data: Path, out: Path, plan: Mapping[str, Any] | None = None, /, **sections: Any
) -> Any:
    values = vqgan_config(data, out, **sections).model_dump(exclude_unset=True)
    return VQGANPlanConfig.model_validate(values | {"plan": plan or {}})


def gpt_plan(
    data: Path, out: Path, plan: Mapping[str, Any] | None = None, /, **sections: Any
) -> Any:
    values = gpt_config(data, out, **sections).model_dump(exclude_unset=True)
    return GPTPlanConfig.model_validate(values | {"plan": plan or {}})


class Clock:
    """Time that passes only where something of a known cost is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._patch = 100.0, monkeypatch
        fake = SimpleNamespace(perf_counter=lambda: self.now)
        for module in (measure, plan_train):
            monkeypatch.setattr(module, "time", fake)

    def costs(self, owner: Any, name: str, seconds: Callable[..., float]) -> None:
        done = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            self.now += seconds(*arguments)
            return done(*arguments, **options)

        self._patch.setattr(owner, name, timed)


def vqgan_step(module: VQGANTraining, *_: Any) -> float:
    loss, step = module.config.loss, module.global_step
    judging = 2.0 if step >= loss.disc_start - loss.disc_warmup else 0.0
    return 1.0 + judging + (3.0 if step >= loss.disc_start else 0.0)


def test_the_time_of_a_run_whose_discriminator_starts_is_predicted_by_18_steps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    clock.costs(VQGANTraining, "training_step", vqgan_step)
    clock.costs(VQGANTraining, "validation_step", lambda *_: 0.5)
    clock.costs(train_module, "save_reconstructions", lambda *_: 4.0)
    clock.costs(callbacks, "save_atomically", lambda *_: 0.25)
    clock.costs(train_module, "video_clips", lambda *_: 11.0)
    plan = plan_vqgan(vqgan_plan(data, tmp_path / "run", loss=JUDGED, model=SMALL, train=LONG))
    assert plan.measured_steps <= 20
    assert [(p.phase, p.from_step, p.seconds_per_step) for p in plan.phases] == [
        (ALONE, 0, 1.0), (LEARN, 15, 3.0), (ACT, 25, 6.0),
    ]  # fmt: skip
    assert [p.from_clips for p in plan.phases] == [0, 30, 50]
    began = clock.now
    train_vqgan(vqgan_config(data, tmp_path / "run", loss=JUDGED, model=SMALL, train=LONG))
    real = clock.now - began + PROGRAM
    # The plan counts a best checkpoint at each validation; the run may write fewer.
    assert real <= plan.seconds <= real + 3 * 0.25
    assert plan.seconds == pytest.approx(sum(part.seconds for part in plan.time))


def test_the_time_of_a_gpt_run_is_predicted(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    clock.costs(GPTTraining, "training_step", lambda *_: 2.0)
    clock.costs(GPTTraining, "validation_step", lambda *_: 0.5)
    clock.costs(train_module, "save_samples", lambda *_: 4.0)
    plan = plan_gpt(gpt_plan(tokens, tmp_path / "run", train=LONG))
    began = clock.now
    train_gpt(gpt_config(tokens, tmp_path / "run", train=LONG))
    assert plan.seconds == pytest.approx(clock.now - began + PROGRAM)
    assert plan.steps_per_second == pytest.approx(0.5)
    assert plan.clips_per_second == pytest.approx(1.0)
    assert plan.tokens_per_second == pytest.approx(8.0)  # a grid of 2 x 2 x 2


def test_a_plan_says_what_a_run_holds_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    notes = Notes()
    plan = plan_vqgan(
        vqgan_plan(data, tmp_path / "run", loss=JUDGED, model=SMALL, train=LONG), reporter=notes
    )
    assert list(tmp_path.iterdir()) == []
    run = train_vqgan(
        vqgan_config(data, tmp_path / "run", loss=JUDGED, model=SMALL, train=LONG)
    ).run
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    generator, judge = saved["optimizer_states"]
    moments = sum(
        state[name].numel() * 4
        for optimizer in (generator, judge)
        for state in optimizer["state"].values()
        for name in ("exp_avg", "exp_avg_sq")
    )
    assert plan.memory.optimiser == moments == 2 * plan.memory.gradients
    weights = sum(t.numel() * t.element_size() for t in saved["state_dict"].values())
    # Beside what is saved, the device holds a few tables.
    assert weights <= plan.memory.weights < 1.01 * weights
    assert plan.memory.data == 2 * 3 * 4 * 8 * 8 * 4 + 2 * 8  # videos, labels
    assert plan.parameters["vqgan"] * 4 < weights
    assert set(plan.parameters) == {"vqgan", "image discriminator"}
    size = (run / "checkpoints" / "last.ckpt").stat().st_size
    assert plan.disk.checkpoint == pytest.approx(size, rel=0.05)
    assert plan.disk.checkpoints == len(list((run / "checkpoints").glob("*.ckpt"))) == 3
    pictures = sum(file.stat().st_size for file in (run / "samples").iterdir())
    assert plan.disk.pictures == pytest.approx(pictures, rel=0.5)
    assert plan.memory.total is None or plan.largest_batch > 2


def test_a_written_plan_is_the_config_of_a_run(tokens: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    config = gpt_plan(tokens, tmp_path / "run", {"effective_batch": 6})
    plan = plan_gpt(config, file)
    assert (plan.batch_size, plan.accumulate, plan.effective_batch) == (2, 3, 6)
    assert plan.learning_rate == pytest.approx(3e-3)
    assert plan.written == str(file)
    written = resolve(GPTTrainConfig, [read_layer(file)])
    wanted = gpt_config(
        tokens, tmp_path / "run", train={"accumulate": 3}, optim={"learning_rate": 3e-3}
    )
    assert written.model_dump() == wanted.model_dump()
    assert plan.disk.checkpoints == 3
    once = gpt_plan(tokens, tmp_path / "once", {"measured_steps": 6}, train={"max_steps": 1})
    assert plan_gpt(once).disk.checkpoints == 2  # the last is the only one so far, and the best
    assert train_gpt(written).steps == 3
    with pytest.raises(ConfigError, match="exists; nothing was overwritten"):
        plan_gpt(config, file)


def test_without_data_clips_are_made_up_and_the_config_has_none(
    vqgan_run: Path, tmp_path: Path
) -> None:
    notes, file = Notes(), tmp_path / "plan.yaml"
    values = vqgan_config(Path("none"), tmp_path / "run").model_dump(exclude_unset=True)
    del values["data"]["data"]
    plan = plan_vqgan(VQGANPlanConfig.model_validate(values), file, notes)
    assert plan.epochs is None
    assert any("clips are made up" in note for note in notes.notes)
    assert any("--data DIR" in note for note in notes.notes)
    assert "data" not in read_layer(file).values["data"]
    with pytest.raises(ConfigError, match="--data is required"):
        resolve(VQGANTrainConfig, [read_layer(file)])
    values = gpt_config(Path("none"), tmp_path / "run").model_dump(exclude_unset=True)
    del values["data"]
    assert plan_gpt(GPTPlanConfig.model_validate(values | {"vqgan": vqgan_run})).epochs is None
    with pytest.raises(ConfigError, match="neither --data nor --vqgan"):
        plan_gpt(GPTPlanConfig.model_validate(values))
    assert list(tmp_path.iterdir()) == [file]


def test_what_does_not_fit_is_planned_in_parts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, notes = VQGANTraining.training_step, Notes()

    def step(module: VQGANTraining, batch: Any, number: int) -> None:
        if len(module.parts(batch.video)[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        done(module, batch, number)

    monkeypatch.setattr(VQGANTraining, "training_step", step)
    config = vqgan_plan(data, tmp_path / "run", {"measured_steps": 6}, train={"batch_size": 8})
    plan = plan_vqgan(config, reporter=notes)
    assert (plan.batch_size, plan.accumulate, plan.effective_batch) == (2, 4, 8)
    assert any("8 does not fit into memory; 4 with --accumulate 2" in n for n in notes.notes)
    monkeypatch.setattr(VQGANTraining, "parts", lambda module, batch: [torch.zeros(3)])
    with pytest.raises(DeviceError, match="out of memory"):
        plan_vqgan(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_plan_that_is_interrupted_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    done = VQGANTraining.training_step

    def step(module: VQGANTraining, batch: Any, index: int) -> None:
        done(module, batch, index)
        if module.global_step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(VQGANTraining, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        plan_vqgan(vqgan_plan(data, tmp_path / "run"), tmp_path / "plan.yaml")
    assert list(tmp_path.iterdir()) == []


def test_what_loads_the_program_does_not_hear_ctrl_c(tmp_path: Path) -> None:
    file = tmp_path / "group"
    program_seconds(f"os; open({str(file)!r}, 'w').write(str(os.getpgrp()))")
    assert int(file.read_text()) != os.getpgrp()


def test_encoding_is_planned_by_encoding(vqgan_run: Path, data: Path, tmp_path: Path) -> None:
    config = encode_config(data, tmp_path / "tokens", vqgan_run)
    plan = plan_encode(config, tmp_path / "plan.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]
    made = encode(config)
    assert plan.clips == {"train": made.training_clips, "val": made.validation_clips}
    assert plan.grid == made.grid
    shards = sum(file.stat().st_size for file in made.folder.rglob("*-*.safetensors"))
    assert 0 < plan.token_bytes < shards  # which have headers, too
    assert plan.seconds > PROGRAM
    assert plan.clips_per_second > 0


def test_sampling_is_planned_by_sampling(gpt_run: Path, tmp_path: Path) -> None:
    base = long_config(gpt_run, tmp_path / "samples").model_dump(exclude_unset=True)
    del base["window"]
    short = plan_sample(SampleLongConfig.model_validate(base), tmp_path / "short.yaml")
    assert (short.kind, short.tokens, short.frames, short.measured_tokens) == ("short", 8, 4, 8)
    assert (short.samples, short.batch_size) == (3, 2)
    assert resolve(SampleShortConfig, [read_layer(tmp_path / "short.yaml")]).sample.gpt == gpt_run
    long = plan_sample(long_config(gpt_run, tmp_path / "samples"), tmp_path / "long.yaml")
    assert (long.kind, long.tokens, long.frames) == ("long", 20, 10)
    assert resolve(SampleLongConfig, [read_layer(tmp_path / "long.yaml")]).window.length == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["long.yaml", "short.yaml"]


def test_tokens_that_were_not_written_are_extrapolated(
    gpt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_use, "MEASURED_SECONDS", 0.0)
    notes = Notes()
    plan = plan_sample(long_config(gpt_run, tmp_path / "samples"), reporter=notes)
    assert (plan.measured_tokens, plan.tokens) == (1, 20)
    assert any("1 of 20 tokens" in note for note in notes.notes)
    # A token costs 2 and a hundredth of the positions before it; the first 5 more.
    positions = list(range(1, 101))
    cost = [2 + 0.01 * held + (5 if held == 1 else 0) for held in positions]
    clock = [sum(cost[:done]) for done in range(31)]
    assert batch_seconds(clock, positions, whole=False) == pytest.approx(sum(cost))
    assert batch_seconds(clock, positions[:30], whole=True) == pytest.approx(sum(cost[:30]))


def test_readers_set_the_pace_once_what_they_read_ahead_is_used_up() -> None:
    ahead = [9.0, 1.0, 1.0, 1.0, 1.0]
    assert steady_part([*ahead, 3.0, 3.1, 2.9], workers=2) == 3.0
    assert steady_part([9.0, 1.0, 1.2], workers=0) == pytest.approx(1.1)
    assert steady_part([9.0], workers=2) == 9.0


@pytest.mark.gpu
def test_the_memory_of_a_run_on_a_gpu_is_predicted_within_15_percent(
    data: Path, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "data": {"resolution": 64, "sequence_length": 8},
        "model": {"hidden_channels": 32, "disc_channels": 32},
        "loss": JUDGED | {"video_gan_weight": 1},
        "train": LONG | {"batch_size": 4},
        "compute": {"device": "cuda"},
    }
    plan = plan_vqgan(vqgan_plan(data, tmp_path / "run", **sections))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train_vqgan(vqgan_config(data, tmp_path / "run", **sections))
    assert plan.memory.total == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
