"""``tats encode`` and ``tats decode``: videos to tokens and back."""

from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.encode import DecodeConfig, EncodeConfig

app = typer.Typer()


@app.command(epilog="Example: tats encode --data DIR --vqgan RUN --out tokens")
@configured()
def encode(config: EncodeConfig, json: Json = False) -> None:
    """Turn a dataset of videos into tokens, once, so that GPT training reads no video.

    The folder can be given to tats gpt train and tats decode; it holds the VQGAN too. An encoding
    that was interrupted continues where it stopped.
    """
    from tatscli.app.ahead import check_encoding

    check_encoding(config)
    from tatscli.app.encode import encode as use_case

    console.result(use_case(config, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats decode tokens --limit 16")
@configured()
def decode(
    tokens: Annotated[
        Path, typer.Argument(metavar="TOKENS", help="Token dataset that tats encode wrote.")
    ],
    config: DecodeConfig,
    json: Json = False,
) -> None:
    """Turn tokens back into videos.

    They are a dataset again: each in the folder of its class, with its captions beside it.
    """
    from tatscli.app.ahead import check_decoding

    check_decoding(config)
    from tatscli.app.encode import decode as use_case

    console.result(use_case(tokens, config, console.Terminal()), as_json=json)
