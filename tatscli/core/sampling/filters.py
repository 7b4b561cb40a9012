"""Choosing a token from logits: temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020).

Letters: B samples, K vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Candidates(NamedTuple):
    """Tokens that may be drawn, likeliest first.

    Attributes:
        probabilities: (B, n), zero for what was cut, not renormalised.
        tokens: (B, n) ids.
    """

    probabilities: Tensor
    tokens: Tensor


class TokenFilter(NamedTuple):
    """How tokens are chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Candidates kept; 0 keeps all.
        top_p: Probability mass kept; the candidate that crosses it stays.
        condition_ids: Whether ids of the condition may be drawn as well; they mean nothing there
            and are taken for code 0, as in the published code.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    condition_ids: bool = False


def candidates(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Candidates:
    """Cut to the k likeliest tokens, then to the likeliest that reach the mass p among those.

    Args:
        logits: (B, K) float.
        top_k: Tokens to keep; 0 or more than K keeps all.
        top_p: Mass to keep, in (0, 1].
    """
    keep = min(top_k, logits.shape[-1]) if top_k else logits.shape[-1]
    values, tokens = logits.topk(keep, dim=-1)
    probabilities = values.softmax(dim=-1)
    if top_p < 1:
        # A candidate stays while the mass before it is within p.
        before = probabilities.cumsum(dim=-1) - probabilities
        first = torch.arange(keep, device=logits.device) == 0
        probabilities = probabilities * ((before <= top_p) | first)
    return Candidates(probabilities, tokens)


def choose(logits: Tensor, chance: Tensor, chosen_by: TokenFilter) -> Tensor:
    """Draw one token a sample by inverting its cumulative distribution.

    Args:
        logits: (B, K) float.
        chance: (B,) uniform numbers in [0, 1): the only randomness, one a sample, so that a
            sample does not depend on which others share its batch.
        chosen_by: Temperature and cuts.

    Returns:
        (B,) int64.
    """
    if chosen_by.temperature == 0:
        return logits.argmax(dim=-1)
    kept = candidates(logits.float() / chosen_by.temperature, chosen_by.top_k, chosen_by.top_p)
    cumulative = kept.probabilities.cumsum(dim=-1)
    target = chance.to(cumulative).unsqueeze(-1) * cumulative[..., -1:]
    # Rounding can put the target at the very end of the mass; the last drawable token is meant.
    rank = torch.searchsorted(cumulative, target, right=True)
    last = (kept.probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return kept.tokens.gather(-1, rank.minimum(last)).squeeze(-1)
