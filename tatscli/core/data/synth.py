"""Synthetic videos: one bright shape per clip that moves straight and bounces off the walls.

Shape and colour are the class; the background is the same in all clips. Positions and velocities
follow from the seed. A caption says what moves where, and a tone tells the class by its register,
the height of the shape by its pitch and the horizontal position by its loudness. T frames, H W
pixels; x grows to the right, y downwards.
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
from torch import Tensor

from tatscli.config.synth import SynthConfig
from tatscli.core.data.sound import SOUND_RATE, Track, patches_of
from tatscli.core.data.video import Codec, Frames, write_video
from tatscli.core.files import claim_empty, unwritable
from tatscli.errors import DataError

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
"""Class names in the order in which classes are taken."""

_COLOURS = (
    ("red", (235, 60, 50)),
    ("green", (60, 200, 80)),
    ("blue", (70, 120, 250)),
    ("yellow", (250, 210, 50)),
    ("magenta", (220, 80, 220)),
    ("cyan", (60, 220, 220)),
)
_SUFFIX: dict[Codec, str] = {"h264": ".mp4", "mpeg4": ".mp4", "vp9": ".webm", "ffv1": ".mkv"}
_RADIUS = 0.3  # of the frame's side: large enough to be recognised in 32 pixels
_REACH = 1.2  # radii from the centre to the farthest tip; walls are there for all shapes
_FINE = 8  # pixels across which a pixel's coverage is averaged
_LOWEST = 300.0  # Hz: where the register of the first class starts
_REGISTERS = 1.7  # ratio of the starts of neighbouring registers
_SPAN = 1.5  # ratio of the highest pitch of a register to its lowest; less, so that none overlap
_HARMONICS = (1.0, 0.5, 0.25)
_HEARD_AT, _HEARD_SIZE = 8, 32  # frames a second and side of the clip behind `sound_clip`
_QUIET, _LOUD = 0.35, 0.6  # amplitudes at the left and at the right


@dataclass(frozen=True)
class SynthResult:
    """What was written.

    Attributes:
        folder: The dataset, with folders `train` and `test`.
        videos: Videos in both splits, each with sound and with a caption beside it.
        classes: Names of the classes.
        frames: Frames of each video.
    """

    folder: Path
    videos: int
    classes: tuple[str, ...]
    frames: int


@dataclass(frozen=True, eq=False)
class Motion:
    """A straight path between walls.

    Attributes:
        start: Where the centre is in frame 0, float64 (x, y) in pixels.
        velocity: Pixels a frame before the first wall, float64 (x, y).
        low: The least coordinate that the centre has.
        high: The greatest.
    """

    start: npt.NDArray[np.float64]
    velocity: npt.NDArray[np.float64]
    low: float
    high: float

    def places(self, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Centres at times in frames, float64 (n,), as (n, 2)."""
        return _bounced(self.start + times[:, None] * self.velocity, self.low, self.high)


def draw_motion(size: int, rng: np.random.Generator) -> Motion:
    """Draws start, direction and speed (0.75 to 1.5 pixels a frame at size 32)."""
    radius = _RADIUS * size
    low, high = _REACH * radius, size - _REACH * radius
    start = rng.uniform(low, high, 2)
    angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1.5) * size / 32
    return Motion(start, speed * np.array([math.cos(angle), math.sin(angle)]), low, high)


def shape_clip(shape: str, size: int, frames: int, rng: np.random.Generator) -> Frames:
    """Draws one clip.

    Args:
        shape: One of `SHAPES`.
        size: Side of the frames in pixels.
        frames: Frames of the clip.
        rng: Gives the motion; see ``draw_motion``.

    Returns:
        The clip, uint8 (frames, size, size, 3).
    """
    return moving_shape(shape, size, frames, draw_motion(size, rng))


