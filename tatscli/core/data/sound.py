"""Sound from and to files, and its pictures: the only place that knows audio.

Samples are float32 (channels, n) in [-1, 1]. As a condition, sound is a picture for each video
frame, a patch of 64 bands x 16 columns in [-0.5, 0.5]: the log-magnitude spectrum of the mono mix
at 16 kHz while the frame is shown. T frames, B clips.

Times are those of the container, which the presentation times of its video are on as well.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange, repeat
from torch import Tensor

from tatscli.config.data import SOUND_FRAME
from tatscli.core.data.container import UNREADABLE, open_media, reason, require_content
from tatscli.errors import DataError

Samples = npt.NDArray[np.float32]

SOUND_RATE = 16000
"""Samples per second of what patches are computed from."""
BANDS, COLUMNS = SOUND_FRAME
"""Bands of a patch, of 125 Hz each, the lowest first; spectra, evenly over its frame's time."""

_WINDOW = 512  # samples: 32 ms
_FLOOR = 80.0  # dB below full scale that count as silence
_FULL = 1.5 * (_WINDOW / 4) ** 2  # the power that a full-scale sine leaves in its band
_PIECE = 256  # frames whose spectra are in memory at once
_PREROLL = 0.3  # seconds in which any decoder has settled
_SETTLED = 0.1  # those of them that must remain where a seek landed late
_HEAD = 3  # frames that tell on which grid the later ones lie
_JITTER = 0.02  # seconds by which time stamps may be off before they count as a gap
_VORBIS = 64  # samples that the lengths of its frames, which vary, are multiples of
_CODEC = {"mp4": "aac", "webm": "libopus", "matroska": "flac"}
_OPTIONS = {"aac": {"aac_coder": "fast"}}  # the default leaves holes in tones, and is slower
_RATES = (1_000, 768_000)
_LAYOUT = {1: "mono", 2: "stereo"}
_MAP = ((0, 0, 10), (58, 16, 104), (168, 46, 94), (240, 132, 42), (252, 250, 196))
_LINE = 90  # grey between the frames of a picture
_HINT = "leave out the sound, or put a .wav file with it beside the video"


@dataclass(frozen=True, eq=False)
class Track:
    """Sound that goes with a video and starts with its first frame.

    Attributes:
        samples: float32 (channels, n) in [-1, 1]; one channel or two.
        rate: Samples per second.
    """

    samples: Samples
    rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or len(self.samples) not in _LAYOUT or self.rate < 1:
            raise ValueError(f"samples {self.samples.shape} at {self.rate} Hz")


