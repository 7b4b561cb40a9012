from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tatscli.core.data import sound
from tatscli.core.data.sound import (
    BANDS,
    COLUMNS,
    SOUND_RATE,
    Samples,
    Track,
    has_sound,
    patches_of,
    read_sound,
    silence,
    sound_patches,
    sound_picture,
)
from tatscli.core.data.video import write_video
from tatscli.errors import DataError

FORMATS = {
    ".wav": ("pcm_s16le", 16000),
    ".mp4": ("aac", 44100),
    ".webm": ("libopus", 48000),
    ".ogg": ("libopus", 48000),
    ".mkv": ("flac", 44100),
    ".mp3": ("libmp3lame", 44100),
    ".ts": ("aac", 48000),
}
EDGES = np.arange(9) / 8


def write(
    path: Path,
    samples: Samples,
    rate: int,
    codec: str = "pcm_s16le",
    form: str | None = None,
    gaps: dict[int, float] | None = None,
) -> Path:
    """A sound file; gaps are seconds of nothing that come before samples."""
    with av.open(str(path), "w") as container:
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
        stream: Any = container.add_stream(codec, rate, layout=layout)
        if form:
            stream.codec_context.format = form
        shift = 0.0
        for first in range(0, samples.shape[1], 1000):
            shift += (gaps or {}).get(first, 0.0)
            piece = np.ascontiguousarray(samples[:, first : first + 1000])
            frame = av.AudioFrame.from_ndarray(piece, "fltp", layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = first + round(shift * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def chirp(rate: int, seconds: float) -> Samples:
    """A tone that rises from 200 Hz by 300 Hz a second."""
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * times + 150 * times**2)))[None].astype(np.float32)


def test_a_full_scale_sine_is_about_0_db_in_its_band_and_nowhere_else() -> None:
    for band in (0, 7, 40, 63):
        pitch = (4 * band + 2.5) * SOUND_RATE / 512
        sine = np.sin(2 * np.pi * pitch * np.arange(SOUND_RATE) / SOUND_RATE).astype(np.float32)
        patches = patches_of(sine, 0.0, EDGES[1:-1])
        assert (patches.shape, patches.dtype) == ((1, 6, BANDS, COLUMNS), torch.float32)
        assert patches[:, :, band].min() > 0.499
        assert patches[:, :, band].max() <= 0.5
        far = [other for other in range(BANDS) if abs(other - band) > 2]
        assert patches[:, :, far].max() < -0.2  # 56 dB below
        half = patches_of(sine / 2, 0.0, EDGES[1:-1])[:, :, band]
        torch.testing.assert_close(half, torch.full_like(half, 0.5 - 6.02 / 80), atol=3e-3, rtol=0)


def test_patches_are_what_their_definition_says_for_uneven_frames() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.05, 9000).astype(np.float32)
    edges = np.array([0.31, 0.34, 0.45, 0.46, 0.71])
    first = 0.3
    patches = patches_of(samples, first, edges)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    for frame in range(4):
        for column in (0, 3, 15):
            start, stop = edges[frame : frame + 2]
            centre = round((start + (column + 0.5) / 16 * (stop - start)) * 16000) - 4800
            padded = np.pad(samples, 512)[centre + 256 : centre + 768]
            power = np.abs(np.fft.rfft(padded * window))[1:] ** 2
            bands = power.reshape(64, 4).sum(1) / (1.5 * 128**2)
            level = np.clip(10 * np.log10(bands), -80, 0) / 80 + 0.5
            np.testing.assert_allclose(patches[0, frame, :, column], level, atol=1e-5)


def test_no_sound_is_exactly_silence_wherever_it_lies() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, 1000).astype(np.float32)
    assert torch.equal(patches_of(np.zeros(16000, np.float32), 0.0, EDGES), silence(8))
    assert torch.equal(patches_of(noise[:0], 0.0, EDGES), silence(8))
    assert torch.equal(patches_of(noise, 7.0, EDGES), silence(8))
    assert torch.equal(patches_of(noise, -7.0, EDGES), silence(8))
    assert torch.equal(silence(3), torch.full((1, 3, 64, 16), -0.5))


