"""The package's own names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_app import CheapNetwork, gpt_config

import tatscli
from tatscli.app import evaluate
from tatscli.app.train import train_gpt
from tatscli.core.checkpoint import read_vqgan
from tatscli.core.data.video import write_video
from tatscli.errors import ConfigError


def test_a_vqgan_encodes_and_decodes(vqgan_run: Path) -> None:
    model = tatscli.load_vqgan(vqgan_run)
    video = torch.rand(2, 3, 4, 8, 8) - 0.5
    codes = model.encode(video)
    assert codes.shape == (2, 2, 2, 2)
    assert codes.dtype == torch.int64
    made = model.decode(codes)
    assert made.shape == video.shape
    assert not made.requires_grad
    with torch.no_grad():
        forward = read_vqgan(vqgan_run).model(video).video
    torch.testing.assert_close(made, forward, atol=1e-5, rtol=0)


def test_a_gpt_gives_logits(gpt_run: Path) -> None:
    model = tatscli.load_gpt(gpt_run)
    condition, tokens = torch.tensor([[0], [1]]), torch.randint(16, (2, 8))
    with torch.no_grad():
        logits = model(condition, tokens)
        changed = tokens.clone()
        changed[:, 5] = (changed[:, 5] + 1) % 16
        other = model(condition, changed)
    assert logits.shape == (2, 8, 3 + 16)  # two classes and the id of none
    assert torch.equal(logits[:, :6], other[:, :6])
    assert not torch.equal(logits[:, 6:], other[:, 6:])


def test_the_names_are_there_and_no_others() -> None:
    for name in tatscli.__all__:
        assert getattr(tatscli, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tatscli.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"samples": 0}, "samples: Input should be greater than or equal to 1, got 0"),
        ({"seed": -1}, "seed: "),
        ({"temperature": -0.5}, "temperature: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"top_k": -1}, "top_k: "),
        ({"top_p": 0}, "top_p: Input should be greater than 0, got 0"),
        ({"batch_size": 0}, "batch_size: "),
        ({"device": "tpu"}, "device: "),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tatscli.sample_short("gone", **arguments)
    assert caught.value.message.startswith(told)
    with pytest.raises(ConfigError) as caught:
        tatscli.sample_long("gone", 4, **arguments)
    assert caught.value.message.startswith(told)


def test_arguments_of_single_functions_are_named(data: Path) -> None:
    for call, told in (
        (lambda: tatscli.sample_long("gone", 0), "length: "),
        (lambda: tatscli.sample_long("gone", 4, context=0), "context: "),
        (lambda: tatscli.fvd(data, data, frames=8), "frames: "),
        (lambda: tatscli.fvd(data, data, protocol="mine"), "protocol: "),
        (lambda: tatscli.fvd(data, data, resolution=-1), "resolution: "),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.message.startswith(told)


def test_the_snippet_of_the_readme_runs(
    vqgan_run: Path,
    gpt_run: Path,
    tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model_of = {"condition": "text"}
    text_run = train_gpt(gpt_config(tokens, tmp_path / "text", model=model_of)).run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "vqgan").symlink_to(vqgan_run)
    (tmp_path / "runs" / "gpt").symlink_to(gpt_run)
    (tmp_path / "runs" / "by-text").symlink_to(text_run)
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16, 3), np.uint8)
    for name in ("VIDEOS/0", "VIDEOS/1", "samples/long/0", "samples/long/1"):
        write_video(tmp_path / f"{name}.mp4", noise, 8)
    monkeypatch.setattr(evaluate, "Network", CheapNetwork)
    model = tatscli.load_gpt(gpt_run)
    labels = torch.tensor([0, 1])
    names: dict[str, Any] = {
        "video": torch.rand(2, 3, 4, 8, 8) - 0.5,
        "labels": labels,
        "condition": tatscli.condition_ids(model.config.condition, 2, labels),
    }
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    exec(readme.split("```python\n")[1].split("```")[0], names)
    assert names["codes"].shape == (2, 2, 2, 2)
    assert names["video"].shape == (2, 3, 4, 8, 8)
    assert names["logits"].shape == (2, 8, 3 + 16)
    assert names["videos"].shape == (4, 3, 32, 8, 8)
    assert names["more"].shape == (2, 3, 4, 8, 8)
    assert names["told"].shape == (4, 3, 4, 8, 8)
    assert names["distance"] == pytest.approx(0, abs=1e-6)
