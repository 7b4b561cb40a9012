"""Errors, bias and floor of distances, where the truth is known."""

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from tatscli.core.metrics import uncertainty
from tatscli.core.metrics.frechet import Gaussian, frechet_distance, frechet_terms, kernel_distance
from tatscli.core.metrics.uncertainty import against_moments, distances
from tatscli.errors import DataError


def gaussian(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, width, generator=generator) + shift


@pytest.mark.parametrize("count", [2, 8, 64, 401, 2048])
@pytest.mark.parametrize("width", [1, 2, 400])
def test_closed_forms_hold_for_every_count(count: int, width: int) -> None:
    x = gaussian(count, width, 1).double() * torch.logspace(1, -3, width, dtype=torch.float64)
    centre, trace = x.mean(0), float(x.var(0).sum())
    with uncertainty.single_thread():
        assert frechet_distance(x, x) <= 1e-9 * trace
        assert frechet_distance(x, x + 1) == pytest.approx(width, abs=1e-9 * trace)
        scaled = frechet_distance(x, centre + 1.5 * (x - centre))
        assert scaled == pytest.approx(0.25 * trace, abs=1e-9 * trace)


def test_rank_one_sets_have_a_closed_form() -> None:
    a, b = gaussian(2, 40, 1).double()
    x, y = (torch.stack([v, -v]) / 2**0.5 for v in (a, b))
    expected = float(a @ a + b @ b - 2 * (a @ b).abs())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_torchmetrics_agrees() -> None:
    x, y = gaussian(300, 20, 1).double(), gaussian(200, 20, 2, 1.3, 0.2).double()
    other = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y) == pytest.approx(float(other), rel=1e-6)


def test_gaussians_are_the_same_however_they_are_put_together() -> None:
    x = gaussian(101, 7, 1, shift=1e4)  # float32, of which most digits are the mean
    parts = [Gaussian.of(part) for part in torch.split(x, [1, 50, 13, 37])]
    whole = Gaussian.of(x)
    first, second, third, fourth = parts
    for merged in (
        first.merged(second).merged(third).merged(fourth),
        fourth.merged(second.merged(first.merged(third))),
    ):
        assert merged.count == 101
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-9)


def test_dividing_by_n_shrinks_the_covariances_alone() -> None:
    x, y = gaussian(10, 3, 1), gaussian(10, 3, 2, 2.0, 1.0)
    one, other = (frechet_terms(Gaussian.of(x), Gaussian.of(y), rule) for rule in ("n-1", "n"))
    assert other.mean == one.mean
    assert other.covariance == pytest.approx(one.covariance * 9 / 10, rel=1e-12)


def test_the_whole_is_what_the_plain_functions_give() -> None:
    x, y = gaussian(57, 5, 1), gaussian(43, 5, 2, 1.2)
    found = distances(x, y)
    assert found.frechet == pytest.approx(frechet_distance(x, y), rel=1e-12)
    assert found.kernel == pytest.approx(kernel_distance(x, y), rel=1e-10)
    assert found.mean_term + found.covariance_term == pytest.approx(found.frechet)


def test_leaving_out_a_group_is_computing_without_it() -> None:
    x, y = gaussian(23, 3, 1), gaussian(31, 3, 2)
    split = [
        uncertainty._divide(z, torch.arange(len(z)).numpy(), 5, 0) for z in (x.double(), y.double())
    ]
    _, kernels = uncertainty._kernels(*split)
    pairs = zip(uncertainty._without(split[0]), uncertainty._without(split[1]), strict=True)
    for k, (one, other) in enumerate(pairs):
        left = [torch.cat(groups[:k] + groups[k + 1 :]) for groups in split]
        assert frechet_terms(one, other).distance == pytest.approx(
            frechet_distance(*left), rel=1e-9
        )
        assert kernels[k] == pytest.approx(kernel_distance(*left), rel=1e-9)


