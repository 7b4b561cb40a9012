import argparse
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.gpt import GPT
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.original import (
    is_original,
    original_gpt,
    original_vqgan,
    part_of,
    read_original,
)
from tatscli.errors import CheckpointError

VQGAN_ARGS = {
    "embedding_dim": 6,
    "n_codes": 10,
    "n_hiddens": 16,
    "downsample": [2, 4, 4],
    "image_channels": 3,
    "norm_type": "batch",
    "padding_type": "replicate",
    "no_random_restart": True,
    "restart_thres": 1.0,
    "disc_channels": 4,
    "disc_layers": 2,
    "sequence_length": 4,
    "resolution": 16,
    "sample_every_n_frames": 1,
    "lr": 3e-5,
}
GPT_ARGS = {
    "unconditional": True,
    "vocab_size": 16384,
    "block_size": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 8,
    "n_unmasked": 0,
    "sample_every_n_latent_frames": 0,
    "cond_stage_key": "label",
    "class_cond_dim": None,
    "vtokens": False,
    "sequence_length": 4,
    "resolution": 16,
    "sample_every_n_frames": 1,
}


def conv(name, out, into, sides, random):
    return {f"{name}.weight": random(out, into, *sides), f"{name}.bias": random(out)}


def norm(name, channels, norm_type, random):
    entries = {f"{name}.weight": random(channels), f"{name}.bias": random(channels)}
    if norm_type == "batch":
        entries[f"{name}.running_mean"] = random(channels)
        entries[f"{name}.running_var"] = random(channels).abs() + 0.5
        entries[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return entries


def residual(name, channels, norm_type, random):
    return {
        **norm(f"{name}.norm1", channels, norm_type, random),
        **conv(f"{name}.conv1.conv", channels, channels, (3, 3, 3), random),
        **norm(f"{name}.norm2", channels, norm_type, random),
        **conv(f"{name}.conv2.conv", channels, channels, (3, 3, 3), random),
    }


def vqgan_state(random, norm_type="batch", channels=3):
    """The published layout, for two stages and two discriminator layers, written out."""
    state = {
        **conv("encoder.conv_first.conv", 16, channels, (3, 3, 3), random),
        **conv("encoder.conv_blocks.0.down.conv", 32, 16, (4, 4, 4), random),
        **residual("encoder.conv_blocks.0.res", 32, norm_type, random),
        **conv("encoder.conv_blocks.1.down.conv", 64, 32, (4, 4, 4), random),
        **residual("encoder.conv_blocks.1.res", 64, norm_type, random),
        **norm("encoder.final_block.0", 64, norm_type, random),
        **norm("decoder.final_block.0", 64, norm_type, random),
        "decoder.conv_blocks.0.up.convt.weight": random(64, 64, 4, 4, 4),
        "decoder.conv_blocks.0.up.convt.bias": random(64),
        **residual("decoder.conv_blocks.0.res1", 64, norm_type, random),
        **residual("decoder.conv_blocks.0.res2", 64, norm_type, random),
        "decoder.conv_blocks.1.up.convt.weight": random(64, 32, 4, 4, 4),
        "decoder.conv_blocks.1.up.convt.bias": random(32),
        **residual("decoder.conv_blocks.1.res1", 32, norm_type, random),
        **residual("decoder.conv_blocks.1.res2", 32, norm_type, random),
        **conv("decoder.conv_last.conv", channels, 32, (3, 3, 3), random),
        **conv("pre_vq_conv.conv", 6, 64, (1, 1, 1), random),
        **conv("post_vq_conv.conv", 64, 6, (1, 1, 1), random),
        "codebook.embeddings": random(10, 6),
        "codebook.N": random(10).abs() + 1,
        "codebook.z_avg": random(10, 6),
        "perceptual_model.lin0.model.1.weight": random(1, 64, 1, 1),
    }
    for name, dims in (("image_discriminator", 2), ("video_discriminator", 3)):
        side = (4,) * dims
        state |= conv(f"{name}.model0.0", 4, channels, side, random)
        state |= conv(f"{name}.model1.0", 8, 4, side, random)
        state |= norm(f"{name}.model1.1", 8, "batch", random)
        state |= conv(f"{name}.model2.0", 16, 8, side, random)
        state |= norm(f"{name}.model2.1", 16, "batch", random)
        state |= conv(f"{name}.model3.0", 1, 16, side, random)
    return state


def gpt_state(random, vocabulary=10, positions=32, width=8):
    """The published layout of a GPT with its VQGAN."""
    state = {
        "transformer.pos_emb": random(1, positions, width),
        "transformer.tok_emb.weight": random(vocabulary, width),
        "transformer.ln_f.weight": random(width),
        "transformer.ln_f.bias": random(width),
        "transformer.head.weight": random(vocabulary, width),
    }
    for block in ("transformer.blocks.0", "transformer.blocks.1"):
        state[f"{block}.attn.mask"] = torch.ones(1, 1, positions, positions).tril()
        for name in ("ln1", "ln2"):
            state[f"{block}.{name}.weight"] = random(width)
            state[f"{block}.{name}.bias"] = random(width)
        for name in ("key", "query", "value", "proj"):
            state |= conv(f"{block}.attn.{name}", width, width, (), random)
        state |= conv(f"{block}.mlp.0", 4 * width, width, (), random)
        state |= conv(f"{block}.mlp.2", width, 4 * width, (), random)
    inside = vqgan_state(random)
    return state | {f"first_stage_model.{key}": value for key, value in inside.items()}


def normal():
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: 0.1 * torch.randn(*shape, generator=generator)


def published(state, args, **settings):
    return {
        "epoch": 3,
        "global_step": 1234,
        "pytorch-lightning_version": "1.5.4",
        "state_dict": OrderedDict(state),
        "callbacks": {},
        "hyper_parameters": {"args": argparse.Namespace(**args), **settings},
    }


def vqgan_checkpoint(norm_type="batch", **args):
    state = vqgan_state(normal(), norm_type)
    return published(state, VQGAN_ARGS | {"norm_type": norm_type} | args)


def gpt_checkpoint(vocabulary=10, positions=32, **args):
    state = gpt_state(normal(), vocabulary, positions)
    return published(state, GPT_ARGS | {"block_size": positions} | args)


def sound_checkpoint(positions, **args):
    """With a VQGAN of the sound: 4 frames of 64 x 16, downsampled like the video."""
    state = gpt_state(normal(), 20, positions)
    inside = vqgan_state(normal(), channels=1)
    state |= {f"cond_stage_model.{key}": value for key, value in inside.items()}
    settings = {"block_size": positions, "unconditional": False, "cond_stage_key": "stft"}
    return published(state, GPT_ARGS | settings | args)


@pytest.mark.parametrize("norm_type", ["batch", "group"])
def test_a_published_vqgan_fills_ours(norm_type):
    checkpoint = vqgan_checkpoint(norm_type)
    found = original_vqgan(checkpoint)
    config, clip = found.facts.config, found.facts.clip
    model = VQGAN(config)
    model.load_state_dict(found.state)
    stored = checkpoint["state_dict"]["decoder.conv_blocks.1.up.convt.weight"]
    assert torch.equal(model.decoder.conv_blocks[1].up.convt.weight, stored)
    for dims, name in ((2, "image_discriminator."), (3, "video_discriminator.")):
        PatchDiscriminator(dims, 3, 4, 2).load_state_dict(part_of(found.judges, name))
    stored = checkpoint["state_dict"]["video_discriminator.model2.0.weight"]
    assert torch.equal(found.judges["video_discriminator.layers.2.0.weight"], stored)
    assert found.step == 1234
    assert (clip.resolution, clip.frames) == (16, 4)
    assert config.downsample == (2, 4, 4)
    # The published group norm pools over time.
    assert config.group_norm_over_time == (norm_type == "group")


def test_settings_may_leave_out_the_padding():
    checkpoint = vqgan_checkpoint()
    del checkpoint["hyper_parameters"]["args"].padding_type
    assert original_vqgan(checkpoint).facts.config.padding_type == "replicate"


def test_a_published_gpt_fills_ours():
    checkpoint = gpt_checkpoint()
    found = original_gpt(checkpoint)
    config = found.facts.config
    model = GPT(config)
    model.load_state_dict(found.state)
    stored = checkpoint["state_dict"]
    parts = [
        stored[f"transformer.blocks.1.attn.{name}.weight"] for name in ("query", "key", "value")
    ]
    assert torch.equal(model.blocks[1].attn.qkv.weight, torch.cat(parts))
    assert torch.equal(model.pos_emb, stored["transformer.pos_emb"])
    assert (config.grid, config.latent_stride, config.infill) == ((2, 4, 4), 1, False)
    assert config.condition.tokens == 1
    assert found.sound is None
    assert found.step == 1234


def test_the_vqgan_inside_a_gpt_equals_the_same_file_alone():
    alone, inside = original_vqgan(vqgan_checkpoint()), original_gpt(gpt_checkpoint()).vqgan
    assert inside.facts == alone.facts
    assert inside.state.keys() == alone.state.keys()
    assert inside.judges.keys() == alone.judges.keys()
    assert original_vqgan(gpt_checkpoint()).facts == alone.facts


def test_labels_have_the_published_layout():
    found = original_gpt(gpt_checkpoint(14, unconditional=False, class_cond_dim=4))
    (part,) = found.facts.config.condition.parts
    assert (part.kind, part.tokens, part.ids, part.null_id) == ("label", 1, 4, -1)
    assert found.facts.config.vocabulary == 14
    assert found.facts.classes == ("0", "1", "2", "3")
    GPT(found.facts.config).load_state_dict(found.state)


@pytest.mark.parametrize("positions", [32 + 128, 32 + 128 - 1])
def test_sound_comes_with_its_vqgan_and_may_leave_out_the_last_position(positions):
    checkpoint = sound_checkpoint(positions)
    found = original_gpt(checkpoint)
    (part,) = found.facts.config.condition.parts
    assert (part.kind, part.tokens, part.ids, part.offset) == ("sound", 2 * 16 * 4, 10, 0)
    assert found.facts.config.grid == (2, 4, 4)
    assert found.facts.config.vocabulary == 20
    sound = found.facts.sound.config
    assert (sound.image_channels, sound.downsample, sound.codes) == (1, (2, 4, 4), 10)
    VQGAN(sound).load_state_dict(found.sound.state)
    stored = checkpoint["state_dict"]["cond_stage_model.image_discriminator.model0.0.weight"]
    assert torch.equal(found.sound.judges["image_discriminator.layers.0.0.weight"], stored)


def test_a_vqgan_that_does_not_fit_the_clips_is_an_error_with_both_numbers():
    odd = VQGANConfig(embedding_dim=6, codes=10, hidden_channels=16, downsample=(8, 4, 4))
    for checkpoint in (gpt_checkpoint(), sound_checkpoint(160)):
        with pytest.raises(CheckpointError, match="frames 4 cannot be downsampled by 8"):
            original_gpt(checkpoint, odd)


def test_a_gpt_of_sound_that_lacks_its_vqgan_names_the_tensor():
    checkpoint = gpt_checkpoint(unconditional=False, cond_stage_key="stft")
    with pytest.raises(CheckpointError, match=r"lacks the tensor cond_stage_model\.codebook"):
        original_gpt(checkpoint)


def test_unmasked_ends_make_an_infilling_gpt():
    # 6 frames are 3 latent frames of 16 tokens.
    found = original_gpt(gpt_checkpoint(positions=48, sequence_length=6, n_unmasked=16))
    config = found.facts.config
    assert (config.infill, config.grid, config.positions) == (True, (3, 4, 4), 48)


def test_unmasked_tokens_that_are_no_latent_frame_are_an_error_with_both_numbers():
    checkpoint = gpt_checkpoint(positions=48, sequence_length=6, n_unmasked=12)
    with pytest.raises(CheckpointError, match="given 12 tokens .* latent frame has 16"):
        original_gpt(checkpoint)


def test_an_infilling_gpt_with_a_position_too_many_had_another_mask():
    # The published mask counts the last frame from the last position there is.
    checkpoint = gpt_checkpoint(positions=49, sequence_length=6, n_unmasked=16)
    with pytest.raises(CheckpointError, match="this one has 1, 49 and 16"):
        original_gpt(checkpoint)


@pytest.mark.parametrize(("frames", "kept"), [(16, 3), (18, 3), (20, 4)])
def test_key_frames_are_every_nth_latent_frame_from_the_first(frames, kept):
    checkpoint = gpt_checkpoint(
        positions=kept * 16, sequence_length=frames, sample_every_n_latent_frames=3
    )
    config = original_gpt(checkpoint).facts.config
    assert (config.latent_stride, config.grid) == (3, (kept, 4, 4))


def test_an_open_downsampling_asks_for_the_vqgan_which_settles_it():
    # 64 positions for 32 tokens: the length of the sequence says nothing.
    checkpoint = gpt_checkpoint(positions=64)
    with pytest.raises(CheckpointError, match="does not say how its VQGAN downsamples") as caught:
        original_gpt(checkpoint)
    assert "--vqgan" in caught.value.hint
    given = original_vqgan(vqgan_checkpoint()).facts.config
    given = given.model_copy(update={"disc_channels": 64})
    assert original_gpt(checkpoint, given).facts.config.grid == (2, 4, 4)


def test_a_vqgan_of_another_width_does_not_settle_it():
    other = VQGANConfig(embedding_dim=8, codes=10, hidden_channels=16, downsample=(2, 4, 4))
    with pytest.raises(CheckpointError, match=r"codebook.embeddings has shape \(10, 6\)"):
        original_gpt(gpt_checkpoint(), other)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"cond_stage_key": "text", "unconditional": False}, "text, whose tokenizer"),
        ({"cond_stage_key": "depth", "unconditional": False}, "depth"),
        ({"vtokens": True}, "stored tokens"),
        ({"vtokens_pos": True}, "positions in space"),
    ],
)
def test_kinds_that_are_not_read_are_named(args, reason):
    with pytest.raises(CheckpointError, match=f"does not read this .*: .*{reason}"):
        original_gpt(gpt_checkpoint(**args))


