"""Distances between folders: the network itself once, the handling of folders with a cheap one."""

import json
import os
import re
import shutil
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
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
from tatscli.app import fvd_features, fvd_sides, sample, signature
from tatscli.app.encode import encode
from tatscli.app.evaluate import evaluate_fvd
from tatscli.app.reporting import Silent
from tatscli.app.self_test import self_test
from tatscli.app.signature import compare_results, signature_of
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.cli.evaluate import provenance
from tatscli.config.evaluate import FVDConfig, ProtocolConfig
from tatscli.core.data.video import write_video
from tatscli.core.metrics.feature_file import FeatureSet
from tatscli.core.metrics.protocol import PROTOCOLS, Placing, Protocol
from tatscli.core.models.i3d import random_weights
from tatscli.core.ranks import Rank
from tatscli.errors import CheckpointError, ConfigError, DataError


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
def test_sampling_gives_the_number_of_the_command(
    data: Path, unconditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample.weights, "locate", lambda *_: None)
    config = long_config(unconditional, tmp_path / "s", sample={"samples": 2, "lossless": True},
                         window={"length": 16, "frames": 12},
                         real={"compute_fvd": True, "data": data, "dataset": "shapes"})  # fmt: skip
    made = sample.long(config)
    assert made.fvd is not None and made.fvd.value > 0
    found = evaluate_fvd(data, made.folder, options(features="i3d", frames=12))
    assert (made.fvd.value, made.fvd.signature) == (found.value, found.signature)
    assert (made.fvd.measure, made.fvd.real) == ("fvd", "shapes")


@pytest.mark.usefixtures("cheap")
def test_a_folder_is_at_no_distance_from_itself(data: Path) -> None:
    result = evaluate_fvd(data, data, options())
    assert result.value == pytest.approx(0, abs=1e-9)
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
def test_listings_of_folders_in_a_folder_hold_as_well(tmp_path: Path) -> None:
    real = write(tmp_path / "real", 3)
    made = tmp_path / "samples"
    for number, name in enumerate(("short", "long")):
        write(made / name, 2, seed=number + 1)
        listing = {"samples": [{"file": f"v{n}.mkv"} for n in range(2)]}
        (made / name / "samples.json").write_text(json.dumps(listing))
        shutil.copy(made / name / "v0.mkv", made / name / "grid.mkv")
    shutil.copytree(real, made / "long" / "truth")
    write(made / "others", 1, seed=7)
    (made / "others" / "samples.json").write_text('{"what": "somebody else counts"}')
    assert evaluate_fvd(real, made, options()).fake_videos == 2 + 2 + 1


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
    assert f"of {real} is 16x16" in message
    assert f"of {fake} is 24x24" in message
    assert message.count(".mkv") == 2
    assert "--resolution" in caught.value.hint
    # A file of features has the size of its videos.
    module.write_features(real, tmp_path / "real.npz", options(resolution=0))
    with pytest.raises(DataError, match=r"real\.npz is of 16x16, v\d\.mkv of .* is 24x24"):
        evaluate_fvd(tmp_path / "real.npz", fake, options(resolution=0))
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
def test_as_many_of_each_holds_although_one_turns_out_unreadable(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 4), write(tmp_path / "fake", 4, seed=1)
    (real / "v1.mkv").write_bytes(broken(real / "v1.mkv", tmp_path / "scratch.mp4"))
    found = evaluate_fvd(real, fake, options(frames=12, match_n=True))
    assert (found.real_videos, found.fake_videos, len(found.skipped)) == (3, 3, 1)
    assert not any("--match-n" in text for text in found.warnings)


