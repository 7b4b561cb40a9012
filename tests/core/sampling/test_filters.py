"""Choosing tokens: cuts by hand, the drawn distribution, the edges of the chance."""

import math

import pytest
import torch
from scipy.stats import chisquare

from tatscli.core.sampling.filters import TokenFilter, candidates, choose

ALMOST_ONE = 1 - 2**-24


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def survivors(logits: torch.Tensor, top_k: int, top_p: float) -> set[int]:
    kept = candidates(logits, top_k, top_p)
    return set(kept.tokens[0, kept.probabilities[0] > 0].tolist())


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, {0, 1, 2, 3}),
        (2, 1.0, {1, 3}),
        (9, 1.0, {0, 1, 2, 3}),
        (0, 0.3, {1}),
        (0, 0.45, {1, 3}),  # the one that crosses the mass stays
        (0, 0.75, {1, 3, 0}),
        (0, 1e-6, {1}),
        # Mass is counted among the k: of 4/9, 3/9, 2/9 the first two reach 0.75, ...
        (3, 0.75, {1, 3}),
        (3, 0.8, {1, 3, 0}),
    ],
)
def test_cuts_keep_the_tokens_found_by_hand(top_k: int, top_p: float, expected: set[int]) -> None:
    assert survivors(logits_of(0.2, 0.4, 0.1, 0.3), top_k, top_p) == expected


def test_each_row_is_cut_by_itself() -> None:
    logits = torch.cat([logits_of(0.7, 0.2, 0.1), logits_of(0.1, 0.45, 0.45)])
    kept = candidates(logits, top_p=0.6)
    assert (kept.probabilities > 0).sum(1).tolist() == [1, 2]
    assert kept.tokens[0, 0] == 0
    assert set(kept.tokens[1, :2].tolist()) == {1, 2}


def test_temperature_zero_takes_the_likeliest_whatever_the_chance() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    for chance in (0.0, 0.5, ALMOST_ONE):
        chosen = choose(logits, torch.full((50,), chance), TokenFilter(0.0, top_k=3, top_p=0.5))
        assert torch.equal(chosen, logits.argmax(1))


@pytest.mark.parametrize(
    ("chosen_by", "expected"),
    [
        (TokenFilter(), [0.4, 0.3, 0.2, 0.1]),
        (TokenFilter(top_k=3), [4 / 9, 3 / 9, 2 / 9, 0]),
        (TokenFilter(top_p=0.6), [4 / 7, 3 / 7, 0, 0]),
        (TokenFilter(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (TokenFilter(temperature=2.0, top_k=2), [2 / (2 + 3**0.5), 3**0.5 / (2 + 3**0.5), 0, 0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(
    chosen_by: TokenFilter, expected: list[float]
) -> None:
    draws = 20_000
    order = [2, 0, 3, 1]  # the likeliest is not the first
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[order].expand(draws, 4)
    chance = torch.rand(draws, generator=torch.Generator().manual_seed(3))
    counts = torch.bincount(choose(logits, chance, chosen_by), minlength=4)
    wanted = torch.tensor(expected, dtype=torch.double)[order]
    assert not counts[wanted == 0].any()
    some = wanted > 0
    assert chisquare(counts[some].numpy(), (wanted[some] * draws).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("size", [4, 1000])
def test_the_ends_of_the_chance_never_draw_a_cut_token(size: int) -> None:
    logits = torch.randn(64, size, generator=torch.Generator().manual_seed(5)) * 4
    logits[:, 0] = -math.inf  # of probability zero even without cuts
    for chosen_by in (TokenFilter(), TokenFilter(top_k=3), TokenFilter(top_p=0.7)):
        kept = candidates(logits, chosen_by.top_k, chosen_by.top_p)
        for chance in (0.0, ALMOST_ONE, 1.0):
            chosen = choose(logits, torch.full((64,), chance), chosen_by)
            drawable = (kept.tokens == chosen[:, None]) & (kept.probabilities > 0)
            assert drawable.any(1).all()


def test_the_least_chance_draws_the_likeliest() -> None:
    logits = torch.randn(16, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(choose(logits, torch.zeros(16), TokenFilter()), logits.argmax(1))
