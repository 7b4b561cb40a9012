"""Training runs of both stages."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tatscli.config.base import Config, Published
from tatscli.config.compute import DevicesConfig
from tatscli.config.data import SOUND_FRAME, DataConfig, GPTDataConfig
from tatscli.config.gpt import GPTLossConfig, GPTOptions
from tatscli.config.vqgan import (
    SOUND_CHANNELS,
    VIDEO_CHANNELS,
    VQGANConfig,
    VQGANLossConfig,
)

LPIPS_SIDE = 16
"""Smallest side that leaves a pixel after the four poolings of the perceptual network."""

_DECIDES_GRID = {"resolution", "sequence_length", "sample_every_n_frames", "downsample"}
"""Settings that a run takes from the weights it starts from, where they are left open."""

_SOUND_RECIPE: dict[str, dict[str, Any]] = {
    "model": {"image_channels": 1, "codes": 1024},
    "loss": {"perceptual_weight": 0.0, "image_gan_weight": 0.0, "video_gan_weight": 0.0},
}
"""What a VQGAN of sound has where nothing else is asked for: the published one has no
discriminators, and neither they nor an image network know what sounds alike."""

_INTERVAL = re.compile(r"[1-9]\d*|0?\.\d*[1-9]\d*|1\.0*")


class OptimConfig(Config):
    """Optimiser."""

    ALTERNATIVES: ClassVar = (("learning_rate", "base_learning_rate"),)

    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the rate after warm-up: decays to a tenth at the last step, or constant."""
    lr_warmup: int = Field(1000, ge=0)
    """Steps over which the rate rises to its full value."""
    grad_clip: Annotated[float, Published("gradient_clip_val")] = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""


class VQGANOptimConfig(OptimConfig):
    """Optimiser."""

    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of Adam, for generator and discriminators."""
    base_learning_rate: Annotated[float, Published("lr")] = Field(0.0, ge=0)
    """Rate before the published rule: accumulate x processes/8 x batch/4 x base; 0 = not used."""

    def rate(self, accumulate: int, processes: int, batch_size: int) -> float:
        """The learning rate used, by the published rule where a base rate is given."""
        if not self.base_learning_rate:
            return self.learning_rate
        return accumulate * processes / 8 * batch_size / 4 * self.base_learning_rate


class GPTOptimConfig(OptimConfig):
    """Optimiser."""

    learning_rate: float = Field(3e-4, gt=0)
    """Learning rate of AdamW."""
    base_learning_rate: Annotated[float, Published("base_lr")] = Field(0.0, ge=0)
    """Rate before the published rule: accumulate x processes x batch x base; 0 = not used."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of the linear layers."""

    def rate(self, accumulate: int, processes: int, batch_size: int) -> float:
        """The learning rate used, by the published rule where a base rate is given."""
        if not self.base_learning_rate:
            return self.learning_rate
        return accumulate * processes * batch_size * self.base_learning_rate


class LoopConfig(Config):
    """Training."""

    init: Path | None = None
    """Run folder, checkpoint or published file whose weights a new run starts from."""
    out: Annotated[Path | None, Published("default_root_dir")] = None
    """Folder of the run; by default runs, then the kind of model and the name of the data."""
    max_steps: int = Field(2_000_000, ge=1)
    """Optimiser steps of the whole run, whatever the accumulation and the number of devices."""
    batch_size: int = Field(2, ge=1)
    """Clips a device takes at once."""
    accumulate: Annotated[int, Published("accumulate_grad_batches")] = Field(1, ge=1)
    """Batches that make one optimiser step."""
    val_check_interval: str = "1.0"
    """Validate every N steps (whole number), or every such part of an epoch (decimal up to 1)."""
    val_clips: int = Field(64, ge=1)
    """Validation clips, fixed; fewer where the split has fewer."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    checkpoint_minutes: float = Field(30.0, ge=0)
    """Most minutes between checkpoints, where steps take long; 0 counts steps only."""
    keep_every: int = Field(0, ge=0)
    """Steps between checkpoints that are kept for good; 0 keeps the last two and the best."""
    grid_every: int = Field(1000, ge=1)
    """Steps between pictures of reconstructions or samples."""
    log_every: Annotated[int, Published("progress_bar_refresh_rate")] = Field(50, ge=1)
    """Steps between lines of the log and updates of the display."""
    seed: int = Field(0, ge=0)
    """Seed of weights, clip order and augmentation."""

    @field_validator("val_check_interval", mode="before")
    @classmethod
    def _interval(cls, value: object) -> str:
        text = str(value)
        if not _INTERVAL.fullmatch(text):
            raise ValueError(f"a whole number of steps or a decimal up to 1.0, got {text}")
        return text

    def val_steps(self, epoch_steps: int) -> int:
        """Steps between validations, for an epoch of so many steps."""
        if "." in self.val_check_interval:
            return max(1, round(float(self.val_check_interval) * epoch_steps))
        return int(self.val_check_interval)

    @property
    def log_steps(self) -> int:
        """Steps between figures; a run that is shorter has one at its end."""
        return min(self.log_every, self.max_steps)


class GPTLoopConfig(LoopConfig):
    """Training."""

    batch_size: int = Field(3, ge=1)
    """Clips a device takes at once."""


class ComputeConfig(DevicesConfig):
    """Machine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; auto takes every visible GPU, else the CPU."""
    workers: Annotated[int, Published("num_workers")] = Field(-1, ge=-1)
    """Processes that read clips, per device; -1 chooses by core count."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Arithmetic of the networks; auto takes bf16 on GPUs that are good at it."""
    recompute: bool = False
    """Compute activations again for the gradient: less memory, about a third more time."""
    sync_batchnorm: bool = True
    """Share batch statistics between GPUs, as the published code does; no effect on one."""
    requeue: bool = False
    """Let SLURM start the job again after SIGUSR1, by which it announces the end of its time."""

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: object) -> object:
        if value in ("fp16", "float16", "16", "16-mixed"):
            raise ValueError(
                "fp16 is not offered: its loss scale would be shared by two optimisers, and a step "
                "that it skips would still count; use bf16 or float32"
            )
        return value


