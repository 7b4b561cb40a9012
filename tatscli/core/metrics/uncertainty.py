"""How far a distance can be trusted: its error, its bias, and what two equal sets would have.

The Fréchet distance of samples is larger than that of their distributions, by about c / N once N is
well above the width D of the features; the error bars and the bias are those of a jackknife that
leaves out a tenth of both sets at a time. A bootstrap would not do: it draws features twice, which
the distance takes for another distribution.

All in float64. N, M features in the two sets, D their width, K groups.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from tatscli.core.metrics.frechet import (
    Covariance,
    Gaussian,
    checked,
    frechet_terms,
    kernel_mean,
    kernel_sum,
    own_kernel_sum,
)

GROUPS = 10
HALVINGS = 4
"""Times that the real set is halved by chance, for the floor."""
RECOMMENDED = 2048
"""Videos on each side below which the Fréchet distance is dominated by its bias."""
ENOUGH = 1.5
"""Features left of a set, in units of D, from which on the bias falls as 1 / N."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances of two sets of features, and how far they can be trusted.

    Attributes:
        frechet: Fréchet distance: the number to compare at equal counts.
        frechet_error: Its standard error; None where a set has less than 4 videos.
        mean_term: Part of it that the means make.
        covariance_term: Part of it that the covariances make.
        debiased: What it would be for endless sets; None where a set is too small to tell.
        floor: What two sets of these counts would have, both drawn from the real distribution; None
            where the real set cannot be halved.
        floor_is_low: Whether the halves are too small, so that the true floor is above.
        kernel: Kernel distance, which has no bias; None where one set is known by its mean and
            covariance alone.
        kernel_error: Its standard error; None where a set has less than 4 videos.
    """

    frechet: float
    frechet_error: float | None = None
    mean_term: float
    covariance_term: float
    debiased: float | None = None
    floor: float | None = None
    floor_is_low: bool = False
    kernel: float | None = None
    kernel_error: float | None = None


@contextmanager
def single_thread() -> Iterator[None]:
    """Matrices of D x D are small: threads that wait for one another cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@single_thread()
