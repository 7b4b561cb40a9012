import logging
import pickle
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tatscli.config.data import ClipConfig
from tatscli.core.data import clips as clips_module
from tatscli.core.data.bad import BadVideos
from tatscli.core.data.clips import (
    FRAMES,
    Address,
    Clip,
    ClipSource,
    ConsumedBatchSampler,
    FixedClips,
    TrainClips,
    Wanted,
    every_clip,
    spread_clips,
)
from tatscli.core.data.index import Problem, VideoEntry
from tatscli.core.data.sound import Samples, Track, silence
from tatscli.core.data.video import Frames, probe, read_frames, write_png, write_video
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


def any_bad(source: ClipSource) -> BadVideos:
    """Any number of bad videos may be among those of a source."""
    return BadVideos(source.root, len(source.entries), 1.0)


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
    found = source(tmp_path, [16, 50, 33], sequence_length=16)
    clips = TrainClips(found, 0, any_bad(found))
    assert len(clips) == 1 + 3 + 2
    drawn = {clips.address((slot, number)) for slot in range(6) for number in range(300)}
    assert {address.start for address in drawn if address.entry == 0} == {0}
    assert {address.start for address in drawn if address.entry == 1} == set(range(35))
    assert {address.start for address in drawn if address.entry == 2} == set(range(18))


def test_a_draw_is_determined_by_seed_and_number(tmp_path: Path) -> None:
    found = source(tmp_path, [45], sequence_length=8)
    clips, copy = (
        TrainClips(found, 3, any_bad(found)),
        pickle.loads(pickle.dumps(TrainClips(found, 3, any_bad(found)))),
    )
    assert torch.equal(clips[(0, 7)].video, copy[(0, 7)].video)
    others = [TrainClips(found, 4, any_bad(found)).address((0, number)) for number in range(20)]
    assert [clips.address((0, number)) for number in range(20)] != others


def test_a_damaged_clip_is_replaced_in_training_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = source(tmp_path, [20, 20, 20], sequence_length=16)
    (tmp_path / "1.mkv").write_bytes((tmp_path / "1.mkv").read_bytes()[:1000])
    clips = TrainClips(found, 0, any_bad(found))
    with caplog.at_level(logging.WARNING):
        labels = {clips[(1, number)].label for number in range(20)}
        again = TrainClips(found, 0, any_bad(found))[(1, 5)]
    assert labels == {0, 2}
    assert torch.equal(again.video, clips[(1, 5)].video)
    assert len([record for record in caplog.records if "1.mkv" in record.message]) == 2
    with pytest.raises(DataError, match="1.mkv"):
        FixedClips(found, [Address(1, 4)])[0]


def test_a_damaged_clip_is_an_error_where_training_is_strict(tmp_path: Path) -> None:
    found = source(tmp_path, [20, 20], sequence_length=16)
    (tmp_path / "1.mkv").write_bytes((tmp_path / "1.mkv").read_bytes()[:1000])
    clips = TrainClips(found, 0, any_bad(found), strict=True)
    assert clips[(0, 0)].label == 0
    with pytest.raises(DataError, match=r"1\.mkv") as caught:
        clips[(1, 0)]
    assert "--strict" in caught.value.hint


def test_training_ends_where_nothing_can_be_decoded(tmp_path: Path) -> None:
    found = source(tmp_path, [20], sequence_length=16)
    (tmp_path / "0.mkv").write_bytes(b"")
    with pytest.raises(DataError, match="11 clips in a row"):
        TrainClips(found, 0, any_bad(found))[(0, 0)]


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
    found = source(tmp_path, [30, 20], sequence_length=8)
    clips = TrainClips(found, 0, any_bad(found))
    sampler = ConsumedBatchSampler(len(clips), 0, 2, 3)
    batches = list(DataLoader(clips, batch_sampler=sampler, num_workers=workers))
    assert batches[0].video.shape == (2, 3, 8, SIDE, SIDE)
    assert batches[0].label.dtype == torch.int64
    direct = [clips[draw] for batch in sampler for draw in batch]
    assert torch.equal(
        torch.cat([b.video for b in batches]), torch.stack([c.video for c in direct])
    )


CLICK = 1.17  # seconds


def click(seconds: float = CLICK, rate: int = 16000) -> Samples:
    """Three seconds of silence with a click in them."""
    samples = np.zeros((1, 3 * rate), np.float32)
    samples[0, round(seconds * rate)] = 0.9
    return samples


def entry_of(folder: Path, name: str, sound: Samples | None = None, **fields: Any) -> VideoEntry:
    """A video of 24 frames in three seconds, with or without sound."""
    track = None if sound is None else Track(sound, 16000)
    write_video(folder / name, grey(24), 8, lossless=True, sound=track)
    info = probe(folder / name)
    return replace(VideoEntry(name, "file", "train", 4, info, 0, 24), **fields)


