"""What a Fréchet video distance is made of besides the videos, and the named choices of others.

Implementations share the weights of I3D and differ in all of this, so that their numbers do not
compare. Each is a protocol here; with any choice changed, it is called custom. Arithmetic is always
exact: a protocol states what a tool defines, not its rounding.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from tatscli.core.metrics.frechet import Covariance

Resize = Literal["tf1", "half-pixel"]
Fit = Literal["squash", "crop"]
Placing = Literal["random", "start", "center", "uniform"]

CUSTOM = "custom"


@dataclass(frozen=True)
class Protocol:
    """A definition of the distance.

    Attributes:
        name: Printed and stored with every result.
        eps: Of the network's batch normalisations.
        resize: Which bilinear resize, without antialiasing, brings frames to 224 x 224. `tf1` takes
            pixels as points on a grid that starts at the first one, as TensorFlow 1 did;
            `half-pixel` takes them as areas.
        fit: Whether frames that are not square are squashed, or their shorter side is resized and
            the centre cut out.
        covariance: Divisor of the covariances of n videos.
        real_clip: Where clips of real videos start: at a number fixed by seed and path, at the
            first frame, in the middle, or evenly spread.
        fake_clip: The same of samples.
        resolution: Side to which frames are brought before all this: shorter side, antialiased, and
            centre crop. 0 takes them as they are.
    """

    name: str
    eps: float
    resize: Resize
    fit: Fit = "squash"
    covariance: Covariance = "n-1"
    real_clip: Placing = "random"
    fake_clip: Placing = "random"
    resolution: int = 0

    def changed(self, **choices: Any) -> "Protocol":
        """The protocol with other choices; None leaves one as it is.

        The resolution is no choice of a definition but part of what is compared.
        """
        given = {name: value for name, value in choices.items() if value is not None}
        found = replace(self, **given)
        if replace(found, resolution=self.resolution) == self:
            return found
        return replace(found, name=CUSTOM)

    def placing(self, is_real: bool) -> Placing:
        """Where clips of a side start."""
        return self.real_clip if is_real else self.fake_clip


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Unterthiner et al., 2018: the graph on TF-Hub, and TensorFlow 1's resize before it.
        Protocol("fvd", 1e-3, "tf1"),
        Protocol("tats", 1e-5, "half-pixel", fake_clip="start"),
        Protocol("stylegan-v", 1e-3, "half-pixel", covariance="n", fake_clip="start"),
        Protocol("videogpt", 1e-5, "half-pixel", fit="crop", fake_clip="start"),
        Protocol("cd-fvd-i3d", 1e-5, "half-pixel", fit="crop", covariance="n", resolution=128),
    )
}
