"""``tats vqgan``: stage one."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tatscli.cli import complete, console
from tatscli.cli.options import DryRun, Json, Resume, configured
from tatscli.config.evaluate import VQGANEvalConfig
from tatscli.config.train import VQGANTrainConfig

app = typer.Typer(
    name="vqgan", no_args_is_help=True, help="Stage one: clips to a small grid of codes."
)


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats vqgan train --data DIR --gpus 4")
@configured(presets="vqgan", compat="vqgan")
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

        console.text(preview(config, resume, console.Terminal()))
        return
    from tatscli.app.ahead import check_training

    check_training(config, resume)
    from tatscli.app import train as use_case

    result = use_case.train_vqgan(config, resume, console.Terminal())
    data, run = (shlex.quote(str(path)) for path in (config.data.data, result.run))
    vqgan = f"RUN --sound-vqgan {run}" if config.data.input == "sound" else run
    console.trained(result, as_json=json, then=f"tats encode --data {data} --vqgan {vqgan}")


@app.command("eval", epilog="Example: tats vqgan eval runs/vqgan --data DIR --time")
@configured()
def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT",
            help="VQGAN or GPT run folder, checkpoint or published file.",
            autocompletion=complete.checkpoints,
        ),
    ],
    config: VQGANEvalConfig,
    json: Json = False,
) -> None:
    """Score the reconstructions of a VQGAN, and measure whether it is time-agnostic.

    Scores need --data: PSNR, SSIM, LPIPS, usage of the codes, with --rfvd the Fréchet video
    distance. Standard errors count the clips of one video as dependent.

    The measurement over time, --time, is made on a held-out clip where one is long enough, else on
    a generated one. Only a time-agnostic VQGAN can be sampled and decoded at any length without
    seams.
    """
    from tatscli.app.ahead import check_reconstruction

    check_reconstruction(checkpoint, config)
    from tatscli.app.reconstruct import evaluate_vqgan

    found = evaluate_vqgan(checkpoint, config, console.Terminal())
    if json:
        console.result(found, as_json=True)
        return
    if found.reconstruction:
        console.reconstruction(found.reconstruction)
    if found.time:
        console.result(found.time, as_json=False, title=f"time, on {found.time_measured_on}")
    if found.out:
        console.note(f"figures, plots and pictures: {found.out}")
