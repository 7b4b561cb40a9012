import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tatscli.config.data import ClipConfig
from tatscli.core.data.clips import (
    Address,
    Clip,
    ClipSource,
    ConsumedBatchSampler,
    FixedClips,
    TrainClips,
    every_clip,
    spread_clips,
)
from tatscli.core.data.index import VideoEntry
from tatscli.core.data.video import Frames, probe, write_png, write_video
from tatscli.errors import DataError

SIDE = 8


def grey(count: int) -> Frames:
    """Frames whose level is 5 times their number."""
    levels = (5 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    return np.broadcast_to(levels, (count, SIDE, SIDE, 3))


def numbers(clip: Clip) -> list[int]:
    """The numbers of the frames of a clip made of grey frames."""
    levels = ((clip.video[0, :, 0, 0] + 0.5) * 51).round().int()
    return [int(level) for level in levels]


def source(folder: Path, counts: list[int], rate: float = 8, **clip: float) -> ClipSource:
    """A source over lossless videos of so many frames."""
    for number, count in enumerate(counts):
        write_video(folder / f"{number}.mkv", grey(count), rate, lossless=True)
    return reread(folder, len(counts), **clip)


def reread(folder: Path, count: int, **clip: float) -> ClipSource:
    entries = []
    for number in range(count):
        info = probe(folder / f"{number}.mkv")
        path = f"{number}.mkv"
        entries.append(VideoEntry(path, "file", "train", number, info, 0, len(info.times)))
    return ClipSource(entries, folder, ClipConfig.model_validate({"resolution": SIDE, **clip}))


def test_a_video_of_exactly_the_needed_length_has_one_clip(tmp_path: Path) -> None:
    found = source(tmp_path, [16, 17], sequence_length=16)
    assert found.starts.tolist() == [1, 2]
    assert numbers(found.read(Address(0, 0))) == list(range(16))
    assert numbers(found.read(Address(1, 1))) == list(range(1, 17))


@pytest.mark.parametrize(
    ("rate", "grid", "ticks"),
    [
        (0, 33, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 33, [0, 1, 2, 3, 4, 5, 6, 7]),
        (4, 17, [0, 2, 4, 6, 8, 10, 12, 14]),
        (3, 13, [0, 3, 5, 8, 11, 13, 16, 19]),
        (16, 65, [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
def test_a_frame_rate_takes_the_frames_nearest_in_time(
    tmp_path: Path, rate: float, grid: int, ticks: list[int]
) -> None:
    found = source(tmp_path, [33], sequence_length=8, frame_rate=rate)
    assert found.starts.tolist() == [grid - 7]
    assert numbers(found.read(Address(0, 0))) == ticks
    assert numbers(found.read(Address(0, grid - 8)))[-1] == 32


def test_two_seconds_hold_sixteen_frames_at_eight_per_second(tmp_path: Path) -> None:
    found = source(tmp_path, [50], rate=25, sequence_length=16, frame_rate=8)
    assert found.starts.tolist() == [1]


def test_every_nth_frame_of_the_span_is_kept(tmp_path: Path) -> None:
    found = source(tmp_path, [20], sequence_length=12, sample_every_n_frames=3)
    clip = found.read(Address(0, 8))
    assert clip.video.shape == (3, 4, SIDE, SIDE)
    assert numbers(clip) == [8, 11, 14, 17]
    assert found.starts.tolist() == [9]
    assert found.seconds(Address(0, 8)) == pytest.approx(1.0)


def test_a_part_of_a_video_gives_only_its_own_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "0.mkv", grey(40), 8, lossless=True)
    info = probe(tmp_path / "0.mkv")
    entry = VideoEntry("0.mkv", "file", "val", -1, info, 30, 40)
    for rate in (0, 8):
        clip = ClipConfig(resolution=SIDE, sequence_length=8, frame_rate=rate)
        found = ClipSource([entry], tmp_path, clip)
        assert found.starts.tolist() == [3]
        assert numbers(found.read(Address(0, 2))) == list(range(32, 40))


def test_short_videos_are_named_with_both_numbers(tmp_path: Path) -> None:
    found = source(tmp_path, [20, 12], sequence_length=16, frame_rate=8)
    assert [entry.path for entry in found.entries] == ["0.mkv"]
    assert found.problems[0].path == "1.mkv"
    assert found.problems[0].reason == "has 12 frames at 8 fps, a clip needs 16"
    with pytest.raises(DataError, match=r"24 frames; the first, 0\.mkv, has 20 .*longest 20"):
        reread(tmp_path, 2, sequence_length=24)


def test_an_epoch_tiles_the_videos_and_every_start_can_be_drawn(tmp_path: Path) -> None:
    clips = TrainClips(source(tmp_path, [16, 50, 33], sequence_length=16), seed=0)
    assert len(clips) == 1 + 3 + 2
    drawn = {clips.address((slot, number)) for slot in range(6) for number in range(300)}
    assert {address.start for address in drawn if address.entry == 0} == {0}
    assert {address.start for address in drawn if address.entry == 1} == set(range(35))
    assert {address.start for address in drawn if address.entry == 2} == set(range(18))


def test_a_draw_is_determined_by_seed_and_number(tmp_path: Path) -> None:
    found = source(tmp_path, [45], sequence_length=8)
    clips, copy = TrainClips(found, 3), pickle.loads(pickle.dumps(TrainClips(found, 3)))
    assert torch.equal(clips[(0, 7)].video, copy[(0, 7)].video)
    others = [TrainClips(found, 4).address((0, number)) for number in range(20)]
    assert [clips.address((0, number)) for number in range(20)] != others


def test_a_damaged_clip_is_replaced_in_training_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = source(tmp_path, [20, 20, 20], sequence_length=16)
    (tmp_path / "1.mkv").write_bytes((tmp_path / "1.mkv").read_bytes()[:1000])
    clips = TrainClips(found, 0)
    with caplog.at_level(logging.WARNING):
        labels = {clips[(1, number)].label for number in range(20)}
        again = TrainClips(found, 0)[(1, 5)]
    assert labels == {0, 2}
    assert torch.equal(again.video, clips[(1, 5)].video)
    assert len([record for record in caplog.records if "1.mkv" in record.message]) == 2
    with pytest.raises(DataError, match="1.mkv"):
        FixedClips(found, [Address(1, 4)])[0]


def test_a_damaged_clip_is_an_error_where_training_is_strict(tmp_path: Path) -> None:
    found = source(tmp_path, [20, 20], sequence_length=16)
    (tmp_path / "1.mkv").write_bytes((tmp_path / "1.mkv").read_bytes()[:1000])
    clips = TrainClips(found, 0, strict=True)
    assert clips[(0, 0)].label == 0
    with pytest.raises(DataError, match=r"1\.mkv") as caught:
        clips[(1, 0)]
    assert "--strict" in caught.value.hint


def test_training_ends_where_nothing_can_be_decoded(tmp_path: Path) -> None:
    found = source(tmp_path, [20], sequence_length=16)
    (tmp_path / "0.mkv").write_bytes(b"")
    with pytest.raises(DataError, match="11 clips in a row"):
        TrainClips(found, 0)[(0, 0)]


def test_validation_clips_are_spread_evenly(tmp_path: Path) -> None:
    found = source(tmp_path, [16, 48, 16, 16], sequence_length=16)
    assert {address.entry for address in spread_clips(found, 99)} == {0, 1, 2, 3}
    assert len(spread_clips(found, 99)) == 6
    assert [address.entry for address in spread_clips(found, 2)] == [1, 2]
    fixed = FixedClips(found, spread_clips(found, 3))
    assert len(fixed) == 3
    assert torch.equal(fixed[1].video, fixed[1].video)


def test_every_clip_at_a_stride_ends_within_its_video(tmp_path: Path) -> None:
    found = source(tmp_path, [16, 40], sequence_length=16)
    assert every_clip(found, 16) == [Address(0, 0), Address(1, 0), Address(1, 16)]
    assert every_clip(found, 8) == [Address(0, 0)] + [Address(1, n) for n in (0, 8, 16, 24)]


def test_frame_folders_give_clips(tmp_path: Path) -> None:
    for number, frame in enumerate(grey(12)):
        write_png(tmp_path / "a" / f"frame{number}.png", np.ascontiguousarray(frame))
    info = probe(tmp_path / "a")
    entry = VideoEntry("a", "frames", "train", 0, info, 0, 12)
    clip = ClipConfig(resolution=SIDE, sequence_length=4)
    found = ClipSource([entry], tmp_path, clip)
    assert numbers(found.read(Address(0, 8))) == [8, 9, 10, 11]


def test_batches_are_the_same_in_one_process_and_in_several() -> None:
    whole = list(ConsumedBatchSampler(7, 1, 4, 10))
    parts = [list(ConsumedBatchSampler(7, 1, 2, 10, rank=rank, world=2)) for rank in (0, 1)]
    assert whole == [first + second for first, second in zip(*parts, strict=True)]


def test_an_interrupted_run_goes_on_with_the_same_batches() -> None:
    whole = list(ConsumedBatchSampler(7, 1, 3, 20))
    rest = ConsumedBatchSampler(7, 1, 3, 20, start_step=11)
    assert len(rest) == 9
    assert list(rest) == whole[11:]


def test_every_epoch_is_a_new_permutation_of_the_slots() -> None:
    draws = [draw for batch in ConsumedBatchSampler(9, 0, 3, 6) for draw in batch]
    epochs = [[slot for slot, _ in draws[start : start + 9]] for start in (0, 9)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(9))
    assert epochs[0] != epochs[1]
    assert [number for _, number in draws] == list(range(18))


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_clips_with_and_without_workers(tmp_path: Path, workers: int) -> None:
    clips = TrainClips(source(tmp_path, [30, 20], sequence_length=8), 0)
    sampler = ConsumedBatchSampler(len(clips), 0, 2, 3)
    batches = list(DataLoader(clips, batch_sampler=sampler, num_workers=workers))
    assert batches[0].video.shape == (2, 3, 8, SIDE, SIDE)
    assert batches[0].label.dtype == torch.int64
    direct = [clips[draw] for batch in sampler for draw in batch]
    assert torch.equal(
        torch.cat([b.video for b in batches]), torch.stack([c.video for c in direct])
    )
