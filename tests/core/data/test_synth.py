from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tatscli.config.synth import SynthConfig
from tatscli.core.data.index import build_index
from tatscli.core.data.sound import SOUND_RATE, read_sound
from tatscli.core.data.synth import (
    SHAPES,
    Motion,
    caption,
    draw_motion,
    motion_sound,
    shape_clip,
    write_dataset,
)
from tatscli.core.data.video import Frames, probe, read_frames
from tatscli.errors import DataError


def mask(clip: Frames) -> npt.NDArray[np.bool_]:
    """Where the shape is: pixels brighter than any background."""
    bright: npt.NDArray[np.bool_] = clip.max(axis=-1) > 90
    return bright


def test_a_dataset_has_the_videos_and_classes_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    config = SynthConfig(train_videos=2, test_videos=1, classes=3, size=32, video_frames=6)
    calls: list[tuple[int, int]] = []
    result = write_dataset(tmp_path / "d", config, lambda *count: calls.append(count))
    assert (result.videos, result.classes, result.frames) == (9, SHAPES[:3], 6)
    assert calls[-1] == (9, 9)
    index = build_index(tmp_path / "d", strict=True)
    assert (len(index.split("train")), len(index.split("val"))) == (6, 3)
    assert set(index.classes) == set(SHAPES[:3])
    for entry in index.entries:
        info = entry.info
        assert (len(info.times), info.width, info.height) == (6, 32, 32)
        assert info.rate == pytest.approx(8)


@pytest.mark.parametrize("codec", ["h264", "mpeg4", "vp9", "ffv1"])
def test_files_show_what_was_drawn(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    config = SynthConfig.model_validate(
        # Chroma is halved: the larger the frame, the smaller the part that its edges are.
        {
            "train_videos": 1,
            "test_videos": 1,
            "classes": 1,
            "video_frames": 4,
            "size": 128,
            "codec": codec,
        }
    )
    write_dataset(tmp_path / "d", config)
    (entry,) = build_index(tmp_path / "d", strict=True).split("train")
    read = read_frames(tmp_path / "d" / entry.path, entry.info, range(4))
    drawn = shape_clip("circle", 128, 4, np.random.default_rng([0, False, 0, 0]))
    error = np.abs(read.astype(int) - drawn).mean()
    assert error == 0 if codec == "ffv1" else error < 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 64])
def test_shapes_are_large_stay_inside_and_move_steadily(shape: str, size: int) -> None:
    clip = shape_clip(shape, size, 60, np.random.default_rng(5))
    centres, extents = [], []
    for frame in mask(clip):
        rows, columns = np.nonzero(frame)
        centres.append((rows.mean(), columns.mean()))
        extents.append((np.ptp(rows) + 1, np.ptp(columns) + 1))
    assert 0.5 * size < np.min(extents) <= np.max(extents) < 0.72 * size
    assert np.ptp(extents, axis=0).max() <= 2  # nothing is cut off at the walls
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1) * 32 / size
    assert np.median(steps) == pytest.approx(np.quantile(steps, 0.7), abs=0.15)
    assert 0.7 < np.median(steps) < 1.6


def test_shapes_differ_in_colour_and_form_on_the_same_background() -> None:
    clips = [shape_clip(shape, 32, 1, np.random.default_rng(0))[0] for shape in SHAPES]
    colours = np.array([clip[mask(clip)].mean(axis=0) for clip in clips])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(len(SHAPES), dtype=bool)].min() > 60
    empty = ~np.any([mask(clip) for clip in clips], axis=0)
    corner = [clip[empty & (clip.max(axis=-1) < 60)].mean() for clip in clips]
    assert np.ptp(corner) < 1
    assert max(corner) < 60


def test_the_seed_decides_and_more_videos_keep_the_earlier_ones(tmp_path: Path) -> None:
    def first(name: str, train_videos: int, seed: int) -> bytes:
        # Lossless, so that what is compared is what was drawn and not what an encoder made of it.
        config = SynthConfig.model_validate(
            {
                "train_videos": train_videos,
                "test_videos": 0,
                "classes": 1,
                "video_frames": 3,
                "seed": seed,
                "codec": "ffv1",
            }
        )
        write_dataset(tmp_path / name, config)
        path = tmp_path / name / "train" / "circle" / "000.mkv"
        return read_frames(path, probe(path), range(3)).tobytes()

    assert first("a", 1, seed=1) == first("b", 3, seed=1) != first("c", 1, seed=2)


def moving(x: float, y: float, side: float = 64.0) -> Motion:
    """From the middle of a frame."""
    return Motion(np.full(2, side / 2), np.array([x, y]), 0.36 * side, 0.64 * side)


