"""``tats plan``: what a command will need, before it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.encode import EncodeConfig
from tatscli.config.plan import GPTPlanConfig, VQGANPlanConfig
from tatscli.config.sample import SampleLongConfig
from tatscli.config.words import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tatscli.app.estimate import MemoryPlan, Part, TrainPlan
    from tatscli.app.plan_use import EncodePlan, SamplePlan, UseMemory

app = typer.Typer(
    name="plan", no_args_is_help=True, help="What a command will need, before it runs."
)

Write = Annotated[
    Path | None,
    typer.Option("--write", help="Write the settings as planned, for --config of the command."),
]


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: tats plan vqgan --data DIR --effective-batch 64 --write plan.yaml")
@configured(presets="vqgan", compat="vqgan")
def vqgan(config: VQGANPlanConfig, write: Write = None, json: Json = False) -> None:
    """Measure a few steps of VQGAN training here, and say what the whole run will take.

    Takes the options of tats vqgan train. Steps before the discriminators start, while they learn
    and once they act are measured apart, and so are reading, validation, pictures and checkpoints.
    Nothing is left behind but the file of --write.
    """
    from tatscli.app.plan_train import plan_vqgan

    _show(plan_vqgan(config, write, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats plan gpt --data tokens --effective-batch 64 --write plan.yaml")
@configured(presets="gpt", compat="gpt")
def gpt(config: GPTPlanConfig, write: Write = None, json: Json = False) -> None:
    """Measure a few steps of GPT training here, and say what the whole run will take.

    Takes the options of tats gpt train. Reading, validation, pictures and checkpoints are measured
    too. Nothing is left behind but the file of --write.
    """
    from tatscli.app.plan_train import plan_gpt

    _show(plan_gpt(config, write, console.Terminal()), as_json=json)


@app.command(epilog="Example: tats plan encode --data DIR --vqgan RUN")
@configured()
def encode(config: EncodeConfig, write: Write = None, json: Json = False) -> None:
    """Encode some clips here, and say what the whole dataset will take.

    Takes the options of tats encode. Nothing is left behind but the file of --write.
    """
    from tatscli.app.plan_use import plan_encode

    plan = plan_encode(config, write, console.Terminal())
    if json:
        console.result(plan, as_json=True)
    else:
        _show_encode(plan)


@app.command(epilog="Example: tats plan sample --gpt RUN --samples 2048 --length 64")
@configured(compat="sample")
def sample(config: SampleLongConfig, write: Write = None, json: Json = False) -> None:
    """Sample a batch here, or the beginning of one, and say what all samples will take.

    Takes the options of tats sample long; where no length is given, tats sample short is planned.
    Nothing is left behind but the file of --write.
    """
    from tatscli.app.plan_use import plan_sample

    plan = plan_sample(config, write, console.Terminal())
    if json:
        console.result(plan, as_json=True)
    else:
        _show_sample(plan)


def _show_encode(plan: "EncodePlan") -> None:
    clips = ", ".join(f"{number:,} {split}" for split, number in plan.clips.items())
    processes = "" if plan.processes == 1 else f", {plan.processes} processes"
    facts = [
        ("clips", f"{clips}, each of {' x '.join(map(str, plan.grid))} tokens"),
        (
            "measured",
            f"{counted(plan.measured_clips, 'clip')} on {plan.device} in {plan.precision}",
        ),
        ("batch", f"--batch-size {plan.batch_size}{processes}"),
        (
            "rate",
            f"{_rate(plan.clips_per_second)} clips/s, {_rate(plan.tokens_per_second)} tokens/s",
        ),
        ("tokens", f"{size(plan.token_bytes)} on disk"),
    ]
    blocks = [console.aligned(facts, right=False), time_table(plan.time), _use_memory(plan.memory)]
    console.text("\n\n".join(blocks))


def _show_sample(plan: "SamplePlan") -> None:
    largest = f"--batch-size auto would take up to {plan.largest_batch}"
    facts = [
        (
            "samples",
            f"{plan.samples:,} of {counted(plan.frames, 'frame')}, {plan.tokens:,} tokens each",
        ),
        (
            "measured",
            f"{plan.measured_tokens:,} tokens of {counted(plan.batch_size, 'sample')} on "
            f"{plan.device} in {plan.precision}",
        ),
        ("batch", f"--batch-size {plan.batch_size}; {largest}"),
        ("a video", duration(plan.seconds_per_video)),
        ("rate", f"{_rate(plan.tokens_per_second)} tokens/s"),
    ]
    blocks = [console.aligned(facts, right=False), time_table(plan.time), _use_memory(plan.memory)]
    console.text("\n\n".join(blocks))


def time_table(parts: "Sequence[Part]") -> str:
    """Lines of what takes time, and their sum."""
    rows = [
        (part.name, f"{part.times:,}", duration(part.each), duration(part.seconds))
        for part in parts
    ]
    total = ("in all", "", "", duration(sum(part.seconds for part in parts)))
    return console.aligned([("time", "times", "each", "together"), *rows, total])


def _use_memory(memory: "UseMemory") -> str:
    counts = {"weights": memory.weights}
    return _memory(counts, "working", memory.working, memory.total, memory.free)


def _show(plan: "TrainPlan", *, as_json: bool) -> None:
    if as_json:
        console.result(plan, as_json=True)
        return
    parameters = ", ".join(f"{name} {_count(number)}" for name, number in plan.parameters.items())
    epochs = "" if plan.epochs is None else f", {plan.epochs:,.3g} epochs"
    clips = plan.steps * plan.effective_batch
    facts = [
        ("parameters", parameters),
        (
            "measured",
            f"{counted(plan.measured_steps, 'step')} on {plan.device} in {plan.precision}",
        ),
        ("batch", _batch(plan)),
        ("largest batch", _largest(plan)),
        ("learning rate", f"{plan.learning_rate:.3g}"),
        ("run", f"{counted(plan.steps, 'step')}, {counted(clips, 'clip')}{epochs}"),
        (
            "rate",
            f"{_rate(plan.steps_per_second)} steps/s, {_rate(plan.clips_per_second)} clips/s, "
            f"{_rate(plan.tokens_per_second)} tokens/s",
        ),
    ]
    blocks = [console.aligned(facts, right=False)]
    if len(plan.phases) > 1:
        rows = [
            (p.phase, f"{p.from_step:,}", f"{p.from_clips:,}", f"{p.steps:,}",
             duration(p.seconds_per_step))
            for p in plan.phases
        ]  # fmt: skip
        blocks.append(console.aligned([("", "from step", "from clip", "steps", "a step"), *rows]))
    blocks.append(time_table(plan.time))
    blocks.append(memory_table(plan.memory))
    disk = plan.disk
    kept = f"{size(disk.checkpoint)} each, {disk.checkpoints} kept"
    blocks.append(
        console.aligned(
            [
                ("disk", size(disk.total), f"of {size(disk.free)} that are free"),
                ("  checkpoints", size(disk.checkpoint * disk.checkpoints), kept),
                ("  pictures", size(disk.pictures), ""),
            ],
            right=False,
        )
    )
    console.text("\n\n".join(blocks))
    if disk.total > disk.free:
        console.warn(f"the disk has {size(disk.free)} free, the run will need {size(disk.total)}")


def memory_table(memory: "MemoryPlan") -> str:
    """Lines of what takes memory, and how that is known."""
    counts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "clips of a step": memory.data,
    }
    return _memory(counts, "activations", memory.activations, memory.total, memory.free)


def _memory(
    counts: "Mapping[str, int]",
    rest: str,
    measured: int | None,
    total: int | None,
    free: int | None,
) -> str:
    """Lines of what takes memory by count, and of the rest, which was measured if it could be."""
    rows = [(f"  {name}", size(count), "by count") for name, count in counts.items()]
    in_all = "not measured on this device"
    if measured is not None and total is not None:
        rows.append((f"  {rest}", size(measured), "the measured peak less the above"))
        in_all = size(total)
    left = "" if free is None else f"of {size(free)} that are free"
    return console.aligned([("memory", in_all, left), *rows], right=False)


def _batch(plan: "TrainPlan") -> str:
    parts = [f"--batch-size {plan.batch_size}", f"--accumulate {plan.accumulate}"]
    if plan.processes > 1:
        parts.append(f"{plan.processes} processes")
    return f"{' x '.join(parts)} = {counted(plan.effective_batch, 'clip')} a step"


def _largest(plan: "TrainPlan") -> str:
    if plan.largest_batch is None:
        return "not known: nobody says how much memory is free"
    share = plan.effective_batch // plan.processes
    fits = [n for n in range(1, min(share, plan.largest_batch) + 1) if share % n == 0]
    text = f"about {counted(plan.largest_batch, 'clip')} at once"
    if fits and fits[-1] != plan.batch_size:
        text += f"; the same step: --batch-size {fits[-1]} --accumulate {share // fits[-1]}"
    return text


def duration(seconds: float) -> str:
    """Seconds in the unit that people use."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def size(number: int) -> str:
    """Bytes in the unit that people use."""
    for unit, length in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= length:
            return f"{number / length:,.1f} {unit}"
    return f"{number / 2**10:,.1f} KiB"


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e5 else f"{number:,}"