def source_of(
    folder: Path, *entries: VideoEntry, wanted: Wanted = FRAMES, **clip: float
) -> ClipSource:
    settings = {"resolution": SIDE, "sequence_length": 8, **clip}
    return ClipSource(entries, folder, ClipConfig.model_validate(settings), wanted)


def loud(patches: torch.Tensor) -> list[int]:
    """Columns in which something is heard, loudest first, counted from the first frame's first."""
    columns = patches[0].sum(1).flatten() + 32
    return [int(n) for n in columns.argsort(descending=True) if columns[n] > 0]


def spelt(text: str) -> torch.Tensor:
    """A text as its letters."""
    return torch.tensor([ord(letter) for letter in text])


def test_a_clip_has_text_and_sound_where_they_are_wanted(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, "a.mkv", click(), captions=("a cat", "one"))
    address = Address(0, 4, 1)
    plain = source_of(tmp_path, entry).read(address)
    assert (plain.text.numel(), plain.sound.numel()) == (0, 0)
    found = source_of(tmp_path, entry, wanted=Wanted(text=spelt, sound=True)).read(address)
    assert found.text.tolist() == spelt("one").tolist()
    assert (found.sound.shape, found.sound.dtype) == ((1, 8, 64, 16), torch.float32)
    assert numbers(found) == list(range(4, 12))
    assert torch.equal(found.video, plain.video)
    assert loud(found.sound)
    heard = source_of(tmp_path, entry, wanted=Wanted("sound")).read(address)
    assert torch.equal(heard.video, found.sound)
    assert (heard.label, heard.text.numel(), heard.sound.numel()) == (4, 0, 0)


def test_a_video_without_caption_has_an_empty_one(tmp_path: Path) -> None:
    found = source_of(tmp_path, entry_of(tmp_path, "a.mkv"), wanted=Wanted(text=spelt))
    assert found.caption(Address(0, 0, 7)) == ""
    assert found.read(Address(0, 0, 7)).text.numel() == 0


def test_each_epoch_takes_another_caption_of_a_video(tmp_path: Path) -> None:
    captions = ("one", "two", "three")
    entry = entry_of(tmp_path, "a.mkv", captions=captions)
    found = source_of(tmp_path, entry, entry, wanted=Wanted(text=spelt))
    clips = TrainClips(found, 0, any_bad(found))
    draws = [draw for batch in ConsumedBatchSampler(len(clips), 0, 2, 9) for draw in batch]
    assert len(draws) == 3 * len(clips)
    taken: dict[int, list[str]] = {}
    for draw in draws:
        said = found.caption(clips.address(draw))
        assert clips[draw].text.tolist() == spelt(said).tolist()
        assert TrainClips(found, 0, any_bad(found)).address(draw) == clips.address(draw)
        taken.setdefault(draw[0], []).append(said)
    assert {slot: sorted(said) for slot, said in taken.items()} == {
        slot: sorted(captions) for slot in range(len(clips))
    }
    # In one epoch, clips have different ones.
    assert {said[0] for said in taken.values()} == set(captions)


