import logging
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tatscli.config.data import ClipConfig
from tatscli.core.data import index as module
from tatscli.core.data.clips import Address, ClipSource
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
    assert index.divided == 1
    assert build_index(fill(tmp_path / "e", ["a.mp4", "b.mp4"], video)).divided == 0


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


def test_a_class_that_is_not_trained_on_has_a_name_and_no_id(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["train/z/0.mp4", "test/ape/0.mp4", "test/z/1.mp4"], video)
    index = build_index(root)
    assert (index.classes, index.untrained) == (("z",), ("ape",))
    assert [(e.path, e.label) for e in index.split("val")] == [
        ("test/ape/0.mp4", -1),
        ("test/z/1.mp4", 0),
    ]


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


def test_a_damaged_cache_is_only_told_and_an_unwritable_one_warned_of(
    tmp_path: Path, video: bytes, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)
    build_index(root)
    (stored,) = (cache / "index").iterdir()
    stored.write_bytes(stored.read_bytes()[:-40])
    with caplog.at_level(logging.INFO):
        assert len(build_index(root).entries) == 2
        assert "damaged" in caplog.text
        stored.unlink()
        (cache / "index").rmdir()
        (cache / "index").touch()
        assert len(build_index(root).entries) == 2
    told = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == [logging.INFO, logging.WARNING]
    assert "cannot be written" in told[1][1]
    assert "TATS_CACHE names another folder" in told[1][1]


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


def manifest(root: Path, text: str, name: str = "m.csv") -> Path:
    (root / name).write_text(text)
    return root / name


def test_a_manifest_names_videos_with_splits_and_classes(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["x/a.mp4", "b.mp4", "c.mp4", "unlisted.mp4"], video)
    write_png(root / "frames" / "0.png", np.zeros((8, 8, 3), np.uint8))
    elsewhere = fill(tmp_path / "e", ["e.mp4"], video) / "e.mp4"
    rows = [
        "x/./a.mp4,train,dog",
        "b.mp4,train,cat",
        "c.mp4,validation,dog",
        "frames,train,",
        f"{elsewhere},val,",
    ]
    index = build_index(manifest(root, "path,split,label\n" + "\n".join(rows)))
    assert (index.root, index.classes, index.problems) == (root, ("cat", "dog"), ())
    assert [(e.path, e.kind, e.split, e.label) for e in index.entries] == [
        (str(elsewhere), "file", "val", -1),
        ("b.mp4", "file", "train", 0),
        ("c.mp4", "file", "val", 1),
        ("frames", "frames", "train", -1),
        ("x/a.mp4", "file", "train", 1),
    ]
    assert index.root / index.entries[0].path == elsewhere


def test_a_part_of_a_video_is_the_frames_from_start_up_to_end(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)  # 20 frames, 8 a second
    text = "path,split,start,end\na.mp4,train,,0.5\na.mp4,train,0.5,\na.mp4,val,.51,9\nb.mp4,val,,"
    index = build_index(manifest(root, text))
    assert [(e.path, e.split, e.first, e.stop) for e in index.entries] == [
        ("a.mp4", "train", 0, 4),
        ("a.mp4", "train", 4, 20),
        ("a.mp4", "val", 5, 20),
        ("b.mp4", "val", 0, 20),
    ]


def test_a_video_of_several_rows_is_probed_once_and_cached(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)
    file = manifest(root, "path,start,split\na.mp4,0,train\na.mp4,1,train\nb.mp4,,val\n")
    calls: list[tuple[int, int]] = []
    for _ in range(2):
        index = build_index(file, progress=lambda *count: calls.append(count))
        assert len(index.entries) == 3
        assert calls == [(1, 2), (2, 2)]
    os.utime(root / "b.mp4", (1, 1))
    build_index(file, progress=lambda *count: calls.append(count))
    assert len(calls) == 4