def test_a_click_is_in_the_column_of_its_time() -> None:
    samples = np.zeros(16000, np.float32)
    samples[round((3 + 5.5 / 16) / 8 * SOUND_RATE)] = 1
    power = patches_of(samples, 0.0, EDGES)[0].mean(1)
    assert divmod(int(power.argmax()), COLUMNS) == (3, 5)
    later = patches_of(samples, 0.125, EDGES)[0].mean(1)
    assert divmod(int(later.argmax()), COLUMNS) == (4, 5)


def test_many_frames_are_the_same_as_few() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    edges = np.linspace(0, 1, 601)
    whole = patches_of(samples, 0.0, edges)
    torch.testing.assert_close(patches_of(samples, 0.0, edges[400:411]), whole[:, 400:410])


def test_edges_that_do_not_rise_are_a_mistake_of_the_caller() -> None:
    for wrong in (EDGES[::-1], EDGES[:1], EDGES[None]):
        with pytest.raises(ValueError, match="edges"):
            patches_of(np.zeros(10, np.float32), 0.0, wrong)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_click_is_found_where_it_is(tmp_path: Path, suffix: str) -> None:
    codec, rate = FORMATS[suffix]
    samples = np.zeros((1, 3 * rate), np.float32)
    moment = round(1.2345 * rate)
    samples[0, moment] = 0.9
    path = write(tmp_path / f"a{suffix}", samples, rate, codec)
    beginning, delay = 0.0, 0
    if suffix in (".mp3", ".ts"):  # they start late, and transport streams hide AAC's delay
        with av.open(str(path)) as container:
            beginning = container.start_time / av.time_base
        delay = 1024 * SOUND_RATE // rate if suffix == ".ts" else 0
    read = read_sound(path, 0.0, 6.0)
    found = int(np.abs(read).argmax()) - round((moment / rate + beginning) * SOUND_RATE)
    assert read.shape == (1, 6 * SOUND_RATE)
    assert abs(found - delay) <= (0 if suffix == ".wav" else 3)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_stretch_has_the_samples_of_the_whole(tmp_path: Path, suffix: str) -> None:
    codec, rate = FORMATS[suffix]
    path = write(tmp_path / f"a{suffix}", chirp(rate, 8), rate, codec)
    whole = read_sound(path, 0.0, 8.0)
    for start in (0.0, 0.2, 1.7, 3.333, 5.05, 7.1):
        part = read_sound(path, start, start + 0.8)
        first = round(start * SOUND_RATE)
        np.testing.assert_allclose(part, whole[:, first : first + part.shape[1]], atol=2e-3)


@pytest.mark.parametrize("suffix", [".wav", ".mp4", ".webm", ".mkv"])
def test_sound_has_its_pitch_and_length_at_any_rate(tmp_path: Path, suffix: str) -> None:
    codec, rate = FORMATS[suffix]
    path = write(tmp_path / f"a{suffix}", chirp(rate, 3), rate, codec)
    for wanted in (8000, 16000, 22050, 48000):
        read = read_sound(path, 0.0, 3.0, wanted)
        assert (read.shape, read.dtype) == ((1, 3 * wanted), np.float32)
        assert np.corrcoef(read[0], chirp(wanted, 3)[0])[0, 1] > 0.997


