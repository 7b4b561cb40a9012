"""Checkpoints: round trips, refusals, and files that stay whole whatever happens in writing."""

import errno
import os
import pickle
import stat
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tatscli.config.data import ClipConfig
from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import (
    HEADER,
    TrainedGPT,
    TrainedVQGAN,
    load_gpt,
    load_vqgan,
    read_gpt,
    read_trained,
    read_vqgan,
    require_intact,
    save_atomically,
    save_gpt,
    save_vqgan,
    step_of,
    vqgan_header,
)
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.gpt import GPT
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.paths import find_checkpoint
from tatscli.errors import CheckpointError

CLIP = ClipConfig(resolution=16, sequence_length=8, frame_rate=5, sample_every_n_frames=2)


def vqgan(seed: int = 0, **settings: Any) -> TrainedVQGAN:
    torch.manual_seed(seed)
    config = VQGANConfig.model_validate(
        {"embedding_dim": 3, "codes": 5, "hidden_channels": 2, "downsample": (2, 4, 4)} | settings
    )
    return TrainedVQGAN(VQGAN(config).eval(), CLIP, 2.5, 40)


def new_gpt(inside: TrainedVQGAN, condition: ConditionLayout) -> GPT:
    config = GPTConfig(
        layers=1, heads=1, width=4, codes=5, grid=inside.grid, block_size=40, condition=condition
    )
    return GPT(config).eval()


def save_label_gpt(file: Path, inside: TrainedVQGAN, classes: tuple[str, ...] = ("a", "b")) -> GPT:
    model = new_gpt(inside, ConditionLayout.labels(len(classes)))
    save_gpt(TrainedGPT(model, inside, classes, 70), file)
    return model


