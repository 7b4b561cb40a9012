"""Decoding of long token grids piece by piece, equal to decoding the whole.

Every layer of the decoder sees a bounded stretch of time (batch norm in eval and per-frame group
norm add none), so a piece decoded with enough latent frames on both sides is exact in its middle.

Letters: B clips, t h w latent grid, T frames.
"""

from collections.abc import Iterator
from math import ceil, log2

import torch
from torch import Tensor

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.vqgan import VQGAN


def decoder_reach(config: VQGANConfig) -> int:
    """Latent frames on each side that an output frame can depend on (rounded up)."""
    stages = int(log2(max(config.downsample)))
    temporal = int(log2(config.downsample[0]))
    reach = 1  # the last convolution, three frames wide
    for stage in reversed(range(stages)):
        reach += 4  # two residual blocks, four convolutions three frames wide
        # A transposed convolution four frames wide, which doubles time in the first stages.
        reach = (ceil(reach / 2) if stage < temporal else reach) + 2
    return reach


@torch.no_grad()
def decode_stream(vqgan: VQGAN, codes: Tensor, piece: int = 16) -> Iterator[Tensor]:
    """Decode in pieces of constant memory.

    Args:
        vqgan: The model, in eval mode.
        codes: (B, t, h, w) int64.
        piece: Latent frames decoded at once, besides their surroundings.

    Yields:
        (B, C, T, H, W) in [-0.5, 0.5], clamped; together the whole video.
    """
    length, factor = codes.shape[1], vqgan.config.downsample[0]
    pools_over_time = vqgan.config.norm_type == "group" and vqgan.config.group_norm_over_time
    reach = decoder_reach(vqgan.config)
    if pools_over_time or length <= piece + 2 * reach:
        yield vqgan.decode(codes).clamp(-0.5, 0.5)
        return
    for start in range(0, length, piece):
        stop = min(start + piece, length)
        first, last = max(0, start - reach), min(length, stop + reach)
        video = vqgan.decode(codes[:, first:last]).clamp(-0.5, 0.5)
        yield video[:, :, (start - first) * factor : (stop - first) * factor]
