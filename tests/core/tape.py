"""What a CUDA graph does, seen on a CPU: the recorded operations again, in the recorded memory."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Records operations while it is entered; Python decides nothing when they are replayed."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._operations.append((func, args, kwargs or {}, results))
        return out

    def replay(self) -> None:
        """All again: each reads and writes the memory that it read and wrote."""
        for func, args, kwargs, results in self._operations:
            found = func(*args, **kwargs)
            again = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            for old, new in zip(results, again, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Stands for the recording of a CUDA graph."""
    run()  # the warm-up
    with Tape() as tape:
        result = run()
    return tape.replay, result
