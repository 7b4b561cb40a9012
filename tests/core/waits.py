"""What a GPU would be waited for, seen on a CPU: operations that hand numbers of it to Python."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero",
    "aten::masked_select", "aten::bincount", "aten::_unique2", "aten::unique_dim", "aten::equal",
    "aten::repeat_interleave",
}  # fmt: skip
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Waits(TorchDispatchMode):
    """Counts them while it is entered; an index that is a mask is one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        masked = name in _INDEXED and any(
            place is not None and place.dtype == torch.bool for place in args[1]
        )
        if name in _WAITING or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))
