"""Completion scripts; see test_surface.py for how to write them anew."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "completions"
SCRIPTS = {"bash": "tats.bash", "zsh": "_tats", "fish": "tats.fish"}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_what_the_program_prints(tats, monkeypatch, shell):
    monkeypatch.setenv("_TATS_COMPLETE", f"source_{shell}")
    printed = tats().out
    file = FOLDER / SCRIPTS[shell]
    if os.environ.get("TATS_REGENERATE"):
        file.write_text(printed, encoding="utf-8")
    assert printed == file.read_text(encoding="utf-8")


@pytest.fixture
def complete(tats, monkeypatch):
    """Completions of a line, as bash asks for them."""

    def call(line):
        words = line.split(" ")
        monkeypatch.setenv("_TATS_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        return tats().out.split()

    return call


def test_commands_complete(complete):
    assert complete("tats v") == ["vqgan"]
    assert complete("tats sample ") == ["short", "long"]


def test_commands_with_settings_complete_word_by_word(complete):
    assert {"vqgan", "sample", "encode"} < set(complete("tats config show "))
    assert complete("tats config show sa") == ["sample"]
    assert complete("tats config show sample ") == ["long", "short"]
    assert complete("tats config show encode ") == []


def test_options_complete_without_hidden_ones(complete):
    assert complete("tats vqgan train --codes 5 --disc-l") == ["--disc-layers", "--disc-loss"]
    assert complete("tats vqgan train --n-co") == []


def test_choices_complete(complete):
    assert complete("tats gpt train --preset ") == ["demo", "tiny"]
    assert complete("tats gpt train --lr-schedule c") == ["cosine", "constant"]
    assert complete("tats weights fetch ") == [
        "i3d",
        "i3d-torchscript",
        "i3d-tf",
        "vgg16",
        "alexnet",
    ]


@pytest.fixture
def place(tmp_path):
    """Runs, one of them with a checkpoint and classes, and samples, as far as a shell sees them."""
    for run, classes in (("runs/stage-one", []), ("runs/stage-two", ["circle", "crane", "star"])):
        checkpoint = tmp_path / run / "checkpoints" / "best.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        (tmp_path / run / "config.yaml").touch()
        (tmp_path / run / "run.json").write_text(json.dumps({"classes": classes}))
    (tmp_path / "samples" / "short").mkdir(parents=True)
    (tmp_path / "samples" / "short" / "samples.json").touch()
    (tmp_path / "runs" / "no-run").mkdir()
    return tmp_path


RUNS = ["runs/stage-one", "runs/stage-two"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tats gpt train --resume ", RUNS),
        ("tats gpt train --resume runs/stage-t", ["runs/stage-two"]),
        ("tats encode --vqgan runs/", RUNS),
        ("tats encode --vqgan runs/n", []),
        ("tats sample short --gpt runs/stage-two/", ["runs/stage-two/checkpoints/best.ckpt"]),
        ("tats vqgan eval ru", RUNS),
        ("tats ckpt verify runs/stage-one ", RUNS),
        ("tats eval fvd DATA ", ["samples/short"]),
        ("tats report ", [*RUNS, "samples/short"]),
        ("tats sample short --label ", ["circle", "crane", "star"]),
        ("tats sample short --gpt runs/stage-two --label c", ["circle", "crane"]),
        ("tats sample short --gpt runs/stage-two/checkpoints/best.ckpt --label s", ["star"]),
        ("tats sample short --gpt runs/stage-one --label ", []),
    ],
)
def test_runs_checkpoints_samples_and_classes_complete(complete, place, line, offered):
    assert complete(line) == offered


def test_names_are_no_patterns(complete, place):
    (place / "[a]" / "run").mkdir(parents=True)
    (place / "[a]" / "run" / "config.yaml").touch()
    assert complete("tats gpt train --resume [") == ["[a]/run"]
    assert complete("tats gpt train --resume *") == []


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The program under its name on the path, as a shell finds it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "tats"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tatscli "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))


LINES = [
    ("tats vqg", ["vqgan"]),
    ("tats gpt train --preset ", ["demo", "tiny"]),
    ("tats report runs/", RUNS),
    ("tats sample short --gpt runs/stage-two --label c", ["circle", "crane"]),
]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(("line", "offered"), LINES)
def test_the_script_completes_in_bash(program, place, line, offered):
    words = " ".join(f"'{word}'" for word in line.split(" "))
    code = (
        f"source '{FOLDER / SCRIPTS['bash']}'; COMP_WORDS=({words}); "
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _tats_completion tats; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert printed("bash", "--norc", "-c", code, at=place) == offered


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
@pytest.mark.parametrize(("line", "offered"), LINES)
def test_the_script_completes_in_zsh(program, place, line, offered):
    # What the script hands to the completion system, which takes a terminal to show it.
    words = " ".join(f"'{word}'" for word in line.split(" "))
    code = (
        "compdef() { : }; _arguments() { print -r -- $@ }; _files() { : }; "
        f"source '{FOLDER / SCRIPTS['zsh']}'; words=({words}); CURRENT=${{#words}}; "
        "_tats_completion"
    )
    [shown] = printed("zsh", "-f", "-c", code, at=place)
    assert [word for word in offered if f'"{word}"' in shown] == offered


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
@pytest.mark.parametrize(("line", "offered"), LINES)
def test_the_script_completes_in_fish(program, place, line, offered):
    code = f"source '{FOLDER / SCRIPTS['fish']}'; complete --do-complete '{line}'"
    shown = printed("fish", "--no-config", "-c", code, at=place)
    assert [word.split("\t")[0] for word in shown] == offered


def printed(*command, at):
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=at)
    return done.stdout.split("\n")[:-1]