@pytest.mark.usefixtures("cheap")
def test_one_video_is_too_few(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", 1), write(tmp_path / "two", 2)
    notes = Notes()
    with pytest.raises(DataError, match="at least 2 videos on each side, got 1 and 2"):
        evaluate_fvd(one, two, options(), notes)
    assert "features" not in notes.tasks  # it is said before the work, not after it


@pytest.mark.usefixtures("cheap")
def test_a_list_names_the_videos_of_a_side(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 6), write(tmp_path / "fake", 5, seed=1)
    some = tmp_path / "real.txt"
    some.write_text("\n".join(f"real/{name}.mkv" for name in ("v4", "v3", "v1", "v0", "v2")))
    found = evaluate_fvd(some, fake, options(frames=12))
    assert (found.real_videos, found.fake_videos) == (5, 5)
    (real / "v5.mkv").unlink()
    whole = evaluate_fvd(real, fake, options(frames=12))
    assert (found.value, found.standard_error) == (whole.value, whole.standard_error)


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
def test_the_function_gives_the_number_and_its_warnings(data: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = tatscli.fvd(data / "train", data / "test", frames=9, resolution=8, device="cpu")
    result = evaluate_fvd(data / "train", data / "test", options(features="i3d"))
    assert found == result.value > 0
    assert [str(one.message) for one in caught] == result.warnings != []
    assert {(one.category, one.filename) for one in caught} == {(UserWarning, __file__)}


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

    def warned(**settings: Any) -> str:
        notes = Notes()
        evaluate_fvd(real, fake, options(**settings), notes)
        return "".join(warning for warning in notes.warnings if "--frame-rate" in warning)

    assert "--frame-rate 15.99 reads both sides at that" in warned()  # of times in milliseconds
    assert not warned(frame_rate=16)
    told = f"{fake}: 2 videos of 15.99 frames per second read at 32: frames are repeated;"
    assert warned(frame_rate=32) == f"{told} --frame-rate 15.99 repeats none"
    notes = Notes()
    matched = evaluate_fvd(real, fake, options(), notes, real_rate=16)
    assert not any("--frame-rate" in warning for warning in notes.warnings)
    assert matched.value < evaluate_fvd(real, fake, options()).value


@pytest.mark.usefixtures("cheap")
def test_a_side_of_several_speeds_says_which(tmp_path: Path) -> None:
    mixed = ramps(tmp_path / "mixed", 25, slice(None))
    for number, rate in ((2, 8), (3, 25), (4, 25)):
        frames = np.full((12, 8, 8, 3), 20 * number, np.uint8)
        write_video(mixed / f"{number}.mkv", frames, rate, lossless=True)
    even = ramps(tmp_path / "even", 25, slice(None))

    def said(real: Path, fake: Path, **settings: Any) -> str:
        notes = Notes()
        evaluate_fvd(real, fake, options(**settings), notes)
        return "\n".join(notes.warnings)

    # The median of both is 25.
    assert "real videos of 8 to 25 frames per second, samples of 25: different" in said(mixed, even)
    assert "different speeds" not in said(mixed, mixed)
    assert "different speeds" not in said(mixed, even, frame_rate=10)
    found = evaluate_fvd(mixed, even, options())
    assert (found.frame_rates, found.frame_rate_ranges) == ([25, 25], [[8, 25], [25, 25]])
    assert "5 videos, 8x8, 8 to 25 fps" in provenance(found)["real"]
    assert "2 videos, 8x8, 25 fps" in provenance(found)["fake"]
    # A file of features that an older version wrote knows the median alone.
    kept = module.write_features(mixed, tmp_path / "kept.npz", options())
    del kept.about["rates"]
    kept.write(tmp_path / "old.npz")
    old = evaluate_fvd(tmp_path / "old.npz", even, options())
    assert not any("speeds" in text for text in old.warnings)
    assert "5 videos, 8x8, 25 fps" in provenance(old)["real"]


def moving(count: int, seed: int, frames: int = 9, side: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, frames, side, side, 3), np.uint8)


def lossless_mp4(file: Path, frames: np.ndarray) -> None:
    """H.264 without losses and without a way over YUV."""
    file.parent.mkdir(exist_ok=True)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264rgb", rate=8, options={"crf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.usefixtures("cheap")
def test_the_same_pixels_in_any_kind_of_file_give_the_same_number(tmp_path: Path) -> None:
    # More than ten, so that a file of them and a folder have to agree on what comes after 1.
    real, fake = write(tmp_path / "real", 12, frames=9, seed=5), moving(12, 6)
    for number, video in enumerate(fake):
        # With its suffix, it would come before v0.
        name = "v0-b" if number == 1 else f"v{number}"
        write_video(tmp_path / "mkv" / f"{name}.mkv", video, 8, lossless=True)
        for at, frame in enumerate(video):
            file = tmp_path / "png" / name / f"frame{at}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(file)
        lossless_mp4(tmp_path / "mp4" / f"{name}.mp4", video)
    np.save(tmp_path / "v.npy", fake)
    np.savez(tmp_path / "v.npz", videos=(fake / 255).astype(np.float32))
    torch.save(torch.from_numpy(fake / 127.5 - 1).permute(0, 4, 1, 2, 3), tmp_path / "v.pt")
    kinds = [tmp_path / name for name in ("mkv", "mp4", "png", "v.npy", "v.npz", "v.pt")]
    found = [evaluate_fvd(real, kind, options()) for kind in kinds]
    assert len({(one.value, one.kernel, one.standard_error) for one in found}) == 1
    assert found[0].value > 0
    # And as real videos: the signature holds what is seen, not how it is stored.
    back = [evaluate_fvd(kind, real, options()) for kind in kinds]
    assert len({one.signature for one in back}) == 1
    assert back[0].signature != found[0].signature


@pytest.mark.usefixtures("cheap")
def test_neither_listing_nor_batches_nor_readers_change_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fake = write(tmp_path / "real", 7), write(tmp_path / "fake", 7, seed=1)
    expected = evaluate_fvd(real, fake, options())
    assert (expected.real_videos, expected.fake_videos) == (7, 7)
    for changed in ({"batch_size": 1}, {"batch_size": 7}, {"workers": 2}):
        found = evaluate_fvd(real, fake, options(**changed))
        assert found.value == pytest.approx(expected.value, rel=1e-6)
        assert found.signature == expected.signature
    walk = os.walk

    def shuffled(*args: Any, **settings: Any) -> Any:
        for folder, folders, names in walk(*args, **settings):
            yield folder, folders[::-1], names[::-1]

    monkeypatch.setattr(os, "walk", shuffled)
    assert evaluate_fvd(real, fake, options()).value == expected.value


class Counted(CheapNetwork):
    """Counts the networks that were asked for."""

    asked = 0

    def of(self, protocol: Any) -> Any:
        Counted.asked += 1
        return super().of(protocol)


def test_features_are_computed_once_and_again_when_anything_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "Network", Counted)
    real, fake = write(tmp_path / "real", 4), write(tmp_path / "fake", 4, seed=1)

    def computed(**changes: Any) -> int:
        before = Counted.asked
        evaluate_fvd(real, fake, options(cache=True, batch_size=9, **changes))
        return Counted.asked - before

    first = evaluate_fvd(real, fake, options(cache=True, batch_size=9))
    assert computed() == 0
    again = evaluate_fvd(real, fake, options(cache=True, batch_size=9))
    assert (again.value, again.kernel, again.signature) == (
        first.value,
        first.kernel,
        first.signature,
    )
    assert computed(cache_by_mtime=True) == 2
    for change in ({"frames": 10}, {"seed": 1}, {"resolution": 16}, {"stride": 1, "limit": 3}):
        assert computed(**change) == 2, change
        assert computed(**change) == 0, change
    # The same content at another time is known by its content, not by its time.
    os.utime(real / "v1.mkv", (1, 1))
    assert computed() == 0
    assert computed(cache_by_mtime=True) == 1
    write_video(fake / "v2.mkv", moving(1, 77, 12)[0], 8, lossless=True)
    assert computed() == 1
    with monkeypatch.context() as other:
        other.setattr(av, "__version__", "another")
        assert computed() == 2
    for file in (tmp_path / "cache" / "features").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert computed() == 2
    assert computed() == 0


