"""Distances between two sets of features: Fréchet and kernel (MMD).

The Fréchet distance fits a Gaussian to each set (Dowson and Landau, 1982):

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With factors A1, A2 of the covariances (S = A A^T), the last trace is the sum of the singular
values of A1^T A2: no square root is taken of a rounding error, which is what makes the usual
formula lose half of its digits, or go negative, where a covariance is singular.

The kernel distance is the unbiased squared MMD (Gretton et al., 2012, equation 3) with the kernel
(x.y / D + 1)^3 of Bińkowski et al., 2018.

All in float64. N, M features in the two sets, D their width.
"""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tatscli.errors import DataError

Covariance = Literal["n-1", "n"]
"""What the covariance of a set of n is divided by."""

ROUNDING = 1e-10
"""How far below zero rounding may take a distance, relative to the total variance."""

BLOCK = 1024
"""Features whose kernel is computed at once."""


@dataclass(frozen=True)
class Gaussian:
    """What the Fréchet distance knows of a set of features.

    Attributes:
        count: Features in the set.
        mean: float64, (D,).
        scatter: Sum of the outer products of what differs from the mean, float64, (D, D).
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """That of features, (N, D), N >= 1."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merged(self, other: "Gaussian") -> "Gaussian":
        """That of both sets together (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter = scatter + apart.outer(apart) * (self.count * other.count / count)
        return Gaussian(count, self.mean + apart * (other.count / count), scatter)

    @property
    def digest(self) -> str:
        """Identifies the mean and the covariance."""
        values = torch.cat([self.mean[None], self.scatter / (self.count - 1)])
        return blake2b(values.contiguous().numpy().data, digest_size=6).hexdigest()

    @cached_property
    def _root(self) -> Tensor:
        """A with A A^T the scatter, (D, D).

        Directions whose variance is nothing but the rounding of the others' are left out.
        """
        values, vectors = torch.linalg.eigh(self.scatter)
        least = values[-1] * len(values) * torch.finfo(values.dtype).eps
        root: Tensor = vectors * values.where(values > least, 0).sqrt()
        return root

    def root(self, rule: Covariance) -> Tensor:
        """A with A A^T the covariance, (D, D)."""
        root: Tensor = self._root / float(self.count - (rule == "n-1")) ** 0.5
        return root


class FrechetTerms(NamedTuple):
    """The two parts of a distance.

    Attributes:
        mean: Squared distance of the means.
        covariance: What differs between the covariances.
    """

    mean: float
    covariance: float

    @property
    def distance(self) -> float:
        """Their sum."""
        return self.mean + self.covariance


def frechet_terms(a: Gaussian, b: Gaussian, rule: Covariance = "n-1") -> FrechetTerms:
    """Computes the distance of two sets; each of at least 2, N < D is allowed and exact."""
    root_a, root_b = a.root(rule), b.root(rule)
    variance = float(root_a.square().sum() + root_b.square().sum())
    overlap = float(torch.linalg.svdvals(root_a.T @ root_b).sum())
    covariance = variance - 2 * overlap
    if covariance < -ROUNDING * variance:
        raise ArithmeticError(f"covariance term {covariance} of total variance {variance}")
    return FrechetTerms(float((a.mean - b.mean).square().sum()), max(covariance, 0.0))


def frechet_distance(x: Tensor, y: Tensor, rule: Covariance = "n-1") -> float:
    """Computes the Fréchet distance.

    Args:
        x: (N, D), N >= 2.
        y: (M, D), M >= 2; M may differ from N.
        rule: Divisor of the covariances.

    Returns:
        At least 0; 0 for equal means and covariances.

    Raises:
        DataError: Too few features, or some that are not finite.
    """
    x, y = checked(x, y)
    return frechet_terms(Gaussian.of(x), Gaussian.of(y), rule).distance


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Computes the unbiased squared MMD with a cubic kernel.

    Args:
        x: (N, D), N >= 2.
        y: (M, D), M >= 2; M may differ from N.

    Returns:
        Without bias, so that it is below 0 about half of the time for equal distributions.

    Raises:
        DataError: Too few features, or some that are not finite.
    """
    x, y = checked(x, y)
    within_x, within_y = (kernel_sum(z, z) - own_kernel_sum(z) for z in (x, y))
    return kernel_mean(within_x, within_y, kernel_sum(x, y), len(x), len(y))


def kernel_mean(within_x: float, within_y: float, across: float, n: int, m: int) -> float:
    """The squared MMD from sums of the kernel: over pairs of two in a set, and across the sets."""
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


def kernel_sum(x: Tensor, y: Tensor) -> float:
    """Sums the kernel over all pairs of (N, D) and (M, D), float64."""
    width = x.shape[1]
    return sum(
        float((rows @ y.T).div_(width).add_(1).pow_(3).sum()) for rows in torch.split(x, BLOCK)
    )


def own_kernel_sum(x: Tensor) -> float:
    """Sums the kernel over the pairs of each feature with itself."""
    return float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())


def require_two(n: int, m: int) -> None:
    """Checks that both sets have a covariance.

    Raises:
        DataError: One of them has less than 2 videos.
    """
    if min(n, m) < 2:
        raise DataError(
            f"a distance needs at least 2 videos on each side, got {n} and {m}", "give more videos"
        )


def checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets that have a distance, in float64.

    Raises:
        DataError: Too few features, or some that are not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"(N, D) and (M, D) expected, got {(*x.shape,)} and {(*y.shape,)}")
    require_two(len(x), len(y))
    for features in (x, y):
        broken = int((~features.isfinite().all(1)).sum())
        if broken:
            raise DataError(f"{broken} of {len(features)} videos have features that are not finite")
    return x.double(), y.double()