class GPTComputeConfig(ComputeConfig):
    """Machine."""

    fsdp: bool = False
    """Shard weights, gradients and optimiser over the devices, for models too large for one."""


def _given(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """What a section is given before it is checked."""
    held = values.get(section)
    if isinstance(held, Config):
        return held.model_dump(exclude_unset=True)
    return dict(held) if isinstance(held, Mapping) else {}


AUTO = Path("auto")
"""Of a run to continue: the one in its folder if that has saved, else a new one."""


class VQGANTrainConfig(Config):
    """Everything a VQGAN run needs."""

    data: DataConfig
    model: VQGANConfig = Field(default_factory=VQGANConfig)
    loss: VQGANLossConfig = Field(default_factory=VQGANLossConfig)
    optim: VQGANOptimConfig = Field(default_factory=VQGANOptimConfig)
    train: LoopConfig = Field(default_factory=LoopConfig)
    compute: ComputeConfig = Field(default_factory=ComputeConfig)

    @model_validator(mode="before")
    @classmethod
    def _sound_recipe(cls, values: Any) -> Any:
        """Fill in what sound asks for; weights that a run starts from bring their own model."""
        data, model, loss, loop = (_given(values, n) for n in ("data", "model", "loss", "train"))
        if data.get("input") != "sound":
            return values
        filled = {"loss": _SOUND_RECIPE["loss"] | loss}
        if not loop.get("init"):
            filled["model"] = _SOUND_RECIPE["model"] | model
        return values | filled

    @model_validator(mode="after")
    def _one_channel_of_sound(self) -> "VQGANTrainConfig":
        wanted = SOUND_CHANNELS if self.data.input == "sound" else VIDEO_CHANNELS
        given = self.model.image_channels
        if self.train.init is None and given != wanted:
            raise ValueError(f"a VQGAN of {self.data.input} has {wanted} channels, got {given}")
        return self

    @model_validator(mode="after")
    def _clip_fits_downsampling(self) -> "VQGANTrainConfig":
        given = self.data.model_fields_set | self.model.model_fields_set
        if self.train.init is None or given >= _DECIDES_GRID:
            self.model.grid(self.data.frames, *self.frame_sides)
        return self

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.train.out or Path("runs") / f"vqgan-{_named(self.data.data)}"

    @property
    def frame_sides(self) -> tuple[int, int]:
        """Height and width of what stands for a frame."""
        is_sound = self.data.input == "sound"
        return SOUND_FRAME if is_sound else (self.data.resolution, self.data.resolution)

    @model_validator(mode="after")
    def _frames_large_enough_for_lpips(self) -> "VQGANTrainConfig":
        if self.loss.perceptual_weight and (side := min(self.frame_sides)) < LPIPS_SIDE:
            raise ValueError(
                f"the perceptual loss needs frames of at least {LPIPS_SIDE} pixels, got resolution "
                f"{side}; set perceptual weight 0"
            )
        return self


class GPTTrainConfig(Config):
    """Everything a GPT run needs."""

    data: GPTDataConfig
    vqgan: Annotated[Path | None, Published("vqvae")] = None
    """VQGAN run folder, checkpoint or published file; a token dataset brings its own."""
    sound_vqgan: Annotated[Path | None, Published("stft_vqvae")] = None
    """VQGAN of sound, for --condition sound; a token dataset with sound brings its own."""
    model: GPTOptions = Field(default_factory=GPTOptions)
    loss: GPTLossConfig = Field(default_factory=GPTLossConfig)
    optim: GPTOptimConfig = Field(default_factory=GPTOptimConfig)
    train: GPTLoopConfig = Field(default_factory=GPTLoopConfig)
    compute: GPTComputeConfig = Field(default_factory=GPTComputeConfig)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.train.out or Path("runs") / f"gpt-{_named(self.data.data)}"


def _named(data: Path) -> str:
    """What a dataset is called, also where it is given as the current folder."""
    return data.name or data.absolute().name
