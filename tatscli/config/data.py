"""Which clips are read, and how they are cut from the videos."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tatscli.config.base import Config, Obsolete, Published

SOUND_FRAME = (64, 16)
"""Bands and columns of the patch that holds the sound of one frame; published models agree."""

_FRAME_FOLDERS = Obsolete("folders of frames are recognised by themselves")


class ClipConfig(Config):
    """Clips."""

    resolution: int = Field(128, ge=8)
    """Side of the square frames in pixels: shorter side scaled to it, centre crop."""
    sequence_length: int = Field(16, ge=1)
    """Frames a clip spans in the video, before every n-th is kept."""
    frame_rate: float = Field(0.0, ge=0)
    """Frames per second at which videos are read, by nearest timestamp; 0 keeps their own rate."""
    sample_every_n_frames: int = Field(1, ge=1)
    """Keep every n-th of the frames a clip spans, so it has sequence length / n frames."""

    @property
    def frames(self) -> int:
        """Frames a clip has."""
        return self.sequence_length // self.sample_every_n_frames

    @model_validator(mode="after")
    def _divides(self) -> "ClipConfig":
        if self.sequence_length % self.sample_every_n_frames:
            raise ValueError(
                f"sequence length {self.sequence_length} is not a multiple of "
                f"sample every n frames {self.sample_every_n_frames}"
            )
        return self


class DataConfig(ClipConfig):
    """Data."""

    OBSOLETE: ClassVar[dict[str, Obsolete]] = {"image_folder": _FRAME_FOLDERS}

    data: Annotated[Path, Published("data_path")]
    """Folder of videos or frame folders (train and val or test in it), manifest, or HDF5 file."""
    input: Annotated[Literal["video", "sound"], Published("stft_data", value="sound")] = "video"
    """What is learnt: the frames, or the sound of each, a patch of 64 bands x 16 columns."""
    missing_sound: Literal["silence", "skip"] = "silence"
    """Where sound is used, take videos without it for silent ones, or leave them out."""
    max_bad: float = Field(0.5, ge=0, le=1)
    """Largest part of the videos that may turn out unreadable before this is an error."""
    strict: bool = False
    """Stop at the first file that cannot be read, instead of naming and skipping it."""


class GPTDataConfig(Config):
    """Data."""

    OBSOLETE: ClassVar[dict[str, Obsolete]] = {"image_folder": _FRAME_FOLDERS}

    data: Annotated[Path, Published("data_path")]
    """Folder of videos or frame folders, manifest, HDF5 file, tokens, or the address of tokens."""
    resolution: int = Field(0, ge=0)
    """Side of the square frames in pixels; 0 takes that of the VQGAN."""
    sequence_length: int = Field(0, ge=0)
    """Frames a clip spans in the video; 0 takes that of the VQGAN."""
    frame_rate: float = Field(0.0, ge=0)
    """Frames per second at which videos are read; 0 takes that of the VQGAN."""
    sample_every_n_frames: int = Field(0, ge=0)
    """Keep every n-th of the frames a clip spans; 0 takes that of the VQGAN."""
    missing_sound: Literal["silence", "skip"] = "silence"
    """Where sound is used, take videos without it for silent ones, or leave them out."""
    max_bad: float = Field(0.5, ge=0, le=1)
    """Largest part of the videos that may turn out unreadable before this is an error."""
    strict: bool = False
    """Stop at the first file that cannot be read, instead of naming and skipping it."""

    def clip(self, trained: ClipConfig) -> ClipConfig:
        """The clips to read, with what was left open taken from the VQGAN's own training."""
        return ClipConfig(
            resolution=self.resolution or trained.resolution,
            sequence_length=self.sequence_length or trained.sequence_length,
            frame_rate=self.frame_rate or trained.frame_rate,
            sample_every_n_frames=self.sample_every_n_frames or trained.sample_every_n_frames,
        )
