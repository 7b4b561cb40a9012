"""Comparison with numbers that the published code computed.

Runs where TATS_REFERENCE names the folder of the reference files.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tatscli.core.checkpoint import (
    TrainedGPT,
    read_gpt,
    read_trained,
    save_gpt,
    save_original,
    save_vqgan,
)
from tatscli.core.models.codebook import Codebook
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.gpt import condition_ids, infill_mask
from tatscli.core.models.inference import vqgan_for_inference
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.original import original_vqgan, part_of, read_original
from tatscli.core.training.losses import hinge, vanilla

FOLDER = Path(os.environ.get("TATS_REFERENCE", ""))
pytestmark = pytest.mark.skipif(
    "TATS_REFERENCE" not in os.environ, reason="TATS_REFERENCE does not name the reference files"
)


def recorded(name):
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0, check_dtype=False)


def vqgan_of(found):
    model = VQGAN(found.facts.config)
    model.load_state_dict(found.state)
    return model.eval()


@pytest.mark.parametrize("kind", ["batchnorm", "groupnorm", "uneven", "stft"])
def test_vqgan(kind):
    numbers = recorded(f"vqgan_{kind}")
    model = vqgan_of(original_vqgan(read_original(FOLDER / f"vqgan_{kind}.ckpt")))
    with torch.no_grad():
        assert_near(model.latents(numbers["video"]), numbers["pre_quantization"])
    for _ in ("as trained", "ready for use"):
        assert torch.equal(model.encode(numbers["video"]), numbers["codes"])
        assert torch.equal(model.encode(numbers["video_long"]), numbers["codes_long"])
        assert_near(model.decode(numbers["codes"]), numbers["reconstruction"])
        model = vqgan_for_inference(model, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["batchnorm", "groupnorm", "uneven", "stft"])
@pytest.mark.parametrize(("name", "dims"), [("image", 2), ("video", 3)])
def test_discriminators(kind, name, dims):
    numbers = recorded(f"vqgan_{kind}")
    found = original_vqgan(read_original(FOLDER / f"vqgan_{kind}.ckpt"))
    settings = found.facts.config
    model = PatchDiscriminator(
        dims, settings.image_channels, settings.disc_channels, settings.disc_layers
    )
    model.load_state_dict(part_of(found.judges, f"{name}_discriminator."))
    model.train()
    pick = (lambda video: video[:, :, 1]) if dims == 2 else (lambda video: video)
    with torch.no_grad():
        real = model(pick(numbers["video"]))
        fake = model(pick(numbers["reconstruction"]))
    assert_near(real.logits, numbers[f"{name}_logits_real"])
    assert_near(fake.logits, numbers[f"{name}_logits_fake"])
    means = torch.stack([feature.mean() for feature in real.features])
    assert_near(means, numbers[f"{name}_feat_means"])
    assert_near(hinge(real.logits, fake.logits), numbers[f"hinge_{name}"])
    if name == "video":
        assert_near(vanilla(real.logits, fake.logits), numbers["vanilla_video"])


@pytest.mark.parametrize("each_pass", [False, True])
def test_codebook_updates(each_pass):
    numbers = recorded("codebook_ema")
    start = numbers["embeddings0"]
    codebook = Codebook(*start.shape, each_pass=each_pass)
    codebook.load_state_dict({"embeddings": start, "N": torch.ones(len(start)), "z_avg": start})
    codebook.train()
    for i in range(3):
        quantized = codebook(numbers[f"z{i}"])
        if not each_pass:
            codebook.update()
        assert torch.equal(quantized.codes, numbers[f"codes{i}"])
        assert_near(quantized.commitment / 4, numbers[f"commitment{i}"])
        assert_near(quantized.perplexity, numbers[f"perplexity{i}"])
        for name, value in codebook.state_dict().items():
            assert_near(value, numbers[f"{name}{i + 1}"])


@pytest.mark.parametrize("name", ["gpt_unconditional", "gpt_label"])
def test_gpt_logits_and_loss(name):
    numbers = recorded(name)
    trained = read_gpt(FOLDER / f"{name}.ckpt")
    gpt = trained.model
    condition = condition_ids(gpt.config.condition, 2, numbers.get("labels"))
    tokens = trained.vqgan.model.encode(numbers["video"]).flatten(1)
    with torch.no_grad():
        assert_near(gpt(condition, numbers["tokens"]), numbers["logits"])
        logits = gpt(condition, tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten() + gpt.config.condition.ids)
    assert_near(loss, numbers["loss"])
    if "video_tokens" in numbers:
        assert torch.equal(tokens, numbers["video_tokens"])


def test_gpt_of_sound():
    numbers = recorded("gpt_stft")
    trained = read_gpt(FOLDER / "gpt_stft.ckpt")
    gpt = trained.model
    sound = trained.sound.model.encode(numbers["stft"]).flatten(1)
    assert torch.equal(sound, numbers["stft_tokens"])
    assert gpt.config.condition.ids == numbers["cond_vocab"]
    condition = condition_ids(gpt.config.condition, 2, sound=sound)
    tokens = trained.vqgan.model.encode(numbers["video"]).flatten(1)
    with torch.no_grad():
        logits = gpt(condition, tokens)
    assert_near(logits, numbers["logits"])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten() + gpt.config.condition.ids)
    assert_near(loss, numbers["loss"])


def test_gpt_that_interpolates():
    numbers = recorded("gpt_interpolation")
    gpt = read_gpt(FOLDER / "gpt_interpolation.ckpt").model
    assert torch.equal(infill_mask(gpt.config), numbers["mask"].bool())
    condition = condition_ids(gpt.config.condition, 2)
    with torch.no_grad():
        assert_near(gpt(condition, numbers["tokens"]), numbers["logits"])


def parts(trained):
    """Settings, and state dicts, of a model and of those inside it."""
    if not isinstance(trained, TrainedGPT):
        facts = (trained.model.config, trained.clip, trained.rate, trained.step)
        return [facts], [trained.model.state_dict(), trained.judges]
    facts, states = (
        [(trained.model.config, trained.classes, trained.step)],
        [trained.model.state_dict()],
    )
    for inside in filter(None, (trained.vqgan, trained.sound)):
        more, its = parts(inside)
        facts, states = facts + more, states + its
    return facts, states


def assert_same_model(found, expected, judges=True):
    (facts, states), (facts_there, states_there) = parts(found), parts(expected)
    assert facts == facts_there
    for state, there in zip(states, states_there, strict=True):
        if state or judges:
            assert state.keys() == there.keys()
            assert all(torch.equal(tensor, there[key]) for key, tensor in state.items())


KINDS = [
    "vqgan_batchnorm", "vqgan_groupnorm", "vqgan_uneven", "vqgan_stft",
    "gpt_unconditional", "gpt_label", "gpt_stft", "gpt_interpolation",
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_lost_in_our_format(name, tmp_path):
    published = read_trained(FOLDER / f"{name}.ckpt")
    gpt = isinstance(published, TrainedGPT)
    (save_gpt if gpt else save_vqgan)(published, tmp_path / "ours.ckpt")
    # A GPT of ours holds its VQGANs without their discriminators.
    assert_same_model(read_trained(tmp_path / "ours.ckpt"), published, judges=not gpt)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_lost_in_the_published_layout(name, tmp_path):
    published = read_trained(FOLDER / f"{name}.ckpt")
    save_original(published, tmp_path / "again.ckpt")
    assert_same_model(read_trained(tmp_path / "again.ckpt"), published)
    before = read_original(FOLDER / f"{name}.ckpt")["state_dict"]
    after = read_original(tmp_path / "again.ckpt")["state_dict"]
    assert after.keys() == {key for key in before if "perceptual_model" not in key}
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