def test_the_saved_setting_wins_over_the_argument():
    checkpoint = gpt_checkpoint()
    checkpoint["hyper_parameters"]["cond_stage_key"] = "text"
    with pytest.raises(CheckpointError, match="conditioned on text"):
        original_gpt(checkpoint)


def test_another_start_token_is_refused():
    checkpoint = gpt_checkpoint()
    checkpoint["hyper_parameters"]["sos_token"] = 3
    with pytest.raises(CheckpointError, match="start token"):
        original_gpt(checkpoint)


@pytest.mark.parametrize("name", ["image_discriminator", "video_discriminator"])
def test_discriminators_may_be_missing_as_a_whole_but_not_in_part(name):
    checkpoint = vqgan_checkpoint()
    state = checkpoint["state_dict"]
    others = original_vqgan(checkpoint).judges
    del state[f"{name}.model0.0.weight"]
    with pytest.raises(CheckpointError, match=rf"missing {name}\.model0\.0\.weight"):
        original_vqgan(checkpoint)
    for key in [key for key in state if key.startswith(name)]:
        del state[key]
    left = original_vqgan(checkpoint).judges
    assert left.keys() == {key for key in others if not key.startswith(name)}


def test_a_gpt_may_hold_a_vqgan_without_discriminators():
    checkpoint = gpt_checkpoint()
    state = checkpoint["state_dict"]
    for key in [key for key in state if "_discriminator" in key]:
        del state[key]
    assert original_gpt(checkpoint).vqgan.judges == {}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"block_size": "many"}, "block_size is 'many', expected a whole number"),
        ({"n_unmasked": 0.5}, "n_unmasked is 0.5"),
        ({"resolution": None}, "valid integer"),
        ({"n_layer": [2]}, "valid integer"),
    ],
)
def test_settings_of_another_type_are_reported(args, told):
    with pytest.raises(CheckpointError, match=told):
        original_gpt(gpt_checkpoint(**args))


