"""Signals, lost processes and kills, on the program itself (R1, R2, R6, R7, R8).

| | in the suite | with ``-m soak`` |
| --- | --- | --- |
| R1 | 2 kills of one process | 20 |
| R2 | a kill of two | 10 |
| R6 | SIGTERM to the second of two processes, Ctrl-C to both, at the start too | all to all |
| R7 | the second of two processes is killed | the first one, too |
| R8 | torchrun restarts after a kill | after two |
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Program, Start, same_weights, starting, write_config
from tiny_app import gpt_config

STEPS = 150
LAST = Path("checkpoints") / "last.ckpt"
CONSTANT = {"lr_schedule": "constant"}


def config(tokens: Path, run: Path, **train: Any) -> Any:
    loop = {"val_check_interval": "1000", "checkpoint_every": 20, "grid_every": 100_000,
            "log_every": 10, "max_steps": 100_000, "val_clips": 2}  # fmt: skip
    return gpt_config(tokens, run, train=loop | train, optim=CONSTANT)


def arguments(tokens: Path, run: Path, processes: int, **train: Any) -> tuple[object, ...]:
    file = write_config(config(tokens, run, **train), run.with_suffix(".yaml"))
    return ("gpt", "train", "--config", file, "--devices", processes, "--resume", "auto")


@pytest.fixture(scope="module")
def uninterrupted(
    tokens: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, int], Path]:
    """Runs of so many processes and steps that nothing happened to."""

    @cache
    def run(processes: int, steps: int) -> Path:
        folder = tmp_path_factory.mktemp("whole") / "run"
        with starting() as start:
            code, _, err = start(*arguments(tokens, folder, processes, max_steps=steps)).end(600)
        assert code == 0, err
        return folder

    return run


def last_step(run: Path) -> int:
    return int(torch.load(run / LAST, weights_only=True)["global_step"])


def each(program: Program, to: str) -> list[int]:
    first, *others = [program.process.pid, *program.children()]
    return {"first": [first], "second": others[:1], "group": [first, *others]}[to]


SIGNALS = [
    (2, signal.SIGTERM, "second"),
    (2, signal.SIGINT, "group"),
]
MORE = [
    (processes, number, to)
    for processes in (1, 2)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    for to in (("first", "second", "group") if processes == 2 else ("first",))
    if (processes, number, to) not in SIGNALS
]


@pytest.mark.parametrize(
    ("processes", "number", "to"),
    SIGNALS + [pytest.param(*case, marks=pytest.mark.soak) for case in MORE],
)
def test_a_signal_to_any_process_saves_and_ends_all(
    tokens: Path, tmp_path: Path, start: Start, processes: int, number: int, to: str
) -> None:
    run = tmp_path / "run"
    program = start(*arguments(tokens, run, processes), "--json")
    program.wait_for(run / LAST)
    before = time.monotonic()
    for process in each(program, to):
        os.kill(process, number)
    code, out, err = program.end()
    seconds = time.monotonic() - before
    assert code == 128 + number, err
    assert seconds < 30  # on a busy machine
    assert program.left() == []
    assert "Traceback" not in err
    result, stopped = json.loads(out), last_step(run)  # one, though two processes end
    assert (result["status"], result["signal"], result["steps"]) == ("stopped", number, stopped)
    assert f"saved at step {stopped}; continue with --resume {run}" in err


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.soak) for n in (signal.SIGUSR1, signal.SIGINT)),
    ],
)
def test_a_signal_to_the_group_saves_though_processes_read_for_the_run(
    tokens: Path, tmp_path: Path, start: Start, number: int
) -> None:
    run = tmp_path / "run"
    program = start(*arguments(tokens, run, 1), "--workers", 2, "--json")
    program.wait_for(run / LAST)
    os.killpg(program.process.pid, number)
    code, out, err = program.end()
    assert code == 128 + number, err
    assert json.loads(out)["steps"] == last_step(run)
    assert program.left() == []


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGINT, "group"),
        *(
            pytest.param(n, to, marks=pytest.mark.soak)
            for n in (signal.SIGTERM, signal.SIGINT)
            for to in ("first", "second", "group")
            if (n, to) != (signal.SIGINT, "group")
        ),
    ],
)
def test_a_signal_before_all_processes_are_there_ends_the_run(
    tokens: Path, tmp_path: Path, start: Start, number: int, to: str
) -> None:
    run = tmp_path / "run"
    program = start(*arguments(tokens, run, 2))
    program.wait_for(run / "run.json")
    while not program.children():
        time.sleep(0.02)
    for process in each(program, to):
        os.kill(process, number)
    code, _, err = program.end()
    assert code == 128 + number, err
    assert "Traceback" not in err
    assert program.left() == []
    # The second one alone answers once it can: after a step.
    ended = "stopped" if (number, to) == (signal.SIGINT, "second") else "failed"
    assert json.loads((run / "run.json").read_text())["status"] == ended


def test_a_run_is_written_by_one_command_at_a_time(
    tokens: Path, tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    program = start(*arguments(tokens, run, 1))
    program.wait_for(run / LAST)
    for how in (("--resume", "auto"), ("--resume", run)):
        code, _, err = start("gpt", "train", "--config", run / "config.yaml", *how).end()
        assert code == 1
        assert f"{run}: another process is writing into it" in err
    os.kill(program.process.pid, signal.SIGTERM)
    code, _, err = program.end()
    assert code == 128 + signal.SIGTERM, err
    assert not list(run.glob(".*"))


@pytest.mark.soak
def test_a_second_interrupt_stops_at_once(tokens: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    program = start(*arguments(tokens, run, 1))
    program.wait_for(run / LAST)
    for _ in range(2):
        os.kill(program.process.pid, signal.SIGINT)
    code, _, err = program.end()
    assert code == 130, err
    assert last_step(run) > 0 and program.left() == []


@pytest.mark.parametrize("killed", ["second", pytest.param("first", marks=pytest.mark.soak)])
def test_a_process_that_is_lost_ends_the_run_with_a_sound_checkpoint(
    tokens: Path, tmp_path: Path, start: Start, killed: str
) -> None:
    run = tmp_path / "run"
    program = start(*arguments(tokens, run, 2))
    program.wait_for(run / LAST)
    before = time.monotonic()
    for process in each(program, killed):
        os.kill(process, signal.SIGKILL)
    code, _, err = program.end()
    assert code != 0 and time.monotonic() - before < 60
    end = time.monotonic() + 30
    while program.left() and time.monotonic() < end:
        time.sleep(0.1)
    assert program.left() == []
    assert last_step(run) > 0
    if killed == "second":
        assert "another process of this run ended" in err and "--resume" in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("processes", "kills", "steps"),
    [
        (1, 2, 300),
        (2, 1, STEPS),
        pytest.param(1, 20, 8000, marks=pytest.mark.soak),
        pytest.param(2, 10, 3000, marks=pytest.mark.soak),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(
    tokens: Path,
    tmp_path: Path,
    start: Start,
    uninterrupted: Any,
    processes: int,
    kills: int,
    steps: int,
) -> None:
    run, whole = tmp_path / "run", uninterrupted(processes, steps)
    chance, done = random.Random(0), 0
    call = arguments(tokens, run, processes, max_steps=steps)
    while done < kills:
        program = start(*call)
        mark = run / LAST
        before = mark.stat().st_mtime_ns if mark.exists() else 0
        # Once it is training, at any moment, writing included.
        while program.process.poll() is None:
            if mark.exists() and mark.stat().st_mtime_ns != before:
                break
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.4))
        if program.process.poll() is not None:
            break
        program.kill()
        done += 1
    assert done == kills, "the run ended before it was killed often enough; make it longer"
    for file in (run / "checkpoints").glob("*.ckpt"):
        torch.load(file, weights_only=True)
    code, _, err = start(*call).end(600)
    assert code == 0, err
    assert same_weights(run, whole)
    rows = [(f / "metrics.csv").read_text().splitlines() for f in (run, whole)]
    assert rows[0] == rows[1]
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_torchrun_heals_a_killed_worker(
    tokens: Path, tmp_path: Path, start: Start, uninterrupted: Any, kills: int
) -> None:
    steps = STEPS * kills
    run, whole = tmp_path / "run", uninterrupted(2, steps)
    file = write_config(config(tokens, run, max_steps=steps), tmp_path / "c.yaml")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                "2", "--max-restarts", str(kills), "-m", "tatscli")  # fmt: skip
    program = start("gpt", "train", "--config", file, "--resume", "auto", "--json", before=launcher,
                    TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")  # fmt: skip
    for _ in range(kills):
        before = (run / LAST).stat().st_mtime_ns if (run / LAST).exists() else 0
        while not (run / LAST).exists() or (run / LAST).stat().st_mtime_ns == before:
            assert program.process.poll() is None, program.end()
            time.sleep(0.05)
        os.kill(program.children()[-1], signal.SIGKILL)
        time.sleep(1)
    code, out, err = program.end(300)
    assert code == 0, err
    assert '"status": "finished"' in out
    assert same_weights(run, whole)
