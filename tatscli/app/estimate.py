"""What a run will take, from what a few of its steps took: the arithmetic, free of torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, lcm

from tatscli.app.plan import TrainConfig
from tatscli.config.train import GPTTrainConfig, LoopConfig, VQGANTrainConfig
from tatscli.config.vqgan import VQGANLossConfig
from tatscli.errors import ConfigError

ALONE = "generator alone"
LEARN = "discriminators learn"
ACT = "discriminators act"
WHOLE = "all steps"
"""Parts of a run whose steps cost the same."""

USABLE = 0.9
"""Part of the free memory that a plan fills; the rest is for what no measurement sees."""


@dataclass(frozen=True)
class Phase:
    """Steps of a run that cost the same.

    Attributes:
        name: What they do.
        first: Steps of the run before them.
        steps: How many.
    """

    name: str
    first: int
    steps: int


def phases(config: VQGANTrainConfig | GPTTrainConfig) -> list[Phase]:
    """The phases that a run reaches, in their order."""
    last = config.train.max_steps
    loss = config.loss
    if not isinstance(loss, VQGANLossConfig) or not loss.has_discriminators:
        return [Phase(WHOLE, 0, last)]
    bounds = (0, max(0, loss.disc_start - loss.disc_warmup), loss.disc_start, last)
    cut = [min(bound, last) for bound in bounds]
    found = zip((ALONE, LEARN, ACT), cut, cut[1:], strict=False)
    return [Phase(name, first, stop - first) for name, first, stop in found if stop > first]


def shortened(loss: VQGANLossConfig, reached: Sequence[Phase], each: int) -> VQGANLossConfig:
    """Losses of a run that spends so many steps in each of these phases, and then ends."""
    names = [phase.name for phase in reached]
    never = each * len(names) + 1
    learns = names.index(LEARN) if LEARN in names else names.index(ACT) if ACT in names else None
    acts = names.index(ACT) * each if ACT in names else never
    warmup = 0 if learns is None else acts - learns * each
    return loss.model_copy(update={"disc_start": acts, "disc_warmup": warmup, "disc_ramp": 0})


@dataclass(frozen=True)
class Costs:
    """Seconds that were measured.

    Attributes:
        start: Of all that happens once: loading the program and the data, the first step.
        steps: Of a step in each phase.
        validation_batch: Of a batch of validation clips.
        picture: Of the pictures of one step.
        checkpoint: Of writing one.
    """

    start: float
    steps: tuple[float, ...]
    validation_batch: float
    picture: float
    checkpoint: float


@dataclass(frozen=True)
class Part:
    """A part of the time of a run.

    Attributes:
        name: What is done.
        times: How often.
        each: Seconds each time.
        seconds: In all.
    """

    name: str
    times: int
    each: float
    seconds: float

    @classmethod
    def of(cls, name: str, times: int, each: float) -> "Part":
        """So often so many seconds."""
        return cls(name, times, each, times * each)


def time_parts(
    loop: LoopConfig,
    reached: Sequence[Phase],
    costs: Costs,
    epoch_steps: int | None,
    validation_batches: int,
) -> list[Part]:
    """The parts of the time of a run; their sum is the whole.

    Args:
        loop: Steps and intervals.
        reached: The phases.
        costs: Of what happens in them.
        epoch_steps: Steps of an epoch; None where it is not known, and validation each so many
            epochs is counted once.
        validation_batches: Batches of each validation that a process has.
    """
    steps = [
        Part.of(phase.name, phase.steps, each)
        for phase, each in zip(reached, costs.steps, strict=True)
    ]
    validations = ceil(loop.max_steps / validation_interval(loop, epoch_steps))
    others = [
        Part.of("validation", validations, validation_batches * costs.validation_batch),
        Part.of("pictures", ceil(loop.max_steps / loop.grid_every), costs.picture),
    ]
    seconds = sum(part.seconds for part in (*steps, *others))
    # Each validation may be the best so far, which is saved as well.
    saves = saved_checkpoints(loop, seconds) + validations
    return [
        Part.of("start", 1, costs.start),
        *steps,
        *others,
        Part.of("checkpoints", saves, costs.checkpoint),
    ]


def validation_interval(loop: LoopConfig, epoch_steps: int | None) -> int:
    """Steps between validations; that of a run that is validated at its end only, at most."""
    by_epochs = "." in loop.val_check_interval
    if by_epochs and epoch_steps is None:
        return loop.max_steps
    return min(loop.val_steps(epoch_steps or 1), loop.max_steps)


def saved_checkpoints(loop: LoopConfig, seconds: float) -> int:
    """How often the last checkpoint is written in a run of so many seconds."""
    last, every, keep = loop.max_steps, loop.checkpoint_every, loop.keep_every
    due = last // every
    if keep:
        due += last // keep - last // lcm(every, keep)
    if last % every and (not keep or last % keep):
        due += 1
    by_time = int(seconds / (60 * loop.checkpoint_minutes)) if loop.checkpoint_minutes else 0
    return max(due, by_time)


def kept_checkpoints(loop: LoopConfig, saves: int) -> int:
    """Checkpoints that are on the disk at the end: the last two, the best, and those for good."""
    kept = loop.max_steps // loop.keep_every if loop.keep_every else 0
    return min(saves, 2) + 1 + kept


def steady(median: float, reading: float, workers: int) -> float:
    """Seconds of a step that cannot be faster than its readers.

    The first steps of a run find batches that were read while it started; later ones may wait.

    Args:
        median: Of the steps that were measured, with what they waited.
        reading: Seconds in which one process reads the clips of a step.
        workers: Processes that read; 0 where the step itself reads.
    """
    return max(median, reading / workers) if workers else median


def largest_batch(
    points: Sequence[tuple[int, float]], clip_bytes: float, fixed: float, free: float
) -> int:
    """The most clips at once that fit, by a line through what was measured.

    Args:
        points: Batch sizes and the bytes that they took beside data, ascending; with a single
            one, all beyond what is fixed is taken to grow with the batch.
        clip_bytes: Of the data of a clip.
        fixed: Bytes that are known not to grow.
        free: Bytes that are free.
    """
    (batch, first), *more = points
    each, base = (first - fixed) / batch, fixed
    for other, bytes_there in more:
        slope = (bytes_there - first) / (other - batch)
        if slope > 0:  # the process of a CPU is measured coarsely
            each, base = slope, max(fixed, first - slope * batch)
    room = USABLE * free - base
    return max(0, int(room / max(1.0, each + clip_bytes)))


def with_effective_batch(
    config: TrainConfig, processes: int, wanted: int
) -> tuple[TrainConfig, list[str]]:
    """Settings with which each step takes so many clips in all, and what to say about them.

    The learning rate grows with the clips of a step, as in the published rule.

    Args:
        config: As given; any published base rate still in it.
        processes: Of the run.
        wanted: Clips a step; 0 leaves all as it is.

    Raises:
        ConfigError: The processes cannot share so many clips evenly.
    """
    if not wanted:
        return config, []
    if wanted % processes:
        raise ConfigError(
            f"--effective-batch {wanted} cannot be shared evenly by {processes} processes",
            f"give a multiple of {processes}",
        )
    loop, optim, notes = config.train, config.optim, []
    share = wanted // processes
    before = loop.batch_size * loop.accumulate * processes
    batch = max(size for size in range(1, min(loop.batch_size, share) + 1) if share % size == 0)
    if batch != loop.batch_size:
        notes.append(
            f"--batch-size {batch}, since {loop.batch_size} does not divide {share} clips of a "
            "process"
        )
    if not optim.base_learning_rate and wanted != before:
        rate = optim.learning_rate * wanted / before
        notes.append(
            f"learning rate {optim.learning_rate:.3g} for {before} clips a step becomes "
            f"{rate:.3g} for {wanted}, in proportion as in the published rule; for another one, "
            "give the run --learning-rate"
        )
        optim = optim.model_copy(update={"learning_rate": rate})
    loop = loop.model_copy(update={"batch_size": batch, "accumulate": share // batch})
    return config.model_copy(update={"train": loop, "optim": optim}), notes


@dataclass(frozen=True)
class PhasePlan:
    """A phase of a planned run.

    Attributes:
        phase: What its steps do.
        from_step: Steps of the run before it.
        from_clips: Clips seen before it.
        steps: How many.
        seconds_per_step: As measured.
        hours: Of all.
    """

    phase: str
    from_step: int
    from_clips: int
    steps: int
    seconds_per_step: float
    hours: float


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device; None where nobody says.

    Attributes:
        weights: By count, as the next two: parameters and buffers, frozen networks too.
        gradients: Of the parameters that learn.
        optimiser: State of the optimisers.
        data: A step's clips.
        activations: The measured peak less all these.
        total: The measured peak, beside the program itself.
        free: Before the run.
    """

    weights: int
    gradients: int
    optimiser: int
    data: int
    activations: int | None
    total: int | None
    free: int | None


