import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import tatscli.config
from tatscli.config.base import FILE_ONLY, Config, Published
from tatscli.config.check import CheckConfig
from tatscli.config.data import ClipConfig, DataConfig, GPTDataConfig
from tatscli.config.demo import DemoConfig
from tatscli.config.encode import DecodeConfig, EncodeConfig
from tatscli.config.evaluate import FVDConfig
from tatscli.config.files import flag, leaves, sections
from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig, GPTOptions
from tatscli.config.sample import SampleConfig, SampleLongConfig, SampleShortConfig
from tatscli.config.synth import SynthConfig
from tatscli.config.train import (
    GPTOptimConfig,
    GPTTrainConfig,
    LoopConfig,
    VQGANOptimConfig,
    VQGANTrainConfig,
)
from tatscli.config.vqgan import VQGANConfig

COMMANDS = [
    VQGANTrainConfig,
    GPTTrainConfig,
    EncodeConfig,
    DecodeConfig,
    SampleShortConfig,
    SampleLongConfig,
    FVDConfig,
    SynthConfig,
    CheckConfig,
    DemoConfig,
]


def every_config():
    for module in pkgutil.iter_modules(tatscli.config.__path__):
        for item in vars(importlib.import_module(f"tatscli.config.{module.name}")).values():
            if isinstance(item, type) and issubclass(item, Config) and item is not Config:
                yield item


FIELDS = sorted(
    {
        (config, name)
        for config in every_config()
        for name in config.model_fields
        if name not in dict(sections(config))
    },
    key=lambda field: (field[0].__name__, field[1]),
)


@pytest.mark.parametrize(
    ("config", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part)
)
def test_every_field_has_one_sentence_that_rich_can_print(config, name):
    text = config.help_texts()[name]
    assert re.fullmatch(r"[A-Z][^\[\]]*\.", text), "a capital, no square brackets, a full stop"
    assert ". " not in text, "one sentence"
    assert "\n" not in text


class Described(Config, use_attribute_docstrings=True):
    """Read by pydantic too."""

    first: int = 1
    """The first."""
    second: int = 2
    """The second, which
    is long."""
    third: int = 3


def test_help_texts_are_those_that_pydantic_reads():
    read = {name: field.description for name, field in Described.model_fields.items()}
    assert Described.help_texts() == {name: text for name, text in read.items() if text}
    assert list(Described.help_texts()) == ["first", "second"]


def test_help_texts_are_inherited():
    class More(Described):
        pass

    assert More.help_texts() == Described.help_texts()


def settable(model):
    nested = dict(sections(model))
    for name, field in model.model_fields.items():
        if name in nested:
            yield from settable(nested[name])
        elif FILE_ONLY not in field.metadata:
            yield name
            yield from (item.name for item in field.metadata if isinstance(item, Published))


@pytest.mark.parametrize("model", COMMANDS)
def test_no_two_options_of_a_command_have_one_name(model):
    names = list(settable(model))
    assert sorted(names) == sorted(set(names))


def test_keys_and_options_follow_from_the_tree():
    assert list(leaves(SampleShortConfig))[0] == ("sample", "gpt")
    assert ("window", "temporal_sample_pos") in set(leaves(SampleLongConfig))
    assert flag(("window", "temporal_sample_pos")) == "--temporal-sample-pos"


def test_a_grid_is_the_clip_over_the_downsampling():
    assert VQGANConfig(downsample=(2, 16, 16)).grid(32, 256, 256) == (16, 16, 16)


@pytest.mark.parametrize(
    ("sides", "told"),
    [
        ((15, 64, 64), "frames 15 cannot be downsampled by 4"),
        ((16, 60, 64), "height 60 cannot be downsampled by 8"),
        ((16, 64, 60), "width 60 cannot be downsampled by 8"),
    ],
)
def test_sides_that_do_not_divide_are_told_with_both_numbers(sides, told):
    with pytest.raises(ValueError, match=told):
        VQGANConfig(downsample=(4, 8, 8)).grid(*sides)


def test_training_checks_the_clip_against_the_downsampling():
    with pytest.raises(ValidationError, match="height 100 cannot be downsampled by 8"):
        VQGANTrainConfig(data={"data": "x", "resolution": 100})


def test_the_perceptual_loss_needs_frames_of_16_pixels():
    small = {"data": {"data": "x", "resolution": 8}}
    with pytest.raises(ValidationError, match="at least 16 pixels, got resolution 8"):
        VQGANTrainConfig.model_validate(small)
    VQGANTrainConfig.model_validate(small | {"loss": {"perceptual_weight": 0}})
    VQGANTrainConfig.model_validate({"data": {"data": "x", "resolution": 16}})


def test_the_frames_kept_count_not_the_frames_spanned():
    clip = ClipConfig(sequence_length=32, sample_every_n_frames=4)
    assert clip.frames == 8
    with pytest.raises(ValidationError, match="length 32 is not a multiple of .* 5"):
        ClipConfig(sequence_length=32, sample_every_n_frames=5)


