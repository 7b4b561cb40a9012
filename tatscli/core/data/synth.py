"""Synthetic videos: one bright shape per clip that moves straight and bounces off the walls.

Shape and colour are the class; the background is the same in all clips. Positions and velocities
follow from the seed. T frames, H W pixels.
"""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tatscli.config.synth import SynthConfig
from tatscli.core.data.video import Codec, Frames, write_video
from tatscli.core.files import claim_empty, unwritable
from tatscli.errors import DataError

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
"""Class names in the order in which classes are taken."""

_COLOURS = (
    (235, 60, 50),
    (60, 200, 80),
    (70, 120, 250),
    (250, 210, 50),
    (220, 80, 220),
    (60, 220, 220),
)
_SUFFIX: dict[Codec, str] = {"h264": ".mp4", "mpeg4": ".mp4", "vp9": ".webm", "ffv1": ".mkv"}
_RADIUS = 0.3  # of the frame's side: large enough to be recognised in 32 pixels
_REACH = 1.2  # radii from the centre to the farthest tip; walls are there for all shapes
_FINE = 8  # pixels across which a pixel's coverage is averaged


@dataclass(frozen=True)
class SynthResult:
    """What was written.

    Attributes:
        folder: The dataset, with folders `train` and `test`.
        videos: Videos in both splits.
        classes: Names of the classes.
        frames: Frames of each video.
    """

    folder: Path
    videos: int
    classes: tuple[str, ...]
    frames: int


def shape_clip(shape: str, size: int, frames: int, rng: np.random.Generator) -> Frames:
    """Draws one clip.

    Args:
        shape: One of `SHAPES`.
        size: Side of the frames in pixels.
        frames: Frames of the clip.
        rng: Gives the start, the direction and the speed (0.75 to 1.5 pixels a frame at size 32).

    Returns:
        The clip, uint8 (frames, size, size, 3).
    """
    radius = _RADIUS * size
    low, high = _REACH * radius, size - _REACH * radius
    start = rng.uniform(low, high, 2)
    angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1.5) * size / 32
    velocity = speed * np.array([math.cos(angle), math.sin(angle)])
    background = _background(size)
    colour = np.array(_COLOURS[SHAPES.index(shape)], np.float64)
    clip = np.empty((frames, size, size, 3), np.uint8)
    for number in range(frames):
        x, y = _bounced(start + number * velocity, low, high)
        cover = _coverage(shape, size, x, y, radius)[..., None]
        clip[number] = np.rint(background * (1 - cover) + colour * cover)
    return clip


def write_dataset(
    folder: Path, config: SynthConfig, progress: Callable[[int, int], None] | None = None
) -> SynthResult:
    """Writes videos of moving shapes, a folder for each class in `train` and in `test`.

    The dataset appears under its name only when it is complete.

    Args:
        folder: Where to; it must not exist or be empty.
        config: Numbers, sizes and codec.
        progress: Called with the videos written and their total.

    Raises:
        DataError: The folder is not empty or cannot be written.
    """
    shapes = SHAPES[: config.classes]
    jobs = [
        (split, shape, number)
        for split, count in (("train", config.train_videos), ("test", config.test_videos))
        for shape in shapes
        for number in range(count)
    ]
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    claim_empty(folder, "choose another folder")
    try:
        for done, (split, shape, number) in enumerate(jobs):
            # Every video has a stream of its own, so that asking for more of them adds to these.
            key = [config.seed, split == "test", SHAPES.index(shape), number]
            clip = shape_clip(shape, config.size, config.video_frames, np.random.default_rng(key))
            path = partial / split / shape / f"{number:03d}{_SUFFIX[config.codec]}"
            write_video(path, clip, config.rate, codec=config.codec)
            if progress is not None:
                progress(done + 1, len(jobs))
        partial.replace(folder)
    except OSError as error:
        raise unwritable(folder, error, DataError) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return SynthResult(folder, len(jobs), shapes, config.video_frames)


def _background(size: int) -> npt.NDArray[np.float64]:
    across = np.linspace(0, 1, size)
    ramp = (across[:, None] + across[None, :]) / 2
    corners = np.array([16.0, 18.0, 28.0]), np.array([32.0, 34.0, 52.0])
    light: npt.NDArray[np.float64] = corners[0] + ramp[..., None] * (corners[1] - corners[0])
    return light


def _bounced(position: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """A straight path folded back at the walls."""
    room = high - low
    folded: npt.NDArray[np.float64] = high - np.abs((position - low) % (2 * room) - room)
    return folded


def _coverage(shape: str, size: int, x: float, y: float, radius: float) -> npt.NDArray[np.float64]:
    """The part of each pixel that the shape covers, float (size, size) in [0, 1]."""
    image = Image.new("L", (size * _FINE, size * _FINE))
    draw = ImageDraw.Draw(image)

    def points(radii: list[float], turn: float) -> list[tuple[float, float]]:
        corners = []
        for number, part in enumerate(radii):
            angle = turn + 2 * math.pi * number / len(radii)
            corner = (x + part * radius * math.sin(angle), y - part * radius * math.cos(angle))
            corners.append((corner[0] * _FINE, corner[1] * _FINE))
        return corners

    def disc(part: float, fill: int) -> None:
        reach = part * radius
        box = (x - reach, y - reach, x + reach, y + reach)
        draw.ellipse([edge * _FINE for edge in box], fill=fill)

    match shape:
        case "circle" | "ring":
            disc(1.0, 255)
            if shape == "ring":
                disc(0.55, 0)
        case "square":
            draw.polygon(points([1.25] * 4, math.pi / 4), fill=255)
        case "triangle":
            draw.polygon(points([_REACH] * 3, 0.0), fill=255)
        case "star":
            draw.polygon(points([_REACH, 0.5] * 5, 0.0), fill=255)
        case "cross":
            for reach in ((1.0, 0.36), (0.36, 1.0)):
                box = (-reach[0], -reach[1], reach[0], reach[1])
                centre = (x, y, x, y)
                draw.rectangle(
                    [(c + part * radius) * _FINE for c, part in zip(centre, box, strict=True)],
                    fill=255,
                )
    cover: npt.NDArray[np.float64] = np.asarray(image.reduce(_FINE), np.float64) / 255
    return cover
