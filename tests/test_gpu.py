"""The pipeline on a CUDA device; skipped where there is none."""

from pathlib import Path

import pytest
import torch

import tatscli
from tatscli.app.data import synthesise
from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.config.synth import SynthConfig
from tatscli.core.models.gpt import GPT, KVCache
from tatscli.core.models.graphs import RecordedSteps

pytestmark = pytest.mark.gpu


@pytest.fixture
def runs(tmp_path: Path, tats) -> Path:
    """A VQGAN with discriminators and a GPT, a few steps each, in the device's own precision."""
    synth = SynthConfig(train_videos=2, test_videos=1, classes=2, size=32, video_frames=16)
    synthesise(tmp_path / "data", synth)
    tiny = ("--preset", "demo", "--gpus", 1, "--workers", 0)
    stage_one = ("--data", "data", "--disc-start", 2, "--disc-warmup", 1, "--image-gan-weight", 1)
    stage_one += ("--video-gan-weight", 1, "--disc-channels", 8)
    done = tats("vqgan", "train", *tiny, *stage_one, "--max-steps", 4, "--out", "vqgan")
    assert done.code == 0, done.err
    done = tats("gpt", "train", *tiny, "--data", "data", "--vqgan", "vqgan", "--max-steps", 4,
                "--out", "gpt")  # fmt: skip
    assert done.code == 0, done.err
    return tmp_path


def test_both_stages_train_and_sample_on_a_gpu(runs: Path) -> None:
    videos = tatscli.sample_short(runs / "gpt", samples=2, device="cuda")
    assert videos.shape == (2, 3, 16, 32, 32)
    assert torch.isfinite(videos).all()


def test_float32_codes_of_a_gpu_are_those_of_the_cpu(runs: Path) -> None:
    vqgan = tatscli.load_vqgan(runs / "vqgan")
    video = torch.rand(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    here = vqgan.encode(video)
    there = vqgan.to("cuda").encode(video.to("cuda")).cpu()
    assert torch.equal(here, there)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(vqgan.encode(video.to("cuda")).cpu(), here)


@torch.inference_mode()
def test_cuda_graphs_replay_the_steps_of_a_gpt() -> None:
    grid = (4, 16, 16)
    config = GPTConfig(
        layers=2, heads=4, width=64, codes=32, grid=grid,
        condition=ConditionLayout.unconditional(), block_size=1024,
    )  # fmt: skip
    gpt = GPT(config).to("cuda").eval()
    steps, cache = RecordedSteps(gpt, 3), KVCache(gpt, 3)
    ids = torch.randint(32, (3, 1024), device="cuda")
    for _ in range(2):  # the second window finds what the first has left
        for part in ids.split([2, *[1] * 1022], 1):
            torch.testing.assert_close(steps(part), gpt.step(part, cache), atol=1e-4, rtol=1e-4)
        steps.cache.reset()
        cache.reset()


def test_samples_with_cuda_graphs_are_those_without(runs: Path) -> None:
    plain, replayed = (
        tatscli.sample_short(
            runs / "gpt", samples=2, device="cuda", temperature=0.0, cuda_graphs=graphs
        )
        for graphs in (False, True)
    )
    # Attention adds in another order, so that a near tie may fall otherwise.
    assert (plain - replayed).abs().mean() < 0.01
