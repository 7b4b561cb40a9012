"""Two processes on the CPU train the model that one trains with twice the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_app import gpt_config, vqgan_config

from tatscli.app.sample import sample_short
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.config.files import dump
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig


def in_two_processes(
    command: str, config: GPTTrainConfig | VQGANTrainConfig, file: Path, *more: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the program itself, which starts its second process by its own command line."""
    with started(command, config, file, *more) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def started(
    command: str, config: GPTTrainConfig | VQGANTrainConfig, file: Path, *more: str
) -> "subprocess.Popen[str]":
    file.write_text(dump(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PL_")}
    return subprocess.Popen(
        [
            sys.executable, "-m", "tatscli", command, "train", "--config", str(file),
            "--devices", "2", "--device", "cpu", "--batch-size", "2", "--json", *more,
        ],
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def momentum(run: Path) -> list[torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    moments = state["optimizer_states"][0]["state"]
    return [moments[number]["exp_avg"] for number in sorted(moments)]


def state(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def values(run: Path, metric: str) -> list[float]:
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    return [float(row.split(",")[2]) for row in rows if row.split(",")[1] == metric]


def assert_same_model(together: Path, single: Path) -> None:
    pairs = list(zip(momentum(together), momentum(single), strict=True))
    assert len(pairs) > 10
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)


def test_the_gpt(tokens: Path, tmp_path: Path) -> None:
    # One validation clip for two processes: the second must not leave the first waiting.
    train = {"max_steps": 3, "batch_size": 4, "val_clips": 1}
    # Which conditions are dropped depends on the place of a clip in the step, not on its process.
    model = {"condition": "label+text", "condition_dropout": 0.5}
    single = train_gpt(gpt_config(tokens, tmp_path / "single", train=train, model=model)).run
    config = gpt_config(tokens, tmp_path / "together", train=train, model=model)
    done = in_two_processes("gpt", config, tmp_path / "c.yaml")
    assert done.returncode == 0, done.stderr
    together = tmp_path / "together"
    # One object, though two processes end.
    assert json.loads(done.stdout)["run"] == str(together)
    record = json.loads((together / "run.json").read_text())
    assert (record["world"], record["steps"], record["status"]) == (2, 3, "finished")
    assert_same_model(together, single)
    assert values(together, "val/loss") == pytest.approx(values(single, "val/loss"), rel=1e-4)
    assert len(values(together, "train/learning_rate")) == 3


@pytest.fixture(scope="module")
def sharded(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPTTrainConfig]:
    """A run whose GPT two processes share, and its settings for one that has twice the batch."""
    folder = tmp_path_factory.mktemp("sharded")
    # The second process has no validation clip, and must compute as often as the first.
    train = {"max_steps": 4, "batch_size": 4, "val_clips": 1}
    model = {"condition": "label+text", "condition_dropout": 0.5}
    config = gpt_config(tokens, folder / "run", train=train, model=model)
    done = in_two_processes("gpt", config, folder / "c.yaml", "--fsdp")
    assert done.returncode == 0, done.stderr
    return folder / "run", config


def earlier(run: Path, folder: Path) -> Path:
    """The run as it was at the checkpoint before its last."""
    (folder / "checkpoints").mkdir(parents=True)
    for file in ("config.yaml", "metrics.csv"):
        (folder / file).write_bytes((run / file).read_bytes())
    before = run / "checkpoints" / "previous.ckpt"
    assert torch.load(before, weights_only=True)["global_step"] == 2
    (folder / "checkpoints" / "last.ckpt").write_bytes(before.read_bytes())
    return folder


def moved(config: GPTTrainConfig, out: Path) -> GPTTrainConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"out": out})})


def test_a_gpt_that_they_share(sharded: tuple[Path, GPTTrainConfig], tmp_path: Path) -> None:
    run, config = sharded
    single = train_gpt(moved(config, tmp_path / "single")).run
    assert_same_model(run, single)
    assert state(run).keys() == state(single).keys()
    assert values(run, "val/loss") == pytest.approx(values(single, "val/loss"), rel=1e-4)
    drawn = [sorted(file.name for file in (each / "samples").iterdir()) for each in (run, single)]
    assert drawn[0] == drawn[1] and drawn[0]


def test_what_they_shared_samples_by_itself(sharded: tuple[Path, GPTTrainConfig]) -> None:
    assert len(sample_short(sharded[0], samples=2, device="cpu")) == 2


def test_a_gpt_that_they_share_goes_on_exactly_where_it_stopped(
    sharded: tuple[Path, GPTTrainConfig], tmp_path: Path
) -> None:
    run, config = sharded
    again = earlier(run, tmp_path / "again")
    done = in_two_processes(
        "gpt", moved(config, again), tmp_path / "c.yaml", "--fsdp", "--resume", str(again)
    )
    assert done.returncode == 0, done.stderr
    mine, theirs = state(again), state(run)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert all(map(torch.equal, momentum(again), momentum(run)))
    assert (again / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def test_one_process_goes_on_with_what_two_shared(
    sharded: tuple[Path, GPTTrainConfig], tmp_path: Path
) -> None:
    run, config = sharded
    alone = earlier(run, tmp_path / "alone")
    train_gpt(moved(config, alone), resume=alone)
    assert_same_model(alone, run)


def test_the_vqgan_without_batch_statistics(data: Path, tmp_path: Path) -> None:
    model = {"norm_type": "group", "hidden_channels": 16, "downsample": (2, 2, 2)}
    train = {"batch_size": 4, "max_steps": 1}
    start = train_vqgan(vqgan_config(data, tmp_path / "start", model=model, train=train)).run
    # From here on the codebook is initialised, which each process does from its own clips.
    for name in ("single", "together"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        for file in ("config.yaml", "checkpoints/last.ckpt"):
            (tmp_path / name / file).write_bytes((start / file).read_bytes())
    longer = train | {"max_steps": 2, "val_clips": 3}
    single = vqgan_config(data, tmp_path / "single", model=model, train=longer)
    train_vqgan(single, resume=tmp_path / "single")
    config = vqgan_config(data, tmp_path / "together", model=model, train=longer)
    done = in_two_processes(
        "vqgan", config, tmp_path / "c.yaml", "--resume", str(tmp_path / "together")
    )
    assert done.returncode == 0, done.stderr
    assert_same_model(tmp_path / "together", tmp_path / "single")
    mine, theirs = state(tmp_path / "together"), state(tmp_path / "single")
    for name in ("N", "z_avg", "embeddings"):
        key = f"vqgan.codebook.{name}"
        torch.testing.assert_close(mine[key], theirs[key], atol=1e-5, rtol=1e-3)
    for metric in ("val/codes_used", "val/l1", "train/codes_used"):
        found = values(tmp_path / "together", metric)
        assert found == pytest.approx(values(tmp_path / "single", metric), rel=1e-4)
