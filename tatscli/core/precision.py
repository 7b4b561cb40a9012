"""Float32 arithmetic without shortcuts, whatever is around it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def strict_float32(device: torch.device) -> Iterator[None]:
    """Switch off autocast and every reduced-precision product, whatever training had set."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
