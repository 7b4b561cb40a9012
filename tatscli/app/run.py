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
from collections.abc import Callable, Iterator
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
from tatscli.config.files import dump, read_layer, resolve
from tatscli.config.train import AUTO, GPTTrainConfig, VQGANTrainConfig
from tatscli.core.files import UNFINISHED, claim_empty, held_alone, written_whole
from tatscli.core.signals import STOPS, held_back
from tatscli.errors import CheckpointError, ConfigError, RunError

_BUSY = "wait until it has ended, or stop it; another run needs another --out"

PACKAGES = ("torch", "lightning", "av", "numpy")
_SESSION = ("status", "error", "command", "steps_before", "started", "ended")
"""What is kept of a session that another one continued."""


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

    def require_same(self, config: VQGANTrainConfig | GPTTrainConfig) -> None:
        """Make sure that a run that goes on is the same: same model, same clips, same seed.

        Raises:
            ConfigError: Settings are others; the message has all of them.
        """
        layer = read_layer(self.config)
        # Resolved, since a run of an older version names fewer settings.
        stored = resolve(type(config), [layer]).model_dump(mode="json")
        now = config.model_dump(mode="json")
        changed = [
            f"{section}.{name}: {old} -> {now[section][name]}"
            for section in ("data", "model", "loss")
            for name, old in stored[section].items()
            if name not in ("data", "strict", "max_bad") and now[section][name] != old
        ]
        changed += [
            f"train.{name}: {stored['train'][name]} -> {now['train'][name]}"
            for name in ("seed", "init")
            if stored["train"][name] != now["train"][name]
        ]
        # Neither moves: the run stays in its folder, and its checkpoint holds its VQGAN.
        if now["train"]["out"] not in (stored["train"].get("out"), str(self.path)):
            changed.append(f"train.out: {stored['train'].get('out')} -> {now['train']['out']}")
        changed += [
            f"{name}: {stored.get(name)} -> {now.get(name)}"
            for name in ("vqgan", "sound_vqgan")
            if stored.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigError(
                f"{self.path} was trained with other settings: {'; '.join(changed)}",
                "leave these options out when continuing, or start a new run with another --out",
            )

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
    def recorded(self, *, continued_at: int = 0, **facts: Any) -> Iterator[dict[str, Any]]:
        """Keep ``run.json`` up to date while the run lasts.

        Args:
            continued_at: Steps that were done before, where a run goes on: its earlier sessions are
                kept beside the new one.
            facts: What to record about the run.

        Yields:
            A dict to put more facts into; written when the run ends.
        """
        record = {
            "status": "running",
            "command": sys.argv,
            "folder": str(Path.cwd()),
            "tats": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "machine": _machine(),
            "steps_before": continued_at,
            "started": _now(),
            "sessions": self._sessions() if continued_at else [],
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

    def _sessions(self) -> list[dict[str, Any]]:
        """The sessions of the run so far, the last one too."""
        record = self.record
        if not record:
            return []
        earlier = record.get("sessions")
        last = {name: record[name] for name in _SESSION if name in record}
        if "ended" not in last:  # killed: it was there as long as it wrote figures
            last["status"] = "killed"
            if self.metrics.is_file():
                written = datetime.fromtimestamp(self.metrics.stat().st_mtime).astimezone()
                last["ended"] = written.isoformat(timespec="seconds")
        return [*(earlier if isinstance(earlier, list) else []), last]

    @property
    def model(self) -> dict[str, Any]:
        """Settings of its model, as far as they are written; an imported one has no config file.

        Raises:
            ConfigError: The config file cannot be read.
        """
        held = read_layer(self.config).values if self.config.is_file() else self.record
        model = held.get("model")
        return model if isinstance(model, dict) else {}

    @property
    def _record_file(self) -> Path:
        return self.path / "run.json"

    def _write_record(self, record: dict[str, Any]) -> None:
        if not is_helper():
            write_atomically(self._record_file, json.dumps(record, indent=2) + "\n")


def continued(config: VQGANTrainConfig | GPTTrainConfig, resume: Path | None) -> Path | None:
    """The run that goes on; None where a new one starts."""
    if resume == AUTO:
        return config.folder if RunFolder(config.folder).has_saved else None
    return resume


def newest_gpt(
    runs: Path = Path("runs"),
    reporter: Reporter | None = None,
    lacks: Callable[[RunFolder], str] = lambda _: "",
) -> Path:
    """The GPT run below a folder that saved last, of those that serve.

    Args:
        runs: The folder.
        reporter: Told about newer runs that are passed over, and those whose record is damaged.
        lacks: Why a run does not serve; empty where it does.

    Raises:
        CheckpointError: There is none.
    """
    reporter = reporter or Silent()
    found: list[tuple[float, Path]] = []
    for record in runs.glob("*/run.json"):
        last = RunFolder(record.parent).last
        try:
            kind = json.loads(record.read_text(encoding="utf-8"))["kind"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            reporter.warn(f"passed over {record.parent}: its run.json: {error!r}")
            continue
        if kind == "gpt" and last.is_file():
            found.append((last.stat().st_mtime, record.parent))
    passed_over: list[str] = []
    for _, path in sorted(found, reverse=True):
        if not (reason := lacks(RunFolder(path))):
            if passed_over:
                reporter.note(f"passed over newer GPT runs: {'; '.join(passed_over)}")
            return path
        passed_over.append(f"{path} {reason}")
    found_none = f"there is no GPT run in {runs}"
    if passed_over:
        found_none = f"no GPT run in {runs} can do this: {'; '.join(passed_over)}"
    raise CheckpointError(
        f"--gpt is not given, and {found_none}",
        "give --gpt RUN, or train one: tats gpt train --data DIR --vqgan RUN",
    )


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
