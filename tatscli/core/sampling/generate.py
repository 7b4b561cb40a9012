"""Generation of token grids: one window, any length by a sliding window, or by key frames.

The sequence is that of training (DESIGN: condition, then video tokens in (t, h, w) order), read
from a preallocated key/value cache. Ids of the condition are never drawn unless that is asked for.
The first latent frames of a sample may be given, as codes of a real video. Guidance (Ho and
Salimans 2022) reads each sequence a second time without its condition and draws from the logits
``without + guidance * (with - without)``; at 1 it is off.

Letters: B samples, t h w latent grid, g given latent frames, c condition tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from tatscli.core.models.gpt import GPT, KVCache, drop_parts
from tatscli.core.models.graphs import RecordedSteps
from tatscli.core.models.shapes import check_range
from tatscli.core.sampling.filters import TokenFilter, choose

Progress = Callable[[int], None]
"""Called with the number of tokens done, a sample; given ones count as done."""

Condition = Tensor | Callable[[int], Tensor]
"""Joint ids (B, c), for every window or for that which starts at a latent frame of the sample."""


class Chances:
    """Uniform numbers of each sample, from a generator of its own.

    Args:
        seed: Seed of the whole set.
        indices: Numbers of the samples in the set; sample i depends on (seed, i) alone.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(_mix(seed, i)) for i in indices]
        self._parts = 1

    def __len__(self) -> int:
        """Samples B."""
        return self._parts * len(self._generators)

    def of_parts(self, parts: int) -> "Chances":
        """The same for so many parts of each sample, written at once as if one after the other.

        Their rows are those of the first part, then those of the second.
        """
        shared = copy(self)
        shared._parts = parts
        return shared

    def draw(self, count: int, device: torch.device) -> Tensor:
        """The next numbers of each sample, (B, count) in [0, 1)."""
        rows = [
            torch.rand(count, generator=generator)
            for _ in range(self._parts)
            for generator in self._generators
        ]
        return torch.stack(rows).to(device)


