"""Errors on the way from reading processes: as they are, not wrapped into a traceback."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset, default_collate

from tatscli.errors import TatsError


class Sheltered(Dataset[Any]):
    """A dataset whose batches are items, or the error that reading them met.

    torch makes the message of an error in a worker from its whole traceback, and drops the hint.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]  # every dataset here has a length

    def __getitems__(self, places: Sequence[Any]) -> list[Any] | TatsError:
        """A batch, or the error."""
        try:
            if hasattr(self._dataset, "__getitems__"):
                items: list[Any] = self._dataset.__getitems__(places)
                return items
            return [self._dataset[place] for place in places]
        except TatsError as error:
            return error


def collate(items: list[Any] | TatsError) -> Any:
    """The batch as torch makes it, or the error."""
    return items if isinstance(items, TatsError) else default_collate(items)


def checked(batch: Any) -> Any:
    """The batch.

    Raises:
        TatsError: What came in its place.
    """
    if isinstance(batch, TatsError):
        raise batch
    return batch
