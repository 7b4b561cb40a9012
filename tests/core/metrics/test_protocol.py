"""Named definitions, and what changing one of their choices makes of them."""

from dataclasses import astuple
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tatscli.config.evaluate import Placing as PlacingOption
from tatscli.config.evaluate import ProtocolName
from tatscli.core.metrics.features import crop, prepare, resize, video_features
from tatscli.core.metrics.frechet import frechet_distance
from tatscli.core.metrics.protocol import PROTOCOLS, Placing, Protocol
from tatscli.core.models.i3d import random_i3d

CPU = torch.device("cpu")


def test_the_options_offer_every_protocol() -> None:
    assert get_args(ProtocolName) == tuple(PROTOCOLS)
    assert get_args(PlacingOption) == get_args(Placing)


def test_protocols_are_what_the_tools_do() -> None:
    # Columns: eps, resize, fit, divisor, where clips of real videos and of samples start, size.
    assert {name: astuple(protocol)[1:] for name, protocol in PROTOCOLS.items()} == {
        "fvd": (1e-3, "tf1", "squash", "n-1", "random", "random", 0),
        "tats": (1e-5, "half-pixel", "squash", "n-1", "random", "start", 0),
        "stylegan-v": (1e-3, "half-pixel", "squash", "n", "random", "start", 0),
        "videogpt": (1e-5, "half-pixel", "crop", "n-1", "random", "start", 0),
        "cd-fvd-i3d": (1e-5, "half-pixel", "crop", "n", "random", "random", 128),
    }
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())


def test_a_changed_choice_makes_a_protocol_custom() -> None:
    official = PROTOCOLS["fvd"]
    assert official.changed() == official
    assert official.changed(eps=1e-3, fit=None).name == "fvd"
    assert official.changed(resolution=64) == Protocol("fvd", 1e-3, "tf1", resolution=64)
    for choice in ({"eps": 1e-5}, {"resize": "half-pixel"}, {"fit": "crop"}, {"covariance": "n"}):
        assert official.changed(**choice).name == "custom"


def test_cropping_and_squashing_differ_on_oblong_frames() -> None:
    frames = torch.rand(2, 3, 240, 320, generator=torch.Generator().manual_seed(0)) * 255
    squashed = F.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
    assert torch.equal(resize(frames, 224, "half-pixel", "squash"), squashed)
    # 320 * 224 / 240 is 298.67: rounded up, as VideoGPT does, and the centre cut out.
    wide = F.interpolate(frames, (224, 299), mode="bilinear", align_corners=False)
    assert torch.equal(resize(frames, 224, "half-pixel", "crop"), wide[..., 37 : 37 + 224])
    square = frames[..., :240]
    for rule in ("tf1", "half-pixel"):
        assert torch.equal(resize(square, 224, rule, "crop"), resize(square, 224, rule, "squash"))


def test_a_resolution_comes_first_and_is_antialiased() -> None:
    frames = torch.randint(0, 256, (1, 3, 60, 80), generator=torch.Generator().manual_seed(0))
    small = crop(frames.float(), 30)
    assert small.shape == (1, 3, 30, 30)
    wide = F.interpolate(frames.float(), (30, 40), mode="bilinear", antialias=True)
    assert torch.equal(small, wide[..., 5:35].round())
    plain = F.interpolate(frames.float(), (30, 40), mode="bilinear")[..., 5:35]
    assert small.std() < 0.8 * plain.std()
    assert torch.equal(crop(frames[..., :60].float(), 60), frames[..., :60].float())
    clip = frames[:, :, :, :].permute(0, 2, 3, 1).to(torch.uint8)
    one = prepare(clip, Protocol("a", 1e-3, "half-pixel", resolution=30))
    other = prepare(small.permute(0, 2, 3, 1).to(torch.uint8), Protocol("a", 1e-3, "half-pixel"))
    assert torch.equal(one, other)


def degraded(kind: str, amount: float, clips: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    if kind == "noise":
        noise = rng.standard_normal(clips.shape) * amount * 255
        return np.clip(np.rint(clips + noise), 0, 255).astype(np.uint8)
    if kind == "blur":
        if not amount:
            return clips
        small = torch.from_numpy(clips).flatten(0, 1).permute(0, 3, 1, 2).float()
        side = round(64 / (1 + amount))
        low = F.interpolate(small, (side, side), mode="bilinear", antialias=True)
        back = F.interpolate(low, (64, 64), mode="bilinear")
        frames = back.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return frames.reshape(clips.shape)
    order = np.arange(clips.shape[1])
    moved = rng.permutation(clips.shape[1])[: round(amount * clips.shape[1])]
    order[np.sort(moved)] = order[moved]
    return clips[:, order]


@pytest.mark.parametrize(
    ("kind", "amounts", "seed"),
    [
        ("noise", (0, 0.03, 0.3), 0),
        ("blur", (0, 1, 3), 0),
        ("shuffle", (0, 1), 1),
    ],
)
def test_worse_videos_are_farther_away(kind: str, amounts: tuple[float, ...], seed: int) -> None:
    t, y, x, n = np.meshgrid(*map(np.arange, (9, 64, 64, 6)), indexing="ij")
    wave = np.sin(0.3 * x + 0.5 * n + 0.6 * t) + np.cos(0.2 * y * (1 + n % 3) - 0.4 * t)
    grey = np.rint(127 + 60 * wave).astype(np.uint8).transpose(3, 0, 1, 2)
    clips = np.stack([grey, grey[:, :, ::-1], 255 - grey], axis=-1)
    protocol, model = PROTOCOLS["fvd"], random_i3d(seed, 1e-3)
    real, *others = (
        video_features(model, protocol, degraded(kind, amount, clips), 6, CPU) for amount in amounts
    )
    values = [frechet_distance(real, other) for other in (real, *others)]
    assert values[0] < 1e-9
    assert values == sorted(values) and values[1] > 1e-3 and len(set(values)) == len(amounts)
