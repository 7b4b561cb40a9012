"""Infilling and key frames: logits, positions and visibility are those of training.

Letters: B samples, t h w latent grid, g given latent frames.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from in_turn import class_condition
from torch import Tensor

from tatscli.core.models.gpt import GPT, condition_ids
from tatscli.core.sampling.filters import TokenFilter, choose
from tatscli.core.sampling.generate import (
    Chances,
    generate_between,
    generate_hierarchical,
    generate_long,
    hierarchical_frames,
)

Make = Callable[..., GPT]
CHOSEN_BY = TokenFilter(temperature=0.8, top_k=5, top_p=0.9)
GREEDY = TokenFilter(temperature=0.0)
CPU = torch.device("cpu")
B, FRAME = 4, 4


def some_frames(count: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(7, (B, count, 2, 2), generator=generator)


def drawn_in_training(
    gpt: GPT, condition: Tensor, window: Tensor, chance: Tensor, chosen_by: TokenFilter
) -> Tensor:
    """What the training forward on a finished window would have drawn at its last positions."""
    with torch.no_grad():
        logits = gpt(condition, window)[..., gpt.config.condition.ids :]
    logits = logits[:, -FRAME - chance.shape[1] : -FRAME]
    return torch.stack(
        [choose(logits[:, i], chance[:, i], chosen_by) for i in range(chance.shape[1])], 1
    )


@pytest.mark.parametrize("inside", [0, 1, 2])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("chosen_by", [CHOSEN_BY, GREEDY])
def test_frames_between_are_drawn_from_the_logits_of_the_training_forward(
    gpt: Make, classes: int, inside: int, chosen_by: TokenFilter
) -> None:
    model = gpt((5, 2, 2), classes=classes, infill=True)
    condition = class_condition(model, classes, range(B))
    first, *middle, last = some_frames(5).unbind(1)
    given = torch.stack(middle[:inside], 1) if inside else None
    between = generate_between(
        model, condition, first, last, Chances(2, range(B)), chosen_by, given=given
    )
    assert between.shape == (B, 3, 2, 2)
    if given is not None:
        assert torch.equal(between[:, :inside], given)
    window = torch.cat([first[:, None], between, last[:, None]], 1).flatten(1)
    written = (3 - inside) * FRAME
    chance = Chances(2, range(B)).draw(written, CPU)
    expected = drawn_in_training(model, condition, window, chance, chosen_by)
    assert torch.equal(expected, between.flatten(1)[:, -written:])
    assert len(expected.unique()) > 1


def test_frames_between_depend_on_both_ends(gpt: Make) -> None:
    model = gpt((5, 2, 2), infill=True)
    condition = class_condition(model, 0, range(B))
    first, last, other = some_frames(3).unbind(1)

    def between(first: Tensor, last: Tensor) -> Tensor:
        return generate_between(model, condition, first, last, Chances(0, range(B)), GREEDY)

    assert not torch.equal(between(first, last), between(other, last))
    assert not torch.equal(between(first, last), between(first, other))


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 9, 13, 14])
def test_a_hierarchical_sample_is_its_key_frames_and_what_fills_them(
    gpt: Make, classes: int, length: int
) -> None:
    keys = gpt((3, 2, 2), classes=classes, latent_stride=4)
    between = gpt((5, 2, 2), classes=classes, infill=True)
    conditions = [class_condition(model, classes, range(B)) for model in (keys, between)]
    video = generate_hierarchical(
        keys, between, *conditions, Chances(8, range(B)), CHOSEN_BY, length=length, context=1
    )
    assert video.shape == (B, length, 2, 2)
    chances = Chances(8, range(B))
    count = -(-(length - 1) // 4) + 1
    expected_keys = generate_long(keys, conditions[0], chances, CHOSEN_BY, length=count, context=1)
    assert torch.equal(video[:, ::4], expected_keys[:, : video[:, ::4].shape[1]])
    for gap in range(count - 1):
        ends = expected_keys[:, gap], expected_keys[:, gap + 1]
        expected = generate_between(between, conditions[1], *ends, chances, CHOSEN_BY)
        found = video[:, gap * 4 + 1 : gap * 4 + 4]
        assert torch.equal(found, expected[:, : found.shape[1]])


@pytest.mark.parametrize("known", [0, 1, 3, 5, 6])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_gaps_that_are_written_at_once_are_the_same(
    gpt: Make, known: int, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = gpt((3, 2, 2), classes=3, latent_stride=4)
    between = gpt((5, 2, 2), classes=3, infill=True)
    key_condition = class_condition(keys, 3, range(B))
    labels = {start: torch.tensor([start % 3, 1, 0, 2]) for start in range(0, 17, 4)}

    def sampled(sequences: int) -> tuple[Tensor, list[int], list[int]]:
        rows, told = list[int](), list[int]()
        step = GPT.step_ends

        def counted(self: GPT, condition: Tensor, *rest: Any) -> Tensor:
            rows.append(len(condition))
            return step(self, condition, *rest)

        monkeypatch.setattr(GPT, "step_ends", counted)
        video = generate_hierarchical(
            keys, between, key_condition,
            lambda start: condition_ids(between.config.condition, B, labels[start]),
            Chances(8, range(B)), CHOSEN_BY, length=17, context=1, guidance=guidance,
            given=some_frames(known) if known else None, sequences=sequences,
            progress=told.append,
        )  # fmt: skip
        monkeypatch.undo()
        return video, rows, told

    alone, rows_alone, _ = sampled(1)
    pairs, rows, told = sampled(2 * B + 1)
    assert torch.equal(pairs, alone)
    assert sum(rows) == sum(rows_alone), "no gap is written twice"
    assert max(rows) == 2 * max(rows_alone), "never more than so many sequences"
    assert told == sorted(set(told)), "never twice the same"
    assert told[-1] == 17 * FRAME
    assert torch.equal(sampled(100)[0], alone)


@pytest.mark.parametrize("known", [1, 3, 4, 5, 6, 8, 9])
def test_given_frames_stay_in_a_hierarchical_sample(gpt: Make, known: int) -> None:
    keys, between = gpt((3, 2, 2), latent_stride=4), gpt((5, 2, 2), infill=True)
    conditions = [class_condition(model, 0, range(B)) for model in (keys, between)]
    given = some_frames(known)
    told: list[int] = []
    video = generate_hierarchical(
        keys, between, *conditions, Chances(8, range(B)), CHOSEN_BY,
        length=11, context=2, given=given, progress=told.append,
    )  # fmt: skip
    assert torch.equal(video[:, :known], given)
    # The next key frame follows from those given, the frames before it from both.
    reached = -(-known // 4)
    window = video[:, ::4][:, : reached + 1]
    if reached < 3:
        continued = generate_long(
            keys, conditions[0], Chances(8, range(B)), CHOSEN_BY,
            length=3, context=2, given=window[:, :reached],
        )  # fmt: skip
        assert torch.equal(continued[:, : window.shape[1]], window)
    assert told[-1] == hierarchical_frames(11, 4) * FRAME
    assert told == sorted(set(told))


def test_key_frames_of_another_stride_than_the_window_are_refused(gpt: Make) -> None:
    keys, between = gpt((3, 2, 2), latent_stride=3), gpt((5, 2, 2), infill=True)
    conditions = [class_condition(model, 0, range(B)) for model in (keys, between)]
    with pytest.raises(ValueError, match=r"windows of \(5, 2, 2\), key frames 3 apart"):
        generate_hierarchical(
            keys, between, *conditions, Chances(0, range(B)), CHOSEN_BY, length=9, context=1
        )


@pytest.mark.parametrize("known", [0, 1, 2])
def test_ids_of_the_condition_are_never_drawn_between(
    gpt: Make, favouring: Callable[[GPT], GPT], known: int
) -> None:
    keys = favouring(gpt((3, 2, 2), classes=3, latent_stride=4))
    between = favouring(gpt((5, 2, 2), classes=3, infill=True))
    for model in (keys, between):
        window = some_frames(model.config.grid[0]).flatten(1)
        with torch.no_grad():
            some = model(class_condition(model, 3, range(B)), window)
        assert (some.argmax(-1) < model.config.condition.ids).all()
    conditions = [class_condition(model, 3, range(B)) for model in (keys, between)]
    given = some_frames(known) if known else None
    for chosen_by in (CHOSEN_BY, GREEDY, TokenFilter()):
        video = generate_hierarchical(
            keys, between, *conditions, Chances(0, range(B)), chosen_by,
            length=9, context=1, given=given,
        )  # fmt: skip
        assert (video[:, known:] == 3).all()


def test_a_model_that_does_not_infill_is_refused(gpt: Make) -> None:
    model = gpt((5, 2, 2))
    first, last = some_frames(2).unbind(1)
    with pytest.raises(ValueError, match="does not infill"):
        generate_between(
            model, class_condition(model, 0, range(B)), first, last, Chances(0, range(B)), GREEDY
        )
