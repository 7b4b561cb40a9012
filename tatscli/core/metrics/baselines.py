"""What a model must beat to be worth anything.

Letters: B clips, C channels, T frames, H W pixels, t h w latent grid, K codes.
"""

import torch
from torch import Tensor

SMOOTHING = (0.001, 0.01, 0.1, 1.0)
"""Pseudo-counts tried; the baseline is given the one that suits it best."""


def best_constant_image(videos: Tensor) -> Tensor:
    """The single image with the least squared error to all frames: their mean, (C, H, W).

    Args:
        videos: (B, C, T, H, W).
    """
    return videos.mean(dim=(0, 2))


def bigram_loss(train: Tensor, held: Tensor, codes: int) -> float:
    """Loss of predicting each code from the one at its place in the latent frame before.

    The first latent frame is predicted from how often each code occurs at each place in it.

    Args:
        train: Codes (B, t, h, w) to count on.
        held: Codes to predict.
        codes: K.

    Returns:
        Nats a token, for the smoothing that is best on the held-out codes.
    """
    _, _, height, width = train.shape
    places = torch.arange(height * width)
    first = torch.zeros(height * width, codes)
    follow = torch.zeros(codes, codes)
    start = train[:, 0].flatten(1)
    first.index_put_((places.expand_as(start), start), torch.ones(()), accumulate=True)
    before, after = train[:, :-1].flatten(), train[:, 1:].flatten()
    follow.index_put_((before, after), torch.ones(()), accumulate=True)
    held_start = held[:, 0].flatten(1)
    held_before, held_after = held[:, :-1].flatten(), held[:, 1:].flatten()
    losses = []
    for count in SMOOTHING:
        of_first = ((first + count) / (first + count).sum(1, keepdim=True)).log()
        of_follow = ((follow + count) / (follow + count).sum(1, keepdim=True)).log()
        total = of_first[places.expand_as(held_start), held_start].sum()
        total = total + of_follow[held_before, held_after].sum()
        losses.append(-float(total) / held.numel())
    return min(losses)
