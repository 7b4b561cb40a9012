"""What a training run will take: a few real steps of it, measured; ``app.estimate`` sums up."""

import gc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import ceil, prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch.utils.data import Subset

from tatscli.app.devices import place_training
from tatscli.app.estimate import (
    Costs,
    DiskPlan,
    MemoryPlan,
    Part,
    Phase,
    TrainPlan,
    kept_checkpoints,
    largest_batch,
    phase_plans,
    phases,
    saved_checkpoints,
    shortened,
    steady,
    time_parts,
    with_effective_batch,
)
from tatscli.app.plan import TrainConfig, settle_rate
from tatscli.app.reporting import Reporter, Silent
from tatscli.app.run import write_atomically
from tatscli.app.train import Job, gpt_job, vqgan_job
from tatscli.app.training_data import StageConfig
from tatscli.config.files import dump
from tatscli.config.plan import GPTPlanConfig, VQGANPlanConfig
from tatscli.config.synth import SynthConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.config.vqgan import VQGANLossConfig
from tatscli.core.checkpoint import read_vqgan
from tatscli.core.data.clips import ConsumedBatchSampler
from tatscli.core.data.loading import Sheltered, checked
from tatscli.core.data.synth import write_dataset
from tatscli.core.files import unwritable
from tatscli.core.memory import PeakMemory, free_memory
from tatscli.core.training import gpt as gpt_training
from tatscli.core.training import vqgan as vqgan_training
from tatscli.core.training.engine import Clips, epoch_steps, fit
from tatscli.core.training.gpt import GPTTraining
from tatscli.core.training.measure import FixedMemory, Watch
from tatscli.core.training.placement import Placement, choose_workers
from tatscli.errors import ConfigError, DeviceError, RunError

PROBED_STEPS = 2
"""Steps with a larger batch: the second one has the state of the optimisers."""
VALIDATED_BATCHES = 4
READ_CLIPS = 8
"""Validation batches and training clips that are read at most."""
MADE_VIDEOS = 4
"""Videos that are made up of each of two classes, where there is no data."""
_ENDLESS = 10**9

Prepare = Callable[[Any, Path | None, Placement, Reporter], Job]


def plan_vqgan(
    config: VQGANPlanConfig, write: Path | None = None, reporter: Reporter | None = None
) -> TrainPlan:
    """Plan a VQGAN run.

    Args:
        config: Settings of the run and of the plan.
        write: File that gets the settings of the run as planned.
        reporter: Told about progress.

    Raises:
        ConfigError: Settings contradict each other, or the file is there already.
        DeviceError: Not even one clip at once fits.
    """
    reporter = reporter or Silent()
    run = _given(VQGANTrainConfig, config)
    with _workplace(run, write) as folder:
        has_data = "data" in config.data.model_fields_set
        if not has_data:
            run = _made_up(run, folder, reporter)
        return _plan("vqgan", run, config, vqgan_job, folder, has_data, write, reporter)


def plan_gpt(
    config: GPTPlanConfig, write: Path | None = None, reporter: Reporter | None = None
) -> TrainPlan:
    """Plan a GPT run; see ``plan_vqgan``."""
    reporter = reporter or Silent()
    run = _given(GPTTrainConfig, config)
    with _workplace(run, write) as folder:
        has_data = "data" in config.data.model_fields_set
        if not has_data:
            if run.vqgan is None:
                raise ConfigError(
                    "a GPT is planned on the codes of a VQGAN, and neither --data nor --vqgan is "
                    "given",
                    "add --vqgan RUN, or --data TOKENS",
                )
            run = _made_up(run, folder, reporter)
        return _plan("gpt", run, config, gpt_job, folder, has_data, write, reporter)


def check_free(write: Path | None) -> None:
    """A plan is written to a new file.

    Raises:
        ConfigError: There is a file.
    """
    if write and write.exists():
        raise ConfigError(
            f"--write {write}: it exists; nothing was overwritten", "choose another name"
        )


