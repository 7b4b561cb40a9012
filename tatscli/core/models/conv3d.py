"""Same-padding 3-D convolutions, normalisation and the residual block of the VQGAN.

Ge et al. 2022, section 3.1: nothing on the time axis may tell a position in the clip, so borders
are padded with their own values, never with zeros, and no statistic is taken over time.

Letters: B clips, C channels, T frames, H W pixels or latent positions.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Size = tuple[int, int, int]


class Conv3d(nn.Conv3d):
    """torch's, but for a single clip in float32 on a CPU, in inference, always through oneDNN.

    By itself torch leaves it there where B C T H is at most 20,480 (its rule for small images): up
    to the first quarter of an encoder, which its own code takes several times as long for.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T, H, W) to its convolution."""
        if not _leaves_onednn(input):
            return super().forward(input)
        how = self.padding, self.stride, self.dilation, self.groups
        out: Tensor = torch.ops.aten.mkldnn_convolution(input, self.weight, self.bias, *how)
        return out


def _leaves_onednn(clip: Tensor) -> bool:
    return (
        len(clip) == 1
        and clip.device.type == "cpu"
        and clip.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


class SamePadConv3d(nn.Module):
    """Convolution whose output has the size of the input divided by the stride.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel on all three axes.
        stride: Stride along time, height and width.
        padding_type: Mode of ``torch.nn.functional.pad``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: Size = (1, 1, 1),
        padding_type: str = "replicate",
    ) -> None:
        super().__init__()
        self.padding = _same_padding(kernel_size, stride)
        self.padding_type = padding_type
        self.conv = Conv3d(in_channels, out_channels, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, out, T / stride, H / stride, W / stride)."""
        if any(self.padding):
            x = F.pad(x, self.padding, mode=self.padding_type)
        out: Tensor = self.conv(x)
        return out

    def inside(self, x: Tensor) -> Tensor:
        """The same without padding in time: outputs of frames that are all there."""
        out: Tensor = self.conv(F.pad(x, (*self.padding[:4], 0, 0), mode=self.padding_type))
        return out

    def steps(self, frames: int) -> int:
        """Of so many frames, padding included, how many ``inside`` needs no more afterwards."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        return max(0, (frames - kernel) // stride + 1) * stride

    def reads(self, first: int, last: int) -> tuple[int, int]:
        """First and last input frame that output frames from first to last depend on."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        before = self.padding[4]
        return first * stride - before, last * stride - before + kernel - 1


class SamePadConvTranspose3d(nn.Module):
    """Transposed convolution whose output has the size of the input times the stride.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel on all three axes.
        stride: Factor along time, height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: Size) -> None:
        super().__init__()
        self.padding = _same_padding(kernel_size, stride)
        self.padding_type = "replicate"
        # Cropping kernel - 1 leaves only outputs that every tap of the kernel contributes to.
        self.convt = nn.ConvTranspose3d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size - 1
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, out, T * stride, H * stride, W * stride)."""
        out: Tensor = self.convt(F.pad(x, self.padding, mode=self.padding_type))
        return out

    def inside(self, x: Tensor) -> Tensor:
        """The same without padding in time: outputs of frames that are all there."""
        out: Tensor = self.convt(F.pad(x, (*self.padding[:4], 0, 0), mode=self.padding_type))
        return out

    def steps(self, frames: int) -> int:
        """Of so many frames, padding included, how many ``inside`` needs no more afterwards."""
        kernel, stride = self.convt.kernel_size[0], self.convt.stride[0]
        return max(0, frames - (kernel - 2) // stride - 1)

    def reads(self, first: int, last: int) -> tuple[int, int]:
        """First and last input frame that output frames from first to last depend on."""
        kernel, stride = self.convt.kernel_size[0], self.convt.stride[0]
        before = self.padding[4]
        return -(-first // stride) - before, (last + kernel - 1) // stride - before


class FrameGroupNorm(nn.GroupNorm):
    """Group norm of each frame by itself."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T, H, W), normalised over C / groups, H and W."""
        frames = rearrange(input, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=len(input))


def normalization(channels: int, norm_type: str, over_time: bool = False) -> nn.Module:
    """Normalisation layer for (B, C, T, H, W).

    Args:
        channels: Channels, a multiple of 32 for groups.
        norm_type: ``batch`` or ``group``.
        over_time: Whether group norm pools over the frames, as in published checkpoints; a
            change in one frame then reaches all others.
    """
    if norm_type == "batch":
        return nn.BatchNorm3d(channels)
    if over_time:
        return nn.GroupNorm(32, channels, eps=1e-6)
    return FrameGroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalised 3x3x3 convolutions added to their input."""

    def __init__(self, channels: int, norm_type: str, over_time: bool) -> None:
        super().__init__()
        self.norm1 = normalization(channels, norm_type, over_time)
        self.conv1 = SamePadConv3d(channels, channels, 3)
        self.norm2 = normalization(channels, norm_type, over_time)
        self.conv2 = SamePadConv3d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = x + h
        return out


def _same_padding(kernel_size: int, stride: Size) -> tuple[int, ...]:
    """Padding in the order of ``F.pad``: last axis first, the odd one before."""
    totals = [kernel_size - step for step in reversed(stride)]
    return tuple(side for total in totals for side in (total - total // 2, total // 2))
