"""Guidance: logits are those with and without the condition, as the training forward has them.

Letters: B samples, t h w latent grid, g given latent frames, c condition tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from in_turn import class_condition
from torch import Tensor

from tatscli.core.models.gpt import GPT
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import (
    Chances,
    Condition,
    generate_between,
    generate_hierarchical,
    generate_long,
    generate_window,
)

Make = Callable[..., GPT]
CHOSEN_BY = TokenFilter(temperature=0.8, top_k=5, top_p=0.9)
GREEDY = TokenFilter(temperature=0.0)
B, FRAME, CLASSES = 5, 4, 3
GUIDANCE = 2.5


@pytest.fixture
def guidable(gpt: Make) -> Make:
    """Makes a small GPT of classes, whose logits depend on them more than those of others."""

    def make(grid: tuple[int, int, int] = (3, 2, 2), **purpose: Any) -> GPT:
        model = gpt(grid, classes=CLASSES, **purpose)
        with torch.no_grad():
            model.tok_emb.weight.mul_(4)
            model.tok_emb.weight[: model.config.condition.ids].mul_(4)
            model.ln_f.bias.zero_()  # which favours one code everywhere
        return model

    return make


def some_frames(count: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(7, (B, count, 2, 2), generator=generator)


def asked(gpt: GPT, shift: int = 0) -> Tensor:
    """Classes in turn, from another one on."""
    return class_condition(gpt, CLASSES, range(shift, shift + B))


def nothing(gpt: GPT) -> Tensor:
    """The condition that stands where nothing is asked."""
    return torch.full((B, 1), CLASSES)


def guided(gpt: GPT, condition: Tensor, codes: Tensor, guidance: float = GUIDANCE) -> Tensor:
    """The likeliest codes at each position, by two training forwards on a finished window."""
    offset = gpt.config.condition.ids
    with torch.no_grad():
        with_it = gpt(condition, codes)[..., offset:]
        without = gpt(nothing(gpt), codes)[..., offset:]
    return (without + guidance * (with_it - without)).argmax(-1)


def drawn_windows(length: int, context: int, known: int = 0) -> list[tuple[int, int, int]]:
    """Where windows of three frames start, draw their first frame, and stop."""
    start = max(0, known - 2)
    stop = min(length, start + 3) if known or length <= 3 else context
    windows = [(start, known, stop)]
    return windows + [(frame - context, frame, frame + 1) for frame in range(stop, length)]


def matters(codes: Tensor, others: Sequence[Tensor]) -> None:
    """Neither of the two conditions alone, nor one code throughout, would have been the same."""
    assert len(codes.unique()) > 3
    for other in others:
        assert not torch.equal(codes, other)


@pytest.mark.parametrize("chosen_by", [CHOSEN_BY, GREEDY])
def test_guidance_by_one_is_no_guidance(guidable: Make, chosen_by: TokenFilter) -> None:
    model, between = guidable(), guidable((5, 2, 2), infill=True)
    keys = guidable(latent_stride=4)
    first, last = some_frames(2).unbind(1)
    calls = [
        partial(generate_window, model, asked(model)),
        partial(generate_long, model, asked(model), length=6, context=1),
        partial(generate_between, between, asked(between), first, last),
        partial(
            generate_hierarchical, keys, between, asked(keys), asked(between), length=7, context=1
        ),
    ]
    for call in calls:

        def sampled(call: Callable[..., Tensor] = call, **guidance: float) -> Tensor:
            return call(chances=Chances(4, range(B)), chosen_by=chosen_by, **guidance)

        assert torch.equal(sampled(guidance=1.0), sampled())
        assert not torch.equal(sampled(guidance=GUIDANCE), sampled())


@pytest.mark.parametrize("guidance", [0.5, GUIDANCE, -1.0])
def test_a_window_is_drawn_from_logits_beyond_the_condition(
    guidable: Make, guidance: float
) -> None:
    model = guidable()

    def sampled(guidance: float) -> Tensor:
        codes = generate_window(
            model, asked(model), Chances(0, range(B)), GREEDY, guidance=guidance
        )
        return codes.flatten(1)

    codes = sampled(guidance)
    assert torch.equal(guided(model, asked(model), codes, guidance), codes)
    matters(codes, [sampled(1), sampled(0)])


@pytest.mark.parametrize(
    ("length", "context", "known"),
    [(2, 1, 0), (7, 1, 0), (7, 2, 0), (3, 1, 1), (3, 1, 2), (7, 1, 1), (7, 2, 3), (7, 1, 4)],
)
def test_every_window_is_drawn_from_logits_beyond_the_condition(
    guidable: Make, length: int, context: int, known: int
) -> None:
    model = guidable()
    given = some_frames(known) if known else None

    def sampled(guidance: float) -> Tensor:
        codes = generate_long(
            model, asked(model), Chances(0, range(B)), GREEDY,
            length=length, context=context, given=given, guidance=guidance,
        )  # fmt: skip
        return codes.flatten(1)

    codes = sampled(GUIDANCE)
    if given is not None:
        assert torch.equal(codes[:, : known * FRAME], given.flatten(1))
    for start, first, stop in drawn_windows(length, context, known):
        window = codes[:, start * FRAME : stop * FRAME]
        new = slice((first - start) * FRAME, None)
        assert torch.equal(guided(model, asked(model), window)[:, new], window[:, new])
    matters(codes, [sampled(1), sampled(0)])


@pytest.mark.parametrize("inside", [0, 1, 2])
def test_frames_between_are_drawn_from_logits_beyond_the_condition(
    guidable: Make, inside: int
) -> None:
    model = guidable((5, 2, 2), infill=True)
    first, *middle, last = some_frames(5).unbind(1)
    given = torch.stack(middle[:inside], 1) if inside else None

    def sampled(guidance: float) -> Tensor:
        return generate_between(
            model, asked(model), first, last, Chances(0, range(B)), GREEDY,
            given=given, guidance=guidance,
        )  # fmt: skip

    codes = sampled(GUIDANCE)
    window = torch.cat([first[:, None], codes, last[:, None]], 1).flatten(1)
    new = slice((1 + inside) * FRAME, -FRAME)
    assert torch.equal(guided(model, asked(model), window)[:, new], window[:, new])
    matters(codes, [sampled(1), sampled(0)])


@pytest.mark.parametrize("known", [0, 2, 6])
def test_hierarchical_samples_are_guided_in_both_models(guidable: Make, known: int) -> None:
    keys = guidable(latent_stride=4)
    between = guidable((5, 2, 2), infill=True)
    given = some_frames(known) if known else None

    def sampled(guidance: float) -> Tensor:
        return generate_hierarchical(
            keys, between, asked(keys), asked(between, 1), Chances(0, range(B)), GREEDY,
            length=13, context=1, given=given, guidance=guidance,
        )  # fmt: skip

    video = sampled(GUIDANCE)
    assert torch.equal(video[:, :known], some_frames(known))
    key_frames = video[:, ::4].flatten(1)
    for start, first, stop in drawn_windows(4, 1, -(-known // 4)):
        window = key_frames[:, start * FRAME : stop * FRAME]
        new = slice((first - start) * FRAME, None)
        assert torch.equal(guided(keys, asked(keys), window)[:, new], window[:, new])
    for first in (0, 4, 8):
        window = video[:, first : first + 5].flatten(1)
        new = slice((1 + min(3, max(0, known - first - 1))) * FRAME, -FRAME)
        assert torch.equal(guided(between, asked(between, 1), window)[:, new], window[:, new])
    matters(video, [sampled(1), sampled(0)])


def test_guidance_by_nothing_gives_the_samples_of_no_condition(guidable: Make) -> None:
    model = guidable()
    chances = partial(Chances, 4, range(B))
    for length in (3, 6):
        call = partial(generate_long, model, chosen_by=CHOSEN_BY, length=length, context=1)
        found = call(asked(model), chances=chances(), guidance=0.0)
        assert torch.equal(found, call(nothing(model), chances=chances()))
        assert not torch.equal(found, call(asked(model), chances=chances()))


@pytest.mark.parametrize("length", [3, 5])
def test_a_guided_sample_is_the_same_whatever_its_batch(guidable: Make, length: int) -> None:
    model = guidable()

    def sampled(batch: int) -> Tensor:
        parts = []
        for first in range(0, 7, batch):
            numbers = range(first, min(first + batch, 7))
            parts.append(
                generate_long(
                    model, class_condition(model, CLASSES, numbers), Chances(6, numbers),
                    CHOSEN_BY, length=length, context=1, guidance=GUIDANCE,
                )
            )  # fmt: skip
        return torch.cat(parts)

    samples = sampled(7)
    assert torch.equal(sampled(1), samples)
    assert torch.equal(sampled(3), samples)
    assert len(samples.flatten(1).unique(dim=0)) == 7


class Following:
    """A condition that is another in each window, and where it was asked for."""

    def __init__(self, gpt: GPT) -> None:
        self.gpt = gpt
        self.starts: list[int] = []

    def of(self, start: int) -> Tensor:
        """That of the window that starts at a latent frame."""
        return asked(self.gpt, start % CLASSES)

    def __call__(self, start: int) -> Tensor:
        self.starts.append(start)
        return self.of(start)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@pytest.mark.parametrize(
    ("length", "context", "known", "starts"),
    [
        (3, 1, 0, [0]),
        (7, 1, 0, [0, 0, 1, 2, 3, 4, 5]),  # the first frames alone, then the first that slides
        (7, 2, 0, [0, 0, 1, 2, 3, 4]),
        (7, 1, 4, [2, 4, 5]),
        (7, 2, 2, [0, 1, 2, 3, 4]),
    ],
)
def test_each_window_has_the_condition_of_the_frame_it_starts_at(
    guidable: Make, guidance: float, length: int, context: int, known: int, starts: list[int]
) -> None:
    model = guidable()
    given = some_frames(known) if known else None
    condition = Following(model)

    def sampled(condition: Condition) -> Tensor:
        codes = generate_long(
            model, condition, Chances(0, range(B)), GREEDY,
            length=length, context=context, given=given, guidance=guidance,
        )  # fmt: skip
        return codes.flatten(1)

    codes = sampled(condition)
    assert condition.starts == starts
    for start, first, stop in drawn_windows(length, context, known):
        window = codes[:, start * FRAME : stop * FRAME]
        new = slice((first - start) * FRAME, None)
        expected = guided(model, condition.of(start), window, guidance)
        assert torch.equal(expected[:, new], window[:, new])
    if length > 3:
        assert not torch.equal(codes, sampled(condition.of(0)))


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@pytest.mark.parametrize(
    ("known", "key_starts", "gaps"),
    [(0, [0, 4, 8, 12], [0, 4, 8, 12]), (8, [0, 4, 8, 12], [8, 12])],
)
def test_key_frames_and_gaps_have_the_condition_of_the_frame_they_start_at(
    guidable: Make, guidance: float, known: int, key_starts: list[int], gaps: list[int]
) -> None:
    keys = guidable((3, 2, 2), latent_stride=4)
    between = guidable((5, 2, 2), infill=True)
    given = some_frames(known) if known else None
    key_condition, between_condition = Following(keys), Following(between)

    def sampled(key_condition: Condition, between_condition: Condition) -> Tensor:
        return generate_hierarchical(
            keys, between, key_condition, between_condition, Chances(0, range(B)), GREEDY,
            length=17, context=1, given=given, guidance=guidance,
        )  # fmt: skip

    video = sampled(key_condition, between_condition)
    windows = drawn_windows(5, 1, -(-known // 4))
    assert key_condition.starts == [4 * start for start, _, _ in windows]
    key_frames = video[:, ::4].flatten(1)
    for start, first, stop in windows:
        window = key_frames[:, start * FRAME : stop * FRAME]
        new = slice((first - start) * FRAME, None)
        expected = guided(keys, key_condition.of(4 * start), window, guidance)
        assert torch.equal(expected[:, new], window[:, new])
    assert between_condition.starts == gaps
    for first in gaps:
        window = video[:, first : first + 5].flatten(1)
        new = slice((1 + max(0, known - first - 1)) * FRAME, -FRAME)
        expected = guided(between, between_condition.of(first), window, guidance)
        assert torch.equal(expected[:, new], window[:, new])
    assert not torch.equal(video, sampled(key_condition.of(0), between_condition))
    assert not torch.equal(video, sampled(key_condition, between_condition.of(0)))
