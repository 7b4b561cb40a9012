"""Encoding and evaluation shared by processes, on the program itself (R14, R16).

| | in the suite | with ``-m soak`` |
| --- | --- | --- |
| R14 | 2 kills of an encoding by two processes: of the second, of both | 20 |
| R16 | evaluation by three processes | by two; encoding by three that torchrun started |
| signals | - | every signal to every process |
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Program, Start, write_config
from tiny_app import Notes, broken, encode_config

from tatscli.app.data import open_videos, synthesise
from tatscli.app.encode import encode
from tatscli.app.evaluate import evaluate_fvd
from tatscli.app.reporting import Silent
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import FVDConfig
from tatscli.config.synth import SynthConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import TrainedVQGAN, save_vqgan
from tatscli.core.data import tokens as token_files
from tatscli.core.data.tokens import Share, TokenUnit, TokenWriter, read_manifest, verify
from tatscli.core.models.vqgan import VQGAN

CLIP = ClipConfig(resolution=8, sequence_length=4)
FRAMES = 131
"""Of each video: with a stride of one frame, 128 clips, half a shard."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Datasets of so many shards, and two more for validation."""

    @cache
    def make(shards: int) -> Path:
        config = SynthConfig(
            classes=2, train_videos=shards, test_videos=2, size=16, video_frames=FRAMES, rate=8,
            codec="ffv1",
        )  # fmt: skip
        return synthesise(tmp_path_factory.mktemp("data"), config).folder

    return make


