import pytest

from tatscli.config.files import (
    PRESETS,
    Layer,
    compat_names,
    preset_names,
    read_compat,
    read_preset,
    resolve,
)
from tatscli.config.sample import SampleLongConfig, SampleShortConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig

MODELS = {"vqgan": VQGANTrainConfig, "gpt": GPTTrainConfig}
ALL = sorted(file.stem.split("-", 1) for file in PRESETS.glob("*.yaml"))
DATA = Layer("", {"data": {"data": "videos"}})


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_preset_loads_and_sets_what_it_says(kind, name):
    preset = read_preset(kind, name)
    config = resolve(MODELS[kind], [preset, DATA]).model_dump(mode="json")
    for section, settings in preset.values.items():
        for setting, value in settings.items():
            assert config[section][setting] == value


def test_both_stages_have_a_preset_for_a_first_try_and_for_the_demo():
    assert preset_names("vqgan") == preset_names("gpt") == ("demo", "tiny")


@pytest.mark.parametrize("name", preset_names("vqgan"))
def test_presets_for_a_cpu_need_no_file_from_elsewhere(name):
    loss = resolve(VQGANTrainConfig, [read_preset("vqgan", name), DATA]).loss
    assert loss.perceptual_weight == 0
    assert not loss.has_discriminators


def test_messages_name_the_preset():
    assert read_preset("gpt", "tiny").place == "preset tiny"


def test_without_options_the_recipe_is_the_published_one():
    config = resolve(VQGANTrainConfig, [DATA])
    model, data = config.model, config.data
    assert (model.codes, model.embedding_dim, model.hidden_channels) == (16384, 256, 32)
    assert (model.downsample, model.norm_type) == ((4, 8, 8), "batch")
    assert not model.random_restart
    assert (data.resolution, data.frames) == (128, 16)
    assert config.loss.perceptual_weight == config.loss.l1_weight == 4


PUBLISHED = {
    "vqgan": {
        "model": {
            "group_norm_over_time": True,
            "restart_statistics": False,
            "codebook_update": "pass",
        },
        "loss": {"perceptual_range": 0.5, "disc_warmup": 0, "disc_ramp": 0},
        "optim": {"lr_schedule": "constant", "lr_warmup": 0},
    },
    "gpt": {
        "loss": {"condition_ids": True, "given_frames": True},
        "optim": {"lr_schedule": "constant", "lr_warmup": 0, "grad_clip": 0},
    },
    "sample": {"filter": {"condition_ids": "sampled"}},
}


@pytest.mark.parametrize(
    ("kind", "model"),
    [*MODELS.items(), ("sample", SampleShortConfig), ("sample", SampleLongConfig)],
)
def test_the_published_numerics_are_these_settings_and_none_is_a_default(kind, model):
    assert compat_names(kind) == ("tats",)
    layer = read_compat(kind, "tats")
    assert layer.values == PUBLISHED[kind]
    base = [] if kind == "sample" else [DATA]
    plain, compat = (resolve(model, layers).model_dump() for layers in (base, [layer, *base]))
    for section, settings in PUBLISHED[kind].items():
        for setting, value in settings.items():
            assert compat[section][setting] == value != plain[section][setting]