@pytest.mark.parametrize(
    ("start", "length", "rate", "every"),
    [(0, 16, 0, 1), (5, 8, 0, 1), (3, 8, 0, 2), (2, 8, 5, 1), (10, 16, 16, 1), (6, 16, 16, 4)],
)
def test_a_click_is_in_the_column_of_its_time(
    tmp_path: Path, start: int, length: int, rate: int, every: int
) -> None:
    found = source_of(
        tmp_path, entry_of(tmp_path, "a.mkv", click()), wanted=Wanted(sound=True),
        sequence_length=length, frame_rate=rate, sample_every_n_frames=every,
    )  # fmt: skip
    clip = found.read(Address(0, start))
    assert clip.sound.shape == (1, length // every, 64, 16)
    column = int((CLICK * (rate or 8) - start) / every * 16)
    assert loud(clip.sound)[0] == column
    # All that is heard is the click, for as long as a window of 32 ms is.
    width = 0.032 * (rate or 8) / every * 16
    assert max(abs(other - column) for other in loud(clip.sound)) <= width / 2 + 1
    if not rate:
        assert 0 <= 9 - numbers(clip)[column // 16] < every  # frame 9 is shown then


def test_the_last_frame_of_a_video_is_heard_to_its_end(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, "a.mkv", click(2.98))
    found = source_of(tmp_path, entry, wanted=Wanted(sound=True))
    assert loud(found.read(Address(0, 16)).sound)[0] == int((2.98 * 8 - 16) * 16)
    assert loud(found.read(Address(0, 15)).sound) == []


def test_a_part_of_a_video_has_its_own_sound(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, "a.mkv", click(), first=6, stop=18)
    for rate in (0, 8):
        found = source_of(tmp_path, entry, wanted=Wanted(sound=True), frame_rate=rate)
        clip = found.read(Address(0, 2))
        assert numbers(clip)[0] == 8
        assert loud(clip.sound)[0] == int((CLICK * 8 - 8) * 16)


@pytest.mark.parametrize("first", [0.0, 2.5])
def test_a_sound_file_beside_a_video_begins_with_its_first_frame(
    tmp_path: Path, first: float
) -> None:
    entry = entry_of(tmp_path, "a.mkv", click(2.2))
    with wave.open(str(tmp_path / "beside.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes((click(rate=22050) * 32767).astype("<i2").tobytes())
    info = replace(entry.info, times=entry.info.times + first)
    entry = replace(entry, sound="beside.wav", info=info)
    found = source_of(tmp_path, entry, wanted=Wanted(sound=True))
    assert loud(found.sound(Address(0, 5)))[0] == int((CLICK * 8 - 5) * 16)
    part = source_of(tmp_path, replace(entry, first=6), wanted=Wanted(sound=True), frame_rate=8)
    assert loud(part.sound(Address(0, 2)))[0] == int((CLICK * 8 - 8) * 16)


def test_videos_without_sound_are_silent(tmp_path: Path) -> None:
    found = source_of(tmp_path, entry_of(tmp_path, "a.mkv"), wanted=Wanted(sound=True))
    clip = found.read(Address(0, 3))
    assert torch.equal(clip.sound, silence(8))
    assert numbers(clip) == list(range(3, 11))
    thinned = source_of(
        tmp_path, *found.entries, wanted=Wanted("sound"), sample_every_n_frames=4
    )  # fmt: skip
    assert torch.equal(thinned.read(Address(0, 3)).video, silence(2))


def test_where_sound_is_needed_videos_without_it_are_left_out_and_named(tmp_path: Path) -> None:
    mute = entry_of(tmp_path, "a.mkv")
    entries = [mute, entry_of(tmp_path, "b.mkv", click()), replace(mute, sound="a.wav")]
    wanted = Wanted(sound=True, needs_sound=True)
    found = source_of(tmp_path, *entries, wanted=wanted)
    assert [(entry.path, entry.sound) for entry in found.entries] == [
        ("b.mkv", ""), ("a.mkv", "a.wav"),
    ]  # fmt: skip
    assert found.problems == (Problem("a.mkv", "has no sound"),)
    assert found.starts.tolist() == [17, 17]
    assert source_of(tmp_path, *entries, wanted=Wanted(sound=True)).problems == ()
    with pytest.raises(DataError, match="no train video has sound") as caught:
        source_of(tmp_path, mute, mute, wanted=wanted)
    assert str(tmp_path) in caught.value.message
    assert "--missing-sound silence" in caught.value.hint


def test_neighbours_in_a_video_are_decoded_at_once_and_are_what_each_is_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = source(tmp_path, [40, 60], sequence_length=8, sample_every_n_frames=2)
    addresses = [Address(0, 0), Address(0, 8), Address(0, 12), Address(1, 12), Address(1, 40)]
    clips, passes = FixedClips(found, addresses), list[Path]()

    def counting(path: Path, *arguments: Any) -> Frames:
        passes.append(path)
        return read_frames(path, *arguments)

    monkeypatch.setattr(clips_module, "read_frames", counting)
    together = list(clips.read(range(5)))
    assert [path.name for path in passes] == ["0.mkv", "1.mkv", "1.mkv"]  # the last is far away
    for number, clip in together:
        assert isinstance(clip, Clip)
        assert clip.label == clips[number].label == addresses[number].entry
        assert torch.equal(clip.video, clips[number].video)
        assert numbers(clip) == list(range(addresses[number].start, addresses[number].start + 8, 2))


def test_a_clip_that_cannot_be_decoded_does_not_take_its_neighbours_with_it(tmp_path: Path) -> None:
    found = source(tmp_path, [20, 32], sequence_length=8)
    whole = (tmp_path / "1.mkv").read_bytes()
    (tmp_path / "1.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    clips = FixedClips(found, [Address(0, 0), *(Address(1, start) for start in (0, 8, 16, 24))])
    read = dict(clips.read(range(5)))
    assert list(read) == [0, 1, 2, 3, 4]
    decoded = [number for number, clip in read.items() if isinstance(clip, Clip)]
    assert {0, 1} <= set(decoded) and 4 not in decoded
    with pytest.raises(DataError, match=r"1\.mkv"):
        clips[4]
