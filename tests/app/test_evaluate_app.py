"""Distances between folders: the network itself once, the handling of folders with a cheap one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_app import (
    CheapNetwork,
    Notes,
    broken,
    encode_config,
    gpt_config,
    long_config,
    vqgan_config,
)

import tatscli
from tatscli.app import evaluate as module
from tatscli.app import sample
from tatscli.app.encode import encode
from tatscli.app.evaluate import evaluate_fvd
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.config.evaluate import FVDConfig
from tatscli.core.data.video import write_video
from tatscli.errors import CheckpointError, DataError


def options(**changes: Any) -> FVDConfig:
    base = {"features": "random", "frames": 9, "resolution": 8, "workers": 0, "cache": False}
    return FVDConfig.model_validate({"fvd": base | changes, "compute": {"device": "cpu"}})


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Network", CheapNetwork)


def write(folder: Path, count: int, side: int = 16, frames: int = 12, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(count):
        noise = rng.integers(0, 255, (frames, side, side, 3), np.uint8)
        write_video(folder / f"v{number}.mkv", noise, 8, lossless=True)
    return folder


def test_from_videos_to_a_distance(data: Path, tmp_path: Path) -> None:
    vqgan = train_vqgan(vqgan_config(data, tmp_path / "v", train={"max_steps": 1})).run
    tokens = encode(encode_config(data, tmp_path / "t", vqgan)).folder
    gpt = train_gpt(gpt_config(tokens, tmp_path / "g", train={"max_steps": 1})).run
    made = sample.long(
        long_config(gpt, tmp_path / "s", sample={"samples": 2, "lossless": True},
                    window={"length": 16, "frames": 9})
    )  # fmt: skip
    notes = Notes()
    result = evaluate_fvd(data / "test", made.folder, options(), notes)
    assert result.measure == "random-feature distance"
    assert (result.real_videos, result.fake_videos, result.skipped) == (2, 2, [])
    assert result.value > 0
    assert any("not an FVD" in warning for warning in notes.warnings)
    again = evaluate_fvd(data / "test", made.folder, options())
    assert again.value == result.value


@pytest.mark.usefixtures("cheap")
def test_a_folder_is_at_no_distance_from_itself(data: Path) -> None:
    result = evaluate_fvd(data, data, options())
    assert result.value == pytest.approx(0, abs=1e-6)
    assert result.real_videos == result.fake_videos == 6


@pytest.mark.usefixtures("cheap")
def test_the_listing_decides_what_is_a_sample(tmp_path: Path) -> None:
    real = write(tmp_path / "real", 3)
    fake = write(tmp_path / "fake", 4, seed=1)
    bare = evaluate_fvd(real, fake, options())
    assert bare.fake_videos == 4
    listing = {"samples": [{"file": f"v{n}.mkv"} for n in range(3)]}
    (fake / "samples.json").write_text(json.dumps(listing))
    assert evaluate_fvd(real, fake, options()).fake_videos == 3
    # The grid, which is in the way of no comparison.
    shutil.copy(fake / "v3.mkv", fake / "grid.mkv")
    listed = evaluate_fvd(real, fake, options())
    (fake / "grid.mkv").unlink()
    (fake / "v3.mkv").unlink()
    (fake / "samples.json").unlink()
    assert listed.value == evaluate_fvd(real, fake, options()).value != bare.value


@pytest.mark.usefixtures("cheap")
def test_lossless_files_are_preferred(tmp_path: Path) -> None:
    real = write(tmp_path / "real", 3)
    fake = write(tmp_path / "fake", 3, seed=1)
    write(fake / "lossless", 3)
    listing = [{"file": f"v{n}.mkv", "lossless": f"lossless/v{n}.mkv"} for n in range(3)]
    (fake / "samples.json").write_text(json.dumps({"samples": listing}))
    assert evaluate_fvd(real, fake, options(frames=12)).value == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("content", ["{", "[]", '{"samples": [1]}', '{"samples": [{}]}'])
def test_a_damaged_listing_is_an_error_with_its_path(tmp_path: Path, content: str) -> None:
    real, fake = write(tmp_path / "real", 2), write(tmp_path / "fake", 2)
    (fake / "samples.json").write_text(content)
    with pytest.raises(DataError, match=r"fake/samples\.json is damaged"):
        evaluate_fvd(real, fake, options())


@pytest.mark.usefixtures("cheap")
def test_a_missing_sample_is_not_passed_over(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 3), write(tmp_path / "fake", 3)
    listing = {"samples": [{"file": f"v{n}.mkv"} for n in range(4)]}
    (fake / "samples.json").write_text(json.dumps(listing))
    notes = Notes()
    result = evaluate_fvd(real, fake, options(), notes)
    assert result.fake_videos == 3
    assert any("v3.mkv" in line and "not there" in line for line in result.skipped)
    assert any("v3.mkv" in line for line in notes.warnings)
    with pytest.raises(DataError, match=r"v3\.mkv"):
        evaluate_fvd(real, fake, options(strict=True))


@pytest.mark.usefixtures("cheap")
def test_mixed_sizes_name_two_files_and_the_option(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 2), write(tmp_path / "fake", 2, side=24)
    with pytest.raises(DataError) as caught:
        evaluate_fvd(real, fake, options(resolution=0))
    message = caught.value.message
    assert "16x16" in message
    assert "24x24" in message
    assert message.count(".mkv") == 2
    assert "--resolution" in caught.value.hint
    assert evaluate_fvd(real, fake, options()).resolution == 8
    assert evaluate_fvd(real, real, options(resolution=0)).value == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("cheap")
def test_what_cannot_be_used_is_named_and_counted(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 3), write(tmp_path / "fake", 2)
    write(real / "short", 1, frames=5)
    (real / "text.mp4").write_text("no video")
    notes = Notes()
    result = evaluate_fvd(real, fake, options(), notes)
    assert (result.real_videos, result.fake_videos) == (3, 2)
    assert len(result.skipped) == 2
    for name in ("short/v0.mkv", "text.mp4"):
        assert any(name in line for line in result.skipped)
        assert any(name in line for line in notes.warnings)
    with pytest.raises(DataError, match=r"text\.mp4|short/v0\.mkv"):
        evaluate_fvd(real, fake, options(strict=True))


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_that_cannot_be_decoded_are_an_error(tmp_path: Path, workers: int) -> None:
    real, fake = write(tmp_path / "real", 4), write(tmp_path / "fake", 3)
    damaged = broken(real / "v1.mkv", tmp_path / "scratch.mp4")
    (real / "v1.mkv").write_bytes(damaged)
    result = evaluate_fvd(real, fake, options(frames=12, workers=workers))
    assert (result.real_videos, len(result.skipped)) == (3, 1)
    assert result.value == evaluate_fvd(real, fake, options(frames=12)).value
    (real / "v2.mkv").write_bytes(damaged)
    with pytest.raises(DataError, match=r"^2 of 4 videos of .*real .*--max-bad 0\.4.*v1\.mkv"):
        evaluate_fvd(real, fake, options(frames=12, workers=workers, max_bad=0.4))
    with pytest.raises(DataError, match=r"v1\.mkv") as caught:
        evaluate_fvd(real, fake, options(frames=12, workers=workers, strict=True))
    assert "--strict" in caught.value.hint


@pytest.mark.usefixtures("cheap")
def test_one_video_is_too_few(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", 1), write(tmp_path / "two", 2)
    with pytest.raises(DataError, match="at least 2 videos on each side, got 1 and 2"):
        evaluate_fvd(one, two, options())


@pytest.mark.usefixtures("cheap")
def test_a_limit_is_a_fixed_choice(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 6), write(tmp_path / "fake", 6, seed=1)
    values = {evaluate_fvd(real, fake, options(limit=3, seed=s)).value for s in (0, 0, 1)}
    assert len(values) == 2
    assert evaluate_fvd(real, fake, options(limit=3)).real_videos == 3


@pytest.mark.usefixtures("cheap")
def test_the_stride_is_that_of_the_real_videos(tmp_path: Path) -> None:
    ramp = np.arange(17, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    for number in range(2):
        write_video(tmp_path / "real" / f"{number}.mkv", ramp + 9 * number, 8, lossless=True)
        write_video(tmp_path / "fake" / f"{number}.mkv", ramp[::2] + 9 * number, 8, lossless=True)
    real, fake = tmp_path / "real", tmp_path / "fake"
    assert evaluate_fvd(real, fake, options(), real_stride=2).value < 1e-3
    assert evaluate_fvd(real, fake, options()).value > 1e-2


def test_without_the_weights_the_message_says_how_to_get_them(data: Path) -> None:
    with pytest.raises(CheckpointError, match="missing") as caught:
        tatscli.fvd(data, data, frames=9, device="cpu")
    assert "tats weights fetch i3d" in caught.value.hint


@pytest.mark.usefixtures("cheap")
def test_the_function_gives_the_number(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tatscli.fvd(data / "train", data / "test", frames=9, resolution=8, device="cpu")
    assert found == evaluate_fvd(data / "train", data / "test", options(features="i3d")).value > 0


def ramps(folder: Path, rate: float, frames: slice) -> Path:
    """Two videos that brighten evenly: some frames of one second at 32 per second."""
    ramp = np.arange(32, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    for number in range(2):
        write_video(folder / f"{number}.mkv", (ramp + 9 * number)[frames], rate, lossless=True)
    return folder


@pytest.mark.usefixtures("cheap")
def test_sides_at_different_speeds_are_warned_of_unless_a_rate_is_given(tmp_path: Path) -> None:
    real = ramps(tmp_path / "real", 32, slice(None))
    fake = ramps(tmp_path / "fake", 16, slice(None, None, 2))

    def warned(**settings: Any) -> bool:
        notes = Notes()
        evaluate_fvd(real, fake, options(**settings), notes)
        return any("--frame-rate" in warning for warning in notes.warnings)

    assert warned()
    assert not warned(frame_rate=16)
    notes = Notes()
    matched = evaluate_fvd(real, fake, options(), notes, real_rate=16)
    assert not any("--frame-rate" in warning for warning in notes.warnings)
    assert matched.value < evaluate_fvd(real, fake, options()).value
