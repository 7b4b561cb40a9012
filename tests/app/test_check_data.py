"""Checking a dataset: everything that is wrong is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tatscli.app.data import check_data, open_videos
from tatscli.app.reporting import Silent
from tatscli.config.check import CheckConfig
from tatscli.config.data import ClipConfig
from tatscli.core.data.video import write_video
from tatscli.errors import DataError


@pytest.fixture
def mixed(data: Path, tmp_path: Path) -> Path:
    """The dataset, with one file of each kind of trouble."""
    folder = tmp_path / "mixed"
    shutil.copytree(data, folder)
    circles = folder / "train" / "circle"
    first = sorted(circles.glob("*.mp4"))[0]
    content = bytearray(first.read_bytes())
    start = content.index(b"mdat") + 4
    end = start + int.from_bytes(content[start - 8 : start - 4], "big") - 8
    middle = start + (end - start) * 3 // 4
    content[middle:end] = b"\x5a" * (end - middle)
    (circles / "corrupt.mp4").write_bytes(content)
    (circles / "empty.mp4").write_bytes(b"")
    (circles / "text.mp4").write_text("no video\n")
    shutil.copy(first, circles / "twin.mp4")
    shutil.copy(sorted((folder / "train" / "square").glob("*.mp4"))[0],
                folder / "test" / "square" / "leaked.mp4")  # fmt: skip
    short = np.zeros((3, 16, 16, 3), np.uint8)
    write_video(circles / "short.mp4", short, 8)
    return folder


def test_a_sound_dataset_is_sound(data: Path) -> None:
    result = check_data(data, CheckConfig(sequence_length=4))
    assert result.sound
    assert (result.training_videos, result.validation_videos) == (4, 2)
    assert result.classes == ["circle", "square"]
    assert result.frames == 6 * 12
    assert result.hours * 3600 == pytest.approx(6 * 1.5)
    assert result.sizes == {"16x16": 6}
    assert result.rates == {"8": 6}
    assert result.clips == 4 * 3


def test_everything_wrong_is_named(mixed: Path) -> None:
    result = check_data(mixed, CheckConfig(sequence_length=4))
    assert not result.sound
    assert sorted(line.split(": ")[0] for line in result.unreadable) == [
        f"train/circle/{name}.mp4" for name in ("corrupt", "empty", "text")
    ]
    assert [line.split(": ")[0] for line in result.too_short] == ["train/circle/short.mp4"]
    assert "3 frames" in result.too_short[0]
    twins = [line for line in result.double if "twin.mp4" in line]
    assert len(twins) == 1
    assert twins[0].count(".mp4") == 2
    [leaked] = result.in_both_splits
    assert "test/square/leaked.mp4" in leaked
    assert "train/square/" in leaked
    with pytest.raises(DataError, match="problems; the first"):
        check_data(mixed, CheckConfig(sequence_length=4, strict=True))


def test_clips_longer_than_every_video_are_said_to_be(data: Path) -> None:
    result = check_data(data, CheckConfig(sequence_length=100))
    assert result.clips == 0
    assert len(result.too_short) == 2  # both splits
    assert all("100" in line and "12" in line for line in result.too_short)


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(DataError, match="none of its 1 videos can be read"):
        check_data(tmp_path, CheckConfig())
    with pytest.raises(DataError, match="no videos"):
        empty = tmp_path / "empty"
        empty.mkdir()
        check_data(empty, CheckConfig())


def test_validation_videos_that_are_too_short_are_named_with_a_length_for_both(
    tmp_path: Path,
) -> None:
    for name, frames in (("train/0", 12), ("train/1", 20), ("val/0", 7), ("val/1", 9)):
        write_video(tmp_path / f"{name}.mp4", np.zeros((frames, 16, 16, 3), np.uint8), 8)
    clip = ClipConfig(resolution=16, sequence_length=12, sample_every_n_frames=2)
    with pytest.raises(DataError) as caught:
        open_videos(tmp_path, clip, False, Silent())
    assert "no val video is long enough for a clip of 12 frames" in caught.value.message
    assert "the first, val/0.mp4, has 7 frames, the longest 9" in caught.value.message
    assert "--sequence-length 8 or less fits both splits" in caught.value.hint
    fitting = clip.model_copy(update={"sequence_length": 8})
    videos = open_videos(tmp_path, fitting, False, Silent())
    assert (len(videos.train.entries), len(videos.val.entries)) == (2, 1)
