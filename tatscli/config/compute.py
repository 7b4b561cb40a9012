"""Where a command computes."""

from typing import Literal

from pydantic import Field

from tatscli.config.base import Config

Precision = Literal["float32", "bf16"]
"""Arithmetic of a model that is used; float32 is the reference."""


class DeviceConfig(Config):
    """Machine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; auto takes the first GPU, else the CPU."""


class InferenceConfig(DeviceConfig):
    """Machine."""

    precision: Precision = "float32"
    """Arithmetic of the networks; bf16 is less exact, and faster where the machine can do it."""


class SamplingMachineConfig(InferenceConfig):
    """Machine."""

    cuda_graphs: bool = False
    """Replay the steps of a GPT on a CUDA device, of which small ones wait for their launch."""


class DevicesConfig(DeviceConfig):
    """Machine."""

    gpus: int = Field(0, ge=0)
    """CUDA devices of each machine; 0 leaves the choice to the device option."""
    devices: int = Field(1, ge=1)
    """Processes on the CPU, for trying what several devices do without GPUs."""
    nodes: int = Field(1, ge=1)
    """Machines; under torchrun and SLURM, those that were started are taken."""


class SharedInferenceConfig(DevicesConfig, InferenceConfig):
    """Machine."""
