"""Losses by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from tatscli.config.gpt import ConditionLayout, GPTConfig, GPTLossConfig
from tatscli.core.training.losses import (
    draw_dropped,
    draw_frames,
    feature_matching,
    hinge,
    pick_frames,
    ramp,
    token_loss,
    vanilla,
)


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    assert hinge(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1) / 2))


def test_vanilla_is_binary_cross_entropy() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.0, 3.0])
    chance = torch.sigmoid(torch.cat([real, fake]))
    by_hand = -(chance[:2].log().mean() + (1 - chance[2:]).log().mean()) / 2
    assert vanilla(real, fake).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_feature_matching_leaves_out_the_logits_and_the_gradient_of_the_real() -> None:
    fake = [torch.zeros(2, 3, requires_grad=True) for _ in range(3)]
    real = [torch.full((2, 3), value, requires_grad=True) for value in (1.0, -4.0, 100.0)]
    distance = feature_matching(real, fake)
    assert distance.item() == pytest.approx(5.0)
    distance.backward()
    assert all(part.grad is None for part in real)
    assert fake[0].grad is not None
    assert fake[2].grad is None


def test_a_frame_is_picked_from_each_clip() -> None:
    video = torch.arange(2 * 3 * 4 * 1 * 1).view(2, 3, 4, 1, 1)
    assert pick_frames(video, torch.tensor([3, 1])).flatten(1).tolist() == [
        [3, 7, 11],
        [13, 17, 21],
    ]


def test_the_ramp_rises_from_its_start_to_one() -> None:
    assert [ramp(step, 4, 3) for step in range(3, 10)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [ramp(step, 2, 0) for step in (1, 2, 3)] == [0, 1, 1]


def test_the_token_loss_expects_no_id_of_the_condition() -> None:
    config = GPTConfig(
        layers=1, heads=1, width=2, codes=3, grid=(1, 1, 2), block_size=2,
        condition=ConditionLayout.labels(1),
    )  # fmt: skip
    logits = torch.zeros(1, 2, 5)
    logits[..., :2] = 50.0  # of the class and the null id
    codes = torch.tensor([[2, 0]])
    assert token_loss(logits, torch.eye(5), codes, config).item() == pytest.approx(math.log(3))
    logits[0, 0, 4] = 9.0
    expected = (math.log(2 + math.exp(9)) - 9 + math.log(3)) / 2
    found = token_loss(logits, torch.eye(5), codes, config).item()
    assert found == pytest.approx(expected, rel=1e-5)


INFILL = GPTConfig(
    layers=1, heads=1, width=2, codes=3, grid=(3, 1, 2), block_size=6, infill=True,
    condition=ConditionLayout.labels(1),
)  # fmt: skip


def test_infilling_learns_only_what_it_is_not_given() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 5, generator=generator, requires_grad=True)
    codes = torch.randint(3, (2, 6), generator=generator)
    token_loss(logits, torch.eye(5), codes, INFILL).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum((0, 2)) > 0).tolist() == [False, False, True, True, False, False]


def test_the_published_loss_counts_given_frames_and_ids_of_the_condition() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 5, generator=generator)
    codes = torch.randint(3, (2, 6), generator=generator)
    published = GPTLossConfig(given_frames=True, condition_ids=True)
    expected = F.cross_entropy(logits.flatten(0, 1), codes.flatten() + 2)
    found = token_loss(logits, torch.eye(5), codes, INFILL, published)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("most_logits", [1, 12, 15, 10_000])
def test_the_loss_in_parts_is_the_whole_with_its_gradients(
    most_logits: int, published: bool
) -> None:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(3, (2, 6), generator=generator)
    weights = GPTLossConfig(given_frames=published, condition_ids=published)
    hidden = torch.randn(2, 6, 7, generator=generator)
    head = torch.randn(5, 7, generator=generator)

    def found(most: int) -> list[torch.Tensor]:
        inputs = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        loss = token_loss(*inputs, codes, INFILL, weights, most_logits=most)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    shown = slice(None) if published else slice(2, -2)
    inputs = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    logits = inputs[0][:, shown] @ inputs[1].T[:, 0 if published else 2 :]
    targets = codes[:, shown] + (2 if published else 0)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    expected = [loss.detach(), *torch.autograd.grad(loss, inputs)]
    torch.testing.assert_close(found(most_logits), expected)


def test_the_frame_of_a_clip_does_not_depend_on_the_number_of_processes() -> None:
    alone = draw_frames(3, 7, frames=16, clips=60)
    for world in (2, 3):
        shares = [draw_frames(3, 7, 16, 60 // world, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat(shares), alone)
    assert set(alone.tolist()) == set(range(16))
    assert not torch.equal(draw_frames(3, 8, 16, 60), alone)
    assert not torch.equal(draw_frames(4, 7, 16, 60), alone)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_each_part_is_dropped_for_its_share_of_clips_and_half_of_that_with_all(
    parts: int, share: float
) -> None:
    dropped = draw_dropped(3, 7, parts, share, clips=200_000)
    assert (dropped.shape, dropped.dtype) == ((200_000, parts), torch.bool)
    assert dropped.float().mean(0).tolist() == pytest.approx([share] * parts, abs=0.005)
    # Parts that are dropped by themselves may meet by chance.
    alone = (share / 2) / (1 - share / 2)
    together = share / 2 + (1 - share / 2) * alone**parts
    assert dropped.all(1).float().mean().item() == pytest.approx(together, abs=0.005)


def test_what_is_dropped_follows_from_seed_and_step() -> None:
    some = draw_dropped(3, 7, parts=2, share=0.5, clips=60)
    assert torch.equal(draw_dropped(3, 7, 2, 0.5, 60), some)
    assert not torch.equal(draw_dropped(3, 8, 2, 0.5, 60), some)
    assert not torch.equal(draw_dropped(4, 7, 2, 0.5, 60), some)
    assert not torch.equal(some[:, 0], some[:, 1])


def test_what_a_clip_loses_does_not_depend_on_the_number_of_processes() -> None:
    alone = draw_dropped(3, 7, parts=3, share=0.4, clips=6)
    shares = [draw_dropped(3, 7, 3, 0.4, 3, rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat(shares), alone)
    assert not torch.equal(*shares)
    assert alone.any()


def test_a_share_of_nothing_drops_nothing() -> None:
    assert not draw_dropped(3, 7, parts=3, share=0.0, clips=10_000).any()
