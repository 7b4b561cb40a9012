"""A sharded GPT: what a process holds of it, and that it computes what the whole one does."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tatscli.config.gpt import ConditionLayout, GPTConfig, GPTLossConfig
from tatscli.core.limits import size_of
from tatscli.core.models.gpt import GPT
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import Chances, generate_window
from tatscli.core.training.losses import token_loss
from tatscli.core.training.sharding import _part_of, shard, whole

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")

CONFIG = GPTConfig(
    layers=2, heads=2, width=32, codes=16, grid=(2, 2, 2), block_size=8,
    condition=ConditionLayout.labels(3),
)  # fmt: skip
CLIPS = 3

Shard = Callable[..., GPT]


def sharded(gpt: GPT, world: int, linear: torch.dtype | None) -> GPT:
    shard(gpt, init_device_mesh("cpu", (world,)), linear)
    return gpt


@pytest.fixture
def alone() -> Iterator[Shard]:
    """Shards a GPT in a group of one process, in which collectives are real."""
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield lambda gpt, linear=None: sharded(gpt, 1, linear)
    distributed.destroy_process_group()


@pytest.fixture
def first_of_two() -> Iterator[Shard]:
    """Shards a GPT as the first of two processes, of which the other is never heard."""
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield lambda gpt, linear=None: sharded(gpt, 2, linear)
    distributed.destroy_process_group()


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


def learn(gpt: GPT, bf16: bool = False) -> torch.Tensor:
    """The loss of some clips, with gradients left in the weights."""
    torch.manual_seed(1)
    labels, codes = torch.randint(3, (CLIPS, 1)), torch.randint(16, (CLIPS, 8))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = gpt.hidden(labels, codes)
        loss = token_loss(hidden, gpt.head.weight, codes, CONFIG, GPTLossConfig())
        loss.backward()
    return loss.detach()


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_those_of_the_whole_model(
    gpt: GPT, alone: Shard, bf16: bool, recompute: bool
) -> None:
    plain = deepcopy(gpt)
    shared = alone(gpt, torch.bfloat16 if bf16 else None)
    shared.recompute = recompute
    for _ in range(2):  # the second adds to the gradients of the first
        assert torch.equal(learn(shared, bf16), learn(plain, bf16))
    for (name, mine), theirs in zip(shared.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None, name
        assert mine.grad.dtype == torch.float32
        assert torch.equal(local(mine.grad), theirs.grad), name


@pytest.mark.parametrize("bf16", [False, True])
def test_it_is_whole_for_a_while(gpt: GPT, alone: Shard, bf16: bool) -> None:
    plain = deepcopy(gpt)
    shared = alone(gpt, torch.bfloat16 if bf16 else None)
    labels = torch.tensor([[0], [2]])
    for _ in range(2):
        assert torch.equal(learn(shared, bf16), learn(plain, bf16))
        with torch.no_grad(), whole(shared):
            assert not any(isinstance(weight, DTensor) for weight in shared.parameters())
            first, second = (
                generate_window(model.eval(), labels, Chances(0, range(2)), TokenFilter())
                for model in (plain, shared)
            )
        assert bf16 or torch.equal(first, second)
        assert first.shape == second.shape
        assert all(isinstance(weight, DTensor) for weight in shared.parameters())


def test_layers_are_put_together_one_by_one(gpt: GPT, alone: Shard) -> None:
    shared = alone(gpt, torch.bfloat16)
    learn(shared, bf16=True)
    with whole(shared):
        # The arithmetic of autocast, which would copy the weights to have it.
        found = {name: weight.dtype for name, weight in shared.named_parameters()}
    linear = {name for name in found if ".attn." in name or ".mlp." in name}
    assert {name for name, dtype in found.items() if dtype == torch.bfloat16} == linear
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        shared.hidden(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long))
    held = {name for name, weight in shared.named_parameters() if isinstance(weight, DTensor)}
    assert held == linear


def test_whole_is_nothing_to_a_module_that_is_not_sharded(gpt: GPT) -> None:
    with whole(gpt):
        learn(gpt)


def test_what_is_read_is_kept_in_part(gpt: GPT, first_of_two: Shard) -> None:
    weight = dict(first_of_two(gpt).named_parameters())["head.weight"]
    value = torch.rand(weight.shape)
    part = _part_of(value, weight)
    assert torch.equal(local(part), value[: len(value) // 2 + len(value) % 2])
    assert local(part).untyped_storage().nbytes() == size_of([local(part)])
    step = torch.tensor(3.0)
    assert _part_of(step, weight) is step


def test_a_process_of_two_holds_half(gpt: GPT, first_of_two: Shard) -> None:
    def held(model: GPT) -> list[float]:
        """Bytes of weights, gradients and moments between two steps."""
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        learn(model)
        optimizer.step()
        weights = list(model.parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        moments = [optimizer.state[w][name] for w in weights for name in ("exp_avg", "exp_avg_sq")]
        return [size_of(map(local, kind)) for kind in (weights, gradients, moments)]

    plain, shared = held(deepcopy(gpt)), held(first_of_two(gpt))
    assert plain == [plain[0], plain[0], 2 * plain[0]]
    # The embedding of positions has one row, which the first process holds.
    most = (plain[0] + size_of([torch.zeros(8, 32)])) / 2 + 4 * 32
    assert all(bytes_ <= most * n for bytes_, n in zip(shared, (1, 1, 2), strict=True))
