"""Generation of token grids: one window, or any length by a sliding window.

The sequence is that of training (DESIGN: condition, then video tokens in (t, h, w) order), read
from a preallocated key/value cache. Ids of the condition can never be drawn.

Letters: B samples, t h w latent grid, c condition tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from tatscli.core.models.gpt import GPT, KVCache, condition_ids
from tatscli.core.sampling.filters import TokenFilter, choose

Progress = Callable[[int], None]
"""Called with the number of tokens done, a sample."""


class Chances:
    """Uniform numbers of each sample, from a generator of its own.

    Args:
        seed: Seed of the whole set.
        indices: Numbers of the samples in the set; sample i depends on (seed, i) alone.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(_mix(seed, i)) for i in indices]

    def draw(self, count: int, device: torch.device) -> Tensor:
        """The next numbers of each sample, (B, count) in [0, 1)."""
        rows = [torch.rand(count, generator=generator) for generator in self._generators]
        return torch.stack(rows).to(device)


def class_condition(gpt: GPT, classes: int, numbers: Sequence[int]) -> Tensor:
    """The condition of samples that take the classes in turn; the start token without classes.

    Args:
        gpt: The model.
        classes: How many classes it was trained on.
        numbers: Numbers of the samples in the set.

    Returns:
        (B, c) joint ids on the device of the model.
    """
    layout, device = gpt.config.condition, gpt.pos_emb.device
    labels = torch.tensor([i % classes for i in numbers]) if layout.part("label") else None
    return condition_ids(layout, len(numbers), labels).to(device)


@torch.no_grad()
def generate_window(
    gpt: GPT,
    condition: Tensor,
    chances: Chances,
    chosen_by: TokenFilter,
    *,
    frames: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Sample the first latent frames of a window.

    Args:
        gpt: The model, in eval mode.
        condition: (B, c) joint ids.
        chances: Randomness of the samples.
        chosen_by: Temperature and cuts.
        frames: Latent frames, at most those of the window; by default all.
        progress: Told after each token.

    Returns:
        (B, t, h, w) int64 codes.
    """
    window, height, width = gpt.config.grid
    frames = window if frames is None else frames
    if not 1 <= frames <= window:
        raise ValueError(f"{frames} latent frames asked of a window of {window}")
    cache = KVCache(gpt.config, len(condition), condition.device, _dtype(gpt))
    codes = _continue(
        gpt, condition, cache, frames * height * width, chances, chosen_by, progress or _quiet
    )
    return codes.reshape(len(condition), frames, height, width)


@torch.no_grad()
def generate_long(
    gpt: GPT,
    condition: Tensor,
    chances: Chances,
    chosen_by: TokenFilter,
    *,
    length: int,
    context: int,
    progress: Progress | None = None,
) -> Tensor:
    """Sample any number of latent frames: each new one from the ``context`` frames before it.

    The context is read as the start of a window, positions from zero and the condition before it,
    as published. Up to the length of a window this is plain sampling.

    Args:
        gpt: The model, in eval mode.
        condition: (B, c) joint ids, repeated in every window.
        chances: Randomness of the samples.
        chosen_by: Temperature and cuts.
        length: Latent frames to sample.
        context: Latent frames that each new one is generated from, 1 to window - 1.
        progress: Told after each token.

    Returns:
        (B, length, h, w) int64 codes.
    """
    window, height, width = gpt.config.grid
    if length <= window:
        return generate_window(gpt, condition, chances, chosen_by, frames=length, progress=progress)
    if not 1 <= context < window:
        raise ValueError(f"context {context} must be from 1 to {window - 1}")
    frame = height * width
    codes = torch.empty((len(condition), length * frame), dtype=torch.long, device=condition.device)
    cache = KVCache(gpt.config, len(condition), condition.device, _dtype(gpt))
    tell = progress or _quiet
    done = context * frame
    codes[:, :done] = _continue(gpt, condition, cache, done, chances, chosen_by, tell)
    while done < length * frame:
        cache.reset()
        past = codes[:, done - context * frame : done] + gpt.config.condition.ids
        start = torch.cat([condition, past], dim=1)
        codes[:, done : done + frame] = _continue(
            gpt, start, cache, frame, chances, chosen_by, partial(_tell_from, tell, done)
        )
        done += frame
    return codes.reshape(len(condition), length, height, width)


def _continue(
    gpt: GPT,
    start: Tensor,
    cache: KVCache,
    count: int,
    chances: Chances,
    chosen_by: TokenFilter,
    progress: Progress,
) -> Tensor:
    """Append ``count`` codes to a sequence of joint ids; (B, count) codes without offset."""
    offset = gpt.config.condition.ids
    chance = chances.draw(count, start.device)
    codes = torch.empty((len(start), count), dtype=torch.long, device=start.device)
    ids = start
    for position in range(count):
        logits = gpt.step(ids, cache)[:, offset:]
        codes[:, position] = choose(logits, chance[:, position], chosen_by)
        ids = codes[:, position : position + 1] + offset
        progress(position + 1)
    return codes


def _mix(seed: int, index: int) -> int:
    """One seed for a sample: distinct pairs give unrelated streams."""
    state = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    return (state ^ (state >> 27)) % 2**63


def _dtype(gpt: GPT) -> torch.dtype:
    return next(gpt.parameters()).dtype


def _tell_from(progress: Progress, done: int, more: int) -> None:
    progress(done + more)


def _quiet(_: int) -> None:
    pass
