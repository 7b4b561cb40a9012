"""Frames from and to files: the only place that knows video codecs, image files and uint8.

T frames, H W pixels, C channels. Frames in files are uint8 (T, H, W, 3) RGB; everywhere else a clip
is float32 (C, T, H, W) in [-0.5, 0.5]. Frames are picked by the time stamps of a pass over the
packets, never by index over rate, which is wrong for variable rates.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
import torch
from av.video.reformatter import Colorspace, VideoReformatter
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from tatscli.core.data.arrays import Number, array_address, video_array
from tatscli.core.data.container import UNREADABLE, open_media, reason, require_content
from tatscli.core.data.hdf5 import Address, hdf5_address, read_stored, stored_video
from tatscli.core.data.sound import Track, TrackEncoder
from tatscli.core.files import written_whole
from tatscli.errors import DataError

Frames = npt.NDArray[np.uint8]
Codec = Literal["h264", "mpeg4", "vp9", "ffv1"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"}
    | {".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
FOLDER_RATE = 25.0
"""Frames per second that a folder of frames and a video in an HDF5 file are taken to have."""

_EXACT = frozenset(
    {"raw", "bmp", "png", "ffv1", "ffvhuff", "huffyuv", "rawvideo", "utvideo", "zlib"}
)
_EITHER = frozenset({"webp", "h264 (High 4:4:4 Predictive)"})
_JITTER = 0.2
"""Part of a frame's duration by which durations may differ; times in files are rounded."""

_MUXER = {"h264": "mp4", "mpeg4": "mp4", "vp9": "webm", "ffv1": "matroska"}
_ENCODER = {"h264": "libx264", "mpeg4": "mpeg4", "vp9": "libvpx-vp9", "ffv1": "ffv1"}
_PIXELS = {"h264": "yuv420p", "mpeg4": "yuv420p", "vp9": "yuv420p", "ffv1": "bgr0"}
_QUALITY = {
    # With its macroblock tree, x264 gives other bytes for the same frames, one time in ten or so.
    "h264": {"crf": "17", "x264-params": "mbtree=0"},
    "mpeg4": {"qmin": "2", "qmax": "3"},
    "vp9": {"crf": "15", "b": "0", "deadline": "good", "cpu-used": "4"},
    "ffv1": {"level": "3"},
}
_BT601 = 6  # AVCOL_SPC_SMPTE170M, the matrix swscale uses for RGB input
_LIMITED = 1  # AVCOL_RANGE_MPEG


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a pass over the packets of a video tells.

    Attributes:
        times: Presentation times of the frames in seconds, float64, increasing.
        keys: Those of `times` at which decoding can start.
        width: Pixels across as displayed: after sample aspect ratio and rotation.
        height: Pixels down as displayed.
        rotation: Degrees, counter-clockwise, that decoded frames are turned by for display.
        rate: Mean frames per second.
        ordered: Whether frames are found by counting, since the file has no presentation times.
        sound: Whether the file has a sound track that can be decoded.
        codec: How its frames are stored: of a file the decoder, with the profile where that decides
            about losses; of images their kind; else raw.
    """

    times: npt.NDArray[np.float64]
    keys: npt.NDArray[np.float64]
    width: int
    height: int
    rotation: int
    rate: float
    ordered: bool = False
    sound: bool = False
    codec: str = "raw"

    @property
    def is_lossless(self) -> bool | None:
        """Whether frames are stored bit for bit; None where the codec can do both."""
        return None if self.codec in _EITHER else self.codec in _EXACT

    @property
    def is_steady(self) -> bool:
        """Whether all frames are shown about equally long."""
        apart = np.diff(self.times)
        return not len(apart) or bool(apart.max() - apart.min() <= _JITTER * apart.mean())


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sorting key by which frame2 comes before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def frame_files(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order; hidden files are left out."""
    files = [
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES
    ]
    return sorted(files, key=lambda path: (natural_key(path.name), path.name))