@dataclass(frozen=True)
class DiskPlan:
    """Bytes on disk at the end of a run.

    Attributes:
        checkpoint: One checkpoint.
        checkpoints: How many are kept.
        pictures: Those of all steps.
        total: Of all.
        free: Where the run will be.
    """

    checkpoint: int
    checkpoints: int
    pictures: int
    total: int
    free: int


@dataclass(frozen=True)
class TrainPlan:
    """What a training run will take.

    Attributes:
        kind: ``vqgan`` or ``gpt``.
        device: Where it was measured.
        precision: Of the networks.
        processes: Of the run; one of them was measured.
        parameters: By network.
        steps: Of the run.
        epochs: Of the run; None without data.
        batch_size: Clips a process takes at once.
        accumulate: Batches of a step.
        effective_batch: Clips of a step, of all processes.
        largest_batch: Clips that would fit at once; None where free memory is not known.
        learning_rate: In use.
        phases: With the steps and clips before the discriminators start.
        steps_per_second: Over all phases.
        clips_per_second: Of all processes.
        tokens_per_second: Of all processes.
        time: The parts of the time.
        seconds: Of the whole run.
        hours: The same.
        memory: On one device.
        disk: At the end.
        measured_steps: Steps that were run to know this.
        written: The config file that runs this plan, where it was asked for.
    """

    kind: str
    device: str
    precision: str
    processes: int
    parameters: dict[str, int]
    steps: int
    epochs: float | None
    batch_size: int
    accumulate: int
    effective_batch: int
    largest_batch: int | None
    learning_rate: float
    phases: list[PhasePlan]
    steps_per_second: float
    clips_per_second: float
    tokens_per_second: float
    time: list[Part]
    seconds: float
    hours: float
    memory: MemoryPlan
    disk: DiskPlan
    measured_steps: int
    written: str = ""


def phase_plans(
    reached: Sequence[Phase], costs: Costs, effective_batch: int
) -> Iterator[PhasePlan]:
    """The phases with their times."""
    for phase, each in zip(reached, costs.steps, strict=True):
        yield PhasePlan(
            phase=phase.name,
            from_step=phase.first,
            from_clips=phase.first * effective_batch,
            steps=phase.steps,
            seconds_per_step=each,
            hours=phase.steps * each / 3600,
        )
