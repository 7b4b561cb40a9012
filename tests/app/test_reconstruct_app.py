"""Evaluation of a VQGAN: scores on held-out clips, and the measurement over time."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_app import Notes

from tatscli.app.data import open_videos, synthesise
from tatscli.app.reconstruct import VQGANEvalResult, evaluate_vqgan
from tatscli.app.reporting import Silent
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import VQGANEvalConfig
from tatscli.config.synth import SynthConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan, save_vqgan
from tatscli.core.data.video import write_video
from tatscli.core.metrics.baselines import best_constant_image
from tatscli.core.metrics.reconstruction import psnr
from tatscli.core.models.vqgan import VQGAN
from tatscli.errors import DataError


def evaluated(
    checkpoint: Path, reporter: Notes | None = None, /, **sections: dict[str, Any]
) -> VQGANEvalResult:
    config = VQGANEvalConfig.model_validate({"compute": {"device": "cpu"}} | sections)
    return evaluate_vqgan(checkpoint, config, reporter)


def test_scores_are_those_of_the_held_out_clips(data: Path, vqgan_run: Path) -> None:
    found = evaluated(vqgan_run, data={"data": data}, eval={"batch_size": 3})
    assert (found.time, found.time_measured_on) == (None, "")
    scores = found.reconstruction
    assert scores is not None
    trained = read_vqgan(vqgan_run)
    clips = open_videos(data, trained.clip, Silent()).spread("val", 64)
    video = torch.stack([clips[number].video for number in range(len(clips))])
    codes = trained.model.encode(video)
    each = psnr(video, trained.model.decode(codes).clamp(-0.5, 0.5))
    constant = best_constant_image(video)[None, :, None].expand_as(video)
    assert (scores.clips, scores.frames, scores.size) == (len(clips), 4, (8, 8))
    assert scores.psnr_db == pytest.approx(float(each.mean()), abs=1e-3)
    error = float(each.std() / len(clips) ** 0.5)
    assert scores.psnr_standard_error_db == pytest.approx(error, abs=1e-3)
    assert scores.constant_image_db == pytest.approx(float(psnr(video, constant).mean()), abs=1e-3)
    assert (scores.codes_used, scores.codes) == (len(codes.unique()), 16)
    assert 1 <= scores.perplexity <= scores.codes_used
    assert scores.skipped == []


def test_one_clip_has_no_standard_error(data: Path, vqgan_run: Path) -> None:
    scores = evaluated(vqgan_run, data={"data": data}, eval={"clips": 1}).reconstruction
    assert scores is not None
    assert (scores.clips, scores.psnr_standard_error_db) == (1, None)


def test_a_damaged_video_is_left_out_and_named(vqgan_run: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    for split in ("train", "val"):
        for number in range(2):
            write_video(tmp_path / split / f"{number}.mp4", noise, 8)
    broken = tmp_path / "val" / "1.mp4"
    content = broken.read_bytes()
    start = content.index(b"mdat")
    broken.write_bytes(content[: start + 3000] + bytes(len(content) - start - 3000))
    notes = Notes()
    scores = evaluated(vqgan_run, notes, data={"data": tmp_path}).reconstruction
    assert scores is not None
    assert scores.skipped
    assert all(line.startswith("val/1.mp4: ") for line in scores.skipped)
    assert any("val/1.mp4" in warning for warning in notes.warnings)
    with pytest.raises(DataError, match=r"1\.mp4"):
        evaluated(vqgan_run, data={"data": tmp_path, "strict": True})


def test_time_is_measured_on_a_held_out_clip_where_one_is_long_enough(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    notes = Notes()
    found = evaluated(vqgan_run, notes, data={"data": data}, eval={"time": True})
    assert found.time_measured_on == "a generated clip of 40 frames"
    assert notes.notes == [
        "no held-out clip of 40 frames: --time measures a generated clip of 40 frames"
    ]
    long = SynthConfig(classes=1, train_videos=1, test_videos=1, size=16, video_frames=44, rate=8)
    folder = synthesise(tmp_path / "long", long).folder
    notes = Notes()
    found = evaluated(vqgan_run, notes, data={"data": folder}, eval={"time": True})
    assert (found.time_measured_on, notes.notes) == ("a held-out clip of 40 frames", [])
    assert found.reconstruction is not None
    assert found.time is not None
    assert found.time.agnostic
    assert found.time.frames == 40


def test_models_of_sound_are_measured_over_time_and_on_the_sound_of_videos(
    data: Path, tmp_path: Path
) -> None:
    trained = read_vqgan(_saved(tmp_path, image_channels=1))
    assert trained.model.config.image_channels == 1
    found = evaluated(tmp_path / "a.ckpt", eval={"time": True}).time
    assert found is not None
    assert found.agnostic
    scores = evaluated(tmp_path / "a.ckpt", data={"data": data}).reconstruction
    assert scores is not None
    assert (scores.clips, scores.size, scores.constant_image_db > 0) == (6, (64, 16), True)
    # What a model was shown at twice our range, it is shown so here, and answers so.
    doubled = replace(trained, input_range=1.0)
    save_vqgan(doubled, tmp_path / "published.ckpt")
    other = evaluated(tmp_path / "published.ckpt", data={"data": data}).reconstruction
    assert other is not None
    assert other.psnr_db != scores.psnr_db
    assert other.constant_image_db == scores.constant_image_db
    mute = tmp_path / "mute"
    write_video(mute / "a.mp4", np.zeros((20, 16, 16, 3), np.uint8), 8)
    with pytest.raises(DataError, match="no train video has sound"):
        evaluated(tmp_path / "a.ckpt", data={"data": mute, "missing_sound": "skip"})


def test_the_command_prints_both_parts_or_one_object(
    tats: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    settings = {"norm_type": "group", "hidden_channels": 16, "group_norm_over_time": True}
    path = _saved(tmp_path, **settings)
    done = tats("vqgan", "eval", path, "--data", data, "--time", "--device", "cpu")
    assert done.code == 0  # a measurement, not a failure
    assert "psnr db" in done.out
    assert "not time-agnostic: group norm pools over time" in done.out
    done = tats("vqgan", "eval", path, "--time", "--json", "--device", "cpu")
    found = json.loads(done.out)
    assert (found["reconstruction"], found["time"]["agnostic"]) == (None, False)


def test_nothing_to_measure_is_a_usage_error(tats: Callable[..., Any], tmp_path: Path) -> None:
    done = tats("vqgan", "eval", tmp_path)
    assert done.code == 2
    assert "nothing to measure: give --data DIR, --time or both" in done.err


def _saved(folder: Path, **settings: object) -> Path:
    config = {"embedding_dim": 4, "codes": 16, "hidden_channels": 2, "downsample": (2, 4, 4)}
    model = VQGAN(VQGANConfig.model_validate(config | settings)).eval()
    clip = ClipConfig(resolution=8, sequence_length=4)
    save_vqgan(TrainedVQGAN(model, clip, 8.0, 0), folder / "a.ckpt")
    return folder / "a.ckpt"
