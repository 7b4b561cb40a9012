"""The package's own names."""

from pathlib import Path

import pytest
import torch

import tatscli
from tatscli.core.checkpoint import read_vqgan


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
