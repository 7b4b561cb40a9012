"""Which codes of a codebook are used, how evenly, and where in the latent grid.

Letters: B clips, t h w latent grid, K codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ENOUGH = 10
"""Tokens for each code below which many a code is unused only by chance."""


@dataclass(frozen=True)
class CodeUsage:
    """How a codebook is used.

    A place sees fewer tokens than the whole, and can use no more codes than it sees tokens.

    Attributes:
        codes: K, of the codebook.
        tokens: Tokens counted.
        used: Codes that occur.
        fraction: The same as a part of all.
        perplexity: Codes that, used equally often, would be as hard to guess.
        dead: Codes that do not occur, ascending.
        used_by_time: Codes that occur in each latent frame of a clip, t numbers.
        perplexity_by_time: Perplexity of each.
        used_by_place: Codes that occur at each place of the latent frames, h rows of w.
        perplexity_by_place: Perplexity of each.
    """

    codes: int
    tokens: int
    used: int
    fraction: float
    perplexity: float
    dead: list[int]
    used_by_time: list[int]
    perplexity_by_time: list[float]
    used_by_place: list[list[int]]
    perplexity_by_place: list[list[float]]

    @property
    def has_enough_tokens(self) -> bool:
        """Whether enough tokens were seen to call a code dead."""
        return self.tokens >= ENOUGH * self.codes


class UsageCounts:
    """Counts codes, by time and by place, clip after clip.

    Args:
        codes: K, of the codebook.
        grid: (t, h, w) of a clip.

    Attributes:
        by_time: How often each code occurs in each latent frame, int32 (t, K).
        by_place: The same at each place of a latent frame, int32 (h, w, K).
    """

    def __init__(self, codes: int, grid: tuple[int, int, int]) -> None:
        time, height, width = grid
        self.by_time = torch.zeros(time, codes, dtype=torch.int32)
        self.by_place = torch.zeros(height, width, codes, dtype=torch.int32)

    @property
    def total(self) -> Tensor:
        """How often each code occurs, int64 (K,)."""
        return self.by_time.sum(0)

    def add(self, codes: Tensor) -> None:
        """Counts the codes of clips, int64 (B, t, h, w)."""
        _count(self.by_time, codes.cpu().transpose(0, 1).flatten(1))
        _count(self.by_place, codes.cpu().flatten(0, 1).permute(1, 2, 0))

    def summary(self) -> CodeUsage:
        """What was counted; at least one clip."""
        total = self.total
        used = int((total > 0).sum())
        # A row at a time: the whole in float64 can be large.
        perplexity_by_place = [usage_perplexity(row).tolist() for row in self.by_place]
        return CodeUsage(
            codes=len(total),
            tokens=int(total.sum()),
            used=used,
            fraction=used / len(total),
            perplexity=float(usage_perplexity(total)),
            dead=(total == 0).nonzero().flatten().tolist(),
            used_by_time=(self.by_time > 0).sum(-1).tolist(),
            perplexity_by_time=usage_perplexity(self.by_time).tolist(),
            used_by_place=(self.by_place > 0).sum(-1).tolist(),
            perplexity_by_place=perplexity_by_place,
        )


def usage_perplexity(counts: Tensor) -> Tensor:
    """The number of codes that, used equally often, would be as hard to guess.

    Args:
        counts: How often each code occurs, (..., K), not all 0.

    Returns:
        float64, (...).
    """
    share = counts.double() / counts.sum(-1, keepdim=True)
    perplexity: Tensor = torch.special.entr(share).sum(-1).exp()
    return perplexity


def _count(counts: Tensor, codes: Tensor) -> None:
    """Adds codes (..., N) to counts (..., K) in place."""
    counts.scatter_add_(-1, codes, torch.ones((), dtype=counts.dtype).expand_as(codes))
