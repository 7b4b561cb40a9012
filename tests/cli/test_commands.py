"""What is known of commands without importing them is what they say themselves."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

import tatscli.cli
from tatscli.cli.commands import COMMANDS, defined_in
from tatscli.cli.main import app

FOLDER = Path(tatscli.cli.__file__).parent
SHARED = {"__init__", "commands", "complete", "console", "main", "options", "progress"}
MODULES = {file.stem for file in FOLDER.glob("*.py")} - SHARED


@pytest.mark.parametrize("listed", COMMANDS, ids=lambda listed: listed.name)
def test_a_listed_line_is_the_first_of_the_help(listed):
    command = typer.main.get_command(app).commands[listed.name]
    assert command.name == listed.name
    assert command.help.split("\n\n")[0] == listed.line


def test_every_command_of_every_module_is_listed_once():
    defined = [name for module in MODULES for name in defined_in(module)]
    assert sorted(defined) == sorted(listed.name for listed in COMMANDS)


CALL = """
import sys
from tatscli.cli.main import main
sys.argv[0] = "tats"
try:
    main()
except SystemExit:
    print("loaded:", *sys.modules, file=sys.stderr)
"""


def loaded(*arguments, completing=None):
    """Shown by the program on stdout, and the modules it has imported."""
    environment = {"PATH": "", "PYTHONPATH": str(FOLDER.parents[1])}
    if completing:
        words = {"COMP_WORDS": completing, "COMP_CWORD": str(completing.count(" "))}
        environment |= {"_TATS_COMPLETE": "complete_bash"} | words
    done = subprocess.run(
        [sys.executable, "-c", CALL, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return done.stdout, set(done.stderr.rpartition("loaded: ")[2].split())


def of_commands(modules):
    return {name for name in MODULES if f"tatscli.cli.{name}" in modules}


@pytest.mark.parametrize(
    ("arguments", "completing"),
    [(["--help"], ""), (["sampel"], ""), ([], "tats v"), ([], "tats --ver")],
    ids=["help", "a mistyped command", "completion of a command", "completion of an option"],
)
def test_what_needs_no_command_imports_none(arguments, completing):
    shown, modules = loaded(*arguments, completing=completing)
    assert of_commands(modules) == set()
    assert "pydantic" not in modules
    assert "vqgan" in shown or "--version" in shown or arguments == ["sampel"]


def test_completion_of_a_command_imports_nothing_to_draw_with():
    assert "rich" not in loaded(completing="tats v")[1]


@pytest.mark.parametrize(
    ("arguments", "completing", "module"),
    [
        (["vqgan", "--help"], "", "vqgan"),
        (["data", "synth", "--help"], "", "data"),
        (["export", "--help"], "", "port"),
        ([], "tats sample s", "sample"),
    ],
)
def test_a_command_imports_no_other(arguments, completing, module):
    assert of_commands(loaded(*arguments, completing=completing)[1]) == {module}