def program_seconds(module: str) -> float:
    """Seconds in which the program starts and loads what a command needs."""
    start = time.perf_counter()
    code = f"import tatscli.cli.main, {module}"
    # By itself, since it would answer a Ctrl-C, too: with its traceback.
    subprocess.run([sys.executable, "-c", code], check=False, process_group=0)
    return time.perf_counter() - start


@contextmanager
def temporary_folder(near: Path) -> Iterator[Path]:
    """A folder on the disk of another, which need not be there yet; removed at the end.

    Raises:
        RunError: The disk cannot be written.
    """
    parent = next(place for place in (near, *near.absolute().parents) if place.is_dir())
    try:
        # Workers of a loader may still hold files when it is removed.
        made = tempfile.TemporaryDirectory(
            prefix=".tats-plan-", dir=parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise unwritable(parent, error, RunError) from error
    with made as name:
        yield Path(name)


def _given(kind: Any, config: VQGANPlanConfig | GPTPlanConfig) -> Any:
    """The settings of the run alone, as far as they were given."""
    values = config.model_dump(exclude_unset=True, exclude={"plan"})
    data = {"data": config.data.data} | values.get("data", {})
    return kind.model_validate(values | {"data": data})


@contextmanager
def _workplace(config: StageConfig, write: Path | None) -> Iterator[Path]:
    check_free(write)
    with temporary_folder(config.folder) as folder:
        yield folder


def _made_up(config: TrainConfig, folder: Path, reporter: Reporter) -> TrainConfig:
    """The same on made-up videos, as large and as long as asked for."""
    clip: Any = config.data
    if isinstance(config, GPTTrainConfig):
        assert config.vqgan is not None
        clip = config.data.clip(read_vqgan(config.vqgan).clip)
    rate = max(1, round(clip.frame_rate)) if clip.frame_rate else 8
    videos = SynthConfig(
        classes=2,
        train_videos=MADE_VIDEOS,
        test_videos=MADE_VIDEOS,
        size=max(16, clip.resolution),
        video_frames=2 * clip.sequence_length,
        rate=rate,
    )
    with reporter.task("making up videos", "videos") as task:
        made = write_dataset(folder / "videos", videos, task.update).folder
    reporter.note(
        "without --data, clips are made up: what reading yours takes, and validation each epoch, "
        "is not known and not counted"
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"data": made})})


@dataclass(frozen=True)
class _Measured:
    """What a short run gave.

    Attributes:
        config: Of the job, settled.
        costs: Without loading the program.
        memory: In it.
        parameters: By network.
        clip_tokens: Tokens of a clip.
        clips: Its data.
        checkpoint: Bytes of one.
        pictures: Bytes of those of one step.
        largest: Clips that fit at once.
        steps: That were done.
    """

    config: StageConfig
    costs: Costs
    memory: MemoryPlan
    parameters: dict[str, int]
    clip_tokens: int
    clips: Clips
    checkpoint: int
    pictures: int
    largest: int | None
    steps: int


