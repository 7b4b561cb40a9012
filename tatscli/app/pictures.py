"""Pictures of what a model makes: strips as PNG, clips side by side as MP4.

Letters: B clips, C channels, T frames, H W pixels.
"""

from pathlib import Path

import numpy as np
from einops import rearrange
from torch import Tensor

from tatscli.core.data.sound import sound_picture
from tatscli.core.data.video import Frames, tile, to_uint8, write_png, write_video

STRIP_FRAMES = 8
"""Frames of a clip that a strip shows."""
DEFAULT_RATE = 8.0
"""Frames per second of pictures whose own rate is unknown."""
SMALLEST_SIDE = 64
"""Frames are enlarged by a whole factor up to at least this side, to be seen without a lens."""


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
    beside = np.concatenate([originals, copies], axis=3)
    write_video(stem.with_suffix(".mp4"), tile(beside), rate or DEFAULT_RATE)


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
