"""Videos to tokens and back."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from tatscli.config.base import Config, Published
from tatscli.config.compute import InferenceConfig, SharedInferenceConfig
from tatscli.config.data import GPTDataConfig


class EncodeDataConfig(GPTDataConfig):
    """Data."""

    data: Annotated[Path, Published("data_path")]
    """Folder of videos or frame folders (train and val or test in it), manifest, or HDF5 file."""


class EncodeOptions(Config):
    """Encoding."""

    vqgan: Annotated[Path, Published("vqvae"), Published("vqgan_ckpt")]
    """VQGAN run folder, checkpoint or published file."""
    sound_vqgan: Annotated[Path | None, Published("stft_vqvae")] = None
    """VQGAN of sound; with it, the sound of each clip is encoded too."""
    out: Path = Path("tokens")
    """Folder of the token dataset; an unfinished one is continued, by any number of processes."""
    stride: int = Field(0, ge=0)
    """Frames from the start of one clip to the next, at the frame rate read; 0 = no overlap."""
    batch_size: int = Field(8, ge=1)
    """Clips encoded at once."""
    workers: Annotated[int, Published("num_workers")] = Field(-1, ge=-1)
    """Processes that read clips, per device; -1 chooses by core count."""


class EncodeConfig(Config):
    """Everything that encoding needs."""

    data: EncodeDataConfig
    encode: EncodeOptions
    compute: SharedInferenceConfig = Field(default_factory=SharedInferenceConfig)


class DecodeOptions(Config):
    """Decoding."""

    vqgan: Annotated[Path | None, Published("vqvae"), Published("vqgan_ckpt")] = None
    """VQGAN, as a check; by default the one the tokens were made with, which their folder holds."""
    out: Path = Path("decoded")
    """Folder of the videos; must be empty or new."""
    limit: int = Field(0, ge=0)
    """Clips to decode of each split; 0 = all."""
    lossless: bool = False
    """Also write each clip as lossless FFV1."""
    batch_size: int = Field(8, ge=1)
    """Clips decoded at once at most; fewer where they are long, for memory's sake."""


class DecodeConfig(Config):
    """Everything that decoding needs."""

    decode: DecodeOptions = Field(default_factory=DecodeOptions)
    compute: InferenceConfig = Field(default_factory=InferenceConfig)