def _plan(
    kind: Literal["vqgan", "gpt"],
    run: TrainConfig,
    config: VQGANPlanConfig | GPTPlanConfig,
    prepare: Prepare,
    folder: Path,
    has_data: bool,
    write: Path | None,
    reporter: Reporter,
) -> TrainPlan:
    placement, processes = _place(run)
    run, notes = with_effective_batch(run, processes, config.plan.effective_batch)
    with reporter.task("loading the program", "times", 1):
        program = program_seconds("tatscli.app.train")
    bench = _Bench(kind, prepare, placement, config.plan.measured_steps, reporter)
    run, found = _that_fits(bench, run, folder, reporter)
    # From here on the batch is what fits.
    run = settle_rate(run, processes, reporter)
    for text in notes:
        reporter.note(text)
    if processes > 1:
        shared = ", nor that they share its cores" if placement.accelerator == "cpu" else ""
        reporter.note(
            f"one of {processes} processes was measured; what they wait for each other is "
            f"not counted{shared}"
        )
    if processes > 1 and isinstance(run, GPTTrainConfig) and run.compute.fsdp:
        reporter.note(
            f"--fsdp was left out: with it a process takes 1/{processes} of the memory of the "
            "GPT's weights, gradients and optimiser"
        )
    loop, reached = run.train, phases(run)
    costs, effective = found.costs, loop.batch_size * loop.accumulate * processes
    costs = replace(costs, start=costs.start + program)
    epoch = held = None
    if has_data:
        world = Placement(placement.accelerator, processes, 1, placement.precision)
        epoch = epoch_steps(found.clips, loop, world)
        held = len(found.clips.validation)  # type: ignore[arg-type]  # all datasets have a length
    share = ceil((loop.val_clips if held is None else held) / processes)
    time_of = time_parts(loop, reached, costs, epoch, ceil(share / loop.batch_size))
    stepping = sum(phase.steps * each for phase, each in zip(reached, costs.steps, strict=True))
    seconds = sum(part.seconds for part in time_of)
    rate = loop.max_steps / stepping
    kept = kept_checkpoints(loop, saved_checkpoints(loop, seconds))
    pictures = found.pictures * _times(time_of, "pictures")
    planned = found.config.model_copy(
        update={"train": run.train, "loss": run.loss, "optim": run.optim}
    )
    if write:
        left_out = {} if has_data else {"data": {"data"}}
        write_atomically(write, dump(planned, left_out))
        data = "" if has_data else " --data DIR"
        reporter.note(f"next: tats {kind} train --config {write}{data}")
    return TrainPlan(
        kind=kind,
        device=placement.accelerator,
        precision="float32" if placement.precision == "32-true" else "bf16",
        processes=processes,
        parameters=found.parameters,
        steps=loop.max_steps,
        epochs=None if epoch is None else loop.max_steps / epoch,
        batch_size=loop.batch_size,
        accumulate=loop.accumulate,
        effective_batch=effective,
        largest_batch=found.largest,
        learning_rate=run.optim.learning_rate,
        phases=list(phase_plans(reached, costs, effective)),
        steps_per_second=rate,
        clips_per_second=rate * effective,
        tokens_per_second=rate * effective * found.clip_tokens,
        time=time_of,
        seconds=seconds,
        hours=seconds / 3600,
        memory=found.memory,
        disk=DiskPlan(
            checkpoint=found.checkpoint,
            checkpoints=kept,
            pictures=pictures,
            total=kept * found.checkpoint + pictures,
            free=shutil.disk_usage(folder).free,
        ),
        measured_steps=found.steps,
        written=str(write or ""),
    )


def _place(config: StageConfig) -> tuple[Placement, int]:
    """Where one process is measured, and how many the run will have.

    More GPUs than are here can be planned for.
    """
    compute = config.compute
    # Where there is none, the error has the number that was asked for.
    gpus = min(compute.gpus, torch.cuda.device_count()) or compute.gpus
    placement = place_training(compute.model_copy(update={"gpus": gpus}))
    processes = (compute.gpus or placement.processes) * placement.nodes
    single = Placement(placement.accelerator, 1, 1, placement.precision)
    return single, processes


def _times(parts: Sequence[Part], name: str) -> int:
    return next(part.times for part in parts if part.name == name)


