"""Runs that start from weights: what they keep, what they refuse, and that they go on as any."""

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_app import COMPUTE, LOOP, Notes, encode_config, gpt_config, vqgan_config

from tatscli.app.architecture import settle_vqgan
from tatscli.app.encode import encode
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.config.data import ClipConfig
from tatscli.config.files import Layer, dump, read_compat, read_layer, resolve
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import TrainedVQGAN, read_gpt, read_vqgan
from tatscli.core.models.codebook import Codebook
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.paths import find_checkpoint
from tatscli.errors import CheckpointError, ConfigError, DataError

State = dict[str, torch.Tensor]
GAN = {"perceptual_weight": 0, "disc_start": 1, "disc_warmup": 0}
CONSTANT = {"lr_schedule": "constant", "learning_rate": 1e-3, "lr_warmup": 0}


def open_vqgan(data: Path, init: Path, out: Path, /, **sections: Any) -> VQGANTrainConfig:
    """Settings that leave architecture and clips to the weights."""
    base: dict[str, dict[str, Any]] = {
        "data": {"data": data},
        "model": {},
        "loss": {"perceptual_weight": 0, "image_gan_weight": 0, "video_gan_weight": 0},
        "optim": CONSTANT,
        "train": LOOP | {"init": init, "out": out},
        "compute": COMPUTE,
    }
    merged = {name: values | sections.get(name, {}) for name, values in base.items()}
    return VQGANTrainConfig.model_validate(merged)


def open_gpt(data: Path, init: Path, out: Path, /, **sections: Any) -> GPTTrainConfig:
    base: dict[str, dict[str, Any]] = {
        "data": {"data": data},
        "model": {},
        "optim": CONSTANT,
        "train": LOOP | {"init": init, "out": out},
        "compute": COMPUTE,
    }
    merged = {name: values | sections.get(name, {}) for name, values in base.items()}
    return GPTTrainConfig.model_validate(merged | {"vqgan": sections.get("vqgan")})


def state(file: Path) -> State:
    return torch.load(file, weights_only=True)["state_dict"]


def last(run: Path) -> State:
    return state(run / "checkpoints" / "last.ckpt")


