"""The demo on the smallest of everything: that it is whole, not that it is good."""

import json
import re
from pathlib import Path

import pytest

from tatscli.app import demo
from tatscli.app.train import TrainResult
from tatscli.config.demo import DemoConfig
from tatscli.errors import DataError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"train_videos": 2, "test_videos": 1, "classes": 2, "video_frames": 16}
    monkeypatch.setattr(demo, "SYNTH", demo.SYNTH.model_copy(update=size))
    monkeypatch.setattr(demo, "SAMPLES", 2)
    monkeypatch.setattr(demo, "LONG", 8)
    monkeypatch.setattr(demo, "QUICK", 500)
    monkeypatch.setattr("tatscli.core.metrics.probe.STEPS", 3)


@pytest.mark.usefixtures("small")
def test_the_demo_makes_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    result = demo.demo(tmp_path / "demo", DemoConfig(quick=True, device="cpu"))
    html = result.page.read_text(encoding="utf-8")
    assert len(re.findall(r'<video [^>]*src="data:video/mp4;base64,', html)) == 3
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,', html)) == 3
    # All metrics of both stages: their losses, of training and validation, are among them.
    [one, two] = map(json.loads, re.findall(r'application/json">(.*)</script>', html))
    assert {"train", "val"} == {s["part"] for s in one["charts"][0]["series"]}
    assert {"train", "val"} == {s["part"] for s in two["charts"][0]["series"]}
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert f"{result.reconstruction_db:.1f} dB" in html
    assert f"{result.probe_long_samples:.1%}" in html
    assert 0 <= result.probe_long_samples <= 1
    assert result.constant_image_db > 5
    assert result.bigram_loss > 0
    assert set(result.seconds) >= {"data", "vqgan", "encode", "gpt", "sample long", "evaluate"}
    samples = json.loads((result.folder / "samples" / "long" / "samples.json").read_text())
    assert [sample["label"] for sample in samples["samples"]] == ["circle", "square"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="nothing was overwritten"):
        demo.demo(tmp_path, DemoConfig(quick=True))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("small")
def test_a_stage_that_was_stopped_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> TrainResult:
        return TrainResult(tmp_path, tmp_path, 1, "stopped", {}, 2)

    monkeypatch.setattr(demo, "train_vqgan", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.demo(tmp_path / "demo", DemoConfig(quick=True, device="cpu"))
    assert not (tmp_path / "demo" / "tokens").exists()


@pytest.mark.parametrize("line", demo.next_commands())
def test_commands_to_run_next_reach_their_use_case(
    line: str, monkeypatch: pytest.MonkeyPatch, unchecked: None, tats
) -> None:
    reached = []

    def stop(*arguments: object, **_: object) -> None:
        reached.append(arguments)
        raise SystemExit(0)

    cases = ("data.check_data", "train.train_vqgan", "encode.encode", "train.train_gpt")
    for case in (*cases, "sample.long"):
        monkeypatch.setattr(f"tatscli.app.{case}", stop)
    program, *arguments = line.split()
    outcome = tats(*arguments)
    assert program == "tats"
    assert len(reached) == 1, outcome.err
