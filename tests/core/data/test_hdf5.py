import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from tatscli.config.data import ClipConfig
from tatscli.core.data.clips import ClipSource, FixedClips, every_clip
from tatscli.core.data.index import build_index
from tatscli.core.data.video import probe, read_frames
from tatscli.errors import DataError


def store(path: Path, **datasets: Any) -> Path:
    """A file of the given datasets; numbers stand for frames of 8 x 12 that show them."""
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            if name.endswith("_data") and isinstance(values, range):
                frames = np.array(values, np.uint8)[:, None, None, None]
                file[name] = np.broadcast_to(frames, (len(values), 8, 12, 3))
            else:
                file[name] = values
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Videos of 4, 6 and 4 frames, and one of 5."""
    return store(
        tmp_path / "a.h5",
        train_data=range(14),
        train_idx=[0, 4, 10],
        test_data=range(100, 105),
        test_idx=[0],
    )


def test_every_frame_of_every_video_is_reached(file: Path) -> None:
    index = build_index(file)
    assert index.root == file
    assert (index.classes, index.problems) == ((), ())
    assert {entry.kind for entry in index.entries} == {"hdf5"}
    shown = {
        entry.path: read_frames(index.root / entry.path, entry.info, range(entry.stop))
        for entry in index.entries
    }
    assert {path: frames[:, 0, 0, 0].tolist() for path, frames in shown.items()} == {
        "test/0": [100, 101, 102, 103, 104],
        "train/0": [0, 1, 2, 3],
        "train/1": [4, 5, 6, 7, 8, 9],
        "train/2": [10, 11, 12, 13],
    }
    assert [entry.path for entry in index.split("val")] == ["test/0"]


def test_clips_as_long_as_their_video_are_valid(file: Path) -> None:
    index = build_index(file)
    clip = ClipConfig(resolution=8, sequence_length=4)
    source = ClipSource(index.split("train"), index.root, clip)
    assert source.starts.tolist() == [1, 3, 1]
    assert source.problems == ()


def test_a_video_is_found_by_its_path(file: Path) -> None:
    info = probe(file / "train" / "1")
    assert (len(info.times), info.width, info.height, info.rate) == (6, 12, 8, 25.0)
    assert info.times[1] == 1 / 25
    frames = read_frames(file / "train" / "1", info, [5, 0, 0, 3], 4)
    assert frames.shape == (4, 4, 4, 3)
    assert frames[:, 0, 0, 0].tolist() == [9, 4, 4, 7]
    with pytest.raises(DataError, match=r"train/3: no such video; train_idx has 3 entries"):
        probe(file / "train" / "3")


def test_a_folder_may_be_called_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.h5" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="No such file"):
        probe(tmp_path / "a.h5" / "train" / "0")


def test_worker_processes_read_after_their_parent_did(file: Path) -> None:
    index = build_index(file)
    clip = ClipConfig(resolution=8, sequence_length=4)
    source = ClipSource(index.split("train"), index.root, clip)
    clips = FixedClips(source, every_clip(source, 4))
    own = [clip.video.mean().item() for clip in clips]
    loader: Any = DataLoader(clips, num_workers=2, multiprocessing_context="fork")
    spawned = pickle.loads(pickle.dumps(clips))
    assert [clip.video.mean().item() for clip in spawned] == own
    assert [batch.video.mean().item() for batch in loader] == pytest.approx(own)


def test_labels_are_classes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    file = store(
        tmp_path / "a.hdf5",
        train_data=range(4),
        train_idx=range(4),
        train_label=[10, 2, -1, 2],
        test_data=range(2),
        test_idx=range(2),
        test_labels=[2, 10],
    )
    index = build_index(file)
    assert index.classes == ("2", "10")
    assert [entry.label for entry in index.split("train")] == [1, 0, -1, 0]
    assert [entry.label for entry in index.split("val")] == [0, 1]


@pytest.mark.parametrize("kind", ["S3", None])
def test_names_of_classes_may_be_text(tmp_path: Path, kind: str | None) -> None:
    names = ["dog", "cat", "dog", "cat"]
    labels = np.array(names, kind) if kind else names
    file = store(tmp_path / "a.h5", train_data=range(4), train_idx=range(4), train_labels=labels)
    index = build_index(file)
    assert index.classes == ("cat", "dog")
    assert {(entry.path, entry.label) for entry in index.entries} == {
        (f"train/{n}", int(name == "dog")) for n, name in enumerate(names)
    }


def test_without_test_videos_a_tenth_is_held_out(tmp_path: Path) -> None:
    file = store(tmp_path / "a.h5", train_data=range(60), train_idx=range(0, 60, 3))
    index = build_index(file)
    assert (len(index.split("train")), len(index.split("val"))) == (18, 2)
    single = build_index(store(tmp_path / "b.h5", train_data=range(20), train_idx=[0]))
    assert [(entry.first, entry.stop) for entry in single.entries] == [(0, 18), (18, 20)]


def test_the_end_of_the_last_video_may_be_listed(tmp_path: Path) -> None:
    file = store(tmp_path / "a.h5", train_data=range(6), train_idx=[0, 2, 6])
    assert {entry.path for entry in build_index(file).entries} == {"train/0", "train/1"}
    with pytest.raises(DataError, match="no such video"):
        probe(file / "train" / "2")


GOOD: dict[str, Any] = {"train_data": range(6), "train_idx": [0, 2]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_data": None}, "no dataset train_data; it has train_idx"),
        ({"train_idx": None}, "no dataset train_idx; it has train_data"),
        ({"test_data": range(2)}, "no dataset test_idx"),
        (
            {"train_data": np.zeros((6, 8, 8, 3))},
            r"train_data is float64 \(6, 8, 8, 3\), not uint8",
        ),
        ({"train_data": np.zeros((6, 8, 8), np.uint8)}, r"train_data is uint8 \(6, 8, 8\)"),
        ({"train_data": range(0)}, r"train_data is uint8 \(0, 8, 12, 3\)"),
        ({"train_idx": [0.0, 2.0]}, r"train_idx is float64 \(2,\), not integers"),
        ({"train_idx": [[0, 2]]}, r"train_idx is int64 \(1, 2\), not integers"),
        ({"train_idx": [0, 4, 2]}, "train_idx does not increase: 2 at 2 comes after 4"),
        ({"train_idx": [0, 0]}, "train_idx does not increase: 0 at 1 comes after 0"),
        ({"train_idx": [-1, 2]}, r"train_idx\[0\] is -1, outside of the 6 frames"),
        ({"train_idx": [0, 9]}, r"train_idx\[1\] is 9, outside of the 6 frames"),
        ({"train_label": [1]}, "1 train labels for 2 videos"),
        ({"train_label": [0.5, 1]}, r"train_label is float64 \(2,\)"),
        (
            {"train_label": [0, 1], "test_data": range(2), "test_idx": [0]},
            "its train videos have labels, the others none",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_numbers(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    datasets = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(DataError, match=f"a.h5: {said}"):
        build_index(store(tmp_path / "a.h5", **datasets))


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("no HDF5")
    with pytest.raises(DataError, match=r"a\.h5: cannot be read: .*signature"):
        build_index(tmp_path / "a.h5")
    with pytest.raises(DataError, match=r"b\.h5: no such file"):
        build_index(tmp_path / "b.h5")


def test_a_file_that_has_changed_is_an_error_with_both_lengths(file: Path) -> None:
    info = probe(file / "train" / "1")
    store(file, train_data=range(14), train_idx=[0, 4, 9])
    with pytest.raises(DataError, match=r"train/1: has 5 frames now, and had 6"):
        read_frames(file / "train" / "1", info, [0])


def test_without_h5py_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="h5py, which reads HDF5 files, is not installed") as caught:
        build_index(file)
    assert caught.value.hint == 'pip install "tatscli[hdf5]"'
