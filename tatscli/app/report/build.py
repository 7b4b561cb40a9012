"""The report: what runs and samples look like, on one page that opens anywhere."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import shorten
from typing import Any

from tatscli import __version__
from tatscli.app.diagnose import diagnose
from tatscli.app.pictures import GRID_SAMPLES, STRIP_ROWS
from tatscli.app.report import page
from tatscli.app.report.curves import charts
from tatscli.app.report.folders import Run, Samples, find, flat
from tatscli.app.report.page import Section
from tatscli.app.reporting import Reporter, Silent
from tatscli.app.results import Evaluation, read_results
from tatscli.config.words import counted, with_error
from tatscli.core.data.video import VideoInfo, probe
from tatscli.core.diagnosis import Verdict
from tatscli.core.files import write_whole
from tatscli.errors import DataError, RunError, TatsError

PAGE_BYTES = 20_000_000
"""Of a page at most: it can still be mailed, and opened on a phone."""
STEPS = 24
"""Steps of a run whose pictures are shown, if there are more."""
AROUND = 8000
"""Bytes of a page around a picture, the poster of a video among them."""
GALLERY = 12
"""Samples of a folder that are shown one by one."""
STAGES = {"vqgan": "Stage one: VQGAN", "gpt": "Stage two: GPT"}
PRECISIONS = {"32-true": "float32", "bf16-mixed": "bf16"}
"""What Lightning calls the values of ``--precision``."""
SPLITS = {"train": "training clips", "val": "held-out clips"}
"""Of a dataset, and what the clips of each are called."""
STATUS_LEVELS = {"finished": "good", "stopped": "watch", "failed": "bad"}
HEADLINES = ("value", "right", "psnr_db")
"""The figure of an evaluation that is written large: the first of these that it has."""
_MEASURED = {"value", "mean"}
"""What a figure is called whose error is just called the standard error."""
_LISTED = 12
"""Numbers of a list that are written out; of more, how many there are."""
Kept = dict[Path, VideoInfo]
"""Files that a page has room for, and what is known of them."""
NAME = 60
"""Letters of what a picture among others is of."""
UNCOMPARED = {"train.out"}
"""Settings that differ between any two runs."""


@dataclass(frozen=True)
class ReportResult:
    """A page.

    Attributes:
        page: Where it is.
        runs: Runs on it.
        sample_folders: Folders of samples on it.
        megabytes: Its size.
        left_out: What it had no room for.
    """

    page: Path
    runs: int
    sample_folders: int
    megabytes: float
    left_out: list[str]


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    metrics: Sequence[Path] = (),
    reporter: Reporter | None = None,
) -> ReportResult:
    """Write one page about runs and samples, which needs nothing beside it.

    Args:
        folders: Run folders of either stage, folders of samples, and folders that hold some of
            them, such as that of the demo. A run may go on, have failed, or have no metrics yet.
        out: The page; ``report.html`` in the first folder if not given.
        metrics: Files of results of evaluations, as ``--json`` prints them, beside those in the
            folders.
        reporter: Told what cannot be read.

    Raises:
        RunError: A folder holds neither runs nor samples, or the page cannot be written.
        DataError: A listing of samples, or a result of an evaluation, cannot be read.
    """
    reporter = reporter or Silent()
    out = out or folders[0] / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise RunError(f"--out {out} names no page", "give a name that ends in .html")
    if out.is_file() and not page.is_page(out):
        raise RunError(
            f"{out} is there already, and no report wrote it",
            "give the page another name with --out, or move that file away",
        )
    runs, samples = find(folders, reporter)
    given = [evaluation for file in metrics for evaluation in read_results(file)]
    shown: list[Run | Samples] = [*runs, *samples]
    found = [evaluation for one in shown for evaluation in one.evaluations]
    front = [*_summary(runs), *_verdicts(runs, reporter), *_curves(runs)]
    back = [*_codes(runs), *_evaluations([*given, *found]), *_settings(runs)]
    taken = len(page.page("", "", [*front, *back]).encode())
    kept, left_out = _fitting(_wanted(runs, samples), PAGE_BYTES - taken)
    pictures = [*_drawn(runs, kept), *_samples(samples, kept)]
    now = datetime.now().astimezone()
    text = f"Made on {_day(now)} by tats {__version__}."
    if any(run.status == "running" for run in runs):
        text += " A run was still going on: the same command shows what came since."
    content = page.page(_title(folders), text, [*front, *pictures, *back]).encode()
    write_whole(out, content, RunError)
    return ReportResult(out, len(runs), len(samples), round(len(content) / 1e6, 2), left_out)


def verdicts(run: Path, reporter: Reporter) -> list[Verdict]:
    """What the figures of a run say; nothing where they cannot be read."""
    try:
        return diagnose(run)
    except TatsError as error:
        reporter.warn(f"no verdicts: {error.message}")
        return []


# ------------------------------------------------------------------ sections


def _summary(runs: Sequence[Run]) -> Iterator[Section]:
    if runs:
        cards = [
            page.card(
                run.name,
                page.facts(_facts(run)) + _failure(run) + _sessions(run) + _commands(run),
                page.pill(run.status, STATUS_LEVELS.get(run.status, "")),
                colour,
            )
            for run, colour in zip(runs, _colours(runs), strict=True)
        ]
        yield Section("Summary", "", page.row(*cards))


def _facts(run: Run) -> dict[str, str]:
    record, precision = run.record, run.record.get("precision", "")
    most = run.settings.get("train.max_steps")
    found = {
        "Stage": STAGES.get(run.kind, run.kind),
        "Steps": f"{run.steps:,}" + (f" of {most:,}" if isinstance(most, int) else ""),
        "Started": _day(run.started),
        "Time": _time(run),
        "Last written": _day(run.last_sign) if run.status == "running" else "",
        "Device": _device(record),
        "Precision": PRECISIONS.get(str(precision), str(precision)),
        "Data": str(run.settings.get("data.data") or ""),
        "Content": str(_mapping(record.get("data")).get("holds", "")),
        "Parameters": _count(record.get("parameters")),
        "Versions": _versions(record),
        "Folder": str(run.folder.path),
    }
    return {name: value for name, value in found.items() if value}


def _failure(run: Run) -> str:
    return page.failure(str(run.record["error"])) if run.record.get("error") else ""


def _time(run: Run) -> str:
    time, count = _clock(run.time), len(run.sessions)
    return f"{time} in {count} sessions" if time and count > 1 else time


def _sessions(run: Run) -> str:
    """What came of each session of a run that was continued."""
    if len(run.sessions) < 2:
        return ""
    rows = [
        [
            _day(session.started) or "unknown",
            " to ".join(f"{n:,}" for n in dict.fromkeys(session.steps)) or "none",
            _clock(session.time) or "unknown",
            session.status,
        ]
        for session in run.sessions
    ]
    table = page.table(["Started", "Steps", "Time", "Status"], rows)
    return page.folded("Sessions", page.boxed(table))


def _commands(run: Run) -> str:
    """The command line of each session."""
    lines = [shlex.join(["tats", *s.command[1:]]) for s in run.sessions if s.command]
    title = "Commands" if len(lines) > 1 else "Command"
    return page.folded(title, page.commands(lines)) if lines else ""


def _verdicts(runs: Sequence[Run], reporter: Reporter) -> Iterator[Section]:
    found = [
        replace(verdict, subject=f"{run.name}: {verdict.subject}") if len(runs) > 1 else verdict
        for run in runs
        for verdict in verdicts(run.folder.path, reporter)
    ]
    if found:
        order = list(page.LEVELS)
        body = page.verdicts(sorted(found, key=lambda verdict: order.index(verdict.level)))
        yield Section("Verdicts", "What the figures say, worst first.", body)


def _curves(runs: Sequence[Run]) -> Iterator[Section]:
    if not runs:
        return
    bodies = []
    for kind, some in _by_kind(runs):
        measured = [run for run in some if run.metrics]
        if measured:
            names = [run.name for run in measured]
            body = page.curves(names, charts([run.metrics for run in measured]))
            body += page.folded("The same as a table", _values(measured))
            bodies.append(page.part(STAGES.get(kind, kind), body))
    if not bodies:
        text = "No metrics yet: the first are written once --log-every steps are done."
        yield Section("Curves", text, "")
        return
    text = (
        "Over steps. Drag across a chart to zoom, or pinch, or turn the wheel with Ctrl; a double "
        "click shows all again. Point at a chart to read its values."
    )
    yield Section("Curves", text, "\n".join(bodies))


def _values(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for name, points in sorted(run.metrics.items()):
            values = [value for _, value in points]
            shown = [points[-1][1], min(values), max(values)]
            title = name if len(runs) == 1 else f"{run.name}: {name}"
            rows.append([title, *(f"{value:.4g}" for value in shown)])
    return page.table(["Metric", "Last", "Lowest", "Highest"], rows, numbers=True)


def _drawn(runs: Sequence[Run], kept: Kept) -> Iterator[Section]:
    titles = {
        "vqgan": (
            "Reconstructions",
            "Clips through the codes and back, training clips first, then held-out ones: in the "
            "video the original is left and the reconstruction right, in the still each original "
            "is above its reconstruction.",
        ),
        "gpt": ("Samples while training", "What the GPT wrote at each step, always from one seed."),
    }
    for kind, some in _by_kind(runs):
        bodies = []
        for run in some:
            shown = {
                step: page.row(*(page.media(f, _drawn_caption(f, step), kept[f]) for f in drawn))
                for step, drawn in _in_page(run.drawn, kept).items()
            }
            if shown:
                told = _pictured(run)
                if len(shown) < len(run.drawn):
                    told += (
                        f" {len(shown)} of {len(run.drawn)} steps; all are in {run.folder.samples}."
                    )
                bodies.append(page.part(run.name, page.slider(shown), told.strip()))
        if bodies:
            title, text = titles.get(kind, (f"Pictures of {kind}", ""))
            yield Section(title, text, "\n".join(bodies))


def _pictured(run: Run) -> str:
    """What the clips in its pictures are of, and of which split, where a run recorded it."""
    counts, said, first = _mapping(run.record.get("pictured")), [], 1
    stored = run.record.get("pictured_as")
    names = _in_order([str(name) for name in stored]) if isinstance(stored, list) else ""
    for split, name in SPLITS.items():
        if isinstance(count := counts.get(split), int) and count:
            numbers = " and ".join(map(str, range(first, first + count)))
            said.append(f"{name}: {numbers}")
            first += count
    told = f"From the top left on, {'; '.join(said)}." if said else ""
    if names:
        told += f" They are of: {names}." if told else f"From the top left on, of: {names}."
    return told


def _drawn_caption(file: Path, step: int) -> str:
    what = "Video" if file.suffix == ".mp4" else "Frames"
    return f"{what} at step {step:,}"


def _samples(samples: Sequence[Samples], kept: Kept) -> Iterator[Section]:
    bodies = []
    for folder in samples:
        grid = [
            page.media(file, caption, kept[file])
            for file, caption in zip(_grid(folder), _grid_captions(folder), strict=True)
            if file in kept
        ]
        single = [
            page.media(file, folder.caption(number), kept[file])
            for number, file in enumerate(folder.files)
            if file in kept
        ]
        settings = {k.replace("_", " "): _shown(v) for k, v in folder.settings.items()}
        body = page.row(*grid) if grid else ""
        if single:
            body += page.part("One by one", page.row(*single, small=True))
        body += page.folded("How they were drawn", page.facts(settings))
        text = counted(len(folder.listed), "sample")
        if single and len(single) < len(folder.listed):
            text += f", of which {len(single)} are shown one by one"
        bodies.append(page.part(folder.name, body, f"{text}."))
    if bodies:
        yield Section("Samples", "", "\n".join(bodies))


def _grid_captions(samples: Samples) -> tuple[str, str]:
    """What is seen in the video of the first samples, and in the still."""
    shown = min(len(samples.listed), GRID_SAMPLES)
    rows = min(shown, STRIP_ROWS // 2 if samples.has_truth else STRIP_ROWS)
    beside, below = (
        f", {place} what its video really shows" if samples.has_truth else ""
        for place in ("each right of", "each below")
    )
    names = _in_order([samples.asked(number) for number in range(shown)])
    return (
        f"The first {counted(shown, 'sample')}{beside}" + (f": {names}" if names else ""),
        f"Frames of the first {rows}, in a row each{below}",
    )


def _in_order(names: Sequence[str]) -> str:
    """What each picture is of, once where it is the same; nothing where no name is known."""
    if not any(names):
        return ""
    told = [shorten(name or "unknown", NAME, placeholder=" ...") for name in names]
    return told[0] if len(set(names)) == 1 else "; ".join(told)


def _codes(runs: Sequence[Run]) -> Iterator[Section]:
    cards = []
    for run in runs:
        codes, used = run.settings.get("model.codes"), run.metrics.get("val/codes_used")
        if isinstance(codes, int) and used:
            step, count = used[-1]
            share = count / codes
            body = page.bar(share, f"{count:,.0f} of {codes:,} codes occur ({share:.0%})")
            if perplexity := run.metrics.get("train/perplexity"):
                in_training = f"{perplexity[-1][1]:.1f}"
                body += page.facts({"Perplexity in training": in_training, "Step": f"{step:,}"})
            cards.append(page.card(run.name, body))
    if cards:
        text = (
            "How much of the codebook the held-out clips need. The perplexity, of the last batch "
            "of training, is how many codes, used equally often, would carry as much."
        )
        yield Section("Codes", text, page.row(*cards))


def _evaluations(evaluations: Sequence[Evaluation]) -> Iterator[Section]:
    cards = [_evaluation(found) for found in evaluations]
    if cards:
        yield Section(
            "Metrics",
            "Compare figures only where everything below them agrees.",
            page.row(*cards),
        )


def _evaluation(evaluation: Evaluation) -> str:
    values = {k: v for k, v in flat(evaluation.values).items() if v not in (None, "", [], {})}
    title = str(values.pop("measure", evaluation.file.stem))
    keys = [key for name in HEADLINES for key in values if key.split(".")[-1] == name]
    signature = values.pop("signature", None)
    told = {key: _with_error(values, key) for key in values if not _is_error(values, key)}
    hero = page.hero(told.pop(keys[0]), _words(keys[0])) if keys else ""
    rest = {_words(key): text for key, text in told.items()}
    signed = page.commands([str(signature)]) if signature else ""
    return page.card(title, hero + page.facts({**rest, "file": str(evaluation.file)}) + signed)


def _with_error(values: dict[str, Any], key: str) -> str:
    """A figure, with its standard error where there is one."""
    value, error = values[key], values.get(_error_key(key))
    if isinstance(value, int | float) and isinstance(error, int | float):
        return with_error(value, error)
    return _shown(value)


def _error_key(key: str) -> str:
    """Where the standard error of a figure stands, if it has one."""
    within, _, name = key.rpartition(".")
    error = "standard_error" if name in _MEASURED else f"{name}_standard_error"
    return f"{within}.{error}" if within else error


def _is_error(values: dict[str, Any], key: str) -> bool:
    return key.endswith("standard_error") and any(_error_key(other) == key for other in values)


def _settings(runs: Sequence[Run]) -> Iterator[Section]:
    bodies, compared = [], False
    for kind, some in _by_kind(runs):
        known = [run for run in some if run.settings]
        keys = list(dict.fromkeys(key for run in known for key in run.settings))
        differing = [
            key
            for key in keys
            if key not in UNCOMPARED and len({_shown(run.settings.get(key)) for run in known}) > 1
        ]
        compared |= len(known) > 1
        body = ""
        if differing:
            rows = [[key, *(_shown(run.settings.get(key)) for run in known)] for key in differing]
            body = page.boxed(page.table(["Setting", *(run.name for run in known)], rows))
        elif len(known) > 1:
            body = page.note("The same settings in all of these runs.")
        body += "".join(
            page.folded(
                f"All settings of {run.name}",
                page.settings({k: _shown(v) for k, v in run.settings.items()}, set(differing)),
            )
            for run in known
        )
        if known:
            bodies.append(page.part(STAGES.get(kind, kind), body))
    if bodies:
        text = "What differs between the runs; all of it is in config.yaml." if compared else ""
        yield Section("Settings", text, "\n".join(bodies))


# ------------------------------------------------------------------ what there is room for


def _wanted(runs: Sequence[Run], samples: Sequence[Samples]) -> list[Path]:
    """Files to show, most wanted first: the newest of runs and grids, single samples, the past."""
    past = [_by_worth(run.drawn) for run in runs]
    newest = [file for steps in past for step in steps[:1] for file in step]
    grids = [file for folder in samples for file in _grid(folder)]
    single = [file for folder in samples for file in folder.files[:GALLERY]]
    older = [
        file
        for turn in range(1, STEPS)
        for steps in past
        for step in steps[turn : turn + 1]
        for file in step
    ]
    wanted = [*newest, *grids, *single, *older]
    return [file for file in wanted if file.suffix in page.KINDS and file.is_file()]


def _by_worth(drawn: Mapping[int, list[Path]]) -> list[list[Path]]:
    """The pictures of some steps: the newest first, then so that any number of them is spread."""
    numbers = sorted(drawn)
    if len(numbers) > STEPS:
        last = len(numbers) - 1
        numbers = [numbers[round(n * last / (STEPS - 1))] for n in range(STEPS)]
    count = len(numbers)

    def worth(n: int) -> int:
        back = count - 1 - n
        return (back & -back) or count  # the largest power of two in it: halves, quarters, ...

    return [drawn[numbers[n]] for n in sorted(range(count), key=worth, reverse=True)]


def _fitting(files: Iterable[Path], room: int) -> tuple[Kept, list[str]]:
    """The files that fit into so many bytes of a page, first come; and what is to say of others."""
    kept: Kept = {}
    left_out = []
    for file in files:
        size = file.stat().st_size
        needs = 4 * -(-size // 3) + AROUND
        try:
            if needs <= room:
                kept[file] = probe(file)
                room -= needs
            else:
                left_out.append(f"{file}: {size / 1e6:.1f} MB, no room")
        except DataError as error:
            left_out.append(error.message)
    return kept, left_out


def _in_page(drawn: Mapping[int, list[Path]], kept: Kept) -> dict[int, list[Path]]:
    found = {step: [file for file in files if file in kept] for step, files in drawn.items()}
    return {step: files for step, files in found.items() if files}


def _grid(samples: Samples) -> tuple[Path, Path]:
    return samples.folder / "grid.mp4", samples.folder / "grid.png"


# ------------------------------------------------------------------ words


def _title(folders: Sequence[Path]) -> str:
    names = list(dict.fromkeys(folder.resolve().name for folder in folders))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _by_kind(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    kinds = sorted({run.kind for run in runs}, key=[*STAGES, *(r.kind for r in runs)].index)
    return [(kind, [run for run in runs if run.kind == kind]) for kind in kinds]


def _colours(runs: Sequence[Run]) -> list[int | None]:
    """The colour of each run in the curves, where several share them."""
    places: dict[str, int] = {}
    for _, some in _by_kind(runs):
        measured = [run.name for run in some if run.metrics]
        if len(measured) > 1:
            places |= {name: number for number, name in enumerate(measured)}
    return [places.get(run.name) for run in runs]


def _device(record: Mapping[str, Any]) -> str:
    machine, world = _mapping(record.get("machine")), record.get("world", 1)
    gpus = machine.get("gpus") or []
    if gpus:
        kinds = {str(name): gpus.count(name) for name in gpus}
        text = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    elif machine:
        text = f"CPU, {machine.get('cores')} cores"
    else:
        return ""
    return text if world == 1 else f"{text}, {world} processes"


def _versions(record: Mapping[str, Any]) -> str:
    packages = {"tats": record.get("tats"), **_mapping(record.get("packages"))}
    return ", ".join(f"{name} {packages[name]}" for name in ("tats", "torch") if packages.get(name))


def _mapping(value: Any) -> dict[str, Any]:
    """A part of a record, which may have been lost or come from elsewhere."""
    return value if isinstance(value, dict) else {}


def _count(number: Any) -> str:
    if not isinstance(number, int):
        return ""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def _day(moment: datetime | None) -> str:
    return f"{moment:%d %b %Y, %H:%M}".lstrip("0") if moment else ""


def _clock(time: timedelta | None) -> str:
    if time is None:
        return ""
    seconds = max(0, int(time.total_seconds()))
    parts = {"d": seconds // 86400, "h": seconds // 3600 % 24, "min": seconds // 60 % 60}
    said = [f"{number} {unit}" for unit, number in parts.items() if number]
    return " ".join([*said[:2], f"{seconds % 60} s"] if len(said) < 2 else said[:2])


def _words(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")


def _numbers(values: list[Any]) -> int:
    """How many numbers a list holds, in lists of lists too; none where there is anything else."""
    counts = [
        _numbers(one) if isinstance(one, list) else int(isinstance(one, int | float))
        for one in values
    ]
    return sum(counts) if all(counts) else 0


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        numbers = _numbers(value)
        if numbers > _LISTED:
            return f"{numbers:,} values"
        plain = all(isinstance(one, int | float) for one in value)
        return (" " if plain else "; ").join(map(_shown, value)) or "none"
    return str(value)
