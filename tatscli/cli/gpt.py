"""``tats gpt``: stage two."""

import shlex

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
    run = shlex.quote(str(result.run))
    gpts = f"--gpt {run}"
    if trained["infill"] or trained["n_unmasked"]:
        gpts = f"--gpt KEYS --infill-gpt {run}"
    elif trained["latent_stride"] > 1:
        gpts += " --infill-gpt INFILL"
    from tatscli.app.asked import OPTIONS

    # Classes are taken in turn by themselves.
    shown = (f" {OPTIONS[kind]}" for kind in ("text", "sound") if kind in trained["condition"])
    then = f"tats sample long {gpts}{''.join(shown)} --length 64"
    console.trained(result, as_json=json, then=then)
