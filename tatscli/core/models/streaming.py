"""Encoder and decoder piece by piece in time, equal to the whole, each frame computed once.

Every convolution keeps the few frames that its next outputs need too, so a video of any length
takes the memory of a piece. Only for models that do not pool over time (``pools_over_time``).

Letters: B clips, C channels, T frames, H W pixels or latent positions.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.core.models.conv3d import ResBlock, SamePadConv3d, SamePadConvTranspose3d
from tatscli.core.models.vqgan import Decoder, Downsampling, Encoder, Upsampling

Layer = Callable[[Tensor | None, bool], Tensor | None]
"""Takes the next frames (none yet: None) and whether they are the last; gives those it can."""


def run_in_pieces(modules: Iterable[nn.Module], pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Run modules of the VQGAN one after the other over pieces of a video.

    Args:
        modules: In order; encoder, decoder and what they are made of.
        pieces: (B, C, T, H, W) each, T of 1 or more, one or more of them.

    Yields:
        Outputs as soon as they can be computed; together those of the whole, up to rounding.
    """
    layers = [_layer(module) for module in modules]
    coming = iter(pieces)
    piece = next(coming, None)
    while piece is not None:
        following = next(coming, None)
        out = _through(layers, piece, following is None)
        if out is not None:
            yield out
        piece = following


def _layer(module: nn.Module) -> Layer:
    """A module that remembers what it needs of the pieces before."""
    if isinstance(module, SamePadConv3d | SamePadConvTranspose3d):
        return _Convolution(module)
    if isinstance(module, ResBlock):
        return _Residual(module)
    if isinstance(module, Encoder):
        return _Chain([module.conv_first, *module.conv_blocks, module.final_block])
    if isinstance(module, Decoder):
        return _Chain([module.final_block, *module.conv_blocks, module.conv_last])
    if isinstance(module, Downsampling):
        return _Chain([module.down, module.res])
    if isinstance(module, Upsampling):
        return _Chain([module.up, module.res1, module.res2])
    return _FrameByFrame(module)


def _through(layers: Iterable[Layer], x: Tensor | None, last: bool) -> Tensor | None:
    for layer in layers:
        x = layer(x, last)
    return x


class _Chain:
    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._layers = [_layer(module) for module in modules]

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        return _through(self._layers, x, last)


class _FrameByFrame:
    """What treats each frame by itself: normalisation, activation."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        return None if x is None else self._module(x)


class _Convolution:
    def __init__(self, module: SamePadConv3d | SamePadConvTranspose3d) -> None:
        self._module = module
        self._kept: Tensor | None = None

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        module, kept = self._module, self._kept
        before, after = module.padding[4:]
        if kept is not None:
            x = kept if x is None else torch.cat([kept, x], dim=2)
        elif x is not None:
            x = self._ended(x, before, 0)
        if x is None:
            return None
        if last:
            x = self._ended(x, 0, after)
        steps = module.steps(x.shape[2])
        # A copy, since a view would hold the whole piece in memory.
        self._kept = x[:, :, steps:].clone() if steps > 0 else x
        return module.inside(x) if steps > 0 else None

    def _ended(self, x: Tensor, before: int, after: int) -> Tensor:
        """Frames as they are padded where the video begins or ends."""
        if not before and not after:
            return x
        return F.pad(x, (0, 0, 0, 0, before, after), mode=self._module.padding_type)


class _Residual:
    def __init__(self, module: ResBlock) -> None:
        self._norm1, self._norm2 = module.norm1, module.norm2
        self._conv1, self._conv2 = _Convolution(module.conv1), _Convolution(module.conv2)
        self._waiting: Tensor | None = None

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        waiting = self._waiting
        if x is not None:
            waiting = x if waiting is None else torch.cat([waiting, x], dim=2)
        h = self._conv1(None if x is None else F.silu(self._norm1(x)), last)
        h = self._conv2(None if h is None else F.silu(self._norm2(h)), last)
        if h is None or waiting is None:
            self._waiting = waiting
            return None
        done = h.shape[2]
        self._waiting = waiting[:, :, done:].clone()
        return waiting[:, :, :done] + h
