"""Checking a dataset: everything that is wrong is named."""

import shutil
import wave
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tatscli.app.data import check_data, open_videos, require_clips
from tatscli.app.reporting import Silent
from tatscli.config.check import CheckConfig
from tatscli.config.data import ClipConfig
from tatscli.core.data.clips import Wanted
from tatscli.core.data.index import Problem, build_index
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
    middle = start + (end - start) // 4  # beyond, there may be nothing but sound
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
    assert result.training_clips == 4 * 3
    assert (result.captioned, result.with_sound) == (6, 6)


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


def test_a_class_that_only_validation_videos_have_is_named(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "d")
    (tmp_path / "d" / "test" / "square").rename(tmp_path / "d" / "test" / "zebra")
    reporter = Warned()
    found = check_data(tmp_path / "d", CheckConfig(sequence_length=4), reporter)
    assert (found.classes, found.untrained_classes) == (["circle", "square"], ["zebra"])
    [said] = reporter.said
    assert f"no training video of {tmp_path / 'd'} is of class zebra" in said
    assert not found.sound
    with pytest.raises(DataError, match="1 problems; the first: no training video .* zebra"):
        check_data(tmp_path / "d", CheckConfig(sequence_length=4, strict=True))


def test_clips_longer_than_every_video_are_said_to_be(data: Path) -> None:
    result = check_data(data, CheckConfig(sequence_length=100))
    assert result.training_clips == 0
    assert len(set(result.too_short)) == 6  # of both splits, by their names
    assert all(line.endswith(".mp4: has 12 frames, a clip needs 100") for line in result.too_short)
    assert result.rates_assumed == 0


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
        open_videos(tmp_path, clip, Silent())
    assert "no val video is long enough for a clip of 12 frames" in caught.value.message
    assert "the first, val/0.mp4, has 7 frames, the longest 9" in caught.value.message
    assert "--sequence-length 8 is the longest that fits both splits" in caught.value.hint
    assert "--frame-rate" not in caught.value.hint
    slowed = clip.model_copy(update={"frame_rate": 4.0})
    with pytest.raises(DataError) as caught:
        open_videos(tmp_path, slowed, Silent())
    assert "--frame-rate 0 takes every frame, not 4 a second" in caught.value.hint
    fitting = clip.model_copy(update={"sequence_length": 8})
    videos = open_videos(tmp_path, fitting, Silent())
    assert (len(videos.train.entries), len(videos.val.entries)) == (2, 1)


def test_captions_and_sound_are_counted_also_of_a_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    names = [f"{number}.mp4" for number in range(4)]
    for number, name in enumerate(names):
        write_video(folder / name, np.full((12, 16, 16, 3), 60 * number, np.uint8), 8)
    (folder / names[0]).with_suffix(".txt").write_text("a circle")
    for name in names[:2]:
        with wave.open(str((folder / name).with_suffix(".wav")), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 16000))
    (folder / names[2]).with_suffix(".wav").write_bytes(b"RIFF")
    rows = [f"{name},{'val' if n else 'train'},," for n, name in enumerate(names)]
    rows += [f"{names[0]},val,1,a shape", "gone.mp4,,,"]
    manifest = folder / "m.csv"
    manifest.write_text("path,split,start,caption\n" + "\n".join(rows))
    result = check_data(manifest, CheckConfig(sequence_length=4))
    assert (result.training_videos, result.validation_videos) == (1, 3)
    assert (result.captioned, result.with_sound) == (2, 3)
    assert result.frames == 3 * 12
    [broken, gone] = sorted(result.unreadable)
    assert broken.startswith("2.mp4: ")  # its sound cannot be decoded
    assert "2.wav" in broken
    assert gone == "gone.mp4: No such file or directory"
    assert result.in_both_splits == [f"{names[0]}: frames 8 to 12"]


def test_videos_of_an_hdf5_file_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as stored:
        stored["train_data"] = np.zeros((9, 16, 16, 3), np.uint8)
        stored["train_idx"] = [0, 3]
        stored["test_data"] = np.zeros((4, 16, 16, 3), np.uint8)
        stored["test_idx"] = [0]
    result = check_data(file, CheckConfig(sequence_length=4))
    assert (result.training_videos, result.validation_videos) == (2, 1)
    assert (result.frames, result.training_clips, result.sizes) == (13, 1, {"16x16": 3})
    assert result.too_short == ["train/0: has 3 frames, a clip needs 4"]
    assert result.double == []
    with pytest.raises(DataError, match=r"a\.h5/train/0: has 3 frames"):
        clip = ClipConfig(resolution=16, sequence_length=4)
        open_videos(file, clip, Silent(), strict=True)
    videos = open_videos(file, clip, Silent())
    assert videos.rate == 25
    assert videos.spread("val", 1)[0].video.shape == (3, 4, 16, 16)


