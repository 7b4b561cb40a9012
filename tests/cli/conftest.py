"""The program, called in this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tatscli.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a call left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def tats(monkeypatch, capsys, tmp_path) -> Callable[..., Outcome]:
    """Calls the program with arguments, in an empty folder and with an empty cache."""
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

    return call


@pytest.fixture
def receive(monkeypatch) -> Callable[[str], list]:
    """Puts a stop sign in the place of a use case; what reaches it is collected."""

    def replace(use_case: str) -> list:
        received: list = []

        def stop(*arguments: object, **_: object) -> None:
            received.append(arguments)
            raise SystemExit(0)

        monkeypatch.setattr(use_case, stop)
        return received

    return replace
