"""Processes that read are ended by the one that they read for, and by no signal to all."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tatscli.core.signals import STOPS, answered_by, heard, held_back, started, until_asked


class Reader(IterableDataset[torch.Tensor]):
    """Reads the number of its process, again and again."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.tensor(os.getpid())


def read(method: str) -> Any:
    return iter(
        DataLoader(
            Reader(), batch_size=None, num_workers=1, prefetch_factor=1,
            worker_init_fn=until_asked, multiprocessing_context=method,
        )
    )  # fmt: skip


@pytest.mark.parametrize("number", STOPS)
def test_a_reader_goes_on_until_the_process_it_reads_for_ends_it(number: int) -> None:
    batches = read("fork")
    reader = int(next(batches))
    subprocess.run(["kill", f"-{int(number)}", str(reader)], check=True)
    for _ in range(5):
        assert int(next(batches)) == reader
    [process] = batches._workers
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_reader_that_is_no_fork_reads_on_too(method: str) -> None:
    batches = read(method)
    reader = int(next(batches))
    time.sleep(1.5)  # more than a look for the process that it reads for
    for _ in range(5):
        assert int(next(batches)) == reader


@pytest.fixture
def other_thread() -> Iterator[None]:
    """A second thread, as torch has some: the system gives it signals that the first blocks."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def told(number: int) -> None:
    """Send a signal to this process, not to this thread, and wait until it is there."""
    os.kill(os.getpid(), number)
    time.sleep(0.05)


@pytest.mark.usefixtures("other_thread")
def test_signals_that_are_held_back_come_at_the_end_or_once_they_are_heard() -> None:
    came: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: came.append("signal"))
    try:
        with held_back(*STOPS):
            told(signal.SIGUSR1)
            came.append("first")
            heard()
            told(signal.SIGUSR1)
            came.append("second")
        with held_back(signal.SIGUSR1), held_back(*STOPS):
            told(signal.SIGUSR1)
            told(signal.SIGUSR1)
            came.append("third")
        told(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert came == ["first", "signal", "signal", "second", "third", "signal", "signal"]


@pytest.mark.usefixtures("other_thread")
def test_what_takes_over_a_signal_that_is_held_back_answers_it_and_can_give_it_back() -> None:
    came: list[str] = []
    mine = signal.signal(signal.SIGUSR1, lambda *_: came.append("before"))
    try:
        with held_back(signal.SIGUSR1):
            told(signal.SIGUSR1)
            previous = answered_by(signal.SIGUSR1, lambda *_: came.append("taken over"))
            assert came == []
            heard()
            signal.signal(signal.SIGUSR1, previous)
            told(signal.SIGUSR1)
        told(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, mine)
    assert came == ["taken over", "before", "before"]


@pytest.mark.usefixtures("other_thread")
def test_a_signal_is_not_lost_while_readers_are_started() -> None:
    class Forking:
        def __iter__(self) -> Iterator[int]:
            told(signal.SIGINT)
            done.append("started")
            return iter([1, 2])

    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        list(started(Forking()))
    assert done == ["started"]


def test_a_reader_whose_process_ended_while_it_was_starting_ends(tmp_path: Path) -> None:
    file = tmp_path / "reads.py"
    file.write_text("""
import os, signal, time
from torch.utils.data import DataLoader
from tatscli.core.signals import attached

def late(worker):
    time.sleep(2)
    attached(worker)

batches = iter(DataLoader(range(2), num_workers=1, worker_init_fn=late))
print(batches._workers[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")
    with subprocess.Popen([sys.executable, file], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        reader, end = process.stdout.readline().strip(), time.monotonic() + 15
    while Path(f"/proc/{reader}").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
