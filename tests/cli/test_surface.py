"""Every command and option, so that a new one shows in review.

``TATS_REGENERATE=1 python -m pytest tests/cli`` writes this record and the completion scripts anew.
"""

import os
import subprocess
import sys
from pathlib import Path

import typer

from tatscli import __version__
from tatscli.cli.main import app
from tatscli.cli.options import SCALARS

RECORD = Path(__file__).parents[1] / "golden" / "surface.txt"


def described(parameter):
    names = "/".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = parameter.metavar
    kind = parameter.type_descriptor.annotation
    plain = kind.__name__ if kind in SCALARS else str(kind).removeprefix("typing.")
    facts = [] if kind is bool else [plain]
    if parameter.required:
        facts.append("required")
    elif parameter.default not in (None, "") and parameter.default is not False:
        facts.append(f"default {parameter.default}")
    if parameter.hidden:
        facts.append("hidden")
    return f"  {names}  {', '.join(facts)}".rstrip()


def walk(command, path):
    yield path
    yield from map(described, command.params)
    for name, sub in getattr(command, "commands", {}).items():
        yield ""
        yield from walk(sub, f"{path} {name}")


def test_the_commands_and_options_are_those_on_record():
    surface = "\n".join(walk(typer.main.get_command(app), "tats")) + "\n"
    if os.environ.get("TATS_REGENERATE"):
        RECORD.write_text(surface, encoding="utf-8")
    assert surface == RECORD.read_text(encoding="utf-8")


def commands(command, path=()):
    subs = getattr(command, "commands", {})
    yield path, bool(subs)
    for name, sub in subs.items():
        yield from commands(sub, (*path, name))


def test_every_command_explains_itself_and_takes_json_where_it_has_a_result(tats):
    for path, is_group in commands(typer.main.get_command(app)):
        short, long = tats(*path, "-h"), tats(*path, "--help")
        assert (short.code, short.err) == (0, "")
        assert short.out == long.out
        if not is_group:
            assert "--json" in short.out
            assert "--quiet" in short.out
            assert "Example: tats" in short.out


def test_help_lists_the_commands_in_the_order_of_the_work(tats):
    page = tats("--help").out
    names = [
        *["demo", "doctor", "data", "vqgan", "encode", "decode", "tokens", "gpt", "sample", "eval"],
        *["report", "import", "export", "plan", "bench", "config", "ckpt", "weights"],
    ]
    assert [
        line.split()[1] for line in page.splitlines() if line.startswith("│ ") and line[2].isalpha()
    ] == names


def test_the_version(tats):
    assert tats("--version").out == f"tats {__version__}\n"


def test_the_module_is_the_program():
    done = subprocess.run(
        [sys.executable, "-m", "tatscli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"tats {__version__}\n"
