import subprocess
import sys

import pytest
import torch
from waits import Waits

from tatscli.core.models import codebook as module
from tatscli.core.models.codebook import Codebook


def latents(rows):
    """Rows of width D as (1, D, n, 1, 1)."""
    return torch.as_tensor(rows, dtype=torch.float32).t()[None, :, :, None, None]


def with_codes(rows, **settings):
    rows = torch.as_tensor(rows, dtype=torch.float32)
    codebook = Codebook(len(rows), rows.shape[1], **settings)
    codebook.load_state_dict({"embeddings": rows, "N": torch.ones(len(rows)), "z_avg": rows})
    return codebook


def test_nearest_code_by_hand():
    codebook = with_codes([[0, 0], [4, 0], [0, 4]]).eval()
    quantized = codebook(latents([[3, 0.5], [0.2, -1], [1, 3], [2.5, 0]]))
    assert quantized.codes.flatten().tolist() == [1, 0, 2, 1]
    assert quantized.codes.dtype == torch.int64
    assert quantized.latents[0, :, 2, 0, 0].tolist() == [0, 4]
    squares = [1 + 0.25, 0.04 + 1, 1 + 1, 2.25]
    assert quantized.commitment.item() == pytest.approx(sum(squares) / 8)
    # Usage 1/4, 1/2, 1/4: entropy 1.5 bits.
    assert quantized.perplexity.item() == pytest.approx(2**1.5, rel=1e-5)


def test_chunks_change_nothing(monkeypatch):
    codebook = Codebook(50, 6).eval()
    z = torch.randn(2, 6, 3, 5, 5)
    whole = codebook(z).codes
    monkeypatch.setattr(module, "_CHUNK", 50 * 7)
    assert torch.equal(codebook(z).codes, whole)


def test_codes_minimise_the_distance():
    codebook = Codebook(40, 5).eval()
    z = torch.randn(2, 5, 3, 4, 4)
    distances = torch.cdist(z.permute(0, 2, 3, 4, 1).reshape(-1, 5), codebook.embeddings)
    assert torch.equal(codebook.nearest(z).flatten(), distances.argmin(1))


def test_gradient_passes_straight_through():
    codebook = Codebook(8, 4).eval()
    z = torch.randn(1, 4, 2, 3, 3, requires_grad=True)
    codebook(z).latents.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_commitment_pulls_the_encoder_only():
    codebook = Codebook(8, 4).eval()
    z = torch.randn(1, 4, 2, 3, 3, requires_grad=True)
    quantized = codebook(z)
    quantized.commitment.backward()
    pull = 2 * (z - codebook.lookup(quantized.codes)).detach() / z.numel()
    torch.testing.assert_close(z.grad, pull)
    assert not list(codebook.parameters())
    assert not codebook.embeddings.requires_grad


def test_autocast_does_not_reach_the_quantiser():
    codebook = Codebook(512, 16).eval()
    z = torch.randn(4, 16, 4, 8, 8)
    outside = codebook(z)
    with torch.autocast("cpu", torch.bfloat16):
        inside = codebook(z)
        nearest = codebook.nearest(z)
    assert torch.equal(inside.codes, outside.codes)
    assert torch.equal(inside.commitment, outside.commitment)
    assert torch.equal(nearest, outside.codes)


def test_moving_average_by_hand():
    codebook = with_codes([[0.0], [10.0]], decay=0.9).train()
    codebook(latents([[1], [3], [12]]))
    codebook.update()
    assert codebook.N.tolist() == pytest.approx([0.9 + 0.1 * 2, 0.9 + 0.1 * 1])
    assert codebook.z_avg.flatten().tolist() == pytest.approx([0.1 * 4, 9 + 0.1 * 12])
    assert codebook.embeddings.flatten().tolist() == pytest.approx([0.4 / 1.1, 10.2], rel=1e-5)


def test_codes_stand_still_until_the_update():
    codebook = with_codes(torch.randn(6, 3)).train()
    before = codebook.embeddings.clone()
    codebook(torch.randn(2, 3, 2, 2, 2))
    assert torch.equal(codebook.embeddings, before)
    codebook.update()
    assert not torch.equal(codebook.embeddings, before)


def test_accumulated_batches_count_as_one():
    rows, z = torch.randn(6, 3), torch.randn(4, 3, 2, 2, 2)
    whole, parts = with_codes(rows).train(), with_codes(rows).train()
    whole(z)
    for part in z.split(1):
        parts(part)
    for codebook in (whole, parts):
        codebook.update()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)


def test_each_update_counts_a_batch_once():
    codebook = with_codes([[0.0], [10.0]], decay=0.5).train()
    codebook(latents([[0.0]] * 4))
    codebook.update()
    codebook(latents([[0.0]] * 4))
    codebook.update()
    assert codebook.N.tolist() == [(1 * 0.5 + 2) * 0.5 + 2, 0.25]