def _that_fits(
    bench: "_Bench", run: TrainConfig, folder: Path, reporter: Reporter
) -> tuple[TrainConfig, _Measured]:
    """What a run costs, with as many clips at once as asked for, or as fit."""
    while True:
        try:
            return run, bench.measure(run, folder / f"batch-{run.train.batch_size}")
        except DeviceError as error:
            batch = run.train.batch_size
            # Other errors of a device have no cause in torch.
            if not isinstance(error.__cause__, RuntimeError | MemoryError) or batch == 1:
                raise
        parts = next(number for number in range(2, batch + 1) if batch % number == 0)
        loop = run.train.model_copy(
            update={"batch_size": batch // parts, "accumulate": run.train.accumulate * parts}
        )
        reporter.note(
            f"--batch-size {batch} does not fit into memory; {loop.batch_size} with --accumulate "
            f"{loop.accumulate} is the same step"
        )
        run = run.model_copy(update={"train": loop})
        _forget()


@dataclass(frozen=True)
class _Bench:
    """Runs a job for a few steps.

    Attributes:
        kind: Of the job.
        prepare: Makes it.
        placement: Of the one process.
        steps: In all.
        reporter: Told about progress.
    """

    kind: Literal["vqgan", "gpt"]
    prepare: Prepare
    placement: Placement
    steps: int
    reporter: Reporter

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.placement.accelerator)

    def measure(self, config: StageConfig, folder: Path) -> _Measured:
        """What a run costs, and the largest batch that fits."""
        found = self._short_run(config, folder)
        shutil.rmtree(folder)
        return self._with_largest(found, config, folder)

    def _short_run(self, config: StageConfig, folder: Path) -> _Measured:
        """What a run costs."""
        reached = phases(config)
        each = self.steps // len(reached)
        steps = each * len(reached)
        free, peak = free_memory(self.device), PeakMemory(self.device)
        began = time.perf_counter()
        job = self._job(config, reached, each, self.reporter)
        prepared = time.perf_counter() - began
        clip_seconds = _reading(job.clips, config.train.seed)
        parameters = _parameters(job)
        pictures: list[float] = []
        samples = folder / "samples"
        samples.mkdir(parents=True)

        def draw(module: Any, step: int) -> None:
            start = time.perf_counter()
            job.draw(module, samples, f"{step:07}")
            pictures.append(time.perf_counter() - start)

        with self.reporter.task(f"measuring {self.kind}", "steps", steps) as task:
            watch = Watch(self.device, tell=task.update)
            self._fit(job, _few(job.clips, config.train.batch_size), watch, folder, draw)
        returned = time.perf_counter()
        seconds = _by_phase(watch.ends, each)
        between = [after - before for before, after in pairwise(watch.validation)]
        batch = median(between[1:] or between)
        loading = max(0.0, between[0] - batch)
        first = watch.ends[0] - watch.called - seconds[0]
        workers = choose_workers(self.device.type, config.compute.workers)
        reading = clip_seconds * config.train.batch_size * config.train.accumulate
        costs = Costs(
            start=prepared + max(0.0, first) + loading + returned - watch.saving[1],
            steps=tuple(steady(each_step, reading, workers) for each_step in seconds),
            validation_batch=batch,
            picture=pictures[-1],
            checkpoint=(watch.saving[1] - watch.saving[0]) / watch.saved,
        )
        total, fixed = peak.bytes(), FixedMemory.of(job.module, watch.learning)
        checkpoint = (folder / "checkpoints" / "last.ckpt").stat().st_size
        return _Measured(
            config=job.config,
            costs=costs,
            memory=MemoryPlan(
                *fixed,
                data=watch.batch_bytes,
                activations=None
                if total is None
                else max(0, total - sum(fixed) - watch.batch_bytes),
                total=total,
                free=free,
            ),
            parameters=parameters,
            clip_tokens=_clip_tokens(job),
            clips=job.clips,
            checkpoint=checkpoint,
            pictures=sum(file.stat().st_size for file in samples.rglob("*") if file.is_file()),
            largest=None,
            steps=len(watch.ends),
        )

    def _with_largest(self, found: _Measured, config: StageConfig, folder: Path) -> _Measured:
        """The same with the largest batch, from a larger one if that surely fits."""
        memory, batch = found.memory, config.train.batch_size
        if memory.total is None or memory.free is None:
            return found
        fixed = memory.weights + memory.gradients + memory.optimiser
        clip = memory.data / (batch * config.train.accumulate)
        points = [(batch, float(memory.total - memory.data))]
        line = partial(largest_batch, clip_bytes=clip, fixed=float(fixed), free=float(memory.free))
        probed = 0
        if line(points) >= 2 * batch:
            loop = config.train.model_copy(update={"batch_size": 2 * batch, "accumulate": 1})
            larger = config.model_copy(update={"train": loop})
            try:
                points.append(self._probe(larger, folder))
            except DeviceError as error:
                if not isinstance(error.__cause__, RuntimeError):
                    raise
            probed = PROBED_STEPS
        return replace(found, largest=line(points), steps=found.steps + probed)

    def _probe(self, config: StageConfig, folder: Path) -> tuple[int, float]:
        """Clips at once, and the bytes that they take in the last phase beside data."""
        _forget()
        peak = PeakMemory(self.device)
        job = self._job(config, phases(config)[-1:], PROBED_STEPS, Silent())
        with self.reporter.task("measuring a larger batch", "steps", PROBED_STEPS) as task:
            watch = Watch(self.device, leave_after=PROBED_STEPS, tell=task.update)
            self._fit(job, job.clips, watch, folder, lambda module, step: None)
        return config.train.batch_size, float((peak.bytes() or 0) - watch.batch_bytes)

    def _job(
        self, config: StageConfig, reached: Sequence[Phase], each: int, reporter: Reporter
    ) -> Job:
        """The job of a run that spends so many steps in each phase."""
        steps = each * len(reached)
        once = {"max_steps": steps, "val_check_interval": str(steps), "keep_every": 0}
        never = {"checkpoint_every": _ENDLESS, "grid_every": _ENDLESS, "checkpoint_minutes": 0.0}
        update: dict[str, Any] = {"train": config.train.model_copy(update=once | never)}
        if isinstance(config.loss, VQGANLossConfig):
            update["loss"] = shortened(config.loss, reached, each)
        return self.prepare(config.model_copy(update=update), None, self.placement, reporter)

    def _fit(
        self,
        job: Job,
        clips: Clips,
        watch: Watch,
        folder: Path,
        draw: Callable[[Any, int], None],
    ) -> None:
        stage = vqgan_training if self.kind == "vqgan" else gpt_training
        outcome = fit(
            job.module,
            clips,
            loop=job.config.train,
            compute=job.config.compute,
            placement=self.placement,
            folder=folder,
            monitor=stage.MONITOR,
            figures={},
            draw=draw,
            on_step=lambda step, figures: None,
            callbacks=[watch],
        )
        if outcome.signal:
            raise KeyboardInterrupt


