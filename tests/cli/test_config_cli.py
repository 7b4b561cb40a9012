"""tats config: presets, and what settings come to."""

import json

import pytest
import typer
import yaml

from tatscli.cli.config import _commands
from tatscli.cli.main import app
from tatscli.config.files import PRESETS, read_layer, resolve
from tatscli.config.train import VQGANTrainConfig

WITH_SETTINGS = [" ".join(path) for path, _ in _commands(typer.main.get_command(app), ())]


def shown(tats, *arguments):
    outcome = tats("config", "show", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


def test_the_list_has_every_preset_with_its_command_and_a_line(tats):
    rows = json.loads(tats("config", "list", "--json").out)
    assert len(rows) == len(list(PRESETS.rglob("*.yaml"))) == len({row["name"] for row in rows})
    uses = {row["name"]: row["use"] for row in rows}
    assert uses["vqgan-tiny"] == "tats vqgan train --preset tiny"
    assert uses["sample-tats"] == "tats sample short --compat tats"
    assert all(len(row["what"]) > 10 and "\n" not in row["what"] for row in rows)
    assert "vqgan-tiny" in tats("config", "list").out


def test_a_copy_is_the_preset_and_replaces_nothing_unasked(tats, tmp_path):
    outcome = tats("config", "copy", "vqgan-tiny", "new/my.yaml")
    assert outcome.code == 0
    assert "tats vqgan train --config new/my.yaml" in outcome.out
    copied = tmp_path / "new" / "my.yaml"
    assert copied.read_bytes() == (PRESETS / "vqgan-tiny.yaml").read_bytes()
    copied.write_text("mine")
    outcome = tats("config", "copy", "vqgan-tiny", "new/my.yaml")
    assert outcome.code == 1
    assert outcome.err == (
        "error: new/my.yaml exists; nothing was overwritten\nhint: --force replaces it\n"
    )
    assert copied.read_text() == "mine"
    assert tats("config", "copy", "vqgan-tiny", "new/my.yaml", "--force").code == 0
    assert copied.read_text() != "mine"


def test_what_cannot_be_copied_is_told(tats, tmp_path):
    outcome = tats("config", "copy", "tiny", "my.yaml")
    assert (outcome.code, outcome.out) == (1, "")
    assert "tiny is no preset" in outcome.err
    assert "vqgan-tiny" in outcome.err
    (tmp_path / "folder").mkdir()
    assert "folder is a folder" in tats("config", "copy", "vqgan-tiny", "folder", "--force").err


def test_each_setting_has_the_place_that_decided_it(tats, tmp_path):
    (tmp_path / "my.yaml").write_text("model: {codes: 99}\noptim: {base_learning_rate: 0.001}\n")
    rows = json.loads(shown(tats, "vqgan", "--preset", "tiny", "--config", "my.yaml", "--json"))
    found = {row["setting"]: (row["value"], row["from"]) for row in rows}
    assert found["model.codes"] == (99, "my.yaml")
    assert found["model.embedding_dim"] == (64, "preset tiny")
    assert found["model.disc_layers"] == (3, "default")
    assert found["data.data"] == (None, "required")
    # What the file gives instead of it displaces that of the preset.
    assert found["optim.base_learning_rate"] == (0.001, "my.yaml")
    assert found["optim.learning_rate"][1] == "default"


# Nothing can be shown of tats vqgan eval alone: it takes --data or --time.
NEEDS_MORE = (
    "vqgan eval",
    "eval recon",
)  # one command: nothing to measure without --data or --time


@pytest.mark.parametrize("words", [words for words in WITH_SETTINGS if words not in NEEDS_MORE])
def test_what_is_shown_of_a_command_is_yaml_and_gives_the_same_settings_again(
    tats, tmp_path, words
):
    text = shown(tats, *words.split())
    (tmp_path / "shown.yaml").write_text(text)
    again = shown(tats, *words.split(), "--config", "shown.yaml")
    assert yaml.safe_load(again) == yaml.safe_load(text)
    assert "# default" in text or "# required" in text
    assert "# default" not in again


def test_what_is_shown_of_a_training_is_what_it_uses(tats, tmp_path):
    (tmp_path / "data.yaml").write_text("data: {data: videos}\n")
    arguments = ["--preset", "tiny", "--compat", "tats", "--config", "data.yaml"]
    (tmp_path / "shown.yaml").write_text(shown(tats, "vqgan", "train", *arguments))
    dry = yaml.safe_load(tats("vqgan", "train", *arguments, "--dry-run").out)
    config = resolve(VQGANTrainConfig, [read_layer(tmp_path / "shown.yaml")])
    assert config.model_dump(mode="json") == dry


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "'nonsense' is no command with settings"),
        (["sample"], "sample short, sample long"),
        (["gpt", "--preset", "huge"], "it takes demo, tiny"),
        (["encode", "--preset", "tiny"], "tats encode has no such one"),
        (["vqgan", "--config", "gone.yaml"], "gone.yaml: No such file"),
        (["vqgan", "--config", "bad.yaml"], "bad.yaml: model.codes: Input should be greater"),
    ],
)
def test_what_cannot_be_shown_is_a_usage_error(tats, tmp_path, arguments, told):
    (tmp_path / "bad.yaml").write_text("model: {codes: 1}\n")
    outcome = tats("config", "show", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.err