@pytest.fixture(scope="module")
def vqgan(dataset: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQGAN whose codes are latents of the data, so that clips differ in theirs."""
    torch.manual_seed(0)
    config = VQGANConfig(embedding_dim=4, codes=64, hidden_channels=4, downsample=(2, 4, 4))
    model = VQGAN(config).eval()
    clips = open_videos(dataset(4), CLIP, Silent()).spread("train", 16)
    with torch.no_grad():
        videos = torch.stack([clip.video for clip in clips])
        latents = model.pre_vq_conv(model.encoder(videos)).movedim(1, -1).flatten(0, -2)
        chosen = latents[torch.randperm(len(latents))[: config.codes]]
        model.codebook.embeddings.copy_(chosen)
    file = tmp_path_factory.mktemp("vqgan") / "vqgan.ckpt"
    save_vqgan(TrainedVQGAN(model, CLIP, 8, 0), file)
    return file


def settings(data: Path, out: Path, vqgan: Path) -> Any:
    return encode_config(data, out, vqgan, encode={"stride": 1, "batch_size": 50})


@pytest.fixture(scope="module")
def whole(
    dataset: Callable[[int], Path], vqgan: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], dict[str, str]]:
    """What an encoding by one process, to which nothing happened, wrote."""

    @cache
    def written(shards: int) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("whole") / "tokens"
        result = encode(settings(dataset(shards), folder, vqgan))
        assert result.complete and result.codes_used > 10
        return content(folder)

    return written


def content(folder: Path) -> dict[str, str]:
    """Checksums of all files, hidden ones too, but for the VQGAN, which records the time."""
    files = (path for path in folder.iterdir() if path.name != "vqgan.ckpt")
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in files}


def arguments(data: Path, out: Path, vqgan: Path, processes: int = 1) -> tuple[object, ...]:
    file = write_config(settings(data, out, vqgan), out.with_suffix(".yaml"))
    return ("encode", "--config", file, "--devices", processes, "--workers", 1)


def shards(folder: Path) -> int:
    return len(list(folder.glob("*-?????.json")))


def wait_for_shards(program: Program, folder: Path, more: int = 1) -> bool:
    """Whether so many more shards came before the program ended."""
    before = shards(folder)
    while shards(folder) < before + more:
        if program.process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def second(program: Program) -> int:
    """The process that the first one started; it has other children, too, which read for it."""
    [found] = [
        process
        for process in program.children()
        if b"LOCAL_RANK=1" in Path(f"/proc/{process}/environ").read_bytes()
    ]
    return found


def gone(program: Program, seconds: float = 20) -> bool:
    """Whether all its processes end in time."""
    end = time.monotonic() + seconds
    while program.left() and time.monotonic() < end:
        time.sleep(0.1)
    return not program.left()


@pytest.mark.parametrize(
    ("kills", "size"), [(2, 30), pytest.param(20, 400, marks=pytest.mark.soak)]
)
def test_an_encoding_killed_again_and_again_is_that_of_one_uninterrupted_process(
    dataset: Any, vqgan: Path, whole: Any, start: Start, tmp_path: Path, kills: int, size: int
) -> None:
    out, chance = tmp_path / "tokens", random.Random(0)
    call = arguments(dataset(size), out, vqgan, 2)
    for done in range(kills):
        program = start(*call)
        assert wait_for_shards(program, out), f"it ended after {done} kills; make it longer"
        time.sleep(chance.uniform(0, 0.04))  # some shards
        if done % 2:
            program.kill()
        else:
            os.kill(second(program), signal.SIGKILL)
            code, _, err = program.end()
            assert code == 1
            assert "another process of this command ended with code -9" in err
            assert gone(program)
    kept = shards(out)
    code, _, err = start(*call).end(600)
    assert code == 0, err
    assert f"continuing after {kept} of" in err
    assert content(out) == whole(size)
    assert read_manifest(out).complete and not verify(out)


def test_encodings_that_know_nothing_of_each_other_share_a_folder(
    dataset: Any, vqgan: Path, whole: Any, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    call = arguments(dataset(6), out, vqgan)
    programs = [start(*call, "--json") for _ in range(2)]
    ends = [program.end(120) for program in programs]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert any(json.loads(out)["complete"] for _, out, _ in ends)
    assert content(out) == whole(6)


@pytest.mark.soak
def test_three_processes_of_torchrun_encode_what_one_does(
    dataset: Any, vqgan: Path, whole: Any, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    file = write_config(settings(dataset(6), out, vqgan), tmp_path / "c.yaml")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                "3", "-m", "tatscli")  # fmt: skip
    code, shown, err = start("encode", "--config", file, "--json", before=launcher).end(120)
    assert code == 0, err
    assert json.loads(shown)["complete"]  # one object of three processes
    assert content(out) == whole(6)


@pytest.fixture
def writers(dataset: Any, vqgan: Path, tmp_path: Path) -> Callable[[], TokenWriter]:
    """Writers of one folder, as other processes have them."""
    folder = encode(settings(dataset(4), tmp_path / "tokens", vqgan)).folder
    manifest = read_manifest(folder)
    header = token_files.TokenHeader(
        **{name: getattr(manifest, name) for name in token_files.TokenHeader.model_fields}
    )
    for file in folder.glob("*-?????.*"):
        file.unlink()
    return lambda: TokenWriter(folder, header)


def test_no_two_processes_take_the_same_shard(writers: Callable[[], TokenWriter]) -> None:
    for share in ((Share(0, 2), Share(1, 2)), (Share(), Share())):
        mine, yours = writers(), writers()
        pairs = zip_longest(mine.claims(share[0]), yours.claims(share[1]))
        taken = [unit for unit in chain.from_iterable(pairs) if unit]
        assert sorted(unit.name for unit in taken) == sorted(unit.name for unit in mine.units)
        mine.release()
        yours.release()


def test_what_a_dead_process_had_is_taken_by_another(writers: Callable[[], TokenWriter]) -> None:
    dead, alive = writers(), writers()
    had = next(dead.claims(Share()))
    found = alive.claims(Share())
    first = next(found)
    assert first != had
    dead.release()  # as the system does
    assert had in list(found)


def test_where_the_disk_has_no_locks_the_parts_are_disjoint(
    writers: Callable[[], TokenWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(token_files.fcntl, "flock", none)
    taken: list[TokenUnit] = []
    for number in range(3):
        writer = writers()
        own = len(writer.units) * (number + 1) // 3 - len(writer.units) * number // 3
        claims = writer.claims(Share(number, 3))
        taken += [next(claims) for _ in range(own)]
    assert sorted(unit.name for unit in taken) == sorted(unit.name for unit in writer.units)


def test_a_task_of_a_job_array_begins_with_its_share(
    dataset: Any, vqgan: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = TokenWriter.write

    def spied(writer: TokenWriter, unit: TokenUnit, *rest: Any) -> None:
        written.append(unit.name)
        original(writer, unit, *rest)

    monkeypatch.setattr(TokenWriter, "write", spied)
    for name, value in {"ID": 14, "MIN": 10, "MAX": 14, "STEP": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    out = tmp_path / "tokens"
    encode(settings(dataset(4), out, vqgan))
    # The last of three has the last third, and here, where it is alone, then the others' from
    # their ends.
    assert written == ["val-00000", "val-00001", *(f"train-{n:05}" for n in (3, 2, 1, 0))]
    monkeypatch.undo()
    assert content(out) == whole(4)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five real videos, one of which cannot be decoded, and three others."""
    folder = tmp_path_factory.mktemp("sides")
    config = SynthConfig(classes=1, train_videos=5, test_videos=3, size=16, video_frames=12, rate=8)
    synthesise(folder, config)
    real, fake = (next((folder / split).iterdir()) for split in ("train", "test"))
    bad = sorted(real.glob("*.mp4"))[2]
    bad.write_bytes(broken(bad, folder / "mute.mp4"))
    return real, fake


@pytest.mark.parametrize("processes", [3, pytest.param(2, marks=pytest.mark.soak)])
def test_any_number_of_processes_find_the_distance_that_one_finds(
    sides: tuple[Path, Path], start: Start, processes: int
) -> None:
    options = {"features": "random", "frames": 12, "resolution": 16, "batch_size": 2}
    config = FVDConfig.model_validate(
        {"fvd": options | {"cache": False}, "compute": {"device": "cpu"}}
    )
    notes = Notes()
    one = evaluate_fvd(*sides, config, notes)
    assert (one.real_videos, one.fake_videos, len(one.skipped)) == (4, 3, 1)
    given = [
        "--no-cache",
        *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
    ]
    call = (
        "eval",
        "fvd",
        *sides,
        *given,
        "--device",
        "cpu",
        "--devices",
        processes,
        "--json",
    )
    code, shown, err = start(*call).end(120)
    assert code == 0, err
    found = json.loads(shown)
    # To the last bit: batches are the same, whoever computes them.
    assert (found["value"], found["kernel"]) == (one.value, one.kernel)
    assert (found["real_videos"], found["fake_videos"]) == (4, 3)
    assert found["skipped"] == one.skipped
    assert f"left out {one.skipped[0]}" in err


def test_processes_share_what_only_the_first_finds_in_the_cache(
    sides: tuple[Path, Path], start: Start, tmp_path: Path
) -> None:
    given = ("--features", "random", "--frames", 12, "--resolution", 16, "--device", "cpu")

    def told(*call: object) -> Any:
        cache = str(tmp_path / "cache")
        code, shown, err = start("eval", *call, *given, "--json", TATS_CACHE=cache).end(120)
        assert code == 0, err
        assert "Traceback" not in err
        return json.loads(shown)

    expected = told("fvd", *sides, "--no-cache")["value"]
    told("features", sides[0], "--out", tmp_path / "real.npz")
    # Of the two sides, one is kept; then both are.
    for _ in range(2):
        assert told("fvd", *sides, "--devices", 2)["value"] == expected


@pytest.mark.soak
@pytest.mark.parametrize(
    ("number", "to", "ends_with"),
    [
        (signal.SIGKILL, "first", -signal.SIGKILL),
        (signal.SIGTERM, "first", 128 + signal.SIGTERM),
        *((n, to, 128 + n) for n in (signal.SIGTERM, signal.SIGINT) for to in ("second", "group")),
    ],
)
def test_processes_that_share_work_end_together(
    dataset: Any, vqgan: Path, start: Start, tmp_path: Path, number: int, to: str, ends_with: int
) -> None:
    out = tmp_path / "tokens"
    program = start(*arguments(dataset(80), out, vqgan, 2))
    assert wait_for_shards(program, out, 2)
    first, other = program.process.pid, second(program)
    for process in {"first": [first], "second": [other], "group": [first, other]}[to]:
        os.kill(process, number)
    code, _, err = program.end()
    assert code == ends_with, err
    assert "Traceback" not in err
    assert gone(program)
