"""Distances of feature sets: closed forms, and the sums they abbreviate."""

import math

import pytest
import torch
from torch import Tensor

from tatscli.core.metrics import frechet
from tatscli.core.metrics.frechet import frechet_distance, kernel_distance
from tatscli.errors import DataError

SIZES = [(2, 1), (2, 5), (8, 3), (30, 80), (200, 40)]


def features(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing


def trace(x: Tensor) -> float:
    return float(x.var(0).sum())


@pytest.mark.parametrize(("count", "width"), SIZES)
def test_a_set_is_at_no_distance_from_itself(count: int, width: int) -> None:
    x = features(count, width)
    assert 0 <= frechet_distance(x, x) < 1e-11 * trace(x)


@pytest.mark.parametrize(("count", "width"), SIZES)
def test_a_shift_counts_squared(count: int, width: int) -> None:
    x = features(count, width)
    shift = torch.arange(1.0, width + 1, dtype=torch.float64)
    expected = float(shift.square().sum())
    assert frechet_distance(x, x + shift) == pytest.approx(expected, abs=1e-9 * trace(x))


@pytest.mark.parametrize(("count", "width"), SIZES)
def test_a_scale_counts_squared_times_the_variance(count: int, width: int) -> None:
    x = features(count, width)
    centre = x.mean(0)
    expected = 0.25 * trace(x)
    assert frechet_distance(x, centre + 1.5 * (x - centre)) == pytest.approx(expected, rel=1e-9)


def test_one_dimension_compares_means_and_deviations() -> None:
    x, y = features(40, 1, seed=1), 3 * features(25, 1, seed=2) + 2
    expected = float((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_two_dimensions_follow_the_analytic_root() -> None:
    x, y = features(50, 2, seed=1), features(60, 2, seed=2)
    product = x.T.cov() @ y.T.cov()
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    mean = float((x.mean(0) - y.mean(0)).square().sum())
    expected = mean + trace(x) + trace(y) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_unequal_counts_agree_with_eigenvalues() -> None:
    x, y = features(90, 12, seed=1), features(51, 12, seed=2)
    roots = torch.linalg.eigvals(x.T.cov() @ y.T.cov()).real.sqrt().sum()
    mean = float((x.mean(0) - y.mean(0)).square().sum())
    expected = mean + trace(x) + trace(y) - 2 * float(roots)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)


def test_fewer_features_than_dimensions_change_nothing_but_cost() -> None:
    x, y = features(7, 4, seed=1), features(9, 4, seed=2)
    rotation = torch.linalg.qr(features(50, 50)).Q[:4]
    expected = frechet_distance(x, y)
    assert frechet_distance(x @ rotation, y @ rotation) == pytest.approx(expected, rel=1e-9)


def test_constant_sets_compare_their_means() -> None:
    assert frechet_distance(torch.zeros(3, 4), torch.full((5, 4), 2.0)) == pytest.approx(16.0)


def test_a_large_common_offset_cancels() -> None:
    x, y = features(60, 8, seed=1), features(60, 8, seed=2)
    assert frechet_distance(x + 1e4, y + 1e4) == pytest.approx(frechet_distance(x, y), rel=1e-7)


def test_kernel_distance_is_the_sum_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(9, 3, seed=1), features(6, 3, seed=2)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within_x = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    within_y = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    across = [kernel(a, b) for a in x for b in y]
    expected = sum(within_x) / 72 + sum(within_y) / 30 - 2 * sum(across) / 54
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(frechet, "BLOCK", 4)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_has_no_bias() -> None:
    pairs = [torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(i)) for i in range(400)]
    distances = torch.tensor([kernel_distance(x, y) for x, y in pairs])
    assert distances.min() < 0
    assert abs(distances.mean()) < 3 * distances.std() / 20


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_too_few_or_broken_features_are_counted(distance) -> None:
    with pytest.raises(DataError, match="at least 2 videos on each side, got 1 and 5"):
        distance(torch.zeros(1, 3), torch.zeros(5, 3))
    broken = torch.zeros(5, 3)
    broken[3, 1] = math.nan
    with pytest.raises(DataError, match="1 of 5 videos"):
        distance(torch.zeros(2, 3), broken)
