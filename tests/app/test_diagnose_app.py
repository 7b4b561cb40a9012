"""Runs that were made to fail in a known way are told why, live and afterwards."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_app import Notes, vqgan_config
from torch.optim.lr_scheduler import LambdaLR

from tatscli.app import diagnose as app
from tatscli.app.diagnose import Doctor, diagnose
from tatscli.app.run import RunFolder, read_figures
from tatscli.app.train import train_vqgan
from tatscli.core import diagnosis
from tatscli.core.data.clips import TrainClips
from tatscli.core.diagnosis import Verdict
from tatscli.core.models.codebook import Codebook
from tatscli.core.training.stage import Stage
from tatscli.errors import RunError


def of(run: Path, subject: str) -> Verdict:
    [found] = [verdict for verdict in diagnose(run) if verdict.subject == subject]
    return found


def bad(run: Path) -> set[str]:
    return {verdict.subject for verdict in diagnose(run) if verdict.level == "bad"}


def test_a_run_that_is_well_has_nothing_bad(vqgan_run: Path, gpt_run: Path) -> None:
    for run, subjects in (
        (vqgan_run, ["numbers", "codebook", "loader"]),
        (gpt_run, ["numbers", "learning", "overfitting", "loader"]),
    ):
        verdicts = diagnose(run)
        assert [verdict.subject for verdict in verdicts] == subjects
        assert "bad" not in {verdict.level for verdict in verdicts} - {"loader"}
    assert "step 150" in of(gpt_run, "learning").text


def test_a_codebook_in_which_one_code_wins(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far_away(self: Codebook, flat: torch.Tensor) -> None:
        """Codes that are not taken from the data: one is nearer to all of it than the others."""
        self.embeddings.fill_(100.0)
        self.embeddings[3] = 0.0
        self.z_avg.copy_(self.embeddings)
        self.N.fill_(1)

    monkeypatch.setattr(Codebook, "_initialize", far_away)
    notes = Notes()
    config = vqgan_config(data, tmp_path / "run", train={"max_steps": 8, "log_every": 2})
    monkeypatch.setattr(app, "PAUSE", 0)
    run = train_vqgan(config, reporter=notes).run
    assert "codebook" in bad(run)
    verdict = of(run, "codebook")
    assert verdict.text.startswith("1 of 16 codes used over 2 steps")
    assert verdict.figure == 1 / 16
    assert "--random-restart" in verdict.advice
    # Live, it is said once, and stays below the bar.
    assert [text for text in notes.warnings if "codebook: 1 of 16" in text] == notes.warnings
    assert len(notes.warnings) == 1
    assert notes.remarks[-1].startswith("codebook: 1 of 16")
    assert notes.remarks[0] == ""


def test_a_discriminator_that_wins(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Stage.schedule

    def uneven(self: Stage, optimizer: Any, offset: int | None = None) -> LambdaLR:
        """The generator stands still, so its reconstructions stay what nobody takes for real."""
        if offset is None:
            return LambdaLR(optimizer, lambda _: 1e-6)
        return schedule(self, optimizer, offset)

    monkeypatch.setattr(Stage, "schedule", uneven)
    config = vqgan_config(
        data,
        tmp_path / "run",
        model={"disc_channels": 8, "disc_layers": 1},
        loss={"image_gan_weight": 1, "disc_start": 30, "disc_warmup": 30, "disc_ramp": 0},
        optim={"learning_rate": 0.01},
        train={"max_steps": 40, "log_every": 2, "val_check_interval": "40", "grid_every": 1000,
               "checkpoint_every": 1000},
    )  # fmt: skip
    run = train_vqgan(config).run
    verdict = of(run, "image discriminator")
    assert verdict.level == "bad"
    assert verdict.text.startswith("wins: right on ")
    assert "--disc-start" in verdict.advice


def test_numbers_that_are_none_any_more(data: Path, tmp_path: Path) -> None:
    config = vqgan_config(data, tmp_path / "run", optim={"learning_rate": 1e30})
    with pytest.raises(RunError, match="step 1"):
        train_vqgan(config)
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["raised"]) == ("failed", "NotFiniteError")
    verdict = of(run, "numbers")
    assert (verdict.level, verdict.figure) == ("bad", 1)
    assert verdict.text.startswith("not finite at step 1: l1 = nan")
    assert "--learning-rate" in verdict.advice


def test_a_run_that_diverges_in_finite_numbers(
    vqgan_run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(vqgan_run, tmp_path / "run")
    monkeypatch.setattr(app, "PAUSE", 0)
    notes = Notes()
    config = vqgan_config(data, run, optim={"learning_rate": 1}, train={"max_steps": 8})
    train_vqgan(config, resume=run, reporter=notes)
    verdict = of(run, "numbers")
    assert verdict.level == "bad"
    assert verdict.text.startswith("diverged at step ")
    assert sum("numbers: diverged" in text for text in notes.warnings) == 1
    assert notes.remarks[-1].startswith("numbers: diverged")


def test_another_failure_is_no_matter_of_numbers(vqgan_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(vqgan_run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    for raised, level in (("DataError", "good"), ("NotFiniteError", "bad")):
        again = record | {"status": "failed", "raised": raised, "error": "step 9: l1 = nan"}
        (run / "run.json").write_text(json.dumps(again))
        assert of(run, "numbers").level == level


def test_a_loader_that_starves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = TrainClips.__getitem__

    def slow(self: TrainClips, draw: Any) -> Any:
        time.sleep(0.1)
        return read(self, draw)

    monkeypatch.setattr(TrainClips, "__getitem__", slow)
    run = train_vqgan(vqgan_config(data, tmp_path / "run", train={"max_steps": 5})).run
    assert of(run, "loader").level == "early"
    monkeypatch.setattr(diagnosis, "SETTLED", 0.1)
    verdict = of(run, "loader")
    assert verdict.level == "bad"
    assert verdict.figure is not None
    assert verdict.figure > 0.5
    assert "--workers" in verdict.advice


def test_a_run_of_which_little_is_left(vqgan_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(RunError, match="no run folder"):
        diagnose(run)
    shutil.copy(vqgan_run / "config.yaml", run)
    assert {verdict.level for verdict in diagnose(run)} == {"early"}
    (run / "metrics.csv").write_text("step,metric,value\n0,train/l1,0.5\n1,train/l1,n")
    assert read_figures(run / "metrics.csv") == {"train/l1": [(1, 0.5)]}
    assert of(run, "numbers").level == "good"
    (run / "metrics.csv").write_text("step,metric,value\n0,train/l1\n1,train/l1,2\n")
    with pytest.raises(RunError, match="line 2: '0,train/l1' is no figure"):
        diagnose(run)


class Scripted:
    """Stands in for what a run says, one look after the other."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.says: list[Verdict] | Exception = []
        self.looks = 0
        self.now = 0.0
        patch.setattr(app, "diagnose", self.diagnose)
        patch.setattr(app.time, "monotonic", lambda: self.now)

    def diagnose(self, run: Path) -> list[Verdict]:
        self.looks += 1
        self.now += 0.1  # what a look costs
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


