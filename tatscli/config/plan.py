"""What will be needed: the settings of what is planned, and those of the plan."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from tatscli.config.base import Config, Published
from tatscli.config.data import DataConfig, GPTDataConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig

MADE_UP = Path("made-up")
"""Stands for clips that are made up, where there is no data yet."""


class PlanOptions(Config):
    """Plan."""

    effective_batch: int = Field(0, ge=0)
    """Clips wanted in a step of all processes, by accumulation; 0 plans the batch as it is."""
    measured_steps: int = Field(18, ge=6, le=18)
    """Training steps that are measured in all; two more measure the memory of a larger batch."""


class VQGANPlanDataConfig(DataConfig):
    """Data."""

    data: Annotated[Path, Published("data_path")] = MADE_UP
    """Folder of videos or frame folders, manifest, or HDF5 file; without, clips are made up."""


class GPTPlanDataConfig(GPTDataConfig):
    """Data."""

    data: Annotated[Path, Published("data_path")] = MADE_UP
    """Videos or tokens, as for training; without, clips are made up."""


class VQGANPlanConfig(VQGANTrainConfig):
    """Everything that planning a VQGAN run needs."""

    data: VQGANPlanDataConfig = Field(default_factory=VQGANPlanDataConfig)
    plan: PlanOptions = Field(default_factory=PlanOptions)


class GPTPlanConfig(GPTTrainConfig):
    """Everything that planning a GPT run needs."""

    data: GPTPlanDataConfig = Field(default_factory=GPTPlanDataConfig)
    plan: PlanOptions = Field(default_factory=PlanOptions)
