"""``tats vqgan``: stage one."""

import typer

from tatscli.cli import console
from tatscli.cli.options import DryRun, Json, Resume, configured
from tatscli.config.files import dump
from tatscli.config.train import VQGANTrainConfig

app = typer.Typer(no_args_is_help=True, help="Stage one: clips to a small grid of codes.")


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats vqgan train --data DIR --gpus 4")
@configured(presets="vqgan")
def train(
    config: VQGANTrainConfig,
    resume: Resume = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train the VQGAN that turns clips into codes.

    Writes a run folder with checkpoints, metrics and pictures of reconstructions. Without further
    options this is the published recipe: clips of 16 frames of 128 x 128, 16,384 codes.
    """
    if dry_run:
        from tatscli.app.plan import preview

        console.text(dump(preview(config, console.Terminal())))
        return
    from tatscli.app import train as use_case

    result = use_case.train_vqgan(config, resume, console.Terminal())
    console.trained(result, as_json=json, then=f"tats encode --data DIR --vqgan {result.run}")
