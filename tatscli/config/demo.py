"""The demo."""

from typing import Literal

from pydantic import Field

from tatscli.config.base import Config


class DemoConfig(Config):
    """Demo."""

    seed: int = Field(0, ge=0)
    """Seed of everything."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; auto takes the first GPU, else the CPU."""
    quick: bool = False
    """A twentieth of the training: seconds instead of minutes, shapes not recognisable."""
