"""Streams: what is written and read, in which order, from where, and what damage does."""

import errno
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from litdata import StreamingDataset
from litdata.streaming.writer import BinaryWriter
from torch.utils.data import DataLoader

from tatscli.config.data import ClipConfig
from tatscli.core.data import stream as module
from tatscli.core.data.clips import ConsumedBatchSampler, Wanted
from tatscli.core.data.stream import (
    WINDOW,
    Store,
    StreamDataset,
    WindowOrder,
    can_stream,
    clip_layout,
    write_stream,
)
from tatscli.core.data.tokens import (
    SoundTokens,
    TokenDataset,
    TokenHeader,
    TokenWriter,
    is_token_dataset,
    read_manifest,
)
from tatscli.errors import DataError

GRID, SOUND = (2, 3, 3), (2, 4, 1)
VIDEOS = 7
CLIPS = {"train": 300, "val": 9}


def ids(text: str) -> torch.Tensor:
    return torch.tensor([*text.encode()])


ALL = Wanted(text=ids, sound=True)


def header(**changes: Any) -> TokenHeader:
    names = tuple(f"{number}.mp4" for number in range(VIDEOS))
    said = tuple((f"{number} a", f"{number} b")[: number % 3] for number in range(VIDEOS))
    fields: dict[str, Any] = {
        "fingerprint": "abc",
        "codes": 65536,
        "grid": GRID,
        "clip": ClipConfig(resolution=32, sequence_length=8),
        "stride": 8,
        "classes": ("cat", "dog"),
        "videos": {"train": names, "val": names},
        "clips": CLIPS,
        "captions": {"train": said, "val": said},
        "sound": SoundTokens(fingerprint="s", codes=500, grid=SOUND, missing="silence"),
    }
    return TokenHeader.model_validate(fields | changes)


def token_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A token dataset of random codes; the VQGANs in it are a few bytes."""
    told = header(**changes)
    writer = TokenWriter(folder, told)
    drawn = torch.Generator().manual_seed(seed)
    for unit in writer.missing():
        clips = range(unit.first, unit.stop)
        sizes = (len(clips), *GRID), (len(clips), *SOUND)
        writer.write(
            unit,
            torch.randint(0, 65536, sizes[0], generator=drawn),
            labels=[clip % 3 - 1 for clip in clips],
            videos=[clip % VIDEOS for clip in clips],
            starts=[clip / 3 for clip in clips],
            sound=torch.randint(0, 500, sizes[1], generator=drawn) if told.sound else None,
        )
    writer.finish()
    (folder / "vqgan.ckpt").write_bytes(b"vqgan")
    (folder / "sound.ckpt").write_bytes(b"sound")
    return folder


def converted(tokens: Path, out: Path, clips: int = 16) -> Path:
    """The stream of a token dataset, in chunks of so many clips."""
    held = read_manifest(tokens)
    write_stream(tokens, held, out, clips * clip_layout(held).itemsize, lambda done: None)
    return out


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_folder(tmp_path_factory.mktemp("tokens") / "t")


@pytest.fixture(scope="module")
def stream(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 training chunks and one for validation."""
    return converted(tokens, tmp_path_factory.mktemp("stream") / "s")


def opened(store: Store, split: Any = "train", wanted: Wanted = ALL, seed: int = 0) -> Any:
    return StreamDataset(store, store.manifest(), split, wanted, seed)


def remote(folder: Path, cache: Path) -> Store:
    """The stream as if at an address."""
    return Store(f"file://{folder}", cache)


def chunks_in(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("train/*.bin")}


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_same_clips_come_out_as_went_in(tokens: Path, stream: Path, split: Any) -> None:
    source, read = TokenDataset(tokens, split, ALL), opened(Store(str(stream)), split)
    assert len(read) == len(source) == CLIPS[split]
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    for number, origin in enumerate(order):
        clip, expected = read[number], source[origin]
        assert torch.equal(clip.tokens, expected.tokens)
        assert torch.equal(clip.sound, expected.sound)
        assert clip.tokens.dtype == clip.sound.dtype == torch.int64
        assert clip.label == expected.label
        # Of several captions, each epoch takes another.
        said = source.captions[origin % VIDEOS] or ("",)
        epochs = [read[number, epoch * len(read)].text.tolist() for epoch in range(len(said))]
        assert sorted(epochs) == sorted(ids(text).tolist() for text in said)
    assert Store(str(stream)).manifest().unlabelled == {"train": 100, "val": 3}


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    folder = converted(token_folder(tmp_path / "t", sound=None, captions={}), tmp_path / "s")
    store = Store(str(folder))
    clip = opened(store, wanted=Wanted(text=ids))[0]
    assert clip.text.tolist() == clip.sound.tolist() == []
    assert not (folder / "sound.ckpt").exists()
    with pytest.raises(DataError, match="holds no sound"):
        opened(store)


