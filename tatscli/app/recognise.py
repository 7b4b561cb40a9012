"""Whether samples show the class that they were asked for.

N clips, C channels, T frames, H W pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tatscli.app.data import Split, open_videos, spread
from tatscli.app.listing import read_listing
from tatscli.app.reporting import Reporter, Silent
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import ClassesConfig
from tatscli.config.words import counted
from tatscli.core.data.video import probe, read_frames, to_float
from tatscli.core.failures import explained
from tatscli.core.metrics.probe import ShapeProbe, train_probe
from tatscli.errors import DataError

LARGEST_SIDE = 64
"""Side to which larger frames are brought; a small probe sees shapes, not details."""
TRUSTED = 0.98
"""Share of held-out real clips that a probe should read right to be believed on samples."""


@dataclass(frozen=True)
class ClassesResult:
    """How often samples show the class they were asked for.

    Attributes:
        real: Dataset the probe learnt from.
        fake: Folder of the samples.
        real_clips: Held-out clips that the probe was tried on.
        probe_on_real: Share of them that it reads right.
        samples: How many were judged.
        right: Share of them that are read as the class they were asked for.
        standard_error: Of that share, after Agresti and Coull, so that it is not 0 for all or none.
        chance: The share that guessing would give.
        right_by_class: The same for each class.
    """

    real: Path
    fake: Path
    real_clips: int
    probe_on_real: float
    samples: int
    right: float
    standard_error: float
    chance: float
    right_by_class: dict[str, float]


@explained("fewer --clips or --frames need less")
def judge_classes(
    real: Path, fake: Path, config: ClassesConfig, reporter: Reporter | None = None
) -> ClassesResult:
    """Read the classes of samples by a probe that learnt them from real videos.

    Raises:
        DataError: The real videos have no classes, or a sample was asked for none of them.
    """
    reporter = reporter or Silent()
    if not real.exists():
        raise DataError(f"{real} does not exist", "give real videos and samples: REAL and FAKE")
    listed = read_listing(fake)
    first = _info(fake, listed[0])
    size = min(first.width, first.height, LARGEST_SIDE)
    clip = ClipConfig(resolution=size, sequence_length=config.frames, frame_rate=config.frame_rate)
    try:
        videos = open_videos(real, clip, reporter)
    except DataError as error:  # clips are as long as --frames here
        hint = error.hint.replace("--sequence-length", "--frames")
        raise DataError(error.message, hint) from None
    classes = videos.index.classes
    if len(classes) < 2:
        raise DataError(
            f"{real} has {counted(len(classes), 'class')}, two or more are needed to tell them "
            "apart",
            "put the videos into one folder a class, or name classes in a manifest",
        )
    asked = torch.tensor([_asked(entry, classes, fake) for entry in listed])

    def read(split: Split) -> tuple[Tensor, Tensor]:
        clips = videos.spread(split, config.clips)
        found = []
        with reporter.task(f"reading {split} clips", "clips", len(clips)) as task:
            for number in range(len(clips)):
                found.append(clips[number])
                task.update(number + 1)
        known = [clip for clip in found if clip.label >= 0]
        if not known:
            raise DataError(f"{real}: none of {len(found)} {split} clips has a class")
        return torch.stack([c.video for c in known]), torch.tensor([c.label for c in known])

    (trained, labels), (held, held_labels) = read("train"), read("val")
    frames = rearrange(trained, "n c t h w -> (n t) c h w")
    each = labels.repeat_interleave(trained.shape[2])
    with reporter.task("training a probe", "probes", 1) as task:
        found = train_probe(frames, each, len(classes), config.seed)
        task.update(1)
    on_real = float((found.classes_of(held) == held_labels).float().mean())
    if on_real < TRUSTED:
        reporter.warn(
            f"the probe reads {on_real:.1%} of held-out real clips: what it says of samples is "
            "not to be trusted"
        )
    right = _right(found, fake, listed, asked, config.frames, size, reporter)
    share = float(right.mean())
    return ClassesResult(
        real=real,
        fake=fake,
        real_clips=len(held),
        probe_on_real=on_real,
        samples=len(right),
        right=share,
        standard_error=_standard_error(float(right.sum()), len(right)),
        chance=1 / len(classes),
        right_by_class={
            name: float(right[asked == label].mean())
            for label, name in enumerate(classes)
            if (asked == label).any()
        },
    )


def _standard_error(right: float, count: int) -> float:
    """Of a share: as if two more had been right and two more wrong (Agresti and Coull 1998)."""
    share = (right + 2) / (count + 4)
    return float((share * (1 - share) / (count + 4)) ** 0.5)


def _right(
    found: ShapeProbe,
    fake: Path,
    listed: Sequence[dict[str, Any]],
    asked: Tensor,
    frames: int,
    size: int,
    reporter: Reporter,
) -> Tensor:
    """Whether each sample is read as what it was asked for, float (N,)."""
    right = []
    with reporter.task("reading samples", "samples", len(listed)) as task:
        for number, (entry, label) in enumerate(zip(listed, asked, strict=True), 1):
            info = _info(fake, entry)
            places = spread(len(info.times), frames)
            clip = to_float(read_frames(_file(fake, entry), info, places, size))
            right.append(found.classes_of(clip[None])[0] == label)
            task.update(number)
    return torch.stack(right).float()


def _file(folder: Path, entry: dict[str, Any]) -> Path:
    return folder / str(entry.get("lossless", entry["file"]))


def _info(folder: Path, entry: dict[str, Any]) -> Any:
    return probe(_file(folder, entry))


def _asked(entry: dict[str, Any], classes: Sequence[str], folder: Path) -> int:
    """The class that a sample was asked for."""
    text = str(entry.get("text", "")).lower().replace("_", " ")
    named = [
        label
        for label, name in enumerate(classes)
        if re.search(rf"\b{re.escape(name.lower().replace('_', ' '))}\b", text)
    ]
    for key in ("label", "class"):
        # A text goes before the video that was given: it alone was asked for.
        if entry.get(key) in classes and not (key == "class" and len(named) == 1):
            return classes.index(entry[key])
    if len(named) != 1:
        raise DataError(
            f"{folder}: sample {entry.get('index')} was asked for no class of "
            f"{', '.join(classes[:10])}",
            "sample with --label, --text that names one class, or --context videos of the dataset",
        )
    return named[0]
