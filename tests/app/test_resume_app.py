"""Continuing: the newest checkpoint that is intact, ``auto``, requeueing, and who started what."""

import json
import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_app import Notes, gpt_config, vqgan_config

from tatscli.app import launch
from tatscli.app.devices import place
from tatscli.app.run import RunFolder
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.config.compute import DevicesConfig
from tatscli.config.train import AUTO
from tatscli.core.training.callbacks import GracefulStop
from tatscli.errors import DataError, DeviceError, RunError

CONSTANT = {"lr_schedule": "constant"}


def step_of(run: Path, name: str = "last") -> int:
    file = run / "checkpoints" / f"{name}.ckpt"
    return int(torch.load(file, weights_only=True)["global_step"])


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def state(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_taken(
    tokens: Path, tmp_path: Path
) -> None:
    whole = train_gpt(gpt_config(tokens, tmp_path / "whole", optim=CONSTANT,
                                 train={"max_steps": 5, "checkpoint_every": 1}))  # fmt: skip
    loop = {"max_steps": 4, "checkpoint_every": 1, "val_check_interval": "2"}
    run = train_gpt(gpt_config(tokens, tmp_path / "run", optim=CONSTANT, train=loop)).run
    folder = run / "checkpoints"
    best = (folder / "best.ckpt").read_bytes()
    for name in ("last", "best"):
        damage(folder / f"{name}.ckpt")
    notes = Notes()
    longer = gpt_config(tokens, run, optim=CONSTANT, train=loop | {"max_steps": 5})
    assert train_gpt(longer, resume=run, reporter=notes).steps == 5
    said = "\n".join(notes.warnings)
    assert "last.ckpt.damaged" in said and "previous.ckpt, step 3" in said
    assert (folder / "last.ckpt.damaged").stat().st_size > 1000 and best
    for mine, theirs in zip(state(run).values(), state(whole.run).values(), strict=True):
        assert torch.equal(mine, theirs)


def test_where_no_checkpoint_is_intact_each_is_named_and_none_is_touched(
    tokens: Path, tmp_path: Path
) -> None:
    run = train_gpt(gpt_config(tokens, tmp_path / "run", train={"max_steps": 1})).run
    files = sorted((run / "checkpoints").iterdir())
    for file in files:
        damage(file)
    with pytest.raises(RunError) as caught:
        train_gpt(gpt_config(tokens, run, train={"max_steps": 2}), resume=run)
    assert all(str(file) in caught.value.message for file in files)
    assert sorted((run / "checkpoints").iterdir()) == files


def test_auto_starts_goes_on_and_ends(data: Path, tmp_path: Path) -> None:
    folder, loop = tmp_path / "run", {"max_steps": 2}
    assert train_vqgan(vqgan_config(data, folder, optim=CONSTANT, train=loop), AUTO).steps == 2
    notes = Notes()
    config = vqgan_config(data, folder, optim=CONSTANT, train={"max_steps": 4})
    assert train_vqgan(config, AUTO, notes).steps == 4
    assert train_vqgan(config, AUTO, notes).steps == 4
    assert "finished already at step 4" in notes.notes[-1]
    whole = train_vqgan(vqgan_config(data, tmp_path / "whole", optim=CONSTANT,
                                     train={"max_steps": 4}))  # fmt: skip
    for mine, theirs in zip(state(folder).values(), state(whole.run).values(), strict=True):
        assert torch.equal(mine, theirs)


def test_data_that_is_not_where_the_run_saw_it_is_told_with_the_folder_it_was_seen_from(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    shutil.copytree(data, tmp_path / "videos")
    monkeypatch.chdir(tmp_path)

    def resume(run: Path, named: Path = Path("videos")) -> str:
        longer = vqgan_config(named, run, optim=CONSTANT, train={"max_steps": 2})
        with pytest.raises(DataError) as caught:
            train_vqgan(longer, run)
        return f"{caught.value.message} | {caught.value.hint}"

    first = {"max_steps": 1}
    for name, held in (("run", Path("videos")), ("absolute", tmp_path / "videos")):
        train_vqgan(vqgan_config(held, tmp_path / name, optim=CONSTANT, train=first))
    run, moved = tmp_path / "run", tmp_path / "moved"
    monkeypatch.chdir(tmp_path / "other")
    assert resume(run) == (
        f"videos: no such file or folder; it is what {run} is trained on, as seen from {tmp_path} "
        "| continue from there, or add --data with its path from here"
    )
    assert "gone: no such folder" in resume(run, Path("gone"))  # not what the run says
    (tmp_path / "videos").rename(moved)
    monkeypatch.chdir(tmp_path)
    for name, held in (("run", Path("videos")), ("absolute", tmp_path / "videos")):
        assert resume(tmp_path / name, held) == (
            f"{held}: no such file or folder; it is what {tmp_path / name} is trained on "
            "| bring it back, or add --data with its path from here"
        )
    # A run that has nothing to do needs none; with the path that it has now, one goes on.
    done = vqgan_config(Path("videos"), run, optim=CONSTANT, train=first)
    assert train_vqgan(done, run).steps == 1
    found = vqgan_config(moved, run, optim=CONSTANT, train={"max_steps": 2})
    assert train_vqgan(found, run).steps == 2


def test_auto_takes_over_what_ended_before_it_saved_and_nothing_else(
    data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = RunFolder.create(folder, ExitStack())
    config = vqgan_config(data, folder, train={"max_steps": 1})
    run.write_config(config)
    (folder / "metrics.csv").write_text("step,metric,value\n7,train/l1,1\n")
    with pytest.raises(RunError, match="not empty"):
        train_vqgan(config)
    with pytest.raises(RunError, match="saved no checkpoint yet") as caught:
        train_vqgan(config, folder)
    assert "--resume auto" in caught.value.hint
    assert train_vqgan(config, AUTO).steps == 1
    assert "7," not in (folder / "metrics.csv").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty; nothing was overwritten"):
        train_vqgan(vqgan_config(data, other), AUTO)


def test_auto_on_the_command_line_keeps_the_settings_of_the_run(
    tats: Any, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    base = ("vqgan", "train", "--data", data, "--out", run, "--resume", "auto", "--device", "cpu")
    small = ("--preset", "tiny", "--resolution", 16, "--sequence-length", 4, "--n-hiddens", 4,
             "--workers", 0)  # fmt: skip
    assert tats(*base, *small, "--max-steps", 1, "--batch-size", 1).code == 0
    again = tats(*base, "--max-steps", 2, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["steps"] == 2
    assert "resolution: 16" in (run / "config.yaml").read_text()


def stopped_by(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = GracefulStop.on_train_batch_end

    def told(self: GracefulStop, trainer: Any, *more: Any) -> None:
        signal.raise_signal(number)
        original(self, trainer, *more)

    monkeypatch.setattr(GracefulStop, "on_train_batch_end", told)


@pytest.mark.parametrize(
    ("number", "array", "asked"),
    [
        (signal.SIGUSR1, None, "requeue 123"),
        (signal.SIGUSR1, "77", "requeue 77_4"),
        (signal.SIGTERM, None, ""),  # a job that is cancelled stays so
    ],
)
def test_slurm_is_asked_to_start_the_job_again(
    tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    array: str | None,
    asked: str,
) -> None:
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    stopped_by(number, monkeypatch)
    config = gpt_config(tokens, tmp_path / "run", compute={"requeue": True})
    result = train_gpt(config)
    assert (result.signal, result.steps) == (number, 1)
    assert (log.read_text() if log.exists() else "").strip() == asked


def test_requeueing_needs_a_slurm_job(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(RunError, match="no SLURM job"):
        train_gpt(gpt_config(tokens, tmp_path / "run", compute={"requeue": True}))
    assert not (tmp_path / "run").exists()


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2", "RANK": "3",
            "LOCAL_RANK": "1"}  # fmt: skip
SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2",
        "SLURM_PROCID": "1", "SLURM_JOB_NAME": "train"}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, ("torchrun", 2, 3)),
        (SRUN, ("srun", 2, 2)),
        (SRUN | {"SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (SRUN | TORCHRUN, ("torchrun", 2, 3)),
    ],
)
def test_what_started_the_processes_is_seen(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = launch.launched()
    assert (found and (found.by, found.processes, found.nodes)) == expected
    placement = place(DevicesConfig(device="cpu", devices=2 if found is None else 1))
    assert placement.world == (expected[1] * expected[2] if expected else 2)
    assert launch.is_helper() == (
        environment.get("RANK", environment.get("SLURM_PROCID", "0")) > "0"
    )


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"devices": 3}, "--devices 3, but torchrun started 2 processes on each machine"),
        ({"nodes": 4}, "--nodes 4, but torchrun started 3 machines"),
    ],
)
def test_other_numbers_than_were_started_are_an_error(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], named: str
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=named):
        place(DevicesConfig(device="cpu", **asked))


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_NTASKS_PER_NODE"])
def test_a_slurm_job_that_tells_too_little_is_an_error(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in SRUN.keys() - {missing}:
        monkeypatch.setenv(name, SRUN[name])
    with pytest.raises(DeviceError, match="4 tasks") as caught:
        launch.launched()
    assert "srun" in caught.value.hint or "--ntasks-per-node" in caught.value.hint


def test_fp16_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="shared by two optimisers"):
        vqgan_config(Path("data"), Path("out"), compute={"precision": "fp16"})


def test_a_further_process_says_what_went_wrong_with_its_number(tmp_path: Path) -> None:
    environment = os.environ | {"LOCAL_RANK": "1", "TATS_CACHE": str(tmp_path)}
    done = subprocess.run(
        ["python", "-m", "tatscli", "sample", "short", "--gpt", str(tmp_path / "none")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert "error in process 1:" in done.stderr and "does not exist" in done.stderr
