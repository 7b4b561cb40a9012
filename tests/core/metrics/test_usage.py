"""Which codes are used and where, on codes made up for it."""

import pytest
import torch

from tatscli.core.metrics.usage import UsageCounts, usage_perplexity


def test_perplexity_counts_codes_that_are_used_equally_often() -> None:
    counts = torch.tensor([[5, 0, 5, 5, 0], [0, 7, 0, 0, 0]])
    assert usage_perplexity(counts).tolist() == pytest.approx([3, 1])
    assert 1 < usage_perplexity(torch.tensor([9, 1])) < 2


def made_up() -> torch.Tensor:
    """Two clips of 2 x 2 x 3: in the first latent frame code 1; then the number of the column."""
    codes = torch.ones(2, 2, 2, 3, dtype=torch.long)
    codes[:, 1] = torch.arange(3)
    codes[1, 1, 1, 2] = 5
    return codes


def test_usage_by_time_and_by_place() -> None:
    counts = UsageCounts(8, (2, 2, 3))
    for clip in made_up():
        counts.add(clip[None])
    found = counts.summary()
    assert counts.total.tolist() == [4, 16, 3, 0, 0, 1, 0, 0]
    assert (found.codes, found.tokens, found.used, found.fraction) == (8, 24, 4, 0.5)
    assert found.dead == [3, 4, 6, 7]
    assert found.used_by_time == [1, 4]
    assert found.perplexity_by_time[0] == pytest.approx(1)
    # Four, four, three and one of twelve.
    assert found.perplexity_by_time[1] == pytest.approx(12 / (4**8 * 3**3) ** (1 / 12))
    # The first column has codes 1 and 0, the second 1 alone, the third 1 and 2, and once 5.
    assert found.used_by_place == [[2, 1, 2], [2, 1, 3]]
    assert found.perplexity_by_place[0] == pytest.approx([2, 1, 2])
    assert found.perplexity_by_place[1] == pytest.approx([2, 1, 2 * 2**0.5])


def test_batches_count_as_their_clips() -> None:
    together, apart = UsageCounts(8, (2, 2, 3)), UsageCounts(8, (2, 2, 3))
    together.add(made_up())
    for clip in made_up():
        apart.add(clip[None])
    assert together.summary() == apart.summary()


def test_tokens_are_enough_from_ten_for_each_code_on() -> None:
    counts = UsageCounts(2, (1, 1, 1))
    counts.add(torch.zeros(19, 1, 1, 1, dtype=torch.long))
    assert not counts.summary().has_enough_tokens
    counts.add(torch.ones(1, 1, 1, 1, dtype=torch.long))
    assert counts.summary().has_enough_tokens
