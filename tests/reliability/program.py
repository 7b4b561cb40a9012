"""The program as processes of its own, to be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tatscli.config.files import dump

OUTSIDE = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Program:
    """A call of the program that runs.

    Attributes:
        process: Its first process, which leads a group of its own.
    """

    process: "subprocess.Popen[str]"

    def children(self) -> list[int]:
        """Processes that the first one started to train with it."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                line = (folder / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == self.process.pid and b"tatscli" in line:
                found.append(int(folder.name))
        return found

    def wait_for(self, file: Path, seconds: float = 60) -> None:
        """Waits until a file is there."""
        end = time.monotonic() + seconds
        while not file.exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, f"{file} did not come"
            time.sleep(0.05)

    def end(self, seconds: float = 60) -> tuple[int, str, str]:
        """Waits for its end: code, stdout, stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """Kills it with all its processes, as a power cut does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def left(self) -> list[int]:
        """Processes of its group that are still alive."""
        alive = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, group = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            except (OSError, IndexError, ValueError):
                continue
            if int(group) == self.process.pid and state != "Z":
                alive.append(int(folder.name))
        return alive


Start = Callable[..., Program]


@contextmanager
def starting() -> Iterator[Start]:
    """Starts the program, or another command, in a process group of its own, ended with this."""
    programs: list[Program] = []

    def call(*arguments: object, before: tuple[str, ...] = (), **environment: str) -> Program:
        plain = {k: v for k, v in os.environ.items() if k not in OUTSIDE and k[:3] != "PL_"}
        command = before or (sys.executable, "-m", "tatscli")
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env=plain | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        programs.append(Program(process))
        return programs[-1]

    try:
        yield call
    finally:
        for program in programs:
            program.kill()


def write_config(config: Any, file: Path) -> Path:
    """The settings as a file for --config."""
    file.write_text(dump(config))
    return file


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs end with the same bits: weights, buffers, optimisers and randomness."""
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)
    )
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step")
    return all(_same(first[key], second[key]) for key in keys)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