def probe(path: Path) -> VideoInfo:
    """Reads the time stamps and the geometry of a video: a file, a folder of frames, or in HDF5.

    A file's packets are read without decoding, except for the first frame. Subtitles, attached
    pictures and further video streams are ignored; of sound, it is only seen whether it is there.
    Folders of frames and HDF5 files (such as FILE.h5/train/12) have no time stamps and are taken
    to have 25 frames per second.

    Raises:
        DataError: It cannot be opened, has no video, or its first frame cannot be decoded.
    """
    if path.is_dir():
        return _probe_folder(path)
    if address := hdf5_address(path):
        video = stored_video(address)
        return untimed_info(video.frames, video.width, video.height)
    if number := array_address(path):
        _, frames, height, width = video_array(number.file).shape
        return untimed_info(frames, width, height)
    try:
        require_content(path)
        with open_media(path) as container:
            if container.format.name == "image2":  # its name is a pattern, such as %d.png
                raise DataError(f"{path}: numbered images, not a video")
            return _probe_stream(path, container, _video_stream(path, container))
    except UNREADABLE as error:
        raise DataError(f"{path}: {reason(error)}") from error


def untimed_info(frames: int, width: int, height: int, codec: str = "raw") -> VideoInfo:
    """What is known of a video that is stored as mere frames."""
    times = np.arange(frames) / FOLDER_RATE
    return VideoInfo(times, times, width, height, 0, FOLDER_RATE, codec=codec)


def read_frames(
    path: Path, info: VideoInfo, indices: Sequence[int], size: int | None = None
) -> Frames:
    """Reads single frames, decoding from the key frame before the first to the last of them.

    Args:
        path: A video file, a folder of frames, or a video in an HDF5 file or an array.
        info: What `probe` said about it.
        indices: Positions in `info.times`, in any order, with repetitions if wanted.
        size: Side of the result: the shorter side is scaled to it and the centre cut out. Without
            it, frames have the displayed size.

    Returns:
        Frames, uint8 (len(indices), H, W, 3).

    Raises:
        DataError: A frame is missing or cannot be decoded.
    """
    wanted = sorted(set(indices))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(info.times):
        raise ValueError(f"indices {wanted[:1]}..{wanted[-1:]} of {len(info.times)} frames")
    fit = _Fit(info, size)
    if path.is_dir():
        found = _read_images(path, info, wanted, fit)
    elif address := hdf5_address(path):
        found = _read_hdf5(address, info, wanted, fit)
    elif number := array_address(path):
        found = _read_array(number, wanted, fit)
    else:
        found = _read_stream(path, info, wanted, fit)
    return np.stack([found[index] for index in indices])