def test_errors_and_bias_are_those_of_the_jackknife() -> None:
    values = gaussian(12, 1, 1).double().ravel()
    without = [float((values.sum() - value) / 11) for value in values]
    # Of a mean, it is the textbook's.
    expected = float(values.std()) / 12**0.5
    assert uncertainty._jackknife_error(without) == pytest.approx(expected, rel=1e-9)
    x, y = gaussian(60, 3, 1), gaussian(90, 3, 2, 1.5)
    found = distances(x, y, seed=4)
    split = [
        uncertainty._without(uncertainty._divide(z.double(), torch.arange(len(z)), 10, seed))
        for z, seed in ((x, 4), (y, 5))
    ]
    left = [frechet_terms(one, other).distance for one, other in zip(*split, strict=True)]
    # A bias of c / N grows by c / 9N where a tenth is left out.
    bias = 9 * (sum(left) / 10 - found.frechet)
    assert found.debiased == pytest.approx(found.frechet - bias, rel=1e-9)
    assert found.frechet_error == pytest.approx(uncertainty._jackknife_error(left), rel=1e-9)


def test_debiased_values_and_error_bars_hold_what_they_promise() -> None:
    width, truth = 10, 10 * 0.5**2 + 10 * 0.1**2
    covered, near, debiased, measured = 0, 0, [], []
    for draw in range(100):
        found = distances(
            gaussian(200, width, 2 * draw), gaussian(200, width, 2 * draw + 1, 1.5, 0.1), seed=draw
        )
        assert found.debiased is not None and found.frechet_error is not None
        error = abs(found.debiased - truth)
        covered += error <= 2 * found.frechet_error
        near += error <= 3 * found.frechet_error
        debiased.append(found.debiased)
        measured.append(found)
    assert covered >= 85
    assert near >= 95
    mean = sum(debiased) / 100
    spread = torch.tensor(debiased).std() / 10
    assert abs(mean - truth) < 3 * spread
    # Without it, the same draws are too high by more than their spread.
    plain = [found.frechet for found in measured]
    assert sum(plain) / 100 - truth > 5 * spread


def test_kernel_error_is_the_spread_over_draws() -> None:
    found = [distances(gaussian(60, 4, 2 * i), gaussian(60, 4, 2 * i + 1, 2.0)) for i in range(100)]
    spread = float(torch.tensor([f.kernel for f in found]).std())
    error = sum(f.kernel_error or 0 for f in found) / 100
    assert error == pytest.approx(spread, rel=0.2)


def test_the_floor_is_what_two_sets_of_one_distribution_have() -> None:
    for fakes in (400, 150):
        found = distances(gaussian(400, 8, 1), gaussian(fakes, 8, 2, 1.5))
        same = [
            frechet_distance(gaussian(400, 8, 10 + i), gaussian(fakes, 8, 90 + i))
            for i in range(40)
        ]
        assert found.floor == pytest.approx(sum(same) / 40, rel=0.25)
        assert not found.floor_is_low


def test_small_sets_say_what_they_cannot_tell() -> None:
    few = distances(gaussian(3, 2, 1), gaussian(9, 2, 2))
    assert few.frechet_error is few.kernel_error is few.debiased is few.floor is None
    some = distances(gaussian(30, 40, 1), gaussian(30, 40, 2))
    assert some.debiased is None and some.frechet_error is not None and some.floor_is_low
    with pytest.raises(DataError, match="got 1 and 5"):
        distances(torch.zeros(1, 2), torch.zeros(5, 2))


def test_clips_of_a_video_are_left_out_together() -> None:
    x, y = gaussian(40, 4, 1), gaussian(40, 4, 2, 3.0)
    alone = distances(x, y)
    five = torch.arange(40).repeat_interleave(5)
    repeated = distances(x.repeat_interleave(5, 0), y.repeat_interleave(5, 0), videos=(five, five))
    # Five copies tell no more than one: taken for videos of their own, the error would halve.
    assert repeated.frechet_error == pytest.approx(alone.frechet_error, rel=0.2)
    independent = distances(x.repeat_interleave(5, 0), y.repeat_interleave(5, 0))
    assert independent.frechet_error < 0.7 * repeated.frechet_error


def test_moments_give_the_plain_value() -> None:
    x, y = gaussian(30, 4, 1), gaussian(50, 4, 2, 1.4)
    found = against_moments(Gaussian.of(x), y)
    assert found.frechet == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert found.kernel is found.frechet_error is None
    biased = against_moments(Gaussian.of(x), y, "n")
    assert biased.frechet != pytest.approx(found.frechet, rel=1e-3)
