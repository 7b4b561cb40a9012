"""Evaluation of a VQGAN: scores on held-out clips, and the measurement over time."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from einops import rearrange
from tiny_app import Cheap, Notes

from tatscli.app import reconstruct as module
from tatscli.app.data import open_videos, synthesise
from tatscli.app.reconstruct import ReconstructionScores, VQGANEvalResult, evaluate_vqgan
from tatscli.app.reporting import Silent
from tatscli.config.data import ClipConfig
from tatscli.config.evaluate import VQGANEvalConfig
from tatscli.config.synth import SynthConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core import weights
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan, save_vqgan
from tatscli.core.data.video import to_uint8, write_video
from tatscli.core.metrics.baselines import best_constant_image
from tatscli.core.metrics.features import video_features
from tatscli.core.metrics.frechet import frechet_distance
from tatscli.core.metrics.protocol import PROTOCOLS
from tatscli.core.metrics.reconstruction import clip_psnr, l1, psnr, rounded, standard_error
from tatscli.core.metrics.usage import UsageCounts
from tatscli.core.models.perceptual import LPIPS
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.weights import Pin
from tatscli.errors import CheckpointError, ConfigError, DataError


def evaluated(
    checkpoint: Path, reporter: Notes | None = None, /, **sections: dict[str, Any]
) -> VQGANEvalResult:
    given = {"compute": {"device": "cpu"}} | sections
    given["eval"] = {"workers": 0} | sections.get("eval", {})
    return evaluate_vqgan(checkpoint, VQGANEvalConfig.model_validate(given), reporter)


def scores_of(*arguments: Any, **sections: dict[str, Any]) -> ReconstructionScores:
    scores = evaluated(*arguments, **sections).reconstruction
    assert scores is not None
    return scores


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A VQGAN for frames of 32 x 32, of which a clip has 10."""
    torch.manual_seed(0)
    clip = ClipConfig(resolution=32, sequence_length=10)
    return _saved(tmp_path_factory.mktemp("larger"), clip)


def test_scores_are_those_of_the_held_out_clips(data: Path, vqgan_run: Path) -> None:
    found = evaluated(vqgan_run, data={"data": data}, eval={"batch_size": 3})
    assert (found.time, found.time_measured_on) == (None, "")
    scores = found.reconstruction
    assert scores is not None
    trained = read_vqgan(vqgan_run)
    clips = open_videos(data, trained.clip, Silent()).spread("val", 64)
    video = torch.stack([clips[number].video for number in range(len(clips))])
    codes = trained.model.encode(video)
    made = rounded(trained.model.decode(codes))
    constant = rounded(best_constant_image(video))[None, :, None].expand_as(video)
    assert (scores.clips, scores.videos) == (6, 2)
    assert (scores.frames, scores.size, scores.split) == (4, (8, 8), "val")
    names = [clips.source.entries[address.entry].path for address in clips.addresses]
    for name, each in {
        "psnr_db": psnr(video, made),
        "clip_psnr_db": clip_psnr(video, made),
        "l1": l1(video, made),
        "constant_image_db": psnr(video, constant),
    }.items():
        measure, values = scores.measures[name], each.tolist()
        assert measure.mean == pytest.approx(float(each.mean()), abs=1e-3)
        assert measure.standard_error == pytest.approx(standard_error(values, names), abs=1e-3)
        assert (measure.lowest, measure.highest) == pytest.approx((min(values), max(values)))
    assert scores.missing["ssim"] == "frames of 8 x 8 are smaller than its window of 11 x 11"
    usage = UsageCounts(16, (2, 2, 2))
    usage.add(codes)
    assert scores.usage == usage.summary()
    assert scores.skipped == []


def test_batches_and_workers_change_nothing(data: Path, vqgan_run: Path) -> None:
    first, second = (
        scores_of(vqgan_run, data={"data": data}, eval=options)
        for options in ({"batch_size": 4}, {"batch_size": 1, "workers": 1})
    )
    assert first.usage == second.usage
    for name, measure in first.measures.items():
        assert measure.mean == pytest.approx(second.measures[name].mean, abs=1e-3)


def test_one_video_has_no_standard_error(data: Path, vqgan_run: Path) -> None:
    scores = scores_of(vqgan_run, data={"data": data}, eval={"clips": 1})
    assert (scores.clips, scores.measures["psnr_db"].standard_error) == (1, None)