LOADER = Verdict("loader", "bad", "60 % of the time", 0.6, "more --workers")
CODES = Verdict("codebook", "watch", "49 of 100", 0.49, "--random-restart")


def test_a_warning_is_said_once_and_not_again_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, notes = Scripted(monkeypatch), Notes()
    doctor = Doctor(RunFolder(tmp_path), notes)
    seen = []
    for step, says in ((10, [CODES]), (20, [CODES, LOADER]), (30, [LOADER]), (40, []),
                       (50, [LOADER]), (1100, [LOADER]), (1200, []), (1300, [LOADER])):  # fmt: skip
        script.says, script.now = says, script.now + 60
        seen.append((doctor.look(step), len(notes.warnings)))
    loader = "loader: 60 % of the time"
    assert seen == [("codebook: 49 of 100", 0), (loader, 1), (loader, 1), ("", 1), (loader, 1),
                    (loader, 1), ("", 1), (loader, 2)]  # fmt: skip
    assert notes.warnings[0] == f"{loader}; what helps: more --workers"


def test_looking_takes_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(monkeypatch)
    doctor = Doctor(RunFolder(tmp_path), Notes())
    for step in range(1000):
        doctor.look(step)
        script.now += 0.1
    assert 8 <= script.looks <= 11


def test_figures_that_cannot_be_read_do_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(monkeypatch)
    doctor = Doctor(RunFolder(tmp_path), Notes())
    script.says = [CODES]
    assert doctor.look(1)
    for error in (OSError(5, "Input/output error"), RunError("line 2: 'x' is no figure")):
        script.says, script.now = error, script.now + 60
        assert doctor.look(2) == "codebook: 49 of 100"