@torch.inference_mode()
def generate_window(
    gpt: GPT,
    condition: Condition,
    chances: Chances,
    chosen_by: TokenFilter,
    *,
    frames: int | None = None,
    given: Tensor | None = None,
    guidance: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Sample the first latent frames of a window.

    Args:
        gpt: The model, in eval mode.
        condition: What the samples are to show.
        chances: Randomness of the samples.
        chosen_by: Temperature and cuts.
        frames: Latent frames, at most those of the window; by default all.
        given: (B, g, h, w) codes that the samples start with, g < frames.
        guidance: How far to go beyond the condition.
        progress: Told after each token.

    Returns:
        (B, t, h, w) int64 codes, the given ones included.
    """
    window = gpt.config.grid[0]
    frames = window if frames is None else frames
    if not 1 <= frames <= window:
        raise ValueError(f"{frames} latent frames asked of a window of {window}")
    return generate_long(
        gpt,
        condition,
        chances,
        chosen_by,
        length=frames,
        context=1,
        given=given,
        guidance=guidance,
        progress=progress,
    )


@torch.inference_mode()
def generate_long(
    gpt: GPT,
    condition: Condition,
    chances: Chances,
    chosen_by: TokenFilter,
    *,
    length: int,
    context: int,
    given: Tensor | None = None,
    first_by: TokenFilter | None = None,
    guidance: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Sample any number of latent frames: each new one from the ``context`` frames before it.

    The context is read as the start of a window, positions from zero and the condition before it,
    as published. Up to the length of a window this is plain sampling. Given frames start a first
    window, as many of the last ones as leave room for a new one, which is filled before it slides.

    Args:
        gpt: The model, in eval mode.
        condition: What the samples are to show, in every window or in each.
        chances: Randomness of the samples.
        chosen_by: Temperature and cuts.
        length: Latent frames to sample.
        context: Latent frames that each new one is generated from, 1 to window - 1.
        given: (B, g, h, w) codes that the samples start with, g < length.
        first_by: Temperature and cuts of the first ``context`` latent frames, which decide the
            scene; by default those of all.
        guidance: How far to go beyond the condition.
        progress: Told after each token.

    Returns:
        (B, length, h, w) int64 codes, the given ones included.
    """
    window, height, width = gpt.config.grid
    if length > window and not 1 <= context < window:
        raise ValueError(f"context {context} must be from 1 to {window - 1}")
    known = _given_frames(given, gpt, length)
    start = 0
    if length <= window:
        stop = length
    elif known:
        start = max(0, known - window + 1)
        stop = min(length, start + window)
    else:
        stop = context
    frame, offset = height * width, gpt.config.condition.ids
    sequence = _Sequence(gpt, condition, chances, guidance, _Count(progress, known * frame))
    ids = sequence.room(length * frame)
    if given is not None:
        ids[:, : known * frame] = given.flatten(1) + offset
    sequence.open(ids[:, start * frame : known * frame], start)
    done = known
    for end, cuts in ((min(context, stop), first_by or chosen_by), (stop, chosen_by)):
        if end > done:
            new = slice(done * frame, end * frame)
            ids[:, new] = sequence.write((end - done) * frame, cuts)
            done = end
    for past in range(done - context, length - context):
        sequence.open(ids[:, past * frame : (past + context) * frame], past)
        new = slice((past + context) * frame, (past + context + 1) * frame)
        ids[:, new] = sequence.write(frame, chosen_by)
    return _codes(ids, offset).reshape(len(ids), length, height, width)


@torch.inference_mode()
def generate_between(
    gpt: GPT,
    condition: Tensor,
    first: Tensor,
    last: Tensor,
    chances: Chances,
    chosen_by: TokenFilter,
    *,
    given: Tensor | None = None,
    guidance: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Sample the latent frames between two.

    Args:
        gpt: A model that infills, in eval mode.
        condition: (B, c) joint ids.
        first: (B, h, w) codes of the first latent frame of the window.
        last: (B, h, w) codes of the last latent frame of the window.
        chances: Randomness of the samples.
        chosen_by: Temperature and cuts.
        given: (B, g, h, w) codes of the first of the frames between, where they are known too.
        guidance: How far to go beyond the condition.
        progress: Told after each token.

    Returns:
        (B, t - 2, h, w) int64 codes, the given ones included.
    """
    window, height, width = gpt.config.grid
    known = _given_frames(given, gpt, window - 2)
    frame = height * width
    sequence = _Sequence(gpt, condition, chances, guidance, _Count(progress, known * frame))
    sequence.open_between(first.flatten(1), last.flatten(1))
    ids = sequence.room((window - 2) * frame)
    if given is not None:
        ids[:, : known * frame] = given.flatten(1) + gpt.config.condition.ids
        sequence.read(ids[:, : known * frame])
    ids[:, known * frame :] = sequence.write((window - 2 - known) * frame, chosen_by)
    return _codes(ids, gpt.config.condition.ids).reshape(len(ids), window - 2, height, width)


@torch.inference_mode()
def generate_hierarchical(
    keys: GPT,
    between: GPT,
    key_condition: Condition,
    between_condition: Condition,
    chances: Chances,
    chosen_by: TokenFilter,
    *,
    length: int,
    context: int,
    given: Tensor | None = None,
    first_by: TokenFilter | None = None,
    guidance: float = 1.0,
    sequences: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Sample any number of latent frames: key frames first, then those between (section 3.3).

    Args:
        keys: The model of key frames, in eval mode.
        between: The model that infills, in eval mode; its window reaches from one key frame to
            the next.
        key_condition: What the samples are to show, in the ids of ``keys``.
        between_condition: The same, in the ids of ``between``.
        chances: Randomness of the samples.
        chosen_by: Temperature and cuts.
        length: Latent frames to sample.
        context: Key frames that each new one is generated from, see ``generate_long``.
        given: (B, g, h, w) codes that the samples start with, g < length.
        first_by: Temperature and cuts of the first ``context`` key frames.
        guidance: How far to go beyond the condition.
        sequences: Sequences that may be written at once; where there are fewer samples, several
            gaps of each are, which changes nothing but the time.
        progress: Told after each token, ``hierarchical_frames`` latent frames in all.

    Returns:
        (B, length, h, w) int64 codes, the given ones included.
    """
    stride = keys.config.latent_stride
    if between.config.grid != (stride + 1, *keys.config.grid[1:]):
        raise ValueError(f"windows of {between.config.grid}, key frames {stride} apart")
    total = hierarchical_frames(length, stride)
    known = _given_frames(given, keys, length)
    frame, tell = keys.config.frame_tokens, progress or _quiet
    video = torch.empty(
        (len(chances), total, *keys.config.grid[1:]),
        dtype=torch.long,
        device=keys.pos_emb.device,
    )
    if given is not None:
        video[:, :known] = given
    key_frames = video[:, ::stride]
    known_keys = -(-known // stride)
    key_frames.copy_(
        generate_long(
            keys,
            lambda key: _window(key_condition, key * stride),
            chances,
            chosen_by,
            length=key_frames.shape[1],
            context=context,
            given=key_frames[:, :known_keys] if known else None,
            first_by=first_by,
            guidance=guidance,
            progress=tell,
        )
    )
    for starts in _gaps(known, total, stride, max(1, sequences // len(chances))):
        first, last = (
            rearrange(video[:, [start + end for start in starts]], "b g h w -> (g b) h w")
            for end in (0, stride)
        )
        # Known frames are in the first of the gaps alone, and it is then by itself.
        inside = video[:, starts[0] + 1 : known]
        done = (key_frames.shape[1] + starts[0] // stride * (stride - 1)) * frame
        filled = generate_between(
            between,
            torch.cat([_window(between_condition, start) for start in starts]),
            first,
            last,
            chances.of_parts(len(starts)),
            chosen_by,
            given=inside if inside.shape[1] else None,
            guidance=guidance,
            progress=partial(_tell, tell, done, len(starts)),
        )
        for start, frames in zip(starts, filled.chunk(len(starts)), strict=True):
            video[:, start + 1 : start + stride] = frames
    return video[:, :length]


def hierarchical_frames(length: int, stride: int) -> int:
    """Latent frames written for a length: up to the key frame at its end or behind it."""
    return -(-(length - 1) // stride) * stride + 1


class _Count:
    """Counts the tokens done and tells each."""

    def __init__(self, progress: Progress | None, done: int) -> None:
        self._progress = progress or _quiet
        self._done = done

    def __call__(self) -> None:
        self._done += 1
        self._progress(self._done)


class _Sequence:
    """Sequences of joint ids that the model writes, one window after the other.

    Where guidance asks for it, the model reads each of them twice in one batch: with the condition,
    then without.
    """

    def __init__(
        self,
        gpt: GPT,
        condition: Condition,
        chances: Chances,
        guidance: float,
        count: Callable[[], None],
    ) -> None:
        self._gpt, self._chances, self._count = gpt, chances, count
        self._condition, self._guidance = condition, guidance
        self._batch, self._device = len(chances), gpt.pos_emb.device
        read = self._batch if guidance == 1 else 2 * self._batch
        self._cache: KVCache
        self._step: Callable[[Tensor], Tensor]
        if gpt.replays:
            self._step = steps = RecordedSteps(gpt, read)
            self._cache = steps.cache
        else:
            self._cache = KVCache(gpt, read)
            self._step = partial(gpt.step, cache=self._cache)
        self._unread: Tensor | None = None
        self._logits: Tensor | None = None

    def room(self, count: int) -> Tensor:
        """Where ids of the samples are put, (B, count)."""
        return torch.empty((self._batch, count), dtype=torch.long, device=self._device)

    def open(self, past: Tensor, start: int) -> None:
        """Begin the window that starts at a latent frame, with its condition and ids (B, n)."""
        self._cache.reset()
        self._logits = None
        self._unread = torch.cat([self._conditions(start), self._twice(past)], dim=1)

    def open_between(self, first: Tensor, last: Tensor) -> None:
        """Begin the window between two latent frames; codes (B, h w) each."""
        self._cache.reset()
        ends = self._twice(first), self._twice(last)
        self._logits = self._gpt.step_ends(self._conditions(0), *ends, self._cache)

    def read(self, ids: Tensor) -> None:
        """Go on with ids (B, n) that are known."""
        self._logits, self._unread = None, self._twice(ids)

    def _conditions(self, start: int) -> Tensor:
        condition = _window(self._condition, start)
        if self._guidance == 1:
            return condition
        layout = self._gpt.config.condition
        everything = torch.ones(self._batch, len(layout.parts), dtype=torch.bool)
        return torch.cat([condition, drop_parts(layout, condition, everything)])

    def _twice(self, ids: Tensor) -> Tensor:
        return ids if self._guidance == 1 else ids.repeat(2, 1)

    def _guided(self, logits: Tensor) -> Tensor:
        """The logits to draw from, (B, V)."""
        if self._guidance == 1:
            return logits
        with_it, without = logits.float().chunk(2)
        return without + self._guidance * (with_it - without)

    def write(self, count: int, chosen_by: TokenFilter) -> Tensor:
        """Draw the next ids, (B, count)."""
        offset = 0 if chosen_by.condition_ids else self._gpt.config.condition.ids
        chance = self._chances.draw(count, self._device)
        drawn = []
        for position in range(count):
            logits = self._logits
            if logits is None:
                assert self._unread is not None, "a window was opened"
                logits = self._step(self._unread)
            logits = self._guided(logits)
            ids = choose(logits[:, offset:], chance[:, position], chosen_by)[:, None] + offset
            self.read(ids)
            drawn.append(ids)
            self._count()
        return torch.cat(drawn, dim=1)


def _window(condition: Condition, start: int) -> Tensor:
    """The condition of the window that starts at a latent frame."""
    return condition if isinstance(condition, Tensor) else condition(start)


def _tell(progress: Progress, before: int, parts: int, done: int) -> None:
    """Tell the tokens done of so many parts that are written at once."""
    progress(before + parts * done)


def _gaps(known: int, total: int, stride: int, together: int) -> Iterator[list[int]]:
    """Where the gaps start that are to be filled, at most so many at once.

    Args:
        known: Latent frames that are given; a gap that they reach into is by itself.
        total: Latent frames in all, from the first key frame to the last.
        stride: From one key frame to the next.
        together: Gaps at once.
    """
    starts = [start for start in range(0, total - 1, stride) if known < start + stride]
    if starts and known > starts[0] + 1:
        yield [starts.pop(0)]
    for number in range(0, len(starts), together):
        yield starts[number : number + together]


def _codes(ids: Tensor, offset: int) -> Tensor:
    """Codes of joint ids; those of the condition, where they may be drawn, become code 0."""
    return (ids - offset).clamp(min=0)


def _given_frames(given: Tensor | None, gpt: GPT, length: int) -> int:
    """How many latent frames are given."""
    if given is None:
        return 0
    known, *sides = given.shape[1:]
    if not 1 <= known < length or tuple(sides) != gpt.config.grid[1:]:
        raise ValueError(
            f"given codes of {known} x {sides}, expected fewer than {length} latent frames of "
            f"{gpt.config.grid[1:]}"
        )
    check_range("given code", given, gpt.config.codes)
    return known


def _mix(seed: int, index: int) -> int:
    """One seed for a sample: distinct pairs give unrelated streams."""
    state = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    return (state ^ (state >> 27)) % 2**63


def _quiet(_: int) -> None:
    pass
