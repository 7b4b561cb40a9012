"""The curves of runs, from their figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_POINTS = 2000
"""Of a curve in a page, where a few runs are compared."""
FEW_RUNS = 4
"""The curves of more share the points of so many."""

Points = list[tuple[int, float]]
"""Steps done and values, in order."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Attributes:
        run: Number of the run.
        part: What it was measured on, ``train`` or ``val``; empty where the metric does not say.
        points: Its values; some may not be finite.
    """

    run: int
    part: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """Curves that belong into one picture: a metric, of training and validation and of all runs."""

    name: str
    curves: list[Curve]


def charts(metrics: Sequence[Mapping[str, Points]]) -> list[Chart]:
    """The metrics of runs, those of one name after train/ and val/ in one chart.

    What is of training and validation comes first, then what is of validation, and the learning
    rate last.
    """
    most = MOST_POINTS * FEW_RUNS // max(FEW_RUNS, len(metrics))
    grouped: dict[str, list[Curve]] = {}
    for run, named in enumerate(metrics):
        for metric, points in named.items():
            part, _, name = metric.rpartition("/")
            grouped.setdefault(name, []).append(Curve(run, part, thinned(points, most)))

    def order(name: str) -> tuple[bool, int, bool, str]:
        parts = {curve.part for curve in grouped[name]}
        return name == "learning_rate", -len(parts), "val" not in parts, name

    return [
        Chart(name.replace("_", " "), sorted(grouped[name], key=lambda c: (c.run, c.part)))
        for name in sorted(grouped, key=order)
    ]


def thinned(points: Points, most: int) -> Points:
    """The same curve to the eye: of every few points the lowest and the highest, and both ends."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / max(1, most // 2 - 1))
    kept = {0, len(points) - 1}
    for first in range(0, len(points), size):
        stretch = range(first, min(first + size, len(points)))
        finite = [n for n in stretch if math.isfinite(points[n][1])]
        kept |= {f(finite or stretch, key=lambda n: points[n][1]) for f in (min, max)}
    return [points[n] for n in sorted(kept)]
