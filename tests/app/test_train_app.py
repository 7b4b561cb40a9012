"""Training as a use case: run folders, refusals, continuing, and what a run is told about data."""

import json
import os
import shutil
import signal
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_app import Notes, broken, encode_config, gpt_config, vqgan_config

from tatscli.app import run as run_module
from tatscli.app import train as module
from tatscli.app.architecture import gpt_architecture
from tatscli.app.devices import batch_norm_notes, placement_notes
from tatscli.app.encode import decode, encode
from tatscli.app.reconstruct import evaluate_vqgan
from tatscli.app.reporting import Silent
from tatscli.app.run import RunFolder
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.app.training_data import gpt_material
from tatscli.config.encode import DecodeConfig
from tatscli.config.evaluate import VQGANEvalConfig
from tatscli.config.files import read_layer, resolve
from tatscli.config.train import (
    ComputeConfig,
    GPTComputeConfig,
    GPTTrainConfig,
    VQGANTrainConfig,
)
from tatscli.core.checkpoint import read_gpt, read_vqgan
from tatscli.core.data.video import write_video
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.paths import find_checkpoint
from tatscli.core.training.placement import Placement
from tatscli.errors import CheckpointError, ConfigError, DataError, DeviceError, RunError


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_a_vqgan_run_leaves_its_folder(vqgan_run: Path, data: Path) -> None:
    found = files(vqgan_run)
    assert {"config.yaml", "run.json", "metrics.csv"} <= found
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= found
    for step in (2, 3):
        assert f"samples/reconstructions-{step:07}.png" in found
        assert f"samples/reconstructions-{step:07}.mp4" in found
    assert any(name.startswith("events/events.out.tfevents") for name in found)
    record = json.loads((vqgan_run / "run.json").read_text())
    assert (record["status"], record["kind"], record["steps"]) == ("finished", "vqgan", 3)
    assert torch.__version__.startswith(record["packages"]["torch"])
    assert record["figures"]["val/loss"] > 0
    resolved = resolve(VQGANTrainConfig, [read_layer(vqgan_run / "config.yaml")])
    assert resolved == vqgan_config(data, vqgan_run)
    trained = read_vqgan(vqgan_run)
    assert (trained.clip.sequence_length, trained.clip.resolution, trained.rate) == (4, 8, 8.0)


def test_a_gpt_run_leaves_its_folder(gpt_run: Path, tokens: Path, vqgan_run: Path) -> None:
    found = files(gpt_run)
    assert {"checkpoints/last.ckpt", "samples/samples-0000003.mp4"} <= found
    resolved = resolve(GPTTrainConfig, [read_layer(gpt_run / "config.yaml")])
    assert resolved == gpt_config(tokens, gpt_run, model={"condition": "label"})
    trained = read_gpt(gpt_run)
    assert trained.classes == ("circle", "square")
    assert trained.model.config.grid == (2, 2, 2)
    assert trained.vqgan.model.fingerprint() == read_vqgan(vqgan_run).model.fingerprint()
    assert trained.vqgan.rate == 8


def test_a_folder_that_holds_something_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty; nothing was overwritten") as caught:
        train_vqgan(vqgan_config(data, tmp_path))
    assert "--out" in caught.value.hint
    assert files(tmp_path) == {"notes.txt"}
    with pytest.raises(RunError, match=r"notes\.txt is a file, and a folder"):
        train_vqgan(vqgan_config(data, tmp_path / "notes.txt"))
    with pytest.raises(RunError, match="cannot create"):
        train_vqgan(vqgan_config(data, tmp_path / "notes.txt" / "run"))