def assert_same_state(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    mine, theirs = found.state_dict(), expected.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_vqgan_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = vqgan()
    save_vqgan(saved, tmp_path / "v.ckpt")
    found = read_vqgan(tmp_path / "v.ckpt")
    assert_same_state(found.model, saved.model)
    assert found.model.config == saved.model.config
    assert (found.clip, found.rate, found.step) == (CLIP, 2.5, 40)
    assert found.grid == (2, 4, 4)
    assert found.model.fingerprint() == saved.model.fingerprint()
    assert not found.model.training
    video = torch.rand(1, 3, 4, 16, 16) - 0.5
    assert torch.equal(load_vqgan(tmp_path / "v.ckpt").encode(video), saved.model.encode(video))


def test_a_codebook_that_was_loaded_goes_on_where_it_was(tmp_path: Path) -> None:
    saved = vqgan()
    codebook, latents = saved.model.codebook.train(), torch.randn(3, 2, 3, 2, 2, 2)
    codebook(latents[0])
    codebook.update()
    save_vqgan(saved, tmp_path / "v.ckpt")
    found = load_vqgan(tmp_path / "v.ckpt").codebook
    assert found.initialized
    found.train()
    for book in (codebook, found):
        assert book.N.std() > 0
        book(latents[1])
        book.update()
    assert_same_state(found, codebook)
    assert (found.embeddings - latents[1].mean()).abs().max() > 0.01


def test_a_gpt_comes_back_with_its_vqgan(tmp_path: Path) -> None:
    inside = vqgan()
    saved = save_label_gpt(tmp_path / "g.ckpt", inside)
    found = read_gpt(tmp_path / "g.ckpt")
    assert_same_state(found.model, saved)
    assert_same_state(found.vqgan.model, inside.model)
    assert found.model.config == saved.config
    assert (found.classes, found.step) == (("a", "b"), 70)
    assert (found.vqgan.clip, found.vqgan.rate) == (CLIP, 2.5)
    assert found.vqgan.model.fingerprint() == inside.model.fingerprint()
    condition, tokens = torch.tensor([[1]]), torch.tensor([[4, 0, 2]])
    with torch.no_grad():
        logits = load_gpt(tmp_path / "g.ckpt")(condition, tokens)
        assert torch.equal(logits, saved(condition, tokens))
    assert_same_state(load_vqgan(tmp_path / "g.ckpt"), inside.model)


def judges(channels: int = 3) -> dict[str, torch.Tensor]:
    shape = (channels, 4, 2)
    return {
        f"{name}.{key}": value
        for name, judge in (
            ("image_discriminator", PatchDiscriminator(2, *shape)),
            ("video_discriminator", PatchDiscriminator(3, *shape)),
        )
        for key, value in judge.state_dict().items()
    }


def test_a_vqgan_keeps_the_discriminators_it_has(tmp_path: Path) -> None:
    saved = replace(vqgan(disc_channels=4, disc_layers=2), judges=judges())
    save_vqgan(saved, tmp_path / "v.ckpt")
    found = read_vqgan(tmp_path / "v.ckpt")
    assert found.judges.keys() == saved.judges.keys()
    assert all(torch.equal(value, saved.judges[key]) for key, value in found.judges.items())
    assert_same_state(found.model, saved.model)
    save_vqgan(vqgan(), tmp_path / "alone.ckpt")
    assert read_vqgan(tmp_path / "alone.ckpt").judges == {}


def test_a_gpt_of_sound_comes_back_with_both_vqgans(tmp_path: Path) -> None:
    inside, sound = vqgan(), vqgan(1, image_channels=1, codes=7)
    part = ConditionPart(kind="sound", tokens=6, ids=7, offset=0)
    model = new_gpt(inside, ConditionLayout(parts=(part,)))
    save_gpt(TrainedGPT(model, inside, (), 70, sound), tmp_path / "g.ckpt")
    found = read_gpt(tmp_path / "g.ckpt")
    assert_same_state(found.model, model)
    assert_same_state(found.vqgan.model, inside.model)
    assert found.sound
    assert_same_state(found.sound.model, sound.model)
    assert found.sound.model.config == sound.model.config
    assert (found.sound.clip, found.sound.rate, found.classes) == (CLIP, 2.5, ())


def test_files_from_before_there_was_sound_are_read(tmp_path: Path) -> None:
    inside = vqgan()
    save_label_gpt(tmp_path / "g.ckpt", inside)
    checkpoint = torch.load(tmp_path / "g.ckpt")
    del checkpoint[HEADER]["sound"]
    for name in ("latent_stride", "infill"):
        del checkpoint[HEADER]["config"][name]
    save_atomically(checkpoint, tmp_path / "g.ckpt")
    found = read_gpt(tmp_path / "g.ckpt")
    assert found.sound is None
    assert (found.model.config.latent_stride, found.model.config.infill) == (1, False)


def test_whatever_a_file_holds_is_read(tmp_path: Path) -> None:
    save_vqgan(vqgan(), tmp_path / "v.ckpt")
    save_label_gpt(tmp_path / "g.ckpt", vqgan())
    assert isinstance(read_trained(tmp_path / "v.ckpt"), TrainedVQGAN)
    assert isinstance(read_trained(tmp_path / "g.ckpt"), TrainedGPT)


def test_a_run_folder_means_its_best_else_its_last(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint") as caught:
        find_checkpoint(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint
    save_vqgan(vqgan(1), tmp_path / "checkpoints" / "last.ckpt")
    assert_same_state(load_vqgan(tmp_path), vqgan(1).model)
    save_vqgan(vqgan(2), tmp_path / "checkpoints" / "best.ckpt")
    assert_same_state(load_vqgan(tmp_path), vqgan(2).model)
    assert_same_state(load_vqgan(tmp_path / "checkpoints" / "last.ckpt"), vqgan(1).model)


def test_the_fingerprint_is_that_of_weights_and_codes() -> None:
    base = vqgan().model.fingerprint()
    assert vqgan().model.fingerprint() == base
    assert vqgan(1).model.fingerprint() != base
    moved = vqgan().model
    moved.codebook.N.add_(3)
    assert moved.fingerprint() == base
    moved.codebook.embeddings[0, 0] += 1e-3
    assert moved.fingerprint() != base


def test_a_gpt_refuses_another_vqgan_with_both_fingerprints(tmp_path: Path) -> None:
    own, other = vqgan(), vqgan(1)
    save_label_gpt(tmp_path / "g.ckpt", own)
    save_vqgan(own, tmp_path / "own.ckpt")
    save_vqgan(other, tmp_path / "other.ckpt")
    assert read_gpt(tmp_path / "g.ckpt", tmp_path / "own.ckpt").step == 70
    with pytest.raises(CheckpointError) as caught:
        read_gpt(tmp_path / "g.ckpt", tmp_path / "other.ckpt")
    assert own.model.fingerprint() in caught.value.message
    assert other.model.fingerprint() in caught.value.message
    assert "--vqgan" in caught.value.hint


def test_a_vqgan_is_no_gpt(tmp_path: Path) -> None:
    save_vqgan(vqgan(), tmp_path / "v.ckpt")
    with pytest.raises(CheckpointError, match=r"v\.ckpt holds a vqgan, expected a gpt") as caught:
        load_gpt(tmp_path / "v.ckpt")
    assert "tats gpt train" in caught.value.hint


def changed(file: Path, **header: Any) -> Path:
    saved = vqgan()
    state = {f"vqgan.{key}": value for key, value in saved.model.state_dict().items()}
    full = vqgan_header(saved.model.config, CLIP, 2.5, 40) | header
    save_atomically({HEADER: full, "state_dict": state}, file)
    return file


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"f\.ckpt has format 99, .* up to 1") as caught:
        load_vqgan(changed(tmp_path / "f.ckpt", format=99))
    assert "update" in caught.value.hint


def test_settings_that_do_not_hold_name_the_file(tmp_path: Path) -> None:
    wrong = vqgan().model.config.model_dump() | {"codes": 1}
    with pytest.raises(CheckpointError, match=r"f\.ckpt: its settings do not hold"):
        load_vqgan(changed(tmp_path / "f.ckpt", config=wrong))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"rate": None}, "rate: "),
        ({"clip": 5}, "clip: "),
        ({"step": "many"}, "step: "),
        ({"kind": "cat"}, "kind: Input should be 'vqgan'"),
        ({"format": "new"}, "format: "),
        ({"kind": "gpt"}, "vqgan: Field required"),
    ],
)
def test_a_header_that_does_not_say_enough_is_named(
    tmp_path: Path, header: dict[str, Any], told: str
) -> None:
    with pytest.raises(CheckpointError, match=r"f\.ckpt: its settings do not hold") as caught:
        load_vqgan(changed(tmp_path / "f.ckpt", **header))
    assert told in caught.value.message


