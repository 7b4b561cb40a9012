"""Results on stdout, all else on stderr."""

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from tatscli.cli import console, progress


@dataclass(frozen=True)
class Inner:
    score: float


@dataclass(frozen=True)
class Made:
    run: Path
    steps: int
    done: bool
    figures: dict[str, float]
    files: tuple[Path, ...] = ()
    inner: Inner | None = None
    empty: list[str] = field(default_factory=list)


MADE = Made(Path("runs/[a]"), 12, True, {"loss": 0.123456789}, (Path("b"),), Inner(math.nan))


def test_json_is_one_object_on_stdout(capsys):
    console.result(MADE, as_json=True)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "run": "runs/[a]",
        "steps": 12,
        "done": True,
        "figures": {"loss": 0.123456789},
        "files": ["b"],
        "inner": {"score": None},
        "empty": [],
    }


def test_json_has_no_numbers_that_json_does_not_know(capsys):
    console.rows([Inner(math.inf), Inner(1.5)], as_json=True)

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == [
        {"score": None},
        {"score": 1.5},
    ]


def test_people_get_a_table_without_what_is_empty(capsys):
    console.result(MADE, as_json=False)
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert lines[:4] == [
        ["run", "runs/[a]"],
        ["steps", "12"],
        ["done", "yes"],
        ["figures", "loss", "0.123457"],
    ]
    assert "empty" not in captured.out
    assert captured.err == ""


def test_rows_are_a_table_with_a_header(capsys):
    console.rows([Inner(1.5), Inner(2.0)], as_json=False)
    assert capsys.readouterr().out.split() == ["score", "1.5", "2"]


def test_notes_warnings_errors_and_hints_go_to_stderr(capsys):
    terminal = console.Terminal()
    terminal.note("one [a]")
    terminal.warn("two")
    console.error("three", "four")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "note: one [a]\nwarning: two\nerror: three\nhint: four\n"


def test_quiet_leaves_warnings_and_errors(capsys):
    console.be_quiet(True)
    try:
        terminal = console.Terminal()
        terminal.note("one")
        terminal.warn("two")
        with terminal.task("reading", "videos") as task:
            task.update(8, 8)
        console.error("three", "four")
        console.result(Inner(0.5), as_json=False)
    finally:
        console.be_quiet(False)
    captured = capsys.readouterr()
    assert captured.err == "warning: two\nerror: three\nhint: four\n"
    assert captured.out.split() == ["score", "0.5"]


SYNTH = ["data", "synth", "shapes", "--size", 16, "--train-videos", 1, "--test-videos", 0]


@pytest.mark.parametrize("arguments", [["--quiet", *SYNTH], [*SYNTH, "--quiet"]])
def test_every_command_is_quiet_if_told_so_before_it_or_after(tats, arguments):
    quiet = tats(*arguments)
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.out
    # No longer so in the call after it.
    assert "writing videos" in tats("data", "synth", "more", *SYNTH[3:]).err


def test_what_is_logged_is_told_as_notes_and_warnings_are(tats, monkeypatch, tmp_path):
    tats(*SYNTH)
    check = ["data", "check", "shapes", "--sequence-length", 4]
    tats(*check)
    [index] = (tmp_path / "cache" / "index").iterdir()
    index.write_bytes(b"damaged")
    assert f"note: the cached index {index} is damaged" in tats(*check).err
    index.write_bytes(b"damaged")
    assert "damaged" not in tats(*check, "--quiet").err
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    for quiet in ([], ["--quiet"]):
        lines = tats(*check, *quiet).err.splitlines()
        assert sum(line.startswith("warning: the index is made anew") for line in lines) == 1
        assert not any("damaged" in line for line in lines)
    monkeypatch.setenv("RANK", "1")
    assert "warning in process 1: the index is made anew" in tats(*check).err


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


def test_without_a_terminal_progress_is_one_plain_line_an_interval(capsys, clock):
    with console.Terminal().task("training vqgan", "steps", 100) as task:
        for step in range(1, 31):
            task.update(step, figures={"loss": 1 / step})
            clock(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "training vqgan 11/100 steps  1 steps/s  1:29 left  loss 0.09091",
        "training vqgan 21/100 steps  1 steps/s  1:19 left  loss 0.04762",
        "training vqgan 30/100 steps  0.967 steps/s  1:12 left  loss 0.03333",
    ]


def test_short_work_is_one_line(capsys, clock):
    with console.Terminal().task("reading", "videos") as task:
        clock(2)
        task.update(8, 8)
    # How much of the time went into getting ready is not known.
    assert capsys.readouterr().err == "reading 8/8 videos\n"


def test_the_rate_of_a_continued_run_does_not_count_what_was_done_before(capsys, clock):
    with console.Terminal().task("training", "steps", 1000) as task:
        clock(300)  # start-up
        task.update(901)
        clock(10)
        task.update(911)
    assert capsys.readouterr().err.splitlines() == [
        "training 901/1000 steps",
        "training 911/1000 steps  1 steps/s  1:29 left",
    ]


def test_on_a_terminal_progress_is_a_display_with_rate_and_figures():
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress.show(screen, "sampling", "tokens", 50) as task:
        task.update(25, figures={"loss": 0.5})
        task.update(50)
    shown = screen.file.getvalue()
    assert "sampling" in shown
    assert "50/50 tokens" in shown
    assert "loss 0.5" in shown


def test_a_remark_ends_the_plain_line_while_it_holds(capsys, clock):
    with console.Terminal().task("training", "steps", 3) as task:
        for step, remark in ((1, ""), (2, "loader: 60 % [a]"), (3, "")):
            clock(10)
            task.update(step, remark=remark)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ! ")[2] for line in lines] == ["", "loader: 60 % [a]", ""]


@pytest.mark.parametrize(
    ("remarks", "below"),
    [
        (["loader: 60 % [a]"], "  ! loader: 60 % [a]"),
        (["a", "codebook: " + "many words " * 9], f"  ! codebook: {'many words ' * 4}m…"),
        (["loader: 60 % [a]", ""], ""),
    ],
)
def test_a_remark_stands_below_the_bar_on_one_line(remarks, below):
    screen = Console(file=io.StringIO(), force_terminal=True, width=60)
    with progress.show(screen, "training", "steps", 3) as task:
        for step, remark in enumerate(remarks, 1):
            task.update(step, remark=remark)
    end = Text.from_ansi(screen.file.getvalue()).plain.rstrip("\n").splitlines()[-1]
    assert end == below if below else "steps" in end


def test_what_is_said_during_work_stands_above_its_display(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=60)
    monkeypatch.setattr(console, "_err", lambda **_: screen)
    terminal = console.Terminal()
    with terminal.task("training", "steps", 3):
        monkeypatch.setattr(console, "_err", None)  # another screen would write into the bar
        terminal.warn("codebook")
        terminal.note("saved")
    shown = screen.file.getvalue()
    # The line of the bar is wiped before.
    assert "\r\x1b[2K\x1b[33mwarning:\x1b[0m codebook\n" in shown
    assert "\r\x1b[2K\x1b[2mnote:\x1b[0m saved\n" in shown
