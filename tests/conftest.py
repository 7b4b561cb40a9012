"""What all tests share."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tatscli.cli.main import main

# Tensors here are tiny: threads would only wait for each other, most of all on a busy machine.
torch.set_num_threads(1)

# A shell that runs tests in the background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Outcome:
    """What a call left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def tats(monkeypatch, capsys, tmp_path) -> Iterator[Callable[..., Outcome]]:
    """Calls the program in this process, in an empty folder and with an empty cache."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("TATS_DEBUG", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer sets its own

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tats", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark of tests that fetch published files."""
    config.addinivalue_line("markers", "network: fetches published files; run with -m network")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and the network where it was not asked for."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("network") and "network" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="needs the network; run with -m network"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights and clips of a test are the same in every run of it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that are not there pass what is checked ahead of use cases."""
    from tatscli.app import ahead

    for name in vars(ahead):
        if name.startswith(("check_", "require_", "find_", "newest_", "claim_")):
            monkeypatch.setattr(ahead, name, lambda *_: Path())
