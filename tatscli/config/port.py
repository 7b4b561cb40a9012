"""Models from and to the published TATS code."""

from pathlib import Path
from typing import Literal

from tatscli.config.base import Config


class ImportConfig(Config):
    """Everything that importing needs."""

    out: Path | None = None
    """Folder of the imported model, empty or new; by default runs, then the name of the file."""
    check: Path | None = None
    """Video or folder of frames to check the model on; by default a generated clip."""
    vqgan: Path | None = None
    """VQGAN that a GPT was trained with, for what the file of the GPT does not say about it."""


class ExportConfig(Config):
    """Everything that exporting needs."""

    layout: Literal["tats"] = "tats"
    """Whose checkpoints to write: those of the published TATS code."""
    out: Path | None = None
    """File to write; by default the name of the model and -published.ckpt, in this folder."""