def _forget() -> None:
    """Free what earlier runs left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _few(clips: Clips, batch: int) -> Clips:
    """The same with no more validation clips than are measured."""
    held = len(clips.validation)  # type: ignore[arg-type]  # all datasets here have a length
    few = Subset(clips.validation, range(min(held, VALIDATED_BATCHES * batch)))
    return Clips(clips.train, clips.slots, few, clips.order)


def _reading(clips: Clips, seed: int) -> float:
    """Seconds in which one process reads a training clip."""
    [batch] = ConsumedBatchSampler(clips.slots, seed, READ_CLIPS, 1, order=clips.order)
    source, took = Sheltered(clips.train), 0.0
    for _ in range(2):  # the first time finds nothing in memory
        start = time.perf_counter()
        checked(source.__getitems__(batch))
        took = time.perf_counter() - start
    return took / READ_CLIPS


def _by_phase(ends: Sequence[float], each: int) -> list[float]:
    """Seconds of a step in each phase: the median without its first one, which warms up."""
    took = [after - before for before, after in pairwise(ends)]
    return [median(took[first : first + each - 1]) for first in range(0, len(ends), each)]


def _parameters(job: Job) -> dict[str, int]:
    """Parameters of each network; those beside the module tree are the perceptual network's."""
    counts = {
        name.replace("_", " "): sum(weight.numel() for weight in part.parameters())
        for name, part in job.module.named_children()
    }
    inside = {id(held) for held in (*job.module.parameters(), *job.module.buffers())}
    beside = sum(held.numel() for held in job.module.held() if id(held) not in inside)
    return {name: count for name, count in (counts | {"perceptual": beside}).items() if count}


def _clip_tokens(job: Job) -> int:
    """Tokens of a clip."""
    if isinstance(job.module, GPTTraining):
        return job.module.gpt.config.video_tokens
    config = job.config
    assert isinstance(config, VQGANTrainConfig)
    return prod(config.model.grid(config.data.frames, *config.frame_sides))
