"""Distances between two sets of features: Fréchet and kernel (MMD).

The Fréchet distance fits a Gaussian to each set (Dowson and Landau, 1982):

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With factors R1, R2 of the covariances (S = R^T R), the last trace is the sum of the singular
values of R1 R2^T: no square root is taken of a rounding error, which is what makes the usual
formula lose half of its digits, or go negative, where a covariance is singular.

The kernel distance is the unbiased squared MMD (Gretton et al., 2012, equation 3) with the kernel
(x.y / D + 1)^3 of Bińkowski et al., 2018.

N, M features in the two sets, D their width.
"""

import torch
from torch import Tensor

from tatscli.errors import DataError

ROUNDING = 1e-10
"""How far below zero rounding may take a distance, relative to the total variance."""

BLOCK = 1024


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Computes the Fréchet distance, in float64.

    The covariances are the unbiased ones (divided by N - 1).

    Args:
        x: (N, D), N >= 2; N < D is allowed, and exact.
        y: (M, D), M >= 2; M may differ from N.

    Returns:
        At least 0; 0 for equal means and covariances.

    Raises:
        DataError: Too few features, or some that are not finite.
    """
    x, y = _checked(x, y)
    factor_x, factor_y = _covariance_factor(x), _covariance_factor(y)
    variance = float(factor_x.square().sum() + factor_y.square().sum())
    overlap = float(torch.linalg.svdvals(factor_x @ factor_y.T).sum())
    spread = variance - 2 * overlap
    if spread < -ROUNDING * variance:
        raise ArithmeticError(f"covariance term {spread} of total variance {variance}")
    return float((x.mean(0) - y.mean(0)).square().sum()) + max(spread, 0.0)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Computes the unbiased squared MMD with a cubic kernel, in float64.

    Args:
        x: (N, D), N >= 2.
        y: (M, D), M >= 2; M may differ from N.

    Returns:
        Without bias, so that it is below 0 about half of the time for equal distributions.

    Raises:
        DataError: Too few features, or some that are not finite.
    """
    x, y = _checked(x, y)
    return _mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y)


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"(N, D) and (M, D) expected, got {(*x.shape,)} and {(*y.shape,)}")
    if min(len(x), len(y)) < 2:
        raise DataError(
            f"a distance needs at least 2 videos on each side, got {len(x)} and {len(y)}",
            "give more videos",
        )
    for features in (x, y):
        broken = int((~features.isfinite().all(1)).sum())
        if broken:
            raise DataError(f"{broken} of {len(features)} videos have features that are not finite")
    return x.double(), y.double()


def _covariance_factor(features: Tensor) -> Tensor:
    """Returns R, (min(N, D), D), with R^T R the covariance of (N, D)."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    factor: Tensor = torch.linalg.qr(centred, mode="r").R
    return factor


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    """Averages the kernel over all pairs; of a set with itself, over pairs of two different."""
    total = sum(float(_kernel(rows, y).sum()) for rows in torch.split(x, BLOCK))
    if x is y:
        own = float(((x * x).sum(1) / x.shape[1] + 1).pow(3).sum())
        return (total - own) / (len(x) * (len(x) - 1))
    return total / (len(x) * len(y))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1).pow(3)
