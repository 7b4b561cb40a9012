"""The file of metrics on a disk that cannot be written."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tatscli.core.training.callbacks import MetricsFile
from tatscli.errors import RunError


def test_a_full_disk_names_the_file() -> None:
    with pytest.raises(RunError, match="/dev/full cannot be written: No space left") as caught:
        MetricsFile(Path("/dev/full")).log_metrics({"loss": 1.0, "epoch": 0}, 3)
    assert "bytes free" in caught.value.message
    assert "free some space" in caught.value.hint


def test_a_full_disk_on_resuming_leaves_what_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in (1, 2):
        metrics.log_metrics({"loss": step / 2, "epoch": 0}, step)
    before = (tmp_path / "metrics.csv").read_text()
    assert before == "step,metric,value\n1,loss,0.5\n2,loss,1\n"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunError, match=r"metrics\.csv cannot be written"):
            metrics.continue_from(2, {})
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]
    assert (tmp_path / "metrics.csv").read_text() == before
