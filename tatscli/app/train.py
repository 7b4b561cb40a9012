"""Training of both stages: from settings to a run folder."""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from einops import rearrange
from torch.utils.data import default_collate

from tatscli.app.ahead import check_training
from tatscli.app.architecture import gpt_architecture, keep_dropout, settle_gpt, settle_vqgan
from tatscli.app.data import open_data, spread
from tatscli.app.devices import batch_norm_notes, place_training, placement_notes
from tatscli.app.diagnose import Doctor
from tatscli.app.fitting import noted_vqgan
from tatscli.app.launch import is_helper
from tatscli.app.pictures import save_reconstructions, save_samples, save_sounds
from tatscli.app.plan import TrainConfig, settle_rate
from tatscli.app.reporting import Reporter, Silent
from tatscli.app.run import RunFolder, continued
from tatscli.app.training_data import (
    Content,
    GPTStart,
    StageConfig,
    gpt_material,
    held_out,
    must_be_heard,
    video_clips,
    videos_content,
)
from tatscli.config.files import flag, read_layer, resolve
from tatscli.config.train import AUTO, ComputeConfig, GPTTrainConfig, VQGANTrainConfig
from tatscli.config.words import counted
from tatscli.core import weights
from tatscli.core.checkpoint import read_gpt
from tatscli.core.data.bad import BAD_VIDEOS, BadVideos
from tatscli.core.data.clips import Clip, Wanted
from tatscli.core.data.text import TextTokenizer
from tatscli.core.data.tokens import TokenClip
from tatscli.core.models.perceptual import LPIPS
from tatscli.core.original import INPUT_RANGE
from tatscli.core.paths import remote_url
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import (
    Chances,
    generate_between,
    generate_window,
)
from tatscli.core.training import gpt as gpt_training
from tatscli.core.training import vqgan as vqgan_training
from tatscli.core.training.engine import Clips, Outcome, epoch_steps, fit
from tatscli.core.training.gpt import GPTTraining
from tatscli.core.training.placement import Placement
from tatscli.core.training.stage import rate_part
from tatscli.core.training.vqgan import VQGANTraining
from tatscli.errors import DataError, RunError

PICTURED_CLIPS = 4
"""Clips in the pictures of a run."""
PICTURED_BY = TokenFilter(top_p=0.92)
"""How samples in the pictures of a run are drawn."""


@dataclass(frozen=True)
class TrainResult:
    """A run that ended.

    Attributes:
        run: Its folder.
        checkpoint: Its best checkpoint, else its last.
        steps: Steps done in all.
        figures: Last value of each metric.
        status: ``finished`` or ``stopped``.
        signal: Signal that stopped it, 0 if none.
    """

    run: Path
    checkpoint: Path
    steps: int
    status: str
    figures: dict[str, float]
    signal: int


@dataclass(frozen=True)
class Job:
    """A run about to start.

    Attributes:
        config: Settled: what is really used.
        module: What is trained, with the weights it starts from.
        clips: What it is trained on.
        content: The same, to be recognised.
        draw: Draws pictures of the module into files of a number.
        pictured: How many clips of each split they show, in this order.
        pictured_as: What each of the clips is of, or was asked for; empty where that is not known.
        bad: The videos that cannot be read, where it is trained on videos.
    """

    config: StageConfig
    module: VQGANTraining | GPTTraining
    clips: Clips
    content: Content
    draw: Callable[[Any, Path, str], None]
    pictured: dict[str, int]
    pictured_as: list[str]
    bad: BadVideos | None


