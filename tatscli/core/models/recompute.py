"""Activations computed again for the gradient instead of kept (Chen et al. 2016)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *inputs: Any) -> Tensor:
    """Run a module, of which the inputs alone are kept for the gradient.

    Output, gradients and buffers are those of running it plainly: batch norm counts a batch once.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_statistics(module)

    out: Tensor = checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norm normalise as before, without counting the batch a second time."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        # A copy to count in: SyncBatchNorm insists on having one.
        norm.num_batches_tracked = (
            None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        )
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
