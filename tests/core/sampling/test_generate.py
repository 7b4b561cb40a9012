"""Generation: its logits are those of the training forward, its samples depend on seed and index.

Letters: B samples, t h w latent grid.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from in_turn import class_condition
from tape import record
from torch import Tensor
from waits import Waits

from tatscli.core.models import graphs
from tatscli.core.models.gpt import GPT
from tatscli.core.models.graphs import RecordedSteps
from tatscli.core.sampling import generate
from tatscli.core.sampling.filters import TokenFilter, choose
from tatscli.core.sampling.generate import Chances, generate_long, generate_window

Make = Callable[..., GPT]
CHOSEN_BY = TokenFilter(temperature=0.8, top_k=5, top_p=0.9)
GREEDY = TokenFilter(temperature=0.0)


def taught(
    gpt: GPT, condition: Tensor, codes: Tensor, chance: Tensor, chosen_by: TokenFilter
) -> Tensor:
    """What the training forward on a finished sequence would have drawn at each position."""
    with torch.no_grad():
        logits = gpt(condition, codes)[..., gpt.config.condition.ids :]
    drawn = [choose(logits[:, i], chance[:, i], chosen_by) for i in range(codes.shape[1])]
    return torch.stack(drawn, 1)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("chosen_by", [CHOSEN_BY, GREEDY])
def test_a_window_is_drawn_from_the_logits_of_the_training_forward(
    gpt: Make, classes: int, chosen_by: TokenFilter
) -> None:
    model, numbers = gpt(classes=classes), range(5)
    condition = class_condition(model, classes, numbers)
    codes = generate_window(model, condition, Chances(4, numbers), chosen_by)
    chance = Chances(4, numbers).draw(12, torch.device("cpu"))
    found = codes.flatten(1)
    assert torch.equal(taught(model, condition, found, chance, chosen_by), found)
    assert len(found.unique()) > 1


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_window_of_a_long_sample_is_drawn_from_its_training_forward(
    gpt: Make, context: int, classes: int
) -> None:
    model, numbers, length = gpt(classes=classes), range(4), 7
    condition = class_condition(model, classes, numbers)
    codes = generate_long(
        model, condition, Chances(9, numbers), CHOSEN_BY, length=length, context=context
    ).flatten(1)
    chances = Chances(9, numbers)
    first = chances.draw(4 * context, torch.device("cpu"))
    expected = [taught(model, condition, codes[:, : 4 * context], first, CHOSEN_BY)]
    for frame in range(context, length):
        window = codes[:, 4 * (frame - context) : 4 * (frame + 1)]
        chance = torch.zeros(4, window.shape[1])
        chance[:, -4:] = chances.draw(4, torch.device("cpu"))
        expected.append(taught(model, condition, window, chance, CHOSEN_BY)[:, -4:])
    assert torch.equal(torch.cat(expected, 1), codes)
    assert len(codes.unique()) > 3


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_length_up_to_the_window_is_plain_sampling(gpt: Make, length: int) -> None:
    model, numbers = gpt(), range(3)
    condition = class_condition(model, 0, numbers)
    long = generate_long(model, condition, Chances(1, numbers), CHOSEN_BY, length=length, context=1)
    plain = generate_window(model, condition, Chances(1, numbers), CHOSEN_BY, frames=length)
    assert torch.equal(long, plain)
    whole = generate_window(model, condition, Chances(1, numbers), GREEDY)
    part = generate_window(model, condition, Chances(1, numbers), GREEDY, frames=length)
    assert torch.equal(part, whole[:, :length])


@pytest.mark.parametrize("context", [1, 2])
def test_greedy_long_equals_a_loop_without_cache(gpt: Make, context: int) -> None:
    model = gpt(classes=3)
    condition = class_condition(model, 3, range(3))

    def extended(codes: Tensor, count: int) -> Tensor:
        for _ in range(count):
            padded = torch.cat([codes, codes.new_zeros(len(codes), 1)], 1)
            with torch.no_grad():
                logits = model(condition, padded)[:, -1, model.config.condition.ids :]
            codes = torch.cat([codes, logits.argmax(-1, keepdim=True)], 1)
        return codes

    expected = extended(torch.zeros(3, 0, dtype=torch.long), 4 * context)
    while expected.shape[1] < 4 * 6:
        window = extended(expected[:, -4 * context :], 4)
        expected = torch.cat([expected, window[:, -4:]], 1)
    found = generate_long(model, condition, Chances(0, range(3)), GREEDY, length=6, context=context)
    assert torch.equal(found.flatten(1), expected)


@pytest.mark.parametrize("chosen_by", [TokenFilter(), GREEDY, TokenFilter(top_k=1)])
def test_ids_of_the_condition_are_never_drawn(
    gpt: Make, favouring: Callable[[GPT], GPT], chosen_by: TokenFilter
) -> None:
    model = favouring(gpt(classes=3))
    ids = model.config.condition.ids
    condition = class_condition(model, 3, range(4))
    with torch.no_grad():
        logits = model(condition, torch.zeros(4, 1, dtype=torch.long))
    assert (logits.argmax(-1) < ids).all()
    for length in (2, 6):
        codes = generate_long(
            model, condition, Chances(0, range(4)), chosen_by, length=length, context=2
        )
        assert (codes == 3).all()


@pytest.mark.parametrize("length", [3, 5])
def test_a_sample_is_the_same_whatever_its_batch(gpt: Make, length: int) -> None:
    model = gpt(classes=3)

    def sampled(batch: int, seed: int = 6) -> Tensor:
        parts = []
        for first in range(0, 7, batch):
            numbers = range(first, min(first + batch, 7))
            parts.append(
                generate_long(
                    model, class_condition(model, 3, numbers), Chances(seed, numbers), CHOSEN_BY,
                    length=length, context=1,
                )
            )  # fmt: skip
        return torch.cat(parts)

    samples = sampled(7)
    assert torch.equal(sampled(1), samples)
    assert torch.equal(sampled(3), samples)
    assert len(samples.flatten(1).unique(dim=0)) == 7
    assert not torch.equal(sampled(7, seed=7), samples)


def test_samples_of_one_class_differ(gpt: Make) -> None:
    model = gpt()
    condition = class_condition(model, 0, range(8))
    codes = generate_window(model, condition, Chances(0, range(8)), CHOSEN_BY)
    assert len(codes.flatten(1).unique(dim=0)) == 8


def test_neighbouring_seeds_and_samples_share_no_chances() -> None:
    cpu = torch.device("cpu")
    rows = [Chances(seed, range(4)).draw(8, cpu) for seed in range(4)]
    everything = torch.cat(rows).flatten()
    assert len(everything.unique()) == len(everything)
    assert torch.equal(Chances(2, [3]).draw(8, cpu)[0], rows[2][3])


def test_progress_counts_every_token_once(gpt: Make) -> None:
    model = gpt()
    told: list[int] = []
    generate_long(
        model, class_condition(model, 0, range(2)), Chances(0, range(2)), CHOSEN_BY,
        length=5, context=2, progress=told.append,
    )  # fmt: skip
    assert told == list(range(1, 21))


def test_a_context_as_long_as_the_window_is_refused(gpt: Make) -> None:
    model = gpt()
    with pytest.raises(ValueError, match="context 3 must be from 1 to 2"):
        generate_long(
            model, class_condition(model, 0, [0]), Chances(0, [0]), CHOSEN_BY, length=4, context=3
        )


@pytest.mark.parametrize("known", [1, 2])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_window_goes_on_from_given_frames_as_in_training(
    gpt: Make, classes: int, known: int
) -> None:
    model, numbers = gpt(classes=classes), range(4)
    condition = class_condition(model, classes, numbers)
    given = torch.randint(7, (4, known, 2, 2), generator=torch.Generator().manual_seed(3))
    codes = generate_window(model, condition, Chances(4, numbers), CHOSEN_BY, given=given).flatten(
        1
    )
    assert torch.equal(codes[:, : 4 * known], given.flatten(1))
    chance = torch.zeros(4, 12)
    chance[:, 4 * known :] = Chances(4, numbers).draw(12 - 4 * known, torch.device("cpu"))
    expected = taught(model, condition, codes, chance, CHOSEN_BY)
    assert torch.equal(expected[:, 4 * known :], codes[:, 4 * known :])


@pytest.mark.parametrize("known", [1, 2, 3, 4])
def test_a_long_sample_fills_a_window_from_given_frames_before_it_slides(
    gpt: Make, known: int
) -> None:
    model, numbers, length, context = gpt(), range(4), 7, 1
    condition = class_condition(model, 0, numbers)
    given = torch.randint(7, (4, known, 2, 2), generator=torch.Generator().manual_seed(3))
    codes = generate_long(
        model, condition, Chances(9, numbers), CHOSEN_BY,
        length=length, context=context, given=given,
    ).flatten(1)  # fmt: skip
    assert torch.equal(codes[:, : 4 * known], given.flatten(1))
    chances = Chances(9, numbers)
    windows = [(max(0, known - 2), known, max(0, known - 2) + 3)]  # start, first drawn, stop
    windows += [(frame - context, frame, frame + 1) for frame in range(windows[0][2], length)]
    for start, first, stop in windows:
        window = codes[:, 4 * start : 4 * stop]
        chance = torch.zeros(4, window.shape[1])
        drawn = 4 * (stop - first)
        chance[:, -drawn:] = chances.draw(drawn, torch.device("cpu"))
        expected = taught(model, condition, window, chance, CHOSEN_BY)
        assert torch.equal(expected[:, -drawn:], window[:, -drawn:])


@pytest.mark.parametrize("length", [3, 6])
def test_the_first_frames_have_cuts_of_their_own(gpt: Make, length: int) -> None:
    model, numbers = gpt(), range(4)
    condition = class_condition(model, 0, numbers)

    def sampled(chosen_by: TokenFilter, first_by: TokenFilter | None = None) -> Tensor:
        return generate_long(
            model, condition, Chances(9, numbers), chosen_by,
            length=length, context=1, first_by=first_by,
        )  # fmt: skip

    mixed = sampled(GREEDY, first_by=CHOSEN_BY)
    assert torch.equal(mixed[:, :1], sampled(CHOSEN_BY)[:, :1])
    assert not torch.equal(mixed[:, :1], sampled(GREEDY)[:, :1])
    # The rest is greedy, which leaves nothing to chance.
    again = generate_long(
        model, condition, Chances(77, numbers), GREEDY,
        length=length, context=1, given=mixed[:, :1],
    )  # fmt: skip
    if length <= 3:
        assert torch.equal(again, mixed)
    assert torch.equal(sampled(CHOSEN_BY, first_by=CHOSEN_BY), sampled(CHOSEN_BY))


def test_ids_of_the_condition_are_drawn_where_asked_and_become_code_zero(
    gpt: Make, favouring: Callable[[GPT], GPT]
) -> None:
    model = favouring(gpt(classes=3))
    condition = class_condition(model, 3, range(4))
    codes = generate_long(
        model, condition, Chances(0, range(4)), TokenFilter(condition_ids=True),
        length=6, context=1,
    )  # fmt: skip
    assert (codes == 0).all()


@pytest.mark.parametrize("known", [3, 4])
def test_as_many_given_frames_as_are_asked_for_are_refused(gpt: Make, known: int) -> None:
    model = gpt()
    given = torch.zeros(1, known, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="expected fewer than 3 latent frames"):
        generate_window(model, class_condition(model, 0, [0]), Chances(0, [0]), GREEDY, given=given)


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are replayed are recorded by a tape, and in several spans."""
    monkeypatch.setattr(generate, "RecordedSteps", partial(RecordedSteps, record=record))
    monkeypatch.setattr(graphs, "FIRST_SPAN", 4)


@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("replays", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("chosen_by", [CHOSEN_BY, GREEDY, TokenFilter()])
def test_neither_a_token_nor_a_window_makes_a_gpu_wait(
    gpt: Make, chosen_by: TokenFilter, guidance: float, replays: bool
) -> None:
    model, numbers = gpt(classes=3), range(2)
    model.replays = replays
    condition = class_condition(model, 3, numbers)
    with Waits() as seen:
        for length in (1, 8):
            generate_long(
                model, condition, Chances(0, numbers), chosen_by, length=length, context=2,
                guidance=guidance,
            )  # fmt: skip
    assert not seen.found


@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("known", [0, 1])
def test_replayed_steps_write_the_same_samples(gpt: Make, known: int, guidance: float) -> None:
    model, numbers = gpt(classes=3), range(4)
    samples = []
    for replays in (False, True):
        model.replays = replays
        samples.append(
            generate_long(
                model, class_condition(model, 3, numbers), Chances(0, numbers), CHOSEN_BY,
                length=8, context=2, guidance=guidance,
                given=torch.ones(4, known, 2, 2, dtype=torch.long) if known else None,
            )
        )  # fmt: skip
    assert torch.equal(*samples)
    assert len(samples[0].unique()) > 1