def test_litdata_reads_each_split_by_itself(stream: Path) -> None:
    held = StreamingDataset(str(stream / "train"))
    read = opened(Store(str(stream)))
    assert len(held) == len(read)
    for number in (0, 15, 16, 299):
        clip = held[number]
        assert clip["tokens"].dtype == np.uint16
        assert clip["tokens"].tolist() == read[number].tokens.tolist()
        assert clip["sound"].tolist() == read[number].sound.tolist()
        assert clip["label"] == read[number].label
    origin = int(np.random.default_rng(0).permutation(300)[16])
    assert (held[16]["video"], held[16]["start"]) == (origin % VIDEOS, origin / 3)


def test_an_epoch_takes_every_slot_once_window_by_window() -> None:
    sizes = [5] * 19 + [3]
    order = WindowOrder(sizes)
    chunk_of = np.repeat(np.arange(20), sizes)
    first, second, other = (
        [order(seed, epoch)[place] for place in range(98)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    assert sorted(first) == sorted(second) == sorted(other) == list(range(98))
    assert first != second and first != other
    windows = order(0, 0).windows
    assert [len(window) for window in windows] == [7, 7, 6] and WINDOW == 8
    stops = np.cumsum([sum(sizes[chunk] for chunk in window) for window in windows])
    for window, part in zip(windows, np.split(np.array(first), stops[:-1]), strict=True):
        assert {*chunk_of[part]} == {*window}
        assert len({*chunk_of[part[:10]]}) > 3  # its chunks are mixed
    # A single window, too, is another in each epoch and for each seed.
    keys = ((0, 0), (0, 1), (1, 0))
    alone = [WindowOrder([20, 20])(*key) for key in keys]
    assert len({tuple(order[place] for place in range(40)) for order in alone}) == 3
    again = order(0, 0)
    assert [again[place] for place in (97, 0, 50)] == [first[place] for place in (97, 0, 50)]


def batches(
    store: Store, steps: int, start: int = 0, workers: int = 0, rank: int = 0, world: int = 1
) -> list[list[Any]]:
    """The clips of each step from one on, of 12 a step, that a rank reads."""
    read = opened(store, seed=3)
    sampler = ConsumedBatchSampler(
        len(read), 3, 12 // world, steps, start, rank, world, order=read.order
    )
    loader = DataLoader(read, batch_sampler=sampler, num_workers=workers, collate_fn=list)
    return [[(c.tokens.tolist(), c.label, c.text.tolist()) for c in batch] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_was_stopped_goes_on_with_the_same_batches(
    stream: Path, tmp_path: Path, workers: int, world: int
) -> None:
    steps, stop = 40, 17  # 25 are an epoch
    whole = batches(Store(str(stream)), steps)
    assert whole[:15] != whole[25:]
    store = remote(stream, tmp_path / "cache")
    ranks = [batches(store, steps, stop, workers, rank, world) for rank in range(world)]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole[stop:]


def soon(holds: Callable[[], bool]) -> bool:
    """Whether something comes true within seconds."""
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_give_way_to_later_ones_and_come_back(
    stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(module, "SHARE", 0.0)
    store = remote(stream, tmp_path / "cache")
    killed = store.folder / ".fetching-killed"
    killed.mkdir(parents=True)
    os.utime(killed, (0, 0))
    found = batches(store, 50, workers=workers)  # two epochs of 19 chunks
    assert found == batches(Store(str(stream)), 50)
    assert soon(lambda: len(chunks_in(store.folder)) <= 2 * WINDOW)
    assert len(chunks_in(store.folder)) > WINDOW
    assert not killed.exists()


def test_no_more_chunks_are_open_than_a_window_has(stream: Path) -> None:
    read = opened(Store(str(stream)))
    assert len(list(read)) == 300
    assert len(read._open) == WINDOW


def test_the_next_chunks_are_fetched_meanwhile(stream: Path, tmp_path: Path) -> None:
    store = remote(stream, tmp_path / "cache")
    read = opened(store)
    order = read.order(0, 0)
    assert read[order[0], 0]
    next_ones = {f"chunk-0-{chunk}.bin" for window in order.windows[:2] for chunk in window}
    assert soon(lambda: chunks_in(store.folder) == next_ones)
    assert len(next_ones) < 19


def test_processes_share_a_cache(stream: Path, tmp_path: Path) -> None:
    store = remote(stream, tmp_path / "cache")
    read = opened(store)
    loader = DataLoader(read, 10, num_workers=2, collate_fn=list)
    labels = [clip.label for batch in loader for clip in batch]
    assert len(chunks_in(store.folder)) == 19
    store.source = "file://nowhere"  # nothing is fetched again, not by an unpickled one either
    travelled = pickle.loads(pickle.dumps(read))
    assert [travelled[number].label for number in range(300)] == labels


class Bucket(SimpleHTTPRequestHandler):
    """As much of S3 as reading takes."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bucket_is_read_like_a_folder(
    stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    handler = partial(Bucket, directory=str(stream.parent.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "nowhere",
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        store = Store(f"s3://{stream.parent.name}/{stream.name}", tmp_path / "cache")
        assert batches(store, 30, workers=workers) == batches(Store(str(stream)), 30)
        with pytest.raises(DataError, match="none/manifest.json: cannot be fetched into .*: .*404"):
            Store("s3://none", tmp_path / "cache").manifest()
        server.shutdown()
    before = time.monotonic()
    with pytest.raises(DataError, match="cannot be fetched into .*: Could not connect"):
        Store("s3://none", tmp_path / "cache").manifest()
    assert time.monotonic() - before < 20


def damage(folder: Path, how: str) -> None:
    """One training chunk with a flipped bit, cut, or missing."""
    chunk = folder / "train" / "chunk-0-4.bin"
    content = bytearray(chunk.read_bytes())
    content[700] ^= 8
    match how:
        case "flipped":
            chunk.write_bytes(content)
        case "cut":
            chunk.write_bytes(content[:-9])
        case "gone":
            chunk.unlink()


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize(
    ("how", "said"),
    [("flipped", "sha256 is"), ("cut", r"\d+ bytes, not \d+"), ("gone", "No such file")],
)
def test_damage_is_an_error_that_names_the_chunk(
    stream: Path, tmp_path: Path, how: str, said: str, is_remote: bool
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(stream, folder)
    damage(folder, how)
    store = remote(folder, tmp_path / "cache") if is_remote else Store(str(folder))
    read = opened(store)
    before = time.monotonic()
    assert read[3 * 16]  # others can be read
    with pytest.raises(DataError, match=rf"{folder}/train/chunk-0-4\.bin: .*({said})") as caught:
        read[4 * 16 + 2]
    assert "copy the stream" in caught.value.hint or not is_remote or how == "gone"
    assert time.monotonic() - before < 5
    assert not (tmp_path / "cache" / "train" / "chunk-0-4.bin").exists()


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damage_in_the_cache_is_fetched_again(stream: Path, tmp_path: Path, how: str) -> None:
    store = remote(stream, tmp_path / "cache")
    expected = [clip.tokens.tolist() for clip in opened(store)]
    damage(store.folder, how)
    assert [clip.tokens.tolist() for clip in opened(store)] == expected


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def converted_until_killed(tokens: Path, out: Path, write: int) -> None:
    """Kills its process in the middle of some write."""
    path = Path.write_bytes
    done: list[Path] = []

    def dies(self: Path, content: bytes) -> int:
        done.append(self)
        if len(done) == write:
            path(self, content[:100])
            os.kill(os.getpid(), signal.SIGKILL)
        return path(self, content)

    Path.write_bytes = dies  # type: ignore[method-assign,assignment]
    converted(tokens, out)


# Of its 26 files: the first manifest, chunks, an index, a VQGAN, the last manifest.
@pytest.mark.parametrize("write", [1, 2, 9, 21, 24, 26])
def test_a_conversion_that_was_killed_is_not_read_and_goes_on(
    tokens: Path, stream: Path, tmp_path: Path, write: int
) -> None:
    out = tmp_path / "s"
    process = get_context("fork").Process(target=converted_until_killed, args=(tokens, out, write))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if write > 1:
        with pytest.raises(DataError, match="incomplete") as caught:
            Store(str(out)).manifest()
        assert "tats tokens convert" in caught.value.hint
    else:
        assert Store(str(out)).manifest() is None
    there = {path: path.stat().st_ino for path in out.glob("*/*.bin")}
    converted(tokens, out)
    assert files(out) == files(stream)
    assert all(path.stat().st_ino == number for path, number in there.items())
    converted(tokens, out)  # once more changes nothing
    assert files(out) == files(stream)


def test_nothing_is_written_over_something_else(tokens: Path, stream: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    shutil.copytree(stream, out)
    with pytest.raises(DataError, match="differs in chunk_clips"):
        converted(tokens, out, clips=17)
    with pytest.raises(DataError, match="differs in source"):
        converted(token_folder(tmp_path / "other", seed=1), out)
    with pytest.raises(DataError, match="is not empty and no stream"):
        converted(tokens, tokens)
    assert files(out) == files(stream)


def test_a_stream_is_told_from_other_folders(tokens: Path, stream: Path, tmp_path: Path) -> None:
    assert Store(str(stream)).manifest() and not is_token_dataset(stream)
    for other in (tokens, tmp_path, tmp_path / "absent"):
        assert Store(str(other)).manifest() is None
    assert remote(tokens, tmp_path / "cache").manifest() is None
    with pytest.raises(
        DataError, match="absent/manifest.json: cannot be fetched into .*: No such file"
    ):
        remote(tmp_path / "absent", tmp_path / "cache").manifest()
    with pytest.raises(DataError, match="of a stream, not of a token dataset") as caught:
        read_manifest(stream)
    assert 'pip install "tatscli[stream]"' in caught.value.hint
    whole = (stream / "manifest.json").read_text()
    for text in (
        "not json",
        whole[:-9],
        whole.replace('"cat"', '"cow"'),
        '{"kind": "tats stream", "version": 99}',
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match="manifest.json: (damaged|format 99)"):
            Store(str(tmp_path)).manifest()


def test_addresses_that_litdata_knows_can_be_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ("s3://bucket/set", "file:///disk/set", "https://host/set")
    assert [can_stream(url) for url in urls] == [True, True, False]
    monkeypatch.setitem(sys.modules, "litdata", None)
    assert [can_stream(url) for url in urls] == [False, True, False]


def test_without_litdata_the_error_names_the_extra(
    tokens: Path, stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "litdata", None)
    monkeypatch.setitem(sys.modules, "litdata.streaming.writer", None)
    monkeypatch.setitem(sys.modules, "litdata.streaming.downloader", None)
    for needs in (
        lambda: converted(tokens, tmp_path / "s"),
        lambda: Store("s3://bucket/set", tmp_path / "cache").manifest(),
    ):
        with pytest.raises(DataError, match="litdata, which .* is not installed") as caught:
            needs()
        assert caught.value.hint == 'pip install "tatscli[stream]"'
    assert opened(Store(str(stream)))[0]  # a folder needs it not


def test_a_litdata_that_writes_otherwise_is_refused(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BinaryWriter.add_item

    def other(self: Any, index: int, items: Any) -> Any:
        return original(self, index, dict(reversed(items.items())))

    monkeypatch.setattr(BinaryWriter, "add_item", other)
    with pytest.raises(DataError, match="writes chunks in another way"):
        converted(tokens, tmp_path / "s")


def test_a_full_cache_is_said(
    stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, into: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=f"fetched into {tmp_path}: No space") as caught:
        remote(stream, tmp_path).manifest()
    assert "TATS_CACHE" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"manifest.json cannot be written: No space.*bytes free"):
        converted(tokens, tmp_path / "s")
