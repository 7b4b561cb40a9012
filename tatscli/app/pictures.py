"""Pictures of what a model makes: strips as PNG, clips side by side as MP4.

Letters: B clips, C channels, T frames, H W pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tatscli.core.data.sound import sound_picture
from tatscli.core.data.video import Frames, tile, to_uint8, write_png, write_video

GRID_SAMPLES = 16
"""Samples in the video of many side by side."""
STRIP_ROWS = 8
"""Rows of the still of samples: one for each, or two with the truth above it."""
STRIP_FRAMES = 8
"""Frames of a clip that a strip shows."""
DEFAULT_RATE = 8.0
"""Frames per second of pictures whose own rate is unknown."""
SMALLEST_SIDE = 64
"""Frames are enlarged by a whole factor up to at least this side, to be seen without a lens."""
ERROR_GAIN = 4
"""By how much errors are amplified to be seen."""
LABEL = 104
"""Width in pixels of what names a row."""


def save_reconstructions(video: Tensor, made: Tensor, stem: Path, rate: float) -> None:
    """Write ``stem.png`` (originals above reconstructions) and ``stem.mp4`` (side by side).

    Args:
        video: (B, C, T, H, W) in [-0.5, 0.5].
        made: Their reconstructions.
        stem: File name without suffix.
        rate: Frames per second; 0 for the default.
    """
    originals, copies = enlarged(to_uint8(video)), enlarged(to_uint8(made))
    pairs = [frames for both in zip(originals, copies, strict=True) for frames in both]
    write_png(stem.with_suffix(".png"), strip(np.stack(pairs)))
    _write_beside(originals, copies, stem, rate)


def save_comparison(
    titles: Sequence[str], video: Tensor, made: Tensor, stem: Path, rate: float
) -> None:
    """Write ``stem.png`` (title, original, reconstruction and error of each) and ``stem.mp4``.

    Errors are shown from black to white, at `ERROR_GAIN` times their size, mean of the channels.

    Args:
        titles: One for each clip.
        video: (B, 3, T, H, W) in [-0.5, 0.5].
        made: Their reconstructions.
        stem: File name without suffix.
        rate: Frames per second; 0 for the default.
    """
    errors = ((video - made).abs().mean(1, keepdim=True) * ERROR_GAIN - 0.5).expand_as(video)
    rows = [enlarged(to_uint8(clips)) for clips in (video, made, errors)]
    pieces = []
    for title, *clips in zip(titles, *rows, strict=True):
        picture = strip(np.stack(clips))
        lines = zip(("original", "reconstruction", f"error x {ERROR_GAIN}"), clips, strict=True)
        names = np.concatenate([_label(name, LABEL, len(strip(c[None])) + 2) for name, c in lines])
        body = np.concatenate([names[:-2], picture], axis=1)
        pieces += [_label(title, body.shape[1], 28, size=15), body]
    write_png(stem.with_suffix(".png"), np.concatenate(pieces))
    _write_beside(rows[0], rows[1], stem, rate)


def _write_beside(originals: Frames, copies: Frames, stem: Path, rate: float) -> None:
    beside = np.concatenate([originals, copies], axis=3)
    write_video(stem.with_suffix(".mp4"), tile(beside), rate or DEFAULT_RATE)


def _label(text: str, width: int, height: int, size: int = 12) -> Frames:
    """Text on black, uint8 (height, width, 3)."""
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    draw.text((6, height // 2), text, fill="white", font=font, anchor="lm")
    return np.asarray(picture)


def save_sounds(sound: Tensor, made: Tensor, stem: Path) -> None:
    """Write ``stem.png``: the sound of clips, each above its reconstruction.

    Args:
        sound: (B, 1, T, 64, 16) in [-0.5, 0.5].
        made: Their reconstructions.
        stem: File name without suffix.
    """
    pictures = [sound_picture(patches.cpu()) for patches in (sound, made)]
    rows = rearrange(np.stack(pictures), "two b h w c -> (b two) 1 h w c")
    write_png(stem.with_suffix(".png"), tile(rows, columns=1)[0])


def save_samples(video: Tensor, stem: Path, rate: float) -> None:
    """Write ``stem.png`` (one row of frames a sample) and ``stem.mp4`` (a grid of samples).

    Args:
        video: (B, C, T, H, W) in [-0.5, 0.5].
        stem: File name without suffix.
        rate: Frames per second; 0 for the default.
    """
    clips = enlarged(to_uint8(video))
    write_png(stem.with_suffix(".png"), strip(clips))
    write_video(stem.with_suffix(".mp4"), tile(clips), rate or DEFAULT_RATE)


def enlarged(frames: Frames) -> Frames:
    """Clips, uint8 (B, T, H, W, 3), small ones enlarged by a whole factor."""
    factor = max(1, -(-SMALLEST_SIDE // min(frames.shape[2], frames.shape[3])))
    larger: Frames = frames.repeat(factor, axis=2).repeat(factor, axis=3)
    return larger


def strip(clips: Frames) -> Frames:
    """Frames in a row, clips below each other: uint8 (B, T, H, W, 3) to (h, w, 3)."""
    chosen = np.linspace(0, clips.shape[1] - 1, min(STRIP_FRAMES, clips.shape[1])).round()
    frames = rearrange(clips[:, chosen.astype(int)], "b t h w c -> (b t) 1 h w c")
    picture: Frames = tile(frames, columns=len(chosen))[0]
    return picture
