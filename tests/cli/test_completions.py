"""Completion scripts; see test_surface.py for how to write them anew."""

import os
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
