"""What a report can show: runs, folders of samples, and folders that hold some of them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tatscli.app.listing import LISTING, read_listing
from tatscli.app.report.curves import Points
from tatscli.app.reporting import Reporter
from tatscli.app.results import Evaluation, read_results
from tatscli.app.run import RunFolder, read_figures
from tatscli.config.files import read_layer
from tatscli.errors import ConfigError, DataError, RunError

CONFIG, RECORD = "config.yaml", "run.json"
WHAT_TO_GIVE = (
    "give the folder of a training (its --out), one that tats sample wrote, or that of the demo"
)
DRAWN = re.compile(r"(?:reconstructions|samples)-(\d+)\.(?:png|mp4)")
"""What a run draws at a step."""
UNLIKE_SAMPLES = {"index", "file", "lossless", "truth"}
"""What is known about a sample beside its condition and its settings."""
GIVEN_FILES = {"given": "from", "audio": "sound of"}
"""Which files a sample was given, and how that is said."""


@dataclass(frozen=True)
class Session:
    """From where a run was started, or continued, to where it ended.

    Attributes:
        status: As that of a run; ``killed`` where it could not say how it ended.
        command: As typed.
        steps: The first and the last step that came of it; nothing where there is none.
        started: When.
        ended: When; of one that goes on, when it last wrote a metric.
    """

    status: str
    command: list[str]
    steps: tuple[int, ...]
    started: datetime | None
    ended: datetime | None

    @property
    def time(self) -> timedelta | None:
        """How long it took."""
        return self.ended - self.started if self.ended and self.started else None


@dataclass(frozen=True)
class Run:
    """A run folder, as far as it is there: the run may go on, or have failed.

    Attributes:
        folder: Where it is.
        name: What tells it from the others.
        kind: ``vqgan`` or ``gpt``.
        record: What ``run.json`` holds.
        settings: Its config, by dotted key.
        metrics: Its curves, by metric.
        drawn: Pictures and videos, by the step at which they were drawn.
        evaluations: Results of evaluation that lie in it.
    """

    folder: RunFolder
    name: str
    kind: str
    record: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, Points]
    drawn: dict[int, list[Path]]
    evaluations: list[Evaluation]

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``stopped`` or ``failed``; ``unknown`` without a record."""
        return str(self.record.get("status", "unknown"))

    @property
    def steps(self) -> int:
        """Steps done, as far as the files say."""
        logged = (points[-1][0] for points in self.metrics.values())
        return max([_whole(self.record.get("steps")), *logged, *self.drawn])

    @property
    def sessions(self) -> list[Session]:
        """The first one and, where it was stopped and continued, those that followed."""
        earlier = self.record.get("sessions")
        records = [s for s in earlier if isinstance(s, dict)] if isinstance(earlier, list) else []
        records.append(self.record)
        done = [*(_whole(record.get("steps_before")) for record in records), self.steps]
        ends = [*(_moment(record.get("ended")) for record in records[:-1]), self.last_sign]
        return [
            Session(
                status=str(record.get("status", "unknown")),
                command=_words(record.get("command")),
                steps=(before + 1, after) if before < after else (),
                started=_moment(record.get("started")),
                ended=end,
            )
            for record, end, (before, after) in zip(records, ends, pairwise(done), strict=True)
        ]

    @property
    def started(self) -> datetime | None:
        """When it was started."""
        return self.sessions[0].started

    @property
    def last_sign(self) -> datetime | None:
        """When it ended; of a run that goes on, when it last wrote a metric."""
        if ended := _moment(self.record.get("ended")):
            return ended
        file = self.folder.metrics
        return datetime.fromtimestamp(file.stat().st_mtime).astimezone() if file.is_file() else None

    @property
    def time(self) -> timedelta | None:
        """Of all sessions, without the time between them."""
        known = [session.time for session in self.sessions if session.time]
        return sum(known, timedelta()) if known else None


