"""``tats gpt train`` says what comes next."""

from pathlib import Path

import pytest

from tatscli.app import train
from tatscli.app.train import TrainResult
from tatscli.config.files import dump


@pytest.mark.parametrize(
    ("folder", "options", "said"),
    [
        ("a", (), "--gpt a --length 64"),
        ("my run", (), "--gpt 'my run' --length 64"),
        ("a", ("--condition", "label"), "--gpt a --length 64"),
        ("a", ("--condition", "text"), "--gpt a --text TEXT --length 64"),
        (
            "a",
            ("--condition", "label+text+sound"),
            "--gpt a --text TEXT --audio FILE --length 64",
        ),
        (
            "a",
            ("--condition", "sound", "--latent-stride", 4),
            "--gpt a --infill-gpt INFILL --audio FILE --length 64",
        ),
        (
            "a",
            ("--condition", "text", "--infill"),
            "--gpt KEYS --infill-gpt a --text TEXT --length 64",
        ),
    ],
)
def test_the_next_command_asks_for_what_the_gpt_is_conditioned_on(
    tats, monkeypatch, tmp_path, unchecked, folder, options, said
):
    monkeypatch.chdir(tmp_path)
    run = Path(folder)

    def trained(config, *_):
        run.mkdir()
        (run / "config.yaml").write_text(dump(config))
        return TrainResult(run, run / "checkpoints/best.ckpt", 3, "finished", {}, 0)

    monkeypatch.setattr(train, "train_gpt", trained)
    outcome = tats("gpt", "train", "--data", "tokens", *options)
    assert outcome.err.splitlines()[-1:] == [f"note: next: tats sample long {said}"]
