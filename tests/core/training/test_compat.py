"""The published numerics of VQGAN training, and starting from weights that exist."""

from typing import Any

import pytest
import torch
from tiny_runs import Train, vqgan_module

from tatscli.core.checkpoint import read_vqgan
from tatscli.core.models.codebook import Codebook

GAN = {"image_gan_weight": 1, "video_gan_weight": 1, "disc_ramp": 0, "disc_warmup": 0}
PASS = {"codebook_update": "pass"}


class Passes:
    """What went through the autoencoder in training, pass by pass.

    Attributes:
        latents: Encoder outputs, (n, D).
        clips: What was encoded.
        weights: A weight of the encoder at the time.
        first: The codebook as it was before the first.
    """

    def __init__(self, module: Any) -> None:
        module.vqgan.codebook.N.fill_(1)
        self.first = {k: v.clone() for k, v in module.vqgan.codebook.state_dict().items()}
        self.latents: list[torch.Tensor] = []
        self.clips: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []
        module.vqgan.encoder.register_forward_pre_hook(self._encoded)
        module.vqgan.codebook.register_forward_pre_hook(self._quantised)

    def _encoded(self, encoder: Any, inputs: Any) -> None:
        if encoder.training:
            self.clips.append(inputs[0].clone())
            self.weights.append(encoder.conv_first.conv.weight.detach().clone())

    def _quantised(self, codebook: Codebook, inputs: Any) -> None:
        if codebook.training:
            self.latents.append(inputs[0].detach().permute(0, 2, 3, 4, 1).reshape(-1, 4))


def published_codebook(passes: Passes) -> dict[str, torch.Tensor]:
    """The codebook after all passes by the published rule."""
    codes, n, z = (passes.first[name] for name in ("embeddings", "N", "z_avg"))
    for latents in passes.latents:
        hits = torch.nn.functional.one_hot(torch.cdist(latents, codes).argmin(1), len(n)).float()
        n = 0.99 * n + 0.01 * hits.sum(0)
        z = 0.99 * z + 0.01 * hits.t() @ latents
        codes = z / ((n + 1e-7) / (n.sum() + len(n) * 1e-7) * n.sum())[:, None]
    return {"embeddings": codes, "N": n, "z_avg": z}


@pytest.mark.parametrize("disc_start", [0, 100])
def test_the_published_codebook_moves_twice_a_step_and_part(train: Train, disc_start: int) -> None:
    seen: list[Passes] = []
    run = train("vqgan", model=PASS, loss=GAN | {"disc_start": disc_start},
                train={"accumulate": 2, "max_steps": 1, "val_check_interval": "1"},
                prepare=lambda module: seen.append(Passes(module)))  # fmt: skip
    [passes] = seen
    assert len(passes.latents) == 4
    for name, value in published_codebook(passes).items():
        torch.testing.assert_close(run.module.vqgan.codebook.state_dict()[name], value)
    # Each part goes through twice before the next one; only the last time after the step.
    first, again, second, last = passes.clips
    assert torch.equal(first, again) and torch.equal(second, last)
    assert not torch.equal(first, second)
    assert all(torch.equal(weight, passes.weights[0]) for weight in passes.weights[:3])
    assert not torch.equal(passes.weights[3], passes.weights[0])
    norm = run.module.vqgan.encoder.final_block[0]
    assert norm.num_batches_tracked == 4


def test_without_discriminators_there_is_no_second_pass(train: Train) -> None:
    seen: list[Passes] = []
    run = train("vqgan", model=PASS, train={"accumulate": 2, "max_steps": 1},
                prepare=lambda module: seen.append(Passes(module)))  # fmt: skip
    assert len(seen[0].latents) == 2
    for name, value in published_codebook(seen[0]).items():
        torch.testing.assert_close(run.module.vqgan.codebook.state_dict()[name], value)


def test_our_discriminators_have_no_pass_of_their_own(train: Train) -> None:
    seen: list[Passes] = []
    run = train("vqgan", loss=GAN | {"disc_start": 0}, train={"accumulate": 2, "max_steps": 1},
                prepare=lambda module: seen.append(Passes(module)))  # fmt: skip
    assert len(seen[0].latents) == run.module.vqgan.encoder.final_block[0].num_batches_tracked == 2