@pytest.mark.parametrize(
    ("factors", "told"), [((3, 8, 8), "powers of two, got"), ((1, 1, 1), "at least one factor")]
)
def test_downsampling_is_by_powers_of_two(factors, told):
    with pytest.raises(ValidationError, match=told):
        VQGANConfig(downsample=factors)


def test_group_norm_needs_channels_for_its_groups():
    with pytest.raises(ValidationError, match="multiples of 16, got 24"):
        VQGANConfig(norm_type="group", hidden_channels=24)
    assert VQGANConfig(norm_type="batch", hidden_channels=24).hidden_channels == 24
    assert VQGANConfig(norm_type="group", hidden_channels=48).hidden_channels == 48


def gpt(**changes):
    layout = ConditionLayout.unconditional()
    given = {"layers": 1, "heads": 2, "width": 8, "codes": 16, "grid": (2, 3, 4)}
    return GPTConfig(**(given | {"condition": layout, "block_size": 24} | changes))


def test_the_smallest_block_holds_condition_and_grid_but_not_the_last_token():
    assert gpt().positions == 1 + 2 * 3 * 4 - 1
    told = (
        r"block size 23 is too small: 1 condition tokens \+ 24 video tokens \(2 x 3 x 4\) - 1 = 24"
    )
    with pytest.raises(ValidationError, match=told):
        gpt(block_size=23)


def test_condition_ids_come_before_the_codes():
    assert gpt().vocabulary == 16
    labels = ConditionLayout.labels(5)
    assert (labels.tokens, labels.ids, labels.part("label").null_id) == (1, 6, 5)
    assert gpt(condition=labels).vocabulary == 6 + 16


def test_parts_lie_in_order_and_so_do_their_ids():
    kinds = [ConditionPart.label(5), ConditionPart.text(7, 300, 2), ConditionPart.sound(4, 16)]
    layout = ConditionLayout.in_order(kinds, dropout=0.2)
    label, text, sound = layout.parts
    assert [part.kind for part in layout.parts] == ["label", "text", "sound"]
    assert [part.tokens for part in layout.parts] == [1, 7, 4]
    assert [part.ids for part in layout.parts] == [5 + 1, 300, 16 + 1]
    assert [part.offset for part in layout.parts] == [0, 6, 306]
    assert [part.null_id for part in layout.parts] == [5, 2, 16]
    assert [part.dropout for part in layout.parts] == [0.2] * 3
    assert (layout.tokens, layout.ids) == (12, 323)
    assert (layout.part("label"), layout.part("text"), layout.part("sound")) == (label, text, sound)
    assert layout.part("start") is None
    turned = ConditionLayout.in_order([sound, label], dropout=0.2)
    assert [(part.kind, part.offset) for part in turned.parts] == [("sound", 0), ("label", 17)]


def test_parts_without_a_null_id_are_not_dropped():
    bare = ConditionPart(kind="sound", tokens=6, ids=7, offset=0)
    layout = ConditionLayout.in_order([bare, ConditionPart.label(2)], dropout=0.3)
    assert [part.dropout for part in layout.parts] == [0.0, 0.3]


def test_without_parts_there_is_the_start_token():
    layout = ConditionLayout.in_order([], dropout=0.3)
    assert layout == ConditionLayout.unconditional()
    (start,) = layout.parts
    assert (start.kind, start.tokens, start.ids, start.dropout) == ("start", 1, 0, 0.0)


@pytest.mark.parametrize(
    ("condition", "kinds"),
    [
        ("none", set()),
        ("sound", {"sound"}),
        ("label+text", {"label", "text"}),
        ("label+text+sound", {"label", "text", "sound"}),
    ],
)
def test_a_condition_names_the_kinds_of_its_parts(condition, kinds):
    assert GPTOptions(condition=condition).conditions == kinds


@pytest.mark.parametrize("build", [gpt, GPTOptions])
def test_heads_divide_the_width(build):
    with pytest.raises(ValidationError, match="width 10 is not divisible by 4 heads"):
        build(width=10, heads=4)


@pytest.mark.parametrize(
    ("given", "steps"),
    [("2", 2), (2, 2), (1, 1), ("1.0", 80), (1.0, 80), (0.25, 20), (".5", 40), ("0.001", 1)],
)
def test_a_whole_number_counts_steps_and_a_decimal_is_a_part_of_an_epoch(given, steps):
    assert LoopConfig(val_check_interval=given).val_steps(80) == steps


@pytest.mark.parametrize("given", ["0", "0.0", "1.5", "-1", "often", ""])
def test_other_intervals_are_errors(given):
    with pytest.raises(ValidationError, match=f"decimal up to 1.0, got {given}"):
        LoopConfig(val_check_interval=given)


