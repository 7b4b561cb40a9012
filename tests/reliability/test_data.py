"""Right frames, flat memory, and videos that are bad (R17, R18, R20).

| | in the suite | with ``-m soak`` |
| --- | --- | --- |
| R17 | 9 kinds of bad videos among 50, read by 2 workers | by 2 processes with a worker each |
| R18 | 192 random clips | 1,024 |
| R20 | 300 clips in a worker | 2,000 in each of 2 workers |
"""

import json
import os
import random
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import Start, same_weights, write_config
from stamped import encode, numbers, stamped
from tiny_app import broken, encode_config, vqgan_config
from torch.utils.data import DataLoader, Dataset

from tatscli.app.data import check_data, synthesise
from tatscli.app.encode import encode as encode_tokens
from tatscli.app.train import train_vqgan
from tatscli.config.check import CheckConfig
from tatscli.config.data import ClipConfig
from tatscli.config.synth import SynthConfig
from tatscli.config.train import VQGANTrainConfig
from tatscli.core.data.bad import BAD_VIDEOS, BadVideos
from tatscli.core.data.clips import Address, ClipSource, ConsumedBatchSampler, TrainClips, Wanted
from tatscli.core.data.index import build_index
from tatscli.core.data.video import to_uint8, write_png, write_video
from tatscli.errors import DataError

