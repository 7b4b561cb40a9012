"""``tats tokens``: token datasets as a whole."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.stream import ConvertConfig
from tatscli.config.tokens import MergeConfig, VerifyConfig

app = typer.Typer(
    name="tokens",
    no_args_is_help=True,
    help="Token datasets: look into, check, merge and convert them.",
)

Tokens = Annotated[
    Path,
    typer.Argument(
        metavar="TOKENS", help="Token dataset: a folder, or an address such as s3://BUCKET/NAME."
    ),
]


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats tokens info tokens")
def info(tokens: Tokens, json: Json = False) -> None:
    """Say what a token dataset holds, complete or not."""
    from tatscli.app.tokens import token_info

    console.result(token_info(tokens), as_json=json)


@app.command(epilog="Example: tats tokens verify tokens --repair")
@configured()
def verify(tokens: Tokens, config: VerifyConfig, json: Json = False) -> None:
    """Compare every file with its checksum, and name what is damaged or missing.

    The exit code is 1 if anything is. With --repair it is dropped, and the same tats encode, run
    again, writes just that anew.
    """
    from tatscli.app.tokens import require_usable, verify_tokens

    found = verify_tokens(tokens, config, console.Terminal())
    console.result(found, as_json=json)
    require_usable(found)


@app.command(epilog="Example: tats tokens merge tokens-a tokens-b --out tokens")
@configured()
def merge(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="TOKENS...", help="Token datasets of the same VQGAN and geometry."),
    ],
    config: MergeConfig,
    json: Json = False,
) -> None:
    """Write several token datasets as one; the sources are checked and stay as they are.

    Classes are united by name. Merging that was interrupted continues where it stopped.
    """
    from tatscli.app.tokens import merge_tokens

    console.result(merge_tokens(sources, config, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats tokens convert tokens --to litdata --out stream")
@configured()
def convert(tokens: Tokens, config: ConvertConfig, json: Json = False) -> None:
    """Write a token dataset as a stream, for one that is larger than a local disk.

    tats gpt train --data takes the folder, or the address of a copy of it such as
    s3://BUCKET/NAME, whose chunks are fetched as training reaches them.
    """
    from tatscli.app.stream import convert as use_case

    console.result(use_case(tokens, config, console.Terminal()), as_json=json)
