"""Token datasets in formats for streaming."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from tatscli.config.base import Config


class ConvertOptions(Config):
    """Conversion."""

    to: Literal["litdata"] = "litdata"
    """Format: a litdata dataset for each split, which is streamed from a bucket or a disk."""
    out: Path = Path("stream")
    """Folder of the stream; an unfinished one is continued."""
    chunk_mb: int = Field(32, ge=1)
    """Megabytes of a chunk, which training fetches at once; it mixes the clips of eight."""


class ConvertConfig(Config):
    """Everything that a conversion needs."""

    convert: ConvertOptions = Field(default_factory=ConvertOptions)
