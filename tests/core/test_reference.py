"""Comparison with numbers that the published code computed.

Runs where TATS_REFERENCE names the folder of the reference files.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tatscli.core.models.codebook import Codebook
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.gpt import GPT, KVCache, condition_ids
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.original import original_gpt, original_vqgan, read_original
from tatscli.errors import CheckpointError

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
    model = VQGAN(found.config)
    model.load_state_dict(found.state)
    return model.eval()


def gpt_of(name):
    found = original_gpt(read_original(FOLDER / f"{name}.ckpt"))
    model = GPT(found.config)
    model.load_state_dict(found.state)
    return model.eval(), vqgan_of(found.vqgan)


def greedy(gpt, start, count):
    cache = KVCache(gpt.config, len(start), start.device, torch.float32)
    ids, chosen = start, []
    with torch.no_grad():
        for _ in range(count):
            ids = gpt.step(ids, cache).argmax(-1, keepdim=True)
            chosen.append(ids)
    return torch.cat(chosen, 1)


@pytest.mark.parametrize("kind", ["batchnorm", "groupnorm", "uneven", "stft"])
def test_vqgan(kind):
    numbers = recorded(f"vqgan_{kind}")
    model = vqgan_of(original_vqgan(read_original(FOLDER / f"vqgan_{kind}.ckpt")))
    with torch.no_grad():
        assert_near(model.latents(numbers["video"]), numbers["pre_quantization"])
    assert torch.equal(model.encode(numbers["video"]), numbers["codes"])
    assert torch.equal(model.encode(numbers["video_long"]), numbers["codes_long"])
    assert_near(model.decode(numbers["codes"]), numbers["reconstruction"])


@pytest.mark.parametrize("kind", ["batchnorm", "groupnorm", "uneven", "stft"])
@pytest.mark.parametrize(("name", "dims"), [("image", 2), ("video", 3)])
def test_discriminators(kind, name, dims):
    numbers = recorded(f"vqgan_{kind}")
    found = original_vqgan(read_original(FOLDER / f"vqgan_{kind}.ckpt"))
    settings = found.config
    model = PatchDiscriminator(
        dims, settings.image_channels, settings.disc_channels, settings.disc_layers
    )
    model.load_state_dict(getattr(found, f"{name}_discriminator"))
    model.train()
    pick = (lambda video: video[:, :, 1]) if dims == 2 else (lambda video: video)
    with torch.no_grad():
        real = model(pick(numbers["video"]))
        fake = model(pick(numbers["reconstruction"]))
    assert_near(real.logits, numbers[f"{name}_logits_real"])
    assert_near(fake.logits, numbers[f"{name}_logits_fake"])
    means = torch.stack([feature.mean() for feature in real.features])
    assert_near(means, numbers[f"{name}_feat_means"])


def test_codebook_updates():
    numbers = recorded("codebook_ema")
    start = numbers["embeddings0"]
    codebook = Codebook(*start.shape)
    codebook.load_state_dict({"embeddings": start, "N": torch.ones(len(start)), "z_avg": start})
    codebook.train()
    for i in range(3):
        quantized = codebook(numbers[f"z{i}"])
        codebook.update()
        assert torch.equal(quantized.codes, numbers[f"codes{i}"])
        assert_near(quantized.commitment / 4, numbers[f"commitment{i}"])
        assert_near(quantized.perplexity, numbers[f"perplexity{i}"])
        for name, value in codebook.state_dict().items():
            assert_near(value, numbers[f"{name}{i + 1}"])


@pytest.mark.parametrize("name", ["gpt_unconditional", "gpt_label"])
def test_gpt_logits_and_loss(name):
    numbers = recorded(name)
    gpt, vqgan = gpt_of(name)
    condition = condition_ids(gpt.config.condition, 2, numbers.get("labels"))
    tokens = vqgan.encode(numbers["video"]).flatten(1)
    with torch.no_grad():
        assert_near(gpt(condition, numbers["tokens"]), numbers["logits"])
        logits = gpt(condition, tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten() + gpt.config.condition.ids)
    assert_near(loss, numbers["loss"])
    if "video_tokens" in numbers:
        assert torch.equal(tokens, numbers["video_tokens"])


def test_gpt_greedy_samples():
    numbers = recorded("gpt_unconditional")
    gpt, _ = gpt_of("gpt_unconditional")
    start = condition_ids(gpt.config.condition, 2, None)
    short = greedy(gpt, start, 256)
    assert torch.equal(short, numbers["greedy_short"].flatten(1))
    for frames in (1, 3):
        codes = short[:, : frames * 64]
        while codes.shape[1] < 7 * 64:
            window = torch.cat([start, codes[:, -frames * 64 :]], 1)
            codes = torch.cat([codes, greedy(gpt, window, 64)], 1)
        assert torch.equal(codes, numbers[f"greedy_long_context{frames}"].flatten(1))


@pytest.mark.parametrize("name", ["gpt_stft", "gpt_interpolation"])
def test_kinds_not_read_yet(name):
    with pytest.raises(CheckpointError, match="does not read this published GPT yet"):
        original_gpt(read_original(FOLDER / f"{name}.ckpt"))
