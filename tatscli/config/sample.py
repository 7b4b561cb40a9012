"""Sampling: one window, or any length."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tatscli.config.base import FILE_ONLY, Config, Obsolete, Published
from tatscli.config.compute import SamplingMachineConfig


class FilterConfig(Config):
    """Choice of tokens."""

    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = Field(2048, ge=0)
    """Sample among the k likeliest tokens; 0 does not cut."""
    top_p: float = Field(0.92, gt=0, le=1)
    """Then among the likeliest that together reach this probability; 1 does not cut."""
    condition_ids: Annotated[Literal["masked", "sampled"], FILE_ONLY] = "masked"
    """Ids of the condition are never drawn, or drawn and taken for code 0, as published."""


class LongFilterConfig(FilterConfig):
    """Choice of tokens."""

    top_k_init: int | None = Field(None, ge=0)
    """Top k for the first latent frames, which decide the scene; by default as for the others."""
    top_p_init: float | None = Field(None, gt=0, le=1)
    """Top p for the first latent frames; by default as for the others."""


class SampleConfig(Config):
    """Samples."""

    OBSOLETE: ClassVar[dict[str, Obsolete]] = {
        "save_videos": Obsolete("every sample is written as a video"),
        "image_folder": Obsolete("folders of frames are recognised by themselves"),
        "stft_data": Obsolete("--audio takes any file with sound"),
        "run": Obsolete("sets of samples differ by --seed and --name", is_flag=False),
    }

    gpt: Annotated[Path | None, Published("gpt_ckpt"), Published("ckpt1")] = None
    """GPT run folder, checkpoint or published file; by default the newest run that can do it."""
    vqgan: Annotated[Path | None, Published("vqgan_ckpt")] = None
    """VQGAN, as a check; by default the one the GPT was trained with, which its file holds."""
    out: Annotated[Path, Published("save")] = Path("samples")
    """Folder under which the folder of the samples is made."""
    name: Annotated[str, Published("save_name")] = ""
    """Folder of the samples; by default the GPT, short or long, settings and seed."""
    samples: Annotated[int, Published("n_sample")] = Field(16, ge=1)
    """Videos to sample."""
    batch_size: int | Literal["auto"] = 16
    """Videos sampled at once, or auto: as many as fit into memory; does not change them."""
    seed: int = Field(0, ge=0)
    """Seed; sample i depends on it and i alone."""
    lossless: bool = False
    """Also write each sample as lossless FFV1, for evaluation."""

    @field_validator("batch_size", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> int | str:
        text = str(value)
        if text == "auto":
            return text
        if not (text.isascii() and text.isdigit() and int(text)):
            raise ValueError(f"a whole number from 1, or auto, got {text}")
        return int(text)

    @field_validator("name")
    @classmethod
    def _is_one_name(cls, name: str) -> str:
        if set(name) & set("/\\") or name in (".", ".."):
            raise ValueError(f"the name of a folder, without a path (--out says where), got {name}")
        return name


class ConditionConfig(Config):
    """Condition."""

    ALTERNATIVES: ClassVar = (("label", "class_cond"), ("text", "texts"))

    label: str = ""
    """Class of all samples, by name."""
    class_cond: bool = False
    """Draw over all classes evenly, as models with class labels do where nothing is asked for."""
    text: str = ""
    """Text that describes all samples."""
    texts: Path | None = None
    """File of texts, one a line, that the samples take in turn; by default one sample each."""
    audio: Path | None = None
    """File with sound, from whose beginning on the samples follow it."""
    guidance: float = Field(1.0, ge=0)
    """How far to go beyond the condition, away from what comes without it; 1 is off."""
    tokenizer: Path | None = None
    """Tokenizer, as a check; by default the one the GPT was trained with, which its file holds."""
    sound_vqgan: Annotated[Path | None, Published("stft_vqgan_ckpt")] = None
    """VQGAN of sound, as a check; by default the one that the file of the GPT holds."""

    @property
    def needed(self) -> dict[str, str]:
        """The part of a condition that a model must have, for each option that is given."""
        given = {
            "--class-cond": (self.class_cond, "label"),
            "--label": (self.label, "label"),
            "--text": (self.text, "text"),
            "--texts": (self.texts, "text"),
            "--tokenizer": (self.tokenizer, "text"),
            "--audio": (self.audio, "sound"),
            "--sound-vqgan": (self.sound_vqgan, "sound"),
        }
        return {option: kind for option, (value, kind) in given.items() if value}


class ContextConfig(Config):
    """Given videos."""

    context: Path | None = None
    """Video, or dataset, whose frames, and class, caption and sound, samples are given."""
    context_frames: int = Field(0, ge=0)
    """Frames given of each, a multiple of the VQGAN's factor in time; 0 gives the rest alone."""

    @model_validator(mode="after")
    def _frames_of_something(self) -> "ContextConfig":
        if self.context is None and self.context_frames:
            raise ValueError("--context-frames needs --context VIDEO")
        return self


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
    sample_every_n_frames: int = Field(0, ge=0)
    """Keep every n-th frame of the real videos; 0 takes that of training."""


class SampleShortConfig(Config):
    """Everything that sampling one window needs."""

    sample: SampleConfig = Field(default_factory=SampleConfig)
    condition: ConditionConfig = Field(default_factory=ConditionConfig)
    given: ContextConfig = Field(default_factory=ContextConfig)
    filter: FilterConfig = Field(default_factory=FilterConfig)
    real: RealDataConfig = Field(default_factory=RealDataConfig)
    compute: SamplingMachineConfig = Field(default_factory=SamplingMachineConfig)


class WindowConfig(Config):
    """Length."""

    ALTERNATIVES: ClassVar = (("length", "frames"),)

    length: Annotated[int, Published("sample_length")] = Field(16, ge=1)
    """Length of each sample in latent frames, each of which the VQGAN turns into several frames."""
    frames: int = Field(0, ge=0)
    """Length of each sample in frames instead; 0 = not used."""
    temporal_sample_pos: int = Field(1, ge=1)
    """Latent frames that each new one is generated from; fewer than a training clip has."""
    sample_resolution: int = Field(0, ge=0)
    """Latent side, as a check; 0 takes that of training."""
    infill_gpt: Annotated[Path | None, Published("ckpt2")] = None
    """GPT trained with infill, which writes the latent frames between the key frames of the GPT."""


class SampleLongConfig(Config):
    """Everything that sampling long videos needs."""

    sample: SampleConfig = Field(default_factory=SampleConfig)
    window: WindowConfig = Field(default_factory=WindowConfig)
    condition: ConditionConfig = Field(default_factory=ConditionConfig)
    given: ContextConfig = Field(default_factory=ContextConfig)
    filter: LongFilterConfig = Field(default_factory=LongFilterConfig)
    real: RealDataConfig = Field(default_factory=RealDataConfig)
    compute: SamplingMachineConfig = Field(default_factory=SamplingMachineConfig)
