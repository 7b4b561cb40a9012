"""``tats import`` and ``tats export`` as a user meets them."""

import argparse
import json

import pytest
import torch

from tatscli.config.data import ClipConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import TrainedVQGAN, save_original, save_vqgan
from tatscli.core.models.vqgan import VQGAN


@pytest.fixture
def trained():
    config = VQGANConfig(embedding_dim=4, codes=8, hidden_channels=2, downsample=(2, 4, 4))
    clip = ClipConfig(resolution=8, sequence_length=4)
    return TrainedVQGAN(VQGAN(config).eval(), clip, 0.0, 3)


def assert_is_error(outcome, told, hint=""):
    assert (outcome.code, outcome.out) == (1, "")
    assert "Traceback" not in outcome.err
    assert f"error: {told}" in outcome.err
    assert hint in outcome.err


def test_export_and_import_are_each_one_line(tats, trained, tmp_path):
    save_vqgan(trained, tmp_path / "mine.ckpt")
    exported = tats("export", "mine.ckpt")
    assert exported.code == 0, exported.err
    assert "mine-published.ckpt" in exported.out
    assert "strict=False" in exported.err
    imported = tats("import", "mine-published.ckpt", "--json")
    assert imported.code == 0, imported.err
    found = json.loads(imported.out)
    assert found["run"] == "runs/mine-published"
    assert found["identical"] is True
    assert found["fingerprint"] == trained.model.fingerprint()
    again = tats("import", "mine-published.ckpt")
    assert_is_error(again, "runs/mine-published exists and is not empty", "choose another --out")


def test_what_cannot_be_imported_says_why(tats, trained, tmp_path):
    save_original(trained, tmp_path / "whole.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:9000])
    torch.save({"model": torch.zeros(2), "epoch": 3}, tmp_path / "foreign.ckpt")
    save_vqgan(trained, tmp_path / "ours.ckpt")
    for name, told, hint in (
        ("gone.ckpt", "gone.ckpt does not exist", "hint: "),
        ("text.ckpt", "text.ckpt is no checkpoint: it is a text", "give a checkpoint"),
        ("empty.ckpt", "empty.ckpt is no checkpoint: it is empty", "give a checkpoint"),
        ("cut.ckpt", "cut.ckpt is damaged or incomplete: 9,000 bytes", "download it again"),
        ("foreign.ckpt", "foreign.ckpt is neither a tats checkpoint nor", "it holds: epoch, model"),
        ("ours.ckpt", "ours.ckpt is a checkpoint of tats already", "use it as it is"),
    ):
        assert_is_error(tats("import", name), told, hint)
    assert not (tmp_path / "runs").exists()


def test_a_file_of_another_code_lists_the_first_ten_keys_that_differ(tats, tmp_path):
    args = {
        "embedding_dim": 4, "n_codes": 8, "n_hiddens": 2, "downsample": [2, 4, 4],
        "norm_type": "batch", "image_channels": 3, "no_random_restart": True,
        "disc_channels": 4, "disc_layers": 1, "resolution": 8, "sequence_length": 4,
    }  # fmt: skip
    state = {"encoder.convs.0.conv.weight": torch.zeros(3)}
    settings = {"args": argparse.Namespace(**args)}
    torch.save({"state_dict": state, "hyper_parameters": settings}, tmp_path / "other.ckpt")
    outcome = tats("import", "other.ckpt")
    assert_is_error(outcome, "other.ckpt: the tensors of the published file are not those of its")
    assert "found 1, " in outcome.err
    assert outcome.err.count("\n  missing ") == 10


def test_a_layout_nobody_knows_is_a_usage_error(tats):
    outcome = tats("export", "x", "--layout", "videogpt")
    assert outcome.code == 2
    assert "is not one of 'tats'" in outcome.err or "'videogpt' is not 'tats'" in outcome.err
