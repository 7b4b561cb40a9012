"""What a step is and does: counting, accumulation, discriminators, codebook, guards, schedules."""

import re
from typing import Any

import pytest
import torch
from tiny_runs import Codes, Run, Train, Videos

from tatscli.core.models.codebook import Codebook
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.training import vqgan as vqgan_training
from tatscli.errors import RunError

GAN = {"image_gan_weight": 1, "video_gan_weight": 1, "disc_ramp": 2}


def momentum(run: Run, optimizer: int = 0) -> list[torch.Tensor]:
    """First moments of Adam: after one step, a tenth or half of each gradient."""
    state = run.last["optimizer_states"][optimizer]["state"]
    return [state[number]["exp_avg"] for number in sorted(state)]


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    assert len(found) == len(expected) > 10
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("disc_start", [2, 3])
def test_steps_are_those_of_the_generator(train: Train, accumulate: int, disc_start: int) -> None:
    saved: list[int] = []
    counted: list[tuple[int, int]] = []

    def watch(module: Any, step: int) -> None:
        counted.append((step, module.global_step))
        file = module.trainer.default_root_dir + "/checkpoints/last.ckpt"
        try:
            saved.append(torch.load(file, weights_only=True)["tats"]["step"])
        except FileNotFoundError:
            saved.append(0)

    run = train(
        "vqgan",
        watch=watch,
        loss=GAN | {"disc_start": disc_start, "disc_warmup": 1},
        train={"accumulate": accumulate, "max_steps": 5, "checkpoint_every": 2},
    )
    assert counted == [(step, step) for step in range(1, 6)]
    # The display is told before the step is saved.
    assert saved == [0, 0, 2, 2, 4]
    assert run.last["global_step"] == run.last["tats"]["step"] == run.outcome.step == 5
    assert run.steps("train/l1") == list(range(5))
    assert run.steps("train/disc_image") == list(range(disc_start - 1, 5))
    assert run.steps("train/gan_video") == list(range(disc_start, 5))
    # Logged under the step before; the last one counts too, though the interval is 2.
    assert run.steps("val/loss") == [1, 3, 4]


@pytest.mark.parametrize("better", [True, False])
def test_the_final_step_is_validated_and_may_be_the_best(train: Train, better: bool) -> None:
    values = {2: 2.0, 3: 1.0 if better else 3.0}

    def prepare(module: Any) -> None:
        original = module.add_validated

        def add(figures: Any, clips: int) -> None:
            original({"loss": torch.tensor(values[module.global_step])}, clips)

        module.add_validated = add

    run = train("gpt", prepare=prepare, train={"max_steps": 3})
    assert run.steps("val/loss") == [1, 2]
    best = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == (3 if better else 2)
    assert run.last["callbacks"]["Checkpoints"]["best"] == (1.0 if better else 2.0)


def test_discriminators_learn_from_start_minus_warmup(train: Train) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    calls: list[tuple[int, bool]] = []

    def prepare(module: Any) -> None:
        def called(judge: PatchDiscriminator, *_: Any) -> None:
            calls.append((module.global_step, torch.is_grad_enabled()))

        module.image_discriminator.register_forward_hook(called)
        module.video_discriminator.register_forward_hook(called)
        watch(module, 0)

    def watch(module: Any, step: int) -> None:
        state = module.state_dict()
        seen.append({k: v.clone() for k, v in state.items() if "discriminator" in k})

    train(
        "vqgan",
        prepare=prepare,
        watch=watch,
        loss=GAN | {"disc_start": 4, "disc_warmup": 2},
        train={"max_steps": 5},
    )
    same = [
        all(torch.equal(old[k], new[k]) for k in old)
        for old, new in zip(seen, seen[1:], strict=False)
    ]
    assert same == [True, True, False, False, False]
    moved = [k for k in seen[3] if "weight" in k and not torch.equal(seen[3][k], seen[2][k])]
    assert any("image" in k for k in moved)
    assert any("video" in k for k in moved)
    # Before they learn, nothing is asked of them.
    assert min(step for step, _ in calls) >= 2


