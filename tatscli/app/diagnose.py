"""What is to be said about a training run, from its folder, while it lasts and afterwards."""

import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from tatscli.app.reporting import Reporter
from tatscli.app.run import RunFolder, read_figures
from tatscli.config.files import read_layer, resolve
from tatscli.config.train import GPTTrainConfig, LoopConfig, OptimConfig, VQGANTrainConfig
from tatscli.core.diagnosis import Facts, Verdict, judge, worst
from tatscli.errors import NotFiniteError, RunError

PAUSE = 100
"""Times as long as a look took, nobody looks again: a hundredth of the time is spent on it."""
QUIET = 1000
"""Steps after a warning in which the same side of a run is not warned about again."""


def diagnose(run: Path) -> list[Verdict]:
    """What the figures of a run say, whether it runs, finished, was stopped or failed.

    Args:
        run: Its folder.

    Returns:
        A verdict for each side of the run that there is something to say about.

    Raises:
        RunError: It is no run folder, or its figures cannot be read.
    """
    folder = RunFolder(run)
    return judge(_figures(folder), _facts(folder))


class Doctor:
    """Looks at a run while it is trained.

    Args:
        run: Its folder.
        reporter: Warned once when something becomes bad.
    """

    def __init__(self, run: RunFolder, reporter: Reporter) -> None:
        self._run, self._reporter = run, reporter
        self._remark, self._next = "", 0.0
        self._bad: set[str] = set()
        self._warned: dict[str, int] = {}

    def look(self, step: int, *, is_last: bool = False) -> str:
        """The worst that is to be said at present, in one line; empty where all is well.

        Args:
            step: Steps done.
            is_last: Whether nobody will look again.
        """
        began = time.monotonic()
        if began < self._next and not is_last:
            return self._remark
        try:
            verdicts = diagnose(self._run.path)
        except (OSError, RunError):  # training goes on without
            return self._remark
        found = worst(verdicts)
        self._remark = found.line if found else ""
        self._warn(step, [verdict for verdict in verdicts if verdict.level == "bad"])
        now = time.monotonic()
        self._next = now + PAUSE * (now - began)
        return self._remark

    def _warn(self, step: int, bad: list[Verdict]) -> None:
        for verdict in bad:
            subject = verdict.subject
            is_new = subject not in self._bad
            if is_new and step - self._warned.get(subject, -QUIET) >= QUIET:
                self._reporter.warn(f"{verdict.line}; what helps: {verdict.advice}")
                self._warned[subject] = step
        self._bad = {verdict.subject for verdict in bad}


def _figures(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    return read_figures(run.metrics) | read_figures(run.timings)


def _facts(run: RunFolder) -> Facts:
    """What ``config.yaml`` and ``run.json`` say about a run."""
    file = run.path / "config.yaml"
    if not file.is_file():
        raise RunError(
            f"{run.path} is no run folder: it has no config.yaml",
            "give the folder that a training wrote, its --out",
        )
    layer, record = read_layer(file), run.record
    # Only runs of the GPT name a VQGAN.
    if "vqgan" in layer.values:
        return _facts_of_gpt(resolve(GPTTrainConfig, [layer]), record)
    return _facts_of_vqgan(resolve(VQGANTrainConfig, [layer]), record)


def _facts_of_gpt(config: GPTTrainConfig, record: Mapping[str, Any]) -> Facts:
    return Facts(
        kind="gpt",
        codes=record.get("codes", config.model.vocab_size),
        encoded=record.get("data", {}).get("encoded", False),
        **_shared_facts(config.train, config.optim, record),
    )


def _facts_of_vqgan(config: VQGANTrainConfig, record: Mapping[str, Any]) -> Facts:
    model, loss, loop = config.model, config.loss, config.train
    clips = loop.batch_size * loop.accumulate * record.get("world", 1)
    weights = {"image": loss.image_gan_weight, "video": loss.video_gan_weight}
    return Facts(
        kind="vqgan",
        codes=model.codes,
        positions=clips * prod(model.grid(config.data.frames, *config.frame_sides)),
        random_restart=model.random_restart,
        codebook_decay=model.codebook_decay,
        restart_threshold=model.restart_threshold,
        discriminators=tuple(name for name, weight in weights.items() if weight),
        disc_start=loss.disc_start,
        disc_ramp=loss.disc_ramp,
        **_shared_facts(loop, config.optim, record),
    )


def _shared_facts(
    loop: LoopConfig, optim: OptimConfig, record: Mapping[str, Any]
) -> dict[str, Any]:
    raised = record.get("raised") == NotFiniteError.__name__
    return {
        "log_steps": loop.log_steps,
        "warmup": optim.lr_warmup,
        "is_bf16": record.get("precision") == "bf16-mixed",
        "not_finite": record["error"] if raised else "",
    }
