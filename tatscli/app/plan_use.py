"""What encoding and sampling will take: some of the real work, measured."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from tatscli.app.data import SPLITS
from tatscli.app.devices import choose_device, place
from tatscli.app.encode import Encoder, Encoding, open_encoding
from tatscli.app.estimate import Part
from tatscli.app.plan_train import check_free, program_seconds, temporary_folder
from tatscli.app.reporting import NoTask, Reporter, Silent, Task
from tatscli.app.run import write_atomically
from tatscli.app.sample import decoded_pieces, wanted_samples, write_sample
from tatscli.app.sampler import Cuts, Sampler, long_sampler, short_sampler
from tatscli.config.encode import EncodeConfig
from tatscli.config.files import dump
from tatscli.config.sample import (
    RealDataConfig,
    SampleConfig,
    SampleLongConfig,
    SampleShortConfig,
)
from tatscli.core.data.tokens import TokenWriter
from tatscli.core.limits import synchronize
from tatscli.core.memory import PeakMemory, free_memory
from tatscli.core.models.inference import DTYPES
from tatscli.core.ranks import Rank
from tatscli.core.training.placement import choose_workers

MEASURED_BATCHES = 12
"""Batches of clips that are encoded at most."""
MEASURED_SECONDS = 30.0
"""Longest time for which tokens are written before the rest is extrapolated."""
_TOKEN_BYTES = 2
_CLIP_BYTES = 8 + 4 + 8
"""Of a clip in a shard beside its codes: label, video, start."""


@dataclass(frozen=True)
class UseMemory:
    """Bytes on one device; None where nobody says.

    Attributes:
        weights: By count.
        working: The measured peak less these: activations, and keys and values.
        total: The measured peak, beside the program itself.
        free: Before.
    """

    weights: int
    working: int | None
    total: int | None
    free: int | None

    @classmethod
    def of(cls, weights: int, total: int | None, free: int | None) -> "UseMemory":
        """With what is left for working."""
        return cls(weights, None if total is None else max(0, total - weights), total, free)


@dataclass(frozen=True)
class EncodePlan:
    """What encoding a dataset will take.

    Attributes:
        device: Where it was measured.
        precision: Of the networks.
        processes: Of the command; one of them was measured.
        clips: Of each split.
        grid: Latent grid (t, h, w) of a clip.
        batch_size: Clips at once.
        clips_per_second: Of all processes.
        tokens_per_second: The same in tokens.
        time: The parts of the time.
        seconds: In all.
        hours: The same.
        token_bytes: Of all shards.
        memory: On one device.
        measured_clips: Clips that were encoded to know this.
        written: The config file that runs this plan, where it was asked for.
    """

    device: str
    precision: str
    processes: int
    clips: dict[str, int]
    grid: tuple[int, int, int]
    batch_size: int
    clips_per_second: float
    tokens_per_second: float
    time: list[Part]
    seconds: float
    hours: float
    token_bytes: int
    memory: UseMemory
    measured_clips: int
    written: str = ""


@dataclass(frozen=True)
class SamplePlan:
    """What sampling will take.

    Attributes:
        kind: ``short`` or ``long``.
        device: Where it was measured.
        precision: Of the networks.
        samples: Videos.
        frames: Of each.
        tokens: That are written for each.
        batch_size: Videos at once.
        largest_batch: Videos at once that ``--batch-size auto`` would allow.
        seconds_per_video: In batches of this size, decoded and written.
        tokens_per_second: Of a batch.
        time: The parts of the time.
        seconds: In all.
        hours: The same.
        memory: On the device.
        measured_tokens: Tokens of each video of a batch that were written to know this.
        written: The config file that runs this plan, where it was asked for.
    """

    kind: str
    device: str
    precision: str
    samples: int
    frames: int
    tokens: int
    batch_size: int
    largest_batch: int
    seconds_per_video: float
    tokens_per_second: float
    time: list[Part]
    seconds: float
    hours: float
    memory: UseMemory
    measured_tokens: int
    written: str = ""


def plan_encode(
    config: EncodeConfig, write: Path | None = None, reporter: Reporter | None = None
) -> EncodePlan:
    """Plan the encoding of a dataset.

    Args:
        config: Settings of the encoding.
        write: File that gets them.
        reporter: Told about progress.

    Raises:
        ConfigError: The clips do not fit the VQGAN, or the file is there already.
        DataError: Nothing can be encoded.
    """
    reporter = reporter or Silent()
    check_free(write)
    placement = place(config.compute)
    device = torch.device(placement.accelerator)
    program = _program("tatscli.app.encode", reporter)
    free, peak = free_memory(device), PeakMemory(device)
    began = time.perf_counter()
    work = open_encoding(config, reporter)
    opened = time.perf_counter() - began
    models = [trained.model for trained in (work.vqgan, work.sound) if trained]
    weights = _weights(models, config.compute.precision)
    counts: dict[str, int] = {split: len(work.clips[split]) for split in SPLITS}
    batch = config.encode.batch_size
    with temporary_folder(config.encode.out) as folder:
        ends, done = _encode_some(config, work, folder, device, reporter)
    took = [after - before for before, after in pairwise(ends)]
    each = steady_part(took, choose_workers(device.type, config.encode.workers))
    clips, processes = sum(counts.values()), placement.world
    batches = sum(ceil(count / batch) for count in counts.values())
    start = Part.of("start", 1, program + opened + max(0.0, took[0] - each))
    parts = [start, Part.of("batches of clips", ceil(batches / processes), each)]
    seconds = sum(part.seconds for part in parts)
    sound = work.header.sound
    codes = prod(work.header.grid) + (prod(sound.grid) if sound else 0)
    rate = batch / each * processes
    return EncodePlan(
        device=device.type,
        precision=config.compute.precision,
        processes=processes,
        clips=counts,
        grid=work.header.grid,
        batch_size=batch,
        clips_per_second=rate,
        tokens_per_second=rate * codes,
        time=parts,
        seconds=seconds,
        hours=seconds / 3600,
        token_bytes=clips * (_TOKEN_BYTES * codes + _CLIP_BYTES),
        memory=UseMemory.of(weights, peak.bytes(), free),
        measured_clips=done,
        written=_written(config, write, "encode", reporter),
    )


def plan_sample(
    config: SampleLongConfig, write: Path | None = None, reporter: Reporter | None = None
) -> SamplePlan:
    """Plan sampling: of videos of the length of training, or of the length that is asked for.

    Args:
        config: Settings of the sampling; short where no length, context or second GPT is set.
        write: File that gets them.
        reporter: Told about progress.

    Raises:
        ConfigError: The model cannot do what is asked, or the file is there already.
        CheckpointError: There is no GPT.
    """
    reporter = reporter or Silent()
    check_free(write)
    device = choose_device(config.compute.device)
    run: SampleShortConfig | SampleLongConfig = config
    is_long = bool(config.window.model_fields_set)
    if not is_long:
        values = config.model_dump(
            exclude_unset=True, exclude={"window": True, "filter": {"top_k_init", "top_p_init"}}
        )
        run = SampleShortConfig.model_validate(values)
    program = _program("tatscli.app.sample", reporter)
    free, peak = free_memory(device), PeakMemory(device)
    began = time.perf_counter()
    frames = config.window.frames if is_long else 0
    if isinstance(run, SampleLongConfig):
        sampler = long_sampler(run, reporter)
    else:
        sampler = short_sampler(run, reporter)
    frames = frames or sampler.length * sampler.factor
    options, given, asked = wanted_samples(sampler, run, frames, reporter)
    models = [sampler.vqgan.model, *(gpt.model for gpt in sampler.gpts)]
    weights = _weights(models, config.compute.precision)
    sampler.to(device, config.compute, reporter)
    start = sampler.encode(given.videos()) if given and given.frames else None
    opened = time.perf_counter() - began
    guidance = config.condition.guidance
    largest = sampler.largest_batch(guidance)
    sequences = sampler.sequences(options, guidance)
    batch = min(options.samples, sequences)
    one_batch = options.model_copy(update={"samples": batch, "batch_size": sequences})
    known = 0 if start is None else start.shape[1] * sampler.trained.model.config.frame_tokens
    with reporter.task("sampling a batch", "tokens", batch * sampler.tokens) as task:
        ticks = _Ticks(task, batch, device, extrapolates=sampler.infill is None)
        codes = None
        try:
            [codes] = sampler.batches(one_batch, Cuts.of(run.filter), ticks, asked, guidance, start)
        except _EnoughError:
            reporter.note(
                f"{ticks.done} of {sampler.tokens} tokens were written; what the others take is "
                "extrapolated"
            )
    positions = token_positions(sampler)[known:]
    sampling = batch_seconds(ticks.clock, positions, whole=codes is not None)
    with temporary_folder(options.out) as folder:
        writing = _write_one(sampler, codes, folder, options, frames)
    parts = [
        Part.of("start", 1, program + opened),
        Part.of(f"sampling, {batch} at once", ceil(options.samples / batch), sampling),
        Part.of("decoding and writing", options.samples, writing),
    ]
    seconds = sum(part.seconds for part in parts)
    return SamplePlan(
        kind="long" if is_long else "short",
        device=device.type,
        precision=config.compute.precision,
        samples=options.samples,
        frames=frames,
        tokens=sampler.tokens,
        batch_size=batch,
        largest_batch=largest,
        seconds_per_video=sampling / batch + writing,
        tokens_per_second=batch * (sampler.tokens - known) / sampling,
        time=parts,
        seconds=seconds,
        hours=seconds / 3600,
        memory=UseMemory.of(weights, peak.bytes(), free),
        measured_tokens=ticks.done,
        written=_written(run, write, f"sample {'long' if is_long else 'short'}", reporter),
    )


def steady_part(took: Sequence[float], workers: int) -> float:
    """Seconds of a batch once readers set the pace, if they do.

    Args:
        took: Of each batch, from the start on.
        workers: Processes that read, each two batches ahead.
    """
    later = took[1 + 2 * workers :] or took[1:] or took
    return median(later)


def batch_seconds(clock: Sequence[float], positions: Sequence[int], *, whole: bool) -> float:
    """Seconds of all tokens of a batch, of which the first ones were timed.

    A token costs what reading the weights does, and more the more positions are before it: a line
    through the tokens that were timed gives the others.

    Args:
        clock: At the start, then after each token.
        positions: How many are before each token of a sample.
        whole: Whether all tokens were timed.
    """
    elapsed = clock[-1] - clock[0]
    if whole:
        return elapsed
    done = len(clock) - 1
    if done < 3:
        return elapsed * len(positions) / max(1, done)
    # The first token waits for what is read at the start, and for what torch sets up.
    x, y = np.array(positions[1:done]), np.diff(clock)[1:]
    slope, _ = np.polyfit(x, y, 1)
    slope = max(0.0, float(slope))
    base = float(np.median(y - slope * x))
    rest = positions[done:]
    return elapsed + len(rest) * base + slope * sum(rest)


def token_positions(sampler: Sampler) -> list[int]:
    """Of each token of a sample, how many positions of its window are before it."""
    config, length = sampler.trained.model.config, sampler.length
    before, frame = config.condition.tokens, config.frame_tokens
    if length <= config.grid[0] or sampler.infill:
        return list(range(before, before + sampler.tokens))
    past = sampler.context * frame
    window = range(before + past, before + past + frame)
    return [*range(before, before + past), *(length - sampler.context) * list(window)]


class _EnoughError(Exception):
    """Leaves sampling once enough tokens were timed."""


class _Ticks:
    """Looks at the clock after each token, and leaves where they take too long.

    Args:
        task: Told about progress.
        batch: Samples at once.
        device: Waited for before each look.
        extrapolates: Whether the rest can be told from the beginning.

    Attributes:
        clock: At the start, then after each token.
        done: Tokens of each sample.
    """

    def __init__(self, task: Task, batch: int, device: torch.device, *, extrapolates: bool) -> None:
        self._task, self._batch, self._device = task, batch, device
        self._extrapolates = extrapolates
        self.clock, self.done = [time.perf_counter()], 0

    def update(
        self,
        done: int,
        total: int | None = None,
        figures: Mapping[str, float] | None = None,
        remark: str = "",
    ) -> None:
        """A token of each sample is written."""
        synchronize(self._device)
        self.clock.append(time.perf_counter())
        self.done = done // self._batch
        self._task.update(done, total, figures)
        late = self.clock[-1] - self.clock[0] > MEASURED_SECONDS
        if self._extrapolates and late and total is not None and done < total:
            raise _EnoughError


def _program(module: str, reporter: Reporter) -> float:
    with reporter.task("loading the program", "times", 1):
        return program_seconds(module)


def _weights(models: Sequence[torch.nn.Module], precision: str) -> int:
    """Bytes of what models hold, in the precision that they are used in."""
    size = DTYPES[precision].itemsize
    held = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
    return sum(t.numel() * (size if t.is_floating_point() else t.element_size()) for t in held)


def _encode_some(
    config: EncodeConfig, work: Encoding, folder: Path, device: torch.device, reporter: Reporter
) -> tuple[list[float], int]:
    """The clock before and after each of some batches, and the clips in them."""
    writer = TokenWriter(folder / "tokens", work.header)
    done = 0
    with reporter.task("encoding", "batches", MEASURED_BATCHES) as task:
        encoder = Encoder(
            config, writer, work.clips, work.videos.bad, work.vqgan, work.sound, NoTask()
        )
        ends = [time.perf_counter()]
        try:
            batches, encode = encoder.start(1, Rank(0, 1, device))
            for number, batch in enumerate(batches, 1):
                encode(batch)
                synchronize(device)
                ends.append(time.perf_counter())
                done += batch.stretch.stop - batch.stretch.first
                task.update(number)
                if number == MEASURED_BATCHES:
                    break
        finally:
            writer.release()
    return ends, done


def _write_one(
    sampler: Sampler, codes: Tensor | None, folder: Path, options: SampleConfig, frames: int
) -> float:
    """Seconds in which a sample is decoded and written, from those of its first window."""
    model, config = sampler.vqgan.model, sampler.trained.model.config
    device = sampler.trained.model.pos_emb.device
    if codes is None:
        grid = (sampler.length, *config.grid[1:])
        codes = torch.randint(model.config.codes, (1, *grid), device=device)
    window = config.grid[0] * config.latent_stride
    some = codes[0, :window]
    shown = min(frames, len(some) * sampler.factor)
    took = []
    for number in range(2):  # the first one warms up
        start = time.perf_counter()
        video = decoded_pieces(model, some, shown)
        write_sample(folder, number, video, sampler.rate, options, {}, None)
        took.append(time.perf_counter() - start)
    return min(took) * frames / shown


def _written(
    config: EncodeConfig | SampleShortConfig | SampleLongConfig,
    write: Path | None,
    command: str,
    reporter: Reporter,
) -> str:
    if write is None:
        return ""
    # What concerns a comparison means nothing without one, and would be noted as such.
    compares = (
        not isinstance(config, SampleShortConfig | SampleLongConfig) or config.real.compute_fvd
    )
    left_out = {} if compares else {"real": RealDataConfig.model_fields.keys()}
    write_atomically(write, dump(config, left_out))
    reporter.note(f"next: tats {command} --config {write}")
    return str(write)
