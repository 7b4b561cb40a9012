"""The benchmark: how fast each stage runs here, against the limits of the machine.

What a limit is, ``core.limits`` says; what is measured, ``app.bench_stages``.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from pydantic import TypeAdapter, ValidationError

from tatscli.app.bench_stages import STAGES, Measured, Workshop, measure
from tatscli.app.devices import choose_device
from tatscli.app.reporting import Reporter, Silent
from tatscli.config.bench import BenchConfig, StageName
from tatscli.core.failures import explained
from tatscli.core.limits import Machine, measure_machine
from tatscli.errors import ConfigError, DataError

_WRITE = "write one with: tats bench --json > FILE"


@dataclass(frozen=True)
class BenchSettings:
    """What was asked for.

    Attributes:
        size: Models and clips.
        precision: Of the networks.
        batch_size: Samples written at once.
        seconds: Least time for which each stage was repeated.
        cuda_graphs: Whether steps of the GPT were replayed, on a GPU.
    """

    size: str
    precision: str
    batch_size: int
    seconds: float
    cuda_graphs: bool = False


@dataclass(frozen=True)
class StageResult:
    """How fast a stage is, and how fast it could be; without figures where it was skipped.

    Attributes:
        stage: Its name.
        work: What one run of it does.
        unit: What its rate counts, plural.
        rate: Units a second, of the best run.
        reached: The part of the limit's rate that is reached.
        binds: Which limit is the larger one.
        limit_seconds: Least time of a run on this machine.
        operations_seconds: By the operations it must do and the peak.
        bytes_seconds: By the bytes it must move and the bandwidth.
        best_seconds: The best run.
        median_seconds: The median run.
        runs: Runs that were timed, after a warm-up.
        operations: Of a run.
        bytes: Of a run.
        skipped: Why it was not run; empty where it was.
    """

    stage: str
    work: str = ""
    unit: str = ""
    rate: float | None = None
    reached: float | None = None
    binds: str = ""
    limit_seconds: float | None = None
    operations_seconds: float | None = None
    bytes_seconds: float | None = None
    best_seconds: float | None = None
    median_seconds: float | None = None
    runs: int = 0
    operations: float | None = None
    bytes: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class BenchResult:
    """Stages on a machine.

    Attributes:
        machine: Its limits.
        settings: What was asked for.
        stages: In the order of the work.
    """

    machine: Machine
    settings: BenchSettings
    stages: list[StageResult]


@dataclass(frozen=True)
class Comparison:
    """A stage in two results.

    Attributes:
        stage: Its name.
        first: Rate in the first, none where it was not run.
        second: Rate in the second, none where it was not run.
        unit: What the rates count, a second.
        ratio: Second over first.
        note: Why there is no ratio.
    """

    stage: str
    first: float | None
    second: float | None
    unit: str
    ratio: float | None
    note: str = ""


@explained("a smaller --batch-size or --size needs less")
def bench(
    stages: Sequence[StageName], config: BenchConfig, reporter: Reporter | None = None
) -> BenchResult:
    """Measure the machine and stages on it.

    The machine is measured before the stages and after them, and the better counts: on a shared
    machine a moment can be a bad one.

    Args:
        stages: Which; all where there are none.
        config: Settings.
        reporter: Told about progress.

    Raises:
        DataError: The videos that are to be read are not there.
        DeviceError: The device is not there.
    """
    reporter = reporter or Silent()
    options = config.bench
    chosen = [name for name in STAGES if name in (stages or STAGES)]
    if options.data is not None:
        if "read" not in chosen:
            reporter.note("--data has no effect without the stage read")
        elif not options.data.exists():
            raise DataError(
                f"{options.data}: no such file or folder", "leave --data out to read a made video"
            )
    device = choose_device(options.device)
    before = _machine("limits of the machine", device, config, reporter)
    measured: dict[StageName, Measured | str] = {}
    with tempfile.TemporaryDirectory(prefix="tats-bench-") as folder:
        workshop = Workshop(config, device, Path(folder))
        for name in chosen:
            with reporter.task(name, "runs") as task:
                measured[name] = measure(name, workshop, task.update)
    after = _machine("limits of the machine, again", device, config, reporter)
    machine = replace(
        before,
        peak=max(before.peak, after.peak),
        float32_peak=max(before.float32_peak, after.float32_peak),
        bandwidth=max(before.bandwidth, after.bandwidth),
    )
    return BenchResult(
        machine=machine,
        settings=BenchSettings(
            options.size,
            options.precision,
            options.batch_size,
            options.seconds,
            options.cuda_graphs and device.type == "cuda",
        ),
        stages=[_result(name, found, machine) for name, found in measured.items()],
    )


def compare(first: Path, second: Path) -> list[Comparison]:
    """Compare the rates of two results that were written as JSON.

    Raises:
        ConfigError: They were measured with different settings.
        DataError: A file cannot be read or is no result.
    """
    results = [_read_result(file) for file in (first, second)]
    for name in ("size", "precision", "batch_size"):
        values = [getattr(result.settings, name) for result in results]
        if values[0] != values[1]:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{first} was measured with {option} {values[0]}, {second} with {values[1]}",
                f"measure one of them again with the {option} of the other",
            )
    sides = [{stage.stage: stage for stage in result.stages} for result in results]
    return [
        _compared(name, *(side.get(name) for side in sides))
        for name in STAGES
        if any(name in side for side in sides)
    ]


def _machine(what: str, device: torch.device, config: BenchConfig, reporter: Reporter) -> Machine:
    with reporter.task(what, "trials") as task:
        return measure_machine(device, config.bench.precision, task.update)


def _result(name: StageName, found: Measured | str, machine: Machine) -> StageResult:
    if isinstance(found, str):
        return StageResult(name, skipped=found)
    limit, best = machine.limit(found.work), min(found.seconds)
    counts = not found.work.codec
    return StageResult(
        stage=name,
        work=found.text,
        unit=found.unit,
        rate=found.amount / best,
        reached=limit.seconds / best,
        binds=limit.binds,
        limit_seconds=limit.seconds,
        operations_seconds=limit.operations if counts else None,
        bytes_seconds=limit.bytes if counts else None,
        best_seconds=best,
        median_seconds=median(found.seconds),
        runs=len(found.seconds),
        operations=found.work.operations + found.work.float32_operations if counts else None,
        bytes=found.work.bytes if counts else None,
    )


def _read_result(file: Path) -> BenchResult:
    try:
        return TypeAdapter(BenchResult).validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", _WRITE) from None
    except ValidationError:
        raise DataError(f"{file} is no result of tats bench", _WRITE) from None


def _compared(name: str, first: StageResult | None, second: StageResult | None) -> Comparison:
    both = [side for side in (first, second) if side is not None]
    rates = [side.rate if side else None for side in (first, second)]
    notes = [side.skipped for side in both if side.skipped]
    if len(both) < 2:
        notes.append("not in both")
    elif not notes and both[0].work != both[1].work:
        notes.append(f"other work: {both[0].work}; {both[1].work}")
    ratio = None if notes or not rates[0] or not rates[1] else rates[1] / rates[0]
    unit = next((side.unit for side in both if side.unit), "")
    return Comparison(name, rates[0], rates[1], unit, ratio, "; ".join(notes))
