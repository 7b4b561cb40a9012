from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tatscli.core.data.sound import Samples, Track, read_sound
from tatscli.core.data.video import Frames, probe, read_frames, video_writer, write_video

KINDS: dict[str, dict[str, Any]] = {
    ".mp4": {},
    ".m4v": {"codec": "mpeg4"},
    ".webm": {"codec": "vp9"},
    ".mkv": {"lossless": True},
}
CODECS = {".mp4": "aac", ".m4v": "aac", ".webm": "opus", ".mkv": "flac"}


def noise(frames: int, side: int = 32) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), np.uint8)


def tones(rate: int, seconds: float, channels: int = 1) -> Samples:
    """A tone of its own for each channel."""
    times = np.arange(round(seconds * rate)) / rate
    parts = [0.4 * np.sin(2 * np.pi * (440 + 110 * part) * times) for part in range(channels)]
    return np.array(parts, np.float32)


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (22000, 1), (48000, 2)])
def test_videos_are_heard_as_the_track_was(
    tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, noise(16), 8, sound=Track(tones(rate, 2.0, channels), rate), **KINDS[suffix])
    read = read_sound(path, 0.0, 2.0, 16000, channels)
    for heard, meant in zip(read, tones(16000, 2.0, channels), strict=True):
        assert np.corrcoef(heard, meant)[0, 1] > 0.995
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert (stream.codec_context.name, stream.channels) == (CODECS[suffix], channels)
        assert stream.rate >= rate


@pytest.mark.parametrize("suffix", KINDS)
def test_a_click_stays_with_its_frame(tmp_path: Path, suffix: str) -> None:
    samples = np.zeros((1, 44100 * 4), np.float32)
    samples[0, round(1.7 * 44100)] = 0.9
    path = tmp_path / f"a{suffix}"
    write_video(path, noise(75), 25, sound=Track(samples, 44100), **KINDS[suffix])
    info = probe(path)
    found = int(np.abs(read_sound(path, info.times[0], 4.0)).argmax()) / 16000
    assert found == pytest.approx(1.7, abs=0.002)


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("seconds", [0.0, 1.0, 5.0])
def test_sound_is_as_long_as_the_video(tmp_path: Path, suffix: str, seconds: float) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, noise(16), 8, sound=Track(tones(16000, seconds), 16000), **KINDS[suffix])
    with av.open(str(path)) as container:
        assert container.duration / av.time_base == pytest.approx(2, abs=0.03)
    loud = np.abs(read_sound(path, 0.0, 4.0)[0]) > 0.05
    heard = min(seconds, 2.0)
    if heard:
        assert np.flatnonzero(loud)[[0, -1]] / 16000 == pytest.approx([0, heard], abs=0.03)
    else:
        assert not loud.any()


@pytest.mark.parametrize("suffix", KINDS)
def test_frames_are_those_of_a_file_without_sound(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("with", "without")]
    for path, sound in zip(paths, (Track(tones(16000, 1.0), 16000), None), strict=True):
        write_video(path, noise(12), Fraction(30000, 1001), sound=sound, **KINDS[suffix])
    with_sound, without = (probe(path) for path in paths)
    np.testing.assert_allclose(with_sound.times, without.times, atol=2e-3)
    read = [
        read_frames(path, info, range(12))
        for path, info in zip(paths, (with_sound, without), strict=True)
    ]
    assert np.array_equal(*read)


@pytest.mark.parametrize("suffix", KINDS)
def test_a_track_may_have_hardly_a_sample(tmp_path: Path, suffix: str) -> None:
    for length in (0, 1, 2):
        track = Track(np.ones((1, length), np.float32), 22000)
        write_video(tmp_path / f"a{suffix}", noise(1), 1, sound=track, **KINDS[suffix])
        assert not read_sound(tmp_path / f"a{suffix}", 0.1, 1.0).round(2).any()


def test_lossless_files_give_16_bit_samples_back(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(-32768, 32768, (2, 16000))
    samples = (levels / 32768).astype(np.float32)
    write_video(tmp_path / "a.mkv", noise(8), 8, lossless=True, sound=Track(samples, 16000))
    assert np.array_equal(read_sound(tmp_path / "a.mkv", 0.0, 1.0, channels=2), samples)


def test_the_same_track_gives_the_same_file_whole_or_in_pieces(tmp_path: Path) -> None:
    frames, sound = noise(20), Track(tones(22050, 3.0), 22050)
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", frames, 12.5, sound=sound)
    with video_writer(tmp_path / "c.mp4", 12.5, sound=sound) as write:
        for first, stop in [(0, 1), (1, 8), (8, 20)]:
            write(frames[first:stop])
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


def test_mp4_files_with_sound_are_made_for_players(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", noise(8), 8, sound=Track(tones(16000, 1.0), 16000))
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.audio[0].profile == "LC"


def test_sound_is_written_beside_the_frames_it_goes_with(tmp_path: Path) -> None:
    write_video(
        tmp_path / "a.mkv", noise(80, 64), 8, lossless=True, sound=Track(tones(16000, 10.0), 16000)
    )
    latest = {"video": 0.0, "audio": 0.0}
    with av.open(str(tmp_path / "a.mkv")) as container:
        for packet in container.demux():
            if packet.pts is not None:
                latest[packet.stream.type] = float(packet.pts * packet.time_base)
                assert abs(latest["video"] - latest["audio"]) < 0.5