def sound_span(path: Path) -> tuple[float, float]:
    """Seconds at which a file begins on its own timeline, which need not be 0, and ends.

    The end is infinite where the file does not say.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        with open_media(path) as container:
            start = float(container.start_time or 0) / av.time_base
            length = container.duration
            return start, start + length / av.time_base if length else math.inf
    except UNREADABLE as error:
        raise DataError(f"{path}: {reason(error)}", _HINT) from error


def has_sound(path: Path) -> bool:
    """Whether a file has a sound track that can be decoded; a folder of frames has none.

    Raises:
        DataError: It cannot be opened.
    """
    if path.is_dir():
        return False
    try:
        require_content(path)
        with open_media(path) as container:
            return _track(container) is not None
    except UNREADABLE as error:
        raise DataError(f"{path}: {reason(error)}", _HINT) from error


def read_sound(
    path: Path, start: float, stop: float, rate: int = SOUND_RATE, channels: int = 1
) -> Samples:
    """Reads a stretch of a file's sound, decoding little more than that.

    Args:
        path: A video or a sound file.
        start: Where the stretch starts, in seconds, rounded to whole samples.
        stop: Where it ends.
        rate: Samples per second of the result.
        channels: 1 for the mean of the file's channels, 2 for stereo.

    Returns:
        float32 (channels, n) with n = (stop - start) * rate, rounded; zeros where the file has no
        sound: before its beginning, behind its end and in gaps.

    Raises:
        DataError: The file has no sound, or it cannot be decoded.
    """
    first, count = round(start * rate), round((stop - start) * rate)
    if count < 1 or channels not in _LAYOUT:
        raise ValueError(f"sound from {start} to {stop} s at {rate} Hz in {channels} channels")
    try:
        require_content(path)
        # A seek may land late, or not at all; then it starts earlier, in the end with the file.
        for back in (_PREROLL, 10 * _PREROLL, math.inf):
            stretch = _read_from(path, first / rate, (first + count) / rate, back, channels)
            if stretch is not None:
                break
    except UNREADABLE as error:
        raise DataError(
            f"{path}: its sound cannot be decoded after {max(0, start):.2f} s: {reason(error)}",
            _HINT,
        ) from error
    assert stretch is not None  # with the file, it starts without a seek
    # Whole periods of the ratio of rates, so that a stretch has the samples that the whole has.
    ratio = Fraction(stretch.rate, rate)
    edge = 64 * max(1, math.ceil(ratio))  # longer than the filter
    begin = math.floor((first * ratio - edge) / ratio.numerator) * ratio.numerator
    end = math.ceil((first + count) * ratio) + edge
    samples = np.zeros((channels, end - begin), np.float32)
    for place, piece in stretch.placed:
        low, high = max(place, begin), min(place + piece.shape[1], end)
        if low < high:
            samples[:, low - begin : high - begin] = piece[:, low - place : high - place]
    skipped = first - int(begin / ratio)
    result = _resampled(samples, stretch.rate, rate)[:, skipped : skipped + count]
    return np.clip(np.nan_to_num(result), -1, 1)


def sound_patches(path: Path, edges: npt.NDArray[np.float64], offset: float = 0.0) -> Tensor:
    """What is heard while each frame is shown.

    Args:
        path: A video or a sound file.
        edges: When the frames start and the last one ends, in seconds, float64 (T + 1,).
        offset: Added to the edges to have the file's own times; for a .wav beside a video, whose
            time 0 is the video's first frame.

    Returns:
        float32 (1, T, 64, 16) in [-0.5, 0.5].

    Raises:
        DataError: The file has no sound, or it cannot be decoded.
    """
    own = edges + offset
    first = math.floor(own[0] * SOUND_RATE) - _WINDOW
    stop = math.ceil(own[-1] * SOUND_RATE) + _WINDOW
    samples = read_sound(path, first / SOUND_RATE, stop / SOUND_RATE)
    return patches_of(samples[0], first / SOUND_RATE, own)


def patches_of(samples: Samples, first: float, edges: npt.NDArray[np.float64]) -> Tensor:
    """Patches of samples at 16 kHz.

    Column j of a frame is the spectrum around the time (j + 0.5) / 16 of the way from its start to
    its end, rounded to whole samples, under a Hann window of 32 ms. A full-scale sine in the middle
    of a band has 0 dB, which is 0.5; -80 dB and less is -0.5.

    Args:
        samples: float32 (n,), with silence around them.
        first: The time of the first sample in seconds.
        edges: When the frames start and the last one ends, in seconds, float64 (T + 1,).

    Returns:
        float32 (1, T, 64, 16) in [-0.5, 0.5].
    """
    lengths = np.diff(edges)
    if edges.ndim != 1 or not len(lengths) or lengths.min() < 0 or samples.ndim != 1:
        raise ValueError(f"edges {edges.shape} in samples {samples.shape}")
    parts = (np.arange(COLUMNS) + 0.5) / COLUMNS
    times = edges[:-1, None] + parts * lengths[:, None]
    centres = np.rint(times * SOUND_RATE).astype(np.int64) - round(first * SOUND_RATE)
    around = np.arange(_WINDOW) - _WINDOW // 2
    sound = torch.from_numpy(np.pad(samples, _WINDOW))  # at both ends, a window of silence
    window = torch.hann_window(_WINDOW)
    patches = []
    for low in range(0, len(centres), _PIECE):
        # Windows that lie in the silence farther out have the silence at the ends.
        near = centres[low : low + _PIECE].clip(-_WINDOW // 2, len(samples) + _WINDOW // 2)
        cut = sound[torch.from_numpy(near[..., None] + around + _WINDOW)]
        spectra = torch.view_as_real(torch.fft.rfft(cut * window)[..., 1:])
        power: Tensor = rearrange(spectra, "t c (b k) z -> t b c (k z)", b=BANDS).square().sum(-1)
        patches.append(power / _FULL)
    decibels = 10 * torch.cat(patches).clamp_min(1e-12).log10()
    return (decibels.clamp(-_FLOOR, 0) / _FLOOR + 0.5)[None]


def silence(frames: int) -> Tensor:
    """The patches of no sound, float32 (1, T, 64, 16)."""
    return torch.full((1, frames, BANDS, COLUMNS), -0.5)


def sound_picture(patches: Tensor) -> npt.NDArray[np.uint8]:
    """Shows what the patches of clips hold, low to high upwards, dark where it is quiet.

    Args:
        patches: (B, 1, T, 64, 16) in [-0.5, 0.5].

    Returns:
        uint8 (B, 128, 33 * T - 1, 3): two pixels for each value, and a line between frames.
    """
    levels = (patches.detach().float().cpu().numpy()[:, 0, :, ::-1] + 0.5).clip(0, 1)
    large = repeat(levels, "b t h w -> b t (h y) (w x)", y=2, x=2)
    points = np.linspace(0, 1, len(_MAP))
    colours = np.stack([np.interp(large, points, column) for column in zip(*_MAP, strict=True)], -1)
    lined = np.pad(colours, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 0)), constant_values=_LINE)
    picture: npt.NDArray[np.uint8] = rearrange(np.rint(lined), "b t h w d -> b h (t w) d").astype(
        np.uint8
    )
    return picture[:, :, :-1]


class TrackEncoder:
    """The sound stream of a file being written, cut or padded to the length of its video.

    Args:
        container: The file; nothing may have been written to it.
        track: What is heard from its first frame on.
        muxer: mp4 has AAC, webm Opus, matroska FLAC, which gives 16-bit samples back.
    """

    def __init__(self, container: Any, track: Track, muxer: str) -> None:
        codec = av.codec.Codec(_CODEC[muxer], "w")
        rates = sorted(codec.audio_rates or [track.rate])
        enough = next((rate for rate in rates if rate >= track.rate), rates[-1])
        # Opus hears at 48 kHz whatever it is told, and files with other rates confuse players.
        self._rate = rates[-1] if codec.name == "libopus" else enough
        self._container = container
        self._stream: Any = container.add_stream(
            codec.name, self._rate, _OPTIONS.get(codec.name), layout=_LAYOUT[len(track.samples)]
        )
        if codec.name == "flac":
            self._stream.codec_context.format = "s16"
        else:
            self._stream.bit_rate = min(128_000, 2 * self._rate) * len(track.samples)
        samples = np.ascontiguousarray(track.samples, np.float32)
        self._track = Track(_resampled(samples, track.rate, self._rate), self._rate)
        self._done = 0

    def write(self, seconds: Fraction) -> None:
        """Encodes what is heard until then."""
        stop = round(seconds * self._rate)
        ahead = self._track.samples[:, self._done : stop]
        samples = np.pad(ahead, ((0, 0), (0, stop - self._done - ahead.shape[1])))
        if samples.shape[1]:
            frame = _frame(samples.clip(-1, 1), self._rate)
            frame.pts, frame.time_base = self._done, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
        self._done = stop

    def finish(self) -> None:
        """Encodes what the codec holds back."""
        self._container.mux(self._stream.encode(None))


class _Stretch(NamedTuple):
    """Decoded sound: its rate, and pieces (channels, n) with the sample that each starts at."""

    rate: int
    placed: list[tuple[int, Samples]]


class _Piece(NamedTuple):
    """A decoded frame of sound.

    Attributes:
        stamp: Its time in samples; None where the file does not say.
        rate: Samples per second.
        samples: float32 (channels, n).
    """

    stamp: float | None
    rate: int
    samples: Samples

    @property
    def length(self) -> int:
        return int(self.samples.shape[1])


def _track(container: Any) -> Any:
    """The first sound stream that there is a decoder for, or None."""
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            stream.codec_context.thread_count = 1  # workers and probes are parallel already
            return stream
    return None


def _read_from(
    path: Path, start: float, stop: float, back: float, channels: int
) -> _Stretch | None:
    """What is heard between two times, decoded from some time before; None if the seek failed."""
    with open_media(path) as container:
        stream = _track(container)
        if stream is None:
            raise DataError(f"{path}: no sound in it", _HINT)
        pieces = _decoded(container, stream, channels)
        head = list(islice(pieces, _HEAD))
        if not head:
            raise DataError(f"{path}: no sound in it can be decoded", _HINT)
        rate = head[0].rate
        if not _RATES[0] <= rate <= _RATES[1]:  # a damaged header may ask for any amount of memory
            raise DataError(
                f"{path}: its sound has {rate} Hz, what can be read has {_RATES[0]} to {_RATES[1]}",
                _HINT,
            )
        opening, grid = head, None
        if start - back > (head[0].stamp or 0) / rate:
            target = round((start - back) / stream.time_base)
            try:
                container.seek(target, stream=stream, backward=True, any_frame=False)
            except UNREADABLE:  # some formats cannot
                return None
            pieces = _decoded(container, stream, channels, start)
            opening, grid = list(islice(pieces, 1)), head
            stamp = opening[0].stamp if opening else None
            if stamp is None or stamp > (start - _SETTLED) * rate:
                return None
        run: list[_Piece] = []
        reached = 0.0
        for piece in chain(opening, pieces):
            if piece.rate != rate:
                raise DataError(
                    f"{path}: its sound changes from {rate} to {piece.rate} Hz at "
                    f"{reached / rate:.2f} s",
                    _HINT,
                )
            run.append(piece)
            reached = (reached if piece.stamp is None else piece.stamp) + piece.length
            if reached >= (stop + _JITTER) * rate:
                break
        unit = float(stream.time_base * rate)
        shortest = _VORBIS if stream.codec_context.name == "vorbis" else 0
        return _Stretch(rate, _placed(run, unit, grid, shortest))


def _decoded(
    container: Any, stream: Any, channels: int, lenient_until: float = -math.inf
) -> Iterator[_Piece]:
    """Frames from where the container is; before a time, packets may be damaged by the seek."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if packet.pts is None or packet.pts * stream.time_base >= lenient_until:
                raise
            continue
        for frame in frames:
            if frame.samples:
                stamp = None
                if frame.pts is not None:
                    stamp = float(frame.pts * frame.time_base * frame.sample_rate)
                yield _Piece(stamp, frame.sample_rate, _mixed(_floats(frame), channels))


