"""Videos in array files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tatscli.core.data.arrays import array_address, video_array
from tatscli.core.data.index import build_index
from tatscli.core.data.video import probe, read_frames
from tatscli.errors import DataError


@pytest.fixture
def videos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 10, 8, 6, 3), np.uint8)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3, 4), (0, 1, 4, 2, 3), (0, 4, 1, 2, 3)])
@pytest.mark.parametrize("kind", ["npy", "npz", "pt"])
def test_every_layout_and_kind_gives_the_frames(
    tmp_path: Path, videos: np.ndarray, axes: tuple[int, ...], kind: str
) -> None:
    file, stored = tmp_path / f"v.{kind}", np.ascontiguousarray(videos.transpose(axes))
    if kind == "pt":
        torch.save(torch.from_numpy(stored), file)
    else:
        np.savez(file, videos=stored) if kind == "npz" else np.save(file, stored)
    index = build_index(file)
    assert sorted(entry.path for entry in index.entries) == ["0", "1", "2", "3"]
    info = probe(file / "2")
    assert (len(info.times), info.height, info.width, info.is_lossless) == (10, 8, 6, True)
    assert np.array_equal(read_frames(file / "2", info, [3, 9, 0]), videos[2, [3, 9, 0]])


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_floats_are_rounded_to_the_level_that_they_were(tmp_path: Path, low: float) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(9, 1)
    exact = levels / 255 * (1 - low) + low
    # Neither float32 nor half a level of error may lose one: truncation would.
    noisy = (exact + 0.3 / 255 * (1 - low) * np.sign(0.5 - exact)).astype(np.float32)
    np.save(tmp_path / "v.npy", noisy)
    read = video_array(tmp_path / "v.npy").read(0, [0, 8])
    assert read.shape == (2, 16, 16, 3)
    assert np.array_equal(read[1, ..., 2].ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((2, 9, 8, 8), np.uint8), "not 5 axes"),
        (np.zeros((0, 9, 8, 8, 3), np.uint8), r"shape \(0, 9, 8, 8, 3\) holds no frame"),
        (np.zeros((2, 9, 8, 8, 4), np.uint8), "none of the known layouts"),
        (np.zeros((2, 3, 3, 8, 8), np.uint8), "NTCHW or NCTHW"),
        (np.zeros((2, 9, 8, 8, 3), np.int32), "int32, neither uint8 nor floats"),
        (np.linspace(-0.5, 0.5, 2 * 9 * 64 * 3).reshape(2, 9, 8, 8, 3), "from -0.5 to 0.5"),
        (np.full((2, 9, 8, 8, 3), 200.0), "from 200 to 200"),
    ],
)
def test_what_is_not_clear_is_never_guessed(tmp_path: Path, array: np.ndarray, match: str) -> None:
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(DataError, match=match) as caught:
        build_index(tmp_path / "v.npy")
    assert "uint8" in caught.value.hint


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_video_with_a_value_that_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    videos = np.zeros((3, 9, 8, 8, 3), np.float32)
    videos[1, 2, 3, 4] = value
    np.save(tmp_path / "v.npy", videos)
    with pytest.raises(DataError, match="video 1 has values that are no finite numbers"):
        build_index(tmp_path / "v.npy")


def test_empty_files_and_python_objects_are_told_in_our_words(tmp_path: Path) -> None:
    unequal = np.empty(2, object)
    unequal[:] = [np.zeros((frames, 8, 8, 3), np.uint8) for frames in (4, 5)]
    np.save(tmp_path / "objects.npy", unequal)
    np.savez(tmp_path / "objects.npz", videos=unequal)
    np.savez(tmp_path / "none.npz")
    (tmp_path / "text.npy").write_text("no array")
    objects = "Python objects, or no file of NumPy at all"
    told = {"objects.npy": objects, "objects.npz": objects, "text.npy": objects}
    told |= {"none.npz": "no array in it"}
    for kind in ("npy", "npz", "pt"):
        (tmp_path / f"empty.{kind}").touch()
        told[f"empty.{kind}"] = "empty file"
    for name, message in told.items():
        with pytest.raises(DataError) as caught:
            build_index(tmp_path / name)
        assert caught.value.message == f"{tmp_path / name}: {message}"
        assert "save uint8 of shape" in caught.value.hint
        assert ("different lengths" in caught.value.hint) == (message == objects)


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY rest")
    (tmp_path / "bad.pt").write_bytes(b"no tensor")
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    torch.save({"a": 1}, tmp_path / "dict.pt")
    for name in ("bad.npy", "bad.pt", "two.npz", "dict.pt"):
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            video_array(tmp_path / name)
    assert array_address(tmp_path / "bad.npy" / "x") is None
