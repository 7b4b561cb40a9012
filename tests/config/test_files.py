import pytest
import yaml
from pydantic import ValidationError

from tatscli.config.files import Layer, dump, read_layer, resolve
from tatscli.config.sample import SampleLongConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.errors import ConfigError

DATA = Layer("", {"data": {"data": "videos"}}, {("data", "data"): "--data"})


def file_layer(**values):
    return Layer("my.yaml", values)


def typed(section, name, value, option):
    return Layer("", {section: {name: value}}, {(section, name): option})


def message(model, *layers):
    with pytest.raises(ConfigError) as caught:
        resolve(model, layers)
    return caught.value.message


def test_the_stronger_layer_wins():
    preset = Layer("preset tiny", {"model": {"codes": 10, "embedding_dim": 10, "disc_layers": 1}})
    file = file_layer(model={"codes": 20, "embedding_dim": 20})
    config = resolve(VQGANTrainConfig, [preset, file, DATA, typed("model", "codes", 30, "--codes")])
    assert (config.model.codes, config.model.embedding_dim, config.model.disc_layers) == (30, 20, 1)
    assert config.model.hidden_channels == VQGANConfig().hidden_channels


def test_what_is_missing_is_named_by_its_option():
    with pytest.raises(ConfigError) as caught:
        resolve(VQGANTrainConfig, [])
    assert caught.value.message == "--data is required"
    assert "--data" in caught.value.hint
    assert "--config" in caught.value.hint


def test_a_bad_value_is_named_by_the_option_that_was_typed():
    bad = typed("model", "codes", 1, "--n-codes")
    assert message(VQGANTrainConfig, DATA, bad) == (
        "--n-codes: Input should be greater than or equal to 2, got 1"
    )


def test_a_bad_value_is_named_by_file_and_key():
    bad = file_layer(model={"codes": 1})
    assert message(VQGANTrainConfig, bad, DATA).startswith("my.yaml: model.codes: Input should be")


def test_a_bad_part_of_a_list_is_named_by_file_and_key():
    bad = file_layer(model={"downsample": [2, "a", 2]})
    assert message(VQGANTrainConfig, bad, DATA).startswith("my.yaml: model.downsample.1: ")


def test_all_bad_values_are_told_at_once():
    bad = file_layer(model={"codes": 1}, train={"max_steps": 0})
    told = message(VQGANTrainConfig, bad)
    assert [line.split(":")[1].strip() for line in told.splitlines()[1:]] == [
        "model.codes",
        "train.max_steps",
    ]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(value):
    bad = typed("optim", "grad_clip", value, "--grad-clip")
    assert message(VQGANTrainConfig, DATA, bad).startswith("--grad-clip: Input should be a finite")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"codes": 4}, "my.yaml: codes is not a setting; did you mean model.codes?"),
        ({"model": {"code": 4}}, "my.yaml: model.code is not a setting; did you mean model.codes?"),
        ({"zzz": 4}, "my.yaml: zzz is not a setting"),
        ({3: 4}, "3 is not a setting"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_setting(values, told):
    assert message(VQGANTrainConfig, Layer("my.yaml", values), DATA) == told


def test_settings_of_the_other_stage_are_recognised():
    layer = file_layer(model={"codes": 512, "hidden_channels": 16})
    with pytest.raises(ConfigError) as caught:
        resolve(GPTTrainConfig, [layer, DATA])
    assert "my.yaml: model.hidden_channels is not a setting" in caught.value.message.splitlines()
    assert caught.value.hint == "these are settings of tats vqgan train"


def test_a_section_cannot_be_a_value():
    told = message(VQGANTrainConfig, file_layer(data=5), DATA)
    assert told == "my.yaml: data is a section of settings, got 5"


def test_an_empty_section_changes_nothing():
    assert resolve(VQGANTrainConfig, [file_layer(model=None), DATA]) == resolve(
        VQGANTrainConfig, [DATA]
    )


def test_two_forms_of_a_setting_in_one_place_are_an_error():
    optim = {"learning_rate": 1e-3, "base_learning_rate": 1e-4}
    told = message(VQGANTrainConfig, file_layer(optim=optim), DATA)
    assert told.startswith("my.yaml: learning_rate and base_learning_rate set the same thing")
    flags = {("optim", "learning_rate"): "--learning-rate", ("optim", "base_learning_rate"): "--lr"}
    told = message(VQGANTrainConfig, DATA, Layer("", {"optim": optim}, flags))
    assert told.startswith("--learning-rate and --lr set the same thing")


def test_the_form_given_in_the_stronger_place_displaces_the_other():
    base = typed("optim", "base_learning_rate", 1e-4, "--lr")
    final = file_layer(optim={"learning_rate": 5e-3})
    assert resolve(VQGANTrainConfig, [final, DATA, base]).optim.base_learning_rate == 1e-4
    rate = typed("optim", "learning_rate", 2e-3, "--learning-rate")
    optim = resolve(VQGANTrainConfig, [Layer("p", base.values), DATA, rate]).optim
    assert (optim.learning_rate, optim.base_learning_rate) == (2e-3, 0)
    frames = file_layer(window={"frames": 64})
    window = resolve(SampleLongConfig, [frames, typed("window", "length", 9, "--length")]).window
    assert (window.length, window.frames) == (9, 0)


@pytest.mark.parametrize("model", [VQGANTrainConfig, GPTTrainConfig])
def test_a_saved_config_resolves_to_itself(model):
    settings = {"optim": {"learning_rate": 5e-5}, "train": {"val_check_interval": 0.5}}
    config = resolve(model, [Layer("p", settings), DATA])
    saved = dump(config)
    again = resolve(model, [Layer("saved", yaml.safe_load(saved))])
    assert again == config
    assert dump(again) == saved


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("optim:\n  learning_rate: 1e-5\n")
    assert resolve(VQGANTrainConfig, [read_layer(file), DATA]).optim.learning_rate == 1e-5


def test_configs_cannot_be_changed():
    config = resolve(VQGANTrainConfig, [DATA])
    with pytest.raises(ValidationError, match="frozen"):
        config.train.max_steps = 1


def test_an_empty_file_sets_nothing(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("# nothing yet\n")
    assert read_layer(file) == Layer(str(file), {})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: 1\nb: c: d\n", ", line 2, is not valid YAML: mapping values are not allowed here"),
        (
            b"model:\n  codes: 5\n  layers: 1\n  codes: 9\n",
            ", line 4, is not valid YAML: codes is given twice, first in line 2",
        ),
        (b"a: {}\nb: {}\n'a': {}\n", ", line 3, is not valid YAML: a is given twice, first in"),
        (b"\xff\xfe\x00", " is not valid YAML: 'utf-8' codec can't decode"),
        (b"a\x00", " is not valid YAML: unacceptable character"),
        (b"- 1\n- 2\n", " holds a list, expected a mapping of settings"),
        (b"codes", " holds a str, expected a mapping of settings"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, told):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_layer(file)
    assert caught.value.message.startswith(f"{file}{told}")
    assert "\n" not in caught.value.message


def test_a_mapping_may_refer_to_another_and_change_it(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\n")
    assert read_layer(file).values == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: No such file"):
        read_layer(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_layer(tmp_path)
    (tmp_path / "config.yaml").write_text("a: {x: 1}")
    assert read_layer(tmp_path) == read_layer(tmp_path / "config.yaml")