def test_what_a_manifest_names_in_vain_is_left_out_or_with_strict_an_error(
    tmp_path: Path, video: bytes
) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)
    (root / "empty").mkdir()
    text = "path,start\na.mp4,\nb.mp4,\ngone*.mp4,\nempty,\nb.mp4,2.5\n"
    index = build_index(manifest(root, text))
    assert [(problem.path, problem.reason) for problem in index.problems] == [
        ("empty", "no images in it"),
        ("gone*.mp4", "No such file or directory"),
        ("b.mp4", "no frame at 2.5 s or later, as line 6 of m.csv wants; its last is at 2.375 s"),
    ]
    assert [entry.path for entry in index.entries] == ["a.mp4", "b.mp4"]
    with pytest.raises(DataError, match="d/empty: no images in it"):
        build_index(root / "m.csv", strict=True)
    with pytest.raises(DataError, match=r"n.csv: none of its 1 videos .* x.mp4: No such"):
        build_index(manifest(root, "path\nx.mp4\n", "n.csv"))


def test_a_manifest_without_splits_holds_out_a_tenth_of_each_class(
    tmp_path: Path, video: bytes
) -> None:
    names = [f"{n}.mp4" for n in range(40)]
    root = fill(tmp_path / "d", names, video)
    for split in ("", "train"):  # the latter leaves nothing for validation either
        rows = [f"{name},{split},{'ape' if n < 20 else ''}" for n, name in enumerate(names)]
        index = build_index(manifest(root, "path,split,label\n" + "\n".join(rows)))
        assert index.classes == ("ape",)
        assert sorted(entry.label for entry in index.split("val")) == [-1, -1, 0, 0]