def test_an_interruption_keeps_the_sides_that_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Counted):
        left = 0

        def of(self, protocol: Any) -> Any:
            Interrupted.left -= 1
            if not Interrupted.left:
                raise KeyboardInterrupt
            return super().of(protocol)

    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "Network", Interrupted)
    real, fake = write(tmp_path / "real", 5), write(tmp_path / "fake", 5, seed=1)

    def told(left: int) -> str:
        notes = Notes()
        Interrupted.left = left  # batches: of real videos 1 to 3, of samples 4 to 6
        with pytest.raises(KeyboardInterrupt):
            evaluate_fvd(real, fake, options(batch_size=2, cache=True), notes)
        [note] = notes.notes
        return note

    assert told(3).startswith("stopped, nothing is kept: ")
    assert told(5).startswith(f"stopped; features of {real} are kept")
    assert told(2).startswith(f"stopped; features of {real} are kept")
    before = Counted.asked
    evaluate_fvd(real, fake, options(batch_size=2, cache=True))
    assert Counted.asked == before + 3


def test_a_reader_ends_at_once_with_what_it_reads_for(tmp_path: Path) -> None:
    config = options(workers=1, batch_size=2, resolution=0)
    protocol, silent = PROTOCOLS["fvd"], Silent()
    videos = write(tmp_path / "real", 8, side=64)
    side = fvd_sides.Side(videos, True, config.fvd, ["random"], 1, 0.0, silent)
    with silent.task("", "") as task:
        wanted = [fvd_features.Wanted(0, protocol)]
        extractor = fvd_features._Extractor(CheapNetwork(config), config, [side], wanted, task)
    batches = iter(extractor.start(1, Rank(0, 1, torch.device("cpu")))[0])
    next(batches)
    [reader] = batches._workers
    os.kill(reader.pid, signal.SIGINT)  # as Ctrl-C does, with the first process
    start = time.monotonic()
    reader.join(4)
    del batches
    assert not reader.is_alive()
    assert time.monotonic() - start < 4  # torch waits for 5 seconds, then kills