def test_a_vqgan_is_no_gpt():
    with pytest.raises(CheckpointError, match="holds a VQGAN, expected a GPT"):
        original_gpt(vqgan_checkpoint())


def test_differing_keys_are_listed_in_both_directions():
    checkpoint = vqgan_checkpoint()
    state = checkpoint["state_dict"]
    expected = len(state) - 1  # without the perceptual model
    state["encoder.extra.weight"] = state.pop("encoder.conv_first.conv.bias")
    state["pre_vq_conv.conv.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        original_vqgan(checkpoint)
    message = caught.value.message
    assert f"expected {expected}, found {expected}, 3 differ" in message
    assert "missing encoder.conv_first.conv.bias" in message
    assert "unexpected encoder.extra.weight" in message
    assert "pre_vq_conv.conv.bias has shape (5,), expected (6,)" in message


def test_at_most_ten_differing_keys_are_shown():
    checkpoint = vqgan_checkpoint(n_hiddens=32)
    with pytest.raises(CheckpointError) as caught:
        original_vqgan(checkpoint)
    first, *keys = caught.value.message.splitlines()
    assert "94 differ" in first
    assert (len(keys), keys[-1].strip()) == (11, "... and 84 more")


def test_settings_that_do_not_hold_are_reported():
    for downsample, told in (([3, 4, 4], "powers of two"), (None, "valid tuple")):
        with pytest.raises(CheckpointError, match=told):
            original_vqgan(vqgan_checkpoint(downsample=downsample))
    checkpoint = vqgan_checkpoint()
    del checkpoint["hyper_parameters"]["args"].n_codes
    with pytest.raises(CheckpointError, match="lacks its setting n_codes"):
        original_vqgan(checkpoint)


def test_only_published_checkpoints_are_original():
    assert is_original(vqgan_checkpoint())
    assert is_original(gpt_checkpoint())
    assert not is_original({"state_dict": {}, "tats": {"kind": "vqgan"}})
    assert not is_original({"state_dict": {}, "hyper_parameters": {"lr": 1.0}})
    assert not is_original({"state_dict": {"a": 3}, "hyper_parameters": {"args": {}}})
    assert not is_original({"state_dict": {}, "hyper_parameters": {"args": 3}})


def test_a_file_is_read_with_its_namespace_and_numpy_numbers(tmp_path):
    checkpoint = vqgan_checkpoint() | {"callbacks": {"best": np.float64(0.25)}}
    torch.save(checkpoint, tmp_path / "published.ckpt")
    found = read_original(tmp_path / "published.ckpt")
    assert found["hyper_parameters"]["args"].n_codes == 10
    assert found["callbacks"]["best"] == 0.25
    assert original_vqgan(found).step == 1234


def _old_pickle(name):
    """A protocol 2 pickle of one object of a module that is not installed."""
    module, attribute = name.rsplit(".", 1)
    return f"c{module}\n{attribute}\n".encode()


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.utilities.argparse._gpus_arg_default",
        "numpy.core.multiarray.scalar",
    ],
)
def test_names_of_an_old_lightning_and_numpy_are_harmless(tmp_path, name):
    class Named:
        """Pickled as the bare name."""

    class Pickler(pickle._Pickler):
        def save(self, value, *rest):
            if isinstance(value, Named):
                self.write(_old_pickle(name))
            else:
                super().save(value, *rest)

    class Module:
        """What torch.save wants of a pickle module."""

        dump = staticmethod(pickle.dump)

    Module.Pickler = Pickler
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {}, "callbacks": Named()}, path, pickle_module=Module)
    assert list(read_original(path)) == ["state_dict", "callbacks"]


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, zipped):
    path, target = tmp_path / "hostile.ckpt", tmp_path / "ran"
    checkpoint = vqgan_checkpoint() | {"callbacks": Hostile(str(target))}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="hostile.ckpt is refused") as caught:
        read_original(path)
    assert not target.exists()
    if zipped:
        assert "mkdir" in caught.value.message


