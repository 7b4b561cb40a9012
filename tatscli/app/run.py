"""Run folders: what a training run reads and leaves behind.

``config.yaml`` is the resolved config, written before the first step; ``run.json`` holds versions,
command, hardware and status; beside them ``checkpoints/``, ``metrics.csv`` with the figures of the
run and ``timings.csv`` with those of the machine (see ``read_figures``), TensorBoard events in
``events/``, pictures in ``samples/`` and, where there are any, ``bad_videos.jsonl``.

Importing this loads no torch, so that a folder that cannot be used is an error at once.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tatscli import __version__
from tatscli.app.launch import is_helper
from tatscli.app.reporting import Reporter, Silent
from tatscli.config.base import Config
from tatscli.config.files import dump
from tatscli.core.files import UNFINISHED, claim_empty, held_alone, written_whole
from tatscli.core.signals import STOPS, held_back
from tatscli.errors import CheckpointError, RunError

_BUSY = "wait until it has ended, or stop it; another run needs another --out"

PACKAGES = ("torch", "lightning", "av", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """A folder of one training run."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings of the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line for each value of each metric."""
        return self.path / "metrics.csv"

    @property
    def samples(self) -> Path:
        """Where pictures go."""
        return self.path / "samples"

    @property
    def last(self) -> Path:
        """The checkpoint that continues the run."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def has_saved(self) -> bool:
        """Whether it holds a run that has saved a checkpoint."""
        return self.config.is_file() and bool(self._checkpoints())

    @classmethod
    def create(cls, path: Path, alone: ExitStack, *, anew: bool = False) -> "RunFolder":
        """Make the folder of a new run.

        Args:
            path: Where.
            alone: For so long, no other process may write into it.
            anew: Whether to take the folder of a run that ended before it saved anything.

        Raises:
            RunError: It holds something else already, is written by another process, or cannot be
                made.
        """
        run = cls(path)
        if is_helper():
            return run
        run.require_free(anew=anew)
        try:
            run.samples.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot create {path}: {error.strerror}", "choose another --out"
            ) from None
        alone.enter_context(held_alone(path, _BUSY, RunError))
        if anew:
            for file in (run.metrics, run.timings):
                file.unlink(missing_ok=True)
        return run

    def require_free(self, *, anew: bool = False) -> None:
        """Make sure that a new run can have the folder; see ``create``.

        Raises:
            RunError: It holds something else already.
        """
        if is_helper() or (anew and self.config.is_file() and not self.has_saved):
            return
        hint = "choose another --out"
        if self.config.is_file():
            how = f"--resume {self.path}" if self.has_saved else "--resume auto"
            hint = f"continue that run with {how}, or {hint}"
        claim_empty(self.path, hint, RunError)

    def require_saved(self) -> None:
        """Make sure that the folder holds a run that can be continued.

        Raises:
            RunError: It is no run folder, or has not saved yet.
        """
        if not self.config.is_file():
            raise RunError(
                f"{self.path} is no run folder: it has no config.yaml",
                "--resume takes the folder that an earlier training wrote, its --out",
            )
        if not self.has_saved:
            raise RunError(
                f"{self.path} has saved no checkpoint yet ({self.last} is missing)",
                "start it again with --resume auto, which takes over such a folder, or remove it",
            )

    @classmethod
    def reopen(cls, path: Path, alone: ExitStack) -> "RunFolder":
        """Open the folder of a run that is to be continued.

        Args:
            path: Where.
            alone: For so long, no other process may write into it.

        Raises:
            RunError: It is no run folder, has not saved yet, or is written by another process.
        """
        run = cls(path)
        run.require_saved()
        if not is_helper():
            alone.enter_context(held_alone(path, _BUSY, RunError))
            run.samples.mkdir(exist_ok=True)
            for unfinished in run.last.parent.glob(UNFINISHED):
                unfinished.unlink()
        return run

    def newest(self, reporter: Reporter) -> tuple[Path, int]:
        """The newest checkpoint that is intact, and its step; newer ones are put aside.

        Raises:
            RunError: None is; the message names each with the reason.
        """
        from tatscli.core.checkpoint import require_intact, step_of  # with torch

        steps: dict[Path, int] = {}
        reasons: dict[Path, str] = {}
        for file in self._checkpoints():
            try:
                steps[file] = step_of(file)
            except CheckpointError as error:
                reasons[file] = error.message
        # Of one step, the last knows what came of its validation.
        for file in sorted(steps, key=lambda f: (steps[f], f == self.last), reverse=True):
            try:
                require_intact(file)
            except CheckpointError as error:
                reasons[file] = error.message
                continue
            for broken, reason in reasons.items():
                aside = broken.with_name(f"{broken.name}.damaged")
                reporter.warn(f"skipped, and renamed to {aside.name}: {reason}")
                if not is_helper():
                    broken.replace(aside)
            if reasons:
                reporter.warn(f"going on from {file}, step {steps[file]}")
            return file, steps[file]
        raise RunError(
            f"no checkpoint of {self.path} can be read: {'; '.join(reasons.values())}",
            "start a new run with another --out",
        )

    @property
    def timings(self) -> Path:
        """How long the machine took."""
        return self.path / "timings.csv"

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("*.ckpt"))

    def write_config(self, config: Config) -> None:
        """Write the resolved config."""
        if not is_helper():
            write_atomically(self.config, dump(config))

    @contextmanager
    def recorded(self, **facts: Any) -> Iterator[dict[str, Any]]:
        """Keep ``run.json`` up to date while the run lasts.

        Args:
            facts: What to record about the run.

        Yields:
            A dict to put more facts into; written when the run ends.
        """
        record = {
            "status": "running",
            "command": sys.argv,
            "tats": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "machine": _machine(),
            "started": _now(),
            **facts,
        }
        try:
            self._write_record(record)
            yield record
        except BaseException as error:
            name = type(error).__name__
            record |= {"status": "failed", "raised": name, "error": str(error) or name}
            raise
        finally:
            record["ended"] = _now()
            if record["status"] == "running":
                record["status"] = "finished"
            with held_back(*STOPS):
                self._write_record(record)

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` holds; nothing where it was lost."""
        try:
            record = json.loads(self._record_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    @property
    def _record_file(self) -> Path:
        return self.path / "run.json"

    def _write_record(self, record: dict[str, Any]) -> None:
        if not is_helper():
            write_atomically(self._record_file, json.dumps(record, indent=2) + "\n")


def newest_gpt(runs: Path = Path("runs"), reporter: Reporter | None = None) -> Path:
    """The GPT run below a folder that saved last.

    Args:
        runs: The folder.
        reporter: Told about runs whose record is damaged; they are passed over.

    Raises:
        CheckpointError: There is none.
    """
    found: list[tuple[float, Path]] = []
    for record in runs.glob("*/run.json"):
        last = RunFolder(record.parent).last
        try:
            kind = json.loads(record.read_text(encoding="utf-8"))["kind"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            (reporter or Silent()).warn(f"passed over {record.parent}: its run.json: {error!r}")
            continue
        if kind == "gpt" and last.is_file():
            found.append((last.stat().st_mtime, record.parent))
    if not found:
        raise CheckpointError(
            f"--gpt is not given, and there is no GPT run in {runs}",
            "give --gpt RUN, or train one: tats gpt train --data DIR --vqgan RUN",
        )
    return max(found)[1]


def write_atomically(file: Path, text: str) -> None:
    """Write a text file so that a reader finds the old content or the new.

    Raises:
        RunError: It cannot be written.
    """
    with written_whole(file, RunError) as partial:
        partial.write_text(text, encoding="utf-8")


def read_figures(file: Path, *, strict: bool = True) -> dict[str, list[tuple[int, float]]]:
    """The series of a run's ``metrics.csv`` or ``timings.csv``, by metric; none without the file.

    A last line that is still being written is left out.

    Args:
        file: The file.
        strict: Whether a line that is not ``step,metric,value`` is an error, rather than left out.

    Returns:
        Points (steps done, value) in the order of the steps; the file counts these from 0.

    Raises:
        RunError: A line is no figure, if strict.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    if not file.exists():
        return series
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines[1:], start=2):
        if not line.endswith("\n"):
            break
        try:
            step, name, value = line.split(",")
            series.setdefault(name, []).append((int(step) + 1, float(value)))
        except ValueError:
            if strict:
                raise RunError(f"{file}, line {number}: {line.strip()!r} is no figure") from None
    return {name: sorted(points, key=lambda point: point[0]) for name, points in series.items()}


def _machine() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"system": platform.platform(), "cores": os.cpu_count(), "gpus": gpus}


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
