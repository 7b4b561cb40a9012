"""``tats demo``: the whole pipeline, small."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.demo import DemoConfig

app = typer.Typer()


@app.command(epilog="Example: tats demo")
@configured()
def demo(
    config: DemoConfig,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; must be empty or new.")
    ] = Path("tats-demo"),
    json: Json = False,
) -> None:
    """Run the whole pipeline on generated videos, on a CPU, in minutes.

    Makes a dataset, trains both stages, encodes, samples short and long, evaluates, and writes
    a page with everything to look at.
    """
    from tatscli.app.demo import demo as use_case
    from tatscli.app.demo import next_commands

    result = use_case(folder, config, console.Terminal())
    console.result(result, as_json=json)
    console.note(f"open {result.page} in a browser; then, on your own videos:")
    for line in next_commands():
        console.note(line)
