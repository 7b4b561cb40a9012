"""``tats report``: runs and samples on one page."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import complete, console
from tatscli.cli.options import Json

app = typer.Typer()


@app.command(epilog="Example: tats report runs/vqgan --metrics fvd.json")
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders of either stage, folders of samples, or that of the demo.",
            autocompletion=complete.shown,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The page. [dim]\\[default: report.html in the first RUN][/dim]"
        ),
    ] = None,
    metrics: Annotated[
        list[Path] | None,
        typer.Option(
            "--metrics", help="Result of tats eval, kept by --json > FILE; may be repeated."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show runs and samples on one page that needs nothing beside it.

    It holds curves to zoom into, reconstructions, samples that play, figures and settings. Several
    runs are laid over each other, and a run may still be going on.
    """
    from tatscli.app.report.build import report as use_case

    result = use_case(folders, out, metrics or [], console.Terminal())
    console.result(result, as_json=json)
    console.note(f"open {result.page} in a browser")