@pytest.mark.parametrize("missing", ["format", "kind", "step", "config", "clip", "rate"])
def test_what_a_header_lacks_is_named(tmp_path: Path, missing: str) -> None:
    saved = vqgan()
    header = vqgan_header(saved.model.config, CLIP, 2.5, 40)
    del header[missing]
    save_atomically({HEADER: header, "state_dict": {}}, tmp_path / "f.ckpt")
    for load in (load_vqgan, load_gpt):
        with pytest.raises(CheckpointError, match=f"{missing}: Field required|should be"):
            load(tmp_path / "f.ckpt")


@pytest.mark.parametrize("state", [3, {"vqgan.codebook": 3}, {1: torch.zeros(1)}])
def test_what_holds_no_tensors_by_name_is_no_checkpoint(tmp_path: Path, state: Any) -> None:
    header = vqgan_header(vqgan().model.config, CLIP, 2.5, 40)
    save_atomically({HEADER: header, "state_dict": state}, tmp_path / "f.ckpt")
    with pytest.raises(CheckpointError, match="neither a tats checkpoint"):
        load_vqgan(tmp_path / "f.ckpt")


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    wrong = vqgan().model.config.model_dump() | {"embedding_dim": 7}
    with pytest.raises(CheckpointError, match=r"shape \(5, 3\), expected \(5, 7\)") as caught:
        load_vqgan(changed(tmp_path / "f.ckpt", config=wrong))
    assert "f.ckpt" in caught.value.message


