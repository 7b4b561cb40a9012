"""``tats sample``: new videos."""

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.sample import SampleLongConfig, SampleShortConfig

app = typer.Typer(
    name="sample", no_args_is_help=True, help="New videos, of training length or of any length."
)


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats sample short --gpt RUN --samples 64")
@configured(compat="sample")
def short(config: SampleShortConfig, json: Json = False) -> None:
    """Sample videos of the length of training.

    What they show is asked for by --label, --text or --audio, as the model was trained; with
    --context, samples go on from real videos, or show what those show. Writes one MP4 a sample, a
    grid, and samples.json with seeds and settings.
    """
    from tatscli.app.ahead import check_sampling

    check_sampling("short", config)
    from tatscli.app.sample import short as use_case

    console.result(use_case(config, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats sample long --gpt RUN --length 64")
@configured(compat="sample")
def long(config: SampleLongConfig, json: Json = False) -> None:
    """Sample videos of any length: a window slides over latent frames, or two GPTs share the work.

    With --infill-gpt, --gpt writes key frames and the other one fills in between them. What they
    show is asked for by --label, --text or --audio, which goes on with them; with --context,
    samples go on from real videos, or show what those show. Writes one MP4 a sample, a grid, and
    samples.json with seeds and settings.
    """
    from tatscli.app.ahead import check_sampling

    check_sampling("long", config)
    from tatscli.app.sample import long as use_case

    console.result(use_case(config, console.Terminal()), as_json=json)
