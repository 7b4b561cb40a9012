"""Conditions in training: what stands before the codes, what is dropped, what is saved."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from tiny_runs import CLIP, LOOP, SLOTS, SMALL, Run
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig
from tatscli.config.train import GPTTrainConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import HEADER, TrainedVQGAN, read_gpt
from tatscli.core.data.clips import Clip
from tatscli.core.data.text import train_tokenizer
from tatscli.core.data.tokens import TokenClip
from tatscli.core.models.gpt import condition_ids, drop_parts
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.training.engine import Clips, fit
from tatscli.core.training.gpt import FIGURES, MONITOR, GPTTraining
from tatscli.core.training.losses import draw_dropped
from tatscli.core.training.placement import Placement

CAPTIONS = ["a red ball", "a blue cube", "a green ball", "a red cube", ""]
TEXT = train_tokenizer(CAPTIONS, 300, tokens=5)
GRID, SOUND_GRID = (2, 2, 2), (2, 4, 1)
SEED = 3


def clip(number: int) -> Clip:
    """A clip with everything, of no class where its number is even."""
    generator = torch.Generator().manual_seed(number)
    return Clip(
        torch.rand(3, 4, 8, 8, generator=generator) - 0.5,
        number % 2 - 1,
        TEXT.encode(CAPTIONS[number % 5]),
        torch.rand(1, 4, 64, 16, generator=generator) - 0.5,
    )


class Described(Dataset[Clip]):
    """Clips that depend on their number in the run (or, for validation, on their place)."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, item: int | tuple[int, int]) -> Clip:
        return clip(item + 100 if isinstance(item, int) else item[1])


def layout(dropout: float) -> ConditionLayout:
    parts = [ConditionPart.label(1), ConditionPart.text(5, TEXT.vocabulary, TEXT.pad_id)]
    return ConditionLayout.in_order([*parts, ConditionPart.sound(8, 8)], dropout)


def trained_vqgan(seed: int, input_range: float = 0.5, **settings: Any) -> TrainedVQGAN:
    """A VQGAN whose codes vary."""
    torch.manual_seed(seed)
    model = VQGAN(VQGANConfig.model_validate(SMALL | settings)).eval()
    side = (64, 16) if model.config.image_channels == 1 else (8, 8)
    latents = model.latents(torch.rand(4, model.config.image_channels, 4, *side) - 0.5)
    vectors = latents.detach().movedim(1, -1).flatten(0, -2)
    model.codebook.embeddings.copy_(vectors[torch.linspace(0, len(vectors) - 1, 8).long()])
    return TrainedVQGAN(model, CLIP, 8.0, 1, input_range=input_range)


def module(condition: ConditionLayout, input_range: float = 0.5, **train: Any) -> GPTTraining:
    config = GPTTrainConfig.model_validate(
        {"data": {"data": "x"}, "train": LOOP | {"seed": SEED} | train, "compute": {"workers": 0}}
    )
    architecture = GPTConfig(
        layers=1, heads=2, width=8, codes=8, grid=GRID, condition=condition,
        block_size=condition.tokens + 7, dropout=0.1,
    )  # fmt: skip
    sound = trained_vqgan(2, input_range, image_channels=1, downsample=(2, 16, 16))
    inside = trained_vqgan(1)
    lightning.seed_everything(SEED, verbose=False)
    return GPTTraining(config, architecture, inside, ("a",), 1e-2, TEXT, sound)


def everything(number: int = 6) -> Clip:
    batch: Clip = default_collate([clip(n) for n in range(number)])
    return batch


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Run, dict[bool, list[Tensor]]]]:
    """Trains; the run, and the conditions that the GPT was given in training and out of it."""

    def trained(
        condition: ConditionLayout,
        watch: Callable[[GPTTraining], None] = lambda training: None,
        **train: Any,
    ) -> tuple[Run, dict[bool, list[Tensor]]]:
        training, given = module(condition, **train), {True: [], False: []}
        hidden = training.gpt.hidden

        def seen(condition: Tensor, tokens: Tensor) -> Tensor:
            given[training.gpt.training].append(condition)
            return hidden(condition, tokens)

        training.gpt.hidden = seen
        outcome = fit(
            training,
            Clips(Described(), SLOTS, Described()),
            loop=training.config.train,
            compute=training.config.compute,
            placement=Placement("cpu", 1, 1, "32-true"),
            folder=tmp_path,
            monitor=MONITOR,
            figures=FIGURES,
            draw=lambda module, step: None,
            on_step=lambda step, figures: watch(training),
            resume=None,
        )
        return Run(training, outcome, tmp_path), given

    return trained


def of_numbers(training: GPTTraining, numbers: range) -> Tensor:
    """The whole condition of clips, by hand."""
    batch: Clip = default_collate([clip(number) for number in numbers])
    sound = training.trained_sound.model.encode(batch.sound).flatten(1)
    labels = torch.tensor([0 if number % 2 else 1 for number in numbers])  # 1 is null
    return condition_ids(training.gpt.config.condition, len(numbers), labels, sound, batch.text)


def test_the_condition_is_the_ids_of_its_parts() -> None:
    training = module(layout(0.1)).eval()
    found = training.condition(everything())
    assert torch.equal(found, of_numbers(training, range(6)))
    assert found.shape == (6, 1 + 5 + 8)
    # Each part varies, each in ids of its own.
    assert found[:, 0].tolist() == [1, 0, 1, 0, 1, 0]
    text, sound = found[:, 1:6] - 2, found[:, 6:] - 2 - TEXT.vocabulary
    assert torch.equal(text[2], TEXT.encode("a green ball"))
    assert len(sound.unique(dim=0)) == 6
    assert 0 <= sound.min() < sound.max() < 8


