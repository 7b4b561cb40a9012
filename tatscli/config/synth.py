"""Synthetic videos."""

from typing import Literal

from pydantic import Field

from tatscli.config.base import Config


class SynthConfig(Config):
    """Videos of moving shapes, with captions and sound."""

    train_videos: int = Field(32, ge=1)
    """Training videos of each class."""
    test_videos: int = Field(8, ge=0)
    """Test videos of each class."""
    classes: int = Field(4, ge=1, le=6)
    """Shapes, each in a class folder of its own."""
    size: int = Field(64, ge=16)
    """Side of the frames in pixels."""
    video_frames: int = Field(32, ge=1)
    """Frames of each video."""
    rate: int = Field(8, ge=1)
    """Frames per second."""
    codec: Literal["h264", "mpeg4", "vp9", "ffv1"] = "h264"
    """Codec; ffv1 is lossless."""
    seed: int = Field(0, ge=0)
    """Seed of positions and directions."""