def same(one: State, other: State) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def codebooks(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The codebook before each of its updates."""
    seen: list[State] = []
    original = Codebook.update

    def update(codebook: Codebook) -> None:
        seen.append({key: value.clone() for key, value in codebook.state_dict().items()})
        original(codebook)

    monkeypatch.setattr(Codebook, "update", update)
    return seen


@pytest.fixture
def first_state(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], State]:
    """Calls a training up to its first step; what is trained, as it is then."""

    class Begins(Exception):  # noqa: N818  # it is no error
        """The first step."""

    def call(training: Callable[[], Any]) -> State:
        held: list[State] = []

        def fit(module: Any, *_: Any, **__: Any) -> None:
            held.append(module.state_dict())
            raise Begins

        with monkeypatch.context() as patch:
            patch.setattr("tatscli.app.train.fit", fit)
            with pytest.raises(Begins):
                training()
        return held[0]

    return call


@pytest.fixture(scope="module")
def gan_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQGAN with small discriminators."""
    config = vqgan_config(data, tmp_path_factory.mktemp("gan") / "run",
                          loss=GAN | {"image_gan_weight": 1, "video_gan_weight": 1})  # fmt: skip
    small = config.model.model_copy(update={"disc_channels": 4, "disc_layers": 2})
    return train_vqgan(config.model_copy(update={"model": small})).run


def published_vqgan(run: Path, file: Path, prefix: str = "") -> Path:
    """Writes the VQGAN of a run as the published code would."""
    model = read_vqgan(run).model.config
    tensors = {
        prefix + re.sub(r"layers\.(\d+)", r"model\1", key.removeprefix("vqgan.")): value
        for key, value in state(find_checkpoint(run)).items()
    }
    args = argparse.Namespace(
        embedding_dim=4, n_codes=16, n_hiddens=2, downsample=(2, 4, 4), norm_type="batch",
        padding_type="replicate", image_channels=3, no_random_restart=True, restart_thres=1.0,
        disc_channels=model.disc_channels, disc_layers=model.disc_layers, sequence_length=4,
        resolution=8, sample_every_n_frames=1,
    )  # fmt: skip
    checkpoint = {"state_dict": tensors, "global_step": 7, "hyper_parameters": {"args": args}}
    torch.save(checkpoint, file)
    return file


def published_gpt(run: Path, vqgan_run: Path, file: Path, classes: int) -> Path:
    """Writes a class-conditional GPT as the published code would, without an id for no class."""
    inside = torch.load(published_vqgan(vqgan_run, file, "first_stage_model."), weights_only=False)
    tensors = inside["state_dict"]
    for key, value in state(find_checkpoint(run)).items():
        name = key.removeprefix("gpt.")
        if not key.startswith("gpt."):
            continue
        if "qkv" in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                tensors["transformer." + name.replace("qkv", part)] = piece
        elif name in ("tok_emb.weight", "head.weight"):
            tensors["transformer." + name] = torch.cat([value[:classes], value[classes + 1 :]])
        else:
            tensors["transformer." + name] = value
    args = argparse.Namespace(
        unconditional=False, cond_stage_key="label", class_cond_dim=classes, vocab_size=16,
        block_size=8, n_layer=1, n_head=2, n_embd=8, n_unmasked=0, sequence_length=4, resolution=8,
        sample_every_n_frames=1, sample_every_n_latent_frames=0, vtokens=False,
    )  # fmt: skip
    checkpoint = {"state_dict": tensors, "global_step": 7, "hyper_parameters": {"args": args}}
    torch.save(checkpoint, file)
    return file


def test_a_vqgan_starts_with_the_codebook_of_its_weights_to_the_last_bit(
    data: Path, gan_run: Path, tmp_path: Path, codebooks: list[State]
) -> None:
    published = published_vqgan(gan_run, tmp_path / "published.ckpt")
    for number, init in enumerate((gan_run, find_checkpoint(gan_run), published)):
        codebooks.clear()
        train_vqgan(open_vqgan(data, init, tmp_path / str(number), train={"max_steps": 1}))
        held = state(find_checkpoint(gan_run))
        for name, value in codebooks[0].items():
            assert torch.equal(value, held[f"vqgan.codebook.{name}"]), (init, name)


def test_a_vqgan_that_goes_on_has_its_codebook_to_the_last_bit(
    data: Path, tmp_path: Path, codebooks: list[State]
) -> None:
    run = train_vqgan(vqgan_config(data, tmp_path / "run", train={"max_steps": 2})).run
    held = last(run)
    codebooks.clear()
    train_vqgan(vqgan_config(data, run, train={"max_steps": 3}), resume=run)
    assert len(codebooks) == 1
    for name, value in codebooks[0].items():
        assert torch.equal(value, held[f"vqgan.codebook.{name}"]), name


def test_all_weights_are_those_of_the_checkpoint_and_its_settings_are_recorded(
    data: Path, gan_run: Path, tmp_path: Path, first_state: Any
) -> None:
    published = published_vqgan(gan_run, tmp_path / "published.ckpt")
    notes = Notes()
    both = {"image_gan_weight": 1, "video_gan_weight": 1}
    for number, init in enumerate((gan_run, published)):
        config = open_vqgan(data, init, tmp_path / str(number), loss=both)
        found = first_state(lambda config=config: train_vqgan(config, reporter=notes))
        assert same(found, state(find_checkpoint(gan_run)))
        recorded = resolve(VQGANTrainConfig, [read_layer(tmp_path / str(number) / "config.yaml")])
        assert recorded.model == read_vqgan(gan_run).model.config
        assert (recorded.data.resolution, recorded.data.sequence_length) == (8, 4)
        assert recorded.train.init == init
    assert not any("new ones" in note for note in notes.notes)


def test_discriminators_that_are_not_in_the_file_are_new_and_that_is_said(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    notes = Notes()
    loss = GAN | {"image_gan_weight": 1, "video_gan_weight": 1}
    # Nobody decides their size but the user.
    small = {"disc_channels": 4, "disc_layers": 1}
    config = open_vqgan(data, vqgan_run, tmp_path / "run", loss=loss, model=small)
    train_vqgan(config, reporter=notes)
    [note] = [note for note in notes.notes if "holds no" in note]
    assert note == f"{vqgan_run} holds no image discriminator and no video discriminator: " \
        "new ones start"  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"codes": 32}}, "--codes 32, not 16"),
        ({"model": {"downsample": (4, 4, 4)}}, "--downsample 4 4 4, not 2 4 4"),
        ({"model": {"norm_type": "group"}}, "--norm-type group, not batch"),
        ({"model": {"padding_type": "constant"}}, "model.padding_type constant, not replicate"),
        ({"model": {"disc_layers": 1}}, "--disc-layers 1, not 2"),
    ],
)
def test_another_architecture_is_refused_with_both_sides(
    data: Path, gan_run: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_vqgan(open_vqgan(data, gan_run, tmp_path / "run", **changes))
    assert says in caught.value.message
    assert str(gan_run) in caught.value.message
    assert "--init" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_what_only_training_needs_and_the_clips_may_be_others(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    model = {"codes": 16, "random_restart": True, "codebook_decay": 0.5, "codebook_update": "pass"}
    clips = {"resolution": 16, "sequence_length": 2}
    config = open_vqgan(data, vqgan_run, tmp_path / "run", model=model, data=clips)
    train_vqgan(config)
    found = read_vqgan(tmp_path / "run")
    assert (found.model.config.random_restart, found.model.config.codebook_decay) == (True, 0.5)
    assert (found.clip.resolution, found.clip.sequence_length) == (16, 2)
    odd = open_vqgan(data, vqgan_run, tmp_path / "odd", data={"resolution": 10})
    with pytest.raises(ConfigError, match="height 10 cannot be downsampled by 4"):
        train_vqgan(odd)


def test_clips_are_checked_against_the_weights_and_not_against_defaults(data: Path) -> None:
    # 20 is no multiple of the default 8, nor 6 of the default 4.
    clips = {"resolution": 20, "sequence_length": 6}
    config = open_vqgan(data, Path("x"), Path("y"), data=clips)
    start = TrainedVQGAN(VQGAN(VQGANConfig(hidden_channels=2, downsample=(2, 4, 4))),
                         ClipConfig(), 0.0, 1)  # fmt: skip
    assert settle_vqgan(config, Path("x"), start).model.downsample == (2, 4, 4)
    with pytest.raises(ValueError, match="frames 6 cannot be downsampled by 4"):
        VQGANTrainConfig.model_validate({"data": {"data": data} | clips})


def test_group_norm_over_time_is_that_of_the_weights(data: Path) -> None:
    published = VQGANConfig(hidden_channels=16, norm_type="group", group_norm_over_time=True)
    start = TrainedVQGAN(VQGAN(published), ClipConfig(), 0.0, 1)
    kept = settle_vqgan(open_vqgan(data, Path("x"), Path("y")), Path("x"), start)
    assert kept.model.group_norm_over_time
    asked = open_vqgan(data, Path("x"), Path("y"), model={"group_norm_over_time": False})
    with pytest.raises(ConfigError, match="group_norm_over_time False, not True"):
        settle_vqgan(asked, Path("x"), start)


def test_published_numerics_start_from_published_batch_norm(
    data: Path, gan_run: Path, tmp_path: Path
) -> None:
    published = published_vqgan(gan_run, tmp_path / "published.ckpt")
    compat = read_compat("vqgan", "tats").values
    sections = {name: dict(compat[name]) for name in ("model", "loss", "optim")}
    loss = sections["loss"] | {"image_gan_weight": 1, "video_gan_weight": 1}
    config = open_vqgan(data, published, tmp_path / "run", **sections | {"loss": loss})
    train_vqgan(config)
    recorded = read_layer(tmp_path / "run" / "config.yaml").values
    for section, settings in compat.items():
        assert settings.items() <= recorded[section].items()
    # The line that continues it may name them again.
    layers = [read_layer(tmp_path / "run" / "config.yaml"), read_compat("vqgan", "tats")]
    again = resolve(VQGANTrainConfig, [*layers, Layer("", {"train": {"max_steps": 4}})])
    assert train_vqgan(again, resume=tmp_path / "run").steps == 4


def test_a_run_with_other_numerics_does_not_go_on(data: Path, vqgan_run: Path) -> None:
    compat = read_compat("vqgan", "tats").values
    config = vqgan_config(data, vqgan_run, model=compat["model"], loss=compat["loss"])
    with pytest.raises(ConfigError) as caught:
        train_vqgan(config, resume=vqgan_run)
    for changed in (
        "model.codebook_update: step -> pass",
        "model.restart_statistics: True -> False",
        "loss.perceptual_range: 1.0 -> 0.5",
        "loss.disc_ramp: 1000 -> 0",
    ):
        assert changed in caught.value.message


def test_numerics_that_an_older_run_does_not_name_are_its_defaults(
    data: Path, tmp_path: Path
) -> None:
    run = train_vqgan(vqgan_config(data, tmp_path / "run", train={"max_steps": 1})).run
    text = (run / "config.yaml").read_text()
    lines = [line for line in text.splitlines() if "codebook_update" not in line]
    assert len(lines) == len(text.splitlines()) - 1
    (run / "config.yaml").write_text("\n".join(lines))
    more = {"max_steps": 2}
    other = vqgan_config(data, run, train=more, model={"codebook_update": "pass"})
    with pytest.raises(ConfigError, match="model.codebook_update: step -> pass"):
        train_vqgan(other, resume=run)
    assert train_vqgan(vqgan_config(data, run, train=more), resume=run).steps == 2


def test_a_run_that_started_from_weights_goes_on_exactly(
    data: Path, gan_run: Path, gpt_run: Path, tokens: Path, tmp_path: Path
) -> None:
    both = GAN | {"image_gan_weight": 1, "video_gan_weight": 1}

    def vqgan(name: str, steps: int) -> VQGANTrainConfig:
        settings = {"loss": both, "train": {"max_steps": steps}}
        return open_vqgan(data, gan_run, tmp_path / f"vqgan-{name}", **settings)

    def gpt(name: str, steps: int) -> GPTTrainConfig:
        return open_gpt(tokens, gpt_run, tmp_path / f"gpt-{name}", train={"max_steps": steps})

    for config, train in ((vqgan, train_vqgan), (gpt, train_gpt)):
        whole = train(config("whole", 4)).run
        parts = train(config("parts", 2)).run
        settled = resolve(type(config("x", 1)), [read_layer(parts / "config.yaml")])
        longer = settled.model_copy(
            update={"train": settled.train.model_copy(update={"max_steps": 4})}
        )
        assert train(longer, resume=parts).steps == 4
        assert same(last(parts), last(whole))
        assert (parts / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
        assert dump(longer) == (parts / "config.yaml").read_text()
        with pytest.raises(ConfigError, match=r"train.init: .* -> other"):
            elsewhere = longer.train.model_copy(update={"init": Path("other")})
            train(longer.model_copy(update={"train": elsewhere}), resume=parts)


def test_a_gpt_starts_with_weights_architecture_and_vqgan_of_the_checkpoint(
    data: Path, tokens: Path, gpt_run: Path, vqgan_run: Path, tmp_path: Path, first_state: Any
) -> None:
    held = state(find_checkpoint(gpt_run))
    for number, material in enumerate((data, tokens)):
        config = open_gpt(material, gpt_run, tmp_path / str(number))
        assert same(first_state(lambda config=config: train_gpt(config)), held)
        recorded = resolve(GPTTrainConfig, [read_layer(tmp_path / str(number) / "config.yaml")])
        model = recorded.model
        assert (model.layers, model.heads, model.width, model.block_size) == (1, 2, 8, 8)
        assert (model.condition, recorded.train.init) == ("label", gpt_run)
    given = open_gpt(data, gpt_run, tmp_path / "given", vqgan=vqgan_run, model={"dropout": 0.2})
    found = train_gpt(given).run
    assert read_gpt(found).model.config.dropout == 0.2
    assert read_gpt(found).vqgan.model.fingerprint() == read_vqgan(vqgan_run).model.fingerprint()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"layers": 3}}, ["--layers 3, not 1"]),
        ({"model": {"width": 16, "heads": 4}}, ["--heads 4, not 2", "--width 16, not 8"]),
        ({"model": {"block_size": 9}}, ["--block-size 9, not 8"]),
        ({"model": {"condition": "none"}}, ["--condition none, not label"]),
        ({"model": {"infill": True}}, ["--infill True, not False"]),
        ({"model": {"n_unmasked": 4}}, ["--infill True, not False"]),
        (
            {"model": {"latent_stride": 2}},
            ["--latent-stride 2, not 1"],
        ),
        ({"data": {"resolution": 16}}, ["4 x 4", "2 x 2"]),
        ({"data": {"sequence_length": 8}}, ["block size 8", "= 16"]),
    ],
)
def test_another_gpt_is_refused_with_both_sides(
    data: Path, gpt_run: Path, tmp_path: Path, changes: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_gpt(open_gpt(data, gpt_run, tmp_path / "run", **changes))
    assert all(part in caught.value.message for part in says)
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_gpt_is_not_started_on_codes_of_another_vqgan(
    data: Path, gpt_run: Path, vqgan_run: Path, other_vqgan_run: Path, tmp_path: Path
) -> None:
    foreign = encode(encode_config(data, tmp_path / "foreign", other_vqgan_run)).folder
    for material, vqgan, kind in (
        (data, other_vqgan_run, CheckpointError),
        (foreign, None, DataError),
    ):
        with pytest.raises(kind) as caught:
            train_gpt(open_gpt(material, gpt_run, tmp_path / "run", vqgan=vqgan))
        for run in (vqgan_run, other_vqgan_run):
            assert read_vqgan(run).model.fingerprint() in caught.value.message
        assert caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_gpt_knows_its_classes_by_name(data: Path, gpt_run: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "data"
    shutil.copytree(data, renamed)
    for split in ("train", "test"):
        (renamed / split / "circle").rename(renamed / split / "disc")
    with pytest.raises(ConfigError) as caught:
        train_gpt(open_gpt(renamed, gpt_run, tmp_path / "run"))
    assert "disc, square" in caught.value.message
    assert "circle, square" in caught.value.message


def test_a_published_gpt_starts_a_run_that_goes_on(
    data: Path, gpt_run: Path, gan_run: Path, tmp_path: Path, first_state: Any
) -> None:
    own = train_gpt(gpt_config(data, tmp_path / "own", gan_run, model={"condition": "label"})).run
    file = published_gpt(own, gan_run, tmp_path / "published.ckpt", 2)
    config = open_gpt(data, file, tmp_path / "run", vqgan=gan_run)
    found = first_state(lambda: train_gpt(config))
    held = state(find_checkpoint(own))
    assert torch.equal(found["gpt.blocks.0.attn.qkv.weight"], held["gpt.blocks.0.attn.qkv.weight"])
    # Ids as published: two classes, none for no class.
    assert torch.equal(found["gpt.tok_emb.weight"][:2], held["gpt.tok_emb.weight"][:2])
    assert torch.equal(found["gpt.tok_emb.weight"][2:], held["gpt.tok_emb.weight"][3:])
    shutil.rmtree(tmp_path / "run")
    run = train_gpt(config).run
    trained = read_gpt(run)
    assert (trained.model.config.condition.ids, trained.classes) == (2, ("circle", "square"))
    settled = resolve(GPTTrainConfig, [read_layer(run / "config.yaml")])
    more = settled.train.model_copy(update={"max_steps": 4})
    assert train_gpt(settled.model_copy(update={"train": more}), resume=run).steps == 4


def test_a_vqgan_of_sound_starts_none_of_videos(data: Path) -> None:
    sound = VQGAN(VQGANConfig(image_channels=1, hidden_channels=2))
    config = open_vqgan(data, Path("sound.ckpt"), Path("y"))
    with pytest.raises(ConfigError, match="sound.ckpt is a VQGAN of 1 channels"):
        settle_vqgan(config, Path("sound.ckpt"), TrainedVQGAN(sound, ClipConfig(), 0.0, 1))


def test_what_holds_no_gpt_starts_none(data: Path, vqgan_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a vqgan, expected a gpt"):
        train_gpt(open_gpt(data, vqgan_run, tmp_path / "run"))
    with pytest.raises(CheckpointError, match="does not exist"):
        train_vqgan(open_vqgan(data, tmp_path / "none", tmp_path / "run"))
    assert not (tmp_path / "run").exists()
