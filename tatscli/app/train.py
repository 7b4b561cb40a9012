"""Training of both stages: from settings to a run folder."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import Subset

from tatscli.app.data import VideoClips, decodable, name_problems, open_videos
from tatscli.app.devices import batch_norm_notes, place_training, placement_notes
from tatscli.app.encode import check_fingerprint, clips_for, open_tokens
from tatscli.app.pictures import save_reconstructions, save_samples
from tatscli.app.plan import TrainConfig, settle_rate
from tatscli.app.reporting import Reporter, Silent
from tatscli.app.run import RunFolder
from tatscli.config.files import read_layer
from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.core import weights
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan
from tatscli.core.data.tokens import (
    TokenDataset,
    TokenManifest,
    is_token_dataset,
)
from tatscli.core.models.perceptual import LPIPS
from tatscli.core.original import read_original
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import Chances, class_condition, generate_window
from tatscli.core.training import gpt as gpt_training
from tatscli.core.training import vqgan as vqgan_training
from tatscli.core.training.engine import Clips, Outcome, Placement, epoch_steps, fit
from tatscli.core.training.gpt import GPTTraining
from tatscli.core.training.vqgan import VQGANTraining
from tatscli.errors import ConfigError, DataError

PICTURED_CLIPS = 4
"""Clips in the pictures of a run."""


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
class Content:
    """What a run is trained on, to be recognised when it goes on.

    Attributes:
        fingerprint: Of the training videos' names and lengths, or of the training shards.
        holds: Counts, for people.
    """

    fingerprint: str
    holds: str


def train_vqgan(
    config: VQGANTrainConfig,
    resume: Path | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a VQGAN.

    Args:
        config: Settings.
        resume: Folder of a run to continue instead of starting a new one.
        reporter: Told about progress.
    """
    reporter = reporter or Silent()
    if resume and (done := _finished_already(config, resume, reporter)):
        return done
    placement = place_training(config.compute)
    config = settle_rate(config, placement.world, reporter)
    notes = placement_notes(config.compute, placement)
    if config.model.norm_type == "batch":
        notes += batch_norm_notes(config.compute, placement)
    for text in notes:
        reporter.note(text)
    perceptual = LPIPS(weights.locate("vgg16")) if config.loss.perceptual_weight else None
    videos = open_videos(config.data.data, config.data, config.data.strict, reporter)
    clips = _video_clips(videos, config, reporter)
    content = _videos_content(videos)
    run = _open_run(config, resume, f"vqgan-{config.data.data.name}", content, placement, reporter)
    lightning.seed_everything(config.train.seed, verbose=False)
    rate = videos.rate
    module = VQGANTraining(config, config.optim.learning_rate, rate, perceptual)
    shown = _pictured(clips)

    def draw(training: VQGANTraining, step: int) -> None:
        video = shown.to(training.device)
        made = training.vqgan(video).video.clamp(-0.5, 0.5)
        save_reconstructions(video, made, run.samples / f"reconstructions-{step:07}", rate)

    return _run(
        module,
        clips,
        config,
        placement,
        run,
        content,
        vqgan_training,
        draw,
        resume,
        reporter,
        "vqgan",
    )


