"""Evaluation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tatscli.config.base import Config, Published
from tatscli.config.compute import DeviceConfig, SharedInferenceConfig
from tatscli.config.data import GPTDataConfig

ProtocolName = Literal["fvd", "tats", "stylegan-v", "videogpt", "cd-fvd-i3d"]
Placing = Literal["random", "start", "center", "uniform"]
I3D_FRAMES = 9
"""The fewest that the network takes."""


class ProtocolConfig(Config):
    """Definition of the distance."""

    protocol: ProtocolName = "fvd"
    """That of the official graph, or of a published tool; any choice below makes it custom."""
    eps: float | None = Field(None, gt=0)
    """Epsilon of the network's batch normalisations."""
    resize: Literal["tf1", "half-pixel"] | None = None
    """Where the bilinear resize to 224 x 224 takes samples, as TensorFlow 1 or as all others."""
    fit: Literal["squash", "crop"] | None = None
    """What becomes of frames that are not square."""
    covariance: Literal["n-1", "n"] | None = None
    """Divisor of the covariances of n videos."""
    real_clip: Placing | None = None
    """Where clips of real videos start; random is fixed by seed and path."""
    fake_clip: Placing | None = None
    """Where clips of samples start."""

    @property
    def choices(self) -> dict[str, Any]:
        """What is to differ from the named protocol."""
        return self.model_dump(exclude={"protocol"}, exclude_none=True)


class FVDOptions(Config):
    """Fréchet video distance."""

    features: Literal["i3d", "random"] = "i3d"
    """Network: I3D trained on Kinetics, or the same with seeded random weights (never an FVD)."""
    weights: Path | None = None
    """I3D file, any of its published ones; by default the one tats weights fetch stored."""
    all_protocols: bool = False
    """Compute all named definitions at once, each video decoded once."""
    frames: int = Field(16, ge=I3D_FRAMES)
    """Frames of each clip."""
    stride: int = Field(1, ge=1)
    """Take every n-th frame of both sides."""
    frame_rate: float = Field(0.0, ge=0)
    """Frames per second at which both sides are read; 0 keeps their own rates."""
    resolution: int = Field(0, ge=0)
    """Bring both sides to this side first (shorter side, centre crop); 0 needs equal sizes."""
    clips_per_video: int = Field(1, ge=1)
    """Clips of each video; they are not independent, and the error bars know."""
    split: Literal["all", "train", "val"] = "all"
    """Which of the real videos."""
    match: str = ""
    """Take only real videos whose path below the folder matches this, such as 'train/*/*'."""
    limit: int = Field(0, ge=0)
    """Videos of each side, a fixed choice; 0 = all."""
    match_n: bool = False
    """Take as many videos of the larger side as the smaller one has."""
    short: Literal["skip", "error", "pad"] = "skip"
    """What becomes of videos that are too short: padded ones repeat their last frame."""
    seed: int = Field(0, ge=0)
    """Seed of clip starts, of choices of videos, and of random features."""
    batch_size: int = Field(4, ge=1)
    """Clips at once."""
    workers: int = Field(-1, ge=-1)
    """Processes that read clips, per device; -1 chooses by core count."""
    cache: bool = True
    """Keep features, and take them from the cache where neither videos nor settings changed."""
    cache_by_mtime: bool = False
    """Tell by size and time of change that a video is the same, instead of reading it all."""
    max_bad: float = Field(0.5, ge=0, le=1)
    """Largest part of the videos of a side that may turn out unreadable before this is an error."""
    strict: bool = False
    """Stop at the first file that cannot be read, instead of naming and skipping it."""

    @field_validator("frames", mode="before")
    @classmethod
    def _are_enough(cls, value: Any) -> Any:
        if isinstance(value, int) and value < I3D_FRAMES:
            raise ValueError(f"the network (I3D) needs {I3D_FRAMES} frames at least, got {value}")
        return value

    @field_validator("limit")
    @classmethod
    def _leaves_two(cls, value: int) -> int:
        if value == 1:
            raise ValueError("a distance needs at least 2 videos on each side, got 1; 0 takes all")
        return value


class FVDConfig(Config):
    """Everything that the Fréchet video distance needs."""

    fvd: FVDOptions = Field(default_factory=FVDOptions)
    definition: ProtocolConfig = Field(default_factory=ProtocolConfig)
    compute: SharedInferenceConfig = Field(default_factory=SharedInferenceConfig)

    @model_validator(mode="after")
    def _one_or_all(self) -> "FVDConfig":
        if self.fvd.all_protocols and self.definition.model_fields_set:
            raise ValueError("--all-protocols takes each as it is: leave out what defines one")
        if self.fvd.clips_per_video > 1:
            for side in ("real_clip", "fake_clip"):
                if getattr(self.definition, side) in ("start", "center"):
                    raise ValueError(
                        f"--clips-per-video {self.fvd.clips_per_video} needs clips at different "
                        f"places: --{side.replace('_', '-')} random or uniform"
                    )
        return self


class ClassesConfig(Config):
    """How classes are read."""

    frames: int = Field(8, ge=1)
    """Frames of each clip that are looked at."""
    clips: int = Field(512, ge=2)
    """Clips at most that the probe is trained on, and as many held-out ones that it is tried on."""
    frame_rate: float = Field(0.0, ge=0)
    """Frames per second at which real videos are read; 0 keeps their own rates."""
    seed: int = Field(0, ge=0)
    """Seed of the probe."""


class ScoredDataConfig(GPTDataConfig):
    """Data."""

    data: Annotated[Path | None, Published("data_path")] = None  # type: ignore[assignment]
    """Folder of videos, manifest or HDF5 file whose clips are reconstructed and scored."""


class VQGANEvalOptions(Config):
    """Evaluation."""

    time: bool = False
    """Measure whether codes and frames depend on nothing but what is near them in time."""
    split: Literal["val", "train"] = "val"
    """Split whose clips are reconstructed; val is the held-out one."""
    clips: int = Field(64, ge=0)
    """Clips at most, spread evenly over the split; 0 = all that do not overlap."""
    lpips: Literal["auto", "none", "vgg", "alex", "both"] = "auto"
    """Network of LPIPS: vgg as in training, alex as in papers; auto takes those fetched before."""
    rfvd: bool = False
    """Fréchet video distance between the clips and their reconstructions; needs I3D."""
    rfvd_features: Literal["i3d", "random"] = "i3d"
    """Its network: I3D trained on Kinetics, or the same with random weights (never an rFVD)."""
    batch_size: int = Field(8, ge=1)
    """Clips at once."""
    workers: int = Field(-1, ge=-1)
    """Processes that read clips; -1 chooses by core count."""
    out: Path | None = None
    """New folder for reconstruction.json, the scores of each clip as CSV, plots and pictures."""


class VQGANEvalConfig(Config):
    """Everything that the evaluation of a VQGAN needs."""

    data: ScoredDataConfig = Field(default_factory=ScoredDataConfig)
    eval: VQGANEvalOptions = Field(default_factory=VQGANEvalOptions)
    compute: DeviceConfig = Field(default_factory=DeviceConfig)

    @model_validator(mode="after")
    def _measures_something(self) -> "VQGANEvalConfig":
        if self.data.data is None and not self.eval.time:
            raise ValueError("nothing to measure: give --data DIR, --time or both")
        if self.data.data is None and self.eval.rfvd:
            raise ValueError("--rfvd compares clips with their reconstructions: give --data DIR")
        if self.eval.rfvd_features != "i3d" and not self.eval.rfvd:
            raise ValueError(f"--rfvd-features {self.eval.rfvd_features} needs --rfvd")
        return self
