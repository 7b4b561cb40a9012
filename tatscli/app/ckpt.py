"""Checkpoint files: whether they are whole, and what they hold."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatscli.app.reporting import Reporter, Silent
from tatscli.core.checkpoint import (
    HEADER,
    TrainedGPT,
    TrainedVQGAN,
    continues_a_run,
    read_trained,
    require_intact,
)
from tatscli.core.original import is_original, read_original
from tatscli.core.paths import find_checkpoint
from tatscli.errors import CheckpointError


@dataclass(frozen=True)
class CheckpointVerdict:
    """Whether a checkpoint is whole.

    Attributes:
        file: Which.
        intact: Whether every byte is as it was written, and all weights are numbers that fit.
        holds: What it is, where that can be read.
        step: Step of training.
        continues: Whether a run can go on from it, rather than only start from its weights.
        reason: What is wrong with it.
    """

    file: Path
    intact: bool
    holds: str = ""
    step: int | None = None
    continues: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds.

    Attributes:
        file: Which.
        bytes: Its size.
        layout: ``tats``, or ``published``.
        format: Number of our format, of our layout.
        version: Version of tats that wrote it.
        holds: ``vqgan``, or ``gpt`` with its VQGAN.
        step: Step of training.
        continues: Whether a run can go on from it, rather than only start from its weights.
        processes: Processes of the run that saved it, where one can go on from it.
        parameters: Of the model itself.
        config: Of the model.
        clip: Geometry of the clips it was trained on.
        frame_rate: Of these clips, as kept; 0 where it is not known.
        grid: Latent grid (t, h, w) of a clip; empty where clips do not fit the VQGAN.
        vqgan: Fingerprint of the VQGAN.
        classes: Names of the classes.
        conditions: What a GPT is told.
    """

    file: Path
    bytes: int
    layout: str
    format: int | None
    version: str
    holds: str
    step: int
    continues: bool
    processes: int | None
    parameters: int
    config: dict[str, Any]
    clip: dict[str, Any]
    frame_rate: float
    grid: list[int]
    vqgan: str
    classes: list[str]
    conditions: list[str]


def verify_checkpoints(
    paths: Iterable[Path], reporter: Reporter | None = None
) -> list[CheckpointVerdict]:
    """Read every byte of checkpoints.

    Args:
        paths: Checkpoint files, and run folders, of which all checkpoints are read.
        reporter: Told about progress.

    Raises:
        CheckpointError: A path does not exist, or is a folder without checkpoints.
    """
    files = [file for path in paths for file in _files(path)]
    verdicts = []
    with (reporter or Silent()).task("reading", "checkpoints", len(files)) as task:
        for done, file in enumerate(files, 1):
            verdicts.append(_verdict(file))
            task.update(done)
    return verdicts


def describe_checkpoint(path: Path) -> CheckpointInfo:
    """What a checkpoint holds.

    Args:
        path: Checkpoint file, or run folder: its best, else its last.

    Raises:
        CheckpointError: It cannot be read, or is none.
    """
    file = find_checkpoint(path)
    raw = read_original(file)
    trained = read_trained(file)
    vqgan = trained.vqgan if isinstance(trained, TrainedGPT) else trained
    continues, header = continues_a_run(raw), {} if is_original(raw) else raw[HEADER]
    return CheckpointInfo(
        file=file,
        bytes=file.stat().st_size,
        layout="tats" if header else "published",
        format=header.get("format"),
        version=str(header.get("version", "")),
        holds="gpt" if isinstance(trained, TrainedGPT) else "vqgan",
        step=trained.step,
        continues=continues,
        processes=len(raw["random_states"]) if continues else None,
        parameters=sum(p.numel() for p in trained.model.parameters()),
        config=trained.model.config.model_dump(mode="json"),
        clip=vqgan.clip.model_dump(mode="json"),
        frame_rate=vqgan.rate,
        grid=_grid(vqgan),
        vqgan=vqgan.model.fingerprint(),
        classes=list(trained.classes) if isinstance(trained, TrainedGPT) else [],
        conditions=[part.kind for part in trained.model.config.condition.parts]
        if isinstance(trained, TrainedGPT)
        else [],
    )


def _grid(vqgan: TrainedVQGAN) -> list[int]:
    try:
        return list(vqgan.grid)
    except ValueError:
        return []


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield find_checkpoint(path)
        return
    found = [*sorted((path / "checkpoints").glob("*.ckpt")), *sorted(path.glob("*.ckpt"))]
    if not found:
        find_checkpoint(path)  # says what was looked for
    yield from found


def _verdict(file: Path) -> CheckpointVerdict:
    try:
        require_intact(file)
        raw, trained = read_original(file), read_trained(file)
    except CheckpointError as error:
        reason = error.message.removeprefix(f"{file}: ").removeprefix(f"{file} ")
        return CheckpointVerdict(file, intact=False, reason=reason)
    holds = "gpt" if isinstance(trained, TrainedGPT) else "vqgan"
    return CheckpointVerdict(file, True, holds, trained.step, continues_a_run(raw))
