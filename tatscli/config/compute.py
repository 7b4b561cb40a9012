"""Where a command computes, on one device or several."""

from typing import Literal

from pydantic import Field

from tatscli.config.base import Config


class DevicesConfig(Config):
    """Machine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; auto takes every visible GPU, else the CPU."""
    gpus: int = Field(0, ge=0)
    """CUDA devices of each machine; 0 leaves the choice to the device option."""
    devices: int = Field(1, ge=1)
    """Processes on the CPU, for trying what several devices do without GPUs."""
    nodes: int = Field(1, ge=1)
    """Machines; under torchrun and SLURM, those that were started are taken."""
