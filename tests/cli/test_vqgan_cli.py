"""``tats vqgan train`` says what comes next."""

from pathlib import Path

import pytest

from tatscli.app import train
from tatscli.app.train import TrainResult


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ("clips", (), "tats encode --data clips --vqgan runs/a"),
        ("my clips", (), "tats encode --data 'my clips' --vqgan runs/a"),
        (
            "clips",
            ("--input", "sound", "--perceptual-weight", 0, "--downsample", 4, 8, 8),
            "tats encode --data clips --vqgan RUN --sound-vqgan runs/a",
        ),
    ],
)
def test_the_next_command_names_the_data(tats, monkeypatch, unchecked, data, options, said):
    done = TrainResult(Path("runs/a"), Path("runs/a/checkpoints/best.ckpt"), 3, "finished", {}, 0)
    monkeypatch.setattr(train, "train_vqgan", lambda *_: done)
    outcome = tats("vqgan", "train", "--data", data, *options)
    assert outcome.err.splitlines()[-1:] == [f"note: next: {said}"]
