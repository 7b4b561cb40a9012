import logging
import os
from pathlib import Path

import numpy as np
import pytest

from tatscli.core.data import index as module
from tatscli.core.data.index import build_index
from tatscli.core.data.video import write_png, write_video
from tatscli.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, np.zeros((20, 16, 16, 3), np.uint8), 8)
    return path.read_bytes()


def fill(root: Path, names: list[str], content: bytes) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_a_flat_folder_has_no_classes_and_holds_out_a_tenth(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", [f"{n}.mp4" for n in range(30)], video)
    index = build_index(root)
    assert (index.classes, index.problems) == ((), ())
    assert {entry.label for entry in index.entries} == {-1}
    assert len(index.split("val")) == 3
    assert len(index.split("train")) == 27
    assert index.entries[2].path == "2.mp4"
    assert len(index.entries[0].info.times) == 20


def test_the_split_does_not_depend_on_where_the_dataset_lies(tmp_path: Path, video: bytes) -> None:
    names = [f"{n}.mp4" for n in range(12)]
    held = [
        [entry.path for entry in build_index(fill(tmp_path / place, names, video)).split("val")]
        for place in ("here", "there")
    ]
    assert held[0] == held[1]


def test_folders_are_classes_and_each_gives_its_share(tmp_path: Path, video: bytes) -> None:
    names = [f"{name}/{n}.mp4" for name in ("cat", "ape", "bee") for n in range(20)]
    index = build_index(fill(tmp_path / "d", names, video))
    assert index.classes == ("ape", "bee", "cat")
    assert sorted(entry.label for entry in index.split("val")) == [0, 0, 1, 1, 2, 2]
    assert all(entry.path.startswith(index.classes[entry.label]) for entry in index.entries)


@pytest.mark.parametrize("videos", [2, 3, 9])
def test_small_folders_hold_out_one_video(tmp_path: Path, video: bytes, videos: int) -> None:
    index = build_index(fill(tmp_path / "d", [f"{n}.mp4" for n in range(videos)], video))
    assert len(index.split("val")) == 1
    assert len(index.split("train")) == videos - 1


def test_small_classes_keep_a_training_video(tmp_path: Path, video: bytes) -> None:
    names = [f"{c}/{n}.mp4" for c in range(15) for n in range(1 + c % 3)]
    index = build_index(fill(tmp_path / "d", names, video))
    assert {entry.label for entry in index.split("train")} == set(range(15))
    assert 1 <= len(index.split("val")) <= 6


def test_a_single_video_gives_its_last_tenth(tmp_path: Path, video: bytes) -> None:
    index = build_index(fill(tmp_path / "d", ["a.mp4"], video))
    (train,), (val,) = index.split("train"), index.split("val")
    assert (train.first, train.stop, val.first, val.stop) == (0, 18, 18, 20)


@pytest.mark.parametrize("second", ["val", "test"])
def test_split_folders_are_used_and_train_numbers_the_classes(
    tmp_path: Path, video: bytes, second: str
) -> None:
    names = ["train/b/0.mp4", "train/a/0.mp4", f"{second}/b/1.mp4", "other/c/0.mp4"]
    index = build_index(fill(tmp_path / "d", names, video))
    assert index.classes == ("a", "b")
    assert [(e.path, e.label) for e in index.split("val")] == [(f"{second}/b/1.mp4", 1)]
    assert [e.path for e in index.split("train")] == ["train/a/0.mp4", "train/b/0.mp4"]


def test_val_goes_before_test(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["train/0.mp4", "val/0.mp4", "test/0.mp4"], video)
    assert [entry.path for entry in build_index(root).split("val")] == ["val/0.mp4"]


def test_an_unseen_validation_class_is_an_error_that_names_it(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["train/a/0.mp4", "test/zebra/0.mp4"], video)
    with pytest.raises(DataError, match="zebra"):
        build_index(root)


def test_folders_of_frames_are_videos_beside_video_files(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["train/a/clip.mp4", "val/a/0.mp4"], video)
    fill(root, ["train/a/cover.jpg", "train/readme.txt", "train/a/.hidden.mp4"], b"")
    for number in range(3):
        write_png(root / "train" / "a" / "frames" / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    index = build_index(root)
    assert index.problems == ()
    assert [(entry.path, entry.kind) for entry in index.split("train")] == [
        ("train/a/clip.mp4", "file"),
        ("train/a/frames", "frames"),
    ]


def test_a_folder_that_directly_holds_frames_is_one_video(tmp_path: Path) -> None:
    for number in range(20):
        write_png(tmp_path / "d" / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    index = build_index(tmp_path / "d")
    assert [(entry.path, entry.first, entry.stop) for entry in index.entries] == [
        (".", 0, 18),
        (".", 18, 20),
    ]


def test_bad_files_are_named_and_left_out_or_with_strict_an_error(
    tmp_path: Path, video: bytes
) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)
    fill(root, ["empty.mp4"], b"")
    fill(root, ["text.webm"], b"hello\n" * 100)
    (root / "dangling.mp4").symlink_to(root / "nowhere.mp4")
    for _ in range(2):  # probed, then from the cache
        index = build_index(root)
        assert [entry.path for entry in index.entries] == ["a.mp4", "b.mp4"]
        assert [problem.path for problem in index.problems] == [
            "dangling.mp4",
            "empty.mp4",
            "text.webm",
        ]
        assert index.problems[1].reason == "empty file"
        with pytest.raises(DataError, match="dangling.mp4"):
            build_index(root, strict=True)


def test_nothing_to_read_is_an_error_with_the_path(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "bad", ["a.mp4", "b.mp4"], b"")
    with pytest.raises(DataError, match="none of its 2 videos"):
        build_index(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no videos"):
        build_index(tmp_path / "empty")
    with pytest.raises(DataError, match="no such folder"):
        build_index(tmp_path / "missing")
    with pytest.raises(DataError, match="not a folder"):
        build_index(fill(tmp_path, ["a.mp4"], video) / "a.mp4")


def test_the_index_is_cached_outside_of_the_dataset_until_a_file_changes(
    tmp_path: Path, video: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "d", ["x/a.mp4", "x/b.mp4", "y/a.mp4", "y/bad.mp4"], video)
    (root / "y" / "bad.mp4").write_bytes(b"")
    calls: list[tuple[int, int]] = []
    first = build_index(root, progress=lambda *count: calls.append(count))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again = build_index(root, progress=lambda *count: calls.append(count))
    assert len(calls) == 4
    assert (first.problems, first.classes) == (again.problems, again.classes)
    for one, other in zip(first.entries, again.entries, strict=True):
        assert (one.path, one.split, one.label, one.first, one.stop) == (
            other.path, other.split, other.label, other.first, other.stop,
        )  # fmt: skip
        assert np.array_equal(one.info.times, other.info.times)
        assert np.array_equal(one.info.keys, other.info.keys)
        assert vars(one.info).keys() == vars(other.info).keys()
        assert (one.info.width, one.info.rate) == (other.info.width, other.info.rate)
    os.utime(root / "x" / "a.mp4", (1, 1))
    build_index(root, progress=lambda *count: calls.append(count))
    assert len(calls) == 8
    assert not [path for path in root.rglob("*") if path.is_file() and path.suffix != ".mp4"]
    assert not [path for path in cache.rglob("*") if path.suffix == ".part"]


def test_a_damaged_or_unwritable_cache_is_only_a_warning(
    tmp_path: Path, video: bytes, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)
    build_index(root)
    (stored,) = (cache / "index").iterdir()
    stored.write_bytes(stored.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        assert len(build_index(root).entries) == 2
        assert "damaged" in caplog.text
        stored.unlink()
        (cache / "index").rmdir()
        (cache / "index").touch()
        assert len(build_index(root).entries) == 2
    assert "cannot be written" in caplog.text


def test_links_that_lead_back_up_do_not_loop(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["a/0.mp4", "a/1.mp4"], video)
    (root / "a" / "up").symlink_to(root)
    assert [entry.path for entry in build_index(root).entries] == ["a/0.mp4", "a/1.mp4"]


def test_the_cache_lies_where_the_user_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.cache_folder() == Path(os.environ["TATS_CACHE"])
    monkeypatch.delenv("TATS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert module.cache_folder() == Path("/x/tats")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert module.cache_folder() == Path.home() / ".cache" / "tats"


def test_without_classes_whole_videos_are_held_out_across_folders(
    tmp_path: Path, video: bytes
) -> None:
    index = build_index(fill(tmp_path / "d", ["0.mp4", "a/1.mp4", "b/2.mp4"], video))
    assert index.classes == ()
    assert len(index.split("val")) == 1
    assert {(entry.first, entry.stop) for entry in index.entries} == {(0, 20)}


def test_where_each_class_has_one_video_every_class_is_still_trained_on(
    tmp_path: Path, video: bytes
) -> None:
    index = build_index(fill(tmp_path / "d", ["a/1.mp4", "b/2.mp4", "c/3.mp4"], video))
    assert {entry.label for entry in index.split("train")} == {0, 1, 2}
    assert {entry.first for entry in index.split("val")} == {18}