def test_all_parts_of_a_video_are_held_out_together(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", [f"{n}.mp4" for n in range(5)], video)
    (root / "link.mp4").symlink_to(root / "0.mp4")
    (root / "1.mp4").unlink()
    os.link(root / "0.mp4", root / "1.mp4")
    names = ["0", "1", "2", "3", "4", "link"]
    rows = [f"{name}.mp4,{start},{start}" for name in names for start in range(3)]
    index = build_index(manifest(root, "path,start,label\n" + "\n".join(rows)))
    of = {name: {e.split for e in index.entries if e.path == f"{name}.mp4"} for name in names}
    assert len(index.entries) == 18
    assert all(len(splits) == 1 for splits in of.values())
    assert of["0"] == of["1"] == of["link"]
    assert index.split("val")


def test_rows_without_a_split_follow_their_video_or_the_hash(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", [f"{n}.mp4" for n in range(32)], video)
    rows = ["0.mp4,val,0", "0.mp4,,1", "1.mp4,train,0", "1.mp4,,1"]
    rows += [f"{n}.mp4,,0" for n in range(2, 32)]
    index = build_index(manifest(root, "path,split,start\n" + "\n".join(rows)))
    assert {(e.path, e.split) for e in index.entries if e.path in ("0.mp4", "1.mp4")} == {
        ("0.mp4", "val"),
        ("1.mp4", "train"),
    }
    assert len(index.split("val")) == 2 + 3
    text = "path,split,start\n0.mp4,val,0\n0.mp4,train,1\n0.mp4,,2\n"
    with pytest.raises(DataError, match=r"m\.csv, line 4: split is empty, .* 0\.mp4"):
        build_index(manifest(root, text))


def test_a_class_that_one_video_shows_is_never_held_out(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", [f"{n}.mp4" for n in range(9)], video)
    rows = [f"{n}.mp4,0,all\n{n}.mp4,1,{n if n != 4 else 5}" for n in range(9)]
    index = build_index(manifest(root, "path,start,label\n" + "\n".join(rows)))
    assert {entry.path for entry in index.split("val")} <= {"4.mp4", "5.mp4"}
    assert len(index.split("val")) == 2
    assert len(index.classes) == 9


def test_parts_of_a_single_video_give_their_last_tenths_and_none_leaks(
    tmp_path: Path, video: bytes
) -> None:
    root = fill(tmp_path / "d", ["a.mp4"], video)
    text = "path,start,end\na.mp4,0,1.25\na.mp4,1.25,2.5\n"
    index = build_index(manifest(root, text))
    assert [(e.split, e.first, e.stop) for e in index.entries] == [
        ("train", 0, 9), ("val", 9, 10), ("train", 10, 19), ("val", 19, 20),
    ]  # fmt: skip
    index = build_index(manifest(root, "path,start,end\na.mp4,0,1.25\na.mp4,1,2.5\n"))
    assert [(e.split, e.first, e.stop) for e in index.entries] == [
        ("train", 0, 10), ("train", 8, 18), ("val", 18, 20),
    ]  # fmt: skip


def test_rows_for_testing_are_set_aside_where_others_validate(
    tmp_path: Path, video: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4", "c.mp4"], video)
    text = "path,split\na.mp4,train\nb.mp4,test\n"
    assert [e.path for e in build_index(manifest(root, text)).split("val")] == ["b.mp4"]
    with caplog.at_level(logging.WARNING):
        index = build_index(manifest(root, text + "c.mp4,val\n"))
    assert [e.path for e in index.split("val")] == ["c.mp4"]
    assert "the 1 rows of test are left out" in caplog.text


def test_a_class_of_a_manifest_that_is_not_trained_on_has_no_id(
    tmp_path: Path, video: bytes
) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)
    index = build_index(manifest(root, "path,split,label\na.mp4,train,ape\nb.mp4,val,zebra\n"))
    assert (index.classes, index.untrained) == (("ape",), ("zebra",))
    assert [entry.label for entry in index.entries] == [0, -1]


def test_captions_and_sound_lie_beside_their_videos(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["val/a.b.mp4", "train/x/c.mp4", "train/d.mp4"], video)
    for name in ("train/x/f.1", "val/f.1"):
        write_png(root / name / "0.png", np.zeros((8, 8, 3), np.uint8))
    fill(root, ["val/a.b.WAV", "train/x/f.1.wav", "train/c.wav", "val/f.1/f.1.wav"], b"RIFF")
    fill(root, ["val/a.b.txt"], b"\xef\xbb\xbfA  cat\tsits\r\n\r\n caf\xc3\xa9 \n")
    fill(root, ["train/x/f.1.txt"], "ein Gerät\nzwei".encode())
    fill(root, ["train/d.txt", "train/x.txt"], b"")
    found = {e.path: (e.captions, e.sound, e.has_sound) for e in build_index(root).entries}
    assert found == {
        "train/d.mp4": ((), "", False),
        "train/x/c.mp4": ((), "", False),
        "train/x/f.1": (("ein Gerät", "zwei"), "train/x/f.1.wav", True),
        "val/a.b.mp4": (("A cat sits", "café"), "val/a.b.WAV", True),
        "val/f.1": ((), "", False),
    }


def test_captions_are_read_anew_though_the_index_is_cached(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)
    calls: list[tuple[int, int]] = []
    for text in ("one", "two"):
        (root / "a.txt").write_text(text)
        index = build_index(root, progress=lambda *count: calls.append(count))
        assert index.entries[0].captions == (text,)
    assert len(calls) == 2


def test_a_dataset_that_is_one_folder_of_frames_has_them_beside_it(tmp_path: Path) -> None:
    write_png(tmp_path / "d" / "0.png", np.zeros((8, 8, 3), np.uint8))
    fill(tmp_path, ["d.txt"], b"a square")
    fill(tmp_path, ["d.wav"], b"RIFF")
    entry = build_index(tmp_path / "d").entries[0]
    assert entry.captions == ("a square",)
    assert (tmp_path / "d" / entry.sound).samefile(tmp_path / "d.wav")


def test_the_captions_of_a_row_go_before_those_beside_its_video(
    tmp_path: Path, video: bytes
) -> None:
    root = fill(tmp_path / "d", ["x/a.mp4", "x/b.mp4"], video)
    away = fill(tmp_path / "e", ["c.mp4"], video)
    fill(root, ["x/a.txt", "x/b.txt"], b"from the file")
    fill(away, ["c.txt"], b"far away")
    fill(away, ["c.wav"], b"RIFF")
    text = f"path,caption\nx/a.mp4,one\nx/b.mp4,\n{away}/c.mp4,\nx/a.mp4,two\n"
    index = build_index(manifest(root, text))
    assert {e.path: (e.captions, e.sound) for e in index.entries} == {
        "x/a.mp4": (("one", "two"), ""),
        "x/b.mp4": (("from the file",), ""),
        f"{away}/c.mp4": (("far away",), f"{away}/c.wav"),
    }


def test_what_is_no_text_is_no_caption_and_named(
    tmp_path: Path, video: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4", "c.mp4", "d.mp4"], video)
    (root / "a.txt").symlink_to(root / "nowhere")
    os.mkfifo(root / "b.txt")
    (root / "c.txt").write_bytes(b"caf\xe9 \x00\xff")
    (root / "d.txt").write_text("a café")
    found = {entry.path: entry.captions for entry in build_index(root).entries}
    assert found == {"a.mp4": (), "b.mp4": (), "c.mp4": (), "d.mp4": ("a café",)}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    for name, reason in (("a", "No such file"), ("b", "not a regular"), ("c", "can't decode")):
        assert any(f"{name}.txt holds no captions: " in one and reason in one for one in told)


def test_sound_beside_a_video_is_looked_at_when_it_is_heard(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b.mp4"], video)
    (root / "a.wav").touch()
    os.mkfifo(root / "b.wav")
    for entry, reason in zip(build_index(root).entries, ("empty", "not a regular"), strict=True):
        assert entry.has_sound
        source = ClipSource([entry], root, ClipConfig(resolution=8, sequence_length=1))
        assert source.read(Address(0, 0)).video.shape == (3, 1, 8, 8)
        with pytest.raises(DataError, match=rf"{entry.path[0]}\.wav: {reason}"):
            source.sound(Address(0, 0))


def test_a_file_that_is_no_dataset_gets_a_list_of_what_is(tmp_path: Path, video: bytes) -> None:
    with pytest.raises(DataError, match="a single file, not a folder") as caught:
        build_index(fill(tmp_path, ["a.mp4"], video) / "a.mp4")
    assert caught.value.hint.startswith(f"its folder is {tmp_path}; give a folder of videos")
    assert ".jsonl" in caught.value.hint
    assert ".hdf5" in caught.value.hint
    with pytest.raises(DataError, match=r"m\.tsv: no such file"):
        build_index(tmp_path / "m.tsv")


def test_the_sound_of_a_file_is_kept_with_the_index(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "d.mkv"), "w") as container:
        picture, sound = (
            container.add_stream("ffv1", rate=8),
            container.add_stream("aac", rate=8000),
        )
        picture.width = picture.height = 16
        container.mux(picture.encode(av.VideoFrame(16, 16, "yuv420p")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.rate = 8000
        for stream, frame in ((sound, silence), (sound, None), (picture, None)):
            container.mux(stream.encode(frame))
    root = fill(tmp_path / "d", ["a.mkv", "b.mkv"], (tmp_path / "d.mkv").read_bytes())
    for _ in range(2):
        entry = build_index(root).entries[0]
        assert (entry.info.sound, entry.sound, entry.has_sound) == (True, "", True)


def test_videos_outside_of_an_empty_split_are_counted(tmp_path: Path, video: bytes) -> None:
    root = fill(tmp_path / "d", ["a.mp4", "b/c/d.mp4"], video)
    (root / "train").mkdir()
    with pytest.raises(DataError, match="no videos in train/, .* and 2 outside") as caught:
        build_index(root)
    assert "remove train/" in caught.value.hint
    (root / "train").rmdir()
    assert len(build_index(root).entries) == 2


def test_messages_name_a_dataset_as_it_was_given(
    tmp_path: Path, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "d", ["a/a.mp4", "b/b.txt"], video)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text("path,split\na,train,1\n")
    for given in ("d/b", "gone", "d/a/a.mp4", "m.csv"):
        with pytest.raises(DataError) as caught:
            build_index(Path(given))
        assert caught.value.message.startswith((f"{given}: ", f"{given}, "))
    assert build_index(Path("d/a")).root == tmp_path / "d" / "a"


def test_the_current_folder_may_be_a_folder_of_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    (tmp_path / "frames.txt").write_text("a caption")
    monkeypatch.chdir(folder)
    assert build_index(Path()).entries[0].captions == ("a caption",)