def _placed(
    run: list[_Piece], unit: float, grid: list[_Piece] | None, shortest: int
) -> list[tuple[int, Samples]]:
    """The samples that pieces start at, which time stamps tell less exactly than their lengths.

    Args:
        run: Pieces in the order of decoding.
        unit: Samples that a unit of the time stamps has; in Matroska, it is a millisecond.
        grid: The first pieces of the file, where the run is not at its beginning.
        shortest: What the lengths of all pieces are multiples of; 0 if these lengths tell.
    """
    tolerance = max(_JITTER * run[0].rate, unit)
    place = _anchor(run, unit, tolerance, grid, shortest)
    placed = []
    for number, piece in enumerate(run):
        if number and piece.stamp is not None and abs(piece.stamp - place) > tolerance:
            place = round(piece.stamp)
        placed.append((place, piece.samples))
        place += piece.length
    return placed


def _anchor(
    run: list[_Piece], unit: float, tolerance: float, grid: list[_Piece] | None, shortest: int
) -> int:
    """The sample that the first piece starts at: the one it has if the whole file is decoded."""
    first = run[0].stamp or 0.0
    if grid is None or unit <= 1:
        return round(first)
    offsets, length = [], 0
    for piece in run:
        offset = first if piece.stamp is None else piece.stamp - length
        if abs(offset - first) > tolerance:
            break
        offsets.append(offset)
        length += piece.length
    middle = median(offsets)  # each is rounded, and those of short frames may be far off
    step = shortest or math.gcd(*(piece.length for piece in (*grid[1:], *run[:-1]))) or 1
    origin = round(grid[0].stamp or 0) + grid[0].length
    snapped = origin + round((middle - origin) / step) * step
    return snapped if step >= unit >= abs(snapped - middle) else round(middle)


