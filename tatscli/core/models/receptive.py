"""How far the VQGAN sees in time, read off its own convolutions.

Normalisation is left out: batch norm in eval and group norm of each frame reach no other frame,
group norm over time reaches all of them (``pools_over_time``). Where a clip ends, padding by
replication or with zeros reads nothing that is not within reach.
"""

from typing import NamedTuple

from torch import nn

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.conv3d import SamePadConv3d, SamePadConvTranspose3d
from tatscli.core.models.vqgan import VQGAN


class Reach(NamedTuple):
    """Neighbours in time that something depends on, exactly.

    Attributes:
        before: How many before its own place.
        after: How many after it; kernels of four frames make the two sides differ.
    """

    before: int
    after: int


def encoder_reach(vqgan: VQGAN) -> Reach:
    """Frames that a latent depends on, besides those at its own place."""
    first, last = _seen(vqgan.encoder, 0, 0)
    return Reach(-first, last - (vqgan.config.downsample[0] - 1))


def decoder_reach(vqgan: VQGAN) -> Reach:
    """Latent frames that the frames of a latent depend on, besides that latent."""
    first, last = _seen(vqgan.decoder, 0, vqgan.config.downsample[0] - 1)
    return Reach(-first, last)


def pools_over_time(config: VQGANConfig) -> bool:
    """Whether every latent depends on every frame, and every frame on every latent."""
    return config.norm_type == "group" and config.group_norm_over_time


def _seen(part: nn.Module, first: int, last: int) -> tuple[int, int]:
    """Inputs that outputs from first to last depend on, far from where a clip ends.

    Encoder and decoder hold their layers in the order in which they run; what a residual block
    adds to its convolutions' output is in the middle of what those see.
    """
    layers = (SamePadConv3d, SamePadConvTranspose3d)
    for layer in reversed([m for m in part.modules() if isinstance(m, layers)]):
        first, last = layer.reads(first, last)
    return first, last
