"""The numbers of the published code, where TATS_REFERENCE names the folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tatscli.core.metrics.features import prepare, video_features
from tatscli.core.metrics.frechet import frechet_distance, kernel_distance
from tatscli.core.metrics.protocol import PROTOCOLS
from tatscli.core.models.i3d import random_i3d

pytestmark = pytest.mark.skipif(
    "TATS_REFERENCE" not in os.environ, reason="TATS_REFERENCE names no folder"
)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(Path(os.environ["TATS_REFERENCE"]) / "i3d.npz") as file:
        return dict(file)


def test_network_gives_the_published_features(reference: dict[str, np.ndarray]) -> None:
    protocol = PROTOCOLS["tats"]
    model = random_i3d(0, protocol.eps)
    videos = reference["videos"]
    features = video_features(model, protocol, videos, 2, torch.device("cpu"))
    np.testing.assert_allclose(features, reference["logits"], rtol=0, atol=1e-5)
    pooled = model(prepare(torch.from_numpy(videos[0]), protocol)[None]).pooled
    np.testing.assert_allclose(pooled[0], reference["pooled"][0].ravel(), rtol=0, atol=1e-5)


def test_distances_are_the_published_ones(reference: dict[str, np.ndarray]) -> None:
    a, b = (torch.from_numpy(reference[name]) for name in ("feats_a", "feats_b"))
    assert frechet_distance(a, b) == pytest.approx(float(reference["frechet_ab"]), rel=1e-10)
    assert kernel_distance(a, b) == pytest.approx(float(reference["kvd_ab"]), rel=1e-10)