def _floats(frame: Any) -> Samples:
    """The samples of a decoded frame, float32 (channels, n) in [-1, 1]."""
    stored: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        stored = stored.reshape(-1, frame.layout.nb_channels).T
    samples = stored.astype(np.float32)
    if stored.dtype == np.uint8:
        samples = samples / np.float32(128) - 1
    elif stored.dtype.kind == "i":
        samples /= -float(np.iinfo(stored.dtype).min)
    return samples


def _mixed(samples: Samples, channels: int) -> Samples:
    if channels == len(samples):
        return samples
    if channels == 1:
        mono: Samples = samples.mean(0, keepdims=True)
        return mono
    if len(samples) == 1:
        return samples.repeat(channels, 0)
    # The front, and what comes from the middle and from behind on both sides.
    stereo: Samples = samples[:channels] + samples[channels:].mean(0)
    return stereo


def _resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """The samples at another rate, about as long; the first stays where it is."""
    if rate == wanted or not samples.shape[1]:
        return samples
    resampler = av.AudioResampler(format="fltp", layout=_LAYOUT[len(samples)], rate=wanted)
    frames = resampler.resample(_frame(samples, rate)) + resampler.resample(None)
    nothing = samples[:, :0]  # what a few samples become
    return np.concatenate([nothing, *(frame.to_ndarray() for frame in frames)], 1)


def _frame(samples: Samples, rate: int) -> av.AudioFrame:
    content = np.ascontiguousarray(samples)
    frame = av.AudioFrame.from_ndarray(content, "fltp", _LAYOUT[len(samples)])
    frame.sample_rate = rate
    return frame
