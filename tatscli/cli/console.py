"""What the terminal shows: results on stdout, everything else on stderr.

On a terminal, work under way is one calm Rich display; elsewhere it is one plain line an interval.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from tatscli.app.reporting import Task

if TYPE_CHECKING:
    from tatscli.app.train import TrainResult

LINE_INTERVAL = 10.0
"""Seconds between plain lines when stderr is not a terminal."""


def _out() -> Console:
    return Console(soft_wrap=True, highlight=False)


def _err() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """One line that is not a result."""
    _err().print(f"[dim]note:[/dim] {escape(text)}")


def warn(text: str) -> None:
    """One line that the user should act on."""
    _err().print(f"[yellow]warning:[/yellow] {escape(text)}")


def error(message: str, hint: str = "") -> None:
    """What went wrong, and what mends it."""
    _err().print(f"[bold red]error:[/bold red] {escape(message)}")
    if hint:
        _err().print(f"[cyan]hint:[/cyan] {escape(hint)}")


def text(content: str) -> None:
    """Plain text as the result."""
    sys.stdout.write(content if content.endswith("\n") else content + "\n")


def result(value: Any, *, as_json: bool, title: str = "") -> None:
    """Show a result dataclass: a table for people, one JSON object for programs."""
    plain = _plain(value)
    if as_json:
        text(json.dumps(plain, indent=2))
        return
    table = Table(title=title or None, show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, item in plain.items():
        if item is None or item == [] or item == "" or item == {}:
            continue
        table.add_row(name.replace("_", " "), Text(_human(item)))
    _out().print(table)


def trained(outcome: "TrainResult", *, as_json: bool, then: str) -> None:
    """Show a training result and what to do next; a run stopped by a signal exits with its code."""
    result(outcome, as_json=as_json)
    if outcome.signal:
        raise typer.Exit(128 + outcome.signal)
    note(f"next: {then}")


def rows(values: Sequence[Any], *, as_json: bool) -> None:
    """Show result dataclasses of one kind as a table, or as a JSON list."""
    plain = [_plain(value) for value in values]
    if as_json:
        text(json.dumps(plain, indent=2))
        return
    grid = Table(box=None, pad_edge=False)
    for name in plain[0] if plain else ():
        grid.add_column(name.replace("_", " "), overflow="fold")
    for row in plain:
        grid.add_row(*(Text(_human(item)) for item in row.values()))
    _out().print(grid)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _human(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "  ".join(f"{k} {_human(v)}" for k, v in value.items())
    if isinstance(value, list):
        inline = all(isinstance(v, (int, float)) for v in value)
        return (" ".join if inline else "\n".join)(_human(v) for v in value)
    return str(value)


class Terminal:
    """The reporter of the command line."""

    def note(self, text: str) -> None:
        """Say one line that is not a result."""
        note(text)

    def warn(self, text: str) -> None:
        """Say one line that the user should act on."""
        warn(text)

    @contextmanager
    def task(self, what: str, unit: str, total: int | None = None) -> Iterator[Task]:
        """Show a piece of work while it lasts."""
        screen = _err()
        if not screen.is_terminal:
            lines = _Lines(screen, what, unit, total)
            yield lines
            lines.close()
            return
        display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
            _Rate(unit),
            _TimeLeft(),
            TextColumn("{task.fields[figures]}", style="cyan"),
            console=screen,
            refresh_per_second=4,
        )
        with display:
            task = display.add_task(what, total=total or 0, figures="")
            yield _Bar(display, task)


class _Bar:
    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display, self._task = display, task

    def update(
        self, done: int, total: int | None = None, figures: Mapping[str, float] | None = None
    ) -> None:
        self._display.update(self._task, completed=done, total=total)
        if figures:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
            self._display.update(self._task, figures=shown)


class _Lines:
    """One line an interval, readable in a log file."""

    def __init__(self, screen: Console, what: str, unit: str, total: int | None) -> None:
        self._screen, self._what, self._unit, self._total = screen, what, unit, total
        self._start = self._last = time.monotonic()
        self._done = self._first = 0
        self._figures: dict[str, float] = {}
        self._said = -1

    def update(
        self, done: int, total: int | None = None, figures: Mapping[str, float] | None = None
    ) -> None:
        if self._said < 0 and not self._done:
            self._first = max(0, done - 1)
        self._done, self._total = done, total or self._total
        self._figures |= figures or {}
        if time.monotonic() - self._last >= LINE_INTERVAL:
            self._say()

    def close(self) -> None:
        if self._done != self._said:
            self._say()

    def _say(self) -> None:
        self._last, self._said = time.monotonic(), self._done
        seconds = max(self._last - self._start, 1e-6)
        rate = (self._done - self._first) / seconds
        left = ""
        if self._total and rate > 0 and self._done < self._total:
            left = f"  {_clock((self._total - self._done) / rate)} left"
        of = f"/{self._total}" if self._total else ""
        shown = "".join(f"  {k} {v:.4g}" for k, v in self._figures.items())
        line = f"{self._what} {self._done}{of} {self._unit}  {rate:.3g} {self._unit}/s{left}{shown}"
        self._screen.print(line, markup=False)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: RichTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} {self._unit}/s" if speed else "", style="dim")


class _TimeLeft(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        left = task.time_remaining
        return Text(f"{_clock(left)} left" if left else "", style="dim")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
