"""``tats bench``: how fast this machine is, and how fast it could be."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, UsageError, configured
from tatscli.config.bench import BenchConfig, StageName
from tatscli.config.words import counted

if TYPE_CHECKING:
    from tatscli.app.bench import BenchResult, Comparison

app = typer.Typer()

STAGES: tuple[StageName, ...] = get_args(StageName)


def _completed(incomplete: str) -> list[str]:
    return [name for name in STAGES if name.startswith(incomplete)]


def _known(names: Sequence[str]) -> list[StageName]:
    """The stages of these names; Typer takes a choice, or a list, but no list of choices."""
    for name in names:
        if name not in STAGES:
            raise UsageError(f"'{name}' is no stage", f"stages are {', '.join(STAGES)}")
    return [name for name in STAGES if name in names]


@app.command(epilog="Example: tats bench encode decode --precision bf16")
@configured()
def bench(
    config: BenchConfig,
    stages: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE]...",
            help="What is measured; by default everything.",
            autocompletion=_completed,
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="<FILE FILE>",
            help="Compare two results that --json wrote, instead of measuring.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure how fast each stage is on this machine, against the machine's own limits.

    Stages, in the order of the work: read (clips from video), vqgan-step, encode, decode, tokens
    (clips from a token dataset), gpt-step, sample-short, sample-long, i3d. Models have random
    weights; they cost what trained ones cost.

    The limit of a stage is the larger of two times: its operations at the measured peak of large
    matrix products, and its bytes at the measured bandwidth of matrix-vector products. The rate is
    that of the best run, since others may use the machine too.
    """
    chosen = _known(stages or ())
    if compare and chosen:
        raise UsageError("--compare measures nothing; leave the stages out")
    from tatscli.app.bench import bench as use_case
    from tatscli.app.bench import compare as compare_results

    if compare:
        found = compare_results(*compare)
        if json:
            console.rows(found, as_json=True)
        else:
            _show_comparison(found, compare)
        return
    result = use_case(chosen, config, console.Terminal())
    if json:
        console.result(result, as_json=True)
    else:
        _show(result)


def _show(result: "BenchResult") -> None:
    machine = result.machine
    exact = ""
    if machine.float32_peak != machine.peak:
        exact = f" ({machine.float32_peak / 1e9:.4g} in exact float32)"
    console.text(
        f"{machine.name} ({machine.device}), {counted(machine.cores, 'core')}, "
        f"{counted(machine.threads, 'thread')}, "
        f"torch {machine.torch}, Python {machine.python}\n"
        f"{machine.precision}: peak {machine.peak / 1e9:.4g} G operations/s{exact}, "
        f"bandwidth {machine.bandwidth / 1e9:.3g} GB/s\n\n"
    )
    heading = ("", "operations", "bytes", "binds", "best", "median", "rate", "of the limit")
    run = [stage for stage in result.stages if not stage.skipped]
    figures = [
        (
            stage.stage,
            _time(stage.operations_seconds),
            _time(stage.bytes_seconds or stage.limit_seconds),
            stage.binds,
            _time(stage.best_seconds),
            _time(stage.median_seconds),
            _rate(stage.rate, stage.unit),
            f"{100 * (stage.reached or 0):.3g} %",
        )
        for stage in run
    ]
    if run:
        console.text(console.aligned([heading, *figures]) + "\n\n")
    console.text(
        console.aligned(
            [(s.stage, s.work or f"skipped: {s.skipped}") for s in result.stages], right=False
        )
    )
    if run:
        console.note(
            "operations and bytes: the least time of a run by each; the larger one binds. Rate and "
            "share of the limit are those of the best run: a shared machine is noisy"
        )


def _show_comparison(found: "Sequence[Comparison]", files: tuple[Path, Path]) -> None:
    heading = ("", "first", "second", "second / first")
    figures = [
        (
            row.stage,
            _rate(row.first, row.unit),
            _rate(row.second, row.unit),
            "-" if row.ratio is None else f"{row.ratio:.3g}",
        )
        for row in found
    ]
    console.text(f"first: {files[0]}\nsecond: {files[1]}\n\n{console.aligned([heading, *figures])}")
    for row in found:
        if row.note:
            console.note(f"{row.stage}: {row.note}")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{_three_digits(1000 * seconds)} ms"


def _rate(rate: float | None, unit: str) -> str:
    return "-" if rate is None else f"{_three_digits(rate)} {unit}/s"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
