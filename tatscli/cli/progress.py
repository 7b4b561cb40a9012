"""Work under way: one calm Rich display on a terminal, elsewhere one plain line an interval."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Task as RichTask
from rich.text import Text

from tatscli.app.reporting import Task

LINE_INTERVAL = 10.0
"""Seconds between plain lines when stderr is not a terminal."""


@contextmanager
def show(screen: Console, what: str, unit: str, total: int | None) -> Iterator[Task]:
    """Show a piece of work while it lasts.

    Args:
        screen: Where.
        what: The work.
        unit: What is counted, plural.
        total: How many there will be, if known.
    """
    if not screen.is_terminal:
        lines = _Lines(screen, what, unit, total)
        yield lines
        lines.close()
        return
    display = _Display(
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
        task = display.add_task(what, total=total or 0, figures="", remark="")
        yield _Bar(display, task)


class _Display(Progress):
    """The bar, and below it a line with the remark, where there is one."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if remark := task.fields["remark"]:
                yield Text(f"  ! {remark}", style="yellow", no_wrap=True, overflow="ellipsis")


class _Bar:
    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display, self._task = display, task

    def update(
        self,
        done: int,
        total: int | None = None,
        figures: Mapping[str, float] | None = None,
        remark: str = "",
    ) -> None:
        self._display.update(self._task, completed=done, total=total, remark=remark)
        if figures:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
            self._display.update(self._task, figures=shown)


class _Lines:
    """One line an interval, readable in a log file."""

    def __init__(self, screen: Console, what: str, unit: str, total: int | None) -> None:
        self._screen, self._what, self._unit, self._total = screen, what, unit, total
        self._last = time.monotonic()
        self._done, self._first = 0, (0, 0.0)
        self._figures: dict[str, float] = {}
        self._remark = ""
        self._said = -1

    def update(
        self,
        done: int,
        total: int | None = None,
        figures: Mapping[str, float] | None = None,
        remark: str = "",
    ) -> None:
        if not self._done:
            # Neither what a run did before it was continued counts, nor the time to get ready.
            self._first = done, time.monotonic()
        self._done, self._total = done, total or self._total
        self._figures |= figures or {}
        self._remark = remark
        if time.monotonic() - self._last >= LINE_INTERVAL:
            self._say()

    def close(self) -> None:
        # What never began, such as the indexing of a known dataset, is not worth a line.
        if self._done and self._done != self._said:
            self._say()

    def _say(self) -> None:
        self._last, self._said = time.monotonic(), self._done
        first, began = self._first
        rate = (self._done - first) / max(self._last - began, 1e-6)
        speed = left = ""
        if rate > 0:
            speed = f"  {rate:.3g} {self._unit}/s"
            if self._total and self._done < self._total:
                left = f"  {_clock((self._total - self._done) / rate)} left"
        of = f"/{self._total}" if self._total else ""
        shown = "".join(f"  {k} {v:.4g}" for k, v in self._figures.items())
        shown += f"  ! {self._remark}" if self._remark else ""
        line = f"{self._what} {self._done}{of} {self._unit}{speed}{left}{shown}"
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
