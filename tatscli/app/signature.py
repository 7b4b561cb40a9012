"""Signatures of results: what a second person needs to get the same number, and may compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatscli.core.metrics.protocol import Protocol
from tatscli.errors import DataError

SIGNATURE = "v1"
"""Of signatures: changed with every change of what a number means."""
HINT = "give what tats eval fvd --json wrote"


@dataclass(frozen=True)
class Comparison:
    """Two results of one signature.

    Attributes:
        signature: Of both.
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
        DataError: A file holds no result, or the signatures differ; the message says where.
    """
    one, other = _results(first), _results(second)
    common = [signature for signature in one if signature in other]
    if not common:
        differing = _differing(next(iter(one)), next(iter(other)))
        raise DataError(
            f"{first} and {second} do not compare: {'; '.join(differing)}",
            "compute one of them again with the settings of the other",
        )
    found = []
    for signature in common:
        a, b = one[signature], other[signature]
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
        found.append(Comparison(signature, next(both), next(both), difference, error, verdict))
    return found


def _results(file: Path) -> dict[str, dict[str, Any]]:
    """The results of a file by their signatures."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        each = stored if isinstance(stored, list) else [stored]
        found = {str(result["signature"]): dict(result) for result in each}
        for result in found.values():
            float(result["value"])
            result["standard_error"]
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", HINT) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file} is no JSON: {error}", HINT) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} holds no result: {error!r}", HINT) from None
    if not found:
        raise DataError(f"{file} holds no result", HINT)
    return found


def _differing(one: str, other: str) -> list[str]:
    """The parts in which two signatures differ."""
    first, second = (dict(part.split(":", 1) for part in s.split("|")) for s in (one, other))
    return [
        f"{name} {first.get(name, 'unknown')} and {second.get(name, 'unknown')}"
        for name in first | second
        if first.get(name) != second.get(name)
    ]