def test_no_clips_means_all_of_a_split_that_do_not_overlap(data: Path, vqgan_run: Path) -> None:
    """Two and four videos of 12 frames."""
    for split, length, clips in (("val", 4, 6), ("train", 4, 12), ("val", 10, 2), ("train", 6, 8)):
        options = {"data": data, "sequence_length": length}
        scores = scores_of(vqgan_run, data=options, eval={"clips": 0, "split": split})
        assert (scores.split, scores.clips, scores.frames) == (split, clips, length)
        assert scores.usage.tokens == clips * (length // 2) * 2 * 2


def test_exact_frames_are_counted(data: Path, vqgan_run: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_reconstructed", exactly)
    scores = scores_of(vqgan_run, data={"data": data})
    assert scores.identical_frames == 6 * 4
    assert scores.measures["psnr_db"].mean == scores.measures["clip_psnr_db"].mean == 100
    assert scores.measures["l1"].mean == 0


def exactly(trained: TrainedVQGAN, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return trained.model.encode(video), video


def test_too_few_tokens_for_the_codebook_are_named(data: Path, vqgan_run: Path) -> None:
    notes = Notes()
    scores_of(vqgan_run, notes, data={"data": data}, eval={"clips": 1})
    assert [w for w in notes.warnings if w.startswith("8 tokens of 16 codes: below 10 tokens a")]


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
    out = tmp_path / "out"
    scores = scores_of(vqgan_run, notes, data={"data": tmp_path}, eval={"out": out})
    assert scores.skipped
    assert scores.videos == 2
    rows = [json.loads(line) for line in (out / "bad_videos.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["val/1.mp4"]
    assert 0 < rows[0]["seconds"] < 40 / 8, "the beginning is sound"
    assert all(line.startswith("val/1.mp4: ") for line in scores.skipped)
    assert any("val/1.mp4" in warning for warning in notes.warnings)
    with pytest.raises(DataError, match=r"1\.mp4"):
        evaluated(vqgan_run, data={"data": tmp_path, "strict": True})
    with pytest.raises(DataError, match=r"1 of 4 videos .* more than --max-bad 0.2"):
        evaluated(vqgan_run, data={"data": tmp_path, "max_bad": 0.2})


def test_time_is_measured_on_a_held_out_clip_where_one_is_long_enough(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    notes = Notes()
    found = evaluated(vqgan_run, notes, data={"data": data}, eval={"time": True})
    assert found.time_measured_on == "a generated clip of 40 frames"
    missing = "no held-out clip of 40 frames: --time measures a generated clip of 40 frames"
    assert missing in notes.notes
    long = SynthConfig(classes=1, train_videos=1, test_videos=1, size=16, video_frames=44, rate=8)
    folder = synthesise(tmp_path / "long", long).folder
    notes = Notes()
    found = evaluated(vqgan_run, notes, data={"data": folder}, eval={"time": True})
    assert found.time_measured_on == "a held-out clip of 40 frames"
    assert not any("no held-out clip" in note for note in notes.notes)
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
    out = tmp_path / "out"
    scores = scores_of(tmp_path / "a.ckpt", data={"data": data}, eval={"out": out})
    assert (scores.clips, scores.size) == (6, (64, 16))
    assert list(scores.measures) == ["psnr_db", "clip_psnr_db", "constant_image_db", "l1"]
    assert (out / "clips.png").stat().st_size > 0
    # What a model was shown at twice our range, it is shown so here, and answers so.
    doubled = replace(trained, input_range=1.0)
    save_vqgan(doubled, tmp_path / "published.ckpt")
    other = scores_of(tmp_path / "published.ckpt", data={"data": data})
    assert other.measures["psnr_db"] != scores.measures["psnr_db"]
    assert other.measures["constant_image_db"] == scores.measures["constant_image_db"]
    for options in ({"lpips": "vgg"}, {"rfvd": True}):
        with pytest.raises(ConfigError, match="judge pictures; this is a VQGAN of sound"):
            evaluated(tmp_path / "a.ckpt", data={"data": data}, eval=options)
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
    assert "no ssim: frames of 8 x 8 are smaller than its window of 11 x 11" in done.err
    assert "no lpips vgg: frames of 8 x 8 are smaller than 16 x 16" in done.err
    assert "not time-agnostic: group norm pools over time" in done.out
    done = tats("vqgan", "eval", path, "--time", "--json", "--device", "cpu")
    found = json.loads(done.out)
    assert (found["reconstruction"], found["time"]["agnostic"]) == (None, False)


def test_nothing_to_measure_is_a_usage_error(tats: Callable[..., Any], tmp_path: Path) -> None:
    done = tats("vqgan", "eval", tmp_path)
    assert done.code == 2
    assert "nothing to measure: give --data DIR, --time or both" in done.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--time", "--rfvd"], "give --data DIR"),
        (["--data", "x", "--rfvd-features", "random"], "--rfvd-features random needs --rfvd"),
    ],
)
def test_options_without_what_they_need_are_usage_errors(
    tats: Callable[..., Any], tmp_path: Path, options: list[str], problem: str
) -> None:
    done = tats("vqgan", "eval", tmp_path, *options)
    assert done.code == 2
    assert problem in done.err


def test_table_and_files_hold_the_figures_of_the_json(
    tats: Callable[..., Any], data: Path, larger: Path, tmp_path: Path
) -> None:
    command = ["eval", "recon", larger, "--data", data, "--device", "cpu", "--workers", 0]
    shown = tats(*command, "--out", tmp_path / "a")
    printed = tats("vqgan", *command[:1], *command[2:], "--out", tmp_path / "b", "--json")
    assert (shown.code, printed.code) == (0, 0)
    found = json.loads(printed.out)
    assert found == json.loads((tmp_path / "b" / "reconstruction.json").read_text())
    assert found["schema"] == 1
    scores = found["reconstruction"]
    assert "2 held-out clips of 2 videos, 10 frames of 32 x 32" in shown.out
    assert "no lpips vgg: its weights are not here; 'tats weights fetch vgg16'" in shown.err
    lines = {tuple(line.split()[:-5]): line.split()[-5:] for line in shown.out.splitlines()}
    assert set(scores["measures"]) == {"psnr_db", "clip_psnr_db", "constant_image_db", "l1", "ssim"}
    for name, measure in scores["measures"].items():
        assert lines[tuple(name.split("_"))] == [f"{value:.4f}" for value in measure.values()]
    usage = scores["usage"]
    assert f"{usage['used']} of 16" in shown.out
    assert usage["used"] + len(usage["dead"]) == 16
    with (tmp_path / "b" / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == ["test/circle/000.mp4", "test/square/000.mp4"]
    mean = sum(float(row["ssim"]) for row in rows) / 2
    assert mean == pytest.approx(scores["measures"]["ssim"]["mean"], abs=1e-5)
    with (tmp_path / "b" / "codes.csv").open() as file:
        assert sum(int(row["count"]) for row in csv.DictReader(file)) == usage["tokens"]
    for name in ("codes.svg", "positions.svg"):
        assert ElementTree.parse(tmp_path / "b" / name).getroot().tag.endswith("svg")
    for name in ("clips.png", "clips.mp4"):
        assert (tmp_path / "b" / name).stat().st_size > 0
    again = tats(*command, "--out", tmp_path / "a")
    assert again.code == 1
    assert "not empty; nothing was overwritten" in again.err


def test_a_distance_of_random_features_is_not_called_rfvd(
    data: Path, larger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_i3d", lambda features, eps: Cheap())
    monkeypatch.setattr(module, "_reconstructed", exactly)
    notes = Notes()
    options = {"rfvd": True, "rfvd_features": "random", "batch_size": 1}
    found = scores_of(larger, notes, data={"data": data}, eval=options).distance
    assert found is not None
    assert (found.measure, found.clips) == ("random-feature distance", 2)
    assert found.value == pytest.approx(0, abs=1e-6)
    assert any("is no rFVD" in warning for warning in notes.warnings)
    found = scores_of(larger, notes, data={"data": data}, eval={"rfvd": True}).distance
    assert found is not None
    assert (found.measure, found.protocol, found.features) == ("rfvd", "fvd", "i3d")
    assert any("below 2048 rFVD is mostly bias" in warning for warning in notes.warnings)


def test_rfvd_is_the_distance_between_clips_and_reconstructions(
    data: Path, larger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_i3d", lambda features, eps: Cheap())
    options = {"rfvd": True, "clips": 2}
    found = scores_of(larger, data={"data": data}, eval=options).distance
    trained = read_vqgan(larger)
    clips = open_videos(data, trained.clip, Silent()).spread("val", 2)
    video = torch.stack([clips[number].video for number in range(2)])
    made = trained.model.decode(trained.model.encode(video))
    features = [
        video_features(Cheap(), PROTOCOLS["fvd"], to_uint8(v), 2, torch.device("cpu"))
        for v in (video, made)
    ]
    assert found is not None
    assert found.value == pytest.approx(frechet_distance(*features), rel=1e-2)
    assert found.value > 1


def test_networks_that_are_not_here_name_the_option_that_does_without(
    data: Path, larger: Path
) -> None:
    for options, command, instead in (
        ({"lpips": "vgg"}, "tats weights fetch vgg16", "--lpips none"),
        ({"rfvd": True}, "tats weights fetch i3d", "leave out --rfvd"),
    ):
        with pytest.raises(CheckpointError) as caught:
            evaluated(larger, data={"data": data}, eval=options)
        assert command in caught.value.hint
        assert f"do without it: {instead}" in caught.value.hint


def test_clips_that_a_network_cannot_judge_are_refused(data: Path, vqgan_run: Path) -> None:
    with pytest.raises(ConfigError, match="frames of 8 x 8, vgg needs at least 16 x 16"):
        evaluated(vqgan_run, data={"data": data}, eval={"lpips": "both"})
    with pytest.raises(ConfigError, match="clips of 4 frames, I3D needs at least 9"):
        evaluated(vqgan_run, data={"data": data}, eval={"rfvd": True})


def test_lpips_is_that_of_the_networks_that_are_here(
    data: Path, larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TATS_CACHE", str(tmp_path))
    path = tmp_path / "weights" / "alex.pth"
    path.parent.mkdir()
    torch.save(alexnet_weights(), path)
    pin = Pin("sha256", sha256(path.read_bytes()).hexdigest())
    made_up = replace(weights.FILES["vgg16"], name="alexnet", filename=path.name, pin=pin)
    monkeypatch.setitem(weights.FILES, "alexnet", made_up)
    notes = Notes()
    scores = scores_of(larger, notes, data={"data": data})
    assert list(scores.missing) == ["lpips_vgg"]
    assert not any("lpips" in note for note in notes.notes)  # one is enough
    trained = read_vqgan(larger)
    clips = open_videos(data, trained.clip, Silent()).spread("val", 64)
    network, each = LPIPS(path, "alex"), []
    for number in range(len(clips)):
        video = clips[number].video[None]
        made = rounded(trained.model.decode(trained.model.encode(video)))
        frames = [rearrange(v, "1 c t h w -> t c h w") for v in (video, made)]
        each.append(float(network(*frames).mean()))
    found = scores.measures["lpips_alex"]
    assert found.mean == pytest.approx(sum(each) / len(each), rel=1e-3)
    assert (
        "lpips_alex" not in scores_of(larger, data={"data": data}, eval={"lpips": "none"}).measures
    )


def alexnet_weights() -> dict[str, torch.Tensor]:
    widths = {
        0: (3, 64, 11),
        3: (64, 192, 5),
        6: (192, 384, 3),
        8: (384, 256, 3),
        10: (256, 256, 3),
    }
    generator = torch.Generator().manual_seed(0)
    found = {}
    for place, (incoming, outgoing, size) in widths.items():
        noise = torch.randn(outgoing, incoming, size, size, generator=generator)
        found[f"features.{place}.weight"] = noise * (2 / (size * size * incoming)) ** 0.5
        found[f"features.{place}.bias"] = torch.zeros(outgoing)
    return found


def test_a_broken_model_is_named(data: Path, tmp_path: Path) -> None:
    trained = read_vqgan(_saved(tmp_path))
    torch.nn.init.constant_(next(trained.model.decoder.parameters()), float("nan"))
    save_vqgan(trained, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="values that are not finite"):
        evaluated(tmp_path / "a.ckpt", data={"data": data})


CLIP = ClipConfig(resolution=8, sequence_length=4)


def _saved(folder: Path, clip: ClipConfig = CLIP, **settings: object) -> Path:
    config = {"embedding_dim": 4, "codes": 16, "hidden_channels": 2, "downsample": (2, 4, 4)}
    model = VQGAN(VQGANConfig.model_validate(config | settings)).eval()
    save_vqgan(TrainedVQGAN(model, clip, 8.0, 0), folder / "a.ckpt")
    return folder / "a.ckpt"
