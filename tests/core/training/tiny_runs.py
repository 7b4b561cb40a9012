"""Tiny runs of both stages on clips made of numbers, through the engine itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch.utils.data import Dataset

from tatscli.config.data import ClipConfig
from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import TrainedVQGAN
from tatscli.core.data.clips import Clip
from tatscli.core.data.tokens import TokenClip
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.training import gpt, vqgan
from tatscli.core.training.engine import Outcome

CLIP = ClipConfig(resolution=8, sequence_length=4)
SMALL = {"embedding_dim": 4, "codes": 8, "hidden_channels": 2, "downsample": (2, 4, 4)}
SLOTS = 7


class Videos(Dataset[Clip]):
    """Clips that depend on their number in the run (or, for validation, on their place)."""

    def __init__(self, broken_from: int = 10**9) -> None:
        self.broken_from = broken_from

    def __len__(self) -> int:
        return 5

    def __getitem__(self, item: int | tuple[int, int]) -> Clip:
        number = item if isinstance(item, int) else 10 * item[0] + item[1]
        video = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(number)) - 0.5
        if not isinstance(item, int) and item[1] >= self.broken_from:
            video = video * torch.nan
        return Clip(video, number % 2)


class Codes(Dataset[TokenClip]):
    """Grids of codes that depend on their slot."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, item: int | tuple[int, int]) -> TokenClip:
        slot = item if isinstance(item, int) else item[0]
        generator = torch.Generator().manual_seed(slot)
        return TokenClip(torch.randint(8, (2, 2, 2), generator=generator), slot % 2)


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        module: What was trained.
        outcome: How it ended.
        folder: Its folder.
    """

    module: Any
    outcome: Outcome
    folder: Path

    @property
    def last(self) -> dict[str, Any]:
        """The last checkpoint."""
        return torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)

    @property
    def rows(self) -> list[str]:
        """Lines of the metrics."""
        return (self.folder / "metrics.csv").read_text().splitlines()

    def values(self, name: str) -> list[float]:
        """Values of one metric."""
        return [float(row.split(",")[2]) for row in self.rows if row.split(",")[1] == name]

    def steps(self, name: str) -> list[int]:
        """Steps at which a metric was written."""
        return [int(row.split(",")[0]) for row in self.rows if row.split(",")[1] == name]


Train = Callable[..., Run]
LOOP = {
    "batch_size": 2, "max_steps": 6, "val_check_interval": "2", "checkpoint_every": 1000,
    "grid_every": 1000, "log_every": 1,
}  # fmt: skip
NO_LOSS = {"perceptual_weight": 0, "image_gan_weight": 0, "video_gan_weight": 0}


def vqgan_module(settings: Mapping[str, Any]) -> vqgan.VQGANTraining:
    config = VQGANTrainConfig.model_validate(
        {
            "data": CLIP.model_dump() | {"data": "x"},
            "model": {**SMALL, "disc_channels": 2, "disc_layers": 1} | settings["model"],
            "loss": NO_LOSS | settings["loss"],
            "optim": {"lr_warmup": 2} | settings["optim"],
            "train": LOOP | settings["train"],
            "compute": {"workers": settings["workers"]},
        }
    )
    lightning.seed_everything(config.train.seed, verbose=False)
    return vqgan.VQGANTraining(config, config.optim.learning_rate, 8.0)


def gpt_module(settings: Mapping[str, Any]) -> gpt.GPTTraining:
    config = GPTTrainConfig.model_validate(
        {
            "data": {"data": "x"},
            "optim": {"lr_warmup": 2} | settings["optim"],
            "train": LOOP | settings["train"],
            "compute": {"workers": settings["workers"]},
        }
    )
    torch.manual_seed(1)
    trained = TrainedVQGAN(VQGAN(VQGANConfig.model_validate(SMALL)).eval(), CLIP, 8.0, 1)
    architecture = GPTConfig.model_validate(
        {
            "layers": 1, "heads": 2, "width": 8, "codes": 8, "grid": (2, 2, 2), "block_size": 8,
            "dropout": 0.1, "condition": ConditionLayout.labels(2),
        } | settings["model"]
    )  # fmt: skip
    lightning.seed_everything(config.train.seed, verbose=False)
    return gpt.GPTTraining(config, architecture, trained, ("a", "b"), config.optim.learning_rate)
