"""The README's words alone take a newcomer from videos to judged samples."""

import re
import shlex
from pathlib import Path

import pytest

from tatscli.app.data import synthesise
from tatscli.config.synth import SynthConfig

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[str]:
    """The console lines below a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_the_commands_for_own_videos_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tats
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    synth = SynthConfig(train_videos=1, test_videos=1, classes=2, size=64, video_frames=32)
    synthesise(tmp_path / "VIDEOS", synth)
    lines = commands("Your own videos")
    assert len(lines) == 7
    for line in lines:
        # Fewer steps and no worker processes: this is about the words, not the result.
        line = line.replace("--max-steps 200", "--max-steps 2 --workers 0 --device cpu")
        program, *arguments = shlex.split(line)
        assert program == "tats"
        outcome = tats(*arguments)
        assert outcome.exit_code == 0, (line, outcome.stderr)
    assert len(list((tmp_path / "samples" / "long").glob("sample-*.mp4"))) == 16
    assert (tmp_path / "samples" / "short" / "grid.png").is_file()


def test_the_gate_runs_the_readme_test_command() -> None:
    gate = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    [install, test] = commands("Two commands")[1].split(" && ")
    assert install.replace("install", "install --quiet") in gate
    assert test in gate


def test_every_command_is_in_the_table() -> None:
    named = set(re.findall(r"`tats ((?:[a-z]+ ?){1,2})", README.split("## Commands")[1]))
    surface = (Path(__file__).parent / "golden" / "surface.txt").read_text(encoding="utf-8")
    for command in re.findall(r"^tats ([a-z ]+?)$", surface, re.MULTILINE):
        assert command.strip() in {name.strip() for name in named}, command