class Warned(Silent):
    """Keeps what was warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def clips_of(videos: Path, frames: int = 16, rate: float = 0.0) -> DataError:
    """The error of opening a dataset for such clips."""
    clip = ClipConfig(resolution=8, sequence_length=frames, frame_rate=rate)
    with pytest.raises(DataError) as caught:
        open_videos(videos, clip, Silent())
    return caught.value


def images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")


def test_of_a_single_video_the_last_tenth_is_held_out_and_that_is_said(tmp_path: Path) -> None:
    write_video(tmp_path / "d" / "a.mp4", np.zeros((20, 16, 16, 3), np.uint8), 8)
    error = clips_of(tmp_path / "d")
    assert "the first, a.mp4, has 2 frames (18 to 19), the longest 2" in error.message
    assert "--sequence-length 2 is the longest" in error.hint
    assert "the last tenth of the only video is held out" in error.hint
    found = check_data(tmp_path / "d", CheckConfig())
    assert found.too_short == ["a.mp4: has 2 frames (18 to 19), a clip needs 16"]
    with pytest.raises(DataError, match="no validation video is long enough") as caught:
        require_clips(found, CheckConfig())
    assert caught.value.hint == error.hint
    slow = CheckConfig(sequence_length=4, frame_rate=4)
    with pytest.raises(DataError, match="long enough for a clip of 4 frames") as caught:
        require_clips(check_data(tmp_path / "d", slow), slow)
    assert "--frame-rate 0 takes every frame, not 4 a second" in caught.value.hint
    assert caught.value.hint == clips_of(tmp_path / "d", frames=4, rate=4).hint


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("own.csv", ["path,split", "a.mp4,train", "b.mp4,val"], "add longer videos"),
        (
            "parts.csv",
            ["path,split,start,end", "a.mp4,train,0,1", "a.mp4,val,1,2"],
            "add longer videos",
        ),
        ("none.csv", ["path", "a.mp4"], "add videos, or name others in it, with the split val (by"),
        ("list.txt", ["a.mp4"], "add videos (by default"),
    ],
)
def test_what_is_said_of_a_manifest_that_is_too_short_is_true_of_it(
    tmp_path: Path, name: str, rows: list[str], says: str
) -> None:
    for video in "ab":
        write_video(tmp_path / f"{video}.mp4", np.zeros((20, 16, 16, 3), np.uint8), 8)
    (tmp_path / name).write_text("\n".join(rows))
    hint = clips_of(tmp_path / name, frames=32).hint
    assert says in hint
    assert "val/" not in hint
    assert ("last tenth" in hint) == ("longer" not in says)
    config = CheckConfig(sequence_length=32)
    with pytest.raises(DataError) as caught:
        require_clips(check_data(tmp_path / name, config), config)
    assert caught.value.hint == hint


def test_a_folder_of_images_is_a_video_of_an_assumed_rate_and_that_is_said(tmp_path: Path) -> None:
    images(tmp_path / "pictures", 5)
    error = clips_of(tmp_path / "pictures", rate=8)
    assert "the first, pictures, has 2 frames at 8 fps of its 5 at an assumed 25" in error.message
    assert "--frame-rate 25 takes every frame" in error.hint
    assert "taken to have 25 frames per second" in error.hint
    assert "--sequence-length" not in error.hint  # of one frame, that helps nobody
    for rate in (0, 25):
        error = clips_of(tmp_path / "pictures", rate=rate)
        assert "has 5 frames" in error.message
        assert "--frame-rate" not in error.hint
    slow = CheckConfig(frame_rate=8)
    found = check_data(tmp_path / "pictures", slow)
    assert (found.rates, found.rates_assumed) == ({"25": 1}, 1)
    with pytest.raises(DataError) as caught:
        require_clips(found, slow)
    assert caught.value.hint == clips_of(tmp_path / "pictures", rate=8).hint


def test_of_many_that_are_too_short_the_command_that_names_all_is_said(
    data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(data, tmp_path / "data")
    write_video(data / "train" / "circle" / "long.mp4", np.zeros((40, 16, 16, 3), np.uint8), 8)
    write_video(data / "test" / "circle" / "long.mp4", np.zeros((40, 16, 16, 3), np.uint8), 8)
    for number in range(6):
        short = np.full((3 + number, 16, 16, 3), 20 * number, np.uint8)
        write_video(data / "train" / "circle" / f"short{number}.mp4", short, 8)
    clip = ClipConfig(resolution=16, sequence_length=16, frame_rate=4)
    reporter = Warned()
    left_out = open_videos(data, clip, reporter).problems
    assert len(left_out) == 12
    command = f"tats data check {data} --sequence-length 16 --frame-rate 4"
    assert reporter.said[-1] == f"left out 2 more videos; '{command}' names them all"
    found = check_data(data, CheckConfig(sequence_length=16, frame_rate=4))
    assert found.too_short == [f"{p.path}: {p.reason}" for p in left_out]


def test_a_video_too_short_to_be_divided_has_no_frame_in_one_of_its_splits(tmp_path: Path) -> None:
    images(tmp_path / "pictures", 4)
    found = check_data(tmp_path / "pictures", CheckConfig(sequence_length=8))
    assert found.too_short == [
        "pictures: has 4 frames, a clip needs 8",
        "pictures: has 4 frames, none of them in val, a clip needs 8",
    ]


def test_no_length_fits_where_nothing_is_left_to_train_on(tmp_path: Path) -> None:
    for name in "ab":
        images(tmp_path / name, 20)
    [trained] = build_index(tmp_path).split("train")
    (tmp_path / trained.path / "10.png").write_bytes(b"broken")
    found = check_data(tmp_path, CheckConfig())
    assert (found.training_videos, found.longest_clip_in_both_splits) == (0, 0)
    assert found.too_short == []
    with pytest.raises(DataError, match="no training video is left") as caught:
        require_clips(found, CheckConfig())
    assert "--sequence-length" not in caught.value.hint


def test_an_empty_split_is_told_with_where_to_put_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "train" / "a.mp4", np.zeros((20, 16, 16, 3), np.uint8), 8)
    (tmp_path / "val").mkdir()
    error = clips_of(tmp_path)
    assert error.message == f"{tmp_path}: no validation video"
    assert "val/" in error.hint


def test_a_manifest_is_what_its_errors_name_and_unreadable_rows_are_warned_of(
    tmp_path: Path,
) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((6, 16, 16, 3), np.uint8), 8)
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,split\na.mp4,train\na.mp4,val\ngone.mp4,train\n")
    reporter = Warned()
    found = check_data(manifest, CheckConfig(), reporter)
    assert found.too_short == ["a.mp4: has 6 frames, a clip needs 16"] * 2
    assert reporter.said[0].startswith(f"1 of 2 videos of {manifest} cannot be read")
    clip = ClipConfig(resolution=8, sequence_length=4)
    with pytest.raises(DataError, match=r"^1 of 2 videos of .*m\.csv cannot be read"):
        open_videos(manifest, clip, Silent(), max_bad=0.1)


def test_parts_of_a_file_count_as_far_as_they_are_named_and_what_is_wrong_with_it_once(
    tmp_path: Path,
) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((40, 16, 16, 3), np.uint8), 8)
    write_video(tmp_path / "b.mp4", np.zeros((8, 16, 16, 3), np.uint8), 8)
    rows = [
        "a.mp4,train,0,1",
        "a.mp4,train,0.5,1.5",
        "a.mp4,val,3,4",
        "b.mp4,train,,",
        "b.mp4,val,,",
    ]
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,split,start,end\n" + "\n".join(rows))
    found = check_data(manifest, CheckConfig(sequence_length=4))
    assert found.frames == 12 + 8 + 8
    assert found.hours * 3600 == pytest.approx(found.frames / 8)
    with wave.open(str(tmp_path / "b.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16000))
    wanted = Wanted(sound=True, needs_sound=True)
    clip = ClipConfig(resolution=8, sequence_length=4)
    assert open_videos(manifest, clip, Silent(), wanted).problems == [
        Problem("a.mp4", "has no sound")
    ]


def test_samples_and_runs_within_a_dataset_are_warned_of(tmp_path: Path) -> None:
    for name in ("real/a.mp4", "long/0.mp4", "runs/v/samples/r.mp4"):
        write_video(tmp_path / name, np.zeros((40, 16, 16, 3), np.uint8), 8)
    (tmp_path / "long" / "samples.json").write_text('{"samples": [{"file": "0.mp4"}]}')
    (tmp_path / "runs" / "v" / "run.json").write_text('{"kind": "gpt"}')
    reporter = Warned()
    open_videos(tmp_path, ClipConfig(resolution=8, sequence_length=4), reporter)
    assert reporter.said[0].startswith(f"2 of the 3 videos of {tmp_path} are what tats wrote")
    assert "long, runs/v" in reporter.said[0]
