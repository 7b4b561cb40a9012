"""Sampling: one window, or any length."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tatscli.config.base import Config, Obsolete, Published


class DeviceConfig(Config):
    """Machine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; auto takes the first GPU, else the CPU."""


class FilterConfig(Config):
    """Choice of tokens."""

    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = Field(2048, ge=0)
    """Sample among the k likeliest tokens; 0 does not cut."""
    top_p: float = Field(0.92, gt=0, le=1)
    """Then among the likeliest that together reach this probability; 1 does not cut."""


class SampleConfig(Config):
    """Samples."""

    OBSOLETE: ClassVar[dict[str, Obsolete]] = {
        "save_videos": Obsolete("every sample is written as a video"),
        "image_folder": Obsolete("folders of frames are recognised by themselves"),
    }

    gpt: Annotated[Path | None, Published("gpt_ckpt")] = None
    """GPT run folder, checkpoint or published file; by default the newest GPT run in runs."""
    vqgan: Annotated[Path | None, Published("vqgan_ckpt")] = None
    """VQGAN, as a check; by default the one the GPT was trained with, which its file holds."""
    out: Annotated[Path, Published("save")] = Path("samples")
    """Folder under which the folder of the samples is made."""
    name: Annotated[str, Published("save_name")] = Field("", pattern=r"^[^/\\]*$")
    """Folder of the samples; by default short or long with seed and settings."""
    samples: Annotated[int, Published("n_sample")] = Field(16, ge=1)
    """Videos to sample."""
    batch_size: int = Field(16, ge=1)
    """Videos sampled at once; does not change them."""
    class_cond: bool = False
    """Ask for a model with class labels; such models draw over all classes evenly."""
    seed: int = Field(0, ge=0)
    """Seed; sample i depends on it and i alone."""
    lossless: bool = False
    """Also write each sample as lossless FFV1, for evaluation."""


class RealDataConfig(Config):
    """Comparison with real videos."""

    compute_fvd: bool = False
    """Compare the samples with the videos of the data option."""
    data: Annotated[Path | None, Published("data_path")] = None
    """Folder of real videos."""
    dataset: str = ""
    """Name of the real videos in outputs."""
    resolution: int = Field(0, ge=0)
    """Side to which the real videos are brought; 0 takes that of the samples."""
    sample_every_n_frames: int = Field(1, ge=1)
    """Keep every n-th frame of the real videos."""


class SampleShortConfig(Config):
    """Everything that sampling one window needs."""

    sample: SampleConfig = SampleConfig()
    filter: FilterConfig = FilterConfig()
    real: RealDataConfig = RealDataConfig()
    compute: DeviceConfig = DeviceConfig()


class WindowConfig(Config):
    """Length."""

    ALTERNATIVES: ClassVar = (("length", "frames"),)

    length: Annotated[int, Published("sample_length")] = Field(16, ge=1)
    """Latent frames of each sample."""
    frames: int = Field(0, ge=0)
    """Length in frames instead; 0 = not used."""
    temporal_sample_pos: int = Field(1, ge=1)
    """Latent frames before it that each new latent frame is generated from."""
    sample_resolution: int = Field(0, ge=0)
    """Latent side, as a check; 0 takes that of training."""


class SampleLongConfig(Config):
    """Everything that sampling long videos needs."""

    sample: SampleConfig = SampleConfig()
    window: WindowConfig = WindowConfig()
    filter: FilterConfig = FilterConfig()
    real: RealDataConfig = RealDataConfig()
    compute: DeviceConfig = DeviceConfig()