def test_two_that_write_the_same_features_leave_whole_files(tmp_path: Path) -> None:
    features = FeatureSet(torch.zeros(500, 400), ("a",) * 500, ("b",) * 500, {}, {})
    file, seen = tmp_path / "f.npz", []
    features.write(file)

    def again() -> None:
        for _ in range(20):
            features.write(file)
            seen.append(FeatureSet.read(file).content)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(again) for _ in range(2)]:
            done.result()
    assert seen == [features.content] * 40
    assert [*tmp_path.iterdir()] == [file]


def test_what_was_left_out_is_named_from_the_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap: None
) -> None:
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    real, fake = write(tmp_path / "real", 4), write(tmp_path / "fake", 4, seed=1)
    (real / "v1.mkv").write_bytes(broken(real / "v1.mkv", tmp_path / "scratch.mp4"))
    settings = {"cache": True, "frames": 12}
    notes = [Notes(), Notes()]
    found = [evaluate_fvd(real, fake, options(**settings), said) for said in notes]
    assert found[0].skipped == found[1].skipped and len(found[0].skipped) == 1
    for said in notes:
        assert sum("left out v1.mkv" in line for line in said.warnings) == 1
    with pytest.raises(DataError, match=r"v1\.mkv"):
        evaluate_fvd(real, fake, options(**settings, strict=True))
    with pytest.raises(DataError, match=r"--max-bad 0\.1"):
        evaluate_fvd(real, fake, options(**settings, max_bad=0.1))


