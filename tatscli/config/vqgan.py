"""The VQGAN: architecture and losses."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tatscli.config.base import FILE_ONLY, Config, Obsolete, Published

VIDEO_CHANNELS = 3
"""Channels of a frame of a video."""
SOUND_CHANNELS = 1
"""Channels of a patch of sound."""


class VQGANConfig(Config):
    """VQGAN architecture."""

    OBSOLETE: ClassVar[dict[str, Obsolete]] = {
        "restart_thres": Obsolete(
            "--restart-threshold compares with the mean usage, not with a number", is_flag=False
        ),
        "i3d_feat": Obsolete("the published code never used it"),
        "image_channels": Obsolete("frames have three, sound has one", is_flag=False),
    }

    embedding_dim: int = Field(256, ge=1)
    """Width of a code vector."""
    codes: Annotated[int, Published("n_codes")] = Field(16384, ge=2, le=65536)
    """Entries of the codebook."""
    hidden_channels: Annotated[int, Published("n_hiddens")] = Field(32, ge=1)
    """Channels at full resolution; doubled at each downsampling."""
    downsample: tuple[int, int, int] = (4, 8, 8)
    """Compression along time, height and width; powers of two."""
    norm_type: Literal["batch", "group"] = "batch"
    """Normalisation: batch statistics, or groups of channels of each frame by itself."""
    padding_type: Annotated[Literal["replicate", "constant", "reflect", "circular"], FILE_ONLY] = (
        "replicate"
    )
    """Padding of the encoder's down-sampling and first convolutions."""
    group_norm_over_time: Annotated[bool, FILE_ONLY] = False
    """Whether group norm pools over time, as in published checkpoints; breaks time-agnosticity."""
    image_channels: Annotated[int, FILE_ONLY] = Field(3, ge=1)
    """Channels of a frame."""
    codebook_decay: Annotated[float, FILE_ONLY] = Field(0.99, gt=0, lt=1)
    """Decay of the moving averages that update the codebook, once a step."""
    random_restart: bool = False
    """Move codes that are hardly used onto encoder outputs of the current batch."""
    restart_threshold: float = Field(0.1, gt=0, lt=1)
    """Share of the uniform usage below which a code is moved when random restart is on."""
    restart_statistics: Annotated[bool, FILE_ONLY] = True
    """Whether a moved code takes its statistics along; without, as published, it flies back."""
    codebook_update: Annotated[Literal["step", "pass"], FILE_ONLY] = "step"
    """When codes move: once a step, or as published in each pass, that for discriminators too."""
    disc_channels: int = Field(64, ge=1)
    """Channels of the first layer of both discriminators."""
    disc_layers: int = Field(3, ge=1)
    """Downsampling layers of both discriminators."""

    @field_validator("downsample")
    @classmethod
    def _powers_of_two(cls, factors: tuple[int, int, int]) -> tuple[int, int, int]:
        if any(factor < 1 or factor & (factor - 1) for factor in factors):
            raise ValueError(f"factors must be powers of two, got {factors}")
        if max(factors) == 1:
            raise ValueError("at least one factor must be 2 or more, got (1, 1, 1)")
        return factors

    @model_validator(mode="after")
    def _group_norm_fits(self) -> "VQGANConfig":
        if self.norm_type == "group" and (2 * self.hidden_channels) % 32:
            raise ValueError(
                "group norm has 32 groups and needs hidden channels in multiples of 16, "
                f"got {self.hidden_channels}"
            )
        return self

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of a clip.

        Raises:
            ValueError: A side is not divisible by its factor; the message has both numbers.
        """
        sides = {"frames": frames, "height": height, "width": width}
        for (name, side), factor in zip(sides.items(), self.downsample, strict=True):
            if side % factor:
                below = side - side % factor
                near = " and ".join(str(n) for n in (below, below + factor) if n)
                raise ValueError(
                    f"{name} {side} cannot be downsampled by {factor} (downsample is "
                    f"{' '.join(map(str, self.downsample))}); the nearest that can: {near}"
                )
        t, h, w = self.downsample
        return frames // t, height // h, width // w


class VQGANLossConfig(Config):
    """Losses."""

    l1_weight: float = Field(4.0, ge=0)
    """Weight of the absolute pixel error."""
    perceptual_weight: float = Field(4.0, ge=0)
    """Weight of the perceptual error (LPIPS) of one random frame a clip; 0 needs no VGG16 file."""
    perceptual_range: Annotated[float, FILE_ONLY] = Field(1.0, gt=0)
    """Largest pixel value that LPIPS is shown; it expects 1, the published code shows 0.5."""
    image_gan_weight: float = Field(1.0, ge=0)
    """Weight of the discriminator that sees one random frame a clip."""
    video_gan_weight: float = Field(1.0, ge=0)
    """Weight of the discriminator that sees whole clips."""
    gan_feat_weight: float = Field(4.0, ge=0)
    """Weight of feature matching in both discriminators."""
    commitment_weight: Annotated[float, FILE_ONLY] = Field(0.25, ge=0)
    """Weight that ties encoder outputs to their codes."""
    disc_loss: Annotated[Literal["hinge", "vanilla"], Published("disc_loss_type")] = "hinge"
    """Loss of the discriminators."""
    disc_start: Annotated[int, Published("discriminator_iter_start")] = Field(10000, ge=0)
    """Step from which the discriminators act on the generator."""
    disc_warmup: int = Field(1000, ge=0)
    """Steps the discriminators learn before they act."""
    disc_ramp: int = Field(1000, ge=0)
    """Steps over which their weight rises to its full value."""

    @property
    def has_discriminators(self) -> bool:
        """Whether any discriminator has weight."""
        return self.image_gan_weight > 0 or self.video_gan_weight > 0
