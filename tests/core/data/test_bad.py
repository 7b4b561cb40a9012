"""Bad videos: named once by all who read, and not more of them than may be."""

import json
import multiprocessing
from pathlib import Path

import pytest

from tatscli.core.data.bad import BadVideos, Undecodable, read_bad, require_good
from tatscli.core.data.index import Problem
from tatscli.errors import DataError


def problems(*names: str) -> list[Problem]:
    return [Problem(name, "is broken") for name in names]


def test_each_is_named_once_whoever_finds_it(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    one, other = (BadVideos(tmp_path, 10, 0.5, problems("a")) for _ in range(2))
    for bad in (one, other):
        bad.keep(file)
    assert one.add(Undecodable("b", "its frame 3 is missing", 0.12))
    assert not one.add(Problem("b", "again"))
    assert not other.add(Problem("b", "found by another process"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == [
        {"path": "a", "reason": "is broken"},
        {"path": "b", "reason": "its frame 3 is missing", "seconds": 0.12},
    ]
    again = BadVideos(tmp_path, 10, 0.5, problems("a"))
    again.keep(file)  # of the same run, continued
    assert not again.add(Problem("b", "still"))
    assert len(read_bad(file)) == 2


def test_more_than_may_be_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    one, other = (BadVideos(tmp_path, 5, 0.4) for _ in range(2))
    for bad in (one, other):
        bad.keep(file)
    one.add(Problem("a", "is broken"))
    other.add(Problem("b", "is broken"))
    with pytest.raises(
        DataError, match=r"3 of 5 videos .* more than --max-bad 0\.4: a: is"
    ) as caught:
        one.add(Problem("c", "is broken"))
    assert str(file) in caught.value.hint and "--max-bad" in caught.value.hint
    with pytest.raises(DataError, match="3 of 5"):  # also when the run goes on
        BadVideos(tmp_path, 5, 0.4).keep(file)


def test_exactly_as_many_as_may_be_are_passed_over(tmp_path: Path) -> None:
    require_good(problems("a", "b"), 4, 0.5, tmp_path)
    require_good(problems(*map(str, range(29))), 100, 0.29, tmp_path)
    require_good([], 0, 0.0, tmp_path)
    with pytest.raises(DataError, match="1 of 4"):
        require_good(problems("a"), 4, 0.0, tmp_path)
    with pytest.raises(DataError, match="a: is broken; b: is broken; c: is broken, and 2 more"):
        require_good(problems(*"abcde"), 5, 0.5, tmp_path)


def add_many(folder: Path, start: int) -> None:
    bad = BadVideos(folder, 1000, 1.0)
    bad.keep(folder / "bad.jsonl")
    for number in range(start, start + 100):
        bad.add(Problem(f"{number:03}" * 30, "is broken"))


def test_processes_that_write_at_once_name_each_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(tmp_path, 50 * n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = (tmp_path / "bad.jsonl").read_text().splitlines()
    named = sorted(json.loads(line)["path"][:3] for line in lines)
    assert named == [f"{n:03}" for n in range(250)]


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"path": "a", "reason": "r"}\n{"pa')
    assert read_bad(file) == [Problem("a", "r")]
    assert read_bad(tmp_path / "none") == []


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").mkdir()
    with pytest.raises(DataError, match=r"bad\.jsonl cannot be written"):
        BadVideos(tmp_path, 10, 0.5, problems("a")).keep(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match=r"bad\.jsonl cannot be read"):
        read_bad(tmp_path / "bad.jsonl")


def test_where_nothing_is_bad_there_is_no_file(tmp_path: Path) -> None:
    BadVideos(tmp_path, 10, 0.0).keep(tmp_path / "bad.jsonl")
    assert not list(tmp_path.iterdir())