@pytest.mark.usefixtures("cheap")
def test_all_protocols_are_those_that_are_named_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fake = write(tmp_path / "real", 5), write(tmp_path / "fake", 5, seed=1)
    reads = 0
    read_frames = fvd_sides.read_frames

    def counted(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        return read_frames(*args)

    monkeypatch.setattr(fvd_sides, "read_frames", counted)
    found = module.evaluate_all(real, fake, options())
    assert reads == 10
    assert [one.protocol for one in found] == list(PROTOCOLS)
    assert len({one.signature for one in found}) == len(found)
    for one in found:
        config = options()
        config = config.model_copy(
            update={"definition": ProtocolConfig(protocol=one.protocol)}  # type: ignore[arg-type]
        )
        alone = evaluate_fvd(real, fake, config)
        assert (alone.value, alone.signature) == (one.value, one.signature)
    assert len({one.value for one in found}) > 2


@pytest.mark.usefixtures("cheap")
def test_features_in_a_file_stand_for_their_videos(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 6), write(tmp_path / "fake", 5, seed=1)
    module.write_features(real, tmp_path / "real.npz", options())
    kept = (tmp_path / "real.npz").read_bytes()
    with pytest.raises(DataError, match=r"real\.npz exists; nothing was overwritten"):
        module.write_features(real, tmp_path / "real.npz", options())
    assert (tmp_path / "real.npz").read_bytes() == kept
    direct = evaluate_fvd(real, fake, options())
    stored = evaluate_fvd(tmp_path / "real.npz", fake, options())
    assert (stored.value, stored.kernel, stored.signature) == (
        direct.value,
        direct.kernel,
        direct.signature,
    )
    for choice in ({"limit": 3}, {"match_n": True}):
        chosen = [
            evaluate_fvd(side, fake, options(**choice)) for side in (real, tmp_path / "real.npz")
        ]
        assert chosen[0].real_videos == choice.get("limit", 5)
        assert (chosen[1].value, chosen[1].signature) == (chosen[0].value, chosen[0].signature)
    both = evaluate_fvd(
        tmp_path / "real.npz", tmp_path / "real.npz", options(limit=3, match_n=True)
    )
    assert (both.real_videos, both.fake_videos) == (3, 3)
    with pytest.raises(DataError, match="resolution 8, asked for 16"):
        evaluate_fvd(tmp_path / "real.npz", fake, options(resolution=16))
    for choice, part in (
        ({"eps": 1e-5}, "eps 0.001, asked for 1e-05"),
        ({"resize": "half-pixel"}, "resize tf1, asked for half-pixel"),
        ({"fit": "crop"}, "fit squash, asked for crop"),
        ({"real_clip": "center"}, "clip random, asked for center"),
    ):
        config = options().model_copy(update={"definition": ProtocolConfig.model_validate(choice)})
        with pytest.raises(DataError, match=part):
            evaluate_fvd(tmp_path / "real.npz", fake, config)
    with pytest.raises(DataError, match="frames 9, asked for 10"):
        evaluate_fvd(tmp_path / "real.npz", fake, options(frames=10))
    (tmp_path / "bad.npz").write_bytes((tmp_path / "real.npz").read_bytes()[:200])
    with pytest.raises(DataError, match=r"bad\.npz"):
        evaluate_fvd(tmp_path / "bad.npz", fake, options())


@pytest.mark.usefixtures("cheap")
def test_a_mean_and_covariance_give_the_plain_value(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 6), write(tmp_path / "fake", 5, seed=1)
    features = module.write_features(real, tmp_path / "real.npz", options()).features.double()
    np.savez(tmp_path / "old.npz", mu=features.mean(0), sigma=features.T.cov(), n=6)
    direct, found = (evaluate_fvd(side, fake, options()) for side in (real, tmp_path / "old.npz"))
    assert found.value == pytest.approx(direct.value, rel=1e-9)
    assert found.standard_error is found.kernel is None
    assert (found.real_videos, found.real_clips, found.sizes[0]) == (6, 0, {})
    assert "|n:6/5|" in found.signature
    assert any("not an FVD" in text for text in found.warnings)
    # Nothing is made up where the file does not say, and nothing that it holds is a traceback.
    np.savez(tmp_path / "old.npz", mu=features.mean(0), sigma=features.T.cov())
    (fake / "bad.mkv").write_bytes(b"no video")
    unknown = evaluate_fvd(tmp_path / "old.npz", fake, options())
    assert (unknown.value, unknown.real_videos, len(unknown.skipped)) == (found.value, 0, 1)
    assert "|n:unknown/5|" in unknown.signature
    for sigma, says in ((np.full((400, 400), np.nan), "not finite"), (np.array(["a"]), "damaged")):
        np.savez(tmp_path / "old.npz", mu=np.zeros(400), sigma=sigma)
        with pytest.raises(DataError, match=says):
            evaluate_fvd(tmp_path / "old.npz", fake, options())
    np.savez(tmp_path / "old.npz", mu=np.zeros(1024), sigma=np.eye(1024))
    with pytest.raises(DataError, match="mean of 1024 figures, I3D gives 400"):
        evaluate_fvd(tmp_path / "old.npz", fake, options())


@pytest.mark.usefixtures("cheap")
def test_what_speaks_against_a_number_is_said(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 5), write(tmp_path / "fake", 3, seed=1)
    shutil.copy(real / "v0.mkv", real / "again.mkv")
    shutil.copy(real / "v1.mkv", fake / "leak.mkv")
    write_video(real / "lossy.mp4", moving(1, 9, 12)[0], 8)

    def said(**changes: Any) -> str:
        result = evaluate_fvd(real, fake, options(frames=12, features="i3d", **changes))
        return "\n".join(result.warnings)

    text = said()
    for part in (
        "7 and 4 videos: below 2048",
        "below 401 covariances are singular",
        "--match-n",
        "1 of 7 clips of real videos are there twice",
        "1 clip both among the real videos and the samples",
        "real videos are stored with losses, the others without",
    ):
        assert part in text
    assert "--match-n" not in said(match_n=True)
    assert "not independent" in said(clips_per_video=2)
    assert "--limit" not in text
    assert "fewer videos than --limit 9" in said(limit=9)
    # Samples that are stored twice, as some tools do, are not twice as many.
    write_video(fake / "v2.mp4", moving(1, 9, 12)[0], 8)
    assert "1 sample with the name of another, but for the suffix" in said()


@pytest.mark.usefixtures("cheap")
def test_videos_are_chosen_by_split_pattern_and_number(data: Path, tmp_path: Path) -> None:
    counts = {
        (split, match): evaluate_fvd(data, data, options(split=split, match=match)).real_videos
        for split, match in (("all", ""), ("train", ""), ("val", ""), ("all", "train/*"))
    }
    assert counts["all", ""] == counts["train", ""] + counts["val", ""]
    assert counts["all", "train/*"] == counts["train", ""]
    with pytest.raises(DataError, match="none of its 6 videos is wanted") as caught:
        evaluate_fvd(data, data, options(match="circle/*", split="train"))
    assert re.search(r"--match is .*, such as train/circle/\S+\.mp4$", caught.value.hint)
    samples = write(tmp_path / "samples", 3)  # of no splits, and all of them
    assert evaluate_fvd(data, samples, options(match="train/*")).fake_videos == 3
    few, more = (
        set(module.write_features(data, tmp_path / f"{n}.npz", options(limit=n)).videos)
        for n in (2, 4)
    )
    assert len(few) == 2 and few < more


def counting(folder: Path, count: int, frames: int) -> Path:
    """Videos whose frames show their own numbers."""
    ramp = np.arange(frames, dtype=np.uint8).reshape(-1, 1, 1, 1)
    for number in range(count):
        video = np.broadcast_to(ramp, (frames, 8, 8, 3))
        write_video(folder / f"v{number}.mkv", np.ascontiguousarray(video), 8, lossless=True)
    return folder


def starts(folder: Path, placing: Placing, **changes: Any) -> dict[str, list[int]]:
    """The first frame of each clip of each video."""
    settings = options(**changes).fvd
    side = fvd_sides.Side(folder, True, settings, [placing], settings.stride, 0.0, Silent())
    found = {}
    for place in range(len(side)):
        clips = side.read(place)
        assert isinstance(clips, dict)
        found[side.name(place)] = [int(clip[0, 0, 0, 0]) for clip in clips[placing]]
        for clip in clips[placing]:
            assert np.diff(clip[:, 0, 0, 0]).tolist() == [settings.stride] * (settings.frames - 1)
    return found


def test_clips_start_where_the_rule_says(tmp_path: Path) -> None:
    folder = counting(tmp_path / "a", 40, 18)  # clips of 9 start at frames 0 to 9
    assert set(map(tuple, starts(folder, "start").values())) == {(0,)}
    assert set(map(tuple, starts(folder, "center").values())) == {(4,)}
    assert set(map(tuple, starts(folder, "uniform", clips_per_video=3).values())) == {(1, 4, 7)}
    by_chance = starts(folder, "random")
    # All starts, the last one too, as often as chance has it.
    assert {start for each in by_chance.values() for start in each} == set(range(10))
    key = blake2b(b"0\0start\0v7", digest_size=8).digest()
    assert by_chance["v7"] == [int.from_bytes(key, "big") * 10 // 2**64]
    assert starts(folder, "random", seed=1) != by_chance
    more = starts(folder, "random", clips_per_video=2)
    assert {name: each[:1] for name, each in more.items()} == by_chance
    # Neither other videos nor another folder move a clip.
    few = counting(tmp_path / "b", 5, 18)
    assert starts(few, "random").items() <= by_chance.items()
    assert set(map(tuple, starts(folder, "random", stride=2).values())) == {(0,), (1,)}


@pytest.mark.usefixtures("cheap")
def test_short_videos_are_left_out_refused_or_padded(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 3), write(tmp_path / "fake", 3, seed=1)
    write(real / "short", 1, frames=5)
    assert evaluate_fvd(real, fake, options()).real_videos == 3
    padded = evaluate_fvd(real, fake, options(short="pad"))
    assert padded.real_videos == 4
    assert any("last frame repeated" in text for text in padded.warnings)
    with pytest.raises(DataError, match="has 5 frames, a clip needs 9") as caught:
        evaluate_fvd(real, fake, options(short="error"))
    assert "--short skip" in caught.value.hint
    with pytest.raises(DataError, match="a clip of 13 frames; the longest has 12") as caught:
        evaluate_fvd(real, fake, options(frames=13))
    assert "--frames 12 takes shorter clips" in caught.value.hint
    with pytest.raises(DataError, match="the longest has 12") as caught:
        evaluate_fvd(real, fake, options(stride=2))
    assert "--frames" not in caught.value.hint
    assert "--stride 1" in caught.value.hint
    with pytest.raises(DataError, match="the longest has 5 frames") as caught:
        evaluate_fvd(real / "short", fake, options())
    assert "longer videos (I3D needs 9 frames); or --short pad" in caught.value.hint


@pytest.mark.usefixtures("cheap")
def test_what_names_all_that_is_left_out_is_the_result(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 2), write(tmp_path / "fake", 2, seed=1)
    write(real / "short", 12, frames=5)
    notes = Notes()
    found = evaluate_fvd(real, fake, options(), notes)
    assert len(found.skipped) == 12
    assert "left out 2 more videos; 'skipped' of --json names them all" in notes.warnings


@pytest.mark.usefixtures("cheap")
def test_a_rate_that_is_asked_of_frames_without_one_is_said_to_be_assumed(tmp_path: Path) -> None:
    real, fake = write(tmp_path / "real", 3, frames=40), tmp_path / "fake.npy"
    np.save(fake, moving(3, 1, 30))
    told = f"{fake}: the frame rate of 3 videos is not known; 25 is assumed, and frames are chosen"

    def warned(**settings: Any) -> list[str]:
        found = evaluate_fvd(real, fake, options(**settings))
        return [warning for warning in found.warnings if "assumed" in warning]

    [said] = warned(frame_rate=8)
    assert said.startswith(told) and "to have 8 a second; --frame-rate 0 takes every" in said
    assert warned() == []
    with pytest.raises(DataError) as caught:
        evaluate_fvd(real, fake, options(frame_rate=8, frames=12))
    assert "has 10 frames at 8 fps of its 30 at an assumed 25" in caught.value.message
    assert "--frame-rate 0 takes every frame (of the 25 a second that" in caught.value.hint
    # What tats sample asks for is no option of its own.
    notes = Notes()
    evaluate_fvd(fake, real, options(), notes, real_rate=8)
    assert any("tats eval fvd --frame-rate 0" in warning for warning in notes.warnings)


def judged(tmp_path: Path, name: str, **changes: Any) -> Path:
    real, fake = tmp_path / "real", tmp_path / "fake"
    file = tmp_path / name
    file.write_text(json.dumps(asdict(evaluate_fvd(real, fake, options(**changes)))))
    return file


@pytest.mark.usefixtures("cheap")
def test_results_compare_only_under_one_signature(tmp_path: Path) -> None:
    write(tmp_path / "real", 6)
    write(tmp_path / "fake", 6, seed=1)
    first = judged(tmp_path, "a.json")
    [same] = compare_results(first, judged(tmp_path, "b.json", batch_size=3))
    assert same.difference == pytest.approx(0, abs=1e-6)
    assert "not told apart" in same.verdict
    for changes, part in (
        ({"frames": 10}, "frames 9 and 10"),
        ({"limit": 5}, "n 6/6 and 5/5"),
        ({"seed": 3}, "seed 0 and 3"),
        ({"resolution": 16}, "resolution 8 and 16"),
        ({"frame_rate": 7.9}, r"fps own and 7\.9"),
        ({"clips_per_video": 2}, "per-video 1 and 2"),
        ({"short": "pad"}, "short skip and pad"),
        ({"features": "i3d"}, "net random-cheap and i3d-cheap"),
    ):
        with pytest.raises(DataError, match=part):
            compare_results(first, judged(tmp_path, "c.json", **changes))
    write_video(tmp_path / "real" / "v0.mkv", moving(1, 3, 12)[0], 8, lossless=True)
    with pytest.raises(DataError, match="real [0-9a-f]+ and [0-9a-f]+"):
        compare_results(first, judged(tmp_path, "d.json"))
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(DataError, match=r"e\.json holds no result"):
        compare_results(first, tmp_path / "e.json")
    with pytest.raises(DataError, match=r"a\.json is given twice"):
        compare_results(first, tmp_path / "real" / ".." / "a.json")


SIGNATURE = "tats:v1|protocol:fvd|eps:0.001|size:64x64|resolution:own|n:9/9|seed:0"


def kept(file: Path, **changes: str) -> Path:
    """A result with another signature."""
    parts = dict(part.split(":") for part in SIGNATURE.split("|")) | changes
    signature = "|".join(f"{name}:{value}" for name, value in parts.items())
    result = {"measure": "fvd", "value": 1.0, "standard_error": 0.1, "signature": signature}
    file.write_text(json.dumps(result))
    return file


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"size": "8x8/64x64"}, "size: --resolution N for both"),
        ({"size": "8x8", "resolution": "8"}, "size, resolution: --resolution N for both"),
        ({"n": "9/4", "seed": "1"}, "n: --limit N for both, or --match-n; seed: --seed"),
        ({"protocol": "tats", "eps": "1e-05"}, "protocol, eps: --protocol"),
        ({"protocol": "custom", "eps": "1"}, "protocol: --protocol; eps: --eps"),
        ({"tats": "v2", "later": "1"}, "tats, later: one version of tats"),
    ],
)
def test_what_makes_two_results_agree_is_named(
    tmp_path: Path, changes: dict[str, str], hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        compare_results(kept(tmp_path / "a.json"), kept(tmp_path / "b.json", **changes))
    assert caught.value.hint.endswith(f"agree: {hint}")
    for name, value in changes.items():
        assert f"{name} " in caught.value.message
        assert f" and {value}" in caught.value.message


def test_every_part_of_a_signature_has_an_option(tmp_path: Path) -> None:
    recipe = dict.fromkeys(
        ("network", "frames", "stride", "frame_rate", "clips_per_video", "short", "seed",
         "precision"), 1,
    )  # fmt: skip
    made = signature_of(PROTOCOLS["fvd"], [recipe], [{"sizes": {"8x8": 2}}], (2, 2), "c")
    names = [part.partition(":")[0] for part in made.split("|")]
    assert set(names[1:]) == set(signature._OPTIONS)


def test_sizes_do_not_matter_where_both_are_brought_to_one(tmp_path: Path) -> None:
    first = kept(tmp_path / "a.json", resolution="8")
    [found] = compare_results(first, kept(tmp_path / "b.json", size="8x8", resolution="8"))
    assert found.difference == 0


def test_of_several_results_the_nearest_are_told_apart(tmp_path: Path) -> None:
    each = ({"protocol": "tats", "seed": "1"}, {"seed": "1"})
    both = [json.loads(kept(tmp_path / "b.json", **changes).read_text()) for changes in each]
    (tmp_path / "both.json").write_text(json.dumps(both))
    with pytest.raises(DataError, match="do not compare: seed 0 and 1$"):
        compare_results(kept(tmp_path / "a.json"), tmp_path / "both.json")


def test_results_of_other_commands_do_not_compare(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"vqgan": "runs/v", "reconstruction": {}, "time": None}))
    with pytest.raises(DataError, match="holds a result of tats vqgan eval") as caught:
        compare_results(kept(tmp_path / "a.json"), other)
    assert caught.value.hint == "tats eval fvd REAL FAKE writes one: add --json > RESULT.json"
    other.write_text(kept(tmp_path / "a.json").read_text().replace("1.0", "null"))
    with pytest.raises(DataError, match="the value None, which is no number"):
        compare_results(tmp_path / "a.json", other)