def pitches(samples: npt.NDArray[np.float32], pieces: int) -> npt.NDArray[np.float64]:
    """The strongest pitch of each piece in Hz."""
    cut = samples[: len(samples) // pieces * pieces].reshape(pieces, -1)
    spectra = np.abs(np.fft.rfft(cut * np.hanning(cut.shape[1]), 8192))
    strongest: npt.NDArray[np.float64] = spectra.argmax(1) * SOUND_RATE / 8192
    return strongest


def test_captions_say_what_moves_where_at_first() -> None:
    assert caption("circle", moving(-1.0, 0.9)) == "a red circle moves left"
    assert caption("square", moving(1.0, -0.9)) == "a green square moves right"
    assert caption("triangle", moving(0.2, -0.9)) == "a blue triangle moves up"
    assert caption("star", moving(-0.2, 0.9)) == "a yellow star moves down"
    assert caption("cross", moving(0.0, 1.0)) == "a magenta cross moves down"
    assert caption("ring", moving(1.0, 0.0)) == "a cyan ring moves right"


@pytest.mark.parametrize("seed", [0, 2, 3, 4])  # with 1, it starts at a wall
def test_captions_tell_the_direction_that_is_seen(seed: int) -> None:
    clip = shape_clip("circle", 64, 2, np.random.default_rng(seed))
    (top, left), (down, right) = (np.argwhere(frame).mean(0) for frame in mask(clip))
    words = caption("circle", draw_motion(64, np.random.default_rng(seed))).split()
    steps = {"left": left - right, "right": right - left, "up": top - down, "down": down - top}
    assert max(steps, key=steps.__getitem__) == words[-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pitch_follows_the_height_in_the_register_of_the_class(shape: str) -> None:
    motion = moving(0.1, 1.0)
    samples = motion_sound(shape, 64, 8, motion).samples[0]
    heard = pitches(samples, 64)
    lowest = 300 * 1.7 ** SHAPES.index(shape)
    assert 0.98 * lowest < heard.min() < 1.1 * lowest
    assert 1.35 * lowest < heard.max() < 1.52 * lowest
    height = -motion.places(np.arange(64) + 0.5)[:, 1]
    assert np.corrcoef(heard, height)[0, 1] > 0.98


def test_the_loudness_follows_the_way_across() -> None:
    samples = motion_sound("circle", 16, 8, moving(0.5, 0.0)).samples[0]
    loudness = np.abs(samples.reshape(16, -1)).max(1)
    assert (np.diff(loudness) > 0).all()
    assert 0.2 < loudness.min() < loudness.max() <= 0.6


def test_the_sound_has_no_jumps_between_frames() -> None:
    for shape in SHAPES:
        track = motion_sound(shape, 32, 8, moving(1.5, -1.3))
        assert (track.samples.shape, track.rate) == ((1, 4 * SOUND_RATE), SOUND_RATE)
        bends = np.abs(np.diff(track.samples[0], 2))
        borders = np.arange(1, 32) * (SOUND_RATE // 8)
        assert bends[borders - 2].max() <= bends.max()
        around = np.delete(bends, np.concatenate([borders - 2, borders - 1]))
        assert bends.max() <= 1.01 * around.max()


@pytest.mark.parametrize("codec", ["h264", "vp9", "ffv1"])
def test_videos_have_their_captions_beside_and_their_sound_inside(
    tmp_path: Path, codec: str
) -> None:
    settings = {"train_videos": 1, "test_videos": 1, "classes": 2, "video_frames": 8, "size": 32}
    write_dataset(tmp_path / "d", SynthConfig.model_validate({**settings, "codec": codec}))
    videos = sorted(path for path in tmp_path.rglob("000.*") if path.suffix != ".txt")
    assert len(videos) == 4
    for path in videos:
        shape, split = path.parent.name, path.parent.parent.name
        key = [0, split == "test", SHAPES.index(shape), 0]
        motion = draw_motion(32, np.random.default_rng(key))
        words = path.with_suffix(".txt").read_text(encoding="utf-8")
        assert words == f"{caption(shape, motion)}\n"
        heard = read_sound(path, 0.0, 1.0)[0]
        meant = motion_sound(shape, 8, 8, motion).samples[0]
        assert np.corrcoef(heard, meant)[0, 1] > 0.99


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "note.txt").touch()
    with pytest.raises(DataError, match="not empty; nothing was overwritten"):
        write_dataset(tmp_path / "d", SynthConfig(train_videos=1))
    assert [path.name for path in tmp_path.rglob("*")] == ["d", "note.txt"]


def test_an_interrupted_run_leaves_no_dataset(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "d", SynthConfig(train_videos=2, video_frames=2), stop)
    assert not list(tmp_path.iterdir())
    result = write_dataset(tmp_path / "d", SynthConfig(train_videos=2, video_frames=2))
    assert result.folder == tmp_path / "d"
