"""Export to the published layout: nothing is lost, and the layout is the published one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.config.data import ClipConfig
from tatscli.config.gpt import ConditionLayout, ConditionPart, GPTConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import (
    TrainedGPT,
    TrainedVQGAN,
    read_gpt,
    read_vqgan,
    save_original,
)
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.gpt import GPT
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.original import is_original, original_gpt, original_vqgan, read_original
from tatscli.errors import CheckpointError

CLIP = ClipConfig(resolution=16, sequence_length=16, frame_rate=6, sample_every_n_frames=2)
UNCONDITIONAL = ConditionLayout.unconditional()
LABELS = ConditionLayout.labels(2)
SOUND = ConditionLayout(parts=(ConditionPart(kind="sound", tokens=256, ids=6, offset=0),))


def vqgan(seed: int = 0, **settings: Any) -> TrainedVQGAN:
    torch.manual_seed(seed)
    small = {
        "embedding_dim": 3, "codes": 5, "hidden_channels": 2, "downsample": (2, 4, 4),
        "disc_channels": 4, "disc_layers": 1,
    }  # fmt: skip
    config = VQGANConfig.model_validate(small | settings)
    judges: dict[str, Tensor] = {}
    shape = (config.image_channels, config.disc_channels, config.disc_layers)
    for name, judge in (
        ("image_discriminator", PatchDiscriminator(2, *shape)),
        ("video_discriminator", PatchDiscriminator(3, *shape)),
    ):
        judges |= {f"{name}.{key}": value for key, value in judge.state_dict().items()}
    # Sound as the published code shows it; of videos, both ranges are one.
    published = 1.0 if config.image_channels == 1 else 0.5
    return TrainedVQGAN(VQGAN(config).eval(), CLIP, 3.0, 40, judges, published)


def gpt(condition: ConditionLayout, block_size: int = 64, **settings: Any) -> TrainedGPT:
    torch.manual_seed(2)
    small = {"layers": 2, "heads": 2, "width": 4, "codes": 5, "grid": (4, 4, 4)}
    config = GPTConfig.model_validate(
        small | {"condition": condition, "block_size": block_size} | settings
    )
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    sound = vqgan(1, image_channels=1, codes=6) if condition.part("sound") else None
    classes = ("cat", "dog") if condition.part("label") else ()
    return TrainedGPT(model, vqgan(), classes, 70, sound)


def assert_equal_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key


def assert_equal_vqgans(found: TrainedVQGAN, expected: TrainedVQGAN) -> None:
    assert_equal_states(found.model.state_dict(), expected.model.state_dict())
    assert_equal_states(dict(found.judges), dict(expected.judges))
    assert found.model.config == expected.model.config
    assert (found.clip, found.rate, found.step) == (expected.clip, expected.rate, expected.step)


SETTINGS: list[dict[str, Any]] = [
    {"codebook_decay": 0.9, "random_restart": True, "restart_threshold": 0.3},
    {"norm_type": "group", "group_norm_over_time": True, "hidden_channels": 16},
    {"padding_type": "constant", "downsample": (1, 4, 2)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_vqgan_comes_back_without_loss(tmp_path: Path, settings: dict[str, Any]) -> None:
    saved, file = vqgan(**settings), tmp_path / "v.ckpt"
    save_original(saved, file)
    assert is_original(read_original(file))
    assert_equal_vqgans(read_vqgan(file), saved)


GPTS: dict[str, tuple[ConditionLayout, dict[str, Any]]] = {
    "unconditional": (UNCONDITIONAL, {"dropout": 0.1}),
    "label": (LABELS, {"block_size": 65}),
    "key frames": (LABELS, {"latent_stride": 2}),
    "infill": (UNCONDITIONAL, {"infill": True}),
    "sound": (SOUND, {"block_size": 256 + 64}),
}


@pytest.mark.parametrize("kind", GPTS)
def test_a_gpt_comes_back_without_loss(tmp_path: Path, kind: str) -> None:
    condition, settings = GPTS[kind]
    saved, file = gpt(condition, **settings), tmp_path / "g.ckpt"
    save_original(saved, file)
    found = read_gpt(file)
    assert_equal_states(found.model.state_dict(), saved.model.state_dict())
    assert found.model.config == saved.model.config
    assert (found.classes, found.step) == (saved.classes, 70)
    # A GPT file counts the steps of the GPT alone.
    assert_equal_vqgans(found.vqgan, replace(saved.vqgan, step=70))
    assert (found.sound is None) == (saved.sound is None)
    if found.sound and saved.sound:
        assert_equal_vqgans(found.sound, replace(saved.sound, step=70))


def test_the_layout_alone_says_what_the_published_code_computes_with(tmp_path: Path) -> None:
    saved, file = vqgan(padding_type="constant", downsample=(1, 4, 2)), tmp_path / "v.ckpt"
    save_original(saved, file)
    checkpoint = read_original(file)
    del checkpoint["tats"]
    found = original_vqgan(checkpoint)
    assert found.facts.config == saved.model.config
    assert (found.facts.clip.frames, found.facts.clip.resolution) == (8, 16)
    assert_equal_states(found.state, saved.model.state_dict())


@pytest.mark.parametrize(
    ("kind", "frames"), [("unconditional", 8), ("key frames", 16), ("infill", 8), ("sound", 8)]
)
def test_the_layout_alone_says_what_a_gpt_is(tmp_path: Path, kind: str, frames: int) -> None:
    condition, settings = GPTS[kind]
    saved, file = gpt(condition, **settings | {"dropout": 0.0}), tmp_path / "g.ckpt"
    clip = CLIP.model_copy(update={"sequence_length": 2 * frames})
    save_original(replace(saved, vqgan=replace(saved.vqgan, clip=clip)), file)
    checkpoint = read_original(file)
    del checkpoint["tats"]
    found = original_gpt(checkpoint)
    expected = saved.model.config
    if kind == "key frames":  # the null id is one class more
        (part,) = expected.condition.parts
        labels = ConditionLayout(parts=(part.model_copy(update={"null_id": -1}),))
        expected = expected.model_copy(update={"condition": labels})
        assert checkpoint["hyper_parameters"]["args"].class_cond_dim == 3
    assert found.facts.config == expected
    assert found.facts.vqgan.config == saved.vqgan.model.config
    assert_equal_states(found.state, saved.model.state_dict())


def test_each_block_keeps_a_causal_mask_and_query_key_and_value_apart(tmp_path: Path) -> None:
    saved = gpt(LABELS, 65)
    save_original(saved, tmp_path / "g.ckpt")
    state = read_original(tmp_path / "g.ckpt")["state_dict"]
    for block in ("transformer.blocks.0.attn", "transformer.blocks.1.attn"):
        assert torch.equal(state[f"{block}.mask"], torch.ones(1, 1, 65, 65).tril())
    parts = [state[f"transformer.blocks.1.attn.{n}.bias"] for n in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts), saved.model.blocks[1].attn.qkv.bias)
    stored = state["first_stage_model.image_discriminator.model0.0.weight"]
    assert torch.equal(stored, saved.vqgan.judges["image_discriminator.layers.0.0.weight"])


def test_the_mask_of_infilling_is_the_published_one(tmp_path: Path) -> None:
    save_original(gpt(UNCONDITIONAL, infill=True), tmp_path / "g.ckpt")
    state = read_original(tmp_path / "g.ckpt")["state_dict"]
    # One start token and 16 of the first latent frame; 15 inputs of the last: its own is no input.
    row, column = torch.arange(64)[:, None], torch.arange(64)
    ends = (column < 17) | (column >= 49)
    middle = (column <= row) & (row < 49)
    assert torch.equal(state["transformer.blocks.0.attn.mask"][0, 0].bool(), ends | middle)
    assert state["transformer.blocks.0.attn.mask"].dtype == torch.float32


def test_discriminators_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    saved, file = replace(vqgan(), judges={}), tmp_path / "v.ckpt"
    save_original(saved, file)
    assert not any("discriminator" in key for key in read_original(file)["state_dict"])
    assert_equal_vqgans(read_vqgan(file), saved)


def test_a_group_norm_of_single_frames_is_refused(tmp_path: Path) -> None:
    saved = vqgan(norm_type="group", hidden_channels=16)
    for trained in (saved, replace(gpt(UNCONDITIONAL), vqgan=saved)):
        with pytest.raises(CheckpointError, match="normalises each frame by itself"):
            save_original(trained, tmp_path / "v.ckpt")
    assert not list(tmp_path.iterdir())


def test_several_conditions_are_refused(tmp_path: Path) -> None:
    sound = ConditionPart(kind="sound", tokens=256, ids=6, offset=3)
    both = ConditionLayout(parts=(*LABELS.parts, sound))
    with pytest.raises(CheckpointError, match="one condition, this one has label and sound"):
        save_original(gpt(both, 400), tmp_path / "g.ckpt")


def test_infilling_with_more_positions_than_the_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this one has 1, 65 and 16"):
        save_original(gpt(UNCONDITIONAL, 65, infill=True), tmp_path / "g.ckpt")


def test_what_is_kept_beside_the_layout_is_checked_like_the_rest(tmp_path: Path) -> None:
    save_original(vqgan(), tmp_path / "v.ckpt")
    checkpoint = torch.load(tmp_path / "v.ckpt", weights_only=False)
    for wrong in ({"config": {}}, 3, {1: 2}):
        torch.save(checkpoint | {"tats": wrong}, tmp_path / "w.ckpt")
        with pytest.raises(CheckpointError, match=r"w\.ckpt: the settings .* do not hold"):
            read_vqgan(tmp_path / "w.ckpt")


def test_another_vqgan_for_a_published_gpt_is_suspected(tmp_path: Path) -> None:
    save_original(gpt(UNCONDITIONAL), tmp_path / "g.ckpt")
    checkpoint = torch.load(tmp_path / "g.ckpt", weights_only=False)
    del checkpoint["tats"]
    torch.save(checkpoint, tmp_path / "g.ckpt")
    save_original(vqgan(downsample=(4, 2, 2)), tmp_path / "v.ckpt")
    with pytest.raises(CheckpointError, match=r"g\.ckpt: .* do not hold: block size") as caught:
        read_gpt(tmp_path / "g.ckpt", tmp_path / "v.ckpt")
    assert "v.ckpt the VQGAN it was trained with?" in caught.value.hint


def test_sound_and_text_that_the_published_code_would_take_for_something_else_are_refused(
    tmp_path: Path,
) -> None:
    def refused(trained: TrainedVQGAN | TrainedGPT) -> str:
        with pytest.raises(CheckpointError) as caught:
            save_original(trained, tmp_path / "f.ckpt")
        assert not (tmp_path / "f.ckpt").exists()
        return f"{caught.value.message} {caught.value.hint}"

    ours = replace(vqgan(1, image_channels=1, codes=6), input_range=0.5)
    assert "patches of sound up to 0.5, the published code shows it up to 1" in refused(ours)
    with_null = ConditionLayout.in_order([ConditionPart.sound(256, 6)])
    assert "7 ids of sound, of which 6 stands for none" in refused(gpt(with_null, 319))
    text = ConditionLayout.in_order([ConditionPart.text(4, 300, 0)])
    assert "300 ids of text, the published code 49408" in refused(gpt(text, 67))


def test_a_gpt_that_reads_as_clip_does_is_in_the_published_layout(tmp_path: Path) -> None:
    layout = ConditionLayout.in_order([ConditionPart.text(4, 49408, 0)])
    trained = gpt(layout, 67)
    save_original(trained, tmp_path / "f.ckpt")
    args = torch.load(tmp_path / "f.ckpt", weights_only=False)["hyper_parameters"]["args"]
    assert (args.cond_stage_key, args.unconditional) == ("text", False)
    again = read_gpt(tmp_path / "f.ckpt")
    assert again.model.config == trained.model.config