def train_gpt(
    config: GPTTrainConfig,
    resume: Path | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a GPT on videos or on a token dataset.

    Args:
        config: Settings.
        resume: Folder of a run to continue instead of starting a new one.
        reporter: Told about progress.
    """
    reporter = reporter or Silent()
    if resume and (done := _finished_already(config, resume, reporter)):
        return done
    placement = place_training(config.compute)
    config = settle_rate(config, placement.world, reporter)
    for text in placement_notes(config.compute, placement):
        reporter.note(text)
    # A run that goes on keeps its VQGAN, whatever became of the one that it was given.
    source = RunFolder.reopen(resume).last if resume else config.vqgan
    if is_token_dataset(config.data.data):
        vqgan, clips, classes, content = _token_clips(config, source)
    else:
        vqgan, clips, classes, content = _clips_to_encode(config, source, reporter)
    architecture = gpt_architecture(config, vqgan, classes)
    if config.model.block_size > architecture.positions:
        reporter.note(
            f"--block-size {config.model.block_size} is larger than the {architecture.positions} "
            "positions that are used"
        )
    run = _open_run(config, resume, f"gpt-{config.data.data.name}", content, placement, reporter)
    lightning.seed_everything(config.train.seed, verbose=False)
    rate = vqgan.rate
    module = GPTTraining(config, architecture, vqgan, classes, config.optim.learning_rate)

    def draw(training: GPTTraining, step: int) -> None:
        numbers = range(PICTURED_CLIPS)
        codes = generate_window(
            training.gpt,
            class_condition(training.gpt, len(classes), numbers),
            Chances(config.train.seed, numbers),
            TokenFilter(top_p=0.92),
        )
        video = training.vqgan.decode(codes).clamp(-0.5, 0.5)
        save_samples(video, run.samples / f"samples-{step:07}", rate)

    return _run(
        module,
        clips,
        config,
        placement,
        run,
        content,
        gpt_training,
        draw,
        resume,
        reporter,
        "gpt",
    )


def gpt_architecture(
    config: GPTTrainConfig, vqgan: TrainedVQGAN, classes: tuple[str, ...]
) -> GPTConfig:
    """The GPT that fits a VQGAN and the clips it will write.

    Raises:
        ConfigError: Vocabulary or block size do not fit; the message has both numbers.
    """
    codes = vqgan.model.config.codes
    if config.model.vocab_size not in (0, codes):
        raise ConfigError(
            f"--vocab-size {config.model.vocab_size}, but the VQGAN has {codes} codes",
            f"leave the option out, or give {codes}",
        )
    _, grid = clips_for(config.data, vqgan)
    if config.model.condition == "label":
        layout = ConditionLayout.labels(len(classes))
    else:
        layout = ConditionLayout.unconditional()
    tokens = layout.tokens + grid[0] * grid[1] * grid[2] - 1
    try:
        return GPTConfig(
            layers=config.model.layers,
            heads=config.model.heads,
            width=config.model.width,
            dropout=config.model.dropout,
            codes=codes,
            grid=grid,
            condition=layout,
            block_size=config.model.block_size or tokens,
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(reason, "leave --block-size out") from None


def _clips_to_encode(
    config: GPTTrainConfig, source: Path | None, reporter: Reporter
) -> tuple[TrainedVQGAN, Clips, tuple[str, ...], Content]:
    if source is None:
        raise ConfigError(
            f"{config.data.data} holds videos, and --vqgan is not given",
            "add --vqgan RUN, or give a token dataset that tats encode wrote",
        )
    vqgan = read_vqgan(source)
    clip, _ = clips_for(config.data, vqgan)
    videos = open_videos(config.data.data, clip, config.data.strict, reporter)
    _check_classes(config, videos.index.classes)
    clips = _video_clips(videos, config, reporter)
    vqgan = TrainedVQGAN(vqgan.model, clip, videos.rate, vqgan.step)
    return vqgan, clips, videos.index.classes, _videos_content(videos)


def _token_clips(
    config: GPTTrainConfig, source: Path | None
) -> tuple[TrainedVQGAN, Clips, tuple[str, ...], Content]:
    folder = config.data.data
    manifest = open_tokens(folder)
    _check_geometry(config, manifest)
    vqgan = read_vqgan(source or folder)
    check_fingerprint(manifest, vqgan, folder, source)
    vqgan = TrainedVQGAN(vqgan.model, manifest.clip, vqgan.rate, vqgan.step)
    _check_classes(config, manifest.classes)
    train, held = TokenDataset(folder, "train"), TokenDataset(folder, "val")
    spread = _spread(len(held), config.train.val_clips)
    clips = Clips(train, len(train), Subset(held, spread))
    return vqgan, clips, manifest.classes, _tokens_content(manifest)


def _check_geometry(config: GPTTrainConfig, manifest: TokenManifest) -> None:
    """Geometry options must agree with the tokens, which are cut already."""
    for name in ("resolution", "sequence_length", "frame_rate", "sample_every_n_frames"):
        asked, held = getattr(config.data, name), getattr(manifest.clip, name)
        if asked and asked != held:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} {asked:g}, but {config.data.data} was encoded with {held:g}",
                f"leave out {option}, or encode again",
            )


def _check_classes(config: GPTTrainConfig, classes: tuple[str, ...]) -> None:
    if config.model.condition == "label" and not classes:
        raise ConfigError(
            f"--condition label, but {config.data.data} has no classes",
            "put the videos into one folder a class, or use --condition none",
        )


def _video_clips(
    videos: VideoClips, config: VQGANTrainConfig | GPTTrainConfig, reporter: Reporter
) -> Clips:
    train = videos.training(config.train.seed, config.data.strict)
    # Validation has no clips to spare: one that breaks hours into the run would end it.
    held, problems = decodable(videos.spread("val", config.train.val_clips))
    if problems and config.data.strict:
        first = problems[0]
        raise DataError(f"{videos.index.root}/{first.path}: {first.reason}", "leave out --strict")
    name_problems(problems, reporter)
    return Clips(train, len(train), held)


def _pictured(clips: Clips) -> Tensor:
    """Clips that the pictures of a run show: training clips, then held-out ones."""
    count = PICTURED_CLIPS // 2
    held = len(clips.validation)  # type: ignore[arg-type]  # every dataset here has a length
    shown = [clips.train[slot, 0] for slot in _spread(clips.slots, count)]
    shown += [clips.validation[place] for place in _spread(held, count)]
    return torch.stack([clip.video for clip in shown])


def _spread(length: int, count: int) -> list[int]:
    """At most so many places, evenly over a length."""
    count = min(count, length)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def _videos_content(videos: VideoClips) -> Content:
    entries = videos.train.entries
    frames = sum(entry.stop - entry.first for entry in entries)
    names = sorted(f"{entry.path} {entry.first} {entry.stop}" for entry in entries)
    return Content(_digest(names), f"{len(entries)} videos of {frames} frames in all")


def _tokens_content(manifest: TokenManifest) -> Content:
    shards = manifest.shards["train"]
    clips = sum(shard.n for shard in shards)
    return Content(_digest(s.sha256 for s in shards), f"{clips} clips in {len(shards)} shards")


def _digest(lines: Iterable[str]) -> str:
    return blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _open_run(
    config: TrainConfig,
    resume: Path | None,
    name: str,
    content: Content,
    placement: Placement,
    reporter: Reporter,
) -> RunFolder:
    if resume is None:
        run = RunFolder.create(config.train.out or Path("runs") / name)
    else:
        run = RunFolder.reopen(resume)
        _check_content(config, run, content)
        _note_order(config, run, placement, reporter)
    run.write_config(config)
    return run


def _finished_already(config: TrainConfig, resume: Path, reporter: Reporter) -> TrainResult | None:
    """The result of a run that has no steps left to do."""
    run = RunFolder.reopen(resume)
    _check_unchanged(config, run)
    step = int(read_original(run.last)["global_step"])
    if step < config.train.max_steps:
        return None
    reporter.note(f"{run.path} finished already at step {step}; raise --max-steps to go on")
    figures = _record(run).get("figures", {})
    return TrainResult(run.path, _result_checkpoint(run), step, "finished", figures, 0)


def _record(run: RunFolder) -> dict[str, Any]:
    """What ``run.json`` holds; nothing where it was lost."""
    try:
        record: dict[str, Any] = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def _check_content(config: TrainConfig, run: RunFolder, content: Content) -> None:
    """A run that goes on must find the clips that it was trained on."""
    stored = _record(run).get("data")
    if stored and stored["fingerprint"] != content.fingerprint:
        same = ", but other ones" if stored["holds"] == content.holds else ""
        raise DataError(
            f"{config.data.data} is not what {run.path} was trained on: it holds {content.holds} "
            f"for training, the run had {stored['holds']}{same}",
            "bring the data back, or start a new run with another --out",
        )


def _note_order(
    config: TrainConfig, run: RunFolder, placement: Placement, reporter: Reporter
) -> None:
    stored, loop = read_layer(run.path / "config.yaml").values["train"], config.train
    world = _record(run).get("world", placement.world)
    before = stored["batch_size"] * stored["accumulate"] * world
    now = loop.batch_size * loop.accumulate * placement.world
    if before != now:
        reporter.note(
            f"{now} clips a step, before it were {before}: the order of clips changes from here on"
        )


def _check_unchanged(config: TrainConfig, run: RunFolder) -> None:
    """A run that goes on must be the same run: same model, same clips, same seed."""
    stored = read_layer(run.path / "config.yaml").values
    now = config.model_dump(mode="json")
    changed = [
        f"{section}.{name}: {old} -> {now[section].get(name)}"
        for section in ("data", "model", "loss")
        for name, old in stored.get(section, {}).items()
        if name not in ("data", "strict") and now[section].get(name) != old
    ]
    if stored["train"]["seed"] != now["train"]["seed"]:
        changed.append(f"train.seed: {stored['train']['seed']} -> {now['train']['seed']}")
    # Neither moves: the run stays in its folder, and its checkpoint holds its VQGAN.
    if now["train"]["out"] not in (stored["train"].get("out"), str(run.path)):
        changed.append(f"train.out: {stored['train'].get('out')} -> {now['train']['out']}")
    if stored.get("vqgan") != now.get("vqgan"):
        changed.append(f"vqgan: {stored.get('vqgan')} -> {now.get('vqgan')}")
    if changed:
        raise ConfigError(
            f"{run.path} was trained with other settings: {'; '.join(changed)}",
            "leave these options out when continuing, or start a new run with another --out",
        )


def _run(
    module: Any,
    clips: Clips,
    config: VQGANTrainConfig | GPTTrainConfig,
    placement: Placement,
    run: RunFolder,
    content: Content,
    stage: Any,
    draw: Callable[[Any, int], None],
    resume: Path | None,
    reporter: Reporter,
    kind: str,
) -> TrainResult:
    loop = config.train
    steps = epoch_steps(clips, loop, placement)
    parameters = sum(p.numel() for p in getattr(module, kind).parameters())
    reporter.note(
        f"{kind} of {parameters / 1e6:.1f} M parameters on {placement.processes} x "
        f"{placement.accelerator}, {clips.slots} training clips ({steps} steps an epoch), "
        f"{len(clips.validation)} validation clips"  # type: ignore[arg-type]
    )
    with (
        run.recorded(
            kind=kind,
            world=placement.world,
            precision=placement.precision,
            data=asdict(content),
        ) as record,
        reporter.task(f"training {kind}", "steps", loop.max_steps) as task,
    ):
        outcome: Outcome = fit(
            module,
            clips,
            loop=loop,
            compute=config.compute,
            placement=placement,
            folder=run.path,
            monitor=stage.MONITOR,
            figures=stage.FIGURES,
            draw=draw,
            on_step=lambda step, figures: task.update(step, figures=figures),
            resume=run.last if resume else None,
        )
        status = "stopped" if outcome.signal else "finished"
        record |= {"status": status, "steps": outcome.step, "figures": outcome.figures}
    if outcome.signal:
        reporter.note(f"saved at step {outcome.step}; continue with --resume {run.path}")
    return TrainResult(
        run.path, _result_checkpoint(run), outcome.step, status, outcome.figures, outcome.signal
    )


def _result_checkpoint(run: RunFolder) -> Path:
    return run.best if run.best.is_file() else run.last
