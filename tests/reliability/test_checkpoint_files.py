"""Checkpoint files under kills, full disks and hostile hands (R3, R9, R19).

| | in the suite | with ``-m soak`` |
| --- | --- | --- |
| R3 | 6 kills in writes on another file system than that of temporary files | 60 on each |
| R9 | small, full and read-only disks, limits, quotas, folders that may not be written | a run |
| R19 | code in every place of a file, in every format | the same |
| damage | a flipped bit in 40 records, in 30 places beside them, 20 cuts | 500, 1000, 200 |
"""

import errno
import io
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Start

from tatscli.app.reporting import Silent
from tatscli.app.run import RunFolder
from tatscli.core import files
from tatscli.core.checkpoint import require_intact, save_atomically, step_of
from tatscli.core.files import UNFINISHED, link_atomically
from tatscli.errors import CheckpointError

SHARED = Path("/dev/shm")
FORK = multiprocessing.get_context("fork")  # what a process must import, it has at once


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than that of temporary files."""
    if not SHARED.is_dir():
        pytest.skip("needs a second file system")
    folder = SHARED / f"tats-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    try:
        failed = subprocess.run(mount, check=False, capture_output=True).returncode
    except FileNotFoundError:
        failed = True
    if failed:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def last(vqgan_run: Path) -> Path:
    """A checkpoint of a run."""
    return vqgan_run / "checkpoints" / "last.ckpt"


def write_for_ever(content: dict[str, Any], last: Path, saved: Any) -> None:
    for step in count(saved.value + 1):
        if last.exists():
            link_atomically(last, last.with_name("previous.ckpt"))
        save_atomically(content | {"global_step": step}, last)
        saved.value = step


@pytest.mark.parametrize(
    ("kills", "on"),
    [
        (6, "another disk"),
        pytest.param(60, "another disk", marks=pytest.mark.soak),
        pytest.param(60, "this disk", marks=pytest.mark.soak),
    ],
)
def test_a_kill_in_a_write_leaves_the_file_before(
    last: Path, tmp_path: Path, other_disk: Path, kills: int, on: str
) -> None:
    run = (other_disk if on == "another disk" else tmp_path) / "run"
    folder = run / "checkpoints"
    folder.mkdir(parents=True)
    (run / "config.yaml").touch()
    content = torch.load(last, weights_only=True) | {"padding": torch.randn(7_500_000)}
    chance, torn = random.Random(0), 0
    saved = FORK.Value("i", 0, lock=False)
    for _ in range(kills):
        begun = saved.value
        process = FORK.Process(target=write_for_ever, args=(content, folder / "last.ckpt", saved))
        process.start()
        while saved.value < begun + 2:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.join()
        found = list(folder.glob("*.ckpt"))
        for file in found:
            require_intact(file)
        assert {file.name for file in found} == {"last.ckpt", "previous.ckpt"}
        torn += any(folder.glob(UNFINISHED))
        newest, step = RunFolder.reopen(run, ExitStack()).newest(Silent())
        assert newest.name == "last.ckpt"
        assert step in (saved.value, saved.value + 1)
        assert {file.name for file in folder.iterdir()} == {"last.ckpt", "previous.ckpt"}
        saved.value = step
    assert torn, "no kill came in a write"


def refused(content: Any, file: Path) -> CheckpointError:
    """The error of a write that must leave the file before, and nothing else."""
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    with pytest.raises(CheckpointError) as caught:
        save_atomically(content, file)
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before
    assert caught.value.message.startswith(f"{file} cannot be written: ")
    return caught.value


def test_a_disk_that_is_small_fills_up_or_may_only_be_read(small_disk: Path) -> None:
    file = small_disk / "a.ckpt"
    save_atomically({"w": torch.zeros(250_000)}, file)
    problem = refused({"w": torch.zeros(1_000_000)}, file)
    assert "No space left on device (4,000,000 bytes needed, " in problem.message
    free = shutil.disk_usage(small_disk).free
    problem = refused({"w": torch.zeros(free // 4)}, file)  # there is none for anything else
    assert f"No space left on device ({free:,} bytes needed, {free:,} bytes free" in problem.message
    assert "free some space" in problem.hint
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    problem = refused({"w": torch.zeros(10)}, file)
    assert "Read-only file system" in problem.message and "write elsewhere" in problem.hint
    assert torch.load(file)["w"].shape == (250_000,)


def write_limited(file: Path, limit: int, said: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_atomically({"w": torch.zeros(1_000_000)}, file)
    except CheckpointError as error:
        said.put(error.message)


@pytest.mark.parametrize("limit", [100, 1_000_000])
def test_a_file_that_may_not_grow_leaves_the_one_before(tmp_path: Path, limit: int) -> None:
    file, said = tmp_path / "a.ckpt", FORK.SimpleQueue()
    save_atomically({"step": 1}, file)
    before = file.read_bytes()
    process = FORK.Process(target=write_limited, args=(file, limit, said))
    process.start()
    process.join(30)
    assert not said.empty()
    assert said.get() == f"{file} cannot be written: File too large (4,000,000 bytes needed)"
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_may_not_be_written_is_an_error(other_disk: Path) -> None:
    file = other_disk / "a.ckpt"
    save_atomically({"step": 1}, file)
    other_disk.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # permissions do not hold for root
        problem = refused({"step": 2}, file)
    finally:
        os.seteuid(user)
    assert "Permission denied" in problem.message and "check the permissions" in problem.hint


class Failing(io.RawIOBase):
    """Takes a thousand bytes, then fails as the system does."""

    def __init__(self, number: int) -> None:
        self.number, self.taken = number, 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.taken += len(content)
        if self.taken > 1000:
            raise OSError(self.number, os.strerror(self.number))
        return len(content)


@pytest.mark.parametrize(
    ("number", "told", "hint"),
    [
        (errno.EDQUOT, "Disk quota exceeded (40,000 bytes needed)", "your quota"),
        (errno.EIO, "Input/output error", ""),
    ],
)
def test_what_the_system_says_in_a_write_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: str, hint: str
) -> None:
    save_atomically({"step": 1}, tmp_path / "a.ckpt")
    monkeypatch.setattr(Path, "open", lambda *_: Failing(number))
    with pytest.raises(CheckpointError) as caught:
        save_atomically({"w": torch.zeros(10_000)}, tmp_path / "a.ckpt")
    monkeypatch.undo()
    assert caught.value.message == f"{tmp_path / 'a.ckpt'} cannot be written: {told}"
    assert hint in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_disk_without_room_is_seen_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = torch.zeros(10_000)
    content = {"w": {"a": [shared, shared[:10]], "b": shared.view(10, 1000)}}  # written once
    monkeypatch.setattr(files, "_free", lambda path: 39_999)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: pytest.fail("it was written to"))
        with pytest.raises(
            CheckpointError, match="40,000 bytes needed, 39,999 bytes free"
        ) as caught:
            save_atomically(content, tmp_path / "new" / "a.ckpt")
    assert "free some space" in caught.value.hint
    assert not list(tmp_path.iterdir())
    for free in (40_000, None):
        monkeypatch.setattr(files, "_free", lambda path, free=free: free)
        save_atomically(content, tmp_path / "a.ckpt")


@pytest.mark.soak
def test_a_full_disk_ends_the_run_and_keeps_what_is_there(
    tokens: Path, small_disk: Path, start: Start
) -> None:
    run = small_disk / "run"
    code, _, err = start(
        "gpt", "train", "--data", tokens, "--out", run, "--preset", "tiny", "--width", 64,
        "--checkpoint-every", 5, "--keep-every", 5, "--grid-every", 10_000, "--max-steps", 500,
        "--device", "cpu", "--workers", 0,
    ).end(120)  # fmt: skip
    assert code == 1 and "bytes needed" in err and "bytes free" in err, err
    found = list((run / "checkpoints").glob("*.ckpt"))
    assert found
    for file in found:
        require_intact(file)
    assert not list((run / "checkpoints").glob(".*"))


class Runs:
    """What runs a command as it is unpickled."""

    NAME = "posix.system"

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


class Evaluates(Runs):
    NAME = "builtins.eval"

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.mark)!r}, 'w')",)


class Nested(Runs):
    """Code in a file in the file, for a function of torch that unpickles."""

    NAME = "torch.storage._load_from_bytes"

    def __reduce__(self) -> Any:
        inside = io.BytesIO()
        torch.save(Runs(self.mark), inside)
        return torch.storage._load_from_bytes, (inside.getvalue(),)


PLACES = {
    "alone": lambda bad, good: bad,
    "as a value": lambda bad, good: good | {"more": bad},
    "in a list": lambda bad, good: good | {"more": [1, [2, bad]]},
    "in the header": lambda bad, good: good | {"tats": good["tats"] | {"config": bad}},
    "among the weights": lambda bad, good: good | {"state_dict": {"w": bad}},
    "in a tuple": lambda bad, good: good | {"more": {"a": (bad,)}},
    "in an optimiser": lambda bad, good: good | {"optimizer_states": [{"state": bad}]},
    "as a setting": lambda bad, good: good | {"hyper_parameters": {"args": bad}},
}


def refuses(file: Path, mark: Path, named: str = "") -> None:
    for read in (require_intact, step_of):
        with pytest.raises(CheckpointError, match=r"hostile\.ckpt") as caught:
            read(file)
        assert named in caught.value.message
    assert not mark.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kind", [Runs, Evaluates, Nested])
@pytest.mark.parametrize("place", PLACES)
def test_code_in_a_checkpoint_is_refused_by_name_and_never_run(
    last: Path, tmp_path: Path, place: str, kind: type[Runs], form: str
) -> None:
    mark, file = tmp_path / "ran", tmp_path / "hostile.ckpt"
    content = PLACES[place](kind(mark), torch.load(last, weights_only=True))
    if form == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    refuses(file, mark, kind.NAME if form == "zip" else "")


def dotted(mark: Path) -> bytes:
    """Reaches what a module of torch imports: torch.serialization.os.system."""
    command = f"touch {mark}".encode()
    return b"\x80\x04ctorch.serialization\nos.system\n\x8c%c%b\x85R." % (len(command), command)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_a_way_through_a_module_of_torch_is_refused(last: Path, tmp_path: Path, form: str) -> None:
    mark, file = tmp_path / "ran", tmp_path / "hostile.ckpt"
    file.write_bytes(dotted(mark))
    if form == "zip":
        with zipfile.ZipFile(last) as good, zipfile.ZipFile(file, "w") as bad:
            for name in good.namelist():
                is_pickle = name.endswith("data.pkl")
                bad.writestr(name, dotted(mark) if is_pickle else good.read(name))
    refuses(file, mark)


@pytest.mark.parametrize("kind", [Runs, Evaluates, Nested])
def test_code_in_the_oldest_format_is_refused(tmp_path: Path, kind: type[Runs]) -> None:
    mark, file = tmp_path / "ran", tmp_path / "hostile.ckpt"
    content = pickle.dumps(kind(mark), protocol=2)
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    refuses(file, mark)


@pytest.mark.parametrize("kind", [Runs, Evaluates])
def test_the_code_of_these_tests_does_run_where_nothing_refuses_it(
    tmp_path: Path, kind: type[Runs]
) -> None:
    pickle.loads(pickle.dumps(kind(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()
    pickle.loads(dotted(tmp_path / "ran-too"))
    assert (tmp_path / "ran-too").exists()


def records(file: Path) -> list[range]:
    """Where the content of each record is."""
    with zipfile.ZipFile(file) as archive:
        content, found = file.read_bytes(), []
        for record in archive.infolist():
            at = record.header_offset
            lengths = [int.from_bytes(content[at + i : at + i + 2], "little") for i in (26, 28)]
            start = at + 30 + sum(lengths)
            found.append(range(start, start + record.file_size))
    return [place for place in found if place]


def flip(content: bytes, place: int, bit: int, file: Path) -> bool:
    """Writes a file with one bit flipped; whether it is refused by name."""
    flipped = bytearray(content)
    flipped[place] ^= 1 << bit
    file.write_bytes(flipped)
    try:
        require_intact(file)
    except CheckpointError as error:
        return str(file) in error.message
    return False


@pytest.mark.parametrize("times", [40, pytest.param(500, marks=pytest.mark.soak)])
def test_a_flipped_bit_in_any_record_is_found(last: Path, tmp_path: Path, times: int) -> None:
    content, chance, file = last.read_bytes(), random.Random(0), tmp_path / "flipped.ckpt"
    held = records(last)
    chance.shuffle(held)
    places = [chance.choice(record) for record in islice(cycle(held), times)]
    assert [p for p in places if not flip(content, p, chance.randrange(8), file)] == []


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("times", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_flipped_bit_beside_the_records_is_found_or_changes_nothing(
    last: Path, tmp_path: Path, times: int
) -> None:
    content, chance, file = last.read_bytes(), random.Random(0), tmp_path / "flipped.ckpt"
    held = {place for record in records(last) for place in record}
    beside = [place for place in range(len(content)) if place not in held]
    with zipfile.ZipFile(last) as archive:
        directory = archive.start_dir
    cases = [(chance.choice(beside), chance.randrange(8)) for _ in range(times // 2)]
    cases += [(chance.randrange(directory, len(content)), chance.randrange(8))
              for _ in range(times // 2)]  # fmt: skip
    good = torch.load(last, weights_only=True)["state_dict"]
    for place, bit in cases:
        if flip(content, place, bit, file):
            continue
        for mmap in (False, True):
            found = torch.load(file, weights_only=True, mmap=mmap)["state_dict"]
            assert found.keys() == good.keys()
            assert all(torch.equal(found[name], good[name]) for name in good), (place, bit)


@pytest.mark.parametrize(
    ("place", "bit"),
    [
        (38, 4),  # it is a folder, for which torch gives what its memory happens to hold
        (10, 3),  # it is compressed
        (8, 0),  # it is encrypted
        (6, 6),  # it needs a later version of the format
        (46, 7),  # its name is no text
        (42, 0),  # it begins elsewhere
    ],
)
def test_a_directory_that_says_otherwise_of_a_record_is_refused(
    last: Path, tmp_path: Path, place: int, bit: int
) -> None:
    content = last.read_bytes()
    with zipfile.ZipFile(last) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        entry = content.index(name.encode(), archive.start_dir) - 46
    assert flip(content, entry + place, bit, tmp_path / "flipped.ckpt")


def test_a_compressed_archive_is_refused(last: Path, tmp_path: Path) -> None:
    file = tmp_path / "packed.ckpt"
    with (
        zipfile.ZipFile(last) as plain,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match=r"packed\.ckpt"):
        require_intact(file)


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_a_cut_file_is_refused_by_name(last: Path, tmp_path: Path, times: int) -> None:
    content, file, chance = last.read_bytes(), tmp_path / "cut.ckpt", random.Random(1)
    for length in [0, 1, len(content) - 1, *(chance.randrange(len(content)) for _ in range(times))]:
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
            require_intact(file)
