"""The package's own names."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import tatscli
from tatscli.config.base import Config
from tatscli.config.evaluate import FVDConfig
from tatscli.config.files import leaves, sections
from tatscli.config.sample import SampleLongConfig, SampleShortConfig
from tatscli.core.checkpoint import read_vqgan
from tatscli.errors import ConfigError, DataError


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


def test_tensors_of_other_shapes_are_refused_with_both(gpt_run: Path) -> None:
    def refused(error: type[Exception], given: torch.Tensor, **more: Any) -> str:
        with pytest.raises(error) as caught:
            tatscli.sample_short(gpt_run, 2, given=given, device="cpu", **more)
        return str(caught.value)

    video = torch.zeros(2, 2, 8, 8, 3)
    told = refused(ConfigError, video)
    assert told == "given: a clip of shape (2, 2, 8, 8, 3), expected (2, 3, T, 8, 8)"
    clip = video.movedim(-1, 1)
    assert "a video of torch.uint8" in refused(DataError, clip.to(torch.uint8))
    gpt = tatscli.load_gpt(gpt_run)
    with pytest.raises(ValueError, match=r"label ids of shape \(1,\), expected \(2,\)"):
        tatscli.condition_ids(gpt.config.condition, 2, torch.tensor([0]))
    with pytest.raises(ValueError, match="text ids are given, and the condition is label"):
        tatscli.condition_ids(gpt.config.condition, 1, torch.tensor([0]), text=torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("function", "model"),
    [
        (tatscli.sample_short, SampleShortConfig),
        (tatscli.sample_long, SampleLongConfig),
        (tatscli.fvd, FVDConfig),
    ],
)
def test_defaults_are_those_of_the_command_line(function: Any, model: type[Config]) -> None:
    options = {"context": "temporal_sample_pos"}
    settings = {key[-1]: section for _, section in sections(model) for key in leaves(section)}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.default is not argument.empty and name != "given":
            option = options.get(name, name)
            assert argument.default == settings[option].model_fields[option].default, name


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
