"""Interruptions: a run that was stopped, killed or broken goes on as if nothing had happened."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Codes, Run, Train, Videos

from tatscli.core.training import callbacks, engine
from tatscli.core.training.callbacks import MetricsFile
from tatscli.core.training.gpt import GPTTraining
from tatscli.core.training.vqgan import VQGANTraining
from tatscli.errors import CheckpointError, DataError, DeviceError, RunError

GAN = {"image_gan_weight": 1, "video_gan_weight": 1, "disc_start": 2, "disc_warmup": 1}
RESTART = {"random_restart": True, "restart_threshold": 0.9, "codebook_decay": 0.5}
VQGAN = {"loss": GAN, "model": RESTART}


class Killed(BaseException):
    """Stands for the end of the process."""


def assert_equal(found: Any, expected: Any, place: str = "") -> None:
    """Compares checkpoints to the last bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key, value in expected.items():
            assert_equal(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, value in enumerate(expected):
            assert_equal(found[number], value, f"{place}.{number}")
    else:
        assert found == expected, place


def assert_same_run(found: Run, expected: Run) -> None:
    for name in ("last", "best"):
        file = f"checkpoints/{name}.ckpt"
        mine, theirs = (torch.load(run.folder / file, weights_only=True)
                        for run in (found, expected))  # fmt: skip
        for checkpoint in (mine, theirs):
            # Lightning counts epochs, which mean nothing here.
            for unimportant in ("loops", "epoch"):
                checkpoint.pop(unimportant)
        assert_equal(mine, theirs, name)
    assert found.rows == expected.rows
    assert found.outcome.step == expected.outcome.step


def stop_at(last: int, number: int = signal.SIGTERM) -> Any:
    def watch(module: Any, step: int) -> None:
        if step == last:
            signal.raise_signal(number)

    return watch


def die_at(last: int) -> Any:
    def watch(module: Any, step: int) -> None:
        if step == last:
            raise Killed

    return watch


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_gpt_that_was_stopped_goes_on_exactly(train: Train, steps: int) -> None:
    whole = train("gpt", "whole")
    stopped = train("gpt", "parts", watch=stop_at(steps))
    assert stopped.outcome.step == steps
    assert_same_run(train("gpt", "parts", resume=True), whole)


@pytest.mark.parametrize(
    ("steps", "workers", "accumulate"), [(2, 0, 1), (3, 0, 3), (3, 1, 1), (4, 2, 1)]
)
def test_a_vqgan_that_was_stopped_goes_on_exactly(
    train: Train, steps: int, workers: int, accumulate: int
) -> None:
    # 7 slots in batches of 2: an epoch ends within the fourth step; discriminators warm up at 1.
    settings = VQGAN | {"train": {"accumulate": accumulate}}
    whole = train("vqgan", "whole", **settings)
    train("vqgan", "parts", watch=stop_at(steps), workers=workers, **settings)
    assert_same_run(train("vqgan", "parts", resume=True, workers=workers, **settings), whole)


def test_the_codebook_restarts_codes_in_these_runs(train: Train) -> None:
    plain = train("vqgan", "a", loss=GAN, model=RESTART | {"random_restart": False})
    restarted = train("vqgan", "b", **VQGAN)
    one, other = (run.module.vqgan.codebook.embeddings for run in (plain, restarted))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("interval", ["2", "3"])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    train: Train, every: int, interval: str
) -> None:
    loop = {"checkpoint_every": every, "val_check_interval": interval}
    whole = train("gpt", "whole", train=loop)
    with pytest.raises(Killed):
        train("gpt", "parts", watch=die_at(5), train=loop)
    again = train("gpt", "parts", resume=True, train=loop)
    assert_same_run(again, whole)
    assert again.steps("train/loss") == list(range(6))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_run_killed_before_it_logs_what_it_saved_has_every_row(
    train: Train, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    loop = {"checkpoint_every": 1, "val_check_interval": "3"}
    whole = train("gpt", "whole", train=loop)
    written = MetricsFile.log_metrics

    def die(self: MetricsFile, metrics: Any, step: int | None = None) -> None:
        nonlocal rows
        rows -= self.file.name == "metrics.csv"
        if rows == 0:
            raise Killed
        written(self, metrics, step)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "log_metrics", die)
        with pytest.raises(Killed):
            train("gpt", "parts", train=loop)
    assert_same_run(train("gpt", "parts", resume=True, train=loop), whole)


