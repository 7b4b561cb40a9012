"""Shapes of what models are given, checked where it comes from outside.

A shape is known without waiting for a GPU, and a look at one takes a microsecond.
"""

from torch import Tensor


def check_shape(name: str, tensor: object, *expected: int | str) -> None:
    """A tensor must have a shape.

    Args:
        name: What the message calls the tensor.
        tensor: The tensor; anything may come from outside.
        expected: Size of each axis; a name stands for any size but 0.

    Raises:
        TypeError: It is no tensor.
        ValueError: It has another; the message has both.
    """
    if not isinstance(tensor, Tensor):
        kind = type(tensor)
        raise TypeError(f"{name} is a {kind.__module__}.{kind.__qualname__}, expected a tensor")
    fits = len(expected) == tensor.ndim and all(
        found > 0 if isinstance(size, str) else size == found
        for size, found in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} of shape {_shape(tensor.shape)}, expected {_shape(expected)}")


def as_ids(name: str, tensor: Tensor, *expected: int | str) -> Tensor:
    """A tensor of whole numbers as int64; it must have a shape, see ``check_shape``.

    Raises:
        ValueError: It holds others, or has another shape.
    """
    check_shape(name, tensor, *expected)
    if tensor.is_floating_point():
        raise ValueError(f"{name} of {tensor.dtype}, expected whole numbers")
    return tensor.long()


def check_range(name: str, ids: Tensor, limit: int) -> None:
    """Ids must be from 0 to below a limit; on a GPU a look at them would hold up each step.

    Raises:
        ValueError: With the name, the id and the limit.
    """
    if ids.device.type != "cpu" or not ids.numel():
        return
    low, high = (int(end) for end in ids.aminmax())
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} {wrong} is outside 0 to {limit - 1}")


def _shape(sizes: tuple[int | str, ...]) -> str:
    """As Python writes a tuple, with the names of axes as they are."""
    text = ", ".join(map(str, sizes))
    return f"({text},)" if len(sizes) == 1 else f"({text})"