@dataclass(frozen=True)
class Samples:
    """A folder that ``tats sample`` wrote.

    Attributes:
        folder: Where it is.
        name: What tells it from the others.
        listed: What is known about each sample.
        evaluations: Results of evaluation that lie in it.
    """

    folder: Path
    name: str
    listed: list[dict[str, Any]]
    evaluations: list[Evaluation]

    @property
    def settings(self) -> dict[str, Any]:
        """What all samples share."""
        first, *others = self.listed
        return {
            key: value
            for key, value in first.items()
            if key not in UNLIKE_SAMPLES and all(other.get(key) == value for other in others)
        }

    @property
    def has_truth(self) -> bool:
        """Whether they were given videos, of which it is known what they really show."""
        return "truth" in self.listed[0]

    def asked(self, number: int) -> str:
        """What a sample was asked for, and what it was given; nothing where there is neither."""
        sample = self.listed[number]
        asked = [str(sample[key]) for key in ("label", "text", "class") if sample.get(key)]
        for key, word in GIVEN_FILES.items():
            if sample.get(key):
                start = sample.get(f"{key}_start")
                at = "" if start is None else f" at {start} s"
                asked.append(f"{word} {self._given[Path(str(sample[key]))]}{at}")
        return ", ".join(dict.fromkeys(asked))

    def caption(self, number: int) -> str:
        """Which sample it is."""
        name, asked = f"sample {self.listed[number].get('index', number)}", self.asked(number)
        return f"{name}: {asked}" if asked else name

    @cached_property
    def _given(self) -> dict[Path, str]:
        """What tells each file that samples were given from the others."""
        given = (sample[key] for sample in self.listed for key in GIVEN_FILES if sample.get(key))
        paths = list(dict.fromkeys(Path(str(path)) for path in given))
        return dict(zip(paths, _names(paths), strict=True))

    @property
    def files(self) -> list[Path]:
        """The videos."""
        return [self.folder / str(sample["file"]) for sample in self.listed]


def find(folders: Sequence[Path], reporter: Reporter) -> tuple[list[Run], list[Samples]]:
    """The runs and samples in folders, stage one first.

    Args:
        folders: Run folders, folders of samples, and folders that hold some of them, such as that
            of the demo.
        reporter: Told what cannot be read.

    Raises:
        RunError: A folder is missing, or holds neither.
        DataError: The listing of a folder of samples is damaged.
    """
    places = list(dict.fromkeys(place for folder in folders for place in _places(folder)))
    names = dict(zip(places, _names(places), strict=True))
    runs = [_run(place, names[place], reporter) for place in places if _is_run(place)]
    samples = [
        Samples(place, names[place], read_listing(place), _evaluations(place, reporter))
        for place in places
        if (place / LISTING).is_file()
    ]
    return sorted(runs, key=lambda run: run.kind == "gpt"), samples


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _places(folder: Path) -> list[Path]:
    """The folders to show of one that was given, which may be among them."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise RunError(f"{folder} {what}, expected the folder of a run or of samples", WHAT_TO_GIVE)
    marks = [depth + mark for depth in ("", "*/", "*/*/") for mark in (CONFIG, RECORD, LISTING)]
    found = [file.parent for mark in marks for file in sorted(folder.resolve().glob(mark))]
    if not found:
        raise RunError(f"{folder} holds no run and no samples", WHAT_TO_GIVE)
    return found


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / RECORD).is_file()


def _names(places: Sequence[Path]) -> Iterator[str]:
    """The shortest ends of paths that tell each from the others."""
    ends = Counter(end for place in places for end in _ends(place))
    for place in places:
        yield "/".join(next((end for end in _ends(place) if ends[end] == 1), place.parts))


def _ends(path: Path) -> Iterator[tuple[str, ...]]:
    """The ends of a path, from its name on."""
    return (path.parts[-count:] for count in range(1, len(path.parts) + 1))


def _run(place: Path, name: str, reporter: Reporter) -> Run:
    folder = RunFolder(place)
    record = folder.record
    settings: dict[str, Any] = {}
    try:
        settings = dict(read_layer(folder.config).values)
    except ConfigError as error:
        reporter.warn(error.message)
    # Only runs of the GPT name a VQGAN.
    kind = record.get("kind") or ("gpt" if "vqgan" in settings else "vqgan")
    drawn: dict[int, list[Path]] = {}
    for file in sorted(folder.samples.glob("*")):
        if match := DRAWN.fullmatch(file.name):
            drawn.setdefault(int(match[1]), []).append(file)
    return Run(
        folder=folder,
        name=name,
        kind=str(kind),
        record=record,
        settings=flat(settings),
        metrics=read_figures(folder.metrics, strict=False),
        drawn=dict(sorted(drawn.items())),
        evaluations=_evaluations(place, reporter),
    )


def _evaluations(folder: Path, reporter: Reporter) -> list[Evaluation]:
    found: list[Evaluation] = []
    for file in sorted(folder.glob("*.json")):
        if file.name not in (RECORD, LISTING):
            try:
                found += read_results(file)
            except DataError as error:
                reporter.note(f"left out: {error.message}")
    return found


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _words(command: Any) -> list[str]:
    return [str(word) for word in command] if isinstance(command, list) else []


def _moment(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