def test_a_run_can_be_stopped_again_and_again(train: Train) -> None:
    whole = train("vqgan", "whole", **VQGAN)
    train("vqgan", "parts", watch=stop_at(1), **VQGAN)
    train("vqgan", "parts", resume=True, watch=stop_at(3), **VQGAN)
    train("vqgan", "parts", resume=True, watch=stop_at(4), **VQGAN)
    assert_same_run(train("vqgan", "parts", resume=True, **VQGAN), whole)


def test_a_finished_run_can_be_made_longer(train: Train) -> None:
    optim = {"lr_schedule": "constant"}
    whole = train("gpt", "whole", optim=optim)
    train("gpt", "parts", optim=optim, train={"max_steps": 4})
    assert_same_run(train("gpt", "parts", resume=True, optim=optim), whole)


def test_a_finished_run_stays_as_it_is(train: Train) -> None:
    whole = train("gpt")
    rows, last = whole.rows, whole.last
    again = train("gpt", resume=True)
    assert again.outcome.step == 6
    assert again.rows == rows
    assert_equal(again.last["state_dict"], last["state_dict"])


def test_a_changed_rate_and_weight_decay_take_effect(train: Train) -> None:
    before = {"lr_schedule": "constant", "learning_rate": 1e-3, "weight_decay": 0.1}
    after = before | {"learning_rate": 5e-3, "weight_decay": 0.0}
    train("gpt", optim=before, train={"max_steps": 3})
    rates: list[float] = []

    def watch(module: Any, step: int) -> None:
        rates.append(module.optimizers().param_groups[0]["lr"])

    run = train("gpt", resume=True, optim=after, watch=watch)
    assert rates == pytest.approx([5e-3] * 3)
    groups = run.last["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]
    assert [group["lr"] for group in groups] == pytest.approx([5e-3] * 2)


def test_a_changed_rate_reaches_the_discriminators(train: Train) -> None:
    optim = {"lr_schedule": "constant", "lr_warmup": 0}
    train("vqgan", optim=optim | {"learning_rate": 1e-3}, train={"max_steps": 3}, **VQGAN)
    run = train("vqgan", resume=True, optim=optim | {"learning_rate": 4e-3}, **VQGAN)
    rates = [state["param_groups"][0]["lr"] for state in run.last["optimizer_states"]]
    assert rates == pytest.approx([4e-3] * 2)


@pytest.mark.parametrize("clip", [0, 1])
def test_a_signal_in_a_validation_leaves_it_and_the_run_makes_up_for_it(
    train: Train, monkeypatch: pytest.MonkeyPatch, clip: int
) -> None:
    whole = train("vqgan", "whole", **VQGAN)
    original = VQGANTraining.validation_step

    def interrupted(self: Any, batch: Any, batch_index: int) -> None:
        if self.global_step == 4 and batch_index == clip:
            signal.raise_signal(signal.SIGTERM)
        original(self, batch, batch_index)

    monkeypatch.setattr(VQGANTraining, "validation_step", interrupted)
    stopped = train("vqgan", "parts", **VQGAN)
    assert (stopped.outcome.step, stopped.outcome.signal) == (4, signal.SIGTERM)
    assert stopped.last["global_step"] == 4
    assert stopped.steps("val/loss") == [1]
    monkeypatch.undo()
    assert_same_run(train("vqgan", "parts", resume=True, **VQGAN), whole)


def test_the_checkpoint_before_the_last_and_every_nth_are_kept(train: Train) -> None:
    run = train("gpt", train={"checkpoint_every": 4, "keep_every": 3})
    folder = run.folder / "checkpoints"
    steps = {file.name: torch.load(file, weights_only=True)["global_step"]
             for file in folder.iterdir()}  # fmt: skip
    assert steps.pop("best.ckpt") in (2, 4, 6)
    assert steps == {
        "last.ckpt": 6, "previous.ckpt": 4, "step-0000003.ckpt": 3, "step-0000006.ckpt": 6,
    }  # fmt: skip


def test_minutes_save_where_steps_take_long(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def watch(module: Any, step: int) -> None:
        now[0] += 61.0

    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    loop = {"checkpoint_every": 100, "checkpoint_minutes": 2.0, "val_check_interval": "100"}
    saved: list[int] = []
    original = callbacks.save_atomically

    def save(content: Any, file: Path) -> None:
        saved.append(content["global_step"])
        original(content, file)

    monkeypatch.setattr(callbacks, "save_atomically", save)
    train("gpt", watch=watch, train=loop)
    assert saved == [2, 4, 6, 6]  # at the end also the best


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops_at_the_end_of_the_step(train: Train, number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    run = train("gpt", watch=stop_at(3, number))
    assert (run.outcome.step, run.outcome.signal) == (3, number)
    assert run.last["global_step"] == 3
    assert run.steps("train/loss") == [0, 1, 2]
    assert run.steps("val/loss") == [1]  # none because of the stop
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def test_a_second_interrupt_stops_at_once_and_gives_the_signals_back(train: Train) -> None:
    before = signal.getsignal(signal.SIGINT)

    def watch(module: Any, step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train("gpt", watch=watch)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_gives_the_signals_back(train: Train) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Killed):
        train("gpt", watch=die_at(2))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_write_that_is_interrupted_costs_only_the_steps_since_the_last(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = {"checkpoint_every": 1, "val_check_interval": "100"}
    whole = train("gpt", "whole", train=loop)
    original = torch.save

    def half(content: Any, stream: Any) -> None:
        if content["global_step"] == 4:
            stream.write(b"PK half of it")
            raise Killed
        original(content, stream)

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        train("gpt", "parts", train=loop)
    monkeypatch.undo()
    folder = whole.folder.parent / "parts" / "checkpoints"
    assert {file.name for file in folder.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3
    again = train("gpt", "parts", resume=True, train=loop)
    assert again.rows == whole.rows
    assert_equal(again.last["state_dict"], whole.last["state_dict"])


def test_a_damaged_checkpoint_is_an_error_with_its_path(train: Train) -> None:
    run = train("gpt", train={"max_steps": 2})
    file = run.folder / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        train("gpt", resume=True)


def scripted(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    def validation_step(self: Any, batch: Any, batch_index: int) -> None:
        self.add_validated({"loss": torch.tensor(values[self.global_step])}, 1)

    monkeypatch.setattr(GPTTraining, "validation_step", validation_step)


def test_best_is_the_step_with_the_least_loss(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {1: 3.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: float("nan"), 6: 1.5})
    loop = {"val_check_interval": "1", "checkpoint_every": 1}
    run = train("gpt", train=loop)
    best = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == best["tats"]["step"] == 2
    assert run.last["callbacks"]["Checkpoints"]["best"] == 1.0


@pytest.mark.parametrize("at", [2, 3])
def test_a_run_that_goes_on_keeps_a_better_best(
    train: Train, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    scripted(monkeypatch, {2: 1.0, 4: 1.5, 6: 1.2})
    train("gpt", watch=stop_at(at))
    run = train("gpt", resume=True)
    best = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 2


def test_a_run_shorter_than_its_interval_is_validated_at_its_end(train: Train) -> None:
    run = train("gpt", train={"max_steps": 3, "val_check_interval": "100"})
    assert run.steps("val/loss") == [2]
    run = train("gpt", "decimal", train={"max_steps": 4, "val_check_interval": "0.7"})
    assert run.steps("val/loss") == [1, 3]  # 7 slots, batches of 2: 3 steps an epoch


def test_pictures_leave_the_run_as_it_is(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, bool]] = []

    whole = train("vqgan", "whole", **VQGAN)
    original = engine.Pictures

    def restless(_: Any, every: int) -> Any:
        def draw(module: Any, step: int) -> None:
            drawn.append((step, module.training))
            torch.rand(step)

        return original(draw, every)

    monkeypatch.setattr(engine, "Pictures", restless)
    other = train("vqgan", "other", train={"grid_every": 4}, **VQGAN)
    assert drawn == [(4, False), (6, False)]
    assert_same_run(other, whole)


def test_metrics_forget_what_came_after_and_lines_that_were_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    metrics = MetricsFile(file)
    metrics.continue_from(3, {})
    assert not file.exists()
    for step in range(4):
        metrics.log_metrics({"b": 0.25, "a": step / 3, "epoch": 0}, step)
    with file.open("a") as stream:
        stream.write("1")  # a kill in the middle of a line
    metrics.continue_from(2, {})
    assert file.read_text().splitlines() == [
        "step,metric,value", "0,a,0", "0,b,0.25", "1,a,0.33333333", "1,b,0.25",
    ]  # fmt: skip
    metrics.log_metrics({"a": 7.0}, 2)
    assert file.read_text().endswith("1,b,0.25\n2,a,7\n")
    file.write_text("")
    metrics.continue_from(2, {})
    assert file.read_text() == "step,metric,value\n"


def test_validation_clips_are_the_same_for_every_run(train: Train) -> None:
    assert len(Codes()) == 5
    runs = [
        train(
            "gpt",
            f"b{size}",
            train={"batch_size": size, "max_steps": 1, "val_check_interval": "1"},
            optim={"learning_rate": 1e-12},
        )
        for size in (1, 3)
    ]
    one, other = (run.values("val/loss")[0] for run in runs)
    assert one == pytest.approx(other, rel=1e-5)


class Dies(Videos):
    """Clips whose reader is killed at one of them."""

    def __getitem__(self, item: int | tuple[int, int]) -> Any:
        if not isinstance(item, int) and item[1] == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(item)


class Refuses(Videos):
    """Clips of which one cannot be read."""

    def __getitem__(self, item: int | tuple[int, int]) -> Any:
        if not isinstance(item, int) and item[1] == 6:
            raise DataError("clip 6 is broken", "leave it out")
        return super().__getitem__(item)


def test_a_reader_that_is_killed_is_named_with_what_helps(train: Train) -> None:
    with pytest.raises(
        DataError, match=r"process [\d, ]+ that read clips (was killed|exited)"
    ) as caught:
        train("vqgan", clips=Dies(), workers=1)
    assert "--workers" in caught.value.hint


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_reader_is_the_error_itself(train: Train, workers: int) -> None:
    with pytest.raises(DataError) as caught:
        train("vqgan", clips=Refuses(), workers=workers)
    assert (caught.value.message, caught.value.hint) == ("clip 6 is broken", "leave it out")


@pytest.mark.parametrize(
    ("raised", "kind", "says", "helps"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total "
                                "capacity of 79.11 GiB of which 5.81 MiB is free. Including"),
         DeviceError, "GPU: 2.50 GiB more were asked for, and 5.81 MiB of 79.11 GiB are free",
         "--recompute"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
                      ": you tried to allocate 9 bytes. Error code 12"),
         DeviceError, "out of memory: 9 bytes more were asked for", "--precision bf16"),
        (RuntimeError("[pair.cc:1] Connection closed by peer [127.0.0.1]:1. gloo"),
         RunError, "another process of this run ended", "--resume"),
    ],
)  # fmt: skip
def test_failures_of_the_machine_say_what_helps(
    train: Train, raised: Exception, kind: type[Exception], says: str, helps: str
) -> None:
    def watch(module: Any, step: int) -> None:
        if step == 2:
            raise raised

    with pytest.raises(kind, match=says) as caught:
        train("gpt", watch=watch)
    assert helps in caught.value.hint  # type: ignore[attr-defined]