def test_a_run_that_goes_on_is_the_run_that_never_stopped(data: Path, tmp_path: Path) -> None:
    optim = {"lr_schedule": "constant"}
    whole = train_vqgan(vqgan_config(data, tmp_path / "whole", optim=optim, train={"max_steps": 4}))
    short = train_vqgan(vqgan_config(data, tmp_path / "parts", optim=optim, train={"max_steps": 2}))
    (short.run / "checkpoints" / ".x.ckpt.1.part").write_text("of a killed process")
    longer = vqgan_config(data, tmp_path / "parts", optim=optim, train={"max_steps": 4})
    again = train_vqgan(longer, resume=short.run)
    assert same(state(again.run), state(whole.run))
    assert (again.run / "metrics.csv").read_text() == (whole.run / "metrics.csv").read_text()
    assert (again.status, again.steps, again.signal) == ("finished", 4, 0)
    assert again.figures == whole.figures
    assert not [name for name in files(again.run) if name.endswith(".part")]
    record = json.loads((again.run / "run.json").read_text())
    assert (record["steps_before"], record["steps"]) == (2, 4)
    [before] = record["sessions"]
    assert (before["status"], before["steps_before"]) == ("finished", 0)
    assert before["started"] <= before["ended"] <= record["started"]
    assert resolve(VQGANTrainConfig, [read_layer(again.run / "config.yaml")]) == longer


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"codes": 32}}, "model.codes: 16 -> 32"),
        ({"data": {"sequence_length": 8}}, "data.sequence_length: 4 -> 8"),
        ({"loss": {"l1_weight": 1}}, "loss.l1_weight: 4.0 -> 1.0"),
        ({"train": {"seed": 5}}, "train.seed: 0 -> 5"),
        ({"train": {"out": "elsewhere"}}, "-> elsewhere"),
    ],
)
def test_going_on_with_another_model_lists_what_changed(
    vqgan_run: Path, data: Path, changes: dict[str, Any], says: str
) -> None:
    before = (vqgan_run / "config.yaml").read_text()
    with pytest.raises(ConfigError) as caught:
        train_vqgan(vqgan_config(data, vqgan_run, **changes), resume=vqgan_run)
    assert says in caught.value.message
    assert str(vqgan_run) in caught.value.message
    assert (vqgan_run / "config.yaml").read_text() == before


def test_what_is_no_run_cannot_go_on(data: Path, tmp_path: Path) -> None:
    config = vqgan_config(data, tmp_path)
    with pytest.raises(RunError, match=r"no run folder: it has no config\.yaml"):
        train_vqgan(config, resume=tmp_path)
    RunFolder(tmp_path).write_config(config)
    with pytest.raises(RunError, match="saved no checkpoint yet"):
        train_vqgan(config, resume=tmp_path)


