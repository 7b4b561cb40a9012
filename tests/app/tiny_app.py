"""Configs of the smallest runs, and a reporter that keeps what it is told."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tatscli.config.encode import EncodeConfig
from tatscli.config.evaluate import FVDConfig
from tatscli.config.sample import SampleLongConfig, SampleShortConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.core.data.video import probe, read_frames, write_video
from tatscli.core.metrics.protocol import Protocol

Sections = Mapping[str, Any]
COMPUTE = {"device": "cpu", "workers": 0}
LOOP = {
    "max_steps": 3, "batch_size": 2, "val_check_interval": "2", "checkpoint_every": 2,
    "grid_every": 2, "log_every": 1, "val_clips": 3,
}  # fmt: skip


class Notes:
    """A reporter that keeps notes, warnings and the names of tasks."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.tasks: list[str] = []
        self.done: list[int] = []
        self.remarks: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextmanager
    def task(self, what: str, unit: str, total: int | None = None) -> Iterator[Any]:
        self.tasks.append(what)
        yield self

    def update(
        self, done: int, total: int | None = None, figures: Any = None, remark: str = ""
    ) -> None:
        self.done.append(done)
        self.remarks.append(remark)


def vqgan_config(data: Path, out: Path, /, **sections: Sections) -> VQGANTrainConfig:
    base: dict[str, dict[str, Any]] = {
        "data": {"data": data, "resolution": 8, "sequence_length": 4},
        "model": {"embedding_dim": 4, "codes": 16, "hidden_channels": 2, "downsample": (2, 4, 4)},
        "loss": {"perceptual_weight": 0, "image_gan_weight": 0, "video_gan_weight": 0},
        "optim": {"learning_rate": 1e-3, "lr_warmup": 0},
        "train": LOOP | {"out": out},
        "compute": COMPUTE,
    }
    merged = {name: values | sections.get(name, {}) for name, values in base.items()}
    return VQGANTrainConfig.model_validate(merged)


def gpt_config(
    data: Path, out: Path, vqgan: Path | None = None, /, **sections: Sections
) -> GPTTrainConfig:
    base: dict[str, dict[str, Any]] = {
        "data": {"data": data},
        "model": {"layers": 1, "heads": 2, "width": 8},
        "optim": {"learning_rate": 1e-3, "lr_warmup": 0},
        "train": LOOP | {"out": out},
        "compute": COMPUTE,
    }
    merged: dict[str, Any] = {n: values | sections.get(n, {}) for n, values in base.items()}
    return GPTTrainConfig.model_validate(merged | {"vqgan": vqgan})


def encode_config(data: Path, out: Path, vqgan: Path, /, **sections: Sections) -> EncodeConfig:
    base: dict[str, dict[str, Any]] = {
        "data": {"data": data},
        "encode": {"vqgan": vqgan, "out": out, "batch_size": 3, "workers": 0},
        "compute": {"device": "cpu"},
    }
    merged = {name: values | sections.get(name, {}) for name, values in base.items()}
    return EncodeConfig.model_validate(merged)


def short_config(gpt: Path, out: Path, **sections: Sections) -> SampleShortConfig:
    base: dict[str, dict[str, Any]] = {
        "sample": {"gpt": gpt, "out": out, "samples": 3, "batch_size": 2},
        "compute": {"device": "cpu"},
    }
    merged = {name: base.get(name, {}) | dict(values) for name, values in sections.items()}
    return SampleShortConfig.model_validate(base | merged)


def long_config(gpt: Path, out: Path, **sections: Sections) -> SampleLongConfig:
    base: dict[str, dict[str, Any]] = {
        "sample": {"gpt": gpt, "out": out, "samples": 3, "batch_size": 2},
        "window": {"length": 5},
        "compute": {"device": "cpu"},
    }
    merged = {name: base.get(name, {}) | dict(values) for name, values in sections.items()}
    return SampleLongConfig.model_validate(base | merged)


def broken(file: Path, scratch: Path) -> bytes:
    """The frames of a video, written without sound and damaged in their last sixth."""
    info = probe(file)
    write_video(scratch, read_frames(file, info, range(len(info.times))), info.rate)
    content = bytearray(scratch.read_bytes())
    scratch.unlink()
    start = content.index(b"mdat") + 4
    end = start + int.from_bytes(content[start - 8 : start - 4], "big") - 8
    first = start + (end - start) * 5 // 6
    content[first:end] = b"\x5a" * (end - first)
    return bytes(content)


class Logits(NamedTuple):
    logits: torch.Tensor


class Cheap(torch.nn.Module):
    """Means of the frames' corners instead of a network's features."""

    def forward(self, clips: torch.Tensor) -> Logits:
        return Logits(clips[..., ::56, ::56].flatten(1)[:, :400].contiguous())


class CheapNetwork:
    """Stands in the place of the network of a comparison."""

    def __init__(self, config: FVDConfig) -> None:
        self.name = "random-cheap" if config.fvd.features == "random" else "i3d-cheap"

    def of(self, protocol: Protocol) -> Cheap:
        return Cheap()
