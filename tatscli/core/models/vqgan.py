"""The VQGAN: encoder, codebook, decoder (Ge et al. 2022, section 3.1).

Letters: B clips, C channels, T frames, H W pixels; t h w latent positions, D width.
"""

import hashlib
from collections.abc import Iterator
from math import isnan, log2
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tatscli.config.vqgan import VIDEO_CHANNELS, VQGANConfig
from tatscli.core.models.codebook import Codebook
from tatscli.core.models.conv3d import (
    ResBlock,
    SamePadConv3d,
    SamePadConvTranspose3d,
    Size,
    normalization,
)
from tatscli.core.models.recompute import recomputed
from tatscli.core.models.shapes import as_ids, check_range, check_shape
from tatscli.core.precision import strict_float32
from tatscli.errors import DataError

_DECIDES_CODES = {
    "embedding_dim",
    "codes",
    "hidden_channels",
    "downsample",
    "norm_type",
    "padding_type",
    "group_norm_over_time",
    "image_channels",
}


FARTHEST = 0.75
"""How far from 0 values of frames may be: a reconstruction goes a bit beyond 0.5, [0, 1] more."""
_OF_BYTES = "of bytes, video.float() / 255 - 0.5"


class Reconstruction(NamedTuple):
    """A video through encoder, codebook and decoder.

    Attributes:
        video: (B, C, T, H, W), around [-0.5, 0.5], not clamped.
        codes: (B, t, h, w) int64.
        commitment: Scalar, see ``Quantized``.
        perplexity: Scalar, see ``Quantized``.
    """

    video: Tensor
    codes: Tensor
    commitment: Tensor
    perplexity: Tensor