def test_use_leaves_no_trace():
    codebook = with_codes(torch.randn(6, 3))
    z = torch.randn(2, 3, 2, 2, 2)
    untouched = with_codes(codebook.embeddings).train()
    codebook.eval()(z)
    codebook.train().nearest(z)
    for one in (codebook, untouched):
        one.update()
    assert torch.equal(codebook.N, untouched.N)


def test_first_training_batch_becomes_the_codes():
    codebook = Codebook(5, 3).train()
    rows = torch.randn(12, 3)
    codebook(latents(rows))
    assert torch.cdist(codebook.embeddings, rows).min(1).values.max() < 1e-6
    assert len(codebook.embeddings.unique(dim=0)) == 5
    assert codebook.N.tolist() == [1] * 5
    assert torch.equal(codebook.z_avg, codebook.embeddings)


def test_few_positions_are_tiled_with_noise():
    codebook = Codebook(16, 4).train()
    rows = torch.randn(3, 4)
    codebook(latents(rows))
    nearest = torch.cdist(codebook.embeddings, rows).min(1).values
    assert 0 < nearest.max() < 0.05
    assert len(codebook.embeddings.unique(dim=0)) == 16


def test_evaluation_does_not_initialise():
    codebook = Codebook(5, 3).eval()
    before = codebook.embeddings.clone()
    codebook(torch.randn(1, 3, 2, 2, 2))
    assert torch.equal(codebook.embeddings, before)
    assert not codebook.initialized


def test_a_loaded_codebook_is_never_initialised_again():
    trained = Codebook(5, 3).train()
    trained(torch.randn(2, 3, 2, 2, 2))
    trained.update()
    loaded = Codebook(5, 3).train()
    loaded.load_state_dict(trained.state_dict())
    loaded(100 + torch.randn(2, 3, 2, 2, 2))
    assert torch.equal(loaded.embeddings, trained.embeddings)
    assert torch.equal(loaded.N, trained.N)


def test_state_is_codes_and_statistics_only():
    assert list(Codebook(5, 3, random_restart=True).state_dict()) == ["embeddings", "N", "z_avg"]


def test_restart_moves_the_statistics_too():
    codebook = with_codes([[0.0], [1.0], [500.0]], decay=0.5, random_restart=True).train()
    for _ in range(4):
        codebook(latents([[0.0], [0.1], [0.9], [1.0]] * 8))
        codebook.update()
    moved = codebook.embeddings[2].item()
    assert min(abs(moved - value) for value in (0.0, 0.1, 0.9, 1.0)) < 1e-6
    assert codebook.z_avg[2].item() == pytest.approx(moved * codebook.N[2].item())
    # Unused by the next batch, it stays where it was put; published, it would fly back.
    other = max(codebook.embeddings[:2, 0].tolist(), key=lambda value: abs(value - moved))
    codebook(latents([[2 * other - moved]] * 4))
    codebook.update()
    assert codebook.embeddings[2].item() == pytest.approx(moved, rel=1e-4, abs=1e-6)


def test_without_restart_unused_codes_stay():
    codebook = with_codes([[0.0], [1.0], [500.0]], decay=0.5).train()
    for _ in range(8):
        codebook(latents([[0.0], [1.0]] * 8))
        codebook.update()
    assert codebook.embeddings[2].item() == pytest.approx(500, rel=1e-3)


def test_nothing_is_drawn_while_all_codes_are_used():
    codebook = with_codes([[0.0], [1.0]], random_restart=True).train()
    state = torch.get_rng_state()
    codebook(latents([[0.0], [1.0]]))
    codebook.update()
    assert torch.equal(torch.get_rng_state(), state)


def published_pass(state, rows):
    """The published rule, plainly: which codes the rows get, and then where the codes move."""
    chosen = torch.cdist(rows, state["embeddings"]).argmin(1)
    onehot = torch.nn.functional.one_hot(chosen, len(state["N"])).float()
    state["N"] = 0.99 * state["N"] + 0.01 * onehot.sum(0)
    state["z_avg"] = 0.99 * state["z_avg"] + 0.01 * onehot.t() @ rows
    total = state["N"].sum()
    smoothed = (state["N"] + 1e-7) / (total + len(onehot[0]) * 1e-7) * total
    state["embeddings"] = state["z_avg"] / smoothed[:, None]
    return chosen


def test_with_each_pass_the_codes_move_after_it_as_published():
    codebook = with_codes(torch.randn(6, 3), each_pass=True).train()
    state = {name: value.clone() for name, value in codebook.state_dict().items()}
    for _ in range(4):
        rows = torch.randn(20, 3)
        before = codebook.embeddings.clone()
        quantized = codebook(latents(rows))
        assert torch.equal(quantized.codes.flatten(), published_pass(state, rows))
        given = quantized.latents[0, :, :, 0, 0].t()
        torch.testing.assert_close(given, before[quantized.codes.flatten()])
        assert not torch.equal(codebook.embeddings, before)
        for name, value in state.items():
            torch.testing.assert_close(codebook.state_dict()[name], value)
    still = codebook.embeddings.clone()
    codebook.eval()(torch.randn(1, 3, 4, 1, 1))
    assert torch.equal(codebook.embeddings, still)