def test_damaged_files_are_named(tmp_path):
    whole, cut = tmp_path / "whole.ckpt", tmp_path / "cut.ckpt"
    torch.save(vqgan_checkpoint(), whole)
    cut.write_bytes(whole.read_bytes()[:5000])
    empty = tmp_path / "empty.ckpt"
    empty.write_bytes(b"")
    text = tmp_path / "text.ckpt"
    text.write_text("no checkpoint")
    short = tmp_path / "short.ckpt"
    short.write_text("text")  # of which each letter is an instruction of a pickle
    for path in (cut, empty, text, short):
        with pytest.raises(CheckpointError, match=path.name):
            read_original(path)
    for size in (whole.stat().st_size // 2, whole.stat().st_size - 1):
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(CheckpointError, match=r"cut\.ckpt is damaged or ") as caught:
            read_original(cut)
        assert "copy or download it again" in caught.value.hint


def test_a_damaged_list_of_contents_is_named(tmp_path):
    whole, damaged = tmp_path / "whole.ckpt", tmp_path / "damaged.ckpt"
    torch.save(vqgan_checkpoint(), whole)
    key = b"X\x0a\x00\x00\x00state_dict"
    assert whole.read_bytes().count(key) == 1
    damaged.write_bytes(whole.read_bytes().replace(key, b"\x01" + key[1:]))  # no such instruction
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt is refused: .* or damaged"):
        read_original(damaged)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read .*nothing.ckpt: No such file"):
        read_original(tmp_path / "nothing.ckpt")
