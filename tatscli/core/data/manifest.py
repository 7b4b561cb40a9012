"""Manifests: tables that name the videos of a dataset, as CSV, TSV or JSONL, and plain lists.

Columns are path (below the manifest's folder, or absolute), split, start and end in seconds, label
and caption; all but path may be missing or empty. Rows that differ in their captions only are one.
A list is text with one path a line.
"""

import csv
import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from tatscli.errors import DataError

logger = logging.getLogger(__name__)

MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".txt"})
COLUMNS = ("path", "split", "start", "end", "label", "caption")

RowSplit = Literal["", "train", "val", "test"]

_SPLITS: dict[str, RowSplit] = {
    "": "",
    "train": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
}
_COLUMNS_HINT = f"columns are {', '.join(COLUMNS)}; all but path may be left out"


@dataclass(frozen=True)
class ManifestRow:
    """A video, or a part of one, that a manifest names.

    Attributes:
        line: Where its row starts, from 1; of several rows the first.
        path: As given, but with single slashes.
        split: Which it is said to belong to; empty where nothing is said.
        start: Seconds after the first frame of the video.
        end: Seconds after the first frame at which the part is over.
        label: Name of its class; empty without one.
        captions: What it is said to show.
    """

    line: int
    path: str
    split: RowSplit
    start: float = 0.0
    end: float = math.inf
    label: str = ""
    captions: tuple[str, ...] = ()


def read_rows(file: Path) -> list[ManifestRow]:
    """Reads a manifest, in its order.

    Raises:
        DataError: It cannot be read, names no video, or a value is wrong; the line is named.
    """
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8",
            "save the manifest as UTF-8",
        ) from error
    if file.suffix.lower() == ".jsonl":
        records = _json_records(file, text)
    elif file.suffix.lower() == ".txt":
        lines = enumerate(map(str.strip, text.split("\n")), 1)
        records = ((number, {"path": path}) for number, path in lines if path)
    else:
        records = _table_records(file, text, "\t" if file.suffix.lower() == ".tsv" else ",")
    unknown: dict[str, str] = {}
    merged: dict[tuple[str, str, float, float], ManifestRow] = {}
    for line, record in records:
        for name in record:
            if name not in COLUMNS and name not in unknown:
                unknown[name] = _named(name, record)
        row = _row(file, line, record)
        key = (row.path, row.split, row.start, row.end)
        merged[key] = _merged(file, merged[key], row) if key in merged else row
    if unknown:
        logger.warning("%s: unknown columns are ignored: %s", file, ", ".join(unknown.values()))
    if not merged:
        raise DataError(f"{file}: names no videos", _COLUMNS_HINT)
    return list(merged.values())


def _named(column: str, record: Iterable[str]) -> str:
    """An unknown column, with the one that was probably meant."""
    near = get_close_matches(column, set(COLUMNS) - set(record), 1)
    return f"{column} (did you mean {near[0]}?)" if near else column or "(no name)"


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Captions with single spaces, each once, without blank ones."""
    return tuple(dict.fromkeys(clean for text in texts if (clean := " ".join(text.split()))))


def _table_records(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(
        StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    names: list[str] = []
    line = 1
    try:
        for values in reader:
            if values and not names:
                names = _header(file, line, values)
            elif values:
                if len(values) != len(names):
                    raise DataError(
                        f"{file}, line {line}: {len(values)} values for {len(names)} columns",
                        "put values that hold a separator or a line break in double quotes",
                    )
                yield line, dict(zip(names, values, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file}, line {line}: not a table: {error}") from error


def _header(file: Path, line: int, values: list[str]) -> list[str]:
    names = [value.strip().lower() for value in values]
    if "path" not in names:
        raise DataError(
            f"{file}, line {line}: no column path among {', '.join(values)}",
            f"the first line names the columns; {_COLUMNS_HINT}",
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{file}, line {line}: two columns are named {', '.join(twice)}")
    return names


def _json_records(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file}, line {line}: not JSON: {error}", "a JSONL file has one object a line"
            ) from error
        if not isinstance(record, dict) or "path" not in record:
            raise DataError(
                f"{file}, line {line}: not an object with a path: {_brief(record)}", _COLUMNS_HINT
            )
        yield line, record


def _row(file: Path, line: int, record: dict[str, Any]) -> ManifestRow:
    def wrong(name: str, allowed: str) -> DataError:
        return DataError(
            f"{file}, line {line}: {name} is {_brief(record[name])}, it must be {allowed}"
        )

    def seconds(name: str, default: float) -> float:
        value = record.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return default
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise wrong(name, "seconds from 0 on")
        return number

    path = record["path"]
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise wrong("path", "the path of a video file or of a folder of frames")
    split = "" if record.get("split") is None else record["split"]
    if not isinstance(split, str) or split.strip() not in _SPLITS:
        raise wrong("split", "train, val, validation, test or empty")
    start, end = seconds("start", 0.0), seconds("end", math.inf)
    if end <= start:
        raise wrong("end", f"later than start, {start:g}")
    label = record.get("label")
    if isinstance(label, bool) or not isinstance(label, str | int | None):
        raise wrong("label", "the name of a class or a whole number")
    caption = record.get("caption")
    captions = caption if isinstance(caption, list) else [] if caption is None else [caption]
    if not all(isinstance(text, str) for text in captions):
        raise wrong("caption", "a text or a list of texts")
    return ManifestRow(
        line,
        Path(path).as_posix(),
        _SPLITS[split.strip()],
        start,
        end,
        "" if label is None else str(label).strip(),
        clean_captions(captions),
    )


def _merged(file: Path, first: ManifestRow, second: ManifestRow) -> ManifestRow:
    if first.label and second.label and first.label != second.label:
        raise DataError(
            f"{file}, line {second.line}: label is {second.label}, that of the same part of "
            f"{first.path} in line {first.line} is {first.label}",
            "a video has one class",
        )
    return replace(
        first,
        label=first.label or second.label,
        captions=clean_captions([*first.captions, *second.captions]),
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
