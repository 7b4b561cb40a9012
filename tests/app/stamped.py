"""Videos whose frames show their own numbers."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tatscli.core.data.video import Frames

BITS = 8


def stamped(count: int, side: int = 64) -> Frames:
    """Frames that show their number as black and white squares, to be read after lossy coding."""
    cell = side // 4
    frames = np.full((count, side, side, 3), 90, np.uint8)
    for number in range(count):
        for bit in range(BITS):
            row, column = divmod(bit, 4)
            square = frames[number, row * cell : (row + 1) * cell]
            square[:, column * cell : (column + 1) * cell] = 235 if number >> bit & 1 else 20
    return frames


def numbers(frames: Frames) -> list[int]:
    """The numbers that stamped frames show."""
    cell = frames.shape[1] // 4
    found = []
    for frame in frames:
        bits = 0
        for bit in range(BITS):
            row, column = divmod(bit, 4)
            centre = frame[row * cell + cell // 2, column * cell + cell // 2]
            bits |= int(centre.mean() > 127) << bit
        found.append(bits)
    return found


def encode(
    path: Path,
    frames: Frames,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    stamps: list[int] | None = None,
    rotation: int = 0,
    audio: bool = False,
) -> Path:
    """A video with chosen presentation times in 1/100 s."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        if rotation:
            stream.set_display_rotation(rotation)
        if audio:
            sound: Any = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            silence.rate = 8000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = stamps[number] if stamps else 4 * number
            frame.time_base = Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
