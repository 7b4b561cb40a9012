"""The pipeline on a CUDA device; skipped where there is none."""

from pathlib import Path

import pytest
import torch

import tatscli
from tatscli.app.data import synthesise
from tatscli.config.synth import SynthConfig

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