class Downsampling(nn.Module):
    """Strided convolution and a residual block."""

    def __init__(self, channels: int, stride: Size, config: VQGANConfig) -> None:
        super().__init__()
        # The original hands padding_type to the encoder's own convolutions and pre_vq_conv only;
        # residual blocks always replicate. Checkpoints depend on it.
        self.down = SamePadConv3d(channels, 2 * channels, 4, stride, config.padding_type)
        self.res = ResBlock(2 * channels, config.norm_type, config.group_norm_over_time)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to twice the channels, divided by the stride."""
        out: Tensor = self.res(self.down(x))
        return out


class Upsampling(nn.Module):
    """Transposed convolution and two residual blocks."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: Size, config: VQGANConfig
    ) -> None:
        super().__init__()
        self.up = SamePadConvTranspose3d(in_channels, out_channels, 4, stride)
        self.res1 = ResBlock(out_channels, config.norm_type, config.group_norm_over_time)
        self.res2 = ResBlock(out_channels, config.norm_type, config.group_norm_over_time)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T, H, W) to (B, out, T * stride, H * stride, W * stride)."""
        out: Tensor = self.res2(self.res1(self.up(x)))
        return out


class Encoder(nn.Module):
    """Video to features at the latent grid.

    Attributes:
        recompute: Whether training keeps no activations inside of its stages, see ``recomputed``.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.recompute = False
        strides = _strides(config.downsample)
        hidden = config.hidden_channels
        self.out_channels = hidden * 2 ** len(strides)
        self.conv_first = SamePadConv3d(
            config.image_channels, hidden, 3, padding_type=config.padding_type
        )
        self.conv_blocks = nn.ModuleList(
            Downsampling(hidden * 2**i, stride, config) for i, stride in enumerate(strides)
        )
        norm = normalization(self.out_channels, config.norm_type, config.group_norm_over_time)
        self.final_block = nn.Sequential(norm, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, out_channels, t, h, w)."""
        h = self.conv_first(x)
        for block in self.conv_blocks:
            h = recomputed(block, h) if self.recompute and self.training else block(h)
        out: Tensor = self.final_block(h)
        return out


class Decoder(nn.Module):
    """Features at the latent grid to video.

    Attributes:
        recompute: Whether training keeps no activations inside of its stages, see ``recomputed``.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.recompute = False
        # As published, the first stages upsample all axes, so that of an axis with a smaller
        # factor the last stages upsample nothing: the order of the encoder, not its mirror.
        strides = _strides(config.downsample)
        stages = len(strides)
        widths = [config.hidden_channels * 2 ** (stages - i) for i in range(stages)]
        norm = normalization(widths[0], config.norm_type, config.group_norm_over_time)
        self.final_block = nn.Sequential(norm, nn.SiLU())
        self.conv_blocks = nn.ModuleList(
            Upsampling(before, width, stride, config)
            for before, width, stride in zip(
                [widths[0], *widths[:-1]], widths, strides, strict=True
            )
        )
        self.conv_last = SamePadConv3d(widths[-1], config.image_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, t, h, w) to (B, C, T, H, W)."""
        h = self.final_block(x)
        for block in self.conv_blocks:
            h = recomputed(block, h) if self.recompute and self.training else block(h)
        out: Tensor = self.conv_last(h)
        return out


class VQGAN(nn.Module):
    """Video autoencoder with a codebook; its discriminators are modules of their own.

    ``forward`` trains; ``encode`` and ``decode`` use the model, without gradient, and leave no
    trace in the codebook. All want the model in eval mode where it is not being trained.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        channels, width = self.encoder.out_channels, config.embedding_dim
        self.pre_vq_conv = SamePadConv3d(channels, width, 1, padding_type=config.padding_type)
        self.post_vq_conv = SamePadConv3d(width, channels, 1)
        self.codebook = Codebook(
            config.codes,
            width,
            decay=config.codebook_decay,
            random_restart=config.random_restart,
            restart_threshold=config.restart_threshold,
            restart_statistics=config.restart_statistics,
            each_pass=config.codebook_update == "pass",
        )

    def forward(self, video: Tensor) -> Reconstruction:
        """Reconstruct a video.

        Args:
            video: (B, C, T, H, W) in [-0.5, 0.5].

        Raises:
            DataError: A side is not divisible by its downsampling.
        """
        quantized = self.codebook(self.latents(video))
        return Reconstruction(
            self.decoder(self.post_vq_conv(quantized.latents)),
            quantized.codes,
            quantized.commitment,
            quantized.perplexity,
        )

    def latents(self, video: Tensor) -> Tensor:
        """Encoder outputs before quantisation, (B, D, t, h, w).

        Raises:
            DataError: A side is not divisible by its downsampling.
            ValueError: It is no video of this model's channels.
        """
        check_shape("video", video, "B", self.config.image_channels, "T", "H", "W")
        try:
            self.config.grid(*video.shape[2:])
        except ValueError as error:
            raise DataError(
                f"the VQGAN cannot encode this clip: {error}",
                "choose --sequence-length and --resolution as multiples of the downsampling",
            ) from None
        latents: Tensor = self.pre_vq_conv(self.encoder(video))
        return latents

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Codes (B, t, h, w) int64 of a video (B, C, T, H, W) in [-0.5, 0.5].

        In strict float32 also inside of a training in bf16 or TF32, which would change codes.

        Raises:
            DataError: A side is not divisible by its downsampling, or values of frames are bytes,
                or far outside; on a GPU these are not looked at, which would hold up each step.
            ValueError: It is no video of this model's channels.
        """
        self.check_video(video)
        with strict_float32(video.device):
            return self.codebook.nearest(self.latents(video.to(self.dtype)))

    def check_video(self, video: Tensor) -> None:
        """A video must be one that the model encodes; see ``encode``.

        Raises:
            DataError: Its values are bytes, or far outside.
            ValueError: It is no video of this model's channels.
        """
        check_shape("video", video, "B", self.config.image_channels, "T", "H", "W")
        if not video.is_floating_point():
            raise DataError(
                f"a video of {video.dtype}; its values must be floats in [-0.5, 0.5]", _OF_BYTES
            )
        # The sound of published models has another range.
        if video.device.type == "cpu" and video.shape[1] == VIDEO_CHANNELS and video.numel():
            low, high = (end.item() for end in video.aminmax())
            if isnan(low):
                raise DataError("frames with values that are no numbers (NaN)")
            if max(-low, high) > FARTHEST:
                raise DataError(
                    f"frames with values from {low:g} to {high:g}; they must lie in [-0.5, 0.5]",
                    _OF_BYTES,
                )

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Video (B, C, T, H, W) float32, around [-0.5, 0.5], not clamped, of codes (B, t, h, w).

        Raises:
            ValueError: They are no codes of that shape.
        """
        codes = as_ids("codes", codes, "B", "t", "h", "w")
        check_range("code", codes, self.config.codes)
        latents = self.codebook.lookup(codes).to(self.dtype)
        video: Tensor = self.decoder(self.post_vq_conv(latents))
        return video.float()

    @property
    def dtype(self) -> torch.dtype:
        """What the networks around the codebook compute in, where no autocast says otherwise."""
        return self.post_vq_conv.conv.weight.dtype

    def fingerprint(self) -> str:
        """Sixteen hex digits of all that decides codes and their decoding.

        Equal on every device; independent of discriminators and of the codebook's statistics.
        """
        digest = hashlib.sha256(self.config.model_dump_json(include=_DECIDES_CODES).encode())
        for name, tensor in sorted(self._deciding_tensors()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _deciding_tensors(self) -> Iterator[tuple[str, Tensor]]:
        statistics = {"codebook.N", "codebook.z_avg"}
        for name, tensor in self.state_dict().items():
            # Batch norm's count of batches is the only integer, and decides nothing.
            if name not in statistics and tensor.is_floating_point():
                yield name, tensor


def _strides(factors: Size) -> list[Size]:
    """Strides of each stage: an axis is halved in the first log2(factor) of them."""
    halvings = [int(log2(factor)) for factor in factors]
    stages = range(max(halvings))
    return [(1 + (halvings[0] > i), 1 + (halvings[1] > i), 1 + (halvings[2] > i)) for i in stages]
