"""Figures that training is judged by: what they are, and that they leave it as it is."""

import functools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_resume import VQGAN, assert_equal
from tiny_runs import Run, Train, Videos

from tatscli.core.data.clips import Clip
from tatscli.core.training.vqgan import VQGANTraining

GAN = {
    "image_gan_weight": 0.5, "video_gan_weight": 1, "disc_start": 0, "disc_warmup": 0,
    "disc_ramp": 0,
}  # fmt: skip


def rows(run: Run, name: str) -> dict[int, float]:
    return dict(zip(run.steps(name), run.values(name), strict=True))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_figures_leave_the_run_as_it_is(train: Train, accumulate: int) -> None:
    loop = {"accumulate": accumulate, "val_check_interval": "1000"}
    often = train("vqgan", "often", train=loop | {"log_every": 1}, **VQGAN)
    never = train("vqgan", "never", train=loop | {"log_every": 1000}, **VQGAN)
    assert len(often.values("train/gan_share")) == 4
    assert len(never.values("train/gan_share")) == 1  # of the last step
    for part in ("state_dict", "optimizer_states", "random_states"):
        assert_equal(often.last[part], never.last[part], part)


def test_the_share_of_the_gan_is_that_of_the_gradient_at_the_reconstruction(train: Train) -> None:
    shares: list[float] = []

    def prepare(module: Any) -> None:
        original = module._generator_losses

        def losses(video: torch.Tensor, shown: torch.Tensor, weight: float) -> Any:
            found = original(video, shown, weight)
            real, fake = (seen.video.detach() for seen in found[:2])
            fake.requires_grad_()
            frames = fake[torch.arange(len(fake)), :, shown]
            gan = -0.5 * module.image_discriminator(frames).logits.mean()
            gan = gan - module.video_discriminator(fake).logits.mean()
            error = 4 * F.l1_loss(fake, real)
            one, other = (torch.autograd.grad(x, fake)[0].norm().item() for x in (error, gan))
            shares.append(other / (one + other))
            return found

        module._generator_losses = losses

    loss = GAN | {"gan_feat_weight": 0}
    run = train("vqgan", prepare=prepare, loss=loss, train={"max_steps": 1})
    assert 0.01 < shares[0] < 0.99
    assert run.values("train/gan_share") == pytest.approx(shares, rel=1e-4)


def test_feature_matching_counts_as_the_gan(train: Train) -> None:
    shares = [
        train("vqgan", f"{weight}", loss=GAN | {"gan_feat_weight": weight},
              train={"max_steps": 1}).values("train/gan_share")[0]
        for weight in (0, 4)
    ]  # fmt: skip
    assert shares[0] < shares[1]


class Uneven(Videos):
    """Clips that the discriminators feel more and less about."""

    def __getitem__(self, item: int | tuple[int, int]) -> Clip:
        clip = super().__getitem__(item)
        return clip._replace(video=clip.video * 10.0 ** (clip.video[0, 0, 0, 0] > 0))


def test_the_parts_of_a_batch_have_one_share(train: Train) -> None:
    loss = GAN | {"video_gan_weight": 0}

    def prepare(module: VQGANTraining) -> None:
        module.vqgan.codebook.N.fill_(1)  # else the first part decides the codes
        for parent in list(module.modules()):
            for name, part in parent.named_children():
                if isinstance(part, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
                    setattr(parent, name, torch.nn.Identity())  # whose statistics are a part's

    one, two = (
        train("vqgan", f"{parts}", prepare=prepare, loss=loss, clips=Uneven(),
              train={"max_steps": 1, "batch_size": 4 // parts, "accumulate": parts})
        .values("train/gan_share")
        for parts in (1, 2)
    )  # fmt: skip
    assert one == pytest.approx(two, rel=1e-4)


def test_rights_of_real_and_fake_make_up_the_whole(train: Train) -> None:
    run = train("vqgan", loss=GAN, train={"log_every": 2, "max_steps": 5})
    for name in ("image", "video"):
        right = f"train/disc_{name}_right"
        whole, real, fake = (rows(run, f"{right}{side}") for side in ("", "_real", "_fake"))
        assert set(whole) == set(real) == set(fake) == {1, 3, 4}
        for step, value in whole.items():
            assert value == pytest.approx((real[step] + fake[step]) / 2)


@pytest.mark.parametrize("update", ["step", "pass"])
def test_codes_are_counted_since_they_were_last_logged(train: Train, update: str) -> None:
    seen: list[set[int]] = []

    def prepare(module: Any) -> None:
        def quantized(book: Any, _: Any, found: Any) -> None:
            if book.training:
                seen[-1].update(found.codes.flatten().tolist())

        module.vqgan.codebook.register_forward_hook(quantized)
        seen.append(set())

    run = train(
        "vqgan",
        prepare=prepare,
        watch=lambda module, step: seen.append(set()),
        model={"codebook_update": update, "codes": 64},
        train={"log_every": 3, "max_steps": 7},
    )
    # The display is told, and so the list goes on, after the first, third, sixth and last step.
    first, second, third, last, _ = seen
    assert rows(run, "train/codes_used") == {
        2: len(first | second), 5: len(third), 6: len(last)
    }  # fmt: skip
    assert len(last) < len(third)


def test_dead_codes_are_those_of_the_moving_averages(train: Train) -> None:
    run = train("vqgan", model={"codes": 64, "codebook_decay": 0.5, "restart_threshold": 0.5})
    counts = run.last["state_dict"]["vqgan.codebook.N"]
    dead = (counts < 0.5 * counts.mean()).float().mean().item()
    assert 0 < dead < 1
    assert run.values("train/codes_dead")[-1] == pytest.approx(dead)


def test_timings_are_kept_apart_and_forget_what_comes_again(train: Train, tmp_path: Path) -> None:
    train("gpt", train={"max_steps": 3})
    file = tmp_path / "run" / "timings.csv"

    def steps(name: str) -> list[int]:
        cells = [line.split(",") for line in file.read_text().splitlines()[1:]]
        return [int(step) for step, metric, _ in cells if metric == name]

    assert steps("train/waiting") == steps("train/seconds") == [0, 1, 2]
    with file.open("a") as stream:
        stream.write("3,train/waiting,0.5\n4,tra")  # killed two steps later
    run = train("gpt", resume=True)
    assert steps("train/waiting") == [0, 1, 2, 3, 4, 5]
    assert not run.values("train/waiting")


def test_codes_used_before_a_stop_count_after_it(train: Train) -> None:
    settings: dict[str, Any] = {"model": {"codes": 64}, "train": {"log_every": 4}}

    def prepare(module: Any) -> None:
        original = module.training_step

        @functools.wraps(original)
        def step(*arguments: Any) -> None:
            original(*arguments)
            if module.global_step == 2:
                signal.raise_signal(signal.SIGTERM)

        module.training_step = step

    whole = train("vqgan", "whole", **settings)
    stopped = train("vqgan", "parts", prepare=prepare, **settings)
    assert stopped.outcome.step == 2
    again = train("vqgan", "parts", resume=True, **settings)
    assert rows(again, "train/codes_used") == rows(whole, "train/codes_used")
