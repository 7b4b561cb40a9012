"""One tiny dataset and one run of each stage, shared by all tests that only read them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_app import encode_config, gpt_config, vqgan_config

from tatscli.app.data import synthesise
from tatscli.app.encode import encode
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.config.synth import SynthConfig


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps indices away from the user's cache, where no weights are either."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TATS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data(shared: Path, cache: Path) -> Path:
    """Six videos of 12 frames of 16 x 16 in two classes, two of them for validation."""
    config = SynthConfig(classes=2, train_videos=2, test_videos=1, size=16, video_frames=12, rate=8)
    return synthesise(shared / "data", config).folder


@pytest.fixture(scope="session")
def vqgan_run(shared: Path, data: Path) -> Path:
    """A VQGAN of latent grid 2 x 2 x 2 and 16 codes."""
    return train_vqgan(vqgan_config(data, shared / "vqgan")).run


@pytest.fixture(scope="session")
def other_vqgan_run(shared: Path, data: Path) -> Path:
    """The same from another seed."""
    config = vqgan_config(data, shared / "other", train={"seed": 1, "max_steps": 1})
    return train_vqgan(config).run


@pytest.fixture(scope="session")
def tokens(shared: Path, data: Path, vqgan_run: Path) -> Path:
    """The dataset, encoded."""
    return encode(encode_config(data, shared / "tokens", vqgan_run)).folder


@pytest.fixture(scope="session")
def gpt_run(shared: Path, tokens: Path) -> Path:
    """A GPT with class labels, trained on the tokens."""
    config = gpt_config(tokens, shared / "gpt", model={"condition": "label"})
    return train_gpt(config).run


@pytest.fixture(scope="session")
def unconditional(tokens: Path, shared: Path) -> Path:
    """A GPT that is conditioned on nothing."""
    config = gpt_config(tokens, shared / "unconditional", train={"max_steps": 1})
    return train_gpt(config).run
