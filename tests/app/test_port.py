"""Import and export; published files in the place of our own."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_app import Notes, encode_config, gpt_config, short_config

from tatscli.app import port as module
from tatscli.app import sample
from tatscli.app.encode import decode, encode
from tatscli.app.port import export_published, import_published
from tatscli.app.run import RunFolder, newest_gpt
from tatscli.app.train import train_gpt
from tatscli.config.data import ClipConfig
from tatscli.config.encode import DecodeConfig
from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig
from tatscli.config.port import ExportConfig, ImportConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import (
    TrainedGPT,
    TrainedVQGAN,
    read_gpt,
    read_vqgan,
    save_original,
)
from tatscli.core.data.video import probe, read_frames, to_float
from tatscli.core.metrics.reconstruction import psnr
from tatscli.core.models.gpt import GPT
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.original import read_original
from tatscli.errors import CheckpointError, ConfigError, DataError, RunError

CLIP = ClipConfig(resolution=8, sequence_length=8)


def new_vqgan(**settings: Any) -> TrainedVQGAN:
    torch.manual_seed(4)
    small = {"embedding_dim": 4, "codes": 16, "hidden_channels": 2, "downsample": (2, 4, 4)}
    config = VQGANConfig.model_validate(small | settings)
    published = 1.0 if config.image_channels == 1 else 0.5
    return TrainedVQGAN(VQGAN(config).eval(), CLIP, 0.0, 3, input_range=published)


def published_gpt_file(file: Path, condition: ConditionLayout, **settings: Any) -> Path:
    """A GPT as the published code would have written it."""
    base = {"layers": 1, "heads": 1, "width": 4, "codes": 16, "grid": (4, 2, 2), "block_size": 16}
    config = GPTConfig.model_validate(base | {"condition": condition} | settings)
    sound = new_vqgan(image_channels=1) if condition.part("sound") else None
    label = condition.part("label")
    classes = tuple(map(str, range(label.ids))) if label else ()
    trained = TrainedGPT(GPT(config).eval(), new_vqgan(), classes, 9, sound)
    save_original(trained, file)
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint["tats"]
    torch.save(checkpoint, file)
    return file


@pytest.fixture
def vqgan_file(vqgan_run: Path, tmp_path: Path) -> Path:
    return export_published(vqgan_run, ExportConfig(out=tmp_path / "published vqgan.ckpt")).file


@pytest.fixture
def gpt_file(gpt_run: Path, tmp_path: Path) -> Path:
    return export_published(gpt_run, ExportConfig(out=tmp_path / "published gpt.ckpt")).file


def test_an_imported_vqgan_is_a_run_that_says_where_it_is_from(
    vqgan_file: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    result = import_published(vqgan_file, ImportConfig(out=tmp_path / "runs" / "mine"))
    run = tmp_path / "runs" / "mine"
    assert sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) == [
        "checkpoints/last.ckpt", "run.json",
    ]  # fmt: skip
    assert [p.name for p in run.parent.iterdir()] == ["mine"]
    record = json.loads((run / "run.json").read_text())
    digest = hashlib.sha256(vqgan_file.read_bytes()).hexdigest()
    assert (record["kind"], record["status"]) == ("vqgan", "imported")
    assert (record["source"], record["sha256"]) == (str(vqgan_file), digest)
    found, there = read_vqgan(run), read_vqgan(vqgan_run)
    assert found.model.fingerprint() == there.model.fingerprint() == result.fingerprint
    assert (found.clip, found.rate, found.step) == (there.clip, there.rate, there.step)
    assert (result.run, result.kind, result.step) == (run, "vqgan", 3)
    assert (result.resolution, result.frames, result.grid) == ((8, 8), 4, (2, 2, 2))
    assert (result.vqgan.downsample, result.vqgan.codes) == ((2, 4, 4), 16)
    assert (result.gpt, result.sound, result.loss, result.discriminators) == (None, None, None, [])


def test_the_default_folder_is_named_after_the_file(
    vqgan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert import_published(vqgan_file, ImportConfig()).run == Path("runs/published vqgan")


def test_a_gpt_is_judged_by_its_loss_on_the_clip(gpt_file: Path, tmp_path: Path) -> None:
    result = import_published(gpt_file, ImportConfig(out=tmp_path / "run"))
    trained = read_gpt(tmp_path / "run")
    video = to_float(module._generated(8, 4))[None]
    tokens = trained.vqgan.model.encode(video).flatten(1)
    with torch.no_grad():
        logits = trained.model(torch.tensor([[0]]), tokens)[0, :, 3:]  # of two classes and none
        decoded = trained.vqgan.model.decode(tokens.view(1, 2, 2, 2))
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, tokens[0])))
    assert result.loss_of_chance == pytest.approx(math.log(16))
    assert result.codes_used == len(tokens.unique())
    assert result.psnr == pytest.approx(float(psnr(video, decoded.clamp(-0.5, 0.5))))
    assert (result.kind, result.condition) == ("gpt", "the class, 3 ids")
    assert trained.classes == ("circle", "square")
    assert newest_gpt(tmp_path) == tmp_path / "run"
    record = RunFolder(tmp_path / "run").record
    assert record["classes"] == ["circle", "square"]
    assert RunFolder(tmp_path / "run").model == {
        "infill": False, "latent_stride": 1, "condition": "label",
    }  # fmt: skip


def test_a_gpt_that_infills_is_judged_by_what_is_between(tmp_path: Path) -> None:
    file = published_gpt_file(
        tmp_path / "g.ckpt", ConditionLayout.unconditional(), infill=True
    )  # fmt: skip
    result = import_published(file, ImportConfig(out=tmp_path / "run"))
    trained = read_gpt(tmp_path / "run")
    tokens = trained.vqgan.model.encode(to_float(module._generated(8, 8))[None]).flatten(1)
    with torch.no_grad():
        logits = trained.model(torch.tensor([[0]]), tokens)
    assert result.loss == pytest.approx(float(F.cross_entropy(logits[0, 4:12], tokens[0, 4:12])))
    assert result.gpt is not None
    assert result.gpt.writes == "the latent frames between the first and the last"


def test_a_gpt_of_key_frames_reads_every_nth_latent_frame(tmp_path: Path) -> None:
    labels = ConditionLayout(parts=(ConditionPart(kind="label", tokens=1, ids=5, offset=0),))
    settings = {"latent_stride": 2, "grid": (2, 2, 2), "block_size": 8}
    file = published_gpt_file(tmp_path / "g.ckpt", labels, **settings)
    result = import_published(file, ImportConfig(out=tmp_path / "run"))
    assert (result.grid, result.condition) == ((2, 2, 2), "the class, 5 ids")
    assert result.gpt is not None
    assert result.gpt.writes == "one latent frame in 2"


def test_a_gpt_of_sound_comes_with_both_vqgans_and_no_loss(tmp_path: Path) -> None:
    part = ConditionPart(kind="sound", tokens=4 * 16 * 4, ids=16, offset=0)
    layout = ConditionLayout(parts=(part,))
    file = published_gpt_file(tmp_path / "g.ckpt", layout, block_size=256 + 16)
    result = import_published(file, ImportConfig(out=tmp_path / "run"))
    assert result.sound is not None
    assert (result.condition, result.loss) == ("sound, 256 tokens", None)
    trained = read_gpt(tmp_path / "run")
    assert trained.sound is not None
    assert trained.sound.model.config.image_channels == 1


def test_a_vqgan_of_sound_is_checked_on_frames_of_64_by_16(tmp_path: Path) -> None:
    save_original(new_vqgan(image_channels=1), tmp_path / "s.ckpt")
    result = import_published(tmp_path / "s.ckpt", ImportConfig(out=tmp_path / "run"))
    assert (result.kind, result.resolution, result.grid) == ("sound vqgan", (64, 16), (4, 16, 4))
    with pytest.raises(ConfigError, match="VQGAN of sound"):
        import_published(tmp_path / "s.ckpt", ImportConfig(out=tmp_path / "a", check=tmp_path))


def test_the_clip_can_be_given(vqgan_file: Path, data: Path, tmp_path: Path) -> None:
    clip = data / "train" / "square" / "001.mp4"
    result = import_published(vqgan_file, ImportConfig(out=tmp_path / "run", check=clip))
    video = to_float(read_frames(clip, probe(clip), range(4), 8))[None]
    model = read_vqgan(vqgan_file).model
    expected = psnr(video, model.decode(model.encode(video)).clamp(-0.5, 0.5))
    assert result.psnr == pytest.approx(float(expected))
    assert result.checked_on == str(clip)


def test_a_clip_that_is_too_short_is_an_error_with_both_numbers(data: Path, tmp_path: Path) -> None:
    long = replace(new_vqgan(), clip=ClipConfig(resolution=8, sequence_length=16))
    save_original(long, tmp_path / "v.ckpt")
    clip = data / "train" / "square" / "001.mp4"
    with pytest.raises(DataError, match="has 12 frames, a clip of this model 16"):
        import_published(tmp_path / "v.ckpt", ImportConfig(out=tmp_path / "run", check=clip))
    assert not (tmp_path / "run").exists()


def test_a_reconstruction_worse_than_a_still_image_is_a_warning(tmp_path: Path) -> None:
    untrained, notes = new_vqgan(), Notes()
    untrained.model.decoder.conv_last.conv.bias.data.fill_(3.0)
    save_original(untrained, tmp_path / "v.ckpt")
    result = import_published(tmp_path / "v.ckpt", ImportConfig(out=tmp_path / "run"), notes)
    assert result.psnr < result.still_psnr
    (warning,) = notes.warnings
    assert "worse than a still image" in warning


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    broken = new_vqgan()
    broken.model.decoder.conv_last.conv.bias.data[0] = math.nan
    save_original(broken, tmp_path / "v.ckpt")
    with pytest.raises(CheckpointError, match="not finite"):
        import_published(tmp_path / "v.ckpt", ImportConfig(out=tmp_path / "run"))
    assert [p.name for p in tmp_path.iterdir()] == ["v.ckpt"]


def test_what_a_gpt_file_leaves_open_is_noted_unless_the_vqgan_is_given(tmp_path: Path) -> None:
    file = published_gpt_file(tmp_path / "g.ckpt", ConditionLayout.unconditional())
    save_original(new_vqgan(), tmp_path / "v.ckpt")
    alone, given = Notes(), Notes()
    import_published(file, ImportConfig(out=tmp_path / "a"), alone)
    vqgan = tmp_path / "v.ckpt"
    import_published(file, ImportConfig(out=tmp_path / "b", vqgan=vqgan), given)
    assert "does not say how its VQGAN pads" in alone.notes[0]
    assert given.notes == []


def test_our_own_checkpoint_needs_no_import(vqgan_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a checkpoint of tats already") as caught:
        import_published(vqgan_run, ImportConfig(out=tmp_path / "run"))
    assert "--vqgan" in caught.value.hint


def test_nothing_is_overwritten(vqgan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("precious")
    with pytest.raises(RunError, match="not empty; nothing was overwritten"):
        import_published(vqgan_file, ImportConfig(out=tmp_path / "run"))
    with pytest.raises(CheckpointError, match="exists; nothing was overwritten"):
        export_published(vqgan_file, ExportConfig(out=vqgan_file))


def test_an_import_that_fails_in_writing_leaves_nothing(
    vqgan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        import_published(vqgan_file, ImportConfig(out=tmp_path / "run"))
    assert [p.name for p in tmp_path.iterdir()] == [vqgan_file.name]


def test_export_tells_what_is_missing(gpt_run: Path, vqgan_run: Path, tmp_path: Path) -> None:
    notes = Notes()
    result = export_published(gpt_run, ExportConfig(out=tmp_path / "g.ckpt"), notes)
    assert result.kind == "gpt"
    assert result.missing == [
        "perceptual network", "image discriminator", "video discriminator",
    ]  # fmt: skip
    assert "class 2 stands for none" in notes.notes[-1]
    assert read_original(result.file)["hyper_parameters"]["args"].class_cond_dim == 3
    other = tmp_path / "sub" / "v.ckpt"
    assert export_published(vqgan_run, ExportConfig(out=other)).file == other


def test_every_command_takes_a_published_file(
    vqgan_file: Path, gpt_file: Path, data: Path, tokens: Path, tmp_path: Path
) -> None:
    encoded = encode(encode_config(data, tmp_path / "tokens", vqgan_file))
    assert encoded.vqgan == read_vqgan(tokens).model.fingerprint()
    options = {"vqgan": vqgan_file, "out": tmp_path / "decoded", "limit": 1}
    config = DecodeConfig.model_validate({"decode": options, "compute": {"device": "cpu"}})
    assert decode(encoded.folder, config).videos == 2
    trained = train_gpt(gpt_config(data, tmp_path / "gpt", vqgan_file, train={"max_steps": 1}))
    assert read_gpt(trained.run).vqgan.model.fingerprint() == encoded.vqgan
    assert sample.short(short_config(gpt_file, tmp_path / "samples")).samples == 3


def test_a_vqgan_of_sound_encodes_no_video(data: Path, tmp_path: Path) -> None:
    save_original(new_vqgan(image_channels=1), tmp_path / "s.ckpt")
    with pytest.raises(ConfigError, match="frames of 1 channels, as of sound"):
        encode(encode_config(data, tmp_path / "tokens", tmp_path / "s.ckpt"))
    with pytest.raises(ConfigError, match="frames of 1 channels, as of sound"):
        train_gpt(gpt_config(data, tmp_path / "gpt", tmp_path / "s.ckpt"))
    assert [path.name for path in tmp_path.iterdir()] == ["s.ckpt"]