def moving_shape(shape: str, size: int, frames: int, motion: Motion) -> Frames:
    """Paints a shape in motion, uint8 (frames, size, size, 3); see ``shape_clip``."""
    background = _background(size)
    colour = np.array(_COLOURS[SHAPES.index(shape)][1], np.float64)
    clip = np.empty((frames, size, size, 3), np.uint8)
    for number, (x, y) in enumerate(motion.places(np.arange(frames, dtype=np.float64))):
        cover = _coverage(shape, size, x, y, _RADIUS * size)[..., None]
        clip[number] = np.rint(background * (1 - cover) + colour * cover)
    return clip


def caption(shape: str, motion: Motion) -> str:
    """What a clip shows: "a red circle moves left", by the longer part of its first velocity."""
    across, down = motion.velocity
    if abs(across) >= abs(down):
        direction = "left" if across < 0 else "right"
    else:
        direction = "up" if down < 0 else "down"
    return f"a {_COLOURS[SHAPES.index(shape)][0]} {shape} moves {direction}"


def motion_sound(shape: str, frames: int, rate: int, motion: Motion) -> Track:
    """What a clip sounds like: a tone, the higher the shape is, the higher.

    The k-th class has pitches from 300 * 1.7 ** k Hz at the bottom to 1.5 times that at the top.

    Args:
        shape: One of `SHAPES`.
        frames: Frames of the clip.
        rate: Frames per second.
        motion: The path of the shape.

    Returns:
        Mono sound as long as the clip.
    """
    times = np.arange(round(frames * SOUND_RATE / rate), dtype=np.float64) * (rate / SOUND_RATE)
    x, y = (motion.places(times).T - motion.low) / (motion.high - motion.low)
    lowest = _LOWEST * _REGISTERS ** SHAPES.index(shape)
    phase = np.cumsum(lowest * _SPAN ** (1 - y)) * (2 * math.pi / SOUND_RATE)
    # Those that exceed half the sampling rate would come back as other pitches.
    audible = int(SOUND_RATE / 2 / (lowest * _SPAN))
    parts = _HARMONICS[:audible]
    tone = sum(part * np.sin(order * phase) for order, part in enumerate(parts, 1)) / sum(parts)
    loudness = _QUIET + (_LOUD - _QUIET) * x
    return Track((loudness * tone)[None].astype(np.float32), SOUND_RATE)


def sound_clip(shape: str, frames: int, rng: np.random.Generator) -> Tensor:
    """The patches of what one clip at 8 frames a second sounds like.

    Args:
        shape: One of `SHAPES`.
        frames: Frames of the clip.
        rng: Gives the motion that is heard, see `shape_clip`.

    Returns:
        float32 (1, frames, 64, 16) in [-0.5, 0.5].
    """
    track = motion_sound(shape, frames, _HEARD_AT, draw_motion(_HEARD_SIZE, rng))
    return patches_of(track.samples[0], 0.0, np.arange(frames + 1) / _HEARD_AT)


def write_dataset(
    folder: Path, config: SynthConfig, progress: Callable[[int, int], None] | None = None
) -> SynthResult:
    """Writes videos of moving shapes, a folder for each class in `train` and in `test`.

    Each video has sound, and a .txt file with its caption beside it. The dataset appears under its
    name only when it is complete.

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
            motion = draw_motion(config.size, np.random.default_rng(key))
            clip = moving_shape(shape, config.size, config.video_frames, motion)
            sound = motion_sound(shape, config.video_frames, config.rate, motion)
            path = partial / split / shape / f"{number:03d}{_SUFFIX[config.codec]}"
            write_video(path, clip, config.rate, codec=config.codec, sound=sound)
            words = caption(shape, motion)
            path.with_suffix(".txt").write_text(f"{words}\n", encoding="utf-8")
            if progress is not None:
                progress(done + 1, len(jobs))
        partial.replace(folder)
    except OSError as error:
        raise unwritable(folder, error, DataError) from error
    except DataError as error:  # of a file in the folder whose name nobody gave
        told = error.message.replace(str(partial), str(folder))
        raise DataError(told, error.hint) from error
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