def test_a_run_that_fails_says_so_in_its_record(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train_vqgan(vqgan_config(data, tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "No space left" in record["error"]


def test_a_session_that_was_killed_lasted_until_its_last_figure(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", ExitStack())
    with run.recorded():
        killed = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text(killed)
    run.metrics.write_text("step,metric,value\n")
    os.utime(run.metrics, (1e9, 1e9))
    with run.recorded(continued_at=7) as record:
        [first] = record["sessions"]
    assert first["status"] == "killed"
    assert datetime.fromisoformat(first["ended"]).timestamp() == 1e9
    with run.recorded(continued_at=9) as record:
        assert [s["status"] for s in record["sessions"]] == ["killed", "finished"]
    with run.recorded() as record:  # a new run in the folder of one that never saved
        assert record["sessions"] == []


def test_a_second_interrupt_leaves_the_record_of_a_run_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path / "run", ExitStack())
    write = run_module.write_atomically

    def interrupted(file: Path, text: str) -> None:
        if "KeyboardInterrupt" in text:
            signal.raise_signal(signal.SIGINT)
        write(file, text)

    monkeypatch.setattr(run_module, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt), run.recorded(kind="vqgan"):
        raise KeyboardInterrupt
    assert run.record["status"] == "failed"


@pytest.mark.parametrize("name", ["LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK"])
def test_further_processes_of_a_run_leave_its_folder_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    run = RunFolder.create(tmp_path / "run", ExitStack())
    run.write_config(vqgan_config(data, tmp_path / "run"))
    with run.recorded(kind="vqgan"):
        pass
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(name, "0")
    RunFolder.create(tmp_path / "run", ExitStack())
    assert (tmp_path / "run" / "samples").is_dir()


def test_the_published_rate_is_settled_and_noted(data: Path, tmp_path: Path) -> None:
    notes = Notes()
    train = {"accumulate": 3, "max_steps": 1, "batch_size": 2}
    config = vqgan_config(data, tmp_path / "run", optim={"base_learning_rate": 0.04}, train=train)
    train_vqgan(config, reporter=notes)
    assert any("0.0075" in note and "published rule" in note for note in notes.notes)
    stored = read_layer(tmp_path / "run" / "config.yaml").values["optim"]
    assert (stored["learning_rate"], stored["base_learning_rate"]) == (pytest.approx(0.0075), 0)


def test_gpus_that_are_not_there_are_an_error_with_both_numbers(data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there are GPUs here")
    config = vqgan_config(data, tmp_path / "run", compute={"device": "auto", "gpus": 4})
    with pytest.raises(DeviceError, match="--gpus 4, but 0 CUDA devices") as caught:
        train_vqgan(config)
    assert "--device cpu" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_perceptual_loss_without_its_file_is_an_error_before_anything_starts(
    data: Path, tmp_path: Path
) -> None:
    config = vqgan_config(data, tmp_path / "run", loss={"perceptual_weight": 1},
                          data={"resolution": 16})  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        train_vqgan(config)
    assert "tats weights fetch vgg16" in caught.value.hint
    assert "--perceptual-weight 0" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_vqgan_are_refused_with_both_fingerprints(
    tokens: Path, vqgan_run: Path, other_vqgan_run: Path, tmp_path: Path
) -> None:
    config = gpt_config(tokens, tmp_path / "run", other_vqgan_run)
    with pytest.raises(DataError) as caught:
        train_gpt(config)
    for run in (vqgan_run, other_vqgan_run):
        assert read_vqgan(run).model.fingerprint() in caught.value.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"vocab_size": 99}}, ["--vocab-size 99", "16 codes"]),
        ({"model": {"block_size": 5}}, ["5", "= 8"]),
        ({"data": {"resolution": 32}}, ["--resolution 32", "with 8"]),
        ({"data": {"sequence_length": 6}}, ["--sequence-length 6", "with 4"]),
    ],
)
def test_sizes_that_do_not_fit_the_tokens_are_named_with_both_numbers(
    tokens: Path, tmp_path: Path, changes: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_gpt(gpt_config(tokens, tmp_path / "run", **changes))
    assert all(part in caught.value.message for part in says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resolution": 10}, ["10", "4"]),
        ({"sequence_length": 5}, ["5", "2"]),
        ({"resolution": 4}, ["--resolution", "8"]),
        ({"sequence_length": 6, "sample_every_n_frames": 4}, ["6", "4"]),
    ],
)
def test_clips_that_the_vqgan_cannot_take_are_named_with_both_numbers(
    data: Path, vqgan_run: Path, tmp_path: Path, changes: dict[str, Any], says: list[str]
) -> None:
    for call in (
        lambda: train_gpt(gpt_config(data, tmp_path / "run", vqgan_run, data=changes)),
        lambda: encode(encode_config(data, tmp_path / "run", vqgan_run, data=changes)),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert all(part in caught.value.message for part in says)
        assert "pydantic" not in caught.value.message
    assert not (tmp_path / "run").exists()


def test_videos_that_are_too_short_are_told_with_the_longest_clip_that_the_vqgan_takes(
    vqgan_run: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    for split in ("train", "val"):
        write_video(short / split / "a.mp4", np.zeros((11, 16, 16, 3), np.uint8), 8)
    clip = {"sequence_length": 16}
    for ask in (
        lambda: train_vqgan(vqgan_config(short, tmp_path / "v", data=clip)),
        lambda: train_gpt(gpt_config(short, tmp_path / "g", vqgan_run, data=clip)),
        lambda: encode(encode_config(short, tmp_path / "t", vqgan_run, data=clip)),
        lambda: evaluate_vqgan(
            vqgan_run, VQGANEvalConfig.model_validate({"data": {"data": short} | clip})
        ),
    ):
        with pytest.raises(DataError) as caught:
            ask()
        assert "--sequence-length 10 is the longest that fits both splits" in caught.value.hint
    fitting = vqgan_config(short, tmp_path / "v", data={"sequence_length": 10})
    assert train_vqgan(fitting).status == "finished"
    every = clip | {"sample_every_n_frames": 2}
    with pytest.raises(DataError) as caught:
        train_vqgan(vqgan_config(short, tmp_path / "w", data=every))
    assert "--sequence-length 8 is the longest" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_unmasked": 6}, ["--n-unmasked 6", "2 x 2 = 4"]),
        ({"infill": True, "block_size": 20}, ["block size 20", "4 x 2 x 2", "16 positions"]),
        ({"infill": True, "block_size": 9}, ["block size 9", "16 positions"]),
    ],
)
def test_infilling_wants_its_sizes_exactly(
    data: Path, vqgan_run: Path, tmp_path: Path, changes: dict[str, Any], says: list[str]
) -> None:
    clips = {"sequence_length": 8}
    with pytest.raises(ConfigError) as caught:
        train_gpt(gpt_config(data, tmp_path / "run", vqgan_run, model=changes, data=clips))
    assert all(part in caught.value.message for part in says)
    assert not (tmp_path / "run").exists()


