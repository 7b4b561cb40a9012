"""Signatures of results: what a second person needs to get the same number, and may compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatscli.app.results import FVD, read_results
from tatscli.core.metrics.protocol import Protocol
from tatscli.errors import DataError

SIGNATURE = "v1"
"""Of signatures: changed with every change of what a number means."""
_PROTOCOL = ("protocol", "eps", "resize", "fit", "cov", "clip")
"""Parts of a signature that a named protocol says all of."""
_OPTIONS = {
    "protocol": "--protocol",
    "net": "--features and --weights, of random ones --seed",
    "eps": "--eps",
    "resize": "--resize",
    "fit": "--fit",
    "cov": "--covariance",
    "size": "--resolution N for both",
    "resolution": "--resolution N for both",
    "frames": "--frames",
    "stride": "--stride",
    "fps": "--frame-rate",
    "clip": "--real-clip and --fake-clip",
    "per-video": "--clips-per-video",
    "short": "--short",
    "seed": "--seed",
    "n": "--limit N for both, or --match-n",
    "precision": "--precision",
    "real": "the same REAL, --split and --match",
}
"""What makes results agree in a part of their signatures."""


@dataclass(frozen=True)
class Comparison:
    """Two results of one signature.

    Attributes:
        signature: Of the first; that of the second is the same, but for sizes that do not matter.
        first: Value of the first, with its standard error.
        second: Value of the second, with its standard error.
        difference: Second minus first.
        standard_error: Of the difference, as if both were independent; with the same real videos it
            is at most that.
        verdict: In words.
    """

    signature: str
    first: tuple[float, float | None]
    second: tuple[float, float | None]
    difference: float
    standard_error: float | None
    verdict: str


def signature_of(
    protocol: Protocol,
    recipes: Sequence[dict[str, Any]],
    abouts: Sequence[dict[str, Any]],
    counts: Sequence[int],
    content: str,
) -> str:
    """All that a second person needs to get the same number, as one line."""

    def both(values: Sequence[Any]) -> str:
        return "/".join(str(value) for value in dict.fromkeys(values))

    def of_recipes(name: str) -> str:
        return both([recipe[name] for recipe in recipes])

    sizes = [
        "mixed" if len(about["sizes"]) > 1 else "".join(about["sizes"]) or "unknown"
        for about in abouts
    ]
    parts = {
        "protocol": protocol.name,
        "net": of_recipes("network"),
        "eps": f"{protocol.eps:g}",
        "resize": protocol.resize,
        "fit": protocol.fit,
        "cov": protocol.covariance,
        "size": both(sizes),
        "resolution": protocol.resolution or "own",
        "frames": of_recipes("frames"),
        "stride": of_recipes("stride"),
        "fps": both([recipe["frame_rate"] or "own" for recipe in recipes]),
        "clip": f"{protocol.real_clip}/{protocol.fake_clip}",
        "per-video": of_recipes("clips_per_video"),
        "short": of_recipes("short"),
        "seed": of_recipes("seed"),
        "n": "/".join(str(count or "unknown") for count in counts),
        "precision": of_recipes("precision"),
        "real": content,
    }
    return "|".join([f"tats:{SIGNATURE}", *(f"{name}:{value}" for name, value in parts.items())])


def compare_results(first: Path, second: Path) -> list[Comparison]:
    """Compare two results that ``tats eval fvd --json`` printed, if they may be.

    Raises:
        DataError: A file holds no result, or the signatures differ; the message says where, and
            what mends it.
    """
    one, other = _results(first), _results(second)
    if first.samefile(second):
        raise DataError(f"{first} is given twice", "tats eval compare OLD.json NEW.json")
    same = [(a, b) for a in one for b in other if not _differing(a, b)]
    if not same:
        # Of several in a file, the two that are nearest.
        differing = min((_differing(a, b) for a in one for b in other), key=len)
        told = (f"{name} {a} and {b}" for name, (a, b) in differing.items())
        raise DataError(
            f"{first} and {second} do not compare: {'; '.join(told)}",
            f"compute one of them again so that they agree: {_options(differing)}",
        )
    return [_comparison(a, one[a], other[b]) for a, b in same]


def _comparison(signature: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    difference = b["value"] - a["value"]
    errors = [a["standard_error"], b["standard_error"]]
    error = None if None in errors else sum(e**2 for e in errors) ** 0.5
    if error is None:
        verdict = "no error bars: too few videos"
    elif abs(difference) <= 2 * error:
        verdict = "within two standard errors: not told apart"
    else:
        verdict = f"the {'second' if difference < 0 else 'first'} is lower, by more than two "
        verdict += "standard errors"
    both = ((r["value"], r["standard_error"]) for r in (a, b))
    return Comparison(signature, next(both), next(both), difference, error, verdict)


def _results(file: Path) -> dict[str, Mapping[str, Any]]:
    """The results of a file by their signatures."""
    found = {str(r.values["signature"]): r.values for r in read_results(file, [FVD])}
    for result in found.values():
        if not isinstance(result["value"], int | float):
            raise DataError(f"{file} holds the value {result['value']!r}, which is no number")
    return found


def _differing(one: str, other: str) -> dict[str, tuple[str, str]]:
    """The parts in which two signatures differ, with the values of both."""
    first, second = (
        dict(part.partition(":")[::2] for part in signature.split("|"))
        for signature in (one, other)
    )
    if first.get("resolution", "own") == second.get("resolution") != "own":
        # Both are brought to that, whatever their videos were before.
        first["size"] = second["size"] = ""
    return {
        name: (first.get(name, "unknown"), second.get(name, "unknown"))
        for name in first | second
        if first.get(name) != second.get(name)
    }


def _options(differing: Mapping[str, tuple[str, str]]) -> str:
    """For each part that differs, what makes it agree; for several together where it is one."""
    named = "protocol" in differing and "custom" not in differing["protocol"]
    parts: dict[str, list[str]] = {}
    for name in differing:
        chosen = "protocol" if named and name in _PROTOCOL else name
        parts.setdefault(_OPTIONS.get(chosen, "one version of tats"), []).append(name)
    return "; ".join(f"{', '.join(names)}: {option}" for option, names in parts.items())