FRAMES = 250
UNEVEN = (300 + np.cumsum(np.random.default_rng(0).integers(1, 9, FRAMES))).tolist()
"""Presentation times in 1/100 s of a variable rate, from 3 s on."""
STAMPED: dict[str, dict[str, Any]] = {
    "short.mp4": {"options": {"g": "12", "bf": "2"}},
    "open.mkv": {"options": {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"}},
    "middle.mp4": {"options": {"g": "50", "bf": "3"}},
    "single.mp4": {"options": {"g": "250", "bf": "3"}},
    "late.ts": {"options": {"g": "50", "bf": "2"}},
    "uneven.mkv": {"options": {"g": "50", "bf": "2"}, "stamps": UNEVEN},
    "turned.mp4": {"options": {"g": "50", "bf": "2"}, "rotation": 90},
    "counted.avi": {"options": {"g": "12", "b": "2M"}, "codec": "mpeg4"},
}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos whose frames show their numbers."""
    folder = tmp_path_factory.mktemp("numbered")
    frames = stamped(FRAMES)
    for name, how in STAMPED.items():
        stored = np.rot90(frames, -how.get("rotation", 0) // 90, axes=(1, 2))
        encode(folder / name, np.ascontiguousarray(stored), **how)
    return folder


def nearest(name: str, clip: ClipConfig, start: int) -> list[int]:
    """The numbers that a clip shows, in exact arithmetic."""
    ticks = range(start, start + clip.sequence_length, clip.sample_every_n_frames)
    if not clip.frame_rate:
        return list(ticks)
    stamps = STAMPED[name].get("stamps", range(0, 4 * FRAMES, 4))
    times = [Fraction(stamp - stamps[0], 100) for stamp in stamps]
    rate = Fraction(str(clip.frame_rate))
    return [min(range(FRAMES), key=lambda n: (abs(times[n] - tick / rate), n)) for tick in ticks]


@pytest.mark.parametrize("each", [6, pytest.param(32, marks=pytest.mark.soak)])
def test_every_frame_of_every_clip_is_the_right_one(numbered: Path, each: int) -> None:
    index, chance = build_index(numbered), random.Random(each)
    for rate in (0.0, 12.0, 25.0, 29.97):
        clip = ClipConfig(
            resolution=32, sequence_length=16, sample_every_n_frames=2, frame_rate=rate
        )
        source = ClipSource(index.entries, numbered, clip)
        assert len(source.entries) == len(STAMPED)
        for number, entry in enumerate(source.entries):
            for _ in range(each):
                start = chance.randrange(source.starts[number])
                shown = numbers(to_uint8(source.read(Address(number, start)).video))
                assert shown == nearest(entry.path, clip, start), (entry.path, rate, start)


class Weighed(Dataset[tuple[int, int]]):
    """The process that read each clip, and the bytes that it then held."""

    def __init__(self, clips: TrainClips) -> None:
        self._clips = clips

    def __getitem__(self, draw: tuple[int, int]) -> tuple[int, int]:
        self._clips[draw]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return os.getpid(), pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos with sound and without, of several codecs, as images, and one that breaks off."""
    folder = tmp_path_factory.mktemp("varied")
    frames = stamped(60, side=160)
    for name in ("heard.mp4", "also.mp4"):
        encode(folder / name, frames, options={"g": "30", "bf": "2"}, audio=True)
    encode(folder / "counted.avi", frames, codec="mpeg4")
    write_video(folder / "bits.mkv", frames, 25, lossless=True)
    for number, frame in enumerate(frames[:20]):
        write_png(folder / "images" / f"{number}.png", frame)
    write_video(folder / "cut.mp4", frames, 25)
    content = (folder / "cut.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    return folder


@pytest.mark.parametrize(
    ("workers", "clips"), [(1, 300), pytest.param(2, 2000, marks=pytest.mark.soak)]
)
def test_reading_clips_takes_no_more_and_more_memory(
    varied: Path, workers: int, clips: int
) -> None:
    index, warm = build_index(varied), 100
    source = ClipSource(
        index.entries, varied, ClipConfig(resolution=64, sequence_length=8), Wanted(sound=True)
    )
    train = TrainClips(source, 0, BadVideos(varied, len(source.entries), 0.5))
    steps = (warm + clips) * workers
    sampler = ConsumedBatchSampler(len(train), 0, 1, steps)
    held: dict[int, list[int]] = {}
    for process, size in DataLoader(Weighed(train), batch_sampler=sampler, num_workers=workers):
        held.setdefault(int(process), []).append(int(size))
    assert len(held) == workers
    for sizes in held.values():
        assert len(sizes) == warm + clips
        assert max(sizes[-50:]) < 1.05 * max(sizes[:warm])


UNREADABLE = {"empty", "text", "headless", "no-frames", "no-images"}
UNDECODABLE = {"cut", "garbled", "lost-image", "shrunk"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """50 good videos, and among them one of each kind of bad ones; and the paths of these."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    synthesise(folder, SynthConfig(classes=2, train_videos=20, test_videos=5, size=16,
                                   video_frames=12, rate=8))  # fmt: skip
    circles = folder / "train" / "circle"
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)

    def path(name: str, suffix: str = ".mp4") -> Path:
        return circles / f"{name}{suffix}"

    path("empty").touch()
    path("text").write_text("no video\n" * 100)
    whole = encode(path("headless"), noise).read_bytes()  # with its header at the end
    path("headless").write_bytes(whole[: len(whole) * 2 // 3])
    encode(path("no-frames", ".mkv"), noise[:0], audio=True)
    write_video(path("cut"), noise, 8)
    whole = path("cut").read_bytes()
    path("cut").write_bytes(whole[: len(whole) * 2 // 3])
    write_video(path("garbled"), noise, 8)
    content = bytearray(path("garbled").read_bytes())
    first = content.index(b"mdat") + 4
    third = (len(content) - first) // 3
    content[first + third : first + 2 * third] = b"\x5a" * third
    path("garbled").write_bytes(content)
    for name in ("no-images", "lost-image", "shrunk"):
        for number, frame in enumerate(noise):
            write_png(circles / name / f"{number}.png", frame)
    (circles / "no-images" / "0.png").write_bytes(b"")
    (circles / "lost-image" / "6.png").write_bytes(b"not an image")
    write_png(circles / "shrunk" / "6.png", noise[0, :16, :16])
    write_video(path("short"), noise[:3], 8)  # which is not bad, and neither is one without sound
    bad = {p.relative_to(folder).as_posix() for p in circles.iterdir()
           if p.stem in UNREADABLE | UNDECODABLE}  # fmt: skip
    assert len(bad) == len(UNREADABLE | UNDECODABLE)
    return folder, bad


def bad_config(
    data: Path, run: Path, workers: int = 0, max_bad: float = 0.5, steps: int = 20
) -> VQGANTrainConfig:
    """Two epochs and more, in which every third of every video is read."""
    loop = {"max_steps": steps, "batch_size": 15, "checkpoint_every": 9, "grid_every": 100,
            "val_check_interval": "100"}  # fmt: skip
    return vqgan_config(
        data,
        run,
        data={"max_bad": max_bad},
        train=loop,
        optim={"lr_schedule": "constant"},
        compute={"workers": workers},
    )


@pytest.fixture(scope="module")
def trained(mixed: tuple[Path, set[str]]) -> Path:
    """A run on them, read by two workers."""
    data, _ = mixed
    return train_vqgan(bad_config(data, data.parent / "run", workers=2)).run


def named(run: Path) -> list[str]:
    return [json.loads(line)["path"] for line in (run / BAD_VIDEOS).read_text().splitlines()]


def test_training_goes_on_and_names_exactly_the_bad_videos(
    mixed: tuple[Path, set[str]], trained: Path
) -> None:
    data, bad = mixed
    assert json.loads((trained / "run.json").read_text())["status"] == "finished"
    assert sorted(named(trained)) == sorted(bad)  # each once
    rows = [json.loads(line) for line in (trained / BAD_VIDEOS).read_text().splitlines()]
    assert {Path(row["path"]).stem for row in rows if "seconds" in row} == UNDECODABLE
    assert all(row["reason"] for row in rows)
    checked = check_data(data, CheckConfig(sequence_length=4))
    assert {line.split(": ")[0] for line in checked.unreadable} == bad


def test_encoding_leaves_exactly_the_bad_and_the_short_videos_out(
    mixed: tuple[Path, set[str]], trained: Path, tmp_path: Path
) -> None:
    data, bad = mixed
    result = encode_tokens(encode_config(data, tmp_path / "tokens", trained))
    skipped = {line.split(": ")[0] for line in result.skipped}
    assert skipped == bad | {"train/circle/short.mp4"}
    with pytest.raises(DataError, match=r"5 of 60 videos .* than --max-bad 0\.05"):
        encode_tokens(encode_config(data, tmp_path / "none", trained, data={"max_bad": 0.05}))


def test_what_takes_the_place_of_bad_clips_depends_on_no_worker_and_no_interruption(
    mixed: tuple[Path, set[str]], trained: Path, tmp_path: Path
) -> None:
    data, bad = mixed
    run = train_vqgan(bad_config(data, tmp_path / "run", steps=9)).run
    train_vqgan(bad_config(data, tmp_path / "run", workers=1), run)
    assert same_weights(run, trained)
    assert sorted(named(run)) == sorted(bad)


def test_more_bad_videos_than_may_be_end_the_run(
    mixed: tuple[Path, set[str]], trained: Path, tmp_path: Path
) -> None:
    data, bad = mixed
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"5 of 60 videos .* than --max-bad 0\.05: train/circle/e"):
        train_vqgan(bad_config(data, run, max_bad=0.05))
    assert not run.exists()
    with pytest.raises(DataError, match=r"^[789] of 60 videos .* than --max-bad 0\.1: ") as caught:
        train_vqgan(bad_config(data, run, workers=2, max_bad=0.1))
    assert str(run / BAD_VIDEOS) in caught.value.hint and "--max-bad" in caught.value.hint
    assert len(named(run)) >= 7 and set(named(run)) <= bad
    # A run that goes on remembers them, and may allow more or fewer.
    with pytest.raises(DataError, match=r"9 of 60 videos .* than --max-bad 0\.14"):
        train_vqgan(bad_config(data, trained, steps=21, max_bad=0.14), trained)


def test_what_a_worker_meets_is_told_plainly(data: Path, tmp_path: Path, tats: Any) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    last = sorted((damaged / "train" / "square").glob("*.mp4"))[-1]
    last.write_bytes(broken(last, tmp_path / "scratch.mp4"))
    config = bad_config(damaged, tmp_path / "run", workers=2, steps=5)
    outcome = tats(
        "vqgan", "train", "--config", write_config(config, tmp_path / "c.yaml"), "--strict"
    )
    assert outcome.code == 1
    assert f"{last}: cannot be decoded after" in outcome.err
    assert "leave out --strict" in outcome.err
    assert not any(word in outcome.err for word in ("Traceback", "worker process", "DataLoader"))


@pytest.mark.soak
def test_several_processes_name_each_once(
    mixed: tuple[Path, set[str]], tmp_path: Path, start: Start
) -> None:
    data, bad = mixed
    file = write_config(bad_config(data, tmp_path / "run", workers=1), tmp_path / "c.yaml")
    code, _, err = start("vqgan", "train", "--config", file, "--devices", 2).end(300)
    assert code == 0, err
    assert sorted(named(tmp_path / "run")) == sorted(bad)