def test_infilling_needs_a_latent_frame_between_two(tokens: Path, tmp_path: Path) -> None:
    config = gpt_config(tokens, tmp_path / "run", model={"infill": True})
    with pytest.raises(ConfigError, match="at least 3 latent frames, got 2") as caught:
        train_gpt(config)
    assert "--sequence-length 6" in caught.value.hint


def test_key_frames_need_a_second_one(tokens: Path, tmp_path: Path) -> None:
    config = gpt_config(tokens, tmp_path / "run", model={"latent_stride": 2})
    with pytest.raises(ConfigError, match="clips of at least 3 latent frames") as caught:
        train_gpt(config)
    assert "--sequence-length 6" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("stride", "kept"), [(1, 5), (2, 3), (3, 2), (4, 2)])
def test_key_frames_are_every_nth_latent_frame_of_a_clip(
    data: Path, vqgan_run: Path, stride: int, kept: int
) -> None:
    model = {"latent_stride": stride}
    config = gpt_config(data, Path("x"), vqgan_run, model=model, data={"sequence_length": 10})
    architecture = gpt_architecture(config, gpt_material(config, None, Silent()))
    assert (architecture.grid, architecture.latent_stride) == ((kept, 2, 2), stride)
    assert architecture.block_size == architecture.positions == 4 * kept


@pytest.mark.parametrize("encoded", [False, True])
def test_pictures_of_key_frames_show_each_by_itself(
    data: Path, vqgan_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: bool
) -> None:
    pictures: list[torch.Tensor] = []
    written: list[torch.Tensor] = []
    original = module.generate_window

    def generated(*arguments: Any) -> torch.Tensor:
        written.append(original(*arguments))
        return written[-1]

    monkeypatch.setattr(module, "generate_window", generated)
    monkeypatch.setattr(module, "save_samples", lambda video, *_: pictures.append(video))
    clips = {"sequence_length": 10}
    material = data
    if encoded:
        material = encode(encode_config(data, tmp_path / "t", vqgan_run, data=clips)).folder
    model = {"latent_stride": 2}
    train_gpt(gpt_config(material, tmp_path / "run", None if encoded else vqgan_run,
                         model=model, data={} if encoded else clips))  # fmt: skip
    vqgan = read_vqgan(vqgan_run).model
    assert pictures[0].shape == (4, 3, 3 * 2, 8, 8)
    for number in range(3):
        alone = vqgan.decode(written[0][:, number : number + 1]).clamp(-0.5, 0.5)
        found = pictures[0][:, :, 2 * number : 2 * number + 2]
        torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("condition", ["none", "label"])