def resumable(**changes: Any) -> dict[str, Any]:
    saved = vqgan()
    state = {f"vqgan.{key}": value for key, value in saved.model.state_dict().items()}
    header = vqgan_header(saved.model.config, CLIP, 2.5, 40)
    run = {"global_step": 40, "optimizer_states": [], "random_states": [{}], "loops": {}}
    return run | {HEADER: header, "state_dict": state} | changes


@pytest.mark.parametrize(
    "change",
    [
        {"global_step": "many"},
        {"global_step": torch.zeros(2)},
        {"random_states": None},
        {"loops": []},
        {"optimizer_states": {}},
    ],
)
def test_what_continues_a_run_is_there_as_what_it_is(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "r.ckpt"
    save_atomically(resumable(), file)
    require_intact(file)
    assert step_of(file) == 40
    save_atomically(resumable(**change), file)
    for read in (step_of, require_intact):
        with pytest.raises(CheckpointError, match=f"r.ckpt cannot .* it lacks {[*change][0]}$"):
            read(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda weight: weight.to_sparse(), "sparse_coo"),
        (lambda weight: weight.to("meta"), "without content"),
        (lambda weight: weight.to(torch.complex64), "complex64"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "float8"),
        (lambda weight: weight.long(), "int64, expected torch.float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_weights_of_another_make_are_refused(tmp_path: Path, change: Any, told: str) -> None:
    checkpoint = resumable()
    name = "vqgan.decoder.conv_last.conv.weight"
    checkpoint["state_dict"][name] = change(checkpoint["state_dict"][name])
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    for read in (read_vqgan, read_trained):
        with pytest.raises(CheckpointError, match=r"odd\.ckpt.*\s.*conv_last") as caught:
            read(tmp_path / "odd.ckpt")
        assert told in caught.value.message


def test_a_codebook_of_less_precision_is_not_intact(tmp_path: Path) -> None:
    checkpoint = resumable()
    codes = checkpoint["state_dict"]["vqgan.codebook.embeddings"]
    checkpoint["state_dict"]["vqgan.codebook.embeddings"] = codes.bfloat16()
    save_atomically(checkpoint, tmp_path / "half.ckpt")
    with pytest.raises(CheckpointError, match=r"embeddings is torch\.bfloat16, expected .*32"):
        require_intact(tmp_path / "half.ckpt")


def write_foreign(file: Path) -> None:
    torch.save({"weights": torch.zeros(2), "epoch": 3}, file)


def write_list(file: Path) -> None:
    torch.save([torch.zeros(2)], file)


def write_cut(file: Path) -> None:
    save_vqgan(vqgan(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write_text(file: Path) -> None:
    file.write_text("no checkpoint at all\n")


def write_nothing(file: Path) -> None:
    file.write_bytes(b"")


def write_stripped(file: Path) -> None:
    """A published file without most of it."""
    torch.save({"state_dict": {}, "hyper_parameters": {"args": Namespace(n_codes=3)}}, file)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_foreign, "epoch, weights"),
        (write_list, "list"),
        (write_cut, "damaged|cannot read"),
        (write_text, "refused|damaged"),
        (write_nothing, "it is empty"),
        (write_stripped, "lacks its setting"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, write: Any, says: str) -> None:
    file = tmp_path / "some.ckpt"
    write(file)
    for load in (load_vqgan, load_gpt):
        if write is write_stripped and load is load_gpt:
            says = "holds a VQGAN"
        with pytest.raises(CheckpointError, match=says) as caught:
            load(file)
        assert str(file) in caught.value.message


def test_a_missing_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist") as caught:
        load_gpt(tmp_path / "nowhere")
    assert caught.value.hint


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path: Path, form: str) -> None:
    file, mark = tmp_path / "evil.ckpt", tmp_path / "was here"
    content = {HEADER: {"format": 1}, "state_dict": {}, "callbacks": Hostile(mark)}
    if form == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="refused") as caught:
        load_vqgan(file)
    assert not mark.exists()
    assert str(file) in caught.value.message
    if form == "torch":
        assert "posix.system" in caught.value.message


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_as_torch_says_it(content: Any, stream: Any) -> None:
    stream.write(b"PK half of it")
    raise RuntimeError("unexpected pos 8640 vs 8534")


def killed(content: Any, stream: Any) -> None:
    stream.write(b"PK half of it")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "what", "raises"),
    [
        ("os.fsync", full_disk, CheckpointError),
        ("torch.save", full_disk, CheckpointError),
        ("torch.save", full_disk_as_torch_says_it, CheckpointError),
        ("torch.save", killed, KeyboardInterrupt),
    ],
)
def test_a_write_that_fails_leaves_the_file_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, what: Any, raises: Any
) -> None:
    file = tmp_path / "v.ckpt"
    save_vqgan(vqgan(1), file)
    monkeypatch.setattr(where, what)
    with pytest.raises(raises) as caught:
        save_vqgan(vqgan(2), file)
    monkeypatch.undo()
    if raises is CheckpointError:
        assert str(file) in caught.value.message
        assert "space" in str(caught.value.message + caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["v.ckpt"]
    assert_same_state(load_vqgan(file), vqgan(1).model)


def test_a_folder_that_is_a_file_is_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match=r"taken/v\.ckpt cannot be written: "):
        save_vqgan(vqgan(), tmp_path / "taken" / "v.ckpt")


