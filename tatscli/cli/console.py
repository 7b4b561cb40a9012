"""What the terminal shows: results on stdout, everything else on stderr."""

import dataclasses
import json
import logging
import math
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tatscli.app.launch import is_helper, rank
from tatscli.app.reporting import Task
from tatscli.config.words import counted, with_error

if TYPE_CHECKING:
    from tatscli.app.reconstruct import ReconstructionScores
    from tatscli.app.train import TrainResult


_quiet = False
# That of the display under way, which only it can print above, and the process that shows it.
_screen: Console | None = None
_shown_by = 0


def be_quiet(wanted: bool) -> None:
    """Leave out notes and progress from here on, or no longer; warnings and errors stay."""
    global _quiet
    _quiet = wanted


def _out() -> Console:
    return Console(soft_wrap=True, highlight=False, quiet=is_helper())


def _err(*, quiet: bool = False) -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False, quiet=quiet or is_helper())


def _display() -> Console | None:
    """The display under way, if this process shows it: one that it started has but a copy."""
    return _screen if _shown_by == os.getpid() else None


def note(text: str) -> None:
    """One line that is not a result."""
    (_display() or _err(quiet=_quiet)).print(f"[dim]note:[/dim] {escape(text)}")


def warn(text: str) -> None:
    """One line that the user should act on."""
    # What is quiet about a task keeps no warning back.
    screen = None if _quiet else _display()
    (screen or _err()).print(f"[yellow]warning:[/yellow] {escape(text)}")


class _Told(logging.Handler):
    """Shows what is logged as notes and warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            note(record.getMessage())
        elif is_helper():  # a bad video is named once, by the process that finds it
            _of_any_process("[yellow]warning", record.getMessage())
        else:
            warn(record.getMessage())


def tell_logged() -> None:
    """Show what ``core``, which knows no reporter, logs."""
    logger = logging.getLogger("tatscli")
    if not any(isinstance(handler, _Told) for handler in logger.handlers):
        logger.addHandler(_Told())
        logger.setLevel(logging.INFO)


def error(message: str, hint: str = "") -> None:
    """What went wrong, and what mends it; of a further process of a run, too."""
    screen = _of_any_process("[bold red]error", message)
    if hint:
        screen.print(f"[cyan]hint:[/cyan] {escape(hint)}")


def _of_any_process(kind: str, said: str) -> Console:
    """One line, of a further process of a run with its number."""
    screen = Console(stderr=True, soft_wrap=True, highlight=False)
    where = f" in process {rank()}" if is_helper() else ""
    screen.print(f"{kind}{where}:[/] {escape(said)}")
    return screen


def text(content: str) -> None:
    """Plain text as the result."""
    if is_helper():
        return
    sys.stdout.write(content if content.endswith("\n") else content + "\n")


def result(value: Any, *, as_json: bool, title: str = "") -> None:
    """Show a result dataclass: a table for people, one JSON object for programs."""
    plain = _plain(value)
    if as_json:
        text(json.dumps(_finite(plain), indent=2))
        return
    table = Table(title=title or None, show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, item in plain.items():
        if item is None or item == [] or item == "" or item == {}:
            continue
        table.add_row(name.replace("_", " "), Text(_human(item)))
    _out().print(table)


def reconstruction(scores: "ReconstructionScores") -> None:
    """Show how well clips are reconstructed: measures, then usage of the codes and the rest."""
    height, width = scores.size
    split = "held-out" if scores.split == "val" else "training"
    title = (
        f"{counted(scores.clips, f'{split} clip')} of {counted(scores.videos, 'video')}, "
        f"{counted(scores.frames, 'frame')} of {height} x {width}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("mean", "standard error", "lowest", "median", "highest"):
        table.add_column(heading, justify="right")
    for name, measure in scores.measures.items():
        values = ["-" if v is None else f"{v:.4f}" for v in _plain(measure).values()]
        table.add_row(name.replace("_", " "), *values)
    _out().print(table)
    usage = scores.usage
    facts: dict[str, Any] = {
        "identical frames": scores.identical_frames,
        "codes used": f"{usage.used} of {usage.codes} ({usage.fraction:.1%})",
        "dead codes": len(usage.dead),
        "perplexity": usage.perplexity,
        "perplexity by latent frame": usage.perplexity_by_time,
        "tokens seen": usage.tokens,
    }
    if found := scores.distance:
        name = found.measure if found.measure != "rfvd" else "rFVD"
        value = with_error(found.value, found.standard_error)
        facts[name] = f"{value} (protocol {found.protocol}, {counted(found.clips, 'clip')})"
    if scores.skipped:
        facts["skipped"] = scores.skipped
    result(facts, as_json=False)


def trained(outcome: "TrainResult", *, as_json: bool, then: str) -> None:
    """Show a training result and what to do next; a run stopped by a signal exits with its code."""
    shown = vars(outcome)
    if not (as_json or outcome.signal):
        shown = {name: value for name, value in shown.items() if name != "signal"}
    result(shown, as_json=as_json)
    if outcome.signal:
        # Of a further process, the first takes any other code for a failure.
        raise typer.Exit(0 if is_helper() else 128 + outcome.signal)
    note(f"next: {then}")


def rows(values: Sequence[Any], *, as_json: bool, only_json: Collection[str] = ()) -> None:
    """Show result dataclasses of one kind as a table, or as a JSON list.

    Args:
        values: Of one kind.
        as_json: Whether for programs.
        only_json: Fields that the table leaves out.
    """
    plain = [_plain(value) for value in values]
    if as_json:
        text(json.dumps(_finite(plain), indent=2))
        return
    grid = Table(box=None, pad_edge=False)
    shown = [name for name in (plain[0] if plain else ()) if name not in only_json]
    for name in shown:
        grid.add_column(name.replace("_", " "), overflow="fold")
    for row in plain:
        grid.add_row(*(Text(_human(row[name])) for name in shown))
    _out().print(grid)


def findings(found: Iterable[tuple[str, str, str, str, str]]) -> None:
    """Show lines of level, its style, subject, text and fix: one each where nobody looks."""
    out = _out()
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column()
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for level, style, subject, said, fix in found:
        if out.is_terminal:
            grid.add_row(Text(level, style), subject, Text(said))
            if fix:
                grid.add_row("", "", Text(f"fix: {fix}", "cyan"))
        else:
            text(f"{level:8}{subject:12} {said}" + (f"; fix: {fix}" if fix else ""))
    if out.is_terminal:
        out.print(grid)


def aligned(rows: Sequence[tuple[str, ...]], *, right: bool = True) -> str:
    """Lines of cells below each other, on any terminal one line a row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(width) if right else cell
            for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


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


def _finite(plain: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(plain, dict):
        return {name: _finite(item) for name, item in plain.items()}
    if isinstance(plain, list):
        return [_finite(item) for item in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


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
        from tatscli.cli.progress import show  # its Rich parts are slow to import

        global _screen, _shown_by
        around, _screen = _screen, _err(quiet=_quiet)
        _shown_by = os.getpid()
        try:
            with show(_screen, what, unit, total) as task:
                yield task
        finally:
            _screen = around
