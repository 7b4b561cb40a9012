"""The README's words alone take a newcomer from videos to judged samples."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tatscli.app.data import synthesise
from tatscli.cli import gpt, sample, vqgan
from tatscli.cli.options import flag, obsolete, settings
from tatscli.config.base import Published
from tatscli.config.synth import SynthConfig

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[str]:
    """The console lines below a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_the_commands_for_own_videos_run_one_after_the_other(tmp_path: Path, tats) -> None:
    synth = SynthConfig(train_videos=1, test_videos=1, classes=2, size=64, video_frames=32)
    synthesise(tmp_path / "VIDEOS", synth)
    lines = commands("Your own videos")
    assert len(lines) == 7
    for line in lines:
        # Fewer steps and samples, no worker processes: this is about the words, not the result.
        line = line.replace("--max-steps 200", "--max-steps 1 --workers 0 --val-clips 1")
        line = line.replace("--name", "--samples 2 --name")
        program, *arguments = shlex.split(line)
        assert program == "tats"
        outcome = tats(*arguments)
        assert outcome.code == 0, (line, outcome.err)
    assert len(list((tmp_path / "samples" / "long").glob("sample-*.mp4"))) == 2
    assert (tmp_path / "samples" / "short" / "grid.png").is_file()
    # What they made serves in Python, too.
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = program.replace("length=16, samples=4", "length=5, samples=1")
    made: dict[str, Any] = {}
    exec(program.replace("frame_rate=8", 'frame_rate=8, features="random"'), made)
    assert made["reconstruction"].shape == made["video"].shape == made["more"].shape
    assert made["videos"].shape == (1, 3, 20, 64, 64)
    assert made["distance"] > 0


def test_the_commands_for_long_videos_run_one_after_the_other(tmp_path: Path, tats) -> None:
    lines = commands("Long videos")
    assert len(lines) == 10
    for line in lines:
        line = line.replace("--train-videos 64", "--train-videos 1 --test-videos 1")
        line = line.replace("--max-steps 1000 ", "").replace(
            "--preset demo", "--preset demo --max-steps 1"
        )
        line = line.replace("--frames 256", "--frames 40 --samples 1")
        workers = " --workers 0 --val-clips 1" if " train " in line else ""
        program, *arguments = shlex.split(line + workers)
        assert program == "tats"
        outcome = tats(*arguments)
        assert outcome.code == 0, (line, outcome.err)
    for name in ("plain", "hierarchical"):
        assert (tmp_path / "samples" / name / "sample-0000.mp4").is_file()


def test_the_commands_for_conditions_run_one_after_the_other(tmp_path: Path, tats) -> None:
    lines = commands("Conditions")
    assert len(lines) == 12
    for line in lines:
        line = line.replace(
            "--train-videos 64 --test-videos 16", "--classes 4 --train-videos 1 --test-videos 1"
        )
        line = re.sub(" --max-steps [0-9]+", "", line)
        line = line.replace("--preset demo", "--preset demo --max-steps 1")
        line = line.replace("--samples 256", "").replace("--name", "--samples 2 --name")
        workers = " --workers 0 --val-clips 1" if " train " in line else ""
        program, *arguments = shlex.split(line + workers)
        assert program == "tats"
        outcome = tats(*arguments)
        assert outcome.code == 0, (line, outcome.err)
    for name in ("stars", "text", "heard", "sound"):
        assert (tmp_path / "samples" / name / "sample-0001.mp4").is_file()


def test_pictures_are_there_and_nothing_is_left_to_fill_in() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert len(pictures) >= 2
    for picture in pictures:
        assert (Path(__file__).parents[1] / picture).is_file()
    assert re.findall(r"^[A-Z]{5,}$", README, re.MULTILINE) == []


def test_the_gate_runs_the_readme_test_command() -> None:
    gate = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    [install, test] = commands("Two commands")[1].split(" && ")
    assert install.replace("install", "install --quiet") in gate
    assert test in gate


def test_every_command_is_in_the_table() -> None:
    surface = (Path(__file__).parent / "golden" / "surface.txt").read_text(encoding="utf-8")
    commands = re.findall(r"^tats ([a-z ]+)$", surface, re.MULTILINE)
    leaves = [c for c in commands if not any(other.startswith(f"{c} ") for other in commands)]
    assert len(leaves) >= 12
    table = README.split("\n## Commands\n")[1].split("\n\n")[0]
    assert [leaf for leaf in leaves if f"`tats {leaf}" not in table] == []


COMMANDS = [vqgan.train, gpt.train, sample.short, sample.long]


def options(text: str) -> list[str]:
    """The options that a cell or a paragraph names, with dashes."""
    return [name.replace("_", "-") for name in re.findall(r"`(--\w[\w-]*)", text)]


@pytest.fixture
def coming_from_tats() -> tuple[dict[str, list[str]], list[str]]:
    """Published options by row, with what is here instead; and those of the same name."""
    section = README.split("\n## Coming from TATS\n")[1].split("\n## ")[0]
    table = section.split("| published option | here |\n")[1].split("\n\n")[0]
    rows = [row.replace(r"\|", "").strip("|").split(" | ") for row in table.splitlines()[1:]]
    new_names = {name: options(here) for published, here in rows for name in options(published)}
    same = section.split("Every other one")[1].split("Not there:")[0]
    return new_names, options(same)


def test_every_published_option_of_another_name_is_in_the_table(coming_from_tats) -> None:
    new_names, _ = coming_from_tats
    found = {}
    for command in COMMANDS:
        model = command.configured.model
        for leaf in settings(model):
            for item in leaf.field.metadata:
                if isinstance(item, Published):
                    found.setdefault(flag((item.name,)), set()).add(flag(leaf.key))
        for name in obsolete(model):
            found.setdefault(flag((name,)), set())
    missing = {name: here for name, here in found.items() if not here <= {*new_names.get(name, ())}}
    assert missing == {}
    assert set(new_names) == set(found)


def test_options_of_the_same_name_are_there(coming_from_tats) -> None:
    _, same = coming_from_tats
    leaves = [leaf for command in COMMANDS for leaf in settings(command.configured.model)]
    ours = {flag(leaf.key) for leaf in leaves}
    ours |= {flag((f"no_{leaf.name}",)) for leaf in leaves if leaf.field.annotation is bool}
    assert len(same) >= 15
    assert set(same) <= ours
