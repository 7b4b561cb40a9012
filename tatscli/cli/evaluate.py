"""``tats eval``: judging samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tatscli.cli import complete, console, vqgan
from tatscli.cli.options import Json, UsageError, configured
from tatscli.config.evaluate import ClassesConfig, FVDConfig
from tatscli.config.words import counted, span, with_error

if TYPE_CHECKING:
    from tatscli.app.evaluate import FVDResult

app = typer.Typer(name="eval", no_args_is_help=True, help="How good samples are.")


@app.callback()
def _group() -> None:
    pass


Videos = "folder, manifest or list, HDF5 file, array (.npy, .npz, .pt) or file of features (.npz)"


@app.command(epilog="Example: tats eval fvd DIR samples/short --json > fvd.json")
@configured()
def fvd(
    config: FVDConfig,
    real: Annotated[
        Path | None, typer.Argument(metavar="REAL", help=f"Real videos: {Videos}.")
    ] = None,
    fake: Annotated[
        Path | None,
        typer.Argument(metavar="FAKE", help=f"Samples: {Videos}.", autocompletion=complete.samples),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test", metavar="", help="Check the network: black against white videos."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Fréchet and kernel video distance between real videos and samples.

    The value holds for its signature: definition, weights, clips and counts. It has an error bar, a
    value without bias where there are enough videos, and the floor that two sets of real videos
    would have.
    """
    if self_test:
        from tatscli.app.ahead import check_self_test

        check_self_test(config)
        from tatscli.app.self_test import self_test as test

        console.result(test(config, console.Terminal()), as_json=json)
        return
    if real is None or fake is None:
        raise UsageError("REAL and FAKE are needed", "tats eval fvd REAL FAKE, or --self-test")
    from tatscli.app.ahead import check_network, check_sides

    check_sides(real, fake)
    check_network(config, real, fake)
    from tatscli.app.evaluate import evaluate_all, evaluate_fvd

    if config.fvd.all_protocols:
        found = evaluate_all(real, fake, config, console.Terminal())
        if json:
            console.rows(found, as_json=True)
        else:
            console.rows([judged(result) for result in found], as_json=False)
        return
    result = evaluate_fvd(real, fake, config, console.Terminal())
    if json:
        console.result(result, as_json=True)
    else:
        console.result(judged(result) | provenance(result), as_json=False)


def judged(result: "FVDResult") -> dict[str, str]:
    """The numbers of a result, as people read them."""
    least = "at least " * result.floor_is_low
    return {
        "protocol": result.protocol,
        result.measure: with_error(result.value, result.standard_error),
        "without bias": "too few videos" if result.debiased is None else f"{result.debiased:.4g}",
        "floor": "" if result.floor is None else f"{least}{result.floor:.4g}",
        "kernel distance": ""
        if result.kernel is None
        else with_error(result.kernel, result.kernel_standard_error),
    }


def provenance(result: "FVDResult") -> dict[str, Any]:
    """What the numbers of a result are of."""

    def side(name: str, videos: int, place: int) -> str:
        sizes, rate = result.sizes[place], result.frame_rates[place]
        rates = result.frame_rate_ranges[place] or [rate]
        parts = (
            counted(videos, "video") * bool(videos),
            " ".join(sizes) if len(sizes) < 4 else "many sizes",
            f"{span(rates)} fps" * bool(rate),
        )
        known = ", ".join(filter(None, parts))
        return f"{name} ({known})" if known else name

    return {
        "of it, means": f"{result.mean_term:.4g}",
        "of it, covariances": f"{result.covariance_term:.4g}",
        "real": side(result.real, result.real_videos, 0),
        "fake": side(result.fake, result.fake_videos, 1),
        "frames": str(result.frames),
        "skipped": result.skipped,
        "signature": result.signature,
    }


@app.command(epilog="Example: tats eval features DIR --out real.npz")
@configured()
def features(
    videos: Annotated[Path, typer.Argument(metavar="VIDEOS", help="Real videos.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .npz.")],
    config: FVDConfig,
    json: Json = False,
) -> None:
    """Compute features of real videos once, to compare many sets of samples with.

    The file takes the place of the videos: tats eval fvd real.npz samples/short.
    """
    from tatscli.app.ahead import check_network

    check_network(config, videos)
    from tatscli.app.evaluate import write_features

    found = write_features(videos, out, config, console.Terminal())
    counts = {"file": out, "videos": len(set(found.videos)), "clips": len(found.clips)}
    console.result(counts | found.recipe | {"skipped": found.about["skipped"]}, as_json=json)


@app.command(epilog="Example: tats eval compare old.json new.json")
def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="What eval fvd --json printed.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another of these.")],
    json: Json = False,
) -> None:
    """Compare two results, if their signatures allow it; else say what differs."""
    from tatscli.app.signature import compare_results

    found = compare_results(first, second)
    if json:
        console.rows(found, as_json=True)
        return
    for comparison in found:
        console.result(
            {
                "signature": comparison.signature,
                "first": with_error(*comparison.first),
                "second": with_error(*comparison.second),
                "difference": with_error(comparison.difference, comparison.standard_error),
                "verdict": comparison.verdict,
            },
            as_json=False,
        )


@app.command(epilog="Example: tats eval classes DIR samples/short")
@configured()
def classes(
    real: Annotated[
        Path, typer.Argument(metavar="REAL", help="Dataset of real videos with classes.")
    ],
    fake: Annotated[
        Path,
        typer.Argument(
            metavar="FAKE",
            help="Folder of samples, as tats sample wrote it.",
            autocompletion=complete.samples,
        ),
    ],
    config: ClassesConfig,
    json: Json = False,
) -> None:
    """How often samples show the class they were asked for, as a small probe reads them.

    The probe learns from training videos and is tried on held-out ones: its share there says how
    far it can be trusted. What was asked for is --label, else the one class that the text names,
    else the class of the video that was given with --context.
    """
    from tatscli.app.recognise import judge_classes

    console.result(judge_classes(real, fake, config, console.Terminal()), as_json=json)


# The same command, where those who come from other tools look for it.
app.command(
    "recon", epilog="Example: tats eval recon runs/vqgan --data DIR; the same as tats vqgan eval"
)(vqgan.evaluate)