@pytest.mark.parametrize("encoded", [False, True])
def test_pictures_of_infilling_keep_the_ends_of_held_out_clips(
    data: Path,
    vqgan_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    condition: str,
    encoded: bool,
) -> None:
    decoded: list[torch.Tensor] = []
    pictures: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = VQGAN.decode

    def decode(self: VQGAN, codes: torch.Tensor) -> torch.Tensor:
        decoded.append(codes)
        return original(self, codes)

    def saved(real: torch.Tensor, made: torch.Tensor, *_: Any) -> None:
        pictures.append((real, made))

    monkeypatch.setattr(VQGAN, "decode", decode)
    monkeypatch.setattr(module, "save_reconstructions", saved)
    clips = {"sequence_length": 10}
    material = data
    if encoded:
        material = encode(encode_config(data, tmp_path / "t", vqgan_run, data=clips)).folder
    train_gpt(gpt_config(material, tmp_path / "run", None if encoded else vqgan_run,
                         model={"infill": True, "condition": condition},
                         data={} if encoded else clips))  # fmt: skip
    real, made = decoded[:2]
    assert real.shape == made.shape == (2, 5, 2, 2)
    assert torch.equal(real[:, [0, -1]], made[:, [0, -1]])
    assert not torch.equal(real, made)
    assert pictures[0][0].shape == pictures[0][1].shape == (2, 3, 10, 8, 8)
    assert read_gpt(tmp_path / "run").model.config.infill


def test_a_larger_block_is_a_note(tokens: Path, tmp_path: Path) -> None:
    notes = Notes()
    config = gpt_config(tokens, tmp_path / "run", model={"block_size": 50}, train={"max_steps": 1})
    train_gpt(config, reporter=notes)
    assert any("50" in note and " 8 positions" in note for note in notes.notes)
    assert read_gpt(tmp_path / "run").model.config.block_size == 50


def test_videos_need_a_vqgan_and_labels_need_classes(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--vqgan is not given") as caught:
        train_gpt(gpt_config(data, tmp_path / "run"))
    assert "--vqgan RUN" in caught.value.hint
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted((data / "train").rglob("*.mp4"))):
        shutil.copy(file, flat / f"{number}.mp4")
    config = gpt_config(flat, tmp_path / "run", vqgan_run, model={"condition": "label"})
    with pytest.raises(ConfigError, match="has no classes"):
        train_gpt(config)


