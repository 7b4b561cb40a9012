"""Decoding, and encoding, of long videos piece by piece, equal to doing the whole at once.

Memory does not grow with the length, and every frame is computed once (``core.models.streaming``).

Letters: B clips, C channels, H W pixels, t h w latent grid, T frames.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from tatscli.core.models.receptive import pools_over_time
from tatscli.core.models.streaming import run_in_pieces
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.precision import strict_float32

PIECE_FRAMES = 16
"""Frames of a piece: those of a published training clip."""
WHOLE_FRAMES = 32
"""Frames up to which a video is done whole."""


@torch.no_grad()
def decode_stream(vqgan: VQGAN, codes: Tensor, piece: int = 0) -> Iterator[Tensor]:
    """Decode piece by piece; all at once where group norm pools over time.

    Args:
        vqgan: The model, in eval mode.
        codes: (B, t, h, w) int64.
        piece: Latent frames of a piece; 0 makes it 16 frames, and does short videos whole.

    Yields:
        (B, C, T, H, W) float32 in [-0.5, 0.5], clamped, in pieces of one or more frames; together
        the whole video.
    """
    length, factor = codes.shape[1], vqgan.config.downsample[0]
    if pools_over_time(vqgan.config) or (not piece and length * factor <= WHOLE_FRAMES):
        yield vqgan.decode(codes).clamp(-0.5, 0.5)
        return
    piece = piece or max(1, PIECE_FRAMES // factor)
    # The last latent frame brings all frames that waited for it: it comes by itself.
    borders = [*range(0, length - 1, piece), length - 1, length]
    latents = (
        vqgan.codebook.lookup(codes[:, first:stop]).to(vqgan.dtype)
        for first, stop in pairwise(borders)
    )
    for video in run_in_pieces([vqgan.post_vq_conv, vqgan.decoder], latents):
        yield video.float().clamp(-0.5, 0.5)


@torch.no_grad()
def encode_stream(vqgan: VQGAN, video: Tensor, piece: int = 0) -> Tensor:
    """Encode piece by piece; all at once where a latent may depend on frames far from it.

    Args:
        vqgan: The model, in eval mode.
        video: (B, C, T, H, W) in [-0.5, 0.5].
        piece: Frames of a piece; 0 makes it 16, and does short videos whole.

    Returns:
        Codes (B, t, h, w) int64, those of the whole.

    Raises:
        DataError: A side is not divisible by its downsampling, or see ``VQGAN.check_video``.
    """
    config, frames = vqgan.config, video.shape[2]
    # The other paddings read frames that are farther away, in circles even the other end.
    local = not pools_over_time(config) and config.padding_type in ("replicate", "constant")
    if not local or frames % config.downsample[0] or (not piece and frames <= WHOLE_FRAMES):
        return vqgan.encode(video)
    vqgan.check_video(video)
    with strict_float32(video.device):
        pieces = torch.split(video.to(vqgan.dtype), piece or PIECE_FRAMES, dim=2)
        latents = run_in_pieces([vqgan.encoder, vqgan.pre_vq_conv], pieces)
        return torch.cat([vqgan.codebook.nearest(some) for some in latents], dim=1)