def test_published_learning_rates():
    vqgan = VQGANOptimConfig(base_learning_rate=3e-5)
    assert vqgan.rate(accumulate=6, processes=8, batch_size=2) == pytest.approx(9e-5)
    assert vqgan.rate(accumulate=1, processes=1, batch_size=4) == pytest.approx(3e-5 / 8)
    gpt = GPTOptimConfig(base_learning_rate=4.5e-6)
    assert gpt.rate(accumulate=4, processes=4, batch_size=6) == pytest.approx(96 * 4.5e-6)


@pytest.mark.parametrize("optim", [VQGANOptimConfig, GPTOptimConfig])
def test_our_learning_rate_is_the_rate_used(optim):
    assert optim(learning_rate=1e-3).rate(accumulate=6, processes=8, batch_size=2) == 1e-3


def test_a_gpt_takes_from_the_vqgan_what_is_left_open():
    trained = ClipConfig(resolution=64, sequence_length=8, frame_rate=5, sample_every_n_frames=2)
    assert GPTDataConfig(data="x").clip(trained) == trained
    asked = GPTDataConfig(data="x", sequence_length=32, frame_rate=8).clip(trained)
    assert (asked.resolution, asked.sequence_length, asked.frame_rate) == (64, 32, 8)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\\b"])
def test_the_name_of_samples_is_no_path(name):
    with pytest.raises(ValidationError, match="without a path"):
        SampleConfig(name=name)


def test_the_stages_have_batch_sizes_of_their_own():
    data = {"data": {"data": "x"}}
    assert VQGANTrainConfig(**data).train.batch_size == 2
    assert GPTTrainConfig(**data).train.batch_size == 3


def of_sound(**sections):
    data = {"data": "x", "input": "sound"} | sections.pop("data", {})
    return VQGANTrainConfig.model_validate({"data": data} | sections)


def test_a_vqgan_of_sound_has_a_recipe_of_its_own():
    config, video = of_sound(), VQGANTrainConfig(data={"data": "x"})
    assert (config.model.image_channels, config.model.codes) == (1, 1024)
    assert not config.loss.has_discriminators
    assert config.loss.perceptual_weight == 0
    filled = {"model": {"image_channels": 1, "codes": 1024}}
    filled["loss"] = dict.fromkeys(["perceptual_weight", "image_gan_weight", "video_gan_weight"], 0)
    for name, settings in filled.items():
        mine, others = (getattr(each, name).model_dump() for each in (config, video))
        assert mine == others | settings
        assert mine != others


def test_what_is_given_beats_the_recipe_of_sound():
    config = of_sound(model={"codes": 64, "embedding_dim": 8}, loss={"video_gan_weight": 0.5})
    assert (config.model.codes, config.model.embedding_dim) == (64, 8)
    assert config.model.image_channels == 1
    assert (config.loss.video_gan_weight, config.loss.image_gan_weight) == (0.5, 0)


@pytest.mark.parametrize(("read", "wanted", "given"), [("sound", 1, 3), ("video", 3, 1)])
def test_channels_are_those_of_what_is_learnt(read, wanted, given):
    told = f"a VQGAN of {read} has {wanted} channels, got {given}"
    with pytest.raises(ValidationError, match=told):
        of_sound(data={"input": read}, model={"image_channels": given})


def test_weights_that_a_run_of_sound_starts_from_bring_their_own_model():
    config = of_sound(train={"init": "run"})
    assert config.model.model_fields_set == set()
    assert not config.loss.has_discriminators
    assert config.loss.perceptual_weight == 0


def test_the_sound_of_a_frame_is_checked_against_the_downsampling():
    config = of_sound(data={"resolution": 100}, model={"downsample": (4, 16, 8)})
    assert config.frame_sides == (64, 16)
    assert config.model.grid(config.data.frames, *config.frame_sides) == (4, 4, 2)
    with pytest.raises(ValidationError, match="width 16 cannot be downsampled by 32"):
        of_sound(data={"resolution": 128}, model={"downsample": (4, 8, 32)})
    with pytest.raises(ValidationError, match="height 64 cannot be downsampled by 128"):
        of_sound(data={"resolution": 128}, model={"downsample": (4, 128, 8)})
    with pytest.raises(ValidationError, match="frames 6 cannot be downsampled by 4"):
        of_sound(data={"sequence_length": 6})
    assert VQGANTrainConfig(data={"data": "x", "resolution": 48}).frame_sides == (48, 48)


def test_the_recipe_of_sound_knows_configs_as_well_as_mappings():
    config = VQGANTrainConfig(
        data=DataConfig(data=Path("x"), input="sound"), model=VQGANConfig(codes=64)
    )
    assert (config.model.image_channels, config.model.codes) == (1, 64)
    assert not config.loss.has_discriminators


@pytest.mark.parametrize(("given", "named"), [("clips/shapes", "shapes"), (".", "here")])
def test_a_run_is_called_after_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, named: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = VQGANTrainConfig.model_validate({"data": {"data": given}})
    assert config.folder == Path("runs") / f"vqgan-{named}"