def test_a_class_that_is_not_trained_on_matters_to_labels_alone(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    shutil.copytree(data, folder)
    (folder / "test" / "square").rename(folder / "test" / "zebra")
    for condition in ("label", "label+text"):
        config = gpt_config(folder, tmp_path / "g", vqgan_run, model={"condition": condition})
        with pytest.raises(ConfigError) as caught:
            train_gpt(config)
        told = f"--condition {condition}, but no training video of {folder} is of class zebra"
        assert caught.value.message == told
    job = train_vqgan(vqgan_config(folder, tmp_path / "v", train={"max_steps": 1}))
    assert job.status == "finished"
    notes = Notes()
    encoded = encode(encode_config(folder, tmp_path / "t", vqgan_run), notes).folder
    assert notes.warnings == [
        f"no training video of {folder} is of class zebra; clips of it are encoded without a class"
    ]
    without = gpt_config(encoded, tmp_path / "g", model={"condition": "label"})
    gpt_material(without, None, notes)
    assert "3 of 18 entries have no class and are learnt without" in notes.notes


def test_a_gpt_on_videos_records_the_clips_it_was_trained_on(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    clips = {"sequence_length": 8, "frame_rate": 4.0, "sample_every_n_frames": 2}
    # 12 frames at 8 fps are 6 at 4 fps: too short, so at its own rate here.
    config = gpt_config(data, tmp_path / "run", vqgan_run, data=clips | {"frame_rate": 8.0},
                        train={"max_steps": 1})  # fmt: skip
    train_gpt(config)
    trained = read_gpt(tmp_path / "run")
    assert trained.model.config.grid == (2, 2, 2)
    assert trained.vqgan.clip.sequence_length == 8
    assert trained.vqgan.rate == 4


def test_a_gpt_that_goes_on_keeps_its_vqgan(
    data: Path, tokens: Path, vqgan_run: Path, other_vqgan_run: Path, tmp_path: Path
) -> None:
    own = tmp_path / "vqgan"
    shutil.copytree(vqgan_run, own)
    optim = {"lr_schedule": "constant"}
    whole = train_gpt(gpt_config(data, tmp_path / "whole", own, optim=optim))
    train_gpt(gpt_config(data, tmp_path / "parts", own, optim=optim, train={"max_steps": 2}))
    shutil.rmtree(own)
    shutil.copytree(other_vqgan_run, own)
    again = train_gpt(gpt_config(data, tmp_path / "parts", own, optim=optim),
                      resume=tmp_path / "parts")  # fmt: skip
    assert same(state(again.run), state(whole.run))
    # Nor does it take tokens of another one.
    foreign = encode(encode_config(data, tmp_path / "foreign", other_vqgan_run)).folder
    with pytest.raises(DataError) as caught:
        train_gpt(gpt_config(foreign, tmp_path / "parts", own, optim=optim, train={"max_steps": 4}),
                  resume=tmp_path / "parts")  # fmt: skip
    assert read_vqgan(vqgan_run).model.fingerprint() in caught.value.message
    assert read_vqgan(other_vqgan_run).model.fingerprint() in caught.value.message


def damaged(data: Path, folder: Path) -> Path:
    """The dataset, with a second validation video of each class that breaks off in its middle."""
    shutil.copytree(data, folder)
    for file in sorted((folder / "test").rglob("*.mp4")):
        (file.parent / "broken.mp4").write_bytes(broken(file, folder / "mute.mp4"))
    return folder


def test_a_validation_video_that_breaks_is_named_and_left_out(data: Path, tmp_path: Path) -> None:
    folder, notes = damaged(data, tmp_path / "data"), Notes()
    config = vqgan_config(folder, tmp_path / "run", train={"val_clips": 50})
    result = train_vqgan(config, reporter=notes)
    assert result.status == "finished"
    assert any("broken.mp4" in warning for warning in notes.warnings)
    assert any(" 6 validation clips" in note for note in notes.notes)
    strict = vqgan_config(folder, tmp_path / "strict", train={"val_clips": 50},
                          data={"strict": True})  # fmt: skip
    with pytest.raises(DataError, match=r"broken\.mp4"):
        train_vqgan(strict)
    assert not (tmp_path / "strict").exists()


def test_no_validation_video_that_can_be_decoded_is_an_error(data: Path, tmp_path: Path) -> None:
    folder = damaged(data, tmp_path / "data")
    for file in (folder / "test").rglob("*.mp4"):
        if file.name != "broken.mp4":
            file.unlink()
    with pytest.raises(DataError, match="none of .* validation clips can be decoded"):
        train_vqgan(vqgan_config(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_is_the_result(vqgan_run: Path) -> None:
    assert find_checkpoint(vqgan_run) == vqgan_run / "checkpoints" / "best.ckpt"


def test_a_run_that_goes_on_must_find_the_clips_it_knows(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    run = train_vqgan(vqgan_config(copy, tmp_path / "run", train={"max_steps": 1})).run
    more = {"max_steps": 2}
    moved = tmp_path / "moved"
    copy.rename(moved)
    train_vqgan(vqgan_config(moved, run, train=more), resume=run)
    first, second = sorted((moved / "train").rglob("*.mp4"))[:2]
    record = (run / "run.json").read_text()
    renamed = first.rename(first.with_name("other.mp4"))
    more = {"max_steps": 3}
    with pytest.raises(DataError, match="4 videos of 48 frames in all, but other ones"):
        train_vqgan(vqgan_config(moved, run, train=more), resume=run)
    renamed.rename(first)
    second.unlink()
    with pytest.raises(DataError) as caught:
        train_vqgan(vqgan_config(moved, run, train=more), resume=run)
    for part in (str(moved), str(run), "3 videos of 36 frames", "4 videos of 48 frames"):
        assert part in caught.value.message
    assert "--out" in caught.value.hint
    assert (run / "run.json").read_text() == record


def test_a_run_on_tokens_goes_on_with_these_tokens_and_its_vqgan(
    tokens: Path, data: Path, vqgan_run: Path, other_vqgan_run: Path, tmp_path: Path
) -> None:
    run = train_gpt(gpt_config(tokens, tmp_path / "run", train={"max_steps": 1})).run
    more = {"max_steps": 2}
    denser = encode(encode_config(data, tmp_path / "t", vqgan_run, encode={"stride": 2})).folder
    with pytest.raises(DataError, match="20 clips in 1 shard .* had 12 clips in 1 shard"):
        train_gpt(gpt_config(denser, run, train=more), resume=run)
    with pytest.raises(ConfigError, match=f"vqgan: None -> {other_vqgan_run}"):
        train_gpt(gpt_config(tokens, run, other_vqgan_run, train=more), resume=run)
    assert train_gpt(gpt_config(tokens, run, train=more), resume=run).steps == 2


def test_a_run_tells_of_its_first_step_wherever_it_goes_on(data: Path, tmp_path: Path) -> None:
    for steps, told in ((2, [1, 2]), (6, [3, 6])):
        notes = Notes()
        config = vqgan_config(data, tmp_path / "run", train={"max_steps": steps, "log_every": 100})
        train_vqgan(config, tmp_path / "run" if steps > 2 else None, notes)
        assert notes.done[-2:] == told


def test_another_rate_is_a_note(data: Path, tmp_path: Path) -> None:
    run = train_vqgan(vqgan_config(data, tmp_path / "run", train={"max_steps": 1})).run
    said: list[list[str]] = []
    for steps, rate, course in ((2, 1e-3, "constant"), (3, 0.1, "constant"), (4, 0.1, "linear")):
        notes = Notes()
        optim = {"learning_rate": rate, "lr_schedule": course}
        config = vqgan_config(data, run, train={"max_steps": steps}, optim=optim)
        train_vqgan(config, run, notes)
        said.append([note for note in notes.notes if "from here on" in note])
    assert said == [
        ["from here on --lr-schedule constant, before it was cosine"],
        ["from here on --learning-rate 0.1, before it was 0.001"],
        [
            "from here on --lr-schedule linear, before it was constant; --max-steps 4, before it "
            "was 3: the learning rate at step 3 is 0.0325 instead of 0.01"
        ],
    ]


def test_more_steps_of_a_falling_rate_are_a_note(data: Path, tmp_path: Path) -> None:
    optim = {"lr_schedule": "linear"}
    config = vqgan_config(data, tmp_path / "run", train={"max_steps": 2}, optim=optim)
    run = train_vqgan(config).run
    said: list[list[str]] = []
    for steps in (4, 4):
        notes = Notes()
        train_vqgan(vqgan_config(data, run, train={"max_steps": steps}, optim=optim), run, notes)
        said.append([note for note in notes.notes if "from here on" in note])
    assert said == [
        [
            "from here on --max-steps 4, before it was 2: the learning rate at step 2 is 0.00055 "
            "instead of 0.0001"
        ],
        [],
    ]


def test_another_number_of_clips_a_step_is_a_note(data: Path, tmp_path: Path) -> None:
    run = train_vqgan(vqgan_config(data, tmp_path / "run", train={"max_steps": 1})).run
    same, other = Notes(), Notes()
    split = {"max_steps": 2, "batch_size": 1, "accumulate": 2}
    train_vqgan(vqgan_config(data, run, train=split), resume=run, reporter=same)
    assert not any("order of clips" in note for note in same.notes)
    train_vqgan(vqgan_config(data, run, train={"max_steps": 3, "batch_size": 3}), run, other)
    assert any("3 clips a step, 2 before" in note for note in other.notes)


def test_a_run_that_is_finished_says_so_with_its_figures(data: Path, tmp_path: Path) -> None:
    config, notes = vqgan_config(data, tmp_path / "run"), Notes()
    first = train_vqgan(config)
    before = {name: (first.run / name).read_bytes() for name in files(first.run)}
    assert train_vqgan(config, resume=first.run, reporter=notes) == first
    assert notes.notes == [f"{first.run} finished already at step 3; raise --max-steps to go on"]
    assert {name: (first.run / name).read_bytes() for name in files(first.run)} == before


def test_a_damaged_shard_is_named_before_training_and_decoding(
    tokens: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    shutil.copytree(tokens, folder)
    shard = folder / "train-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    out = DecodeConfig.model_validate(
        {"decode": {"out": tmp_path / "out"}, "compute": {"device": "cpu"}}
    )
    for call in (
        lambda: train_gpt(gpt_config(folder, tmp_path / "run")),
        lambda: decode(folder, out),
    ):
        with pytest.raises(DataError, match=r"train-00000\.safetensors: damaged") as caught:
            call()
        assert "tats encode" in caught.value.hint
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


def test_options_without_effect_where_a_run_is_are_noted() -> None:
    def on(accelerator: Any, processes: int = 1) -> Placement:
        return Placement(accelerator, processes, 1, "32-true")

    typed = ComputeConfig(sync_batchnorm=True)
    assert placement_notes(ComputeConfig(), on("cpu")) == []
    resolved = ComputeConfig.model_validate(ComputeConfig().model_dump())
    assert placement_notes(resolved, on("cpu")) == []
    assert placement_notes(typed, on("cuda", 2)) == []
    for few in (on("cuda"), on("cpu", 2)):
        assert "--sync-batchnorm" in placement_notes(typed, few)[0]
    [note] = placement_notes(ComputeConfig(devices=3), on("cuda"))
    assert "--devices 3" in note and "cuda" in note
    assert placement_notes(ComputeConfig(devices=3), on("cpu", 3)) == []
    [note] = placement_notes(GPTComputeConfig(fsdp=True), on("cuda"))
    assert "--fsdp has no effect" in note
    shared = replace(on("cuda", 2), sharded=True)
    assert placement_notes(GPTComputeConfig(fsdp=True), shared) == []


def test_batch_statistics_that_processes_do_not_share_are_noted() -> None:
    cpus, gpus = (Placement(kind, 2, 1, "32-true") for kind in ("cpu", "cuda"))
    assert batch_norm_notes(ComputeConfig(), gpus) == []
    assert batch_norm_notes(ComputeConfig(), Placement("cpu", 1, 1, "32-true")) == []
    alone = ComputeConfig(sync_batchnorm=False)
    for notes in (batch_norm_notes(ComputeConfig(), cpus), batch_norm_notes(alone, gpus)):
        assert "each of 2 processes" in notes[0] and "--norm-type group" in notes[0]
