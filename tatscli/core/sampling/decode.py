"""Decoding, and encoding, of long videos piece by piece, equal to doing the whole at once.

A latent or a frame depends on a bounded stretch of time (``core.models.receptive``), so a piece
with that much on both sides is exact in its middle, and memory does not grow with the length.

Letters: B clips, C channels, H W pixels, t h w latent grid, T frames.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tatscli.core.models.receptive import Reach, decoder_reach, encoder_reach, pools_over_time
from tatscli.core.models.vqgan import VQGAN

LEAST_PIECE = 16
"""Latent frames; more where a piece would be smaller than what has to be computed around it."""


def most_at_once(vqgan: VQGAN) -> int:
    """Latent frames that ``decode_stream`` decodes at once, whatever the length."""
    reach = decoder_reach(vqgan)
    return _chosen_piece(reach) + reach.before + reach.after


def decode_stream(vqgan: VQGAN, codes: Tensor, piece: int = 0) -> Iterator[Tensor]:
    """Decode piece by piece; all at once where group norm pools over time.

    Args:
        vqgan: The model, in eval mode.
        codes: (B, t, h, w) int64.
        piece: Latent frames of a piece, besides those around it; 0 chooses by the receptive field,
            so that computing those at most doubles the work.

    Yields:
        (B, C, T, H, W) in [-0.5, 0.5], clamped; together the whole video.
    """
    factor = vqgan.config.downsample[0]
    reach = decoder_reach(vqgan)
    if pools_over_time(vqgan.config):
        piece = codes.shape[1]
    for window in _windows(codes.shape[1], piece, reach):
        video = vqgan.decode(codes[:, window.first : window.last])
        start = (window.start - window.first) * factor
        stop = (window.stop - window.first) * factor
        yield video[:, :, start:stop].clamp(-0.5, 0.5)


def encode_windows(vqgan: VQGAN, video: Tensor, piece: int = 0) -> Tensor:
    """Encode piece by piece; all at once where a latent may depend on frames far from it.

    Args:
        vqgan: The model, in eval mode.
        video: (B, C, T, H, W) in [-0.5, 0.5].
        piece: Latent frames of a piece, besides those around it; 0 chooses, as for decoding.

    Returns:
        Codes (B, t, h, w) int64, those of the whole.

    Raises:
        DataError: A side is not divisible by its downsampling.
    """
    config = vqgan.config
    factor = config.downsample[0]
    length = -(-video.shape[2] // factor)
    before, after = encoder_reach(vqgan)
    reach = Reach(-(-before // factor), -(-after // factor))
    # The other paddings read frames that are farther away, in circles even the other end.
    if pools_over_time(config) or config.padding_type not in ("replicate", "constant"):
        piece = length
    codes = [
        vqgan.encode(video[:, :, window.first * factor : window.last * factor])[
            :, window.start - window.first : window.stop - window.first
        ]
        for window in _windows(length, piece, reach)
    ]
    return torch.cat(codes, 1)


class _Window(NamedTuple):
    """Latent frames computed at once, ``first`` to ``last``, and those kept of them."""

    first: int
    start: int
    stop: int
    last: int


def _windows(length: int, piece: int, reach: Reach) -> Iterator[_Window]:
    piece = piece or _chosen_piece(reach)
    if length <= piece + reach.before + reach.after:  # no more than a window in the middle holds
        piece = length
    for start in range(0, length, piece):
        stop = min(start + piece, length)
        yield _Window(max(0, start - reach.before), start, stop, min(length, stop + reach.after))


def _chosen_piece(reach: Reach) -> int:
    return max(LEAST_PIECE, reach.before + reach.after)