def distances(
    real: Tensor,
    fake: Tensor,
    rule: Covariance = "n-1",
    videos: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Distances:
    """Computes both distances of two sets with their errors.

    Args:
        real: (N, D), N >= 2.
        fake: (M, D), M >= 2.
        rule: Divisor of the covariances.
        videos: For both sets, the number of the video that each feature is from, int64; clips of
            one video are left out together. By default, each is of its own.
        seed: Of the division into groups and halves.

    Raises:
        DataError: Too few features, or some that are not finite.
    """
    real, fake = checked(real, fake)
    of_video = videos or (torch.arange(len(real)), torch.arange(len(fake)))
    fewest = min(len(np.unique(numbers)) for numbers in of_video)
    # A group that is left out must leave two features, and at least two groups tell of an error.
    groups = min(GROUPS, fewest)
    split_real, split_fake = (
        _divide(features, numbers, groups, seed + side)
        for side, (features, numbers) in enumerate(zip((real, fake), of_video, strict=True))
    )
    whole = frechet_terms(Gaussian.of(real), Gaussian.of(fake), rule)
    kernel, kernels = _kernels(split_real, split_fake)
    frechet_error = kernel_error = debiased = None
    if fewest >= 4:
        without = [
            frechet_terms(one, other, rule).distance
            for one, other in zip(_without(split_real), _without(split_fake), strict=True)
        ]
        frechet_error, kernel_error = _jackknife_error(without), _jackknife_error(kernels)
        left = min(len(real), len(fake)) * (1 - 1 / groups)
        if left >= ENOUGH * real.shape[1]:
            debiased = groups * whole.distance - (groups - 1) * sum(without) / groups
    floor = _floor(real, of_video[0], len(fake), rule, seed)
    return Distances(
        frechet=whole.distance,
        frechet_error=frechet_error,
        mean_term=whole.mean,
        covariance_term=whole.covariance,
        debiased=debiased,
        floor=floor,
        floor_is_low=floor is not None and len(real) / 2 < ENOUGH * real.shape[1],
        kernel=kernel,
        kernel_error=kernel_error,
    )


def against_moments(real: Gaussian, fake: Tensor, rule: Covariance = "n-1") -> Distances:
    """The Fréchet distance to a set of which only mean and covariance are known.

    Args:
        real: Of features of width D.
        fake: (M, D), M >= 2.
        rule: Divisor of the covariance of `fake`; that of `real` is taken as it is.

    Raises:
        DataError: Too few features, or some that are not finite.
    """
    fake, _ = checked(fake, fake)
    gaussian = Gaussian.of(fake)
    if rule == "n":
        gaussian = replace(gaussian, scatter=gaussian.scatter * (1 - 1 / gaussian.count))
    terms = frechet_terms(real, gaussian)
    return Distances(frechet=terms.distance, mean_term=terms.mean, covariance_term=terms.covariance)


def _divide(features: Tensor, videos: Tensor, groups: int, seed: int) -> list[Tensor]:
    """Groups of about as many videos, by chance."""
    _, number = np.unique(videos, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    group = torch.randperm(int(number.max()) + 1, generator=generator) % groups
    return [features[group[number] == k] for k in range(groups)]


def _without(split: list[Tensor]) -> list[Gaussian]:
    """For each group, the Gaussian of all others."""
    each = [Gaussian.of(group) for group in split]
    return [reduce(Gaussian.merged, each[:k] + each[k + 1 :]) for k in range(len(each))]


def _jackknife_error(without: list[float]) -> float:
    """Standard error from the values that leave out one of K groups each (Tukey, 1958)."""
    values = torch.tensor(without, dtype=torch.float64)
    count = len(values)
    return float(((count - 1) / count * (values - values.mean()).square().sum()).sqrt())


def _kernels(real: list[Tensor], fake: list[Tensor]) -> tuple[float, list[float]]:
    """The kernel distance of all, and without each group; each pair of features is met once."""
    within = []
    for split in (real, fake):
        sums = torch.zeros(len(split), len(split), dtype=torch.float64)
        for i, one in enumerate(split):
            for j, other in enumerate(split[: i + 1]):
                sums[i, j] = sums[j, i] = kernel_sum(one, other)
            sums[i, i] -= own_kernel_sum(one)
        within.append(sums)
    across = torch.tensor(
        [[kernel_sum(one, other) for other in fake] for one in real], dtype=torch.float64
    )
    counts = [torch.tensor([len(group) for group in split]) for split in (real, fake)]
    totals = [int(count.sum()) for count in counts]

    def mean(kept: Tensor, n: int, m: int) -> float:
        sums = [float(kept @ table @ kept) for table in (*within, across)]
        return kernel_mean(sums[0], sums[1], sums[2], n, m)

    everything = torch.ones(len(real), dtype=torch.float64)
    values = []
    for k in range(len(real)):
        kept = everything.clone()
        kept[k] = 0
        n, m = (total - int(count[k]) for total, count in zip(totals, counts, strict=True))
        if min(n, m) >= 2:
            values.append(mean(kept, n, m))
    return mean(everything, *totals), values


def _floor(real: Tensor, videos: Tensor, fakes: int, rule: Covariance, seed: int) -> float | None:
    """Distance of random halves of a set, brought to the counts in use: it falls as 1/n + 1/m."""
    found = []
    for halving in range(HALVINGS):
        halves = _divide(real, videos, 2, seed + halving)
        counts = [len(half) for half in halves]
        if min(counts) < 2:
            return None
        distance = frechet_terms(Gaussian.of(halves[0]), Gaussian.of(halves[1]), rule).distance
        found.append(distance * (1 / len(real) + 1 / fakes) / sum(1 / count for count in counts))
    return sum(found) / len(found)
