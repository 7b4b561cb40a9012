import numpy as np
import torch
from einops import rearrange

from tatscli.core.data.synth import SHAPES, shape_clip
from tatscli.core.data.video import to_float
from tatscli.core.metrics import probe


def shapes(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    clips, labels = [], []
    for label, shape in enumerate(SHAPES[:4]):
        for number in range(count):
            rng = np.random.default_rng([seed, label, number])
            clips.append(to_float(shape_clip(shape, 32, 4, rng)))
            labels += [label] * 4
    return rearrange(torch.stack(clips), "b c t h w -> (b t) c h w"), torch.tensor(labels)


def test_the_probe_reads_real_shapes_in_any_colour_and_not_noise():
    frames, labels = shapes(0, 40)
    trained = probe.train_probe(frames, labels, 4, seed=0)
    held, right = shapes(1, 10)
    assert trained.share_right(held, right) >= 0.98
    assert trained.share_right(held.flip(1), right) >= 0.98  # red and blue exchanged
    noise = torch.rand(len(held), 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    assert trained.share_right(noise, right) < 0.5


def test_training_the_probe_leaves_the_global_random_state_alone(monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 3)
    frames, labels = shapes(0, 2)
    before = torch.get_rng_state()
    probe.train_probe(frames, labels, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