def test_every_choice_is_in_the_signature() -> None:
    recipe = dict.fromkeys(
        ("network", "frames", "stride", "frame_rate", "clips_per_video", "short", "seed",
         "precision"), 1,
    )  # fmt: skip
    about = {"sizes": {"8x8": 2}}

    def signature(protocol: Protocol = PROTOCOLS["fvd"], counts: tuple[int, int] = (2, 2),
                  content: str = "c", size: str = "8x8", **changes: Any) -> str:  # fmt: skip
        recipes = [recipe, recipe | changes]
        return signature_of(protocol, recipes, [about, {"sizes": {size: 2}}], counts, content)

    plain = signature()
    changed = [
        *(signature(replace(PROTOCOLS["fvd"], **{field.name: "x" if field.name != "eps" else 7.0}))
          for field in fields(Protocol)),
        *(signature(**{name: 2}) for name in recipe),
        signature(counts=(2, 3)), signature(counts=(3, 2)), signature(content="d"),
        signature(size="9x9"),
    ]  # fmt: skip
    assert len({plain, *changed}) == len(changed) + 1
    assert all(len(set(plain.split("|")) - set(one.split("|"))) == 1 for one in changed)


def test_the_self_test_knows_a_network_that_is_another(tmp_path: Path) -> None:
    torch.save(random_weights(0), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"published are 569\.230: this is not the I3D"):
        self_test(options(features="i3d", weights=tmp_path / "other.pt", frames=10))
    with pytest.raises(ConfigError, match="no distance is published for i3d features of 9 frames"):
        self_test(options(features="i3d", frames=9))


def test_own_weights_are_never_called_an_fvd(tmp_path: Path) -> None:
    torch.save(random_weights(0), tmp_path / "other.pt")
    real, fake = write(tmp_path / "real", 2), write(tmp_path / "fake", 2, seed=1)
    result = evaluate_fvd(real, fake, options(features="i3d", weights=tmp_path / "other.pt"))
    assert result.measure == "own-weights distance"
    assert any("not those of the I3D that defines FVD" in text for text in result.warnings)
    # Nor where only a file of their features is left.
    for side, name in ((real, "real.npz"), (fake, "fake.npz")):
        settings = options(features="i3d", weights=tmp_path / "other.pt")
        module.write_features(side, tmp_path / name, settings)
    stored = evaluate_fvd(tmp_path / "real.npz", tmp_path / "fake.npz", options(features="i3d"))
    assert (stored.measure, stored.value) == (result.measure, result.value)
    assert any("not those of the I3D that defines FVD" in text for text in stored.warnings)
