"""Checking a dataset."""

from pydantic import Field

from tatscli.config.base import Config


class CheckConfig(Config):
    """What clips the dataset must give."""

    sequence_length: int = Field(16, ge=1)
    """Frames a clip spans; shorter videos are named."""
    frame_rate: float = Field(0.0, ge=0)
    """Frames per second at which videos are read; 0 keeps their own rate."""
    strict: bool = False
    """End with an error if anything was found."""
