"""Files appear whole or not at all, and what the system says becomes a message with the path."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tatscli.core.files import UNFINISHED, aside, claim_empty, held_alone, written_whole
from tatscli.errors import CheckpointError, DataError, RunError


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_takes_its_name_when_it_is_complete(tmp_path: Path, sync: bool) -> None:
    file = tmp_path / "new" / "a.txt"
    for content in ("first", "second"):
        with written_whole(file, DataError, sync=sync) as partial:
            partial.write_text(content)
            assert list(file.parent.glob(UNFINISHED)) == [partial]
            assert not file.exists() or file.read_text() == "first"
        assert file.read_text() == content
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), ZeroDivisionError(), OSError("gone")])
def test_any_failure_leaves_the_file_before_and_nothing_else(
    tmp_path: Path, problem: BaseException
) -> None:
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(type(problem)), aside(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise problem
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"


def test_a_full_disk_has_path_bytes_free_and_a_hint(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    with pytest.raises(CheckpointError) as caught, written_whole(file, CheckpointError):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = caught.value.message
    assert message.startswith(f"{file} cannot be written: No space left on device (")
    assert message.endswith(" bytes free)")
    assert caught.value.hint == "free some space, or write elsewhere"
    with pytest.raises(RunError) as caught_too, written_whole(file, RunError):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert "quota" in caught_too.value.hint


def test_a_folder_that_holds_something_is_not_claimed(tmp_path: Path) -> None:
    claim_empty(tmp_path / "new", "")
    claim_empty(tmp_path, "")
    (tmp_path / "note.txt").touch()
    for path, message, hint in (
        (tmp_path, "exists and is not empty; nothing was overwritten", "choose another"),
        (tmp_path / "note.txt", "is a file, and a folder is to be written", "choose another name"),
    ):
        with pytest.raises(RunError) as caught:
            claim_empty(path, "choose another", RunError)
        assert (caught.value.message, caught.value.hint) == (f"{path} {message}", hint)


def test_a_folder_is_held_by_one_process_and_free_afterwards(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tatscli.core.files import held_alone\n"
        "with held_alone(Path(sys.argv[1]), 'wait'): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout and other.stdout.readline() == "held\n"
    with (
        pytest.raises(DataError, match="another process is writing into it") as caught,
        held_alone(tmp_path, "wait"),
    ):
        pass
    assert caught.value.hint == "wait"
    other.kill()
    other.communicate()
    claim_empty(tmp_path, "")  # what a process that was killed leaves is nothing
    with held_alone(tmp_path, "wait"):
        pass
    assert not list(tmp_path.iterdir())
