"""A GPT whose weights, gradients and optimiser are spread over the processes.

Fully sharded data parallelism (Rajbhandari et al. 2020, ZeRO stage 3; Zhao et al. 2023), by torch's
FSDP2: each process holds a part of every weight, and puts those of a layer together while it is
computed. What is computed is what it is without; checkpoints are those of any other run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from tatscli.core.models.gpt import GPT, Block

DATA_PARALLEL = "data_parallel"
"""Lightning's name of the dimension of the mesh along which processes have clips of their own."""


def shard(gpt: GPT, mesh: DeviceMesh, linear: torch.dtype | None = None) -> None:
    """Leave a process its part of every weight.

    Attention and MLP of each block are put together by themselves, in the arithmetic that autocast
    gives them: it would keep a copy of all their weights from forward to backward. The rest, small
    and in float32 as under autocast, is put together once a step.

    Args:
        gpt: With the same weights in all processes, which then use it by ``hidden``, ``step`` and
            ``step_ends`` alone, and all of them together unless it is ``whole``.
        mesh: The processes, in one dimension.
        linear: Arithmetic of the layers within blocks; without, float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=linear, reduce_dtype=torch.float32)
    for block in cast("list[Block]", gpt.blocks):
        for part in (block.attn, block.mlp):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(gpt, mesh=mesh)
    for method in ("hidden", "step", "step_ends"):
        register_fsdp_forward_method(gpt, method)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Give each process all weights of what is sharded of a module, if anything is.

    Then one of them can use it without the others, and for thousands of tokens in turn: otherwise
    each would put together every layer. All must enter, after a step of training.
    """
    # The first is around the others, and keeps its weights after a forward anyway.
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.unshard()
    for part in sharded[1:]:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in sharded[1:]:
            part.set_reshard_after_forward(True, recurse=False)
        for part in sharded:
            part.reshard()


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with the checkpoints of other strategies.

    Its own number the weights of the optimiser in another order, so that a run could not go on
    without sharding, and are read by all processes through the first one.

    Args:
        world: Processes of the run.
        backend: Of their communication.
        timeout: For how long one waits for another.
    """

    def __init__(self, world: int, backend: str, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=world,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
            timeout=timeout,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By ``load_optimizer_state_dict``."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights in the first process, none in the others; all must ask."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state in the first process, none of it in the others; all must ask."""
        return self._gathered(optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read the file in each process, without a graphics card holding the whole of it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of each weight."""
        module = self.lightning_module
        assert module is not None
        held = module.state_dict()
        state = {
            name: _part_of(value, held[name]) if name in held else value
            for name, value in checkpoint["state_dict"].items()
        }
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the moments of each weight."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {
                number: {name: _part_of(value, weights[number]) for name, value in held.items()}
                for number, held in saved["state"].items()
            }
            optimizer.load_state_dict(saved | {"state": state})

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        def put_together(value: Any) -> Any:
            if isinstance(value, DTensor):
                value = value.full_tensor()
                # It may be the front of a padded tensor, which would be written with it.
                return value.to("cpu", copy=True) if self.is_global_zero else None
            return value

        return cast("dict[str, Any]", tree_map(put_together, state))


def _part_of(value: Any, held: Tensor) -> Any:
    """What a process holds of a tensor that is sharded as another one is, if that is."""
    if not (isinstance(held, DTensor) and isinstance(value, Tensor) and value.shape == held.shape):
        return value
    whole = value.to(held.device, held.dtype)
    # Each process has the whole, so that nothing is to be sent.
    return distribute_tensor(whole, held.device_mesh, held.placements, src_data_rank=None)