def train_vqgan(
    config: VQGANTrainConfig,
    resume: Path | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a VQGAN.

    Args:
        config: Settings.
        resume: Folder of a run to continue instead of starting a new one; ``AUTO`` continues the
            one in the folder of the settings, if there is one.
        reporter: Told about progress.
    """
    with ExitStack() as alone:
        return _train("vqgan", config, resume, reporter or Silent(), vqgan_job, alone)


def train_gpt(
    config: GPTTrainConfig,
    resume: Path | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a GPT on videos or on a token dataset.

    Args:
        config: Settings.
        resume: Folder of a run to continue instead of starting a new one; ``AUTO`` continues the
            one in the folder of the settings, if there is one.
        reporter: Told about progress.
    """
    with ExitStack() as alone:
        return _train("gpt", config, resume, reporter or Silent(), gpt_job, alone)


def _train(
    kind: Literal["vqgan", "gpt"],
    config: TrainConfig,
    resume: Path | None,
    reporter: Reporter,
    prepare: Callable[[TrainConfig, Path | None, Placement, Reporter], Job],
    alone: ExitStack,
) -> TrainResult:
    """What both stages do, around the job that each prepares; ``alone`` is of the run folder."""
    _check_requeue(config.compute)
    check_training(config, resume)
    anew = resume == AUTO
    resume = continued(config, resume)
    source: Path | None = None
    step = 0
    if resume:
        run = RunFolder.reopen(resume, alone)
        source, step = run.newest(reporter)
        if step >= config.train.max_steps:
            return _finished_already(run, step, reporter)
        _require_data_again(config, run)
    placement = place_training(config.compute)
    config = settle_rate(config, placement.world, reporter)
    for text in placement_notes(config.compute, placement):
        reporter.note(text)
    job = prepare(config, source, placement, reporter)
    if resume:
        _check_content(job.config, run, job.content)
        _note_order(job.config, run, placement, reporter)
        _note_rate(job.config, run, step, reporter)
    else:
        run = RunFolder.create(job.config.folder, alone, anew=anew)
    run.write_config(job.config)
    if job.bad:
        job.bad.keep(run.path / BAD_VIDEOS)
    clips, loop = job.clips, job.config.train
    steps = epoch_steps(clips, loop, placement)
    parameters = sum(p.numel() for p in getattr(job.module, kind).parameters())
    sharded = ", sharded" if placement.sharded else ""
    held = len(clips.validation)  # type: ignore[arg-type]  # every dataset here has a length
    reporter.note(
        f"{kind} of {parameters / 1e6:.1f} M parameters on {placement.processes} x "
        f"{placement.accelerator}{sharded}, {counted(clips.slots, 'training clip')} "
        f"({counted(steps, 'step')} an epoch), {counted(held, 'validation clip')}"
    )
    at_once = loop.batch_size * loop.accumulate * placement.world
    if at_once > clips.slots:
        reporter.warn(
            f"a step takes {at_once} clips, and there are {clips.slots}, each taken "
            f"{at_once / clips.slots:.1f} times; a smaller --batch-size is enough"
        )
    doctor = Doctor(run, reporter)
    stage = vqgan_training if kind == "vqgan" else gpt_training
    with (
        run.recorded(
            continued_at=step,
            kind=kind,
            world=placement.world,
            precision=placement.precision,
            parameters=parameters,
            codes=job.module.vqgan.config.codes,
            classes=getattr(job.module, "classes", ()),
            data=asdict(job.content),
            pictured=job.pictured,
            pictured_as=job.pictured_as,
        ) as record,
        reporter.task(f"training {kind}", "steps", loop.max_steps) as task,
    ):
        outcome: Outcome = fit(
            job.module,
            clips,
            loop=loop,
            compute=job.config.compute,
            placement=placement,
            folder=run.path,
            monitor=stage.MONITOR,
            figures=stage.FIGURES,
            draw=lambda module, step: job.draw(module, run.samples, f"{step:07}"),
            on_step=lambda step, figures: task.update(step, None, figures, doctor.look(step)),
            resume=source,
        )
        # The last figures, those of the last validation too, were written after the last look.
        doctor.look(outcome.step, is_last=True)
        status = "stopped" if outcome.signal else "finished"
        record |= {"status": status, "steps": outcome.step, "figures": outcome.figures}
    if outcome.signal:
        reporter.note(f"saved at step {outcome.step}; continue with --resume {run.path}")
        if config.compute.requeue and outcome.signal == signal.SIGUSR1 and not is_helper():
            _requeue(reporter)
    return TrainResult(
        run.path, _result_checkpoint(run), outcome.step, status, outcome.figures, outcome.signal
    )


def vqgan_job(
    config: VQGANTrainConfig, source: Path | None, placement: Placement, reporter: Reporter
) -> Job:
    """What is trained; ``source`` is the checkpoint of a run that goes on."""
    start = None
    if config.train.init and not source:
        start = noted_vqgan(config.train.init, reporter)
        config = settle_vqgan(config, config.train.init, start)
    if config.model.norm_type == "batch":
        for text in batch_norm_notes(config.compute, placement):
            reporter.note(text)
    perceptual = LPIPS(weights.locate("vgg16")) if config.loss.perceptual_weight else None
    data = config.data
    is_sound = data.input == "sound"
    wanted = Wanted(input=data.input, needs_sound=data.missing_sound == "skip")
    videos = open_data(data, data, reporter, wanted, config.model)
    if is_sound:
        must_be_heard(videos, "--input sound")
    clips = video_clips(videos, config, reporter)
    rate, chosen = videos.rate, _pictured(clips)
    pictures = list(chain(*chosen.values()))
    shown = torch.stack([clip.video for clip in pictures])
    lightning.seed_everything(config.train.seed, verbose=False)
    module = VQGANTraining(config, config.optim.learning_rate, rate, perceptual)
    if start and (lacking := module.start_from(start)):
        reporter.note(f"{config.train.init} holds no {' and no '.join(lacking)}: new ones start")
    if start and start.input_range != INPUT_RANGE:
        reporter.note(
            f"{config.train.init} was trained on values up to {start.input_range:g}; from here on "
            f"they reach {INPUT_RANGE:g}"
        )

    def draw(training: VQGANTraining, folder: Path, number: str) -> None:
        video = shown.to(training.device)
        made = training.vqgan(video).video.clamp(-INPUT_RANGE, INPUT_RANGE)
        stem = folder / f"reconstructions-{number}"
        if is_sound:
            save_sounds(video, made, stem)
        else:
            save_reconstructions(video, made, stem, rate)

    pictured = {split: len(some) for split, some in chosen.items()}
    return Job(
        config,
        module,
        clips,
        videos_content(videos),
        draw,
        pictured,
        _named(pictures, videos.index.classes),
        videos.bad,
    )


def gpt_job(config: GPTTrainConfig, source: Path | None, _: Placement, reporter: Reporter) -> Job:
    """What is trained; ``source`` is the checkpoint of a run that goes on."""
    start = None
    if source:
        # A run that goes on keeps its VQGAN, whatever became of the one that it was given.
        start = GPTStart(source, read_gpt(source), resumed=True)
        config = keep_dropout(config, start)
    elif config.train.init:
        start = GPTStart(config.train.init, read_gpt(config.train.init, config.vqgan))
        config = settle_gpt(config, start)
    material = gpt_material(config, start, reporter)
    clips = material.clips
    architecture = gpt_architecture(config, material, start)
    if config.model.block_size > architecture.positions:
        reporter.note(
            f"--block-size {config.model.block_size} is larger than the {architecture.positions} "
            "positions that are used"
        )
    lightning.seed_everything(config.train.seed, verbose=False)
    module = GPTTraining(
        config,
        architecture,
        material.vqgan,
        material.classes,
        config.optim.learning_rate,
        material.text,
        material.sound,
    )
    if start and not source:  # the engine loads what goes on
        module.gpt.load_state_dict(start.gpt.model.state_dict())
    shown = held_out(clips, PICTURED_CLIPS)
    if not architecture.infill:
        # As many pictures as ever, where fewer clips are held out.
        shown = [shown[n % len(shown)] for n in range(PICTURED_CLIPS)]
    draw = partial(
        _draw_between if architecture.infill else _draw_samples, config.train.seed, shown
    )
    classes = material.classes if "label" in config.model.conditions else ()
    named = _named(shown, classes, material.text)
    return Job(config, module, clips, material.content, draw, {}, named, material.bad)


def _draw_samples(
    seed: int,
    shown: list[Clip | TokenClip],
    training: GPTTraining,
    folder: Path,
    number: str,
) -> None:
    """Pictures of what a GPT writes for class, caption and sound of some clips."""
    gpt, numbers = training.gpt, range(len(shown))
    clips = _batch(shown, training.device)
    codes = generate_window(gpt, training.condition(clips), Chances(seed, numbers), PICTURED_BY)
    if gpt.config.latent_stride > 1:
        # Key frames are not neighbours in time, so each is decoded by itself.
        alone = training.vqgan.decode(rearrange(codes, "b t h w -> (b t) 1 h w"))
        video = rearrange(alone, "(b t) c f h w -> b c (t f) h w", b=len(codes))
    else:
        video = training.vqgan.decode(codes)
    rate = training.trained_vqgan.rate
    save_samples(video.clamp(-0.5, 0.5), folder / f"samples-{number}", rate)


def _draw_between(
    seed: int,
    shown: list[Clip | TokenClip],
    training: GPTTraining,
    folder: Path,
    number: str,
) -> None:
    """Pictures of clips, and of them with all between the first and last latent frame rewritten."""
    gpt, vqgan, clips = training.gpt, training.vqgan, _batch(shown, training.device)
    codes = training.codes(clips)
    chances = Chances(seed, range(len(codes)))
    first, last = codes[:, 0], codes[:, -1]
    middle = generate_between(gpt, training.condition(clips), first, last, chances, PICTURED_BY)
    written = torch.cat([first[:, None], middle, last[:, None]], dim=1)
    real, made = (vqgan.decode(grid).clamp(-0.5, 0.5) for grid in (codes, written))
    save_reconstructions(real, made, folder / f"samples-{number}", training.trained_vqgan.rate)


def _batch(clips: list[Clip | TokenClip], device: torch.device) -> Clip | TokenClip:
    """Clips as the loader gives them."""
    batch: Clip | TokenClip = default_collate(clips)
    return batch._replace(**{name: field.to(device) for name, field in batch._asdict().items()})


def _pictured(clips: Clips) -> dict[str, list[Clip]]:
    """Clips that the pictures of a run show, by split."""
    count = PICTURED_CLIPS // 2
    trained = [clips.train[slot, 0] for slot in spread(clips.slots, count)]
    return {"train": trained, "val": held_out(clips, count)}


def _named(
    clips: Sequence[Clip | TokenClip], classes: Sequence[str], text: TextTokenizer | None = None
) -> list[str]:
    """The class and the caption of each clip, as far as there are any."""

    def named(clip: Clip | TokenClip) -> str:
        name = classes[clip.label] if classes and clip.label >= 0 else ""
        caption = text.decode(clip.text) if text else ""
        return ", ".join(filter(None, (name, caption)))

    return [named(clip) for clip in clips]


def _finished_already(run: RunFolder, step: int, reporter: Reporter) -> TrainResult:
    """The result of a run that has no steps left to do."""
    reporter.note(f"{run.path} finished already at step {step}; raise --max-steps to go on")
    figures = run.record.get("figures", {})
    return TrainResult(run.path, _result_checkpoint(run), step, "finished", figures, 0)


def _check_requeue(compute: ComputeConfig) -> None:
    if compute.requeue and "SLURM_JOB_ID" not in os.environ:
        raise RunError("--requeue, but this is no SLURM job", "leave out --requeue")


def _requeue(reporter: Reporter) -> None:
    """Ask SLURM to start the job again.

    Lightning's own way does so inside the handler of the signal, where several processes hang.
    """
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reporter.warn(f"scontrol requeue {job} failed: {error}")
    else:
        reporter.note(f"SLURM starts job {job} again")


def _require_data_again(config: TrainConfig, run: RunFolder) -> None:
    """A path that a run was given once may lead nowhere now, or from another folder."""
    data = config.data.data
    stored = read_layer(run.config).values["data"]["data"]
    if str(data) != stored or remote_url(data) or data.expanduser().exists():
        return
    message = f"{data}: no such file or folder; it is what {run.path} is trained on"
    hint, started = "bring it back", run.record.get("folder")
    if started != str(Path.cwd()) and not data.expanduser().is_absolute():
        message += f", as seen from {started or 'the folder in which that was started'}"
        hint = "continue from there"
    raise DataError(message, f"{hint}, or add --data with its path from here")


def _check_content(config: StageConfig, run: RunFolder, content: Content) -> None:
    """A run that goes on must find the clips that it was trained on."""
    stored = run.record.get("data")
    if stored and stored["fingerprint"] != content.fingerprint:
        same = ", but other ones" if stored["holds"] == content.holds else ""
        raise DataError(
            f"{config.data.data} is not what {run.path} was trained on: it holds {content.holds} "
            f"for training, the run had {stored['holds']}{same}",
            "bring the data back, or start a new run with another --out",
        )


def _note_order(
    config: StageConfig, run: RunFolder, placement: Placement, reporter: Reporter
) -> None:
    stored, loop = read_layer(run.path / "config.yaml").values["train"], config.train
    world = run.record.get("world", placement.world)
    before = stored["batch_size"] * stored["accumulate"] * world
    now = loop.batch_size * loop.accumulate * placement.world
    if before != now:
        reporter.note(
            f"{counted(now, 'clip')} a step, {before} before: the order of clips changes from here "
            "on"
        )


def _note_rate(config: StageConfig, run: RunFolder, step: int, reporter: Reporter) -> None:
    """A run that goes on by another rate is no longer the one that was never stopped."""
    before = resolve(type(config), [read_layer(run.config)])
    stored = before.optim.model_dump()
    changed = [
        f"{flag((name,))} {value}, before it was {stored[name]}"
        for name, value in config.optim.model_dump().items()
        if value != stored[name]
    ]
    optim, last, last_before = config.optim, config.train.max_steps, before.train.max_steps
    now, then = (optim.learning_rate * rate_part(optim, n, step) for n in (last, last_before))
    if now != then:
        changed.append(
            f"--max-steps {last}, before it was {last_before}: the learning rate at step {step} is "
            f"{now:.3g} instead of {then:.3g}"
        )
    if changed:
        reporter.note(f"from here on {'; '.join(changed)}")


def _result_checkpoint(run: RunFolder) -> Path:
    return run.best if run.best.is_file() else run.last