class _Fit:
    """Turns decoded frames into RGB arrays of one size."""

    def __init__(self, info: VideoInfo, size: int | None) -> None:
        width, height = info.width, info.height
        if size is not None:
            shorter = min(width, height)
            # Rounding half up, exactly, so that the shorter side is `size` and no side is less.
            width, height = (
                (2 * side * size + shorter) // (2 * shorter) for side in (width, height)
            )
        self.turns = info.rotation // 90 % 4
        self.width, self.height = (height, width) if self.turns % 2 else (width, height)
        self.size = size
        self.reformatter = VideoReformatter()  # keeps its scaling tables from frame to frame

    def __call__(self, frame: av.VideoFrame) -> Frames:
        scaled = self.reformatter.reformat(
            frame, self.width, self.height, "rgb24", interpolation="BICUBIC", threads=1
        )
        pixels: Frames = np.rot90(scaled.to_ndarray(), self.turns)
        if self.size is not None:
            top, left = ((side - self.size) // 2 for side in pixels.shape[:2])
            pixels = pixels[top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(pixels)


def _video_stream(path: Path, container: Any) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise DataError(f"{path}: no decoder for its video")
            stream.codec_context.thread_count = 1  # workers and probes are parallel already
            return stream
    raise DataError(f"{path}: no video in it")


def _probe_stream(path: Path, container: Any, stream: Any) -> VideoInfo:
    stamps: list[tuple[int | None, int | None, bool]] = []
    first = None
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard and not _hidden(packet, stream):
            stamps.append((packet.pts, packet.dts, packet.is_keyframe))
        if first is None:
            first = next(iter(packet.decode()), None)
    if first is None or not stamps:
        raise DataError(f"{path}: no frame in it can be decoded")
    unit: Fraction = stream.time_base
    mean = float(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
    # AVI stores no presentation times; those that libavformat guesses are out of order.
    ordered = container.format.name == "avi" or any(pts is None for pts, _, _ in stamps)
    column = 1 if ordered else 0
    if all(stamp[column] is not None for stamp in stamps):
        times = _seconds([stamp[column] for stamp in stamps], unit)
        keys = _seconds([stamp[column] for stamp in stamps if stamp[2]], unit)
    else:
        times = np.arange(len(stamps)) / mean
        keys = times[:1]
    if ordered and stream.codec_context.has_b_frames:
        # Behind a key frame, some of the frames to be shown before it may follow or be lost, and
        # counting would go wrong.
        keys = times[:1]
    if not ordered and first.pts is not None:
        # Frames before the first that decodes belong to a group of pictures that was cut off.
        start = first.pts * unit.numerator / unit.denominator
        times = times[times >= start]
        if not len(times):
            raise DataError(f"{path}: its time stamps are damaged")
    keys = np.union1d(keys[keys >= times[0]], times[:1])
    if len(times) > 1:
        # What time stamps in seconds are off by is no part of the rate.
        mean = round((len(times) - 1) / float(times[-1] - times[0]), 9)
    width, height = first.width, first.height
    aspect = float(stream.sample_aspect_ratio or 1)
    if 0.1 < aspect < 10:  # beyond, it is a mistake in the header
        width = max(1, round(width * aspect))
    rotation = round(first.rotation / 90) * 90 % 360
    if rotation % 180:
        width, height = height, width
    sound = any(track.codec_context is not None for track in container.streams.audio)
    codec, profile = stream.codec_context.name, stream.codec_context.profile
    codec = with_profile if (with_profile := f"{codec} ({profile})") in _EITHER else codec
    return VideoInfo(times, keys, width, height, rotation, mean, ordered, sound, codec)


def _hidden(packet: Any, stream: Any) -> bool:
    """Whether a packet holds a VP8 frame that is only referred to, never shown (RFC 6386, 9.1)."""
    return stream.codec_context.name == "vp8" and not memoryview(packet)[0] >> 4 & 1


def _seconds(stamps: list[Any], unit: Fraction) -> npt.NDArray[np.float64]:
    return np.unique(np.array(stamps, np.int64)) * unit.numerator / unit.denominator


def _read_stream(path: Path, info: VideoInfo, wanted: list[int], fit: _Fit) -> dict[int, Frames]:
    target = info.times[wanted[0]]
    key = int(np.searchsorted(info.keys, target, side="right")) - 1
    try:
        # A seek may land behind its key frame, where groups of pictures are shorter than the
        # decoder's delay; then the next earlier one is tried, in the end the start of the file.
        while True:
            found = _read_from(path, info, wanted, fit, key)
            if wanted[0] in found or key <= 0:
                break
            key -= 1
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be decoded after {target:.2f} s: {reason(error)}"
        ) from error
    missing = [index for index in wanted if index not in found]
    if missing:
        raise DataError(
            f"{path}: no frame at {info.times[missing[0]]:.2f} s, though the file lists "
            f"{len(info.times)}"
        )
    return found


def _read_from(
    path: Path, info: VideoInfo, wanted: list[int], fit: _Fit, key: int
) -> dict[int, Frames]:
    pending = set(wanted)
    found: dict[int, Frames] = {}
    with open_media(path) as container:
        stream = _video_stream(path, container)
        if key > 0:
            stamp = round(info.keys[key] / stream.time_base)
            container.seek(stamp, stream=stream, backward=True, any_frame=False)
        for index, frame in _numbered(container, stream, info, wanted[0], seeked=key > 0):
            if not found and index > wanted[0]:
                break
            if index in pending:
                found[index] = fit(frame)
                pending.discard(index)
            if not pending:
                break
    return found


def _numbered(
    container: Any, stream: Any, info: VideoInfo, first: int, *, seeked: bool
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decoded frames, with their positions in `info.times`, of which `first` is needed first."""
    unit: Fraction = stream.time_base
    target = round(info.times[first] / unit)

    def position(stamp: int) -> int:
        time = stamp * unit.numerator / unit.denominator
        index = int(np.searchsorted(info.times, time))
        exact = index < len(info.times) and (info.ordered or info.times[index] == time)
        return index if exact else -1

    count = -1 if seeked else 0
    for packet in container.demux(stream):
        if count < 0 and packet.dts is not None:
            count = position(packet.dts)
        if not info.ordered:
            # On the way to the first wanted frame, those that no other refers to are left out.
            early = packet.pts is not None and packet.pts < target
            stream.codec_context.skip_frame = "NONREF" if early else "DEFAULT"
        for frame in packet.decode():
            if info.ordered:
                yield count, frame
                count += 1
            elif frame.pts is not None:
                yield position(frame.pts), frame


def _probe_folder(path: Path) -> VideoInfo:
    try:
        files = frame_files(path)
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from error
    if not files:
        raise DataError(f"{path}: no images in it")
    height, width = _image(files[0]).shape[:2]
    kinds = {file.suffix.lower().removeprefix(".") for file in files}
    return untimed_info(len(files), width, height, kinds.pop() if len(kinds) == 1 else "images")


def _read_images(path: Path, info: VideoInfo, wanted: list[int], fit: _Fit) -> dict[int, Frames]:
    files = frame_files(path)
    if len(files) != len(info.times):
        raise DataError(
            f"{path}: has {len(files)} images now, and had {len(info.times)} when it was indexed"
        )
    found = {}
    for index in wanted:
        image = _image(files[index])
        if image.shape[:2] != (info.height, info.width):
            raise DataError(
                f"{files[index]}: {image.shape[1]}x{image.shape[0]} pixels, the frames before it "
                f"{info.width}x{info.height}"
            )
        found[index] = fit(av.VideoFrame.from_ndarray(image, "rgb24"))
    return found


def _read_hdf5(
    address: Address, info: VideoInfo, wanted: list[int], fit: _Fit
) -> dict[int, Frames]:
    frames = read_stored(address, wanted, len(info.times))
    return {
        index: fit(av.VideoFrame.from_ndarray(frame, "rgb24"))
        for index, frame in zip(wanted, frames, strict=True)
    }


def _read_array(number: Number, wanted: list[int], fit: _Fit) -> dict[int, Frames]:
    frames = video_array(number.file).read(number.number, wanted)
    return {
        index: fit(av.VideoFrame.from_ndarray(frame, "rgb24"))
        for index, frame in zip(wanted, frames, strict=True)
    }


def _image(path: Path) -> Frames:
    try:
        with Image.open(path) as image:
            # Of several pictures in a JPEG (MPO), the first is the one to be shown.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise ValueError(
                    "an animation, and each image is taken for one frame; make a video file of it, "
                    "such as .mp4 or .gif"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
                grey = np.asarray(upright).astype(np.uint32) >> 8
                return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
            return np.array(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: {reason(error)}") from error


@contextmanager
def video_writer(
    path: Path,
    rate: Fraction | float,
    *,
    lossless: bool = False,
    codec: Codec = "h264",
    metadata: dict[str, str] | None = None,
    sound: Track | None = None,
) -> Iterator[Callable[[Frames], None]]:
    """A file that frames are added to, under a temporary name until it is complete.

    Only what the codec looks ahead is held in memory, so a file may be of any length.

    Args:
        path: Where to; .mp4 for h264 and mpeg4, .webm for vp9, .mkv for lossless.
        rate: Frames per second.
        lossless: FFV1, which gives every bit back, whatever `codec` says.
        codec: H.264 plays everywhere.
        metadata: Tags of the file, such as title and comment.
        sound: What is heard, cut or padded with silence to the length of the video; AAC in .mp4,
            Opus in .webm, FLAC in .mkv.

    Yields:
        What adds frames, uint8 (T, H, W, 3), all of one size. Where the codec wants even sides, an
        odd one is extended by repeating its last pixels.

    Raises:
        DataError: The file cannot be written, or this PyAV lacks the encoder. It is not there then,
            nor after any other error.
    """
    codec = "ffv1" if lossless else codec
    exact = Fraction(rate).limit_denominator(1001)  # NTSC rates are over 1001
    if exact <= 0:
        raise ValueError(f"{rate} frames per second")
    muxer = _MUXER[codec]
    options = {"movflags": "+faststart+use_metadata_tags"} if muxer == "mp4" else {}
    with written_whole(path, DataError) as partial:
        try:
            with av.open(f"file:{partial}", "w", muxer, container_options=options) as container:
                container.metadata.update(metadata or {})
                encoder = _Encoder(container, exact, codec, sound)
                yield encoder.write
                encoder.finish()
        except (av.FFmpegError, av.codec.codec.UnknownCodecError) as error:
            raise OSError(getattr(error, "errno", None), reason(error)) from error


def write_video(
    path: Path,
    frames: Frames,
    rate: Fraction | float,
    *,
    lossless: bool = False,
    codec: Codec = "h264",
    metadata: dict[str, str] | None = None,
    sound: Track | None = None,
) -> None:
    """Writes all frames of a file, uint8 (T, H, W, 3), at once; see ``video_writer``.

    Raises:
        DataError: The file cannot be written, or this PyAV lacks the encoder.
    """
    with video_writer(
        path, rate, lossless=lossless, codec=codec, metadata=metadata, sound=sound
    ) as write:
        write(frames)


class _Encoder:
    """The streams of a file being written, its frames as large as the first of them."""

    def __init__(
        self, container: Any, rate: Fraction, codec: Codec, sound: Track | None = None
    ) -> None:
        self._container, self._codec, self._rate = container, codec, rate
        self._stream: Any = container.add_stream(_ENCODER[codec], rate, options=_QUALITY[codec])
        self._stream.pix_fmt = _PIXELS[codec]
        if codec != "ffv1":
            self._stream.codec_context.colorspace = _BT601
            self._stream.codec_context.color_range = _LIMITED
        self._sound = TrackEncoder(container, sound, _MUXER[codec]) if sound else None
        self._reformatter = VideoReformatter()
        self._size: tuple[int, ...] = ()
        self._written = 0

    def write(self, frames: Frames) -> None:
        size = frames.shape[1:]
        if len(size) != 3 or size[2] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
            raise ValueError(f"frames {frames.dtype} {frames.shape}")
        if size != (self._size or size):
            raise ValueError(f"frames {size} in a video of {self._size}")
        if self._codec != "ffv1":
            frames = np.pad(frames, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)), "edge")
        if not self._size:
            self._stream.height, self._stream.width = frames.shape[1:3]
        self._size = size
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame = self._reformatter.reformat(
                frame,
                format=_PIXELS[self._codec],
                dst_colorspace=Colorspace.ITU601,
                interpolation="BICUBIC",
                threads=1,
            )
            self._container.mux(self._stream.encode(frame))
            self._written += 1
            if self._sound:
                self._sound.write(self._written / self._rate)

    def finish(self) -> None:
        if not self._size:
            raise ValueError("a video without frames")
        self._container.mux(self._stream.encode(None))
        if self._sound:
            self._sound.finish()


def write_png(path: Path, frame: Frames) -> None:
    """Writes one frame, uint8 (H, W, 3), under a temporary name until it is complete.

    Raises:
        DataError: The file cannot be written.
    """
    with written_whole(path, DataError) as partial:
        Image.fromarray(frame).save(partial, format="png")


def tile(clips: Sequence[Frames] | Frames, columns: int | None = None, gap: int = 2) -> Frames:
    """Lays clips of equal size side by side.

    Args:
        clips: Clips, each uint8 (T, H, W, 3).
        columns: Clips in a row; without it, the grid is about square.
        gap: Black pixels between neighbours.

    Returns:
        One clip, uint8 (T, rows * (H + gap) - gap, columns * (W + gap) - gap, 3).
    """
    stacked = np.stack(list(clips))
    columns = columns or int(np.ceil(np.sqrt(len(stacked))))
    rows = -(-len(stacked) // columns)
    margins = ((0, rows * columns - len(stacked)), (0, 0), (0, gap), (0, gap), (0, 0))
    grid: Frames = rearrange(
        np.pad(stacked, margins), "(r c) t h w d -> t (r h) (c w) d", r=rows, c=columns
    )
    return grid[:, : grid.shape[1] - gap, : grid.shape[2] - gap]


def to_float(frames: Frames) -> Tensor:
    """uint8 (..., T, H, W, 3) to float32 (..., 3, T, H, W) in [-0.5, 0.5]."""
    pixels: Tensor = rearrange(torch.from_numpy(frames), "... t h w c -> ... c t h w")
    return pixels.contiguous().float() / 255 - 0.5


def to_uint8(video: Tensor) -> Frames:
    """Float (..., 3, T, H, W) to uint8 (..., T, H, W, 3), what exceeds [-0.5, 0.5] clamped."""
    levels = ((video.detach().float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
    frames: Frames = rearrange(levels, "... c t h w -> ... t h w c").cpu().numpy()
    return frames