def test_a_clip_without_class_or_caption_is_one_of_which_nothing_is_asked() -> None:
    training = module(layout(0.1)).eval()
    condition = training.condition(everything())
    dropped = torch.tensor([[True, True, False]] * 6)
    null = drop_parts(training.gpt.config.condition, condition, dropped)
    assert torch.equal(condition[4], null[4])  # of no class and an empty caption
    assert not torch.equal(condition[:4], null[:4])


@pytest.mark.parametrize("input_range", [0.5, 1.0])
def test_sound_as_patches_and_as_codes_is_the_same(input_range: float) -> None:
    training = module(layout(0.1), input_range).eval()
    batch = everything()
    codes = training.trained_sound.model.encode(batch.sound * (input_range / 0.5))
    assert codes.shape == (6, *SOUND_GRID)
    tokens = TokenClip(training.codes(batch), batch.label, batch.text, codes)
    assert torch.equal(training.condition(tokens), training.condition(batch))
    assert torch.equal(training.codes(tokens), training.codes(batch))
    halved = batch._replace(sound=batch.sound / 2)
    assert not torch.equal(training.condition(halved), training.condition(batch))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_drops_what_is_drawn_for_it(run: Callable[..., Any], accumulate: int) -> None:
    condition = layout(0.5)
    found, given = run(condition, accumulate=accumulate)
    steps, size = 6, 2 * accumulate
    assert len(given[True]) == steps * accumulate
    seen = torch.cat(given[True]).split(size)
    for step in range(steps):
        whole = of_numbers(found.module, range(step * size, (step + 1) * size))
        dropped = draw_dropped(SEED, step, 3, 0.5, size)
        assert torch.equal(seen[step], drop_parts(condition, whole, dropped))
    everything_seen = of_numbers(found.module, range(steps * size))
    for columns in torch.split(torch.cat(seen) != everything_seen, [1, 5, 8], dim=1):
        assert columns.any()


def test_validation_drops_nothing(run: Callable[..., Any]) -> None:
    found, given = run(layout(0.9))
    assert len(torch.cat(given[False])) == 3 * 5
    for conditions in torch.cat(given[False]).split(5):
        assert torch.equal(conditions, of_numbers(found.module, range(100, 105)))


def test_without_dropout_nothing_is_dropped(run: Callable[..., Any]) -> None:
    found, given = run(layout(0.0))
    assert torch.equal(torch.cat(given[True]), of_numbers(found.module, range(12)))


def test_parts_without_dropout_stay_where_others_are_dropped(run: Callable[..., Any]) -> None:
    label, text, sound = layout(0.5).parts
    bare = sound.model_copy(update={"null_id": -1})
    condition = ConditionLayout.in_order([label, text, bare], dropout=0.5)
    found, given = run(condition)
    seen, whole = torch.cat(given[True]), of_numbers(found.module, range(12))
    assert torch.equal(seen[:, 6:], whole[:, 6:])
    dropped = torch.cat([draw_dropped(SEED, step, 3, 0.5, 2) for step in range(6)])
    dropped[:, 2] = False
    assert torch.equal(seen, drop_parts(condition, whole, dropped))
    assert not torch.equal(seen, whole)


def test_the_checkpoint_has_the_tokenizer_and_the_vqgan_of_the_sound(
    run: Callable[..., Any],
) -> None:
    found, _ = run(layout(0.1))
    training, header = found.module, found.last[HEADER]
    assert header["text"] == {"definition": TEXT.definition, "tokens": 5, "pad_id": TEXT.pad_id}
    assert header["sound"]["fingerprint"] == training.sound.fingerprint()
    read = read_gpt(found.folder / "checkpoints" / "last.ckpt")
    assert read.text == TEXT
    assert read.text.fingerprint == TEXT.fingerprint
    assert read.sound.model.fingerprint() == training.sound.fingerprint()
    assert read.vqgan.model.fingerprint() == training.vqgan.fingerprint()
    assert read.sound.model.fingerprint() != read.vqgan.model.fingerprint()
    assert (read.sound.grid, read.vqgan.grid) == (SOUND_GRID, GRID)
    assert read.model.config == training.gpt.config
    state: Mapping[str, Tensor] = training.gpt.state_dict()
    assert all(torch.equal(read.model.state_dict()[key], state[key]) for key in state)


def test_the_range_of_the_sound_is_saved(run: Callable[..., Any]) -> None:
    found, _ = run(layout(0.1), input_range=1.0, max_steps=1)
    read = read_gpt(found.folder / "checkpoints" / "last.ckpt")
    assert (read.sound.input_range, read.vqgan.input_range) == (1.0, 0.5)


def test_the_vqgan_of_the_sound_stays_as_it_is(run: Callable[..., Any]) -> None:
    modes: list[tuple[bool, bool]] = []
    states: list[dict[str, Tensor]] = []

    def note(training: GPTTraining) -> None:
        modes.append((training.gpt.training, any(m.training for m in training.sound.modules())))
        states.append({key: value.clone() for key, value in training.sound.state_dict().items()})

    found, _ = run(layout(0.1), watch=note)
    assert modes == [(True, False)] * 6
    fresh = module(layout(0.1))
    for state in states:
        assert all(
            torch.equal(state[key], value) for key, value in fresh.sound.state_dict().items()
        )
    assert not any(parameter.requires_grad for parameter in found.module.sound.parameters())
    trained = len(found.last["optimizer_states"][0]["state"])
    assert trained == len(list(found.module.gpt.parameters()))
    old, new = fresh.gpt.head.weight, found.module.gpt.head.weight
    assert not torch.equal(old, new)
