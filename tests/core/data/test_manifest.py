import json
import logging
import math
from pathlib import Path

import pytest

from tatscli.core.data.manifest import ManifestRow, clean_captions, read_rows
from tatscli.errors import DataError


def table(tmp_path: Path, text: str, name: str = "m.csv") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_a_path_is_all_that_a_row_needs(tmp_path: Path) -> None:
    assert read_rows(table(tmp_path, "path\na.mp4\n")) == [
        ManifestRow(2, "a.mp4", "", 0.0, math.inf, "", ())
    ]


def test_a_list_has_a_path_a_line(tmp_path: Path) -> None:
    rows = read_rows(table(tmp_path, "\ufeffa, b.mp4\r\n\r\n  c//d \n", "m.txt"))
    assert rows == [ManifestRow(1, "a, b.mp4", ""), ManifestRow(3, "c/d", "")]
    with pytest.raises(DataError, match="names no videos"):
        read_rows(table(tmp_path, "\n \n", "m.txt"))


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.JSONL"])
def test_all_formats_say_the_same(tmp_path: Path, name: str) -> None:
    records = [
        {"path": "x//a.mp4", "split": "train", "start": "1.5", "end": "3", "label": "cat"},
        {"path": "/b.mp4", "split": "validation", "caption": "A cat,\n sits"},
        {"path": "c.mp4", "split": "test", "label": "7"},
    ]
    if name == "m.JSONL":
        lines = [json.dumps(record) for record in records]
    else:
        mark = "\t" if name == "m.tsv" else ","
        columns = ["caption", "path", "split", "start", "end", "label"]
        rows = [[record.get(column, "") for column in columns] for record in records]
        lines = [mark.join(f'"{value}"' for value in row) for row in [columns, *rows]]
    rows = read_rows(table(tmp_path, "\ufeff" + "\r\n".join(lines), name))
    assert [(r.path, r.split, r.start, r.end, r.label, r.captions) for r in rows] == [
        ("x/a.mp4", "train", 1.5, 3.0, "cat", ()),
        ("/b.mp4", "val", 0.0, math.inf, "", ("A cat, sits",)),
        ("c.mp4", "test", 0.0, math.inf, "7", ()),
    ]


def test_json_has_numbers_nothing_and_lists_of_captions(tmp_path: Path) -> None:
    text = (
        '{"path": "a", "start": 1, "end": null, "label": 3, "caption": ["x", " ", "y"]}\n\n'
        '{"path": "b", "caption": null, "split": null, "label": null}\n'
    )
    assert read_rows(table(tmp_path, text, "m.jsonl")) == [
        ManifestRow(1, "a", "", 1.0, math.inf, "3", ("x", "y")),
        ManifestRow(3, "b", ""),
    ]


def test_rows_of_one_part_give_it_several_captions(tmp_path: Path) -> None:
    text = "path,start,label,caption\na,1,,one\nb,,,\na,1.0,cat,two\na,2,,three\na,1,,one\n"
    rows = read_rows(table(tmp_path, text))
    assert [(row.line, row.path, row.label, row.captions) for row in rows] == [
        (2, "a", "cat", ("one", "two")),
        (3, "b", "", ()),
        (5, "a", "", ("three",)),
    ]


def test_unknown_columns_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(read_rows(table(tmp_path, ",path,fps\n0,a,3\n1,b,4\n"))) == 2
    (record,) = caplog.records
    assert record.getMessage().endswith("m.csv: unknown columns are ignored: (no name), fps")


def test_the_column_that_was_meant_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_rows(table(tmp_path, "path,Labels,captions,caption\n0,a,b,c\n"))
    (record,) = caplog.records
    assert record.getMessage().endswith("ignored: labels (did you mean label?), captions")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", None, "names no videos"),
        ("path\n\n", None, "names no videos"),
        ("a.mp4,train\n", 1, "no column path among a.mp4, train"),
        ("path,path\n", 1, "two columns are named path"),
        ("path,label\na\n", 2, "1 values for 2 columns"),
        ('path,caption\na,"x\ny"\nb,x,y\n', 4, "3 values for 2 columns"),
        ('path\n"a\n', 2, "not a table"),
        ("path,split\na,dev\n", 2, "split is 'dev', it must be train, val, validation, test"),
        ("path,start\na,-1\n", 2, "start is '-1', it must be seconds"),
        ("path,start\na,nan\n", 2, "start is 'nan'"),
        ("path,end\na,1:20\n", 2, "end is '1:20'"),
        ("path,start,end\na,2,2\n", 2, "end is '2', it must be later than start, 2"),
        ("path,split\n,train\n", 2, "path is ''"),
        ("path,label\na,x\na,y\n", 3, "label is y, that of the same part of a in line 2 is x"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_line(
    tmp_path: Path, text: str, line: int | None, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(table(tmp_path, text))
    place = f"m.csv, line {line}: " if line else "m.csv: "
    assert place + said in caught.value.message


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', "not an object with a path: ['a']"),
        ('{"label": "x"}', "not an object with a path"),
        ('{"path": 3}', "path is 3"),
        ('{"path": "a\\u0000b"}', "path is 'a\\x00b'"),
        ('{"path": "a", "split": 1}', "split is 1"),
        ('{"path": "a", "start": true}', "start is True"),
        ('{"path": "a", "end": Infinity}', "end is inf"),
        ('{"path": "a", "label": 1.5}', "label is 1.5"),
        ('{"path": "a", "caption": 5}', "caption is 5, it must be a text or a list of texts"),
        ('{"path": "a", "caption": ["x", 5]}', "caption is ['x', 5]"),
    ],
)
def test_what_is_wrong_in_json_lines_is_named_with_its_line(
    tmp_path: Path, record: str, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(table(tmp_path, f'{{"path": "b"}}\n{record}\n', "m.jsonl"))
    assert f"m.jsonl, line 2: {said}" in caught.value.message


def test_other_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path\na\ncafé\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 3: byte 0xe9 is not UTF-8"):
        read_rows(tmp_path / "m.csv")


def test_captions_have_single_spaces_and_differ() -> None:
    assert clean_captions([" a  cat\t", "", "\n", "a cat", "dog"]) == ("a cat", "dog")