def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    save_vqgan(vqgan(), tmp_path / "deep" / "er" / "v.ckpt")
    assert stat.S_IMODE((tmp_path / "deep" / "er" / "v.ckpt").stat().st_mode) == 0o644


def test_a_gpt_keeps_the_discriminators_of_its_vqgans(tmp_path: Path) -> None:
    names = ("image_discriminator.layers.0.0.bias", "video_discriminator.layers.0.0.bias")

    def judged(first: float, **settings: object) -> TrainedVQGAN:
        config = VQGANConfig.model_validate(
            {"embedding_dim": 2, "codes": 4, "hidden_channels": 1, "downsample": (2, 2, 2)}
            | settings
        )
        judges = {name: torch.full((3,), first + i) for i, name in enumerate(names)}
        return TrainedVQGAN(VQGAN(config).eval(), CLIP, 2.5, 40, judges)

    parts = (ConditionPart(kind="sound", tokens=2, ids=4, offset=0),)
    architecture = GPTConfig(
        layers=1, heads=1, width=2, codes=4, grid=(2, 2, 2), block_size=9,
        condition=ConditionLayout(parts=parts),
    )  # fmt: skip
    trained = TrainedGPT(
        GPT(architecture).eval(), judged(1.0), (), 7, judged(5.0, image_channels=1)
    )
    save_gpt(trained, tmp_path / "gpt.ckpt")
    for found in (read_gpt(tmp_path / "gpt.ckpt").vqgan, read_vqgan(tmp_path / "gpt.ckpt")):
        assert {name: float(held[0]) for name, held in found.judges.items()} == {
            names[0]: 1.0, names[1]: 2.0,
        }  # fmt: skip
    sound = read_gpt(tmp_path / "gpt.ckpt").sound
    assert sound is not None
    assert {name: float(held[0]) for name, held in sound.judges.items()} == {
        names[0]: 5.0, names[1]: 6.0,
    }  # fmt: skip
