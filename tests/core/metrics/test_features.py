"""Features of videos: the resizes by hand, recorded numbers, independence of batches."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tatscli.core.data.video import Frames
from tatscli.core.metrics.features import prepare, resize, video_features
from tatscli.core.metrics.protocol import PROTOCOLS, Protocol
from tatscli.core.models.i3d import random_i3d

CPU = torch.device("cpu")

# The first logits of the two videos under the weights of seed 0; the "tats" network gives the
# published code's numbers on that code's own example to 2e-6.
RECORDED = {
    "fvd": [
        [1.2767415, -2.5812426, 0.1585018, 0.6317960, 1.8032182],
        [1.3750741, -2.5848176, 0.1647249, 0.7020860, 1.9235798],
    ],
    "tats": [
        [1.2944857, -2.5997207, 0.1592767, 0.6262475, 1.8055973],
        [1.3823345, -2.5913227, 0.1642649, 0.6916307, 1.9050113],
    ],
}


def video(speed: int, height: int = 24, width: int = 32) -> Frames:
    """Makes nine frames of moving stripes."""
    t, y, x, c = np.meshgrid(*map(np.arange, (9, height, width, 3)), indexing="ij")
    return ((t * (11 + speed) + y * 7 + x * 5 + c * 80 + y * x * (speed + 1) // 4) % 256).astype(
        np.uint8
    )


@pytest.mark.parametrize("name", RECORDED)
def test_features_are_the_recorded_ones(name: str) -> None:
    protocol = PROTOCOLS[name]
    model = random_i3d(0, protocol.eps)
    features = video_features(model, protocol, np.stack([video(0), video(3)]), 2, CPU)
    assert features.shape == (2, 400)
    assert features.dtype == torch.float32
    expected = torch.tensor(RECORDED[name])
    torch.testing.assert_close(features[:, :5], expected, rtol=0, atol=2e-5)


def test_features_depend_neither_on_batches_nor_on_training_settings() -> None:
    protocol = PROTOCOLS["fvd"]
    model = random_i3d(0, protocol.eps)
    clips = [video(0), video(1, height=48, width=20), video(2)]
    expected = video_features(model, protocol, clips, 3, CPU)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = video_features(model, protocol, iter(clips), 2, CPU)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_no_clips_give_no_features() -> None:
    protocol = PROTOCOLS["fvd"]
    assert video_features(random_i3d(0, protocol.eps), protocol, [], 2, CPU).shape == (0, 400)


def test_pixels_become_the_range_of_the_network() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    for rule in ("tf1", "half-pixel"):
        inputs = prepare(levels, Protocol("one", 1e-3, rule))
        assert inputs.shape == (3, 1, 224, 224)
        assert (float(inputs.min()), float(inputs.max())) == pytest.approx((-1, 1), abs=1e-6)


def test_floats_are_refused_as_pixels() -> None:
    with pytest.raises(ValueError, match="uint8"):
        prepare(torch.zeros(9, 8, 8, 3), PROTOCOLS["fvd"])


def test_tf1_resize_of_two_by_two_by_hand() -> None:
    frame = torch.tensor([[0.0, 8.0], [16.0, 24.0]])
    expected = torch.tensor(
        [
            [0.0, 4.0, 8.0, 8.0],
            [8.0, 12.0, 16.0, 16.0],
            [16.0, 20.0, 24.0, 24.0],
            [16.0, 20.0, 24.0, 24.0],
        ]
    )
    assert torch.equal(resize(frame[None, None], 4, "tf1")[0, 0], expected)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (16, 12), (30, 7)])
def test_tf1_resize_gathers_four_neighbours(height: int, width: int) -> None:
    frame = torch.rand(height, width, generator=torch.Generator().manual_seed(0))
    expected = torch.empty(14, 14)
    for row in range(14):
        for column in range(14):
            y, x = row * height / 14, column * width / 14
            top, left = int(y), int(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = frame[top, left] * (1 - x + left) + frame[top, right] * (x - left)
            lower = frame[below, left] * (1 - x + left) + frame[below, right] * (x - left)
            expected[row, column] = upper * (1 - y + top) + lower * (y - top)
    found = resize(frame[None, None], 14, "tf1")[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_resizes_differ_except_at_the_size_itself() -> None:
    frames = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    for rule in ("tf1", "half-pixel"):
        torch.testing.assert_close(resize(frames, 20, rule), frames)
    assert (resize(frames, 50, "tf1") - resize(frames, 50, "half-pixel")).abs().max() > 0.1
    half_pixel = F.interpolate(frames, (50, 50), mode="bilinear", align_corners=False)
    assert torch.equal(resize(frames, 50, "half-pixel"), half_pixel)
