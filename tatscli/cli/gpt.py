"""``tats gpt``: stage two."""

import typer

from tatscli.cli import console
from tatscli.cli.options import DryRun, Json, Resume, configured
from tatscli.config.files import read_layer
from tatscli.config.train import GPTTrainConfig

app = typer.Typer(
    name="gpt", no_args_is_help=True, help="Stage two: learn to write grids of codes."
)


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats gpt train --data DIR --vqgan RUN")
@configured(presets="gpt", compat="gpt")
def train(
    config: GPTTrainConfig,
    resume: Resume = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train the GPT that writes codes, on videos or on tokens that tats encode wrote.

    Writes a run folder with checkpoints, metrics and pictures of samples. A checkpoint holds the
    VQGAN too, so that it is all that sampling needs.
    """
    if dry_run:
        from tatscli.app.plan import preview

        console.text(preview(config, resume, console.Terminal()))
        return
    from tatscli.app.ahead import check_training

    check_training(config, resume)
    from tatscli.app import train as use_case

    result = use_case.train_gpt(config, resume, console.Terminal())
    # What was trained, which is not asked for again where a run goes on or starts from weights.
    trained = read_layer(result.run / "config.yaml").values["model"]
    if trained["infill"] or trained["n_unmasked"]:
        then = f"tats sample long --gpt KEYS --infill-gpt {result.run} --length 64"
    elif trained["latent_stride"] > 1:
        then = f"tats sample long --gpt {result.run} --infill-gpt INFILL --length 64"
    else:
        then = f"tats sample long --gpt {result.run} --length 64"
    console.trained(result, as_json=json, then=then)