def test_the_generator_feels_the_discriminators_from_their_start(train: Train) -> None:
    loss = GAN | {"disc_start": 2, "disc_warmup": 1}
    runs = [
        train("vqgan", f"w{weight}-{steps}", loss=loss | {"image_gan_weight": weight},
              train={"max_steps": steps})
        for weight in (1, 5) for steps in (2, 3)
    ]  # fmt: skip
    before = [momentum(runs[i]) for i in (0, 2)]
    after = [momentum(runs[i]) for i in (1, 3)]
    assert all(torch.equal(a, b) for a, b in zip(*before, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(*after, strict=True))
    figures = [runs[i].values("train/gan_image") for i in (1, 3)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5), "before weights"


@pytest.mark.parametrize(
    ("loss", "absent"),
    [
        ({"image_gan_weight": 0, "video_gan_weight": 1}, "image_discriminator"),
        ({"image_gan_weight": 1, "video_gan_weight": 0}, "video_discriminator"),
        ({}, "discriminator"),
    ],
)
def test_what_has_no_weight_is_not_built(train: Train, loss: dict[str, float], absent: str) -> None:
    run = train("vqgan", loss=loss | {"disc_start": 0}, train={"max_steps": 2})
    assert not [key for key in run.last["state_dict"] if absent in key]
    assert len(run.last["optimizer_states"]) == 1 + bool(loss)
    assert not run.values(f"train/disc_{absent[:5]}")
    assert not run.values("train/perceptual")


def test_without_weight_no_features_are_matched(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    matched: list[int] = []
    original = vqgan_training.feature_matching
    monkeypatch.setattr(
        vqgan_training, "feature_matching", lambda *a: matched.append(1) or original(*a)
    )
    loss = GAN | {"disc_start": 0}
    run = train("vqgan", "a", loss=loss | {"gan_feat_weight": 0}, train={"max_steps": 2})
    assert not matched
    assert not run.values("train/features_video")
    train("vqgan", "b", loss=loss, train={"max_steps": 2})
    assert len(matched) == 4


def test_an_accumulated_step_of_the_gpt_is_one_with_the_whole_batch(train: Train) -> None:
    model, optim = {"dropout": 0.0}, {"lr_warmup": 0, "grad_clip": 0}
    whole = train("gpt", "whole", model=model, optim=optim,
                  train={"batch_size": 6, "max_steps": 1})  # fmt: skip
    parts = train("gpt", "parts", model=model, optim=optim,
                  train={"batch_size": 2, "accumulate": 3, "max_steps": 1})  # fmt: skip
    assert_near(momentum(parts), momentum(whole), 1e-7)
    assert parts.values("train/loss") == pytest.approx(whole.values("train/loss"), rel=1e-5)
    three = [
        train("gpt", f"three{i}", model=model,
              train={"batch_size": 6 // n, "accumulate": n, "max_steps": 3})
        for i, n in enumerate((1, 3))
    ]  # fmt: skip
    assert three[1].values("train/loss") == pytest.approx(three[0].values("train/loss"), rel=1e-4)


def initialised(module: Any) -> None:
    module.vqgan.codebook.N.fill_(1)


def without_statistics(module: Any) -> None:
    """Takes batch norm out of the image discriminator: its statistics are those of a part."""
    initialised(module)
    for layer in module.image_discriminator.layers:
        for place, part in enumerate(layer):
            if isinstance(part, torch.nn.BatchNorm2d):
                layer[place] = torch.nn.Identity()


def test_an_accumulated_step_of_the_vqgan_is_one_with_the_whole_batch(train: Train) -> None:
    model = {"norm_type": "group", "hidden_channels": 16}
    whole, parts = (
        train("vqgan", f"n{n}", model=model, prepare=without_statistics, optim={"grad_clip": 0},
              loss={"image_gan_weight": 1, "disc_start": 0, "disc_ramp": 0},
              train={"batch_size": 6 // n, "accumulate": n, "max_steps": 1})
        for n in (1, 3)
    )  # fmt: skip
    assert_near(momentum(parts), momentum(whole), 1e-6)
    for name in ("codebook.embeddings", "codebook.N", "codebook.z_avg"):
        torch.testing.assert_close(
            parts.module.vqgan.state_dict()[name], whole.module.vqgan.state_dict()[name]
        )
    for mine, theirs in zip(momentum(parts, 1), momentum(whole, 1), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    for figure in ("l1", "gan_image", "features_image", "disc_image"):
        name = f"train/{figure}"
        assert parts.values(name) == pytest.approx(whole.values(name), rel=1e-4)


def test_the_codebook_moves_once_a_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    original = Codebook.update
    monkeypatch.setattr(Codebook, "update", lambda self: moves.append(1) or original(self))
    run = train("vqgan", prepare=initialised, loss=GAN | {"disc_start": 0},
                train={"accumulate": 3, "max_steps": 1, "val_check_interval": "1"})  # fmt: skip
    assert len(moves) == 1
    positions = 6 * 2 * 2 * 2
    assert run.module.vqgan.codebook.N.sum().item() == pytest.approx(0.99 * 8 + 0.01 * positions)


def test_logged_losses_are_means_over_the_parts(train: Train) -> None:
    losses: list[float] = []

    def prepare(module: Any) -> None:
        original = module._loss

        def recorded(*batch: Any) -> torch.Tensor:
            loss = original(*batch)
            losses.append(loss.item())
            return loss

        module._loss = recorded

    run = train("gpt", prepare=prepare, train={"accumulate": 3, "max_steps": 1})
    assert run.values("train/loss")[0] == pytest.approx(sum(losses[:3]) / 3, rel=1e-5)


@pytest.mark.parametrize(("kind", "term"), [("vqgan", "l1"), ("gpt", "loss")])
def test_a_loss_that_is_no_number_stops_with_step_and_term(
    train: Train, kind: str, term: str
) -> None:
    def watch(module: Any, step: int) -> None:
        if kind == "gpt" and step == 3:
            with torch.no_grad():
                module.gpt.head.weight.fill_(torch.inf)

    # Batches of 2: clip 6 is in step 3.
    clips = Videos(broken_from=6) if kind == "vqgan" else Codes()
    with pytest.raises(RunError, match=f"step 3: {term} = nan") as caught:
        train(kind, clips=clips, watch=watch, train={"checkpoint_every": 1})
    assert "--learning-rate" in caught.value.hint
    assert re.search(r"the last good checkpoint is .*last\.ckpt of step 3", caught.value.message)


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(
    train: Train, tmp_path: Any
) -> None:
    def prepare(module: Any) -> None:
        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * torch.inf if module.global_step == 2 else gradient

        module.gpt.head.weight.register_hook(spoil)

    with pytest.raises(RunError, match="step 2: gradient norm = (nan|inf)"):
        train("gpt", prepare=prepare, train={"checkpoint_every": 1})
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(v.isfinite().all() for v in last["state_dict"].values())


@pytest.mark.parametrize(("clip", "expected"), [(0.0, 3.0), (1.0, 1.0)])
def test_the_gradient_is_clipped_as_a_whole(train: Train, clip: float, expected: float) -> None:
    norms: list[float] = []

    def prepare(module: Any) -> None:
        weight = module.gpt.head.weight
        weight.register_hook(lambda g: torch.full_like(g, 3.0 / g.numel() ** 0.5))
        for name, parameter in module.gpt.named_parameters():
            if name != "head.weight":
                parameter.register_hook(torch.zeros_like)

    run = train("gpt", prepare=prepare, optim={"grad_clip": clip}, train={"max_steps": 1})
    norms = [float(m.norm()) / 0.1 for m in momentum(run)]
    assert max(norms) == pytest.approx(expected, rel=1e-3)


def test_the_vqgan_under_a_gpt_stays_as_it_is(train: Train) -> None:
    modes: list[tuple[bool, bool]] = []
    prints: list[str] = []

    def note(module: Any, step: int = 0) -> None:
        modes.append((module.gpt.training, any(m.training for m in module.vqgan.modules())))
        prints.append(module.vqgan.fingerprint())

    run = train("gpt", clips=Videos(), watch=note, train={"val_check_interval": "1"})
    assert modes == [(True, False)] * 6
    assert len(set(prints)) == 1
    assert not any(p.requires_grad for p in run.module.vqgan.parameters())
    trained = len(run.last["optimizer_states"][0]["state"])
    assert trained == len(list(run.module.gpt.parameters()))
    assert run.last["tats"]["vqgan"]["fingerprint"] == prints[0]


@pytest.mark.parametrize(("course", "ends"), [("constant", 1.0), ("linear", 0.1), ("cosine", 0.1)])
def test_the_rate_warms_up_and_takes_its_course(train: Train, course: str, ends: float) -> None:
    run = train("gpt", optim={"learning_rate": 1.0e-3, "lr_schedule": course, "lr_warmup": 3},
                train={"max_steps": 9})  # fmt: skip
    rates = [1e3 * rate for rate in run.values("train/learning_rate")]
    # Logged after the step: the rate of the next one.
    assert rates[:3] == pytest.approx([0.5, 0.75, 1.0])
    assert rates[-1] == pytest.approx(ends)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_metrics_do_not_depend_on_workers(train: Train) -> None:
    runs = [train("gpt", f"w{n}", workers=n, train={"max_steps": 3}) for n in (0, 1)]
    assert runs[0].rows == runs[1].rows


def test_the_checkpoint_says_what_it_is(train: Train) -> None:
    for kind in ("vqgan", "gpt"):
        header = train(kind, kind, train={"max_steps": 1}).last["tats"]
        assert (header["kind"], header["step"], header["format"]) == (kind, 1, 1)
        assert re.fullmatch(r"\d+\.\d+.*", header["version"])