def test_there_is_silence_before_the_beginning_and_behind_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.full((1, 16000), 0.5, np.float32), 16000)
    read = read_sound(path, -0.5, 1.5)[0]
    assert read.shape == (32000,)
    assert not read[:8000].any()
    assert not read[24000:].any()
    np.testing.assert_allclose(read[8000:24000], 0.5, atol=1e-4)
    for start in (-3.0, 1.0, 9.0):
        assert not read_sound(path, start, start + 1).any()


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_sound_that_starts_late_or_stops_for_a_while_is_where_it_is(
    tmp_path: Path, start: float
) -> None:
    samples = np.full((1, 4000), 0.5, np.float32)
    gaps = {0: 1.5, 2000: 1.0}
    path = write(tmp_path / "a.mkv", samples, 8000, "pcm_f32le", gaps=gaps)
    read = read_sound(path, start, 4.0, 8000)[0]
    expected = np.zeros(32000, np.float32)
    expected[12000:14000] = expected[22000:24000] = 0.5
    np.testing.assert_allclose(read, expected[round(start * 8000) :])


@pytest.mark.parametrize("suffix", [".wav", ".mp4", ".mkv"])
def test_little_more_than_the_stretch_is_decoded(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, rate = FORMATS[suffix]
    path = write(tmp_path / f"a{suffix}", chirp(rate, 30), rate, codec)
    decoded = 0

    def counted(samples: Samples, channels: int) -> Samples:
        nonlocal decoded
        decoded += samples.shape[1]
        return samples

    monkeypatch.setattr(sound, "_mixed", counted)
    read_sound(path, 20.0, 20.5)
    assert decoded < 2 * rate


@pytest.mark.parametrize(
    ("codec", "form"), [("pcm_u8", "u8"), ("pcm_s32le", "s32"), ("pcm_f64le", "dbl")]
)
def test_samples_of_any_kind_have_the_same_scale(tmp_path: Path, codec: str, form: str) -> None:
    samples = np.linspace(-1, 0.99, 4000, dtype=np.float32)[None]
    path = write(tmp_path / "a.wav", samples, 16000, codec, form)
    atol = 0.01 if form == "u8" else 1e-6
    np.testing.assert_allclose(read_sound(path, 0.0, 0.25), samples, atol=atol)


def test_channels_are_averaged_kept_or_repeated(tmp_path: Path) -> None:
    left, right = np.full((2, 1600), [[0.6], [-0.2]], np.float32)
    stereo = write(tmp_path / "stereo.wav", np.stack([left, right]), 16000)
    mono = write(tmp_path / "mono.wav", left[None], 16000)
    np.testing.assert_allclose(read_sound(stereo, 0, 0.1), [(left + right) / 2], atol=1e-4)
    np.testing.assert_allclose(read_sound(stereo, 0, 0.1, channels=2), [left, right], atol=1e-4)
    np.testing.assert_allclose(read_sound(mono, 0, 0.1, channels=2), [left, left], atol=1e-4)
    around = write(tmp_path / "around.wav", np.stack([left, *[right] * 5]), 16000)
    both = read_sound(around, 0, 0.1, channels=2)
    np.testing.assert_allclose(both, [left + right, right + right], atol=1e-4)


def test_what_exceeds_full_scale_or_is_no_number_is_mended(tmp_path: Path) -> None:
    samples = np.array([[3.0, -3.0, np.nan, np.inf, 0.25]], np.float32)
    path = write(tmp_path / "a.wav", samples, 16000, "pcm_f32le")
    assert read_sound(path, 0.0, 5 / 16000).tolist() == [[1.0, -1.0, 0.0, 1.0, 0.25]]


def test_a_wav_beside_a_video_is_read_with_an_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", chirp(16000, 3), 16000)
    edges = np.linspace(1.0, 2.0, 9)
    patches = sound_patches(path, edges)
    assert (patches.shape, patches.dtype) == ((1, 8, 64, 16), torch.float32)
    assert torch.equal(sound_patches(path, edges + 4, offset=-4.0), patches)
    assert torch.equal(sound_patches(path, edges - 9), silence(8))
    samples = read_sound(path, 0.0, 3.0)[0]
    torch.testing.assert_close(patches, patches_of(samples, 0.0, edges))
    loudest = patches[0].mean(-1).argmax(1)
    assert loudest.tolist() == sorted(loudest.tolist())  # it rises
    assert loudest[0] == int(530 // 125)


def test_files_with_and_without_sound_are_told_apart(tmp_path: Path) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    write_video(tmp_path / "without.mp4", frames, 8)
    write_video(tmp_path / "with.mp4", frames, 8, sound=Track(chirp(16000, 0.5), 16000))
    assert not has_sound(tmp_path / "without.mp4")
    assert has_sound(tmp_path / "with.mp4")
    assert not has_sound(tmp_path)
    with pytest.raises(DataError, match=r"without\.mp4: no sound") as raised:
        read_sound(tmp_path / "without.mp4", 0.0, 1.0)
    assert ".wav" in raised.value.hint


def test_bad_files_are_named_with_the_cause(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "text": b"not a sound\n" * 50,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.wav\n#EXT-X-ENDLIST\n",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.wav"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.wav: ."):
            read_sound(path, 0.0, 1.0)
        with pytest.raises(DataError, match=f"{name}.wav: ."):
            has_sound(path)
    with pytest.raises(DataError, match=r"nothing\.wav: .*No such file"):
        read_sound(tmp_path / "nothing.wav", 0.0, 1.0)
    with pytest.raises(DataError, match="not a regular file"):
        read_sound(tmp_path, 0.0, 1.0)


def test_a_rate_that_no_sound_has_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", chirp(16000, 1), 16000)
    content = bytearray(path.read_bytes())
    content[24:28] = (2_000_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.wav: .*2000000000 Hz.* 1000 to 768000"):
        read_sound(path, 0.0, 1.0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ogg", ".wav"])
def test_garbled_files_raise_nothing_but_data_errors(tmp_path: Path, suffix: str) -> None:
    codec, rate = FORMATS[suffix]
    good = write(tmp_path / f"a{suffix}", chirp(rate, 2), rate, codec).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"b{suffix}"
    for _ in range(40):
        content = np.frombuffer(good, np.uint8).copy()
        places = rng.integers(0, len(content), rng.integers(1, 100))
        content[places] = rng.integers(0, 256, len(places))
        path.write_bytes(content.tobytes())
        try:
            read = read_sound(path, 1.0, 1.5)
            assert read.shape == (1, 8000)
            assert np.abs(read).max() <= 1
        except DataError as error:
            assert str(path) in error.message


def test_a_stretch_without_length_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", chirp(16000, 1), 16000)
    with pytest.raises(ValueError, match="sound from"):
        read_sound(path, 1.0, 1.0)
    with pytest.raises(ValueError, match="3 channels"):
        read_sound(path, 0.0, 1.0, channels=3)


def test_a_track_has_one_channel_or_two() -> None:
    for wrong in (np.ones(5, np.float32), np.ones((3, 5), np.float32)):
        with pytest.raises(ValueError, match="samples"):
            Track(wrong, 100)


def test_a_picture_shows_low_bands_at_the_bottom_and_loud_ones_light() -> None:
    patches = torch.stack([silence(3), silence(3)])
    patches[1, 0, 2, :8, 4:] = 0.5
    picture = sound_picture(patches)
    assert (picture.shape, picture.dtype) == ((2, 128, 98, 3), np.uint8)
    frames = [slice(0, 32), slice(33, 65), slice(66, 98)]
    assert all(picture[0, :, columns].max() < 20 for columns in frames)
    loud = picture[1, :, frames[2]]
    assert loud[112:, 8:].min() > 190
    assert loud[:112].max() < 20
    assert loud[:, :8].max() < 20


def test_pictures_grow_lighter_with_loudness() -> None:
    levels = torch.linspace(-0.5, 0.5, 16).expand(1, 1, 1, 64, 16)
    light = sound_picture(levels)[0, 0].astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(light[::2]) > 0).all()