def test_published_restarts_move_vectors_alone_below_a_count_of_one():
    rows = [[0.0], [1.0], [50.0], [90.0]]
    restart = {"random_restart": True, "restart_statistics": False}
    restarting = with_codes(rows, each_pass=True, **restart).train()
    plain = with_codes(rows, each_pass=True).train()
    for codebook in (restarting, plain):
        # Code 3 is rare beside the others, but its count does not fall below 1.
        codebook.N.copy_(torch.tensor([99.0, 99.0, 1.005, 1.05]))
        codebook.z_avg.copy_(codebook.embeddings * codebook.N[:, None])
    # Where a batch puts code 2, the next one has nothing.
    for batch in ([-0.4, 1.4], [0.05, 0.95], [-0.01, 1.01]):
        for codebook in (restarting, plain):
            codebook(latents([[value] for value in batch + batch]))
        assert torch.equal(restarting.N, plain.N)
        assert torch.equal(restarting.z_avg, plain.z_avg)
        assert restarting.N[2] < 1 < restarting.N[3] < 0.1 * restarting.N.mean()
        # Each batch moves it anew, since its statistics stayed where it was.
        assert restarting.embeddings[2] in torch.tensor(batch)
        others = [0, 1, 3]
        assert torch.equal(restarting.embeddings[others], plain.embeddings[others])
    assert plain.embeddings[2].item() == pytest.approx(50, rel=1e-3)


def test_published_restarts_also_end_when_a_code_is_used():
    codebook = with_codes(
        [[0.0], [50.0]], random_restart=True, restart_statistics=False, decay=0.5
    ).train()
    codebook(latents([[0.2], [0.2]]))
    codebook.update()
    assert codebook.N.tolist() == [1.5, 0.5]
    assert codebook.embeddings[1].item() == pytest.approx(0.2)
    codebook(latents([[0.2]] * 4))
    codebook.update()
    # Found where it was put, it is drawn back half way to where its statistics are.
    assert codebook.N.tolist() == [0.75, 2.25]
    assert codebook.embeddings[1].item() == pytest.approx((0.25 * 50 + 0.5 * 4 * 0.2) / 2.25)


_TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from tatscli.core.models.codebook import Codebook
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(rank)
published = {"restart_statistics": False, "each_pass": True} if len(sys.argv) > 3 else {}
codebook = Codebook(
    6, 3, decay=0.5, random_restart=True, restart_threshold=0.9, **published
).train()
batches = torch.load(f"{folder}/batches.pt")
for batch in batches:
    codebook(batch[rank : rank + 1])
    if not published:
        codebook.update()
torch.save(codebook.state_dict() | {"used": codebook.used}, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("more", [[], ["published"]], ids=["ours", "published"])
def test_processes_agree_through_initialisation_updates_and_restarts(tmp_path, more):
    torch.save(torch.randn(4, 2, 3, 1, 2, 3), tmp_path / "batches.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", _TWO_PROCESSES, str(rank), str(tmp_path), *more])
        for rank in range(2)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    # Counts of both processes went in: 12 positions a step tend to a total of 12.
    assert first["N"].sum() > 8
    assert first["used"].any()


def test_used_codes_are_remembered_until_they_are_cleared():
    codebook = with_codes([[0, 0], [4, 0], [0, 4], [9, 9]]).train()
    for rows in ([[3, 0.5], [2.5, 0]], [[1, 3]]):
        codebook(latents(rows))
        codebook.update()
    assert codebook.used.tolist() == [False, True, True, False]
    codebook.used.zero_()
    codebook.update()
    assert not codebook.used.any()
    assert "used" not in codebook.state_dict()


def test_looking_uses_no_codes():
    codebook = with_codes([[0, 0], [4, 0]]).eval()
    codebook(latents([[3, 0.5]]))
    codebook.nearest(latents([[3, 0.5]]))
    codebook.update()
    assert not codebook.used.any()


def test_dead_codes_are_below_the_threshold_of_the_mean():
    codebook = with_codes([[0, 0], [4, 0], [0, 4], [9, 9]], restart_threshold=0.5)
    assert not codebook.dead.any()
    codebook.N.copy_(torch.tensor([4.0, 2.1, 1.9, 8.0]))  # half of their mean is 2
    assert codebook.dead.tolist() == [False, False, True, False]


def test_a_training_step_makes_no_gpu_wait_once_the_codes_come_from_data():
    codebook = Codebook(16, 4).train()
    for _ in range(2):
        codebook(torch.randn(2, 4, 2, 2, 2))
    with Waits() as seen:
        codebook(torch.randn(2, 4, 2, 2, 2))
    assert not seen.found
    codebook.load_state_dict(Codebook(16, 4).state_dict())
    assert not codebook.initialized