def test_the_discriminators_judge_what_the_second_pass_made(train: Train) -> None:
    made: list[torch.Tensor] = []
    judged: list[torch.Tensor] = []

    def prepare(module: Any) -> None:
        module.vqgan.decoder.register_forward_hook(lambda *call: made.append(call[2].detach()))
        module.video_discriminator.register_forward_pre_hook(
            lambda _, inputs: judged.append(inputs[0].detach())
        )

    train("vqgan", model=PASS, loss=GAN | {"disc_start": 0}, prepare=prepare,
          train={"max_steps": 1})  # fmt: skip
    fakes = [video for video in judged if any(torch.equal(video, m) for m in made[:2])]
    assert torch.equal(fakes[0], made[0])
    assert torch.equal(fakes[-1], made[1])
    assert not torch.equal(made[0], made[1])


def test_published_discriminators_are_untrained_and_at_full_weight_when_they_start(
    train: Train,
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    logits: list[float] = []

    def prepare(module: Any) -> None:
        def judged(judge: Any, _: Any, found: Any) -> None:
            if module.global_step == 2 and not logits:
                logits.append(found.logits.mean().item())

        module.image_discriminator.register_forward_hook(judged)
        watch(module, 0)

    def watch(module: Any, step: int) -> None:
        judge = module.image_discriminator.state_dict()
        states.append({key: value.clone() for key, value in judge.items()})

    run = train("vqgan", loss=GAN | {"disc_start": 2}, prepare=prepare, watch=watch,
                train={"max_steps": 3})  # fmt: skip
    assert all(torch.equal(states[2][key], value) for key, value in states[0].items())
    assert run.steps("train/gan_image") == run.steps("train/disc_image") == [2]
    assert run.values("train/gan_image") == pytest.approx([-logits[0]], rel=1e-5)
    assert run.values("train/gan_weight") == [0, 0, 1]
    assert not torch.equal(states[3]["layers.0.0.weight"], states[2]["layers.0.0.weight"])


def test_a_run_from_weights_has_codebook_and_discriminators_bit_by_bit(train: Train) -> None:
    settings = {"model": {}, "loss": GAN | {"disc_start": 0}, "optim": {}, "train": {"seed": 5}}
    source = train("vqgan", "source", **settings)
    found = read_vqgan(source.folder / "checkpoints" / "last.ckpt")
    module = vqgan_module(settings | {"workers": 0, "train": {"seed": 6}})
    expected = source.module.state_dict()
    assert not torch.equal(module.state_dict()["vqgan.codebook.N"], expected["vqgan.codebook.N"])
    assert module.start_from(found) == []
    state = module.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    # Nor is the codebook drawn anew from the first batch, whose latents are elsewhere.
    module.train().vqgan.codebook(100 + torch.randn(2, 4, 2, 2, 2))
    for name in ("embeddings", "N", "z_avg"):
        key = f"vqgan.codebook.{name}"
        assert torch.equal(module.state_dict()[key], expected[key])


def test_discriminators_that_a_checkpoint_lacks_are_named(train: Train) -> None:
    only_video = {"video_gan_weight": 1, "disc_start": 0}
    source = train("vqgan", "source", loss=only_video, train={"max_steps": 1})
    found = read_vqgan(source.folder)
    both = {"model": {}, "optim": {}, "train": {}, "workers": 0, "loss": GAN}
    module = vqgan_module(both)
    before = {key: value.clone() for key, value in module.image_discriminator.state_dict().items()}
    assert module.start_from(found) == ["image discriminator"]
    state = module.image_discriminator.state_dict()
    assert all(torch.equal(state[key], value) for key, value in before.items())
    weight = source.module.video_discriminator.layers[0][0].weight
    assert torch.equal(module.video_discriminator.layers[0][0].weight, weight)
    assert vqgan_module(both | {"loss": {}}).start_from(found) == []


def test_a_run_with_published_numerics_goes_on_exactly(train: Train) -> None:
    settings = {
        "model": PASS | {"random_restart": True, "restart_statistics": False},
        "loss": GAN | {"disc_start": 2},
        "optim": {"lr_schedule": "constant"},
    }
    whole = train("vqgan", "whole", **settings)
    train("vqgan", "parts", train={"max_steps": 4}, **settings)
    parts = train("vqgan", "parts", resume=True, **settings)
    found, expected = parts.last["state_dict"], whole.last["state_dict"]
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert parts.rows == whole.rows
