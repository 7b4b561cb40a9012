"""Imports point one way, cli -> app -> core -> config -> errors, and help loads no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tatscli

PACKAGE = Path(tatscli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = ("errors", "config", "core", "app", "cli")
MAY_IMPORT = {
    "errors": set(),
    "config": {"config", "errors"},
    "core": {"core", "config", "errors"},
    "app": {"app", "core", "config", "errors"},
    "cli": {"cli", "app", "config", "errors"},
    "": {"app", "core", "cli"},  # the lazy names of the package, and python -m
}
HEAVY = {"torch", "torchvision", "lightning", "av", "PIL", "numpy", "scipy"}


def layer(file: Path) -> str:
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return part if part in LAYERS else ""


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names that import statements bring, such as tatscli.app.train."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
            yield from at_import_time(child)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = [name.split(".") for name in imported(ast.walk(parsed(file)))]
    reached = {parts[1] for parts in own if parts[0] == "tatscli" and parts[1] != "__version__"}
    assert reached <= MAY_IMPORT[layer(file)]


def test_the_command_line_imports_use_cases_only_inside_functions():
    names = {
        name
        for file in FILES
        if layer(file) == "cli"
        for name in imported(at_import_time(parsed(file)))
        if name.startswith("tatscli.app")
    }
    light = {"reporting.Task", "launch.is_helper", "launch.rank"}
    assert names == {f"tatscli.app.{name}" for name in light}


@pytest.mark.parametrize(
    ("layers", "barred"),
    [
        ({"errors", "config"}, HEAVY | {"typer", "rich"}),
        ({"core"}, {"typer", "rich", "yaml"}),
        ({"app"}, {"typer", "rich"}),
        ({"cli"}, HEAVY),
    ],
    ids=["config", "core", "app", "cli"],
)
def test_layers_leave_alone_what_is_not_theirs(layers, barred):
    used = {
        name.split(".")[0]
        for file in FILES
        if layer(file) in layers
        for name in imported(ast.walk(parsed(file)))
    }
    assert not used & barred


CALL = """
import sys
from tatscli.cli.main import main
sys.argv[0] = "tats"
try:
    main()
except SystemExit:
    loaded = {name.split(".")[0] for name in sys.modules}
    print("loaded:", *sorted(loaded & HEAVY), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "environment", "shown"),
    [
        (["--help"], {}, "vqgan"),
        (["vqgan", "train", "--help"], {}, "--resolution"),
        (
            [],
            {"_TATS_COMPLETE": "complete_bash", "COMP_WORDS": "tats vqgan t", "COMP_CWORD": "2"},
            "train",
        ),
        (["data", "check", "--frames"], {}, ""),
        (["gpt", "train", "--data", "x", "--gpus", "4", "--dry-run"], {}, "gpus: 4"),
    ],
    ids=["help", "help of a command", "completion", "usage error", "dry run"],
)
def test_what_answers_at_once_loads_no_torch(arguments, environment, shown):
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY}\n{CALL}", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(PACKAGE.parent)} | environment,
        check=True,
    )
    assert shown in done.stdout
    assert done.stderr.splitlines()[-1].strip() == "loaded:"


def test_only_training_loads_lightning():
    names = ("sample", "encode", "reconstruct", "port", "evaluate")
    lines = [f"import tatscli.app.{name}" for name in names]
    code = "; ".join([*lines, "import sys; sys.exit('lightning' in sys.modules)"])
    subprocess.run([sys.executable, "-c", code], check=True)
