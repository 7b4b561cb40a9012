"""Whether the network gives the distance that is published for it."""

from dataclasses import dataclass

import numpy as np

from tatscli.app.ahead import check_self_test
from tatscli.app.devices import choose_device
from tatscli.app.fvd_features import Network
from tatscli.app.reporting import Reporter, Silent
from tatscli.config.evaluate import FVDConfig
from tatscli.core.metrics.features import video_features
from tatscli.core.metrics.protocol import PROTOCOLS
from tatscli.errors import CheckpointError, ConfigError

ANCHORS = {
    10: 569.230, 11: 486.358, 12: 551.961, 13: 146.366, 14: 172.855, 15: 133.703, 16: 152.918,
    17: 357.740, 18: 382.467, 19: 306.739, 20: 338.415, 21: 78.173, 22: 82.334, 23: 64.589,
    24: 66.063, 25: 314.480, 26: 316.687, 27: 288.972, 28: 287.781, 29: 152.152, 30: 151.256,
}  # fmt: skip
"""Distance of black from white videos by their frames, as the script of StyleGAN-V gives it."""
TOLERANCE = 1.0
"""How far a network may be from these: the script's own numbers moved by that with its torch."""


@dataclass(frozen=True)
class SelfTest:
    """Black against white videos, whose distance is published.

    Attributes:
        frames: Of the videos.
        value: Their distance under the official epsilon.
        published: What the script of StyleGAN-V gives.
        tolerance: How far the value may be from that.
        value_of_tats: Their distance under the epsilon of the published TATS code; nobody has
            published it.
        network: Its kind, with a digest of its weights.
    """

    frames: int
    value: float
    published: float
    tolerance: float
    value_of_tats: float
    network: str


def self_test(config: FVDConfig, reporter: Reporter | None = None) -> SelfTest:
    """Compare black with white videos, whose distance is known for genuine weights.

    Raises:
        CheckpointError: The file of the network is not there, or its distance is another one.
        ConfigError: No distance is published for so many frames, or the network is a random one.
    """
    reporter = reporter or Silent()
    frames = config.fvd.frames
    if config.fvd.features != "i3d" or frames not in ANCHORS:
        raise ConfigError(
            f"no distance is published for {config.fvd.features} features of {frames} frames",
            f"--self-test --frames {min(ANCHORS)} to {max(ANCHORS)}, without --features",
        )
    check_self_test(config)
    network, device = Network(config), choose_device(config.compute.device)
    clips = [np.full((frames, 64, 64, 3), level, np.uint8) for level in (0, 255)]
    values = []
    with reporter.task("features", "videos", 4) as task:
        for name in ("stylegan-v", "tats"):
            black, white = (
                video_features(network.of(PROTOCOLS[name]), PROTOCOLS[name], [clip], 1, device)
                for clip in clips
            )
            # Of constant videos, means are all that differs.
            values.append(float((black - white).double().square().sum()))
            task.update(2 * len(values))
    result = SelfTest(frames, values[0], ANCHORS[frames], TOLERANCE, values[1], network.name)
    if abs(result.value - result.published) > TOLERANCE:
        raise CheckpointError(
            f"black and white videos of {frames} frames are {result.value:.3f} apart, published "
            f"are {result.published:.3f}: this is not the I3D of FVD ({network.name})",
            "tats weights verify i3d looks at the file; tats weights fetch i3d replaces it",
        )
    return result
