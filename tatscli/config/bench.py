"""The benchmark."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from tatscli.config.base import Config
from tatscli.config.compute import SamplingMachineConfig

StageName = Literal[
    "read",
    "vqgan-step",
    "encode",
    "decode",
    "tokens",
    "gpt-step",
    "sample-short",
    "sample-long",
    "i3d",
]
"""What can be measured, in the order of the work."""


class BenchOptions(SamplingMachineConfig):
    """Benchmark."""

    size: Literal["tiny", "published"] = "published"
    """Models and clips: those of the published recipe, or small ones for a first look."""
    batch_size: int = Field(4, ge=1)
    """Samples that both sampling stages write at once."""
    seconds: float = Field(5.0, gt=0)
    """Least time for which each stage is repeated; it runs at least twice, after a warm-up."""
    data: Path | None = None
    """Video, or dataset of video files, that is read; by default one made for it."""


class BenchConfig(Config):
    """Everything that the benchmark needs."""

    bench: BenchOptions = Field(default_factory=BenchOptions)
