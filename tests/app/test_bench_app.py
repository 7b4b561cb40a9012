"""What the benchmark reports; how fast anything is, no test asks."""

import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_app import Logits, Notes

from tatscli.app import bench as use_case
from tatscli.app import bench_stages as stages_module
from tatscli.app.bench import STAGES, bench
from tatscli.config.bench import BenchConfig, StageName
from tatscli.core.data.video import write_png, write_video
from tatscli.core.limits import Machine
from tatscli.errors import DataError

MACHINE = Machine(
    device="cpu",
    name="a computer",
    cores=2,
    threads=2,
    precision="float32",
    peak=1e11,
    float32_peak=1e11,
    bandwidth=1e10,
    torch="2",
    python="3",
    date="2026-01-01T00:00:00+00:00",
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that takes no time to measure, and a place for what the stages write."""
    monkeypatch.setattr(use_case, "measure_machine", lambda *_: MACHINE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def config(**options: object) -> BenchConfig:
    base = {"size": "tiny", "device": "cpu", "seconds": 0.001, "batch_size": 2}
    return BenchConfig.model_validate({"bench": base | options})


class Small(torch.nn.Module):
    """A linear layer in the place of I3D."""

    def __init__(self, *_: object) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 400)

    def forward(self, clips: torch.Tensor) -> Logits:
        return Logits(self.layer(clips[:, 0, 0, ::56, ::56].flatten(1)))


def test_every_stage_runs_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_module, "random_i3d", Small)
    told = Notes()
    found = bench(STAGES[::-1], config(), told)
    assert [stage.stage for stage in found.stages] == list(STAGES)
    assert told.tasks == ["limits of the machine", *STAGES, "limits of the machine, again"]
    assert list(tmp_path.iterdir()) == []
    for stage in found.stages:
        assert stage.skipped == "", stage
        assert stage.runs >= 2
        assert stage.rate > 0
        assert 0 < stage.best_seconds <= stage.median_seconds
        assert stage.reached == pytest.approx(stage.limit_seconds / stage.best_seconds)
        if stage.stage == "read":
            assert stage.binds == "codec"
            assert stage.operations is stage.bytes is stage.operations_seconds is None
            continue
        times = {"operations": stage.operations_seconds, "bytes": stage.bytes_seconds}
        assert stage.limit_seconds == max(times.values()) == times[stage.binds]
        assert stage.operations_seconds == pytest.approx(stage.operations / MACHINE.peak)
        assert stage.bytes_seconds == pytest.approx(stage.bytes / MACHINE.bandwidth)
        assert (stage.operations == 0) == (stage.stage == "tokens")


def test_the_better_of_two_looks_at_the_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([replace(MACHINE, peak=1.0, bandwidth=9.0), replace(MACHINE, peak=5.0)])
    monkeypatch.setattr(use_case, "measure_machine", lambda *_: next(looks))
    found = bench(["tokens"], config()).machine
    assert (found.peak, found.bandwidth) == (5.0, MACHINE.bandwidth)


def test_bytes_delivered_are_those_of_the_clips() -> None:
    [tokens] = bench(["tokens"], config()).stages
    assert tokens.bytes == 1024 * (4 * 8 * 8) * 8
    assert tokens.unit == "clips"


def test_sampling_counts_the_tokens_of_all_samples() -> None:
    [short, long] = bench(["sample-short", "sample-long"], config(batch_size=3)).stages
    assert short.rate * short.best_seconds == pytest.approx(3 * 64)
    assert "first 64 of 256 tokens" in short.work
    assert long.rate * long.best_seconds == pytest.approx(3 * 2)


def test_a_whole_window_is_sampled_where_there_is_time_for_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def a_second(_: object, call: Callable[[], None]) -> float:
        call()
        return 1.0

    monkeypatch.setattr(stages_module.Workshop, "warmed", a_second)
    monkeypatch.setattr(stages_module, "timed", lambda *_: [1.0, 1.0])
    [short] = bench(["sample-short"], config(seconds=7.9)).stages
    assert "first 64 of 256 tokens" in short.work
    [whole] = bench(["sample-short"], config(seconds=8)).stages
    assert whole.work.startswith("2 samples of 256 tokens")
    # Of all tokens but the last, the weights are read for each.
    assert whole.bytes > 3.9 * short.bytes


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_less_precision_is_fewer_bytes(name: StageName) -> None:
    sizes = {
        precision: bench([name], config(precision=precision)).stages[0].bytes
        for precision in ("float32", "bf16")
    }
    assert sizes["bf16"] < sizes["float32"]


def test_a_stage_that_cannot_run_is_skipped_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand a trace")

    monkeypatch.setattr(stages_module, "random_i3d", fail)
    monkeypatch.setattr(stages_module, "free_memory", lambda _: 1000)
    found = {s.stage: s for s in bench(["tokens", "sample-short", "i3d"], config()).stages}
    assert found["i3d"].skipped == "DefaultCPUAllocator: can't allocate memory"
    assert found["i3d"].rate is found["i3d"].reached is None
    assert "needs about" in found["sample-short"].skipped
    assert "are free" in found["sample-short"].skipped
    assert found["tokens"].rate


def test_own_videos_are_read(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    write_video(tmp_path / "data" / "some.mp4", frames, 25)
    for data in (tmp_path / "data", tmp_path / "data" / "some.mp4"):
        [read] = bench(["read"], config(data=data)).stages
        assert read.skipped == ""
        assert f"from {data.name} (64x48), a key frame every 40 frames" in read.work


def test_images_have_no_codec(tmp_path: Path) -> None:
    for number in range(20):
        write_png(tmp_path / "frames" / f"{number}.png", np.zeros((32, 32, 3), np.uint8))
    [read] = bench(["read"], config(data=tmp_path / "frames")).stages
    assert "frames without a codec" in read.skipped


def test_videos_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        bench(["read"], config(data=tmp_path / "nowhere"))
    told = Notes()
    bench(["tokens"], config(data=tmp_path / "nowhere"), told)
    assert told.notes == ["--data has no effect without the stage read"]


@pytest.mark.parametrize("where", ["after a step", "in a step"])
def test_ctrl_c_stops_the_benchmark_in_training_too(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    passed: list[int] = []

    def send(when: int) -> None:
        passed.append(1)
        if len(passed) == when:
            signal.raise_signal(signal.SIGINT)

    def read(items: Any, item: tuple[int, int]) -> Any:
        send(6)  # the second batch of four
        return original(items, item)

    original = stages_module._Items.__getitem__
    if where == "in a step":
        monkeypatch.setattr(stages_module._Items, "__getitem__", read)
    else:  # there it waits for the device, once it has looked for signals
        monkeypatch.setattr(stages_module, "synchronize", lambda _: send(1))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        bench(["gpt-step"], config())
    assert signal.getsignal(signal.SIGINT) == before
